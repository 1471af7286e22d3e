"""The engine with small made-up stages: order, retries, faults, bugs, a window of parts in flight."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairforge.records import InfraError
from pipelines import engine
from pipelines.engine import Executor, LocalExecutor, RayExecutor, Resources, Stage, StageBugError, run_parts

CPU = Resources(cpus=1)


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


def make_suicide(settings: str) -> Callable[[int], int]:
    """The first try of part 2 kills its worker."""

    def work(value: int) -> int:
        flag = Path(settings, "died")
        if value == 2 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    return work


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_BACKOFF_S", (0.01, 0.02))


@pytest.fixture(params=["local", "ray"])
def executor_of(request: pytest.FixtureRequest) -> Callable[[tuple[Stage, ...], Any], Executor]:
    if request.param == "local":
        return lambda stages, settings: LocalExecutor(stages, settings)
    request.getfixturevalue("ray_session")
    return lambda stages, settings: RayExecutor(stages, settings, slots=2)


def stage(make: Callable[[Any], Callable[[Any], Any]]) -> Stage:
    return Stage(make.__name__, 1, make, CPU)


def test_stages_of_a_part_are_chained(executor_of: Callable[..., Executor]) -> None:
    executor = executor_of((stage(make_double), stage(make_add)), 100)
    outcomes = list(run_parts(iter(range(12)), executor, max_attempts=1))
    assert sorted((o.work, o.result, o.fault) for o in outcomes) == [(n, 2 * n + 100, None) for n in range(12)]


def test_faults_are_retried_and_bounded(executor_of: Callable[..., Executor], tmp_path: Path) -> None:
    works = [(0, 0), (1, 2), (2, 99), (3, 1)]
    executor = executor_of((stage(make_flaky),), str(tmp_path))
    outcomes = {o.work[0]: o for o in run_parts(iter(works), executor, max_attempts=3)}
    assert {n: o.result for n, o in outcomes.items()} == {0: 1, 1: 3, 2: None, 3: 2}
    assert outcomes[2].attempts == 3 and "try 2" in str(outcomes[2].fault)
    assert len(list(tmp_path.glob("2-*"))) == 3


def test_a_bug_stops_the_run_and_says_where(executor_of: Callable[..., Executor]) -> None:
    executor = executor_of((stage(make_bug),), None)
    with pytest.raises(StageBugError, match="ZeroDivisionError"):
        list(run_parts(iter(range(6)), executor, max_attempts=3))
    executor.close()


@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_costs_one_attempt(tmp_path: Path) -> None:
    executor = RayExecutor((stage(make_suicide),), str(tmp_path), slots=2)
    outcomes = sorted((o.work, o.result, o.attempts) for o in run_parts(iter(range(5)), executor, max_attempts=2))
    assert outcomes == [(n, n, 2 if n == 2 else 1) for n in range(5)]


def test_a_window_bounds_what_is_in_flight() -> None:
    class Watching(LocalExecutor):
        most = 0

        def wait(self, timeout_s: float) -> list[Any]:
            Watching.most = max(Watching.most, len(self._queue))
            return super().wait(timeout_s)

    taken = iter(range(1000))
    executor = Watching((stage(make_double),), None, slots=3)
    for seen, _ in enumerate(run_parts(taken, executor, 1, prefetch=2), 1):
        if seen == 10:
            break
    assert Watching.most == 5
    assert next(taken) <= 16


def test_a_pause_lies_between_attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "_BACKOFF_S", (0.4, 60.0))
    executor = LocalExecutor((stage(make_flaky),), str(tmp_path))
    started = time.monotonic()
    assert [o.result for o in run_parts(iter([(0, 2)]), executor, 3)] == [3]
    assert time.monotonic() - started >= 0.5 * (0.4 + 0.8)
