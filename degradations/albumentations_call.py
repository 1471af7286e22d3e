"""What one call of an Albumentations transform gives, checked: 8-bit codes and a scene. Loads no Albumentations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from degradations.base import Depth, Scene, Segments
from degradations.catalog import BY_NAME
from degradations.scene.depth import geometric_depth
from degradations.scene.segments import SlicSegments
from degradations.scene.sky import sky_among_far
from degradations.scene.stored import FARTHEST_M, NEAREST_M, compact_labels
from degradations.scene.upsampling import upsample_segments
from pairforge.image import Image, Pixels, to_pixels
from pairforge.records import Step

SCENE_KEYS = ("depth", "segments", "second", "frames", "patterns")


def codes(array: Any, what: str) -> Pixels:
    """8-bit codes of an image of a call. Raises ValueError for anything else."""
    if not isinstance(array, np.ndarray) or array.dtype not in (np.uint8, np.float32):
        held = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{what} must be an array of uint8, or of float32 in [0, 1], not {held}")
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"{what} must be RGB (H, W, 3), not {array.shape}")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{what} is float32 from {low:g} to {high:g}; it must lie within 0..1")
    return to_pixels(np.ascontiguousarray(array))


def typed_as(like: NDArray[Any], image: Image) -> NDArray[Any]:
    return to_pixels(image) if like.dtype == np.uint8 else np.ascontiguousarray(image)


def scene_of(steps: Sequence[Step], base: Pixels, guide: Pixels, data: Mapping[str, Any]) -> Scene:
    """What the steps need, of what a call gave; depth and segments are guessed from `guide` where it gave none."""
    used = [BY_NAME[step.name] for step in steps if step.name in BY_NAME]
    needs: set[str] = {need for degradation in used for need in degradation.needs}
    missing = [key for key in ("second", "frames", "patterns") if key in needs and data.get(key) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: give it in the call, transform(image=..., {missing[0]}=...)")
    patterns = data["patterns"] if "patterns" in needs else {}
    if not isinstance(patterns, Mapping):
        patterns = dict.fromkeys((degradation.bank for degradation in used if degradation.bank), patterns)
    frames = [codes(frame, "a frame") for frame in data["frames"]] if "frames" in needs else []
    for frame in frames:
        _check_size(frame, base, "a frame")
    return Scene(
        depth=_depth_of(data.get("depth"), guide) if "depth" in needs else None,
        segments=_segments_of(data.get("segments"), guide) if "segments" in needs else None,
        second=codes(data["second"], "second") if "second" in needs else None,
        frames=tuple(frames),
        patterns={kind: tuple(held) for kind, held in patterns.items()},
    )


def _depth_of(given: Any, guide: Pixels) -> Depth:
    if given is None:
        return geometric_depth(guide)
    if isinstance(given, Depth):
        _check_size(given.z_m, guide, "depth")
        return given
    z_m = np.asarray(given)
    _check_size(z_m, guide, "depth")
    if z_m.ndim != 2 or z_m.dtype.kind != "f" or not (z_m > 0).all():
        raise ValueError(f"depth must be a Depth, or metres above 0 as floats (H, W), not {z_m.dtype} {z_m.shape}")
    z_m = np.clip(z_m, NEAREST_M, FARTHEST_M).astype(np.float32)
    return Depth(
        z_m=z_m,
        sky=sky_among_far(guide, 1 / z_m),
        focal_px=float(guide.shape[1]),
        provider="given",
        revision="1-metres",
        confidence=0.9,
        metric=True,
    )


def _segments_of(given: Any, guide: Pixels) -> Segments:
    if given is None:
        return upsample_segments(SlicSegments()(guide), guide)
    if isinstance(given, Segments):
        _check_size(given.labels, guide, "segments")
        return given
    labels = np.asarray(given)
    _check_size(labels, guide, "segments")
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(f"segments must be a Segments, or whole numbers (H, W), not {labels.dtype} {labels.shape}")
    numbered, count = compact_labels(labels)
    return Segments(numbered, count, "given", "1", 0.9)


def _check_size(array: NDArray[Any], base: Pixels, what: str) -> None:
    if array.shape[:2] != base.shape[:2]:
        raise ValueError(f"{what} is {array.shape[:2]}, the image {base.shape[:2]} (height, width)")
