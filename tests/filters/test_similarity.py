"""Near-duplicates: what the hash survives, neighbours against brute force, who survives, what leaked."""

import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage import data

from filters.similarity import (
    Hashes,
    hamming,
    leaks,
    near_embeddings,
    near_pairs,
    perceptual_hash,
    survivors,
    survivors_by_hash,
)
from pairforge.image import Pixels
from pairforge.rng import rng_for

PHOTOS: dict[str, Pixels] = {
    "astronaut": data.astronaut(),
    "coffee": data.coffee(),
    "chelsea": data.chelsea(),
    "rocket": data.rocket(),
    "motorcycle": data.stereo_motorcycle()[0],
    "retina": data.retina(),
}
NEAR_BITS = 8


def distance(first: int, second: int) -> int:
    return (first ^ second).bit_count()


def copies(photo: Pixels) -> dict[str, Pixels]:
    height, width = photo.shape[:2]
    noise = rng_for(1, "noise").standard_normal(photo.shape) * 10
    trim_y, trim_x = round(height * 0.015), round(width * 0.015)
    return {
        "half": cv2.resize(photo, (width // 2, height // 2), interpolation=cv2.INTER_AREA),
        "small": cv2.resize(photo, (64, 64), interpolation=cv2.INTER_AREA),
        "large": cv2.resize(photo, (width * 3 // 2, height * 3 // 2), interpolation=cv2.INTER_CUBIC),
        "squeezed": cv2.resize(photo, (int(width * 0.77), int(height * 0.9)), interpolation=cv2.INTER_LINEAR),
        "jpeg_10": cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_COLOR),
        "jpeg_60": cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR),
        "cropped": np.ascontiguousarray(photo[trim_y : height - trim_y, trim_x : width - trim_x]),
        "brighter": np.clip(photo * 1.1 + 5, 0, 255).astype(np.uint8),
        "darker": (photo * 0.6).astype(np.uint8),
        "blurred": cv2.GaussianBlur(photo, (0, 0), 2),
        "noisy": np.clip(photo + noise, 0, 255).astype(np.uint8),
    }


@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)
def test_copies_of_a_photo_are_near(photo: Pixels) -> None:
    own = perceptual_hash(photo)
    apart = {name: distance(own, perceptual_hash(copy)) for name, copy in copies(photo).items()}
    assert max(apart.values()) <= NEAR_BITS, apart


def test_other_photos_are_far() -> None:
    places = [(y, x) for y in (0, 90) for x in (0, 150)]
    parts = [photo[y : y + 200, x : x + 220] for photo in PHOTOS.values() for y, x in places]
    hashes = [perceptual_hash(np.ascontiguousarray(picture)) for picture in [*PHOTOS.values(), *parts]]
    apart = [distance(one, other) for index, one in enumerate(hashes) for other in hashes[:index]]
    assert min(apart) > NEAR_BITS and np.mean(apart) > 25


def test_hash_is_pinned() -> None:
    """Stored hashes are compared with new ones: who changes these changes HASH_REVISION."""
    ramp = np.arange(96 * 64 * 3, dtype=np.int64).reshape(96, 64, 3)
    pinned = ((ramp * 2654435761 >> 7) % 97 + ramp // 96).clip(0, 255).astype(np.uint8)
    assert f"{perceptual_hash(pinned):016x}" == "0f09e07f487769ca"


def test_hash_has_64_telling_bits_but_for_a_flat_picture() -> None:
    assert all(perceptual_hash(photo).bit_count() == 32 for photo in PHOTOS.values())
    assert perceptual_hash(np.full((40, 50, 3), 77, np.uint8)) == 0


def test_hash_is_the_same_in_another_process() -> None:
    script = "import skimage.data as d; from filters.similarity import perceptual_hash as h; print(h(d.coffee()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == perceptual_hash(PHOTOS["coffee"])


def clustered(count: int, seed: int = 0) -> Hashes:
    """Distinct hashes, many of them near others: random ones with up to 16 bits turned."""
    rng = rng_for(seed, "hashes", count)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for index in range(count // 2):
        bits = rng.permutation(64)[: rng.integers(1, 17)]
        hashes[count // 2 + index] = hashes[index] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    return rng.permutation(np.unique(hashes))


def brute_pairs(hashes: Hashes, distance_bits: int) -> NDArray[np.int64]:
    first, second = np.triu_indices(len(hashes), 1)
    kept = hamming(hashes[first], hashes[second]) <= distance_bits
    return np.stack([first[kept], second[kept]], axis=1)


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 7, 8, 10, 11, 12, 15])
def test_pairs_are_those_of_brute_force(bits: int) -> None:
    hashes = clustered(1200)
    np.testing.assert_array_equal(near_pairs(hashes, bits), brute_pairs(hashes, bits))


def test_a_hundred_thousand_take_seconds() -> None:
    hashes = clustered(100_000, seed=1)
    start = time.thread_time()
    pairs = near_pairs(hashes, 8)
    assert time.thread_time() - start < 15
    assert (hamming(hashes[pairs[:, 0]], hashes[pairs[:, 1]]) <= 8).all()
    assert len(pairs) > 100_000 / 2 * 7 / 16


def test_equal_hashes_cost_nothing() -> None:
    hashes = np.zeros(300_000, np.uint64)
    hashes[::1000] = np.uint64(2**40 - 1)
    start = time.thread_time()
    result = survivors_by_hash(hashes, 8)
    assert time.thread_time() - start < 2
    assert set(result.tolist()) == {0, 1}


def plain_survivors(hashes: Hashes, bits: int) -> list[int]:
    """The rule in its plainest form."""
    kept: list[int] = []
    result = []
    for index, own in enumerate(hashes.tolist()):
        stands = [other for other in kept if distance(own, int(hashes[other])) <= bits]
        result.append(stands[0] if stands else index)
        if not stands:
            kept.append(index)
    return result


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 2**12 - 1), max_size=40), bits=st.integers(0, 4))
def test_survivors_are_those_of_the_plain_rule(values: list[int], bits: int) -> None:
    hashes = np.array(values, np.uint64)
    assert survivors_by_hash(hashes, bits).tolist() == plain_survivors(hashes, bits)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.integers(0, 2**10 - 1), max_size=30),
    more=st.lists(st.integers(0, 2**10 - 1), max_size=10),
    bits=st.integers(0, 3),
)
def test_later_sources_change_nothing_before(values: list[int], more: list[int], bits: int) -> None:
    short = survivors_by_hash(np.array(values, np.uint64), bits).tolist()
    assert survivors_by_hash(np.array(values + more, np.uint64), bits).tolist()[: len(values)] == short


def test_a_chain_does_not_fall_to_one() -> None:
    """0-1-2-3-4, each near the next alone: every second one survives."""
    pairs = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    assert survivors(5, pairs).tolist() == [0, 0, 2, 2, 4]
    assert survivors(5, pairs[::-1, ::-1]).tolist() == [0, 0, 2, 2, 4]
    assert survivors(2, np.empty((0, 2), np.int64)).tolist() == [0, 1]


def test_the_lowest_survivor_stands_for_a_duplicate_of_two() -> None:
    assert survivors(3, np.array([[1, 2], [0, 2]])).tolist() == [0, 1, 0]


def test_leaks_name_the_nearest() -> None:
    own = np.array([0b1111, 2**50 - 2**30, 2**63, 0b1111], np.uint64)
    held_out = np.array([0b111111, 0b11111, 0b1111111, 2**63, 2**63], np.uint64)
    assert leaks(own, held_out, 3) == [(0, 1, 1), (2, 3, 0), (3, 1, 1)]
    assert leaks(own, held_out[:0], 3) == []
    assert leaks(own[:0], held_out, 3) == []


def test_a_benchmark_photo_is_found_in_any_of_its_copies() -> None:
    held_out = np.array([perceptual_hash(photo) for photo in PHOTOS.values()], np.uint64)
    own = np.array([perceptual_hash(copy) for photo in PHOTOS.values() for copy in copies(photo).values()], np.uint64)
    per_photo = len(own) // len(held_out)
    found = leaks(own, held_out, NEAR_BITS)
    assert [leak.position for leak in found] == list(range(len(own)))
    assert all(leak.held_out == leak.position // per_photo for leak in found)


def test_embeddings_are_compared_by_direction() -> None:
    rng = rng_for(0, "embeddings")
    rows = rng.standard_normal((5000, 64), dtype=np.float32)
    rows[4000] = 7 * rows[10] + 0.1 * rows[11]
    pairs = near_embeddings(rows, rows, 0.95)
    apart = pairs[pairs[:, 0] < pairs[:, 1]]
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    expected = np.argwhere(np.triu(unit @ unit.T, 1) >= 0.95)
    np.testing.assert_array_equal(apart, expected)
    assert [10, 4000] in apart.tolist()
    assert len(pairs) == 5000 + 2 * len(apart)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="repeat"):
        near_pairs(np.array([1, 1], np.uint64), 3)
    for bits in (-1, 16):
        with pytest.raises(ValueError, match=r"0\.\.15"):
            near_pairs(np.array([1, 2], np.uint64), bits)
    with pytest.raises(ValueError, match="no direction"):
        near_embeddings(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32), 0.9)
    with pytest.raises(ValueError, match="outside"):
        near_embeddings(np.ones((1, 3), np.float32), np.ones((1, 3), np.float32), 1.5)
