"""The sky of a photo, found without weights: as a whole region along the top, or not at all.

Not taken for sky: night skies darker than the land, dull grey skies, narrow gaps between houses unless blue, sky
that ends in mist. Taken for sky: a cool bright wall or a blue backdrop along the top of the frame, calm water that
meets the sky, clouds and the moon, a backdrop that grows brighter downwards behind something dark with a level
outline. Dark wires and twigs before the sky are kept, bright ones vanish in it.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.scene.planes import gradient_of, highest, light_of, ramp, small_blur, wide_blur
from pairforge.image import Image, Pixels, Plane, to_float

WORK_SIDE_PX = 320
HORIZON_RANGE = (0.35, 0.9)
_LOWEST_CLOUD = 0.86
"""Share of the height below which clouds before a dusk are not told from land."""

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Sky:
    """Planes are at the working size. `mask` is 1 in the sky, `thin` where something narrow and dark may stand
    before it; `support` tells, around the outline of the sky, how far it lies on firm edges of the photo (0..1,
    1 away from it); `colour` is what sky shows, or would show behind what hides it. `openness` in 0..1 grows
    with the area of the sky. `gain` >= 1 says how much more a difference of colour counts in a dark sky.
    """

    mask: Mask
    thin: Mask
    support: Plane
    colour: Image
    openness: float
    horizon_frac: float
    gain: float
    kind: Literal["day", "dusk"]


def find_sky(small: Pixels) -> Sky | None:
    """The sky as a whole region, or None: it must look like sky, span the top, and end at firm edges."""
    height, width = small.shape[:2]
    # The median takes out wires and twigs, which would cut the sky into pieces.
    soft: Image = cv2.GaussianBlur(to_float(cv2.medianBlur(small, 5)), (0, 0), max(width, height) / 250)
    gradient = gradient_of(soft)
    return _day_sky(small, soft, gradient) or _dusk_sky(small, soft, gradient)


def sky_among_far(base: Pixels, inverse_depth: Plane) -> Plane:
    """Share of sky (h, w), for inverse depth (h, w) of a provider that does not tell sky from other far things:
    where the photo shows sky and depth agrees that it is far.
    """
    size = inverse_depth.shape[1], inverse_depth.shape[0]
    scale = min(1.0, WORK_SIDE_PX / max(base.shape[:2]))
    small_size = (max(1, round(base.shape[1] * scale)), max(1, round(base.shape[0] * scale)))
    sky = find_sky(cv2.resize(base, small_size, interpolation=cv2.INTER_AREA))
    if sky is None:
        return np.zeros_like(inverse_depth)
    near, far = (float(value) for value in np.quantile(inverse_depth, (0.98, 0.02)))
    seen = matte(sky, cv2.resize(base, size, interpolation=cv2.INTER_AREA))
    step = max(near - far, 1e-6)
    share: Plane = seen * (1.0 - ramp(inverse_depth, far + 0.1 * step, far + 0.3 * step))
    return share


def _day_sky(small: Pixels, soft: Image, gradient: Plane) -> Sky | None:
    is_blue, is_bright = _sky_colours(soft)
    mask = _from_the_top((gradient < 0.02) & (is_blue | is_bright))
    if not mask.any():
        return None
    colour = _local_colour(soft, mask)
    mask = _without_islands(_grow(mask, soft, colour, gradient), soft, gradient)
    firm = _firm_edges(soft, gradient)
    support, supported = _edge_support(mask, firm)
    if supported < 0.65 or not _is_convincing(mask, soft, gradient):
        return None
    openness, horizon_frac = _extent(mask)
    gaps = _gaps(mask, soft, colour, gradient)
    if gaps.any():
        support, _ = _edge_support(mask | gaps, firm)
    mask = mask | gaps
    return Sky(mask, _thin(small, mask, colour, 1.0), support, colour, openness, horizon_frac, 1.0, "day")


def _dusk_sky(small: Pixels, soft: Image, gradient: Plane) -> Sky | None:
    """A sky that is dark but deep blue, or that grows much brighter towards a level, darker land."""
    light = light_of(soft)
    even = gradient < np.clip(0.02 * light + 0.0012, 0.002, 0.02)
    red, green, blue = soft[..., 0], soft[..., 1], soft[..., 2]
    is_deep_blue = (blue - red > 0.12 * light) & (blue - green > 0.06 * light)
    for candidate, holds in ((even & is_deep_blue, _is_darker_land), (even, _is_afterglow)):
        mask = _from_the_top(candidate)
        if mask.any():
            mask = _above_the_drop(_without_islands(mask, soft, gradient), light)
            if _spans_the_top(mask) and gradient[mask == 1].mean() < 0.012 and holds(mask, light):
                return _sky_of_dusk(small, _with_low_clouds(mask, soft, gradient, light), soft, gradient, light)
    return None


def _sky_of_dusk(small: Pixels, mask: Mask, soft: Image, gradient: Plane, light: Plane) -> Sky | None:
    _, edged = _edge_support(mask, (gradient > 0.01).astype(np.float32))
    if edged < 0.5:
        return None
    gain = float(np.clip(2.0 / light[mask == 1].mean(), 1.0, 3.0))
    support, _ = _edge_support(mask, _firm_edges(soft * np.float32(gain), gradient * np.float32(gain)))
    colour = _local_colour(soft, mask)
    # In a bright afterglow clouds are dark and narrow too, so nothing thin is told from them.
    thin = _thin(small, mask, colour, gain) if gain > 1.2 else np.zeros_like(mask)
    return Sky(mask, thin, support, colour, *_extent(mask), gain, "dusk")


def _above_the_drop(mask: Mask, light: Plane) -> Mask:
    """`mask` without the rows from where it gets much darker again: dark land that the sky runs into."""
    profile = (light * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
    brightest = np.maximum.accumulate(profile)
    drops = np.flatnonzero((profile < 0.75 * brightest) & (mask.sum(axis=1) > 0))
    above = mask.copy()
    if len(drops):
        above[drops[0] :] = 0
    return above


def _with_low_clouds(mask: Mask, soft: Image, gradient: Plane, light: Plane) -> Mask:
    """Add what the sky goes over into at its lower end without an edge as firm as a skyline: dark clouds, as cool as
    it is. Higher up nothing is added, where it would be masts and walls."""
    low, _ = _low_and_high(mask, light)
    clouds = (gradient < 0.03) & (soft[..., 2] > 1.04 * soft[..., 0]) & (light > 0.35 * low)
    horizon_frac = _extent(mask)[1]
    clouds[: round((horizon_frac - 0.05) * len(mask))] = False
    clouds[round(_LOWEST_CLOUD * len(mask)) :] = False
    return _without_islands(_from_the_top(clouds | (mask == 1)), soft, gradient)


def _extent(mask: Mask) -> tuple[float, float]:
    """Openness and horizon of a sky."""
    lowest = len(mask) - np.argmax(mask[::-1], axis=0)
    ends = lowest[mask.any(axis=0)] / len(mask)
    return min(1.0, float(mask.mean()) / 0.3), float(np.clip(np.quantile(ends, 0.6), *HORIZON_RANGE))


def _spans_the_top(mask: Mask) -> bool:
    height = len(mask)
    top_frac = float(mask[: max(1, height // 50)].max(axis=0).mean())
    bottom_frac = float(mask[-max(1, height // 100) :].max(axis=0).mean())
    return bool(0.15 < mask.mean() < 1.0 and top_frac > 0.6 and bottom_frac < 0.25)


def _is_darker_land(mask: Mask, light: Plane) -> bool:
    low, _ = _low_and_high(mask, light)
    return bool(low > 0.4 and light[mask == 1].mean() < 1.5 and np.median(light[mask == 0]) < 0.95 * low)


def _is_afterglow(mask: Mask, light: Plane) -> bool:
    """Whether a region grows much brighter downwards, to an end that is level and borders on dark land."""
    ends = (len(mask) - np.argmax(mask[::-1], axis=0))[mask.any(axis=0)] / len(mask)
    low, high = _low_and_high(mask, light)
    is_level = float(np.subtract(*np.quantile(ends, (0.9, 0.1)))) < 0.25
    return bool(is_level and low > 1.3 * high and np.median(light[mask == 0]) < 0.4 * low)


def _low_and_high(mask: Mask, light: Plane) -> tuple[float, float]:
    """Mean light of the lowest and of the highest quarter of the rows of a region."""
    rows = np.flatnonzero(mask.sum(axis=1) > mask.shape[1] / 10)
    profile = (light * mask).sum(axis=1)[rows] / mask.sum(axis=1)[rows]
    quarter = max(1, len(rows) // 4)
    return float(profile[-quarter:].mean()), float(profile[:quarter].mean())


def _is_convincing(mask: Mask, soft: Image, gradient: Plane) -> bool:
    """Whether a region may be sky: large, even, along the top, no darker than the rest, blue or bright."""
    height = len(mask)
    inside = mask == 1
    red, green, blue = (float(value) for value in soft[inside].mean(axis=0))
    total = red + green + blue
    rest = light_of(soft)[~inside]
    if inside.mean() < 0.05 or gradient[inside].mean() > 0.012 or (rest.size and total < np.median(rest)):
        return False
    top_frac = float(mask[: max(1, height // 50)].max(axis=0).mean())
    bottom_frac = float(mask[-max(1, height // 100) :].max(axis=0).mean())
    if blue - red > 0.06 * total and blue - green > 0.02 * total:
        return top_frac > 0.25 and bottom_frac < (0.25 if top_frac < 0.9 else 1.0)
    return red - blue < 0.02 and top_frac > 0.6 and bottom_frac < 0.25


def _from_the_top(open_to: NDArray[np.bool_]) -> Mask:
    """The regions of `open_to` that touch the top of the frame on at least 3 % of its width."""
    height, width = open_to.shape
    count, labels = cv2.connectedComponents(open_to.astype(np.uint8), connectivity=4)
    top = labels[: max(1, height // 50)].astype(np.int64)
    columns = np.unique(top * width + np.arange(width)) // width
    keep = np.bincount(columns, minlength=count) >= 0.03 * width
    keep[0] = False
    seeds: Mask = keep.astype(np.uint8)[labels]
    return seeds


def _sky_colours(soft: Image) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels (h, w) that are blue, and pixels that are bright and not warm."""
    red, green, blue = soft[..., 0], soft[..., 1], soft[..., 2]
    total = red + green + blue + np.float32(0.05)
    is_blue = (blue - red > 0.06 * total) & (blue - green > 0.02 * total)
    return is_blue, (total > 1.8) & (red - blue < 0.1)


def _local_colour(soft: Image, mask: Mask) -> Image:
    """Colour of the sky carried on over all the frame: a wide mean under the mask."""
    weight = mask.astype(np.float32)
    sigma_px = max(mask.shape) / 8
    # Zero where there is no sky, so the blur is of the sky alone; `weight` is what it lacks.
    inside = cv2.bitwise_and(soft, soft, mask=mask)
    lacking = small_blur(weight, sigma_px)[..., None] + np.float32(1e-3)
    mean = np.array(cv2.mean(soft, mask=mask)[:3], np.float32)
    small = (small_blur(inside, sigma_px) + np.float32(1e-3) * mean) / lacking
    colour: Image = cv2.resize(small, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return colour


def _grow(mask: Mask, soft: Image, colour: Image, gradient: Plane) -> Mask:
    """Add connected pixels of nearly the local colour, or of clouds; more may differ where the photo is even."""
    residual = highest(cv2.absdiff(soft, colour))
    # In dark skies smaller differences matter.
    tolerance = np.clip(0.25 * highest(colour), 0.02, 0.06)
    alike = (residual < tolerance) | ((residual < 2.5 * tolerance) & (gradient < 0.2 * tolerance))
    is_blue, is_bright = _sky_colours(soft)
    cloud = (is_blue | is_bright) & (gradient < 0.05) & (light_of(soft) > 0.85 * light_of(colour))
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
    light = light_of(soft)
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
    residual = highest(cv2.absdiff(soft, colour))
    is_blue, _ = _sky_colours(soft)
    alike = is_blue & (residual < 0.08) & (gradient < 0.05) & (mask == 0)
    alike[int(np.flatnonzero(mask.any(axis=1))[-1]) :] = False
    _, labels, stats, _ = cv2.connectedComponentsWithStats(alike.astype(np.uint8), connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    small = (area > 4) & (area < 0.05 * mask.size)
    small[0] = False
    gaps: Mask = small.astype(np.uint8)[labels]
    return gaps


def _thin(small: Pixels, mask: Mask, colour: Image, gain: float) -> Mask:
    """Where something up to 6 px wide is darker than what is around it and than the sky behind it."""
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    hat = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, np.ones((7, 7), np.uint8))
    noise = float(np.median(hat[mask == 1]))
    behind = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY) * np.float32(255)
    dark = (hat > 20 / gain + 2 * noise) & (grey < behind - np.float32(15 / gain))
    widened: Mask = cv2.dilate(dark.astype(np.uint8), np.ones((3, 3), np.uint8))
    return widened


def _firm_edges(soft: Image, gradient: Plane) -> Plane:
    """0..1: edges that are strong and in focus; blurred again by 2 px, only the latter lose much of their slope."""
    reach = np.ones((5, 5), np.uint8)
    peak = cv2.dilate(gradient, reach)
    again = cv2.dilate(gradient_of(cv2.GaussianBlur(soft, (0, 0), 2.0)), reach)
    return ramp(peak, 0.015, 0.04) * ramp(peak / (again + np.float32(1e-4)), 1.1, 1.3)


def _edge_support(mask: Mask, firm: Plane) -> tuple[Plane, float]:
    """How far the outline lies on firm edges: as a plane spread around it, and over the whole of it."""
    outline: Plane = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(np.float32)
    supported = outline * firm
    spread = wide_blur(np.stack([supported, outline], axis=2), max(mask.shape) / 20)
    unsure = np.float32(5e-4)
    support: Plane = (spread[..., 0] + unsure) / (spread[..., 1] + unsure)
    return support, float(supported.sum()) / max(float(outline.sum()), 1.0)


def matte(sky: Sky, base: Pixels) -> Plane:
    """Share of sky (H, W): told by colour along the firm outline and thin things, a wide fade elsewhere."""
    height, width = base.shape[:2]
    size = (width, height)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    fade = wide_blur(sky.mask.astype(np.float32), max(sky.mask.shape) / 20)
    firm = ramp(sky.support, 0.7, 0.95)
    bounds = []
    for moved in (cv2.erode(sky.mask, disc) & (1 - sky.thin), cv2.dilate(sky.mask, disc)):
        sharp = cv2.GaussianBlur(moved.astype(np.float32), (0, 0), 0.7)
        bounds.append(cv2.resize(fade + firm * (sharp - fade), size, interpolation=cv2.INTER_LINEAR))
    lower, upper = bounds

    colour = cv2.resize((sky.colour * 255 + 0.5).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
    quiet = cv2.blur(base, (3, 3)) if max(size) > WORK_SIDE_PX else base
    off = highest(cv2.absdiff(quiet, colour))
    table = 1.0 - ramp(np.arange(256, dtype=np.float32) / np.float32(255), 0.07 / sky.gain, 0.15 / sky.gain)
    share: Plane = cv2.LUT(off, table)
    share *= upper - lower
    share += lower
    return np.clip(share, 0.0, 1.0, out=share)
