"""Wisps and banks of haze from a bank of patterns, real or made here. Works in linear light.

A pattern is an image of haze alone on black: codes are sRGB (8 or 16 bit), P is their linear light. One to three
are screened over the photo, I = 1 - (1 - J) prod(1 - alpha_k P_k), which is Koschmieder's law with airlight 1 and
transmission prod(1 - alpha_k P_k); P may have a colour. Haze without depth: put `haze` before it for that.

Deviation: patterns are turned, moved and multiplied at half the size of images above 512 px, then enlarged.
"""

from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from degradations.base import Degradation, Pattern, PatternParams, Rendered, Scene
from degradations.haze_medium import strips
from pairforge.image import Image, Pixels, Plane, linear_to_srgb, pixels_to_linear, srgb_to_linear, to_pixels
from pairforge.rng import Rng, rng_for

HAZE_BANK = "haze"
_FULL_SIDE_PX = 512
_PATTERN_SIZE_PX = (512, 768)
_MOST_COVER = 0.95
"""Of a made pattern, in linear light."""


class HazePatternParams(PatternParams):
    """One entry per pattern, 1 to 3. `alpha`: share of the pattern's light. The pattern is cut to the shape of the
    image at its centre, mirrored (`flip_x`: left to right, `flip_y`: upside down), enlarged by `scale`, turned by
    `rotation_deg` and moved by `shift_x_frac` and `shift_y_frac` of the image's width and height; mirror images
    continue it beyond its border.
    """

    alpha: tuple[float, ...] = Field(min_length=1, max_length=3)
    flip_x: tuple[bool, ...]
    flip_y: tuple[bool, ...]
    scale: tuple[float, ...]
    rotation_deg: tuple[float, ...]
    shift_x_frac: tuple[float, ...]
    shift_y_frac: tuple[float, ...]

    @property
    def pattern_count(self) -> int:
        return len(self.alpha)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in type(self).model_fields:
            if len(getattr(self, name)) != len(self.alpha):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, alpha has {len(self.alpha)}")
        limits = {
            "alpha": (0.0, 1.0),
            "scale": (0.25, 8.0),
            "rotation_deg": (-180.0, 180.0),
            "shift_x_frac": (-1.0, 1.0),
            "shift_y_frac": (-1.0, 1.0),
        }
        for name, (low, high) in limits.items():
            for value in getattr(self, name):
                if not low <= value <= high:
                    raise ValueError(f"{name} {value} is outside {low}..{high}")
        return self


def sample_haze_pattern(severity: float, rng: Rng) -> HazePatternParams:
    """Alpha follows severity, shared among 1 to 3 patterns; haze keeps roughly upright."""
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    shares = rng.uniform(0.5, 1.0, count)
    # Opacities of screened layers multiply: the same share of light passes whatever the count.
    exponents = shares / shares.sum()
    passing = 1.0 - min(0.02 + 0.9 * severity * rng.uniform(0.9, 1.05), 0.97)
    return HazePatternParams(
        alpha=tuple((1.0 - passing**exponents).tolist()),
        flip_x=tuple((rng.random(count) < 0.5).tolist()),
        flip_y=tuple((rng.random(count) < 0.15).tolist()),
        scale=tuple(np.exp(rng.uniform(0.0, np.log(1.8), count)).tolist()),
        rotation_deg=tuple(rng.normal(0.0, 6.0, count).clip(-20, 20).tolist()),
        shift_x_frac=tuple(rng.uniform(-0.25, 0.25, count).tolist()),
        shift_y_frac=tuple(rng.uniform(-0.12, 0.12, count).tolist()),
    )


def apply_haze_pattern(image_lin: Image, params: HazePatternParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image_lin.shape[:2]
    scale = min(1.0, max(0.5, _FULL_SIDE_PX / max(height, width)))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    passing = np.ones((size[1], size[0], 3), np.float32)
    for index, pattern in enumerate(scene.patterns[HAZE_BANK][: params.pattern_count]):
        veil = placed_pattern(pattern, params, index, size)
        veil *= np.float32(-params.alpha[index])
        veil += np.float32(1)
        passing *= veil
    out = np.empty_like(image_lin)
    transmission = np.empty((height, width), np.uint16)
    if size != (width, height):
        passing = cv2.resize(passing, (width, height), interpolation=cv2.INTER_LINEAR)
    for rows in strips(0, height):
        seen = np.subtract(image_lin[rows], np.float32(1), out=out[rows])
        seen *= passing[rows]
        seen += np.float32(1)
        grey: Plane = cv2.transform(passing[rows], np.full((1, 3), 65535 / 3, np.float32))
        grey += np.float32(0.5)
        transmission[rows] = grey.astype(np.uint16)
    return Rendered(
        out,
        image_lin,
        layers={"pattern_transmission": transmission},
        realised={"mean_transmission": float(transmission.mean()) / 65535},
    )


def placed_pattern(pattern: Pattern, params: HazePatternParams, index: int, size_px: tuple[int, int]) -> Image:
    """Linear light (h, w, 3) of one pattern as it lies over an image of `size_px` (width, height).

    Raises ValueError for an array that is no picture of 8 or 16 bits.
    """
    if pattern.ndim != 3 or pattern.shape[2] != 3 or 0 in pattern.shape or pattern.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"pattern {index} of bank 'haze' is {pattern.dtype} {pattern.shape}, not 8 or 16 bit (h, w, 3)"
        )
    width, height = size_px
    rows, columns = pattern.shape[:2]
    cover = max(width / columns, height / rows)
    zoom = cover * params.scale[index]
    if zoom < 1:
        # Shrunk by areas first: turning samples it too thinly.
        shape = (max(1, round(columns * zoom)), max(1, round(rows * zoom)))
        pattern = cv2.resize(pattern, shape, interpolation=cv2.INTER_AREA)
    light = _light_of(pattern)
    rows, columns = light.shape[:2]
    zoom_x, zoom_y = (max(zoom, 1.0),) * 2 if zoom >= 1 else (1.0, 1.0)
    if params.flip_x[index]:
        zoom_x = -zoom_x
    if params.flip_y[index]:
        zoom_y = -zoom_y
    angle = np.deg2rad(params.rotation_deg[index])
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    centre_x = (0.5 + params.shift_x_frac[index]) * width - 0.5
    centre_y = (0.5 + params.shift_y_frac[index]) * height - 0.5
    # From image to pattern: the inverse of mirror, zoom, turn, move.
    back = np.array([[cos / zoom_x, sin / zoom_x, 0.0], [-sin / zoom_y, cos / zoom_y, 0.0]])
    back[0, 2] = (columns - 1) / 2 - back[0, 0] * centre_x - back[0, 1] * centre_y
    back[1, 2] = (rows - 1) / 2 - back[1, 0] * centre_x - back[1, 1] * centre_y
    placed: Image = cv2.warpAffine(
        light, back, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
    )
    return placed


def _light_of(pattern: Pattern) -> Image:
    if pattern.dtype == np.uint8:
        return pixels_to_linear(pattern.astype(np.uint8, copy=False))
    return srgb_to_linear(pattern.astype(np.float32) * np.float32(1 / 65535))


def haze_pattern_image(index: int, seed: int, size_px: tuple[int, int] = _PATTERN_SIZE_PX) -> Pixels:
    """Pattern number `index` of a made bank: haze on black, sRGB codes of shape (height, width, 3).

    Depends on nothing else but `seed` and `size_px` (height, width). Fractal noise whose position is itself moved
    by fractal noise, so that it curls as drifting haze does, thresholded softly into wisps, times a layout that
    imitates depth: dense at a horizon, above one, in a valley, along one side, or everywhere.
    """
    rng = rng_for(seed, "haze pattern", index)
    height, width = size_px
    cover = _wisps(height, width, rng)
    cover *= _layout(height, width, rng)
    peak = float(np.quantile(cover, 0.995))
    cover *= np.float32(rng.uniform(0.55, 1.0) * _MOST_COVER / max(peak, 1e-6))
    np.clip(cover, 0, _MOST_COVER, out=cover)
    warmth = float(rng.normal(0.0, 0.025))
    colour = np.array([[1.0 + warmth], [1.0], [1.0 - warmth]], np.float32)
    colour /= colour.max()
    return to_pixels(linear_to_srgb(cv2.transform(cover, colour)))


def _wisps(height: int, width: int, rng: Rng) -> Plane:
    """Cover in 0..1 before the layout."""
    patch_frac = float(np.exp(rng.uniform(np.log(0.2), np.log(1.0))))
    stretch = float(np.exp(rng.uniform(0.0, np.log(4.0))))
    slope = float(rng.uniform(1.8, 2.4))
    curl_px = float(rng.uniform(0.005, 0.04)) * width
    base = fractal_field(height, width, patch_frac * width, stretch, slope, rng)
    moved = [fractal_field(height, width, 0.5 * width, 1.5, 2.2, rng) * np.float32(curl_px) for _ in range(2)]
    moved[0] += np.arange(width, dtype=np.float32)
    moved[1] += np.arange(height, dtype=np.float32)[:, None]
    curled = cv2.remap(base, moved[0], moved[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    softness, bias = float(rng.uniform(1.0, 2.5)), float(rng.uniform(-1.2, 0.8))
    cover: Plane = np.float32(1) / (np.float32(1) + cv2.exp((curled + np.float32(bias)) * np.float32(-2 / softness)))
    return cover


def _layout(height: int, width: int, rng: Rng) -> Plane:
    """Where haze is dense, 0..1."""
    y = ((np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(height))[:, None]
    x = ((np.arange(width, dtype=np.float32) + np.float32(0.5)) / np.float32(width))[None, :]
    horizon = float(rng.uniform(0.25, 0.65))
    kind = int(rng.integers(5))
    # The edge of a bank is never level nor a ruler's.
    y = y + np.float32(rng.uniform(-0.35, 0.35)) * (x - np.float32(0.5))
    y = y + fractal_field(height, width, 0.6 * width, 2.0, 2.2, rng) * np.float32(rng.uniform(0.01, 0.05))
    spread = float(rng.uniform(0.08, 0.3))
    if kind == 0:
        below = np.exp(-np.maximum(y - horizon, 0) / spread)
        above = np.exp(-(np.maximum(horizon - y, 0) ** 2) / (2 * (1.5 * spread) ** 2))
        layout = below * above
    elif kind == 1:
        layout = 1 / (1 + np.exp((y - horizon) / (0.6 * spread)))
    elif kind == 2:
        layout = 1 / (1 + np.exp((horizon + 0.1 - y) / (0.6 * spread)))
    elif kind == 3:
        side = x if rng.random() < 0.5 else 1 - x
        layout = np.clip(1.15 - side / rng.uniform(0.6, 1.1), 0, 1) ** 1.5 + 0 * y
    else:
        layout = np.float32(rng.uniform(0.5, 0.9)) + np.float32(0.3) * (horizon - y)
    elsewhere = float(rng.uniform(0.0, 0.3))
    cover: Plane = (elsewhere + (1 - elsewhere) * np.clip(layout, 0, 1)).astype(np.float32)
    return cover


def fractal_field(height: int, width: int, patch_px: float, stretch: float, slope: float, rng: Rng) -> Plane:
    """Gaussian noise (H, W) of mean 0 and spread 1 with amplitude (f0^2 + f^2)^(-slope / 2), `stretch` times as wide
    as high, cut from a larger one so that it does not repeat at the border.
    """
    rows, columns = height + height // 4 + 1, width + width // 4 + 1
    fy = np.fft.fftfreq(rows).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(columns).astype(np.float32)[None, :] * np.float32(stretch)
    amplitude: NDArray[np.float32] = (np.float32(1 / patch_px**2) + fx * fx + fy * fy) ** np.float32(-slope / 2)
    amplitude[0, 0] = 0
    noise = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field = np.fft.irfft2(noise * amplitude, s=(rows, columns)).astype(np.float32)[:height, :width]
    field -= field.mean()
    return np.ascontiguousarray(field / np.float32(max(float(field.std()), 1e-12)))


HAZE_PATTERN = Degradation(
    name="haze_pattern",
    version=1,
    params_type=HazePatternParams,
    sample=sample_haze_pattern,
    apply=apply_haze_pattern,
    space="linear",
    needs=frozenset({"patterns"}),
    source="Koschmieder 1924 with airlight 1 (screen blending in linear light)",
    bank=HAZE_BANK,
)
