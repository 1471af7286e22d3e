"""How fast a service is asked, and for how long: rate, pauses, circuit breaker, back-off, deadline.

Everything but `ClockedGate` and `persist` is pure: the time comes as an argument, in seconds of any clock that
only goes forward, and randomness from an `Rng`. One `ClockedGate` serves one backend on the whole cluster: it is
cheap, holds numbers alone, and hands out waiting times rather than points in time, so that clocks need not agree.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from pydantic import Field

from pairforge.protocols import TRANSIENT, BackendError, Trouble
from pairforge.records import Frozen
from pairforge.rng import Rng, rng_for

T = TypeVar("T")


class Limits(Frozen):
    """What a service allows, and what is made of its troubles."""

    requests_per_min: float | None = Field(None, gt=0, description="of all workers together; any number where absent")
    tokens_per_min: float | None = Field(
        None, gt=0, description="sent and received, of all workers together; any number where absent"
    )
    burst_s: float = Field(
        1.0,
        ge=0,
        le=60,
        description="unused time that may be caught up at once: after a rest, this much worth goes out together",
    )
    quota_pause_s: float = Field(
        2.0,
        gt=0,
        description="pause of everybody after a 429 that names no time; doubled by each further one, up to max_pause_s",
    )
    max_pause_s: float = Field(120.0, gt=0, description="longest pause of everybody, whatever the service asks for")
    breaker_failures: int = Field(
        5,
        ge=1,
        description="so many `unavailable` in a row open the circuit: nothing is sent any more, until a probe succeeds",
    )
    breaker_open_s: float = Field(30.0, gt=0, description="time that an open circuit waits before a probe is sent")


class Patience(Frozen):
    """How long one question is asked again."""

    deadline_s: float = Field(900.0, gt=0, description="no request is sent later than this after the question came up")
    max_requests: int = Field(8, ge=1, description="requests for one question, the first included")
    backoff_s: float = Field(1.0, gt=0, description="longest wait after one failure; doubled by every further one")
    max_backoff_s: float = Field(60.0, gt=0, description="longest wait that doubling leads to")


class Grant(NamedTuple):
    """Answer of a gate: go now where `wait_s` is 0; else come back after it, with this grant in hand."""

    wait_s: float
    epoch: int
    open_circuit: bool = False
    """Nobody is let through for `wait_s`: better ask another backend."""


class _Bucket:
    """Generic cell rate algorithm: a token bucket kept as the time at which it will be full again."""

    def __init__(self, per_min: float | None, burst_s: float) -> None:
        self._s_per_unit = 60.0 / per_min if per_min else 0.0
        self._burst_s = burst_s
        self._full_at_s = float("-inf")

    def slot_s(self, now_s: float) -> float:
        """When the next unit may go."""
        return max(now_s, self._full_at_s - self._burst_s)

    def take(self, at_s: float, units: float) -> None:
        self._full_at_s = max(at_s, self._full_at_s) + units * self._s_per_unit

    def give_back(self, units: float) -> None:
        """Units that were taken and not used; negative where more was used."""
        self._full_at_s -= units * self._s_per_unit

    def drain(self, until_s: float) -> None:
        """No unit, and no burst, before `until_s`."""
        self._full_at_s = max(self._full_at_s, until_s + self._burst_s)


class Gate:
    """Decides when requests to one backend may go. Callers that must wait hold a slot, first come, first served."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._requests = _Bucket(limits.requests_per_min, limits.burst_s)
        self._tokens = _Bucket(limits.tokens_per_min, limits.burst_s)
        self._paused_until_s = float("-inf")
        self._epoch = 0
        self._waiting = 0
        self._waiting_tokens = 0.0
        self._quotas = 0
        self._failures = 0
        self._open_until_s: float | None = None

    def enter(self, now_s: float, tokens: float = 0, held: Grant | None = None) -> Grant:
        """Ask to send one request of so many tokens. `held` is the grant one has waited for."""
        if self._open_until_s is not None:
            if now_s < self._open_until_s:
                return Grant(self._open_until_s - now_s, self._epoch, True)
            self._open_until_s = now_s + self.limits.breaker_open_s  # this one is the probe; its death frees the next
            return Grant(0.0, self._epoch)
        if held is not None and held.epoch == self._epoch and not held.open_circuit:
            self._waiting -= 1
            self._waiting_tokens -= tokens
            return Grant(0.0, self._epoch)
        slot_s = max(self._requests.slot_s(now_s), self._tokens.slot_s(now_s), self._paused_until_s)
        self._requests.take(slot_s, 1)
        self._tokens.take(slot_s, tokens)
        if slot_s > now_s:
            self._waiting += 1
            self._waiting_tokens += tokens
        return Grant(slot_s - now_s, self._epoch)

    def leave(
        self,
        now_s: float,
        trouble: Trouble | None,
        retry_after_s: float | None = None,
        unused_tokens: float = 0,
    ) -> None:
        """Tell how a request that was let through ended. `unused_tokens` may be negative."""
        self._tokens.give_back(unused_tokens)
        if trouble == Trouble.TIMEOUT:
            return
        if trouble == Trouble.UNAVAILABLE:
            self._failures += 1
            if self._failures >= self.limits.breaker_failures:
                self._open_until_s = now_s + max(self.limits.breaker_open_s, self._asked_s(retry_after_s))
                self._void_slots()
            elif retry_after_s is not None:
                self._pause(now_s + self._asked_s(retry_after_s))
            return
        self._failures, self._open_until_s = 0, None  # the service is there
        if trouble == Trouble.QUOTA:
            self._quotas += 1
            doubled_s = self.limits.quota_pause_s * 2.0 ** min(self._quotas - 1, 30)
            self._pause(now_s + self._asked_s(doubled_s if retry_after_s is None else retry_after_s))
        else:
            self._quotas = 0

    def _asked_s(self, wait_s: float | None) -> float:
        return min(max(wait_s or 0.0, 0.0), self.limits.max_pause_s)

    def _pause(self, until_s: float) -> None:
        """Nobody goes before `until_s`. Slots before it are void: their holders queue again, at the allowed rate."""
        if until_s > self._paused_until_s:
            self._paused_until_s = until_s
            self._void_slots()
            self._requests.drain(until_s)

    def _void_slots(self) -> None:
        self._epoch += 1
        self._requests.give_back(self._waiting)
        self._tokens.give_back(self._waiting_tokens)
        self._waiting, self._waiting_tokens = 0, 0.0


class GateLike(Protocol):
    """A gate that has a clock: `ClockedGate`, or a handle to one that lives elsewhere."""

    def enter(self, tokens: float = 0, held: Grant | None = None) -> Grant: ...

    def leave(self, trouble: Trouble | None, retry_after_s: float | None = None, unused_tokens: float = 0) -> None: ...


class ClockedGate:
    """A `Gate` for the threads of one process, or for a cluster where it is the whole of one actor."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._gate = Gate(limits)
        self._clock = clock
        self._lock = threading.Lock()

    def enter(self, tokens: float = 0, held: Grant | None = None) -> Grant:
        with self._lock:
            return self._gate.enter(self._clock(), tokens, held)

    def leave(self, trouble: Trouble | None, retry_after_s: float | None = None, unused_tokens: float = 0) -> None:
        with self._lock:
            self._gate.leave(self._clock(), trouble, retry_after_s, unused_tokens)


class Budget:
    """A hard cap in USD over all that was ever paid: what is reserved counts as spent until it is settled.

    `spent_usd` is what the journal says at the start. Without a cap only the sum is kept.
    """

    def __init__(self, cap_usd: float | None, spent_usd: float = 0.0) -> None:
        self.cap_usd = cap_usd
        self._spent_usd = spent_usd
        self._lock = threading.Lock()

    def reserve(self, price_usd: float | None) -> bool:
        """Set `price_usd` aside; False where that would pass the cap. Under a cap every price must be known."""
        with self._lock:
            if self.cap_usd is not None:
                if price_usd is None:
                    raise ValueError("a request of unknown price cannot be made under a cap")
                if self._spent_usd + price_usd > self.cap_usd + 1e-9:
                    return False
            self._spent_usd += price_usd or 0.0
            return True

    def settle(self, price_usd: float | None, cost_usd: float | None) -> None:
        """Replace what was reserved by what it cost; an unknown cost leaves the reservation as it is."""
        with self._lock:
            if cost_usd is not None:
                self._spent_usd += cost_usd - (price_usd or 0.0)

    def spent_usd(self) -> float:
        """Paid and reserved."""
        with self._lock:
            return self._spent_usd


class BudgetSpent(BackendError):
    """The cap is reached. No request is made; what is due stays due."""

    def __init__(self, detail: str) -> None:
        super().__init__(Trouble.QUOTA, detail)

    def __reduce__(self) -> tuple[type["BudgetSpent"], tuple[str]]:  # type: ignore[override]
        return (BudgetSpent, (self.detail,))


@dataclass(frozen=True)
class Clock:
    """Time and sleep, so that tests need neither."""

    now_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def backoff_s(patience: Patience, failures: int, retry_after_s: float | None, rng: Rng) -> float:
    """Wait after so many failures in a row: doubled each time, drawn from its upper half, never less than asked for.

    The part above `retry_after_s` is drawn too, or all that were refused together would come back together.
    """
    ceiling_s = min(patience.max_backoff_s, patience.backoff_s * 2.0 ** min(failures - 1, 30))
    return max(0.0, retry_after_s or 0.0) + ceiling_s * float(rng.uniform(0.5, 1.0))


def persist(
    ask: Callable[[], T],
    gate: GateLike,
    patience: Patience,
    seed_key: tuple[str | int, ...],
    tokens: int = 0,
    used_tokens: Callable[[T], int] | None = None,
    clock: Clock | None = None,
) -> T:
    """The result of `ask`, repeated while its trouble is transient, as the gate and the deadline allow.

    Raises the last trouble where patience ends: its `retry_after_s` says how long it would have had to wait.
    """
    clock = clock or Clock()
    ends_s = clock.now_s() + patience.deadline_s
    rng = rng_for(0, "backoff", *seed_key)
    for failures in range(1, patience.max_requests + 1):
        _pass(gate, tokens, ends_s, clock)
        try:
            result = ask()
        except BackendError as error:
            trouble = error
        except BaseException:
            gate.leave(Trouble.TIMEOUT, None, tokens)  # nothing is known of the service
            raise
        else:
            gate.leave(None, None, tokens - used_tokens(result) if used_tokens else 0)
            return result
        if isinstance(trouble, BudgetSpent):
            gate.leave(Trouble.TIMEOUT, None, tokens)
            raise trouble
        unsent = trouble.trouble in (Trouble.QUOTA, Trouble.UNAVAILABLE)
        gate.leave(trouble.trouble, trouble.retry_after_s, tokens if unsent else 0)
        wait_s = backoff_s(patience, failures, trouble.retry_after_s, rng)
        last = failures == patience.max_requests or clock.now_s() + wait_s > ends_s
        if last or trouble.trouble not in TRANSIENT:
            raise trouble
        clock.sleep(wait_s)
    raise AssertionError("patience allows at least one request")


def _pass(gate: GateLike, tokens: int, ends_s: float, clock: Clock) -> None:
    """Wait until the gate lets one request through. Raises BackendError where that would be after the deadline."""
    grant = gate.enter(tokens)
    while grant.wait_s > 0:
        if clock.now_s() + grant.wait_s > ends_s:
            if grant.open_circuit:
                raise BackendError(Trouble.UNAVAILABLE, "the service failed too often in a row", grant.wait_s)
            raise BackendError(Trouble.QUOTA, "no turn before the deadline", grant.wait_s)
        clock.sleep(grant.wait_s)
        grant = gate.enter(tokens, grant)
