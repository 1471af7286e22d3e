"""Severity over real photos, golden images of every version, and that a step stays on its thread."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from sklearn.datasets import load_sample_image

from degradations.base import Scene, sample_step
from degradations.catalog import BY_NAME, DEGRADATIONS, replay
from degradations.scene.depth import geometric_depth
from degradations.scene.segments import SlicSegments
from degradations.scene.upsampling import upsample_segments
from pairforge.image import Pixels, encode_png, to_pixels
from pairforge.records import Step
from pairforge.rng import rng_for, seed_for

from .test_catalog import NAMES, small_patterns

ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).parent / "golden"
SEVERITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SIZE = (144, 192)

each = pytest.mark.parametrize("name", NAMES)


@cache
def photos() -> tuple[Pixels, ...]:
    """Five real photos of one size."""
    found = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "rocket")]
    found += [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    return tuple(cv2.resize(photo, SIZE[::-1], interpolation=cv2.INTER_AREA) for photo in found)


@cache
def scenes() -> tuple[Scene, ...]:
    """All that a step may ask for, of every photo."""
    made = []
    for place, photo in enumerate(photos()):
        frames = tuple(np.ascontiguousarray(np.roll(photo, 2 * shift, axis=1)) for shift in range(-2, 3))
        made.append(
            Scene(
                depth=geometric_depth(photo),
                segments=upsample_segments(SlicSegments()(photo), photo),
                second=photos()[place - 1],
                frames=frames,
                patterns=small_patterns(),
            )
        )
    return tuple(made)


def step_of(name: str, severity: float, seed: int) -> Step:
    return sample_step(BY_NAME[name], severity, rng_for(seed, name, "params"), seed_for(seed, name, "pixels"))


def distances(name: str, seed: int) -> Iterator[float]:
    """By severity: mean |LQ - HQ| in codes, median over photos."""
    for severity in SEVERITIES:
        step = step_of(name, severity, seed)
        found = []
        for photo, scene in zip(photos(), scenes(), strict=True):
            rendered = replay(photo, [step], scene)
            image = rendered.image
            if image.shape != rendered.target.shape:
                image = cv2.resize(image, rendered.target.shape[1::-1], interpolation=cv2.INTER_CUBIC)
            found.append(255 * float(np.abs(np.clip(image, 0, 1) - np.clip(rendered.target, 0, 1)).mean()))
        yield float(np.median(found))


def ranks(values: list[float]) -> np.ndarray:
    """Ranks with ties at their mean."""
    array = np.array(values)
    below = (array[:, None] > array[None]).sum(axis=1)
    equal = (array[:, None] == array[None]).sum(axis=1)
    return np.asarray(below + (equal - 1) / 2)


@each
@pytest.mark.parametrize("seed", range(3))
def test_more_severity_is_more_distance_from_the_target(name: str, seed: int) -> None:
    """Spearman's rank correlation of at least 0.95: over six severities that allows no swap but of equals."""
    found = list(distances(name, seed))
    correlation = float(np.corrcoef(ranks(found), np.arange(len(found)))[0, 1])
    assert correlation >= 0.95, [round(value, 2) for value in found]


# Golden images


def golden_of(name: str) -> Pixels:
    """LQ of the first photo at severity 0.7."""
    return to_pixels(replay(photos()[0], [step_of(name, 0.7, 0)], scenes()[0]).image)


def golden_path(name: str) -> Path:
    return GOLDEN / f"{name}-v{BY_NAME[name].version}.png"


@each
def test_pixels_of_a_version_stay(name: str) -> None:
    """Within one code, as other CPUs may round. New pixels need a new version, and `make golden`."""
    path = golden_path(name)
    assert path.exists(), f"{path.name} is missing: `make golden` writes it"
    stored = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    now = golden_of(name)
    assert stored.shape == now.shape
    off = np.abs(stored.astype(int) - now)
    assert int(off.max()) <= 1, f"{np.mean(off > 1):.2%} of values differ by up to {off.max()} codes"


def test_no_golden_image_is_left_over() -> None:
    assert {path.name for path in GOLDEN.glob("*.png")} == {golden_path(name).name for name in NAMES}


# Threads

_ALONE = """
import time
from tests.degradations.test_severity import photos, scenes, step_of
from degradations.catalog import DEGRADATIONS, replay
import cv2
from pairforge.image import use_one_thread
use_one_thread()
photo, scene = photos()[0], scenes()[0]
big = cv2.resize(photo, (768, 576), interpolation=cv2.INTER_CUBIC)
for name in [d.name for d in DEGRADATIONS if not d.needs - {"patterns"}]:
    step = step_of(name, 0.6, 0)
    replay(big, [step], scene)
    process, thread = time.process_time(), time.thread_time()
    for _ in range(3):
        replay(big, [step], scene)
    process, thread = time.process_time() - process, time.thread_time() - thread
    print(name, process - thread, thread)
"""


def test_a_step_computes_on_the_thread_that_calls_it() -> None:
    """Workers are processes, one a core: threads of a library would take the cores of the others."""
    done = subprocess.run(
        [sys.executable, "-c", _ALONE], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) >= 20
    elsewhere = {name: float(other) for name, other, own in lines if float(other) > 0.2 * float(own) + 0.02}
    assert elsewhere == {}


def write_golden() -> None:
    """Write what is missing, remove what belongs to no version of now."""
    GOLDEN.mkdir(exist_ok=True)
    wanted = {golden_path(degradation.name): degradation.name for degradation in DEGRADATIONS}
    for path in set(GOLDEN.glob("*.png")) - set(wanted):
        path.unlink()
    for path, name in wanted.items():
        if not path.exists():
            path.write_bytes(encode_png(golden_of(name)))
            print(path.name)


if __name__ == "__main__":
    write_golden()
