"""One rank of a training run: steps, averaged weights, validation, checkpoints from which it goes on exactly.

On the CPU a run that was killed and goes on has the losses of one that was not, bit for bit: what a step needs is in
the checkpoint (weights, their average, optimizer, place in the data, draws of torch), and nothing else is random.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.checkpoints import latest_step, load_checkpoint, prune_checkpoints, save_checkpoint
from training.data import to_unit
from training.settings import TrainConfig

Batch = Mapping[str, Any]
"""`lq` and `hq`: tensors (n, 3, H, W), floats in 0..1 or 8-bit codes."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Validate = Callable[[nn.Module, int], dict[str, float]]
"""Scores of a network at a step by name; `psnr` decides which is best."""


class Batches(Protocol):
    """Endless batches of one rank; where they are is part of a checkpoint, the same for all ranks."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Progress:
    """What rank 0 tells after every step."""

    step: int
    loss: float
    lr: float
    images_per_s: float
    data_wait_frac: float
    scores: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """Trains `model` on the batches of this rank. `validate` is called on rank 0 alone."""

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        batches: Batches,
        loss: Loss,
        validate: Validate | None,
        tell: Callable[[Progress], None] = lambda progress: None,
        rank: int = 0,
    ) -> None:
        self._config, self._batches, self._loss, self._validate = config, batches, loss, validate
        self._tell, self._rank = tell, rank
        self._folder = Path(config.output) / "checkpoints"
        self._device = torch.device(config.device)
        self.model = model.to(self._device)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False).eval()
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
        )
        self.step = 0
        self.best: list[tuple[float, int]] = []
        """PSNR and step of the best validations, the best first."""
        self._waited = 0
        self._resume()
        wrapped: nn.Module = self.model
        if config.ranks > 1:
            wrapped = DistributedDataParallel(self.model)
        self._wrapped: nn.Module = torch.compile(wrapped) if config.compile else wrapped

    def run(self) -> dict[str, float]:
        """Train to the last step, or until patience ends; the scores of the last validation."""
        config, batches = self._config, iter(self._batches)
        scores: dict[str, float] = {}
        while self.step < config.steps and not self._patience_is_over():
            started = time.monotonic()
            loss, waited_s = self._one_step(batches)
            self.step += 1
            seconds = time.monotonic() - started
            last = self.step == config.steps
            if last or self.step % config.validation.every_steps == 0:
                scores = self._validated()
            best = any(step == self.step for _, step in self.best)
            if last or best or self.step % config.checkpoints.every_steps == 0:
                self._save()
            if self._rank == 0:
                rate = config.batch / seconds
                self._tell(Progress(self.step, loss, self._lr(), rate, waited_s / seconds, scores))
        return scores

    def _one_step(self, batches: Iterator[Batch]) -> tuple[float, float]:
        """Loss of one step on this rank, and the seconds it waited for data."""
        config = self._config
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr()
        self._optimizer.zero_grad(set_to_none=True)
        total, waited_s = 0.0, 0.0
        for _ in range(config.accumulate):
            asked = time.monotonic()
            batch = next(batches)
            waited_s += time.monotonic() - asked
            lq, hq = (self._unit(batch[side]) for side in ("lq", "hq"))
            with torch.autocast(self._device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                restored = self._wrapped(lq)
            loss = self._loss(restored.float(), hq) / config.accumulate
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise ValueError(f"the loss is {total} at step {self.step}: lower optimizer.lr, or set clip_norm")
        if config.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
        self._optimizer.step()
        self._average()
        return total, waited_s

    def _unit(self, images: torch.Tensor) -> torch.Tensor:
        """On the device, in 0..1: codes travel in a quarter of the bytes of floats."""
        moved = images.to(self._device, non_blocking=True)
        return to_unit(moved) if moved.dtype == torch.uint8 else moved

    def _lr(self) -> float:
        return self._config.optimizer.lr * self._config.schedule.factor(self.step, self._config.steps)

    def _average(self) -> None:
        """Exponential moving average; early steps count more, or the start would never be forgotten."""
        decay = min(self._config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, now in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
            for kept, now in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
                kept.copy_(now)

    def _validated(self) -> dict[str, float]:
        """Scores where this rank validates; all ranks learn for how long there was no better one."""
        scores = self._validate(self.averaged, self.step) if self._validate is not None else {}
        if scores:
            better = not self.best or scores["psnr"] > self.best[0][0]
            self._waited = 0 if better else self._waited + 1
            ranked = sorted([*self.best, (scores["psnr"], self.step)], reverse=True)
            self.best = ranked[: self._config.checkpoints.keep_best]
        if self._config.ranks > 1:
            told = [self._waited]
            torch.distributed.broadcast_object_list(told, src=0)
            self._waited = told[0]
        return scores

    def _patience_is_over(self) -> bool:
        patience = self._config.validation.patience
        return patience is not None and self._waited >= patience

    def _save(self) -> None:
        if self._rank == 0:
            state = {
                "step": self.step,
                "model": self.model.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "batches": self._batches.state_dict(),
                "best": [list(each) for each in self.best],
                "waited": self._waited,
                "torch_rng": torch.get_rng_state(),
            }
            save_checkpoint(self._folder, self.step, state)
            prune_checkpoints(self._folder, frozenset(step for _, step in self.best))

    def _resume(self) -> None:
        step = latest_step(self._folder)
        if step is None:
            return
        state = load_checkpoint(self._folder, step)
        self.step, self._waited = state["step"], state["waited"]
        self.best = [(float(psnr), int(at)) for psnr, at in state["best"]]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._batches.load_state_dict(state["batches"])
        torch.set_rng_state(state["torch_rng"])
