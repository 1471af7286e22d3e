"""Damage on prints, with a mask of what lies where. Works in linear light.

Stains and foxing are density, in the ratios of a brown; scratches, creases and worn borders bare the paper, dust and
hairs cover the print. Marks are drawn (`old_photo_marks`), softened by a scanner's lens, then composed by opacity.
The mask holds one bit a class, everywhere where a mark changes a photo by more than about half an 8-bit code.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.old_photo_marks import (
    NOWHERE,
    Opacity,
    Sparse,
    draw_creases,
    draw_dust,
    draw_hairs,
    draw_scratches,
    draw_worn_border,
    foxing_density,
    stain_density,
)
from pairforge.image import Image
from pairforge.rng import Rng, rng_from_seed

CLASS_BITS = {"stain": 1, "foxing": 2, "dust": 4, "hair": 8, "scratch": 16, "crease": 32, "border": 64}
_STAIN_TINT = (0.45, 0.7, 1.0)
_FOXING_TINT = (0.25, 0.6, 1.0)
_PAPER_RGB = (0.80, 0.755, 0.66)
_DIRT_RGB = (0.045, 0.037, 0.03)
_BEHIND_RGB = (0.74, 0.74, 0.73)
_SCANNER_SIGMA_PX = 0.55
_NEIGHBOURS = (3, 3)
_LEAST_DENSITY = 0.0015
_LEAST_SHADE = 0.003


class DamageParams(Params):
    """Counts are per print, whatever its size in pixels. `stain_area_frac`: share of the photo inside stains.
    `stain_density`, `foxing_density`: density in blue of their darkest parts. `light_dust_share`: dust and hairs that
    are light. `border_wear_frac`: mean width of the worn border, of the short side.
    """

    stain_area_frac: float = Field(ge=0, le=0.6)
    stain_density: float = Field(ge=0, le=1.5)
    foxing_count: int = Field(ge=0, le=2000)
    foxing_density: float = Field(ge=0, le=1.5)
    dust_count: int = Field(ge=0, le=5000)
    hair_count: int = Field(ge=0, le=500)
    light_dust_share: float = Field(ge=0, le=1)
    scratch_count: int = Field(ge=0, le=500)
    crease_count: int = Field(ge=0, le=20)
    border_wear_frac: float = Field(ge=0, le=0.2)
    torn_corner_count: int = Field(ge=0, le=4)


def sample_damage(severity: float, rng: Rng) -> DamageParams:
    """Everything grows with severity; creases and torn corners come late."""
    s = severity
    return DamageParams(
        stain_area_frac=float(0.15 * s * rng.uniform(0.4, 1.0)),
        stain_density=float((0.02 + 0.3 * s) * rng.uniform(0.6, 1.2)),
        foxing_count=int(70 * s**1.5 * rng.uniform(0.3, 1.0)),
        foxing_density=float((0.05 + 0.3 * s) * rng.uniform(0.7, 1.3)),
        dust_count=int(12 + 380 * s**1.3 * rng.uniform(0.6, 1.0)),
        hair_count=int(14 * s * rng.uniform(0.2, 1.0) + 0.3),
        light_dust_share=float(rng.uniform(0.5, 0.95)),
        scratch_count=int(30 * s**1.2 * rng.uniform(0.4, 1.0)),
        crease_count=int(3.6 * s**2.6 * rng.uniform(0.3, 1.0)),
        border_wear_frac=float((0.0004 + 0.005 * s) * rng.uniform(0.4, 1.5)),
        torn_corner_count=int(2.6 * s**2 * rng.uniform(0.2, 1.0)),
    )


@dataclass(frozen=True)
class Marks:
    """`stain`, `foxing`: relative density. `shade` is that beside creases. `paper`, `dirt`, `behind`: opacity of
    bare paper, of dirt, and of what lies behind the print. `classes`: bits of CLASS_BITS.
    """

    stain: Sparse
    foxing: Sparse
    shade: Sparse
    paper: Opacity
    dirt: Opacity
    behind: Opacity
    classes: NDArray[np.uint8]


def draw_marks(height: int, width: int, params: DamageParams, rng: Rng) -> Marks:
    """Each class draws from a generator of its own, so that one more scratch moves no dust."""
    stain_rng, foxing_rng, dust_rng, hair_rng, scratch_rng, crease_rng, border_rng = (
        rng_from_seed(rng.bytes(16).hex()) for _ in CLASS_BITS
    )
    paper, dirt, light, drawn, spare = (np.zeros((height, width), np.uint8) for _ in range(5))
    draw_dust(paper, dirt, params.dust_count, params.light_dust_share, dust_rng)
    _note(paper, drawn, spare, "dust")
    _note(dirt, drawn, spare, "dust")
    dark = np.zeros_like(light)
    draw_hairs(light, dark, params.hair_count, params.light_dust_share, hair_rng)
    _gather(dark, dirt, drawn, spare, "hair")
    _gather(light, paper, drawn, spare, "hair")
    draw_scratches(light, params.scratch_count, scratch_rng)
    _gather(light, paper, drawn, spare, "scratch")
    shade = draw_creases(light, params.crease_count, crease_rng) if params.crease_count else NOWHERE
    _gather(light, paper, drawn, spare, "crease")
    behind = draw_worn_border(light, params.border_wear_frac, params.torn_corner_count, border_rng)
    _gather(light, paper, drawn, spare, "border")
    _note(behind, drawn, spare, "border")

    classes = _bits_around(drawn)
    stain = stain_density(height, width, params.stain_area_frac, stain_rng)
    foxing = foxing_density(height, width, params.foxing_count, foxing_rng)
    for name, marks, density in (("stain", stain, params.stain_density), ("foxing", foxing, params.foxing_density)):
        classes.ravel()[marks.at[marks.values * np.float32(density) > _LEAST_DENSITY]] |= np.uint8(CLASS_BITS[name])
    classes.ravel()[shade.at[np.abs(shade.values) > _LEAST_SHADE]] |= np.uint8(CLASS_BITS["crease"])
    return Marks(stain, foxing, shade, _softened(paper), _softened(dirt), _softened(behind), classes)


def _gather(plane: Opacity, whole: Opacity, drawn: NDArray[np.uint8], spare: NDArray[np.uint8], name: str) -> None:
    """Note where one class drew, add that to the whole, and empty the plane."""
    if _note(plane, drawn, spare, name):
        cv2.max(whole, plane, whole)
        plane[...] = 0


def _note(plane: Opacity, drawn: NDArray[np.uint8], spare: NDArray[np.uint8], name: str) -> bool:
    """Set the bit of a class where it drew; False where it drew nothing."""
    if not cv2.countNonZero(plane):
        return False
    cv2.threshold(plane, 0, CLASS_BITS[name], cv2.THRESH_BINARY, spare)
    cv2.bitwise_or(drawn, spare, drawn)
    return True


def _bits_around(drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bits of each pixel and its eight neighbours: where marks are once they are softened."""
    beside = drawn.copy()
    beside[:, 1:] |= drawn[:, :-1]
    beside[:, :-1] |= drawn[:, 1:]
    around = beside.copy()
    around[1:] |= beside[:-1]
    around[:-1] |= beside[1:]
    return around


def _softened(plane: Opacity) -> Opacity:
    if not cv2.countNonZero(plane):
        return plane
    soft: Opacity = cv2.GaussianBlur(plane, _NEIGHBOURS, _SCANNER_SIGMA_PX)
    return soft


def add_damage(image_lin: Image, marks: Marks, params: DamageParams) -> None:
    """Compose marks over linear light, in place."""
    _add_density(image_lin, marks.stain, params.stain_density, _STAIN_TINT)
    _add_density(image_lin, marks.foxing, params.foxing_density, _FOXING_TINT)
    pixels = image_lin.reshape(-1, 3)
    pixels[marks.shade.at] *= (1 + marks.shade.values)[:, None]
    for opacity, colour in ((marks.dirt, _DIRT_RGB), (marks.paper, _PAPER_RGB), (marks.behind, _BEHIND_RGB)):
        _cover(image_lin, opacity, colour)


def _add_density(image_lin: Image, relative: Sparse, density: float, tint: tuple[float, float, float]) -> None:
    if not len(relative.at):
        return
    pixels = image_lin.reshape(-1, 3)
    thickness = relative.values * np.float32(-np.log(10) * density)
    left = cv2.merge([cv2.exp(thickness * np.float32(share)) for share in tint]).reshape(-1, 3)
    left *= np.take(pixels, relative.at, axis=0)
    pixels[relative.at] = left


def _cover(image_lin: Image, opacity: Opacity, colour: tuple[float, float, float]) -> None:
    if not cv2.countNonZero(opacity):
        return
    at = np.flatnonzero(opacity > 0)
    pixels = image_lin.reshape(-1, 3)
    share = np.take(opacity.ravel(), at).astype(np.float32)[:, None] * np.float32(1 / 255)
    inside = np.take(pixels, at, axis=0)
    inside += share * (np.array(colour, np.float32) - inside)
    pixels[at] = inside


def damage_facts(marks: Marks) -> dict[str, float]:
    """Share of the photo that each class covers."""
    return {
        f"{name}_area_frac": cv2.countNonZero(marks.classes & np.uint8(bit)) / marks.classes.size
        for name, bit in CLASS_BITS.items()
    }


def apply_damage(image_lin: Image, params: DamageParams, scene: Scene, rng: Rng) -> Rendered:
    marks = draw_marks(image_lin.shape[0], image_lin.shape[1], params, rng)
    out = image_lin.copy()
    add_damage(out, marks, params)
    return Rendered(out, image_lin, layers={"damage_classes": marks.classes}, realised=damage_facts(marks))


PHOTO_DAMAGE = Degradation(
    name="photo_damage",
    version=2,
    params_type=DamageParams,
    sample=sample_damage,
    apply=apply_damage,
    space="linear",
    needs=frozenset(),
    source="stains, foxing, dust, hairs, scratches, creases, borders as density and opacity; sizes from scans",
)
