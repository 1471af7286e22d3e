"""Files that a folder of downloaded images may hold, and what must become of each.

`contents` makes the bytes; `build` writes them into a folder and adds what only a file system can do to
a reader. Expectations hold under LIMITS. A file that looks hostile but must be read is `USABLE`.
"""

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pairforge.decode import DecodeLimits
from pairforge.records import Fate

LIMITS = DecodeLimits(max_bytes=16 * 2**20, max_pixels=40_000_000, max_side=16_384, min_side=16)
WIDTH, HEIGHT = 64, 48


@dataclass(frozen=True)
class Expected:
    """`fate` None: usable. `level`: the first of listing, header and pixels at which this is known."""

    fate: Fate | None
    reason: str | None
    level: Literal["listing", "header", "pixels"]


USABLE = Expected(None, None, "pixels")


def rejected(reason: str, level: Literal["listing", "header", "pixels"] = "header") -> Expected:
    return Expected(Fate.REJECTED, reason, level)


def failed(reason: str, level: Literal["listing", "header", "pixels"] = "header") -> Expected:
    return Expected(Fate.FAILED, reason, level)


def photo(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Smooth colours under noise; no row or column equals another, no corner equals another."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    smooth = np.stack([200 * x + 30, 180 * y + 40, 120 * (1 - x) + 60 * y + 20], axis=-1)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def save(image: Image.Image | NDArray[Any], format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# Profiles


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _icc(kind: bytes, space: bytes, pcs: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    """ICC.1:2010 profile of version 4 without what LittleCMS does not ask for."""
    text = name.encode("utf-16-be")
    tags = {
        b"desc": b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text,
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1, 0.8249),
        **tags,
    }
    body, table = b"", struct.pack(">I", len(tags))
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    size = 132 - 4 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s", size, b"", 0x04000000, kind, space, pcs, b"\x07\xea\0\1\0\1", b"acsp")
    return head.ljust(68, b"\0") + _fixed(0.9642, 1, 0.8249) + b"\0" * 48 + table + body


def display_p3() -> bytes:
    """Primaries of Display P3 adapted to D50, curve of sRGB."""
    curve = b"para\0\0\0\0\0\3\0\0" + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    columns = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    tags = {tag: b"XYZ \0\0\0\0" + _fixed(*column) for tag, column in columns.items()}
    return _icc(b"mntr", b"RGB ", b"XYZ ", "Display P3", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey_gamma(gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return _icc(b"mntr", b"GRAY", b"XYZ ", f"Grey gamma {gamma}", {b"kTRC": curve})


CMYK_CORNERS_LAB = {
    (0, 0, 0): (100, 0, 0),
    (1, 0, 0): (55, -37, -50),
    (0, 1, 0): (48, 74, -3),
    (0, 0, 1): (89, -5, 93),
    (0, 1, 1): (47, 68, 48),
    (1, 0, 1): (50, -68, 25),
    (1, 1, 0): (24, 17, -46),
    (1, 1, 1): (23, 0, 0),
}
"""CIELAB, relative to the paper, of inks and their overprints; roughly ISO 12647-2, coated."""
BLACK_LAB = (12, 0, 0)


def cmyk_press() -> bytes:
    """Table of 2 x 2 x 2 x 2 nodes: the overprints of CMYK_CORNERS_LAB, and BLACK_LAB over all."""
    nodes = b""
    for node in np.ndindex(2, 2, 2, 2):
        lightness, a, b = BLACK_LAB if node[3] else CMYK_CORNERS_LAB[node[0], node[1], node[2]]
        nodes += bytes([round(lightness * 2.55), a + 128, b + 128])
    ramp, identity = bytes(range(256)), _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    to_lab = b"mft1\0\0\0\0\4\3\2\0" + identity + ramp * 4 + nodes + ramp * 3
    # Black ink alone makes every colour on the way back, which is asked for the black point only.
    inks = b"\0\0\0\xff" * 4 + b"\0\0\0\0" * 4
    to_inks = b"mft1\0\0\0\0\3\4\2\0" + identity + ramp * 3 + inks + ramp * 4
    tags = dict.fromkeys((b"A2B0", b"A2B1"), to_lab) | dict.fromkeys((b"B2A0", b"B2A1"), to_inks)
    return _icc(b"prtr", b"CMYK", b"Lab ", "Press", tags)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# Containers


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(samples: NDArray[Any], colour_type: int, extra: bytes = b"", after: bytes = b"") -> bytes:
    """Unfiltered PNG of 8- or 16-bit samples; `extra` chunks before the pixels, `after` behind them."""
    height, width = samples.shape[:2]
    bits = samples.dtype.itemsize * 8
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + pixels + after + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """PNG of a declared size that holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"\0") + chunk(b"IEND", b"")


def tiff(samples: NDArray[Any], photometric: int, **tags: tuple[int, ...]) -> bytes:
    """Uncompressed TIFF, directory first, of (height, width) or (height, width, parts) samples.

    Byte order and depth are those of the array. `tags` are named t338 and so on, and override.
    """
    height, width = samples.shape[:2]
    parts = samples.shape[2] if samples.ndim == 3 else 1
    order = ">" if samples.dtype.byteorder == ">" else "<"
    sample_format = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    body = samples.tobytes()
    entries: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (samples.dtype.itemsize * 8,) * parts,
        259: (1,),
        262: (photometric,),
        273: (0,),
        277: (parts,),
        278: (height,),
        279: (len(body),),
        284: (1,),
        339: (sample_format,) * parts,
    } | {int(name[1:]): values for name, values in tags.items()}
    overflow = 8 + 2 + 12 * len(entries) + 4
    size = overflow + sum(4 * len(values) for values in entries.values() if len(values) > 1)
    entries[273] = (size,) if entries[273] == (0,) else entries[273]
    directory, extra = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        place = packed if len(values) == 1 else struct.pack(f"{order}I", overflow + len(extra))
        extra += b"" if len(values) == 1 else packed
        directory += struct.pack(f"{order}HHI", tag, 4, len(values)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + directory + b"\0\0\0\0" + extra + body


def _many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = save(photo(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + b"\xff\xd9"


def _tar(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("photo.png")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.png", content)
    return buffer.getvalue()


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


# Contents


def _usable() -> dict[str, bytes]:
    pixels = photo()
    image = Image.fromarray(pixels)
    deep = (pixels.astype(np.uint16) * 257) ^ 0x0055
    jpeg, still = save(image, "JPEG", quality=90), save(image, "PNG")
    late_exif = png(pixels, 2, after=chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")))
    return {
        "plain.png": still,
        "plain.jpg": jpeg,
        "progressive.jpg": save(image, "JPEG", progressive=True),
        "turned.jpg": save(image, "JPEG", exif=exif(6)),
        "turned.webp": save(image, "WEBP", exif=exif(8)),
        "turned.avif": save(image, "AVIF", speed=10, exif=exif(6)),
        "turned_by_last_chunk.png": late_exif,
        "turned.tif": tiff(pixels, 2, t274=(5,)),
        "broken_exif.jpg": save(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"),
        "grey.jpg": save(image.convert("L"), "JPEG"),
        "grey_with_rgb_profile.jpg": save(image.convert("L"), "JPEG", icc_profile=srgb_profile()),
        "grey_gamma.png": save(image.convert("L"), "PNG", icc_profile=grey_gamma(1.8)),
        "bilevel.png": save(image.convert("1"), "PNG"),
        "palette.png": save(image.quantize(32), "PNG"),
        "static.gif": save(image.quantize(64), "GIF"),
        "deep_colour.png": png(deep, 2),
        "deep_grey.png": png(deep[..., 0], 0),
        "deep_colour.tif": tiff(deep, 2),
        "deep_grey_big_endian.tif": tiff(deep[..., 0].astype(">u2"), 1),
        "deep_colour.ppm": b"P6 64 48 65535\n" + deep.astype(">u2").tobytes(),
        "ten_bit.pgm": b"P5 64 48 1023\n" + (deep[..., 0] >> 6).astype(">u2").tobytes(),
        "opaque_alpha.png": save(image.convert("RGBA"), "PNG"),
        "display_p3.jpg": save(image, "JPEG", icc_profile=display_p3()),
        "srgb_profile.jpg": save(image, "JPEG", icc_profile=srgb_profile()),
        "press_cmyk.jpg": save(image.convert("CMYK"), "JPEG", icc_profile=cmyk_press()),
        "press_cmyk.tif": save(image.convert("CMYK"), "TIFF", icc_profile=cmyk_press()),
        "two_views.mpo": save(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
        "lossy.webp": save(image, "WEBP", quality=80),
        "lossless.webp": save(image, "WEBP", lossless=True),
        "plain.avif": save(image, "AVIF", speed=10),
        "deflate.tif": save(image, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg_inside.tif": save(image, "TIFF", compression="jpeg"),
        "plain.bmp": save(image, "BMP"),
        "plain.ppm": save(image, "PPM"),
        "plain.jp2": save(image, "JPEG2000"),
        "codestream.j2k": save(image, "JPEG2000", no_jp2=True),
        "really_a_jpeg.png": jpeg,
        "UPPER.JPG": jpeg,
        "no_extension": still,
        "bytes_behind_the_end.jpg": jpeg + b"\0" * 1000 + b"trailer",
        "name with  spaces.png": still,
        "name\nwith\na newline.png": still,
        "name 🏔️ with emoji.png": still,
        "..many.dots..in.name..png": still,
        "-rf.png": still,
        "quote'and\"quote;$(id).png": still,
        "%2e%2e%2fpercent.png": still,
        "x" * 251 + ".png": still,
        "twin_a.png": jpeg,
        "twin_b.png": jpeg,
    }


def _refused_headers() -> dict[str, tuple[bytes, Expected]]:
    pixels = photo()
    image = Image.fromarray(pixels)
    frames: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    still, jpeg = save(image, "PNG"), save(image, "JPEG")
    avif, webp, jp2 = save(image, "AVIF", speed=10), save(image, "WEBP"), save(image, "JPEG2000")
    nclx = avif.index(b"nclx") + 4
    codestream = jp2.index(b"\xff\x4f\xff\x51")
    wide = struct.pack(">II", 60_000, 60_000)
    nan = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    text = zlib.compress(bytes(50_000_000), 9)
    return {
        "animated.gif": (save(image, "GIF", **frames), rejected("animated")),
        "animated.webp": (save(image, "WEBP", **frames), rejected("animated")),
        "animated.apng": (save(image, "PNG", **frames), rejected("animated")),
        "animated.avif": (save(image, "AVIF", speed=10, **frames), rejected("animated")),
        "pages.tif": (save(image, "TIFF", **frames), rejected("animated")),
        "cmyk.jpg": (save(image.convert("CMYK"), "JPEG"), rejected("cmyk_without_profile")),
        "cmyk_with_rgb_profile.tif": (
            save(image.convert("CMYK"), "TIFF", icc_profile=display_p3()),
            rejected("cmyk_without_profile"),
        ),
        "float.tif": (tiff(pixels[..., 0].astype(np.float32) / 255, 1), rejected("unsupported_mode")),
        "nan.tif": (tiff(nan, 1), rejected("unsupported_mode")),
        "signed.tif": (tiff(pixels[..., 0].astype(np.int16), 1), rejected("unsupported_mode")),
        "planes_of_16_bits.tif": (
            tiff(pixels.astype(np.uint16), 2, t284=(2,)),
            rejected("unsupported_mode"),
        ),
        "white_is_zero_16_bits.tif": (tiff(pixels[..., 0].astype(np.uint16), 0), rejected("unsupported_mode")),
        "lab.tif": (tiff(pixels, 8), rejected("unsupported_mode")),
        "float.pfm": (b"Pf\n64 48\n-1.0\n" + nan.tobytes(), rejected("unsupported_mode")),
        "text.ppm": (b"P3\n16 16\n255\n" + b"12 " * 768, rejected("unsupported_mode")),
        "hdr.avif": (avif[:nclx] + b"\0\x09\0\x10" + avif[nclx + 4 :], rejected("unsupported_mode")),
        "hdr.png": (png(pixels, 2, chunk(b"cICP", b"\x09\x10\0\1")), rejected("unsupported_mode")),
        "linear.png": (png(pixels, 2, chunk(b"gAMA", struct.pack(">I", 100_000))), rejected("unsupported_mode")),
        "camera_raw.dng": (tiff(pixels, 2, t254=(1,), t50706=(1,)), rejected("unsupported_format")),
        "one_pixel.png": (save(pixels[:1, :1], "PNG"), rejected("too_small")),
        "line.png": (save(pixels[:1], "PNG"), rejected("too_small")),
        "wide.png": (save(np.zeros((32, 20_000, 3), np.uint8), "PNG"), rejected("side_too_long")),
        "bomb.png": (png_header(60_000, 60_000), rejected("too_many_pixels")),
        "bomb.tif": (tiff(pixels, 2, t256=(60_000,), t257=(60_000,)), rejected("too_many_pixels")),
        "bomb.bmp": (_put(save(image, "BMP"), 18, struct.pack("<II", 60_000, 60_000)), rejected("too_many_pixels")),
        "bomb.gif": (_put(save(image, "GIF"), 6, b"\xff\xff\xff\xff"), rejected("too_many_pixels")),
        "bomb.webp": (_put(webp, 26, b"\xff\x3f\xff\x3f"), rejected("too_many_pixels")),
        "bomb.jp2": (_put(jp2, codestream + 8, wide), rejected("too_many_pixels")),
        "bomb.ppm": (b"P6 60000 60000 255\n", rejected("too_many_pixels")),
        "bomb.jpg": (_put(jpeg, jpeg.index(b"\xff\xc0") + 5, b"\xea\x60\xea\x60"), rejected("too_many_pixels")),
        "scans.jpg": (_many_scans(600), rejected("too_many_scans")),
        "text_bomb.png": (png(pixels, 2, chunk(b"zTXt", b"k\0\0" + text)), failed("corrupt")),
        "profile_bomb.png": (png(pixels, 2, chunk(b"iCCP", b"k\0\0" + text)), failed("corrupt")),
        "drawing.svg": (b'<?xml version="1.0"?>\n<svg xmlns="x"></svg>', rejected("unsupported_format")),
        "document.pdf": (save(image, "PDF"), rejected("unsupported_format")),
        "icon.ico": (save(image, "ICO", sizes=[(32, 32)]), rejected("unsupported_format")),
        "layers.psd": (b"8BPS\0\1" + bytes(100), rejected("unsupported_format")),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), rejected("unsupported_format")),
        "clip.mp4": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(50), rejected("unsupported_format")),
        "empty.png": (b"", failed("empty_file")),
        "text.png": (b"This is not an image.\n" * 20, failed("not_an_image")),
        "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", failed("not_an_image")),
        "zeros.jpg": (bytes(5000), failed("not_an_image")),
        "noise.jpg": (np.random.default_rng(3).bytes(5000), failed("not_an_image")),
        "archive.png.gz": (gzip.compress(still, mtime=0), failed("not_an_image")),
        "archive.tar": (_tar(still), failed("not_an_image")),
        "archive.zip": (_zip(still), failed("not_an_image")),
        "mangled_newlines.png": (still.replace(b"\r\n", b"\n"), failed("not_an_image")),
        "cut_in_signature.png": (still[:20], failed("truncated")),
        "cut_in_header.jpg": (jpeg[:30], failed("truncated")),
        "cut_in_pixels.png": (still[: len(still) // 2], failed("truncated")),
        "cut_before_the_end.png": (still[:-12], failed("truncated")),
        "cut.webp": (webp[: len(webp) // 2], failed("truncated")),
        "cut.avif": (avif[: len(avif) // 2], failed("truncated")),
        "cut.tif": (tiff(pixels, 2)[:-100], failed("truncated")),
        "cut_16_bits.tif": (tiff(pixels.astype(np.uint16), 2)[:9000], failed("truncated")),
        "cut_in_box.jp2": (jp2[:60], failed("truncated")),
        "cut.j2k": (save(image, "JPEG2000", no_jp2=True)[:-200], failed("truncated")),
        "two_headers.png": (_put(still, 8, still[8:33] + still[8:33], 25), failed("corrupt")),
        "broken_profile.jpg": (save(image, "JPEG", icc_profile=b"not a profile" * 20), failed("bad_icc")),
        "press_profile_on_rgb.png": (save(image, "PNG", icc_profile=cmyk_press()), failed("bad_icc")),
        "half_a_profile.jpg": (_put(save(image, "JPEG", icc_profile=display_p3()), 37, b"\2"), failed("bad_icc")),
    }


def _refused_pixels() -> dict[str, tuple[bytes, Expected]]:
    pixels = photo()
    image = Image.fromarray(pixels)
    still, gif = save(image, "PNG"), save(image.quantize(64), "GIF")
    jpeg, progressive = (save(image, "JPEG", quality=98, progressive=scans) for scans in (False, True))
    deep, bitmap = png(pixels.astype(np.uint16) * 257, 2), save(image, "BMP")
    deflate = save(image, "TIFF", compression="tiff_adobe_deflate")
    clear = image.convert("RGBA")
    clear.putpixel((40, 30), (10, 20, 30, 254))
    cut, transparent = failed("truncated", "pixels"), rejected("transparent", "pixels")
    return {
        "cut_in_pixels.jpg": (jpeg[: len(jpeg) // 2], cut),
        "cut_before_the_end.jpg": (jpeg[:-40], cut),
        "cut_in_a_scan.jpg": (progressive[: len(progressive) // 2], cut),
        "cut.gif": (gif[: len(gif) // 2], cut),
        "cut.bmp": (bitmap[: len(bitmap) // 2], cut),
        "cut.ppm": (save(image, "PPM")[:-100], cut),
        "cut_16_bits.ppm": (b"P6 64 48 65535\n" + bytes(1000), cut),
        "few_strips.tif": (tiff(pixels, 2, t278=(16,)), cut),
        "damaged.tif": (_put(deflate, 40, bytes(300), 300), failed("corrupt", "pixels")),
        "damaged.png": (_flipped(still, len(still) // 2), failed("corrupt", "pixels")),
        "damaged_16_bits.png": (_flipped(deep, len(deep) // 2), failed("corrupt", "pixels")),
        "transparent.png": (save(clear, "PNG"), transparent),
        "transparent.webp": (save(clear, "WEBP", lossless=True), transparent),
        "transparent.tif": (save(clear, "TIFF"), transparent),
        "transparent.gif": (save(image.quantize(64), "GIF", transparency=5), transparent),
        "transparent_colour.png": (png(pixels, 2, _trns(pixels[3, 3])), transparent),
        "transparent_16_bits.png": (png(pixels.astype(np.uint16), 2, _trns(pixels[3, 3])), transparent),
        "transparent_grey_16_bits.png": (
            png(pixels[..., 0].astype(np.uint16), 0, _trns(pixels[3, 3, :1])),
            transparent,
        ),
    }


def _trns(colour: NDArray[np.uint8]) -> bytes:
    return chunk(b"tRNS", colour.astype(">u2").tobytes())


def _put(data: bytes, place: int, patch: bytes, replaced: int | None = None) -> bytes:
    return data[:place] + patch + data[place + (len(patch) if replaced is None else replaced) :]


def contents() -> dict[str, tuple[bytes, Expected]]:
    """File name -> bytes, and what `probe` (level header) or `decode_source` (level pixels) makes of them."""
    usable = {name: (data, USABLE) for name, data in _usable().items()}
    return usable | _refused_headers() | _refused_pixels()


def build(folder: Path) -> dict[str, Expected]:
    """Write every file into `folder`; names may hold surrogate escapes (os.fsdecode) and sub-folders.

    Level `listing` is what the file system alone tells. Open nothing here without asking what it is:
    opening the FIFO blocks.
    """
    expected: dict[str, Expected] = {}
    for name, (data, fate) in contents().items():
        (folder / name).write_bytes(data)
        expected[name] = fate
    still = (folder / "plain.png").read_bytes()
    not_utf8 = os.fsdecode(b"caf\xe9 \xff.png")
    (folder / not_utf8).write_bytes(still)
    (folder / "folder.png").mkdir()
    (folder / "sub").mkdir()
    (folder / "sub" / "inside.png").write_bytes(still)
    (folder / "link.png").symlink_to("plain.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop_a.png").symlink_to("loop_b.png")
    (folder / "loop_b.png").symlink_to("loop_a.png")
    (folder / "folder_in_itself.png").symlink_to(".", target_is_directory=True)
    (folder / "sub" / "up").symlink_to("..", target_is_directory=True)
    os.mkfifo(folder / "pipe.png")
    (folder / "sparse.png").touch()
    os.truncate(folder / "sparse.png", 5 * 2**30)
    (folder / "locked.png").write_bytes(still)
    (folder / "locked.png").chmod(0)
    locked = USABLE if os.geteuid() == 0 else failed("not_readable", "listing")
    return expected | {
        not_utf8: USABLE,
        "sub/inside.png": USABLE,
        "link.png": USABLE,
        "folder.png": rejected("not_a_file", "listing"),
        "folder_in_itself.png": rejected("not_a_file", "listing"),
        "sub/up": rejected("not_a_file", "listing"),
        "pipe.png": rejected("not_a_file", "listing"),
        "dangling.png": failed("not_found", "listing"),
        "loop_a.png": failed("symlink_loop", "listing"),
        "loop_b.png": failed("symlink_loop", "listing"),
        "sparse.png": rejected("too_many_bytes", "listing"),
        "locked.png": locked,
    }
