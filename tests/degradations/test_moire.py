"""Moiré: alias law, transfer, a drawn screen as ground truth, alignment of the target, the bank and its patterns."""

import itertools

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from skimage import data

from degradations.base import Pattern, Scene, replay_with, sample_step
from degradations.moire import MOIRE, apply_moire, mask_light, sample_moire
from degradations.moire_bank import diversity, draw_capture, moire_pattern_image
from degradations.moire_camera import alias_frequencies, to_mosaic, without_fine_detail
from degradations.moire_pattern import (
    MOIRE_PATTERN,
    MoirePatternParams,
    apply_moire_pattern,
    modulation,
    sample_moire_pattern,
)
from degradations.moire_reference import apply_moire_reference
from degradations.moire_screen import MoireParams, screen_position, sensor_grid, view_of
from pairforge.image import Image, Pixels, Plane, linear_to_srgb, luminance, pixels_to_linear
from pairforge.rng import rng_for

FLAT_VIEW = {"tilt_x_deg": 0.0, "tilt_y_deg": 0.0, "roll_deg": 0.0, "radial_k1": 0.0}
TILTED = {"tilt_x_deg": 9.0, "tilt_y_deg": -6.0, "roll_deg": 4.0, "radial_k1": 0.03}
PHOTOS = ("astronaut", "chelsea", "coffee")


def photo(name: str) -> Image:
    pixels: Pixels = getattr(data, name)()
    return pixels_to_linear(pixels)


def grey(height: int, width: int) -> Image:
    return np.full((height, width, 3), 0.5, np.float32)


def make_params(**changes: object) -> MoireParams:
    values = {
        **{"layout": "stripe", "stripe_order": "RGB", "fill_x": 0.75, "fill_y": 0.85, "pitch_ratio": 2.11},
        **{"focal_frac": 1.0, "phase_x_cyc": 0.3, "phase_y_cyc": 0.6, "lens_sigma_px": 0.3, "cfa": "RGGB"},
        **{"fine_loss": 0.0, "artistic_gain": 1.0, **FLAT_VIEW, **changes},
    }
    return MoireParams.model_validate(values)


def sensed(params: MoireParams, side: int) -> Plane:
    """What each photosite kept of a white screen, mean 1: demosaicing leaves it where it was."""
    mosaic = to_mosaic(apply_moire(grey(side, side), params, Scene(), rng_for(0)).image, params.cfa)
    white: Plane = mosaic / mosaic.mean()
    return white


def spectrum(plane: NDArray[np.float32]) -> NDArray[np.float64]:
    """Amplitude of every wave in a plane."""
    window = np.outer(np.hanning(plane.shape[0]), np.hanning(plane.shape[1]))
    amplitude: NDArray[np.float64] = np.abs(np.fft.fft2((plane - plane.mean()) * window)) * 2 / window.sum()
    return amplitude


def peak(plane: NDArray[np.float32], spacing_px: float) -> tuple[float, float]:
    """(cycles per px, amplitude) of the strongest wave in a plane sampled every `spacing_px`."""
    amplitude = spectrum(plane)
    row, column = np.unravel_index(int(amplitude.argmax()), amplitude.shape)
    f_y, f_x = np.fft.fftfreq(plane.shape[0])[row], np.fft.fftfreq(plane.shape[1])[column]
    return float(np.hypot(f_x, f_y)) / spacing_px, float(amplitude[row, column])


def green_peak(mosaic: Plane) -> float:
    """Cycles per px of the strongest wave of the green photosites of RGGB, inside the cell of their lattice."""
    green = mosaic - mosaic[0::2, 1::2].mean()
    green[0::2, 0::2] = green[1::2, 1::2] = 0
    amplitude = spectrum(green)
    f_y, f_x = np.fft.fftfreq(green.shape[0])[:, None], np.fft.fftfreq(green.shape[1])[None, :]
    amplitude[np.abs(f_x) + np.abs(f_y) > 0.5] = 0
    row, column = np.unravel_index(int(amplitude.argmax()), amplitude.shape)
    return float(np.hypot(f_x[0, column], f_y[row, 0]))


# The screen-camera model


@pytest.mark.parametrize("roll_deg", [0.0, 7.0])
@pytest.mark.parametrize("pitch_ratio", [0.8, 0.9, 1.1, 1.3, 1.7, 2.11, 2.6, 3.2])
def test_m1_peak_is_where_the_alias_law_puts_it(pitch_ratio: float, roll_deg: float) -> None:
    side = 256
    params = make_params(pitch_ratio=pitch_ratio, roll_deg=roll_deg, fill_y=1.0)
    angle = np.radians(roll_deg)
    predicted = alias_frequencies(np.cos(angle) / pitch_ratio, np.sin(angle) / pitch_ratio)
    mosaic = sensed(params, side)
    assert peak(mosaic[0::2, 0::2], 2)[0] == pytest.approx(predicted["red_blue"], abs=1.5 / side)
    assert peak(mosaic[1::2, 1::2], 2)[0] == pytest.approx(predicted["red_blue"], abs=1.5 / side)
    assert green_peak(mosaic) == pytest.approx(predicted["green"], abs=1.5 / side)
    # "GGGG" puts the same stripe under every photosite: the lattice of a monochrome sensor.
    view = view_of(params, side, side)
    positions = screen_position(*sensor_grid(side, side), view)
    every = mask_light(*positions, params.model_copy(update={"cfa": "GGGG"}), view)
    assert peak(every, 1)[0] == pytest.approx(predicted["full"], abs=1.5 / side)


def test_m1_holds_for_the_pixels_of_the_drawn_screen() -> None:
    params = make_params(roll_deg=7.0, pitch_ratio=1.7)
    predicted = alias_frequencies(np.cos(np.radians(7)) / 1.7, np.sin(np.radians(7)) / 1.7)
    drawn = apply_moire_reference(grey(128, 128), params, Scene(), rng_for(0)).image
    assert peak(drawn[0::2, 0::2, 0], 2)[0] == pytest.approx(predicted["red_blue"], abs=1.5 / 128)


def test_m2_pitch_2_11_colours_red_and_blue_only() -> None:
    side = 422
    mosaic = sensed(make_params(), side)
    red, red_amplitude = peak(mosaic[0::2, 0::2], 2)
    blue, blue_amplitude = peak(mosaic[1::2, 1::2], 2)
    assert (red, blue) == pytest.approx((0.026, 0.026), abs=1.5 / side)
    assert min(red_amplitude, blue_amplitude) > 0.3
    # The green lattice: zeros elsewhere only add copies around (1/2, 1/2).
    green = mosaic - 1
    green[0::2, 0::2] = green[1::2, 1::2] = 0
    wave = np.exp(-2j * np.pi * 11 / side * np.arange(side))[None, :] * np.hanning(side)[None, :]
    there = abs((green * wave).sum()) / (side * np.hanning(side).sum()) * 4
    assert there < 0.02 * red_amplitude


def test_m3_amplitude_follows_the_lens() -> None:
    for pitch_ratio, soft, sharp in ((2.11, 0.5, 0.3), (1.7, 0.45, 0.25)):
        amplitudes = [
            peak(sensed(make_params(lens_sigma_px=sigma, pitch_ratio=pitch_ratio), 256)[::2, ::2], 2)[1]
            for sigma in (soft, sharp)
        ]
        expected = np.exp(-2 * np.pi**2 * (soft**2 - sharp**2) / pitch_ratio**2)
        assert amplitudes[0] / amplitudes[1] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("layout", ["stripe", "pentile", "delta"])
def test_m4_reference_does_not_depend_on_its_sampling(layout: str) -> None:
    params = make_params(layout=layout, **{**TILTED, "pitch_ratio": 1.4})
    image = photo("astronaut")[60:100, 190:230]
    coarse, fine = (apply_moire_reference(image, params, Scene(), rng_for(0), supersampling=s).image for s in (8, 24))
    assert float(np.sqrt(np.mean((coarse - fine) ** 2))) < 0.01 * float(fine.mean())


@pytest.mark.parametrize("layout", ["stripe", "pentile", "delta"])
@pytest.mark.parametrize("pitch_ratio", [0.95, 1.37, 2.11])
@pytest.mark.parametrize("view", [FLAT_VIEW, TILTED])
def test_fourier_form_agrees_with_the_drawn_screen(layout: str, pitch_ratio: float, view: dict[str, float]) -> None:
    """On a white screen within 2 % of the mean; on a photo, where content and mask are filtered apart, within 12 %
    of the contrast of the drawn one."""
    params = make_params(layout=layout, pitch_ratio=pitch_ratio, **view)
    white = grey(48, 56)
    series, drawn = (form(white, params, Scene(), rng_for(0)).image for form in (apply_moire, apply_moire_reference))
    assert float(np.sqrt(np.mean((series - drawn) ** 2))) < 0.02 * float(drawn.mean())
    image = photo("astronaut")[40:88, 180:236]
    series, drawn = (form(image, params, Scene(), rng_for(0)).image for form in (apply_moire, apply_moire_reference))
    assert float(np.sqrt(np.mean((series - drawn)[4:-4, 4:-4] ** 2))) < 0.12 * float(drawn.std())


def test_both_forms_share_target_and_record() -> None:
    image, params = photo("chelsea")[:40, :60], make_params(**TILTED)
    series, drawn = (form(image, params, Scene(), rng_for(0)) for form in (apply_moire, apply_moire_reference))
    assert np.array_equal(series.target, drawn.target)
    assert series.realised.keys() == drawn.realised.keys()
    assert series.realised["homography"] == drawn.realised["homography"]
    with pytest.raises(ValueError, match="supersampling is 4"):
        apply_moire_reference(image, params, Scene(), rng_for(0), supersampling=4)


@pytest.mark.parametrize("severity", [0.2, 0.6, 1.0])
def test_m5_mean_is_kept(severity: float) -> None:
    image = photo("astronaut")[:384, :500]
    for key in range(4):
        rendered = apply_moire(image, sample_moire(severity, rng_for(2, key)), Scene(), rng_for(0))
        assert float(luminance(rendered.image).mean()) == pytest.approx(
            float(luminance(rendered.target).mean()), rel=0.02
        )
        assert 0.85 < rendered.realised["exposure"] < 1.15


def ramps(width: int, height: int) -> Image:
    """Red and green grow with column and row."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.dstack([x / width + 0.2, y / height + 0.2, np.full_like(x, 0.5)])


def test_m5_target_and_photo_follow_the_recorded_geometry() -> None:
    width, height = 301, 200
    image = ramps(width, height)
    params = make_params(**TILTED, artistic_gain=0.0)
    rendered = apply_moire(image, params, Scene(), rng_for(0))
    column, row = np.meshgrid(np.arange(8, width - 8), np.arange(8, height - 8))
    at = np.stack([column - (width - 1) / 2, row - (height - 1) / 2, np.ones(column.shape)])
    at[:2] *= 1 + params.radial_k1 * (at[0] ** 2 + at[1] ** 2) / ((width**2 + height**2) / 4)
    mapped = np.tensordot(np.array(rendered.realised["homography"]), at, axes=1)
    base_x = mapped[0] / mapped[2] * rendered.realised["zoom"] + (width - 1) / 2
    base_y = mapped[1] / mapped[2] * rendered.realised["zoom"] + (height - 1) / 2
    assert base_x.min() >= 0 and base_x.max() <= width - 1
    assert base_y.min() >= 0 and base_y.max() <= height - 1
    # The red stripe lies a third of a screen pixel to the left: there the photo shows its pixel's value.
    red_lag_px = params.pitch_ratio * rendered.realised["zoom"] / 3
    for seen, lag_px, tolerance_px in (
        (rendered.target, 0.0, 0.1),
        (rendered.image / rendered.realised["exposure"], red_lag_px, 0.3),
    ):
        seen_x = (seen[8:-8, 8:-8, 0] - 0.2) * width
        seen_y = (seen[8:-8, 8:-8, 1] - 0.2) * height
        # The last screen pixels have no neighbours to reach out to; a look-up is good to 1/32 of a screen pixel.
        assert np.percentile(np.abs(seen_x - base_x - lag_px)[:-8, :-8], 99) < tolerance_px
        assert np.percentile(np.abs(seen_y - base_y)[:-8, :-8], 99) < tolerance_px


def test_m5_photo_is_aligned_with_target_on_a_photograph() -> None:
    image = photo("astronaut")
    rendered = apply_moire(image, make_params(**TILTED, pitch_ratio=1.6), Scene(), rng_for(0))
    window = cv2.createHanningWindow((128, 128), cv2.CV_32F)
    for row, column in ((40, 150), (192, 192), (350, 200)):
        tile = np.s_[row : row + 128, column : column + 128]
        (dx, dy), _ = cv2.phaseCorrelate(
            cv2.GaussianBlur(luminance(rendered.target)[tile], (0, 0), 2),
            cv2.GaussianBlur(luminance(rendered.image)[tile], (0, 0), 2),
            window,
        )
        assert np.hypot(dx, dy) < 0.3


def test_white_screen_is_not_drawn_in_dark_content() -> None:
    image = np.zeros((64, 64, 3), np.float32)
    assert float(apply_moire(image, make_params(), Scene(), rng_for(0)).image.max()) == 0


def test_bands_show_in_every_draw_from_severity_0_2_on() -> None:
    """On grey, after a blur that leaves bands, no mesh: about 1 to 5 codes RMS at 0.2, over 5 at 0.8, each step 15 %
    more. What the blur takes, the mesh of photosites, is below 1.5 codes at 0.2."""
    flat = grey(256, 320)
    for key in range(12):
        seen = []
        for severity in (0.0, 0.2, 0.5, 0.8):
            rendered = apply_moire(flat, sample_moire(severity, rng_for(3, key)), Scene(), rng_for(0))
            sharp = linear_to_srgb(rendered.image) * 255
            codes = cv2.GaussianBlur(sharp, (0, 0), 1.2)
            assert severity > 0.2 or float((sharp - codes)[8:-8, 8:-8].std()) < 1.5
            seen.append(float((codes - codes.mean(axis=(0, 1)))[8:-8, 8:-8].std()))
        assert seen[0] < 3 and all(1.15 * before < after for before, after in itertools.pairwise(seen)), (key, seen)
        assert 0.8 < seen[1] < 5 and seen[3] > 5, (key, seen)


def test_fine_loss_takes_the_mesh_and_leaves_the_bands() -> None:
    """Of 0.6: at half a cycle per px 0.4 stays, at a quarter 0.85, below a tenth more than 0.98."""
    for cycles, kept in ((0.5, 0.4), (0.25, 0.85), (0.1, 0.99), (0.03, 1.0)):
        wave = 0.5 + 0.3 * np.cos(2 * np.pi * cycles * np.arange(120, dtype=np.float32))
        image = np.tile(wave[None, :, None], (40, 1, 3)).astype(np.float32)
        smooth = without_fine_detail(image, 0.6)
        ratio = float(np.ptp(smooth[20, 20:100, 0]) / np.ptp(wave[20:100]))
        assert ratio == pytest.approx(kept, abs=0.01)


def spearman(differences: dict[float, list[float]]) -> float:
    medians = [float(np.median(values)) for values in differences.values()]
    ranks = np.argsort(np.argsort(medians))
    return float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])


@pytest.mark.parametrize("key", range(6))
def test_severity_raises_the_difference(key: int) -> None:
    differences: dict[float, list[float]] = {}
    patterns = tuple(moire_pattern_image(index, 5) for index in range(3))
    by_bank: dict[float, list[float]] = {}
    for severity, name in itertools.product((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), PHOTOS):
        image = photo(name)[100:260, 60:260]
        rendered = apply_moire(image, sample_moire(severity, rng_for(4, key)), Scene(), rng_for(0))
        change = np.abs(linear_to_srgb(rendered.image) - linear_to_srgb(rendered.target)).mean()
        differences.setdefault(severity, []).append(float(change))
        params = sample_moire_pattern(severity, rng_for(4, key))
        fused = apply_moire_pattern(image, params, Scene(patterns={"moire": patterns}), rng_for(0))
        change = np.abs(linear_to_srgb(fused.image) - linear_to_srgb(image)).mean()
        by_bank.setdefault(severity, []).append(float(change))
    assert spearman(differences) >= 0.95
    assert spearman(by_bank) >= 0.95


def test_draws_stay_in_the_ranges_of_the_sources() -> None:
    physical = 0
    for key in range(200):
        params = sample_moire(rng_for(6, key).random(), rng_for(7, key))
        assert 0.7 <= params.pitch_ratio <= 3.5 and abs(params.roll_deg) <= 15
        assert max(abs(params.tilt_x_deg), abs(params.tilt_y_deg)) <= 20 and abs(params.radial_k1) <= 0.05
        assert 0.25 <= params.lens_sigma_px <= 0.9
        physical += params.artistic_gain == 1
    assert physical > 100


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (16, 16), (33, 21), (130, 257)])
def test_any_size_and_no_side_effect(height: int, width: int) -> None:
    image = (rng_for(4).random((height, width, 3)) * 1.5).astype(np.float32)
    before = image.copy()
    params = sample_moire(0.7, rng_for(5))
    first, second = (apply_moire(image, params, Scene(), rng_for(6)) for _ in range(2))
    assert first.image.shape == first.target.shape == image.shape
    assert first.image.dtype == first.target.dtype == np.float32
    assert np.array_equal(first.image, second.image) and np.array_equal(image, before)
    assert np.isfinite(first.image).all() and first.image.min() >= 0


@pytest.mark.parametrize("name", sorted(MoireParams.model_fields))
def test_every_parameter_moves_pixels(name: str) -> None:
    image = photo("chelsea")[:120, :160]
    params = sample_moire(0.6, rng_for(8))
    value = getattr(params, name)
    choices = {"stripe_order": ("RGB", "BGR"), "cfa": ("GRBG", "RGGB"), "layout": ("pentile", "stripe")}
    other = next(o for o in choices[name] if o != value) if name in choices else value * 1.05 + 0.01
    moved = apply_moire(image, params.model_copy(update={name: other}), Scene(), rng_for(0)).image
    assert float(np.abs(moved - apply_moire(image, params, Scene(), rng_for(0)).image).max()) > 1e-4


@pytest.mark.parametrize(
    "change",
    [
        *({"pitch_ratio": 0.1}, {"tilt_x_deg": 60.0}, {"focal_frac": 0.1}, {"radial_k1": 0.5}, {"fill_x": 0.0}),
        *({"lens_sigma_px": 0.0}, {"cfa": "RGBG"}, {"layout": "hexagon"}, {"artistic_gain": -1.0}),
    ],
)
def test_parameters_outside_their_range_are_refused(change: dict[str, object]) -> None:
    (name,) = change
    with pytest.raises(ValidationError, match=name):
        make_params(**change)


# Patterns of a bank


def waves(side: int, cycles: float, angle: float = 0.0) -> Pattern:
    """A pattern of one wave, in three colours of different phase."""
    x, y = np.meshgrid(np.arange(side) / side, np.arange(side) / side)
    turn = 2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle))
    pattern: NDArray[np.uint8] = (128.5 + 100 * np.sin(turn[..., None] + np.arange(3))).astype(np.uint8)
    return pattern


def pattern_params(**changes: object) -> MoirePatternParams:
    values = {
        **{"amplitude": (0.1,), "flip": (False,), "rotation_deg": (0.0,), "aspect": (1.0,), "zoom": (1.2,)},
        **{"offset_x_frac": (0.0,), "offset_y_frac": (0.0,), **changes},
    }
    return MoirePatternParams.model_validate(values)


def test_m5_fusion_keeps_mean_and_target() -> None:
    patterns = tuple(moire_pattern_image(index, 1) for index in range(3))
    for name, severity in itertools.product(PHOTOS, (0.2, 1.0)):
        image = photo(name)
        for key in range(3):
            params = sample_moire_pattern(severity, rng_for(1, key))
            fused = apply_moire_pattern(image, params, Scene(patterns={"moire": patterns}), rng_for(0))
            assert fused.target is image
            ratio = float(luminance(fused.image).mean() / luminance(image).mean())
            assert ratio == pytest.approx(1, abs=0.02)
            assert 0.9 < fused.realised["exposure"] < 1.1


def test_modulation_has_the_recorded_amplitude_and_adds_up() -> None:
    one, two = waves(256, 21), waves(300, 17, 1.1)
    first, second = (modulation([p], pattern_params(), 200, 240) - 1 for p in (one, two))
    # A frame smaller than the pattern: what antialiasing takes of its 21 waves.
    assert float(first.std()) == pytest.approx(0.1, rel=0.1)
    np.testing.assert_allclose(first.mean(axis=(0, 1)), 0, atol=1e-4)
    pair = {name: value * 2 for name, value in pattern_params().model_dump().items()}
    both = modulation([one, two], pattern_params(**pair), 200, 240) - 1
    assert float(np.sqrt(np.mean((both - first - second) ** 2))) < 0.01
    twice = modulation([one], pattern_params(amplitude=(0.2,)), 200, 240) - 1
    np.testing.assert_allclose(twice, 2 * first, atol=1e-5)
    wide = modulation([one.astype(np.uint16) * 257], pattern_params(), 200, 240) - 1
    np.testing.assert_allclose(wide, first, atol=2e-3)  # 8-bit patterns are reduced in 8 bits.


def test_light_is_multiplied_in_linear_light() -> None:
    image = photo("chelsea")
    params, pattern = pattern_params(), waves(256, 21)
    fused = apply_moire_pattern(image, params, Scene(patterns={"moire": (pattern,)}), rng_for(0))
    expected = image * modulation([pattern], params, *image.shape[:2])
    np.testing.assert_allclose(fused.image, expected * np.float32(fused.realised["exposure"]), rtol=1e-5)


def test_patterns_are_reduced_with_antialiasing() -> None:
    """171 cycles over 512 px, shown on 60 px, would be false bands; nothing may be left of them."""
    coarse, fine = (modulation([waves(512, cycles)], pattern_params(), 60, 60) - 1 for cycles in (7, 171))
    assert float(coarse.std()) > 0.08 and float(fine.std()) < 0.005


def test_placement_flips_turns_and_moves() -> None:
    pattern = moire_pattern_image(4, 2)
    plain = modulation([pattern], pattern_params(), 128, 128)
    flipped = modulation([pattern], pattern_params(flip=(True,)), 128, 128)
    np.testing.assert_allclose(flipped, plain[:, ::-1], atol=0.02)
    turned = modulation([pattern], pattern_params(rotation_deg=(90.0,)), 128, 128)
    np.testing.assert_allclose(turned, np.rot90(plain, -1), atol=0.02)
    left, right = (modulation([pattern], pattern_params(offset_x_frac=(o,)), 128, 128) for o in (-1.0, 1.0))
    assert float(np.abs(left - right).mean()) > 0.01


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (31, 200), (2000, 40)])
def test_fusion_takes_any_size_and_changes_no_input(height: int, width: int) -> None:
    image = (rng_for(4).random((height, width, 3)) * 1.5).astype(np.float32)
    patterns = (waves(64, 5), waves(96, 9, 0.4).astype(np.uint16), waves(80, 7, 2.0))
    before = [array.tobytes() for array in (image, *patterns)]
    for key in range(4):
        params = sample_moire_pattern(1.0, rng_for(5, key))
        first, second = (
            apply_moire_pattern(image, params, Scene(patterns={"moire": patterns}), rng_for(0)) for _ in range(2)
        )
        assert first.image.shape == image.shape and first.image.dtype == np.float32
        assert np.array_equal(first.image, second.image)
        assert np.isfinite(first.image).all() and first.image.min() >= 0
    assert [array.tobytes() for array in (image, *patterns)] == before


def test_bad_patterns_and_parameters_are_named() -> None:
    with pytest.raises(ValidationError, match="one entry per pattern"):
        pattern_params(zoom=(1.2, 1.3))
    with pytest.raises(ValidationError, match="amplitude"):
        pattern_params(amplitude=())
    with pytest.raises(ValidationError, match="amplitude"):
        pattern_params(amplitude=(0.9,))
    flat = np.full((32, 32, 3), 128, np.uint8)
    with pytest.raises(ValueError, match="pattern 0 is flat"):
        modulation([flat], pattern_params(), 20, 20)
    step = sample_step(MOIRE_PATTERN, 0.5, rng_for(3), "0" * 32)
    base = np.full((16, 16, 3), 90, np.uint8)
    with pytest.raises(ValueError, match="'moire_pattern' needs patterns"):
        replay_with(base, [step], Scene(), {"moire_pattern": MOIRE_PATTERN})


# The bank


def test_a_pattern_follows_from_index_and_seed_alone() -> None:
    once = [moire_pattern_image(index, 1) for index in (3, 0, 7)]
    again = [moire_pattern_image(index, 1) for index in (7, 3, 0)]
    for first, second in zip(once, (again[1], again[2], again[0]), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(once[0], moire_pattern_image(3, 2)[: once[0].shape[0], : once[0].shape[1]])
    with pytest.raises(ValueError, match="-1"):
        moire_pattern_image(-1, 1)


def test_patterns_are_modulation_around_the_middle_code_at_several_scales() -> None:
    sides, layouts = set(), set()
    for index in range(40):
        params, side_px, _ = draw_capture(index, 1)
        sides.add(side_px)
        layouts.add(params.layout)
    assert sides == {384, 512, 640, 768} and layouts == {"stripe", "pentile", "delta"}
    for index in range(12):
        pattern = moire_pattern_image(index, 1)
        assert pattern.dtype == np.uint8 and pattern.shape[0] == pattern.shape[1] and pattern.shape[2] == 3
        np.testing.assert_allclose(pattern.mean(axis=(0, 1)), 128, atol=0.7)
        assert 36 < pattern.std() < 46
        assert float(np.mean((pattern == 0) | (pattern == 255))) < 0.03


def test_no_two_patterns_are_alike() -> None:
    found = diversity(moire_pattern_image(index, 1) for index in range(80))
    assert found.correlation == found.at_most < 0.9


def test_diversity_finds_a_shifted_copy() -> None:
    patterns = [
        cv2.resize(moire_pattern_image(index, 3), (192, 192), interpolation=cv2.INTER_AREA) for index in range(9)
    ]
    patterns.insert(5, np.roll(patterns[2], (38, -20), axis=(0, 1)))
    found = diversity(patterns)
    assert found.pair == (2, 5) and found.correlation == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="holds 1 pattern"):
        diversity(patterns[:1])
    with pytest.raises(ValueError, match="pattern 1 is flat"):
        diversity([patterns[0], np.full((64, 64, 3), 128, np.uint8)])


def test_diversity_is_the_highest_correlation_over_shifts() -> None:
    """Against the definition: correlation of thumbs under every shift, one by one."""
    thumbs = [waves(96, 5), waves(96, 5.2, 0.1)]
    first, second = (thumb - thumb.mean(axis=(0, 1)) for thumb in (t.astype(np.float64) for t in thumbs))
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    shifts = itertools.product(range(0, 96), range(0, 96, 1))
    expected = max(float((first * np.roll(second, shift, axis=(0, 1))).sum()) / norm for shift in shifts)
    found = diversity(thumbs)
    assert found.correlation == pytest.approx(expected, abs=1e-4) and found.at_most >= found.correlation


def test_params_survive_json() -> None:
    of_screen, of_bank = sample_moire(0.4, rng_for(9)), sample_moire_pattern(0.4, rng_for(9))
    assert MOIRE.params_type.model_validate_json(of_screen.model_dump_json()) == of_screen
    assert MOIRE_PATTERN.params_type.model_validate_json(of_bank.model_dump_json()) == of_bank


def test_a_screen_that_shows_nothing_is_drawn_anew() -> None:
    """At pitch 1 photosites pass next to nothing of some screens; index 789 of seed 0 drew one of these first."""
    pattern = moire_pattern_image(789, 0)
    assert pattern.std() > 10
