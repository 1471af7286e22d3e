"""One behaviour on a folder and on S3: atomic, conditional, and loud about faults."""

import errno
import io
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fsspec.asyn import sync_wrapper

from pairforge.records import InfraError
from pairforge.storage import Entry, Storage, join_url, open_storage, read_url
from tests.s3_server import Fault, FaultyApp

REPOSITORY = Path(__file__).parents[2]

NAMES = [
    "a.json",
    "shards/line/0001-ab.tar",
    "name with  spaces.txt",
    "ünï/コード/😀.png",
    "q?a=1&b#c%20*[x].bin",
]
BAD_NAMES = ["", "/", "/etc/passwd", "..", "a/../../b", "a/..", "./a", "a/./b", "a//b", "a/", "a\\b", "..\\b"]
BAD_NAMES += ["a\nb", "a\0b", ".tmp-1", "a/.tmp-1", ".lock-1/a", "x" * 256, "ü" * 128, "a/\udcff"]


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    return open_storage(request.getfixturevalue("s3_url") + "/deep/prefix")


@pytest.fixture(autouse=True)
def scratch_file_of_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))


def names(storage: Storage, prefix: str = "") -> list[str]:
    return [entry.name for entry in storage.list(prefix)]


def hidden_files(storage: Storage) -> list[str]:
    return [path.name for path in Path(storage.root).rglob(".tmp-*")]


# --- one behaviour -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_stored_bytes_come_back(storage: Storage, name: str) -> None:
    for data in (b"", b"first" * 100, b"2"):
        storage.write(name, data)
        assert storage.read(name) == data
        assert storage.exists(name)
        assert storage.size(name) == len(data)
        assert list(storage.list()) == [Entry(name, len(data))]
        assert read_url(storage.url(name)) == data
        assert join_url(storage.root, name) == storage.url(name)
    storage.delete(name)
    assert not storage.exists(name)
    assert names(storage) == []
    storage.delete(name)


def test_absent_names(storage: Storage) -> None:
    storage.write("folder/file", b"x")
    for name in ("absent", "folder", "folder/absent", "folder/file/below", "no/such/folder"):
        assert not storage.exists(name)
        storage.delete(name)
        for use in (
            storage.read,
            storage.size,
            storage.open,
            lambda name: storage.read_range(name, 0, 1),
            lambda name: storage.read_range(name, 0, 0),
            lambda name: read_url(storage.url(name)),
        ):
            with pytest.raises(FileNotFoundError) as raised:
                use(name)
            assert raised.value.errno == errno.ENOENT
            assert storage.url(name) in str(raised.value)
    assert storage.read("folder/file") == b"x"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_leave_the_root_are_refused(storage: Storage, name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for use in (
        storage.read,
        storage.open,
        storage.exists,
        storage.size,
        storage.delete,
        storage.local_path,
        lambda name: storage.read_range(name, 0, 1),
        lambda name: storage.write(name, b""),
        lambda name: storage.write_file(name, source),
        lambda name: storage.put_if_absent(name, b""),
        lambda name: storage.compare_and_swap(name, None, b""),
        lambda name: join_url(storage.root, name),
    ):
        with pytest.raises(ValueError):
            use(name)
    assert names(storage) == [] and source.exists()


def test_read_range_clips_at_the_end(storage: Storage) -> None:
    storage.write("data", b"0123456789")
    storage.write("empty", b"")
    assert storage.read_range("data", 0, 4) == b"0123"
    assert storage.read_range("data", 7, 100) == b"789"
    assert storage.read_range("data", 3, 0) == b""
    assert storage.read_range("data", 10, 5) == b""
    assert storage.read_range("data", 99, 5) == b""
    assert storage.read_range("empty", 0, 5) == b""
    for start, length in ((-1, 2), (0, -1)):
        with pytest.raises(ValueError, match="0 or more"):
            storage.read_range("data", start, length)


def test_list_is_sorted_recursive_and_by_text_prefix(storage: Storage) -> None:
    stored = ["b", "a/z", "a/b/c", "a-1", "ab/x", "a/é", "a/Z", "a0"]
    for index, name in enumerate(stored):
        storage.write(name, b"x" * index)
    assert list(storage.list()) == sorted(Entry(name, index) for index, name in enumerate(stored))
    assert names(storage, "a/") == ["a/Z", "a/b/c", "a/z", "a/é"]
    assert names(storage, "a") == sorted(name for name in stored if name.startswith("a"))
    assert names(storage, "a/b") == ["a/b/c"]
    assert names(storage, "nothing/") == []
    for prefix in ("/", "../", "a/../", "a//"):
        with pytest.raises(ValueError):
            storage.list(prefix)


def test_list_of_more_than_one_page(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    for index in range(8):
        storage.write(f"{index}", b"")
    assert names(storage) == [f"{index}" for index in range(8)]


def test_listing_shows_what_another_process_did(storage: Storage) -> None:
    storage.write("a/1", b"")
    assert names(storage, "a/") == ["a/1"]
    run_script(storage, "storage.write('a/2', b''); storage.delete('a/1')")
    assert names(storage, "a/") == ["a/2"]
    assert storage.exists("a/2") and not storage.exists("a/1")


def test_tar_through_the_handle(storage: Storage) -> None:
    blob = random.Random(1).randbytes(9_000_000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("first", b"1"), ("big", blob), ("last", b"3")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    storage.write("shard.tar", buffer.getvalue())
    with storage.open("shard.tar") as file, tarfile.open(fileobj=file) as tar:
        assert tar.getnames() == ["first", "big", "last"]
        last, big = tar.extractfile("last"), tar.extractfile("big")
        assert last is not None and last.read() == b"3"
        assert big is not None and big.read() == blob
    with storage.open("shard.tar") as file:
        assert file.readable() and file.seekable() and not file.writable()
        assert file.read() == buffer.getvalue()
        assert file.read(1) == b""
        assert file.seek(-5, io.SEEK_END) == len(buffer.getvalue()) - 5
        assert len(file.read(100)) == 5
        with pytest.raises((ValueError, OSError)):
            file.seek(-1)


def test_large_file_moves_into_storage(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "large"
    data = random.Random(2).randbytes(20 * 2**20)
    for _ in range(2):
        source.write_bytes(data)
        source.chmod(0o600)
        storage.write_file("shards/large.tar", source)
        assert not source.exists()
    assert storage.size("shards/large.tar") == len(data)
    assert storage.read("shards/large.tar") == data
    assert list(storage.list()) == [Entry("shards/large.tar", len(data))]
    with pytest.raises(FileNotFoundError, match="large"):
        storage.write_file("other", source)
    with pytest.raises(FileNotFoundError):
        storage.write_file("other", tmp_path)
    if (path := storage.local_path("shards/large.tar")) is not None:
        assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def test_storage_travels_to_other_processes(storage: Storage) -> None:
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage and hash(copy) == hash(storage)
    assert len(pickle.dumps(storage)) < 400
    storage.write("x", b"1")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(copy.read, ("x",)) == b"1"


def test_storage_works_on_both_sides_of_a_fork(storage: Storage) -> None:
    script = """
    storage.write('parent', b'1')
    child = os.fork()
    if child == 0:
        storage.write('child', storage.read('parent') + b'2')
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert storage.read('child') == b'12'
    """
    run_script(storage, script)


# --- conditional writes -------------------------------------------------------------------------------


def test_first_writer_wins(storage: Storage) -> None:
    assert storage.put_if_absent("a/one", b"first")
    assert not storage.put_if_absent("a/one", b"second")
    assert not storage.put_if_absent("a/one", b"first")
    assert storage.read("a/one") == b"first"
    storage.delete("a/one")
    assert storage.put_if_absent("a/one", b"third")


def test_compare_and_swap(storage: Storage) -> None:
    assert not storage.compare_and_swap("latest", b"1", b"2")
    assert not storage.exists("latest")
    assert storage.compare_and_swap("latest", None, b"1")
    assert not storage.compare_and_swap("latest", None, b"2")
    assert not storage.compare_and_swap("latest", b"0", b"2")
    assert storage.read("latest") == b"1"
    assert storage.compare_and_swap("latest", b"1", b"2")
    assert not storage.compare_and_swap("latest", b"1", b"3")
    assert storage.compare_and_swap("latest", b"2", b"2")
    assert storage.compare_and_swap("latest", b"2", b"")
    assert storage.compare_and_swap("latest", b"", b"4")
    assert names(storage) == ["latest"] and storage.read("latest") == b"4"


def test_check_of_conditional_writes_passes_and_leaves_nothing(storage: Storage) -> None:
    storage.check_conditional_writes()
    assert names(storage) == []


COUNT = """
import threading
def count():
    for _ in range({rounds}):
        while True:
            value = storage.read('count')
            if storage.compare_and_swap('count', value, b'%d' % (int(value) + 1)):
                break
threads = [threading.Thread(target=count) for _ in range(2)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def test_no_increment_is_lost_between_processes_and_threads(storage: Storage) -> None:
    rounds = 10 if storage.root.startswith("s3") else 50
    storage.write("count", b"0")
    workers = [start_script(storage, COUNT.format(rounds=rounds)) for _ in range(3)]
    for worker in workers:
        finish(worker)
    assert int(storage.read("count")) == 3 * 2 * rounds


def test_one_of_many_concurrent_writers_wins(storage: Storage) -> None:
    wins: list[tuple[int, int]] = []
    barrier = threading.Barrier(6)

    def contend(writer: int) -> None:
        for name in range(8):
            barrier.wait()
            if storage.put_if_absent(f"name-{name}", b"%d" % writer):
                wins.append((name, writer))

    threads = [threading.Thread(target=contend, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in wins) == list(range(8))
    assert all(storage.read(f"name-{name}") == b"%d" % writer for name, writer in wins)


# --- crashes ------------------------------------------------------------------------------------------

DIE_IN_FSYNC = "os.fsync = lambda descriptor: os.kill(os.getpid(), 9)\n"
DIE_IN_LINK = "os.link = lambda *paths: os.kill(os.getpid(), 9)\n"
WRITES = {
    "write": "storage.write('{name}', b'new' * 100_000)",
    "write_file": "scratch.write_bytes(b'new' * 7_000_000); storage.write_file('{name}', scratch)",
    "put_if_absent": "storage.put_if_absent('{name}', b'new' * 100_000)",
    "compare_and_swap": "storage.compare_and_swap('{name}', b'old', b'new' * 100_000)",
}


@pytest.mark.parametrize("how", WRITES)
def test_writer_killed_before_it_published_leaves_nothing_visible(how: str, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "root"))
    storage.write("a/old", b"old")
    name = "a/new" if how == "put_if_absent" else "a/old"
    die = DIE_IN_LINK if how == "put_if_absent" else DIE_IN_FSYNC
    killed = start_script(storage, die + WRITES[how].format(name=name))
    assert killed.wait() == -signal.SIGKILL
    assert list(storage.list()) == [Entry("a/old", 3)]
    assert storage.read("a/old") == b"old"
    assert len(hidden_files(storage)) == 1
    assert storage.sweep(older_than_s=3600) == 0
    assert storage.sweep(older_than_s=0) == 1
    assert hidden_files(storage) == []
    assert storage.compare_and_swap("a/old", b"old", b"newer"), "the dead writer's lock is free"


def test_uploader_killed_between_parts_leaves_nothing_visible(s3_url: str) -> None:
    storage = open_storage(s3_url)
    storage.write("a/old", b"old")
    script = """
    import s3fs
    call = s3fs.S3FileSystem._call_s3
    async def call_or_die(self, method, *args, **kwargs):
        reply = await call(self, method, *args, **kwargs)
        if method == 'upload_part':
            os.kill(os.getpid(), 9)
        return reply
    s3fs.S3FileSystem._call_s3 = call_or_die
    """
    for name in ("a/old", "a/new"):
        assert start_script(storage, script, WRITES["write_file"].format(name=name)).wait() == -signal.SIGKILL
    assert list(storage.list()) == [Entry("a/old", 3)]
    assert storage.read("a/old") == b"old" and not storage.exists("a/new")
    assert storage.sweep(older_than_s=1e9) == 0  # moto dates every upload to 2010
    assert storage.sweep(older_than_s=0) == 2
    assert storage.sweep(older_than_s=0) == 0


def test_writer_killed_at_any_time_leaves_one_whole_version(storage: Storage) -> None:
    size = 3_000_000
    storage.write("name", b"a" * size)
    script = f"""
    print('ready', flush=True)
    while True:
        for letter in (b'b', b'c'):
            storage.write('name', letter * {size})
    """
    for pause_s in (0.03, 0.11):
        writer = start_script(storage, script)
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        for _ in range(3):
            content = storage.read("name")
            assert len(content) == size and len(set(content)) == 1
        time.sleep(pause_s)
        writer.kill()
        writer.wait()
        content = storage.read("name")
        assert len(content) == size and len(set(content)) == 1
        assert list(storage.list()) == [Entry("name", size)]


# --- folders ------------------------------------------------------------------------------------------


def test_disk_faults_become_infra_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path))
    storage.write("kept", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for write in (
            lambda: storage.write("name", b"x" * 1000),
            lambda: storage.write("kept", b"x" * 1000),
            lambda: storage.put_if_absent("name", b"x" * 1000),
            lambda: storage.compare_and_swap("kept", b"old", b"new"),
        ):
            with pytest.raises(InfraError, match=rf"{tmp_path}/.*No space left"):
                write()
    assert list(storage.list()) == [Entry("kept", 3)] and hidden_files(storage) == []
    with pytest.raises(InfraError, match="kept/below"):
        storage.write("kept/below", b"")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        patch.setattr(Path, "open", refuse)
        for use in (lambda: storage.list(), lambda: storage.read("kept"), lambda: storage.open("kept")):
            with pytest.raises(InfraError, match=f"{tmp_path}.*Permission denied"):
                use()


def test_file_from_another_file_system_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path / "root"))
    replace = Path.replace

    def cross(self: Path, target: Path) -> Path:
        if self.parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cross)
    source = tmp_path / "source"
    source.write_bytes(b"content")
    storage.write_file("a/b", source)
    assert storage.read("a/b") == b"content" and not source.exists() and hidden_files(storage) == []


def test_linked_source_is_copied_and_its_target_stays(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "root"))
    (tmp_path / "real").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage.write_file("a", tmp_path / "link")
    assert not (tmp_path / "root/a").is_symlink()
    (tmp_path / "real").write_bytes(b"changed")
    assert storage.read("a") == b"content" and not (tmp_path / "link").exists()


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    (tmp_path / "data/inner").mkdir(parents=True)
    (tmp_path / "data/inner/photo").write_bytes(b"123")
    (tmp_path / "data/inner/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data/again").symlink_to(tmp_path / "data/inner")
    (tmp_path / "root").symlink_to(tmp_path / "data")
    storage = open_storage(str(tmp_path / "root"))
    assert list(storage.list()) == [Entry("again/photo", 3), Entry("inner/photo", 3)]


def test_lost_reply_to_a_link_counts_as_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert open_storage(str(tmp_path)).put_if_absent("name", b"x")


def test_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_storage("data/").root == f"{tmp_path}/data"
    assert open_storage("./a/../data").root == f"{tmp_path}/data"
    assert open_storage(".").root == str(tmp_path)
    assert open_storage("/").root == "/" and open_storage("/").url("a/b") == "/a/b"
    assert open_storage((tmp_path / "ä b%").as_uri()).root == f"{tmp_path}/ä b%"
    assert open_storage(f"file://localhost{tmp_path}").root == str(tmp_path)
    assert open_storage("data").local_path("x/y") == tmp_path / "data/x/y"
    assert not (tmp_path / "data").exists(), "opening creates nothing"
    (tmp_path / "photo 1.jpg").write_bytes(b"x")
    for url in ("photo 1.jpg", f"{tmp_path}/photo 1.jpg", (tmp_path / "photo 1.jpg").as_uri()):
        assert read_url(url) == b"x"
    for url in ("gs://bucket/x", "http://host/x", "memory://x", "S3://bucket", "simplecache::s3://bucket"):
        with pytest.raises(ValueError, match="use a local path, file:// or s3://"):
            open_storage(url)
    for url in ("", "~/data", "~", "file://host/data", "file:///a?b", "file://", "a\0b"):
        with pytest.raises(ValueError):
            open_storage(url)


# --- S3 -----------------------------------------------------------------------------------------------


def test_s3_roots() -> None:
    assert open_storage("s3://my-bucket/").root == "s3://my-bucket"
    assert open_storage("s3://my-bucket/a b/ü/").root == "s3://my-bucket/a b/ü"
    assert open_storage("s3://my-bucket").url("x/y") == "s3://my-bucket/x/y"
    assert open_storage("s3://my-bucket/a").local_path("x") is None
    for url in ("s3://", "s3:///key", "s3://B_ucket", "s3://my-bucket//a", "s3://my-bucket/../a", "s3://x"):
        with pytest.raises(ValueError):
            open_storage(url)
    with pytest.raises(ValueError, match="access point"):
        open_storage("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name")
    for url in ("s3://my-bucket", "s3://my-bucket/", "s3://my-bucket//key"):
        with pytest.raises(ValueError):
            read_url(url)
    for name in ("a?versionId=1", "/".join(["x" * 200] * 6)):
        with pytest.raises(ValueError, match="no key"):
            open_storage("s3://my-bucket").read(name)


def test_s3fs_is_loaded_only_for_s3(tmp_path: Path) -> None:
    script = """
    assert not {'s3fs', 'botocore', 'aiohttp'} & set(sys.modules), sys.modules
    import importlib.util
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name: None if name == 's3fs' else find(name)
    try:
        open_storage('s3://bucket/x')
    except ImportError as error:
        assert "pip install 'pairforge[s3]'" in str(error) and 's3://bucket/x' in str(error)
    else:
        raise SystemExit('no error')
    """
    run_script(open_storage(str(tmp_path)), script)


def test_prefixes_of_one_bucket_do_not_see_each_other(s3_url: str) -> None:
    one, two, all_of_it = (open_storage(s3_url + prefix) for prefix in ("/a", "/ab", ""))
    one.write("x", b"1")
    two.write("x", b"2")
    assert names(one) == names(two) == ["x"] and one.read("x") == b"1"
    assert names(all_of_it) == ["a/x", "ab/x"]


def test_absent_bucket_is_a_fault_and_not_an_absence(s3_url: str) -> None:
    storage = open_storage("s3://there-is-no-such-bucket")
    for use in (
        storage.list,
        lambda: storage.read("x"),
        lambda: storage.write("x", b""),
        lambda: storage.put_if_absent("x", b""),
        lambda: storage.sweep(0),
    ):
        with pytest.raises(InfraError, match=r"s3://there-is-no-such-bucket.*NoSuchBucket"):
            use()


def test_failed_upload_keeps_the_source_and_aborts(s3_url: str, s3_app: FaultyApp, tmp_path: Path) -> None:
    storage = open_storage(s3_url)
    source = tmp_path / "source"
    source.write_bytes(b"x" * 20_000_000)
    s3_app.faults.append(Fault("PUT", 403, "AccessDenied"))
    with pytest.raises(InfraError, match=rf"{s3_url}/big.*AccessDenied"):
        storage.write_file("big", source)
    assert source.exists() and names(storage) == [] and storage.sweep(0) == 0


@pytest.mark.parametrize("code", ["InternalError", "ServiceUnavailable"])
def test_passing_fault_is_ridden_out(s3_url: str, s3_app: FaultyApp, code: str) -> None:
    storage = open_storage(s3_url)
    for method in ("PUT", "GET"):
        s3_app.faults.append(Fault(method, 503, code))
    storage.write("x", b"1")
    assert storage.read("x") == b"1"


def test_lost_reply_to_a_conditional_write_counts_as_won(s3_url: str, s3_app: FaultyApp) -> None:
    storage = open_storage(s3_url)
    s3_app.faults.append(Fault("PUT", 500, carried_out=True))
    assert storage.put_if_absent("x", b"1")
    s3_app.faults.append(Fault("PUT", 500, carried_out=True))
    assert storage.compare_and_swap("x", b"1", b"2")
    s3_app.faults.append(Fault("PUT", 500))
    assert not storage.put_if_absent("x", b"2"), "same bytes, another writer"
    assert storage.read("x") == b"2"


def test_conflict_is_sent_again(s3_url: str, s3_app: FaultyApp, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(s3_url)
    conflict = Fault("PUT", 409, "ConditionalRequestConflict")
    s3_app.faults += [conflict, conflict]
    assert storage.put_if_absent("x", b"1")
    s3_app.faults.append(conflict)
    assert storage.compare_and_swap("x", b"1", b"2")
    s3_app.faults.append(conflict)
    assert not storage.put_if_absent("x", b"3")
    monkeypatch.setattr("pairforge.storage_s3._CONFLICT_ATTEMPTS", 2)
    s3_app.faults += [conflict, conflict]
    with pytest.raises(InfraError, match=rf"{s3_url}/x.*conflict"):
        storage.compare_and_swap("x", b"2", b"3")
    assert storage.read("x") == b"2"


def test_broken_body_is_read_again(s3_url: str, s3_app: FaultyApp) -> None:
    storage = open_storage(s3_url)
    data = random.Random(3).randbytes(300_000)
    storage.write("x", data)
    s3_app.faults += [Fault("GET", 0), Fault("GET", 0)]
    assert storage.read("x") == data
    s3_app.faults += [Fault("GET", 0)] * 3
    with pytest.raises(InfraError, match=f"{s3_url}/x"):
        storage.read("x")


def test_object_replaced_while_it_is_read_is_not_mixed(s3_url: str) -> None:
    storage = open_storage(s3_url)
    storage.write("x", b"a" * 5_000_000)
    with storage.open("x") as file:
        assert file.read(10) == b"a" * 10
        storage.write("x", b"b" * 5_000_000)
        with pytest.raises(InfraError, match=f"{s3_url}/x.*PreconditionFailed"):
            file.seek(4_900_000)
            file.read()


@pytest.mark.parametrize("status, code", [(403, "AccessDenied"), (400, "ExpiredToken"), (400, "Strange")])
def test_refusals_become_infra_errors(s3_url: str, s3_app: FaultyApp, status: int, code: str) -> None:
    storage = open_storage(s3_url)
    storage.write("x", b"1")
    for method, use in (
        ("GET", lambda: storage.read("x")),
        ("GET", lambda: storage.list()),
        ("PUT", lambda: storage.write("x", b"")),
        ("PUT", lambda: storage.put_if_absent("x", b"")),
        ("PUT", lambda: storage.compare_and_swap("x", b"1", b"2")),
        ("DELETE", lambda: storage.delete("x")),
    ):
        s3_app.faults.append(Fault(method, status, code))
        with pytest.raises(InfraError, match=rf"{s3_url}/.*{code}") as raised:
            use()
        assert isinstance(pickle.loads(pickle.dumps(raised.value)), InfraError)
    assert storage.read("x") == b"1"


def test_unreachable_service_and_missing_credentials(s3_url: str) -> None:
    script = """
    from pairforge import storage_s3
    from pairforge.records import InfraError
    storage_s3._REQUEST_ATTEMPTS = 1
    def expect(text):
        for use in (storage.list, lambda: storage.read('x'), lambda: storage.exists('x'),
                    lambda: storage.open('x'), lambda: storage.compare_and_swap('x', None, b'')):
            try:
                use()
            except InfraError as error:
                assert text in str(error) and storage.root in str(error), str(error)
            else:
                raise SystemExit('no error')
    os.environ['AWS_ENDPOINT_URL'] = 'http://127.0.0.1:1'
    expect('EndpointConnectionError')
    storage_s3.s3fs.S3FileSystem.clear_instance_cache()
    del os.environ['AWS_ACCESS_KEY_ID']
    expect('NoCredentialsError')
    """
    run_script(open_storage(s3_url), script)


def test_store_that_ignores_conditions_is_found_out(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    call = s3fs.S3FileSystem._call_s3
    for dropped in ("IfMatch", "IfNoneMatch"):

        async def without(self: Any, method: str, *args: Any, dropped: str = dropped, **kwargs: Any) -> Any:
            kwargs.pop(dropped, None)
            return await call(self, method, *args, **kwargs)

        storage = open_storage(s3_url)
        with monkeypatch.context() as patch:
            patch.setattr(s3fs.S3FileSystem, "_call_s3", without)
            patch.setattr(s3fs.S3FileSystem, "call_s3", sync_wrapper(without))
            with pytest.raises(ValueError, match=f"{s3_url}.*ignores"):
                storage.check_conditional_writes()
        assert names(storage) == []


# --- other processes ----------------------------------------------------------------------------------


def start_script(storage: Storage, *parts: str) -> subprocess.Popen[bytes]:
    """A new Python that runs `parts` with `storage` and the path `scratch` in sight."""
    head = "import os, sys\nfrom pathlib import Path\nfrom pairforge.storage import open_storage\n"
    head += f"storage = open_storage({storage.root!r})\nscratch = Path(os.environ['SCRATCH'])\n"
    code = head + "\n".join(textwrap.dedent(part) for part in parts)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)


def finish(worker: subprocess.Popen[bytes]) -> None:
    output = worker.communicate(timeout=60)[0]
    assert worker.returncode == 0, output


def run_script(storage: Storage, script: str) -> None:
    finish(start_script(storage, script))


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
