"""Camera raw and back: inverse ISP and colour of a camera. Shared by the noise and low-light families.

Sources: unprocessing after Brooks et al., CVPR 2019, section 3; row noise of a camera: Wei et al. (ELD), CVPR 2020.
What noise does in between is in sensor_noise.py.

Deviations. Gamma 2.2 stands for the sRGB curve, and no inverse gain is made highlight-safe: the smoothstep
shoulder already compresses noise near white. The overall exposure gain of Brooks is left out, since
lambda_shot absorbs it. Light goes through tables; from 32,768 times white on they are wrong.
"""

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Annotated, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from degradations.base import Params
from pairforge.image import Image
from pairforge.rng import Rng

_LAST = 65535
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

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class SensorParams(Params):
    """Camera and noise of one exposure; raw values are fractions of the white level.

    `shot_var` and `read_var` are slope and intercept of the variance of a photosite over its value, so
    `1 / shot_var` is the full well in electrons. `row_sd` is common to all photosites of a row. The gain of
    every photosite deviates by `prnu_sd`, by a pattern that `camera_id` fixes. `red_gain` and `blue_gain` are
    those of the white balance, green having 1. `ccm_mix` are the weights of the first three of four colour
    matrices, the fourth has the rest. The camera smooths the colour of the noise over `chroma_nr_px` (Gaussian
    sigma) and changes its fine luma by `sharpen_amount`: an unsharp mask of 1 px, or smoothing where negative.
    """

    shot_var: float = Field(gt=0.0, le=1.0)
    read_var: float = Field(ge=0.0, le=1.0)
    row_sd: float = Field(ge=0.0, le=1.0)
    prnu_sd: float = Field(ge=0.0, le=0.5)
    camera_id: int = Field(ge=0)
    red_gain: float = Field(ge=0.2, le=8.0)
    blue_gain: float = Field(ge=0.2, le=8.0)
    ccm_mix: tuple[Share, Share, Share]
    chroma_nr_px: float = Field(ge=0.0, le=64.0)
    sharpen_amount: float = Field(ge=-1.0, le=4.0)

    @model_validator(mode="after")
    def _weights_leave_a_rest(self) -> Self:
        if sum(self.ccm_mix) > 1.0 + 1e-9:
            raise ValueError(f"ccm_mix {self.ccm_mix} sums to {sum(self.ccm_mix)}; its sum must not exceed 1")
        return self


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


def rgb_matrix(params: SensorParams, wb_error: tuple[float, float] = (1.0, 1.0)) -> NDArray[np.float32]:
    """Inverse of `raw_matrix` (3, 3); `wb_error` multiplies the red and blue gains."""
    inverse = np.linalg.inv(raw_matrix(params).astype(np.float64)) @ np.diag([wb_error[0], 1.0, wb_error[1]])
    return inverse.astype(np.float32)


def camera_matrices(
    params: SensorParams, wb_error: tuple[float, float] = (1.0, 1.0)
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Linear sRGB to white-balanced camera raw and back, (3, 3) each; `wb_error` as of `rgb_matrix`."""
    gains = np.array([params.red_gain, 1.0, params.blue_gain], np.float32)
    return raw_matrix(params) * gains[:, None], rgb_matrix(params, wb_error) / gains


# The last entry of a table stands for all light above what it covers; white is entry 65534 or half of that.

_SCENE_STEPS = 65534
_DISPLAY_STEPS = 32767


@cache
def _scene_table() -> NDArray[np.float32]:
    """Scene light over displayed light: inverse smoothstep in gamma 2.2."""
    code = (np.arange(_LAST + 1) / _SCENE_STEPS).clip(max=1.0) ** (1 / _GAMMA)
    linear_code = 0.5 - np.sin(np.arcsin(1.0 - 2.0 * code) / 3.0)
    return (np.maximum(linear_code, 0.0) ** _GAMMA).astype(np.float32)


@lru_cache(maxsize=2)
def _display_table(power: float) -> NDArray[np.float32]:
    """Displayed light, to a power, over scene light up to 2: smoothstep in gamma 2.2, the same light above white."""
    light = np.arange(_LAST + 1) / _DISPLAY_STEPS
    code = light.clip(max=1.0) ** (1 / _GAMMA)
    shown = np.where(light < 1.0, (3.0 * code**2 - 2.0 * code**3) ** _GAMMA, light)
    return (shown**power).astype(np.float32)


def _look_up(light: Image, table: NDArray[np.float32], steps: int, out: Image | None) -> tuple[Image, Image | None]:
    """Table, with `steps` entries to white, over light; negative light counts as 0. `out` may be `light` itself.

    Also the light above the table, 0 elsewhere, where there is any.
    """
    # Scales, rounds and clips in one pass.
    index = cv2.addWeighted(light, steps, light, 0, 0, dtype=cv2.CV_16U)
    above: Image | None = None
    if int(index.max()) == _LAST:
        above = cv2.threshold(light, _LAST // steps, 0, cv2.THRESH_TOZERO)[1]
    return cv2.LUT(index, table, out), above


def scene_light(image_lin: Image, out: Image | None = None) -> Image:
    """Scene-linear light of displayed light, in `out` if given."""
    scene, above = _look_up(image_lin, _scene_table(), _SCENE_STEPS, out)
    return scene if above is None else cv2.max(scene, above, scene)


def display_light(scene: Image, out: Image | None = None) -> Image:
    """Displayed light of scene light, in `out` if given."""
    shown, above = _look_up(scene, _display_table(1.0), _DISPLAY_STEPS, out)
    return shown if above is None else cv2.max(shown, above, shown)


def lifted_root_table(lift: float) -> NDArray[np.float32]:
    """For `lifted_root`: the square root of displayed light, plus `lift`, over scene light."""
    return _display_table(0.5) + np.float32(lift)


def lifted_root(scene: Image, table: NDArray[np.float32]) -> Image:
    """Square root of displayed light, near its sRGB code, plus the lift of the table; of scene light, in place."""
    root, above = _look_up(scene, table, _DISPLAY_STEPS, scene)
    if above is not None:
        np.sqrt(above, out=above)
        above += table[0]
        root = cv2.max(root, above, root)
    return root


def unprocess(image_lin: Image, to_raw: NDArray[np.float32], out: Image | None = None) -> Image:
    """Linear sRGB to camera raw (H, W, 3): inverse tone, then the matrix."""
    # In place, `cv2.transform` of three channels takes nearly twice as long.
    raw: Image = cv2.transform(scene_light(image_lin), to_raw, out)
    return raw


def reprocess(raw: Image, to_rgb: NDArray[np.float32], out: Image | None = None) -> Image:
    """Inverse of `unprocess`; uses up `raw`."""
    light = cv2.transform(raw, to_rgb, out)
    return display_light(light, light)


def bands(height: int, rows: int = 64) -> Iterator[slice]:
    """Rows in bands that fit a CPU's cache; a chain of operations on each is twice as fast as on the whole."""
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
