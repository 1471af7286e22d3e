"""The rows of a journal, and the log that keeps those of one partition in order."""

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from pairforge.config import canonical_json
from pairforge.failpoints import failpoint
from pairforge.protocols import TRANSIENT, Trouble
from pairforge.records import DamagedError, Frozen
from pairforge.storage import Storage, check_name

JOURNAL = "journal/"
_SEGMENT_BYTES = 256 * 2**10
"""A segment this long is followed by another. Every append rewrites the last one."""


class Address(NamedTuple):
    """Where a question belongs: `call` counts how often it was asked before within this attempt of this stage."""

    key: str
    stage: str
    attempt: int
    call: int = 0


class Opened(Frozen):
    kind: Literal["opened"] = "opened"
    writer: str
    at: str


class Intent(Frozen):
    kind: Literal["intent"] = "intent"
    request: str
    address: Address
    question: str
    backend: str
    reserved_usd: float | None
    at: str


class Outcome(Frozen):
    """How a request ended. `trouble` is None for an answer; `cost_usd` is None where it is not known."""

    kind: Literal["outcome"] = "outcome"
    request: str
    trouble: Trouble | Literal["misconfigured"] | None = None
    detail: str = ""
    retry_after_s: float | None = None
    sha256: str = ""
    mime: str = ""
    text: str | None = None
    cost_usd: float | None
    input_tokens: int
    output_tokens: int
    at: str

    @property
    def final(self) -> bool:
        """Whether the question is not asked again."""
        return self.trouble != "misconfigured" and self.trouble not in TRANSIENT


class Choice(Frozen):
    kind: Literal["choice"] = "choice"
    key: str
    about: str
    value: str


class Continued(Frozen):
    kind: Literal["continued"] = "continued"


Row = Opened | Intent | Outcome | Choice | Continued
_ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="kind")])
_CONTINUED = canonical_json(Continued()).encode() + b"\n"


class Log:
    """Segments of one partition, as far as they were read. Not for two threads at once."""

    def __init__(self, storage: Storage, partition: str) -> None:
        self._storage = storage
        self._folder = f"{JOURNAL}{partition}/"
        self._number = 0
        self._content = b""

    def refresh(self) -> list[Row]:
        """Rows that were not read yet. Raises DamagedError where the log does not go on as it was."""
        found: list[Row] = []
        while True:
            name = self._name()
            try:
                content = self._storage.read(name)
            except FileNotFoundError:
                content = b""
            if not content.startswith(self._content) or (content and not content.endswith(b"\n")):
                raise DamagedError(f"{self._storage.url(name)} is no longer what was written")
            rows = list(_parse(content[len(self._content) :], name))
            self._content = content
            found += [row for row in rows if not isinstance(row, Continued)]
            if not content.endswith(_CONTINUED):
                return found
            self._next()

    def append(self, data: bytes) -> bool:
        """Add whole lines; False, with nothing added, where the log has rows that `refresh` did not show yet."""
        if len(self._content) >= _SEGMENT_BYTES:
            if not self._swap(_CONTINUED):
                return False
            self._next()
            failpoint("journal-between-segments")
        return self._swap(data)

    def _swap(self, data: bytes) -> bool:
        longer = self._content + data
        swapped = self._storage.compare_and_swap(self._name(), self._content or None, longer)
        if swapped:
            self._content = longer
        return swapped

    def _name(self) -> str:
        return f"{self._folder}{self._number:06d}.jsonl"

    def _next(self) -> None:
        self._number += 1
        self._content = b""


def read_rows(storage: Storage, partition: str) -> list[Row]:
    """All rows of a partition, oldest first, without taking it over."""
    return Log(storage, check_name(partition)).refresh()


def _parse(data: bytes, name: str) -> Iterator[Row]:
    for line in data.splitlines():
        try:
            yield _ROW.validate_json(line)
        except ValidationError as error:
            raise DamagedError(
                f"{name} holds a line that is no row of a journal: {error.errors()[0]['msg']}"
            ) from error
