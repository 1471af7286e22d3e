"""Scans of old prints, put together from tone, grain, paper and damage. Works in linear light.

Order is that of a print's life: soft lens, grain of the film, softness of the enlargement, tone of the print and its
ageing, surface and yellowing of its paper, then damage. The parts are degradations of their own (`fade`, `sepia`,
`film_grain`, `photo_damage`), whose parameters these share. Grain and marks belong to the print: their sizes are
shares of it. The target of `old_color_photo` is the photo as it was, that of `old_photo` the black-and-white photo
that its film recorded, since a print holds no evidence of colour. Nothing moves.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.old_photo_damage import DamageParams, Marks, add_damage, damage_facts, draw_marks, sample_damage
from degradations.old_photo_fields import STRIP_ROWS
from degradations.old_photo_grain import (
    ColorPrintGrainParams,
    PrintGrainParams,
    draw_colour_grain,
    draw_grain,
    grain_rows,
    grained,
    resolved_share,
    sample_color_print_grain,
    sample_print_grain,
)
from degradations.old_photo_paper import PaperParams, add_paper, draw_paper, sample_paper
from degradations.old_photo_tone import (
    FadeParams,
    ToneParams,
    black_and_white,
    fade_tables,
    print_tables,
    recorded_light,
    sample_fade,
    sample_tone,
    table_index,
)
from pairforge.image import Image, Plane
from pairforge.rng import Rng


class SoftnessParams(Params):
    """Gaussian sigmas: of the camera's lens, before grain, and of enlarger and scanner, after it."""

    lens_sigma_px: float = Field(gt=0, le=20)
    print_sigma_px: float = Field(gt=0, le=20)


class OldPhotoParams(DamageParams, PaperParams, ToneParams, PrintGrainParams, SoftnessParams):
    """A black-and-white print, 1910 to 1960."""


class OldColorPhotoParams(DamageParams, PaperParams, FadeParams, ColorPrintGrainParams, SoftnessParams):
    """A colour print on chromogenic paper, 1955 to 1980."""


def sample_softness(severity: float, rng: Rng) -> SoftnessParams:
    return SoftnessParams(
        lens_sigma_px=float((0.25 + 1.35 * severity) * rng.uniform(0.7, 1.2)),
        print_sigma_px=float(0.35 + 0.35 * severity * rng.uniform(0.3, 1.0)),
    )


def sample_old_photo(severity: float, rng: Rng) -> OldPhotoParams:
    parts = (sample_tone, sample_print_grain, sample_softness, sample_paper, sample_damage)
    return OldPhotoParams.model_validate(_joined(parts, severity, rng))


def sample_old_color_photo(severity: float, rng: Rng) -> OldColorPhotoParams:
    parts = (sample_fade, sample_color_print_grain, sample_softness, sample_paper, sample_damage)
    return OldColorPhotoParams.model_validate(_joined(parts, severity, rng))


def apply_old_photo(image_lin: Image, params: OldPhotoParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image_lin.shape[:2]
    radius_px = params.grain_radius_frac * min(height, width)
    grain = draw_grain(height, width, radius_px, rng, params.print_sigma_px)
    sigma_frac = params.grain_sigma_frac * resolved_share(radius_px)
    tables = print_tables(params)
    target = np.empty_like(image_lin)

    def print_of(top: int, rows: int) -> list[Plane]:
        around, skipped = _with_border_rows(image_lin, top, rows, params)
        light = recorded_light(around, params.orthochromatic_share)
        target[top : top + rows] = black_and_white(light[skipped : skipped + rows])
        root = _soft_root(light, skipped, rows, params)
        index = table_index(grained(root, grain_rows(grain, top, rows), sigma_frac))
        return [_looked_up(table, index) for table in tables]

    image, marks = _aged((height, width), print_of, params, params, rng)
    return _rendered(image, target, marks)


def apply_old_color_photo(image_lin: Image, params: OldColorPhotoParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image_lin.shape[:2]
    radius_px = params.grain_radius_frac * min(height, width)
    grain = draw_colour_grain(height, width, radius_px, params.layer_correlation_ratio, rng, params.print_sigma_px)
    sigma_frac = params.grain_sigma_frac * resolved_share(radius_px)
    tables = fade_tables(params)

    def print_of(top: int, rows: int) -> list[Plane]:
        around, skipped = _with_border_rows(image_lin, top, rows, params)
        root = _soft_root(around, skipped, rows, params)
        planes = cv2.split(grained(root, grain_rows(grain, top, rows), sigma_frac))
        return [_looked_up(table, table_index(plane)) for table, plane in zip(tables, planes, strict=True)]

    image, marks = _aged((height, width), print_of, params, params, rng)
    return _rendered(image, image_lin, marks)


def _looked_up(table: NDArray[np.float32], index: NDArray[np.uint16]) -> Plane:
    found: Plane = cv2.LUT(index, table)
    return found


def _sigma_px(params: SoftnessParams) -> float:
    """Of all that blurs the picture: that grain comes between changes nothing in it."""
    return float(np.hypot(params.lens_sigma_px, params.print_sigma_px))


def _reach_px(params: SoftnessParams) -> int:
    return int(np.ceil(3 * _sigma_px(params)))


def _with_border_rows(image_lin: Image, top: int, rows: int, params: SoftnessParams) -> tuple[Image, int]:
    """Rows and as many beyond them as their blur needs, and how many of these come first."""
    reach = _reach_px(params)
    first = max(0, top - reach)
    return image_lin[first : top + rows + reach], top - first


def _soft_root(around: Image, skipped: int, rows: int, params: SoftnessParams) -> Image:
    """Square root of blurred light, of one channel or three, without the border rows."""
    side = 2 * _reach_px(params) + 1
    soft = cv2.GaussianBlur(around, (side, side), _sigma_px(params))[skipped : skipped + rows]
    root: Image = np.maximum(soft, np.float32(0))
    cv2.sqrt(root, root)
    return root


def _aged(
    size: tuple[int, int],
    print_of: Callable[[int, int], list[Plane]],
    paper_params: PaperParams,
    damage_params: DamageParams,
    rng: Rng,
) -> tuple[Image, Marks]:
    """Paper and damage over a print (H, W), whose rows in red, green and blue `print_of` makes."""
    height, width = size
    paper = draw_paper(height, width, paper_params, rng)
    out = np.empty((height, width, 3), np.float32)
    for top in range(0, height, STRIP_ROWS):
        strip = out[top : top + STRIP_ROWS]
        planes = print_of(top, len(strip))
        add_paper(planes, paper, top)
        cv2.merge(planes, strip)
    marks = draw_marks(height, width, damage_params, rng)
    add_damage(out, marks, damage_params)
    return out, marks


def _rendered(image: Image, target: Image, marks: Marks) -> Rendered:
    return Rendered(image, target, layers={"damage_classes": marks.classes}, realised=damage_facts(marks))


def _joined(parts: tuple[object, ...], severity: float, rng: Rng) -> dict[str, float]:
    values: dict[str, float] = {}
    for sample in parts:
        assert callable(sample)
        values |= sample(severity, rng).model_dump()
    return values


OLD_PHOTO = Degradation(
    name="old_photo",
    version=2,
    params_type=OldPhotoParams,
    sample=sample_old_photo,
    apply=apply_old_photo,
    space="linear",
    needs=frozenset(),
    source="Hurter and Driffield 1890; Boolean grain: Newson et al. 2017; paper and damage as density and opacity",
)
OLD_COLOR_PHOTO = Degradation(
    name="old_color_photo",
    version=2,
    params_type=OldColorPhotoParams,
    sample=sample_old_color_photo,
    apply=apply_old_color_photo,
    space="linear",
    needs=frozenset(),
    source="Dye fading: Wilhelm and Brower 1993; Boolean grain: Newson et al. 2017; paper and damage as in old_photo",
)
