"""Camera raw and back: inverse ISP, Bayer mosaic, sensor noise. Shared by the noise and low-light families.

Sources: unprocessing and the lambda_shot, lambda_read noise law: Brooks et al., CVPR 2019, section 3 and
equations 1-6. Row noise: Wei et al. (ELD), CVPR 2020. Luma of a mosaic by one linear filter: Alleysson, Susstrunk,
Herault, IEEE TIP 2005.

Deviations. Gamma 2.2 stands for the sRGB curve, and no inverse gain is made highlight-safe: the smoothstep
shoulder already compresses noise near white. The overall exposure gain of Brooks is left out, since
lambda_shot absorbs it. Only the noise is mosaicked, demosaicked and smoothed: these steps are linear here, so this
equals the full pipeline minus the resolution loss of a second demosaicing of a photo that already had one. They
work on noise of unit variance, as denoisers behind a variance-stabilising transform do, so that noise of a bright
area does not bleed into a dark one; its strength follows from the light at the output pixel.
Quantisation of the converter is left out: it lies below the read noise in the sampled range.
"""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Annotated, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from degradations.base import Params
from degradations.noise_draws import GAUSSIAN_FROM_ELECTRONS, draw_normal, draw_shot
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
# Passes up to a quarter of the sampling frequency, stops half of it, where a mosaic carries its colour.
_LUMA_TAPS = np.array([-1, 2, 6, 2, -1], np.float32) / np.float32(8)
_LUMA_OF_CELL = np.array([[0.25, 0.5, 0.25]], np.float32)
_BAND_ROWS = 64

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


# Tables run over square roots of light, where both curves are smooth. An entry holds the middle of what is truncated
# to its index, and the first of them exactly 0.


def _table_codes() -> NDArray[np.float64]:
    root = (np.arange(_STEPS + 1) + 0.5) / _STEPS
    root[0], root[-1] = 0.0, 1.0
    return root ** (2 / _GAMMA)


@cache
def _scene_table() -> NDArray[np.float32]:
    """Scene light over the square root of displayed light: inverse smoothstep in gamma 2.2."""
    linear_code = 0.5 - np.sin(np.arcsin(1.0 - 2.0 * _table_codes()) / 3.0)
    return (np.maximum(linear_code, 0.0) ** _GAMMA).astype(np.float32)


@cache
def _display_root_table() -> NDArray[np.float32]:
    """Square root of displayed light over that of scene light: smoothstep in gamma 2.2."""
    code = _table_codes()
    return ((3.0 * code**2 - 2.0 * code**3) ** (_GAMMA / 2)).astype(np.float32)


TABLE_LIGHT = float(_STEPS) ** 2
"""Factor on light for which its square root is an index."""


def _look_up_root(scaled: Image, table: NDArray[np.float32], excess_power: int) -> Image:
    """Table over the square root of light that is multiplied by TABLE_LIGHT, in place; negative light counts as 0.

    What the root exceeds 1 by, both to a power, is added on top.
    """
    cv2.threshold(scaled, 0, 0, cv2.THRESH_TOZERO, scaled)
    root = np.sqrt(scaled, out=scaled)
    if float(root.max()) <= _STEPS:
        found: Image = cv2.LUT(root.astype(np.uint16), table, root)
        return found
    excess = np.maximum((root / np.float32(_STEPS)) ** excess_power - np.float32(1), np.float32(0))
    cv2.threshold(root, _STEPS, _STEPS, cv2.THRESH_TRUNC, root)
    found = cv2.LUT(root.astype(np.uint16), table, root)
    found += excess
    return found


def scene_light(image_lin: Image, out: Image | None = None) -> Image:
    """Scene-linear light of displayed light, in `out` if given."""
    return _look_up_root(np.multiply(image_lin, np.float32(TABLE_LIGHT), out=out), _scene_table(), 2)


def display_root(scaled_scene: Image) -> Image:
    """Square root of displayed light, near its sRGB code, of scene light times TABLE_LIGHT; in place."""
    return _look_up_root(scaled_scene, _display_root_table(), 1)


def bands(height: int) -> Iterator[slice]:
    """Rows in bands that fit a CPU's cache; a chain of operations on each is twice as fast as on the whole."""
    for top in range(0, height, _BAND_ROWS):
        yield slice(top, min(top + _BAND_ROWS, height))


def unprocess(image_lin: Image, to_raw: NDArray[np.float32], out: Image | None = None) -> Image:
    """Linear sRGB to camera raw (H, W, 3): inverse tone, then the matrix."""
    light = scene_light(image_lin, out)
    raw: Image = cv2.transform(light, to_raw, light)
    return raw


def reprocess(raw: Image, scaled_to_rgb: NDArray[np.float32], out: Image | None = None) -> Image:
    """Inverse of `unprocess`, by the matrix from raw times TABLE_LIGHT; uses up `raw`."""
    root = display_root(cv2.transform(raw, scaled_to_rgb, raw))
    return np.square(root, out=out)


def mosaic(raw: Image) -> Plane:
    """RGGB samples (H, W) of camera raw."""
    plane: Plane = cv2.extractChannel(raw, 1)
    plane[0::2, 0::2] = raw[0::2, 0::2, 0]
    plane[1::2, 1::2] = raw[1::2, 1::2, 2]
    return plane


@lru_cache(maxsize=4)
def _prnu_tile(camera_id: int) -> Plane:
    tile = draw_normal((_PRNU_TILE_PX, _PRNU_TILE_PX), rng_for(0, "prnu", camera_id))
    tile.setflags(write=False)
    return tile


def prnu_pattern(camera_id: int, rows: slice, width: int) -> Plane:
    """Unit-variance gain pattern of rows of one camera, the same for every image; repeats after 1024 px."""
    tile = _prnu_tile(camera_id)
    top = rows.start % _PRNU_TILE_PX
    if top + rows.stop - rows.start <= _PRNU_TILE_PX and width <= _PRNU_TILE_PX:
        return tile[top : top + rows.stop - rows.start, :width]
    y, x = np.arange(rows.start, rows.stop) % _PRNU_TILE_PX, np.arange(width) % _PRNU_TILE_PX
    wrapped: Plane = tile[y[:, None], x]
    return wrapped


def draw_noise(samples: Plane, params: SensorParams, rng: Rng, top: int = 0) -> tuple[Plane, Plane]:
    """Noise of raw samples (H, W), not clipped, in electrons, and its expected sd without patterns, never 0.

    Var = shot_var * x + read_var per photosite, plus row and gain patterns; an electron is `shot_var`. `top` is the
    row of the sensor that the samples begin at.
    """
    height, width = samples.shape
    electrons = samples * np.float32(1 / params.shot_var)
    cv2.threshold(electrons, 0, 0, cv2.THRESH_TOZERO, electrons)
    noise = np.sqrt(electrons)
    noise *= draw_shot(noise, rng)
    read = draw_normal(samples.shape, rng)
    noise += np.multiply(read, np.float32(np.sqrt(params.read_var) / params.shot_var), out=read)
    noise += np.float32(params.row_sd / params.shot_var) * rng.standard_normal((height, 1), np.float32)
    gain = prnu_pattern(params.camera_id, slice(top, top + height), width)
    np.multiply(electrons, gain, out=read)
    noise += np.multiply(read, np.float32(params.prnu_sd), out=read)
    electrons += np.float32(max(params.read_var / params.shot_var**2, 1e-30))
    return noise, np.sqrt(electrons, out=electrons)


def poisson_share(samples: Plane, params: SensorParams) -> float:
    """Share of photosites whose shot noise is Poisson rather than Gaussian."""
    dim = np.count_nonzero(samples < np.float32(params.shot_var * GAUSSIAN_FROM_ELECTRONS))
    return dim / samples.size


def _luma_taps(sharpen_amount: float) -> NDArray[np.float32]:
    """One axis of the luma filter of a mosaic, after an unsharp mask of 1 px along that axis."""
    smooth = np.convolve(_LUMA_TAPS, cv2.getGaussianKernel(7, 1.0, cv2.CV_32F)[:, 0])
    return (np.pad(_LUMA_TAPS, 3) * (1 + sharpen_amount) - smooth * sharpen_amount).astype(np.float32)


def _split_noise(unit: Plane, params: SensorParams) -> tuple[Plane, Image]:
    """Unit noise of a mosaic as luma (H, W), in place, and as smooth colour at half size, a pixel per 2 x 2 cell."""
    height, width = unit.shape
    even = unit
    if height % 2 or width % 2:
        # Reflection about the border pixel keeps the phase of the mosaic.
        even = cv2.copyMakeBorder(unit, 0, height % 2, 0, width % 2, cv2.BORDER_REFLECT_101)
    green = cv2.addWeighted(even[0::2, 1::2], 0.5, even[1::2, 0::2], 0.5, 0)
    cells = cv2.merge((even[0::2, 0::2], green, even[1::2, 1::2]))
    if params.chroma_nr_px > 0:
        cv2.GaussianBlur(cells, (0, 0), params.chroma_nr_px / 2, cells)
    taps = _luma_taps(params.sharpen_amount)
    return cv2.sepFilter2D(unit, -1, taps, taps, unit), cells


def _enlarge(cells: Image, rows: slice, width: int) -> Image:
    """Rows of an image from cells of 2 x 2 px, linear between their centres."""
    # One more cell on each side, so that bands meet without a seam.
    first, last = max(rows.start // 2 - 1, 0), min(-(-rows.stop // 2) + 1, len(cells))
    size = (2 * cells.shape[1], 2 * (last - first))
    enlarged: Image = cv2.resize(cells[first:last], size, interpolation=cv2.INTER_LINEAR)
    return enlarged[rows.start - 2 * first : rows.stop - 2 * first, :width]


def photograph(
    expose: Callable[[slice, Image], object],
    develop: Callable[[Image, Image], object],
    size: tuple[int, int],
    params: SensorParams,
    rng: Rng,
    strength: Plane | None = None,
) -> tuple[Image, float]:
    """Image of noisy camera raw, and the share of photosites whose shot noise is Poisson.

    `expose` fills a band with camera raw of these rows, `develop` makes an image of noisy raw, which it may use up, in
    a band. `strength` (H, W) multiplies the noise.
    Coarse noise has the colour that raw noise has after white balance and colour matrix; fine noise is grey, with
    the luma that it would have had.
    """
    raw, unit = np.empty((*size, 3), np.float32), np.empty(size, np.float32)
    dim = []
    for rows in bands(size[0]):
        expose(rows, raw[rows])
        samples = mosaic(raw[rows])
        noise, sd = draw_noise(samples, params, rng, rows.start)
        np.divide(noise, sd, out=unit[rows])
        dim.append(poisson_share(samples[:2], params))
    luma, cells = _split_noise(unit, params)
    if strength is not None:
        luma *= strength
        at_cells = cv2.resize(strength, (cells.shape[1], cells.shape[0]), interpolation=cv2.INTER_AREA)
        cells *= cv2.cvtColor(at_cells, cv2.COLOR_GRAY2RGB)
    luma_of_raw = (RGB_TO_YCC[0].astype(np.float64) @ rgb_matrix(params)).astype(np.float32)[None]
    variance = np.hstack([np.eye(3) * params.shot_var, np.full((3, 1), params.read_var)]).astype(np.float32)
    for rows in bands(size[0]):
        noise = cv2.transform(raw[rows], variance)
        cv2.threshold(noise, 0, 0, cv2.THRESH_TOZERO, noise)
        np.sqrt(noise, out=noise)
        grey = luma[rows]
        coarse = _enlarge(cells, rows, size[1])
        grey -= cv2.transform(coarse, _LUMA_OF_CELL)
        grey *= cv2.transform(noise, luma_of_raw)
        noise *= coarse
        noise += cv2.merge((grey * np.float32(1 / params.red_gain), grey, grey * np.float32(1 / params.blue_gain)))
        noise += raw[rows]
        develop(noise, raw[rows])
    return raw, float(np.mean(dim))
