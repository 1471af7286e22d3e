"""The `pairforge` command.

Exit codes: 0 done; 1 a bug; 2 a wrong call, config or input; 3 done, but some sources or records
failed; 4 stopped: too many failed; 5 stored data is damaged, or its replay differs; 6 storage or
machinery failed; 130 interrupted; 141 nobody read the output any more; 143 terminated.

stdout carries the result, as text or with `--json` as one JSON document; progress and errors go to stderr.
"""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pipelines import cli_banks, cli_models, cli_runs, cli_training
from pipelines.console import (
    FLAWED,
    TERMINATED,
    UNVERIFIED,
    err,
    guarded,
    human_bytes,
    in_words,
    out,
    print_json,
    print_summary,
    show_progress,
)

app = typer.Typer(
    help="Training pairs for image restoration: replayable, verified, resumable.",
    epilog="Exit codes: 0 done, 1 bug, 2 wrong call or config, 3 done but some sources or records failed, "
    "4 too many failed, 5 stored data is damaged, 6 storage failed, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_runs.app)
app.add_typer(cli_training.app)
app.add_typer(cli_banks.app, name="bank")
app.add_typer(cli_models.app, name="models")

DatasetUrl = Annotated[str, typer.Argument(help="Dataset folder or s3:// URL, or .../snapshots/ID to pin one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from pipelines.synthesis import build_info

        versions = build_info()
        out.print(f"pairforge {versions.pop('pairforge')}")
        out.print(escape(", ".join(f"{name} {version}" for name, version in versions.items())))
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it, with what determines pixels."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def verify(
    dataset: DatasetUrl,
    replay: Annotated[str, typer.Option(help="Also render N samples again, or `all`.")] = "0",
    tolerance: Annotated[
        int, typer.Option(help="Codes a replayed pixel may differ by (another CPU or version).", min=0, max=255)
    ] = 0,
    workers: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Check a snapshot: checksums, tar rules, counts; with --replay also that pixels come out again."""
    if replay != "all" and not replay.isdecimal():
        raise ValueError(f"--replay {replay!r}: allowed are a number and `all`")
    result = _verify(dataset, None if replay == "all" else int(replay), tolerance, workers, as_json)
    problems = result["problems"]
    if as_json:
        print_json(result)
    else:
        for problem in problems[:50]:
            err.print(f"[red]fault[/red] {escape(problem)}")
        if len(problems) > 50:
            err.print(f"... and {len(problems) - 50} more")
        without = result["without_steps"]
        out.print(
            f"snapshot {result['snapshot']}: {result['shards']} shards, {result['samples']} samples, "
            f"{human_bytes(result['bytes'])} read; {result['replayed']} replayed"
            + (f", {without} imported without steps" if without else "")
            + (f"; {len(problems)} faults" if problems else "; no fault")
        )
    raise typer.Exit(UNVERIFIED if problems else 0)


def _verify(dataset: str, count: int | None, tolerance: int, workers: int | None, quiet: bool) -> dict[str, Any]:
    from pairforge.records import DamagedError
    from pairforge.snapshot import open_snapshot
    from pairforge.snapshot import verify as verify_snapshot
    from pipelines.verification import replay_snapshot

    result: dict[str, Any] = dict.fromkeys(("shards", "samples", "bytes", "replayed", "without_steps"), 0)
    try:
        snapshot = open_snapshot(dataset)
    except DamagedError as error:
        return {"snapshot": None, **result, "problems": [str(error)]}
    with show_progress(quiet) as progress:
        task = progress.add_task("checking", total=len(snapshot.manifest.shards))
        report = verify_snapshot(snapshot, lambda shard: progress.advance(task))
        problems = list(report.problems)
        result.update(shards=report.shards, samples=report.samples, bytes=report.bytes)
        if count != 0 and not problems:
            again = progress.add_task("replaying", total=min(count or report.samples, report.samples))
            replayed = replay_snapshot(
                snapshot,
                count,
                tolerance,
                workers or os.cpu_count() or 1,
                lambda samples: progress.update(again, advance=samples),
            )
            result.update(replayed=replayed.replayed, without_steps=replayed.without_steps)
            problems += replayed.problems
    return {"snapshot": snapshot.manifest.id, **result, "problems": problems}


@app.command()
def inspect(
    dataset: DatasetUrl,
    key: Annotated[str | None, typer.Argument(help="Key of one kept record.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the record's files here.")] = None,
    fate: Annotated[str | None, typer.Option(help="List the records that were rejected or failed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a snapshot, the records of one fate, or one record with all its parameters."""
    from pairforge.shards import sample_json
    from pairforge.snapshot import open_snapshot

    snapshot = open_snapshot(dataset)
    if key is not None:
        try:
            _, files = snapshot.find(key)
        except KeyError as error:
            raise ValueError(str(error.args[0])) from error
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            for extension, data in files.items():
                (output / f"{key}.{extension}").write_bytes(data)
        print_json(sample_json(files))
        return
    if fate is not None:
        _print_fate(snapshot, fate, as_json)
        return
    manifest = snapshot.manifest
    if as_json:
        print_json(
            {
                "snapshot": manifest.id,
                "date": manifest.date,
                "name": manifest.name,
                "sources": manifest.sources,
                "excluded": len(manifest.excluded),
                "categories": snapshot.summary(),
                "reasons": snapshot.reasons(),
            }
        )
        return
    print_summary(snapshot)
    out.print(f"sources: {in_words(manifest.sources)}; left out of it: {len(manifest.excluded)} pairs")
    if snapshot.reasons():
        out.print(f"not kept: {in_words(snapshot.reasons())}")
    for key in snapshot.first_keys(3):
        out.print(f"e.g. pairforge inspect {escape(shlex.quote(dataset))} {key}")


def _print_fate(snapshot: Any, fate: str, as_json: bool) -> None:
    from pairforge.records import Fate

    if fate not in set(Fate):
        raise ValueError(f"--fate {fate!r}: allowed are {', '.join(Fate)}")
    rows = snapshot.rows(["key", "fate", "reason", "detail", "uri"], include_excluded=True).to_pylist()
    rows = [row for row in rows if row["fate"] == fate]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            out.print(escape("  ".join([row["key"], *(row[name] for name in ("reason", "detail") if row[name])])))
            out.print(escape(f"    {row['uri']}"))
        out.print(f"{len(rows)} {fate} records")


@app.command()
def preview(
    dataset: DatasetUrl,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG or JPEG to write.")] = Path("preview.png"),
    category: Annotated[list[str] | None, typer.Option(help="Only these categories.")] = None,
    per_category: Annotated[int, typer.Option(min=1, max=200)] = 3,
    columns: Annotated[int, typer.Option(help="Pairs a row.", min=1, max=12)] = 3,
    thumb_px: Annotated[int, typer.Option(help="Side of one picture.", min=64, max=2048)] = 256,
    refused: Annotated[
        bool, typer.Option("--refused", help="Of the ground-truth line: what was generated and not kept, with why.")
    ] = False,
) -> None:
    """Write a contact sheet: LQ beside HQ with the drawn parameters, or with what was thought of it."""
    from pairforge.image import check_picture_path
    from pairforge.snapshot import open_snapshot
    from pipelines.preview import save_sheet

    check_picture_path(output)
    save_sheet(open_snapshot(dataset), output, category, per_category, columns, thumb_px, refused)
    out.print(escape(str(output)))


@app.command()
def degrade(
    image: Annotated[Path, typer.Argument(help="A clean photo.")],
    kind: Annotated[str, typer.Option("--type", help="Name of a degradation, or of a chain of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")],
    severity: Annotated[float, typer.Option(help="0 to 1.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    second: Annotated[Path | None, typer.Option(help="Second photo, for reflection.")] = None,
    bank: Annotated[str | None, typer.Option(help="Folder or s3:// URL of a bank, for patterns.")] = None,
    target: Annotated[Path | None, typer.Option(help="Also write what HQ would be.")] = None,
) -> None:
    """Degrade one photo; print the drawn parameters as JSON."""
    from pipelines.single import SingleOrder, degrade_file

    print_json(degrade_file(SingleOrder(image, kind, severity, seed, second, bank), output, target))


@app.command(name="import")
def import_(
    output: Annotated[str, typer.Argument(help="Dataset folder or s3:// URL to write.")],
    lq: Annotated[str, typer.Option(help="Folder of degraded images.")],
    hq: Annotated[str, typer.Option(help="Folder of clean images, same names.")],
    name: Annotated[str, typer.Option(help="Name of the set, a-z 0-9 _.")],
    category: Annotated[str, typer.Option(help="Category of all pairs, a-z 0-9 _.")],
    licence: Annotated[str, typer.Option(help="Licence of all pairs.")],
    attribution: Annotated[str, typer.Option()] = "",
    val: Annotated[float, typer.Option(help="Share held out for validation.", min=0, max=0.9)] = 0.0,
    records_per_shard: Annotated[int, typer.Option(min=1)] = 256,
    as_json: AsJson = False,
) -> None:
    """Turn existing LQ/HQ folders (BasicSR layout) into a snapshot."""
    from pairforge.snapshot import open_snapshot
    from pipelines.importing import import_pairs, import_settings

    settings = import_settings(
        {
            "name": name,
            "category": category,
            "lq": lq,
            "hq": hq,
            "licence": licence,
            "attribution": attribution,
            "splits": {"val": val, "test": 0.0},
            "records_per_shard": records_per_shard,
        }
    )
    with show_progress(as_json) as progress:
        task = progress.add_task("looking at pairs", total=None)
        manifest, made = import_pairs(
            settings,
            output,
            lambda pairs: progress.update(task, description="importing", total=pairs),
            lambda: progress.advance(task),
        )
    snapshot = open_snapshot(output)
    failed = sum(shard.failed for shard in manifest.shards)
    if as_json:
        print_json({"snapshot": manifest.id, "shards_made": made, "categories": snapshot.summary()})
    else:
        print_summary(snapshot)
        if snapshot.reasons():
            out.print(f"not kept: {in_words(snapshot.reasons())}")
            for fate in ("rejected", "failed"):
                if any(getattr(shard, fate) for shard in manifest.shards):
                    out.print(f"  pairforge inspect {escape(shlex.quote(output))} --fate {fate}")
    raise typer.Exit(FLAWED if failed else 0)


@app.command()
def export(
    dataset: DatasetUrl,
    output: Annotated[Path, typer.Argument(help="Folder to write; gets lq/ and hq/.")],
    category: Annotated[list[str] | None, typer.Option(help="Only these categories.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only these splits.")] = None,
) -> None:
    """Write pairs as two folders with equal file names (BasicSR layout)."""
    from pairforge.snapshot import open_snapshot
    from pipelines.exporting import export_pairs

    count = export_pairs(open_snapshot(dataset), output, category, split)
    out.print(f"{count} pairs in {escape(str(output))}/lq and {escape(str(output))}/hq")


def main() -> None:
    """Entry point of the `pairforge` command. SIGTERM ends it as Ctrl-C does, so that nothing is left running."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    code = guarded(app)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient Ctrl-C must not cut Ray's clean-up short
    sys.exit(code)


if __name__ == "__main__":
    main()
