"""Scene maps at the size of their base: depth follows the edges of the photo where it jumps, labels stay labels.

Depth and sky go through a fast guided filter with a colour guide (He, Sun and Tang, TPAMI 2013, Eq. 19; He and
Sun, arXiv 1505.00996: coefficients are found at the small size and enlarged). Deviations: where a map is smooth it
is only enlarged, so that the texture of the photo leaves no trace in it, and no pixel leaves the range that the map
has around it.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Depth, Segments
from degradations.scene.stored import DepthMap, SegmentMap, compact_labels
from pairforge.image import Pixels, Plane

Values = NDArray[np.float64]

UPSAMPLING_REVISION = "1"

_REACH_PX = 2
"""Of the windows of the filter, in pixels of the map."""
_SQUARE = np.ones((2 * _REACH_PX + 1, 2 * _REACH_PX + 1), np.uint8)
_EPSILON = 1e-4
_SHARPENING = 0.35
_JUMP = (0.1, 0.3)
"""Range of a window over its largest value, between which enlarging turns into filtering."""


def upsample_depth(held: DepthMap, base: Pixels) -> Depth:
    """Depth at the size of `base`, which the map must belong to; a map of that size comes back as it is.

    Raises ValueError for another base, as far as its shape tells.
    """
    height, width = _checked_shape(base, held.sky.shape)
    inverse, sky = held.inverse_depth_per_m.astype(np.float32), held.sky.astype(np.float32)
    some_sky = bool(sky.any())
    if sky.shape == (height, width):
        pass
    elif sky.shape[0] >= height and sky.shape[1] >= width:
        inverse, sky = (cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in (inverse, sky))
    else:
        guide = _Guide(base, inverse)
        inverse = guide.enlarge(inverse)
        sky = guide.enlarge(sky) if some_sky else np.zeros((height, width), np.float32)
    z_m: Plane = cv2.divide(1.0, inverse)
    return Depth(
        z_m=z_m,
        sky=sky,
        focal_px=held.focal_frac * width,
        provider=held.provider,
        revision=held.revision,
        confidence=held.confidence,
        metric=held.metric,
    )


def upsample_segments(held: SegmentMap, base: Pixels) -> Segments:
    """Regions at the size of `base`; a region too small for it is lost, and the others are renumbered.

    Every pixel takes the label with the largest bilinear weight, so outlines are smooth and not blocks.
    Raises ValueError for another base, as far as its shape tells.
    """
    height, width = _checked_shape(base, held.labels.shape)
    labels: NDArray[Any] = held.labels
    if labels.shape != (height, width):
        labels = _enlarged_labels(labels, held.count, height, width)
    numbered, count = compact_labels(labels)
    return Segments(numbered, count, held.provider, held.revision, held.confidence)


def _checked_shape(base: Pixels, shape: tuple[int, ...]) -> tuple[int, int]:
    if base.dtype != np.uint8 or base.ndim != 3 or base.shape[2] != 3:
        raise ValueError(f"a base is uint8 (H, W, 3), not {base.dtype} {base.shape}")
    height, width = base.shape[:2]
    # Rounding each side to whole pixels may cost one pixel a side.
    if abs(shape[0] / height - shape[1] / width) > 1.001 / height + 1.001 / width:
        raise ValueError(f"a map of {shape[1]} x {shape[0]} px does not belong to a base of {width} x {height} px")
    return height, width


class _Guide:
    """A base as guide of the filter for planes that jump where `leading` (h, w) jumps; what they share is found once.

    `share` (n) says how far enlarging turns into filtering at the pixels `near` (h, w) of a jump, outside of which
    it is none. The six entries of `inverse` are those of the inverse covariance of the guide's colours, per pixel.
    """

    def __init__(self, base: Pixels, leading: Plane) -> None:
        self.size = (base.shape[1], base.shape[0])
        low, high = _range_around(leading)
        jump = (high - low) / np.maximum(high, np.float32(1e-6))
        share = _box(np.clip((jump - np.float32(_JUMP[0])) / np.float32(_JUMP[1] - _JUMP[0]), 0.0, 1.0))
        self.near = cv2.dilate((share > 1e-3).astype(np.uint8), _SQUARE) > 0
        self.share = share[self.near].astype(np.float64)
        if not len(self.share):
            return
        small = cv2.resize(base, leading.shape[::-1], interpolation=cv2.INTER_AREA)
        self.channels = [small[..., i] * np.float32(1 / 255) for i in range(3)]
        self.means = [self._mean(channel) for channel in self.channels]
        rr, rg, rb, gg, gb, bb = (
            self._covariance(self.channels[i], self.means[i], j) + (_EPSILON if i == j else 0.0)
            for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
        )
        first = (gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb)
        determinant = rr * first[0] + rg * first[1] + rb * first[2]
        others = (rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg)
        self.inverse = [value / determinant for value in (*first, *others)]
        self.codes = cv2.split(base)
        self.scratch = np.empty(base.shape[:2], np.float32)

    def enlarge(self, plane: Plane) -> Plane:
        """`plane` (h, w) at the size of the base."""
        large: Plane = cv2.resize(plane, self.size, interpolation=cv2.INTER_LINEAR)
        if not len(self.share):
            return large
        mean = self._mean(plane)
        x, y, z = (self._covariance(plane, mean, channel) for channel in range(3))
        rr, rg, rb, gg, gb, bb = self.inverse
        slopes = (rr * x + rg * y + rb * z, rg * x + gg * y + gb * z, rb * x + gb * y + bb * z)
        offset = mean - sum(slope * m for slope, m in zip(slopes, self.means, strict=True))
        low, high = _range_around(plane)
        # Box means soften an edge; contrast around the middle of the range of a window makes up for that.
        sharper = self.share * (1.0 + _SHARPENING * self.share)
        rest = self.share * plane[self.near] + (sharper - self.share) * 0.5 * (low + high)[self.near]

        large += self._large(self._scattered(self._spread(offset) * sharper - rest))
        for slope, codes in zip(slopes, self.codes, strict=True):
            term = self._large(self._scattered(self._spread(slope) * sharper * (1 / 255)))
            term *= codes
            large += term
        np.maximum(large, self._large(low), out=large)
        np.minimum(large, self._large(high), out=large)
        return large

    def _mean(self, plane: Plane) -> Values:
        """Means (n) of the windows around the pixels near a jump."""
        means: Values = _box(plane)[self.near].astype(np.float64)
        return means

    def _covariance(self, plane: Plane, mean: Values, channel: int) -> Values:
        return self._mean(plane * self.channels[channel]) - mean * self.means[channel]

    def _spread(self, values: Values) -> Values:
        """Means (n) over windows of values (n), as they are found where windows overlap."""
        return self._mean(self._scattered(values))

    def _scattered(self, values: Values) -> Plane:
        plane = np.zeros(self.near.shape, np.float32)
        plane[self.near] = values
        return plane

    def _large(self, plane: Plane) -> Plane:
        """Overwritten by the next call: fresh memory would cost more than the enlarging."""
        cv2.resize(plane, self.size, dst=self.scratch, interpolation=cv2.INTER_LINEAR)
        return self.scratch


def _box(plane: NDArray[Any]) -> NDArray[Any]:
    mean: NDArray[Any] = cv2.blur(plane, _SQUARE.shape, borderType=cv2.BORDER_REFLECT)
    return mean


def _range_around(plane: Plane) -> tuple[Plane, Plane]:
    """Lowest and highest value of the window around every pixel."""
    return cv2.erode(plane, _SQUARE), cv2.dilate(plane, _SQUARE)


def _enlarged_labels(labels: NDArray[np.uint16], count: int, height: int, width: int) -> NDArray[Any]:
    """Label of the largest bilinear weight (H, W), found region by region in the box of each."""
    small_height, small_width = labels.shape
    up, right = height / small_height, width / small_width
    nearest: NDArray[Any] = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    if up < 1 or right < 1:
        return nearest
    best = np.zeros((height, width), np.float32)
    chosen = nearest.copy()
    for label, box in enumerate(_boxes(labels, count)):
        # One pixel of margin on all sides, held inside the map; the crop is enlarged by the map's own grid.
        top, bottom = max(0, box[0] - 1), min(small_height, box[1] + 1)
        left, end = max(0, box[2] - 1), min(small_width, box[3] + 1)
        y = np.arange(int(np.ceil(top * up)), int(np.floor(bottom * up)), dtype=np.float32)
        x = np.arange(int(np.ceil(left * right)), int(np.floor(end * right)), dtype=np.float32)
        if not len(x) or not len(y):
            continue
        mask = (labels[top:bottom, left:end] == label).astype(np.float32)
        weight = _sampled(mask, (y + 0.5) / up - 0.5 - top, (x + 0.5) / right - 0.5 - left)
        spot = (slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1))
        wins = weight > best[spot]
        chosen[spot][wins] = label
        best[spot] = np.maximum(best[spot], weight)
    return chosen


def _boxes(labels: NDArray[np.uint16], count: int) -> list[tuple[int, int, int, int]]:
    """First and last + 1 row and column of every label."""
    height, width = labels.shape
    flat = labels.ravel()
    rows, columns = np.divmod(np.arange(flat.size), width)
    result = []
    for values, length in ((rows, height), (columns, width)):
        first, last = np.full(count, length), np.full(count, -1)
        np.minimum.at(first, flat, values)
        np.maximum.at(last, flat, values)
        result += [first, last + 1]
    return [tuple(int(v) for v in box) for box in zip(*result, strict=True)]  # type: ignore[misc]


def _sampled(mask: Plane, y: Plane, x: Plane) -> Plane:
    """Bilinear values of `mask` on the grid of rows `y` and columns `x`, clamped at the borders."""
    map_x, map_y = np.meshgrid(x, y)
    values: Plane = cv2.remap(
        mask, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return values
