"""Stages on Ray core: tasks where a stage holds no state, pools of actors where it does.

Ray's own retries are off: the engine decides, so that attempts are counted. Descriptors travel as
object references and are not fetched by the driver until the last stage.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pairforge.records import InfraError
from pipelines.engine import STOPS, Done, StageLoad
from pipelines.stages import Resources, Stage, StageBugError, StageCaller
from pipelines.telemetry import log_in_worker

_GROW_AFTER_S = 1.0
_SHRINK_AFTER_S = 60.0
_SLOTS_FOR_S = 5.0


def start_embedded_ray(workers: int, gpus: int = 0) -> None:
    """A single-node Ray that ends with this process; no other Ray on the host is touched or joined.

    Ray listens on every interface of the host, so it gets a token that this process and its workers
    alone know; with one in the environment Ray writes none into the home folder.
    """
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.pop("RAY_AUTH_MODE", None)  # unset means: token for a new local cluster
    os.environ.setdefault("RAY_AUTH_TOKEN", os.urandom(32).hex())
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address="local",
        num_cpus=workers,
        num_gpus=gpus,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def connect_ray(address: str) -> None:
    """Join a running Ray cluster. Raises InfraError when none answers at `address`."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        if _is_about_the_token(error):
            raise InfraError(
                f"the Ray cluster at {address!r} refused the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH "
                "to the file with the cluster's token (docs/cluster.md)"
            ) from error
        raise InfraError(f"no Ray cluster answers at {address!r}: {_first_line(error)}") from error


def _is_about_the_token(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__name__ == "AuthenticationError" or "AuthenticationError" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _run_once(stage: Stage, settings: Any, work: Any, ids: Mapping[str, Any]) -> Any:
    log_in_worker()
    return StageCaller(stage, settings)(work, ids)


class _StageActor:
    """Holds one made stage; `ready` returns once it is loaded."""

    def __init__(self, stage: Stage, settings: Any) -> None:
        log_in_worker()
        self._call = StageCaller(stage, settings)

    def ready(self) -> int:
        return os.getpid()

    def run(self, work: Any, ids: Mapping[str, Any]) -> Any:
        return self._call(work, ids)


def _options(resources: Resources) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_mb is not None:
        options["memory"] = resources.memory_mb * 2**20
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    return options


class _Tasks:
    """A stateless stage: every call is a task, Ray queues what does not fit."""

    def __init__(self, ray: Any, stage: Stage, settings: Any) -> None:
        self._ray = ray
        self._stage, self._settings = ray.put(stage), settings
        self._run = ray.remote(_run_once).options(max_retries=0, **_options(stage.resources))
        self.stage = stage
        self.running: dict[Any, int] = {}
        self.finished = 0

    def submit(self, ticket: int, work: Any, ids: Mapping[str, Any]) -> None:
        self.running[self._run.remote(self._stage, self._settings, work, ids)] = ticket

    def collect(self, reference: Any) -> int:
        self.finished += 1
        return self.running.pop(reference)

    def abandon(self, ticket: int) -> None:
        for reference in [r for r, t in self.running.items() if t == ticket]:
            self._ray.cancel(reference, force=True)
            del self.running[reference]

    def tend(self) -> None:
        """Nothing to look after."""

    def load(self) -> StageLoad:
        return StageLoad(self.stage.name, 0, len(self.running), self.finished, 0)

    def close(self) -> None:
        for reference in self.running:
            self._ray.cancel(reference, force=True)
        self.running.clear()


@dataclass
class _Actor:
    handle: Any
    loading: Any
    calls: set[int] = field(default_factory=set)
    alone: bool = False
    idle_since: float = field(default_factory=time.monotonic)


class _Actors:
    """A stage with state: a pool of actors that grows while calls wait and shrinks when it idles.

    A call that was tried before gets an actor for itself: should it end the actor again, no other call is lost.
    """

    def __init__(self, ray: Any, stage: Stage, settings: Any) -> None:
        assert stage.pool is not None
        self._ray, self._settings = ray, settings
        self._stage = ray.put(stage)
        self._pool = stage.pool
        threads = 1 + self._pool.prefetch
        self._make = ray.remote(_StageActor).options(
            max_restarts=0, max_task_retries=0, max_concurrency=threads, **_options(stage.resources)
        )
        self.stage = stage
        self.running: dict[Any, int] = {}
        self.finished = 0
        self._queue: deque[tuple[int, Any, Mapping[str, Any]]] = deque()
        self._actors: list[_Actor] = []
        self._waiting_since = time.monotonic()
        for _ in range(self._pool.min_actors):
            self._add()

    def submit(self, ticket: int, work: Any, ids: Mapping[str, Any]) -> None:
        if not self._queue:
            self._waiting_since = time.monotonic()
        self._queue.append((ticket, work, ids))
        self._dispatch()

    def collect(self, reference: Any) -> int:
        self.finished += 1
        ticket = self.running.pop(reference)
        for actor in self._actors:
            actor.calls.discard(ticket)
            actor.alone = actor.alone and bool(actor.calls)
            actor.idle_since = time.monotonic() if not actor.calls else actor.idle_since
        self._dispatch()
        return ticket

    def drop_actor_of(self, ticket: int) -> None:
        """The actor that ran a ticket is dead: take it out of the pool."""
        for actor in [actor for actor in self._actors if ticket in actor.calls]:
            self._remove(actor)

    def abandon(self, ticket: int) -> None:
        self._queue = deque(call for call in self._queue if call[0] != ticket)
        for reference in [r for r, t in self.running.items() if t == ticket]:
            del self.running[reference]
        self.drop_actor_of(ticket)

    def tend(self) -> None:
        """Replace dead actors, grow while calls wait, let idle ones go; raises what loading an actor raised."""
        self._check_loading()
        now = time.monotonic()
        starting = any(actor.loading is not None for actor in self._actors)
        backlog = bool(self._queue) and now - self._waiting_since > _GROW_AFTER_S
        short = len(self._actors) < max(self._pool.min_actors, 1 if self._queue else 0)
        if short or (backlog and not starting and len(self._actors) < self._pool.max_actors):
            self._add()
            self._waiting_since = now
        for actor in list(self._actors):
            idle = not actor.calls and not self._queue and now - actor.idle_since > _SHRINK_AFTER_S
            if idle and len(self._actors) > self._pool.min_actors:
                self._remove(actor)
        self._dispatch()

    def load(self) -> StageLoad:
        return StageLoad(self.stage.name, len(self._queue), len(self.running), self.finished, len(self._actors))

    def close(self) -> None:
        for actor in list(self._actors):
            self._remove(actor)
        self._queue.clear()
        self.running.clear()

    def _add(self) -> None:
        handle = self._make.remote(self._stage, self._settings)
        self._actors.append(_Actor(handle, handle.ready.remote()))

    def _remove(self, actor: _Actor) -> None:
        self._actors.remove(actor)
        self._ray.kill(actor.handle)

    def _check_loading(self) -> None:
        from ray.exceptions import RayActorError, RayTaskError

        for actor in [actor for actor in self._actors if actor.loading is not None]:
            ready, _ = self._ray.wait([actor.loading], timeout=0)
            if not ready:
                continue
            try:
                self._ray.get(actor.loading)
                actor.loading = None
            except RayTaskError as error:
                raise StageBugError(f"stage {self.stage.name} cannot be loaded: {error}") from error
            except RayActorError as error:
                cause = getattr(error, "cause", None) or error
                if "The actor died because of an error raised in its creation task" in str(error):
                    raise StageBugError(f"stage {self.stage.name} cannot be loaded: {cause}") from error
                self._actors.remove(actor)

    def _dispatch(self) -> None:
        room = 1 + self._pool.prefetch
        while self._queue:
            tried_before = self._queue[0][2].get("attempt", 1) > 1
            most = 0 if tried_before else room - 1
            free = [a for a in self._actors if a.loading is None and not a.alone and len(a.calls) <= most]
            if not free:
                return
            actor = min(free, key=lambda actor: len(actor.calls))
            ticket, work, ids = self._queue.popleft()
            actor.calls.add(ticket)
            actor.alone = tried_before
            self.running[actor.handle.run.remote(work, ids)] = ticket


class RayBackend:
    """Runs stages on the Ray this process is connected to; `owns_ray` ends it on close."""

    def __init__(self, stages: tuple[Stage, ...], settings: Any, owns_ray: bool = False) -> None:
        import ray

        self.stages = stages
        self._ray = ray
        self._owns_ray = owns_ray
        shared = ray.put(settings)
        self._slots, self._slots_until = 1, 0.0
        self._runners = [(_Actors if stage.pool else _Tasks)(ray, stage, shared) for stage in stages]

    def slots(self) -> int:
        if time.monotonic() > self._slots_until:
            self._slots = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
            self._slots_until = time.monotonic() + _SLOTS_FOR_S
        return self._slots

    def submit(self, ticket: int, stage_index: int, work: Any, ids: Mapping[str, Any]) -> None:
        self._runners[stage_index].submit(ticket, work, ids)

    def wait(self, timeout_s: float) -> list[Done]:
        owners = {reference: runner for runner in self._runners for reference in runner.running}
        for runner in self._runners:
            runner.tend()
        if not owners:
            time.sleep(min(timeout_s, 0.05))
            return []
        # A pool that loads or is full needs tending sooner than the caller's time limit.
        pending = any(load.waiting for load in self.loads())
        ready, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(
                list(owners), num_returns=1, timeout=min(timeout_s, 0.1) if pending else timeout_s
            )
        return [self._collect(owners[reference], reference) for reference in ready]

    def _collect(self, runner: "_Tasks | _Actors", reference: Any) -> Done:
        from ray import exceptions as ray_errors

        ticket = runner.running[reference]
        last = runner is self._runners[-1]
        try:
            # Whether a call failed is told only by its value, so the small descriptor is fetched.
            value = self._ray.get(reference)
            runner.collect(reference)
            return Done(ticket, value if last else reference, None)
        except ray_errors.RayTaskError as error:
            runner.collect(reference)
            if isinstance(error.cause, InfraError):
                return Done(ticket, None, error.cause)
            if isinstance(error.cause, STOPS):
                raise error.cause from None
            if isinstance(error.cause, (ray_errors.ObjectLostError, ray_errors.ObjectFetchTimedOutError)):
                # The node that held the descriptor died before this stage read it.
                return Done(ticket, None, InfraError(f"a descriptor was lost: {type(error.cause).__name__}"))
            raise StageBugError(f"in stage {runner.stage.name}: {error}") from error
        except ray_errors.OutOfMemoryError as error:
            fault = InfraError(f"a worker ran out of memory and was ended: {_first_line(error)}")
        except ray_errors.RayActorError as error:
            fault = InfraError(f"an actor died: {_first_line(error)}")
        except (
            ray_errors.WorkerCrashedError,
            ray_errors.NodeDiedError,
            ray_errors.ObjectLostError,
            ray_errors.ObjectFetchTimedOutError,
            ray_errors.OutOfDiskError,
            ray_errors.TaskCancelledError,
        ) as error:
            fault = InfraError(f"a worker or node was lost ({type(error).__name__}): {_first_line(error)}")
        if isinstance(runner, _Actors):
            runner.drop_actor_of(ticket)
        runner.collect(reference)
        return Done(ticket, None, fault)

    def abandon(self, ticket: int) -> None:
        for runner in self._runners:
            runner.abandon(ticket)

    def loads(self) -> list[StageLoad]:
        return [runner.load() for runner in self._runners]

    def close(self) -> None:
        for runner in self._runners:
            runner.close()
        if self._owns_ray:
            self._ray.shutdown()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
