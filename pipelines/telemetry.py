"""Watching a run: JSON log lines that carry its ids, and Ray metrics where this process is connected to Ray.

The ids (run, part, attempt, stage) are bound around a piece of work and travel to workers with each call.
What workers note goes to the files where Ray keeps their stderr; with `--local` it joins the run's own log.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from typing import Any

from pairforge.shards import Marker

log = logging.getLogger("pairforge")
log.addHandler(logging.NullHandler())  # without --log nothing is printed
_ids: ContextVar[Mapping[str, Any]] = ContextVar("pairforge_ids", default={})  # noqa: B039 - never mutated
_STAGE_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, event, the bound ids, the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **getattr(record, "fields", {})}, default=str)


def note(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with the ids that are bound here; `fields` win over them."""
    if log.isEnabledFor(level):
        log.log(level, event, extra={"fields": {**_ids.get(), **fields}})


def bound_ids() -> Mapping[str, Any]:
    """The ids that are bound in this thread."""
    return _ids.get()


@contextmanager
def bound(ids: Mapping[str, Any]) -> Iterator[None]:
    """Add ids to every event that is noted inside, in this thread."""
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


@contextmanager
def run_log(target: str | None, run_id: str) -> Iterator[None]:
    """Bind the id of a run, and append its events to the file `target` (`-`: stderr) as JSON lines.

    Raises ValueError for a URL and OSError where the file cannot be written.
    """
    if target is not None and "://" in target:
        raise ValueError(f"--log {target!r}: allowed are a file of this machine and -")
    handler: logging.Handler = logging.NullHandler()
    if target is not None:
        handler = logging.StreamHandler(sys.stderr) if target == "-" else logging.FileHandler(target, encoding="utf-8")
        handler.setFormatter(JsonLines())
    before = log.level, log.propagate
    log.addHandler(handler)
    if target is not None:
        log.setLevel(logging.INFO)
        log.propagate = False
    started = time.monotonic()
    try:
        with bound({"run": run_id}):
            try:
                yield
            except BaseException as error:
                seconds = round(time.monotonic() - started, 3)
                fault = {"fault": f"{type(error).__name__}: {error}"}
                note("run ended", logging.ERROR, outcome="stopped", seconds=seconds, **fault)
                raise
            note("run ended", outcome="done", seconds=round(time.monotonic() - started, 3))
    finally:
        log.removeHandler(handler)
        handler.close()
        log.propagate = before[1]
        log.setLevel(before[0])


def new_run_id(fingerprint: str) -> str:
    """When a run began, of which config, in which process: `20260102T030405Z-1a2b3c4d-567`."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{fingerprint[:8]}-{os.getpid()}"


@cache
def log_in_worker() -> None:
    """Let this worker process note its events on stderr, which Ray keeps in a file a worker."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def stage_took(stage: str, seconds: float) -> None:
    """Worker side: one call of a stage was computed."""
    if metric := _metric("Histogram", "stage_seconds", "Seconds of computation a call", ("stage",)):
        metric.observe(seconds, tags={"stage": stage})


def call_failed(stage: str) -> None:
    """Driver side: a call met a fault that costs its part an attempt."""
    if metric := _metric("Counter", "faults", "Calls that cost a part an attempt", ("stage",)):
        metric.inc(1, tags={"stage": stage})


def part_made(marker: Marker) -> None:
    """Driver side: a part was committed."""
    records = _metric("Counter", "records", "Records by fate", ("category", "fate"))
    refused = _metric("Counter", "records_refused", "Records that were not kept, by reason", ("category", "reason"))
    written = _metric("Counter", "bytes_written", "Bytes of committed shards", ("category",))
    if not (records and refused and written):
        return
    for fate in ("kept", "rejected", "failed"):
        if count := getattr(marker, fate):
            records.inc(count, tags={"category": marker.category, "fate": fate})
    for reason, count in marker.reasons.items():
        refused.inc(count, tags={"category": marker.category, "reason": reason})
    if size := marker.tar_bytes + marker.rows_bytes:
        written.inc(size, tags={"category": marker.category})


def stage_load(stage: str, waiting: int, running: int) -> None:
    """Driver side: how many calls of a stage wait and run."""
    if metric := _metric("Gauge", "stage_calls", "Calls of a stage by state", ("stage", "state")):
        metric.set(waiting, tags={"stage": stage, "state": "waiting"})
        metric.set(running, tags={"stage": stage, "state": "running"})


def _metric(kind: str, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
    """A metric of the Ray this process is connected to, None where it is connected to none."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    return _made(ray.get_runtime_context().get_job_id(), _node(), kind, name, description, tag_keys)


def _node() -> str:
    return str(sys.modules["ray"].get_runtime_context().get_node_id())


@cache
def _made(job: str, node: str, kind: str, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
    """`job` and `node` stand for the connection: metrics of one that ended report nowhere."""
    from ray.util import metrics

    more = {"boundaries": _STAGE_SECONDS} if kind == "Histogram" else {}
    return getattr(metrics, kind)(f"pairforge_{name}", description=description, tag_keys=tag_keys, **more)
