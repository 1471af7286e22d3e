"""Colour conversion and quantisation against the formulas, over every code."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pairforge.image import (
    Pixels,
    decode_png,
    encode_png,
    linear_to_srgb,
    luminance,
    pixels_to_linear,
    save_picture,
    srgb_to_linear,
    to_float,
    to_pixels,
)

CODES: Pixels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)


def exact_decode(code: np.ndarray) -> np.ndarray:
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def test_every_code_survives_the_round_trips() -> None:
    assert np.array_equal(to_pixels(to_float(CODES)), CODES)
    assert np.array_equal(to_pixels(linear_to_srgb(pixels_to_linear(CODES))), CODES)
    assert np.array_equal(to_pixels(linear_to_srgb(srgb_to_linear(to_float(CODES)))), CODES)


def test_decoding_follows_the_standard() -> None:
    code = CODES / 255.0
    assert np.allclose(pixels_to_linear(CODES), exact_decode(code), atol=2e-7)
    assert np.allclose(srgb_to_linear(to_float(CODES)), exact_decode(code), atol=2e-5)


def test_encoding_is_within_a_twentieth_of_a_code() -> None:
    light = np.linspace(0, 1, 200_003, dtype=np.float32).reshape(1, -1, 1).repeat(3, axis=2)
    exact = np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
    assert np.abs(linear_to_srgb(light) - exact).max() * 255 < 0.052


def test_out_of_range_light_is_clipped_not_wrapped() -> None:
    light = np.array([[[-0.5, 1.7, 40.0]]], np.float32)
    assert linear_to_srgb(light).tolist() == [[[0.0, 1.0, 1.0]]]
    assert to_pixels(light).tolist() == [[[0, 255, 255]]]


def test_rounding_is_to_nearest() -> None:
    assert to_pixels(np.full((1, 1, 3), 10.49 / 255, np.float32)).max() == 10
    assert to_pixels(np.full((1, 1, 3), 10.51 / 255, np.float32)).min() == 11


def test_inputs_are_never_changed() -> None:
    image = to_float(CODES)
    before = image.copy()
    for convert in (srgb_to_linear, linear_to_srgb, to_pixels):
        convert(image)
    assert np.array_equal(image, before)


def test_luminance_of_the_primaries() -> None:
    primaries = np.eye(3, dtype=np.float32)[None]
    assert np.allclose(luminance(primaries), [[0.2126, 0.7152, 0.0722]])


@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))))
def test_png_is_lossless_and_stable(pixels: Pixels) -> None:
    data = encode_png(pixels)
    assert np.array_equal(decode_png(data), pixels)
    assert encode_png(pixels.copy()) == data


def test_red_is_red_in_the_file(tmp_path: Path) -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    save_picture(red, tmp_path / "red.png")
    stored = cv2.imread(str(tmp_path / "red.png"))
    assert stored is not None and stored[0, 0].tolist() == [0, 0, 255]
    with pytest.raises(ValueError, match="allowed extensions"):
        save_picture(red, tmp_path / "red.xyz")


def test_layers_keep_16_bits() -> None:
    layer = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    stored = cv2.imdecode(np.frombuffer(encode_png(layer), np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored is not None and np.array_equal(stored, layer)


@pytest.mark.parametrize("data", [b"", b"not a png", encode_png(np.zeros((2, 2), np.uint8))])
def test_what_is_no_rgb_png_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an 8-bit RGB PNG"):
        decode_png(data)
