"""Bytes that came back: what is kept, what is brought to size, and what is trouble."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL import ImageCms

from generators.returned import SizeRule, fit_candidate, framed, resized, size_fault
from pairforge.image import Pixels, decode_png, encode_png
from pairforge.protocols import Trouble, Usage
from pairforge.remote_base import RemoteError

USAGE = Usage(0.04, 300, 1290)
RULE = SizeRule()


@pytest.fixture(scope="module")
def lq(photos: dict[str, Pixels]) -> Pixels:
    return np.ascontiguousarray(photos["coffee"][40:160, 60:240])  # 180x120


def coded(pixels: Pixels, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def trouble_of(lq: Pixels, data: bytes, rule: SizeRule = RULE) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        fit_candidate(lq, data, "image/png", USAGE, rule)
    assert caught.value.usage == USAGE, "what came back was paid, whatever it was"
    return caught.value


def smooth(width: int, height: int) -> Pixels:
    """A picture in which every place has a colour of its own."""
    y, x = np.mgrid[0:height, 0:width]
    across, along = (x + 0.5) / width, (y + 0.5) / height
    return np.stack([255 * across, 255 * along, 127 + 60 * np.sin(5 * across + 3 * along)], 2).astype(np.uint8)


# ---------------------------------------------------------------- what is kept


def test_an_answer_of_the_right_size_is_untouched(lq: Pixels) -> None:
    answer = 255 - lq
    data = encode_png(answer)
    candidate = fit_candidate(lq, data, "image/png", USAGE, RULE)
    assert np.array_equal(candidate.pixels, answer)
    assert (candidate.data, candidate.mime, candidate.corrections, candidate.usage) == (data, "image/png", (), USAGE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_mime_is_that_of_the_bytes(kind: str, lq: Pixels) -> None:
    candidate = fit_candidate(lq, coded(lq, kind, quality=90), "image/png", USAGE, RULE)
    assert candidate.mime == f"image/{kind.lower()}" and candidate.corrections == ()
    assert np.abs(candidate.pixels.astype(int) - lq).mean() < 5


@pytest.mark.parametrize("size", [(1440, 960), (150, 100), (182, 120), (90, 60)])
def test_another_size_of_the_same_aspect_is_resized_and_nothing_moves(size: tuple[int, int], lq: Pixels) -> None:
    candidate = fit_candidate(lq, encode_png(smooth(*size)), "image/png", USAGE, RULE)
    assert candidate.pixels.shape == lq.shape and candidate.corrections == (f"resized from {size[0]}x{size[1]}",)
    error = np.abs(candidate.pixels.astype(float) - smooth(180, 120))[3:-3, 3:-3]
    assert error.mean() < 0.8 and error.max() < 3, "a shift of one pixel is about 1.4 codes across, 2.1 along"


def test_reduction_does_not_alias() -> None:
    lq = np.zeros((64, 64, 3), np.uint8)
    board = np.indices((512, 512)).sum(0) % 2 * 255
    candidate = fit_candidate(lq, encode_png(np.dstack([board] * 3).astype(np.uint8)), "", USAGE, RULE)
    assert np.abs(candidate.pixels.astype(int) - 127).max() <= 2


def test_what_the_decoder_did_is_a_correction(lq: Pixels) -> None:
    exif = PILImage.Exif()
    exif[274] = 6
    turned = np.ascontiguousarray(np.rot90(lq))
    candidate = fit_candidate(lq, coded(turned, "PNG", exif=exif), "", USAGE, RULE)
    assert np.array_equal(candidate.pixels, lq) and candidate.corrections == ("turned upright (EXIF 6)",)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    candidate = fit_candidate(lq, coded(lq, "PNG", icc_profile=profile), "", USAGE, RULE)
    assert np.array_equal(candidate.pixels, lq)
    [correction] = candidate.corrections
    assert correction.startswith("read by its colour profile (sRGB")


# ---------------------------------------------------------------- what is trouble


def test_what_is_no_picture_is_malformed(lq: Pixels) -> None:
    png, jpeg = encode_png(lq), coded(lq, "JPEG")
    broken = bytearray(png)
    broken[len(png) // 2] ^= 255
    clear = np.dstack([lq, np.full(lq.shape[:2], 100, np.uint8)])
    for data in (
        b"",
        b"<html>hello</html>",
        b"I would rather describe it.",
        coded(lq, "BMP"),
        coded(lq, "GIF"),
        png[: len(png) // 2],
        png[:8],
        jpeg[: len(jpeg) // 2],
        bytes(broken),
        coded(lq, "WEBP")[:200],
        coded(clear, "PNG"),
    ):
        assert trouble_of(lq, data).trouble == Trouble.MALFORMED, data[:40]
    assert "text/html" in str(_error_with_mime(lq, "text/html"))


def _error_with_mime(lq: Pixels, mime: str) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        fit_candidate(lq, b"<html>", mime, USAGE, RULE)
    return caught.value


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((160, 120), "160x120 for 180x120: the aspect is off by 12.5%, at most 2.0% is allowed"),
        ((120, 180), "aspect"),
        ((180, 180), "aspect"),
        ((84, 56), "84x56 for 180x120: 0.47 of its side, at least 0.5 is needed"),
        ((1, 1), "aspect"),
    ],
)
def test_what_cannot_be_laid_over_the_input_is_of_the_wrong_size(size: tuple[int, int], says: str, lq: Pixels) -> None:
    error = trouble_of(lq, encode_png(smooth(*size)))
    assert error.trouble == Trouble.WRONG_SIZE and says in error.detail


def test_a_bomb_is_of_the_wrong_size_before_it_is_unpacked(lq: Pixels) -> None:
    data = coded(np.zeros((2, 20000, 3), np.uint8), "PNG")
    assert trouble_of(lq, data).trouble == Trouble.WRONG_SIZE
    huge = bytearray(encode_png(lq))
    huge[16:24] = (60000).to_bytes(4, "big") * 2  # width and height of the header, and its checksum
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    assert trouble_of(lq, bytes(huge)).trouble == Trouble.WRONG_SIZE


def test_bars_are_not_guessed(lq: Pixels) -> None:
    square = np.zeros((180, 180, 3), np.uint8)
    square[30:150] = lq
    assert trouble_of(lq, encode_png(square)).trouble == Trouble.WRONG_SIZE


def test_rules_are_settings(lq: Pixels) -> None:
    wide = encode_png(smooth(160, 120))
    assert fit_candidate(lq, wide, "", USAGE, SizeRule(most_aspect_error=0.13)).pixels.shape == lq.shape
    small = encode_png(smooth(45, 30))
    assert fit_candidate(lq, small, "", USAGE, SizeRule(least_scale=0.25)).pixels.shape == lq.shape
    for wrong in ({"most_aspect_error": -1}, {"least_scale": 0}, {"canvases": ((0, 10),)}, {"padding": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SizeRule.model_validate(wrong)


# ---------------------------------------------------------------- canvases


def test_the_input_is_set_into_the_nearest_canvas_and_taken_out_again(lq: Pixels) -> None:
    rule = SizeRule(canvases=((64, 64), (256, 192), (128, 96), (64, 96)))
    assert rule.canvas(lq) == (256, 192), "of equal aspects the larger"
    sent = framed(lq, rule)
    assert sent.shape == (135, 180, 3)
    assert np.array_equal(sent[7:127], lq) and np.array_equal(sent[6], lq[1]), "its mirror image around it"
    candidate = fit_candidate(lq, encode_png(sent), "", USAGE, rule)
    assert np.array_equal(candidate.pixels, lq) and candidate.corrections == ("cropped from 180x135 at 0,7",)
    candidate = fit_candidate(lq, encode_png(resized(sent, (256, 192))), "", USAGE, rule)
    assert candidate.corrections == ("resized from 256x192", "cropped from 180x135 at 0,7")
    assert np.abs(candidate.pixels.astype(int) - lq).mean() < 2
    assert trouble_of(lq, encode_png(lq), rule).trouble == Trouble.WRONG_SIZE, "that is not what was sent"


def test_without_canvases_the_input_is_sent_as_it_is(lq: Pixels) -> None:
    assert framed(lq, RULE) is lq and RULE.canvas(lq) is None
    exact = SizeRule(canvases=((360, 240),))
    assert framed(lq, exact) is lq and exact.canvas(lq) == (360, 240)


# ---------------------------------------------------------------- properties

sides = st.integers(1, 90)
canvas_lists = st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), max_size=3)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, canvas_lists, st.floats(0, 1), st.floats(0.1, 1))
def test_every_answer_is_trouble_or_of_the_input_s_size(
    width: int,
    height: int,
    got_width: int,
    got_height: int,
    canvases: list[tuple[int, int]],
    most_error: float,
    least_scale: float,
) -> None:
    narrow = [canvas for canvas in canvases if 0.2 < canvas[0] * height / (canvas[1] * width) < 5]
    rule = SizeRule(most_aspect_error=most_error, least_scale=least_scale, canvases=tuple(narrow))
    lq, data = np.zeros((height, width, 3), np.uint8), encode_png(smooth(got_width, got_height))
    sent = framed(lq, rule)
    try:
        candidate = fit_candidate(lq, data, "image/png", USAGE, rule)
    except RemoteError as error:
        assert error.trouble == Trouble.WRONG_SIZE and error.usage == USAGE
        assert size_fault((got_width, got_height), (sent.shape[1], sent.shape[0]), rule) == error.detail
        return
    assert candidate.pixels.shape == lq.shape and candidate.pixels.dtype == np.uint8
    assert candidate.pixels.flags.c_contiguous and candidate.data == data
    again = fit_candidate(np.ones_like(lq), bytes(data), candidate.mime, USAGE, SizeRule(**rule.model_dump()))
    assert np.array_equal(again.pixels, candidate.pixels) and again.corrections == candidate.corrections
    if not candidate.corrections:
        assert np.array_equal(candidate.pixels, decode_png(data))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 50), st.integers(1, 50))
def test_a_frame_holds_the_input_and_has_the_canvas_s_aspect(width: int, height: int, across: int, along: int) -> None:
    rule = SizeRule(canvases=((across, along),))
    if not 0.1 < across * height / (along * width) < 10:
        return
    lq = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    sent = framed(lq, rule)
    full_height, full_width = sent.shape[:2]
    assert full_width == width or full_height == height, "no larger than it has to be"
    assert abs(full_width * along - full_height * across) < max(across, along), "less than a pixel off"
    assert np.array_equal(fit_candidate(lq, encode_png(sent), "", USAGE, rule).pixels, lq)


def test_stored_bytes_give_the_pixels_again(lq: Pixels, tmp_path: Path) -> None:
    rule = SizeRule(canvases=((160, 100),))
    data = coded(resized(framed(lq, rule), (160, 100)), "JPEG", quality=95)
    candidate = fit_candidate(lq, data, "image/jpeg", USAGE, rule)
    (tmp_path / "hq.jpg").write_bytes(candidate.data)
    again = fit_candidate(np.zeros_like(lq), (tmp_path / "hq.jpg").read_bytes(), "image/jpeg", USAGE, rule)
    assert np.array_equal(again.pixels, candidate.pixels)
