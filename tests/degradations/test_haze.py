"""Haze: PHYSICS H1-H6, plus what replay needs (determinism, monotone strength, no mutation)."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from degradations.base import Depth, Rendered, Scene, replay_with, sample_step
from degradations.haze import (
    HAZE,
    HazeParams,
    apply_haze,
    beta_for,
    density_field,
    ray_length_m,
    spectral_gain,
    visibility_m,
)
from degradations.scene.depth import geometric_depth
from pairforge.image import Image, linear_to_srgb, pixels_to_linear, srgb_to_linear, to_float, to_pixels
from pairforge.rng import rng_for, seed_for

SEED = seed_for(1, "pixels")
GREY = HazeParams(
    effective_optical_depth=0.7,
    angstrom_exponent=0.0,
    airlight_luminance=0.9,
    airlight_warmth=0.0,
    airlight_scene_tint=0.0,
    density_cv=0.0,
    density_scale_frac=0.3,
    sky_floor=0.1,
)


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


def render(image: Image, params: HazeParams, scene: Scene) -> Rendered:
    return apply_haze(image, params, scene, rng_for(1, "haze"))


def fitted_beta(hazy: Image, clean: Image, airlight: NDArray[np.float32], ray_m: Image) -> float:
    """Weighted fit of -ln t on ray length over pixels where the estimate is well conditioned."""
    span = clean - airlight
    wide = np.abs(span) > 0.2
    t = np.where(wide, (hazy - airlight) / np.where(wide, span, 1), 0)
    use = wide & (t > 0.05)
    rays = np.broadcast_to(ray_m[..., None], t.shape)[use].astype(np.float64)
    return float((rays * -np.log(t[use])).sum() / np.square(rays).sum())


def airlight_of(rendered: Rendered) -> NDArray[np.float32]:
    return np.array(rendered.realised["airlight_rgb"], np.float32)


@pytest.mark.parametrize("strength", [0.1, 0.7, 1.4])
def test_h1_fit_recovers_beta(strength: float) -> None:
    scene, image = ramp_scene(), texture()
    assert scene.depth is not None
    rendered = render(image, GREY.model_copy(update={"effective_optical_depth": strength}), scene)
    beta = rendered.realised["beta_per_m"]
    ray_m = ray_length_m(scene.depth)
    assert fitted_beta(rendered.image, image, airlight_of(rendered), ray_m) == pytest.approx(beta, rel=1e-3)
    stored = srgb_to_linear(to_float(to_pixels(linear_to_srgb(rendered.image))))
    assert fitted_beta(stored, image, airlight_of(rendered), ray_m) == pytest.approx(beta, rel=0.02)


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


def test_h3_limits() -> None:
    image = texture()
    params = GREY.model_copy(update={"effective_optical_depth": 0.0})
    assert np.abs(render(image, params, ramp_scene()).image - image).max() < 1e-6
    z_m = np.full((120, 160), 1e5, np.float32)
    z_m[60:] = 5
    depth = Depth(z_m, np.zeros_like(z_m), 160.0, "test", "1", 1.0, True)
    rendered = render(image, GREY, Scene(depth=depth))
    codes = to_pixels(linear_to_srgb(rendered.image[:60])).astype(int)
    airlight = to_pixels(linear_to_srgb(airlight_of(rendered)[None, None])).astype(int)
    assert np.abs(codes - airlight).max() <= 1


@pytest.mark.parametrize("size", [(96, 130), (700, 512), (33, 17)])
@pytest.mark.parametrize("cv", [0.1, 0.45])
@pytest.mark.parametrize("patch_frac", [0.15, 0.8])
def test_h4_density_has_mean_one_and_its_spread(size: tuple[int, int], cv: float, patch_frac: float) -> None:
    field = density_field(*size, patch_frac * size[1], cv, rng_for(3, "density"))
    assert field.shape == size and field.dtype == np.float32 and field.min() > 0
    assert field.mean(dtype=np.float64) == pytest.approx(1, abs=0.01)
    assert field.std() == pytest.approx(cv, rel=0.05)


def test_h5_light_moves_towards_airlight_in_a_straight_line() -> None:
    image = texture()
    rendered = render(image, GREY.model_copy(update={"density_cv": 0.4}), ramp_scene())
    moved, pull = rendered.image - image, airlight_of(rendered) - image
    share = (moved * pull).sum(axis=2, keepdims=True) / np.square(pull).sum(axis=2, keepdims=True)
    assert np.abs(moved - share * pull).max() < 1e-5
    assert share.min() >= 0 and share.max() <= 1


def test_h6_visibility_times_beta() -> None:
    rendered = render(texture(), GREY, ramp_scene())
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
    thick = GREY.model_copy(update={"effective_optical_depth": 3.0, "sky_floor": 0.3})
    transmission = render(texture(), thick, scene).layers["transmission"] / 65535
    assert transmission[0].min() == pytest.approx(0.3, abs=0.01)
    assert transmission[39].max() < transmission[0].min()
    assert transmission[40].max() < 0.1


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_change_grows_with_severity(name: str) -> None:
    base = np.ascontiguousarray(photo(name)[::2, ::2])
    scene = Scene(depth=geometric_depth(base))
    changes = []
    for severity in (0.0, 0.25, 0.5, 0.75, 1.0):
        params = HAZE.sample(severity, rng_for(5, "same spread"))
        transmission = apply_haze(pixels_to_linear(base), params, scene, rng_for(5, "p")).realised
        changes.append(1 - transmission["mean_transmission"])
    assert (np.diff(changes) > 0).all()


def test_replay_is_exact_and_pure() -> None:
    base = np.ascontiguousarray(photo("coffee")[::3, ::3])
    scene = Scene(depth=geometric_depth(base))
    assert scene.depth is not None
    copies = base.copy(), scene.depth.z_m.copy(), scene.depth.sky.copy()
    step = sample_step(HAZE, 0.6, rng_for(2, "params"), SEED)
    first, second = (replay_with(base, [step], scene, {"haze": HAZE}) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.layers["transmission"] == second.layers["transmission"]).all()
    assert (base == copies[0]).all() and (scene.depth.z_m == copies[1]).all()
    assert (scene.depth.sky == copies[2]).all()
    assert (to_pixels(first.target) == base).all()


@pytest.mark.parametrize("field", sorted(HazeParams.model_fields))
def test_every_field_moves_pixels(field: str) -> None:
    scene, image = ramp_scene(sky_rows=30), texture()
    image[..., 2] *= 1.3
    params = HAZE.sample(0.5, rng_for(2, "params"))
    nudged = params.model_copy(update={field: getattr(params, field) * 1.1 + 0.01})
    first, second = (render(image, each, scene).image for each in (params, nudged))
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (90, 31)])
def test_any_size_and_light_above_one(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, 4, (*size, 3)).astype(np.float32)
    scene = Scene(depth=geometric_depth(to_pixels(image)))
    rendered = render(image, HAZE.sample(0.8, rng_for(1, "p")), scene)
    assert rendered.image.shape == image.shape and rendered.image.dtype == np.float32
    assert np.isfinite(rendered.image).all() and rendered.image.max() > 1
    assert rendered.target is image
    assert rendered.layers["transmission"].dtype == np.uint16
