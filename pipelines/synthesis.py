"""The synthesis line: one part of planned records becomes one shard; one stored sample is replayed."""

import hashlib
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np

from degradations.base import Depth, Scene, sample_step
from degradations.catalog import BY_NAME, replay
from degradations.scene.depth import GEOMETRIC_PROVIDER, GEOMETRIC_REVISION, geometric_depth
from pairforge.config import canonical_json
from pairforge.image import Pixels, decode_png, encode_png, to_pixels, use_one_thread
from pairforge.records import Asset, Fate, InfraError, Sample, SampleError, Step, parse_stored
from pairforge.rng import rng_for, seed_for
from pairforge.shards import Marker, ShardWriter
from pairforge.storage import Storage, open_storage
from pipelines.bases import Base, load_base, load_frames, source_ref
from pipelines.catalog import CatalogRow
from pipelines.plan import LINE, Part, PlannedRecord, RenderSettings
from pipelines.settings import AnyOf, Recipe
from pipelines.telemetry import note


@cache
def pixel_versions() -> dict[str, str]:
    """Versions of the libraries whose arithmetic or codecs reach pixels."""
    names = ("pairforge", "numpy", "opencv-python-headless", "pillow")
    return {name: version(name) for name in names}


@dataclass
class _Bench:
    """What neighbouring records of a part share: the base of the source at hand, and its depth."""

    storage: Storage
    settings: RenderSettings
    bases: dict[str, Base] = field(default_factory=dict)
    depths: dict[str, Depth] = field(default_factory=dict)

    def base(self, row: CatalogRow) -> Base:
        if row.source_id not in self.bases:
            self.bases = dict(list(self.bases.items())[-3:])
            self.bases[row.source_id] = load_base(self.storage, row, self.settings.base, self.settings.folder)
        return self.bases[row.source_id]

    def depth(self, base: Base) -> Depth:
        if base.name not in self.depths:
            self.depths = {base.name: geometric_depth(base.pixels)}
        return self.depths[base.name]


def make_part(part: Part, settings: RenderSettings, output: str) -> Marker:
    """Render every record of a part and commit its shard; the marker is returned and stored.

    A record that cannot be made becomes a row with its reason. Any exception but SampleError leaves
    nothing behind.
    """
    use_one_thread()
    started = time.time()
    storage = open_storage(output)
    bench = _Bench(storage, settings)
    recipes = {recipe.name: recipe for recipe in settings.recipes}
    with ShardWriter(storage, part.shard, part.split) as writer:
        for record in part.records:
            row = _row(record)
            try:
                sample, files = _render(bench, part, record, recipes[record.recipe])
            except SampleError as refusal:
                fate = {"fate": refusal.fate.value, "reason": refusal.reason, "detail": refusal.detail}
                note("record refused", key=record.key, fate=refusal.fate.value, reason=refusal.reason)
                writer.add({**row, **fate}, {})
            except OSError as fault:
                raise InfraError(f"while making record {record.key}: {fault}") from fault
            except Exception as bug:
                bug.add_note(f"while making record {record.key} of {part.shard.stem}")
                raise
            else:
                writer.add({**row, **_kept_columns(sample, files)}, files)
        return writer.commit(
            {
                "host": platform.node(),
                "started": round(started, 3),
                "seconds": round(time.time() - started, 3),
            }
        )


def draw_steps(settings: RenderSettings, recipe: Recipe, source_id: str, variant: int) -> tuple[Step, ...]:
    """All steps of a record, sampled before any of them is applied."""
    steps = []
    for index, spec in enumerate(recipe.chain):
        key = (recipe.name, source_id, variant, index)
        rng = rng_for(settings.seed, *key, "params")
        options = spec.any_of if isinstance(spec, AnyOf) else (spec,)
        weights = np.array([option.weight for option in options])
        option = options[int(rng.choice(len(options), p=weights / weights.sum()))]
        severity = float(rng.uniform(*option.severity))
        steps.append(sample_step(BY_NAME[option.type], severity, rng, seed_for(settings.seed, *key, "pixels")))
    return tuple(steps)


def _render(bench: _Bench, part: Part, record: PlannedRecord, recipe: Recipe) -> tuple[Sample, dict[str, bytes]]:
    steps = draw_steps(bench.settings, recipe, record.source.source_id, record.variant)
    needs = {need for step in steps for need in BY_NAME[step.name].needs}
    base, frames = _load(bench, record)
    second = None
    assets = [_asset(f"frame{index}", frame, None) for index, frame in enumerate(frames)]
    if "second" in needs:
        if record.partner is None:
            raise SampleError(
                "no_partner",
                f"no source of another group in split {part.split} to take as second image",
                Fate.REJECTED,
            )
        second = bench.base(record.partner)
        assets.append(_asset("second", second, record.partner))
    scene, facts = build_scene(
        needs,
        base.pixels,
        second.pixels if second else None,
        tuple(frame.pixels for frame in frames),
        bench.depth(base) if "depth" in needs else None,
    )
    rendered = replay(base.pixels, steps, scene)
    files = {"lq.png": encode_png(to_pixels(rendered.image))}
    moved = not np.array_equal(target := to_pixels(rendered.target), base.pixels)
    files["hq.png"] = encode_png(target) if moved else base.png
    if moved:
        files["base.png"] = base.png
    for name in bench.settings.layers:
        if name in rendered.layers:
            files[f"{name}.png"] = encode_png(rendered.layers[name])
    sample = Sample(
        key=record.key,
        line=LINE,
        category=part.category,
        split=part.split,
        recipe=recipe.name,
        recipe_version=recipe.version,
        variant=record.variant,
        source=source_ref(record.source),
        base=base.ref,
        assets=tuple(assets),
        scene=facts,
        steps=steps,
        realised=rendered.realised,
        lq_sha256=hashlib.sha256(files["lq.png"]).hexdigest(),
        hq_sha256=hashlib.sha256(files["hq.png"]).hexdigest(),
        versions=pixel_versions(),
    )
    return sample, {"json": canonical_json(sample).encode(), **files}


def _load(bench: _Bench, record: PlannedRecord) -> tuple[Base, tuple[Base, ...]]:
    if record.source.kind != "video":
        return bench.base(record.source), ()
    frames = load_frames(bench.storage, record.source, record.window_start, bench.settings.base, bench.settings.folder)
    return frames[len(frames) // 2], frames


def _asset(role: str, base: Base, row: CatalogRow | None) -> Asset:
    return Asset(role=role, name=base.name, sha256=base.ref.sha256, source=source_ref(row) if row else None)


def build_scene(
    needs: Iterable[str],
    base: Pixels,
    second: Pixels | None = None,
    frames: tuple[Pixels, ...] = (),
    depth: Depth | None = None,
) -> tuple[Scene, dict[str, Any]]:
    """What the steps of a record may know, and the providers of it as the record states them."""
    if "depth" not in needs:
        return Scene(second=second, frames=frames), {}
    depth = depth or geometric_depth(base)
    facts = {
        "provider": depth.provider,
        "revision": depth.revision,
        "confidence": round(depth.confidence, 4),
        "metric": depth.metric,
    }
    return Scene(depth=depth, second=second, frames=frames), {"depth": facts}


def _row(record: PlannedRecord) -> dict[str, Any]:
    source = record.source
    return {
        "key": record.key,
        "recipe": record.recipe,
        "variant": record.variant,
        "source_id": source.source_id,
        "uri": source.uri,
        "group": source.group,
        "licence": source.licence,
        "attribution": source.attribution,
    }


def _kept_columns(sample: Sample, files: Mapping[str, bytes]) -> dict[str, Any]:
    base = sample.base
    assert base is not None
    return {
        "fate": Fate.KEPT.value,
        "degradations": [step.name for step in sample.steps],
        "severities": [step.severity for step in sample.steps],
        "steps": canonical_json([step.model_dump(mode="json") for step in sample.steps]),
        "width": base.width,
        "height": base.height,
        "lq_bytes": len(files["lq.png"]),
        "hq_bytes": len(files["hq.png"]),
        "lq_sha256": sample.lq_sha256,
        "hq_sha256": sample.hq_sha256,
    }


def replay_sample(storage: Storage, files: Mapping[str, bytes]) -> tuple[Pixels, Pixels]:
    """LQ and HQ of a stored sample, rendered again from its JSON, its base and its assets alone.

    Raises ValueError when an asset is missing or changed, or when this installation has another
    version of a step or of a scene provider.
    """
    use_one_thread()
    sample = parse_stored(Sample, files["json"], "the sample's JSON")
    base = decode_png(files.get("base.png", files["hq.png"]))
    images = {asset.role: _read_asset(storage, asset) for asset in sample.assets}
    frames = tuple(images[f"frame{index}"] for index in range(sum(role != "second" for role in images)))
    stated = sample.scene.get("depth")
    if stated and (stated["provider"], stated["revision"]) != (GEOMETRIC_PROVIDER, GEOMETRIC_REVISION):
        raise ValueError(
            f"depth was made by {stated['provider']} revision {stated['revision']}; this installation has "
            f"{GEOMETRIC_PROVIDER} revision {GEOMETRIC_REVISION}, whose pixels differ"
        )
    scene, _ = build_scene(sample.scene, base, images.get("second"), frames)
    rendered = replay(base, sample.steps, scene)
    return to_pixels(rendered.image), to_pixels(rendered.target)


def _read_asset(storage: Storage, asset: Asset) -> Pixels:
    try:
        data = storage.read(asset.name)
    except FileNotFoundError as error:
        raise ValueError(f"asset {asset.name} ({asset.role}) is missing") from error
    if hashlib.sha256(data).hexdigest() != asset.sha256:
        raise ValueError(f"asset {asset.name} ({asset.role}) does not have the SHA-256 that the record names")
    return decode_png(data)


def build_info() -> dict[str, str]:
    """Versions as a run file states them."""
    return {"python": platform.python_version(), "opencv_build": cv2.__version__, **pixel_versions()}
