"""Light sources of a flare: those an image has, one that is placed, and how a source itself looks.

A source is radiance / (1 + (r / radius)^2)^2.5, an ellipse where `aspect_ratio` is not 1. A small share of its
energy, `_HALO_SHARE`, forms the r^-3 halo that a clean lens has too.
"""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.flare_pattern import PEAKS_NM
from pairforge.image import Image, Plane, luminance

_SATURATED_LIN = 0.955
"""Linear light of code 0.98, from where an 8-bit photo no longer tells how bright a lamp is."""
_LEAST_AREA_PX, _MOST_AREA_FRAC = 9, 0.01
_MOST_LIGHTS = 6
_MOST_LOOKED_AT = 40
_LEAST_CONTRAST = 0.35
_LEAST_FILL = 0.3
_HALO_SHARE = 0.03
_HALO_RADIUS_FRAC = 0.01
_UNSEEN_LIN = 1e-4


@dataclass(frozen=True)
class Source:
    x_px: float
    y_px: float
    radiance: float
    radius_px: float
    colour: tuple[float, float, float]
    origin: Literal["detected", "brightest", "placed"]
    aspect_ratio: float = 1.0
    angle_deg: float = 0.0

    @property
    def energy(self) -> float:
        """Integral of the source, in white px."""
        return self.radiance * np.pi * self.radius_px**2 / 1.5

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "x_px": self.x_px,
            "y_px": self.y_px,
            "radiance": self.radiance,
            "radius_px": self.radius_px,
            "colour": list(self.colour),
            "origin": self.origin,
        }


def find_lights(image_lin: Image, radiance: float) -> list[Source]:
    """The largest lamps among saturated blobs, at most `_MOST_LIGHTS`.

    A lamp has 9 px or more and at most 1 % of the frame (more is sky or wall), fills its box (else it is an edge
    or a reflex along one) and stands out from its surroundings. It is read as a source whose saturated disc has the
    blob's area; its colour is that of its rim, since the core is clipped.
    """
    saturated = (luminance(image_lin) > _SATURATED_LIN).astype(np.uint8)
    count, labels, stats, centres = _blobs(saturated)
    areas_px = stats[1:count, cv2.CC_STAT_AREA]
    order = 1 + np.argsort(-areas_px, kind="stable")
    fits = (areas_px[order - 1] >= _LEAST_AREA_PX) & (areas_px[order - 1] <= _MOST_AREA_FRAC * saturated.size)
    found: list[Source] = []
    for label in order[fits][:_MOST_LOOKED_AT].tolist():
        x, y, width, height, area_px = stats[label].tolist()
        colour = _lamp_colour(image_lin, labels, label, (x, y, width, height))
        if colour is None or area_px < _LEAST_FILL * width * height:
            continue
        radius_px = float(np.sqrt(area_px / np.pi / (radiance**0.4 - 1)))
        centre_x, centre_y = centres[label].tolist()
        found.append(Source(centre_x, centre_y, radiance, radius_px, colour, "detected"))
        if len(found) == _MOST_LIGHTS:
            break
    return found


def _blobs(mask: NDArray[np.uint8]) -> tuple[int, NDArray[Any], NDArray[np.int32], NDArray[np.float64]]:
    """What cv2.connectedComponentsWithStats gives; in the narrow labels, three times as fast, where they suffice."""
    # No more blobs than runs of pixels in rows.
    runs = cv2.countNonZero(cv2.subtract(mask[:, 1:], mask[:, :-1])) if mask.shape[1] > 1 else 0
    label_type = cv2.CV_16U if runs + mask.shape[0] < 65535 else cv2.CV_32S
    blobs: tuple[int, NDArray[Any], NDArray[np.int32], NDArray[np.float64]] = cv2.connectedComponentsWithStats(
        mask, connectivity=8, ltype=label_type
    )
    return blobs


def _lamp_colour(
    image_lin: Image, labels: NDArray[Any], label: int, box: tuple[int, int, int, int]
) -> tuple[float, float, float] | None:
    """Colour of the rim, largest 1; None for a blob that does not stand out from what lies around it."""
    x, y, width, height = box
    reach = 3 + max(width, height) // 2
    around = np.s_[max(y - reach, 0) : y + height + reach, max(x - reach, 0) : x + width + reach]
    blob = (labels[around] == label).astype(np.uint8)
    rim = cv2.dilate(blob, np.ones((5, 5), np.uint8))
    outside = 1 - cv2.dilate(rim, np.ones((3, 3), np.uint8))
    surroundings = cv2.mean(np.minimum(luminance(image_lin[around]), np.float32(1)), outside)[0]
    if surroundings > 1 - _LEAST_CONTRAST:
        return None
    mean = np.array(cv2.mean(image_lin[around], rim - blob)[:3])
    red, green, blue = (mean / mean.max()).tolist() if mean.max() > 0 else (1.0, 1.0, 1.0)
    return red, green, blue


def brightest_glint(image_lin: Image, radiance: float) -> Source:
    """The place of an image without lights that stands out most, as a small white source dimmed by its luminance."""
    height, width = image_lin.shape[:2]
    small = cv2.resize(luminance(image_lin), (64, 64), interpolation=cv2.INTER_AREA)
    # At half the contrast with what lies around, so that a glint goes before a wall.
    row, column = np.unravel_index(int((small - 0.5 * cv2.GaussianBlur(small, (0, 0), 6)).argmax()), small.shape)
    x_px, y_px = (float(column) + 0.5) * width / 64 - 0.5, (float(row) + 0.5) * height / 64 - 0.5
    dimmed = radiance * max(float(small[row, column]), 0.05)
    return Source(x_px, y_px, dimmed, 0.002 * min(width, height), (1.0, 1.0, 1.0), "brightest")


def blackbody_colour(temperature_k: float) -> tuple[float, float, float]:
    """Planck radiance at the channel wavelengths, relative to 6500 K, largest 1."""
    wavelength_m = np.array(PEAKS_NM) * 1e-9
    radiance = np.expm1(0.014388 / (wavelength_m * 6500)) / np.expm1(0.014388 / (wavelength_m * temperature_k))
    red, green, blue = (radiance / radiance.max()).tolist()
    return red, green, blue


def with_source(image_lin: Image, source: Source) -> Image:
    """A copy of the image with the source itself in it, as a clean lens shows it."""
    height, width = image_lin.shape[:2]
    step = max(1, round(max(height, width) / 512))
    across, down = max(1, round(width / step)), max(1, round(height / step))
    halo_px = _HALO_RADIUS_FRAC * max(height, width)
    x = (
        (np.arange(across, dtype=np.float32) + np.float32(0.5)) * np.float32(width / across) - 0.5 - source.x_px
    ) / halo_px
    y = (
        (np.arange(down, dtype=np.float32) + np.float32(0.5)) * np.float32(height / down) - 0.5 - source.y_px
    ) / halo_px
    fall = (1 + x * x)[None, :].astype(np.float32) + (y * y)[:, None].astype(np.float32)
    fall *= cv2.sqrt(fall).reshape(fall.shape)
    peak = _HALO_SHARE * source.energy / (2 * np.pi * halo_px**2)
    halo = cv2.merge([cv2.divide(peak * share, fall).reshape(fall.shape) for share in source.colour])
    lit: Image = cv2.resize(halo, (width, height), interpolation=cv2.INTER_LINEAR)
    cv2.add(lit, image_lin, dst=lit)
    _add_core(lit, source)
    return lit


def _add_core(light: Image, source: Source) -> None:
    """Add what is not halo in place, as far as it is more than `_UNSEEN_LIN`."""
    height, width = light.shape[:2]
    stretch = float(np.sqrt(source.aspect_ratio))
    reach_px = source.radius_px * stretch * max(source.radiance / _UNSEEN_LIN, 1) ** 0.2 + 1
    left, right = max(int(source.x_px - reach_px), 0), min(int(source.x_px + reach_px) + 2, width)
    top, bottom = max(int(source.y_px - reach_px), 0), min(int(source.y_px + reach_px) + 2, height)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(source.x_px)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(source.y_px)
    cos, sin = np.cos(np.radians(source.angle_deg)), np.sin(np.radians(source.angle_deg))
    along = (x * np.float32(cos) + y * np.float32(sin)) * np.float32(1 / (source.radius_px * stretch))
    across = (y * np.float32(cos) - x * np.float32(sin)) * np.float32(stretch / source.radius_px)
    fall: Plane = 1 + along * along + across * across
    profile = np.float32(source.radiance * (1 - _HALO_SHARE)) / (fall * fall * np.sqrt(fall))
    for channel in range(3):
        light[top:bottom, left:right, channel] += profile * np.float32(source.colour[channel])
