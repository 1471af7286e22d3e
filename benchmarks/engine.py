"""The engine against plain Python: the same parts through the production stage, three ways in one run.

    python benchmarks/engine.py --records 1200

Ways: one process in a loop; two plain processes (multiprocessing.Pool); the engine on an embedded Ray with
two workers. Prints seconds, records/s, the engine's share of the two processes' speed after start-up,
start-up seconds, and the driver's memory before, in the middle and at the end. Every way writes to its own
folder; the bytes must be equal.
"""

import argparse
import hashlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import skimage.data

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/degradations.py is called like the package
from pairforge.shards import Marker
from pairforge.storage import open_storage
from pipelines.catalog import Catalog
from pipelines.engine import Engine, EngineSettings
from pipelines.plan import Part, RenderSettings, plan_parts, render_settings
from pipelines.ray_backend import RayBackend, start_embedded_ray
from pipelines.run import RENDER
from pipelines.settings import RunConfig
from pipelines.synthesis import make_part

WORKERS = 2


def write_photos(folder: Path, count: int) -> None:
    """`count` different crops of real photos."""
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()]
    for index in range(count):
        photo = photos[index % 3]
        y, x = 3 * (index // 3) % (photo.shape[0] - 257), 7 * (index // 3) % (photo.shape[1] - 257)
        crop = cv2.cvtColor(photo[y : y + 256, x : x + 256], cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"{index:05d}.png"), crop)


def config_for(photos: Path, records: int) -> RunConfig:
    """Bases of 256 px, chains of 20 to 50 ms, 32 records a part."""
    chain = [
        {"type": "motion_blur", "severity": [0.3, 0.8]},
        {"type": "sensor_noise", "severity": [0.2, 0.6]},
        {"type": "jpeg", "severity": [0.2, 0.6]},
    ]
    recipe = {"name": "chain", "version": 1, "category": "mixed", "variants": 4, "chain": chain}
    return RunConfig.model_validate(
        {
            "name": "bench",
            "output": "unused",
            "seed": 1,
            "sources": [{"kind": "files", "url": str(photos), "licence": "CC0-1.0", "group": {"by": "file"}}],
            "split": {"val": 0, "test": 0},
            "limits": {"max_bytes": 10**8, "max_pixels": 10**8, "max_side": 10**5, "min_side": 16},
            "base": {"policy": "resize_crop", "size_px": 256, "small": "refuse"},
            "recipes": [recipe],
            "shards": {"records_per_shard": 32},
        }
    )


class MakePart:
    """`make_part` with its settings, picklable for a pool."""

    def __init__(self, settings: RenderSettings, output: str) -> None:
        self.settings, self.output = settings, output

    def __call__(self, part: Part) -> Marker:
        return make_part(part, self.settings, self.output)


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def digest(output: str) -> str:
    """One hash over all shard bytes below an output."""
    storage, total = open_storage(output), hashlib.sha256()
    for entry in storage.list("shards/"):
        if not entry.name.endswith(".marker.json"):
            total.update(entry.name.encode() + hashlib.sha256(storage.read(entry.name)).digest())
    return total.hexdigest()


def timed(name: str, records: int, work: Callable[[], None]) -> float:
    """Run one way, print its speed, return its seconds."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"{name:<28} {seconds:7.1f} s {records / seconds:7.1f} records/s", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1200)
    arguments = parser.parse_args()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own spelling
    with tempfile.TemporaryDirectory(prefix="pairforge-bench-") as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        write_photos(photos, arguments.records // 4)
        config = config_for(photos, arguments.records)
        catalog = Catalog(open_storage(str(Path(folder, "catalog"))))
        catalog.scan(config)
        parts = list(plan_parts(config, catalog))
        records = sum(len(part.records) for part in parts)
        settings = render_settings(config)
        outputs = {name: str(Path(folder, name)) for name in ("warm", "one", "two", "engine")}
        MakePart(settings, outputs["warm"])(parts[0])
        print(f"{records} records in {len(parts)} parts")

        def one_process() -> None:
            for part in parts:
                MakePart(settings, outputs["one"])(part)

        one = timed("one process", records, one_process)
        print(f"  {1000 * one / records:.0f} ms a record")

        def two_processes() -> None:
            for _ in pool.imap_unordered(MakePart(settings, outputs["two"]), parts):
                pass

        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            pool.map(os.path.exists, ["/"] * WORKERS)
            pool.map(MakePart(settings, outputs["warm"]), parts[:WORKERS])
            two = timed("two processes", records, two_processes)

        started = time.perf_counter()
        start_embedded_ray(WORKERS)
        backend = RayBackend((RENDER,), (settings, outputs["warm"]), owns_ray=True)
        for _ in Engine[Part](backend, EngineSettings()).run(iter(parts[:WORKERS])):
            pass
        startup = time.perf_counter() - started
        memory = [resident_mb()]

        def engine() -> None:
            running = RayBackend((RENDER,), (settings, outputs["engine"]))
            for number, _ in enumerate(Engine[Part](running, EngineSettings()).run(iter(parts))):
                if number == len(parts) // 2:
                    memory.append(resident_mb())

        on_engine = timed("engine, two Ray workers", records, engine)
        memory.append(resident_mb())
        backend.close()
        print(f"engine start-up and first parts: {startup:.1f} s")
        print(f"engine / two processes: {two / on_engine:.3f} of the speed")
        print("driver memory: " + ", ".join(f"{value:.0f} MB" for value in memory))
        same = len({digest(outputs[name]) for name in ("one", "two", "engine")}) == 1
        print(f"bytes equal: {same}")
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
