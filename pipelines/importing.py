"""`pairforge import`: existing LQ/HQ folders become a snapshot like any other, so that sets can be mixed.

The layout is that of BasicSR: two folders with equal file names. Pixels are kept as they are, coded as
PNG. A pair whose sides differ in size, or that lacks one, is a row with its reason.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import Field, ValidationError

from pairforge.config import canonical_json, faults_of, fingerprint
from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels, encode_png
from pairforge.manifest import Manifest
from pairforge.records import SCHEMA_VERSION, Fate, Frozen, InfraError, Sample, SampleError, SourceRef
from pairforge.shards import ShardName, ShardWriter
from pairforge.snapshot import open_snapshot, publish, write_snapshot
from pairforge.storage import Storage, open_storage
from pipelines.catalog import split_of
from pipelines.entries import PHOTO_SUFFIXES, Entry, list_entries
from pipelines.publication import read_markers
from pipelines.reading import read_source
from pipelines.settings import Name, SplitFractions
from pipelines.synthesis import pixel_versions

LINE = "imported"
_LIMITS = DecodeLimits(max_bytes=10**9, max_pixels=150_000_000, max_side=32_000, min_side=1)
_READERS = 8


class ImportSettings(Frozen):
    """What `pairforge import` is told. `splits` places pairs by the hash of their name."""

    name: Name
    category: Name
    lq: str
    hq: str
    licence: Annotated[str, Field(min_length=1)]
    attribution: str
    splits: SplitFractions
    records_per_shard: Annotated[int, Field(ge=1, le=100_000)]


def import_settings(options: Mapping[str, Any]) -> ImportSettings:
    """Settings of what the command was given, by name. Raises ValueError that names every wrong option."""
    try:
        return ImportSettings.model_validate(options)
    except ValidationError as error:
        told = [
            f"--{fault.key.rpartition('.')[2].replace('_', '-')}: {fault.message}"
            for fault in faults_of(error, ImportSettings)
        ]
        raise ValueError("; ".join(told)) from error


@dataclass(frozen=True)
class Pair:
    """Two files of one name below their folders; a side is None where its file is missing."""

    name: str
    lq: Entry | None
    hq: Entry | None

    @property
    def uri(self) -> str:
        entry = self.lq or self.hq
        assert entry is not None
        return entry.uri


@dataclass(frozen=True)
class HashedPair:
    """A pair with the SHA-256 of each side, or why it has none; `source_id` is that of the LQ side."""

    pair: Pair
    lq: str | SampleError
    hq: str | SampleError

    @property
    def source_id(self) -> str:
        return self.lq[:24] if isinstance(self.lq, str) else hashlib.sha256(self.pair.uri.encode()).hexdigest()[:24]


Record = tuple[str, HashedPair]
"""A record's key and its pair."""


def list_pairs(lq: str, hq: str) -> list[Pair]:
    """LQ files by name, each with the HQ file of the same name without extension, then HQ files without LQ.

    Raises FileNotFoundError or ValueError where a folder is missing or has no image, ValueError where two
    files of a folder differ in their extension alone.
    """
    sides = [_by_name(folder) for folder in (lq, hq)]
    names = [*sides[0], *(name for name in sides[1] if name not in sides[0])]
    return [Pair(name, sides[0].get(name), sides[1].get(name)) for name in names]


def _by_name(folder: str) -> dict[str, Entry]:
    names: dict[str, Entry] = {}
    for entry in list_entries(folder):
        path = PurePosixPath(entry.relative)
        if path.suffix.lower() not in PHOTO_SUFFIXES or path.name.startswith("."):
            continue
        name = str(path.with_suffix(""))
        if name in names:
            raise ValueError(f"{names[name].uri} and {entry.uri} have one name: which of them is meant?")
        names[name] = entry
    if not names:
        raise ValueError(f"{folder} holds no image; extensions that count: {' '.join(sorted(PHOTO_SUFFIXES))}")
    return names


def import_pairs(
    settings: ImportSettings,
    output: str,
    on_list: Callable[[int], None] = lambda pairs: None,
    on_pair: Callable[[], None] = lambda: None,
) -> tuple[Manifest, int]:
    """Write shards of all pairs and publish a snapshot; also how many shards were new.

    `on_list` is told how many pairs there are, `on_pair` is called when one is done with. Raises ValueError
    when `output` belongs to a run or to another imported set, whose snapshots would be hidden.
    """
    storage = open_storage(output)
    _check_free(storage, settings, output)
    pairs = list_pairs(settings.lq, settings.hq)
    on_list(len(pairs))
    by_split: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_split.setdefault(split_of(pair.name, settings.splits), []).append(pair)
    names: list[ShardName] = []
    made, seen = 0, Counter[str]()
    for split, members in sorted(by_split.items()):
        for number, start in enumerate(range(0, len(members), settings.records_per_shard)):
            records = _identify(settings, members[start : start + settings.records_per_shard], seen)
            name = _shard_name(settings, f"{split}-{number:06d}", records)
            names.append(name)
            if not storage.exists(name.marker):
                _write_shard(storage, name, split, settings, records, on_pair)
                made += 1
            else:
                for _ in records:
                    on_pair()
    markers = read_markers(storage, names)
    manifest = write_snapshot(
        storage,
        name=settings.name,
        shards=markers,
        sources={"seen": sum(marker.planned for marker in markers)},
        licences=[settings.licence],
        excluded=[],
        extra={"import.json": canonical_json(settings.model_dump(exclude={"lq", "hq"})).encode()},
    )
    publish(storage, manifest)
    return manifest, made


def _check_free(storage: Storage, settings: ImportSettings, output: str) -> None:
    if next(storage.list("catalog/"), None) is not None:
        raise ValueError(f"{output} is the output of a run; choose another folder for imported pairs")
    try:
        held = open_snapshot(output).manifest
    except FileNotFoundError:
        return
    if held.name != settings.name:
        raise ValueError(f"{output} holds the set {held.name!r}; choose another folder for {settings.name!r}")


def _identify(settings: ImportSettings, pairs: Sequence[Pair], seen: Counter[str]) -> list[Record]:
    with ThreadPoolExecutor(_READERS) as pool:
        hashed = list(pool.map(_hash_pair, pairs))
    records = []
    for pair in hashed:
        records.append((f"{settings.name}-{pair.source_id}-v{seen[pair.source_id]}", pair))
        seen[pair.source_id] += 1
    return records


def _hash_pair(pair: Pair) -> HashedPair:
    sides: list[str | SampleError] = []
    for side, entry in (("LQ", pair.lq), ("HQ", pair.hq)):
        try:
            sides.append(hashlib.sha256(_read(pair, side, entry)).hexdigest())
        except SampleError as refusal:
            sides.append(refusal)
    return HashedPair(pair, *sides)


def _read(pair: Pair, side: str, entry: Entry | None) -> bytes:
    if entry is None:
        raise SampleError("no_partner", f"there is no {side} file for {pair.name}", Fate.REJECTED)
    if entry.refusal is not None:
        raise entry.refusal
    if entry.size_bytes > _LIMITS.max_bytes:
        raise SampleError("too_many_bytes", f"{entry.uri} has {entry.size_bytes} bytes", Fate.REJECTED)
    return read_source(entry.uri, "")


def _shard_name(settings: ImportSettings, part: str, records: Sequence[Record]) -> ShardName:
    described = {
        "schema": SCHEMA_VERSION,
        "settings": settings.model_dump(mode="json", exclude={"lq", "hq", "splits", "records_per_shard"}),
        "records": [
            (key, hashed.pair.name, hashed.pair.uri, _identity(hashed.lq), _identity(hashed.hq))
            for key, hashed in records
        ],
    }
    return ShardName(LINE, settings.category, part, fingerprint(described))


def _identity(side: str | SampleError) -> str:
    return side.reason if isinstance(side, SampleError) else side


def _write_shard(
    storage: Storage,
    name: ShardName,
    split: str,
    settings: ImportSettings,
    records: Sequence[Record],
    on_pair: Callable[[], None],
) -> None:
    with ShardWriter(storage, name, split) as writer:
        for key, hashed in records:
            row = {
                "key": key,
                "recipe": settings.name,
                "variant": int(key.rpartition("v")[2]),
                "source_id": hashed.source_id,
                "uri": hashed.pair.uri,
                "group": hashed.pair.name,
                "licence": settings.licence,
                "attribution": settings.attribution,
            }
            try:
                columns, files = _pack(settings, split, row, hashed)
                writer.add({**row, "fate": Fate.KEPT.value, **columns}, files)
            except SampleError as refusal:
                fate = {"fate": refusal.fate.value, "reason": refusal.reason, "detail": refusal.detail}
                writer.add({**row, **fate}, {})
            on_pair()
        writer.commit({})


def _pack(
    settings: ImportSettings, split: str, row: Mapping[str, Any], hashed: HashedPair
) -> tuple[dict[str, Any], dict[str, bytes]]:
    if row["variant"] > 0:
        raise SampleError("duplicate", f"{row['uri']} has the bytes of another LQ file", Fate.REJECTED)
    lq, hq = _decode_sides(hashed)
    if lq.shape != hq.shape:
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (lq, hq)]
        raise SampleError("wrong_size", f"LQ is {sizes[0]}, HQ is {sizes[1]}; both must be equal", Fate.REJECTED)
    files = {"lq.png": encode_png(lq), "hq.png": encode_png(hq)}
    height, width = lq.shape[:2]
    digests = {f"{side}_sha256": hashlib.sha256(files[f"{side}.png"]).hexdigest() for side in ("lq", "hq")}
    sample = Sample(
        key=row["key"],
        line=LINE,
        category=settings.category,
        split=split,
        recipe=settings.name,
        recipe_version=1,
        variant=0,
        source=SourceRef(
            source_id=row["source_id"],
            sha256=_identity(hashed.lq),
            uri=row["uri"],
            kind="photo",
            group=row["group"],
            licence=settings.licence,
            attribution=settings.attribution,
            width=width,
            height=height,
        ),
        base=None,
        assets=(),
        scene={},
        steps=(),
        realised={"hq_source_sha256": _identity(hashed.hq)},
        versions=pixel_versions(),
        **digests,
    )
    columns = {
        **digests,
        "degradations": [],
        "severities": [],
        "steps": "[]",
        "width": width,
        "height": height,
        "lq_bytes": len(files["lq.png"]),
        "hq_bytes": len(files["hq.png"]),
    }
    return columns, {"json": canonical_json(sample).encode(), **files}


def _decode_sides(hashed: HashedPair) -> Iterator[Pixels]:
    """LQ and HQ pixels. Raises the refusal of a side, InfraError where its bytes changed since it was hashed."""
    pair = hashed.pair
    for side, entry, sha256 in (("LQ", pair.lq, hashed.lq), ("HQ", pair.hq, hashed.hq)):
        if isinstance(sha256, SampleError):
            raise sha256
        data = _read(pair, side, entry)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise InfraError(f"the {side} file of {pair.name} changed while it was imported; run again")
        try:
            yield decode_source(data, _LIMITS)[0]
        except SampleError as refusal:
            raise SampleError(refusal.reason, f"{side}: {refusal.detail}", refusal.fate) from refusal
