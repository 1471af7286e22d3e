"""What the networks share: normalisation over channels, and padding to sizes that they can halve."""

# mypy: allow-subclassing-any

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChannelNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016) over the channels of each pixel, not over space, in float32.

    `bias_free` divides by the standard deviation without taking the mean off, and adds nothing afterwards.
    """

    def __init__(self, channels: int, eps: float, bias_free: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = None if bias_free else nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        if self.bias is None:
            variance = features.float().var(1, keepdim=True, unbiased=False)
            return features * torch.rsqrt(variance + self.eps) * self.weight[:, None, None]
        last = features.permute(0, 2, 3, 1)
        return functional.layer_norm(last, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class PaddedResidual(nn.Module):
    """Adds what `correction` makes of an image to the image, at any size from 1x1 up.

    New ones are identity: their last convolution starts at 0 (`zero_conv`), where the papers' start at random. A short
    run gets further that way; after some hundred steps there is no difference left.

    Sides are padded at the right and bottom to multiples of `multiple_px` by repeating the last row and column, and
    the result is cropped back. The result is not clipped to the input's range, so that a loss sees what lies outside.
    """

    multiple_px: int

    def correction(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        below, beside = -height % self.multiple_px, -width % self.multiple_px
        padded = functional.pad(image, (0, beside, 0, below), mode="replicate") if below or beside else image
        return image + self.correction(padded)[..., :height, :width]


def conv(inputs: int, outputs: int, side_px: int, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, side_px, padding=side_px // 2, **options)


def zero_conv(inputs: int, outputs: int, side_px: int, **options: Any) -> nn.Conv2d:
    layer = conv(inputs, outputs, side_px, **options)
    for weights in layer.parameters():
        nn.init.zeros_(weights)
    return layer
