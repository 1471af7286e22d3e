"""`pairforge import`: existing LQ/HQ folders become a snapshot like any other, so that sets can be mixed.

The layout is that of BasicSR: two folders with equal file names. Pixels are kept as they are, coded as
PNG. A pair whose sides differ in size, or lack one, is a row with its reason.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pairforge.config import canonical_json, fingerprint
from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels, encode_png
from pairforge.records import SCHEMA_VERSION, Fate, Frozen, Sample, SampleError, SourceRef
from pairforge.shards import ShardName, ShardWriter
from pairforge.snapshot import Manifest, publish, write_snapshot
from pairforge.storage import Storage, open_storage
from pipelines.catalog import split_of
from pipelines.run import read_markers
from pipelines.settings import FileSources, GroupRule, SplitFractions
from pipelines.sources import PHOTO_SUFFIXES, Found, list_sources, read_source
from pipelines.synthesis import pixel_versions

LINE = "imported"
_LIMITS = DecodeLimits(max_bytes=10**9, max_pixels=150_000_000, max_side=32_000, min_side=1)


class ImportSettings(Frozen):
    """What `pairforge import` is told. `splits` places pairs by the hash of their name."""

    name: str
    category: str
    lq: str
    hq: str
    licence: str
    attribution: str
    splits: SplitFractions
    records_per_shard: int


@dataclass(frozen=True)
class Pair:
    """Two files of one name; `hq` is None where the partner is missing."""

    name: str
    lq: Found
    hq: Found | None


@dataclass(frozen=True)
class LoadedPair:
    """The bytes of a pair, or why a side has none."""

    name: str
    uri: str
    lq: bytes | SampleError
    hq: bytes | SampleError

    @property
    def source_id(self) -> str:
        data = self.uri.encode() if isinstance(self.lq, SampleError) else self.lq
        return hashlib.sha256(data).hexdigest()[:24]


def list_pairs(settings: ImportSettings) -> Iterator[Pair]:
    """LQ files in order, each with the HQ file of the same name without extension.

    Raises FileNotFoundError or ValueError where a folder is missing or empty, ValueError where two
    files of a folder differ in their extension alone.
    """
    lq, hq = (_by_name(folder, settings) for folder in (settings.lq, settings.hq))
    for name, found in lq.items():
        yield Pair(name, found, hq.get(name))


def _by_name(folder: str, settings: ImportSettings) -> dict[str, Found]:
    spec = FileSources(kind="files", url=folder, licence=settings.licence, group=GroupRule(by="file"))
    names: dict[str, Found] = {}
    for found in list_sources(spec):
        path = PurePosixPath(found.uri)
        if path.suffix.lower() not in PHOTO_SUFFIXES:
            continue
        name = found.uri.removeprefix(folder.rstrip("/") + "/").removesuffix(path.suffix)
        if name in names:
            raise ValueError(f"{names[name].uri} and {found.uri} have one name: which of them is meant?")
        names[name] = found
    return names


def import_pairs(settings: ImportSettings, output: str) -> tuple[Manifest, int]:
    """Write shards of all pairs and publish a snapshot; also how many shards were new.

    Raises ValueError when `output` already belongs to a synthesis run, whose snapshots would be hidden.
    """
    storage = open_storage(output)
    if next(storage.list("catalog/"), None) is not None:
        raise ValueError(f"{output} is the output of a run; choose another folder for imported pairs")
    by_split: dict[str, list[Pair]] = {}
    for pair in list_pairs(settings):
        by_split.setdefault(split_of(pair.name, settings.splits), []).append(pair)
    names: list[ShardName] = []
    made, seen = 0, Counter[str]()
    for split, pairs in sorted(by_split.items()):
        for number, start in enumerate(range(0, len(pairs), settings.records_per_shard)):
            loaded = [_load(pair) for pair in pairs[start : start + settings.records_per_shard]]
            records = []
            for sides in loaded:
                records.append((f"{settings.name}-{sides.source_id}-v{seen[sides.source_id]}", sides))
                seen[sides.source_id] += 1
            name = _shard_name(settings, f"{split}-{number:06d}", records)
            names.append(name)
            if not storage.exists(name.marker):
                _write_shard(storage, name, split, settings, records)
                made += 1
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


def _load(pair: Pair) -> LoadedPair:
    sides: list[bytes | SampleError] = []
    for found in (pair.lq, pair.hq):
        try:
            if found is None:
                raise SampleError("no_partner", f"there is no HQ file for {pair.name}", Fate.REJECTED)
            if found.refusal is not None:
                raise found.refusal
            sides.append(read_source(found.uri, found.locator))
        except SampleError as refusal:
            sides.append(refusal)
    return LoadedPair(pair.name, pair.lq.uri, sides[0], sides[1])


def _shard_name(settings: ImportSettings, part: str, records: Sequence[tuple[str, LoadedPair]]) -> ShardName:
    described = {
        "schema": SCHEMA_VERSION,
        "settings": settings.model_dump(mode="json", exclude={"lq", "hq", "splits", "records_per_shard"}),
        "records": [(key, pair.name, pair.uri, _identity(pair.lq), _identity(pair.hq)) for key, pair in records],
    }
    return ShardName(LINE, settings.category, part, fingerprint(described))


def _identity(side: bytes | SampleError) -> str:
    return side.reason if isinstance(side, SampleError) else hashlib.sha256(side).hexdigest()


def _write_shard(
    storage: Storage,
    name: ShardName,
    split: str,
    settings: ImportSettings,
    records: Sequence[tuple[str, LoadedPair]],
) -> None:
    with ShardWriter(storage, name, split) as writer:
        for key, pair in records:
            row = {
                "key": key,
                "recipe": settings.name,
                "variant": int(key.rpartition("v")[2]),
                "source_id": pair.source_id,
                "uri": pair.uri,
                "group": pair.name,
                "licence": settings.licence,
                "attribution": settings.attribution,
            }
            try:
                columns, files = _pack(settings, split, row, pair)
                writer.add({**row, "fate": Fate.KEPT.value, **columns}, files)
            except SampleError as refusal:
                fate = {"fate": refusal.fate.value, "reason": refusal.reason, "detail": refusal.detail}
                writer.add({**row, **fate}, {})
        writer.commit({})


def _pack(
    settings: ImportSettings, split: str, row: Mapping[str, Any], pair: LoadedPair
) -> tuple[dict[str, Any], dict[str, bytes]]:
    if row["variant"] > 0:
        raise SampleError("duplicate", f"{pair.uri} has the bytes of another LQ file", Fate.REJECTED)
    (lq_data, lq), (hq_data, hq) = (_decode(side) for side in (pair.lq, pair.hq))
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
            source_id=pair.source_id,
            sha256=hashlib.sha256(lq_data).hexdigest(),
            uri=pair.uri,
            kind="photo",
            group=pair.name,
            licence=settings.licence,
            attribution=settings.attribution,
            width=width,
            height=height,
        ),
        base=None,
        assets=(),
        scene={},
        steps=(),
        realised={"hq_source_sha256": hashlib.sha256(hq_data).hexdigest()},
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


def _decode(side: bytes | SampleError) -> tuple[bytes, Pixels]:
    if isinstance(side, SampleError):
        raise side
    return side, decode_source(side, _LIMITS)[0]
