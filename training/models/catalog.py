"""The networks by name, and what they cost."""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.models.nafnet import NAFNet, NAFNetConfig
from training.models.restormer import Restormer, RestormerConfig

ModelConfig = Annotated[NAFNetConfig | RestormerConfig, Field(discriminator="kind")]

_GOPRO = {"encoder_blocks": (1, 1, 1, 28), "middle_blocks": 1, "decoder_blocks": (1, 1, 1, 1)}
_SIDD = {"encoder_blocks": (2, 2, 4, 8), "middle_blocks": 12, "decoder_blocks": (2, 2, 2, 2)}
_RESTORMER = {
    "width": 48,
    "blocks": (4, 6, 6, 8),
    "refinement_blocks": 4,
    "heads": (1, 2, 4, 8),
    "expansion": 2.66,
}

MODELS: Mapping[str, NAFNetConfig | RestormerConfig] = {
    "nafnet_tiny": NAFNetConfig(width=16, encoder_blocks=(1, 1, 2), middle_blocks=1, decoder_blocks=(1, 1, 1)),
    "nafnet32": NAFNetConfig(width=32, **_GOPRO),
    "nafnet64": NAFNetConfig(width=64, **_GOPRO),
    "nafnet32_sidd": NAFNetConfig(width=32, **_SIDD),
    "nafnet64_sidd": NAFNetConfig(width=64, **_SIDD),
    "restormer_tiny": RestormerConfig(width=16, blocks=(1, 1, 2), refinement_blocks=1, heads=(1, 2, 4), expansion=2.0),
    "restormer": RestormerConfig(**_RESTORMER),
    "restormer_bias_free": RestormerConfig(**_RESTORMER, bias_free=True),
}
"""Sizes of the papers: NAFNet for GoPro (deblurring) where no data set is named and for SIDD (denoising), Restormer for
all its tasks, without bias for denoising. The tiny ones are for computers without a GPU."""


def build_model(model: str | NAFNetConfig | RestormerConfig) -> nn.Module:
    """With new weights, drawn from torch's global generator. Raises ValueError for a name that is not known."""
    if isinstance(model, str):
        if model not in MODELS:
            raise ValueError(f"no model is named {model!r}; known are {', '.join(MODELS)}")
        model = MODELS[model]
    return NAFNet(model) if isinstance(model, NAFNetConfig) else Restormer(model)


def count_parameters(model: nn.Module) -> int:
    return sum(weights.numel() for weights in model.parameters())


class Macs(NamedTuple):
    """Multiply-accumulates; norms, gates and sums are not counted. Two FLOPs each as hardware is rated, one as most
    restoration papers count, many of which leave the matrix products of attention out."""

    convolutions: int
    products: int


def count_macs(model: str | NAFNetConfig | RestormerConfig, height_px: int = 256, width_px: int = 256) -> Macs:
    """Of one image. Nothing is computed and no memory taken for it."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build_model(model)(torch.zeros(1, 3, height_px, width_px))
    counts = {str(operation): int(flops) // 2 for operation, flops in counter.get_flop_counts()["Global"].items()}
    convolutions = counts.pop("aten.convolution", 0)
    return Macs(convolutions, sum(counts.values()))
