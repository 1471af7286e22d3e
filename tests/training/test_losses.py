"""Losses against their formulas."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")

from training.losses import (  # noqa: E402
    LossConfig,
    RestorationLoss,
    charbonnier_loss,
    draw_times,
    fft_loss,
    flow_matching_loss,
    load_lpips,
    noised,
)


def images(count: int, height: int = 12, width: int = 10) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(2, 3, height, width, generator=generator) for _ in range(count)]


def test_charbonnier_is_l1_for_large_and_flat_for_small_differences() -> None:
    zero = torch.zeros(1, 3, 4, 4)
    assert float(charbonnier_loss(zero + 0.3, zero)) == pytest.approx(math.hypot(0.3, 1e-3))
    assert float(charbonnier_loss(zero, zero)) == pytest.approx(1e-3)
    restored = zero.clone().requires_grad_()
    charbonnier_loss(restored, zero).backward()
    assert not restored.grad.any()


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_spectra_are_compared_as_numpy_has_them(size: tuple[int, int]) -> None:
    first, second = images(2, *size)
    spectrum = np.fft.rfft2((first - second).double().numpy(), norm="ortho")
    expected = np.abs(np.stack([spectrum.real, spectrum.imag])).mean()
    assert float(fft_loss(first, second)) == pytest.approx(expected, rel=1e-5)


def test_spectral_loss_of_noise_is_the_same_at_any_size() -> None:
    generator = torch.Generator().manual_seed(1)
    found = [
        float(fft_loss(torch.randn(1, 3, side, side, generator=generator), torch.zeros(1, 3, side, side)))
        for side in (64, 256)
    ]
    # Each part of a coefficient is Gaussian with half the variance of a pixel.
    assert found == pytest.approx([math.sqrt(1 / math.pi)] * 2, rel=0.02)


def test_losses_take_half_precision() -> None:
    first, second = (image.bfloat16() for image in images(2))
    total, _ = RestorationLoss(LossConfig(weights={"l1": 1.0, "fft": 0.1}))(first, second)
    assert total.dtype == torch.float32 and torch.isfinite(total)


def test_the_sum_is_weighted_and_the_terms_are_not() -> None:
    restored, target = images(2)
    restored.requires_grad_()
    total, terms = RestorationLoss(LossConfig(weights={"l1": 0.5, "charbonnier": 2.0, "fft": 0.1}))(restored, target)
    assert float(terms["l1"]) == pytest.approx(float((restored - target).abs().mean().detach()))
    weighted = 0.5 * terms["l1"] + 2.0 * terms["charbonnier"] + 0.1 * terms["fft"]
    assert float(total.detach()) == pytest.approx(float(weighted))
    assert not any(value.requires_grad for value in terms.values())
    total.backward()
    assert restored.grad.all()


@pytest.mark.parametrize(
    ("weights", "trunk"),
    [({}, None), ({"l2": 1.0}, None), ({"l1": 0.0}, None), ({"lpips": 1.0}, None), ({"l1": 1.0}, "alexnet.pth")],
)
def test_settings_that_make_no_loss_are_refused(weights: dict[str, float], trunk: str | None) -> None:
    with pytest.raises(ValidationError):
        LossConfig.model_validate({"weights": weights, "lpips_trunk": trunk})


def test_lpips_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"pairforge\[eval\]"):
        load_lpips("alexnet.pth")


def test_lpips_reads_its_trunk_from_a_file(tmp_path: Path) -> None:
    pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    loss = RestorationLoss(LossConfig(weights={"lpips": 1.0}, lpips_trunk=str(tmp_path / "alexnet.pth")))
    first, second = images(2, 64, 64)
    before = [float(loss(first, image)[0]) for image in (first, second)]
    assert before[0] == 0 < before[1]
    assert float(loss.train()(first, second)[0]) == before[1]
    assert not any(weights.requires_grad for weights in loss.parameters())
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"other\.pth does not hold AlexNet"):
        load_lpips(str(tmp_path / "other.pth"))


def test_the_way_from_clean_to_noise_is_straight() -> None:
    clean, noise = images(2)
    assert torch.equal(noised(clean, noise, torch.tensor([0.0, 1.0])), torch.stack([clean[0], noise[1]]))
    times = torch.tensor([0.25, 0.75])
    step = (noised(clean, noise, times + 0.1) - noised(clean, noise, times)) / 0.1
    assert torch.allclose(step, noise - clean, atol=1e-5)
    assert float(flow_matching_loss(step, clean, noise)) < 1e-10
    assert float(flow_matching_loss(step + 0.5, clean, noise)) == pytest.approx(0.25, rel=1e-4)


def test_times_are_logit_normal_and_follow_the_generator() -> None:
    first, again = (draw_times(20_000, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    logits = torch.logit(first)
    assert float(logits.mean()) == pytest.approx(0, abs=0.03)
    assert float(logits.std()) == pytest.approx(1, abs=0.03)
    assert float(first.min()) > 0 and float(first.max()) < 1
