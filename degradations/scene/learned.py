"""Depth and segments by networks of the `transformers` library, from a folder on disk: nothing is ever downloaded.

torch and transformers are loaded by the constructors. A revision names the files of the folder by a hash, the
library and every argument that reaches the map; on another device or with another torch the last bits may differ.

Depth: DPT / MiDaS (Ranftl, Bochkovskiy and Koltun, ICCV 2021) and Depth Anything V2 (Yang et al., NeurIPS 2024).
Segments: SAM 2 (Ravi et al., 2024), prompted with a grid of points (Kirillov et al., ICCV 2023).
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.scene.given import check_range, relative_to_inverse
from degradations.scene.sky import sky_among_far
from degradations.scene.stored import FARTHEST_M, NEAREST_M, DepthMap, SegmentMap, compact_labels, depth_map
from pairforge.image import Pixels, Plane
from pairforge.weights import WEIGHTS, model_folder, weights_hash

_RELATIVE_CONFIDENCE, _METRIC_CONFIDENCE, _SEGMENTS_CONFIDENCE = 0.7, 0.8, 0.8


class TransformersDepth:
    """Depth of a model folder, on `device` ("cpu", "cuda", "cuda:1").

    Most models give relative inverse depth, with unknown scale and shift: its 2nd to 98th percentile is laid over
    1 / far_m .. 1 / near_m, so metres are assumed; a constant map is far. Models whose config says "metric" give
    metres, and near_m and far_m are not used. Planes have up to `map_side_px` a side.
    Raises ValueError for a folder that is missing or holds no such model.
    """

    name = "transformers"

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        *,
        near_m: float = 2.0,
        far_m: float = 100.0,
        focal_frac: float = 1.0,
        map_side_px: int = 518,
    ) -> None:
        folder = model_folder(path)
        check_range(near_m, far_m)
        if map_side_px < 1 or focal_frac <= 0:
            raise ValueError(f"map_side_px {map_side_px} and focal_frac {focal_frac} are not above 0")
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        self._model = _loaded_model(AutoModelForDepthEstimation, folder, device)
        # Models differ in their mean and size: the processor is the one that was saved with the model.
        self._processor = _loaded(AutoImageProcessor, folder)
        self._device = device
        self._near_m, self._far_m, self._focal_frac = near_m, far_m, focal_frac
        self._map_side_px = map_side_px
        self._metric = getattr(self._model.config, "depth_estimation_type", "relative") == "metric"
        self._model_type = str(self._model.config.model_type)
        arguments = "metric" if self._metric else f"{near_m:g}-{far_m:g}"
        self.revision = _revision(folder, f"{arguments}-{focal_frac:g}-{map_side_px}")

    def __call__(self, base: Pixels) -> DepthMap:
        """Depth of `base`. Raises ValueError where the model gives what is no depth."""
        import torch

        height, width = base.shape[:2]
        scale = min(1.0, self._map_side_px / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        with torch.inference_mode():
            inputs = self._processor(images=[np.ascontiguousarray(base)], return_tensors="pt").to(self._device)
            outputs = self._model(**inputs)
            found = self._processor.post_process_depth_estimation(outputs, target_sizes=[size])[0]["predicted_depth"]
            # The processor enlarges by cubic interpolation, which leaves the range of what the model gave.
            raw = outputs.predicted_depth
            plane = found.clamp(min=float(raw.min()), max=float(raw.max())).float().cpu().numpy()
        if plane.shape != size or not np.isfinite(plane).all():
            raise ValueError(f"{self._model_type} gave depth of shape {plane.shape} for {size}, or values not finite")
        inverse = self._inverse(plane)
        return depth_map(
            inverse,
            sky_among_far(base, inverse),
            focal_frac=self._focal_frac,
            provider=self.name,
            revision=self.revision,
            confidence=_METRIC_CONFIDENCE if self._metric else _RELATIVE_CONFIDENCE,
            metric=self._metric,
            facts={"model_type": self._model_type},
        )

    def _inverse(self, plane: Plane) -> Plane:
        if not self._metric:
            return relative_to_inverse(plane.astype(np.float64), None, self._near_m, self._far_m)
        inverse: Plane = (1.0 / np.clip(plane.astype(np.float64), NEAREST_M, FARTHEST_M)).astype(np.float32)
        return inverse


class Sam2Segments:
    """Regions of a SAM 2 model folder, on `device`: masks of a grid of points, large ones below small ones.

    `points_per_side` points each way are tried; what no mask claims is a region of its own. Labels have up to
    `map_side_px` a side. Raises ValueError for a folder that is missing or holds no such model.
    """

    name = "sam2"

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        *,
        points_per_side: int = 16,
        least_iou: float = 0.8,
        least_stability: float = 0.9,
        map_side_px: int = 512,
    ) -> None:
        folder = model_folder(path)
        if points_per_side < 1 or map_side_px < 1:
            raise ValueError(f"points_per_side {points_per_side} and map_side_px {map_side_px} are not above 0")
        from transformers import Sam2Model, Sam2Processor, pipeline

        model = _loaded_model(Sam2Model, folder, device)
        # AutoProcessor would load the processor for video.
        processor = _loaded(Sam2Processor, folder)
        self._pipeline: Any = pipeline(
            "mask-generation", model=model, image_processor=processor.image_processor, device=device
        )
        self._points_per_side, self._map_side_px = points_per_side, map_side_px
        self._least_iou, self._least_stability = least_iou, least_stability
        arguments = f"{points_per_side}-{least_iou:g}-{least_stability:g}-{map_side_px}"
        self.revision = _revision(folder, arguments)

    def __call__(self, base: Pixels) -> SegmentMap:
        """Regions of `base`; one region where the model finds no mask."""
        from PIL import Image

        height, width = base.shape[:2]
        scale = min(1.0, self._map_side_px / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(base, size, interpolation=cv2.INTER_AREA)
        found = self._pipeline(
            Image.fromarray(small),
            points_per_batch=64,
            points_per_crop=self._points_per_side,
            pred_iou_thresh=self._least_iou,
            stability_score_thresh=self._least_stability,
            crops_n_layers=0,
        )
        masks = [np.asarray(mask, dtype=bool) for mask in found["masks"]]
        labels, count = paint_masks(masks, (size[1], size[0]))
        return SegmentMap(
            labels, count, self.name, self.revision, _SEGMENTS_CONFIDENCE if masks else 0.0, {"masks": len(masks)}
        )


def paint_masks(masks: list[NDArray[np.bool_]], shape: tuple[int, int]) -> tuple[NDArray[np.uint16], int]:
    """Labels (h, w) and their count, of masks (h, w) that overlap: small ones lie on large ones."""
    labels = np.zeros(shape, np.int32)
    areas = [int(mask.sum()) for mask in masks]
    for number, index in enumerate(sorted(range(len(masks)), key=lambda i: (-areas[i], i)), start=1):
        labels[masks[index]] = number
    compact, count = compact_labels(labels)
    return compact.astype(np.uint16), count


def _loaded_model(kind: Any, folder: Path, device: str) -> Any:
    model, report = _loaded(kind, folder, output_loading_info=True)
    # The library fills in what a file lacks at random, and only warns.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} weights of {kind.__name__}, the first is {missing[0]}")
    return model.to(device).eval()


def _loaded(kind: Any, folder: Path, **arguments: Any) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **arguments)
    except Exception as error:  # the libraries below raise errors of many kinds, some of their own
        raise ValueError(f"{folder} cannot be loaded as {kind.__name__}: {error}") from error


def model_hash(path: str) -> str:
    """16 hex digits of the configuration and the weights in a folder. Raises ValueError where it holds no model."""
    return weights_hash(model_folder(path), (".json", *WEIGHTS))


def _revision(folder: Path, arguments: str) -> str:
    """Of the files in a folder, the library, and the arguments."""
    return f"1-{model_hash(str(folder))}-transformers{version('transformers')}-{arguments}"
