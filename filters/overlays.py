"""What was laid over or around a picture: flat borders, and lettering."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pairforge.image import Pixels, Plane

_FLAT_CODES, _STEP_CODES, _OUTLIER_CODES, _OUTLIER_SHARE = 1.5, 3.0, 16, 0.02
_STRIP_ROWS, _RINGING_ROWS = 64, 8

_TEXT_SIDE_PX = 768
_STROKE_PX, _CONTRAST_CODES, _CORE = 13, 60, 0.7
_HEIGHT_PX = (6, 80)
_LEAST_LETTERS = 6
_MOST_PIECES = 4000
_BAND_PX, _REACH_PX = 32, 80
"""No letter continues one that is further off than this, up, down or to the left."""
_FILL = (0.15, 0.95)
_HEIGHT_RATIO, _GAP_HEIGHTS, _OFFSET_HEIGHTS, _COLOUR_CODES = 1.8, 1.0, 0.35, 14.0
_BASELINE_HEIGHTS, _ON_BASELINE = 0.12, 0.7


class Borders(NamedTuple):
    """Widths in px of flat margins."""

    left: int
    top: int
    right: int
    bottom: int


class _End(NamedTuple):
    """The last letter of a line: its right side, middle row, height, mean luma."""

    right: int
    middle: float
    height: int
    level: float


def find_borders(pixels: Pixels) -> Borders:
    """Margins of one colour, as letterboxing and frames leave them; 0 where there is none.

    Seen from a side, rows belong to a margin while they are on average within 1.5 codes of the colour at the edge and
    less than 2 % of their codes are 16 or more off it. A margin counts only where the picture begins with a step, 3
    codes or more on average within two rows, at most 8 rows on (codecs ring that far): that keeps clear skies, which
    drift, from being margins. So blurred or graded margins are not found, nor those beside a picture that is equally
    flat and of their colour there. A picture that is nothing but margins has none. Above and below are found first,
    the sides between them.
    """
    top = _margin(pixels)
    bottom = _margin(pixels[::-1])
    if top + bottom >= len(pixels):
        return Borders(0, 0, 0, 0)
    rows = pixels[top : len(pixels) - bottom]
    sides = rows.transpose(1, 0, 2)
    left, right = _margin(sides), _margin(sides[::-1])
    return Borders(left, top, right, bottom) if left + right < len(sides) else Borders(0, top, 0, bottom)


def _margin(pixels: Pixels) -> int:
    colour = np.median(pixels[0], axis=0)
    for start in range(0, len(pixels), _STRIP_ROWS):
        above = min(start, 2)
        strip = np.ascontiguousarray(pixels[start - above : start + _STRIP_ROWS + _RINGING_ROWS])
        off = cv2.absdiff(strip, (*colour.tolist(), 0.0)).reshape(len(strip), -1)
        mean = cv2.reduce(off, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
        _, far = cv2.threshold(off, _OUTLIER_CODES - 1, 255, cv2.THRESH_BINARY)
        far_share = cv2.reduce(far, 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel() / 255
        flat = (mean <= _FLAT_CODES) & (far_share < _OUTLIER_SHARE)
        if not flat[: above + _STRIP_ROWS].all():
            first = int(np.argmin(flat))
            if first < 1:
                return 0
            before = mean[np.maximum(np.arange(first, len(mean)) - 2, 0)]
            steps = np.flatnonzero(mean[first:] - before >= _STEP_CODES)
            found = steps.size and steps[0] < _RINGING_ROWS
            return start - above + first + int(steps[0]) if found else 0
    return 0


def text_share(pixels: Pixels) -> float:
    """Share of the picture under lines of lettering that looks laid over it, 0..1.

    On a copy shrunk by a whole factor to at most 768 px a side: strokes lighter or darker than what surrounds them by
    60 codes, in pieces 6 to 80 px high; then chains of at least six pieces of like height and flat, like colour, side
    by side on one line. Found are captions, timestamps and watermarks of solid letters that stand clear of each other.
    Not found are short words, slanted, joined, hollow or half-transparent letters, letters smaller than 6 px or with
    strokes wider than 12 px, and writing without separate letters. Signs inside the scene count; so may fences,
    windows, keyboards and strong noise. A hint for rules, no proof: a detector (`filters.watermark`) judges better.
    """
    height, width = pixels.shape[:2]
    factor = math.ceil(max(height, width) / _TEXT_SIDE_PX)
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if factor > 1:
        size = (max(1, width // factor), max(1, height // factor))
        luma = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
    covered = np.zeros(luma.shape, np.uint8)
    kernel = np.ones((_STROKE_PX, _STROKE_PX), np.uint8)
    for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        contrast = cv2.morphologyEx(luma, kind, kernel)
        # Smoothed edges of letters are left out, so that what remains of a letter has its own colour.
        core = cv2.convertScaleAbs(cv2.dilate(contrast, np.ones((5, 5), np.uint8)), alpha=_CORE)
        strokes = (contrast >= cv2.max(core, _CONTRAST_CODES)).view(np.uint8)
        boxes, levels = _letters(strokes, luma)
        for left, top, right, bottom in _lines(boxes, levels):
            covered[top:bottom, left:right] = 1
    return float(covered.mean())


def _letters(strokes: NDArray[np.uint8], luma: NDArray[np.uint8]) -> tuple[NDArray[np.int64], Plane]:
    """Boxes (x, y, width, height) of pieces that could be letters, from left to right, and their mean luma."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(strokes, connectivity=8)
    boxes, areas = stats[:, :4].astype(np.int64), stats[:, 4]
    fill = areas / (boxes[:, 2] * boxes[:, 3])
    likely = (boxes[:, 3] >= _HEIGHT_PX[0]) & (boxes[:, 3] <= _HEIGHT_PX[1]) & (boxes[:, 2] <= 2 * boxes[:, 3])
    likely &= (fill >= _FILL[0]) & (fill <= _FILL[1]) & (areas >= 8)
    likely[0] = False
    inside = np.flatnonzero(likely[labels.ravel()])
    owners, values = labels.ravel()[inside], luma.ravel()[inside].astype(np.float64)
    means = np.bincount(owners, values, count) / areas
    likely &= np.bincount(owners, values**2, count) / areas - means**2 <= (2 * _COLOUR_CODES) ** 2
    kept = np.flatnonzero(likely)
    kept = kept[np.lexsort((boxes[kept, 1], boxes[kept, 0]))][:_MOST_PIECES]
    return boxes[kept], means[kept].astype(np.float32)


def _lines(boxes: NDArray[np.int64], levels: Plane) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of chains of letters; a letter goes to the chain that fits and ends nearest."""
    chains: list[list[tuple[int, int, int, int]]] = []
    ends_by_band: dict[int, dict[int, _End]] = {}
    for (x, y, width, height), level in zip(boxes.tolist(), levels.tolist(), strict=True):
        letter = _End(x + width, y + height / 2, height, level)
        band = int(letter.middle) // _BAND_PX
        fitting = []
        for at in (band - 1, band, band + 1):
            ends = ends_by_band.get(at, {})
            for place in [place for place, end in ends.items() if end.right < x - _REACH_PX]:
                del ends[place]  # boxes come from left to right: nothing continues this one any more
            fitting += [(abs(x - end.right), place, at) for place, end in ends.items() if _continues(end, letter, x)]
        if fitting:
            _, place, at = min(fitting)
            del ends_by_band[at][place]
        else:
            place = len(chains)
            chains.append([])
        chains[place].append((x, y, x + width, y + height))
        ends_by_band.setdefault(band, {})[place] = letter
    lines = []
    for chain in chains:
        if len(chain) >= _LEAST_LETTERS:
            lefts, tops, rights, bottoms = np.array(chain).T
            off = np.abs(bottoms - np.median(bottoms)) / np.median(bottoms - tops)
            if (off <= _BASELINE_HEIGHTS).mean() >= _ON_BASELINE:
                lines.append((int(lefts.min()), int(tops.min()), int(rights.max()), int(bottoms.max())))
    return lines


def _continues(end: _End, letter: _End, left: int) -> bool:
    """Whether a letter that begins at `left` is the next one after `end`."""
    if abs(end.level - letter.level) > _COLOUR_CODES:
        return False
    taller, shorter = max(end.height, letter.height), min(end.height, letter.height)
    return (
        -0.25 * taller <= left - end.right <= _GAP_HEIGHTS * taller
        and abs(end.middle - letter.middle) <= _OFFSET_HEIGHTS * taller
        and taller <= _HEIGHT_RATIO * shorter
    )
