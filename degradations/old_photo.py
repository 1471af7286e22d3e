"""Scans of old prints, put together from tone, grain, paper and damage. Works in linear light.

Order is that of a print's life: soft lens, grain of the film, softness of the enlargement, tone of the print and its
ageing, surface and yellowing of its paper, then damage. The parts are degradations of their own (`fade`, `sepia`,
`film_grain`, `photo_damage`), whose parameters these share. Target is the photo as it was: nothing moves.
"""

from collections.abc import Callable

import cv2
import numpy as np
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.old_photo_damage import DamageParams, add_damage, damage_facts, draw_marks, sample_damage
from degradations.old_photo_fields import STRIP_ROWS
from degradations.old_photo_grain import (
    FilmGrainParams,
    GrainParams,
    draw_colour_grain,
    draw_grain,
    grain_rows,
    grained,
    sample_film_grain,
    sample_grain,
)
from degradations.old_photo_paper import PaperParams, add_paper, draw_paper, sample_paper
from degradations.old_photo_tone import (
    FadeParams,
    ToneParams,
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


class OldPhotoParams(DamageParams, PaperParams, ToneParams, GrainParams, SoftnessParams):
    """A black-and-white print, 1910 to 1960."""


class OldColorPhotoParams(DamageParams, PaperParams, FadeParams, FilmGrainParams, SoftnessParams):
    """A colour print on chromogenic paper, 1955 to 1980."""


def sample_softness(severity: float, rng: Rng) -> SoftnessParams:
    return SoftnessParams(
        lens_sigma_px=float((0.25 + 1.35 * severity) * rng.uniform(0.7, 1.2)),
        print_sigma_px=float(0.35 + 0.35 * severity * rng.uniform(0.3, 1.0)),
    )


def sample_old_photo(severity: float, rng: Rng) -> OldPhotoParams:
    parts = (sample_tone, sample_grain, sample_softness, sample_paper, sample_damage)
    return OldPhotoParams.model_validate(_joined(parts, severity, rng))


def sample_old_color_photo(severity: float, rng: Rng) -> OldColorPhotoParams:
    parts = (sample_fade, sample_film_grain, sample_softness, sample_paper, sample_damage)
    return OldColorPhotoParams.model_validate(_joined(parts, severity, rng))


def apply_old_photo(image_lin: Image, params: OldPhotoParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image_lin.shape[:2]
    grain = draw_grain(height, width, params, rng, params.print_sigma_px)
    tables = print_tables(params)

    def print_of(top: int, rows: int) -> list[Plane]:
        around, skipped = _with_border_rows(image_lin, top, rows, params)
        light = recorded_light(around, params.orthochromatic_share)
        root = _soft_root(light, params)[skipped : skipped + rows]
        index = table_index(grained(root, grain_rows(grain, top, rows), params.grain_sigma_frac))
        return [np.take(table, index) for table in tables]

    return _aged(image_lin, print_of, params, params, rng)


def apply_old_color_photo(image_lin: Image, params: OldColorPhotoParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image_lin.shape[:2]
    tables = fade_tables(params)
    grain = draw_colour_grain(height, width, params, rng, params.print_sigma_px)

    def print_of(top: int, rows: int) -> list[Plane]:
        around, skipped = _with_border_rows(image_lin, top, rows, params)
        root = _soft_root(around, params)[skipped : skipped + rows]
        index = table_index(grained(root, grain_rows(grain, top, rows), params.grain_sigma_frac))
        return [np.take(table, index[..., channel]) for channel, table in enumerate(tables)]

    return _aged(image_lin, print_of, params, params, rng)


def _sigma_px(params: SoftnessParams) -> float:
    """Of all that blurs the picture: that grain comes between changes nothing in it."""
    return float(np.hypot(params.lens_sigma_px, params.print_sigma_px))


def _with_border_rows(image_lin: Image, top: int, rows: int, params: SoftnessParams) -> tuple[Image, int]:
    """Rows and as many beyond them as their blur needs, and how many of these come first."""
    reach = _reach_px(params)
    first = max(0, top - reach)
    return image_lin[first : top + rows + reach], top - first


def _reach_px(params: SoftnessParams) -> int:
    return int(np.ceil(3.5 * _sigma_px(params)))


def _soft_root(light: Plane, params: SoftnessParams) -> Plane:
    """Square root of blurred light."""
    side = 2 * _reach_px(params) + 1
    root: Plane = cv2.GaussianBlur(light, (side, side), _sigma_px(params))
    np.maximum(root, np.float32(0), out=root)
    cv2.sqrt(root, root)
    return root


def _aged(
    image_lin: Image,
    print_of: Callable[[int, int], list[Plane]],
    paper_params: PaperParams,
    damage_params: DamageParams,
    rng: Rng,
) -> Rendered:
    """Paper and damage over a print, whose rows in red, green and blue `print_of` makes."""
    height, width = image_lin.shape[:2]
    paper = draw_paper(height, width, paper_params, rng)
    out = np.empty_like(image_lin)
    for top in range(0, height, STRIP_ROWS):
        strip = out[top : top + STRIP_ROWS]
        planes = print_of(top, len(strip))
        add_paper(planes, paper, top)
        cv2.merge(planes, strip)
    marks = draw_marks(height, width, damage_params, rng)
    add_damage(out, marks, damage_params)
    return Rendered(out, image_lin, layers={"damage_classes": marks.classes}, realised=damage_facts(marks))


def _joined(parts: tuple[object, ...], severity: float, rng: Rng) -> dict[str, float]:
    values: dict[str, float] = {}
    for sample in parts:
        assert callable(sample)
        values |= sample(severity, rng).model_dump()
    return values


OLD_PHOTO = Degradation(
    name="old_photo",
    version=1,
    params_type=OldPhotoParams,
    sample=sample_old_photo,
    apply=apply_old_photo,
    space="linear",
    needs=frozenset(),
    source="Hurter and Driffield 1890; Boolean grain: Newson et al. 2017; paper and damage as density and opacity",
)
OLD_COLOR_PHOTO = Degradation(
    name="old_color_photo",
    version=1,
    params_type=OldColorPhotoParams,
    sample=sample_old_color_photo,
    apply=apply_old_color_photo,
    space="linear",
    needs=frozenset(),
    source="Dye fading: Wilhelm and Brower 1993; Boolean grain: Newson et al. 2017; paper and damage as in old_photo",
)
