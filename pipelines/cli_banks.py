"""`pairforge bank`: build, import and look at banks of patterns."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pipelines.console import err, out, print_json, show_progress

app = typer.Typer(help="Banks of patterns (moire, rain, haze, flare) that recipes blend in.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BankUrl = Annotated[str, typer.Option("--output", "-o", help="Folder or s3:// URL of the bank.")]
Kind = Annotated[str, typer.Argument(help="Kind of patterns: moire, rain, haze or flare.")]


@app.command()
def build(
    kind: Kind,
    output: BankUrl,
    count: Annotated[int, typer.Option(help="Patterns in the bank.", min=1, max=1_000_000)] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    local: Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")] = False,
    workers: Annotated[int | None, typer.Option(help="Cores of the embedded Ray.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Make the patterns that are missing, then list them; the same seed gives the same bank."""
    from pipelines.banks import BankOrder, build_bank
    from pipelines.engine import Backend, LocalBackend
    from pipelines.ray_backend import RayBackend, start_embedded_ray

    def on_backend(stages: Any, order: Any) -> Backend:
        if local:
            return LocalBackend(stages, order)
        start_embedded_ray(workers or os.cpu_count() or 1)
        return RayBackend(stages, order, owns_ray=True)

    with show_progress(as_json) as progress:
        task = progress.add_task("making patterns", total=count)
        order = BankOrder(kind, count, seed, output)
        bank = build_bank(order, on_backend, lambda made: progress.update(task, advance=made))
    _tell(output, bank, as_json)


@app.command(name="import")
def import_(
    kind: Kind,
    folder: Annotated[Path, typer.Argument(help="Folder of pictures, searched recursively.")],
    output: BankUrl,
    licence: Annotated[str, typer.Option(help="Licence of all pictures.")],
    attribution: Annotated[str, typer.Option()] = "",
    as_json: AsJson = False,
) -> None:
    """Turn a folder of pictures (flares on black, real rain or haze layers) into a bank."""
    from pipelines.banks import import_bank
    from pipelines.console import FLAWED

    bank, refused = import_bank(kind, folder, output, licence, attribution)
    for name, why in sorted(refused.items())[:50]:
        err.print(f"[yellow]left out[/yellow] {escape(f'{name}: {why}')}")
    _tell(output, bank, as_json, {"refused": dict(refused)})
    raise typer.Exit(FLAWED if refused else 0)


@app.command()
def show(url: Annotated[str, typer.Argument(help="Folder or s3:// URL of a bank.")], as_json: AsJson = False) -> None:
    """Say what a bank holds."""
    from pipelines.banks import open_bank

    _tell(url, open_bank(url), as_json)


def _tell(url: str, bank: Any, as_json: bool, more: dict[str, Any] | None = None) -> None:
    told = {
        "url": url,
        "kind": bank.kind,
        "patterns": len(bank.entries),
        "highest_correlation": bank.highest_correlation,
        "licence": bank.licence,
    }
    if as_json:
        print_json({**told, **(more or {})})
    else:
        alike = bank.highest_correlation
        alike = "" if alike is None else f"; the two most alike correlate by {alike:.2f} at most"
        out.print(escape(f"{url}: {len(bank.entries)} {bank.kind} patterns, {bank.licence}{alike}"))
        out.print(escape(f"use it in a config: banks: {{{bank.kind}: {url}}}"))
