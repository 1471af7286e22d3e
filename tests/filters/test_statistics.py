"""Properties of the weight-free measures, on real photos and on plain degradations of them made here."""

import math
import time
from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from skimage import data

from filters.overlays import Borders, find_borders, text_share
from filters.statistics import MEASURES, Statistics
from pairforge.image import Pixels, use_one_thread
from pairforge.protocols import Scorer
from pairforge.rng import rng_for

PHOTOS: dict[str, Pixels] = {
    "astronaut": data.astronaut(),
    "coffee": data.coffee(),
    "chelsea": data.chelsea(),
    "rocket": data.rocket(),
    "motorcycle": data.stereo_motorcycle()[0],
}
each_photo = pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)


def measured(pixels: Pixels, name: str) -> float:
    return Statistics().measure(pixels)[name]


def to_codes(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def noisy(photo: Pixels, sigma_codes: float, channels: int = 3) -> Pixels:
    noise = rng_for(3, "noise").standard_normal((*photo.shape[:2], channels)) * sigma_codes
    return to_codes(photo + noise)


def blurred(photo: Pixels, sigma_px: float) -> Pixels:
    result: Pixels = cv2.GaussianBlur(photo, (0, 0), sigma_px) if sigma_px else photo
    return result


def jpeg(photo: Pixels, quality: int) -> Pixels:
    done, stream = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)


def linear(photo: Pixels) -> NDArray[np.float64]:
    code = photo / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def encoded(light: NDArray[np.float64]) -> Pixels:
    light = np.clip(light, 0, 1)
    return to_codes(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def rises(values: list[float]) -> bool:
    return all(low < high for low, high in pairwise(values))


# noise


@each_photo
def test_noise_reads_its_sigma(photo: Pixels) -> None:
    own = measured(photo, "noise_sigma_codes")
    for sigma in (3.0, 5.0, 10.0, 20.0):
        expected = math.hypot(sigma, own)
        assert measured(noisy(photo, sigma), "noise_sigma_codes") == pytest.approx(expected, rel=0.12), sigma


@each_photo
def test_noise_rises_with_sigma(photo: Pixels) -> None:
    assert rises([measured(noisy(photo, sigma), "noise_sigma_codes") for sigma in (0, 2, 5, 10, 20, 40)])


def test_grey_noise_reads_the_same_in_luma_and_channels() -> None:
    values = Statistics().measure(noisy(PHOTOS["astronaut"], 10.0, channels=1))
    assert values["noise_luma_codes"] == pytest.approx(10, rel=0.1)
    assert values["noise_sigma_codes"] == pytest.approx(10, rel=0.1)


def test_noise_of_the_channels_averages_out_in_luma() -> None:
    values = Statistics().measure(noisy(PHOTOS["coffee"], 10.0))
    assert values["noise_luma_codes"] == pytest.approx(10 * math.sqrt(0.299**2 + 0.587**2 + 0.114**2), rel=0.1)


def test_texture_is_hardly_taken_for_noise() -> None:
    assert all(measured(photo, "noise_sigma_codes") < 2 for photo in PHOTOS.values())


# sharpness


@each_photo
def test_sharpness_falls_with_blur(photo: Pixels) -> None:
    assert rises([measured(blurred(photo, sigma), "sharpness") for sigma in (5, 3, 2, 1, 0.5, 0)])


@each_photo
def test_sharpness_of_a_blur_is_what_its_formula_says(photo: Pixels) -> None:
    for sigma in (2.0, 3.0):
        expected = 1 - sigma / math.hypot(sigma, 1)
        assert measured(blurred(photo, sigma), "sharpness") == pytest.approx(expected, abs=0.06)


@each_photo
def test_noise_does_not_pass_for_sharpness(photo: Pixels) -> None:
    """Where nothing is taken off, noise of 10 codes lifts a blur of 2 px from 0.14 to above 0.5."""
    clean = measured(photo, "sharpness")
    for sigma in (2.0, 5.0, 10.0):
        assert measured(noisy(photo, sigma), "sharpness") == pytest.approx(clean, abs=0.05)
    soft = blurred(photo, 2.0)
    assert measured(noisy(soft, 10.0), "sharpness") < measured(soft, "sharpness") + 0.06


@pytest.mark.parametrize("angle", ["row", "column", "diagonal"])
def test_motion_shows_in_the_worst_direction(angle: str) -> None:
    kernel = np.eye(15, dtype=np.float32) / 15
    if angle != "diagonal":
        kernel = np.zeros((15, 15), np.float32)
        kernel[np.s_[7, :] if angle == "row" else np.s_[:, 7]] = 1 / 15
    for photo in PHOTOS.values():
        before, after = (Statistics().measure(pixels) for pixels in (photo, cv2.filter2D(photo, -1, kernel)))
        assert before["sharpness_worst"] > 0.8 * before["sharpness"]
        assert after["sharpness_worst"] < 0.6 * after["sharpness"]


def test_pure_noise_is_not_sharp() -> None:
    grey = np.full((200, 300, 3), 128, np.uint8)
    values = Statistics().measure(noisy(grey, 20.0))
    assert values["sharpness"] == values["sharpness_worst"] == 0
    assert values["noise_sigma_codes"] == pytest.approx(20, rel=0.05)
    assert values["texture"] < 0.05


# blocks


@each_photo
def test_blockiness_falls_with_quality(photo: Pixels) -> None:
    values = [measured(jpeg(photo, quality), "blockiness") for quality in (95, 90, 70, 50, 30, 10)]
    assert rises(values), values
    assert values[-1] > 1.4


@each_photo
def test_blocks_are_found_in_a_crop_and_not_after_resizing(photo: Pixels) -> None:
    coded = jpeg(photo, 30)
    whole = measured(coded, "blockiness")
    assert measured(np.ascontiguousarray(coded[3:, 5:]), "blockiness") == pytest.approx(whole, rel=0.05)
    resized = cv2.resize(coded, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_CUBIC)
    assert measured(resized, "blockiness") < 1.1 < whole


# light, colour, haze, structure


@each_photo
def test_exposure_follows_the_light(photo: Pixels) -> None:
    bright = np.clip(photo, 60, 200).astype(np.uint8)
    full = Statistics().measure(bright)
    half = Statistics().measure(encoded(linear(bright) / 2))
    assert half["exposure_ev"] == pytest.approx(full["exposure_ev"] - 1, abs=0.03)
    assert half["contrast_ev"] == pytest.approx(full["contrast_ev"], abs=0.05)


@each_photo
def test_darkness_and_clipping_follow_exposure(photo: Pixels) -> None:
    values = [Statistics().measure(encoded(linear(photo) * gain)) for gain in (1 / 64, 1 / 16, 1 / 4, 1, 4, 16)]
    assert all(low["darkness"] >= high["darkness"] for low, high in pairwise(values))
    assert values[0]["darkness"] > 0.99 and values[-1]["darkness"] < 0.3
    assert rises([one["exposure_ev"] for one in values])
    assert all(low["clipped_high"] <= high["clipped_high"] for low, high in pairwise(values))
    assert all(low["clipped_low"] >= high["clipped_low"] for low, high in pairwise(values))
    assert values[-1]["clipped_high"] > 0.1


@each_photo
def test_haze_rises_with_a_veil(photo: Pixels) -> None:
    light = linear(photo)
    values = [measured(encoded(light * t + 0.8 * (1 - t)), "haze_density") for t in (0.9, 0.7, 0.5, 0.3, 0.1)]
    assert rises(values), values
    assert values[-1] > 0.75
    assert measured(photo, "haze_density") < 0.2


@each_photo
def test_colour_falls_towards_grey(photo: Pixels) -> None:
    grey = np.repeat(photo.mean(2, keepdims=True), 3, 2)
    mixes = [Statistics().measure(to_codes(photo * share + grey * (1 - share))) for share in (0, 0.3, 0.6, 1)]
    assert mixes[0]["colourfulness_codes"] == mixes[0]["saturation"] == 0
    assert rises([mix["colourfulness_codes"] for mix in mixes])
    assert rises([mix["saturation"] for mix in mixes])


def test_colourfulness_is_that_of_the_paper() -> None:
    photo = PHOTOS["coffee"]
    red, green, blue = (photo[..., channel].astype(float) for channel in range(3))
    first, second = red - green, (red + green) / 2 - blue
    expected = math.hypot(first.std(), second.std()) + 0.3 * math.hypot(first.mean(), second.mean())
    assert measured(photo[:, :512], "colourfulness_codes") == pytest.approx(expected, rel=0.1)
    exact = np.ascontiguousarray(photo[:300, :400])
    red, green, blue = (exact[..., channel].astype(float) for channel in range(3))
    first, second = red - green, (red + green) / 2 - blue
    expected = math.hypot(first.std(), second.std()) + 0.3 * math.hypot(first.mean(), second.mean())
    assert measured(exact, "colourfulness_codes") == pytest.approx(expected, rel=1e-5)


def test_texture_is_the_share_that_has_structure() -> None:
    half = PHOTOS["motorcycle"][:480, :480].copy()
    whole = measured(half, "texture")
    half[:, 128:368] = half[:, 128:368].mean((0, 1)).astype(np.uint8)
    assert whole > 0.9
    assert measured(half, "texture") == pytest.approx(whole / 2, abs=0.06)
    assert measured(noisy(half, 6.0), "texture") == pytest.approx(whole / 2, abs=0.12)


# borders and lettering


@each_photo
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (20, 60, 200)])
def test_letterbox_is_found_to_the_pixel(photo: Pixels, colour: tuple[int, int, int]) -> None:
    expected = Borders(left=17, top=40, right=31, bottom=8)
    framed = cv2.copyMakeBorder(photo, 40, 8, 17, 31, cv2.BORDER_CONSTANT, value=colour)
    assert find_borders(framed) == expected
    values = Statistics().measure(framed)
    height, width = framed.shape[:2]
    assert (values["border_left"], values["border_top"]) == (17 / width, 40 / height)
    assert (values["border_right"], values["border_bottom"]) == (31 / width, 8 / height)
    inner = Statistics().measure(photo)
    outside = {"aspect", "megapixels", "short_side_px", "text", *(name for name in MEASURES if "border" in name)}
    assert {name: values[name] for name in MEASURES if name not in outside} == {
        name: inner[name] for name in MEASURES if name not in outside
    }


@each_photo
def test_letterbox_survives_coding(photo: Pixels) -> None:
    framed = cv2.copyMakeBorder(photo, 48, 48, 0, 0, cv2.BORDER_CONSTANT)
    found = find_borders(jpeg(framed, 75))
    assert abs(found.top - 48) <= 2 and abs(found.bottom - 48) <= 2 and found.left == found.right == 0


@each_photo
def test_photos_have_no_margin(photo: Pixels) -> None:
    assert find_borders(photo) == (0, 0, 0, 0)


def test_skies_and_one_colour_are_no_margin() -> None:
    sky = np.repeat(np.linspace(120, 220, 400)[:, None, None], 600, 1) + np.zeros(3)
    assert find_borders(to_codes(sky)) == (0, 0, 0, 0)
    assert find_borders(np.full((100, 100, 3), 9, np.uint8)) == (0, 0, 0, 0)


def lettered(photo: Pixels, size_px: int) -> Pixels:
    picture = PILImage.fromarray(photo)
    place = (10, photo.shape[0] - 2 * size_px)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size_px)
    draw.text(place, "SAMPLE PHOTO 2024", font=font, fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(picture)


@each_photo
def test_solid_captions_are_found(photo: Pixels) -> None:
    clean = text_share(photo)
    assert clean < 0.01
    small, large = (text_share(lettered(photo, size)) - clean for size in (20, 36))
    assert 0.003 < small < large < 0.15


# any picture


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    kind=st.sampled_from(["flat", "noise", "binary", "ramp", "one_pixel", "half"]),
    level=st.integers(0, 255),
)
def test_every_measure_is_a_number_within_its_bounds(height: int, width: int, kind: str, level: int) -> None:
    rng = rng_for(1, kind, height, width)
    pixels = np.full((height, width, 3), level, np.uint8)
    match kind:
        case "noise":
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        case "binary":
            pixels = np.repeat(rng.integers(0, 2, (height, width, 1), dtype=np.uint8) * 255, 3, 2)
        case "ramp":
            pixels[:] = (np.arange(width) * 255 // width)[None, :, None]
        case "one_pixel":
            pixels[height // 2, width // 2] = 255 - level
        case "half":
            pixels[height // 2 :] = 255 - level
    before = pixels.copy()
    values = Statistics().measure(pixels)
    assert list(values) == list(MEASURES)
    for name, value in values.items():
        assert type(value) is float and MEASURES[name].least <= value <= MEASURES[name].most, (name, value)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("shape", [(16, 16), (16, 3000), (3000, 17), (1500, 1500)])
def test_sizes(shape: tuple[int, int]) -> None:
    photo = cv2.resize(PHOTOS["coffee"], shape[::-1], interpolation=cv2.INTER_LINEAR)
    values = Statistics().measure(photo)
    assert values["aspect"] == shape[1] / shape[0]
    assert values["megapixels"] == shape[0] * shape[1] / 1e6
    assert values["short_side_px"] == min(shape)
    assert all(MEASURES[name].least <= value <= MEASURES[name].most for name, value in values.items())


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((15, 40, 3), np.uint8),
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((40, 40, 3), np.float32),
    ],
)
def test_what_is_no_picture_is_refused(pixels: Pixels) -> None:
    with pytest.raises(ValueError, match=r"shape|both sides"):
        Statistics().measure(pixels)


def test_memory_layout_does_not_matter() -> None:
    photo = PHOTOS["coffee"]
    wide = np.empty((400, 1201, 3), np.uint8)
    wide[:, 1::2] = photo
    assert Statistics().measure(wide[:, 1::2]) == Statistics().measure(photo)


def test_windows_of_a_large_picture_stand_for_the_whole() -> None:
    tiled = np.tile(PHOTOS["coffee"], (4, 3, 1))
    large, small = Statistics().measure(noisy(tiled, 8.0)), Statistics().measure(noisy(PHOTOS["coffee"], 8.0))
    for name, tolerance in {"noise_sigma_codes": 0.3, "sharpness": 0.15, "blockiness": 0.03, "saturation": 0.1}.items():
        assert large[name] == pytest.approx(small[name], abs=tolerance), name


def test_threads_do_not_matter() -> None:
    scorer: Scorer = Statistics()
    one = scorer.measure(noisy(PHOTOS["motorcycle"], 5.0))
    cv2.setNumThreads(4)
    try:
        assert scorer.measure(noisy(PHOTOS["motorcycle"], 5.0)) == one
    finally:
        use_one_thread()


def test_it_is_cheap() -> None:
    """Beside a Gaussian of 5 px over the same picture, so that the machine does not matter: about 2.5 times that."""
    photo = cv2.resize(PHOTOS["astronaut"], (1024, 1024), interpolation=cv2.INTER_CUBIC)
    light = photo.astype(np.float32)

    def least_s(call: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            start = time.thread_time()
            call()
            times.append(time.thread_time() - start)
        return min(times)

    scorer = Statistics()
    assert least_s(lambda: scorer.measure(photo)) < 6 * least_s(lambda: cv2.GaussianBlur(light, (0, 0), 5))
