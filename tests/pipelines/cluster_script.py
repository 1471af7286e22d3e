"""Runs two chains on a cluster of four nodes in this process while parts of it are killed; see test_cluster.py.

    python -m tests.pipelines.cluster_script CONFIG.json s3://bucket/root

Prints one JSON document: by chain what was killed, the faults that the engine met and where models were loaded.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pairforge.records import InfraError
from pairforge.shards import Marker
from pairforge.storage import open_storage
from pipelines.attempts import AttemptLedger
from pipelines.carry import Watchers
from pipelines.engine import Backend
from pipelines.plan import Part, render_settings
from pipelines.ray_backend import RayBackend, connect_ray
from pipelines.run import RENDER, run
from pipelines.settings import RunConfig
from pipelines.stages import Pool, Resources, Stage

TASK, ACTOR = "ray::_run_once", "ray::_StageActor"
"""How Ray titles a process while it runs a call."""
CPU_NODE = {"role": "render"}
GPU_NODE = {"role": "model"}
GPU = {"num_cpus": 1, "num_gpus": 1, "labels": GPU_NODE}
CPU = {"num_cpus": 1, "labels": CPU_NODE}


class PretendModel:
    """Loads once, noting in storage where; then passes parts on, taking its time."""

    def __init__(self, output: str) -> None:
        import ray

        context = ray.get_runtime_context()
        note = {"node": context.get_node_id(), "gpus": context.get_accelerator_ids()["GPU"]}
        open_storage(output).write(f"notes/{context.get_actor_id()}.json", json.dumps(note).encode())

    def prepare(self, part: Part) -> Part:
        return part

    def compute(self, part: Part) -> Part:
        time.sleep(0.1)
        return part


def make_model(context: Any) -> PretendModel:
    return PretendModel(context[1])


RENDER_THERE = replace(RENDER, resources=Resources(labels=CPU_NODE))
MODEL = Stage("model", 1, make_model, Resources(cpus=0, gpus=1, labels=GPU_NODE), Pool(prefetch=2))


def below(pid: int) -> Iterator[int]:
    """Every process below one that this script started."""
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for found in child.read_text().split():
            yield int(found)
            yield from below(int(found))


def kill_worker(title: str) -> str:
    """SIGKILL to one process of this cluster that runs `title` now."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        for pid in below(os.getpid()):
            try:
                name = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if name.startswith(title):
                os.kill(pid, signal.SIGKILL)
                return f"killed {title}"
        time.sleep(0.005)
    raise AssertionError(f"no process runs {title}")


def carry(
    config: RunConfig, stages: tuple[Stage, ...], victims: dict[int, str], nodes: dict[int, Callable[[], str]]
) -> dict[str, Any]:
    """One run of `stages`; after the n-th part a process that runs `victims[n]` dies, or `nodes[n]` happens."""
    faults: list[str] = []
    killed: list[str] = []
    made: list[Marker] = []
    killers: list[Future[str]] = []
    note = AttemptLedger.note

    def noting(ledger: AttemptLedger, part: Part, attempt: int, fault: InfraError) -> None:
        faults.append(str(fault))
        note(ledger, part, attempt, fault)

    def on_part(marker: Marker) -> None:
        made.append(marker)
        if len(made) in victims:  # beside the engine, which must go on to give it something to run
            killers.append(pool.submit(kill_worker, victims[len(made)]))
        if len(made) in nodes:
            killed.append(nodes[len(made)]())

    def on_cluster(config: RunConfig, output: str) -> Backend:
        return RayBackend(stages, (render_settings(config), output))

    AttemptLedger.note = noting  # type: ignore[method-assign,assignment]
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        try:
            report = run(config, on_cluster, Watchers(on_part=on_part))
        finally:
            AttemptLedger.note = note  # type: ignore[method-assign]
    killed += [killer.result() for killer in killers]
    storage = open_storage(config.output)
    notes = [json.loads(storage.read(entry.name)) for entry in storage.list("notes/")]
    return {
        "killed": killed,
        "faults": faults,
        "parts": report.parts_made,
        "loads": notes,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
    root = sys.argv[2]
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = os.urandom(32).hex()
    import ray
    from ray._private import utils
    from ray.cluster_utils import Cluster

    utils.write_ray_address = lambda *_: None  # nobody else's `address="auto"` shall find this cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(**CPU), cluster.add_node(**CPU), cluster.add_node(**GPU)]
    connect_ray(cluster.address)

    def lose_node(index: int, kind: dict[str, Any] | None) -> str:
        cluster.remove_node(nodes[index], allow_graceful=False)
        if kind is not None:
            nodes[index] = cluster.add_node(**kind)
        return "removed a node" + (" and added one" if kind else "")

    def at(name: str) -> RunConfig:
        return config.model_copy(update={"output": f"{root}/{name}"})

    told = {
        "cpu": carry(at("cpu"), (RENDER_THERE,), {4: TASK, 10: TASK}, {18: lambda: lose_node(1, None)}),
        "gpu": carry(
            at("gpu"),
            (MODEL, RENDER_THERE),
            {2: TASK, 4: ACTOR},
            {16: lambda: lose_node(2, GPU), 24: lambda: lose_node(0, CPU)},
        ),
    }
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
