"""Bytes of single samples out of tars: through files that stay open in a folder, by ranges elsewhere."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from pairforge.records import InfraError
from pairforge.storage import Storage
from training.pool import Span, Ticket

_MOST_OPEN = 64
_GAP_BYTES = 4096
"""Spans closer than this are read as one."""


class Reader:
    """Reads what tickets name. Holds no open file when it is sent to a worker."""

    def __init__(self, storages: Sequence[Storage]) -> None:
        self._storages = tuple(storages)
        self._remote = tuple(storage.local_path("any") is None for storage in storages)
        self._files: OrderedDict[tuple[int, str], int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def storage(self, ticket: Ticket) -> Storage:
        return self._storages[ticket.source]

    def is_remote(self, ticket: Ticket) -> bool:
        return self._remote[ticket.source]

    def url(self, ticket: Ticket) -> str:
        """The shard and the key, for messages."""
        return f"{self.storage(ticket).url(ticket.tar)}: {ticket.key}"

    def read(self, ticket: Ticket) -> dict[str, bytes]:
        """Files of a sample by field. Raises FileNotFoundError, InfraError; ValueError where the tar ends before."""
        if not self.is_remote(ticket):
            return {span.field: _whole(span, self._read_file(ticket, span)) for span in ticket.spans}
        storage, files = self.storage(ticket), dict[str, bytes]()
        for group in _adjacent(ticket.spans):
            start, last = group[0].offset, group[-1]
            data = storage.read_range(ticket.tar, start, last.offset + last.size - start)
            for span in group:
                files[span.field] = _whole(span, data[span.offset - start :][: span.size])
        return files

    def _read_file(self, ticket: Ticket, span: Span) -> bytes:
        place = (ticket.source, ticket.tar)
        try:
            if place not in self._files:
                if len(self._files) == _MOST_OPEN:
                    os.close(self._files.popitem(last=False)[1])
                path = self.storage(ticket).local_path(ticket.tar)
                assert path is not None
                self._files[place] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._files.move_to_end(place)
            return os.pread(self._files[place], span.size, span.offset)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InfraError(f"{self.storage(ticket).url(ticket.tar)}: {error}") from error


def _whole(span: Span, data: bytes) -> bytes:
    if len(data) != span.size:
        raise ValueError(f"the tar ends within {span.field}")
    return data


def _adjacent(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Spans in the order of the tar, grouped where little lies between them."""
    group: list[Span] = []
    for span in sorted(spans, key=lambda span: span.offset):
        if group and span.offset - group[-1].offset - group[-1].size > _GAP_BYTES:
            yield group
            group = []
        group.append(span)
    if group:
        yield group
