"""Rain photographed or rendered on black, laid over a photo: patterns of a bank of kind "rain".

Model: the light of a rain layer on black stands for opacity times the radiance of drops, so that laid over a photo it
gives I' = (1 - alpha) I + alpha E with E found in the photo; added without hiding, I' = I + alpha E. Both in linear
light. Source: rain banks blended into photos are common practice (RealRestorer, arXiv 2603.25502, uses some 200);
the image formation is that of Garg and Nayar (IJCV 2007). Patterns made here come from the same drops as `rain`.

Deviations: a pattern knows no depth, so rain falls in front of everything and there is no veil; patterns repeat
where they are smaller than the frame; their codes are interpolated before they become light.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from degradations.base import Degradation, Pattern, PatternParams, Rendered, Scene
from degradations.rain_drops import draw_drops, min_streak_width_px, project_drops
from degradations.rain_streaks import rasterise
from pairforge.image import Image, Pixels, Plane, linear_to_srgb, luminance, srgb_to_linear, to_pixels
from pairforge.rng import Rng, log_uniform, rng_for

BANK = "rain"
PATTERN_PX = 768
_MAX_OPACITY = 0.95
_STRIP_ROWS = 64
_ENVIRONMENT_PX = 48


class RainPatternParams(PatternParams):
    """One entry a pattern, 1 to 3. `gain`: on the light of the pattern. `zoom`: 1 makes its short side as long as the
    short side of the photo. `angle_deg`: turned clockwise. `shift_x_frac`, `shift_y_frac`: moved right and down, of
    its own size. `flip_x`: mirrored. `blend`: "over" hides what is behind the rain, "added" does not.
    `drop_radiance`: radiance of rain over the bright reference of the photo.
    """

    gain: tuple[float, ...]
    zoom: tuple[float, ...]
    angle_deg: tuple[float, ...]
    shift_x_frac: tuple[float, ...]
    shift_y_frac: tuple[float, ...]
    flip_x: tuple[bool, ...]
    blend: Literal["over", "added"]
    drop_radiance: float = Field(ge=0, le=10)

    @property
    def pattern_count(self) -> int:
        return len(self.gain)

    @model_validator(mode="after")
    def _fits(self) -> "RainPatternParams":
        names = ("gain", "zoom", "angle_deg", "shift_x_frac", "shift_y_frac", "flip_x")
        counts = {name: len(getattr(self, name)) for name in names}
        if set(counts.values()) - {1, 2, 3} or len(set(counts.values())) != 1:
            raise ValueError(f"one to three patterns, each with every value; got {counts}")
        limits = {
            "gain": (0, 20),
            "zoom": (0.2, 8),
            "angle_deg": (-90, 90),
            "shift_x_frac": (-1, 1),
            "shift_y_frac": (-1, 1),
        }
        for name, (low, high) in limits.items():
            if not all(low <= value <= high for value in getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)} is outside {low}..{high}")
        return self


def sample_rain_pattern(severity: float, rng: Rng) -> RainPatternParams:
    """Severity raises the gain (0.1 to 2.2 over all patterns) and brings in a second and a third pattern."""
    count = 1 + int(severity > rng.uniform(0.15, 0.7)) + int(severity > rng.uniform(0.5, 1.0))
    shares = rng.dirichlet(np.full(3, 6.0))[:count]
    total = (0.08 + 2.1 * severity**1.2) * rng.uniform(0.9, 1.1)
    lean = rng.normal(0, 8)
    return RainPatternParams(
        gain=tuple((shares / shares.sum() * total).tolist()),
        zoom=tuple(float(value) for value in np.exp(rng.uniform(np.log(0.9), np.log(2.0), 3))[:count]),
        angle_deg=tuple(np.clip(lean + rng.normal(0, 2, 3), -30, 30)[:count].tolist()),
        shift_x_frac=tuple(rng.uniform(0, 1, 3)[:count].tolist()),
        shift_y_frac=tuple(rng.uniform(0, 1, 3)[:count].tolist()),
        flip_x=tuple((rng.random(3) < 0.5)[:count].tolist()),
        blend="over" if rng.random() < 0.8 else "added",
        drop_radiance=float(rng.uniform(0.6, 0.9)),
    )


def placement(
    params: RainPatternParams, index: int, pattern: tuple[int, int], frame: tuple[int, int]
) -> NDArray[np.float64]:
    """Matrix (2, 3) from pixels of the frame (H, W) to pixels of the pattern (h, w)."""
    (rows, columns), (height, width) = pattern, frame
    scale = min(rows, columns) / min(height, width) / params.zoom[index]
    angle = np.radians(params.angle_deg[index])
    mirror = -1.0 if params.flip_x[index] else 1.0
    turn = scale * np.array([[mirror * np.cos(angle), mirror * np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    x = columns * (0.5 - params.shift_x_frac[index]) - 0.5
    y = rows * (0.5 - params.shift_y_frac[index]) - 0.5
    return np.array(
        [
            [turn[0, 0], turn[0, 1], x - turn[0, 0] * middle[0] - turn[0, 1] * middle[1]],
            [turn[1, 0], turn[1, 1], y - turn[1, 0] * middle[0] - turn[1, 1] * middle[1]],
        ]
    )


def placed(pattern: Pattern, params: RainPatternParams, index: int, height: int, width: int) -> Pattern:
    """The pattern as it lies in the frame (H, W, 3), its own codes; shrunk by area averages, repeated outside."""
    rows, columns = pattern.shape[:2]
    scale = min(rows, columns) / min(height, width) / params.zoom[index]
    if scale > 1:
        size = (max(1, round(columns / scale)), max(1, round(rows / scale)))
        pattern = cv2.resize(pattern, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], 3)
    matrix = placement(params, index, (pattern.shape[0], pattern.shape[1]), (height, width))
    # Repeated just as far as the frame reaches: OpenCV's own wrapping takes three times as long.
    x, y = np.array([0, width - 1, 0, width - 1]), np.array([0, 0, height - 1, height - 1])
    corners = matrix[:, :1] * x + matrix[:, 1:2] * y + matrix[:, 2:]
    period = np.array([pattern.shape[1], pattern.shape[0]])
    matrix[:, 2] -= np.floor(corners.min(axis=1) / period) * period
    reach = np.ceil(corners.max(axis=1) - np.floor(corners.min(axis=1) / period) * period).astype(int) + 3
    more = np.maximum(reach - period, 0).tolist()
    pattern = cv2.copyMakeBorder(pattern, 0, more[1], 0, more[0], cv2.BORDER_WRAP)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved: Pattern = cv2.warpAffine(pattern, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return moved.reshape(height, width, 3)


def light_table(dtype: np.dtype[np.uint8] | np.dtype[np.uint16], gain: float, over: bool) -> NDArray[np.float32]:
    """For every code: gain times its light, or -ln(1 - that) where it hides what is behind it."""
    top = np.iinfo(dtype).max
    codes = np.arange(top + 1, dtype=np.float32) * np.float32(1 / top)
    alpha = srgb_to_linear(codes[None, :, None].repeat(3, axis=2))[0, :, 0] * np.float32(gain)
    if not over:
        return alpha
    hides: NDArray[np.float32] = -np.log1p(-np.minimum(alpha.astype(np.float64), _MAX_OPACITY)).astype(np.float32)
    return hides


def drop_rgb(image_lin: Image, drop_radiance: float) -> list[float]:
    """Radiance of rain: grey, of the photo's bright reference, the 95th percentile of a small copy."""
    height, width = image_lin.shape[:2]
    step = max(1, max(height, width) // _ENVIRONMENT_PX)
    rows, columns = max(1, height // step), max(1, width // step)
    whole = image_lin[: rows * min(step, height), : columns * min(step, width)]
    small = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA).reshape(rows, columns, 3)
    bright = float(np.quantile(luminance(small), 0.95))
    hue = small.mean(axis=(0, 1), dtype=np.float64)
    grey = float(luminance(hue.astype(np.float32)[None, None]).item())
    # Half of the hue of the photo, as the drops mirror the scene and a grey sky.
    tint = 0.5 + 0.5 * hue / max(grey, 1e-4)
    return [float(drop_radiance * max(bright, 0.02) * value) for value in np.clip(tint, 0.5, 1.5)]


def apply_rain_pattern(image_lin: Image, params: RainPatternParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image_lin.shape[:2]
    over = params.blend == "over"
    patterns = []
    for index in range(params.pattern_count):
        pattern = checked(scene.patterns[BANK][index])
        table = light_table(pattern.dtype, params.gain[index], over)
        patterns.append((placed(pattern, params, index, height, width), table))
    radiance = drop_rgb(image_lin, params.drop_radiance)
    row_of_drops = np.tile(np.array(radiance, np.float32), (width, 1))
    out = np.empty_like(image_lin)
    codes = np.empty((height, width), np.uint16)
    for top in range(0, height, _STRIP_ROWS):
        rows = np.s_[top : top + _STRIP_ROWS]
        layer = looked_up(patterns[0][0][rows], patterns[0][1])
        for pattern, table in patterns[1:]:
            layer += looked_up(pattern[rows], table)
        if over:
            np.negative(layer, out=layer)
            layer = cv2.exp(layer).reshape(layer.shape)
            np.multiply(image_lin[rows], layer, out=out[rows])
            np.subtract(np.float32(1), layer, out=layer)
        else:
            out[rows] = image_lin[rows]
        light = luminance(layer).reshape(codes[rows].shape)
        codes[rows] = np.minimum(light, np.float32(1)) * np.float32(65535) + np.float32(0.5)
        layer *= row_of_drops
        out[rows] += layer
    return Rendered(
        out,
        image_lin,
        layers={"rain_pattern": codes},
        realised={"drop_rgb": radiance, "mean_light": float(codes.mean(dtype=np.float64) / 65535)},
    )


def checked(pattern: Pattern) -> Pattern:
    if pattern.ndim != 3 or pattern.shape[2] != 3 or pattern.dtype not in (np.uint8, np.uint16) or not pattern.size:
        raise ValueError(f"a rain pattern is (h, w, 3), uint8 or uint16; got {pattern.shape}, {pattern.dtype}")
    return pattern


def looked_up(codes: Pattern, table: NDArray[np.float32]) -> Image:
    if codes.dtype == np.uint8:
        light: Image = cv2.LUT(codes, table)
        return light.reshape(codes.shape)
    return np.take(table, codes)


def rain_pattern_image(index: int, seed: int) -> Pixels:
    """Pattern `index` of a bank: streaks on black (PATTERN_PX, PATTERN_PX, 3), which repeat at its borders.

    Rate, exposure, wind, drop tilt, lens and distance of view are drawn anew for every pattern.
    """
    rng = rng_for(seed, "rain_pattern", index)
    side = PATTERN_PX
    rate_mm_h, focal_px = log_uniform(rng, 6.0, 90.0), side * log_uniform(rng, 0.6, 2.0)
    exposure_s = log_uniform(rng, 1 / 400, 1 / 25)
    wind_m_s, tilt_sigma_deg = float(np.clip(rng.normal(0, 2.0), -6, 6)), float(rng.uniform(0.5, 4))
    least_px = max(min_streak_width_px(rate_mm_h, side, side, focal_px), log_uniform(rng, 0.35, 1.2))
    diameter_mm, z_m = draw_drops(rate_mm_h, least_px, side, side, focal_px, rng)
    streaks = project_drops(
        diameter_mm,
        z_m,
        exposure_s=exposure_s,
        wind_m_s=wind_m_s,
        camera_speed_m_s=float(min(rng.exponential(0.7), 6.0)),
        tilt_sigma_deg=tilt_sigma_deg,
        aperture_m=log_uniform(rng, 0.001, 0.012),
        focus_m=log_uniform(rng, 2.0, 15.0),
        size=(side, side),
        focal_px=focal_px,
        rng=rng,
    )
    everywhere: Plane = np.full((side, side), np.inf, np.float32)
    alpha = rasterise(streaks, everywhere, 1.0)
    # Exposed so that the brightest streaks are nearly white, as a photographer of rain on black would.
    alpha *= np.float32(rng.uniform(0.6, 0.95) / max(float(np.quantile(alpha[::2, ::2], 0.999)), 1e-6))
    tint = 1 + 0.06 * rng.standard_normal() * np.array([1.0, 0.1, -1.0])
    return to_pixels(linear_to_srgb(np.stack([alpha * np.float32(value) for value in tint], axis=2)))


RAIN_PATTERN = Degradation(
    name="rain_pattern",
    version=1,
    params_type=RainPatternParams,
    sample=sample_rain_pattern,
    apply=apply_rain_pattern,
    space="linear",
    needs=frozenset({"patterns"}),
    source="Garg and Nayar, IJCV 2007; rain banks as in RealRestorer, arXiv 2603.25502",
    bank=BANK,
)
