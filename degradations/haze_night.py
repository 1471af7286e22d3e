"""Haze at night: little airlight, and lamps whose light the haze scatters towards the camera. Linear light.

Glow: the single-scattering integral of Sun et al., SIGGRAPH 2005, for the phase function of Henyey and Greenstein
1941. A source at distance D, of which E0 = I0 / D^2 would reach the camera through clear air, is seen at an angle
gamma from itself with radiance

    E0 / sin(gamma) * integral of S(alpha) exp(-T (sin(gamma) + sin(alpha - gamma)) / sin(alpha)) d alpha

where T is the optical depth of D and alpha, from gamma to pi, the angle that the light is turned by. Single
scattering is S = T P_g. Light turned n times is turned like once by P of asymmetry g^n (the Legendre terms of n
turns multiply), and n turns are as likely as in a Poisson process: S = sum of T^n / n! P_(g^n). So glow is energy of
the lamp, it widens with T, and a lamp in thick haze shows more glow than core.

Deviations: light that is turned often is taken to be turned at one place; two values of T stand for those of all
lamps; lamps do not light what is near them; haze in front of a lamp's glow is that of the lamp. Lamps before the sky
have no depth: none is taken to stand farther than where `effective_optical_depth` is. Photos clip lamps: their light
above white is `source_gain`. A lamp is what is bright and small, among darker things, and not a bright sky; in a
photo by day that may be white paper, so there it counts for a tenth. Photos by day stay day, with dim haze.
"""

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Rendered, Scene
from degradations.haze import AirParams
from degradations.haze_medium import (
    Rgb,
    beta_for,
    blocks,
    enlarged,
    fill_with_air,
    grid_factor,
    sampled_rays_m,
    see_through,
    visibility_m,
)
from pairforge.image import LUMA_LIN, Image, Plane, luminance
from pairforge.rng import Rng

_GLOW_SIDE_PX = 128
_LAMP_LIGHT_RANGE = (0.75, 0.98)
"""Luminance from which, and up to which, a pixel grows into a lamp: what is near clipping, not a lit wall."""
_LAMP_SIZE_FRAC = 0.05
"""What is wider, in both directions, is a bright wall and no lamp."""
_SURROUND_FRAC = 0.06
"""Sigma of what counts as the surroundings of a lamp, which are darker than half of white."""
_LEAST_LAMP = 1e-2
"""A grid cell with less of a lamp than this is none."""
_LAMP_SHARE_BY_DAY = 0.1
"""What is bright in a photo of mean luminance 0.25 and more is mostly no lamp; below 0.1 all of it counts."""
_LEAST_GLOW_16BIT = 4
_LAMP_ROWS, _GLOW_ROWS = 64, 128
_DEPTH_BINS = 2
_ANGLES, _TURNS = 160, 160
_ORDERS = 12

Curve = NDArray[np.float64]


class NightHazeParams(AirParams):
    """Here `airlight_luminance` is relative to the mean luminance of the scene, and `airlight_scene_tint` takes the
    hue of that mean. `sky_floor`: least transmission of sky at the top of the frame. `source_gain`: light of lamps
    over what the photo, which clips them, shows. `scatter_asymmetry`: mean cosine of the angle that haze turns
    light by.
    """

    sky_floor: float = Field(ge=0, le=1)
    source_gain: float = Field(ge=1, le=10000)
    scatter_asymmetry: float = Field(ge=0, le=0.95)


def sample_night_haze(severity: float, rng: Rng) -> NightHazeParams:
    """Optical depth and the light of lamps follow severity; airlight is that of a lit town."""
    return NightHazeParams(
        effective_optical_depth=float((0.02 + 1.1 * severity**1.2) * rng.uniform(0.9, 1.1)),
        airlight_luminance=float(rng.uniform(0.4, 1.2)),
        airlight_warmth=float(rng.uniform(-0.1, 0.35)),
        airlight_scene_tint=float(rng.uniform(0.1, 0.5)),
        density_cv=float(rng.uniform(0.1, 0.45)),
        density_scale_frac=float(rng.uniform(0.15, 0.8)),
        sky_floor=float(0.6 * (1.0 - severity) ** 2 + rng.uniform(0.05, 0.3)),
        source_gain=float((4.0 + 80.0 * severity) * np.exp(rng.uniform(-0.5, 0.5))),
        scatter_asymmetry=float(rng.uniform(0.7, 0.9)),
    )


def apply_night_haze(image_lin: Image, params: NightHazeParams, scene: Scene, rng: Rng) -> Rendered:
    assert scene.depth is not None
    depth = scene.depth
    height, width = depth.z_m.shape
    beta = beta_for(*sampled_rays_m(depth), params.effective_optical_depth)
    air = fill_with_air(depth, params.density_cv, params.density_scale_frac, rng)
    factor = grid_factor(height, width, _GLOW_SIDE_PX)
    small_lin = cv2.resize(image_lin, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_AREA)
    airlight, reference = ambient_light(small_lin, params)
    out, transmission = see_through(image_lin, air, (beta, beta, beta), airlight, params.sky_floor)
    share, narrow = find_lamps(image_lin, small_lin, depth.sky)
    lamps = _shine(out, image_lin, share, narrow, transmission, params)
    lamp_area_frac = float((luminance(lamps) > 0.1).mean())
    glow = np.zeros_like(lamps)
    if lamps.any():
        seen: Plane = cv2.resize(transmission, (lamps.shape[1], lamps.shape[0]), interpolation=cv2.INTER_AREA)
        least = np.float32(max(65535 * np.exp(-params.effective_optical_depth), 1))
        optical_depth = -cv2.log(np.maximum(seen.astype(np.float32), least) * np.float32(1 / 65535))
        lamps *= np.float32(params.source_gain)
        glow = glow_of(lamps, optical_depth, depth.focal_px / factor, params.scatter_asymmetry)
    strength = _add_glow(out, glow)
    return Rendered(
        out,
        image_lin,
        layers={
            "transmission": transmission,
            "glow": strength,
        },
        realised={
            "beta_per_m": beta,
            "visibility_m": visibility_m(beta),
            "airlight_rgb": list(airlight),
            "reference_luminance": reference,
            "density_patch_m": air.patch_m,
            "mean_transmission": float(transmission.mean()) / 65535,
            "lamp_area_frac": lamp_area_frac,
            "mean_glow": float(luminance(glow).mean()),
            "depth_is_metric": depth.metric,
        },
    )


def ambient_light(small_lin: Image, params: NightHazeParams) -> tuple[Rgb, float]:
    """Airlight, and the luminance that it is relative to: the mean of the scene, clipped lamps as they are."""
    mean = small_lin.mean(axis=(0, 1), dtype=np.float64)
    reference = max(float(luminance(mean.astype(np.float32)[None, None])[0, 0]), 0.005)
    hue = 1.0 + params.airlight_scene_tint * (np.clip(mean / reference, 0.3, 2.0) - 1.0)
    colour = hue * (1.0 + params.airlight_warmth * np.array([1.0, 0.0, -1.0])) * params.airlight_luminance * reference
    red, green, blue = (float(value) for value in colour)
    return (red, green, blue), reference


def find_lamps(image_lin: Image, small_lin: Image, sky: Plane) -> tuple[Plane, Plane]:
    """How bright every pixel (H, W) is, 0..1, and how far the bright is a lamp on the grid of `small_lin`, 0..1."""
    height, width = sky.shape
    factor = grid_factor(height, width, _GLOW_SIDE_PX)
    low, high = _LAMP_LIGHT_RANGE
    small = (-(-width // factor), -(-height // factor))
    share = np.empty((height, width), np.float32)
    bright = np.zeros((small[1], small[0]), np.float32)
    for rows in blocks(height, factor, _LAMP_ROWS):
        part = cv2.transform(image_lin[rows], np.array([LUMA_LIN], np.float32), share[rows])
        part -= np.float32(low)
        part *= np.float32(1 / (high - low))
        np.clip(part, 0, 1, out=part)
        part *= part
        bright[_cells(rows, factor)] = _shrunk(part, rows, factor, small[0])
    around = cv2.GaussianBlur(luminance(small_lin), (0, 0), max(_SURROUND_FRAC * max(small), 0.5))
    narrow = _narrow(bright) * np.clip(1 - 2 * around, 0, 1)
    in_sky = cv2.resize(sky, small, interpolation=cv2.INTER_AREA)
    narrow *= 1 - in_sky * _daylight(luminance(small_lin), in_sky)
    narrow *= np.clip((0.25 - float(luminance(small_lin).mean(dtype=np.float64))) / 0.15, _LAMP_SHARE_BY_DAY, 1)
    return share, np.where(bright * narrow > _LEAST_LAMP, narrow, np.float32(0))


def _daylight(light: Plane, sky: Plane) -> float:
    """0 under a night sky, 1 under one so bright that what shines in it is the sky itself."""
    mean = float((light * sky).sum(dtype=np.float64)) / max(float(sky.sum(dtype=np.float64)), 1e-6)
    return min(mean / 0.4, 1.0) ** 2


def _cells(rows: slice, factor: int) -> slice:
    return slice(rows.start // factor, -(-rows.stop // factor))


def _shrunk(part: NDArray[np.float32], rows: slice, factor: int, columns: int) -> NDArray[np.float32]:
    """Means over the grid cells of some rows."""
    cells = _cells(rows, factor)
    small: NDArray[np.float32] = cv2.resize(part, (columns, cells.stop - cells.start), interpolation=cv2.INTER_AREA)
    return small


def _narrow(bright: Plane) -> Plane:
    """1 where bright things are small on this grid, 0 inside those that are wide both ways."""
    across = 2 * round(0.5 * _LAMP_SIZE_FRAC * max(bright.shape)) + 1
    if across == 1:
        return np.ones_like(bright)
    joined = cv2.dilate(bright, np.ones((3, 3), np.uint8))
    wide: Plane = cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones((across, across), np.uint8))
    wide = cv2.dilate(wide, np.ones((5, 5), np.uint8))
    return np.clip(1 - 2 * wide, 0, 1).astype(np.float32)


def _shine(
    out: Image,
    image_lin: Image,
    bright: Plane,
    narrow: Plane,
    transmission: NDArray[np.uint16],
    params: NightHazeParams,
) -> Image:
    """Add to `out` what lamps send straight to the camera above what the photo shows of them.

    Returns the light of lamps as the photo shows it, a mean over the cells of the grid.
    """
    height, width = bright.shape
    factor = grid_factor(height, width, _GLOW_SIDE_PX)
    least = np.float32(65535 * np.exp(-params.effective_optical_depth))
    light = np.zeros((*narrow.shape, 3), np.float32)
    for rows in blocks(height, factor, _LAMP_ROWS):
        cells = _cells(rows, factor)
        lit = np.flatnonzero(narrow[cells].any(axis=0))
        if not lit.size:
            continue
        first, last = max(int(lit[0]) - 2, 0), int(lit[-1]) + 3
        columns = slice(first * factor, min(last * factor, width))
        share = np.maximum(enlarged(narrow[:, first:last], factor, rows, columns.stop - columns.start), np.float32(0))
        share *= bright[rows, columns]
        shining = cv2.multiply(image_lin[rows, columns], cv2.merge([share] * 3))
        light[cells, first:last] = _shrunk(shining, rows, factor, light[cells, first:last].shape[1])
        seen = transmission[rows, columns].astype(np.float32)
        gain = np.maximum(seen, least)
        gain *= np.float32(params.source_gain)
        gain -= seen
        gain *= np.float32(1 / 65535)
        out[rows, columns] += cv2.multiply(shining, cv2.merge([gain] * 3), shining)
    return light


def _add_glow(out: Image, glow: Image) -> NDArray[np.uint16]:
    """Add glow on its grid to `out`; its luminance up to 1 in 16 bits."""
    height, width = out.shape[:2]
    factor = grid_factor(height, width, _GLOW_SIDE_PX)
    layer = np.zeros((height, width), np.uint16)
    if not glow.any():
        return layer
    strength = np.minimum(luminance(glow), np.float32(1)) * np.float32(65535)
    for rows in blocks(height, factor, _GLOW_ROWS):
        if float(strength[_cells(rows, factor)].max()) < _LEAST_GLOW_16BIT:
            continue
        # Cubic enlargement may swing below 0 beside a lamp.
        part = enlarged(glow, factor, rows, width)
        out[rows] += np.maximum(part, np.float32(0), out=part)
        level = enlarged(strength, factor, rows, width)
        layer[rows] = np.clip(level, 0, 65535, out=level)
    return layer


def glow_of(lamps: Image, optical_depth: Plane, focal_px: float, asymmetry: float) -> Image:
    """Scattered light (h, w, 3) of lamps; each of two ranges of optical depth has a kernel of its own."""
    height, width = optical_depth.shape
    light = luminance(lamps)
    lit = light > 0
    order = np.argsort(optical_depth[lit], kind="stable")
    energy = np.cumsum(light[lit][order], dtype=np.float64)
    depths = optical_depth[lit][order].astype(np.float64)
    cuts = depths[
        np.minimum(np.searchsorted(energy, energy[-1] * np.arange(1, _DEPTH_BINS) / _DEPTH_BINS), lit.sum() - 1)
    ]
    which = np.searchsorted(cuts, optical_depth)
    rows, columns = cv2.getOptimalDFTSize(2 * height), cv2.getOptimalDFTSize(2 * width)
    total = [np.zeros((rows, columns), np.float32) for _ in range(3)]
    for index in range(_DEPTH_BINS):
        inside = (which == index) & lit
        if not inside.any():
            continue
        mean_depth = float((optical_depth[inside] * light[inside]).sum(dtype=np.float64)) / float(
            light[inside].sum(dtype=np.float64)
        )
        spectrum = cv2.dft(_kernel(rows, columns, focal_px, mean_depth, asymmetry))
        for channel in range(3):
            padded = np.zeros((rows, columns), np.float32)
            np.copyto(padded[:height, :width], lamps[..., channel], where=inside)
            total[channel] += cv2.mulSpectrums(cv2.dft(padded, nonzeroRows=height), spectrum, 0)
    planes = [cv2.idft(plane, flags=cv2.DFT_SCALE)[:height, :width] for plane in total]
    glow: Image = cv2.merge(planes)
    return np.maximum(glow, 0, out=glow)


def _kernel(rows: int, columns: int, focal_px: float, optical_depth: float, asymmetry: float) -> Plane:
    """Glow of one pixel of a lamp, centred on the corner of a periodic plane."""
    angles = np.geomspace(0.2 / focal_px, 1.5, _ANGLES)
    curve = glow_radiance(angles, optical_depth, asymmetry) / focal_px**2
    # Where the curve goes as 1 / angle, its mean over the pixel at the centre is its value at half that radius.
    distance = np.maximum(_distances_px(rows // 2 + 1, columns // 2 + 1), 0.28)
    place = np.log(distance * (1 / (focal_px * angles[0])))
    place *= (_ANGLES - 1) / np.log(angles[-1] / angles[0])
    quadrant = np.exp(np.interp(place, np.arange(_ANGLES), np.log(np.maximum(curve, 1e-30)))).astype(np.float32)
    down = np.minimum(np.arange(rows), rows - np.arange(rows))
    across = np.minimum(np.arange(columns), columns - np.arange(columns))
    return np.ascontiguousarray(quadrant[down][:, across])


@cache
def _distances_px(rows: int, columns: int) -> Curve:
    return np.hypot(*np.ogrid[:rows, :columns])


def glow_radiance(angle_rad: Curve, optical_depth: float, asymmetry: float, orders: int = _ORDERS) -> Curve:
    """Radiance per E0 at these angles (0 < angle < pi) from a lamp, 1 / sr; see the module. `orders` 1 is exact
    single scattering.
    """
    gamma = angle_rad[:, None]
    step = (np.arange(_TURNS) + 0.5) / _TURNS
    # Most light is turned by small angles: steps there are small.
    alpha = gamma + (np.pi - gamma) * step**2
    weight = (np.pi - gamma) * 2 * step / _TURNS
    turns = np.pi * np.linspace(0, 1, 1024) ** 2
    source = np.zeros_like(turns)
    share = 1.0
    for order in range(1, orders + 1):
        share *= optical_depth / order
        g = asymmetry**order
        source += share * (1 - g * g) / (4 * np.pi * (1 + g * g - 2 * g * np.cos(turns)) ** 1.5)
    sent = np.interp(alpha, turns, source)
    sent *= np.exp(-optical_depth * (np.sin(gamma) + np.sin(alpha - gamma)) / np.sin(alpha))
    radiance: Curve = (sent * weight).sum(axis=1) / np.sin(angle_rad)
    return radiance


NIGHT_HAZE = Degradation(
    name="night_haze",
    version=2,
    params_type=NightHazeParams,
    sample=sample_night_haze,
    apply=apply_night_haze,
    space="linear",
    needs=frozenset({"depth"}),
    source="Koschmieder 1924; Sun et al., SIGGRAPH 2005 (scattering integral); Henyey and Greenstein 1941",
)
