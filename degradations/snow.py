"""Falling snow: flakes near the camera one by one, the rest as a veil. Works in linear light.

Sources. Population N(D) = N0 exp(-Lambda D) over melted diameter D, N0 = 2500 R^-0.94, Lambda = 2.29 R^-0.45
(Sekhon and Srivastava, J. Atmos. Sci. 1970). Size of an aggregate from its mass, 0.069 size^2 in SI. Fall speed
0.8 size^0.16 m/s for size in mm (Locatelli and Hobbs, J. Geophys. Res. 1974). Blur of what is out of focus:
thin lens. Veil: Koschmieder, extinction efficiency 2; at one snow rate real visibility scatters by factors of
3 to 10 (Rasmussen et al., J. Appl. Meteorol. 1999), hence `extinction_factor`.

Deviations. Aggregates end at 15 mm: larger ones break, and the fit was not made there. Flakes narrower than
a thousandth of the frame are not drawn one by one; the veil starts at the distance within which half
of the drawn flakes lie. In dense snow that width is raised until flakes are few enough. Their light comes from
the photo's own sky and whites. Physical snow is sparse in most views: `concentration_gain` raises the number of
flakes, and extinction with it; 1 is physics. Flakes are of one albedo. Depth whose metres are assumed is moved away
to a median of 5 m. No snow lies on the ground: that would be another scene.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Depth, Params, Rendered, Scene
from degradations.snow_flakes import AREA_RATIO, Flakes, Values, rasterise
from degradations.snow_light import light_of, over, veil_transmission
from pairforge.image import Image, Plane
from pairforge.rng import Rng, log_uniform

Curve = NDArray[np.float64]

MELTED_RANGE_MM = (0.1, 3.09)
_NEAR_PLANE_M = 0.3
_MIN_WIDTH_FRAC = 0.001
_MAX_FLAKES = 12_000
_SPEED_SIGMA_M_S = 0.2
_STRIP_ROWS = 32
_LEAST_MEDIAN_M = 5.0
"""In front of nearer things there are but a few flakes, so that a close-up at a guessed distance would see none."""


class SnowParams(Params):
    """`snow_rate_mm_h`: water equivalent. `wind_m_s`: across the view, positive to the right.
    `sway_sigma_m_s`: spread of sideways speed between flakes. `camera_speed_m_s`: forward. `aperture_m`: lens
    opening, which blurs flakes out of focus; the focus is the median distance of the scene. `albedo`: light
    of a flake over that of white paper in its place. `concentration_gain`: number of flakes over that of the
    population; 1 is physical. `extinction_factor` multiplies the extinction of all these flakes.
    """

    snow_rate_mm_h: float = Field(gt=0, le=20)
    concentration_gain: float = Field(gt=0, le=50)
    exposure_s: float = Field(gt=0, le=1)
    wind_m_s: float = Field(ge=-30, le=30)
    sway_sigma_m_s: float = Field(ge=0, le=5)
    camera_speed_m_s: float = Field(ge=0, le=40)
    aperture_m: float = Field(ge=0, le=0.1)
    albedo: float = Field(gt=0, le=1)
    extinction_factor: float = Field(ge=0, le=10)


def sample_snow(severity: float, rng: Rng) -> SnowParams:
    """Severity raises rate (0.05 to 5 mm/h), gain (1 to 8) and, a little, wind; optics and visibility are spread.

    At a width in pixels flakes are as many as the focal length is long: a gain of 3 is also what a lens shows that
    is three times as long.
    """
    return SnowParams(
        snow_rate_mm_h=float(0.05 * 100.0 ** (severity**0.5) * rng.uniform(0.9, 1.1)),
        concentration_gain=float(8.0 ** (severity**0.7) * rng.uniform(0.9, 1.1)),
        exposure_s=log_uniform(rng, 1 / 800, 1 / 100),
        wind_m_s=float(np.clip(rng.normal(0.0, 0.4 + 1.2 * severity), -8, 8)),
        sway_sigma_m_s=float(rng.uniform(0.3, 0.8)),
        camera_speed_m_s=float(min(rng.exponential(0.3), 8.0)),
        aperture_m=log_uniform(rng, 0.0015, 0.009),
        albedo=float(rng.uniform(0.85, 0.95)),
        extinction_factor=log_uniform(rng, 1 / 3, 1.5),
    )


def apply_snow(image_lin: Image, params: SnowParams, scene: Scene, rng: Rng) -> Rendered:
    assert scene.depth is not None
    depth, depth_scale = with_room_for_snow(scene.depth)
    height, width = depth.z_m.shape
    rate, gain = params.snow_rate_mm_h, params.concentration_gain
    min_width_px = min_flake_width_px(rate, width, height, depth.focal_px, gain)
    size_mm, z_m = draw_flakes(rate, min_width_px, width, height, depth.focal_px, rng, gain)
    focus_m = focus_distance_m(depth)
    flakes = project_flakes(size_mm, z_m, params, focus_m, (width, height), depth.focal_px, rng)
    thickness = rasterise(flakes, depth.z_m)

    beta = beta_snow_per_m(rate) * gain * params.extinction_factor
    veil_start_m = float(np.median(z_m)) if len(z_m) else 0.0
    light = light_of(image_lin, depth.sky, params.albedo)
    out = np.empty_like(image_lin)
    alpha, transmission = np.empty((2, height, width), np.uint16)
    for top in range(0, height, _STRIP_ROWS):
        rows = slice(top, min(top + _STRIP_ROWS, height))
        veil = veil_transmission(depth, rows, beta, veil_start_m)
        opacity = over(image_lin[rows], veil, light, thickness[rows], rows, out[rows])
        alpha[rows] = _to_codes(opacity)
        transmission[rows] = _to_codes(veil)
    return Rendered(
        out,
        image_lin,
        layers={"snow_alpha": alpha, "transmission": transmission},
        realised={
            "flake_count": len(z_m),
            "min_width_px": min_width_px,
            "beta_per_m": beta,
            "veil_start_m": veil_start_m,
            "focus_m": focus_m,
            "flake_light_rgb": light.of_flakes.tolist(),
            "airlight_rgb": light.of_veil.tolist(),
            "mean_alpha": float(alpha.mean()) / 65535,
            "depth_is_metric": depth.metric,
            "depth_scale": depth_scale,
        },
    )


def with_room_for_snow(depth: Depth) -> tuple[Depth, float]:
    """A depth whose metres are assumed, moved away until its median is at least `_LEAST_MEDIAN_M`; and the factor."""
    median = focus_distance_m(depth)
    if depth.metric or median >= _LEAST_MEDIAN_M:
        return depth, 1.0
    scale = _LEAST_MEDIAN_M / median
    return replace(depth, z_m=depth.z_m * np.float32(scale)), scale


def _to_codes(share: Plane) -> NDArray[np.uint16]:
    return (share * np.float32(65535) + np.float32(0.5)).astype(np.uint16)


def population(snow_rate_mm_h: float) -> tuple[Curve, Curve]:
    """Melted diameters in mm and flakes per m3 and mm of it."""
    melted = np.linspace(*MELTED_RANGE_MM, 2048, dtype=np.float64)
    return melted, 2500.0 * snow_rate_mm_h**-0.94 * np.exp(-slope_per_mm(snow_rate_mm_h) * melted)


def slope_per_mm(snow_rate_mm_h: float) -> float:
    """Lambda of Sekhon and Srivastava."""
    return float(2.29 * snow_rate_mm_h**-0.45)


def flake_size_mm(melted_mm: Curve) -> Curve:
    """Diameter of the aggregate that melts to a drop: mass of the drop = 0.069 size^2."""
    size: Curve = np.sqrt(523.6 * (melted_mm * 1e-3) ** 3 / 0.069) * 1e3
    return size


def fall_speed_m_s(size_mm: Values) -> Values:
    """Mean terminal speed of aggregates."""
    speed: Values = np.float32(0.8) * size_mm ** np.float32(0.16)
    return speed


def beta_snow_per_m(snow_rate_mm_h: float) -> float:
    """Extinction of the whole population: integral of N(D) * 2 * projected area."""
    melted, density = population(snow_rate_mm_h)
    area_m2 = AREA_RATIO * np.pi / 4 * (flake_size_mm(melted) * 1e-3) ** 2
    return float(np.trapezoid(2.0 * density * area_m2, melted))


def visible_density(
    snow_rate_mm_h: float, min_width_px: float, focal_px: float, gain: float = 1.0
) -> tuple[Curve, Curve]:
    """Melted diameters in mm and, per mm, flakes a unit solid angle holds that are at least so wide in px."""
    melted, density = population(snow_rate_mm_h)
    z_max = focal_px * flake_size_mm(melted) * 1e-3 / min_width_px
    return melted, gain / 3.0 * density * np.maximum(z_max**3 - _NEAR_PLANE_M**3, 0.0)


def expected_flakes(
    snow_rate_mm_h: float, min_width_px: float, width: int, height: int, focal_px: float, gain: float = 1.0
) -> float:
    """Mean number of flakes in view at least `min_width_px` wide."""
    melted, density = visible_density(snow_rate_mm_h, min_width_px, focal_px, gain)
    return float(np.trapezoid(density, melted)) * width * height / focal_px**2


def min_flake_width_px(snow_rate_mm_h: float, width: int, height: int, focal_px: float, gain: float = 1.0) -> float:
    """Width from which flakes are drawn one by one, raised until they are few enough."""
    limit = max(width, height) * _MIN_WIDTH_FRAC
    while expected_flakes(snow_rate_mm_h, limit, width, height, focal_px, gain) > _MAX_FLAKES:
        limit *= 1.05
    return limit


def draw_flakes(
    snow_rate_mm_h: float,
    min_width_px: float,
    width: int,
    height: int,
    focal_px: float,
    rng: Rng,
    gain: float = 1.0,
) -> tuple[Values, Values]:
    """Sizes in mm and distances in m of a Poisson population in the viewing frustum."""
    melted, density = visible_density(snow_rate_mm_h, min_width_px, focal_px, gain)
    count = int(rng.poisson(float(np.trapezoid(density, melted)) * width * height / focal_px**2))
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    size = flake_size_mm(np.interp(rng.random(count) * cumulative[-1], cumulative, melted))
    z_max = np.maximum(focal_px * size * 1e-3 / min_width_px, _NEAR_PLANE_M)
    near = _NEAR_PLANE_M**3
    z_m = np.cbrt(near + rng.random(count) * (z_max**3 - near))
    return size.astype(np.float32), z_m.astype(np.float32)


def focus_distance_m(depth: Depth) -> float:
    """Median distance of what is not sky; of everything in an all-sky frame."""
    stride = max(1, round((depth.z_m.size / 65536) ** 0.5))
    z_m, sky = depth.z_m[::stride, ::stride], depth.sky[::stride, ::stride]
    ground = z_m[sky < 0.5]
    return float(np.median(ground if ground.size else z_m))


def project_flakes(
    size_mm: Values,
    z_m: Values,
    params: SnowParams,
    focus_m: float,
    size: tuple[int, int],
    focal_px: float,
    rng: Rng,
) -> Flakes:
    """What each flake is during the exposure in an image of `size` (W, H)."""
    width, height = size
    count = len(z_m)
    x = (rng.random(count, dtype=np.float32) - np.float32(0.5)) * width
    y = (rng.random(count, dtype=np.float32) - np.float32(0.5)) * height
    spread = rng.standard_normal((2, count), dtype=np.float32)
    speed_x = np.float32(params.wind_m_s) + np.float32(params.sway_sigma_m_s) * spread[0]
    speed_y = np.maximum(fall_speed_m_s(size_mm) + np.float32(_SPEED_SIGMA_M_S) * spread[1], np.float32(0.05))
    half_s = np.float32(0.5 * params.exposure_s)

    def at(time_s: np.float32) -> tuple[Values, Values]:
        z = np.maximum(z_m - np.float32(params.camera_speed_m_s) * time_s, np.float32(0.3) * z_m)
        speed_px = np.float32(focal_px) * time_s
        return (x * z_m + speed_px * speed_x) / z, (y * z_m + speed_px * speed_y) / z

    (start_x, start_y), (end_x, end_y) = at(-half_s), at(half_s)
    length = np.maximum(np.hypot(end_x - start_x, end_y - start_y), np.float32(1e-4))
    return Flakes(
        x=np.float32(0.5) * (start_x + end_x) + np.float32(0.5 * (width - 1)),
        y=np.float32(0.5) * (start_y + end_y) + np.float32(0.5 * (height - 1)),
        dir_x=(end_x - start_x) / length,
        dir_y=(end_y - start_y) / length,
        width_px=np.float32(focal_px * 1e-3) * size_mm / z_m,
        length_px=length,
        blur_px=np.float32(focal_px * params.aperture_m) * np.abs(1 / z_m - np.float32(1 / focus_m)),
        z_m=z_m,
        shape=rng.integers(0, 1 << 20, count),
        exposed=np.ones(count, np.float32),
    )


SNOW = Degradation(
    name="snow",
    version=2,
    params_type=SnowParams,
    sample=sample_snow,
    apply=apply_snow,
    space="linear",
    needs=frozenset({"depth"}),
    source="Sekhon and Srivastava 1970; Locatelli and Hobbs 1974; Rasmussen et al. 1999; Koschmieder 1924",
)
