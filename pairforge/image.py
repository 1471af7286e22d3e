"""Pixels: colour conversion, quantisation, lossless coding. No other file converts colour or rounds to codes.

`Image` is float32 RGB of shape (H, W, 3), sRGB-encoded, in [0, 1]. A name that ends in `_lin` holds
linear light, which may exceed 1 until it is encoded. `Pixels` is 8-bit sRGB RGB of the same shape.

Conversions go through 65,536-entry tables (largest error 0.05 of an 8-bit code) and not through `pow`,
whose last bits depend on the CPU.
"""

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Plane = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_STEPS = 65535
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_STRIP_VALUES = 1 << 17
LUMA_LIN = (0.2126, 0.7152, 0.0722)
"""Rec. 709 weights of linear RGB in relative luminance Y."""


def use_one_thread() -> None:
    """Pin OpenCV to one thread: PairForge runs many processes, each of which must not claim every core."""
    cv2.setNumThreads(1)


def prepare_worker() -> None:
    """As `use_one_thread`; and on Linux with glibc, keep memory of freed images for the next ones.

    A worker makes and frees arrays of many MB for every step. By default glibc gives them back to the system at once
    and takes them again, which costs up to a third of a step's time in page faults.
    """
    use_one_thread()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


@cache
def _decode_table() -> NDArray[np.float32]:
    code = np.linspace(0.0, 1.0, _STEPS + 1)
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _encode_table() -> NDArray[np.float32]:
    light = np.linspace(0.0, 1.0, _STEPS + 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


@cache
def _decode_table_8bit() -> NDArray[np.float32]:
    return _decode_table()[np.arange(256) * 257]


@cache
def _codes_table() -> NDArray[np.float32]:
    return np.arange(256, dtype=np.float32) * np.float32(1 / 255)


def _quantised(values: NDArray[np.float32], steps: int, codes: NDArray[Any]) -> None:
    """Fill `codes` with `values` times `steps`, clipped and rounded to nearest, in strips that stay in the cache."""
    rows = max(1, _STRIP_VALUES // max(1, values[:1].size))
    buffer = np.empty((min(rows, len(values)), *values.shape[1:]), np.float32)
    for top in range(0, len(values), rows):
        strip = values[top : top + rows]
        scaled = np.multiply(strip, np.float32(steps), out=buffer[: len(strip)])
        scaled += np.float32(0.5)
        np.clip(scaled, 0, steps + 0.5, out=scaled)
        codes[top : top + rows] = scaled


def _table_index(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    index = np.empty(values.shape, np.uint16)
    _quantised(values, _STEPS, index)
    return index


def srgb_to_linear(image: Image) -> Image:
    """IEC 61966-2-1 decoding; input is clipped to [0, 1]."""
    image_lin: Image = cv2.LUT(_table_index(image), _decode_table())
    return image_lin


def linear_to_srgb(image_lin: Image) -> Image:
    """IEC 61966-2-1 encoding; input is clipped to [0, 1], which ends a linear block."""
    image: Image = cv2.LUT(_table_index(image_lin), _encode_table())
    return image


def pixels_to_linear(pixels: Pixels) -> Image:
    """Exact linear light of 8-bit codes; the fast way into linear light."""
    image_lin: Image = cv2.LUT(pixels, _decode_table_8bit())
    return image_lin


def to_float(pixels: Pixels) -> Image:
    """8-bit codes to [0, 1]."""
    image: Image = cv2.LUT(pixels, _codes_table())
    return image


def to_pixels(image: Image) -> Pixels:
    """[0, 1] to 8-bit codes, clipped and rounded to nearest."""
    pixels = np.empty(image.shape, np.uint8)
    _quantised(image, 255, pixels)
    return pixels


def luminance(image_lin: Image) -> Plane:
    """Relative luminance (H, W) of linear light."""
    plane: Plane = cv2.transform(image_lin, np.array([LUMA_LIN], np.float32))
    return plane


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Lossless PNG of RGB (H, W, 3) or of a plane (H, W), 8 or 16 bit; same pixels, same bytes."""
    stored = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, buffer = cv2.imencode(".png", stored)
    assert done, f"PNG encoder refused an array of shape {pixels.shape}, {pixels.dtype}"
    return bytes(buffer)


def decode_png(data: bytes) -> Pixels:
    """8-bit RGB of a PNG that PairForge wrote. Raises ValueError for anything else."""
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if stored is None or stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype != np.uint8:
        raise ValueError("not an 8-bit RGB PNG")
    pixels: Pixels = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    return pixels


def check_picture_path(path: Path) -> Path:
    """`path` itself. Raises ValueError for an extension that `save_picture` does not know."""
    allowed = (".png", ".jpg", ".jpeg", ".webp")
    if path.suffix.lower() not in allowed:
        raise ValueError(f"cannot write {path}: allowed extensions are {' '.join(allowed)}")
    return path


def save_picture(pixels: Pixels, path: Path) -> None:
    """Write a picture for people to look at. Raises ValueError for an extension that is not known."""
    check_picture_path(path)
    done, buffer = cv2.imencode(path.suffix.lower(), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done, f"encoder refused an array of shape {pixels.shape}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(buffer))
