"""The second photo as light that arrives by way of the glass: framed, mirrored, out of focus.

A blur that is large against a pixel is worked out on a smaller image; what shrinking and enlarging blur by themselves
is taken off, so that the second moment of the whole is that of the blur asked for.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.blur import aperture_psf, convolve, expand_highlights
from degradations.reflection_frame import Work, strips
from pairforge.image import LUMA_LIN, Image, Pixels, pixels_to_linear

_VISIBLE_RATIO = 0.05
"""Least 90th percentile of reflected / transmitted light of a reflection that people notice."""
_DARK = 0.005
"""Light, in units of white, that stands in for black: 8-bit codes end there, real shadows do not."""
_NO_HIGHLIGHT = 1.002
"""Factors below do not show."""
_HALF_FROM_PX, _QUARTER_FROM_PX = 4.0, 16.0
"""Diameters of blur from which half and quarter size will do."""


@dataclass(frozen=True)
class Framing:
    """`zoom` is the scale beyond what covers the frame; a place of the cut runs from 0 (left, top) to 1."""

    zoom: float
    crop_x: float
    crop_y: float


def reflected_scene(second: Pixels, height: int, width: int, framing: Framing, highlight_gain: float = 1.0) -> Image:
    """Linear light of the second photo, of any size: scaled to cover the frame, cropped, mirrored as in a mirror.

    What the photo clipped becomes `highlight_gain` times as bright, as in `degradations.blur.expand_highlights`.
    Raises ValueError for anything but 8-bit RGB.
    """
    if second.dtype != np.uint8 or second.ndim != 3 or second.shape[2] != 3 or not second.size:
        raise ValueError(
            f"the second photo of a reflection is {second.dtype} {second.shape}; uint8 (H, W, 3) is needed"
        )
    second_height, second_width = second.shape[:2]
    scale = max(width / second_width, height / second_height) * framing.zoom
    left = (second_width - width / scale) * framing.crop_x
    top = (second_height - height / scale) * framing.crop_y
    x, y = math.floor(left), math.floor(top)
    cut = second[y : math.ceil(top + height / scale), x : math.ceil(left + width / scale)]
    light = _expanded(cv2.flip(cut, 1), highlight_gain)
    # Whole pixels of the result: a fraction of a pixel in where the photo is cut is worth no second pass.
    size = (max(width, round(light.shape[1] * scale)), max(height, round(light.shape[0] * scale)))
    if light.shape[1::-1] != size:
        light = cv2.resize(light, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    from_right = min(round((left - x) * scale), size[0] - width)
    from_top = min(round((top - y) * scale), size[1] - height)
    first = size[0] - width - from_right
    return light[from_top : from_top + height, first : first + width]


def _expanded(pixels: Pixels, gain: float) -> Image:
    """Linear light by tables: codes know their highlights before they are interpolated."""
    light = pixels_to_linear(pixels)
    codes = pixels_to_linear(np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3))
    table = (expand_highlights(codes, gain) / np.maximum(codes, np.float32(1e-6)))[0, :, 0]
    first, work = int(np.searchsorted(table, _NO_HIGHLIGHT)), Work()
    for top, bottom in strips(pixels.shape[0]):
        least, green, blue = cv2.split(pixels[top:bottom])
        cv2.min(least, green, least)
        cv2.min(least, blue, least)
        if least.max() >= first:
            factor = cv2.LUT(least, table, work.take("factor", *least.shape))
            factors = cv2.cvtColor(factor, cv2.COLOR_GRAY2RGB, work.take("factors", *least.shape, 3))
            cv2.multiply(light[top:bottom], factors, light[top:bottom])
    return light


def shrink_of(diameter_px: float) -> int:
    """How many times smaller an image may be that is blurred by so much: 1, 2 or 4."""
    return 1 if diameter_px < _HALF_FROM_PX else 2 if diameter_px < _QUARTER_FROM_PX else 4


def shrunk(light: Image, shrink: int) -> Image:
    """Means of cells of shrink x shrink, the last ones filled up with the edge."""
    if shrink == 1:
        return light
    height, width = light.shape[:2]
    bottom, right = -height % shrink, -width % shrink
    if bottom or right:
        light = cv2.copyMakeBorder(light, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    size = (light.shape[1] // shrink, light.shape[0] // shrink)
    small: Image = cv2.resize(light, size, interpolation=cv2.INTER_AREA)
    return small


def with_margin(light: Image) -> Image:
    """One more cell at each edge, for `enlarge`."""
    wider: Image = cv2.copyMakeBorder(light, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    return wider


def variance_left(variance_px2: float, shrink: int) -> float:
    """Of a blur, after shrinking (a box) and enlarging (a tent), in small pixels squared; at least 0."""
    if shrink == 1:
        return variance_px2
    taken_px2 = (shrink**2 - 1) / 12 + (shrink**2 - 1) / 6
    return max(0.0, variance_px2 - taken_px2) / shrink**2


def defocused(light: Image, diameter_px: float) -> tuple[Image, int]:
    """The image through an aperture whose blur has this diameter, and how many times smaller it is."""
    shrink = shrink_of(diameter_px)
    # A disc of diameter d has a variance of d^2 / 16 along each axis.
    left_px = 4 * math.sqrt(variance_left(diameter_px**2 / 16, shrink))
    return convolve(shrunk(light, shrink), aperture_psf(left_px)), shrink


def mean_luminance(light: Image) -> float:
    return float(sum(weight * mean for weight, mean in zip(LUMA_LIN, cv2.mean(light)[:3], strict=True)))


def highlight_level(luminances: NDArray[np.float32]) -> float:
    """What exposure goes by: the 95th percentile, at least 1e-4."""
    return max(float(np.quantile(luminances, 0.95)), 1e-4)


def visibility(reflected: NDArray[np.float32], transmitted: NDArray[np.float32]) -> dict[str, Any]:
    """From two luminances: the ratio that 10 % of the frame exceed, and the share where the reflection is brighter."""
    ratio_p90 = float(np.quantile(reflected / np.maximum(transmitted, np.float32(_DARK)), 0.9))
    return {
        "reflection_ratio_p90": ratio_p90,
        "brighter_frac": float(np.mean(reflected > transmitted)),
        "visible": ratio_p90 >= _VISIBLE_RATIO,
    }


def store_light(light: Image, codes: NDArray[np.uint16]) -> None:
    """Write codes of 16 bits, 65535 = 1, clipped."""
    cv2.addWeighted(light, 65535.0, light, 0.0, 0.0, codes, cv2.CV_16U)
