"""Degrading one file, outside any dataset."""

from pathlib import Path
from typing import Any

from degradations.base import sample_step
from degradations.catalog import BY_NAME, replay
from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels, save_picture, to_pixels, use_one_thread
from pairforge.records import SampleError
from pairforge.rng import rng_for, seed_for
from pipelines.synthesis import build_scene

_LIMITS = DecodeLimits(max_bytes=10**9, max_pixels=150_000_000, max_side=32_000, min_side=16)


def degrade_file(
    image: Path, kind: str, severity: float, seed: int, output: Path, second: Path | None, target: Path | None
) -> dict[str, Any]:
    """Write the degraded photo (and what HQ would be); return its step and what was realised.

    Raises ValueError for an unknown degradation, one that needs a clip, or a missing second image.
    """
    degradation = BY_NAME.get(kind)
    if degradation is None:
        raise ValueError(f"--type {kind!r} is unknown; allowed: {', '.join(sorted(BY_NAME))}")
    if "frames" in degradation.needs:
        raise ValueError(f"--type {kind} needs a clip; use it in a run, with sources of kind video")
    if ("second" in degradation.needs) != (second is not None):
        raise ValueError(f"--type {kind} " + ("needs --second IMAGE" if second is None else "takes no --second"))
    use_one_thread()
    base = _read(image)
    step = sample_step(degradation, severity, rng_for(seed, kind, "params"), seed_for(seed, kind, "pixels"))
    scene, facts = build_scene(degradation.needs, base, _read(second) if second else None)
    rendered = replay(base, [step], scene)
    save_picture(to_pixels(rendered.image), output)
    if target is not None:
        save_picture(to_pixels(rendered.target), target)
    return {"output": str(output), "step": step.model_dump(mode="json"), "scene": facts, "realised": rendered.realised}


def _read(path: Path) -> Pixels:
    try:
        return decode_source(path.read_bytes(), _LIMITS)[0]
    except SampleError as refusal:
        raise ValueError(f"{path}: {refusal}") from refusal
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
