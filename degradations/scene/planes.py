"""Small whole-plane helpers that the providers of scene maps share."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Image, Plane


def gradient_of(planes: NDArray[np.float32]) -> Plane:
    """Code values per pixel (h, w); of the steepest channel."""
    dx, dy = cv2.Sobel(planes, -1, 1, 0, scale=1 / 8), cv2.Sobel(planes, -1, 0, 1, scale=1 / 8)
    steep: Plane = np.sqrt(dx * dx + dy * dy)
    of_all: Plane = steep if steep.ndim == 2 else highest(steep)
    return of_all


def highest(planes: NDArray[Any]) -> NDArray[Any]:
    """Largest of three channels (h, w)."""
    high: NDArray[Any] = np.maximum(planes[..., 0], planes[..., 1])
    np.maximum(high, planes[..., 2], out=high)
    return high


def light_of(soft: Image) -> Plane:
    """Sum of the three channels (h, w)."""
    total: Plane = cv2.transform(soft, np.ones((1, 3), np.float32))
    return total


def ramp(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Cubic step from 0 at `low` to 1 at `high`."""
    unit = np.clip((values - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0)
    stepped: NDArray[np.float32] = unit * unit * (3.0 - 2.0 * unit)
    return stepped


def wide_blur(planes: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Gaussian blur, made at a quarter of the size."""
    height, width = planes.shape[:2]
    back: NDArray[np.float32] = cv2.resize(
        small_blur(planes, sigma_px), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return back


def small_blur(planes: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Gaussian blur at a quarter of the size; `sigma_px` counts pixels of the full size."""
    height, width = planes.shape[:2]
    shrunk = cv2.resize(planes, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    blurred: NDArray[np.float32] = cv2.GaussianBlur(shrunk, (0, 0), max(sigma_px / 4, 0.3))
    return blurred
