"""Death at every phase of a commit: the next run makes the same bytes, and no reader ever sees half of anything."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pairforge import failpoints
from pairforge.records import InfraError
from pairforge.snapshot import open_snapshot, verify
from pairforge.storage import open_storage
from pipelines.attempts import AttemptLedger
from pipelines.engine import Backend
from pipelines.plan import Part, render_settings
from pipelines.ray_backend import RayBackend
from pipelines.run import RENDER, run
from pipelines.settings import RunConfig
from pipelines.stages import Stage
from tests.conftest import config_of
from tests.pipelines.test_run import hashes, local

MakeConfig = Callable[..., RunConfig]
WORKER_PHASES = ("mid-tar:8", "after-tar:2", "after-parquet:2", "before-marker:2")
DRIVER_PHASES = ("after-plan:1", *WORKER_PHASES, "mid-snapshot:2", "before-latest:1")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> dict[str, str]:
    """Hashes of one run that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run(config_of(output, photo_folder), local)
    return hashes(output)


def snapshot_seen(output: str) -> str | None:
    """What a reader finds now: nothing, or a snapshot that is whole."""
    try:
        snapshot = open_snapshot(output)
    except FileNotFoundError:
        return None
    assert verify(snapshot).problems == ()
    return snapshot.manifest.id


@contextmanager
def reading(output: str) -> Iterator[list[str | None]]:
    """A reader that looks all the time; gives what it saw, each change once."""
    seen: list[str | None] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            now = snapshot_seen(output)
            if not seen or seen[-1] != now:
                seen.append(now)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(look)
        try:
            yield seen
        finally:
            over.set()
        reader.result()


def die_at(phase: str, config: RunConfig, folder: Path) -> None:
    """A `--local` run in a process of its own, which must die at `phase`."""
    path = folder / "c.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path), "--local"]
    environment = {**os.environ, "PAIRFORGE_FAILPOINT": phase}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def left_behind(output: str) -> dict[str, int]:
    """How many shards have a tar, rows, a marker; how many snapshots have any file; how many a manifest."""
    names = [entry.name for entry in open_storage(output).list()]
    found = {end: sum(n.startswith("shards/") and n.endswith(end) for n in names) for end in (".tar", ".parquet")}
    found["marker"] = sum(n.endswith(".marker.json") for n in names)
    found["snapshot"] = len({n.split("/")[1] for n in names if n.startswith("snapshots/")})
    found["manifest"] = sum(n.endswith("/manifest.json") for n in names)
    return found


LEFT = {
    "after-plan:1": (0, 0, 0, 0, 0),
    "mid-tar:8": (0, 0, 0, 0, 0),
    "after-tar:2": (2, 1, 1, 0, 0),
    "after-parquet:2": (2, 2, 1, 0, 0),
    "before-marker:2": (2, 2, 1, 0, 0),
    "mid-snapshot:2": (9, 9, 9, 1, 0),
    "before-latest:1": (9, 9, 9, 1, 1),
}
"""What each death leaves: tars, rows, markers, snapshot folders, manifests."""


@pytest.mark.parametrize("phase", DRIVER_PHASES)
def test_a_driver_that_dies_leaves_a_run_that_goes_on(
    make_config: MakeConfig, undisturbed: dict[str, str], tmp_path: Path, phase: str
) -> None:
    config = make_config()
    with reading(config.output) as seen:
        die_at(phase, config, tmp_path)
        assert tuple(left_behind(config.output).values()) == LEFT[phase]
        assert set(seen) <= {None}, "nothing was published yet"
        report = run(config, local)
    assert report.published and report.parts_before == LEFT[phase][2]
    assert hashes(config.output) == undisturbed
    assert snapshot_seen(config.output) == report.snapshot


@pytest.mark.parametrize("phase", ["after-tar:2", "mid-snapshot:2", "before-latest:1"])
def test_readers_keep_the_old_snapshot_until_the_new_one_is_whole(
    make_config: MakeConfig, undisturbed: dict[str, str], tmp_path: Path, photo_folder: Path, phase: str
) -> None:
    folder = tmp_path / "growing"
    shutil.copytree(photo_folder / "a", folder / "a")
    config = make_config(sources=[{"kind": "files", "url": str(folder), "licence": "CC0-1.0", "group": {"by": "file"}}])
    first = run(config, local).snapshot
    shutil.copytree(photo_folder / "b", folder / "b")
    with reading(config.output) as seen:
        die_at(phase, config, tmp_path)
        assert snapshot_seen(config.output) == first and set(seen) <= {first}
        second = run(config, local).snapshot
    assert snapshot_seen(config.output) == second != first and set(seen) <= {first, second}


def test_a_driver_that_dies_on_s3(
    make_config: MakeConfig, undisturbed: dict[str, str], tmp_path: Path, s3_url: str
) -> None:
    config = make_config(f"{s3_url}/set")
    die_at("after-parquet:2", config, tmp_path)
    assert tuple(left_behind(config.output).values()) == LEFT["after-parquet:2"]
    assert snapshot_seen(config.output) is None
    run(config, local)
    assert hashes(config.output) == undisturbed and snapshot_seen(config.output)


def make_dying(context: Any) -> Callable[[Any], Any]:
    """The render stage on a worker that dies at a phase once; nothing stays set in the worker that lives on."""
    phase, flag, settings = context
    real = RENDER.make(settings)

    def work(part: Any) -> Any:
        failpoints._passed.clear()  # a worker serves many calls
        os.environ.update(PAIRFORGE_FAILPOINT=phase.partition(":")[0] + ":1", PAIRFORGE_FAILPOINT_ONCE=flag)
        try:
            return real(part)
        finally:
            del os.environ["PAIRFORGE_FAILPOINT"], os.environ["PAIRFORGE_FAILPOINT_ONCE"]

    return work


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("phase", WORKER_PHASES)
def test_a_ray_worker_that_dies_costs_one_attempt_and_no_byte(
    make_config: MakeConfig, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    config = make_config(run={"engine": {"backoff_s": [0.01, 0.01]}})
    flag = tmp_path / "died"

    def dying(config: RunConfig, output: str) -> Backend:
        stage = Stage("render", 1, make_dying)
        return RayBackend((stage,), (phase, str(flag), (render_settings(config), output)))

    faults: list[str] = []
    note = AttemptLedger.note

    def noting(ledger: AttemptLedger, part: Part, attempt: int, fault: InfraError) -> None:
        faults.append(str(fault))
        note(ledger, part, attempt, fault)

    monkeypatch.setattr(AttemptLedger, "note", noting)
    with reading(config.output) as seen:
        report = run(config, dying)
    assert flag.exists() and len(faults) == 1, "one worker died, which cost one attempt"
    assert (report.parts_made, report.parts_before) == (9, 0)
    assert hashes(config.output) == undisturbed
    assert set(seen) <= {None, report.snapshot} and snapshot_seen(config.output) == report.snapshot


def test_a_failpoint_counts_passages_and_spares_whom_the_flag_spares(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    script = "from pairforge.failpoints import failpoint\nfor n in range(5): print(n, flush=True); failpoint('here')"
    environment = {**os.environ, "PAIRFORGE_FAILPOINT": "here:3", "PAIRFORGE_FAILPOINT_ONCE": str(flag)}
    ends = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, check=False
        )
        ends.append((done.returncode, len(done.stdout.split())))
    assert ends == [(-signal.SIGKILL, 3), (0, 5)]
