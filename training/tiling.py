"""Restoring pictures of any size in overlapping tiles, blended so that no seam shows."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pairforge.image import Pixels, Plane

Restore = Callable[[torch.Tensor], torch.Tensor]
"""From (n, 3, H, W) in 0..1 to the same shape."""


def restore_tiled(pixels: Pixels, restore: Restore, tile_px: int, overlap_px: int, device: str = "cpu") -> Pixels:
    """A picture (H, W, 3) restored tile by tile. One that fits a tile goes through whole.

    Neighbouring tiles share `overlap_px`; there each counts the less the nearer its edge is, and weights sum to one.
    What a model sees of a tile ends at its edge, so the overlap should be wider than what one pixel depends on.
    Raises ValueError for an overlap that is no less than half a tile.
    """
    if not 0 <= overlap_px < tile_px / 2:
        raise ValueError(f"overlap_px {overlap_px} of tiles of {tile_px}; allowed: 0 to less than half a tile")
    height, width = pixels.shape[:2]
    total = np.zeros((height, width, 3), np.float32)
    weights = np.zeros((height, width, 1), np.float32)
    for top, bottom in _spans(height, tile_px, overlap_px):
        for left, right in _spans(width, tile_px, overlap_px):
            tile = torch.from_numpy(np.ascontiguousarray(pixels[top:bottom, left:right])).to(device)
            with torch.inference_mode():
                made = restore(tile.permute(2, 0, 1)[None].float() / 255)[0]
            rows = _ramp(bottom - top, overlap_px, top > 0, bottom < height)
            columns = _ramp(right - left, overlap_px, left > 0, right < width)
            weight: NDArray[np.float32] = (rows[:, None] * columns[None, :])[..., None]
            total[top:bottom, left:right] += weight * made.permute(1, 2, 0).float().cpu().numpy()
            weights[top:bottom, left:right] += weight
    restored: Pixels = np.rint(np.clip(total / weights, 0, 1) * 255).astype(np.uint8)
    return restored


def _spans(extent: int, tile_px: int, overlap_px: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `tile_px` that cover an extent and overlap by at least `overlap_px`; all of equal length."""
    if extent <= tile_px:
        yield 0, extent
        return
    count = -(-(extent - overlap_px) // (tile_px - overlap_px))
    for number in range(count):
        start = round(number * (extent - tile_px) / (count - 1))
        yield start, start + tile_px


def _ramp(length: int, overlap_px: int, fades_in: bool, fades_out: bool) -> Plane:
    """Weights along one side: rising over the overlap where a neighbour follows, never zero."""
    weights = np.ones(length, np.float32)
    ramp = (np.arange(overlap_px, dtype=np.float32) + 1) / np.float32(overlap_px + 1)
    if fades_in and overlap_px:
        weights[:overlap_px] = ramp
    if fades_out and overlap_px:
        weights[length - overlap_px :] *= ramp[::-1]
    return weights
