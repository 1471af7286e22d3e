"""Moiré: the image is shown on a display of subpixels and photographed by a Bayer camera. Linear light.

Image formation: Liu et al., "Demoir'eing of Camera-Captured Screen Images Using Deep Convolutional Neural
Network" (2018): display mask, projective view, lens, colour filter array, demosaicing.

The display mask is never drawn. Light of colour c on the screen is `J_c(u) * m_c(u) / mean(m_c)`, with `m_c`
periodic in screen pixels u = (u, v). Its Fourier series is evaluated at every photosite,

    1 + sum_h 2 |a_h| H(f) cos(2 pi h.u + arg a_h),   f = h_u grad u + h_v grad v,
    a_h = sinc(h_u w_c) sinc(h_v h_c) mean of exp(-2 pi i h.o) over the apertures at o, w_c x h_c each,
    H(f) = exp(-2 pi^2 sigma^2 |f|^2) sinc(f_x) sinc(f_y),

so lens and photosite average it before it is sampled, as in a camera, and what aliases is what must. One
value per photosite is enough, since the mosaic keeps one colour there. `moire_reference.py` draws the mask.

Deviations: H uses the local frequency of the mask (its change across a photosite is neglected); lens,
photosite and aperture act on image content apart from the mask, at the scale of the frame centre; camera
filters match the display primaries (no crosstalk); sensor noise, sharpening and coding are steps of their own.
`artistic_gain` other than 1 departs from physics.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Degradation, Rendered, Scene
from degradations.moire_camera import (
    alias_frequencies,
    cfa_sites,
    demosaic,
    low_pass_taps,
    transfer,
    without_fine_detail,
)
from degradations.moire_screen import (
    Floats,
    Layout,
    MoireParams,
    View,
    apertures,
    display,
    inscribing_zoom,
    look_up,
    screen_position,
    sensor_grid,
    view_of,
)
from pairforge.image import LUMA_LIN, Image, Plane
from pairforge.rng import Rng, log_uniform

_MAX_HARMONIC = 8
_LEAST_AMPLITUDE, _LEAST_SHARE = 2.5e-3, 1e-2
"""Harmonics that nowhere reach this amplitude (0.2 of an 8-bit code in mid grey) or this share of the strongest
one are left out."""
_EVEN = 4e-3
"""An amplitude that changes less than this over the frame is taken as constant."""
_CELLS = 24


class Resonance(NamedTuple):
    """A harmonic of a layout (cycles per screen pixel) near a point of the mosaic's reciprocal lattice (cycles
    per photosite): from there it shows as wide bands. `tilt_deg` keeps it there over most of a frame."""

    layout: Layout
    harmonic: tuple[float, float]
    lattice: tuple[float, float]
    tilt_deg: float


COLOUR_BANDS = Resonance("stripe", (1, 0), (0.5, 0), 5.0)
"""Pitch near 2: red and blue alias, green does not; magenta and green bands."""
PENTILE_BANDS = Resonance("pentile", (0.5, 0.5), (0.5, 0.5), 4.0)
"""Pitch near 1: the chequerboard of red and blue; orange and blue bands."""
ALL_COLOURS = Resonance("stripe", (1, 0), (1, 0), 2.5)
"""Pitch near 1: all photosites alias, but each averages nearly a whole period; faint rainbows."""
DELTA_BANDS = Resonance("delta", (0, 1), (0, 0.5), 5.0)
"""Pitch near 2: rows of pixels; drawn for banks only, since tall apertures leave little of it."""
_RESONANCES, _SHARES = (COLOUR_BANDS, PENTILE_BANDS, ALL_COLOURS), (0.74, 0.14, 0.12)


def aimed(params: MoireParams, resonance: Resonance, detuning: tuple[float, float]) -> MoireParams:
    """`params` with the pitch and roll that put the harmonic `detuning` cycles per px beside its lattice point."""
    wanted = complex(resonance.lattice[0] + detuning[0], resonance.lattice[1] + detuning[1])
    for _ in range(6):  # Tilt moves the frequency by less than a tenth, so each round gains a digit.
        ratio = complex(*centre_frequency(params, *resonance.harmonic)) / wanted
        # More roll turns the screen's axes the other way as the camera sees them.
        turned_deg = params.roll_deg + float(np.degrees(np.angle(ratio)))
        params = params.model_copy(update={"pitch_ratio": params.pitch_ratio * abs(ratio), "roll_deg": turned_deg})
    return params


def _draw_detuning(resonance: Resonance, severity: float, rng: Rng) -> tuple[float, float]:
    """Bands 30 to 80 px wide, at severity 1 from 9 px on; at whole frequencies not wider than 14 px, since the
    photosite averages those."""
    if resonance is ALL_COLOURS:
        return float(rng.choice((-1.0, 1.0)) * rng.uniform(0.07, 0.12)), float(rng.uniform(-0.08, 0.08))
    radius, angle = log_uniform(rng, 0.012, 0.033 + 0.077 * severity), rng.uniform(0, 2 * np.pi)
    return float(radius * np.cos(angle)), float(radius * np.sin(angle))


def draw_screen(resonance: Resonance, detuning: tuple[float, float], rng: Rng) -> MoireParams:
    """A sharp, physical view of a screen at a resonance; all else is drawn from the ranges of the sources."""
    params = MoireParams.model_validate(
        {
            "layout": resonance.layout,
            "stripe_order": str(rng.choice(["RGB", "BGR"], p=[0.8, 0.2])),
            "fill_x": float(rng.uniform(0.6, 0.9)),
            "fill_y": float(rng.uniform(0.7, 0.8 if resonance is DELTA_BANDS else 0.95)),
            "pitch_ratio": 2.0,
            "tilt_x_deg": float(np.clip(rng.normal(0, resonance.tilt_deg), -20, 20)),
            "tilt_y_deg": float(np.clip(rng.normal(0, resonance.tilt_deg), -20, 20)),
            "roll_deg": 0.0,
            "focal_frac": float(rng.uniform(0.75, 1.4)),
            "radial_k1": float(rng.uniform(-0.05, 0.05)),
            "phase_x_cyc": float(rng.uniform(0, 1)),
            "phase_y_cyc": float(rng.uniform(0, 1)),
            "lens_sigma_px": 0.25,
            "cfa": str(rng.choice(["RGGB", "GRBG", "GBRG", "BGGR"])),
            "fine_loss": 0.0,
            "artistic_gain": 1.0,
        }
    )
    return aimed(params, resonance, detuning)


def sample_moire(severity: float, rng: Rng) -> MoireParams:
    """Severity sets the contrast of the resonant harmonic at the frame centre, 0.015 to 0.75 of the mean (less at
    pitch 1). Focus yields it as far as it can, `artistic_gain` the rest; near pitch 2 that is 1. The mesh of single
    photosites beside the bands is what the camera's processing leaves of it.

    Pitch and roll lie where a harmonic shows as bands, which is where people notice moiré: 0.87 to 1.2 and
    1.6 to 2.6. Elsewhere a mesh of single pixels shows, at any severity.
    """
    resonance = _RESONANCES[int(rng.choice(len(_RESONANCES), p=_SHARES))]
    params = draw_screen(resonance, _draw_detuning(resonance, severity, rng), rng)
    contrast = (0.015 + 0.7 * severity**1.7) * float(rng.uniform(0.92, 1.08))
    if resonance is not COLOUR_BANDS:
        contrast *= 0.5 if resonance is ALL_COLOURS else 0.7
    f_x, f_y = centre_frequency(params, *resonance.harmonic)
    sigma = np.sqrt(max(np.log(contrast_of(params, resonance, 0.0) / contrast), 0.0) / 2) / np.pi / np.hypot(f_x, f_y)
    sigma = float(np.clip(sigma, 0.25, 0.85))
    gain = float(np.clip(contrast / contrast_of(params, resonance, sigma), 1.0, 10.0))
    return params.model_copy(
        update={"lens_sigma_px": sigma, "artistic_gain": gain, "fine_loss": float(rng.uniform(0.6, 0.85))}
    )


def contrast_of(params: MoireParams, resonance: Resonance, lens_sigma_px: float) -> float:
    """Physical amplitude of the resonant harmonic in red at the frame centre, as a share of the mean."""
    h_u, h_v, coefficient = series(params, "R")
    (index,) = np.flatnonzero((h_u == resonance.harmonic[0]) & (h_v == resonance.harmonic[1]))
    passed = transfer(*centre_frequency(params, *resonance.harmonic), lens_sigma_px)
    return 2 * float(np.abs(coefficient[index] * passed))


def series(params: MoireParams, colour: str) -> tuple[Floats, Floats, NDArray[np.complex128]]:
    """Harmonics of the display mask of a colour with mean 1, to the right and down in cycles per screen pixel, and
    their coefficients. Half of the plane of harmonics; the other half holds the conjugates."""
    lit = apertures(params, colour)
    reach_u, reach_v = _MAX_HARMONIC * lit.cell[0], _MAX_HARMONIC * lit.cell[1]
    n, m = np.meshgrid(np.arange(reach_u + 1), np.arange(-reach_v, reach_v + 1))
    half = (n > 0) | (m > 0)
    h_u, h_v = n[half] / lit.cell[0], m[half] / lit.cell[1]
    turns = sum(np.exp(-2j * np.pi * (h_u * (u + lit.lag[0]) + h_v * (v + lit.lag[1]))) for u, v in lit.pixels)
    return h_u, h_v, np.sinc(h_u * lit.size[0]) * np.sinc(h_v * lit.size[1]) * turns / len(lit.pixels)


def centre_frequency(params: MoireParams, h_u: Floats | float, h_v: Floats | float) -> tuple[Floats, Floats]:
    """Cycles per px of harmonics at the frame centre."""
    (u_x, u_y), (v_x, v_y) = view_of(params, 1, 1).homography[:2, :2] / params.pitch_ratio
    return h_u * u_x + h_v * v_x, h_u * u_y + h_v * v_y


class Wave(NamedTuple):
    """One harmonic as the sensor sees it; `amplitude` lies on a coarse grid over the frame."""

    harmonic: tuple[float, float]
    angle: float
    amplitude: Floats


def waves(params: MoireParams, view: View, width: int, height: int) -> dict[str, list[Wave]]:
    """For each colour, harmonics of its mask that reach the photosites with a visible amplitude."""
    x = (((np.arange(_CELLS) + 0.5) / _CELLS - 0.5) * width)[None, :]
    y = (((np.arange(_CELLS) + 0.5) / _CELLS - 0.5) * height)[:, None]
    right, left = screen_position(x + 0.5, y, view), screen_position(x - 0.5, y, view)
    below, above = screen_position(x, y + 0.5, view), screen_position(x, y - 0.5, view)
    u_x, u_y = (right[0] - left[0]) / params.pitch_ratio, (below[0] - above[0]) / params.pitch_ratio
    v_x, v_y = (right[1] - left[1]) / params.pitch_ratio, (below[1] - above[1]) / params.pitch_ratio
    corners = [(u_x[at], u_y[at], v_x[at], v_y[at]) for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))]
    passed: dict[tuple[float, float], Floats] = {}
    seen: dict[str, list[Wave]] = {}
    for colour in "RGB":
        h_u, h_v, coefficient = series(params, colour)
        slowest = np.min([np.hypot(h_u * a + h_v * c, h_u * b + h_v * d) for a, b, c, d in corners], axis=0)
        weight = 2 * params.artistic_gain * np.abs(coefficient)
        # A lens passes more at half of the lowest frequency at a corner than anywhere in the frame.
        most = weight * np.exp(-2 * np.pi**2 * params.lens_sigma_px**2 * (slowest / 2) ** 2)
        found = []
        for index in np.flatnonzero(most > _LEAST_AMPLITUDE):
            n, m = float(h_u[index]), float(h_v[index])
            if (n, m) not in passed:
                passed[n, m] = transfer(n * u_x + m * v_x, n * u_y + m * v_y, params.lens_sigma_px)
            amplitude = weight[index] * passed[n, m]
            found.append((float(np.abs(amplitude).max()), Wave((n, m), float(np.angle(coefficient[index])), amplitude)))
        least = max(_LEAST_AMPLITUDE, _LEAST_SHARE * max((peak for peak, _ in found), default=0.0))
        seen[colour] = [wave for peak, wave in found if peak > least]
    return seen


def mask_at(x: Plane, y: Plane, params: MoireParams, seen: list[Wave]) -> Plane:
    """Display mask of one colour at screen positions in sensor px that span the frame: mean 1, not negative."""
    # Two whole pixels are a period of every layout. They are dropped first: the cosine of a small float32 angle
    # is exact enough, of a large one not.
    u = x * np.float32(0.5 / params.pitch_ratio)
    u += np.float32(params.phase_x_cyc / 2)
    u -= np.rint(u)
    v = y * np.float32(0.5 / params.pitch_ratio)
    v += np.float32(params.phase_y_cyc / 2)
    v -= np.rint(v)
    mask = np.ones(u.shape, np.float32)
    angle = np.empty_like(mask)
    for wave in seen:
        turn_u, turn_v = (4 * np.pi * harmonic for harmonic in wave.harmonic)
        cv2.addWeighted(u, turn_u, v, turn_v, wave.angle, dst=angle)
        np.cos(angle, out=angle)
        if float(np.ptp(wave.amplitude)) < _EVEN:
            cv2.scaleAdd(angle, float(wave.amplitude.mean()), mask, dst=mask)
            continue
        amplitude = cv2.resize(wave.amplitude.astype(np.float32), mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
        cv2.accumulateProduct(angle, amplitude, mask)
    return np.maximum(mask, 0, out=mask)


def mask_light(x: Plane, y: Plane, params: MoireParams, view: View) -> Plane:
    """Display mask as each photosite of a mosaic sees it (H, W)."""
    height, width = x.shape
    mask = np.empty((height, width), np.float32)
    seen = waves(params, view, width, height)
    for (row, column), colour in cfa_sites(params.cfa):
        site = np.s_[row::2, column::2]
        if mask[site].size:
            mask[site] = mask_at(x[site], y[site], params, seen[colour])
    return mask


def content_light(image_lin: Image, x: Plane, y: Plane, params: MoireParams, zoom: float) -> Plane:
    """The displayed image without its mask, as each photosite of a mosaic sees it (H, W)."""
    height, width = x.shape
    shown = display(image_lin, params.pitch_ratio * zoom)
    span_px = width / zoom, height / zoom
    mosaic = np.empty((height, width), np.float32)
    lit = {colour: apertures(params, colour) for colour in "RGB"}
    # Lens, photosite (a box of 1 px) and aperture, as one Gaussian of the same variance, in screen pixels.
    blur = (params.lens_sigma_px**2 + 1 / 12) / params.pitch_ratio**2
    planes = {}
    for channel, colour in enumerate("RGB"):
        taps_u, taps_v = (low_pass_taps(float(np.sqrt(blur + side**2 / 12))) for side in lit[colour].size)
        plane = cv2.extractChannel(shown, channel)
        planes[colour] = cv2.sepFilter2D(plane, cv2.CV_32F, taps_u, taps_v, borderType=cv2.BORDER_REPLICATE)
    for (row, column), colour in cfa_sites(params.cfa):
        site = np.s_[row::2, column::2]
        if mosaic[site].size:
            mosaic[site] = look_up(planes[colour], x[site], y[site], span_px, lit[colour].lag)
    return np.maximum(mosaic, 0, out=mosaic)


def exposed(mosaic: Plane, params: MoireParams, target: Image) -> tuple[Image, float]:
    """Photo of a mosaic at the mean luminance of the target, and the gain that led there: aliasing to near zero
    frequency shifts the mean, which a camera's metering would undo."""
    photo = demosaic(mosaic, params.cfa)
    if params.fine_loss:
        photo = without_fine_detail(photo, params.fine_loss)
    exposure = _mean_luminance(target) / max(_mean_luminance(photo), 1e-6)
    photo *= np.float32(exposure)
    return photo, exposure


def _mean_luminance(image_lin: Image) -> float:
    means = cv2.mean(image_lin)
    return float(sum(weight * mean for weight, mean in zip(LUMA_LIN, means[:3], strict=True)))


def warp(image_lin: Image, params: MoireParams) -> tuple[View, Plane, Plane, float, Image]:
    """View, screen positions before zoom, zoom, and the target: the image through the same homography and bend."""
    height, width = image_lin.shape[:2]
    view = view_of(params, width, height)
    x, y = screen_position(*sensor_grid(width, height), view)
    zoom = inscribing_zoom(x, y)
    target = look_up(image_lin, x, y, (width / zoom, height / zoom))
    return view, x, y, zoom, np.maximum(target, 0, out=target)


def realised_of(params: MoireParams, view: View, zoom: float, exposure: float) -> dict[str, object]:
    """What a record says of the geometry, and where the strongest harmonic of red shows at the frame centre."""
    h_u, h_v, coefficient = series(params, "R")
    f_x, f_y = centre_frequency(params, h_u, h_v)
    strongest = int(np.argmax(np.abs(coefficient * transfer(f_x, f_y, params.lens_sigma_px))))
    return {
        "homography": view.homography.tolist(),
        "zoom": zoom,
        "exposure": exposure,
        "alias_cyc_per_px": alias_frequencies(float(f_x[strongest]), float(f_y[strongest])),
    }


def apply_moire(image: Image, params: MoireParams, scene: Scene, rng: Rng) -> Rendered:
    """The target is the image through the same homography and bend, without display or sensor."""
    view, x, y, zoom, target = warp(image, params)
    mask = mask_light(x, y, params, view)
    mask *= content_light(image, x, y, params, zoom)
    photo, exposure = exposed(mask, params, target)
    return Rendered(photo, target, realised=realised_of(params, view, zoom, exposure))


MOIRE = Degradation(
    name="moire",
    version=3,
    params_type=MoireParams,
    sample=sample_moire,
    apply=apply_moire,
    space="linear",
    needs=frozenset(),
    source="Liu et al. 2018 (screen-camera order); Malvar et al., ICASSP 2004; ranges: UniDemoiré, AAAI 2025",
)
