"""Listing sources: folders, globs, packages, tars, parquet tables, videos.

Everything that a set of sources names is listed, also what cannot be read: then with the reason. A
source inside a container has a locator: offset and size in a tar, row group and row in a table.

Left out without a word are folders, and in tars and in folders of containers what is no image or no
container: there it is a companion.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pairforge.records import Fate, InfraError, SampleError
from pipelines.entries import (
    PHOTO_SUFFIXES,
    VIDEO_SUFFIXES,
    Entry,
    examine_entry,
    hidden,
    list_entries,
    split_glob,
)
from pipelines.reading import PACKAGE, corrupt_tables_refused, is_remote, local_path, open_container, printable
from pipelines.settings import (
    AnySources,
    FileSources,
    GroupRule,
    PackageSources,
    TableSources,
    TarSources,
    VideoSources,
)

_COMPRESSED = tuple(".gz .tgz .bz2 .tbz2 .xz .txz .zst .lz4".split())


class Found(NamedTuple):
    """One thing that listing turned up; `refusal` is set where it cannot be a source.

    `stamp` changes with its content. For a refused one it is the reason, so that it is looked at again
    once the reason has gone. `size_bytes` is 0 where only reading tells; `role` is empty where no column does.
    """

    uri: str
    locator: str
    stamp: str
    size_bytes: int
    group: str
    refusal: SampleError | None
    role: str = ""


def list_sources(spec: AnySources) -> Iterator[Found]:
    """Everything in a set of sources, in an order that depends on names alone.

    Raises FileNotFoundError where the set itself does not exist, ValueError where it holds nothing or
    is not of the kind that the config says.
    """
    match spec:
        case FileSources() | VideoSources():
            yield from _list_files(spec)
        case PackageSources():
            yield from _list_package(spec)
        case TarSources():
            for entry in _containers(spec.url, ".tar"):
                yield from _list_tar(spec, entry)
        case TableSources():
            for entry in _containers(spec.url, ".parquet"):
                yield from _list_table(spec, entry)


def _found(entry: Entry, rule: GroupRule, locator: str = "") -> Found:
    """An entry with its group, which is taken from its path below the root: moving the set moves no split."""
    relative, refusal = entry.relative, entry.refusal
    group = relative.removesuffix(PurePosixPath(relative).suffix)
    if rule.by == "folder":
        group = str(PurePosixPath(relative).parent)
    elif rule.by == "pattern":
        match = re.search(rule.pattern or "", relative)
        group = (match and match.group(1)) or ""
        if not group:
            refusal = refusal or _no_group(f"{relative!r} does not match the group pattern {rule.pattern!r}")
    return Found(entry.uri, locator, refusal.reason if refusal else entry.stamp, entry.size_bytes, group, refusal)


def _no_group(detail: str) -> SampleError:
    return SampleError("no_group", detail, Fate.REJECTED)


def _list_files(spec: FileSources | VideoSources) -> Iterator[Found]:
    suffixes = PHOTO_SUFFIXES if isinstance(spec, FileSources) else VIDEO_SUFFIXES
    is_glob = bool(split_glob(spec.url)[1])
    entry = None
    for entry in list_entries(spec.url):
        suffix = PurePosixPath(entry.relative).suffix.lower()
        if entry.refusal is None and not is_glob and suffix not in suffixes:
            allowed = " ".join(sorted(suffixes))
            detail = f"{entry.uri} has extension {suffix!r}; allowed in a folder: {allowed}"
            entry = entry._replace(refusal=SampleError("other_extension", detail, Fate.REJECTED))
        yield _found(entry, spec.group)
    if entry is None:
        raise ValueError(f"sources {spec.url!r}: nothing matches")


def _list_package(spec: PackageSources) -> Iterator[Found]:
    for relative in spec.paths:
        uri = f"{PACKAGE}{spec.package}/{relative}"
        try:
            path = local_path(uri)
        except ModuleNotFoundError as error:
            raise FileNotFoundError(f"sources: Python package {spec.package!r} is not installed") from error
        if not path.is_file():
            raise FileNotFoundError(f"sources: {relative} is not a file of package {spec.package!r}")
        size = path.stat().st_size
        yield _found(Entry(uri, relative, size, f"{size}", None), spec.group)


def _containers(url: str, suffix: str) -> Sequence[Entry]:
    """Containers, also those that cannot be read. '#' parts a container from what lies in it, so none may have it."""
    found = []
    for entry in list_entries(url):
        name = PurePosixPath(entry.relative).name
        refusal = entry.refusal
        if not name.endswith(suffix):
            if f"{suffix}." not in name and not name.endswith(_COMPRESSED):
                continue
            detail = f"{entry.uri} is compressed, so nothing in it can be read by offset: unpack it to {suffix}"
            refusal = refusal or SampleError("compressed_container", detail, Fate.REJECTED)
        elif "#" in entry.uri:
            refusal = refusal or SampleError("unusable_uri", f"{entry.uri} has a '#' in its name", Fate.REJECTED)
        found.append(entry._replace(refusal=refusal))
    if not found:
        raise ValueError(f"sources {url!r}: no {suffix} file matches")
    if all(entry.refusal for entry in found):
        raise ValueError(f"sources {url!r}: no {suffix} file can be read; {found[0].refusal}")
    return found


def _list_tar(spec: TarSources, container: Entry) -> Iterator[Found]:
    try:
        if container.refusal is not None:
            raise container.refusal
        with open_container(container.uri) as stream:
            for member in _tar_members(stream, container.uri):
                if not member.isfile() or PurePosixPath(member.name).suffix.lower() not in PHOTO_SUFFIXES:
                    continue
                name = printable(member.name)
                refusal = hidden(name) if PurePosixPath(name).name.startswith(".") else None
                if member.issparse():
                    refusal = SampleError("sparse_member", f"{name} is not stored in one piece", Fate.REJECTED)
                relative = f"{container.relative}/{name}"
                entry = Entry(f"{container.uri}#{name}", relative, member.size, container.stamp, refusal)
                yield _found(entry, spec.group, f"{member.offset_data},{member.size}")
    except SampleError as refusal:
        yield _found(container._replace(refusal=refusal), spec.group)


def _tar_members(stream: BinaryIO, uri: str) -> Iterator[tarfile.TarInfo]:
    """Members of a tar. Raises SampleError after the last that can be listed, where the tar is damaged."""
    if stream.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")):
        raise SampleError("compressed_container", f"{uri} is a compressed tar: unpack it", Fate.REJECTED)
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # tarfile would go back and never end
                    raise tarfile.ReadError(f"member of {member.size} bytes")
                yield member
            stream.seek(tar.offset)
            if stream.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
                raise SampleError("truncated", f"{uri} has no end: it is damaged at byte {tar.offset}, or was cut off")
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise SampleError("corrupt", f"{uri} is not a readable tar: {error}") from error
    except OSError as error:
        raise InfraError(f"{uri}: {error}") from error


def _list_table(spec: TableSources, container: Entry) -> Iterator[Found]:
    try:
        if container.refusal is not None:
            raise container.refusal
        with open_container(container.uri) as stream, corrupt_tables_refused(container.uri):
            table = pq.ParquetFile(stream)
            _check_columns(spec, container.uri, table.schema_arrow)
            for group_index in range(table.num_row_groups):
                yield from _list_row_group(spec, container, table, group_index)
    except SampleError as refusal:
        yield _found(container._replace(refusal=refusal), spec.group)


def _check_columns(spec: TableSources, uri: str, schema: pa.Schema) -> None:
    column = spec.uri_column or spec.bytes_column or ""
    missing = {column, spec.group.column or column, spec.role_column or column} - set(schema.names)
    if missing:
        raise ValueError(f"{uri} has no column {', '.join(sorted(missing))}; it has {', '.join(schema.names)}")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (
        (pa.types.is_string, pa.types.is_large_string)
        if spec.uri_column
        else (pa.types.is_binary, pa.types.is_large_binary)
    )
    if not any(test(kind) for test in tests):
        wanted = "strings" if spec.uri_column else "bytes"
        raise ValueError(f"column {column} of {uri} holds {kind}; {wanted} are needed")


def _list_row_group(spec: TableSources, container: Entry, table: pq.ParquetFile, group_index: int) -> Iterator[Found]:
    column = spec.uri_column or spec.bytes_column or ""
    columns = sorted({column, spec.group.column or column, spec.role_column or column})
    rows = table.read_row_group(group_index, columns=columns, use_threads=False)
    values = rows[column] if spec.uri_column else pc.binary_length(rows[column])
    groups = rows[spec.group.column].to_pylist() if spec.group.column else []
    roles = rows[spec.role_column].to_pylist() if spec.role_column else []
    for row_index, value in enumerate(values.to_pylist()):
        locator = f"{group_index},{row_index}"
        entry = Entry(
            f"{container.uri}#{spec.bytes_column}={locator}" if spec.bytes_column else f"{container.uri}#{locator}",
            f"{container.relative.removesuffix('.parquet')}/{group_index}-{row_index}",
            value if isinstance(value, int) else 0,
            container.stamp,
            SampleError("empty_file", f"{container.uri} holds null in row {locator}") if value is None else None,
        )
        if isinstance(value, str):
            entry = _named_entry(value)
        found = _found(entry, spec.group, "" if spec.uri_column else locator)
        if roles:
            found = _with_role(found, roles[row_index])
        if spec.group.column:
            group = groups[row_index]
            found = found._replace(group="" if group is None else str(group))
            if not found.group:
                refusal = found.refusal or _no_group(f"{found.uri} has no {spec.group.column}")
                found = found._replace(refusal=refusal, stamp=refusal.reason)
        yield found


def _named_entry(uri: str) -> Entry:
    """What a table names. A remote object is known by its URI alone: asking for each would take days."""
    if uri.startswith(PACKAGE):  # which would import whatever a table names
        return Entry(uri, uri, 0, "", SampleError("unusable_uri", f"{uri}: not allowed in a table", Fate.REJECTED))
    if is_remote(uri):
        return Entry(uri, uri, 0, "uri", None)
    return examine_entry(str(local_path(uri)), uri)._replace(uri=uri)


def _with_role(found: Found, role: object) -> Found:
    if role in ("portrait", "scene", "any"):
        return found._replace(role=str(role))
    refusal = SampleError("unknown_role", f"{role!r} is neither portrait, scene nor any", Fate.REJECTED)
    return found._replace(refusal=found.refusal or refusal, stamp=(found.refusal or refusal).reason)
