"""What a run tells while it goes on: log lines with its ids, Ray metrics, the bottleneck."""

import json
import logging
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pairforge.records import InfraError
from pipelines.cli_runs import _in_stages
from pipelines.engine import Backend, LocalBackend, StageLoad, bottleneck
from pipelines.plan import render_settings
from pipelines.publication import read_status
from pipelines.ray_backend import RayBackend
from pipelines.run import RENDER, run
from pipelines.settings import RunConfig
from pipelines.stages import Stage
from pipelines.telemetry import bound, bound_ids, new_run_id, note, run_log

MakeConfig = Callable[..., RunConfig]
QUICK = {"engine": {"backoff_s": [0.01, 0.02]}}


def make_shaky(context: Any) -> Callable[[Any], Any]:
    """Renders; the very first call meets a fault."""
    real = RENDER.make(context)

    def work(part: Any) -> Any:
        try:
            Path(context[1], "shaken").open("x").close()
        except FileExistsError:
            return real(part)
        raise InfraError("storage was away")

    return work


SHAKY = Stage("shaky", 1, make_shaky)


def lonely(make_config: MakeConfig, photo_folder: Path, **changes: Any) -> RunConfig:
    """One photo: 2 records are kept, the third has no second photo for its reflection."""
    config = make_config(run=QUICK, **changes)
    photo = sorted(photo_folder.rglob("*.png"))[0]
    source = config.sources[0].model_copy(update={"url": str(photo)})
    return config.model_copy(update={"sources": (source,)})


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_logs_every_part_fault_and_refusal_with_its_ids(
    make_config: MakeConfig, photo_folder: Path, tmp_path: Path
) -> None:
    config, target = lonely(make_config, photo_folder), tmp_path / "log.jsonl"
    run_id = new_run_id("0123456789")

    def shaky(config: RunConfig, output: str) -> Backend:
        return LocalBackend((SHAKY,), (render_settings(config), output))

    with run_log(str(target), run_id):
        report = run(config, shaky)
    lines = lines_of(target)
    assert {line["run"] for line in lines} == {run_id}
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    by_event = {event: [x for x in lines if x["event"] == event] for event in {x["event"] for x in lines}}
    assert by_event["planned"][0]["records"] == 3
    (fault,) = by_event["call failed"]
    assert (fault["level"], fault["stage"], fault["attempt"]) == ("warning", "shaky", 1)
    assert fault["fault"] == "storage was away" and fault["part"].startswith("shards/synthesis/")
    done = {line["part"]: line for line in by_event["part done"]}
    assert len(done) == report.parts_made == 2
    assert done[fault["part"]]["attempt"] == 2, "the fault cost its part an attempt"
    assert sum(line["kept"] for line in done.values()) == 2 and all(line["bytes"] > 0 for line in done.values())
    assert [line["reasons"] for line in done.values() if line["rejected"]] == [{"no_partner": 1}]
    (refused,) = by_event["record refused"]
    assert refused["key"].startswith("reflected-") and refused["reason"] == "no_partner"
    assert "/reflection/" in refused["part"] and refused["stage"] == "shaky"
    assert all(line["seconds"] >= 0 and line["part"] in done for line in by_event["stage done"])
    assert sorted(line["attempt"] for line in by_event["stage done"]) == [1, 2]
    assert by_event["snapshot"][0]["snapshot"] == report.snapshot
    assert lines[-1]["event"] == "run ended" and lines[-1]["outcome"] == "done"
    note("after the run", logging.ERROR)
    assert len(lines_of(target)) == len(lines) and bound_ids() == {}


def test_a_run_that_stops_says_why(tmp_path: Path) -> None:
    target = tmp_path / "log.jsonl"
    with pytest.raises(InfraError), run_log(str(target), "r"), bound({"part": "p"}):
        raise InfraError("the disk is gone")
    (line,) = lines_of(target)
    assert (line["outcome"], line["level"], line["fault"]) == ("stopped", "error", "InfraError: the disk is gone")
    assert "part" not in line


def test_the_command_logs_to_stderr_and_refuses_urls(
    make_config: MakeConfig, photo_folder: Path, tmp_path: Path
) -> None:
    config = lonely(make_config, photo_folder)
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path), "--local", "--json", "--log"]
    refused = subprocess.run([*command, "s3://bucket/log"], capture_output=True, text=True)
    assert refused.returncode == 2 and "--log" in refused.stderr
    done = subprocess.run([*command, "-"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[0]["event"] == "planned" and lines[-1]["event"] == "run ended"
    assert json.loads(done.stdout)["parts_made"] == 2, "stdout carries the report alone"
    assert read_status_run(config) == lines[0]["run"]


def read_status_run(config: RunConfig) -> Any:
    from pairforge.storage import open_storage

    return read_status(open_storage(config.output))["run"]


def test_without_log_and_ray_nothing_is_said_or_loaded(
    make_config: MakeConfig, photo_folder: Path, tmp_path: Path
) -> None:
    config = lonely(make_config, photo_folder)
    script = """
import sys
from pairforge.storage import open_storage
from pipelines.engine import LocalBackend
from pipelines.plan import render_settings
from pipelines.run import run
from pipelines.settings import RunConfig
from tests.pipelines.test_telemetry import SHAKY
assert "ray" not in sys.modules
config = RunConfig.model_validate_json(sys.argv[1])
run(config, lambda config, output: LocalBackend((SHAKY,), (render_settings(config), output)))
assert "ray" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script, config.model_dump_json()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def series(text: str, name: str, **labels: str) -> float | None:
    """Sum over the series of a metric that carry these labels."""
    found = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if re.match(rf"{name}\{{", line) and all(f'{key}="{value}"' in line for key, value in labels.items())
    ]
    return sum(found) if found else None


@pytest.fixture
def watched(make_config: MakeConfig, photo_folder: Path, ray_session: None) -> Iterator[RunConfig]:
    config = lonely(make_config, photo_folder)
    recipes = tuple(recipe.model_copy(update={"category": f"seen_{recipe.category}"}) for recipe in config.recipes)
    yield config.model_copy(update={"recipes": recipes})


def test_ray_shows_the_metrics_and_keeps_the_workers_lines(watched: RunConfig) -> None:
    import ray

    seen = replace(SHAKY, name="seen_shaky")
    with bound({"run": "run-of-the-metrics-test"}):
        run(watched, lambda config, output: RayBackend((seen,), (render_settings(config), output)))
    node = ray.nodes()[0]
    expected: dict[tuple[str, ...], float] = {
        ("ray_pairforge_records_total", "category=seen_compression", "fate=kept"): 2,
        ("ray_pairforge_records_total", "category=seen_reflection", "fate=rejected"): 1,
        ("ray_pairforge_records_refused_total", "category=seen_reflection", "reason=no_partner"): 1,
        ("ray_pairforge_faults_total", "stage=seen_shaky"): 1,
        ("ray_pairforge_stage_seconds_count", "stage=seen_shaky"): 2,
    }
    limit = time.monotonic() + 60
    found: dict[tuple[str, ...], float | None] = {}
    while found != expected and time.monotonic() < limit:
        text = scrape(node["MetricsExportPort"])
        found = {key: series(text, key[0], **dict(label.split("=") for label in key[1:])) for key in expected}
        time.sleep(0.5)
    assert found == expected
    assert (series(text, "ray_pairforge_bytes_written_total", category="seen_compression") or 0) > 10_000
    assert series(text, "ray_pairforge_stage_calls", stage="seen_shaky") is not None
    logs = Path(node["ObjectStoreSocketName"]).parent.parent / "logs"
    lines = [
        json.loads(line)
        for path in logs.glob("worker-*.err")
        for line in path.read_text().splitlines()
        if "run-of-the-metrics-test" in line
    ]
    assert {line["event"] for line in lines} == {"stage done", "record refused"}
    assert {line["stage"] for line in lines} == {"seen_shaky"}
    assert {line["attempt"] for line in lines} == {1, 2}
    assert all(re.match(r"shards/synthesis/seen_\w+/\w+-0", line["part"]) for line in lines)


def test_the_bottleneck_holds_most_parts() -> None:
    idle = [StageLoad("decode", 0, 0, 9, 0), StageLoad("judge", 0, 0, 9, 1)]
    assert bottleneck(idle) is None and "bottleneck" not in _in_stages(idle)
    busy = [StageLoad("decode", 0, 3, 9, 0), StageLoad("judge", 5, 1, 2, 1), StageLoad("write", 0, 1, 2, 0)]
    assert bottleneck(busy) == "judge"
    assert _in_stages(busy) == "making: decode 3, judge 1 (5 waiting), write 1; bottleneck judge"
    assert _in_stages(busy[1:2]) == "judge", "of one stage there is nothing to choose"
