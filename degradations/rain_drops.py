"""Drops in the air: how many, how large, how far away, and the streak each leaves in a photo.

Sources: drop sizes N(D) = 8000 exp(-4.1 R^-0.21 D) per m^3 and mm (Marshall and Palmer 1948); fall speed
9.65 - 10.3 exp(-0.6 D) m/s (Atlas et al. 1973, Eq. 24). Deviation: the two laws do not close (they carry up to
1.18 R at low rates); neither is rescaled. Drops are spheres: no oscillation glints.
"""

import numpy as np
from numpy.typing import NDArray

from degradations.rain_streaks import Streaks, Values
from pairforge.rng import Rng

Curve = NDArray[np.float64]

DIAMETER_RANGE_MM = (0.3, 6.0)
_NEAR_PLANE_M = 0.5
_MIN_WIDTH_FRAC = 1 / 2048
"""Thinner streaks, as a share of the image width, belong to the veil."""
_MAX_DROPS = 24_000


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
    diameter = np.linspace(*DIAMETER_RANGE_MM, 2048, dtype=np.float64)
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


def project_drops(
    diameter_mm: Values,
    z_m: Values,
    *,
    exposure_s: float,
    wind_m_s: float,
    camera_speed_m_s: float,
    tilt_sigma_deg: float,
    aperture_m: float,
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
    tilt = rng.standard_normal(count, dtype=np.float32) * np.float32(np.deg2rad(tilt_sigma_deg))
    fall = fall_speed_m_s(diameter_mm)
    speed_x = wind_m_s * np.cos(tilt) - fall * np.sin(tilt)
    speed_y = wind_m_s * np.sin(tilt) + fall * np.cos(tilt)
    half_s = np.float32(0.5 * exposure_s)

    def at(time_s: np.float32) -> tuple[Values, Values]:
        z = np.maximum(z_m - camera_speed_m_s * time_s, 0.3 * z_m)
        return (x * z_m + focal_px * speed_x * time_s) / z, (y * z_m + focal_px * speed_y * time_s) / z

    (start_x, start_y), (end_x, end_y) = at(-half_s), at(half_s)
    length = np.maximum(np.hypot(end_x - start_x, end_y - start_y), np.float32(1e-3))
    sharp_px = focal_px * 1e-3 * diameter_mm / z_m
    width_px = np.hypot(sharp_px, blur_px(z_m, aperture_m, focus_m, focal_px))
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


def blur_px(z_m: Values, aperture_m: float, focus_m: float, focal_px: float) -> Values:
    """Diameter of the blur disc of a thin lens."""
    blur: Values = np.float32(focal_px * aperture_m) * np.abs(np.float32(1) / z_m - np.float32(1 / focus_m))
    return blur
