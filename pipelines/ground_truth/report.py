"""What a ground-truth run tells of its sources: the funnel, phase by phase and reason by reason."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pairforge.shards import Marker
from pipelines.catalog import REMOVED, Catalog
from pipelines.ground_truth.select import PASSED, Selection, Standing


def count_sources(catalog: Catalog, selection: Selection) -> dict[str, int]:
    """What became of every source: seen, usable (selected), refusals by reason."""
    counts = catalog.counts()
    refused = Counter(f"rejected:{each.reason}" for each in selection.standings if each.phase != PASSED)
    refused["rejected:too_small_or_no_photo"] = counts["usable"] - len(selection.standings)
    rest = {name: count for name, count in counts.items() if name not in ("seen", "usable")}
    listed = {**rest, **{name: count for name, count in refused.items() if count}}
    return {"seen": counts["seen"], "usable": len(selection.selected), **dict(sorted(listed.items()))}


def funnel(catalog: Catalog, selection: Selection, markers: Sequence[Marker]) -> list[dict[str, Any]]:
    """Of every phase: how many came in, how many went on, and why the others did not."""
    counts = catalog.counts()
    found, left = [], counts["seen"]
    for phase, reasons in _refused(counts, selection):
        found.append({"phase": phase, "in": left, "out": left - sum(reasons.values()), "reasons": reasons})
        left -= sum(reasons.values())
    found.append({"phase": PASSED, "in": left, "out": left, "reasons": selection.by_category()})
    if markers:
        reasons = dict(sorted(sum((Counter(marker.reasons) for marker in markers), Counter[str]()).items()))
        kept, planned = sum(marker.kept for marker in markers), sum(marker.planned for marker in markers)
        found.append({"phase": "make", "in": planned, "out": kept, "reasons": reasons})
    return found


def _refused(counts: Mapping[str, int], selection: Selection) -> Iterator[tuple[str, dict[str, int]]]:
    own = {name: n for name, n in counts.items() if name not in ("seen", "usable")}
    listed = {name: n for name, n in own.items() if not name.startswith(REMOVED)}
    gone = counts["seen"] - counts["usable"] - sum(listed.values())
    small = counts["usable"] - len(selection.standings)
    told = {**listed, "removed": gone, "too_small_or_no_photo": small}
    yield "catalog", {name: count for name, count in told.items() if count}
    yield from selection.refused().items()


def unlisted(catalog: Catalog, selection: Selection) -> Iterator[Standing]:
    """Standings of the sources that were refused before screening; of those seen more than once, as last seen."""
    screened = {each.source_id for each in selection.standings}
    rows = {(row.uri, row.locator): row for batch in catalog.read_batches() for row in batch}
    for row in rows.values():
        if not row.source_id or row.source_id not in screened:
            reason = row.reason or "too_small_or_no_photo"
            yield Standing(row.source_id, row.uri, row.split, "catalog", reason, row.detail, "", 0)


def refusals(selection: Selection) -> str:
    """The same in one line."""
    told = [
        f"{phase}: {', '.join(f'{count} {reason}' for reason, count in reasons.items())}"
        for phase, reasons in selection.refused().items()
        if reasons
    ]
    return "; ".join(told) or "no source is usable"
