"""The dry run: counts from the plan, bytes and seconds from markers, a calibration, or records rendered on the spot."""

import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pairforge.shards import Marker, ShardName
from pairforge.storage import Storage, open_storage
from pipelines.calibration import Calibration, CategoryCost, cost_settings, read_calibration, write_calibration
from pipelines.catalog import Catalog
from pipelines.plan import Part, count_sources, plan_parts, render_settings
from pipelines.run import read_markers
from pipelines.settings import RunConfig
from pipelines.synthesis import make_part

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
    bytes: float
    seconds: float

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(self.bytes + other.bytes, self.seconds + other.seconds)


def estimate(config: RunConfig, measure: int) -> dict[str, Any]:
    """What a run would do, without writing to its output.

    Categories that a stored calibration knows are predicted from it; of the others `measure` records are
    rendered.

    `bytes` and `core_seconds` are totals: of what is done from its markers, of the rest extrapolated
    (None where nothing was measured, but something is left). `storage_left` adds the bases that are missing.
    No stage of this line needs a GPU.
    """
    output = open_storage(config.output)
    calibration = read_calibration(output)
    known_costs = _known_costs(config, calibration)
    with _scratch_copy(output) as scratch:
        catalog = Catalog(scratch)
        catalog.scan(config)
        done = {entry.name for entry in output.list("shards/") if entry.name.endswith(".marker.json")}
        categories = _by_category(config, catalog, done, measure, known_costs)
        rows, left = [], _Cost(0, 0)
        for name, seen in sorted(categories.items()):
            spent = _cost_of(read_markers(output, [shard for shard, _ in seen.done]))
            ahead = _predicted(seen, known_costs[name]) if name in known_costs else _measured(seen, config, scratch)
            rows.append(_row(name, seen, spent + ahead if ahead else None))
            left += ahead or _Cost(0, 0)
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
        "gpu_hours_left": 0.0,
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
    settings = render_settings(config)
    first = samples[0]
    with tempfile.TemporaryDirectory(prefix="pairforge-warm-") as elsewhere:  # what is loaded once costs no record
        make_part(replace(first, records=first.records[:1]), settings, elsewhere)
    started = time.process_time()
    markers = [make_part(sample, settings, scratch.root) for sample in samples]
    seconds = time.process_time() - started
    planned = sum(marker.planned for marker in markers)
    return CategoryCost(
        settings=cost_settings(config, category),
        records=planned,
        core_seconds=seconds / planned,
        shard_bytes=_cost_of(markers).bytes / planned,
    )


def _known_costs(config: RunConfig, calibration: Calibration | None) -> Mapping[str, CategoryCost]:
    stored = calibration.categories if calibration else {}
    return {name: cost for name, cost in stored.items() if cost.settings == cost_settings(config, name)}


def _predicted(seen: _Category, cost: CategoryCost) -> _Cost:
    left = seen.records - seen.records_done
    return _Cost(cost.shard_bytes * left, cost.core_seconds * left)


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


def _measured(seen: _Category, config: RunConfig, scratch: Storage) -> _Cost | None:
    """What is left of a category, scaled from samples of it; None where there is no sample to scale."""
    left = seen.records - seen.records_done
    if left == 0:
        return _Cost(0, 0)
    markers = [make_part(sample, render_settings(config), scratch.root) for sample in seen.samples]
    rendered = sum(marker.planned for marker in markers)
    if not rendered:
        return None
    cost = _cost_of(markers)
    return _Cost(cost.bytes * left / rendered, cost.seconds * left / rendered)


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
    """A throw-away dataset that starts with the catalog of the real one."""
    with tempfile.TemporaryDirectory(prefix="pairforge-plan-") as folder:
        scratch = open_storage(folder)
        for entry in output.list("catalog/"):
            scratch.write(entry.name, output.read(entry.name))
        yield scratch
