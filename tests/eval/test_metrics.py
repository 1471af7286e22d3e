"""PSNR and SSIM against scikit-image with the settings named, and against numbers known in advance."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from eval.metrics import MOST_PSNR_DB, Mean, means_by_category, psnr_db, ssim
from pairforge.image import Pixels
from pairforge.rng import rng_for

WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


@pytest.fixture(scope="module")
def photo() -> Pixels:
    from skimage import data

    crop: Pixels = data.astronaut()[60:193, 150:290]
    return crop


def noisy(pixels: Pixels, sigma: float) -> Pixels:
    values = pixels + rng_for(1, "noise").normal(0, sigma, pixels.shape)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def luma(pixels: Pixels) -> NDArray[np.float64]:
    values: NDArray[np.float64] = rgb2ycbcr(pixels)[..., 0]
    return values


@pytest.mark.parametrize("sigma", [1, 10, 60])
def test_rgb_agrees_with_scikit_image(photo: Pixels, sigma: float) -> None:
    other = noisy(photo, sigma)
    assert psnr_db(other, photo) == pytest.approx(peak_signal_noise_ratio(photo, other), abs=1e-9)
    assert ssim(other, photo) == pytest.approx(structural_similarity(photo, other, channel_axis=2, **WANG), abs=1e-9)


@pytest.mark.parametrize("border_px", [0, 4])
def test_luma_agrees_with_scikit_image(photo: Pixels, border_px: int) -> None:
    other = noisy(photo, 12)
    inside = (slice(border_px, 133 - border_px), slice(border_px, 140 - border_px))
    first, second = luma(photo)[inside], luma(other)[inside]
    expected = peak_signal_noise_ratio(first, second, data_range=255)
    assert psnr_db(other, photo, "y", border_px) == pytest.approx(expected, abs=1e-6)
    assert ssim(other, photo, "y", border_px) == pytest.approx(structural_similarity(first, second, **WANG), abs=1e-7)


def test_ssim_keeps_its_digits_where_nothing_varies() -> None:
    """Flat pictures of codes 254 and 255: only the term of luminance differs from 1."""
    bright = np.full((16, 16, 3), 255, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 255 * 254 + c1) / (255**2 + 254**2 + c1)
    assert ssim(bright - 1, bright) == pytest.approx(expected, abs=1e-12)


def test_one_code_everywhere_is_48_db(photo: Pixels) -> None:
    darker = np.minimum(photo, 254)
    assert psnr_db(darker + np.uint8(1), darker) == pytest.approx(20 * np.log10(255))


def test_equal_pictures_get_the_cap_and_stay_json(photo: Pixels) -> None:
    assert psnr_db(photo, photo) == MOST_PSNR_DB
    assert ssim(photo, photo) == ssim(photo, photo, "y") == 1.0
    json.dumps(psnr_db(photo, photo), allow_nan=False)
    large = np.zeros((2000, 2000, 3), np.uint8)
    almost = large.copy()
    almost[0, 0, 0] = 1
    assert psnr_db(almost, large) == MOST_PSNR_DB


def test_both_are_symmetric_and_fall_with_damage(photo: Pixels) -> None:
    steps = [noisy(photo, sigma) for sigma in (2, 8, 20, 50)]
    for measure in (psnr_db, ssim):
        values = [measure(step, photo) for step in steps]
        assert values == sorted(values, reverse=True)
        assert measure(photo, steps[1]) == pytest.approx(values[1], abs=1e-12)


def test_what_cannot_be_compared_is_refused(photo: Pixels) -> None:
    for wrong in (photo.astype(np.int16), photo[..., 0]):
        with pytest.raises(ValueError, match="8-bit RGB"):
            psnr_db(wrong, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sizes differ: 140x133 and 139x133"):
        psnr_db(photo, photo[:, 1:])
    with pytest.raises(ValueError, match="border_px 67"):
        psnr_db(photo, photo, border_px=67)
    with pytest.raises(ValueError, match="needs 11 pixels each way, not 10x133"):
        ssim(photo[:, :10], photo[:, :10])
    assert 0 < ssim(photo[:11, :11], noisy(photo, 9)[:11, :11]) < 1


def test_means_stay_within_categories() -> None:
    rows: list[tuple[str, dict[str, float | None]]] = [
        ("rain", {"psnr_db": 30.0, "ssim": None}),
        ("haze", {"psnr_db": 20.0, "ssim": 0.5}),
        ("rain", {"psnr_db": 20.0, "ssim": 0.8}),
        ("blur", {"psnr_db": None}),
    ]
    means = means_by_category(rows)
    assert list(means) == ["blur", "haze", "rain"]
    assert means["rain"] == {"psnr_db": Mean(mean=25.0, count=2), "ssim": Mean(mean=0.8, count=1, missing=1)}
    assert means["blur"] == {name: Mean(mean=None, count=0, missing=1) for name in ("psnr_db", "ssim")}
    assert means_by_category([]) == {}
