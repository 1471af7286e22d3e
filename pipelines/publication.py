"""What a run plans, has committed and publishes: outline, run file, snapshot. For both lines."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pairforge.config import canonical_json, fingerprint
from pairforge.records import Frozen, InfraError, parse_stored
from pairforge.shards import Marker, ShardName, read_marker
from pairforge.snapshot import publish, read_latest, write_snapshot
from pairforge.storage import Storage
from pipelines.settings import BaseConfig
from pipelines.synthesis import pixel_versions
from pipelines.telemetry import bound_ids, note

RUN_FILE = "runs/latest.json"


@dataclass(frozen=True)
class Outline:
    """All parts of a plan by name, how many records each holds, and which are committed already."""

    parts: tuple[tuple[ShardName, int], ...]
    done: frozenset[str]

    @property
    def records(self) -> int:
        return sum(count for _, count in self.parts)

    @property
    def pending(self) -> tuple[tuple[ShardName, int], ...]:
        return tuple((name, count) for name, count in self.parts if name.marker not in self.done)


class RunState(Frozen):
    """What `runs/latest.json` holds: the plan of the latest run, by which anyone can tell how far it is."""

    name: str
    run: str | None
    config: str
    records: int
    parts: tuple[tuple[str, int], ...]
    started: float
    versions: Mapping[str, str]


def outline_of(parts: Iterable[tuple[ShardName, int]], storage: Storage) -> Outline:
    """The outline of planned parts, given by name and number of records."""
    listed = tuple(parts)
    names = {name.marker for name, _ in listed}
    markers = (entry.name for entry in storage.list("shards/") if entry.name.endswith(".marker.json"))
    return Outline(listed, frozenset(name for name in markers if name in names))


def write_run_file(storage: Storage, config: BaseConfig, planned: Outline) -> None:
    """Leave the plan for `read_status`."""
    state = RunState(
        name=config.name,
        run=bound_ids().get("run"),
        config=fingerprint(config),
        records=planned.records,
        parts=tuple((name.marker, count) for name, count in planned.parts),
        started=round(time.time(), 3),
        versions=pixel_versions(),
    )
    storage.write(RUN_FILE, canonical_json(state).encode())


def read_status(storage: Storage) -> dict[str, Any]:
    """How far the latest run is, from storage alone. Raises FileNotFoundError before the first run, DamagedError."""
    state = parse_stored(RunState, storage.read(RUN_FILE), storage.url(RUN_FILE))
    present = {entry.name for entry in storage.list("shards/")}
    done = [(name, count) for name, count in state.parts if name in present]
    with ThreadPoolExecutor(8) as pool:
        markers = list(pool.map(lambda entry: read_marker(storage, entry[0]), done))
    pointer = read_latest(storage)
    return {
        "name": state.name,
        "run": state.run,
        "parts": len(state.parts),
        "parts_done": len(done),
        "records": state.records,
        "records_done": sum(count for _, count in done),
        "kept": sum(marker.kept for marker in markers),
        "rejected": sum(marker.rejected for marker in markers),
        "failed": sum(marker.failed for marker in markers),
        "reasons": dict(sum((Counter(marker.reasons) for marker in markers), Counter())),
        "bytes": sum(marker.tar_bytes + marker.rows_bytes for marker in markers),
        "seconds_of_work": round(sum(marker.production.get("seconds", 0.0) for marker in markers), 1),
        "latest_snapshot": pointer.snapshot if pointer else None,
        "started": state.started,
    }


def read_markers(storage: Storage, names: Sequence[ShardName]) -> list[Marker]:
    """Markers of committed shards, in the order of `names`. Raises InfraError where one is missing."""
    try:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda name: read_marker(storage, name.marker), names))
    except FileNotFoundError as error:
        raise InfraError(f"a shard that was committed is gone: {error}") from error


def publish_parts(
    storage: Storage,
    config: BaseConfig,
    markers: Sequence[Marker],
    sources: Mapping[str, int],
    excluded: Iterable[str],
    reports: Mapping[str, bytes],
) -> tuple[str, bool]:
    """Write a snapshot of these parts and move `latest` to it: its id, and whether it moved.

    `excluded` keys are left out by readers; `reports` are files of the snapshot besides its config.
    """
    _check_present(storage, markers)
    before = read_latest(storage)
    manifest = write_snapshot(
        storage,
        name=config.name,
        shards=markers,
        sources=sources,
        licences=[spec.licence for spec in config.sources],
        excluded=sorted({*read_exclusions(config), *excluded}),
        extra={"config.json": _resolved(config), **reports},
    )
    published = publish(storage, manifest)
    assert published or before is not None
    note("snapshot", snapshot=manifest.id, published=published)
    return manifest.id, published


def _check_present(storage: Storage, markers: Sequence[Marker]) -> None:
    """Before publishing: every shard is there at the size it was committed with."""
    sizes = {entry.name: entry.size for entry in storage.list("shards/")}
    for marker in markers:
        for name, size in ((marker.tar_name, marker.tar_bytes), (marker.rows_name, marker.rows_bytes)):
            if name and sizes.get(name) != size:
                raise InfraError(f"{storage.url(name)} has {sizes.get(name)} bytes, {size} were committed")


def read_exclusions(config: BaseConfig) -> list[str]:
    """Keys that the config's exclusion files list, one a line; `#` starts a comment."""
    keys: set[str] = set()
    for name in config.exclusions:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
        keys.update(key for line in lines if (key := line.partition("#")[0].strip()))
    return sorted(keys)


def _resolved(config: BaseModel) -> bytes:
    """The config with its defaults filled in, without what changes no byte."""
    return json.dumps(config.model_dump(mode="json", exclude={"run", "output"}), indent=1).encode()
