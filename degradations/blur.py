"""Blur of one photo: camera shake, defocus, generalised Gaussian kernels. Blur of a clip: temporal_blur.py.

Sources: Boracchi and Foi, "Modeling the performance of image restoration from motion blur", IEEE TIP
2012 (shake); thin-lens circle of confusion; Wang et al., "Real-ESRGAN", ICCVW 2021, and Liu et al.,
"Estimating generalized Gaussian blur kernels", 2020 (generalised Gaussian).

Optical blur works in linear light, where light adds up. Clipped highlights are expanded before they are
spread, because a lamp that the photo stores as 1 was many times brighter, and compressed again after.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from degradations.base import Degradation, Depth, Params, Rendered, Scene
from pairforge.image import Image, Plane
from pairforge.rng import Rng, log_uniform

Psf = NDArray[np.float32]

_PATH_STEPS = 2048
_SHAKE_MEMORY_S = 0.12
"""Time over which a hand keeps its direction: physiological tremor has its power below about 10 Hz."""
_MAX_DEPTH_LAYERS = 12


def convolve(image: Image, psf: Psf) -> Image:
    """True convolution of every channel with an odd-sized PSF, borders mirrored (reflect-101)."""
    if psf.size == 1:
        return image
    # Above 11 x 11 OpenCV switches to tiled FFTs, which beat one FFT of the whole frame at every size.
    blurred: Image = cv2.filter2D(image, -1, cv2.flip(psf, -1), borderType=cv2.BORDER_REFLECT_101)
    return blurred


def _normalised(weights: NDArray[np.floating]) -> Psf:
    total = weights.sum(dtype=np.float64)
    psf: Psf = (weights / total).astype(np.float32)
    return psf


def expand_highlights(image_lin: Image, gain: float) -> Image:
    """Multiply by up to `gain` where all channels near 1, as clipping left them; a new array.

    The factor is 1 + (gain - 1) m^16 with m = min(R, G, B): there is no edge where it starts.
    """
    factor = np.clip(_least_channel(image_lin), np.float32(0), np.float32(1))
    for _ in range(4):
        factor *= factor
    factor *= np.float32(gain - 1)
    factor += np.float32(1)
    expanded: Image = cv2.multiply(image_lin, cv2.merge([factor, factor, factor]))
    return expanded


def compress_highlights(image_lin: Image, gain: float) -> Image:
    """Undo `expand_highlights`: what was not blurred is as it was, a spread lamp keeps its brightness."""
    steps = 65535
    dim = np.linspace(0, 1, 4097)
    bright = np.linspace(0, gain, steps + 1)
    bright[0] = bright[1]
    factors = (np.interp(bright, dim * (1 + (gain - 1) * dim**16), dim) / bright).astype(np.float32)
    index = np.clip(_least_channel(image_lin) * np.float32(steps / gain) + np.float32(0.5), 0, steps)
    factor = np.take(factors, index.astype(np.uint16))
    compressed: Image = cv2.multiply(image_lin, cv2.merge([factor, factor, factor]))
    return compressed


def _least_channel(image: Image) -> Plane:
    red, green, blue = cv2.split(image)
    least: Plane = cv2.min(cv2.min(red, green), blue)
    return least


# Camera shake


class MotionBlurParams(Params):
    focal_ratio: float = Field(gt=0)
    """Focal length / image width."""
    speed_deg_s: float = Field(gt=0)
    """Mean angular speed of the camera."""
    exposure_s: float = Field(gt=0)
    tremor: float = Field(ge=0, le=1)
    """0: a straight drift; 1: a random walk without preferred direction."""
    highlight_gain: float = Field(ge=1)
    """Brightness of what the photo clipped, in units of white."""


def sample_motion_blur(severity: float, rng: Rng) -> MotionBlurParams:
    length_frac = 0.002 * 32**severity * rng.uniform(0.85, 1.15)
    focal_ratio = log_uniform(rng, 0.8, 2.5)
    speed_deg_s = log_uniform(rng, 1.0, 4.0)
    return MotionBlurParams(
        focal_ratio=focal_ratio,
        speed_deg_s=speed_deg_s,
        exposure_s=length_frac / (focal_ratio * math.radians(speed_deg_s)),
        tremor=rng.uniform(0.2, 0.9),
        highlight_gain=rng.uniform(1.5, 4.0),
    )


def shake_path(exposure_s: float, tremor: float, rng: Rng) -> NDArray[np.float64]:
    """Points (N, 2), at equal times, of a shake path of length 1.

    After Boracchi and Foi: inertia, Gaussian kicks and rare impulses that reverse the velocity. Deviations:
    the rates are per second, so that a long exposure winds more than a short one; there is no pull to
    the start; and speed may vary along the path, which leaves the bright knots of measured kernels.
    """
    dt = exposure_s / _PATH_STEPS
    keep = math.exp(-dt / _SHAKE_MEMORY_S)
    heading = np.exp(2j * np.pi * rng.random())
    kicks = rng.standard_normal((_PATH_STEPS + 1, 2)).view(np.complex128)[:, 0] / math.sqrt(2)
    reverses = rng.random(_PATH_STEPS) < 1.5 * dt
    velocity = np.empty(_PATH_STEPS, complex)
    current = kicks[0]
    for step in range(_PATH_STEPS):
        current = keep * current + math.sqrt(1 - keep * keep) * kicks[step + 1]
        if reverses[step]:
            current = -current
        velocity[step] = current
    velocity = (1 - tremor) * heading + tremor * velocity
    path = np.cumsum(velocity) / np.abs(velocity).sum()
    return np.stack([path.real, path.imag], axis=1)


def path_psf(points_px: NDArray[np.float64]) -> Psf:
    """PSF of a path (N, 2) in x, y: equal weights, bilinear splats, sum 1, centroid on the middle pixel."""
    points = points_px - points_px.mean(axis=0)
    radius = math.ceil(float(np.abs(points).max())) + 1
    side = 2 * radius + 1
    base = np.floor(points).astype(np.int64)
    x_frac, y_frac = (points - base).T
    start = (base[:, 1] + radius) * side + base[:, 0] + radius
    psf = np.zeros(side * side)
    for offset, weight in (
        (0, (1 - x_frac) * (1 - y_frac)),
        (1, x_frac * (1 - y_frac)),
        (side, (1 - x_frac) * y_frac),
        (side + 1, x_frac * y_frac),
    ):
        psf += np.bincount(start + offset, weight, side * side)
    return _normalised(psf.reshape(side, side))


def apply_motion_blur(image_lin: Image, params: MotionBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """One PSF for the whole frame: rotation about the optical axis is left out.

    The path length is f * omega * T.
    """
    focal_px = params.focal_ratio * image_lin.shape[1]
    length_px = focal_px * math.radians(params.speed_deg_s) * params.exposure_s
    psf = path_psf(shake_path(params.exposure_s, params.tremor, rng) * length_px)
    blurred = convolve(expand_highlights(image_lin, params.highlight_gain), psf)
    blurred = compress_highlights(blurred, params.highlight_gain)
    realised = {"path_length_px": length_px, "psf_side_px": psf.shape[0]}
    return Rendered(blurred, image_lin, realised=realised)


MOTION_BLUR = Degradation(
    name="motion_blur",
    version=1,
    params_type=MotionBlurParams,
    sample=sample_motion_blur,
    apply=apply_motion_blur,
    space="linear",
    needs=frozenset(),
    source="Boracchi and Foi, IEEE TIP 2012, shake trajectories",
)


# Defocus


class DefocusBlurParams(Params):
    aperture_mm: float = Field(gt=0)
    """Diameter of the entrance pupil."""
    focus_m: float = Field(gt=0)
    blades: int = Field(ge=3)
    """Number of blades of the iris: corners of the polygon."""
    roundness: float = Field(ge=0, le=1)
    """0: straight blades; 1: a circle."""
    blade_angle_deg: float
    highlight_gain: float = Field(ge=1)
    """Brightness of what the photo clipped, in units of white."""


def sample_defocus_blur(severity: float, rng: Rng) -> DefocusBlurParams:
    """Aperture / focus distance, which is the blur of infinity in focal lengths, follows severity."""
    infinity_blur = 0.0015 * 18**severity * rng.uniform(0.9, 1.1)
    focus_m = log_uniform(rng, 0.7, min(3.0, 0.045 / infinity_blur))
    return DefocusBlurParams(
        aperture_mm=1000 * infinity_blur * focus_m,
        focus_m=focus_m,
        blades=int(rng.integers(5, 10)),
        roundness=rng.uniform(0.1, 0.8),
        blade_angle_deg=rng.uniform(0, 360),
        highlight_gain=rng.uniform(1.5, 4.0),
    )


def aperture_psf(diameter_px: float, blades: int = 6, roundness: float = 1.0, angle_deg: float = 0.0) -> Psf:
    """Image of the iris: a regular polygon in a circle of `diameter_px`, edges area-sampled, sum 1.

    Below 2 px, where area sampling would soon give a single pixel, the PSF of 2 px is mixed with no blur
    at all so that the second moment still follows the diameter.
    """
    if diameter_px < 0.05:
        return np.ones((1, 1), np.float32)
    if diameter_px < 2:
        share = np.float32((diameter_px / 2) ** 2)
        psf = share * aperture_psf(2.0, blades, roundness, angle_deg)
        psf[1, 1] += 1 - share
        return psf
    oversampling = 5
    radius = math.ceil(diameter_px / 2 - 0.5)
    side = (2 * radius + 1) * oversampling
    axis = (np.arange(side, dtype=np.float32) - (side - 1) / 2) / oversampling
    rho = np.hypot(axis[None, :], axis[:, None])
    sector = 2 * np.pi / blades
    phi = np.arctan2(axis[:, None], axis[None, :]) - math.radians(angle_deg)
    polygon = math.cos(sector / 2) / np.cos(np.mod(phi, sector) - sector / 2)
    edge = (roundness + (1 - roundness) * polygon) * (diameter_px / 2)
    inside = np.clip((edge - rho) * oversampling + 0.5, 0, 1)
    psf = inside.reshape(2 * radius + 1, oversampling, 2 * radius + 1, oversampling).sum(axis=(1, 3))
    return _normalised(psf)


def signed_blur_px(depth: Depth, aperture_mm: float, focus_m: float) -> Plane:
    """Diameter of the circle of confusion, f A (1/z - 1/z_f): positive in front of the focus plane."""
    scale = depth.focal_px * aperture_mm / 1000
    blur: Plane = cv2.divide(np.float32(scale), depth.z_m) - np.float32(scale / focus_m)
    return blur


def apply_defocus_blur(image_lin: Image, params: DefocusBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """Depth layers, blurred with premultiplied alpha and composited from far to near.

    Layers are even in blur diameter and every pixel is shared between its two nearest, so a ramp shows
    no steps. What a blurred edge uncovers is filled from the surroundings by normalisation. The layer
    `blur_diameter` holds |c(z)| in 1/256 px.
    """
    assert scene.depth is not None
    blur_px = signed_blur_px(scene.depth, params.aperture_mm, params.focus_m)
    assert blur_px.shape == image_lin.shape[:2], f"depth {blur_px.shape} for an image {image_lin.shape}"
    low, high = float(blur_px.min()), float(blur_px.max())
    step_px = max(1.0, 0.06 * max(-low, high))
    count = min(_MAX_DEPTH_LAYERS, 1 + math.ceil((high - low) / step_px))
    diameters = np.linspace(low, high, count) if count > 1 else np.array([(low + high) / 2])
    position = (blur_px - np.float32(low)) * np.float32((count - 1) / max(high - low, 1e-6))
    light = expand_highlights(image_lin, params.highlight_gain)
    height, width = blur_px.shape
    mixed = np.zeros((height, width, 4), np.float32)
    for index, diameter in enumerate(diameters):
        alpha = np.maximum(np.float32(1) - np.abs(position - np.float32(index)), np.float32(0))
        psf = aperture_psf(abs(diameter), params.blades, params.roundness, params.blade_angle_deg)
        x, y, box_width, box_height = cv2.boundingRect((alpha > 0).view(np.uint8))
        if box_width == 0:
            continue
        # One pixel more than the kernel reaches: mirroring at the edge of the box then finds zeros.
        margin = psf.shape[0] // 2 + 1
        box = np.s_[max(y - margin, 0) : y + box_height + margin, max(x - margin, 0) : x + box_width + margin]
        cut = alpha[box]
        red, green, blue = cv2.split(light[box])
        layer = convolve(cv2.merge([red * cut, green * cut, blue * cut, cut]), psf)
        behind = np.float32(1) - cv2.extractChannel(layer, 3)
        mixed[box] = cv2.multiply(mixed[box], cv2.merge([behind] * 4)) + layer
    red, green, blue, alpha = cv2.split(mixed)
    np.maximum(alpha, np.float32(1e-6), out=alpha)
    blurred: Image = cv2.merge([red / alpha, green / alpha, blue / alpha])
    blurred = compress_highlights(blurred, params.highlight_gain)
    stored = np.minimum(np.abs(blur_px) * 256 + 0.5, 65535).astype(np.uint16)
    realised = {"blur_min_px": low, "blur_max_px": high, "depth_layers": count}
    return Rendered(blurred, image_lin, {"blur_diameter": stored}, realised)


DEFOCUS_BLUR = Degradation(
    name="defocus_blur",
    version=1,
    params_type=DefocusBlurParams,
    sample=sample_defocus_blur,
    apply=apply_defocus_blur,
    space="linear",
    needs=frozenset({"depth"}),
    source="thin lens, circle of confusion f A |1/z - 1/z_f|",
)


# Generalised Gaussian


class GaussianBlurParams(Params):
    sigma_x_px: float = Field(gt=0)
    sigma_y_px: float = Field(gt=0)
    angle_deg: float
    beta: float = Field(gt=0)
    """Shape: 1 is Gaussian, less has a sharper peak and longer tails, more is flatter."""


def sample_gaussian_blur(severity: float, rng: Rng) -> GaussianBlurParams:
    sigma_px = 0.45 * 11.5**severity * rng.uniform(0.9, 1.1)
    ratio = rng.uniform(0.35, 0.95)
    return GaussianBlurParams(
        sigma_x_px=sigma_px / math.sqrt(ratio),
        sigma_y_px=sigma_px * math.sqrt(ratio),
        angle_deg=rng.uniform(0, 180),
        beta=log_uniform(rng, 0.7, 2.5),
    )


def gaussian_psf(sigma_x_px: float, sigma_y_px: float, angle_deg: float, beta: float) -> Psf:
    """exp(-d^beta / 2) with d the squared Mahalanobis radius, at pixel centres, sum 1.

    As large as the kernel needs to fall to 1e-4 of its peak, not the 7 to 21 px of Real-ESRGAN, so that
    the recorded sigma is the sigma that acts.
    """
    radius = math.ceil(max(sigma_x_px, sigma_y_px) * (2 * math.log(1e4)) ** (0.5 / beta))
    axis = np.arange(-radius, radius + 1, dtype=np.float32)
    angle = math.radians(angle_deg)
    along = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    across = math.cos(angle) * axis[:, None] - math.sin(angle) * axis[None, :]
    distance = (along / sigma_x_px) ** 2 + (across / sigma_y_px) ** 2
    psf = np.exp(-0.5 * distance**beta)
    return _normalised(psf)


def apply_gaussian_blur(image: Image, params: GaussianBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """Acts on code values, as the super-resolution literature does."""
    psf = gaussian_psf(params.sigma_x_px, params.sigma_y_px, params.angle_deg, params.beta)
    return Rendered(convolve(image, psf), image)


GAUSSIAN_BLUR = Degradation(
    name="gaussian_blur",
    version=1,
    params_type=GaussianBlurParams,
    sample=sample_gaussian_blur,
    apply=apply_gaussian_blur,
    space="srgb",
    needs=frozenset(),
    source="Wang et al., Real-ESRGAN, ICCVW 2021, generalised Gaussian kernels",
)
