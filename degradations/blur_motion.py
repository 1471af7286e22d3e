"""Camera shake: one path of the camera, one kernel for the whole photo, in linear light.

Source: Boracchi and Foi, "Modeling the performance of image restoration from motion blur", IEEE TIP 2012.
"""

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.blur import compress_planes, convolve_planes, expand_to_planes, path_psf
from pairforge.image import Image
from pairforge.rng import Rng, log_uniform

_PATH_STEPS = 2048
_SHAKE_MEMORY_S = 0.12
"""Time over which a hand keeps its direction: physiological tremor has its power below about 10 Hz."""
_MOST_PATH_FRAC = 0.5
"""Of the image width."""


class MotionBlurParams(Params):
    focal_ratio: float = Field(gt=0, le=20)
    """Focal length / image width."""
    speed_deg_s: float = Field(gt=0, le=90)
    """Mean angular speed of the camera."""
    exposure_s: float = Field(gt=0, le=60)
    tremor: float = Field(ge=0, le=1)
    """0: a straight drift; 1: a random walk without preferred direction."""
    highlight_gain: float = Field(ge=1, le=16)
    """Brightness of what the photo clipped, in units of white."""

    @model_validator(mode="after")
    def _check_length(self) -> "MotionBlurParams":
        length_frac = self.focal_ratio * math.radians(self.speed_deg_s) * self.exposure_s
        if length_frac > _MOST_PATH_FRAC:
            raise ValueError(f"a shake path of {length_frac:.3g} image widths; allowed are up to {_MOST_PATH_FRAC}")
        return self


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
    kick = math.sqrt(1 - keep * keep)
    heading = np.exp(2j * np.pi * rng.random())
    kicks = rng.standard_normal((_PATH_STEPS + 1, 2)).view(np.complex128)[:, 0] / math.sqrt(2)
    keeps = np.where(rng.random(_PATH_STEPS) < 1.5 * dt, -keep, keep).tolist()
    current = complex(kicks[0])
    walk = []
    for kept, pushed in zip(keeps, (kick * kicks[1:]).tolist(), strict=True):
        current = kept * current + (pushed if kept > 0 else -pushed)
        walk.append(current)
    velocity = (1 - tremor) * heading + tremor * np.array(walk)
    path = np.cumsum(velocity) / np.abs(velocity).sum()
    return np.stack([path.real, path.imag], axis=1)


def apply_motion_blur(image_lin: Image, params: MotionBlurParams, scene: Scene, rng: Rng) -> Rendered:
    """One PSF for the whole frame: rotation about the optical axis is left out.

    The path length is f * omega * T.
    """
    focal_px = params.focal_ratio * image_lin.shape[1]
    length_px = focal_px * math.radians(params.speed_deg_s) * params.exposure_s
    psf = path_psf(shake_path(params.exposure_s, params.tremor, rng) * length_px)
    planes = expand_to_planes(image_lin, params.highlight_gain)
    convolve_planes(planes, psf)
    blurred = compress_planes(planes, params.highlight_gain)
    realised = {"path_length_px": length_px, "psf_side_px": psf.shape[0]}
    return Rendered(blurred, image_lin, realised=realised)


MOTION_BLUR = Degradation(
    name="motion_blur",
    version=3,
    params_type=MotionBlurParams,
    sample=sample_motion_blur,
    apply=apply_motion_blur,
    space="linear",
    needs=frozenset(),
    source="Boracchi and Foi, IEEE TIP 2012, shake trajectories",
)
