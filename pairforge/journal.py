"""What was paid for: every request before it is sent, every reply before it is used.

A partition (one part of a run, one batch of sources) is a log under `journal/{partition}/`: numbered segments of
JSON lines. An intent, with the price set aside, is in the log before its request leaves; the outcome before
anybody sees it. Bytes of long replies are in `replies/` by their SHA-256, short texts in the log itself.

Storage cannot append, so a segment is replaced by a longer one by compare-and-swap until it is full. All writers
of a partition therefore agree on one order, none loses another's line, and one that was given up for dead finds
out before it sends another request. Threads that write at the same time share one swap. Resuming reads the
partition's segments by number: no listing, some objects per part instead of several per record.
"""

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pairforge.config import canonical_json
from pairforge.failpoints import failpoint
from pairforge.journal_log import JOURNAL, Address, Choice, Intent, Log, Opened, Outcome, Row
from pairforge.limits import Clock
from pairforge.protocols import BackendError, Trouble, Usage
from pairforge.records import DamagedError, InfraError
from pairforge.remote_base import RemoteError, Reply
from pairforge.storage import Storage, check_name

REPLIES = "replies/"
_INLINE_BYTES = 4096
_HOLD_REPLY_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Waits between tries to store what was already paid for."""


class Superseded(InfraError):
    """Another worker took the partition over; this one may send nothing more."""


@dataclass
class _Line:
    """A row on its way into the log, with what became of it."""

    row: Row
    done: bool = False
    fault: Exception | None = None


class Partition:
    """The journal of one partition, in the hands of one worker with any number of threads."""

    def __init__(self, storage: Storage, name: str, clock: Clock | None = None) -> None:
        self.name = check_name(name)
        self._storage = storage
        self._clock = clock or Clock()
        self._writer = uuid.uuid4().hex[:12]
        self._owner = ""
        self._log = Log(storage, name)
        self._intents: dict[str, Intent] = {}
        self._ended: set[str] = set()
        self._final: dict[tuple[Address, str], Outcome] = {}
        self._choices: dict[tuple[str, str], str] = {}
        self._count = 0
        self._pending: list[_Line] = []
        self._state, self._busy = threading.Condition(), False
        self._asking: dict[Address, threading.Lock] = {}
        self._write(Opened(writer=self._writer, at=_now()))

    def find(self, address: Address, question: str) -> Reply | BackendError | None:
        """What this question was answered before, refusals too; None where it is to be asked.

        Raises DamagedError where the bytes of an answer are gone or are others.
        """
        with self._state:
            outcome = self._final.get((address, question))
        if outcome is None:
            return None
        usage = Usage(outcome.cost_usd, outcome.input_tokens, outcome.output_tokens)
        if isinstance(outcome.trouble, Trouble):
            return RemoteError(outcome.trouble, outcome.detail, outcome.retry_after_s, usage)
        return Reply(self._bytes(outcome), outcome.mime, usage)

    def intend(self, address: Address, question: str, backend: str, reserved_usd: float | None) -> str:
        """Write down that a request is about to be sent; its id. Raises Superseded where it must not be."""
        with self._state:
            self._count += 1
            request = f"{self._writer}-{self._count}"
        failpoint("journal-before-intent")
        self._write(
            Intent(
                request=request,
                address=address,
                question=question,
                backend=backend,
                reserved_usd=reserved_usd,
                at=_now(),
            )
        )
        failpoint("journal-after-intent")
        return request

    def answered(self, request: str, reply: Reply) -> None:
        """Write down a reply, before anything else happens to it."""
        failpoint("journal-before-bytes")
        digest = hashlib.sha256(reply.data).hexdigest()
        text = _inline(reply.data)
        if text is None:
            self._held(lambda: self._storage.put_if_absent(_reply_name(digest), reply.data))
        failpoint("journal-after-bytes")
        self._end(request, reply.usage, mime=reply.mime, sha256=digest, text=text)

    def failed(self, request: str, error: BackendError) -> None:
        """Write down that a request gave nothing usable. A plain BackendError does not say what it cost."""
        usage = error.usage if isinstance(error, RemoteError) else Usage(None)
        self._end(request, usage, trouble=error.trouble, detail=error.detail, retry_after_s=error.retry_after_s)

    def misconfigured(self, request: str, detail: str) -> None:
        """Write down that the service refused the settings, which is free."""
        self._end(request, Usage(0.0), trouble="misconfigured", detail=detail)

    def chosen(self, key: str, about: str) -> str | None:
        """What was chosen for this record before, None where nothing was."""
        with self._state:
            return self._choices.get((key, about))

    def choose(self, key: str, about: str, value: str) -> str:
        """The value that this record goes on with: the first one ever written wins over `value`."""
        known = self.chosen(key, about)
        if known is None:
            self._write(Choice(key=key, about=about, value=value))
            with self._state:
                known = self._choices[(key, about)]
        return known

    @contextmanager
    def asking(self, address: Address) -> Iterator[None]:
        """Holds the question: threads that ask the same one wait, and then find the answer."""
        with self._state:
            lock = self._asking.setdefault(address, threading.Lock())
        with lock:
            yield

    def _end(self, request: str, usage: Usage, **fields: Any) -> None:
        outcome = Outcome(
            request=request,
            cost_usd=usage.cost_usd,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            at=_now(),
            **fields,
        )
        self._held(lambda: self._write(outcome))
        failpoint("journal-after-outcome")

    def _held(self, write: Callable[[], object]) -> None:
        """Do not give up what was paid for at the first fault of storage."""
        for wait_s in _HOLD_REPLY_S:
            try:
                write()
                return
            except InfraError:
                self._clock.sleep(wait_s)
        write()

    def _bytes(self, outcome: Outcome) -> bytes:
        name = _reply_name(outcome.sha256)
        try:
            data = outcome.text.encode() if outcome.text is not None else self._storage.read(name)
        except FileNotFoundError as error:
            raise DamagedError(f"{self._storage.url(name)} is gone: a reply that was paid for") from error
        if hashlib.sha256(data).hexdigest() != outcome.sha256:
            raise DamagedError(f"{self._storage.url(name)} is not the reply that was paid for")
        return data

    def _write(self, row: Row) -> None:
        """Bring one row into the log. One thread writes the rows of all who wait, and leaves the next batch to another.

        A row that is done lets its thread go at once, even while the next batch is being written.
        """
        line = _Line(row)
        with self._state:
            self._pending.append(line)
            while self._busy and not line.done:
                self._state.wait()
            if not line.done:
                self._busy = True
                batch, self._pending = self._pending, []
        if not line.done:
            try:
                self._write_batch(batch)
            finally:
                with self._state:
                    self._busy = False
                    self._state.notify_all()
        if line.fault is not None:
            raise line.fault

    def _write_batch(self, batch: list[_Line]) -> None:
        try:
            while not self._append(batch):
                self._learn(self._log.refresh())
        except (InfraError, DamagedError) as fault:
            for line in batch:
                if not line.done:
                    line.done, line.fault = True, type(fault)(str(fault))
        except BaseException as fault:
            for line in batch:  # a bug: whoever waits must not wait for ever
                line.done, line.fault = True, InfraError(f"the journal could not be written: {type(fault).__name__}")
            raise

    def _append(self, batch: list[_Line]) -> bool:
        """One try. What is in the log already, and requests that must not be sent, are left out."""
        for line in batch:
            if not line.done and isinstance(line.row, Intent) and self._owner != self._writer:
                line.done, line.fault = True, Superseded(f"{JOURNAL}{self.name}: {self._owner} writes it now")
            elif isinstance(line.row, Outcome) and line.row.request in self._ended:
                line.done = True
        rows = [line.row for line in batch if not line.done]
        data = b"".join(canonical_json(row).encode() + b"\n" for row in rows)
        if rows and not self._log.append(data):
            return False
        self._learn(rows)
        for line in batch:
            line.done = True
        return True

    def _learn(self, rows: list[Row]) -> None:
        with self._state:
            for row in rows:
                if isinstance(row, Opened):
                    self._owner = row.writer
                elif isinstance(row, Intent):
                    self._intents[row.request] = row
                elif isinstance(row, Choice):
                    self._choices.setdefault((row.key, row.about), row.value)
                elif isinstance(row, Outcome) and row.request not in self._ended:
                    intent = self._intents.get(row.request)
                    if intent is None:
                        raise DamagedError(f"{JOURNAL}{self.name} has an outcome of a request that it does not have")
                    self._ended.add(row.request)
                    if row.final:
                        self._final.setdefault((intent.address, intent.question), row)


def _inline(data: bytes) -> str | None:
    """The reply as text where it is short and UTF-8: no object of its own then."""
    if len(data) > _INLINE_BYTES:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _reply_name(digest: str) -> str:
    return f"{REPLIES}{digest[:2]}/{digest}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
