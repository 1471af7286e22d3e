"""The dry run: counts from the plan, bytes and seconds from a few records rendered on the spot."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pairforge.storage import Storage, open_storage
from pipelines.catalog import Catalog
from pipelines.plan import Part, plan_parts, render_settings
from pipelines.settings import RunConfig
from pipelines.synthesis import make_part


@dataclass
class _Category:
    parts: int = 0
    parts_done: int = 0
    records: int = 0
    records_done: int = 0
    samples: list[Part] = field(default_factory=list)


def estimate(config: RunConfig, measure: int) -> dict[str, Any]:
    """What a run would do, without writing to its output; `measure` records a category are rendered.

    Bytes and seconds are totals of the category, extrapolated from what was measured (null where
    nothing was).
    """
    output = open_storage(config.output)
    with _scratch_copy(output) as scratch:
        catalog = Catalog(scratch)
        catalog.scan(config)
        done = {entry.name for entry in output.list("shards/") if entry.name.endswith(".marker.json")}
        categories: dict[str, _Category] = {}
        for part in plan_parts(config, catalog):
            seen = categories.setdefault(part.category, _Category())
            is_done = part.shard.marker in done
            seen.parts += 1
            seen.records += len(part.records)
            seen.parts_done += is_done
            seen.records_done += len(part.records) * is_done
            missing = measure - sum(len(sample.records) for sample in seen.samples)
            if missing > 0:
                seen.samples.append(replace(part, records=part.records[:missing]))
        rows = [_measured(name, seen, config, scratch) for name, seen in sorted(categories.items())]
        sources = catalog.counts()
    fields = ("parts", "parts done", "records", "records done", "bytes", "core-seconds")
    total = {name: sum((row[name] or 0) for row in rows) for name in fields}
    left = Counter[str]()
    for row in rows:
        share = 1 - row["records done"] / row["records"]
        left.update(
            bytes=round((row["bytes"] or 0) * share), milliseconds=round((row["core-seconds"] or 0) * share * 1000)
        )
    workers = config.run.workers or os.cpu_count() or 1
    return {
        "categories": rows,
        "total": {**total, "core-seconds": round(total["core-seconds"], 1)},
        "sources": sources,
        "measured": sum(len(sample.records) for seen in categories.values() for sample in seen.samples),
        "workers": workers,
        "bytes_left": left["bytes"],
        "seconds_left": round(left["milliseconds"] / 1000 / workers, 1),
    }


def _measured(name: str, seen: _Category, config: RunConfig, scratch: Storage) -> dict[str, Any]:
    size = seconds = 0.0
    rendered = 0
    for sample in seen.samples:
        marker = make_part(sample, render_settings(config), scratch.root)
        rendered += marker.planned
        size += marker.tar_bytes + marker.rows_bytes
        seconds += marker.production["seconds"]
    scale = seen.records / rendered if rendered else 0
    return {
        "category": name,
        "parts": seen.parts,
        "parts done": seen.parts_done,
        "records": seen.records,
        "records done": seen.records_done,
        "bytes": round(size * scale) if rendered else 0,
        "core-seconds": round(seconds * scale, 1) if rendered else 0.0,
    }


@contextmanager
def _scratch_copy(output: Storage) -> Iterator[Storage]:
    """A throw-away dataset that starts with the catalog of the real one."""
    with tempfile.TemporaryDirectory(prefix="pairforge-plan-") as folder:
        scratch = open_storage(folder)
        for entry in output.list("catalog/"):
            scratch.write(entry.name, output.read(entry.name))
        yield scratch
