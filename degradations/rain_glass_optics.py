"""What a drop of water on glass shows: rays through spherical caps, and the light they bring.

Model: a drop is a spherical cap with footprint radius r0 and contact angle theta_c. At rho from its axis its surface
is tilted by phi = asin(rho / r0 * sin theta_c), and Snell's law turns the ray by asin(n sin phi) - phi towards the
axis; where n sin phi > 1 (phi > 48.6 degrees) it is reflected back into the drop, which makes the dark rim. Fresnel
loss of unpolarised light. Sources: Snell, Fresnel; the same rays as in Roser and Geiger (ICCV workshops 2009).

Deviations: the scene is far away against the pane; light from outside the frame is a mirrored, blurred surround; rho /
r0 is measured along the outline of drops that are no circles; of light reflected inside a drop, a share of the mean
of the photo comes out in the rim.
"""

from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Image, Plane

Values = NDArray[np.float32]
Indices = NDArray[np.int64]

WATER_INDEX = 1.333
_RIM_LIGHT = 0.2
"""Radiance of the totally reflecting rim over the mean of the photo."""
_FARTHEST = 1.3
"""Largest radius of an outline over its mean."""
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Drops:
    """One entry a drop: centre and mean radius in px, sine of the contact angle, and the outline:
    radius over mean radius is 1 + sum of wave_k cos(k psi) + wave'_k sin(k psi), k = 1 .. 4.
    """

    x: Values
    y: Values
    radius_px: Values
    sin_contact: Values
    waves: Values

    def chosen(self, which: Indices) -> "Drops":
        return Drops(*(getattr(self, each.name)[which] for each in fields(self)))


def deviation_rad(sin_tilt: Values) -> Values:
    """How far Snell's law turns a ray that leaves water through a surface of this tilt; for n sin < 1."""
    turned: Values = np.arcsin(np.minimum(np.float32(WATER_INDEX) * sin_tilt, np.float32(1))) - np.arcsin(sin_tilt)
    return turned


def transmittance(sin_tilt: Values) -> Values:
    """Fresnel share of unpolarised light that leaves water through a surface of this tilt; 0 past the critical one."""
    outer = np.minimum(np.float32(WATER_INDEX) * sin_tilt, np.float32(1))
    cos_in = np.sqrt(np.maximum(1 - sin_tilt * sin_tilt, 0))
    cos_out = np.sqrt(np.maximum(1 - outer * outer, 0))
    n = np.float32(WATER_INDEX)
    tiny = np.float32(1e-9)
    across = (n * cos_in - cos_out) / (n * cos_in + cos_out + tiny)
    along = (cos_in - n * cos_out) / (cos_in + n * cos_out + tiny)
    share: Values = 1 - np.float32(0.5) * (across * across + along * along)
    return np.where(outer < 1, share, np.float32(0)).astype(np.float32)


_TABLE = 2048


def _optics_table() -> Values:
    """(2, _TABLE + 1) over sin_tilt in [0, 1]: tangent-ready deviation in radians, and transmittance."""
    sin_tilt = np.linspace(0, 1, _TABLE + 1, dtype=np.float32)
    return np.stack([deviation_rad(sin_tilt), transmittance(sin_tilt)])


_OPTICS = _optics_table()


@dataclass(frozen=True)
class Seen:
    """What each pixel of the pane (h, w) shows: `covered` 0..1 by a drop, and the place (x, y) in px of the pane's
    grid that it sees through it, with the share of light that gets through.
    """

    covered: Plane
    x: Plane
    y: Plane
    through: Plane
    sharp_px: Plane


def look_through(drops: Drops, height: int, width: int, focal_px: float) -> Seen:
    """Trace the pixels of all drops."""
    covered = np.zeros(height * width, np.float32)
    x, y = np.zeros_like(covered), np.zeros_like(covered)
    through, sharp = np.zeros_like(covered), np.zeros_like(covered)
    reach = np.ceil(drops.radius_px * np.float32(_FARTHEST) + np.float32(0.5)).astype(np.int64)
    for each in np.unique(reach).tolist():
        dy, dx = np.mgrid[-each : each + 1, -each : each + 1]
        disc = np.hypot(dx, dy) <= each + 1
        of_size = np.flatnonzero(reach == each)
        for part in np.array_split(of_size, 1 + len(of_size) * int(disc.sum()) // _CHUNK):
            index, values = _trace(drops, part, dx[disc], dy[disc], height, width, focal_px)
            for plane, value in zip((covered, x, y, through, sharp), values, strict=True):
                plane[index] = value
    return Seen(*(plane.reshape(height, width) for plane in (covered, x, y, through, sharp)))


def _trace(
    drops: Drops, part: Indices, across: Indices, down: Indices, height: int, width: int, focal_px: float
) -> tuple[Indices, list[Values]]:
    """Pixels under drops of about one size, `across` and `down` from their centres, and what `Seen` holds of each."""
    centre_x, centre_y = np.rint(drops.x[part]), np.rint(drops.y[part])
    dx = across.astype(np.float32) + (centre_x - drops.x[part])[:, None]
    dy = down.astype(np.float32) + (centre_y - drops.y[part])[:, None]
    distance = np.sqrt(dx * dx + dy * dy)
    per = np.float32(1) / np.maximum(distance, np.float32(1e-6))
    dx *= per
    dy *= per
    edge = drops.radius_px[part][:, None] * _outline(drops.waves[part], dx, dy)
    cover = edge - distance
    cover += np.float32(0.5)
    column, row = centre_x.astype(np.int64)[:, None] + across, centre_y.astype(np.int64)[:, None] + down
    under = (cover > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    counts = np.count_nonzero(under, axis=1)
    column, row, unit_x, unit_y, cover = column[under], row[under], dx[under], dy[under], cover[under]
    np.minimum(cover, np.float32(1), out=cover)
    share = distance[under] / edge[under]
    np.minimum(share, np.float32(1), out=share)
    share *= np.repeat(drops.sin_contact[part] * np.float32(_TABLE), counts)
    share += np.float32(0.5)
    entry = share.astype(np.int32)
    turned, through = _OPTICS[0][entry], _OPTICS[1][entry]
    unit_x *= turned
    unit_y *= turned
    seen_x = _turned(column, width, unit_x, focal_px)
    seen_y = _turned(row, height, unit_y, focal_px)
    # Pixels of the scene that one pixel of the drop shows, near the axis.
    minified = np.float32((WATER_INDEX - 1) * focal_px) * drops.sin_contact[part] / drops.radius_px[part]
    row *= width
    row += column
    return row, [cover, seen_x, seen_y, through, np.repeat(minified, counts)]


def _outline(waves: Values, unit_x: Values, unit_y: Values) -> Values:
    """Radius over mean radius (n, cells) in the directions given."""
    outline: Values = np.ones_like(unit_x)
    cos_k, sin_k = unit_x, unit_y
    for k in range(4):
        if k:
            cos_k, sin_k = cos_k * unit_x - sin_k * unit_y, sin_k * unit_x + cos_k * unit_y
        outline += waves[:, 2 * k, None] * cos_k
        outline += waves[:, 2 * k + 1, None] * sin_k
    np.clip(outline, np.float32(0.5), np.float32(_FARTHEST), out=outline)
    return outline


def _turned(places: Indices, extent: int, turn_rad: Values, focal_px: float) -> Values:
    """Where in the frame, along one axis, a ray goes that is turned back by so much.

    The tangent is a Pade fraction, exact to 1 % up to 1.25 rad, where rays end.
    """
    angle: Values = np.arctan((np.arange(extent) - (extent - 1) / 2) / focal_px).astype(np.float32)[places]
    angle -= turn_rad
    np.clip(angle, np.float32(-1.25), np.float32(1.25), out=angle)
    squared = angle * angle
    tangent: Values = angle * (np.float32(15) - squared)
    squared *= np.float32(-6)
    squared += np.float32(15)
    tangent /= squared
    tangent *= np.float32(focal_px)
    tangent += np.float32((extent - 1) / 2)
    return tangent


_SCENE_STEPS = (4, 8, 16, 16)
_SURROUND_SIGMA_FRAC = 0.1


def scene_levels(image_lin: Image) -> list[Image]:
    """The photo 4, 8 and 16 times smaller, and the last one blurred until it may stand for what is off the frame."""
    levels = []
    small = image_lin
    for step in (4, 2, 2):
        height, width = small.shape[:2]
        rows, columns = max(1, height // step), max(1, width // step)
        whole = small[: rows * min(step, height), : columns * min(step, width)]
        small = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA).reshape(rows, columns, 3)
        levels.append(small)
    sigma = max(_SURROUND_SIGMA_FRAC * max(small.shape), 0.3)
    levels.append(cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_REFLECT).reshape(small.shape))
    return levels


def refracted(levels: list[Image], seen: Seen, grid_step: float, size: tuple[int, int]) -> tuple[Image, Plane]:
    """Light of the drops times cover (h, w, 3), and cover; `size` (H, W) of the photo, `grid_step` its px per cell.

    Drops that show the photo smaller take it from a smaller copy; what lies outside the frame comes from the last.
    """
    covered = seen.covered
    light = np.zeros((*covered.shape, 3), np.float32)
    chosen = np.flatnonzero(covered)
    if not len(chosen):
        return light, covered
    height, width = size
    x = (seen.x.ravel()[chosen] + np.float32(0.5)) * np.float32(width / covered.shape[1])
    y = (seen.y.ravel()[chosen] + np.float32(0.5)) * np.float32(height / covered.shape[0])
    shrink = seen.sharp_px.ravel()[chosen] * np.float32(grid_step)
    outside = (x < 0) | (y < 0) | (x > width) | (y > height)
    level = np.where(outside, 3, (shrink >= 7).astype(np.int8) + (shrink >= 14))
    mean = levels[-1].mean(axis=(0, 1), dtype=np.float64)
    colours = np.empty((len(chosen), 3), np.float32)
    for which, (small, step) in enumerate(zip(levels, _SCENE_STEPS, strict=True)):
        at = np.flatnonzero(level == which)
        if len(at):
            scale = np.float32(1 / min(step, height, width))
            colours[at] = _sample(small, x[at] * scale - np.float32(0.5), y[at] * scale - np.float32(0.5))
    through = seen.through.ravel()[chosen]
    cover = covered.ravel()[chosen]
    inner = (cover * (1 - through) * np.float32(_RIM_LIGHT))[:, None] * mean.astype(np.float32)
    colours *= (cover * through)[:, None]
    colours += inner
    light.reshape(-1, 3)[chosen] = colours
    return light, covered


def _sample(small: Image, x: Values, y: Values) -> Values:
    """Colours (n, 3) at places of a small image, mirrored outside; laid out in rows, as OpenCV limits their length."""
    columns = 4096
    rows = -(-len(x) // columns)
    maps = [np.zeros(rows * columns, np.float32) for _ in range(2)]
    for target, values in zip(maps, (x, y), strict=True):
        target[: len(values)] = values
    folded = [each.reshape(rows, columns) for each in maps]
    colours = cv2.remap(small, folded[0], folded[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    flat: Values = colours.reshape(-1, 3)[: len(x)]
    return flat


def disc_kernel(diameter: float) -> Plane:
    """Disc of this diameter in px, smooth at its edge, sum 1."""
    reach = int(np.ceil(diameter / 2))
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    distance = np.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    kernel: Plane = np.clip(np.float32(diameter / 2 + 0.5) - distance, 0, 1)
    kernel /= kernel.sum()
    return kernel
