"""Four nodes that share an S3 URL alone: both kinds of chains end with the same bytes while things are killed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pairforge.snapshot import open_snapshot, verify
from pairforge.storage import open_storage
from pipelines.run import run
from pipelines.settings import RunConfig
from tests.conftest import config_of
from tests.pipelines.test_run import hashes, local

ROOT = Path(__file__).parent.parent.parent
MakeConfig = Callable[..., RunConfig]


@pytest.mark.alone
@pytest.mark.slow
def test_chains_end_with_the_same_bytes_while_workers_actors_and_nodes_die(
    tmp_path: Path, photo_folder: Path, s3_url: str
) -> None:
    storage = open_storage(s3_url)
    for path in photo_folder.rglob("*.png"):
        storage.write(f"photos/{path.relative_to(photo_folder).as_posix()}", path.read_bytes())
    config = config_of(
        tmp_path / "out",
        f"{s3_url}/photos",
        shards={"records_per_shard": 1},
        run={"engine": {"backoff_s": [0.05, 0.5], "max_attempts": 10}},
    )
    run(config, local)
    path = tmp_path / "c.json"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "tests.pipelines.cluster_script", str(path), s3_url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    parts = sum(entry.name.endswith(".marker.json") for entry in open_storage(config.output).list("shards/"))
    for name, kills in (("cpu", 3), ("gpu", 4)):
        assert told[name]["parts"] == parts and len(told[name]["killed"]) == kills, told
        assert told[name]["faults"], "nothing was lost by all that killing"
        assert hashes(f"{s3_url}/{name}") == hashes(config.output)
        assert verify(open_snapshot(f"{s3_url}/{name}")).problems == ()
    loads = told["gpu"]["loads"]
    assert len(loads) >= 3 and len({load["node"] for load in loads}) == 2, "at the start, after its death, elsewhere"
    assert all(load["gpus"] == ["0"] for load in loads)
