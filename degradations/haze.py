"""Haze and fog: light lost on the way to the camera, airlight gained instead. Works in linear light.

Model: Koschmieder, I = J t + A (1 - t) with t = exp(-beta * integral of density along the ray); ray length
and not planar depth (Sakaridis et al., IJCV 2018, Foggy Cityscapes). Spectral extinction: Angstrom 1929,
beta ~ wavelength^-exponent. Visibility: CIE meteorological optical range, 5 % contrast, 2.996 / beta.
Density: log-normal; spectrum of Kolmogorov turbulence integrated along the ray, power ~ f^-11/3 (Tatarski
1961; half a power steeper than a slice, as a camera sees sums along rays); one independent field per
distance slab, so that near and far patches do not move as one sheet.

Deviations, because the depth of most sources is relative: strength is given as the optical depth that the
mean transmission of the scene stands for, and beta follows from the scene; metres in `realised` are as
good as the depth's. Airlight luminance is relative to the brightest large area of the photo, so dusk gets
dim fog. Sky is thinner than its far limit towards the zenith. No forward-scatter blur, no added noise.
"""

from itertools import pairwise

import cv2
import numpy as np

from degradations.base import Degradation, Depth, Params, Rendered, Scene
from pairforge.image import Image, Plane, luminance
from pairforge.rng import Rng

WAVELENGTHS_NM = (610.0, 550.0, 465.0)
VISIBILITY_CONTRAST = 0.05
_FIELD_SIDE_PX = 384
_AMPLITUDE_EXPONENT = -11 / 6
_STRETCH = 2.0
"""Patches of fog are wider than high."""


class HazeParams(Params):
    """`effective_optical_depth`: -ln of the mean transmission over what is not sky, at 550 nm, before
    `density_cv`. `angstrom_exponent`: extinction goes with wavelength to minus this. `airlight_luminance`:
    airlight over the scene's bright reference. `airlight_warmth`: red up and blue down by this share.
    `airlight_scene_tint`: share of the sky's hue in the airlight (a third of it where no sky is seen, as
    the brightest thing may then be of any colour). `density_scale_frac`: patch size at the median distance,
    of the image width. `sky_floor`: least transmission of sky at the top of the frame.
    """

    effective_optical_depth: float
    angstrom_exponent: float
    airlight_luminance: float
    airlight_warmth: float
    airlight_scene_tint: float
    density_cv: float
    density_scale_frac: float
    sky_floor: float


def sample_haze(severity: float, rng: Rng) -> HazeParams:
    """Strength follows severity up to 10 % of spread; thin haze is bluish, dense fog is grey."""
    return HazeParams(
        effective_optical_depth=float((0.02 + 1.15 * severity**1.2) * rng.uniform(0.9, 1.1)),
        angstrom_exponent=float((1.0 - severity) * rng.uniform(0.3, 1.3)),
        airlight_luminance=float(rng.uniform(0.55, 0.95)),
        airlight_warmth=float(rng.normal(0.0, 0.02)),
        airlight_scene_tint=float(rng.uniform(0.2, 0.7)),
        density_cv=float(rng.uniform(0.1, 0.45)),
        density_scale_frac=float(rng.uniform(0.15, 0.8)),
        sky_floor=float(0.5 * (1.0 - severity) ** 2 + rng.uniform(0.05, 0.3)),
    )


def apply_haze(image_lin: Image, params: HazeParams, scene: Scene, rng: Rng) -> Rendered:
    assert scene.depth is not None
    depth = scene.depth
    ray_m = ray_length_m(depth)
    beta = beta_for(ray_m, depth.sky, params.effective_optical_depth)
    path_m = dense_path_m(ray_m, params.density_cv, params.density_scale_frac, rng)
    floor = sky_floor(depth.sky, params.sky_floor)
    airlight, reference = airlight_rgb(image_lin, depth.sky, params)

    optical_depth = path_m * np.float32(-beta)
    out = np.empty_like(image_lin)
    transmission = floor
    for channel, gain in enumerate(spectral_gain(params.angstrom_exponent)):
        t = cv2.exp(optical_depth * np.float32(gain))
        t += floor * (1.0 - t)
        out[..., channel] = (image_lin[..., channel] - airlight[channel]) * t + airlight[channel]
        transmission = t if channel == 1 else transmission
    return Rendered(
        out,
        image_lin,
        layers={"transmission": (transmission * 65535 + 0.5).astype(np.uint16)},
        realised={
            "beta_per_m": beta,
            "visibility_m": visibility_m(beta),
            "airlight_rgb": [float(value) for value in airlight],
            "reference_luminance": reference,
            "mean_transmission": float(transmission.mean()),
            "depth_is_metric": depth.metric,
        },
    )


def visibility_m(beta_per_m: float) -> float | None:
    """Distance at which a black object keeps 5 % contrast; None without extinction."""
    return float(-np.log(VISIBILITY_CONTRAST) / beta_per_m) if beta_per_m > 0 else None


def ray_length_m(depth: Depth) -> Plane:
    """Distance along the viewing ray, which off-axis is longer than planar depth."""
    height, width = depth.z_m.shape
    x = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)) / np.float32(depth.focal_px)
    y = (np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)) / np.float32(depth.focal_px)
    slope: Plane = np.sqrt((1.0 + x * x)[None, :] + (y * y)[:, None])
    slope *= depth.z_m
    return slope


def beta_for(ray_m: Plane, sky: Plane, effective_optical_depth: float) -> float:
    """Extinction per metre at which mean transmission outside the sky is exp(-effective_optical_depth).

    Found on 256 quantiles of the ray length by bisection; an all-sky frame uses all its pixels.
    """
    stride = max(1, round((ray_m.size / 65536) ** 0.5))
    rays = ray_m[::stride, ::stride]
    ground = rays[sky[::stride, ::stride] < 0.5]
    lengths = np.quantile(ground if ground.size else rays, (np.arange(256) + 0.5) / 256)
    goal = np.exp(-effective_optical_depth)
    # No ray is shorter than the shortest, so at `high` the mean is below the goal.
    low, high = 0.0, effective_optical_depth / float(lengths[0])
    for _ in range(60):
        middle = 0.5 * (low + high)
        if float(np.exp(-middle * lengths).mean()) > goal:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def spectral_gain(angstrom_exponent: float) -> tuple[float, float, float]:
    """Extinction of R, G, B over that of 550 nm."""
    red, green, blue = ((nm / 550.0) ** -angstrom_exponent for nm in WAVELENGTHS_NM)
    return red, green, blue


def sky_floor(sky: Plane, floor: float) -> Plane:
    """Least transmission of every pixel: none outside the sky, `floor` at the top of the frame.

    Haze lies near the ground: a ray to the zenith leaves it soon, a ray to the horizon never does.
    """
    height = sky.shape[0]
    elevation = (1.0 - (np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    least: Plane = sky * (elevation * np.float32(floor))
    return least


def airlight_rgb(image_lin: Image, sky: Plane, params: HazeParams) -> tuple[tuple[float, ...], float]:
    """Airlight colour in linear light, and the scene's bright reference luminance.

    The reference is the 95th percentile of an area-averaged copy (of the sky where there is enough
    sky), held within 0.12..1.
    """
    height, width = image_lin.shape[:2]
    scale = min(1.0, 64 / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image_lin, size, interpolation=cv2.INTER_AREA).reshape(-1, 3)
    in_sky = cv2.resize(sky, size, interpolation=cv2.INTER_AREA).reshape(-1) > 0.9
    pool = small[in_sky] if in_sky.mean() > 0.05 else small
    light = luminance(pool[None])[0]
    brightest = pool[light >= np.quantile(light, 0.9)].mean(axis=0)
    reference = float(np.clip(np.quantile(light, 0.95), 0.12, 1.0))
    hue = brightest / max(float(luminance(brightest[None, None])[0, 0]), 1e-3)
    tint = params.airlight_scene_tint * (1.0 if pool is not small else 1 / 3)
    hue = 1.0 + tint * (np.clip(hue, 0.3, 2.0) - 1.0)
    warm = hue * (1.0 + params.airlight_warmth * np.array([1.0, 0.0, -1.0]))
    level = params.airlight_luminance * reference
    return tuple(float(level * value) for value in warm), reference


def dense_path_m(ray_m: Plane, cv: float, scale_frac: float, rng: Rng) -> Plane:
    """Ray length weighted by relative density, slab by slab; every slab's density has mean 1."""
    height, width = ray_m.shape
    middle = float(np.median(ray_m))
    edges = [0.0, 0.6 * middle, 1.8 * middle, np.inf]
    path = np.zeros_like(ray_m)
    for near, far in pairwise(edges):
        centre = near + 0.5 * middle if far == np.inf else 0.5 * (near + far)
        patch_px = scale_frac * width * min(4.0, middle / max(centre, 1e-3))
        density = density_field(height, width, patch_px, cv, rng)
        length = np.minimum(ray_m, np.float32(far)) - np.float32(near)
        path += np.maximum(length, 0.0) * density
    return path


def density_field(height: int, width: int, patch_px: float, cv: float, rng: Rng) -> Plane:
    """Relative density (H, W): mean 1, coefficient of variation `cv`, largest patches of `patch_px`.

    Log-normal, renormalised; its Gaussian field is made by one inverse FFT at up to 384 px and enlarged,
    with amplitude (f0^2 + f^2)^(-11/12), which is flat above the patch size.
    """
    scale = min(1.0, _FIELD_SIDE_PX / max(height, width))
    rows, columns = max(2, round(height * scale)), max(2, round(width * scale))
    fy = np.fft.fftfreq(rows).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(columns).astype(np.float32)[None, :] * np.float32(_STRETCH)
    outer = np.float32(1.0 / max(patch_px * scale, 2.0))
    amplitude = (outer * outer + fx * fx + fy * fy) ** np.float32(_AMPLITUDE_EXPONENT / 2)
    amplitude[0, 0] = 0.0
    noise = rng.standard_normal((2, *amplitude.shape), dtype=np.float32)
    field = np.fft.irfft2((noise[0] + 1j * noise[1]) * amplitude, s=(rows, columns)).astype(np.float32)
    field /= np.float32(max(float(field.std()), 1e-12))
    sigma = float(np.sqrt(np.log1p(cv * cv)))
    density: Plane = np.exp(np.float32(sigma) * field)
    for _ in range(4):
        # One realisation is not exactly normal: correct sigma until the spread is the one asked for.
        sigma *= cv / max(float(density.std() / density.mean()), 1e-12)
        density = np.exp(np.float32(sigma) * field)
    density = cv2.resize(density, (width, height), interpolation=cv2.INTER_CUBIC)
    return density / np.float32(density.mean(dtype=np.float64))


HAZE = Degradation(
    name="haze",
    version=1,
    params_type=HazeParams,
    sample=sample_haze,
    apply=apply_haze,
    space="linear",
    needs=frozenset({"depth"}),
    source="Koschmieder 1924; Foggy Cityscapes (Sakaridis et al., IJCV 2018); Angstrom 1929",
)
