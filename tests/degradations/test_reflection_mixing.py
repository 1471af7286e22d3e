"""Mixing of two photos by a rule that imitates a learnt one: the rule, exposure, target, layers."""

import math
from typing import Any

import numpy as np
import pytest
from skimage import data

from degradations.base import Scene, replay_with, sample_step
from degradations.reflection_mixing import NONLINEAR_REFLECTION, NonlinearReflectionParams, mixing_weight
from pairforge.image import linear_to_srgb, luminance, pixels_to_linear
from pairforge.rng import rng_for, seed_for

PLAIN = {
    "base_share": 0.1,
    "bright_share": 0.4,
    "lowpass_px": 15.0,
    "blur_sigma_frac": 1e-5,
    "ghost_share": 0.0,
    "ghost_shift_frac": 0.05,
    "ghost_deg": 0.0,
    "zoom": 1.0,
    "crop_x": 0.5,
    "crop_y": 0.5,
}


def params(**changes: Any) -> Any:
    return NonlinearReflectionParams(**{**PLAIN, **changes})


def mix(image: Any, second: Any, **changes: Any) -> Any:
    scene = Scene(second=second)
    return NONLINEAR_REFLECTION.apply(pixels_to_linear(image), params(**changes), scene, rng_for(1))


def flat(code: Any, height: Any = 60, width: Any = 80) -> Any:
    return np.full((height, width, 3), code, np.uint8)


def photo(height: Any = 200, width: Any = 280) -> Any:
    return np.ascontiguousarray(data.coffee()[80 : 80 + height, 120 : 120 + width])


@pytest.mark.parametrize(("luma", "other"), [(0.5, 0.5), (0.2, 0.8), (0.9, 0.1), (0.4, 0.55)])
def test_weight_is_the_published_form(luma: Any, other: Any) -> None:
    planes = [np.full((20, 30), value, np.float32) for value in (luma, other)]
    weight = mixing_weight(planes[0], planes[1], params(), 4.0)
    expected = 1 - (0.1 + 0.4 / (1 + math.exp(-(other - luma) / 0.15)))
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


def test_weight_never_leaves_0_to_1() -> None:
    dark, bright = (np.full((8, 8), value, np.float32) for value in (0.0, 1.0))
    assert mixing_weight(dark, bright, params(base_share=0.9, bright_share=0.9), 2.0).max() == 0
    assert mixing_weight(bright, dark, params(base_share=0.0, bright_share=0.9), 2.0).max() <= 1


def test_weight_is_smooth_over_the_low_pass() -> None:
    """The step of the weight at an edge of the second photo has the slope of a Gaussian's edge."""
    image, second = flat(100, 160, 240), flat(20, 160, 240)
    second[:, 120:] = 200
    out = mix(image, second, lowpass_px=15.0)
    line = out.layers["transmission"][80].astype(np.float64) / 65535
    step, slope = abs(line[5] - line[-6]), np.abs(np.diff(line)).max()
    assert step > 0.1
    # Mirrored: the bright half of the second photo is on the left.
    assert line[5] < line[-6]
    assert slope == pytest.approx(step / (math.sqrt(2 * math.pi) * 15), rel=0.1)


def test_mixture_is_the_weighted_sum_of_light() -> None:
    image, second = photo(), np.ascontiguousarray(data.astronaut()[:200, 100:380])
    out = mix(image, second)
    share = out.layers["transmission"].astype(np.float64)[..., None] / 65535
    gain = out.realised["exposure_gain"]
    first, other = pixels_to_linear(image).astype(np.float64), pixels_to_linear(second)[:, ::-1].astype(np.float64)
    other *= luminance(pixels_to_linear(image)).mean() / luminance(pixels_to_linear(second)).mean()
    expected = gain * (share * first + (1 - share) * other)
    np.testing.assert_allclose(out.image, expected, atol=2e-3)
    stored = out.layers["reflection"].astype(np.float64) / 65535
    np.testing.assert_allclose(stored, np.minimum(gain * (1 - share) * other, 1), atol=2e-3)


def test_target_is_the_first_photo_dimmed_evenly() -> None:
    image = photo()
    out = mix(image, np.ascontiguousarray(data.astronaut()[:200, 100:380]))
    factor = out.realised["exposure_gain"] * out.realised["transmission_mean"]
    np.testing.assert_allclose(out.target, pixels_to_linear(image) * np.float32(factor), rtol=1e-6)
    mean = out.layers["transmission"].mean(dtype=np.float64) / 65535
    assert out.realised["transmission_mean"] == pytest.approx(mean, rel=2e-3)
    assert out.realised["nonlinear"] is True and out.realised["visible"] is True


def test_ghost_is_a_second_copy_of_its_share_and_place() -> None:
    second = np.zeros((120, 200, 3), np.uint8)
    second[60, 120] = 255
    out = mix(flat(128, 120, 200), second, ghost_share=0.3, ghost_shift_frac=0.1, ghost_deg=0.0, bright_share=0.0)
    line = out.layers["reflection"][60, :, 1].astype(np.float64)
    assert line.argmax() == 199 - 120
    assert line[199 - 120 + 12] / line.max() == pytest.approx(3 / 7, rel=0.01)


@pytest.mark.parametrize("blur_sigma_frac", [0.004, 0.02, 0.05])
def test_blur_has_the_width_that_was_asked_for(blur_sigma_frac: Any) -> None:
    second = np.zeros((200, 240, 3), np.uint8)
    second[100, 120] = 255
    # A dark photo, so that the gain lifts the layer above its codes.
    out = mix(flat(128, 200, 240), second, blur_sigma_frac=blur_sigma_frac, bright_share=0.0, base_share=0.9)
    light = (out.image - out.image[0, 0])[..., 1].astype(np.float64)
    line = light.sum(axis=0)
    places = np.arange(240)
    variance = (line * (places - (line * places).sum() / line.sum()) ** 2).sum() / line.sum()
    assert math.sqrt(variance) == pytest.approx(200 * blur_sigma_frac, rel=0.08, abs=0.05)


def render(pixels: Any, severity: Any, seed: Any, second: Any = None) -> Any:
    name = NONLINEAR_REFLECTION.name
    step = sample_step(NONLINEAR_REFLECTION, severity, rng_for(seed, name, "params"), seed_for(seed, name, "pixels"))
    second = data.astronaut() if second is None else second
    return replay_with(pixels, [step], Scene(second=second), {name: NONLINEAR_REFLECTION})


def test_distance_to_the_clean_photo_rises_with_severity() -> None:
    """Same seed, 0 .. 1 in fifths, median over photos: rank correlation of at least 0.95."""
    photos = [photo(), data.chelsea()[:200, 60:340], data.astronaut()[:200, 100:380], data.rocket()[100:300, 200:480]]
    for seed in range(4):
        distances = []
        for severity in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            outs = [render(np.ascontiguousarray(pixels), severity, seed) for pixels in photos]
            distances.append(np.median([np.abs(out.image - out.target).mean() for out in outs]))
        assert np.corrcoef(np.argsort(np.argsort(distances)), range(6))[0, 1] >= 0.95, (seed, distances)
        assert distances[0] < 0.04 and distances[-1] > 3 * distances[0]


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (17, 61), (90, 31)])
def test_any_size_same_bytes_and_no_mutation(size: Any) -> None:
    pixels, second = photo(*size), photo(33, 57)
    before = pixels.copy(), second.copy()
    first, again = (render(pixels, 1.0, 5, second) for _ in range(2))
    assert first.image.shape == pixels.shape and np.isfinite(first.image).all()
    assert np.array_equal(first.image, again.image) and np.array_equal(first.target, again.target)
    assert np.array_equal(pixels, before[0]) and np.array_equal(second, before[1])


def test_black_photos_are_no_problem() -> None:
    for image, second in ((flat(0), photo()), (photo(), flat(0)), (flat(0), flat(0))):
        assert np.isfinite(render(image, 0.7, 1, second).image).all()


def test_light_above_white_is_kept() -> None:
    image = pixels_to_linear(photo()) * np.float32(4)
    out = NONLINEAR_REFLECTION.apply(image, params(), Scene(second=photo()), rng_for(1))
    assert out.image.max() > 1.5 and linear_to_srgb(out.image).max() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_share": -0.1}, "base_share"),
        ({"bright_share": 1.5}, "bright_share"),
        ({"lowpass_px": 0.0}, "lowpass_px"),
        ({"blur_sigma_frac": 0.0}, "blur_sigma_frac"),
        ({"ghost_share": float("nan")}, "ghost_share"),
        ({"zoom": 0.9}, "zoom"),
    ],
)
def test_bad_parameters_are_refused_by_name(changes: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        params(**changes)


def test_a_second_photo_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"second photo of a reflection is .* is needed"):
        mix(photo(), np.zeros((40, 40), np.uint8))
