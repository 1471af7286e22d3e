"""Starting a training run: in this process, or as ranks of Ray Train; and what it leaves behind.

Below `output`: `snapshots.json` (the pinned snapshots), `checkpoints/`, `validation/` (pictures), `tensorboard/`,
`progress.jsonl` (a line a step), `model/` (the averaged weights of the best validation, exported).
"""

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pairforge.config import fingerprint
from pairforge.image import use_one_thread
from pairforge.snapshot import open_snapshot
from training.augment import PairSettings
from training.checkpoints import latest_step, load_checkpoint
from training.data import PairDataset, PairLoader
from training.export import ModelFacts, TrainedOn, export_model
from training.losses import LossConfig, RestorationLoss
from training.models.catalog import MODELS, build_model
from training.pool import Pool
from training.sampling import DrawPlan
from training.settings import ModelChoice, PairSource, TrainConfig
from training.trainer import Progress, Trainer
from training.validation import Validator

SNAPSHOTS, PROGRESS, MODEL = "snapshots.json", "progress.jsonl", "model"
Tell = Callable[[Progress], None]


def make_model(choice: ModelChoice) -> nn.Module:
    """The network of a config, with new weights. Raises ValueError for a name or an option that is not known."""
    if choice.name not in MODELS:
        raise ValueError(f"no model is named {choice.name!r}; known are {', '.join(MODELS)}")
    usual = MODELS[choice.name]
    return build_model(type(usual).model_validate({**usual.model_dump(), **choice.options}))


def pin_sources(config: TrainConfig) -> TrainConfig:
    """The config with every source pinned to one snapshot: to that of the first start, so that a run goes on with
    the data it began with."""
    path = Path(config.output) / SNAPSHOTS
    if path.exists():
        pinned = json.loads(path.read_text())
        if [each["stated"] for each in pinned] != [source.url for source in config.sources]:
            raise ValueError(f"{path} is of sources {[each['stated'] for each in pinned]}: choose another output")
    else:
        opened = [(source.url, open_snapshot(source.url)) for source in config.sources]
        pinned = [
            {"stated": url, "url": snapshot.storage.url(f"snapshots/{snapshot.manifest.id}")}
            for url, snapshot in opened
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(pinned, indent=1))
    sources = [
        source.model_copy(update={"url": each["url"]}) for source, each in zip(config.sources, pinned, strict=True)
    ]
    return config.model_copy(update={"sources": tuple(sources)})


def make_trainer(config: TrainConfig, rank: int, tell: Tell) -> Trainer:
    """The trainer of one rank, at its latest checkpoint where there is one."""
    use_one_thread()
    torch.set_num_threads(config.cpu_threads)
    torch.manual_seed(config.seed)
    pool = Pool(config.sources, f"{config.output}/index")
    shares = pool.shares(config.balance)
    plan = DrawPlan(config.seed, config.batch * config.steps, pool.strata, lambda epoch: shares)
    settings = PairSettings(crop_px=config.crop_px, turns="d4", small="reflect", reverse=config.reverse, pixels="uint8")
    loader = PairLoader(
        pool,
        plan,
        PairDataset(pool.storages, settings),
        batch=config.batch // config.accumulate,
        rank=rank,
        ranks=config.ranks,
        workers=config.loader_workers,
        pin_memory=config.device == "cuda",
    )
    sum_of_terms = RestorationLoss(LossConfig.model_validate({"weights": config.losses}))
    validate = Validator(config) if rank == 0 else None
    model = make_model(config.model)
    return Trainer(config, model, loader, lambda made, hq: sum_of_terms(made, hq)[0], validate, tell, rank)


def train_here(config: TrainConfig, tell: Tell) -> ModelFacts:
    """Train in this process, to the end, and export. Raises ValueError for a config of several ranks."""
    if config.ranks != 1:
        raise ValueError(f"{config.ranks} ranks need Ray Train; one process has one rank")
    config = pin_sources(config)
    with Logbook(config) as book:

        def both(progress: Progress) -> None:
            book.write(progress)
            tell(progress)

        make_trainer(config, 0, both).run()
    return export_best(config)


def train_on_ray(config: TrainConfig) -> ModelFacts:
    """Train on as many ranks of Ray Train as the config states, on the Ray that this process is connected to."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config = pin_sources(config)
    fitted = TorchTrainer(
        _rank,
        train_loop_config=config.model_dump(mode="json"),
        scaling_config=ScalingConfig(num_workers=config.ranks, use_gpu=config.device == "cuda"),
        run_config=RunConfig(name=config.name, storage_path=str((Path(config.output) / "ray").absolute())),
    ).fit()
    if fitted.error is not None:
        raise fitted.error
    return export_best(config)


def _rank(stated: dict[str, Any]) -> None:
    """The loop of one rank."""
    from ray import train

    config = TrainConfig.model_validate(stated)
    rank = train.get_context().get_world_rank()
    with Logbook(config) if rank == 0 else _Silent() as book:
        make_trainer(config, rank, book.write).run()


def export_best(config: TrainConfig) -> ModelFacts:
    """Write the averaged weights of the best validation below `model/`."""
    folder = Path(config.output) / "checkpoints"
    latest = latest_step(folder)
    assert latest is not None, "a run leaves a checkpoint at its last step"
    best = load_checkpoint(folder, latest)["best"]
    step = int(best[0][1]) if best else latest
    model = make_model(config.model)
    model.load_state_dict(load_checkpoint(folder, step)["averaged"])
    facts = ModelFacts(
        name=config.name,
        model=config.model,
        reverse=config.reverse,
        step=step,
        snapshots=tuple(_trained_on(source) for source in config.sources),
        config=fingerprint(config.model_dump(mode="json", exclude={"output", "device", "ranks", "loader_workers"})),
        scores=_scores_at(Path(config.output) / PROGRESS, step),
        versions={name: version(name) for name in ("pairforge", "torch")},
    )
    export_model(Path(config.output) / MODEL, model, facts)
    return facts


def _trained_on(source: PairSource) -> TrainedOn:
    manifest = open_snapshot(source.url).manifest
    return TrainedOn(url=source.url, snapshot=manifest.id, content=manifest.content, licences=manifest.licences)


def _scores_at(path: Path, step: int) -> Mapping[str, float]:
    """Of the validation at a step, as the log has them; a step that was made twice has the same ones."""
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return next((line["scores"] for line in lines if line["step"] == step and line["scores"]), {})


class Logbook:
    """A line a step in `progress.jsonl`, and TensorBoard events."""

    def __init__(self, config: TrainConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(config.output)
        self._file = (folder / PROGRESS).open("a", buffering=1)
        self._events: Any = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> "Logbook":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._events.close()

    def write(self, progress: Progress) -> None:
        self._file.write(json.dumps({**vars(progress), "scores": dict(progress.scores)}) + "\n")
        told = {"loss": progress.loss, "lr": progress.lr, "images_per_s": progress.images_per_s}
        told["data_wait_frac"] = progress.data_wait_frac
        for name, value in {**told, **progress.scores}.items():
            self._events.add_scalar(name, value, progress.step)


class _Silent:
    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def write(self, progress: Progress) -> None:
        pass
