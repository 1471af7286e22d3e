"""Training on real snapshots, from the config to restored pictures, here and on Ray Train."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from pairforge.image import Pixels
from pairforge.snapshot import open_snapshot
from pipelines.engine import LocalBackend
from pipelines.plan import render_settings
from pipelines.run import run, stages_of
from tests.conftest import config_of
from training.export import read_facts
from training.launch import MODEL, PROGRESS, train_here
from training.restore import restore_files
from training.settings import TrainConfig


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> str:
    """Noisy and compressed pairs of 128 px, some of them held out."""
    output = tmp_path_factory.mktemp("pairs") / "out"
    recipes = [
        {"name": name, "version": 1, "category": name, "variants": 1, "chain": [{"type": kind, "severity": 0.7}]}
        for name, kind in (("noise", "gaussian_noise"), ("compression", "jpeg"))
    ]
    config = config_of(output, photo_folder, recipes=recipes)
    run(config, lambda settings, url: LocalBackend(stages_of(settings), (render_settings(settings), url)))
    return str(output)


def stated(output: Path, snapshot: str, **changes: Any) -> dict[str, Any]:
    data = {
        "name": "small",
        "output": str(output),
        "seed": 5,
        "sources": [{"url": snapshot}],
        "crop_px": 48,
        "batch": 4,
        "steps": 40,
        "model": {
            "name": "nafnet_tiny",
            "options": {"width": 8, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]},
        },
        "losses": {"charbonnier": 1.0},
        "optimizer": {"lr": 0.002, "clip_norm": 1.0},
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "ema_decay": 0.9,
        "validation": {"every_steps": 20, "most_per_category": 2, "tile_px": 96, "overlap_px": 16},
        "checkpoints": {"every_steps": 10},
    }
    return {**data, **changes}


def losses(output: Path) -> dict[int, float]:
    """By step; a step that was made twice must have the same one."""
    found: dict[int, float] = {}
    for line in (output / PROGRESS).read_text().splitlines():
        told = json.loads(line)
        assert found.setdefault(told["step"], told["loss"]) == told["loss"], f"step {told['step']} was made otherwise"
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, snapshot: str) -> Path:
    output = tmp_path_factory.mktemp("trained") / "out"
    train_here(TrainConfig.model_validate(stated(output, snapshot)), lambda progress: None)
    return output


def test_it_learns_to_beat_its_input_where_there_is_noise(trained: Path) -> None:
    facts = read_facts(trained / MODEL)
    assert facts.scores["psnr/noise"] > facts.scores["psnr_input/noise"] + 0.3
    assert set(losses(trained)) == set(range(1, 41))
    assert len(list((trained / "validation").glob("step-*.png"))) == 2
    assert list((trained / "tensorboard").iterdir())


def test_the_model_names_the_snapshot_it_learned_from(trained: Path, snapshot: str) -> None:
    facts, manifest = read_facts(trained / MODEL), open_snapshot(snapshot).manifest
    assert [(each.snapshot, each.content) for each in facts.snapshots] == [(manifest.id, manifest.content)]
    card = (trained / MODEL / "README.md").read_text()
    assert manifest.id in card and "psnr/noise" in card


def test_a_sigkilled_run_goes_on_to_the_same_losses_and_weights(trained: Path, snapshot: str, tmp_path: Path) -> None:
    path, output = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(stated(output, snapshot)))
    command = [sys.executable, "-m", "pipelines.cli", "train", str(path), "--local"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    for at in (13, 31):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (output / PROGRESS).exists() and len((output / PROGRESS).read_text().splitlines()) >= at:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert losses(output) == losses(trained)
    assert (output / MODEL / "model.safetensors").read_bytes() == (trained / MODEL / "model.safetensors").read_bytes()
    assert "psnr input" in done.stdout and "noise" in done.stdout


def test_restore_writes_what_the_model_makes(trained: Path, tmp_path: Path, photos: dict[str, Pixels]) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    cv2.imwrite(str(folder / "deep" / "a.png"), cv2.cvtColor(photos["coffee"][:150, :131], cv2.COLOR_RGB2BGR))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xffno")
    found = restore_files(trained / MODEL, [folder], tmp_path / "out", tile_px=64, overlap_px=16)
    assert [bool(each.fault) for each in found] == [True, False]
    before, made = (cv2.imread(str(each / "deep" / "a.png")) for each in (folder, tmp_path / "out"))
    assert before is not None and made is not None and made.shape == (150, 131, 3)
    assert np.abs(made.astype(int) - before).max() > 0
    with pytest.raises(FileNotFoundError):
        restore_files(trained / MODEL, [tmp_path / "absent.png"], tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        restore_files(tmp_path / "no_model", [folder], tmp_path / "out")


def test_another_source_needs_another_output(trained: Path, snapshot: str) -> None:
    config = TrainConfig.model_validate(stated(trained, snapshot + "/", steps=41))
    with pytest.raises(ValueError, match="choose another output"):
        train_here(config, lambda progress: None)


def test_a_darkener_learns_backwards(snapshot: str, tmp_path: Path) -> None:
    config = stated(
        tmp_path / "out",
        snapshot,
        reverse=True,
        steps=2,
        validation={"every_steps": 2, "most_per_category": 1, "tile_px": 96},
    )
    facts = train_here(TrainConfig.model_validate(config), lambda progress: None)
    assert facts.reverse and "degrades clean photos" in (tmp_path / "out" / MODEL / "README.md").read_text()


@pytest.mark.slow
def test_two_ranks_of_ray_train_go_on_as_one(trained: Path, snapshot: str, tmp_path: Path) -> None:
    path, output = tmp_path / "config.yaml", tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    for steps, ranks in ((20, 2), (40, 1)):
        path.write_text(yaml.safe_dump(stated(output, snapshot, steps=steps, ranks=ranks)))
        command = [sys.executable, "-m", "pipelines.cli", "train", str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    state = torch.load(output / "checkpoints" / "step-000000040.pt", weights_only=True)
    assert state["batches"]["position"] == 160
