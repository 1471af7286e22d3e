"""Properties of noise: N1, N2, N3, N5, and the spectra that make residue look photographed."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from degradations.base import Degradation, Scene, replay_with, sample_step
from degradations.noise import (
    BANDING_NOISE,
    GRANULAR_NOISE,
    IMPULSE_NOISE,
    SENSOR_NOISE,
    BandingNoiseParams,
    GranularNoiseParams,
    ImpulseNoiseParams,
    apply_banding_noise,
    apply_granular_noise,
    apply_impulse_noise,
    apply_sensor_noise,
)
from degradations.sensor import RGB_TO_YCC, SensorParams, draw_noise, prnu_pattern, sample_sensor
from pairforge.image import Pixels, pixels_to_linear, to_float
from pairforge.rng import rng_for, seed_for

FAMILY: tuple[Degradation[Any], ...] = (SENSOR_NOISE, GRANULAR_NOISE, IMPULSE_NOISE, BANDING_NOISE)
PHOTOS = {
    "astronaut": data.astronaut()[:200, :251],
    "coffee": data.coffee()[:200, :251],
    "chelsea": data.chelsea()[:200, :251],
}


def _sensor(shot_var: float, **changes: float) -> SensorParams:
    silent = {"row_sd": 0.0, "prnu_sd": 0.0}
    return sample_sensor(shot_var, 0.5, rng_for(1, "camera")).model_copy(update=silent | changes)


def _photon_transfer(mean: NDArray[Any], variance: NDArray[Any]) -> tuple[float, float]:
    """Slope and intercept by iteratively reweighted least squares."""
    design, weight = np.stack([mean, np.ones_like(mean)], 1), 1 / variance
    for _ in range(4):
        fit = np.linalg.lstsq(design * weight[:, None], variance * weight, rcond=None)[0]
        weight = 1 / np.maximum(design @ fit, 1e-12)
    return float(fit[0]), float(fit[1])


@pytest.mark.parametrize("shot_var", [3e-4, 2e-3, 1e-2])
def test_n1_n2_variance_is_affine_in_signal_and_mean_is_unbiased(shot_var: float) -> None:
    params = _sensor(shot_var)
    levels = np.concatenate([np.zeros(4), np.geomspace(1e-3, 0.9, 28)]).astype(np.float32)
    wedge = np.repeat(levels[:, None], 40_000, axis=1)
    noise, poisson_frac = draw_noise(wedge, params, rng_for(11, "wedge"))
    assert 0 < poisson_frac < 1, "both the Poisson and the Gaussian branch must be measured"
    slope, intercept = _photon_transfer(levels.astype(np.float64), noise.astype(np.float64).var(axis=1))
    assert slope == pytest.approx(params.shot_var, rel=0.03)
    assert intercept == pytest.approx(params.read_var, rel=0.03)
    bias = np.abs(noise.mean(axis=1, dtype=np.float64))
    assert (bias < 3 * noise.std(axis=1) / np.sqrt(wedge.shape[1])).all()


def test_n3_row_noise_of_the_sensor() -> None:
    params = _sensor(1e-3, row_sd=5e-4)
    noise, _ = draw_noise(np.full((3000, 400), 0.1, np.float32), params, rng_for(2, "rows"))
    within = noise.var(axis=1, ddof=1).mean() / noise.shape[1]
    assert np.sqrt(noise.mean(axis=1).var() - within) == pytest.approx(5e-4, rel=0.05)


def test_prnu_belongs_to_the_camera() -> None:
    assert np.array_equal(prnu_pattern(7, 40, 50), prnu_pattern(7, 90, 80)[:40, :50])
    assert not np.array_equal(prnu_pattern(7, 40, 50), prnu_pattern(8, 40, 50))
    assert prnu_pattern(7, 20, 2100).shape == (20, 2100)
    params = _sensor(1e-6, read_var=0.0, prnu_sd=0.01)
    noise, _ = draw_noise(np.full((300, 300), 0.5, np.float32), params, rng_for(3, "prnu"))
    expected = 0.5 * 0.01 * prnu_pattern(params.camera_id, 300, 300)
    assert np.corrcoef(noise.ravel(), expected.ravel())[0, 1] > 0.97


def test_without_noise_the_camera_returns_its_input() -> None:
    params = _sensor(1e-12, read_var=0.0)
    clean = pixels_to_linear(PHOTOS["coffee"])
    assert np.allclose(apply_sensor_noise(clean, params, Scene(), rng_for(0, "x")).image, clean, atol=1e-4)


def test_sensor_noise_is_correlated_coloured_and_smaller_at_white() -> None:
    rng = rng_for(4, "grey")
    params = _sensor(4e-3)
    grey = np.full((256, 256, 3), 0.2, np.float32)
    noise = np.sqrt(apply_sensor_noise(grey, params, Scene(), rng).image) - np.sqrt(grey)
    chroma = noise[..., 0] - noise[..., 1]
    neighbours = np.corrcoef(chroma[:, 1:].ravel(), chroma[:, :-1].ravel())[0, 1]
    assert neighbours > 0.5, "chroma noise must be blotchy"
    assert chroma.std() > 0.1 * noise[..., 1].std(), "the residue must have colour"
    white = np.full((256, 256, 3), 0.95, np.float32)
    at_white = np.sqrt(apply_sensor_noise(white, params, Scene(), rng).image) - np.sqrt(white)
    assert at_white[..., 1].std() < noise[..., 1].std()


@pytest.mark.parametrize("grain_px", [0.45, 0.65, 0.85])
def test_grain_has_the_given_strength_in_a_band(grain_px: float) -> None:
    params = GranularNoiseParams(
        sigma_codes=12.0, grain_px=grain_px, chroma_ratio=0.3, blotch_px=2.5, midtone_weight=0.8
    )
    grey = np.full((512, 512, 3), 0.5, np.float32)
    noise = apply_granular_noise(grey, params, Scene(), rng_for(5, "grain")).image - grey
    luma, blue, _ = np.moveaxis(noise @ RGB_TO_YCC.T, 2, 0)
    assert luma.std() * 255 == pytest.approx(12.0, rel=0.03)
    assert blue.std() * 255 == pytest.approx(0.3 * 12.0, rel=0.06)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None, :])
    rings = np.digitize(frequency, np.arange(0.01, 0.5, 0.02))
    power = np.bincount(rings.ravel(), (np.abs(np.fft.fft2(luma)) ** 2).ravel()) / np.bincount(rings.ravel())
    assert 0.1 < (np.argmax(power[:-1]) * 0.02) < 0.36
    assert power[1] < 0.35 * power.max(), "luma grain is band-pass"
    blue_power = np.abs(np.fft.fft2(blue)) ** 2
    assert blue_power[frequency > 0.2].sum() < 0.02 * blue_power.sum(), "chroma blotches are low-pass"


def test_grain_is_strongest_in_midtones() -> None:
    params = GranularNoiseParams(sigma_codes=12.0, grain_px=0.6, chroma_ratio=0.1, blotch_px=2.0, midtone_weight=0.8)
    spread = []
    for level in (0.02, 0.5, 0.98):
        flat = np.full((200, 200, 3), level, np.float32)
        spread.append((apply_granular_noise(flat, params, Scene(), rng_for(6, "mid")).image - flat).std())
    assert spread[0] < 0.7 * spread[1]
    assert spread[2] < 0.7 * spread[1]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("fraction", [0.002, 0.05])
def test_n5_impulse_fraction_is_binomial(per_channel: bool, fraction: float) -> None:
    params = ImpulseNoiseParams(impulse_frac=fraction, salt_share=0.4, per_channel=per_channel)
    grey = np.full((500, 400, 3), 0.5, np.float32)
    rendered = apply_impulse_noise(grey, params, Scene(), rng_for(7, "impulse"))
    values = rendered.image if per_channel else rendered.image[..., 0]
    hits = int((values != 0.5).sum())
    assert hits == rendered.realised["impulse_count"]
    assert abs(hits - fraction * values.size) < 3 * np.sqrt(fraction * (1 - fraction) * values.size)
    salt = int((values == 1).sum())
    assert abs(salt - 0.4 * hits) < 3 * np.sqrt(0.24 * hits)
    assert per_channel == bool(np.ptp(rendered.image, axis=2).any())


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


def _error(degradation: Degradation[Any], pixels: Pixels, severity: float) -> float:
    step = sample_step(degradation, severity, rng_for(9, "params"), seed_for(9, "pixels"))
    rendered = replay_with(pixels, [step], Scene(), {degradation.name: degradation})
    return float(np.sqrt(np.mean((np.clip(rendered.image, 0, 1) - to_float(pixels)) ** 2))) * 255


@pytest.mark.parametrize("degradation", FAMILY, ids=lambda degradation: str(degradation.name))
@pytest.mark.parametrize("name", PHOTOS)
def test_error_rises_with_severity_from_barely_visible(degradation: Degradation[Any], name: str) -> None:
    errors = [_error(degradation, PHOTOS[name], severity) for severity in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert errors == sorted(errors)
    assert errors[0] < 5
    assert errors[4] > 2.5 * errors[0]


@pytest.mark.parametrize("degradation", FAMILY, ids=lambda degradation: str(degradation.name))
def test_result_is_repeatable_leaves_input_alone_and_takes_odd_sizes(degradation: Degradation[Any]) -> None:
    params = degradation.sample(0.6, rng_for(1, "params"))
    for shape in ((16, 16), (17, 43), (61, 20)):
        pixels = np.ascontiguousarray(data.coffee()[: shape[0], : shape[1]])
        clean = pixels_to_linear(pixels) if degradation.space == "linear" else to_float(pixels)
        kept = clean.copy()
        rendered = degradation.apply(clean, params, Scene(), rng_for(1, "pixels"))
        again = degradation.apply(clean, params, Scene(), rng_for(1, "pixels"))
        other = degradation.apply(clean, params, Scene(), rng_for(2, "pixels"))
        assert rendered.target is clean
        assert np.array_equal(clean, kept)
        assert rendered.image.dtype == np.float32
        assert np.array_equal(rendered.image, again.image)
        assert not np.array_equal(rendered.image, other.image)
