"""What the classical generator measures of a picture to choose its restorers. Code values, one window in the middle.

Sources: noise after Immerkaer (CVIU 1996) in calm blocks; width of edges from gradient energies at two scales, after
Zhuo and Sim (Pattern Recognition 2011); dark channel (He et al., CVPR 2009).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Pixels, Plane

_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_FINE_SIGMA_PX, _COARSE_SIGMA_PX = 0.8, 2.4


@dataclass(frozen=True)
class Symptoms:
    """`blockiness`: excess of the step at the 8-pixel grid; `veil`, `median_luma`: 0..1 of code values.

    `edge_sigma_px`: Gaussian blur that would explain how wide edges are, 0..8.
    """

    noise_codes: float
    edge_sigma_px: float
    blockiness: float
    veil: float
    median_luma: float


def measure_symptoms(pixels: Pixels) -> Symptoms:
    window = _middle(pixels)
    luma = cv2.cvtColor(window, cv2.COLOR_RGB2GRAY)
    noise = noise_sigma(luma)
    overview = cv2.resize(pixels, _fitted(pixels, 256), interpolation=cv2.INTER_AREA)
    side = max(3, max(overview.shape[:2]) // 17 | 1)
    darkest = cv2.erode(overview.min(axis=2), np.ones((side, side), np.uint8))
    return Symptoms(
        noise_codes=noise,
        edge_sigma_px=_edge_sigma(luma.astype(np.float32)),
        blockiness=max(float(excess.max() - np.median(excess)) for excess in _grid_excesses(window)),
        veil=float(np.percentile(darkest, 10)) / 255,
        median_luma=float(np.median(cv2.cvtColor(overview, cv2.COLOR_RGB2GRAY))) / 255,
    )


def noise_sigma(plane: NDArray[np.uint8]) -> float:
    """Standard deviation of noise in codes, from the calmest blocks; texture that fills the image reads as noise.

    The larger of two estimates: at full size, and at half size for noise that demosaicking and coding have smoothed.
    """
    values = plane.astype(np.float32)
    half = cv2.resize(values, (max(1, plane.shape[1] // 2), max(1, plane.shape[0] // 2)), interpolation=cv2.INTER_AREA)
    return max(_white_sigma(values), 2 * _white_sigma(half))


def _white_sigma(values: Plane) -> float:
    size = (max(1, values.shape[1] // 16), max(1, values.shape[0] // 16))
    response = np.abs(cv2.filter2D(values, cv2.CV_32F, _KERNEL))
    # The 10th percentile over blocks lies a tenth below the mean.
    sigma = cv2.resize(response, size, interpolation=cv2.INTER_AREA) * float(1.1 * np.sqrt(np.pi / 2) / 6)
    mean = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    inside = (mean > 4) & (mean < 251)
    return float(np.percentile(sigma[inside] if inside.any() else sigma, 10))


def grid_phase(pixels: Pixels) -> tuple[int, int]:
    """Rows and columns before the first whole block of 8, where steps are strongest."""
    rows, columns = (int(np.argmax(excess)) for excess in _grid_excesses(pixels[:1024, :1024]))
    return (rows + 1) % 8, (columns + 1) % 8


def _grid_excesses(pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """For 8 phases of rows and of columns: relative excess of steps over those beside them."""
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return _excess(np.abs(np.diff(luma, axis=0)).mean(axis=1)), _excess(np.abs(np.diff(luma, axis=1)).mean(axis=0))


def _excess(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    if len(steps) < 32:
        return np.zeros(8, np.float32)
    beside = (np.roll(steps, 1) + np.roll(steps, -1)) / 2
    whole = len(steps) // 8 * 8
    excess = ((steps - beside) / (beside + 0.5))[:whole].reshape(-1, 8)
    return np.asarray(np.median(excess, axis=0), np.float32)


def _edge_sigma(luma: Plane) -> float:
    """A step blurred by s has a gradient energy as 1 / s, so two scales give s; white noise is subtracted."""
    noise_codes = _white_sigma(luma)
    fine, coarse = (
        _gradient_energy(luma, sigma) - noise_codes**2 / (4 * np.pi * sigma**2) * (1 - np.exp(-1 / sigma**2))
        for sigma in (_FINE_SIGMA_PX, _COARSE_SIGMA_PX)
    )
    if fine <= 0 or coarse <= 0 or fine <= coarse:
        return 8.0
    squared = min((fine / coarse) ** 2, (_COARSE_SIGMA_PX / _FINE_SIGMA_PX) ** 2)
    variance = (_COARSE_SIGMA_PX**2 - squared * _FINE_SIGMA_PX**2) / (squared - 1)
    return float(min(8.0, np.sqrt(max(0.0, variance))))


def _gradient_energy(luma: Plane, sigma_px: float) -> float:
    smooth = cv2.GaussianBlur(luma, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
    dx, dy = smooth[:, 2:] - smooth[:, :-2], smooth[2:] - smooth[:-2]
    return float(sum(cv2.norm(part, cv2.NORM_L2SQR) / (4 * part.size) for part in (dx, dy) if part.size))


def _middle(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    top, left = max(0, (height - 512) // 2), max(0, (width - 512) // 2)
    return pixels[top : top + 512, left : left + 512]


def _fitted(pixels: Pixels, side_px: int) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    factor = min(1.0, side_px / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))
