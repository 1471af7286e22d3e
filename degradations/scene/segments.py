"""Regions without weights: superpixels merged by colour. Not semantic: shadows split, similar neighbours merge.

Superpixels: SLIC (Achanta et al., TPAMI 2012) of scikit-image in CIELAB, 300 of them, compactness 10, sigma 1.
Neighbours are then merged in the order of their colour difference (Delta E, CIE 1976, of their mean colours) as
long as that is below 8, and further until 30 are left; never below 5.
"""

import heapq
import math
from importlib.metadata import version

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.scene.stored import SegmentMap, compact_labels
from pairforge.image import Pixels, to_float

_WORK_SIDE_PX = 512
_SUPERPIXELS, _COMPACTNESS, _SIGMA_PX = 300, 10.0, 1.0
_MERGE_BELOW_DELTA_E = 8.0
_FEWEST, _MOST = 5, 30
_CONFIDENCE = 0.3


class SlicSegments:
    """The provider; see the module. Regions are connected at the working size of up to 512 px a side."""

    name = "slic"

    def __init__(self) -> None:
        # The superpixels are those of the installed scikit-image.
        self.revision = f"1-skimage{version('scikit-image')}"

    def __call__(self, base: Pixels) -> SegmentMap:
        """Regions of `base`; pure function of the pixels. A base of few pixels or one colour has fewer than 5."""
        from skimage.segmentation import slic

        height, width = base.shape[:2]
        scale = min(1.0, _WORK_SIDE_PX / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(base, size, interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(to_float(small), cv2.COLOR_RGB2LAB)
        count = max(1, min(_SUPERPIXELS, lab.shape[0] * lab.shape[1] // 16))
        found = slic(
            lab.astype(np.float64),
            n_segments=count,
            # It lays the values over 0..1 first; this makes up for that.
            compactness=_COMPACTNESS / max(float(np.ptp(lab)), 1.0),
            sigma=_SIGMA_PX,
            max_num_iter=5,
            convert2lab=False,
            start_label=0,
            channel_axis=2,
        )
        superpixels, count = compact_labels(found)
        labels, merged = merge_regions(superpixels, count, lab)
        facts = {"superpixels": count, "largest_delta_e": merged}
        renumbered, count = compact_labels(labels)
        return SegmentMap(renumbered.astype(np.uint16), count, self.name, self.revision, _CONFIDENCE, facts)


def merge_regions(labels: NDArray[np.int32], count: int, lab: NDArray[np.float32]) -> tuple[NDArray[np.int32], float]:
    """`labels` (h, w) 0 .. count - 1 with alike neighbours merged, and the largest difference that was bridged."""
    flat = labels.ravel()
    size = np.bincount(flat, minlength=count).astype(np.float64)
    total = np.stack([np.bincount(flat, weights=lab[..., i].ravel(), minlength=count) for i in range(3)], axis=1)
    mean = total / size[:, None]
    neighbours = _neighbours(labels, count)
    owner = np.arange(count)
    heap = [(_delta_e(mean[a], mean[b]), a, b) for a in range(count) for b in neighbours[a] if a < b]
    heapq.heapify(heap)
    left, bridged = count, 0.0
    while heap and left > _FEWEST:
        delta_e, a, b = heapq.heappop(heap)
        if a not in neighbours or b not in neighbours or delta_e != _delta_e(mean[a], mean[b]):
            continue
        if delta_e >= _MERGE_BELOW_DELTA_E and left <= _MOST:
            break
        bridged = max(bridged, delta_e)
        mean[a] = (mean[a] * size[a] + mean[b] * size[b]) / (size[a] + size[b])
        size[a] += size[b]
        owner[owner == b] = a
        for other in neighbours.pop(b) - {a}:
            neighbours[other].discard(b)
            neighbours[other].add(a)
            neighbours[a].add(other)
        neighbours[a].discard(b)
        left -= 1
        for other in sorted(neighbours[a]):
            heapq.heappush(heap, (_delta_e(mean[a], mean[other]), min(a, other), max(a, other)))
    return owner[labels].astype(np.int32), round(bridged, 3)


def _neighbours(labels: NDArray[np.int32], count: int) -> dict[int, set[int]]:
    """For every region those that share a boundary with it."""
    pairs = [
        np.stack([one.ravel(), other.ravel()], axis=1)
        for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:]))
    ]
    codes = np.concatenate(pairs).astype(np.int64)
    codes = codes[codes[:, 0] != codes[:, 1]]
    found: dict[int, set[int]] = {label: set() for label in range(count)}
    for code in np.unique(codes[:, 0] * count + codes[:, 1]):
        a, b = divmod(int(code), count)
        found[a].add(b)
        found[b].add(a)
    return found


def _delta_e(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    lightness, a, b = (float(value) for value in one - other)
    return math.sqrt(lightness * lightness + a * a + b * b)
