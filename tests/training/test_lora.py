"""Adapters on tiny editing networks with random weights: what they train on, what moves, what is stored."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image as PILImage
from pydantic import ValidationError

from pairforge.image import Pixels
from tests.generators.tiny_pipelines import tiny_klein, tiny_kontext, tiny_qwen_edit
from training.lora import (
    ATTENTION,
    EncodedPair,
    LoraConfig,
    add_lora,
    edit_loss,
    encode_pair,
    lora_weights,
    save_lora,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

from training.losses import draw_times  # noqa: E402

INSTRUCTION = "remove the rain"
WIDTH, HEIGHT = 48, 64


class Family(NamedTuple):
    fill: Any
    kind: str
    arguments: dict[str, Any]


FAMILIES = {
    "kontext": Family(tiny_kontext, "FluxKontextPipeline", {"max_area": WIDTH * HEIGHT, "_auto_resize": False}),
    "qwen": Family(tiny_qwen_edit, "QwenImageEditPlusPipeline", {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, folder in made.items():
        FAMILIES[name].fill(folder)
    return made


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    # It would look at every picture at a megapixel, and show the text encoder one of 384x384.
    library = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus"
    monkeypatch.setattr(f"{library}.VAE_IMAGE_SIZE", WIDTH * HEIGHT)
    monkeypatch.setattr(f"{library}.CONDITION_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(
        f"{library}.calculate_dimensions", lambda area, _: (64, 64) if area == 4096 else (WIDTH, HEIGHT)
    )
    return str(request.param)


def loaded(folders: dict[str, Path], family: str) -> Any:
    pipeline = getattr(diffusers, FAMILIES[family].kind).from_pretrained(folders[family])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pictures() -> tuple[Pixels, Pixels]:
    across = np.linspace(0, 255, WIDTH, dtype=np.uint8)
    hq = np.stack(
        [np.tile(across, (HEIGHT, 1)), np.full((HEIGHT, WIDTH), 90, np.uint8), np.tile(across[::-1], (HEIGHT, 1))], 2
    )
    lq = hq.copy()
    lq[::6] = 250
    return lq, hq


def draws(pair: EncodedPair, count: int) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(pair.clean.shape, generator=generator), draw_times(1, generator)) for _ in range(count)]


def trained(pipeline: Any, pair: EncodedPair, steps: int) -> list[float]:
    optimiser = torch.optim.AdamW(lora_weights(pipeline), lr=1e-2, weight_decay=0.0)
    fixed, losses = draws(pair, 4), []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = torch.stack([edit_loss(pipeline, pair, noise, times) for noise, times in fixed]).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def edited(pipeline: Any, family: str, lq: Pixels, steps: int = 2) -> Pixels:
    result: Pixels = pipeline(
        image=PILImage.fromarray(lq),
        prompt=INSTRUCTION,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
        **FAMILIES[family].arguments,
    ).images[0]
    return result


def test_training_feeds_the_network_what_use_feeds_it(
    folders: dict[str, Path], family: str, pictures: tuple[Pixels, Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order and places of tokens, text, and the scale of time, from a call of the pipeline itself at its first step."""
    pipeline = loaded(folders, family)
    calls: list[dict[str, Any]] = []
    forward = pipeline.transformer.forward

    def listening(**given: Any) -> Any:
        calls.append(given)
        return forward(**given)

    monkeypatch.setattr(pipeline.transformer, "forward", listening)
    edited(pipeline, family, pictures[0], steps=1)
    pair = encode_pair(pipeline, *pictures, INSTRUCTION)
    lq, hq = pictures
    assert torch.equal(pair.clean, encode_pair(pipeline, hq, lq, INSTRUCTION).condition)
    assert not torch.equal(pair.clean, pair.condition)
    noise = calls[0]["hidden_states"][:, : pair.clean.shape[1]]
    edit_loss(pipeline, pair, noise, calls[0]["timestep"])
    used, learned = calls
    assert float(used["timestep"]) == 1.0
    ignored = {"joint_attention_kwargs", "attention_kwargs", "guidance"}
    assert set(used) - ignored == set(learned) - ignored
    for name in set(learned) - ignored:
        if torch.is_tensor(used[name]):
            assert used[name].shape == learned[name].shape and torch.allclose(used[name], learned[name], atol=1e-6), (
                name
            )
        else:
            assert used[name] == learned[name], name


def test_adapters_learn_a_pair_and_nothing_else_moves(
    folders: dict[str, Path], family: str, pictures: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    pipeline = loaded(folders, family)
    untouched = edited(pipeline, family, pictures[0])
    add_lora(pipeline, LoraConfig(rank=4))
    assert np.array_equal(edited(pipeline, family, pictures[0]), untouched)
    pair = encode_pair(pipeline, *pictures, INSTRUCTION)
    assert not pair.clean.requires_grad and pair.clean.shape == pair.condition.shape
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    adapters = {id(weights) for weights in lora_weights(pipeline)}
    frozen = [w for network in networks for w in network.parameters() if id(w) not in adapters]
    assert len(frozen) > len(adapters) and not any(weights.requires_grad for weights in frozen)
    before = [weights.detach().clone() for weights in frozen]
    starts = [weights.detach().clone() for weights in lora_weights(pipeline)]

    losses = trained(pipeline, pair, steps=20)

    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(now, then) for now, then in zip(frozen, before, strict=True))
    assert all(weights.grad is None for weights in frozen)
    assert not any(torch.equal(now, then) for now, then in zip(lora_weights(pipeline), starts, strict=True))

    made = edited(pipeline, family, pictures[0])
    assert not np.allclose(made, untouched, atol=1e-3)
    stored = save_lora(pipeline, tmp_path)
    again = loaded(folders, family)
    again.load_lora_weights(str(stored.parent), weight_name=stored.name, local_files_only=True)
    assert np.array_equal(edited(again, family, pictures[0]), made)


def test_equal_seeds_give_equal_adapters(folders: dict[str, Path]) -> None:
    found: list[Any] = []
    for seed in (1, 1, 2):
        pipeline = loaded(folders, "kontext")
        torch.manual_seed(len(found))
        state = torch.random.get_rng_state()
        add_lora(pipeline, LoraConfig(rank=2, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        found.append(torch.cat([weights.detach().flatten() for weights in lora_weights(pipeline)]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_first_blocks_of_each_stack_can_be_left_alone() -> None:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=8,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = diffusers.FluxKontextPipeline(None, None, None, None, None, None, transformer)
    names = add_lora(pipeline, LoraConfig(rank=2, freeze_first_frac=0.25))
    blocks = {tuple(name.split(".")[:2]) for name in names}
    assert blocks == {("transformer_blocks", str(n)) for n in range(3)} | {
        ("single_transformer_blocks", str(n)) for n in range(2, 8)
    }
    assert len(names) == 3 * len(ATTENTION) + 6 * 3  # single-stream blocks have one set, and no projection out
    trained_names = {name for name, weights in transformer.named_parameters() if weights.requires_grad}
    assert trained_names == {f"{name}.lora_{side}.default.weight" for name in names for side in "AB"}


def test_adapters_of_a_half_precision_network_are_float32(
    folders: dict[str, Path], pictures: tuple[Pixels, Pixels]
) -> None:
    pipeline = loaded(folders, "kontext").to(torch.bfloat16)
    add_lora(pipeline, LoraConfig(rank=2))
    pair = encode_pair(pipeline, *pictures, INSTRUCTION)
    edit_loss(pipeline, pair, *draws(pair, 1)[0]).backward()
    assert {weights.grad.dtype for weights in lora_weights(pipeline)} == {torch.float32}
    assert pipeline.transformer.dtype == pair.clean.dtype == torch.bfloat16


def test_what_cannot_be_trained_is_refused(
    folders: dict[str, Path], pictures: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    lq, hq = pictures
    pipeline = loaded(folders, "kontext")
    with pytest.raises(ValueError, match=r"no linear layer of FluxTransformer2DModel ends in attn\.q"):
        add_lora(pipeline, LoraConfig(rank=2, targets=("attn.q",)))
    for wrong, told in (((lq, hq[:48]), "HQ 48x48"), ((lq[:40], hq[:40]), "LQ is 48x40")):
        with pytest.raises(ValueError, match=told):
            encode_pair(pipeline, *wrong, INSTRUCTION)
    with pytest.raises(ValidationError):
        LoraConfig(rank=0)
    tiny_klein(tmp_path)
    with pytest.raises(ValueError, match="Flux2KleinPipeline cannot be fine-tuned here"):
        add_lora(diffusers.Flux2KleinPipeline.from_pretrained(tmp_path), LoraConfig(rank=2))
