"""Falling rain: a drop population seen through an exposure, the veil of the drops too far to see, wet ground.

Sources: the population (rain_drops.py); a drop covers a pixel for a fraction of the exposure,
I' = (1 - alpha) I + alpha E (Garg and Nayar, CVPR 2004, IJCV 2007; rain_streaks.py); E, the radiance of a drop,
is nearly the mean of a 165-degree environment; veil: extinction of the same population, efficiency 2; splashes and
wet ground: rain_ground.py.

Deviations. `streak_gain`, `veil_gain` and `splash_gain` are artistic: 1 is physics, and physical rain is faint. The
veil counts near drops too, a few per cent of it. Depth that is not metric is moved away where there would be no room
for rain. E comes from a wide blur of the photo and is lifted where no sky is in the frame; it varies in brightness
over the frame, not in hue.
"""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Depth, Params, Rendered, Scene
from degradations.haze_medium import TWILIGHT_CHROMA, twilight_of
from degradations.rain_drops import beta_rain_per_m, draw_drops, min_streak_width_px, project_drops
from degradations.rain_ground import Ground, draw_splashes, wet_factor, wet_maps
from degradations.rain_streaks import Streaks, joined, rasterise
from pairforge.image import Image, Plane, luminance
from pairforge.rng import Rng, log_uniform

Codes = NDArray[np.uint16]

_ENVIRONMENT_PX = 48
_OVERCAST_CHROMA = 0.4
_LEAST_MEDIAN_M = 5.0
"""In front of nearer things there are but a few drops, so that a close-up at a guessed distance would stay dry."""
_STRIP_ROWS = 64
_SKY_FLOOR = 0.5
"""Least transmission of the veil for sky at the top of the frame: rain ends at the cloud."""


class RainParams(Params):
    """`wind_m_s`: across the view, positive to the right. `camera_speed_m_s`: forward. `streak_gain`, `veil_gain`
    and `splash_gain` multiply opacity of streaks, extinction, and opacity of splashes; 1 is physical.
    `tilt_sigma_deg`: spread of fall direction between drops. `aperture_m`: lens opening, which blurs drops out of
    focus; the focus is the median distance of the scene. `wetness`: share of the ground under a film of water.
    """

    rain_rate_mm_h: float = Field(ge=0.1, le=300)
    exposure_s: float = Field(ge=1e-4, le=1)
    wind_m_s: float = Field(ge=-40, le=40)
    camera_speed_m_s: float = Field(ge=0, le=60)
    tilt_sigma_deg: float = Field(ge=0, le=30)
    aperture_m: float = Field(ge=0, le=0.1)
    streak_gain: float = Field(ge=0, le=50)
    veil_gain: float = Field(ge=0, le=50)
    splash_gain: float = Field(ge=0, le=50)
    wetness: float = Field(ge=0, le=1)


def sample_rain(severity: float, rng: Rng) -> RainParams:
    """Severity raises rate (4 to 96 mm/h), gains and wetness; exposure, wind and optics are spread.

    A longer exposure makes streaks fainter in proportion; the gain gives back about half of that.
    """
    exposure_s = log_uniform(rng, 1 / 200, 1 / 30)
    return RainParams(
        rain_rate_mm_h=float(4.0 * 24.0**severity * rng.uniform(0.9, 1.1)),
        exposure_s=exposure_s,
        wind_m_s=float(np.clip(rng.normal(0.0, 0.8 + 2.0 * severity), -10, 10)),
        camera_speed_m_s=float(min(rng.exponential(1.0), 12.0)),
        tilt_sigma_deg=float(rng.uniform(1.0, 3.0)),
        aperture_m=log_uniform(rng, 0.002, 0.012),
        streak_gain=float((2.0 + 14.0 * severity) * (60 * exposure_s) ** 0.5 * rng.uniform(0.9, 1.1)),
        veil_gain=float((1.0 + 1.5 * severity) * rng.uniform(0.9, 1.1)),
        splash_gain=float((6.0 + 12.0 * severity) * rng.uniform(0.8, 1.2)),
        wetness=float(severity**0.5 * rng.uniform(0.6, 0.9)),
    )


def apply_rain(image_lin: Image, params: RainParams, scene: Scene, rng: Rng) -> Rendered:
    assert scene.depth is not None
    depth, depth_scale = with_room_for_rain(scene.depth)
    height, width = depth.z_m.shape
    min_width_px = min_streak_width_px(params.rain_rate_mm_h, width, height, depth.focal_px)
    focus_m = focus_distance_m(depth)
    ground = Ground(depth)
    streaks, drop_count, splash_count = falling_and_splashing(params, depth, ground, min_width_px, focus_m, rng)
    alpha = rasterise(streaks, depth.z_m, 1.0)

    airlight, brightness = environment_of(image_lin, depth)
    beta = beta_rain_per_m(params.rain_rate_mm_h)
    light = (airlight, brightness)
    out, codes = compose(image_lin, alpha, depth, beta * params.veil_gain, light, ground, params.wetness)
    return Rendered(
        out,
        image_lin,
        layers={"rain_alpha": codes[0], "rain_transmission": codes[1]},
        realised={
            "drop_count": drop_count,
            "splash_count": splash_count,
            "min_width_px": min_width_px,
            "beta_rain_per_m": beta,
            "beta_veil_per_m": beta * params.veil_gain,
            "focus_m": focus_m,
            "environment_rgb": airlight,
            "mean_alpha": float(alpha.mean()),
            "ground_share": float(ground.weight.mean()),
            "depth_scale": depth_scale,
            "depth_is_metric": depth.metric,
        },
    )


def compose(
    image_lin: Image,
    alpha: Plane,
    depth: Depth,
    beta_veil_per_m: float,
    light: tuple[list[float], Plane],
    ground: Ground,
    wetness: float,
) -> tuple[Image, Codes]:
    """Wet ground, then veil, then streaks; and as codes (2, H, W) alpha and the transmission of the veil.

    Strip by strip, as what is in between then stays in the cache.
    """
    height, width = alpha.shape
    brightness = widened(light[1], width)
    share, sheen = (widened(plane, width) for plane in wet_maps(ground, wetness))
    out = np.empty_like(image_lin)
    codes = np.empty((2, *alpha.shape), np.uint16)
    # Planes are handed to OpenCV, which takes several times as long where it has to allocate them.
    memory = [np.empty((min(_STRIP_ROWS, height), width), np.float32) for _ in range(3)]
    for top in range(0, height, _STRIP_ROWS):
        rows = np.s_[top : top + _STRIP_ROWS]
        kept = veil_transmission(depth, beta_veil_per_m, rows)
        codes[0, rows] = alpha[rows] * np.float32(65535) + np.float32(0.5)
        codes[1, rows] = kept * np.float32(65535) + np.float32(0.5)
        clear = np.float32(1) - alpha[rows]
        kept *= clear
        # What is added, in units of the airlight: veil seen between streaks, and streaks.
        clear -= kept
        clear += heightened(brightness, rows, height) * alpha[rows]
        wet = heightened(share, rows, height)
        if wet.any():
            clear += heightened(sheen, rows, height) * kept
            kept *= wet_factor(luminance(image_lin[rows]).reshape(kept.shape), wet)
        channels = [plane[: len(kept)] for plane in memory]
        cv2.split(image_lin[rows], channels)
        for channel, airlight in zip(channels, light[0], strict=True):
            channel *= kept
            cv2.scaleAdd(clear, airlight, channel, dst=channel)
        cv2.merge(channels, dst=out[rows])
    return out, codes


def widened(small: Plane, width: int) -> Plane:
    """A small map (h, w) as (h, width)."""
    wide: Plane = cv2.resize(small, (width, len(small)), interpolation=cv2.INTER_LINEAR)
    return wide.reshape(len(small), width)


def heightened(wide: Plane, rows: slice, height: int) -> Plane:
    """Some rows of a map (h, W) enlarged to `height` rows."""
    y = (np.arange(height, dtype=np.float32)[rows] + np.float32(0.5)) * np.float32(len(wide) / height)
    y = np.clip(y - np.float32(0.5), 0, len(wide) - 1)
    upper = y.astype(np.int64)
    between: Plane = wide[np.minimum(upper + 1, len(wide) - 1)]
    between -= wide[upper]
    between *= (y - upper).astype(np.float32)[:, None]
    between += wide[upper]
    return between


def falling_and_splashing(
    params: RainParams, depth: Depth, ground: Ground, min_width_px: float, focus_m: float, rng: Rng
) -> tuple[Streaks, int, int]:
    """All streaks, gains included, those of splashes last; and the numbers of drops and splashes."""
    height, width = depth.z_m.shape
    diameter_mm, z_m = draw_drops(params.rain_rate_mm_h, min_width_px, width, height, depth.focal_px, rng)
    streaks = project_drops(
        diameter_mm,
        z_m,
        exposure_s=params.exposure_s,
        wind_m_s=params.wind_m_s,
        camera_speed_m_s=params.camera_speed_m_s,
        tilt_sigma_deg=params.tilt_sigma_deg,
        aperture_m=params.aperture_m,
        focus_m=focus_m,
        size=(width, height),
        focal_px=depth.focal_px,
        rng=rng,
    )
    streaks = replace(streaks, strength=streaks.strength * np.float32(params.streak_gain))
    splashes = draw_splashes(
        params.rain_rate_mm_h,
        params.exposure_s,
        params.aperture_m,
        focus_m,
        params.splash_gain,
        ground,
        depth,
        rng,
    )
    if splashes is None:
        return streaks, len(z_m), 0
    return joined([streaks, splashes[0]]), len(z_m), splashes[1]


def veil_transmission(depth: Depth, beta_per_m: float, rows: slice) -> Plane:
    """exp(-beta * ray length) of some rows, with the floor of the sky, which ends at the zenith."""
    height, width = depth.z_m.shape
    x = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)) / np.float32(depth.focal_px)
    y = np.arange(height, dtype=np.float32)[rows]
    elevation = np.float32(1) - (y + np.float32(0.5)) / np.float32(height)
    y = (y - np.float32((height - 1) / 2)) / np.float32(depth.focal_px)
    path = np.sqrt((x * x + 1)[None, :] + (y * y)[:, None])
    path *= depth.z_m[rows]
    path *= np.float32(-beta_per_m)
    transmission: Plane = cv2.exp(path).reshape(path.shape)
    floor = depth.sky[rows] * (elevation * np.float32(_SKY_FLOOR))[:, None]
    np.subtract(np.float32(1), transmission, out=path)
    path *= floor
    transmission += path
    return transmission


def with_room_for_rain(depth: Depth) -> tuple[Depth, float]:
    """A depth whose metres are assumed, moved away until its median is at least `_LEAST_MEDIAN_M`; and the factor."""
    median = focus_distance_m(depth)
    if depth.metric or median >= _LEAST_MEDIAN_M:
        return depth, 1.0
    scale = _LEAST_MEDIAN_M / median
    return replace(depth, z_m=depth.z_m * np.float32(scale)), scale


def focus_distance_m(depth: Depth) -> float:
    """Median distance of what is not sky; of everything in an all-sky frame."""
    step = max(1, round((depth.z_m.size / 65536) ** 0.5))
    z_m = depth.z_m[::step, ::step]
    ground = z_m[depth.sky[::step, ::step] < 0.5]
    return float(np.median(ground if ground.size else z_m))


def environment_of(image_lin: Image, depth: Depth) -> tuple[list[float], Plane]:
    """Mean radiance of drops over the frame (RGB), and a small map of how bright it is in parts, mean 1.

    0.94 of a very wide blur, 0.06 of the mean. Sky and the upper rows weigh most. Drops see sky above the frame too,
    which photos are exposed to render bright: a mean below 0.7 of the photo's 95th percentile is lifted to it. It
    rains from grey skies: most of the hue is taken out, but in twilight clouds are lit by the blue sky alone.
    """
    height, width = image_lin.shape[:2]
    step = max(1, max(height, width) // _ENVIRONMENT_PX)
    size = (max(1, width // step), max(1, height // step))
    whole = np.s_[: size[1] * min(step, height), : size[0] * min(step, width)]
    small: Image = cv2.resize(image_lin[whole], size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], 3)
    sky = cv2.resize(depth.sky[whole], size, interpolation=cv2.INTER_AREA).reshape(size[::-1])
    upper = 1.0 - (np.arange(size[1], dtype=np.float32) + 0.5) / size[1]
    weight = sky + (0.1 + 0.3 * upper * upper)[:, None]
    sigma = 0.35 * max(size)
    weighted = cv2.GaussianBlur(small * weight[..., None], (0, 0), sigma).reshape(small.shape)
    blurred = weighted / cv2.GaussianBlur(weight, (0, 0), sigma).reshape(size[::-1])[..., None]
    environment = np.float32(0.94) * blurred + np.float32(0.06) * small.mean(axis=(0, 1), dtype=np.float32)
    light = luminance(environment).reshape(size[::-1])
    grey = max(float(light.mean()), 1e-4)
    of_small = luminance(small)
    bright, twilight = float(np.quantile(of_small, 0.95)), twilight_of(of_small)
    lift = max(1.0, 0.7 * bright / grey)
    mean = environment.mean(axis=(0, 1), dtype=np.float64)
    chroma = _OVERCAST_CHROMA + (TWILIGHT_CHROMA - _OVERCAST_CHROMA) * twilight * float(sky.mean() > 0.05)
    airlight = lift * (grey + chroma * (mean - grey))
    return [float(value) for value in airlight], light * np.float32(1 / grey)


RAIN = Degradation(
    name="rain",
    version=3,
    params_type=RainParams,
    sample=sample_rain,
    apply=apply_rain,
    space="linear",
    needs=frozenset({"depth"}),
    source="Garg and Nayar, IJCV 2007; Marshall and Palmer 1948; Atlas et al. 1973; wet ground: Angstrom 1925",
)
