"""Depth without weights: a layout guessed from the pixels, for haze, rain and snow on a fresh machine.

It is not a depth network and knows no objects. Without sky it is a smooth ramp from the bottom of the frame
to its top, a little nearer in the middle, and almost flat where sharpness varies as it does with strong bokeh.
With sky it is ground that recedes to a horizon, everything above the horizon at the horizon's distance, and
sky at the far limit. Distance changes slowly except at the outline of the sky, and there too unless the photo
has an edge in focus: a smooth wrong depth still looks like a photograph, a cut-out does not.

So it is often wrong, on purpose: a person is no nearer than the wall behind. Not taken for sky: dusk and night
skies darker than the land, warm sunsets, dull grey skies, narrow gaps between houses unless blue, sky that ends
in mist. Taken for sky: a cool bright wall or a blue backdrop along the top of the frame, calm water that meets
the sky, clouds and the moon. Dark wires and twigs before the sky are kept, bright ones vanish in it. Metres
are assumed, not measured. Do not use it as depth supervision.

Sources: perspective of a level pinhole camera above a plane, for the nearest distance only (beyond it distance
grows geometrically and far less than the plane's 1 / row, for what stands on the ground hides the far plane);
edge blur from a re-blur ratio (Zhuo and Sim, Pattern Recognition 2011, Eq. 5).
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Depth
from pairforge.image import Image, Pixels, Plane, to_float

GEOMETRIC_PROVIDER = "geometric"
GEOMETRIC_REVISION = "2"

_WORK_SIDE_PX = 320
_CAMERA_HEIGHT_M = 1.5
_HORIZON_RANGE = (0.35, 0.9)
_HORIZON_RATIO = 6.0
"""Distance at the horizon over that of the bottom row, where ground fills at least 35 % of the height."""
_CLOSED_NEAR_M = 3.0
_CLOSED_RATIO, _BOKEH_RATIO = 4.0, 1.6
"""Top of the frame over its bottom without sky: all in focus, and with strong bokeh."""

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class _Sky:
    """Planes are at the working size. `mask` is 1 in the sky, `thin` where something narrow and dark may stand
    before it; `support` tells, around the outline of the sky, how far it lies on firm edges of the photo (0..1,
    1 away from it); `colour` is what sky shows, or would show behind what hides it. `openness` in 0..1 grows
    with the area of the sky.
    """

    mask: Mask
    thin: Mask
    support: Plane
    colour: Image
    openness: float
    horizon_frac: float


def geometric_depth(base: Pixels) -> Depth:
    """Guess the distance of every pixel; pure function of the pixels, see the module for its limits.

    With sky `z_m` ends at 100 to 300 m, without at 12 m. `confidence` is 0.1 without sky and grows to 0.35
    with the area of the sky: it says how much of the layout rests on something seen in the photo, not how good
    the metres are.
    """
    height, width = base.shape[:2]
    scale = min(1.0, _WORK_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(base, size, interpolation=cv2.INTER_AREA)
    sky = _find_sky(small)
    if sky is None:
        z_m = _closed_m(width, height, _focus_spread(small))
        in_sky = np.zeros((height, width), np.float32)
        confidence = 0.1
    else:
        in_sky = _matte(sky, base)
        far_m = 100.0 + 200.0 * sky.openness
        nearness = 1.0 / _ground_m(width, height, sky.horizon_frac)
        z_m = 1.0 / (nearness + in_sky * (np.float32(1.0 / far_m) - nearness))
        confidence = 0.1 + 0.25 * sky.openness
    return Depth(
        z_m=z_m,
        sky=in_sky,
        focal_px=float(width),
        provider=GEOMETRIC_PROVIDER,
        revision=GEOMETRIC_REVISION,
        confidence=round(confidence, 3),
        metric=False,
    )


def _closed_m(width: int, height: int, focus_spread: float) -> Plane:
    """Distance (H, W) where no sky is seen."""
    row = (np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(height)
    column = (np.arange(width, dtype=np.float32) + np.float32(0.5)) / np.float32(width)
    centre = np.outer(np.exp(-((row - 0.6) ** 2) / 0.2), np.exp(-((column - 0.5) ** 2) / 0.12))
    nearness = np.float32(0.75) * row[:, None] + np.float32(0.25) * centre.astype(np.float32)
    ratio = _CLOSED_RATIO + focus_spread * (_BOKEH_RATIO - _CLOSED_RATIO)
    z_m: Plane = cv2.exp(np.float32(np.log(_CLOSED_NEAR_M)) + np.float32(np.log(ratio)) * (1.0 - nearness))
    return z_m


def _ground_m(width: int, height: int, horizon_frac: float) -> Plane:
    """Distance (H, 1) of ground, and of what stands above the horizon, in a view with sky."""
    row = (np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(height)
    below = np.clip((row - horizon_frac) / (1.0 - horizon_frac), 0.0, 1.0)
    near_m = float(np.clip(_CAMERA_HEIGHT_M * width / (height * (1.0 - horizon_frac)), 1.5, 20.0))
    # On a low strip of ground the full range would be a visible band.
    log_ratio = np.log(_HORIZON_RATIO) * min(1.0, (1.0 - horizon_frac) / 0.35)
    z_m: Plane = (near_m * np.exp(log_ratio * (1.0 - below**1.5))).astype(np.float32)
    return z_m[:, None]


def _find_sky(small: Pixels) -> _Sky | None:
    """The sky as a whole region, or None: it must look like sky, span the top, and end at firm edges."""
    height, width = small.shape[:2]
    # The median takes out wires and twigs, which would cut the sky into pieces.
    soft: Image = cv2.GaussianBlur(to_float(cv2.medianBlur(small, 5)), (0, 0), max(width, height) / 250)
    gradient = _gradient(soft)
    mask = _seeds(soft, gradient)
    if not mask.any():
        return None
    colour = _local_colour(soft, mask)
    mask = _without_islands(_grow(mask, soft, colour, gradient), soft, gradient)
    firm = _firm_edges(soft, gradient)
    support, supported = _edge_support(mask, firm)
    if supported < 0.65 or not _is_convincing(mask, soft, gradient):
        return None
    area_frac = float(mask.mean())
    lowest = height - np.argmax(mask[::-1], axis=0)
    ends = lowest[mask.any(axis=0)] / height
    gaps = _gaps(mask, soft, colour, gradient)
    if gaps.any():
        mask = mask | gaps
        support, _ = _edge_support(mask, firm)
    return _Sky(
        mask=mask,
        thin=_thin(small, mask, colour),
        support=support,
        colour=colour,
        openness=min(1.0, area_frac / 0.3),
        horizon_frac=float(np.clip(np.quantile(ends, 0.6), *_HORIZON_RANGE)),
    )


def _is_convincing(mask: Mask, soft: Image, gradient: Plane) -> bool:
    """Whether a region may be sky: large, even, along the top, no darker than the rest, blue or bright."""
    height = len(mask)
    inside = mask == 1
    red, green, blue = (float(value) for value in soft[inside].mean(axis=0))
    total = red + green + blue
    rest = _light(soft)[~inside]
    if inside.mean() < 0.05 or gradient[inside].mean() > 0.012 or (rest.size and total < np.median(rest)):
        return False
    top_frac = float(mask[: max(1, height // 50)].max(axis=0).mean())
    bottom_frac = float(mask[-max(1, height // 100) :].max(axis=0).mean())
    if blue - red > 0.06 * total and blue - green > 0.02 * total:
        return top_frac > 0.25 and bottom_frac < (0.25 if top_frac < 0.9 else 1.0)
    return red - blue < 0.02 and top_frac > 0.6 and bottom_frac < 0.25


def _seeds(soft: Image, gradient: Plane) -> Mask:
    """Even, blue or bright pixels in regions that touch the top of the frame."""
    height, width = gradient.shape
    is_blue, is_bright = _sky_colours(soft)
    even = ((gradient < 0.02) & (is_blue | is_bright)).astype(np.uint8)
    count, labels = cv2.connectedComponents(even, connectivity=4)
    top = labels[: max(1, height // 50)].astype(np.int64)
    columns = np.unique(top * width + np.arange(width)) // width
    keep = np.bincount(columns, minlength=count) >= 0.03 * width
    keep[0] = False
    seeds: Mask = keep.astype(np.uint8)[labels]
    return seeds


def _sky_colours(soft: Image) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels (h, w) that are blue, and pixels that are bright and not warm."""
    red, green, blue = cv2.split(soft)
    total = red + green + blue + np.float32(0.05)
    is_blue = (blue - red > 0.06 * total) & (blue - green > 0.02 * total)
    return is_blue, (total > 1.8) & (red - blue < 0.1)


def _local_colour(soft: Image, mask: Mask) -> Image:
    """Colour of the sky carried on over all the frame: a wide mean under the mask."""
    weight = mask.astype(np.float32)[..., None]
    mean = soft[mask == 1].mean(axis=0)
    spread = _wide_blur(np.concatenate([soft * weight, weight], axis=2), max(mask.shape) / 8)
    colour: Image = (spread[..., :3] + np.float32(1e-3) * mean) / (spread[..., 3:] + np.float32(1e-3))
    return colour


def _grow(mask: Mask, soft: Image, colour: Image, gradient: Plane) -> Mask:
    """Add connected pixels of nearly the local colour, or of clouds; more may differ where the photo is even."""
    residual = _highest(cv2.absdiff(soft, colour))
    # In dark skies smaller differences matter.
    tolerance = np.clip(0.25 * _highest(colour), 0.02, 0.06)
    alike = (residual < tolerance) | ((residual < 2.5 * tolerance) & (gradient < 0.2 * tolerance))
    is_blue, is_bright = _sky_colours(soft)
    cloud = (is_blue | is_bright) & (gradient < 0.05) & (_light(soft) > 0.85 * _light(colour))
    open_to = ((alike | cloud | (mask == 1)) & (gradient < 0.06)).astype(np.uint8)
    count, labels = cv2.connectedComponents(open_to, connectivity=4)
    keep = np.zeros(count, np.uint8)
    keep[labels[mask == 1]] = 1
    keep[0] = 0
    return keep[labels]


def _without_islands(mask: Mask, soft: Image, gradient: Plane) -> Mask:
    """Fill holes in the sky that have no strong edge, and bright ones (clouds, the moon) unless upright."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=8)
    flat = labels.ravel()
    light = _light(soft)
    strong = np.bincount(flat, weights=(gradient > 0.04).ravel(), minlength=count)
    mean = np.bincount(flat, weights=light.ravel(), minlength=count) / np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
    bright = mean > light[mask == 1].mean()
    upright = stats[:, cv2.CC_STAT_HEIGHT] > 3 * stats[:, cv2.CC_STAT_WIDTH]
    fill = (strong == 0) | (bright & ~upright)
    for edge in (labels[-1], labels[:, 0], labels[:, -1]):
        fill[edge] = False
    fill[0] = True
    filled: Mask = fill.astype(np.uint8)[labels]
    return filled


def _gaps(mask: Mask, soft: Image, colour: Image, gradient: Plane) -> Mask:
    """Blue sky seen through trees and frames: small regions apart from the sky, above its lower end."""
    residual = _highest(cv2.absdiff(soft, colour))
    is_blue, _ = _sky_colours(soft)
    alike = is_blue & (residual < 0.08) & (gradient < 0.05) & (mask == 0)
    alike[int(np.flatnonzero(mask.any(axis=1))[-1]) :] = False
    _, labels, stats, _ = cv2.connectedComponentsWithStats(alike.astype(np.uint8), connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    small = (area > 4) & (area < 0.05 * mask.size)
    small[0] = False
    gaps: Mask = small.astype(np.uint8)[labels]
    return gaps


def _thin(small: Pixels, mask: Mask, colour: Image) -> Mask:
    """Where something up to 6 px wide is darker than what is around it and than the sky behind it."""
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    hat = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, np.ones((7, 7), np.uint8))
    noise = float(np.median(hat[mask == 1]))
    behind = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY) * np.float32(255)
    dark = (hat > 20 + 2 * noise) & (grey < behind - 15)
    widened: Mask = cv2.dilate(dark.astype(np.uint8), np.ones((3, 3), np.uint8))
    return widened


def _firm_edges(soft: Image, gradient: Plane) -> Plane:
    """0..1: edges that are strong and in focus; blurred again by 2 px, only the latter lose much of their slope."""
    reach = np.ones((5, 5), np.uint8)
    peak = cv2.dilate(gradient, reach)
    again = cv2.dilate(_gradient(cv2.GaussianBlur(soft, (0, 0), 2.0)), reach)
    return _ramp(peak, 0.015, 0.04) * _ramp(peak / (again + np.float32(1e-4)), 1.1, 1.3)


def _edge_support(mask: Mask, firm: Plane) -> tuple[Plane, float]:
    """How far the outline lies on firm edges: as a plane spread around it, and over the whole of it."""
    outline: Plane = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(np.float32)
    supported = outline * firm
    spread = _wide_blur(np.stack([supported, outline], axis=2), max(mask.shape) / 20)
    unsure = np.float32(5e-4)
    support: Plane = (spread[..., 0] + unsure) / (spread[..., 1] + unsure)
    return support, float(supported.sum()) / max(float(outline.sum()), 1.0)


def _matte(sky: _Sky, base: Pixels) -> Plane:
    """Share of sky (H, W): told by colour along the firm outline and thin things, a wide fade elsewhere."""
    height, width = base.shape[:2]
    size = (width, height)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    fade = _wide_blur(sky.mask.astype(np.float32), max(sky.mask.shape) / 20)
    firm = _ramp(sky.support, 0.7, 0.95)
    bounds = []
    for moved in (cv2.erode(sky.mask, disc) & (1 - sky.thin), cv2.dilate(sky.mask, disc)):
        sharp = cv2.GaussianBlur(moved.astype(np.float32), (0, 0), 0.7)
        bounds.append(cv2.resize(fade + firm * (sharp - fade), size, interpolation=cv2.INTER_LINEAR))
    lower, upper = bounds

    colour = cv2.resize((sky.colour * 255 + 0.5).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
    quiet = cv2.blur(base, (3, 3)) if max(size) > _WORK_SIDE_PX else base
    off = _highest(cv2.absdiff(quiet, colour))
    table = 1.0 - _ramp(np.arange(256, dtype=np.float32) / np.float32(255), 0.07, 0.15)
    share: Plane = cv2.LUT(off, table)
    share *= upper - lower
    share += lower
    return np.clip(share, 0.0, 1.0, out=share)


def _focus_spread(small: Pixels) -> float:
    """How much sharpness varies over the frame: 0 all in focus, 1 strong bokeh (or large even areas).

    An edge of blur sigma, blurred again by 1 px, loses a factor sqrt(1 + 1 / sigma^2) of its gradient.
    """
    grey: Plane = cv2.cvtColor(to_float(small), cv2.COLOR_RGB2GRAY)
    strength = _gradient(grey)
    ratio = strength / (_gradient(cv2.GaussianBlur(grey, (0, 0), 1.0)) + np.float32(1e-3))
    weight = np.maximum(strength - np.float32(0.01), 0.0)
    sharpness = np.clip((ratio - 1.0) / 0.5, 0.0, 1.0)
    spread = _wide_blur(np.stack([sharpness * weight, weight], axis=2), max(grey.shape) / 24)
    low, high = np.quantile(spread[..., 0] / (spread[..., 1] + np.float32(1e-4)), (0.1, 0.9))
    return float(np.clip((high - low - 0.2) / 0.3, 0.0, 1.0))


def _gradient(planes: NDArray[np.float32]) -> Plane:
    """Code values per pixel (h, w); of the steepest channel."""
    dx, dy = cv2.Sobel(planes, -1, 1, 0, scale=1 / 8), cv2.Sobel(planes, -1, 0, 1, scale=1 / 8)
    steep: Plane = np.sqrt(dx * dx + dy * dy)
    return steep if steep.ndim == 2 else _highest(steep)


def _highest(planes: NDArray[Any]) -> NDArray[Any]:
    """Largest of three channels (h, w)."""
    first, second, third = cv2.split(planes)
    high: NDArray[Any] = cv2.max(cv2.max(first, second), third)
    return high


def _light(soft: Image) -> Plane:
    """Sum of the three channels (h, w)."""
    total: Plane = cv2.transform(soft, np.ones((1, 3), np.float32))
    return total


def _ramp(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Cubic step from 0 at `low` to 1 at `high`."""
    unit = np.clip((values - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0)
    stepped: NDArray[np.float32] = unit * unit * (3.0 - 2.0 * unit)
    return stepped


def _wide_blur(planes: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Gaussian blur, made at a quarter of the size."""
    height, width = planes.shape[:2]
    shrunk = cv2.resize(planes, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(shrunk, (0, 0), max(sigma_px / 4, 0.3))
    back: NDArray[np.float32] = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
    return back
