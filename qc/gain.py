"""Is HQ better than LQ, with no clean image to compare with? Small formulas on code values, numbers by name.

What each number can and cannot say stands at its function. They compare two images of one scene, where content
cancels out; as absolute marks of unlike images they mean little. No network, no learned statistics.

Sources: noise after Immerkaer (CVIU 1996), in the calmest blocks alone; width of edges from two gradient energies,
after Zhuo and Sim (Pattern Recognition 2011), in the mean over the image and less what noise adds; blockiness as the
step at 8-pixel boundaries (Wang, Bovik and Evans, ICIP 2000), over all phases; dark channel (He et al., CVPR 2009).
"""

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pairforge.image import Pixels, Plane
from pairforge.records import Frozen

WORK_PIXELS = 512 * 512
"""What is measured pixel by pixel is measured in a window of at most about this area in the middle."""
_FINE_SIGMA_PX, _COARSE_SIGMA_PX = 0.8, 2.4
_WIDEST_PX = 8.0
_IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def measure_quality(pixels: Pixels) -> dict[str, float]:
    """Numbers of one image (H, W, 3). Never NaN; a flat image has no width of edges and gets the widest.

    noise_codes: standard deviation of noise in 8-bit codes, in calm blocks
    edge_sigma_px: 0..8, Gaussian blur that would explain how wide edges are
    blockiness: 0.., how much larger steps at the strongest 8-pixel grid are than elsewhere
    veil: 0..1, low end of what is darkest in each neighbourhood, as haze leaves nothing dark
    contrast_codes: standard deviation of luma
    median_luma: 0..1, of code values
    clipped_frac: share of pixels with a channel at 0..2 or 253..255
    """
    window = _middle(pixels)
    grey = _grey(window)
    overview = _overview(pixels)
    luma = _grey(overview)
    return {
        "noise_codes": _noise(grey),
        "edge_sigma_px": _edge_sigma(grey),
        "blockiness": _blockiness(grey),
        "veil": _veil(overview),
        "contrast_codes": float(luma.std()),
        "median_luma": float(np.median(luma)) / 255,
        "clipped_frac": float(((overview <= 2) | (overview >= 253)).any(axis=2).mean()),
    }


class GainRule(Frozen):
    """What counts as better, and how much of it is enough. A weight of 0 leaves a term out."""

    least_gain: float = Field(0.15, description="weighted sum of the gains that is enough")
    weights: Mapping[str, float] = Field(
        {"sharpness": 1.0, "noise": 1.0, "blockiness": 1.0, "veil": 1.0, "exposure": 1.0, "clipping": 0.25},
        description="of the gains, each from -1 to 1; one that is not named counts nothing",
    )

    def passed(self, gains: Mapping[str, float]) -> bool:
        """Little or no gain is a failure: a pair whose sides are alike teaches nothing."""
        return gains["quality_gain"] >= self.least_gain


def measure_gain(lq: Mapping[str, float], hq: Mapping[str, float], rule: GainRule) -> dict[str, float]:
    """Gains of HQ over LQ, from their `measure_quality`; each within -1..1, 0 for none, and `quality_gain`.

    The sum of the weighted gains counts what got better in full and what got worse in full, so an image that was
    smoothed to take off noise pays for it. Terms below what the formulas can tell apart count as none.
    """
    gains = {
        "sharpness": _step(lq["edge_sigma_px"] - hq["edge_sigma_px"], still=0.15, full=2.0),
        "noise": _step(_decibels(lq["noise_codes"]) - _decibels(hq["noise_codes"]), still=1.5, full=15.0),
        "blockiness": _step(lq["blockiness"] - hq["blockiness"], still=0.1, full=0.8),
        "veil": _step(lq["veil"] - hq["veil"], still=0.03, full=0.3),
        "exposure": _step(_brightened(lq["median_luma"], hq["median_luma"]), still=0.1, full=0.7),
        "clipping": _step(lq["clipped_frac"] - hq["clipped_frac"], still=0.02, full=0.3),
    }
    total = sum(rule.weights.get(name, 0.0) * gain for name, gain in gains.items())
    return {**{f"{name}_gain": gain for name, gain in gains.items()}, "quality_gain": float(total)}


def _step(difference: float, still: float, full: float) -> float:
    """0 within +-`still`, then linear, +-1 from +-`full`."""
    size = (abs(difference) - still) / (full - still)
    return float(np.copysign(min(1.0, max(0.0, size)), difference)) if size > 0 else 0.0


def _decibels(noise_codes: float) -> float:
    """Against one code: noise below that is rounding, and less of it is no gain."""
    return 20 * float(np.log10(max(1.0, noise_codes)))


def _brightened(lq_luma: float, hq_luma: float) -> float:
    """How far the median left the dark, up to 0.4, or the glare above 0.85; below 0.1 darker is worse.

    Between 0.1 and 0.4 a darker HQ is no loss: taking a veil off leaves many a scene as dark as it is.
    """

    def lack(luma: float, knee: float) -> float:
        return max(0.0, (knee - luma) / knee, (luma - 0.85) / 0.15)

    gained = lack(lq_luma, 0.4) - lack(hq_luma, 0.4)
    return gained if gained > 0 else lack(lq_luma, 0.1) - lack(hq_luma, 0.1)


def _middle(pixels: Pixels) -> Pixels:
    """A window at full resolution, of the image's aspect. Its corner is anywhere: the grid of blocks may be too."""
    height, width = pixels.shape[:2]
    factor = min(1.0, float(np.sqrt(WORK_PIXELS / (height * width))))
    rows, columns = max(1, round(height * factor)), max(1, round(width * factor))
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[top : top + rows, left : left + columns]


def _overview(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    factor = min(1.0, 256 / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    overview: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return overview


def _grey(pixels: Pixels) -> Plane:
    grey: Plane = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return grey


def _noise(grey: Plane) -> float:
    """The larger of two estimates: at full size, and at half size for noise that demosaicking and coding smoothed.

    Texture that fills the image reads as noise; noise that a codec took from calm blocks alone is not seen.
    """
    half = cv2.resize(grey, (max(1, grey.shape[1] // 2), max(1, grey.shape[0] // 2)), interpolation=cv2.INTER_AREA)
    return max(_white_noise(grey), 2 * _white_noise(half))


def _white_noise(grey: Plane) -> float:
    """Immerkaer's estimate within blocks of 16 pixels, 10th percentile over blocks that are not clipped.

    The percentile of white noise lies a tenth below its mean, which is given back.
    """
    size = (max(1, grey.shape[1] // 16), max(1, grey.shape[0] // 16))
    response = cv2.absdiff(cv2.filter2D(grey, cv2.CV_32F, _IMMERKAER), 0.0)
    sigma = cv2.resize(response, size, interpolation=cv2.INTER_AREA) * float(1.1 * np.sqrt(np.pi / 2) / 6)
    mean = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    inside = (mean > 8) & (mean < 247)
    return float(np.percentile(sigma[inside] if inside.any() else sigma, 10))


def _edge_sigma(grey: Plane) -> float:
    """Blur of a step edge whose gradient energies at two scales stand in the ratio found; ringing reads as sharp.

    A step blurred by s has a gradient energy proportional to 1 / s, so energies at scales a < b give
    R = sqrt((s^2 + b^2) / (s^2 + a^2)), which is solved for s. White noise adds sigma^2 / (4 pi a^4) at scale a.
    """
    noise_codes = _white_noise(grey)
    fine = _gradient_energy(grey, _FINE_SIGMA_PX) - _noise_gradient(noise_codes, _FINE_SIGMA_PX)
    coarse = _gradient_energy(grey, _COARSE_SIGMA_PX) - _noise_gradient(noise_codes, _COARSE_SIGMA_PX)
    if fine <= 0 or coarse <= 0:
        return _WIDEST_PX
    squared = min((fine / coarse) ** 2, (_COARSE_SIGMA_PX / _FINE_SIGMA_PX) ** 2)
    if squared <= 1.0:
        return _WIDEST_PX
    variance = (_COARSE_SIGMA_PX**2 - squared * _FINE_SIGMA_PX**2) / (squared - 1)
    return float(min(_WIDEST_PX, np.sqrt(max(0.0, variance))))


def _gradient_energy(grey: Plane, sigma_px: float) -> float:
    smooth = cv2.GaussianBlur(grey, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
    dx, dy = smooth[:, 2:] - smooth[:, :-2], smooth[2:] - smooth[:-2]
    return float(sum(cv2.norm(part, cv2.NORM_L2SQR) / (4 * part.size) for part in (dx, dy) if part.size))


def _noise_gradient(noise_codes: float, sigma_px: float) -> float:
    """Expected `_gradient_energy` of white noise; the central difference itself smooths a little at small scales."""
    lag = np.exp(-1 / sigma_px**2)
    return float(noise_codes**2 / (4 * np.pi * sigma_px**2) * (1 - lag))


def _blockiness(grey: Plane) -> float:
    """Mean step at every 8th boundary over the mean of the others, less 1, at the strongest of 8 phases each way."""
    found = [_grid_excess(np.abs(np.diff(plane, axis=1)).mean(axis=0)) for plane in (grey, grey.T)]
    return float(np.mean(found))


def _grid_excess(steps: NDArray[np.float32]) -> float:
    if len(steps) < 32:
        return 0.0
    rows = steps[: len(steps) // 8 * 8].reshape(-1, 8)
    # Against the steps beside it, so that a strong edge of the scene does not pass for a grid.
    beside = (np.roll(steps, 1) + np.roll(steps, -1))[: rows.size].reshape(-1, 8) / 2
    excess = np.median((rows - beside) / (beside + 0.5), axis=0)
    return max(0.0, float(excess.max() - np.median(excess)))


def _veil(overview: Pixels) -> float:
    """10th percentile of the dark channel over a fifteenth of the overview; snow and white walls read as veil too."""
    side = max(3, max(overview.shape[:2]) // 17 | 1)
    darkest: NDArray[np.uint8] = cv2.erode(overview.min(axis=2), np.ones((side, side), np.uint8))
    return float(np.percentile(darkest, 10)) / 255
