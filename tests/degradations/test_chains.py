"""Chains: drawn whole, replayed bit for bit (D4), no step without effect (D5), physical order."""

import itertools
import json
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from skimage import data

from degradations.base import Scene, replay_with
from degradations.catalog import BY_NAME
from degradations.chains import (
    CHAIN_BY_NAME,
    CHAINS,
    DISTRIBUTION,
    check_physical_order,
    physical_order,
)
from degradations.scene.depth import geometric_depth
from pairforge.image import to_float, to_pixels
from pairforge.records import Step
from pairforge.rng import rng_for, seed_for

NAMES = [chain.name for chain in CHAINS]
SIZE = (120, 160)
WEB = ("web", "real_esrgan", "real_esrgan_x4", "apisr", "apisr_x4")
COMPOSITE = tuple(chain.name for chain in CHAINS if chain.group)


@cache
def scene() -> tuple[Any, Scene]:
    base = cv2.resize(data.coffee(), SIZE[::-1], interpolation=cv2.INTER_AREA)
    return base, Scene(depth=geometric_depth(base))


def steps_of(name: str, severity: float, seed: int) -> list[Step]:
    drawn = CHAIN_BY_NAME[name].draw(severity, rng_for(seed, name))
    return [
        Step(
            name=step,
            version=BY_NAME[step].version,
            severity=severity,
            params=params.model_dump(mode="json"),
            seed=seed_for(seed, name, index),
        )
        for index, (step, params) in enumerate(drawn)
    ]


def render(steps: list[Step]) -> Any:
    base, known = scene()
    return replay_with(base, steps, known, BY_NAME)


def test_names_are_unique_and_groups_are_complete() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(CHAIN_BY_NAME)
    sizes = {group: [chain for chain in CHAINS if chain.group == group] for group in ("A", "B", "C")}
    assert [len(chains) for chains in sizes.values()] == [8, 4, 4]
    assert all(len(chain.labels) == (3 if chain.group == "C" else 2) for chain in CHAINS if chain.group)
    assert len({chain.labels for chain in CHAINS if chain.group}) == 16


@pytest.mark.parametrize("name", NAMES)
def test_draws_fit_the_catalog_and_follow_their_rng_alone(name: str) -> None:
    chain = CHAIN_BY_NAME[name]
    used: set[str] = set()
    for severity, seed in itertools.product((0.0, 0.3, 1.0), range(40)):
        drawn = chain.draw(severity, rng_for(seed, name))
        assert len(drawn) >= 2
        for step, params in drawn:
            assert type(params) is BY_NAME[step].params_type
            assert type(params).model_validate(json.loads(params.model_dump_json())) == params
            used.add(step)
        assert chain.draw(severity, rng_for(seed, name)) == drawn
    assert used == chain.uses
    assert chain.draw(0.5, rng_for(1, name)) != chain.draw(0.5, rng_for(2, name))


@pytest.mark.parametrize("name", NAMES)
def test_d4_a_chain_replays_bit_for_bit_from_json(name: str) -> None:
    for severity, seed in ((0.4, 1), (1.0, 2)):
        steps = steps_of(name, severity, seed)
        first = render(steps)
        again = render([Step.model_validate_json(step.model_dump_json()) for step in steps])
        assert np.array_equal(first.image, again.image) and np.array_equal(first.target, again.target)


@pytest.mark.parametrize("name", NAMES)
def test_d5_every_step_shows(name: str) -> None:
    for severity, seed in ((0.0, 0), (0.3, 1), (1.0, 2), (1.0, 3)):
        steps = steps_of(name, severity, seed)
        whole = to_pixels(render(steps).image)
        for index in range(len(steps)):
            without = to_pixels(render(steps[:index] + steps[index + 1 :]).image)
            assert not np.array_equal(whole, without), f"step {index}, {steps[index].name}, of {name} changes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_size_of_the_result(name: str) -> None:
    for severity in (0.2, 1.0):
        out = render(steps_of(name, severity, 5))
        expected = (SIZE[0] // 4, SIZE[1] // 4) if name.endswith("_x4") else SIZE
        assert out.image.shape[:2] == expected
        assert np.array_equal(to_pixels(out.target), scene()[0])


@pytest.mark.parametrize("name", NAMES)
def test_error_rises_with_severity(name: str) -> None:
    errors = []
    for severity in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        of_seeds = []
        for seed in range(5):
            image = render(steps_of(name, severity, seed)).image
            clean = to_float(scene()[0])
            if image.shape != clean.shape:
                clean = cv2.resize(clean, image.shape[1::-1], interpolation=cv2.INTER_AREA)
            of_seeds.append(float(np.abs(image - clean).mean()))
        errors.append(np.median(of_seeds))
    ranks = np.argsort(np.argsort(errors))
    assert np.corrcoef(ranks, np.arange(6))[0, 1] >= 0.94, errors
    assert errors[0] * 255 < 15


def test_published_ranges_are_reached_at_severity_1() -> None:
    sizes, sigmas, qualities, noises = [], [], [], []
    for seed in range(300):
        drawn = CHAIN_BY_NAME["real_esrgan_x4"].draw(1.0, rng_for(seed))
        before_noise = itertools.takewhile(lambda step: not step[0].endswith("noise"), drawn)
        sizes += [p.size_frac for n, p in before_noise if n == "resize"]  # type: ignore[attr-defined]
        sigmas += [p.sigma_x_px for n, p in drawn[:1] if n in ("web_gaussian_blur", "web_plateau_blur")]  # type: ignore[attr-defined]
        qualities += [p.quality for n, p in drawn if n == "jpeg"]  # type: ignore[attr-defined]
        noises += [p.sigma_codes for n, p in drawn if n == "gaussian_noise"]  # type: ignore[attr-defined]
    assert 0.15 <= min(sizes) < 0.2 and 1.4 < max(sizes) <= 1.5
    assert min(sigmas) > 0.2 and 2.9 < max(sigmas) <= 3.0
    assert 30 <= min(qualities) <= 32 and 93 <= max(qualities) <= 95
    assert 1 <= min(noises) < 2 and 28 < max(noises) <= 30


def test_last_codec_of_apisr_predicts() -> None:
    codecs = []
    for seed in range(300):
        drawn = [name for name, _ in CHAIN_BY_NAME["apisr_x4"].draw(1.0, rng_for(seed))]
        assert drawn[-1] in ("jpeg", "webp", "avif")
        codecs.append(drawn[-1])
    shares = {codec: codecs.count(codec) / 300 for codec in ("jpeg", "webp", "avif")}
    assert shares["jpeg"] < 0.12 and shares["webp"] > 0.38 and shares["avif"] > 0.38


@pytest.mark.parametrize("name", COMPOSITE)
def test_composites_are_in_physical_order(name: str) -> None:
    check_physical_order([step for step, _ in CHAIN_BY_NAME[name].draw(0.7, rng_for(1))])


def test_noise_survives_low_resolution() -> None:
    """Labels must stay true: more than a fifth of the noise is left at the end of the chain."""
    steps = steps_of("composite_c2", 0.8, 3)
    names = [step.name for step in steps]
    noise = names.index("sensor_noise")
    assert names[noise - 1] == names[noise + 1] == "resize"
    without = render(steps[:noise] + steps[noise + 1 :]).image
    left = float((render(steps).image - without).var())
    added = float((render(steps[: noise + 1]).image - render(steps[:noise]).image).var())
    assert left > 0.2 * added


def test_physical_order() -> None:
    names = ["jpeg", "sensor_noise", "motion_blur", "rain", "haze", "moire"]
    assert physical_order(names) == ["haze", "rain", "motion_blur", "sensor_noise", "jpeg", "moire"]
    check_physical_order(physical_order(names))
    check_physical_order(["haze", "jpeg", "resize", "jpeg", "moire", "jpeg"])
    check_physical_order([])
    with pytest.raises(ValueError, match=r"'haze' cannot come after 'sensor_noise'.*haze > sensor_noise"):
        check_physical_order(["sensor_noise", "haze"])
    with pytest.raises(ValueError, match="'motion_blur' cannot come after 'jpeg'"):
        check_physical_order(["haze", "jpeg", "resize", "motion_blur"])
    for judge in (physical_order, check_physical_order):
        with pytest.raises(ValueError, match="unknown degradation 'fog_machine'"):
            judge(["haze", "fog_machine"])
    assert set(BY_NAME) >= DISTRIBUTION


def test_every_chain_in_its_own_order_is_told_apart() -> None:
    """Web chains repeat themselves by design and say that their order is not physical."""
    assert {chain.name for chain in CHAINS if not chain.physical} == set(WEB)
