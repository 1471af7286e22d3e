"""Learned scorers through their real loading code: equal to direct calls of the libraries, on tiny random models."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from skimage import data

from filters.classifier import TimmClassifier
from filters.clip import PROMPTS, ClipZeroShot, PromptSets
from filters.watermark import QUERIES, Owlv2Watermarks
from pairforge.config import ConfigError, load_config
from pairforge.image import Pixels

from .tiny_models import CLIP_CONFIG, PREPROCESSING, drop_weight, tiny_clip, tiny_owlv2, tiny_timm

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")

PHOTOS: list[Pixels] = [data.astronaut(), data.coffee(), data.chelsea()]
LABELS = ("blur", "rain", "clean")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip(folder)
    return folder


@pytest.fixture(scope="module")
def owl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owl")
    tiny_owlv2(folder)
    return folder


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    tiny_timm(folder, LABELS)
    return folder


# CLIP


def direct_clip(folder: Path, pixels: Pixels) -> dict[str, float]:
    """The same scores by the library alone."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    scores = {}
    with torch.inference_mode():
        image = model.encode_image(preprocess(PILImage.fromarray(pixels))[None], normalize=True)[0]
        for category, opposites in load_config(PROMPTS, PromptSets).categories.items():
            sides = []
            for texts in (opposites.positive, opposites.negative):
                mean = model.encode_text(tokenizer(list(texts)), normalize=True).mean(0)
                sides.append(mean / mean.norm())
            logits = model.logit_scale.exp() * torch.stack([image @ side for side in sides])
            scores[category] = float(logits.softmax(0)[0])
    return scores


@pytest.mark.parametrize("pixels", PHOTOS, ids=["astronaut", "coffee", "chelsea"])
def test_clip_scores_are_those_of_the_library(clip_folder: Path, pixels: Pixels) -> None:
    scores = ClipZeroShot(str(clip_folder)).measure(pixels)
    assert scores == pytest.approx(direct_clip(clip_folder, pixels), abs=1e-5)
    assert all(0 < score < 1 for score in scores.values())
    assert len({round(score, 6) for score in scores.values()}) > 6


def test_clip_embeddings_are_exact_unit_and_enough_for_scores(clip_folder: Path) -> None:
    scorer = ClipZeroShot(str(clip_folder))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    with torch.inference_mode():
        batch = torch.stack([preprocess(PILImage.fromarray(pixels)) for pixels in PHOTOS])
        expected = model.eval().encode_image(batch, normalize=True).numpy()
    embeddings = scorer.embed(PHOTOS)
    np.testing.assert_array_equal(embeddings, expected)
    assert embeddings.dtype == np.float32 and np.allclose((embeddings**2).sum(1), 1)
    for embedding, pixels in zip(embeddings, PHOTOS, strict=True):
        assert scorer.score(embedding) == pytest.approx(scorer.measure(pixels), abs=1e-6)


def test_clip_uses_the_mean_and_deviation_of_the_folder(clip_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(clip_folder, other)
    config = (other / "open_clip_config.json").read_text()
    (other / "open_clip_config.json").write_text(config.replace("[0.3, 0.4, 0.5]", "[0.5, 0.5, 0.5]"))
    one, two = ClipZeroShot(str(clip_folder)), ClipZeroShot(str(other))
    assert not np.allclose(one.embed(PHOTOS[:1]), two.embed(PHOTOS[:1]), atol=1e-3)
    assert one.revision != two.revision


def test_clip_from_a_checkpoint_is_that_of_the_folder(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pairforge-tiny.json").write_text(json.dumps(CLIP_CONFIG))
    open_clip.add_model_config(tmp_path / "pairforge-tiny.json")
    file = clip_folder / "open_clip_model.safetensors"
    assert PREPROCESSING["mean"] == [0.3, 0.4, 0.5] and PREPROCESSING["std"] == [0.2, 0.25, 0.3]
    by_file = ClipZeroShot(str(file), model_name="pairforge-tiny", mean=(0.3, 0.4, 0.5), deviation=(0.2, 0.25, 0.3))
    by_folder = ClipZeroShot(str(clip_folder))
    np.testing.assert_array_equal(by_file.embed(PHOTOS), by_folder.embed(PHOTOS))
    plain = ClipZeroShot(str(file), model_name="pairforge-tiny")
    assert not np.allclose(plain.embed(PHOTOS), by_folder.embed(PHOTOS), atol=1e-3)
    assert len({by_file.revision, by_folder.revision, plain.revision}) == 3


def test_clip_revision_names_weights_and_texts(clip_folder: Path, tmp_path: Path) -> None:
    tiny_clip(tmp_path / "again")
    tiny_clip(tmp_path / "other", seed=1)
    texts = tmp_path / "texts.yaml"
    texts.write_text("version: 1\ncategories: {fog: {positive: [fog], negative: [clear air, a clear day]}}\n")
    own = ClipZeroShot(str(clip_folder))
    assert own.revision == ClipZeroShot(str(tmp_path / "again")).revision
    assert own.revision != ClipZeroShot(str(tmp_path / "other")).revision
    fog = ClipZeroShot(str(clip_folder), prompts=texts)
    assert fog.revision != own.revision and list(fog.measure(PHOTOS[0])) == ["fog"] == list(fog.categories)


def test_prompts_that_ship_cover_the_categories() -> None:
    sets = load_config(PROMPTS, PromptSets).categories
    assert set(sets) == set(
        "blur rain snow haze low_light noise compression moire reflection flare old_photo clean".split()
    )
    for category, opposites in sets.items():
        assert len(opposites.positive) >= 4 and len(opposites.negative) >= 4, category
        texts = [*opposites.positive, *opposites.negative]
        assert len(set(texts)) == len(texts), category


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\ncategories: {}\n",
        "version: 1\ncategories: {fog: {positive: [], negative: [clear]}}\n",
        "version: 1\ncategories: {fog: {positive: [fog]}}\n",
        "version: 1\ncategories: {Fog!: {positive: [fog], negative: [clear]}}\n",
        "version: 1\ncategories: [\n",
    ],
)
def test_prompts_that_cannot_be_used_are_named(clip_folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "texts.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"texts\.yaml"):
        ClipZeroShot(str(clip_folder), prompts=tmp_path / "texts.yaml")


def test_a_prompt_that_would_be_cut_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    long = "fog " * 76
    (tmp_path / "texts.yaml").write_text(
        f"version: 1\ncategories: {{fog: {{positive: [{long}], negative: [clear]}}}}\n"
    )
    with pytest.raises(ValueError, match="does not fit into 77 tokens"):
        ClipZeroShot(str(clip_folder), prompts=tmp_path / "texts.yaml")


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _no_weights(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()


def _no_config(folder: Path) -> None:
    (folder / "open_clip_config.json").unlink()


def _one_weight_less(folder: Path) -> None:
    drop_weight(folder, "open_clip_model.safetensors", "visual.proj")


def _no_tensors(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").write_bytes(b"not weights")


@pytest.mark.parametrize("harm", [_no_folder, _no_weights, _no_config, _one_weight_less, _no_tensors])
def test_a_clip_folder_that_lacks_something_is_refused(
    clip_folder: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    copy = tmp_path / "clip"
    shutil.copytree(clip_folder, copy)
    harm(copy)
    with pytest.raises(ValueError, match="clip"):
        ClipZeroShot(str(copy))


@pytest.mark.parametrize("name", [None, "hf-hub:some/model", "no-such-architecture", "ViT-B-16-SigLIP"])
def test_a_clip_checkpoint_needs_an_architecture_that_works_offline(clip_folder: Path, name: str | None) -> None:
    with pytest.raises(ValueError, match=r"architecture|vocabulary"):
        ClipZeroShot(str(clip_folder / "open_clip_model.safetensors"), model_name=name)


def test_a_clip_folder_takes_nothing_that_goes_with_a_checkpoint(clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint alone"):
        ClipZeroShot(str(clip_folder), model_name="ViT-B-32")


# OWLv2


def test_watermarks_are_those_of_the_library(owl_folder: Path) -> None:
    scorer = Owlv2Watermarks(str(owl_folder), least_score=0.01)
    processor = transformers.Owlv2Processor.from_pretrained(str(owl_folder))
    model = transformers.Owlv2ForObjectDetection.from_pretrained(str(owl_folder)).eval()
    for pixels in PHOTOS:
        height, width = pixels.shape[:2]
        inputs = processor(images=[PILImage.fromarray(pixels)], text=[list(QUERIES)], return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        (expected,) = processor.post_process_grounded_object_detection(outputs, 0.0, [(height, width)])
        boxes = expected["boxes"].numpy().clip(0, [width, height, width, height])
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        found = scorer.detect(pixels, 0.0)
        assert len(found) == kept.sum() > 0
        assert [find.score for find in found] == sorted(expected["scores"].numpy()[kept].tolist(), reverse=True)
        assert sorted(find.query for find in found) == sorted(QUERIES[i] for i in expected["labels"].numpy()[kept])
        np.testing.assert_allclose(
            np.sort([find[2:] for find in found], 0), np.sort(boxes[kept], 0), rtol=1e-6, atol=1e-3
        )
        values = scorer.measure(pixels)
        assert values["watermark"] == found[0].score
        covered = np.zeros((height, width), bool)
        for _, score, left, top, right, bottom in found:
            if score >= 0.01:
                covered[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = True
        assert values["watermark_area"] == pytest.approx(covered.mean(), abs=0.02)


def test_no_find_is_no_watermark(owl_folder: Path) -> None:
    values = Owlv2Watermarks(str(owl_folder), least_score=0.999).measure(PHOTOS[0])
    assert values["watermark_area"] == 0.0 and 0 <= values["watermark"] < 1


def test_watermark_revision_names_queries_and_threshold(owl_folder: Path) -> None:
    made = [
        Owlv2Watermarks(str(owl_folder)),
        Owlv2Watermarks(str(owl_folder), queries=("a logo",)),
        Owlv2Watermarks(str(owl_folder), least_score=0.3),
    ]
    assert len({scorer.revision for scorer in made}) == 3


def test_a_query_that_would_be_cut_is_refused(owl_folder: Path) -> None:
    with pytest.raises(ValueError, match="the model reads 16"):
        Owlv2Watermarks(str(owl_folder), queries=("a very long query " * 5,))
    with pytest.raises(ValueError, match="0 queries"):
        Owlv2Watermarks(str(owl_folder), queries=())


def test_an_owl_folder_that_lacks_something_is_refused(owl_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder of a model"):
        Owlv2Watermarks(str(tmp_path / "nothing"))
    copy = tmp_path / "owl"
    shutil.copytree(owl_folder, copy)
    drop_weight(copy, "model.safetensors", "class_head.dense0.weight")
    with pytest.raises(ValueError, match="lacks 1 weights"):
        Owlv2Watermarks(str(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        Owlv2Watermarks(str(copy))


# timm


def direct_timm(folder: Path, pixels: Pixels) -> Any:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        return model(transform(PILImage.fromarray(pixels))[None])[0].double()


@pytest.mark.parametrize("several", [False, True])
def test_labels_are_scored_as_by_the_library(timm_folder: Path, several: bool) -> None:
    scorer = TimmClassifier(str(timm_folder), several=several)
    for pixels in PHOTOS:
        logits = direct_timm(timm_folder, pixels)
        expected = logits.sigmoid() if several else logits.softmax(0)
        assert scorer.measure(pixels) == dict(zip(LABELS, expected.tolist(), strict=True))


def test_the_folder_says_size_mean_and_deviation(timm_folder: Path) -> None:
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{timm_folder}", pretrained=True))
    assert list(config["input_size"]) == [3, 64, 64] and list(config["mean"]) == [0.4, 0.4, 0.4]


def test_a_checkpoint_gives_the_same_network(timm_folder: Path) -> None:
    file = str(timm_folder / "model.safetensors")
    scorer = TimmClassifier(file, model_name="resnet10t", labels=LABELS)
    model = timm.create_model("resnet10t", num_classes=3, checkpoint_path=file).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        expected = model(transform(PILImage.fromarray(PHOTOS[0]))[None])[0].double().softmax(0)
    assert list(scorer.measure(PHOTOS[0]).values()) == expected.tolist()


def test_labels_must_match_the_outputs(timm_folder: Path) -> None:
    with pytest.raises(ValueError, match="2 labels"):
        TimmClassifier(str(timm_folder), labels=("a", "b"))
    with pytest.raises(ValueError, match="each needs its own"):
        TimmClassifier(str(timm_folder), labels=("a", "b", "a"))
    with pytest.raises(ValueError, match="needs the labels"):
        TimmClassifier(str(timm_folder / "model.safetensors"), model_name="resnet10t")
    with pytest.raises(ValueError, match="architecture"):
        TimmClassifier(str(timm_folder / "model.safetensors"), labels=LABELS)


def test_a_timm_folder_that_lacks_something_is_refused(timm_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "timm"
    shutil.copytree(timm_folder, copy)
    drop_weight(copy, "model.safetensors", "fc.weight")
    with pytest.raises(ValueError, match=r"fc\.weight"):
        TimmClassifier(str(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        TimmClassifier(str(copy))


# all


def test_no_scorer_reaches_for_the_network(clip_folder: Path, owl_folder: Path, timm_folder: Path) -> None:
    """In a process where every connection is an error, and where nothing has been cached."""
    script = """
import socket, sys
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from filters.clip import ClipZeroShot
from filters.watermark import Owlv2Watermarks
from filters.classifier import TimmClassifier
clip, owl, classifier = sys.argv[1:]
for scorer in (ClipZeroShot(clip), Owlv2Watermarks(owl), TimmClassifier(classifier)):
    values = scorer.measure(np.full((40, 60, 3), 90, np.uint8))
    assert values and all(np.isfinite(value) for value in values.values()), values
"""
    folders = [str(folder) for folder in (clip_folder, owl_folder, timm_folder)]
    environment = {**os.environ, "HF_HOME": str(clip_folder / "empty"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
