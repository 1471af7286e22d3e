"""What a ground-truth run would cost and take, before anything is spent: bounds from the config, expectations from what
committed parts of this output took. Nothing is written to the output, and no service is contacted.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pairforge.journal_spend import Spend, spend, total
from pairforge.shards import Marker
from pairforge.storage import Entry, Storage, open_storage
from pairforge.storage_local import LocalStorage
from pipelines.carry import TRANSIENT
from pipelines.catalog import Catalog
from pipelines.ground_truth.asks import (
    Ask,
    Line,
    Usd,
    add,
    dearest,
    each_usd,
    ended_by_stage,
    make_asks,
    screen_ask,
    times,
)
from pipelines.ground_truth.due import due_again
from pipelines.ground_truth.plan import TruthPart, plan_truth
from pipelines.ground_truth.report import count_sources
from pipelines.ground_truth.select import Selection, read_slots, select, write_slots
from pipelines.ground_truth.settings import GroundTruthConfig, VlmScreen
from pipelines.publication import read_markers
from pipelines.retries import retry
from pipelines.stages import Pool

COUNTS = ("slots", "parts", "parts_done", "records_done", "records_left")
MONEY = ("least_usd", "expected_usd", "most_usd")
_NOT_MEASURED = "not_measured"
"""Reason of sources that are due at a step of screening."""


@dataclass(frozen=True)
class _Past:
    """What the records of committed parts took that are not due again; `seconds` are of one part at a time."""

    records: int = 0
    kept: int = 0
    usd: Usd = 0.0
    seconds: float = 0.0
    bytes: int = 0
    requests: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "_Past") -> "_Past":
        return _Past(
            records=self.records + other.records,
            kept=self.kept + other.kept,
            usd=add((self.usd, other.usd)),
            seconds=self.seconds + other.seconds,
            bytes=self.bytes + other.bytes,
            requests=self.requests + other.requests,
        )

    def mean(self, whole: Usd) -> Usd:
        """`whole` for each record; None where there is none."""
        return None if whole is None or not self.records else whole / self.records

    @property
    def pair_usd(self) -> Usd:
        return None if self.usd is None or not self.kept else self.usd / self.kept


@dataclass
class _Seen:
    """The parts of a category, and what the committed ones took."""

    done: list[TruthPart] = field(default_factory=list)
    left: list[TruthPart] = field(default_factory=list)
    past: _Past = field(default_factory=_Past)


@dataclass(frozen=True)
class _Step:
    """One step of screening: sources that it has measured, that are due at it, and that may still get to it."""

    step: str
    measured: int
    due: int
    perhaps: int

    def likely(self, sources: int) -> float | None:
        """How many it will measure if as many get to it as of those that are decided; None where none is."""
        if not self.perhaps:
            return self.due
        decided = sources - self.perhaps
        return self.due + self.perhaps * (self.measured + self.due) / decided if decided else None


@dataclass(frozen=True)
class _Bill:
    """Requests for a step of screening, the records left of a category, or those that may join.

    `records` are those ahead, as expected; None where that is not known.
    """

    lines: Sequence[Line]
    records: float | None
    expected_usd: Usd

    @property
    def money(self) -> dict[str, Usd]:
        return {
            "least_usd": add(times(line.ask.least_usd, line.least) for line in self.lines),
            "expected_usd": None if self.expected_usd is None else round(self.expected_usd, 6),
            "most_usd": add(times(line.ask.most_usd, line.most) for line in self.lines),
        }


@dataclass(frozen=True)
class _Above(LocalStorage):
    """A scratch folder above an output: what it does not hold is read from there, where nothing is ever written."""

    below: Storage

    def url(self, name: str) -> str:
        return self.below.url(name)

    def read(self, name: str) -> bytes:
        try:
            return super().read(name)
        except FileNotFoundError:
            return self.below.read(name)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        found = {entry.name: entry for entry in (*self.below.list(prefix), *super().list(prefix))}
        return iter(sorted(found.values()))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return not self.below.exists(name) and super().put_if_absent(name, data)

    def compare_and_swap(self, name: str, expected: bytes | None, new: bytes) -> bool:
        if not self.exists(name) and self.below.exists(name):
            self.write(name, self.below.read(name))
        return super().compare_and_swap(name, expected, new)


def estimate_truth(config: GroundTruthConfig) -> dict[str, Any]:
    """What a run would do, without writing to its output. Money of all that is left, None where it cannot be known:

    `least_usd`: every record is accepted at its first attempt, tokens cost nothing, answers in the journal are found
    again (refusals, or a cheaper fallback, may cost less still). `most_usd`: every record takes all its attempts, every
    judge is asked as often as may be, at the prices that are reserved, and nothing in the journal helps (a request
    that times out may be charged on top). `expected_usd`: as committed parts cost. Where sources are still to be
    screened, parts are those of slots given before, and `joining` are the records that may come to them.
    """
    output = open_storage(config.output)
    spends = spend(output)
    with tempfile.TemporaryDirectory(prefix="pairforge-plan-") as folder:
        scratch = _Above(folder, output)
        catalog = Catalog(scratch)
        catalog.scan(config)
        selection = select(config, catalog, scratch)
        settled = not selection.unfinished
        write_slots(scratch, selection.fresh if settled else (), config.shards.records_per_shard)
        slots = Counter(slot.category for slot in read_slots(scratch))
        parts = list(plan_truth(config, catalog))
        markers = _markers(output, parts)
        seen = _made(config, parts, markers, spends)
        made = ((part, markers[part.shard.marker]) for part in parts if part.shard.marker in markers)
        if due := due_again(config, output, made, total(spends).usd):
            retry(scratch, due)
            parts = list(plan_truth(config, catalog))
        for part in parts:
            (seen[part.category].done if part.shard.marker in markers else seen[part.category].left).append(part)
        sources = count_sources(catalog, selection)
    asks = {category.name: make_asks(config, category.name) for category in config.select.categories}
    costliest = max(asks.values(), key=lambda each: each_usd(each)[1] or 0.0)
    past = sum((each.past for each in seen.values()), _Past())
    steps = [(step, _screening(config, step, len(selection.standings), spends)) for step in _steps(config, selection)]
    making = {name: _making(each, asks[name], past, spends) for name, each in seen.items()}
    most, likely = (0, 0.0) if settled else _unselected(config, selection, slots)
    mean_usd = past.mean(past.usd) if costliest else 0.0
    joining = _Bill([Line(ask, 0, most * ask.most) for ask in costliest], likely, times(mean_usd, likely))
    bills = [*(bill for _, bill in steps), *making.values(), joining]
    lines = [line for bill in bills for line in bill.lines]
    rows = [_row(name, slots[name], seen[name], bill) for name, bill in making.items()]
    money = {name: add(bill.money[name] for bill in bills) for name in MONEY}
    counts = {name: sum(row[name] for row in rows) for name in COUNTS}
    ahead = add(bill.records for bill in (*making.values(), joining))
    seconds, size = times(past.mean(past.seconds), ahead), times(past.mean(past.bytes), ahead)
    return {
        "line": config.line,
        "sources": sources,
        "screening": [{**asdict(step), **bill.money} for step, bill in steps],
        "selected": len(selection.selected),
        "selection_known": settled,
        "categories": rows,
        "joining": {"records_most": most, "records_expected": likely, **joining.money},
        "total": {**counts, **money},
        "record": dict(zip(("least_usd", "most_usd"), each_usd(costliest), strict=True)),
        "requests": _requests(lines),
        "unpriced": sorted({line.ask.service for line in lines if line.ask.most_usd is None}),
        "history": _history(past),
        "budget": _budget(config, spends, money, [bill for _, bill in steps], past, costliest, counts, most),
        "service_seconds": _service_seconds(config, lines),
        "seconds_left": None if seconds is None else round(seconds / _at_once(config, "make"), 1),
        "bytes_left": None if size is None else round(size),
    }


def _markers(output: Storage, parts: Iterable[TruthPart]) -> dict[str, Marker]:
    """Markers of the parts that are committed, by name."""
    present = {entry.name for entry in output.list("shards/")}
    names = [part.shard for part in parts if part.shard.marker in present]
    return {name.marker: marker for name, marker in zip(names, read_markers(output, names), strict=True)}


def _made(
    config: GroundTruthConfig, parts: Iterable[TruthPart], markers: Mapping[str, Marker], spends: Mapping[str, Spend]
) -> dict[str, _Seen]:
    """What committed parts took, by category in the order of names."""
    seen = {name: _Seen() for name in sorted(category.name for category in config.select.categories)}
    for part in parts:
        if part.shard.marker in markers:
            seen[part.category].past += _past(spends.get(part.partition, Spend()), markers[part.shard.marker])
    return seen


def _past(spent: Spend, marker: Marker) -> _Past:
    usd, seconds = None if spent.unpriced else spent.usd, marker.production.get("seconds", 0.0)
    size = marker.tar_bytes + marker.rows_bytes
    passing = sum(count for reason, count in marker.reasons.items() if reason.startswith(TRANSIENT))
    return _Past(marker.planned - passing, marker.kept, usd, seconds, size, ended_by_stage(spent))


def _steps(config: GroundTruthConfig, selection: Selection) -> list[_Step]:
    """How far screening is, from where every source stands."""
    places = {f"screen_{step.name}": place for place, step in enumerate(config.screen)}
    standing = Counter(
        (places.get(each.phase, len(places)), each.reason == _NOT_MEASURED) for each in selection.standings
    )
    return [
        _Step(
            step=step.name,
            measured=sum(count for (at, waits), count in standing.items() if at > place or (at == place and not waits)),
            due=standing[place, True],
            perhaps=sum(count for (at, waits), count in standing.items() if at < place and waits),
        )
        for place, step in enumerate(config.screen)
    ]


def _screening(config: GroundTruthConfig, step: _Step, sources: int, spends: Mapping[str, Spend]) -> _Bill:
    stated = next(each for each in config.screen if each.name == step.step)
    likely = step.likely(sources)
    if not isinstance(stated, VlmScreen):
        return _Bill((), likely, 0.0)
    ask = screen_ask(config, stated)
    spent = total({name: each for name, each in spends.items() if name.startswith(f"screen-{step.step}-")})
    found_again = max(0, ended_by_stage(spent)[ask.stage] - step.measured)
    line = Line(ask, max(0, step.due - found_again), (step.due + step.perhaps) * ask.most)
    mean_usd = spent.usd / step.measured if step.measured and not spent.unpriced else None
    return _Bill((line,), likely, times(mean_usd, likely))


def _making(seen: _Seen, asks: Sequence[Ask], overall: _Past, spends: Mapping[str, Spend]) -> _Bill:
    """What the parts that are left ask for.

    What was spent on a part that is not committed is taken off: the answers are in the journal. It says nothing where
    no part of its category is committed, as then it may have been spent under other settings.
    """
    left = [(part, spends.get(part.partition, Spend())) for part in seen.left]
    past = seen.past if seen.past.records or any(spent.requests for _, spent in left) else overall
    mean_usd = past.mean(past.usd) if asks else 0.0
    ahead = 0.0
    for part, spent in left:
        made = spent.usd / mean_usd if mean_usd else 0.0
        ahead += max(len(part.records) - made, sum(record.again > 0 for record in part.records))
    attempts = sum(1 + record.again for part in seen.left for record in part.records)
    lines = [
        Line(
            ask,
            sum(max(0, ask.least * len(part.records) - ended_by_stage(spent)[ask.stage]) for part, spent in left),
            ask.most * attempts,
        )
        for ask in asks
    ]
    return _Bill(lines, ahead, times(mean_usd, ahead))


def _unselected(config: GroundTruthConfig, selection: Selection, slots: Mapping[str, int]) -> tuple[int, float | None]:
    """How many records may still join: at most, and if sources go on to pass as they did."""
    waiting = sum(each.reason == _NOT_MEASURED for each in selection.standings)
    decided, fresh = len(selection.standings) - waiting, len(selection.fresh)
    most = waiting + fresh
    if all(category.quota is not None for category in config.select.categories):
        most = min(most, sum(max(0, (each.quota or 0) - slots[each.name]) for each in config.select.categories))
    return most, min(most, fresh + waiting * len(selection.selected) / decided) if decided else None


def _row(name: str, slots: int, seen: _Seen, bill: _Bill) -> dict[str, Any]:
    done, left = (sum(len(part.records) for part in parts) for parts in (seen.done, seen.left))
    counts = (slots, len(seen.done) + len(seen.left), len(seen.done), done, left)
    return {"category": name, **dict(zip(COUNTS, counts, strict=True)), **bill.money}


def _requests(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Requests that are left, by stage and service; `reserved_usd` is what the dearest of each takes."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line.most:
            found.setdefault((line.ask.stage, line.ask.service), []).append(line)
    return [
        {
            "stage": stage,
            "service": service,
            "least": sum(line.least for line in own),
            "most": sum(line.most for line in own),
            "reserved_usd": dearest([line.ask.most_usd for line in own]),
        }
        for (stage, service), own in found.items()
    ]


def _history(past: _Past) -> dict[str, Any] | None:
    """Means over committed parts."""
    if not past.records:
        return None
    return {
        "records": past.records,
        "kept": past.kept,
        "usd_a_record": past.mean(past.usd),
        "usd_a_pair": past.pair_usd,
        "seconds_a_record": past.mean(past.seconds),
        "requests_a_record": {stage: count / past.records for stage, count in sorted(past.requests.items())},
    }


def _budget(
    config: GroundTruthConfig,
    spends: Mapping[str, Spend],
    money: Mapping[str, Usd],
    screening: Sequence[_Bill],
    past: _Past,
    asks: Sequence[Ask],
    counts: Mapping[str, int],
    joining: int,
) -> dict[str, Any]:
    """What was spent, what the cap leaves, whether that is `enough`, and what it buys after screening.

    `records_in_room` can be paid even where each takes all its attempts, `pairs_in_room` are expected.
    """
    spent, cap = total(spends), config.budget.cap_usd
    found: dict[str, Any] = {"cap_usd": cap, "spent_usd": round(spent.usd, 6), "unpriced_requests": spent.unpriced}
    found |= dict.fromkeys(("room_usd", "enough", "records_in_room", "pairs_in_room"))
    if cap is None:
        return found
    room, left = max(0.0, cap - spent.usd), counts["records_left"] + joining
    least, expected, most = (money[name] for name in MONEY)

    def buys(price: Usd, scenario: str, wanted: float) -> int | None:
        first = add(bill.money[scenario] for bill in screening)
        if price is None or first is None:
            return None
        return int(min(wanted, max(0.0, room - first) / price + 1e-9) if price else wanted)

    if most is not None and most <= room:
        found["enough"] = True
    elif least is not None and least > room:
        found["enough"] = False
    elif expected is not None:
        found["enough"] = expected <= room
    found["room_usd"] = round(room, 6)
    found["records_in_room"] = buys(each_usd(asks)[1], "most_usd", left)
    if past.records:
        found["pairs_in_room"] = buys(past.pair_usd, "expected_usd", left * past.kept / past.records)
    return found


def _service_seconds(config: GroundTruthConfig, lines: Sequence[Line]) -> dict[str, float]:
    """Waiting for services: at least as their rates allow, at most where every request takes until its timeout."""
    least, most = Counter[str](), Counter[str]()
    slow = 0.0
    for line in lines:
        name, (phase, _, step) = line.ask.service, line.ask.stage.partition(".")
        least[name] += line.least
        most[name] += line.most
        side_by_side = config.make.in_flight * _at_once(config, f"screen_{step}" if phase == "screen" else "make")
        slow += line.most * config.services[name].timeout_s / side_by_side
    return {
        "least": round(max((_rated_s(config, *each) for each in least.items()), default=0.0), 1),
        "most": round(max([slow, *(_rated_s(config, *each) for each in most.items())]), 1),
    }


def _rated_s(config: GroundTruthConfig, service: str, requests: int) -> float:
    """From the first to the last of so many requests, as the service's rate allows."""
    limits = config.services[service].limits
    per_min = limits.requests_per_min
    return max(0.0, (requests - 1) * 60 / per_min - limits.burst_s) if per_min else 0.0


def _at_once(config: GroundTruthConfig, stage: str) -> int:
    """Parts, or chunks of sources, that a stage works on side by side."""
    make, pool = config.make, config.run.pools.get(stage)
    if pool is None and stage == "make" and not make.asks_models:
        return config.run.workers or os.cpu_count() or 1
    return (pool or Pool()).max_actors
