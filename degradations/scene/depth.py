"""Depth without weights: a layout guessed from the pixels, for haze, rain and snow on a fresh machine.

It is not a depth network. It sees sky (top-connected, smooth, bright or blue), a ground plane below an
assumed horizon, and, where a photo has strong bokeh, which edges are in focus; colour edges decide where
the layout may jump. It does not know objects: a person's head is placed by its row and its neighbours'
colours, a white wall that reaches the top of the frame is taken for sky, dark texture on one surface may
get a slightly different distance. Metres are assumed, not measured. Do not use it as depth supervision.

Sources: inverse-depth ground plane of a level pinhole camera; domain transform, recursive form (Gastal and
Oliveira, SIGGRAPH 2011, Eq. 21); guided filter (He et al., TPAMI 2013; subsampled as in He and Sun 2015);
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
GEOMETRIC_REVISION = "1"

_WORK_SIDE_PX = 320
_CAMERA_HEIGHT_M = 1.5
_HORIZON_RANGE = (0.35, 0.9)
_HORIZON_WITHOUT_SKY = 0.38
_ABOVE_HORIZON_Q = 0.06
"""Inverse depth, as a share of the near limit's, of what stands above the horizon and is no sky."""


@dataclass(frozen=True)
class _Sky:
    probability: Plane
    area_frac: float
    openness: float
    """0..1, how surely the scene is outdoors: large sky, blue or very bright; a grey wall counts little."""
    horizon_frac: float


def geometric_depth(base: Pixels) -> Depth:
    """Guess the distance of every pixel; pure function of the pixels, see the module for its limits.

    Outdoors (sky found) `z_m` spans about 1.5..5 m to 100..300 m; without sky it ends at 50 m and the
    layout leans on the image centre and on focus. `confidence` stays below 0.4 and grows with the cues
    that were found: sky, and a spread of edge blur.
    """
    height, width = base.shape[:2]
    scale = min(1.0, _WORK_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = to_float(cv2.resize(base, size, interpolation=cv2.INTER_AREA))

    sky = _find_sky(small)
    focus, focus_spread = _focus_cue(small)
    layout = _layout(sky, focus, focus_spread, size)
    smooth = _diffuse(layout, 1.0 - sky.probability, small)

    grey = cv2.cvtColor(base, cv2.COLOR_RGB2GRAY).astype(np.float32) * np.float32(1 / 255)
    grey_small: Plane = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    radius = max(1, round(max(size) / 60))
    q = guided_upsample(smooth, grey_small, grey, radius, eps=4e-3)
    sky_full = _sharpen(guided_upsample(sky.probability, grey_small, grey, radius, eps=1e-3))

    z_near, z_far = _limits_m(sky, width, height)
    q = np.clip(q, 0.0, 1.0) * (1.0 - sky_full)
    z_m = 1.0 / (q * np.float32(1 / z_near - 1 / z_far) + np.float32(1 / z_far))
    confidence = 0.1 + 0.2 * sky.openness * min(1.0, sky.area_frac / 0.15) + 0.08 * focus_spread
    return Depth(
        z_m=z_m.astype(np.float32, copy=False),
        sky=sky_full,
        focal_px=float(width),
        provider=GEOMETRIC_PROVIDER,
        revision=GEOMETRIC_REVISION,
        confidence=round(confidence, 3),
        metric=False,
    )


def guided_upsample(source: Plane, guide_small: Plane, guide: Plane, radius_px: int, eps: float) -> Plane:
    """Guided filter of `source` (h, w) at the size of `guide` (H, W); coefficients are found at (h, w).

    `radius_px` is at the small size; `eps` is the variance of the guide, in code values squared, below
    which a neighbourhood counts as flat.
    """
    window = (2 * radius_px + 1, 2 * radius_px + 1)

    def box(plane: NDArray[np.floating[Any]]) -> Plane:
        mean: Plane = cv2.boxFilter(plane, -1, window, borderType=cv2.BORDER_REFLECT)
        return mean

    mean_g, mean_s = box(guide_small), box(source)
    variance = box(guide_small * guide_small) - mean_g * mean_g
    slope = (box(guide_small * source) - mean_g * mean_s) / (variance + np.float32(eps))
    offset = mean_s - slope * mean_g
    size = (guide.shape[1], guide.shape[0])
    full: Plane = cv2.resize(box(slope), size, interpolation=cv2.INTER_LINEAR)
    full = full * guide + cv2.resize(box(offset), size, interpolation=cv2.INTER_LINEAR)
    return full


def _sharpen(probability: Plane) -> Plane:
    """Push a filtered mask towards 0 and 1 (cubic step between 0.25 and 0.75), keeping it smooth."""
    unit = np.clip((probability - 0.25) * 2.0, 0.0, 1.0)
    stepped: Plane = unit * unit * (3.0 - 2.0 * unit)
    return stepped


def _find_sky(small: Image) -> _Sky:
    """Smooth, bright or blue regions that touch the top of the frame and little of its bottom."""
    height, width = small.shape[:2]
    soft: Image = cv2.GaussianBlur(small, (0, 0), max(width, height) / 250)
    grey: Plane = cv2.cvtColor(soft, cv2.COLOR_RGB2GRAY)
    gradient = np.hypot(cv2.Sobel(grey, -1, 1, 0, scale=1 / 8), cv2.Sobel(grey, -1, 0, 1, scale=1 / 8))
    red, green, blue = soft[..., 0], soft[..., 1], soft[..., 2]
    total = red + green + blue + np.float32(0.05)
    is_blue = (blue - red > 0.06 * total) & (blue - green > 0.02 * total)
    # Sky does not darken towards the horizon: this keeps blue dusk land out of a blue dusk sky.
    top_blue = grey[: max(1, height // 8)][is_blue[: max(1, height // 8)]]
    is_blue &= grey > (0.6 * float(np.median(top_blue)) if top_blue.size else 1.0)
    is_bright = (grey > 0.6) & (red - blue < 0.25)
    candidate = ((gradient < 0.02) & (is_blue | is_bright)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(candidate, connectivity=4)

    mask = np.zeros((height, width), np.uint8)
    top = labels[: max(1, height // 50)]
    bottom = labels[-max(1, height // 100) :]
    for label in range(1, count):
        touches_top = np.count_nonzero((top == label).any(axis=0)) >= 0.03 * width
        reaches_bottom = np.count_nonzero((bottom == label).any(axis=0)) >= 0.15 * width
        if touches_top and not reaches_bottom and stats[label, cv2.CC_STAT_AREA] >= 0.02 * candidate.size:
            mask[labels == label] = 1
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    # The gradient threshold leaves a rim along every edge: give the rim back.
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    area = float(mask.mean())
    if area == 0.0:
        return _Sky(mask.astype(np.float32), 0.0, 0.0, _HORIZON_WITHOUT_SKY)
    inside = mask == 1
    plausible = max(float(is_blue[inside].mean()), float(np.clip((grey[inside].mean() - 0.7) / 0.2, 0, 1)))
    openness = plausible * min(1.0, area / 0.05)
    return _Sky(mask.astype(np.float32), area, openness, _horizon_frac(mask))


def _horizon_frac(mask: NDArray[np.uint8]) -> float:
    """Row, as a share of the height, at which sky ends in most columns that have sky."""
    height = mask.shape[0]
    lowest = height - np.argmax(mask[::-1], axis=0)
    ends = lowest[mask.any(axis=0)] / height
    return float(np.clip(np.quantile(ends, 0.6), *_HORIZON_RANGE))


def _focus_cue(small: Image) -> tuple[Plane, float]:
    """Sharpness in [0, 1] spread from edges over the frame, and how much it varies (0: deep focus).

    An edge of blur sigma, blurred again by 1 px, loses a factor sqrt(1 + 1 / sigma^2) of its gradient.
    """
    grey: Plane = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    again: Plane = cv2.GaussianBlur(grey, (0, 0), 1.0)
    strength = np.hypot(cv2.Sobel(grey, -1, 1, 0, scale=1 / 8), cv2.Sobel(grey, -1, 0, 1, scale=1 / 8))
    left = np.hypot(cv2.Sobel(again, -1, 1, 0, scale=1 / 8), cv2.Sobel(again, -1, 0, 1, scale=1 / 8))
    ratio = strength / (left + np.float32(1e-3))
    sharpness = np.clip((ratio - 1.0) / 0.5, 0.0, 1.0)
    weight = np.maximum(strength - np.float32(0.01), 0.0)
    sigma = max(small.shape[:2]) / 24
    near: Plane = cv2.GaussianBlur(sharpness * weight, (0, 0), sigma)
    cue = near / (cv2.GaussianBlur(weight, (0, 0), sigma) + np.float32(1e-4))
    low, high = np.quantile(cue, 0.1), np.quantile(cue, 0.9)
    spread = float(np.clip((high - low - 0.2) / 0.3, 0.0, 1.0))
    return np.clip((cue - low) / (high - low + np.float32(1e-3)), 0.0, 1.0), spread


def _layout(sky: _Sky, focus: Plane, focus_spread: float, size: tuple[int, int]) -> Plane:
    """Prior of inverse depth in [0, 1] (1: nearest) before it is fitted to colour edges."""
    width, height = size
    row = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    column = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :]
    ground = np.maximum(row - sky.horizon_frac, 0.0) / (1.0 - sky.horizon_frac)
    # Things that stand above the horizon are as far as their foot, which is somewhere below it.
    layout = np.hypot(ground, _ABOVE_HORIZON_Q) * np.ones_like(column)
    indoor = 1.0 - sky.openness
    centre = np.exp(-((column - 0.5) ** 2) / 0.08 - (row - 0.55) ** 2 / 0.14)
    layout = (1.0 - 0.35 * indoor) * layout + 0.35 * indoor * centre
    focus_weight = 0.6 * focus_spread * (0.3 + 0.7 * indoor)
    layout = layout * (1.0 - focus_weight) + focus * focus_weight
    return layout.astype(np.float32)


def _limits_m(sky: _Sky, width: int, height: int) -> tuple[float, float]:
    """Nearest and farthest distance: the bottom row's ground distance, and how open the view is."""
    below_px = height * (1.0 - sky.horizon_frac)
    z_near = float(np.clip(_CAMERA_HEIGHT_M * width / below_px, 1.5, 5.0))
    if sky.area_frac == 0.0:
        return z_near, 50.0
    return z_near, 100.0 + 200.0 * sky.openness * min(1.0, sky.area_frac / 0.4)


def _diffuse(layout: Plane, weight: Plane, small: Image) -> Plane:
    """Edge-aware mean of `layout` under `weight`: flat inside a colour region, free to jump between."""
    reach_px = max(small.shape[:2]) / 5
    contrast = 0.25
    steps_x = 1.0 + reach_px / contrast * np.abs(np.diff(small, axis=1)).sum(axis=2)
    steps_y = 1.0 + reach_px / contrast * np.abs(np.diff(small, axis=0)).sum(axis=2)
    weight = weight + np.float32(1e-3)
    planes = np.stack([layout * weight, weight], axis=2)
    passes = 3
    for index in range(passes):
        sigma = reach_px * np.sqrt(3.0) * 2.0 ** (passes - 1 - index) / np.sqrt(4.0**passes - 1.0)
        decay = np.exp(np.float32(-np.sqrt(2.0) / sigma) * steps_x)
        planes = _sweep(planes.transpose(1, 0, 2), decay.T).transpose(1, 0, 2)
        planes = _sweep(planes, np.exp(np.float32(-np.sqrt(2.0) / sigma) * steps_y))
    mean: Plane = np.ascontiguousarray(planes[..., 0] / planes[..., 1])
    return mean


def _sweep(planes: NDArray[np.float32], decay: NDArray[np.float32]) -> NDArray[np.float32]:
    """First-order recursion along axis 0, forth and back; `decay` lies between neighbours."""
    out = np.ascontiguousarray(planes)
    gain = np.ascontiguousarray(decay)[..., None]
    if out is planes:
        out = planes.copy()
    for index in range(1, len(out)):
        out[index] += gain[index - 1] * (out[index - 1] - out[index])
    for index in range(len(out) - 2, -1, -1):
        out[index] += gain[index] * (out[index + 1] - out[index])
    return out
