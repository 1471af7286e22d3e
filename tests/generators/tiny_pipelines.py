"""Tiny editing pipelines with random weights, saved as real ones are. Each function fills a folder."""

from pathlib import Path
from typing import Any

SPECIAL = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"


def byte_characters() -> list[str]:
    """The 256 characters that byte-level tokenizers write bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def _qwen_tokenizer() -> Any:
    import transformers

    return transformers.Qwen2Tokenizer(
        vocab={character: index for index, character in enumerate(byte_characters())},
        merges=[],
        extra_special_tokens=[f"<|{name}|>" for name in SPECIAL],
        chat_template=CHAT_TEMPLATE,
    )


def _scheduler() -> Any:
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def tiny_kontext(folder: Path) -> None:
    import diffusers
    import torch
    import transformers

    torch.manual_seed(1)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    t5 = transformers.T5Tokenizer(vocab=pieces + [(letter, -3.0) for letter in letters], extra_ids=0)
    words = [*byte_characters(), *(f"{character}</w>" for character in byte_characters())]
    words += ["<|startoftext|>", "<|endoftext|>"]
    clip = transformers.CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=77
    )
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip_config = transformers.CLIPTextConfig(
        **sizes, vocab_size=len(words), max_position_embeddings=77, eos_token_id=len(words) - 1, projection_dim=32
    )
    t5_config = transformers.T5Config(vocab_size=len(t5), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=2)
    diffusers.FluxKontextPipeline(
        scheduler=_scheduler(),
        vae=diffusers.AutoencoderKL(
            **_vae_blocks(4), latent_channels=4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0
        ),
        text_encoder=transformers.CLIPTextModel(clip_config),
        tokenizer=clip,
        text_encoder_2=transformers.T5EncoderModel(t5_config),
        tokenizer_2=t5,
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
    ).save_pretrained(folder)


def tiny_klein(folder: Path, is_distilled: bool = False) -> None:
    import diffusers
    import torch
    import transformers

    torch.manual_seed(2)
    tokenizer = _qwen_tokenizer()
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=28,  # the pipeline reads layers 9, 18 and 27
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    diffusers.Flux2KleinPipeline(
        scheduler=_scheduler(),
        vae=diffusers.AutoencoderKLFlux2(**_vae_blocks(4), latent_channels=4),
        text_encoder=transformers.Qwen3ForCausalLM(config),
        tokenizer=tokenizer,
        transformer=_flux2_transformer(3 * 16),
        is_distilled=is_distilled,
    ).save_pretrained(folder)


def tiny_flux2(folder: Path) -> None:
    import diffusers
    import torch
    import transformers

    torch.manual_seed(4)
    pieces = [*byte_characters(), "<s>", "</s>", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        unk_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=pieces[-3:],
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
    config = transformers.Mistral3Config(
        # the pipeline reads layers 10, 20 and 30
        text_config=transformers.MistralConfig(
            **sizes, vocab_size=len(tokenizer), num_hidden_layers=31, num_key_value_heads=2
        ),
        vision_config=transformers.PixtralVisionConfig(**sizes, num_hidden_layers=1, image_size=28, patch_size=14),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    template = "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"
    diffusers.Flux2Pipeline(
        scheduler=_scheduler(),
        vae=diffusers.AutoencoderKLFlux2(**_vae_blocks(4), latent_channels=4),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=transformers.PixtralProcessor(
            image_processor=transformers.PixtralImageProcessor(),
            tokenizer=tokenizer,
            patch_size=14,
            chat_template=template,
        ),
        transformer=_flux2_transformer(3 * 16, guidance_embeds=True),
    ).save_pretrained(folder)


def tiny_qwen_edit(folder: Path, plus: bool = True) -> None:
    import diffusers
    import torch
    import transformers

    torch.manual_seed(3)
    tokenizer = _qwen_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in SPECIAL}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    kind = diffusers.QwenImageEditPlusPipeline if plus else diffusers.QwenImageEditPipeline
    kind(
        scheduler=_scheduler(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        ),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        processor=transformers.Qwen2VLProcessor(
            image_processor=transformers.Qwen2VLImageProcessor(),
            tokenizer=tokenizer,
            video_processor=transformers.Qwen2VLVideoProcessor(),
        ),
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
            **({"zero_cond_t": True} if plus else {}),
        ),
    ).save_pretrained(folder)


def _vae_blocks(count: int) -> dict[str, Any]:
    """Blocks that reduce by 2 ** (count - 1), which is 8 in real ones."""
    return {
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "block_out_channels": (8,) * count,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 32,
    }


def _flux2_transformer(joint_attention_dim: int, guidance_embeds: bool = False) -> Any:
    import diffusers

    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=joint_attention_dim,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
