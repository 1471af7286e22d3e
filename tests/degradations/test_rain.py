"""Rain: properties R1 to R5 (R6 is that of drops on glass), splashes and wet ground, and what replay needs."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from skimage import data

from degradations import rain, rain_drops, rain_ground, rain_streaks
from degradations.base import Depth, Scene, replay_with, sample_step
from degradations.rain import RAIN, RainParams
from degradations.rain_streaks import Streaks, Values
from degradations.scene.depth import geometric_depth
from pairforge.image import Image, Plane, linear_to_srgb, pixels_to_linear, to_pixels
from pairforge.rng import rng_for, seed_for

SEED = seed_for(1, "pixels")
STILL = RainParams(
    rain_rate_mm_h=10.0,
    exposure_s=1 / 100,
    wind_m_s=0.0,
    camera_speed_m_s=0.0,
    tilt_sigma_deg=0.0,
    aperture_m=0.0,
    streak_gain=1.0,
    veil_gain=1.0,
    splash_gain=1.0,
    wetness=0.0,
)


def photo(name: str) -> Any:
    return getattr(data, name)()


def flat_scene(height: int, width: int, z: float = 100.0) -> Scene:
    z_m = np.full((height, width), z, np.float32)
    return Scene(depth=Depth(z_m, np.zeros_like(z_m), float(width), "test", "1", 1.0, True))


def street(height: int, width: int, camera_m: float = 1.6) -> Scene:
    """Level ground seen from `camera_m` above it, and a wall 80 m away over the horizon."""
    y = np.arange(height) - 0.45 * height
    row = np.where(y > 0, np.minimum(camera_m * width / np.maximum(y, 1e-3), 80), 80).astype(np.float32)
    z_m = np.ascontiguousarray(np.repeat(row[:, None], width, axis=1))
    return Scene(depth=Depth(z_m, np.zeros_like(z_m), float(width), "test", "1", 1.0, True))


def one_streak(width_px: float, length_px: float, angle_deg: float, x: float, y: float) -> Streaks:
    angle = np.deg2rad(angle_deg)
    values = (x, y, np.cos(angle), np.sin(angle), width_px, length_px, 2.0, 1.0)
    return Streaks(*(np.array([value], np.float32) for value in values))


def opacity(streaks: Streaks, gain: float = 1.0) -> Plane:
    return rain_streaks.rasterise(streaks, np.full((220, 200), 50, np.float32), gain)


@pytest.mark.parametrize("rate", [1.0, 10.0, 50.0])
def test_r1_count_follows_the_integral(rate: float) -> None:
    width_px = 0.7
    counts = [len(rain_drops.draw_drops(rate, width_px, 1024, 1024, 1024.0, rng_for(k, "n"))[0]) for k in range(8)]
    mean = rain_drops.expected_drops(rate, width_px, 1024, 1024, 1024.0)
    assert abs(np.sum(counts) - 8 * mean) < 3 * np.sqrt(8 * mean)


def test_r1_recorded_count_follows_the_integral() -> None:
    image = np.full((64, 96, 3), 0.2, np.float32)
    scene = flat_scene(64, 96)
    counts = [rain.apply_rain(image, STILL, scene, rng_for(k, "r")).realised["drop_count"] for k in range(20)]
    limit = rain_drops.min_streak_width_px(STILL.rain_rate_mm_h, 96, 64, 96.0)
    mean = rain_drops.expected_drops(STILL.rain_rate_mm_h, limit, 96, 64, 96.0)
    assert abs(np.sum(counts) - 20 * mean) < 3 * np.sqrt(20 * mean)


def test_r1_sizes_follow_marshall_palmer() -> None:
    rate, width_px = 20.0, 0.5
    sizes = np.concatenate(
        [rain_drops.draw_drops(rate, width_px, 2048, 1024, 700.0, rng_for(k, "d"))[0] for k in range(16)]
    )
    assert len(sizes) > 1e5
    edges = np.linspace(1.0, 4.0, 16)
    counts, _ = np.histogram(sizes, edges)
    diameter, density = rain_drops.visible_density(rate, width_px, 700.0)
    volume = density / np.exp(-rain_drops.slope_per_mm(rate) * diameter)
    middle = 0.5 * (edges[1:] + edges[:-1])
    per_volume = counts / np.interp(middle, diameter, volume)
    slope = np.polyfit(middle, np.log(per_volume), 1, w=np.sqrt(counts))[0]
    assert -slope == pytest.approx(rain_drops.slope_per_mm(rate), rel=0.02)


def test_fall_speed_is_that_of_atlas() -> None:
    speed = rain_drops.fall_speed_m_s(np.array([1.0, 2.0, 5.0], np.float32))
    assert speed == pytest.approx([3.997, 6.548, 9.137], abs=0.002)


@pytest.mark.parametrize("rate", [1.0, 10.0, 90.0])
def test_extinction_is_the_integral_of_the_population(rate: float) -> None:
    diameter = np.linspace(0, 30, 200_001)
    number = 8000 * np.exp(-rain_drops.slope_per_mm(rate) * diameter)
    integral = np.trapezoid(2 * np.pi / 4 * diameter**2 * 1e-6 * number, diameter)
    assert rain_drops.beta_rain_per_m(rate) == pytest.approx(integral, rel=1e-4)
    assert rain_drops.beta_rain_per_m(rate) == pytest.approx(0.365e-3 * rate**0.63, rel=0.01)


def drops_and_streaks(params: RainParams, focal_px: float = 1000.0) -> tuple[Values, Values, Streaks]:
    diameter, z_m = rain_drops.draw_drops(params.rain_rate_mm_h, 0.5, 1024, 1024, focal_px, rng_for(1, "drops"))
    streaks = rain_drops.project_drops(
        diameter,
        z_m,
        exposure_s=params.exposure_s,
        wind_m_s=params.wind_m_s,
        camera_speed_m_s=params.camera_speed_m_s,
        tilt_sigma_deg=params.tilt_sigma_deg,
        aperture_m=params.aperture_m,
        focus_m=10.0,
        size=(1024, 1024),
        focal_px=focal_px,
        rng=rng_for(1, "place"),
    )
    return diameter, z_m, streaks


@pytest.mark.parametrize("exposure_s", [1 / 500, 1 / 60])
def test_r2_streak_length(exposure_s: float) -> None:
    diameter, z_m, streaks = drops_and_streaks(STILL.model_copy(update={"exposure_s": exposure_s}))
    ratio = streaks.length_px * z_m / (rain_drops.fall_speed_m_s(diameter) * exposure_s * 1000.0)
    assert np.median(ratio) == pytest.approx(1, rel=0.02)
    assert np.allclose(streaks.width_px * z_m, 1000.0 * 1e-3 * diameter, rtol=1e-4)
    assert np.allclose(streaks.dir_x, 0, atol=1e-5) and np.allclose(streaks.dir_y, 1)


def test_wind_leans_and_a_moving_camera_spreads_streaks() -> None:
    _, _, blown = drops_and_streaks(STILL.model_copy(update={"wind_m_s": 5.0}))
    assert (blown.dir_x > 0).all()
    _, _, driven = drops_and_streaks(STILL.model_copy(update={"camera_speed_m_s": 20.0}))
    assert np.corrcoef(driven.x - 511.5, driven.dir_x)[0, 1] > 0.5


def test_defocus_widens_near_drops_and_keeps_their_light() -> None:
    _, z_m, sharp = drops_and_streaks(STILL)
    _, _, soft = drops_and_streaks(STILL.model_copy(update={"aperture_m": 0.01}))
    near = z_m < 1.5
    assert (soft.width_px[near] > 2 * sharp.width_px[near]).mean() > 0.9
    assert np.allclose(soft.strength * soft.width_px**2, sharp.width_px**2, rtol=1e-4)


@pytest.mark.parametrize("angle_deg", [90.0, 77.0, 100.0, 45.0, 20.0, 0.0])
@pytest.mark.parametrize("width_px", [0.5, 1.7, 3.0, 8.0])
@pytest.mark.parametrize("place", [(100.0, 110.0), (100.4, 109.7)])
def test_r3_opacity_sum(angle_deg: float, width_px: float, place: tuple[float, float]) -> None:
    """The sum is pi w^2 / 4 whatever the exposure; the peak falls as the streak gets longer."""
    short = opacity(one_streak(width_px, 40.0, angle_deg, *place))
    long = opacity(one_streak(width_px, 80.0, angle_deg, *place))
    expected = np.pi * width_px**2 / 4
    assert short.sum() == pytest.approx(expected, rel=0.02)
    assert long.sum() == pytest.approx(expected, rel=0.02)
    assert long.max() / short.max() == pytest.approx(0.5, rel=0.05)


def test_r3_streak_shorter_than_its_width() -> None:
    assert opacity(one_streak(6.0, 0.5, 90.0, 100.2, 99.6)).sum() < np.pi * 9 * 1.02
    alpha = opacity(one_streak(1.0, 0.2, 90.0, 100.3, 99.6))
    assert alpha.sum() == pytest.approx(np.pi / 4, rel=0.05)


def test_r3_of_a_whole_photo_opacity_adds_up_to_the_same_whatever_the_exposure() -> None:
    image = np.full((256, 256, 3), 0.2, np.float32)
    sums, peaks = [], []
    for exposure_s in (1 / 200, 1 / 100):
        params = STILL.model_copy(update={"exposure_s": exposure_s})
        alpha = rain.apply_rain(image, params, flat_scene(256, 256), rng_for(3, "r")).layers["rain_alpha"]
        sums.append(alpha.sum(dtype=np.float64))
        peaks.append(float(alpha.max()))
    assert sums[1] == pytest.approx(sums[0], rel=0.02)
    assert peaks[1] < 0.75 * peaks[0]


@pytest.mark.parametrize("width_px", [3.5, 7.0, 13.0, 40.0])
def test_r3_of_wide_streaks_on_smaller_grids(width_px: float) -> None:
    streaks = one_streak(width_px, 150.0, 85.0, 150.3, 160.6)
    alpha = rain_streaks.rasterise(streaks, np.full((330, 300), 50, np.float32), 1.0)
    assert alpha.sum() == pytest.approx(np.pi * width_px**2 / 4, rel=0.02)
    columns = alpha.sum(axis=0)
    centre = (columns * np.arange(300)).sum() / columns.sum()
    assert centre == pytest.approx(150.3, abs=0.1)
    profile = alpha[160]
    assert np.square(profile).sum() / profile.sum() <= width_px / 150 * 1.01, "no wider streak is more opaque"
    spread = np.sqrt((profile * np.square(np.arange(300) - 150.3)).sum() / profile.sum())
    assert spread == pytest.approx(width_px / 4, rel=0.4, abs=0.3), "a disc's projection has sigma w / 4"


def test_overlapping_streaks_are_seen_through_each_other() -> None:
    one = one_streak(2.0, 20.0, 90.0, 100.0, 110.0)
    both = opacity(rain_streaks.joined([one, one]), 3.0)
    alone = opacity(one, 3.0)
    assert np.abs((1 - both) - (1 - alone) ** 2).max() < 1e-5
    assert opacity(one, 1e6).max() < 1


def test_streak_alpha_is_exact_coverage() -> None:
    """Against a disc stepped along its path, wide enough for the pixel average to be immaterial."""
    radius, length = 12.0, 50.0
    s, n = np.meshgrid(np.arange(-50.0, 51.0, 3.0), np.arange(-11.0, 12.0, 2.0))
    centres = (np.arange(4000) + 0.5) / 4000 * length - length / 2
    covered = ((s[..., None] - centres) ** 2 + n[..., None] ** 2 < radius**2).mean(axis=2)
    chord = np.sqrt(radius**2 - n**2)
    assert np.abs(rain_streaks.streak_alpha(s, chord, np.full_like(s, length)) - covered).max() < 1e-3


def test_r4_distances_fill_the_volume_evenly() -> None:
    width_px, focal_px = 0.5, 1024.0
    diameter, z_m = rain_drops.draw_drops(60.0, width_px, 1024, 1024, focal_px, rng_for(7, "z"))
    for low, high in ((0.8, 1.2), (1.2, 2.0), (2.0, 4.0)):
        chosen = (diameter >= low) & (diameter < high)
        z_max = focal_px * diameter[chosen].astype(float) * 1e-3 / width_px
        share = np.sort((z_m[chosen].astype(float) ** 3 - 0.125) / (z_max**3 - 0.125))
        count = len(share)
        gap = np.abs(share - (np.arange(count) + 0.5) / count).max() + 0.5 / count
        assert count > 200 and gap * np.sqrt(count) < 1.63, "Kolmogorov-Smirnov at p = 0.01"


def ray_length_m(depth: Depth) -> Plane:
    height, width = depth.z_m.shape
    y, x = np.mgrid[:height, :width]
    tangent = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) / depth.focal_px
    length: Plane = (depth.z_m * np.sqrt(1 + tangent**2)).astype(np.float32)
    return length


@pytest.mark.parametrize("rate", [10.0, 90.0])
def test_r5_veil_is_haze_of_the_populations_extinction(rate: float) -> None:
    z_m = np.repeat(np.geomspace(200, 3, 120)[:, None], 160, axis=1).astype(np.float32)
    depth = Depth(z_m, np.zeros_like(z_m), 160.0, "test", "1", 1.0, True)
    image = np.random.default_rng(0).uniform(0, 0.3, (120, 160, 3)).astype(np.float32)
    image[:, ::7] = 1.0
    params = STILL.model_copy(update={"rain_rate_mm_h": rate, "streak_gain": 0.0, "splash_gain": 0.0})
    rendered = rain.apply_rain(image, params, Scene(depth=depth), rng_for(1, "r"))
    airlight = np.array(rendered.realised["environment_rgb"], np.float32)
    span = image - airlight
    use = np.abs(span) > 0.2
    t = (rendered.image - airlight)[use] / span[use]
    rays = np.broadcast_to(ray_length_m(depth)[..., None], span.shape)[use]
    beta = (rays * -np.log(t)).sum() / np.square(rays).sum()
    assert beta == pytest.approx(rain_drops.beta_rain_per_m(rate), rel=0.02)
    expected = np.exp(-rain_drops.beta_rain_per_m(rate) * ray_length_m(depth))
    assert np.abs(rendered.layers["rain_transmission"] / 65535 - expected).max() < 2e-4


def test_no_rain_in_front_of_near_things() -> None:
    z_m = np.full((128, 128), 60, np.float32)
    z_m[:, :64] = 0.4
    depth = Depth(z_m, np.zeros_like(z_m), 128.0, "test", "1", 1.0, True)
    image = np.full((128, 128, 3), 0.2, np.float32)
    rendered = rain.apply_rain(image, RAIN.sample(0.7, rng_for(1, "p")), Scene(depth=depth), rng_for(1, "r"))
    assert rendered.layers["rain_alpha"][:, :64].max() == 0
    assert rendered.layers["rain_alpha"][:, 64:].max() > 0


@pytest.mark.parametrize(("metric", "scale"), [(True, 1.0), (False, 5.0)])
def test_only_a_guessed_close_up_is_moved_away(metric: bool, scale: float) -> None:
    z_m = np.full((96, 96), 1.0, np.float32)
    scene = Scene(depth=Depth(z_m, np.zeros_like(z_m), 96.0, "test", "1", 1.0, metric))
    rendered = rain.apply_rain(np.full((96, 96, 3), 0.1, np.float32), STILL, scene, rng_for(1, "r"))
    assert rendered.realised["depth_scale"] == scale and rendered.realised["focus_m"] == pytest.approx(scale)
    assert z_m.max() == 1


# Ground


def test_splashes_are_as_many_as_drops_hit_the_ground_in_view() -> None:
    scene = street(240, 320)
    assert scene.depth is not None
    ground = rain_ground.Ground(scene.depth)
    diameter, larger = rain_ground.flux_curve(10.0)
    assert np.interp(1.0, diameter, larger) == pytest.approx(1280, rel=0.03)
    counts = []
    for seed in range(8):
        drawn = rain_ground.draw_splashes(10.0, 1 / 50, 0.0, 10.0, 1.0, ground, scene.depth, rng_for(seed, "s"))
        counts.append(drawn[1] if drawn else 0)
    # Cell by cell, drops whose crown, 3.5 diameters wide on average, spans what the frame shows as 0.9 px of 1024.
    least_mm = np.maximum(0.9 * 320 / 1024 * ground.z_m / 320 / 3.5 * 1e3, 0.3)
    mean = float((ground.area_m2 * (1 / 50 + 0.02) * np.interp(least_mm, diameter, larger)).sum())
    assert abs(np.sum(counts) - 8 * mean) < 3 * np.sqrt(8 * mean)


def test_the_ground_in_view_has_its_area() -> None:
    """Level ground between 3 and 30 m: a trapezium of known area."""
    scene = street(480, 640)
    assert scene.depth is not None
    ground = rain_ground.Ground(scene.depth)
    between = (ground.z_m > 4) & (ground.z_m < 16)
    assert ground.weight[between].min() > 0.9
    assert ground.area_m2[between].sum() == pytest.approx(0.5 * (16**2 - 4**2), rel=0.12)
    assert ground.weight[: len(ground.weight) // 3].max() < 0.01


def test_splashes_and_wetness_stay_on_the_ground() -> None:
    image = np.full((240, 320, 3), 0.1, np.float32)
    only = STILL.model_copy(update={"streak_gain": 0.0, "veil_gain": 0.0, "splash_gain": 20.0, "rain_rate_mm_h": 60.0})
    wall = rain.apply_rain(image, only.model_copy(update={"wetness": 1.0}), flat_scene(240, 320, 5.0), rng_for(1, "r"))
    assert wall.realised["splash_count"] == 0 and np.abs(wall.image - image).max() < 1e-6
    rendered = rain.apply_rain(image, only, street(240, 320), rng_for(1, "r"))
    alpha = rendered.layers["rain_alpha"]
    assert rendered.realised["splash_count"] > 50
    assert alpha[:100].max() == 0 < alpha[140:].max()


def test_wet_ground_darkens_as_a_rough_surface_under_water_and_white_stays() -> None:
    dry = STILL.model_copy(update={"streak_gain": 0.0, "veil_gain": 0.0, "splash_gain": 0.0})
    image = np.full((240, 320, 3), 0.2, np.float32)
    image[:, 160:] = 1.0
    wet = rain.apply_rain(image, dry.model_copy(update={"wetness": 1.0}), street(240, 320), rng_for(1, "r"))
    near = wet.image[225:, :, 1]
    sheen = float((near[:, 170:] - 1).mean())
    assert 0 < sheen < 0.1
    # Half a grid cell in from the border, where the map of the ground is whole.
    assert float(near[:, 8:150].mean()) - sheen == pytest.approx(0.2 / (1.33**2 * 0.8 + 0.2), rel=0.05)
    assert np.abs(wet.image[:90] - image[:90]).max() < 1e-3


def test_density_is_even_up_to_the_border() -> None:
    total = np.zeros((96, 96))
    for k in range(10):
        params = STILL.model_copy(update={"rain_rate_mm_h": 60.0, "wind_m_s": 3.0, "exposure_s": 1 / 30})
        image = np.full((96, 96, 3), 0.2, np.float32)
        total += rain.apply_rain(image, params, flat_scene(96, 96), rng_for(k, "r")).layers["rain_alpha"]
    border = np.concatenate([total[:8].ravel(), total[-8:].ravel(), total[:, :8].ravel(), total[:, -8:].ravel()])
    assert border.mean() == pytest.approx(total[20:-20, 20:-20].mean(), rel=0.12)


@pytest.mark.parametrize("size", [(64, 64), (1024, 1024), (3072, 4096)])
def test_drop_count_does_not_grow_with_resolution(size: tuple[int, int]) -> None:
    height, width = size
    limit = rain_drops.min_streak_width_px(120.0, width, height, float(width))
    expected = rain_drops.expected_drops(120.0, limit, width, height, float(width))
    assert 8_000 < expected <= 24_000


def rank_correlation(values: NDArray[np.float64]) -> float:
    """Spearman's, with the order in which they come."""
    return float(np.corrcoef(np.argsort(np.argsort(values)), np.arange(len(values)))[0, 1])


def test_change_grows_with_severity() -> None:
    """Same draws, median over photos; streaks alone, which photos with a grey sky would hide, must grow too."""
    levels = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    change, opacities = np.zeros((3, 6)), np.zeros((3, 6))
    for row, name in enumerate(("astronaut", "chelsea", "rocket")):
        base = np.ascontiguousarray(photo(name)[::2, ::2])
        scene = Scene(depth=geometric_depth(base))
        image = pixels_to_linear(base)
        for column, severity in enumerate(levels):
            params = RAIN.sample(severity, rng_for(5, "same spread"))
            rendered = rain.apply_rain(image, params, scene, rng_for(5, "r"))
            change[row, column] = np.abs(linear_to_srgb(rendered.image) - linear_to_srgb(image)).mean()
            opacities[row, column] = rendered.realised["mean_alpha"]
    for values in (change, opacities):
        median = np.median(values, axis=0)
        assert rank_correlation(median) >= 0.95, median
    assert np.median(opacities, axis=0)[0] < 0.01 < 0.05 < np.median(opacities, axis=0)[-1] < 0.35


def test_strength_hardly_depends_on_resolution() -> None:
    means = []
    for side in (128, 256, 512):
        image = np.full((side, side, 3), 0.1, np.float32)
        params = RAIN.sample(0.6, rng_for(2, "p"))
        means.append(rain.apply_rain(image, params, flat_scene(side, side), rng_for(1, "r")).realised["mean_alpha"])
    assert max(means) < 1.25 * min(means)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rain_rate_mm_h", -1.0), ("exposure_s", 0.0), ("wetness", 1.1), ("streak_gain", -0.1), ("aperture_m", 1.0)],
)
def test_impossible_parameters_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        RainParams.model_validate({**STILL.model_dump(), field: value})
    base = np.zeros((16, 16, 3), np.uint8)
    step = sample_step(RAIN, 0.6, rng_for(2, "params"), SEED)
    bad = step.model_copy(update={"params": {**step.params, field: value}})
    with pytest.raises(ValueError, match=f"(?s)'rain' do not fit.*{field}"):
        replay_with(base, [bad], Scene(depth=geometric_depth(base)), {"rain": RAIN})


def test_rain_without_depth_is_refused() -> None:
    step = sample_step(RAIN, 0.6, rng_for(2, "params"), SEED)
    with pytest.raises(ValueError, match="'rain' needs depth"):
        replay_with(np.zeros((16, 16, 3), np.uint8), [step], Scene(), {"rain": RAIN})


def test_replay_is_exact_and_pure() -> None:
    base = np.ascontiguousarray(photo("coffee")[::3, ::3])
    scene = Scene(depth=geometric_depth(base))
    assert scene.depth is not None
    copies = base.copy(), scene.depth.z_m.copy()
    step = sample_step(RAIN, 0.6, rng_for(2, "params"), SEED)
    first, second = (replay_with(base, [step], scene, {"rain": RAIN}) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.layers["rain_alpha"] == second.layers["rain_alpha"]).all()
    assert (base == copies[0]).all() and (scene.depth.z_m == copies[1]).all()
    assert (to_pixels(first.target) == base).all()


@pytest.mark.parametrize("field", sorted(RainParams.model_fields))
def test_every_field_moves_pixels(field: str) -> None:
    rng = np.random.default_rng(0)
    image: Image = rng.uniform(0, 0.5, (96, 128, 3)).astype(np.float32)
    # A frame of 128 px shows blur of a wide lens only.
    params = RAIN.sample(0.6, rng_for(2, "params")).model_copy(update={"aperture_m": 0.03, "camera_speed_m_s": 4.0})
    nudged = params.model_copy(update={field: getattr(params, field) * 1.1})
    scene = street(96, 128)
    first, second = (rain.apply_rain(image, each, scene, rng_for(1, "r")).image for each in (params, nudged))
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (16, 16), (17, 33), (90, 31), (31, 200)])
def test_any_size_and_light_above_one(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, 4, (*size, 3)).astype(np.float32)
    scene = Scene(depth=geometric_depth(to_pixels(image)))
    rendered = rain.apply_rain(image, RAIN.sample(0.9, rng_for(1, "p")), scene, rng_for(1, "r"))
    assert rendered.image.shape == image.shape and rendered.image.dtype == np.float32
    assert np.isfinite(rendered.image).all() and rendered.image.max() > 1
    assert rendered.target is image
    assert rendered.layers["rain_alpha"].dtype == np.uint16
