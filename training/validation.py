"""What a network makes of held-out pictures: PSNR and SSIM by category, beside those of its input, and a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eval.metrics import means_by_category, psnr_db, ssim
from pairforge.image import Pixels, save_picture
from training.augment import PairSettings
from training.data import Pair, PairDataset
from training.pool import Pool, Ticket
from training.settings import TrainConfig
from training.tiling import restore_tiled

_GAP_PX = 4
_SHOWN_PX = 384


class Validator:
    """Restores whole held-out pictures in tiles. Scores of the input are measured once.

    Called with a network and a step it gives `psnr`, the mean over categories, and `psnr/CATEGORY`, `ssim/CATEGORY`,
    `psnr_input/CATEGORY`, `ssim_input/CATEGORY`; SSIM is that of `eval.metrics.ssim` on RGB.
    """

    def __init__(self, config: TrainConfig) -> None:
        stated = config.validation
        sources = [each.model_copy(update={"splits": (stated.split,)}) for each in config.sources]
        pool = Pool(sources, None)
        settings = PairSettings(crop_px=None, turns="none", reverse=config.reverse)
        self._config = config
        self._dataset = PairDataset(pool.storages, settings)
        self._tickets: list[Ticket] = pool.tickets(stated.most_per_category)
        self._input: dict[str, Mapping[str, float | None]] = {}

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        rows: list[tuple[str, Mapping[str, float | None]]] = []
        shown: dict[str, Pixels] = {}
        for ticket in self._tickets:
            pair = self._dataset[ticket]
            assert isinstance(pair, Pair)
            made = self.restored(model, pair.lq)
            if ticket.key not in self._input:
                self._input[ticket.key] = _scores(pair.lq, pair.hq, "_input")
            rows.append((pair.category, {**_scores(made, pair.hq, ""), **self._input[ticket.key]}))
            shown.setdefault(pair.category, _strip(pair.lq, made, pair.hq))
        _save(Path(self._config.output) / "validation" / f"step-{step:09d}.png", shown)
        means = means_by_category(rows)
        found = {
            f"{name}/{category}": mean.mean
            for category, by_name in means.items()
            for name, mean in by_name.items()
            if mean.mean is not None
        }
        of_categories = [value for name, value in found.items() if name.startswith("psnr/")]
        return {"psnr": float(np.mean(of_categories)), **found}

    def restored(self, model: nn.Module, lq: Pixels) -> Pixels:
        """One picture through the network, in tiles."""
        stated = self._config.validation

        def restore(tiles: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = model(tiles)
            return made

        return restore_tiled(lq, restore, stated.tile_px, stated.overlap_px, self._config.device)


def _scores(pixels: Pixels, truth: Pixels, suffix: str) -> dict[str, float | None]:
    return {f"psnr{suffix}": psnr_db(pixels, truth), f"ssim{suffix}": ssim(pixels, truth)}


def _strip(*pictures: Pixels) -> Pixels:
    """Input, what was made of it and the truth, side by side, the middle of each at full size."""
    height, width = (min(side, _SHOWN_PX) for side in pictures[0].shape[:2])
    top, left = (pictures[0].shape[0] - height) // 2, (pictures[0].shape[1] - width) // 2
    gap = np.zeros((height, _GAP_PX, 3), np.uint8)
    cut = [picture[top : top + height, left : left + width] for picture in pictures]
    return np.concatenate([part for picture in cut for part in (picture, gap)][:-1], axis=1)


def _save(path: Path, strips: Mapping[str, Pixels]) -> None:
    width = max(strip.shape[1] for strip in strips.values())
    rows = [np.pad(strip, ((0, _GAP_PX), (0, width - strip.shape[1]), (0, 0))) for strip in strips.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(np.concatenate(rows), path)
