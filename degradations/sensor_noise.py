"""Noise of a camera: photosites, Bayer mosaic, demosaicking, and the light of a photo with all that in it.

Sources: the lambda_shot, lambda_read noise law: Brooks et al., CVPR 2019, equations 1-6. Row noise: Wei et al.
(ELD), CVPR 2020. Luma of a mosaic by one linear filter: Alleysson, Susstrunk, Herault, IEEE TIP 2005.

Deviations. Only the noise is mosaicked, demosaicked and smoothed: these steps are linear here, so this equals the full
pipeline minus the resolution loss of a second demosaicing of a photo that already had one. They work on noise of
unit variance, as denoisers behind a variance-stabilising transform do, so that noise of a bright area does not
bleed into a dark one; its strength follows from the light at the output pixel. Shot and read noise are one draw,
whose mean, variance and skewness are those of their sum. Quantisation of the converter is left out: it lies below the
read noise in the sampled range.
"""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.noise_draws import GAUSSIAN_FROM_ELECTRONS, draw_normal, draw_shot
from degradations.sensor import RGB_TO_YCC, SensorParams, bands, camera_matrices
from pairforge.image import Image, Plane
from pairforge.rng import Rng, rng_for

# Passes up to a quarter of the sampling frequency, stops half of it, where a mosaic carries its colour.
_LUMA_TAPS = np.array([-1, 2, 6, 2, -1], np.float32) / np.float32(8)
_PRNU_TILE_PX = 1024
BAND_ROWS = 32
_LEAST_VARIANCE = 1e-12


def mosaic(raw: Image) -> Plane:
    """RGGB samples (H, W) of camera raw."""
    plane: Plane = cv2.extractChannel(raw, 1)
    plane[0::2, 0::2] = raw[0::2, 0::2, 0]
    plane[1::2, 1::2] = raw[1::2, 1::2, 2]
    return plane


@cache
def _prnu_tile() -> Plane:
    """Unit-variance pattern, twice side by side."""
    tile = draw_normal((_PRNU_TILE_PX, _PRNU_TILE_PX), rng_for(0, "prnu"))
    doubled = np.concatenate([tile, tile], axis=1)
    doubled.setflags(write=False)
    return doubled


@lru_cache(maxsize=64)
def _prnu_corner(camera_id: int) -> tuple[int, int]:
    top, left = rng_for(0, "prnu", camera_id).integers(_PRNU_TILE_PX, size=2)
    return int(top), int(left)


def prnu_pattern(camera_id: int, rows: slice, width: int) -> Plane:
    """Unit-variance gain pattern of rows of one camera, the same for every image; repeats after 1024 px.

    Cameras share one tile, of white noise, and begin at places of their own.
    """
    tile, (first, left) = _prnu_tile(), _prnu_corner(camera_id)
    top = (first + rows.start) % _PRNU_TILE_PX
    if top + rows.stop - rows.start <= _PRNU_TILE_PX and width <= _PRNU_TILE_PX:
        return tile[top : top + rows.stop - rows.start, left : left + width]
    y = (first + np.arange(rows.start, rows.stop)) % _PRNU_TILE_PX
    x = (left + np.arange(width)) % _PRNU_TILE_PX
    wrapped: Plane = tile[y[:, None], x]
    return wrapped


def draw_noise(
    electrons: Plane, params: SensorParams, rng: Rng, top: int = 0, out: Plane | None = None
) -> tuple[Plane, Plane]:
    """Noise of photosites (H, W), not clipped, over its expected sd without patterns; and that sd in electrons, not 0.

    Gets mean counts, 0 or more, and uses them up: an electron is `shot_var`. Var = shot_var * x + read_var per
    photosite, plus row and gain patterns. `top` is the row of the sensor that the photosites begin at.
    """
    height, width = electrons.shape
    pattern = np.empty_like(electrons)
    gain = prnu_pattern(params.camera_id, slice(top, top + height), width)
    cv2.multiply(electrons, gain, pattern, params.prnu_sd)
    pattern += np.float32(params.row_sd / params.shot_var) * rng.standard_normal((height, 1), np.float32)
    variance = electrons + np.float32(max(params.read_var / params.shot_var**2, _LEAST_VARIANCE))
    sd = np.sqrt(variance)
    # One draw for e Poisson and r^2 Gaussian: a Poisson count of (e + r^2)^3 / e^2 has the skewness of their sum.
    variance *= sd
    electrons += np.float32(_LEAST_VARIANCE)
    noise = draw_shot(np.divide(variance, electrons, out=variance), rng)
    pattern /= sd
    return np.add(noise, pattern, out=out), sd


def poisson_share(electrons: Plane) -> float:
    """Share of photosites whose shot noise is Poisson rather than Gaussian."""
    return np.count_nonzero(electrons < np.float32(GAUSSIAN_FROM_ELECTRONS)) / electrons.size


def _luma_taps(sharpen_amount: float) -> NDArray[np.float32]:
    """One axis of the luma filter of a mosaic, after an unsharp mask of 1 px along that axis."""
    smooth = np.convolve(_LUMA_TAPS, cv2.getGaussianKernel(7, 1.0, cv2.CV_32F)[:, 0])
    return (np.pad(_LUMA_TAPS, 3) * (1 + sharpen_amount) - smooth * sharpen_amount).astype(np.float32)


class _Residue:
    """Unit noise of a mosaic, filled in bands: its photosites (H, W), and its chroma, a pixel per 2 x 2 cell."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        height, width = (side + side % 2 for side in size)
        self._even = np.empty((height, width), np.float32)
        self.cells = np.empty((height // 2, width // 2, 3), np.float32)
        self._memory = [np.empty((BAND_ROWS // 2, width // 2), np.float32) for _ in range(4)]

    @property
    def samples(self) -> Plane:
        return self._even[: self.size[0], : self.size[1]]

    def fill_cells(self, rows: slice) -> None:
        """Colour of the cells of rows of samples, less its luma."""
        height, width = self.size
        # Reflection about the border pixel keeps the phase of the mosaic.
        if width % 2:
            self._even[rows, width] = self._even[rows, max(width - 2, 0)]
        if rows.stop % 2:
            self._even[height] = self._even[max(height - 2, 0)]
        cells = self.cells[rows.start // 2 : -(-rows.stop // 2)]
        pairs = self._even.reshape(-1, self._even.shape[1] // 2, 2)[rows.start : rows.start + 2 * len(cells)]
        red, first, second, blue = planes = [plane[: len(cells)] for plane in self._memory]
        cv2.split(pairs[0::2], planes[:2])
        cv2.split(pairs[1::2], planes[2:])
        green = cv2.addWeighted(first, 0.5, second, 0.5, 0, first)
        luma = cv2.addWeighted(red, 0.5, blue, 0.5, 0, second)
        cv2.addWeighted(luma, 0.5, green, 0.5, 0, luma)
        for colour in (red, green, blue):
            colour -= luma
        cv2.merge((red, green, blue), cells)


def _develop_noise(residue: _Residue, params: SensorParams) -> tuple[Plane, Image]:
    """Luma (H, W) and smoothed chroma at half size; uses up the residue."""
    if params.chroma_nr_px > 0:
        cv2.GaussianBlur(residue.cells, (0, 0), params.chroma_nr_px / 2, residue.cells)
    taps = _luma_taps(params.sharpen_amount)
    luma: Plane = cv2.sepFilter2D(residue.samples, -1, taps, taps)
    return luma.reshape(residue.size), residue.cells


def _enlarge(cells: Image, rows: slice, memory: Image) -> Image:
    """Rows of an image from cells of 2 x 2 px, linear between their centres; in memory of a few rows more."""
    # One more cell on each side, so that bands meet without a seam.
    first, last = max(rows.start // 2 - 1, 0), min(-(-rows.stop // 2) + 1, len(cells))
    enlarged = memory[: 2 * (last - first)]
    cv2.resize(cells[first:last], enlarged.shape[1::-1], enlarged, interpolation=cv2.INTER_LINEAR)
    return enlarged[rows.start - 2 * first : rows.stop - 2 * first]


def _noisy_bands(raw: Image, luma: Plane, cells: Image, params: SensorParams) -> Iterator[tuple[slice, Image]]:
    """Balanced raw with its noise, of unit variance so far, in bands; the next band is written over the last."""
    height, width = luma.shape
    to_camera, to_rgb = camera_matrices(params)
    gains = np.array([[params.red_gain], [1.0], [params.blue_gain]])
    variance = np.hstack([np.diagflat(gains * params.shot_var), gains**2 * params.read_var]).astype(np.float32)
    luma_of_raw = cv2.gemm(RGB_TO_YCC[:1], to_rgb, 1, None, 0)
    tall = min(BAND_ROWS, height)
    memory = np.empty((tall + 4, 2 * cells.shape[1], 3), np.float32)
    sds, parts = np.empty((tall, width, 3), np.float32), np.empty((tall, width), np.float32)
    for rows in bands(height, BAND_ROWS):
        grey = luma[rows]
        sd, part = sds[: len(grey)], parts[: len(grey)]
        cv2.transform(raw[rows], variance, sd)
        if to_camera.min() < 0:
            cv2.threshold(sd, 0, 0, cv2.THRESH_TOZERO, sd)
        np.sqrt(sd, out=sd)
        noisy = _enlarge(cells, rows, memory)[:, :width]
        cv2.multiply(grey, cv2.transform(sd, luma_of_raw, part), part)
        cv2.multiply(sd, noisy, noisy)
        cv2.add(noisy, cv2.cvtColor(part, cv2.COLOR_GRAY2RGB, sd), noisy)
        cv2.add(noisy, raw[rows], noisy)
        yield rows, noisy


def photograph(
    expose: Callable[[slice, Image], object],
    develop: Callable[[Image, Image], object],
    size: tuple[int, int],
    params: SensorParams,
    rng: Rng,
    strength: Plane | None = None,
) -> tuple[Image, float]:
    """Image of noisy camera raw, and the share of photosites whose shot noise is Poisson.

    `expose` fills a band with white-balanced camera raw of these rows, `develop` makes an image of noisy raw, which it
    may use up, in a band. `strength` (H, W) multiplies the noise.
    Chroma has the strength that raw noise has in every channel; noise of luma is grey, of the luma of that raw noise.
    """
    raw, residue = np.empty((*size, 3), np.float32), _Residue(size)
    to_electrons = np.full((BAND_ROWS, size[1]), 1 / params.shot_var, np.float32)
    to_electrons[0::2, 0::2] /= np.float32(params.red_gain)
    to_electrons[1::2, 1::2] /= np.float32(params.blue_gain)
    dim = []
    for rows in bands(size[0], BAND_ROWS):
        expose(rows, raw[rows])
        electrons = mosaic(raw[rows])
        electrons *= to_electrons[: len(electrons)]
        cv2.threshold(electrons, 0, 0, cv2.THRESH_TOZERO, electrons)
        if rows.start % (4 * BAND_ROWS) == 0:
            dim.append(poisson_share(electrons[:2]))
        draw_noise(electrons, params, rng, rows.start, residue.samples[rows])
        residue.fill_cells(rows)
    luma, cells = _develop_noise(residue, params)
    if strength is not None:
        luma *= strength
        at_cells = cv2.resize(strength, (cells.shape[1], cells.shape[0]), interpolation=cv2.INTER_AREA)
        cells *= cv2.cvtColor(at_cells, cv2.COLOR_GRAY2RGB)
    for rows, noisy in _noisy_bands(raw, luma, cells, params):
        develop(noisy, raw[rows])
    return raw, float(np.mean(dim))
