"""Capacity: what a calibration stores, and what plan predicts from it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairforge.records import DamagedError
from pairforge.storage import open_storage
from pipelines import estimate as estimating
from pipelines.calibration import CALIBRATION_FILE, read_calibration
from pipelines.engine import Backend, LocalBackend
from pipelines.estimate import calibrate, estimate
from pipelines.plan import render_settings
from pipelines.run import run, stages_of
from pipelines.settings import RunConfig

MakeConfig = Callable[..., RunConfig]


def local(config: RunConfig, output: str) -> Backend:
    return LocalBackend(stages_of(config), (render_settings(config), output))


def refuse_to_render(*_: Any) -> Any:
    raise AssertionError("plan rendered a record although all is calibrated")


def test_plan_predicts_from_the_calibration_what_a_run_then_takes(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    found = calibrate(config, 12)
    assert {name: cost.records for name, cost in found.categories.items()} == {"compression": 12, "reflection": 12}
    storage = open_storage(config.output)
    assert read_calibration(storage) == found
    assert [entry.name for entry in storage.list("")] == [CALIBRATION_FILE], "nothing else is written"
    with monkeypatch.context() as patch:
        patch.setattr(estimating, "StageCaller", refuse_to_render)
        planned = estimate(config, 2)
    assert planned["calibrated"] == ["compression", "reflection"] and planned["measured"] == 0
    assert planned["gpu_hours_left"] == 0.0
    wanted = sum(36 / 3 * n * cost.core_seconds for n, cost in zip((2, 1), found.categories.values(), strict=True))
    assert planned["core_hours_left"] == pytest.approx(wanted / 3600, rel=0.01, abs=1e-6)
    run(config, local)
    sizes = {part: sum(e.size for e in storage.list(part)) for part in ("shards/", "bases/")}
    markers = sum(e.size for e in storage.list("shards/") if e.name.endswith(".marker.json"))
    assert planned["bytes_left"] == pytest.approx(sizes["shards/"] - markers, rel=0.25)
    assert planned["storage_left"] == pytest.approx(sizes["shards/"] - markers + sizes["bases/"], rel=0.25)
    after = estimate(config, 0)
    assert (after["bytes_left"], after["storage_left"], after["core_hours_left"]) == (0, 0, 0)


def test_a_calibration_of_other_settings_is_not_used(make_config: MakeConfig) -> None:
    config = make_config()
    calibrate(config, 2)
    step = {"type": "jpeg", "severity": [0.1, 0.2]}
    jpeg = {"name": "jpeg", "version": 2, "category": "compression", "variants": 2, "chain": [step]}
    changed = make_config(recipes=[jpeg, config.recipes[1].model_dump()])
    planned = estimate(changed, 1)
    assert (planned["calibrated"], planned["measured"]) == (["reflection"], 1)
    assert estimate(changed, 0)["storage_left"] is None
    larger = make_config(base={"policy": "resize_crop", "size_px": 192, "small": "refuse"})
    assert estimate(larger, 0)["calibrated"] == []


def test_a_damaged_calibration_is_named(make_config: MakeConfig) -> None:
    config = make_config()
    open_storage(config.output).write(CALIBRATION_FILE, b'{"machine": {}}')
    with pytest.raises(DamagedError, match=r"runs/calibration\.json"):
        estimate(config, 0)


def test_the_commands(make_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(make_config().model_dump(mode="json")))

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "pipelines.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert set(json.loads(call("calibrate", str(path), "--records", "2", "--json"))["categories"]) == {
        "compression",
        "reflection",
    }
    told = call("plan", str(path))
    assert "from the calibration of 2 categories" in told and "GPU-hours 0.00; storage with bases" in told
    assert "ms a record" in call("calibrate", str(path), "--records", "1")


def test_a_stage_on_gpus_costs_gpu_hours(make_config: MakeConfig) -> None:
    """The scene stage is given half a GPU; what it occupies while it runs is predicted, per category."""
    steps = {"foggy": "haze", "coded": "jpeg"}
    recipes = [
        {"name": name, "version": 1, "category": name, "variants": 1, "chain": [{"type": kind, "severity": 0.5}]}
        for name, kind in steps.items()
    ]
    config = make_config(recipes=recipes, run={"stages": {"scene": {"gpus": 0.5}}})
    found = calibrate(config, 6).categories
    assert found["foggy"].gpu_seconds > 0.001 > found["coded"].gpu_seconds >= 0
    planned = estimate(config, 2)
    assert planned["calibrated"] == ["coded", "foggy"]
    wanted = sum(12 * cost.gpu_seconds for cost in found.values())
    assert planned["gpu_hours_left"] == pytest.approx(wanted / 3600, rel=0.01, abs=1e-6)
    without = estimate(make_config(config.output, recipes=recipes), 2)
    assert without["calibrated"] == [] and without["gpu_hours_left"] == 0, "other resources, other costs"
