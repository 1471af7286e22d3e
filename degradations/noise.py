"""Noise of a sensor: of its photosites, of its segments after local noise reduction, of its lines.

Sources: sensor noise after Brooks et al., CVPR 2019 (see sensor_noise.py). Rows: ELD, Wei et al., CVPR 2020. Noise
whose strength differs between segments follows RealRestorer (arXiv 2603.25502), here as a factor on the sensor's law.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene, Segments
from degradations.sensor import (
    SensorParams,
    camera_matrices,
    reprocess,
    sample_sensor,
    unprocess,
)
from degradations.sensor_noise import photograph
from pairforge.image import Image, Plane
from pairforge.rng import Rng, log_uniform

_STRENGTH_CODE = 4096
"""Code of strength 1 in the layer `noise_strength`."""


def sample_sensor_noise(severity: float, rng: Rng) -> SensorParams:
    """Shot noise 8e-5 to 0.012: the published range from a little below its lower end."""
    shot_var = 8e-5 * (0.012 / 8e-5) ** severity * log_uniform(rng, 0.82, 1.22)
    return sample_sensor(shot_var, severity, rng)


def _render(image_lin: Image, params: SensorParams, rng: Rng, strength: Plane | None = None) -> tuple[Image, float]:
    to_camera, to_rgb = camera_matrices(params)
    return photograph(
        lambda rows, out: unprocess(image_lin[rows], to_camera, out),
        lambda raw, out: reprocess(raw, to_rgb, out),
        (image_lin.shape[0], image_lin.shape[1]),
        params,
        rng,
        strength,
    )


def apply_sensor_noise(image_lin: Image, params: SensorParams, scene: Scene, rng: Rng) -> Rendered:
    image, poisson_frac = _render(image_lin, params, rng)
    return Rendered(image, image_lin, realised={"poisson_frac": poisson_frac})


SENSOR_NOISE = Degradation(
    name="sensor_noise",
    version=3,
    params_type=SensorParams,
    sample=sample_sensor_noise,
    apply=apply_sensor_noise,
    space="linear",
    needs=frozenset(),
    source="Brooks et al., CVPR 2019, eq. 1-6; Alleysson et al., IEEE TIP 2005; Wei et al., CVPR 2020",
)


class SegmentNoiseParams(SensorParams):
    """Sensor noise of which every segment keeps a share s_k, as local noise reduction leaves it.

    Var_k = s_k^2 (shot_var x + read_var). s_k is log-normal with mean 1 and coefficient of variation
    `strength_cv`, drawn while rendering, since only then the number of segments is known. The map of s is
    smoothed by a Gaussian of sigma `feather_px`.
    """

    strength_cv: float = Field(ge=0.0, le=2.0)
    feather_px: float = Field(ge=0.0, le=32.0)


def sample_segment_noise(severity: float, rng: Rng) -> SegmentNoiseParams:
    """Shot noise up to 0.003, less than that of `sensor_noise`: single segments have two or three times the mean sd."""
    shot_var = 8e-5 * (0.003 / 8e-5) ** severity * log_uniform(rng, 0.8, 1.25)
    return SegmentNoiseParams(
        **sample_sensor(shot_var, severity, rng).model_dump(),
        strength_cv=float(rng.uniform(0.3, 0.5)),
        feather_px=float(rng.uniform(2.0, 4.0)),
    )


def _strength_map(
    segments: Segments, shape: tuple[int, int], params: SegmentNoiseParams, rng: Rng
) -> tuple[Plane, NDArray[np.float64]]:
    """Strength of noise (H, W) and of every segment. Raises ValueError for labels that do not fit."""
    labels = segments.labels
    if labels.shape != shape:
        raise ValueError(f"labels of segments have shape {labels.shape}; the image has {shape}")
    if labels.min() < 0 or labels.max() >= segments.count:
        raise ValueError(f"labels of segments span {labels.min()}..{labels.max()}; count {segments.count} allows 0 on")
    log_var = np.log1p(params.strength_cv**2)
    strengths = np.exp(np.sqrt(log_var) * rng.standard_normal(segments.count) - log_var / 2)
    # Half size is enough for a map that is about to be smoothed.
    half = np.take(strengths.astype(np.float32), labels[::2, ::2])
    if params.feather_px > 0:
        cv2.GaussianBlur(half, (0, 0), params.feather_px / 2, half)
    strength: Plane = cv2.resize(half, (2 * half.shape[1], 2 * half.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(strength[: shape[0], : shape[1]]), strengths


def apply_segment_noise(image_lin: Image, params: SegmentNoiseParams, scene: Scene, rng: Rng) -> Rendered:
    assert scene.segments is not None
    size = (image_lin.shape[0], image_lin.shape[1])
    strength, strengths = _strength_map(scene.segments, size, params, rng)
    image, poisson_frac = _render(image_lin, params, rng, strength)
    codes: NDArray[np.uint16] = cv2.multiply(strength, float(_STRENGTH_CODE), dtype=cv2.CV_16U)
    realised = {
        "poisson_frac": poisson_frac,
        "strengths": [round(value, 6) for value in strengths.tolist()],
        "strength_code": _STRENGTH_CODE,
    }
    return Rendered(image, image_lin, {"noise_strength": codes}, realised)


SEGMENT_NOISE = Degradation(
    name="segment_noise",
    version=2,
    params_type=SegmentNoiseParams,
    sample=sample_segment_noise,
    apply=apply_segment_noise,
    space="linear",
    needs=frozenset({"segments"}),
    source="Brooks et al., CVPR 2019, eq. 1-6, with a strength for every segment as in arXiv 2603.25502",
)


class BandingNoiseParams(Params):
    """Bands of a rolling shutter in linear light, along rows, or along columns where `upright`.

    Mains-driven light swings by `flicker_depth` around its mean, `flicker_cycles` times over the frame;
    `harmonic_frac` is the second harmonic relative to the first. Blue swings by a factor `1 + tint` more and
    red less, as phosphors of different decay do. `row_sd` is additive read-out noise of whole lines.
    """

    row_sd: float = Field(ge=0.0, le=1.0)
    flicker_depth: float = Field(ge=0.0, le=1.0)
    flicker_cycles: float = Field(ge=0.0, le=1000.0)
    flicker_phase_rad: float
    harmonic_frac: float = Field(ge=-1.0, le=1.0)
    tint: float = Field(ge=-1.0, le=1.0)
    upright: bool


def sample_banding_noise(severity: float, rng: Rng) -> BandingNoiseParams:
    return BandingNoiseParams(
        row_sd=2e-4 * 15**severity * float(np.exp(rng.uniform(-0.1, 0.1))),
        flicker_depth=0.02 + 0.33 * severity + float(rng.uniform(-0.015, 0.015)),
        flicker_cycles=log_uniform(rng, 1.5, 9.0),
        flicker_phase_rad=float(rng.uniform(0, 2 * np.pi)),
        harmonic_frac=float(rng.uniform(0.05, 0.3)),
        tint=float(rng.uniform(0.0, 0.3)),
        upright=bool(rng.random() < 0.35),
    )


def apply_banding_noise(image_lin: Image, params: BandingNoiseParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image_lin.shape[:2]
    lines = width if params.upright else height
    angle = 2 * np.pi * params.flicker_cycles * (np.arange(lines) + 0.5) / lines + params.flicker_phase_rad
    swing = params.flicker_depth * (np.sin(angle) + params.harmonic_frac * np.sin(2 * angle))
    gain = 1 + np.multiply.outer(swing, [1 - params.tint, 1.0, 1 + params.tint])
    offset = np.repeat(params.row_sd * rng.standard_normal((lines, 1), np.float32), 3, axis=1)
    shape, across = ((1, lines, 3), (height, 1)) if params.upright else ((lines, 1, 3), (1, width))
    gains, offsets = (
        cv2.repeat(line.astype(np.float32).reshape(shape), *across) for line in (np.maximum(gain, 0), offset)
    )
    banded = cv2.multiply(image_lin, gains, gains)
    banded += offsets
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
