"""Flare: additive and linear in the source, energy of the scatter pattern, spikes, ghosts on their line, banks."""

import itertools
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from degradations.base import Degradation, Rendered, Scene, replay_with, sample_step
from degradations.flare import (
    FLARE,
    FLARE_LAYER_SCALE,
    FLARE_LIGHTS,
    FlareLightsParams,
    FlareParams,
    apply_flare,
    apply_flare_lights,
    sample_flare,
    sample_flare_lights,
)
from degradations.flare_bank import (
    FLARE_OVERLAY,
    FLARE_PATTERN_PX,
    FlareOverlayParams,
    flare_pattern_image,
    sample_flare_overlay,
)
from degradations.flare_ghosts import Ghost, add_ghost, aperture_images
from degradations.flare_pattern import PATTERN_PX, PUPIL_PX, at_wavelength, diffract, draw_pupil, scatter_pattern
from degradations.flare_sources import Source, blackbody_colour, with_source
from pairforge.image import Image, Pixels, Plane, luminance, pixels_to_linear, to_float, to_pixels
from pairforge.records import Step
from pairforge.rng import rng_for

SCENE = Scene()
EVERY: tuple[Degradation[Any], ...] = (FLARE, FLARE_LIGHTS, FLARE_OVERLAY)
BY_NAME = {degradation.name: degradation for degradation in EVERY}
DARK = np.zeros((420, 420, 3), np.float32)


def make_params(**changes: object) -> FlareParams:
    """A source left of the frame: it has no core there."""
    values = sample_flare(0.7, rng_for(1)).model_dump()
    return FlareParams.model_validate({**values, "source_x_frac": -0.05, "source_y_frac": 0.3, **changes})


def only_scatter(**changes: object) -> FlareParams:
    """A white lamp in the middle of the frame, whose scatter ends inside it."""
    inside = {"source_x_frac": 0.5, "source_y_frac": 0.5, "source_temperature_k": 6500.0, "scatter_radius_frac": 0.48}
    return make_params(**{**inside, "source_radius_frac": 0.003, "ghost_count": 0, "veil_frac": 0.0, **changes})


def photo(name: str) -> Image:
    return pixels_to_linear(getattr(data, name)()[:240, :300])


def clean_pupil(blades: int, roundness: float) -> Plane:
    lens = make_params(aperture_blades=blades, aperture_roundness=roundness, dust_count=0, scratch_count=0)
    return draw_pupil(lens, rng_for(0))


def added(image: Image, params: FlareParams, key: int = 2) -> Image:
    rendered = apply_flare(image, params, SCENE, rng_for(key))
    return rendered.image - rendered.target


# Physics


def test_f1_flare_is_never_negative_and_does_not_depend_on_the_image() -> None:
    params = make_params()
    flares = []
    for image in (photo("astronaut"), photo("coffee")):
        rendered = apply_flare(image, params, SCENE, rng_for(2))
        assert rendered.target is image
        flares.append(rendered.image - image)
    assert min(float(flare.min()) for flare in flares) >= 0
    assert float((np.abs(flares[0] - flares[1]) / (1 + flares[0])).max()) < 1e-6


def test_f1_eight_bit_pairs_still_differ_by_the_flare() -> None:
    base = np.ascontiguousarray(data.astronaut()[:240, :300])
    for degradation, scene in ((FLARE, SCENE), (FLARE_OVERLAY, bank_scene())):
        step = sample_step(degradation, 0.3, rng_for(31), "0" * 32)
        rendered = replay_with(base, [step], scene, BY_NAME)
        lq, hq = to_pixels(rendered.image), to_pixels(rendered.target)
        flare = luminance(pixels_to_linear(lq) - pixels_to_linear(hq))
        codes = rendered.layers["flare"]
        visible = (lq.max(axis=2) < 230) & (codes > 0)
        assert visible.mean() > 0.3
        assert float(np.abs(flare - codes / np.float32(FLARE_LAYER_SCALE))[visible].max()) < 0.006


@pytest.mark.parametrize("wavelength_nm", [400.0, 480.0, 550.0, 620.0, 700.0])
def test_f2_every_wavelength_keeps_its_energy(wavelength_nm: float) -> None:
    for pupil in (clean_pupil(6, 0.3), draw_pupil(make_params(), rng_for(3))):
        scaled = at_wavelength(diffract(pupil), wavelength_nm)
        assert float(scaled.sum(dtype=np.float64)) == pytest.approx(1, abs=1e-3)


def test_f2_scatter_pattern_has_unit_energy_and_no_negative_light() -> None:
    lens = make_params()
    pattern = scatter_pattern(draw_pupil(lens, rng_for(3)), lens)
    assert pattern.shape == (PATTERN_PX, PATTERN_PX, 3)
    assert pattern.sum(axis=(0, 1), dtype=np.float64) == pytest.approx([1, 1, 1], abs=1e-3)
    assert float(pattern.min()) >= 0
    assert float(pattern[0].max()) == float(pattern[:, -1].max()) == 0


def test_f2_scatter_in_the_image_has_the_energy_of_its_share() -> None:
    params = only_scatter(scatter_frac=0.05)
    rendered = apply_flare(DARK, params, SCENE, rng_for(2))
    scatter = (rendered.image - rendered.target).sum(axis=(0, 1), dtype=np.float64)
    source = rendered.target.sum(axis=(0, 1), dtype=np.float64)
    assert scatter / source == pytest.approx([0.05] * 3, rel=0.03)


def test_f2_first_dark_ring_grows_with_wavelength() -> None:
    disc = np.zeros((PUPIL_PX, PUPIL_PX), np.float32)
    cv2.circle(disc, (PUPIL_PX // 2, PUPIL_PX // 2), 10 * 16, 1, -1, cv2.LINE_AA, 4)
    psf = diffract(disc)

    def ring_px(wavelength_nm: float) -> float:
        profile = at_wavelength(psf, wavelength_nm)[PATTERN_PX // 2, PATTERN_PX // 2 :].astype(np.float64)
        least = next(r for r in range(3, 80) if profile[r] < profile[r + 1])
        left, middle, right = profile[least - 1 : least + 2]
        return float(least + 0.5 + 0.5 * (left - right) / (left - 2 * middle + right))

    assert ring_px(700) == pytest.approx(1.22 * PUPIL_PX / 20, rel=0.06)
    for wavelength_nm in (420, 500, 600):
        assert ring_px(wavelength_nm) / ring_px(700) == pytest.approx(wavelength_nm / 700, rel=0.03)


def test_f2_the_pattern_of_red_is_that_of_blue_drawn_larger() -> None:
    """By the ratio of their wavelengths; one scale for all would give 1 and no rainbows."""
    spotted = only_scatter(dust_count=60, scratch_count=0, glow_share=0.0, aperture_roundness=1.0)
    flare = added(DARK, spotted, 9)
    axis = np.arange(420, dtype=np.float32) - np.float32(209.5)
    radius_px = np.hypot(axis[None, :], axis[:, None])
    ring = (radius_px > 30) & (radius_px < 90)

    def structure(plane: Plane) -> Plane:
        log: Plane = np.log(plane + np.float32(1e-9))
        log -= cv2.GaussianBlur(log, (0, 0), 8)
        inside: Plane = log[ring]
        return inside

    red, scales = structure(flare[..., 0]), np.arange(0.8, 1.7, 0.05)
    alike = []
    for scale in scales:
        matrix = np.array([[1 / scale, 0, 209.5 * (1 - 1 / scale)], [0, 1 / scale, 209.5 * (1 - 1 / scale)]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        blue = cv2.warpAffine(np.ascontiguousarray(flare[..., 2]), matrix, (420, 420), flags=flags)
        alike.append(float(np.corrcoef(red, structure(blue))[0, 1]))
    assert 1.2 < scales[int(np.argmax(alike))] < 1.45, alike


@pytest.mark.parametrize(("blades", "spikes"), [(5, 10), (6, 6), (7, 14), (8, 8)])
def test_f3_spike_count(blades: int, spikes: int) -> None:
    clean = {"aperture_blades": blades, "aperture_roundness": 0.0, "dust_count": 0, "scratch_count": 0}
    flare = luminance(added(DARK, only_scatter(**clean, glow_share=0.0, source_radius_frac=0.001)))
    polar = cv2.warpPolar(flare, (200, 720), (209.5, 209.5), 200, cv2.INTER_LINEAR)
    around = polar[:, 40:120].sum(axis=1)
    around = cv2.GaussianBlur(np.tile(around, 3)[None], (0, 0), 3)[0, 720:1440]
    peaks = (around > np.roll(around, 1)) & (around >= np.roll(around, -1)) & (around > 0.35 * around.max())
    assert int(peaks.sum()) == spikes


def test_a_wipe_scatters_across_its_direction() -> None:
    """Parallel scratches give a streak at right angles to them."""
    wiped = {"scratch_count": 150, "dust_count": 0, "wipe_angle_deg": 20.0, "wipe_spread_deg": 2.0}
    flare = luminance(added(DARK, only_scatter(**wiped, aperture_roundness=1.0, glow_share=0.0)))
    polar = cv2.warpPolar(flare, (200, 360), (209.5, 209.5), 200, cv2.INTER_LINEAR)
    around = polar[:, 50:160].sum(axis=1)
    across = around[105:116].mean() + around[285:296].mean()
    along = around[15:26].mean() + around[195:206].mean()
    assert across > 4 * along


def test_f4_twice_the_radiance_is_twice_the_flare() -> None:
    image = photo("chelsea")
    once, twice = (
        apply_flare(image, make_params(source_radiance=radiance), SCENE, rng_for(4)).image - image
        for radiance in (5e3, 1e4)
    )
    assert twice == pytest.approx(2 * once, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("size", [(301, 401), (700, 620)])
def test_f5_ghosts_lie_on_the_line_through_centre_and_source(size: tuple[int, int]) -> None:
    """The pixels of one ghost at a time, without dirt, which would move their mean."""
    height, width = size
    black = np.zeros((height, width, 3), np.float32)
    alone = {"scatter_frac": 0.0, "veil_frac": 0.0, "ghost_count": 1, "dust_count": 0, "scratch_count": 0}
    params = make_params(**alone, source_x_frac=0.7, source_y_frac=0.3, source_radiance=1e5)
    to_x, to_y = 0.7 * width - 0.5 - (width - 1) / 2, 0.3 * height - 0.5 - (height - 1) / 2
    y, x = np.mgrid[:height, :width]
    seen = 0
    for key in range(8):
        rendered = apply_flare(black, params, SCENE, rng_for(key))
        (row,) = rendered.realised["ghosts"]
        offset_x, offset_y = row["x_px"] - (width - 1) / 2, row["y_px"] - (height - 1) / 2
        assert (offset_x, offset_y) == pytest.approx((row["position"] * to_x, row["position"] * to_y), abs=0.5)
        reach = 1.6 * row["radius_px"]
        if not (reach < row["x_px"] < width - reach and reach < row["y_px"] < height - reach):
            continue
        seen += 1
        for channel in range(3):
            ghost = (rendered.image - rendered.target)[..., channel].astype(np.float64)
            mean_x, mean_y = (x * ghost).sum() / ghost.sum(), (y * ghost).sum() / ghost.sum()
            across = (mean_x - (width - 1) / 2) * to_y - (mean_y - (height - 1) / 2) * to_x
            assert abs(across) / np.hypot(to_x, to_y) < 1
    assert seen >= 3


def test_ghost_keeps_the_energy_of_two_reflections() -> None:
    source = Source(300.0, 80.0, 1e5, 2.0, (1.0, 1.0, 1.0), "placed")
    light = np.zeros((400, 400, 3), np.float32)
    ghost = Ghost(-0.5, 0.1, 1e-4, 0.0, 0.0, 9.0, 0.0, 0.1, (1.02, 1.0, 0.98), (1.0, 0.5, 0.25))
    add_ghost(light, ghost, source, aperture_images(clean_pupil(8, 1.0)))
    sums = light.sum(axis=(0, 1), dtype=np.float64)
    assert sums == pytest.approx(source.energy * 1e-4 * np.array([1, 0.5, 0.25]), rel=0.03)


def test_energy_of_a_source_is_the_sum_of_its_image() -> None:
    """But for the part of its halo that leaves the frame."""
    source = Source(150.0, 150.0, 1e4, 3.0, (1.0, 0.5, 0.25), "placed", 2.0, 30.0)
    sums = with_source(np.zeros((301, 301, 3), np.float32), source).sum(axis=(0, 1), dtype=np.float64)
    assert sums == pytest.approx(np.array(source.colour) * source.energy, rel=0.02)


def test_a_colder_lamp_is_redder() -> None:
    warm, neutral = blackbody_colour(2700), blackbody_colour(6500)
    assert neutral == pytest.approx((1, 1, 1))
    assert warm[0] == 1 and warm[0] > 1.3 * warm[1] > 1.6 * warm[2]


def test_the_flare_of_a_large_image_is_that_of_a_small_one() -> None:
    params = make_params(source_x_frac=0.3)
    small, large = (added(np.zeros((side, side, 3), np.float32), params) for side in (300, 1200))
    shrunk = cv2.resize(large, (300, 300), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk - small).sum() < 0.08 * small.sum()


# Sources and targets


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
    assert rendered.layers["flare"].dtype == np.uint16
    assert float(np.abs(codes / FLARE_LAYER_SCALE - flare)[unclipped].max()) < 1 / FLARE_LAYER_SCALE


def test_placed_sources_lie_beside_the_frame_or_near_its_upper_corners() -> None:
    drawn = [sample_flare(0.5, rng_for(40, key)) for key in range(200)]
    inside = [params for params in drawn if 0 <= params.source_x_frac <= 1 and 0 <= params.source_y_frac <= 1]
    assert 0.3 < len(inside) / len(drawn) < 0.5
    assert all(params.source_y_frac <= 0.2 and abs(params.source_x_frac - 0.5) > 0.15 for params in inside)
    assert all(-0.2 < params.source_y_frac < 0.7 for params in drawn)


def test_saturated_lamps_are_found_with_the_colour_of_their_rim() -> None:
    image = np.full((200, 300, 3), 0.05, np.float32)
    cv2.circle(image, (80, 60), 7, (0.9, 0.45, 0.09), -1)
    cv2.circle(image, (80, 60), 5, (1.0, 1.0, 1.0), -1)
    cv2.circle(image, (220, 140), 3, (1.0, 1.0, 1.0), -1)
    image[10, 10] = 1.0
    image[180:182, 20:90] = 1.0
    rendered = apply_flare_lights(image, sample_flare_lights(0.5, rng_for(6)), SCENE, rng_for(0))
    sources = {round(source["x_px"]): source for source in rendered.realised["sources"]}
    large, small = sources[80], sources[220]
    assert rendered.target is image
    assert large["y_px"] == pytest.approx(60, abs=0.5) and small["y_px"] == pytest.approx(140, abs=0.5)
    assert large["origin"] == small["origin"] == "detected"
    assert large["colour"] == pytest.approx([1.0, 0.5, 0.1], abs=0.03)
    assert 10 not in sources


def test_a_white_sky_is_no_lamp_nor_is_a_spot_on_a_white_wall() -> None:
    image = np.full((200, 300, 3), 0.2, np.float32)
    image[:80] = 1.0
    cv2.rectangle(image, (100, 110), (190, 190), (0.9, 0.9, 0.9), -1)
    cv2.circle(image, (140, 150), 3, (1.0, 1.0, 1.0), -1)
    rendered = apply_flare_lights(image, sample_flare_lights(0.5, rng_for(6)), SCENE, rng_for(0))
    (source,) = rendered.realised["sources"]
    assert source["origin"] == "brightest"
    assert rendered.target is image


def test_at_most_six_lights_flare_however_many_there_are() -> None:
    image = np.full((620, 620, 3), 0.02, np.float32)
    image[::2, ::2] = 1.0
    assert len(apply_flare_lights(image, sample_flare_lights(0.5, rng_for(6)), SCENE, rng_for(0)).image) == 620
    image[:] = 0.02
    for index in range(9):
        cv2.circle(image, (50 + 60 * index, 80 + 40 * index), 3 + index % 3, (1.0, 1.0, 1.0), -1)
    values = sample_flare_lights(0.5, rng_for(6)).model_dump()
    params = FlareLightsParams.model_validate({**values, "ghost_count": 0, "veil_frac": 0.0, "glow_share": 1.0})
    rendered = apply_flare_lights(image, params, SCENE, rng_for(0))
    assert len(rendered.realised["sources"]) == 6
    offsets = np.arange(-12, 13)
    for source in rendered.realised["sources"]:
        row, column = round(source["y_px"]), round(source["x_px"])
        around = (rendered.image - image)[row - 12 : row + 13, column - 12 : column + 13, 1].astype(np.float64)
        around -= around.min()
        mean = (around.sum(axis=0) * offsets).sum() / around.sum(), (around.sum(axis=1) * offsets).sum() / around.sum()
        assert mean == pytest.approx((0, 0), abs=0.6)


def test_lights_of_one_size_flare_alike() -> None:
    """Those rendered at half the resolution too."""
    image = np.full((600, 600, 3), 0.02, np.float32)
    places = [(100, 100), (500, 100), (100, 500), (500, 500)]
    for place in places:
        cv2.circle(image, place, 4, (1.0, 1.0, 1.0), -1)
    values = sample_flare_lights(0.5, rng_for(6)).model_dump()
    alone = {"ghost_count": 0, "veil_frac": 0.0, "scatter_radius_frac": 0.3}
    params = FlareLightsParams.model_validate({**values, **alone})
    flare = apply_flare_lights(image, params, SCENE, rng_for(0)).image - image
    sums = [float(flare[y - 60 : y + 61, x - 60 : x + 61].sum()) for x, y in places]
    assert sums == pytest.approx([sums[0]] * 4, rel=0.03)


def test_chain_gives_image_and_target_the_same_source() -> None:
    base = np.ascontiguousarray(data.coffee()[:160, :200])
    steps = [sample_step(FLARE, 0.5, rng_for(20), "0" * 32), sample_step(FLARE, 0.5, rng_for(21), "1" * 32)]
    places = [{"source_x_frac": 0.15, "source_y_frac": 0.2}, {"source_x_frac": 0.5, "source_y_frac": 0.3}]
    steps = [
        step.model_copy(update={"params": {**step.params, **place}}) for step, place in zip(steps, places, strict=True)
    ]
    rendered = replay_with(base, steps, SCENE, BY_NAME)
    assert float((rendered.image - rendered.target).min()) >= -1e-4
    lit = (rendered.target.min(axis=2) > 0.97) & (to_float(base).min(axis=2) < 0.9)
    y, x = np.nonzero(lit[:100, 60:150])
    assert (x.mean() + 60, y.mean()) == pytest.approx((99.5, 47.5), abs=2)


def test_chain_gives_image_and_target_the_same_lamps_of_patterns() -> None:
    base = np.ascontiguousarray(data.coffee()[:160, :200])
    first = sample_step(FLARE, 0.5, rng_for(20), "0" * 32)
    first = first.model_copy(update={"params": {**first.params, "source_x_frac": 0.15, "source_y_frac": 0.2}})
    second = overlay_step(source_x_frac=(0.6,), source_y_frac=(0.3,))
    rendered = replay_with(base, [first, second], bank_scene(), BY_NAME)
    assert rendered.realised["1_flare_overlay"]["lamps"] == 1
    assert float((rendered.image - rendered.target).min()) >= -1e-4
    assert float(rendered.target[48, 119].min()) == 1.0


# Banks


def drawn_pattern(dtype: type[np.uint8] | type[np.uint16] = np.uint8) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A lamp left of the middle and one ghost right of it, on a slanted line through the middle."""
    axis = np.arange(301)
    codes = np.zeros((301, 301), np.float64)
    for x, y, sigma, peak in ((90, 120, 10, 0.6), (190, 170, 6, 0.5)):
        spot = np.exp(-((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * sigma**2))
        codes = np.maximum(codes, peak * spot)
    codes[np.hypot(axis[None, :] - 90, axis[:, None] - 120) < 4] = 1
    # Exact in 8 bits, so that both depths hold the same light.
    codes = np.round(codes * 255) / 255
    if dtype is np.uint8:
        return np.repeat(np.round(codes * 255).astype(np.uint8)[..., None], 3, 2)
    return np.repeat(np.round(codes * 65535).astype(np.uint16)[..., None], 3, 2)


def bank_scene(*patterns: NDArray[np.uint8] | NDArray[np.uint16]) -> Scene:
    return Scene(patterns={"flare": patterns or (drawn_pattern(), drawn_pattern())})


def overlay_params(**changes: object) -> FlareOverlayParams:
    values: dict[str, object] = {
        "gamma": 2.0,
        "offset_lin": 0.0,
        "mean_lin": (0.02,),
        "size_ratio": (1.2,),
        "rotation_deg": (0.0,),
        "shear_deg": (0.0,),
        "flip_horizontally": (False,),
        "flip_vertically": (False,),
        "source_x_frac": (0.25,),
        "source_y_frac": (0.2,),
        "red_gain": (1.0,),
        "green_gain": (1.0,),
        "blue_gain": (1.0,),
    }
    return FlareOverlayParams.model_validate({**values, **changes})


def overlay_step(**changes: object) -> Step:
    step = sample_step(FLARE_OVERLAY, 0.5, rng_for(0), "0" * 32)
    return step.model_copy(update={"params": overlay_params(**changes).model_dump(mode="json")})


def overlay(image: Image, params: FlareOverlayParams, scene: Scene) -> Rendered:
    return FLARE_OVERLAY.apply(image, params, scene, rng_for(0))


def test_f1_f4_patterns_add_light_in_proportion_to_their_mean_and_whatever_the_image() -> None:
    scene = bank_scene()
    flares = []
    for image in (photo("astronaut"), photo("coffee")):
        rendered = overlay(image, overlay_params(), scene)
        flares.append(rendered.image - rendered.target)
    assert float(flares[0].min()) >= -1e-5
    assert float(np.abs(flares[0] - flares[1]).max()) < 2e-6
    black = np.zeros((240, 300, 3), np.float32)
    once, twice = (overlay(black, overlay_params(mean_lin=(mean,)), scene) for mean in (0.02, 0.04))
    assert twice.image - twice.target == pytest.approx(2 * (once.image - once.target), rel=0.01, abs=1e-6)


def test_patterns_come_to_their_mean_light_whatever_their_depth_and_exposure() -> None:
    black = np.zeros((300, 300, 3), np.float32)
    whole = overlay_params(size_ratio=(1.0,), source_x_frac=(90.5 / 301,), source_y_frac=(120.5 / 301,), gamma=2.2)
    means = []
    for pattern in (drawn_pattern(), drawn_pattern(np.uint16)):
        rendered = overlay(black, whole, bank_scene(pattern))
        means.append(float((rendered.image - rendered.target).mean()))
    assert means[0] == pytest.approx(means[1], rel=1e-3)
    assert means[0] == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("flips", list(itertools.product((False, True), repeat=2)))
def test_f5_lamp_of_a_pattern_comes_to_its_place_and_ghosts_on_the_line_to_the_centre(flips: tuple[bool, bool]) -> None:
    image = np.zeros((200, 320, 3), np.float32)
    for x_frac, y_frac in ((0.25, 0.2), (0.7, 0.3)):
        place = {"source_x_frac": (x_frac,), "source_y_frac": (y_frac,)}
        flip = {"flip_horizontally": (flips[0],), "flip_vertically": (flips[1],)}
        rendered = overlay(image, overlay_params(**place, **flip, mean_lin=(0.005,)), bank_scene())
        y, x = np.nonzero(rendered.target[..., 1] > 1)
        lamp = np.array([x_frac * 320 - 0.5, y_frac * 200 - 0.5])
        assert (x.mean(), y.mean()) == pytest.approx(tuple(lamp), abs=0.6)
        flare = (rendered.image - rendered.target)[..., 1].astype(np.float64)
        y, x = np.mgrid[:200, :320]
        flare[np.hypot(x - lamp[0], y - lamp[1]) < 60] = 0
        ghost = np.array([(x * flare).sum(), (y * flare).sum()]) / flare.sum()
        inward = np.array([159.5, 99.5]) - lamp
        across = (ghost - lamp)[0] * inward[1] - (ghost - lamp)[1] * inward[0]
        assert abs(across) / np.hypot(*inward) < 1
        assert np.hypot(*(ghost - lamp)) == pytest.approx(np.hypot(100, 50) * 1.2 * 320 / 301, rel=0.03)


def test_target_of_a_pattern_without_a_lamp_in_the_frame_is_the_scene() -> None:
    image = photo("coffee")
    dim = np.minimum(drawn_pattern(), np.uint8(200))
    assert overlay(image, overlay_params(), bank_scene(dim)).target is image
    beside = overlay(image, overlay_params(source_x_frac=(-0.2,)), bank_scene())
    assert beside.target is image and beside.realised == {"lamps": 0}
    within = overlay(image, overlay_params(), bank_scene())
    assert within.realised == {"lamps": 1}
    assert float((within.target - image).min()) >= 0 and float(within.target.max()) > 5


def test_a_pattern_turns_its_brightest_side_to_a_source_it_does_not_show() -> None:
    image = np.zeros((200, 200, 3), np.float32)
    axis = np.arange(100)
    spot = np.exp(-((axis[None, :] - 20) ** 2 + (axis[:, None] - 49.5) ** 2) / 200)
    side = np.repeat(np.round(180 * spot)[..., None], 3, 2).astype(np.uint8)
    for x_frac, y_frac in ((1.1, 0.5), (0.5, -0.1), (-0.1, 0.5)):
        flare = overlay(image, overlay_params(source_x_frac=(x_frac,), source_y_frac=(y_frac,)), bank_scene(side)).image
        y, x = np.nonzero(flare[..., 1] > 0.5 * flare.max())
        assert (x.mean() - 99.5) * (x_frac - 0.5) + (y.mean() - 99.5) * (y_frac - 0.5) > 20
        assert abs((x.mean() - 99.5) * (y_frac - 0.5) - (y.mean() - 99.5) * (x_frac - 0.5)) < 8


def test_no_border_of_a_pattern_shows() -> None:
    image = np.zeros((200, 300, 3), np.float32)
    grey = np.full((120, 120, 3), 150, np.uint8)
    flare = overlay(image, overlay_params(size_ratio=(0.5,), mean_lin=(0.3,)), bank_scene(grey)).image
    assert float(flare[0].max()) == 0 and float(flare.max()) > 0.3
    assert float(np.abs(np.diff(flare[100, :, 1])).max()) < 0.2 * float(flare.max())


@pytest.mark.parametrize(
    "pattern",
    [
        np.zeros((20, 20), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((20, 20, 3), np.float32),
        np.zeros((0, 20, 3), np.uint8),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: Any) -> None:
    with pytest.raises(ValueError, match="flare pattern is uint8 or uint16"):
        overlay(photo("coffee"), overlay_params(), bank_scene(pattern))


def test_a_step_without_its_bank_or_enough_patterns_is_refused() -> None:
    base: Pixels = data.coffee()[:40, :40]
    with pytest.raises(ValueError, match="'flare_overlay' needs patterns"):
        replay_with(base, [overlay_step()], SCENE, BY_NAME)
    two = {name: value * 2 for name, value in overlay_params().model_dump().items() if isinstance(value, tuple)}
    with pytest.raises(ValueError, match="takes 2 patterns"):
        replay_with(base, [overlay_step(**two)], bank_scene(drawn_pattern()), BY_NAME)


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma": 0.5},
        {"mean_lin": ()},
        {"mean_lin": (0.01, 0.01)},
        {"mean_lin": (-0.01,)},
        {"size_ratio": (0.0,)},
        {"shear_deg": (89.0,)},
        {"red_gain": (1.0, 1.0)},
    ],
)
def test_overlay_parameters_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        overlay_params(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"aperture_blades": 3},
        {"aperture_roundness": 1.1},
        {"scatter_frac": -0.1},
        {"ghost_count": -1},
        {"source_radiance": 0.0},
        {"scatter_radius_frac": 0.0},
        {"source_radius_frac": 0.0},
        {"source_temperature_k": 0.0},
    ],
)
def test_lens_parameters_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    step = sample_step(FLARE, 0.5, rng_for(0), "0" * 32)
    step = step.model_copy(update={"params": {**step.params, **changes}})
    with pytest.raises(ValueError, match=f"(?s)'flare' do not fit.*{next(iter(changes))}"):
        replay_with(data.coffee()[:40, :40], [step], SCENE, BY_NAME)


@cache
def generated(index: int) -> NDArray[np.uint16]:
    return flare_pattern_image(index, 5)


def test_generated_patterns_are_codes_on_black_that_differ() -> None:
    assert np.array_equal(generated(0), flare_pattern_image(0, 5))
    assert not np.array_equal(generated(0), flare_pattern_image(0, 6))
    small = []
    for index in range(8):
        pattern = generated(index)
        assert pattern.dtype == np.uint16 and pattern.shape == (FLARE_PATTERN_PX, FLARE_PATTERN_PX, 3)
        light = (pattern / 65535.0) ** 2.2
        assert float(np.median(light)) < 0.1
        assert float(light.max()) > 0.2
        small.append(cv2.resize(light.mean(axis=2), (64, 64), interpolation=cv2.INTER_AREA).ravel())
    close = np.corrcoef(np.array(small))[np.triu_indices(8, 1)]
    assert float(close.max()) < 0.9


def test_generated_lamps_are_small_and_come_into_the_target() -> None:
    lamps = 0
    for index in range(8):
        pattern = generated(index)
        saturated = (pattern >= 65535 * 0.99).all(axis=2)
        assert saturated.mean() < 0.004
        rendered = overlay(photo("coffee"), overlay_params(), bank_scene(pattern))
        assert rendered.realised["lamps"] == int(saturated.any())
        lamps += int(saturated.any())
    assert 3 <= lamps < 8


# Severity, sizes, records


def scene_for(degradation: Degradation[Any]) -> Scene:
    return bank_scene(generated(0), generated(1)) if degradation is FLARE_OVERLAY else SCENE


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_severity_raises_the_flare(name: str) -> None:
    """Median over four photos, same seeds: always more, little at 0."""
    degradation = BY_NAME[name]
    photos = [np.ascontiguousarray(getattr(data, of)()[:200, :260]) for of in ("astronaut", "coffee", "rocket", "cat")]

    def strength(severity: float) -> float:
        shown = []
        for key, base in enumerate(photos):
            step = sample_step(degradation, severity, rng_for(7, key), "0" * 31 + str(key))
            rendered = replay_with(base, [step], scene_for(degradation), BY_NAME)
            shown.append(float(np.abs(rendered.image - rendered.target).mean()))
        return float(np.median(shown))

    means = [strength(severity) for severity in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    assert all(after > before for before, after in itertools.pairwise(means)), means
    assert means[0] < 0.03 and means[-1] > 3 * means[0], means


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (16, 16), (33, 21), (61, 130), (700, 33)])
def test_any_size_and_no_side_effect(height: int, width: int) -> None:
    image = (rng_for(8).random((height, width, 3)) * 1.5).astype(np.float32)
    before = image.copy()
    for degradation in EVERY:
        params = degradation.sample(0.6, rng_for(9))
        first, second = (degradation.apply(image, params, scene_for(degradation), rng_for(10)) for _ in range(2))
        assert first.image.shape == first.target.shape == image.shape
        assert first.image.dtype == first.target.dtype == np.float32
        assert first.layers["flare"].shape == (height, width)
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
    for degradation in EVERY:
        params = degradation.sample(0.4, rng_for(12))
        assert degradation.params_type.model_validate_json(params.model_dump_json()) == params
    counts = [sample_flare_overlay(0.5, rng_for(13, key)).pattern_count for key in range(60)]
    assert set(counts) == {1, 2}
