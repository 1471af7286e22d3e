"""Noise in code values: moments of Gaussian and Poisson noise (N1, N2), grain spectra, impulse fractions (N5)."""

from typing import Any

import numpy as np
import pytest
from skimage import data

from degradations.base import Degradation, Scene, replay_with, sample_step
from degradations.noise_codes import (
    GAUSSIAN_NOISE,
    GRANULAR_NOISE,
    IMPULSE_NOISE,
    POISSON_NOISE,
    GaussianNoiseParams,
    GranularNoiseParams,
    ImpulseNoiseParams,
    PoissonNoiseParams,
    apply_gaussian_noise,
    apply_granular_noise,
    apply_impulse_noise,
    apply_poisson_noise,
)
from degradations.sensor import RGB_TO_YCC
from pairforge.image import Image, to_float
from pairforge.rng import rng_for, seed_for

FAMILY: tuple[Degradation[Any], ...] = (GRANULAR_NOISE, IMPULSE_NOISE, GAUSSIAN_NOISE, POISSON_NOISE)
PHOTOS = {
    "astronaut": data.astronaut()[:200, :251],
    "coffee": data.coffee()[:200, :251],
    "chelsea": data.chelsea()[:200, :251],
}


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("sigma_codes", [1.0, 12.0, 30.0])
def test_n2_gaussian_noise_has_the_given_sd_in_codes_and_no_bias(sigma_codes: float, gray: bool) -> None:
    middle = np.full((500, 500, 3), 0.5, np.float32)
    params = GaussianNoiseParams(sigma_codes=sigma_codes, gray=gray)
    noise = (apply_gaussian_noise(middle, params, Scene(), rng_for(1, "g")).image - middle).astype(np.float64) * 255
    assert noise.std() == pytest.approx(sigma_codes, rel=0.01)
    for channel in range(3):
        assert abs(noise[..., channel].mean()) < 3 * sigma_codes / 500
    red, green = noise[..., 0].ravel(), noise[..., 1].ravel()
    assert np.corrcoef(red, green)[0, 1] == pytest.approx(float(gray), abs=0.01)


def test_gaussian_noise_is_clipped_at_both_ends() -> None:
    ends = np.zeros((100, 100, 3), np.float32)
    ends[50:] = 1
    noisy = apply_gaussian_noise(
        ends, GaussianNoiseParams(sigma_codes=20.0, gray=False), Scene(), rng_for(2, "g")
    ).image
    assert noisy.min() == 0 and noisy.max() == 1
    assert 0.45 < np.mean(noisy[:50] == 0) < 0.55


def _wedge() -> Image:
    """All 256 codes, 20,000 pixels of each."""
    codes = np.repeat(np.arange(256, dtype=np.float32), 20_000).reshape(256, 20_000) / np.float32(255)
    return np.repeat(codes[..., None], 3, axis=2)


@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_n1_n2_poisson_noise_scales_amplitude_and_not_photons(scale: float) -> None:
    """Var = scale^2 J / v for J + scale (Poisson(J v) / v - J), v = 256 where all codes occur."""
    wedge = _wedge()
    rendered = apply_poisson_noise(wedge, PoissonNoiseParams(scale=scale, gray=False), Scene(), rng_for(3, "p"))
    assert rendered.realised["levels"] == 256
    noise = (rendered.image - wedge).astype(np.float64)
    codes = np.arange(256) / 255
    inside = (codes > 0.02) & (codes < (0.7 if scale == 1.0 else 0.98))
    variance = noise.var(axis=1).mean(axis=1)
    assert noise[0].any() == np.False_, "no noise at black"
    slope = np.sum(variance[inside] / codes[inside]) / inside.sum()
    assert slope == pytest.approx(scale**2 / 256, rel=0.01)
    assert np.allclose(variance[inside], codes[inside] * scale**2 / 256, rtol=0.06)
    bias = np.abs(noise.mean(axis=1)).max(axis=1)
    assert (bias[inside] < 4.5 * np.sqrt(variance[inside] / 20_000)).all()


def test_poisson_noise_of_a_dim_code_comes_in_counts() -> None:
    """Code 4 of 255 at v = 256: counts around 4.02, so values are multiples of 1/256 at scale 1."""
    wedge = _wedge()
    noisy = apply_poisson_noise(wedge, PoissonNoiseParams(scale=1.0, gray=False), Scene(), rng_for(4, "p")).image
    counts = noisy[4].ravel() * 256
    assert np.abs(counts - np.round(counts)).max() < 0.05
    share = np.bincount(np.round(counts).astype(int), minlength=12)[:12] / counts.size
    expected = np.array([4.0157**k * np.exp(-4.0157) / np.prod(np.arange(1, k + 1)) for k in range(12)])
    assert np.abs(share - expected).max() < 0.006


@pytest.mark.parametrize(("used", "levels"), [(1, 1), (2, 2), (3, 4), (100, 128), (129, 256)])
def test_poisson_levels_are_the_codes_in_use_rounded_up_to_a_power_of_2(used: int, levels: int) -> None:
    codes = (np.arange(64 * 64) % used).astype(np.float32).reshape(64, 64) / np.float32(255)
    image = np.repeat(codes[..., None], 3, axis=2)
    rendered = apply_poisson_noise(image, PoissonNoiseParams(scale=1.0, gray=False), Scene(), rng_for(5, "p"))
    assert rendered.realised["levels"] == levels


def test_gray_poisson_noise_is_the_same_in_all_channels() -> None:
    photo = to_float(PHOTOS["coffee"]) * np.float32(0.3) + np.float32(0.3)
    params = PoissonNoiseParams(scale=1.0, gray=True)
    noise = apply_poisson_noise(photo, params, Scene(), rng_for(6, "p")).image - photo
    assert np.abs(np.ptp(noise, axis=2)).max() < 1e-6
    assert noise.std() > 0.01


@pytest.mark.parametrize("grain_px", [0.45, 0.65, 0.85])
@pytest.mark.parametrize("blotch_px", [1.5, 2.5, 3.5])
def test_grain_has_the_given_strength_in_a_band(grain_px: float, blotch_px: float) -> None:
    params = GranularNoiseParams(
        sigma_codes=12.0, grain_px=grain_px, chroma_ratio=0.3, blotch_px=blotch_px, midtone_weight=0.8
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
    assert blue_power[frequency > 0.2].sum() < 0.09 * blue_power.sum(), "chroma blotches are low-pass"


def test_blotches_are_equally_strong_in_even_and_odd_rows() -> None:
    """They are made at half size; a visible grid would be a drawn look."""
    params = GranularNoiseParams(sigma_codes=12.0, grain_px=0.6, chroma_ratio=1.0, blotch_px=1.5, midtone_weight=0.0)
    grey = np.full((513, 512, 3), 0.5, np.float32)
    noise = apply_granular_noise(grey, params, Scene(), rng_for(5, "grid")).image - grey
    blue = noise @ RGB_TO_YCC[1]
    spread = [blue[y::2, x::2].std() for y in (0, 1) for x in (0, 1)]
    assert max(spread) < 1.02 * min(spread)


def test_grain_is_strongest_in_midtones() -> None:
    params = GranularNoiseParams(sigma_codes=12.0, grain_px=0.6, chroma_ratio=0.1, blotch_px=2.0, midtone_weight=0.8)
    spread = []
    for level in (0.02, 0.5, 0.98):
        flat = np.full((200, 200, 3), level, np.float32)
        spread.append((apply_granular_noise(flat, params, Scene(), rng_for(6, "mid")).image - flat).std())
    assert spread[0] < 0.7 * spread[1]
    assert spread[2] < 0.7 * spread[1]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("fraction", [0.002, 0.05, 0.7])
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
    quarter = (values[:250, :200] != 0.5).mean()
    assert quarter == pytest.approx(fraction, abs=4 * np.sqrt(fraction / (values.size / 4))), "everywhere alike"


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_no_and_only_impulses(fraction: float) -> None:
    params = ImpulseNoiseParams(impulse_frac=fraction, salt_share=0.5, per_channel=True)
    grey = np.full((33, 17, 3), 0.5, np.float32)
    assert np.mean(apply_impulse_noise(grey, params, Scene(), rng_for(7, "all")).image != 0.5) == fraction


@pytest.mark.parametrize(
    ("degradation", "field", "value"),
    [
        (GAUSSIAN_NOISE, "sigma_codes", -1.0),
        (POISSON_NOISE, "scale", 31.0),
        (GRANULAR_NOISE, "blotch_px", 0.0),
        (GRANULAR_NOISE, "midtone_weight", 1.5),
        (IMPULSE_NOISE, "impulse_frac", 1.01),
    ],
)
def test_parameters_outside_their_range_are_refused(degradation: Degradation[Any], field: str, value: float) -> None:
    step = sample_step(degradation, 0.5, rng_for(1, "p"), seed_for(1, "x"))
    bad = step.model_copy(update={"params": {**step.params, field: value}})
    with pytest.raises(ValueError, match=f"(?s)'{degradation.name}' do not fit.*{field}"):
        replay_with(PHOTOS["coffee"], [bad], Scene(), {degradation.name: degradation})


@pytest.mark.parametrize("degradation", FAMILY, ids=lambda degradation: str(degradation.name))
def test_error_rises_with_severity_from_barely_visible(degradation: Degradation[Any]) -> None:
    errors = []
    for severity in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        step = sample_step(degradation, severity, rng_for(9, "params"), seed_for(9, "pixels"))
        of_photos = []
        for photo in PHOTOS.values():
            image = replay_with(photo, [step], Scene(), {degradation.name: degradation}).image
            of_photos.append(np.abs(np.clip(image, 0, 1) - to_float(photo)).mean() * 255)
        errors.append(float(np.median(of_photos)))
    assert errors == sorted(errors)
    assert errors[0] < 4
    assert errors[5] > 2.5 * errors[0]


@pytest.mark.parametrize("degradation", FAMILY, ids=lambda degradation: str(degradation.name))
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (17, 43), (65, 20)])
def test_result_is_repeatable_leaves_input_alone_and_takes_odd_sizes(
    degradation: Degradation[Any], shape: tuple[int, int]
) -> None:
    params = degradation.sample(0.9, rng_for(1, "params"))
    clean = to_float(np.ascontiguousarray(data.coffee()[: shape[0], : shape[1]]))
    kept = clean.copy()
    rendered, again, other = (
        degradation.apply(clean, params, Scene(), rng_for(1, seed)) for seed in ("one", "one", "two")
    )
    assert rendered.target is clean
    assert np.array_equal(clean, kept)
    assert rendered.image.dtype == np.float32 and rendered.image.shape == clean.shape
    assert np.isfinite(rendered.image).all()
    assert np.array_equal(rendered.image, again.image)
    if shape[0] * shape[1] > 100:
        assert not np.array_equal(rendered.image, other.image)
