"""What every degradation costs: CPU milliseconds on one thread at 1024 x 1024, beside reference operations.

    python benchmarks/degradations.py
    python benchmarks/degradations.py --only haze rain --draws 9

`apply` is the step alone, its input already in the step's space and its scene given; `whole` is from 8-bit base to
8-bit result. Both are medians over draws at one severity. Only ratios to `GaussianBlur sigma 5` in the same
run can be compared between machines: `limit` is the wanted ratio, from wanted milliseconds on a machine where
that blur takes 29. `peak` is memory beyond that before the call. Depth and segments are made once for a photo and
stored, so they are listed apart. Ends with 1 where a limit is passed.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/degradations.py is called like the package
from sklearn.datasets import load_sample_image

from degradations.banks import GENERATORS
from degradations.base import Pattern, Scene, sample_step
from degradations.catalog import BY_NAME, DEGRADATIONS, replay
from degradations.chains import CHAINS
from degradations.scene.depth import GeometricDepth
from degradations.scene.segments import SlicSegments
from degradations.scene.upsampling import upsample_depth, upsample_segments
from pairforge.image import Pixels, encode_png, pixels_to_linear, prepare_worker, to_float, to_pixels
from pairforge.records import Step
from pairforge.rng import rng_for, rng_from_seed, seed_for

SIDE_PX = 1024
BLUR_MS = 29.0
"""Of the machine that the wanted milliseconds are of."""
WANTED_MS = {
    "haze": 45,
    "rain": 100,
    "snow": 80,
    "moire": 200,
    "moire_pattern": 40,
    "flare": 90,
    "flare_lights": 90,
    "flare_overlay": 90,
    "reflection": 90,
    "double_pane_reflection": 90,
    "nonlinear_reflection": 90,
    "low_light": 60,
    "low_light_curve": 60,
    "sensor_noise": 80,
    "segment_noise": 80,
    "granular_noise": 80,
    "gaussian_noise": 80,
    "poisson_noise": 80,
    "impulse_noise": 80,
    "banding_noise": 80,
    "defocus_blur": 60,
    "motion_blur": 60,
    "jpeg": 12,
    "old_photo": 80,
    "real_esrgan": 150,
}
MOST_PEAK_MB = 250


def cpu_ms(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU time of this thread."""
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        work()
        times.append(1000 * (time.thread_time() - started))
    return statistics.median(times)


def peak_mb(work: Callable[[], Any]) -> float:
    """Largest resident memory during a call, beyond that before it (Linux, glibc)."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left behind would hide it
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_mb()
    work()
    return _high_water_mb() - before


def _high_water_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def photo_of(pixels: Pixels) -> Pixels:
    """A square of a real photo, enlarged to the size of the benchmark."""
    side = min(pixels.shape[:2])
    square = np.ascontiguousarray(pixels[:side, :side])
    large: Pixels = cv2.resize(square, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
    return large


def scene_of(base: Pixels) -> Scene:
    """Everything that a step may ask for."""
    patterns: dict[str, tuple[Pattern, ...]] = {
        kind: tuple(generator.make(index, 0) for index in range(3)) for kind, generator in GENERATORS.items()
    }
    frames = tuple(np.roll(base, 3 * shift, axis=1) for shift in range(-3, 4))
    return Scene(
        depth=upsample_depth(GeometricDepth()(base), base),
        segments=upsample_segments(SlicSegments()(base), base),
        second=photo_of(skimage.data.astronaut()),
        frames=frames,
        patterns=patterns,
        base_size_px=base.shape[:2],
    )


def measure(steps_of: Callable[[int], list[Step]], base: Pixels, scene: Scene, draws: int) -> dict[str, float]:
    """Medians over draws; `apply` is left out of chains, whose steps change space and size."""
    alone, whole, peak = [], [], 0.0
    for seed in range(draws):
        steps = steps_of(seed)

        def render(steps: list[Step] = steps) -> None:
            to_pixels(replay(base, steps, scene).image)

        render()
        whole.append(cpu_ms(render, 3))
        peak = max(peak, peak_mb(render))
        if len(steps) == 1:
            degradation = BY_NAME[steps[0].name]
            image = pixels_to_linear(base) if degradation.space == "linear" else to_float(base)
            params = degradation.params_type.model_validate(steps[0].params)

            def apply(
                degradation: Any = degradation, image: Any = image, params: Any = params, step: Any = steps[0]
            ) -> Any:
                return degradation.apply(image, params, scene, rng_from_seed(step.seed))

            alone.append(cpu_ms(apply, 3))
    return {"apply": statistics.median(alone or whole), "whole": statistics.median(whole), "peak_mb": peak}


def references(base: Pixels) -> dict[str, float]:
    """CPU milliseconds of operations that anyone can time on their machine."""
    image = to_float(base)

    def scale_add_clip() -> None:
        np.clip(image * np.float32(0.7) + np.float32(0.1), 0, 1)

    return {
        "GaussianBlur sigma 5": cpu_ms(lambda: cv2.GaussianBlur(image, (0, 0), 5), 15),
        "float32 scale-add-clip": cpu_ms(scale_add_clip, 15),
        "PNG encode": cpu_ms(lambda: encode_png(base), 7),
        "depth: geometric, with enlarging": cpu_ms(lambda: upsample_depth(GeometricDepth()(base), base), 5),
        "segments: SLIC, with enlarging": cpu_ms(lambda: upsample_segments(SlicSegments()(base), base), 3),
    }


def drawers(severity: float) -> dict[str, Callable[[int], list[Step]]]:
    """By name of a degradation or chain, its steps for a seed."""

    def of_degradation(name: str) -> Callable[[int], list[Step]]:
        return lambda seed: [
            sample_step(BY_NAME[name], severity, rng_for(seed, name, "params"), seed_for(seed, name, "pixels"))
        ]

    def of_chain(chain: Any) -> Callable[[int], list[Step]]:
        return lambda seed: [
            Step(
                name=name,
                version=BY_NAME[name].version,
                severity=severity,
                params=params.model_dump(mode="json"),
                seed=seed_for(seed, chain.name, place),
            )
            for place, (name, params) in enumerate(chain.draw(severity, rng_for(seed, chain.name)))
        ]

    return {d.name: of_degradation(d.name) for d in DEGRADATIONS} | {c.name: of_chain(c) for c in CHAINS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of degradations and chains")
    parser.add_argument("--severity", type=float, default=0.5)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    prepare_worker()
    base = photo_of(load_sample_image("china.jpg"))
    scene = scene_of(base)
    told = references(base)
    blur_ms = told["GaussianBlur sigma 5"]
    for name, milliseconds in told.items():
        print(f"{name:<34} {milliseconds:7.1f} ms  ratio {milliseconds / blur_ms:5.2f}")
    print(f"\n{'degradation':<24} {'apply ms':>9} {'ratio':>6} {'limit':>6} {'whole ms':>9} {'peak MB':>8}")
    figures: dict[str, Any] = {"reference_ms": told, "degradations": {}}
    passed = []
    for name, steps_of in drawers(arguments.severity).items():
        if arguments.only and name not in arguments.only:
            continue
        found = measure(steps_of, base, scene, arguments.draws)
        ratio, limit = found["apply"] / blur_ms, WANTED_MS.get(name, 0) / BLUR_MS
        over = (limit and ratio > limit) or found["peak_mb"] > MOST_PEAK_MB
        passed += [name] if over else []
        figures["degradations"][name] = {**found, "ratio": ratio, "limit": limit or None}
        shown = f"{limit:6.2f}" if limit else "     -"
        numbers = f"{found['apply']:9.1f} {ratio:6.2f} {shown} {found['whole']:9.1f} {found['peak_mb']:8.0f}"
        print(f"{name:<24} {numbers}{'  over' if over else ''}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    print(f"\nover their limit: {', '.join(passed) or 'none'}")
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
