"""Runs parts through a chain of stages: keeps a window of them in flight, retries faults, watches for stalls.

The driver moves each part from stage to stage as calls finish; what moves are handles of small
descriptors. An `InfraError`, a worker that died or a call that stalled costs the part one attempt and a
pause, and the part starts again at its first stage, since stages are safe to repeat. Any other
exception is a bug and stops the run.
"""

import heapq
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from pydantic import Field

from pairforge.records import Frozen, InfraError, StopRunError
from pairforge.remote_base import BackendMisconfigured
from pairforge.rng import rng_for
from pipelines.stages import Stage, StageBugError, StageCaller
from pipelines.telemetry import bound_ids, call_failed, note, stage_load

W = TypeVar("W")

STOPS = (BackendMisconfigured, StopRunError)
"""What a stage raises where no other part would fare better, and nothing is wrong with the code."""


class EngineSettings(Frozen):
    """How parts are carried through; nothing here changes a byte."""

    max_attempts: int = Field(3, ge=1, le=20, description="tries of a part before it is given up")
    backoff_s: tuple[float, float] = Field((1.0, 60.0), description="first and longest pause between tries")
    stall_s: float = Field(1800.0, gt=0, description="a call that takes longer than this is ended and tried again")
    parts_in_flight: int | None = Field(None, ge=1, description="window; by the number of slots where absent")
    bytes_in_flight: int = Field(8 * 10**9, ge=1, description="source bytes of the parts in flight, at most")


@dataclass(frozen=True)
class Done:
    """One finished call: an opaque handle of its result (the result itself after the last stage), or its fault."""

    ticket: int
    result: Any
    fault: InfraError | None


@dataclass(frozen=True)
class StageLoad:
    """What one stage is doing: calls that wait, calls that run, calls that finished, actors of its pool."""

    name: str
    waiting: int
    running: int
    finished: int
    actors: int


def bottleneck(loads: Sequence[StageLoad]) -> str | None:
    """The stage that holds most of the parts in flight (the first of equals), None where none does."""
    held = {load.name: load.waiting + load.running for load in loads}
    return max(held, key=held.__getitem__) if any(held.values()) else None


class Backend(Protocol):
    """Where calls of stages run."""

    stages: tuple[Stage, ...]

    def slots(self) -> int:
        """How many parts can make progress at once; may change as nodes come and go."""

    def submit(self, ticket: int, stage_index: int, work: Any, ids: Mapping[str, Any]) -> None:
        """Start one call; `ticket` comes back with it. `work` is what a call returned, or the part itself.

        `ids` go into what the call logs.
        """

    def wait(self, timeout_s: float) -> list[Done]:
        """Calls that finished; empty after `timeout_s`. A bug inside a stage is raised as StageBugError."""

    def abandon(self, ticket: int) -> None:
        """End the call of a ticket, whatever it takes; nothing comes back for it."""

    def loads(self) -> list[StageLoad]:
        """What every stage is doing."""

    def close(self) -> None:
        """Give everything back; what is in flight is abandoned."""


class LocalBackend:
    """Runs one call at a time in this process, when it is waited for."""

    def __init__(self, stages: tuple[Stage, ...], settings: Any) -> None:
        self.stages = stages
        self._settings = settings
        self._made: dict[int, StageCaller] = {}
        self._queue: deque[tuple[int, int, Any, Mapping[str, Any]]] = deque()
        self._finished: Counter[int] = Counter()

    def slots(self) -> int:
        return 1

    def submit(self, ticket: int, stage_index: int, work: Any, ids: Mapping[str, Any]) -> None:
        self._queue.append((ticket, stage_index, work, ids))

    def wait(self, timeout_s: float) -> list[Done]:
        if not self._queue:
            time.sleep(timeout_s)
            return []
        ticket, index, work, ids = self._queue.popleft()
        try:
            if index not in self._made:
                self._made[index] = StageCaller(self.stages[index], self._settings)
            result = self._made[index](work, ids)
        except InfraError as fault:
            return [Done(ticket, None, fault)]
        except STOPS as error:
            raise error
        except Exception as error:
            raise StageBugError(f"in stage {self.stages[index].name}: {type(error).__name__}: {error}") from error
        self._finished[index] += 1
        return [Done(ticket, result, None)]

    def abandon(self, ticket: int) -> None:
        self._queue = deque(call for call in self._queue if call[0] != ticket)

    def loads(self) -> list[StageLoad]:
        waiting = Counter(index for _, index, _, _ in self._queue)
        return [StageLoad(s.name, waiting[i], 0, self._finished[i], 0) for i, s in enumerate(self.stages)]

    def close(self) -> None:
        self._queue.clear()


@dataclass(frozen=True)
class Outcome(Generic[W]):
    """What became of one part: a result, or the fault of its last attempt."""

    work: W
    result: Any
    fault: InfraError | None
    attempts: int


@dataclass
class _Flight(Generic[W]):
    work: W
    attempt: int
    size: int
    stage_index: int = 0
    since: float = field(default_factory=time.monotonic)


@dataclass(order=True)
class _Retry(Generic[W]):
    due: float
    ticket: int
    flight: _Flight[W] = field(compare=False)


class Engine(Generic[W]):
    """Carries parts through the stages of a backend.

    `size_of` gives the source bytes of a part, `label_of` its name in messages, `attempts_of` the tries
    that earlier runs spent on it; `on_fault` is told of every fault that costs an attempt, `on_tick` at
    least once a second what the stages are doing.
    """

    def __init__(
        self,
        backend: Backend,
        settings: EngineSettings,
        *,
        label_of: Callable[[W], str] = str,
        size_of: Callable[[W], int] = lambda work: 0,
        attempts_of: Callable[[W], int] = lambda work: 0,
        on_fault: Callable[[W, int, InfraError], None] = lambda work, attempt, fault: None,
        on_tick: Callable[[list[StageLoad]], None] = lambda loads: None,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._label_of, self._size_of, self._attempts_of, self._on_fault = label_of, size_of, attempts_of, on_fault
        self._on_tick = on_tick
        self._flying: dict[int, _Flight[W]] = {}
        self._waiting: list[_Retry[W]] = []
        self._held: _Flight[W] | None = None
        self._ticket = 0
        self._stopping = False
        self._jitter = rng_for(os.getpid(), "back-off")

    def stop(self) -> None:
        """Start nothing more; `run` ends when what is in flight has finished."""
        self._stopping = True

    @property
    def in_flight(self) -> int:
        """Parts that were started and have not ended."""
        return len(self._flying)

    def run(self, works: Iterator[W]) -> Iterator[Outcome[W]]:
        """Carry every part through, yielding outcomes as they come.

        A part that meets `max_attempts` faults is given up, with the last fault in its outcome; the
        others go on.
        """
        while True:
            self._fill(works)
            if not self._flying and (self._stopping or (not self._waiting and self._held is None)):
                return
            for done in self._backend.wait(0.1 if self._waiting else 1.0):
                yield from self._advance(done)
            yield from self._end_stalled()
            loads = self._backend.loads()
            for load in loads:
                stage_load(load.name, load.waiting, load.running)
            self._on_tick(loads)

    def _fill(self, works: Iterator[W]) -> None:
        while not self._stopping and len(self._flying) < self._window():
            flight = self._next(works)
            if flight is None:
                return
            if (
                self._flying
                and sum(f.size for f in self._flying.values()) + flight.size > self._settings.bytes_in_flight
            ):
                self._held = flight
                return
            self._ticket += 1
            flight.stage_index, flight.since = 0, time.monotonic()
            self._flying[self._ticket] = flight
            self._backend.submit(self._ticket, 0, flight.work, self._ids(flight))

    def _ids(self, flight: _Flight[W]) -> Mapping[str, Any]:
        return {**bound_ids(), "part": self._label_of(flight.work), "attempt": flight.attempt}

    def _window(self) -> int:
        if self._settings.parts_in_flight is not None:
            return self._settings.parts_in_flight
        slots = self._backend.slots()
        return slots + max(1, slots // 4)

    def _next(self, works: Iterator[W]) -> _Flight[W] | None:
        if self._held is not None:
            held, self._held = self._held, None
            return held
        if self._waiting and self._waiting[0].due <= time.monotonic():
            return heapq.heappop(self._waiting).flight
        work = next(works, None)
        return None if work is None else _Flight(work, self._attempts_of(work) + 1, self._size_of(work))

    def _advance(self, done: Done) -> Iterator[Outcome[W]]:
        flight = self._flying.get(done.ticket)
        if flight is None:
            return
        if done.fault is not None:
            yield from self._fault(done.ticket, done.fault)
        elif flight.stage_index + 1 < len(self._backend.stages):
            flight.stage_index += 1
            flight.since = time.monotonic()
            self._backend.submit(done.ticket, flight.stage_index, done.result, self._ids(flight))
        else:
            del self._flying[done.ticket]
            yield Outcome(flight.work, done.result, None, flight.attempt)

    def _fault(self, ticket: int, fault: InfraError) -> Iterator[Outcome[W]]:
        flight = self._flying.pop(ticket)
        stage = self._backend.stages[flight.stage_index].name
        told = InfraError(f"stage {stage}, part {self._label_of(flight.work)}: {fault}")
        call_failed(stage)
        note("call failed", logging.WARNING, **{**self._ids(flight), "stage": stage, "fault": str(fault)})
        self._on_fault(flight.work, flight.attempt, told)
        if flight.attempt >= self._settings.max_attempts:
            yield Outcome(flight.work, None, told, flight.attempt)
            return
        first, longest = self._settings.backoff_s
        pause = min(longest, first * 2 ** (flight.attempt - 1)) * float(self._jitter.uniform(0.5, 1.5))
        again = _Flight(flight.work, flight.attempt + 1, flight.size)
        heapq.heappush(self._waiting, _Retry(time.monotonic() + pause, ticket, again))

    def _end_stalled(self) -> Iterator[Outcome[W]]:
        late = time.monotonic() - self._settings.stall_s
        for ticket, flight in list(self._flying.items()):
            if flight.since < late:
                self._backend.abandon(ticket)
                yield from self._fault(ticket, InfraError(f"no progress for {self._settings.stall_s:g} s, call ended"))
