"""Listing sources and reading their bytes: nothing is lost without a reason, nothing blocks, names survive."""

import io
import os
import shutil
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pairforge.image import Pixels, encode_png
from pairforge.records import Fate, InfraError, SampleError
from pairforge.storage_s3 import S3Storage
from pipelines import entries
from pipelines.entries import split_glob
from pipelines.reading import count_frames, hash_file, local_copy, local_path, local_uri, read_frames, read_source
from pipelines.settings import AnySources
from pipelines.sources import Found, list_sources

from .clips import write_clip

KINDS: TypeAdapter[Any] = TypeAdapter(AnySources)


def listed(kind: str, url: str | Path, group: str | dict[str, str] = "file", **more: Any) -> list[Found]:
    rule = {"by": group} if isinstance(group, str) else group
    return list(
        list_sources(KINDS.validate_python({"kind": kind, "url": str(url), "licence": "x", "group": rule} | more))
    )


def reasons(found: Sequence[Found]) -> dict[str, str]:
    """Base name -> reason, '' where it can be a source."""
    return {f.uri.rpartition("/")[2]: f.refusal.reason if f.refusal else "" for f in found}


def bytes_of(found: Found) -> bytes:
    return read_source(found.uri, found.locator)


def refusal_of(read: Callable[..., object], *arguments: Any) -> SampleError:
    with pytest.raises(SampleError) as caught:
        read(*arguments)
    assert caught.value.detail
    return caught.value


def fill(folder: Path, *names: str) -> None:
    """Files whose content is their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


# Folders and globs


def test_a_folder_is_searched_and_other_extensions_are_rows(tmp_path: Path) -> None:
    fill(tmp_path, "b.png", "a/z.JPG", "a.jpeg", "a/notes.txt", "none")
    found = listed("files", tmp_path)
    assert [f.uri for f in found] == [f"{tmp_path}/{n}" for n in ("a/notes.txt", "a/z.JPG", "a.jpeg", "b.png", "none")]
    assert reasons(found) == {
        "b.png": "",
        "z.JPG": "",
        "a.jpeg": "",
        "notes.txt": "other_extension",
        "none": "other_extension",
    }
    assert {f.refusal.fate for f in found if f.refusal} == {Fate.REJECTED}
    assert all(bytes_of(f).decode() == f.uri.removeprefix(f"{tmp_path}/") for f in found)
    assert [f.size_bytes for f in found if not f.refusal] == [7, 6, 5]


TREE = (
    "x.png",
    "y.jpg",
    "a/x.png",
    "a/b/x.png",
    "a/b/c/q.png",
    "ab/x.png",
    "b/[1].png",
    "b/1.png",
    "b/].png",
    "b/-.png",
)


@pytest.mark.parametrize(
    "pattern",
    [
        "*", "*.png", "**/*", "**/*.png", "*/*.png", "a/**/*.png", "a/**", "**/b/*", "?.png", "[xy].*", "[!x].*",
        "b/[[]1].png", "b/[0-9].png", "b/[]].png", "b/[-x].png", "[ab]/*", "**/[!a]*/*.png", "a*/x.png", "b/[^x].png",
    ],
)  # fmt: skip
def test_globs_match_what_python_s_glob_matches(tmp_path: Path, pattern: str) -> None:
    fill(tmp_path, *TREE)
    wanted = {str(path.relative_to(tmp_path)) for path in tmp_path.glob(pattern) if path.is_file()}
    if pattern.endswith("**"):  # where Path.glob finds folders alone
        wanted = {name for name in TREE if name.startswith(pattern[:-2])}
    if not wanted:
        with pytest.raises(ValueError, match="nothing matches"):
            listed("files", f"{tmp_path}/{pattern}")
    else:
        assert {f.uri.removeprefix(f"{tmp_path}/") for f in listed("files", f"{tmp_path}/{pattern}")} == wanted


def test_a_class_never_matches_a_slash_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a/b.png", "a-b.png")
    assert [f.uri for f in listed("files", f"{tmp_path}/a[!x]b.png")] == [f"{tmp_path}/a-b.png"]
    with pytest.raises(ValueError, match=r"\[z-a\]"):
        listed("files", f"{tmp_path}/[z-a].png")


@given(st.text("ab*?[]!-^\\./", max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_pattern_compiles_or_is_refused(pattern: str) -> None:
    root, rest = split_glob(pattern)
    assert f"{root}/{rest}".strip("/.").endswith(rest.strip("/.")) or not rest
    try:
        entries._glob_regex(pattern)
    except ValueError as error:
        assert repr(pattern) in str(error)


def test_a_glob_enters_only_folders_that_it_can_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/1.png", "a/deep/2.png", "a/deep/er/3.png")
    entered: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: entered.append(str(path)) or scandir(path))  # type: ignore[func-returns-value]
    assert len(listed("files", f"{tmp_path}/*/*.png")) == 1
    assert entered == [str(tmp_path), f"{tmp_path}/a"]


def test_relative_urls_are_recorded_as_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "in/a.png", "b.png")
    monkeypatch.chdir(tmp_path)
    recorded = {
        "in": ["in/a.png"],
        "in/": ["in/a.png"],
        "./in": ["./in/a.png"],
        "b.png": ["b.png"],
        "*.png": ["b.png"],
        "**/*.png": ["b.png", "in/a.png"],
    }
    for url, uris in recorded.items():
        found = listed("files", url)
        assert [f.uri for f in found] == uris, url
        assert all(bytes_of(f) for f in found)
    monkeypatch.chdir("/")
    assert refusal_of(read_source, "in/a.png", "").reason == "not_found"
    assert read_source("in/a.png", "", folder=str(tmp_path)) == b"in/a.png"


def test_file_urls_are_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    fill(folder, "a.png")
    for url in (
        folder.as_uri(),
        f"{folder.as_uri()}/*.png",
        folder.as_uri().replace("///", "//localhost/"),
        f"file:{folder}",
    ):
        assert [f.uri for f in listed("files", url)] == [f"{folder}/a.png"]


ODD_NAMES = [
    *(b"caf\xe9 \xff.png", b"line\nbreak.png", "🏔️.png".encode(), b"100%25.png", b"%2e%2e%2f.png", b"file:x.png"),
    *(b"a#b.png", b"a?b.png", b"back\\slash.png", b"-rf.png", b" .png", b"tab\t.png", b"\x01\x7f.png", b"s3:.png"),
    *(b"x" * 251 + b".png", "cafe\u0301.png".encode()),
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=repr)
@pytest.mark.parametrize("where", ["absolute", "relative"])
def test_odd_names_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, where: str) -> None:
    (tmp_path / "set").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "set") + b"/" + name)).write_bytes(name)
    monkeypatch.chdir(tmp_path)
    (found,) = listed("files", "set" if where == "relative" else tmp_path / "set")
    assert found.refusal is None
    for text in (found.uri, found.group):
        text.encode()
    assert bytes_of(found) == name
    with local_copy(found.uri) as path:
        str(path).encode()
        assert hash_file(path)[1] == len(name)


def test_a_root_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    fill(folder, "a/1.png")
    url = local_uri(str(folder))
    assert url.startswith("file:///") and url.isascii()
    (found,) = listed("files", url, "folder")
    assert bytes_of(found) == b"a/1.png" and found.group == "a"


@given(st.binary(min_size=1, max_size=40).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b"..")))
def test_local_uris_round_trip(name: bytes) -> None:
    for path in (os.fsdecode(b"/data/" + name), os.fsdecode(b"data/" + name)):
        uri = local_uri(path)
        uri.encode()
        assert str(local_path(uri)) == path
        assert str(local_path(uri, "/root")) == (path if path.startswith("/") else f"/root/{path}")


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path, "real/1.png", "elsewhere/2.png")
    root = tmp_path / "real"
    (root / "other").symlink_to("../elsewhere", target_is_directory=True)
    (root / "up").symlink_to("..", target_is_directory=True)
    (root / "self.png").symlink_to(".", target_is_directory=True)
    (root / "link.png").symlink_to("1.png")
    (root / "dangling.png").symlink_to("nowhere")
    (root / "one.png").symlink_to("two.png")
    (root / "two.png").symlink_to("one.png")
    found = {f.uri.removeprefix(f"{root}/"): f.refusal.reason if f.refusal else "" for f in listed("files", root)}
    assert found == {
        "1.png": "", "other/2.png": "", "link.png": "", "dangling.png": "not_found", "one.png": "symlink_loop",
        "two.png": "symlink_loop", "self.png": "not_a_file", "up/elsewhere/2.png": "", "up/real": "not_a_file",
    }  # fmt: skip


def test_what_is_no_file_is_a_row_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    fill(tmp_path / "folder.png", "inside.png")
    found = listed("files", tmp_path)
    assert reasons(found) == {"pipe.png": "not_a_file", "folder.png": "not_a_file", "inside.png": ""}
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero")):
        assert refusal_of(read_source, str(path), "").reason == "not_a_file"
        with pytest.raises(SampleError, match="not_a_file"), local_copy(str(path)):
            pass


def test_hidden_names_are_refused_and_hidden_folders_not_entered(tmp_path: Path) -> None:
    fill(tmp_path, "._a.png", ".git/b.png", "a.png", "c/.thumbs/d.png")
    assert reasons(listed("files", tmp_path)) == {
        "._a.png": "hidden",
        ".git": "hidden",
        "a.png": "",
        ".thumbs": "hidden",
    }
    assert reasons(listed("files", f"{tmp_path}/*.png")) == {"._a.png": "hidden", "a.png": ""}
    assert reasons(listed("files", tmp_path / ".git")) == {"b.png": ""}, "the root may be hidden"


def test_a_folder_that_cannot_be_entered_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png", "closed/b.png", "z.png")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert reasons(listed("files", tmp_path)) == {"a.png": "", "closed": "not_readable", "z.png": ""}


def test_a_refusal_that_has_gone_is_listed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png", "b.xyz")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        before = listed("files", f"{tmp_path}/*.png")
    after = listed("files", f"{tmp_path}/*.png")
    assert before[0].refusal and before[0].refusal.reason == "not_readable"
    assert after[0].refusal is None and after[0].stamp != before[0].stamp
    in_folder, in_glob = (listed("files", f"{tmp_path}{rest}")[1].stamp for rest in ("", "/*"))
    assert in_folder != in_glob


def test_very_deep_folders_are_walked(tmp_path: Path) -> None:
    path = str(tmp_path)
    for _ in range(1100):
        path += "/d"
        os.mkdir(path)  # noqa: PTH102 - Path.mkdir is slow here
    Path(path, "a.png").touch()
    found = listed("files", tmp_path)
    Path(path, "a.png").unlink()
    while path != str(tmp_path):
        os.rmdir(path)  # noqa: PTH106
        path = path.rpartition("/")[0]
    assert len(found) == 1 and found[0].uri.endswith("/d/a.png")


def test_order_depends_on_names_alone(tmp_path: Path) -> None:
    names = ["b.png", "B.png", "a/c.png", "a.png", "ä.png", "10.png", "9.png"]
    orders = []
    for folder, written in ((tmp_path / "one", names), (tmp_path / "two", names[::-1])):
        fill(folder, *written)
        orders.append([f.uri.removeprefix(f"{folder}/") for f in listed("files", folder)])
    assert orders == [["10.png", "9.png", "B.png", "a/c.png", "a.png", "b.png", "ä.png"]] * 2


def test_a_set_that_is_missing_or_empty_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        listed("files", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nothing matches"):
        listed("files", tmp_path)
    with pytest.raises(ValueError, match=r"no \.tar file"):
        listed("tar", tmp_path)
    with pytest.raises(ValueError, match="gs://"):
        listed("files", "gs://bucket/x")


# Groups


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        ({"by": "file"}, ["a/s1_x", "a/s1_y", "b/s2_x", "b/t"]),
        ({"by": "folder"}, ["a", "a", "b", "b"]),
        ({"by": "pattern", "pattern": r"(s\d)_"}, ["s1", "s1", "s2", None]),
    ],
)
def test_groups_come_from_the_path_below_the_root(
    tmp_path: Path, rule: dict[str, str], groups: list[str | None]
) -> None:
    names = ["a/s1_x.png", "a/s1_y.png", "b/s2_x.png", "b/t.png"]
    for root in ("one", "another/place"):
        fill(tmp_path / root, *names)
        found = listed("files", tmp_path / root, rule)
        assert [None if f.refusal else f.group for f in found] == groups
        assert [f.refusal.reason for f in found if f.refusal] == ["no_group"] * groups.count(None)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"by": "pattern", "pattern": "no group"}, "no part in parentheses"),
        ({"by": "pattern", "pattern": "(?:a)"}, "no part in parentheses"),
        ({"by": "pattern", "pattern": "(a"}, "not a regular expression"),
        ({"by": "column", "column": "c"}, "kind table"),
        ({"by": "pattern"}, "goes with"),
    ],
)
def test_group_rules_that_cannot_work_are_refused(rule: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        listed("files", "x", rule)


# Packages


def test_package_photos(photos: dict[str, Pixels]) -> None:
    spec = {
        "kind": "package",
        "package": "skimage",
        "paths": ["data/astronaut.png"],
        "licence": "CC0-1.0",
        "group": {"by": "file"},
    }
    (found,) = list_sources(KINDS.validate_python(spec))
    assert (found.uri, found.group) == ("package://skimage/data/astronaut.png", "data/astronaut")
    decoded = cv2.imdecode(np.frombuffer(bytes_of(found), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), photos["astronaut"])
    for change, message in (
        ({"package": "no_such_package"}, "not installed"),
        ({"paths": ["data/none.png"]}, "not a file"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            list(list_sources(KINDS.validate_python({**spec, **change})))
    assert refusal_of(read_source, "package://no_such_package/a.png", "").reason == "not_found"


# Tars


@pytest.fixture
def photo_tar(tmp_path: Path, photos: dict[str, Pixels]) -> Callable[..., tuple[Path, list[bytes]]]:
    """A tar as WebDataset writes it, and the bytes of its images."""

    def make(name: str, count: int = 4, shift: int = 0) -> tuple[Path, list[bytes]]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [encode_png(photos["coffee"][i + shift : i + shift + 40, :50]) for i in range(count)]
        with webdataset.TarWriter(str(path)) as writer:
            for index, image in enumerate(images):
                writer.write({"__key__": f"{index:06d}", "png": image, "json": {"n": index}, "cls": index})
        return path, images

    return make


def test_images_of_a_webdataset_tar(photo_tar: Callable[..., tuple[Path, list[bytes]]]) -> None:
    path, images = photo_tar("shard-000.tar")
    found = listed("tar", path)
    assert [f.uri for f in found] == [f"{path}#{i:06d}.png" for i in range(4)]
    assert [bytes_of(f) for f in found] == images
    assert [f.size_bytes for f in found] == [len(image) for image in images]
    assert [f.group for f in found] == [f"shard-000.tar/{i:06d}" for i in range(4)]


def test_two_tars_with_the_same_members(photo_tar: Callable[..., tuple[Path, list[bytes]]], tmp_path: Path) -> None:
    one, two = photo_tar("a/s.tar"), photo_tar("b/s.tar", shift=9)
    found = listed("tar", f"{tmp_path}/*/s.tar")
    assert len({(f.uri, f.locator) for f in found}) == len({f.group for f in found}) == 8
    assert [bytes_of(f) for f in found] == one[1] + two[1]


def tar_of(*members: tuple[str, bytes], **attributes: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_members_that_are_no_plain_image(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (
            ("folder.png", tarfile.DIRTYPE),
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "1.png"
            tar.addfile(info)
        for name in (
            "1.png",
            "d/._1.png",
            os.fsdecode(b"caf\xe9.png"),
            "dup.png",
            "dup.png",
            "text.txt",
            "new\nline.png",
        ):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    found = listed("tar", tmp_path)
    names = [f.uri.partition("#")[2] for f in found]
    assert names == ["1.png", "d/._1.png", "caf%E9.png", "dup.png", "dup.png", "new\nline.png"]
    assert [f.refusal.reason if f.refusal else "" for f in found] == ["", "hidden", "", "", "", ""]
    assert len({(f.uri, f.locator) for f in found}) == 6
    assert all(bytes_of(f) == b"abc" for f in found)


BODY = b"x" * 1500


TWO = tar_of(("1.png", BODY), ("2.png", BODY))
"""Each member takes 2048 bytes."""


def _negative_size() -> bytes:
    data = bytearray(TWO)
    head = data[2048 : 2048 + 512]
    head[124:136] = b"\xff" * 8 + struct.pack(">i", -2560)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    data[2048 : 2048 + 512] = head
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "before", "reason"),
    [
        pytest.param(TWO[: 2048 + 512 + 700], 2, "corrupt", id="cut in data"),
        pytest.param(TWO[: 2048 + 100], 1, "truncated", id="cut in a header"),
        pytest.param(TWO[:2048], 1, "truncated", id="cut between"),
        pytest.param(TWO[: 4096 + 512], 2, "truncated", id="half an end"),
        pytest.param(TWO[:2048] + b"garbage!" * 64 + TWO[2048:], 1, "truncated", id="damaged header"),
        pytest.param(b"This is no tar. " * 100, 0, "corrupt", id="text"),
        pytest.param(b"", 0, "corrupt", id="empty"),
        pytest.param(b"\x1f\x8b\x08\0" + bytes(100), 0, "compressed_container", id="gzip"),
        pytest.param(_negative_size(), 1, "corrupt", id="negative size"),
        pytest.param(tar_of(("1.png", BODY), pax_headers={"size": "-2560"}), 0, "corrupt", id="negative by pax"),
    ],
)
def test_a_broken_tar_is_a_row_after_what_can_be_listed(tmp_path: Path, data: bytes, before: int, reason: str) -> None:
    (tmp_path / "broken.tar").write_bytes(data)
    (tmp_path / "good.tar").write_bytes(tar_of(("1.png", b"good")))
    *members, broken, good = listed("tar", tmp_path)
    assert [m.uri for m in members] == [f"{tmp_path}/broken.tar#{i + 1}.png" for i in range(before)]
    assert (broken.uri, broken.refusal and broken.refusal.reason) == (f"{tmp_path}/broken.tar", reason)
    assert bytes_of(good) == b"good"


def test_a_member_that_its_tar_no_longer_holds_whole(tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(tar_of(("1.png", BODY))[:900])
    member, container = listed("tar", tmp_path / "cut.tar")
    assert container.refusal and refusal_of(bytes_of, member).reason == "truncated"
    (tmp_path / "cut.tar").unlink()
    assert refusal_of(bytes_of, member).reason == "not_found"


def test_compressed_tars_are_refused_clearly(tmp_path: Path) -> None:
    for name in ("a.tar.gz", "b.tgz", "c.tar.zst", "d.tar.bz2"):
        (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match="unpack it"):
        listed("tar", tmp_path / "a.tar.gz")
    with pytest.raises(ValueError, match="compressed"):
        listed("tar", tmp_path)
    (tmp_path / "e.tar").write_bytes(tar_of(("1.png", b"x")))
    (tmp_path / "sizes.json").write_bytes(b"{}")
    assert reasons(listed("tar", tmp_path)) == dict.fromkeys(
        ("a.tar.gz", "b.tgz", "c.tar.zst", "d.tar.bz2"), "compressed_container"
    ) | {"e.tar#1.png": ""}


def test_a_container_that_cannot_be_named_or_read_is_a_row(tmp_path: Path) -> None:
    for name in ("a.tar", "b#1.tar", os.fsdecode(b"\xe9.tar")):
        (tmp_path / name).write_bytes(tar_of(("1.png", b"x")))
    (tmp_path / "z.tar").symlink_to("nowhere.tar")
    found = listed("tar", tmp_path)
    assert reasons(found) == {"a.tar#1.png": "", "b#1.tar": "unusable_uri", "%E9.tar#1.png": "", "z.tar": "not_found"}
    assert [bytes_of(f) for f in found if not f.refusal] == [b"x", b"x"]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_tars_never_crash_or_hang(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = bytearray(tar_of(("1.png", b"a" * 600), ("2.png", b"b"), pax_headers={"comment": "é" * 100}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("t") / "x.tar"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        found = listed("tar", path)
    except ValueError as error:
        assert "compressed" in str(error)
        return
    for one in found:
        one.uri.encode()
        if one.refusal is None:
            try:
                bytes_of(one)
            except SampleError:
                continue


# Tables


def table(path: Path, row_group_size: int = 2, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_a_table_of_bytes(tmp_path: Path) -> None:
    values = [b"one", b"two", None, b"", b"five"]
    path = table(tmp_path / "t.parquet", image=pa.array(values, pa.binary()), other=list(range(5)))
    found = listed("table", path, bytes_column="image")
    assert [f.uri for f in found] == [
        f"{path}#{n}" for n in ("image=0,0", "image=0,1", "image=1,0", "image=1,1", "image=2,0")
    ]
    assert [f.refusal.reason if f.refusal else "" for f in found] == ["", "", "empty_file", "", ""]
    assert [bytes_of(f) for f in found if not f.refusal] == [b"one", b"two", b"", b"five"]
    assert [f.size_bytes for f in found] == [3, 3, 0, 0, 4]
    assert len({f.group for f in found}) == 5
    assert len({f.group for f in listed("table", path, "folder", bytes_column="image")}) == 1


def test_a_table_of_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png", "d/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)
    becomes = {
        f"{tmp_path}/a.png": "a.png",
        "d/b.png": "d/b.png",
        (tmp_path / "a.png").as_uri(): "a.png",
        None: "empty_file",
        "gone.png": "not_found",
        "pipe.png": "not_a_file",
        "/dev/zero": "not_a_file",
        "a.png/x.png": "not_found",
        "": "not_a_file",
        "nul\0.png": "unusable_uri",
        "y" * 300: "unusable_uri",
        "package://this/x.png": "unusable_uri",
        "https://example.com/a.png": "unusable_uri",
        "s3://bucket": "unusable_uri",
        "s3://b/../x.png": "unusable_uri",
    }
    path = table(tmp_path / "t.parquet", 4, uri=list(becomes))
    found = listed("table", path, uri_column="uri")
    assert [f.uri for f in found] == [f"{path}#0,3" if uri is None else uri for uri in becomes]
    got = []
    for one in found:
        try:
            if one.refusal:
                raise one.refusal
            got.append(read_source(one.uri, one.locator, at_most=100).decode())
        except SampleError as error:
            got.append(error.reason)
    assert got == list(becomes.values())


def test_a_grown_table_lists_its_old_uris_as_before(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png")
    uris = [f"{tmp_path}/a.png", "s3://bucket/x.png", f"{tmp_path}/b.png"]
    before = listed("table", table(tmp_path / "t.parquet", uri=uris[:2]), uri_column="uri")
    after = listed("table", table(tmp_path / "t.parquet", uri=uris), uri_column="uri")
    assert after[:2] == before and len(after) == 3


def test_groups_from_a_column(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png", "d.png")
    uris = [f"{tmp_path}/{n}.png" for n in "abcd"]
    path = table(tmp_path / "t.parquet", uri=uris, album=["x", "x", None, ""], year=[1, 2, 2, None])
    by_album, by_year = (
        listed("table", path, {"by": "column", "column": c}, uri_column="uri") for c in ("album", "year")
    )
    assert [f.group for f in by_album[:2]] == ["x", "x"] and [f.group for f in by_year[:3]] == ["1", "2", "2"]
    assert [f.refusal.reason if f.refusal else "" for f in by_album + by_year] == [
        "",
        "",
        "no_group",
        "no_group",
        "",
        "",
        "",
        "no_group",
    ]


@pytest.mark.parametrize(
    ("given_columns", "message"),
    [
        ({"uri_column": "url"}, "no column url; it has uri, data, number"),
        ({"uri_column": "uri", "group": {"by": "column", "column": "album"}}, "no column album"),
        ({"uri_column": "number"}, "holds int64; strings are needed"),
        ({"bytes_column": "uri"}, "holds string; bytes are needed"),
    ],
)
def test_a_column_that_is_missing_or_of_another_type(
    tmp_path: Path, given_columns: dict[str, Any], message: str
) -> None:
    path = table(tmp_path / "t.parquet", uri=["a"], data=[b"a"], number=[1])
    with pytest.raises(ValueError, match=message):
        listed("table", path, **given_columns)


def test_a_broken_table_is_a_row(tmp_path: Path) -> None:
    good = table(tmp_path / "good.parquet", image=[b"x" * 5000])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing else")
    data = good.read_bytes()
    (tmp_path / "damaged.parquet").write_bytes(data[:8] + bytes(30) + data[38:])
    (tmp_path / "empty.parquet").touch()
    found = listed("table", tmp_path, bytes_column="image")
    bad, damaged, empty, fine = found
    assert [f.refusal and f.refusal.reason for f in (bad, damaged, empty)] == ["corrupt"] * 3
    assert bytes_of(fine) == b"x" * 5000
    good.write_bytes(data[:8] + bytes(30) + data[38:])
    assert refusal_of(bytes_of, fine).reason == "corrupt"
    table(good, image=[None])
    assert refusal_of(bytes_of, fine).reason == "not_found"


# Clips


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_frames_of_a_clip(tmp_path: Path, photos: dict[str, Pixels], suffix: str) -> None:
    path = write_clip(tmp_path / f"clip{suffix}", photos["astronaut"], 14)
    (found,) = listed("video", tmp_path, window_frames=3)
    assert found.refusal is None
    with local_copy(found.uri) as copy:
        assert count_frames(copy) == (14, 160, 128)
        for start in (0, 5, 11):
            frames = read_frames(copy, start, 3)
            for index, frame in enumerate(frames):
                x = 3 * (start + index)
                wanted = photos["astronaut"][20:148, x : x + 160]
                assert frame.shape == wanted.shape and frame.dtype == np.uint8
                assert np.abs(frame.astype(int) - wanted).mean() < 8, "another frame, or another channel order"
        assert refusal_of(read_frames, copy, 12, 3).reason == "truncated"
    assert hash_file(path)[1] == path.stat().st_size


def test_what_is_no_clip(tmp_path: Path, photos: dict[str, Pixels]) -> None:
    clip = write_clip(tmp_path / "whole.mp4", photos["coffee"], 8).read_bytes()
    contents = {
        "text.mp4": b"This is no video. " * 50,
        "list.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        "cut.mp4": clip[: len(clip) // 2],
        "photo.mp4": encode_png(photos["coffee"][:40, :40]),
        "noise.avi": b"RIFF\x10\0\0\0AVI " + np.random.default_rng(1).bytes(3000),
        "empty.mp4": b"",
    }
    got = {}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        with local_copy(str(tmp_path / name)) as path:
            got[name] = refusal_of(count_frames, path).reason
    assert got == dict.fromkeys(contents, "not_a_video") | {"empty.mp4": "empty_file"}


def test_a_clip_that_was_cut_short_keeps_its_whole_frames(tmp_path: Path, photos: dict[str, Pixels]) -> None:
    clip = write_clip(tmp_path / "c.avi", photos["coffee"], 10).read_bytes()
    (tmp_path / "c.avi").write_bytes(clip[: len(clip) // 2])
    frames, _, _ = count_frames(tmp_path / "c.avi")
    assert 2 <= frames < 9
    assert len(read_frames(tmp_path / "c.avi", 0, frames)) == frames


def test_names_that_libraries_would_interpret(tmp_path: Path, photos: dict[str, Pixels]) -> None:
    """FFmpeg and OpenCV give meaning to prefixes and to %; a name is a name."""
    clip = write_clip(tmp_path / "c.mp4", photos["coffee"], 4)
    for name in ("a%03d.mp4", "concat:a|b.mp4", os.fsdecode(b"\xff.mp4"), "-y.mp4", "pipe:0.mp4"):
        shutil.copyfile(clip, tmp_path / name)
    found = listed("video", tmp_path, window_frames=3)
    assert len(found) == 6
    for one in found:
        with local_copy(one.uri) as path:
            assert count_frames(path)[0] == 4, one.uri


# S3


def put(bucket_url: str, contents: dict[str, bytes]) -> None:
    client = boto3.client("s3")
    for key, data in contents.items():
        client.put_object(Bucket=bucket_url.removeprefix("s3://"), Key=key, Body=data)


def test_files_on_s3(s3_url: str) -> None:
    put(
        s3_url,
        {"set/a.png": b"1", "set/d/b.JPG": b"22", "set/notes.txt": b"3", "set/._x.png": b"4", "other/c.png": b"5"},
    )
    found = listed("files", f"{s3_url}/set")
    assert reasons(found) == {"a.png": "", "b.JPG": "", "notes.txt": "other_extension", "._x.png": "hidden"}
    assert [bytes_of(f) for f in found if not f.refusal] == [b"1", b"22"]
    assert [f.group for f in found if not f.refusal] == ["a", "d/b"]
    assert [f.uri for f in listed("files", f"{s3_url}/**/*.png")] == [
        f"{s3_url}/other/c.png",
        f"{s3_url}/set/._x.png",
        f"{s3_url}/set/a.png",
    ]
    assert [f.uri for f in listed("files", f"{s3_url}/set/a.png")] == [f"{s3_url}/set/a.png"]
    assert len(listed("files", s3_url)) == 5
    assert read_source(f"{s3_url}/set/d/b.JPG", "", at_most=1) == b"2"
    assert refusal_of(read_source, f"{s3_url}/gone.png", "").reason == "not_found"
    for url in (f"{s3_url}/nothing", f"{s3_url}/set/*.gif"):
        with pytest.raises(ValueError, match="nothing matches"):
            listed("files", url)
    with pytest.raises(InfraError):
        listed("files", "s3://no-such-bucket-here/x")


ODD_KEYS = [
    "a//b.png",
    "../up.png",
    "./here.png",
    "back\\slash.png",
    "tab\there.png",
    ".tmp-1/x.png",
    "x" * 300 + ".png",
]


def test_odd_keys_on_s3_are_rows(s3_url: str) -> None:
    fine = ["ünï 🏔️.png", "a+b c%20.png", "q?x=1&y.png", "a#b.png", "quote'\".png", "[1].png", "C:x.png"]
    put(s3_url, dict.fromkeys([*ODD_KEYS, *fine, "set/"], b"x"))
    found = listed("files", s3_url)
    got = {f.uri.removeprefix(f"{s3_url}/"): f for f in found}
    assert set(got) == {*ODD_KEYS, *fine}
    for key in ODD_KEYS:
        assert got[key].refusal and got[key].refusal.reason == "unusable_uri", key  # type: ignore[union-attr]
    for key in fine:
        assert got[key].refusal is None and bytes_of(got[key]) == b"x", key
    assert refusal_of(read_source, f"{s3_url}/a?versionId=1.png", "").reason == "unusable_uri"


def test_tars_on_s3_are_read_by_range(
    s3_url: str, photo_tar: Callable[..., tuple[Path, list[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, images = photo_tar("s.tar")
    put(
        s3_url,
        {"t/s-0.tar": path.read_bytes(), "t/s-1.tar": path.read_bytes()[:6000], "t/s#2.tar": b"", "t/s.tar.gz": b""},
    )
    found = listed("tar", f"{s3_url}/t/*")
    good = [f for f in found if f.uri.startswith(f"{s3_url}/t/s-0.tar#")]
    assert [f.uri for f in good] == [f"{s3_url}/t/s-0.tar#{i:06d}.png" for i in range(4)]
    refused = {"s-1.tar": "corrupt", "s#2.tar": "unusable_uri", "s.tar.gz": "compressed_container"}
    assert reasons([f for f in found if f.refusal]) == refused
    assert [f.uri for f in listed("tar", f"{s3_url}/t/s-0.tar")] == [f.uri for f in good]
    monkeypatch.setattr(S3Storage, "read", None)
    monkeypatch.setattr(S3Storage, "open", None)
    assert [bytes_of(f) for f in good] == images


def test_tables_on_s3(s3_url: str) -> None:
    images = [b"one", b"two", b"three"]
    put(s3_url, {f"i/{n}.png": image for n, image in enumerate(images)})
    buffer = io.BytesIO()
    uris = [f"{s3_url}/i/{n}.png" for n in range(3)] + [f"{s3_url}/i/9.png"]
    pq.write_table(pa.table({"uri": uris, "image": [*images, None]}), buffer, row_group_size=2)
    put(s3_url, {"tables/t.parquet": buffer.getvalue()})
    by_bytes = listed("table", f"{s3_url}/tables", bytes_column="image")
    assert [bytes_of(f) for f in by_bytes if not f.refusal] == images and len(by_bytes) == 4
    by_uri = listed("table", f"{s3_url}/tables/t.parquet", uri_column="uri")
    assert [bytes_of(f) for f in by_uri[:3]] == images
    assert refusal_of(bytes_of, by_uri[3]).reason == "not_found"


def test_clips_on_s3(s3_url: str, tmp_path: Path, photos: dict[str, Pixels]) -> None:
    path = write_clip(tmp_path / "c.mp4", photos["coffee"], 5)
    put(s3_url, {"v/c.mp4": path.read_bytes()})
    (found,) = listed("video", f"{s3_url}/v", window_frames=3)
    with local_copy(found.uri) as copy:
        assert count_frames(copy) == (5, 160, 128)
        assert hash_file(copy) == hash_file(path)
    assert not copy.exists()


# Faults of machinery


def test_faults_of_a_disk_are_not_blamed_on_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png")

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", broken)
        with pytest.raises(InfraError, match="Input/output"):
            read_source(f"{tmp_path}/a.png", "")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", broken)
        with pytest.raises((InfraError, OSError), match="Input/output"):
            listed("files", f"{tmp_path}/a.png")


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    path.touch()
    os.truncate(path, 5 * 2**30)
    assert read_source(str(path), "", at_most=10) == bytes(10)
