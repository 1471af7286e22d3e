"""Rate, pauses, breaker, back-off and deadline, on a clock that tests wind by hand."""

import heapq
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pairforge.limits import (
    Budget,
    BudgetSpent,
    Clock,
    ClockedGate,
    Gate,
    Grant,
    Limits,
    Patience,
    backoff_s,
    persist,
)
from pairforge.protocols import BackendError, Trouble
from pairforge.rng import rng_for


class Hand:
    """A clock whose sleep moves it."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.slept: list[float] = []

    def sleep(self, wait_s: float) -> None:
        self.slept.append(wait_s)
        self.time_s += wait_s

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time_s, self.sleep)


def crowd(gate: Gate, callers: int, rounds: int, on_go: Callable[[float, int], None], tokens: float = 0) -> list[float]:
    """Times at which requests go, for callers that ask again at once after each answer (which takes no time)."""
    went: list[float] = []
    queue: list[tuple[float, int, int, Grant | None]] = [(0.0, number, rounds, None) for number in range(callers)]
    heapq.heapify(queue)
    tie = callers
    while queue:
        now_s, _, left, held = heapq.heappop(queue)
        grant = gate.enter(now_s, tokens, held)
        tie += 1
        if grant.wait_s > 0:
            heapq.heappush(queue, (now_s + grant.wait_s, tie, left, grant))
            continue
        went.append(now_s)
        on_go(now_s, len(went))
        if left > 1:
            heapq.heappush(queue, (now_s, tie, left - 1, None))
    return went


def most_in(times: list[float], window_s: float) -> int:
    ordered = np.sort(times)
    return int(max(np.searchsorted(ordered, ordered + window_s) - np.arange(len(ordered))))


def nothing(now_s: float, count: int) -> None:
    pass


@settings(max_examples=40, deadline=None)
@given(
    per_min=st.floats(6, 6000),
    burst_s=st.floats(0, 10),
    callers=st.integers(1, 60),
)
def test_no_minute_sees_more_requests_than_allowed(per_min: float, burst_s: float, callers: int) -> None:
    gate = Gate(Limits(requests_per_min=per_min, burst_s=burst_s))
    went = crowd(gate, callers, 20, nothing)
    assert len(went) == 20 * callers
    assert most_in(went, 60.0) <= per_min * (60 + burst_s) / 60 + 2
    span_s = (len(went) - 1) * 60 / per_min
    assert max(went) <= span_s + 1e-6, "and nobody waits longer than the rate asks"


def test_tokens_are_limited_too_and_unused_ones_come_back() -> None:
    limits = Limits(tokens_per_min=60_000, burst_s=0)
    assert crowd(Gate(limits), 4, 10, nothing, tokens=1000)[-1] == pytest.approx(39.0)
    gate = Gate(limits)
    went = crowd(gate, 1, 40, lambda now_s, _: gate.leave(now_s, None, None, 900), tokens=1000)
    assert went[-1] == pytest.approx(3.9)


def test_waiters_go_in_the_order_they_came_and_ask_twice_at_most() -> None:
    gate = Gate(Limits(requests_per_min=60, burst_s=0))
    grants = [gate.enter(0.0) for _ in range(5)]
    assert [grant.wait_s for grant in grants] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert all(gate.enter(grant.wait_s, 0, grant).wait_s == 0 for grant in grants[1:])
    assert gate.enter(4.0).wait_s == 1.0


def test_a_429_pauses_everybody_and_voids_the_queue() -> None:
    gate = Gate(Limits(requests_per_min=60, burst_s=5, max_pause_s=100))
    for _ in range(6):
        gate.enter(0.0)
    waiting = [gate.enter(0.0) for _ in range(3)]
    gate.leave(0.5, Trouble.QUOTA, 30.0)
    again = [gate.enter(grant.wait_s, 0, grant) for grant in waiting]
    at = [grant.wait_s + again_.wait_s for grant, again_ in zip(waiting, again, strict=True)]
    assert at == pytest.approx([30.5, 31.5, 32.5]), "after the pause at the allowed rate, without a burst"
    assert gate.enter(10.0).wait_s == pytest.approx(23.5)


def test_a_pause_does_not_make_a_long_queue_longer() -> None:
    gate = Gate(Limits(requests_per_min=60, tokens_per_min=6000, burst_s=0, max_pause_s=100))
    waiting = [gate.enter(0.0, 100) for _ in range(50)][1:]
    gate.leave(0.5, Trouble.QUOTA, 5.0)
    again = [gate.enter(grant.wait_s, 100, grant) for grant in waiting]
    at = [grant.wait_s + again_.wait_s for grant, again_ in zip(waiting, again, strict=True)]
    assert at == pytest.approx(np.maximum(5.5 + np.arange(49), np.arange(1, 50)))


@settings(max_examples=30, deadline=None)
@given(every=st.integers(3, 40), pause_s=st.floats(0.1, 40), callers=st.integers(1, 30))
def test_nobody_goes_in_a_pause_and_the_rate_holds_after_it(every: int, pause_s: float, callers: int) -> None:
    gate = Gate(Limits(requests_per_min=120, burst_s=2, max_pause_s=100))
    pauses: list[tuple[float, float]] = []

    def on_go(now_s: float, count: int) -> None:
        if count % every == 0:
            gate.leave(now_s, Trouble.QUOTA, pause_s)
            pauses.append((now_s, now_s + pause_s))

    went = crowd(gate, callers, 10, on_go)
    assert len(went) == 10 * callers
    assert not any(start < at < end - 1e-9 for start, end in pauses for at in went)
    assert most_in(went, 60.0) <= 120 + 4 + 2


def test_a_429_without_a_time_doubles_the_pause_until_an_answer() -> None:
    gate = Gate(Limits(quota_pause_s=2, max_pause_s=10))
    now_s, pauses = 0.0, []
    for _ in range(4):
        gate.leave(now_s, Trouble.QUOTA)
        pauses.append(gate.enter(now_s).wait_s)
        now_s += pauses[-1]
    assert pauses == [2, 4, 8, 10]
    gate.leave(now_s, None)
    gate.leave(now_s, Trouble.QUOTA)
    assert gate.enter(now_s).wait_s == 2


def test_the_circuit_opens_probes_and_closes() -> None:
    gate = Gate(Limits(breaker_failures=3, breaker_open_s=10))
    for _ in range(2):
        gate.leave(0.0, Trouble.UNAVAILABLE)
    gate.leave(0.0, Trouble.REFUSED)  # an answer: the service is there
    for _ in range(2):
        gate.leave(0.0, Trouble.UNAVAILABLE)
    assert gate.enter(0.0).wait_s == 0
    gate.leave(0.0, Trouble.UNAVAILABLE)
    assert gate.enter(4.0) == Grant(6.0, 1, True)
    assert gate.enter(10.0).wait_s == 0, "the probe"
    assert gate.enter(10.0).open_circuit, "and nobody else meanwhile"
    gate.leave(11.0, Trouble.UNAVAILABLE)
    assert gate.enter(12.0) == Grant(9.0, 2, True)
    assert gate.enter(21.0).wait_s == 0
    assert gate.enter(32.0).wait_s == 0, "a probe that died frees the next"
    gate.leave(33.0, None)
    assert gate.enter(33.0) == Grant(0.0, 2)
    for _ in range(2):
        gate.leave(33.0, Trouble.UNAVAILABLE)
    assert gate.enter(33.0).wait_s == 0, "counting starts anew"


def test_a_timeout_says_nothing_about_the_service() -> None:
    gate = Gate(Limits(breaker_failures=2))
    for trouble in (Trouble.UNAVAILABLE, Trouble.TIMEOUT, Trouble.UNAVAILABLE):
        gate.leave(0.0, trouble)
    assert gate.enter(0.0).open_circuit


def test_a_gate_is_numbers_alone() -> None:
    gate = Gate(Limits(requests_per_min=60))
    gate.enter(0.0)
    assert pickle.loads(pickle.dumps(gate)).enter(0.0).wait_s == gate.enter(0.0).wait_s


def test_back_off_grows_is_jittered_and_bounded() -> None:
    patience = Patience(backoff_s=1, max_backoff_s=8)
    draws = [[backoff_s(patience, n, None, rng_for(0, "t", n, i)) for i in range(200)] for n in range(1, 7)]
    for values, ceiling in zip(draws, (1, 2, 4, 8, 8, 8), strict=True):
        assert ceiling / 2 <= min(values) and max(values) <= ceiling and np.std(values) > 0.1 * ceiling
    assert min(backoff_s(patience, 1, 30.0, rng_for(0, "t", i)) for i in range(50)) >= 30.5


# ---------------------------------------------------------------- persist


def asker(*troubles: BackendError | None) -> Callable[[], int]:
    left = list(troubles)

    def ask() -> int:
        trouble = left.pop(0)
        if trouble is not None:
            raise trouble
        return 7

    return ask


def test_transient_trouble_is_asked_again() -> None:
    hand = Hand()
    gate = ClockedGate(Limits(), hand.clock.now_s)
    ask = asker(BackendError(Trouble.TIMEOUT, ""), BackendError(Trouble.QUOTA, "", 20.0), None)
    assert persist(ask, gate, Patience(), ("k",), clock=hand.clock) == 7
    assert 20.5 <= hand.slept[1] <= 22.0 and len(hand.slept) == 2


@pytest.mark.parametrize("trouble", [Trouble.REFUSED, Trouble.MALFORMED, Trouble.WRONG_SIZE])
def test_an_answer_is_not_asked_again(trouble: Trouble) -> None:
    hand = Hand()
    with pytest.raises(BackendError) as caught:
        persist(asker(BackendError(trouble, "")), ClockedGate(Limits()), Patience(), ("k",), clock=hand.clock)
    assert caught.value.trouble == trouble and not hand.slept


def test_the_deadline_is_kept_without_waiting_for_it() -> None:
    hand = Hand()
    gate = ClockedGate(Limits(max_pause_s=1000), hand.clock.now_s)
    with pytest.raises(BackendError) as caught:
        persist(asker(BackendError(Trouble.QUOTA, "", 500.0)), gate, Patience(deadline_s=100), ("k",), clock=hand.clock)
    assert caught.value.trouble == Trouble.QUOTA and not hand.slept
    with pytest.raises(BackendError, match="no turn before the deadline") as caught:
        persist(asker(), gate, Patience(deadline_s=100), ("k",), clock=hand.clock)
    assert caught.value.retry_after_s == pytest.approx(500.0)


def test_requests_are_counted_and_an_open_circuit_ends_waiting() -> None:
    hand = Hand()
    gate = ClockedGate(Limits(breaker_failures=3, breaker_open_s=5000), hand.clock.now_s)
    down = [BackendError(Trouble.UNAVAILABLE, "down") for _ in range(9)]
    ask = asker(*down)
    with pytest.raises(BackendError, match="down"):
        persist(ask, gate, Patience(max_requests=2), ("k",), clock=hand.clock)
    with pytest.raises(BackendError, match="too often"):
        persist(ask, gate, Patience(), ("k",), clock=hand.clock)
    with pytest.raises(BackendError, match="too often"):
        persist(ask, gate, Patience(), ("k",), clock=hand.clock)
    assert sum(1 for _ in iter(lambda: _left(ask), None)) == 6, "three requests were made"


def _left(ask: Callable[[], int]) -> int | None:
    try:
        return ask()
    except BackendError:
        return 0
    except IndexError:
        return None


def test_a_spent_budget_neither_repeats_nor_harms_the_gate() -> None:
    hand = Hand()
    gate = ClockedGate(Limits(breaker_failures=1), hand.clock.now_s)
    with pytest.raises(BudgetSpent):
        persist(asker(BudgetSpent("cap")), gate, Patience(), ("k",), clock=hand.clock)
    assert persist(asker(None), gate, Patience(), ("k",), clock=hand.clock) == 7 and not hand.slept


# ---------------------------------------------------------------- budget


def test_a_cap_holds_with_what_is_set_aside() -> None:
    budget = Budget(1.0, spent_usd=0.5)
    assert budget.reserve(0.3) and not budget.reserve(0.3)
    budget.settle(0.3, 0.1)
    assert budget.spent_usd() == pytest.approx(0.6)
    assert budget.reserve(0.4), "exactly to the cap"
    budget.settle(0.4, None)
    assert budget.spent_usd() == pytest.approx(1.0), "an unknown cost counts as what was set aside"
    assert not budget.reserve(0.01) and budget.reserve(0.0)


def test_a_cap_needs_prices() -> None:
    with pytest.raises(ValueError, match="unknown price"):
        Budget(1.0).reserve(None)
    budget = Budget(None)
    assert budget.reserve(None)
    budget.settle(None, 0.2)
    assert budget.spent_usd() == pytest.approx(0.2)


def test_settings_have_bounds() -> None:
    for bad in ({"requests_per_min": 0}, {"breaker_failures": 0}, {"burst_s": -1}, {"max_pause_s": 0}):
        with pytest.raises(ValidationError):
            Limits.model_validate(bad)
    for bad in ({"deadline_s": 0}, {"max_requests": 0}):
        with pytest.raises(ValidationError):
            Patience.model_validate(bad)


def test_budget_spent_travels() -> None:
    error = pickle.loads(pickle.dumps(BudgetSpent("cap")))
    assert isinstance(error, BudgetSpent) and error.detail == "cap"
