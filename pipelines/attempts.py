"""Attempts that parts have used up, kept in storage so that a restarted run counts on."""

import json
from contextlib import suppress
from typing import Protocol

from pairforge.config import canonical_json
from pairforge.records import InfraError
from pairforge.shards import ShardName
from pairforge.storage import Storage

_ATTEMPTS = "runs/attempts/"


class Named(Protocol):
    """A part of any line."""

    @property
    def shard(self) -> ShardName: ...


class AttemptLedger:
    """Faults of parts over all runs. A part that used all its attempts is quarantined until `forget` is called."""

    def __init__(self, storage: Storage, max_attempts: int) -> None:
        self._storage = storage
        self._max_attempts = max_attempts
        entries = storage.list(_ATTEMPTS)
        self._known = {entry.name: json.loads(storage.read(entry.name)) for entry in entries}

    def attempts(self, part: Named) -> int:
        """Tries that ended in a fault, over all runs."""
        return int(self._known.get(_attempts_name(part), {}).get("attempts", 0))

    def last_fault(self, part: Named) -> str:
        """What ended the last of them, and how many there were."""
        known = self._known[_attempts_name(part)]
        return f"quarantined after {known['attempts']} attempts, the last: {known['fault']}"

    def quarantined(self, part: Named) -> bool:
        """Whether no attempt is left."""
        return self.attempts(part) >= self._max_attempts

    def note(self, part: Named, attempt: int, fault: InfraError) -> None:
        """Write down one fault. If storage is away just now, this run counts it, a later one may not."""
        name = _attempts_name(part)
        self._known[name] = {"attempts": attempt, "fault": str(fault)}
        with suppress(InfraError):
            self._storage.write(name, canonical_json(self._known[name]).encode())

    def clear(self, part: Named) -> None:
        """The part was made: its faults no longer count."""
        if self._known.pop(_attempts_name(part), None) is not None:
            self._storage.delete(_attempts_name(part))

    def forget(self) -> int:
        """Give every part all its attempts back; how many had used some."""
        for name in self._known:
            self._storage.delete(name)
        forgotten = len(self._known)
        self._known.clear()
        return forgotten


def _attempts_name(part: Named) -> str:
    return f"{_ATTEMPTS}{part.shard.stem.removeprefix('shards/')}.json"
