"""Both sides of a pair go the same way: coordinates are put into pixels, and found again."""

import numpy as np
import pytest

from degradations.catalog import DEGRADATIONS
from degradations.chains import CHAIN_BY_NAME
from pairforge.image import Pixels
from pairforge.rng import seed_for
from training.augment import Augment, Degrade, PairSettings, Photometric

SEEDS = [seed_for(1, number) for number in range(40)]


def coordinates(height: int, width: int, scale: int) -> tuple[Pixels, Pixels]:
    """LQ whose first two channels say where a pixel is, and HQ `scale` times as large that says the same."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    lq = np.stack([y, x, y ^ x], axis=2)
    return lq, np.repeat(np.repeat(lq, scale, axis=0), scale, axis=1)


@pytest.mark.parametrize("turns", ["none", "flip", "d4"])
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(70, 90), (24, 90), (24, 24), (9, 40), (1, 1)])
def test_geometry_is_the_same_on_both_sides(turns: str, scale: int, size: tuple[int, int]) -> None:
    lq, hq = coordinates(*size, scale)
    before = lq.copy(), hq.copy()
    augment = Augment(PairSettings(crop_px=24 * scale, turns=turns, scale=scale, small="reflect"))
    seen = set()
    for seed in SEEDS:
        small, large = augment(lq, hq, seed)
        assert small.shape == (24, 24, 3) and large.shape == (24 * scale, 24 * scale, 3)
        assert np.array_equal(np.repeat(np.repeat(small, scale, axis=0), scale, axis=1), large)
        seen.add(small.tobytes())
        again = augment(lq, hq, seed)
        assert np.array_equal(small, again[0]) and np.array_equal(large, again[1])
    ways = {"none": 1, "flip": 2, "d4": 8}[turns]
    if size == (70, 90):
        assert len(seen) == len(SEEDS)
    elif size == (24, 24):
        assert len(seen) == ways
    assert np.array_equal(lq, before[0]) and np.array_equal(hq, before[1])


def test_crops_reach_every_corner_and_stay_inside() -> None:
    lq, hq = coordinates(20, 30, 1)
    augment = Augment(PairSettings(crop_px=18, turns="none"))
    corners = {tuple(augment(lq, hq, seed_for(2, number))[0][0, 0, :2].tolist()) for number in range(600)}
    assert corners == {(y, x) for y in range(3) for x in range(13)}


def test_without_a_seed_a_pair_stays_whole() -> None:
    lq, hq = coordinates(20, 30, 2)
    colour = Photometric(brightness=0.5, p=1)
    augment = Augment(PairSettings(crop_px=8, turns="d4", scale=2, photometric=colour, degrade=Degrade(name="web")))
    small, large = augment(lq, hq, "")
    assert np.array_equal(small, lq) and np.array_equal(large, hq)


def test_colour_is_one_curve_for_both_sides(photos: dict[str, Pixels]) -> None:
    """A pixel that is equal on both sides stays equal, whatever surrounds it; and draws do not hang together."""
    colour = Photometric(brightness=0.2, contrast=0.2, gamma=0.2, hue_deg=20, saturation=0.2, p=0.5)
    augment = Augment(PairSettings(crop_px=None, turns="none", photometric=colour))
    hq = photos["coffee"][:96, :96]
    lq = hq // 4
    lq[:, :48] = hq[:, :48]
    changed = 0
    for seed in SEEDS:
        dark, bright = augment(lq, hq, seed)
        assert np.array_equal(dark[:, :48], bright[:, :48])
        changed += not np.array_equal(bright, hq)
    assert 30 <= changed < 40, "each of three changes comes with probability 1/2, apart from the others"


def test_turns_and_colour_are_drawn_apart() -> None:
    """All eight turns come with and without a change of colour."""
    lq, _ = coordinates(24, 24, 1)
    plain = Augment(PairSettings(crop_px=24, turns="d4"))
    coloured = Augment(PairSettings(crop_px=24, turns="d4", photometric=Photometric(brightness=0.5, p=0.5)))
    met = set()
    for number in range(200):
        seed = seed_for(3, number)
        turned = plain(lq, lq, seed)[0]
        met.add((turned.tobytes(), np.array_equal(turned, coloured(lq, lq, seed)[0])))
    assert len(met) == 16


def test_degradations_go_on_lq_alone(photos: dict[str, Pixels]) -> None:
    pixels = np.ascontiguousarray(photos["chelsea"][:80, :80])
    augment = Augment(PairSettings(crop_px=64, turns="d4", degrade=Degrade(name="web", severity=(0.3, 0.9), p=0.5)))
    plain = Augment(PairSettings(crop_px=64, turns="d4"))
    degraded = 0
    for seed in SEEDS[:24]:
        lq, hq = augment(pixels, pixels, seed)
        assert lq.shape == hq.shape and np.array_equal(hq, plain(pixels, pixels, seed)[1])
        assert np.array_equal(lq, augment(pixels, pixels, seed)[0])
        degraded += not np.array_equal(lq, hq)
    assert 6 <= degraded <= 18


def test_which_degradations_are_taken(photos: dict[str, Pixels]) -> None:
    """Those that need a scene or another size are refused by their settings, those that move HQ when they do."""
    pixels = np.ascontiguousarray(photos["chelsea"][:64, :64])
    usable = []
    for name in [degradation.name for degradation in DEGRADATIONS] + list(CHAIN_BY_NAME):
        try:
            degrade = Degrade(name=name, severity=(0.7, 0.7), p=1)
        except ValueError as refusal:
            assert f"{name!r} needs" in str(refusal)
            continue
        usable.append(name)
        try:
            Augment(PairSettings(crop_px=64, turns="none", degrade=degrade))(pixels, pixels, SEEDS[0])
        except ValueError as refusal:
            assert "moves or dims" in str(refusal)
            usable.remove(name)
    assert {"web", "real_esrgan", "apisr", "jpeg", "sensor_noise", "gaussian_blur", "low_light"} <= set(usable)
    assert not {"haze", "reflection", "moire", "real_esrgan_x4", "resize", "temporal_blur"} & set(usable)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown degradation or chain 'fog'"):
        Degrade(name="fog")
    with pytest.raises(ValueError, match="no range within"):
        Degrade(name="web", severity=(0.8, 0.2))
    with pytest.raises(ValueError, match="does not divide"):
        PairSettings(crop_px=33, turns="none", scale=2)
    with pytest.raises(ValueError, match="reverse"):
        PairSettings(crop_px=32, turns="none", reverse=True, degrade=Degrade(name="web"))
    lq, hq = coordinates(20, 30, 2)
    for scale, crop, message in ((1, 8, "not at scale 1"), (2, 48, "smaller than crop_px 48")):
        with pytest.raises(ValueError, match=message):
            Augment(PairSettings(crop_px=crop, turns="none", scale=scale))(lq, hq, SEEDS[0])
