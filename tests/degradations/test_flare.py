"""Flare: additive and linear in the source, energy of the scatter pattern, spikes, ghosts on their line."""

import itertools
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from skimage import data

from degradations.base import Degradation, Scene, replay_with, sample_step
from degradations.flare import (
    FLARE,
    FLARE_LAYER_SCALE,
    FLARE_LIGHTS,
    FlareLightsParams,
    FlareParams,
    Ghost,
    Source,
    add_ghost,
    apply_flare,
    apply_flare_lights,
    core_light,
    sample_flare,
    sample_flare_lights,
)
from degradations.flare_pattern import PATTERN_PX, PUPIL_PX, at_wavelength, diffract, draw_pupil, scatter_pattern
from pairforge.image import Image, Plane, luminance, pixels_to_linear, to_float
from pairforge.rng import rng_for

SCENE = Scene()


def make_params(**changes: object) -> FlareParams:
    """A source left of the frame: it has no core there."""
    values = sample_flare(0.7, rng_for(1)).model_dump()
    return FlareParams.model_validate({**values, "source_x_frac": -0.05, "source_y_frac": 0.3, **changes})


def photo(name: str) -> Image:
    return pixels_to_linear(getattr(data, name)()[:240, :300])


def clean_pupil(blades: int, roundness: float) -> Plane:
    lens = make_params(aperture_blades=blades, aperture_roundness=roundness, dust_count=0, scratch_count=0)
    return draw_pupil(lens, rng_for(0))


def test_f1_flare_is_never_negative_and_does_not_depend_on_the_image() -> None:
    params = make_params()
    flares = []
    for image in (photo("astronaut"), photo("coffee")):
        rendered = apply_flare(image, params, SCENE, rng_for(2))
        assert rendered.target is image
        flares.append(rendered.image - image)
    assert min(float(flare.min()) for flare in flares) >= 0
    assert float((np.abs(flares[0] - flares[1]) / (1 + flares[0])).max()) < 1e-6


@pytest.mark.parametrize("wavelength_nm", [400.0, 480.0, 550.0, 620.0, 700.0])
def test_f2_every_wavelength_keeps_its_energy(wavelength_nm: float) -> None:
    lens = make_params()
    for pupil in (clean_pupil(6, 0.3), draw_pupil(lens, rng_for(3))):
        scaled = at_wavelength(diffract(pupil), wavelength_nm, PUPIL_PX)
        assert float(scaled.sum(dtype=np.float64)) == pytest.approx(1, abs=1e-3)


def test_f2_scatter_pattern_has_unit_energy_and_no_negative_light() -> None:
    pattern = scatter_pattern(make_params(), rng_for(3))
    assert pattern.sum(axis=(0, 1), dtype=np.float64) == pytest.approx([1, 1, 1], abs=1e-3)
    assert float(pattern.min()) >= 0
    assert float(pattern[0].max()) == float(pattern[:, -1].max()) == 0


def test_f2_first_dark_ring_grows_with_wavelength() -> None:
    disc = np.zeros((PUPIL_PX, PUPIL_PX), np.float32)
    cv2.circle(disc, (PUPIL_PX // 2, PUPIL_PX // 2), 20 * 16, 1, -1, cv2.LINE_AA, 4)
    psf = diffract(disc)

    def ring_px(wavelength_nm: float) -> float:
        profile = at_wavelength(psf, wavelength_nm)[PATTERN_PX // 2, PATTERN_PX // 2 :].astype(np.float64)
        least = next(r for r in range(3, 80) if profile[r] < profile[r + 1])
        left, middle, right = profile[least - 1 : least + 2]
        return float(least + 0.5 + 0.5 * (left - right) / (left - 2 * middle + right))

    assert ring_px(700) == pytest.approx(1.22 * PUPIL_PX / 40, rel=0.04)
    for wavelength_nm in (420, 500, 600):
        assert ring_px(wavelength_nm) / ring_px(700) == pytest.approx(wavelength_nm / 700, rel=0.03)


@pytest.mark.parametrize(("blades", "spikes"), [(5, 10), (6, 6), (7, 14), (8, 8)])
def test_f3_spike_count(blades: int, spikes: int) -> None:
    psf = diffract(clean_pupil(blades, 0.0))
    centre = ((PUPIL_PX - 1) / 2, (PUPIL_PX - 1) / 2)
    polar = cv2.warpPolar(psf, (300, 720), centre, 300, cv2.INTER_LINEAR)
    around = polar[:, 40:250].sum(axis=1)
    around = cv2.GaussianBlur(np.tile(around, 3)[None], (0, 0), 3)[0, 720:1440]
    peaks = (around > np.roll(around, 1)) & (around >= np.roll(around, -1)) & (around > 0.35 * around.max())
    assert int(peaks.sum()) == spikes


def test_f4_twice_the_radiance_is_twice_the_flare() -> None:
    image = photo("chelsea")
    once, twice = (
        apply_flare(image, make_params(source_radiance=radiance), SCENE, rng_for(4)).image - image
        for radiance in (5e3, 1e4)
    )
    assert twice == pytest.approx(2 * once, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("position", [-0.8, -0.3, 0.2, 0.7])
def test_f5_ghosts_lie_on_the_line_through_centre_and_source(position: float) -> None:
    width, height = 401, 301
    source = Source(330.0, 60.0, 1e5, 2.0, (1.0, 1.0, 1.0), "placed")
    light = np.zeros((height, width, 3), np.float32)
    ghost = Ghost(position, 0.06, 1e-4, 0.3, 0.1, (1.02, 1.0, 0.98), (1.0, 0.8, 0.6))
    row = add_ghost(light, ghost, source, make_params(aperture_blades=6))
    assert (row["x_px"], row["y_px"]) == pytest.approx((200 + position * 130, 150 - position * 90))
    y, x = np.mgrid[:height, :width]
    for channel in range(3):
        weight = light[..., channel] / light[..., channel].sum(dtype=np.float64)
        offset_x, offset_y = (x * weight).sum() - 200, (y * weight).sum() - 150
        across = (offset_x * 90 + offset_y * 130) / np.hypot(130, 90)
        assert abs(float(across)) < 1
        assert np.hypot(offset_x - position * 130, offset_y + position * 90) < 1


def test_ghost_keeps_the_energy_of_two_reflections() -> None:
    source = Source(300.0, 80.0, 1e5, 2.0, (1.0, 1.0, 1.0), "placed")
    light = np.zeros((400, 400, 3), np.float32)
    ghost = Ghost(-0.5, 0.1, 1e-4, 0.0, 0.02, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    add_ghost(light, ghost, source, make_params(aperture_roundness=1.0))
    assert float(light[..., 1].sum()) == pytest.approx(source.energy * 1e-4, rel=0.05)


def test_energy_of_a_source_is_the_sum_of_its_core() -> None:
    source = Source(150.0, 150.0, 1e4, 3.0, (1.0, 0.5, 0.25), "placed")
    sums = core_light(301, 301, source).sum(axis=(0, 1), dtype=np.float64)
    assert sums == pytest.approx(np.array(source.colour) * source.energy, rel=0.01)


def test_target_keeps_the_placed_source_and_loses_its_flare() -> None:
    image = photo("coffee")
    rendered = apply_flare(image, make_params(source_x_frac=0.5, source_y_frac=0.4), SCENE, rng_for(5))
    (source,) = rendered.realised["sources"]
    row, column = round(source["y_px"]), round(source["x_px"])
    assert source["origin"] == "placed"
    assert float(rendered.target[row, column].min()) > 1
    assert float((rendered.target - image).min()) >= 0
    flare = luminance(rendered.image - rendered.target)
    codes = rendered.layers["flare"].astype(np.float32)
    unclipped = (codes < 65535) & (luminance(rendered.target) < 10)
    assert codes.dtype == np.float32 and rendered.layers["flare"].dtype == np.uint16
    assert float(np.abs(codes / FLARE_LAYER_SCALE - flare)[unclipped].max()) < 1 / FLARE_LAYER_SCALE


def test_saturated_lamps_are_found_with_the_colour_of_their_rim() -> None:
    image = np.full((200, 300, 3), 0.05, np.float32)
    cv2.circle(image, (80, 60), 7, (0.9, 0.45, 0.09), -1)
    cv2.circle(image, (80, 60), 5, (1.0, 1.0, 1.0), -1)
    cv2.circle(image, (220, 140), 3, (1.0, 1.0, 1.0), -1)
    image[10, 10] = 1.0
    rendered = apply_flare_lights(image, sample_flare_lights(0.5, rng_for(6)), SCENE, rng_for(0))
    large, small = rendered.realised["sources"]
    assert rendered.target is image
    assert (large["x_px"], large["y_px"]) == pytest.approx((80, 60), abs=0.5)
    assert (small["x_px"], small["y_px"]) == pytest.approx((220, 140), abs=0.5)
    assert large["origin"] == small["origin"] == "detected"
    assert large["colour"] == pytest.approx([1.0, 0.5, 0.1], abs=0.03)


def test_a_white_sky_is_no_lamp() -> None:
    image = np.full((200, 300, 3), 0.2, np.float32)
    image[:80] = 1.0
    rendered = apply_flare_lights(image, sample_flare_lights(0.5, rng_for(6)), SCENE, rng_for(0))
    (source,) = rendered.realised["sources"]
    assert source["origin"] == "brightest" and source["y_px"] < 80
    assert rendered.target is image


def test_chain_gives_image_and_target_the_same_source() -> None:
    base = data.coffee()[:160, :200]
    steps = [sample_step(FLARE, 0.5, rng_for(20), "0" * 32), sample_step(FLARE, 0.5, rng_for(21), "1" * 32)]
    steps[1] = steps[1].model_copy(update={"params": {**steps[1].params, "source_x_frac": 0.5, "source_y_frac": 0.3}})
    rendered = replay_with(base, steps, SCENE, {"flare": FLARE})
    assert float((rendered.image - rendered.target).min()) >= -1e-4
    lit = (rendered.target.min(axis=2) > 0.999) & (to_float(base).min(axis=2) < 0.97)
    y, x = np.nonzero(lit[:100, 50:150])
    assert (x.mean() + 50, y.mean()) == pytest.approx((99.5, 47.5), abs=2)


def test_severity_raises_the_flare() -> None:
    image = photo("chelsea")

    def strength(severity: float, key: int) -> float:
        rendered = apply_flare(image, sample_flare(severity, rng_for(7, key)), SCENE, rng_for(key))
        return float(np.median(rendered.image - rendered.target))

    means = [np.mean([strength(severity, key) for key in range(3)]) for severity in (0, 0.33, 0.67, 1)]
    assert all(after > 1.5 * before for before, after in itertools.pairwise(means))
    assert means[0] < 0.005 < 0.02 < means[-1]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 21), (61, 130)])
def test_any_size_and_no_side_effect(height: int, width: int) -> None:
    image = (rng_for(8).random((height, width, 3)) * 1.5).astype(np.float32)
    before = image.copy()
    both: tuple[Degradation[Any], ...] = (FLARE, FLARE_LIGHTS)
    for degradation in both:
        params = degradation.sample(0.6, rng_for(9))
        first, second = (degradation.apply(image, params, SCENE, rng_for(10)) for _ in range(2))
        assert first.image.shape == image.shape and first.image.dtype == first.target.dtype == np.float32
        assert np.array_equal(first.image, second.image) and np.array_equal(image, before)
        assert np.isfinite(first.image).all()


def nudged(value: float) -> float:
    return value + 1 if isinstance(value, int) else value * 1.05 + 0.003


@cache
def rendered_with(name: str) -> Image:
    params = make_params(source_x_frac=0.4, aperture_roundness=0.3)
    if name:
        params = params.model_copy(update={name: nudged(getattr(params, name))})
    return apply_flare(photo("chelsea")[:100, :120], params, SCENE, rng_for(11)).image


@pytest.mark.parametrize("name", sorted(FlareParams.model_fields))
def test_every_parameter_moves_pixels(name: str) -> None:
    assert float(np.abs(rendered_with(name) - rendered_with("")).max()) > 1e-5


def test_lights_share_the_lens_and_params_survive_json() -> None:
    assert set(FlareLightsParams.model_fields) < set(FlareParams.model_fields)
    for degradation in (FLARE, FLARE_LIGHTS):
        params = degradation.sample(0.4, rng_for(12))
        assert degradation.params_type.model_validate_json(params.model_dump_json()) == params
