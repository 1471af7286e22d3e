"""What the next run does by itself: which failed records are due again, and whether the budget has room for them."""

from collections.abc import Iterable

from pairforge.shards import Marker
from pairforge.storage import Storage
from pipelines.carry import OVER_BUDGET, TRANSIENT
from pipelines.ground_truth.asks import make_asks
from pipelines.ground_truth.plan import TruthPart
from pipelines.ground_truth.settings import GroundTruthConfig
from pipelines.retries import failed_keys

_UNREADABLE = frozenset((f"{TRANSIENT}unscored", f"{TRANSIENT}malformed"))
"""Reasons that cost money every time."""


def has_room(config: GroundTruthConfig, category: str, spent_usd: float) -> bool:
    """Whether the budget leaves room for the first request of a record."""
    cap, asks = config.budget.cap_usd, make_asks(config, category)
    return cap is None or not asks or spent_usd + (asks[0].most_usd or 0.0) <= cap


def due_again(
    config: GroundTruthConfig, storage: Storage, made: Iterable[tuple[TruthPart, Marker]], spent_usd: float
) -> dict[str, list[str]]:
    """Keys of the records of committed parts that failed for passing reasons, by the content of their part."""
    found: dict[str, list[str]] = {}
    readable_again = config.make.unreadable_runs
    for part, marker in made:
        passing = [reason for reason in marker.reasons if reason.startswith(TRANSIENT)]
        if OVER_BUDGET in passing and not has_room(config, part.category, spent_usd):
            passing.remove(OVER_BUDGET)
        keys = failed_keys(storage, marker, tuple(reason for reason in passing if reason not in _UNREADABLE))
        tried = {record.key: record.again for record in part.records}
        unreadable = failed_keys(storage, marker, tuple(reason for reason in passing if reason in _UNREADABLE))
        keys += [key for key in unreadable if tried[key] < readable_again]
        if keys:
            found[part.content] = keys
    return found
