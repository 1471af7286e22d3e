"""What happens to a pair between shard and network: crop, turns, colour, and degradations on top of LQ.

Geometry and colour are the same for both sides. All draws come from the seed of a ticket.
"""

import os
from typing import Any, Literal, Self

import cv2
import numpy as np
from pydantic import Field, model_validator

from degradations.base import Params, Scene
from degradations.catalog import BY_NAME, replay
from degradations.chains import CHAIN_BY_NAME
from pairforge.image import Pixels, to_pixels
from pairforge.records import Frozen, Step
from pairforge.rng import Rng, rng_for, seed_for


class Photometric(Frozen):
    """Changes of colour, each with probability `p`. Codes map to codes by one curve for a pair, whatever it shows:
    what depends on an image's mean would part LQ from HQ."""

    brightness: float = Field(0.0, ge=0, le=1, description="largest shift, as a share of white")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest change of the slope")
    gamma: float = Field(0.0, ge=0, lt=1, description="largest change of the exponent")
    hue_deg: float = Field(0.0, ge=0, le=180)
    saturation: float = Field(0.0, ge=0, le=1, description="largest shift, as a share of full saturation")
    p: float = Field(0.5, gt=0, le=1)


class Degrade(Frozen):
    """A degradation or chain by name, on top of what LQ went through: such as `web`."""

    name: str
    severity: tuple[float, float] = (0.0, 1.0)
    p: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        chain = CHAIN_BY_NAME.get(self.name)
        if chain is None and self.name not in BY_NAME:
            raise ValueError(f"unknown degradation or chain {self.name!r}; known: {sorted({*BY_NAME, *CHAIN_BY_NAME})}")
        uses = chain.uses if chain else {self.name}
        needs = sorted({need for name in uses for need in BY_NAME[name].needs})
        if needs or (chain.stays_small if chain else BY_NAME[self.name].resizes):
            raise ValueError(f"{self.name!r} needs {needs or 'another size'}: pairs have neither scene nor other sizes")
        if not 0 <= self.severity[0] <= self.severity[1] <= 1:
            raise ValueError(f"severity {self.severity} of {self.name!r} is no range within 0..1")
        return self

    def steps(self, severity: float, rng: Rng) -> list[tuple[str, Params]]:
        if self.name in CHAIN_BY_NAME:
            return list(CHAIN_BY_NAME[self.name].draw(severity, rng))
        return [(self.name, BY_NAME[self.name].sample(severity, rng))]


class PairSettings(Frozen):
    """How stored pairs become what a network sees."""

    crop_px: int | None = Field(ge=1, description="side of square crops of HQ; whole pictures where null")
    turns: Literal["none", "flip", "d4"] = Field(description="d4: the eight turns and mirrorings of a square")
    scale: int = Field(1, ge=1, description="pixels of HQ for one of LQ, along a side")
    small: Literal["refuse", "reflect"] = Field("refuse", description="pictures smaller than a crop")
    photometric: Photometric | None = None
    degrade: Degrade | None = None
    reverse: bool = Field(False, description="HQ goes in and LQ must come out: learns a degradation")
    pixels: Literal["float32", "uint8"] = Field(
        "float32", description="uint8: to be made floats on the device, by to_unit"
    )
    skip_damaged: bool = Field(False, description="draw others in place of samples that cannot be read")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.crop_px is not None and self.crop_px % self.scale:
            raise ValueError(f"crop_px {self.crop_px} does not divide by scale {self.scale}")
        if self.reverse and self.degrade:
            raise ValueError("reverse: true makes LQ what must come out, so degrade would teach its own marks")
        return self


class Augment:
    """The changes of `PairSettings`, built once in a process."""

    def __init__(self, settings: PairSettings) -> None:
        self._settings = settings
        self._transforms = _transforms(settings)

    def __call__(self, lq: Pixels, hq: Pixels, seed: str) -> tuple[Pixels, Pixels]:
        """A pair as a network sees it, LQ first; untouched without a seed. Raises ValueError where sizes do not fit."""
        settings = self._settings
        if hq.shape != (lq.shape[0] * settings.scale, lq.shape[1] * settings.scale, 3):
            raise ValueError(
                f"LQ {lq.shape[:2]} and HQ {hq.shape[:2]} (height, width) are not at scale {settings.scale}"
            )
        if not seed:
            return lq, hq
        key = int(seed, 16)
        if settings.crop_px is not None:
            lq, hq = self._cropped(lq, hq, settings.crop_px, rng_for(key, "crop"))
        for place, transform in enumerate(self._transforms):
            transform.set_random_seed(int(seed_for(key, "transform", place), 16))
            changed = transform(image=lq, target=hq)
            lq, hq = changed["image"], changed["target"]
        return (lq if settings.degrade is None else _degraded(lq, settings.degrade, key)), hq

    def _cropped(self, lq: Pixels, hq: Pixels, crop_px: int, rng: Rng) -> tuple[Pixels, Pixels]:
        scale, side = self._settings.scale, crop_px // self._settings.scale
        height, width = lq.shape[:2]
        if min(height, width) < side:
            if self._settings.small == "refuse":
                raise ValueError(f"HQ {hq.shape[:2]} is smaller than crop_px {crop_px}; small: reflect would mirror it")
            missing = (max(0, side - height), max(0, side - width))
            lq, hq = _mirrored(lq, missing, 1), _mirrored(hq, missing, scale)
        y, x = (int(rng.integers(extent - side + 1)) for extent in lq.shape[:2])
        top, left = y * scale, x * scale
        # Copies, so that a batch does not hold whole pictures.
        return lq[y : y + side, x : x + side].copy(), hq[top : top + crop_px, left : left + crop_px].copy()


def _mirrored(pixels: Pixels, missing: tuple[int, int], scale: int) -> Pixels:
    """Rows and columns added below and right, mirrored at the border of the last pixel, which scales keep in place."""
    bottom, right = missing[0] * scale, missing[1] * scale
    enlarged: Pixels = cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REFLECT)
    return enlarged


def _transforms(settings: PairSettings) -> list[Any]:
    """Transforms of Albumentations. Each is seeded for itself: in a Compose all would start from the same state."""
    colour = settings.photometric
    if settings.turns == "none" and colour is None:
        return []
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for its newest version
    import albumentations as A

    found = {"none": [], "flip": [A.HorizontalFlip(p=0.5)], "d4": [A.D4(p=1.0)]}[settings.turns]
    if colour is not None:
        hue, saturation = colour.hue_deg / 2, 255 * colour.saturation  # in units of 8-bit HSV
        if colour.brightness or colour.contrast:
            found.append(
                A.RandomBrightnessContrast(colour.brightness, colour.contrast, brightness_by_max=True, p=colour.p)
            )
        if colour.gamma:
            found.append(A.RandomGamma((100 * (1 - colour.gamma), 100 * (1 + colour.gamma)), p=colour.p))
        if hue or saturation:
            found.append(A.HueSaturationValue(hue, saturation, 0, p=colour.p))
    for transform in found:
        transform.add_targets({"target": "image"})
    return found


def _degraded(lq: Pixels, degrade: Degrade, key: int) -> Pixels:
    rng = rng_for(key, "degrade")
    if rng.random() >= degrade.p:
        return lq
    severity = float(rng.uniform(*degrade.severity))
    steps = [
        Step(
            name=name,
            version=BY_NAME[name].version,
            severity=severity,
            params=params.model_dump(mode="json"),
            seed=seed_for(key, "pixels", place),
        )
        for place, (name, params) in enumerate(degrade.steps(severity, rng))
    ]
    base = np.ascontiguousarray(lq)
    rendered = replay(base, steps, Scene())
    if not np.array_equal(to_pixels(rendered.target), base):
        raise ValueError(f"degrade: {degrade.name!r} moves or dims what HQ must be, so it cannot be put on LQ alone")
    return to_pixels(rendered.image)
