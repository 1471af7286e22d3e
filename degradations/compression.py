"""Lossy coding. Works on code values, as the encoders do.

Source: ITU-T T.81 (JPEG); quality scale of libjpeg. Ranges: Real-ESRGAN (Wang et al., ICCVW 2021) uses
JPEG 30..95; severity 1 goes on to 5, which social networks and messengers reach.
"""

import io
from typing import Literal

import numpy as np
from PIL import Image as PILImage

from degradations.base import Degradation, Params, Rendered, Scene
from pairforge.image import Image, to_float, to_pixels
from pairforge.rng import Rng

_PIL_SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


class JpegParams(Params):
    quality: int
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"]


def sample_jpeg(severity: float, rng: Rng) -> JpegParams:
    quality = round(92 - 84 * severity + rng.uniform(-3, 3))
    subsampling = str(rng.choice(["4:2:0", "4:2:2", "4:4:4"], p=[0.7, 0.1, 0.2]))
    return JpegParams.model_validate({"quality": quality, "subsampling": subsampling})


def apply_jpeg(image: Image, params: JpegParams, scene: Scene, rng: Rng) -> Rendered:
    buffer = io.BytesIO()
    PILImage.fromarray(to_pixels(image)).save(
        buffer, "JPEG", quality=params.quality, subsampling=_PIL_SUBSAMPLING[params.subsampling]
    )
    coded = np.asarray(PILImage.open(buffer).convert("RGB"))
    return Rendered(to_float(coded), image, realised={"coded_bytes": buffer.tell()})


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
