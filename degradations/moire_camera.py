"""Moiré, second half: lens and photosite, Bayer mosaic, demosaicing, and the law of aliasing.

Demosaicing: Malvar, He, Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color
images" (ICASSP 2004).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.moire_screen import Floats
from pairforge.image import Image, Plane

# Figure 2 of Malvar et al.: green at red/blue; a colour at green, along its row; the opposite colour.
_GREEN = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]])
_ALONG = np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]])
_ACROSS = np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]])
# Response 1, 0.75 and 0 at 0, a quarter and half a cycle per px.
_FINE_OUT = np.array([-1, 4, 10, 4, -1]) / 16
_OTHER = {"R": "B", "B": "R"}
_LATTICE = np.stack(np.meshgrid(np.arange(-8, 9), np.arange(-8, 9)), axis=-1).reshape(-1, 2) / 2


def transfer(f_x: Floats | float, f_y: Floats | float, lens_sigma_px: float) -> Floats:
    """Gaussian lens times square photosite at a frequency in cycles per px."""
    lens = np.exp(-2 * np.pi**2 * lens_sigma_px**2 * (f_x * f_x + f_y * f_y))
    response: Floats = lens * np.sinc(f_x) * np.sinc(f_y)
    return response


def alias_frequencies(f_x: float, f_y: float) -> dict[str, float]:
    """Cycles per px at which a frequency appears, sampled by all, by red or blue, by green photosites.

    It is the distance to the nearest point of the lattice that repeats the spectrum: whole numbers; halves;
    halves whose sum is whole.
    """
    distance = np.hypot(_LATTICE[:, 0] - f_x, _LATTICE[:, 1] - f_y)
    whole = (_LATTICE % 1 == 0).all(axis=1)
    even = _LATTICE.sum(axis=1) % 1 == 0
    return {
        "full": float(distance[whole].min()),
        "red_blue": float(distance.min()),
        "green": float(distance[even].min()),
    }


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
    image = np.empty((*mosaic.shape, 3), np.float32)
    sites = cfa_sites(cfa)
    for (row, column), colour in sites:
        image[row::2, column::2, "RGB".index(colour)] = mosaic[row::2, column::2]
    estimate = np.empty_like(mosaic)
    for kernel, role in ((_GREEN, "green"), (_ALONG, "along"), (_ALONG.T, "across"), (_ACROSS, "opposite")):
        cv2.filter2D(mosaic, cv2.CV_32F, (kernel / 8).astype(np.float32), dst=estimate)
        for (row, column), colour in sites:
            beside = cfa[row * 2 + 1 - column]
            roles = (
                {"along": beside, "across": _OTHER[beside]}
                if colour == "G"
                else {"green": "G", "opposite": _OTHER[colour]}
            )
            if role in roles:
                image[row::2, column::2, "RGB".index(roles[role])] = estimate[row::2, column::2]
    return np.maximum(image, 0, out=image)


def without_fine_detail(image_lin: Image, share: float) -> Image:
    """Take out a share of what lies at half a cycle per px along either side; a quarter of that at half of it."""
    taps = (share * _FINE_OUT).astype(np.float32)
    taps[2] += np.float32(1 - share)
    smooth: Image = cv2.sepFilter2D(image_lin, cv2.CV_32F, taps, taps)
    return np.maximum(smooth, 0, out=smooth)


def low_pass_taps(sigma: float) -> NDArray[np.float32]:
    """Taps whose response up to half a cycle per sample is that of a Gaussian; sum 1.

    They are the Gaussian limited to that band, so they also hold where it is narrower than a sample.
    """
    reach = max(4, int(np.ceil(3 * sigma)))
    f = (np.arange(256) + 0.5) / 512
    response = np.exp(-2 * np.pi**2 * sigma**2 * f * f)
    taps = np.array([(response * np.cos(2 * np.pi * k * f)).mean() for k in range(-reach, reach + 1)])
    normalised: NDArray[np.float32] = (taps / taps.sum()).astype(np.float32)
    return normalised
