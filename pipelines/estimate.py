"""The dry run: counts from the plan, bytes and seconds from markers, a calibration, or records rendered on the spot."""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from pairforge.shards import Marker, ShardName
from pairforge.storage import Storage, open_storage
from pipelines.calibration import Calibration, CategoryCost, cost_settings, read_calibration, write_calibration
from pipelines.catalog import Catalog
from pipelines.plan import Part, count_sources, plan_parts, render_settings
from pipelines.publication import read_markers
from pipelines.run import stages_of
from pipelines.settings import RunConfig
from pipelines.stages import StageCaller

FIELDS = ("parts", "parts_done", "records", "records_done", "bytes", "core_seconds")


@dataclass
class _Category:
    parts: int = 0
    records: int = 0
    done: list[tuple[ShardName, int]] = field(default_factory=list)
    samples: list[Part] = field(default_factory=list)

    @property
    def records_done(self) -> int:
        return sum(count for _, count in self.done)


@dataclass(frozen=True)
class _Cost:
    bytes: float = 0.0
    seconds: float = 0.0
    gpu_seconds: float = 0.0

    def __add__(self, other: "_Cost") -> "_Cost":
        gpu_seconds = self.gpu_seconds + other.gpu_seconds
        return _Cost(self.bytes + other.bytes, self.seconds + other.seconds, gpu_seconds)

    def __mul__(self, factor: float) -> "_Cost":
        return _Cost(self.bytes * factor, self.seconds * factor, self.gpu_seconds * factor)


class _Line:
    """The stages of a config in this process; a part goes through all of them, and what it cost is told."""

    def __init__(self, config: RunConfig, output: str) -> None:
        context = (render_settings(config), output)
        self._stages = [(stage, StageCaller(stage, context)) for stage in stages_of(config)]

    def make(self, part: Part) -> tuple[Marker, _Cost]:
        """The marker of a committed part; core-seconds are CPU time, GPU-seconds time on the clock."""
        cost, work = _Cost(), part
        for stage, call in self._stages:
            cpu, clock = time.process_time(), time.monotonic()
            work = call(work)
            on_gpu = stage.resources.gpus * (time.monotonic() - clock)
            cost += _Cost(0.0, time.process_time() - cpu, on_gpu)
        marker: Marker = work  # type: ignore[assignment]
        return marker, cost + _Cost(marker.tar_bytes + marker.rows_bytes)


def estimate(config: RunConfig, measure: int) -> dict[str, Any]:
    """What a run would do, without writing to its output.

    Categories that a stored calibration knows are predicted from it; of the others `measure` records are
    rendered.

    `bytes` and `core_seconds` are totals: of what is done from its markers, of the rest extrapolated
    (None where nothing was measured, but something is left). `storage_left` adds the bases that are missing.
    """
    output = open_storage(config.output)
    calibration = read_calibration(output)
    known_costs = _known_costs(config, calibration)
    with _scratch_copy(output) as scratch:
        catalog = Catalog(scratch)
        catalog.scan(config)
        done = {entry.name for entry in output.list("shards/") if entry.name.endswith(".marker.json")}
        categories = _by_category(config, catalog, done, measure, known_costs)
        rows, left, line = [], _Cost(), cache(partial(_Line, config, scratch.root))
        for name, seen in sorted(categories.items()):
            spent = _cost_of(read_markers(output, [shard for shard, _ in seen.done]))
            ahead = _predicted(seen, known_costs[name]) if name in known_costs else _measured(seen, line)
            rows.append(_row(name, seen, spent + ahead if ahead else None))
            left += ahead or _Cost()
        sources = count_sources(config, catalog)
    bases_left = max(0, sources["usable"] - sum(1 for _ in output.list("bases/")))
    known = all(row["bytes"] is not None for row in rows)
    workers = config.run.workers or os.cpu_count() or 1
    return {
        "categories": rows,
        "total": {name: _total(row[name] for row in rows) for name in FIELDS},
        "sources": sources,
        "measured": sum(len(sample.records) for seen in categories.values() for sample in seen.samples),
        "calibrated": sorted(known_costs.keys() & categories.keys()),
        "workers": workers,
        "bytes_left": round(left.bytes) if known else None,
        "storage_left": round(left.bytes + bases_left * calibration.base_bytes) if known and calibration else None,
        "core_hours_left": round(left.seconds / 3600, 6) if known else None,
        "gpu_hours_left": round(left.gpu_seconds / 3600, 6) if known else None,
        "seconds_left": round(left.seconds / workers, 1) if known else None,
    }


def calibrate(config: RunConfig, records: int) -> Calibration:
    """Render `records` records of every category in a scratch folder, one core at a time, and store what they cost.

    Raises ValueError where the catalog of the config leaves nothing to measure.
    """
    output = open_storage(config.output)
    with _scratch_copy(output) as scratch:
        catalog = Catalog(scratch)
        catalog.scan(config)
        categories = _by_category(config, catalog, frozenset(), records, {})
        if not categories:
            raise ValueError("nothing to measure: no source is usable")
        costs = {name: _cost_a_record(config, name, seen.samples, scratch) for name, seen in sorted(categories.items())}
        bases = [entry.size for entry in scratch.list("bases/")]
    calibration = Calibration(
        machine={"cpu": platform.processor() or platform.machine(), "cores": str(os.cpu_count()), "gpus": "0"},
        measured_at=round(time.time(), 3),
        base_bytes=sum(bases) / len(bases) if bases else 0.0,
        categories=costs,
    )
    write_calibration(output, calibration)
    return calibration


def _cost_a_record(config: RunConfig, category: str, samples: list[Part], scratch: Storage) -> CategoryCost:
    first = samples[0]
    with tempfile.TemporaryDirectory(prefix="pairforge-warm-") as elsewhere:  # what is loaded once costs no record
        _Line(config, elsewhere).make(replace(first, records=first.records[:1]))
    line = _Line(config, scratch.root)
    made = [line.make(sample) for sample in samples]
    planned = sum(marker.planned for marker, _ in made)
    cost = sum((cost for _, cost in made), _Cost())
    return CategoryCost(
        settings=cost_settings(config, category),
        records=planned,
        core_seconds=cost.seconds / planned,
        gpu_seconds=cost.gpu_seconds / planned,
        shard_bytes=cost.bytes / planned,
    )


def _known_costs(config: RunConfig, calibration: Calibration | None) -> Mapping[str, CategoryCost]:
    stored = calibration.categories if calibration else {}
    return {name: cost for name, cost in stored.items() if cost.settings == cost_settings(config, name)}


def _predicted(seen: _Category, cost: CategoryCost) -> _Cost:
    left = seen.records - seen.records_done
    return _Cost(cost.shard_bytes, cost.core_seconds, cost.gpu_seconds) * left


def _by_category(
    config: RunConfig, catalog: Catalog, done: Set[str], measure: int, known: Mapping[str, CategoryCost]
) -> dict[str, _Category]:
    categories: dict[str, _Category] = {}
    for part in plan_parts(config, catalog):
        seen = categories.setdefault(part.category, _Category())
        seen.parts += 1
        seen.records += len(part.records)
        if part.shard.marker in done:
            seen.done.append((part.shard, len(part.records)))
            continue
        missing = 0 if part.category in known else measure - sum(len(sample.records) for sample in seen.samples)
        if missing > 0:
            seen.samples.append(replace(part, records=part.records[:missing]))
    return categories


def _cost_of(markers: list[Marker]) -> _Cost:
    size = sum(marker.tar_bytes + marker.rows_bytes for marker in markers)
    return _Cost(size, sum(marker.production.get("seconds", 0.0) for marker in markers))


def _measured(seen: _Category, line: Callable[[], _Line]) -> _Cost | None:
    """What is left of a category, scaled from samples of it; None where there is no sample to scale."""
    left = seen.records - seen.records_done
    if left == 0:
        return _Cost()
    made = [line().make(sample) for sample in seen.samples]
    rendered = sum(marker.planned for marker, _ in made)
    return sum((cost for _, cost in made), _Cost()) * (left / rendered) if rendered else None


def _row(name: str, seen: _Category, cost: _Cost | None) -> dict[str, Any]:
    return {
        "category": name,
        "parts": seen.parts,
        "parts_done": len(seen.done),
        "records": seen.records,
        "records_done": seen.records_done,
        "bytes": round(cost.bytes) if cost else None,
        "core_seconds": round(cost.seconds, 1) if cost else None,
    }


def _total(values: Iterator[Any]) -> Any:
    listed = list(values)
    return None if None in listed else round(sum(listed), 1)


@contextmanager
def _scratch_copy(output: Storage) -> Iterator[Storage]:
    """A throw-away dataset that starts with the catalog and the retries of the real one."""
    with tempfile.TemporaryDirectory(prefix="pairforge-plan-") as folder:
        scratch = open_storage(folder)
        for entry in (*output.list("catalog/"), *output.list("runs/retries.json")):
            scratch.write(entry.name, output.read(entry.name))
        yield scratch
