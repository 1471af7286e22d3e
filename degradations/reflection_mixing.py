"""Mixing two photos with a weight that depends on both, as a network learnt to: an imitation, not optics.

I = W T + (1 - W) R with W = 1 - clip(b0 + b1 sigmoid((Y_R - Y_T) / 0.15)), low-passed. Source: Wen et al., "Single
image reflection removal beyond linearity", CVPR 2019 (SynNet), whose network predicts W; here a fixed rule without
weights stands in for it. Deviations: Y is of code values as in the paper, but light is mixed in linear; R gets
the mean luminance of T, and both an exposure as in reflection.py; the target is T dimmed by the mean of W, because T
dimmed by W itself would show R.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.reflection_frame import Work, enlarge, strips
from degradations.reflection_layer import (
    Framing,
    highlight_level,
    reflected_scene,
    shrink_of,
    shrunk,
    store_light,
    variance_left,
    visibility,
    with_margin,
)
from pairforge.image import Image, Plane, linear_to_srgb, luminance
from pairforge.rng import Rng, log_uniform

_LUMA_SCALE = 0.15
_LEAST_MEAN = 0.05
_CELL_PX = 4
"""The weight is worked out on cells of this size."""
_DISC_DIAMETERS = 4.0
"""A disc has a standard deviation of a quarter of its diameter."""


class NonlinearReflectionParams(Params):
    base_share: float = Field(ge=0, le=0.9)
    """b0: share of the second photo where it is much darker than the first."""
    bright_share: float = Field(ge=0, le=0.9)
    """b1: what is added to it where the second photo is much brighter."""
    lowpass_px: float = Field(ge=2, le=200)
    """Standard deviation of the low-pass of the weight."""
    blur_sigma_frac: float = Field(gt=0, le=0.1)
    """Standard deviation of the blur of the second photo / short side."""
    ghost_share: float = Field(ge=0, le=0.9)
    """Share of the displaced copy of the second photo."""
    ghost_shift_frac: float = Field(ge=0, le=0.3)
    """Its displacement / short side."""
    ghost_deg: float = Field(ge=-360, le=360)
    zoom: float = Field(ge=1, le=16)
    """Scale of the second photo beyond what covers the frame."""
    crop_x: float = Field(ge=0, le=1)
    """Place of the cut in the second photo: 0 is its left edge, 1 its right edge."""
    crop_y: float = Field(ge=0, le=1)
    """0 is its top, 1 its bottom."""


def sample_nonlinear_reflection(severity: float, rng: Rng) -> NonlinearReflectionParams:
    grown = severity**1.5
    return NonlinearReflectionParams(
        base_share=(0.02 + 0.18 * grown) * rng.uniform(0.85, 1.15),
        bright_share=(0.04 + 0.46 * grown) * rng.uniform(0.85, 1.15),
        lowpass_px=rng.uniform(10, 20),
        blur_sigma_frac=log_uniform(rng, 0.0005, 0.01),
        ghost_share=rng.uniform(0.05, 0.5),
        ghost_shift_frac=log_uniform(rng, 0.004, 0.04),
        ghost_deg=rng.uniform(-180, 180),
        zoom=rng.uniform(1.05, 1.6),
        crop_x=rng.random(),
        crop_y=rng.random(),
    )


def mixing_weight(luma: Plane, other_luma: Plane, params: NonlinearReflectionParams, sigma_px: float) -> Plane:
    """W (H, W), the share of the first photo, from code values of both."""
    contrast = (luma - other_luma) * np.float32(1 / _LUMA_SCALE)
    cv2.exp(contrast, contrast)
    contrast += 1
    share: Plane = np.float32(params.base_share) + np.float32(params.bright_share) / contrast
    np.clip(share, 0, 1, out=share)
    smooth: Plane = cv2.GaussianBlur(1 - share, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101)
    return smooth


def apply_nonlinear_reflection(image_lin: Image, params: NonlinearReflectionParams, scene: Scene, rng: Rng) -> Rendered:
    """Target: the first photo, dimmed by the mean of W, at the exposure of the mixture.

    One gain brings the 95th percentile of luminance of the mixture to that of the input. Layers: `reflection` is what
    the second photo adds, linear, 65535 = 1; `transmission` (H, W) is W, 65535 = 1.
    """
    assert scene.second is not None
    height, width = image_lin.shape[:2]
    side_px = min(height, width)
    framing = Framing(params.zoom, params.crop_x, params.crop_y)
    other = _blurred(reflected_scene(scene.second, height, width, framing), params.blur_sigma_frac * side_px)
    other = _ghosted(other, params.ghost_share, params.ghost_shift_frac * side_px, params.ghost_deg)

    cells, other_cells = (luminance(shrunk(light, _CELL_PX)) for light in (image_lin, other))
    level = float(cells.mean(dtype=np.float64)) / max(float(other_cells.mean(dtype=np.float64)), _LEAST_MEAN)
    other_cells *= np.float32(level)
    lumas = [linear_to_srgb(plane) for plane in (cells, other_cells)]
    weight = mixing_weight(lumas[0], lumas[1], params, params.lowpass_px / _CELL_PX)
    behind, before = weight * cells, (1 - weight) * other_cells
    gain = highlight_level(cells) / highlight_level(behind + before)
    mean_weight = float(weight.mean(dtype=np.float64))
    mixture, stored, through = _mix(image_lin, other, with_margin(weight), gain, level)
    target = np.multiply(image_lin, np.float32(gain * mean_weight))
    realised = {
        "nonlinear": True,
        "exposure_gain": gain,
        "transmission_mean": mean_weight,
        "blur_sigma_px": params.blur_sigma_frac * side_px,
        **visibility(before, behind),
    }
    return Rendered(mixture, target, {"reflection": stored, "transmission": through}, realised)


def _blurred(light: Image, sigma_px: float) -> Image:
    shrink = shrink_of(_DISC_DIAMETERS * sigma_px)
    small = shrunk(light, shrink)
    left_px = max(math.sqrt(variance_left(sigma_px**2, shrink)), 0.01)
    blurred: Image = cv2.GaussianBlur(small, (0, 0), left_px, borderType=cv2.BORDER_REFLECT_101)
    if shrink == 1:
        return blurred
    height, width = light.shape[:2]
    return enlarge(with_margin(blurred), shrink, 0, height, width, Work(), "layer")


def _ghosted(light: Image, share: float, shift_px: float, angle_deg: float) -> Image:
    """Two copies, of which the displaced one has this share."""
    angle = math.radians(angle_deg)
    moved = np.array([[1, 0, shift_px * math.cos(angle)], [0, 1, shift_px * math.sin(angle)]])
    ghost = cv2.warpAffine(light, moved, light.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    both: Image = cv2.addWeighted(light, 1 - share, ghost, share, 0.0, ghost)
    return both


def _mix(
    image_lin: Image, other: Image, weight: Plane, gain: float, level: float
) -> tuple[Image, NDArray[np.uint16], NDArray[np.uint16]]:
    """The mixture, what the other photo adds to it, and the weight at full size, both in codes."""
    height, width = image_lin.shape[:2]
    mixture, work = np.empty_like(image_lin), Work()
    stored, through = np.empty((height, width, 3), np.uint16), np.empty((height, width), np.uint16)
    for top, bottom in strips(height):
        rows, shape = slice(top, bottom), (bottom - top, width, 3)
        share = enlarge(weight, _CELL_PX, top, bottom, width, work, "share")
        store_light(share, through[rows])
        colours, light = work.take("colours", *shape), work.take("light", *shape)
        cv2.cvtColor(share, cv2.COLOR_GRAY2RGB, colours)
        cv2.multiply(image_lin[rows], colours, mixture[rows], gain)
        cv2.cvtColor(cv2.subtract(1.0, share), cv2.COLOR_GRAY2RGB, colours)
        cv2.multiply(other[rows], colours, light, gain * level)
        store_light(light, stored[rows])
        cv2.add(mixture[rows], light, mixture[rows])
    return mixture, stored, through


NONLINEAR_REFLECTION = Degradation(
    name="nonlinear_reflection",
    version=1,
    params_type=NonlinearReflectionParams,
    sample=sample_nonlinear_reflection,
    apply=apply_nonlinear_reflection,
    space="linear",
    needs=frozenset({"second"}),
    source="imitation, without weights, of SynNet: Wen et al., CVPR 2019",
)
