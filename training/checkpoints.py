"""State of a run on disk: written whole or not at all, the latest and the best ones kept."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pairforge.config import canonical_json
from pairforge.records import DamagedError

_NAME = re.compile(r"^step-(\d{9})\.pt$")
LATEST = "latest.json"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state of a step, and then say that it is the latest; a kill in between leaves the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.pt"
    _whole(path, lambda unfinished: torch.save(dict(state), unfinished))
    _whole(folder / LATEST, lambda unfinished: unfinished.write_text(canonical_json({"step": step})))
    return path


def latest_step(folder: Path) -> int | None:
    """The step of the latest checkpoint, None where there is none. Raises DamagedError."""
    try:
        text = (folder / LATEST).read_text()
    except FileNotFoundError:
        return None
    try:
        return int(json.loads(text)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder / LATEST} does not name a step: {text[:40]!r}") from error


def load_checkpoint(folder: Path, step: int) -> dict[str, Any]:
    """The state of a step, on the CPU. Raises DamagedError where it is gone or cannot be read."""
    path = folder / f"step-{step:09d}.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is gone: {folder / LATEST} names it") from error
    except Exception as error:  # torch raises errors of many kinds for damaged files
        raise DamagedError(f"{path} cannot be read: {error}") from error
    return state


def prune_checkpoints(folder: Path, keep: frozenset[int]) -> None:
    """Delete all but the latest and those of the given steps."""
    latest = latest_step(folder)
    for path in folder.glob("step-*.pt"):
        match = _NAME.match(path.name)
        if match and int(match[1]) != latest and int(match[1]) not in keep:
            path.unlink(missing_ok=True)


def _whole(path: Path, write: Any) -> None:
    unfinished = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        write(unfinished)
        with unfinished.open("rb") as stream:
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
