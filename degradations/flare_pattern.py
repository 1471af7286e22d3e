"""The lens of a flare: its parameters, its dirty pupil, and the pattern T that the pupil scatters light into.

Source: Wu et al., "How to Train Neural Networks for Flare Removal" (ICCV 2021): |FFT(pupil)|^2 summed over
wavelengths. Deviations: the pupil is a plain amplitude (no defocus or aberration phase), so wavelengths differ by
scale alone, each divided by the scale squared (Wu's code omits this); T fades to zero at `scatter_radius_frac`; the
share of a smooth glow (roughness and coating scatter, r^-2.5) is set, not derived.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Params
from pairforge.image import Image, Plane
from pairforge.rng import Rng, log_uniform

PUPIL_PX = 1024
_PUPIL_RADIUS_PX = 215
PATTERN_PX = 640
"""Side of T; its fading radius is half of this."""
_CORE_PX = 12
"""Radius in T within which diffracted light counts as the core that a clean lens has as well."""
_LONGEST_NM = 700.0
_WAVELENGTHS_NM = np.linspace(400, _LONGEST_NM, 40)
PEAKS_NM = (620.0, 540.0, 460.0)
_SPREAD_NM = 50.0


class LensParams(Params):
    """The lens and its dirt. `aperture_blades` is their number; `aperture_roundness` 0 gives a polygon, 1 a circle;
    `coating_reflectance` is of one surface, a ghost needs two; `wipe_*` direct the
    scratches; `scatter_radius_frac` is of the long side. `source_radiance` is in units of white."""

    source_radiance: float
    aperture_blades: int
    aperture_roundness: float
    aperture_angle_deg: float
    dust_count: int
    scratch_count: int
    wipe_angle_deg: float
    wipe_spread_deg: float
    scatter_frac: float
    scatter_radius_frac: float
    glow_share: float
    ghost_count: int
    coating_reflectance: float
    veil_frac: float


def sample_lens(severity: float, rng: Rng) -> dict[str, Any]:
    return {
        "source_radiance": 10 ** (3.6 + 1.5 * severity) * log_uniform(rng, 0.7, 1.4),
        "aperture_blades": int(rng.integers(5, 10)),
        "aperture_roundness": float(rng.beta(1.2, 1.5)),
        "aperture_angle_deg": float(rng.uniform(0, 360)),
        "dust_count": round(log_uniform(rng, 8, 60)),
        "scratch_count": round(log_uniform(rng, 6, 60)),
        "wipe_angle_deg": float(rng.uniform(0, 180)),
        "wipe_spread_deg": log_uniform(rng, 3, 60),
        "scatter_frac": (0.006 + 0.06 * severity) * log_uniform(rng, 0.8, 1.25),
        "scatter_radius_frac": float(rng.uniform(0.7, 1.2)),
        "glow_share": float(rng.uniform(0.25, 0.6)),
        "ghost_count": int(rng.integers(3, 13)),
        "coating_reflectance": (0.006 + 0.016 * severity) * log_uniform(rng, 0.8, 1.25),
        "veil_frac": (0.005 + 0.035 * severity) * log_uniform(rng, 0.7, 1.4),
    }


def aperture_distance(x: Plane, y: Plane, lens: LensParams) -> Plane:
    """Distance in the metric whose unit ball is the aperture: a polygon with inscribed circle 1, or rounder."""
    polygon = np.full(np.broadcast_shapes(x.shape, y.shape), -np.inf, np.float32)
    for blade in range(lens.aperture_blades):
        angle = np.radians(lens.aperture_angle_deg) + 2 * np.pi * blade / lens.aperture_blades
        np.maximum(polygon, x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)), out=polygon)
    circle: Plane = np.sqrt(x * x + y * y)
    distance: Plane = cv2.addWeighted(polygon, 1 - lens.aperture_roundness, circle, lens.aperture_roundness, 0)
    return distance


def draw_pupil(lens: LensParams, rng: Rng) -> Plane:
    """Amplitude transmission (PUPIL_PX, PUPIL_PX) in [0, 1] of an aperture with dust and scratches."""
    axis = np.arange(PUPIL_PX, dtype=np.float32) - PUPIL_PX // 2
    distance = aperture_distance(axis[None, :], axis[:, None], lens)
    pupil: Plane = np.clip(_PUPIL_RADIUS_PX + np.float32(0.5) - distance, 0, 1)
    dirt = np.zeros((PUPIL_PX, PUPIL_PX), np.uint8)
    reach_px = 1.2 * _PUPIL_RADIUS_PX
    for _ in range(lens.dust_count):
        at = PUPIL_PX / 2 + rng.uniform(-reach_px, reach_px, 2)
        radius_px = log_uniform(rng, 0.8, 9)
        cv2.circle(dirt, _fixed(at), round(radius_px * 16), int(rng.uniform(128, 255)), -1, cv2.LINE_AA, 4)
    for _ in range(lens.scratch_count):
        segments = int(rng.integers(1, 9))
        start = PUPIL_PX / 2 + rng.uniform(-reach_px, reach_px, 2)
        heading = np.radians(lens.wipe_angle_deg + rng.normal(0, lens.wipe_spread_deg))
        turns = heading + np.cumsum(rng.normal(0, 0.1, segments))
        lengths_px = rng.uniform(10, 60, segments)
        steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * lengths_px[:, None]
        points = np.vstack([start, start + np.cumsum(steps, axis=0)])
        line = np.round(points * 16).astype(np.int32)
        opacity, width_px = int(rng.uniform(60, 220)), int(rng.integers(1, 4))
        cv2.polylines(dirt, [line], False, opacity, width_px, cv2.LINE_AA, 4)
    pupil *= np.float32(1) - dirt.astype(np.float32) * np.float32(1 / 255)
    return pupil


def _fixed(at: NDArray[np.float64]) -> tuple[int, int]:
    return round(float(at[0]) * 16), round(float(at[1]) * 16)


def diffract(pupil: Plane) -> Plane:
    """PSF of a pupil at the longest wavelength, sum 1. Its centre is the corner that the four middle pixels share,
    so that every scale about the middle of the plane keeps it there."""
    turn = np.arange(PUPIL_PX, dtype=np.float32) * np.float32(-np.pi / PUPIL_PX)
    angle = turn[None, :] + turn[:, None]
    field = cv2.dft(cv2.merge([pupil * np.cos(angle), pupil * np.sin(angle)]))
    field *= field
    psf: Plane = np.fft.fftshift(field[..., 0] + field[..., 1])
    psf /= psf.sum()
    return psf


def at_wavelength(psf: Plane, wavelength_nm: float, side_px: int = PATTERN_PX) -> Plane:
    """The middle of the PSF at a shorter wavelength (side_px, side_px): smaller by area averages, which keep its
    energy. The scale is rounded to whole source pixels."""
    taken_px = 2 * round(side_px * _LONGEST_NM / wavelength_nm / 2)
    margin_px = max((taken_px - PUPIL_PX) // 2, 0)
    if margin_px:
        psf = cv2.copyMakeBorder(psf, margin_px, margin_px, margin_px, margin_px, cv2.BORDER_CONSTANT, value=0)
    middle = np.s_[(psf.shape[0] - taken_px) // 2 : (psf.shape[0] + taken_px) // 2]
    scaled: Plane = cv2.resize(psf[middle, middle], (side_px, side_px), interpolation=cv2.INTER_AREA)
    scaled *= np.float32((taken_px / side_px) ** 2)
    return scaled


def scatter_pattern(lens: LensParams, rng: Rng) -> Image:
    """T: what reaches the sensor away from the core (PATTERN_PX, PATTERN_PX, 3), sum 1 per channel."""
    psf = diffract(draw_pupil(lens, rng))
    channels = [np.zeros((PATTERN_PX, PATTERN_PX), np.float32) for _ in PEAKS_NM]
    for wavelength_nm in _WAVELENGTHS_NM:
        scaled = at_wavelength(psf, float(wavelength_nm))
        for channel, peak_nm in zip(channels, PEAKS_NM, strict=True):
            weight = float(np.exp(-0.5 * ((wavelength_nm - peak_nm) / _SPREAD_NM) ** 2))
            if weight > 0.01:
                cv2.scaleAdd(scaled, weight, channel, dst=channel)
    axis = np.arange(PATTERN_PX, dtype=np.float32) - np.float32((PATTERN_PX - 1) / 2)
    radius_px = np.sqrt(axis[None, :] ** 2 + axis[:, None] ** 2)
    fade = np.clip(2 - radius_px * (2 / (PATTERN_PX / 2 - 1)), 0, 1)
    fade *= fade * (3 - 2 * fade)
    around_core = (1 - np.exp(-((radius_px / _CORE_PX) ** 4))) * fade
    glow = (1 + (radius_px / 8) ** 2) ** np.float32(-1.25) * fade
    glow *= np.float32(lens.glow_share / float(glow.sum()))
    for channel in channels:
        channel *= around_core
        channel *= np.float32((1 - lens.glow_share) / float(channel.sum()))
        channel += glow
    return np.dstack(channels)
