"""What a degradation is, what it may know of the scene, and `replay`: the only way pixels are degraded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pairforge.image import (
    Image,
    Pixels,
    Plane,
    linear_to_srgb,
    pixels_to_linear,
    srgb_to_linear,
    to_float,
)
from pairforge.records import Step
from pairforge.rng import Rng, rng_from_seed

Need = Literal["depth", "segments", "second", "frames", "patterns"]
Layer = NDArray[np.uint8] | NDArray[np.uint16]
Pattern = NDArray[np.uint8] | NDArray[np.uint16]
"""One image of a bank, (h, w, 3); what its codes mean is said by the family that uses the bank."""


class Params(BaseModel):
    """Sampled parameters of one step: JSON-exact, no defaults, units in names, every field moves pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PatternParams(Params):
    """Parameters of a step that uses a bank; how many of its patterns follows from them."""

    @property
    def pattern_count(self) -> int:
        """Patterns that this step takes, at least 1."""
        raise NotImplementedError


P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Depth:
    """Distance of every pixel of a base, with its origin.

    `z_m` is planar depth in metres (H, W); sky pixels hold the far limit. `sky` is the probability of
    sky in [0, 1]. `focal_px` is the focal length in pixels, the principal point is the image centre.
    `confidence` in [0, 1] says how far the provider trusts itself; `metric` whether metres are measured
    or assumed.
    """

    z_m: Plane
    sky: Plane
    focal_px: float
    provider: str
    revision: str
    confidence: float
    metric: bool


@dataclass(frozen=True)
class Segments:
    """Regions of a base, with their origin: `labels` (H, W) holds 0 .. count - 1, each of them somewhere."""

    labels: NDArray[np.int32]
    count: int
    provider: str
    revision: str
    confidence: float


@dataclass(frozen=True)
class Scene:
    """What a degradation may know besides its input. Arrays share the size of the base, but for second and patterns.

    `patterns` holds, by the kind of their bank, the patterns that were chosen for a record, at their own
    sizes. `base_size_px` (height, width) is filled in by `replay`.
    """

    depth: Depth | None = None
    segments: Segments | None = None
    second: Pixels | None = None
    frames: tuple[Pixels, ...] = ()
    patterns: Mapping[str, tuple[Pattern, ...]] = field(default_factory=dict)
    base_size_px: tuple[int, int] | None = None


@dataclass(frozen=True)
class Rendered:
    """Result of one step, in the step's own space.

    `target` is what HQ must be, given that the input was clean: the input itself (the same object)
    unless the step moves or dims what a restorer should return. `layers` are supervision maps,
    quantised, at the size of the image; `realised` holds JSON values found while rendering. Neither is
    ever an input of replay.
    """

    image: Image
    target: Image
    layers: Mapping[str, Layer] = field(default_factory=dict)
    realised: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Degradation(Generic[P]):
    """One kind of degradation: how its parameters are drawn and what they do to pixels.

    `sample` maps severity in [0, 1] to parameters and never sees the image. `apply` is pure and never
    mutates; its input and output are linear light when `space` is "linear" (values above 1 are kept
    between linear steps), sRGB code values otherwise. `version` grows by one whenever the same
    parameters give other pixels. `source` names paper and equation. `bank` is the kind of bank whose
    patterns it takes; its parameters are then `PatternParams`. `resizes` is True where the image may
    come back in another size.
    """

    name: str
    version: int
    params_type: type[P]
    sample: Callable[[float, Rng], P]
    apply: Callable[[Image, P, Scene, Rng], Rendered]
    space: Literal["srgb", "linear"]
    needs: frozenset[Need]
    source: str
    bank: str = ""
    resizes: bool = False


def sample_step(degradation: Degradation[Any], severity: float, params_rng: Rng, pixels_seed: str) -> Step:
    """Draw the parameters of one step. Raises ValueError for a severity outside [0, 1]."""
    if not 0.0 <= severity <= 1.0:
        raise ValueError(f"severity {severity} of {degradation.name} is outside 0..1")
    params = degradation.sample(severity, params_rng)
    return Step(
        name=degradation.name,
        version=degradation.version,
        severity=severity,
        params=params.model_dump(mode="json"),
        seed=pixels_seed,
    )


def replay_with(base: Pixels, steps: Sequence[Step], scene: Scene, catalog: Mapping[str, Degradation[Any]]) -> Rendered:
    """Apply recorded steps to a base; image and target of the result are sRGB-encoded, in [0, 1].

    `realised` and `layers` are those of each step, keyed `{index}_{step}` and, where two steps give a
    layer of the same name, `{layer}_{index}`. Raises ValueError for an unknown step, another version
    of it, parameters that do not fit, or a scene that lacks what a step needs.
    """
    scene = replace(scene, base_size_px=(base.shape[0], base.shape[1]))
    space: str = "linear" if steps and _find(steps[0], catalog).space == "linear" else "srgb"
    image = target = clean = _decode[space](base)
    layers: dict[str, Layer] = {}
    realised: dict[str, Any] = {}
    for index, step in enumerate(steps):
        degradation = _find(step, catalog)
        if degradation.space != space:
            space = degradation.space
            image, target, clean = _convert(image, target, clean, space, base)
        image, target, rendered = _apply_step(degradation, step, image, target, scene)
        realised[f"{index}_{step.name}"] = dict(rendered.realised)
        for name, layer in rendered.layers.items():
            layers[name if name not in layers else f"{name}_{index}"] = layer
    if space == "linear":
        image, target, _ = _convert(image, target, clean, "srgb", base)
    return Rendered(image, target, layers, realised)


_decode: Mapping[str, Callable[[Pixels], Image]] = {"linear": pixels_to_linear, "srgb": to_float}


def _convert(image: Image, target: Image, clean: Image, space: str, base: Pixels) -> tuple[Image, Image, Image]:
    """Image, target and the untouched base in another space; what is still the base is decoded again, exactly."""
    convert = srgb_to_linear if space == "linear" else linear_to_srgb
    fresh = _decode[space](base)
    converted = fresh if image is clean else convert(image)
    if target is clean:
        return converted, fresh, fresh
    return converted, converted if target is image else convert(target), fresh


def _find(step: Step, catalog: Mapping[str, Degradation[Any]]) -> Degradation[Any]:
    degradation = catalog.get(step.name)
    if degradation is None:
        raise ValueError(f"unknown degradation {step.name!r}; known: {', '.join(sorted(catalog))}")
    if degradation.version != step.version:
        raise ValueError(
            f"step {step.name!r} was rendered by version {step.version}; this installation has version "
            f"{degradation.version}, whose pixels differ"
        )
    return degradation


def _apply_step(
    degradation: Degradation[Any], step: Step, image: Image, target: Image, scene: Scene
) -> tuple[Image, Image, Rendered]:
    try:
        params = degradation.params_type.model_validate(step.params)
    except ValidationError as error:
        raise ValueError(f"parameters of step {step.name!r} do not fit: {error}") from error
    _check_scene(degradation, params, image, scene)
    rendered = degradation.apply(image, params, scene, rng_from_seed(step.seed))
    assert rendered.image.dtype == np.float32, f"{step.name} returned {rendered.image.dtype}"
    if rendered.target is image:
        return rendered.image, target, rendered
    if target is image:
        return rendered.image, rendered.target, rendered
    # An earlier step already separated image and target: move or dim the clean side in the same way.
    of_target = degradation.apply(target, params, scene, rng_from_seed(step.seed))
    return rendered.image, of_target.target, rendered


def _check_scene(degradation: Degradation[Any], params: Params, image: Image, scene: Scene) -> None:
    held = {
        "depth": scene.depth is not None,
        "segments": scene.segments is not None,
        "second": scene.second is not None,
        "frames": bool(scene.frames),
        "patterns": degradation.bank in scene.patterns,
    }
    missing = sorted(need for need in degradation.needs if not held[need])
    if missing:
        of_bank = f" (bank of kind {degradation.bank!r})" if "patterns" in missing else ""
        raise ValueError(
            f"degradation {degradation.name!r} needs {', '.join(missing)}{of_bank}, which this scene lacks"
        )
    if isinstance(params, PatternParams) and len(scene.patterns[degradation.bank]) < params.pattern_count:
        raise ValueError(
            f"degradation {degradation.name!r} takes {params.pattern_count} patterns; "
            f"this scene has {len(scene.patterns[degradation.bank])}"
        )
    if degradation.needs - {"patterns"} and image.shape[:2] != scene.base_size_px:
        raise ValueError(
            f"degradation {degradation.name!r} needs the image at the size of its base, {scene.base_size_px}; "
            f"an earlier step made it {image.shape[:2]}"
        )
