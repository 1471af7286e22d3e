"""The dry run: counts from the plan, bytes and seconds from markers and a few records rendered on the spot."""

import os
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pairforge.shards import Marker, ShardName
from pairforge.storage import Storage, open_storage
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
    """What a run would do, without writing to its output; `measure` records a category are rendered.

    `bytes` and `core_seconds` are totals: of what is done from its markers, of the rest extrapolated
    from what was rendered here (None where nothing was, but something is left).
    """
    output = open_storage(config.output)
    with _scratch_copy(output) as scratch:
        catalog = Catalog(scratch)
        catalog.scan(config)
        done = {entry.name for entry in output.list("shards/") if entry.name.endswith(".marker.json")}
        categories = _by_category(config, catalog, done, measure)
        rows, left = [], _Cost(0, 0)
        for name, seen in sorted(categories.items()):
            spent = _cost_of(read_markers(output, [shard for shard, _ in seen.done]))
            ahead = _measured(seen, config, scratch)
            rows.append(_row(name, seen, spent + ahead if ahead else None))
            left += ahead or _Cost(0, 0)
        sources = count_sources(config, catalog)
    known = all(row["bytes"] is not None for row in rows)
    workers = config.run.workers or os.cpu_count() or 1
    return {
        "categories": rows,
        "total": {name: _total(row[name] for row in rows) for name in FIELDS},
        "sources": sources,
        "measured": sum(len(sample.records) for seen in categories.values() for sample in seen.samples),
        "workers": workers,
        "bytes_left": round(left.bytes) if known else None,
        "seconds_left": round(left.seconds / workers, 1) if known else None,
    }


def _by_category(config: RunConfig, catalog: Catalog, done: Set[str], measure: int) -> dict[str, _Category]:
    categories: dict[str, _Category] = {}
    for part in plan_parts(config, catalog):
        seen = categories.setdefault(part.category, _Category())
        seen.parts += 1
        seen.records += len(part.records)
        if part.shard.marker in done:
            seen.done.append((part.shard, len(part.records)))
            continue
        missing = measure - sum(len(sample.records) for sample in seen.samples)
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
