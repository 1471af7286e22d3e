"""Records that are to be tried again although their part is committed: how often, by part and key.

A part is known by the fingerprint of its content; with retries it has another one, so it is made again under a new
path and old snapshots stay readable.
"""

import json
from collections.abc import Iterable, Mapping

from pairforge.config import canonical_json, fingerprint
from pairforge.records import Fate, InfraError
from pairforge.shards import Marker, read_rows
from pairforge.storage import Storage

_RETRIES = "runs/retries.json"
Retries = Mapping[str, Mapping[str, int]]
"""Times by key, by the fingerprint of a part's content."""


def read_retries(storage: Storage) -> Retries:
    """All retries of a dataset."""
    stored = _read(storage)
    held: Retries = json.loads(stored) if stored is not None else {}
    return held


def with_retries(content: str, retries: Retries) -> str:
    """The fingerprint of a part: that of its content where nothing of it is tried again."""
    times = retries.get(content)
    return fingerprint([content, times]) if times else content


def retry(storage: Storage, keys_by_content: Mapping[str, Iterable[str]], attempts: int = 10) -> int:
    """Have records tried once more; how many. Raises InfraError where other writers came in between again and again."""
    wanted = {content: list(keys) for content, keys in keys_by_content.items()}
    for _ in range(attempts):
        before = _read(storage)
        held = json.loads(before) if before is not None else {}
        for content, keys in wanted.items():
            times = held.setdefault(content, {})
            for key in keys:
                times[key] = times.get(key, 0) + 1
        if storage.compare_and_swap(_RETRIES, before, canonical_json(held).encode()):
            return sum(map(len, wanted.values()))
    raise InfraError(f"{_RETRIES} was changed by others {attempts} times; run again")


def failed_keys(storage: Storage, marker: Marker, reasons: tuple[str, ...] = ("",)) -> list[str]:
    """Keys of the failed records of a part whose reason begins with one of `reasons`."""
    if not reasons or not any(reason.startswith(reasons) for reason in marker.reasons):
        return []
    rows = read_rows(storage, [marker.rows_name], ["key", "fate", "reason"]).to_pylist()
    return [row["key"] for row in rows if row["fate"] == Fate.FAILED and row["reason"].startswith(reasons)]


def _read(storage: Storage) -> bytes | None:
    try:
        return storage.read(_RETRIES)
    except FileNotFoundError:
        return None
