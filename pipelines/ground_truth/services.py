"""What all workers of a run share: the gates before each service, and the budget. One of each, wherever they run.

In one process these are plain objects. On Ray they are one actor, the till, which holds numbers alone. It is never
restarted: a new one would not know what was reserved and not yet written down. A run whose till is gone stops, and
the next one reads the journal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pairforge.limits import Budget, ClockedGate, GateLike, Grant, Limits
from pairforge.protocols import Trouble
from pairforge.records import StopRunError
from pairforge.remote import BudgetLike


class TillLostError(StopRunError):
    """The actor that guards the budget is gone: nothing more may be spent. The same command goes on."""


@dataclass(frozen=True)
class Shared:
    """Gates by name of service, and the budget; may travel to workers."""

    gates: Mapping[str, GateLike]
    budget: BudgetLike


def share_locally(limits: Mapping[str, Limits], cap_usd: float | None, spent_usd: float) -> Shared:
    """For workers that are threads of this process."""
    return Shared({name: ClockedGate(limit) for name, limit in limits.items()}, Budget(cap_usd, spent_usd))


def share_on_ray(limits: Mapping[str, Limits], cap_usd: float | None, spent_usd: float) -> Shared:
    """For workers of the Ray that this process is connected to."""
    import ray

    till = ray.remote(_Till).options(num_cpus=0, max_restarts=0, max_concurrency=64).remote(limits, cap_usd, spent_usd)
    return Shared({name: _GateHandle(till, name) for name in limits}, _BudgetHandle(till))


class _Till:
    """The body of the actor."""

    def __init__(self, limits: Mapping[str, Limits], cap_usd: float | None, spent_usd: float) -> None:
        self._held = share_locally(limits, cap_usd, spent_usd)

    def gate(self, name: str, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._held.gates[name], method)(*arguments)

    def budget(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._held.budget, method)(*arguments)


def _answer(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayActorError

    try:
        return ray.get(reference)
    except RayActorError as error:
        raise TillLostError("the actor that guards the budget is gone; run the same command again to go on") from error


@dataclass(frozen=True)
class _GateHandle:
    till: Any
    name: str

    def enter(self, tokens: float = 0, held: Grant | None = None) -> Grant:
        granted: Grant = _answer(self.till.gate.remote(self.name, "enter", (tokens, held)))
        return granted

    def leave(self, trouble: Trouble | None, retry_after_s: float | None = None, unused_tokens: float = 0) -> None:
        _answer(self.till.gate.remote(self.name, "leave", (trouble, retry_after_s, unused_tokens)))


@dataclass(frozen=True)
class _BudgetHandle:
    till: Any

    def reserve(self, price_usd: float | None) -> bool:
        reserved: bool = _answer(self.till.budget.remote("reserve", (price_usd,)))
        return reserved

    def settle(self, price_usd: float | None, cost_usd: float | None) -> None:
        _answer(self.till.budget.remote("settle", (price_usd, cost_usd)))
