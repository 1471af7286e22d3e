"""Too little light: an under-exposed sensor, and a tone curve that only looks like one.

Sources: sensor and ISP after Brooks et al., CVPR 2019 (see sensor.py); exposure ratios of SID (Chen et al.,
CVPR 2018) and ELD (Wei et al., CVPR 2020). Curve: Lv, Li, Lu, IJCV 2021.
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
    look_up,
    mosaic,
    raw_matrix,
    reprocess_root,
    sample_sensor,
    scene_light,
)
from pairforge.image import Image, Plane
from pairforge.rng import Rng, log_uniform

_HEADROOM_FROM = 0.8


class LowLightParams(SensorParams):
    """The sensor gets `1 / exposure_ratio` of the light; `digital_gain` restores part of it, noise included.

    Light sources that the clean photo clipped are `headroom` times as bright as its white. Light falls off
    by `vignetting_frac` at the corners. `black_offset` is the error of the black level per channel, as a
    fraction of the white level. The white-balance gains are wrong by the factors `wb_error` (red, blue).
    The ISP damps chroma by half where the square root of displayed luma is `chroma_fade_root`.
    """

    exposure_ratio: float
    digital_gain: float
    headroom: float
    vignetting_frac: float
    black_offset: tuple[float, float, float]
    wb_error: tuple[float, float]
    chroma_fade_root: float


def sample_low_light(severity: float, rng: Rng) -> LowLightParams:
    """Ratio 1.25 to 64: the published range begins at 2, one stop, which is more than barely visible."""
    ratio = min(64.0, 1.25 * 51.2**severity * log_uniform(rng, 0.9, 1.1))
    sensor = sample_sensor(1e-4 * 4**severity * log_uniform(rng, 0.8, 1.25), severity, rng)
    offset = 2 / 16383 * (0.25 + 0.75 * severity) * rng.standard_normal(3)
    balance = np.exp((0.02 + 0.08 * severity) * rng.standard_normal(2))
    return LowLightParams(
        **sensor.model_dump(),
        exposure_ratio=ratio,
        digital_gain=ratio ** float(rng.uniform(0.4, 0.65)),
        headroom=log_uniform(rng, 2.0, 12.0),
        vignetting_frac=float(rng.uniform(0.05, 0.1 + 0.4 * severity)),
        black_offset=(float(offset[0]), float(offset[1]), float(offset[2])),
        wb_error=(float(balance[0]), float(balance[1])),
        chroma_fade_root=0.2 * severity * float(rng.uniform(0.5, 1.0)) + 0.005,
    )


def _brighten_highlights(scene_lin: Image, headroom: float) -> Image:
    """Scene light whose brightest fifth rises to `headroom`: what the clean photo clipped, guessed."""
    peak = cv2.transform(scene_lin, np.full((1, 3), 1 / 3, np.float32))
    rise = np.clip((peak - _HEADROOM_FROM) / (1 - _HEADROOM_FROM), 0, 1)
    rise *= rise
    rise *= np.float32(headroom - 1)
    rise += np.float32(1)
    brightened: Image = cv2.multiply(scene_lin, cv2.merge([rise] * 3))
    return brightened


def _exposure(height: int, width: int, params: LowLightParams) -> Plane:
    """Share of the light that arrives (H, W): 1 - v r^2, r = 1 at the corners, over the exposure ratio."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1
    x = (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1
    aspect = width / height
    squared = (y * y)[:, None] + (x * x * aspect**2)[None, :]
    squared *= np.float32(-params.vignetting_frac / (1 + aspect**2))
    squared += np.float32(1)
    return np.multiply(squared, np.float32(1 / params.exposure_ratio), out=squared)


def _fade_chroma(root: Image, fade_root: float) -> Image:
    """Chroma times y / (y + fade_root), as ISPs damp coloured noise in shadows."""
    luma, *chroma = cv2.split(cv2.transform(root, RGB_TO_YCC))
    share = luma / (luma + np.float32(fade_root + 1e-6))
    faded: Image = cv2.transform(cv2.merge([luma, *(plane * share for plane in chroma)]), YCC_TO_RGB)
    return np.maximum(faded, np.float32(0), out=faded)


def _develop(raw: Image, params: LowLightParams) -> Image:
    """Square root of displayed light of a raw frame: saturation, gain, white balance, colour, tone."""
    clipped = np.minimum(raw, np.float32(1))
    clipped *= np.float32(params.digital_gain)
    return reprocess_root(clipped, params, params.wb_error)


def apply_low_light(image_lin: Image, params: LowLightParams, scene: Scene, rng: Rng) -> Rendered:
    light = _brighten_highlights(scene_light(image_lin), params.headroom)
    exposure = _exposure(image_lin.shape[0], image_lin.shape[1], params)
    raw: Image = cv2.transform(cv2.multiply(light, cv2.merge([exposure] * 3)), raw_matrix(params))
    noise, poisson_frac = draw_noise(mosaic(raw), params, rng)
    raw += np.array(params.black_offset, np.float32)
    clean_root = _develop(raw, params)
    noisy_root = _develop(np.add(raw, demosaic(noise), out=raw), params)
    root = _fade_chroma(finish(clean_root, noisy_root, params), params.chroma_fade_root)
    realised = {
        "poisson_frac": poisson_frac,
        "black_frac": float(np.mean(root < 0.01)),
        "median_light": float(np.median(root[..., 1])) ** 2,
    }
    return Rendered(np.multiply(root, root, out=root), image_lin, realised=realised)


LOW_LIGHT = Degradation(
    name="low_light",
    version=1,
    params_type=LowLightParams,
    sample=sample_low_light,
    apply=apply_low_light,
    space="linear",
    needs=frozenset(),
    source="Brooks et al., CVPR 2019, eq. 1-6; exposure ratios: Chen et al., CVPR 2018",
)


class LowLightCurveParams(Params):
    """beta * (alpha * J) ** gamma of code values: a tone curve. Its gamma is no exposure ratio."""

    alpha: float
    beta: float
    gamma: float


def sample_low_light_curve(severity: float, rng: Rng) -> LowLightCurveParams:
    """gamma 1.02 to 4.2, alpha down to 0.9; the published ranges begin at 1.5 and 0.9, far from barely visible."""
    return LowLightCurveParams(
        alpha=1 - (0.01 + 0.09 * severity) * float(rng.random()),
        beta=1 - 0.4 * severity * float(rng.uniform(0.6, 1.0)),
        gamma=1.05 + 3.0 * severity + (0.03 + 0.12 * severity) * float(rng.uniform(-1, 1)),
    )


def apply_low_light_curve(image: Image, params: LowLightCurveParams, scene: Scene, rng: Rng) -> Rendered:
    code = np.linspace(0, 1, 65536)
    curve = params.beta * (params.alpha * code) ** params.gamma
    return Rendered(look_up(np.clip(image, 0, 1), curve.astype(np.float32)), image)


LOW_LIGHT_CURVE = Degradation(
    name="low_light_curve",
    version=1,
    params_type=LowLightCurveParams,
    sample=sample_low_light_curve,
    apply=apply_low_light_curve,
    space="srgb",
    needs=frozenset(),
    source="Lv, Li, Lu, IJCV 2021: beta (alpha J)^gamma, tone only, without their noise",
)
