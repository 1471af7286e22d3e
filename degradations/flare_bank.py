"""Flare from a bank of patterns on black, as Flare7K has them, and a generator of such patterns.

Composite: Wu et al., "How to Train Neural Networks for Flare Removal" (ICCV 2021), and Dai et al., "Flare7K"
(NeurIPS 2022): patterns are linearised by a gamma of 1.8 to 2.2, turned, scaled, sheared, flipped, tinted and added in
linear light. Deviations: the lamp of a pattern is put near the upper side or outside, its ghosts towards the frame
centre, where Wu turns and shifts at random; a pattern is brought to the mean light that it shall add and not given a
gain, so that dark and bright sets make flare of equal strength; it fades towards its border, so that no border shows;
the scene is neither dimmed nor given noise, which other steps do.

The lamp of a pattern, where it has one, belongs to the scene: it goes into the target too.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from degradations.base import Degradation, Pattern, PatternParams, Rendered, Scene
from degradations.flare import draw_position, enlarged, flare_layer, rendered_size, stray_light
from degradations.flare_pattern import LensParams, sample_lens
from degradations.flare_sources import Source, blackbody_colour
from pairforge.image import Image, Plane, luminance
from pairforge.rng import Rng, log_uniform, rng_for

FLARE_BANK = "flare"
FLARE_PATTERN_PX = 640
"""Side of a generated pattern."""
_BORDER_SHARE = 0.12
_KEPT_PX = 512
"""Patterns of twice this and more are halved: flare is rendered no larger."""
_CORE_CODE_SHARE = 0.99
"""Of the largest code: where all three channels reach it, a pattern shows the lamp itself."""
_LEAST_IN_FRAME = 0.2
"""Mean light in the frame over that of the whole pattern, below which the gain grows no further."""
_LEAST_CORE_PX = 9
_CORE_LIN = 16.0
_HALO_SHARE = 0.4
"""Of the light of a lamp as added here; of that of the real one, which codes cannot hold, a few percent."""
_GAMMA = 2.2
_BRIGHTEST_FLARE = 0.9


class FlareOverlayParams(PatternParams):
    """One entry per pattern, but for `gamma`, which linearises all, and `offset_lin`, added to their sum (which stays
    >= 0). `mean_lin` is the mean luminance that a pattern adds to the frame, in units of white; less where hardly any
    of its light falls there. `size_ratio` is the long side of the pattern over that of the frame. Its lamp comes to
    `source_x_frac`, `source_y_frac` of the frame and its middle, where the ghosts meet, on the line from there to the
    frame centre; `rotation_deg` turns it on, clockwise. `flip_horizontally`, `flip_vertically` and `shear_deg` come
    first. `red_gain`, `green_gain` and `blue_gain` tint it."""

    gamma: float = Field(ge=1, le=3)
    offset_lin: float = Field(ge=-0.1, le=0.1)
    mean_lin: tuple[float, ...] = Field(min_length=1, max_length=2)
    size_ratio: tuple[float, ...]
    rotation_deg: tuple[float, ...]
    shear_deg: tuple[float, ...]
    flip_horizontally: tuple[bool, ...]
    flip_vertically: tuple[bool, ...]
    source_x_frac: tuple[float, ...]
    source_y_frac: tuple[float, ...]
    red_gain: tuple[float, ...]
    green_gain: tuple[float, ...]
    blue_gain: tuple[float, ...]

    @property
    def pattern_count(self) -> int:
        return len(self.mean_lin)

    @model_validator(mode="after")
    def _check(self) -> "FlareOverlayParams":
        ranges = {
            "mean_lin": (0.0, 10.0),
            "size_ratio": (0.05, 20.0),
            "rotation_deg": (-720.0, 720.0),
            "shear_deg": (-60.0, 60.0),
            "source_x_frac": (-2.0, 3.0),
            "source_y_frac": (-2.0, 3.0),
            "red_gain": (0.0, 10.0),
            "green_gain": (0.0, 10.0),
            "blue_gain": (0.0, 10.0),
        }
        for name in (*ranges, "flip_horizontally", "flip_vertically"):
            values: tuple[float, ...] = getattr(self, name)
            if len(values) != self.pattern_count:
                raise ValueError(f"{name} has {len(values)} entries, mean_lin has {self.pattern_count}")
            low, high = ranges.get(name, (0, 1))
            if not all(low <= value <= high for value in values):
                raise ValueError(f"{name} {values} is outside {low}..{high}")
        return self


def sample_flare_overlay(severity: float, rng: Rng) -> FlareOverlayParams:
    """Seven of ten get one pattern, the others two that share the light."""
    count = 2 if rng.random() < 0.3 else 1
    total_lin = (0.001 + 0.03 * severity + 0.05 * severity**2) * log_uniform(rng, 0.8, 1.25)
    first = float(rng.uniform(0.3, 0.7)) if count == 2 else 1.0
    positions = [draw_position(rng)[1:] for _ in range(count)]

    def gains() -> tuple[float, ...]:
        return tuple(log_uniform(rng, 0.8, 1.25) for _ in range(count))

    return FlareOverlayParams(
        gamma=float(rng.uniform(1.8, 2.2)),
        offset_lin=total_lin * float(rng.uniform(-0.2, 0.2)),
        mean_lin=(total_lin * first, total_lin * (1 - first))[:count],
        size_ratio=tuple(log_uniform(rng, 1.0, 1.8) for _ in range(count)),
        rotation_deg=tuple(rng.normal(0, 5, count).tolist()),
        shear_deg=tuple(rng.uniform(-15, 15, count).tolist()),
        flip_horizontally=tuple((rng.random(count) < 0.5).tolist()),
        flip_vertically=tuple((rng.random(count) < 0.5).tolist()),
        source_x_frac=tuple(x for x, _ in positions),
        source_y_frac=tuple(y for _, y in positions),
        red_gain=gains(),
        green_gain=gains(),
        blue_gain=gains(),
    )


# --- patterns


@dataclass(frozen=True)
class _Decoded:
    """A pattern in linear light, faded at its border; its lamp in [0, 1], if it shows one; where that is, else the
    brightest place, in px of the light."""

    light: Image
    lamp: Plane | None
    at_px: tuple[float, float]


def _decode(pattern: Pattern, gamma: float) -> _Decoded:
    """Raises ValueError for an array that is no pattern."""
    if pattern.ndim != 3 or pattern.shape[2] != 3 or pattern.dtype not in (np.uint8, np.uint16) or not pattern.size:
        raise ValueError(f"a flare pattern is uint8 or uint16 (h, w, 3), not {pattern.dtype} {pattern.shape}")
    largest = int(np.iinfo(pattern.dtype).max)
    table = (np.linspace(0, 1, largest + 1) ** gamma).astype(np.float32)
    light: Image = cv2.LUT(pattern, table) if largest == 255 else np.take(table, pattern)
    least = (float(np.ceil(_CORE_CODE_SHARE * largest)),) * 3
    lit = _flat(cv2.inRange(pattern, least, (float(largest),) * 3), light)
    while min(light.shape[:2]) >= 2 * _KEPT_PX:
        half = (light.shape[1] // 2, light.shape[0] // 2)
        light, lit = (cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in (light, lit))
    height, width = light.shape[:2]
    window = _border_window(height)[:, None] * _border_window(width)[None, :]
    cv2.multiply(light, cv2.merge([window, window, window]), dst=light)
    if cv2.countNonZero(lit) >= _LEAST_CORE_PX:
        area = cv2.moments(lit)
        return _Decoded(light, _with_halo(lit), (area["m10"] / area["m00"], area["m01"] / area["m00"]))
    small = cv2.resize(luminance(light), (32, 32), interpolation=cv2.INTER_AREA)
    row, column = np.unravel_index(int(small.argmax()), small.shape)
    return _Decoded(light, None, ((float(column) + 0.5) * width / 32 - 0.5, (float(row) + 0.5) * height / 32 - 0.5))


def _flat(plane: Any, light: Image) -> Any:
    """The plane as an array of two dimensions, which OpenCV gives up for one row or column."""
    return np.reshape(plane, light.shape[:2])


def _with_halo(lit: NDArray[np.uint8]) -> Plane:
    """A lamp with a soft edge and the halo that a clean lens gives it, from codes 0..255."""
    height, width = lit.shape
    lamp = cv2.GaussianBlur(lit, (0, 0), 1.6).astype(np.float32).reshape(height, width)
    lamp *= np.float32((1 - _HALO_SHARE) / 255)
    coarse = (-(-height // 4), -(-width // 4))
    small = cv2.resize(lit, coarse[::-1], interpolation=cv2.INTER_AREA).astype(np.float32).reshape(coarse)
    near, far = (cv2.GaussianBlur(small, (0, 0), share * max(height, width)) for share in (0.002, 0.007))
    halo = cv2.addWeighted(near, 0.6, far, 0.4, 0)
    halo = cv2.resize(halo.reshape(coarse), (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width)
    whole: Plane = cv2.scaleAdd(halo, _HALO_SHARE / 255, lamp).reshape(height, width)
    return whole


def _border_window(size_px: int) -> Plane:
    """1, and 0 at both ends."""
    from_end = (np.minimum(np.arange(size_px), np.arange(size_px)[::-1]) + 0.5) / max(_BORDER_SHARE * size_px, 0.5)
    rise = np.clip(from_end, 0, 1)
    return (rise * rise * (3 - 2 * rise)).astype(np.float32)


# --- composite


def _placement(
    params: FlareOverlayParams, index: int, decoded: _Decoded, frame: tuple[int, int]
) -> NDArray[np.float64]:
    """2x3 matrix from px of the pattern to px of a frame (height, width). A pattern without a lamp keeps its middle on
    that of the frame and turns its brightest side to the source; one with a lamp in its middle turns its right side to
    the frame centre."""
    height, width = decoded.light.shape[:2]
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    centre = np.array([(frame[1] - 1) / 2, (frame[0] - 1) / 2])
    source = np.array([params.source_x_frac[index] * frame[1] - 0.5, params.source_y_frac[index] * frame[0] - 0.5])
    scale = params.size_ratio[index] * max(frame) / max(width, height)
    flip_x, flip_y = (
        -scale if params.flip_horizontally[index] else scale,
        -scale if params.flip_vertically[index] else scale,
    )
    skewed = np.array([[flip_x, flip_y * np.tan(np.radians(params.shear_deg[index]))], [0, flip_y]])
    inward = (skewed * (middle - decoded.at_px)).sum(axis=1)
    if float(np.hypot(*inward)) < 0.02 * scale * max(width, height):
        inward = np.array([1.0, 0.0])
    turn = np.arctan2(*(centre - source)[::-1]) - np.arctan2(*inward[::-1]) + np.radians(params.rotation_deg[index])
    cos, sin = np.cos(turn), np.sin(turn)
    linear = np.array([cos * skewed[0] - sin * skewed[1], sin * skewed[0] + cos * skewed[1]])
    fixed, to = (middle, centre) if decoded.lamp is None else (np.array(decoded.at_px), source)
    return np.column_stack([linear, to - (linear * fixed).sum(axis=1)])


def _mean(light: Image) -> float:
    return float(cv2.mean(luminance(light))[0])


def apply_flare_overlay(image: Image, params: FlareOverlayParams, scene: Scene, rng: Rng) -> Rendered:
    """Adds the patterns of `scene.patterns["flare"]`, code values on black. Where a pattern is saturated in all
    channels it shows its lamp, which image and target both get, 16 times as bright as white; without one in the frame
    the target is the scene as it was. Layer `flare`: as that of `flare`; `lamps` counts those in the frame."""
    height, width = image.shape[:2]
    across, down = rendered_size(width, height)
    light = np.full((down, across, 3), params.offset_lin, np.float32)
    target = image
    lamps = 0
    for index, pattern in enumerate(scene.patterns[FLARE_BANK][: params.pattern_count]):
        decoded = _decode(pattern, params.gamma)
        tint = np.array([params.red_gain[index], params.green_gain[index], params.blue_gain[index]])
        matrix = _placement(params, index, decoded, (down, across))
        flare = cv2.warpAffine(decoded.light, matrix, (across, down), flags=cv2.INTER_LINEAR).reshape(light.shape)
        gain = params.mean_lin[index] / max(_mean(flare), _LEAST_IN_FRAME * _mean(decoded.light), 1e-5)
        cv2.transform(flare, np.diag(tint * gain).astype(np.float32), dst=flare)
        cv2.add(light, flare, dst=light)
        if decoded.lamp is not None:
            matrix = _placement(params, index, decoded, (height, width))
            lamp = cv2.warpAffine(decoded.lamp, matrix, (width, height), flags=cv2.INTER_LINEAR).reshape(height, width)
            if float(lamp.max()) > 0.5:
                lamps += 1
                colour = (tint * (_CORE_LIN / max(float(tint.max()), 1e-6))).astype(np.float32)
                target = cv2.add(target, cv2.transform(lamp, colour[:, None]).reshape(image.shape))
    cv2.max(light, 0.0, dst=light)
    light = enlarged(light, width, height)
    layer = flare_layer(light)
    cv2.add(light, target, dst=light)
    return Rendered(light, target, {"flare": layer}, {"lamps": lamps})


FLARE_OVERLAY = Degradation(
    name="flare_overlay",
    version=1,
    params_type=FlareOverlayParams,
    sample=sample_flare_overlay,
    apply=apply_flare_overlay,
    space="linear",
    needs=frozenset({"patterns"}),
    source="Wu et al., ICCV 2021; Dai et al., Flare7K, NeurIPS 2022 (composite)",
    bank=FLARE_BANK,
)


def flare_pattern_image(index: int, seed: int) -> NDArray[np.uint16]:
    """Pattern `index` of a bank (FLARE_PATTERN_PX, FLARE_PATTERN_PX, 3): code values, gamma 2.2, on black.

    The flare of `flare` without its veil, of a lamp near the middle (three of four) or beside the pattern. Its middle
    is the optical axis: ghosts lie on the line from there to the lamp. The lamp is saturated and, with a thin edge, is
    all that exceeds 0.9 of the range, so that `flare_overlay` finds it.
    """
    rng = rng_for(seed, "flare pattern", index)
    side = FLARE_PATTERN_PX
    lens = LensParams.model_validate({**sample_lens(float(rng.uniform(0.2, 1)), rng), "veil_frac": 0.0})
    shows_lamp = rng.random() < 0.75
    away, towards = float(rng.uniform(0.03, 0.3) if shows_lamp else rng.uniform(0.52, 0.7)), rng.uniform(0, 2 * np.pi)
    source = Source(
        x_px=(side - 1) / 2 + away * side * float(np.cos(towards)),
        y_px=(side - 1) / 2 + away * side * float(np.sin(towards)),
        radiance=lens.source_radiance,
        radius_px=side * log_uniform(rng, 0.0015, 0.004),
        colour=blackbody_colour(log_uniform(rng, 2600, 8500)),
        origin="placed",
    )
    light, _ = stray_light(side, side, [source], lens, rng)
    axis = np.arange(side)
    distance_px = np.hypot(axis[None, :] - source.x_px, axis[:, None] - source.y_px)
    lamp_px = side * log_uniform(rng, 0.006, 0.013)
    near = (distance_px > lamp_px) & (distance_px < lamp_px + 3)
    brightness = luminance(light)
    reference = float(brightness[near].mean()) if shows_lamp else float(np.percentile(brightness, 99.99))
    light = np.minimum(light * np.float32(_BRIGHTEST_FLARE / max(reference, 1e-12)), np.float32(_BRIGHTEST_FLARE))
    if shows_lamp:
        lamp = np.clip(lamp_px + 1 - distance_px, 0, 1).astype(np.float32)[..., None]
        light += (1 - light) * lamp
    codes: NDArray[np.uint16] = np.round(np.power(light, 1 / _GAMMA) * 65535).astype(np.uint16)
    return codes
