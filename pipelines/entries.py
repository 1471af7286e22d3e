"""Files below a folder, or those that a glob matches; local or s3://. Refused ones are listed with the reason."""

import os
import re
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pairforge.records import Fate, SampleError
from pairforge.storage import check_name, open_storage
from pipelines.reading import is_remote, local_path, local_uri, not_a_file, printable, source_faults

PHOTO_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .avif .tif .tiff .bmp .ppm .pgm .jp2 .gif .mpo".split())
VIDEO_SUFFIXES = frozenset(".mp4 .mov .mkv .avi .webm .m4v .mpg .mpeg".split())


class Entry(NamedTuple):
    """A file before it is grouped; `relative` is its path below the root of the set."""

    uri: str
    relative: str
    size_bytes: int
    stamp: str
    refusal: SampleError | None


def list_entries(url: str) -> Iterator[Entry]:
    """Every file of a folder, of what a glob matches, or the one file that `url` names; sorted by name.

    Raises FileNotFoundError where a local root does not exist.
    """
    return _remote_entries(url) if is_remote(url) else _local_entries(url)


def _remote_entries(url: str) -> Iterator[Entry]:
    root, pattern = split_glob(url)
    any_listed = False
    for listed in open_storage(root).list(""):
        any_listed = True
        if not pattern or _glob_regex(pattern).fullmatch(listed.name):
            refusal = _name_refusal(listed.name)
            yield Entry(f"{root}/{listed.name}", listed.name, listed.size, f"{listed.size}", refusal)
    if not any_listed and not pattern:
        folder, _, name = root.rpartition("/")
        storage = open_storage(folder)
        if storage.exists(name):
            size = storage.size(name)
            yield Entry(root, name, size, f"{size}", None)


def _name_refusal(name: str) -> SampleError | None:
    try:
        check_name(name)
    except ValueError as error:
        return SampleError("unusable_uri", str(error), Fate.REJECTED)
    return hidden(name) if any(part.startswith(".") for part in name.split("/")) else None


def hidden(name: str) -> SampleError:
    """Why a name such as `._photo.jpg` or `.thumbnails` is refused."""
    return SampleError("hidden", f"{printable(name)}: names that start with a dot are not read", Fate.REJECTED)


def _local_entries(url: str) -> Iterator[Entry]:
    root, pattern = split_glob(str(local_path(url)) if url.startswith("file:") else url)
    if not os.path.lexists(root):
        raise FileNotFoundError(f"sources {url!r}: {printable(root)} does not exist")
    if not Path(root).is_dir():
        yield examine_entry(root, PurePosixPath(root).name)
        return
    expression = _glob_regex(pattern) if pattern else None
    deepest = pattern.count("/") if pattern and "**" not in pattern else None
    before = "" if pattern and root == "." else f"{root.rstrip('/')}/"
    for relative, refusal in _walk(root, deepest):
        if expression is not None and not expression.fullmatch(relative):
            continue
        if refusal is None:
            yield examine_entry(before + relative, relative)
        else:
            yield Entry(local_uri(before + relative), printable(relative), 0, "", refusal)


def _walk(root: str, deepest: int | None) -> Iterator[tuple[str, SampleError | None]]:
    """Paths below `root`, names in byte order, following links; folders only where they are refused.

    A folder is refused when it looks like a file, leads back to a folder that it lies in, is hidden or
    cannot be entered. `deepest` bounds the depth at which folders are entered.
    """
    stack = [(*_enter(root), "")]
    while stack:
        entry = next(stack[-1][0], None)
        if entry is None:
            stack.pop()
            continue
        relative = stack[-1][2] + entry.name
        if entry.name.startswith("."):
            yield relative, hidden(relative)
        elif not _is_folder(entry):
            yield relative, None
        else:
            looks_like_a_file = PurePosixPath(entry.name).suffix.lower() in PHOTO_SUFFIXES | VIDEO_SUFFIXES
            if deepest is not None and len(stack) > deepest:
                yield from [(relative, not_a_file(relative))] * looks_like_a_file
                continue
            try:
                entries, identity = _enter(entry.path)
            except OSError as error:
                yield relative, SampleError("not_readable", f"{printable(relative)}: {error.strerror}")
                continue
            loops = any(identity == above for _, above, _ in stack)
            if loops or looks_like_a_file:
                yield relative, not_a_file(relative)
            if not loops:
                stack.append((entries, identity, f"{relative}/"))


def _enter(folder: str) -> tuple[Iterator[os.DirEntry[str]], tuple[int, int]]:
    """What lies in a folder, and what tells it from every other folder."""
    info = Path(folder).stat()
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: os.fsencode(entry.name))), (info.st_dev, info.st_ino)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that loops: told apart in examine_entry
        return False


def examine_entry(path: str, relative: str) -> Entry:
    """What the file system says about a path. Raises InfraError where it cannot say."""
    uri = local_uri(path)
    try:
        with source_faults(uri):
            info = Path(path).stat()
        if not stat.S_ISREG(info.st_mode):
            raise not_a_file(uri)
        if not os.access(path, os.R_OK):
            raise SampleError("not_readable", f"{uri} may not be read by this user")
    except SampleError as refusal:
        return Entry(uri, printable(relative), 0, "", refusal)
    return Entry(uri, printable(relative), info.st_size, f"{info.st_mtime_ns}-{info.st_size}", None)


def split_glob(url: str) -> tuple[str, str]:
    """Longest folder without wildcards, and the pattern below it ('' where there is none)."""
    parts = url.rstrip("/").split("/")
    for place, part in enumerate(parts):
        if any(letter in part for letter in "*?["):
            return "/".join(parts[:place]) or ("/" if url.startswith("/") else "."), "/".join(parts[place:])
    return "/".join(parts) or url[:1], ""


@lru_cache(maxsize=64)
def _glob_regex(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay inside a folder, `**/` crosses folders, `[...]` and `[!...]` are classes."""
    translated, place = "", 0
    while place < len(pattern):
        if pattern.startswith("**", place):
            into = pattern.startswith("**/", place)
            translated, place = translated + ("(?:.*/)?" if into else ".*"), place + (3 if into else 2)
        elif match := re.compile(r"\[(!?)(\][^\]]*|[^\]]+)\]").match(pattern, place):
            body = re.sub(r"([\\\[\]^&~|]|-(?=-))", r"\\\1", match.group(2))
            translated, place = f"{translated}(?!/)[{'^' * bool(match.group(1))}{body}]", match.end()
        else:
            letter = pattern[place]
            translated += {"*": "[^/]*", "?": "[^/]"}.get(letter) or re.escape(letter)
            place += 1
    try:
        return re.compile(translated, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r}: {error}") from error
