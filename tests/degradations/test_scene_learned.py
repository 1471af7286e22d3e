"""Learned providers through the real loading code: tiny networks with random weights, saved to a folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import data

from degradations.scene.providers import depth_provider, segments_provider
from degradations.scene.stored import DepthMap, SegmentMap, pack_depth, unpack_depth
from degradations.scene.upsampling import upsample_depth, upsample_segments
from pairforge.image import Pixels

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_dpt(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=37,
        image_size=96,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
    )
    model = transformers.DPTForDepthEstimation(config)
    lift_head(model)
    model.save_pretrained(folder)
    processor = transformers.DPTImageProcessor(size={"height": 96, "width": 96}, keep_aspect_ratio=False)
    processor.save_pretrained(folder)
    return folder


def tiny_depth_anything(folder: Path, kind: str = "relative") -> Path:
    torch.manual_seed(1)
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=126,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=80 if kind == "metric" else 1,
    )
    model = transformers.DepthAnythingForDepthEstimation(config)
    lift_head(model)
    model.save_pretrained(folder)
    processor = transformers.DPTImageProcessor(
        size={"height": 126, "width": 126},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    processor.save_pretrained(folder)
    return folder


def lift_head(model: Any) -> None:
    """As they are initialised, necks and heads give 1e-8 everywhere: larger weights give a plane that varies."""
    with torch.no_grad():
        for module in (*model.neck.modules(), *model.head.modules()):
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                torch.nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    module.bias.fill_(0.05)


def tiny_sam2(folder: Path) -> Path:
    torch.manual_seed(2)
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads=1,
        num_attention_heads_per_stage=[1, 1, 1, 1],
        global_attention_blocks=[3],
        window_size_per_stage=[8, 4, 8, 4],
        image_size=[256, 256],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        fpn_hidden_size=32,
        backbone_feature_sizes=[[64, 64], [32, 32], [16, 16]],
    )
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 256, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 32, "iou_head_hidden_dim": 32},
    )
    transformers.Sam2Model(config).save_pretrained(folder)
    processor = transformers.Sam2ImageProcessor(
        size={"height": 256, "width": 256}, mask_size={"height": 64, "width": 64}
    )
    transformers.Sam2Processor(image_processor=processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dpt(tmp_path_factory.mktemp("dpt"))


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth_anything(tmp_path_factory.mktemp("depth_anything"))


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam2(tmp_path_factory.mktemp("sam2"))


def photo() -> Pixels:
    pixels: Pixels = np.ascontiguousarray(data.coffee()[::2, ::2])
    return pixels


def called(name: str, folder: Path, **arguments: Any) -> DepthMap:
    provider: Any = depth_provider(name, {"path": str(folder), **arguments})
    held = provider(photo())
    assert isinstance(held, DepthMap)
    return held


@pytest.mark.parametrize("kind", ["dpt", "depth_anything"])
def test_relative_models_fill_the_range_that_was_asked_for(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    held = called("transformers", folder, near_m=1.5, far_m=60.0, map_side_px=160)
    assert held.sky.shape == (107, 160) and not held.metric
    assert held.facts["model_type"] == kind
    z_m = 1 / held.inverse_depth_per_m.astype(np.float64)
    assert z_m.min() == pytest.approx(1.5, rel=1e-3) and z_m.max() == pytest.approx(60, rel=1e-3)
    assert 0.01 < (z_m < 1.51).mean() < 0.05, "the nearest 2 % are held at near_m"
    depth = upsample_depth(unpack_depth(pack_depth(held)), photo())
    assert depth.z_m.shape == photo().shape[:2] and depth.provider == "transformers"


def test_bigger_output_is_nearer(depth_anything: Path) -> None:
    """The network's own output against the map, by rank."""
    held = called("transformers", depth_anything, map_side_px=150)
    model = transformers.AutoModelForDepthEstimation.from_pretrained(depth_anything).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(depth_anything)
    with torch.inference_mode():
        outputs = model(**processor(images=[photo()], return_tensors="pt"))
        found = processor.post_process_depth_estimation(outputs, target_sizes=[held.sky.shape])
    raw = found[0]["predicted_depth"].numpy()
    assert np.corrcoef(raw.ravel(), held.inverse_depth_per_m.astype(np.float64).ravel())[0, 1] > 0.9


def test_metric_models_give_metres(tmp_path: Path) -> None:
    held = called("transformers", tiny_depth_anything(tmp_path, "metric"))
    assert held.metric and held.confidence > 0.7
    z_m = 1 / held.inverse_depth_per_m.astype(np.float64)
    assert z_m.min() >= 0.01 and z_m.max() <= 80.1


def test_a_constant_map_is_far(tmp_path: Path) -> None:
    folder = tiny_depth_anything(tmp_path)
    model = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
    with torch.no_grad():
        for weights in model.head.parameters():
            weights.zero_()
    model.save_pretrained(folder)
    held = called("transformers", folder, far_m=80.0)
    np.testing.assert_allclose(held.inverse_depth_per_m.astype(np.float64), 1 / 80, rtol=1e-3)


def test_depth_is_a_function_of_the_pixels(dpt: Path) -> None:
    first, second = called("transformers", dpt), called("transformers", dpt)
    assert pack_depth(first) == pack_depth(second)


def test_revision_names_weights_and_arguments(dpt: Path, tmp_path: Path) -> None:
    def revision(folder: Path, **arguments: Any) -> str:
        return depth_provider("transformers", {"path": str(folder), **arguments}).revision

    plain = revision(dpt)
    assert plain == revision(dpt)
    others = {revision(dpt, near_m=1.0), revision(dpt, far_m=50.0), revision(dpt, map_side_px=64)}
    changed = tiny_dpt(tmp_path)
    assert revision(changed) == plain, "the same weights elsewhere are the same"
    model = transformers.AutoModelForDepthEstimation.from_pretrained(changed)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    model.save_pretrained(changed)
    others.add(revision(changed))
    assert plain not in others and len(others) == 4


@pytest.mark.parametrize("name", ["depth", "segments"])
def test_folders_that_hold_no_model_are_refused(name: str, tmp_path: Path) -> None:
    make = {"depth": depth_provider, "segments": segments_provider}[name]
    kind = {"depth": "transformers", "segments": "sam2"}[name]
    with pytest.raises(ValueError, match=r"no folder of a model at .*absent"):
        make(kind, {"path": str(tmp_path / "absent")})
    with pytest.raises(ValueError, match=r"no config\.json"):
        make(kind, {"path": str(tmp_path)})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no weights"):
        make(kind, {"path": str(tmp_path)})
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be loaded"):
        make(kind, {"path": str(tmp_path)})


def test_missing_weights_are_not_filled_in_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = tiny_dpt(tmp_path) / "model.safetensors"
    held = load_file(file)
    dropped = next(name for name in held if "neck" in name)
    save_file({name: value for name, value in held.items() if name != dropped}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        depth_provider("transformers", {"path": str(tmp_path)})


@pytest.mark.parametrize("arguments", [{"near_m": 5.0, "far_m": 4.0}, {"near_m": 0.0}, {"map_side_px": 0}])
def test_bad_arguments_are_refused(arguments: dict[str, Any], dpt: Path) -> None:
    with pytest.raises(ValueError, match=r"near_m|map_side_px"):
        depth_provider("transformers", {"path": str(dpt), **arguments})


def test_sam2_masks_become_regions(sam2: Path) -> None:
    arguments = {"path": str(sam2), "points_per_side": 3, "least_iou": -1e9, "least_stability": 0.0}
    provider: Any = segments_provider("sam2", arguments)
    held = provider(photo())
    assert isinstance(held, SegmentMap)
    assert held.labels.shape == (200, 300) and held.count >= 1 and held.facts["masks"] >= 1
    again = provider(photo())
    assert (again.labels == held.labels).all()
    segments = upsample_segments(held, photo())
    assert set(np.unique(segments.labels)) == set(range(segments.count))


def test_without_a_mask_there_is_one_region_and_no_confidence(sam2: Path) -> None:
    provider: Any = segments_provider("sam2", {"path": str(sam2), "points_per_side": 2, "least_iou": 1e9})
    held = provider(photo())
    assert held.count == 1 and held.confidence == 0 and held.facts == {"masks": 0}


def test_a_folder_of_the_video_model_is_read(sam2: Path, tmp_path: Path) -> None:
    """As released: the configuration names the video model, whose weights are those of the image model and more."""
    for file in sam2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "sam2_video"
    (tmp_path / "config.json").write_text(json.dumps(config))
    provider: Any = segments_provider("sam2", {"path": str(tmp_path), "points_per_side": 2})
    assert provider(photo()).count >= 1


def test_importing_the_providers_loads_no_learning_library() -> None:
    script = (
        "import sys, degradations.scene.providers, degradations.scene.learned\n"
        "assert not {'torch', 'transformers', 'skimage'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
