"""Geometric depth: layout, ranges, edges, determinism. Accuracy is not promised and not tested."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from degradations.scene.depth import (
    GEOMETRIC_PROVIDER,
    GEOMETRIC_REVISION,
    geometric_depth,
    guided_upsample,
)
from pairforge.image import Pixels

WIDTH, HEIGHT, HORIZON = 320, 240, 110


def photo(name: str) -> Any:
    return getattr(data, name)()


def outdoor(seed: int = 0) -> Pixels:
    """Blue gradient sky, a textured ground, and a dark post that stands before both."""
    rng = np.random.default_rng(seed)
    image = np.empty((HEIGHT, WIDTH, 3), np.float32)
    rise = np.arange(HORIZON, dtype=np.float32).reshape(-1, 1, 1) * (30 / HORIZON)
    image[:HORIZON] = np.array([110, 150, 210], np.float32) + rise
    image[HORIZON:] = np.array([90, 100, 60], np.float32)
    image[HORIZON:] += rng.normal(0, 18, (HEIGHT - HORIZON, WIDTH, 1))
    image[50:180, 150:170] = np.array([60, 40, 30], np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    ranks = [np.argsort(np.argsort(values.ravel())) for values in (a, b)]
    table: NDArray[np.float64] = np.asarray(np.corrcoef(ranks))
    return float(table[0, 1])


def test_sky_is_found_and_far() -> None:
    depth = geometric_depth(outdoor())
    assert depth.sky[:95, :140].min() > 0.95
    assert depth.sky[HORIZON + 12 :].max() < 0.05
    assert depth.sky[60:100, 156:164].max() < 0.2, "the post is no sky"
    far = depth.z_m[:90, :140]
    assert far.min() > 0.9 * depth.z_m.max()
    assert 50 <= depth.z_m.max() <= 300.5


def test_ground_comes_nearer_downwards() -> None:
    depth = geometric_depth(outdoor())
    rows = np.median(depth.z_m[HORIZON + 10 :, 200:], axis=1)
    smooth = rows[: len(rows) // 10 * 10].reshape(-1, 10).mean(axis=1)
    assert (np.diff(smooth) < 0).all()
    assert 1.5 <= depth.z_m.min() <= 6


def test_layout_without_sky_is_milder() -> None:
    rng = np.random.default_rng(1)
    indoor = rng.integers(20, 120, (200, 260, 3)).astype(np.uint8)
    depth = geometric_depth(indoor)
    assert depth.sky.max() == 0
    assert depth.z_m.max() <= 50
    assert depth.confidence < geometric_depth(outdoor()).confidence


def test_focused_subject_is_nearer_than_bokeh() -> None:
    cat = photo("chelsea")
    blurred = cv2.GaussianBlur(cat, (0, 0), 7)
    image = blurred.copy()
    image[60:240, 130:330] = cat[60:240, 130:330]
    z_m = geometric_depth(image).z_m
    assert np.median(z_m[80:220, 150:310]) < 0.8 * np.median(z_m[:120, :90])


def test_agrees_with_measured_disparity_in_order() -> None:
    """A sanity check on one real scene, not an accuracy claim."""
    left, _, disparity = photo("stereo_motorcycle")
    known = np.isfinite(disparity) & (disparity > 0)
    z_m = geometric_depth(left).z_m
    assert rank_correlation(1 / z_m[known][::37], disparity[known][::37]) > 0.4


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (1, 40), (240, 31), (601, 90)])
def test_any_size(size: tuple[int, int]) -> None:
    base = np.random.default_rng(2).integers(0, 256, (*size, 3)).astype(np.uint8)
    depth = geometric_depth(base)
    for plane in (depth.z_m, depth.sky):
        assert plane.shape == size and plane.dtype == np.float32 and np.isfinite(plane).all()
    assert depth.z_m.min() >= 1.4 and depth.z_m.max() <= 300.5
    assert depth.sky.min() >= 0 and depth.sky.max() <= 1
    assert 0 <= depth.confidence <= 0.4


@pytest.mark.parametrize("value", [0, 128, 255])
def test_uniform_frames_give_finite_depth(value: int) -> None:
    depth = geometric_depth(np.full((40, 60, 3), value, np.uint8))
    assert np.isfinite(depth.z_m).all() and depth.z_m.min() > 1


def test_pure_and_honest() -> None:
    base = outdoor()
    before = base.copy()
    first, second = geometric_depth(base), geometric_depth(base)
    assert (base == before).all()
    assert (first.z_m == second.z_m).all() and (first.sky == second.sky).all()
    assert (first.provider, first.revision) == (GEOMETRIC_PROVIDER, GEOMETRIC_REVISION)
    assert first.metric is False and first.focal_px == WIDTH


def test_smooth_where_the_photo_is_smooth() -> None:
    """No blocks from the small working size: neighbours on even ground differ by little."""
    coffee = photo("coffee")
    z_m = geometric_depth(np.ascontiguousarray(np.repeat(np.repeat(coffee, 2, axis=0), 2, axis=1))).z_m
    z_m = z_m[500:, 840:]
    steps = np.abs(np.diff(np.log(z_m), axis=1))
    assert np.quantile(steps, 0.99) < 0.02


def test_guided_upsample_keeps_constants_and_follows_edges() -> None:
    guide = np.zeros((120, 160), np.float32)
    guide[:, 83:] = 0.8
    small = np.ascontiguousarray(guide[::2, ::2])
    flat = guided_upsample(np.full_like(small, 0.37), small, guide, 4, 1e-3)
    assert np.abs(flat - 0.37).max() < 1e-5
    source = (small > 0.4).astype(np.float32)
    step = guided_upsample(source, small, guide, 4, 1e-4)
    assert step[:, 70:82].max() < 0.1 and step[:, 84:96].min() > 0.9
