"""Reflection against optics: Fresnel values, ghost positions and strengths, energy, exposure (Q1-Q5)."""

import math
from typing import Any

import numpy as np
import pytest
from skimage import data

from degradations.base import Scene, replay_with, sample_step
from degradations.reflection import (
    DOUBLE_PANE_REFLECTION,
    REFLECTION,
    DoublePaneReflectionParams,
    ReflectionParams,
    colour_gains,
    fresnel,
    incidence_cosine,
    pane_optics,
    reflected_scene,
    slab,
)
from pairforge.image import luminance, pixels_to_linear, to_pixels
from pairforge.rng import rng_for, seed_for

GLASS = {degradation.name: degradation for degradation in (REFLECTION, DOUBLE_PANE_REFLECTION)}
PLAIN = {
    "kappa": 1.0,
    "incidence_deg": 45.0,
    "roll_deg": 0.0,
    "focal_ratio": 40.0,
    "thickness_mm": 6.0,
    "wedge_mrad": 0.0,
    "distance_m": 3.0,
    "focus_m": 3.0,
    "aperture_mm": 5.0,
    "absorbance": 0.0,
    "mired_shift": 0.0,
    "highlight_gain": 1.0,
    "zoom": 1.0,
    "crop_x": 0.5,
    "crop_y": 0.5,
}
"""A long lens, so that the angle hardly varies; focus on the reflected scene, so that it is sharp."""


def photo(height: Any = 200, width: Any = 280) -> Any:
    return np.ascontiguousarray(data.coffee()[80 : 80 + height, 120 : 120 + width])


def flat(code: Any, height: Any = 60, width: Any = 80) -> Any:
    return np.full((height, width, 3), code, np.uint8)


def reflect(image: Any, second: Any, **changes: Any) -> Any:
    pane = DoublePaneReflectionParams if "gap_mm" in changes else ReflectionParams
    params = pane(**{**PLAIN, **changes})
    return REFLECTION.apply(pixels_to_linear(image), params, Scene(second=second), rng_for(1))


def layer_of(rendered: Any) -> Any:
    """The reflected light before exposure, linear."""
    return rendered.layers["reflection"].astype(np.float32) / 65535 / rendered.realised["exposure_gain"]


def unpolarised(theta_deg: Any) -> Any:
    """(slab reflectance, first face, weight of the second) by the textbook formulae with both angles."""
    theta = math.radians(theta_deg)
    inside = math.asin(math.sin(theta) / 1.52)
    pairs = ((math.cos(theta), 1.52 * math.cos(inside)), (1.52 * math.cos(theta), math.cos(inside)))
    faces = [((a - b) / (a + b)) ** 2 for a, b in pairs]
    second = [(1 - face) ** 2 * face for face in faces]
    return sum(2 * f / (1 + f) for f in faces) / 2, sum(faces) / 2, sum(second) / 2


def spots(line: Any) -> Any:
    """Position and strength of the separate spots of a row."""
    lit = np.flatnonzero(line > 0.02 * line.max())
    groups = np.split(lit, np.flatnonzero(np.diff(lit) > 1) + 1)
    return [(float((g * line[g]).sum() / line[g].sum()), float(line[g].sum())) for g in groups]


def lamp(height: Any = 120, width: Any = 480, x: Any = 240) -> Any:
    second = np.zeros((height, width, 3), np.uint8)
    second[height // 2, x] = 255
    return second


@pytest.mark.parametrize(("theta_deg", "published"), [(0, 0.082), (45, 0.098), (60, 0.157), (70, 0.275)])
def test_reflected_share_is_the_fresnel_slab(theta_deg: Any, published: Any) -> None:
    out = reflect(flat(150), flat(200), incidence_deg=theta_deg)
    source = pixels_to_linear(flat(150)).mean(dtype=np.float64)
    measured = layer_of(out).mean(dtype=np.float64) / source
    assert measured == pytest.approx(unpolarised(theta_deg)[0], rel=0.02)
    assert measured == pytest.approx(published, rel=0.02)


def test_two_panes_reflect_more() -> None:
    out = reflect(flat(150), flat(200), incidence_deg=0.0, gap_mm=16.0, pane_tilt_mrad=0.0)
    assert layer_of(out).mean(dtype=np.float64) / pixels_to_linear(flat(150)).mean() == pytest.approx(0.151, rel=0.02)


def test_brewster_angle() -> None:
    theta_deg = np.linspace(0, 85, 1701)
    of_s, of_p = fresnel(np.cos(np.radians(theta_deg)).astype(np.float32))
    assert theta_deg[of_p.argmin()] == pytest.approx(56.7, abs=0.5)
    assert np.all(np.diff(of_s) > 0)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("incidence_deg", [0.0, 20.0, 56.66, 75.0])
def test_untinted_glass_loses_no_light(incidence_deg: Any, double: Any) -> None:
    values = {**PLAIN, "incidence_deg": incidence_deg, "focal_ratio": 0.8}
    params = (
        DoublePaneReflectionParams(**values, gap_mm=15.0, pane_tilt_mrad=1.0) if double else ReflectionParams(**values)
    )
    cosine = incidence_cosine(61, 81, 0.8 * 81, incidence_deg, 30.0)
    transmittance, ghosts = pane_optics(cosine, params, 0.8 * 81)
    total = transmittance.astype(np.float64) + sum(weight.astype(np.float64) for weight, _ in ghosts)
    assert np.abs(total - 1).max() < 1e-6
    assert all(weight.min() >= -1e-7 for weight, _ in ghosts)


@pytest.mark.parametrize("incidence_deg", [20.0, 45.0, 60.0])
def test_lamp_has_a_second_spot_at_the_predicted_place(incidence_deg: Any) -> None:
    out = reflect(flat(128, 120, 480), lamp(), incidence_deg=incidence_deg, focal_ratio=30.0, kappa=1.0)
    (first_x, first), (second_x, second) = spots(layer_of(out)[60, :, 1])
    theta = math.radians(incidence_deg)
    offset_m = 0.006 * math.sin(2 * theta) / math.sqrt(1.52**2 - math.sin(theta) ** 2)
    _, face, behind = unpolarised(incidence_deg)
    assert first_x == pytest.approx(479 - 240, abs=0.05)
    assert second_x - first_x == pytest.approx(30 * 480 * offset_m / 3.0, abs=0.5)
    assert second / first == pytest.approx(behind / face, rel=0.05)


def test_known_ghost_distances() -> None:
    single = reflect(flat(128, 100, 1500), lamp(100, 1500, 700), focal_ratio=1.0, kappa=1.0)
    assert single.realised["ghost_shifts_px"][1] == pytest.approx(2.2, abs=0.05)
    double = reflect(flat(128, 100, 1500), lamp(100, 1500, 700), focal_ratio=1.0, gap_mm=16.0, pane_tilt_mrad=0.0)
    shifts_px = double.realised["ghost_shifts_px"]
    assert shifts_px[2] - shifts_px[1] == pytest.approx(11.3, abs=0.1)


@pytest.mark.parametrize("distance_m", [1.5, 2.0])
def test_ghost_of_a_photo_shows_in_its_cepstrum(distance_m: Any) -> None:
    out = reflect(flat(128, 256, 384), data.astronaut(), distance_m=distance_m, focus_m=distance_m, focal_ratio=10.0)
    light = layer_of(out)[..., 1]
    light = (light - light.mean()) * np.hanning(384) * np.hanning(256)[:, None]
    spectrum = np.log(np.abs(np.fft.rfft(light, axis=1)) ** 2 + 1e-9).mean(axis=0)
    cepstrum = np.abs(np.fft.irfft(spectrum))[:120]
    expected_px = out.realised["ghost_shifts_px"][1]
    assert 4 + cepstrum[4:].argmax() == pytest.approx(expected_px, abs=1)


def test_shift_is_inverse_to_distance() -> None:
    shifts = {}
    for distance_m in (2.0, 4.0, 8.0):
        out = reflect(
            flat(128, 120, 480), lamp(), focal_ratio=30.0, distance_m=distance_m, focus_m=distance_m, kappa=1.0
        )
        (first_x, _), (second_x, _) = spots(layer_of(out)[60, :, 1])
        shifts[distance_m] = second_x - first_x
    assert shifts[2.0] / shifts[4.0] == pytest.approx(2, rel=0.03)
    assert shifts[2.0] / shifts[8.0] == pytest.approx(4, rel=0.03)


def test_nothing_reflected_leaves_the_attenuated_scene() -> None:
    image = photo()
    out = reflect(image, data.astronaut(), kappa=0.0, absorbance=0.1, focal_ratio=1.0)
    assert np.array_equal(out.image, out.target)
    cosine = incidence_cosine(200, 280, 280.0, 45.0, 0.0)
    transmittance = 1 - (slab(fresnel(cosine)[0]) + slab(fresnel(cosine)[1])) / 2
    tint = np.exp(-0.1 * np.array([1.0, 0.35, 0.7], np.float32))
    expected = pixels_to_linear(image) * transmittance[..., None] * tint * out.realised["exposure_gain"]
    np.testing.assert_allclose(out.target, expected, rtol=1e-4, atol=1e-7)
    assert not out.layers["reflection"].any()


def test_layers_add_up_and_target_is_never_brighter_than_the_mixture() -> None:
    out = reflect(photo(), data.astronaut(), kappa=4.0, focal_ratio=1.0, aperture_mm=8.0, focus_m=10.0)
    layer = out.layers["reflection"]
    assert layer.dtype == np.uint16 and layer.shape == out.image.shape
    kept = out.target + layer / 65535
    unclipped = layer < 65535
    np.testing.assert_allclose(kept[unclipped], out.image[unclipped], atol=2e-5)
    assert (out.image - out.target).min() >= 0


def test_glass_reflects_more_where_it_is_seen_from_the_side() -> None:
    cosine = incidence_cosine(101, 151, 151.0, 50.0, 0.0)
    reflectance = slab(fresnel(cosine)[0])
    assert reflectance[50, 10] > 1.5 * reflectance[50, 140]
    assert math.degrees(math.acos(cosine[50, 75])) == pytest.approx(50, abs=0.01)
    # The ray at the right edge is half a field of view nearer to a normal that leans to the right.
    half_view = math.degrees(math.atan(75 / 151))
    assert math.degrees(math.acos(cosine[50, 150])) == pytest.approx(50 - half_view, abs=0.05)


@pytest.mark.parametrize("size", [(50, 300), (700, 90), (64, 64)])
def test_second_photo_covers_the_frame_mirrored(size: Any) -> None:
    ramp = np.repeat(np.linspace(0, 255, size[1]).astype(np.uint8)[None, :, None], size[0], axis=0).repeat(3, 2)
    light = reflected_scene(ramp, 80, 120, 1.2, 0.5, 0.5)
    assert light.shape == (80, 120, 3)
    row = luminance(light)[40]
    assert np.all(np.diff(row) <= 1e-6) and row[0] > row[-1]
    # Centred crop: the middle of the frame is the middle of the photo, code 127.5.
    assert row[59:61].mean() == pytest.approx(pixels_to_linear(flat(128))[0, 0, 0], abs=0.01)


def test_colour_gains_keep_luminance() -> None:
    for mired_shift in (-90, 0, 120):
        gains = colour_gains(mired_shift)
        assert np.dot(gains, (0.2126, 0.7152, 0.0722)) == pytest.approx(1)
        assert np.sign(gains[0] - gains[2]) == np.sign(mired_shift)
    assert max(colour_gains(90)) < 1.4


def render(name: Any, pixels: Any, severity: Any, seed: Any = 1, second: Any = None) -> Any:
    step = sample_step(GLASS[name], severity, rng_for(seed, name, "params"), seed_for(seed, name, "pixels"))
    second = data.astronaut() if second is None else second
    return replay_with(pixels, [step], Scene(second=second), GLASS)


@pytest.mark.parametrize("name", GLASS)
def test_severity_reflects_more(name: Any) -> None:
    pixels = photo()
    error = []
    for severity in (0.0, 0.5, 1.0):
        outs = [render(name, pixels, severity, seed) for seed in range(5)]
        error.append(np.mean([np.abs(out.image - out.target).mean() for out in outs]))
    assert 0.002 < error[0] < 0.06
    assert error[0] * 1.8 < error[1] < error[2] < 0.6


@pytest.mark.parametrize("name", GLASS)
@pytest.mark.parametrize("size", [(16, 16), (17, 61), (90, 31)])
def test_any_size_same_bytes_and_no_mutation(name: Any, size: Any) -> None:
    pixels, second = photo(*size), photo(33, 57)
    before = pixels.copy(), second.copy()
    first, again = (render(name, pixels, 1.0, 5, second) for _ in range(2))
    assert first.image.shape == pixels.shape and np.isfinite(first.image).all()
    assert np.array_equal(first.image, again.image) and np.array_equal(first.target, again.target)
    assert np.array_equal(pixels, before[0]) and np.array_equal(second, before[1])


def test_black_photos_are_no_problem() -> None:
    for image, second in ((flat(0), photo()), (photo(), flat(0)), (flat(0), flat(0))):
        out = render("double_pane_reflection", image, 0.7, second=second)
        assert np.isfinite(out.image).all() and to_pixels(out.image).shape == image.shape


@pytest.mark.parametrize("name", GLASS)
def test_every_parameter_moves_pixels(name: Any) -> None:
    pixels = photo()
    second = data.astronaut()
    second[200:240, 200:280] = 255
    step = sample_step(GLASS[name], 0.5, rng_for(2, name), seed_for(2, name))
    reference = replay_with(pixels, [step], Scene(second=second), GLASS).image
    for field, value in step.params.items():
        changed = value * 0.9 if field.startswith("crop") else value * 1.1
        other = step.model_copy(update={"params": {**step.params, field: changed}})
        moved = replay_with(pixels, [other], Scene(second=second), GLASS).image
        assert not np.array_equal(moved, reference), field
