"""The order of draws: pure, in proportion, nothing twice before everything once."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.sampling import DrawPlan, Stratum


def plan_of(sizes: list[int], shares: list[float], epoch_size: int = 100, seed: int = 5) -> DrawPlan:
    strata = [Stratum(f"0/{number}", size) for number, size in enumerate(sizes)]
    return DrawPlan(seed, epoch_size, strata, lambda epoch: shares)


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    whole = plan_of([7, 30], [1, 2]).draws(0, 350)
    assert plan_of([7, 30], [1, 2]).draws(0, 350) == whole
    apart = plan_of([7, 30], [1, 2])
    assert [draw for number in reversed(range(350)) for draw in apart.draws(number, number + 1)] == whole[::-1]
    assert len({draw.seed for draw in whole}) == 350
    other = plan_of([7, 30], [1, 2], seed=6).draws(0, 350)
    assert [draw[1:3] for draw in other] != [draw[1:3] for draw in whole]
    assert not {draw.seed for draw in other} & {draw.seed for draw in whole}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    epoch_size=st.integers(1, 90),
    epochs=st.integers(1, 5),
    data=st.data(),
)
def test_shares_are_exact_to_one_draw_and_samples_come_evenly(
    sizes: list[int], epoch_size: int, epochs: int, data: st.DataObject
) -> None:
    weights = st.lists(st.sampled_from([0.0, 0.01, 1.0, 1.0, 2.5]), min_size=len(sizes), max_size=len(sizes))
    shares = data.draw(weights.filter(any))
    plan = plan_of(sizes, shares, epoch_size)
    draws = plan.draws(0, epochs * epoch_size)
    for epoch in range(epochs):
        counts = np.bincount([d.stratum for d in draws[epoch * epoch_size :][:epoch_size]], minlength=len(sizes))
        wanted = epoch_size * np.array(shares) / sum(shares)
        assert counts.sum() == epoch_size and (np.abs(counts - wanted) < 1 + 1e-9).all()
        assert not counts[np.array(shares) == 0].any()
    for stratum, size in enumerate(sizes):
        order = [draw.sample for draw in draws if draw.stratum == stratum]
        for first in range(0, len(order), size):
            a_pass = order[first : first + size]
            assert len(set(a_pass)) == len(a_pass) and set(a_pass) <= set(range(size))
            assert len(a_pass) == size or first + size > len(order)


def test_equal_shares_that_divide_are_exact() -> None:
    for epoch_size in (9, 90, 9000):
        plan = plan_of([50] * 9, [1 / 9] * 9, epoch_size)
        for epoch in range(5):
            assert np.bincount(plan.epoch(epoch).strata).tolist() == [epoch_size // 9] * 9


def test_a_share_below_one_draw_gets_its_turn() -> None:
    draws = plan_of([10, 10], [0.02, 0.98], epoch_size=10).draws(0, 10_000)
    assert 170 < sum(draw.stratum == 0 for draw in draws) < 230


def test_each_pass_and_each_epoch_has_its_own_order() -> None:
    plan = plan_of([50, 50], [1, 1])
    first, second = (plan.draws(100 * epoch, 100 * epoch + 100) for epoch in (0, 1))
    assert [d.stratum for d in first] != [d.stratum for d in second]
    orders = [[d.sample for d in draws if d.stratum == s] for draws in (first, second) for s in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_shares_may_change_by_epoch() -> None:
    strata = [Stratum("0/real", 30), Stratum("1/made", 40)]
    plan = DrawPlan(3, 50, strata, lambda epoch: [1.0, [0.0, 0.25, 1.0][min(epoch, 2)]])
    draws = plan.draws(0, 200)
    counts = [Counter(d.stratum for d in draws[start : start + 50]) for start in range(0, 200, 50)]
    assert [count[1] for count in counts] == [0, 10, 25, 25]
    made = [draw.sample for draw in draws if draw.stratum == 1]
    assert sorted(made[:40]) == list(range(40)), "passes go on over epochs whose shares differ"


def test_identity_tells_orders_apart() -> None:
    plan = plan_of([7, 30], [1, 2])
    assert plan.identity(250) == plan_of([7, 30], [2, 4]).identity(250) == plan.identity(299)
    others = [
        plan_of([7, 31], [1, 2]),
        plan_of([7, 30], [1, 2], 101),
        plan_of([7, 30], [1, 3]),
        plan_of([7, 30], [1, 2], 100, 4),
    ]
    assert len({plan.identity(250), *(other.identity(250) for other in others)}) == 5


def test_what_cannot_be_drawn_is_refused() -> None:
    for sizes, epoch_size in (([], 5), ([0], 5), ([3], 0)):
        with pytest.raises(ValueError, match="1 or more"):
            plan_of(sizes, [1.0] * len(sizes), epoch_size)
    for shares in ([0.0, 0.0], [1.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="shares"):
            plan_of([3, 3], shares).draws(0, 1)
