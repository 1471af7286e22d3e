"""The config of a training run. It reads nothing but snapshots."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pairforge.config_words import Words
from pairforge.records import Frozen

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$"), Words("1 to 40 characters of a-z, 0-9 and _")]


class PairSource(Frozen):
    """One snapshot to learn from: a dataset, whose latest is pinned when the run begins, or .../snapshots/ID."""

    url: str = Field(description="folder or s3:// URL of the dataset or the snapshot")
    categories: tuple[str, ...] | None = Field(None, description="all of the snapshot where absent")
    splits: tuple[str, ...] = Field(("train",), description="splits whose pairs are learned from")
    weight: float = Field(1.0, gt=0, description="share of draws, against those of the other sources")


class ModelChoice(Frozen):
    """A network by name (`training.models.catalog`) and size."""

    name: str = Field(description="network and size, e.g. nafnet32 or restormer")
    options: dict[str, Any] = Field({}, description="changes to its usual settings")


class Optimizer(Frozen):
    """AdamW (Loshchilov and Hutter, ICLR 2019)."""

    lr: float = Field(gt=0, description="learning rate after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="pull of the weights towards 0, times the learning rate a step")
    betas: tuple[float, float] = Field(
        (0.9, 0.9), description="how slowly the means of gradients and of their squares forget; below 1"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest norm of all gradients together")


class Schedule(Frozen):
    """Learning rate: a linear warm-up, then constant, or a cosine down to `final_frac` of it."""

    kind: Literal["constant", "cosine"] = Field(description="course of the learning rate after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps in which it rises to its full height")
    final_frac: float = Field(0.0, ge=0, le=1, description="share of it that is left at the end, for kind: cosine")

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

    every_steps: int = Field(ge=1, description="steps between validations; the last step is always validated")
    split: str = Field("val", description="split whose pictures are restored")
    most_per_category: int = Field(8, ge=1, description="pictures of each category of each source, at most")
    tile_px: int = Field(512, ge=32, description="side of the tiles that a picture is restored in")
    overlap_px: int = Field(32, ge=0, description="what neighbouring tiles share; less than half of tile_px")
    patience: int | None = Field(None, ge=1, description="validations without a better one before training ends")


class Checkpoints(Frozen):
    """When state is saved, and how much of it is kept."""

    every_steps: int = Field(ge=1, description="steps between checkpoints; the best and the last are saved anyway")
    keep_best: int = Field(1, ge=1, description="checkpoints of the highest PSNR that stay, beside the latest")


class TrainConfig(Frozen):
    """A training run: pairs, network, losses, schedule."""

    name: Name = Field(description="name of the run and of the exported model")
    output: str = Field(description="folder of checkpoints, logs and the exported model")
    seed: int = Field(ge=0, lt=2**63, description="start of all random draws")
    sources: tuple[PairSource, ...] = Field(min_length=1, description="snapshots to learn from")
    balance: Literal["category", "sample"] = Field("category", description="what is drawn evenly within a source")
    reverse: bool = Field(False, description="learn HQ to LQ instead: a degradation")
    crop_px: int = Field(ge=16, description="side of the squares cut from pairs; smaller pictures are mirrored to it")
    batch: int = Field(ge=1, description="pairs a step, over all ranks and accumulated parts")
    accumulate: int = Field(1, ge=1, description="parts of a batch, computed one after the other to save memory")
    steps: int = Field(ge=1, description="changes of the weights; one takes a batch")
    model: ModelChoice = Field(description="network that learns")
    losses: dict[str, float] = Field(min_length=1, description="weights by name: l1, charbonnier, fft")
    optimizer: Optimizer = Field(description="how gradients change the weights")
    schedule: Schedule = Field(description="course of the learning rate")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="share of the averaged weights that a step leaves; lower in the first steps"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="what the network computes in; weights are fp32")
    compile: bool = Field(False, description="compile the network (torch.compile): a slow start, then faster")
    validation: Validation = Field(description="when and on what the network is scored")
    checkpoints: Checkpoints = Field(description="when state is saved, and how much of it is kept")
    ranks: int = Field(1, ge=1, description="processes that train together; more than one need Ray Train")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the network computes")
    cpu_threads: int = Field(
        2, ge=1, description="of torch on the CPU; losses repeat bit for bit with equal numbers of them"
    )
    loader_workers: int = Field(0, ge=0, description="processes of a rank that read pairs; 0 reads in its own")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch % (self.ranks * self.accumulate):
            raise ValueError(
                f"batch {self.batch} does not divide by ranks {self.ranks} times accumulate {self.accumulate}"
            )
        return self
