"""Rain on the ground: where the ground is, the splashes of drops that hit it, and how it looks when wet.

Sources: flux of drops = integral of N(D) v(D) (Marshall and Palmer 1948, Atlas et al. 1973); crowns some drop
diameters wide that stand for 10 to 30 ms (Garg et al., ICCV 2007, "Material based splashing of water drops");
wet albedo a / (n^2 (1 - a) + a) of a rough surface under a film of water (Angstrom 1925; Lekner and Dorf 1988
refine it); sheen by Schlick's Fresnel term.

Deviations: a crown is a fan of three short streaks and two droplets thrown out of it, not a sheet of water; linear
light stands for albedo; the sheen mirrors the mean environment, not the scene. Ground is what faces up and lies below
the camera as the given depth has it, so a guessed depth puts it, at worst, where the guess has its ramp.
"""

import cv2
import numpy as np

from degradations.base import Depth
from degradations.rain_drops import DIAMETER_RANGE_MM, Curve, blur_px, fall_speed_m_s, slope_per_mm
from degradations.rain_streaks import Streaks, Values, joined
from pairforge.image import Plane
from pairforge.rng import Rng

_GRID_PX = 96
_UP_RANGE = (0.86, 0.97)
"""Cosine to the vertical from which a surface begins to count as ground, and from which it does in full."""
_LIFE_S = 0.02
_CROWN_RANGE = (2.0, 5.0)
"""Width of a crown in drop diameters."""
_MIN_CROWN_PX = 0.9
_FAN_PX = 2.5
_PETALS = ((-38, 0.55, 0.3), (0, 0.4, 0.42), (38, 0.55, 0.3))
"""Lean in degrees, height and width in crowns."""
_MAX_SPLASHES = 3000
_FILM_OPACITY = 0.12
_WATER_INDEX = 1.33
_SHEEN = 0.35
"""A rough film mirrors but part of what a still one does."""


class Ground:
    """A small map of the ground: `weight` 0..1, `grazing` = cosine between view and normal, and `area_m2`,
    the horizontal area that each cell shows, all (h, w); `z_m` of the cells.
    """

    def __init__(self, depth: Depth) -> None:
        height, width = depth.z_m.shape
        scale = min(1.0, _GRID_PX / max(height, width))
        self.columns, self.rows = max(1, round(width * scale)), max(1, round(height * scale))
        step = max(1, min(height // self.rows, width // self.columns))
        size = (self.columns, self.rows)
        z_m = cv2.resize(depth.z_m[::step, ::step], size, interpolation=cv2.INTER_AREA).reshape(size[::-1])
        sky = cv2.resize(depth.sky[::step, ::step], size, interpolation=cv2.INTER_AREA).reshape(size[::-1])
        nearness = np.float32(1) / np.maximum(z_m, np.float32(1e-3))
        x = ((np.arange(self.columns, dtype=np.float32) + 0.5) / self.columns - 0.5) * (width / depth.focal_px)
        y = ((np.arange(self.rows, dtype=np.float32) + 0.5) / self.rows - 0.5) * (height / depth.focal_px)
        # A plane n . p = d has 1 / z = n . ray / d: the gradient of nearness is the normal.
        down = _slope(nearness, 0, height / depth.focal_px / self.rows)
        across = _slope(nearness, 1, width / depth.focal_px / self.columns)
        forward = nearness - across * x[None, :] - down * y[:, None]
        norm = np.sqrt(down * down + across * across + forward * forward) + np.float32(1e-9)
        up = down / norm
        facing = np.clip(nearness / norm, np.float32(1e-3), 1)
        low, high = _UP_RANGE
        weight = np.clip((up - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
        weight *= np.clip(y / np.float32(0.05), 0, 1)[:, None] * (1 - sky)
        cell = np.float32(width * height / depth.focal_px**2 / (self.rows * self.columns))
        self.z_m: Plane = z_m
        self.weight: Plane = cv2.GaussianBlur(weight, (0, 0), 1.5).reshape(size[::-1])
        grazing = facing / np.sqrt((1 + x * x)[None, :] + (y * y)[:, None])
        self.grazing: Plane = cv2.GaussianBlur(grazing, (0, 0), 1.5).reshape(size[::-1])
        self.area_m2: Plane = weight * up * cell * z_m * z_m / facing


def _slope(plane: Plane, axis: int, pitch: float) -> Plane:
    if plane.shape[axis] < 2:
        return np.zeros_like(plane)
    slope: Plane = np.gradient(plane, np.float32(pitch), axis=axis).astype(np.float32)
    return slope


def wet_maps(ground: Ground, wetness: float) -> tuple[Plane, Plane]:
    """Share of ground under water, and share of the environment that its film mirrors, both (h, w)."""
    share = ground.weight * np.float32(wetness)
    fresnel = np.float32(0.02) + np.float32(0.98) * (1 - np.minimum(ground.grazing, 1)) ** 5
    return share, share * fresnel * np.float32(_SHEEN)


def wet_factor(albedo: Plane, share: Plane) -> Plane:
    """Factor on the light of ground of which `share` is under water; white and brighter stay as they are."""
    squared = np.float32(_WATER_INDEX**2)
    factor = np.minimum(albedo, np.float32(1))
    factor *= np.float32(1) - squared
    factor += squared
    np.divide(np.float32(1), factor, out=factor)
    factor -= np.float32(1)
    factor *= share
    factor += np.float32(1)
    return factor


def flux_curve(rain_rate_mm_h: float) -> tuple[Curve, Curve]:
    """Diameters in mm, and how many larger drops hit a square metre of ground in a second."""
    diameter = np.linspace(*DIAMETER_RANGE_MM, 512)
    density = 8000.0 * np.exp(-slope_per_mm(rain_rate_mm_h) * diameter) * fall_speed_m_s(diameter.astype(np.float32))
    between = 0.5 * (density[1:] + density[:-1]) * np.diff(diameter)
    return diameter, np.concatenate([np.cumsum(between[::-1])[::-1], [0.0]])


def draw_splashes(
    rain_rate_mm_h: float,
    exposure_s: float,
    aperture_m: float,
    focus_m: float,
    opacity: float,
    ground: Ground,
    depth: Depth,
    rng: Rng,
) -> tuple[Streaks, int] | None:
    """Streaks of the splashes that the exposure meets, and how many splashes; None where there are none to see."""
    height, width = depth.z_m.shape
    focal_px = depth.focal_px
    diameter, larger = flux_curve(rain_rate_mm_h)
    mean_crown = 0.5 * sum(_CROWN_RANGE) * 1e-3 * focal_px
    least_px = _MIN_CROWN_PX * width / 1024
    rate = ground.area_m2 * np.float32(exposure_s + _LIFE_S)
    while True:
        least_mm = np.maximum(ground.z_m * np.float32(least_px / mean_crown), DIAMETER_RANGE_MM[0])
        expected = rate * np.interp(least_mm, diameter, larger)
        if expected.sum() <= _MAX_SPLASHES:
            break
        least_px *= 1.1
    counts = rng.poisson(expected.ravel())
    cell = np.repeat(np.arange(counts.size), counts)
    if not len(cell):
        return None
    count = len(cell)
    of_cell = np.interp(least_mm.ravel()[cell], diameter, larger)
    size_mm = np.interp(rng.random(count) * of_cell, larger[::-1], diameter[::-1]).astype(np.float32)
    x = (cell % ground.columns + rng.random(count)) * (width / ground.columns) - 0.5
    y = (cell // ground.columns + rng.random(count)) * (height / ground.rows) - 0.5
    row = np.clip(np.rint(y), 0, height - 1).astype(np.int64)
    z_m = depth.z_m[row, np.clip(np.rint(x), 0, width - 1).astype(np.int64)]
    mm_px = np.float32(focal_px * 1e-3) / z_m
    crown = size_mm * rng.uniform(*_CROWN_RANGE, count).astype(np.float32) * mm_px
    age = rng.random(count, dtype=np.float32)
    blur = blur_px(z_m, aperture_m, focus_m, focal_px)
    film = (
        np.float32(opacity * _FILM_OPACITY) * (1 - np.float32(0.6) * age) * np.float32(min(1.0, _LIFE_S / exposure_s))
    )
    thrown = np.float32(1.2e3 * min(exposure_s, 0.5 * _LIFE_S)) * mm_px
    parts = []
    for lean_deg, tall, wide in _PETALS:
        # A crown of a pixel or two shows no petals, only that it stands.
        big = np.flatnonzero((crown > _FAN_PX) | (lean_deg == 0))
        turn = np.deg2rad(lean_deg + 8 * rng.standard_normal(len(big))).astype(np.float32)
        length = np.float32(tall) * crown[big] * (np.float32(0.6) + np.float32(0.8) * age[big])
        foot = x[big] + np.float32(0.42 * lean_deg / 38) * crown[big]
        parts.append(_petal(foot, y[big], turn, length, np.float32(wide) * crown[big], blur[big], film[big]))
    for big in (np.arange(count), np.flatnonzero(crown > _FAN_PX)):
        turn = np.deg2rad(30 * rng.standard_normal(len(big))).astype(np.float32)
        reach = crown[big] * (np.float32(0.6) + rng.random(len(big), dtype=np.float32)) * (np.float32(0.4) + age[big])
        length = thrown[big] * rng.random(len(big), dtype=np.float32)
        bead = np.float32(0.22) * size_mm[big] * mm_px[big]
        at = x[big] + np.sin(turn) * reach, y[big] - np.cos(turn) * reach
        parts.append(_petal(*at, turn, length, bead, blur[big], 3 * film[big]))
    streaks = joined(parts)
    # Streaks that leave the frame come in at the other side, where there is no ground.
    reach = np.float32(0.5) * (streaks.length_px + streaks.width_px) + np.float32(2)
    within = (np.minimum(streaks.x, width - 1 - streaks.x) > reach) & (
        np.minimum(streaks.y, height - 1 - streaks.y) > reach
    )
    return streaks.chosen(within), count


def _petal(x: Curve, y: Curve, turn: Values, length: Values, wide: Values, blur: Values, opacity: Values) -> Streaks:
    """Streaks that rise from (x, y) and lean right by `turn` radians; a blurred one is wider and fainter.

    They have no distance, as what they stand on hides nothing of them.
    """
    width = np.hypot(np.hypot(wide, blur), np.float32(0.1)).astype(np.float32)
    length = np.maximum(length, np.float32(0.2)).astype(np.float32)
    dir_x, dir_y = np.sin(turn), -np.cos(turn)
    # The rasteriser gives a disc that moves by its own width opacity 1 at most; `opacity` is what the film has.
    full = np.maximum(length / np.maximum(wide, np.float32(0.1)), np.float32(1))
    return Streaks(
        x=(x + 0.5 * length * dir_x).astype(np.float32),
        y=(y + 0.5 * length * dir_y).astype(np.float32),
        dir_x=dir_x.astype(np.float32),
        dir_y=dir_y.astype(np.float32),
        width_px=width,
        length_px=length,
        z_m=np.zeros(len(length), np.float32),
        strength=(opacity * full * np.square(wide / width)).astype(np.float32),
    )
