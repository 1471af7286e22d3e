"""Restormer: a U-Net of transformer blocks whose attention is between channels, so its cost is linear in pixels.

Zamir, Arora, Khan, Hayat, Khan and Yang, "Restormer: Efficient Transformer for High-Resolution Image Restoration",
CVPR 2022, written from the paper. Deviations: the network starts as identity (see `PaddedResidual`), and sides are
padded by repeating the edge, where the authors' scripts reflect.
"""

# mypy: allow-subclassing-any

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pairforge.records import Frozen
from training.models.layers import ChannelNorm, PaddedResidual, conv, zero_conv

Count = Annotated[int, Field(ge=1, le=100)]


class RestormerConfig(Frozen):
    """`width` is the number of channels at full size, doubled at each halving. `blocks` and `heads` are counted from
    full size to the smallest; decoders have as many as encoders. `bias_free` is about the norms (see `ChannelNorm`):
    the paper has it for denoising; convolutions never have a bias."""

    kind: Literal["restormer"] = "restormer"
    width: int = Field(ge=2, le=512, multiple_of=2)
    blocks: tuple[Count, ...] = Field(min_length=2, max_length=6)
    refinement_blocks: int = Field(ge=0, le=100)
    heads: tuple[Count, ...]
    expansion: float = Field(gt=0, le=8)
    bias_free: bool = False

    @model_validator(mode="after")
    def _levels_match(self) -> Self:
        if len(self.blocks) != len(self.heads):
            raise ValueError(f"blocks {self.blocks} and heads {self.heads} differ in length")
        for level, heads in enumerate(self.heads):
            if self.width * 2**level % heads:
                raise ValueError(f"{self.width * 2**level} channels of level {level} cannot be shared by {heads} heads")
        return self


class ChannelwiseAttention(nn.Module):
    """MDTA: attention between the channels of a head, over all pixels, with a learned temperature.

    Queries, keys and values see their 3x3 neighbourhood; queries and keys are normalised over the pixels. The
    temperature multiplies, as in the authors' code; in the paper it divides.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Sequential(
            conv(channels, 3 * channels, 1, bias=False),
            conv(3 * channels, 3 * channels, 3, groups=3 * channels, bias=False),
        )
        self.out = conv(channels, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        count, channels, height, width = features.shape
        shape = (count, self.heads, channels // self.heads, height * width)
        query, key, value = (part.reshape(shape) for part in self.qkv(features).chunk(3, dim=1))
        similar = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).transpose(-2, -1)
        mixed = (similar * self.temperature).softmax(dim=-1) @ value
        return self.out(mixed.reshape(features.shape))


class GatedFeedForward(nn.Module):
    """GDFN: pointwise, then depthwise; one half, through a GELU, gates the other."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.widen = nn.Sequential(
            conv(channels, 2 * hidden, 1, bias=False),
            conv(2 * hidden, 2 * hidden, 3, groups=2 * hidden, bias=False),
        )
        self.out = conv(hidden, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        gate, gated = self.widen(features).chunk(2, dim=1)
        return self.out(functional.gelu(gate) * gated)


class RestormerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, config: RestormerConfig) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            ChannelNorm(channels, eps=1e-5, bias_free=config.bias_free), ChannelwiseAttention(channels, heads)
        )
        self.feed_forward = nn.Sequential(
            ChannelNorm(channels, eps=1e-5, bias_free=config.bias_free), GatedFeedForward(channels, config.expansion)
        )

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.attention(features)
        return features + self.feed_forward(features)


class Restormer(PaddedResidual):
    """At full size the decoder keeps both halves, its own and the encoder's, so it is twice as wide there."""

    def __init__(self, config: RestormerConfig) -> None:
        super().__init__()
        levels = len(config.blocks)
        widths = [config.width * 2**level for level in range(levels)]
        self.multiple_px = 2 ** (levels - 1)

        def blocks(channels: int, level: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(RestormerBlock(channels, config.heads[level], config) for _ in range(count)))

        self.embedding = conv(3, widths[0], 3, bias=False)
        self.encoders = nn.ModuleList(map(blocks, widths, range(levels), config.blocks))
        self.downs = nn.ModuleList(
            nn.Sequential(conv(width, width // 2, 3, bias=False), nn.PixelUnshuffle(2)) for width in widths[:-1]
        )
        inwards = range(levels - 2, -1, -1)
        self.ups = nn.ModuleList(
            nn.Sequential(conv(width, 2 * width, 3, bias=False), nn.PixelShuffle(2)) for width in widths[:0:-1]
        )
        self.merges = nn.ModuleList(
            conv(2 * widths[level], widths[level], 1, bias=False) if level else nn.Identity() for level in inwards
        )
        self.decoders = nn.ModuleList(
            blocks(widths[level] if level else 2 * widths[0], level, config.blocks[level]) for level in inwards
        )
        self.refinement = blocks(2 * widths[0], 0, config.refinement_blocks)
        self.ending = zero_conv(2 * widths[0], 3, 3, bias=False)

    def correction(self, image: Tensor) -> Tensor:
        features = self.encoders[0](self.embedding(image))
        skips: list[Tensor] = []
        for down, encoder in zip(self.downs, self.encoders[1:], strict=True):
            skips.append(features)
            features = encoder(down(features))
        for up, merge, decoder in zip(self.ups, self.merges, self.decoders, strict=True):
            features = decoder(merge(torch.cat([up(features), skips.pop()], dim=1)))
        return self.ending(self.refinement(features))
