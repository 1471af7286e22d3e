"""Defocus of a scene with depth: layers of equal blur, put over each other from far to near.

Source: thin-lens circle of confusion, c(z) = f A |1/z - 1/z_f|.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Depth, Params, Rendered, Scene
from degradations.blur import (
    Psf,
    aperture_psf,
    compress_planes,
    compress_strip,
    compression_table,
    convolve_planes,
    expand_strip,
    expand_to_planes,
    expansion_table,
)
from pairforge.image import Image, Plane
from pairforge.rng import Rng, log_uniform

_MOST_LAYERS = 8
_HALVED_FROM_PX = 4.0
"""A disc of this diameter leaves hardly any detail that half the resolution does not hold."""
_LEAST_STEP_PX = 2.0
"""Between layers: a point that two discs share, which differ by less, looks like one disc."""
_SAME_PX = 0.5
"""Diameters within this range are one."""
_HALVED_LEAST_SIDE_PX = 96
_STRIP_VALUES = 1 << 15
_DOUBLED_VALUES = 1 << 17
"""Doubling has a cost for every call that larger strips spread."""
_HALVING_SPREAD_PX2 = 6.4
"""What halving, doubling and coarser pixels add to the square of the diameter of a disc."""


class DefocusBlurParams(Params):
    aperture_mm: float = Field(gt=0, le=200)
    """Diameter of the entrance pupil."""
    focus_m: float = Field(gt=0, le=10000)
    blades: int = Field(ge=3, le=32)
    """Number of blades of the iris: corners of the polygon."""
    roundness: float = Field(ge=0, le=1)
    """0: straight blades; 1: a circle."""
    blade_angle_deg: float = Field(ge=-720, le=720)
    highlight_gain: float = Field(ge=1, le=16)
    """Brightness of what the photo clipped, in units of white."""


def sample_defocus_blur(severity: float, rng: Rng) -> DefocusBlurParams:
    """Aperture / focus distance, which is the blur of infinity in focal lengths, follows severity.

    Focus lies nearer than most subjects: missed, as a degradation has it, and not bokeh behind a sharp one.
    """
    infinity_blur = 0.0015 * 18**severity * rng.uniform(0.9, 1.1)
    focus_m = log_uniform(rng, 0.6, 1.7)
    return DefocusBlurParams(
        aperture_mm=1000 * infinity_blur * focus_m,
        focus_m=focus_m,
        blades=int(rng.integers(5, 10)),
        roundness=rng.uniform(0.1, 0.8),
        blade_angle_deg=rng.uniform(0, 360),
        highlight_gain=rng.uniform(1.5, 4.0),
    )


def signed_blur_px(depth: Depth, aperture_mm: float, focus_m: float) -> Plane:
    """Diameter of the circle of confusion, f A (1/z - 1/z_f): positive in front of the focus plane."""
    scale = depth.focal_px * aperture_mm / 1000
    blur: Plane = cv2.divide(np.float32(scale), depth.z_m)
    blur -= np.float32(scale / focus_m)
    return blur


def layer_diameters(low_px: float, high_px: float) -> NDArray[np.float64]:
    """Signed blur diameters of the layers, evenly spaced; a single one where blur hardly differs."""
    step_px = max(_LEAST_STEP_PX, 0.2 * max(-low_px, high_px))
    count = min(_MOST_LAYERS, 1 + max(0, math.ceil((high_px - low_px - _SAME_PX) / step_px)))
    return np.linspace(low_px, high_px, count) if count > 1 else np.array([(low_px + high_px) / 2])


Box = tuple[slice, slice]


@dataclass(frozen=True)
class _Layer:
    """Red, green and blue times alpha, and alpha, in a box of rows and columns; and the kernel that blurs them."""

    planes: list[Plane]
    box: Box
    psf: Psf


Ranges = tuple[tuple[Plane, Plane], tuple[Plane, Plane]]
"""Least and greatest place of every row, and of every column."""


def _ranges(place: Plane) -> Ranges:
    return (place.min(1), place.max(1)), (place.min(0), place.max(0))


def _empty_layer(index: int, ranges: Ranges, psf: Psf) -> _Layer | None:
    """Memory for a layer, boxed to where it shows once it is blurred; None where it has no pixels."""
    # More than the kernel reaches: mirroring at the edge of the box then finds zeros.
    margin, spans = psf.shape[0] // 2 + 1, []
    for least, most in ranges:
        used = np.flatnonzero((most > index - 1) & (least < index + 1))
        if not used.size:
            return None
        spans.append(slice(max(int(used[0]) - margin, 0), min(int(used[-1]) + 1 + margin, len(least))))
    rows, columns = spans
    size = (rows.stop - rows.start, columns.stop - columns.start)
    return _Layer([np.empty(size, np.float32) for _ in range(4)], (rows, columns), psf)


def _fill(layer: _Layer, index: int, colours: Sequence[Plane], place: Plane, top: int) -> None:
    """Rows of a layer from the rows of a photo that begin at `top`.

    A pixel is shared between its two nearest layers, so that a ramp of depth shows no steps.
    """
    rows, columns = layer.box
    first, last = max(top, rows.start), min(top + len(place), rows.stop)
    if first >= last:
        return
    of_photo, stored = slice(first - top, last - top), slice(first - rows.start, last - rows.start)
    share = np.subtract(place[of_photo, columns], np.float32(index), out=layer.planes[3][stored])
    np.abs(share, out=share)
    np.subtract(np.float32(1), share, out=share)
    np.maximum(share, np.float32(0), out=share)
    for colour, plane in zip(colours, layer.planes, strict=False):
        np.multiply(colour[of_photo, columns], share, out=plane[stored])


def _halve(plane: Plane, out: Plane) -> None:
    """Means of 2 x 2 pixels; an odd side ends with a pixel that counts twice."""
    height, width = plane.shape
    if height % 2 or width % 2:
        plane = cv2.copyMakeBorder(plane, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    cv2.resize(plane, out.shape[::-1], out, interpolation=cv2.INTER_AREA)


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First row of every strip and the row after its last, an even number of rows apart."""
    at_once = max(2, _STRIP_VALUES // width // 2 * 2)
    for top in range(0, height, at_once):
        yield top, min(top + at_once, height)


def _put_over(below: Sequence[Plane], above: Sequence[Plane]) -> None:
    """Premultiplied planes, alpha last, which `below` may lack; `below` is changed."""
    height, width = above[3].shape
    memory = np.empty((min(height, _STRIP_VALUES // width + 2), width), np.float32)
    for top, bottom in _strips(height, width):
        left = np.subtract(np.float32(1), above[3][top:bottom], out=memory[: bottom - top])
        for plane, part in zip(below, above, strict=False):
            strip = plane[top:bottom]
            np.multiply(strip, left, out=strip)
            np.add(strip, part[top:bottom], out=strip)


def _stacked(layers: Iterable[_Layer], size: tuple[int, int]) -> list[Plane]:
    """Blurred layers over each other, in order, premultiplied; nothing where there are none. Uses them up."""
    stack: list[Plane] = []
    for layer in layers:
        if stack:
            _put_over([plane[layer.box] for plane in stack], layer.planes)
        elif layer.planes[0].shape == size:
            stack = layer.planes
        else:
            stack = [np.zeros(size, np.float32) for _ in range(4)]
            for plane, part in zip(stack, layer.planes, strict=True):
                plane[layer.box] = part
    return stack


def _blurred_layers(
    colours: Sequence[Plane], place: Plane, ranges: Ranges, psfs: Mapping[int, Psf]
) -> Iterator[_Layer]:
    """Layers of a photo, one at a time."""
    for index, psf in psfs.items():
        layer = _empty_layer(index, ranges, psf)
        if layer:
            _fill(layer, index, colours, place, 0)
            convolve_planes(layer.planes, layer.psf)
            yield layer


def _filled(stack: Sequence[Plane]) -> list[Plane]:
    """A stack made opaque wherever there is anything of it: what a blurred edge uncovers is filled from around it."""
    alpha = np.maximum(stack[3], np.float32(0.01))
    return [np.divide(plane, alpha, out=plane) for plane in stack]


def _doubled(planes: Sequence[Plane], top: int, bottom: int, width: int) -> list[Plane]:
    """Rows of planes of half size at the size of the photo; `top` is even."""
    # The interpolation reaches two rows, so that strips meet without a seam.
    first, last = max(top // 2 - 2, 0), min(-(-bottom // 2) + 2, len(planes[0]))
    size = (2 * planes[0].shape[1], 2 * (last - first))
    enlarged = (cv2.resize(plane[first:last], size, interpolation=cv2.INTER_CUBIC) for plane in planes)
    return [plane.reshape(size[::-1])[top - 2 * first : bottom - 2 * first, :width] for plane in enlarged]


def _blur_in_layers(image_lin: Image, place: Plane, diameters: NDArray[np.float64], params: DefocusBlurParams) -> Image:
    height, width = place.shape
    halved = np.abs(diameters) > (_HALVED_FROM_PX if min(height, width) >= _HALVED_LEAST_SIDE_PX else np.inf)
    acting = np.where(halved, np.sqrt(np.maximum(diameters**2 - _HALVING_SPREAD_PX2, 0)) / 2, np.abs(diameters))
    psfs = [aperture_psf(float(size), params.blades, params.roundness, params.blade_angle_deg) for size in acting]
    small = [np.empty((-(-height // 2), -(-width // 2)), np.float32) for _ in range(4 if halved.any() else 0)]
    ranges = None if halved.all() else _ranges(place)
    boxed = {index: _empty_layer(index, ranges, psfs[index]) for index in np.flatnonzero(~halved).tolist() if ranges}
    sharp = {index: layer for index, layer in boxed.items() if layer}
    table = expansion_table(params.highlight_gain)
    memory = [np.empty((_STRIP_VALUES // width + 2, width), np.float32) for _ in range(3)]
    for top, bottom in _strips(height, width):
        colours = [plane[: bottom - top] for plane in memory]
        expand_strip(image_lin[top:bottom], table, colours)
        for index, layer in sharp.items():
            _fill(layer, index, colours, place[top:bottom], top)
        for plane, half in zip((*colours, place[top:bottom]), small, strict=False):
            _halve(plane, half[top // 2 : -(-bottom // 2)])
    stacks: list[list[Plane]] = [[], []]
    if small:
        ranges, size = _ranges(small[3]), small[3].shape
        for which, chosen in enumerate((halved & (diameters < 0), halved & (diameters > 0))):
            of_stack = {index: psfs[index] for index in np.flatnonzero(chosen).tolist()}
            stacks[which] = _stacked(_blurred_layers(small[:3], small[3], ranges, of_stack), size)
    small.clear()
    for layer in sharp.values():
        convolve_planes(layer.planes, layer.psf)
    return _composed(stacks[0], list(sharp.values()), stacks[1], (height, width), params.highlight_gain)


def _composed(
    behind: list[Plane], sharp: Sequence[_Layer], before: list[Plane], size: tuple[int, int], gain: float
) -> Image:
    """Stacks of half size behind and before layers of whole size, put over each other, highlights compressed.

    Uses all of them up.
    """
    height, width = size
    table, image = compression_table(gain), np.empty((height, width, 3), np.float32)
    if behind:
        behind = _filled(behind)
    elif sharp:
        behind, sharp = _filled(_stacked(sharp, size)), []
    else:
        behind, before = _filled(before), []
    at_once = max(2, _DOUBLED_VALUES // width // 2 * 2)
    for top in range(0, height, at_once):
        bottom = min(top + at_once, height)
        scale = 1 if behind[0].shape == size else 2
        # Over what is opaque everything stays opaque.
        opaque = float(behind[3][max(top // scale - 2, 0) : -(-bottom // scale) + 2].min()) >= 1
        planes = behind[:3] if opaque else behind
        planes = [plane[top:bottom] for plane in planes] if scale == 1 else _doubled(planes, top, bottom, width)
        for layer in sharp:
            rows, columns = layer.box
            first, last = max(top, rows.start), min(bottom, rows.stop)
            if first < last:
                part = [plane[first - rows.start : last - rows.start] for plane in layer.planes]
                _put_over([plane[first - top : last - top, columns] for plane in planes], part)
        if before:
            _put_over(planes, _doubled(before, top, bottom, width))
        for start, stop in _strips(bottom - top, width):
            strip = [plane[start:stop] for plane in planes]
            colours = strip if opaque else _filled(strip)[:3]
            compress_strip(colours, gain, table, image[top + start : top + stop])
    return image


def apply_defocus_blur(image_lin: Image, params: DefocusBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """Depth layers, blurred with premultiplied alpha and composited from far to near.

    Layers blurred by more than 4 px are worked on at half resolution, with discs that much smaller that the
    spread of a point stays. The layer `blur_diameter` holds |c(z)| in 1/256 px.
    """
    assert scene.depth is not None
    blur_px = signed_blur_px(scene.depth, params.aperture_mm, params.focus_m)
    assert blur_px.shape == image_lin.shape[:2], f"depth {blur_px.shape} for an image {image_lin.shape}"
    low, high = cv2.minMaxLoc(blur_px)[:2]
    layer = np.empty(blur_px.shape, np.uint16)
    for top, bottom in _strips(image_lin.shape[0], image_lin.shape[1]):
        size_px = np.abs(blur_px[top:bottom])
        cv2.addWeighted(size_px, 256, size_px, 0, 0, layer[top:bottom], cv2.CV_16U)
    diameters = layer_diameters(low, high)
    if len(diameters) == 1:
        light = expand_to_planes(image_lin, params.highlight_gain)
        iris = aperture_psf(abs(diameters[0]), params.blades, params.roundness, params.blade_angle_deg)
        convolve_planes(light, iris)
        blurred = compress_planes(light, params.highlight_gain)
    else:
        blur_px -= np.float32(low)
        blur_px *= np.float32((len(diameters) - 1) / (high - low))
        blurred = _blur_in_layers(image_lin, blur_px, diameters, params)
    realised = {"blur_min_px": low, "blur_max_px": high, "depth_layers": len(diameters)}
    return Rendered(blurred, image_lin, {"blur_diameter": layer}, realised)


DEFOCUS_BLUR = Degradation(
    name="defocus_blur",
    version=3,
    params_type=DefocusBlurParams,
    sample=sample_defocus_blur,
    apply=apply_defocus_blur,
    space="linear",
    needs=frozenset({"depth"}),
    source="thin lens, circle of confusion f A |1/z - 1/z_f|",
)
