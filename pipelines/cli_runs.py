"""`pairforge` commands that take the config of a run, of either line."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pipelines.console import (
    FLAWED,
    err,
    human_bytes,
    human_seconds,
    in_words,
    out,
    print_json,
    print_summary,
    print_table,
    show_progress,
)

app = typer.Typer()

ConfigPath = Annotated[Path, typer.Argument(help="YAML config of a run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")]
Workers = Annotated[int | None, typer.Option(help="Cores of the embedded Ray; overrides the config.", min=1)]
Address = Annotated[
    str | None, typer.Option(help="Join a running Ray cluster: HOST:PORT, or `auto` on one of its nodes.")
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change one value of the config.", metavar="sources.0.url=/photos")
]
Log = Annotated[
    str | None, typer.Option(help="Append events to this file as JSON lines; `-` for stderr.", metavar="FILE")
]


@app.command()
def validate(config: ConfigPath, changes: Changes = None, as_json: AsJson = False) -> None:
    """Check a config; with --json print it with every default filled in."""
    loaded = _load(config, changes)
    if as_json:
        print_json(loaded.model_dump(mode="json"))
    elif loaded.line == "ground_truth":
        steps = ", ".join(step.name for step in loaded.screen)
        names = ", ".join(category.name for category in loaded.select.categories)
        out.print(f"{escape(str(config))}: valid; screened by {steps}; categories: {names}")
    else:
        from pipelines.settings import records_per_source

        records = in_words(records_per_source(loaded))
        out.print(f"{escape(str(config))}: valid; {len(loaded.recipes)} recipes; records: {records}")


@app.command()
def plan(
    config: ConfigPath,
    changes: Changes = None,
    as_json: AsJson = False,
    measure: Annotated[
        int, typer.Option(help="Records to render of each category that no calibration knows.", min=0)
    ] = 2,
) -> None:
    """Say what a run would do: counts, bytes, time, money, and what is done already. Writes and spends nothing."""
    from pipelines.estimate import FIELDS, estimate

    loaded = _load(config, changes)
    if loaded.line == "ground_truth":
        _plan_truth(loaded, str(config), as_json)
        return
    found = estimate(loaded, measure)
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


def _plan_truth(loaded: Any, config: str, as_json: bool) -> None:
    from pipelines.cli_truth import print_truth_plan
    from pipelines.ground_truth.estimate import estimate_truth

    found = estimate_truth(loaded)
    if as_json:
        print_json(found)
    else:
        print_truth_plan(found, config)


def _basis(found: Any) -> str:
    told = [f"the calibration of {len(found['calibrated'])} categories"] if found["calibrated"] else []
    return " and ".join([*told, *([f"{found['measured']} records rendered here"] if found["measured"] else [])])


@app.command()
def calibrate(
    config: ConfigPath,
    changes: Changes = None,
    records: Annotated[int, typer.Option(help="Records to render of each category.", min=1, max=10_000)] = 16,
    as_json: AsJson = False,
) -> None:
    """Measure what a record of each category costs on this machine; `plan` predicts from it without rendering."""
    from pipelines.estimate import calibrate as measure

    loaded = _load(config, changes)
    if loaded.line == "ground_truth":
        raise ValueError(
            f"{config}: a record of the ground-truth line costs money, so none is made to measure it; "
            "`pairforge plan` predicts from what committed parts cost, so run on a few sources first"
        )
    found = measure(loaded, records)
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
    changes: Changes = None,
    local: Local = False,
    workers: Workers = None,
    address: Address = None,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Give parts that used up their attempts all of them back.")
    ] = False,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet here.")] = None,
    log: Log = None,
    as_json: AsJson = False,
) -> None:
    """Make everything planned and missing, then publish a snapshot."""
    from pairforge.config import fingerprint
    from pairforge.image import check_picture_path
    from pairforge.snapshot import open_snapshot
    from pairforge.storage import open_storage
    from pipelines.attempts import AttemptLedger
    from pipelines.preview import save_sheet
    from pipelines.telemetry import new_run_id, run_log

    loaded = _load(config, changes)
    if sheet is not None:
        check_picture_path(sheet)
    loaded = _with_workers(loaded, local, address, workers)
    if retry_quarantined:
        AttemptLedger(open_storage(loaded.output), loaded.run.engine.max_attempts).forget()
    with run_log(log, new_run_id(fingerprint(loaded))), show_progress(as_json or log == "-") as progress:
        report = _run_line(loaded, local, address, _watchers(progress))
    snapshot = open_snapshot(f"{loaded.output.rstrip('/')}/snapshots/{report.snapshot}")
    if sheet is not None:
        save_sheet(snapshot, sheet, None, 3, 3, 256)
    if as_json:
        print_json({**_report(report), "categories": snapshot.summary(), "sheet": str(sheet) if sheet else None})
    else:
        _print_run(report, snapshot, loaded.output, _called_with(config, changes), sheet)
    raise typer.Exit(FLAWED if report.flawed else 0)


def _called_with(config: Path, changes: Sequence[str] | None) -> list[str]:
    """Config and changes, for the commands that are named as next."""
    return [str(config), *(part for change in changes or () for part in ("--set", change))]


def _with_workers(loaded: Any, local: bool, address: str | None, workers: int | None) -> Any:
    if local and (address or workers):
        raise ValueError("--local runs in this process; it goes with neither --address nor --workers")
    if not workers:
        return loaded
    return loaded.model_copy(update={"run": loaded.run.model_copy(update={"workers": workers})})


def _run_line(loaded: Any, local: bool, address: str | None, watchers: Any) -> Any:
    if loaded.line == "ground_truth":
        from pipelines.ground_truth.place import placed
        from pipelines.ground_truth.run import run_truth

        with placed(local, address, loaded.run.workers) as place:
            return run_truth(loaded, place, watchers)
    from pipelines.run import open_backend
    from pipelines.run import run as run_synthesis

    return run_synthesis(loaded, lambda settings, output: open_backend(settings, output, local, address), watchers)


def _watchers(progress: Any) -> Any:
    from pipelines.carry import Watchers
    from pipelines.publication import Outline

    task = progress.add_task("looking at sources", total=None)

    def on_phase(name: str, works: int) -> None:
        if name:
            progress.update(task, description=name, total=works, completed=0)
        else:
            progress.update(task, advance=works)

    def on_plan(planned: Outline) -> None:
        left = sum(count for _, count in planned.pending)
        progress.update(task, description="making", total=planned.records, completed=planned.records - left)

    return Watchers(
        on_phase=on_phase,
        on_plan=on_plan,
        on_part=lambda marker: progress.update(task, advance=marker.planned),
        on_tick=lambda loads: progress.update(task, description=_in_stages(loads)),
        on_stop=lambda works: err.print(f"finishing {works} parts in flight; Ctrl-C again to stop now"),
    )


@app.command(name="filter")
def filter_(
    config: ConfigPath,
    changes: Changes = None,
    retune: Annotated[
        bool, typer.Option("--retune", help="Decide again from stored values; no source is looked at.")
    ] = False,
    local: Local = False,
    workers: Workers = None,
    address: Address = None,
    log: Log = None,
    as_json: AsJson = False,
) -> None:
    """Screen and select the sources of a ground-truth run, and show the funnel. Makes nothing, fixes nothing."""
    from pairforge.config import fingerprint
    from pairforge.storage import open_storage
    from pipelines.telemetry import new_run_id, run_log

    loaded = _with_workers(_load(config, changes), local, address, workers)
    if loaded.line != "ground_truth":
        raise ValueError(f"{config} is a config of the {loaded.line} line; filter takes one with line: ground_truth")
    from pipelines.ground_truth.place import placed
    from pipelines.ground_truth.run import STANDINGS, retune_sources, screen_sources

    with run_log(log, new_run_id(fingerprint(loaded))), show_progress(as_json or log == "-") as progress:
        if retune:
            found = retune_sources(loaded)
        else:
            with placed(local, address, loaded.run.workers) as place:
                found = screen_sources(loaded, place, _watchers(progress))
    if as_json:
        print_json(found)
    else:
        _print_funnel(found)
        out.print(f"every source with its reason: {escape(open_storage(loaded.output).url(STANDINGS))}")


def _print_funnel(found: Sequence[Any]) -> None:
    rows = [{**phase, "because": in_words(phase["reasons"]) if phase["reasons"] else ""} for phase in found]
    print_table("funnel", ("phase", "in", "out", "because"), rows)


@app.command(name="retry-failed")
def retry_failed(
    config: ConfigPath,
    changes: Changes = None,
    reason: Annotated[list[str] | None, typer.Option(help="Only records that failed for this reason.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have failed records tried again: the next run makes their parts anew, under a new path."""
    from pipelines.lines import retry_failed as retry

    count, parts = retry(_load(config, changes), tuple(reason or ("",)))
    if as_json:
        print_json({"records": count, "parts": parts})
    elif count:
        command = shlex.join(["pairforge", "run", *_called_with(config, changes)])
        out.print(f"{count} failed records of {parts} parts are due; {escape(command)} tries them")
    else:
        out.print("no failed record" + (f" with reason {', '.join(reason)}" if reason else ""))


def _in_stages(loads: Sequence[Any]) -> str:
    """What the stages are doing, where there are several: calls that run and that wait, and the bottleneck."""
    from pipelines.engine import bottleneck

    if len(loads) == 1:
        return "making" if loads[0].name == "render" else loads[0].name.replace("_", " ")
    told = ", ".join(
        f"{load.name} {load.running}" + (f" ({load.waiting} waiting)" if load.waiting else "") for load in loads
    )
    slowest = bottleneck(loads)
    return f"making: {told}" + (f"; bottleneck {slowest}" if slowest else "")


def _report(report: Any) -> dict[str, Any]:
    fields = ("snapshot", "published", "parts_made", "parts_before", "sources", "fates", "reasons")
    truth = ("funnel", "unmade", "unmeasured", "left_out", "usd") if hasattr(report, "funnel") else ()
    return {**{name: getattr(report, name) for name in (*fields, *truth)}, "seconds": round(report.seconds, 1)}


def _print_run(report: Any, snapshot: Any, output: str, config: list[str], sheet: Path | None) -> None:
    print_summary(snapshot)
    if hasattr(report, "funnel"):
        _print_truth(report)
    else:
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
        ["plan", *config],
    ):
        out.print(f"  {escape(shlex.join([called, *command]))}")


def _print_truth(report: Any) -> None:
    _print_funnel(report.funnel)
    if report.unmeasured:
        out.print(f"{report.unmeasured} sources could not be measured for now; the next run measures them")
    if report.unmade:
        out.print(f"the budget is spent: {report.unmade} parts are not made; raise budget.cap_usd and run again")
    if report.left_out:
        out.print(f"{report.left_out} pairs are left out of the snapshot: rules refuse their sources by now")
    if report.usd:
        out.print(f"spent on this output so far: {report.usd:.2f} USD")


@app.command()
def status(
    target: Annotated[str, typer.Argument(help="Config, or dataset folder or s3:// URL.")],
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """How far the latest run is, and what it has spent; reads storage alone, so any machine can ask."""
    from pairforge.storage import open_storage
    from pipelines.cli_truth import print_truth_status
    from pipelines.ground_truth.status import is_truth, truth_status
    from pipelines.publication import read_status

    loaded = _load(Path(target), changes) if target.endswith((".yaml", ".yml")) else None
    url = loaded.output if loaded else target
    storage = open_storage(url)
    of_truth = is_truth(storage)
    try:
        found = truth_status(storage, loaded and loaded.budget.cap_usd) if of_truth else read_status(storage)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no run has written to {url} yet") from error
    if as_json:
        print_json(found)
        return
    out.print(
        f"{found['name'] or 'nothing is planned yet'}: {found['records_done']} of {found['records']} records, "
        f"{found['parts_done']} of {found['parts']} parts, {human_bytes(found['bytes'])}"
    )
    out.print(
        f"kept {found['kept']}, rejected {found['rejected']}, failed {found['failed']}"
        + (f" ({in_words(found['reasons'])})" if found["reasons"] else "")
    )
    if of_truth:
        print_truth_status(found)
    out.print(f"latest snapshot: {found['latest_snapshot'] or 'none'}")


@app.command()
def remove(
    config: ConfigPath,
    source_ids: Annotated[list[str], typer.Argument(help="24-digit source ids.")],
    why: Annotated[str, typer.Option(help="Reason, kept in the catalog.")],
    changes: Changes = None,
) -> None:
    """Take sources out for good; the next run remakes only the shards that used them."""
    from pairforge.storage import open_storage
    from pipelines.catalog import Catalog

    Catalog(open_storage(_load(config, changes).output)).remove(source_ids, why)
    command = shlex.join(["pairforge", "run", *_called_with(config, changes)])
    out.print(f"{len(source_ids)} sources removed; {escape(command)} makes a snapshot without them")


def _load(config: Path, changes: Sequence[str] | None = None) -> Any:
    from pipelines.lines import load_run_config

    return load_run_config(config, changes or ())
