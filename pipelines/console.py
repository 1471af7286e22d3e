"""How the command line speaks: tables, JSON, progress on a terminal, errors with their exit codes."""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from pairforge.config import ConfigError
from pairforge.records import DamagedError, InfraError, SampleError, StopRunError, TooManyFailedError

BUG, USAGE, FLAWED, STOPPED, UNVERIFIED, INFRA, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130
PIPE_CLOSED, TERMINATED = 141, 143
"""What shells report of a program whose output nobody reads any more (`pairforge ... | head`), or that got SIGTERM."""
_STAYS = "what was committed stays, run again to go on"
_SPEED_OVER_S = 600.0
"""Time over which the rate is averaged: a part may take minutes."""

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class _Count(MofNCompleteColumn):
    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.1f}/min")


def show_progress(quiet: bool) -> Progress:
    """A bar with rate and time left on stderr; silent where stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        _Count(),
        _Rate(),
        TimeRemainingColumn(compact=True),
        console=err,
        disable=quiet or not err.is_terminal,
        transient=True,
        speed_estimate_period=_SPEED_OVER_S,
    )


def print_table(title: str, fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as aligned columns, never wrapped; numbers to the right, `bytes` in units, None as a dash."""
    lines = [[_cell(name, row[name]) for name in fields] for row in rows]
    heads = [name.replace("_", " ") for name in fields]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    out.print(escape(title))
    for place, line in enumerate([heads, *lines]):
        first, *others = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        cells = [first, *(cell.strip().rjust(len(cell)) for cell in others)]
        out.print(escape("  ".join(cells)), style="bold" if place == 0 else None)


def print_summary(snapshot: Any) -> None:
    """What a snapshot holds, by category."""
    fields = ("category", "planned", "kept", "rejected", "failed", "bytes")
    print_table(f"snapshot {snapshot.manifest.id} of {snapshot.manifest.name}", fields, snapshot.summary())


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return human_bytes(value) if name == "bytes" else str(value)


def human_bytes(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """A duration in the two largest units: `42 s`, `3 min 20 s`, `5 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def in_words(counts: Mapping[str, int]) -> str:
    """`3 haze, 1 rain`, with markup escaped."""
    return escape(", ".join(f"{count} {name}" for name, count in counts.items()) or "none")


def print_json(value: Any) -> None:
    """Indented JSON on stdout, nothing else."""
    in_ascii = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=in_ascii, allow_nan=False) + "\n")


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; every known kind of error becomes a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names that are not UTF-8, terminals that know ASCII alone
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the outermost place
        return _exit_code(_behind_exit(error))
    return 0


def _behind_exit(error: BaseException) -> BaseException:
    """What typer turned into an exit without a word: Ctrl-C, or a closed pipe."""
    behind: BaseException | None = error
    while isinstance(error, SystemExit) and behind is not None:
        if isinstance(behind, KeyboardInterrupt | BrokenPipeError):
            return behind
        behind = behind.__context__
    return error


def _exit_code(error: BaseException) -> int:
    match error:
        case SystemExit(code=signal.SIGTERM | 143):  # Ray's own handler exits with the number of the signal
            return _complain(f"terminated; {_STAYS}", TERMINATED)
        case SystemExit():
            return error.code if isinstance(error.code, int) else USAGE
        case KeyboardInterrupt():
            return _complain(f"interrupted; {_STAYS}", INTERRUPTED)
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter complains when it flushes
            return PIPE_CLOSED
    return _explain(error)


def _explain(error: BaseException) -> int:
    match error:
        case TooManyFailedError():
            return _complain(str(error), STOPPED)
        case DamagedError():
            return _complain(str(error), UNVERIFIED)
        case InfraError() | StopRunError():
            return _complain(f"storage or machinery failed: {error}", INFRA)
        case ConfigError() | ValueError() | SampleError() | ImportError():
            return _complain(str(error), USAGE)
        case FileNotFoundError() | FileExistsError() | PermissionError() | IsADirectoryError() | NotADirectoryError():
            return _complain(_os_message(error), USAGE)
        case OSError():
            return _complain(f"storage or machinery failed: {_os_message(error)}", INFRA)
    err.print_exception()
    return _complain(f"this is a bug in PairForge, please report it: {error}", BUG)


def _os_message(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def _complain(message: str, code: int) -> int:
    err.print(f"[red]error[/red] {escape(message)}")
    return code
