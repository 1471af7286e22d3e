"""The `pairforge` command.

Exit codes: 0 done; 1 a bug; 2 a wrong call, config or input; 3 done, but some sources or records
failed; 4 stopped: too many failed; 5 stored data is damaged, or its replay differs; 6 storage or
machinery failed; 130 interrupted; 141 nobody read the output any more; 143 terminated.

stdout carries the result, as text or with `--json` as one JSON document; progress and errors go to stderr.
"""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pipelines import cli_banks
from pipelines.console import (
    FLAWED,
    TERMINATED,
    UNVERIFIED,
    err,
    guarded,
    human_bytes,
    human_seconds,
    in_words,
    out,
    print_json,
    print_table,
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

app.add_typer(cli_banks.app, name="bank")

ConfigPath = Annotated[Path, typer.Argument(help="YAML config of a run.")]
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
def validate(config: ConfigPath, as_json: AsJson = False) -> None:
    """Check a config; with --json print it with every default filled in."""
    loaded = _load(config)
    if as_json:
        print_json(loaded.model_dump(mode="json"))
    else:
        variants = sum(recipe.variants for recipe in loaded.recipes)
        out.print(f"{escape(str(config))}: valid; {len(loaded.recipes)} recipes, {variants} records per photo")


@app.command()
def plan(
    config: ConfigPath,
    as_json: AsJson = False,
    measure: Annotated[
        int, typer.Option(help="Records to render of each category that no calibration knows.", min=0)
    ] = 2,
) -> None:
    """Say what a run would do: counts, bytes, time, and what is done already. Writes nothing."""
    from pipelines.estimate import FIELDS, estimate

    found = estimate(_load(config), measure)
    if as_json:
        print_json(found)
        return
    print_table(
        f"plan of {config}",
        ("category", *FIELDS),
        [*found["categories"], {"category": "total", **found["total"]}],
    )
    out.print(f"sources: {in_words(found['sources'])}")
    if found["total"]["records"] == found["total"]["records_done"]:
        out.print("nothing left to do")
    elif found["seconds_left"] is not None:
        out.print(
            f"left to do: about {human_bytes(found['bytes_left'])} and {human_seconds(found['seconds_left'])} on "
            f"{found['workers']} workers, from {_basis(found)}"
        )
        stored = "" if found["storage_left"] is None else f"; storage with bases {human_bytes(found['storage_left'])}"
        out.print(f"core-hours {found['core_hours_left']:.2f}, GPU-hours {found['gpu_hours_left']:.2f}{stored}")


def _basis(found: Any) -> str:
    told = [f"the calibration of {len(found['calibrated'])} categories"] if found["calibrated"] else []
    return " and ".join([*told, *([f"{found['measured']} records rendered here"] if found["measured"] else [])])


@app.command()
def calibrate(
    config: ConfigPath,
    records: Annotated[int, typer.Option(help="Records to render of each category.", min=1, max=10_000)] = 16,
    as_json: AsJson = False,
) -> None:
    """Measure what a record of each category costs on this machine; `plan` predicts from it without rendering."""
    from pipelines.estimate import calibrate as measure

    found = measure(_load(config), records)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    rows = [
        {
            "category": name,
            "records": cost.records,
            "ms_a_record": round(1000 * cost.core_seconds),
            "gpu_ms_a_record": round(1000 * cost.gpu_seconds),
            "bytes": cost.shard_bytes,
        }
        for name, cost in found.categories.items()
    ]
    print_table(
        f"costs of a record of {config}", ("category", "records", "ms_a_record", "gpu_ms_a_record", "bytes"), rows
    )
    out.print(f"a base: {human_bytes(found.base_bytes)}")


@app.command()
def run(
    config: ConfigPath,
    local: Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")] = False,
    workers: Annotated[int | None, typer.Option(help="Cores of the embedded Ray; overrides the config.", min=1)] = None,
    address: Annotated[
        str | None, typer.Option(help="Join a running Ray cluster: HOST:PORT, or `auto` on one of its nodes.")
    ] = None,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Give parts that used up their attempts all of them back.")
    ] = False,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet here.")] = None,
    log: Annotated[
        str | None, typer.Option(help="Append events to this file as JSON lines; `-` for stderr.", metavar="FILE")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make everything planned and missing, then publish a snapshot."""
    from pairforge.config import fingerprint
    from pairforge.image import check_picture_path
    from pairforge.snapshot import open_snapshot
    from pairforge.storage import open_storage
    from pipelines.attempts import AttemptLedger
    from pipelines.carry import Watchers
    from pipelines.publication import Outline
    from pipelines.run import open_backend
    from pipelines.run import run as run_line
    from pipelines.telemetry import new_run_id, run_log

    loaded = _load(config)
    if sheet is not None:
        check_picture_path(sheet)
    if workers:
        loaded = loaded.model_copy(update={"run": loaded.run.model_copy(update={"workers": workers})})
    if local and (address or workers):
        raise ValueError("--local runs in this process; it goes with neither --address nor --workers")
    if retry_quarantined:
        AttemptLedger(open_storage(loaded.output), loaded.run.engine.max_attempts).forget()
    with run_log(log, new_run_id(fingerprint(loaded))), show_progress(as_json or log == "-") as progress:
        task = progress.add_task("looking at sources", total=None)

        def on_plan(planned: Outline) -> None:
            left = sum(count for _, count in planned.pending)
            progress.update(task, description="rendering", total=planned.records, completed=planned.records - left)

        report = run_line(
            loaded,
            lambda settings, output: open_backend(settings, output, local, address),
            Watchers(
                on_plan=on_plan,
                on_part=lambda marker: progress.update(task, advance=marker.planned),
                on_tick=lambda loads: progress.update(task, description=_in_stages(loads)),
                on_stop=lambda parts: err.print(f"finishing {parts} parts in flight; Ctrl-C again to stop now"),
            ),
        )
    snapshot = open_snapshot(f"{loaded.output.rstrip('/')}/snapshots/{report.snapshot}")
    if sheet is not None:
        _write_sheet(snapshot, sheet, None, 3, 3, 256)
    if as_json:
        print_json({**_report(report), "categories": snapshot.summary(), "sheet": str(sheet) if sheet else None})
    else:
        _print_run(report, snapshot, loaded.output, config, sheet)
    raise typer.Exit(FLAWED if report.flawed else 0)


def _in_stages(loads: Sequence[Any]) -> str:
    """What the stages are doing, where there are several: calls that run and that wait, and the bottleneck."""
    from pipelines.engine import bottleneck

    if len(loads) == 1:
        return "rendering"
    told = ", ".join(
        f"{load.name} {load.running}" + (f" ({load.waiting} waiting)" if load.waiting else "") for load in loads
    )
    slowest = bottleneck(loads)
    return f"rendering: {told}" + (f"; bottleneck {slowest}" if slowest else "")


def _report(report: Any) -> dict[str, Any]:
    fields = ("snapshot", "published", "parts_made", "parts_before", "sources", "fates", "reasons")
    return {**{name: getattr(report, name) for name in fields}, "seconds": round(report.seconds, 1)}


def _print_run(report: Any, snapshot: Any, output: str, config: Path, sheet: Path | None) -> None:
    _print_summary(snapshot)
    out.print(f"sources: {in_words(report.sources)}")
    if report.reasons:
        out.print(f"not kept: {in_words(report.reasons)}")
    made = f"{report.parts_made} shards made" if report.parts_made else "nothing left to do"
    out.print(f"{made}, {report.parts_before} were there; {human_seconds(report.seconds)}; snapshot {report.snapshot}")
    if sheet is not None:
        out.print(f"contact sheet: {escape(str(sheet))}")
    out.print("next:")
    # As it was called: after `make demo` the command is not on the path.
    by_path = Path(sys.argv[0]).name == "pairforge" and not shutil.which("pairforge")
    called = sys.argv[0] if by_path else "pairforge"
    for command in (
        ["inspect", output],
        ["verify", output, "--replay", "all"],
        ["preview", output, "--category", snapshot.summary()[0]["category"], "-o", "sheet.png"],
        ["plan", str(config)],
    ):
        out.print(f"  {escape(shlex.join([called, *command]))}")


@app.command()
def status(
    target: Annotated[str, typer.Argument(help="Config, or dataset folder or s3:// URL.")], as_json: AsJson = False
) -> None:
    """How far the latest run is; reads storage alone, so any machine can ask."""
    from pairforge.storage import open_storage
    from pipelines.publication import read_status

    url = _load(Path(target)).output if target.endswith((".yaml", ".yml")) else target
    try:
        found = read_status(open_storage(url))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no run has written to {url} yet") from error
    if as_json:
        print_json(found)
        return
    out.print(
        f"{found['name']}: {found['records_done']} of {found['records']} records, "
        f"{found['parts_done']} of {found['parts']} parts, {human_bytes(found['bytes'])}"
    )
    out.print(
        f"kept {found['kept']}, rejected {found['rejected']}, failed {found['failed']}"
        + (f" ({in_words(found['reasons'])})" if found["reasons"] else "")
    )
    out.print(f"latest snapshot: {found['latest_snapshot'] or 'none'}")


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
    _print_summary(snapshot)
    out.print(f"sources: {in_words(manifest.sources)}; excluded by review: {len(manifest.excluded)}")
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
) -> None:
    """Write a contact sheet: LQ beside HQ with the drawn parameters."""
    from pairforge.image import check_picture_path
    from pairforge.snapshot import open_snapshot

    check_picture_path(output)
    _write_sheet(open_snapshot(dataset), output, category, per_category, columns, thumb_px)
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
    from pydantic import ValidationError

    from pairforge.snapshot import open_snapshot
    from pipelines.importing import ImportSettings, import_pairs

    try:
        settings = ImportSettings.model_validate(
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
    except ValidationError as error:
        faults = ((str(e["loc"][0]).replace("_", "-"), e) for e in error.errors())
        raise ValueError("; ".join(f"--{name}: {e['msg']} (got {e['input']!r})" for name, e in faults)) from error
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
        _print_summary(snapshot)
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


@app.command()
def remove(
    config: ConfigPath,
    source_ids: Annotated[list[str], typer.Argument(help="24-digit source ids.")],
    why: Annotated[str, typer.Option(help="Reason, kept in the catalog.")],
) -> None:
    """Take sources out for good; the next run remakes only the shards that used them."""
    from pairforge.storage import open_storage
    from pipelines.catalog import Catalog

    Catalog(open_storage(_load(config).output)).remove(source_ids, why)
    out.print(
        f"{len(source_ids)} sources removed; run `pairforge run {escape(str(config))}` for a snapshot without them"
    )


def _load(config: Path) -> Any:
    from pairforge.config import load_config
    from pipelines.settings import RunConfig

    return load_config(config, RunConfig)


def _write_sheet(
    snapshot: Any, output: Path, categories: Sequence[str] | None, per_category: int, columns: int, thumb_px: int
) -> None:
    from pairforge.image import save_picture
    from pipelines.preview import contact_sheet, pick_samples

    title = f"{snapshot.manifest.name}, snapshot {snapshot.manifest.id}"
    save_picture(contact_sheet(pick_samples(snapshot, categories, per_category), columns, thumb_px, title), output)


def _print_summary(snapshot: Any) -> None:
    fields = ("category", "planned", "kept", "rejected", "failed", "bytes")
    print_table(f"snapshot {snapshot.manifest.id} of {snapshot.manifest.name}", fields, snapshot.summary())


def main() -> None:
    """Entry point of the `pairforge` command. SIGTERM ends it as Ctrl-C does, so that nothing is left running."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    code = guarded(app)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient Ctrl-C must not cut Ray's clean-up short
    sys.exit(code)


if __name__ == "__main__":
    main()
