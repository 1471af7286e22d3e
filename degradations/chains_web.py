"""Draws of chains that imitate what the web does to photos. Everything is drawn before anything runs.

Sources: Wang et al., "Real-ESRGAN", ICCVW 2021, section 3 and its published settings; Wang et al., "APISR",
CVPR 2024, section 3 and its published settings. Ranges are the published ones at severity 1 and shrink towards
no change below. A draw that would change nothing (a kernel of one pixel, a size that stays) is left out, as the
published code leaves out what it does not draw.

Deviations: video codecs are not available, so WebP and AVIF take their share of the APISR mix; the sharpening of
the target, which both use, is no degradation; what overshoots is clipped after each step and not at the end;
chains that end at the size of the base never shrink below a tenth of it.
"""

import math

import numpy as np

from degradations.base import Params
from degradations.blur_web import (
    WebKernelParams,
    WebMotionBlurParams,
    WebSincBlurParams,
    web_gaussian_psf,
    web_plateau_psf,
)
from degradations.compression import AvifParams, JpegParams, WebpParams
from degradations.noise_codes import GaussianNoiseParams, PoissonNoiseParams, sample_granular_noise
from degradations.resampling import ResizeParams
from pairforge.rng import Rng

Drawn = tuple[str, Params]

_KINDS = ("iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso")
_KIND_SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_LEAST_SIZE_CHANGE = 0.02
_LEAST_FRAC = 0.1
"""Of the base's size, where a restorer has to return all of it: published ranges reach 0.075 of it."""
_MOST_MIDDLE_WEIGHT = 0.99
"""A kernel with more weight on its middle pixel is left out."""


class _Chain:
    """Steps drawn so far, and the size of the image as a fraction of the base."""

    def __init__(self, least_frac: float) -> None:
        self.steps: list[Drawn] = []
        self.size_frac, self.least_frac = 1.0, least_frac

    def add(self, name: str, params: Params) -> None:
        self.steps.append((name, params))

    def resize(self, size_frac: float, kernel: str) -> None:
        size_frac = max(size_frac, self.least_frac)
        if abs(size_frac / self.size_frac - 1) >= _LEAST_SIZE_CHANGE:
            self.add("resize", ResizeParams.model_validate({"size_frac": size_frac, "kernel": kernel}))
            self.size_frac = size_frac

    def code(self, codec: str, quality: float, rng: Rng) -> None:
        """A codec at a quality of 1 to 100; quantizers of AVIF are spread over that scale."""
        method = 2  # Effort 4 costs twice the time.
        if codec == "jpeg":
            self.add("jpeg", JpegParams(quality=round(quality), subsampling="4:2:0"))
        elif codec == "webp":
            self.add("webp", WebpParams(quality=round(quality), method=method))
        else:
            self.add("avif", AvifParams(quantizer=round(63 - 0.63 * quality), subsampling="4:2:0", speed=8))


def _choice(rng: Rng, options: tuple[str, ...], shares: tuple[float, ...]) -> str:
    return str(rng.choice(options, p=np.array(shares) / sum(shares)))


def _add_blur(chain: _Chain, severity: float, most_sigma_px: float, probability: float, rng: Rng) -> None:
    """One kernel of Real-ESRGAN's mix: sinc in one of ten, else Gaussian, generalised or plateau."""
    used, is_sinc = rng.random() < probability, rng.random() < 0.1
    kind = _choice(rng, _KINDS, _KIND_SHARES)
    radius_px = int(rng.integers(3, 11))
    sigma_x, sigma_y = 0.2 + (most_sigma_px - 0.2) * severity * rng.random(2)
    angle_deg, sharper, shape = rng.uniform(-180, 180), rng.random() < 0.5, rng.random()
    if not used:
        return
    if is_sinc:
        least = math.pi / 3 if radius_px < 6 else math.pi / 5
        cutoff = math.pi - (math.pi - least) * severity * shape
        chain.add("web_sinc_blur", WebSincBlurParams(radius_px=radius_px, cutoff_rad_px=cutoff))
        return
    beta = 1.0
    if kind.startswith("generalised"):
        beta = 0.5 + 0.5 * shape if sharper else 1 + 3 * shape
    elif kind.startswith("plateau"):
        beta = 1.0 if sharper else 1 + shape
    isotropic = kind.endswith("iso") and not kind.endswith("aniso")
    params = WebKernelParams(
        radius_px=radius_px,
        sigma_x_px=float(sigma_x),
        sigma_y_px=float(sigma_x if isotropic else sigma_y),
        angle_deg=0.0 if isotropic else angle_deg,
        beta=beta,
    )
    plateau = kind.startswith("plateau")
    psf = web_plateau_psf(params) if plateau else web_gaussian_psf(params)
    if float(psf[radius_px, radius_px]) < _MOST_MIDDLE_WEIGHT:
        chain.add("web_plateau_blur" if plateau else "web_gaussian_blur", params)


def _add_resize(
    chain: _Chain,
    severity: float,
    shares: tuple[float, float, float],
    range_frac: tuple[float, float],
    over: float,
    rng: Rng,
) -> None:
    """Up, down or keep, with their shares, relative to 1 / `over` of the base's size."""
    way = _choice(rng, ("up", "down", "keep"), shares)
    share, kernel = rng.random(), _choice(rng, ("area", "bilinear", "bicubic"), (1, 1, 1))
    least, most = range_frac
    ratio = {"up": 1 + (most - 1) * severity * share, "down": 1 - (1 - least) * severity * share, "keep": 1.0}[way]
    chain.resize(ratio / over, kernel)


def _add_noise(chain: _Chain, severity: float, most_sigma_codes: float, most_scale: float, rng: Rng) -> None:
    gaussian, gray, share = rng.random() < 0.5, bool(rng.random() < 0.4), rng.random()
    if gaussian:
        sigma_codes = 1 + (most_sigma_codes - 1) * severity * share
        chain.add("gaussian_noise", GaussianNoiseParams(sigma_codes=sigma_codes, gray=gray))
    else:
        scale = 0.05 + (most_scale - 0.05) * severity * share
        chain.add("poisson_noise", PoissonNoiseParams(scale=scale, gray=gray))


def _quality(severity: float, least: float, rng: Rng) -> float:
    """Uniform between `least` and 95 at severity 1."""
    return 95 - (95 - least) * severity * float(rng.random())


def draw_real_esrgan(severity: float, rng: Rng, stays_small: bool) -> tuple[Drawn, ...]:
    """Two orders of blur, resize, noise and JPEG, the last with a sinc before or after.

    The published chain ends at 1/4 of the size. With `stays_small` so does this one, at every severity;
    otherwise it ends at 1 / 4^severity and is enlarged to the size of the base, a step of its own.
    """
    over = 4.0 if stays_small else 4.0**severity
    chain = _Chain(0.0 if stays_small else _LEAST_FRAC)
    _add_blur(chain, severity, 3.0, 1.0, rng)
    _add_resize(chain, severity, (0.2, 0.7, 0.1), (0.15, 1.5), 1.0, rng)
    _add_noise(chain, severity, 30.0, 3.0, rng)
    chain.code("jpeg", _quality(severity, 30, rng), rng)
    _add_blur(chain, severity, 1.5, 0.8, rng)
    _add_resize(chain, severity, (0.3, 0.4, 0.3), (0.3, 1.2), over, rng)
    _add_noise(chain, severity, 25.0, 2.5, rng)
    codes_first = rng.random() < 0.5
    quality, kernel = _quality(severity, 30, rng), _choice(rng, ("area", "bilinear", "bicubic"), (1, 1, 1))
    has_sinc, radius_px, share = rng.random() < 0.8, int(rng.integers(3, 11)), rng.random()
    if codes_first:
        chain.code("jpeg", quality, rng)
    chain.resize(1 / over, kernel)
    if has_sinc:
        cutoff = math.pi - math.pi * 2 / 3 * severity * share
        chain.add("web_sinc_blur", WebSincBlurParams(radius_px=radius_px, cutoff_rad_px=cutoff))
    if not codes_first:
        chain.code("jpeg", quality, rng)
    if not stays_small:
        chain.resize(1.0, "bicubic")
    return tuple(chain.steps)


def draw_apisr(severity: float, rng: Rng, stays_small: bool) -> tuple[Drawn, ...]:
    """Two orders whose resize falls at a random place, each closed by a codec; the last predicts, mostly.

    Size as in `draw_real_esrgan`. Published shares of the last codec: JPEG 0.06, WebP 0.1, AVIF 0.1, video 0.74;
    here the 0.74 are halved between WebP and AVIF.
    """
    over = 4.0 if stays_small else 4.0**severity
    chain = _Chain(0.0 if stays_small else _LEAST_FRAC)
    for order, (most_sigma_px, probability, range_frac, at) in enumerate(
        ((3.0, 1.0, (0.1, 1.2), 1.0), (1.5, 0.8, (0.15, 1.2), over))
    ):
        place = int(rng.integers(3))
        for index in range(3):
            if index == place:
                shares = (0.2, 0.7, 0.1) if order == 0 else (0.3, 0.4, 0.3)
                _add_resize(chain, severity, shares, range_frac, at, rng)
            if index == 0:
                _add_blur(chain, severity, most_sigma_px, probability, rng)
            elif index == 1:
                _add_noise(chain, severity, 30.0 if order == 0 else 25.0, 3.0 if order == 0 else 2.5, rng)
        if order == 1:
            chain.resize(1 / over, _choice(rng, ("area", "bilinear", "bicubic"), (1, 1, 1)))
        shares = (0.4, 0.6, 0.0) if order == 0 else (0.06, 0.47, 0.47)
        codec = _choice(rng, ("jpeg", "webp", "avif"), shares)
        chain.code(codec, _quality(severity, 20, rng), rng)
    if not stays_small:
        chain.resize(1.0, "bicubic")
    return tuple(chain.steps)


def draw_web(severity: float, rng: Rng) -> tuple[Drawn, ...]:
    """A light random mix of blur, resize, noise and coding, as a photo that went through a few sites; at least 2."""
    chain = _Chain(_LEAST_FRAC)
    blurs, resizes, noisy, codes = rng.random(4) < (0.6, 0.7, 0.5, 0.9)
    kind, amount, angle_deg = _choice(rng, ("gaussian", "motion", "sinc"), (0.6, 0.3, 0.1)), rng.random(), rng.random()
    if blurs and kind == "gaussian":
        sigma = 0.4 + 1.6 * severity * amount
        kernel = WebKernelParams(radius_px=7, sigma_x_px=sigma, sigma_y_px=sigma, angle_deg=0.0, beta=1.0)
        chain.add("web_gaussian_blur", kernel)
    elif blurs and kind == "motion":
        length_px = 1.5 + 8 * severity * amount
        chain.add("web_motion_blur", WebMotionBlurParams(length_px=length_px, angle_deg=180 * angle_deg))
    elif blurs:
        cutoff = math.pi - math.pi * 0.6 * severity * amount
        chain.add("web_sinc_blur", WebSincBlurParams(radius_px=8, cutoff_rad_px=cutoff))
    shrinks, share = rng.random() < 0.8, rng.uniform(0.3, 1)
    down = _choice(rng, ("area", "bilinear", "bicubic", "bicubic_antialias"), (0.3, 0.2, 0.2, 0.3))
    up = _choice(rng, ("bilinear", "bicubic", "lanczos"), (0.4, 0.4, 0.2))
    if resizes:
        chain.resize(1 - 0.65 * severity * share if shrinks else 1 + 0.3 * severity * share, down)
    grain, speck = sample_granular_noise(0.5 * severity, rng), rng.uniform(0.3, 1)
    grainy, gray = rng.random() < 0.3, bool(rng.random() < 0.4)
    if (noisy or len(chain.steps) + codes < 2) and grainy:
        chain.add("granular_noise", grain)
    elif noisy or len(chain.steps) + codes < 2:
        chain.add("gaussian_noise", GaussianNoiseParams(sigma_codes=1 + 13 * severity * speck, gray=gray))
    codec, quality, again = _choice(rng, ("jpeg", "webp"), (0.75, 0.25)), 93 - 65 * severity * speck, rng.random()
    if codes or len(chain.steps) < 2:
        chain.code(codec, quality, rng)
    resized = chain.size_frac != 1.0
    chain.resize(1.0, up)
    if resized and again < 0.4:
        chain.code("jpeg", min(95.0, quality + 20 * again), rng)
    return tuple(chain.steps)
