"""Sensor noise: N1, N2, N3, N5 on raw samples and through the whole camera, and the look of its residue."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from skimage import data

from degradations.base import Degradation, Rendered, Scene, Segments, replay_with, sample_step
from degradations.noise import (
    BANDING_NOISE,
    SEGMENT_NOISE,
    SENSOR_NOISE,
    BandingNoiseParams,
    SegmentNoiseParams,
    apply_banding_noise,
    apply_segment_noise,
    apply_sensor_noise,
)
from degradations.noise_draws import GAUSSIAN_FROM_ELECTRONS, draw_normal, draw_shot
from degradations.sensor import SensorParams, raw_matrix, rgb_matrix, sample_sensor, scene_light
from degradations.sensor_noise import draw_noise, poisson_share, prnu_pattern
from pairforge.image import Image, Pixels, Plane, pixels_to_linear, to_float
from pairforge.rng import Rng, rng_for, seed_for

FAMILY: tuple[Degradation[Any], ...] = (SENSOR_NOISE, SEGMENT_NOISE, BANDING_NOISE)
PHOTOS = {
    "astronaut": data.astronaut()[:200, :251],
    "coffee": data.coffee()[:200, :251],
    "chelsea": data.chelsea()[:200, :251],
}


def _sensor(shot_var: float, **changes: float) -> SensorParams:
    silent = {"row_sd": 0.0, "prnu_sd": 0.0}
    return sample_sensor(shot_var, 0.5, rng_for(1, "camera")).model_copy(update=silent | changes)


def _raw_noise(raw: Plane, params: SensorParams, rng: Rng, top: int = 0) -> Plane:
    """Noise of photosites, in units of their raw values."""
    noise, sd = draw_noise(raw / np.float32(params.shot_var), params, rng, top)
    return noise * sd * np.float32(params.shot_var)


def _halves(height: int, width: int) -> Scene:
    """Two segments, left and right."""
    labels = np.zeros((height, width), np.int32)
    labels[:, width // 2 :] = 1
    return Scene(segments=Segments(labels, int(labels.max()) + 1, "test", "1", 1.0))


def _photon_transfer(mean: NDArray[Any], variance: NDArray[Any]) -> tuple[float, float]:
    """Slope and intercept by iteratively reweighted least squares."""
    design, weight = np.stack([mean, np.ones_like(mean)], 1), 1 / variance
    for _ in range(4):
        fit = np.linalg.lstsq(design * weight[:, None], variance * weight, rcond=None)[0]
        weight = 1 / np.maximum(design @ fit, 1e-12)
    return float(fit[0]), float(fit[1])


@pytest.mark.parametrize("shot_var", [1e-4, 3e-4, 2e-3, 1e-2])
def test_n1_n2_variance_is_affine_in_signal_and_mean_is_unbiased(shot_var: float) -> None:
    params = _sensor(shot_var)
    levels = np.concatenate([np.zeros(4), np.geomspace(1e-3, 0.9, 28)]).astype(np.float32)
    wedge = np.repeat(levels[:, None], 40_000, axis=1)
    assert 0 < poisson_share(wedge / shot_var) < 1, "both the Poisson and the Gaussian branch must be measured"
    noise = _raw_noise(wedge, params, rng_for(11, "wedge")).astype(np.float64)
    slope, intercept = _photon_transfer(levels.astype(np.float64), noise.var(axis=1))
    assert slope == pytest.approx(params.shot_var, rel=0.03)
    assert intercept == pytest.approx(params.read_var, rel=0.03)
    assert (np.abs(noise.mean(axis=1)) < 3 * noise.std(axis=1) / np.sqrt(wedge.shape[1])).all()


@pytest.mark.parametrize("electrons", [0.02, 0.3, 1.7, 9.0, 40.0, 500.0])
def test_shot_noise_has_the_moments_of_a_poisson_count(electrons: float) -> None:
    root = np.full((400, 1000), np.sqrt(electrons), np.float32)
    shot = draw_shot(root, rng_for(2, "shot", str(electrons))).astype(np.float64)
    assert abs(shot.mean()) < 3 / np.sqrt(shot.size)
    assert shot.var() == pytest.approx(1, abs=0.02 + 3 * np.sqrt((2 + 1 / electrons) / shot.size))
    skew = np.mean(shot**3)
    # The row of the nearest eighth of the root stands for the mean itself.
    expected = 0.0 if electrons > GAUSSIAN_FROM_ELECTRONS else electrons**-0.5
    assert skew == pytest.approx(expected, rel=0.3 if electrons < 0.5 else 0.12, abs=0.03)
    assert shot.min() * np.sqrt(electrons) > -electrons * 1.7 - 0.1, "no photosite counts fewer than no electrons"


@pytest.mark.parametrize("electrons", [1.0, 6.0, 30.0, 2000.0])
@pytest.mark.parametrize("read_sd", [0.8, 2.5])
def test_n1_shot_and_read_noise_have_the_moments_of_their_sum(electrons: float, read_sd: float) -> None:
    """Variance e + r^2 and skewness e / (e + r^2)^1.5 of a Poisson count plus a Gaussian."""
    params = _sensor(1e-3, read_var=(read_sd * 1e-3) ** 2)
    counts = np.full((400, 1000), electrons, np.float32)
    noise, sd = draw_noise(counts, params, rng_for(3, str(electrons), str(read_sd)))
    variance = electrons + read_sd**2
    assert np.allclose(sd, np.sqrt(variance), rtol=1e-5)
    unit = noise.astype(np.float64)
    assert abs(unit.mean()) < 3 / np.sqrt(unit.size)
    assert unit.var() == pytest.approx(1, abs=0.01)
    # Less than the skewness of the brightest Poisson row counts as none.
    skew = electrons / variance**1.5
    expected = skew if skew > GAUSSIAN_FROM_ELECTRONS**-0.5 else 0.0
    assert np.mean(unit**3) == pytest.approx(expected, rel=0.12, abs=0.03)


def test_normal_field_is_normal_and_white() -> None:
    field = draw_normal((1000, 1000), rng_for(1, "field")).astype(np.float64)
    assert abs(field.mean()) < 3e-3
    assert field.std() == pytest.approx(1, abs=3e-3)
    assert np.mean(field**4) == pytest.approx(3, abs=0.03)
    assert 3.9 < np.abs(field).max() < 4.4
    for shifted in (field[1:] * field[:-1], field[:, 1:] * field[:, :-1], field[:, 4:] * field[:, :-4]):
        assert abs(shifted.mean()) < 4e-3


def _scene_noise(level: float, params: SensorParams, size: int = 256) -> Image:
    """Noise of a grey field in scene light, which the tone curve of the camera is taken off again."""
    grey = np.full((size, size, 3), level, np.float32)
    return scene_light(apply_sensor_noise(grey, params, Scene(), rng_for(4, str(level))).image) - scene_light(grey)


def test_n1_n2_hold_through_the_whole_camera() -> None:
    """The filters of the camera scale noise of every level alike, and move no mean."""
    params = _sensor(4e-4, read_var=1e-5, chroma_nr_px=0.5, sharpen_amount=0.0)
    to_raw, to_rgb = raw_matrix(params).astype(np.float64), rgb_matrix(params).astype(np.float64)
    weights = np.array([0.299, 0.587, 0.114])
    sd_of, measured = [], []
    for level in (0.05, 0.1, 0.2, 0.35, 0.5):
        light = float(scene_light(np.full((1, 1, 3), level, np.float32))[0, 0, 0])
        noise = _scene_noise(level, params).astype(np.float64) @ weights
        assert abs(noise.mean()) < 5 * noise.std() / noise.shape[0], "correlated over few pixels only"
        sd = np.sqrt(params.shot_var * light * to_raw.sum(axis=1) + params.read_var)
        sd_of.append((weights @ to_rgb) @ sd)
        measured.append(noise.std())
    ratio = np.array(measured) / np.array(sd_of)
    assert np.ptp(ratio) < 0.03 * ratio.mean(), "one filter gain at every level"
    assert 0.5 < ratio.mean() < 1.0


def test_n3_row_noise_of_the_sensor() -> None:
    params = _sensor(1e-3, row_sd=5e-4)
    noise = _raw_noise(np.full((3000, 400), 0.1, np.float32), params, rng_for(2, "rows"))
    within = noise.var(axis=1, ddof=1).mean() / noise.shape[1]
    assert np.sqrt(noise.mean(axis=1).var() - within) == pytest.approx(5e-4, rel=0.05)


def test_prnu_belongs_to_the_camera() -> None:
    assert np.array_equal(prnu_pattern(7, slice(0, 40), 50), prnu_pattern(7, slice(0, 90), 80)[:40, :50])
    assert not np.array_equal(prnu_pattern(7, slice(0, 40), 50), prnu_pattern(8, slice(0, 40), 50))
    assert np.array_equal(prnu_pattern(7, slice(1020, 1030), 2100)[4:, :9], prnu_pattern(7, slice(0, 6), 9))
    params = _sensor(1e-6, read_var=0.0, prnu_sd=0.01)
    noise = _raw_noise(np.full((300, 300), 0.5, np.float32), params, rng_for(3, "prnu"), top=64)
    expected = 0.5 * 0.01 * prnu_pattern(params.camera_id, slice(64, 364), 300)
    assert np.corrcoef(noise.ravel(), expected.ravel())[0, 1] > 0.97
    assert noise.std() == pytest.approx(0.5 * 0.01, rel=0.05)


def test_prnu_is_the_same_in_every_image_of_a_camera() -> None:
    params = _sensor(1e-6, read_var=0.0, prnu_sd=0.01)
    first, second = (
        apply_sensor_noise(np.full((96, 96, 3), 0.3, np.float32), params, Scene(), rng_for(5, seed)).image[..., 1]
        for seed in ("first", "second")
    )
    other = params.model_copy(update={"camera_id": params.camera_id + 1})
    third = apply_sensor_noise(np.full((96, 96, 3), 0.3, np.float32), other, Scene(), rng_for(5, "first")).image[..., 1]
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.9
    assert abs(np.corrcoef(first.ravel(), third.ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("name", PHOTOS)
def test_without_noise_the_camera_returns_its_input(name: str) -> None:
    params = _sensor(1e-12, read_var=0.0)
    clean = pixels_to_linear(PHOTOS[name])
    assert np.allclose(apply_sensor_noise(clean, params, Scene(), rng_for(0, "x")).image, clean, atol=1e-4)


def test_sensor_noise_is_correlated_coloured_and_smaller_at_white() -> None:
    rng = rng_for(4, "grey")
    params = _sensor(4e-3)
    grey = np.full((256, 256, 3), 0.2, np.float32)
    noise = np.sqrt(apply_sensor_noise(grey, params, Scene(), rng).image) - np.sqrt(grey)
    chroma = noise[..., 0] - noise[..., 1]
    neighbours = np.corrcoef(chroma[:, 1:].ravel(), chroma[:, :-1].ravel())[0, 1]
    assert neighbours > 0.7, "chroma noise must be blotchy"
    luma = noise @ np.array([0.299, 0.587, 0.114])
    assert np.corrcoef(luma[:, 2:].ravel(), luma[:, :-2].ravel())[0, 1] < 0.3, "luma noise must be fine"
    assert 0.15 < chroma.std() / luma.std() < 2, "the residue must have colour, and not be confetti"
    white = np.full((256, 256, 3), 0.95, np.float32)
    at_white = np.sqrt(apply_sensor_noise(white, params, Scene(), rng).image) - np.sqrt(white)
    assert at_white[..., 1].std() < noise[..., 1].std()


def test_noise_of_a_bright_area_does_not_bleed_into_a_dark_one() -> None:
    step = np.full((256, 256, 3), 0.002, np.float32)
    step[:, 128:] = 0.7
    params = _sensor(4e-3, read_var=1e-9, chroma_nr_px=3.0)
    noisy = scene_light(apply_sensor_noise(step, params, Scene(), rng_for(6, "edge")).image)
    spread = noisy.std(axis=0)[:, 1]
    assert spread[124:128].mean() < 1.3 * spread[20:100].mean()
    assert spread[128:132].mean() > 0.7 * spread[150:230].mean()


def _segment_params(**changes: float) -> SegmentNoiseParams:
    sensor = _sensor(2e-4, read_var=1e-7, chroma_nr_px=2.0)
    return SegmentNoiseParams(**(sensor.model_dump() | {"strength_cv": 0.5, "feather_px": 2.0} | changes))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_n5_spread_between_segments_is_the_ratio_of_their_strengths(seed: int) -> None:
    grey = np.full((400, 800, 3), 0.3, np.float32)
    rendered = apply_segment_noise(grey, _segment_params(), _halves(400, 800), rng_for(seed, "halves"))
    noise = scene_light(rendered.image) - scene_light(grey)
    strengths = rendered.realised["strengths"]
    assert noise[:, :380].std() / noise[:, 420:].std() == pytest.approx(strengths[0] / strengths[1], rel=0.03)
    layer = rendered.layers["noise_strength"] / rendered.realised["strength_code"]
    assert layer[:, :380] == pytest.approx(strengths[0], abs=3e-4)
    assert layer[:, 420:] == pytest.approx(strengths[1], abs=3e-4)
    steps = np.diff(layer[0, 380:420]) * np.sign(strengths[1] - strengths[0])
    assert (steps >= 0).all() and steps.max() < 0.25 * steps.sum(), "the border is one smooth ramp"


def test_n5_strengths_of_segments_are_log_normal_with_the_given_variation() -> None:
    labels = np.arange(64 * 64, dtype=np.int32).reshape(64, 64)
    scene = Scene(segments=Segments(labels, labels.size, "test", "1", 1.0))
    rendered = apply_segment_noise(np.full((64, 64, 3), 0.3, np.float32), _segment_params(), scene, rng_for(1, "many"))
    strengths = np.array(rendered.realised["strengths"])
    assert strengths.mean() == pytest.approx(1, abs=0.03)
    assert strengths.std() / strengths.mean() == pytest.approx(0.5, rel=0.08)
    logs = np.log(strengths)
    assert abs(np.mean(((logs - logs.mean()) / logs.std()) ** 3)) < 0.15


def test_segments_that_do_not_fit_are_refused() -> None:
    grey, params = np.full((20, 30, 3), 0.3, np.float32), _segment_params()
    scene = _halves(20, 30)
    assert scene.segments is not None
    with pytest.raises(ValueError, match=r"shape \(20, 31\).*\(20, 30\)"):
        apply_segment_noise(grey, params, _halves(20, 31), rng_for(0, "x"))
    with pytest.raises(ValueError, match=r"span 0\.\.1; count 1"):
        short = replace(scene, segments=replace(scene.segments, count=1))
        apply_segment_noise(grey, params, short, rng_for(0, "x"))


@pytest.mark.parametrize("upright", [False, True])
def test_n3_banding_rows_and_flicker(upright: bool) -> None:
    params = BandingNoiseParams(
        row_sd=0.004,
        flicker_depth=0.2,
        flicker_cycles=4.0,
        flicker_phase_rad=0.0,
        harmonic_frac=0.1,
        tint=0.2,
        upright=upright,
    )
    shape = (8, 2000, 3) if upright else (2000, 8, 3)
    grey = np.full(shape, 0.5, np.float32)
    banded = apply_banding_noise(grey, params, Scene(), rng_for(8, "bands")).image
    lines = banded[0] if upright else banded[:, 0]
    assert np.ptp(banded, axis=0 if upright else 1).max() == 0, "a line moves as one"
    phase = 2 * np.pi * 4 * (np.arange(2000) + 0.5) / 2000
    basis = np.stack([np.ones(2000), np.sin(phase), np.sin(2 * phase)], 1)
    fit, *_ = np.linalg.lstsq(basis, lines, rcond=None)
    assert np.allclose(fit[1], 0.5 * 0.2 * np.array([0.8, 1.0, 1.2]), rtol=0.02)
    assert np.allclose(fit[2] / fit[1], 0.1, atol=0.02)
    assert (lines - basis @ fit)[:, 1].std() == pytest.approx(0.004, rel=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shot_var", 0.0),
        ("read_var", -1e-9),
        ("prnu_sd", 0.9),
        ("camera_id", -1),
        ("red_gain", 0.0),
        ("ccm_mix", (0.5, 0.4, 0.2)),
        ("ccm_mix", (-0.1, 0.5, 0.2)),
        ("chroma_nr_px", 100.0),
        ("sharpen_amount", -2.0),
    ],
)
def test_parameters_outside_their_range_are_refused(field: str, value: Any) -> None:
    step = sample_step(SENSOR_NOISE, 0.5, rng_for(1, "p"), seed_for(1, "x"))
    bad = step.model_copy(update={"params": {**step.params, field: value}})
    with pytest.raises(ValueError, match=f"(?s)'sensor_noise' do not fit.*{field}"):
        replay_with(PHOTOS["coffee"], [bad], Scene(), {"sensor_noise": SENSOR_NOISE})
    with pytest.raises(ValidationError):
        SensorParams.model_validate({**step.params, field: value})


def _replay(degradation: Degradation[Any], pixels: Pixels, severity: float, seed: int = 9) -> Rendered:
    step = sample_step(degradation, severity, rng_for(seed, "params"), seed_for(seed, "pixels"))
    return replay_with(pixels, [step], _halves(*pixels.shape[:2]), {degradation.name: degradation})


@pytest.mark.parametrize("degradation", FAMILY, ids=lambda degradation: str(degradation.name))
def test_error_rises_with_severity_from_barely_visible(degradation: Degradation[Any]) -> None:
    errors = []
    for severity in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        of_photos = [
            np.abs(np.clip(_replay(degradation, photo, severity).image, 0, 1) - to_float(photo)).mean() * 255
            for photo in PHOTOS.values()
        ]
        errors.append(float(np.median(of_photos)))
    assert errors == sorted(errors)
    assert errors[0] < 4
    assert errors[5] > 2.5 * errors[0]


@pytest.mark.parametrize("degradation", FAMILY, ids=lambda degradation: str(degradation.name))
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (17, 43), (65, 20), (130, 64)])
def test_result_is_repeatable_leaves_input_alone_and_takes_odd_sizes(
    degradation: Degradation[Any], shape: tuple[int, int]
) -> None:
    params = degradation.sample(0.6, rng_for(1, "params"))
    pixels = np.ascontiguousarray(data.coffee()[: shape[0], : shape[1]])
    clean = pixels_to_linear(pixels)
    kept, scene = clean.copy(), _halves(*shape)
    rendered, again, other = (
        degradation.apply(clean, params, scene, rng_for(1, seed)) for seed in ("one", "one", "two")
    )
    assert rendered.target is clean
    assert np.array_equal(clean, kept)
    assert rendered.image.dtype == np.float32 and rendered.image.shape == clean.shape
    assert np.isfinite(rendered.image).all() and rendered.image.min() >= 0
    assert np.array_equal(rendered.image, again.image)
    assert not np.array_equal(rendered.image, other.image)
