"""Degraded photos and a weight-free config for tests of the ground-truth line."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pairforge.image import Pixels
from pipelines.engine import Backend
from pipelines.ground_truth.place import Place
from pipelines.ground_truth.services import Shared, share_on_ray
from pipelines.ground_truth.settings import GroundTruthConfig
from pipelines.ray_backend import RayBackend
from pipelines.stages import Stage

KINDS = ("haze", "low_light", "noise", "clean")


def degraded(pixels: Pixels, kind: str, seed: int) -> Pixels:
    """A photo with one plain damage, or none."""
    values = pixels.astype(np.float32)
    if kind == "haze":
        values = 0.35 * values + 0.65 * 215
    elif kind == "low_light":
        values = 0.12 * values
    elif kind == "noise":
        values = values + 18 * np.random.default_rng(seed).standard_normal(values.shape, np.float32)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def write_photos(folder: Path, photos: dict[str, Pixels], each: int) -> Path:
    """`each` crops of every photo and kind, in a folder by kind; mirrored by kind, so that no two are near copies."""
    for turn, kind in enumerate(KINDS):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, pixels in photos.items():
            for place in range(each):
                top, left = 8 + 50 * (place % 2), 10 + 60 * place
                crop = pixels[top : top + 200, left : left + 220][:: 1 - 2 * (turn // 2), :: 1 - 2 * (turn % 2)]
                crop = degraded(crop, kind, place)
                path = folder / kind / f"{name}_{place}.png"
                assert cv2.imwrite(str(path), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
    return folder


def truth_config(output: str | Path, folder: str | Path, **changes: Any) -> GroundTruthConfig:
    """A small weight-free config, whose categories follow the folders; `changes` replace top-level keys."""

    def category(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "when": [{"measure": "folder", "allowed": [name], "reason": "other_folder"}], **more}

    data: dict[str, Any] = {
        "line": "ground_truth",
        "name": "small_truth",
        "output": str(output),
        "seed": 7,
        "sources": [{"kind": "files", "url": str(folder), "licence": "CC0-1.0", "group": {"by": "file"}}],
        "split": {"val": 0.2, "test": 0.0},
        "limits": {"max_bytes": 10**7, "max_pixels": 10**7, "max_side": 10**4, "min_side": 16},
        "base": {"policy": "resize_crop", "size_px": 192, "small": "refuse"},
        "screen": [
            {
                "scorer": "statistics",
                "rules": [{"measure": "statistics.texture", "least": 0.01, "reason": "content_poor"}],
            }
        ],
        "select": {
            "duplicates": {"most_bits": 2},
            "categories": [category("haze"), category("low_light"), category("noise")],
        },
        "make": {"generator": {"backend": "classical"}, "judge": {"backend": "metric"}},
        "budget": {"cap_usd": 0},
        "shards": {"records_per_shard": 3},
        "run": {"workers": 2},
    }
    return GroundTruthConfig.model_validate({**data, **changes})


class SessionPlace(Place):
    """The Ray that this test session has started."""

    def __init__(self) -> None:
        super().__init__(local=False, address=None, workers=2)

    def share(self, limits: Any, cap_usd: float | None, spent_usd: float) -> Shared:
        return share_on_ray(limits, cap_usd, spent_usd)

    def backend(self, stages: tuple[Stage, ...], context: Any) -> Backend:
        return RayBackend(stages, context)


def here() -> Place:
    """This process."""
    return Place(local=True, address=None, workers=None)
