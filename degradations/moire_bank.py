"""Patterns for a bank of moiré: flat grey screens photographed through the model of `moire.py`.

Every pattern follows from its index and a seed alone. What tells patterns apart first is their wave vector
(cycles per frame, right and down): it follows a low-discrepancy sequence over the index, R2 of Roberts, so that
no two patterns of a bank of some thousand come close in it; tilt, lens bend, layout, fills and phases vary on top.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Pattern
from degradations.moire import (
    ALL_COLOURS,
    COLOUR_BANDS,
    DELTA_BANDS,
    PENTILE_BANDS,
    contrast_of,
    draw_screen,
    mask_light,
)
from degradations.moire_camera import demosaic
from degradations.moire_screen import MoireParams, screen_position, sensor_grid, view_of
from pairforge.rng import rng_for

_RESONANCES = (COLOUR_BANDS, PENTILE_BANDS, DELTA_BANDS, ALL_COLOURS)
_SHARES = (0.55, 0.2, 0.1, 0.15)
_SCALES = ((384, 2.0), (512, 1.0), (512, 1.5), (640, 1.5), (768, 1.0))
"""(side of the pattern in px, sensor px per px of it): photos are kept at their size or reduced."""
_FEWEST_CYCLES, _MOST_CYCLES = 6.0, 40.0
_R2 = (0.7548776662466927, 0.5698402909980532)
_FAINTEST = 5e-4
"""Contrast below which screen and resonance are drawn anew: photosites pass next to nothing of pitch 1."""
_MARGIN_PX = 4
_FULL_SCALE_RMS = 3.0
_THUMB_PX = 96
_PAIRS_CORRELATED, _BLOCK = 20_000, 128


def draw_capture(index: int, seed: int) -> tuple[MoireParams, int, float]:
    """Screen and camera of a pattern, its side in px, and sensor px per px of it. Raises ValueError below 0."""
    if index < 0:
        raise ValueError(f"index of a moiré pattern is {index}; the first is 0")
    start = rng_for(seed, "moire_bank").random(2)
    along, turn = ((start + (index + 1) * np.array(_R2)) % 1.0).tolist()
    cycles = _FEWEST_CYCLES + (_MOST_CYCLES - _FEWEST_CYCLES) * along
    rng = rng_for(seed, "moire_bank", index)
    side_px, reduction = _SCALES[int(rng.integers(len(_SCALES)))]
    radius = cycles / (side_px * reduction)
    detuning = radius * np.cos(np.pi * turn), radius * np.sin(np.pi * turn)
    contrast = 0.0
    while contrast < _FAINTEST:
        resonance = _RESONANCES[int(rng.choice(len(_RESONANCES), p=_SHARES))]
        params = draw_screen(resonance, detuning, rng)
        sigma = float(rng.uniform(0.25, 0.5))
        contrast = contrast_of(params, resonance, sigma)
    # The scale of a pattern is free, so a faint one may be raised before small harmonics are left out.
    gain = float(np.clip(0.4 / contrast, 1.0, 10.0))
    return params.model_copy(update={"lens_sigma_px": sigma, "artistic_gain": gain}), side_px, reduction


def moire_pattern_image(index: int, seed: int) -> NDArray[np.uint8]:
    """Pattern of a bank, (h, w, 3): modulation of grey, mean code 128 in every colour, a third of the range RMS.

    Equal for equal index and seed, whatever else is made before it or beside it.
    """
    params, side_px, reduction = draw_capture(index, seed)
    side = round(side_px * reduction) + 2 * _MARGIN_PX
    view = view_of(params, side, side)
    mask = mask_light(*screen_position(*sensor_grid(side, side), view), params, view)
    photo = demosaic(mask, params.cfa)[_MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX]
    if reduction != 1:
        photo = cv2.resize(photo, (side_px, side_px), interpolation=cv2.INTER_AREA)
    mean, deviation = (np.ravel(value) for value in cv2.meanStdDev(photo))
    # Each colour is modulated as a share of its mean; the strongest sets the scale of all.
    rms = float(np.sqrt(((deviation / mean) ** 2).mean()))
    scale = 127 / _FULL_SCALE_RMS / rms / mean
    codes = cv2.add(cv2.multiply(photo, (*scale, 0.0)), (*(128 - scale * mean), 0.0))
    np.rint(codes, out=codes)
    pattern: NDArray[np.uint8] = np.clip(codes, 0, 255, out=codes).astype(np.uint8)
    return pattern


class Diversity(NamedTuple):
    """The two patterns of a bank that are most alike: their correlation, their places. No pair of the bank has a
    correlation above `at_most`."""

    correlation: float
    pair: tuple[int, int]
    at_most: float


def diversity(patterns: Iterable[Pattern]) -> Diversity:
    """Highest correlation of any two patterns over all shifts.

    Compared are the patterns as a whole, reduced to 96 px by area average (with which waves up to 48 cycles per
    frame survive), every colour with its mean removed, the three colours as one vector, under every cyclic shift.
    The sum of |A| |B| over two spectra bounds that for all shifts at once; the 20,000 pairs with the highest bounds
    are correlated, and the bounds of the others count in `at_most`. Up to 200 patterns that is every pair.
    Raises ValueError for fewer than two patterns, or for a flat one.
    """
    spectra = [_spectrum(pattern, index) for index, pattern in enumerate(patterns)]
    if len(spectra) < 2:
        raise ValueError(f"diversity is about pairs; the bank holds {len(spectra)} patterns")
    firsts, seconds = np.triu_indices(len(spectra), 1)
    bounds = _bounds(spectra)
    order = np.argsort(-bounds, kind="stable")
    best, pair = -1.0, (0, 1)
    looked_at = 0
    for place in order[:_PAIRS_CORRELATED].tolist():
        if bounds[place] <= best:
            break
        first, second = int(firsts[place]), int(seconds[place])
        correlation = _shifted_correlation(spectra[first], spectra[second])
        if correlation > best:
            best, pair = correlation, (first, second)
        looked_at += 1
    rest = float(bounds[order[looked_at]]) if looked_at < len(order) else -1.0
    return Diversity(best, pair, max(best, rest))


def _spectrum(pattern: Pattern, index: int) -> NDArray[np.complex64]:
    """Half of the spectrum of a reduced pattern (96, 49, 3), weighted so that its squares sum to 1."""
    thumb = cv2.resize(pattern.astype(np.float32), (_THUMB_PX, _THUMB_PX), interpolation=cv2.INTER_AREA)
    spectrum = np.fft.rfft2(thumb - thumb.mean(axis=(0, 1)), axes=(0, 1))
    spectrum[:, 1:-1] *= np.sqrt(2)
    norm = float(np.sqrt((np.abs(spectrum) ** 2).sum()))
    if norm < 1e-3:
        raise ValueError(f"pattern {index} is flat")
    return (spectrum / norm).astype(np.complex64)


def _bounds(spectra: Sequence[NDArray[np.complex64]]) -> NDArray[np.float32]:
    """Sum of |A| |B| for every pair, in the order of `triu_indices`."""
    sizes = np.stack([np.abs(spectrum).ravel() for spectrum in spectra])
    rows: list[NDArray[np.float32]] = []
    for start in range(0, len(sizes), _BLOCK):
        block = sizes[start : start + _BLOCK] @ sizes[start:].T
        rows.extend(block[row, row + 1 :] for row in range(len(block)))
    bounds: NDArray[np.float32] = np.concatenate(rows)
    return bounds


def _shifted_correlation(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> float:
    """Highest correlation over all cyclic shifts."""
    product = (first * second.conj()).sum(axis=2)
    product[:, 1:-1] /= 2
    return float(np.fft.irfft2(product, s=(_THUMB_PX, _THUMB_PX)).max()) * _THUMB_PX**2
