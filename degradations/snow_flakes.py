"""Opacity of snow flakes: irregular aggregates, moved by their fall, blurred out of focus.

A bank of sprites holds aggregates at several ratios of motion and defocus to size. A flake takes the nearest
sprite and stretches it until its second moments are those of flake, path, defocus and lens together; its sum is
the projected area of the flake, whatever blurs it. Sprites are sampled for all flakes of a size at once.

Deviations: flakes are of one albedo, so that the order of those that overlap does not matter; a flake that leaves
the frame comes in at the other side, which keeps density even.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Plane
from pairforge.rng import Rng, rng_for

Values = NDArray[np.float32]
Indices = NDArray[np.int64]

AREA_RATIO = 0.5
"""Share of the disc around an aggregate that it covers."""
LENS_PX = 1.6
"""Width of a point after lens and pixel, as the diameter of a disc of the same variance."""
MAX_OPACITY = 0.97
_DEFOCUS_RATIOS = (0.0, 0.5, 1.0, 2.0, 4.0)
_MOTION_RATIOS = (0.0, 0.7, 1.4, 2.8)
_MAX_PIECES = 24
_VARIANTS = 8
_CELL_PX = 64
_CONTENT_PX = 56
_CELL_SIDES_PX = (64, 32, 16, 8)
_BOX_SIDES_PX = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 40, 52, 64, 80, 104, 128, 176)
_BLOCK = 1 << 19


@dataclass(frozen=True)
class Flakes:
    """One entry a flake: centre, unit direction of motion, diameter, length of its path and diameter of its
    defocus disc in px, distance in m, the number that chooses its shape, and the share of the exposure.
    """

    x: Values
    y: Values
    dir_x: Values
    dir_y: Values
    width_px: Values
    length_px: Values
    blur_px: Values
    z_m: Values
    shape: Indices
    exposed: Values


def rasterise(flakes: Flakes, scene_z_m: Plane) -> Plane:
    """Optical thickness -ln(1 - opacity) of all flakes in front of the scene (H, W)."""
    height, width = scene_z_m.shape
    flakes = _cut_long_paths(flakes)
    boxes = _boxes_of(flakes)
    covered = flakes.z_m > scene_z_m.min()
    key = (boxes.side * 2 + covered) * len(_CELL_SIDES_PX) + boxes.level
    thickness = np.zeros(height * width, np.float32)
    for group in np.unique(key):
        chosen = np.flatnonzero(key == group)
        side = int(boxes.side[chosen[0]])
        per_block = max(1, min(_BLOCK // side**2, 30_000))
        for start in range(0, len(chosen), per_block):
            part = chosen[start : start + per_block]
            opacity = _sample(flakes, boxes, part, side)
            at = _pixels_of(flakes, part, side, height, width)
            if covered[part[0]]:
                opacity *= scene_z_m.ravel()[at] > flakes.z_m[part][:, None]
            clear = np.subtract(np.float32(-1), opacity, out=opacity)
            clear += np.float32(2)
            weight = cv2.log(clear, clear)
            np.subtract.at(thickness, at.ravel(), weight.ravel())
    return thickness.reshape(height, width)


def _cut_long_paths(flakes: Flakes) -> Flakes:
    """A long path as a row of short ones, whose boxes hold fewer empty pixels; their opacity adds up to the same."""
    disc = np.sqrt(flakes.width_px**2 + flakes.blur_px**2 + np.float32(LENS_PX**2))
    pieces = np.maximum(np.rint(flakes.length_px / (np.float32(_MOTION_RATIOS[-1]) * disc)), 1).astype(np.int64)
    pieces = np.minimum(pieces, _MAX_PIECES)
    if len(pieces) == 0 or pieces.max() == 1:
        return flakes
    owner = np.repeat(np.arange(len(pieces)), pieces)
    share = (np.float32(1) / pieces)[owner].astype(np.float32)
    order = (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)).astype(np.float32)
    offset = flakes.length_px[owner] * ((order + np.float32(0.5)) * share - np.float32(0.5))
    values = {name: getattr(flakes, name)[owner] for name in Flakes.__dataclass_fields__}
    values["x"] = values["x"] + offset * values["dir_x"]
    values["y"] = values["y"] + offset * values["dir_y"]
    values["length_px"] = values["length_px"] * share
    values["exposed"] = values["exposed"] * share
    return Flakes(**values)


@dataclass(frozen=True)
class _Boxes:
    """Per flake: its sprite, output px per sprite px along and across its motion, level of the bank, box side."""

    cell: Indices
    along: Values
    across: Values
    level: Indices
    side: Indices


def _boxes_of(flakes: Flakes) -> _Boxes:
    soft = flakes.blur_px**2 + np.float32(LENS_PX**2)
    disc = flakes.width_px**2 + soft
    defocus = _nearest(np.sqrt(soft) / flakes.width_px, _DEFOCUS_RATIOS)
    motion = _nearest(flakes.length_px / np.sqrt(disc), _MOTION_RATIOS)
    cell = (defocus * len(_MOTION_RATIOS) + motion) * _VARIANTS + flakes.shape % _VARIANTS
    variance = np.array([_sprite_variance(q, r) for q in _DEFOCUS_RATIOS for r in _MOTION_RATIOS], np.float32)
    of_sprite = variance[cell // _VARIANTS]
    along = np.sqrt((flakes.length_px**2 / 12 + disc / 16) / of_sprite[:, 0])
    across = np.sqrt(disc / 16 / of_sprite[:, 1])
    level = np.clip(np.rint(-np.log2(np.minimum(along, across))), 0, len(_CELL_SIDES_PX) - 1).astype(np.int64)
    reach = np.array([_sprite_reach(q, r) for q in _DEFOCUS_RATIOS for r in _MOTION_RATIOS], np.float32)
    path, radius = reach[cell // _VARIANTS].T
    half_x = np.abs(flakes.dir_x) * along * path + np.hypot(flakes.dir_x * along, flakes.dir_y * across) * radius
    half_y = np.abs(flakes.dir_y) * along * path + np.hypot(flakes.dir_y * along, flakes.dir_x * across) * radius
    side = np.ceil(np.maximum(half_x, half_y) * 2).astype(np.int64) + 1
    known = np.array(_BOX_SIDES_PX)
    rounded = known[np.minimum(np.searchsorted(known, side), len(known) - 1)]
    # Beyond the list a flake gets a box of its own size, so that none is cut.
    return _Boxes(cell, along, across, level, np.maximum(rounded, np.where(side > known[-1], -(-side // 64) * 64, 0)))


def _nearest(ratio: NDArray[np.floating[Any]], known: tuple[float, ...]) -> Indices:
    return np.searchsorted((np.array(known[1:]) + np.array(known[:-1])) / 2, ratio).astype(np.int64)


def _sprite_scale(defocus: float, motion: float) -> tuple[float, float]:
    """Diameter of the aggregate and length of its path in a sprite, px."""
    path = motion * float(np.hypot(1.0, defocus))
    diameter = _CONTENT_PX / (1.2 + defocus + path)
    return diameter, path * diameter


def _sprite_variance(defocus: float, motion: float) -> tuple[float, float]:
    diameter, path = _sprite_scale(defocus, motion)
    across = diameter**2 * (1 + defocus**2) / 16
    return path**2 / 12 + across, across


def _sprite_reach(defocus: float, motion: float) -> tuple[float, float]:
    """Half its path, and the radius of what moves along it, in sprite px."""
    diameter, path = _sprite_scale(defocus, motion)
    return path / 2, diameter * (1.15 + defocus) / 2


def _sample(flakes: Flakes, boxes: _Boxes, part: Indices, side: int) -> Values:
    """Opacity (n, side * side) of flakes whose boxes have that side, from the bank."""
    level = int(boxes.level[part[0]])
    cell_px = _CELL_SIDES_PX[level]
    shrink = np.float32(cell_px / _CELL_PX)
    grid = np.arange(side, dtype=np.float32) - np.float32(side // 2)
    frac_x = (flakes.x[part] - np.floor(flakes.x[part]))[:, None]
    frac_y = (flakes.y[part] - np.floor(flakes.y[part]))[:, None]
    dir_x, dir_y = flakes.dir_x[part][:, None], flakes.dir_y[part][:, None]
    limit = np.float32(cell_px / 2 + 0.5)

    def mapped(of_x: Values, of_y: Values, origin: Values | np.float32) -> Values:
        of_columns = of_x * (grid - frac_x)
        of_rows = of_y * (grid - frac_y)
        values: Values = (of_rows[:, :, None] + of_columns[:, None, :]).reshape(len(part), side * side)
        np.clip(values, -limit, limit, out=values)
        values += origin
        return values

    # Each sprite has a border of one empty texel, where everything outside it ends.
    middle = np.float32((cell_px + 1) / 2)
    along, across = shrink / boxes.along[part][:, None], shrink / boxes.across[part][:, None]
    first_row = (boxes.cell[part] * (cell_px + 2)).astype(np.float32)[:, None]
    map_x = mapped(dir_x * along, dir_y * along, middle)
    map_y = mapped(-dir_y * across, dir_x * across, first_row + middle)
    # OpenCV limits rows and columns to 32,766.
    as_rows = (-1, side * side) if side < 180 else (-1, side)
    sampled = cv2.remap(_bank()[level], map_x.reshape(as_rows), map_y.reshape(as_rows), cv2.INTER_LINEAR)
    opacity: Values = sampled.reshape(map_x.shape)
    area = np.float32(AREA_RATIO * np.pi / 4) * flakes.width_px[part] ** 2 * flakes.exposed[part]
    opacity *= (area / (boxes.along[part] * boxes.across[part]))[:, None]
    return np.minimum(opacity, np.float32(MAX_OPACITY), out=opacity)


def _pixels_of(flakes: Flakes, part: Indices, side: int, height: int, width: int) -> Indices:
    grid = np.arange(side) - side // 2
    rows = (np.floor(flakes.y[part]).astype(np.int64)[:, None] + grid) % height * width
    columns = (np.floor(flakes.x[part]).astype(np.int64)[:, None] + grid) % width
    return (rows[:, :, None] + columns[:, None, :]).reshape(len(part), side * side)


@cache
def _bank() -> tuple[Plane, ...]:
    """Sprites one below the other at each size, motion along x; a sprite has sum 1 over texels of the first size."""
    rng = rng_for(0, "snow sprites", 1)
    aggregates = [aggregate(rng) for _ in range(2 * _VARIANTS)]
    columns: list[list[Plane]] = [[] for _ in _CELL_SIDES_PX]
    for defocus in _DEFOCUS_RATIOS:
        for motion in _MOTION_RATIOS:
            for _ in range(_VARIANTS):
                sprite = _sprite(aggregates[rng.integers(len(aggregates))], defocus, motion, rng)
                for column, side in zip(columns, _CELL_SIDES_PX, strict=True):
                    reduced = cv2.resize(sprite, (side, side), interpolation=cv2.INTER_AREA)
                    column.append(cv2.copyMakeBorder(reduced, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0.0))
    bank = tuple(np.concatenate(column) for column in columns)
    for plane in bank:
        plane.setflags(write=False)
    return bank


def aggregate(rng: Rng, side_px: int = 128) -> Plane:
    """Coverage in [0, 1] of a clump of crystals, tilted, inside the disc of diameter `side_px`.

    Crystals lie around a random walk; the level above which they cover is the one that gives AREA_RATIO.
    """
    axis = (np.arange(side_px, dtype=np.float32) + np.float32(0.5)) / np.float32(side_px / 2) - np.float32(1)
    x, y = axis[None, :], axis[:, None]
    field = np.zeros((side_px, side_px), np.float32)
    place = np.zeros(2)
    for _ in range(int(rng.integers(9, 20))):
        place = 0.75 * place + rng.normal(0.0, 0.32, 2)
        place *= min(1.0, 0.62 / max(float(np.hypot(*place)), 1e-6))
        size, arms, angle = rng.uniform(0.1, 0.26), int(rng.choice([2, 6])), rng.uniform(0, np.pi)
        dx, dy = x - np.float32(place[0]), y - np.float32(place[1])
        far = np.hypot(dx, dy) / np.float32(size)
        lobes = 1 + np.float32(0.4) * np.cos(np.float32(arms) * (np.arctan2(dy, dx) - np.float32(angle)))
        field += np.exp(-((far / lobes) ** 2))
    field *= np.clip((1 - np.hypot(x, y)) / np.float32(0.15), 0, 1)
    low, high = 0.0, float(field.max())
    goal = AREA_RATIO * np.pi / 4
    coverage = field
    for _ in range(30):
        level = 0.5 * (low + high)
        coverage = np.clip((field - np.float32(level)) / np.float32(0.6) + np.float32(0.5), 0, 1)
        low, high = (level, high) if coverage.mean() > goal else (low, level)
    return coverage


def _sprite(shape: Plane, defocus: float, motion: float, rng: Rng) -> Plane:
    diameter, path = _sprite_scale(defocus, motion)
    tilt = rng.uniform(0.75, 1.0)
    angle, other = rng.uniform(0, np.pi), rng.uniform(0, np.pi)
    source = cv2.GaussianBlur(shape, (0, 0), max(0.3, 0.4 * shape.shape[0] / diameter))
    scale = diameter / shape.shape[0]
    turn = _rotation(angle) * np.array([[1.0 / tilt**0.5], [tilt**0.5]])
    matrix = (_rotation(other)[:, :, None] * turn[None]).sum(axis=1) * scale
    centre = (_CELL_PX - 1) / 2 - matrix.sum(axis=1) * (shape.shape[0] - 1) / 2
    sprite = cv2.warpAffine(source, np.column_stack([matrix, centre]), (_CELL_PX, _CELL_PX))
    if path > 0:
        reach = np.arange(-_CELL_PX // 2, _CELL_PX // 2 + 1)
        line = np.clip(path / 2 + 0.5 - np.abs(reach), 0, min(1.0, path)).astype(np.float32)
        sprite = cv2.filter2D(sprite, -1, line[None] / line.sum(), borderType=cv2.BORDER_CONSTANT)
    if defocus > 0:
        radius = defocus * diameter / 2
        reach = np.arange(-_CELL_PX // 2, _CELL_PX // 2 + 1)
        disc = np.clip(radius + 0.5 - np.hypot(reach[None], reach[:, None]), 0, 1).astype(np.float32)
        sprite = cv2.filter2D(sprite, -1, disc / disc.sum(), borderType=cv2.BORDER_CONSTANT)
    normed: Plane = sprite / np.float32(sprite.sum(dtype=np.float64))
    return normed


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
