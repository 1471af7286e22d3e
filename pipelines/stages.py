"""Stages: what a unit of work is, what it needs, and how a worker runs one call of it."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import Field

from pairforge.image import prepare_worker
from pairforge.records import Frozen
from pipelines.telemetry import bound, note, stage_took


class StageBugError(Exception):
    """A stage raised what is neither a refused record nor an infrastructure fault; the run stops."""


class Resources(Frozen):
    """What one running call of a stage occupies, and which nodes may run it (Ray node labels)."""

    cpus: float = Field(1.0, ge=0, description="cores")
    gpus: float = Field(0.0, ge=0, description="GPUs, or a share of one")
    memory_mb: int | None = Field(None, ge=1, description="memory; not limited where absent")
    labels: dict[str, str] = Field(default_factory=dict, description="labels that a node must have")


class Pool(Frozen):
    """Actors of a stage that holds state: loaded once, `min_actors` to `max_actors` of them.

    `prefetch` calls are prepared by an actor (its stage's `prepare`) while it computes another.
    """

    min_actors: int = Field(1, ge=0, description="actors that always run")
    max_actors: int = Field(1, ge=1, description="actors at most")
    prefetch: int = Field(1, ge=0, le=16, description="calls that an actor prepares ahead")


class Prepared(Protocol):
    """A stage function that can do its decoding ahead of its turn on a scarce device."""

    def prepare(self, work: Any) -> Any:
        """Everything that needs no turn: runs beside the computation of other calls."""

    def compute(self, prepared: Any) -> Any:
        """The rest: one call at a time."""


@dataclass(frozen=True)
class Stage:
    """A named, versioned unit of work.

    `make` is a module-level function from the run's settings to the stage's function, or to an object
    with `prepare` and `compute`. What goes in and comes out are small descriptors. Every stage must be
    safe to repeat. A stage with a `pool` runs on actors that call `make` once; one without runs as tasks.
    """

    name: str
    version: int
    make: Callable[[Any], Any]
    resources: Resources = field(default_factory=Resources)
    pool: Pool | None = None


class StageCaller:
    """One made stage: calls it, one computation at a time, and measures how long it took."""

    def __init__(self, stage: Stage, settings: Any) -> None:
        prepare_worker()
        made = stage.make(settings)
        self._stage = stage
        self._prepare: Callable[[Any], Any] | None = getattr(made, "prepare", None)
        self._compute: Callable[[Any], Any] = made.compute if self._prepare else made
        self._turn = threading.Lock()

    def __call__(self, work: Any, ids: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """`ids` (run, part, attempt) are bound to what is noted meanwhile."""
        with bound({**ids, "stage": self._stage.name}):
            prepared = self._prepare(work) if self._prepare else work
            with self._turn:
                started = time.monotonic()
                result = self._compute(prepared)
                seconds = time.monotonic() - started
            stage_took(self._stage.name, seconds)
            note("stage done", seconds=round(seconds, 4))
        return result
