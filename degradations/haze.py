"""Haze and fog, up to the sky and lying on the ground. Works in linear light; the model: haze_medium.py.

Deviations, because the depth of most sources is relative: strength is given as the optical depth that the
mean transmission of the scene stands for, and beta follows from the scene; metres in `realised` are as
good as the depth's. Airlight luminance is relative to the brightest large area of the photo, so dusk gets
dim fog. In haze the sky is thinner than its far limit towards the zenith. No forward-scatter blur, shadows of
the sun stay, no added noise. Edges of the haze are those of the depth; nothing refines them.
"""

import cv2
import numpy as np
from pydantic import Field

from degradations.base import Degradation, Depth, Params, Rendered, Scene
from degradations.haze_medium import (
    FogLayer,
    Rows,
    airlight_rgb,
    beta_for,
    fill_with_air,
    ray_length_m,
    sampled_rays_m,
    see_through,
    sky_floor,
    spectral_gain,
    visibility_m,
)
from pairforge.image import Image
from pairforge.rng import Rng, log_uniform

__all__ = ["GROUND_FOG", "HAZE", "GroundFogParams", "HazeParams", "ray_length_m", "sky_floor"]


class AirParams(Params):
    """`effective_optical_depth`: -ln of the mean transmission over what is not sky, at 550 nm, before
    `density_cv`. `airlight_luminance`: airlight over the scene's bright reference. `airlight_warmth`: red up and
    blue down by this share. `airlight_scene_tint`: share of the sky's hue in the airlight by day (more in twilight,
    a third of it where no sky is seen, as the brightest thing may then be of any colour). `density_cv`: spread of
    density over its mean. `density_scale_frac`: patch size at the median distance, of the image width.
    """

    effective_optical_depth: float = Field(ge=0, le=20)
    airlight_luminance: float = Field(ge=0, le=4)
    airlight_warmth: float = Field(ge=-0.5, le=0.5)
    airlight_scene_tint: float = Field(ge=0, le=1)
    density_cv: float = Field(ge=0, le=1)
    density_scale_frac: float = Field(gt=0, le=4)


class HazeParams(AirParams):
    """`angstrom_exponent`: extinction goes with wavelength to minus this. `sky_floor`: least transmission of sky
    at the top of the frame.
    """

    angstrom_exponent: float = Field(ge=0, le=4)
    sky_floor: float = Field(ge=0, le=1)


def sample_haze(severity: float, rng: Rng) -> HazeParams:
    """Strength follows severity up to 10 % of spread; thin haze is bluish, dense fog is grey and hides the sky."""
    return HazeParams(
        effective_optical_depth=float((0.02 + 1.1 * severity**1.2) * rng.uniform(0.9, 1.1)),
        angstrom_exponent=float((1.0 - severity) * rng.uniform(0.3, 1.3)),
        airlight_luminance=float(rng.uniform(0.55, 0.95)),
        airlight_warmth=float(rng.normal(0.0, 0.02)),
        airlight_scene_tint=float(rng.uniform(0.1, 0.5) * (1.0 - 0.7 * severity)),
        density_cv=float(rng.uniform(0.1, 0.35)),
        density_scale_frac=float(rng.uniform(0.2, 1.0)),
        sky_floor=float(0.6 * (1.0 - severity) ** 2 + rng.uniform(0.03, 0.15)),
    )


def apply_haze(image_lin: Image, params: HazeParams, scene: Scene, rng: Rng) -> Rendered:
    assert scene.depth is not None
    depth = scene.depth
    beta = beta_for(*sampled_rays_m(depth), params.effective_optical_depth)
    air = fill_with_air(depth, params.density_cv, params.density_scale_frac, rng)
    airlight, reference = _airlight(image_lin, depth, params)
    red, green, blue = (beta * gain for gain in spectral_gain(params.angstrom_exponent))
    out, transmission = see_through(image_lin, air, (red, green, blue), airlight, params.sky_floor)
    return Rendered(
        out,
        image_lin,
        layers={"transmission": transmission},
        realised={
            "beta_per_m": beta,
            "visibility_m": visibility_m(beta),
            "airlight_rgb": list(airlight),
            "reference_luminance": reference,
            "density_patch_m": air.patch_m,
            "mean_transmission": float(transmission.mean()) / 65535,
            "depth_is_metric": depth.metric,
        },
    )


def _airlight(image_lin: Image, depth: Depth, params: AirParams) -> tuple[tuple[float, float, float], float]:
    return airlight_rgb(
        image_lin, depth.sky, params.airlight_luminance, params.airlight_warmth, params.airlight_scene_tint
    )


HAZE = Degradation(
    name="haze",
    version=3,
    params_type=HazeParams,
    sample=sample_haze,
    apply=apply_haze,
    space="linear",
    needs=frozenset({"depth"}),
    source="Koschmieder 1924; Foggy Cityscapes (Sakaridis et al., IJCV 2018); Angstrom 1929",
)


class GroundFogParams(AirParams):
    """Here `effective_optical_depth` is that of the scene if all its air were as dense as the fog at the ground.
    `scale_height_m`: density falls to 1 / e over this height. `camera_height_m`: above the ground.
    """

    scale_height_m: float = Field(ge=0.2, le=1000)
    camera_height_m: float = Field(ge=0, le=500)


def sample_ground_fog(severity: float, rng: Rng) -> GroundFogParams:
    """Density at the ground follows severity; fog droplets scatter all wavelengths alike, so fog is grey."""
    return GroundFogParams(
        effective_optical_depth=float((0.04 + 1.5 * severity**1.2) * rng.uniform(0.9, 1.1)),
        airlight_luminance=float(rng.uniform(0.55, 0.95)),
        airlight_warmth=float(rng.normal(0.0, 0.02)),
        airlight_scene_tint=float(rng.uniform(0.1, 0.4)),
        density_cv=float(rng.uniform(0.15, 0.45)),
        density_scale_frac=float(rng.uniform(0.2, 0.8)),
        scale_height_m=log_uniform(rng, 2.0, 20.0),
        camera_height_m=float(rng.uniform(1.0, 2.0)),
    )


def apply_ground_fog(image_lin: Image, params: GroundFogParams, scene: Scene, rng: Rng) -> Rendered:
    assert scene.depth is not None
    depth = scene.depth
    beta = beta_for(*sampled_rays_m(depth), params.effective_optical_depth)
    horizon_frac = horizon_row_frac(depth)
    layer = FogLayer(ray_rise(depth, horizon_frac), params.camera_height_m, params.scale_height_m)
    air = fill_with_air(depth, params.density_cv, params.density_scale_frac, rng, layer)
    airlight, reference = _airlight(image_lin, depth, params)
    out, transmission = see_through(image_lin, air, (beta, beta, beta), airlight, 0.0)
    return Rendered(
        out,
        image_lin,
        layers={"transmission": transmission},
        realised={
            "beta_per_m": beta,
            "visibility_m": visibility_m(beta),
            "airlight_rgb": list(airlight),
            "reference_luminance": reference,
            "density_patch_m": air.patch_m,
            "horizon_frac": horizon_frac,
            "mean_transmission": float(transmission.mean()) / 65535,
            "depth_is_metric": depth.metric,
        },
    )


def horizon_row_frac(depth: Depth) -> float:
    """Row of the horizon, of the image height: a level camera's, or lower where sky is seen below that.

    What stands on the ground hides the horizon, so where all sky ends above the middle, it is taken to lie
    half-way between there and the middle.
    """
    height, width = depth.sky.shape
    size = (min(width, 64), min(height, 64))
    in_sky = cv2.resize(depth.sky, size, interpolation=cv2.INTER_AREA) > 0.5
    if in_sky.mean() < 0.02:
        return 0.5
    ends = (size[1] - np.argmax(in_sky[::-1], axis=0))[in_sky.any(axis=0)] / size[1]
    lowest = float(np.quantile(ends, 0.9))
    return min(max(lowest, 0.5 * (lowest + 0.5)), 1.0)


def ray_rise(depth: Depth, horizon_frac: float) -> Rows:
    """Metres that the ray of each row (H, 1) gains in height per metre of planar depth; 0 at the horizon."""
    height = depth.z_m.shape[0]
    below = (np.arange(height, dtype=np.float32) + np.float32(0.5) - np.float32(horizon_frac * height))[:, None]
    rise: Rows = -below / np.float32(depth.focal_px)
    return rise


GROUND_FOG = Degradation(
    name="ground_fog",
    version=2,
    params_type=GroundFogParams,
    sample=sample_ground_fog,
    apply=apply_ground_fog,
    space="linear",
    needs=frozenset({"depth"}),
    source="Koschmieder 1924; exponential atmosphere, integral in closed form",
)
