"""PSNR and SSIM of 8-bit pictures, one variant each, and means that never mix categories.

Pictures are RGB (H, W, 3) as they are stored, so what a network returns is rounded to codes first. `on="y"` compares
the luma of ITU-R BT.601 in its video range, 16 to 235, not rounded, as papers on super-resolution do; `border_px` rows
and columns at each side are left out, which the same papers set to the scale. All raise ValueError for pictures that
cannot be compared.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Pixels
from pairforge.records import Frozen

Colours = Literal["rgb", "y"]

MOST_PSNR_DB = 100.0
"""Of equal pictures, and the most that any others get: a finite number, for JSON and for means."""
SSIM_WINDOW_PX, SSIM_SIGMA_PX = 11, 1.5
_LUMA_601 = np.array([[65.481, 128.553, 24.966]]) / 255


def psnr_db(pixels: Pixels, truth: Pixels, on: Colours = "rgb", border_px: int = 0) -> float:
    """Peak signal-to-noise ratio against 255, from one mean squared error over all pixels and channels."""
    first, second = _comparable(pixels, truth, on, border_px)
    mean_squared = float(cv2.norm(first, second, cv2.NORM_L2SQR)) / first.size
    return min(MOST_PSNR_DB, 10 * float(np.log10(255**2 / mean_squared))) if mean_squared else MOST_PSNR_DB


def ssim(pixels: Pixels, truth: Pixels, on: Colours = "rgb", border_px: int = 0) -> float:
    """Structural similarity, -1..1 (Wang, Bovik, Sheikh and Simoncelli, TIP 2004, eq. 13).

    Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, moments of the window itself (not of a
    sample), windows that lie inside the picture alone, full resolution; of each channel, then the mean of the three.
    Needs 11 pixels each way.
    """
    first, second = _comparable(pixels, truth, on, border_px)
    if min(first.shape[:2]) < SSIM_WINDOW_PX:
        raise ValueError(f"SSIM needs {SSIM_WINDOW_PX} pixels each way, not {first.shape[1]}x{first.shape[0]}")
    # With s and d for sum and difference, 2ab = (s^2 - d^2) / 2 and a^2 + b^2 = (s^2 + d^2) / 2, for means as for
    # moments: four filters instead of five. In float64, since variances are small differences of large squares.
    total, difference = first + second, first - second
    mean_total, mean_difference = _window_means(total) ** 2, _window_means(difference) ** 2
    variance_total = _window_means(total * total) - mean_total
    variance_difference = _window_means(difference * difference) - mean_difference
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (mean_total - mean_difference + 2 * c1) / (mean_total + mean_difference + 2 * c1)
    structure = (variance_total - variance_difference + 2 * c2) / (variance_total + variance_difference + 2 * c2)
    return float((luminance * structure).mean())


class Mean(Frozen):
    """Of one metric in one category. `missing` counts pictures without a value; they are in no mean."""

    mean: float | None
    count: int
    missing: int = 0


def means_by_category(
    rows: Iterable[tuple[str, Mapping[str, float | None]]],
) -> dict[str, dict[str, Mean]]:
    """Mean of each metric within each category, from (category, metrics) of single pictures; both sorted by name.

    There is no mean over categories: they differ in number and in difficulty, so it would say more about their shares.
    Where all pictures of a category lack a metric, the mean is None. A metric that some rows do not name is missing
    in them.
    """
    found: dict[str, list[Mapping[str, float | None]]] = {}
    for category, metrics in rows:
        found.setdefault(category, []).append(metrics)
    names = sorted({name for several in found.values() for metrics in several for name in metrics})
    return {
        category: {name: _mean([metrics.get(name) for metrics in found[category]]) for name in names}
        for category in sorted(found)
    }


def _mean(values: list[float | None]) -> Mean:
    present = [value for value in values if value is not None]
    mean = float(np.mean(present)) if present else None
    return Mean(mean=mean, count=len(present), missing=len(values) - len(present))


def _comparable(
    pixels: Pixels, truth: Pixels, on: Colours, border_px: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    for picture in (pixels, truth):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"8-bit RGB (H, W, 3) is compared, not {picture.dtype} of shape {picture.shape}")
    if pixels.shape != truth.shape:
        raise ValueError(f"sizes differ: {pixels.shape[1]}x{pixels.shape[0]} and {truth.shape[1]}x{truth.shape[0]}")
    height, width = pixels.shape[:2]
    if border_px < 0 or 2 * border_px >= min(height, width):
        raise ValueError(f"border_px {border_px} of {width}x{height}; allowed: 0 to less than half of the short side")
    inside = slice(border_px, height - border_px), slice(border_px, width - border_px)
    return _values(pixels[inside], on), _values(truth[inside], on)


def _values(pixels: Pixels, on: Colours) -> NDArray[np.float64]:
    values = pixels.astype(np.float64)
    if on == "rgb":
        return values
    if on != "y":
        raise ValueError(f"on is {on!r}; allowed: 'rgb', 'y'")
    luma: NDArray[np.float64] = cv2.transform(values, _LUMA_601) + 16
    return luma


def _window_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means around the pixels whose window lies inside."""
    kernel = cv2.getGaussianKernel(SSIM_WINDOW_PX, SSIM_SIGMA_PX, cv2.CV_64F)
    reach = SSIM_WINDOW_PX // 2
    means: NDArray[np.float64] = cv2.sepFilter2D(values, cv2.CV_64F, kernel, kernel)
    return means[reach:-reach, reach:-reach]
