"""A run of a million records without pixels: planned, scheduled, committed and snapshotted for real.

    python benchmarks/scale.py --rows 620_000

The catalog is synthetic (benchmarks/planning.py) and the stage writes stub images of 1 x 1 pixel, so what is
measured is everything else: planning, the engine on an embedded Ray, tars, parquet, markers, the snapshot.
Prints seconds, parts/s, and the memory of the driver as the run goes on.
"""

import argparse
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/degradations.py is called like the package
from benchmarks.planning import config_of, write
from pairforge.config import canonical_json
from pairforge.image import encode_png
from pairforge.records import Fate, Sample
from pairforge.shards import Marker, ShardWriter
from pairforge.snapshot import open_snapshot
from pairforge.storage import open_storage
from pipelines.bases import source_ref
from pipelines.carry import Watchers
from pipelines.plan import Part, render_settings
from pipelines.publication import Outline
from pipelines.ray_backend import RayBackend, start_embedded_ray
from pipelines.run import run
from pipelines.settings import RunConfig
from pipelines.stages import Stage

STUB_PNG = encode_png(np.zeros((1, 1, 3), np.uint8))
STUB_SHA256 = hashlib.sha256(STUB_PNG).hexdigest()


def make_stub(context: tuple[Any, str]) -> Callable[[Part], Marker]:
    """A stage that keeps every record with a stub for its pixels."""
    storage = open_storage(context[1])

    def work(part: Part) -> Marker:
        with ShardWriter(storage, part.shard, part.split) as writer:
            for record in part.records:
                sample = Sample(
                    key=record.key,
                    line=part.line,
                    category=part.category,
                    split=part.split,
                    recipe=record.recipe,
                    recipe_version=1,
                    variant=record.variant,
                    source=source_ref(record.source),
                    base=None,
                    assets=(),
                    scene={},
                    steps=(),
                    realised={},
                    lq_sha256=STUB_SHA256,
                    hq_sha256=STUB_SHA256,
                    versions={},
                )
                row = {name: getattr(sample, name) for name in ("key", "recipe", "variant", "lq_sha256", "hq_sha256")}
                source = {name: getattr(sample.source, name) for name in ("uri", "group", "licence", "attribution")}
                row |= {**source, "source_id": sample.source.source_id, "fate": Fate.KEPT.value}
                files = {"json": canonical_json(sample).encode(), "lq.png": STUB_PNG, "hq.png": STUB_PNG}
                writer.add(row, files)
            return writer.commit({})

    return work


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def config_for(folder: str, records_per_shard: int) -> RunConfig:
    """The planning benchmark's config, with one real file beside the synthetic catalog."""
    Path(folder, "photos").mkdir()
    Path(folder, "photos", "one.png").write_bytes(STUB_PNG)
    data = config_of(f"{folder}/set").model_dump(mode="json")
    data["sources"][0]["url"] = f"{folder}/photos"
    data["shards"]["records_per_shard"] = records_per_shard
    return RunConfig.model_validate(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=620_000)
    parser.add_argument("--records-per-shard", type=int, default=245)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pairforge-scale-") as folder:
        write(f"{folder}/set", given.rows, 20_000)
        config = config_for(folder, given.records_per_shard)
        memory: list[float] = [resident_mb()]
        marks: dict[str, float] = {"start": time.monotonic()}
        done = 0
        parts = 1

        def on_plan(planned: Outline) -> None:
            nonlocal parts
            parts = len(planned.parts)
            marks["planned"] = time.monotonic()

        def on_part(marker: Marker) -> None:
            nonlocal done
            done += 1
            if done % max(1, parts // 10) == 0:
                memory.append(resident_mb())
            if done == parts:
                marks["made"] = time.monotonic()

        def backend(config: RunConfig, output: str) -> RayBackend:
            start_embedded_ray(os.cpu_count() or 1)
            stage = Stage("stub", 1, make_stub)
            return RayBackend((stage,), (render_settings(config), output), owns_ray=True)

        report = run(config, backend, Watchers(on_plan=on_plan, on_part=on_part))
        marks["published"] = time.monotonic()
        snapshot = open_snapshot(config.output)
        total = snapshot.summary()[-1]
        assert total["kept"] == report.fates["kept"] == total["planned"]
        result = {
            "records": total["kept"],
            "parts": parts,
            "gigabytes": round(total["bytes"] / 1e9, 2),
            "planning_s": round(marks["planned"] - marks["start"], 1),
            "making_s": round(marks["made"] - marks["planned"], 1),
            "parts_per_s": round(parts / (marks["made"] - marks["planned"]), 1),
            "snapshot_s": round(marks["published"] - marks["made"], 1),
            "driver_mb": [round(value) for value in memory],
        }
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
