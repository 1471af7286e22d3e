"""The engine with small made-up stages: order, retries, faults, bugs, stalls, pools, windows."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pairforge.records import InfraError
from pipelines.engine import Backend, Engine, EngineSettings, LocalBackend, Outcome, StageLoad
from pipelines.ray_backend import RayBackend
from pipelines.stages import Pool, Resources, Stage, StageBugError

ROOT = Path(__file__).parent.parent.parent
QUICK = EngineSettings(backoff_s=(0.01, 0.02))
MakeBackend = Callable[..., Backend]


def make_double(settings: Any) -> Callable[[int], int]:
    return lambda value: 2 * value


def make_add(settings: int) -> Callable[[int], int]:
    return lambda value: value + settings


def make_flaky(settings: str) -> Callable[[tuple[int, int]], int]:
    """Fails `faults` times for each part, counting in a folder, then gives the number of tries."""

    def work(item: tuple[int, int]) -> int:
        number, faults = item
        tries = len(list(Path(settings).glob(f"{number}-*")))
        Path(settings, f"{number}-{tries}").touch()
        if tries < faults:
            raise InfraError(f"storage is away, try {tries}")
        return tries + 1

    return work


def make_bug(settings: Any) -> Callable[[int], int]:
    return lambda value: 1 // (value - 3)


def make_broken(settings: Any) -> Callable[[int], int]:
    raise OSError("weights are missing")


def make_pass(settings: Any) -> Callable[[Any], Any]:
    return lambda value: value


def make_victim(settings: str) -> Callable[[int], int]:
    """The first try of part 2 kills its worker."""

    def work(value: int) -> int:
        flag = Path(settings, "died")
        if value == 2 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    return work


def make_robbed(settings: str) -> Callable[[int], int]:
    """The first try of part 1 ends as Ray ends a call whose descriptor was on a node that died."""

    def work(value: int) -> int:
        from ray.exceptions import ObjectReconstructionFailedError

        flag = Path(settings, "robbed")
        if value == 1 and not flag.exists():
            flag.touch()
            raise ObjectReconstructionFailedError("00" * 28, None, "")
        return value

    return work


def make_stall(settings: str) -> Callable[[int], int]:
    """The first try of part 1 hangs."""

    def work(value: int) -> int:
        flag = Path(settings, "hung")
        if value == 1 and not flag.exists():
            flag.touch()
            time.sleep(600)
        return value

    return work


def make_poison(settings: Any) -> Callable[[int], int]:
    """Part 3 kills its worker at every try."""

    def work(value: int) -> int:
        time.sleep(0.05)
        if value == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    return work


class Model:
    """A stage with state that says in a folder when it loads, prepares and computes."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        (self.folder / f"load-{os.getpid()}").touch()

    def note(self, what: str) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(f"{what} {os.getpid()} {time.monotonic()}\n")

    def prepare(self, value: int) -> int:
        self.note(f"prepare-start {value}")
        time.sleep(0.15)
        self.note(f"prepare-end {value}")
        return value + 1000

    def compute(self, value: int) -> int:
        self.note(f"compute-start {value - 1000}")
        time.sleep(0.15)
        self.note(f"compute-end {value - 1000}")
        return value * 2


def make_model(settings: str) -> Model:
    return Model(settings)


def stage(make: Callable[[Any], Any], **more: Any) -> Stage:
    return Stage(make.__name__, 1, make, **more)


@pytest.fixture(params=["local", "tasks", "actors"])
def backend_of(request: pytest.FixtureRequest) -> Iterator[MakeBackend]:
    """Backends of the three kinds; on actors every stage gets a pool."""
    opened: list[Backend] = []
    if request.param != "local":
        request.getfixturevalue("ray_session")

    def make(stages: tuple[Stage, ...], settings: Any) -> Backend:
        if request.param == "actors":
            pool, small = Pool(min_actors=1, max_actors=2), Resources(cpus=0.2)
            stages = tuple(Stage(s.name, s.version, s.make, small, pool) for s in stages)
        opened.append(LocalBackend(stages, settings) if request.param == "local" else RayBackend(stages, settings))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()


def carried(backend: Backend, works: Any, settings: EngineSettings = QUICK, **more: Any) -> list[Outcome[Any]]:
    return list(Engine(backend, settings, **more).run(iter(works)))


def test_stages_of_a_part_are_chained(backend_of: MakeBackend) -> None:
    outcomes = carried(backend_of((stage(make_double), stage(make_add)), 100), range(12))
    assert sorted((o.work, o.result, o.fault) for o in outcomes) == [(n, 2 * n + 100, None) for n in range(12)]


def test_faults_are_retried_and_bounded(backend_of: MakeBackend, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    outcomes = carried(
        backend_of((stage(make_pass), stage(make_flaky)), str(tmp_path)),
        [(0, 0), (1, 2), (2, 99), (3, 1)],
        label_of=lambda work: f"part-{work[0]}",
        on_fault=lambda work, attempt, fault: told.append((work[0], attempt)),
    )
    by_part = {o.work[0]: o for o in outcomes}
    assert {n: o.result for n, o in by_part.items()} == {0: 1, 1: 3, 2: None, 3: 2}
    assert by_part[2].attempts == 3 and "stage make_flaky, part part-2: storage is away, try 2" in str(by_part[2].fault)
    assert sorted(told) == [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 1)]
    assert len(list(tmp_path.glob("2-*"))) == 3


def test_attempts_of_earlier_runs_count(backend_of: MakeBackend, tmp_path: Path) -> None:
    outcome = carried(backend_of((stage(make_flaky),), str(tmp_path)), [(2, 99)], attempts_of=lambda work: 2)[0]
    assert outcome.attempts == 3 and outcome.fault is not None
    assert len(list(tmp_path.glob("2-*"))) == 1


def test_a_bug_stops_the_run_and_says_where(backend_of: MakeBackend) -> None:
    with pytest.raises(StageBugError, match=r"make_bug.*ZeroDivisionError|ZeroDivisionError"):
        carried(backend_of((stage(make_bug),), None), range(6))


def test_a_stage_that_cannot_load_is_a_bug_not_a_hang(backend_of: MakeBackend) -> None:
    with pytest.raises(StageBugError, match="weights are missing"):
        carried(backend_of((stage(make_broken),), None), range(3))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("pool", [None, Pool(min_actors=2, max_actors=2, prefetch=0)])
def test_a_killed_worker_costs_one_attempt(tmp_path: Path, pool: Pool | None) -> None:
    backend = RayBackend((stage(make_victim, pool=pool),), str(tmp_path))
    outcomes = sorted((o.work, o.result, o.attempts) for o in carried(backend, range(5)))
    backend.close()
    assert outcomes == [(n, n, 2 if n == 2 else 1) for n in range(5)]


@pytest.mark.usefixtures("ray_session")
def test_a_poison_part_costs_its_neighbours_one_attempt_at_most() -> None:
    pool = Pool(min_actors=1, max_actors=1, prefetch=3)
    backend = RayBackend((stage(make_poison, pool=pool),), None)
    settings = EngineSettings(backoff_s=(0.01, 0.02), max_attempts=4, parts_in_flight=6)
    outcomes = {outcome.work: outcome for outcome in carried(backend, range(12), settings)}
    backend.close()
    poison = outcomes.pop(3)
    assert poison.fault is not None and "actor died" in str(poison.fault) and poison.attempts == 4
    assert sorted(outcome.result for outcome in outcomes.values()) == [n for n in range(12) if n != 3]
    assert max(outcome.attempts for outcome in outcomes.values()) <= 2


def test_an_actor_that_runs_out_of_memory_is_reported_as_such() -> None:
    command = [sys.executable, "-m", "tests.pipelines.hungry_script"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = {line[0]: line[1:] for line in map(json.loads, done.stdout.splitlines())}
    assert outcomes[0][:2] == [0, 1] and outcomes[2][:2] == [2, 1]
    assert outcomes[1][:2] == [None, 2]
    assert "stage hungry, part 1: a worker ran out of memory and was ended" in outcomes[1][2]


@pytest.mark.usefixtures("ray_session")
def test_a_descriptor_lost_with_its_node_costs_one_attempt_and_is_no_bug(tmp_path: Path) -> None:
    backend = RayBackend((stage(make_robbed),), str(tmp_path))
    outcomes = sorted((o.work, o.result, o.attempts) for o in carried(backend, range(3)))
    backend.close()
    assert outcomes == [(0, 0, 1), (1, 1, 2), (2, 2, 1)]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("pool", [None, Pool(min_actors=1, max_actors=2, prefetch=0)])
def test_a_stalled_call_is_ended_named_and_tried_again(tmp_path: Path, pool: Pool | None) -> None:
    backend = RayBackend((stage(make_stall, pool=pool),), str(tmp_path))
    told: list[str] = []
    settings = EngineSettings(backoff_s=(0.01, 0.02), stall_s=6)
    outcomes = carried(
        backend, range(3), settings, label_of=lambda n: f"p{n}", on_fault=lambda w, a, fault: told.append(str(fault))
    )
    backend.close()
    assert sorted((o.work, o.result) for o in outcomes) == [(n, n) for n in range(3)]
    assert told == ["stage make_stall, part p1: no progress for 6 s, call ended"]


@pytest.mark.usefixtures("ray_session")
def test_actors_load_once_grow_with_the_backlog_and_prepare_ahead(tmp_path: Path) -> None:
    pool = Pool(min_actors=1, max_actors=2, prefetch=1)
    backend = RayBackend((stage(make_model, pool=pool, resources=Resources(cpus=0.1)),), str(tmp_path))
    most = [0]

    def watch(loads: list[StageLoad]) -> None:
        most[0] = max(most[0], loads[0].actors)

    settings = EngineSettings(parts_in_flight=12)
    outcomes = carried(backend, range(60), settings, on_tick=watch)
    backend.close()
    assert sorted(o.result for o in outcomes) == [(n + 1000) * 2 for n in range(60)]
    loads = list(tmp_path.glob("load-*"))
    assert len(loads) == most[0] == 2, "one load an actor, and the pool grew to its limit"
    times: dict[str, float] = {}
    pids: dict[str, str] = {}
    for line in (tmp_path / "log").read_text().splitlines():
        what, value, pid, moment = line.split()
        times[f"{what} {value}"], pids[value] = float(moment), pid
    for pid in set(pids.values()):
        mine = sorted((v for v, p in pids.items() if p == pid), key=lambda v: times[f"compute-start {v}"])
        pairs = list(pairwise(mine))
        assert all(times[f"compute-end {a}"] <= times[f"compute-start {b}"] for a, b in pairs), "one turn at a time"
        ahead = sum(times[f"prepare-start {b}"] < times[f"compute-end {a}"] for a, b in pairs)
        assert ahead >= 0.8 * len(pairs), "the next call is prepared while one computes"


def test_a_window_bounds_what_is_in_flight_by_count_and_by_bytes() -> None:
    class Watching(LocalBackend):
        most = 0

        def wait(self, timeout_s: float) -> list[Any]:
            self.most = max(self.most, len(self._queue))
            return super().wait(timeout_s)

    for settings, expected in (
        (EngineSettings(parts_in_flight=5), 5),
        (EngineSettings(parts_in_flight=50, bytes_in_flight=300), 3),
        (EngineSettings(parts_in_flight=50, bytes_in_flight=7), 1),
    ):
        backend = Watching((stage(make_double),), None)
        outcomes = carried(backend, range(40), settings, size_of=lambda work: 100)
        assert backend.most == expected and len(outcomes) == 40


def test_stopping_finishes_what_is_in_flight_and_starts_nothing() -> None:
    engine = Engine[int](LocalBackend((stage(make_double),), None), EngineSettings(parts_in_flight=4))
    taken = iter(range(1000))
    outcomes = []
    for outcome in engine.run(taken):
        outcomes.append(outcome)
        if len(outcomes) == 3:
            engine.stop()
    assert len(outcomes) == 6 and engine.in_flight == 0
    assert next(taken) == 6


def test_a_pause_lies_between_attempts(tmp_path: Path) -> None:
    started = time.monotonic()
    settings = EngineSettings(backoff_s=(0.4, 60.0))
    assert [o.result for o in carried(LocalBackend((stage(make_flaky),), str(tmp_path)), [(0, 2)], settings)] == [3]
    assert time.monotonic() - started >= 0.5 * (0.4 + 0.8)
