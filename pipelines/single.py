"""Degrading one file, outside any dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from degradations.base import Pattern, Scene
from degradations.catalog import BY_NAME, replay
from degradations.chains import CHAIN_BY_NAME
from degradations.scene.depth import GeometricDepth
from degradations.scene.segments import SlicSegments
from pairforge.config_words import near
from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels, check_picture_path, prepare_worker, save_picture, to_pixels
from pairforge.records import SampleError, Step
from pairforge.rng import rng_for
from pipelines.banks import decode_pattern, open_bank, read_pattern_png
from pipelines.drawing import draw_choice, patterns_taken
from pipelines.scenes import enlarge, facts_of, needs_of

_LIMITS = DecodeLimits(max_bytes=10**9, max_pixels=150_000_000, max_side=32_000, min_side=16)
_LOSSLESS = (".png", ".webp")
"""As `save_picture` writes them."""


@dataclass(frozen=True)
class SingleOrder:
    """What to do with one photo; `second` and `bank` where the degradation needs them."""

    image: Path
    kind: str
    severity: float
    seed: int
    second: Path | None = None
    bank: str | None = None


def degrade_file(order: SingleOrder, output: Path, target: Path | None) -> dict[str, Any]:
    """Write the degraded photo (and what HQ would be); return its steps and what was realised.

    Depth and segments are the weight-free guesses. Raises ValueError for an unknown degradation, one that needs a
    clip, a second image or bank that is missing or not needed, and a file that would not keep pixels as they are.
    """
    _check(order, output, target)
    prepare_worker()
    steps = draw_choice(order.kind, order.severity, order.seed, (order.kind,))
    needs = needs_of(steps)
    if "frames" in needs:
        raise ValueError(f"--type {order.kind} needs a clip; use it in a run, with sources of kind video")
    if ("second" in needs) != (order.second is not None):
        wanted = "needs --second IMAGE" if order.second is None else "takes no --second"
        raise ValueError(f"--type {order.kind} {wanted}")
    base = _read(order.image)
    maps: dict[str, Any] = {}
    if "depth" in needs:
        maps["depth"] = GeometricDepth()(base)
    if "segments" in needs:
        maps["segments"] = SlicSegments()(base)
    views: dict[str, Any] = {need: enlarge(held, base) for need, held in maps.items()}
    scene = Scene(
        second=_read(order.second) if order.second else None,
        patterns=_patterns(order, steps),
        **views,
    )
    rendered = replay(base, steps, scene)
    save_picture(to_pixels(rendered.image), output)
    if target is not None:
        save_picture(to_pixels(rendered.target), target)
    return {
        "output": str(output),
        "steps": [step.model_dump(mode="json") for step in steps],
        "scene": {need: facts_of(held) for need, held in maps.items()},
        "realised": rendered.realised,
    }


def _check(order: SingleOrder, output: Path, target: Path | None) -> None:
    if order.kind not in BY_NAME and order.kind not in CHAIN_BY_NAME:
        near_it = near(order.kind, [*BY_NAME, *CHAIN_BY_NAME])
        known = f"{', '.join(sorted(BY_NAME))}; chains: {', '.join(sorted(CHAIN_BY_NAME))}"
        raise ValueError(f"--type {order.kind!r} is unknown{near_it}; allowed: {known}")
    for option, path in (("--output", output), ("--target", target)):
        if path is not None and check_picture_path(path).suffix.lower() not in _LOSSLESS:
            raise ValueError(f"{option} {path}: JPEG would change the pixels that were made; allowed: .png and .webp")
    if target is not None and target.resolve() == output.resolve():
        raise ValueError(f"--output and --target name the same file, {output}")
    if not 0 <= order.severity <= 1:
        raise ValueError(f"--severity {order.severity} is outside 0..1")


def _patterns(order: SingleOrder, steps: tuple[Step, ...]) -> dict[str, tuple[Pattern, ...]]:
    taken = patterns_taken(steps)
    if bool(taken) != (order.bank is not None):
        kind = next(iter(taken), "")
        wanted = f"needs --bank URL, of {kind} patterns (`pairforge bank build {kind}`)" if taken else "takes no --bank"
        raise ValueError(f"--type {order.kind} {wanted}")
    patterns: dict[str, tuple[Pattern, ...]] = {}
    for kind, count in taken.items():
        assert order.bank is not None
        bank = open_bank(order.bank)
        if bank.kind != kind or len(bank.entries) < count:
            raise ValueError(
                f"--bank {order.bank} holds {len(bank.entries)} {bank.kind} patterns; {count} {kind} ones are wanted"
            )
        places = rng_for(order.seed, order.kind, "patterns").choice(len(bank.entries), size=count, replace=False)
        patterns[kind] = tuple(decode_pattern(read_pattern_png(order.bank, bank.entries[int(p)])) for p in places)
    return patterns


def _read(path: Path) -> Pixels:
    try:
        return decode_source(path.read_bytes(), _LIMITS)[0]
    except SampleError as refusal:
        raise ValueError(f"{path}: {refusal}") from refusal
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
