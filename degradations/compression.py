"""Lossy coding. Works on code values, as the encoders do; one thread, so that bytes do not depend on cores.

Sources: ITU-T T.81 (JPEG), RFC 9649 (WebP), AOM AVIF 1.1; quality scales of libjpeg, libwebp; AV1 quantizer.
Ranges: Real-ESRGAN (Wang et al., ICCVW 2021) uses JPEG 30..95, APISR (Wang et al., CVPR 2024) 20..95 for
JPEG, WebP, AVIF; severity 1 goes on to 5, which social networks and messengers reach.
"""

import hashlib
import io
from typing import Literal

import cv2
import numpy as np
from PIL import AvifImagePlugin, features
from PIL import Image as PILImage

from degradations.base import Degradation, Params, Rendered, Scene
from pairforge.image import Image, Pixels, to_float, to_pixels
from pairforge.rng import Rng

_PIL_SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def _decode(stream: io.BytesIO) -> Pixels:
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # Pillow takes the thread count of this decoder from nowhere else.
    with PILImage.open(stream) as coded:
        return np.asarray(coded.convert("RGB"))


def code_jpeg(pixels: Pixels, quality: int, subsampling: str) -> tuple[Pixels, io.BytesIO]:
    """Decoded pixels and the stream they came from."""
    stream = io.BytesIO()
    PILImage.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=_PIL_SUBSAMPLING[subsampling])
    return _decode(stream), stream


def code_webp(pixels: Pixels, quality: int, method: int) -> tuple[Pixels, io.BytesIO]:
    """Decoded pixels and the stream they came from; always 4:2:0."""
    stream = io.BytesIO()
    PILImage.fromarray(pixels).save(stream, "WEBP", quality=quality, method=method)
    return _decode(stream), stream


def code_avif(pixels: Pixels, quantizer: int, subsampling: str, speed: int) -> tuple[Pixels, io.BytesIO]:
    """Decoded pixels and the stream they came from; libavif lays out tiles by thread count, here one.

    Goes past libavif's quality scale, whose 101 values share the 64 quantizers in a way versions change.
    """
    stream = io.BytesIO()
    PILImage.fromarray(pixels).save(
        stream,
        "AVIF",
        subsampling=subsampling,
        speed=speed,
        codec="aom",
        max_threads=1,
        advanced={"end-usage": "q", "cq-level": str(quantizer)},
    )
    return _decode(stream), stream


def encoder_version(codec: Literal["jpeg", "webp", "avif"]) -> str:
    """Library and version that determine the pixels of a codec."""
    if codec == "jpeg":
        turbo = features.version("libjpeg_turbo")
        return f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    if codec == "webp":
        return f"libwebp {features.version('webp')}"
    return f"libavif {features.version('avif')}, aom {AvifImagePlugin.get_codec_version('aom')}"


def _tables_sha256(stream: io.BytesIO) -> str:
    with PILImage.open(stream) as coded:
        tables: dict[int, list[int]] = getattr(coded, "quantization", {})
    return hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()[:16]


class JpegParams(Params):
    """`quality` of libjpeg, 1..100."""

    quality: int
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"]


def sample_jpeg(severity: float, rng: Rng) -> JpegParams:
    quality = round(92 - 84 * severity + rng.uniform(-3, 3))
    subsampling = str(rng.choice(["4:2:0", "4:2:2", "4:4:4"], p=[0.7, 0.1, 0.2]))
    return JpegParams.model_validate({"quality": quality, "subsampling": subsampling})


def apply_jpeg(image: Image, params: JpegParams, scene: Scene, rng: Rng) -> Rendered:
    coded, stream = code_jpeg(to_pixels(image), params.quality, params.subsampling)
    realised = {
        "coded_bytes": len(stream.getvalue()),
        "tables_sha256": _tables_sha256(stream),
        "encoder": encoder_version("jpeg"),
    }
    return Rendered(to_float(coded), image, realised=realised)


JPEG = Degradation(
    name="jpeg",
    version=1,
    params_type=JpegParams,
    sample=sample_jpeg,
    apply=apply_jpeg,
    space="srgb",
    needs=frozenset(),
    source="ITU-T T.81; libjpeg quality scale",
)


class WebpParams(Params):
    """`quality` of libwebp, 0..100; `method` is its effort, 0..6."""

    quality: int
    method: int


def sample_webp(severity: float, rng: Rng) -> WebpParams:
    return WebpParams(quality=round(85 - 79 * severity**0.8 + rng.uniform(-3, 3)), method=int(rng.choice([2, 4])))


def apply_webp(image: Image, params: WebpParams, scene: Scene, rng: Rng) -> Rendered:
    coded, stream = code_webp(to_pixels(image), params.quality, params.method)
    realised = {"coded_bytes": len(stream.getvalue()), "encoder": encoder_version("webp")}
    return Rendered(to_float(coded), image, realised=realised)


WEBP = Degradation(
    name="webp",
    version=1,
    params_type=WebpParams,
    sample=sample_webp,
    apply=apply_webp,
    space="srgb",
    needs=frozenset(),
    source="RFC 9649; libwebp quality scale",
)


class AvifParams(Params):
    """`quantizer` of AV1, 0..63. `speed` is that of libavif, 0..10; from 9 on it changes no pixels."""

    quantizer: int
    subsampling: Literal["4:4:4", "4:2:0"]
    speed: int


def sample_avif(severity: float, rng: Rng) -> AvifParams:
    quantizer = round(18 + 40 * severity**0.8 + rng.uniform(-2, 2))
    subsampling = "4:2:0" if rng.random() < 0.8 else "4:4:4"
    return AvifParams.model_validate(
        {"quantizer": quantizer, "subsampling": subsampling, "speed": int(rng.choice([7, 8]))}
    )


def apply_avif(image: Image, params: AvifParams, scene: Scene, rng: Rng) -> Rendered:
    coded, stream = code_avif(to_pixels(image), params.quantizer, params.subsampling, params.speed)
    realised = {"coded_bytes": len(stream.getvalue()), "encoder": encoder_version("avif")}
    return Rendered(to_float(coded), image, realised=realised)


AVIF = Degradation(
    name="avif",
    version=1,
    params_type=AvifParams,
    sample=sample_avif,
    apply=apply_avif,
    space="srgb",
    needs=frozenset(),
    source="AOM AVIF 1.1; quantizer of AV1",
)

Coding = Literal["jpeg_420", "jpeg_422", "jpeg_444", "webp"]
_SUBSAMPLING = {"jpeg_420": "4:2:0", "jpeg_422": "4:2:2", "jpeg_444": "4:4:4"}
_WEBP_METHOD = 4


class RecompressParams(Params):
    """One entry per generation, in order. `quality` is that of the codec in `coding`, 1..100.

    The image is resized to `scale` of its size before this step (not of the generation before), its coding
    grid is moved right and down by `shift_x_px`, `shift_y_px`, then it is coded. After the last generation
    it returns to its size. The grid moves by padding that is cut off again, where a real crop would lose
    pixels; so nothing moves against the target.
    """

    coding: tuple[Coding, ...]
    quality: tuple[int, ...]
    scale: tuple[float, ...]
    shift_x_px: tuple[int, ...]
    shift_y_px: tuple[int, ...]


def sample_recompress(severity: float, rng: Rng) -> RecompressParams:
    """2 to 4 generations; the least quality and the least scale fall with severity.

    At most one is WebP: its causal prediction drags luma by up to 0.06 px to the lower right each time.
    """
    count = 2 + int(2 * severity * rng.uniform(0.6, 1.0) + 0.5)
    codings = rng.choice(["jpeg_420", "jpeg_422", "jpeg_444"], count, p=[0.7, 0.1, 0.2])
    if rng.random() < 0.4:
        codings[rng.integers(count)] = "webp"
    quality = 93 - 70 * severity + rng.uniform(-3, 12 * severity + 3, count)
    scale = np.where(rng.random(count) < 0.3, 1.0, rng.uniform(1 - 0.5 * severity, 1, count))
    return RecompressParams.model_validate(
        {
            "coding": tuple(str(coding) for coding in codings),
            "quality": tuple(round(value) for value in quality.tolist()),
            "scale": tuple(scale.tolist()),
            "shift_x_px": tuple(rng.integers(0, 8, count).tolist()),
            "shift_y_px": tuple(rng.integers(0, 8, count).tolist()),
        }
    )


def _resize(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = width <= pixels.shape[1] and height <= pixels.shape[0]
    resized: Pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return resized


def _code(pixels: Pixels, coding: Coding, quality: int) -> tuple[Pixels, io.BytesIO]:
    if coding == "webp":
        return code_webp(pixels, quality, _WEBP_METHOD)
    return code_jpeg(pixels, quality, _SUBSAMPLING[coding])


def apply_recompress(image: Image, params: RecompressParams, scene: Scene, rng: Rng) -> Rendered:
    height, width = image.shape[:2]
    pixels = to_pixels(image)
    coded_bytes, sizes = [], []
    for coding, quality, scale, x, y in zip(
        params.coding, params.quality, params.scale, params.shift_x_px, params.shift_y_px, strict=True
    ):
        pixels = _resize(pixels, max(8, round(width * scale)), max(8, round(height * scale)))
        padded = cv2.copyMakeBorder(pixels, y, 0, x, 0, cv2.BORDER_REPLICATE)
        coded, stream = _code(padded, coding, quality)
        pixels = coded[y:, x:]
        coded_bytes.append(len(stream.getvalue()))
        sizes.append([pixels.shape[1], pixels.shape[0]])
    realised = {
        "coded_bytes": coded_bytes,
        "sizes_px": sizes,
        "encoder": f"{encoder_version('jpeg')}, {encoder_version('webp')}",
    }
    return Rendered(to_float(_resize(pixels, width, height)), image, realised=realised)


RECOMPRESS = Degradation(
    name="recompress",
    version=1,
    params_type=RecompressParams,
    sample=sample_recompress,
    apply=apply_recompress,
    space="srgb",
    needs=frozenset(),
    source="ITU-T T.81, RFC 9649, repeated with resizing and a moving grid, as shared images are",
)
