"""Raindrops on glass: property R6, Snell's law, coverage and defocus, and what replay needs."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from skimage import data

from degradations import rain_glass, rain_glass_optics
from degradations.base import Scene, replay_with, sample_step
from degradations.rain_glass import RAINDROPS_ON_GLASS, RaindropsOnGlassParams
from degradations.rain_glass_optics import Drops
from pairforge.image import Image, linear_to_srgb, pixels_to_linear, to_pixels
from pairforge.rng import rng_for, seed_for

SEED = seed_for(1, "pixels")
SIDE = 400
FOCAL_PX = 400.0
SHARP = RaindropsOnGlassParams(
    covered_frac=0.15,
    radius_mm=2.0,
    radius_log_sigma=0.4,
    contact_angle_deg=60.0,
    irregularity=0.0,
    sag=0.0,
    glass_m=0.1,
    focus_m=10.0,
    aperture_m=0.0,
    focal_frac=1.0,
)


def round_drop(x: float, y: float, radius_px: float, contact_deg: float) -> Drops:
    values = np.array([[x], [y], [radius_px], [np.sin(np.radians(contact_deg))]], np.float32)
    return Drops(values[0], values[1], values[2], values[3], np.zeros((1, 8), np.float32))


def ramp(axis: int) -> Image:
    values = np.linspace(0.2, 0.8, SIDE, dtype=np.float32)
    plane = np.broadcast_to(values[:, None] if axis == 0 else values[None, :], (SIDE, SIDE))
    return np.ascontiguousarray(np.repeat(plane[..., None], 3, axis=2))


@pytest.mark.parametrize("axis", [0, 1])
def test_r6_a_sharp_drop_shows_the_scene_upside_down(axis: int) -> None:
    image = ramp(axis)
    out, cover = rain_glass.render_drops(image, round_drop(199.5, 199.5, 40, 40), FOCAL_PX, 0.0)
    inside = np.hypot(*np.mgrid[-199.5:200, -199.5:200]) < 32
    assert cover[inside].min() == 1
    assert np.corrcoef(out[inside][:, 0], image[inside][:, 0])[0, 1] < -0.9
    assert np.array_equal(out[cover == 0], image[cover == 0])


@pytest.mark.parametrize("contact_deg", [55.0, 65.0, 80.0])
def test_r6_the_rim_reflects_totally_from_its_radius_on(contact_deg: float) -> None:
    image = np.ones((SIDE, SIDE, 3), np.float32)
    radius_px = 60.0
    out, _ = rain_glass.render_drops(image, round_drop(199.5, 199.5, radius_px, contact_deg), FOCAL_PX, 0.0)
    row = out[200, 200:, 0]
    dark = np.flatnonzero(row < 0.25)
    expected = radius_px / (rain_glass_optics.WATER_INDEX * np.sin(np.radians(contact_deg)))
    assert dark[0] + 0.5 == pytest.approx(expected, abs=1)
    assert dark[-1] + 0.5 == pytest.approx(radius_px, abs=1)


def test_r6_a_flat_drop_has_no_dark_rim() -> None:
    image = np.ones((SIDE, SIDE, 3), np.float32)
    out, _ = rain_glass.render_drops(image, round_drop(199.5, 199.5, 60, 44), FOCAL_PX, 0.0)
    assert out.min() > 0.5


@pytest.mark.parametrize("place", [(199.5, 199.5), (120.0, 260.0)])
def test_rays_follow_snells_law(place: tuple[float, float]) -> None:
    """Through a ramp, brightness says where a ray went; compared with a trace of its own in three dimensions."""
    radius_px, contact_deg = 50.0, 42.0
    drop = round_drop(*place, radius_px, contact_deg)
    seen = [rain_glass.render_drops(ramp(axis), drop, FOCAL_PX, 0.0)[0][..., 0] for axis in (1, 0)]
    checked = 0
    for angle in np.radians(np.arange(0, 360, 30)):
        for share in (0.2, 0.5, 0.8):
            column = round(place[0] + share * radius_px * np.cos(angle))
            row = round(place[1] + share * radius_px * np.sin(angle))
            offset = np.array([column - place[0], row - place[1]])
            rho = float(np.hypot(*offset)) / radius_px
            tilt = np.arcsin(rho * np.sin(np.radians(contact_deg)))
            turned = np.arcsin(1.333 * np.sin(tilt)) - tilt
            pixel = np.array([column - 199.5, row - 199.5])
            expected = FOCAL_PX * np.tan(np.arctan(pixel / FOCAL_PX) - turned * offset / (rho * radius_px)) + 199.5
            if not ((expected > 16) & (expected < SIDE - 17)).all():
                continue
            share_through = float(rain_glass_optics.transmittance(np.array([np.sin(tilt)], np.float32))[0])
            rim = 0.5 * 0.2 * (1 - share_through)
            found = [((float(plane[row, column]) - rim) / share_through - 0.2) / 0.6 * (SIDE - 1) for plane in seen]
            assert found == pytest.approx(expected.tolist(), abs=4), (angle, share)
            checked += 1
    assert checked > 20


def test_light_leaves_water_as_fresnel_says() -> None:
    """2.04 % is lost head on; nothing gets out past 48.6 degrees; less and less on the way there."""
    tilt = np.radians(np.arange(0, 60, 0.5))
    share = rain_glass_optics.transmittance(np.sin(tilt).astype(np.float32))
    assert share[0] == pytest.approx(1 - ((1.333 - 1) / (1.333 + 1)) ** 2, abs=1e-4)
    assert (np.diff(share) < 1e-4).all() and share[tilt > np.radians(48.8)].max() == 0
    assert share[tilt < np.radians(45)].min() > 0.7


def test_coverage_is_the_one_asked_for() -> None:
    """Where few drops touch; those that would are left out."""
    params = SHARP.model_copy(update={"covered_frac": 0.03})
    covered = []
    for seed in range(12):
        rendered = rain_glass.apply_raindrops_on_glass(
            np.full((300, 400, 3), 0.3, np.float32), params, Scene(), rng_for(seed, "g")
        )
        covered.append(rendered.realised["covered_share"])
        assert rendered.layers["drop_share"].mean() / 255 == pytest.approx(covered[-1], abs=2e-3)
    assert np.mean(covered) == pytest.approx(0.03, rel=0.15)


def test_sizes_weighted_by_area_have_the_median_asked_for() -> None:
    params = SHARP.model_copy(update={"covered_frac": 0.2, "radius_mm": 1.0})
    drops = [rain_glass.draw_drops(params, 1500, 1500, rng_for(seed, "g")).radius_px for seed in range(6)]
    radius_mm = np.sort(np.concatenate(drops)).astype(np.float64) / (1500e-3 / 0.1)
    area = np.cumsum(radius_mm**2)
    median = radius_mm[np.searchsorted(area, 0.5 * area[-1])]
    assert median == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("blur_px", [1.5, 4.0, 9.0, 18.0, 40.0])
def test_defocus_spreads_the_footprint_and_keeps_its_sum(blur_px: float) -> None:
    image = np.ones((SIDE, SIDE, 3), np.float32)
    drop = round_drop(199.5, 199.5, 40, 40)
    _, cover = rain_glass.render_drops(image, drop, FOCAL_PX, blur_px)
    assert cover.sum() == pytest.approx(np.pi * 40**2, rel=0.02)
    profile = cover[199:201].mean(axis=0)
    edge = np.flatnonzero((profile > 0.1) & (profile < 0.9))
    # Along a straight edge, a disc's blur goes from 0.1 to 0.9 over 0.69 diameters; the footprint has two edges.
    assert len(edge) / 2 == pytest.approx(0.69 * blur_px, rel=0.25, abs=1.5)
    columns = cover.sum(axis=0)
    assert (columns * np.arange(SIDE)).sum() / columns.sum() == pytest.approx(199.5, abs=0.3)


def test_blur_is_that_of_a_thin_lens() -> None:
    image = np.full((64, 96, 3), 0.3, np.float32)
    params = SHARP.model_copy(update={"aperture_m": 0.002, "glass_m": 0.2, "focus_m": 4.0, "focal_frac": 1.1})
    rendered = rain_glass.apply_raindrops_on_glass(image, params, Scene(), rng_for(1, "g"))
    assert rendered.realised["blur_px"] == pytest.approx(1.1 * 96 * 0.002 * (1 / 0.2 - 1 / 4))
    focused = params.model_copy(update={"focus_m": 0.2})
    assert rain_glass.apply_raindrops_on_glass(image, focused, Scene(), rng_for(1, "g")).realised["blur_px"] == 0


def outline(irregularity: float, sag: float) -> NDArray[np.float32]:
    params = SHARP.model_copy(update={"irregularity": irregularity, "sag": sag, "radius_mm": 3.0})
    drops = rain_glass.draw_drops(params, 2000, 2000, rng_for(1, "g"))
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False, dtype=np.float32)
    around = np.broadcast_to(np.cos(angle), (len(drops.x), 90)), np.broadcast_to(np.sin(angle), (len(drops.x), 90))
    return rain_glass_optics._outline(drops.waves, *around)


def test_drops_are_no_perfect_circles_and_sag() -> None:
    assert np.ptp(outline(0.0, 0.0)) < 1e-6
    assert outline(0.1, 0.0).std(axis=1).mean() > 0.04
    sagging = outline(0.0, 0.3)
    assert (sagging[:, 10:35].mean(axis=1) >= sagging[:, 55:80].mean(axis=1)).all(), "the lower half is wider"


def test_drops_do_not_overlap() -> None:
    drops = rain_glass.draw_drops(SHARP.model_copy(update={"covered_frac": 0.6}), 500, 500, rng_for(1, "g"))
    gap = np.hypot(drops.x[:, None] - drops.x, drops.y[:, None] - drops.y)
    gap += np.where(np.eye(len(drops.x)) > 0, np.inf, 0)
    assert (gap > 0.75 * (drops.radius_px[:, None] + drops.radius_px)).all()


def rank_correlation(values: NDArray[np.float64]) -> float:
    """Spearman's, with the order in which they come."""
    return float(np.corrcoef(np.argsort(np.argsort(values)), np.arange(len(values)))[0, 1])


def test_change_grows_with_severity() -> None:
    levels = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    change = np.zeros((3, 6))
    for row, name in enumerate(("astronaut", "chelsea", "rocket")):
        image = pixels_to_linear(np.ascontiguousarray(getattr(data, name)()[::2, ::2]))
        for column, severity in enumerate(levels):
            params = RAINDROPS_ON_GLASS.sample(severity, rng_for(5, "same spread"))
            out = rain_glass.apply_raindrops_on_glass(image, params, Scene(), rng_for(5, "r")).image
            change[row, column] = np.abs(linear_to_srgb(out) - linear_to_srgb(image)).mean()
    assert rank_correlation(np.median(change, axis=0)) >= 0.95


def test_replay_is_exact_and_pure() -> None:
    base = np.ascontiguousarray(data.coffee()[::3, ::3])
    before = base.copy()
    step = sample_step(RAINDROPS_ON_GLASS, 0.6, rng_for(2, "params"), SEED)
    catalog = {"raindrops_on_glass": RAINDROPS_ON_GLASS}
    first, second = (replay_with(base, [step], Scene(), catalog) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert np.array_equal(base, before) and np.array_equal(to_pixels(first.target), base)
    assert np.array_equal(first.layers["drop_share"], second.layers["drop_share"])


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (17, 33), (90, 31)])
def test_any_size_and_light_above_one(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, 4, (*size, 3)).astype(np.float32)
    for severity in (0.0, 0.5, 1.0):
        params = RAINDROPS_ON_GLASS.sample(severity, rng_for(1, "p"))
        rendered = rain_glass.apply_raindrops_on_glass(image, params, Scene(), rng_for(1, "r"))
        assert rendered.image.shape == image.shape and rendered.image.dtype == np.float32
        assert np.isfinite(rendered.image).all() and rendered.target is image
        assert rendered.layers["drop_share"].shape == size
        json.dumps(dict(rendered.realised), allow_nan=False)


@pytest.mark.parametrize(("field", "value"), [("contact_angle_deg", 90.0), ("glass_m", 0.0), ("covered_frac", -0.1)])
def test_impossible_parameters_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        RaindropsOnGlassParams.model_validate({**SHARP.model_dump(), field: value})
