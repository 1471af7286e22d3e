"""What haze, ground fog and night haze share: the air between scene and camera. Linear light throughout.

Koschmieder 1924: I = J t + A (1 - t), t = exp(-tau), tau = beta * integral of relative density along the ray.
The ray is longer than planar depth off the axis (Sakaridis et al., IJCV 2018). Density is log-normal with
mean 1; its log has the spectrum of Kolmogorov turbulence seen along rays, power ~ f^-11/3 (Tatarski 1961;
half a power steeper than a slice). Slabs of distance have independent fields, so that near and far patches do
not move as one sheet.

Images are worked on in strips of rows that stay in the cache; what is smooth is made small and enlarged.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Depth
from pairforge.image import Image, Plane, luminance
from pairforge.rng import Rng

Rows = NDArray[np.float32]
"""One value per row of the image, (H, 1)."""
Rgb = tuple[float, float, float]

VISIBILITY_CONTRAST = 0.05
TWILIGHT_CHROMA = 0.8
"""Share of the sky's hue in light that comes from the sky alone."""
_STRIP_ROWS = 48
_BLOCK_ROWS = 192
_CUBIC_REACH = 2
_GRID_SIDE_PX = 256
_AMPLITUDE_EXPONENT = -11 / 6
_STRETCH = 2.0
"""Patches of fog are wider than high."""
_SAMPLED_PX = 16384
_SKY_REACH = 1e3
"""Under a layer, sky is taken to lie this many times farther than its far limit: the top of the layer ends the ray."""


@dataclass(frozen=True)
class FogLayer:
    """Density that falls with height above the ground as exp(-h / `scale_height_m`).

    `rise` (H, 1) is the height that a ray gains per metre of planar depth. The camera stands `camera_height_m`
    above the ground; below the ground density stays what it is there.
    """

    rise: Rows
    camera_height_m: float
    scale_height_m: float


def grid_factor(height: int, width: int, side_px: int = _GRID_SIDE_PX) -> int:
    """How many pixels wide a cell of the grid for smooth things is, so that the grid has about `side_px`."""
    return max(1, -(-max(height, width) // side_px))


def strips(start: int, stop: int) -> Iterator[slice]:
    """Rows in strips whose planes stay in the cache."""
    for first in range(start, stop, _STRIP_ROWS):
        yield slice(first, min(first + _STRIP_ROWS, stop))


def blocks(height: int, factor: int, rows: int = _BLOCK_ROWS) -> Iterator[slice]:
    """Rows of an image in blocks of whole grid cells, so that what is enlarged is never as large as the image."""
    step = factor * max(1, rows // factor)
    for first in range(0, height, step):
        yield slice(first, min(first + step, height))


def _scratch(count: int, rows: int, columns: int) -> list[Plane]:
    """Arrays of their own: OpenCV copies what it writes to a part of a larger one."""
    return [np.empty((rows, columns), np.float32) for _ in range(count)]


def enlarged(grid: NDArray[np.float32], factor: int, rows: slice, width: int) -> NDArray[np.float32]:
    """Rows of an image that hold smooth things of its grid; cubic, the same as of the whole image at once."""
    if factor == 1:
        return grid[rows, :width]
    first = max(0, rows.start // factor - _CUBIC_REACH)
    part = grid[first : -(-rows.stop // factor) + _CUBIC_REACH]
    size = (part.shape[1] * factor, part.shape[0] * factor)
    large: NDArray[np.float32] = cv2.resize(part, size, interpolation=cv2.INTER_CUBIC)
    return large[rows.start - first * factor : rows.stop - first * factor, :width]


def visibility_m(beta_per_m: float) -> float | None:
    """Distance at which a black object keeps 5 % contrast (CIE meteorological optical range), 2.996 / beta;
    None without extinction.
    """
    return float(-np.log(VISIBILITY_CONTRAST) / beta_per_m) if beta_per_m > 0 else None


def ray_length_m(depth: Depth) -> Plane:
    """Distance along the viewing ray, which off-axis is longer than planar depth."""
    ray = ray_slope(depth, slice(None), slice(None))
    ray *= depth.z_m
    return ray


def ray_slope(depth: Depth, rows: slice, columns: slice, out: Plane | None = None) -> Plane:
    """Ray length over planar depth, for a part of the image; written to `out` where given."""
    height, width = depth.z_m.shape
    x = (np.arange(width, dtype=np.float32)[columns] - np.float32((width - 1) / 2)) / np.float32(depth.focal_px)
    y = (np.arange(height, dtype=np.float32)[rows] - np.float32((height - 1) / 2)) / np.float32(depth.focal_px)
    slope: Plane = np.add((y * y + np.float32(1))[:, None], x * x, out=out)
    return np.sqrt(slope, out=slope)


def sampled_rays_m(depth: Depth) -> tuple[Plane, Plane]:
    """Ray lengths of about 16,384 pixels on a grid, and the sky there."""
    stride = max(1, round((depth.z_m.size / _SAMPLED_PX) ** 0.5))
    every = slice(None, None, stride)
    return ray_slope(depth, every, every) * depth.z_m[every, every], depth.sky[every, every]


def beta_for(ray_m: Plane, sky: Plane, effective_optical_depth: float) -> float:
    """Extinction per metre at which mean transmission outside the sky is exp(-effective_optical_depth).

    Found on 256 quantiles of the ray length by bisection; an all-sky frame uses all its pixels.
    """
    ground = ray_m[sky < 0.5]
    ordered = np.sort(ground if ground.size else ray_m, axis=None).astype(np.float64)
    lengths = np.interp((np.arange(256) + 0.5) / 256, (np.arange(ordered.size) + 0.5) / ordered.size, ordered)
    goal = np.exp(-effective_optical_depth)
    # No ray is shorter than the shortest, so at `high` the mean is below the goal.
    low, high = 0.0, effective_optical_depth / float(lengths[0])
    for _ in range(50):
        middle = 0.5 * (low + high)
        if float(np.exp(-middle * lengths).mean()) > goal:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def spectral_gain(angstrom_exponent: float, wavelengths_nm: Rgb = (610.0, 550.0, 465.0)) -> Rgb:
    """Extinction of R, G, B over that of 550 nm: (wavelength / 550)^-exponent (Angstrom 1929)."""
    red, green, blue = ((nm / 550.0) ** -angstrom_exponent for nm in wavelengths_nm)
    return red, green, blue


def sky_floor(sky: Plane, floor: float) -> Plane:
    """Least transmission of every pixel: none outside the sky, `floor` at the top of the frame.

    Haze lies near the ground: a ray to the zenith leaves it soon, a ray to the horizon never does.
    """
    return _sky_floor_rows(sky, floor, slice(0, sky.shape[0]), np.empty_like(sky))


def _sky_floor_rows(sky: Plane, floor: float, rows: slice, out: Plane) -> Plane:
    row = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    elevation = np.float32(1) - (row + np.float32(0.5)) / np.float32(sky.shape[0])
    np.multiply(sky[rows], elevation * np.float32(floor), out=out)
    return out


def scene_light(image_lin: Image, sky: Plane) -> tuple[float, NDArray[np.float64], bool, float]:
    """Bright reference luminance of a scene, hue of its brightest light (luminance 1), whether that is sky, twilight.

    The reference is the 95th percentile of an area-averaged copy (of the sky where there is enough of it),
    held within 0.12..1.
    """
    height, width = image_lin.shape[:2]
    scale = min(1.0, 64 / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # A fourth of the rows of a large image says the same.
    some_rows = image_lin[:: max(1, height // 256)]
    small = cv2.resize(some_rows, size, interpolation=cv2.INTER_AREA).reshape(-1, 3)
    in_sky = cv2.resize(sky, size, interpolation=cv2.INTER_AREA).reshape(-1) > 0.9
    sees_sky = bool(in_sky.mean() > 0.05)
    everywhere = luminance(small[None])[0]
    pool, light = (small[in_sky], everywhere[in_sky]) if sees_sky else (small, everywhere)
    brightest = pool[light >= np.quantile(light, 0.9)].mean(axis=0, dtype=np.float64)
    hue = brightest / max(float(luminance(brightest.astype(np.float32)[None, None])[0, 0]), 1e-3)
    return float(np.clip(np.quantile(light, 0.95), 0.12, 1.0)), hue, sees_sky, twilight_of(everywhere)


def twilight_of(light: NDArray[np.float32]) -> float:
    """How far a scene is without sun, of the luminance of a small copy of its photo.

    1 where no more than a twentieth of it is brighter than 0.2, 0 where so much is at 0.4, as the sun makes it.
    """
    return float(np.clip((0.4 - np.quantile(light, 0.95)) / 0.2, 0.0, 1.0))


def airlight_rgb(
    image_lin: Image, sky: Plane, airlight_luminance: float, airlight_warmth: float, airlight_scene_tint: float
) -> tuple[Rgb, float]:
    """Airlight in linear light, and the scene's bright reference luminance that it is relative to.

    `airlight_scene_tint` is the share of the sky's hue in it (a third of it where no sky is seen, as the brightest
    thing may then be of any colour); `airlight_warmth` lifts red and lowers blue by that share. By day sun and sky
    together light the air, which is nearly white; in twilight the sky alone does, and the air has most of its hue.
    """
    reference, hue, sees_sky, twilight = scene_light(image_lin, sky)
    tint = airlight_scene_tint + TWILIGHT_CHROMA * twilight * (1 - airlight_scene_tint)
    if not sees_sky:
        tint = airlight_scene_tint / 3
    hue = 1.0 + tint * (np.clip(hue, 0.3, 2.0) - 1.0)
    colour = hue * (1.0 + airlight_warmth * np.array([1.0, 0.0, -1.0])) * airlight_luminance * reference
    red, green, blue = (float(value) for value in colour)
    return (red, green, blue), reference


def density_grid(height: int, width: int, patch_px: float, cv: float, rng: Rng) -> Plane:
    """Relative density on the grid of an image: mean 1, coefficient of variation `cv`, patches up to `patch_px`.

    Made by one inverse FFT with amplitude (f0^2 + f^2)^(-11/12), which is flat above the patch size.
    """
    factor = grid_factor(height, width)
    rows, columns = max(2, -(-height // factor)), max(2, -(-width // factor))
    fy = np.fft.fftfreq(rows).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(columns).astype(np.float32)[None, :] * np.float32(_STRETCH)
    outer = np.float32(1.0 / max(patch_px / factor, 2.0))
    power = outer * outer + fx * fx + fy * fy
    amplitude: Plane = cv2.exp(cv2.log(power) * np.float32(_AMPLITUDE_EXPONENT / 2))
    amplitude[0, 0] = 0.0
    noise = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field = np.fft.irfft2(noise * amplitude, s=(rows, columns)).astype(np.float32)
    field *= np.float32(1 / max(float(field.std()), 1e-12))
    sigma = float(np.sqrt(np.log1p(cv * cv)))
    density: Plane = cv2.exp(np.float32(sigma) * field)
    for _ in range(3):
        # One realisation is not exactly normal: correct sigma until the spread is the one asked for.
        sigma *= cv / max(float(density.std() / density.mean()), 1e-12)
        density = cv2.exp(np.float32(sigma) * field)
    density *= np.float32(1 / density.mean(dtype=np.float64))
    return density


@dataclass(frozen=True)
class Air:
    """What fills the scene: relative density on the grid in three slabs of planar depth, and by height.

    `edges_m` are the ends of the first two slabs; `patch_m` the size of patches.
    """

    depth: Depth
    densities: tuple[Plane, Plane, Plane]
    edges_m: tuple[float, float]
    patch_m: float
    layer: FogLayer | None

    def path_m(self, block: slice) -> Plane:
        """Ray length weighted with relative density, for some rows of the image."""
        height, width = self.depth.z_m.shape
        factor = grid_factor(height, width)
        fields = [enlarged(density, factor, block, width) for density in self.densities]
        path = np.empty((block.stop - block.start, width), np.float32)
        scratch = _scratch(4, min(len(path), _STRIP_ROWS), width)
        for rows in strips(block.start, block.stop):
            here = slice(rows.start - block.start, rows.stop - block.start)
            near, middle, far = (field[here] for field in fields)
            reach, before, within, spare = (plane[: rows.stop - rows.start] for plane in scratch)
            ends = self._slab_ends_m(rows)
            self._column_m(self.depth.z_m[rows], rows, reach, spare)
            np.minimum(reach, ends[0], out=before)
            np.minimum(reach, ends[1], out=within)
            reach -= within
            within -= before
            total = np.multiply(before, near, out=path[here])
            within *= middle
            total += within
            reach *= far
            total += reach
            total *= ray_slope(self.depth, rows, slice(None), out=spare)
            # Cubic enlargement may swing below 0 beside a dense patch.
            np.maximum(total, np.float32(0), out=total)
        return path

    def _slab_ends_m(self, rows: slice) -> list[Plane]:
        """The ends of the first two slabs, weighted like the depth, (rows, 1)."""
        ends = [np.full((rows.stop - rows.start, 1), edge, np.float32) for edge in self.edges_m]
        if self.layer is not None:
            for end in ends:
                weight_with_height(end, self.layer, rows, np.empty_like(end))
        return ends

    def _column_m(self, z_m: Plane, rows: slice, out: Plane, spare: Plane) -> None:
        """Planar depth weighted with the density of the layer, if there is one; then sky lies far behind."""
        if self.layer is None:
            np.copyto(out, z_m)
            return
        # The share of sky mixes nearness.
        np.subtract(np.float32(1), self.depth.sky[rows], out=out)
        np.maximum(out, np.float32(1 / _SKY_REACH), out=out)
        np.divide(z_m, out, out=out)
        weight_with_height(out, self.layer, rows, spare)


def weight_with_height(z_m: Plane, layer: FogLayer, rows: slice, spare: Plane) -> None:
    """Turn planar depth, in place, into its integral of density exp(-h / H).

    z exp(-h0 / H) (1 - exp(-x)) / x with x = z * rise / H; `spare` is overwritten.
    """
    ground = -layer.camera_height_m / layer.scale_height_m
    x = np.multiply(z_m, layer.rise[rows] * np.float32(1 / layer.scale_height_m), out=spare)
    np.maximum(x, np.float32(ground), out=x)
    # Nearer to 0, 1 - exp(-x) loses its digits; the quotient is 1 to half a thousandth there.
    np.copyto(x, np.float32(1e-3), where=np.abs(x) < 1e-3)
    z_m /= x
    np.negative(x, out=x)
    cv2.exp(x, x)
    np.subtract(np.float32(1), x, out=x)
    z_m *= x
    z_m *= np.float32(np.exp(ground))


def fill_with_air(
    depth: Depth, density_cv: float, density_scale_frac: float, rng: Rng, layer: FogLayer | None = None
) -> Air:
    """Air whose slabs are cut at 0.6 and 1.8 of the median depth.

    Patches have one size in metres, which is `density_scale_frac` of the image width at the median.
    """
    height, width = depth.z_m.shape
    stride = max(1, round((depth.z_m.size / _SAMPLED_PX) ** 0.5))
    middle = float(np.median(depth.z_m[::stride, ::stride]))
    sizes = [density_scale_frac * width * ratio for ratio in (1 / 0.3, 1 / 1.2, 1 / 2.3)]
    near, mid, far = (density_grid(height, width, size, density_cv, rng) for size in sizes)
    patch_m = density_scale_frac * width / depth.focal_px * middle
    return Air(depth, (near, mid, far), (0.6 * middle, 1.8 * middle), patch_m, layer)


def see_through(
    image_lin: Image, air: Air, beta_per_m: Rgb, airlight: Rgb, least_of_sky: float
) -> tuple[Image, NDArray[np.uint16]]:
    """Koschmieder's law, and the transmission of green in 16 bits; `least_of_sky`: see `sky_floor`."""
    height, width = image_lin.shape[:2]
    out = np.empty_like(image_lin)
    layer = np.empty((height, width), np.uint16)
    scratch = _scratch(6, min(height, _STRIP_ROWS), width)
    for block in blocks(height, grid_factor(height, width)):
        path = air.path_m(block)
        for rows in strips(block.start, block.stop):
            *channels, t, lift, floor = (plane[: rows.stop - rows.start] for plane in scratch)
            lifted = bool(_sky_floor_rows(air.depth.sky, least_of_sky, rows, floor).any())
            cv2.split(image_lin[rows], channels)
            for index, channel in enumerate(channels):
                light = np.float32(airlight[index])
                np.multiply(path[rows.start - block.start : rows.stop - block.start], -beta_per_m[index], out=t)
                cv2.exp(t, t)
                if lifted:
                    np.subtract(np.float32(1), t, out=lift)
                    lift *= floor
                    t += lift
                channel -= light
                channel *= t
                channel += light
                if index == 1:
                    t *= np.float32(65535)
                    t += np.float32(0.5)
                    layer[rows] = t
            cv2.merge(channels, out[rows])
    return out, layer
