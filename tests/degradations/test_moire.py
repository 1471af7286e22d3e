"""Moiré: alias law, transfer, agreement with a supersampled screen, alignment of the target."""

import itertools

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from degradations.base import Scene
from degradations.moire import (
    MOIRE,
    MoireParams,
    alias_frequencies,
    apply_moire,
    mask_light,
    sample_moire,
    screen_position,
    sensor_grid,
    to_mosaic,
    view_of,
)
from pairforge.image import Image, Plane, luminance, pixels_to_linear
from pairforge.rng import rng_for

FLAT_VIEW = {"tilt_x_deg": 0.0, "tilt_y_deg": 0.0, "roll_deg": 0.0, "radial_k1": 0.0}
TILTED = {"tilt_x_deg": 9.0, "tilt_y_deg": -6.0, "roll_deg": 4.0, "radial_k1": 0.03}


def photo(name: str) -> Image:
    return pixels_to_linear(getattr(data, name)())


def make_params(**changes: object) -> MoireParams:
    values = {
        **sample_moire(0.5, rng_for(1, "moire")).model_dump(),
        **{"pitch_ratio": 2.11, "lens_sigma_px": 0.3, "artistic_gain": 1.0, "cfa": "RGGB"},
        **{"stripe_order": "RGB", "fill_x": 0.75, "fill_y": 0.85, "focal_frac": 1.0},
        **FLAT_VIEW,
        **changes,
    }
    return MoireParams.model_validate(values)


def mask_of(params: MoireParams, width: int, height: int) -> Plane:
    view = view_of(params, width, height)
    return mask_light(*screen_position(*sensor_grid(width, height), view), params, view)[0]


def covered(position: Plane, fill: float, footprint: float) -> Plane:
    """Share of a footprint (periods) that lies in apertures of width `fill` centred on whole numbers."""

    def area(edge: Plane) -> Plane:
        shifted = edge + fill / 2
        covered_px: Plane = np.floor(shifted) * fill + np.minimum(shifted - np.floor(shifted), fill)
        return covered_px

    return (area(position + footprint / 2) - area(position - footprint / 2)) / footprint


def photograph_drawn_screen(params: MoireParams, side: int, scale: int) -> Plane:
    """Mosaic of a white screen: area-coverage mask drawn `scale` times finer, lens, box, Bayer pattern."""
    margin = 4
    fine = (np.arange((side + 2 * margin) * scale, dtype=np.float64) + 0.5) / scale - margin - 0.5
    fine -= (side - 1) / 2
    u, v = screen_position(fine[None, :], fine[:, None], view_of(params, side, side))
    u, v = u / params.pitch_ratio + params.phase_x_cyc, v / params.pitch_ratio + params.phase_y_cyc
    channels = []
    for channel in "RGB":
        offset = (params.stripe_order.index(channel) - 1) / 3
        lit = covered(u - offset, params.fill_x / 3, 1 / scale / params.pitch_ratio)
        lit = lit * covered(v, params.fill_y, 1 / scale / params.pitch_ratio)
        lit = lit / (params.fill_x / 3 * params.fill_y)
        lit = cv2.GaussianBlur(lit, (0, 0), params.lens_sigma_px * scale, borderType=cv2.BORDER_REFLECT)
        lit = lit.reshape(side + 2 * margin, scale, side + 2 * margin, scale).mean(axis=(1, 3))
        channels.append(lit[margin:-margin, margin:-margin])
    return to_mosaic(np.dstack(channels).astype(np.float32), params.cfa)


def peak(plane: NDArray[np.float32], spacing_px: float) -> tuple[float, float]:
    """(cycles per px, amplitude) of the strongest wave in a plane sampled every `spacing_px`."""
    window = np.outer(np.hanning(plane.shape[0]), np.hanning(plane.shape[1]))
    spectrum = np.abs(np.fft.fft2((plane - plane.mean()) * window)) * 2 / window.sum()
    row, column = np.unravel_index(int(spectrum.argmax()), spectrum.shape)
    f_y, f_x = np.fft.fftfreq(plane.shape[0])[row], np.fft.fftfreq(plane.shape[1])[column]
    return float(np.hypot(f_x, f_y)) / spacing_px, float(spectrum[row, column])


@pytest.mark.parametrize("roll_deg", [0.0, 7.0])
@pytest.mark.parametrize("pitch_ratio", [0.8, 0.9, 1.1, 1.3, 1.7, 2.11, 2.6, 3.2])
def test_m1_peak_is_where_the_alias_law_puts_it(pitch_ratio: float, roll_deg: float) -> None:
    side = 256
    params = make_params(pitch_ratio=pitch_ratio, roll_deg=roll_deg)
    angle = np.radians(roll_deg)
    predicted = alias_frequencies(np.cos(angle) / pitch_ratio, np.sin(angle) / pitch_ratio)
    mask = mask_of(params, side, side)
    assert peak(mask[0::2, 0::2], 2)[0] == pytest.approx(predicted["red_blue"], abs=1.5 / side)
    # "GGGG" puts the same stripe under every photosite: the lattice of a monochrome sensor.
    every = mask_of(params.model_copy(update={"cfa": "GGGG"}), side, side)
    assert peak(every, 1)[0] == pytest.approx(predicted["full"], abs=1.5 / side)


def test_m2_pitch_2_11_colours_red_and_blue_only() -> None:
    side = 422
    mask = mask_of(make_params(), side, side)
    red, red_amplitude = peak(mask[0::2, 0::2], 2)
    blue, blue_amplitude = peak(mask[1::2, 1::2], 2)
    assert (red, blue) == pytest.approx((0.026, 0.026), abs=1.5 / side)
    assert min(red_amplitude, blue_amplitude) > 0.3
    # The green lattice: zeros elsewhere only add copies around (1/2, 1/2).
    green = mask - 1
    green[0::2, 0::2] = green[1::2, 1::2] = 0
    wave = np.exp(-2j * np.pi * 11 / side * np.arange(side))[None, :] * np.hanning(side)[None, :]
    there = abs((green * wave).sum()) / (side * np.hanning(side).sum()) * 4
    assert there < 0.02 * red_amplitude


def test_m3_amplitude_follows_the_lens() -> None:
    soft, sharp = (peak(mask_of(make_params(lens_sigma_px=s), 256, 256)[::2, ::2], 2)[1] for s in (0.5, 0.3))
    expected = np.exp(-2 * np.pi**2 * (0.5**2 - 0.3**2) / 2.11**2)
    assert soft / sharp == pytest.approx(expected, rel=0.05)


def test_m4_reference_does_not_depend_on_its_sampling() -> None:
    params = make_params(roll_deg=5.0, pitch_ratio=1.4)
    coarse, fine = (photograph_drawn_screen(params, 40, scale) for scale in (8, 24))
    assert float(np.sqrt(np.mean((coarse - fine) ** 2))) < 0.01 * float(fine.mean())


@pytest.mark.parametrize("pitch_ratio", [0.95, 1.37, 2.11, 3.3])
@pytest.mark.parametrize("view", [FLAT_VIEW, TILTED])
def test_fourier_series_agrees_with_a_drawn_screen(pitch_ratio: float, view: dict[str, float]) -> None:
    params = make_params(pitch_ratio=pitch_ratio, **view)
    drawn = photograph_drawn_screen(params, 56, 24)
    error = mask_of(params, 56, 56) - drawn
    # At pitch 0.95 the drawing errs: finer sampling brings it towards the series.
    assert float(np.sqrt(np.mean(error**2))) < max(0.005, 0.05 * float(drawn.std()))


@pytest.mark.parametrize("severity", [0.2, 0.6, 1.0])
def test_m5_mean_is_kept(severity: float) -> None:
    image = photo("astronaut")[:384, :500]
    for key in range(4):
        rendered = apply_moire(image, sample_moire(severity, rng_for(2, key)), Scene(), rng_for(0))
        assert float(luminance(rendered.image).mean()) == pytest.approx(
            float(luminance(rendered.target).mean()), rel=0.02
        )
        assert 0.9 < rendered.realised["exposure"] < 1.1


def ramps(width: int, height: int) -> Image:
    """Red and green grow with column and row."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.dstack([x / width + 0.2, y / height + 0.2, np.full_like(x, 0.5)])


def test_target_and_photo_follow_the_recorded_geometry() -> None:
    width, height = 301, 200
    image = ramps(width, height)
    params = make_params(**TILTED, artistic_gain=1e-6)
    rendered = apply_moire(image, params, Scene(), rng_for(0))
    column, row = np.meshgrid(np.arange(8, width - 8), np.arange(8, height - 8))
    at = np.stack([column - (width - 1) / 2, row - (height - 1) / 2, np.ones(column.shape)])
    at[:2] *= 1 + params.radial_k1 * (at[0] ** 2 + at[1] ** 2) / ((width**2 + height**2) / 4)
    mapped = np.tensordot(np.array(rendered.realised["homography"]), at, axes=1)
    base_x = mapped[0] / mapped[2] * rendered.realised["zoom"] + (width - 1) / 2
    base_y = mapped[1] / mapped[2] * rendered.realised["zoom"] + (height - 1) / 2
    assert base_x.min() >= 0 and base_x.max() <= width - 1
    assert base_y.min() >= 0 and base_y.max() <= height - 1
    for seen, tolerance_px in (
        (rendered.target, 0.1),
        (rendered.image / rendered.realised["exposure"], 0.3),
    ):
        seen_x = (seen[8:-8, 8:-8, 0] - 0.2) * width
        seen_y = (seen[8:-8, 8:-8, 1] - 0.2) * height
        assert float(np.abs(seen_x - base_x).max()) < tolerance_px
        assert float(np.abs(seen_y - base_y).max()) < tolerance_px


def test_photo_is_aligned_with_target_on_a_photograph() -> None:
    image = photo("astronaut")
    rendered = apply_moire(image, make_params(**TILTED, pitch_ratio=1.6), Scene(), rng_for(0))
    window = cv2.createHanningWindow((128, 128), cv2.CV_32F)
    for row, column in ((40, 150), (192, 192), (350, 200)):
        tile = np.s_[row : row + 128, column : column + 128]
        (dx, dy), _ = cv2.phaseCorrelate(
            cv2.GaussianBlur(luminance(rendered.target)[tile], (0, 0), 2),
            cv2.GaussianBlur(luminance(rendered.image)[tile], (0, 0), 2),
            window,
        )
        assert np.hypot(dx, dy) < 0.3


def test_white_screen_is_not_drawn_in_dark_content() -> None:
    image = np.zeros((64, 64, 3), np.float32)
    assert float(apply_moire(image, make_params(), Scene(), rng_for(0)).image.max()) == 0


def pattern_strength(severity: float, key: int) -> float:
    grey = np.full((160, 160, 3), 0.4, np.float32)
    rendered = apply_moire(grey, sample_moire(severity, rng_for(3, key)), Scene(), rng_for(0))
    return float((rendered.image - rendered.target)[8:-8, 8:-8].std())


def test_severity_raises_the_pattern() -> None:
    means = [np.mean([pattern_strength(severity, key) for key in range(8)]) for severity in (0, 0.25, 0.5, 0.75, 1)]
    assert all(after > before for before, after in itertools.pairwise(means))
    assert means[0] < 0.02 * 0.4 < 0.08 * 0.4 < means[-1]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 21), (130, 257)])
def test_any_size_and_no_side_effect(height: int, width: int) -> None:
    image = (rng_for(4).random((height, width, 3)) * 1.5).astype(np.float32)
    before = image.copy()
    params = sample_moire(0.7, rng_for(5))
    first, second = (apply_moire(image, params, Scene(), rng_for(6)) for _ in range(2))
    assert first.image.shape == first.target.shape == image.shape
    assert first.image.dtype == first.target.dtype == np.float32
    assert np.array_equal(first.image, second.image) and np.array_equal(image, before)
    assert np.isfinite(first.image).all() and first.image.min() >= 0


@pytest.mark.parametrize("name", sorted(MoireParams.model_fields))
def test_every_parameter_moves_pixels(name: str) -> None:
    image = photo("chelsea")[:120, :160]
    params = sample_moire(0.6, rng_for(8))
    value = getattr(params, name)
    other = {"stripe_order": "BGR", "cfa": "GRBG"}.get(name, value)
    if value == other:
        other = {"stripe_order": "RGB", "cfa": "RGGB"}[name] if isinstance(value, str) else value * 1.05 + 0.01
    moved = apply_moire(image, params.model_copy(update={name: other}), Scene(), rng_for(0)).image
    assert float(np.abs(moved - apply_moire(image, params, Scene(), rng_for(0)).image).max()) > 1e-4


def test_params_survive_json() -> None:
    params = sample_moire(0.4, rng_for(9))
    assert MOIRE.params_type.model_validate_json(params.model_dump_json()) == params
