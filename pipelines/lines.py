"""The two production lines behind one door: which config is of which line, and what each plans."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from pairforge.config import ConfigError, load_config
from pairforge.shards import ShardName, read_marker
from pairforge.storage import open_storage
from pipelines.catalog import Catalog
from pipelines.ground_truth.plan import plan_truth
from pipelines.ground_truth.settings import GroundTruthConfig
from pipelines.plan import plan_parts
from pipelines.retries import failed_keys, retry
from pipelines.settings import RunConfig

AnyConfig = RunConfig | GroundTruthConfig


class PlannedPart(Protocol):
    """A part of either line. `content` is its fingerprint before retries."""

    @property
    def shard(self) -> ShardName: ...

    @property
    def content(self) -> str: ...

    @property
    def records(self) -> tuple[Any, ...]: ...


def load_run_config(path: Path, changes: Sequence[str] = ()) -> AnyConfig:
    """The config of a run, of the line that it names; one that names none is of synthesis. Raises ConfigError.

    `changes` as in `load_config`.
    """
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        stated = None  # load_config says it better
    line = stated.get("line", "synthesis") if isinstance(stated, dict) else "synthesis"
    if line not in ("synthesis", "ground_truth"):
        raise ConfigError([f"{path}: line: {line!r} is not allowed; allowed: synthesis, ground_truth"])
    if line == "ground_truth":
        return load_config(path, GroundTruthConfig, changes)
    return load_config(path, RunConfig, changes)


def retry_failed(config: AnyConfig, reasons: tuple[str, ...]) -> tuple[int, int]:
    """Have failed records, whose reason begins with one of `reasons`, tried again: how many, of how many parts."""
    storage = open_storage(config.output)
    due: dict[str, list[str]] = {}
    for part in plan_line(config, Catalog(storage)):
        try:
            marker = read_marker(storage, part.shard.marker)
        except FileNotFoundError:
            continue
        if keys := failed_keys(storage, marker, reasons):
            due[part.content] = keys
    return (retry(storage, due), len(due)) if due else (0, 0)


def plan_line(config: AnyConfig, catalog: Catalog) -> Iterator[PlannedPart]:
    """All parts of a config, whatever its line."""
    yield from plan_truth(config, catalog) if isinstance(config, GroundTruthConfig) else plan_parts(config, catalog)
