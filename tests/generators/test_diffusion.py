"""Editing networks through the real loading code: tiny pipelines with random weights, saved to folders.

What they make is noise, so pixels are compared with a direct call of the library; that nothing moves between input
and output is shown with a stand-in that gives back what it is shown.
"""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from generators.diffusion import (
    PIPELINES,
    DiffusersGenerator,
    Flux2Settings,
    KontextSettings,
    QwenEditSettings,
    pipeline_hash,
)
from generators.returned import fit_candidate
from pairforge.image import Pixels, decode_png, to_pixels
from pairforge.protocols import BackendError, Candidate, Generator, Trouble
from pairforge.remote_base import BackendMisconfigured
from tests.generators.tiny_pipelines import tiny_flux2, tiny_klein, tiny_kontext, tiny_qwen_edit

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SMALL = {"most_pixels": 128 * 128, "least_pixels": 64 * 64, "multiple_px": 16, "num_inference_steps": 2}
INSTRUCTION = "remove the rain"
Make = Callable[[Path], None]

FAMILIES: dict[str, tuple[Make, str, dict[str, Any], dict[str, Any]]] = {
    # How a folder is filled, its class, the options that are given, and what they must become for the library.
    "kontext": (
        tiny_kontext,
        "FluxKontextPipeline",
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "max_area": 128 * 96, "_auto_resize": False},
    ),
    "klein": (tiny_klein, "Flux2KleinPipeline", {"guidance_scale": 3.0}, {"guidance_scale": 3.0}),
    "klein distilled": (lambda folder: tiny_klein(folder, True), "Flux2KleinPipeline", {}, {"guidance_scale": 1.0}),
    "flux2": (tiny_flux2, "Flux2Pipeline", {}, {"guidance_scale": 4.0}),
    "qwen edit plus": (
        tiny_qwen_edit,
        "QwenImageEditPlusPipeline",
        {"true_cfg_scale": 3.0, "negative_prompt": "blurry"},
        {"true_cfg_scale": 3.0, "negative_prompt": "blurry"},
    ),
    "qwen edit": (
        lambda folder: tiny_qwen_edit(folder, plus=False),
        "QwenImageEditPipeline",
        {},
        {"true_cfg_scale": 4.0, "negative_prompt": " "},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _small_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Qwen pipelines look at their input at a megapixel; on a CPU that takes half a minute."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

    whole = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _, ratio: whole(64 * 64, ratio))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 64 * 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, filled = tmp_path_factory.mktemp("pipelines"), set[str]()

    def folder(name: str) -> Path:
        if name not in filled:
            FAMILIES[name][0](root / name)
            filled.add(name)
        return root / name

    return folder


@pytest.fixture(scope="module")
def lq(photos: dict[str, Pixels]) -> Pixels:
    return np.ascontiguousarray(photos["astronaut"][100:190, 200:330])  # 130x90


def opened(folder: Path, options: dict[str, Any] | None = None) -> DiffusersGenerator:
    return DiffusersGenerator(str(folder), {**SMALL, **(options or {})}, "cpu", "float32")


# ---------------------------------------------------------------- the true pipelines


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_a_direct_call(family: str, folders: Callable[[str], Path], lq: Pixels) -> None:
    _, kind, options, arguments = FAMILIES[family]
    typed: Generator = (generator := opened(folders(family), options))
    candidate = typed.generate(lq, INSTRUCTION, 3)

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders(family), local_files_only=True)
    assert type(pipeline).__name__ == kind
    shown = PILImage.fromarray(lq).resize((128, 96), PILImage.Resampling.LANCZOS)
    direct = pipeline(
        image=shown,
        prompt=INSTRUCTION,
        width=128,
        height=96,
        num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="np",  # its own pictures round 0.5 to even codes
        **arguments,
    ).images[0]
    direct_pixels = to_pixels(direct)
    assert direct_pixels.shape == (96, 128, 3)
    assert np.array_equal(decode_png(candidate.data), direct_pixels)
    fitted = PILImage.fromarray(direct_pixels).resize((130, 90), PILImage.Resampling.LANCZOS)
    assert np.array_equal(candidate.pixels, np.asarray(fitted))
    assert candidate.pixels.std() > 5, "noise, but no constant"
    assert (candidate.mime, candidate.corrections) == ("image/png", ("resized from 128x96",))
    assert candidate.usage.cost_usd == 0.0 == generator.price_usd

    assert np.array_equal(generator.generate(lq, INSTRUCTION, 3).pixels, candidate.pixels)
    other = generator.generate(lq, INSTRUCTION, 4)
    assert (other.pixels != candidate.pixels).mean() > 0.5, "another seed is another draw"
    assert not np.array_equal(generator.generate(lq, "add snow", 3).pixels, candidate.pixels)
    assert not np.array_equal(generator.generate(255 - lq, INSTRUCTION, 3).pixels, candidate.pixels)
    again = fit_candidate(np.zeros_like(lq), candidate.data, candidate.mime, candidate.usage, generator.rule)
    assert np.array_equal(again.pixels, candidate.pixels)


def test_an_input_of_the_canvas_s_size_is_not_resized(folders: Callable[[str], Path], lq: Pixels) -> None:
    candidate = opened(folders("klein distilled")).generate(np.ascontiguousarray(lq[:80, :128]), INSTRUCTION, 2**70)
    assert candidate.corrections == () and np.array_equal(candidate.pixels, decode_png(candidate.data))


def test_nothing_is_asked_of_the_network(
    folders: Callable[[str], Path], lq: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def refuse(*where: Any, **_: Any) -> None:
        tried.append(where)
        raise OSError("no network in this test")

    families = [(name, folders(name)) for name in FAMILIES]
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for _, folder in families:
        opened(folder).generate(lq, INSTRUCTION, 0)
    with pytest.raises(ValueError, match="no folder of a pipeline at black-forest-labs/FLUX"):
        opened(Path("black-forest-labs/FLUX.1-Kontext-dev"))
    assert not tried


def test_the_revision_names_weights_libraries_and_settings(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders("klein distilled")
    revision = opened(folder).revision
    kind, weights, *libraries, _ = revision.split("-")
    assert kind == "Flux2KleinPipeline" and weights == pipeline_hash(str(folder))
    assert libraries == [f"diffusers{diffusers.__version__}", f"transformers{_version('transformers')}"]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("not a part")
    assert opened(copy).revision == revision
    half = DiffusersGenerator(str(copy), SMALL, "cpu", "bfloat16")
    assert len({revision, opened(copy, {"num_inference_steps": 3}).revision, half.revision}) == 3
    for file in ("scheduler/scheduler_config.json", "transformer/config.json", "tokenizer/tokenizer_config.json"):
        before = pipeline_hash(str(copy))
        (copy / file).write_text((copy / file).read_text() + " ")
        assert pipeline_hash(str(copy)) != before


def _version(library: str) -> str:
    from importlib.metadata import version

    return version(library)


# ---------------------------------------------------------------- folders and options that are wrong


def _index(folder: Path, **changes: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _drop_weight(file: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(file)
    del held[name]
    save_file(held, file, metadata={"format": "pt"})


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _pickle(file: Path) -> None:
    file.unlink()
    torch.save({}, file.with_suffix(".bin"))


VAE, TEXT = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "holds no model_index.json"),
    "cut index": (lambda f: (f / "model_index.json").write_text('{"_class_na'), "holds no model_index.json"),
    "index of a list": (lambda f: (f / "model_index.json").write_text("[]"), "class None"),
    "other class": (
        lambda f: _index(f, _class_name="StableDiffusionPipeline"),
        "'StableDiffusionPipeline'; supported are QwenImageEditPlusPipeline, ",
    ),
    "foreign code": (lambda f: _index(f, vae=["my_vae", "MyVae"]), "vae comes from 'my_vae'"),
    "no part": (lambda f: shutil.rmtree(f / "transformer"), "lacks the folder transformer"),
    "no weights": (lambda f: (f / VAE).unlink(), "vae cannot be loaded"),
    "cut weights": (lambda f: (f / VAE).write_bytes((f / VAE).read_bytes()[:-100]), "vae cannot be loaded"),
    "pickled weights": (lambda f: _pickle(f / VAE), "vae cannot be loaded"),
    "weight gone": (
        lambda f: _drop_weight(f / VAE, "encoder.conv_in.weight"),
        "vae lacks 1 weights of AutoencoderKLFlux2, the first is encoder.conv_in.weight",
    ),
    "weight of the text encoder gone": (
        lambda f: _drop_weight(f / TEXT, "model.norm.weight"),
        "text_encoder lacks 1 weights of Qwen3ForCausalLM",
    ),
    "no vocabulary": (lambda f: _empty(f / "tokenizer"), "its Qwen2Tokenizer reads nothing"),
    "no scheduler": (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_named(how: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders("klein distilled"), copy)
    spoil, says = BROKEN[how]
    spoil(copy)
    with pytest.raises(ValueError, match="copy") as caught:
        opened(copy)
    assert says in str(caught.value)


def test_options_are_those_of_the_family(folders: Callable[[str], Path]) -> None:
    for family, options in (
        ("kontext", {"true_cfg_scale": 2.0}),
        ("klein distilled", {"guidance_scale": 4.0}),
        ("qwen edit plus", {"guidance_scale": 4.0}),
        ("flux2", {"most_pixels": 2 * 1024**2}),
        ("klein", {"least_pixels": 200 * 200}),
        ("klein", {"num_inference_steps": 0}),
        ("klein", {"multiple_px": 24}),
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            opened(folders(family), options)


# ---------------------------------------------------------------- canvas and registration


class Mirror:
    """A pipeline that gives back what it is shown, and remembers how it was asked."""

    def __init__(self, fault: Callable[[Any], Any] = lambda image: image) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fault = fault

    def __call__(self, image: PILImage.Image, **arguments: Any) -> Any:
        self.asked.append(arguments)
        return SimpleNamespace(images=[self.fault(np.asarray(image, np.float32) / 255)])


@pytest.fixture(scope="module")
def generator(folders: Callable[[str], Path]) -> DiffusersGenerator:
    return opened(folders("klein distilled"), {"least_pixels": 64 * 64, "most_pixels": 512 * 512})


def with_mirror(generator: DiffusersGenerator, mirror: Mirror, lq: Pixels) -> Candidate:
    true, generator._pipeline = generator._pipeline, mirror
    try:
        return generator.generate(lq, INSTRUCTION, 0)
    finally:
        generator._pipeline = true


@pytest.mark.parametrize("size", [(403, 303), (512, 480), (200, 131), (640, 100), (57, 90)])
def test_nothing_moves_between_input_and_output(size: tuple[int, int], generator: DiffusersGenerator) -> None:
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    lq = np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, 0 * x], 2).astype(np.uint8)
    candidate = with_mirror(generator, mirror := Mirror(), lq)
    assert candidate.pixels.shape == lq.shape
    [asked] = mirror.asked
    assert asked["width"] % 16 == asked["height"] % 16 == 0 and asked["width"] * asked["height"] <= 512 * 512
    error = (candidate.pixels.astype(float) - lq)[4:-4, 4:-4]
    assert abs(error.mean((0, 1))).max() < 0.5 and abs(error).max() <= 2, "codes; one pixel is 0.4 to 4.5 of them"


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from(sorted({*PIPELINES.values()}, key=str)))
def test_a_canvas_is_near_the_input_and_within_its_limits(width: int, height: int, kind: Any) -> None:
    family = kind()
    across, along = family.canvas(width, height)
    assert across % family.multiple_px == along % family.multiple_px == 0 and min(across, along) >= 16
    if max(width, height) > 8 * min(width, height):
        return
    assert 0.85 * family.least_pixels < across * along <= family.most_pixels
    stretch = (across / width) / (along / height)
    assert abs(np.log(stretch)) < 1.5 * family.multiple_px / min(across, along)
    if family.least_pixels <= width * height <= family.most_pixels:
        assert max(abs(across - width), abs(along - height)) < family.multiple_px
    # What the libraries make of a canvas: Kontext computes it again, Qwen looks at its own.
    if kind is KontextSettings:
        area, aspect = across * along, across / along
        assert (round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)) == (across, along)
    if kind is Flux2Settings:
        assert across * along <= 1024**2, "or it would be reduced and cropped"


def test_qwen_s_canvas_is_the_size_at_which_it_looks() -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

    for width, height in ((512, 512), (1500, 1000), (768, 1024), (1920, 1080)):
        across, along = QwenEditSettings().canvas(width, height)
        looked = calculate_dimensions(1024 * 1024, width / height)
        assert max(abs(across - looked[0]), abs(along - looked[1])) <= 32, (looked, across, along)


# ---------------------------------------------------------------- trouble


def test_an_input_without_a_canvas_is_refused_before_anything_is_computed(generator: DiffusersGenerator) -> None:
    for shape, says in (((2000, 1500, 3), "of its side"), ((40, 400, 3), "longer than 8 to 1")):
        with pytest.raises(BackendError, match=says) as caught:
            with_mirror(generator, mirror := Mirror(), np.zeros(shape, np.uint8))
        assert caught.value.trouble == Trouble.WRONG_SIZE and not mirror.asked


def test_overflow_is_malformed(generator: DiffusersGenerator, lq: Pixels) -> None:
    with pytest.raises(BackendError, match="not finite") as caught:
        with_mirror(generator, Mirror(lambda image: image * np.nan), lq)
    assert caught.value.trouble == Trouble.MALFORMED


def test_too_little_memory_stops_the_run_and_says_what_to_do(generator: DiffusersGenerator, lq: Pixels) -> None:
    def fail(_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40 GiB.\nSecond line")

    with pytest.raises(BackendMisconfigured, match="128x96 needs more memory than cpu has free: lower most_pixels"):
        with_mirror(generator, Mirror(fail), lq)


def test_a_picture_of_another_size_is_a_bug(generator: DiffusersGenerator, lq: Pixels) -> None:
    with pytest.raises(AssertionError):
        with_mirror(generator, Mirror(lambda image: image[:-16]), lq)
