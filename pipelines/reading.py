"""Bytes and frames of a source, from the URI and the locator that its catalog row holds.

A URI is a local path, a `file:` URI (percent-encoded: the form of local names that are not UTF-8),
`s3://bucket/key`, or `package://name/path`. Relative paths start at `folder`. Nothing but regular
files is opened, so that no pipe or device can block a reader.
"""

import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from pairforge.image import Pixels
from pairforge.records import Fate, InfraError, SampleError
from pairforge.storage import Storage, open_storage

PACKAGE = "package://"
_CHUNK_BYTES = 2**20
_table_lock = Lock()


def read_source(uri: str, locator: str, at_most: int | None = None, folder: str = "") -> bytes:
    """The first `at_most` bytes of a source, all of them where None.

    Raises SampleError: not_found, not_readable, not_a_file, symlink_loop, unusable_uri, truncated.
    """
    if locator:
        return _read_inside(uri, locator, folder)
    with source_faults(uri):
        if is_remote(uri):
            storage, name = _in_storage(uri)
            return storage.read(name) if at_most is None else storage.read_range(name, 0, at_most)
        with _open_regular(local_path(uri, folder)) as file:
            return file.read(-1 if at_most is None else at_most)


@contextmanager
def open_container(uri: str, folder: str = "") -> Iterator[BinaryIO]:
    """A tar or table to seek in. Raises SampleError as `read_source` does."""
    with source_faults(uri):
        if is_remote(uri):
            storage, name = _in_storage(uri)
            stream = storage.open(name)
        else:
            stream = _open_regular(local_path(uri, folder))
    with stream:
        yield stream


@contextmanager
def local_copy(uri: str, folder: str = "") -> Iterator[Path]:
    """An absolute path, in ASCII where need be, with the bytes of a source, for readers that take no stream."""
    with tempfile.TemporaryDirectory(prefix="pairforge-source-") as scratch:
        copy = Path(scratch, "source" + PurePosixPath(uri).suffix.lower())
        if is_remote(uri):
            with open_container(uri) as stream, copy.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
        else:
            path = local_path(uri, folder).absolute()
            with source_faults(uri):
                _open_regular(path).close()
            copy.symlink_to(path)
        yield copy


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file of any size. Raises SampleError as `read_source` does."""
    with source_faults(str(path)), _open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


def count_frames(path: Path) -> tuple[int, int, int]:
    """Frames, width and height of a video. Raises SampleError(`empty_file` or `not_a_video`)."""
    with _capture(path) as capture:
        done, first = capture.read()
        if not done:
            raise SampleError("not_a_video", "no frame can be decoded")
        frames = 1
        while capture.grab():
            frames += 1
        height, width = first.shape[:2]
        return frames, width, height


def read_frames(path: Path, start: int, count: int) -> list[Pixels]:
    """`count` frames (H, W, 3) RGB from frame `start` on. Raises SampleError(`truncated`)."""
    with _capture(path) as capture:
        for _ in range(start):
            capture.grab()
        frames: list[Pixels] = []
        for index in range(count):
            done, frame = capture.read()
            if not done:
                raise SampleError("truncated", f"frame {start + index} cannot be decoded")
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        return frames


def is_remote(uri: str) -> bool:
    """Whether a URI is read through a storage client."""
    return "://" in uri and not uri.startswith(("file:", PACKAGE))


def local_path(uri: str, folder: str = "") -> Path:
    """The path that a local URI means."""
    if uri.startswith(PACKAGE):
        package, _, relative = uri.removeprefix(PACKAGE).partition("/")
        return Path(str(package_files(package).joinpath(relative)))
    if uri.startswith("file:"):
        encoded = uri.removeprefix("file:").removeprefix("//").removeprefix("localhost")
        return Path(folder, os.fsdecode(unquote_to_bytes(encoded)))
    return Path(folder, uri)


def local_uri(path: str) -> str:
    """A path as records name it: itself, or a `file:` URI where it could not be read back as itself."""
    plain = printable(path) == path and "://" not in path and not path.startswith("file:")
    return path if plain else ("file://" if path.startswith("/") else "file:") + quote(os.fsencode(path), safe="/")


def printable(name: str) -> str:
    """A name that is UTF-8; percent-encoded where the file system holds other bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return quote(os.fsencode(name), safe="/")
    return name


@contextmanager
def source_faults(uri: str) -> Iterator[None]:
    """Around opening a source: its own faults become SampleError, those of disk or network InfraError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, ModuleNotFoundError) as error:
        raise SampleError("not_found", f"{uri} is not there, or a link to nothing") from error
    except PermissionError as error:
        raise SampleError("not_readable", f"{uri} may not be read by this user") from error
    except ValueError as error:
        raise SampleError("unusable_uri", f"{uri}: {error}", Fate.REJECTED) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SampleError("symlink_loop", f"{uri} cannot be resolved: {error.strerror}") from error
        if error.errno == errno.ENAMETOOLONG:
            raise SampleError("unusable_uri", f"{uri}: {error.strerror}", Fate.REJECTED) from error
        raise InfraError(f"{uri}: {error}") from error


def _open_regular(path: Path) -> io.BufferedReader:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_a_file(str(path))
    return os.fdopen(descriptor, "rb")


def not_a_file(uri: str) -> SampleError:
    return SampleError("not_a_file", f"{printable(uri)} is a folder, pipe, socket or device", Fate.REJECTED)


def _in_storage(uri: str) -> tuple[Storage, str]:
    root, _, name = uri.rpartition("/")
    if not name or root.endswith("/"):
        raise ValueError("names no file below a bucket")
    return open_storage(root), name


def _read_inside(uri: str, locator: str, folder: str) -> bytes:
    """A member of a tar (offset, size), or a value of a table (row group, row)."""
    container, _, inside = uri.partition("#")
    first, second = (int(part) for part in locator.split(","))
    if container.endswith(".parquet"):
        # Readers are threads that take neighbouring rows: let one of them fetch, and the others find.
        with _table_lock:
            values = _row_group(container, inside.rpartition("=")[0], first, folder, _version_of(container, folder))
        value = values[second] if second < len(values) else None
        if value is None:
            raise SampleError("not_found", f"{uri} was listed but holds nothing")
        return value
    with source_faults(uri):
        if is_remote(container):
            storage, name = _in_storage(container)
            data = storage.read_range(name, first, second)
        else:
            with _open_regular(local_path(container, folder)) as file:
                file.seek(first)
                data = file.read(second)
    if len(data) < second:
        raise SampleError("truncated", f"{container} ends after {len(data)} of the {second} bytes of {inside}")
    return data


@contextmanager
def corrupt_tables_refused(uri: str) -> Iterator[None]:
    """Around reading a parquet file: SampleError(`corrupt`), and InfraError where its bytes do not come."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SampleError("corrupt", f"{uri} is not a readable table: {error}") from error
    except OSError as error:
        # Arrow raises it for damaged pages as well, then without a number.
        if error.errno is None:
            raise SampleError("corrupt", f"{uri} is not a readable table: {error}") from error
        raise InfraError(f"{uri}: {error}") from error


def _version_of(container: str, folder: str) -> str:
    """What tells a table from another written to its place; of a remote one nothing is asked for each row."""
    if is_remote(container):
        return ""
    with source_faults(container):
        info = local_path(container, folder).stat()
    return f"{info.st_mtime_ns}-{info.st_size}"


@lru_cache(maxsize=1)
def _row_group(container: str, column: str, group_index: int, folder: str, version: str) -> list[bytes | None]:
    with open_container(container, folder) as stream, corrupt_tables_refused(container):
        table = pq.ParquetFile(stream)
        known = group_index < table.num_row_groups and column in table.schema_arrow.names
        if not known:
            return []
        values: list[bytes | None] = table.read_row_group(group_index, [column], use_threads=False)[column].to_pylist()
        return values


@contextmanager
def _capture(path: Path) -> Iterator[cv2.VideoCapture]:
    with path.open("rb") as file:
        head = file.read(12)
    if not head:
        raise SampleError("empty_file", "0 bytes; at least 1 is needed")
    if not _looks_like_video(head):
        raise SampleError("not_a_video", f"it starts with {head!r}, as no MP4, MOV, Matroska, AVI or MPEG file does")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what it has to say becomes a reason
    # One backend, so that a clip has the same frames wherever it is read.
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise SampleError("not_a_video", "it cannot be opened as a video; a clip cut short looks like this")
        yield capture
    finally:
        capture.release()


def _looks_like_video(head: bytes) -> bool:
    """Only real containers reach FFmpeg, which also opens playlists of other files, whatever their name."""
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
        or head.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3"))
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
    )
