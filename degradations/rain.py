"""Falling rain: a drop population seen through an exposure, and the veil of the drops too far to see.

Sources: drop sizes N(D) = 8000 exp(-4.1 R^-0.21 D) per m^3 and mm (Marshall and Palmer 1948); fall speed
9.65 - 10.3 exp(-0.6 D) m/s (Atlas et al. 1973, Eq. 24); a drop covers a pixel for a fraction of the
exposure, I' = (1 - alpha) I + alpha E (Garg and Nayar, CVPR 2004, IJCV 2007); E, the radiance of a drop, is
nearly the mean of a 165-degree environment; veil: extinction of the same population, efficiency 2.

Deviations. `streak_gain` and `veil_gain` are artistic: 1 is physics, and physical rain is faint. The size
and speed laws do not close (they carry up to 1.18 R at low rates); neither is rescaled. The veil counts
near drops too, a few per cent of it. Drops are spheres: no oscillation glints, no splashes, no wet ground.
E comes from a wide blur of the photo and is lifted where no sky is in the frame. How streaks are drawn:
rain_streaks.py.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Degradation, Depth, Params, Rendered, Scene
from degradations.haze import ray_length_m, sky_floor
from degradations.rain_streaks import Streaks, Values, rasterise
from pairforge.image import Image, luminance
from pairforge.rng import Rng, log_uniform

Curve = NDArray[np.float64]

_DIAMETER_RANGE_MM = (0.3, 6.0)
_NEAR_PLANE_M = 0.5
_MIN_WIDTH_FRAC = 1 / 2048
"""Thinner streaks, as a share of the image width, belong to the veil."""
_MAX_DROPS = 24_000
_OVERCAST_CHROMA = 0.4
_SKY_FLOOR = 0.5
"""Least transmission of the veil for sky at the top of the frame: rain ends at the cloud."""


class RainParams(Params):
    """`wind_m_s`: across the view, positive to the right. `camera_speed_m_s`: forward. `streak_gain` and
    `veil_gain` multiply opacity and extinction; 1 is physical. `tilt_sigma_deg`: spread of fall direction
    between drops. `aperture_m`: lens opening, which blurs drops out of focus; the focus is the
    median distance of the scene.
    """

    rain_rate_mm_h: float
    exposure_s: float
    wind_m_s: float
    camera_speed_m_s: float
    tilt_sigma_deg: float
    aperture_m: float
    streak_gain: float
    veil_gain: float


def sample_rain(severity: float, rng: Rng) -> RainParams:
    """Severity raises rate (4 to 96 mm/h) and both gains; exposure, wind and optics are spread."""
    return RainParams(
        rain_rate_mm_h=float(4.0 * 24.0**severity * rng.uniform(0.9, 1.1)),
        exposure_s=log_uniform(rng, 1 / 250, 1 / 40),
        wind_m_s=float(rng.normal(0.0, 1.0 + 2.0 * severity)),
        camera_speed_m_s=float(min(rng.exponential(1.0), 12.0)),
        tilt_sigma_deg=float(rng.uniform(1.0, 3.0)),
        aperture_m=log_uniform(rng, 0.002, 0.012),
        streak_gain=float((2.0 + 11.0 * severity) * rng.uniform(0.9, 1.1)),
        veil_gain=float((1.0 + 1.5 * severity) * rng.uniform(0.9, 1.1)),
    )


def apply_rain(image_lin: Image, params: RainParams, scene: Scene, rng: Rng) -> Rendered:
    assert scene.depth is not None
    depth = scene.depth
    height, width = depth.z_m.shape
    min_width_px = min_streak_width_px(params.rain_rate_mm_h, width, height, depth.focal_px)
    diameter_mm, z_m = draw_drops(params.rain_rate_mm_h, min_width_px, width, height, depth.focal_px, rng)
    focus_m = focus_distance_m(depth)
    streaks = project_drops(diameter_mm, z_m, params, focus_m, (width, height), depth.focal_px, rng)
    alpha = rasterise(streaks, depth.z_m, params.streak_gain)

    environment = environment_rgb(image_lin, depth)
    beta = beta_rain_per_m(params.rain_rate_mm_h)
    airlight = environment.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    transmission = cv2.exp(ray_length_m(depth) * np.float32(-beta * params.veil_gain))
    transmission += sky_floor(depth.sky, _SKY_FLOOR) * (1.0 - transmission)
    out = image_lin - airlight
    out *= transmission[..., None]
    out += airlight
    around = cv2.resize(environment, (width, height), interpolation=cv2.INTER_LINEAR)
    around -= out
    around *= alpha[..., None]
    out += around
    return Rendered(
        out,
        image_lin,
        layers={"rain_alpha": (alpha * 65535 + 0.5).astype(np.uint16)},
        realised={
            "drop_count": len(z_m),
            "min_width_px": min_width_px,
            "beta_rain_per_m": beta,
            "beta_veil_per_m": beta * params.veil_gain,
            "focus_m": focus_m,
            "environment_rgb": [float(value) for value in airlight],
            "mean_alpha": float(alpha.mean()),
            "depth_is_metric": depth.metric,
        },
    )


def slope_per_mm(rain_rate_mm_h: float) -> float:
    """Lambda of Marshall and Palmer."""
    return float(4.1 * rain_rate_mm_h**-0.21)


def fall_speed_m_s(diameter_mm: Values) -> Values:
    """Terminal speed in still air; valid from 0.11 mm on."""
    speed: Values = np.float32(9.65) - np.float32(10.3) * np.exp(np.float32(-0.6) * diameter_mm)
    return speed


def beta_rain_per_m(rain_rate_mm_h: float) -> float:
    """Extinction of the whole population: integral of N(D) * 2 * pi D^2 / 4, in closed form."""
    return float(8000.0 * np.pi * 1e-6 / slope_per_mm(rain_rate_mm_h) ** 3)


def visible_density(rain_rate_mm_h: float, min_width_px: float, focal_px: float) -> tuple[Curve, Curve]:
    """Diameters in mm and, per mm, the drops a unit solid angle holds that are at least so wide in px."""
    diameter = np.linspace(*_DIAMETER_RANGE_MM, 2048, dtype=np.float64)
    z_max = focal_px * diameter * 1e-3 / min_width_px
    volume = np.maximum(z_max**3 - _NEAR_PLANE_M**3, 0.0) / 3.0
    density = 8000.0 * np.exp(-slope_per_mm(rain_rate_mm_h) * diameter) * volume
    return diameter, density


def expected_drops(rain_rate_mm_h: float, min_width_px: float, width: int, height: int, focal_px: float) -> float:
    """Mean number of drops in view at least `min_width_px` wide."""
    diameter, density = visible_density(rain_rate_mm_h, min_width_px, focal_px)
    return float(np.trapezoid(density, diameter)) * width * height / focal_px**2


def min_streak_width_px(rain_rate_mm_h: float, width: int, height: int, focal_px: float) -> float:
    """Width from which drops are drawn one by one, raised until they are few enough."""
    limit = width * _MIN_WIDTH_FRAC
    while expected_drops(rain_rate_mm_h, limit, width, height, focal_px) > _MAX_DROPS:
        limit *= 1.05
    return limit


def draw_drops(
    rain_rate_mm_h: float, min_width_px: float, width: int, height: int, focal_px: float, rng: Rng
) -> tuple[Values, Values]:
    """Diameters in mm and distances in m of a Poisson population in the viewing frustum."""
    diameter, density = visible_density(rain_rate_mm_h, min_width_px, focal_px)
    count = int(rng.poisson(expected_drops(rain_rate_mm_h, min_width_px, width, height, focal_px)))
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    size = np.interp(rng.random(count) * cumulative[-1], cumulative, diameter)
    z_max = np.maximum(focal_px * size * 1e-3 / min_width_px, _NEAR_PLANE_M)
    near = _NEAR_PLANE_M**3
    z_m = np.cbrt(near + rng.random(count) * (z_max**3 - near))
    return size.astype(np.float32), z_m.astype(np.float32)


def focus_distance_m(depth: Depth) -> float:
    """Median distance of what is not sky; of everything in an all-sky frame."""
    ground = depth.z_m[depth.sky < 0.5]
    return float(np.median(ground if ground.size else depth.z_m))


def project_drops(
    diameter_mm: Values,
    z_m: Values,
    params: RainParams,
    focus_m: float,
    size: tuple[int, int],
    focal_px: float,
    rng: Rng,
) -> Streaks:
    """Where each drop is at the start and the end of the exposure, as a streak in an image of `size` (W, H)."""
    width, height = size
    count = len(z_m)
    x = (rng.random(count, dtype=np.float32) - np.float32(0.5)) * width
    y = (rng.random(count, dtype=np.float32) - np.float32(0.5)) * height
    tilt = rng.standard_normal(count, dtype=np.float32) * np.float32(np.deg2rad(params.tilt_sigma_deg))
    fall = fall_speed_m_s(diameter_mm)
    speed_x = params.wind_m_s * np.cos(tilt) - fall * np.sin(tilt)
    speed_y = params.wind_m_s * np.sin(tilt) + fall * np.cos(tilt)
    half_s = np.float32(0.5 * params.exposure_s)

    def at(time_s: np.float32) -> tuple[Values, Values]:
        z = np.maximum(z_m - params.camera_speed_m_s * time_s, 0.3 * z_m)
        return (x * z_m + focal_px * speed_x * time_s) / z, (y * z_m + focal_px * speed_y * time_s) / z

    (start_x, start_y), (end_x, end_y) = at(-half_s), at(half_s)
    length = np.maximum(np.hypot(end_x - start_x, end_y - start_y), np.float32(1e-3))
    sharp_px = focal_px * 1e-3 * diameter_mm / z_m
    blur_px = focal_px * params.aperture_m * np.abs(1.0 / z_m - 1.0 / focus_m)
    width_px = np.hypot(sharp_px, blur_px)
    return Streaks(
        x=(0.5 * (start_x + end_x) + 0.5 * (width - 1)).astype(np.float32),
        y=(0.5 * (start_y + end_y) + 0.5 * (height - 1)).astype(np.float32),
        dir_x=((end_x - start_x) / length).astype(np.float32),
        dir_y=((end_y - start_y) / length).astype(np.float32),
        width_px=width_px.astype(np.float32),
        length_px=length.astype(np.float32),
        z_m=z_m,
        # Defocus spreads the same light over a wider streak: the sum of opacity stays.
        strength=np.square(sharp_px / width_px).astype(np.float32),
    )


def environment_rgb(image_lin: Image, depth: Depth) -> Image:
    """Radiance of drops over the frame, as a small image: 0.94 of a very wide blur, 0.06 of the mean.

    Sky and the upper rows weigh most. Drops see sky above the frame too, which photos are exposed to
    render bright: a mean below 0.7 of the photo's 95th percentile is lifted to it. It rains from grey
    skies: most of the hue is taken out.
    """
    height, width = image_lin.shape[:2]
    scale = min(1.0, 48 / max(height, width))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    small: Image = cv2.resize(image_lin, size, interpolation=cv2.INTER_AREA)
    sky = cv2.resize(depth.sky, size, interpolation=cv2.INTER_AREA)
    upper = 1.0 - (np.arange(size[1], dtype=np.float32) + 0.5) / size[1]
    weight = sky + (0.1 + 0.3 * upper * upper)[:, None]
    sigma = 0.35 * max(size)
    blurred = cv2.GaussianBlur(small * weight[..., None], (0, 0), sigma)
    blurred /= cv2.GaussianBlur(weight, (0, 0), sigma)[..., None]
    ambient = small.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    environment: Image = np.float32(0.94) * blurred + np.float32(0.06) * ambient
    grey = luminance(environment)[..., None]
    environment = grey + np.float32(_OVERCAST_CHROMA) * (environment - grey)
    bright = float(np.quantile(luminance(small), 0.95))
    lift = 0.7 * bright / max(float(luminance(environment).mean()), 1e-4)
    return environment * np.float32(max(1.0, lift))


RAIN = Degradation(
    name="rain",
    version=1,
    params_type=RainParams,
    sample=sample_rain,
    apply=apply_rain,
    space="linear",
    needs=frozenset({"depth"}),
    source="Garg and Nayar, IJCV 2007; Marshall and Palmer 1948; Atlas et al. 1973",
)
