"""Lossy coding. Works on code values, as the encoders do; one thread, so that bytes do not depend on cores.

Sources: ITU-T T.81 (JPEG), RFC 9649 (WebP), AOM AVIF 1.1; quality scales of libjpeg, libwebp; AV1 quantizer.
Ranges: Real-ESRGAN (Wang et al., ICCVW 2021) uses JPEG 30..95, APISR (Wang et al., CVPR 2024) 20..95 for
JPEG, WebP, AVIF; severity 1 goes on to 5, which social networks and messengers reach.
"""

import hashlib
import io
from functools import cache
from typing import Annotated, Literal

import cv2
import numpy as np
from PIL import AvifImagePlugin, features
from PIL import Image as PILImage
from pydantic import Field, model_validator

from degradations.base import Degradation, Params, Rendered, Scene
from pairforge.image import Image, Pixels, to_float, to_pixels
from pairforge.rng import Rng

_JPEG_SUBSAMPLING = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
}


def _decode(stream: io.BytesIO) -> Pixels:
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # Pillow takes the thread count of this decoder from nowhere else.
    with PILImage.open(stream) as coded:
        return np.asarray(coded.convert("RGB"))


def code_jpeg(pixels: Pixels, quality: int, subsampling: str) -> tuple[Pixels, bytes]:
    """Decoded pixels and the stream they came from; baseline, standard Huffman tables, tables of libjpeg's scale."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _JPEG_SUBSAMPLING[subsampling]]
    done, stream = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings)
    assert done, f"JPEG encoder refused an array of shape {pixels.shape}"
    decoded = cv2.imdecode(stream, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None, "JPEG decoder refused what the encoder made"
    return np.asarray(decoded, np.uint8), stream.tobytes()


def code_webp(pixels: Pixels, quality: int, method: int) -> tuple[Pixels, bytes]:
    """Decoded pixels and the stream they came from; always 4:2:0."""
    stream = io.BytesIO()
    PILImage.fromarray(pixels).save(stream, "WEBP", quality=quality, method=method)
    return _decode(stream), stream.getvalue()


def code_avif(pixels: Pixels, quantizer: int, subsampling: str, speed: int) -> tuple[Pixels, bytes]:
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
    return _decode(stream), stream.getvalue()


@cache
def encoder_version(codec: Literal["jpeg", "webp", "avif"]) -> str:
    """Library and version that determine the pixels of a codec."""
    if codec == "jpeg":
        (line,) = [line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("JPEG:")]
        return f"OpenCV {cv2.__version__}, {line.split(':', 1)[1].strip()}"
    if codec == "webp":
        return f"libwebp {features.version('webp')}"
    return f"libavif {features.version('avif')}, aom {AvifImagePlugin.get_codec_version('aom')}"


def _tables_sha256(stream: bytes) -> str:
    """Of the quantisation tables, as they lie in the stream."""
    tables, at = b"", 2
    while stream[at + 1] != 0xDA:
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] == 0xDB:
            tables += stream[at + 4 : at + 2 + length]
        at += 2 + length
    return hashlib.sha256(tables).hexdigest()[:16]


class JpegParams(Params):
    quality: int = Field(ge=1, le=100)
    """On the scale of libjpeg."""
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"]


def sample_jpeg(severity: float, rng: Rng) -> JpegParams:
    quality = round(92 - 84 * severity + rng.uniform(-3, 3))
    subsampling = str(rng.choice(["4:2:0", "4:2:2", "4:4:4"], p=[0.7, 0.1, 0.2]))
    return JpegParams.model_validate({"quality": quality, "subsampling": subsampling})


def apply_jpeg(image: Image, params: JpegParams, scene: Scene, rng: Rng) -> Rendered:
    coded, stream = code_jpeg(to_pixels(image), params.quality, params.subsampling)
    realised = {
        "coded_bytes": len(stream),
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
    quality: int = Field(ge=0, le=100)
    """On the scale of libwebp."""
    method: int = Field(ge=0, le=6)
    """Effort of libwebp."""


def sample_webp(severity: float, rng: Rng) -> WebpParams:
    quality = round(85 - 79 * severity**0.8 + rng.uniform(-3, 3))
    return WebpParams(quality=quality, method=int(rng.choice([2, 4])))


def apply_webp(image: Image, params: WebpParams, scene: Scene, rng: Rng) -> Rendered:
    coded, stream = code_webp(to_pixels(image), params.quality, params.method)
    realised = {"coded_bytes": len(stream), "encoder": encoder_version("webp")}
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
    quantizer: int = Field(ge=0, le=63)
    """Of AV1."""
    subsampling: Literal["4:4:4", "4:2:0"]
    speed: int = Field(ge=5, le=8)
    """Of libavif; below 5 it takes seconds for a megapixel, above 8 it changes no pixels."""


def sample_avif(severity: float, rng: Rng) -> AvifParams:
    quantizer = round(18 + 40 * severity**0.8 + rng.uniform(-2, 2))
    subsampling = str(rng.choice(["4:2:0", "4:4:4"], p=[0.8, 0.2]))
    speed = int(rng.choice([7, 8]))
    return AvifParams.model_validate({"quantizer": quantizer, "subsampling": subsampling, "speed": speed})


def apply_avif(image: Image, params: AvifParams, scene: Scene, rng: Rng) -> Rendered:
    coded, stream = code_avif(to_pixels(image), params.quantizer, params.subsampling, params.speed)
    realised = {"coded_bytes": len(stream), "encoder": encoder_version("avif")}
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

    coding: tuple[Coding, ...] = Field(min_length=1, max_length=8)
    quality: tuple[Annotated[int, Field(ge=1, le=100)], ...]
    scale: tuple[Annotated[float, Field(ge=0.1, le=2)], ...]
    shift_x_px: tuple[Annotated[int, Field(ge=0, le=64)], ...]
    shift_y_px: tuple[Annotated[int, Field(ge=0, le=64)], ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> "RecompressParams":
        lengths = {field: len(getattr(self, field)) for field in type(self).model_fields}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"one entry per generation is needed in every field; there are {lengths}")
        return self


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


def _code(pixels: Pixels, coding: Coding, quality: int) -> tuple[Pixels, bytes]:
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
        coded_bytes.append(len(stream))
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
