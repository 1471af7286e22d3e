"""Whole runs: same bytes whatever the workers, restarts and kills; every record has a fate."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from pairforge.records import DamagedError, InfraError, TooManyFailedError
from pairforge.snapshot import open_snapshot, verify
from pairforge.storage import open_storage
from pipelines.attempts import AttemptLedger
from pipelines.catalog import Catalog
from pipelines.engine import Backend, LocalBackend
from pipelines.plan import render_settings
from pipelines.publication import read_status
from pipelines.ray_backend import RayBackend
from pipelines.run import RENDER, run, stages_of
from pipelines.settings import RunConfig
from pipelines.stages import Stage
from tests.conftest import config_of

MakeConfig = Callable[..., RunConfig]


def local(config: RunConfig, output: str) -> Backend:
    return LocalBackend(stages_of(config), (render_settings(config), output))


def on_ray(config: RunConfig, output: str) -> Backend:
    return RayBackend(stages_of(config), (render_settings(config), output))


def no_executor(config: RunConfig, output: str) -> Backend:
    raise AssertionError("there is nothing to make")


def hashes(output: str | Path) -> dict[str, str]:
    """SHA-256 of every committed shard file and of every base."""
    storage = open_storage(str(output))
    names = [e.name for part in ("shards/", "bases/") for e in storage.list(part)]
    return {n: hashlib.sha256(storage.read(n)).hexdigest() for n in names if not n.endswith(".marker.json")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> dict[str, str]:
    """Hashes of one `--local` run of the small config."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run(config_of(output, photo_folder), local)
    return hashes(output)


def test_a_run_accounts_for_every_record_and_verifies(make_config: MakeConfig, tmp_path: Path) -> None:
    report = run(make_config(), local)
    snapshot = open_snapshot(str(tmp_path / "out"))
    assert report.fates == {"kept": 36, "rejected": 0, "failed": 0} and report.published
    assert snapshot.rows().num_rows == 36
    assert verify(snapshot).problems == ()
    assert snapshot.summary()[-1]["planned"] == 36


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("slots", [1, 2])
def test_ray_gives_the_same_bytes(make_config: MakeConfig, undisturbed: dict[str, str], slots: int) -> None:
    config = make_config(run={"engine": {"parts_in_flight": slots}})
    run(config, on_ray)
    assert hashes(config.output) == undisturbed


def test_s3_gives_the_same_bytes(make_config: MakeConfig, undisturbed: dict[str, str], s3_url: str) -> None:
    config = make_config(f"{s3_url}/set")
    run(config, local)
    assert hashes(config.output) == undisturbed
    assert verify(open_snapshot(config.output)).problems == ()


def test_a_second_run_has_nothing_to_do(make_config: MakeConfig, undisturbed: dict[str, str]) -> None:
    config = make_config()
    first = run(config, local)
    second = run(config, no_executor)
    assert (second.parts_made, second.published, second.snapshot) == (0, False, first.snapshot)
    assert hashes(config.output) == undisturbed
    pointer = json.loads(open_storage(config.output).read("snapshots/latest.json"))
    assert pointer["fence"] == 1


@pytest.mark.parametrize("mode", ["local", "ray"])
def test_a_killed_driver_resumes_to_the_same_bytes(
    make_config: MakeConfig, undisturbed: dict[str, str], tmp_path: Path, mode: str
) -> None:
    config = make_config()
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path)] + (["--local"] if mode == "local" else [])
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def markers() -> list[Path]:
        return list(Path(config.output).rglob("*.marker.json"))

    limit = time.monotonic() + 90
    while len(markers()) < 2:
        assert driver.poll() is None and time.monotonic() < limit, driver.communicate()[0]
        time.sleep(0.01)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    committed = len(markers())
    assert committed < 9, "the driver finished before it was killed"
    assert not (Path(config.output) / "snapshots").exists()
    report = run(config, local)
    assert report.parts_before >= committed and report.parts_made >= 1
    assert hashes(config.output) == undisturbed
    assert verify(open_snapshot(config.output)).problems == ()


def test_a_bad_source_is_a_failed_row_and_the_run_goes_on(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = _with_bad_photo(make_config, tmp_path)
    config = make_config(sources=_files(folder), run={"max_failed_fraction": 0.5})
    report = run(config, local)
    assert report.fates["failed"] == 3 and report.flawed
    rows = [row for row in open_snapshot(config.output).rows().to_pylist() if row["fate"] == "failed"]
    assert {row["reason"] for row in rows} == {"truncated"} and all(row["detail"] for row in rows)
    assert verify(open_snapshot(config.output)).problems == ()


def test_too_many_failures_stop_the_run_without_a_snapshot(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = _with_bad_photo(make_config, tmp_path)
    config = make_config(sources=_files(folder), run={"max_failed_fraction": 0.01})
    with pytest.raises(TooManyFailedError, match="truncated"):
        run(config, local)
    assert not (Path(config.output) / "snapshots").exists()


def _with_bad_photo(make_config: MakeConfig, tmp_path: Path) -> Path:
    """The photos and a JPEG whose second half is missing, which its header does not tell."""
    import shutil

    folder = tmp_path / "photos"
    shutil.copytree(make_config().sources[0].url, folder)  # type: ignore[union-attr]
    photo = cv2.imread(str(sorted(folder.rglob("*.png"))[3]))
    data = bytes(cv2.imencode(".jpg", photo)[1])
    (folder / "a" / "cut_off.jpg").write_bytes(data[: len(data) // 2])
    return folder


def _files(folder: Path) -> list[dict[str, Any]]:
    return [{"kind": "files", "url": str(folder), "licence": "CC0-1.0", "group": {"by": "file"}}]


def test_new_sources_add_shards_and_old_snapshots_stay_readable(
    make_config: MakeConfig, tmp_path: Path, photo_folder: Path
) -> None:
    import shutil

    folder = tmp_path / "growing"
    shutil.copytree(photo_folder / "a", folder / "a")
    config = make_config(sources=_files(folder))
    first = run(config, local)
    shutil.copytree(photo_folder / "b", folder / "b")
    second = run(config, local)
    assert second.parts_before >= 1 and second.published and second.snapshot != first.snapshot
    old = open_snapshot(f"{config.output}/snapshots/{first.snapshot}")
    assert verify(old).problems == ()
    assert old.rows().num_rows == 18
    assert verify(open_snapshot(config.output)).problems == ()
    assert open_snapshot(config.output).rows().num_rows == 36


def test_a_removed_source_leaves_the_next_snapshot(make_config: MakeConfig) -> None:
    config = make_config()
    run(config, local)
    victim = open_snapshot(config.output).rows(["source_id"]).to_pylist()[0]["source_id"]
    Catalog(open_storage(config.output)).remove([victim], "taken down")
    report = run(config, local)
    rows = open_snapshot(config.output).rows(["source_id"]).to_pylist()
    assert victim not in {row["source_id"] for row in rows}
    assert report.parts_before > 0 and len(rows) == 33
    for _, files in _all_samples(config.output):
        assert victim.encode() not in files["json"]


def _all_samples(output: str) -> Any:
    from pairforge.shards import read_shard

    snapshot = open_snapshot(output)
    return [
        s for shard in snapshot.manifest.shards if shard.tar_name for s in read_shard(snapshot.storage, shard.tar_name)
    ]


def test_exclusions_are_honoured(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    run(config, local)
    keys = open_snapshot(config.output).rows(["key"])["key"].to_pylist()
    listed = tmp_path / "review.txt"
    listed.write_text(f"# by hand\n{keys[0]}\n{keys[7]}  # face is warped\n\n")
    report = run(make_config(exclusions=[str(listed)]), no_executor)
    assert report.published
    snapshot = open_snapshot(config.output)
    assert snapshot.rows().num_rows == len(keys) - 2
    assert snapshot.rows(include_excluded=True).num_rows == len(keys)
    seen = {sample["__key__"] for sample in snapshot.dataset(split_shards=False)}
    assert seen == set(keys) - {keys[0], keys[7]}
    assert verify(snapshot).problems == ()


def test_changed_limits_are_refused_for_an_old_catalog(make_config: MakeConfig) -> None:
    run(make_config(), local)
    with pytest.raises(ValueError, match="choose another output"):
        run(make_config(split={"val": 0.5, "test": 0.0}), local)


def test_a_source_that_changed_under_its_name_is_a_new_source(
    make_config: MakeConfig, tmp_path: Path, photo_folder: Path
) -> None:
    import shutil

    folder = tmp_path / "changing"
    shutil.copytree(photo_folder, folder)
    config = make_config(sources=_files(folder))
    first = run(config, local)
    files = sorted(folder.rglob("*.png"))
    shutil.copyfile(files[0], tmp_path / "spare.png")
    data = files[0].read_bytes()
    files[0].write_bytes(data + b"trailing")
    second = run(config, local)
    assert second.sources["seen"] == first.sources["seen"] + 1
    assert verify(open_snapshot(config.output)).problems == ()


def test_status_needs_storage_alone(make_config: MakeConfig) -> None:
    config = make_config()
    run(config, local)
    status = read_status(open_storage(config.output))
    assert (status["records"], status["records_done"], status["kept"]) == (36, 36, 36)
    assert status["latest_snapshot"] and status["parts"] == status["parts_done"]


def make_poison(context: Any) -> Callable[[Any], Any]:
    """A stage that meets a fault on every part of one category, and counts its tries beside the output."""
    _settings, output = context
    real = RENDER.make(context)

    def work(part: Any) -> Any:
        if part.category == "reflection" and part.number == 0 and part.split == "train":
            tries = Path(output, "..", "tries").resolve()
            tries.write_text((tries.read_text() if tries.exists() else "") + "x")
            raise InfraError("this node is cursed")
        return real(part)

    return work


def test_attempts_count_over_restarts_and_a_poison_part_is_quarantined(
    make_config: MakeConfig, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    poison = Stage("render", 1, make_poison)
    config = make_config(run={"engine": {"max_attempts": 3, "backoff_s": [0.01, 0.01]}})
    few = make_config(run={"engine": {"max_attempts": 2, "backoff_s": [0.01, 0.01]}})

    def poisoned(config: RunConfig, output: str) -> Backend:
        return LocalBackend((poison,), (render_settings(config), output))

    for settings, tries in ((few, 2), (config, 3), (config, 3)):
        with pytest.raises(TooManyFailedError, match=r"reflection/train-000000.*this node is cursed"):
            run(settings, poisoned)
        assert len((tmp_path / "tries").read_text()) == tries
    assert not (Path(config.output) / "snapshots").exists()
    with pytest.raises(TooManyFailedError, match="quarantined after 3 attempts"):
        run(config, local)
    AttemptLedger(open_storage(config.output), 3).forget()
    run(config, local)
    assert hashes(config.output) == undisturbed
    assert not list(open_storage(config.output).list("runs/attempts/"))


@pytest.mark.parametrize("mode", ["local", "ray"])
def test_ctrl_c_finishes_what_is_in_flight_and_leaves_nothing_half(
    make_config: MakeConfig, undisturbed: dict[str, str], tmp_path: Path, mode: str
) -> None:
    config = make_config()
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path)] + (["--local"] if mode == "local" else [])
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    limit = time.monotonic() + 90
    while not list(Path(config.output).rglob("*.marker.json")):
        assert driver.poll() is None and time.monotonic() < limit, driver.communicate()[0]
        time.sleep(0.005)
    os.killpg(driver.pid, signal.SIGINT)
    said = driver.communicate(timeout=60)[0].decode()
    assert driver.returncode == 130, said
    assert "in flight; Ctrl-C again to stop now" in said and "run again to go on" in said
    shards = list(open_storage(config.output).list("shards/"))
    tars = {e.name.removesuffix(".tar") for e in shards if e.name.endswith(".tar")}
    markers = {e.name.removesuffix(".marker.json") for e in shards if e.name.endswith(".marker.json")}
    assert tars == markers, "parts in flight were finished, none is half committed"
    assert not list(Path(config.output).rglob(".tmp-*"))
    run(config, local)
    assert hashes(config.output) == undisturbed


def test_the_output_of_an_import_is_refused(make_config: MakeConfig) -> None:
    config = make_config()
    open_storage(config.output).write("shards/imported/noise/train-000000-0a1b2c3d.parquet", b"rows")
    with pytest.raises(ValueError, match="holds imported pairs"):
        run(config, no_executor)


def test_a_damaged_run_file_is_named(make_config: MakeConfig) -> None:
    config = make_config()
    run(config, local)
    storage = open_storage(config.output)
    storage.write("runs/latest.json", storage.read("runs/latest.json")[:40])
    with pytest.raises(DamagedError, match=r"runs/latest\.json is damaged"):
        read_status(storage)
