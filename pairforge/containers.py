"""What the bytes of an image file say beyond what Pillow reports, or before Pillow reports it. No pixels.

The format, then PNG chunks, RIFF, ISO base media boxes, the JPEG 2000 codestream and EXIF. Every `read_*`
raises SampleError `truncated` or `corrupt` (FAILED) where the structure does not hold.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pairforge.records import Fate, SampleError

FORMATS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "AVIF": rb".{4}ftyp.{0,48}?avi[fs]",
    "TIFF": rb"(?:II[*+]\0|MM\0[*+])(?!.{4}CR)",
    "BMP": rb"BM.{12}[\x0c(48@l|]\0\0\0",
    "PPM": rb"P[1-6f][\s#]",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "GIF": rb"GIF8[79]a",
}
"""Formats that are read, and patterns of their first bytes. File names are never looked at."""

_UNREAD_FORMATS = {
    "Photoshop": rb"8BPS",
    "PDF": rb"%PDF-",
    "PostScript": rb"%!PS",
    "SVG": rb"\s*<(?:\?xml|!--|!DOCTYPE svg|svg[\s>]).{0,3000}?svg",
    "icon": rb"\0\0[\x01\x02]\0.\0",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?(?:RADIANCE|RGBE)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "HEIF or video": rb".{4}ftyp",
    "DirectDraw surface": rb"DDS ",
    "QOI": rb"qoif",
    "camera raw": rb"II[*]\0.{4}CR|FUJIFILMCCD-RAW|IIRO|IIU\0",
    "FITS": rb"SIMPLE  =",
    "MNG": rb"[\x8a\x8b][MJ]NG",
    "GIMP": rb"gimp xcf",
    "colour PFM": rb"PF[\s#]",
    "video": rb"RIFF.{4}AVI |\x1a\x45\xdf\xa3",
}

_SDR_PRIMARIES = {1, 2, 5, 6}
_SDR_TRANSFERS = {1, 2, 6, 13, 14, 15}
"""ITU-T H.273 codes that are read as sRGB: BT.709, unspecified, BT.601, and the transfer curve of sRGB."""

_HDR_TRANSFERS = {16, 18}
"""PQ and HLG: no ICC profile makes them 8-bit sRGB."""


@dataclass(frozen=True)
class Stored:
    """`size` is (width, height) before orientation. `foreign_colour`: colours no profile explains."""

    bit_depth: int = 8
    lossy: bool = False
    animated: bool = False
    size: tuple[int, int] | None = None
    exif: bytes | None = None
    icc: bytes | None = None
    foreign_colour: str | None = None


def sniff(data: bytes) -> str:
    """Key of FORMATS. Raises SampleError: unsupported_format (REJECTED), or not_an_image (FAILED)."""
    head = data[:4096]
    for name, magic in FORMATS.items():
        if re.match(magic, head, re.DOTALL):
            return name
    allowed = ", ".join(FORMATS)
    for name, magic in _UNREAD_FORMATS.items():
        if re.match(magic, head, re.DOTALL):
            raise SampleError("unsupported_format", f"{name}; allowed are {allowed}", Fate.REJECTED)
    raise SampleError("not_an_image", f"starts with {head[:16]!r}; allowed are {allowed}")


def exif_orientation(exif: bytes) -> int:
    """EXIF tag 0x0112 of the first directory, 1..8. 1 where absent, unreadable or out of range."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    start = struct.unpack_from(f"{order}I", tiff, 4)[0]
    if start + 2 > len(tiff):
        return 1
    count = struct.unpack_from(f"{order}H", tiff, start)[0]
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, values, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == 0x0112:
            return value if (kind, values) == (3, 1) and 1 <= value <= 8 else 1
    return 1


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start and end of the content) up to and including IEND."""
    start = 8
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if end + 4 > len(data):
            raise SampleError("truncated", f"PNG chunk {kind!r} ends at {end + 4} of {len(data)} bytes")
        yield kind, start + 8, end
        if kind == b"IEND":
            return
        start = end + 4
    raise SampleError("truncated", f"PNG of {len(data)} bytes without IEND")


def check_png_sums(data: bytes) -> None:
    """Raises SampleError where a checksum is wrong; Pillow does not look at those of the pixel data."""
    view = memoryview(data)
    for kind, start, end in _png_chunks(data):
        if zlib.crc32(view[start - 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise SampleError("corrupt", f"checksum of PNG chunk {kind!r} at byte {start}")


def read_png(data: bytes) -> Stored:
    """Size, depth, EXIF wherever it stands, animation, colour chunks (PNG 3rd edition)."""
    found: dict[bytes, bytes] = {}
    for kind, start, end in _png_chunks(data):
        if (kind == b"IHDR") != (start == 16) or (kind == b"IHDR" and end != 29):
            raise SampleError("corrupt", f"PNG chunk {kind!r} at byte {start}; IHDR must come first, once")
        if kind in (b"IHDR", b"eXIf", b"acTL", b"cICP", b"sRGB", b"gAMA"):
            found[kind] = data[start:end]
        elif kind in (b"iCCP", b"IDAT"):
            found[kind] = b""
    if b"IDAT" not in found:
        raise SampleError("corrupt", "PNG without IDAT")
    width, height, bit_depth = struct.unpack_from(">IIB", found[b"IHDR"])
    return Stored(
        bit_depth=bit_depth,
        animated=b"acTL" in found,
        size=(width, height),
        exif=found.get(b"eXIf"),
        foreign_colour=_png_colour(found),
    )


def _png_colour(found: dict[bytes, bytes]) -> str | None:
    """cICP counts before iCCP, that before sRGB, that before gAMA."""
    if len(coding := found.get(b"cICP", b"")) == 4:
        return _h273_colour(coding[0], coding[1], b"iCCP" in found)
    if len(gamma := found.get(b"gAMA", b"")) == 4 and not found.keys() & {b"iCCP", b"sRGB"}:
        exponent = int.from_bytes(gamma) / 100_000
        if abs(exponent * 2.2 - 1) > 0.05:
            return f"gAMA {exponent}"
    return None


def _h273_colour(primaries: int, transfer: int, has_profile: bool) -> str | None:
    standard = primaries in _SDR_PRIMARIES and transfer in _SDR_TRANSFERS
    if standard or (has_profile and transfer not in _HDR_TRANSFERS):
        return None
    return f"colour primaries {primaries} with transfer {transfer} (ITU-T H.273)"


def read_webp(data: bytes) -> Stored:
    """Canvas size and codec of a WebP file (RFC 9649)."""
    declared = int.from_bytes(data[4:8], "little") + 8
    if len(data) < max(declared, 30):
        raise SampleError("truncated", f"WebP of {len(data)} bytes; its header says {declared}")
    kinds = set()
    start = 12
    while start + 8 <= declared:
        kinds.add(data[start : start + 4])
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + length + length % 2
    return Stored(lossy=b"VP8 " in kinds, animated=bool({b"ANIM", b"ANMF"} & kinds), size=_webp_size(data))


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise SampleError("corrupt", f"WebP starts with chunk {kind!r}; VP8, VP8L or VP8X is needed")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start and end of the content) of ISO base media boxes (ISO/IEC 14496-12, 4.2)."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1 and start + 16 <= end:
            size = struct.unpack_from(">Q", data, start + 8)[0]
            header = 16
        elif size == 0:
            size = end - start
        if size < header:
            raise SampleError("corrupt", f"box {kind!r} of {size} bytes at byte {start}")
        if start + size > end:
            raise SampleError("truncated", f"box {kind!r} ends at {start + size} of {end} bytes")
        yield kind, start + header, start + size
        start += size


def read_avif(data: bytes) -> Stored:
    """Bit depth and colour of an AVIF file, from the item properties (AV1 Image File Format 1.1)."""
    properties = [
        (kind, data[start:end])
        for meta, meta_start, meta_end in _boxes(data, 0, len(data))
        if meta == b"meta"
        for iprp, iprp_start, iprp_end in _boxes(data, meta_start + 4, meta_end)
        if iprp == b"iprp"
        for ipco, ipco_start, ipco_end in _boxes(data, iprp_start, iprp_end)
        if ipco == b"ipco"
        for kind, start, end in _boxes(data, ipco_start, ipco_end)
    ]
    deep = [body[2] & 0x60 for kind, body in properties if kind == b"av1C" and len(body) >= 4]
    colours = [body for kind, body in properties if kind == b"colr"]
    has_profile = any(body[:4] in (b"prof", b"rICC") for body in colours)
    codes = [struct.unpack_from(">HH", body, 4) for body in colours if body[:4] == b"nclx" and len(body) >= 8]
    foreign = [_h273_colour(primaries, transfer, has_profile) for primaries, transfer in codes]
    return Stored(
        bit_depth=12 if 0x60 in deep else 10 if 0x40 in deep else 8,
        lossy=True,
        foreign_colour=next(filter(None, foreign), None),
    )


def read_jpeg2000(data: bytes) -> Stored:
    """Size, depth and colour of a JP2 file or of a bare codestream (ITU-T T.800, annexes A and I)."""
    icc = foreign = None
    stream = data if data.startswith(b"\xff\x4f") else b""
    if not stream:
        for kind, start, end in _boxes(data, 0, len(data)):
            if kind == b"jp2h":
                icc, foreign = _jp2_colour(data, start, end)
            elif kind == b"jp2c":
                stream = stream or data[start:end]
    if len(stream) < 45 or not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise SampleError("truncated", f"JPEG 2000 codestream of {len(stream)} bytes without an end marker")
    right, lower, left, upper = struct.unpack_from(">IIII", stream, 8)
    parts = int.from_bytes(stream[40:42])
    depths = stream[42 : 42 + 3 * parts : 3]
    if not depths:
        raise SampleError("corrupt", "JPEG 2000 without components")
    # The top bit marks signed samples, which no photo has: counted as a depth that is not read.
    return Stored(
        bit_depth=max(depths) + 1,
        lossy=True,
        size=(right - left, lower - upper),
        icc=icc,
        foreign_colour=foreign,
    )


def _jp2_colour(data: bytes, start: int, end: int) -> tuple[bytes | None, str | None]:
    """The first colour specification: method 1 enumerates, methods 2 and 3 embed an ICC profile."""
    for kind, body, body_end in _boxes(data, start, end):
        if kind != b"colr" or body_end - body < 3:
            continue
        if data[body] in (2, 3):
            return data[body + 3 : body_end], None
        space = int.from_bytes(data[body + 3 : body + 7])
        # 12 CMYK is refused by its mode, for want of a profile; 16 sRGB, 17 grey, 18 sYCC are read.
        return None, None if space in (12, 16, 17, 18) else f"JP2 colour space {space}"
    return None, None
