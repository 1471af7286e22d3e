"""Noise added to code values: Gaussian and Poisson of web-style chains, film grain, impulses.

Sources: Gaussian and Poisson noise as Real-ESRGAN (Wang et al., ICCVW 2021) defines them. Grain whose variance
follows u (1 - u) is that of the Boolean grain model: Newson et al., Computer Graphics Forum 2017, here only its
first two moments. Impulses: fraction of pixels, as in the salt-and-pepper model.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.noise_draws import draw_normal, draw_rows, poisson_rows
from degradations.sensor import RGB_TO_YCC, YCC_TO_RGB, bands
from pairforge.image import Image, Plane, to_pixels
from pairforge.rng import Rng, log_uniform

_GRAY = np.array([[0.2989, 0.587, 0.114]], np.float32)


class GaussianNoiseParams(Params):
    """White Gaussian noise of `sigma_codes` 8-bit codes; the same in all channels where `gray`."""

    sigma_codes: float = Field(ge=0.0, le=255.0)
    gray: bool


def sample_gaussian_noise(severity: float, rng: Rng) -> GaussianNoiseParams:
    """1 to 30 codes, grey in 40 of 100 cases: the first order of Real-ESRGAN."""
    return GaussianNoiseParams(
        sigma_codes=30**severity * log_uniform(rng, 0.95, 1.05),
        gray=bool(rng.random() < 0.4),
    )


def _add_clipped(image: Image, noise: Image | Plane) -> Image:
    """Sum of both, in [0, 1]; uses up `noise`. A plane is added to every channel."""
    full = noise if noise.ndim == 3 else cv2.merge([noise] * 3)
    full += image
    return np.clip(full, 0, 1, out=full)


def apply_gaussian_noise(image: Image, params: GaussianNoiseParams, scene: Scene, rng: Rng) -> Rendered:
    noise = draw_normal(image.shape[:2] if params.gray else image.shape, rng)
    noise *= np.float32(params.sigma_codes / 255)
    return Rendered(_add_clipped(image, noise), image)


GAUSSIAN_NOISE = Degradation(
    name="gaussian_noise",
    version=1,
    params_type=GaussianNoiseParams,
    sample=sample_gaussian_noise,
    apply=apply_gaussian_noise,
    space="srgb",
    needs=frozenset(),
    source="Real-ESRGAN: Wang et al., ICCVW 2021, section 3.1, Gaussian noise",
)


class PoissonNoiseParams(Params):
    """J + scale (Poisson(J v) / v - J) of code values J: `scale` multiplies noise, it is no photon count.

    v is the number of distinct codes in the image, rounded up to a power of 2. Where `gray`, the noise is
    that of the grey image, the same in all channels.
    """

    scale: float = Field(ge=0.0, le=30.0)
    gray: bool


def sample_poisson_noise(severity: float, rng: Rng) -> PoissonNoiseParams:
    """0.05 to 3, grey in 40 of 100 cases: the first order of Real-ESRGAN."""
    return PoissonNoiseParams(
        scale=0.05 * 60**severity * log_uniform(rng, 0.95, 1.05),
        gray=bool(rng.random() < 0.4),
    )


def apply_poisson_noise(image: Image, params: PoissonNoiseParams, scene: Scene, rng: Rng) -> Rendered:
    codes = to_pixels(cv2.transform(image, _GRAY) if params.gray else image)
    used = np.count_nonzero(np.bincount(codes.reshape(-1), minlength=256))
    levels = 1 << int(used - 1).bit_length()
    deviations = poisson_rows(tuple(code / 255 * levels for code in range(256)))
    deviations = deviations * np.float32(params.scale / levels)
    noise = np.empty(codes.shape, np.float32)
    for rows in bands(len(codes)):
        draw_rows(deviations, codes[rows], rng, noise[rows])
    return Rendered(_add_clipped(image, noise), image, realised={"levels": levels})


POISSON_NOISE = Degradation(
    name="poisson_noise",
    version=1,
    params_type=PoissonNoiseParams,
    sample=sample_poisson_noise,
    apply=apply_poisson_noise,
    space="srgb",
    needs=frozenset(),
    source="Real-ESRGAN: Wang et al., ICCVW 2021, section 3.1, Poisson noise",
)


class GranularNoiseParams(Params):
    """`sigma_codes` is the luma standard deviation in 8-bit codes at mid-grey.

    The grain is band-pass noise of Gaussian scale `grain_px`. Chroma has `chroma_ratio` of the
    luma amplitude and is a Gaussian low-pass of `blotch_px`. `midtone_weight` is the share of the amplitude
    that follows sqrt(4 u (1 - u)) of the luma code u, the rest is the same everywhere.
    """

    sigma_codes: float = Field(ge=0.0, le=128.0)
    grain_px: float = Field(ge=0.2, le=16.0)
    chroma_ratio: float = Field(ge=0.0, le=4.0)
    blotch_px: float = Field(ge=0.5, le=64.0)
    midtone_weight: float = Field(ge=0.0, le=1.0)


def sample_granular_noise(severity: float, rng: Rng) -> GranularNoiseParams:
    return GranularNoiseParams(
        sigma_codes=1.5 + 20.5 * severity + float(rng.uniform(-0.4, 0.4)),
        grain_px=float(rng.uniform(0.45, 0.85)),
        chroma_ratio=float(rng.uniform(0.05, 0.22)),
        blotch_px=float(rng.uniform(1.5, 3.5)),
        midtone_weight=float(rng.uniform(0.5, 0.9)),
    )


def _kernel(sigma_px: float, radius: int) -> Plane:
    kernel: Plane = cv2.getGaussianKernel(2 * radius + 1, sigma_px, cv2.CV_32F)
    return kernel


def _grain(height: int, width: int, grain_px: float, rng: Rng) -> Plane:
    """Band-pass noise (H, W) of unit variance: a Gaussian of `grain_px` less 0.7 of one 2.5 times as wide."""
    radius = int(np.ceil(7.5 * grain_px))
    fine, coarse = _kernel(grain_px, radius), _kernel(2.5 * grain_px, radius)
    squares = ((fine * fine).sum(), (fine * coarse).sum(), (coarse * coarse).sum())
    power = float(squares[0] ** 2 - 1.4 * squares[1] ** 2 + 0.49 * squares[2] ** 2)
    white = draw_normal((height, width), rng)
    narrow = cv2.sepFilter2D(white, -1, fine, fine)
    wide = cv2.sepFilter2D(white, -1, coarse, coarse)
    band: Plane = cv2.addWeighted(narrow, power**-0.5, wide, -0.7 * power**-0.5, 0)
    return band


def _enlarged_variance(kernel: Plane) -> float:
    """Variance along one axis of white noise that is filtered by a kernel and then enlarged twice, linearly.

    Enlarging mixes neighbours by 3/4 and 1/4.
    """
    alone, shifted = float((kernel * kernel).sum()), float((kernel[1:] * kernel[:-1]).sum())
    return 0.625 * alone + 0.375 * shifted


def _blotches(height: int, width: int, blotch_px: float, rng: Rng) -> Plane:
    """Low-pass noise (H, W) of unit variance, made at half size."""
    kernel = _kernel(blotch_px / 2, int(np.ceil(1.5 * blotch_px)))
    half = draw_normal(((height + 3) // 2, (width + 3) // 2), rng)
    blotches = cv2.sepFilter2D(half, -1, kernel, kernel, delta=0)
    blotches *= np.float32(1 / _enlarged_variance(kernel))
    full: Plane = cv2.resize(blotches, (2 * half.shape[1], 2 * half.shape[0]), interpolation=cv2.INTER_LINEAR)
    # The outermost row and column of an enlargement repeat a pixel instead of mixing two.
    return np.ascontiguousarray(full[1 : height + 1, 1 : width + 1])


def apply_granular_noise(image: Image, params: GranularNoiseParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image.shape[:2]
    luma: Plane = np.clip(cv2.transform(image, RGB_TO_YCC[:1]), 0, 1)
    amplitude = luma * (1 - luma)
    np.sqrt(amplitude, out=amplitude)
    amplitude *= np.float32(2 * params.midtone_weight)
    amplitude += np.float32(1 - params.midtone_weight)
    amplitude *= np.float32(params.sigma_codes / 255)
    planes = [_grain(height, width, params.grain_px, rng)]
    for _ in range(2):
        blotches = _blotches(height, width, params.blotch_px, rng)
        planes.append(np.multiply(blotches, np.float32(params.chroma_ratio), out=blotches))
    for plane in planes:
        plane *= amplitude
    noise: Image = cv2.transform(cv2.merge(planes), YCC_TO_RGB)
    return Rendered(np.add(noise, image, out=noise), image)


GRANULAR_NOISE = Degradation(
    name="granular_noise",
    version=2,
    params_type=GranularNoiseParams,
    sample=sample_granular_noise,
    apply=apply_granular_noise,
    space="srgb",
    needs=frozenset(),
    source="variance u (1 - u) of the Boolean grain model: Newson et al., CGF 2017; two moments only",
)


class ImpulseNoiseParams(Params):
    """`impulse_frac` of the pixels, or of the channel values where `per_channel`, become 0 or 1.

    `salt_share` of the impulses are 1.
    """

    impulse_frac: float = Field(ge=0.0, le=1.0)
    salt_share: float = Field(ge=0.0, le=1.0)
    per_channel: bool


def sample_impulse_noise(severity: float, rng: Rng) -> ImpulseNoiseParams:
    return ImpulseNoiseParams(
        impulse_frac=5e-4 * 120**severity * log_uniform(rng, 0.9, 1.1),
        salt_share=float(rng.uniform(0.3, 0.7)),
        per_channel=bool(rng.random() < 0.5),
    )


def _bernoulli_sites(count: int, fraction: float, rng: Rng) -> NDArray[np.int64]:
    """Where an event of probability `fraction` happens in `count` trials: sums of geometric gaps."""
    if fraction <= 0:
        return np.zeros(0, np.int64)
    draws = int(count * fraction + 8 * np.sqrt(count * fraction)) + 16
    sites = np.zeros(0, np.int64)
    last = -1
    while last < count:
        more = last + np.cumsum(rng.geometric(fraction, draws))
        sites, last = np.concatenate([sites, more]), int(more[-1])
    return sites[sites < count]


def apply_impulse_noise(image: Image, params: ImpulseNoiseParams, scene: Scene, rng: Rng) -> Rendered:
    noisy = image.copy()
    values = noisy.reshape(-1) if params.per_channel else noisy.reshape(-1, 3)
    sites = _bernoulli_sites(len(values), params.impulse_frac, rng)
    salt = (rng.random(len(sites), np.float32) < params.salt_share).astype(np.float32)
    values[sites] = salt if params.per_channel else salt[:, None]
    return Rendered(noisy, image, realised={"impulse_count": len(sites)})


IMPULSE_NOISE = Degradation(
    name="impulse_noise",
    version=2,
    params_type=ImpulseNoiseParams,
    sample=sample_impulse_noise,
    apply=apply_impulse_noise,
    space="srgb",
    needs=frozenset(),
    source="salt-and-pepper model: independent impulses of a given fraction",
)
