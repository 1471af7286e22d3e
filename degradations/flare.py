"""Lens flare of bright sources: scatter and diffraction, ghosts, veil. Additive in linear light.

Image formation: Wu et al., "How to Train Neural Networks for Flare Removal" (ICCV 2021): the point spread function
(PSF) of a pupil with dust and scratches, |FFT(pupil)|^2, summed over wavelengths. Ghosts: Hullin et al.,
"Physically-Based Real-Time Lens Flare Rendering" (SIGGRAPH 2011), in the paraxial form of Lee and Eisemann (2013).

    I = J + sum_s E_s (scatter_frac T(x - x_s) + ghosts_s + veil_frac / area),   sum T = 1 per channel

E is the energy of a source (radiance times area). T is the PSF without its core, which stays in the target, as
does the source itself. All of the flare is proportional to E and independent of the image J.

Deviations, beside those of T (flare_pattern.py): T is the same over the field; its energy is set, not derived; the
veil comes from the sources alone and not from the mean of J; sources outside the frame also scatter.
"""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from degradations.base import Degradation, Rendered, Scene
from degradations.flare_pattern import PATTERN_PX, PEAKS_NM, LensParams, aperture_distance, sample_lens, scatter_pattern
from pairforge.image import Image, Plane, luminance
from pairforge.rng import Rng, log_uniform

_SATURATED_LIN = 0.955
"""Linear light of code 0.98, from where an 8-bit photo no longer tells how bright a lamp is."""
_MOST_LIGHTS = 6
_GHOSTING_LIGHTS = 2
FLARE_LAYER_SCALE = 8192
"""Codes of the `flare` layer per unit of linear light; the layer ends at 8 times white."""


class FlareParams(LensParams):
    """A lamp or sun put into the frame (`source_x_frac` and `source_y_frac` in 0..1) or beside it.
    `source_radius_frac` is of the short side."""

    source_x_frac: float
    source_y_frac: float
    source_radius_frac: float
    source_temperature_k: float


class FlareLightsParams(LensParams):
    """The lights that the image has."""


@dataclass(frozen=True)
class Source:
    x_px: float
    y_px: float
    radiance: float
    radius_px: float
    colour: tuple[float, float, float]
    origin: Literal["detected", "brightest", "placed"]

    @property
    def energy(self) -> float:
        """Integral of `core_light`, in white px."""
        return self.radiance * np.pi * self.radius_px**2 / 1.5


@dataclass(frozen=True)
class Ghost:
    """`position` on the line from the frame centre (0) to the source (1); `radius_frac` of the long side;
    `scales` and `tint` per channel."""

    position: float
    radius_frac: float
    reflectance: float
    rim: float
    softness: float
    scales: tuple[float, float, float]
    tint: tuple[float, float, float]


def sample_flare(severity: float, rng: Rng) -> FlareParams:
    """Half of the sources lie outside the frame, beyond its left, right or upper side."""
    inside = rng.random() < 0.5
    along, beyond = float(rng.uniform(0.05, 0.95)), float(rng.uniform(0.03, 0.2))
    outside = [(-beyond, 0.7 * along), (1 + beyond, 0.7 * along), (along, -beyond)][int(rng.integers(3))]
    x_frac, y_frac = (along, float(rng.uniform(0.02, 0.3))) if inside else outside
    return FlareParams.model_validate(
        {
            **sample_lens(severity, rng),
            "source_x_frac": x_frac,
            "source_y_frac": y_frac,
            "source_radius_frac": log_uniform(rng, 0.0022, 0.0045) * (1 if inside else 3),
            "source_temperature_k": log_uniform(rng, 2400, 7500),
        }
    )


def sample_flare_lights(severity: float, rng: Rng) -> FlareLightsParams:
    return FlareLightsParams.model_validate(sample_lens(severity, rng))


# --- sources


def find_lights(image_lin: Image, radiance: float) -> list[Source]:
    """The largest saturated blobs of at least 9 px and at most 1 % of the frame (more is sky or wall).

    A blob is read as a lamp whose saturated disc has the blob's area; its colour is that of its rim.
    """
    saturated = (luminance(image_lin) > _SATURATED_LIN).astype(np.uint8)
    count, labels, stats, centres = cv2.connectedComponentsWithStats(saturated, connectivity=8)
    areas_px = stats[1:count, cv2.CC_STAT_AREA]
    order = 1 + np.argsort(-areas_px, kind="stable")
    wanted = [label for label in order.tolist() if 9 <= stats[label, cv2.CC_STAT_AREA] <= 0.01 * saturated.size]
    found = []
    for label in wanted[:_MOST_LIGHTS]:
        x, y, width, height, area_px = stats[label].tolist()
        box = np.s_[max(y - 3, 0) : y + height + 3, max(x - 3, 0) : x + width + 3]
        blob = (labels[box] == label).astype(np.uint8)
        rim = cv2.dilate(blob, np.ones((5, 5), np.uint8)) - blob
        mean = np.array(cv2.mean(image_lin[box], rim)[:3])
        red, green, blue = (mean / mean.max()).tolist() if mean.max() > 0 else (1.0, 1.0, 1.0)
        radius_px = float(np.sqrt(area_px / np.pi / (radiance**0.4 - 1)))
        centre_x, centre_y = centres[label].tolist()
        found.append(Source(centre_x, centre_y, radiance, radius_px, (red, green, blue), "detected"))
    return found


def brightest_glint(image_lin: Image, radiance: float) -> Source:
    """The brightest place of an image without lights, as a small white source dimmed by its luminance."""
    height, width = image_lin.shape[:2]
    small = cv2.resize(luminance(image_lin), (64, 64), interpolation=cv2.INTER_AREA)
    row, column = np.unravel_index(int(small.argmax()), small.shape)
    x_px, y_px = (float(column) + 0.5) * width / 64 - 0.5, (float(row) + 0.5) * height / 64 - 0.5
    dimmed = radiance * max(float(small.max()), 0.05)
    return Source(x_px, y_px, dimmed, 0.002 * min(width, height), (1.0, 1.0, 1.0), "brightest")


def blackbody_colour(temperature_k: float) -> tuple[float, float, float]:
    """Planck radiance at the channel wavelengths, relative to 6500 K, largest 1."""
    wavelength_m = np.array(PEAKS_NM) * 1e-9
    radiance = np.expm1(0.014388 / (wavelength_m * 6500)) / np.expm1(0.014388 / (wavelength_m * temperature_k))
    red, green, blue = (radiance / radiance.max()).tolist()
    return red, green, blue


def core_light(width: int, height: int, source: Source) -> Image:
    """The image of the source itself: radiance / (1 + (r / radius)^2)^2.5."""
    x = (np.arange(width, dtype=np.float32) - np.float32(source.x_px)) / np.float32(source.radius_px)
    y = (np.arange(height, dtype=np.float32) - np.float32(source.y_px)) / np.float32(source.radius_px)
    fall: Plane = 1 + x[None, :] * x[None, :] + y[:, None] * y[:, None]
    profile = np.float32(source.radiance) / (fall * fall * np.sqrt(fall))
    core: Image = profile[..., None] * np.array(source.colour, np.float32)
    return core


# --- light that goes astray


def draw_ghosts(lens: LensParams, rng: Rng) -> list[Ghost]:
    """Reflections between pairs of surfaces; their tints are those of anti-reflection coatings."""
    ghosts = []
    tints = ((0.4, 1.0, 0.6), (1.0, 0.45, 0.9), (1.0, 0.75, 0.35), (0.45, 0.65, 1.0))
    for _ in range(lens.ghost_count):
        tint = 1 - rng.uniform(0.3, 1.0) * (1 - np.array(tints[int(rng.integers(len(tints)))]))
        spread = rng.uniform(0.01, 0.03) * rng.choice((-1, 1))
        ghosts.append(
            Ghost(
                position=float(rng.uniform(-1.5, 0.85)),
                radius_frac=log_uniform(rng, 0.018, 0.13),
                reflectance=lens.coating_reflectance**2 * log_uniform(rng, 0.2, 1.5),
                rim=float(rng.uniform(-0.3, 0.7)),
                softness=float(rng.uniform(0.04, 0.25)),
                scales=(1 + spread, 1.0, 1 - spread),
                tint=(float(tint[0]), float(tint[1]), float(tint[2])),
            )
        )
    return ghosts


def add_ghost(light: Image, ghost: Ghost, source: Source, lens: LensParams) -> dict[str, Any]:
    """Add one ghost to `light` in place; returns its row of the ghost table."""
    height, width = light.shape[:2]
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    x_px = centre_x + ghost.position * (source.x_px - centre_x)
    y_px = centre_y + ghost.position * (source.y_px - centre_y)
    radius_px = ghost.radius_frac * max(width, height)
    reach_px = radius_px * 1.35 * max(ghost.scales)
    left, right = max(int(x_px - reach_px), 0), min(int(x_px + reach_px) + 2, width)
    top, bottom = max(int(y_px - reach_px), 0), min(int(y_px + reach_px) + 2, height)
    if left < right and top < bottom:
        x = (np.arange(left, right, dtype=np.float32) - np.float32(x_px)) / np.float32(radius_px)
        y = (np.arange(top, bottom, dtype=np.float32) - np.float32(y_px)) / np.float32(radius_px)
        distance = aperture_distance(x[None, :], y[:, None], lens)
        softness = max(ghost.softness, 1 / radius_px)
        irradiance = source.energy * ghost.reflectance / (np.pi * radius_px**2)
        for channel in range(3):
            scale = ghost.scales[channel]
            disc = np.clip((scale - distance) / np.float32(softness), 0, 1)
            disc *= disc * (3 - 2 * disc)
            disc *= 1 + np.float32(ghost.rim) * (distance * distance - np.float32(0.5))
            disc *= np.float32(irradiance * ghost.tint[channel] * source.colour[channel] / scale**2)
            light[top:bottom, left:right, channel] += disc
    return {
        "position": ghost.position,
        "x_px": x_px,
        "y_px": y_px,
        "radius_px": radius_px,
        "reflectance": ghost.reflectance,
        "tint": list(ghost.tint),
    }


def add_scatter(light: Image, pattern: Image, source: Source, lens: LensParams) -> None:
    """Add the scatter of one source to `light` in place."""
    height, width = light.shape[:2]
    scale = lens.scatter_radius_frac * max(width, height) * 2 / PATTERN_PX
    smear_px = max(0.7 * source.radius_px / scale, 0.6)
    gain = np.array(source.colour, np.float32) * np.float32(source.energy * lens.scatter_frac / scale**2)
    lit = cv2.GaussianBlur(pattern, (0, 0), smear_px) * gain
    offset_x, offset_y = ((PATTERN_PX - 1) / 2 - at / scale for at in (source.x_px, source.y_px))
    matrix = np.array([[1 / scale, 0, offset_x], [0, 1 / scale, offset_y]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    pasted = cv2.warpAffine(lit, matrix, (width, height), flags=flags)
    # Cubic interpolation undershoots beside the brightest speckles; light does not.
    light += np.maximum(pasted, 0, out=pasted)


def stray_light(
    width: int, height: int, sources: list[Source], lens: LensParams, rng: Rng
) -> tuple[Image, list[dict[str, Any]]]:
    """All flare of a frame (H, W, 3), linear in the radiance of the sources, and the ghost table."""
    pattern = scatter_pattern(lens, rng)
    ghosts = draw_ghosts(lens, rng)
    light = np.empty((height, width, 3), np.float32)
    light[:] = sum(np.array(source.colour) * (source.energy * lens.veil_frac / (width * height)) for source in sources)
    for source in sources:
        add_scatter(light, pattern, source, lens)
    brightest = sorted(sources, key=lambda source: -source.energy)[:_GHOSTING_LIGHTS]
    table = [add_ghost(light, ghost, source, lens) for source in brightest for ghost in ghosts]
    return light, table


def _render(image: Image, sources: list[Source], lens: LensParams, rng: Rng) -> Rendered:
    height, width = image.shape[:2]
    light, ghosts = stray_light(width, height, sources, lens, rng)
    target = image
    for source in sources:
        in_frame = -0.5 <= source.x_px < width - 0.5 and -0.5 <= source.y_px < height - 0.5
        if source.origin == "placed" and in_frame:
            target = target + core_light(width, height, source)
    layer = np.minimum(luminance(light) * np.float32(FLARE_LAYER_SCALE) + np.float32(0.5), 65535)
    realised = {
        "sources": [
            {
                "x_px": source.x_px,
                "y_px": source.y_px,
                "radiance": source.radiance,
                "radius_px": source.radius_px,
                "colour": list(source.colour),
                "origin": source.origin,
            }
            for source in sources
        ],
        "ghosts": ghosts,
    }
    light += target
    return Rendered(light, target, {"flare": layer.astype(np.uint16)}, realised)


def apply_flare(image: Image, params: FlareParams, scene: Scene, rng: Rng) -> Rendered:
    """The source does not depend on the image, so that image and target of a chain get it at the same place. The
    target shows the source without its flare. Layer `flare`: luminance before clipping, in steps of
    1 / FLARE_LAYER_SCALE of white."""
    height, width = image.shape[:2]
    source = Source(
        x_px=params.source_x_frac * width - 0.5,
        y_px=params.source_y_frac * height - 0.5,
        radiance=params.source_radiance,
        radius_px=params.source_radius_frac * min(width, height),
        colour=blackbody_colour(params.source_temperature_k),
        origin="placed",
    )
    return _render(image, [source], params, rng)


def apply_flare_lights(image: Image, params: FlareLightsParams, scene: Scene, rng: Rng) -> Rendered:
    """As `apply_flare`, for the lights of the image, which the target has already. In an image without any the
    brightest glint flares; its `origin` is "brightest"."""
    sources = find_lights(image, params.source_radiance) or [brightest_glint(image, params.source_radiance)]
    return _render(image, sources, params, rng)


FLARE = Degradation(
    name="flare",
    version=1,
    params_type=FlareParams,
    sample=sample_flare,
    apply=apply_flare,
    space="linear",
    needs=frozenset(),
    source="Wu et al., ICCV 2021 (scatter PSF); Hullin et al. 2011, Lee and Eisemann 2013 (ghosts)",
)

FLARE_LIGHTS = Degradation(
    name="flare_lights",
    version=1,
    params_type=FlareLightsParams,
    sample=sample_flare_lights,
    apply=apply_flare_lights,
    space="linear",
    needs=frozenset(),
    source="Wu et al., ICCV 2021 (scatter PSF); Hullin et al. 2011, Lee and Eisemann 2013 (ghosts)",
)
