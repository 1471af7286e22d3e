"""Haze, ground fog and night haze: PHYSICS H1-H6; blended patterns; what replay needs."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from skimage import data

from degradations.base import Degradation, Depth, Params, Rendered, Scene, replay_with, sample_step
from degradations.haze import GROUND_FOG, HAZE, AirParams, GroundFogParams, HazeParams, horizon_row_frac, ray_rise
from degradations.haze_medium import (
    TWILIGHT_CHROMA,
    beta_for,
    blocks,
    density_grid,
    enlarged,
    ray_length_m,
    sky_floor,
    spectral_gain,
    visibility_m,
)
from degradations.haze_night import NIGHT_HAZE, NightHazeParams, glow_radiance
from degradations.haze_patterns import HAZE_PATTERN, HazePatternParams, haze_pattern_image
from degradations.scene.depth import geometric_depth
from pairforge.image import (
    Image,
    Pixels,
    Plane,
    linear_to_srgb,
    luminance,
    pixels_to_linear,
    srgb_to_linear,
    to_float,
    to_pixels,
)
from pairforge.records import Step
from pairforge.rng import rng_for, seed_for

SEED = seed_for(1, "pixels")
OF_DEPTH: tuple[Degradation[Any], ...] = (HAZE, GROUND_FOG, NIGHT_HAZE)
ALL: tuple[Degradation[Any], ...] = (*OF_DEPTH, HAZE_PATTERN)
BY_NAME = {degradation.name: degradation for degradation in ALL}
AIR = {
    "effective_optical_depth": 0.7,
    "airlight_luminance": 0.9,
    "airlight_warmth": 0.0,
    "airlight_scene_tint": 0.0,
    "density_cv": 0.0,
    "density_scale_frac": 0.3,
}
GREY = HazeParams(**AIR, angstrom_exponent=0.0, sky_floor=0.1)
FOG = GroundFogParams(**AIR, scale_height_m=6.0, camera_height_m=1.5)
NIGHT = NightHazeParams(**AIR, sky_floor=0.1, source_gain=40.0, scatter_asymmetry=0.8)
PLAIN = HazePatternParams(
    alpha=(0.8,),
    flip_x=(False,),
    flip_y=(False,),
    scale=(1.0,),
    rotation_deg=(0.0,),
    shift_x_frac=(0.0,),
    shift_y_frac=(0.0,),
)

of_air = pytest.mark.parametrize("params", [GREY, FOG, NIGHT], ids=["haze", "ground_fog", "night_haze"])
each = pytest.mark.parametrize("name", sorted(BY_NAME))


def photo(name: str) -> Any:
    return getattr(data, name)()


def ramp_scene(height: int = 120, width: int = 160, sky_rows: int = 0) -> Scene:
    """Planar depth from 60 m at the top to 3 m at the bottom."""
    z_m = np.repeat(np.geomspace(60, 3, height)[:, None], width, axis=1).astype(np.float32)
    sky = np.zeros_like(z_m)
    sky[:sky_rows] = 1
    z_m[:sky_rows] = 300
    return Scene(depth=Depth(z_m, sky, float(width), "test", "1", 1.0, True))


def texture(height: int = 120, width: int = 160, seed: int = 0) -> Image:
    return np.random.default_rng(seed).uniform(0.0, 0.6, (height, width, 3)).astype(np.float32)


def render(image: Image, params: Params, scene: Scene) -> Rendered:
    (degradation,) = (each for each in ALL if each.params_type is type(params))
    result: Rendered = degradation.apply(image, params, scene, rng_for(1, "haze"))
    return result


def changed(params: Any, **values: Any) -> Any:
    return type(params).model_validate({**params.model_dump(), **values})


def fitted_beta(hazy: Image, clean: Image, airlight: NDArray[np.float32], path_m: Plane) -> float:
    """Weighted fit of -ln t on path length over pixels where the estimate is well conditioned."""
    span = clean - airlight
    wide = np.abs(span) > 0.2
    t = np.where(wide, (hazy - airlight) / np.where(wide, span, 1), 0)
    use = wide & (t > 0.05)
    assert use.sum() > 1000
    paths = np.broadcast_to(path_m[..., None], t.shape)[use].astype(np.float64)
    return float((paths * -np.log(t[use])).sum() / np.square(paths).sum())


def airlight_of(rendered: Rendered) -> NDArray[np.float32]:
    return np.array(rendered.realised["airlight_rgb"], np.float32)


def stored(image_lin: Image) -> Image:
    return srgb_to_linear(to_float(to_pixels(linear_to_srgb(image_lin))))


def fog_path_m(depth: Depth, params: GroundFogParams) -> Plane:
    """Sum of exp(-h / H) over short steps along every ray, in float64."""
    height = depth.z_m.shape[0]
    rise = ((horizon_row_frac(depth) * height - np.arange(height) - 0.5) / depth.focal_px)[:, None]
    path = np.zeros(depth.z_m.shape)
    steps = 400
    for step in range(steps):
        z_m = depth.z_m.astype(np.float64) * (step + 0.5) / steps
        path += np.exp(-np.maximum(params.camera_height_m + z_m * rise, 0) / params.scale_height_m)
    return (path / steps * ray_length_m(depth)).astype(np.float32)


# Koschmieder


@of_air
@pytest.mark.parametrize("strength", [0.1, 0.7, 1.4])
def test_h1_fit_recovers_beta(params: AirParams, strength: float) -> None:
    scene, image = ramp_scene(), texture() * np.float32(0.8)
    assert scene.depth is not None
    params = changed(params, effective_optical_depth=strength, airlight_luminance=1.6)
    rendered = render(image, params, scene)
    beta = rendered.realised["beta_per_m"]
    fog = isinstance(params, GroundFogParams)
    path_m = fog_path_m(scene.depth, params) if isinstance(params, GroundFogParams) else ray_length_m(scene.depth)
    airlight = airlight_of(rendered)
    assert fitted_beta(rendered.image, image, airlight, path_m) == pytest.approx(beta, rel=0.01 if fog else 1e-3)
    assert fitted_beta(stored(rendered.image), image, airlight, path_m) == pytest.approx(beta, rel=0.02)


def motorcycle() -> tuple[Pixels, Depth]:
    """A photo with its true disparity (Middlebury 2014, 'Motorcycle' at quarter size), in metres."""
    left, _, disparity = data.stereo_motorcycle()
    known = np.isfinite(disparity)
    z_m = 994.978 * 0.193001 / (np.where(known, disparity, disparity[known].min()) + 31.086)
    return left, Depth(z_m.astype(np.float32), np.zeros(z_m.shape, np.float32), 994.978, "true", "1", 1.0, True)


@pytest.mark.parametrize("exponent", [0.0, 1.3])
def test_h1_on_a_photo_with_true_depth_for_each_colour(exponent: float) -> None:
    base, depth = motorcycle()
    image = pixels_to_linear(base)
    rendered = render(image, changed(GREY, angstrom_exponent=exponent), Scene(depth=depth))
    ray_m, airlight = ray_length_m(depth), airlight_of(rendered)
    for channel, nm in enumerate((610, 550, 465)):
        expected = rendered.realised["beta_per_m"] * (nm / 550) ** -exponent
        pick = slice(channel, channel + 1)
        fits = [
            fitted_beta(hazy[..., pick], image[..., pick], airlight[pick], ray_m)
            for hazy in (rendered.image, stored(rendered.image))
        ]
        assert fits[0] == pytest.approx(expected, rel=1e-3)
        assert fits[1] == pytest.approx(expected, rel=0.02)


def test_h2_contrast_falls_exponentially() -> None:
    scene = ramp_scene()
    assert scene.depth is not None
    low, high = np.full((120, 160, 3), 0.2, np.float32), np.full((120, 160, 3), 0.5, np.float32)
    # Both scenes must meet the same airlight, which is found in the image: give it one bright corner.
    for image in (low, high):
        image[:, 120:] = 0.8
    first, second = render(low, GREY, scene), render(high, GREY, scene)
    assert first.realised["airlight_rgb"] == second.realised["airlight_rgb"]
    ratio = ((second.image - first.image) / np.float32(0.3))[:, :110, 1]
    expected = np.exp(-first.realised["beta_per_m"] * ray_length_m(scene.depth))[:, :110]
    assert np.abs(ratio / expected - 1).max() < 0.01
    assert np.abs(first.layers["transmission"][:, :110] / 65535 - expected).max() < 2e-5


@of_air
def test_h3_limits(params: AirParams) -> None:
    image = texture() * np.float32(0.8)
    nothing = changed(params, effective_optical_depth=0.0)
    assert np.abs(render(image, nothing, ramp_scene()).image - image).max() < 1e-6
    # Above the horizon a ray leaves the fog: there its limit is not A.
    far = slice(70, 120) if isinstance(params, GroundFogParams) else slice(0, 60)
    z_m = np.full((120, 160), 5, np.float32)
    z_m[far] = 1e5
    rendered = render(image, params, Scene(depth=Depth(z_m, np.zeros_like(z_m), 160.0, "test", "1", 1.0, True)))
    codes = to_pixels(linear_to_srgb(rendered.image[far])).astype(int)
    airlight = to_pixels(linear_to_srgb(airlight_of(rendered)[None, None])).astype(int)
    assert np.abs(codes - airlight).max() <= 1


@pytest.mark.parametrize("size", [(96, 130), (700, 512), (33, 17)])
@pytest.mark.parametrize("cv", [0.1, 0.45])
@pytest.mark.parametrize("patch_frac", [0.15, 0.8])
def test_h4_density_has_mean_one_and_its_spread(size: tuple[int, int], cv: float, patch_frac: float) -> None:
    field = density_grid(*size, patch_frac * size[1], cv, rng_for(3, "density"))
    assert field.dtype == np.float32 and field.min() > 0
    assert field.mean(dtype=np.float64) == pytest.approx(1, abs=0.01)
    assert field.std() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("cv", [0.15, 0.45])
def test_h4_density_as_pixels_show_it(cv: float) -> None:
    """Every third column is near enough to see the first slab alone: its tau over beta times length is density."""
    z_m = np.full((240, 300), 10.0, np.float32)
    z_m[:, ::3] = 5.0
    depth = Depth(z_m, np.zeros_like(z_m), 3000.0, "test", "1", 1.0, True)
    image = texture(240, 300)
    rendered = render(image, changed(GREY, density_cv=cv, airlight_luminance=2.0), Scene(depth=depth))
    airlight = airlight_of(rendered)
    t = ((rendered.image - airlight) / (image - airlight)).mean(axis=2)[:, ::3]
    density = -np.log(t) / (rendered.realised["beta_per_m"] * ray_length_m(depth)[:, ::3])
    assert density.mean() == pytest.approx(1, abs=0.01)
    assert density.std() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("params", [GREY, FOG], ids=["haze", "ground_fog"])
def test_h5_light_moves_towards_airlight_in_a_straight_line(params: AirParams) -> None:
    image = texture()
    rendered = render(image, changed(params, density_cv=0.4), ramp_scene())
    moved, pull = rendered.image - image, airlight_of(rendered) - image
    share = (moved * pull).sum(axis=2, keepdims=True) / np.square(pull).sum(axis=2, keepdims=True)
    assert np.abs(moved - share * pull).max() < 1e-5
    assert share.min() >= 0 and share.max() <= 1
    assert np.abs(share[..., 0] - (1 - rendered.layers["transmission"] / 65535)).max() < 1e-4


@of_air
def test_h6_visibility_times_beta(params: AirParams) -> None:
    rendered = render(texture(), params, ramp_scene())
    product = rendered.realised["visibility_m"] * rendered.realised["beta_per_m"]
    assert product == pytest.approx(2.996, rel=1e-3)
    assert visibility_m(0.0) is None


@pytest.mark.parametrize("strength", [0.02, 0.5, 1.2])
def test_beta_gives_the_mean_transmission_asked_for(strength: float) -> None:
    scene = ramp_scene(sky_rows=30)
    assert scene.depth is not None
    ray_m = ray_length_m(scene.depth)
    beta = beta_for(ray_m, scene.depth.sky, strength)
    assert -np.log(np.exp(-beta * ray_m[30:]).mean()) == pytest.approx(strength, rel=0.01)


@pytest.mark.parametrize("params", [GREY, FOG], ids=["haze", "ground_fog"])
def test_air_without_sun_has_the_colour_of_the_sky(params: AirParams) -> None:
    """A sunlit sky leaves airlight white; where nothing is bright, the sky's hue is most of it, and it stays dim."""
    scene = ramp_scene(sky_rows=60)
    day = np.full((120, 160, 3), 0.5, np.float32)
    day[:60] = (0.35, 0.6, 0.9)
    by_day, dusk = airlight_of(render(day, params, scene)), airlight_of(render(day * np.float32(0.1), params, scene))
    assert np.ptp(by_day) < 1e-6
    hue = day[0, 0] / luminance(day[:1, :1])[0, 0]
    seen = dusk / luminance(dusk[None, None])[0, 0]
    assert np.allclose(seen, 1 + TWILIGHT_CHROMA * (hue - 1), atol=1e-3)
    assert luminance(dusk[None, None])[0, 0] < 0.3 * luminance(by_day[None, None])[0, 0]


def test_ray_is_longer_off_axis() -> None:
    scene = ramp_scene(101, 101)
    assert scene.depth is not None
    ray_m = ray_length_m(scene.depth)
    assert ray_m[50, 50] == pytest.approx(scene.depth.z_m[50, 50])
    assert ray_m[50, 0] / ray_m[50, 50] == pytest.approx(np.hypot(1, 50 / 101), rel=1e-5)


def test_angstrom_takes_more_blue() -> None:
    red, green, blue = spectral_gain(1.3)
    assert red < green == 1.0 < blue
    assert blue == pytest.approx((465 / 550) ** -1.3)


def test_sky_keeps_its_floor_and_ground_none() -> None:
    scene = ramp_scene(sky_rows=40)
    assert scene.depth is not None
    thick = changed(GREY, effective_optical_depth=3.0, sky_floor=0.3)
    transmission = render(texture(), thick, scene).layers["transmission"] / 65535
    assert transmission[0].min() == pytest.approx(0.3, abs=0.01)
    assert transmission[39].max() < transmission[0].min()
    assert transmission[40].max() < 0.1
    assert (transmission >= sky_floor(scene.depth.sky, 0.3) - 1e-4).all()


@pytest.mark.parametrize(("height", "width", "factor"), [(300, 210, 2), (517, 131, 4), (64, 64, 1)])
def test_rows_enlarged_one_block_at_a_time_are_those_of_the_whole(height: int, width: int, factor: int) -> None:
    grid = np.random.default_rng(0).random((-(-height // factor), -(-width // factor)), dtype=np.float32)
    whole = enlarged(grid, factor, slice(0, height), width)
    parts = [enlarged(grid, factor, rows, width) for rows in blocks(height, factor)]
    assert np.array_equal(np.concatenate(parts), whole) and whole.shape == (height, width)


# Ground fog


def test_fog_thins_with_height_and_its_height_counts() -> None:
    """At one distance, tau falls from row to row above the horizon; thicker layers reach higher."""
    z_m = np.full((120, 160), 40.0, np.float32)
    scene = Scene(depth=Depth(z_m, np.zeros_like(z_m), 160.0, "test", "1", 1.0, True))
    shallow, deep = (
        render(texture(), changed(FOG, scale_height_m=height_m), scene).layers["transmission"][:, 80].astype(float)
        for height_m in (3.0, 12.0)
    )
    assert (np.diff(shallow[:60]) < 0).all() and (np.diff(deep[:60]) < 0).all()
    assert (shallow > deep)[:60].all() and shallow[0] - deep[0] > 1.5 * (shallow[59] - deep[59])


def test_sky_above_fog_is_seen_through_the_layer_alone() -> None:
    scene = ramp_scene(sky_rows=40)
    assert scene.depth is not None
    rendered = render(texture(), FOG, scene)
    rise = ray_rise(scene.depth, rendered.realised["horizon_frac"])[:40, 0]
    ray = ray_length_m(scene.depth)[:40, 80] / 300
    # Vertical optical depth above the camera, over the sine of elevation.
    above = rendered.realised["beta_per_m"] * FOG.scale_height_m * np.exp(-FOG.camera_height_m / FOG.scale_height_m)
    expected = np.exp(-above / rise * ray)
    assert rendered.layers["transmission"][:40, 80] / 65535 == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("sky_rows", "expected"), [(0, 0.5), (30, 0.375), (60, 0.5), (96, 0.8)])
def test_horizon_is_level_or_below_the_sky(sky_rows: int, expected: float) -> None:
    scene = ramp_scene(sky_rows=sky_rows)
    assert scene.depth is not None
    assert horizon_row_frac(scene.depth) == pytest.approx(expected, abs=0.02)


# Night


def lamp_scene(distance_m: float = 20.0) -> tuple[Image, Scene]:
    image = np.full((128, 128, 3), 0.01, np.float32)
    image[62:66, 62:66] = 1
    z_m = np.full((128, 128), distance_m, np.float32)
    return image, Scene(depth=Depth(z_m, np.zeros_like(z_m), 128.0, "test", "1", 1.0, True))


@pytest.mark.parametrize("optical_depth", [0.3, 1.5])
@pytest.mark.parametrize("asymmetry", [0.0, 0.8])
def test_glow_is_the_single_scattering_integral(optical_depth: float, asymmetry: float) -> None:
    """Against a march along the view ray, metre by metre: light to the point, phase, light to the camera."""
    distance = 30.0
    beta = optical_depth / distance
    along = np.linspace(0, 900, 900_001)[1:] - 0.0005
    for angle in (0.02, 0.15, 0.6):
        x, y = along * np.cos(angle) - distance, along * np.sin(angle)
        apart = np.hypot(x, y)
        cosine = (-x * np.cos(angle) - y * np.sin(angle)) / -apart
        turned = np.clip(-cosine, -1, 1)
        phase = (1 - asymmetry**2) / (4 * np.pi * (1 + asymmetry**2 - 2 * asymmetry * turned) ** 1.5)
        marched = (beta * phase * np.exp(-beta * (apart + along)) / apart**2).sum() * 0.001 * distance**2
        assert glow_radiance(np.array([angle]), optical_depth, asymmetry, orders=1)[0] == pytest.approx(
            marched, rel=0.01
        )


def test_glow_around_a_lamp_is_energy_of_the_lamp_times_the_kernel() -> None:
    image, scene = lamp_scene()
    with_lamp, weaker = (render(image, changed(NIGHT, source_gain=gain), scene) for gain in (40.0, 20.0))
    assert scene.depth is not None
    t = np.exp(-with_lamp.realised["beta_per_m"] * ray_length_m(scene.depth))[..., None]
    plain = image * t + airlight_of(with_lamp) * (1 - t)
    glow = luminance(with_lamp.image - plain.astype(np.float32))
    found = luminance(weaker.image - plain.astype(np.float32))
    share = with_lamp.realised["lamp_area_frac"] * image[..., 0].size / 16
    assert share == 1
    for offset in (8, 16, 40):
        expected = 0.9 * glow_radiance(np.array([offset / 128]), 0.7, 0.8)[0] * 40 * 16 / 128**2
        # What a lamp itself adds to its surroundings takes a tenth off it.
        assert glow[64, 64 + offset] == pytest.approx(expected, rel=0.12)
        assert found[64, 64 + offset] == pytest.approx(glow[64, 64 + offset] / 2, rel=0.01)
    assert with_lamp.image[64, 64].min() > 10 * 0.5, "the lamp itself keeps its light"


def test_glow_widens_with_optical_depth() -> None:
    thin, thick = (glow_radiance(np.array([0.05, 0.5]), depth, 0.8) for depth in (0.2, 2.0))
    assert thick[1] / thick[0] > 1.1 * thin[1] / thin[0]


def test_bright_walls_lit_edges_and_skies_are_no_lamps() -> None:
    lamp, scene = lamp_scene()
    assert render(lamp, NIGHT, scene).layers["glow"].any()
    assert not render(lamp * np.float32(0.7), NIGHT, scene).layers["glow"].any(), "lit, and not clipped"
    wall = np.full((128, 128, 3), 0.01, np.float32)
    wall[20:100, 30:110] = 1
    assert not render(wall, NIGHT, scene).layers["glow"].any()
    image = texture() * np.float32(0.8)
    image[:40] = 0.9
    assert not render(image, NIGHT, ramp_scene(sky_rows=40)).layers["glow"].any()


# Patterns


def flat(value: int, dtype: Any = np.uint8, size: tuple[int, int] = (30, 40)) -> NDArray[Any]:
    return np.full((*size, 3), value, dtype)


def with_patterns(*patterns: NDArray[Any]) -> Scene:
    return Scene(patterns={"haze": patterns})


def test_pattern_is_koschmieder_with_white_airlight() -> None:
    image = texture() * 3
    for pattern, light in ((flat(188), pixels_to_linear(flat(188))[0, 0, 0]), (flat(65535, np.uint16), 1.0)):
        rendered = render(image, PLAIN, with_patterns(pattern))
        t = 1 - 0.8 * float(light)
        assert np.abs(rendered.image - (image * t + (1 - t))).max() < 1e-5
        assert rendered.layers["pattern_transmission"] == pytest.approx(t * 65535, abs=2)
        assert rendered.target is image


def test_transmissions_of_patterns_multiply() -> None:
    image = texture()
    first, second = (np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8) for seed in (1, 2))
    two = {field: getattr(PLAIN, field) * 2 for field in HazePatternParams.model_fields}
    together = render(
        image, HazePatternParams.model_validate({**two, "alpha": (0.8, 0.4)}), with_patterns(first, second)
    )
    once = render(image, PLAIN, with_patterns(first)).image
    twice = render(once, changed(PLAIN, alpha=(0.4,)), with_patterns(second)).image
    assert np.abs(together.image - twice).max() < 1e-5


@pytest.mark.parametrize(("field", "axis"), [("flip_x", 1), ("flip_y", 0)])
def test_flips_mirror_the_pattern(field: str, axis: int) -> None:
    image, pattern = np.zeros((40, 60, 3), np.float32), haze_pattern_image(3, 1, (40, 60))
    plain = render(image, PLAIN, with_patterns(pattern)).image
    flipped = render(image, changed(PLAIN, **{field: (True,)}), with_patterns(pattern)).image
    assert np.abs(np.flip(plain, axis) - flipped).max() < 1e-4
    assert np.abs(plain - 0.8 * pixels_to_linear(pattern)).max() < 1e-4, "at its own size it is taken as it is"


@pytest.mark.parametrize(
    "pattern", [flat(9)[..., 0], flat(9)[..., :2], flat(9, np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_patterns_that_are_no_pictures_are_refused(pattern: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="pattern 0 of bank 'haze' is"):
        render(texture(), PLAIN, with_patterns(pattern))


def test_too_few_patterns_are_refused() -> None:
    base = to_pixels(texture())
    step = Step(name="haze_pattern", version=1, severity=0.5, params=PLAIN.model_dump(mode="json"), seed=SEED)
    for scene, message in ((Scene(), "needs patterns"), (with_patterns(), "takes 1 patterns; this scene has 0")):
        with pytest.raises(ValueError, match=message):
            replay_with(base, [step], scene, BY_NAME)


def test_made_patterns_differ_and_repeat() -> None:
    small = [haze_pattern_image(index, 5, (64, 96)) for index in range(40)]
    assert all(pattern.dtype == np.uint8 and pattern.shape == (64, 96, 3) for pattern in small)
    rows = np.stack([pattern.mean(axis=2).ravel() for pattern in small])
    between = np.abs(np.corrcoef(rows)[np.triu_indices(len(rows), 1)])
    assert between.max() < 0.9, between.max()
    assert (rows.max(axis=1) > 150).all() and np.median(rows.min(axis=1)) < 60
    assert np.array_equal(haze_pattern_image(7, 5, (64, 96)), small[7])
    assert not np.array_equal(haze_pattern_image(7, 6, (64, 96)), small[7])


# What replay needs


def scene_for(base: Pixels) -> Scene:
    patterns = tuple(haze_pattern_image(index, 1, (96, 128)) for index in range(3))
    return Scene(depth=geometric_depth(base), patterns={"haze": patterns})


@each
def test_change_grows_with_severity(name: str) -> None:
    """Same seed, mean |LQ - HQ|, median over photos."""
    severities = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    changes = []
    for picture in ("astronaut", "coffee", "chelsea", "rocket"):
        base = np.ascontiguousarray(photo(picture)[::3, ::3])
        scene = scene_for(base)
        steps = [sample_step(BY_NAME[name], severity, rng_for(5, "spread"), SEED) for severity in severities]
        results = [replay_with(base, [step], scene, BY_NAME) for step in steps]
        changes.append([float(np.abs(result.image - result.target).mean()) for result in results])
    median = np.median(changes, axis=0)
    # Six rising values: a rank correlation of 1.
    assert (np.diff(median) > 0).all(), median
    assert median[0] < 0.03 and median[3] > 0.04


@each
def test_replay_is_exact_and_pure(name: str) -> None:
    base = np.ascontiguousarray(photo("coffee")[::3, ::3])
    scene = scene_for(base)
    assert scene.depth is not None
    arrays = (base, scene.depth.z_m, scene.depth.sky, *scene.patterns["haze"])
    copies = [array.copy() for array in arrays]
    step = sample_step(BY_NAME[name], 0.6, rng_for(2, "params"), SEED)
    first, second = (replay_with(base, [step], scene, BY_NAME) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert all((first.layers[key] == second.layers[key]).all() for key in first.layers)
    assert all(np.array_equal(array, copy) for array, copy in zip(arrays, copies, strict=True))
    assert (to_pixels(first.target) == base).all()


@pytest.mark.parametrize(
    ("name", "field"), [(each.name, field) for each in OF_DEPTH for field in each.params_type.model_fields]
)
def test_every_field_moves_pixels(name: str, field: str) -> None:
    image, scene = texture(), ramp_scene(sky_rows=30)
    image[..., 2] *= 1.3
    image[100:104, 40:44] = 1
    params = BY_NAME[name].sample(0.5, rng_for(2, "params"))
    first, second = (
        render(image, each, scene).image for each in (params, changed(params, **{field: getattr(params, field) * 0.8}))
    )
    assert np.abs(first - second).max() > 5e-5


@each
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (90, 31), (2, 300)])
def test_any_size_and_light_above_one(name: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, 4, (*size, 3)).astype(np.float32)
    image.flat[0] = 4
    rendered = render(image, BY_NAME[name].sample(0.8, rng_for(1, "p")), scene_for(to_pixels(image)))
    assert rendered.image.shape == image.shape and rendered.image.dtype == np.float32
    assert np.isfinite(rendered.image).all() and rendered.image.min() >= 0
    assert size == (1, 1) or rendered.image.max() > 1
    assert rendered.target is image
    assert all(layer.dtype == np.uint16 and layer.shape == size for layer in rendered.layers.values())


@pytest.mark.parametrize(
    ("params", "values"),
    [
        (GREY, {"effective_optical_depth": -0.1}),
        (GREY, {"airlight_luminance": float("nan")}),
        (GREY, {"sky_floor": 1.1}),
        (GREY, {"density_scale_frac": 0.0}),
        (FOG, {"scale_height_m": 0.0}),
        (FOG, {"camera_height_m": -1.0}),
        (NIGHT, {"scatter_asymmetry": 1.0}),
        (NIGHT, {"source_gain": 0.5}),
        (PLAIN, {"alpha": ()}),
        (PLAIN, {"alpha": (1.2,)}),
        (PLAIN, {"alpha": (0.5, 0.5)}),
        (PLAIN, {"scale": (0.0,)}),
    ],
)
def test_bad_parameters_are_refused(params: Params, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        changed(params, **values)
