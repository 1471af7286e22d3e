"""The synthesis line: one part of planned records becomes one shard; one stored sample is replayed."""

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np

from degradations.base import Pattern, Scene
from degradations.catalog import replay
from degradations.temporal_blur import check_moving
from pairforge.config import canonical_json
from pairforge.image import Pixels, decode_png, encode_png, prepare_worker, to_pixels
from pairforge.records import Asset, DamagedError, Fate, InfraError, Sample, SampleError, parse_stored
from pairforge.shards import Marker, ShardWriter
from pairforge.storage import Storage, open_storage
from pipelines.banks import BankEntry, BankRef, decode_pattern, read_pattern_png
from pipelines.bases import Base, load_base, load_frames, source_ref
from pipelines.catalog import CatalogRow
from pipelines.drawing import draw_patterns, draw_steps
from pipelines.plan import LINE, Part, PlannedRecord, RenderSettings
from pipelines.scene_settings import PROVIDED
from pipelines.scenes import SceneMap, needs_of, read_scene_map, replay_scene_map
from pipelines.settings import Recipe
from pipelines.telemetry import note


@cache
def pixel_versions() -> dict[str, str]:
    """Versions of the libraries whose arithmetic or codecs reach pixels."""
    names = ("pairforge", "numpy", "opencv-python-headless", "pillow")
    return {name: version(name) for name in names}


@dataclass
class _Bench:
    """What neighbouring records of a part share: bases of the sources at hand, and maps of the last of them."""

    storage: Storage
    settings: RenderSettings
    refused: Mapping[str, tuple[str, str]]
    bases: dict[str, Base] = field(default_factory=dict)
    maps: dict[tuple[str, str], SceneMap] = field(default_factory=dict)

    def base(self, row: CatalogRow) -> Base:
        if row.source_id not in self.bases:
            self.bases = dict(list(self.bases.items())[-3:])
            self.bases[row.source_id] = load_base(self.storage, row, self.settings.base, self.settings.folder)
        return self.bases[row.source_id]

    def scene_map(self, need: str, base: Base) -> SceneMap:
        place = (need, base.name)
        if place not in self.maps:
            self.maps = {held: scene_map for held, scene_map in self.maps.items() if held[1] == base.name}
            self.maps[place] = read_scene_map(self.storage, self.settings, need, base, self.refused)
        return self.maps[place]

    def pattern(self, ref: BankRef, entry: BankEntry, role: str) -> tuple[Pattern, Asset]:
        """A pattern of a bank, copied into the dataset so that replay needs no bank."""
        name = f"patterns/{entry.sha256[:2]}/{entry.sha256[:24]}.png"
        try:
            png = self.storage.read(name)
        except FileNotFoundError:
            png = read_pattern_png(ref.url, entry)
            self.storage.put_if_absent(name, png)
        return decode_pattern(png), Asset(role=role, name=name, sha256=entry.sha256, source=None)


def make_part(part: Part, settings: RenderSettings, output: str) -> Marker:
    """Render every record of a part and commit its shard; the marker is returned and stored.

    A record that cannot be made becomes a row with its reason. Any exception but SampleError leaves
    nothing behind.
    """
    prepare_worker()
    started = time.time()
    storage = open_storage(output)
    bench = _Bench(storage, settings, part.refused)
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
            except (OSError, DamagedError) as fault:
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


def _render(bench: _Bench, part: Part, record: PlannedRecord, recipe: Recipe) -> tuple[Sample, dict[str, bytes]]:
    steps = draw_steps(bench.settings, recipe, record.source.source_id, record.variant)
    needs = needs_of(steps)
    base, frames = _load(bench, record)
    second = None
    assets = [_asset(f"frame{index}", frame, None) for index, frame in enumerate(frames)]
    if "second" in needs:
        if record.partner is None:
            raise SampleError(
                "no_partner",
                f"no source of another group in split {part.split}, role {recipe.second_role}, to take as second image",
                Fate.REJECTED,
            )
        second = bench.base(record.partner)
        assets.append(_asset("second", second, record.partner))
    maps = {need: bench.scene_map(need, base) for need in PROVIDED if need in needs}
    assets += [held.asset for held in maps.values()]
    patterns: dict[str, tuple[Pattern, ...]] = {}
    drawn = draw_patterns(bench.settings, recipe, record.source.source_id, record.variant, steps)
    for kind, entries in drawn.items():
        found = [bench.pattern(*entry, f"{kind}_pattern{place}") for place, entry in enumerate(entries)]
        patterns[kind] = tuple(pattern for pattern, _ in found)
        assets += [asset for _, asset in found]
    views: dict[str, Any] = {need: held.view for need, held in maps.items()}
    scene = Scene(
        second=second.pixels if second else None,
        frames=tuple(frame.pixels for frame in frames),
        patterns=patterns,
        **views,
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
        scene={need: held.facts for need, held in maps.items()},
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
    check_moving([frame.pixels for frame in frames])
    return frames[len(frames) // 2], frames


def _asset(role: str, base: Base, row: CatalogRow | None) -> Asset:
    return Asset(role=role, name=base.name, sha256=base.ref.sha256, source=source_ref(row) if row else None)


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
    version of a step, or enlarges maps of the scene otherwise.
    """
    prepare_worker()
    sample = parse_stored(Sample, files["json"], "the sample's JSON")
    base = decode_png(files.get("base.png", files["hq.png"]))
    held = {asset.role: read_asset(storage, asset) for asset in sample.assets}
    views: dict[str, Any] = {
        need: replay_scene_map(sample.scene[need], need, held[need], base) for need in PROVIDED if need in held
    }
    scene = Scene(
        second=decode_png(held["second"]) if "second" in held else None,
        frames=tuple(decode_png(data) for data in _numbered(held, "frame")),
        patterns={
            kind: tuple(decode_pattern(data) for data in _numbered(held, f"{kind}_pattern"))
            for kind in sorted({role.rpartition("_pattern")[0] for role in held if "_pattern" in role})
        },
        **views,
    )
    rendered = replay(base, sample.steps, scene)
    return to_pixels(rendered.image), to_pixels(rendered.target)


def _numbered(held: Mapping[str, bytes], prefix: str) -> list[bytes]:
    """Assets whose role is the prefix and a number, by number."""
    found = {role.removeprefix(prefix): data for role, data in held.items() if role.startswith(prefix)}
    return [found[number] for number in sorted((n for n in found if n.isdecimal()), key=int)]


def read_asset(storage: Storage, asset: Asset) -> bytes:
    try:
        data = storage.read(asset.name)
    except FileNotFoundError as error:
        raise ValueError(f"asset {asset.name} ({asset.role}) is missing") from error
    if hashlib.sha256(data).hexdigest() != asset.sha256:
        raise ValueError(f"asset {asset.name} ({asset.role}) does not have the SHA-256 that the record names")
    return data


def build_info() -> dict[str, str]:
    """Versions as a run file states them."""
    return {"python": platform.python_version(), "opencv_build": cv2.__version__, **pixel_versions()}
