"""Properties of low light: the sensor path is exact where no noise acts, and light falls by r / g (N4)."""

import cv2
import numpy as np
import pytest
from skimage import data

from degradations.base import Scene, replay_with, sample_step
from degradations.low_light import (
    LOW_LIGHT,
    LOW_LIGHT_CURVE,
    LowLightCurveParams,
    LowLightParams,
    apply_low_light,
    apply_low_light_curve,
)
from degradations.sensor import (
    SensorParams,
    raw_matrix,
    reprocess,
    rgb_matrix,
    sample_sensor,
    scene_light,
    unprocess,
)
from degradations.sensor_noise import mosaic
from pairforge.image import Image, Pixels, linear_to_srgb, pixels_to_linear, to_float, to_pixels
from pairforge.rng import rng_for, seed_for

PHOTOS = {
    "astronaut": data.astronaut()[:240, :301],
    "coffee": data.coffee()[:240, :301],
    "chelsea": data.chelsea()[:240, :301],
}


def _noiseless(exposure_ratio: float, digital_gain: float) -> LowLightParams:
    sensor = sample_sensor(1e-12, 0.0, rng_for(1, "camera")).model_copy(
        update={"read_var": 0.0, "row_sd": 0.0, "prnu_sd": 0.0}
    )
    return LowLightParams(
        **sensor.model_dump(),
        exposure_ratio=exposure_ratio,
        digital_gain=digital_gain,
        metering_share=0.0,
        headroom=1.0,
        vignetting_frac=0.0,
        black_offset=(0.0, 0.0, 0.0),
        wb_error=(1.0, 1.0),
        chroma_fade_root=0.0,
    )


def _render(pixels: Pixels, severity: float, seed: int = 5) -> Image:
    step = sample_step(LOW_LIGHT, severity, rng_for(seed, "params"), seed_for(seed, "pixels"))
    return replay_with(pixels, [step], Scene(), {LOW_LIGHT.name: LOW_LIGHT}).image


def _there_and_back(image_lin: Image, params: SensorParams) -> Image:
    return reprocess(unprocess(image_lin, raw_matrix(params)), rgb_matrix(params))


@pytest.mark.parametrize("name", PHOTOS)
def test_unprocess_then_reprocess_is_exact(name: str) -> None:
    clean = pixels_to_linear(PHOTOS[name])
    codes = linear_to_srgb(_there_and_back(clean, sample_sensor(1e-3, 0.5, rng_for(2, name))))
    assert np.abs(codes - to_float(PHOTOS[name])).max() * 255 < 0.12
    assert np.array_equal(to_pixels(codes), PHOTOS[name])


def test_every_grey_code_survives_the_camera() -> None:
    codes = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    params = sample_sensor(1e-3, 0.5, rng_for(2, "codes"))
    assert np.array_equal(to_pixels(linear_to_srgb(_there_and_back(pixels_to_linear(codes), params))), codes)


@pytest.mark.parametrize("light", [1.0, 1.3, 2.5, 100.0])
def test_light_above_white_survives_the_camera(light: float) -> None:
    clean = np.full((16, 16, 3), light, np.float32)
    assert np.allclose(_there_and_back(clean, sample_sensor(1e-3, 0.5, rng_for(2, "bright"))), light, rtol=2e-4)


def test_grey_stays_grey_in_camera_space_up_to_the_gains() -> None:
    params = sample_sensor(1e-3, 0.5, rng_for(3, "grey"))
    raw = unprocess(np.full((16, 16, 3), 0.2, np.float32), raw_matrix(params))
    balanced = raw[0, 0] * np.array([params.red_gain, 1.0, params.blue_gain])
    assert np.allclose(balanced, balanced[1], rtol=1e-5)


def test_mosaic_is_rggb() -> None:
    raw = rng_for(4, "raw").random((31, 44, 3), np.float32)
    plane = mosaic(raw)
    for (y, x), channel in {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 2}.items():
        assert np.array_equal(plane[y::2, x::2], raw[y::2, x::2, channel])


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(("ratio", "gain"), [(2.0, 1.0), (8.0, 1.0), (16.0, 4.0), (64.0, 16.0), (64.0, 64.0)])
def test_n4_median_light_falls_by_ratio_over_gain(name: str, ratio: float, gain: float) -> None:
    clean = pixels_to_linear(PHOTOS[name])
    rendered = apply_low_light(clean, _noiseless(ratio, gain), Scene(), rng_for(0, "pixels"))
    assert rendered.realised["digital_gain"] == gain
    before, after = scene_light(clean), scene_light(rendered.image)
    visible = (clean.min(axis=2) > 0.02) & (clean.max(axis=2) < 0.9)
    assert np.median(before[visible] / after[visible]) * gain == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_n4_holds_for_the_gain_that_was_metered(share: float) -> None:
    """0.18 over the mean scene light, to the power of the metering share, between 1 and the exposure ratio."""
    gains = []
    for name in sorted(PHOTOS):
        for brightness in (0.2, 1.0):
            clean = pixels_to_linear(PHOTOS[name]) * np.float32(brightness)
            params = _noiseless(32.0, 3.0).model_copy(update={"metering_share": share})
            rendered = apply_low_light(clean, params, Scene(), rng_for(0, "pixels"))
            before, after = scene_light(clean), scene_light(rendered.image)
            visible = (clean.min(axis=2) > 0.02 * brightness) & (clean.max(axis=2) < 0.9)
            gain, metered = rendered.realised["digital_gain"], rendered.realised["metered_light"]
            assert np.median(before[visible] / after[visible]) * gain == pytest.approx(32.0, rel=0.01)
            assert metered == pytest.approx(
                float((before @ np.array([0.2126, 0.7152, 0.0722])).clip(max=1).mean()), rel=0.1
            )
            assert gain == pytest.approx(min(max(3.0 * (0.18 / metered) ** share, 1.0), 32.0), rel=1e-6)
            gains.append(gain)
    assert len(set(gains)) == len(gains)


@pytest.mark.parametrize("brightness", [1e-9, 1e-3, 0.05])
def test_an_already_dark_photo_is_never_made_brighter(brightness: float) -> None:
    clean = pixels_to_linear(PHOTOS["coffee"]) * np.float32(brightness)
    params = _noiseless(8.0, 4.0).model_copy(update={"metering_share": 1.0})
    rendered = apply_low_light(clean, params, Scene(), rng_for(0, "pixels"))
    assert rendered.realised["digital_gain"] == 8.0
    assert rendered.image.mean() <= clean.mean() * 1.01


def test_severity_1_leaves_something_to_recover_of_a_dark_photo() -> None:
    """The camera lifts a scene whose codes are around 30, so that the result is dark, not black."""
    dim = (data.coffee()[:240, :301] * 0.3).astype(np.uint8)
    for seed in range(4):
        codes = to_pixels(_render(dim, 1.0, seed))
        assert 3 < codes.mean() < 0.7 * dim.mean()
        assert np.corrcoef(cv2.blur(codes, (9, 9)).ravel(), cv2.blur(dim, (9, 9)).ravel())[0, 1] > 0.75


def test_vignetting_falls_to_the_corners_only() -> None:
    grey = np.full((101, 151, 3), 0.3, np.float32)
    params = _noiseless(2.0, 1.0).model_copy(update={"vignetting_frac": 0.4})
    light = scene_light(apply_low_light(grey, params, Scene(), rng_for(0, "pixels")).image)[..., 1]
    assert light[50, 75] == pytest.approx(float(scene_light(grey)[0, 0, 1]) / 2, rel=0.01)
    assert light[0, 0] / light[50, 75] == pytest.approx(0.6, abs=0.02)
    assert light[0, 0] == pytest.approx(light[-1, -1], rel=0.01)


def test_clipped_lamps_are_headroom_cubed_over_white_and_clipped_walls_its_root() -> None:
    clean = np.full((400, 600, 3), 0.01, np.float32)
    clean[60:68, 60:68] = 1.0
    clean[100:300, 400:] = 1.0
    dim = scene_light(apply_low_light(clean, _noiseless(64.0, 1.0), Scene(), rng_for(0, "p")).image)
    params = _noiseless(64.0, 1.0).model_copy(update={"headroom": 3.0})
    bright = scene_light(apply_low_light(clean, params, Scene(), rng_for(0, "p")).image)
    assert bright[64, 64] / dim[64, 64] == pytest.approx(27, rel=0.15)
    assert bright[200, 500] / dim[200, 500] == pytest.approx(3**0.5, rel=0.02)
    assert np.allclose(bright[2, 2], dim[2, 2], atol=1e-5)


def test_all_of_a_lamp_is_bright_not_its_brightest_codes_alone() -> None:
    """A compressed photo clips to codes around 252, and none of them may be left grey among white ones."""
    clean = np.full((160, 240, 3), 20, np.uint8)
    clean[60:68, 60:68] = rng_for(0, "lamp").integers(249, 256, (8, 8, 1), np.uint8)
    params = _noiseless(16.0, 4.0).model_copy(update={"headroom": 6.0})
    codes = to_pixels(linear_to_srgb(apply_low_light(pixels_to_linear(clean), params, Scene(), rng_for(0, "p")).image))
    assert codes[61:67, 61:67].min() > 240


@pytest.mark.parametrize("name", PHOTOS)
def test_severity_darkens_and_ends_dark(name: str) -> None:
    clean = float(to_float(PHOTOS[name]).mean())
    means = [float(_render(PHOTOS[name], severity).mean()) for severity in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert clean * 0.8 < means[0] <= clean * 1.02
    assert means == sorted(means, reverse=True)
    assert 0.03 < means[5] < 0.25 * clean


@pytest.mark.parametrize(
    ("field", "value"),
    [("exposure_ratio", 0.5), ("metering_share", 1.1), ("headroom", 0.0), ("vignetting_frac", 1.0), ("shot_var", 0.0)],
)
def test_parameters_outside_their_range_are_refused(field: str, value: float) -> None:
    step = sample_step(LOW_LIGHT, 0.5, rng_for(1, "p"), seed_for(1, "x"))
    bad = step.model_copy(update={"params": {**step.params, field: value}})
    with pytest.raises(ValueError, match=f"(?s)'low_light' do not fit.*{field}"):
        replay_with(PHOTOS["coffee"], [bad], Scene(), {"low_light": LOW_LIGHT})


def test_result_is_repeatable_leaves_input_alone_and_takes_odd_sizes() -> None:
    for shape in ((1, 1), (1, 7), (5, 1), (16, 16), (17, 43), (65, 20)):
        pixels = np.ascontiguousarray(data.coffee()[: shape[0], : shape[1]])
        assert np.array_equal(_render(pixels, 0.7), _render(pixels, 0.7))
        clean = pixels_to_linear(pixels)
        kept = clean.copy()
        params = LOW_LIGHT.sample(0.7, rng_for(1, "p"))
        rendered = apply_low_light(clean, params, Scene(), rng_for(1, "x"))
        assert rendered.target is clean
        assert np.array_equal(clean, kept)
        assert np.isfinite(rendered.image).all()
        assert rendered.image.shape == clean.shape
        assert rendered.image.min() >= 0


def test_curve_is_the_published_formula_and_monotone_in_severity() -> None:
    image = to_float(PHOTOS["coffee"])
    params = LowLightCurveParams(alpha=0.95, beta=0.7, gamma=2.5)
    dark = apply_low_light_curve(image, params, Scene(), rng_for(0, "x")).image
    assert np.allclose(dark, 0.7 * (0.95 * image) ** 2.5, atol=1e-4)
    means = []
    for severity in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn = LOW_LIGHT_CURVE.sample(severity, rng_for(3, "curve"))
        means.append(float(apply_low_light_curve(image, drawn, Scene(), rng_for(0, "x")).image.mean()))
    assert means == sorted(means, reverse=True)
