"""Scene maps as they are stored: at their provider's resolution, self-contained, the same bytes for the same map.

A packed map is `magic, SHA-256 of the rest, length of header, header (JSON), planes (zlib)`. Planes are 16-bit,
written as differences along rows with low and high bytes apart, which smooth planes compress well by.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairforge.image import Plane

Half = NDArray[np.float16]
Codes = NDArray[np.uint16]

NEAREST_M, FARTHEST_M = 0.01, 10_000.0
"""Distances that a map can hold; others are held at these limits."""
MAX_SEGMENTS = 65535

_DEPTH_MAGIC, _SEGMENTS_MAGIC = b"PFDEPTH1", b"PFSEGMT1"
_MAX_PIXELS = 2**27


@dataclass(frozen=True)
class DepthMap:
    """Inverse planar depth and sky probability (h, w) of a whole base, whatever the size of that base.

    `inverse_depth_per_m` is 1 / metres, within 1 / FARTHEST_M .. 1 / NEAREST_M. `focal_frac` is the focal length
    over the width of the base. `facts` holds what the provider found, as JSON values. `confidence` and `metric`
    as in `Depth`. Raises ValueError for planes of another type, shape or range.
    """

    inverse_depth_per_m: Half
    sky: Half
    focal_frac: float
    provider: str
    revision: str
    confidence: float
    metric: bool
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inverse, sky = self.inverse_depth_per_m, self.sky
        if inverse.dtype != np.float16 or sky.dtype != np.float16:
            raise ValueError(f"planes of a depth map are float16, not {inverse.dtype} and {sky.dtype}")
        if inverse.ndim != 2 or not inverse.size or inverse.shape != sky.shape:
            raise ValueError(f"planes of a depth map are (h, w) alike, not {inverse.shape} and {sky.shape}")
        # The smallest half float at or below 1 / FARTHEST_M must pass.
        if not (inverse >= 0.999 / FARTHEST_M).all() or not (inverse <= 1.001 / NEAREST_M).all():
            raise ValueError(f"inverse depth is outside {1 / FARTHEST_M} .. {1 / NEAREST_M} per metre, or NaN")
        if not ((sky >= 0) & (sky <= 1)).all():
            raise ValueError("sky probability is outside 0..1, or NaN")
        if not (math.isfinite(self.focal_frac) and self.focal_frac > 0):
            raise ValueError(f"focal_frac {self.focal_frac} is not above 0")
        _check_confidence(self.confidence)


@dataclass(frozen=True)
class SegmentMap:
    """Regions of a whole base: `labels` (h, w) holds 0 .. count - 1, each of them somewhere.

    Raises ValueError where that does not hold.
    """

    labels: Codes
    count: int
    provider: str
    revision: str
    confidence: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels.dtype != np.uint16 or self.labels.ndim != 2 or not self.labels.size:
            raise ValueError(f"labels are uint16 (h, w), not {self.labels.dtype} {self.labels.shape}")
        held = np.flatnonzero(np.bincount(self.labels.ravel()))
        if len(held) != self.count or held[-1] != self.count - 1:
            raise ValueError(f"labels are not 0 .. {self.count - 1}, each of them somewhere")
        _check_confidence(self.confidence)


def depth_map(
    inverse_depth_per_m: Plane,
    sky: Plane,
    *,
    focal_frac: float,
    provider: str,
    revision: str,
    confidence: float,
    metric: bool,
    facts: Mapping[str, Any],
) -> DepthMap:
    """A DepthMap of float32 planes, rounded to half floats and held within the limits."""
    inverse = np.clip(inverse_depth_per_m, 1 / FARTHEST_M, 1 / NEAREST_M).astype(np.float16)
    return DepthMap(
        inverse_depth_per_m=inverse,
        sky=np.clip(sky, 0, 1).astype(np.float16),
        focal_frac=focal_frac,
        provider=provider,
        revision=revision,
        confidence=round(confidence, 4),
        metric=metric,
        facts=facts,
    )


def compact_labels(labels: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """Labels renumbered 0 .. count - 1 in their order, without the numbers that no pixel has; and the count."""
    held, renumbered = np.unique(labels, return_inverse=True)
    return renumbered.reshape(labels.shape).astype(np.int32), len(held)


def pack_depth(held: DepthMap) -> bytes:
    """Bytes of a depth map; equal maps give equal bytes."""
    header = {
        "shape": list(held.sky.shape),
        "focal_frac": held.focal_frac,
        "metric": held.metric,
        **_origin(held),
    }
    return _pack(_DEPTH_MAGIC, header, held.inverse_depth_per_m.view(np.uint16), held.sky.view(np.uint16))


def unpack_depth(data: bytes) -> DepthMap:
    """The map of `pack_depth`. Raises ValueError for any other bytes."""
    header, (inverse, sky) = _unpack(_DEPTH_MAGIC, data, 2, "depth map")
    return DepthMap(inverse.view(np.float16), sky.view(np.float16), **header)


def pack_segments(held: SegmentMap) -> bytes:
    """Bytes of a segment map; equal maps give equal bytes."""
    header = {"shape": list(held.labels.shape), "count": held.count, **_origin(held)}
    return _pack(_SEGMENTS_MAGIC, header, held.labels)


def unpack_segments(data: bytes) -> SegmentMap:
    """The map of `pack_segments`. Raises ValueError for any other bytes."""
    header, (labels,) = _unpack(_SEGMENTS_MAGIC, data, 1, "segment map")
    return SegmentMap(labels, **header)


def _origin(held: DepthMap | SegmentMap) -> dict[str, Any]:
    return {
        "provider": held.provider,
        "revision": held.revision,
        "confidence": held.confidence,
        "facts": dict(held.facts),
    }


def _check_confidence(confidence: float) -> None:
    if not 0.0 <= confidence <= 1.0:
        raise ValueError(f"confidence {confidence} is outside 0..1")


def _pack(magic: bytes, header: dict[str, Any], *planes: Codes) -> bytes:
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    stacked = np.stack(planes).astype("<u2")
    steps = np.diff(stacked, axis=2, prepend=stacked.dtype.type(0))
    low_high = np.ascontiguousarray(steps.view(np.uint8).reshape(-1, 2).T)
    rest = struct.pack("<I", len(text)) + text + zlib.compress(low_high.tobytes(), 6)
    return magic + hashlib.sha256(rest).digest() + rest


def _unpack(magic: bytes, data: bytes, count: int, what: str) -> tuple[dict[str, Any], list[Codes]]:
    start = len(magic) + 32
    if data[: len(magic)] != magic:
        raise ValueError(f"not a stored {what}: it starts with {data[: len(magic)]!r}")
    rest = data[start:]
    if len(rest) < 4 or hashlib.sha256(rest).digest() != data[len(magic) : start]:
        raise ValueError(f"damaged {what}: {len(data)} bytes do not match their checksum")
    try:
        (length,) = struct.unpack_from("<I", rest)
        header = json.loads(rest[4 : 4 + length])
        height, width = header.pop("shape")
        size = 2 * count * height * width
        if not 0 < size <= 2 * count * _MAX_PIXELS:
            raise ValueError(f"shape {height} x {width}")
        raw = zlib.decompressobj().decompress(rest[4 + length :], size + 1)
        low_high = np.frombuffer(raw, np.uint8).reshape(2, size // 2)
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error) as error:
        raise ValueError(f"damaged {what}: {error}") from error
    steps = np.ascontiguousarray(low_high.T).view("<u2").reshape(count, height, width)
    planes = np.cumsum(steps, axis=2, dtype=np.uint16)
    return header, list(planes)
