"""Faces without weights to fetch: the cascade of local binary patterns that ships inside scikit-image.

Frontal, upright faces only; see the tests for what it finds and what it takes for a face. Source: Viola and Jones,
CVPR 2001, with the features of Zhang et al., ICB 2007.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2

from pairforge.image import Pixels

FACES_REVISION = "1"

_WORK_SIDE_PX = 512


@dataclass(frozen=True)
class Box:
    """A face in pixels of its base: left and top edge, width and height."""

    x: int
    y: int
    width: int
    height: int


def find_faces(base: Pixels) -> list[Box]:
    """Faces of `base` (uint8, H x W x 3), the largest first; pure function of the pixels.

    Faces smaller than 1/12 of the longer side are not looked for.
    """
    height, width = base.shape[:2]
    scale = min(1.0, _WORK_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(base, size, interpolation=cv2.INTER_AREA)
    least = max(24, max(size) // 12)
    if min(size) < least:
        return []
    found = _cascade().detect_multi_scale(
        img=small,
        scale_factor=1.15,
        step_ratio=1.3,
        min_size=(least, least),
        max_size=(min(size), min(size)),
    )
    boxes = [
        Box(round(f["c"] / scale), round(f["r"] / scale), round(f["width"] / scale), round(f["height"] / scale))
        for f in found
    ]
    return sorted(boxes, key=lambda box: (-box.width * box.height, box.y, box.x))


def is_portrait(boxes: list[Box], shape: tuple[int, ...]) -> bool:
    """Whether a face of at least 1/8 of the shorter side has its centre in the middle of a frame (H, W)."""
    height, width = shape[:2]
    return any(
        box.height >= min(height, width) / 8
        and 0.15 * width < box.x + box.width / 2 < 0.85 * width
        and box.y + box.height / 2 < 0.75 * height
        for box in boxes
    )


@cache
def _cascade() -> Any:
    from skimage import data
    from skimage.feature import Cascade

    return Cascade(data.lbp_frontal_face_cascade_filename())
