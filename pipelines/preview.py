"""Contact sheets: LQ beside HQ with the parameters that were drawn."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from pairforge.image import Pixels, decode_png
from pairforge.records import Sample
from pairforge.shards import read_shard
from pairforge.snapshot import Snapshot

_GAP_PX = 6
_CAPTION_PX = 30
_SOURCES_SEEN = 4
"""A category is read until this many times more sources are known than are shown."""
_INK, _PAPER = (225, 225, 225), (24, 24, 26)


def pick_samples(
    snapshot: Snapshot, categories: Sequence[str] | None, per_category: int
) -> Iterator[tuple[Sample, Pixels, Pixels]]:
    """Kept samples for a sheet: in every category other sources, as many different ones as there are."""
    for place, category in enumerate(sorted({shard.category for shard in snapshot.shards(categories)})):
        by_source: dict[str, list[dict[str, bytes]]] = {}
        for shard in snapshot.shards([category]):
            for key, files in read_shard(snapshot.storage, shard.tar_name) if shard.tar_name else ():
                if key not in snapshot.excluded:
                    by_source.setdefault(key.split("-")[1], []).append(files)
                if len(by_source) > _SOURCES_SEEN * per_category:
                    break
            if len(by_source) > _SOURCES_SEEN * per_category:
                break
        sources = sorted(by_source)
        first = place * per_category % max(1, len(sources))
        turned = [by_source[source] for source in sources[first:] + sources[:first]]
        rounds = [files[turn] for turn in range(per_category) for files in turned if turn < len(files)]
        for files in rounds[:per_category]:
            sample = Sample.model_validate_json(files["json"])
            yield sample, decode_png(files["lq.png"]), decode_png(files["hq.png"])


def contact_sheet(samples: Sequence[tuple[Sample, Pixels, Pixels]], columns: int, thumb_px: int) -> Pixels:
    """One picture of all samples, `columns` pairs a row, each pair LQ left and HQ right with a caption.

    Raises ValueError when there is nothing to show.
    """
    if not samples:
        raise ValueError("nothing to show: no kept record matches")
    cell_width, cell_height = 2 * thumb_px + 2 * _GAP_PX, thumb_px + _CAPTION_PX + _GAP_PX
    rows = -(-len(samples) // columns)
    sheet = PILImage.new("RGB", (columns * cell_width + _GAP_PX, rows * cell_height + _GAP_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for place, (sample, lq, hq) in enumerate(samples):
        x = _GAP_PX + place % columns * cell_width
        y = _GAP_PX + place // columns * cell_height
        sheet.paste(_thumb(lq, thumb_px), (x, y))
        sheet.paste(_thumb(hq, thumb_px), (x + thumb_px + 1, y))
        for line, text in enumerate(caption(sample)):
            draw.text((x, y + thumb_px + 2 + 13 * line), _fit(draw, text, 2 * thumb_px, font), _INK, font)
    return np.asarray(sheet)


def caption(sample: Sample) -> tuple[str, str]:
    """Category and severities, then the drawn parameters."""
    steps = " > ".join(f"{step.name} {step.severity:.2f}" for step in sample.steps)
    drawn = "  ".join(f"{name} {_short(value)}" for step in sample.steps for name, value in _scalars(step.params))
    return f"{sample.category}: {steps}", drawn


def _scalars(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in params.items() if isinstance(value, int | float | str))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _thumb(pixels: Pixels, side_px: int) -> PILImage.Image:
    """The centre of an image at `side_px` squared; enlarged by repeating pixels, never smoothed."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    method = cv2.INTER_AREA if side > side_px else cv2.INTER_NEAREST
    square: Pixels = cv2.resize(pixels[y : y + side, x : x + side], (side_px, side_px), interpolation=method)
    return PILImage.fromarray(square)


def _fit(draw: ImageDraw.ImageDraw, text: str, width_px: int, font: Any) -> str:
    while text and draw.textlength(text, font) > width_px:
        text = text[:-2].rstrip(".") + "…" if len(text) > 3 else ""
    return text
