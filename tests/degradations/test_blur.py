"""Blur against optics: PSF sums and centroids, linear means, OTF zeros, MTF, occlusion (B1-B5)."""

import itertools
import math
from typing import Any

import cv2
import numpy as np
import pytest
from skimage import data

from degradations.base import Depth, Scene, replay_with, sample_step
from degradations.blur import (
    aperture_psf,
    compress_highlights,
    convolve,
    convolve_planes,
    expand_highlights,
    path_psf,
)
from degradations.blur_defocus import DEFOCUS_BLUR, DefocusBlurParams, signed_blur_px
from degradations.blur_motion import MOTION_BLUR, MotionBlurParams, shake_path
from degradations.blur_web import (
    GAUSSIAN_BLUR,
    WEB_GAUSSIAN_BLUR,
    WEB_MOTION_BLUR,
    WEB_PLATEAU_BLUR,
    WEB_SINC_BLUR,
    WebKernelParams,
    WebMotionBlurParams,
    WebSincBlurParams,
    bessel_j1,
    gaussian_psf,
)
from degradations.temporal_blur import TEMPORAL_BLUR, TemporalBlurParams, check_moving, frame_weights
from pairforge.image import linear_to_srgb, pixels_to_linear, to_pixels
from pairforge.records import SampleError
from pairforge.rng import rng_for, seed_for

WEB = (WEB_GAUSSIAN_BLUR, WEB_PLATEAU_BLUR, WEB_SINC_BLUR, WEB_MOTION_BLUR)
ALL = (MOTION_BLUR, DEFOCUS_BLUR, GAUSSIAN_BLUR, TEMPORAL_BLUR, *WEB)
BLUR = {degradation.name: degradation for degradation in ALL}


def photo(height: Any = 192, width: Any = 256) -> Any:
    return np.ascontiguousarray(data.astronaut()[60 : 60 + height, 100 : 100 + width])


def plane_depth(z_m: Any, focal_px: Any = 1000.0) -> Any:
    return Depth(z_m.astype(np.float32), np.zeros_like(z_m, np.float32), focal_px, "test", "1", 1.0, True)


def panned(step_px: Any, count: Any = 7, height: Any = 160, width: Any = 200) -> Any:
    """Frames of a pan over a photo, sampled from a smoothed original so that shifting costs no contrast."""
    big = cv2.GaussianBlur(data.coffee(), (0, 0), 1.5)
    centres = [(300 + step_px * (index - count // 2), 200.0) for index in range(count)]
    return tuple(cv2.getRectSubPix(big, (width, height), centre) for centre in centres)


def scene_for(pixels: Any) -> Any:
    height, width = pixels.shape[:2]
    ramp = np.repeat(np.geomspace(40, 1.5, height)[:, None], width, axis=1)
    frames = (np.roll(pixels, -2, 1), np.roll(pixels, -1, 1), pixels, np.roll(pixels, 1, 1), np.roll(pixels, 2, 1))
    return Scene(depth=plane_depth(ramp, focal_px=float(width)), frames=frames)


def render(name: Any, pixels: Any, severity: Any, seed: Any = 1, scene: Any = None) -> Any:
    step = sample_step(BLUR[name], severity, rng_for(seed, name, "params"), seed_for(seed, name, "pixels"))
    return replay_with(pixels, [step], scene or scene_for(pixels), BLUR)


def defocus(**changes: Any) -> Any:
    values = {"aperture_mm": 10.0, "focus_m": 2.0, "blades": 6, "roundness": 0.5, "blade_angle_deg": 10.0}
    return DefocusBlurParams(**{**values, "highlight_gain": 1.0, **changes})


def otf(psf: Any, frequencies: Any) -> Any:
    """|OTF| along x at `frequencies` in cycles / px."""
    x = np.arange(psf.shape[1]) - psf.shape[1] // 2
    return np.abs(np.exp(-2j * np.pi * np.outer(frequencies, x)) @ psf.sum(axis=0, dtype=np.float64))


def first_zero(psf: Any, low: Any, high: Any) -> Any:
    frequencies = np.linspace(low, high, 4001)
    return frequencies[otf(psf, frequencies).argmin()]


@pytest.mark.parametrize("case", range(40))
def test_psf_sums_to_one_and_is_centred(case: Any) -> None:
    rng = np.random.default_rng(case)
    length_px, diameter_px = np.exp(rng.uniform(np.log(1), np.log(150))), rng.uniform(0.1, 60)
    psfs = {
        "path": path_psf(shake_path(rng.uniform(0.01, 2), rng.random(), rng) * length_px),
        "aperture": aperture_psf(diameter_px, int(rng.integers(3, 12)), rng.random(), rng.uniform(0, 360)),
        "gaussian": gaussian_psf(rng.uniform(0.3, 6), rng.uniform(0.3, 6), rng.uniform(0, 180), rng.uniform(0.6, 3)),
    }
    for name, psf in psfs.items():
        y, x = np.mgrid[: psf.shape[0], : psf.shape[1]] - psf.shape[0] // 2
        assert psf.shape[0] == psf.shape[1] and psf.shape[0] % 2 == 1, name
        assert abs(psf.sum(dtype=np.float64) - 1) < 1e-6, name
        assert psf.min() >= 0, name
        assert max(abs((psf * x).sum()), abs((psf * y).sum())) < 0.05, name


def test_convolution_is_not_a_correlation() -> None:
    psf = np.zeros((3, 3), np.float32)
    psf[1, 2] = 1
    image = np.zeros((9, 9, 3), np.float32)
    image[4, 4] = 1
    assert convolve(image, psf)[4, 5, 0] == pytest.approx(1, abs=1e-6)


def test_temporal_is_the_mean_of_linear_frames() -> None:
    frames = panned(0.7)
    params = TemporalBlurParams(duty_cycle=1.0, highlight_gain=1.0)
    out = TEMPORAL_BLUR.apply(pixels_to_linear(frames[3]), params, Scene(frames=frames), rng_for(1))
    mean = np.mean([pixels_to_linear(frame) for frame in frames], axis=0, dtype=np.float32)
    difference = to_pixels(linear_to_srgb(out.image)).astype(int) - to_pixels(linear_to_srgb(mean))  # type: ignore[arg-type]
    assert out.realised["samples_per_gap"] == 1
    assert np.abs(difference).max() <= 1


def test_fast_motion_is_interpolated_like_a_densely_sampled_one() -> None:
    params = TemporalBlurParams(duty_cycle=1.0, highlight_gain=1.0)
    frames = panned(6.0, count=5)
    image_lin = pixels_to_linear(frames[2])
    out = TEMPORAL_BLUR.apply(image_lin, params, Scene(frames=frames), rng_for(1))
    dense = np.mean([pixels_to_linear(frame) for frame in panned(0.5, count=49)], axis=0, dtype=np.float32)
    comb = np.mean([pixels_to_linear(frame) for frame in frames], axis=0, dtype=np.float32)
    inner = np.s_[20:-20, 40:-40]
    assert out.realised["samples_per_gap"] >= 5
    assert np.abs(out.image - dense)[inner].mean() < 0.35 * np.abs(comb - dense)[inner].mean()


@pytest.mark.parametrize(("frames", "samples"), [(3, 1), (7, 1), (7, 4), (6, 3)])
def test_exposure_is_centred_on_the_middle_frame(frames: Any, samples: Any) -> None:
    for duty_cycle in (0.1, 0.4, 0.77, 1.0):
        weights = frame_weights(frames, samples, duty_cycle)
        times = np.arange(len(weights)) / samples
        assert weights.sum() == pytest.approx(1)
        assert (weights * times).sum() == pytest.approx(frames // 2)
    if frames % 2:
        assert np.ptp(weights) < 1e-12


def test_temporal_refuses_what_it_cannot_use() -> None:
    frames = panned(0.5)
    params = TemporalBlurParams(duty_cycle=1.0, highlight_gain=1.0)
    with pytest.raises(ValueError, match="first step"):
        TEMPORAL_BLUR.apply(pixels_to_linear(frames[0]) * 0.5, params, Scene(frames=frames), rng_for(1))
    with pytest.raises(ValueError, match="at least 3"):
        TEMPORAL_BLUR.apply(pixels_to_linear(frames[0]), params, Scene(frames=frames[:2]), rng_for(1))


def test_temporal_refuses_cuts_and_clips_are_checked_for_repeated_frames() -> None:
    frames = panned(0.7)
    params = TemporalBlurParams(duty_cycle=1.0, highlight_gain=1.0)
    cut = (*frames[:5], np.ascontiguousarray(255 - frames[0] // 2), frames[6])
    with pytest.raises(SampleError, match=r"scene_cut: .* from frame 4 to 5"):
        TEMPORAL_BLUR.apply(pixels_to_linear(frames[3]), params, Scene(frames=cut), rng_for(1))
    with pytest.raises(SampleError, match="frame_size: frame 6"):
        short = (*frames[:6], frames[6][:-1])
        TEMPORAL_BLUR.apply(pixels_to_linear(frames[3]), params, Scene(frames=short), rng_for(1))
    check_moving(frames)
    with pytest.raises(SampleError, match="frozen_frame: frames 5 and 6"):
        check_moving((*frames[:6], frames[5]))


def test_mean_irradiance_is_preserved() -> None:
    image_lin = np.full((240, 300, 3), 0.3, np.float32)
    image_lin[60:180, 60:240] = pixels_to_linear(photo(120, 180))
    shake = MotionBlurParams(focal_ratio=1.0, speed_deg_s=3.0, exposure_s=1.5, tremor=0.6, highlight_gain=1.0)
    scene = Scene(depth=plane_depth(np.full((240, 300), 8.0)))
    for out in (
        MOTION_BLUR.apply(image_lin, shake, scene, rng_for(3)),
        DEFOCUS_BLUR.apply(image_lin, defocus(aperture_mm=40.0), scene, rng_for(3)),
    ):
        assert np.abs(out.image - image_lin).max() > 0.1
        assert out.image.mean(dtype=np.float64) == pytest.approx(image_lin.mean(dtype=np.float64), rel=2e-3)


@pytest.mark.parametrize("length_px", [9.0, 15.5, 31.0])
def test_line_blur_has_its_zeros_at_multiples_of_one_over_length(length_px: Any) -> None:
    line = np.linspace(-length_px / 2, length_px / 2, 4001)
    psf = path_psf(np.stack([line, np.zeros_like(line)], axis=1))
    for order in (1, 2, 3):
        zero = first_zero(psf, (order - 0.4) / length_px, (order + 0.4) / length_px)
        assert zero == pytest.approx(order / length_px, rel=0.02)


@pytest.mark.parametrize("radius_px", [2.0, 4.0, 7.3, 15.0])
def test_disc_has_its_first_zero_and_second_moment(radius_px: Any) -> None:
    psf = aperture_psf(2 * radius_px)
    zero = first_zero(psf, 0.4 / radius_px, min(0.5, 0.8 / radius_px))
    assert zero == pytest.approx(0.610 / radius_px, rel=0.04 if radius_px < 4 else 0.01)
    y, x = np.mgrid[: psf.shape[0], : psf.shape[1]] - psf.shape[0] // 2
    assert (psf * (x * x + y * y)).sum() == pytest.approx(radius_px**2 / 2, abs=0.26)


def response(degradation: Any, params: Any, side: Any = 129, seed: Any = 5) -> Any:
    """What the step makes of one bright pixel: the PSF that acts, through the public API."""
    image = np.zeros((side, side, 3), np.float32)
    image[side // 2, side // 2] = 0.3
    scene = Scene(depth=plane_depth(np.full((side, side), 1e6)))
    return degradation.apply(image, params, scene, rng_for(seed, "pixels")).image[..., 1] / np.float32(0.3)


def kernel(**changes: Any) -> Any:
    values = {"radius_px": 10, "sigma_x_px": 2.0, "sigma_y_px": 2.0, "angle_deg": 0.0, "beta": 1.0}
    return WebKernelParams(**{**values, **changes})


RESPONSES: dict[str, Any] = {
    "shake": (
        MOTION_BLUR,
        MotionBlurParams(focal_ratio=2.0, speed_deg_s=8.0, exposure_s=0.6, tremor=0.7, highlight_gain=2.0),
    ),
    "defocus": (DEFOCUS_BLUR, defocus(aperture_mm=35.0, focus_m=2.0, highlight_gain=2.0)),
    "generalised": (GAUSSIAN_BLUR, GAUSSIAN_BLUR.sample(0.7, rng_for(1))),
    "web gaussian": (WEB_GAUSSIAN_BLUR, kernel(sigma_y_px=3.0, angle_deg=30.0, beta=0.7)),
    "web plateau": (WEB_PLATEAU_BLUR, kernel(sigma_y_px=3.0, angle_deg=-70.0, beta=1.6)),
    "web motion": (WEB_MOTION_BLUR, WebMotionBlurParams(length_px=23.4, angle_deg=33.0)),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_b1_acting_psf_sums_to_one_and_is_centred(name: Any) -> None:
    psf = response(*RESPONSES[name]).astype(np.float64)
    y, x = np.mgrid[: psf.shape[0], : psf.shape[1]] - psf.shape[0] // 2
    assert (psf > 1e-4).sum() > 20
    assert abs(psf.sum() - 1) < 1e-5  # 1e-6 holds for kernels, here float32 sums of a whole picture
    assert max(abs((psf * x).sum()), abs((psf * y).sum())) < 0.05


@pytest.mark.parametrize("length_px", [11.0, 24.3])
def test_b4_web_line_has_its_zeros_at_multiples_of_one_over_length(length_px: Any) -> None:
    psf = response(WEB_MOTION_BLUR, WebMotionBlurParams(length_px=length_px, angle_deg=0.0))
    for order in (1, 2):
        zero = first_zero(psf, (order - 0.4) / length_px, (order + 0.4) / length_px)
        assert zero == pytest.approx(order / length_px, rel=0.02)


@pytest.mark.parametrize("radius_px", [4.0, 9.0])
def test_b4_defocused_point_is_a_disc(radius_px: Any) -> None:
    psf = response(DEFOCUS_BLUR, defocus(aperture_mm=4 * radius_px, roundness=1.0))
    assert first_zero(psf, 0.4 / radius_px, 0.8 / radius_px) == pytest.approx(0.610 / radius_px, rel=0.01)
    y, x = np.mgrid[: psf.shape[0], : psf.shape[1]] - psf.shape[0] // 2
    assert (psf * (x * x + y * y)).sum() == pytest.approx(radius_px**2 / 2, abs=0.26)


def test_b4_halved_layers_keep_the_spread_of_a_point() -> None:
    """Depth that is flat but for one corner: the point lies in a layer that is blurred at half resolution.

    Mean over the four places of a pixel in the halved grid, each of which moves a lone pixel by half a pixel.
    """
    z_m = np.full((161, 161), 1e6)
    z_m[:8, :8] = 2.0
    for radius_px in (4.0, 7.0, 13.0):
        params = defocus(aperture_mm=4 * radius_px, roundness=1.0)
        psf = np.zeros((81, 81))
        for left, top in itertools.product((80, 81), repeat=2):
            image = np.zeros((161, 161, 3), np.float32)
            image[top, left] = 0.3
            out = DEFOCUS_BLUR.apply(image, params, Scene(depth=plane_depth(z_m)), rng_for(1))
            assert out.realised["depth_layers"] > 1
            psf += out.image[top - 40 : top + 41, left - 40 : left + 41, 1] / 1.2
        y, x = np.mgrid[:81, :81] - 40
        assert psf.sum() == pytest.approx(1, abs=5e-3)
        assert max(abs((psf * x).sum()), abs((psf * y).sum())) < 0.05
        assert (psf * (x * x + y * y)).sum() == pytest.approx(radius_px**2 / 2, abs=0.26, rel=0.02)


def test_halved_layers_look_like_whole_ones() -> None:
    """The same scene through one exact kernel and through layers, two of which share every pixel."""
    image_lin = pixels_to_linear(photo(240, 320))
    exact = DEFOCUS_BLUR.apply(
        image_lin, defocus(aperture_mm=22.0), Scene(depth=plane_depth(np.full((240, 320), 1e6))), rng_for(1)
    )
    z_m = np.full((240, 320), 1e6)
    z_m[0, 0] = 8.0
    layered = DEFOCUS_BLUR.apply(image_lin, defocus(aperture_mm=22.0), Scene(depth=plane_depth(z_m)), rng_for(1))
    assert exact.realised["depth_layers"] == 1 and layered.realised["depth_layers"] > 1
    difference = np.abs(linear_to_srgb(layered.image) - linear_to_srgb(exact.image))[8:, 8:]
    assert difference.mean() * 255 < 0.6
    assert np.quantile(difference, 0.999) * 255 < 10


def mtf50(image: Any) -> Any:
    """Frequency in cycles / px at which the contrast of a slanted edge has fallen to a half."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    distance = ((x - image.shape[1] / 2) * math.cos(0.09) + (y - image.shape[0] / 2) * math.sin(0.09)).ravel()
    near = np.abs(distance) < 40
    bins = np.floor((distance[near] + 40) * 4).astype(int)
    profile = np.bincount(bins, image.ravel()[near]) / np.bincount(bins)
    spectrum = np.abs(np.fft.rfft(np.diff(profile), 8192))
    return np.argmax(spectrum < spectrum[0] / 2) / 8192 * 4


def test_mtf50_falls_with_the_circle_of_confusion() -> None:
    y, x = np.mgrid[:160, :160]
    distance = (x - 80) * math.cos(0.09) + (y - 80) * math.sin(0.09)
    edge = np.repeat(np.clip(distance + 0.5, 0, 1)[..., None], 3, axis=2).astype(np.float32) * 0.8 + 0.1
    scene = Scene(depth=plane_depth(np.full((160, 160), 10.0)))
    apertures = (0.5, 3.0, 5.0, 8.0, 14.0, 30.0, 60.0)
    measured = []
    for aperture_mm in apertures:
        out = DEFOCUS_BLUR.apply(edge, defocus(aperture_mm=aperture_mm, roundness=1.0), scene, rng_for(1))
        measured.append(mtf50(out.image[..., 0]))
    assert all(left > right for left, right in itertools.pairwise(measured)), measured


def test_circle_of_confusion_follows_the_thin_lens() -> None:
    z_m = np.array([[0.3, 2.0, 1000.0]])
    blur_px = signed_blur_px(plane_depth(z_m, focal_px=3000), aperture_mm=2.2, focus_m=1e6)
    np.testing.assert_allclose(blur_px[0, :2], [22.0, 3.3], rtol=0.01)
    near_and_far = signed_blur_px(plane_depth(z_m), aperture_mm=10, focus_m=2.0)
    assert near_and_far[0, 0] > 0 > near_and_far[0, 2] and near_and_far[0, 1] == pytest.approx(0, abs=1e-5)


def test_blurred_background_does_not_leak_over_a_sharp_foreground() -> None:
    image_lin = np.zeros((120, 160, 3), np.float32)
    image_lin[:, :80] = 0.8
    image_lin[:, 80:, 0] = 0.05
    z_m = np.full((120, 160), 2.0)
    z_m[:, :80] = 50.0
    out = DEFOCUS_BLUR.apply(image_lin, defocus(aperture_mm=20.0), Scene(depth=plane_depth(z_m)), rng_for(1))
    assert out.realised["blur_min_px"] < -9
    np.testing.assert_allclose(out.image[:, 82:], image_lin[:, 82:], atol=2e-3)


def test_depth_ramp_shows_no_steps() -> None:
    image_lin = np.full((200, 120, 3), 0.4, np.float32)
    z_m = np.repeat(np.geomspace(50, 1.0, 200)[:, None], 120, axis=1)
    out = DEFOCUS_BLUR.apply(image_lin, defocus(aperture_mm=20.0), Scene(depth=plane_depth(z_m)), rng_for(1))
    assert out.realised["depth_layers"] >= 8
    np.testing.assert_allclose(out.image, image_lin, atol=1e-5)
    layer = out.layers["blur_diameter"]
    assert layer.dtype == np.uint16
    np.testing.assert_allclose(layer / 256, np.abs(signed_blur_px(plane_depth(z_m), 20.0, 2.0)), atol=1 / 256)


def test_only_highlights_are_expanded() -> None:
    grey = np.linspace(0, 1, 256, dtype=np.float32)[None, :, None].repeat(3, axis=2)
    gain = expand_highlights(grey, 4.0)[0, 1:, 0] / grey[0, 1:, 0]
    assert gain[-1] == pytest.approx(4)
    assert np.all(np.diff(gain) >= -1e-5) and gain[180] < 1.02
    saturated = np.array([[[1.0, 0.2, 0.2]]], np.float32)
    np.testing.assert_allclose(expand_highlights(saturated, 4.0), saturated, rtol=1e-6)
    restored = compress_highlights(expand_highlights(grey, 4.0), 4.0)
    np.testing.assert_allclose(restored, grey, rtol=1e-4)


def test_no_blur_leaves_highlights_as_they_are() -> None:
    image_lin = np.linspace(0, 1, 900, dtype=np.float32).reshape(15, 20, 3)
    scene = Scene(depth=plane_depth(np.full((15, 20), 2.0)))
    out = DEFOCUS_BLUR.apply(image_lin, defocus(focus_m=2.0, highlight_gain=4.0), scene, rng_for(1))
    np.testing.assert_allclose(out.image, image_lin, atol=2e-4)


def test_long_exposures_wind_more_than_short_ones() -> None:
    def straightness(exposure_s: Any) -> Any:
        paths = [shake_path(exposure_s, 0.9, rng_for(seed, "path")) for seed in range(20)]
        return np.mean([np.hypot(*(path[-1] - path[0])) for path in paths])

    lengths = [np.hypot(*np.diff(shake_path(t, 0.9, rng_for(1)), axis=0).T).sum() for t in (0.02, 1.0)]
    np.testing.assert_allclose(lengths, 1.0, atol=2e-3)
    assert straightness(0.02) > 1.5 * straightness(1.5)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_web_kernels_have_the_published_shape(beta: Any) -> None:
    params = kernel(sigma_x_px=3.0, sigma_y_px=1.5, angle_deg=0.0, beta=beta)
    gaussian, plateau = response(WEB_GAUSSIAN_BLUR, params), response(WEB_PLATEAU_BLUR, params)
    d = np.array([(dx / 3.0) ** 2 + (dy / 1.5) ** 2 for dx, dy in ((1, 0), (0, 1), (3, 2), (5, -1))])
    of_gaussian, of_plateau = (
        np.array([psf[64 + dy, 64 + dx] for dx, dy in ((1, 0), (0, 1), (3, 2), (5, -1))]) / psf[64, 64]
        for psf in (gaussian, plateau)
    )
    np.testing.assert_allclose(of_gaussian, np.exp(-0.5 * d**beta), rtol=2e-2, atol=2e-4)
    np.testing.assert_allclose(of_plateau, 1 / (1 + d**beta), rtol=2e-2, atol=2e-4)


def test_web_kernels_are_cut_at_their_radius_and_say_what_spread_is_left() -> None:
    image = np.zeros((65, 65, 3), np.float32)
    image[32, 32] = 1
    for radius_px, kept in ((10, 2.97), (3, 1.8)):
        out = WEB_GAUSSIAN_BLUR.apply(
            image, kernel(radius_px=radius_px, sigma_x_px=3.0, sigma_y_px=3.0), Scene(), rng_for(1)
        )
        used = np.flatnonzero(out.image[..., 0].max(axis=0) > 1e-7)
        assert (used[0], used[-1]) == (32 - radius_px, 32 + radius_px)
        assert out.realised["spread_px"] == pytest.approx(kept, abs=0.06)


def test_sinc_passes_below_its_cutoff_and_stops_above() -> None:
    x = np.arange(200, dtype=np.float32)
    for cutoff, frequency, passes in ((1.5, 0.12, True), (1.5, 0.4, False), (2.4, 0.25, True)):
        wave = 0.5 + 0.3 * np.cos(2 * np.pi * frequency * x)
        image = np.repeat(np.repeat(wave[None, :, None], 60, axis=0), 3, axis=2).astype(np.float32)
        out = WEB_SINC_BLUR.apply(image, WebSincBlurParams(radius_px=10, cutoff_rad_px=cutoff), Scene(), rng_for(1))
        left = np.ptp(out.image[30, 40:160, 0]) / 0.6
        assert (left > 0.85) if passes else (left < 0.12), (cutoff, frequency, left)


def test_bessel_function_is_right() -> None:
    known = {0.5: 0.2422684577, 1.0: 0.4400505857, 3.8317059702: 0.0, 10.0: 0.0434727462, 40.0: 0.1260384}
    for x, value in known.items():
        assert float(bessel_j1(np.array([x]))[0]) == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("side", [5, 11, 13, 31])
def test_taps_and_transforms_give_the_same(side: Any) -> None:
    rng = np.random.default_rng(side)
    image = rng.random((70, 83, 3), dtype=np.float32)
    full = rng.random((side, side)).astype(np.float32)
    sparse = np.where(rng.random((side, side)) < 0.08, full, 0)
    sparse[0, 1] = sparse[-1, 0] = 0.5
    for psf in (full / full.sum(), sparse / sparse.sum()):
        by_opencv = cv2.filter2D(image, -1, cv2.flip(psf, -1), borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(convolve(image, psf), by_opencv, atol=3e-6)
        planes = [np.ascontiguousarray(image[..., channel]) for channel in range(3)]
        convolve_planes(planes, psf)
        np.testing.assert_allclose(np.dstack(planes), by_opencv, atol=3e-6)


def test_a_lamp_keeps_its_light_when_it_is_spread() -> None:
    """A lamp that the photo clipped at 1 stays visible over the path, where a lamp of 1 would vanish."""
    image = np.full((101, 101, 3), 0.02, np.float32)
    image[49:52, 49:52] = 1
    shake = {"focal_ratio": 3.0, "speed_deg_s": 9.0, "exposure_s": 0.4, "tremor": 0.5}
    dim, bright = (
        MOTION_BLUR.apply(image, MotionBlurParams(**shake, highlight_gain=gain), Scene(), rng_for(4)).image
        for gain in (1.0, 8.0)
    )
    assert dim.max() < 0.5 and bright.max() > 0.75
    assert bright.max() <= 1.01


@pytest.mark.parametrize(
    ("params_type", "values", "message"),
    [
        (MotionBlurParams, {"exposure_s": 0.0}, "exposure_s"),
        (MotionBlurParams, {"exposure_s": 20.0, "speed_deg_s": 30.0}, "image widths"),
        (MotionBlurParams, {"tremor": 1.5}, "tremor"),
        (WebKernelParams, {"sigma_x_px": -1.0}, "sigma_x_px"),
        (WebKernelParams, {"radius_px": 40}, "radius_px"),
        (WebSincBlurParams, {"cutoff_rad_px": 4.0}, "cutoff_rad_px"),
        (DefocusBlurParams, {"blades": 2}, "blades"),
        (TemporalBlurParams, {"duty_cycle": 1.2}, "duty_cycle"),
    ],
)
def test_parameters_out_of_range_are_named(params_type: Any, values: Any, message: Any) -> None:
    (degradation,) = [each for each in ALL if each.params_type is params_type][:1]
    good = degradation.sample(0.5, rng_for(1)).model_dump()
    with pytest.raises(ValueError, match=message):
        params_type.model_validate({**good, **values})


@pytest.mark.parametrize("name", BLUR)
def test_severity_blurs_more_and_leaves_target_and_input_alone(name: Any) -> None:
    pixels = photo()
    before = pixels.copy()
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    sharpness = [cv2.Laplacian(grey, cv2.CV_32F).var()]
    for severity in (0.0, 0.5, 1.0):
        of_seeds = []
        for seed in range(4):
            out = render(name, pixels, severity, seed)
            of_seeds.append(cv2.Laplacian(cv2.cvtColor(to_pixels(out.image), cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())
            assert np.array_equal(to_pixels(out.target), pixels)
        sharpness.append(float(np.mean(of_seeds)))
    assert sharpness[0] > sharpness[1] > sharpness[2] > sharpness[3]
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("name", BLUR)
@pytest.mark.parametrize("size", [(16, 16), (17, 61), (90, 31)])
def test_any_size_and_same_bytes(name: Any, size: Any) -> None:
    pixels = photo(*size)
    first, second = (render(name, pixels, 1.0, seed=5).image for _ in range(2))
    assert first.shape == pixels.shape and first.dtype == np.float32
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", BLUR)
def test_every_parameter_moves_pixels(name: Any) -> None:
    pixels = photo()
    pixels[40:60, 50:80] = 255
    scene = scene_for(pixels)
    step = sample_step(BLUR[name], 0.5, rng_for(2, name), seed_for(2, name))
    reference = replay_with(pixels, [step], scene, BLUR).image
    for field, value in step.params.items():
        changed = value + 1 if isinstance(value, int) else value * 1.1 + (2.0 if field.endswith("deg") else 0)
        if field in ("duty_cycle", "tremor", "roundness", "cutoff_rad_px"):
            changed = value * 0.9
        other = step.model_copy(update={"params": {**step.params, field: changed}})
        assert not np.array_equal(replay_with(pixels, [other], scene, BLUR).image, reference), field
