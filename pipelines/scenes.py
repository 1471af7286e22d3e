"""The scene stage: depth and segments of bases, made once for every base and provider, stored, then only read.

A provider's result is an input of the pixels: the first one stored wins, and replay reads it. What cannot
be made of a source (no depth file beside it, say) travels with the part, and refuses its records.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from degradations.base import Depth, Segments
from degradations.catalog import BY_NAME
from degradations.scene.stored import DepthMap, SegmentMap, pack_depth, pack_segments, unpack_depth, unpack_segments
from degradations.scene.upsampling import UPSAMPLING_REVISION, upsample_depth, upsample_segments
from pairforge.image import Pixels
from pairforge.records import Asset, InfraError, SampleError, Step
from pairforge.storage import Storage, open_storage
from pipelines.bases import Base, base_name, load_base, load_frames
from pipelines.drawing import draw_steps
from pipelines.plan import Part, PlannedRecord, RenderSettings
from pipelines.scene_providers import MakeMap, open_provider
from pipelines.scene_settings import PROVIDED

_BASES_AHEAD = 16


def needs_of(steps: Iterable[Step]) -> frozenset[str]:
    """All that the steps need to know of the scene."""
    return frozenset(need for step in steps for need in BY_NAME[step.name].needs)


def asset_name(need: str, settings: RenderSettings, base_name: str) -> str:
    """Where the result of the configured provider for a base is stored."""
    place = base_name.removeprefix("bases/").removesuffix(".png")
    return f"scene/{need}-{settings.scene.address(need)}/{place}"


@dataclass(frozen=True)
class _Wanted:
    """One missing result: what, where it goes, of which record's base; that base where it was decoded ahead."""

    need: str
    name: str
    record: PlannedRecord
    base: Base | None


class SceneMaker:
    """The function of the stage; providers that have weights load them here."""

    def __init__(self, settings: RenderSettings, output: str) -> None:
        self._settings = settings
        self._storage = open_storage(output)
        self._recipes = {recipe.name: recipe for recipe in settings.recipes}
        self._providers: dict[str, MakeMap] = {
            need: open_provider(need, stated, settings.folder)
            for need in PROVIDED
            if (stated := getattr(settings.scene, need)) is not None
        }

    def prepare(self, part: Part) -> tuple[Part, list[_Wanted]]:
        """What of a part is missing, the first bases of it decoded."""
        missing = list(self._missing(part))
        return part, [
            replace(wanted, base=self._base(wanted.record)) if place < _BASES_AHEAD else wanted
            for place, wanted in enumerate(missing)
        ]

    def compute(self, prepared: tuple[Part, list[_Wanted]]) -> Part:
        """Make and store what is missing; the part comes back with what could not be made."""
        part, missing = prepared
        refused: dict[str, tuple[str, str]] = {}
        for wanted in missing:
            try:
                base = wanted.base or self._base(wanted.record)
                if base is not None:
                    made = self._providers[wanted.need](base, wanted.record.source)
                    self._storage.put_if_absent(wanted.name, pack_map(made))
            except SampleError as refusal:
                refused[wanted.name] = (refusal.reason, refusal.detail)
            except OSError as fault:
                raise InfraError(f"while making {wanted.name}: {fault}") from fault
        return replace(part, refused=refused)

    def _missing(self, part: Part) -> Iterator[_Wanted]:
        seen: set[str] = set()
        for record in part.records:
            steps = draw_steps(self._settings, self._recipes[record.recipe], record.source.source_id, record.variant)
            for need in sorted(needs_of(steps) & set(PROVIDED)):
                name = asset_name(
                    need, self._settings, base_name(record.source, record.window_start, self._settings.base)
                )
                if name not in seen and not self._storage.exists(name):
                    yield _Wanted(need, name, record, None)
                seen.add(name)

    def _base(self, record: PlannedRecord) -> Base | None:
        """The base of a record; None where there is none, which the render stage finds and says again."""
        source, rule, folder = record.source, self._settings.base, self._settings.folder
        try:
            if source.kind != "video":
                return load_base(self._storage, source, rule, folder)
            frames = load_frames(self._storage, source, record.window_start, rule, folder)
            return frames[len(frames) // 2]
        except SampleError:
            return None


@dataclass(frozen=True)
class SceneMap:
    """One stored map at the size of its base, its asset, and what the record states of it."""

    view: Depth | Segments
    asset: Asset
    facts: Mapping[str, Any]


def read_scene_map(
    storage: Storage, settings: RenderSettings, need: str, base: Base, refused: Mapping[str, tuple[str, str]]
) -> SceneMap:
    """The stored map of a base. Raises SampleError where it cannot be made, InfraError where it was not."""
    name = asset_name(need, settings, base.name)
    if name in refused:
        raise SampleError(*refused[name])
    try:
        data = storage.read(name)
    except FileNotFoundError as error:
        raise InfraError(f"{storage.url(name)} is missing: the scene stage has to run before") from error
    try:
        held = unpack_map(need, data)
    except ValueError as error:
        raise InfraError(f"{storage.url(name)} is damaged: delete it, and it is made again") from error
    asset = Asset(role=need, name=name, sha256=hashlib.sha256(data).hexdigest(), source=None)
    return SceneMap(enlarge(held, base.pixels), asset, facts_of(held))


def replay_scene_map(stated: Mapping[str, Any], need: str, data: bytes, base: Pixels) -> Depth | Segments:
    """A stored map as replay needs it. Raises ValueError where this installation enlarges it otherwise."""
    if stated["upsampling"] != UPSAMPLING_REVISION:
        raise ValueError(
            f"{need} was enlarged by revision {stated['upsampling']}; this installation has revision "
            f"{UPSAMPLING_REVISION}, whose pixels differ"
        )
    return enlarge(unpack_map(need, data), base)


def pack_map(held: DepthMap | SegmentMap) -> bytes:
    """The bytes that are stored of a map."""
    return pack_depth(held) if isinstance(held, DepthMap) else pack_segments(held)


def unpack_map(need: str, data: bytes) -> DepthMap | SegmentMap:
    """A map of what was stored. Raises ValueError for damaged bytes."""
    return unpack_depth(data) if need == "depth" else unpack_segments(data)


def enlarge(held: DepthMap | SegmentMap, base: Pixels) -> Depth | Segments:
    """A map at the size of its base."""
    return upsample_depth(held, base) if isinstance(held, DepthMap) else upsample_segments(held, base)


def facts_of(held: DepthMap | SegmentMap) -> dict[str, Any]:
    """What a record states of a map."""
    kind = {"metric": held.metric} if isinstance(held, DepthMap) else {"count": held.count}
    origin = {"provider": held.provider, "revision": held.revision, "upsampling": UPSAMPLING_REVISION}
    return {**origin, "confidence": held.confidence, **kind, **held.facts}
