"""Does HQ show the scene of LQ, at the same place, in the same colours? Numbers by name, and limits on them.

Both images are compared after a normalisation that takes out exposure and veils: grey minus its local mean, divided
by its standard deviation. All work is done at a bounded size; every length is given in pixels of the input.

Sources: phase correlation (Kuglin and Hines, 1975) with the sub-pixel centroid of OpenCV; ECC (Evangelidis and
Psarakis, TPAMI 2008); DIS optical flow (Kroeger et al., ECCV 2016); structure term of SSIM (Wang et al., 2004);
CIE 1976 colour difference. Deviation: a wide local mean stands where others equalise histograms.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pairforge.image import Pixels, Plane
from pairforge.records import Frozen

WORK_SIDE_PX = 512
"""Longer side at which images are compared; enough for errors of a third of a pixel at twice that size."""
_LEAST_SIDE_PX = 64
_LOCAL_MEAN_SIGMA_PX = 16.0
_FLAT_CODES = 0.3
"""Standard deviation below which there is nothing but rounding to compare."""
_FLOW_SIDE_PX = 384
_EDGE_REACH_PX = 2.0
_BLOCK_CONTRAST = 0.15
"""Least variance of a block that counts, as a share of that of the whole image."""


def measure_alignment(lq: Pixels, hq: Pixels) -> dict[str, float]:
    """How HQ lies on LQ, both (H, W, 3). Never NaN. Raises ValueError where the shapes differ.

    phase_response: 0..1, height of the correlation peak; unrelated images are near 0
    phase_x_px, phase_y_px: shift of HQ against LQ at that peak
    ecc_correlation: -1..1 after the best shift and rotation, 0 where the search did not end
    ecc_shift_px, ecc_rotation_deg: of that best fit, at the centre of the image
    flow_median_px, flow_p95_px: local motion, the shift included, over pixels with texture in both
    textured_frac: share of such pixels; flow of fewer than 1 % is given as 0
    What follows is measured after that fit:
    edge_precision: share of HQ's edges that LQ has within 2 working pixels; low where something was added
    edge_recall: share of LQ's edges that HQ has; low where something was removed, or LQ is noisy
    edge_distance_px: symmetric mean distance between edges, capped at 10 working pixels
    structure: median over blocks of the correlation of normalised LQ and HQ
    structure_lost_frac: share of blocks that correlate by less than 0.4
    colour_delta_e: mean CIE 1976 difference after a wide blur
    hue_delta_e: the same without lightness, after the best common factor of chroma
    """
    if lq.shape != hq.shape:
        raise ValueError(f"LQ of shape {lq.shape} and HQ of shape {hq.shape} cannot lie on each other")
    small_lq, small_hq = _at_work_size(lq), _at_work_size(hq)
    scale_px = max(lq.shape[:2]) / max(_resized_shape(lq))
    numbers = colour_differences(small_lq, small_hq)
    plane_lq, plane_hq = _normalised(small_lq), _normalised(small_hq)
    phase, response = _phase_shift(plane_lq, plane_hq)
    fit, correlation = _best_fit(plane_lq, plane_hq, phase if response >= 0.05 else (0.0, 0.0))
    numbers |= {
        "phase_response": response,
        "phase_x_px": phase[0] * scale_px,
        "phase_y_px": phase[1] * scale_px,
        "ecc_correlation": correlation,
        "ecc_shift_px": _centre_shift(fit, plane_lq.shape) * scale_px,
        "ecc_rotation_deg": abs(float(np.degrees(np.arctan2(fit[1, 0], fit[0, 0])))),
    }
    numbers |= _flow(plane_lq, plane_hq, scale_px)
    laid_hq = _laid_on(plane_hq, fit, correlation)
    return numbers | _structure(plane_lq, laid_hq) | _edges(plane_lq, laid_hq, scale_px)


class AlignmentLimits(Frozen):
    """When a pair is broken. Lengths are shares of the longer side, so that one limit serves every size."""

    least_phase_response: float = Field(
        0.1, ge=0, le=1, description="height of the correlation peak; below it the images have nothing in common"
    )
    most_shift_frac: float = Field(0.0015, ge=0, description="shift of the whole image")
    most_rotation_deg: float = Field(0.15, ge=0, description="rotation of the whole image")
    most_flow_median_frac: float = Field(0.0015, ge=0, description="local motion, median over pixels with texture")
    most_flow_p95_frac: float = Field(0.006, ge=0, description="local motion, 95th percentile over the same pixels")
    most_structure_lost_frac: float = Field(
        0.15, ge=0, le=1, description="share of blocks that do not show what they showed before"
    )

    def broken(self, numbers: Mapping[str, float], longer_side_px: int) -> tuple[str, ...]:
        """Names of the limits that `numbers` of `measure_alignment` break, in a fixed order."""
        if numbers["phase_response"] < self.least_phase_response:
            return ("nothing_in_common",)  # two scenes, or too little left of one: other numbers would say nothing
        checks = {
            "shifted": numbers["ecc_shift_px"] > self.most_shift_frac * longer_side_px,
            "rotated": numbers["ecc_rotation_deg"] > self.most_rotation_deg,
            "warped": numbers["flow_median_px"] > self.most_flow_median_frac * longer_side_px
            or numbers["flow_p95_px"] > self.most_flow_p95_frac * longer_side_px,
            "content_changed": numbers["structure_lost_frac"] > self.most_structure_lost_frac,
        }
        return tuple(name for name, is_broken in checks.items() if is_broken)


def _resized_shape(image: Pixels) -> tuple[int, int]:
    height, width = image.shape[:2]
    factor = min(1.0, WORK_SIDE_PX / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _at_work_size(image: Pixels) -> Pixels:
    """At most WORK_SIDE_PX; what is narrower than the operators below is continued by its border."""
    height, width = _resized_shape(image)
    small: Pixels = image
    if (height, width) != image.shape[:2]:
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    below, right = max(0, _LEAST_SIDE_PX - height), max(0, _LEAST_SIDE_PX - width)
    if below or right:
        small = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_REPLICATE)
    return small


def _normalised(image: Pixels) -> Plane:
    """Grey minus its wide local mean, divided by its standard deviation; 0 for a flat image."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    # The mean is smooth: a quarter of the size is enough for it.
    height, width = grey.shape
    quarter = cv2.resize(grey, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    quarter = cv2.GaussianBlur(quarter, (0, 0), _LOCAL_MEAN_SIGMA_PX / 4, borderType=cv2.BORDER_REFLECT)
    grey -= cv2.resize(quarter, (width, height), interpolation=cv2.INTER_LINEAR)
    spread = float(cv2.meanStdDev(grey)[1][0, 0])
    plane: Plane = grey * np.float32(1.0 / spread if spread > _FLAT_CODES else 0.0)
    return plane


def _phase_shift(plane_lq: Plane, plane_hq: Plane) -> tuple[tuple[float, float], float]:
    if not plane_lq.any() or not plane_hq.any():
        return (0.0, 0.0), 0.0
    window = cv2.createHanningWindow((plane_lq.shape[1], plane_lq.shape[0]), cv2.CV_32F)
    (x, y), response = cv2.phaseCorrelate(plane_lq, plane_hq, window)
    return (float(x), float(y)), float(np.clip(response, 0.0, 1.0))


def _best_fit(plane_lq: Plane, plane_hq: Plane, start: tuple[float, float]) -> tuple[NDArray[np.float32], float]:
    """2 x 3 matrix of the rotation and shift that lay HQ on LQ, and the correlation there; 0 where none was found."""
    fit = np.array([[1, 0, start[0]], [0, 1, start[1]]], np.float32)
    fine = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 1e-4)
    try:
        correlation, fit = cv2.findTransformECC(plane_lq, plane_hq, fit, cv2.MOTION_EUCLIDEAN, fine, None, 5)
    except cv2.error:  # what it raises where images have nothing in common
        return fit, 0.0
    return fit, float(correlation) if np.isfinite(correlation) and np.isfinite(fit).all() else 0.0


def _centre_shift(fit: NDArray[np.float32], shape: tuple[int, ...]) -> float:
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    moved_x = fit[0, 0] * x + fit[0, 1] * y + fit[0, 2] - x
    moved_y = fit[1, 0] * x + fit[1, 1] * y + fit[1, 2] - y
    return float(np.hypot(moved_x, moved_y))


def _laid_on(plane: Plane, fit: NDArray[np.float32], correlation: float) -> Plane:
    """`plane` after the best fit, so that a shift does not pass for a change of content; itself where none is sure."""
    if correlation < 0.3:
        return plane
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid: Plane = cv2.warpAffine(plane, fit, plane.shape[::-1], flags=how, borderMode=cv2.BORDER_REPLICATE)
    return laid


def _structure(plane_lq: Plane, plane_hq: Plane) -> dict[str, float]:
    """Correlation within blocks of 16 pixels after a slight blur, over blocks with contrast in either image."""
    lq, hq = (cv2.GaussianBlur(plane, (0, 0), 1.5) for plane in (plane_lq, plane_hq))
    size = (max(1, lq.shape[1] // 16), max(1, lq.shape[0] // 16))

    def mean(plane: Plane) -> Any:
        return cv2.resize(plane, size, interpolation=cv2.INTER_AREA)

    mean_lq, mean_hq = mean(lq), mean(hq)
    variance_lq = mean(lq * lq) - mean_lq * mean_lq
    variance_hq = mean(hq * hq) - mean_hq * mean_hq
    counted = np.maximum(variance_lq, variance_hq) > _BLOCK_CONTRAST
    if not counted.any():
        return {"structure": 0.0, "structure_lost_frac": 0.0}
    covariance = (mean(lq * hq) - mean_lq * mean_hq)[counted]
    correlation = covariance / np.sqrt(np.maximum(variance_lq * variance_hq, 0)[counted] + 1e-4)
    return {
        "structure": float(np.median(correlation)),
        "structure_lost_frac": float((correlation < 0.4).mean()),
    }


def _flow(plane_lq: Plane, plane_hq: Plane, scale_px: float) -> dict[str, float]:
    factor = min(1.0, _FLOW_SIDE_PX / max(plane_lq.shape))
    if factor < 1.0:
        size = (max(32, round(plane_lq.shape[1] * factor)), max(32, round(plane_lq.shape[0] * factor)))
        plane_lq, plane_hq = (cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (plane_lq, plane_hq))
    lq, hq = (cv2.GaussianBlur(plane, (0, 0), 1.0) for plane in (plane_lq, plane_hq))
    textured = cv2.min(_contrast(lq), _contrast(hq)) > 0.35
    codes_lq, codes_hq = (((np.clip(plane, -3, 3) + 3) * (255 / 6)).astype(np.uint8) for plane in (lq, hq))
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow = search.calc(codes_lq, codes_hq, None)
    length_px = cv2.magnitude(flow[..., 0], flow[..., 1])[textured] * (scale_px / factor)
    frac = float(textured.mean())
    median, p95 = np.percentile(length_px, (50, 95)) if frac >= 0.01 else (0.0, 0.0)
    return {"flow_median_px": float(median), "flow_p95_px": float(p95), "textured_frac": frac}


def _contrast(plane: Plane) -> Plane:
    """Standard deviation within 9 pixels."""
    mean = cv2.blur(plane, (9, 9))
    spread: Plane = cv2.sqrt(cv2.max(cv2.blur(plane * plane, (9, 9)) - mean * mean, 0.0))
    return spread


def _edges(plane_lq: Plane, plane_hq: Plane, scale_px: float) -> dict[str, float]:
    edges_lq, edges_hq = _edge_map(plane_lq), _edge_map(plane_hq)
    if not edges_lq.any() or not edges_hq.any():
        same = float(edges_lq.any() == edges_hq.any())
        return {"edge_precision": same, "edge_recall": same, "edge_distance_px": 10.0 * scale_px * (1 - same)}
    to_lq, to_hq = _distances(edges_lq)[edges_hq > 0], _distances(edges_hq)[edges_lq > 0]
    return {
        "edge_precision": float((to_lq <= _EDGE_REACH_PX).mean()),
        "edge_recall": float((to_hq <= _EDGE_REACH_PX).mean()),
        "edge_distance_px": float((np.minimum(to_lq, 10).mean() + np.minimum(to_hq, 10).mean()) / 2) * scale_px,
    }


def _edge_map(plane: Plane) -> NDArray[np.uint8]:
    """Thin edges: Canny at a scale that noise and blocking reach little, thresholds by the image's own gradients."""
    smooth = cv2.GaussianBlur(plane, (0, 0), 2.0)
    dx = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=64)
    dy = cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=64)
    high = float(np.percentile(np.abs(dx[::4, ::4]) + np.abs(dy[::4, ::4]), 90))
    edges: NDArray[np.uint8] = cv2.Canny(
        np.clip(dx, -32000, 32000).astype(np.int16), np.clip(dy, -32000, 32000).astype(np.int16), high / 2, max(high, 8)
    )
    return edges


def _distances(edges: NDArray[np.uint8]) -> Plane:
    plane: Plane = cv2.distanceTransform(255 - edges, cv2.DIST_L2, 3)
    return plane


def colour_differences(lq: Pixels, hq: Pixels) -> dict[str, float]:
    """Of colours blurred over a sixteenth of the short side, in CIELAB."""
    lab_lq, lab_hq = _low_lab(lq), _low_lab(hq)
    difference = lab_hq - lab_lq
    delta_e = float(np.sqrt((difference * difference).sum(axis=2)).mean())
    ab_lq, ab_hq = lab_lq[..., 1:], lab_hq[..., 1:]
    power = float((ab_lq * ab_lq).sum())
    # Haze and darkness take chroma away by one factor; giving it back is no change of hue.
    factor = min(4.0, max(1.0, float((ab_lq * ab_hq).sum()) / power)) if power > 0 else 1.0
    rest = ab_hq - factor * ab_lq
    return {"colour_delta_e": delta_e, "hue_delta_e": float(np.sqrt((rest * rest).sum(axis=2)).mean())}


def _low_lab(image: Pixels) -> NDArray[np.float32]:
    height, width = image.shape[:2]
    factor = min(1.0, 64 / min(height, width))
    size = (max(1, min(512, round(width * factor))), max(1, min(512, round(height * factor))))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) * np.float32(1 / 255)
    small = cv2.GaussianBlur(small, (0, 0), max(0.5, min(size) / 16), borderType=cv2.BORDER_REPLICATE)
    lab: NDArray[np.float32] = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    return lab
