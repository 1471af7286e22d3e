"""Ghosts of a flare: images of the aperture by light that two surfaces of the lens reflected.

Hullin et al., "Physically-Based Real-Time Lens Flare Rendering" (SIGGRAPH 2011), in the paraxial form of Lee and
Eisemann, "Practical Real-Time Lens-Flare Rendering" (EGSR 2013): a ghost is an affine image of the pupil, centred on
the line through frame centre and source, of strength R^2 for two surfaces of reflectance R. Deviations: positions,
sizes and the circle of another element that cuts a ghost are drawn, not traced through a prescription; every ghost has
the same reflectance but for a factor 0.2 to 1.5.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from degradations.flare_pattern import PUPIL_PX, PUPIL_RADIUS_PX, LensParams
from degradations.flare_sources import Source
from pairforge.image import Image, Plane
from pairforge.rng import Rng, log_uniform

_COATINGS = ((0.4, 1.0, 0.6), (1.0, 0.45, 0.9), (1.0, 0.75, 0.35), (0.45, 0.65, 1.0))
"""Tints of what green, magenta, amber and blue anti-reflection coatings reflect."""
_REACH = 1.5
"""Half side of a ghost's box in its radii; the corner of a square aperture is at 1.42."""

_CROPPED_PX = 352


@dataclass(frozen=True)
class Ghost:
    """`position` on the line from the frame centre (0) to the source (1); `radius_frac` of the long side; `rim` is
    how much brighter its edge is than its centre, `tilt` its side away from the frame centre; a circle of `cut_radius`
    at `cut_offset` along the line cuts it, both in its own radii, as is `softness`; `scales` and `tint` per channel."""

    position: float
    radius_frac: float
    reflectance: float
    rim: float
    tilt: float
    cut_radius: float
    cut_offset: float
    softness: float
    scales: tuple[float, float, float]
    tint: tuple[float, float, float]


def draw_ghosts(lens: LensParams, rng: Rng) -> list[Ghost]:
    ghosts = []
    for _ in range(lens.ghost_count):
        red, green, blue = 1 - rng.uniform(0.3, 1.0) * (1 - np.array(_COATINGS[int(rng.integers(len(_COATINGS)))]))
        spread = rng.uniform(0.01, 0.03) * rng.choice((-1, 1))
        ghosts.append(
            Ghost(
                position=float(rng.uniform(-1.5, 0.85)),
                radius_frac=log_uniform(rng, 0.025, 0.16),
                reflectance=lens.coating_reflectance**2 * log_uniform(rng, 0.2, 1.5),
                rim=float(rng.uniform(-0.5, 0.7)),
                tilt=float(rng.uniform(-0.6, 0.6)),
                cut_radius=float(rng.uniform(1.0, 1.6)),
                cut_offset=float(rng.uniform(-0.9, 0.9)),
                softness=log_uniform(rng, 0.1, 0.45),
                scales=(1 + spread, 1.0, 1 - spread),
                tint=(float(red), float(green), float(blue)),
            )
        )
    return ghosts


def aperture_images(pupil: Plane) -> list[Plane]:
    """What the pupil lets pass (intensity) within `_REACH` of its middle, at 1, 1/2, 1/4, 1/8 and 1/16 of its size."""
    margin = (PUPIL_PX - _CROPPED_PX) // 2
    inner = np.ascontiguousarray(pupil[margin : PUPIL_PX - margin, margin : PUPIL_PX - margin])
    sizes = [cv2.multiply(inner, inner)]
    while len(sizes) < 5:
        half = sizes[-1].shape[0] // 2
        sizes.append(cv2.resize(sizes[-1], (half, half), interpolation=cv2.INTER_AREA))
    return sizes


def add_ghost(light: Image, ghost: Ghost, source: Source, apertures: list[Plane]) -> dict[str, Any]:
    """Add one ghost to `light` in place; `source` is in px of `light`. Returns the ghost's row of the ghost table."""
    height, width = light.shape[:2]
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x_px = middle_x + ghost.position * (source.x_px - middle_x)
    y_px = middle_y + ghost.position * (source.y_px - middle_y)
    radius_px = ghost.radius_frac * max(width, height)
    reach_px = radius_px * _REACH + 2
    left, right = max(int(x_px - reach_px), 0), min(int(x_px + reach_px) + 2, width)
    top, bottom = max(int(y_px - reach_px), 0), min(int(y_px + reach_px) + 2, height)
    if left < right and top < bottom:
        x = (np.arange(left, right, dtype=np.float32) - np.float32(x_px)) * np.float32(1 / radius_px)
        y = (np.arange(top, bottom, dtype=np.float32) - np.float32(y_px)) * np.float32(1 / radius_px)
        gain = source.energy * ghost.reflectance / (np.pi * radius_px**2)
        gains = [gain * tint * colour / scale**2 for tint, colour, scale in _by_channel(ghost, source)]
        length = max(float(np.hypot(source.x_px - middle_x, source.y_px - middle_y)), 1e-6)
        along = ((source.x_px - middle_x) / length, (source.y_px - middle_y) / length)
        shape = _shading(ghost, x, y, along)
        ghost_light = _image_of_aperture(ghost, apertures, (x_px - left, y_px - top), radius_px, shape.shape)
        for channel, plane in enumerate(ghost_light):
            cv2.multiply(plane, shape, dst=plane, scale=gains[channel])
        box = light[top:bottom, left:right]
        box += cv2.merge(ghost_light)
    return {
        "position": ghost.position,
        "x_px": x_px,
        "y_px": y_px,
        "radius_px": radius_px,
        "reflectance": ghost.reflectance,
        "tint": list(ghost.tint),
    }


def _by_channel(ghost: Ghost, source: Source) -> list[tuple[float, float, float]]:
    return list(zip(ghost.tint, source.colour, ghost.scales, strict=True))


def _shading(ghost: Ghost, x: Plane, y: Plane, along: tuple[float, float]) -> Plane:
    """Brightness over the box of a ghost, whose mean over a whole disc is about 1; `x`, `y` in its radii."""
    onward = (x * np.float32(along[0]))[None, :] + (y * np.float32(along[1]))[:, None]
    radius_2 = (x * x)[None, :] + (y * y)[:, None]
    shading: Plane = np.float32(ghost.rim) * radius_2
    shading += np.float32(ghost.tilt) * onward
    shading += np.float32(1 - ghost.rim / 2)
    np.maximum(shading, 0, out=shading)
    # |p - offset|^2 = |p|^2 - 2 offset p.along + offset^2
    radius_2 -= np.float32(2 * ghost.cut_offset) * onward
    radius_2 += np.float32(ghost.cut_offset**2)
    from_cut = (np.float32(ghost.cut_radius) - cv2.sqrt(radius_2).reshape(shading.shape)) * np.float32(
        0.5 / ghost.softness
    )
    from_cut += np.float32(0.5)
    np.clip(from_cut, 0, 1, out=from_cut)
    shading *= from_cut
    return shading


def _image_of_aperture(
    ghost: Ghost, apertures: list[Plane], centre: tuple[float, float], radius_px: float, size: tuple[int, ...]
) -> list[Plane]:
    """Red, green and blue image of the aperture in a box: upside down on the far side of the frame centre."""
    level = int(np.clip(np.floor(np.log2(PUPIL_RADIUS_PX / radius_px)), 0, len(apertures) - 2))
    # What is blurred by enough pixels anyway needs half of them.
    level += 0.5 * ghost.softness * PUPIL_RADIUS_PX / 2 ** (level + 1) > 1.2
    drawn_px = PUPIL_RADIUS_PX / 2**level
    sigma_px = max(0.5 * ghost.softness * drawn_px, 0.5 * drawn_px / radius_px)
    aperture = cv2.GaussianBlur(apertures[level], (0, 0), sigma_px)
    middle = (aperture.shape[0] - 1) / 2
    planes = []
    for scale in ghost.scales:
        step = drawn_px / (radius_px * scale) * (1 if ghost.position >= 0 else -1)
        matrix = np.array([[step, 0, middle - step * centre[0]], [0, step, middle - step * centre[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        planes.append(cv2.warpAffine(aperture, matrix, (size[1], size[0]), flags=flags).reshape(size))
    return planes
