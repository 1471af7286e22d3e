"""An exported network on files and folders: pictures in, restored pictures and comparisons out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels, encode_png
from pairforge.records import SampleError
from training.export import load_weights, read_facts
from training.launch import make_model
from training.tiling import restore_tiled

SUFFIXES = frozenset(".png .jpg .jpeg .webp .bmp .tif .tiff".split())
_LIMITS = DecodeLimits(max_bytes=2**30, max_pixels=2**28, max_side=2**15, min_side=1)
_GAP_PX = 4


@dataclass(frozen=True)
class Restored:
    """What became of one file: where it went, or why it did not."""

    source: Path
    target: Path
    fault: str = ""


def restore_files(
    model_folder: Path,
    paths: list[Path],
    output: Path,
    tile_px: int = 512,
    overlap_px: int = 32,
    device: str = "cpu",
    compare: bool = False,
    tell: Callable[[Restored], None] = lambda each: None,
) -> list[Restored]:
    """Restore every picture, folders with all below them, as PNG below `output`; with `compare`, input and output
    stand beside each other in it. A file that cannot be read is told, and the rest goes on.

    Raises FileNotFoundError for a path or a model that is not there, ValueError where nothing is to be restored or
    two pictures would get one name.
    """
    facts = read_facts(model_folder)
    model = load_weights(model_folder, make_model(facts.model)).to(device)

    def network(tiles: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = model(tiles)
        return made

    work = list(_listed(paths, output))
    if not work:
        raise ValueError(f"no picture below {', '.join(map(str, paths))}; looked for {' '.join(sorted(SUFFIXES))}")
    twice = {target for _, target in work if sum(other == target for _, other in work) > 1}
    if twice:
        raise ValueError(f"several pictures would become {sorted(twice)[0]}")
    found = []
    for source, target in work:
        try:
            pixels, _ = decode_source(source.read_bytes(), _LIMITS)
            made = restore_tiled(pixels, network, tile_px, overlap_px, device)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encode_png(_beside(pixels, made) if compare else made))
            found.append(Restored(source, target))
        except SampleError as refusal:
            found.append(Restored(source, target, str(refusal)))
        tell(found[-1])
    return found


def _listed(paths: list[Path], output: Path) -> Iterator[tuple[Path, Path]]:
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.suffix.lower() in SUFFIXES and output not in file.parents:
                    yield file, output / file.relative_to(path).with_suffix(".png")
        elif path.exists():
            yield path, output / f"{path.stem}.png"
        else:
            raise FileNotFoundError(2, "No such file or directory", str(path))


def _beside(before: Pixels, after: Pixels) -> Pixels:
    gap = np.zeros((before.shape[0], _GAP_PX, 3), np.uint8)
    return np.concatenate([before, gap, after], axis=1)
