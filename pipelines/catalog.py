"""The catalog: numbered immutable batches of every source ever seen. Order is data.

A batch is a parquet file. Rows are never changed: a removed source gets a tombstone row (`removed`).
What was refused stays as a row with its reason, so nothing that was listed is lost.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairforge.config import canonical_json
from pairforge.decode import probe
from pairforge.records import Fate, InfraError, SampleError
from pairforge.storage import Storage
from pipelines.settings import AnySources, RunConfig, Split, SplitFractions, VideoSources
from pipelines.sources import Found, count_frames, list_sources, local_copy, read_source

USABLE, REMOVED = "usable", "removed"
_SETTINGS = "catalog/settings.json"
_READERS = 8
_ROWS_AT_A_TIME = 10_000
"""Rows that planning holds at once. Partners are drawn among them, so changing this changes plans."""


class CatalogRow(NamedTuple):
    """One source as it was seen. `fate` is usable, rejected, failed or removed."""

    source_id: str
    sha256: str
    uri: str
    locator: str
    stamp: str
    kind: str
    size_bytes: int
    format: str
    width: int
    height: int
    frames: int
    window_frames: int
    licence: str
    attribution: str
    group: str
    split: str
    fate: str
    reason: str
    detail: str


_INTEGERS = frozenset({"size_bytes", "width", "height", "frames", "window_frames"})
CATALOG_SCHEMA = pa.schema(
    [pa.field(name, pa.int64() if name in _INTEGERS else pa.string(), nullable=False) for name in CatalogRow._fields]
)


def split_of(group: str, fractions: SplitFractions) -> Split:
    """The split of a group, from its hash alone."""
    point = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8], "big") / 2**64
    if point < fractions.val:
        return "val"
    return "test" if point < fractions.val + fractions.test else "train"


@dataclass
class _Seen:
    """A set of 8-byte digests that stays small for tens of millions of members."""

    old: np.ndarray[Any, np.dtype[np.uint64]] = field(default_factory=lambda: np.empty(0, np.uint64))
    new: set[int] = field(default_factory=set)

    @staticmethod
    def digest(text: str) -> int:
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def add(self, text: str) -> bool:
        """Whether `text` was not in the set before."""
        value = self.digest(text)
        place = int(np.searchsorted(self.old, np.uint64(value)))
        if value in self.new or (place < len(self.old) and int(self.old[place]) == value):
            return False
        self.new.add(value)
        if len(self.new) >= 500_000:
            self.old = np.union1d(self.old, np.fromiter(self.new, np.uint64, len(self.new)))
            self.new.clear()
        return True


class Catalog:
    """The batches below `catalog/` of a dataset."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def batches(self) -> list[str]:
        """Names of the committed batches, in order. Raises InfraError where one is missing."""
        names = [entry.name for entry in self._storage.list("catalog/") if entry.name.endswith(".parquet")]
        expected = [_batch_name(number) for number in range(len(names))]
        if names != expected:
            raise InfraError(f"catalog batches are not numbered without gaps: {names}")
        return names

    def read_batches(self) -> Iterator[list[CatalogRow]]:
        """Rows in catalog order, a bounded list at a time."""
        for name in self.batches():
            file = pq.ParquetFile(io.BytesIO(self._storage.read(name)))
            for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME):
                columns = [batch.column(name).to_pylist() for name in CatalogRow._fields]
                yield [CatalogRow(*values) for values in zip(*columns, strict=True)]

    def _read_columns(self, *columns: str) -> Iterator[pa.Table]:
        for name in self.batches():
            yield pq.read_table(io.BytesIO(self._storage.read(name)), columns=list(columns))

    def append(self, rows: Sequence[CatalogRow]) -> None:
        """Commit one batch. Raises InfraError if another run committed one meanwhile."""
        columns = {
            name: pa.array([getattr(row, name) for row in rows], CATALOG_SCHEMA.field(name).type)
            for name in CatalogRow._fields
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=CATALOG_SCHEMA), buffer, compression="zstd")
        name = _batch_name(len(self.batches()))
        if not self._storage.put_if_absent(name, buffer.getvalue()):
            raise InfraError(f"another run is adding to this catalog: it wrote {name} first")

    def removed(self) -> frozenset[str]:
        """Ids of sources with a tombstone."""
        tables = self._read_columns("fate", "source_id")
        gone = (table.filter(pc.equal(table["fate"], REMOVED))["source_id"].to_pylist() for table in tables)
        return frozenset(chain.from_iterable(gone))

    def remove(self, source_ids: Sequence[str], why: str) -> None:
        """Add tombstones; parts that use these sources are remade without them by the next run.

        Raises ValueError for an id that the catalog does not hold.
        """
        known = {row.source_id: row for rows in self.read_batches() for row in rows if row.fate == USABLE}
        unknown = sorted(set(source_ids) - set(known))
        if unknown:
            raise ValueError(f"no usable source {', '.join(unknown)} in this catalog")
        gone = self.removed()
        fresh = [known[i]._replace(fate=REMOVED, reason="removed", detail=why) for i in source_ids if i not in gone]
        if fresh:
            self.append(fresh)

    def counts(self) -> dict[str, int]:
        """How many sources were seen and what became of them: seen, usable, then refusals by reason."""
        fates: Counter[str] = Counter()
        for table in self._read_columns("fate", "reason"):
            for row in table.group_by(["fate", "reason"]).aggregate([([], "count_all")]).to_pylist():
                name = row["fate"] if row["fate"] == USABLE else f"{row['fate']}:{row['reason']}"
                fates[name] += row["count_all"]
        gone = len(self.removed())
        usable = fates.pop(USABLE, 0)
        seen = usable + sum(count for name, count in fates.items() if not name.startswith(REMOVED))
        return {"seen": seen, "usable": usable - gone, **dict(sorted(fates.items()))}

    def scan(self, config: RunConfig) -> int:
        """List all sources, look at those not seen before, commit them in batches; the number of new rows.

        Raises ValueError when limits or splits differ from those this catalog was made with, since
        rows already committed followed them.
        """
        self._pin_settings(config)
        seen_places, seen_ids = _Seen(), _Seen()
        for rows in self.read_batches():
            for row in rows:
                seen_places.add(f"{row.uri}\n{row.locator}\n{row.stamp}")
                if row.fate == USABLE:
                    seen_ids.add(row.source_id)
        fresh = (
            (found, spec)
            for spec in config.sources
            for found in list_sources(spec)
            if seen_places.add(f"{found.uri}\n{found.locator}\n{found.stamp}")
        )
        added = 0
        while chunk := list(islice(fresh, config.run.catalog_batch_rows)):
            with ThreadPoolExecutor(_READERS) as pool:
                rows = list(pool.map(lambda item: examine(item[0], item[1], config), chunk))
            self.append([_once(row, seen_ids) for row in rows])
            added += len(rows)
        return added

    def _pin_settings(self, config: RunConfig) -> None:
        pinned = canonical_json({"split": config.split.model_dump(), "limits": config.limits.model_dump()}).encode()
        if self._storage.put_if_absent(_SETTINGS, pinned):
            return
        stored = self._storage.read(_SETTINGS)
        if stored != pinned:
            raise ValueError(
                f"this catalog was made with {stored.decode()}, the config says {pinned.decode()}: "
                "sources already placed would move; keep the old values, or choose another output"
            )


def _batch_name(number: int) -> str:
    return f"catalog/batch-{number:06d}.parquet"


def _once(row: CatalogRow, seen_ids: _Seen) -> CatalogRow:
    if row.fate != USABLE or seen_ids.add(row.source_id):
        return row
    detail = f"the same bytes as another source with id {row.source_id}"
    return row._replace(fate=Fate.REJECTED.value, reason="duplicate", detail=detail)


def examine(found: Found, spec: AnySources, config: RunConfig) -> CatalogRow:
    """Read one listed source as far as its header, and say whether it can be used."""
    row = CatalogRow(
        source_id="",
        sha256="",
        uri=found.uri,
        locator=found.locator,
        stamp=found.stamp,
        kind="video" if isinstance(spec, VideoSources) else "photo",
        size_bytes=found.size_bytes,
        format="",
        width=0,
        height=0,
        frames=0,
        window_frames=spec.window_frames if isinstance(spec, VideoSources) else 0,
        licence=spec.licence,
        attribution=spec.attribution,
        group=found.group,
        split=split_of(found.group, config.split),
        fate=USABLE,
        reason="",
        detail="",
    )
    try:
        if found.refusal is not None:
            raise found.refusal
        if found.size_bytes > config.limits.max_bytes:
            raise SampleError(
                "too_many_bytes",
                f"{found.uri} has {found.size_bytes} bytes; allowed: {config.limits.max_bytes}",
                Fate.REJECTED,
            )
        data = read_source(found.uri, found.locator)
        sha256 = hashlib.sha256(data).hexdigest()
        row = row._replace(sha256=sha256, source_id=sha256[:24], size_bytes=len(data))
        if isinstance(spec, VideoSources):
            with local_copy(found.uri) as path:
                frames, width, height = count_frames(path)
            if frames < spec.window_frames:
                raise SampleError("too_few_frames", f"{frames} frames; needed: {spec.window_frames}", Fate.REJECTED)
            return row._replace(format="video", width=width, height=height, frames=frames)
        facts = probe(data, config.limits.for_decoding())
        return row._replace(format=facts.format, width=facts.width, height=facts.height)
    except SampleError as refusal:
        return row._replace(fate=refusal.fate.value, reason=refusal.reason, detail=refusal.detail)
