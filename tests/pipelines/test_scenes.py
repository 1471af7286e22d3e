"""The scene stage: maps are made once, stored, refused with a reason, and replayed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from degradations.scene import depth as geometric
from degradations.scene.learned import model_hash
from pairforge.image import Pixels, decode_png
from pairforge.records import InfraError
from pairforge.shards import read_shard
from pairforge.snapshot import open_snapshot, verify
from pairforge.storage import open_storage
from pipelines.catalog import Catalog
from pipelines.engine import Backend, LocalBackend
from pipelines.plan import plan_parts, render_settings
from pipelines.ray_backend import RayBackend
from pipelines.run import run, stages_of
from pipelines.settings import RunConfig
from pipelines.synthesis import make_part
from pipelines.verification import replay_snapshot

MakeConfig = Callable[..., RunConfig]


def local(config: RunConfig, output: str) -> Backend:
    return LocalBackend(stages_of(config), (render_settings(config), output))


def on_ray(config: RunConfig, output: str) -> Backend:
    return RayBackend(stages_of(config), (render_settings(config), output))


def read(path: Path) -> Pixels:
    return decode_png(path.read_bytes())


def recipe(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "name": kind,
        "version": 1,
        "category": kind,
        "variants": 2,
        "chain": [{"type": kind, "severity": 0.6}],
    } | more


def kept_json(config: RunConfig) -> list[dict[str, Any]]:
    snapshot = open_snapshot(config.output)
    shards = [shard for shard in snapshot.manifest.shards if shard.tar_name]
    return [json.loads(f["json"]) for shard in shards for _, f in read_shard(snapshot.storage, shard.tar_name)]


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DPT with random weights, as a user's folder would hold it."""
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dpt")
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=37,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
    )
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 64, "width": 64}, keep_aspect_ratio=False).save_pretrained(folder)
    return folder


def test_depth_is_made_once_for_every_base_and_never_again(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(recipes=[recipe("haze"), recipe("rain")])
    assert [stage.name for stage in stages_of(config)] == ["scene", "render"]
    run(config, local)
    storage = open_storage(config.output)
    maps = {entry.name: storage.read(entry.name) for entry in storage.list("scene/")}
    assert len(maps) == 12, "one map a base, for both recipes and all variants"

    def refuse(*_: Any) -> Any:
        raise AssertionError("depth was made again")

    monkeypatch.setattr(geometric.GeometricDepth, "__call__", refuse)
    later = make_config(recipes=[recipe("haze", variants=3), recipe("rain")])
    report = run(later, local)
    assert report.parts_made > 0 and report.fates["kept"] == 60
    assert {entry.name: storage.read(entry.name) for entry in storage.list("scene/")} == maps


def test_only_what_recipes_need_is_staged(make_config: MakeConfig) -> None:
    config = make_config()
    assert [stage.name for stage in stages_of(config)] == ["render"]
    run(config, local)
    assert not list(open_storage(config.output).list("scene/"))


def test_a_need_without_a_provider_is_named(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"recipe haze needs depth; .* scene: \{depth: \{provider: geometric\}\}"):
        make_config(recipes=[recipe("haze")], scene={})
    with pytest.raises(ValueError, match=r"recipe segment_noise needs segments; .*\{provider: slic\}"):
        make_config(recipes=[recipe("segment_noise")], scene={"depth": {"provider": "geometric"}})


def test_segments_are_provided_too(make_config: MakeConfig) -> None:
    config = make_config(recipes=[recipe("segment_noise", variants=1)])
    run(config, local)
    stated = [sample["scene"]["segments"] for sample in kept_json(config)]
    assert len(stated) == 12 and all(held["provider"] == "slic" and held["count"] >= 1 for held in stated)
    assert replay_snapshot(open_snapshot(config.output), None, 0, 1).problems == ()


@pytest.mark.usefixtures("ray_session")
def test_a_model_runs_on_its_own_actors_and_its_maps_are_inputs(
    make_config: MakeConfig, depth_model: Path, tmp_path: Path
) -> None:
    model = {
        "provider": "transformers",
        "model": str(depth_model),
        "weights": model_hash(str(depth_model)),
        "near_m": 2.0,
        "far_m": 120.0,
        "focal_frac": 1.0,
    }
    changes: dict[str, Any] = {
        "recipes": [recipe("haze")],
        "scene": {"depth": model},
        "run": {"workers": 2, "stages": {"scene": {"cpus": 0.5}, "render": {"cpus": 0.5}}},
    }
    config = make_config(**changes)
    scene, _ = stages_of(config)
    assert scene.pool is not None, "weights are loaded by actors"
    report = run(config, on_ray)
    assert report.fates["kept"] == 24
    stated = [sample["scene"]["depth"] for sample in kept_json(config)]
    assert {held["provider"] for held in stated} == {"transformers"} and not any(held["metric"] for held in stated)
    assert replay_snapshot(open_snapshot(config.output), None, 0, 1).problems == ()
    alone = make_config(tmp_path / "alone", **changes)
    shutil.copytree(Path(config.output, "scene"), Path(alone.output, "scene"))
    run(alone, local)
    tars = [entry.name for entry in open_storage(config.output).list("shards/") if entry.name.endswith(".tar")]
    assert tars and all(open_storage(alone.output).read(n) == open_storage(config.output).read(n) for n in tars)


def test_other_weights_than_the_config_says_are_refused(make_config: MakeConfig, depth_model: Path) -> None:
    model = {"provider": "transformers", "model": str(depth_model), "weights": "0" * 16}
    model |= {"near_m": 2.0, "far_m": 120.0, "focal_frac": 1.0}  # type: ignore[dict-item]
    config = make_config(recipes=[recipe("haze")], scene={"depth": model})
    with pytest.raises(Exception, match=f"has hash {model_hash(str(depth_model))}; the config says weights: 0000"):
        run(config, local)


def test_given_depth_is_read_beside_its_source_and_refused_with_a_reason(
    make_config: MakeConfig, photo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder / "a", folder)
    photos = sorted(folder.glob("*.png"))
    for place, photo in enumerate(photos):
        height, width = read(photo).shape[:2]
        metres = np.tile(np.linspace(60000, 2000, height).astype(np.uint16)[:, None], (1, width))
        if place == 1:
            metres = metres[: height // 2]
        if place != 0:
            (folder / "depth").mkdir(exist_ok=True)
            cv2.imwrite(str(folder / "depth" / photo.name), metres)
    given = {"provider": "given", "beside": "depth/{stem}.png", "unit": "metres", "scale": 0.001, "focal_frac": 1.0}
    sources = [{"kind": "files", "url": str(folder / "*.png"), "licence": "CC0-1.0", "group": {"by": "file"}}]
    config = make_config(recipes=[recipe("haze", variants=1)], scene={"depth": given}, sources=sources)
    config = config.model_copy(update={"run": config.run.model_copy(update={"max_failed_fraction": 0.5})})
    report = run(config, local)
    assert report.fates["kept"] == len(photos) - 2 and report.fates["failed"] == 2
    assert dict(report.reasons) == {"no_depth": 1, "unusable_depth": 1}
    rows = open_snapshot(config.output).rows(["fate", "detail"]).to_pylist()
    details = sorted(row["detail"] for row in rows if row["fate"] == "failed")
    assert "another aspect" in details[1] or "another aspect" in details[0]
    assert all(sample["scene"]["depth"]["metric"] for sample in kept_json(config))
    assert replay_snapshot(open_snapshot(config.output), None, 0, 1).problems == ()


def test_the_part_of_a_given_map_that_a_crop_shows_is_used(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "d").mkdir(parents=True)
    photo = np.random.default_rng(0).integers(0, 255, (200, 400, 3), np.uint8)
    cv2.imwrite(str(folder / "wide.png"), photo)
    ramp = np.tile(np.linspace(1000, 41000, 400).astype(np.uint16), (200, 1))
    cv2.imwrite(str(folder / "d" / "wide.png"), ramp)
    given = {"provider": "given", "beside": "d/{stem}.png", "unit": "metres", "scale": 0.001, "focal_frac": 1.0}
    sources = [{"kind": "files", "url": str(folder / "*.png"), "licence": "CC0-1.0", "group": {"by": "file"}}]
    config = make_config(recipes=[recipe("haze", variants=1)], scene={"depth": given}, sources=sources)
    run(config, local)
    from degradations.scene.stored import unpack_depth

    storage = open_storage(config.output)
    (entry,) = storage.list("scene/")
    z_m = 1 / unpack_depth(storage.read(entry.name)).inverse_depth_per_m.astype(np.float32)
    assert z_m[:, 0].mean() == pytest.approx(11, rel=0.02) and z_m[:, -1].mean() == pytest.approx(31, rel=0.02)


def test_rendering_without_the_scene_stage_is_a_fault_that_says_so(make_config: MakeConfig) -> None:
    config = make_config(recipes=[recipe("haze")])
    catalog = Catalog(open_storage(config.output))
    catalog.scan(config)
    part = next(plan_parts(config, catalog))
    with pytest.raises(InfraError, match="the scene stage has to run before"):
        make_part(part, render_settings(config), config.output)


def test_a_damaged_map_is_named(make_config: MakeConfig) -> None:
    config = make_config(recipes=[recipe("haze", variants=1)])
    run(config, local)
    storage = open_storage(config.output)
    for entry in list(storage.list("scene/")):
        storage.write(entry.name, storage.read(entry.name)[:-3])
    catalog = Catalog(storage)
    part = next(plan_parts(config, catalog))
    with pytest.raises(InfraError, match="is damaged: delete it, and it is made again"):
        make_part(part, render_settings(config), config.output)


def test_chains_are_drawn_whole_and_replay(make_config: MakeConfig) -> None:
    names = ("real_esrgan", "real_esrgan_x4", "composite_c1")
    config = make_config(recipes=[recipe(name, variants=1) for name in names])
    run(config, local)
    found = {name: [s for s in kept_json(config) if s["recipe"] == name] for name in names}
    assert all(len(samples) == 12 for samples in found.values())
    assert all(len(sample["steps"]) >= 6 for sample in found["real_esrgan"])
    assert {step["name"] for step in found["composite_c1"][0]["steps"]} >= {"haze", "motion_blur"}
    assert replay_snapshot(open_snapshot(config.output), None, 0, 1).problems == ()
    snapshot = open_snapshot(config.output)
    small = next(s for s in snapshot.manifest.shards if s.category == "real_esrgan_x4")
    files = next(read_shard(snapshot.storage, small.tar_name))[1]
    sides = [decode_png(files[f"{side}.png"]).shape[:2] for side in ("lq", "hq")]
    assert sides == [(32, 32), (128, 128)]


def test_a_chain_against_physics_is_refused_unless_it_is_meant(make_config: MakeConfig) -> None:
    steps = [{"type": "jpeg", "severity": 0.5}, {"type": "haze", "severity": 0.5}]
    with pytest.raises(ValueError, match=r"'haze' cannot come after 'jpeg'.*order: as_listed"):
        make_config(recipes=[recipe("haze", chain=steps)])
    config = make_config(recipes=[recipe("haze", chain=steps, order="as_listed")])
    run(config, local)
    assert [step["name"] for step in kept_json(config)[0]["steps"]] == ["jpeg", "haze"]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (["real_esrgan_x4", "haze"], "haze needs depth at the size of the base, and comes after real_esrgan_x4"),
        (["resize", "segment_noise"], "segment_noise needs segments at the size of the base, and comes after resize"),
        (
            ["gaussian_blur", "temporal_blur"],
            "temporal_blur takes a window of frames as it comes: it must be the first",
        ),
    ],
)
def test_a_chain_that_cannot_run_is_no_valid_config(make_config: MakeConfig, steps: list[str], says: str) -> None:
    listed = [{"type": name, "severity": 0.5} for name in steps]
    with pytest.raises(ValueError, match=says):
        make_config(recipes=[recipe("x", chain=listed, order="as_listed")])


def test_layers_are_checked_stored_where_a_step_gives_them_and_verify(make_config: MakeConfig) -> None:
    either = [{"any_of": [{"type": "haze", "severity": 0.5}, {"type": "jpeg", "severity": 0.5}]}]
    shards = {"records_per_shard": 50, "layers": ["transmission"]}
    config = make_config(recipes=[recipe("mix", chain=either)], shards=shards)
    run(config, local)
    snapshot = open_snapshot(config.output)
    assert verify(snapshot).problems == ()
    tars = [shard.tar_name for shard in snapshot.manifest.shards if shard.tar_name]
    held = [("transmission.png" in files) for tar in tars for _, files in read_shard(snapshot.storage, tar)]
    assert any(held) and not all(held)
    with pytest.raises(
        ValueError, match=r"unknown layer 'transmision'; did you mean 'transmission'\? \(allowed: blur_diameter"
    ):
        make_config(recipes=[recipe("mix", chain=either)], shards={**shards, "layers": ["transmision"]})
