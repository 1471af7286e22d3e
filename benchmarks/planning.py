"""How fast a large catalog is planned, and in how much memory.

    python benchmarks/planning.py --rows 10_000_000

A synthetic catalog is written to a scratch folder, then planned; both in processes of their own, so
that peak memory is that of planning alone. Two records a row: one of them draws a partner.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks/degradations.py is called like the package
from pairforge.rng import rng_for
from pairforge.storage import open_storage
from pipelines.catalog import CATALOG_SCHEMA, Catalog
from pipelines.plan import plan_parts
from pipelines.settings import RunConfig


def config_of(folder: str) -> RunConfig:
    """What is planned: compression, and reflection, whose records have a second source."""
    recipes = [
        {
            "name": name,
            "version": 1,
            "category": name,
            "variants": 1,
            "chain": [{"type": name, "severity": [0.2, 0.8]}],
        }
        for name in ("jpeg", "reflection")
    ]
    return RunConfig.model_validate(
        {
            "name": "planning",
            "output": folder,
            "seed": 1,
            "sources": [{"kind": "files", "url": "s3://photos", "licence": "CC0-1.0", "group": {"by": "file"}}],
            "split": {"val": 0.02, "test": 0.02},
            "limits": {"max_bytes": 10**8, "max_pixels": 10**8, "max_side": 20_000, "min_side": 64},
            "base": {"policy": "resize_crop", "size_px": 1024, "small": "refuse"},
            "recipes": recipes,
            "shards": {"records_per_shard": 1000},
        }
    )


def rows_of(number: int, count: int) -> pa.Table:
    """`count` rows with random hashes; a tenth are refused, a tenth are too small for a base."""
    rng = rng_for(0, "planning", number)
    offsets = pa.py_buffer(np.arange(0, 64 * count + 1, 64, dtype=np.int32))
    sha256 = pa.StringArray.from_buffers(count, offsets, pa.py_buffer(rng.bytes(32 * count).hex().encode()))
    group = pc.binary_join_element_wise("2024/07", pc.utf8_slice_codeunits(sha256, 40, 50), "/")
    split = pa.array(["train", "val", "test"]).take(pa.array(rng.choice(3, count, p=[0.96, 0.02, 0.02])))
    is_refused = rng.random(count) < 0.1
    columns: dict[str, Any] = {
        "source_id": pc.utf8_slice_codeunits(sha256, 0, 24),
        "sha256": sha256,
        "uri": pc.binary_join_element_wise(pc.binary_join_element_wise("s3://photos", group, "/"), ".jpg", ""),
        "stamp": pc.cast(pa.array(rng.integers(10**6, 10**7, count)), pa.string()),
        "size_bytes": rng.integers(10**6, 10**7, count),
        "width": np.where(rng.random(count) < 0.1, 800, 3000),
        "height": np.full(count, 2000),
        "group": group,
        "split": split,
        "fate": pa.array(["usable", "rejected"]).take(pa.array(is_refused.astype(np.int64))),
        "reason": pa.array(["", "transparent"]).take(pa.array(is_refused.astype(np.int64))),
    }
    constant = {"kind": "photo", "format": "JPEG", "licence": "CC0-1.0", "role": "any"}
    arrays = [
        pa.array(columns[field.name]).cast(field.type)
        if field.name in columns
        else pa.array(np.zeros(count, np.int64) if field.type == pa.int64() else [constant.get(field.name, "")] * count)
        for field in CATALOG_SCHEMA
    ]
    return pa.table(arrays, schema=CATALOG_SCHEMA)


def write(folder: str, rows: int, batch_rows: int) -> dict[str, Any]:
    """Fill a catalog, batch by batch."""
    catalog = Catalog(open_storage(folder))
    for number, start in enumerate(range(0, rows, batch_rows)):
        catalog.append_table(rows_of(number, min(batch_rows, rows - start)), number)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    return {"rows": rows, "bytes": size}


def plan(folder: str) -> dict[str, Any]:
    """Plan that catalog once, keeping nothing."""
    config, catalog = config_of(folder), Catalog(open_storage(folder))
    started = time.perf_counter()
    parts = records = 0
    for part in plan_parts(config, catalog):
        parts, records = parts + 1, records + len(part.records)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"parts": parts, "records": records, "seconds": round(seconds, 2), "peak_bytes": peak}


def _in_fresh_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--batch-rows", type=int, default=20_000)
    parser.add_argument("--write", metavar="FOLDER", help="only write a catalog there")
    parser.add_argument("--plan", metavar="FOLDER", help="only plan the catalog there")
    given = parser.parse_args()
    if given.write:
        print(json.dumps(write(given.write, given.rows, given.batch_rows)))
    elif given.plan:
        print(json.dumps(plan(given.plan)))
    else:
        with tempfile.TemporaryDirectory(prefix="pairforge-planning-") as folder:
            sizes = ("--rows", str(given.rows), "--batch-rows", str(given.batch_rows))
            written = _in_fresh_process("--write", folder, *sizes)
            planned = _in_fresh_process("--plan", folder)
        rate = round(given.rows / planned["seconds"])
        print(json.dumps({**written, **planned, "rows_per_second": rate}, indent=2))
        if planned["peak_bytes"] >= 10**9:
            sys.exit(f"planning took {planned['peak_bytes'] / 1e6:.0f} MB; less than 1000 MB are allowed")


if __name__ == "__main__":
    main()
