"""Snow: PHYSICS S1-S5, plus what replay needs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from skimage import data

from degradations import snow, snow_flakes
from degradations.base import Depth, Rendered, Scene, replay_with, sample_step
from degradations.snow import SNOW, SnowParams
from degradations.snow_flakes import AREA_RATIO, Flakes
from pairforge.image import Image, Plane, pixels_to_linear, to_pixels
from pairforge.records import Step
from pairforge.rng import rng_for, rng_from_seed, seed_for

SEED = seed_for(1, "pixels")
STILL = SnowParams(
    snow_rate_mm_h=1.0,
    exposure_s=1 / 200,
    wind_m_s=0.0,
    sway_sigma_m_s=0.0,
    camera_speed_m_s=0.0,
    aperture_m=0.0,
    albedo=0.85,
    concentration_gain=1.0,
    extinction_factor=1.0,
)


def changed(**values: float) -> SnowParams:
    return SnowParams.model_validate({**STILL.model_dump(), **values})


def flat_depth(height: int, width: int, z: float = 50.0, focal_px: float | None = None) -> Depth:
    z_m = np.full((height, width), z, np.float32)
    return Depth(z_m, np.zeros_like(z_m), float(focal_px or width), "test", "1", 1.0, True)


def apply(image: Image, params: SnowParams, depth: Depth) -> Rendered:
    return snow.apply_snow(image, params, Scene(depth=depth), rng_from_seed(SEED))


def one_flake(width_px: float, length_px: float, blur_px: float, angle_deg: float, shape: int = 0) -> Flakes:
    angle = np.deg2rad(angle_deg)
    values = (99.7, 103.2, np.cos(angle), np.sin(angle), width_px, length_px, blur_px, 2.0)
    x, y, dir_x, dir_y, width, length, blur, z_m = (np.array([value], np.float32) for value in values)
    return Flakes(x, y, dir_x, dir_y, width, length, blur, z_m, shape=np.array([shape]), exposed=np.ones(1, np.float32))


def opacity(flakes: Flakes, scene_z_m: Plane | None = None) -> Plane:
    z_m = np.full((220, 200), 50, np.float32) if scene_z_m is None else scene_z_m
    alpha: Plane = 1 - np.exp(-snow_flakes.rasterise(flakes, z_m))
    return alpha


@pytest.mark.parametrize("gain", [1.0, 5.0])
@pytest.mark.parametrize("rate", [0.2, 1.0, 5.0])
def test_s1_count_follows_the_integral(rate: float, gain: float) -> None:
    width_px = 2.0
    counts = [len(snow.draw_flakes(rate, width_px, 1024, 1024, 1024.0, rng_for(k, "n"), gain)[0]) for k in range(12)]
    mean = gain * snow.expected_flakes(rate, width_px, 1024, 1024, 1024.0)
    assert abs(np.sum(counts) - 12 * mean) < 3 * np.sqrt(12 * mean)


def test_s1_count_is_the_one_of_the_volume_in_view() -> None:
    """Against a plain sum over slices of distance and size."""
    rate, width_px, focal_px = 1.0, 2.0, 900.0
    melted = np.linspace(*snow.MELTED_RANGE_MM, 1500)
    size_m = np.sqrt(1000 * np.pi / 6 * (melted * 1e-3) ** 3 / 0.069)
    density = 2500 * rate**-0.94 * np.exp(-2.29 * rate**-0.45 * melted)
    z = np.linspace(0.3, 8, 1500)
    wide_enough = focal_px * size_m[None, :] / z[:, None] >= width_px
    per_z = np.trapezoid(density * wide_enough, melted, axis=1) * (800 / focal_px * z) * (600 / focal_px * z)
    assert snow.expected_flakes(rate, width_px, 800, 600, focal_px) == pytest.approx(np.trapezoid(per_z, z), rel=0.01)


@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_s1_sizes_follow_sekhon_and_srivastava(rate: float) -> None:
    """Weighted by the volume in which they are seen, log counts over melted diameter fall with Lambda."""
    width_px, focal_px = 0.8, 700.0
    draws = [snow.draw_flakes(rate, width_px, 1024, 1024, focal_px, rng_for(k, "d"))[0] for k in range(40)]
    size_mm = np.concatenate(draws).astype(np.float64)
    melted = (0.069 * (size_mm * 1e-3) ** 2 / 523.6) ** (1 / 3) * 1e3
    edges = np.linspace(0.5, 2.9, 25)
    of_bin = np.digitize(melted, edges) - 1
    z_max = focal_px * size_mm * 1e-3 / width_px
    weight = 1 / (z_max**3 - 0.3**3)
    inside = (of_bin >= 0) & (of_bin < len(edges) - 1)
    counts = np.bincount(of_bin[inside], weight[inside], len(edges) - 1)
    seen = np.bincount(of_bin[inside], minlength=len(edges) - 1)
    slope = np.polyfit((edges[1:] + edges[:-1]) / 2, np.log(counts), 1, w=np.sqrt(seen))[0]
    assert -slope == pytest.approx(2.29 * rate**-0.45, rel=0.02)


def test_s1_distances_fill_the_frustum_evenly() -> None:
    """The cube of distance is uniform between near plane and last visible distance (Kolmogorov-Smirnov, 1 %)."""
    width_px, focal_px = 1.0, 1000.0
    size_mm, z_m = snow.draw_flakes(1.0, width_px, 1024, 1024, focal_px, rng_for(2, "z"))
    last = (focal_px * size_mm.astype(np.float64) * 1e-3 / width_px) ** 3
    share = np.sort((z_m.astype(np.float64) ** 3 - 0.027) / (last - 0.027))
    steps = np.arange(len(share) + 1) / len(share)
    distance = max(np.max(steps[1:] - share), np.max(share - steps[:-1]))
    assert distance < 1.63 / np.sqrt(len(share))


def test_s2_flakes_fall_as_locatelli_and_hobbs_measured() -> None:
    for size_mm in (1.0, 4.0, 12.0):
        count, focal_px, z = 4000, 1000.0, 3.0
        sizes = np.full(count, size_mm, np.float32)
        flakes = snow.project_flakes(
            sizes, np.full(count, z, np.float32), STILL, 10.0, (1024, 1024), focal_px, rng_for(0, str(size_mm))
        )
        speed = flakes.length_px * flakes.dir_y * z / (focal_px * STILL.exposure_s)
        assert float(speed.mean()) == pytest.approx(0.8 * size_mm**0.16, rel=0.03)
        assert float(speed.std()) == pytest.approx(0.2, rel=0.1)


def test_wind_sway_and_camera_speed_move_flakes() -> None:
    count = 4000
    sizes, z_m = np.full(count, 3.0, np.float32), np.full(count, 2.0, np.float32)
    params = changed(wind_m_s=3.0, sway_sigma_m_s=0.5)
    flakes = snow.project_flakes(sizes, z_m, params, 10.0, (1000, 1000), 1000.0, rng_for(0))
    across = flakes.length_px * flakes.dir_x * 2.0 / (1000.0 * params.exposure_s)
    assert float(across.mean()) == pytest.approx(3.0, rel=0.03) and float(across.std()) == pytest.approx(0.5, rel=0.1)
    forward = changed(camera_speed_m_s=15.0)
    flakes = snow.project_flakes(sizes, z_m, forward, 10.0, (1000, 1000), 1000.0, rng_for(0))
    outward = flakes.dir_x * (flakes.x - 499.5) + flakes.dir_y * (flakes.y - 499.5)
    assert float((outward > 0).mean()) > 0.9


@pytest.mark.parametrize("blur_px", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("length_px", [0.01, 6.0, 70.0])
def test_s3_opacity_of_a_flake_is_its_area(blur_px: float, length_px: float) -> None:
    """Mean over sizes, shapes and directions; neither motion nor defocus changes the sum."""
    got, due = 0.0, 0.0
    for shape, width_px in enumerate((0.7, 1.4, 3.0, 7.0, 15.0, 28.0) * 3):
        got += float(opacity(one_flake(width_px, length_px, blur_px, 37.0 * shape, shape)).sum(dtype=np.float64))
        due += AREA_RATIO * np.pi / 4 * width_px**2
    assert got == pytest.approx(due, rel=0.03)


def test_s3_light_over_black_is_the_area_of_all_flakes() -> None:
    """Through `apply`: a black photo, light 1, no veil."""
    side = 400
    params = changed(snow_rate_mm_h=0.3, extinction_factor=0.0, aperture_m=0.003, exposure_s=1 / 100)
    depth = flat_depth(side, side)
    rendered = apply(np.zeros((side, side, 3), np.float32), params, depth)
    rng = rng_from_seed(SEED)
    size_mm, z_m = snow.draw_flakes(0.3, rendered.realised["min_width_px"], side, side, depth.focal_px, rng)
    area_px = AREA_RATIO * np.pi / 4 * np.sum((depth.focal_px * 1e-3 * size_mm / z_m) ** 2, dtype=np.float64)
    alpha = rendered.layers["snow_alpha"].astype(np.float64).sum() / 65535
    assert alpha == pytest.approx(area_px, rel=0.03)
    of_flakes = rendered.realised["flake_light_rgb"]
    grey = apply(np.full((side, side, 3), 0.5, np.float32), params, depth)
    added = (grey.image - np.float32(0.5)).sum(axis=(0, 1), dtype=np.float64)
    assert of_flakes == pytest.approx([0, 0, 0], abs=1e-5)
    # Each flake adds its area times its light over that of the photo.
    due = area_px * (np.array(grey.realised["flake_light_rgb"]) - 0.5)
    assert added == pytest.approx(due, rel=0.03)


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_s1_gain_is_in_flakes_and_veil(gain: float) -> None:
    """Through `apply`: count within 4 sigma of the gain times the population's, extinction exactly."""
    side = 300
    rendered = apply(
        np.full((side, side, 3), 0.2, np.float32), changed(concentration_gain=gain), flat_depth(side, side)
    )
    width_px = rendered.realised["min_width_px"]
    mean = gain * snow.expected_flakes(1.0, width_px, side, side, float(side))
    assert abs(rendered.realised["flake_count"] - mean) < 4 * np.sqrt(mean)
    assert rendered.realised["beta_per_m"] == pytest.approx(gain * snow.beta_snow_per_m(1.0))


def test_guessed_close_ups_get_room_for_snow_and_metric_depth_stays() -> None:
    image, near = np.full((120, 160, 3), 0.2, np.float32), flat_depth(120, 160, 0.5)
    guessed = apply(image, STILL, replace(near, metric=False))
    assert guessed.realised["depth_scale"] == pytest.approx(10) and guessed.realised["focus_m"] == pytest.approx(5)
    metric = apply(image, STILL, near)
    assert metric.realised["depth_scale"] == 1 and metric.realised["focus_m"] == pytest.approx(0.5)
    assert guessed.realised["mean_alpha"] > 2 * metric.realised["mean_alpha"]


def test_s4_path_over_diameter_grows_with_exposure() -> None:
    ratios = []
    for exposure_s in (1 / 400, 1 / 200, 1 / 100):
        size_mm, z_m = snow.draw_flakes(1.0, 1.0, 1024, 1024, 1000.0, rng_for(4))
        flakes = snow.project_flakes(
            size_mm, z_m, changed(exposure_s=exposure_s), 10.0, (1024, 1024), 1000.0, rng_for(5)
        )
        ratios.append(float(np.median(flakes.length_px / flakes.width_px)))
    assert ratios[1] / ratios[0] == pytest.approx(2, rel=0.02) and ratios[2] / ratios[1] == pytest.approx(2, rel=0.02)


def moments(alpha: Plane, angle_deg: float) -> tuple[float, float]:
    """Standard deviations along and across a direction."""
    rows, columns = np.indices(alpha.shape)
    weight = alpha.astype(np.float64) / alpha.sum(dtype=np.float64)
    x, y = columns - (weight * columns).sum(), rows - (weight * rows).sum()
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    along, across = x * cos + y * sin, -x * sin + y * cos
    return float(np.sqrt((weight * along**2).sum())), float(np.sqrt((weight * across**2).sum()))


@pytest.mark.parametrize("angle_deg", [0.0, 33.0, 90.0, 140.0])
@pytest.mark.parametrize("length_px", [10.0, 25.0, 60.0])
def test_s4_drawn_path_has_the_length_of_the_motion(angle_deg: float, length_px: float) -> None:
    along, across = moments(opacity(one_flake(4.0, length_px, 0.0, angle_deg)), angle_deg)
    disc = (4.0**2 + snow_flakes.LENS_PX**2) / 16
    assert along == pytest.approx(np.sqrt(length_px**2 / 12 + disc), rel=0.08)
    assert across == pytest.approx(np.sqrt(disc), rel=0.25)


def test_flakes_out_of_focus_become_wide_thin_discs() -> None:
    sharp, soft = (opacity(one_flake(6.0, 0.01, blur_px, 0.0)) for blur_px in (0.0, 24.0))
    assert sharp.max() > 0.6 and soft.max() < 0.1
    assert moments(soft, 0.0)[0] == pytest.approx(np.sqrt((6.0**2 + 24.0**2 + 2.56) / 16), rel=0.1)
    sizes, z_m = np.full(2, 3.0, np.float32), np.array([0.5, 10.0], np.float32)
    flakes = snow.project_flakes(sizes, z_m, changed(aperture_m=0.004), 10.0, (800, 800), 1000.0, rng_for(0))
    np.testing.assert_allclose(flakes.blur_px, [1000 * 0.004 * (1 / 0.5 - 0.1), 0], atol=1e-4)


def test_flakes_behind_the_scene_are_hidden() -> None:
    flake = one_flake(20.0, 0.01, 0.0, 0.0)
    before = opacity(flake)
    z_m = np.full((220, 200), 50, np.float32)
    z_m[:, 100:] = 1.0
    after = opacity(flake, z_m)
    assert float(after[:, 100:].max()) == 0 and float(before[:, 100:].max()) > 0.5
    np.testing.assert_allclose(after[:, :100], before[:, :100], atol=1e-6)


def test_s5_veil_follows_the_extinction_of_the_population() -> None:
    """-ln((I - A) / (J - A)) against the ray beyond the drawn flakes gives beta; no flake is in front here."""
    height, width = 120, 200
    z_m = np.broadcast_to(np.linspace(0.02, 500, width, dtype=np.float32), (height, width)).copy()
    depth = Depth(z_m, np.zeros_like(z_m), 200.0, "test", "1", 1.0, True)
    image = np.full((height, width, 3), 0.05, np.float32)
    image[:10, :20] = 0.9
    rendered = apply(image, changed(snow_rate_mm_h=0.02, extinction_factor=2.0), depth)
    airlight, start_m = rendered.realised["airlight_rgb"], rendered.realised["veil_start_m"]
    x = (np.arange(width) - (width - 1) / 2) / 200
    y = (np.arange(height) - (height - 1) / 2) / 200
    path = np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2) * z_m - start_m
    clear = rendered.layers["snow_alpha"] == 0
    clear[:12] = False
    clear &= path > 5
    for channel in range(3):
        seen = (rendered.image[..., channel] - airlight[channel]) / (image[..., channel] - airlight[channel])
        beta = np.polyfit(path[clear], -np.log(seen[clear]), 1)[0]
        assert beta == pytest.approx(snow.beta_snow_per_m(0.02) * 2, rel=0.02)
    beta_per_km = snow.beta_snow_per_m(1.0) * 1e3
    assert 2.5 < beta_per_km < 3.5, "Sekhon and Srivastava at 1 mm/h see about 0.9 km"


def test_flakes_take_their_light_from_the_photo() -> None:
    depth = flat_depth(160, 160)
    params = changed(snow_rate_mm_h=2.0, extinction_factor=0.0)
    dark, bright = (apply(np.full((160, 160, 3), level, np.float32), params, depth).image for level in (0.02, 0.6))
    # Without sky an even photo counts as grey cards: flakes are as paper would be, at most 1.
    assert 0.03 < float(dark.max()) < 0.02 * 4 and float(bright.min()) >= 0.6 and 0.7 < float(bright.max()) < 1
    under_sky = replace(depth, sky=np.ones_like(depth.sky))
    sky = apply(np.full((160, 160, 3), 0.6, np.float32), params, under_sky).image
    assert 0.25 < float(sky.min()) < 0.45 and float(sky.max()) < 0.61, "before bright sky flakes are darker than it"
    lamp = np.full((160, 160, 3), 0.01, np.float32)
    lamp[110:130, 20:50] = 0.8
    half_sky = replace(depth, sky=np.repeat((np.arange(160) < 80).astype(np.float32), 160).reshape(160, 160))
    night = apply(lamp, params, half_sky).image
    assert float(night[:80].max()) > 0.05, "lamps light flakes before a dark sky"


def test_sprites_hold_the_area_and_stay_in_their_cells() -> None:
    rng = rng_for(3)
    for _ in range(5):
        coverage = snow_flakes.aggregate(rng)
        assert float(coverage.mean()) == pytest.approx(AREA_RATIO * np.pi / 4, rel=0.01)
        assert coverage.min() >= 0 and coverage.max() <= 1
    for plane, side in zip(snow_flakes._bank(), snow_flakes._CELL_SIDES_PX, strict=True):
        cells = plane.reshape(-1, side + 2, side + 2)
        np.testing.assert_allclose(cells.sum(axis=(1, 2)) * (64 / side) ** 2, 1, rtol=1e-3)
        assert float(np.abs(cells[:, [0, -1]]).max()) == 0 and float(np.abs(cells[:, :, [0, -1]]).max()) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 3), (65, 131)])
def test_any_size_and_depth_that_is_near(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 0.4, np.float32)
    for z in (0.1, 3.0, 1e4):
        rendered = apply(image, changed(snow_rate_mm_h=5.0, aperture_m=0.01), flat_depth(size[0], size[1], z))
        assert rendered.image.shape == image.shape and np.isfinite(rendered.image).all()
        assert rendered.target is image


def test_severity_is_monotone_on_photos() -> None:
    photos = [data.astronaut()[::3, ::3], data.coffee()[::3, ::3], data.rocket()[::3, ::3]]
    distance = []
    for severity in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        step = sample_step(SNOW, severity, rng_for(3, "params"), SEED)
        moved = [_distance(np.ascontiguousarray(photo), step) for photo in photos]
        distance.append(float(np.median(moved)))
    assert distance == sorted(distance) and distance[0] < 5 and distance[-1] > 3 * distance[1]


def _distance(photo: Any, step: Step) -> float:
    depth = flat_depth(photo.shape[0], photo.shape[1], 20.0)
    image = to_pixels(replay_with(photo, [step], Scene(depth=depth), {"snow": SNOW}).image)
    return float(np.abs(image.astype(np.float64) - photo).mean())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("snow_rate_mm_h", 0.0),
        ("exposure_s", -0.1),
        ("aperture_m", 2.0),
        ("albedo", 1.2),
        ("concentration_gain", 0.0),
        ("wind_m_s", 1e6),
    ],
)
def test_bad_parameters_are_refused_by_name(field: str, value: float) -> None:
    step = sample_step(SNOW, 0.5, rng_for(0), SEED)
    bad = step.model_copy(update={"params": {**step.params, field: value}})
    photo = data.astronaut()[:32, :32].copy()
    with pytest.raises(ValueError, match=rf"(?s)'snow' do not fit.*{field}"):
        replay_with(photo, [bad], Scene(depth=flat_depth(32, 32)), {"snow": SNOW})


def test_snow_needs_depth() -> None:
    step = sample_step(SNOW, 0.5, rng_for(0), SEED)
    with pytest.raises(ValueError, match="'snow' needs depth"):
        replay_with(data.astronaut()[:32, :32].copy(), [step], Scene(), {"snow": SNOW})


def test_input_stays_and_bytes_repeat() -> None:
    image = pixels_to_linear(np.ascontiguousarray(data.coffee()[:200, :300]))
    before = image.copy()
    first = apply(image, STILL, flat_depth(200, 300))
    again = apply(image, STILL, flat_depth(200, 300))
    assert np.array_equal(image, before) and np.array_equal(first.image, again.image)
