"""From catalog and recipes to parts: a pure function, streamed, of which old parts do not move.

Records are laid out source by source in catalog order. Every source that could serve a recipe keeps
its slots for ever, also after it is removed, so a growing catalog only adds to the tail and a removal
only touches the parts that used the source.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from degradations.catalog import BY_NAME
from degradations.chains import CHAIN_BY_NAME
from degradations.scene.upsampling import UPSAMPLING_REVISION
from pairforge.config import canonical_json
from pairforge.records import SCHEMA_VERSION, Fate, Frozen
from pairforge.rng import rng_for
from pairforge.shards import ShardName
from pairforge.storage import Storage
from pipelines.banks import BankRef, pin_bank
from pipelines.catalog import USABLE, Catalog, CatalogRow
from pipelines.retries import Retries, read_retries, with_retries
from pipelines.scene_settings import SceneSettings
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
    """A fixed list of records that becomes one shard; `sealed` once no later source can join it.

    `content` is the fingerprint before retries. `refused` is filled by the scene stage: by name of a scene asset,
    reason and detail of why it cannot be made.
    """

    line: str
    category: str
    split: str
    number: int
    sealed: bool
    records: tuple[PlannedRecord, ...]
    content: str
    fingerprint: str
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def shard(self) -> ShardName:
        return ShardName(self.line, self.category, f"{self.split}-{self.number:06d}", self.fingerprint)

    @property
    def size_bytes(self) -> int:
        """Of its sources."""
        return sum({record.source.source_id: record.source.size_bytes for record in self.records}.values())


@dataclass
class _Stream:
    """The open part of one category and split; `lines` is what its fingerprint hashes."""

    number: int = 0
    slots: int = 0
    records: list[PlannedRecord] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """A recipe with what planning asks of it for every source."""

    recipe: Recipe
    needs_frames: bool
    needs_second: bool


class RenderSettings(Frozen):
    """All of a config that determines the pixels and fates of planned records.

    `folder` changes none: relative paths of sources start there, since workers may run elsewhere.
    """

    seed: int
    base: Normalisation
    scene: SceneSettings
    banks: Mapping[str, BankRef]
    recipes: tuple[Recipe, ...]
    layers: tuple[str, ...]
    folder: str


def render_settings(config: RunConfig, dataset: Storage | None = None) -> RenderSettings:
    """The part of a config that workers need. Raises ValueError where a bank that recipes use is not there.

    With the dataset, a bank that is gone counts as the dataset last knew it, which is enough to plan.
    """
    used = sorted(frozenset(kind for recipe in config.recipes for kind in recipe.banks()))
    return RenderSettings(
        seed=config.seed,
        base=config.base,
        scene=config.scene,
        banks={kind: pin_bank(kind, config.banks[kind], dataset) for kind in used},
        recipes=config.recipes,
        layers=config.shards.layers,
        folder=str(Path.cwd()),
    )


def too_small(row: CatalogRow, base: Normalisation) -> bool:
    """Whether normalisation refuses this source; such sources take no slots."""
    return base.small == "refuse" and min(row.width, row.height) < base.size_px


def count_sources(config: RunConfig, catalog: Catalog) -> dict[str, int]:
    """What became of every source, as `Catalog.counts`; `usable` are those that records are planned of."""
    counts = catalog.counts()
    wanted = {("frames" in recipe.needs(), recipe.role) for recipe in config.recipes}
    unused: Counter[str] = Counter()
    for table in catalog.read_usable("width", "height", "kind", "role"):
        short_px = pc.min_element_wise(table["width"], table["height"]).to_numpy()
        small = (short_px < config.base.size_px) & (config.base.small == "refuse")
        served = np.zeros(len(table), bool)
        for frames, role in wanted:
            of_role = role == "any" or pc.equal(table["role"], role).to_numpy()
            served |= (pc.equal(table["kind"], "video").to_numpy() == frames) & of_role
        unused.update(too_small_for_base=int(small.sum()), no_recipe=int((~served & ~small).sum()))
    refused = {f"{Fate.REJECTED}:{reason}": count for reason, count in unused.items() if count}
    rest = {name: count for name, count in counts.items() if name not in ("seen", "usable")}
    usable = counts["usable"] - unused.total()
    return {"seen": counts["seen"], "usable": usable, **dict(sorted({**rest, **refused}.items()))}


def plan_parts(config: RunConfig, catalog: Catalog) -> Iterator[Part]:
    """All parts in a stable order, holding one open part per category and split in memory."""
    settings = render_settings(config, catalog.storage)
    retries = read_retries(catalog.storage)
    removed = catalog.removed()
    headers = {recipe.category: _header(settings, recipe.category) for recipe in config.recipes}
    tasks = [_Task(recipe, "frames" in recipe.needs(), "second" in recipe.needs()) for recipe in config.recipes]
    streams: dict[tuple[str, str], _Stream] = {}
    pool: defaultdict[tuple[str, str], tuple[CatalogRow, ...]] = defaultdict(tuple)
    for rows in catalog.read_batches():
        usable = [row for row in rows if row.fate == USABLE and not too_small(row, config.base)]
        _refill_pool(pool, usable)
        drawn = [_draw_partners(config.seed, task, usable) for task in tasks]
        for place, row in enumerate(usable):
            identity = source_identity(row)
            for task, draws in zip(tasks, drawn, strict=True):
                if not _serves(task, row):
                    continue
                recipe = task.recipe
                stream = streams.setdefault((recipe.category, row.split), _Stream())
                for variant in range(recipe.variants):
                    if row.source_id not in removed:
                        candidates = pool[(row.split, recipe.second_role)]
                        partner = _partner(draws, (variant, place), row, candidates, removed)
                        _add_record(stream, config.seed, recipe, row, identity, variant, partner)
                    stream.slots += 1
                    if stream.slots == config.shards.records_per_shard:
                        yield from _close(stream, recipe.category, row.split, headers, retries, True)
    for (category, split), stream in streams.items():
        yield from _close(stream, category, split, headers, retries, False)


def _serves(task: _Task, row: CatalogRow) -> bool:
    return task.needs_frames == (row.kind == "video") and task.recipe.role in ("any", row.role)


def _refill_pool(pool: dict[tuple[str, str], tuple[CatalogRow, ...]], usable: list[CatalogRow]) -> None:
    """Partners, by split and role, come from the same batch; few are topped up with the sources just before it."""
    photos: dict[tuple[str, str], list[CatalogRow]] = {}
    for row in usable:
        if row.kind == "photo":
            for role in {"any", row.role}:
                photos.setdefault((row.split, role), []).append(row)
    for place, rows in photos.items():
        short = _POOL_AT_LEAST - len(rows)
        earlier = pool.get(place, ())[-short:] if short > 0 else ()
        pool[place] = (*earlier, *rows)


def _draw_partners(seed: int, task: _Task, usable: list[CatalogRow]) -> NDArray[np.float64] | None:
    """Where in the pool to look for the partner of each variant and source: (variants, sources, draws) in [0, 1).

    One generator serves a batch, whose rows never change; one for each record would take longer than
    all the rest of planning.
    """
    if not task.needs_second or not usable:
        return None
    rng = rng_for(seed, task.recipe.name, usable[0].source_id, "partners")
    return rng.random((task.recipe.variants, len(usable), _PARTNER_DRAWS))


def _partner(
    draws: NDArray[np.float64] | None,
    place: tuple[int, int],
    row: CatalogRow,
    candidates: Sequence[CatalogRow],
    removed: frozenset[str],
) -> CatalogRow | None:
    if draws is None or not candidates:
        return None
    for draw in draws[place]:
        drawn = candidates[int(draw * len(candidates))]
        if drawn.group != row.group and drawn.source_id not in removed:
            return drawn
    return None


def _add_record(
    stream: _Stream,
    seed: int,
    recipe: Recipe,
    row: CatalogRow,
    identity: str,
    variant: int,
    partner: CatalogRow | None,
) -> None:
    start = 0
    if row.kind == "video":
        rng = rng_for(seed, recipe.name, row.source_id, variant, "window")
        start = int(rng.integers(0, row.frames - row.window_frames + 1))
    key = f"{recipe.name}-{row.source_id}-v{variant}"
    stream.records.append(PlannedRecord(key, recipe.name, variant, row, partner, start))
    stream.lines.append(f"{key}\t{identity}\t{start}\t{source_identity(partner) if partner else '-'}")


def _close(
    stream: _Stream, category: str, split: str, headers: Mapping[str, bytes], retries: Retries, sealed: bool
) -> Iterator[Part]:
    if stream.records:
        digest = hashlib.sha256(headers[category])
        digest.update("\n".join(["", *stream.lines]).encode())
        content = digest.hexdigest()
        fingerprint = with_retries(content, retries)
        yield Part(LINE, category, split, stream.number, sealed, tuple(stream.records), content, fingerprint)
    stream.number, stream.slots, stream.records, stream.lines = stream.number + 1, 0, [], []


def _header(settings: RenderSettings, category: str) -> bytes:
    recipes = [recipe for recipe in settings.recipes if recipe.category == category]
    used = sorted(frozenset(name for recipe in recipes for name in recipe.degradations()))
    chains = sorted(frozenset(c.type for recipe in recipes for c in recipe.choices()) & CHAIN_BY_NAME.keys())
    banks = sorted(frozenset(kind for recipe in recipes for kind in recipe.banks()))
    needs = frozenset(need for recipe in recipes for need in recipe.needs())
    scene = settings.scene.identity(needs)
    return canonical_json(
        {
            "schema": SCHEMA_VERSION,
            "seed": settings.seed,
            "base": settings.base.model_dump(mode="json"),
            "layers": settings.layers,
            "recipes": [recipe.model_dump(mode="json") for recipe in recipes],
            "degradations": {name: BY_NAME[name].version for name in used},
            "chains": {name: CHAIN_BY_NAME[name].version for name in chains},
            "banks": {kind: settings.banks[kind].sha256 for kind in banks},
            "scene": {**scene, "upsampling": UPSAMPLING_REVISION} if scene else {},
        }
    ).encode()


def source_identity(row: CatalogRow) -> str:
    """What of a source reaches the bytes of a shard."""
    return "\t".join((row.sha256, row.uri, row.group, row.licence, row.attribution, str(row.window_frames), row.role))
