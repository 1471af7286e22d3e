"""Where a ground-truth run computes: this process, an embedded Ray, or a cluster; started when first needed."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pairforge.limits import Limits
from pipelines.engine import Backend, LocalBackend
from pipelines.ground_truth.services import Shared, share_locally, share_on_ray
from pipelines.ray_backend import RayBackend, connect_ray, start_embedded_ray
from pipelines.stages import Stage


class Place:
    """One Ray, or none, for all phases of a run; gates and budget are shared by all of them."""

    def __init__(self, local: bool, address: str | None, workers: int | None) -> None:
        self._local, self._address, self._workers = local, address, workers
        self._started = False
        self._shared: Shared | None = None

    def share(self, limits: Mapping[str, Limits], cap_usd: float | None, spent_usd: float) -> Shared:
        """The gates and the budget of this run, made by the first call."""
        if self._shared is None:
            share = share_locally if self._start() else share_on_ray
            self._shared = share(limits, cap_usd, spent_usd)
        return self._shared

    def backend(self, stages: tuple[Stage, ...], context: Any) -> Backend:
        return LocalBackend(stages, context) if self._start() else RayBackend(stages, context)

    def close(self) -> None:
        if self._started:
            import ray

            ray.shutdown()

    def _start(self) -> bool:
        """Whether this process does it all; else Ray runs afterwards."""
        if not self._local and not self._started:
            if self._address:
                connect_ray(self._address)
            else:
                start_embedded_ray(self._workers or os.cpu_count() or 1)
            self._started = True
        return self._local


@contextmanager
def placed(local: bool, address: str | None, workers: int | None) -> Iterator[Place]:
    """A place that is given back at the end of the block."""
    place = Place(local, address, workers)
    try:
        yield place
    finally:
        place.close()
