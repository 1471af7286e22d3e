"""Snapshots: immutable, dated lists of shards. They alone name shards; `latest` points at one.

snapshot = open_snapshot("out/demo")            # or s3://bucket/demo, or .../snapshots/20260131-0a1b2c3d
snapshot.rows()                                  # pyarrow table, a row for every planned record
for sample in snapshot.dataset(categories=["haze"], splits=["train"]):
    sample["lq"], sample["hq"], sample["json"]   # (H, W, 3) uint8 RGB twice, dict
"""

import datetime
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pairforge.config import canonical_json, fingerprint
from pairforge.image import decode_png
from pairforge.records import SCHEMA_VERSION, Frozen, InfraError, Sample
from pairforge.shards import Marker, Shard, read_rows, read_shard, sample_json
from pairforge.storage import Storage, open_storage

LATEST = "snapshots/latest.json"
_PINNED = re.compile(r"^(?P<root>.+)/snapshots/(?P<id>\d{8}-[0-9a-f]{8})/?$")


class Manifest(Frozen):
    """What a snapshot holds. `content` is the fingerprint of everything but the date and the card."""

    schema_version: int
    id: str
    content: str
    date: str
    name: str
    shards: tuple[Shard, ...]
    excluded: tuple[str, ...]
    sources: Mapping[str, int]
    licences: tuple[str, ...]
    files: Mapping[str, str]


class Pointer(Frozen):
    """Content of `latest.json`. `fence` grows by one with every move and never falls."""

    snapshot: str
    manifest_sha256: str
    fence: int


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
        """A row for every planned record (schema: `pairforge.shards.ROW_SCHEMA`)."""
        names = [shard.rows_name for shard in self.manifest.shards]
        if include_excluded or not self.manifest.excluded:
            return read_rows(self.storage, names, columns)
        table = read_rows(self.storage, names, columns and sorted({*columns, "key"}))
        kept = pc.invert(pc.is_in(table["key"], pa.array(self.manifest.excluded)))
        return table.filter(kept).select(columns or table.column_names)

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
        return wds.DataPipeline(partial(_list_shards, names), *divide, read)

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
                found[shard.category] = next(row["key"] for row in rows if row["fate"] == "kept")
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

    Raises FileNotFoundError where nothing was published, ValueError where the manifest is damaged.
    """
    pinned = _PINNED.match(url)
    if pinned:
        storage = open_storage(pinned["root"])
        return Snapshot(storage, _load_manifest(storage, pinned["id"], None))
    storage = open_storage(url)
    pointer = read_latest(storage)
    if pointer is None:
        raise FileNotFoundError(f"no snapshot has been published below {url}")
    return Snapshot(storage, _load_manifest(storage, pointer.snapshot, pointer.manifest_sha256))


def _load_manifest(storage: Storage, snapshot_id: str, sha256: str | None) -> Manifest:
    name = f"snapshots/{snapshot_id}/manifest.json"
    data = storage.read(name)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{name} does not have the SHA-256 that {LATEST} names: it was changed")
    manifest = Manifest.model_validate_json(data)
    if manifest.schema_version > SCHEMA_VERSION:
        raise ValueError(f"{name} has schema {manifest.schema_version}; this version reads up to {SCHEMA_VERSION}")
    return manifest


def read_latest(storage: Storage) -> Pointer | None:
    """Where `latest` points, or None before the first snapshot."""
    try:
        return Pointer.model_validate_json(storage.read(LATEST))
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

    The same content gives the same snapshot: if `latest` holds it already, that one is returned.
    """
    bare = [Shard.model_validate(s.model_dump(exclude={"production"})) if isinstance(s, Marker) else s for s in shards]
    ordered = sorted(bare, key=lambda shard: (shard.line, shard.category, shard.part))
    content = fingerprint(
        {
            "name": name,
            "shards": [shard.model_dump(mode="json") for shard in ordered],
            "excluded": sorted(excluded),
            "sources": dict(sources),
            "extra": {key: hashlib.sha256(data).hexdigest() for key, data in extra.items()},
        }
    )
    pointer = read_latest(storage)
    if pointer is not None:
        current = _load_manifest(storage, pointer.snapshot, pointer.manifest_sha256)
        if current.content == content:
            return current
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    snapshot_id = f"{date.replace('-', '')}-{content[:8]}"
    files = {**extra, "wids.json": _wids_index(ordered, name), "sizes.json": _sizes(ordered)}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        id=snapshot_id,
        content=content,
        date=date,
        name=name,
        shards=tuple(ordered),
        excluded=tuple(sorted(excluded)),
        sources=dict(sources),
        licences=tuple(sorted(set(licences))),
        files={key: hashlib.sha256(data).hexdigest() for key, data in files.items()},
    )
    for key, data in files.items():
        storage.write(f"snapshots/{snapshot_id}/{key}", data)
    storage.write(f"snapshots/{snapshot_id}/README.md", dataset_card(manifest).encode())
    storage.write(f"snapshots/{snapshot_id}/manifest.json", canonical_json(manifest).encode())
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
        pointer = Pointer.model_validate_json(before) if before else None
        if pointer is not None and pointer.snapshot == manifest.id:
            return False
        after = Pointer(snapshot=manifest.id, manifest_sha256=sha256, fence=pointer.fence + 1 if pointer else 1)
        if storage.compare_and_swap(LATEST, before, canonical_json(after).encode()):
            return True
    raise InfraError(f"{LATEST} was moved by another writer {attempts} times; nothing was published")


def _wids_index(shards: Sequence[Shard], name: str) -> bytes:
    entries = [
        {
            "url": f"../../{shard.tar_name}",
            "md5sum": shard.tar_md5,
            "nsamples": shard.kept,
            "filesize": shard.tar_bytes,
        }
        for shard in shards
        if shard.tar_name
    ]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": entries}
    return json.dumps(index, indent=1).encode()


def _sizes(shards: Sequence[Shard]) -> bytes:
    counts = {shard.tar_name.rpartition("/")[2]: shard.kept for shard in shards if shard.tar_name}
    assert len(counts) == sum(bool(shard.tar_name) for shard in shards), "two shards share a base name"
    return json.dumps(counts, indent=1).encode()


def dataset_card(manifest: Manifest) -> str:
    """README.md of a snapshot, with the YAML header that dataset hubs read."""
    kept = sum(shard.kept for shard in manifest.shards)
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    size = next((label for bound, label in bounds if kept < bound), "1M<n<10M" if kept < 10**7 else "n>10M")
    lines = ["---", "license: other", "task_categories: [image-to-image]", f"size_categories: ['{size}']"]
    lines.append("configs:")
    for category in sorted({shard.category for shard in manifest.shards}):
        lines.append(f"- config_name: {category}\n  data_files:")
        for split in sorted({s.split for s in manifest.shards if s.category == category and s.tar_name}):
            names = [s.tar_name for s in manifest.shards if (s.category, s.split) == (category, split)]
            lines.append(f"  - split: {split}\n    path: {json.dumps([f'../../{name}' for name in names if name])}")
    lines += ["---", "", f"# {manifest.name}, snapshot {manifest.id}", ""]
    lines.append(f"{kept} pairs for image restoration. Licences of the sources: {', '.join(manifest.licences)}.")
    lines.append("Every sample's JSON holds its source, licence, attribution and the steps that made it.")
    return "\n".join(lines) + "\n"


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
    for name, sha256 in manifest.files.items():
        problems += _check_object(storage, f"snapshots/{manifest.id}/{name}", sha256, None)
    for shard in manifest.shards:
        found, faults = _verify_shard(storage, shard)
        problems += [f"{shard.rows_name.removesuffix('.parquet')}: {fault}" for fault in faults]
        twice = keys & found
        problems += [f"{shard.rows_name}: key {key} stands in another shard too" for key in sorted(twice)]
        keys |= found
        samples += shard.kept
        size += shard.tar_bytes + shard.rows_bytes
        seen(shard)
    lost = sorted(snapshot.excluded - keys)
    problems += [f"excluded key {key} is in no shard" for key in lost]
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
    if size is not None and length != size:
        return [f"{name} has {length} bytes, {size} were committed"]
    return [] if digest.hexdigest() == sha256 else [f"{name} does not have its SHA-256: it was changed"]


def _verify_shard(storage: Storage, shard: Shard) -> tuple[set[str], list[str]]:
    problems = _check_object(storage, shard.rows_name, shard.rows_sha256, shard.rows_bytes)
    if shard.tar_name:
        problems += _check_object(storage, shard.tar_name, shard.tar_sha256, shard.tar_bytes)
    if shard.planned != shard.kept + shard.rejected + shard.failed:
        problems.append(f"planned {shard.planned} is not kept + rejected + failed")
    if problems:
        return set(), problems
    table = read_rows(storage, [shard.rows_name], ["key", "fate", "lq_sha256", "hq_sha256"])
    rows = {row["key"]: row for row in table.to_pylist()}
    fates = [row["fate"] for row in rows.values()]
    counted = (len(rows), *(fates.count(fate) for fate in ("kept", "rejected", "failed")))
    if counted != (shard.planned, shard.kept, shard.rejected, shard.failed):
        problems.append(f"its rows count {counted}, the manifest says otherwise")
    kept = [key for key, row in rows.items() if row["fate"] == "kept"]
    try:
        samples = list(_sample_faults(storage, shard, rows)) if shard.tar_name else []
    except ValueError as error:
        return set(rows), [*problems, str(error)]
    if [key for key, _ in samples] != kept:
        problems.append("the tar does not hold exactly the kept records, in the order of the rows")
    return set(rows), problems + [f"{key}: {fault}" for key, faults in samples for fault in faults]


def _sample_faults(
    storage: Storage, shard: Shard, rows: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, list[str]]]:
    fields: set[str] | None = None
    for key, files in read_shard(storage, shard.tar_name):
        faults = []
        required = {name for name in files if name != "base.png"}
        if fields is not None and required != fields:
            faults.append(f"fields {sorted(files)} differ from the sample before it")
        fields = required
        sample = Sample.model_validate_json(files["json"])
        if (sample.key, sample.category, sample.split) != (key, shard.category, shard.split):
            faults.append("its JSON names another key, category or split")
        for side in ("lq", "hq"):
            digest = hashlib.sha256(files[f"{side}.png"]).hexdigest()
            stated = {getattr(sample, f"{side}_sha256"), rows.get(key, {}).get(f"{side}_sha256")}
            if stated != {digest}:
                faults.append(f"{side}.png does not have the SHA-256 that its JSON and its row state")
        yield key, faults
