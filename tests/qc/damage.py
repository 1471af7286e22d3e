"""Plain damages and movements of photos for the tests of `qc`, made with OpenCV alone: independent of our lines."""

from collections.abc import Callable

import cv2
import numpy as np

from pairforge.image import Pixels
from pairforge.rng import rng_for

Change = Callable[[Pixels], Pixels]


def _noisy(pixels: Pixels, sigma_codes: float) -> Pixels:
    noise = rng_for(5, "noise").normal(0, sigma_codes, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _hazy(pixels: Pixels) -> Pixels:
    """Denser towards the top."""
    transmission = np.linspace(0.2, 0.7, len(pixels))[:, None, None]
    return (pixels * transmission + 235 * (1 - transmission)).astype(np.uint8)


def _coded(pixels: Pixels) -> Pixels:
    _, stream = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 15])
    return np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)


def _dark(pixels: Pixels) -> Pixels:
    return _noisy((255 * (pixels / 255) ** 2.2 * 0.2).astype(np.uint8), 3)


DAMAGES: dict[str, Change] = {
    "none": lambda pixels: pixels,
    "blur": lambda pixels: np.asarray(cv2.GaussianBlur(pixels, (0, 0), 3), np.uint8),
    "noise": lambda pixels: _noisy(pixels, 25),
    "compression": _coded,
    "haze": _hazy,
    "low_light": _dark,
}


def shifted(pixels: Pixels, x_px: float, y_px: float) -> Pixels:
    return _affine(pixels, np.array([[1, 0, x_px], [0, 1, y_px]], np.float32))


def rotated(pixels: Pixels, angle_deg: float) -> Pixels:
    height, width = pixels.shape[:2]
    return _affine(pixels, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle_deg, 1))


def _affine(pixels: Pixels, matrix: np.ndarray) -> Pixels:
    how = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REFLECT}
    return np.asarray(cv2.warpAffine(pixels, matrix, pixels.shape[1::-1], **how), np.uint8)


def warped(pixels: Pixels, reach_px: float) -> Pixels:
    """By a wave of that amplitude each way."""
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]].astype(np.float32)
    map_x = (x + reach_px * np.sin(y / 40)).astype(np.float32)
    map_y = (y + reach_px * np.cos(x / 50)).astype(np.float32)
    return np.asarray(cv2.remap(pixels, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT), np.uint8)


def with_patch_of(pixels: Pixels, other: Pixels, side_px: int) -> Pixels:
    """An object that is not there: a piece of another photo in the middle."""
    top, left = (len(pixels) - side_px) // 2, (pixels.shape[1] - side_px) // 2
    changed = pixels.copy()
    changed[top : top + side_px, left : left + side_px] = other[:side_px, :side_px]
    return changed
