"""What was spent, from the journal alone.

An intent counts as its reserved price until an outcome says what it cost; one whose worker died counts for ever.
`seal` leaves a sum beside the segments it was made of. It is believed only while those have the same sizes
(they never change except by growing), so a lost, stale or damaged one costs time, never truth.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from pydantic import Field, ValidationError

from pairforge.config import canonical_json
from pairforge.journal_log import JOURNAL, Intent, Outcome, Row, read_rows
from pairforge.records import DamagedError, Frozen, InfraError
from pairforge.storage import Storage

_SUM = "sums.json"
_READERS = 8


class Spend(Frozen):
    """Requests and money. `usd` counts a request at its cost, else at the price reserved for it, else at nothing:
    `unpriced` says how many of the last kind there are."""

    requests: int = Field(0, ge=0)
    unanswered: int = Field(0, ge=0)
    """Intents without an outcome: in flight, or lost with their worker."""
    unpriced: int = Field(0, ge=0)
    usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    outcomes: Mapping[str, int] = Field(default_factory=dict)
    """Counts by `backend:stage:outcome`; the outcome of an answer is `answered`."""
    usd_by: Mapping[str, float] = Field(default_factory=dict)
    """The same money by `backend:stage`."""

    def __add__(self, other: "Spend") -> "Spend":
        return Spend(
            requests=self.requests + other.requests,
            unanswered=self.unanswered + other.unanswered,
            unpriced=self.unpriced + other.unpriced,
            usd=self.usd + other.usd,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            outcomes=dict(sorted((Counter(self.outcomes) + Counter(other.outcomes)).items())),
            usd_by={
                name: self.usd_by.get(name, 0.0) + other.usd_by.get(name, 0.0)
                for name in sorted({*self.usd_by, *other.usd_by})
            },
        )


class _Sum(Frozen):
    segments: Mapping[str, int]
    spend: Spend


def spend_of(rows: Iterable[Row]) -> Spend:
    """The spend that these rows of one partition tell."""
    intents: dict[str, Intent] = {}
    outcomes: dict[str, Outcome] = {}
    for row in rows:
        if isinstance(row, Intent):
            intents[row.request] = row
        elif isinstance(row, Outcome):
            outcomes.setdefault(row.request, row)
    usd_by: dict[str, float] = {}
    unpriced = 0
    counts: Counter[str] = Counter()
    for request, intent in intents.items():
        outcome = outcomes.get(request)
        cost = intent.reserved_usd if outcome is None or outcome.cost_usd is None else outcome.cost_usd
        asked = f"{intent.backend}:{intent.address.stage}"
        usd_by[asked] = usd_by.get(asked, 0.0) + (cost or 0.0)
        unpriced += cost is None
        if outcome is not None:
            counts[f"{asked}:{outcome.trouble or 'answered'}"] += 1
    return Spend(
        requests=len(intents),
        unanswered=len(intents) - len(outcomes),
        unpriced=unpriced,
        usd=sum(usd_by.values()),
        input_tokens=sum(outcome.input_tokens for outcome in outcomes.values()),
        output_tokens=sum(outcome.output_tokens for outcome in outcomes.values()),
        outcomes=dict(sorted(counts.items())),
        usd_by=dict(sorted(usd_by.items())),
    )


def seal(storage: Storage, partition: str) -> None:
    """Leave the sum of a finished partition, so that `spend` need not read its rows. May be repeated."""
    before = _segments(storage, partition)
    spend = spend_of(read_rows(storage, partition))
    if before and before == _segments(storage, partition):
        text = canonical_json(_Sum(segments=before, spend=spend))
        storage.write(f"{JOURNAL}{partition}/{_SUM}", text.encode())


def spend(storage: Storage) -> dict[str, Spend]:
    """Spend of every partition, by its name."""
    found: dict[str, dict[str, int]] = {}
    summed = set()
    for entry in storage.list(JOURNAL):
        partition, _, file = entry.name.removeprefix(JOURNAL).rpartition("/")
        if file == _SUM:
            summed.add(partition)
        elif partition:
            found.setdefault(partition, {})[file] = entry.size

    for partition in summed - found.keys():
        raise DamagedError(
            f"{storage.url(f'{JOURNAL}{partition}/')} has a sum and no rows: they are gone; put them back"
        )

    def one(partition: str) -> Spend:
        known = _sum(storage, partition) if partition in summed else None
        for name, size in known.segments.items() if known is not None else ():
            if found[partition].get(name, 0) < size:
                raise DamagedError(f"{storage.url(f'{JOURNAL}{partition}/{name}')} is gone or shorter; put it back")
        if known is not None and known.segments == found[partition]:
            return known.spend
        return spend_of(read_rows(storage, partition))

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(found, pool.map(one, found), strict=True))


def total(spends: Mapping[str, Spend]) -> Spend:
    return sum(spends.values(), Spend())


def _sum(storage: Storage, partition: str) -> _Sum | None:
    try:
        return _Sum.model_validate_json(storage.read(f"{JOURNAL}{partition}/{_SUM}"))
    except (FileNotFoundError, ValidationError, InfraError):
        return None


def _segments(storage: Storage, partition: str) -> dict[str, int]:
    folder = f"{JOURNAL}{partition}/"
    entries = {entry.name.removeprefix(folder): entry.size for entry in storage.list(folder)}
    return {name: size for name, size in entries.items() if "/" not in name and name != _SUM}
