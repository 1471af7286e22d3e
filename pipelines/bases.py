"""Bases: sources cut to size, quantised to 8 bit, encoded once per (source, normalisation), then copied."""

import hashlib
from dataclasses import dataclass

import cv2

from pairforge.config import fingerprint
from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels, decode_png, encode_png, linear_to_srgb, pixels_to_linear, to_pixels
from pairforge.records import BaseRef, InfraError, SampleError, SourceRef
from pairforge.storage import Storage
from pipelines.catalog import CatalogRow
from pipelines.reading import hash_file, local_copy, read_frames, read_source
from pipelines.settings import Normalisation

_UNLIMITED = DecodeLimits(max_bytes=2**62, max_pixels=2**62, max_side=2**31, min_side=1)
"""Limits were applied when the source entered the catalog, to the same bytes."""


@dataclass(frozen=True)
class Base:
    """A base with its PNG; `name` is where it is stored below the root of the dataset."""

    pixels: Pixels
    png: bytes
    name: str
    ref: BaseRef


def source_ref(row: CatalogRow) -> SourceRef:
    """A catalog row as records name it."""
    return SourceRef(**{name: getattr(row, name) for name in SourceRef.model_fields})


def base_name(row: CatalogRow, window_start: int, rule: Normalisation) -> str:
    """Where the base of a record is stored: that of a photo, or of the middle frame of a window of a clip."""
    if row.kind != "video":
        return _name(row, rule, "")
    return _name(row, rule, _frame_suffix(window_start + row.window_frames // 2))


def load_base(storage: Storage, row: CatalogRow, rule: Normalisation, folder: str = "") -> Base:
    """The base of a photo: from the store, or made from the source and stored.

    `folder` is where relative paths start. Raises SampleError when the source cannot be decoded any
    more, or its bytes have changed (`source_changed`).
    """
    name = _name(row, rule, "")
    stored = _stored(storage, name, row, rule)
    if stored is not None:
        return stored
    return _store(storage, name, row, rule, _decoded(row, folder))


def cut_source(row: CatalogRow, rule: Normalisation, folder: str = "") -> Pixels:
    """The pixels that a base of a photo would have, without storing it. Raises SampleError as `load_base`."""
    pixels, _, _ = normalise(_decoded(row, folder), rule)
    return pixels


def _decoded(row: CatalogRow, folder: str) -> Pixels:
    data = read_source(row.uri, row.locator, at_most=row.size_bytes + 1, folder=folder)
    _check_unchanged(row, hashlib.sha256(data).hexdigest())
    pixels, _ = decode_source(data, _UNLIMITED)
    return pixels


def load_frames(
    storage: Storage, row: CatalogRow, start: int, rule: Normalisation, folder: str = ""
) -> tuple[Base, ...]:
    """The bases of a window of frames of a clip. Raises SampleError as `load_base` does."""
    names = [_name(row, rule, _frame_suffix(start + index)) for index in range(row.window_frames)]
    stored = [_stored(storage, name, row, rule) for name in names]
    bases = tuple(base for base in stored if base is not None)
    if len(bases) == len(names):
        return bases
    with local_copy(row.uri, folder) as path:
        _check_unchanged(row, hash_file(path)[0])
        frames = read_frames(path, start, row.window_frames)
    sizes = {frame.shape[1::-1] for frame in frames}
    if sizes != {(row.width, row.height)}:
        raise SampleError("frame_size_changes", f"frames of {sizes}; the first is {row.width} x {row.height}")
    return tuple(_store(storage, name, row, rule, f) for name, f in zip(names, frames, strict=True))


def normalise(pixels: Pixels, rule: Normalisation) -> tuple[Pixels, float, tuple[int, int, int, int]]:
    """Cut an image to its base; also scale and crop (x, y, width, height) in the scaled image."""
    height, width = pixels.shape[:2]
    scale, crop = _geometry(width, height, rule)
    if scale < 1:
        size = (round(width * scale), round(height * scale))
        # Shrinking adds up light, so it is done in linear light.
        pixels = to_pixels(linear_to_srgb(cv2.resize(pixels_to_linear(pixels), size, interpolation=cv2.INTER_AREA)))
    x, y, crop_width, crop_height = crop
    return pixels[y : y + crop_height, x : x + crop_width].copy(), scale, crop


def _geometry(width: int, height: int, rule: Normalisation) -> tuple[float, tuple[int, int, int, int]]:
    if rule.policy == "keep":
        return 1.0, (0, 0, width, height)
    scale = min(1.0, rule.size_px / min(width, height)) if rule.policy == "resize_crop" else 1.0
    width, height = round(width * scale), round(height * scale)
    crop_width, crop_height = min(width, rule.size_px), min(height, rule.size_px)
    return scale, ((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def _name(row: CatalogRow, rule: Normalisation, suffix: str) -> str:
    relevant = rule.model_dump(mode="json", exclude={"small"})
    return f"bases/{fingerprint(relevant)[:8]}/{row.source_id[:2]}/{row.source_id}{suffix}.png"


def _frame_suffix(frame: int) -> str:
    return f"-f{frame:06d}"


def _check_unchanged(row: CatalogRow, sha256: str) -> None:
    if sha256 != row.sha256:
        raise SampleError(
            "source_changed", f"{row.uri} has SHA-256 {sha256[:16]}..., the catalog saw {row.sha256[:16]}..."
        )


def _stored(storage: Storage, name: str, row: CatalogRow, rule: Normalisation) -> Base | None:
    try:
        png = storage.read(name)
    except FileNotFoundError:
        return None
    try:
        pixels = decode_png(png)
    except ValueError as error:
        raise InfraError(f"{storage.url(name)} is damaged: delete it, and it is made again") from error
    return _base(pixels, png, name, row, rule)


def _store(storage: Storage, name: str, row: CatalogRow, rule: Normalisation, source: Pixels) -> Base:
    pixels, _, _ = normalise(source, rule)
    png = encode_png(pixels)
    storage.write(name, png)
    return _base(pixels, png, name, row, rule)


def _base(pixels: Pixels, png: bytes, name: str, row: CatalogRow, rule: Normalisation) -> Base:
    scale, crop = _geometry(row.width, row.height, rule)
    assert pixels.shape[:2] == (crop[3], crop[2]), f"{name}: {pixels.shape} is not the crop {crop}"
    ref = BaseRef(
        policy=rule.policy,
        size_px=rule.size_px,
        scale=scale,
        crop_px=crop,
        width=crop[2],
        height=crop[3],
        sha256=hashlib.sha256(png).hexdigest(),
    )
    return Base(pixels, png, name, ref)
