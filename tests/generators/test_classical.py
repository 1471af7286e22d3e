"""The weight-free generator: simply damaged photos come nearer to the clean ones; nothing depends on chance."""

import subprocess
import sys
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from generators.classical import ClassicalGenerator, chosen_by_symptoms
from generators.restorers import guided_filter
from generators.symptoms import Symptoms, grid_phase, measure_symptoms
from pairforge.image import Pixels, decode_png, linear_to_srgb, pixels_to_linear, to_pixels
from pairforge.protocols import BackendError, Generator, Trouble
from pairforge.rng import rng_for

Change = Callable[[Pixels], Pixels]


def noisy(pixels: Pixels, sigma_codes: float) -> Pixels:
    noise = rng_for(3, "noise").normal(0, sigma_codes, pixels.shape)
    return np.clip(pixels + noise + 0.5, 0, 255).astype(np.uint8)


def hazy(pixels: Pixels, far: float, near: float) -> Pixels:
    """Transmission rises from the top row to the bottom row; airlight 0.85 in linear light."""
    transmission = np.linspace(far, near, len(pixels), dtype=np.float32)[:, None, None]
    image_lin = pixels_to_linear(pixels) * transmission + np.float32(0.85) * (1 - transmission)
    return to_pixels(linear_to_srgb(image_lin))


def dark(pixels: Pixels, light: float) -> Pixels:
    return noisy(to_pixels(linear_to_srgb(pixels_to_linear(pixels) * np.float32(light))), 2)


def coded(pixels: Pixels, quality: int) -> Pixels:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, stream = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR_RGB), np.uint8)


def blurred(pixels: Pixels, sigma_px: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), sigma_px), np.uint8)


def screened(pixels: Pixels) -> Pixels:
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    waves = [18 * np.sin(2 * np.pi * (u * x + v * y)) for u, v in ((0.11, 0.06), (0.115, 0.055), (0.108, 0.065))]
    return np.asarray(np.clip(pixels + np.stack(waves, axis=2), 0, 255), np.uint8)


# Category, damage, least and least median gain in dB of PSNR over four photos.
CASES: dict[str, tuple[str, Change, float, float]] = {
    "haze": ("haze", lambda p: hazy(p, 0.3, 0.8), 3.0, 6.0),
    "dense haze": ("haze", lambda p: hazy(p, 0.2, 0.4), 2.0, 4.0),
    "noise 8": ("noise", lambda p: noisy(p, 8), 2.5, 3.0),
    "noise 15": ("noise", lambda p: noisy(p, 15), 4.0, 5.5),
    "noise 30": ("noise", lambda p: noisy(p, 30), 4.0, 6.5),
    "jpeg 10": ("compression", lambda p: coded(p, 10), 0.25, 0.4),
    "jpeg 30": ("compression", lambda p: coded(p, 30), 0.1, 0.2),
    "low light": ("low_light", lambda p: dark(p, 0.1), 5.0, 10.0),
    "very low light": ("low_light", lambda p: dark(p, 0.03), 4.0, 6.0),
    "blur": ("blur", lambda p: blurred(p, 2), 0.5, 1.0),
    "blur and noise": ("blur", lambda p: noisy(blurred(p, 3), 2), 0.2, 0.8),
    "moire": ("moire", screened, 1.5, 2.0),
}


def psnr_db(image: Pixels, truth: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.square(image.astype(float) - truth).mean()))


def restored(lq: Pixels, category: str | None) -> Pixels:
    return ClassicalGenerator(category).generate(lq, "restore it", seed=1).pixels


@pytest.mark.parametrize("case", CASES)
def test_psnr_rises(photos: dict[str, Pixels], case: str) -> None:
    category, damage, least_db, least_median_db = CASES[case]
    gains = []
    for pixels in photos.values():
        lq = damage(pixels)
        gains.append(psnr_db(restored(lq, category), pixels) - psnr_db(lq, pixels))
    assert min(gains) > least_db, gains
    assert float(np.median(gains)) > least_median_db, gains


@pytest.mark.parametrize("case", ["haze", "noise 15", "jpeg 10", "low light", "blur"])
def test_psnr_rises_where_the_category_is_not_named(photos: dict[str, Pixels], case: str) -> None:
    """Chosen by what is measured."""
    category, damage, _, _ = CASES[case]
    for pixels in photos.values():
        lq = damage(pixels)
        generator = ClassicalGenerator()
        assert set(ClassicalGenerator(category).steps(lq)) <= set(generator.steps(lq))
        assert psnr_db(restored(lq, None), pixels) > psnr_db(lq, pixels)


def test_a_clean_photo_comes_back_unchanged(photos: dict[str, Pixels]) -> None:
    for pixels in photos.values():
        assert ClassicalGenerator().steps(pixels) == ()
        assert np.array_equal(restored(pixels, None), pixels)


def test_order_of_restorers_follows_the_camera_backwards() -> None:
    ill = Symptoms(noise_codes=2.7, edge_sigma_px=2, blockiness=1, veil=0.5, median_luma=0.05)
    assert chosen_by_symptoms(ill) == ("deblock", "denoise", "dehaze", "brighten", "deblur")


@pytest.mark.parametrize("category", [None, "haze", "low_light", "noise", "compression", "blur", "moire", "old_photo"])
@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (5, 300), (97, 33), (301, 222)])
def test_any_size(photos: dict[str, Pixels], category: str | None, shape: tuple[int, int]) -> None:
    pixels = np.asarray(cv2.resize(photos["coffee"], shape[::-1]), np.uint8)
    for lq in (pixels, coded(pixels, 10), np.zeros_like(pixels), np.full_like(pixels, 255)):
        before = lq.copy()
        candidate = ClassicalGenerator(category).generate(lq, "", 0)
        assert candidate.pixels.shape == lq.shape and candidate.pixels.dtype == np.uint8
        assert np.array_equal(lq, before)


@pytest.mark.parametrize("category", ["rain", "snow", "reflection", "flare"])
def test_what_it_cannot_do_is_refused(photos: dict[str, Pixels], category: str) -> None:
    with pytest.raises(BackendError, match="no classical restorer") as caught:
        ClassicalGenerator(category).generate(photos["coffee"], "", 0)
    assert caught.value.trouble is Trouble.REFUSED


@pytest.mark.parametrize("shape", [(2000, 16), (1500, 2000)])
def test_large_sizes(photos: dict[str, Pixels], shape: tuple[int, int]) -> None:
    lq = noisy(np.asarray(cv2.resize(photos["coffee"], shape[::-1]), np.uint8), 10)
    assert restored(lq, None).shape == lq.shape


def test_candidate(photos: dict[str, Pixels]) -> None:
    generator: Generator = ClassicalGenerator("noise")
    lq = noisy(photos["coffee"], 15)
    first, second = generator.generate(lq, "a", seed=1), generator.generate(lq, "b", seed=2)
    assert generator.name == "classical" and generator.deterministic and generator.price_usd == 0.0
    assert first.data == second.data and np.array_equal(decode_png(first.data), first.pixels)
    assert first.mime == "image/png" and first.corrections == () and first.usage.cost_usd == 0.0


SCRIPT = """
import sys, hashlib, cv2, numpy as np
cv2.setNumThreads(int(sys.argv[1]))
from generators.classical import ClassicalGenerator
from pairforge.image import decode_png
lq = decode_png(open(sys.argv[2], "rb").read())
digest = hashlib.sha256()
for category in (None, "haze", "low_light", "noise", "compression", "blur", "moire"):
    digest.update(ClassicalGenerator(category).generate(lq, "", 0).data)
print(digest.hexdigest())
"""


def test_same_bytes_whatever_the_process_and_its_threads(photos: dict[str, Pixels], tmp_path: object) -> None:
    path = f"{tmp_path}/lq.png"
    lq = coded(noisy(photos["chelsea"], 12), 40)
    assert cv2.imwrite(path, cv2.cvtColor(lq, cv2.COLOR_RGB2BGR))
    digests = {
        subprocess.run([sys.executable, "-c", SCRIPT, threads, path], check=True, capture_output=True).stdout
        for threads in ("1", "4")
    }
    assert len(digests) == 1


def test_symptoms(photos: dict[str, Pixels]) -> None:
    for pixels in photos.values():
        clean = measure_symptoms(pixels)
        assert measure_symptoms(noisy(pixels, 15)).noise_codes > clean.noise_codes + 5
        assert measure_symptoms(blurred(pixels, 3)).edge_sigma_px > clean.edge_sigma_px + 1.5
        assert measure_symptoms(hazy(pixels, 0.3, 0.8)).veil > clean.veil + 0.3
        assert measure_symptoms(coded(pixels, 10)).blockiness > clean.blockiness + 0.5
        for down, right in ((0, 0), (3, 6), (7, 1)):
            moved = np.ascontiguousarray(coded(pixels, 10)[down:, right:])
            assert grid_phase(moved) == (-down % 8, -right % 8)


def test_guided_filter_keeps_a_plane_that_follows_its_guide() -> None:
    guide = rng_for(1, "guide").random((40, 50), dtype=np.float32)
    assert np.allclose(guided_filter(0.5 * guide + 0.1, guide, 4, 1e-6), 0.5 * guide + 0.1, atol=2e-3)
