"""Rain patterns laid over a photo: both blends, placement, the bank's images, and what replay needs."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from skimage import data

from degradations import rain_pattern
from degradations.base import Pattern, Scene, replay_with, sample_step
from degradations.rain_pattern import RAIN_PATTERN, RainPatternParams, rain_pattern_image
from pairforge.image import Image, linear_to_srgb, pixels_to_linear, to_pixels
from pairforge.rng import rng_for, seed_for

SEED = seed_for(1, "pixels")
PLAIN = RainPatternParams(
    gain=(0.5,),
    zoom=(1.0,),
    angle_deg=(0.0,),
    shift_x_frac=(0.0,),
    shift_y_frac=(0.0,),
    flip_x=(False,),
    blend="over",
    drop_radiance=0.8,
)
CATALOG = {"rain_pattern": RAIN_PATTERN}


def scene_of(*patterns: Pattern) -> Scene:
    return Scene(patterns={"rain": patterns})


def laid(image: Image, params: RainPatternParams, *patterns: Pattern) -> Any:
    return rain_pattern.apply_rain_pattern(image, params, scene_of(*patterns), rng_for(1, "r"))


def codes_of(light: float, dtype: type = np.uint8) -> int:
    return round(float(linear_to_srgb(np.full((1, 1, 3), light, np.float32))[0, 0, 0]) * np.iinfo(dtype).max)


@pytest.fixture(scope="module")
def bank() -> tuple[Pattern, ...]:
    return tuple(rain_pattern_image(index, 7) for index in range(4))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("blend", ["over", "added"])
def test_blends_follow_their_equations_in_linear_light(dtype: type, blend: str) -> None:
    pattern: Pattern = np.full((40, 40, 3), codes_of(0.3, dtype), dtype)
    image = np.random.default_rng(0).uniform(0, 1, (40, 40, 3)).astype(np.float32)
    params = RainPatternParams.model_validate({**PLAIN.model_dump(), "blend": blend, "gain": (2.0,)})
    rendered = laid(image, params, pattern)
    drops = np.array(rendered.realised["drop_rgb"])
    alpha = 2 * 0.3
    expected = image * (1 - alpha if blend == "over" else 1) + alpha * drops
    assert np.abs(rendered.image - expected).max() < 0.01
    assert rendered.layers["rain_pattern"].mean() / 65535 == pytest.approx(alpha, abs=0.01)


def test_two_patterns_hide_what_is_behind_one_after_the_other() -> None:
    first, second = (np.full((32, 32, 3), codes_of(light), np.uint8) for light in (0.4, 0.7))
    two = PLAIN.model_copy(
        update={name: value * 2 for name, value in PLAIN.model_dump().items() if isinstance(value, tuple)}
    )
    image = np.full((32, 32, 3), 0.9, np.float32)
    rendered = laid(image, two.model_copy(update={"gain": (1.0, 0.5)}), first, second)
    assert rendered.layers["rain_pattern"].mean() / 65535 == pytest.approx(1 - 0.6 * 0.65, abs=0.01)


def test_black_changes_nothing_and_opacity_has_a_limit() -> None:
    image = np.random.default_rng(0).uniform(0, 1, (33, 20, 3)).astype(np.float32)
    black, white = np.zeros((50, 50, 3), np.uint8), np.full((50, 50, 3), 255, np.uint8)
    assert np.abs(laid(image, PLAIN, black).image - image).max() < 1e-6
    assert laid(image, PLAIN.model_copy(update={"gain": (20.0,)}), white).layers["rain_pattern"].max() < 65535


def dot(height: int, width: int, row: int, column: int) -> Pattern:
    pattern = np.zeros((height, width, 3), np.uint8)
    pattern[row, column] = 255
    return pattern


def place_of(params: RainPatternParams, pattern: Pattern, height: int, width: int) -> tuple[float, float]:
    layer = laid(np.zeros((height, width, 3), np.float32), params, pattern).layers["rain_pattern"].astype(float)
    assert layer.sum() > 0
    rows, columns = np.mgrid[:height, :width]
    return float((layer * columns).sum() / layer.sum()), float((layer * rows).sum() / layer.sum())


def test_placement() -> None:
    """A dot right of and above the middle of the pattern, in a frame of the same size."""
    pattern = dot(101, 101, 40, 70)
    put = PLAIN.model_copy
    assert place_of(PLAIN, pattern, 101, 101) == pytest.approx((70, 40), abs=0.05)
    assert place_of(put(update={"flip_x": (True,)}), pattern, 101, 101) == pytest.approx((30, 40), abs=0.05)
    shifted = put(update={"shift_x_frac": (10 / 101,), "shift_y_frac": (20 / 101,)})
    assert place_of(shifted, pattern, 101, 101) == pytest.approx((80, 60), abs=0.05)
    around = put(update={"shift_x_frac": (0.5,)})
    assert place_of(around, pattern, 101, 101) == pytest.approx((19.5, 40), abs=0.05), "patterns repeat"
    assert place_of(put(update={"angle_deg": (90.0,)}), pattern, 101, 101) == pytest.approx((60, 70), abs=0.1)
    assert place_of(put(update={"zoom": (2.0,)}), pattern, 101, 101) == pytest.approx((90, 30), abs=0.2)


@pytest.mark.parametrize("size", [(40, 60), (300, 200)])
def test_a_pattern_of_any_size_covers_the_frame(size: tuple[int, int]) -> None:
    pattern = np.full((70, 50, 3), 200, np.uint8)
    layer = laid(np.zeros((*size, 3), np.float32), PLAIN, pattern).layers["rain_pattern"]
    assert layer.min() == layer.max() > 0


def test_shrinking_keeps_the_light_of_fine_streaks() -> None:
    pattern = np.zeros((800, 800, 3), np.uint16)
    pattern[:, ::16] = 65535
    layer = laid(np.zeros((50, 50, 3), np.float32), PLAIN.model_copy(update={"gain": (1.0,)}), pattern)
    assert np.ptp(layer.layers["rain_pattern"]) < 0.2 * 65535


# The bank


def test_patterns_are_their_index_and_seed(bank: tuple[Pattern, ...]) -> None:
    assert np.array_equal(rain_pattern_image(2, 7), bank[2])
    assert not np.array_equal(rain_pattern_image(2, 8), bank[2])
    for pattern in bank:
        assert pattern.dtype == np.uint8 and pattern.shape == (rain_pattern.PATTERN_PX,) * 2 + (3,)
        assert np.quantile(pattern, 0.999) > 150 and np.median(pattern) < 128


def test_no_two_patterns_of_a_bank_are_alike() -> None:
    rows = []
    for index in range(24):
        small = rain_pattern_image(index, 3)[::2, ::2, 1].astype(np.float64)
        rows.append(small.ravel())
    correlation = np.corrcoef(rows) - np.eye(24)
    assert np.abs(correlation).max() < 0.9


def test_patterns_repeat_without_a_seam(bank: tuple[Pattern, ...]) -> None:
    for pattern in bank:
        plane = pattern[..., 1].astype(np.float64)
        across = np.abs(plane[:, 0] - plane[:, -1]).mean()
        inner = np.abs(np.diff(plane, axis=1)).mean()
        assert across < 2 * inner + 1


# Parameters, photos, replay


def test_one_to_three_patterns_are_taken_and_more_with_severity() -> None:
    counts = [
        [RAIN_PATTERN.sample(severity, rng_for(seed, "p")).pattern_count for seed in range(60)]
        for severity in (0.0, 0.5, 1.0)
    ]
    assert {count for each in counts for count in each} == {1, 2, 3}
    assert np.mean(counts[0]) == 1 < np.mean(counts[1]) < np.mean(counts[2])


def rank_correlation(values: NDArray[np.float64]) -> float:
    """Spearman's, with the order in which they come."""
    return float(np.corrcoef(np.argsort(np.argsort(values)), np.arange(len(values)))[0, 1])


def test_change_grows_with_severity(bank: tuple[Pattern, ...]) -> None:
    levels = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    change = np.zeros((3, 6))
    for row, name in enumerate(("astronaut", "chelsea", "rocket")):
        image = pixels_to_linear(np.ascontiguousarray(getattr(data, name)()[::2, ::2]))
        for column, severity in enumerate(levels):
            params = RAIN_PATTERN.sample(severity, rng_for(5, "same spread"))
            out = laid(image, params, *bank).image
            change[row, column] = np.abs(linear_to_srgb(out) - linear_to_srgb(image)).mean()
    assert rank_correlation(np.median(change, axis=0)) >= 0.95


def test_every_field_moves_pixels(bank: tuple[Pattern, ...]) -> None:
    base = np.ascontiguousarray(data.coffee()[::3, ::3])
    step = sample_step(RAIN_PATTERN, 1.0, rng_for(4, "params"), SEED)
    params = RainPatternParams.model_validate(step.params)
    before = to_pixels(replay_with(base, [step], scene_of(*bank), CATALOG).image)
    for field, value in params.model_dump().items():
        for index in range(len(value) if isinstance(value, tuple) else 1):
            if field == "blend":
                other: Any = "added" if value == "over" else "over"
            elif isinstance(value, tuple):
                nudged = (not value[index]) if field == "flip_x" else value[index] * 0.9
                other = [*value[:index], nudged, *value[index + 1 :]]
            else:
                other = value * 0.9
            changed = step.model_copy(update={"params": {**step.params, field: other}})
            after = to_pixels(replay_with(base, [changed], scene_of(*bank), CATALOG).image)
            assert not np.array_equal(before, after), (field, index)


def test_replay_is_exact_and_pure(bank: tuple[Pattern, ...]) -> None:
    base = np.ascontiguousarray(data.coffee()[::3, ::3])
    before = base.copy(), [pattern.copy() for pattern in bank]
    step = sample_step(RAIN_PATTERN, 0.9, rng_for(2, "params"), SEED)
    first, second = (replay_with(base, [step], scene_of(*bank), CATALOG) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert np.array_equal(base, before[0]) and np.array_equal(to_pixels(first.target), base)
    assert all(np.array_equal(*pair) for pair in zip(bank, before[1], strict=True))


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (17, 33), (90, 31)])
def test_any_size_and_light_above_one(size: tuple[int, int], bank: tuple[Pattern, ...]) -> None:
    image = np.random.default_rng(0).uniform(0, 4, (*size, 3)).astype(np.float32)
    for severity in (0.0, 1.0):
        rendered = laid(image, RAIN_PATTERN.sample(severity, rng_for(1, "p")), *bank)
        assert rendered.image.shape == image.shape and rendered.image.dtype == np.float32
        assert np.isfinite(rendered.image).all() and rendered.target is image


def test_bad_input_is_refused(bank: tuple[Pattern, ...]) -> None:
    base = np.zeros((16, 16, 3), np.uint8)
    step = sample_step(RAIN_PATTERN, 1.0, rng_for(4, "params"), SEED)
    with pytest.raises(ValueError, match="needs patterns"):
        replay_with(base, [step], Scene(), CATALOG)
    with pytest.raises(ValueError, match="takes 3 patterns; this scene has 1"):
        replay_with(base, [step], scene_of(bank[0]), CATALOG)
    grey = np.zeros((8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"a rain pattern is \(h, w, 3\)"):
        laid(pixels_to_linear(base), PLAIN, grey)
    for change in ({"gain": (0.1, 0.2)}, {"zoom": (0.0,)}, {"gain": ()}, {"angle_deg": (200.0,)}, {"blend": "screen"}):
        with pytest.raises(ValidationError):
            RainPatternParams.model_validate({**PLAIN.model_dump(), **change})
