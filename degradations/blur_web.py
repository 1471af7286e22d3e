"""Blur kernels of the super-resolution literature; they act on code values, by its convention.

Sources: Wang et al., "Real-ESRGAN", ICCVW 2021, sections 3.1 and 3.4; Liu et al., "Estimating generalized
Gaussian blur kernels", 2020 (generalised and plateau kernels); circular sinc (jinc) low-pass.

`gaussian_blur` is as large as its kernel, so its sigma is the one that acts. The kernels named `web_` are cut at
`radius_px` as published ones are at 7 to 21 px, and record what spread is left.
"""

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.blur import Psf, convolve, normalised, path_psf
from pairforge.image import Image
from pairforge.rng import Rng, log_uniform


class GaussianBlurParams(Params):
    sigma_x_px: float = Field(ge=0.05, le=30)
    sigma_y_px: float = Field(ge=0.05, le=30)
    angle_deg: float = Field(ge=-360, le=360)
    beta: float = Field(ge=0.5, le=10)
    """Shape: 1 is Gaussian, less has a sharper peak and longer tails, more is flatter."""


def sample_gaussian_blur(severity: float, rng: Rng) -> GaussianBlurParams:
    sigma_px = 0.45 * 11.5**severity * rng.uniform(0.9, 1.1)
    ratio = rng.uniform(0.35, 0.95)
    return GaussianBlurParams(
        sigma_x_px=sigma_px / math.sqrt(ratio),
        sigma_y_px=sigma_px * math.sqrt(ratio),
        angle_deg=rng.uniform(0, 180),
        beta=log_uniform(rng, 0.7, 2.5),
    )


def squared_distance(radius_px: int, sigma_x_px: float, sigma_y_px: float, angle_deg: float) -> NDArray[np.float64]:
    """Squared Mahalanobis radius d of every pixel of a kernel of side 2 * radius_px + 1."""
    axis = np.arange(-radius_px, radius_px + 1, dtype=np.float64)
    angle = math.radians(angle_deg)
    along = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    across = math.cos(angle) * axis[:, None] - math.sin(angle) * axis[None, :]
    distance: NDArray[np.float64] = (along / sigma_x_px) ** 2 + (across / sigma_y_px) ** 2
    return distance


def gaussian_psf(sigma_x_px: float, sigma_y_px: float, angle_deg: float, beta: float) -> Psf:
    """exp(-d^beta / 2) with d the squared Mahalanobis radius, at pixel centres, sum 1.

    As large as the kernel needs to fall to 1e-4 of its peak, not the 7 to 21 px of Real-ESRGAN, so that
    the recorded sigma is the sigma that acts.
    """
    radius = math.ceil(max(sigma_x_px, sigma_y_px) * (2 * math.log(1e4)) ** (0.5 / beta))
    return normalised(np.exp(-0.5 * squared_distance(radius, sigma_x_px, sigma_y_px, angle_deg) ** beta))


def apply_gaussian_blur(image: Image, params: GaussianBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """Acts on code values, as the super-resolution literature does."""
    psf = gaussian_psf(params.sigma_x_px, params.sigma_y_px, params.angle_deg, params.beta)
    return Rendered(convolve(image, psf), image)


GAUSSIAN_BLUR = Degradation(
    name="gaussian_blur",
    version=2,
    params_type=GaussianBlurParams,
    sample=sample_gaussian_blur,
    apply=apply_gaussian_blur,
    space="srgb",
    needs=frozenset(),
    source="Wang et al., Real-ESRGAN, ICCVW 2021, generalised Gaussian kernels",
)


# Kernels of a given size


class WebKernelParams(Params):
    """A kernel of side 2 * radius_px + 1; where both sigmas are equal it is isotropic."""

    radius_px: int = Field(ge=1, le=15)
    sigma_x_px: float = Field(ge=0.1, le=10)
    sigma_y_px: float = Field(ge=0.1, le=10)
    angle_deg: float = Field(ge=-360, le=360)
    beta: float = Field(ge=0.25, le=10)
    """Shape: of the generalised Gaussian exp(-d^beta / 2), 1 being Gaussian; of the plateau 1 / (1 + d^beta)."""


def _sample_web_kernel(severity: float, rng: Rng, beta_range: tuple[float, float]) -> WebKernelParams:
    sigma_px = 0.4 * 6.5**severity * rng.uniform(0.9, 1.1)
    ratio = rng.uniform(0.45, 0.95)
    return WebKernelParams(
        radius_px=int(rng.integers(max(3, math.ceil(2 * sigma_px)), 11)),
        sigma_x_px=sigma_px / math.sqrt(ratio),
        sigma_y_px=sigma_px * math.sqrt(ratio),
        angle_deg=rng.uniform(-180, 180),
        beta=log_uniform(rng, *beta_range),
    )


def sample_web_gaussian_blur(severity: float, rng: Rng) -> WebKernelParams:
    return _sample_web_kernel(severity, rng, (0.5, 4.0))


def sample_web_plateau_blur(severity: float, rng: Rng) -> WebKernelParams:
    return _sample_web_kernel(severity, rng, (1.0, 2.0))


def web_gaussian_psf(params: WebKernelParams) -> Psf:
    """exp(-d^beta / 2) with d the squared Mahalanobis radius, sum 1."""
    return _without_dust(np.exp(-0.5 * _distance_of(params) ** params.beta))


def web_plateau_psf(params: WebKernelParams) -> Psf:
    """1 / (1 + d^beta), sum 1."""
    return _without_dust(1 / (1 + _distance_of(params) ** params.beta))


def _distance_of(params: WebKernelParams) -> NDArray[np.float64]:
    return squared_distance(params.radius_px, params.sigma_x_px, params.sigma_y_px, params.angle_deg)


def _without_dust(weights: NDArray[np.float64]) -> Psf:
    """Normalised; weights that even together move no 8-bit code become 0, which is faster."""
    return normalised(np.where(weights < 2e-7 * weights.sum(), 0, weights))


def spread_px(psf: Psf) -> float:
    """Root of the mean of the two axes' variances: the sigma of a Gaussian of the same spread."""
    axis = np.arange(psf.shape[0]) - psf.shape[0] // 2
    variance = (psf * (axis[None, :] ** 2 + axis[:, None] ** 2)).sum(dtype=np.float64) / 2
    return math.sqrt(max(float(variance), 0.0))


def apply_web_gaussian_blur(image: Image, params: WebKernelParams, scene: Scene, rng: Rng) -> Rendered:
    psf = web_gaussian_psf(params)
    return Rendered(convolve(image, psf), image, realised={"spread_px": spread_px(psf)})


def apply_web_plateau_blur(image: Image, params: WebKernelParams, scene: Scene, rng: Rng) -> Rendered:
    psf = web_plateau_psf(params)
    return Rendered(convolve(image, psf), image, realised={"spread_px": spread_px(psf)})


WEB_GAUSSIAN_BLUR = Degradation(
    name="web_gaussian_blur",
    version=1,
    params_type=WebKernelParams,
    sample=sample_web_gaussian_blur,
    apply=apply_web_gaussian_blur,
    space="srgb",
    needs=frozenset(),
    source="Wang et al., Real-ESRGAN, ICCVW 2021, section 3.1: (generalised) Gaussian kernels of 7 to 21 px",
)
WEB_PLATEAU_BLUR = Degradation(
    name="web_plateau_blur",
    version=1,
    params_type=WebKernelParams,
    sample=sample_web_plateau_blur,
    apply=apply_web_plateau_blur,
    space="srgb",
    needs=frozenset(),
    source="Wang et al., Real-ESRGAN, ICCVW 2021, section 3.1: plateau-shaped kernels of 7 to 21 px",
)


class WebSincBlurParams(Params):
    radius_px: int = Field(ge=1, le=15)
    cutoff_rad_px: float = Field(ge=0.3, le=math.pi)
    """Cutoff frequency in radians per pixel; pi is that of the pixel grid."""


def sample_web_sinc_blur(severity: float, rng: Rng) -> WebSincBlurParams:
    """Published: pi / 5 .. pi for kernels of 15 to 21 px; here the cutoff falls with severity, to pi / 4."""
    cutoff = math.pi * 4.0**-severity * rng.uniform(0.9, 1.0)
    return WebSincBlurParams(radius_px=int(rng.integers(7, 11)), cutoff_rad_px=cutoff)


def bessel_j1(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """J1 by the mean of cos(t - x sin t) over half a turn: the trapezoid rule is exact to 1e-12 for |x| < 80."""
    t = (np.arange(128) + 0.5) * (np.pi / 128)
    bessel: NDArray[np.float64] = np.cos(t - x[..., None] * np.sin(t)).mean(axis=-1)
    return bessel


def web_sinc_psf(radius_px: int, cutoff_rad_px: float) -> Psf:
    """w J1(w r) / (2 pi r), at its middle w^2 / (4 pi), sum 1: it rings, as an ideal low-pass does."""
    axis = np.arange(-radius_px, radius_px + 1, dtype=np.float64)
    r = np.hypot(axis[None, :], axis[:, None])
    r[radius_px, radius_px] = 1
    weights = cutoff_rad_px * bessel_j1(cutoff_rad_px * r) / (2 * np.pi * r)
    weights[radius_px, radius_px] = cutoff_rad_px**2 / (4 * np.pi)
    return normalised(weights)


def apply_web_sinc_blur(image: Image, params: WebSincBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """Overshoot beyond black and white is clipped here; the published chain clips at its end."""
    blurred = convolve(image, web_sinc_psf(params.radius_px, params.cutoff_rad_px))
    return Rendered(np.clip(blurred, 0, 1, out=blurred), image)


WEB_SINC_BLUR = Degradation(
    name="web_sinc_blur",
    version=1,
    params_type=WebSincBlurParams,
    sample=sample_web_sinc_blur,
    apply=apply_web_sinc_blur,
    space="srgb",
    needs=frozenset(),
    source="Wang et al., Real-ESRGAN, ICCVW 2021, section 3.4, eq. 5: circular sinc kernel",
)


class WebMotionBlurParams(Params):
    length_px: float = Field(gt=0, le=200)
    angle_deg: float = Field(ge=-360, le=360)


def sample_web_motion_blur(severity: float, rng: Rng) -> WebMotionBlurParams:
    return WebMotionBlurParams(length_px=1.5 * 18**severity * rng.uniform(0.9, 1.1), angle_deg=rng.uniform(0, 180))


def line_psf(length_px: float, angle_deg: float) -> Psf:
    """Straight line of even weight, sum 1."""
    angle = math.radians(angle_deg)
    along = np.linspace(-length_px / 2, length_px / 2, max(257, 32 * math.ceil(length_px)))
    return path_psf(np.stack([along * math.cos(angle), along * math.sin(angle)], axis=1))


def apply_web_motion_blur(image: Image, params: WebMotionBlurParams, scene: Scene, rng: Rng) -> Rendered:
    return Rendered(convolve(image, line_psf(params.length_px, params.angle_deg)), image)


WEB_MOTION_BLUR = Degradation(
    name="web_motion_blur",
    version=1,
    params_type=WebMotionBlurParams,
    sample=sample_web_motion_blur,
    apply=apply_web_motion_blur,
    space="srgb",
    needs=frozenset(),
    source="line kernel, the linear motion blur of image-processing practice, on code values",
)
