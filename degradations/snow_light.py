"""Light of falling snow, found in the photo, and the veil and flakes laid over it."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Depth
from degradations.haze_medium import TWILIGHT_CHROMA, twilight_of
from pairforge.image import Image, Plane, luminance

_AMBIENT_CHROMA = 0.2
_AT_NIGHT = 1.0
"""Light of flakes over that of white things where the sky is darker: lamps light both."""
_VEIL_AT_NIGHT, _VEIL_WITHOUT_SKY = 0.25, 0.7
"""Least light of the veil over that of white things."""
_SHADED = 0.35
"""What the shaded side of flakes lacks before a bright sky."""
_SKY_FLOOR = 0.3
"""Least transmission of the veil for sky at the top of the frame: snow ends at the cloud."""


def veil_transmission(depth: Depth, rows: slice, beta_per_m: float, start_m: float) -> Plane:
    """exp(-beta * ray length beyond `start_m`) of some rows; sky keeps a share that grows towards the frame's top."""
    height, width = depth.z_m.shape
    x = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)) / np.float32(depth.focal_px)
    y = (np.arange(height, dtype=np.float32)[rows] - np.float32((height - 1) / 2)) / np.float32(depth.focal_px)
    ray = (1 + x * x)[None, :] + (y * y)[:, None]
    np.sqrt(ray, out=ray)
    ray *= depth.z_m[rows]
    ray -= np.float32(start_m)
    np.maximum(ray, np.float32(0), out=ray)
    ray *= np.float32(-beta_per_m)
    transmission: Plane = cv2.exp(ray, ray)
    elevation = 1 - (np.arange(height, dtype=np.float32)[rows] + np.float32(0.5)) / height
    floor = depth.sky[rows] * (np.float32(_SKY_FLOOR) * elevation)[:, None]
    np.maximum(transmission, floor, out=transmission)
    return transmission


@dataclass(frozen=True)
class Light:
    """Linear light (3,) of flakes before what is not sky, and of the veil; what flakes have of the first over the
    frame (H, W), about 1.
    """

    of_flakes: NDArray[np.float32]
    of_veil: NDArray[np.float32]
    local: Plane


def light_of(image_lin: Image, sky: Plane, albedo: float) -> Light:
    """Light of flakes and veil, from the photo.

    A flake lit by the sky is as bright as white paper there. Without sky in the frame that is the photo's 97th
    percentile, or its mean over 0.25 (grey world, at most 1) where nothing in it is white. With sky it is the sky's
    light, or the 97th percentile of the rest where that is brighter, as under lamps; before a bright sky flakes are
    seen from below, on their shaded side. Most hue is taken out: it snows from grey skies; but in twilight the veil
    has that of the sky, its only light. A part follows a wide blur of the photo, so that flakes near a lamp are
    brighter than elsewhere.
    """
    height, width = image_lin.shape[:2]
    scale = min(1.0, 64 / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: Image = cv2.resize(image_lin, size, interpolation=cv2.INTER_AREA)
    bright = luminance(small)
    small_sky = cv2.resize(sky, size, interpolation=cv2.INTER_AREA)
    in_sky = small_sky > 0.8
    has_sky = bool(in_sky.mean() >= 0.03)
    rest = bright[~in_sky] if has_sky and not in_sky.all() else bright
    white = float(np.quantile(rest, 0.97))
    if not has_sky:
        white = max(white, min(4 * float(bright.mean(dtype=np.float64)), 1.0))
    pool = small[in_sky if has_sky else bright >= np.quantile(bright, 0.9)]
    colour, grey = _mean_colour(pool, _AMBIENT_CHROMA)
    twilight = twilight_of(bright) if has_sky else 0.0
    of_air, _ = _mean_colour(pool, _AMBIENT_CHROMA + (TWILIGHT_CHROMA - _AMBIENT_CHROMA) * twilight)
    level = max(grey, _AT_NIGHT * white) if has_sky else white
    veil = max(grey, _VEIL_AT_NIGHT * white) if has_sky else _VEIL_WITHOUT_SKY * white
    near = cv2.GaussianBlur(bright, (0, 0), 0.1 * max(size))
    near /= np.float32(max(float(near.mean(dtype=np.float64)), 1e-6))
    local = np.float32(0.7) + np.float32(0.3) * np.minimum(near, np.float32(4))
    if has_sky:
        shaded = 1 - np.float32(_SHADED * min(grey / level, 1.0)) * small_sky
        np.minimum(local, shaded, out=local, where=small_sky > 0.5)
    local = cv2.resize(local, (width, height), interpolation=cv2.INTER_LINEAR)
    return Light(colour * np.float32(albedo * level), of_air * np.float32(veil), local)


def _mean_colour(pixels: Image, chroma: float) -> tuple[NDArray[np.float32], float]:
    """Mean of pixels (n, 3) with that share of its hue, of luminance 1; and their luminance."""
    colour = pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
    grey = max(float(luminance(colour[None, None])[0, 0]), 1e-6)
    return np.float32(1 - chroma) + np.float32(chroma / grey) * colour, grey


def over(image_lin: Image, transmission: Plane, light: Light, thickness: Plane, rows: slice, out: Image) -> Plane:
    """Write the photo behind its veil behind the flakes to `out`; all but `light` are these rows.

    Returns the opacity of the flakes.
    """
    clear: Plane = cv2.exp(-thickness)
    alpha = np.float32(1) - clear
    seen = transmission * clear
    veil = np.subtract(clear, seen, out=clear)
    glow = alpha * light.local[rows]
    planes = []
    for channel, plane in enumerate(cv2.split(image_lin)):
        plane *= seen
        cv2.scaleAdd(veil, float(light.of_veil[channel]), plane, plane)
        planes.append(cv2.scaleAdd(glow, float(light.of_flakes[channel]), plane, plane))
    cv2.merge(planes, out)
    return alpha
