"""Cues of a layout: where the photo is in focus, and the point where its long straight edges meet."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.scene.planes import gradient_of, wide_blur
from pairforge.image import Pixels, Plane, to_float

_LEAST_SIDE_PX = 48
_LEAST_SPREAD = 0.6
_LEAST_CENTRE = 0.1
_ANGLE_RAD = np.deg2rad(2.5)
_CANDIDATES = (21, 15)
"""Columns and rows of the grid of points that are tried, over the middle 60 % of the frame."""


@dataclass(frozen=True)
class Focus:
    """`sharpness` (h, w) in 0..1, smooth; `spread` in 0..1 says how much it varies, `centred` how much higher it
    is in the middle of the frame than along its border.
    """

    sharpness: Plane
    spread: float
    centred: float

    @property
    def is_close_up(self) -> bool:
        large = min(self.sharpness.shape) >= _LEAST_SIDE_PX
        return large and self.spread > _LEAST_SPREAD and self.centred > _LEAST_CENTRE


@dataclass(frozen=True)
class Edges:
    """Ends (n, 2), as x and y, of the straight edges of a photo of `height` x `width` px."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    height: int
    width: int


@dataclass(frozen=True)
class VanishingPoint:
    """Where depth lines meet, as fractions of the frame; `support` in 0..1 is the share of slanted edges that
    run to it.
    """

    x_frac: float
    y_frac: float
    support: float


def focus_of(small: Pixels) -> Focus:
    """Where edges are in focus: an edge of blur sigma, blurred again by 1 px, loses a factor
    sqrt(1 + 1 / sigma^2) of its slope. Even areas take the value of what is around them.
    """
    grey: Plane = cv2.cvtColor(to_float(small), cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    strength = gradient_of(grey)
    ratio = strength / (gradient_of(cv2.GaussianBlur(grey, (0, 0), 1.0)) + np.float32(1e-3))
    weight = np.maximum(strength - np.float32(0.01), 0.0)
    sharpness = np.clip((ratio - 1.0) / 0.5, 0.0, 1.0)
    both = np.stack([sharpness * weight, weight], axis=2)
    local = wide_blur(both, max(height, width) / 24)
    low, high = np.quantile(local[..., 0] / (local[..., 1] + np.float32(1e-4)), (0.1, 0.9))
    # Without an edge at hand an area counts as out of focus.
    wide = wide_blur(both, max(height, width) / 14)
    smooth = wide[..., 0] / (wide[..., 1] + np.float32(2e-3))
    top, bottom, left, right = height // 4, height - height // 4, width // 4, width - width // 4
    middle = np.zeros((height, width), bool)
    middle[top:bottom, left:right] = True
    centred = float(smooth[middle].mean() - smooth[~middle].mean()) if middle.any() and not middle.all() else 0.0
    lowest, highest = np.quantile(smooth, (0.02, 0.98))
    scaled = np.clip((smooth - lowest) / max(float(highest - lowest), 1e-3), 0.0, 1.0)
    spread = float(np.clip((high - low - 0.2) / 0.3, 0.0, 1.0))
    return Focus(scaled.astype(np.float32), spread, centred)


def straight_edges(small: Pixels) -> Edges:
    """Ends of the straight edges of a photo (Grompone von Gioi et al., IPOL 2012), without refinement."""
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    found = cv2.createLineSegmentDetector(cv2.LSD_REFINE_NONE).detect(grey)[0]
    lines = np.zeros((0, 4)) if found is None else found.reshape(-1, 4).astype(np.float64)
    return Edges(lines[:, :2], lines[:, 2:], small.shape[0], small.shape[1])


def is_rectilinear(edges: Edges) -> bool:
    """Whether there is much that is built: many long edges both upright and level."""
    step = np.abs(edges.end - edges.start)
    length = np.hypot(step[:, 0], step[:, 1])
    length[length < 0.06 * max(edges.height, edges.width)] = 0.0
    least = 0.4 * 2 * (edges.height + edges.width)
    return bool(length[step[:, 0] < 0.09 * length].sum() > least and length[step[:, 1] < 0.09 * length].sum() > least)


def vanishing_point(edges: Edges) -> VanishingPoint | None:
    """The point inside the frame to which most of the slanted straight edges run, or None without a clear one."""
    height, width = edges.height, edges.width
    if min(height, width) < _LEAST_SIDE_PX:
        return None
    start, end = edges.start, edges.end
    step = end - start
    length = np.hypot(step[:, 0], step[:, 1])
    slanted = (length > 0.05 * max(height, width)) & (np.abs(step).min(axis=1) > 0.12 * length)
    start, end, length = start[slanted], end[slanted], length[slanted]
    if len(length) < 8:
        return None
    columns, rows = _CANDIDATES
    x, y = np.meshgrid(np.linspace(0.2, 0.8, columns) * width, np.linspace(0.2, 0.8, rows) * height)
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    score = _votes(start, end, length, points)
    best = int(np.argmax(score))
    support = float(score[best])
    contrast = support / max(float(np.median(score)), 1e-6)
    if support < 0.4 or contrast < 3.0:
        return None
    return VanishingPoint(float(points[best, 0]) / width, float(points[best, 1]) / height, min(1.0, support))


def _votes(
    start: NDArray[np.float64], end: NDArray[np.float64], length: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of the length of the edges that runs to each of the points (n)."""
    middle = (start + end) / 2
    to_point = points[:, None] - middle[None]
    away = np.hypot(to_point[..., 0], to_point[..., 1])
    along = (end - start) / length[:, None]
    sine = np.abs(to_point[..., 0] * along[:, 1] - to_point[..., 1] * along[:, 0]) / np.maximum(away, 1.0)
    # An edge that the point lies on says nothing: depth lines end at it or before it.
    counts = length * (away > 0.6 * length)
    votes: NDArray[np.float64] = (counts * np.exp(-((sine / _ANGLE_RAD) ** 2))).sum(axis=1) / length.sum()
    return votes
