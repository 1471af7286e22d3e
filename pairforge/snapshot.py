"""Snapshots: immutable, dated lists of shards. They alone name shards; `latest` points at one.

snapshot = open_snapshot("out/demo")            # or s3://bucket/demo, or .../snapshots/20260131-0a1b2c3d
snapshot.rows()                                  # pyarrow table, a row for every planned record
for sample in snapshot.dataset(categories=["haze"], splits=["train"]):
    sample["lq"], sample["hq"], sample["json"]   # (H, W, 3) uint8 RGB twice, dict
"""

import datetime
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pairforge.cards import describe
from pairforge.config import canonical_json
from pairforge.failpoints import failpoint
from pairforge.image import decode_png
from pairforge.manifest import DESCRIPTIONS, Manifest, Pointer, content_of
from pairforge.records import SCHEMA_VERSION, DamagedError, Fate, InfraError, parse_sample, parse_stored
from pairforge.shards import ROW_SCHEMA, Marker, Shard, read_rows, read_shard, sample_json
from pairforge.storage import Storage, open_storage

LATEST = "snapshots/latest.json"
_PINNED = re.compile(r"^(?P<root>.+)/snapshots/(?P<id>\d{8}-[0-9a-f]{8})/?$")


@dataclass(frozen=True)
class Snapshot:
    """A readable snapshot; `storage` is the root of the dataset it belongs to."""

    storage: Storage
    manifest: Manifest

    def shards(self, categories: Sequence[str] | None = None, splits: Sequence[str] | None = None) -> tuple[Shard, ...]:
        """Shards of the given categories and splits; of all where None.

        Raises ValueError for a category or split that the snapshot does not have.
        """
        for wanted, name in ((categories, "category"), (splits, "split")):
            held = {getattr(shard, name) for shard in self.manifest.shards}
            unknown = sorted(set(wanted or ()) - held)
            if unknown:
                raise ValueError(f"no {name} {', '.join(unknown)} in {self.manifest.id}; it has {sorted(held)}")
        return tuple(
            shard
            for shard in self.manifest.shards
            if (categories is None or shard.category in categories) and (splits is None or shard.split in splits)
        )

    def rows(self, columns: Sequence[str] | None = None, include_excluded: bool = False) -> pa.Table:
        """A row for every planned record (schema: `pairforge.shards.ROW_SCHEMA`), without those that review excluded.

        Raises ValueError for a column that rows do not have.
        """
        names = [shard.rows_name for shard in self.manifest.shards]
        wanted = list(ROW_SCHEMA.names if columns is None else columns)
        table = read_rows(self.storage, names, list(dict.fromkeys([*wanted, "key"])))
        if self.excluded and not include_excluded:
            table = table.filter(pc.invert(pc.is_in(table["key"], pa.array(self.manifest.excluded))))
        return table.select(wanted)

    def dataset(
        self,
        categories: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        split_shards: bool = True,
    ) -> Any:
        """A `webdataset` pipeline of `{__key__, lq, hq, json}`: uint8 RGB arrays (H, W, 3) and a dict.

        Shards are divided among nodes and loader workers; `split_shards=False` gives every reader all
        of them. Order is that of the snapshot; shuffle with `.shuffle(n)`.
        """
        import webdataset as wds

        names = [shard.tar_name for shard in self.shards(categories, splits) if shard.tar_name]
        divide = [wds.split_by_node, wds.split_by_worker] if split_shards else []
        read = partial(_read_samples, self.storage, frozenset(self.manifest.excluded))
        return wds.FluidWrapper(partial(_list_shards, names)).compose(*divide, read)

    def summary(self) -> list[dict[str, Any]]:
        """Counts and bytes by category, and their total as the last row."""
        fields = ("planned", "kept", "rejected", "failed", "bytes")
        rows: dict[str, dict[str, Any]] = {}
        for shard in self.manifest.shards:
            for category in (shard.category, "total"):
                row = rows.setdefault(category, {"category": category, **dict.fromkeys(fields, 0)})
                for name in fields[:-1]:
                    row[name] += getattr(shard, name)
                row["bytes"] += shard.tar_bytes + shard.rows_bytes
        return [*(rows[name] for name in sorted(rows) if name != "total"), *([rows["total"]] if rows else [])]

    def reasons(self) -> dict[str, int]:
        """How many records were rejected or failed, by reason."""
        counts: dict[str, int] = {}
        for shard in self.manifest.shards:
            for reason, count in shard.reasons.items():
                counts[reason] = counts.get(reason, 0) + count
        return dict(sorted(counts.items()))

    def find(self, key: str) -> tuple[Shard, dict[str, bytes]]:
        """The shard and the files of one kept record. Raises KeyError if the snapshot has none."""
        for shard in self.manifest.shards:
            keys = read_rows(self.storage, [shard.rows_name], ["key"])["key"]
            if shard.tar_name and pc.any(pc.equal(keys, key)).as_py():
                for found, files in read_shard(self.storage, shard.tar_name):
                    if found == key:
                        return shard, files
        raise KeyError(f"no kept record {key!r} in snapshot {self.manifest.id}")

    def first_keys(self, count: int) -> list[str]:
        """A few kept keys, from different categories where there are some."""
        found: dict[str, str] = {}
        for shard in self.manifest.shards:
            if shard.tar_name and shard.category not in found and len(found) < count:
                rows = read_rows(self.storage, [shard.rows_name], ["key", "fate"]).to_pylist()
                kept = (row["key"] for row in rows if row["fate"] == Fate.KEPT)
                if (key := next((key for key in kept if key not in self.excluded), None)) is not None:
                    found[shard.category] = key
        return list(found.values())

    @cached_property
    def excluded(self) -> frozenset[str]:
        """Keys that readers leave out."""
        return frozenset(self.manifest.excluded)


def _list_shards(names: Sequence[str]) -> Iterator[dict[str, str]]:
    for name in names:
        yield {"url": name}


def _read_samples(
    storage: Storage, excluded: frozenset[str], shards: Iterable[Mapping[str, str]]
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for key, files in read_shard(storage, shard["url"]):
            if key not in excluded:
                yield {
                    "__key__": key,
                    "__url__": shard["url"],
                    "lq": decode_png(files["lq.png"]),
                    "hq": decode_png(files["hq.png"]),
                    "json": sample_json(files),
                }


def open_snapshot(url: str) -> Snapshot:
    """Open the latest snapshot of a dataset, or a pinned one by its own URL.

    Raises FileNotFoundError where nothing was published, DamagedError where the manifest or the pointer to
    it is not what was written.
    """
    pinned = _PINNED.match(url)
    if pinned:
        storage = open_storage(pinned["root"])
        try:
            manifest = _load_manifest(storage, pinned["id"])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no snapshot {url}; written are: {_listed(storage)}") from error
        check_manifest(manifest, pinned["id"])
        return Snapshot(storage, manifest)
    storage = open_storage(url)
    pointer = read_latest(storage)
    if pointer is None:
        written = _listed(storage)
        hint = f" (written, but {LATEST} does not point at them: {written})" if written else ""
        raise FileNotFoundError(f"no snapshot has been published below {url}{hint}")
    return Snapshot(storage, _load_latest(storage, pointer))


def _listed(storage: Storage) -> str:
    names = [entry.name for entry in storage.list("snapshots/") if entry.name.endswith("/manifest.json")]
    return ", ".join(name.split("/")[1] for name in names)


def _load_latest(storage: Storage, pointer: Pointer) -> Manifest:
    try:
        return _load_manifest(storage, pointer.snapshot, pointer.manifest_sha256)
    except FileNotFoundError as error:
        raise DamagedError(f"{LATEST} points at snapshot {pointer.snapshot}, which is not there") from error


def _load_manifest(storage: Storage, snapshot_id: str, sha256: str | None = None) -> Manifest:
    name = f"snapshots/{snapshot_id}/manifest.json"
    data = storage.read(name)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedError(f"{name} does not have the SHA-256 that {LATEST} names: one of the two was changed")
    manifest = parse_stored(Manifest, data, name)
    if manifest.schema_version > SCHEMA_VERSION:
        raise ValueError(f"{name} has schema {manifest.schema_version}; this version reads up to {SCHEMA_VERSION}")
    return manifest


def check_manifest(manifest: Manifest, snapshot_id: str) -> None:
    """Raises DamagedError where a manifest does not agree with its own fingerprint, or with its place."""
    name = f"snapshots/{snapshot_id}/manifest.json"
    if manifest.computed_content() != manifest.content:
        raise DamagedError(f"{name} does not have the content that it names: it was changed")
    if not manifest.id == snapshot_id == _snapshot_id(manifest.date, manifest.content):
        raise DamagedError(f"{name} says that it is snapshot {manifest.id} of {manifest.date}: it was changed or moved")


def _snapshot_id(date: str, content: str) -> str:
    return f"{date.replace('-', '')}-{content[:8]}"


def read_latest(storage: Storage) -> Pointer | None:
    """Where `latest` points, or None before the first snapshot. Raises DamagedError where it is no pointer."""
    try:
        return parse_stored(Pointer, storage.read(LATEST), LATEST)
    except FileNotFoundError:
        return None


def write_snapshot(
    storage: Storage,
    name: str,
    shards: Sequence[Shard],
    sources: Mapping[str, int],
    licences: Sequence[str],
    excluded: Sequence[str],
    extra: Mapping[str, bytes],
) -> Manifest:
    """Write a snapshot without publishing it; the manifest comes last, so a reader never sees half of one.

    The same content gives the same snapshot: if `latest` holds it, or it was written today, that one is returned.
    """
    assert not set(extra) & set(DESCRIPTIONS), f"{sorted(extra)} would be overwritten"
    bare = [s.shard() if isinstance(s, Marker) else s for s in shards]
    ordered = tuple(sorted(bare, key=lambda shard: (shard.line, shard.category, shard.part)))
    held = (tuple(sorted(excluded)), dict(sources), tuple(sorted(set(licences))))
    hashes = {key: hashlib.sha256(data).hexdigest() for key, data in extra.items()}
    content = content_of(name, ordered, *held, hashes)
    pointer = read_latest(storage)
    if pointer is not None:
        current = _load_latest(storage, pointer)
        if current.content == content:
            return current
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    snapshot_id = _snapshot_id(date, content)
    try:
        written = _load_manifest(storage, snapshot_id)
        check_manifest(written, snapshot_id)
        return written
    except FileNotFoundError:
        pass
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        id=snapshot_id,
        content=content,
        date=date,
        name=name,
        shards=ordered,
        excluded=held[0],
        sources=held[1],
        licences=held[2],
        files=hashes,
    )
    files = {**extra, **describe(manifest)}
    manifest = manifest.model_copy(
        update={"files": {key: hashlib.sha256(data).hexdigest() for key, data in files.items()}}
    )
    for key, data in files.items():
        storage.write(f"snapshots/{manifest.id}/{key}", data)
        failpoint("mid-snapshot")
    storage.write(f"snapshots/{manifest.id}/manifest.json", canonical_json(manifest).encode())
    return manifest


def publish(storage: Storage, manifest: Manifest, attempts: int = 10) -> bool:
    """Move `latest` to a written snapshot by compare-and-swap; False if it was there already.

    Raises InfraError when other writers moved it `attempts` times in between.
    """
    data = storage.read(f"snapshots/{manifest.id}/manifest.json")
    sha256 = hashlib.sha256(data).hexdigest()
    for _ in range(attempts):
        try:
            before: bytes | None = storage.read(LATEST)
        except FileNotFoundError:
            before = None
        pointer = parse_stored(Pointer, before, LATEST) if before is not None else None
        if pointer is not None and pointer.snapshot == manifest.id:
            return False
        after = Pointer(snapshot=manifest.id, manifest_sha256=sha256, fence=pointer.fence + 1 if pointer else 1)
        failpoint("before-latest")
        if storage.compare_and_swap(LATEST, before, canonical_json(after).encode()):
            return True
    raise InfraError(f"{LATEST} was moved by another writer {attempts} times; nothing was published")


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` read and every fault it found."""

    shards: int
    samples: int
    bytes: int
    problems: tuple[str, ...]


def verify(snapshot: Snapshot, seen: Callable[[Shard], None] = lambda shard: None) -> VerifyReport:
    """Read every byte of a snapshot: checksums, tar rules, counts, rows against tars, hashes in records.

    Faults are listed, never raised; `seen` is called after each shard.
    """
    problems: list[str] = []
    keys: set[str] = set()
    samples = size = 0
    storage, manifest = snapshot.storage, snapshot.manifest
    try:
        check_manifest(manifest, manifest.id)
    except DamagedError as error:
        problems.append(str(error))
    for name, sha256 in manifest.files.items():
        problems += _check_object(storage, f"snapshots/{manifest.id}/{name}", sha256, None)
    for shard in manifest.shards:
        found, read, faults = _verify_shard(storage, shard)
        problems += [f"{shard.rows_name.removesuffix('.parquet')}: {fault}" for fault in faults]
        twice = keys & found
        problems += [f"{shard.rows_name}: key {key} stands in another shard too" for key in sorted(twice)]
        keys |= found
        samples += read
        size += shard.tar_bytes + shard.rows_bytes
        seen(shard)
    if not problems:
        problems += [f"excluded key {key} is in no shard" for key in sorted(snapshot.excluded - keys)]
    return VerifyReport(len(manifest.shards), samples, size, tuple(problems))


def _check_object(storage: Storage, name: str, sha256: str, size: int | None) -> list[str]:
    digest, length = hashlib.sha256(), 0
    try:
        with storage.open(name) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                length += len(block)
    except FileNotFoundError:
        return [f"{name} is missing"]
    except ValueError as error:
        return [str(error)]
    except OSError as error:
        raise InfraError(f"{storage.url(name)}: {error}") from error
    if size is not None and length != size:
        return [f"{name} has {length} bytes, {size} were committed"]
    return [] if digest.hexdigest() == sha256 else [f"{name} does not have its SHA-256: it was changed"]


def _verify_shard(storage: Storage, shard: Shard) -> tuple[set[str], int, list[str]]:
    """Keys of a shard's rows, how many samples were read, and its faults."""
    problems = _check_object(storage, shard.rows_name, shard.rows_sha256, shard.rows_bytes)
    if shard.tar_name:
        problems += _check_object(storage, shard.tar_name, shard.tar_sha256, shard.tar_bytes)
    if shard.planned != shard.kept + shard.rejected + shard.failed:
        problems.append(f"planned {shard.planned} is not kept + rejected + failed")
    if problems:
        return set(), 0, problems
    try:
        table = read_rows(storage, [shard.rows_name], ["key", "fate", "lq_sha256", "hq_sha256"])
        rows = {row["key"]: row for row in table.to_pylist()}
        samples = list(_sample_faults(storage, shard, rows)) if shard.tar_name else []
    except (ValueError, FileNotFoundError) as error:
        return set(), 0, [str(error)]
    fates = [row["fate"] for row in rows.values()]
    counted = (table.num_rows, *(fates.count(fate) for fate in Fate))
    stated = (shard.planned, shard.kept, shard.rejected, shard.failed)
    if counted != stated:
        problems.append(f"its rows count {counted} planned, kept, rejected and failed; the manifest says {stated}")
    if [key for key, _ in samples] != [key for key, row in rows.items() if row["fate"] == Fate.KEPT]:
        problems.append("the tar does not hold exactly the kept records, in the order of the rows")
    return set(rows), len(samples), problems + [f"{key}: {fault}" for key, faults in samples for fault in faults]


def _sample_faults(
    storage: Storage, shard: Shard, rows: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, list[str]]]:
    for key, files in read_shard(storage, shard.tar_name):
        faults = [f"{name} is missing" for name in ("json", "lq.png", "hq.png") if name not in files]
        if "json" in files:
            faults += _json_faults(shard, key, files, rows.get(key, {}))
        yield key, faults


def _json_faults(shard: Shard, key: str, files: Mapping[str, bytes], row: Mapping[str, Any]) -> Iterator[str]:
    try:
        sample = parse_sample(files["json"], f"{key}.json")
    except DamagedError as error:
        yield str(error)
        return
    if (sample.key, sample.category, sample.split) != (key, shard.category, shard.split):
        yield "its JSON names another key, category or split"
    for side in ("lq", "hq"):
        digest = hashlib.sha256(files.get(f"{side}.png", b"")).hexdigest()
        if {getattr(sample, f"{side}_sha256"), row.get(f"{side}_sha256")} != {digest}:
            yield f"{side}.png does not have the SHA-256 that its JSON and its row state"
