"""Moiré drawn subpixel by subpixel: ground truth for the Fourier form in `moire.py`, too slow for production.

Same image formation and parameters. Screen and lens are drawn on a grid `supersampling` times finer than the
sensor, with edges by area coverage: point samples of a mask make false bands stronger than the true ones. Each
aperture emits one value of the displayed image. The work grows with the square of `supersampling`.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Rendered, Scene
from degradations.moire import exposed, realised_of, warp
from degradations.moire_camera import cfa_sites
from degradations.moire_screen import (
    Apertures,
    Floats,
    MoireParams,
    View,
    apertures,
    display,
    look_up,
    screen_position,
)
from pairforge.image import Image, Plane
from pairforge.rng import Rng

_STRIP_PX = 32


def covered(position: Floats, fill: float, footprint: Floats | float) -> Floats:
    """Share of a footprint that lies in apertures of width `fill` centred on whole numbers."""

    def area(edge: Floats) -> Floats:
        shifted = edge + fill / 2
        whole = np.floor(shifted)
        lit: Floats = whole * fill + np.minimum(shifted - whole, fill)
        return lit

    return (area(position + footprint / 2) - area(position - footprint / 2)) / footprint


def draw_light(
    u: Floats, v: Floats, lit: Apertures, plane: Plane, params: MoireParams, span_px: tuple[float, float]
) -> Floats:
    """Light of one colour at screen positions on a fine grid, given what the display shows in it."""
    reach_u = np.hypot(np.gradient(u, axis=0), np.gradient(u, axis=1))
    reach_v = np.hypot(np.gradient(v, axis=0), np.gradient(v, axis=1))
    light = np.zeros(u.shape)
    (cell_u, cell_v), (size_u, size_v) = lit.cell, lit.size
    area = size_u * size_v / (cell_u * cell_v) * len(lit.pixels)
    for pixel_u, pixel_v in lit.pixels:
        along_u = (u - pixel_u - lit.lag[0]) / cell_u
        along_v = (v - pixel_v - lit.lag[1]) / cell_v
        share = covered(along_u, size_u / cell_u, reach_u / cell_u) * covered(
            along_v, size_v / cell_v, reach_v / cell_v
        )
        x = (np.rint(along_u) * cell_u + pixel_u - params.phase_x_cyc) * params.pitch_ratio
        y = (np.rint(along_v) * cell_v + pixel_v - params.phase_y_cyc) * params.pitch_ratio
        light += share * look_up(plane, x.astype(np.float32), y.astype(np.float32), span_px) / area
    if params.artistic_gain != 1:
        smooth_x = (u - lit.lag[0] - params.phase_x_cyc) * params.pitch_ratio
        smooth_y = (v - lit.lag[1] - params.phase_y_cyc) * params.pitch_ratio
        even = look_up(plane, smooth_x.astype(np.float32), smooth_y.astype(np.float32), span_px)
        light = even + params.artistic_gain * (light - even)
    return light


def draw_mosaic(image_lin: Image, params: MoireParams, view: View, zoom: float, supersampling: int) -> Plane:
    """What each photosite of the Bayer sensor keeps of the drawn screen (H, W)."""
    height, width = image_lin.shape[:2]
    shown = display(image_lin, params.pitch_ratio * zoom)
    planes = {colour: cv2.extractChannel(shown, channel) for channel, colour in enumerate("RGB")}
    span_px, scale = (width / zoom, height / zoom), supersampling
    margin = int(np.ceil(5 * params.lens_sigma_px)) + 1
    mosaic = np.empty((height, width), np.float32)
    fine_x = (np.arange((width + 2 * margin) * scale) + 0.5) / scale - margin - width / 2
    for top in range(0, height, _STRIP_PX):
        rows = min(_STRIP_PX, height - top)
        fine_y = (np.arange((rows + 2 * margin) * scale) + 0.5) / scale - margin + top - height / 2
        x, y = screen_position(fine_x[None, :], fine_y[:, None], view)
        u, v = x / params.pitch_ratio + params.phase_x_cyc, y / params.pitch_ratio + params.phase_y_cyc
        for colour in "RGB":
            light = draw_light(u, v, apertures(params, colour), planes[colour], params, span_px)
            sensed = _sense(light, params.lens_sigma_px, scale)[margin:-margin, margin:-margin]
            for (row, column), kept in cfa_sites(params.cfa):
                if kept == colour:
                    mosaic[top : top + rows][row::2, column::2] = sensed[row::2, column::2]
    return np.maximum(mosaic, 0, out=mosaic)


def _sense(light: Floats, lens_sigma_px: float, scale: int) -> NDArray[np.float64]:
    """Gaussian lens, then the mean over each photosite."""
    reach = int(np.ceil(5 * lens_sigma_px * scale))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (lens_sigma_px * scale)) ** 2)
    blurred = cv2.sepFilter2D(light, cv2.CV_64F, taps / taps.sum(), taps / taps.sum())
    rows, columns = light.shape
    sensed: NDArray[np.float64] = blurred.reshape(rows // scale, scale, columns // scale, scale).mean(axis=(1, 3))
    return sensed


def apply_moire_reference(
    image: Image, params: MoireParams, scene: Scene, rng: Rng, supersampling: int = 8
) -> Rendered:
    """`apply_moire` with a drawn screen. Raises ValueError below 8 samples per photosite."""
    if supersampling < 8:
        raise ValueError(f"supersampling is {supersampling}; below 8 the drawing itself aliases")
    view, _, _, zoom, target = warp(image, params)
    photo, exposure = exposed(draw_mosaic(image, params, view, zoom, supersampling), params, target)
    return Rendered(photo, target, realised=realised_of(params, view, zoom, exposure))
