"""Storage in a folder: temporary file, fsync, rename or hard link, fsync of the folder."""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pairforge.records import InfraError
from pairforge.storage import (
    LOCK,
    TEMP,
    Entry,
    Storage,
    absent,
    check_file,
    check_name,
    check_prefix,
    check_range,
)


class LocalStorage(Storage):
    """A folder, also one that machines share. The file system must have hard links and `flock`."""

    def read(self, name: str) -> bytes:
        with _reading(self.url(name)):
            return self._path(name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        check_range(start, length)
        with _reading(self.url(name)), self._path(name).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def open(self, name: str) -> BinaryIO:
        with _reading(self.url(name)):
            return self._path(name).open("rb")

    def exists(self, name: str) -> bool:
        with _reading(self.url(name)):
            return self._path(name).is_file()

    def size(self, name: str) -> int:
        with _reading(self.url(name)):
            found = self._path(name).stat()
        if not stat.S_ISREG(found.st_mode):
            raise absent(self.url(name))
        return found.st_size

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with _faults(self.url(name)), _temp_beside(path) as temp:
            _write_synced(temp, data)
            temp.replace(path)
            _sync(path.parent)

    def write_file(self, name: str, local_path: Path) -> None:
        path = self._path(name)
        check_file(local_path)
        with _faults(self.url(name)), _temp_beside(path) as temp:
            _write_synced(temp, b"")
            shutil.copymode(temp, local_path)  # files of `tempfile` are private to their owner
            _sync(local_path)
            if local_path.is_symlink() or not _renamed(local_path, path):
                shutil.copyfile(local_path, temp)
                _sync(temp)
                temp.replace(path)
                local_path.unlink()
            _sync(path.parent)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        with _faults(self.url(name)), _temp_beside(path) as temp:
            if path.exists():
                return False
            _write_synced(temp, data)
            try:
                os.link(temp, path)
            except FileExistsError:
                # A network file system may repeat a link whose reply got lost and then find its own.
                if temp.stat().st_nlink != 2:
                    return False
            _sync(path.parent)
        return True

    def compare_and_swap(self, name: str, expected: bytes | None, new: bytes) -> bool:
        path = self._path(name)
        with _faults(self.url(name)), _locked(path):
            if expected is None:
                return self.put_if_absent(name, new)
            try:
                current = path.read_bytes()
            except FileNotFoundError:
                return False
            if current != expected:
                return False
            self.write(name, new)
        return True

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = check_prefix(prefix).rpartition("/")[0]
        with _faults(self.url(prefix)):
            found = _walk(str(Path(self.root, folder)), f"{folder}/" if folder else "")
            return iter(sorted(entry for entry in found if entry.name.startswith(prefix)))

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _faults(self.url(name)), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
            _sync(path.parent)

    def local_path(self, name: str) -> Path | None:
        return self._path(name)

    def sweep(self, older_than_s: float) -> int:
        removed = 0
        with _faults(self.root):
            for entry in list(_walk(self.root, "", hidden=True)):
                path = Path(self.root, entry.name)
                with suppress(FileNotFoundError):  # its writer finished meanwhile
                    if path.name.startswith(TEMP) and path.stat().st_mtime <= time.time() - older_than_s:
                        path.unlink()
                        removed += 1
        return removed

    def check_conditional_writes(self) -> None:
        name = f"check-{uuid.uuid4().hex}"
        try:
            kept = self.put_if_absent(name, b"first") and not self.put_if_absent(name, b"second")
            kept = kept and self.compare_and_swap(name, b"first", b"") and self.read(name) == b""
        finally:
            self.delete(name)
        if not kept:
            raise ValueError(f"{self.root} does not keep the conditions of conditional writes")

    def _path(self, name: str) -> Path:
        return Path(self.root, check_name(name))


@contextmanager
def _reading(url: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise absent(url) from error
    except OSError as error:
        raise InfraError(f"{url}: {error}") from error


@contextmanager
def _faults(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InfraError(f"{url}: {error}") from error


@contextmanager
def _temp_beside(path: Path) -> Iterator[Path]:
    """A hidden free name in the same folder, which is made where missing; removed at the end if it exists."""
    _make_folder(path.parent)
    temp = path.parent / f"{TEMP}{uuid.uuid4().hex}"
    try:
        yield temp
    finally:
        temp.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of `path` against other threads, processes and, on a shared folder, machines.

    The lock file stays: removing it would let two holders lock two files of the same name.
    """
    _make_folder(path.parent)
    lock = path.parent / f"{LOCK}{hashlib.sha256(path.name.encode()).hexdigest()[:24]}"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Folders survive a power cut only when the folder above them is synced."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _renamed(source: Path, target: Path) -> bool:
    """False where the two are on different file systems."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _walk(folder: str, name: str, hidden: bool = False) -> Iterator[Entry]:
    """Files below `folder`, links followed; `name` is put before each. What vanishes is left out."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        below = f"{name}{entry.name}"
        if entry.is_dir():
            if not (entry.is_symlink() and _contains(entry.path, folder)):
                yield from _walk(entry.path, f"{below}/", hidden)
        elif entry.is_file() and (hidden or not entry.name.startswith((TEMP, LOCK))):
            with suppress(FileNotFoundError):
                yield Entry(below, entry.stat().st_size)


def _contains(folder: str, inner: str) -> bool:
    return Path(os.path.realpath(inner)).is_relative_to(os.path.realpath(folder))
