"""Finding sources and reading their bytes: folders, globs, packages, tars, parquet tables, videos.

A source is named by a URI that stays valid in records, and a locator that says where inside a
container it lies (tar: offset,size; table: row group,row). A local name that is not UTF-8 becomes a
percent-encoded `file:` URI.
"""

import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import cv2
import pyarrow.parquet as pq

from pairforge.image import Pixels
from pairforge.records import Fate, SampleError
from pairforge.storage import open_storage, read_url
from pipelines.settings import (
    AnySources,
    FileSources,
    GroupRule,
    PackageSources,
    TableSources,
    TarSources,
    VideoSources,
)

PHOTO_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .avif .tif .tiff .bmp .ppm .pgm .jp2 .gif .mpo".split())
VIDEO_SUFFIXES = frozenset(".mp4 .mov .mkv .avi .webm .m4v .mpg .mpeg".split())


class Found(NamedTuple):
    """One thing that listing turned up; `stamp` changes with its content, `refusal` is set where it is no file."""

    uri: str
    locator: str
    stamp: str
    size_bytes: int
    group: str
    refusal: SampleError | None


def list_sources(spec: AnySources) -> Iterator[Found]:
    """Everything in a set of sources, in an order that depends on names alone.

    Raises FileNotFoundError where the set itself does not exist, ValueError where it holds nothing.
    """
    match spec:
        case FileSources() | VideoSources():
            yield from _list_files(spec)
        case PackageSources():
            yield from _list_package(spec)
        case TarSources():
            yield from _list_tars(spec)
        case TableSources():
            yield from _list_table(spec)


def read_source(uri: str, locator: str) -> bytes:
    """Bytes of a source. Raises SampleError(`not_found` or `not_readable`) when it is gone or closed to us."""
    try:
        if uri.startswith("package://"):
            return _package_path(uri).read_bytes()
        if not locator:
            return read_url(uri) if _is_remote(uri) else _local_path(uri).read_bytes()
        container = uri.partition("#")[0]
        first, second = (int(part) for part in locator.split(","))
        if container.endswith(".parquet"):
            return _read_table_bytes(container, uri.rpartition("#")[2].partition("=")[0], first, second)
        root, _, name = container.rpartition("/")
        return open_storage(root or ".").read_range(name, first, second)
    except FileNotFoundError as error:
        raise SampleError("not_found", f"{uri} was listed but is not there any more") from error
    except PermissionError as error:
        raise SampleError("not_readable", f"{uri} may not be read by this user") from error


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path with the bytes of a source, for readers that take no stream."""
    if not _is_remote(uri):
        yield _local_path(uri)
        return
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(uri).suffix) as file:
        file.write(read_source(uri, ""))
        file.flush()
        yield Path(file.name)


def count_frames(path: Path) -> tuple[int, int, int]:
    """Frames, width and height of a video. Raises SampleError(`not_a_video`)."""
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise SampleError("not_a_video", f"{path.name} cannot be opened as a video")
        frames = 0
        while capture.grab():
            frames += 1
        width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        return frames, width, height
    finally:
        capture.release()


def read_frames(path: Path, start: int, count: int) -> list[Pixels]:
    """`count` frames (H, W, 3) RGB from frame `start` on. Raises SampleError(`truncated`)."""
    capture = cv2.VideoCapture(str(path))
    try:
        for _ in range(start):
            capture.grab()
        frames: list[Pixels] = []
        for index in range(count):
            done, frame = capture.read()
            if not done:
                raise SampleError("truncated", f"frame {start + index} of {path.name} cannot be decoded")
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        return frames
    finally:
        capture.release()


def _is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def _local_path(uri: str) -> Path:
    if uri.startswith("file:"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://").removeprefix("file:"))))
    return Path(uri)


def _local_uri(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file:" + quote(os.fsencode(path), safe="/")
    return "file:" + quote(path, safe="/") if path.startswith("file:") else path


def _group(rule: GroupRule, relative: str) -> str:
    """Group of a source from its path below the root of its set, so that moving the set moves no split."""
    if rule.by == "folder":
        return str(PurePosixPath(relative).parent)
    if rule.by == "pattern":
        found = re.search(rule.pattern or "", relative)
        return found.group(1) if found and found.re.groups else relative
    return relative.removesuffix(PurePosixPath(relative).suffix)


def _below(root: str, uri: str) -> str:
    name = uri.removeprefix("file:").removeprefix(root).lstrip("/")
    return name or uri.rpartition("/")[2]


def _list_files(spec: FileSources | VideoSources) -> Iterator[Found]:
    suffixes = PHOTO_SUFFIXES if isinstance(spec, FileSources) else VIDEO_SUFFIXES
    is_glob = any(letter in spec.url for letter in "*?[")
    count = 0
    root = _glob_root(spec.url)[0]
    entries = _remote_entries(spec.url) if _is_remote(spec.url) else _local_entries(spec.url)
    for uri, size, stamp, refusal in entries:
        count += 1
        suffix = PurePosixPath(uri).suffix.lower()
        if refusal is None and not is_glob and suffix not in suffixes:
            allowed = " ".join(sorted(suffixes))
            refusal = SampleError(
                "other_extension",
                f"{uri} has extension {suffix!r}; allowed in a folder: {allowed}",
                Fate.REJECTED,
            )
        yield Found(uri, "", stamp, size, _group(spec.group, _below(root, uri)), refusal)
    if not count:
        raise ValueError(f"sources {spec.url!r}: nothing matches")


def _remote_entries(url: str) -> Iterator[tuple[str, int, str, SampleError | None]]:
    root, pattern = _glob_root(url)
    for entry in open_storage(root).list(""):
        if not pattern or _glob_regex(pattern).fullmatch(entry.name):
            yield f"{root}/{entry.name}", entry.size, f"{entry.size}", None


def _local_entries(url: str) -> Iterator[tuple[str, int, str, SampleError | None]]:
    root, pattern = _glob_root(url)
    if not Path(root).exists():
        raise FileNotFoundError(f"sources {url!r}: {root} does not exist")
    if Path(root).is_file():
        info = Path(root).stat()
        yield _local_uri(root), info.st_size, f"{info.st_mtime_ns}-{info.st_size}", None
        return
    expression = _glob_regex(pattern) if pattern else None
    for path in _walk(root, frozenset()):
        relative = path.removeprefix(root).lstrip("/")
        if expression is None or expression.fullmatch(relative):
            yield _examine_entry(path)


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    info = Path(folder).stat()
    identity = (info.st_dev, info.st_ino)
    if identity in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            if PurePosixPath(entry.name).suffix.lower() in PHOTO_SUFFIXES | VIDEO_SUFFIXES:
                yield entry.path
            yield from _walk(entry.path, above | {identity})
        else:
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symlink that loops: told apart in _examine_entry
        return False


def _examine_entry(path: str) -> tuple[str, int, str, SampleError | None]:
    uri = _local_uri(path)
    try:
        info = Path(path).stat()
    except FileNotFoundError:
        return uri, 0, "gone", SampleError("not_found", f"{uri} is a link to nothing")
    except OSError as error:
        return uri, 0, "loop", SampleError("symlink_loop", f"{uri} cannot be resolved: {error.strerror}")
    refusal = None
    if not Path(path).is_file():
        refusal = SampleError("not_a_file", f"{uri} is a folder, pipe, socket or device", Fate.REJECTED)
    elif not os.access(path, os.R_OK):
        refusal = SampleError("not_readable", f"{uri} may not be read by this user")
    return uri, info.st_size, f"{info.st_mtime_ns}-{info.st_size}", refusal


def _glob_root(url: str) -> tuple[str, str]:
    """Longest folder without wildcards, and the pattern below it ('' where there is none)."""
    parts = url.rstrip("/").split("/")
    for place, part in enumerate(parts):
        if any(letter in part for letter in "*?["):
            return "/".join(parts[:place]) or ("/" if url.startswith("/") else "."), "/".join(parts[place:])
    return "/".join(parts), ""


@lru_cache(maxsize=64)
def _glob_regex(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay inside a folder, `**/` crosses folders, `[...]` is a class."""
    translated, place = "", 0
    while place < len(pattern):
        if pattern.startswith("**/", place):
            translated, place = translated + "(?:.*/)?", place + 3
        elif pattern.startswith("**", place):
            translated, place = translated + ".*", place + 2
        elif pattern[place] == "[" and "]" in pattern[place:]:
            end = pattern.index("]", place) + 1
            translated, place = translated + pattern[place:end].replace("[!", "[^"), end
        else:
            letter = pattern[place]
            translated += {"*": "[^/]*", "?": "[^/]"}.get(letter) or re.escape(letter)
            place += 1
    return re.compile(translated, re.DOTALL)


def _package_path(uri: str) -> Path:
    package, _, relative = uri.removeprefix("package://").partition("/")
    return Path(str(package_files(package).joinpath(relative)))


def _list_package(spec: PackageSources) -> Iterator[Found]:
    for relative in spec.paths:
        uri = f"package://{spec.package}/{relative}"
        try:
            path = _package_path(uri)
        except ModuleNotFoundError as error:
            raise FileNotFoundError(f"sources: Python package {spec.package!r} is not installed") from error
        if not path.is_file():
            raise FileNotFoundError(f"sources: {relative} is not a file of package {spec.package!r}")
        size = path.stat().st_size
        yield Found(uri, "", f"{size}", size, _group(spec.group, relative), None)


def _containers(url: str, suffix: str) -> Sequence[tuple[str, str]]:
    entries = _remote_entries(url) if _is_remote(url) else _local_entries(url)
    found = [(uri, stamp) for uri, _, stamp, refusal in entries if refusal is None and uri.endswith(suffix)]
    if not found:
        raise ValueError(f"sources {url!r}: no {suffix} file matches")
    return found


def _list_tars(spec: TarSources) -> Iterator[Found]:
    for container, stamp in _containers(spec.url, ".tar"):
        root, _, name = container.rpartition("/")
        with open_storage(root or ".").open(name) as stream:
            try:
                with tarfile.open(fileobj=stream, mode="r:") as tar:
                    for entry in tar:
                        suffix = PurePosixPath(entry.name).suffix.lower()
                        if entry.isfile() and suffix in PHOTO_SUFFIXES:
                            uri, group = f"{container}#{entry.name}", _group(spec.group, f"{name}/{entry.name}")
                            locator = f"{entry.offset_data},{entry.size}"
                            yield Found(uri, locator, stamp, entry.size, group, None)
            except tarfile.TarError as error:
                refusal = SampleError("corrupt", f"{container} is not a readable tar: {error}")
                yield Found(container, "", stamp, 0, container, refusal)


def _list_table(spec: TableSources) -> Iterator[Found]:
    column = spec.uri_column or spec.bytes_column or ""
    for container, stamp in _containers(spec.url, ".parquet"):
        root, _, name = container.rpartition("/")
        with open_storage(root or ".").open(name) as stream:
            table = pq.ParquetFile(stream)
            missing = {column, spec.group.column or column} - set(table.schema_arrow.names)
            if missing:
                raise ValueError(f"{container} has no column {sorted(missing)}; it has {table.schema_arrow.names}")
            wanted = sorted({column, spec.group.column or column})
            for group_index in range(table.num_row_groups):
                rows = table.read_row_group(group_index, columns=wanted).to_pylist()
                for row_index, row in enumerate(rows):
                    yield _table_row(spec, container, stamp, (group_index, row_index), row)


def _table_row(spec: TableSources, container: str, stamp: str, place: tuple[int, int], row: dict[str, object]) -> Found:
    locator = f"{place[0]},{place[1]}"
    value = row[spec.uri_column or spec.bytes_column or ""]
    if spec.uri_column:
        uri, size, where = str(value), 0, ""
    else:
        uri, where = f"{container}#{spec.bytes_column}={locator}", locator
        size = len(value) if isinstance(value, bytes) else 0
    refusal = SampleError("empty_file", f"{container} row {locator} holds null") if value is None else None
    relative = uri if spec.uri_column else f"{container.rpartition('/')[2]}#{locator}"
    group = str(row[spec.group.column]) if spec.group.column else _group(spec.group, relative)
    return Found(uri if value is not None else f"{container}#{locator}", where, stamp, size, group, refusal)


@lru_cache(maxsize=2)
def _row_group(container: str, column: str, group_index: int) -> list[bytes]:
    root, _, name = container.rpartition("/")
    data = io.BytesIO(open_storage(root or ".").read(name))
    values: list[bytes] = pq.ParquetFile(data).read_row_group(group_index, columns=[column])[column].to_pylist()
    return values


def _read_table_bytes(container: str, column: str, group_index: int, row_index: int) -> bytes:
    return _row_group(container, column, group_index)[row_index]
