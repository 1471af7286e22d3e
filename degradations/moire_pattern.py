"""Moiré from a bank: 1 to 3 captured patterns modulate the light of the image. No screen, no mosaic.

Fusion of patterns after UniDemoiré (Yang et al., AAAI 2025), but in linear light and with the mean kept:
`I = J (1 + sum_k a_k m_k)`, scaled to the mean luminance of J. UniDemoiré blends in code values, which darkens,
and leaves realism to a network that refines the result.

Patterns of a bank of kind "moire" hold the modulation of a flat grey: codes lie around the middle of their
range (128 of 255, 32768 of 65535), and their scale is free, since each is brought to RMS 1 before it is used, and
the sum to mean 0 in every colour over the frame. `moire_bank.py` makes them.
"""

from collections.abc import Sequence
from typing import Annotated, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from degradations.base import Degradation, Pattern, PatternParams, Rendered, Scene
from pairforge.image import LUMA_LIN, Image
from pairforge.rng import Rng

_MOST_MAGNIFIED = 4.0


class MoirePatternParams(PatternParams):
    """One entry per pattern. `amplitude` is the RMS of its modulation. `flip` mirrors a pattern left to right; then
    it is turned by `rotation_deg`, made `aspect` times as wide as high, and enlarged until it is `zoom` times what
    covers the frame; `offset_*_frac` moves it within what then lies outside. Enlarged more than 4 times it would be a
    blur: there it stays at 4 and is continued by reflection."""

    amplitude: tuple[Annotated[float, Field(ge=0.0, le=0.5)], ...] = Field(min_length=1, max_length=3)
    flip: tuple[bool, ...]
    rotation_deg: tuple[Annotated[float, Field(ge=-180.0, le=180.0)], ...]
    aspect: tuple[Annotated[float, Field(ge=0.5, le=2.0)], ...]
    zoom: tuple[Annotated[float, Field(ge=1.0, le=4.0)], ...]
    offset_x_frac: tuple[Annotated[float, Field(ge=-1.0, le=1.0)], ...]
    offset_y_frac: tuple[Annotated[float, Field(ge=-1.0, le=1.0)], ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        lengths = {name: len(value) for name, value in self.model_dump().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"all fields need one entry per pattern, but their lengths are {lengths}")
        return self

    @property
    def pattern_count(self) -> int:
        return len(self.amplitude)


def sample_moire_pattern(severity: float, rng: Rng) -> MoirePatternParams:
    """Each pattern has an RMS of 0.03 at severity 0; what severity adds, to all together, reaches 0.22."""
    count = int(rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25]))
    shares = rng.uniform(0.4, 1.0, count)
    shares /= np.sqrt((shares**2).sum())
    amplitude = 0.03 + 0.22 * severity**0.6 * shares * rng.uniform(0.92, 1.0)
    return MoirePatternParams(
        amplitude=tuple(amplitude.tolist()),
        flip=tuple((rng.random(count) < 0.5).tolist()),
        rotation_deg=tuple(rng.uniform(-180, 180, count).tolist()),
        aspect=tuple(np.exp(rng.uniform(-0.25, 0.25, count)).tolist()),
        zoom=tuple(rng.uniform(1.05, 1.7, count).tolist()),
        offset_x_frac=tuple(rng.uniform(-1, 1, count).tolist()),
        offset_y_frac=tuple(rng.uniform(-1, 1, count).tolist()),
    )


def _linear(params: MoirePatternParams, index: int) -> NDArray[np.float64]:
    """Frame to pattern at magnification 1: turn back, undo the aspect, flip."""
    turn, stretch = np.radians(params.rotation_deg[index]), np.sqrt(params.aspect[index])
    cosine, sine = np.cos(turn), np.sin(turn)
    linear = np.array([[cosine / stretch, sine / stretch], [-sine * stretch, cosine * stretch]])
    linear[0] *= -1 if params.flip[index] else 1
    return linear


def _magnification(shape: tuple[int, ...], params: MoirePatternParams, index: int, size: tuple[int, int]) -> float:
    """Frame px per pattern px, for a frame of `size` (height, width)."""
    reach = np.abs(_linear(params, index)) * np.array([size[1], size[0]])
    reach_x, reach_y = reach.sum(axis=1).tolist()
    return float(min(params.zoom[index] * max(reach_x / shape[1], reach_y / shape[0]), _MOST_MAGNIFIED))


def _placement(
    shape: tuple[int, ...], params: MoirePatternParams, index: int, size: tuple[int, int], magnified: float
) -> NDArray[np.float64]:
    """Map (2, 3) from px of a frame of `size` (height, width) to px of a pattern of `shape`."""
    linear = _linear(params, index) / magnified
    span, frame = np.array([shape[1], shape[0]]), np.array([size[1], size[0]])
    slack = np.abs(span - (np.abs(linear) * frame).sum(axis=1)) / 2
    offset = np.array([params.offset_x_frac[index], params.offset_y_frac[index]])
    start = (span - 1) / 2 + slack * offset - (linear * ((frame - 1) / 2)).sum(axis=1)
    return np.column_stack([linear, start])


def _reduced(pattern: Pattern, scale: float) -> Pattern:
    """A smaller pattern. An area average alone would leave a tenth of waves that are too fine for the new size."""
    columns, rows = (max(1, round(side * scale)) for side in (pattern.shape[1], pattern.shape[0]))
    if 2 * scale < 1:
        pattern = cv2.resize(pattern, (2 * columns, 2 * rows), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(pattern, (0, 0), 0.6 / max(scale, 0.5))
    reduced: Pattern = cv2.resize(blurred, (columns, rows), interpolation=cv2.INTER_AREA)
    return reduced


def _spread(pattern: Pattern, params: MoirePatternParams, index: int, size: tuple[int, int], magnified: float) -> Image:
    """Modulation of one pattern over a frame of `size`, before its mean is made 0."""
    mean, deviation = (np.ravel(value) for value in cv2.meanStdDev(pattern))
    rms = float(np.sqrt((deviation**2).mean()))
    if rms == 0:
        raise ValueError(f"moiré pattern {index} is flat: all of its codes are {mean.tolist()}")
    if magnified < 0.97:  # Nearer to 1 there is nothing to take out.
        shape = pattern.shape
        pattern = _reduced(pattern, magnified)
        magnified = max(magnified * shape[1] / pattern.shape[1], magnified * shape[0] / pattern.shape[0])
    scaled = np.multiply(pattern, np.float32(params.amplitude[index] / rms), dtype=np.float32)
    spread: Image = cv2.warpAffine(
        scaled,
        _placement(pattern.shape, params, index, size, magnified),
        (size[1], size[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    return spread


def modulation(patterns: Sequence[Pattern], params: MoirePatternParams, height: int, width: int) -> Image:
    """`1 + sum_k a_k m_k` over a frame: mean 1 in every colour, not negative.

    Patterns that are enlarged are fused at the scale of the finest of them, and enlarged together.
    """
    magnified = [
        _magnification(pattern.shape, params, index, (height, width)) for index, pattern in enumerate(patterns)
    ]
    enlarged = max(1.0, min(magnified))
    size = (max(1, round(height / enlarged)), max(1, round(width / enlarged)))
    shrink = float(np.sqrt(size[0] * size[1] / (height * width)))
    fused: Image | None = None
    for index, pattern in enumerate(patterns):
        spread = _spread(pattern, params, index, size, magnified[index] * shrink)
        fused = spread if fused is None else cv2.add(fused, spread, dst=fused)
    assert fused is not None
    cv2.add(fused, tuple(1 - value for value in cv2.mean(fused)), dst=fused)
    np.maximum(fused, 0, out=fused)
    if size == (height, width):
        return fused
    enlarged_light: Image = cv2.resize(fused, (width, height), interpolation=cv2.INTER_LINEAR)
    return enlarged_light


def apply_moire_pattern(image: Image, params: MoirePatternParams, scene: Scene, rng: Rng) -> Rendered:
    """Uses as many patterns of the scene as there are amplitudes, in order."""
    patterns = scene.patterns["moire"][: params.pattern_count]
    photo = modulation(patterns, params, *image.shape[:2])
    cv2.multiply(image, photo, dst=photo)
    exposure = _mean_luminance(image) / max(_mean_luminance(photo), 1e-6)
    cv2.multiply(photo, (exposure, exposure, exposure, 0.0), dst=photo)
    return Rendered(photo, image, realised={"exposure": exposure})


def _mean_luminance(image_lin: Image) -> float:
    means = cv2.mean(image_lin)
    return float(sum(weight * mean for weight, mean in zip(LUMA_LIN, means[:3], strict=True)))


MOIRE_PATTERN = Degradation(
    name="moire_pattern",
    version=1,
    params_type=MoirePatternParams,
    sample=sample_moire_pattern,
    apply=apply_moire_pattern,
    space="linear",
    needs=frozenset({"patterns"}),
    source="UniDemoiré (Yang et al., AAAI 2025): fusion of patterns; here multiplied in linear light, mean kept",
    bank="moire",
)
