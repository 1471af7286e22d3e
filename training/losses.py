"""What training minimises. Images are (N, 3, H, W) with values around [0, 1], in any floating type.

Restoration: L1; Charbonnier (Charbonnier et al., ICIP 1994; as a loss of restorers, Lai et al., CVPR 2017); L1 between
spectra (Cho et al., MIMO-UNet, ICCV 2021); LPIPS (Zhang et al., CVPR 2018) with weights from a file.
Diffusion: rectified flow, where x_t = (1 - t) x_0 + t noise and the network predicts the velocity noise - x_0 (Lipman
et al., ICLR 2023; Liu et al., ICLR 2023; times drawn as in Esser et al., ICML 2024).
"""

# mypy: allow-subclassing-any

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pairforge.records import Frozen

Term = Literal["l1", "charbonnier", "fft", "lpips"]


class LossConfig(Frozen):
    """Weights by name; a term that is not named is not computed."""

    weights: Mapping[Term, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    charbonnier_eps: float = Field(1e-3, gt=0, le=1)
    lpips_trunk: str | None = None
    """File of AlexNet's ImageNet weights as torchvision publishes them, needed by "lpips" alone."""

    @model_validator(mode="after")
    def _trunk_where_needed(self) -> Self:
        if ("lpips" in self.weights) != (self.lpips_trunk is not None):
            raise ValueError("lpips_trunk is needed where weights name lpips, and nowhere else")
        return self


class RestorationLoss(nn.Module):
    """The weighted sum, and its terms before weighting, detached, for logs."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.lpips = None if config.lpips_trunk is None else load_lpips(config.lpips_trunk)

    def forward(self, restored: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        restored, target = restored.float(), target.float()
        terms = {name: self._term(name, restored, target) for name in self.config.weights}
        total = torch.stack([self.config.weights[name] * value for name, value in terms.items()]).sum()
        return total, {str(name): value.detach() for name, value in terms.items()}

    def train(self, mode: bool = True) -> Self:
        """There is nothing to train, and LPIPS must not drop units out."""
        super().train(False)
        return self

    def _term(self, name: Term, restored: Tensor, target: Tensor) -> Tensor:
        match name:
            case "l1":
                return functional.l1_loss(restored, target)
            case "charbonnier":
                return charbonnier_loss(restored, target, self.config.charbonnier_eps)
            case "fft":
                return fft_loss(restored, target)
            case "lpips":
                assert self.lpips is not None
                return self.lpips(restored, target, normalize=True).mean()


def charbonnier_loss(restored: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt(d^2 + eps^2), eps in units of the image: L1, rounded below a quarter of an 8-bit code at 1e-3.

    Equal images give eps, not 0. BasicSR's default amounts to eps = 1e-6.
    """
    return torch.sqrt((restored - target).square() + eps**2).mean()


def fft_loss(restored: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of real and imaginary parts of the spectra (half of them, the rest being conjugate).

    The transform is orthonormal, so the value is of the order of L1's at any size; with the unnormalised one of
    MIMO-UNet it is sqrt(H W) times as large, which weights taken from there must be multiplied by.
    """
    spectrum = torch.fft.rfft2(restored.float() - target.float(), norm="ortho")
    return torch.view_as_real(spectrum).abs().mean()


def load_lpips(trunk: str) -> Any:
    """LPIPS on AlexNet, frozen. Its linear heads ship with the package, the trunk is read from the file.

    Raises ImportError where the package `lpips` is missing, ValueError for a file that does not hold the trunk.
    """
    try:
        import lpips
    except ImportError:
        raise ImportError("the loss lpips needs the package of that name: pip install 'pairforge[eval]'") from None
    with torch.random.fork_rng(devices=[]):  # the weights it draws are replaced at once
        metric = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    try:
        published = torch.load(trunk, map_location="cpu", weights_only=True)
        # "features.3.weight" is "slice2.3.weight" there: a slice for each layer that is compared.
        wanted = {name: f"features.{name.split('.', 1)[1]}" for name in metric.net.state_dict()}
        metric.net.load_state_dict({name: published[source] for name, source in wanted.items()})
    except Exception as error:  # torch.load raises errors of many kinds
        raise ValueError(f"{trunk} does not hold AlexNet's weights as torchvision publishes them: {error}") from error
    return metric.eval().requires_grad_(False)


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """`count` times in (0, 1), logit-normal with mean 0 and deviation 1: most of them in the middle. On the
    generator's device."""
    return torch.sigmoid(torch.randn(count, generator=generator, device=generator.device))


def noised(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t on the straight way from clean (t = 0) to noise (t = 1); `times` (N,), the others (N, ...)."""
    share = times.reshape(-1, *[1] * (clean.dim() - 1)).to(clean.dtype)
    return (1 - share) * clean + share * noise


def flow_matching_loss(velocity: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of a predicted velocity; the true one is noise - clean at every t."""
    return functional.mse_loss(velocity.float(), noise.float() - clean.float())
