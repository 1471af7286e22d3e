"""Maps of a frame that are known at nodes, and the echoes of a layer, worked out in strips of rows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from degradations.reflection_glass import NODE_PX, Echo, Nodes
from pairforge.image import Image, Plane

Colour = tuple[float, float, float]

_STRIP_PX = 64
_INSIDE = (slice(1, -1), slice(1, -1))
"""Nodes within the frame."""


def strips(height: int) -> Iterator[tuple[int, int]]:
    """Top and bottom of strips of rows, low enough for what is made on the way to stay in cache."""
    for top in range(0, height, _STRIP_PX):
        yield top, min(top + _STRIP_PX, height)


class Work:
    """Memory that strips use again and again: OpenCV takes several times as long where it has to allocate it."""

    def __init__(self) -> None:
        self._held: dict[tuple[object, ...], Image] = {}

    def take(self, use: str, *shape: int) -> Image:
        """Float32 of some shape, kept apart for each use; a later call for the same use may overwrite it."""
        key = (use, *shape)
        if key not in self._held:
            self._held[key] = np.empty(shape, np.float32)
        return self._held[key]


def enlarge(grid: Image, step_px: int, top: int, bottom: int, width: int, work: Work, use: str) -> Image:
    """Rows `top` to `bottom` of a grid enlarged bilinearly: a view; `top` is a multiple of `step_px`.

    Node (1, 1) stands for the cell of `step_px` x `step_px` at (0, 0): a grid has one cell to spare at each edge.
    """
    rows = grid[top // step_px : -(-bottom // step_px) + 2]
    height, wide = rows.shape[0] * step_px, rows.shape[1] * step_px
    large = work.take(use, height, wide, *rows.shape[2:])
    cv2.resize(rows, (wide, height), large, interpolation=cv2.INTER_LINEAR)
    return large[step_px : step_px + bottom - top, step_px : step_px + width]


def coloured(grid: Nodes, colour: Colour) -> Image:
    """(M, N, 3): a grid times one factor per channel."""
    plane = grid.astype(np.float32)
    channels: Image = cv2.merge([plane * np.float32(factor) for factor in colour])
    return channels


@dataclass(frozen=True)
class EchoMaps:
    """An echo at nodes, for a layer at some size: L becomes near * L + far * (L displaced); `near` is 1 where None."""

    at_x: Plane
    at_y: Plane
    from_x: Plane
    from_y: Plane
    near: Image | None
    far: Image
    step_px: int

    def weighed(self, weight: Image) -> "EchoMaps":
        """The result times a weight that is known at the same nodes."""
        return replace(self, near=weight, far=self.far * weight)

    def rows(self, light: Image, top: int, bottom: int, work: Work, moved: Image | None = None) -> Image:
        """Rows of the layer with its echo, in memory of `work` where none is given."""
        shape = (bottom - top, light.shape[1], 3)

        def full(grid: Image, use: str) -> Image:
            return enlarge(grid, self.step_px, top, bottom, shape[1], work, use)

        here, moved = light[top:bottom], work.take("moved", *shape) if moved is None else moved
        _take_light(light, full(self.from_x, "x"), full(self.from_y, "y"), moved)
        cv2.multiply(moved, full(self.far, "weight"), moved)
        if self.near is not None:
            here = cv2.multiply(here, full(self.near, "weight"), work.take("here", *shape))
        cv2.add(moved, here, moved)
        return moved

    def alone_at_nodes(self, light: Image) -> Image:
        """The layer without its echo at the nodes within the frame."""
        taken = np.empty_like(self.far[_INSIDE])
        _take_light(light, self.at_x[_INSIDE], self.at_y[_INSIDE], taken)
        return taken

    def at_nodes(self, light: Image) -> Image:
        """The layer with its echo, unweighed, at the nodes within the frame."""
        taken = np.empty_like(self.far[_INSIDE])
        _take_light(light, self.from_x[_INSIDE], self.from_y[_INSIDE], taken)
        taken *= self.far[_INSIDE]
        taken += self.alone_at_nodes(light)
        return taken


def _take_light(light: Image, x: Plane, y: Plane, taken: Image) -> None:
    cv2.remap(light, x, y, cv2.INTER_LINEAR, taken, cv2.BORDER_REFLECT_101)


def echo_maps(echo: Echo, tint: Colour, shrink: int) -> EchoMaps:
    """Maps for a layer that is `shrink` times smaller than the frame."""
    step_px = NODE_PX // shrink
    rows, columns = echo.ratio.shape
    at_x, at_y = np.meshgrid(*((np.arange(-1, count - 1) + 0.5) * step_px - 0.5 for count in (columns, rows)))
    maps = [at_x, at_y, at_x - echo.x_px / shrink, at_y - echo.y_px / shrink]
    planes: list[Plane] = [each.astype(np.float32) for each in maps]
    return EchoMaps(planes[0], planes[1], planes[2], planes[3], None, coloured(echo.ratio, tint), step_px)


def add_echo(light: Image, maps: EchoMaps, work: Work) -> Image:
    """The whole layer with its echo, a new image."""
    both = np.empty_like(light)
    for top, bottom in strips(light.shape[0]):
        maps.rows(light, top, bottom, work, both[top:bottom])
    return both
