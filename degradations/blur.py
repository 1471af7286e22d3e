"""What all blur shares: convolution, highlights, and the kernels of a path and of an aperture.

Camera shake is in blur_motion.py, defocus in blur_defocus.py, kernels of the super-resolution literature in
blur_web.py, clips in temporal_blur.py.

Optical blur works in linear light, where light adds up. Clipped highlights are expanded before they are
spread, because a lamp that the photo stores as 1 was many times brighter, and compressed again after.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Image, Plane

Psf = NDArray[np.float32]

_DIRECT_AREA = 128
"""Up to this area OpenCV sums float kernels tap by tap and skips zeros; above it switches to tiled FFTs."""
_DIRECT_TAPS = 190
_NO_HIGHLIGHT = 0.5
"""Where the factor of highlights differs from 1 by less than 0.06 %."""
_LAST = 65535
_STRIP_VALUES = 1 << 15
"""Values of a plane that are worked on at once, so that the passes of a strip stay in cache."""


def convolve(image: Image, psf: Psf) -> Image:
    """True convolution of every channel with an odd-sized PSF, borders mirrored (reflect-101); a new array.

    Small or thin kernels tap by tap, the others by FFT; which one follows from the kernel alone.
    """
    if psf.size == 1:
        return image.copy()
    pieces, blurred = _pieces(psf), np.empty_like(image)
    if pieces:
        _convolve_by_taps(image, blurred, pieces, psf.shape)
        return blurred
    transform, plane = _Transform(image.shape[0], image.shape[1], psf), np.empty(image.shape[:2], np.float32)
    for channel in range(image.shape[2]):
        cv2.extractChannel(image, channel, plane)
        cv2.insertChannel(transform.blur(plane), blurred, channel)
    return blurred


def convolve_planes(planes: Sequence[Plane], psf: Psf) -> None:
    """`convolve` of planes of one size, in place."""
    if psf.size == 1:
        return
    pieces = _pieces(psf)
    if pieces:
        for plane in planes:
            _convolve_by_taps(plane, plane, pieces, psf.shape)
        return
    height, width = planes[0].shape
    transform = _Transform(height, width, psf)
    for plane in planes:
        plane[...] = transform.blur(plane)


@dataclass(frozen=True)
class _Piece:
    """Part of a flipped kernel, small enough to be summed tap by tap, and where it lies in the kernel."""

    weights: Psf
    top: int
    left: int

    def holds(self, row: int, column: int) -> bool:
        """Whether a place of the kernel lies in this part."""
        height, width = self.weights.shape
        return bool(0 <= row - self.top < height and 0 <= column - self.left < width)


def _pieces(psf: Psf) -> list[_Piece]:
    """The kernel in parts, or nothing where an FFT costs less than so many taps."""
    kernel = np.ascontiguousarray(psf[::-1, ::-1])
    rows, columns = (np.flatnonzero(kernel.any(axis=axis)) for axis in (1, 0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    if right - left > _DIRECT_AREA:
        return []
    at_once = _DIRECT_AREA // (right - left)
    pieces = [
        _Piece(np.ascontiguousarray(kernel[top : min(top + at_once, int(rows[-1]) + 1), left:right]), top, left)
        for top in range(int(rows[0]), int(rows[-1]) + 1, at_once)
    ]
    return pieces if np.count_nonzero(kernel) + 10 * len(pieces) <= _DIRECT_TAPS else []


def _convolve_by_taps(image: Image, blurred: Image, pieces: Sequence[_Piece], side: tuple[int, ...]) -> None:
    """`blurred` may be the image itself."""
    height, width = image.shape[:2]
    up, across = side[0] // 2, side[1] // 2
    if len(pieces) == 1 and pieces[0].holds(up, across):
        middle = (across - pieces[0].left, up - pieces[0].top)
        cv2.filter2D(image, -1, pieces[0].weights, blurred, middle, borderType=cv2.BORDER_REFLECT_101)
        return
    padded = np.empty((height + 2 * up, width + 2 * across, *image.shape[2:]), np.float32)
    cv2.copyMakeBorder(image, up, up, across, across, cv2.BORDER_REFLECT_101, padded)
    at_once = max(16, 2 * _STRIP_VALUES // width)
    work = np.empty((at_once + side[0] - 1, *padded.shape[1:]), np.float32)
    for top in range(0, height, at_once):
        strip = blurred[top : top + at_once]
        for index, piece in enumerate(pieces):
            tall, wide = strip.shape[0] + piece.weights.shape[0] - 1, width + piece.weights.shape[1] - 1
            under = padded[top + piece.top : top + piece.top + tall, piece.left : piece.left + wide]
            part = work[:tall, :wide]
            cv2.filter2D(under, -1, piece.weights, part, (0, 0))
            part = part[: strip.shape[0], :width]
            if index:
                cv2.add(strip, part, strip)
            else:
                strip[...] = part


class _Transform:
    """A PSF in the frequency domain, for planes of one size, with the memory to work in."""

    def __init__(self, height: int, width: int, psf: Psf) -> None:
        self.up, self.across = psf.shape[0] // 2, psf.shape[1] // 2
        rows, columns = _fft_size(height + 2 * self.up), _fft_size(width + 2 * self.across)
        self.transfer = np.zeros((rows, columns), np.float32)
        self.transfer[: psf.shape[0], : psf.shape[1]] = psf
        cv2.dft(self.transfer, self.transfer)
        self.work = np.empty((rows, columns), np.float32)

    def blur(self, plane: Plane) -> Plane:
        """A view of memory that the next call overwrites."""
        (height, width), (rows, columns), work = plane.shape, self.work.shape, self.work
        bottom, right = rows - height - self.up, columns - width - self.across
        cv2.copyMakeBorder(plane, self.up, bottom, self.across, right, cv2.BORDER_REFLECT_101, work)
        cv2.dft(work, work)
        cv2.mulSpectrums(work, self.transfer, 0, work)
        cv2.dft(work, work, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT)
        return work[2 * self.up : 2 * self.up + height, 2 * self.across : 2 * self.across + width]


def _fft_size(least: int) -> int:
    """A multiple of 4 whose other factors are 2, 3 and 5: odd sizes take a slow path."""
    size = int(cv2.getOptimalDFTSize(least))
    while size % 4:
        size = int(cv2.getOptimalDFTSize(size + 1))
    return size


def normalised(weights: NDArray[np.float32] | NDArray[np.float64]) -> Psf:
    """Weights divided by their sum."""
    total = weights.sum(dtype=np.float64)
    psf: Psf = (weights / total).astype(np.float32)
    return psf


# Highlights


def expand_highlights(image_lin: Image, gain: float) -> Image:
    """Multiply by up to `gain` where all channels near 1, as clipping left them; a new array.

    The factor is (1 - b m^8)^(-1/8) with m = min(R, G, B) and b = 1 - gain^-8: below m = 0.7 it is under
    1.01, at m = 1 it is `gain`. It is the inverse of a soft clip, so that compressing undoes it exactly.
    """
    expanded = np.empty_like(image_lin)
    cv2.merge(expand_to_planes(image_lin, gain), expanded)
    return expanded


def compress_highlights(image_lin: Image, gain: float) -> Image:
    """Undo `expand_highlights`, as a sensor clips: a factor (1 + b m^8)^(-1/8), m at most `gain`."""
    return compress_planes(_split(image_lin), gain)


def expand_to_planes(image_lin: Image, gain: float) -> list[Plane]:
    """`expand_highlights`, as red, green and blue."""
    # Planes are handed to OpenCV, which takes several times as long where it has to allocate them.
    planes = [np.empty(image_lin.shape[:2], np.float32) for _ in range(3)]
    table = expansion_table(gain)
    for source, *strip in _strips([image_lin, *planes]):
        expand_strip(source, table, strip)
    return planes


def expansion_table(gain: float) -> NDArray[np.float32]:
    """For `expand_strip`: factors over the least channel within 0 .. 1."""
    return _highlight_table(1.0, -(1 - gain**-8), gain**-8)


def expand_strip(image_lin: Image, table: NDArray[np.float32], planes: Sequence[Plane]) -> None:
    """`expand_to_planes` of a few rows, into `planes`."""
    cv2.split(image_lin, planes)
    _scale_highlights(planes, 1.0, table)


def compress_planes(planes: Sequence[Plane], gain: float) -> Image:
    """`compress_highlights` of red, green and blue, which are used up."""
    height, width = planes[0].shape
    compressed = np.empty((height, width, 3), np.float32)
    table = compression_table(gain)
    for *strip, stored in _strips([*planes, compressed]):
        compress_strip(strip, gain, table, stored)
    return compressed


def compression_table(gain: float) -> NDArray[np.float32]:
    """For `compress_strip`: factors over the least channel within 0 .. `gain`."""
    return _highlight_table(gain, 1 - gain**-8, 1.0)


def compress_strip(colours: Sequence[Plane], gain: float, table: NDArray[np.float32], out: Image) -> None:
    """`compress_planes` of a few rows, into `out`."""
    _scale_highlights(colours, gain, table)
    cv2.merge(colours, out)


def _split(image: Image) -> list[Plane]:
    planes = [np.empty(image.shape[:2], np.float32) for _ in range(image.shape[2])]
    cv2.split(image, planes)
    return planes


def _strips(arrays: Sequence[NDArray[np.float32]]) -> Iterator[list[NDArray[np.float32]]]:
    """Views of the same rows of every array, few enough rows to stay in cache."""
    height, width = arrays[0].shape[:2]
    at_once = max(1, _STRIP_VALUES // width)
    for top in range(0, height, at_once):
        yield [array[top : top + at_once] for array in arrays]


def _highlight_table(most: float, slope: float, least: float) -> NDArray[np.float32]:
    """max(least, 1 + slope m^8)^(-1/8) over m from 0 to `most`."""
    factor = np.linspace(0.0, most, _LAST + 1)
    for _ in range(3):
        factor *= factor
    factor *= slope
    factor += 1.0
    np.maximum(factor, least, out=factor)
    for _ in range(3):
        np.sqrt(factor, out=factor)
    return (1.0 / factor).astype(np.float32)


def _scale_highlights(colours: Sequence[Plane], most: float, table: NDArray[np.float32]) -> None:
    """Multiply, in place, by what the table, which ends at `most`, says of the least channel."""
    red, green, blue = colours
    least = cv2.min(cv2.min(red, green), blue)
    if float(least.max()) < _NO_HIGHLIGHT:
        return
    # Scales, rounds and clips in one pass.
    index = cv2.addWeighted(least, _LAST / most, least, 0, 0, dtype=cv2.CV_16U)
    factor = cv2.LUT(index, table, least)
    for colour in colours:
        cv2.multiply(colour, factor, colour)


# Kernels


def path_psf(points_px: NDArray[np.float64]) -> Psf:
    """PSF of a path (N, 2) in x, y: equal weights, bilinear splats, sum 1, centroid on the middle pixel."""
    points = points_px - points_px.mean(axis=0)
    radius = math.ceil(float(np.abs(points).max())) + 1
    side = 2 * radius + 1
    base = np.floor(points).astype(np.int64)
    x_frac, y_frac = (points - base).T
    start = (base[:, 1] + radius) * side + base[:, 0] + radius
    psf = np.zeros(side * side)
    for offset, weight in (
        (0, (1 - x_frac) * (1 - y_frac)),
        (1, x_frac * (1 - y_frac)),
        (side, (1 - x_frac) * y_frac),
        (side + 1, x_frac * y_frac),
    ):
        psf += np.bincount(start + offset, weight, side * side)
    return normalised(psf.reshape(side, side))


def aperture_psf(diameter_px: float, blades: int = 6, roundness: float = 1.0, angle_deg: float = 0.0) -> Psf:
    """Image of the iris: a regular polygon in a circle of `diameter_px`, edges area-sampled, sum 1.

    Below 2 px, where area sampling would soon give a single pixel, the PSF of 2 px is mixed with no blur
    at all so that the second moment still follows the diameter.
    """
    if diameter_px < 0.05:
        return np.ones((1, 1), np.float32)
    if diameter_px < 2:
        share = np.float32((diameter_px / 2) ** 2)
        psf = share * aperture_psf(2.0, blades, roundness, angle_deg)
        psf[1, 1] += 1 - share
        return psf
    oversampling = 5
    radius = math.ceil(diameter_px / 2 - 0.5)
    side = (2 * radius + 1) * oversampling
    axis = (np.arange(side, dtype=np.float32) - (side - 1) / 2) / oversampling
    rho = np.hypot(axis[None, :], axis[:, None])
    sector = 2 * np.pi / blades
    phi = np.arctan2(axis[:, None], axis[None, :]) - math.radians(angle_deg)
    polygon = math.cos(sector / 2) / np.cos(np.mod(phi, sector) - sector / 2)
    edge = (roundness + (1 - roundness) * polygon) * (diameter_px / 2)
    inside = np.clip((edge - rho) * oversampling + 0.5, 0, 1)
    psf = inside.reshape(2 * radius + 1, oversampling, 2 * radius + 1, oversampling).sum(axis=(1, 3))
    return normalised(psf)
