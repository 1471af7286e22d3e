"""Moiré, first half: a display of subpixels, and where each photosite of a camera looks on it.

Positions: sensor px from the frame centre; screen pixels u (right) and v (down), whole numbers at pixel centres.
`phase_*_cyc` says where between pixel centres the frame centre looks. Tilt range: UniDemoiré (Yang et al.,
AAAI 2025).
"""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Params
from pairforge.image import Image, Plane

Floats = NDArray[np.floating[Any]]
Colour = Literal["R", "G", "B"]
Layout = Literal["stripe", "pentile", "delta"]
# With the area average, flat within 6 % up to 0.35 cycles per screen pixel.
_SHARPEN = np.array([-0.085, 1.17, -0.085], np.float32)


class MoireParams(Params):
    """`pitch_ratio`: photosites per screen pixel at the frame centre. `tilt_x_deg` turns the screen about the
    vertical axis of the frame, `tilt_y_deg` about the horizontal one. `focal_frac` is of the long side,
    `radial_k1` of the half diagonal. `fill_x`, `fill_y` are shares of a subpixel's slot. `stripe_order` is the
    order of colours from the left. `lens_sigma_px` is in photosites. `fine_loss` is the share of detail at half a
    cycle per px that noise reduction and resampling in the camera take out of the photo. `artistic_gain`
    multiplies the contrast of the display mask; 1 is physical."""

    layout: Layout
    stripe_order: Literal["RGB", "BGR"]
    fill_x: float = Field(ge=0.2, le=1.0)
    fill_y: float = Field(ge=0.2, le=1.0)
    pitch_ratio: float = Field(ge=0.5, le=8.0)
    tilt_x_deg: float = Field(ge=-25.0, le=25.0)
    tilt_y_deg: float = Field(ge=-25.0, le=25.0)
    roll_deg: float = Field(ge=-45.0, le=45.0)
    focal_frac: float = Field(ge=0.6, le=5.0)
    radial_k1: float = Field(ge=-0.1, le=0.1)
    phase_x_cyc: float = Field(ge=-1.0, le=2.0)
    phase_y_cyc: float = Field(ge=-1.0, le=2.0)
    lens_sigma_px: float = Field(ge=0.1, le=2.0)
    cfa: Literal["RGGB", "GRBG", "GBRG", "BGGR"]
    fine_loss: float = Field(ge=0.0, le=1.0)
    artistic_gain: float = Field(ge=0.0, le=10.0)


@dataclass(frozen=True)
class Apertures:
    """Lit rectangles of one colour, `size` each, in a cell of `cell` screen pixels that repeats.

    The light of the pixel centred at one of `pixels` leaves `lag` to the right and below that centre.
    """

    cell: tuple[int, int]
    pixels: tuple[tuple[float, float], ...]
    lag: tuple[float, float]
    size: tuple[float, float]


def apertures(params: MoireParams, colour: str) -> Apertures:
    """`stripe`: three stripes a pixel. `delta`: the same, odd rows half a pixel to the right. `pentile`: green in
    the lower right of every pixel, red and blue in turn in the upper left, as in a chequerboard."""
    place = params.stripe_order.index(colour)
    if params.layout == "pentile":
        size = (params.fill_x / 2, params.fill_y / 2)
        if colour == "G":
            return Apertures((1, 1), ((0, 0),), (0.25, 0.25), size)
        first = place // 2
        return Apertures((2, 2), ((first, 0), (1 - first, 1)), (-0.25, -0.25), size)
    lag, size = ((place - 1) / 3, 0.0), (params.fill_x / 3, params.fill_y)
    if params.layout == "delta":
        return Apertures((1, 2), ((0, 0), (0.5, 1)), lag, size)
    return Apertures((1, 1), ((0, 0),), lag, size)


@dataclass(frozen=True)
class View:
    """Sensor to screen: radial bend, then homography, both about the frame centre, in sensor px."""

    homography: NDArray[np.float64]
    bend_per_px2: float


def view_of(params: MoireParams, width: int, height: int) -> View:
    """Pinhole camera one focal length from a turned screen; scale 1 at the centre but for foreshortening."""
    tilt_x, tilt_y, roll = np.radians([params.tilt_x_deg, params.tilt_y_deg, params.roll_deg])
    about_y = np.array([[np.cos(tilt_x), 0, np.sin(tilt_x)], [0, 1, 0], [-np.sin(tilt_x), 0, np.cos(tilt_x)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt_y), -np.sin(tilt_y)], [0, np.sin(tilt_y), np.cos(tilt_y)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    axis_x, axis_y, normal = about_z @ about_x @ about_y
    # Ray d meets the plane through P = (0, 0, 1) at d (n.P) / (n.d); the rows map d to that, on its axes.
    rows = [normal[2] * axis_x - axis_x[2] * normal, normal[2] * axis_y - axis_y[2] * normal, normal]
    focal_px = params.focal_frac * max(width, height)
    scale = np.diag([focal_px, focal_px, 1.0])
    homography = scale @ np.stack(rows) @ np.linalg.inv(scale)
    return View(homography / homography[2, 2], params.radial_k1 * 4 / (width**2 + height**2))


def screen_position(x_px: Floats, y_px: Floats, view: View) -> tuple[Floats, Floats]:
    """Screen coordinates, in sensor px, of sensor positions; both from the frame centre. Inputs broadcast."""
    (xx, xy, _), (yx, yy, _), (zx, zy, _) = view.homography.tolist()
    bend = (x_px * x_px) * view.bend_per_px2 + (y_px * y_px * view.bend_per_px2 + 1)
    depth = (x_px * zx + y_px * zy) * bend
    depth += 1
    bend /= depth
    x = x_px * xx + y_px * xy
    y = x_px * yx + y_px * yy
    x *= bend
    y *= bend
    return x, y


def sensor_grid(width: int, height: int) -> tuple[Plane, Plane]:
    """Photosite centres from the frame centre: a row (1, W) and a column (H, 1)."""
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)
    return x[None, :], y[:, None]


def inscribing_zoom(x: Plane, y: Plane) -> float:
    """Scale that keeps every screen position of the frame inside an image of the frame's size."""
    height, width = x.shape
    border_x = max(float(np.abs(side).max()) for side in (x[0], x[-1], x[:, 0], x[:, -1]))
    border_y = max(float(np.abs(side).max()) for side in (y[0], y[-1], y[:, 0], y[:, -1]))
    return 1 / float(max(1.0, border_x / max((width - 1) / 2, 0.5), border_y / max((height - 1) / 2, 0.5)))


def display(image_lin: Image, pixel_px: float) -> Image:
    """The image on a display whose pixels are `pixel_px` image px wide: one value per screen pixel and colour.

    A reduced image gets back the contrast that the area average took below half a cycle per screen pixel, as the
    sharper kernels of image viewers keep it.
    """
    height, width = image_lin.shape[:2]
    columns, rows = max(round(width / pixel_px), 1), max(round(height / pixel_px), 1)
    if columns > width or rows > height:
        enlarged: Image = cv2.resize(image_lin, (columns, rows), interpolation=cv2.INTER_CUBIC)
        return np.maximum(enlarged, 0, out=enlarged)
    reduced = cv2.resize(image_lin, (columns, rows), interpolation=cv2.INTER_AREA)
    shown: Image = cv2.sepFilter2D(reduced, cv2.CV_32F, _SHARPEN, _SHARPEN, borderType=cv2.BORDER_REFLECT)
    return np.maximum(shown, 0, out=shown)


def look_up(
    shown: NDArray[np.float32],
    x_px: Plane,
    y_px: Plane,
    span_px: tuple[float, float],
    lag: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float32]:
    """Cubic samples at positions from the centre of an image that is `span_px` (width, height) wide and high, each
    moved back by `lag` pixels of `shown`."""
    rows, columns = shown.shape[:2]
    map_x = x_px * np.float32(columns / span_px[0])
    map_x += np.float32((columns - 1) / 2 - lag[0])
    map_y = y_px * np.float32(rows / span_px[1])
    map_y += np.float32((rows - 1) / 2 - lag[1])
    sampled: NDArray[np.float32] = cv2.remap(shown, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return sampled
