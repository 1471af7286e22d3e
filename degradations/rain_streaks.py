"""Opacity of rain streaks: each a disc that moves in a straight line during the exposure.

Source: a drop covers a pixel for a fraction of the exposure (Garg and Nayar, IJCV 2007). Deviations: streaks
that leave the frame come in at the other side, which keeps their density even up to the border; streaks thinner
than 1.5 px have the width of a pixel and the opacity sum of their own; wide ones are drawn on a smaller grid,
where they are up to 4.5 px wide, and enlarged (up to a third wider).
"""

from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Plane

Values = NDArray[np.float32]
Indices = NDArray[np.int64]

_MAX_OPACITY = 0.9
_THIN_PX = 1.5
_WIDE_PX = 4.5
_LAST_LEVEL = 5
_CHUNK = 1 << 16
"""Samples handled at a time: what fits into the cache of a core."""
_TABLE_HALF = 4096


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

    def chosen(self, which: NDArray[np.bool_] | Indices) -> "Streaks":
        return Streaks(*(getattr(self, each.name)[which] for each in fields(self)))


def joined(parts: list[Streaks]) -> Streaks:
    return Streaks(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Streaks)))


def rasterise(streaks: Streaks, scene_z_m: Plane, gain: float) -> Plane:
    """Opacity (H, W) in [0, 1) of all streaks in front of the scene.

    Streaks share one environment, so that their order does not matter and -ln(1 - alpha) adds up.
    """
    level = np.ceil(np.log2(np.maximum(streaks.width_px, np.float32(1e-3)) / np.float32(_WIDE_PX)))
    level = np.clip(level, 0, _LAST_LEVEL).astype(np.int64)
    top = int(level.max(initial=0))
    nearest = [scene_z_m]
    for _ in range(top):
        nearest.append(_halved(nearest[-1]))
    through: Plane | None = None
    for each in range(top, -1, -1):
        height, width = nearest[each].shape
        chosen = level == each
        if through is not None:
            through = cv2.resize(through, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width)
        if through is None or chosen.any():
            here = _transparency(_shrunk(streaks.chosen(chosen), scene_z_m, nearest[each]), nearest[each], gain)
            through = here if through is None else np.multiply(through, here, out=through)
    assert through is not None
    np.subtract(np.float32(1), through, out=through)
    return through


def _halved(z_m: Plane) -> Plane:
    """Half the size; the nearest thing around counts, so that enlarging lets no rain leak in front of it."""
    height, width = z_m.shape
    rows, columns = -(-height // 2), -(-width // 2)
    nearest: Plane = cv2.resize(
        cv2.erode(z_m, np.ones((5, 5), np.uint8)), (columns, rows), interpolation=cv2.INTER_NEAREST
    )
    return nearest.reshape(rows, columns)


def _shrunk(streaks: Streaks, full: Plane, grid: Plane) -> Streaks:
    """The same streaks on a smaller grid over the same frame; widths and lengths by the scale of the long side."""
    if full is grid:
        return streaks
    (height, width), (rows, columns) = full.shape, grid.shape
    shrink = np.float32(max(rows, columns) / max(height, width))
    return replace(
        streaks,
        x=(streaks.x + np.float32(0.5)) * np.float32(columns / width) - np.float32(0.5),
        y=(streaks.y + np.float32(0.5)) * np.float32(rows / height) - np.float32(0.5),
        width_px=streaks.width_px * shrink,
        length_px=streaks.length_px * shrink,
    )


def _transparency(streaks: Streaks, scene_z_m: Plane, gain: float) -> Plane:
    """1 - alpha (H, W). Steep streaks go row by row, the others column by column."""
    height, width = scene_z_m.shape
    thickness = np.zeros(height * width, np.float32)
    steep = np.abs(streaks.dir_y) >= np.abs(streaks.dir_x)
    _draw(streaks.chosen(steep), (height, width), (width, 1), scene_z_m, gain, thickness)
    if not steep.all():
        flat = streaks.chosen(~steep)
        turned = replace(flat, x=flat.y, y=flat.x, dir_x=flat.dir_y, dir_y=flat.dir_x)
        _draw(turned, (width, height), (1, width), scene_z_m, gain, thickness)
    np.negative(thickness, out=thickness)
    through: Plane = thickness.reshape(height, width)
    cv2.exp(through, dst=through)
    return through


def _draw(
    streaks: Streaks,
    size: tuple[int, int],
    strides: tuple[int, int],
    scene_z_m: Plane,
    gain: float,
    thickness: Values,
) -> None:
    """Add streaks, steep in an image of `size` (H, W), to `thickness`, whose rows and columns lie `strides` apart."""
    height, width = size
    slant = np.abs(streaks.dir_y)
    half_rows = np.float32(0.5) * streaks.length_px * slant
    thin = streaks.width_px < _THIN_PX
    reach = half_rows + np.where(thin, np.float32(0.5), np.float32(0.5) * streaks.width_px + 1)
    sideways = np.abs(streaks.dir_x / slant) * reach + np.float32(0.5) * streaks.width_px / slant + 2
    inside = (streaks.x > sideways) & (streaks.x < width - 1 - sideways)
    inside &= (streaks.y > reach + 1) & (streaks.y < height - 2 - reach)
    columns = np.where(thin, 2, np.ceil(streaks.width_px / slant + 1).astype(np.int64))
    rows = (np.floor(streaks.y + reach) - np.ceil(streaks.y - reach)).astype(np.int64) + 1
    hidden = streaks.z_m >= scene_z_m.min()
    kind = (columns * 2 + inside) * 2 + hidden
    flat_z = scene_z_m.ravel()
    for each in np.unique(kind).tolist():
        of_kind = np.flatnonzero(kind == each)
        count = each >> 2
        ends = np.cumsum(rows[of_kind] * count)
        splat = _splat_thin if count == 2 else _splat
        for part in np.split(of_kind, np.searchsorted(ends, np.arange(_CHUNK, ends[-1], _CHUNK))):
            if not len(part):
                continue
            first = np.ceil(streaks.y[part] - reach[part]).astype(np.int64)
            index, alpha = splat(streaks.chosen(part), first, rows[part], count, strides, gain)
            if not each & 2:
                np.remainder(index, thickness.size, out=index)
            if each & 1:
                alpha *= flat_z[index] > np.repeat(streaks.z_m[part], rows[part])
            np.add.at(thickness, index.ravel(), _thickness(alpha).ravel())


def _thickness(alpha: Values) -> Values:
    """-ln(1 - alpha) to 1 % up to 0.6 and 17 % at 0.9 (Pade); the same bits on every machine."""
    np.minimum(alpha, np.float32(_MAX_OPACITY), out=alpha)
    below = np.float32(6) - np.float32(4) * alpha
    above = np.float32(6) - alpha
    above *= alpha
    above /= below
    return above


def _rows_of(streaks: Streaks, first: Indices, rows: Indices) -> tuple[Indices, Values, Values]:
    """For every row of every streak: the row, its offset from the centre, and x of the axis there."""
    step = np.arange(int(rows.sum()))
    step -= np.repeat(np.cumsum(rows) - rows, rows)
    offset = step.astype(np.float32)
    offset += np.repeat(first.astype(np.float32) - streaks.y, rows)
    step += np.repeat(first, rows)
    axis = offset * np.repeat(streaks.dir_x / streaks.dir_y, rows)
    axis += np.repeat(streaks.x, rows)
    return step, offset, axis


def _splat_thin(
    streaks: Streaks, first: Indices, rows: Indices, columns: int, strides: tuple[int, int], gain: float
) -> tuple[Indices, Values]:
    """Index and opacity (2, rows) of the pixels around the axis, row by row; the sum over a streak is exact."""
    major, offset, axis = _rows_of(streaks, first, rows)
    half = np.float32(0.5) * streaks.length_px * np.abs(streaks.dir_y)
    total = np.float32(gain * np.pi / 4) * streaks.strength * np.square(streaks.width_px)
    np.abs(offset, out=offset)
    covered = np.repeat(half + np.float32(0.5), rows)
    covered -= offset
    np.minimum(covered, np.repeat(np.minimum(2 * half, np.float32(1)), rows), out=covered)
    np.maximum(covered, np.float32(0), out=covered)
    covered *= np.repeat(total / (2 * half), rows)
    left = np.floor(axis)
    axis -= left
    index = np.empty((2, len(major)), np.int64)
    index[0] = left
    index[0] *= strides[1]
    major *= strides[0]
    index[0] += major
    np.add(index[0], strides[1], out=index[1])
    alpha = np.empty((2, len(major)), np.float32)
    np.multiply(covered, axis, out=alpha[1])
    np.subtract(covered, alpha[1], out=alpha[0])
    return index, alpha


def _splat(
    streaks: Streaks, first: Indices, rows: Indices, columns: int, strides: tuple[int, int], gain: float
) -> tuple[Indices, Values]:
    """Index and opacity (columns, rows) of the pixels across each row of each streak."""
    major, offset, axis = _rows_of(streaks, first, rows)
    leftmost = np.ceil(axis - np.float32(0.5 * columns))
    edge = leftmost - np.repeat(streaks.x, rows)
    a, b = np.repeat(streaks.dir_y, rows), np.repeat(streaks.dir_x, rows)
    per_radius = np.repeat(np.float32(2) / streaks.width_px, rows)
    # Position across the streak of the left edge of each pixel, in radii, and of the right edge of the last.
    start = (offset * b - (edge - np.float32(0.5)) * a) * per_radius
    edges = np.arange(columns + 1, dtype=np.float32)[:, None] * (-a * per_radius)
    edges += start
    area = half_chord_integral(edges)
    alpha = area[1:] - area[:-1]
    strength = np.repeat(np.float32(gain) * streaks.strength, rows)
    length = np.repeat(streaks.length_px, rows)
    # Here still in square radii, and of one sign; well inside a streak its opacity is twice its chord by its length.
    to_chord = np.float32(-1) / (per_radius * per_radius * a)
    lean = np.float32(0.5 * columns + 0.5) * np.abs(b) + np.maximum(np.float32(1) / per_radius, np.float32(0.5))
    ends = np.flatnonzero(np.abs(offset / a) + lean > np.float32(0.5) * length)
    chord = alpha[:, ends] * to_chord[ends]
    along = np.arange(columns, dtype=np.float32)[:, None] * b[ends]
    along += offset[ends] * a[ends] + edge[ends] * b[ends]
    alpha *= np.float32(2) * strength * to_chord / length
    alpha[:, ends] = streak_alpha(along, chord, length[ends]) * strength[ends]
    major *= strides[0]
    major += leftmost.astype(np.int64) * strides[1]
    return major + np.arange(0, columns * strides[1], strides[1])[:, None], alpha


def _chord_table() -> Values:
    unit = np.linspace(-1.0, 1.0, 2 * _TABLE_HALF + 1)
    return (0.5 * (unit * np.sqrt(1.0 - unit * unit) + np.arcsin(unit))).astype(np.float32)


_CHORDS = _chord_table()


def half_chord_integral(across: Values) -> Values:
    """Integral of the half chord sqrt(1 - n^2) of a unit disc from its centre to `across`, which it overwrites."""
    across *= np.float32(_TABLE_HALF)
    across += np.float32(_TABLE_HALF + 0.5)
    np.clip(across, 0, 2 * _TABLE_HALF + np.float32(0.5), out=across)
    integral: Values = _CHORDS[across.astype(np.int32)]
    return integral


def streak_alpha(along_px: Values, half_chord_px: Values, length_px: Values) -> Values:
    """Share of the exposure for which a moving disc covers a point: overlap of its chord with its path.

    The chord is averaged across the pixel by the caller; chords below a pixel are spread over one, with
    their sum kept, so that streaks thinner or shorter than a pixel lose nothing.
    """
    spread = np.maximum(half_chord_px, np.float32(0.5))
    half = np.float32(0.5) * length_px
    alpha: Values = np.minimum(along_px + spread, half)
    alpha -= np.maximum(along_px - spread, -half)
    np.maximum(alpha, np.float32(0), out=alpha)
    spread *= length_px
    alpha *= half_chord_px
    alpha /= spread
    return alpha
