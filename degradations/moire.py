"""Moiré: the image is shown on an RGB-stripe display and photographed by a Bayer camera. Linear light.

Image formation: Liu et al., "Demoir'eing of Camera-Captured Screen Images Using Deep Convolutional Neural
Network" (2018): display mask, projective view, lens, colour filter array, demosaicing. Tilt range: UniDemoiré
(Yang et al., AAAI 2025).

The display mask is never drawn. Light of colour c on the screen is `J_c(u) * m_c(u) / mean(m_c)`, with `m_c`
periodic in screen pixels u = (u, v). Its Fourier series is evaluated at every photosite,

    1 + sum_(n,m) 2 sinc(n fill_x / 3) sinc(m fill_y) H(f) cos 2pi(n (u - o_c) + m v),
    f = n grad u + m grad v,   H(f) = exp(-2 pi^2 sigma^2 |f|^2) sinc(f_x) sinc(f_y),

so lens and photosite average it before it is sampled, as in a camera, and what aliases is what must. One
value per photosite is enough, since the mosaic keeps one colour there.

Deviations: H uses the local frequency of the mask (its change across a photosite is neglected); lens and
photosite act on image content apart from the mask, and the display's sampling of content is an area average
per screen pixel with bilinear reconstruction; camera filters match the display primaries (no crosstalk);
sensor noise, sharpening and coding are steps of their own. `artistic_gain` other than 1 departs from physics:
where one screen pixel covers about one photosite (pitch ratio 1), physical contrast is only 2..5 %.
"""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Degradation, Params, Rendered, Scene
from pairforge.image import Image, Plane, luminance
from pairforge.rng import Rng, log_uniform

Floats = NDArray[np.floating[Any]]

_MAX_HARMONIC = 8
_LEAST_AMPLITUDE = 1.5e-3
"""Harmonics that nowhere reach this share of the mean are below one 8-bit code and are left out."""

# Malvar, He, Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images"
# (ICASSP 2004), figure 2: green at red/blue; a colour at green, along its row; the opposite colour.
_GREEN = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]])
_ALONG = np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]])
_ACROSS = np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]])
_OTHER = {"R": "B", "B": "R"}


class MoireParams(Params):
    """`pitch_ratio`: photosites per screen pixel at the frame centre. `tilt_x_deg` turns the screen about the
    vertical axis of the frame, `tilt_y_deg` about the horizontal one. `focal_frac` is of the long side,
    `radial_k1` of the half diagonal, `fill_x` of a stripe (a third of a screen pixel), `fill_y` of a pixel.
    `lens_sigma_px` is in photosites. `artistic_gain` multiplies the contrast of the mask; 1 is physical."""

    pitch_ratio: float
    tilt_x_deg: float
    tilt_y_deg: float
    roll_deg: float
    focal_frac: float
    radial_k1: float
    fill_x: float
    fill_y: float
    stripe_order: Literal["RGB", "BGR"]
    phase_x_cyc: float
    phase_y_cyc: float
    lens_sigma_px: float
    cfa: Literal["RGGB", "GRBG", "GBRG", "BGGR"]
    artistic_gain: float


def sample_moire(severity: float, rng: Rng) -> MoireParams:
    """Severity sets the contrast of the strongest harmonic where a 3:2 frame shows it most. Sharpness yields it
    as far as it can, `artistic_gain` the rest. Pitch lies near a resonance of the mosaic: 2 (red and blue), 1
    (all colours), seldom elsewhere."""
    detuning = log_uniform(rng, 0.03, 0.16) * float(rng.choice((-1.0, 1.0)))
    pitches = (2 * (1 + detuning), 1 + detuning, log_uniform(rng, 0.7, 3.5))
    pitch_ratio = pitches[int(rng.choice(3, p=[0.6, 0.28, 0.12]))]
    # Near pitch 1 a strong tilt would leave the resonance within a few pixels and show a mesh, not bands.
    tilt_deg = 6.0 if pitch_ratio > 1.4 else 2.5
    fill_x = float(rng.uniform(0.6, 0.9))
    contrast = (0.02 + 0.45 * severity**1.4) * log_uniform(rng, 0.87, 1.15)
    sharpest = 2 * float(np.sinc(fill_x / 3)) * max(abs(float(np.sinc(1 / pitch_ratio))), 0.02)
    wanted_sigma_px = pitch_ratio * np.sqrt(max(np.log(sharpest / contrast), 0.0) / 2) / np.pi
    lens_sigma_px = float(np.clip(wanted_sigma_px, 0.28, 0.9)) * float(rng.uniform(0.85, 1.15))
    physical = MoireParams.model_validate(
        {
            "pitch_ratio": pitch_ratio,
            "tilt_x_deg": float(np.clip(rng.normal(0, tilt_deg), -20, 20)),
            "tilt_y_deg": float(np.clip(rng.normal(0, tilt_deg), -20, 20)),
            "roll_deg": float(np.clip(rng.normal(0, 3), -15, 15)),
            "focal_frac": float(rng.uniform(0.75, 1.4)),
            "radial_k1": float(rng.uniform(-0.05, 0.05)),
            "fill_x": fill_x,
            "fill_y": float(rng.uniform(0.7, 0.95)),
            "stripe_order": str(rng.choice(["RGB", "BGR"], p=[0.8, 0.2])),
            "phase_x_cyc": float(rng.uniform(0, 1)),
            "phase_y_cyc": float(rng.uniform(0, 1)),
            "lens_sigma_px": lens_sigma_px,
            "cfa": str(rng.choice(["RGGB", "GRBG", "GBRG", "BGGR"])),
            "artistic_gain": 1.0,
        }
    )
    seen = harmonics(physical, view_of(physical, 1500, 1000), 1500, 1000)
    strongest = max((float(np.abs(amplitude).max()) for _, _, amplitude in seen), default=_LEAST_AMPLITUDE)
    return physical.model_copy(update={"artistic_gain": float(np.clip(contrast / strongest, 0.05, 10.0))})


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
    bend = 1 + (x_px * x_px + y_px * y_px) * view.bend_per_px2
    x, y = x_px * bend, y_px * bend
    depth_inv = 1 / (zx * x + zy * y + 1)
    return (xx * x + xy * y) * depth_inv, (yx * x + yy * y) * depth_inv


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


def _transfer(f_x: Floats | float, f_y: Floats | float, lens_sigma_px: float) -> Floats:
    """Lens times photosite at a frequency in cycles per px."""
    lens = np.exp(-2 * np.pi**2 * lens_sigma_px**2 * (f_x * f_x + f_y * f_y))
    response: Floats = lens * np.sinc(f_x) * np.sinc(f_y)
    return response


def harmonics(params: MoireParams, view: View, width: int, height: int) -> list[tuple[int, int, Plane]]:
    """(n, m, amplitude on a coarse grid over the frame) of every harmonic that the sensor sees."""
    x = np.linspace(-width / 2, width / 2, 33)[None, :]
    y = np.linspace(-height / 2, height / 2, 33)[:, None]
    right, left = screen_position(x + 0.5, y, view), screen_position(x - 0.5, y, view)
    below, above = screen_position(x, y + 0.5, view), screen_position(x, y - 0.5, view)
    u_x, u_y = (right[0] - left[0]) / params.pitch_ratio, (below[0] - above[0]) / params.pitch_ratio
    v_x, v_y = (right[1] - left[1]) / params.pitch_ratio, (below[1] - above[1]) / params.pitch_ratio
    found = []
    for n in range(_MAX_HARMONIC + 1):
        for m in range(-_MAX_HARMONIC if n else 1, _MAX_HARMONIC + 1):
            weight = 2 * params.artistic_gain * np.sinc(n * params.fill_x / 3) * np.sinc(m * params.fill_y)
            amplitude = weight * _transfer(n * u_x + m * v_x, n * u_y + m * v_y, params.lens_sigma_px)
            if float(np.abs(amplitude).max()) > _LEAST_AMPLITUDE:
                found.append((n, m, amplitude.astype(np.float32)))
    return found


def mask_light(x: Plane, y: Plane, params: MoireParams, view: View) -> tuple[Plane, int]:
    """Display mask as each photosite sees it, mean 1, not negative (H, W), and the number of harmonics."""
    height, width = x.shape
    u = x * np.float32(1 / params.pitch_ratio) + np.float32(params.phase_x_cyc)
    for (row, column), channel in cfa_sites(params.cfa):
        u[row::2, column::2] -= np.float32((params.stripe_order.index(channel) - 1) / 3)
    v = y * np.float32(1 / params.pitch_ratio) + np.float32(params.phase_y_cyc)
    # Whole cycles are dropped first: the cosine of a small float32 angle is exact enough, of a large one not.
    u = (u - np.rint(u)) * np.float32(2 * np.pi)
    v = (v - np.rint(v)) * np.float32(2 * np.pi)
    mask = np.ones((height, width), np.float32)
    angle = np.empty_like(mask)
    seen = harmonics(params, view, width, height)
    for n, m, amplitude in seen:
        cv2.addWeighted(u, n, v, m, 0, dst=angle)
        np.cos(angle, out=angle)
        angle *= cv2.resize(amplitude, (width, height), interpolation=cv2.INTER_LINEAR)
        mask += angle
    return np.maximum(mask, 0, out=mask), len(seen)


def cfa_sites(cfa: str) -> list[tuple[tuple[int, int], str]]:
    """((row, column), colour) of the four photosites of the repeating 2x2 cell."""
    return [((index // 2, index % 2), colour) for index, colour in enumerate(cfa)]


def to_mosaic(image_lin: Image, cfa: str) -> Plane:
    """The colour that each photosite keeps (H, W)."""
    mosaic = np.empty(image_lin.shape[:2], np.float32)
    for (row, column), colour in cfa_sites(cfa):
        mosaic[row::2, column::2] = image_lin[row::2, column::2, "RGB".index(colour)]
    return mosaic


def demosaic(mosaic: Plane, cfa: str) -> Image:
    """Malvar-He-Cutler interpolation of a Bayer mosaic of any range; results below 0 become 0."""
    green, row_colour, column_colour, opposite = (
        cv2.filter2D(mosaic, cv2.CV_32F, (kernel / 8).astype(np.float32))
        for kernel in (_GREEN, _ALONG, _ALONG.T, _ACROSS)
    )
    image = np.empty((*mosaic.shape, 3), np.float32)
    for (row, column), colour in cfa_sites(cfa):
        site = np.s_[row::2, column::2]
        beside = cfa[row * 2 + 1 - column]
        if colour == "G":
            by_name = {"G": mosaic, beside: row_colour, _OTHER[beside]: column_colour}
        else:
            by_name = {"G": green, colour: mosaic, _OTHER[colour]: opposite}
        for index, name in enumerate("RGB"):
            image[(*site, index)] = by_name[name][site]
    return np.maximum(image, 0, out=image)


def displayed(image_lin: Image, x: Plane, y: Plane, pixel_px: float) -> Image:
    """The image at positions (x, y) on a display whose pixels are `pixel_px` image px wide."""
    height, width = image_lin.shape[:2]
    if pixel_px > 1:
        columns, rows = max(round(width / pixel_px), 1), max(round(height / pixel_px), 1)
        shown = cv2.resize(image_lin, (columns, rows), interpolation=cv2.INTER_AREA)
    else:
        shown = image_lin
    return _look_up(shown, x, y, width, height, cv2.INTER_LINEAR)


def _look_up(shown: Image, x: Plane, y: Plane, width: int, height: int, interpolation: int) -> Image:
    """Sample an image that spans (width, height) at positions from its centre."""
    rows, columns = shown.shape[:2]
    map_x = x * np.float32(columns / width) + np.float32((columns - 1) / 2)
    map_y = y * np.float32(rows / height) + np.float32((rows - 1) / 2)
    sampled: Image = cv2.remap(shown, map_x, map_y, interpolation, borderMode=cv2.BORDER_REPLICATE)
    return sampled


def alias_frequencies(f_x: float, f_y: float) -> dict[str, float]:
    """Cycles per px at which a frequency appears, sampled by all, by red or blue, by green photosites."""
    f = np.array([f_x, f_y])
    odd = f - (np.round(f - 0.5) + 0.5)
    even = f - np.round(f)
    red_blue = f - np.round(2 * f) / 2
    green = min(np.linalg.norm(odd), np.linalg.norm(even))
    return {
        "full": float(np.linalg.norm(even)),
        "red_blue": float(np.linalg.norm(red_blue)),
        "green": float(green),
    }


def apply_moire(image: Image, params: MoireParams, scene: Scene, rng: Rng) -> Rendered:
    """The target is the image through the same homography and bend, without display or sensor."""
    height, width = image.shape[:2]
    view = view_of(params, width, height)
    x, y = screen_position(*sensor_grid(width, height), view)
    zoom = inscribing_zoom(x, y)
    mask, harmonic_count = mask_light(x, y, params, view)
    x *= np.float32(zoom)
    y *= np.float32(zoom)
    target = _look_up(image, x, y, width, height, cv2.INTER_CUBIC)
    np.maximum(target, 0, out=target)
    light = displayed(image, x, y, params.pitch_ratio * zoom)
    light = cv2.GaussianBlur(light, (0, 0), params.lens_sigma_px)
    mosaic = to_mosaic(light, params.cfa)
    mosaic *= mask
    photo = demosaic(mosaic, params.cfa)
    # Exposure: aliasing to near zero frequency shifts the mean, which a camera's metering would undo.
    exposure = float(luminance(target).mean()) / max(float(luminance(photo).mean()), 1e-6)
    photo *= np.float32(exposure)
    f_x, f_y = (view.homography[0, :2] / params.pitch_ratio).tolist()
    realised = {
        "homography": view.homography.tolist(),
        "zoom": zoom,
        "exposure": exposure,
        "harmonic_count": harmonic_count,
        "alias_cyc_per_px": alias_frequencies(f_x, f_y),
    }
    return Rendered(photo, target, realised=realised)


MOIRE = Degradation(
    name="moire",
    version=1,
    params_type=MoireParams,
    sample=sample_moire,
    apply=apply_moire,
    space="linear",
    needs=frozenset(),
    source="Liu et al. 2018 (screen-camera order); Malvar et al., ICASSP 2004; ranges: UniDemoiré, AAAI 2025",
)
