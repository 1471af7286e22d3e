"""Near-duplicates: a perceptual hash, neighbours among many hashes or embeddings, who survives, what leaked.

Equal inputs give equal answers. Of near pictures the one with the lowest position survives, and later positions never
change what earlier ones became: a growing catalog keeps its old decisions.
"""

from collections.abc import Iterator
from functools import cache
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Pixels

HASH_REVISION = "dct64-1"
BITS = 64
MOST_DISTANCE = 15
"""Above this, one of four bands of 16 bits need no longer agree within 3 bits."""

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]

_SIDE_PX = 32
_FLAT_CODES = 0.5
_BANDS, _BAND_BITS = 4, 16
_PAIRS_AT_A_TIME = 1 << 22
_ROWS_AT_A_TIME = 2048
_COSINE_SLACK = 1e-4


def perceptual_hash(pixels: Pixels) -> int:
    """64 bits that survive resizing, coding and brightness; small crops and blur change few of them.

    Luma, made 32 x 32 by area means, then its DCT-II; the bits say which of the 64 lowest frequencies without the
    constant one, in zigzag order, lie above their median (after Zauner, 2010, there 8 x 8 with the median of all).
    The first frequency is the highest bit. A picture whose frequencies are all within half a code of each other has
    nothing to tell it by and gets 0. Mirrored and turned copies are other pictures to it.
    """
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64)
    small = cv2.resize(luma, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
    rows, columns = _zigzag()
    waves: NDArray[np.float64] = cv2.dct(small)[rows, columns]
    if float(np.ptp(waves)) < _FLAT_CODES * _SIDE_PX:
        return 0
    return int.from_bytes(np.packbits(waves > np.median(waves)).tobytes(), "big")


@cache
def _zigzag() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    places = sorted(
        ((row, column) for row in range(12) for column in range(12) if row + column),
        key=lambda place: (sum(place), place[0] if sum(place) % 2 else place[1]),
    )
    rows, columns = np.array(places[:BITS]).T
    return rows, columns


def hamming(first: Hashes, second: Hashes) -> NDArray[np.int64]:
    """Number of bits in which hashes differ."""
    counts: NDArray[np.int64] = np.bitwise_count(first ^ second).astype(np.int64)
    return counts


def near_pairs(hashes: Hashes, distance: int) -> Pairs:
    """All pairs (i < j) of distinct hashes within `distance` bits, sorted; shape (pairs, 2).

    Raises ValueError where hashes repeat (`survivors_by_hash` takes care of that) or for a distance outside 0..15.
    """
    if np.unique(hashes).size != hashes.size:
        raise ValueError("hashes repeat: give each once")
    found = [pairs[pairs[:, 0] < pairs[:, 1]] for pairs in _close(hashes, hashes, distance)]
    return np.unique(np.concatenate([*found, np.empty((0, 2), np.int64)]), axis=0)


def _close(first: Hashes, second: Hashes, distance: int) -> Iterator[Pairs]:
    """Index pairs of two lists within `distance`, some more than once, in pieces of bounded size.

    Of four bands of 16 bits, one differs in at most distance // 4 bits where the whole differs in `distance`, so only
    hashes that share a bucket, or one that many bits off, are compared (Norouzi, Punjani and Fleet, CVPR 2012).
    """
    if not 0 <= distance <= MOST_DISTANCE:
        raise ValueError(f"distance {distance} is outside 0..{MOST_DISTANCE} bits")
    for band in range(_BANDS):
        keys = [_band(hashes, band) for hashes in (first, second)]
        orders = [np.argsort(key, kind="stable") for key in keys]
        counts = [np.bincount(key, minlength=1 << _BAND_BITS) for key in keys]
        starts = [np.cumsum(count) - count for count in counts]
        used = np.flatnonzero(counts[0])
        for mask in _masks(distance // _BANDS):
            other = used ^ mask
            met = np.flatnonzero(counts[1][other])
            here, there = used[met], other[met]
            for low, high in _pieces(counts[0][here] * counts[1][there]):
                one = (starts[0][here[low:high]], counts[0][here[low:high]])
                two = (starts[1][there[low:high]], counts[1][there[low:high]])
                left, right = _products(*one, *two)
                pairs = np.stack([orders[0][left], orders[1][right]], axis=1)
                yield pairs[hamming(first[pairs[:, 0]], second[pairs[:, 1]]) <= distance]


def _band(hashes: Hashes, band: int) -> NDArray[np.int64]:
    key = (hashes >> np.uint64(band * _BAND_BITS)) & np.uint64((1 << _BAND_BITS) - 1)
    return key.astype(np.int64)


@cache
def _masks(bits: int) -> tuple[int, ...]:
    return tuple(
        sum(1 << place for place in places)
        for count in range(bits + 1)
        for places in combinations(range(_BAND_BITS), count)
    )


def _pieces(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of bucket pairs that together make up to about four million pairs."""
    ends = np.cumsum(sizes)
    low = 0
    while low < len(sizes):
        before = int(ends[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(ends, before + _PAIRS_AT_A_TIME, "right")))
        yield low, high
        low = high


def _products(
    starts: NDArray[np.int64], counts: NDArray[np.int64], others: NDArray[np.int64], other_counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every place of one bucket with every place of its partner, for many bucket pairs at once."""
    sizes = counts * other_counts
    owner = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return starts[owner] + within // other_counts[owner], others[owner] + within % other_counts[owner]


def survivors(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """For each of `count` positions the position it is a duplicate of; its own where it survives.

    From the lowest on: a position is a duplicate of the lowest survivor that it is near. What is near a duplicate
    alone survives, so every duplicate is near the survivor that stands for it, and chains of small steps do not merge
    into one.
    """
    order = pairs[np.lexsort((pairs.min(1), pairs.max(1)))] if len(pairs) else pairs
    survivor = np.arange(count)
    for low, high in zip(order.min(1).tolist(), order.max(1).tolist(), strict=True) if len(order) else ():
        if survivor[high] == high and survivor[low] == low:
            survivor[high] = low
    return survivor


def survivors_by_hash(hashes: Hashes, distance: int) -> NDArray[np.int64]:
    """`survivors` of hashes in catalog order, which may repeat; equal ones are near at any distance."""
    distinct, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    by_rank = survivors(len(distinct), near_pairs(distinct[order], distance))
    result: NDArray[np.int64] = firsts[order][by_rank[rank[inverse.ravel()]]]
    return result


class Leak(NamedTuple):
    """Position in the set, position in the held-out list, and their distance in bits."""

    position: int
    held_out: int
    distance: int


def leaks(hashes: Hashes, held_out: Hashes, distance: int) -> list[Leak]:
    """Which of `hashes` are within `distance` of a held-out one: each with its nearest, of those the first."""
    distinct, inverse = np.unique(hashes, return_inverse=True)
    kept, firsts = np.unique(held_out, return_index=True)
    nearest: dict[int, tuple[int, int]] = {}
    for pairs in _close(distinct, kept, distance):
        apart = hamming(distinct[pairs[:, 0]], kept[pairs[:, 1]])
        for own, other, bits in zip(pairs[:, 0].tolist(), firsts[pairs[:, 1]].tolist(), apart.tolist(), strict=True):
            nearest[own] = min(nearest.get(own, (BITS + 1, 0)), (bits, other))
    return [
        Leak(position, nearest[own][1], nearest[own][0])
        for position, own in enumerate(inverse.ravel().tolist())
        if own in nearest
    ]


def near_embeddings(first: NDArray[np.float32], second: NDArray[np.float32], least_cosine: float) -> Pairs:
    """Index pairs of rows of two arrays (n, d) and (m, d) whose cosine is at least that, sorted; shape (pairs, 2).

    Products of blocks find candidates, sums in float64 decide: threads of a BLAS change no answer. Costs n * m * d.
    Raises ValueError for rows that are no direction: all zero, or not finite.
    """
    if not 0 < least_cosine <= 1:
        raise ValueError(f"cosine {least_cosine} is outside 0..1")
    one, two = _directions(first), _directions(second)
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(one), _ROWS_AT_A_TIME):
        for other in range(0, len(two), _ROWS_AT_A_TIME):
            block = one[start : start + _ROWS_AT_A_TIME] @ two[other : other + _ROWS_AT_A_TIME].T
            left, right = np.nonzero(block >= least_cosine - _COSINE_SLACK)
            left, right = left + start, right + other
            exact = (one[left].astype(np.float64) * two[right]).sum(1)
            kept = exact >= least_cosine - 1e-6
            found.append(np.stack([left[kept], right[kept]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _directions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.sqrt((rows.astype(np.float64) ** 2).sum(1, keepdims=True))
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        place = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
        raise ValueError(f"embedding {place} has length {float(lengths[place, 0])}: it is no direction")
    directions: NDArray[np.float32] = (rows / lengths).astype(np.float32)
    return directions
