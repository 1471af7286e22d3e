"""The catalog: numbered immutable batches of every source ever seen. Order is data.

A batch is a parquet file. Rows are never changed: a removed source gets a tombstone row (`removed`).
What was refused stays as a row with its reason, so nothing that was listed is lost.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from degradations.scene.faces import find_faces, is_portrait
from pairforge.config import canonical_json
from pairforge.decode import check_size, decode_source, probe
from pairforge.records import Fate, InfraError, SampleError
from pairforge.storage import Storage
from pipelines.reading import count_frames, hash_file, local_copy, read_source
from pipelines.settings import AnySources, BaseConfig, Limits, PackageSources, Split, SplitFractions, VideoSources
from pipelines.sources import Found, list_sources

USABLE, REMOVED = "usable", "removed"
_SETTINGS = "catalog/settings.json"
_READERS = 8
_MERGE_AT = 500_000
_ROWS_AT_A_TIME = 10_000
"""Rows of a row group, which planning holds at once and draws partners among: to change it changes plans."""
_REPETITIVE = ["kind", "format", "licence", "attribution", "split", "role", "fate", "reason", "detail"]
"""Columns read through their dictionary, so that equal values are one object."""


class CatalogRow(NamedTuple):
    """One source as it was seen. `fate` is usable, rejected, failed or removed; `role` portrait, scene or any."""

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
    role: str
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

    old: np.ndarray[Any, np.dtype[np.uint64]]
    new: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        return cls(np.unique(np.fromiter((cls.digest(text) for text in texts), np.uint64)))

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
        if len(self.new) >= _MERGE_AT:
            self.old = np.union1d(self.old, np.fromiter(self.new, np.uint64, len(self.new)))
            self.new.clear()
        return True


class Catalog:
    """The batches below `catalog/` of a dataset."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.newly_failed = 0
        """Sources that the last `scan` of this object saw first and could not read."""

    def batches(self) -> list[str]:
        """Names of the committed batches, in order. Raises InfraError where one is missing."""
        names = [entry.name for entry in self.storage.list("catalog/") if entry.name.endswith(".parquet")]
        expected = [_batch_name(number) for number in range(len(names))]
        if names != expected:
            raise InfraError(f"catalog batches are not numbered without gaps: {names}")
        return names

    def read_batches(self) -> Iterator[list[CatalogRow]]:
        """Rows in catalog order, a bounded list at a time: a row group, which does not depend on the reader."""
        for name in self.batches():
            file = pq.ParquetFile(io.BytesIO(self.storage.read(name)), read_dictionary=_REPETITIVE)
            for group_index in range(file.num_row_groups):
                batches = file.read_row_group(group_index, use_threads=False).to_batches()
                yield list(chain.from_iterable(map(_rows_of, batches)))

    def _read_columns(self, *columns: str) -> Iterator[pa.Table]:
        for name in self.batches():
            # Without threads, here and below: Arrow's pool may abort a process that ends right after a read.
            file = pq.ParquetFile(io.BytesIO(self.storage.read(name)))
            yield file.read(columns=list(columns), use_threads=False).select(list(columns))

    def append(self, rows: Sequence[CatalogRow], number: int | None = None) -> None:
        """Commit one batch. Raises InfraError if batch `number` exists: another run committed it meanwhile."""
        columns = [
            pa.array([getattr(row, name) for row in rows], CATALOG_SCHEMA.field(name).type)
            for name in CatalogRow._fields
        ]
        self.append_table(pa.table(columns, schema=CATALOG_SCHEMA), number)

    def append_table(self, table: pa.Table, number: int | None = None) -> None:
        """As `append`, from columns of CATALOG_SCHEMA."""
        assert table.schema == CATALOG_SCHEMA, table.schema
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", row_group_size=_ROWS_AT_A_TIME)
        name = _batch_name(len(self.batches()) if number is None else number)
        if not self.storage.put_if_absent(name, buffer.getvalue()):
            raise InfraError(f"another run is adding to this catalog: it wrote {name} first; run again to go on")

    def removed(self) -> frozenset[str]:
        """Ids of sources with a tombstone."""
        tables = self._read_columns("fate", "source_id")
        gone = (table.filter(pc.equal(table["fate"], REMOVED))["source_id"].to_pylist() for table in tables)
        return frozenset(chain.from_iterable(gone))

    def read_usable(self, *columns: str) -> Iterator[pa.Table]:
        """Columns of the usable rows, a batch at a time, without sources that have a tombstone."""
        gone = pa.array(sorted(self.removed()), pa.string())
        for table in self._read_columns("fate", "source_id", *columns):
            usable = pc.and_not(pc.equal(table["fate"], USABLE), pc.is_in(table["source_id"], gone))
            yield table.filter(usable).select(list(columns))

    def remove(self, source_ids: Sequence[str], why: str) -> None:
        """Add tombstones; parts that use these sources are remade without them by the next run.

        Raises ValueError for an id that the catalog does not hold.
        """
        number = len(self.batches())
        known = {row.source_id: row for rows in self.read_batches() for row in rows if row.fate == USABLE}
        unknown = sorted(set(source_ids) - set(known))
        if unknown:
            raise ValueError(f"no usable source {', '.join(unknown)} in this catalog")
        gone = self.removed()
        fresh = [known[i]._replace(fate=REMOVED, reason="removed", detail=why) for i in source_ids if i not in gone]
        if fresh:
            self.append(fresh, number)

    def counts(self) -> dict[str, int]:
        """How many sources were seen and what became of them: seen, usable, then refusals by reason."""
        fates: Counter[str] = Counter()
        for table in self._read_columns("fate", "reason"):
            for row in table.group_by(["fate", "reason"], use_threads=False).aggregate([([], "count_all")]).to_pylist():
                name = row["fate"] if row["fate"] == USABLE else f"{row['fate']}:{row['reason']}"
                fates[name] += row["count_all"]
        gone = len(self.removed())
        usable = fates.pop(USABLE, 0)
        seen = usable + sum(count for name, count in fates.items() if not name.startswith(REMOVED))
        return {"seen": seen, "usable": usable - gone, **dict(sorted(fates.items()))}

    def scan(self, config: BaseConfig) -> int:
        """List all sources, look at those not seen before, commit them in batches; the number of new rows.

        Raises ValueError when limits, splits or what is said of a set of sources differ from those this
        catalog was made with, since rows already committed followed them; InfraError when another run
        adds to this catalog at the same time.
        """
        self._pin_settings(config)
        number = len(self.batches())
        seen_places = _Seen.of(
            _place(*row)
            for table in self._read_columns("uri", "locator", "stamp")
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True)
        )
        usable = (table.filter(pc.equal(table["fate"], USABLE)) for table in self._read_columns("fate", "source_id"))
        seen_ids = _Seen.of(chain.from_iterable(table["source_id"].to_pylist() for table in usable))
        fresh = (
            (found, spec)
            for spec in config.sources
            for found in list_sources(spec)
            if seen_places.add(_place(found.uri, found.locator, found.stamp))
        )
        added = 0
        with ThreadPoolExecutor(_READERS) as pool:
            while chunk := list(islice(fresh, config.run.catalog_batch_rows)):
                rows = list(pool.map(lambda item: examine(item[0], item[1], config), chunk))
                self.append([_once(row, seen_ids) for row in rows], number)
                self.newly_failed += sum(row.fate == Fate.FAILED for row in rows)
                added, number = added + len(rows), number + 1
        return added

    def _pin_settings(self, config: BaseConfig) -> None:
        """Keep what placed the rows of this catalog; sets of sources may be added."""
        stated = _placement(config)
        while True:
            stored = self._read_settings()
            held = json.loads(stored) if stored else {"sources": {}, **stated}
            for name, value in stated["sources"].items():
                before = held["sources"].setdefault(name, value)
                _check_pinned(f"sources {name}", before, value)
            for name in ("split", "limits"):
                _check_pinned(name, held[name], stated[name])
            pinned = canonical_json(held).encode()
            if pinned == stored or self.storage.compare_and_swap(_SETTINGS, stored, pinned):
                return

    def _read_settings(self) -> bytes | None:
        try:
            return self.storage.read(_SETTINGS)
        except FileNotFoundError:
            return None


def _placement(config: BaseConfig) -> dict[str, Any]:
    """All of a config that rows follow, by set of sources where it belongs to one."""
    sets: dict[str, Any] = {}
    where = ("kind", "url", "uri_column", "bytes_column")
    for spec in config.sources:
        said = spec.model_dump(mode="json", exclude={"package", "paths", *where})
        names = spec.model_dump(mode="json", include=set(where))
        if isinstance(spec, PackageSources):
            sets.update({f"package://{spec.package}/{path}": said for path in spec.paths})
        else:
            sets[" ".join(str(names[part]) for part in where if names.get(part))] = said
    return {"split": config.split.model_dump(), "limits": config.limits.model_dump(), "sources": sets}


def _check_pinned(name: str, before: Any, now: Any) -> None:
    if before != now:
        raise ValueError(
            f"{name}: this catalog was made with {canonical_json(before)}, the config says {canonical_json(now)}: "
            "rows already placed would move; keep the old values, or choose another output"
        )


def _place(uri: str, locator: str, stamp: str) -> str:
    return f"{uri}\n{locator}\n{stamp}"


def _rows_of(batch: pa.RecordBatch) -> Iterator[CatalogRow]:
    return map(CatalogRow._make, zip(*(_values(batch.column(name)) for name in CatalogRow._fields), strict=True))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        words = np.array([*column.dictionary.to_pylist(), ""], object)
        column = words[column.indices.to_numpy()]
    elif pa.types.is_integer(column.type):
        column = column.to_numpy()
    values: list[Any] = column.tolist()
    return values


def _batch_name(number: int) -> str:
    return f"catalog/batch-{number:06d}.parquet"


def _once(row: CatalogRow, seen_ids: _Seen) -> CatalogRow:
    if row.fate != USABLE or seen_ids.add(row.source_id):
        return row
    detail = f"the same bytes as another source with id {row.source_id}"
    return row._replace(fate=Fate.REJECTED.value, reason="duplicate", detail=detail)


def examine(found: Found, spec: AnySources, config: BaseConfig) -> CatalogRow:
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
        role=found.role or ("any" if spec.role in ("by_faces", "by_column") else spec.role),
        fate=USABLE,
        reason="",
        detail="",
    )
    limits = config.limits
    try:
        if found.refusal is not None:
            raise found.refusal
        _check_bytes(found.size_bytes, limits)
        if isinstance(spec, VideoSources):
            with local_copy(found.uri) as path:
                sha256, size = hash_file(path)
                row = row._replace(sha256=sha256, source_id=sha256[:24], size_bytes=size)
                frames, width, height = count_frames(path)
            check_size(width, height, limits.for_decoding())
            if frames < spec.window_frames:
                raise SampleError("too_few_frames", f"{frames} frames; needed: {spec.window_frames}", Fate.REJECTED)
            return row._replace(format="video", width=width, height=height, frames=frames)
        data = read_source(found.uri, found.locator, at_most=limits.max_bytes + 1)
        _check_bytes(len(data), limits)
        sha256 = hashlib.sha256(data).hexdigest()
        row = row._replace(sha256=sha256, source_id=sha256[:24], size_bytes=len(data))
        facts = probe(data, limits.for_decoding())
        row = row._replace(format=facts.format, width=facts.width, height=facts.height)
        return row._replace(role=_role_by_faces(data, limits)) if spec.role == "by_faces" else row
    except SampleError as refusal:
        return row._replace(fate=refusal.fate.value, reason=refusal.reason, detail=refusal.detail)


def _role_by_faces(data: bytes, limits: Limits) -> str:
    pixels, _ = decode_source(data, limits.for_decoding())
    return "portrait" if is_portrait(find_faces(pixels), pixels.shape) else "scene"


def _check_bytes(size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise SampleError("too_many_bytes", f"{size} bytes; at most {limits.max_bytes} are allowed", Fate.REJECTED)
