"""Motion blur of a filmed scene: the mean of its frames, in linear light.

Sources: Nah et al., CVPR 2017 (averaged frames); Kroeger et al., ECCV 2016 (DIS flow).
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.blur import compress_highlights, expand_highlights
from pairforge.image import Image, Pixels, pixels_to_linear
from pairforge.rng import Rng

_MAX_FRAME_SAMPLES = 48


class TemporalBlurParams(Params):
    duty_cycle: float = Field(gt=0, le=1)
    """Exposure / length of the window of frames, centred on the middle frame."""
    highlight_gain: float = Field(ge=1)
    """Brightness of what a frame clipped, in units of white."""


def sample_temporal_blur(severity: float, rng: Rng) -> TemporalBlurParams:
    duty_cycle = min(1.0, 0.15 + 0.8 * severity + rng.uniform(-0.05, 0.05))
    return TemporalBlurParams(duty_cycle=duty_cycle, highlight_gain=rng.uniform(1.0, 4.0))


def frame_flow(first: Pixels, second: Pixels) -> NDArray[np.float32]:
    """DIS flow in px of the frame, from `first` to `second`, at a resolution of 64..512 px."""
    height, width = first.shape[:2]
    scale = max(min(1.0, 512 / max(height, width)), 64 / min(height, width))
    size = (round(width * scale), round(height * scale))
    start, end = (
        cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        for frame in (first, second)
    )
    flow: NDArray[np.float32] = np.zeros((size[1], size[0], 2), np.float32)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(start, end, flow)
    flow *= np.array([width / size[0], height / size[1]], np.float32)
    return flow


def frame_weights(frames: int, samples_per_gap: int, duty_cycle: float) -> NDArray[np.float64]:
    """Share of the exposure that falls on each of (frames - 1) * samples_per_gap + 1 instants; sum 1.

    The exposure is centred on frame `frames // 2`; with an even number of frames the first gets nothing.
    """
    middle = frames // 2
    half_cell = 0.5 / samples_per_gap
    times = np.arange((frames - 1) * samples_per_gap + 1) / samples_per_gap
    half = duty_cycle * (frames - 1 - middle + half_cell)
    opened = np.maximum(times - half_cell, middle - half)
    weights = np.maximum(np.minimum(times + half_cell, middle + half) - opened, 0)
    return np.asarray(weights / weights.sum())


def moved_by(image: Image, flow: NDArray[np.float32], time: float) -> Image:
    """The frame after `time` frame intervals (negative: before) of a motion `flow`; borders replicated."""
    if time == 0:
        return image
    height, width = image.shape[:2]
    warp = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(-time)
    warp[..., 0] += np.arange(width, dtype=np.float32)
    warp[..., 1] += np.arange(height, dtype=np.float32)[:, None]
    moved: Image = cv2.remap(image, warp, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved


def apply_temporal_blur(image_lin: Image, params: TemporalBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """Mean of the frames in linear light; the input must be the middle frame, `frames[len(frames) // 2]`.

    Where the 95th percentile of the flow exceeds 1 px a frame, instants between frames are warped in, at
    most 48 in all. Raises ValueError for fewer than 3 frames or another input.
    """
    frames = scene.frames
    if len(frames) < 3:
        raise ValueError(f"temporal_blur got {len(frames)} frames; it needs at least 3")
    middle_lin = pixels_to_linear(frames[len(frames) // 2])
    if middle_lin.shape != image_lin.shape or cv2.norm(middle_lin, image_lin, cv2.NORM_INF) > 1e-3:
        raise ValueError("temporal_blur must be the first step: its input is not the middle frame")
    gaps = len(frames) - 1
    flows = [frame_flow(frames[gap], frames[gap + 1]) for gap in range(gaps)]
    speed_px = max(float(np.percentile(np.hypot(flow[..., 0], flow[..., 1]), 95)) for flow in flows)
    samples_per_gap = max(1, min(math.ceil(speed_px), _MAX_FRAME_SAMPLES // gaps))
    weights = frame_weights(len(frames), samples_per_gap, params.duty_cycle)
    mean = np.zeros_like(image_lin)
    held, light = -1, image_lin
    for index in np.flatnonzero(weights):
        nearest = int(2 * index + samples_per_gap) // (2 * samples_per_gap)
        if nearest != held:
            held, light = nearest, expand_highlights(pixels_to_linear(frames[nearest]), params.highlight_gain)
        time = float(index) / samples_per_gap - nearest
        flow = flows[min(nearest, gaps - 1) if time >= 0 else nearest - 1]
        mean = cv2.scaleAdd(moved_by(light, flow, time), float(weights[index]), mean)
    mean = compress_highlights(mean, params.highlight_gain)
    realised = {"flow_p95_px": speed_px, "samples_per_gap": samples_per_gap}
    return Rendered(mean, image_lin, realised=realised)


TEMPORAL_BLUR = Degradation(
    name="temporal_blur",
    version=1,
    params_type=TemporalBlurParams,
    sample=sample_temporal_blur,
    apply=apply_temporal_blur,
    space="linear",
    needs=frozenset({"frames"}),
    source="Nah et al., CVPR 2017, averaged frames, in linear light; DIS flow between them",
)
