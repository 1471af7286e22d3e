"""Where bytes live: folders and s3:// buckets behind the same guarantees.

A name appears whole or not at all, whenever its writer is killed. `put_if_absent` and
`compare_and_swap` decide between concurrent writers on any number of machines, so nothing else locks.

A name is a relative POSIX path below the root. Parts that start with `.tmp-` or `.lock-` are reserved:
a folder keeps unfinished files and locks under them, and no listing shows them.

Absent names raise FileNotFoundError, unusable names and URLs ValueError; every fault of disk, network or
credentials raises InfraError with the URL in its message.
"""

import errno
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

TEMP = ".tmp-"
LOCK = ".lock-"
_MAX_PART_BYTES = 255
"""Longest file name on common file systems."""


class Entry(NamedTuple):
    """One stored name and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Storage(ABC):
    """Bytes by name below `root`. Holds no connection: cheap to make, to pickle and to send to workers.

    Obtained from `open_storage`; `root` is an absolute path or `s3://bucket[/prefix]`, without a slash at
    its end.
    """

    root: str

    def url(self, name: str) -> str:
        """Where `name` is, for messages, records and `read_url`."""
        return f"{self.root.rstrip('/')}/{name}"

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The whole content, of one version, in memory."""

    @abstractmethod
    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from offset `start`; fewer where the content ends before that."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """A seekable handle to read from, for tars. A folder's handle raises plain OSError from then on."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether `name` holds content; folders do not count."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes stored under `name`."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Store `data`, replacing what is there; on disk when this returns."""

    @abstractmethod
    def write_file(self, name: str, local_path: Path) -> None:
        """Move a finished local file to `name`, replacing what is there; on success `local_path` is gone."""

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Store `data` unless `name` exists. True for exactly one of many concurrent writers."""

    @abstractmethod
    def compare_and_swap(self, name: str, expected: bytes | None, new: bytes) -> bool:
        """Replace content `expected` by `new`; False, with nothing changed, where the content is another.

        `expected` None means that `name` must not exist. A name that is moved this way may only be written
        this way. False may be wrong in one case: the reply to a write that was made got lost, and another
        writer replaced it before it could be asked for. After InfraError the outcome is unknown: read again.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Everything whose name starts with `prefix`, at any depth, sorted by name.

        `prefix` is compared as text: end it with a slash to mean a folder. Nothing there: no entries.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove `name`; no error where it is absent, so that a repeated clean-up ends the same."""

    @abstractmethod
    def local_path(self, name: str) -> Path | None:
        """The file of `name`, existing or not, where the root is a folder of this machine; else None."""

    @abstractmethod
    def sweep(self, older_than_s: float) -> int:
        """Remove what killed writers left unfinished at least `older_than_s` ago; how many were removed."""

    @abstractmethod
    def check_conditional_writes(self) -> None:
        """Try the two conditional writes on a scratch name. ValueError where the store ignores conditions,
        as some S3-compatible services do; without this check, `latest` could be lost silently there."""


def open_storage(url: str) -> Storage:
    """Storage at a local path, `file://` URL (percent-decoded) or `s3://bucket[/prefix]` (taken as it is).

    Relative paths are made absolute, since workers run elsewhere. Nothing is contacted or created.
    gs:// is refused: Cloud Storage makes writes conditional on generations, which s3fs cannot ask for.
    """
    from pairforge.storage_local import LocalStorage

    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalStorage(_absolute(url, url))
    if scheme == "file":
        return LocalStorage(_absolute(_file_path(url), url))
    if scheme == "s3":
        if importlib.util.find_spec("s3fs") is None:
            raise ImportError(f"{url} needs s3fs: pip install 'pairforge[s3]'")
        from pairforge.storage_s3 import S3Storage, parse_root

        return S3Storage(parse_root(rest))
    raise ValueError(f"{url!r}: {scheme}:// is not supported; use a local path, file:// or s3://")


def read_url(url: str) -> bytes:
    """Content of any URL or path that `join_url`, `Storage.url` or a user gives."""
    path = _file_path(url) if url.startswith("file://") else url
    base, separator, name = path.rpartition("/")
    if "://" in path and base.endswith("/"):
        raise ValueError(f"{url!r} names nothing below a root")
    return open_storage(base or separator or ".").read(name)


def join_url(base: str, name: str) -> str:
    """URL of `name` below `base`. `name` must be usable as a name in a storage."""
    return open_storage(base).url(check_name(name))


def check_name(name: str) -> str:
    """`name` itself. Raises ValueError where it could leave the root or means different things elsewhere."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name:
        raise ValueError(f"{name!r} is no name: a relative POSIX path is needed, without '.', '..' and '\\'")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError(f"{name!r} is no name: it has control characters")
    if any(part.startswith((TEMP, LOCK)) for part in parts):
        raise ValueError(f"{name!r} is no name: parts that start with {TEMP} or {LOCK} are reserved")
    if any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        raise ValueError(f"{name!r} is no name: a part is longer than {_MAX_PART_BYTES} bytes in UTF-8")
    return name


def check_prefix(prefix: str) -> str:
    """`prefix` itself. Raises ValueError where no name can start with it."""
    if prefix:
        check_name(prefix.removesuffix("/"))
    return prefix


def check_range(start: int, length: int) -> None:
    if start < 0 or length < 0:
        raise ValueError(f"range of {length} bytes from {start}: both must be 0 or more")


def check_file(local_path: Path) -> None:
    if not local_path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(local_path))


def absent(url: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "not in storage", url)


def _file_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not of the form file:///absolute/path")
    return unquote(parts.path)


def _absolute(path: str, url: str) -> str:
    if not path or path.startswith("~") or "\0" in path:
        raise ValueError(f"{url!r} is no path of a folder ('~' is not expanded)")
    return os.path.normpath(Path(path).absolute())
