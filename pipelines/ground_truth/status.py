"""What a ground-truth run has spent and what came of it, from storage alone.

Money is summed from the journal, fates from markers: neither reads a row. How many attempts a pair took, and how often
judge and rule disagreed, is in the rows; of a large dataset only some parts, evenly spread, are read for that.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pairforge.journal_spend import Spend, spend, total
from pairforge.records import parse_stored
from pairforge.shards import Marker, read_marker, read_rows
from pairforge.storage import Storage
from pipelines.ground_truth.asks import stage_of
from pipelines.ground_truth.plan import LINE
from pipelines.publication import RUN_FILE, RunState, read_status

_RECORDS_READ = 20_000
"""About so many rows are read."""
_READERS = 8


def is_truth(storage: Storage) -> bool:
    """Whether a ground-truth run has written here: it screens before anything else."""
    return storage.exists("selected/settings.json") or any(True for _ in storage.list("screen/"))


def truth_status(storage: Storage, cap_usd: float | None = None) -> dict[str, Any]:
    """`read_status` of a ground-truth run, with its money, its yield and its troubles. Raises DamagedError.

    `usd_a_pair` of all is all that was ever spent for each kept pair; of a category it is what its committed parts
    cost. While the first run still screens, there are no parts yet.
    """
    found, markers = _made(storage)
    spends = spend(storage)
    whole = total(spends)
    kept = sum(marker.kept for marker in markers)
    own = sorted({marker.category for marker in markers} | {_phase(name)[1] for name in spends if _phase(name)[1]})
    rows_of = _some(markers)
    attempts = list(_attempts(storage, rows_of))
    return {
        **found,
        "line": LINE,
        "spend": {
            **whole.model_dump(exclude={"outcomes"}),
            "cap_usd": cap_usd,
            "room_usd": None if cap_usd is None else max(0.0, cap_usd - whole.usd),
            "by_phase": _by_phase(spends),
            "by_service": _by_service(whole),
        },
        "usd_a_pair": _each(whole.usd, kept),
        "categories": [_category(name, markers, spends, attempts) for name in own],
        "attempts": {
            "records": len(attempts),
            "complete": len(rows_of) == len(markers),
            "pairs": _counted(len(told) for _, told in attempts if told[-1]["outcome"] == "accepted"),
            "agreement": _counted(each["agreement"] for _, told in attempts for each in told if "agreement" in each),
        },
    }


def _made(storage: Storage) -> tuple[dict[str, Any], list[Marker]]:
    """`read_status`, and the markers of the parts of the latest run."""
    try:
        found = read_status(storage)
    except FileNotFoundError:
        if not is_truth(storage):
            raise
        empty = dict.fromkeys(("parts", "parts_done", "records", "records_done", "kept", "rejected", "failed"), 0)
        return {"name": None, **empty, "reasons": {}, "bytes": 0, "latest_snapshot": None}, []
    state = parse_stored(RunState, storage.read(RUN_FILE), storage.url(RUN_FILE))
    present = {entry.name for entry in storage.list("shards/")}
    with ThreadPoolExecutor(_READERS) as pool:
        done = (name for name, _ in state.parts if name in present)
        return found, list(pool.map(lambda name: read_marker(storage, name), done))


def _phase(partition: str) -> tuple[str, str]:
    """Of a partition of the journal: `make`, or the step of screening; and the category that it was made for."""
    phase, _, rest = partition.partition("-")
    name = rest.partition("-")[0]
    return (phase, name) if phase == "make" else (f"{phase}.{name}", "")


def _by_phase(spends: Mapping[str, Spend]) -> list[dict[str, Any]]:
    phases: dict[str, Spend] = {}
    for name, each in spends.items():
        phase, _ = _phase(name)
        phases[phase] = phases.get(phase, Spend()) + each
    return [{"phase": name, **each.model_dump(exclude={"outcomes"})} for name, each in sorted(phases.items())]


def _by_service(whole: Spend) -> list[dict[str, Any]]:
    """Requests that ended, how they ended, and money, by service and stage."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    usd: defaultdict[tuple[str, str], float] = defaultdict(float)
    for name, count in whole.outcomes.items():
        service, stage, outcome = name.rsplit(":", 2)
        counts.setdefault((service, stage_of(stage)), Counter())[outcome] += count
    for name, cost in whole.usd_by.items():
        service, stage = name.rsplit(":", 1)
        counts.setdefault((service, stage_of(stage)), Counter())
        usd[(service, stage_of(stage))] += cost
    return [
        {
            "service": service,
            "stage": stage,
            "requests": own.total(),
            "usd": round(usd[(service, stage)], 6),
            "outcomes": _counted(own),
        }
        for (service, stage), own in sorted(counts.items())
    ]


def _category(
    name: str, markers: Sequence[Marker], spends: Mapping[str, Spend], attempts: Sequence[tuple[str, list[Any]]]
) -> dict[str, Any]:
    own = [marker for marker in markers if marker.category == name]
    planned, kept = sum(marker.planned for marker in own), sum(marker.kept for marker in own)
    done = total({marker.part: spends.get(f"make-{name}-{marker.part}", Spend()) for marker in own})
    reasons = _counted(reason for marker in own for reason in Counter(marker.reasons).elements())
    told = [len(each) for category, each in attempts if category == name]
    return {
        "category": name,
        "planned": planned,
        "kept": kept,
        "rejected": sum(marker.rejected for marker in own),
        "failed": sum(marker.failed for marker in own),
        "refused": reasons.get("refused", 0),
        "yield": _each(kept, planned),
        "attempts_a_record": _each(sum(told), len(told)),
        "usd": total({place: each for place, each in spends.items() if _phase(place) == ("make", name)}).usd,
        "usd_a_pair": _each(done.usd, kept),
        "reasons": reasons,
    }


def _some(markers: Sequence[Marker]) -> list[Marker]:
    """Markers whose rows are read: all of a small dataset, of a large one every so many, in their order."""
    step = max(1, -(-sum(marker.planned for marker in markers) // _RECORDS_READ))
    return list(markers[::step])


def _attempts(storage: Storage, markers: Iterable[Marker]) -> Iterator[tuple[str, list[Any]]]:
    """Category and attempts of every record that had any."""

    def read(marker: Marker) -> list[tuple[str, list[Any]]]:
        column = read_rows(storage, [marker.rows_name], ["generation"])["generation"].to_pylist()
        told = (json.loads(text)["attempts"] for text in column if text is not None)
        return [(marker.category, each) for each in told if each]

    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(read, markers):
            yield from found


def _counted(things: Iterable[Any]) -> dict[str, int]:
    counts = things if isinstance(things, Counter) else Counter(things)
    return {str(name): count for name, count in sorted(counts.items())}


def _each(whole: float, count: int) -> float | None:
    return whole / count if count else None
