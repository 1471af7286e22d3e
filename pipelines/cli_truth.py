"""How the plan and the status of a ground-truth run look on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from pipelines.console import human_bytes, human_seconds, in_words, out, print_table

_MONEY = {"at_least": "least_usd", "expected": "expected_usd", "at_most": "most_usd"}


def usd(value: float | None) -> str | None:
    """Dollars and cents; less than ten cents in two digits."""
    if value is None:
        return None
    return f"${value:,.2f}" if value == 0 or abs(value) >= 0.1 else f"${value:.2g}"


def print_truth_plan(found: Mapping[str, Any], config: str) -> None:
    """What `pipelines.ground_truth.estimate.estimate_truth` found."""
    joining, total = found["joining"], found["total"]
    rows = [{**row, "what": row["category"]} for row in found["categories"]]
    if joining["records_most"]:
        told = {"records_left": f"<= {joining['records_most']}"}
        rows.append({**dict.fromkeys(rows[0]), **told, **joining, "what": "not selected yet"})
    rows += [
        {**dict.fromkeys(rows[0]), **step, "what": f"screening: {step['step']}"}
        for step in found["screening"]
        if step["most_usd"] != 0
    ]
    rows.append({**total, "what": "total"})
    counts = ("slots", "parts", "parts_done", "records_done", "records_left")
    print_table(f"plan of {config}", ("what", *counts, *_MONEY), [_with_money(row) for row in rows])
    if found["requests"]:
        requests = [{**row, "reserved_each": usd(row["reserved_usd"])} for row in found["requests"]]
        print_table("requests left", ("stage", "service", "least", "most", "reserved_each"), requests)
        record = " to ".join(usd(found["record"][name]) or "?" for name in ("least_usd", "most_usd"))
        out.print(f"a record: {record}; at least: all accepted at once, tokens not counted, old answers found again")
        out.print("at most: all attempts, every request at its reserved price, which is an upper bound; no old answers")
    out.print(f"sources: {in_words(_sources(found['sources']))}")
    print_table("screening", ("step", "measured", "due", "perhaps"), found["screening"])
    if not found["selection_known"]:
        likely = joining["records_expected"]
        out.print(
            f"selection is not known yet: {found['selected']} sources are selected so far, at most "
            f"{joining['records_most']} records join{'' if likely is None else f', about {likely:.0f} as it goes'}; "
            f"`pairforge filter {escape(config)}` settles it"
        )
    if not total["records_left"] and not joining["records_most"]:
        out.print("nothing left to do")
    _print_history(found["history"])
    _print_budget(found)
    if total["records_left"] or joining["records_most"]:
        _print_time(found)


def _sources(counts: Mapping[str, int]) -> dict[str, int]:
    """What the funnel calls usable is selected, and what it refused for now is due."""
    words = {"usable": "selected", "rejected:not_measured": "to be screened"}
    return {words.get(name, name): count for name, count in counts.items()}


def _with_money(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, **{head: usd(row[name]) for head, name in _MONEY.items()}}


def _print_history(past: Mapping[str, Any] | None) -> None:
    if past is None:
        out.print("no part of this plan is committed: nothing to expect from")
        return
    told = f"{past['records']} committed records: {past['kept'] / past['records']:.0%} kept"
    if past["requests_a_record"]:
        asked = ", ".join(f"{count:.2f} {stage}" for stage, count in past["requests_a_record"].items())
        told += f", {usd(past['usd_a_record']) or '?'} a record, {usd(past['usd_a_pair']) or '?'} a pair"
        told += f"; requests a record: {asked}"
    out.print(told)


def _print_budget(found: Mapping[str, Any]) -> None:
    budget = found["budget"]
    if found["unpriced"]:
        capped = "" if budget["cap_usd"] is None else "; under a cap no run starts without them"
        out.print(f"prices of {', '.join(found['unpriced'])} are not known: services.NAME.prices{capped}")
    if budget["unpriced_requests"]:
        out.print(f"{budget['unpriced_requests']} requests so far had no price")
    cap, spent, room = (usd(budget[name]) for name in ("cap_usd", "spent_usd", "room_usd"))
    if cap is None:
        out.print(f"spent {spent}; no cap")
        return
    words = {True: "enough", False: "not enough", None: "not known whether that is enough"}[budget["enough"]]
    told = f"cap {cap}, spent {spent}, room {room}: {words}"
    if not budget["enough"] and budget["records_in_room"] is not None:
        told += f"; pays {budget['records_in_room']} records even if each takes all its attempts"
        if budget["pairs_in_room"] is not None:
            told += f", about {budget['pairs_in_room']} pairs as expected"
    out.print(told)


def _print_time(found: Mapping[str, Any]) -> None:
    seconds, size, waits = found["seconds_left"], found["bytes_left"], found["service_seconds"]
    told = "not known before a part is committed" if seconds is None else f"about {human_seconds(seconds)}"
    told += f", {human_bytes(size)}" if size else ""
    if found["requests"]:
        bounds = f"{human_seconds(waits['least'])} by their rates, at most {human_seconds(waits['most'])} by timeouts"
        told += f"; waiting for services: at least {bounds}"
    out.print(f"time: {told}")


def print_truth_status(found: Mapping[str, Any]) -> None:
    """What `pipelines.ground_truth.status.truth_status` found."""
    if found["categories"]:
        rows = [
            {
                **row,
                "yield": None if row["yield"] is None else f"{row['yield']:.0%}",
                "attempts": None if row["attempts_a_record"] is None else f"{row['attempts_a_record']:.2f}",
                "spent": usd(row["usd"]),
                "a_pair": usd(row["usd_a_pair"]),
            }
            for row in found["categories"]
        ]
        fields = (
            "category",
            "planned",
            "kept",
            "yield",
            "rejected",
            "refused",
            "failed",
            "attempts",
            "spent",
            "a_pair",
        )
        print_table("committed parts", fields, rows)
        for row in found["categories"]:
            if row["reasons"]:
                out.print(f"  {row['category']}: {in_words(row['reasons'])}")
    _print_attempts(found["attempts"])
    _print_spend(found["spend"], found["usd_a_pair"])


def _print_attempts(told: Mapping[str, Any]) -> None:
    if not told["records"]:
        return
    some = "" if told["complete"] else f" (of {told['records']} records in parts spread over all)"
    out.print(f"pairs by attempts they took: {_pairs(told['pairs'])}{some}")
    out.print(f"judge and rule: {in_words(told['agreement'])}{some}")


def _pairs(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{attempts}: {count}" for attempts, count in counts.items()) or "none"


def _print_spend(spent: Mapping[str, Any], usd_a_pair: float | None) -> None:
    if not spent["requests"]:
        out.print("nothing spent: no service was asked")
        return
    rows = [{**row, **row["outcomes"]} for row in spent["by_service"]]
    outcomes = _columns(rows)
    print_table("requests that ended", ("service", "stage", "requests", "usd", *outcomes), rows)
    phases = ", ".join(f"{row['phase']} {usd(row['usd'])}" for row in spent["by_phase"])
    out.print(f"spent {usd(spent['usd'])}{_room(spent)}: {phases}")
    tokens = f"{spent['input_tokens']:,} tokens in, {spent['output_tokens']:,} out"
    out.print(
        f"{spent['requests']} requests, {spent['unanswered']} without an outcome, {spent['unpriced']} without a price; "
        f"{tokens}"
    )
    if usd_a_pair is not None:
        out.print(f"an accepted pair costs {usd(usd_a_pair)}")


def _room(spent: Mapping[str, Any]) -> str:
    return "" if spent["cap_usd"] is None else f" of {usd(spent['cap_usd'])}, room {usd(spent['room_usd'])}"


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every outcome that was met, answers first; rows get a 0 where they had none."""
    met = {name for row in rows for name in row["outcomes"]}
    for row in rows:
        row.update({name: row["outcomes"].get(name, 0) for name in met})
    return sorted(met, key=lambda name: (name != "answered", name))
