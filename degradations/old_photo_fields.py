"""Smooth random fields, kept small and enlarged a few rows at a time, so that whole planes are never held."""

import cv2
import numpy as np

from pairforge.image import Plane
from pairforge.rng import Rng

STRIP_ROWS = 64
"""Rows of a photo that are made together; a power of 2."""


def shrink_factor(height: int, width: int, side: int) -> int:
    """The power of 2, at most STRIP_ROWS, by which an image is divided to fit into `side`."""
    factor = 1
    while max(height, width) > side * factor and factor < STRIP_ROWS:
        factor *= 2
    return factor


def small_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Rows and columns of a field for `enlarged`: one more cell on every side than the image needs."""
    return -(-height // factor) + 2, -(-width // factor) + 2


def enlarged(small: Plane, factor: int, top: int, rows: int, width: int) -> Plane:
    """Rows `top` to `top + rows` of a field of `small_size`, linearly; `top` is a multiple of `factor`."""
    block = small[top // factor : -(-(top + rows) // factor) + 2]
    size = (block.shape[1] * factor, block.shape[0] * factor)
    whole = cv2.resize(block, size, interpolation=cv2.INTER_LINEAR)
    part: Plane = whole[factor : factor + rows, factor : factor + width]
    return part


def fractal_field(rows: int, columns: int, largest_cells: float, rng: Rng, persistence: float = 0.5) -> Plane:
    """Noise (rows, columns) of zero mean and unit deviation: octaves from `largest_cells` cells on the long side."""
    longest = max(rows, columns)
    octaves = max(1, int(np.floor(np.log2(longest / largest_cells))) + 1) if longest > largest_cells else 1
    field: Plane = np.zeros((1, 1), np.float32)
    weight = 1.0
    for octave in range(octaves):
        cells = longest / largest_cells / 2**octave
        size = (max(2, round(columns / cells)), max(2, round(rows / cells)))
        field = cv2.resize(field, size, interpolation=cv2.INTER_CUBIC)
        field += np.float32(weight) * rng.standard_normal(size[::-1], dtype=np.float32)
        weight *= persistence
    field = cv2.resize(field, (columns, rows), interpolation=cv2.INTER_CUBIC)
    field -= np.float32(field.mean(dtype=np.float64))
    field /= np.float32(max(float(field.std(dtype=np.float64)), 1e-6))
    return field
