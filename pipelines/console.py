"""How the command line speaks: tables, JSON, progress on a terminal, errors with their exit codes."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pairforge.config import ConfigError
from pairforge.records import InfraError, SampleError, TooManyFailedError

BUG, USAGE, FLAWED, STOPPED, UNVERIFIED, INFRA, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


def show_progress(quiet: bool) -> Progress:
    """A bar with rate and time left on stderr; silent where stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=err, disable=quiet or not err.is_terminal, transient=True)


def print_table(title: str, fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as aligned columns; a column called `bytes` is shown in units."""
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(fields):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        cells = (human_bytes(row[name]) if name == "bytes" else str(row[name]) for name in fields)
        table.add_row(*(escape(cell) for cell in cells))
    out.print(table)


def human_bytes(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def in_words(counts: Mapping[str, int]) -> str:
    """`3 haze, 1 rain`, with markup escaped."""
    return escape(", ".join(f"{count} {name}" for name, count in counts.items()) or "none")


def print_json(value: Any) -> None:
    """Indented JSON on stdout, nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; every known kind of error becomes a message and an exit code."""
    try:
        command()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt:
        return _complain("interrupted; what was committed stays, run again to go on", INTERRUPTED)
    except TooManyFailedError as error:
        return _complain(str(error), STOPPED)
    except InfraError as error:
        return _complain(f"storage or machinery failed: {error}", INFRA)
    except (ConfigError, ValueError, FileNotFoundError, SampleError, ImportError) as error:
        return _complain(str(error), USAGE)
    except Exception as error:  # noqa: BLE001 - the outermost place: shown whole, with its own exit code
        err.print_exception()
        return _complain(f"this is a bug in PairForge, please report it: {error}", BUG)
    return 0


def _complain(message: str, code: int) -> int:
    err.print(f"[red]error[/red] {escape(message)}")
    return code
