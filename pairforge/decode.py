"""Arbitrary bytes to 8-bit sRGB pixels, or a typed refusal.

Pixels of an 8-bit image stay as they are where it carries no colour profile, or one that moves no colour
by more than one code (measured, not read off its name). What is changed, and how:

- Orientation of EXIF (JPEG, PNG, WebP), TIFF and AVIF is applied. XMP orientation is not read.
- An embedded ICC profile is converted to sRGB: relative colorimetric with black point compensation. One
  that cannot be read, or does not fit the image, is refused, for then the colours are not known.
- More than 8 bits are scaled by 255 / (2**bits - 1) and rounded to nearest, before the ICC conversion.
- An alpha channel is dropped where it is opaque everywhere; otherwise the image is refused.

The size that a header declares is checked before anything of that size is allocated. Each format is read
by its own Pillow class, not by `Image.open`, which depends on what the process has registered. Pillow's
`MAX_IMAGE_PIXELS` still bounds TIFF and WebP where `max_pixels` is larger (twice 89 million by default).

Not noticed: damage inside a JPEG or JPEG 2000 that its library papers over (a grey or shifted part);
cHRM of PNG; ICC profiles and calibrated colours of BMP and GIF; Adobe RGB that only EXIF names; a CMYK
JPEG whose inks are not inverted as Adobe's are.
"""

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL import Image as PILImage

from pairforge.containers import (
    Stored,
    check_png_sums,
    exif_orientation,
    read_avif,
    read_jpeg2000,
    read_png,
    read_webp,
    sniff,
)
from pairforge.icc import GREY_MODES, profile_name, to_srgb
from pairforge.image import Pixels
from pairforge.records import Fate, SampleError


@dataclass(frozen=True)
class DecodeLimits:
    """What a source may be: `max_bytes` as stored, `max_pixels` = width x height, sides in pixels."""

    max_bytes: int
    max_pixels: int
    max_side: int
    min_side: int

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; 1 or more is needed")


@dataclass(frozen=True)
class SourceFacts:
    """What the header says; width and height are after orientation.

    `format` is a key of containers.FORMATS; `mode` is Pillow's name of the stored layout; `orientation` is the EXIF
    code 1..8; `icc` is the profile's description; `bit_depth` counts the bits of one channel as stored;
    `coded` is True for a lossy codec, and for AVIF and JPEG 2000, which do not say whether they lost.
    """

    width: int
    height: int
    format: str
    mode: str
    orientation: int
    icc: str | None
    bit_depth: int
    coded: bool


_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # also of MPO: its first frame
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_CONTAINERS: dict[str, Callable[[bytes], Stored]] = {
    "PNG": read_png,
    "WEBP": read_webp,
    "AVIF": read_avif,
    "JPEG2000": read_jpeg2000,
}

_BAD_DATA = (SyntaxError, OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, OverflowError)
"""What Pillow's readers raise for bad bytes; the source is in memory, so OSError is never about storage."""

_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "YCbCr")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
_RAW_TAGS = {33421, 50706}
"""TIFF tags CFARepeatPatternDim and DNGVersion: a camera raw file, whose first page is a thumbnail."""
_STRIP_TAGS = ((273, 279), (324, 325))
"""Places and lengths of strips and of tiles."""
_TIFF_TAGS = {254, 256, 258, 262, 274, 284, 273, 279, 324, 325} | _RAW_TAGS
"""Also NewSubfileType, ImageWidth, BitsPerSample, PhotometricInterpretation, Orientation, PlanarConfig."""
_MAX_SCANS = 500
"""Of a progressive JPEG. Photos have about ten; each costs a pass over all pixels for a few bytes."""


def probe(data: bytes, limits: DecodeLimits) -> SourceFacts:
    """Facts from the headers alone: no pixel is decoded.

    Raises SampleError, fate REJECTED: too_many_bytes, unsupported_format, unsupported_mode, animated,
    too_many_pixels, side_too_long, too_small, too_many_scans, cmyk_without_profile; fate FAILED:
    empty_file, not_an_image, truncated, corrupt, bad_icc.
    """
    return _read_header(data, limits)[1]


def decode_source(data: bytes, limits: DecodeLimits) -> tuple[Pixels, SourceFacts]:
    """All pixels, (height, width, 3), upright and in sRGB, and the facts of `probe`.

    Raises SampleError: what `probe` raises, and transparent (REJECTED); truncated, corrupt and bad_icc
    here also stand for the pixel data and for a profile that opens but cannot be used.
    """
    image, facts, profile = _read_header(data, limits)
    if facts.format == "PNG":
        check_png_sums(data)
    opaque = _read_deep(image, data, facts) if _is_deep(image, facts) else _read_8bit(image)
    orientation = 1 if facts.format == "TIFF" else facts.orientation  # both TIFF readers have applied it
    pixels = _upright(np.asarray(to_srgb(opaque, profile)), orientation)
    if pixels.shape != (facts.height, facts.width, 3):
        raise SampleError("corrupt", f"pixels of shape {pixels.shape}; the header says {facts}")
    return pixels, facts


def _rejected(reason: str, detail: str) -> SampleError:
    return SampleError(reason, detail, Fate.REJECTED)


@contextmanager
def _bad_data_refused() -> Iterator[None]:
    """Only around calls into Pillow and OpenCV: anywhere else these exceptions are bugs."""
    with warnings.catch_warnings():
        # Pillow warns of damaged metadata and of large images; under `python -W error` it would raise.
        warnings.simplefilter("ignore")
        try:
            yield
        except PILImage.DecompressionBombError as error:
            raise _rejected("too_many_pixels", str(error)) from error
        except (*_BAD_DATA, struct.error, cv2.error) as error:
            detail = f"{type(error).__name__}: {error}"
            root = error.__cause__ or error  # the constructors wrap what they meet in SyntaxError
            cut = isinstance(root, EOFError | IndexError | struct.error) or "truncated" in detail.lower()
            raise SampleError("truncated" if cut else "corrupt", detail) from error


def _read_header(data: bytes, limits: DecodeLimits) -> tuple[ImageFile.ImageFile, SourceFacts, bytes | None]:
    if not data:
        raise SampleError("empty_file", "0 bytes; at least 1 is needed")
    if len(data) > limits.max_bytes:
        raise _rejected("too_many_bytes", f"{len(data)} bytes; at most {limits.max_bytes} are allowed")
    kind = sniff(data)
    stored = _CONTAINERS[kind](data) if kind in _CONTAINERS else Stored()
    if stored.size:
        check_size(*stored.size, limits)  # before Pillow's WebP reader allocates its canvas
    with _bad_data_refused():
        image = _READERS[kind](io.BytesIO(data))
        tags = _tiff_tags(image)
        _check_strips(tags, len(data))
        animated = stored.animated or (kind != "JPEG" and getattr(image, "is_animated", False))
    image.info.pop("xmp", None)  # or Pillow would turn a TIFF by the orientation it finds there
    orientation = _orientation(image, tags, stored.exif)
    turned = orientation > 4 and kind != "TIFF"
    width, height = image.size[::-1] if turned else image.size
    check_size(width, height, limits)
    if animated:
        raise _rejected("animated", f"{kind} with more than one frame or page; one is allowed")
    bit_depth = _bit_depth(image, tags, stored)
    _check_layout(image, kind, tags, bit_depth, stored)
    _check_scans(image, data)
    profile = _embedded_profile(image, stored.icc)
    icc = profile_name(profile, image.mode)
    coded = kind == "JPEG" or stored.lossy or image.info.get("compression") in _LOSSY_TIFF
    facts = SourceFacts(width, height, kind, image.mode, orientation, icc, bit_depth, coded)
    return image, facts, profile


def _tiff_tags(image: ImageFile.ImageFile) -> dict[int, Any]:
    """The tags of the first page that decide how it is read; none for another format."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return {}
    return {tag: image.tag_v2[tag] for tag in _TIFF_TAGS if tag in image.tag_v2}


def _check_strips(tags: dict[int, Any], stored_bytes: int) -> None:
    for places, lengths in _STRIP_TAGS:
        for place, length in zip(tags.get(places, ()), tags.get(lengths, ()), strict=False):
            if place + length > stored_bytes:
                raise SampleError("truncated", f"TIFF strip ends at {place + length} of {stored_bytes} bytes")


def check_size(width: int, height: int, limits: DecodeLimits) -> None:
    """Raises SampleError, fate REJECTED: too_many_pixels, side_too_long, too_small."""
    size = f"{width} x {height} pixels"
    if width * height > limits.max_pixels:
        raise _rejected("too_many_pixels", f"{size}; at most {limits.max_pixels} in all are allowed")
    if max(width, height) > limits.max_side:
        raise _rejected("side_too_long", f"{size}; sides of at most {limits.max_side} are allowed")
    if min(width, height) < limits.min_side:
        raise _rejected("too_small", f"{size}; sides of at least {limits.min_side} are needed")


def _check_layout(image: ImageFile.ImageFile, kind: str, tags: dict[int, Any], bit_depth: int, stored: Stored) -> None:
    if tags.keys() & _RAW_TAGS or tags.get(254) == 1:
        raise _rejected("unsupported_format", "camera raw, or a reduced copy, in TIFF; whole images are read")
    if stored.foreign_colour:
        raise _rejected("unsupported_mode", f"{stored.foreign_colour}; sRGB or an ICC profile is allowed")
    readable = image.mode in (*GREY_MODES, *_COLOUR_MODES, "CMYK") and (image.mode != "I" or kind == "PPM")
    if kind == "JPEG2000":
        readable &= bit_depth == 8
    if kind == "TIFF" and bit_depth > 8:
        grey = image.mode in ("I;16", "I;16B") and tags.get(262) == 1 and bit_depth in (12, 16)
        colour = image.mode in ("RGB", "RGBA") and tags.get(284, 1) == 1 and bit_depth == 16
        readable &= grey or colour
    if kind == "PPM":
        readable &= image.tile[0].codec_name != "ppm_plain"
    if not readable:
        layout = f"{kind} with {bit_depth}-bit {image.mode}, photometric {tags.get(262)}"
        raise _rejected("unsupported_mode", f"{layout}; integer grey, RGB, palette and CMYK are allowed")


def _check_scans(image: ImageFile.ImageFile, data: bytes) -> None:
    scans = data.count(b"\xff\xda") if image.info.get("progressive") else 1
    if scans > _MAX_SCANS:
        raise _rejected("too_many_scans", f"{scans} scans; at most {_MAX_SCANS} are allowed")


def _embedded_profile(image: ImageFile.ImageFile, container_icc: bytes | None) -> bytes | None:
    profile = container_icc or image.info.get("icc_profile")
    if isinstance(profile, bytes) or "icc_profile" not in image.info:
        return profile
    raise SampleError("bad_icc", f"the embedded profile is incomplete (a {type(profile).__name__})")


def _orientation(image: ImageFile.ImageFile, tags: dict[int, Any], exif: bytes | None) -> int:
    if tags:
        code = tags.get(274)
        return code if isinstance(code, int) and 1 <= code <= 8 else 1
    found = exif or image.info.get("exif")
    return exif_orientation(found) if isinstance(found, bytes) else 1


def _bit_depth(image: ImageFile.ImageFile, tags: dict[int, Any], stored: Stored) -> int:
    if tags:
        return int(max(tags.get(258, (1,))))
    if isinstance(image, PpmImagePlugin.PpmImageFile):
        return 1 if image.mode == "1" else _ppm_top(image).bit_length()
    return stored.bit_depth


def _ppm_top(image: ImageFile.ImageFile) -> int:
    """The largest code of a PPM, which Pillow keeps only in its decoder arguments."""
    args = image.tile[0].args
    if isinstance(args, tuple):
        return int(args[1])
    return 65535 if args == "I;16B" else 255


def _read_8bit(image: ImageFile.ImageFile) -> PILImage.Image:
    """8-bit L, RGB or CMYK, opaque."""
    with _bad_data_refused():
        _check_tiles(image)
        image.load()
        if image.has_transparency_data:
            _check_alpha(np.asarray(image.convert("RGBA"))[..., 3], 255)
        kept = image.mode in ("L", "RGB", "CMYK")
        return image if kept else image.convert("L" if image.mode in GREY_MODES else "RGB")


def _check_tiles(image: ImageFile.ImageFile) -> None:
    """Pillow leaves black what no strip of an uncompressed TIFF covers."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    separate = image.tag_v2.get(284) == 2 and image.tile[0].codec_name == "raw"
    needed = image.width * image.height * (len(image.getbands()) if separate else 1)
    boxes = [tile.extents for tile in image.tile if tile.extents]
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    if covered < needed:
        raise SampleError("truncated", f"TIFF strips cover {covered} of {needed} samples")


def _check_alpha(alpha: NDArray[Any], opaque: int) -> None:
    if alpha.min() < opaque:
        share = float((alpha < opaque).mean())
        raise _rejected("transparent", f"{share:.2%} of the pixels; all must be opaque")


def _is_deep(image: ImageFile.ImageFile, facts: SourceFacts) -> bool:
    """libavif reduces deep AVIF itself; PPM has codes that end anywhere below 65535."""
    if isinstance(image, PpmImagePlugin.PpmImageFile):
        return image.mode != "1" and _ppm_top(image) != 255
    return facts.bit_depth > 8 and facts.format != "AVIF"


def _read_deep(image: ImageFile.ImageFile, data: bytes, facts: SourceFacts) -> PILImage.Image:
    """8-bit L or RGB, opaque. Pillow truncates 16-bit colour to its high byte, so OpenCV reads that."""
    top = 2**facts.bit_depth - 1
    if facts.format == "PPM":
        top = _ppm_top(image)
        samples = _ppm_samples(image, data, top)
    elif facts.mode in GREY_MODES:
        with _bad_data_refused():
            _check_tiles(image)
            image.load()
        samples = np.asarray(image)
        if "transparency" in image.info:
            _check_alpha(samples != image.info["transparency"], 1)
    else:
        samples = _colour_samples(data, facts)
    return PILImage.fromarray(np.take(_to_8bit_table(top), samples))


@lru_cache(maxsize=8)  # bounded, because PPM may name 65,535 different tops
def _to_8bit_table(top: int) -> NDArray[np.uint8]:
    codes = np.arange(65536, dtype=np.uint32)
    return np.minimum((codes * 255 + top // 2) // top, 255).astype(np.uint8)


def _ppm_samples(image: ImageFile.ImageFile, data: bytes, top: int) -> NDArray[Any]:
    shape = (image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width)
    kind = np.dtype(np.uint8 if top < 256 else ">u2")
    needed = int(np.prod(shape)) * kind.itemsize
    stored = data[image.tile[0].offset :][:needed]
    if len(stored) < needed:
        raise SampleError("truncated", f"{len(stored)} bytes of samples; {needed} are needed")
    return np.frombuffer(stored, kind).reshape(shape)


def _colour_samples(data: bytes, facts: SourceFacts) -> NDArray[Any]:
    """16-bit RGB of a PNG or TIFF. OpenCV turns tRNS and grey with alpha of PNG into RGBA."""
    with _bad_data_refused():
        stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 3:
        raise SampleError("corrupt", f"OpenCV does not read this 16-bit {facts.format}")
    if stored.shape[2] == 4 and (facts.format == "PNG" or facts.mode == "RGBA"):
        _check_alpha(stored[..., 3], 65535)
    colours: NDArray[Any] = stored[..., 2::-1]
    return colours


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF orientation (EXIF 2.32, tag 0x0112): 5..8 swap rows and columns, then 2..8 mirror."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.array(pixels, order="C")  # a copy in any case: the arrays that Pillow lends are read-only
