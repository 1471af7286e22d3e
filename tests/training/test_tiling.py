"""Tiles: every pixel covered, no seam, the whole picture where it fits."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pairforge.image import Pixels
from training.tiling import _spans, restore_tiled


def photo(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), tile=st.integers(8, 40), overlap=st.integers(0, 19))
def test_a_model_of_single_pixels_gives_what_it_gives_the_whole(
    height: int, width: int, tile: int, overlap: int
) -> None:
    overlap = min(overlap, (tile - 1) // 2)
    pixels = photo(height, width)
    tiled = restore_tiled(pixels, lambda x: 1 - x, tile, overlap)
    assert np.array_equal(tiled, 255 - pixels)


@given(extent=st.integers(1, 500), tile=st.integers(8, 64), overlap=st.integers(0, 31))
def test_spans_cover_and_overlap(extent: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, (tile - 1) // 2)
    spans = list(_spans(extent, tile, overlap))
    assert spans[0][0] == 0 and spans[-1][1] == extent
    assert len({end - start for start, end in spans}) == 1
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end - start >= overlap


def test_no_seam_of_a_model_that_looks_around() -> None:
    """A blur of 9 px, tiles with an overlap of 16: within one code of the blur of the whole."""
    kernel = torch.full((3, 1, 9, 9), 1 / 81)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (4,) * 4, "reflect"), kernel, groups=3)

    pixels = np.tile(np.linspace(0, 255, 150).astype(np.uint8)[None, :, None], (120, 1, 3))
    pixels[40:80, 60:90] = 255
    whole = restore_tiled(pixels, blur, 400, 0)
    tiled = restore_tiled(pixels, blur, 64, 16)
    assert np.abs(whole.astype(int) - tiled).max() <= 6
    assert np.abs(whole.astype(int) - tiled).mean() < 0.1


def test_an_overlap_of_half_a_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap_px 16 of tiles of 32"):
        restore_tiled(photo(8, 8), lambda x: x, 32, 16)
