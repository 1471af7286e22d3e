"""One run of the synthesis line: catalog, plan, make what is missing, publish a snapshot."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pairforge.failpoints import failpoint
from pairforge.shards import Marker
from pairforge.storage import Storage, open_storage
from pipelines.banks import keep_pins
from pipelines.carry import NOBODY, Tally, Watchers, carry_parts, check_failed, in_words, raise_given_up
from pipelines.catalog import Catalog
from pipelines.engine import Backend, LocalBackend
from pipelines.plan import Part, RenderSettings, count_sources, plan_parts, render_settings
from pipelines.publication import Outline, outline_of, publish_parts, read_markers, write_run_file
from pipelines.ray_backend import RayBackend, connect_ray, start_embedded_ray
from pipelines.scene_settings import PROVIDED
from pipelines.scenes import SceneMaker
from pipelines.settings import BaseConfig, RunConfig
from pipelines.stages import Pool, Stage
from pipelines.synthesis import make_part
from pipelines.telemetry import note

_STALE_AFTER_S = 24 * 3600
"""Unfinished files of killed writers are removed when they are older."""


@dataclass(frozen=True)
class RunReport:
    """How a run ended; counts cover the whole snapshot, not only what this run made."""

    snapshot: str
    published: bool
    parts_made: int
    parts_before: int
    sources: Mapping[str, int]
    fates: Mapping[str, int]
    reasons: Mapping[str, int]
    seconds: float

    newly_failed: int = 0
    """Sources that this run saw first and could not read."""

    @property
    def flawed(self) -> bool:
        """Whether any record failed, or a source that is new here could not be read."""
        return self.fates.get("failed", 0) > 0 or self.newly_failed > 0


def _make_render(context: tuple[RenderSettings, str]) -> Callable[[Part], Marker]:
    settings, output = context
    return partial(make_part, settings=settings, output=output)


def _make_scene(context: tuple[RenderSettings, str]) -> SceneMaker:
    return SceneMaker(*context)


SCENE = Stage("scene", 1, _make_scene)
RENDER = Stage("render", 1, _make_render)


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages that a config's parts go through, with the resources and pools that it gives them.

    Scenes are made on actors where their provider has weights to load. Raises ValueError for resources or a
    pool of a stage that is none of them.
    """
    needed = frozenset(need for recipe in config.recipes for need in recipe.needs()) & set(PROVIDED)
    stages = (SCENE, RENDER) if needed else (RENDER,)
    for name in (*config.run.stages, *config.run.pools):
        if name not in (SCENE.name, RENDER.name):
            raise ValueError(f"run: stage {name!r} is unknown; allowed: {SCENE.name}, {RENDER.name}")
    pools: dict[str, Pool] = {SCENE.name: Pool()} if config.scene.loads_weights(needed) else {}
    pools.update(config.run.pools)
    return tuple(
        replace(stage, resources=config.run.stages.get(stage.name, stage.resources), pool=pools.get(stage.name))
        for stage in stages
    )


def open_backend(config: RunConfig, output: str, local: bool, address: str | None) -> Backend:
    """`--local`; or the Ray cluster at `address`; or an embedded Ray with as many cores as workers."""
    context = (render_settings(config), output)
    stages = stages_of(config)
    if local:
        return LocalBackend(stages, context)
    if address:
        connect_ray(address)
    else:
        start_embedded_ray(config.run.workers or os.cpu_count() or 1)
    return RayBackend(stages, context, owns_ray=True)


def run(
    config: RunConfig,
    backend_for: Callable[[RunConfig, str], Backend],
    watchers: Watchers = NOBODY,
) -> RunReport:
    """Make everything that is planned and not committed, then publish a snapshot.

    `backend_for` is called only when there is something to make. The first SIGINT lets what is in flight
    finish, the second ends it; both end in KeyboardInterrupt. Raises
    TooManyFailedError; what was committed until then stays and is not made again.
    """
    started = time.monotonic()
    storage = open_output(config)
    catalog = Catalog(storage)
    catalog.scan(config)
    planned = outline(config, catalog, storage)
    if not planned.records:
        raise ValueError(f"nothing to make: of the sources, {in_words(count_sources(config, catalog))}")
    watchers.on_plan(planned)
    note("planned", records=planned.records, parts=len(planned.parts), parts_done=len(planned.done))
    keep_pins(storage, render_settings(config, storage).banks.values())
    write_run_file(storage, config, planned)
    failpoint("after-plan")
    tally = Tally()
    if planned.pending:
        pending = (part for part in plan_parts(config, catalog) if part.shard.marker not in planned.done)
        carry_parts(storage, config.run, pending, tally, lambda: backend_for(config, storage.root), watchers)
    raise_given_up(tally)
    markers = read_markers(storage, [name for name, _ in planned.parts])
    total = Tally()
    for marker in markers:
        total.add(marker)
    check_failed(config.run, storage, total, final=True)
    sources = count_sources(config, catalog)
    snapshot, published = publish_parts(storage, config, markers, sources, (), {})
    return RunReport(
        snapshot=snapshot,
        published=published,
        parts_made=tally.parts_made,
        parts_before=len(planned.done),
        sources=sources,
        fates=dict(total.fates),
        reasons=dict(total.reasons),
        seconds=time.monotonic() - started,
        newly_failed=catalog.newly_failed,
    )


def open_output(config: BaseConfig) -> Storage:
    """The dataset that a run may write to. Raises ValueError where it holds imported pairs, InfraError."""
    storage = open_storage(config.output)
    if next(storage.list("shards/imported/"), None) is not None:
        raise ValueError(
            f"{config.output} holds imported pairs, whose snapshots a run would hide; choose another output"
        )
    storage.check_conditional_writes()
    storage.sweep(_STALE_AFTER_S)
    return storage


def outline(config: RunConfig, catalog: Catalog, storage: Storage) -> Outline:
    """Plan once without keeping records, and see what storage holds already."""
    return outline_of(((part.shard, len(part.records)) for part in plan_parts(config, catalog)), storage)
