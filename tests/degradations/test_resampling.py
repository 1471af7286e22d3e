"""Resampling: places of pixels (D1), aliasing (D2), means (D3), sizes and bad input."""

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from skimage import data

from degradations.base import Degradation, Scene, replay_with
from degradations.resampling import (
    LOW_RESOLUTION,
    RESIZE,
    LowResolutionParams,
    ResizeParams,
    resized,
    size_at,
)
from pairforge.image import to_float
from pairforge.records import Step
from pairforge.rng import rng_for

BY_NAME: dict[str, Degradation[Any]] = {"resize": RESIZE, "low_resolution": LOW_RESOLUTION}
SMOOTH: tuple[Any, ...] = ("area", "bilinear", "bicubic", "lanczos", "bicubic_antialias")
PHOTO = np.ascontiguousarray(data.coffee()[:240, :320])


def steps(*params: Any) -> list[Step]:
    names: dict[Any, str] = {ResizeParams: "resize", LowResolutionParams: "low_resolution"}
    return [
        Step(name=names[type(each)], version=1, severity=0.5, params=each.model_dump(mode="json"), seed="0" * 32)
        for each in params
    ]


def resize(size_frac: float, kernel: Any) -> ResizeParams:
    return ResizeParams(size_frac=size_frac, kernel=kernel)


def blob(x: float, y: float) -> Any:
    """A bright Gaussian on black whose centre is known to a hundredth of a pixel."""
    column, row = np.arange(160), np.arange(120)
    plane = np.exp(-((column[None, :] - x) ** 2 + (row[:, None] - y) ** 2) / (2 * 6.0**2))
    return (np.repeat(plane[..., None], 3, axis=2) * 255).round().astype(np.uint8)


def centre(image: Any) -> Any:
    weights = image[..., 1].astype(np.float64)
    weights = np.where(weights > 0.05, weights, 0)
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


@pytest.mark.parametrize("kernel", SMOOTH)
@pytest.mark.parametrize("fractions", [(0.25,), (0.37,), (1.3,), (0.5, 0.31), (0.41, 1.0), (1.4, 0.3, 1.0)])
def test_d1_recorded_places_lead_back_to_the_base(kernel: Any, fractions: Any) -> None:
    """Composed affine maps bring fixture points back within 0.1 px of the base, in chains too."""
    for x, y in ((50.0, 40.0), (97.3, 71.6)):
        out = replay_with(blob(x, y), steps(*(resize(each, kernel) for each in fractions)), Scene(), BY_NAME)
        place = out.realised[f"{len(fractions) - 1}_resize"]
        found = centre(out.image) * place["base_px"] + place["base_offset_px"]
        np.testing.assert_allclose(found, [x, y], atol=0.1)


def test_d1_nearest_is_off_by_no_more_than_half_a_pixel() -> None:
    out = replay_with(blob(50.0, 40.0), steps(resize(0.25, "nearest")), Scene(), BY_NAME)
    place = out.realised["0_resize"]
    found = centre(out.image) * place["base_px"] + place["base_offset_px"]
    np.testing.assert_allclose(found, [50.0, 40.0], atol=0.55)


def residual(kernel: Any) -> float:
    """Amplitude that is left of 0.4 cycles per pixel after a reduction to a quarter; ideal is 0."""
    x = np.arange(512, dtype=np.float32)
    wave = 0.5 + 0.4 * np.cos(2 * np.pi * 0.4 * x)
    image = np.repeat(np.repeat(wave[None, :, None], 64, axis=0), 3, axis=2)
    small = resized(image, 16, 128, kernel)[8, 8:-8, 0]
    return float(np.ptp(small) / 0.8)


def test_d2_only_antialiased_kernels_remove_what_does_not_fit() -> None:
    left = {kernel: residual(kernel) for kernel in (*SMOOTH, "nearest")}
    assert left["bicubic_antialias"] < 0.05
    assert left["area"] < 0.3
    for kernel, floor in (("nearest", 0.9), ("lanczos", 0.6), ("bicubic", 0.4), ("bilinear", 0.25)):
        assert left[kernel] > floor, f"{kernel} is the bad resizer it is labelled as"


@pytest.mark.parametrize("kernel", [*SMOOTH, "nearest"])
@pytest.mark.parametrize("size_frac", [0.25, 0.4, 0.77, 1.5])
def test_d3_mean_is_preserved(kernel: Any, size_frac: float) -> None:
    smooth = cv2.GaussianBlur(PHOTO, (0, 0), 2)
    out = replay_with(smooth, steps(resize(size_frac, kernel)), Scene(), BY_NAME)
    # Nearest takes single pixels: its mean is a sample of the photo's.
    tolerance = 0.02 if kernel == "nearest" else 0.005
    assert out.image.mean(dtype=np.float64) == pytest.approx(to_float(smooth).mean(dtype=np.float64), rel=tolerance)


@pytest.mark.parametrize(("size", "size_frac"), [((241, 317), 0.25), ((37, 90), 0.5), ((16, 9), 0.1), ((1, 1), 0.5)])
def test_sizes_are_rounded_and_at_least_eight(size: Any, size_frac: float) -> None:
    base = np.ascontiguousarray(PHOTO[: size[0], : size[1]]) if size[0] < 241 else cv2.resize(PHOTO, size[::-1])
    out = replay_with(base, steps(resize(size_frac, "area")), Scene(), BY_NAME)
    expected = tuple(max(min(8, side), round(size_frac * side)) for side in size)
    assert out.image.shape[:2] == expected == size_at(size, size_frac)
    assert out.target.shape[:2] == size, "the target keeps its size: a pair for super-resolution"
    assert out.realised["0_resize"]["size_px"] == list(expected[::-1])


def test_size_is_that_of_the_base_not_of_the_step_before() -> None:
    out = replay_with(
        PHOTO, steps(resize(0.5, "area"), resize(0.4, "bicubic"), resize(1.0, "bicubic")), Scene(), BY_NAME
    )
    assert out.image.shape == PHOTO.shape
    assert [out.realised[f"{index}_resize"]["size_px"] for index in range(3)] == [[160, 120], [128, 96], [320, 240]]
    same = replay_with(PHOTO, steps(resize(1.0, "bicubic")), Scene(), BY_NAME)
    assert np.array_equal(same.image, to_float(PHOTO))


def test_low_resolution_is_down_and_up_in_one() -> None:
    both = replay_with(PHOTO, steps(resize(0.25, "bicubic_antialias"), resize(1.0, "bicubic")), Scene(), BY_NAME)
    params = LowResolutionParams(shrink_ratio=4.0, down="bicubic_antialias", up="bicubic")
    once = replay_with(PHOTO, steps(params), Scene(), BY_NAME)
    assert np.array_equal(both.image, once.image)
    assert once.realised["0_low_resolution"]["size_between_px"] == [80, 60]


def test_low_resolution_removes_detail_that_does_not_fit() -> None:
    image = to_float(PHOTO)
    for shrink_ratio in (2.0, 4.0, 8.0):
        params = LowResolutionParams(shrink_ratio=shrink_ratio, down="bicubic_antialias", up="bicubic")
        out = LOW_RESOLUTION.apply(image, params, Scene(), rng_for(0))
        window = np.outer(np.hanning(240), np.hanning(320))
        power = [np.abs(np.fft.fft2((each[..., 1] - each[..., 1].mean()) * window)) ** 2 for each in (image, out.image)]
        fine = (
            np.maximum(np.abs(np.fft.fftfreq(240))[:, None], np.abs(np.fft.fftfreq(320))[None, :]) > 0.9 / shrink_ratio
        )
        assert power[1][fine].sum() < 0.2 * power[0][fine].sum()


@pytest.mark.parametrize("name", BY_NAME)
def test_severity_shrinks(name: Any) -> None:
    def size(severity: float) -> float:
        params = BY_NAME[name].sample(severity, rng_for(3, name)).model_dump()
        return float(params["size_frac"] if name == "resize" else 1 / params["shrink_ratio"])

    sizes = [size(severity) for severity in np.linspace(0, 1, 11)]
    assert all(larger > smaller for larger, smaller in itertools.pairwise(sizes))
    assert sizes[0] > 0.7 and sizes[-1] < 0.3


@pytest.mark.parametrize("values", [{"size_frac": 0.0}, {"size_frac": 9.0}, {"kernel": "magic"}, {"kernel": None}])
def test_bad_parameters_are_named(values: Any) -> None:
    (field,) = values
    with pytest.raises(ValueError, match=field):
        ResizeParams.model_validate({"size_frac": 0.5, "kernel": "area", **values})
