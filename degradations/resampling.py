"""Change of size: one step of a chain that goes on at another size, or down and up at once.

Works on code values, as programs that resize photos do. Pixel centres keep their places: a base pixel at x is
found at (x + 0.5) * s - 0.5, s being the ratio of sizes, with every kernel but "nearest", which takes whole pixels
and so is off by up to half a pixel of the larger image.

Kernels: "area" averages what a pixel covers. "bicubic_antialias" is widened when it shrinks, as it must be.
"bilinear", "bicubic", "lanczos" and "nearest" are not: they alias when they shrink, as many programs do (the bad
resizers of web photos; after Parmar et al., "On aliased resizing", CVPR 2022).

Sources: Keys, IEEE TASSP 1981 (cubic convolution); Wang et al., "Real-ESRGAN", ICCVW 2021 (resizing in chains).
"""

from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image as PILImage
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from pairforge.image import Image
from pairforge.rng import Rng

Kernel = Literal["area", "bilinear", "bicubic", "lanczos", "nearest", "bicubic_antialias"]
_LEAST_SIDE_PX = 8
_OPENCV = {
    "area": cv2.INTER_AREA,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "nearest": cv2.INTER_NEAREST_EXACT,
}


def resized(image: Image, height: int, width: int, kernel: Kernel) -> Image:
    """A new image of that size, within [0, 1]: what a kernel overshoots is clipped."""
    if image.shape[:2] == (height, width):
        return image.copy()
    result = np.empty((height, width, 3), np.float32)
    if kernel == "bicubic_antialias":
        for channel in range(3):
            plane = PILImage.fromarray(np.ascontiguousarray(image[..., channel]))
            cubic = plane.resize((width, height), PILImage.Resampling.BICUBIC)
            cv2.insertChannel(np.asarray(cubic), result, channel)
    else:
        cv2.resize(image, (width, height), result, interpolation=_OPENCV[kernel])
    if kernel in ("bicubic", "lanczos", "bicubic_antialias"):
        np.clip(result, 0, 1, out=result)
    return result


def size_at(base_size_px: tuple[int, int], size_frac: float) -> tuple[int, int]:
    """Height and width at a fraction of the base: rounded, at least 8 px where the base has that many."""
    height, width = (max(min(_LEAST_SIDE_PX, side), round(size_frac * side)) for side in base_size_px)
    return height, width


class ResizeParams(Params):
    size_frac: float = Field(gt=0, le=4)
    """Size of the result / size of the base, whatever the size was before; 1 brings the base's size back."""
    kernel: Kernel


def sample_resize(severity: float, rng: Rng) -> ResizeParams:
    """Alone, this step leaves the photo smaller: 0.95 of its size at severity 0, 1/4 at severity 1."""
    kernel = str(rng.choice(["area", "bilinear", "bicubic", "bicubic_antialias"]))
    size_frac = 0.95 * (0.25 / 0.95) ** severity * rng.uniform(0.97, 1.03)
    return ResizeParams.model_validate({"size_frac": size_frac, "kernel": kernel})


def apply_resize(image: Image, params: ResizeParams, scene: Scene, rng: Rng) -> Rendered:
    """Outside of a replay the base is the image itself.

    `base_px` and `base_offset_px` (x, y) are exact: a pixel at x lies at x * base_px + base_offset_px of the base.
    """
    base_size_px = scene.base_size_px or (image.shape[0], image.shape[1])
    height, width = size_at(base_size_px, params.size_frac)
    realised = {"size_px": [width, height], **_places(base_size_px, height, width)}
    return Rendered(resized(image, height, width, params.kernel), image, realised=realised)


def _places(base_size_px: tuple[int, int], height: int, width: int) -> dict[str, Any]:
    ratios = [base_size_px[1] / width, base_size_px[0] / height]
    return {"base_px": ratios, "base_offset_px": [(ratio - 1) / 2 for ratio in ratios]}


RESIZE = Degradation(
    name="resize",
    version=1,
    params_type=ResizeParams,
    sample=sample_resize,
    apply=apply_resize,
    space="srgb",
    needs=frozenset(),
    source="Wang et al., Real-ESRGAN, ICCVW 2021, section 3.1, resizing; Keys, IEEE TASSP 1981",
    resizes=True,
)


class LowResolutionParams(Params):
    """`shrink_ratio` is the size of the photo over the size in between, which `down` makes and `up` enlarges."""

    shrink_ratio: float = Field(ge=1, le=32)
    down: Literal["area", "bilinear", "bicubic", "bicubic_antialias"]
    up: Literal["nearest", "bilinear", "bicubic", "lanczos"]


def sample_low_resolution(severity: float, rng: Rng) -> LowResolutionParams:
    """1.3 at severity 0, 2 near 0.25, 8 at severity 1."""
    down = str(rng.choice(["area", "bilinear", "bicubic", "bicubic_antialias"], p=[0.3, 0.1, 0.1, 0.5]))
    up = str(rng.choice(["nearest", "bilinear", "bicubic", "lanczos"], p=[0.04, 0.26, 0.5, 0.2]))
    shrink_ratio = 1.3 * (8 / 1.3) ** severity * rng.uniform(0.95, 1.05)
    return LowResolutionParams.model_validate({"shrink_ratio": shrink_ratio, "down": down, "up": up})


def apply_low_resolution(image: Image, params: LowResolutionParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image.shape[:2]
    small_height, small_width = size_at((height, width), 1 / params.shrink_ratio)
    small = resized(image, small_height, small_width, params.down)
    realised = {"size_between_px": [small_width, small_height]}
    return Rendered(resized(small, height, width, params.up), image, realised=realised)


LOW_RESOLUTION = Degradation(
    name="low_resolution",
    version=1,
    params_type=LowResolutionParams,
    sample=sample_low_resolution,
    apply=apply_low_resolution,
    space="srgb",
    needs=frozenset(),
    source="y = (x * k) down s, enlarged again; Keys, IEEE TASSP 1981, cubic convolution",
)
