"""A stage whose part 1 takes memory until it is ended, on a Ray of its own that watches memory closely.

Ray ends workers when the memory of the node is used up; the limit is set a little above what is used now.
Prints one line of JSON for every part.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.engine import Engine, EngineSettings
from pipelines.ray_backend import RayBackend, start_embedded_ray
from pipelines.stages import Pool, Stage

_ROOM_MB = 1500
_AT_MOST_MB = 6000


def make_hungry(settings: Any) -> Callable[[int], int]:
    """Part 1 fills 100 MB at a time."""

    def work(value: int) -> int:
        held = []
        for _ in range(_AT_MOST_MB // 100 if value == 1 else 0):
            held.append(bytearray(b"x") * (100 * 2**20))
            time.sleep(0.02)
        return value

    return work


def memory_mb() -> tuple[float, float]:
    """Used and total memory of this machine."""
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(told[name].split()[0]) / 1024 for name in ("MemTotal", "MemAvailable"))
    return total - available, total


def main() -> None:
    """Parts 0 to 2 on an actor."""
    used, total = memory_mb()
    os.environ["RAY_memory_monitor_refresh_ms"] = "100"  # noqa: SIM112 - Ray's own spelling
    os.environ["RAY_memory_usage_threshold"] = f"{(used + _ROOM_MB) / total:.4f}"  # noqa: SIM112
    start_embedded_ray(1)
    backend = RayBackend((Stage("hungry", 1, make_hungry, pool=Pool(prefetch=0)),), None, owns_ray=True)
    engine = Engine[int](backend, EngineSettings(backoff_s=(0.01, 0.02), max_attempts=2))
    for outcome in engine.run(iter(range(3))):
        print(json.dumps([outcome.work, outcome.result, outcome.attempts, str(outcome.fault or "")]), flush=True)
    backend.close()


if __name__ == "__main__":
    main()
