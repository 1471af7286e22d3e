"""The no-reference gain of HQ over LQ: rises with damage, is none for equal images, negative for the pair reversed."""

import cv2
import numpy as np
import pytest

from pairforge.image import Pixels
from qc.gain import GainRule, measure_gain, measure_quality

from .damage import DAMAGES, _noisy

RULE = GainRule()


def gain(lq: Pixels, hq: Pixels) -> dict[str, float]:
    return measure_gain(measure_quality(lq), measure_quality(hq), RULE)


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "none"])
def test_a_clean_photo_gains_over_its_damaged_self(photos: dict[str, Pixels], damage: str) -> None:
    term = {"blur": "sharpness", "noise": "noise", "compression": "blockiness", "haze": "veil"}.get(damage, "exposure")
    for pixels in photos.values():
        lq = DAMAGES[damage](pixels)
        there, back = gain(lq, pixels), gain(pixels, lq)
        assert there[f"{term}_gain"] > 0.3
        assert RULE.passed(there) and there["quality_gain"] > 0.4
        assert back["quality_gain"] < 0 and not RULE.passed(back)


def test_little_or_no_gain_is_a_failure(photos: dict[str, Pixels]) -> None:
    for pixels in photos.values():
        _, stream = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
        near = np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)
        brighter = np.clip(pixels.astype(np.int16) + 4, 0, 255).astype(np.uint8)
        for lq in (pixels, near, brighter):
            numbers = gain(lq, pixels)
            assert not RULE.passed(numbers)
            assert abs(numbers["quality_gain"]) < 0.15


@pytest.mark.parametrize("sigma_px", [1.0, 2.0, 4.0])
def test_width_of_edges_grows_with_blur(photos: dict[str, Pixels], sigma_px: float) -> None:
    """Texture finer than the coarse scale makes real photos read narrower, never wider by much."""
    for pixels in photos.values():
        blurred = np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_px), np.uint8)
        found = measure_quality(blurred)["edge_sigma_px"]
        assert measure_quality(pixels)["edge_sigma_px"] < found < 1.2 * sigma_px
        assert found > 0.3 * sigma_px


def test_a_step_edge_gives_back_its_blur() -> None:
    step = np.zeros((256, 256, 3), np.uint8)
    step[:, 128:] = 200
    step += 20
    for sigma_px in (1.0, 2.0, 4.0):
        blurred = np.asarray(cv2.GaussianBlur(step, (0, 0), sigma_px), np.uint8)
        assert measure_quality(blurred)["edge_sigma_px"] == pytest.approx(sigma_px, rel=0.15)


def test_noise_does_not_pass_for_sharpness(photos: dict[str, Pixels]) -> None:
    """Noise of 8 codes over a blurred photo: the edges still read as wide."""
    for name in ("astronaut", "coffee"):
        blurred = np.asarray(cv2.GaussianBlur(photos[name], (0, 0), 3), np.uint8)
        assert measure_quality(_noisy(blurred, 8))["edge_sigma_px"] > 1.0


def test_noise_in_codes(photos: dict[str, Pixels]) -> None:
    """Of grey: independent noise of three channels is averaged by the weights of luma, 0.668."""
    for pixels in photos.values():
        grey = 40 + pixels // 2  # away from both ends, where noise is clipped
        clean = measure_quality(grey)["noise_codes"]
        assert clean < 2.0
        for sigma in (5.0, 15.0):
            assert measure_quality(_noisy(grey, sigma))["noise_codes"] == pytest.approx(0.668 * sigma, rel=0.15)


def test_blockiness_finds_a_shifted_grid(photos: dict[str, Pixels]) -> None:
    for pixels in photos.values():
        blocked = DAMAGES["compression"](pixels)
        for lq in (blocked, np.ascontiguousarray(blocked[3:, 5:])):
            assert measure_quality(lq)["blockiness"] > measure_quality(pixels)["blockiness"] + 0.3


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (16, 2000), (33, 17), (1200, 1500)])
def test_any_size_gives_finite_numbers(photos: dict[str, Pixels], shape: tuple[int, int]) -> None:
    pixels = np.asarray(cv2.resize(photos["coffee"], shape[::-1]), np.uint8)
    for image in (pixels, np.zeros_like(pixels), np.full_like(pixels, 255)):
        assert all(np.isfinite(value) for value in measure_quality(image).values())
        assert gain(image, pixels).keys() == gain(pixels, image).keys()


def test_weights_are_settings(photos: dict[str, Pixels]) -> None:
    lq, hq = measure_quality(DAMAGES["blur"](photos["coffee"])), measure_quality(photos["coffee"])
    only_noise = GainRule(weights={"noise": 1.0})
    assert measure_gain(lq, hq, only_noise)["quality_gain"] < 0.1 < measure_gain(lq, hq, RULE)["quality_gain"]
