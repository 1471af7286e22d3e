"""Weight-free measurements of one picture: the scorer `Statistics`, and what each of its numbers means.

None of them knows what is in the picture. They are for screening: cheap, stored for every source, and decided on by
rules (`filters.rules`) that may change later without the pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from filters.detail import blockiness, luma_of, noise_sigmas, sharpness, tiles_of
from filters.overlays import Borders, find_borders, text_share
from filters.tone import clipped_shares, colour, haze_density, light, small_copy, texture
from pairforge.image import Pixels

LEAST_SIDE_PX = 16


@dataclass(frozen=True)
class Measure:
    """Unit and bounds of a number, both bounds included; `about` says what it tells."""

    unit: str
    least: float
    most: float
    about: str


MEASURES: Mapping[str, Measure] = {
    "sharpness": Measure("share", 0, 1, "edge energy lost to a blur of 1 px, noise taken off; 0.3 is a blur of 1 px"),
    "sharpness_worst": Measure("share", 0, 1, "the same in the worst of four directions; far lower is motion blur"),
    "noise_sigma_codes": Measure("codes", 0, 512, "white noise of R, G and B in quiet blocks, root mean square"),
    "noise_luma_codes": Measure("codes", 0, 512, "white noise of luma in quiet blocks"),
    "blockiness": Measure("ratio", 0, 49, "steps across borders of 8 x 8 blocks over steps elsewhere; 1 is none"),
    "exposure_ev": Measure("EV", -10, 0, "mean log2 luminance, white is 0"),
    "contrast_ev": Measure("EV", 0, 10, "95th less 5th percentile of log2 luminance"),
    "clipped_low": Measure("share", 0, 1, "pixels with all codes <= 2"),
    "clipped_high": Measure("share", 0, 1, "pixels with a code >= 253"),
    "darkness": Measure("share", 0, 1, "area below 5 % of the luminance of white"),
    "haze_density": Measure("share", 0, 1, "mean dark channel over airlight; snow and white walls read high too"),
    "colourfulness_codes": Measure("codes", 0, 400, "spread and mean of opponent colours; 0 is grey"),
    "saturation": Measure("share", 0, 1, "mean (most - least) / most of the codes"),
    "texture": Measure("share", 0, 1, "blocks with structure beyond noise"),
    "border_left": Measure("share", 0, 1, "flat margin over the width"),
    "border_top": Measure("share", 0, 1, "flat margin over the height"),
    "border_right": Measure("share", 0, 1, "flat margin over the width"),
    "border_bottom": Measure("share", 0, 1, "flat margin over the height"),
    "text": Measure("share", 0, 1, "area of lines that look like lettering; misses much, see `text_share`"),
    "aspect": Measure("ratio", 0, math.inf, "width over height"),
    "megapixels": Measure("Mpx", 0, math.inf, "width times height over a million"),
    "short_side_px": Measure("px", LEAST_SIDE_PX, math.inf, "the shorter side"),
}
"""Everything that `Statistics` gives. All but borders, text and sizes are of the picture inside its borders."""


class Statistics:
    """Numbers of `MEASURES` from pixels alone, without learned weights. Equal pixels give equal numbers."""

    name = "statistics"
    revision = "1"

    def measure(self, pixels: Pixels) -> Mapping[str, float]:
        """Every number of `MEASURES`. Raises ValueError for what is no (H, W, 3) of 8 bits, or below 16 px a side.

        Noise, sharpness, blocks and clipping are taken at full scale, in windows where a picture has more than 0.59
        megapixels; the rest from copies of at most 512 px a side, text of at most 768.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(
                f"pixels of shape {pixels.shape} and type {pixels.dtype}; needed: (height, width, 3) uint8"
            )
        height, width = pixels.shape[:2]
        if min(height, width) < LEAST_SIDE_PX:
            raise ValueError(f"picture of {width} x {height}; both sides must have {LEAST_SIDE_PX} px or more")
        borders = find_borders(pixels)
        inside = _inside(pixels, borders)
        full, small = _at_full_scale(inside), small_copy(inside)
        exposure, contrast, darkness = light(small)
        colourfulness, saturation = colour(small)
        shrunk = small.shape[0] / inside.shape[0]
        values = {
            **full._asdict(),
            "exposure_ev": exposure,
            "contrast_ev": contrast,
            "darkness": darkness,
            "haze_density": haze_density(small),
            "colourfulness_codes": colourfulness,
            "saturation": saturation,
            "texture": texture(luma_of(small), full.noise_luma_codes * shrunk),
            "border_left": borders.left / width,
            "border_top": borders.top / height,
            "border_right": borders.right / width,
            "border_bottom": borders.bottom / height,
            "text": text_share(pixels),
            "aspect": width / height,
            "megapixels": width * height / 1e6,
            "short_side_px": float(min(height, width)),
        }
        assert all(math.isfinite(value) for value in values.values()), f"not finite: {values}"
        return {name: values[name] for name in MEASURES}


class _FullScale(NamedTuple):
    sharpness: float
    sharpness_worst: float
    noise_sigma_codes: float
    noise_luma_codes: float
    blockiness: float
    clipped_low: float
    clipped_high: float


def _at_full_scale(pixels: Pixels) -> _FullScale:
    tiles = tiles_of(pixels)
    lumas = [luma_of(tile) for tile in tiles]
    luma_sigma, sigma = noise_sigmas(tiles, lumas)
    return _FullScale(*sharpness(lumas, luma_sigma), sigma, luma_sigma, blockiness(lumas), *clipped_shares(tiles))


def _inside(pixels: Pixels, borders: Borders) -> Pixels:
    """What the borders leave; all of it where that would be too little to measure."""
    height, width = pixels.shape[:2]
    kept = pixels[borders.top : height - borders.bottom, borders.left : width - borders.right]
    return np.ascontiguousarray(kept if min(kept.shape[:2]) >= LEAST_SIDE_PX else pixels)
