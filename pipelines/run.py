"""One run of the synthesis line: catalog, plan, make what is missing, publish a snapshot."""

import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pairforge.config import canonical_json, fingerprint
from pairforge.failpoints import failpoint
from pairforge.records import Fate, Frozen, InfraError, TooManyFailedError, parse_stored
from pairforge.shards import Marker, ShardName, read_marker, read_rows
from pairforge.snapshot import publish, read_latest, write_snapshot
from pairforge.storage import Storage, open_storage
from pipelines.attempts import AttemptLedger
from pipelines.catalog import Catalog
from pipelines.engine import Backend, Engine, LocalBackend, StageLoad
from pipelines.plan import Part, RenderSettings, count_sources, plan_parts, render_settings
from pipelines.ray_backend import RayBackend, connect_ray, start_embedded_ray
from pipelines.scene_settings import PROVIDED
from pipelines.scenes import SceneMaker
from pipelines.settings import RunConfig
from pipelines.stages import Pool, Stage
from pipelines.synthesis import make_part, pixel_versions
from pipelines.telemetry import bound_ids, note, part_made

RUN_FILE = "runs/latest.json"
_STALE_AFTER_S = 24 * 3600
"""Unfinished files of killed writers are removed when they are older."""
_FRACTION_AFTER_RECORDS = 20
"""The failed fraction is not judged on fewer records than this, unless the run has no more."""


@dataclass(frozen=True)
class Outline:
    """All parts of a plan by name, how many records each holds, and which are committed already."""

    parts: tuple[tuple[ShardName, int], ...]
    done: frozenset[str]

    @property
    def records(self) -> int:
        return sum(count for _, count in self.parts)

    @property
    def pending(self) -> tuple[tuple[ShardName, int], ...]:
        return tuple((name, count) for name, count in self.parts if name.marker not in self.done)


class RunState(Frozen):
    """What `runs/latest.json` holds: the plan of the latest run, by which anyone can tell how far it is."""

    name: str
    run: str | None
    config: str
    records: int
    parts: tuple[tuple[str, int], ...]
    started: float
    versions: Mapping[str, str]


@dataclass
class Tally:
    """Counts of a run while it goes on."""

    records: int
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
    def finished(self) -> int:
        return self.fates.total()


@dataclass(frozen=True)
class Watchers:
    """Who is told: of the plan, of every committed part, of the stages' load, of the first SIGINT (parts in flight)."""

    on_plan: Callable[[Outline], None] = lambda planned: None
    on_part: Callable[[Marker], None] = lambda marker: None
    on_tick: Callable[[list[StageLoad]], None] = lambda loads: None
    on_stop: Callable[[int], None] = lambda in_flight: None


_NOBODY = Watchers()


@dataclass(frozen=True)
class RunReport:
    """How a run ended; counts cover the whole snapshot, not only what this run made."""

    snapshot: str
    published: bool
    parts_made: int
    parts_before: int
    sources: Mapping[str, int]
    fates: Mapping[str, int]
    reasons: Mapping[str, int]
    seconds: float

    @property
    def flawed(self) -> bool:
        """Whether any record failed or any source could not be read."""
        return self.fates.get("failed", 0) > 0 or any(name.startswith("failed:") for name in self.sources)


def outline(config: RunConfig, catalog: Catalog, storage: Storage) -> Outline:
    """Plan once without keeping records, and see what storage holds already."""
    parts = tuple((part.shard, len(part.records)) for part in plan_parts(config, catalog))
    markers = (entry.name for entry in storage.list("shards/") if entry.name.endswith(".marker.json"))
    names = {name.marker for name, _ in parts}
    return Outline(parts, frozenset(name for name in markers if name in names))


def _make_render(context: tuple[RenderSettings, str]) -> Callable[[Part], Marker]:
    settings, output = context
    return partial(make_part, settings=settings, output=output)


def _make_scene(context: tuple[RenderSettings, str]) -> SceneMaker:
    return SceneMaker(*context)


SCENE = Stage("scene", 1, _make_scene)
RENDER = Stage("render", 1, _make_render)


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages that a config's parts go through, with the resources and pools that it gives them.

    Scenes are made on actors where their provider has weights to load. Raises ValueError for resources or a
    pool of a stage that is none of them.
    """
    needed = frozenset(need for recipe in config.recipes for need in recipe.needs()) & set(PROVIDED)
    stages = (SCENE, RENDER) if needed else (RENDER,)
    for name in (*config.run.stages, *config.run.pools):
        if name not in (SCENE.name, RENDER.name):
            raise ValueError(f"run: stage {name!r} is unknown; allowed: {SCENE.name}, {RENDER.name}")
    pools: dict[str, Pool] = {SCENE.name: Pool()} if config.scene.loads_weights(needed) else {}
    pools.update(config.run.pools)
    return tuple(
        replace(stage, resources=config.run.stages.get(stage.name, stage.resources), pool=pools.get(stage.name))
        for stage in stages
    )


def open_backend(config: RunConfig, output: str, local: bool, address: str | None) -> Backend:
    """`--local`; or the Ray cluster at `address`; or an embedded Ray with as many cores as workers."""
    context = (render_settings(config), output)
    stages = stages_of(config)
    if local:
        return LocalBackend(stages, context)
    if address:
        connect_ray(address)
    else:
        start_embedded_ray(config.run.workers or os.cpu_count() or 1)
    return RayBackend(stages, context, owns_ray=True)


def run(
    config: RunConfig,
    backend_for: Callable[[RunConfig, str], Backend],
    watchers: Watchers = _NOBODY,
) -> RunReport:
    """Make everything that is planned and not committed, then publish a snapshot of it.

    `backend_for` is called only when there is something to make. The first SIGINT lets what is in flight
    finish, the second ends it; both end in KeyboardInterrupt. Raises
    TooManyFailedError; what was committed until then stays and is not made again.
    """
    started = time.monotonic()
    storage = open_storage(config.output)
    if next(storage.list("shards/imported/"), None) is not None:
        raise ValueError(
            f"{config.output} holds imported pairs, whose snapshots a run would hide; choose another output"
        )
    storage.check_conditional_writes()
    storage.sweep(_STALE_AFTER_S)
    catalog = Catalog(storage)
    catalog.scan(config)
    planned = outline(config, catalog, storage)
    if not planned.records:
        raise ValueError(f"nothing to make: of the sources, {_in_words(count_sources(config, catalog))}")
    watchers.on_plan(planned)
    note("planned", records=planned.records, parts=len(planned.parts), parts_done=len(planned.done))
    _write_run_file(storage, config, planned)
    failpoint("after-plan")
    tally = Tally(planned.records)
    if planned.pending:
        _make_missing(config, catalog, storage, planned, tally, backend_for, watchers)
    if tally.given_up:
        listed = "; ".join(f"{name}: {fault}" for name, fault in sorted(tally.given_up.items())[:5])
        raise TooManyFailedError(f"{len(tally.given_up)} parts were given up, no snapshot was written: {listed}")
    sources, total, snapshot, published = _publish(config, catalog, storage, planned)
    return RunReport(
        snapshot=snapshot,
        published=published,
        parts_made=tally.parts_made,
        parts_before=len(planned.done),
        sources=sources,
        fates=dict(total.fates),
        reasons=dict(total.reasons),
        seconds=time.monotonic() - started,
    )


def _make_missing(
    config: RunConfig,
    catalog: Catalog,
    storage: Storage,
    planned: Outline,
    tally: Tally,
    backend_for: Callable[[RunConfig, str], Backend],
    watchers: Watchers,
) -> None:
    """Carry every part that has no marker through the stages, counting in `tally`."""
    ledger = AttemptLedger(storage, config.run.engine.max_attempts)
    pending = (part for part in plan_parts(config, catalog) if part.shard.marker not in planned.done)
    backend = backend_for(config, storage.root)
    engine = Engine[Part](
        backend,
        config.run.engine,
        label_of=lambda part: part.shard.stem,
        size_of=lambda part: sum({r.source.source_id: r.source.size_bytes for r in part.records}.values()),
        attempts_of=ledger.attempts,
        on_fault=ledger.note,
        on_tick=watchers.on_tick,
    )
    try:
        with _stopping_on_sigint(engine, watchers.on_stop) as stopped:
            _carry(config, storage, engine, ledger, pending, tally, watchers.on_part)
    finally:
        backend.close()
    if stopped:
        raise KeyboardInterrupt


def _publish(
    config: RunConfig, catalog: Catalog, storage: Storage, planned: Outline
) -> tuple[dict[str, int], Tally, str, bool]:
    """Snapshot everything that was planned: sources by fate, counts of records, its id, and whether it is new."""
    markers = read_markers(storage, [name for name, _ in planned.parts])
    total = Tally(planned.records)
    for marker in markers:
        total.add(marker)
    _check_failed(config, storage, total, final=True)
    _check_present(storage, markers)
    sources = count_sources(config, catalog)
    before = read_latest(storage)
    manifest = write_snapshot(
        storage,
        name=config.name,
        shards=markers,
        sources=sources,
        licences=[spec.licence for spec in config.sources],
        excluded=read_exclusions(config),
        extra={"config.json": _resolved(config)},
    )
    published = publish(storage, manifest)
    assert published or before is not None
    note("snapshot", snapshot=manifest.id, published=published, **total.fates)
    return sources, total, manifest.id, published


def _carry(
    config: RunConfig,
    storage: Storage,
    engine: Engine[Part],
    ledger: AttemptLedger,
    pending: Iterator[Part],
    tally: Tally,
    on_part: Callable[[Marker], None],
) -> None:
    def worth_trying() -> Iterator[Part]:
        for part in pending:
            if ledger.quarantined(part):
                tally.given_up[part.shard.stem] = ledger.last_fault(part)
            else:
                yield part

    for outcome in engine.run(worth_trying()):
        if outcome.fault is not None:
            given_up = {"part": outcome.work.shard.stem, "attempt": outcome.attempts, "fault": str(outcome.fault)}
            note("part given up", logging.ERROR, **given_up)
            tally.given_up[outcome.work.shard.stem] = f"{outcome.fault} ({outcome.attempts} attempts)"
            continue
        ledger.clear(outcome.work)
        tally.add(outcome.result)
        _tell_made(outcome.result, outcome.attempts)
        on_part(outcome.result)
        _check_failed(config, storage, tally, final=False)


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
def _stopping_on_sigint(engine: Engine[Part], on_stop: Callable[[int], None]) -> Iterator[list[bool]]:
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


def _check_failed(config: RunConfig, storage: Storage, tally: Tally, final: bool) -> None:
    failed, finished = tally.fates["failed"], tally.finished
    allowed = config.run.max_failed_fraction
    if finished and failed / finished > allowed and (final or finished >= _FRACTION_AFTER_RECORDS):
        raise TooManyFailedError(
            f"{failed} of {finished} records failed, more than max_failed_fraction {allowed} allows; "
            f"reasons: {_in_words(tally.reasons)}; for example {_some_failed(storage, tally.with_failed)}"
        )


def _some_failed(storage: Storage, rows_names: Sequence[str]) -> str:
    """Up to three failed records of the first parts that hold any, with why."""
    rows = read_rows(storage, rows_names[:3], ["key", "fate", "reason", "detail", "uri"]).to_pylist()
    failed = [row for row in rows if row["fate"] == Fate.FAILED]
    return "; ".join(f"{row['key']} of {row['uri']}: {row['reason']}, {row['detail']}" for row in failed[:3])


def _check_present(storage: Storage, markers: Sequence[Marker]) -> None:
    """Before publishing: every shard is there at the size it was committed with."""
    sizes = {entry.name: entry.size for entry in storage.list("shards/")}
    for marker in markers:
        for name, size in ((marker.tar_name, marker.tar_bytes), (marker.rows_name, marker.rows_bytes)):
            if name and sizes.get(name) != size:
                raise InfraError(f"{storage.url(name)} has {sizes.get(name)} bytes, {size} were committed")


def read_markers(storage: Storage, names: Sequence[ShardName]) -> list[Marker]:
    """Markers of committed shards, in the order of `names`. Raises InfraError where one is missing."""
    try:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda name: read_marker(storage, name.marker), names))
    except FileNotFoundError as error:
        raise InfraError(f"a shard that was committed is gone: {error}") from error


def read_exclusions(config: RunConfig) -> list[str]:
    """Keys that the config's exclusion files list, one a line; `#` starts a comment."""
    keys: set[str] = set()
    for name in config.exclusions:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
        keys.update(key for line in lines if (key := line.partition("#")[0].strip()))
    return sorted(keys)


def _resolved(config: RunConfig) -> bytes:
    """The config with its defaults filled in, without what changes no byte."""
    return json.dumps(config.model_dump(mode="json", exclude={"run", "output"}), indent=1).encode()


def _write_run_file(storage: Storage, config: RunConfig, planned: Outline) -> None:
    state = RunState(
        name=config.name,
        run=bound_ids().get("run"),
        config=fingerprint(config),
        records=planned.records,
        parts=tuple((name.marker, count) for name, count in planned.parts),
        started=round(time.time(), 3),
        versions=pixel_versions(),
    )
    storage.write(RUN_FILE, canonical_json(state).encode())


def read_status(storage: Storage) -> dict[str, Any]:
    """How far the latest run is, from storage alone. Raises FileNotFoundError before the first run, DamagedError."""
    state = parse_stored(RunState, storage.read(RUN_FILE), storage.url(RUN_FILE))
    present = {entry.name for entry in storage.list("shards/")}
    done = [(name, count) for name, count in state.parts if name in present]
    with ThreadPoolExecutor(8) as pool:
        markers = list(pool.map(lambda entry: read_marker(storage, entry[0]), done))
    pointer = read_latest(storage)
    return {
        "name": state.name,
        "run": state.run,
        "parts": len(state.parts),
        "parts_done": len(done),
        "records": state.records,
        "records_done": sum(count for _, count in done),
        "kept": sum(marker.kept for marker in markers),
        "rejected": sum(marker.rejected for marker in markers),
        "failed": sum(marker.failed for marker in markers),
        "reasons": dict(sum((Counter(marker.reasons) for marker in markers), Counter())),
        "bytes": sum(marker.tar_bytes + marker.rows_bytes for marker in markers),
        "seconds_of_work": round(sum(marker.production.get("seconds", 0.0) for marker in markers), 1),
        "latest_snapshot": pointer.snapshot if pointer else None,
        "started": state.started,
    }


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
