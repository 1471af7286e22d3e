"""Stored scene maps: bytes and back, damage, enlarging along the edges of the photo."""

import time
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degradations.scene.stored import (
    DepthMap,
    SegmentMap,
    compact_labels,
    depth_map,
    pack_depth,
    pack_segments,
    unpack_depth,
    unpack_segments,
)
from degradations.scene.upsampling import upsample_depth, upsample_segments
from pairforge.image import Pixels


def some_depth(height: int = 7, width: int = 9, seed: int = 0, **changes: Any) -> DepthMap:
    rng = np.random.default_rng(seed)
    known: dict[str, Any] = {
        "focal_frac": 0.8,
        "provider": "test",
        "revision": "3-a",
        "confidence": 0.25,
        "metric": True,
        "facts": {"layout": "x", "point": [0.5, None]},
    }
    inverse = rng.uniform(0.003, 2, (height, width)).astype(np.float32)
    return depth_map(inverse, rng.random((height, width), np.float32), **known | changes)


def some_segments(height: int = 7, width: int = 9, count: int = 5, seed: int = 0) -> SegmentMap:
    labels = np.random.default_rng(seed).integers(0, count, (height, width))
    compact, count = compact_labels(labels)
    return SegmentMap(compact.astype(np.uint16), count, "test", "1", 0.5, {"a": [1, "b"]})


def plain_base(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 90, np.uint8)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 9))
def test_round_trip_is_exact(height: int, width: int, seed: int) -> None:
    depth = some_depth(height, width, seed)
    back = unpack_depth(pack_depth(depth))
    assert (back.inverse_depth_per_m == depth.inverse_depth_per_m).all() and (back.sky == depth.sky).all()
    assert replace(back, inverse_depth_per_m=depth.inverse_depth_per_m, sky=depth.sky) == depth
    segments = some_segments(height, width, seed=seed)
    again = unpack_segments(pack_segments(segments))
    assert (again.labels == segments.labels).all()
    assert replace(again, labels=segments.labels) == segments


def test_equal_maps_give_equal_bytes_and_facts_keep_no_order() -> None:
    one = some_depth(facts={"a": 1, "b": 2})
    other = some_depth(facts={"b": 2, "a": 1})
    assert pack_depth(one) == pack_depth(other) == pack_depth(unpack_depth(pack_depth(one)))
    assert pack_depth(one) != pack_depth(some_depth(facts={"a": 1, "b": 3}))


def test_smooth_maps_are_small() -> None:
    ramp = np.linspace(0.1, 0.5, 320, dtype=np.float32)[:, None] * np.ones((1, 320), np.float32)
    held = depth_map(ramp, 0 * ramp, focal_frac=1.0, provider="p", revision="1", confidence=0.1, metric=False, facts={})
    assert len(pack_depth(held)) < 20_000


@pytest.mark.parametrize(
    "pack, unpack, held", [(pack_depth, unpack_depth, some_depth()), (pack_segments, unpack_segments, some_segments())]
)
def test_every_damaged_byte_is_noticed(pack: Any, unpack: Any, held: Any) -> None:
    data = pack(held)
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(ValueError, match="map"):
            unpack(bytes(damaged))
    for end in (0, 3, 8, 39, 44, len(data) - 1):
        with pytest.raises(ValueError, match="map"):
            unpack(data[:end])
    with pytest.raises(ValueError, match="map"):
        unpack(data + b"x")


def test_one_kind_is_not_the_other() -> None:
    with pytest.raises(ValueError, match="not a stored depth map"):
        unpack_depth(pack_segments(some_segments()))
    with pytest.raises(ValueError, match="not a stored segment map"):
        unpack_segments(pack_depth(some_depth()))


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"sky": np.full((7, 9), 1.5, np.float16)}, "sky"),
        ({"sky": np.full((7, 9), np.nan, np.float16)}, "sky"),
        ({"sky": np.zeros((7, 8), np.float16)}, "alike"),
        ({"sky": np.zeros((7, 9), np.float32)}, "float16"),
        ({"inverse_depth_per_m": np.zeros((7, 9), np.float16)}, "inverse depth"),
        ({"inverse_depth_per_m": np.full((7, 9), np.nan, np.float16)}, "inverse depth"),
        ({"inverse_depth_per_m": np.full((7, 9), np.inf, np.float16)}, "inverse depth"),
        ({"focal_frac": 0.0}, "focal_frac"),
        ({"focal_frac": float("nan")}, "focal_frac"),
        ({"confidence": 1.1}, "confidence"),
    ],
)
def test_bad_depth_maps_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(some_depth(), **changes)


@pytest.mark.parametrize(
    "labels, count",
    [
        (np.array([[0, 2]], np.uint16), 3),
        (np.array([[0, 2]], np.uint16), 2),
        (np.array([[0, 1]], np.uint16), 1),
        (np.array([[0, 1]], np.int32), 2),
        (np.zeros((0, 3), np.uint16), 0),
        (np.zeros((2, 2, 1), np.uint16), 1),
    ],
)
def test_bad_segment_maps_are_refused(labels: Any, count: int) -> None:
    with pytest.raises(ValueError, match="labels"):
        SegmentMap(labels, count, "test", "1", 0.5)


def test_facts_that_are_no_json_are_refused() -> None:
    with pytest.raises(ValueError):
        pack_depth(some_depth(facts={"a": float("nan")}))


def test_map_of_the_size_of_the_base_is_kept() -> None:
    held = some_depth(30, 40)
    depth = upsample_depth(held, plain_base(30, 40))
    assert (depth.sky == held.sky.astype(np.float32)).all()
    np.testing.assert_allclose(1 / depth.z_m, held.inverse_depth_per_m.astype(np.float32), rtol=1e-6)
    assert (depth.focal_px, depth.provider, depth.revision) == (32.0, "test", "3-a")
    assert (depth.confidence, depth.metric) == (0.25, True)


def two_planes(side_px: int) -> tuple[Pixels, DepthMap]:
    """A disc 2 m away before a wall at 20 m; the map is an eighth of the size, the photo has the exact outline."""
    centre, radius = side_px / 2, side_px * 0.3
    y, x = np.mgrid[:side_px, :side_px] + 0.5
    disc = (np.hypot(y - centre, x - centre) < radius).astype(np.float32)
    base = (np.array([60, 90, 160]) + disc[..., None] * np.array([120, 40, -90])).astype(np.uint8)
    small = cv2.resize(disc, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)
    inverse = (np.float32(1 / 20) + small * np.float32(1 / 2 - 1 / 20)).astype(np.float32)
    held = depth_map(
        inverse, 1 - small, focal_frac=1.0, provider="p", revision="1", confidence=0.5, metric=True, facts={}
    )
    return base, held


def test_depth_follows_the_edges_of_the_photo() -> None:
    """Plain enlarging spreads the outline over a pixel of the map, 8 px; filtered it lies where the photo has it."""
    base, held = two_planes(512)
    depth = upsample_depth(held, base)
    true = np.where(base[..., 0] > 100, 1 / 2, 1 / 20)
    plain = cv2.resize(held.inverse_depth_per_m.astype(np.float32), (512, 512), interpolation=cv2.INTER_LINEAR)
    outline = cv2.dilate((np.abs(plain - true) > 0.02).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    filtered_error = np.abs(1 / depth.z_m - true)[outline].mean()
    assert filtered_error < 0.25 * np.abs(plain - true)[outline].mean()
    true_sky = np.where(base[..., 0] > 100, 0, 1)
    assert np.abs(depth.sky - true_sky).mean() < 0.01
    assert depth.z_m.min() >= 1.99 and depth.z_m.max() <= 20.1


def test_texture_of_the_photo_leaves_no_trace_where_depth_is_smooth() -> None:
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, (400, 300, 3)).astype(np.uint8)
    ramp = np.linspace(0.05, 0.5, 100, dtype=np.float32)[:, None] * np.ones((1, 75), np.float32)
    held = depth_map(ramp, 0 * ramp, focal_frac=1.0, provider="p", revision="1", confidence=0.5, metric=False, facts={})
    lower_half = upsample_depth(held, base).z_m[250:]
    assert (lower_half.max(axis=1) - lower_half.min(axis=1)).max() < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 17), (5, 400)])
def test_depth_of_any_size(size: tuple[int, int]) -> None:
    base = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    for scale in (0.3, 0.77, 1.0):
        held = some_depth(max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        depth = upsample_depth(held, base)
        assert depth.z_m.shape == depth.sky.shape == size
        low, high = (float(v) for v in (held.inverse_depth_per_m.min(), held.inverse_depth_per_m.max()))
        assert 1 / depth.z_m.max() >= low * 0.999 and 1 / depth.z_m.min() <= high * 1.001
        assert depth.sky.min() >= 0 and depth.sky.max() <= 1


def test_a_larger_map_is_averaged() -> None:
    held = some_depth(200, 300)
    depth = upsample_depth(held, plain_base(20, 30))
    mean = held.inverse_depth_per_m.astype(np.float32).reshape(20, 10, 30, 10).mean(axis=(1, 3))
    np.testing.assert_allclose(1 / depth.z_m, mean, rtol=1e-4)


@pytest.mark.parametrize("shape", [(40, 30, 3), (30, 60, 3)])
def test_another_base_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not belong"):
        upsample_depth(some_depth(30, 40), np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="does not belong"):
        upsample_segments(some_segments(30, 40), np.zeros(shape, np.uint8))


def test_a_base_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        upsample_depth(some_depth(30, 40), np.zeros((30, 40, 3), np.float32))


@pytest.mark.parametrize("size", [(7, 9), (14, 18), (70, 90), (23, 31), (3, 4), (1, 1)])
def test_every_label_is_somewhere(size: tuple[int, int]) -> None:
    held = some_segments(7, 9, 12)
    segments = upsample_segments(held, plain_base(*size))
    assert segments.labels.dtype == np.int32 and segments.labels.shape == size
    assert set(np.unique(segments.labels)) == set(range(segments.count))
    if size == (7, 9):
        assert (segments.labels == held.labels).all()
    if size[0] >= 14:
        assert segments.count == held.count


def test_outlines_of_labels_are_smooth() -> None:
    """A disc of 16 px enlarged eight times: of a disc of 128 px, fewer pixels are wrong than with blocks."""
    y, x = np.mgrid[:32, :32] + 0.5
    small = (np.hypot(y - 16, x - 16) < 8).astype(np.uint16)
    y, x = np.mgrid[:256, :256] + 0.5
    true = np.hypot(y - 128, x - 128) < 64
    segments = upsample_segments(SegmentMap(small, 2, "p", "1", 0.5), plain_base(256, 256))
    blocks = cv2.resize(small, (256, 256), interpolation=cv2.INTER_NEAREST_EXACT) == 1
    assert ((segments.labels == 1) != true).sum() < 0.8 * (blocks != true).sum()


def test_memory_alignment_does_not_matter() -> None:
    base, held = two_planes(200)
    expected = upsample_depth(held, base).z_m.tobytes()
    for offset in (1, 3, 5):
        room = np.zeros(base.size + 8, np.uint8)
        shifted = room[offset : offset + base.size].reshape(base.shape)
        shifted[...] = base
        assert upsample_depth(held, shifted).z_m.tobytes() == expected


def test_enlarging_is_cheap() -> None:
    """Loose: at most 12 times a Gaussian blur of the same size, which here is measured at 2 to 3."""
    base, held = two_planes(1024)
    blur = base.astype(np.float32)
    seconds = []
    for call in (lambda: cv2.GaussianBlur(blur, (0, 0), 5), lambda: upsample_depth(held, base)):
        call()
        start = time.thread_time()
        for _ in range(3):
            call()
        seconds.append(time.thread_time() - start)
    assert seconds[1] < 12 * seconds[0]
