"""Noise, sharpness and blocks of a picture at its own scale. Values are 8-bit codes; planes are float32.

Everything here takes tiles: one for pictures of up to 768 x 768, sixteen windows spread over larger ones, so
that the cost is bounded while pixels stay what they are. Windows start at multiples of 8 pixels from the first corner.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Pixels, Plane

_TILE_PX, _TILES_A_SIDE = 192, 4
_NOISE_BLOCK_PX = 16
_QUIET_SHARE = 0.1
_CLIPPED_SHARE = 0.01
_REBLUR_SIGMA_PX = 1.0
_LEAST_EDGE = 1.5
_GUIDE_SIGMA_PX, _EDGE_SHARE = 2.0, 0.1
_STEP_CAP_CODES = 24.0
_FLOOR_CODES2, _FLOOR_CODES = 0.25, 0.5
_IMMERKAER_SCALE = math.sqrt(math.pi / 2) / 6
_IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Directions in which edges are measured: rows, columns down and right of a pixel."""


def tiles_of(pixels: Pixels) -> list[Pixels]:
    """The picture itself, or sixteen windows of 192 x 192 (less where a side is shorter) spread evenly over it."""
    height, width = pixels.shape[:2]
    if height * width <= (_TILE_PX * _TILES_A_SIDE) ** 2:
        return [pixels]
    return [pixels[top : top + _TILE_PX, left : left + _TILE_PX] for top in _starts(height) for left in _starts(width)]


def _starts(side_px: int) -> list[int]:
    spare = side_px - _TILE_PX
    if spare <= 0:
        return [0]
    return sorted({round(spare * place / (_TILES_A_SIDE - 1)) // 8 * 8 for place in range(_TILES_A_SIDE)})


def luma_of(pixels: Pixels) -> Plane:
    """0.299 R + 0.587 G + 0.114 B of the codes, as JPEG has it, rounded to codes by OpenCV; float32, 0..255."""
    luma: Plane = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return luma


def noise_sigmas(tiles: Sequence[Pixels], lumas: Sequence[Plane]) -> tuple[float, float]:
    """Standard deviation, in codes, of white noise: of luma, and of R, G and B (root of their mean square).

    Per block of 16 x 16, sqrt(pi/2) / 6 times the mean of |I * L| (Immerkaer, CVIU 64(2), 1996, eq. 6, its sum taken
    over a block); the answer is the median over the tenth of the blocks with least structure: the variance of their
    means over 4 x 4 pixels, which hardly see the noise, so that quiet blocks are not those that chance made quiet.
    Blocks with more than 1 % of pixels at codes 0, 1, 254 or 255 in a channel are left out, since clipping cuts
    noise; where no others are left they count. Fine texture that is everywhere reads as noise, and noise that a
    codec or a resize has smoothed reads as less.
    """
    structures, clipped = [], []
    responses: list[list[NDArray[np.float32]]] = [[], [], [], []]
    for tile, luma in zip(tiles, lumas, strict=True):
        coarse = _block_means(luma, 4)
        level = _block_means(coarse, 4)
        structures.append((_block_means(coarse * coarse, 4) - level * level).ravel())
        red, green, blue = cv2.split(tile)
        least, most = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
        ends = ((least <= 1) | (most >= 254)).astype(np.float32)
        clipped.append(_block_means(ends, _NOISE_BLOCK_PX).ravel())
        for found, plane in zip(responses, (luma, red, green, blue), strict=True):
            response = cv2.filter2D(plane.astype(np.float32, copy=False), cv2.CV_32F, _IMMERKAER)
            found.append(_block_means(np.abs(response, out=response), _NOISE_BLOCK_PX).ravel())
    structure, usable = np.concatenate(structures), np.concatenate(clipped) <= _CLIPPED_SHARE
    if not usable.any():
        usable[:] = True
    quiet = np.argsort(structure[usable], kind="stable")[: math.ceil(_QUIET_SHARE * int(usable.sum()))]
    sigmas = [float(np.median(np.concatenate(found)[usable][quiet])) * _IMMERKAER_SCALE for found in responses]
    return sigmas[0], math.sqrt(sum(sigma**2 for sigma in sigmas[1:]) / 3)


def _block_means(plane: Plane, side_px: int) -> Plane:
    """Means of whole blocks; what is left over at the right and below is not used."""
    rows, columns = plane.shape[0] // side_px, plane.shape[1] // side_px
    means: Plane = cv2.resize(
        plane[: rows * side_px, : columns * side_px], (columns, rows), interpolation=cv2.INTER_AREA
    )
    return means


def sharpness(lumas: Sequence[Plane], sigma_codes: float) -> tuple[float, float]:
    """How much of its edges a picture loses to a blur of 1 px: over four directions pooled, and in the worst of them.

    With E0 the mean square of the step between neighbours and E1 the same after a Gaussian of r = 1 px, each less
    what white noise of `sigma_codes` adds to it, the value is 1 - E1 / E0. The step response of an edge of Gaussian
    width s has E in proportion to 1 / s, so a picture blurred by s px reads about 1 - s / sqrt(s^2 + r^2) (after Zhuo
    and Sim, Pattern Recognition 44(9), 2011, over all edges at once): 0.3 for 1 px, 0.1 for 2 px, 0.05 for 3 px.
    Taken near edges alone: the tenth of the pixels where the picture, smoothed, is steepest.
    0 where edges do not rise above the noise. Motion blur shows in the worst direction, which is 0 as well where the
    scene has no edges across it.
    """
    kernel = cv2.getGaussianKernel(7, _REBLUR_SIGMA_PX, cv2.CV_32F)
    blurred = [cv2.sepFilter2D(luma, cv2.CV_32F, kernel, kernel) for luma in lumas]
    edges = _edges(lumas)
    spread = np.pad(kernel.astype(np.float64) @ kernel.astype(np.float64).T, 2)
    before, after = [], []
    for step in _STEPS:
        noise = 2 * sigma_codes**2
        noise_after = noise * float((spread**2).sum() - (spread * np.roll(spread, step, (0, 1))).sum())
        own = _mean_square_step(lumas, edges, step)
        # Noise is known to a few per cent only: steps that it explains say nothing about edges.
        found = own > _LEAST_EDGE * noise + _FLOOR_CODES2
        before.append(own - noise if found else 0.0)
        after.append(min(max(_mean_square_step(blurred, edges, step) - noise_after, 0.0), before[-1]))
    if sum(before) == 0:
        return 0.0, 0.0
    worst = min((1 - lost / had if had else 0.0) for had, lost in zip(before, after, strict=True))
    return 1 - sum(after) / sum(before), worst


def _edges(lumas: Sequence[Plane]) -> list[NDArray[np.uint8]]:
    """Masks of the pixels where a copy smoothed by 2 px is steepest."""
    slopes = []
    for luma in lumas:
        smooth = cv2.GaussianBlur(luma, (0, 0), _GUIDE_SIGMA_PX)
        slopes.append(cv2.magnitude(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)))
    sampled = np.concatenate([slope[::4, ::4].ravel() for slope in slopes])
    least = float(np.quantile(sampled, 1 - _EDGE_SHARE))
    return [(slope >= least).view(np.uint8) for slope in slopes]


def _mean_square_step(planes: Sequence[Plane], masks: Sequence[NDArray[np.uint8]], step: tuple[int, int]) -> float:
    down, right = step
    total, count = 0.0, 0
    for plane, mask in zip(planes, masks, strict=True):
        height, width = plane.shape
        first = np.s_[: height - down, max(0, -right) : width - max(0, right)]
        second = np.s_[down:, max(0, right) : width - max(0, -right)]
        total += cv2.norm(plane[first], plane[second], cv2.NORM_L2SQR, mask[first])
        count += cv2.countNonZero(mask[first])
    return total / max(1, count)


def blockiness(lumas: Sequence[Plane]) -> float:
    """Mean step across the borders of 8 x 8 blocks over the mean step elsewhere; 1 where no grid stands out.

    Taken for all 8 places of the grid in each direction, the largest kept, the two directions averaged: so a grid is
    also found in a crop. Steps are capped at 24 codes, which keeps edges of the scene from outweighing blocks.
    A picture that was resized after coding has no grid of 8 and reads about 1.
    """
    ratios = []
    for axis in (0, 1):
        sums, counts = np.zeros(8), np.zeros(8)
        for luma in lumas:
            steps = cv2.absdiff(luma[1:], luma[:-1]) if axis == 0 else cv2.absdiff(luma[:, 1:], luma[:, :-1])
            means = cv2.reduce(cv2.min(steps, _STEP_CAP_CODES), 1 - axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
            sums += np.bincount(np.arange(means.size) % 8, means, 8)
            counts += np.bincount(np.arange(means.size) % 8, minlength=8)
        own: NDArray[np.float64] = sums / counts
        others = (sums.sum() - sums) / (counts.sum() - counts)
        ratios.append(float(((own + _FLOOR_CODES) / (others + _FLOOR_CODES)).max()))
    return (ratios[0] + ratios[1]) / 2
