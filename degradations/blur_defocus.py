"""Defocus of a scene with depth: layers of equal blur, put over each other from far to near.

Source: thin-lens circle of confusion, c(z) = f A |1/z - 1/z_f|.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Depth, Params, Rendered, Scene
from degradations.blur import Psf, aperture_psf, compress_planes, convolve_planes, expand_to_planes
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
_STRIP_VALUES = 1 << 16
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


@dataclass(frozen=True)
class _Photo:
    """Red, green and blue, and the place of every pixel among the layers; sides are even where halved.

    A pixel is shared between its two nearest layers, so that a ramp of depth shows no steps. `row_range` and
    `column_range` hold the least and the greatest place in each row and column.
    """

    planes: Sequence[Plane]
    place: Plane
    row_range: tuple[Plane, Plane]
    column_range: tuple[Plane, Plane]


def _photo(planes: Sequence[Plane], place: Plane) -> _Photo:
    odd_height, odd_width = place.shape[0] % 2, place.shape[1] % 2
    if odd_height or odd_width:
        *planes, place = (
            cv2.copyMakeBorder(array, 0, odd_height, 0, odd_width, cv2.BORDER_REPLICATE) for array in (*planes, place)
        )
    return _Photo(planes, place, (place.min(1), place.max(1)), (place.min(0), place.max(0)))


def _box(photo: _Photo, index: int, margin: int) -> tuple[slice, slice] | None:
    """Rows and columns, at even offsets, in which a blurred layer may show; None where it is empty."""
    spans = []
    for (least, most), side in ((photo.row_range, photo.place.shape[0]), (photo.column_range, photo.place.shape[1])):
        used = np.flatnonzero((most > index - 1) & (least < index + 1))
        if used.size == 0:
            return None
        start, stop = max(int(used[0]) - margin, 0), min(int(used[-1]) + 1 + margin, side)
        spans.append(slice(start - start % 2, stop + stop % 2))
    return spans[0], spans[1]


def _layer(photo: _Photo, index: int, box: tuple[slice, slice], step: int, memory: Sequence[Plane]) -> list[Plane]:
    """Red, green and blue times alpha, and alpha; in a box, at 1/step of the resolution, in `memory`."""
    rows, columns = box
    height, width = rows.stop - rows.start, columns.stop - columns.start
    size = (height // step, width // step)
    layer = [plane.reshape(-1)[: size[0] * size[1]].reshape(size) for plane in memory]
    at_once = max(2, _STRIP_VALUES // width // 2 * 2)
    alpha, part = (np.empty((min(at_once, height), width), np.float32) for _ in range(2))
    for top in range(0, height, at_once):
        tall = min(at_once, height - top)
        strip = slice(rows.start + top, rows.start + top + tall)
        share, product = alpha[:tall], part[:tall]
        np.subtract(photo.place[strip, columns], np.float32(index), out=share)
        np.abs(share, out=share)
        np.subtract(np.float32(1), share, out=share)
        np.maximum(share, np.float32(0), out=share)
        inside = slice(top // step, (top + tall) // step)
        for plane, stored in zip((*photo.planes, None), layer, strict=True):
            whole = share if plane is None else np.multiply(plane[strip, columns], share, out=product)
            if step == 1:
                stored[inside] = whole
            else:
                cv2.resize(whole, (width // 2, tall // 2), stored[inside], interpolation=cv2.INTER_AREA)
    return layer


def _put_over(below: Sequence[Plane], above: Sequence[Plane]) -> None:
    """Premultiplied planes, alpha last; `below` is changed."""
    height, width = below[3].shape
    at_once = max(1, _STRIP_VALUES // width)
    behind = np.empty((min(at_once, height), width), np.float32)
    for top in range(0, height, at_once):
        rows = slice(top, min(top + at_once, height))
        left = np.subtract(np.float32(1), above[3][rows], out=behind[: rows.stop - top])
        for plane, part in zip(below, above, strict=True):
            np.multiply(plane[rows], left, out=plane[rows])
            np.add(plane[rows], part[rows], out=plane[rows])


def _stack(photo: _Photo, indices: Sequence[int], psfs: Sequence[Psf], step: int) -> list[Plane]:
    """Layers over each other, in order, premultiplied, at 1/step of the resolution of the photo."""
    size = (photo.place.shape[0] // step, photo.place.shape[1] // step)
    stack: list[Plane] = []
    memory: list[Plane] = []
    for index in indices:
        # More than the kernel reaches: mirroring at the edge of the box then finds zeros.
        box = _box(photo, index, step * (psfs[index].shape[0] // 2 + 1))
        if box is None:
            continue
        memory = memory or [np.empty(size, np.float32) for _ in range(4)]
        layer = _layer(photo, index, box, step, memory)
        convolve_planes(layer, psfs[index])
        if not stack and layer[0].shape == size:
            stack, memory = layer, []
            continue
        stack = stack or [np.zeros(size, np.float32) for _ in range(4)]
        rows, columns = (slice(span.start // step, span.stop // step) for span in box)
        _put_over([plane[rows, columns] for plane in stack], layer)
    return stack


def _doubled(stack: Sequence[Plane]) -> list[Plane]:
    height, width = stack[0].shape
    doubled = [np.empty((2 * height, 2 * width), np.float32) for _ in stack]
    for plane, large in zip(stack, doubled, strict=True):
        cv2.resize(plane, (2 * width, 2 * height), large, interpolation=cv2.INTER_CUBIC)
    return doubled


def _unpremultiplied(stack: Sequence[Plane]) -> list[Plane]:
    """What a blurred edge uncovers is filled from the surroundings, by dividing by the alpha that is there."""
    alpha = np.maximum(stack[3], np.float32(0.01), out=stack[3])
    return [np.divide(plane, alpha, out=plane) for plane in stack[:3]]


def _blur_in_layers(
    light: list[Plane], place: Plane, diameters: NDArray[np.float64], params: DefocusBlurParams
) -> list[Plane]:
    height, width = place.shape
    halved = np.abs(diameters) > (_HALVED_FROM_PX if min(height, width) >= _HALVED_LEAST_SIDE_PX else np.inf)
    acting = np.where(halved, np.sqrt(np.maximum(diameters**2 - _HALVING_SPREAD_PX2, 0)) / 2, np.abs(diameters))
    psfs = [aperture_psf(float(size), params.blades, params.roundness, params.blade_angle_deg) for size in acting]
    photo = _photo(light, place)
    if halved.all():
        planes = _doubled(_unpremultiplied(_stack(photo, range(len(psfs)), psfs, 2)))
        return [plane[:height, :width] for plane in planes]
    mixed: list[Plane] = []
    for chosen, step in ((halved & (diameters < 0), 2), (~halved, 1), (halved & (diameters > 0), 2)):
        stack = _stack(photo, np.flatnonzero(chosen).tolist(), psfs, step)
        if stack and step == 2:
            stack = _doubled(stack)
        if mixed and stack:
            _put_over(mixed, stack)
        mixed = mixed or stack
    return [plane[:height, :width] for plane in _unpremultiplied(mixed)]


def apply_defocus_blur(image_lin: Image, params: DefocusBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """Depth layers, blurred with premultiplied alpha and composited from far to near.

    Layers blurred by more than 8 px are worked on at half resolution, with discs that much smaller that the
    spread of a point stays. The layer `blur_diameter` holds |c(z)| in 1/256 px.
    """
    assert scene.depth is not None
    blur_px = signed_blur_px(scene.depth, params.aperture_mm, params.focus_m)
    assert blur_px.shape == image_lin.shape[:2], f"depth {blur_px.shape} for an image {image_lin.shape}"
    low, high = cv2.minMaxLoc(blur_px)[:2]
    stored = np.abs(blur_px)
    stored *= np.float32(256)
    stored += np.float32(0.5)
    layer = np.minimum(stored, np.float32(65535), out=stored).astype(np.uint16)
    diameters = layer_diameters(low, high)
    light = expand_to_planes(image_lin, params.highlight_gain)
    if len(diameters) == 1:
        iris = aperture_psf(abs(diameters[0]), params.blades, params.roundness, params.blade_angle_deg)
        convolve_planes(light, iris)
        planes = light
    else:
        blur_px -= np.float32(low)
        blur_px *= np.float32((len(diameters) - 1) / (high - low))
        planes = _blur_in_layers(light, blur_px, diameters, params)
    blurred = compress_planes(planes, params.highlight_gain)
    realised = {"blur_min_px": low, "blur_max_px": high, "depth_layers": len(diameters)}
    return Rendered(blurred, image_lin, {"blur_diameter": layer}, realised)


DEFOCUS_BLUR = Degradation(
    name="defocus_blur",
    version=2,
    params_type=DefocusBlurParams,
    sample=sample_defocus_blur,
    apply=apply_defocus_blur,
    space="linear",
    needs=frozenset({"depth"}),
    source="thin lens, circle of confusion f A |1/z - 1/z_f|",
)
