"""The lens of a flare: its parameters, its dirty pupil, and the pattern T that the pupil scatters light into.

Source: Wu et al., "How to Train Neural Networks for Flare Removal" (ICCV 2021): |FFT(pupil)|^2 summed over
wavelengths. Deviations: the pupil is a plain amplitude (no defocus or aberration phase), so wavelengths differ by
scale alone, each divided by the scale squared (Wu's code omits this); T fades to zero at `scatter_radius_frac`; the
share of a smooth glow (roughness and coating scatter, r^-2.5) is set, not derived.
"""

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Params
from pairforge.image import Image, Plane
from pairforge.rng import Rng, log_uniform

PUPIL_PX = 512
"""Side of the pupil and of its PSF."""
PUPIL_RADIUS_PX = 108
"""Of the inscribed circle of the aperture."""
_DRAWN_PX = 2 * PUPIL_PX
"""The pupil is drawn at twice its size and averaged, for clean edges."""
PATTERN_PX = PUPIL_PX
"""Side of T; its fading radius is half of this."""
_CORE_PX = 7
"""Radius in T within which diffracted light counts as the core that a clean lens has as well."""
LONGEST_NM, _SHORTEST_NM = 700.0, 400.0
PEAKS_NM = (620.0, 540.0, 460.0)
_SPREAD_NM = 50.0
_BANDS, _PER_BAND = 8, 4
_MOST_SEGMENTS = 8


class LensParams(Params):
    """The lens and its dirt. `aperture_blades` is their number; `aperture_roundness` 0 gives a polygon, 1 a circle;
    `coating_reflectance` is of one surface, a ghost needs two; `wipe_*` direct the scratches;
    `scatter_radius_frac` is of the long side. `source_radiance` is in units of white; `scatter_frac` and `veil_frac`
    are of the energy of a source, `glow_share` is of the scatter."""

    source_radiance: float = Field(ge=1, le=1e7)
    aperture_blades: int = Field(ge=4, le=20)
    aperture_roundness: float = Field(ge=0, le=1)
    aperture_angle_deg: float = Field(ge=-360, le=720)
    dust_count: int = Field(ge=0, le=1000)
    scratch_count: int = Field(ge=0, le=1000)
    wipe_angle_deg: float = Field(ge=-360, le=720)
    wipe_spread_deg: float = Field(ge=0, le=180)
    scatter_frac: float = Field(ge=0, le=1)
    scatter_radius_frac: float = Field(ge=0.05, le=4)
    glow_share: float = Field(ge=0, le=1)
    ghost_count: int = Field(ge=0, le=50)
    coating_reflectance: float = Field(ge=0, le=1)
    veil_frac: float = Field(ge=0, le=1)


def sample_lens(severity: float, rng: Rng) -> dict[str, Any]:
    """More severity is a brighter source, more scatter and worse coatings. Three of ten apertures are nearly round, as
    those of phones are."""
    return {
        "source_radiance": 10 ** (3.6 + 2.2 * severity - severity**2) * log_uniform(rng, 0.7, 1.4),
        "aperture_blades": int(rng.integers(5, 10)),
        "aperture_roundness": float(rng.uniform(0.9, 1) if rng.random() < 0.3 else rng.beta(1.2, 1.5)),
        "aperture_angle_deg": float(rng.uniform(0, 360)),
        "dust_count": round(log_uniform(rng, 8, 60)),
        "scratch_count": round(log_uniform(rng, 8, 140)),
        "wipe_angle_deg": float(rng.uniform(0, 180)),
        "wipe_spread_deg": log_uniform(rng, 2.5, 40),
        "scatter_frac": (0.006 + 0.12 * severity - 0.03 * severity**2) * log_uniform(rng, 0.8, 1.25),
        "scatter_radius_frac": float(rng.uniform(0.7, 1.2)),
        "glow_share": float(rng.uniform(0.25, 0.6)),
        "ghost_count": int(rng.integers(3, 13)),
        "coating_reflectance": (0.005 + 0.01 * severity) * log_uniform(rng, 0.8, 1.25),
        "veil_frac": (0.005 + 0.035 * severity) * log_uniform(rng, 0.7, 1.4),
    }


# --- pupil


def draw_pupil(lens: LensParams, rng: Rng) -> Plane:
    """Amplitude transmission (PUPIL_PX, PUPIL_PX) in [0, 1] of an aperture with dust and scratches."""
    clear = np.full((_DRAWN_PX, _DRAWN_PX), 255, np.uint8)
    _draw_dust(clear, lens, rng)
    _draw_scratches(clear, lens, rng)
    opening = np.zeros_like(clear)
    cv2.fillPoly(opening, [aperture_outline(lens)], 255, cv2.LINE_AA, 8)
    cv2.multiply(opening, clear, dst=opening, scale=1 / 255)
    pupil: Plane = cv2.resize(opening, (PUPIL_PX, PUPIL_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    pupil *= np.float32(1 / 255)
    return pupil


def aperture_outline(lens: LensParams) -> NDArray[np.int32]:
    """Where the mean of a polygon's metric and a circle's, weighted by roundness, is 1; in 1/256 px as drawn."""
    blade_rad = 2 * np.pi / lens.aperture_blades
    within = np.linspace(-0.5, 0.5, 33)[:-1] * blade_rad
    radius_px = PUPIL_RADIUS_PX * 2 / ((1 - lens.aperture_roundness) * np.cos(within) + lens.aperture_roundness)
    blades = np.radians(lens.aperture_angle_deg) + blade_rad * np.arange(lens.aperture_blades)
    angle = (blades[:, None] + within[None, :]).ravel()
    radius_px = np.tile(radius_px, lens.aperture_blades)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius_px[:, None] + (_DRAWN_PX - 1) / 2
    return np.round(points * 256).astype(np.int32)


def _draw_dust(clear: NDArray[np.uint8], lens: LensParams, rng: Rng) -> None:
    """Specks of 0.8 to 9 px of 215, at least half opaque."""
    reach_px = 2.4 * PUPIL_RADIUS_PX
    at = np.round((_DRAWN_PX / 2 + rng.uniform(-reach_px, reach_px, (lens.dust_count, 2))) * 16).astype(int)
    radii = np.round(np.exp(rng.uniform(np.log(0.8), np.log(9), lens.dust_count)) * 16).astype(int)
    left = rng.uniform(0, 128, lens.dust_count).astype(int)
    for (x, y), radius, passed in zip(at.tolist(), radii.tolist(), left.tolist(), strict=True):
        cv2.circle(clear, (x, y), radius, passed, -1, cv2.LINE_AA, 4)


def _draw_scratches(clear: NDArray[np.uint8], lens: LensParams, rng: Rng) -> None:
    """Bent lines along the wipe, each drawn from as many numbers as the longest."""
    count, reach_px = lens.scratch_count, 2.4 * PUPIL_RADIUS_PX
    start = _DRAWN_PX / 2 + rng.uniform(-reach_px, reach_px, (count, 1, 2))
    heading = np.radians(lens.wipe_angle_deg + rng.normal(0, 1, count) * lens.wipe_spread_deg)
    turns = heading[:, None] + np.cumsum(rng.normal(0, 0.06, (count, _MOST_SEGMENTS)), axis=1)
    lengths_px = rng.uniform(15, 70, (count, _MOST_SEGMENTS))
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=2) * lengths_px[..., None]
    lines = np.round(np.concatenate([start, start + np.cumsum(steps, axis=1)], axis=1) * 16).astype(np.int32)
    points = rng.integers(2, _MOST_SEGMENTS + 2, count).tolist()
    left = rng.uniform(35, 195, count).astype(int).tolist()
    widths_px = rng.integers(1, 4, count).tolist()
    for line, taken, passed, width_px in zip(lines, points, left, widths_px, strict=True):
        cv2.polylines(clear, [line[:taken]], False, passed, width_px, cv2.LINE_AA, 4)


# --- diffraction


@cache
def _centring() -> Image:
    """Unit phasors (PUPIL_PX, PUPIL_PX, 2) that move the origin of the spectrum to the middle of the plane."""
    turn = np.arange(PUPIL_PX) * (np.pi * (PUPIL_PX - 1) / PUPIL_PX)
    angle = turn[None, :] + turn[:, None]
    phasors = np.dstack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    phasors.setflags(write=False)
    return phasors


def diffract(pupil: Plane) -> Plane:
    """PSF of a pupil at the longest wavelength, sum 1. Its centre is the corner that the four middle pixels share,
    so that every scale about the middle of the plane keeps it there."""
    field = cv2.multiply(cv2.merge([pupil, pupil]), _centring())
    cv2.dft(field, dst=field)
    cv2.multiply(field, field, dst=field)
    psf: Plane = cv2.transform(field, np.ones((1, 2), np.float32))
    psf *= np.float32(1 / max(float(psf.sum(dtype=np.float64)), 1e-12))
    return psf


def at_scale(psf: Plane, scale: float) -> Plane:
    """The PSF shrunk about the middle of the plane by `scale` <= 1, rounded to whole pairs of pixels. Area averages,
    divided by the scale squared, keep its energy."""
    side_px = 2 * round(PUPIL_PX * scale / 2)
    shrunk = cv2.resize(psf, (side_px, side_px), interpolation=cv2.INTER_AREA)
    shrunk *= np.float32((PUPIL_PX / side_px) ** 2)
    margin_px = (PUPIL_PX - side_px) // 2
    padded: Plane = cv2.copyMakeBorder(shrunk, *(margin_px,) * 4, cv2.BORDER_CONSTANT, value=0)
    return padded


def at_wavelength(psf: Plane, wavelength_nm: float) -> Plane:
    """The PSF at a wavelength up to LONGEST_NM."""
    return at_scale(psf, wavelength_nm / LONGEST_NM)


def spectral_sum(psf: Plane) -> list[Plane]:
    """PSF of the red, green and blue channel, not normalised: 32 wavelengths at equal ratios.

    The mean over the first 4 of them takes two scalings (a pair, then a pair of pairs); each of 8 bands is that
    mean, scaled.
    """
    ratio = (_SHORTEST_NM / LONGEST_NM) ** (1 / (_BANDS * _PER_BAND))
    band = cv2.addWeighted(psf, 0.5, at_scale(psf, ratio), 0.5, 0)
    band = cv2.addWeighted(band, 0.5, at_scale(band, ratio**2), 0.5, 0)
    channels = [np.zeros_like(psf) for _ in PEAKS_NM]
    for index in range(_BANDS):
        scaled = at_scale(band, ratio ** (_PER_BAND * index)) if index else band
        wavelengths_nm = LONGEST_NM * ratio ** (_PER_BAND * index + np.arange(_PER_BAND))
        for channel, peak_nm in zip(channels, PEAKS_NM, strict=True):
            response = np.exp(-0.5 * ((wavelengths_nm - peak_nm) / _SPREAD_NM) ** 2)
            weight = float((response * wavelengths_nm).sum()) / LONGEST_NM
            if weight > 0.02:
                cv2.scaleAdd(scaled, weight, channel, dst=channel)
    return channels


@cache
def _radial() -> tuple[Plane, Plane]:
    """What T keeps of a PSF by radius, and the glow, whose sum is 1."""
    axis = np.arange(PATTERN_PX) - (PATTERN_PX - 1) / 2
    radius_px = np.sqrt(axis[None, :] ** 2 + axis[:, None] ** 2)
    fade = np.clip(2 - radius_px * (2 / (PATTERN_PX / 2 - 1)), 0, 1)
    fade *= fade * (3 - 2 * fade)
    kept = ((1 - np.exp(-((radius_px / _CORE_PX) ** 4))) * fade).astype(np.float32)
    glow = (1 + (radius_px / 6) ** 2) ** -1.25 * fade
    glow = (glow / glow.sum()).astype(np.float32)
    for plane in (kept, glow):
        plane.setflags(write=False)
    return kept, glow


def scatter_pattern(pupil: Plane, lens: LensParams) -> Image:
    """T: what reaches the sensor away from the core (PATTERN_PX, PATTERN_PX, 3), sum 1 per channel."""
    kept, glow = _radial()
    channels = spectral_sum(diffract(pupil))
    for channel in channels:
        cv2.multiply(channel, kept, dst=channel)
        share = (1 - lens.glow_share) / max(float(channel.sum(dtype=np.float64)), 1e-12)
        cv2.addWeighted(channel, share, glow, lens.glow_share, 0, dst=channel)
    pattern: Image = cv2.merge(channels)
    return pattern
