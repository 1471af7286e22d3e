"""Lens flare of bright sources: scatter and diffraction, ghosts, veil. Additive in linear light.

Image formation: Wu et al., "How to Train Neural Networks for Flare Removal" (ICCV 2021): the point spread function
(PSF) of a pupil with dust and scratches, |FFT(pupil)|^2, summed over wavelengths. Ghosts: Hullin et al.,
"Physically-Based Real-Time Lens Flare Rendering" (SIGGRAPH 2011), in the paraxial form of Lee and Eisemann (2013).

    I = J + sum_s E_s (scatter_frac T(x - x_s) + ghosts_s + veil_frac V(x - x_s) / area),   sum T = 1 per channel

E is the energy of a source (radiance times area). T is the PSF without its core, which stays in the target, as
does the source itself. All of the flare is proportional to E and independent of the image J; where a source is
placed follows from the parameters alone.

Deviations, beside those of T (flare_pattern.py) and the ghosts (flare_ghosts.py): T is the same over the field and for
all sources of a frame, smeared by the mean of their radii; its energy is set, not derived; the veil comes from the
sources alone and not from the mean of J, and fades with the distance, V = 2 / (1 + (1.5 r / long side)^2); sources
outside the frame also scatter. Flare is smooth: it is rendered with a long side of about 512 px and scaled up.
"""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Rendered, Scene
from degradations.flare_ghosts import add_ghost, aperture_images, draw_ghosts
from degradations.flare_pattern import PATTERN_PX, LensParams, draw_pupil, sample_lens, scatter_pattern
from degradations.flare_sources import Source, blackbody_colour, brightest_glint, find_lights, with_source
from pairforge.image import LUMA_LIN, Image
from pairforge.rng import Rng, log_uniform

_RENDERED_PX = 512
_VEIL_STEP = 8
_GHOSTING_LIGHTS = 2
FLARE_LAYER_SCALE = 8192
"""Codes of the `flare` layer per unit of linear light; the layer ends at 8 times white."""


class FlareParams(LensParams):
    """A lamp or sun put into the frame (`source_x_frac` and `source_y_frac` in 0..1) or beside it: an ellipse of
    axes with `source_aspect_ratio`, the long one at `source_angle_deg`. `source_radius_frac` is of the short side."""

    source_x_frac: float = Field(ge=-2, le=3)
    source_y_frac: float = Field(ge=-2, le=3)
    source_radius_frac: float = Field(ge=1e-4, le=0.2)
    source_aspect_ratio: float = Field(ge=1, le=20)
    source_angle_deg: float = Field(ge=-180, le=180)
    source_temperature_k: float = Field(ge=1000, le=40000)


class FlareLightsParams(LensParams):
    """The lights that the image has."""


def draw_position(rng: Rng) -> tuple[bool, float, float]:
    """Whether a source lies in the frame, and where. Three of five lie outside, beyond its left, right or upper side;
    the others near an upper corner, where a photo is most likely to show sky, ceiling or background."""
    inside = rng.random() < 0.4
    along, beyond, aside = float(rng.uniform(0.05, 0.95)), float(rng.uniform(0.02, 0.15)), float(rng.beta(1, 1.6))
    outside = [(-beyond, 0.7 * along), (1 + beyond, 0.7 * along), (along, -beyond)][int(rng.integers(3))]
    corner = 0.04 + 0.3 * aside if rng.random() < 0.5 else 0.96 - 0.3 * aside
    upper = float(rng.uniform(0.03, 0.2))
    return (True, corner, upper) if inside else (False, *outside)


def sample_flare(severity: float, rng: Rng) -> FlareParams:
    inside, x_frac, y_frac = draw_position(rng)
    return FlareParams.model_validate(
        {
            **sample_lens(severity, rng),
            "source_x_frac": x_frac,
            "source_y_frac": y_frac,
            "source_radius_frac": log_uniform(rng, 0.0018, 0.0038) * (1 if inside else 2.6),
            "source_aspect_ratio": log_uniform(rng, 1.02, 2.2),
            "source_angle_deg": float(rng.normal(0, 8)),
            "source_temperature_k": log_uniform(rng, 2600, 7500),
        }
    )


def sample_flare_lights(severity: float, rng: Rng) -> FlareLightsParams:
    return FlareLightsParams.model_validate(sample_lens(severity, rng))


def stray_light(
    width: int, height: int, sources: list[Source], lens: LensParams, rng: Rng
) -> tuple[Image, list[dict[str, Any]]]:
    """All flare of a frame (H, W, 3), >= 0 and linear in the radiance of the sources, and the ghost table."""
    across, down = rendered_size(width, height)
    pupil = draw_pupil(lens, rng)
    ghosts = draw_ghosts(lens, rng)
    near = [_on_grid(source, across / width, down / height) for source in sources]
    light = _veil(across, down, near, lens)
    _add_scatter(light, scatter_pattern(pupil, lens), near, lens)
    apertures = aperture_images(pupil)
    brightest = sorted(near, key=lambda source: -source.energy)[:_GHOSTING_LIGHTS]
    table = [add_ghost(light, ghost, source, apertures) for source in brightest for ghost in ghosts]
    for row in table:
        row["x_px"] = (row["x_px"] + 0.5) * width / across - 0.5
        row["y_px"] = (row["y_px"] + 0.5) * height / down - 0.5
        row["radius_px"] *= max(width, height) / max(across, down)
    return enlarged(light, width, height), table


def rendered_size(width: int, height: int) -> tuple[int, int]:
    """Width and height at which flare is rendered: about 512 px on the long side, or the frame's if that is less."""
    step = max(1, round(max(width, height) / _RENDERED_PX))
    return max(1, round(width / step)), max(1, round(height / step))


def enlarged(light: Image, width: int, height: int) -> Image:
    """Rendered light at the size of the frame. Cubic interpolation undershoots beside edges; light does not."""
    if (light.shape[1], light.shape[0]) == (width, height):
        return light
    full: Image = cv2.resize(light, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.max(full, 0.0, dst=full)
    return full


def _on_grid(source: Source, ratio_x: float, ratio_y: float) -> Source:
    """The source in px of a smaller grid over the same frame, its energy in px of that."""
    return replace(
        source,
        x_px=(source.x_px + 0.5) * ratio_x - 0.5,
        y_px=(source.y_px + 0.5) * ratio_y - 0.5,
        radius_px=source.radius_px * float(np.sqrt(ratio_x * ratio_y)),
    )


def _veil(width: int, height: int, sources: list[Source], lens: LensParams) -> Image:
    """The veil of all sources (H, W, 3); so smooth that every 8th pixel is enough."""
    across, down = -(-width // _VEIL_STEP), -(-height // _VEIL_STEP)
    x = (np.arange(across) + 0.5) * (width / across) - 0.5
    y = (np.arange(down) + 0.5) * (height / down) - 0.5
    coarse = np.zeros((down, across, 3), np.float32)
    for source in sources:
        away = ((x[None, :] - source.x_px) ** 2 + (y[:, None] - source.y_px) ** 2) * (1.5 / max(width, height)) ** 2
        gain = np.array(source.colour) * (2 * source.energy * lens.veil_frac / (width * height))
        coarse += (gain / (1 + away[..., None])).astype(np.float32)
    veil: Image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return veil


def _add_scatter(light: Image, pattern: Image, sources: list[Source], lens: LensParams) -> None:
    """Add the scatter of all sources to `light` in place; of all but the strongest two at half its resolution."""
    height, width = light.shape[:2]
    energy = sum(source.energy for source in sources)
    radius_px = sum(source.radius_px * source.energy for source in sources) / energy
    scale = lens.scatter_radius_frac * max(width, height) * 2 / PATTERN_PX
    # Where T gets smaller, the filter also keeps it from aliasing.
    smeared = cv2.GaussianBlur(pattern, (0, 0), max(0.7 * radius_px / scale, 0.8, 0.5 / scale))
    strongest = sorted(sources, key=lambda source: -source.energy)
    for source in strongest[:2]:
        _paste(light, smeared, source, lens)
    if len(strongest) > 2:
        across, down = -(-width // 2), -(-height // 2)
        coarse = np.zeros((down, across, 3), np.float32)
        halved = cv2.resize(smeared, (PATTERN_PX // 2, PATTERN_PX // 2), interpolation=cv2.INTER_AREA)
        halved *= np.float32(4)
        for source in strongest[2:]:
            _paste(coarse, halved, _on_grid(source, across / width, down / height), lens)
        cv2.add(light, cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), dst=light)


def _paste(light: Image, pattern: Image, source: Source, lens: LensParams) -> None:
    """Add the scatter of one source to `light` in place."""
    height, width = light.shape[:2]
    scale = lens.scatter_radius_frac * max(width, height) * 2 / pattern.shape[0]
    gain = source.energy * lens.scatter_frac / scale**2
    offset_x, offset_y = ((pattern.shape[0] - 1) / 2 - at / scale for at in (source.x_px, source.y_px))
    matrix = np.array([[1 / scale, 0, offset_x], [0, 1 / scale, offset_y]])
    pasted = cv2.warpAffine(pattern, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    cv2.transform(pasted, np.diag(np.array(source.colour) * gain).astype(np.float32), dst=pasted)
    cv2.add(light, pasted, dst=light)


def flare_layer(light: Image) -> NDArray[np.uint16]:
    """Luminance of flare before clipping (H, W), in steps of 1 / FLARE_LAYER_SCALE of white."""
    codes = cv2.transform(light, np.array([[*(FLARE_LAYER_SCALE * weight for weight in LUMA_LIN), 0.5]], np.float32))
    cv2.min(codes, 65535.0, dst=codes)
    layer: NDArray[np.uint16] = codes.reshape(light.shape[:2]).astype(np.uint16)
    return layer


def _render(image: Image, sources: list[Source], lens: LensParams, rng: Rng) -> Rendered:
    height, width = image.shape[:2]
    light, ghosts = stray_light(width, height, sources, lens, rng)
    target = image
    for source in sources:
        in_frame = -0.5 <= source.x_px < width - 0.5 and -0.5 <= source.y_px < height - 0.5
        if source.origin == "placed" and in_frame:
            target = with_source(target, source)
    layer = flare_layer(light)
    realised = {"sources": [source.row() for source in sources], "ghosts": ghosts}
    cv2.add(light, target, dst=light)
    return Rendered(light, target, {"flare": layer}, realised)


def apply_flare(image: Image, params: FlareParams, scene: Scene, rng: Rng) -> Rendered:
    """The source does not depend on the image, so that image and target of a chain get it at the same place. The
    target shows the source without its flare. Layer `flare`: see `flare_layer`."""
    height, width = image.shape[:2]
    source = Source(
        x_px=params.source_x_frac * width - 0.5,
        y_px=params.source_y_frac * height - 0.5,
        radiance=params.source_radiance,
        radius_px=params.source_radius_frac * min(width, height),
        colour=blackbody_colour(params.source_temperature_k),
        origin="placed",
        aspect_ratio=params.source_aspect_ratio,
        angle_deg=params.source_angle_deg,
    )
    return _render(image, [source], params, rng)


def apply_flare_lights(image: Image, params: FlareLightsParams, scene: Scene, rng: Rng) -> Rendered:
    """As `apply_flare`, for the lights of the image, which the target has already: it stays as it is, whatever was
    found. In an image without any the brightest glint flares; its `origin` is "brightest"."""
    sources = find_lights(image, params.source_radiance) or [brightest_glint(image, params.source_radiance)]
    return _render(image, sources, params, rng)


_SOURCE = "Wu et al., ICCV 2021 (scatter PSF); Hullin et al. 2011, Lee and Eisemann 2013 (ghosts)"

FLARE = Degradation(
    name="flare",
    version=2,
    params_type=FlareParams,
    sample=sample_flare,
    apply=apply_flare,
    space="linear",
    needs=frozenset(),
    source=_SOURCE,
)

FLARE_LIGHTS = Degradation(
    name="flare_lights",
    version=2,
    params_type=FlareLightsParams,
    sample=sample_flare_lights,
    apply=apply_flare_lights,
    space="linear",
    needs=frozenset(),
    source=_SOURCE,
)
