"""Reflection in a window or a glass door between camera and scene.

Light model: I = T(theta) tau_c J + kappa (h * R), with J the scene behind the glass, R the scene in front of it, T and
h the Fresnel transmittance and reflections of the window at the angle theta at which the ray of each pixel meets it,
h displaced impulses of its faces. All of it in linear light. The glass is in reflection_glass.py, the second photo in
reflection_layer.py, published mixing without optics in reflection_mixing.py.

Sources: Fresnel equations, both polarisations; Shih et al., "Reflection removal using ghosting cues", CVPR 2015 (ghost
kernel); Zhang et al., "Single image reflection separation with perceptual losses", CVPR 2018 (the task). Deviations:
the reflected scene is one plane at one distance, since nothing is known of its depth; glass absorbs as if rays met it
head-on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from pydantic import Field, model_validator

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.reflection_frame import Colour, EchoMaps, Work, add_echo, coloured, echo_maps, enlarge, strips
from degradations.reflection_glass import NODE_PX, Nodes, Optics, Window, node_axes, window_optics
from degradations.reflection_layer import (
    Framing,
    defocused,
    highlight_level,
    mean_luminance,
    reflected_scene,
    shrunk,
    store_light,
    visibility,
    with_margin,
)
from pairforge.image import Image, Pixels, luminance
from pairforge.rng import Rng, log_uniform

_ABSORPTION_RGB = (1.0, 0.35, 0.7)
"""Relative absorbance of soda-lime glass, whose iron makes it green."""
_WIEN_RED_PER_MIRED = 14388e-6 * (1 / 0.55 - 1 / 0.61)
_WIEN_BLUE_PER_MIRED = 14388e-6 * (1 / 0.55 - 1 / 0.465)
"""Wien's law: log radiance of red (0.61 um) and blue (0.465 um) against green (0.55 um) per mired."""
_LEAST_MEAN = 0.05
_MOST_DEFOCUS_FRAC = 0.25


class ReflectionParams(Params):
    kappa: float = Field(ge=0, le=100)
    """Mean irradiance of the reflected scene / mean irradiance of the scene behind the glass."""
    incidence_deg: float = Field(ge=0, le=80)
    """Angle between the optical axis and the normal of the glass."""
    roll_deg: float = Field(ge=-360, le=360)
    """Direction, in the image, in which the normal leans."""
    s_share: float = Field(ge=0.05, le=0.95)
    """Share of s-polarised light in what is recorded: 0.5 without polarisation; skylight and filters change it."""
    focal_ratio: float = Field(gt=0, le=100)
    """Focal length / image width."""
    thickness_mm: float = Field(gt=0, le=50)
    wedge_mrad: float = Field(ge=-20, le=20)
    """Angle between the faces of the pane, which parts the ghosts even of distant things."""
    distance_m: float = Field(ge=0.1, le=10000)
    """Camera to glass to reflected scene."""
    focus_m: float = Field(ge=0.1, le=10000)
    aperture_mm: float = Field(gt=0, le=200)
    absorbance: float = Field(ge=0, le=5)
    """Natural-log absorbance of a pane in red; green and blue lose less."""
    mired_shift: float = Field(ge=-300, le=300)
    """Colour of the reflected light against that of the scene; positive is warmer."""
    highlight_gain: float = Field(ge=1, le=16)
    """Brightness of what the second photo clipped, in units of its white."""
    zoom: float = Field(ge=1, le=16)
    """Scale of the second photo beyond what covers the frame."""
    crop_x: float = Field(ge=0, le=1)
    """Place of the cut in the second photo: 0 is its left edge, 1 its right edge."""
    crop_y: float = Field(ge=0, le=1)
    """0 is its top, 1 its bottom."""

    @model_validator(mode="after")
    def _check_defocus(self) -> "ReflectionParams":
        if self.defocus_frac > _MOST_DEFOCUS_FRAC:
            raise ValueError(f"defocus of {self.defocus_frac:.3g} image widths; allowed are up to {_MOST_DEFOCUS_FRAC}")
        return self

    @property
    def defocus_frac(self) -> float:
        """Diameter of the blur of the reflected scene / image width: f A |1/z - 1/z_f|."""
        return self.focal_ratio * self.aperture_mm / 1000 * abs(1 / self.distance_m - 1 / self.focus_m)

    @property
    def window(self) -> Window:
        return Window(self.incidence_deg, self.roll_deg, self.s_share, self.thickness_mm, self.wedge_mrad)


class DoublePaneReflectionParams(ReflectionParams):
    gap_mm: float = Field(gt=0, le=200)
    """Air between the panes."""
    pane_tilt_mrad: float = Field(ge=-50, le=50)
    """Angle between the panes."""

    @property
    def window(self) -> Window:
        return replace(super().window, gap_mm=self.gap_mm, pane_tilt_mrad=self.pane_tilt_mrad)


def sample_reflection(severity: float, rng: Rng) -> ReflectionParams:
    return ReflectionParams(
        kappa=0.3 * 20**severity * rng.uniform(0.85, 1.15),
        incidence_deg=6 + 44 * severity + rng.uniform(-4, 4),
        # Panes stand upright: mostly the camera is turned sideways to them.
        roll_deg=180 * float(rng.integers(2)) + float(np.clip(rng.normal(0, 20), -90, 90)),
        s_share=rng.uniform(0.35, 0.65),
        focal_ratio=log_uniform(rng, 0.8, 2.0),
        thickness_mm=rng.uniform(3, 10),
        wedge_mrad=rng.uniform(0.1, 1.2),
        distance_m=log_uniform(rng, 0.5, 40),
        focus_m=log_uniform(rng, 1.5, 15),
        aperture_mm=log_uniform(rng, 2.0, 20),
        absorbance=rng.uniform(0.01, 0.15),
        mired_shift=rng.uniform(-90, 120),
        highlight_gain=rng.uniform(1.2, 4.0),
        zoom=rng.uniform(1.05, 1.6),
        crop_x=rng.random(),
        crop_y=rng.random(),
    )


def sample_double_pane_reflection(severity: float, rng: Rng) -> DoublePaneReflectionParams:
    pane = sample_reflection(severity, rng)
    return DoublePaneReflectionParams(
        **pane.model_dump(), gap_mm=rng.uniform(12, 20), pane_tilt_mrad=rng.uniform(0.2, 3.0)
    )


def colour_gains(mired_shift: float) -> Colour:
    """RGB gains of a shift of colour temperature by Wien's law, at equal luminance."""
    red = math.exp(_WIEN_RED_PER_MIRED * mired_shift)
    blue = math.exp(_WIEN_BLUE_PER_MIRED * mired_shift)
    level = 0.2126 * red + 0.7152 + 0.0722 * blue
    return red / level, 1 / level, blue / level


@dataclass(frozen=True)
class _Layer:
    """Light from the second photo but for the last echo."""

    light: Image
    shrink: int
    """How many times smaller than the frame it is."""
    last: EchoMaps
    mean: float
    """Mean luminance before all echoes."""

    def rows(self, weight: Image, width: int, work: Work) -> Callable[[int, int], Image]:
        """Rows `top` to `bottom` of the layer at the size of the frame, with all echoes, times a weight at nodes."""
        last = self.last.weighed(weight)
        if self.shrink == 1:
            return lambda top, bottom: last.rows(self.light, top, bottom, work)
        light = with_margin(add_echo(self.light, last, work))
        return lambda top, bottom: enlarge(light, self.shrink, top, bottom, width, work, "layer")


def _reflected_light(params: ReflectionParams, optics: Optics, image_lin: Image, second: Pixels, work: Work) -> _Layer:
    height, width = image_lin.shape[:2]
    framing = Framing(params.zoom, params.crop_x, params.crop_y)
    light = reflected_scene(second, height, width, framing, params.highlight_gain)
    light, shrink = defocused(light, params.defocus_frac * width)
    tint = _tint(2 * params.absorbance)
    maps = [echo_maps(echo, tint, shrink) for echo in optics.echoes]
    mean = mean_luminance(maps[0].alone_at_nodes(light))
    for earlier in maps[:-1]:
        light = add_echo(light, earlier, work)
    return _Layer(light, shrink, maps[-1], mean)


def _tint(absorbance: float) -> Colour:
    red, green, blue = (math.exp(-absorbance * share) for share in _ABSORPTION_RGB)
    return red, green, blue


def apply_reflection(image_lin: Image, params: ReflectionParams, scene: Scene, rng: Rng) -> Rendered:
    """Target: what the glass lets through, at the exposure of the photo.

    Exposure is automatic: one gain for both layers, which brings the 95th percentile of luminance of the mixture to
    that of the input, so that the photo keeps its intended brightness (lamps may clip). The layer `reflection` holds
    the reflected light as exposed, linear, 65535 = 1.
    """
    assert scene.second is not None
    height, width = image_lin.shape[:2]
    focal_px, work = params.focal_ratio * width, Work()
    optics = window_optics(*node_axes(height, width), params.window, focal_px, params.distance_m)
    layer = _reflected_light(params, optics, image_lin, scene.second, work)
    reflected = coloured(optics.face, colour_gains(params.mired_shift))
    transmitted = coloured(optics.transmittance, _tint(params.absorbance * (1 + bool(params.window.gap_mm))))
    level, gain, seen = _meter(image_lin, layer, transmitted, reflected, params.kappa)
    transmitted *= np.float32(gain)
    reflected *= np.float32(gain * level)
    mixture, behind = np.empty_like(image_lin), np.empty_like(image_lin)
    stored = np.empty(image_lin.shape, np.uint16)
    rows_of_layer = layer.rows(reflected, width, work)
    for top, bottom in strips(height):
        rows, frame = slice(top, bottom), (NODE_PX, top, bottom, width, work)
        light = rows_of_layer(top, bottom)
        store_light(light, stored[rows])
        cv2.multiply(image_lin[rows], enlarge(transmitted, *frame, "weight"), behind[rows])
        cv2.add(behind[rows], light, mixture[rows])
    realised = {
        "exposure_gain": gain,
        "defocus_px": params.defocus_frac * width,
        **_facts_at_centre(params, focal_px),
        **seen,
    }
    return Rendered(mixture, behind, {"reflection": stored}, realised)


def _meter(
    image_lin: Image, layer: _Layer, transmitted: Image, reflected: Image, kappa: float
) -> tuple[float, float, dict[str, Any]]:
    """Level of the layer, exposure gain, and how visible the reflection is.

    From means over the cell of each node of the image, and what is next to each node of the layer.
    """
    inside = (slice(1, -1), slice(1, -1))
    cells, echoed = shrunk(image_lin, NODE_PX), layer.last.at_nodes(layer.light)
    # A darker second photo stays darker: raised further, its 8-bit steps would show.
    level = kappa * mean_luminance(cells) / max(layer.mean, _LEAST_MEAN)
    behind = luminance(cells * transmitted[inside])
    before = luminance(echoed * reflected[inside]) * np.float32(level)
    return level, highlight_level(luminance(cells)) / highlight_level(behind + before), visibility(before, behind)


def _facts_at_centre(params: ReflectionParams, focal_px: float) -> dict[str, Any]:
    """Shifts are along `roll_deg`, weights are of untinted glass; in the order first face, second, next pane."""
    centre: Nodes = np.zeros((1, 1))
    optics = window_optics(centre, centre, params.window, focal_px, params.distance_m)
    roll = math.radians(params.roll_deg)
    shifts_px, weights = [0.0], [optics.face.item()]
    for echo in optics.echoes:
        shift_px = echo.x_px.item() * math.cos(roll) + echo.y_px.item() * math.sin(roll)
        shifts_px += [earlier + shift_px for earlier in shifts_px]
        weights += [earlier * echo.ratio.item() for earlier in weights]
    return {
        "reflectance": 1 - optics.transmittance.item(),
        "ghost_shifts_px": shifts_px,
        "ghost_weights": weights,
    }


REFLECTION = Degradation(
    name="reflection",
    version=3,
    params_type=ReflectionParams,
    sample=sample_reflection,
    apply=apply_reflection,
    space="linear",
    needs=frozenset({"second"}),
    source="Fresnel slab per polarisation; ghosts after Shih et al., CVPR 2015",
)

DOUBLE_PANE_REFLECTION = Degradation(
    name="double_pane_reflection",
    version=3,
    params_type=DoublePaneReflectionParams,
    sample=sample_double_pane_reflection,
    apply=apply_reflection,
    space="linear",
    needs=frozenset({"second"}),
    source="Fresnel slabs per polarisation; ghosts of double glazing after Shih et al., CVPR 2015",
)
