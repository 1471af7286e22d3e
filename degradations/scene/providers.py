"""What a provider of scene maps must offer, and how one is made from plain settings.

Making one may load a model; calling it is a pure function of the pixels. Given maps are read from a file beside the
source and have `read` in place of a call.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from degradations.scene.depth import GeometricDepth
from degradations.scene.given import GivenDepth, GivenSegments
from degradations.scene.segments import SlicSegments
from degradations.scene.stored import DepthMap, SegmentMap
from pairforge.image import Pixels

Made = TypeVar("Made")

DEPTH_PROVIDERS = ("geometric", "transformers", "given")
SEGMENTS_PROVIDERS = ("slic", "sam2", "given")


class DepthProvider(Protocol):
    """`revision` changes whenever the same pixels may give another map, and is part of the key of a stored map."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...

    def __call__(self, base: Pixels) -> DepthMap: ...


class SegmentsProvider(Protocol):
    """As `DepthProvider`, for regions."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...

    def __call__(self, base: Pixels) -> SegmentMap: ...


def depth_provider(name: str, arguments: Mapping[str, Any]) -> DepthProvider | GivenDepth:
    """The provider of that name. Raises ValueError for an unknown name, or arguments that do not fit."""
    if name == "geometric":
        return _made(GeometricDepth, name, arguments)
    if name == "given":
        return _made(GivenDepth, name, arguments)
    if name == "transformers":
        from degradations.scene.learned import TransformersDepth

        return _made(TransformersDepth, name, arguments)
    raise ValueError(f"unknown depth provider {name!r}; known: {', '.join(DEPTH_PROVIDERS)}")


def segments_provider(name: str, arguments: Mapping[str, Any]) -> SegmentsProvider | GivenSegments:
    """The provider of that name. Raises ValueError for an unknown name, or arguments that do not fit."""
    if name == "slic":
        return _made(SlicSegments, name, arguments)
    if name == "given":
        return _made(GivenSegments, name, arguments)
    if name == "sam2":
        from degradations.scene.learned import Sam2Segments

        return _made(Sam2Segments, name, arguments)
    raise ValueError(f"unknown segments provider {name!r}; known: {', '.join(SEGMENTS_PROVIDERS)}")


def _made(kind: Callable[..., Made], name: str, arguments: Mapping[str, Any]) -> Made:
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"arguments {dict(arguments)} of provider {name!r} do not fit: {error}") from error
    return kind(**arguments)
