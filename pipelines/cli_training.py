"""`pairforge train` and `pairforge restore`: the training stage, which reads nothing but snapshots."""

import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pipelines.console import FLAWED, err, out, print_json, print_table, show_progress

app = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML config of a training run.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value of the config.", metavar="steps=1000")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
    address: Annotated[str | None, typer.Option(help="Join a running Ray cluster: HOST:PORT, or `auto`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a restorer on snapshots; the same command goes on where a run was stopped."""
    from pairforge.config import load_config
    from training.settings import TrainConfig

    loaded = load_config(config, TrainConfig, changes or ())
    with show_progress(as_json) as progress:
        task = progress.add_task("opening snapshots", total=loaded.steps)
        facts = _trained_here(loaded, progress, task) if local else _trained_on_ray(loaded, address, progress, task)
    if as_json:
        print_json(facts.model_dump(mode="json"))
        return
    _print_scores(facts.scores)
    model = Path(loaded.output) / "model"
    out.print(f"best after {facts.step} steps; pictures in {escape(str(Path(loaded.output) / 'validation'))}")
    out.print(f"next: pairforge restore {escape(str(model))} PHOTOS -o restored")


def _trained_here(loaded: Any, progress: Any, task: Any) -> Any:
    from training.launch import train_here

    def tell(at: Any) -> None:
        progress.update(task, completed=at.step, description=f"training, loss {at.loss:.4f}")

    return train_here(loaded, tell)


def _trained_on_ray(loaded: Any, address: str | None, progress: Any, task: Any) -> Any:
    import os

    import ray

    from pipelines.ray_backend import connect_ray, start_embedded_ray
    from training.launch import PROGRESS, train_on_ray

    if address:
        connect_ray(address)
    else:
        start_embedded_ray(max(os.cpu_count() or 1, loaded.ranks + 1))
    ended = threading.Event()

    def follow() -> None:
        log = Path(loaded.output) / PROGRESS
        while not ended.wait(1.0):
            lines = log.read_bytes().count(b"\n") if log.exists() else 0
            progress.update(task, completed=min(lines, loaded.steps), description="training")

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        return train_on_ray(loaded)
    finally:
        ended.set()
        follower.join()
        ray.shutdown()


def _print_scores(scores: Any) -> None:
    """By category, never pooled: what was put in beside what came out."""
    categories = sorted(name.partition("/")[2] for name in scores if name.startswith("psnr/"))
    rows = [
        {
            "category": name,
            **{
                column: f"{scores[f'{column}/{name}']:.{2 if 'psnr' in column else 4}f}"
                for column in ("psnr_input", "psnr", "ssim_input", "ssim")
            },
        }
        for name in categories
    ]
    print_table("validation, on RGB", ("category", "psnr_input", "psnr", "ssim_input", "ssim"), rows)


@app.command()
def restore(
    model: Annotated[Path, typer.Argument(help="Folder of an exported network, such as out/train/model.")],
    photos: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write PNGs to.")],
    tile_px: Annotated[int, typer.Option(help="Side of the tiles that large pictures are cut into.", min=32)] = 512,
    overlap_px: Annotated[int, typer.Option(help="What neighbouring tiles share.", min=0)] = 32,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compare: Annotated[bool, typer.Option("--compare", help="Write input and output beside each other.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a trained network on files or folders."""
    from training.restore import restore_files

    with show_progress(as_json) as progress:
        task = progress.add_task("restoring", total=None)
        found = restore_files(
            model, photos, output, tile_px, overlap_px, device, compare, lambda each: progress.advance(task)
        )
    faults = [each for each in found if each.fault]
    if as_json:
        print_json([{name: str(value) for name, value in vars(each).items()} for each in found])
    else:
        for each in faults:
            err.print(escape(f"{each.source}: {each.fault}"))
        out.print(f"{len(found) - len(faults)} pictures in {escape(str(output))}; {len(faults)} could not be read")
    raise typer.Exit(FLAWED if faults else 0)
