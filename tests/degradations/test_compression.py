"""Properties of coding: C1-C4, and that repeated coding moves the grid but not the picture.

Sources were never coded at this size: PNG photos, halved.
"""

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import JpegImagePlugin
from skimage import data

from degradations.base import Degradation, Scene
from degradations.compression import (
    AVIF,
    JPEG,
    RECOMPRESS,
    WEBP,
    AvifParams,
    JpegParams,
    RecompressParams,
    WebpParams,
    apply_avif,
    apply_jpeg,
    apply_recompress,
    apply_webp,
    code_avif,
    code_jpeg,
    code_webp,
)
from pairforge.image import Image, Pixels, to_float
from pairforge.rng import rng_for

FAMILY: tuple[Degradation[Any], ...] = (JPEG, WEBP, AVIF, RECOMPRESS)


def _halved(photo: Pixels) -> Pixels:
    size = (photo.shape[1] // 2, photo.shape[0] // 2)
    halved: Pixels = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    return halved


PHOTOS = {
    "astronaut": _halved(data.astronaut()),
    "coffee": _halved(data.coffee()),
    "chelsea": _halved(data.chelsea()),
    "motorcycle": _halved(data.stereo_motorcycle()[0]),
}


def _luma(image: Image) -> NDArray[np.float32]:
    luma: NDArray[np.float32] = image @ np.array([0.299, 0.587, 0.114], np.float32)
    return luma


def _blockiness(luma: NDArray[np.float32], x: int = 0, y: int = 0) -> float:
    """Mean step over block borders against elsewhere; the first border lies before column 8 - x, row 8 - y."""
    over_x, over_y = np.abs(np.diff(luma, axis=1)).mean(0), np.abs(np.diff(luma, axis=0)).mean(1)
    ratios = []
    for steps, shift in ((over_x, x), (over_y, y)):
        border = np.zeros(steps.size, bool)
        border[(7 - shift) % 8 :: 8] = True
        ratios.append(float(steps[border].mean() / steps[~border].mean()))
    return (ratios[0] + ratios[1]) / 2


def _jpeg(pixels: Pixels, quality: int, subsampling: str = "4:4:4") -> tuple[Image, int]:
    params = JpegParams.model_validate({"quality": quality, "subsampling": subsampling})
    rendered = apply_jpeg(to_float(pixels), params, Scene(), rng_for(0, "unused"))
    return rendered.image, rendered.realised["coded_bytes"]


def _ranks(values: list[float]) -> NDArray[np.intp]:
    return np.argsort(np.argsort(values))


@pytest.mark.parametrize("name", PHOTOS)
def test_c1_blockiness_falls_with_quality(name: str) -> None:
    coarse = [_blockiness(_luma(_jpeg(PHOTOS[name], quality)[0])) for quality in (10, 30, 60, 90)]
    assert all(worse > better for worse, better in pairwise(coarse)), coarse
    grid = [_blockiness(_luma(_jpeg(PHOTOS[name], quality)[0])) for quality in range(8, 96, 8)]
    assert np.corrcoef(_ranks(grid), np.arange(len(grid)))[0, 1] <= -0.95


@pytest.mark.parametrize("name", PHOTOS)
def test_c2_c4_error_falls_and_size_rises_with_quality(name: str) -> None:
    clean = to_float(PHOTOS[name])
    coders: dict[str, Callable[[int], tuple[Image, int]]] = {
        "jpeg": lambda quality: _jpeg(PHOTOS[name], quality, "4:2:0"),
        "webp": lambda quality: _webp(PHOTOS[name], quality),
        "avif": lambda quality: _avif(PHOTOS[name], quality),
    }
    for codec, code in coders.items():
        results = [code(quality) for quality in (10, 30, 60, 90)]
        errors = [float(((image - clean) ** 2).mean()) for image, _ in results]
        sizes = [size for _, size in results]
        assert errors == sorted(errors, reverse=True), codec
        assert len(set(errors)) == 4, codec
        assert sizes == sorted(sizes), codec


def _webp(pixels: Pixels, quality: int) -> tuple[Image, int]:
    params = WebpParams(quality=quality, method=4)
    rendered = apply_webp(to_float(pixels), params, Scene(), rng_for(0, "unused"))
    return rendered.image, rendered.realised["coded_bytes"]


def _avif(pixels: Pixels, quality: int) -> tuple[Image, int]:
    params = AvifParams(quantizer=63 - round(0.63 * quality), subsampling="4:2:0", speed=8)
    rendered = apply_avif(to_float(pixels), params, Scene(), rng_for(0, "unused"))
    return rendered.image, rendered.realised["coded_bytes"]


def _fine_blue(image: Image) -> float:
    """Energy of Cb above 0.27 cycles per pixel in x or y."""
    chroma = image @ np.array([-0.168736, -0.331264, 0.5], np.float32)
    power = np.abs(np.fft.fft2(chroma)) ** 2
    fine = np.maximum(
        np.abs(np.fft.fftfreq(chroma.shape[0]))[:, None], np.abs(np.fft.fftfreq(chroma.shape[1]))[None, :]
    )
    return float(power[fine > 0.27].sum())


def test_every_avif_quantizer_is_another_picture() -> None:
    pixels = np.ascontiguousarray(PHOTOS["coffee"][:96, :96])
    pictures = {code_avif(pixels, quantizer, "4:2:0", 8)[0].tobytes() for quantizer in range(10, 60)}
    assert len(pictures) == 50


@pytest.mark.parametrize("name", PHOTOS)
def test_c3_subsampling_removes_fine_chroma(name: str) -> None:
    full, half = _jpeg(PHOTOS[name], 95, "4:4:4")[0], _jpeg(PHOTOS[name], 95, "4:2:0")[0]
    assert _fine_blue(half) <= 0.65 * _fine_blue(full)


@pytest.mark.parametrize("name", PHOTOS)
def test_c5_stored_stream_is_the_lq(name: str) -> None:
    """Decoding the bytes gives the pixels of the step, through Pillow's decoders too."""
    pixels = PHOTOS[name]
    for decoded, stream in (
        code_jpeg(pixels, 35, "4:2:0"),
        code_jpeg(pixels, 70, "4:2:2"),
        code_jpeg(pixels, 90, "4:4:4"),
        code_webp(pixels, 40, 2),
        code_avif(pixels, 40, "4:2:0", 8),
    ):
        with PILImage.open(io.BytesIO(stream)) as coded:
            assert np.array_equal(np.asarray(coded.convert("RGB")), decoded)


@pytest.mark.parametrize(("subsampling", "layers"), [("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)])
def test_subsampling_is_that_of_the_stream(subsampling: str, layers: int) -> None:
    with PILImage.open(io.BytesIO(code_jpeg(PHOTOS["coffee"], 50, subsampling)[1])) as coded:
        assert JpegImagePlugin.get_sampling(coded) == layers


def test_tables_follow_quality_on_the_scale_of_libjpeg() -> None:
    tables = set()
    for quality in (10, 50, 90):
        params = JpegParams(quality=quality, subsampling="4:2:0")
        rendered = apply_jpeg(to_float(PHOTOS["coffee"]), params, Scene(), rng_for(0))
        tables.add(rendered.realised["tables_sha256"])
        with PILImage.open(io.BytesIO(code_jpeg(PHOTOS["coffee"], quality, "4:2:0")[1])) as coded:
            assert isinstance(coded, JpegImagePlugin.JpegImageFile)
            first = coded.quantization[0][0]
        scale = 5000 / quality if quality < 50 else 200 - 2 * quality
        assert first == int((16 * scale + 50) / 100)
    assert len(tables) == 3


@pytest.mark.parametrize(
    ("params_type", "values"),
    [
        (JpegParams, {"quality": 0}),
        (JpegParams, {"quality": 101}),
        (JpegParams, {"subsampling": "4:1:0"}),
        (WebpParams, {"method": 7}),
        (AvifParams, {"quantizer": 64}),
        (AvifParams, {"speed": 0}),
        (RecompressParams, {"scale": (0.0, 1.0)}),
        (RecompressParams, {"quality": (50, 500)}),
        (RecompressParams, {"coding": ("jpeg_420", "gif")}),
    ],
)
def test_parameters_out_of_range_are_named(params_type: Any, values: dict[str, Any]) -> None:
    good: dict[Any, dict[str, Any]] = {
        JpegParams: {"quality": 50, "subsampling": "4:2:0"},
        WebpParams: {"quality": 50, "method": 4},
        AvifParams: {"quantizer": 40, "subsampling": "4:2:0", "speed": 8},
        RecompressParams: {
            "coding": ("jpeg_420", "webp"),
            "quality": (50, 60),
            "scale": (1.0, 0.7),
            "shift_x_px": (0, 3),
            "shift_y_px": (1, 2),
        },
    }
    assert params_type.model_validate(good[params_type])
    (field,) = values
    with pytest.raises(ValueError, match=field):
        params_type.model_validate({**good[params_type], **values})


def test_generations_need_an_entry_in_every_field() -> None:
    with pytest.raises(ValueError, match="one entry per generation"):
        RecompressParams(coding=("webp",), quality=(50, 60), scale=(1.0,), shift_x_px=(0,), shift_y_px=(0,))


def _recompress(pixels: Pixels, params: RecompressParams) -> Image:
    return apply_recompress(to_float(pixels), params, Scene(), rng_for(0, "unused")).image


def _displacement_px(clean: Image, moved: Image) -> float:
    """Least-squares displacement by the optical-flow equation, after smoothing both."""
    before, after = (cv2.GaussianBlur(_luma(image), (0, 0), 2) for image in (clean, moved))
    along_y, along_x = np.gradient(before)
    inner = np.s_[8:-8, 8:-8]
    slopes = np.stack([along_x[inner].ravel(), along_y[inner].ravel()], 1)
    moved_by = np.linalg.lstsq(slopes, (before - after)[inner].ravel(), rcond=None)[0]
    return float(np.hypot(*moved_by))


def test_displacement_is_measured_to_a_hundredth_of_a_pixel() -> None:
    clean = to_float(PHOTOS["coffee"])
    shift = np.array([[1, 0, 0.3], [0, 1, -0.2]], np.float32)
    moved = cv2.warpAffine(clean, shift, clean.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    assert _displacement_px(clean, moved) == pytest.approx(np.hypot(0.3, 0.2), abs=0.01)


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("severity", [0.2, 0.5, 0.8])
def test_recompression_does_not_move_the_picture(name: str, severity: float) -> None:
    for draw in range(4):
        params = RECOMPRESS.sample(severity, rng_for(draw, name))
        assert _displacement_px(to_float(PHOTOS[name]), _recompress(PHOTOS[name], params)) <= 0.1


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 5), (7, 1)])
def test_recorded_shift_is_where_the_grid_lies(x: int, y: int) -> None:
    params = RecompressParams(coding=("jpeg_444",), quality=(12,), scale=(1.0,), shift_x_px=(x,), shift_y_px=(y,))
    luma = _luma(_recompress(PHOTOS["astronaut"], params))
    on_grid = _blockiness(luma, x, y)
    assert on_grid > 1.3
    assert on_grid > _blockiness(luma, x + 3, y + 3) + 0.3


def test_a_generation_on_a_moved_grid_costs_more_than_on_the_same() -> None:
    clean = to_float(PHOTOS["coffee"])
    errors = []
    for shift in (0, 4):
        params = RecompressParams(
            coding=("jpeg_420",) * 2,
            quality=(30, 30),
            scale=(1.0, 1.0),
            shift_x_px=(0, shift),
            shift_y_px=(0, shift),
        )
        errors.append(float(((_recompress(PHOTOS["coffee"], params) - clean) ** 2).mean()))
    once = float(((_jpeg(PHOTOS["coffee"], 30, "4:2:0")[0] - clean) ** 2).mean())
    assert errors[0] < 1.05 * once
    assert errors[1] > 1.1 * errors[0]


def test_generations_are_recorded_and_listed() -> None:
    params = RECOMPRESS.sample(1.0, rng_for(2, "params"))
    assert 2 <= len(params.coding) <= 4
    lengths = {len(value) for value in params.model_dump().values()}
    assert lengths == {len(params.coding)}
    rendered = apply_recompress(to_float(PHOTOS["coffee"]), params, Scene(), rng_for(0, "unused"))
    assert len(rendered.realised["coded_bytes"]) == len(rendered.realised["sizes_px"]) == len(params.coding)
    assert rendered.image.shape == PHOTOS["coffee"].shape
    broken = params.model_copy(update={"quality": params.quality[:1]})
    with pytest.raises(ValueError):
        apply_recompress(to_float(PHOTOS["coffee"]), broken, Scene(), rng_for(0, "unused"))


@pytest.mark.parametrize("degradation", FAMILY, ids=lambda degradation: str(degradation.name))
def test_error_rises_with_severity(degradation: Degradation[Any]) -> None:
    for name, pixels in PHOTOS.items():
        clean = to_float(pixels)
        errors = []
        for severity in (0.0, 0.33, 0.67, 1.0):
            params = degradation.sample(severity, rng_for(4, "params"))
            coded = degradation.apply(clean, params, Scene(), rng_for(0, "unused")).image
            errors.append(float(np.sqrt(((coded - clean) ** 2).mean())) * 255)
        assert errors == sorted(errors), name
        assert errors[0] < 8, name
        assert errors[3] > 2 * errors[0], name


@pytest.mark.parametrize("degradation", FAMILY, ids=lambda degradation: str(degradation.name))
def test_odd_sizes_untouched_input_and_encoder_version(degradation: Degradation[Any]) -> None:
    params = degradation.sample(0.6, rng_for(1, "params"))
    for shape in ((16, 16), (17, 43), (61, 20)):
        clean = to_float(np.ascontiguousarray(PHOTOS["coffee"][: shape[0], : shape[1]]))
        kept = clean.copy()
        rendered = degradation.apply(clean, params, Scene(), rng_for(0, "unused"))
        assert rendered.image.shape == clean.shape
        assert rendered.target is clean
        assert np.array_equal(clean, kept)
        assert any(digit.isdigit() for digit in rendered.realised["encoder"])


_OTHER_PROCESS = """
import hashlib, sys
import numpy as np
from degradations.compression import code_avif, code_jpeg, code_webp
pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape({shape})
for stream in (code_jpeg(pixels, 40, "4:2:0")[1], code_webp(pixels, 40, 4)[1],
               code_avif(pixels, 40, "4:2:0", 8)[1]):
    print(hashlib.sha256(stream).hexdigest())
"""


def test_streams_are_the_same_in_another_process() -> None:
    pixels = PHOTOS["motorcycle"]
    streams = (
        code_jpeg(pixels, 40, "4:2:0")[1],
        code_webp(pixels, 40, 4)[1],
        code_avif(pixels, 40, "4:2:0", 8)[1],
    )
    here = [hashlib.sha256(stream).hexdigest() for stream in streams]
    command = [sys.executable, "-c", _OTHER_PROCESS.format(shape=pixels.shape)]
    there = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=True).stdout
    assert there.decode().split() == here
