"""Shards: a byte-stable tar, a parquet with a row for every planned record, and a marker, in that order.

A shard exists once its marker does. The tar is USTAR with fixed owner, mode and time, so the same
records give the same bytes; it is written under a hidden name and moved into place whole.
"""

import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pairforge.config import canonical_json
from pairforge.failpoints import failpoint
from pairforge.records import DamagedError, Fate, Frozen, parse_stored
from pairforge.storage import Storage

KEY_PATTERN = re.compile(r"^[a-z0-9_-]{1,90}$")
FIELD_PATTERN = re.compile(r"^[a-z0-9_]+(\.[a-z0-9]+)?$")

ROW_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("line", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("fate", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("attribution", pa.string(), nullable=False),
        pa.field("degradations", pa.list_(pa.string())),
        pa.field("severities", pa.list_(pa.float32())),
        pa.field("steps", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("lq_bytes", pa.int64()),
        pa.field("hq_bytes", pa.int64()),
        pa.field("lq_sha256", pa.string()),
        pa.field("hq_sha256", pa.string()),
        pa.field("generation", pa.string()),
    ]
)
"""One row for every planned record; the columns after `attribution` are null unless it was kept.

`generation` is JSON of `pairforge.records.Generation`, of rejected records too, where HQ was generated; else null.
"""


class Shard(Frozen):
    """A committed shard and what it holds. `tar_name` is empty when no record of the part was kept."""

    part: str
    fingerprint: str
    line: str
    category: str
    split: str
    tar_name: str
    tar_sha256: str
    tar_md5: str
    tar_bytes: int
    rows_name: str
    rows_sha256: str
    rows_bytes: int
    planned: int
    kept: int
    rejected: int
    failed: int
    reasons: Mapping[str, int]


class Marker(Shard):
    """Written last: says that a shard is complete.

    `production` holds what may differ between two runs that make the same bytes (host, seconds, time).
    """

    production: Mapping[str, Any]

    def shard(self) -> Shard:
        """The marker without what may differ between equal shards."""
        return Shard.model_validate(self.model_dump(exclude={"production"}))


@dataclass(frozen=True)
class ShardName:
    """The three object names of a shard, from its part and its fingerprint."""

    line: str
    category: str
    part: str
    fingerprint: str

    @property
    def stem(self) -> str:
        return f"shards/{self.line}/{self.category}/{self.part}-{self.fingerprint[:8]}"

    @property
    def tar(self) -> str:
        return f"{self.stem}.tar"

    @property
    def rows(self) -> str:
        return f"{self.stem}.parquet"

    @property
    def marker(self) -> str:
        return f"{self.stem}.marker.json"


class _HashingFile:
    """A binary sink that hashes what passes through it."""

    def __init__(self, sink: IO[bytes]) -> None:
        self.sink = sink
        self.sha256 = hashlib.sha256()
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.written = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.md5.update(data)
        self.written += len(data)
        return self.sink.write(data)

    def tell(self) -> int:
        return self.written


class ShardWriter:
    """Collects the records of one part; `commit` publishes tar, parquet and marker, or nothing.

    Use as a context manager: leaving it without `commit` drops everything. Raises ValueError for a key
    or field name that readers of WebDataset tars would split wrongly, and for a key used twice.
    """

    def __init__(self, storage: Storage, name: ShardName, split: str) -> None:
        self._storage = storage
        self._name = name
        self._split = split
        self._rows: list[dict[str, Any]] = []
        self._keys: set[str] = set()
        local = storage.local_path(name.tar)
        folder = local.parent if local is not None else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-", suffix=".tar", delete=False)
        self._sink = _HashingFile(self._file.file)
        self._tar = tarfile.TarFile(fileobj=self._sink, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def add(self, row: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """One planned record: its row, and its files by field (`lq.png`, `json`, ...) if it was kept."""
        key, fate = row["key"], Fate(row["fate"])
        if not KEY_PATTERN.match(key):
            raise ValueError(f"key {key!r}: allowed are 1 to 90 of a-z, 0-9, - and _")
        if key in self._keys:
            raise ValueError(f"key {key!r} stands twice in {self._name.tar}")
        assert bool(files) == (fate is Fate.KEPT), f"{key}: a kept record has files, others have none"
        self._keys.add(key)
        self._rows.append({"line": self._name.line, "category": self._name.category, "split": self._split, **row})
        for extension, data in files.items():
            if not FIELD_PATTERN.match(extension):
                raise ValueError(f"field {extension!r} of {key}: allowed are names such as lq.png or json")
            entry = tarfile.TarInfo(f"{key}.{extension}")
            entry.size, entry.mode = len(data), 0o644
            self._tar.addfile(entry, io.BytesIO(data))
            failpoint("mid-tar")

    def commit(self, production: Mapping[str, Any]) -> Marker:
        """Publish tar, then parquet, then marker. A part without a kept record has no tar."""
        self._tar.close()
        self._file.close()
        fates = Counter(row["fate"] for row in self._rows)
        if fates[Fate.KEPT]:
            self._storage.write_file(self._name.tar, Path(self._file.name))
        failpoint("after-tar")
        rows = self._rows_bytes()
        self._storage.write(self._name.rows, rows)
        failpoint("after-parquet")
        marker = Marker(
            part=self._name.part,
            fingerprint=self._name.fingerprint,
            line=self._name.line,
            category=self._name.category,
            split=self._split,
            tar_name=self._name.tar if fates[Fate.KEPT] else "",
            tar_sha256=self._sink.sha256.hexdigest(),
            tar_md5=self._sink.md5.hexdigest(),
            tar_bytes=self._sink.written if fates[Fate.KEPT] else 0,
            rows_name=self._name.rows,
            rows_sha256=hashlib.sha256(rows).hexdigest(),
            rows_bytes=len(rows),
            planned=len(self._rows),
            kept=fates[Fate.KEPT],
            rejected=fates[Fate.REJECTED],
            failed=fates[Fate.FAILED],
            reasons=dict(sorted(Counter(row["reason"] for row in self._rows if row.get("reason")).items())),
            production=production,
        )
        failpoint("before-marker")
        self._storage.write(self._name.marker, canonical_json(marker).encode())
        return marker

    def _rows_bytes(self) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=ROW_SCHEMA), buffer, compression="zstd")
        return buffer.getvalue()


def read_marker(storage: Storage, name: str) -> Marker:
    """The marker stored under `name`. Raises FileNotFoundError when the shard is not complete, DamagedError
    where it is no marker.
    """
    return parse_stored(Marker, storage.read(name), name)


def read_tar(stream: BinaryIO) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of a tar, in order: key and files by field. Raises ValueError where the tar is malformed."""
    key, files = "", dict[str, bytes]()
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for entry in tar:
                entry_key, _, extension = entry.name.partition(".")
                if not entry.isfile() or not KEY_PATTERN.match(entry_key) or not FIELD_PATTERN.match(extension):
                    raise ValueError(f"entry {entry.name!r} is not a file named KEY.FIELD")
                if entry_key != key:
                    if key:
                        yield key, files
                    if entry_key in seen:
                        raise ValueError(f"entries of {entry_key!r} are not adjacent")
                    key, files = entry_key, {}
                    seen.add(key)
                if extension in files:
                    raise ValueError(f"entry {entry.name!r} stands twice")
                member = tar.extractfile(entry)
                assert member is not None
                files[extension] = member.read()
            stream.seek(tar.offset)
            if stream.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
                raise ValueError("the tar has no end: it was cut off")
    except tarfile.TarError as error:
        raise ValueError(f"not a readable tar: {error}") from error
    if key:
        yield key, files


def read_shard(storage: Storage, tar_name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of a stored shard: key and files by field, in order."""
    with storage.open(tar_name) as stream:
        yield from read_tar(stream)


def sample_json(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The JSON field of a sample."""
    loaded: dict[str, Any] = json.loads(files["json"])
    return loaded


def read_rows(storage: Storage, names: Sequence[str], columns: Sequence[str] | None) -> pa.Table:
    """Rows of several shards as one table, in the order of `names`.

    Raises ValueError for a column that rows do not have, DamagedError where a file does not hold rows.
    """
    wanted = list(ROW_SCHEMA.names if columns is None else columns)
    unknown = sorted(set(wanted) - set(ROW_SCHEMA.names))
    if unknown:
        raise ValueError(f"no column {', '.join(unknown)}; allowed: {', '.join(ROW_SCHEMA.names)}")
    schema = pa.schema([ROW_SCHEMA.field(name) for name in wanted])
    return pa.concat_tables([schema.empty_table(), *(_read_table(storage, name, wanted) for name in names)])


def _read_table(storage: Storage, name: str, columns: list[str]) -> pa.Table:
    data = pa.BufferReader(storage.read(name))
    try:
        # Without threads: Arrow's pool may abort a process that ends right after a read.
        table = pq.ParquetFile(data).read(columns=columns, use_threads=False)
        if "generation" in columns and "generation" not in table.column_names:  # as of before there were any
            table = table.append_column("generation", pa.nulls(len(table), pa.string()))
        return table.select(columns)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DamagedError(f"{name} does not hold rows: {error}") from error
