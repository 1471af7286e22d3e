"""Camera raw and back: inverse ISP, Bayer mosaic, sensor noise. Shared by the noise and low-light families.

Sources: unprocessing and the lambda_shot, lambda_read noise law: Brooks et al., CVPR 2019, section 3 and
equations 1-6. Row noise: Wei et al. (ELD), CVPR 2020. Demosaicing: Malvar, He, Cutler, ICASSP 2004.

Deviations. Gamma 2.2 stands for the sRGB curve, and no inverse gain is made highlight-safe: the smoothstep
shoulder already compresses noise near white. The overall exposure gain of Brooks is left out, since
lambda_shot absorbs it. Only the noise is mosaicked and demosaicked: demosaicing is linear here, so this
equals the full pipeline minus the resolution loss of a second demosaicing of a photo that already had one.
Quantisation of the converter is left out: it lies below the read noise in the sampled range.
"""

from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.base import Params
from pairforge.image import Image, Plane
from pairforge.rng import Rng, rng_for

_STEPS = 65535
_GAMMA = 2.2
_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# DNG colour matrices of Sony A7R, Olympus E-M10, Sony RX100 IV, Huawei Nexus 6P, as mixed by Brooks et al.
_XYZ_TO_CAMERA = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
RGB_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
YCC_TO_RGB = np.linalg.inv(RGB_TO_YCC.astype(np.float64)).astype(np.float32)
_PRNU_TILE_PX = 1024
_POISSON_BELOW_ELECTRONS = 50.0


def _eighths(*upper_rows: list[float]) -> NDArray[np.float32]:
    """A 5 x 5 kernel, mirrored about its third row, in units of 1/8."""
    return np.array([*upper_rows, upper_rows[1], upper_rows[0]], np.float32) / np.float32(8)


_G_AT_RB = _eighths([0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1])
_RB_IN_ROW = _eighths([0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1])
_RB_AT_BR = _eighths([0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5])


class SensorParams(Params):
    """Camera and noise of one exposure; raw values are fractions of the white level.

    `shot_var` and `read_var` are slope and intercept of the variance of a photosite over its value, so
    `1 / shot_var` is the full well in electrons. `row_sd` is common to all photosites of a row. The gain of
    every photosite deviates by `prnu_sd`, by a pattern that `camera_id` fixes. `red_gain` and `blue_gain` are those of
    the white balance, green having 1. `ccm_mix` are the weights of
    the first three of four colour matrices, the fourth has the rest. After tone mapping the noise has its
    chroma smoothed over `chroma_nr_px` (Gaussian sigma) and its fine luma changed by `sharpen_amount`: an
    unsharp mask of 1 px, or smoothing where negative.
    """

    shot_var: float
    read_var: float
    row_sd: float
    prnu_sd: float
    camera_id: int
    red_gain: float
    blue_gain: float
    ccm_mix: tuple[float, float, float]
    chroma_nr_px: float
    sharpen_amount: float


def sample_sensor(shot_var: float, severity: float, rng: Rng) -> SensorParams:
    """A camera whose read noise follows the given shot noise (Brooks), whose row noise follows ELD.

    The worse the noise, the more of its chroma and fine luma the camera smooths away.
    """
    read_var = float(np.exp(2.18 * np.log(shot_var) + 1.20 + 0.26 * rng.standard_normal()))
    mix = rng.dirichlet((1.0, 1.0, 1.0, 1.0))
    return SensorParams(
        shot_var=shot_var,
        read_var=read_var,
        row_sd=float(np.sqrt(read_var) * rng.uniform(0.05, 0.2)),
        prnu_sd=float(rng.uniform(0.003, 0.01)),
        camera_id=int(rng.integers(1000)),
        red_gain=float(rng.uniform(1.9, 2.4)),
        blue_gain=float(rng.uniform(1.5, 1.9)),
        ccm_mix=(float(mix[0]), float(mix[1]), float(mix[2])),
        chroma_nr_px=(0.8 + 2.0 * severity) * float(rng.uniform(0.7, 1.3)),
        sharpen_amount=0.5 - 0.9 * severity + float(rng.uniform(-0.3, 0.3)),
    )


def raw_matrix(params: SensorParams) -> NDArray[np.float32]:
    """Linear sRGB to camera raw (3, 3): row-normalised colour matrix, then inverse white balance."""
    weights = np.array([*params.ccm_mix, 1.0 - sum(params.ccm_mix)])
    rgb_to_camera = np.tensordot(weights, _XYZ_TO_CAMERA, 1) @ _RGB_TO_XYZ
    rgb_to_camera /= rgb_to_camera.sum(axis=1, keepdims=True)
    gains = np.array([[params.red_gain], [1.0], [params.blue_gain]])
    matrix: NDArray[np.float32] = (rgb_to_camera / gains).astype(np.float32)
    return matrix


@cache
def _scene_root_table() -> NDArray[np.float32]:
    """Square root of scene light over the square root of displayed light: inverse smoothstep in gamma 2.2."""
    code = np.linspace(0.0, 1.0, _STEPS + 1) ** (2 / _GAMMA)
    linear_code = 0.5 - np.sin(np.arcsin(1.0 - 2.0 * code) / 3.0)
    return (np.maximum(linear_code, 0.0) ** (_GAMMA / 2)).astype(np.float32)


@cache
def _display_root_table() -> NDArray[np.float32]:
    """Inverse of `_scene_root_table`: smoothstep in gamma 2.2."""
    code = np.linspace(0.0, 1.0, _STEPS + 1) ** (2 / _GAMMA)
    return ((3.0 * code**2 - 2.0 * code**3) ** (_GAMMA / 2)).astype(np.float32)


def look_up(values: Image, table: NDArray[np.float32]) -> Image:
    """Nearest entry of a 65,536-entry table over [0, 1]; what exceeds 1 is added on top."""
    scaled = values * np.float32(_STEPS)
    scaled += np.float32(0.5)
    np.clip(scaled, 0, _STEPS, out=scaled)
    found: Image = np.take(table, scaled.astype(np.uint16))
    if float(values.max()) > 1.0:
        found += np.maximum(values - np.float32(1), np.float32(0))
    return found


def scene_light(image_lin: Image) -> Image:
    """Scene-linear light of displayed light. Tables run over square roots, where both curves are smooth."""
    root = look_up(np.sqrt(np.maximum(image_lin, np.float32(0))), _scene_root_table())
    scene: Image = np.multiply(root, root, out=root)
    return scene


def display_root(scene: Image) -> Image:
    """Square root of displayed light, near its sRGB code; negative scene light becomes 0."""
    root = np.maximum(scene, np.float32(0))
    return look_up(np.sqrt(root, out=root), _display_root_table())


def unprocess(image_lin: Image, params: SensorParams) -> Image:
    """Linear sRGB to camera raw (H, W, 3): inverse tone, inverse colour matrix, inverse white balance."""
    raw: Image = cv2.transform(scene_light(image_lin), raw_matrix(params))
    return raw


def reprocess_root(raw: Image, params: SensorParams, wb_error: tuple[float, float] = (1.0, 1.0)) -> Image:
    """Inverse of `unprocess`, as the square root of light; `wb_error` multiplies the red and blue gains."""
    to_rgb = np.linalg.inv(raw_matrix(params).astype(np.float64)) @ np.diag([wb_error[0], 1.0, wb_error[1]])
    return display_root(cv2.transform(raw, to_rgb.astype(np.float32)))


def mosaic(raw: Image) -> Plane:
    """RGGB samples (H, W) of camera raw."""
    plane = np.ascontiguousarray(raw[..., 1])
    plane[0::2, 0::2] = raw[0::2, 0::2, 0]
    plane[1::2, 1::2] = raw[1::2, 1::2, 2]
    return plane


def demosaic(plane: Plane) -> Image:
    """RGB (H, W, 3) of RGGB samples, gradient-corrected linear interpolation (Malvar et al. 2004)."""
    # Reflection about the border pixel keeps the phase of the mosaic.
    green_at_rb, along_row, along_column, across = (
        cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        for kernel in (_G_AT_RB, _RB_IN_ROW, _RB_IN_ROW.T, _RB_AT_BR)
    )
    red, green, blue = plane.copy(), plane.copy(), plane.copy()
    for y, x in ((0, 0), (1, 1)):
        green[y::2, x::2] = green_at_rb[y::2, x::2]
    red[0::2, 1::2], blue[1::2, 0::2] = along_row[0::2, 1::2], along_row[1::2, 0::2]
    red[1::2, 0::2], blue[0::2, 1::2] = along_column[1::2, 0::2], along_column[0::2, 1::2]
    red[1::2, 1::2], blue[0::2, 0::2] = across[1::2, 1::2], across[0::2, 0::2]
    rgb: Image = cv2.merge((red, green, blue))
    return rgb


@lru_cache(maxsize=4)
def _prnu_tile(camera_id: int) -> Plane:
    tile = rng_for(0, "prnu", camera_id).standard_normal((_PRNU_TILE_PX, _PRNU_TILE_PX), np.float32)
    tile.setflags(write=False)
    return tile


def prnu_pattern(camera_id: int, height: int, width: int) -> Plane:
    """Unit-variance gain pattern (H, W) of one camera, the same for every image; repeats after 1024 px."""
    tile = _prnu_tile(camera_id)
    if height <= _PRNU_TILE_PX and width <= _PRNU_TILE_PX:
        return tile[:height, :width]
    repeats = (-(-height // _PRNU_TILE_PX), -(-width // _PRNU_TILE_PX))
    return np.tile(tile, repeats)[:height, :width]


def draw_noise(samples: Plane, params: SensorParams, rng: Rng) -> tuple[Plane, float]:
    """Noise (H, W) of raw samples, not clipped, and the share of photosites whose shot noise is Poisson.

    Var = shot_var * x + read_var per photosite, plus row and gain patterns. Shot noise is Poisson below 50
    electrons, Gaussian above, where the two agree and the Gaussian is three times as fast.
    """
    light = np.maximum(samples, np.float32(0))
    few = light < _POISSON_BELOW_ELECTRONS * params.shot_var
    variance = light * np.float32(params.shot_var)
    variance[few] = 0
    variance += np.float32(params.read_var)
    noise = rng.standard_normal(samples.shape, np.float32)
    noise *= np.sqrt(variance, out=variance)
    dim = light[few]
    if dim.size:
        electrons = rng.poisson(dim / np.float32(params.shot_var)).astype(np.float32)
        noise[few] += electrons * np.float32(params.shot_var) - dim
    noise += params.row_sd * rng.standard_normal((samples.shape[0], 1), np.float32)
    light *= prnu_pattern(params.camera_id, *samples.shape)
    light *= np.float32(params.prnu_sd)
    noise += light
    return noise, dim.size / samples.size


def finish(clean_root: Image, noisy_root: Image, params: SensorParams) -> Image:
    """What noise reduction and sharpening leave: their effect on the noise alone, added to the clean image.

    Working on the noise keeps the scene as sharp as it was; both arrays are square roots of light.
    """
    luma, *chroma = cv2.split(cv2.transform(noisy_root - clean_root, RGB_TO_YCC))
    amount = params.sharpen_amount
    luma = cv2.addWeighted(luma, 1 + amount, cv2.GaussianBlur(luma, (0, 0), 1.0), -amount, 0)
    smooth = [cv2.GaussianBlur(plane, (0, 0), params.chroma_nr_px) for plane in chroma]
    finished: Image = cv2.transform(cv2.merge([luma, *smooth]), YCC_TO_RGB)
    finished += clean_root
    return np.maximum(finished, np.float32(0), out=finished)
