"""Marks on old prints, one function a class. Each draws into 8-bit planes of opacity at the size of the photo.

Lengths are shares of the short side, since a mark is as large on a print whatever the scan's resolution. Lines
thinner than a pixel are drawn one pixel wide and fainter.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.old_photo_fields import STRIP_ROWS, enlarged, fractal_field, shrink_factor, small_size
from pairforge.image import Plane
from pairforge.rng import Rng, log_uniform

Opacity = NDArray[np.uint8]
Points = NDArray[np.float64]

_SHIFT = 4
_WORK_SIDE_PX = 256
_LEVEL_CELLS = 1 << 17


@dataclass(frozen=True)
class Sparse:
    """Values at flat places of a photo; 0 elsewhere."""

    at: NDArray[np.intp]
    values: NDArray[np.float32]


NOWHERE = Sparse(np.zeros(0, np.intp), np.zeros(0, np.float32))


def draw_dust(light: Opacity, dark: Opacity, count: int, light_share: float, rng: Rng) -> None:
    """Specks of uneven outline; light ones are shadows of dust on the negative, dark ones dirt on the print."""
    height, width = light.shape
    side = min(height, width)
    corners = np.linspace(0, 2 * np.pi, 11)[:-1]
    size = np.minimum(0.0008 * np.exp(0.7 * rng.standard_normal(count)), 0.006) * side
    place = rng.random((count, 2)) * (width, height) - 0.5
    stretch = rng.uniform(0.5, 1.0, count)
    angle = rng.uniform(0, np.pi, count)
    ragged = rng.uniform(0.6, 1.25, (count, len(corners)))
    strength = rng.uniform(0.15, 1.0, count)
    is_light = rng.random(count) < light_share
    radius = np.maximum(size, 0.45)[:, None] * ragged
    along, across = radius * np.cos(corners), radius * np.sin(corners) * stretch[:, None]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    outlines = np.stack([along * cos - across * sin, along * sin + across * cos], axis=2) + place[:, None]
    # Specks below the size of a pixel keep their total.
    values = (255 * strength * np.minimum(1.0, size / 0.45) ** 2).tolist()
    for outline, value, to_light in zip(_fixed(outlines), values, is_light.tolist(), strict=True):
        cv2.fillPoly(light if to_light else dark, [outline], value, cv2.LINE_AA, _SHIFT)


def draw_hairs(light: Opacity, dark: Opacity, count: int, light_share: float, rng: Rng) -> None:
    """Fibres and hairs: thin curves that bend one way, then perhaps the other."""
    height, width = light.shape
    side = min(height, width)
    for _ in range(count):
        length = side * log_uniform(rng, 0.03, 0.2)
        steps = 24
        bend = rng.normal(0, 1.2) + 3.5 * _profile(steps, rng, 0.8)
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(bend) / steps
        start = rng.random(2) * (width, height)
        line = start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * (length / steps)
        plane = light if rng.random() < light_share else dark
        _stroke(plane, line, side * rng.uniform(0.0007, 0.0013), rng.uniform(0.35, 0.85))


def draw_scratches(light: Opacity, count: int, rng: Rng) -> None:
    """Hairlines through the emulsion: nearly straight, mostly along one direction, fading at both ends.

    What pressed changes slowly along one: a scratch grows fainter here and there, it is no row of dashes.
    """
    height, width = light.shape
    side = min(height, width)
    main = rng.uniform(-0.25, 0.25) + np.pi / 2 * (rng.random() < 0.7)
    for _ in range(count):
        length = side * log_uniform(rng, 0.03, 0.8)
        heading = main + rng.normal(0, 0.05) if rng.random() < 0.65 else rng.uniform(0, np.pi)
        steps = int(np.clip(length / 6, 16, 40))
        curve = heading + rng.normal(0, 0.12) * np.linspace(-0.5, 0.5, steps)
        line = np.cumsum(np.stack([np.cos(curve), np.sin(curve)], axis=1), axis=0) * (length / steps)
        line += rng.random(2) * (width, height) - line[steps // 2]
        ends = np.minimum(1, 1.6 * np.sin(np.linspace(0, np.pi, steps)))
        pressure = np.clip(0.65 + 0.4 * _profile(steps, rng, 0.4), 0.2, 1)
        depth = rng.uniform(0.3, 1.0) * ends * pressure
        thickness = side * log_uniform(rng, 0.0003, 0.0013)
        points, whole = _fixed(line).tolist(), max(1, round(thickness))
        values = (255 * depth * min(1.0, thickness / whole)).tolist()
        for start, end, value in zip(points[:-1], points[1:], values[:-1], strict=True):
            if value > 3:
                cv2.line(light, start, end, value, whole, cv2.LINE_AA, _SHIFT)


def draw_creases(light: Opacity, count: int, rng: Rng) -> Sparse:
    """Folds from border to border, a little bent; returns the shade beside them: brighter where paper turns to the
    light, darker on the other side.

    Along all of the fold a crack bares paper, now more, now less; where the fold is worn, emulsion broke off on both
    sides of it and the line is wider.
    """
    height, width = light.shape
    side = min(height, width)
    factor = shrink_factor(height, width, _WORK_SIDE_PX)
    y, x = (np.indices(small_size(height, width, factor), np.float32) - np.float32(0.5)) * np.float32(factor)
    shade = np.zeros_like(x)
    for _ in range(count):
        middle = rng.uniform(0.15, 0.85, 2) * (width, height)
        angle = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.1) + (rng.random() < 0.3) * rng.uniform(0.4, 1.1)
        direction = np.array([np.cos(angle), np.sin(angle)])
        normal = np.array([-direction[1], direction[0]])
        bend = rng.normal(0, 1, 2) * (0.05, 0.03)
        reach = 1.5 * max(height, width)
        steps = max(8, int(2 * reach / max(1.5, 0.0015 * side)))
        along = np.linspace(-reach, reach, steps)
        off = 0.006 * side * _profile(steps, rng, 0.62) + side * (bend[0] * (along / side) ** 2)
        off += side * bend[1] * np.sin(2.4 * along / side)
        line = middle + along[:, None] * direction + off[:, None] * normal
        inside = np.flatnonzero(
            (line > -0.1 * side).all(axis=1) & (line[:, 0] < width + 0.1 * side) & (line[:, 1] < height + 0.1 * side)
        )
        if len(inside) > 1:
            line = line[inside[0] : inside[-1] + 1]
            _draw_fold(light, line, normal, side, rng)
        far_x, far_y = x - np.float32(middle[0]), y - np.float32(middle[1])
        u = (far_x * np.float32(direction[0]) + far_y * np.float32(direction[1])) / np.float32(side)
        distance = far_x * np.float32(normal[0]) + far_y * np.float32(normal[1])
        distance -= np.float32(side * bend[0]) * u * u + np.float32(side * bend[1]) * np.sin(np.float32(2.4) * u)
        near = np.maximum(1 - np.abs(distance) / np.float32(side * rng.uniform(0.012, 0.04)), 0)
        shade += np.float32(rng.uniform(0.15, 0.35)) * np.sign(distance) * near * near
    at, _, values = _above_0(np.abs(shade), shade, factor, height, width)
    return Sparse(at, values)


def _draw_fold(light: Opacity, line: Points, normal: Points, side: float, rng: Rng) -> None:
    """Crack and worn parts as one line without gaps, in pieces too short for their steps of opacity to show."""
    steps = len(line)
    crack = rng.uniform(0.0003, 0.0006) * np.clip(1 + 0.6 * _profile(steps, rng, 0.5), 0.4, 1.8)
    lost = np.clip(_profile(steps, rng, 0.55) + rng.uniform(-0.7, 0.0), 0, 0.7)
    ragged = np.clip(1 + 0.9 * np.stack([_profile(steps, rng, 0.8) for _ in range(2)]), 0.3, 3)
    edges = side * (crack + rng.uniform(0.0015, 0.004) * lost * ragged)
    # OpenCV draws polygons about half a pixel larger than they are.
    left, right = (line + sign * (edge - 0.5)[:, None] * normal for sign, edge in zip((1, -1), edges, strict=True))
    bare = np.clip(0.5 + 0.2 * _profile(steps, rng, 0.5) + lost, 0.3, 0.95)
    size = max(2, steps // 150)
    for first in range(0, steps - 1, size):
        piece = slice(first, first + size + 1)
        width_px, opacity = float(edges[:, piece].sum(axis=0).mean()), float(bare[piece].mean())
        if width_px < 3:
            _stroke(light, line[piece], width_px, opacity)
        else:
            _fill(light, np.concatenate([left[piece], right[piece][::-1]]), 255 * opacity)


def draw_worn_border(light: Opacity, wear_frac: float, corner_count: int, rng: Rng) -> Opacity:
    """Emulsion worn off along the borders, `wear_frac` of the short side wide on average, and torn-off corners.

    Returns the opacity of what lies behind the print where it is torn off.
    """
    height, width = light.shape
    side = min(height, width)
    for length, turn in ((width, 0), (height, 1), (width, 2), (height, 3)):
        worn = np.minimum(np.maximum(0.25 + _profile(length, rng, 0.6), 0) ** 2 * 1.6, 6) * (wear_frac * side)
        deep = min(side, int(worn.max()) + 3)
        rows = np.arange(deep, dtype=np.float64)[:, None] + 0.5
        strip = np.clip(worn[None, :] - rows + 0.5, 0, 1) * 235
        target = np.rot90(light, turn)[:deep]
        np.maximum(target, strip.astype(np.uint8), out=target)
    behind = np.zeros_like(light)
    for corner in rng.permutation(4)[:corner_count]:
        far_x, far_y = side * rng.uniform(0.04, 0.14, 2)
        steps = 60
        share = np.linspace(0, 1, steps)
        edge = np.stack([far_x * (1 - share), far_y * share], axis=1)
        tear = 0.006 * side * _profile(steps, rng)
        rim = (0.003 + 0.003 * np.abs(_profile(steps, rng))) * side
        outward = np.array([far_y, far_x]) / np.hypot(far_x, far_y)
        torn = edge + tear[:, None] * outward
        paper = torn + rim[:, None] * outward
        for plane, line in ((light, paper), (behind, torn)):
            outline = np.concatenate([[[-9.0, -9.0]], [[line[0, 0], -9.0]], line, [[-9.0, line[-1, 1]]]])
            if corner & 1:
                outline[:, 0] = width - 1 - outline[:, 0]
            if corner & 2:
                outline[:, 1] = height - 1 - outline[:, 1]
            _fill(plane, outline, 255)
    return behind


def stain_density(height: int, width: int, area_frac: float, rng: Rng) -> Sparse:
    """Relative density of dried liquid, up to 1 in the dark line where its edge dried.

    `area_frac` of the photo is inside. The edge is found in a small field; its line is drawn at full size.
    """
    if area_frac == 0:
        return NOWHERE
    side = np.float32(min(height, width))
    factor = shrink_factor(height, width, _WORK_SIDE_PX)
    rows, columns = small_size(height, width, factor)
    coarse = fractal_field(rows // 2 + 1, columns // 2 + 1, 2.0, rng, 0.42)
    slope_x = cv2.Sobel(coarse, cv2.CV_32F, 1, 0, ksize=3, scale=0.0625)
    slope_y = cv2.Sobel(coarse, cv2.CV_32F, 0, 1, ksize=3, scale=0.0625)
    slope = cv2.GaussianBlur(cv2.magnitude(slope_x, slope_y), (0, 0), 1.5) + np.float32(1e-4)
    field: Plane = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    slope = cv2.resize(slope, (columns, rows), interpolation=cv2.INTER_LINEAR)
    wash: Plane = cv2.resize(fractal_field(96, 96, 6.0, rng), (columns, rows), interpolation=cv2.INTER_LINEAR)
    level = _level_above_which(field[1:-1, 1:-1], area_frac)
    # Distance from the edge, positive inside, as share of the short side.
    inside_frac: Plane = (field - level) / slope * np.float32(factor) / side
    # Where cells are few, their enlargement moves the edge: the level is found again among finer ones.
    zoom = min(factor, int((_LEVEL_CELLS / inside_frac.size) ** 0.5))
    if zoom > 1:
        fine = enlarged(inside_frac, zoom, 0, (rows - 2) * zoom, (columns - 2) * zoom)
        inside_frac -= _level_above_which(fine[: -(-height * zoom // factor), : -(-width * zoom // factor)], area_frac)
    at, depth, uneven = _above_0(inside_frac, wash, factor, height, width)
    if not len(at):
        return NOWHERE  # OpenCV refuses empty arrays.
    rim, older = np.float32(rng.uniform(0.003, 0.008)), np.float32(rng.uniform(0.03, 0.07))
    line = cv2.exp(depth * (-1 / rim)).ravel()
    second = cv2.exp(-np.square((depth - older) * (1 / (np.float32(0.8) * rim)))).ravel()
    density = np.float32(0.26) + np.clip(np.float32(0.65) + np.float32(0.3) * uneven, 0.1, 1.2) * (
        np.float32(0.7) * line + np.float32(0.2) * second
    )
    density *= np.minimum(depth * side + np.float32(0.2), np.float32(1))
    return Sparse(at, np.minimum(density, np.float32(1)))


def _level_above_which(field: Plane, share: float) -> np.float32:
    place = min(round((1 - share) * field.size), field.size - 1)
    return np.float32(np.partition(field, place, axis=None)[place])


def _above_0(
    small: Plane, other: Plane, factor: int, height: int, width: int
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """Flat places where a small field, enlarged, is above 0; its values there, and those of another field."""
    places, values, others = [np.zeros(0, np.intp)], [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for top in range(0, height, STRIP_ROWS):
        rows = min(STRIP_ROWS, height - top)
        above = np.flatnonzero((small[top // factor : (top + rows) // factor + 2] > 0).any(axis=0))
        if not len(above):
            continue
        # The columns in which it is above 0, and one cell more on either side.
        cells = slice(max(int(above[0]) - 2, 0), int(above[-1]) + 3)
        left = cells.start * factor
        columns = min((small[:, cells].shape[1] - 2) * factor, width - left)
        strip = enlarged(small[:, cells], factor, top, rows, columns)
        found = strip > 0
        y, x = np.nonzero(found)
        places.append((y + top) * width + x + left)
        values.append(strip[found])
        others.append(enlarged(other[:, cells], factor, top, rows, columns)[found])
    return np.concatenate(places), np.concatenate(values), np.concatenate(others)


def foxing_density(height: int, width: int, count: int, rng: Rng) -> Sparse:
    """Relative density of brown spots in clusters, each a dark core in a pale halo."""
    side = min(height, width)
    density = np.zeros(height * width, np.float32)
    places = [np.zeros(0, np.intp)]
    centres = rng.random((count // 7 + 1, 2)) * (width, height)
    for _ in range(count):
        near = centres[rng.integers(len(centres))] + rng.normal(0, 0.09 * side, 2)
        place = near if rng.random() < 0.7 else rng.random(2) * (width, height)
        radius = max(side * min(0.0028 * float(np.exp(0.6 * rng.standard_normal())), 0.012), 0.6)
        strength, lobes, ragged = rng.uniform(0.25, 1.0), rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.04, 0.14, 3)
        reach = int(np.ceil(radius * 3)) + 1
        left, top = (round(float(value)) - reach for value in place)
        x = np.arange(max(left, 0), min(left + 2 * reach + 1, width))
        y = np.arange(max(top, 0), min(top + 2 * reach + 1, height))[:, None]
        if not (x.size and y.size):
            continue
        dx, dy = (x - place[0]).astype(np.float32)[None], (y - place[1]).astype(np.float32)
        angle = np.arctan2(dy, dx)
        outline = np.float32(1) + sum(
            np.float32(a) * np.cos(np.float32(k + 2) * angle + np.float32(p))
            for k, (a, p) in enumerate(zip(ragged, lobes, strict=True))
        )
        far = np.hypot(dx, dy) / (np.float32(radius) * outline)
        spot = np.float32(0.7) / (1 + np.exp((far - 1) * np.float32(5)))
        spot += np.float32(0.3) * np.exp(far * far * np.float32(-1 / 2.2))
        spot *= np.float32(strength)
        at = (y * width + x)[far < 3]
        density[at] += spot[far < 3]
        places.append(at)
    at = np.unique(np.concatenate(places))
    return Sparse(at, np.minimum(density[at], np.float32(1)))


def _profile(length: int, rng: Rng, persistence: float = 0.68) -> NDArray[np.float64]:
    """Noise (length,) with octaves from a quarter of the length down to a few steps."""
    total = np.zeros(length)
    cells, weight = 4, 0.5
    while cells < max(8, length // 3):
        total += weight * np.interp(np.linspace(0, cells, length), np.arange(cells + 1), rng.normal(0, 1, cells + 1))
        cells, weight = cells * 2, weight * persistence
    return total


def _fixed(points: Points) -> NDArray[np.int32]:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


def _fill(plane: Opacity, outline: Points, value: float) -> None:
    cv2.fillPoly(plane, [_fixed(outline)], value, cv2.LINE_AA, _SHIFT)


def _stroke(plane: Opacity, line: Points, width_px: float, strength: float) -> None:
    thickness = max(1, round(width_px))
    value = 255 * strength * min(1.0, width_px / thickness)
    cv2.polylines(plane, [_fixed(line)], False, value, thickness, cv2.LINE_AA, _SHIFT)
