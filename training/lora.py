"""Fine-tuning an image editing network with low-rank adapters (Hu et al., LoRA, ICLR 2022): LQ as its condition, HQ as
what it should make, rectified flow as the loss (see `training.losses`).

Pipelines are those of the `diffusers` library, loaded by the caller. torch, diffusers and peft are imported inside
functions.

    add_lora(pipeline, LoraConfig(rank=8))
    pair = encode_pair(pipeline, lq, hq, "remove the rain")    # once a pair: what encodes is frozen
    loss = edit_loss(pipeline, pair, noise, times)             # then backward, and an optimiser over lora_weights
    save_lora(pipeline, folder)                                # any diffusers pipeline loads it

One pair at a time: QwenImageEditPlus takes one, and a batch is the mean over several losses. A large network needs
`pipeline.transformer.enable_gradient_checkpointing()`; its encoders can leave the GPU once all pairs are encoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from pydantic import Field

from pairforge.image import Pixels
from pairforge.records import Frozen

ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""Projections of the picture's tokens, and of the text's where those have their own (double-stream blocks)."""
PIPELINES = ("FluxKontextPipeline", "QwenImageEditPlusPipeline")
_STACKS = ("transformer_blocks", "single_transformer_blocks")
_ADAPTER = "default"  # the name that the library's own writer of adapters expects
_GUIDANCE = 1.0
"""What networks distilled for guidance are told while they learn, as in diffusers' own training of them."""
_LAST_UNUSED = ("attn.add_q_proj", "attn.to_add_out")
"""The last block's text is thrown away: adapters that only change it would get no gradient, which DDP refuses."""


class LoraConfig(Frozen):
    """`targets` end the names of linear layers. In each stack of blocks the first `freeze_first_frac`, rounded down,
    get no adapters. Adapters count in full (alpha = rank), so rates of learning need not follow the rank."""

    rank: int = Field(ge=1, le=512)
    targets: tuple[str, ...] = Field(ATTENTION, min_length=1)
    freeze_first_frac: float = Field(0.0, ge=0, lt=1)
    seed: int = 0


@dataclass(frozen=True)
class EncodedPair:
    """Packed latents (1, tokens, channels) of both pictures, and further arguments of the transformer."""

    clean: Any
    condition: Any
    arguments: Mapping[str, Any]


def add_lora(pipeline: Any, config: LoraConfig) -> list[str]:
    """Freeze all networks of a pipeline and give its transformer adapters in float32; names of the layers they are at.

    They start as identity: until it is trained the pipeline makes what it made. Raises ValueError for a pipeline of
    another class and for targets that no block has.
    """
    import peft
    import torch

    kind = type(pipeline).__name__
    if kind not in PIPELINES:
        raise ValueError(f"{kind} cannot be fine-tuned here; supported are {', '.join(PIPELINES)}")
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    names = _target_layers(pipeline.transformer, config)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        pipeline.transformer.add_adapter(
            peft.LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=names), adapter_name=_ADAPTER
        )
    for weights in lora_weights(pipeline):
        weights.data = weights.data.float()
    return names


def _target_layers(transformer: Any, config: LoraConfig) -> list[str]:
    import torch

    endings = tuple(f".{target}" for target in config.targets)
    found: list[str] = []
    last = ""
    for stack in _STACKS:
        blocks = getattr(transformer, stack, ())
        for number, block in enumerate(blocks):
            last = f"{stack}.{number}"
            if number >= int(len(blocks) * config.freeze_first_frac):
                layers = [inner for inner, layer in block.named_modules() if isinstance(layer, torch.nn.Linear)]
                found += [f"{last}.{inner}" for inner in layers if f".{inner}".endswith(endings)]
    unused = {f"{last}.{inner}" for inner in _LAST_UNUSED}
    found = [name for name in found if name not in unused]
    if not found:
        raise ValueError(f"no linear layer of {type(transformer).__name__} ends in {', '.join(config.targets)}")
    return found


def lora_weights(pipeline: Any) -> list[Any]:
    """What is trained: the parameters of the adapters."""
    return [weights for weights in pipeline.transformer.parameters() if weights.requires_grad]


def encode_pair(pipeline: Any, lq: Pixels, hq: Pixels, instruction: str) -> EncodedPair:
    """Latents and text features of a pair, both pictures at their own size, with no gradient.

    QwenImageEditPlus conditions on pictures of about one megapixel when it is used, so pairs of about that size
    are what it will meet. Raises ValueError for sizes that differ or are not multiples of the patch (16 pixels).
    """
    import torch

    height, width = lq.shape[:2]
    multiple_px = 2 * pipeline.vae_scale_factor
    if lq.shape != hq.shape or height % multiple_px or width % multiple_px:
        raise ValueError(
            f"LQ is {width}x{height} and HQ {hq.shape[1]}x{hq.shape[0]}; "
            f"sizes must be equal and multiples of {multiple_px}"
        )
    encode = _encode_kontext if type(pipeline).__name__ == "FluxKontextPipeline" else _encode_qwen
    with torch.no_grad():
        return encode(pipeline, PILImage.fromarray(lq), PILImage.fromarray(hq), instruction)


def _encode_kontext(pipeline: Any, lq: PILImage.Image, hq: PILImage.Image, instruction: str) -> EncodedPair:
    import torch

    network = pipeline.transformer
    text, pooled, text_ids = pipeline.encode_prompt(prompt=instruction, prompt_2=None, device=network.device)
    arguments = {"encoder_hidden_states": text, "pooled_projections": pooled, "txt_ids": text_ids}
    if network.config.guidance_embeds:
        arguments["guidance"] = torch.full([1], _GUIDANCE, device=network.device)
    _, condition, ids, condition_ids = _latents(pipeline, lq)
    _, clean, _, _ = _latents(pipeline, hq)
    return EncodedPair(clean, condition, {**arguments, "img_ids": torch.cat([ids, condition_ids])})


def _encode_qwen(pipeline: Any, lq: PILImage.Image, hq: PILImage.Image, instruction: str) -> EncodedPair:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as library

    seen = library.calculate_dimensions(library.CONDITION_IMAGE_SIZE, lq.width / lq.height)
    text, mask = pipeline.encode_prompt(
        prompt=instruction,
        image=[pipeline.image_processor.resize(lq, seen[1], seen[0])],
        device=pipeline.transformer.device,
    )
    patches = (1, lq.height // pipeline.vae_scale_factor // 2, lq.width // pipeline.vae_scale_factor // 2)
    _, condition = _latents(pipeline, lq, frames=True)
    _, clean = _latents(pipeline, hq, frames=True)
    return EncodedPair(
        clean,
        condition,
        {"encoder_hidden_states": text, "encoder_hidden_states_mask": mask, "img_shapes": [[patches, patches]]},
    )


def _latents(pipeline: Any, picture: PILImage.Image, frames: bool = False) -> Any:
    """What the pipeline prepares: noise, which is not used here, latents of the picture, and ids where it has them."""
    network = pipeline.transformer
    values = pipeline.image_processor.preprocess(picture, picture.height, picture.width)
    return pipeline.prepare_latents(
        values[:, :, None] if frames else values,
        1,
        network.config.in_channels // 4,
        picture.height,
        picture.width,
        pipeline.vae.dtype,
        network.device,
        None,
    )


def edit_loss(pipeline: Any, pair: EncodedPair, noise: Any, times: Any) -> Any:
    """Flow-matching loss of the transformer for one pair, `noise` like `pair.clean`, `times` (1,) in 0..1.

    The network sees the noised HQ followed by LQ; what it says of LQ's tokens is left out.
    """
    import torch

    from training.losses import flow_matching_loss, noised

    network = pipeline.transformer
    tokens = torch.cat([noised(pair.clean, noise, times), pair.condition], dim=1).to(network.dtype)
    velocity = network(hidden_states=tokens, timestep=times.to(network.dtype), return_dict=False, **pair.arguments)[0][
        :, : pair.clean.shape[1]
    ]
    return flow_matching_loss(velocity, pair.clean, noise)


def save_lora(pipeline: Any, folder: Path) -> Path:
    """Write the adapters as safetensors, in the library's own format: `pipeline.load_lora_weights(folder)` reads it."""
    import peft

    adapters = peft.get_peft_model_state_dict(pipeline.transformer, adapter_name=_ADAPTER)
    pipeline.save_lora_weights(folder, transformer_lora_layers=adapters)
    return folder / "pytorch_lora_weights.safetensors"
