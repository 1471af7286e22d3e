"""NAFNet: a U-Net of convolutions and products, without activation functions.

Chen, Chu, Zhang and Sun, "Simple Baselines for Image Restoration", ECCV 2022, written from the paper's equations.
Deviations: the network starts as identity (see `PaddedResidual`), and sides are padded by repeating the edge, where the
authors' code pads with zeros. The local pooling at test time of their later work (Chu et al., ECCV 2022) is not here:
channel attention pools over all it gets, so pictures much larger than the training crops should be restored in tiles.
"""

# mypy: allow-subclassing-any

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pairforge.records import Frozen
from training.models.layers import ChannelNorm, PaddedResidual, conv, zero_conv

BlockCount = Annotated[int, Field(ge=0, le=100)]


class NAFNetConfig(Frozen):
    """`width` is the number of channels at full size, doubled at each halving. Blocks are counted from the outside in
    for the encoder, from the inside out for the decoder."""

    kind: Literal["nafnet"] = "nafnet"
    width: int = Field(ge=2, le=512, multiple_of=2)
    encoder_blocks: tuple[BlockCount, ...] = Field(min_length=1, max_length=6)
    middle_blocks: BlockCount
    decoder_blocks: tuple[BlockCount, ...]

    @model_validator(mode="after")
    def _levels_match(self) -> Self:
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ValueError(
                f"encoder_blocks {self.encoder_blocks} and decoder_blocks {self.decoder_blocks} differ in length"
            )
        return self


class SimpleGate(nn.Module):
    """One half of the channels times the other half."""

    def forward(self, features: Tensor) -> Tensor:
        first, second = features.chunk(2, dim=1)
        return first * second


class ChannelAttention(nn.Module):
    """Simplified channel attention: channels scaled by a linear map of their means, with no nonlinearity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = conv(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return features * self.linear(features.mean((2, 3), keepdim=True))


class NAFBlock(nn.Module):
    """A spatial and a pointwise branch, each behind a norm. Their scales start at 0, so the block is identity then."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.spatial = nn.Sequential(
            ChannelNorm(channels, eps=1e-6),
            conv(channels, wide, 1),
            conv(wide, wide, 3, groups=wide),
            SimpleGate(),
            ChannelAttention(channels),
            conv(channels, channels, 1),
        )
        self.pointwise = nn.Sequential(
            ChannelNorm(channels, eps=1e-6), conv(channels, wide, 1), SimpleGate(), conv(channels, channels, 1)
        )
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.beta * self.spatial(features)
        return features + self.gamma * self.pointwise(features)


class NAFNet(PaddedResidual):
    def __init__(self, config: NAFNetConfig) -> None:
        super().__init__()
        widths = [config.width * 2**level for level in range(len(config.encoder_blocks) + 1)]
        self.multiple_px = 2 ** len(config.encoder_blocks)
        self.intro = conv(3, widths[0], 3)
        self.encoders = nn.ModuleList(map(_blocks, widths[:-1], config.encoder_blocks))
        self.downs = nn.ModuleList(nn.Conv2d(width, 2 * width, 2, stride=2) for width in widths[:-1])
        self.middle = _blocks(widths[-1], config.middle_blocks)
        self.ups = nn.ModuleList(
            nn.Sequential(conv(width, 2 * width, 1, bias=False), nn.PixelShuffle(2)) for width in widths[:0:-1]
        )
        self.decoders = nn.ModuleList(map(_blocks, widths[-2::-1], config.decoder_blocks))
        self.ending = zero_conv(widths[0], 3, 3)

    def correction(self, image: Tensor) -> Tensor:
        features = self.intro(image)
        skips: list[Tensor] = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            skips.append(encoder(features))
            features = down(skips[-1])
        features = self.middle(features)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            features = decoder(up(features) + skips.pop())
        return self.ending(features)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(count)))
