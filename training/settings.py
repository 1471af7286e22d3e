"""The config of a training run. It reads nothing but snapshots."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pairforge.records import Frozen

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]


class PairSource(Frozen):
    """One snapshot to learn from: a dataset, whose latest is pinned when the run begins, or .../snapshots/ID."""

    url: str
    categories: tuple[str, ...] | None = Field(None, description="all of the snapshot where absent")
    splits: tuple[str, ...] = ("train",)
    weight: float = Field(1.0, gt=0, description="share of draws, against those of the other sources")


class ModelChoice(Frozen):
    """A network by name (`training.models.catalog`) and size."""

    name: str
    options: dict[str, Any] = Field({}, description="changes to its usual settings")


class Optimizer(Frozen):
    """AdamW (Loshchilov and Hutter, ICLR 2019)."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.9)
    clip_norm: float | None = Field(None, gt=0, description="largest norm of all gradients together")


class Schedule(Frozen):
    """Learning rate: a linear warm-up, then constant, or a cosine down to `final_frac` of it."""

    kind: Literal["constant", "cosine"]
    warmup_steps: int = Field(0, ge=0)
    final_frac: float = Field(0.0, ge=0, le=1)

    def factor(self, step: int, steps: int) -> float:
        """Of the learning rate at a step, counted from 0, of so many."""
        import math

        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        return self.final_frac + (1 - self.final_frac) * (1 + math.cos(math.pi * done)) / 2


class Validation(Frozen):
    """Whole pictures of held-out groups, restored with the averaged weights; PSNR and SSIM by category."""

    every_steps: int = Field(ge=1)
    split: str = "val"
    most_per_category: int = Field(8, ge=1)
    tile_px: int = Field(512, ge=32)
    overlap_px: int = Field(32, ge=0)
    patience: int | None = Field(None, ge=1, description="validations without a better one before training ends")


class Checkpoints(Frozen):
    """When state is saved, and how much of it is kept."""

    every_steps: int = Field(ge=1)
    keep_best: int = Field(1, ge=1)


class TrainConfig(Frozen):
    """A training run: pairs, network, losses, schedule."""

    name: Name
    output: str = Field(description="folder of checkpoints, logs and the exported model")
    seed: int = Field(ge=0, lt=2**63)
    sources: tuple[PairSource, ...] = Field(min_length=1)
    balance: Literal["category", "sample"] = Field("category", description="what is drawn evenly within a source")
    reverse: bool = Field(False, description="learn HQ to LQ instead: a degradation")
    crop_px: int = Field(ge=16)
    batch: int = Field(ge=1, description="pairs a step, over all ranks and accumulated parts")
    accumulate: int = Field(1, ge=1)
    steps: int = Field(ge=1)
    model: ModelChoice
    losses: dict[str, float] = Field(min_length=1, description="weights by name: l1, charbonnier, fft")
    optimizer: Optimizer
    schedule: Schedule
    ema_decay: float = Field(0.999, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    validation: Validation
    checkpoints: Checkpoints
    ranks: int = Field(1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    loader_workers: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % (self.ranks * self.accumulate):
            raise ValueError(
                f"batch {self.batch} does not divide by ranks {self.ranks} times accumulate {self.accumulate}"
            )
        return self
