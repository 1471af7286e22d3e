"""Depth without weights: a layout guessed from the pixels, for haze, rain and snow on a fresh machine.

It is not a depth network and knows no objects. It tells four layouts apart, and says which in its facts:

- `landscape`, where sky is found: ground that recedes to a horizon, everything above it at the horizon's
  distance, sky at the far limit.
- `indoor`, where long straight edges run to a point inside the frame: the inside of a box whose far end lies
  there. Streets, corridors and avenues without visible sky are such boxes too.
- `close_up`, where something in focus is surrounded by blur: near where the photo is in focus, little behind it.
- `unknown`: a smooth ramp from the bottom of the frame to its top, a little nearer in the middle.

Distance changes slowly except at the outline of the sky, and there too unless the photo has an edge in focus: a
smooth wrong depth still looks like a photograph, a cut-out does not. So it is often wrong, on purpose: a person
before a wall is no nearer than the wall. Metres are assumed, not measured. Do not use it as depth supervision.

Sources: perspective of a level pinhole camera above a plane, for the nearest distance only (beyond it distance
grows geometrically and far less than the plane's 1 / row, for what stands on the ground hides the far plane); the
room as a box around a vanishing point (Hedau, Hoiem and Forsyth, ICCV 2009), with corners rounded off; edge blur
from a re-blur ratio (Zhuo and Sim, Pattern Recognition 2011, Eq. 5).
"""

from typing import Any

import cv2
import numpy as np

from degradations.base import Depth
from degradations.scene.layout import Focus, focus_of, is_rectilinear, straight_edges, vanishing_point
from degradations.scene.sky import WORK_SIDE_PX, Sky, find_sky, matte
from degradations.scene.stored import DepthMap, depth_map
from degradations.scene.upsampling import upsample_depth
from pairforge.image import Pixels, Plane

GEOMETRIC_PROVIDER = "geometric"
GEOMETRIC_REVISION = "4"

_CAMERA_HEIGHT_M = 1.5
_HORIZON_RATIO = 6.0
"""Distance at the horizon over that of the bottom row, where ground fills at least 35 % of the height."""
_UNKNOWN_NEAR_M, _UNKNOWN_RATIO = 3.0, 4.0
_BOX_NEAR_M, _BOX_RATIO = 2.0, 6.0
"""Of the frame's border, and of the far end of the box over it."""
_WALL_NEAR_M, _WALL_RATIO, _WALL_FOOT_FRAC = 2.0, 3.0, 0.55
_CLOSE_UP_NEAR_M, _CLOSE_UP_RATIO = 1.0, 2.2


class GeometricDepth:
    """The provider; see the module for what it guesses and where it fails.

    `confidence` is 0.05 for `unknown`, 0.1 to 0.15 for `close_up` and `indoor`, 0.15 to 0.35 for `landscape`: it
    says how much of the layout rests on something seen in the photo, not how good the metres are.
    """

    name = GEOMETRIC_PROVIDER
    revision = GEOMETRIC_REVISION

    def __call__(self, base: Pixels) -> DepthMap:
        """Guess the distance of every pixel; pure function of the pixels. Planes have up to 320 px a side.

        With sky distances end at 100 to 300 m, without at 12 m.
        """
        height, width = base.shape[:2]
        scale = min(1.0, WORK_SIDE_PX / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(base, size, interpolation=cv2.INTER_AREA)
        z_m, sky, confidence, facts = _layout(small)
        return depth_map(
            cv2.divide(1.0, z_m),
            sky,
            focal_frac=1.0,
            provider=self.name,
            revision=self.revision,
            confidence=confidence,
            metric=False,
            facts=facts,
        )


def geometric_depth(base: Pixels) -> Depth:
    """The guess of `GeometricDepth` at the size of `base`."""
    return upsample_depth(GeometricDepth()(base), base)


def _layout(small: Pixels) -> tuple[Plane, Plane, float, dict[str, Any]]:
    """Distance and sky (h, w) of the layout that fits, confidence, and what was found."""
    height, width = small.shape[:2]
    no_sky = np.zeros((height, width), np.float32)
    sky = find_sky(small)
    if sky is not None:
        z_m, in_sky = _landscape_m(small, sky)
        confidence = 0.15 + (0.2 if sky.kind == "day" else 0.1) * sky.openness
        return z_m, in_sky, confidence, {"layout": "landscape", "sky": sky.kind, "horizon_frac": sky.horizon_frac}
    focus = focus_of(small)
    if focus.is_close_up:
        facts = {"layout": "close_up", "focus_spread": round(focus.spread, 3)}
        return _close_up_m(focus), no_sky, 0.1 + 0.05 * focus.spread, facts
    edges = straight_edges(small)
    point = vanishing_point(edges)
    if point is not None:
        facts = {"layout": "indoor", "vanishing_point_frac": [round(point.x_frac, 4), round(point.y_frac, 4)]}
        return _box_m(width, height, point.x_frac, point.y_frac), no_sky, 0.1 + 0.05 * point.support, facts
    if is_rectilinear(edges):
        return _wall_m(width, height), no_sky, 0.1, {"layout": "indoor", "vanishing_point_frac": None}
    return _ramp_m(width, height), no_sky, 0.05, {"layout": "unknown"}


def _landscape_m(small: Pixels, sky: Sky) -> tuple[Plane, Plane]:
    height, width = small.shape[:2]
    in_sky = matte(sky, small)
    far_m = 100.0 + 200.0 * sky.openness
    log_ground = np.log(_ground_m(width, height, sky.horizon_frac))
    # Mixed as ratios, so that where sky fades distance changes as slowly at its far end as at its near end.
    z_m: Plane = cv2.exp(log_ground + in_sky * (np.float32(np.log(far_m)) - log_ground))
    return z_m, in_sky


def _ground_m(width: int, height: int, horizon_frac: float) -> Plane:
    """Distance (h, 1) of ground, and of what stands above the horizon, in a view with sky."""
    row = (np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(height)
    below = np.clip((row - horizon_frac) / (1.0 - horizon_frac), 0.0, 1.0)
    near_m = float(np.clip(_CAMERA_HEIGHT_M * width / (height * (1.0 - horizon_frac)), 1.5, 20.0))
    # On a low strip of ground the full range would be a visible band.
    log_ratio = np.log(_HORIZON_RATIO) * min(1.0, (1.0 - horizon_frac) / 0.35)
    z_m: Plane = (near_m * np.exp(log_ratio * (1.0 - below**1.5))).astype(np.float32)
    return z_m[:, None]


def _box_m(width: int, height: int, x_frac: float, y_frac: float) -> Plane:
    """Distance (h, w) inside a box seen along its axis; a norm in place of the largest rounds its corners."""
    row, column = _fractions(height), _fractions(width)
    across = np.where(column < x_frac, (x_frac - column) / x_frac, (column - x_frac) / (1.0 - x_frac))
    along = np.where(row < y_frac, 0.8 * (y_frac - row) / y_frac, (row - y_frac) / (1.0 - y_frac))
    end = 1.0 / _BOX_RATIO
    fourth = (along**4)[:, None] + (across**4)[None, :] + end**4
    z_m: Plane = (_BOX_NEAR_M / np.sqrt(np.sqrt(fourth))).astype(np.float32)
    return z_m


def _wall_m(width: int, height: int) -> Plane:
    """Distance (h, w) of a floor that ends at a wall across the view, with a soft bend between the two."""
    row = _fractions(height)
    floor = np.log1p(np.exp((row - _WALL_FOOT_FRAC) * 12.0)) / 12.0 / (1.0 - _WALL_FOOT_FRAC)
    nearness = np.clip(floor, 0.0, 1.0) + 0.1 * row
    z_m = np.exp(np.log(_WALL_NEAR_M) + np.log(_WALL_RATIO) * (1.1 - nearness))
    across = np.ones((1, width), np.float32)
    wall_m: Plane = z_m.astype(np.float32)[:, None] * across
    return wall_m


def _close_up_m(focus: Focus) -> Plane:
    """Distance (h, w): in focus near, out of focus behind, below the subject a little nearer."""
    row = _fractions(len(focus.sharpness))[:, None]
    nearness = np.clip(0.75 * focus.sharpness + 0.25 * row, 0.0, 1.0)
    z_m: Plane = cv2.exp((np.log(_CLOSE_UP_NEAR_M) + np.log(_CLOSE_UP_RATIO) * (1.0 - nearness)).astype(np.float32))
    return z_m


def _ramp_m(width: int, height: int) -> Plane:
    """Distance (h, w) where nothing is known."""
    row, column = _fractions(height), _fractions(width)
    centre = np.exp(-((row - 0.6) ** 2) / 0.2)[:, None] * np.exp(-((column - 0.5) ** 2) / 0.12)[None, :]
    nearness = 0.75 * row[:, None] + 0.25 * centre
    z_m: Plane = cv2.exp((np.log(_UNKNOWN_NEAR_M) + np.log(_UNKNOWN_RATIO) * (1.0 - nearness)).astype(np.float32))
    return z_m


def _fractions(count: int) -> Plane:
    """Centres of `count` pixels over the length of the side."""
    return (np.arange(count, dtype=np.float32) + np.float32(0.5)) / np.float32(count)
