"""Reflection in a window or a glass door between camera and scene.

Light model: I = T(theta) tau_c J + kappa (h * R), with J the scene behind the glass, R the scene in front
of it, T and h the Fresnel transmittance and reflections of the pane at the angle theta at which the ray
of each pixel meets it, h the two faces of the pane as displaced impulses. All of it in linear light.

Sources: Fresnel equations, both polarisations; Shih et al., "Reflection removal using ghosting cues",
CVPR 2015 (ghost kernel); Zhang et al., "Single image reflection separation with perceptual losses", CVPR
2018 (the task). Deviations: the reflected scene is one plane at one distance; absorption in the glass
acts on the transmitted light only; reflections after the second inside a pane are added to the second.
"""

import math

import cv2
import numpy as np
from pydantic import Field

from degradations.base import Degradation, Params, Rendered, Scene
from degradations.blur import aperture_psf, convolve, expand_highlights
from pairforge.image import Image, Pixels, Plane, luminance, pixels_to_linear
from pairforge.rng import Rng, log_uniform

REFRACTIVE_INDEX = 1.52
"""Soda-lime glass."""
_ABSORPTION_RGB = (1.0, 0.35, 0.7)
"""Relative absorbance of soda-lime glass, whose iron makes it green."""
_WIEN_RED_PER_MIRED = 14388e-6 * (1 / 0.55 - 1 / 0.61)
_WIEN_BLUE_PER_MIRED = 14388e-6 * (1 / 0.55 - 1 / 0.465)
"""Wien's law: log radiance of red (0.61 um) and blue (0.465 um) against green (0.55 um) per mired."""


class ReflectionParams(Params):
    kappa: float = Field(ge=0)
    """Mean irradiance of the reflected scene / mean irradiance of the scene behind the glass."""
    incidence_deg: float = Field(ge=0, le=80)
    """Angle between the optical axis and the normal of the glass."""
    roll_deg: float
    """Direction, in the image, in which the normal leans."""
    focal_ratio: float = Field(gt=0)
    """Focal length / image width."""
    thickness_mm: float = Field(gt=0)
    wedge_mrad: float
    """Angle between the faces of the pane, which parts the ghosts even of distant things."""
    distance_m: float = Field(gt=0)
    """Camera to glass to reflected scene."""
    focus_m: float = Field(gt=0)
    aperture_mm: float = Field(gt=0)
    absorbance: float = Field(ge=0)
    """Natural-log absorbance of the glass in red; green and blue lose less."""
    mired_shift: float
    """Colour of the reflected light against that of the scene; positive is warmer."""
    highlight_gain: float = Field(ge=1)
    """Brightness of what the second photo clipped, in units of its white."""
    zoom: float = Field(ge=1)
    """Scale of the second photo beyond what covers the frame."""
    crop_x: float = Field(ge=0, le=1)
    """Place of the cut in the second photo: 0 is its left edge, 1 its right edge."""
    crop_y: float = Field(ge=0, le=1)
    """0 is its top, 1 its bottom."""


class DoublePaneReflectionParams(ReflectionParams):
    gap_mm: float = Field(gt=0)
    """Air between the panes."""
    pane_tilt_mrad: float
    """Angle between the panes."""


def sample_reflection(severity: float, rng: Rng) -> ReflectionParams:
    return ReflectionParams(
        kappa=0.3 * 20**severity * rng.uniform(0.85, 1.15),
        incidence_deg=6 + 44 * severity + rng.uniform(-4, 4),
        # Panes stand upright: mostly the camera is turned sideways to them.
        roll_deg=180 * float(rng.integers(2)) + rng.normal(0, 20),
        focal_ratio=log_uniform(rng, 0.8, 2.0),
        thickness_mm=rng.uniform(3, 10),
        wedge_mrad=rng.uniform(0.1, 1.2),
        distance_m=log_uniform(rng, 1.0, 30),
        focus_m=log_uniform(rng, 1.5, 15),
        aperture_mm=log_uniform(rng, 1.5, 10),
        absorbance=rng.uniform(0.01, 0.15),
        mired_shift=rng.uniform(-90, 120),
        highlight_gain=rng.uniform(1.2, 4.0),
        zoom=rng.uniform(1.05, 1.6),
        crop_x=rng.random(),
        crop_y=rng.random(),
    )


def sample_double_pane_reflection(severity: float, rng: Rng) -> DoublePaneReflectionParams:
    pane = sample_reflection(severity, rng)
    return DoublePaneReflectionParams(
        **pane.model_dump(), gap_mm=rng.uniform(12, 20), pane_tilt_mrad=rng.uniform(0.2, 3.0)
    )


def incidence_cosine(height: int, width: int, focal_px: float, incidence_deg: float, roll_deg: float) -> Plane:
    """Cosine (H, W) of the angle between each pixel's ray and the normal of the glass, at least 0.03."""
    lean = math.sin(math.radians(incidence_deg)) / focal_px
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32((height - 1) / 2)
    along = x * np.float32(lean * math.cos(math.radians(roll_deg)))
    along = along + y * np.float32(lean * math.sin(math.radians(roll_deg)))
    along += np.float32(math.cos(math.radians(incidence_deg)))
    along /= np.sqrt(1 + (x / np.float32(focal_px)) ** 2 + (y / np.float32(focal_px)) ** 2)
    cosine: Plane = np.clip(along, np.float32(0.03), np.float32(1))
    return cosine


def _inside_root(cosine: Plane) -> Plane:
    """n cos(theta') = sqrt(n^2 - sin^2 theta)."""
    root: Plane = np.sqrt(cosine * cosine + np.float32(REFRACTIVE_INDEX**2 - 1))
    return root


def _sine(cosine: Plane) -> Plane:
    sine: Plane = np.sqrt(np.maximum(np.float32(1) - cosine * cosine, np.float32(0)))
    return sine


def fresnel(cosine: Plane) -> tuple[Plane, Plane]:
    """Reflectance of one air-glass face for s and p polarisation."""
    root = _inside_root(cosine)
    slow = cosine * np.float32(REFRACTIVE_INDEX**2)
    return ((cosine - root) / (cosine + root)) ** 2, ((slow - root) / (slow + root)) ** 2


def slab(reflectance: Plane) -> Plane:
    """Reflectance of two equal, parallel partial mirrors: 2R / (1 + R), all inner reflections added."""
    return np.float32(2) * reflectance / (np.float32(1) + reflectance)


def ghost_offset(cosine: Plane) -> Plane:
    """Lateral offset of the ray from the second face, in pane thicknesses: sin 2theta / sqrt(n^2 - sin^2)."""
    return np.float32(2) * _sine(cosine) * cosine / _inside_root(cosine)


def reflected_scene(second: Pixels, height: int, width: int, zoom: float, crop_x: float, crop_y: float) -> Image:
    """Linear light of the second photo: scaled to cover the frame, cropped, mirrored as in a mirror."""
    second_height, second_width = second.shape[:2]
    scale = max(width / second_width, height / second_height) * zoom
    left = (second_width - width / scale) * crop_x
    top = (second_height - height / scale) * crop_y
    x, y = math.floor(left), math.floor(top)
    cut = second[y : math.ceil(top + height / scale) + 1, x : math.ceil(left + width / scale) + 1]
    light = pixels_to_linear(cut)
    x_scale = y_scale = 1.0
    if scale < 1:
        size = (max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale)))
        light = cv2.resize(light, size, interpolation=cv2.INTER_AREA)
        x_scale, y_scale = size[0] / cut.shape[1], size[1] / cut.shape[0]
    to_source = np.array(
        [
            [-x_scale / scale, 0, ((width - 0.5) / scale + left - x) * x_scale - 0.5],
            [0, y_scale / scale, (0.5 / scale + top - y) * y_scale - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    framed: Image = cv2.warpAffine(light, to_source, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return framed


def _grey_scaled(image: Image, plane: Plane) -> Image:
    scaled: Image = cv2.multiply(image, cv2.merge([plane, plane, plane]))
    return scaled


def _displaced(image: Image, shift_px: Plane, roll_deg: float) -> Image:
    """Content moved by `shift_px` (H, W) in the direction `roll_deg`."""
    height, width = shift_px.shape
    x = np.arange(width, dtype=np.float32) - shift_px * np.float32(math.cos(math.radians(roll_deg)))
    y = np.arange(height, dtype=np.float32)[:, None] - shift_px * np.float32(math.sin(math.radians(roll_deg)))
    moved: Image = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return moved


def pane_optics(
    cosine: Plane, params: ReflectionParams, focal_px: float
) -> tuple[Plane, list[tuple[Plane, Plane | None]]]:
    """Transmittance (H, W) and the ghosts: weight and shift in px (H, W), None for no shift.

    Transmittance and weights add up to 1 at every pixel. Unpolarised light; slabs are summed for each
    polarisation and then averaged. Offsets become pixels by f / distance, a wedge w of the glass adds
    2 n w f and a tilt between panes 2 w f.
    """
    faces = fresnel(cosine)
    panes = [slab(face) for face in faces]
    ghost_px = ghost_offset(cosine) * np.float32(focal_px * params.thickness_mm / 1000 / params.distance_m)
    ghost_px += np.float32(2 * REFRACTIVE_INDEX * params.wedge_mrad / 1000 * focal_px)
    half, one = np.float32(0.5), np.float32(1)
    first, pane = half * (faces[0] + faces[1]), half * (panes[0] + panes[1])
    ghosts: list[tuple[Plane, Plane | None]] = [(first, None), (pane - first, ghost_px)]
    if not isinstance(params, DoublePaneReflectionParams):
        return one - pane, ghosts
    windows = [slab(pane) for pane in panes]
    gap_px = _sine(cosine) * np.float32(2 * focal_px * params.gap_mm / 1000 / params.distance_m)
    gap_px += ghost_px + np.float32(2 * params.pane_tilt_mrad / 1000 * focal_px)
    # What the inner pane sends back is (1 - R) / (1 + R) of what the outer one does.
    share_s, share_p = (one - panes[0]) / (one + panes[0]), (one - panes[1]) / (one + panes[1])
    inner_first: Plane = np.multiply(half, share_s * faces[0] + share_p * faces[1], dtype=np.float32)
    inner_all: Plane = np.multiply(half, share_s * panes[0] + share_p * panes[1], dtype=np.float32)
    ghosts += [(inner_first, gap_px), (inner_all - inner_first, gap_px + ghost_px)]
    return one - half * (windows[0] + windows[1]), ghosts


def colour_gains(mired_shift: float) -> tuple[float, float, float]:
    """RGB gains of a shift of colour temperature by Wien's law, at equal luminance."""
    red = math.exp(_WIEN_RED_PER_MIRED * mired_shift)
    blue = math.exp(_WIEN_BLUE_PER_MIRED * mired_shift)
    level = 0.2126 * red + 0.7152 + 0.0722 * blue
    return red / level, 1 / level, blue / level


def _highlight_level(image_lin: Image) -> float:
    step = max(1, min(image_lin.shape[:2]) // 256)
    sampled = luminance(np.ascontiguousarray(image_lin[::step, ::step]))
    return max(float(np.quantile(sampled, 0.95)), 1e-4)


def apply_reflection(image_lin: Image, params: ReflectionParams, scene: Scene, rng: Rng) -> Rendered:
    """Target: what the glass lets through, at the exposure of the photo.

    Exposure is automatic: one gain for both layers, which brings the 95th percentile of luminance of the
    mixture to that of the input, so that the photo keeps its intended brightness (lamps may
    clip). The layer `reflection` holds the reflected light as exposed, linear, 65535 = 1.
    """
    assert scene.second is not None
    height, width = image_lin.shape[:2]
    focal_px = params.focal_ratio * width
    other = reflected_scene(scene.second, height, width, params.zoom, params.crop_x, params.crop_y)
    other = expand_highlights(other, params.highlight_gain)
    # A darker second photo stays darker: raised further, its 8-bit steps would show.
    other_mean = max(float(luminance(other).mean()), 0.05)
    level = params.kappa * float(luminance(image_lin).mean()) / other_mean
    gains = np.array(colour_gains(params.mired_shift), np.float32) * np.float32(level)
    defocus_px = focal_px * params.aperture_mm / 1000 * abs(1 / params.distance_m - 1 / params.focus_m)
    other = convolve(cv2.transform(other, np.diag(gains)), aperture_psf(defocus_px))

    cosine = incidence_cosine(height, width, focal_px, params.incidence_deg, params.roll_deg)
    transmittance, ghosts = pane_optics(cosine, params, focal_px)
    reflection = np.zeros_like(image_lin)
    for weight, shift_px in ghosts:
        ghost = other if shift_px is None else _displaced(other, shift_px, params.roll_deg)
        reflection += _grey_scaled(ghost, weight)
    tints = [np.float32(math.exp(-params.absorbance * share)) for share in _ABSORPTION_RGB]
    behind = cv2.multiply(image_lin, cv2.merge([transmittance * tint for tint in tints]))

    gain = _highlight_level(image_lin) / _highlight_level(behind + reflection)
    behind *= np.float32(gain)
    reflection *= np.float32(gain)
    ratio = cv2.divide(luminance(reflection), luminance(behind) + np.float32(1e-4))
    stored = np.clip(reflection * np.float32(65535) + np.float32(0.5), 0, 65535).astype(np.uint16)
    middle = (height // 2, width // 2)
    realised = {
        "exposure_gain": gain,
        "defocus_px": defocus_px,
        "reflectance": 1 - float(transmittance[middle]),
        "ghost_shifts_px": [0.0 if shift is None else float(shift[middle]) for _, shift in ghosts],
        "reflection_ratio_p90": float(np.quantile(ratio[::4, ::4], 0.9)),
    }
    return Rendered(behind + reflection, behind, {"reflection": stored}, realised)


REFLECTION = Degradation(
    name="reflection",
    version=1,
    params_type=ReflectionParams,
    sample=sample_reflection,
    apply=apply_reflection,
    space="linear",
    needs=frozenset({"second"}),
    source="Fresnel slab per polarisation; ghosts after Shih et al., CVPR 2015",
)

DOUBLE_PANE_REFLECTION = Degradation(
    name="double_pane_reflection",
    version=1,
    params_type=DoublePaneReflectionParams,
    sample=sample_double_pane_reflection,
    apply=apply_reflection,
    space="linear",
    needs=frozenset({"second"}),
    source="Fresnel slabs per polarisation; ghosts of double glazing after Shih et al., CVPR 2015",
)
