"""From what a config says of depth and segments to what makes their maps."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from degradations.scene.given import GivenDepth, GivenSegments, Window
from degradations.scene.providers import depth_provider, segments_provider
from degradations.scene.stored import DepthMap, SegmentMap
from pairforge.records import SampleError
from pipelines.bases import Base
from pipelines.catalog import CatalogRow
from pipelines.reading import read_source

MakeMap = Callable[[Base, CatalogRow], DepthMap | SegmentMap]
"""From a base, and the source it was cut from, to its map. Raises SampleError."""


def open_provider(need: str, stated: Any, folder: str) -> MakeMap:
    """What makes the maps of a need; loads the model where there is one. `folder` is where relative paths start.

    Raises ValueError where a model cannot be loaded, or is not the one that is stated.
    """
    arguments = stated.model_dump(exclude={"provider", "model", "weights", "beside"})
    if hasattr(stated, "model"):
        _check_weights(stated)
        arguments.update(path=stated.model, device=_device())
    opened = (depth_provider if need == "depth" else segments_provider)(stated.provider, arguments)
    if isinstance(opened, GivenDepth | GivenSegments):
        given = opened
        return lambda base, row: _read_given(given, need, stated.beside, base, row, folder)
    made = opened
    return lambda base, row: made(base.pixels)


def _check_weights(stated: Any) -> None:
    from degradations.scene.learned import model_hash

    found = model_hash(stated.model)
    if found != stated.weights:
        raise ValueError(f"the model in {stated.model} has hash {found}; the config says weights: {stated.weights}")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _read_given(
    given: GivenDepth | GivenSegments, need: str, beside: str, base: Base, row: CatalogRow, folder: str
) -> DepthMap | SegmentMap:
    if row.locator or row.kind == "video":
        raise SampleError(f"no_{need}", f"given {need} lies beside sources that are files; {row.uri} is not one")
    name = beside.format(stem=PurePosixPath(row.uri).stem)
    uri = f"{row.uri.rpartition('/')[0]}/{name}" if "/" in row.uri else name
    try:
        return given.read(read_source(uri, "", folder=folder), uri, base.pixels, _window(base, row))
    except SampleError as refusal:
        raise SampleError(f"no_{need}", f"{uri}: {refusal.reason}") from refusal
    except ValueError as error:
        raise SampleError(f"unusable_{need}", str(error)) from error


def _window(base: Base, row: CatalogRow) -> Window:
    """What part of its source a base shows, as fractions of the source."""
    x, y, width, height = (value / base.ref.scale for value in base.ref.crop_px)
    return x / row.width, y / row.height, min(1.0, (x + width) / row.width), min(1.0, (y + height) / row.height)
