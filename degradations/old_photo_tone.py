"""Tone of aged prints: dyes that fade, silver that turns brown. Works in linear light, through density.

Density is D = -log10(light). Dyes: D' = k D + D_min in each channel on its own, as each dye loses its share and the
base yellows (after Wilhelm and Brower, The Permanence and Care of Color Photographs, 1993). Silver print: one
density for all channels from light as plates saw it, through a logistic curve with toe and shoulder (after Hurter
and Driffield, 1890); toning multiplies it per channel, the yellowed base adds to it. Ratios between channels were
measured on scans of albumen prints. The target of `sepia` is the black-and-white photo that its film recorded.

Deviations. Light below 0.002 counts as 0.002: no print is blacker, and a faded one shows that. Light above 1 goes
on along the curves.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.old_photo_fields import STRIP_ROWS
from pairforge.image import LUMA_LIN, Image, Plane
from pairforge.rng import Rng

DARKEST_LIGHT = 0.002
ORTHOCHROMATIC = (0.1, 0.5, 0.4)
"""Share of red, green and blue light in what plates before about 1930 recorded."""
BASE_TINT = (0.25, 0.5, 1.0)
"""Density of a yellowed base in red, green, blue over that in blue."""
OLIVE_SILVER = (0.84, 1.0, 1.4)
RED_SILVER = (0.74, 1.08, 1.22)
"""Density of brown silver in red, green, blue over that of neutral silver, at both ends of its hues."""
MIDDLE_DENSITY = 0.75
_STEPS = 16383
_BRIGHTEST_ROOT = 2.0

Row = NDArray[np.float64]


class FadeParams(Params):
    """Density of each channel is multiplied by `keep_red_ratio` and so on; that of the base, `base_red_density`,
    `base_green_density`, `base_blue_density`, is added. Red light is held by the cyan dye, green by magenta, blue by
    yellow.
    """

    keep_red_ratio: float = Field(gt=0, le=1.5)
    keep_green_ratio: float = Field(gt=0, le=1.5)
    keep_blue_ratio: float = Field(gt=0, le=1.5)
    base_red_density: float = Field(ge=0, le=1)
    base_green_density: float = Field(ge=0, le=1)
    base_blue_density: float = Field(ge=0, le=1)


class ToneParams(Params):
    """`orthochromatic_share`: how far the film is from seeing as the eye does to seeing no red.
    `contrast_ratio`: slope of print density over the photo's density in mid-tones. `black_density`: that of the
    deepest black, without the base. `toning_share`: 0 neutral, 1 brown. `redness_share`: hue of the
    brown, 0 olive, 1 reddish purple. `yellow_density`: that of the base in blue.
    """

    orthochromatic_share: float = Field(ge=0, le=1)
    contrast_ratio: float = Field(gt=0.1, le=3)
    black_density: float = Field(ge=0.2, le=3)
    toning_share: float = Field(ge=0, le=1.5)
    redness_share: float = Field(ge=0, le=1)
    yellow_density: float = Field(ge=0, le=1)


def sample_fade(severity: float, rng: Rng) -> FadeParams:
    """Dyes keep 0.985 down to 0.45 of their density, one less than the others; bases yellow up to 0.2.

    The dye that goes first is mostly cyan (dark storage), which leaves prints red, sometimes magenta or yellow.
    """
    first = int(rng.choice(3, p=[0.6, 0.25, 0.15]))
    loss = 0.015 + severity * rng.uniform(0.14, 0.34, 3)
    loss[first] += severity * rng.uniform(0.08, 0.2)
    yellow = 0.005 + severity * rng.uniform(0.08, 0.2)
    base = np.array(BASE_TINT) * yellow * rng.uniform(0.7, 1.3, 3)
    keep = 1 - loss
    return FadeParams(
        keep_red_ratio=float(keep[0]),
        keep_green_ratio=float(keep[1]),
        keep_blue_ratio=float(keep[2]),
        base_red_density=float(base[0]),
        base_green_density=float(base[1]),
        base_blue_density=float(base[2]),
    )


def sample_tone(severity: float, rng: Rng) -> ToneParams:
    """Neutral to brown, with blacks that pale, a base that yellows, and older plates as severity grows."""
    return ToneParams(
        orthochromatic_share=float(min(2 * severity, 1.0) * rng.uniform(0.05, 1)),
        contrast_ratio=float(1.07 - severity**0.9 * rng.uniform(0.02, 0.22)),
        black_density=float((2.6 - 0.95 * severity**0.6) * rng.uniform(0.95, 1.05)),
        toning_share=float(min((0.02 + 0.68 * severity**1.6) * rng.uniform(0.4, 1.4), 1.2)),
        redness_share=float(rng.uniform(0, 0.8)),
        yellow_density=float((0.003 + 0.25 * severity**1.6) * rng.uniform(0.4, 1.3)),
    )


def fade_tables(params: FadeParams) -> NDArray[np.float32]:
    """Faded light (3, 65536) over the square root of light from 0 to 2, for `table_index`."""
    light = np.maximum(np.square(np.linspace(0, _BRIGHTEST_ROOT, _STEPS + 1)), DARKEST_LIGHT)
    rows = [light**ratio * 10**-density for ratio, density in _per_channel(params)]
    return _filled(np.stack(rows).astype(np.float32))


def _per_channel(params: FadeParams) -> list[tuple[float, float]]:
    """Share of density that stays, and density of the base, in red, green and blue."""
    return [
        (params.keep_red_ratio, params.base_red_density),
        (params.keep_green_ratio, params.base_green_density),
        (params.keep_blue_ratio, params.base_blue_density),
    ]


def recorded_light(image_lin: Image, orthochromatic_share: float) -> Plane:
    """Light (H, W) that a black-and-white film records."""
    share = np.float64(orthochromatic_share)
    weights = share * np.array(ORTHOCHROMATIC) + (1 - share) * np.array(LUMA_LIN)
    plane: Plane = cv2.transform(image_lin, weights.astype(np.float32)[None])
    return plane


def print_density(density: Row, params: ToneParams) -> Row:
    """Density of the silver for densities of the photo: 0 at 0, `black_density` in the limit."""
    logistic = _logistic((density - MIDDLE_DENSITY) * _steepness(params))
    at_white = _logistic(np.array(-MIDDLE_DENSITY * _steepness(params)))
    silver: Row = params.black_density * (logistic - at_white) / (1 - at_white)
    return silver


def _logistic(x: Row) -> Row:
    value: Row = 1 / (1 + np.exp(-x))
    return value


def _steepness(params: ToneParams) -> float:
    """Steepness at which the slope at the middle is `contrast_ratio`, by fixed-point iteration."""
    steepness = 4 * params.contrast_ratio / params.black_density
    for _ in range(20):
        at_white = 1 / (1 + np.exp(MIDDLE_DENSITY * steepness))
        steepness = 4 * params.contrast_ratio * (1 - at_white) / params.black_density
    return float(steepness)


def print_tables(params: ToneParams) -> NDArray[np.float32]:
    """Light of the print (3, 65536) over the square root of recorded light from 0 to 2, for `table_index`."""
    root = np.linspace(0, _BRIGHTEST_ROOT, _STEPS + 1)
    silver = print_density(-np.log10(np.maximum(root * root, DARKEST_LIGHT)), params)
    brown = np.array(OLIVE_SILVER) + params.redness_share * (np.array(RED_SILVER) - np.array(OLIVE_SILVER))
    toned = 1 + params.toning_share * (brown - 1)
    base = params.yellow_density * np.array(BASE_TINT)
    return _filled((10 ** -(toned[:, None] * silver + base[:, None])).astype(np.float32))


def _filled(tables: NDArray[np.float32]) -> NDArray[np.float32]:
    """As long as OpenCV's look-up by 16-bit places wants them; `table_index` stays below what is added."""
    filled = np.empty((len(tables), 65536), np.float32)
    filled[:, : _STEPS + 1] = tables
    filled[:, _STEPS + 1 :] = tables[:, -1:]
    return filled


def table_index(root: Image) -> NDArray[np.uint16]:
    """Places in `print_tables` or `fade_tables` of square roots of light, of any shape."""
    scaled = root * np.float32(_STEPS / _BRIGHTEST_ROOT)
    scaled += np.float32(0.5)
    np.clip(scaled, 0, _STEPS, out=scaled)
    return scaled.astype(np.uint16)


def apply_fade(image_lin: Image, params: FadeParams, scene: Scene, rng: Rng) -> Rendered:
    out = np.empty_like(image_lin)
    for top in range(0, len(out), STRIP_ROWS):
        planes = cv2.split(image_lin[top : top + STRIP_ROWS])
        for plane, (ratio, density) in zip(planes, _per_channel(params), strict=True):
            np.maximum(plane, np.float32(DARKEST_LIGHT), out=plane)
            cv2.pow(plane, ratio, plane)
            plane *= np.float32(10**-density)
        cv2.merge(planes, out[top : top + STRIP_ROWS])
    return Rendered(out, image_lin)


def black_and_white(light: Plane) -> Image:
    """Light that a film recorded as a photo, the same in three channels: what a restorer of such a print can know.

    Of the colours there is no evidence left, and no tone curve is applied: it is part of the print.
    """
    photo: Image = cv2.cvtColor(light, cv2.COLOR_GRAY2RGB)
    return photo


def apply_tone(image_lin: Image, params: ToneParams, scene: Scene, rng: Rng) -> Rendered:
    light = recorded_light(image_lin, params.orthochromatic_share)
    target = black_and_white(light)
    np.maximum(light, np.float32(0), out=light)
    index = table_index(cv2.sqrt(light, light))
    out: Image = cv2.merge([cv2.LUT(index, table) for table in print_tables(params)])
    return Rendered(out, target)


FADE = Degradation(
    name="fade",
    version=1,
    params_type=FadeParams,
    sample=sample_fade,
    apply=apply_fade,
    space="linear",
    needs=frozenset(),
    source="Wilhelm and Brower 1993: dye loss and base yellowing, D' = k D + D_min",
)
SEPIA = Degradation(
    name="sepia",
    version=1,
    params_type=ToneParams,
    sample=sample_tone,
    apply=apply_tone,
    space="linear",
    needs=frozenset(),
    source="Hurter and Driffield 1890: characteristic curve; toned silver on a yellowed base, in density",
)
