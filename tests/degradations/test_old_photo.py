"""Old photos: PHYSICS O1-O5, tone of prints, damage and its mask, plus what replay needs."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from degradations import old_photo, old_photo_damage, old_photo_fields, old_photo_grain, old_photo_tone
from degradations.base import Degradation, Params, Rendered, Scene, replay_with, sample_step
from degradations.old_photo import OLD_COLOR_PHOTO, OLD_PHOTO
from degradations.old_photo_damage import CLASS_BITS, PHOTO_DAMAGE, DamageParams
from degradations.old_photo_grain import FILM_GRAIN, FilmGrainParams
from degradations.old_photo_tone import FADE, SEPIA, FadeParams, ToneParams
from pairforge.image import Image, Pixels, pixels_to_linear, to_pixels
from pairforge.rng import rng_for, rng_from_seed, seed_for

SEED = seed_for(1, "pixels")
ALL: tuple[Degradation[Any], ...] = (FADE, SEPIA, FILM_GRAIN, PHOTO_DAMAGE, OLD_PHOTO, OLD_COLOR_PHOTO)
BLACK_AND_WHITE: tuple[Degradation[Any], ...] = (SEPIA, OLD_PHOTO)
UNHARMED = DamageParams(
    stain_area_frac=0.0,
    stain_density=0.2,
    foxing_count=0,
    foxing_density=0.2,
    dust_count=0,
    hair_count=0,
    light_dust_share=0.7,
    scratch_count=0,
    crease_count=0,
    border_wear_frac=0.0,
    torn_corner_count=0,
)
NEUTRAL = ToneParams(
    orthochromatic_share=0.0,
    contrast_ratio=1.0,
    black_density=2.0,
    toning_share=0.0,
    redness_share=0.0,
    yellow_density=0.0,
)
ONE_OF_EACH: dict[str, dict[str, float]] = {
    "stain": {"stain_area_frac": 0.1},
    "foxing": {"foxing_count": 20},
    "dust": {"dust_count": 60},
    "hair": {"hair_count": 5},
    "scratch": {"scratch_count": 8},
    "crease": {"crease_count": 1},
    "border": {"border_wear_frac": 0.004, "torn_corner_count": 1},
}


def photo(height: int = 300, width: int = 400) -> Pixels:
    resized: Pixels = cv2.resize(data.coffee(), (width, height), interpolation=cv2.INTER_AREA)
    return resized


def apply(degradation: Degradation[Any], image: Image, params: Params, seed: str = SEED) -> Rendered:
    rendered: Rendered = degradation.apply(image, params, Scene(), rng_from_seed(seed))
    return rendered


def harmed(**values: float) -> DamageParams:
    return DamageParams.model_validate({**UNHARMED.model_dump(), **values})


def density(light: NDArray[np.float32]) -> NDArray[np.float64]:
    return -np.log10(light.astype(np.float64))


# O1: fading


@pytest.mark.parametrize("seed", range(4))
def test_o1_faded_density_is_a_share_of_density_plus_the_base(seed: int) -> None:
    params = old_photo_tone.sample_fade(0.9, rng_for(seed, "fade"))
    before = rng_for(seed, "image").uniform(0.0, 2.5, (60, 80, 3))
    after = density(apply(FADE, (10**-before).astype(np.float32), params).image)
    for channel, name in enumerate(("red", "green", "blue")):
        slope, offset = np.polyfit(before[..., channel].ravel(), after[..., channel].ravel(), 1)
        assert slope == pytest.approx(getattr(params, f"keep_{name}_ratio"), rel=0.02)
        assert offset == pytest.approx(getattr(params, f"base_{name}_density"), abs=0.01)


def test_black_dye_fades_too() -> None:
    params = FadeParams(
        keep_red_ratio=0.5,
        keep_green_ratio=0.5,
        keep_blue_ratio=0.5,
        base_red_density=0.0,
        base_green_density=0.0,
        base_blue_density=0.0,
    )
    faded = apply(FADE, np.zeros((4, 4, 3), np.float32), params).image
    np.testing.assert_allclose(faded, old_photo_tone.DARKEST_LIGHT**0.5, rtol=1e-4)


# Tone


@pytest.mark.parametrize(("contrast", "black"), [(0.8, 1.2), (1.0, 2.0), (1.2, 1.6)])
def test_print_curve_has_the_contrast_and_black_asked_for(contrast: float, black: float) -> None:
    params = NEUTRAL.model_copy(update={"contrast_ratio": contrast, "black_density": black})
    middle = old_photo_tone.MIDDLE_DENSITY
    low, high = old_photo_tone.print_density(np.array([middle - 1e-4, middle + 1e-4]), params)
    assert (high - low) / 2e-4 == pytest.approx(contrast, rel=0.01)
    curve = old_photo_tone.print_density(np.linspace(0, 12, 200), params)
    assert curve[0] == pytest.approx(0, abs=1e-9) and curve[-1] == pytest.approx(black, rel=1e-3)
    assert (np.diff(curve) > 0).all()


def test_print_follows_its_curve_toning_and_base() -> None:
    params = NEUTRAL.model_copy(update={"toning_share": 0.8, "yellow_density": 0.2})
    light = np.linspace(0.01, 1, 256, dtype=np.float32)
    printed = apply(SEPIA, np.repeat(light, 3).reshape(16, 16, 3), params).image.reshape(-1, 3)
    silver = old_photo_tone.print_density(-np.log10(light.astype(np.float64)), params)
    for channel in range(3):
        toned = 1 + 0.8 * (old_photo_tone.OLIVE_SILVER[channel] - 1)
        due = toned * silver + 0.2 * old_photo_tone.BASE_TINT[channel]
        np.testing.assert_allclose(density(printed[:, channel]), due, atol=0.003)


def test_silver_has_no_colour_and_plates_see_no_red() -> None:
    image = pixels_to_linear(photo())
    grey = apply(SEPIA, image, NEUTRAL).image
    assert np.array_equal(grey[..., 0], grey[..., 1]) and np.array_equal(grey[..., 0], grey[..., 2])
    red, blue = np.zeros((2, 4, 4, 3), np.float32)
    red[..., 0], blue[..., 2] = 0.6, 0.6
    for share, red_is_darker in ((0.0, False), (1.0, True)):
        params = NEUTRAL.model_copy(update={"orthochromatic_share": share})
        of_red, of_blue = (float(apply(SEPIA, patch, params).image.mean()) for patch in (red, blue))
        assert (of_red < of_blue) == red_is_darker


# O2, O5: grain


def flat(value: float, side: int = 200) -> Image:
    return np.full((side, side, 3), value, np.float32)


def grain_of(value: float, **changes: float) -> Image:
    values = {"grain_radius_px": 0.8, "grain_sigma_frac": 0.04, "layer_correlation_ratio": 0.5, **changes}
    return apply(FILM_GRAIN, flat(value), FilmGrainParams.model_validate(values)).image


def test_o2_grain_keeps_the_mean_and_is_strongest_in_mid_tones() -> None:
    values = np.linspace(0.05, 0.95, 19)
    deviation = []
    for value in values.tolist():
        grained = grain_of(value)
        assert float(grained.mean(dtype=np.float64)) == pytest.approx(value, rel=0.01)
        deviation.append(float(grained.std(dtype=np.float64)))
    peak = float(values[int(np.argmax(deviation))])
    assert 0.3 <= peak <= 0.7
    assert float(grain_of(0.5).std()) == pytest.approx(0.04, rel=0.05)
    assert deviation[0] < 0.7 * max(deviation) and deviation[-1] < 0.5 * max(deviation)
    for end in (0.0, 1.0):
        assert np.array_equal(grain_of(end), flat(end))


def test_o2_deviation_over_lightness_is_that_of_a_boolean_model() -> None:
    """Discs at Poisson places, means over squares ten radii wide: Newson's model, simulated."""
    radius, square, squares = 3, 30, 60
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    deviation = {}
    for cover in (0.15, 0.5, 0.85):
        rate = -math.log(1 - cover) / int(disc.sum())
        side = square * squares
        centres = (rng_for(0, "discs", str(cover)).random((side, side), np.float32) < 1 - math.exp(-rate)).astype(
            np.uint8
        )
        covered = cv2.dilate(centres, disc).astype(np.float32)
        assert float(covered.mean()) == pytest.approx(cover, abs=0.01)
        deviation[cover] = float(covered.reshape(squares, square, squares, square).mean(axis=(1, 3)).std())
    table = old_photo_grain.grain_table()
    for cover in (0.15, 0.85):
        assert deviation[cover] / deviation[0.5] == pytest.approx(float(table[round(cover * 255)]), rel=0.07)


def half_power_frequency(radius_px: float) -> float:
    """Cycles per pixel at which the radial mean of the power spectrum has fallen to half of its plateau."""
    side = 512
    power = np.zeros((side, side))
    for seed in range(4):
        grain = old_photo_grain.draw_grain(side, side, radius_px, rng_for(seed, "nps"))
        power += np.abs(np.fft.fft2(old_photo_grain.grain_rows(grain, 0, side))) ** 2
    axis = np.fft.fftfreq(side)
    bins = (np.sqrt(np.add.outer(axis**2, axis**2)) * side).astype(int).ravel()
    radial: NDArray[np.float64] = np.bincount(bins, power.ravel())[1:256] / np.bincount(bins)[1:256]
    centre = (np.arange(1, 256) + 0.5) / side
    # A smooth exponential in the square of frequency, fitted where there is power.
    kept = radial > 0.05 * radial[:8].mean()
    slope = np.polyfit(centre[kept] ** 2, np.log(radial[kept]), 1, w=np.sqrt(np.arange(1, 256)[kept]))[0]
    return float(np.sqrt(np.log(2) / -slope))


def test_o5_half_power_frequency_goes_with_one_over_radius() -> None:
    radii = (1.2, 2.0, 4.0)
    for radius in radii:
        assert half_power_frequency(radius) * radius == pytest.approx(0.257, rel=0.1)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_layers_of_colour_film_have_grain_of_their_own(correlation: float) -> None:
    grained = grain_of(0.5, layer_correlation_ratio=correlation)
    found: NDArray[np.float64] = np.asarray(np.corrcoef(grained.reshape(-1, 3).T))
    assert found[0, 1] == pytest.approx(correlation, abs=0.05) and found[0, 2] == pytest.approx(correlation, abs=0.05)


def test_grain_is_the_same_whatever_rows_are_made_together() -> None:
    grain = old_photo_grain.draw_colour_grain(150, 70, 1.3, 0.4, rng_for(0), 0.5)
    whole = old_photo_grain.grain_rows(grain, 0, 150)
    parts = [old_photo_grain.grain_rows(grain, top, min(64, 150 - top)) for top in range(0, 150, 64)]
    assert whole.shape == (150, 70, 3)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    small = rng_for(1).random(old_photo_fields.small_size(150, 70, 8), np.float32)
    tall = old_photo_fields.enlarged(small, 8, 0, 150, 70)
    pieces = [old_photo_fields.enlarged(small, 8, top, min(64, 150 - top), 70) for top in range(0, 150, 64)]
    np.testing.assert_allclose(np.concatenate(pieces), tall, atol=1e-6)


# O3, O4: damage


def test_o3_nothing_changes_outside_the_mask() -> None:
    base = photo()
    for seed in range(3):
        step = sample_step(PHOTO_DAMAGE, 0.8, rng_for(seed, "params"), seed_for(seed, "pixels"))
        rendered = replay_with(base, [step], Scene(), {"photo_damage": PHOTO_DAMAGE})
        change = np.abs(to_pixels(rendered.image).astype(int) - base).max(axis=2)
        outside = rendered.layers["damage_classes"] == 0
        assert 0.3 < outside.mean() < 1
        assert change[outside].max() <= 1
        assert change[~outside].mean() > 3


@pytest.mark.parametrize("area_frac", [0.02, 0.06, 0.15])
@pytest.mark.parametrize("size", [(300, 400), (1024, 1024), (700, 90)])
def test_o4_stains_cover_the_area_asked_for(area_frac: float, size: tuple[int, int]) -> None:
    rendered = apply(PHOTO_DAMAGE, np.full((*size, 3), 0.5, np.float32), harmed(stain_area_frac=area_frac))
    inside = rendered.layers["damage_classes"] == CLASS_BITS["stain"]
    assert float(inside.mean()) == pytest.approx(area_frac, rel=0.05)
    assert rendered.realised["stain_area_frac"] == pytest.approx(float(inside.mean()))


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH))
def test_each_kind_of_damage_has_its_bit(name: str) -> None:
    base = pixels_to_linear(photo())
    assert np.array_equal(apply(PHOTO_DAMAGE, base, UNHARMED).image, base)
    rendered = apply(PHOTO_DAMAGE, base, harmed(**ONE_OF_EACH[name]))
    codes = set(np.unique(rendered.layers["damage_classes"]).tolist())
    assert codes == {0, CLASS_BITS[name]}
    covered = {key for key, value in rendered.realised.items() if value > 0}
    assert covered == {f"{name}_area_frac"}


def test_stains_are_brown_and_dark_at_their_edge() -> None:
    grey = np.full((500, 500, 3), 0.5, np.float32)
    rendered = apply(PHOTO_DAMAGE, grey, harmed(stain_area_frac=0.15, stain_density=0.3))
    inside = (rendered.layers["damage_classes"] > 0).astype(np.uint8)
    red, green, blue = (float(rendered.image[..., channel][inside > 0].mean()) for channel in range(3))
    assert blue < green < red < 0.5
    core = cv2.erode(inside, np.ones((31, 31), np.uint8))
    edge = inside - cv2.erode(inside, np.ones((7, 7), np.uint8))
    darkness = density(rendered.image[..., 2] / np.float32(0.5))
    assert core.any() and darkness[edge > 0].mean() > 1.3 * darkness[core > 0].mean()


def test_scratches_bare_the_paper_and_one_more_moves_no_dust() -> None:
    dark = np.full((400, 400, 3), 0.02, np.float32)
    few, more = (apply(PHOTO_DAMAGE, dark, harmed(dust_count=80, scratch_count=count)) for count in (4, 5))
    assert float(few.image.max()) > 0.2
    bit = CLASS_BITS["dust"]
    assert np.array_equal(few.layers["damage_classes"] & bit, more.layers["damage_classes"] & bit)
    assert more.realised["scratch_area_frac"] > few.realised["scratch_area_frac"]


@pytest.mark.parametrize(("mark", "count"), [("crease_count", 1), ("scratch_count", 4)])
def test_lines_are_not_dashed(mark: str, count: int) -> None:
    """On an even dark print what a fold or a scratch bares is one piece, whatever its wear; short ends may be loose."""
    dark = np.full((600, 600, 3), 0.02, np.float32)
    for seed in range(6):
        rendered = PHOTO_DAMAGE.apply(dark, harmed(**{mark: count}), Scene(), rng_for(seed, "lines"))
        bare = (rendered.image[..., 1] > 0.04).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(bare, connectivity=8)
        areas = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
        assert areas[:count].sum() >= 0.9 * areas.sum(), (seed, areas)


def test_marks_keep_their_share_of_the_photo_at_another_resolution() -> None:
    params = harmed(stain_area_frac=0.05, scratch_count=12, dust_count=200, foxing_count=30, crease_count=1)
    small, large = (apply(PHOTO_DAMAGE, np.full((n, n, 3), 0.3, np.float32), params).image for n in (500, 1000))
    change = [float(np.abs(image - 0.3).mean()) for image in (small, large)]
    assert change[1] == pytest.approx(change[0], rel=0.35)


# Whole photos


def test_old_photo_is_one_silver_image_on_tinted_paper() -> None:
    """Grain is common to all channels: where nothing is damaged they tell the same, whatever the tint."""
    step = sample_step(OLD_PHOTO, 0.6, rng_for(2, "params"), SEED)
    clean = {**step.params, **UNHARMED.model_dump(), "mottle_density": 0.0, "border_density": 0.0}
    params = old_photo.OldPhotoParams.model_validate({**clean, "paper_shade_frac": 0.0})
    image = apply(OLD_PHOTO, np.full((128, 128, 3), 0.3, np.float32), params).image
    logs = density(image).reshape(-1, 3)
    assert logs.std(axis=0).min() > 0.005
    assert np.corrcoef(logs.T).min() > 0.999


def test_colour_photo_is_its_parts() -> None:
    """Without blur, grain, paper and damage what is left is fading."""
    step = sample_step(OLD_COLOR_PHOTO, 0.7, rng_for(3, "params"), SEED)
    bare = {"mottle_density": 0.0, "border_density": 0.0, "paper_shade_frac": 0.0, "grain_sigma_frac": 0.0}
    soft = {"lens_sigma_px": 0.01, "print_sigma_px": 0.01}
    params = old_photo.OldColorPhotoParams.model_validate({**step.params, **UNHARMED.model_dump(), **bare, **soft})
    image = pixels_to_linear(photo(60, 90))
    fading = FadeParams.model_validate({key: getattr(params, key) for key in FadeParams.model_fields})
    due = apply(FADE, image, fading).image
    np.testing.assert_allclose(apply(OLD_COLOR_PHOTO, image, params).image, due, rtol=4e-3)


@pytest.mark.parametrize("degradation", ALL, ids=lambda found: str(found.name))
def test_severity_is_monotone_on_photos(degradation: Degradation[Any]) -> None:
    photos = [photo(200, 260), data.astronaut()[::2, ::2].copy(), data.rocket()[::2, ::2].copy()]
    distance = []
    for severity in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        step = sample_step(degradation, severity, rng_for(5, "params"), SEED)
        moved = []
        for base in photos:
            replayed = replay_with(base, [step], Scene(), {degradation.name: degradation})
            moved.append(float(np.abs(replayed.image - replayed.target).mean(dtype=np.float64)))
        distance.append(float(np.median(moved)))
    assert distance == sorted(distance), distance
    assert distance[-1] > 1.5 * distance[1]


@pytest.mark.parametrize("degradation", BLACK_AND_WHITE, ids=lambda found: str(found.name))
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_target_of_black_and_white_prints_is_what_film_recorded(degradation: Degradation[Any], share: float) -> None:
    """No colour, no curve: linear light, the same in three channels, weighted as the plate saw it."""
    image = pixels_to_linear(photo(150, 170))
    sampled = degradation.sample(0.7, rng_for(1, "params"))
    params = sampled.model_copy(update={"orthochromatic_share": share})
    target = apply(degradation, image, params).target
    weights = share * np.array([0.1, 0.5, 0.4]) + (1 - share) * np.array([0.2126, 0.7152, 0.0722])
    due = (image.astype(np.float64) * weights).sum(axis=2)
    for channel in range(3):
        np.testing.assert_allclose(target[..., channel], due, atol=2e-4)
    np.testing.assert_allclose(apply(degradation, target, params).target, target, atol=1e-5)


def test_prints_show_grain_by_their_resolution() -> None:
    """Deviation of means over pixels: the field itself, made fine and averaged in blocks, against `resolved_share`."""
    radius_px, fine = 0.5, 8
    grain = old_photo_grain.draw_grain(1600, 1600, radius_px * fine, rng_for(4, "fine"))
    field = old_photo_grain.grain_rows(grain, 0, 1600)
    means = field.reshape(200, fine, 200, fine).mean(axis=(1, 3))
    due = float(means.std() / field.std())
    assert old_photo_grain.resolved_share(radius_px) == pytest.approx(due, rel=0.03)
    shares = [old_photo_grain.resolved_share(radius) for radius in (0.01, 0.039, 0.2, 1.0, 5.0, 50.0)]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1, abs=1e-3)
    step = sample_step(OLD_PHOTO, 0.8, rng_for(2, "params"), SEED)
    bare = {**step.params, **UNHARMED.model_dump(), "mottle_density": 0.0, "border_density": 0.0}
    params = old_photo.OldPhotoParams.model_validate({**bare, "paper_shade_frac": 0.0})
    small, large = (apply(OLD_PHOTO, np.full((n, n, 3), 0.3, np.float32), params).image for n in (200, 1200))
    assert float(small[..., 1].std()) < 0.5 * float(large[..., 1].std())


@pytest.mark.parametrize("degradation", ALL, ids=lambda found: str(found.name))
@pytest.mark.parametrize("size", [(1, 1), (1, 33), (65, 2), (63, 131)])
def test_any_size_input_stays_and_bytes_repeat(degradation: Degradation[Any], size: tuple[int, int]) -> None:
    image = rng_for(0).random((*size, 3), np.float32)
    before = image.copy()
    for severity in (0.0, 1.0):
        params = degradation.sample(severity, rng_for(1, "params"))
        first, again = (apply(degradation, image, params) for _ in range(2))
        assert first.image.shape == image.shape and np.isfinite(first.image).all()
        assert (first.target is image) == (degradation not in BLACK_AND_WHITE)
        assert first.target.shape == image.shape and np.array_equal(first.target, again.target)
        assert np.array_equal(first.image, again.image) and np.array_equal(image, before)


@pytest.mark.parametrize(
    ("degradation", "field", "value"),
    [
        (FADE, "keep_red_ratio", 0.0),
        (FADE, "base_blue_density", -0.1),
        (SEPIA, "black_density", 0.0),
        (SEPIA, "orthochromatic_share", 1.5),
        (FILM_GRAIN, "grain_radius_px", 0.0),
        (FILM_GRAIN, "layer_correlation_ratio", 1.1),
        (PHOTO_DAMAGE, "torn_corner_count", 5),
        (PHOTO_DAMAGE, "dust_count", -1),
        (PHOTO_DAMAGE, "stain_area_frac", 2.0),
        (OLD_PHOTO, "lens_sigma_px", 0.0),
        (OLD_COLOR_PHOTO, "fibre_px", 0.0),
    ],
)
def test_bad_parameters_are_refused_by_name(degradation: Degradation[Any], field: str, value: float) -> None:
    step = sample_step(degradation, 0.5, rng_for(0), SEED)
    bad = step.model_copy(update={"params": {**step.params, field: value}})
    with pytest.raises(ValueError, match=rf"(?s)'{degradation.name}' do not fit.*{field}"):
        replay_with(photo(16, 16), [bad], Scene(), {degradation.name: degradation})


def test_class_bits_are_bits() -> None:
    assert sorted(CLASS_BITS.values()) == [1 << k for k in range(len(CLASS_BITS))]
    assert set(ONE_OF_EACH) == set(CLASS_BITS) == set(old_photo_damage.CLASS_BITS)
