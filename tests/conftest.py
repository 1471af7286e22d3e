"""Fixtures that packages share: photos on disk, a small config, one Ray for the whole session, S3."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data

from pairforge.image import Pixels, use_one_thread
from pipelines.settings import RunConfig

from .s3_server import s3_app, s3_url  # noqa: F401 - fixtures

os.environ["PYTHONHASHSEED"] = "0"
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    use_one_thread()


@pytest.fixture(scope="session")
def photos() -> dict[str, Pixels]:
    """Real photos, uint8 RGB, that ship inside scikit-image."""
    return {name: np.ascontiguousarray(getattr(skimage.data, name)()) for name in PHOTOS}


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, Pixels]) -> Path:
    """Twelve different crops of real photos as PNG files, in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(12):
        pixels = photos[PHOTOS[index % len(PHOTOS)]]
        y, x = 16 * (index // 4), 24 * (index // 4)
        target = folder / ("a" if index % 2 else "b") / f"{PHOTOS[index % len(PHOTOS)]}_{index:02d}.png"
        target.parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(target), cv2.cvtColor(pixels[y : y + 240, x : x + 260], cv2.COLOR_RGB2BGR))
    return folder


def config_of(output: str | Path, photo_folder: str | Path, **changes: Any) -> RunConfig:
    """A small valid config: 128 px bases, two categories, two variants; `changes` replace top-level keys."""
    step = {"type": "jpeg", "severity": [0.2, 0.8]}
    data: dict[str, Any] = {
        "name": "small",
        "output": str(output),
        "seed": 7,
        "sources": [
            {"kind": "files", "url": str(photo_folder), "licence": "CC0-1.0", "group": {"by": "file"}},
        ],
        "split": {"val": 0.3, "test": 0.0},
        "limits": {"max_bytes": 10**7, "max_pixels": 10**7, "max_side": 10**4, "min_side": 16},
        "base": {"policy": "resize_crop", "size_px": 128, "small": "refuse"},
        "scene": {"depth": {"provider": "geometric"}, "segments": {"provider": "slic"}},
        "recipes": [
            {"name": "jpeg", "version": 1, "category": "compression", "variants": 2, "chain": [step]},
            {
                "name": "reflected",
                "version": 1,
                "category": "reflection",
                "variants": 1,
                "chain": [{"type": "reflection", "severity": 0.5}],
            },
        ],
        "shards": {"records_per_shard": 5},
        "run": {"workers": 2},
    }
    return RunConfig.model_validate({**data, **changes})


@pytest.fixture
def make_config(tmp_path: Path, photo_folder: Path) -> Callable[..., RunConfig]:
    """`config_of` with the photo folder and a fresh output filled in."""

    def make(output: str | Path | None = None, **changes: Any) -> RunConfig:
        return config_of(output or tmp_path / "out", photo_folder, **changes)

    return make


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One embedded Ray with two CPUs for every test that needs one."""
    import ray

    from pipelines.ray_backend import start_embedded_ray

    start_embedded_ray(2)
    yield
    ray.shutdown()
