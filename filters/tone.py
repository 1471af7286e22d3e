"""Light, colour, haze and structure of a picture. Taken from a copy of at most 512 px a side, made by area means."""

import cv2
import numpy as np

from pairforge.image import Pixels, Plane, luminance, pixels_to_linear

_SIDE_PX = 512
_LOW_CODE, _HIGH_CODE = 2, 253
_DARKEST_EV = -10.0
_DARK_LUMINANCE = 0.05
_PATCH_PX, _AIRLIGHT_SHARE, _LEAST_AIRLIGHT = 15, 0.001, 0.05
_LEAST_BRIGHTEST = 16
_TEXTURE_BLOCK_PX, _TEXTURE_CODES, _NOISE_MARGIN = 16, 3.0, 1.3


def small_copy(pixels: Pixels) -> Pixels:
    """The picture at 512 px on its long side, but 16 px or more on the short one, by area means; itself if smaller."""
    height, width = pixels.shape[:2]
    scale = max(_SIDE_PX / max(height, width), _TEXTURE_BLOCK_PX / min(height, width))
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return small


def clipped_shares(tiles: list[Pixels]) -> tuple[float, float]:
    """Shares of pixels with all three codes <= 2, and with one of them >= 253; from windows at full scale."""
    low = high = total = 0
    for tile in tiles:
        red, green, blue = cv2.split(tile)
        low += int(np.count_nonzero(cv2.max(cv2.max(red, green), blue) <= _LOW_CODE))
        high += int(np.count_nonzero(cv2.max(cv2.max(red, green), blue) >= _HIGH_CODE))
        total += red.size
    return low / total, high / total


def light(small: Pixels) -> tuple[float, float, float]:
    """Mean log2 luminance (EV, white is 0, nothing counts as less than -10), its spread, and the share of the dark.

    Spread is the 95th less the 5th percentile, in EV. Dark is what has less than 5 % of the luminance of white.
    """
    plane = luminance(pixels_to_linear(small))
    stops = np.log2(np.maximum(plane, np.float32(2**_DARKEST_EV)))
    low, high = np.quantile(stops[::2, ::2], (0.05, 0.95))
    return float(min(stops.mean(), 0.0)), float(high - low), float((plane < _DARK_LUMINANCE).mean())


def haze_density(small: Pixels) -> float:
    """Mean of the dark channel over the airlight: 0 clear, 1 nothing but airlight; about 1 - t of the mean scene.

    I / A of linear light, least of three channels, eroded by 15 x 15 px (He, Sun and Tang, CVPR 2009, eqs. 5 and 11).
    A is the pixel of median luminance among the 0.1 % with the highest dark channel. A tenth or so is normal for
    clear scenes, as nothing is quite black; snow, white walls, large skies and empty grey read as haze.
    """
    light_lin = pixels_to_linear(small)
    patch = np.ones((_PATCH_PX, _PATCH_PX), np.uint8)
    dark = cv2.erode(_least(light_lin), patch, borderType=cv2.BORDER_REPLICATE).ravel()
    count = max(1, round(_AIRLIGHT_SHARE * dark.size))
    brightest = np.argpartition(dark, dark.size - count)[dark.size - count :]
    found = light_lin.reshape(-1, 3)[brightest]
    airlight = found[np.argsort(found.sum(1), kind="stable")[count // 2]]
    scaled = cv2.multiply(light_lin, (*(1 / np.maximum(airlight.astype(np.float64), _LEAST_AIRLIGHT)), 0.0))
    return float(np.clip(cv2.erode(_least(scaled), patch, borderType=cv2.BORDER_REPLICATE), 0, 1).mean())


def _least(image: Plane) -> Plane:
    red, green, blue = cv2.split(image)
    least: Plane = cv2.min(cv2.min(red, green), blue)
    return least


def colour(small: Pixels) -> tuple[float, float]:
    """Colourfulness in codes (Hasler and Suesstrunk, SPIE 5007, 2003, eq. 3: 0 grey, 15 slight, 109 extreme), and the
    mean saturation (most - least) / most of the codes of pixels that have a code of 16 or more, 0..1."""
    red, green, blue = (plane.astype(np.float32) for plane in cv2.split(small))
    red_green, yellow_blue = red - green, (red + green) * np.float32(0.5) - blue
    (mean_rg, spread_rg), (mean_yb, spread_yb) = (_mean_and_spread(plane) for plane in (red_green, yellow_blue))
    colourfulness = np.hypot(spread_rg, spread_yb) + 0.3 * np.hypot(mean_rg, mean_yb)
    most, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    seen = most >= _LEAST_BRIGHTEST
    saturation = float(((most - least)[seen] / most[seen]).mean()) if seen.any() else 0.0
    return float(colourfulness), saturation


def _mean_and_spread(plane: Plane) -> tuple[float, float]:
    mean, spread = cv2.meanStdDev(plane)
    return float(mean[0, 0]), float(spread[0, 0])


def texture(small_luma: Plane, sigma_codes: float) -> float:
    """Share of blocks of 16 x 16 px whose luma has a variance of 9 codes^2 beyond white noise of `sigma_codes`.

    1.3 times the variance of the noise is taken off, as that of a block of 256 scatters by 9 %. Low where a picture is
    sky, wall, fog or out of focus. `sigma_codes` is that of the copy, after its area means.
    """
    rows, columns = (side // _TEXTURE_BLOCK_PX for side in small_luma.shape)
    inside = small_luma[: rows * _TEXTURE_BLOCK_PX, : columns * _TEXTURE_BLOCK_PX]
    means = cv2.resize(inside, (columns, rows), interpolation=cv2.INTER_AREA)
    squares = cv2.resize(inside * inside, (columns, rows), interpolation=cv2.INTER_AREA)
    return float((squares - means * means >= _TEXTURE_CODES**2 + _NOISE_MARGIN * sigma_codes**2).mean())
