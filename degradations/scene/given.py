"""Depth and segments that were made elsewhere: a file beside the source, of one plane, that covers its whole frame.

Read are 8- and 16-bit PNG, TIFF (also float), `.npy`, and EXR where OpenCV was built for it (its wheels are
not).
"""

import io
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.scene.sky import sky_among_far
from degradations.scene.stored import (
    FARTHEST_M,
    MAX_SEGMENTS,
    NEAREST_M,
    DepthMap,
    SegmentMap,
    compact_labels,
    depth_map,
)
from pairforge.image import Pixels, Plane

Window = tuple[float, float, float, float]
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
"""Left, top, right and bottom of the part of a source that a base shows, as fractions of the source."""

_ASPECT_TOLERANCE = 0.03


@dataclass(frozen=True)
class GivenDepth:
    """Reads depth files; the fields say what their values mean.

    `unit`: "metres": a value times `scale` is planar depth (0.001 for millimetres); "per_metre": a value times
    `scale` is inverse depth; "disparity": scale and shift are unknown, bigger is nearer: the 2nd to 98th percentile
    of the values is laid over 1 / far_m .. 1 / near_m. `invalid_value` marks pixels without depth, as NaN and
    infinity always do, and values of 0 or less where the unit is not "disparity"; they take the depth of
    the nearest valid pixel. `focal_frac` is the focal length over the width of the source.
    Raises ValueError for values out of range.
    """

    unit: Literal["metres", "per_metre", "disparity"]
    scale: float = 1.0
    invalid_value: float | None = None
    near_m: float = 2.0
    far_m: float = 100.0
    focal_frac: float = 1.0
    name: str = field(default="given", init=False)

    def __post_init__(self) -> None:
        if self.unit not in ("metres", "per_metre", "disparity"):
            raise ValueError(f"unit {self.unit!r} of given depth is not metres, per_metre or disparity")
        check_range(self.near_m, self.far_m)
        if not (self.scale > 0 and np.isfinite(self.scale)):
            raise ValueError(f"scale {self.scale} of given depth is not above 0")

    @property
    def revision(self) -> str:
        """What the values of a file were taken for; the file itself is not part of it."""
        limits = f"-{self.near_m:g}-{self.far_m:g}" if self.unit == "disparity" else f"-{self.scale:g}"
        return f"1-{self.unit}{limits}-{self.invalid_value}-{self.focal_frac:g}"

    def read(self, data: bytes, file: str, base: Pixels, window: Window = WHOLE) -> DepthMap:
        """The map of a file `file` with the bytes `data`, for a base that shows `window` of its source.

        Planes have at most the size of the base. Raises ValueError, with the name of the file, where it cannot be
        read, has another shape than the source, no valid pixel, or disparity that is the same all over.
        """
        values = _part(_read_plane(data, file).astype(np.float64), window, base, file)
        valid = np.isfinite(values)
        if self.invalid_value is not None:
            valid &= values != self.invalid_value
        if self.unit != "disparity":
            valid &= values > 0
        if not valid.any():
            raise ValueError(f"{file} has no valid pixel")
        if self.unit == "disparity" and not has_span(values[valid]):
            raise ValueError(
                f"{file} is {values[valid][0]:g} all over: disparity without a range says nothing of depth"
            )
        inverse = _filled(self._inverse(values, valid), valid)
        inverse = _at_most(inverse, base, cv2.INTER_AREA)
        return depth_map(
            inverse,
            sky_among_far(base, inverse),
            focal_frac=self.focal_frac / (window[2] - window[0]),
            provider=self.name,
            revision=self.revision,
            confidence=0.9 if self.unit != "disparity" else 0.7,
            metric=self.unit != "disparity",
            facts={"valid_frac": round(float(valid.mean()), 4)},
        )

    def _inverse(self, values: NDArray[np.float64], valid: NDArray[np.bool_]) -> Plane:
        """Inverse depth (h, w) per metre; any value where not valid."""
        if self.unit == "disparity":
            return relative_to_inverse(np.where(valid, values, 0.0), valid, self.near_m, self.far_m)
        scaled = np.where(valid, values * self.scale, 1.0)
        inverse = 1.0 / scaled if self.unit == "metres" else scaled
        return np.clip(inverse, 1 / FARTHEST_M, 1 / NEAREST_M).astype(np.float32)


@dataclass(frozen=True)
class GivenSegments:
    """Reads label files: every distinct value is a region."""

    name: str = field(default="given", init=False)
    revision: str = field(default="1", init=False)

    def read(self, data: bytes, file: str, base: Pixels, window: Window = WHOLE) -> SegmentMap:
        """The map of a file, as `GivenDepth.read`. Raises ValueError, with the name of the file."""
        values = _read_plane(data, file)
        if values.dtype.kind not in "ui":
            raise ValueError(f"{file} holds {values.dtype}; labels are whole numbers")
        values = _part(values, window, base, file)
        numbered, _ = compact_labels(values)
        labels, count = compact_labels(_at_most(numbered, base, cv2.INTER_NEAREST_EXACT))
        if count > MAX_SEGMENTS:
            raise ValueError(f"{file} has {count} regions; at most {MAX_SEGMENTS} are held")
        return SegmentMap(labels.astype(np.uint16), count, self.name, self.revision, 0.9)


def check_range(near_m: float, far_m: float) -> None:
    """Raises ValueError unless NEAREST_M <= near_m < far_m <= FARTHEST_M."""
    if not NEAREST_M <= near_m < far_m <= FARTHEST_M:
        raise ValueError(f"near_m {near_m} and far_m {far_m} are not {NEAREST_M} <= near_m < far_m <= {FARTHEST_M}")


def relative_to_inverse(relative: NDArray[Any], valid: NDArray[np.bool_] | None, near_m: float, far_m: float) -> Plane:
    """Inverse depth per metre of relative inverse depth (h, w) whose scale and shift are unknown, bigger nearer.

    The 2nd to 98th percentile is laid over 1 / far_m .. 1 / near_m, and what lies outside is held there. A plane
    that is constant is far.
    """
    known = relative if valid is None else relative[valid]
    if not has_span(known):
        return np.full(relative.shape, 1.0 / far_m, np.float32)
    low, high = _ends(known)
    unit = np.clip((relative - low) / (high - low), 0.0, 1.0)
    inverse: Plane = (unit * (1.0 / near_m - 1.0 / far_m) + 1.0 / far_m).astype(np.float32)
    return inverse


def has_span(values: NDArray[Any]) -> bool:
    """Whether values differ by more than rounding, between their 2nd and 98th percentile."""
    low, high = _ends(values)
    return high - low > 1e-6 * max(abs(low), abs(high), 1e-6)


def _ends(values: NDArray[Any]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.02, 0.98)).tolist()
    return low, high


def _read_plane(data: bytes, file: str) -> NDArray[Any]:
    """One plane (h, w) of numbers. Raises ValueError."""
    if file.lower().endswith(".npy"):
        try:
            loaded = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{file} is not a .npy file of numbers: {error}") from error
    else:
        try:
            loaded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
        except cv2.error as error:
            raise ValueError(f"{file} cannot be decoded: {error}") from error
        if loaded is None:
            raise ValueError(f"{file} cannot be decoded: PNG, TIFF and NPY are read, EXR where OpenCV was built for it")
    plane: NDArray[Any] = loaded[..., 0] if loaded.ndim == 3 and loaded.shape[2] == 1 else loaded
    if plane.ndim != 2 or not plane.size or plane.dtype.kind not in "uif":
        raise ValueError(f"{file} holds {plane.dtype} of shape {plane.shape}, not one plane of numbers")
    return plane


def _part(plane: NDArray[Any], window: Window, base: Pixels, file: str) -> NDArray[Any]:
    """The part of a plane that belongs to a window. Raises ValueError where its aspect is not that of the base."""
    left, top, right, bottom = window
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"window {window} is not left < right, top < bottom within 0..1")
    height, width = plane.shape
    x0, y0 = round(left * width), round(top * height)
    part = plane[y0 : max(y0 + 1, round(bottom * height)), x0 : max(x0 + 1, round(right * width))]
    aspect = part.shape[1] / part.shape[0] * base.shape[0] / base.shape[1] if part.size else 0.0
    slack = _ASPECT_TOLERANCE + 1 / min(part.shape + base.shape[:2]) if part.size else 0.0
    if not 1 / (1 + slack) <= aspect <= 1 + slack:
        source = base.shape[1] / (right - left) / (base.shape[0] / (bottom - top))
        raise ValueError(
            f"{file} is {width} x {height} px, {width / height:.3f} times as wide as high, and its source is "
            f"{source:.3f} times: another aspect; the file has to cover the whole of its source"
        )
    return part


def _filled(inverse: Plane, valid: NDArray[np.bool_]) -> Plane:
    """`inverse` with the value of the nearest valid pixel where there is none."""
    if valid.all():
        return inverse
    missing = (~valid).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(missing, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    by_label = np.empty(int(nearest.max()) + 1, np.float32)
    by_label[nearest[valid]] = inverse[valid]
    filled: Plane = by_label[nearest]
    return filled


def _at_most(plane: NDArray[Any], base: Pixels, interpolation: int) -> NDArray[Any]:
    """`plane` at the size of the base where it is larger, and where the shapes differ by rounding alone."""
    height, width = base.shape[:2]
    if plane.shape[0] <= height and plane.shape[1] <= width:
        fits = abs(plane.shape[0] / height - plane.shape[1] / width) <= 1.0 / height + 1.0 / width
        if fits:
            return plane
        scale = min(plane.shape[0] / height, plane.shape[1] / width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
    shrunk: NDArray[Any] = cv2.resize(plane, (width, height), interpolation=interpolation)
    return shrunk
