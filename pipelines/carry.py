"""Carrying parts of either line through their stages: what a run tells, counts, retries and gives up."""

import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pairforge.records import Fate, TooManyFailedError
from pairforge.shards import Marker, ShardName, read_rows
from pairforge.storage import Storage
from pipelines.attempts import AttemptLedger
from pipelines.engine import Backend, Engine, StageLoad
from pipelines.publication import Outline
from pipelines.settings import RunSettings
from pipelines.telemetry import note, part_made

_FRACTION_AFTER_RECORDS = 20
"""The failed fraction is not judged on fewer records than this, unless the run has no more."""
TRANSIENT = "transient_"
"""How the reason of a failed record begins that is due again by itself."""
OVER_BUDGET = f"{TRANSIENT}over_budget"


class PartLike(Protocol):
    """A part of any line, as far as it is carried."""

    @property
    def shard(self) -> ShardName: ...

    @property
    def size_bytes(self) -> int:
        """Of its sources."""


P = TypeVar("P", bound=PartLike)


@dataclass
class Tally:
    """Counts of a run while it goes on."""

    parts_made: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    given_up: dict[str, str] = field(default_factory=dict)
    with_failed: list[str] = field(default_factory=list)

    def add(self, marker: Marker) -> None:
        self.parts_made += 1
        self.with_failed += [marker.rows_name] if marker.failed else []
        self.fates.update(kept=marker.kept, rejected=marker.rejected, failed=marker.failed)
        self.reasons.update(marker.reasons)

    @property
    def failed(self) -> int:
        """Failed records without those that wait for money: they say nothing against data or services."""
        return self.fates["failed"] - self.reasons[OVER_BUDGET]


@dataclass(frozen=True)
class Watchers:
    """Who is told: of the phase and the plan, of every committed part, of the stages' load, of the first SIGINT."""

    on_phase: Callable[[str, int], None] = lambda name, works: None
    on_plan: Callable[[Outline], None] = lambda planned: None
    on_part: Callable[[Marker], None] = lambda marker: None
    on_tick: Callable[[list[StageLoad]], None] = lambda loads: None
    on_stop: Callable[[int], None] = lambda in_flight: None


NOBODY = Watchers()


def carry_parts(
    storage: Storage,
    settings: RunSettings,
    pending: Iterator[P],
    tally: Tally,
    open_backend: Callable[[], Backend],
    watchers: Watchers,
    stop_when: Callable[[Marker], bool] = lambda marker: False,
) -> None:
    """Carry every pending part through the stages, counting in `tally`; parts given up are named there.

    Nothing more is started after a part of which `stop_when` says so. The first SIGINT lets what is in flight finish,
    the second ends it; both end in KeyboardInterrupt. Raises TooManyFailedError; what was committed stays.
    """
    ledger = AttemptLedger(storage, settings.engine.max_attempts)
    backend = open_backend()
    engine = Engine[P](
        backend,
        settings.engine,
        label_of=lambda part: part.shard.stem,
        size_of=lambda part: part.size_bytes,
        attempts_of=ledger.attempts,
        on_fault=ledger.note,
        on_tick=watchers.on_tick,
    )

    def worth_trying() -> Iterator[P]:
        for part in pending:
            if ledger.quarantined(part):
                tally.given_up[part.shard.stem] = ledger.last_fault(part)
            else:
                yield part

    def carry() -> None:
        for outcome in engine.run(worth_trying()):
            part = outcome.work
            if outcome.fault is not None:
                fault = str(outcome.fault)
                note("part given up", logging.ERROR, part=part.shard.stem, attempt=outcome.attempts, fault=fault)
                tally.given_up[part.shard.stem] = f"{fault} ({outcome.attempts} attempts)"
                continue
            ledger.clear(part)
            tally.add(outcome.result)
            _tell_made(outcome.result, outcome.attempts)
            watchers.on_part(outcome.result)
            check_failed(settings, storage, tally, final=False)
            if stop_when(outcome.result):
                engine.stop()

    try:
        with stopping_on_sigint(engine, watchers.on_stop) as stopped:
            carry()
    finally:
        backend.close()
    if stopped:
        raise KeyboardInterrupt


def raise_given_up(tally: Tally) -> None:
    """Raises TooManyFailedError where parts were given up."""
    if tally.given_up:
        listed = "; ".join(f"{name}: {fault}" for name, fault in sorted(tally.given_up.items())[:5])
        raise TooManyFailedError(f"{len(tally.given_up)} parts were given up, no snapshot was written: {listed}")


def _tell_made(marker: Marker, attempt: int) -> None:
    part_made(marker)
    note(
        "part done",
        part=marker.rows_name.removesuffix(".parquet"),
        attempt=attempt,
        seconds=marker.production.get("seconds"),
        bytes=marker.tar_bytes + marker.rows_bytes,
        kept=marker.kept,
        rejected=marker.rejected,
        failed=marker.failed,
        reasons=dict(marker.reasons),
    )


@contextmanager
def stopping_on_sigint(engine: Engine[Any], on_stop: Callable[[int], None]) -> Iterator[list[bool]]:
    """The list is filled once a SIGINT came; outside the main thread signals are left alone."""
    stopped: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def on_signal(number: int, frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(True)
        engine.stop()
        on_stop(engine.in_flight)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def check_failed(settings: RunSettings, storage: Storage, tally: Tally, final: bool) -> None:
    """Raises TooManyFailedError where more records failed than the settings allow."""
    failed, finished = tally.failed, tally.fates.total()
    allowed = settings.max_failed_fraction
    if finished and failed / finished > allowed and (final or finished >= _FRACTION_AFTER_RECORDS):
        raise TooManyFailedError(
            f"{failed} of {finished} records failed, more than max_failed_fraction {allowed} allows; "
            f"reasons: {in_words(tally.reasons)}; for example {_some_failed(storage, tally.with_failed)}"
        )


def _some_failed(storage: Storage, rows_names: Sequence[str]) -> str:
    """Up to three failed records of the first parts that hold any, with why."""
    rows = read_rows(storage, rows_names[:3], ["key", "fate", "reason", "detail", "uri"]).to_pylist()
    failed = [row for row in rows if row["fate"] == Fate.FAILED]
    return "; ".join(f"{row['key']} of {row['uri']}: {row['reason']}, {row['detail']}" for row in failed[:3])


def in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
