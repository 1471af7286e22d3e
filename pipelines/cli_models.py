"""`pairforge models`: list, fetch and verify the weights of learned models."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipelines.console import UNVERIFIED, err, human_bytes, out, print_json, print_table

app = typer.Typer(help="Weights of learned models: the only thing PairForge ever downloads.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Folder = Annotated[Path, typer.Option("--to", help="Folder that holds a folder per model, and models.lock.json.")]
Listing = Annotated[
    Path | None, typer.Option("--models", help="List of models, else the one that comes with PairForge.")
]


@app.command(name="list")
def list_(
    to: Annotated[Path | None, typer.Option("--to", help="Also say what lies in this folder.")] = None,
    models: Listing = None,
    as_json: AsJson = False,
) -> None:
    """Say what there is, what it is for, and what its licence allows."""
    from pipelines.models import MODELS, Lock, load_models, read_lock, state_of

    lock = read_lock(to) if to else Lock()
    rows = []
    for name, model in load_models(models or MODELS).items():
        locked = lock.models.get(name)
        known = sum(file.bytes for file in locked.files.values()) if locked else None
        rows.append(
            {
                "name": name,
                "for": model.purpose,
                "licence": model.licence,
                "commercial": {True: "yes", False: "no", None: "unknown"}[model.commercial],
                "bytes": known or (round(model.size_gb * 1e9) if model.size_gb else None),
                "present": state_of(name, to, lock) if to else None,
                "repo": model.repo,
            }
        )
    if as_json:
        print_json(rows)
    else:
        fields = ("name", "for", "licence", "commercial", "bytes", *(["present"] if to else []))
        print_table(f"{len(rows)} models", fields, rows)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Names of models, as `models list` gives them.")],
    to: Folder,
    accept_licence: Annotated[
        list[str] | None, typer.Option(help="Name of a licence you have read; once for each.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Ask for newer weights than the lock pins.")] = False,
    models: Listing = None,
    as_json: AsJson = False,
) -> None:
    """Fetch models into a folder, and write their hashes into its lock; run again to go on or to repair."""
    from pipelines.models import MODELS, check_licence, fetch_model, load_models, pick_models

    picked = pick_models(load_models(models or MODELS), names)
    accepted = accept_licence or []
    for name, model in picked.items():
        use = {True: "allows commercial use", False: "no commercial use", None: "commercial use unknown"}
        err.print(escape(f"{name}: {model.repo}, licence {model.licence} ({use[model.commercial]})"))
    for name, model in picked.items():  # before the first of them costs an hour
        check_licence(name, model, accepted)
    _show_hub_progress(not as_json and err.is_terminal)
    told = {}
    for name, model in picked.items():
        locked = fetch_model(name, model, to, accepted, update, lambda line: err.print(escape(line)))
        size = sum(file.bytes for file in locked.files.values())
        told[name] = {
            "model": str(to / name),
            "weights": locked.weights,
            "commit": locked.commit,
            "licence": locked.licence,
            "bytes": size,
        }
        if not as_json:
            out.print(
                escape(f"{name}: {human_bytes(size)}; in a config: model: {to / name}, weights: {locked.weights}")
            )
    if as_json:
        print_json(told)


@app.command()
def verify(to: Folder, as_json: AsJson = False) -> None:
    """Hash every file that was fetched and compare it with the lock."""
    from pipelines.models import read_lock, verify_models

    problems = verify_models(to, lambda name: err.print(escape(f"hashing {name}")))
    checked = len(read_lock(to).models)
    if as_json:
        print_json({"models": checked, "problems": problems})
    else:
        for problem in problems:
            err.print(f"[red]fault[/red] {escape(problem)}")
        out.print(f"{checked} models; {len(problems) or 'no'} fault{'' if len(problems) < 2 else 's'}")
    raise typer.Exit(UNVERIFIED if problems else 0)


def _show_hub_progress(shown: bool) -> None:
    """Bars belong on a terminal."""
    try:
        from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    except ImportError:  # fetching says what is missing
        return
    if shown:
        enable_progress_bars()
    else:
        disable_progress_bars()
