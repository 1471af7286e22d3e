"""The trainer on synthetic pairs: it learns, goes on exactly, keeps the best, and two ranks agree."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pairforge.records import DamagedError
from training.checkpoints import LATEST, latest_step, load_checkpoint, save_checkpoint
from training.settings import Schedule, TrainConfig
from training.trainer import Progress, Trainer


class Noisy:
    """Pairs drawn from a counter: noise on ramps; where it stands is its whole state."""

    def __init__(self, rank: int = 0, ranks: int = 1, batch: int = 4) -> None:
        self.position, self._rank, self._ranks, self._batch = 0, rank, ranks, batch

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        while True:
            own = range(self.position + self._rank, self.position + self._batch, self._ranks)
            self.position += self._batch
            pairs = [self._pair(draw) for draw in own]
            yield {"lq": torch.stack([lq for lq, _ in pairs]), "hq": torch.stack([hq for _, hq in pairs])}

    def _pair(self, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
        seeded = torch.Generator().manual_seed(draw)
        hq = torch.linspace(0, 1, 16).expand(3, 16, 16) * torch.rand(3, 1, 1, generator=seeded)
        return (hq + 0.1 * torch.randn(3, 16, 16, generator=seeded)).clamp(0, 1), hq

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = int(state["position"])


class Smooth(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


def config_of(output: Path, **changes: Any) -> TrainConfig:
    data = {
        "name": "tiny",
        "output": str(output),
        "seed": 3,
        "sources": [{"url": "nowhere"}],
        "crop_px": 16,
        "batch": 4,
        "steps": 30,
        "model": {"name": "tiny"},
        "losses": {"l1": 1.0},
        "optimizer": {"lr": 0.01, "clip_norm": 1.0},
        "schedule": {"kind": "cosine", "warmup_steps": 3},
        "ema_decay": 0.9,
        "validation": {"every_steps": 10},
        "checkpoints": {"every_steps": 5, "keep_best": 2},
    }
    return TrainConfig.model_validate({**data, **changes})


def validate(model: nn.Module, step: int) -> dict[str, float]:
    lq, hq = (
        torch.cat([pair[side] for pair, _ in zip(Noisy(batch=8), range(2), strict=False)]) for side in ("lq", "hq")
    )
    with torch.no_grad():
        return {"psnr": float(-10 * torch.log10(nn.functional.mse_loss(model(lq), hq)))}


def train(config: TrainConfig, stop_after: int | None = None) -> tuple[list[Progress], Trainer]:
    torch.manual_seed(config.seed)
    told: list[Progress] = []

    def tell(progress: Progress) -> None:
        told.append(progress)
        if progress.step == stop_after:
            raise KeyboardInterrupt

    trainer = Trainer(config, Smooth(), Noisy(), nn.functional.l1_loss, validate, tell)
    try:
        trainer.run()
    except KeyboardInterrupt:
        assert stop_after
    return told, trainer


def test_loss_falls_and_validation_improves(tmp_path: Path) -> None:
    told, trainer = train(config_of(tmp_path))
    assert len(told) == 30 and sum(p.loss for p in told[-5:]) < 0.7 * sum(p.loss for p in told[:5])
    assert told[29].scores["psnr"] > told[9].scores["psnr"]
    assert trainer.best[0][0] == max(told[at].scores["psnr"] for at in (9, 19, 29))


@pytest.mark.parametrize("killed_at", [1, 7, 12, 29])
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(tmp_path: Path, killed_at: int) -> None:
    whole, first = train(config_of(tmp_path / "whole"))
    before, _ = train(config_of(tmp_path / "killed"), stop_after=killed_at)
    after, second = train(config_of(tmp_path / "killed"))
    assert [p.loss for p in before] == [p.loss for p in whole[:killed_at]]
    resumed = killed_at // 5 * 5
    assert [(p.step, p.loss, p.lr) for p in after] == [(p.step, p.loss, p.lr) for p in whole[resumed:]]
    for one, two in zip(first.averaged.parameters(), second.averaged.parameters(), strict=True):
        assert torch.equal(one, two)
    assert first.best == second.best


def test_a_finished_run_has_nothing_left(tmp_path: Path) -> None:
    train(config_of(tmp_path))
    told, _ = train(config_of(tmp_path))
    assert told == []


def test_only_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    _, trainer = train(config_of(tmp_path))
    kept = {int(path.stem.removeprefix("step-")) for path in (tmp_path / "checkpoints").glob("step-*.pt")}
    assert kept == {30, *(step for _, step in trainer.best)} and len(trainer.best) == 2


def test_patience_ends_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, optimizer={"lr": 1e-9}, ema_decay=0, validation={"every_steps": 2, "patience": 3})
    told, _ = train(config)
    assert len(told) < 30


def test_accumulated_parts_are_one_batch(tmp_path: Path) -> None:
    class Halves(Noisy):
        """The same pairs, half a batch at a time."""

        def __iter__(self) -> Iterator[Mapping[str, Any]]:
            for whole in super().__iter__():
                for part in (slice(0, 2), slice(2, 4)):
                    yield {side: whole[side][part] for side in ("lq", "hq")}

    weights = []
    for batches, accumulate in ((Noisy(), 1), (Halves(), 2)):
        torch.manual_seed(0)
        config = config_of(tmp_path / str(accumulate), steps=4, accumulate=accumulate)
        trainer = Trainer(config, Smooth(), batches, nn.functional.l1_loss, None)
        trainer.run()
        weights.append(torch.cat([each.flatten() for each in trainer.model.parameters()]))
    assert torch.allclose(*weights, atol=1e-6)


def test_a_loss_that_is_no_number_names_the_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = Trainer(config_of(tmp_path), Smooth(), Noisy(), lambda made, hq: (made * float("nan")).mean(), None)
    with pytest.raises(ValueError, match="the loss is nan at step 0"):
        trainer.run()


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, {"step": 3})
    assert latest_step(tmp_path) == 3 and load_checkpoint(tmp_path, 3) == {"step": 3}
    (tmp_path / "step-000000003.pt").write_bytes(b"half")
    with pytest.raises(DamagedError, match=r"step-000000003\.pt cannot be read"):
        load_checkpoint(tmp_path, 3)
    (tmp_path / LATEST).write_text("{")
    with pytest.raises(DamagedError, match="does not name a step"):
        latest_step(tmp_path)


def test_schedule() -> None:
    cosine = Schedule(kind="cosine", warmup_steps=4, final_frac=0.1)
    factors = [cosine.factor(step, 20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[4] == 1.0
    assert factors[4:] == sorted(factors[4:], reverse=True) and factors[20] == pytest.approx(0.1)
    assert {Schedule(kind="constant").factor(step, 20) for step in range(20)} == {1.0}


_TWO_RANKS = """
import json, sys
import torch, torch.distributed as dist
from tests.training.test_trainer import Noisy, Smooth, config_of, validate
from training.trainer import Trainer
from pathlib import Path
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(3)
config = config_of(folder / "run", ranks=2, steps=12)
check = None if rank else validate
trainer = Trainer(config, Smooth(), Noisy(rank, 2), torch.nn.functional.l1_loss, check, rank=rank)
trainer.run()
print(json.dumps([each.flatten().tolist() for each in trainer.model.parameters()]))
dist.destroy_process_group()
"""


def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO_RANKS, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    told = [json.loads(worker.communicate(timeout=120)[0].splitlines()[-1]) for worker in workers]
    assert told[0] == told[1]
    _, one = train(config_of(tmp_path / "one", steps=12))
    for theirs, own in zip(told[0], one.model.parameters(), strict=True):
        assert torch.allclose(torch.tensor(theirs), own.flatten(), atol=1e-5)
