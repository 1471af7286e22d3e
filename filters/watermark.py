"""Watermarks, logos and captions by an open-vocabulary detector of the `transformers` library, from a folder on disk.

OWLv2: Minderer, Gritsenko and Houlsby, "Scaling Open-Vocabulary Object Detection", NeurIPS 2023.
torch and transformers are loaded by the constructor. Nothing is downloaded.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from filters.weights import model_folder, text_hash, weights_hash
from pairforge.image import Pixels

QUERIES = (
    "a watermark",
    "a semi-transparent watermark over a photo",
    "a stock photo logo",
    "a copyright notice",
    "a caption laid over the picture",
    "a website address",
    "a signature of the photographer",
    "a date stamp",
)
_RASTER_PX = 256


class Detection(NamedTuple):
    """A box in px, its sides inside the picture, with its score 0..1 and the query that found it."""

    query: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


class Owlv2Watermarks:
    """Score of the surest find, and the share of the picture under finds of `least_score` or more.

    `path` is the folder of an OWLv2 (or OWL-ViT v2) model with its processor; every query must fit its few tokens.
    Raises ValueError for a folder that is missing or holds no such model, and for a query that is too long.
    """

    name = "owlv2"

    def __init__(
        self, path: str, device: str = "cpu", *, queries: Sequence[str] = QUERIES, least_score: float = 0.2
    ) -> None:
        folder = model_folder(path, "config.json")
        if not queries or not 0 < least_score < 1:
            raise ValueError(f"{len(queries)} queries with least_score {least_score}: needed are some, and 0..1")
        import torch
        from transformers import Owlv2ForObjectDetection, Owlv2Processor

        try:
            model, report = Owlv2ForObjectDetection.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True
            )
            self._processor: Any = Owlv2Processor.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the libraries below raise errors of many kinds
            raise ValueError(f"{path} cannot be loaded as OWLv2: {error}") from error
        # The library fills in what a file lacks at random, and only warns.
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"{path} lacks {len(missing)} weights of OWLv2, the first is {missing[0]}")
        self._torch, self._device = torch, device
        self._model: Any = model.to(device).eval()
        self._queries, self._least_score = tuple(queries), least_score
        self._check_lengths(model.config.text_config.max_position_embeddings)
        given = text_hash("\n".join((f"{least_score:g}", *queries)))
        self.revision = f"1-{weights_hash(folder)}-transformers{version('transformers')}-{given}"

    def _check_lengths(self, longest: int) -> None:
        for query in self._queries:
            count = len(self._processor.tokenizer(query)["input_ids"])
            if count > longest:
                raise ValueError(f"query {query!r} has {count} tokens; the model reads {longest}")

    def detect(self, pixels: Pixels, least_score: float | None = None) -> tuple[Detection, ...]:
        """Finds from the surest on, cut to the picture; at `least_score`, else that of the constructor."""
        from PIL import Image

        height, width = pixels.shape[:2]
        inputs = self._processor(images=[Image.fromarray(pixels)], text=[list(self._queries)], return_tensors="pt").to(
            self._device
        )
        with self._torch.inference_mode():
            outputs = self._model(**inputs)
        (found,) = self._processor.post_process_grounded_object_detection(
            outputs,
            threshold=self._least_score if least_score is None else least_score,
            target_sizes=[(height, width)],
        )
        detections = [
            Detection(self._queries[label], score, *_cut(box, width, height))
            for label, score, box in zip(
                found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
            )
        ]
        # The network sees a square with an empty rest: what it finds there is nothing.
        inside = (found for found in detections if found.right > found.left and found.bottom > found.top)
        return tuple(sorted(inside, key=lambda found: (-found.score, found[0], found[2:])))

    def measure(self, pixels: Pixels) -> Mapping[str, float]:
        """`watermark`: score of the surest find, 0 for none; `watermark_area`: share under finds, on a raster."""
        finds = self.detect(pixels, 0.0)
        height, width = pixels.shape[:2]
        covered = np.zeros((_RASTER_PX, _RASTER_PX), bool)
        for find in finds:
            if find.score >= self._least_score:
                rows = slice(int(find.top / height * _RASTER_PX), int(np.ceil(find.bottom / height * _RASTER_PX)))
                columns = slice(int(find.left / width * _RASTER_PX), int(np.ceil(find.right / width * _RASTER_PX)))
                covered[rows, columns] = True
        return {"watermark": finds[0].score if finds else 0.0, "watermark_area": float(covered.mean())}


def _cut(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    left, right = (min(max(x, 0.0), float(width)) for x in (left, right))
    top, bottom = (min(max(y, 0.0), float(height)) for y in (top, bottom))
    return left, top, right, bottom
