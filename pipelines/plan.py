"""From catalog and recipes to parts: a pure function, streamed, of which old parts do not move.

Records are laid out source by source in catalog order. Every source that could serve a recipe keeps
its slots for ever, also after it is removed, so a growing catalog only adds to the tail and a removal
only touches the parts that used the source.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from degradations.catalog import BY_NAME
from degradations.scene.depth import GEOMETRIC_PROVIDER, GEOMETRIC_REVISION
from pairforge.config import canonical_json
from pairforge.records import SCHEMA_VERSION, Frozen
from pairforge.rng import rng_for
from pairforge.shards import ShardName
from pipelines.catalog import USABLE, Catalog, CatalogRow
from pipelines.settings import Normalisation, Recipe, RunConfig

LINE = "synthesis"
_POOL_AT_LEAST = 64
_PARTNER_DRAWS = 64


class PlannedRecord(NamedTuple):
    """One sample to make. `partner` is the second image where the recipe needs one and one was found."""

    key: str
    recipe: str
    variant: int
    source: CatalogRow
    partner: CatalogRow | None
    window_start: int


@dataclass(frozen=True)
class Part:
    """A fixed list of records that becomes one shard; `sealed` once no later source can join it."""

    line: str
    category: str
    split: str
    number: int
    sealed: bool
    records: tuple[PlannedRecord, ...]
    fingerprint: str

    @property
    def shard(self) -> ShardName:
        return ShardName(self.line, self.category, f"{self.split}-{self.number:06d}", self.fingerprint)


@dataclass
class _Stream:
    """The open part of one category and split."""

    number: int = 0
    slots: int = 0
    records: list[PlannedRecord] = field(default_factory=list)


class RenderSettings(Frozen):
    """All of a config that determines the pixels and fates of planned records."""

    seed: int
    base: Normalisation
    recipes: tuple[Recipe, ...]
    layers: tuple[str, ...]


def render_settings(config: RunConfig) -> RenderSettings:
    """The part of a config that workers need."""
    return RenderSettings(seed=config.seed, base=config.base, recipes=config.recipes, layers=config.shards.layers)


def too_small(row: CatalogRow, base: Normalisation) -> bool:
    """Whether normalisation refuses this source; such sources take no slots."""
    return base.small == "refuse" and min(row.width, row.height) < base.size_px


def serves(row: CatalogRow, recipe: Recipe) -> bool:
    """Whether a recipe applies to a source: clips go to recipes that need frames, photos to the others."""
    return (row.kind == "video") == ("frames" in recipe.needs())


def plan_parts(config: RunConfig, catalog: Catalog) -> Iterator[Part]:
    """All parts in a stable order, holding one open part per category and split in memory."""
    settings = render_settings(config)
    removed = catalog.removed()
    headers = {recipe.category: _header(settings, recipe.category) for recipe in config.recipes}
    streams: dict[tuple[str, str], _Stream] = {}
    pool: dict[str, tuple[CatalogRow, ...]] = {}
    for rows in catalog.read_batches():
        usable = [row for row in rows if row.fate == USABLE and not too_small(row, config.base)]
        _refill_pool(pool, usable)
        for row in usable:
            for recipe in config.recipes:
                if not serves(row, recipe):
                    continue
                stream = streams.setdefault((recipe.category, row.split), _Stream())
                for variant in range(recipe.variants):
                    if row.source_id not in removed:
                        record = _record(config.seed, recipe, row, variant, pool.get(row.split, ()), removed)
                        stream.records.append(record)
                    stream.slots += 1
                    if stream.slots == config.shards.records_per_shard:
                        yield from _close(stream, recipe.category, row.split, headers, True)
    for (category, split), stream in streams.items():
        yield from _close(stream, category, split, headers, False)


def _refill_pool(pool: dict[str, tuple[CatalogRow, ...]], usable: list[CatalogRow]) -> None:
    """Partners come from the same batch; a small batch is topped up with the sources just before it."""
    photos: dict[str, list[CatalogRow]] = {row.split: [] for row in usable}
    for row in usable:
        if row.kind == "photo":
            photos[row.split].append(row)
    for split, rows in photos.items():
        short = _POOL_AT_LEAST - len(rows)
        earlier = pool.get(split, ())[-short:] if short > 0 else ()
        pool[split] = (*earlier, *rows)


def _record(
    seed: int,
    recipe: Recipe,
    row: CatalogRow,
    variant: int,
    candidates: tuple[CatalogRow, ...],
    removed: frozenset[str],
) -> PlannedRecord:
    partner, start = None, 0
    if "second" in recipe.needs():
        rng = rng_for(seed, recipe.name, row.source_id, variant, "partner")
        for place in rng.integers(0, max(1, len(candidates)), _PARTNER_DRAWS):
            drawn = candidates[place] if candidates else row
            if drawn.group != row.group and drawn.source_id not in removed:
                partner = drawn
                break
    if row.kind == "video":
        rng = rng_for(seed, recipe.name, row.source_id, variant, "window")
        start = int(rng.integers(0, row.frames - row.window_frames + 1))
    key = f"{recipe.name}-{row.source_id}-v{variant}"
    return PlannedRecord(key, recipe.name, variant, row, partner, start)


def _close(stream: _Stream, category: str, split: str, headers: Mapping[str, bytes], sealed: bool) -> Iterator[Part]:
    if stream.records:
        records = tuple(stream.records)
        yield Part(LINE, category, split, stream.number, sealed, records, _fingerprint(headers[category], records))
    stream.number, stream.slots, stream.records = stream.number + 1, 0, []


def _header(settings: RenderSettings, category: str) -> bytes:
    recipes = [recipe for recipe in settings.recipes if recipe.category == category]
    used = sorted({choice.type for recipe in recipes for choice in recipe.choices()})
    return canonical_json(
        {
            "schema": SCHEMA_VERSION,
            "seed": settings.seed,
            "base": settings.base.model_dump(mode="json"),
            "layers": settings.layers,
            "recipes": [recipe.model_dump(mode="json") for recipe in recipes],
            "degradations": {name: BY_NAME[name].version for name in used},
            "depth": [GEOMETRIC_PROVIDER, GEOMETRIC_REVISION],
        }
    ).encode()


def _fingerprint(header: bytes, records: tuple[PlannedRecord, ...]) -> str:
    digest = hashlib.sha256(header)
    for record in records:
        digest.update(
            f"\n{record.key}\t{_identity(record.source)}\t{record.window_start}"
            f"\t{_identity(record.partner) if record.partner else '-'}".encode()
        )
    return digest.hexdigest()


def _identity(row: CatalogRow) -> str:
    """What of a source reaches the bytes of a shard."""
    return "\t".join((row.sha256, row.uri, row.group, row.licence, row.attribution, str(row.window_frames)))
