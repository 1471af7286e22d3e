"""Random deaths: SIGKILL at random times to workers, actors, drivers, raylets and nodes, and the bytes stay.

    python benchmarks/chaos.py --kills 100

A run of many tiny parts goes through two nodes joined to a head: depth and segments of their bases are made on
actors of the scene stage, then the parts are rendered.
Kinds of death: `worker` and `actor`, a process that holds a call; `driver`, the run itself, which is then
started again; `raylet`, a node's Ray daemon alone; `node`, everything on a node; `own raylet`, the daemon of
a driver with an embedded Ray, which it cannot outlive. Lost nodes are replaced. When a run ends
its bytes are compared with those of an undisturbed one, and the next run begins, until all kills are spent.
After every kill a reader opens the dataset: it must find nothing, or a snapshot that is whole.

Prints how many kills of each kind were made and what they left in storage that was not there before. Ends with 1
where bytes differ, a reader saw a fault, nothing moved for a minute, or time ran out. Only processes started
here are killed.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import skimage.data

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/degradations.py is called like the package
from pairforge.snapshot import open_snapshot, verify
from pairforge.storage import open_storage
from pipelines.engine import Backend, LocalBackend
from pipelines.plan import render_settings
from pipelines.ray_backend import RayBackend, connect_ray, start_embedded_ray
from pipelines.run import run, stages_of
from pipelines.settings import RunConfig

KINDS = {False: ("worker", "actor", "driver", "raylet", "node"), True: ("worker", "actor", "driver", "own raylet")}
"""What can die, by whether the driver has a Ray of its own."""
TITLES = {"worker": "ray::_run_once", "actor": "ray::_StageActor"}
STILL_S = 60.0


def config_for(folder: Path, records: int, size_px: int) -> RunConfig:
    """Parts of two records, so that a good part of the time goes into commits; a base has four records.

    So the scene stage has new maps to make throughout the run, and others to find.
    """
    photos = folder / "photos"
    photos.mkdir()
    whole = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()]
    for index in range(max(1, records // 4)):
        y, x = 20 * (index // 3 % 10), 20 * (index // 30)
        crop = cv2.cvtColor(whole[index % 3][y : y + 200, x : x + 200], cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(photos / f"{index:03d}.png"), crop)
    chain = [{"type": name, "severity": [0.2, 0.6]} for name in ("haze", "segment_noise", "jpeg")]
    recipe = {"name": "chain", "version": 1, "category": "mixed", "variants": 4, "chain": chain}
    return RunConfig.model_validate(
        {
            "name": "chaos",
            "output": str(folder / "undisturbed"),
            "seed": 1,
            "sources": [{"kind": "files", "url": str(photos), "licence": "CC0-1.0", "group": {"by": "file"}}],
            "split": {"val": 0, "test": 0},
            "limits": {"max_bytes": 10**8, "max_pixels": 10**8, "max_side": 10**5, "min_side": 16},
            "base": {"policy": "resize_crop", "size_px": size_px, "small": "refuse"},
            "scene": {"depth": {"provider": "geometric"}, "segments": {"provider": "slic"}},
            "recipes": [recipe],
            "shards": {"records_per_shard": 2},
            "run": {
                "workers": 2,
                "engine": {"max_attempts": 20, "backoff_s": [0.05, 0.2], "parts_in_flight": 6},
                "stages": {"scene": {"cpus": 0}},
                "pools": {"scene": {"min_actors": 1, "max_actors": 2}},
            },
        }
    )


def drive(path: Path, address: str | None) -> None:
    """A driver: runs the config to its end, on the cluster or on a Ray of its own."""

    def on_ray(config: RunConfig, output: str) -> Backend:
        if address is None:
            start_embedded_ray(2)
        else:
            connect_ray(address)
        return RayBackend(stages_of(config), (render_settings(config), output), owns_ray=True)

    run(RunConfig.model_validate_json(path.read_text()), on_ray)


def hashes(output: str) -> dict[str, str]:
    """SHA-256 of every shard file, base and map; markers hold times and are left out."""
    storage = open_storage(output)
    names = [entry.name for part in ("shards/", "bases/", "scene/") for entry in storage.list(part)]
    return {n: hashlib.sha256(storage.read(n)).hexdigest() for n in names if not n.endswith(".marker.json")}


def below(pid: int) -> Iterator[int]:
    """Every process below one of ours."""
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for found in child.read_text().split():
                yield int(found)
                yield from below(int(found))


def named(pid: int, title: str) -> list[int]:
    """Processes below one of ours whose command starts with a title or whose program is called so."""
    found = []
    for candidate in below(pid):
        with suppress(OSError):
            command = Path(f"/proc/{candidate}/cmdline").read_text(errors="replace")
            if command.startswith(title) or command.partition("\0")[0].endswith(f"/{title}"):
                found.append(candidate)
    return found


def kill(pid: int) -> bool:
    """SIGKILL; False where the process has ended already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def alive(group: int) -> bool:
    """Whether any process is left of a process group of ours."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def unfinished(output: Path) -> dict[str, str]:
    """By part or temporary file, how far its commit came."""
    found: dict[str, str] = {}
    ends: dict[str, set[str]] = {}
    for path in output.rglob("*"):
        if path.name.startswith(".tmp-"):
            found[str(path)] = "a tar being written" if path.suffix == ".tar" else "an object being written"
        elif path.is_file() and "shards" in path.parts:
            stem, _, end = path.name.partition(".")
            ends.setdefault(stem, set()).add(end)
    for stem, has in ends.items():
        if "marker.json" not in has:
            found[stem] = "tar and parquet, no marker" if "parquet" in has else "tar, no parquet"
    if (output / "snapshots").exists() and not (output / "snapshots" / "latest.json").exists():
        found["snapshots"] = "a snapshot, no latest"
    return found


def whole(output: str) -> bool:
    """Whether a reader finds nothing or a whole snapshot."""
    try:
        return verify(open_snapshot(output)).problems == ()
    except FileNotFoundError:
        return True


class Field:
    """The cluster and the driver that deaths are dealt to."""

    def __init__(self, seed: int) -> None:
        from ray._private import utils
        from ray.cluster_utils import Cluster

        utils.write_ray_address = lambda *_: None  # nobody else's `address="auto"` shall find this cluster
        self.random = random.Random(seed)
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.driver: subprocess.Popen[bytes] | None = None
        self.embedded = False
        self.groups: list[int] = []
        self.hurt: int | None = None

    def start(self, path: Path, embedded: bool) -> None:
        """Start a driver beside what its predecessor left behind, which may still be writing."""
        command = [sys.executable, __file__, "--drive", str(path)] + (
            [] if embedded else ["--at", self.cluster.address]
        )
        self.embedded = embedded
        with path.with_suffix(".log").open("ab") as log:
            self.driver = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)
        self.groups = [group for group in [*self.groups, self.driver.pid] if alive(group)]

    def strike(self, kind: str) -> bool:
        """One death; False where there is no such process now."""
        assert self.driver is not None
        if kind == "driver":
            return kill(self.driver.pid)
        if kind == "own raylet":
            mine = named(self.driver.pid, "raylet")
            return bool(mine) and kill(mine[0])
        if kind in TITLES:
            root = self.driver.pid if self.embedded else os.getpid()
            limit = time.monotonic() + 1.0
            while not (found := named(root, TITLES[kind])) and time.monotonic() < limit:
                time.sleep(0.002)  # a worker bears its title only while it holds a call
            return bool(found) and kill(self.random.choice(found))
        self.hurt = self.random.randrange(len(self.nodes))
        raylet = self.nodes[self.hurt].all_processes["raylet"][0].process.pid
        for pid in [*(below(raylet) if kind == "node" else ()), raylet]:
            kill(pid)
        return True

    def mend(self) -> None:
        """Replace a node that was struck."""
        if self.hurt is not None:
            self.cluster.remove_node(self.nodes[self.hurt], allow_graceful=False)
            self.nodes[self.hurt] = self.cluster.add_node(num_cpus=1)
            self.hurt = None

    def close(self) -> None:
        for group in filter(alive, self.groups):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self.driver is not None:
            self.driver.wait()
        self.cluster.shutdown()


class Chaos:
    """Deals deaths until they are spent and compares the bytes of every run that ended."""

    def __init__(self, config: RunConfig, folder: Path, kills: int, seed: int, limit_s: float) -> None:
        self.ends = time.monotonic() + limit_s
        self.config, self.folder, self.kills = config, folder, kills
        self.expected = hashes(config.output)
        self.random = random.Random(seed)
        self.field = Field(seed)
        self.made: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.runs = self.starts = 0
        self.faults: list[str] = []

    def carry(self) -> None:
        """One run after the other until all kills are made; the last one goes to its end."""
        while self.made.total() < self.kills and not self.faults:
            self._one_run(self.folder / f"run-{self.runs}")
            self.runs += 1

    def _one_run(self, output: Path) -> None:
        path = output.with_suffix(".json")
        path.write_text(self.config.model_copy(update={"output": str(output)}).model_dump_json())
        known: dict[str, str] = {}
        code: int | None = None
        while code != 0 and not self.faults:
            self.starts += 1
            self.field.start(path, embedded=self.starts % 2 == 0)
            code = self._until_end(output, known)
            if code not in (0, -signal.SIGKILL) and not self.field.embedded:
                self.faults.append(
                    f"a driver on the cluster ended with {code}: {path.with_suffix('.log').read_text()[-3000:]}"
                )
        if not self.faults and hashes(str(output)) != self.expected:
            self.faults.append(f"the bytes of {output.name} differ")
        if not self.faults and not (output / "snapshots" / "latest.json").exists():
            self.faults.append(f"{output.name} has no snapshot")

    def _until_end(self, output: Path, known: dict[str, str]) -> int | None:
        """Kill at random times until this driver ends, however it ends; its exit code."""
        driver = self.field.driver
        assert driver is not None
        moved, markers = time.monotonic(), -1
        due = float("inf") if self.random.random() < 0.8 else self._next()  # some die before their first part
        while driver.poll() is None:
            time.sleep(0.02)
            now = len(list(output.glob("shards/*/*/*.marker.json")))
            if now != markers:
                if markers >= 0 and due == float("inf"):
                    due = self._next()
                moved, markers = time.monotonic(), now
            if time.monotonic() > self.ends:
                self.faults.append(f"out of time at {self.made.total()} kills")
                kill(driver.pid)
            elif time.monotonic() - moved > STILL_S:
                self.faults.append(f"nothing moved for {STILL_S:g} s at {now} parts")
                kill(driver.pid)
            if time.monotonic() > due and self.made.total() < self.kills:
                self._strike(output, known)
                due = self._next()
        return driver.wait()

    def _next(self) -> float:
        return time.monotonic() + self.random.uniform(0.02, 1.0)

    def _strike(self, output: Path, known: dict[str, str]) -> None:
        kind = self.random.choice(KINDS[self.field.embedded])
        if not self.field.strike(kind):
            return
        found = unfinished(output)
        self.field.mend()
        new = {place: phase for place, phase in found.items() if known.get(place) != phase}
        known.clear()
        known.update(found)
        self.made[kind] += 1
        self.left.update(set(new.values()) or {"idle or rendering: nothing new"})
        if not whole(str(output)):
            self.faults.append(f"a reader saw a fault after the death of a {kind}")
        print(f"{self.made.total():4d} {kind:<12} {', '.join(sorted(set(new.values()))) or '-'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--records", type=int, default=1200)
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=3000.0, help="end with a fault after this many seconds")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive is not None:
        drive(arguments.drive, arguments.at)
        return 0
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.urandom(32).hex())
    with tempfile.TemporaryDirectory(prefix="pairforge-chaos-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config = config_for(folder, arguments.records, arguments.size)
        started = time.monotonic()
        report = run(config, lambda c, output: LocalBackend(stages_of(c), (render_settings(c), output)))
        print(f"undisturbed: {report.parts_made} parts in {time.monotonic() - started:.1f} s, one process", flush=True)
        chaos = Chaos(config, folder, arguments.kills, arguments.seed, arguments.limit_s)
        try:
            chaos.carry()
        finally:
            chaos.field.close()
        seconds = time.monotonic() - started
    print(f"{chaos.made.total()} kills in {seconds:.0f} s, {chaos.starts} drivers started, {chaos.runs} runs ended")
    for title, counts in (("killed", chaos.made), ("left in storage by a kill, new since the last", chaos.left)):
        print(title)
        for what, count in counts.most_common():
            print(f"  {what:<34} {count:4d} {'#' * count}")
    print("faults: " + ("; ".join(chaos.faults) or "none: bytes equal, every snapshot whole"))
    return 1 if chaos.faults else 0


if __name__ == "__main__":
    sys.exit(main())
