"""Noise: of the sensor, of film, impulses, bands.

Sources: sensor noise after Brooks et al., CVPR 2019 (see sensor.py). Grain whose variance follows u (1 - u)
is that of the Boolean grain model: Newson et al., Computer Graphics Forum 2017, here only its first two
moments. Impulses: fraction of pixels, as in the salt-and-pepper model. Rows: ELD, Wei et al., CVPR 2020.
"""

import cv2
import numpy as np

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.sensor import (
    RGB_TO_YCC,
    YCC_TO_RGB,
    SensorParams,
    demosaic,
    draw_noise,
    finish,
    mosaic,
    reprocess_root,
    sample_sensor,
    unprocess,
)
from pairforge.image import Image, Plane
from pairforge.rng import Rng


def sample_sensor_noise(severity: float, rng: Rng) -> SensorParams:
    shot_var = 8e-5 * (0.012 / 8e-5) ** severity * float(np.exp(rng.uniform(-0.2, 0.2)))
    return sample_sensor(shot_var, severity, rng)


def apply_sensor_noise(image_lin: Image, params: SensorParams, scene: Scene, rng: Rng) -> Rendered:
    raw = unprocess(image_lin, params)
    noise, poisson_frac = draw_noise(mosaic(raw), params, rng)
    clean_root = reprocess_root(raw, params)
    noisy_root = reprocess_root(np.add(raw, demosaic(noise), out=raw), params)
    finished = finish(clean_root, noisy_root, params)
    return Rendered(np.multiply(finished, finished, out=finished), image_lin, realised={"poisson_frac": poisson_frac})


SENSOR_NOISE = Degradation(
    name="sensor_noise",
    version=1,
    params_type=SensorParams,
    sample=sample_sensor_noise,
    apply=apply_sensor_noise,
    space="linear",
    needs=frozenset(),
    source="Brooks et al., CVPR 2019, eq. 1-6; Malvar et al., ICASSP 2004; Wei et al., CVPR 2020",
)


class GranularNoiseParams(Params):
    """`sigma_codes` is the luma standard deviation in 8-bit codes at mid-grey.

    The grain is band-pass noise of Gaussian scale `grain_px`. Chroma has `chroma_ratio` of the
    luma amplitude and is a Gaussian low-pass of `blotch_px`. `midtone_weight` is the share of the amplitude
    that follows sqrt(4 u (1 - u)) of the luma code u, the rest is the same everywhere.
    """

    sigma_codes: float
    grain_px: float
    chroma_ratio: float
    blotch_px: float
    midtone_weight: float


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
    white = rng.standard_normal((height, width), np.float32)
    narrow = cv2.sepFilter2D(white, -1, fine, fine)
    wide = cv2.sepFilter2D(white, -1, coarse, coarse)
    band: Plane = cv2.addWeighted(narrow, power**-0.5, wide, -0.7 * power**-0.5, 0)
    return band


def _blotches(height: int, width: int, blotch_px: float, rng: Rng) -> Plane:
    """Low-pass noise (H, W) of unit variance."""
    kernel = _kernel(blotch_px, int(np.ceil(3 * blotch_px)))
    blotches: Plane = cv2.sepFilter2D(rng.standard_normal((height, width), np.float32), -1, kernel, kernel)
    return np.multiply(blotches, np.float32(1 / (kernel * kernel).sum()), out=blotches)


def apply_granular_noise(image: Image, params: GranularNoiseParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image.shape[:2]
    luma: Plane = np.clip(cv2.transform(image, RGB_TO_YCC[:1]), 0, 1)
    amplitude = np.sqrt(luma * (1 - luma))
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
    version=1,
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

    impulse_frac: float
    salt_share: float
    per_channel: bool


def sample_impulse_noise(severity: float, rng: Rng) -> ImpulseNoiseParams:
    return ImpulseNoiseParams(
        impulse_frac=5e-4 * 120**severity * float(np.exp(rng.uniform(-0.1, 0.1))),
        salt_share=float(rng.uniform(0.3, 0.7)),
        per_channel=bool(rng.random() < 0.5),
    )


def apply_impulse_noise(image: Image, params: ImpulseNoiseParams, scene: Scene, rng: Rng) -> Rendered:
    shape = image.shape if params.per_channel else (*image.shape[:2], 1)
    draw = rng.random(shape, np.float32)
    hit = draw < params.impulse_frac
    salt = (draw < params.impulse_frac * params.salt_share).astype(np.float32)
    return Rendered(np.where(hit, salt, image), image, realised={"impulse_count": int(hit.sum())})


IMPULSE_NOISE = Degradation(
    name="impulse_noise",
    version=1,
    params_type=ImpulseNoiseParams,
    sample=sample_impulse_noise,
    apply=apply_impulse_noise,
    space="srgb",
    needs=frozenset(),
    source="salt-and-pepper model: independent impulses of a given fraction",
)


class BandingNoiseParams(Params):
    """Bands of a rolling shutter in linear light, along rows, or along columns where `upright`.

    Mains-driven light swings by `flicker_depth` around its mean, `flicker_cycles` times over the frame;
    `harmonic_frac` is the second harmonic relative to the first. Blue swings by a factor `1 + tint` more and
    red less, as phosphors of different decay do. `row_sd` is additive read-out noise of whole lines.
    """

    row_sd: float
    flicker_depth: float
    flicker_cycles: float
    flicker_phase_rad: float
    harmonic_frac: float
    tint: float
    upright: bool


def sample_banding_noise(severity: float, rng: Rng) -> BandingNoiseParams:
    return BandingNoiseParams(
        row_sd=2e-4 * 40**severity * float(np.exp(rng.uniform(-0.1, 0.1))),
        flicker_depth=0.02 + 0.33 * severity + float(rng.uniform(-0.015, 0.015)),
        flicker_cycles=float(np.exp(rng.uniform(np.log(1.5), np.log(9.0)))),
        flicker_phase_rad=float(rng.uniform(0, 2 * np.pi)),
        harmonic_frac=float(rng.uniform(0.05, 0.3)),
        tint=float(rng.uniform(0.0, 0.3)),
        upright=bool(rng.random() < 0.35),
    )


def apply_banding_noise(image_lin: Image, params: BandingNoiseParams, scene: Scene, rng: Rng) -> Rendered:
    lines = image_lin.shape[1 if params.upright else 0]
    angle = 2 * np.pi * params.flicker_cycles * (np.arange(lines) + 0.5) / lines + params.flicker_phase_rad
    swing = params.flicker_depth * (np.sin(angle) + params.harmonic_frac * np.sin(2 * angle))
    gain = 1 + np.multiply.outer(swing, [1 - params.tint, 1.0, 1 + params.tint])
    offset = params.row_sd * rng.standard_normal((lines, 1), np.float32)
    shape = (1, lines, 3) if params.upright else (lines, 1, 3)
    banded = image_lin * np.maximum(gain, 0).astype(np.float32).reshape(shape)
    banded += np.repeat(offset, 3, axis=1).astype(np.float32).reshape(shape)
    return Rendered(np.maximum(banded, np.float32(0), out=banded), image_lin)


BANDING_NOISE = Degradation(
    name="banding_noise",
    version=1,
    params_type=BandingNoiseParams,
    sample=sample_banding_noise,
    apply=apply_banding_noise,
    space="linear",
    needs=frozenset(),
    source="mains flicker under a rolling shutter as a sinusoid and its harmonic; row noise: ELD, CVPR 2020",
)
