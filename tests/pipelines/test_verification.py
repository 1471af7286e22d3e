"""Replay: every pixel again from the shards alone; what differs, or cannot be rendered, is named."""

import hashlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from sklearn.datasets import load_sample_image

from degradations.catalog import BY_NAME
from pairforge.config import canonical_json
from pairforge.image import Pixels, decode_png, encode_png, save_picture
from pairforge.records import InfraError
from pairforge.shards import ShardName, ShardWriter, read_rows, read_shard
from pairforge.snapshot import Snapshot, open_snapshot, publish, verify, write_snapshot
from pairforge.storage import Storage, open_storage
from pipelines import verification
from pipelines.engine import LocalBackend
from pipelines.plan import render_settings
from pipelines.run import run, stages_of
from pipelines.synthesis import replay_sample
from pipelines.verification import replay_snapshot
from tests.conftest import config_of
from tests.pipelines.clips import write_clip

REPOSITORY = Path(__file__).parents[2]
Files = dict[str, bytes]


def _demo_recipes() -> list[dict[str, Any]]:
    """The demo's recipes, each choice of `any_of` as a recipe of its own, so that all of them occur."""
    recipes = []
    for recipe in yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text())["recipes"]:
        for choice in recipe["chain"][0].get("any_of", recipe["chain"]):
            # The shape of a flare's lamp shows where the lamp is in the frame, which is not in every draw.
            variants = 4 if choice["type"] == "flare" else 1
            recipes.append({**recipe, "name": choice["type"], "variants": variants, "chain": [choice]})
    return recipes


class Made(NamedTuple):
    """A dataset of which nothing is left but shards, snapshots and bases."""

    root: Path
    snapshot: Snapshot
    recipes: tuple[str, ...]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path, photos: dict[str, Pixels]) -> Made:
    folder = tmp_path_factory.mktemp("replay")
    shutil.copytree(photo_folder / "a", folder / "photos")
    save_picture(np.ascontiguousarray(load_sample_image("china.jpg")[:300, :400]), folder / "photos" / "sky.png")
    (folder / "clips").mkdir()
    lit = cv2.circle(photos["astronaut"].copy(), (90, 80), 12, (255, 255, 255), -1)  # a highlight, for its parameter
    write_clip(folder / "clips" / "pan.mp4", lit, 7)
    said = {"licence": "CC0-1.0", "group": {"by": "file"}}
    recipes = _demo_recipes()
    blurred = {"name": "clip", "version": 1, "category": "clip", "variants": 1}
    config = config_of(
        folder / "out",
        folder / "photos",
        sources=[
            {"kind": "files", "url": str(folder / "photos"), **said},
            {"kind": "video", "url": str(folder / "clips"), "window_frames": 5, **said},
        ],
        recipes=[*recipes, {**blurred, "chain": [{"type": "temporal_blur", "severity": 0.7}]}],
        split={"val": 0.0, "test": 0.0},
        shards={"records_per_shard": 7},
    )
    report = run(config, lambda wanted, output: LocalBackend(stages_of(wanted), (render_settings(wanted), output)))
    variants = sum(recipe["variants"] for recipe in recipes)
    assert not report.flawed and set(report.fates.values()) == {7 * variants + 1, 0}
    for name in ("shards", "snapshots", "bases", "scene"):
        shutil.move(folder / "out" / name, folder / "set" / name)
    for name in ("out", "photos", "clips"):
        shutil.rmtree(folder / name)
    names = tuple(recipe["name"] for recipe in recipes)
    return Made(folder / "set", open_snapshot(str(folder / "set")), (*names, "clip"))


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    """As `made`, to be harmed."""
    root = tmp_path / "set"
    shutil.copytree(made.root, root)
    return made._replace(root=root, snapshot=open_snapshot(str(root)))


@pytest.fixture(scope="module")
def all_samples(made: Made) -> dict[str, list[Files]]:
    """The samples of every recipe."""
    found: dict[str, list[Files]] = {}
    for shard in made.snapshot.manifest.shards:
        for key, files in read_shard(made.snapshot.storage, shard.tar_name):
            found.setdefault(key.split("-")[0], []).append(files)
    assert set(found) == set(made.recipes)
    return found


@pytest.fixture
def samples(all_samples: dict[str, list[Files]]) -> dict[str, Files]:
    """The first sample of every recipe."""
    return {recipe: files[0] for recipe, files in all_samples.items()}


def _with_json(files: Mapping[str, bytes], change: Callable[[dict[str, Any]], Any]) -> Files:
    described = json.loads(files["json"])
    change(described)
    return {**files, "json": canonical_json(described).encode()}


# --- the same pixels again ---------------------------------------------------------------------------


def test_every_pixel_comes_again_from_shards_and_assets_alone(made: Made) -> None:
    seen: list[int] = []
    report = replay_snapshot(made.snapshot, None, 0, 2, seen.append)
    assert report.problems == ()
    assert report.replayed == sum(seen) == sum(shard.kept for shard in made.snapshot.manifest.shards)
    assert report.without_steps == 0


def test_the_command_replays_from_any_folder(made: Made, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "verify", str(made.root), "--replay", "2", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["replayed"] == 2 and told["problems"] == []


@pytest.mark.parametrize(("count", "replayed"), [(1, 1), (5, 5), (10**6, None)])
def test_a_count_is_spread_over_the_snapshot(made: Made, count: int, replayed: int | None) -> None:
    total = sum(shard.kept for shard in made.snapshot.manifest.shards)
    work = list(verification._choose(made.snapshot, count))
    assert sum(len(places) for _, _, places in work) == (replayed or total)
    assert len(work) == min(replayed or total, len(made.snapshot.manifest.shards))
    for line, tar_name, places in work:
        shard = next(
            shard for shard in made.snapshot.manifest.shards if (shard.line, shard.tar_name) == (line, tar_name)
        )
        assert all(0 <= place < shard.kept for place in places)


def test_processes_are_fresh(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process changes in memory is not what replays: a broken catalog here is not seen there."""
    monkeypatch.setitem(BY_NAME, "jpeg", None)
    assert replay_snapshot(made.snapshot, 3, 0, 1).problems == ()


# --- what the record says is what counts -------------------------------------------------------------


def _parameters() -> list[tuple[str, str]]:
    names = [*(recipe["name"] for recipe in _demo_recipes() if recipe["name"] in BY_NAME), "temporal_blur"]
    return [(name, field) for name in names for field in BY_NAME[name].params_type.model_fields]


def _others(value: Any, choices: tuple[Any, ...]) -> Iterator[Any]:
    """Values near and far from a recorded one; some may be refused by the parameters' own bounds."""
    if isinstance(value, list):
        for place, part in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in _others(part, choices))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, value + 7, 2 * value, value // 2)
    elif isinstance(value, float):
        yield from (value * 1.2 + 0.02, value * 0.8 - 0.02, value * 3, value / 3, value + 0.3, value - 0.3, 0.0)
    else:
        yield from (choice for choice in choices if choice != value)


def _literals(annotation: Any) -> tuple[Any, ...]:
    arguments = getattr(annotation, "__args__", ())
    return tuple(arg for arg in arguments if isinstance(arg, str)) + tuple(
        literal for arg in arguments if not isinstance(arg, str) for literal in _literals(arg)
    )


@pytest.mark.parametrize(("degradation", "field"), _parameters())
def test_every_recorded_parameter_reaches_the_pixels(
    made: Made, all_samples: dict[str, list[Files]], degradation: str, field: str
) -> None:
    """In one of the samples at least: some parameters matter only where there is sky, or a highlight."""
    choices = _literals(BY_NAME[degradation].params_type.model_fields[field].annotation)
    tried = []
    for files in all_samples["clip" if degradation == "temporal_blur" else degradation]:
        lq, hq = replay_sample(made.snapshot.storage, files)
        recorded = json.loads(files["json"])["steps"][0]["params"][field]
        for other in _others(recorded, choices):
            changed = _with_json(files, partial(_set_parameter, field=field, value=other))
            try:
                other_lq, other_hq = replay_sample(made.snapshot.storage, changed)
            except ValueError:  # out of the parameter's bounds
                continue
            tried.append((recorded, other))
            if not np.array_equal(lq, other_lq) or not np.array_equal(hq, other_hq):
                return
    pytest.fail(f"{degradation}.{field}: the same pixels for {tried}")


def _set_parameter(sample: dict[str, Any], field: str, value: Any) -> None:
    assert field in sample["steps"][0]["params"]
    sample["steps"][0]["params"][field] = value


RANDOM = ("rain", "sensor_noise", "granular_noise", "impulse_noise", "banding_noise", "low_light", "haze")


@pytest.mark.parametrize("degradation", RANDOM)
def test_the_recorded_seed_reaches_the_pixels(made: Made, samples: dict[str, Files], degradation: str) -> None:
    files = samples[degradation]
    changed = _with_json(files, lambda sample: sample["steps"][0].update(seed="0" * 32))
    pairs = zip(replay_sample(made.snapshot.storage, files), replay_sample(made.snapshot.storage, changed), strict=True)
    assert any(not np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("degradation", ["haze", "flare", "reflection", "jpeg"])
def test_what_only_explains_is_no_input(made: Made, samples: dict[str, Files], degradation: str) -> None:
    files = samples[degradation]

    def change(sample: dict[str, Any]) -> None:
        sample["steps"][0]["severity"] = 0.123
        sample["realised"] = {}
        sample["source"]["uri"] = sample["recipe"] = "elsewhere"
        sample["versions"] = {}

    before = replay_sample(made.snapshot.storage, files)
    after = replay_sample(made.snapshot.storage, _with_json(files, change))
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    assert np.array_equal(before[0], decode_png(files["lq.png"]))
    assert np.array_equal(before[1], decode_png(files["hq.png"]))


def test_targets_that_differ_from_the_base_come_with_it(samples: dict[str, Files]) -> None:
    assert {"base.png" in samples[name] for name in ("jpeg", "haze", "rain")} == {False}
    assert "base.png" in samples["reflection"]


# --- faults ------------------------------------------------------------------------------------------


def _assets(files: Files) -> list[dict[str, Any]]:
    assets: list[dict[str, Any]] = json.loads(files["json"])["assets"]
    return assets


def _keys_using(snapshot: Snapshot, name: str) -> set[str]:
    read = (read_shard(snapshot.storage, shard.tar_name) for shard in snapshot.manifest.shards)
    return {key for shard in read for key, files in shard if name in {asset["name"] for asset in _assets(files)}}


@pytest.mark.parametrize(("recipe", "role"), [("reflection", "second"), ("clip", "frame3")])
@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_a_lost_asset_is_named_with_the_records_that_need_it(
    copied: Made, samples: dict[str, Files], recipe: str, role: str, harm: str
) -> None:
    name = next(asset["name"] for asset in _assets(samples[recipe]) if asset["role"] == role)
    path = copied.root / name
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(encode_png(255 - decode_png(path.read_bytes())))
    problems = replay_snapshot(copied.snapshot, None, 0, 2).problems
    says = {"missing": "is missing", "changed": "does not have the SHA-256"}[harm]
    assert problems and all(name in problem and says in problem for problem in problems)
    assert {problem.split(":")[0] for problem in problems} == _keys_using(copied.snapshot, name)


def test_bases_that_no_asset_names_are_not_needed(copied: Made) -> None:
    """A base is in its shard; only partners and frames are read from the store."""
    read = (read_shard(copied.snapshot.storage, shard.tar_name) for shard in copied.snapshot.manifest.shards)
    needed = {asset["name"] for shard in read for _, files in shard for asset in _assets(files)}
    for path in (copied.root / "bases").rglob("*.png"):
        if str(path.relative_to(copied.root)) not in needed:
            path.unlink()
    assert replay_snapshot(copied.snapshot, None, 0, 2).problems == ()


def _rewrite(made: Made, root: Path, recipe: str, change: Callable[[Files], Files]) -> tuple[Storage, str]:
    """A dataset with one shard, whose first sample of `recipe` is changed with all its hashes; and its key."""
    for name in ("bases", "scene"):
        shutil.copytree(made.root / name, root / name)
    storage, source = open_storage(str(root)), made.snapshot.storage
    shard = next(
        shard
        for shard in made.snapshot.manifest.shards
        if any(key.startswith(f"{recipe}-") for key, _ in read_shard(source, shard.tar_name))
    )
    rows = {row["key"]: row for row in read_rows(source, [shard.rows_name], None).to_pylist()}
    changed = ""
    with ShardWriter(storage, ShardName(shard.line, shard.category, shard.part, shard.fingerprint), "train") as writer:
        for key, files in read_shard(source, shard.tar_name):
            if not changed and key.startswith(f"{recipe}-"):
                changed = key
                files = change(dict(files))
                hashes = {f"{side}_sha256": hashlib.sha256(files[f"{side}.png"]).hexdigest() for side in ("lq", "hq")}
                files = _with_json(files, partial(_state, hashes=hashes))
                rows[key].update(hashes)
            writer.add(rows[key], files)
        marker = writer.commit({})
    publish(storage, write_snapshot(storage, "changed", [marker], {}, [], [], {}))
    return storage, changed


def _state(sample: dict[str, Any], hashes: Mapping[str, str]) -> None:
    sample.update(hashes)


def _shifted(files: Files, codes: int) -> Files:
    pixels = decode_png(files["lq.png"]).astype(np.int16)
    pixels[:8] += np.where(pixels[:8] < 128, codes, -codes).astype(np.int16)
    return {**files, "lq.png": encode_png(pixels.astype(np.uint8))}


@pytest.mark.parametrize(
    ("codes", "tolerance", "passes"), [(1, 0, False), (1, 1, True), (3, 2, False), (3, 3, True), (200, 255, True)]
)
def test_a_tolerance_is_the_largest_difference_of_any_code(
    made: Made, tmp_path: Path, codes: int, tolerance: int, passes: bool
) -> None:
    codes = min(codes, 127)
    storage, key = _rewrite(made, tmp_path / "set", "gaussian_blur", lambda files: _shifted(files, codes))
    snapshot = open_snapshot(storage.root)
    assert verify(snapshot).problems == ()
    problems = replay_snapshot(snapshot, None, tolerance, 1).problems
    if passes:
        assert problems == ()
    else:
        assert problems == (f"{key}: lq.png differs from its replay by up to {codes} codes, in 6.25% of values",)


def test_equal_pixels_in_other_png_bytes_fail_only_without_tolerance(made: Made, tmp_path: Path) -> None:
    def recoded(files: Files) -> Files:
        stored = cv2.imdecode(np.frombuffer(files["lq.png"], np.uint8), cv2.IMREAD_COLOR)
        data = bytes(cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1])
        assert data != files["lq.png"]
        return {**files, "lq.png": data}

    storage, key = _rewrite(made, tmp_path / "set", "jpeg", recoded)
    snapshot = open_snapshot(storage.root)
    assert replay_snapshot(snapshot, None, 0, 1).problems == (
        f"{key}: lq.png has other bytes than its replay, for equal pixels: another PNG encoder",
    )
    assert replay_snapshot(snapshot, None, 1, 1).problems == ()


Change = Callable[[dict[str, Any]], Any]
MISMATCHES: dict[str, tuple[str, Change, str]] = {
    "step version": (
        "jpeg",
        lambda sample: sample["steps"][0].update(version=99),
        "'jpeg' was rendered by version 99; this installation has version",
    ),
    "unknown step": (
        "jpeg",
        lambda sample: sample["steps"][0].update(name="jpeg3000"),
        "unknown degradation 'jpeg3000'; known: ",
    ),
    "enlarging of depth": (
        "haze",
        lambda sample: sample["scene"]["depth"].update(upsampling="0"),
        "depth was enlarged by revision 0; this installation has revision ",
    ),
    "parameters of another version": (
        "jpeg",
        lambda sample: sample["steps"][0]["params"].update(chroma=1),
        "chroma",
    ),
    "libraries": (
        "jpeg",
        lambda sample: (sample["versions"].update(numpy="1.0"), sample["steps"][0]["params"].update(quality=3)),
        "it was made with numpy 1.0 (here ",
    ),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_another_version_is_named(made: Made, tmp_path: Path, what: str) -> None:
    recipe, change, says = MISMATCHES[what]
    storage, key = _rewrite(made, tmp_path / "set", recipe, lambda files: _with_json(files, change))
    problems = replay_snapshot(open_snapshot(storage.root), None, 0, 1).problems
    assert len(problems) == 1
    assert problems[0].startswith(f"{key}: ") and says in problems[0]


# --- processes ---------------------------------------------------------------------------------------


def test_a_dead_process_is_a_fault_of_machinery(made: Made) -> None:
    def kill(samples: int) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(InfraError, match="a process that replayed samples died"):
        replay_snapshot(made.snapshot, None, 0, 1, kill)


def _done_once_then_slow(root: str, tar_name: str, places: frozenset[int], tolerance: int) -> tuple[int, list[str]]:
    if places != {0}:
        time.sleep(60)
    return 1, []


def test_an_interrupt_leaves_no_process(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither idle ones nor one in the middle of a long shard."""

    def interrupt(samples: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verification, "_replay_shard", _done_once_then_slow)
    monkeypatch.setattr(verification, "_choose", lambda *_: [("", frozenset({0})), ("", frozenset({1}))])
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        replay_snapshot(made.snapshot, None, 0, 2, interrupt)
    left = set(multiprocessing.active_children()) - before
    # Asked again and again: while the pool's own thread reaps a process, one look may still call it alive.
    limit = time.monotonic() + 20
    while any(process.is_alive() for process in left) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(process.is_alive() for process in left)
