"""Reflection against optics: Fresnel values, ghost positions and strengths, energy, exposure (Q1-Q5)."""

import math
from typing import Any

import numpy as np
import pytest
from skimage import data

from degradations.base import Scene, replay_with, sample_step
from degradations.blur import aperture_psf, convolve
from degradations.reflection import (
    DOUBLE_PANE_REFLECTION,
    REFLECTION,
    DoublePaneReflectionParams,
    ReflectionParams,
    colour_gains,
)
from degradations.reflection_frame import Work, enlarge
from degradations.reflection_glass import (
    Window,
    fresnel,
    incidence_cosine,
    node_axes,
    slab,
    window_optics,
)
from degradations.reflection_layer import Framing, defocused, reflected_scene, with_margin
from pairforge.image import luminance, pixels_to_linear, to_pixels
from pairforge.rng import rng_for, seed_for

GLASS = {degradation.name: degradation for degradation in (REFLECTION, DOUBLE_PANE_REFLECTION)}
PLAIN = {
    "kappa": 1.0,
    "incidence_deg": 45.0,
    "roll_deg": 0.0,
    "s_share": 0.5,
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
def test_q1_reflected_share_is_the_fresnel_slab(theta_deg: Any, published: Any) -> None:
    out = reflect(flat(150), flat(200), incidence_deg=theta_deg)
    source = pixels_to_linear(flat(150)).mean(dtype=np.float64)
    measured = layer_of(out).mean(dtype=np.float64) / source
    assert measured == pytest.approx(unpolarised(theta_deg)[0], rel=0.02)
    assert measured == pytest.approx(published, rel=0.02)


def test_q1_two_panes_reflect_more() -> None:
    out = reflect(flat(150), flat(200), incidence_deg=0.0, gap_mm=16.0, pane_tilt_mrad=0.0)
    assert layer_of(out).mean(dtype=np.float64) / pixels_to_linear(flat(150)).mean() == pytest.approx(0.151, rel=0.02)


@pytest.mark.parametrize("theta_deg", [0.0, 30.0, 45.0, 60.0, 70.0])
def test_q1_share_of_each_polarisation(theta_deg: Any) -> None:
    """What a polariser lets through: s and p mixed as told, each by the textbook formulae."""
    theta = math.radians(theta_deg)
    inside = math.asin(math.sin(theta) / 1.52)
    of_s = ((math.cos(theta) - 1.52 * math.cos(inside)) / (math.cos(theta) + 1.52 * math.cos(inside))) ** 2
    of_p = ((1.52 * math.cos(theta) - math.cos(inside)) / (1.52 * math.cos(theta) + math.cos(inside))) ** 2
    for share in (0.1, 0.9):
        out = reflect(flat(150), flat(200), incidence_deg=theta_deg, s_share=share)
        measured = layer_of(out).mean(dtype=np.float64) / pixels_to_linear(flat(150)).mean(dtype=np.float64)
        expected = share * 2 * of_s / (1 + of_s) + (1 - share) * 2 * of_p / (1 + of_p)
        assert measured == pytest.approx(expected, rel=0.02)


def test_q1_brewster_angle() -> None:
    theta_deg = np.linspace(0, 85, 1701)
    of_s, of_p = fresnel(np.cos(np.radians(theta_deg)))
    assert theta_deg[of_p.argmin()] == pytest.approx(56.7, abs=0.5)
    assert np.all(np.diff(of_s) > 0)
    # In a wide frame, p-polarised light has a dark band where rays meet the glass at that angle.
    out = reflect(flat(150, 40, 800), flat(200, 40, 800), s_share=0.05, incidence_deg=50.0, focal_ratio=1.0)
    column = layer_of(out)[20, :, 1].argmin()
    assert 50 - math.degrees(math.atan((column - 399.5) / 800)) == pytest.approx(56.7, abs=3)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("incidence_deg", [0.0, 20.0, 56.66, 75.0])
def test_q3_untinted_glass_loses_no_light(incidence_deg: Any, double: Any) -> None:
    window = Window(incidence_deg, 30.0, 0.6, 6.0, 0.3, *((15.0, 1.0) if double else ()))
    optics = window_optics(*node_axes(61, 81), window, 0.8 * 81, 3.0)
    reflected = optics.face.copy()
    for echo in optics.echoes:
        assert echo.ratio.min() > 0
        reflected *= 1 + echo.ratio
    assert np.abs(optics.transmittance + reflected - 1).max() < 1e-9


@pytest.mark.parametrize("double", [False, True])
def test_q3_a_grey_world_stays_as_it_is_behind_untinted_glass(double: Any) -> None:
    """T + R = 1 in pixels too: with the same light on both sides nobody sees the glass.

    Of two panes to what is lost between nodes, which are 4 degrees apart in a frame as small as this.
    """
    panes = {"gap_mm": 15.0, "pane_tilt_mrad": 1.0} if double else {}
    grey = flat(150, 96, 128)
    out = reflect(grey, grey, focal_ratio=1.0, focus_m=2.0, incidence_deg=40.0, **panes)
    assert np.abs(out.image / pixels_to_linear(grey) - 1).max() < (1e-3 if double else 2e-6)


@pytest.mark.parametrize("incidence_deg", [20.0, 45.0, 60.0])
def test_q2_lamp_has_a_second_spot_at_the_predicted_place(incidence_deg: Any) -> None:
    out = reflect(flat(128, 120, 480), lamp(), incidence_deg=incidence_deg, focal_ratio=30.0, kappa=1.0)
    (first_x, first), (second_x, second) = spots(layer_of(out)[60, :, 1])
    theta = math.radians(incidence_deg)
    offset_m = 0.006 * math.sin(2 * theta) / math.sqrt(1.52**2 - math.sin(theta) ** 2)
    _, face, behind = unpolarised(incidence_deg)
    assert first_x == pytest.approx(479 - 240, abs=0.05)
    assert second_x - first_x == pytest.approx(30 * 480 * offset_m / 3.0, abs=0.5)
    assert second / first == pytest.approx(behind / face, rel=0.05)


@pytest.mark.parametrize("incidence_deg", [0.0, 30.0])
def test_q2_ghosts_lie_towards_the_foot_of_the_normal(incidence_deg: Any) -> None:
    """A mirror image that lies further along the normal, by perspective: no use is made of the offset formula."""
    focal_px, distance_m, thickness_m = 480.0, 0.5, 0.02
    second = np.zeros((240, 480, 3), np.uint8)
    second[60, 100] = 255
    out = reflect(
        flat(128, 240, 480),
        second,
        incidence_deg=incidence_deg,
        focal_ratio=1.0,
        thickness_mm=1000 * thickness_m,
        distance_m=distance_m,
        focus_m=distance_m,
    )
    light = layer_of(out)[..., 1].astype(np.float64)
    x, y = (479 - 100) - 239.5, 60 - 119.5
    normal = np.array([math.sin(math.radians(incidence_deg)), 0, math.cos(math.radians(incidence_deg))])
    ray = np.array([x, y, focal_px]) / focal_px
    cosine = ray @ normal / np.linalg.norm(ray)
    behind_m = 2 * thickness_m * cosine / math.sqrt(1.52**2 - 1 + cosine**2)
    moved = ray * distance_m + behind_m * normal
    expected_x, expected_y = moved[:2] / moved[2] * focal_px
    light[60 - 1 : 60 + 2, 379 - 1 : 379 + 2] = 0
    rows, columns = np.mgrid[:240, :480]
    place_x, place_y = (light * columns).sum() / light.sum() - 239.5, (light * rows).sum() / light.sum() - 119.5
    assert (place_x, place_y) == pytest.approx((expected_x, expected_y), abs=0.5)
    assert math.hypot(expected_x - x, expected_y - y) > 3


def test_q2_known_ghost_distances() -> None:
    single = reflect(flat(128, 100, 1500), lamp(100, 1500, 700), focal_ratio=1.0, kappa=1.0)
    assert single.realised["ghost_shifts_px"][1] == pytest.approx(2.2, abs=0.05)
    double = reflect(flat(128, 100, 1500), lamp(100, 1500, 700), focal_ratio=1.0, gap_mm=16.0, pane_tilt_mrad=0.0)
    shifts_px = double.realised["ghost_shifts_px"]
    assert shifts_px[2] - shifts_px[1] == pytest.approx(11.3, abs=0.1)


@pytest.mark.parametrize("distance_m", [1.5, 2.0])
def test_q2_ghost_of_a_photo_shows_in_its_cepstrum(distance_m: Any) -> None:
    out = reflect(flat(128, 256, 384), data.astronaut(), distance_m=distance_m, focus_m=distance_m, focal_ratio=10.0)
    light = layer_of(out)[..., 1]
    light = (light - light.mean()) * np.hanning(384) * np.hanning(256)[:, None]
    spectrum = np.log(np.abs(np.fft.rfft(light, axis=1)) ** 2 + 1e-9).mean(axis=0)
    cepstrum = np.abs(np.fft.irfft(spectrum))[:120]
    expected_px = out.realised["ghost_shifts_px"][1]
    assert 4 + cepstrum[4:].argmax() == pytest.approx(expected_px, abs=1)


def test_q5_shift_is_inverse_to_distance() -> None:
    shifts = {}
    for distance_m in (2.0, 4.0, 8.0):
        out = reflect(
            flat(128, 120, 480), lamp(), focal_ratio=30.0, distance_m=distance_m, focus_m=distance_m, kappa=1.0
        )
        (first_x, _), (second_x, _) = spots(layer_of(out)[60, :, 1])
        shifts[distance_m] = second_x - first_x
    assert shifts[2.0] / shifts[4.0] == pytest.approx(2, rel=0.03)
    assert shifts[2.0] / shifts[8.0] == pytest.approx(4, rel=0.03)


def test_q4_nothing_reflected_leaves_the_attenuated_scene() -> None:
    image = photo()
    out = reflect(image, data.astronaut(), kappa=0.0, absorbance=0.1, focal_ratio=1.0)
    assert np.array_equal(out.image, out.target)
    x_px, y_px = np.arange(280, dtype=float)[None, :] - 139.5, np.arange(200, dtype=float)[:, None] - 99.5
    cosine = incidence_cosine(x_px, y_px, 280.0, 45.0, 0.0)
    transmittance = (1 - (slab(fresnel(cosine)[0]) + slab(fresnel(cosine)[1])) / 2).astype(np.float32)
    tint = np.exp(-0.1 * np.array([1.0, 0.35, 0.7], np.float32))
    expected = pixels_to_linear(image) * transmittance[..., None] * tint * out.realised["exposure_gain"]
    np.testing.assert_allclose(out.target, expected, rtol=5e-4, atol=1e-7)
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
    out = reflect(flat(150, 100, 150), flat(150, 100, 150), focal_ratio=1.0, incidence_deg=50.0)
    row = layer_of(out)[50, :, 1]
    assert row[10] > 1.4 * row[139] and np.all(np.diff(row[:100]) < 1e-5)
    place = np.array([[0.0, 75.0]])
    cosine = incidence_cosine(place, np.zeros((1, 1)), 151.0, 50.0, 0.0)
    angles_deg = np.degrees(np.arccos(cosine[0]))
    # The ray at the right edge is half a field of view nearer to a normal that leans to the right.
    assert angles_deg == pytest.approx([50, 50 - math.degrees(math.atan(75 / 151))])


@pytest.mark.parametrize("size", [(80, 120), (50, 300), (700, 90), (64, 64), (1, 1)])
def test_second_photo_of_any_size_covers_the_frame_mirrored(size: Any) -> None:
    ramp = np.repeat(np.linspace(0, 255, size[1]).astype(np.uint8)[None, :, None], size[0], axis=0).repeat(3, 2)
    light = reflected_scene(ramp, 80, 120, Framing(1.2, 0.5, 0.5))
    assert light.shape == (80, 120, 3)
    row = luminance(light)[40]
    assert np.all(np.diff(row) <= 1e-6)
    if size != (1, 1):
        assert row[0] > row[-1]
        # Centred crop: the middle of the frame is the middle of the photo, code 127.5.
        assert row[59:61].mean() == pytest.approx(pixels_to_linear(flat(128))[0, 0, 0], abs=0.012)


@pytest.mark.parametrize(("crop_x", "crop_y", "held"), [(0.0, 0.0, 2), (1.0, 0.0, 0), (0.0, 1.0, 3), (1.0, 1.0, 1)])
def test_crop_runs_from_the_left_and_the_top(crop_x: Any, crop_y: Any, held: Any) -> None:
    second = np.zeros((100, 100, 3), np.uint8)
    for number, (row, column) in enumerate(((0, 50), (50, 50), (0, 0), (50, 0))):
        second[row : row + 50, column : column + 50] = 60 * (number + 1)
    light = reflected_scene(second, 40, 40, Framing(2.5, crop_x, crop_y))
    assert light[20, 20, 0] == pytest.approx(pixels_to_linear(flat(60 * (held + 1)))[0, 0, 0], abs=1e-4)


@pytest.mark.parametrize("diameter_px", [4.6, 7.0, 15.0, 16.5, 24.0])
def test_blur_on_a_smaller_image_spreads_light_as_far(diameter_px: Any) -> None:
    """Second moments along both axes of the blur of a lamp, against d^2 / 16 of a disc."""
    light = np.zeros((129, 131, 3), np.float32)
    light[60, 70] = 1
    small, shrink = defocused(light, diameter_px)
    assert shrink > 1
    spread = enlarge(with_margin(small), shrink, 0, 129, 131, Work(), "")[..., 1].astype(np.float64)
    assert spread.sum() == pytest.approx(1, rel=0.01)
    for axis, middle in ((0, 60), (1, 70)):
        line = spread.sum(axis=1 - axis) / spread.sum()
        places = np.arange(len(line))
        assert (line * places).sum() == pytest.approx(middle, abs=1.6)
        variance = (line * (places - (line * places).sum()) ** 2).sum()
        assert variance == pytest.approx(diameter_px**2 / 16, rel=0.12, abs=0.35)


def test_blur_on_a_smaller_image_looks_like_blur() -> None:
    light = pixels_to_linear(photo(200, 280))
    for diameter_px in (8.0, 17.0):
        small, shrink = defocused(light, diameter_px)
        found = enlarge(with_margin(small), shrink, 0, 200, 280, Work(), "")
        reference = convolve(light, aperture_psf(diameter_px))
        assert np.abs(found - reference)[20:-20, 20:-20].mean() < 0.12 * np.abs(reference - light).mean()


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
def test_distance_to_the_clean_photo_rises_with_severity(name: Any) -> None:
    """Same seed, 0 .. 1 in fifths, median over photos: rank correlation of at least 0.95."""
    photos = [photo(), data.chelsea()[:200, 60:340], data.astronaut()[:200, 100:380], data.rocket()[100:300, 200:480]]
    severities = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    for seed in range(4):
        distances = []
        for severity in severities:
            outs = [render(name, np.ascontiguousarray(pixels), severity, seed) for pixels in photos]
            distances.append(np.median([np.abs(out.image - out.target).mean() for out in outs]))
        ranks = np.argsort(np.argsort(distances))
        assert np.corrcoef(ranks, range(6))[0, 1] >= 0.95, (seed, distances)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kappa": -1.0}, "kappa"),
        ({"incidence_deg": 85.0}, "incidence_deg"),
        ({"s_share": 1.5}, "s_share"),
        ({"distance_m": 0.0}, "distance_m"),
        ({"zoom": 0.5}, "zoom"),
        ({"crop_x": 1.1}, "crop_x"),
        ({"thickness_mm": float("nan")}, "thickness_mm"),
        ({"distance_m": 0.1, "aperture_mm": 100.0}, "defocus of .* allowed are up to 0.25"),
    ],
)
def test_bad_parameters_are_refused_by_name(changes: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        ReflectionParams(**{**PLAIN, **changes})


@pytest.mark.parametrize(
    "second",
    [
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((40, 40, 3), np.float32),
        np.zeros((0, 40, 3), np.uint8),
    ],
)
def test_a_second_photo_that_is_none_is_refused(second: Any) -> None:
    with pytest.raises(ValueError, match=r"second photo of a reflection is .* is needed"):
        reflect(photo(), second)


def test_visibility_is_recorded() -> None:
    clear, faint = (reflect(flat(150), flat(150), kappa=kappa).realised for kappa in (3.0, 0.01))
    slab_45 = unpolarised(45)[0]
    assert clear["visible"] and not faint["visible"]
    assert clear["reflection_ratio_p90"] == pytest.approx(3 * slab_45 / (1 - slab_45), rel=0.02)
    assert clear["brighter_frac"] == 0 and reflect(flat(90), flat(150), kappa=20.0).realised["brighter_frac"] == 1


@pytest.mark.parametrize("name", GLASS)
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 61), (90, 31)])
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
