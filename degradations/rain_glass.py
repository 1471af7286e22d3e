"""Raindrops on a pane or filter in front of the lens: each shows the scene small, upside down and out of focus.

Model: spherical caps of water (rain_glass_optics.py). Both what they cover and what they show is blurred by the disc of
a thin lens, diameter f_px A |1 / z_glass - 1 / z_focus|; I' = (1 - M) I + M * refracted. Sources: as there;
Halimeh and Roser (IV 2009) for the defocus.

Deviations: outlines are deformed circles that sag; drops that would touch a larger one are left out, as it would
have drawn them in; no trails. The pane is parallel to the sensor.
"""

import cv2
import numpy as np
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.rain_glass_optics import Drops, Indices, disc_kernel, look_through, refracted, scene_levels
from pairforge.image import Image, Plane
from pairforge.rng import Rng, log_uniform

_SMALLEST_MM, _LARGEST_MM = 0.15, 5.0
_MAX_DROPS = 2500
_STRIP_ROWS = 64
_WAVE_SHARES = np.array([0.2, 0.2, 1, 1, 0.5, 0.5, 0.2, 0.2])


class RaindropsOnGlassParams(Params):
    """`covered_frac`: expected share of the pane under drops, overlaps counted twice. `radius_mm`: median radius of the
    footprint by area covered; `radius_log_sigma`: spread of its logarithm. `contact_angle_deg`: mean over drops, each
    of which has its own within some degrees. `irregularity`: relative spread of a footprint's radius over its
    outline. `sag`: how much lower parts are wider than upper ones. `glass_m`, `focus_m`: distance of pane and focus.
    `focal_frac`: focal length over the long side.
    """

    covered_frac: float = Field(ge=0, le=1.5)
    radius_mm: float = Field(ge=0.1, le=6)
    radius_log_sigma: float = Field(ge=0, le=1.5)
    contact_angle_deg: float = Field(ge=10, le=89)
    irregularity: float = Field(ge=0, le=0.5)
    sag: float = Field(ge=0, le=0.6)
    glass_m: float = Field(ge=0.02, le=3)
    focus_m: float = Field(ge=0.02, le=1000)
    aperture_m: float = Field(ge=0, le=0.05)
    focal_frac: float = Field(ge=0.3, le=5)


def sample_raindrops_on_glass(severity: float, rng: Rng) -> RaindropsOnGlassParams:
    """Severity raises the covered share (0.2 to 32 %) and, less, the size of drops; optics are spread."""
    glass_m = log_uniform(rng, 0.06, 0.3)
    focal_frac = float(rng.uniform(0.75, 1.2))
    # The blur disc at the pane is 0.55 to 2.5 % of the long side: a phone near the pane, or a small opening.
    blur_frac = log_uniform(rng, 0.0055, 0.025)
    return RaindropsOnGlassParams(
        covered_frac=float((0.002 + 0.32 * severity**1.3) * rng.uniform(0.9, 1.1)),
        radius_mm=float(glass_m / 0.12 * log_uniform(rng, 1.1, 2.4) * (0.8 + 0.4 * severity)),
        radius_log_sigma=float(rng.uniform(0.35, 0.65)),
        contact_angle_deg=float(rng.uniform(25, 62)),
        irregularity=float(rng.uniform(0.03, 0.12)),
        sag=float(rng.uniform(0.0, 0.25)),
        glass_m=glass_m,
        focus_m=log_uniform(rng, 2.0, 30.0),
        aperture_m=blur_frac / focal_frac * glass_m,
        focal_frac=focal_frac,
    )


def draw_drops(params: RaindropsOnGlassParams, height: int, width: int, rng: Rng) -> Drops:
    """A Poisson number of drops whose areas add up to the covered share; the smallest hardly show and are left out."""
    mm_px = params.focal_frac * max(height, width) * 1e-3 / params.glass_m
    sigma = params.radius_log_sigma
    # Numbers are log-normal; sizes weighted by area are then log-normal too, with the median moved up by 2 sigma^2.
    median_px = params.radius_mm * mm_px * float(np.exp(-2 * sigma**2))
    mean_area = np.pi * median_px**2 * float(np.exp(2 * sigma**2))
    expected = min(params.covered_frac * height * width / mean_area, float(_MAX_DROPS))
    count = int(rng.poisson(expected))
    radius = median_px * np.exp(sigma * rng.standard_normal(count))
    radius = -np.sort(-np.clip(radius, _SMALLEST_MM * mm_px, _LARGEST_MM * max(1.0, params.radius_mm / 2) * mm_px))
    contact = params.contact_angle_deg * (1 + 0.12 * np.clip(rng.standard_normal(count), -2, 2))
    # Surface tension rounds small drops; what is larger keeps the shape that its way down gave it.
    size = np.clip(radius / (1.5 * mm_px), 0.35, 1.3)[:, None]
    waves = rng.standard_normal((count, 8)) * params.irregularity * size * _WAVE_SHARES
    waves[:, 1] += params.sag * np.abs(rng.standard_normal(count)) * size[:, 0]
    drops = Drops(
        x=(rng.random(count) * width - 0.5).astype(np.float32),
        y=(rng.random(count) * height - 0.5).astype(np.float32),
        radius_px=radius.astype(np.float32),
        sin_contact=np.sin(np.radians(np.clip(contact, 5, 89.5))).astype(np.float32),
        waves=np.clip(waves, -0.45, 0.45).astype(np.float32),
    )
    return drops.chosen(_apart(drops, height, width))


def _apart(drops: Drops, height: int, width: int) -> Indices:
    """Drops that touch no larger one, which would have drawn them in; the larger ones first."""
    scale = min(1.0, 512 / max(height, width))
    taken = np.zeros((int(height * scale) + 2, int(width * scale) + 2), np.uint8)
    kept = []
    places = zip(
        (drops.x * scale).tolist(), (drops.y * scale).tolist(), (drops.radius_px * scale).tolist(), strict=True
    )
    for each, (x, y, radius) in enumerate(places):
        half = 0.75 * radius
        top, left = max(0, int(y - half)), max(0, int(x - half))
        if taken[top : int(y + half) + 1, left : int(x + half) + 1].any():
            continue
        kept.append(each)
        cv2.circle(taken, (round(x), round(y)), round(1.1 * radius), 1, -1)
    return np.array(kept, np.int64)


def render_drops(image_lin: Image, drops: Drops, focal_px: float, blur_px: float) -> tuple[Image, Plane]:
    """The photo behind drops, and the share of light (H, W) that came through them.

    Strong blur is rendered on a grid of up to an eighth of the size, where the blur disc is 2.5 to 5 cells wide.
    """
    height, width = image_lin.shape[:2]
    step = int(2 ** np.clip(np.floor(np.log2(max(blur_px, 1e-3) / 2.5)), 0, 3))
    rows, columns = -(-height // step), -(-width // step)
    scale = np.float32(columns / width)
    small = Drops(
        (drops.x + np.float32(0.5)) * scale - np.float32(0.5),
        (drops.y + np.float32(0.5)) * np.float32(rows / height) - np.float32(0.5),
        drops.radius_px * scale,
        drops.sin_contact,
        drops.waves,
    )
    seen = look_through(small, rows, columns, focal_px * float(scale))
    light, covered = refracted(scene_levels(image_lin), seen, step, (height, width))
    if blur_px / step > 0.5:
        kernel = disc_kernel(blur_px / step)
        light = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REPLICATE).reshape(light.shape)
        covered = cv2.filter2D(covered, -1, kernel, borderType=cv2.BORDER_REPLICATE).reshape(covered.shape)
    if step > 1:
        light = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR).reshape(image_lin.shape)
        covered = cv2.resize(covered, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width)
    for top in range(0, height, _STRIP_ROWS):
        strip = np.s_[top : top + _STRIP_ROWS]
        clear = np.float32(1) - covered[strip]
        channels = cv2.split(image_lin[strip])
        for channel in channels:
            channel *= clear
        light[strip] += cv2.merge(channels).reshape(light[strip].shape)
    return light, covered


def apply_raindrops_on_glass(image_lin: Image, params: RaindropsOnGlassParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image_lin.shape[:2]
    focal_px = params.focal_frac * max(height, width)
    blur_px = focal_px * params.aperture_m * abs(1 / params.glass_m - 1 / params.focus_m)
    drops = draw_drops(params, height, width, rng)
    out, covered = render_drops(image_lin, drops, focal_px, blur_px)
    return Rendered(
        out,
        image_lin,
        layers={
            "drop_share": (np.minimum(covered, np.float32(1)) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        },
        realised={
            "drop_count": len(drops.x),
            "covered_share": float(covered.mean(dtype=np.float64)),
            "largest_radius_px": float(drops.radius_px.max(initial=0)),
            "blur_px": blur_px,
        },
    )


RAINDROPS_ON_GLASS = Degradation(
    name="raindrops_on_glass",
    version=1,
    params_type=RaindropsOnGlassParams,
    sample=sample_raindrops_on_glass,
    apply=apply_raindrops_on_glass,
    space="linear",
    needs=frozenset(),
    source="Snell and Fresnel at a spherical cap of water; thin-lens defocus; Halimeh and Roser, IV 2009",
)
