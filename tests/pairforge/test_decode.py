import io
import os
import stat
import subprocess
import sys
import time
import warnings
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps

from pairforge.decode import DecodeLimits, SourceFacts, decode_source, probe
from pairforge.image import Pixels, pixels_to_linear
from pairforge.records import Fate, SampleError
from tests import hostile_files as files
from tests.hostile_files import LIMITS, chunk, exif, photo, png, save, tiff

CONTENTS = files.contents()
USABLE = [name for name, (_, expected) in CONTENTS.items() if expected.reason is None]
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.rot90(np.fliplr(a), 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.fliplr(a), -1),
    8: lambda a: np.rot90(a, 1),
}
"""What a viewer does to stored pixels, by EXIF orientation."""
D50 = np.array([0.9642, 1, 0.8249])


def refusal(data: bytes, limits: DecodeLimits = LIMITS) -> SampleError:
    with pytest.raises(SampleError) as caught:
        decode_source(data, limits)
    return caught.value


def pixels_of(data: bytes) -> Pixels:
    return decode_source(data, LIMITS)[0]


def furthest(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other).max())


# Every file of the hostile folder


@pytest.mark.parametrize("name", CONTENTS, ids=lambda name: name[:40].encode("unicode_escape").decode())
def test_every_content_meets_its_expectation(name: str) -> None:
    data, expected = CONTENTS[name]
    outcomes: list[tuple[Fate | None, str | None]] = []
    for read in (probe, decode_source):
        try:
            read(data, LIMITS)
            outcomes.append((None, None))
        except SampleError as error:
            assert error.detail, "a refusal must name the value"
            outcomes.append((error.fate, error.reason))
    want = (expected.fate, expected.reason)
    assert outcomes == [want if expected.level == "header" else (None, None), want]


@pytest.mark.parametrize("name", USABLE, ids=lambda name: name[:40].encode("unicode_escape").decode())
def test_usable_contents_give_upright_8_bit_rgb(name: str) -> None:
    data = CONTENTS[name][0]
    pixels, facts = decode_source(data, LIMITS)
    assert facts == probe(data, LIMITS)
    assert pixels.dtype == np.uint8 and pixels.shape == (facts.height, facts.width, 3)
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert np.array_equal(pixels, pixels_of(data)), "not deterministic"
    turned = facts.orientation > 4
    assert (facts.width, facts.height) == ((48, 64) if turned else (64, 48))


def test_contents_cover_every_reason_and_45_kinds() -> None:
    reasons = {expected.reason for _, expected in CONTENTS.values()}
    promised = "empty_file not_an_image unsupported_format truncated corrupt animated transparent"
    promised += " cmyk_without_profile unsupported_mode too_many_pixels side_too_long too_small bad_icc"
    assert reasons >= set(promised.split()) and len(CONTENTS) >= 45


def test_the_folder_is_built_as_told(tmp_path: Path) -> None:
    expected = files.build(tmp_path)
    assert all(os.path.lexists(tmp_path / name) for name in expected)
    assert stat.S_ISFIFO((tmp_path / "pipe.png").stat().st_mode)
    assert (tmp_path / "sparse.png").stat().st_size == 5 * 2**30
    assert (tmp_path / "sparse.png").stat().st_blocks * 512 < 2**20
    assert b"caf\xe9 \xff.png" in {os.fsencode(path.name) for path in tmp_path.iterdir()}
    assert {"not_a_file", "not_found", "symlink_loop", "too_many_bytes"} <= {e.reason for e in expected.values()}
    on_disk = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert on_disk - set(expected) == {"sub"}


# Limits


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (replace(LIMITS, max_bytes=1000), "too_many_bytes"),
        (replace(LIMITS, max_pixels=64 * 48 - 1), "too_many_pixels"),
        (replace(LIMITS, max_side=63), "side_too_long"),
        (replace(LIMITS, min_side=49), "too_small"),
    ],
)
def test_limits_refuse_and_say_what_is_allowed(limits: DecodeLimits, reason: str) -> None:
    error = refusal(CONTENTS["plain.png"][0], limits)
    assert (error.reason, error.fate) == (reason, Fate.REJECTED)
    changed = next(str(v) for k, v in asdict(limits).items() if v != asdict(LIMITS)[k])
    assert changed in error.detail


def test_limits_are_inclusive() -> None:
    data = CONTENTS["plain.png"][0]
    decode_source(data, DecodeLimits(max_bytes=len(data), max_pixels=64 * 48, max_side=64, min_side=48))


def test_limits_below_one_are_an_error() -> None:
    with pytest.raises(ValueError, match="max_side is 0"):
        DecodeLimits(1, 1, 0, 1)


def test_bombs_are_refused_without_memory_or_time() -> None:
    """In a process of its own, whose peak memory is not that of the other tests."""
    program = """
import resource, time
from pairforge.decode import decode_source
from pairforge.records import SampleError
from tests.hostile_files import LIMITS, contents
bombs = {n: d for n, (d, e) in contents().items() if e.reason == "too_many_pixels" or "bomb" in n}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = peak(), time.perf_counter()
for data in bombs.values():
    try:
        decode_source(data, LIMITS)
    except SampleError:
        continue
    raise AssertionError("decoded")
print(len(bombs), peak() - before, time.perf_counter() - start)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    bombs, kib, seconds = run.stdout.split()
    assert int(bombs) >= 8 and int(kib) < 30_000 and float(seconds) < 2


def test_probe_does_not_decode() -> None:
    data = save(photo(2400, 1800), "JPEG", quality=90)
    start = time.perf_counter()
    probe(data, LIMITS)
    probed = time.perf_counter() - start
    decode_source(data, LIMITS)
    assert probed < (time.perf_counter() - start - probed) / 4


# Orientation


@pytest.mark.parametrize("code", range(1, 9))
def test_orientation_is_exact(code: int) -> None:
    stored = photo()
    upright = TURNS[code](stored)
    deep = stored.astype(np.uint16) * 257
    block = exif(code).removeprefix(b"Exif\0\0")
    variants = {
        "png": png(stored, 2, chunk(b"eXIf", block)),
        "png, exif last": png(stored, 2, after=chunk(b"eXIf", block)),
        "16-bit png": png(deep, 2, chunk(b"eXIf", block)),
        "webp": save(stored, "WEBP", lossless=True, exif=exif(code)),
        "tiff": tiff(stored, 2, t274=(code,)),
        "deflate tiff": save(stored, "TIFF", compression="tiff_adobe_deflate", tiffinfo={274: code}),
        "16-bit tiff": tiff(deep, 2, t274=(code,)),
        "16-bit grey tiff": tiff(deep[..., 0], 1, t274=(code,)),
    }
    for name, data in variants.items():
        pixels, facts = decode_source(data, LIMITS)
        want = upright[..., :1].repeat(3, axis=2) if "grey" in name else upright
        assert np.array_equal(pixels, want), name
        assert (facts.orientation, facts.height, facts.width) == (code, *upright.shape[:2]), name


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "AVIF"])
def test_orientation_of_lossy_formats_matches_pillow(format: str, code: int) -> None:
    options = {"speed": 10} if format == "AVIF" else {}
    data = save(photo(), format, exif=exif(code), **options)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    pixels, facts = decode_source(data, LIMITS)
    assert np.array_equal(pixels, want) and facts.orientation == code


@pytest.mark.parametrize("code", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_upright(code: int) -> None:
    assert np.array_equal(pixels_of(tiff(photo(), 2, t274=(code,))), photo())
    assert np.array_equal(pixels_of(png(photo(), 2, chunk(b"eXIf", exif(code)[6:]))), photo())


def test_xmp_does_not_turn() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = save(photo(), "TIFF", tiffinfo={700: xmp})
    assert b"tiff:Orientation" in data and np.array_equal(pixels_of(data), photo())


# Depth and layout


def test_every_16_bit_code_is_rounded_to_nearest() -> None:
    codes = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    want = np.rint(np.arange(65536) / 257).astype(np.uint8).reshape(256, 256, 1).repeat(3, axis=2)
    colour = codes[..., None].repeat(3, axis=2)
    for data in (
        png(codes, 0),
        png(colour, 2),
        png(np.dstack([colour, np.full_like(codes, 65535)]), 6),
        png(np.dstack([codes, np.full_like(codes, 65535)]), 4),
        tiff(codes, 1),
        tiff(codes.astype(">u2"), 1),
        tiff(colour, 2),
        tiff(colour.astype(">u2"), 2),
        tiff(np.dstack([colour, codes]), 2, t338=(0,)),
        b"P5 256 256 65535\n" + codes.astype(">u2").tobytes(),
        b"P6 256 256 65535\n" + colour.astype(">u2").tobytes(),
    ):
        assert np.array_equal(pixels_of(data), want), data[:60]


@pytest.mark.parametrize("compression", [5, 8, 32773])
def test_compressed_16_bit_tiff(compression: int) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    done, stored = cv2.imencode(".tiff", deep[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    assert done and np.array_equal(pixels_of(bytes(stored)), np.rint(deep / 257).astype(np.uint8))


@pytest.mark.parametrize("top", [1, 100, 254, 256, 1023, 4095])
def test_ppm_of_any_top_code(top: int) -> None:
    codes = (np.arange(32 * 32 * 3).reshape(32, 32, 3) % (top + 1)).astype(np.uint16)
    body = codes.astype(">u2" if top > 255 else np.uint8).tobytes()
    want = np.floor(codes.astype(int) * 255 / top + 0.5).astype(np.uint8)
    assert np.array_equal(pixels_of(b"P6 32 32 %d\n" % top + body), want)


def test_lossless_8_bit_pixels_are_kept_exactly() -> None:
    stored = photo()
    image = Image.fromarray(stored)
    grey = stored[..., 0]
    for data in (
        save(stored, "PNG"),
        save(stored, "BMP"),
        save(stored, "PPM"),
        save(stored, "TIFF"),
        save(stored, "WEBP", lossless=True, exact=True),
        save(stored, "JPEG2000"),
        save(image.convert("RGBA"), "PNG"),
        save(image.convert("RGBA"), "TIFF"),
        save(stored, "PNG", icc_profile=files.srgb_profile()),
    ):
        assert np.array_equal(pixels_of(data), stored)
    for data in (save(grey, "PNG"), save(grey, "TIFF"), save(grey, "PPM"), save(grey, "BMP")):
        assert np.array_equal(pixels_of(data), grey[..., None].repeat(3, axis=2))


def test_palette_is_expanded() -> None:
    palette = Image.fromarray(photo()).quantize(32)
    want = np.asarray(palette.convert("RGB"))
    assert np.array_equal(pixels_of(save(palette, "PNG")), want)
    assert np.array_equal(pixels_of(save(palette, "GIF")), want)


def test_mpo_gives_its_first_view() -> None:
    data = CONTENTS["two_views.mpo"][0]
    assert np.array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(data))))
    assert probe(data, LIMITS).format == "JPEG"


def test_an_alpha_of_one_code_below_opaque_is_transparent() -> None:
    deep = np.full((32, 32, 4), 65535, np.uint16)
    assert pixels_of(png(deep, 6)).min() == 255
    deep[7, 9, 3] = 65534
    error = refusal(png(deep, 6))
    assert error.reason == "transparent" and "0.10%" in error.detail


def test_ten_bit_avif() -> None:
    stored = photo()
    deep = stored.astype(np.uint16) * 4
    done, data = cv2.imencode(".avif", deep[..., ::-1], [cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_QUALITY, 95])
    assert done
    pixels, facts = decode_source(bytes(data), LIMITS)
    assert facts.bit_depth == 10 and np.abs(pixels.astype(int) - stored).mean() < 6


# Facts


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("turned.jpg", SourceFacts(48, 64, "JPEG", "RGB", 6, None, 8, True)),
        ("plain.png", SourceFacts(64, 48, "PNG", "RGB", 1, None, 8, False)),
        ("deep_colour.png", SourceFacts(64, 48, "PNG", "RGB", 1, None, 16, False)),
        ("deep_grey_big_endian.tif", SourceFacts(64, 48, "TIFF", "I;16B", 1, None, 16, False)),
        ("jpeg_inside.tif", SourceFacts(64, 48, "TIFF", "RGB", 1, None, 8, True)),
        ("turned.tif", SourceFacts(48, 64, "TIFF", "RGB", 5, None, 8, False)),
        ("display_p3.jpg", SourceFacts(64, 48, "JPEG", "RGB", 1, "Display P3", 8, True)),
        ("press_cmyk.jpg", SourceFacts(64, 48, "JPEG", "CMYK", 1, "Press", 8, True)),
        ("lossy.webp", SourceFacts(64, 48, "WEBP", "RGB", 1, None, 8, True)),
        ("lossless.webp", SourceFacts(64, 48, "WEBP", "RGB", 1, None, 8, False)),
        ("turned.avif", SourceFacts(48, 64, "AVIF", "RGB", 6, None, 8, True)),
        ("ten_bit.pgm", SourceFacts(64, 48, "PPM", "I", 1, None, 10, False)),
        ("bilevel.png", SourceFacts(64, 48, "PNG", "1", 1, None, 1, False)),
        ("static.gif", SourceFacts(64, 48, "GIF", "P", 1, None, 8, False)),
        ("plain.jp2", SourceFacts(64, 48, "JPEG2000", "RGB", 1, None, 8, True)),
    ],
)
def test_facts(name: str, facts: SourceFacts) -> None:
    assert probe(CONTENTS[name][0], LIMITS) == facts


# Colour


def _display_p3_to_srgb(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """By hand: SMPTE EG 432-1 and sRGB primaries, both D65, one curve."""
    to_srgb = np.array(
        [
            [1.2249402, -0.2249404, 0.0],
            [-0.0420569, 1.0420571, 0.0],
            [-0.0196376, -0.0786361, 1.0982735],
        ]
    )
    code = codes / 255
    light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4) @ to_srgb.T
    light = np.clip(light, 0, 1)
    code = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    codes_out: NDArray[np.uint8] = np.rint(code * 255).astype(np.uint8)
    return codes_out


def test_display_p3_is_converted() -> None:
    stored = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = pixels_of(save(stored, "PNG", icc_profile=files.display_p3()))
    assert furthest(pixels, _display_p3_to_srgb(stored)) <= 1
    source = ImageCms.ImageCmsProfile(io.BytesIO(files.display_p3()))
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
    )
    assert furthest(pixels, np.asarray(transform.apply(Image.fromarray(stored)))) <= 1
    assert furthest(pixels, stored) > 20


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_is_found_in_every_container(format: str) -> None:
    options = {"speed": 10} if format == "AVIF" else {}
    data = save(photo(), format, icc_profile=files.display_p3(), **options)
    assert probe(data, LIMITS).icc == "Display P3"
    plain = pixels_of(save(photo(), format, **options))
    assert furthest(pixels_of(data), _display_p3_to_srgb(plain)) <= 1


def test_a_profile_in_jp2_is_found() -> None:
    data = CONTENTS["plain.jp2"][0]
    at = data.index(b"colr") - 4
    size = int.from_bytes(data[at : at + 4])
    content = b"colr\2\0\0" + files.display_p3()
    colr = (len(content) + 4).to_bytes(4) + content
    head = data.index(b"jp2h") - 4
    grown = int.from_bytes(data[head : head + 4]) + len(colr) - size
    patched = data[:head] + grown.to_bytes(4) + data[head + 4 : at] + colr + data[at + size :]
    assert probe(patched, LIMITS).icc == "Display P3"
    assert furthest(pixels_of(patched), _display_p3_to_srgb(photo())) <= 1


def test_16_bits_are_rounded_and_then_converted() -> None:
    stored = photo()
    profile = chunk(b"iCCP", b"p3\0\0" + zlib.compress(files.display_p3()))
    assert furthest(pixels_of(png(stored.astype(np.uint16) * 257, 2, profile)), _display_p3_to_srgb(stored)) <= 1


def test_grey_profile_is_converted() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(16, axis=0)
    pixels = pixels_of(save(ramp, "PNG", icc_profile=files.grey_gamma(1.8)))
    light = (np.arange(256) / 255) ** (round(1.8 * 256) / 256)
    code = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    want = np.rint(code * 255)[None, :, None]
    assert np.abs(pixels - want).max() <= 1 and (pixels == pixels[..., :1]).all()


def test_grey_with_an_rgb_profile_is_converted() -> None:
    grey = photo()[..., 0]
    pixels = pixels_of(save(grey, "PNG", icc_profile=files.display_p3()))
    assert furthest(pixels, grey[..., None]) <= 1  # both have one curve and one white


def _xyz_of_lab(lab: tuple[float, float, float]) -> NDArray[np.float64]:
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    return np.asarray(np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50)


def _light_of_ink(lab: tuple[float, float, float]) -> NDArray[np.float64]:
    """By hand: black point compensation is a scaling of XYZ that takes the press's black to zero."""
    black = _xyz_of_lab(files.BLACK_LAB)
    xyz = (_xyz_of_lab(lab) - black) / (D50 - black) * D50
    matrix = [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540]]
    return np.asarray(np.clip(np.array([*matrix, [0.0719453, -0.2289914, 1.4052427]]) @ xyz, 0, 1))


def test_cmyk_with_a_profile_is_converted() -> None:
    colours = {(*inks, 0): lab for inks, lab in files.CMYK_CORNERS_LAB.items()} | {(0, 0, 0, 1): files.BLACK_LAB}
    for inks, lab in colours.items():
        stored = Image.new("CMYK", (32, 32), tuple(255 * ink for ink in inks))
        for data in (
            save(stored, "TIFF", icc_profile=files.cmyk_press()),
            save(stored, "JPEG", icc_profile=files.cmyk_press(), quality=100),
        ):
            # In linear light, as the profile holds CIELAB in steps of 0.4 and 1.
            assert np.abs(pixels_to_linear(pixels_of(data)) - _light_of_ink(lab)).max() < 0.01, inks


def test_names_of_refused_profiles_are_told() -> None:
    assert "Display P3" in refusal(CONTENTS["cmyk_with_rgb_profile.tif"][0]).detail
    assert "Press" in refusal(CONTENTS["press_profile_on_rgb.png"][0]).detail


# Pillow's globals


def test_pillow_settings_are_neither_read_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("plain.png", "plain.jpg", "plain.avif", "plain.bmp", "deep_colour.png"):
        pixels_of(CONTENTS[name][0])
    for name in ("deflate.tif", "plain.jpg"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                pixels_of(CONTENTS[name][0])
            except SampleError as error:
                assert error.reason == "too_many_pixels"
    assert Image.MAX_IMAGE_PIXELS == 100 and not ImageFile.LOAD_TRUNCATED_IMAGES


def test_warnings_of_pillow_do_not_become_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        palette = Image.fromarray(photo()).quantize(8)
        pixels_of(save(palette, "PNG", transparency=b"\xff" * 8))
        pixels_of(CONTENTS["broken_exif.jpg"][0])


# Arbitrary bytes


def outcome(data: bytes) -> Pixels | None:
    """Pixels, or None for a refusal; any other exception fails the test."""
    try:
        facts = probe(data, LIMITS)
    except SampleError:
        facts = None
    try:
        pixels, decoded_facts = decode_source(data, LIMITS)
    except SampleError as error:
        assert error.reason and error.detail
        return None
    assert facts == decoded_facts and pixels.dtype == np.uint8
    return pixels


SMALL = {data: name for name, (data, _) in CONTENTS.items() if 0 < len(data) < 20_000}
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(FUZZ, max_examples=300)
@given(st.binary(max_size=300), st.sampled_from(sorted({data[:24] for data in SMALL})))
def test_random_bytes_are_refused(tail: bytes, head: bytes) -> None:
    outcome(tail)
    outcome(head + tail)


@settings(FUZZ, max_examples=600)
@given(
    st.sampled_from(sorted(SMALL)),
    st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=0, max_size=5)), min_size=1, max_size=4),
    st.booleans(),
)
def test_damaged_files_are_read_or_refused(data: bytes, patches: list[tuple[int, bytes]], early: bool) -> None:
    for place, patch in patches:
        at = place % min(len(data), 300 if early else len(data))
        data = data[:at] + patch + data[at + max(1, len(patch)) :]
    outcome(data)


@settings(FUZZ, max_examples=300)
@given(st.sampled_from(USABLE), st.floats(0, 1))
def test_no_cut_gives_other_pixels(name: str, share: float) -> None:
    """A cut behind the last pixel may pass; a cut before it may not."""
    data = CONTENTS[name][0]
    pixels = outcome(data[: int(share * (len(data) - 1))])
    assert pixels is None or np.array_equal(pixels, pixels_of(data))
