"""Motion blur of a filmed scene: the mean of its frames, in linear light.

Sources: Nah et al., CVPR 2017 (averaged frames); Kroeger et al., ECCV 2016 (DIS flow).
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.blur import compress_highlights, expand_highlights
from pairforge.image import Image, Pixels, pixels_to_linear
from pairforge.records import SampleError
from pairforge.rng import Rng

_MAX_FRAME_SAMPLES = 48
_CUT_DISTANCE = 0.45
"""Share of the luma histogram (32 bins) that may change between neighbours; a cut changes most of it."""
_CUT_LEAST_SIDE_PX = 32
_FROZEN_CODES = 0.02
"""Mean absolute difference of neighbours; a frame that a codec repeats differs by less."""


class TemporalBlurParams(Params):
    duty_cycle: float = Field(gt=0, le=1)
    """Exposure / length of the window of frames, centred on the middle frame."""
    highlight_gain: float = Field(ge=1, le=16)
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


def check_shot(frames: Sequence[Pixels]) -> None:
    """Raises SampleError where frames differ in size, or where neighbours are of different shots."""
    before: NDArray[np.float32] | None = None
    for index, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            raise SampleError("frame_size", f"frame {index} is {frame.shape}, frame 0 is {frames[0].shape}")
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        share = cv2.calcHist([grey], [0], None, [32], [0, 256]).ravel() / np.float32(grey.size)
        changed = 0.0 if before is None else 0.5 * float(np.abs(share - before).sum())
        if changed > _CUT_DISTANCE and min(grey.shape) >= _CUT_LEAST_SIDE_PX:
            cut = f"{changed:.2f} of the luma histogram changes from frame {index - 1} to {index}"
            raise SampleError("scene_cut", f"{cut}; allowed is {_CUT_DISTANCE}")
        before = share


def check_moving(frames: Sequence[Pixels]) -> None:
    """Raises SampleError where a frame repeats the one before: for those who pick clips; a mean may hold both."""
    for index in range(1, len(frames)):
        difference = cv2.norm(frames[index], frames[index - 1], cv2.NORM_L1) / frames[index].size
        if difference < _FROZEN_CODES:
            same = f"frames {index - 1} and {index} differ by {difference:.3f} codes in the mean"
            raise SampleError("frozen_frame", f"{same}; needed is {_FROZEN_CODES}")


class _Motion:
    """Flow of one gap at the size of the frames, and where every pixel is looked up."""

    def __init__(self, flow: NDArray[np.float32], height: int, width: int) -> None:
        self.flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
        self.places = np.empty((height, width, 2), np.float32)
        self.places[..., 0] = np.arange(width, dtype=np.float32)
        self.places[..., 1] = np.arange(height, dtype=np.float32)[:, None]
        self.moved, self.lookup = np.empty((height, width, 3), np.float32), np.empty_like(self.places)

    def applied(self, image: Image, time: float) -> Image:
        """The frame after `time` intervals (negative: before), borders replicated; the next call overwrites it."""
        cv2.scaleAdd(self.flow, -time, self.places, self.lookup)
        cv2.remap(image, self.lookup, None, cv2.INTER_LINEAR, self.moved, cv2.BORDER_REPLICATE)
        return self.moved


def apply_temporal_blur(image_lin: Image, params: TemporalBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """Mean of the frames in linear light; the input must be the middle frame, `frames[len(frames) // 2]`.

    Where the 95th percentile of the flow exceeds 1 px a frame, instants between frames are warped in, at
    most 48 in all. Raises ValueError for fewer than 3 frames or another input, SampleError as `check_shot`.
    """
    frames = scene.frames
    if len(frames) < 3:
        raise ValueError(f"temporal_blur got {len(frames)} frames; it needs at least 3")
    middle_lin = pixels_to_linear(frames[len(frames) // 2])
    if middle_lin.shape != image_lin.shape or cv2.norm(middle_lin, image_lin, cv2.NORM_INF) > 1e-3:
        raise ValueError("temporal_blur must be the first step: its input is not the middle frame")
    check_shot(frames)
    gaps = len(frames) - 1
    flows = [frame_flow(frames[gap], frames[gap + 1]) for gap in range(gaps)]
    speed_px = max(float(np.percentile(np.hypot(flow[..., 0], flow[..., 1]), 95)) for flow in flows)
    samples_per_gap = max(1, min(math.ceil(speed_px), _MAX_FRAME_SAMPLES // gaps))
    weights = frame_weights(len(frames), samples_per_gap, params.duty_cycle)
    mean = np.zeros_like(image_lin)
    held, light, moving, motion = -1, image_lin, -1, None
    for index in np.flatnonzero(weights):
        nearest = int(2 * index + samples_per_gap) // (2 * samples_per_gap)
        if nearest != held:
            held, light = nearest, expand_highlights(pixels_to_linear(frames[nearest]), params.highlight_gain)
        time, moved = float(index) / samples_per_gap - nearest, light
        if time != 0:
            gap = nearest if time > 0 else nearest - 1
            if motion is None or gap != moving:
                moving, motion = gap, _Motion(flows[gap], *image_lin.shape[:2])
            moved = motion.applied(light, time)
        cv2.scaleAdd(moved, float(weights[index]), mean, mean)
    mean = compress_highlights(mean, params.highlight_gain)
    realised = {"flow_p95_px": speed_px, "samples_per_gap": samples_per_gap}
    return Rendered(mean, image_lin, realised=realised)


TEMPORAL_BLUR = Degradation(
    name="temporal_blur",
    version=3,
    params_type=TemporalBlurParams,
    sample=sample_temporal_blur,
    apply=apply_temporal_blur,
    space="linear",
    needs=frozenset({"frames"}),
    source="Nah et al., CVPR 2017, averaged frames, in linear light; DIS flow between them",
)
