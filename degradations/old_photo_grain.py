"""Film grain. Works on lightness: square roots of light or code values, where it is even to the eye.

Model: grains are discs of radius r at Poisson places; they cover a share u of the film, the picture's lightness
(Newson, Delon, Galerne, Computer Graphics Forum 2017, who take grey levels for u too). The variance of the mean over
an area A is (1 - u)^2 r^2 / A * integral of (exp(c overlap(h)) - 1) 2 pi h dh, c = -ln(1 - u) / pi, over distances h
of unit discs: no grain in black or white, most in mid-tones. Fast form: a Gaussian field whose power falls to half
at the frequency at which that of a disc of radius r does, times the tabulated deviation of u.

Deviations: strength is given for u = 0.5 and not tied to r, as enlarging and scanning change both; grains are of
one size. Colour films have three layers with grain of their own, of which crossed dyes make one part common.
"""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.old_photo_fields import STRIP_ROWS
from pairforge.image import Image
from pairforge.rng import Rng, log_uniform

_TABLE_STEPS = 256
_BYTE_DEVIATION = (65535 / 12) ** 0.5
_SIGMA_OVER_RADIUS = 0.515
"""A Gaussian of this many radii has its half-power frequency where a disc has it: 0.2572 / radius."""


class GrainParams(Params):
    """`grain_radius_px`: of one grain, or of a clump that acts as one. `grain_sigma_frac`: standard deviation at
    u = 0.5, of full scale.
    """

    grain_radius_px: float = Field(gt=0, le=20)
    grain_sigma_frac: float = Field(ge=0, le=0.3)


class FilmGrainParams(GrainParams):
    """`layer_correlation_ratio`: correlation of grain between colours; 1 on black-and-white film."""

    layer_correlation_ratio: float = Field(ge=0, le=1)


class PrintGrainParams(Params):
    """`grain_radius_frac`: as in GrainParams, of the short side of the print. `grain_sigma_frac`: standard deviation at
    u = 0.5, of full scale, where pixels are much smaller than grains.
    """

    grain_radius_frac: float = Field(ge=1e-5, le=0.01)
    grain_sigma_frac: float = Field(ge=0, le=0.5)


class ColorPrintGrainParams(PrintGrainParams):
    """`layer_correlation_ratio`: correlation of grain between colours."""

    layer_correlation_ratio: float = Field(ge=0, le=1)


def sample_print_grain(severity: float, rng: Rng) -> PrintGrainParams:
    """A plate or roll film holds some 2000 to 1000 grains or clumps across its short side, faster ones fewer."""
    return PrintGrainParams(
        grain_radius_frac=log_uniform(rng, 0.00045, 0.0008) * (1 + 0.35 * severity),
        grain_sigma_frac=float((0.008 + 0.085 * severity) * rng.uniform(0.85, 1.15)),
    )


def sample_color_print_grain(severity: float, rng: Rng) -> ColorPrintGrainParams:
    grain = sample_print_grain(severity, rng)
    return ColorPrintGrainParams(**grain.model_dump(), layer_correlation_ratio=float(rng.uniform(0.3, 0.95)))


def resolved_share(radius_px: float) -> float:
    """Deviation of means over pixels over that of the field itself: near 1 where a grain covers many pixels, near
    the grain's width in pixels where many lie in one. Exact for the field's Gaussian autocorrelation over a square.
    """
    t = np.linspace(0, 1, 257)
    sigma = _SIGMA_OVER_RADIUS * radius_px
    return float(np.trapezoid(2 * (1 - t) * np.exp(-((t / (2 * sigma)) ** 2)), t)) if sigma > 0.02 else 3.545 * sigma


def sample_grain(severity: float, rng: Rng) -> GrainParams:
    """0.004 to 0.06 of full scale; faster films have coarser grain."""
    return GrainParams(
        grain_radius_px=log_uniform(rng, 0.6, 1.1) * (1 + 0.6 * severity),
        grain_sigma_frac=float((0.004 + 0.054 * severity) * rng.uniform(0.85, 1.15)),
    )


def sample_film_grain(severity: float, rng: Rng) -> FilmGrainParams:
    grain = sample_grain(severity, rng)
    return FilmGrainParams(**grain.model_dump(), layer_correlation_ratio=float(rng.uniform(0.3, 0.95)))


@cache
def grain_table() -> NDArray[np.float32]:
    """Deviation over that at u = 0.5 for u from 0 to 1, 256 values; 0 at both ends."""
    distance = np.linspace(0, 2, 801)
    overlap = 2 * np.arccos(distance / 2) - distance / 2 * np.sqrt(4 - distance**2)
    u = np.linspace(0, 1, _TABLE_STEPS)
    inside = u[1:-1]
    exponent = -np.log(1 - inside)[:, None] / np.pi * overlap
    variance = (1 - inside) ** 2 * np.trapezoid(np.expm1(exponent) * 2 * np.pi * distance, distance, axis=1)
    table = np.zeros(_TABLE_STEPS)
    table[1:-1] = np.sqrt(variance)
    table /= np.interp(0.5, u, table)
    stored = table.astype(np.float32)
    stored.setflags(write=False)
    return stored


@dataclass(frozen=True)
class Grain:
    """Bytes of white noise, larger than the photo by the reach of `kernel`, that filtered are a field of unit
    variance; `mix` (3, 3) makes three such fields correlated.
    """

    noise: NDArray[np.uint8]
    kernel: NDArray[np.float32]
    mix: NDArray[np.float32] | None


def draw_grain(height: int, width: int, radius_px: float, rng: Rng, soft_px: float = 0.0) -> Grain:
    """Grain of one layer, of unit variance before a blur of `soft_px`."""
    kernel = grain_kernel(radius_px, soft_px)
    reach = len(kernel) - 1
    return Grain(rng.integers(0, 256, (height + reach, width + reach), np.uint8), kernel, None)


def draw_colour_grain(
    height: int, width: int, radius_px: float, correlation: float, rng: Rng, soft_px: float = 0.0
) -> Grain:
    """Grain of three layers, each pair correlated."""
    kernel = grain_kernel(radius_px, soft_px)
    reach = len(kernel) - 1
    # Symmetric square root of the correlation matrix.
    common, own = np.sqrt(1 + 2 * correlation), np.sqrt(1 - correlation)
    mix = np.full((3, 3), (common - own) / 3) + np.diag([own] * 3)
    noise = rng.integers(0, 256, (height + reach, width + reach, 3), np.uint8)
    return Grain(noise, kernel, mix.astype(np.float32))


def grain_rows(grain: Grain, top: int, rows: int) -> NDArray[np.float32]:
    """Some rows of the field, (rows, W) or (rows, W, 3). Sums over a grain's neighbourhood are close to normal."""
    reach = len(grain.kernel) // 2
    noise = grain.noise[top : top + rows + 2 * reach]
    # The mean of bytes, 127.5, is taken out again.
    offset = -127.5 * float(grain.kernel.sum(dtype=np.float64)) ** 2
    whole = cv2.sepFilter2D(noise, cv2.CV_32F, grain.kernel, grain.kernel, delta=offset)
    part = whole[reach : reach + rows, reach : noise.shape[1] - reach]
    field: NDArray[np.float32] = part if grain.mix is None else cv2.transform(part, grain.mix)
    return field


def grain_kernel(radius_px: float, soft_px: float) -> NDArray[np.float32]:
    """One side of the separable kernel that makes grain of bytes."""
    kernel = _kernel(_SIGMA_OVER_RADIUS * radius_px)
    gain = _BYTE_DEVIATION**0.5 * np.sqrt(np.square(kernel).sum())
    softened = _kernel(float(np.hypot(_SIGMA_OVER_RADIUS * radius_px, soft_px))) / gain
    kernel_of_bytes: NDArray[np.float32] = softened.astype(np.float32)
    return kernel_of_bytes


def _kernel(sigma_px: float) -> NDArray[np.float64]:
    """Gaussian of sum 1, integrated over pixels, so that grains much smaller than a pixel give white noise."""
    reach = max(1, int(np.ceil(3 * sigma_px)))
    normal = NormalDist(0, max(sigma_px, 1e-3))
    edges = np.array([normal.cdf(k - 0.5) for k in range(-reach, reach + 2)])
    kernel: NDArray[np.float64] = np.diff(edges) / (edges[-1] - edges[0])
    return kernel


def deviation_of(lightness: Image, sigma_frac: float) -> Image:
    """Standard deviation of grain at lightness of any shape, from its nearest 8-bit code."""
    deviation: Image = cv2.LUT(cv2.convertScaleAbs(lightness, alpha=255), grain_table() * np.float32(sigma_frac))
    return deviation


def grained(lightness: Image, field: Image, sigma_frac: float) -> Image:
    """Lightness plus a field of its shape, weighted by the deviation at each value."""
    out = deviation_of(lightness, sigma_frac)
    out *= field
    out += lightness
    return out


def apply_film_grain(image: Image, params: FilmGrainParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image.shape[:2]
    grain = draw_colour_grain(height, width, params.grain_radius_px, params.layer_correlation_ratio, rng)
    out = np.empty_like(image)
    for top in range(0, height, STRIP_ROWS):
        strip = image[top : top + STRIP_ROWS]
        out[top : top + STRIP_ROWS] = grained(strip, grain_rows(grain, top, len(strip)), params.grain_sigma_frac)
    return Rendered(out, image)


FILM_GRAIN = Degradation(
    name="film_grain",
    version=1,
    params_type=FilmGrainParams,
    sample=sample_film_grain,
    apply=apply_film_grain,
    space="srgb",
    needs=frozenset(),
    source="Newson, Delon, Galerne, Computer Graphics Forum 2017: Boolean grain model, variance over coverage",
)
