"""Too little light: an under-exposed sensor, and a tone curve that only looks like one.

Sources: sensor and ISP after Brooks et al., CVPR 2019 (see sensor.py); exposure ratios of SID (Chen et al.,
CVPR 2018) and ELD (Wei et al., CVPR 2020). Curve: Lv, Li, Lu, IJCV 2021.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.sensor import (
    RGB_TO_YCC,
    SensorParams,
    Share,
    camera_matrices,
    lifted_root,
    lifted_root_table,
    sample_sensor,
    scene_light,
)
from degradations.sensor_noise import BAND_ROWS, photograph
from pairforge.image import LUMA_LIN, Image, Plane
from pairforge.rng import Rng, log_uniform

_HEADROOM_FROM = 0.7
_WALL_HEADROOM_POWER, _LAMP_HEADROOM_POWER = 0.5, 3.0
_LAMP_SURROUND_FRAC = 0.03
"""Sigma of what counts as the surroundings of a lamp, of the longer side: what is wider is a bright wall."""
_METER_REFERENCE = 0.18
_METER_STRIDE_PX = 8
_CURVE_STEPS = 65535


class LowLightParams(SensorParams):
    """The sensor gets `1 / exposure_ratio` of the light; a digital gain restores part of it, noise included.

    The gain is `digital_gain * (0.18 / m) ** metering_share`, at least 1 and at most `exposure_ratio`: an automatic
    exposure that lifts a scene whose mean scene light m is below 0.18, partly at 0, fully at 1. What the clean photo
    clipped is `headroom` ** 0.5 times as bright as its white, as skies and walls are, and up to `headroom` ** 3 where
    it is small among darker things, as lamps and their mirror images are. Light falls off by `vignetting_frac` at the
    corners. `black_offset` is the error of the black level per channel, as a fraction of the white level. The
    white-balance gains are wrong by the factors `wb_error` (red, blue). The ISP damps chroma by half where the square
    root of displayed luma is `chroma_fade_root`.
    """

    exposure_ratio: float = Field(ge=1.0, le=1000.0)
    digital_gain: float = Field(ge=0.01, le=1000.0)
    metering_share: Share
    headroom: float = Field(ge=1.0, le=1000.0)
    vignetting_frac: float = Field(ge=0.0, le=0.95)
    black_offset: tuple[float, float, float]
    wb_error: tuple[float, float]
    chroma_fade_root: float = Field(ge=0.0, le=1.0)


def sample_low_light(severity: float, rng: Rng) -> LowLightParams:
    """Ratio 1.25 to 64: the published range begins at 2, one stop, which is more than barely visible.

    The darker, the more the gain depends on the scene: a camera near its limit, not one in daylight.
    """
    ratio = min(64.0, 1.25 * 51.2**severity * log_uniform(rng, 0.9, 1.1))
    sensor = sample_sensor(1e-4 * 2**severity * log_uniform(rng, 0.8, 1.25), severity, rng)
    offset = 2 / 16383 * (0.25 + 0.75 * severity) * rng.standard_normal(3)
    balance = np.exp((0.02 + 0.06 * severity) * rng.standard_normal(2))
    return LowLightParams(
        **sensor.model_dump(),
        exposure_ratio=ratio,
        digital_gain=ratio ** float(rng.uniform(0.45, 0.65)),
        metering_share=severity * float(rng.uniform(0.5, 0.9)),
        headroom=log_uniform(rng, 2.0, 12.0),
        vignetting_frac=float(rng.uniform(0.05, 0.1 + 0.4 * severity)),
        black_offset=(float(offset[0]), float(offset[1]), float(offset[2])),
        wb_error=(float(balance[0]), float(balance[1])),
        chroma_fade_root=0.2 * severity * float(rng.uniform(0.5, 1.0)) + 0.005,
    )


def _sampled_light(image_lin: Image) -> Plane:
    """Scene light of one pixel of 8 x 8, white where it is clipped."""
    sampled = np.ascontiguousarray(image_lin[::_METER_STRIDE_PX, ::_METER_STRIDE_PX])
    light: Plane = cv2.transform(scene_light(sampled), np.array([LUMA_LIN], np.float32)).reshape(sampled.shape[:2])
    return np.minimum(light, np.float32(1), out=light)


def _metered_gain(sampled: Plane, params: LowLightParams) -> tuple[float, float]:
    """Digital gain and the mean scene light it was metered on."""
    metered = max(float(sampled.mean(dtype=np.float64)), 1e-6)
    gain = params.digital_gain * (_METER_REFERENCE / metered) ** params.metering_share
    return min(max(gain, 1.0), params.exposure_ratio), metered


def _headroom_map(sampled: Plane, headroom: float, size: tuple[int, int]) -> Plane:
    """How much brighter than white, which is 1, the clipped is over white, (H, W): most where small and among dark."""
    around = cv2.GaussianBlur(sampled, (0, 0), max(_LAMP_SURROUND_FRAC * max(sampled.shape), 0.5))
    lamp = np.clip(np.float32(1.4) - 4 * around.reshape(sampled.shape), 0, 1)
    power = np.float32(_WALL_HEADROOM_POWER) + np.float32(_LAMP_HEADROOM_POWER - _WALL_HEADROOM_POWER) * lamp
    over = np.float32(headroom) ** power - np.float32(1)
    large: Plane = cv2.resize(over, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(size)
    return large


def _add_headroom(share: Plane, scene_lin: Image, over: Plane, memory: Plane) -> None:
    """Multiply by a factor that rises to 1 + `over` at white: what the clean photo clipped, guessed."""
    slope = 1 / (1 - _HEADROOM_FROM)
    rise = cv2.transform(scene_lin, np.array([[slope / 3] * 3 + [-slope * _HEADROOM_FROM]], np.float32), memory)
    np.clip(rise, 0, 1, out=rise)
    rise *= rise
    rise *= over
    rise += np.float32(1)
    share *= rise


def _exposure(size: tuple[int, int], params: LowLightParams) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column (H, 1) and row (1, W) whose sum is the share of the light that arrives.

    It is 1 - v r^2, with r = 1 at the corners, over the exposure ratio.
    """
    height, width = size
    y = (np.arange(height) + 0.5) / height * 2 - 1
    x = ((np.arange(width) + 0.5) / width * 2 - 1) * width / height
    fall = params.vignetting_frac / (1 + (width / height) ** 2)
    column, row = (1 - fall * y * y) / params.exposure_ratio, -fall * x * x / params.exposure_ratio
    return column[:, None].astype(np.float32), row[None].astype(np.float32)


def _fade_chroma(lifted: Image, fade_root: float, memory: Image) -> None:
    """Chroma times y / (y + fade_root), as ISPs damp coloured noise in shadows; in place.

    Gets the displayed root plus `fade_root`, with luma t = y + fade_root: the result is that times 1 - fade_root / t.
    """
    if fade_root > 0:
        kept = cv2.transform(lifted, RGB_TO_YCC[:1])
        np.divide(np.float32(-fade_root), kept, out=kept)
        kept += np.float32(1)
        cv2.multiply(lifted, cv2.cvtColor(kept, cv2.COLOR_GRAY2RGB, memory), lifted)


def apply_low_light(image_lin: Image, params: LowLightParams, scene: Scene, rng: Rng) -> Rendered:
    size = (image_lin.shape[0], image_lin.shape[1])
    sampled_light = _sampled_light(image_lin)
    gain, metered = _metered_gain(sampled_light, params)
    headroom = _headroom_map(sampled_light, params.headroom, size)
    to_camera, to_rgb = camera_matrices(params, params.wb_error)
    saturated = (params.red_gain, 1.0, params.blue_gain)
    offset = (to_rgb * np.array(params.black_offset) * np.array(saturated)).sum(axis=1, keepdims=True)
    to_rgb = (np.hstack([to_rgb, offset]) * gain).astype(np.float32)
    column, row = _exposure(size, params)
    table = lifted_root_table(params.chroma_fade_root)
    tall = min(BAND_ROWS, size[0])
    shares, rises = (np.empty((tall, size[1]), np.float32) for _ in range(2))

    def expose(rows: slice, out: Image) -> None:
        light = scene_light(image_lin[rows])
        share = np.add(column[rows], row, out=shares[: len(light)])
        if float(light.max()) > _HEADROOM_FROM:
            _add_headroom(share, light, headroom[rows], rises[: len(light)])
        cv2.transform(light, to_camera, out)
        cv2.multiply(out, cv2.cvtColor(share, cv2.COLOR_GRAY2RGB, light), out)

    def develop(raw: Image, out: Image) -> None:
        """Saturation, black level, gain, white balance, colour, tone."""
        if float(raw.max()) > min(saturated):
            cv2.min(raw, (*saturated, 0.0), raw)
        root = lifted_root(cv2.transform(raw, to_rgb, out), table)
        _fade_chroma(root, params.chroma_fade_root, raw)
        np.square(root, out=root)

    image, poisson_frac = photograph(expose, develop, size, params, rng)
    sampled = image[:: 2 * _METER_STRIDE_PX, :: 2 * _METER_STRIDE_PX, 1]
    realised = {
        "digital_gain": gain,
        "metered_light": metered,
        "poisson_frac": poisson_frac,
        "black_frac": float(np.mean(sampled < 1e-4)),
        "median_light": float(np.median(sampled)),
    }
    return Rendered(image, image_lin, realised=realised)


LOW_LIGHT = Degradation(
    name="low_light",
    version=4,
    params_type=LowLightParams,
    sample=sample_low_light,
    apply=apply_low_light,
    space="linear",
    needs=frozenset(),
    source="Brooks et al., CVPR 2019, eq. 1-6; exposure ratios: Chen et al., CVPR 2018",
)


class LowLightCurveParams(Params):
    """beta * (alpha * J) ** gamma of code values: a tone curve. Its gamma is no exposure ratio."""

    alpha: float = Field(ge=0.0, le=1.0)
    beta: float = Field(ge=0.0, le=1.0)
    gamma: float = Field(ge=0.1, le=10.0)


def sample_low_light_curve(severity: float, rng: Rng) -> LowLightCurveParams:
    """gamma 1.02 to 4.2, alpha down to 0.9; the published ranges begin at 1.5 and 0.9, far from barely visible."""
    return LowLightCurveParams(
        alpha=1 - (0.01 + 0.09 * severity) * float(rng.random()),
        beta=1 - 0.4 * severity * float(rng.uniform(0.6, 1.0)),
        gamma=1.05 + 3.0 * severity + (0.03 + 0.12 * severity) * float(rng.uniform(-1, 1)),
    )


def apply_low_light_curve(image: Image, params: LowLightCurveParams, scene: Scene, rng: Rng) -> Rendered:
    code = np.linspace(0, 1, _CURVE_STEPS + 1)
    curve = params.beta * (params.alpha * code) ** params.gamma
    index = cv2.multiply(image.reshape(len(image), -1), float(_CURVE_STEPS), dtype=cv2.CV_16U)
    dark: Image = cv2.LUT(index, curve.astype(np.float32))
    return Rendered(dark.reshape(image.shape), image)


LOW_LIGHT_CURVE = Degradation(
    name="low_light_curve",
    version=2,
    params_type=LowLightCurveParams,
    sample=sample_low_light_curve,
    apply=apply_low_light_curve,
    space="srgb",
    needs=frozenset(),
    source="Lv, Li, Lu, IJCV 2021: beta (alpha J)^gamma, tone only, without their noise",
)
