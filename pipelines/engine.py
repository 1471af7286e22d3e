"""Runs parts: in this process, or on Ray. The driver keeps a window of parts in flight and retries faults.

A stage is a function of a small descriptor; the stages of one part are chained, so that only
descriptors travel. An `InfraError`, or a worker that died, costs the part one attempt and a pause; any
other exception is a bug and stops the run.
"""

import heapq
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pairforge.records import Frozen, InfraError
from pairforge.rng import rng_for

W = TypeVar("W")

_BACKOFF_S = (1.0, 60.0)


class StageBugError(Exception):
    """A stage raised what is neither a refused record nor an infrastructure fault; the run stops."""


class Resources(Frozen):
    """What one running instance of a stage occupies."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_mb: int | None = None


@dataclass(frozen=True)
class Stage:
    """A named, versioned unit of work. `make` is a module-level function from settings to the stage's function."""

    name: str
    version: int
    make: Callable[[Any], Callable[[Any], Any]]
    resources: Resources


@dataclass(frozen=True)
class Done:
    """One finished try of one part: its result, or the fault that ended it."""

    ticket: int
    result: Any
    fault: InfraError | None


class Executor(Protocol):
    """Where stages run."""

    slots: int

    def submit(self, ticket: int, work: Any) -> None:
        """Start one part; `ticket` comes back with its result."""

    def wait(self, timeout_s: float) -> list[Done]:
        """Parts that finished; empty after `timeout_s`. A bug inside a stage is raised here."""

    def close(self) -> None:
        """Give everything back; what is in flight is abandoned."""


def _run_chain(stages: tuple[Stage, ...], settings: Any, work: Any) -> Any:
    for stage in stages:
        work = stage.make(settings)(work)
    return work


@dataclass
class LocalExecutor:
    """Runs each part in this process when it is waited for."""

    stages: tuple[Stage, ...]
    settings: Any
    slots: int = 1
    _queue: list[tuple[int, Any]] = field(default_factory=list)

    def submit(self, ticket: int, work: Any) -> None:
        self._queue.append((ticket, work))

    def wait(self, timeout_s: float) -> list[Done]:
        if not self._queue:
            time.sleep(timeout_s)
            return []
        ticket, work = self._queue.pop(0)
        try:
            return [Done(ticket, _run_chain(self.stages, self.settings, work), None)]
        except InfraError as fault:
            return [Done(ticket, None, fault)]
        except Exception as error:
            raise StageBugError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        self._queue.clear()


def _run_stage(stage: Stage, settings: Any, work: Any) -> Any:
    return stage.make(settings)(work)


def start_embedded_ray(workers: int) -> None:
    """A single-node Ray on the loopback address that ends with this process.

    It contacts nothing outside, and no other Ray on the host is touched or joined.
    """
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address="local",
        num_cpus=workers,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )


class RayExecutor:
    """Runs stages as Ray tasks on the Ray this process is connected to; `owns_ray` ends it on close."""

    def __init__(self, stages: tuple[Stage, ...], settings: Any, slots: int, owns_ray: bool = False) -> None:
        import ray

        self._ray = ray
        self.slots = slots
        self._owns_ray = owns_ray
        self._stages = [(self._ray.put(stage), _remote_options(stage.resources)) for stage in stages]
        self._settings = self._ray.put(settings)
        self._run = self._ray.remote(_run_stage)
        self._tickets: dict[Any, int] = {}

    def submit(self, ticket: int, work: Any) -> None:
        reference = work
        for stage, options in self._stages:
            reference = self._run.options(**options).remote(stage, self._settings, reference)
        self._tickets[reference] = ticket

    def wait(self, timeout_s: float) -> list[Done]:
        if not self._tickets:
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(list(self._tickets), num_returns=1, timeout=timeout_s)
        return [self._collect(self._tickets.pop(reference), reference) for reference in ready]

    def _collect(self, ticket: int, reference: Any) -> Done:
        from ray.exceptions import NodeDiedError, ObjectLostError, RayTaskError, WorkerCrashedError

        try:
            return Done(ticket, self._ray.get(reference), None)
        except RayTaskError as error:
            if isinstance(error.cause, InfraError):
                return Done(ticket, None, error.cause)
            raise StageBugError(str(error)) from error
        except (WorkerCrashedError, NodeDiedError, ObjectLostError) as error:
            return Done(ticket, None, InfraError(f"a worker died: {type(error).__name__}"))

    def close(self) -> None:
        for reference in self._tickets:
            self._ray.cancel(reference, force=True)
        self._tickets.clear()
        if self._owns_ray:
            self._ray.shutdown()


def _remote_options(resources: Resources) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": 0}
    if resources.memory_mb is not None:
        options["memory"] = resources.memory_mb * 2**20
    return options


@dataclass(order=True)
class _Retry:
    due: float
    ticket: int
    attempt: int = field(compare=False)
    work: Any = field(compare=False)


@dataclass(frozen=True)
class Outcome:
    """What became of one part: a result, or the fault of its last attempt."""

    work: Any
    result: Any
    fault: InfraError | None
    attempts: int


def run_parts(works: Iterator[W], executor: Executor, max_attempts: int, prefetch: int = 1) -> Iterator[Outcome]:
    """Run every part, yielding outcomes as they come; at most `slots + prefetch` parts are in flight.

    A part that meets `max_attempts` infrastructure faults is given up, with the last fault in its
    outcome; the others go on.
    """
    jitter = rng_for(os.getpid(), "back-off")
    waiting: list[_Retry] = []
    flying: dict[int, tuple[W, int]] = {}
    ticket = 0
    while True:
        while len(flying) < executor.slots + prefetch:
            if waiting and waiting[0].due <= time.monotonic():
                retry = heapq.heappop(waiting)
                work, attempt = retry.work, retry.attempt
            elif (upcoming := next(works, None)) is not None:
                work, attempt = upcoming, 1
            else:
                break
            ticket += 1
            flying[ticket] = (work, attempt)
            executor.submit(ticket, work)
        if not flying and not waiting:
            return
        for done in executor.wait(0.1 if waiting else 1.0):
            work, attempt = flying.pop(done.ticket)
            if done.fault is None or attempt >= max_attempts:
                yield Outcome(work, done.result, done.fault, attempt)
                continue
            low, high = _BACKOFF_S
            pause = min(high, low * 2 ** (attempt - 1)) * jitter.uniform(0.5, 1.5)
            heapq.heappush(waiting, _Retry(time.monotonic() + pause, done.ticket, attempt + 1, work))
