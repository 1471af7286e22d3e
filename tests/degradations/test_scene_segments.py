"""Superpixel regions and faces."""

import cv2
import numpy as np
import pytest
from skimage import data
from sklearn.datasets import load_sample_image

from degradations.scene.faces import Box, find_faces, is_portrait
from degradations.scene.segments import SlicSegments, merge_regions
from degradations.scene.stored import pack_segments
from degradations.scene.upsampling import upsample_segments
from pairforge.image import Pixels


def photo(name: str) -> Pixels:
    pixels: Pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
    return np.ascontiguousarray(pixels)


def three_colours() -> Pixels:
    """Three areas of noise around different colours, and a small square of a fourth."""
    image = np.zeros((240, 320, 3), np.float64)
    image[:, :120] = (200, 60, 50)
    image[:, 120:] = (60, 110, 200)
    image[150:, 120:] = (70, 160, 70)
    image[60:100, 200:240] = (240, 230, 90)
    image += np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def test_regions_of_three_colours_are_these() -> None:
    image = three_colours()
    held = SlicSegments()(image)
    segments = upsample_segments(held, image)
    true = np.zeros((240, 320), int)
    true[:, 120:] = 1
    true[150:, 120:] = 2
    true[60:100, 200:240] = 3
    purity = sum(np.bincount(true[segments.labels == label]).max() for label in range(segments.count)) / true.size
    assert purity > 0.98
    assert 4 <= segments.count <= 14


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg", "coffee", "rocket", "chelsea", "astronaut"])
def test_regions_of_photos(name: str) -> None:
    base = photo(name)
    held = SlicSegments()(base)
    assert 5 <= held.count <= 30 and max(held.labels.shape) <= 512
    segments = upsample_segments(held, base)
    assert segments.labels.shape == base.shape[:2] and segments.count == held.count
    lab = cv2.cvtColor(base.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float64)
    flat = segments.labels.ravel()
    size = np.bincount(flat)
    mean = np.stack([np.bincount(flat, weights=lab[:, i]) / size for i in range(3)], axis=1)
    explained = 1 - ((lab - mean[flat]) ** 2).sum() / ((lab - lab.mean(axis=0)) ** 2).sum()
    assert explained > 0.5, "regions are of one colour rather than the frame's"


def test_regions_are_a_function_of_the_pixels() -> None:
    base = photo("coffee")
    expected = pack_segments(SlicSegments()(base))
    room = np.zeros(base.size + 3, np.uint8)
    shifted = room[3:].reshape(base.shape)
    shifted[...] = base
    before = base.copy()
    assert pack_segments(SlicSegments()(shifted)) == expected == pack_segments(SlicSegments()(base))
    assert (base == before).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (16, 16), (33, 200), (700, 31)])
def test_regions_of_any_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    for base in (rng.integers(0, 256, (*size, 3)).astype(np.uint8), np.full((*size, 3), 77, np.uint8)):
        segments = upsample_segments(SlicSegments()(base), base)
        assert segments.labels.shape == size and 1 <= segments.count <= 30
        assert set(np.unique(segments.labels)) == set(range(segments.count))


def test_the_most_alike_neighbours_merge_first_and_apart_ones_never() -> None:
    """A row of ten regions; the first and the last have the same colour but do not touch."""
    labels = np.repeat(np.arange(10, dtype=np.int32), 4)[None].repeat(3, axis=0)
    lightness = np.array([10, 14, 30, 33, 50, 51, 70, 80, 95, 10], np.float32)
    lab = np.zeros((3, 40, 3), np.float32)
    lab[..., 0] = lightness[labels]
    merged, bridged = merge_regions(labels, 10, lab)
    groups = [merged[0, 4 * i] for i in range(10)]
    assert groups[0] == groups[1] and groups[2] == groups[3] and groups[4] == groups[5]
    assert len(set(groups)) == 7 and groups[9] not in groups[:9]
    assert bridged == pytest.approx(4, abs=0.01)


def test_a_face_is_found_where_it_is() -> None:
    base = photo("astronaut")
    faces = find_faces(base)
    assert len(faces) == 1
    centre = faces[0].x + faces[0].width / 2, faces[0].y + faces[0].height / 2
    assert abs(centre[0] - 222) < 25 and abs(centre[1] - 115) < 25
    assert is_portrait(faces, base.shape)
    large = find_faces(cv2.resize(base, (1100, 1100), interpolation=cv2.INTER_CUBIC))
    assert len(large) == 1 and abs(large[0].x * 512 / 1100 - faces[0].x) < 20


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg", "coffee", "rocket", "chelsea", "retina"])
def test_nothing_else_is_taken_for_a_face(name: str) -> None:
    assert find_faces(photo(name)) == []


@pytest.mark.parametrize("size", [(1, 1), (10, 400), (23, 23), (60, 60)])
def test_small_bases_have_no_face(size: tuple[int, int]) -> None:
    assert find_faces(np.full((*size, 3), 128, np.uint8)) == []


def test_portraits_are_large_faces_in_the_middle() -> None:
    assert not is_portrait([], (300, 400))
    assert is_portrait([Box(170, 60, 60, 60)], (300, 400))
    assert not is_portrait([Box(170, 60, 30, 30)], (300, 400)), "too small"
    assert not is_portrait([Box(0, 60, 60, 60)], (300, 400)), "at the side"
    assert not is_portrait([Box(170, 230, 60, 60)], (300, 400)), "at the bottom"
