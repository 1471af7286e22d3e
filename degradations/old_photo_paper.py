"""Paper of old prints: its surface under the light of a scanner, yellowing that is not even, darker borders.

Surface: heights of random fibres at two scales; a scanner lights them from one side, so that shade follows the slope.
Yellowing: density in the ratios of BASE_TINT, made of a field with power 1 / f^2 and a rise towards the borders,
where air and album reach first.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Params
from degradations.old_photo_fields import enlarged, fractal_field, shrink_factor, small_size
from pairforge.image import Plane
from pairforge.rng import Rng

_SMOOTH_SIDE_PX = 128
_COARSE_OVER_FINE = 3.0
_SURFACE_LIGHT = 0.03
"""Light that the surface itself reflects, which shows its fibres in blacks too."""
_BYTE_DEVIATION = (65535 / 12) ** 0.5


class PaperParams(Params):
    """`paper_shade_frac`: standard deviation of the shade of the surface. `fibre_px`: width of its fibres.
    `mottle_density`, `border_density`: density in blue of uneven yellowing (standard deviation) and of the borders.
    """

    paper_shade_frac: float = Field(ge=0, le=0.2)
    fibre_px: float = Field(ge=0.3, le=10)
    mottle_density: float = Field(ge=0, le=0.5)
    border_density: float = Field(ge=0, le=1)


def sample_paper(severity: float, rng: Rng) -> PaperParams:
    """Shade up to 4 %; borders and mottle yellow with severity."""
    return PaperParams(
        paper_shade_frac=float((0.003 + 0.032 * severity) * rng.uniform(0.6, 1.2)),
        fibre_px=float(rng.uniform(0.7, 1.6)),
        mottle_density=float((0.004 + 0.05 * severity) * rng.uniform(0.6, 1.4)),
        border_density=float((0.005 + 0.25 * severity) * rng.uniform(0.3, 1.2)),
    )


@dataclass(frozen=True)
class Paper:
    """Noise of the fibres, larger than the photo by the reach of their kernels; coarse shade at half size; light
    that yellowing leaves in blue, at 1 / `factor` of the size.
    """

    fibres: NDArray[np.uint8]
    along: NDArray[np.float32]
    down: NDArray[np.float32]
    coarse: Plane
    light: Plane
    factor: int


def draw_paper(height: int, width: int, params: PaperParams, rng: Rng) -> Paper:
    along, down = _slope_kernels(params.fibre_px, 0.8 * params.paper_shade_frac)
    fibres = rng.integers(0, 256, (height + len(down) - 1, width + len(along) - 1), np.uint8)
    rows, columns = small_size(height, width, 2)
    coarse_along, coarse_down = _slope_kernels(params.fibre_px * _COARSE_OVER_FINE / 2, 0.6 * params.paper_shade_frac)
    noise = rng.integers(0, 256, (rows, columns), np.uint8)
    coarse = cv2.sepFilter2D(noise, cv2.CV_32F, coarse_along, coarse_down, borderType=cv2.BORDER_REFLECT)
    factor = shrink_factor(height, width, _SMOOTH_SIDE_PX)
    light = yellowing(*small_size(height, width, factor), params, rng)
    return Paper(fibres, along, down, coarse, light, factor)


def _slope_kernels(sigma_px: float, deviation: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Along and down the page: slope of bytes of noise that are smoothed by a Gaussian."""
    reach = max(1, int(np.ceil(3 * sigma_px)))
    at = np.arange(-reach, reach + 1)
    along = np.exp(-np.square(at / sigma_px) / 2)
    down = at * along
    gain = deviation / (_BYTE_DEVIATION * np.sqrt(np.square(along).sum() * np.square(down).sum()))
    return along.astype(np.float32), (down * gain).astype(np.float32)


def add_paper(planes: list[Plane], paper: Paper, top: int) -> None:
    """Shade and yellow rows of red, green and blue light in place; `top` is their first row in the photo."""
    rows, width = planes[0].shape
    above = len(paper.down) // 2
    beside = len(paper.along) // 2
    noise = paper.fibres[top : top + rows + 2 * above]
    shade = cv2.sepFilter2D(noise, cv2.CV_32F, paper.along, paper.down)[above : above + rows, beside : beside + width]
    shade += enlarged(paper.coarse, 2, top, rows, width)
    reflected = shade * np.float32(_SURFACE_LIGHT)
    shade += np.float32(1)
    light: Plane = enlarged(paper.light, paper.factor, top, rows, width)
    # Density in BASE_TINT: green has half of that in blue, red half of that in green.
    for plane in reversed(planes):
        if plane is not planes[-1]:
            cv2.sqrt(light, light)
        plane *= light
        plane *= shade
        plane += reflected


def yellowing(rows: int, columns: int, params: PaperParams, rng: Rng) -> Plane:
    """Light (rows, columns) left in blue by yellowing that is not even."""
    field = fractal_field(rows, columns, 2.5, rng)
    wobble = fractal_field(rows, columns, 3.0, rng)
    density = np.float32(params.mottle_density) * np.maximum(field + np.float32(1), np.float32(0))
    y = np.minimum(np.arange(rows) + 0.5, rows - 0.5 - np.arange(rows))[:, None] / min(rows, columns)
    x = np.minimum(np.arange(columns) + 0.5, columns - 0.5 - np.arange(columns))[None] / min(rows, columns)
    reach = np.float32(0.07) * np.exp(np.float32(0.45) * wobble)
    border = np.exp(-x / reach) + np.exp(-y / reach)
    density += np.float32(params.border_density) * border.astype(np.float32)
    light: Plane = cv2.exp(density * np.float32(-np.log(10)))
    return light
