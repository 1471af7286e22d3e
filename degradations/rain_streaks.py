"""Opacity of rain streaks: each a disc that moves in a straight line during the exposure.

Source: a drop covers a pixel for a fraction of the exposure (Garg and Nayar, IJCV 2007). Deviation: streaks
that leave the frame come in at the other side, which keeps their density even up to the border.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pairforge.image import Plane

Values = NDArray[np.float32]

_MAX_OPACITY = 0.9
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Streaks:
    """One entry a drop: centre, unit direction, width and length in px, distance in m, and the factor on
    its opacity (1: a sharp drop).
    """

    x: Values
    y: Values
    dir_x: Values
    dir_y: Values
    width_px: Values
    length_px: Values
    z_m: Values
    strength: Values


def rasterise(streaks: Streaks, scene_z_m: Plane, gain: float) -> Plane:
    """Opacity (H, W) in [0, 1) of all streaks in front of the scene.

    Streaks share one environment, so that their order does not matter and -ln(1 - alpha) adds up.
    """
    height, width = scene_z_m.shape
    thickness = np.zeros(height * width, np.float32)
    steep = np.abs(streaks.dir_y) >= np.abs(streaks.dir_x)
    along = np.where(steep, np.abs(streaks.dir_y), np.abs(streaks.dir_x))
    columns = np.ceil((streaks.width_px + 1.0) / along).astype(np.int64) + 1
    columns = np.where(columns > 8, np.ceil(columns / 8) * 8, columns).astype(np.int64)
    rows = np.ceil(streaks.length_px * along + streaks.width_px + 3.0).astype(np.int64)
    flat_z = scene_z_m.ravel()
    for is_steep in (True, False):
        for count in np.unique(columns[steep == is_steep]):
            chosen = np.flatnonzero((steep == is_steep) & (columns == count))
            ends = np.cumsum(rows[chosen] * count)
            for part in np.split(chosen, np.searchsorted(ends, np.arange(_CHUNK, ends[-1], _CHUNK))):
                if len(part):
                    _splat(streaks, part, rows[part], int(count), is_steep, flat_z, gain, thickness, width)
    alpha: Plane = (1.0 - np.exp(-thickness)).astype(np.float32).reshape(height, width)
    return alpha


def _splat(
    streaks: Streaks,
    chosen: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: int,
    steep: bool,
    flat_z: Values,
    gain: float,
    thickness: Values,
    width: int,
) -> None:
    """Add streaks to `thickness`, row by row along their long axis, `columns` pixels across it."""
    height = thickness.size // width
    centre_major, centre_minor = (streaks.y, streaks.x) if steep else (streaks.x, streaks.y)
    dir_major, dir_minor = (streaks.dir_y, streaks.dir_x) if steep else (streaks.dir_x, streaks.dir_y)
    owner = np.repeat(chosen, rows)
    first = np.floor(centre_major[chosen] - 0.5 * rows + 1.0).astype(np.int64)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(rows) - rows, rows)
    major = np.repeat(first, rows) + step
    offset = (major - centre_major[owner]).astype(np.float32)
    a, b = dir_major[owner], dir_minor[owner]
    axis = centre_minor[owner] + offset * b / a
    minor = np.ceil(axis - 0.5 * columns).astype(np.int64)
    edge = (minor - centre_minor[owner]).astype(np.float32)[:, None] + (
        np.arange(columns + 1, dtype=np.float32) - np.float32(0.5)
    )
    across = (offset[:, None] * b[:, None] - edge * a[:, None]).astype(np.float32, copy=False)
    along = offset[:, None] * a[:, None] + (edge[:, :-1] + np.float32(0.5)) * b[:, None]
    along = along.astype(np.float32, copy=False)
    radius = (0.5 * streaks.width_px[owner])[:, None]
    area = half_chord_integral(across, radius)
    chord = (np.abs(np.diff(area, axis=1)) / np.abs(a)[:, None]).astype(np.float32, copy=False)
    alpha = streak_alpha(along, chord, streaks.length_px[owner][:, None])
    alpha *= (np.float32(gain) * streaks.strength[owner])[:, None]
    np.minimum(alpha, np.float32(_MAX_OPACITY), out=alpha)

    minor_all = minor[:, None] + np.arange(columns)
    if steep:
        index = (major % height * width)[:, None] + minor_all % width
    else:
        index = minor_all % height * width + (major % width)[:, None]
    index = index.ravel()
    seen = flat_z[index] > np.repeat(streaks.z_m[owner], columns)
    weights = -np.log1p(-alpha).ravel() * seen
    np.add.at(thickness, index, weights)


def half_chord_integral(across_px: Values, radius_px: Values) -> Values:
    """Integral of the half chord sqrt(r^2 - n^2) of a disc from its centre to `across_px`."""
    unit = np.clip(across_px / radius_px, -1.0, 1.0)
    integral: Values = 0.5 * radius_px * radius_px * (unit * np.sqrt(1.0 - unit * unit) + np.arcsin(unit))
    return integral


def streak_alpha(along_px: Values, half_chord_px: Values, length_px: Values) -> Values:
    """Share of the exposure for which a moving disc covers a point: overlap of its chord with its path.

    The chord is averaged across the pixel by the caller; chords below a pixel are spread over one, with
    their sum kept, so that streaks thinner or shorter than a pixel lose nothing.
    """
    spread = np.maximum(half_chord_px, np.float32(0.5))
    half = 0.5 * length_px
    overlap = np.minimum(along_px + spread, half) - np.maximum(along_px - spread, -half)
    alpha: Values = np.maximum(overlap, 0.0) * (half_chord_px / (spread * length_px))
    return alpha
