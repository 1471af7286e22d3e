"""Tiny networks with random weights, saved as real ones are: what a folder or a checkpoint holds, and nothing more."""

import json
from pathlib import Path
from typing import Any

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
PREPROCESSING = {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}


def tiny_clip(folder: Path, seed: int = 0) -> Any:
    """Saves a CLIP as open_clip's folders have it, and gives the model."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = open_clip.CLIP(**CLIP_CONFIG).eval()
    folder.mkdir(exist_ok=True)
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return model


def tiny_owlv2(folder: Path, seed: int = 0) -> None:
    """Saves an OWLv2 and its processor with the vocabulary of CLIP, which ships inside open_clip."""
    import torch
    import transformers
    from open_clip.tokenizer import SimpleTokenizer

    torch.manual_seed(seed)
    source = SimpleTokenizer()
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(piece, piece): index for piece, index in source.encoder.items()}
    merges = [" ".join(pair) for pair in source.bpe_ranks]
    tokenizer = transformers.CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(pair.split(" ")) for pair in merges], pad_token="!", model_max_length=16
    )
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Owlv2Config(
        text_config={**sizes, "vocab_size": 49408, "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 96, "patch_size": 16},
        projection_dim=32,
    )
    model = transformers.Owlv2ForObjectDetection(config)
    with torch.no_grad():  # as they come, heads are so strong that every box is a line and every score 0 or 1
        for head, factor in ((model.box_head, 0.05), (model.class_head, 0.1)):
            for parameter in head.parameters():
                parameter.mul_(factor)
    model.save_pretrained(folder)
    images = transformers.Owlv2ImageProcessor(size={"height": 96, "width": 96})
    transformers.Owlv2Processor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)


def tiny_timm(folder: Path, labels: tuple[str, ...], seed: int = 0) -> Any:
    """Saves a classifier as timm's folders have it, and gives the model."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = timm.create_model("resnet10t", num_classes=len(labels)).eval()
    folder.mkdir(exist_ok=True)
    config = {
        "architecture": "resnet10t",
        "num_classes": len(labels),
        "num_features": model.num_features,
        "label_names": list(labels),
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "mean": [0.4, 0.4, 0.4],
            "std": [0.3, 0.3, 0.3],
            "interpolation": "bilinear",
            "crop_pct": 0.9,
            "first_conv": "conv1.0",
            "classifier": "fc",
            "num_classes": len(labels),
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    return model


def drop_weight(folder: Path, name: str, weight: str) -> None:
    """Takes one weight out of a file of a folder."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / name)
    del weights[weight]
    save_file(weights, folder / name, metadata={"format": "pt"})
