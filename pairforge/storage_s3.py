"""s3:// storage through s3fs, loaded only when such a URL is opened.

Endpoint, region and credentials come from where botocore looks for them (`AWS_ENDPOINT_URL`,
`AWS_PROFILE`, instance roles ...) or from fsspec's own configuration. Needs a store with strong
read-after-write consistency and conditional PutObject (If-Match, If-None-Match): AWS S3 and those
compatible services that pass `check_conditional_writes`.

s3fs supplies the client, its event loop and the multipart upload. Requests name bucket and key
themselves: s3fs' path functions would list folders, remember listings and cut keys at `?versionId=`.
"""

import io
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import s3fs
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.asyn import sync
from s3fs.core import S3_RETRYABLE_ERRORS

from pairforge.records import InfraError
from pairforge.storage import (
    Entry,
    Storage,
    absent,
    check_file,
    check_name,
    check_prefix,
    check_range,
)

_REQUEST_ATTEMPTS = 5
_BODY_ATTEMPTS = 3
_CONFLICT_ATTEMPTS = 8
_READ_TIMEOUT_S = 60
_UPLOAD_PART_BYTES = 8 * 2**20
"""10,000 parts are allowed: files up to 80 GB."""
_UPLOADS_AT_ONCE = 4
_READ_AHEAD_BYTES = 4 * 2**20
_MAX_KEY_BYTES = 1024

_MARKS = {
    "NextContinuationToken": "ContinuationToken",
    "NextKeyMarker": "KeyMarker",
    "NextUploadIdMarker": "UploadIdMarker",
}
"""What a listing's reply says, and what the request for its next page must repeat."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_FAULTS = (OSError, BotoCoreError, ClientError, HttpError, *S3_RETRYABLE_ERRORS)


def parse_root(rest: str) -> str:
    """Root of a storage from what follows `s3://`; ValueError where it is no bucket and prefix."""
    bucket, _, prefix = rest.rstrip("/").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"'s3://{rest}': {bucket!r} is no bucket name (ARNs: use the access point's alias)")
    return f"s3://{bucket}/{check_prefix(prefix)}" if prefix else f"s3://{bucket}"


class _Refused(InfraError):
    """A request failed; `status` is the HTTP status of the reply, 0 where there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class S3Storage(Storage):
    """A bucket, or what lies below a prefix of it."""

    def read(self, name: str) -> bytes:
        return self._get(name)[0]

    def read_range(self, name: str, start: int, length: int) -> bytes:
        check_range(start, length)
        if length == 0:  # HTTP has no empty ranges; absence must still be told
            self._head(name)
            return b""
        return self._get_range(name, start, length)

    def open(self, name: str) -> BinaryIO:
        head = self._head(name)
        return io.BufferedReader(_Reader(self, name, head["ContentLength"], head["ETag"]), _READ_AHEAD_BYTES)

    def exists(self, name: str) -> bool:
        try:
            self._head(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        size: int = self._head(name)["ContentLength"]
        return size

    def write(self, name: str, data: bytes) -> None:
        self._call("put_object", name, Body=data)

    def write_file(self, name: str, local_path: Path) -> None:
        check_file(local_path)
        at = self._at(name)
        with _faults(self.url(name)):
            _filesystem().put_file(
                str(local_path),
                f"{at['Bucket']}/{at['Key']}",
                chunksize=_UPLOAD_PART_BYTES,
                max_concurrency=_UPLOADS_AT_ONCE,
            )
            local_path.unlink()

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self._put_if(name, data, IfNoneMatch="*")

    def compare_and_swap(self, name: str, expected: bytes | None, new: bytes) -> bool:
        if expected is None:
            return self.put_if_absent(name, new)
        try:
            current, etag = self._get(name)
        except FileNotFoundError:
            return False
        return current == expected and self._put_if(name, new, IfMatch=etag)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        below_root = self._prefix()
        found = [
            Entry(item["Key"].removeprefix(below_root), item["Size"])
            for page in self._pages("list_objects_v2", below_root + check_prefix(prefix))
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")  # folder marks that consoles make
        ]
        return iter(sorted(found))

    def delete(self, name: str) -> None:
        self._call("delete_object", name)

    def local_path(self, name: str) -> Path | None:
        check_name(name)
        return None

    def sweep(self, older_than_s: float) -> int:
        limit = datetime.now(UTC) - timedelta(seconds=older_than_s)
        unfinished = [
            upload
            for page in self._pages("list_multipart_uploads", self._prefix())
            for upload in page.get("Uploads", [])
            if upload["Initiated"] <= limit
        ]
        for upload in unfinished:
            url = f"s3://{self._bucket()}/{upload['Key']}"
            at = {"Bucket": self._bucket(), "Key": upload["Key"], "UploadId": upload["UploadId"]}
            with suppress(FileNotFoundError), _faults(url):  # its writer finished meanwhile
                _filesystem().call_s3("abort_multipart_upload", **at)
        return len(unfinished)

    def check_conditional_writes(self) -> None:
        name = f"check-{uuid.uuid4().hex}"
        try:
            kept = self._put_if(name, b"first", IfNoneMatch="*")
            etag = self._head(name)["ETag"]
            kept = kept and not self._put_if(name, b"second", IfNoneMatch="*")
            kept = kept and self._put_if(name, b"third", IfMatch=etag)
            kept = kept and not self._put_if(name, b"fourth", IfMatch=etag)
        finally:
            self.delete(name)
        if not kept:
            raise ValueError(f"{self.root} ignores If-Match or If-None-Match of PutObject; use another store")

    def _bucket(self) -> str:
        return self.root.removeprefix("s3://").partition("/")[0]

    def _prefix(self) -> str:
        prefix = self.root.removeprefix("s3://").partition("/")[2]
        return f"{prefix}/" if prefix else ""

    def _at(self, name: str) -> dict[str, str]:
        key = self._prefix() + check_name(name)
        if len(key.encode()) > _MAX_KEY_BYTES or "?versionId=" in key:
            raise ValueError(f"{key!r} is no key: more than {_MAX_KEY_BYTES} bytes, or has '?versionId='")
        return {"Bucket": self._bucket(), "Key": key}

    def _call(self, method: str, name: str, **arguments: Any) -> dict[str, Any]:
        at = self._at(name)
        with _faults(self.url(name)):
            reply: dict[str, Any] = _filesystem().call_s3(method, **at, **arguments)
            return reply

    def _head(self, name: str) -> dict[str, Any]:
        return self._call("head_object", name)

    def _get(self, name: str, **arguments: str) -> tuple[bytes, str]:
        """Content and its ETag, from one reply."""
        at = self._at(name)
        with _faults(self.url(name)):
            filesystem = _filesystem()
            found: tuple[bytes, str] = sync(filesystem.loop, _get_object, filesystem, at | arguments)
            return found

    def _get_range(self, name: str, start: int, length: int, **arguments: str) -> bytes:
        try:
            return self._get(name, Range=f"bytes={start}-{start + length - 1}", **arguments)[0]
        except _Refused as error:
            if error.status != 416:  # the range starts at or after the end
                raise
            return b""

    def _put_if(self, name: str, data: bytes, **condition: str) -> bool:
        """Whether this call's conditional write took place.

        Clients repeat a request whose reply got lost, and the repeat then fails against the first one's
        own work. The write's id, kept as metadata, tells that case from a lost race.
        """
        write_id = uuid.uuid4().hex
        for attempt in range(_CONFLICT_ATTEMPTS):
            try:
                self._call("put_object", name, Body=data, Metadata={"write-id": write_id}, **condition)
                return True
            except FileNotFoundError:
                return False  # If-Match, and the object was deleted
            except _Refused as error:
                if error.status == 412:
                    return self._holds(name, write_id)
                if error.status != 409:  # ConditionalRequestConflict: undecided, to be sent again
                    raise
            time.sleep(0.05 * 2**attempt)
        raise InfraError(f"{self.url(name)}: {_CONFLICT_ATTEMPTS} conditional writes in a row got a conflict")

    def _holds(self, name: str, write_id: str) -> bool:
        try:
            return bool(self._head(name).get("Metadata", {}).get("write-id") == write_id)
        except FileNotFoundError:
            return False

    def _pages(self, method: str, prefix: str) -> Iterator[dict[str, Any]]:
        """Replies of a listing request, until the last."""
        marks: dict[str, str] = {}
        truncated = True
        while truncated:
            with _faults(f"s3://{self._bucket()}/{prefix}"):
                page = _filesystem().call_s3(method, Bucket=self._bucket(), Prefix=prefix, **marks)
            yield page
            truncated = page.get("IsTruncated", False)
            marks = {ours: page[theirs] for theirs, ours in _MARKS.items() if page.get(theirs)}


class _Reader(io.RawIOBase):
    """One version of an object as a seekable stream; every read is a request, so it needs a buffer above."""

    def __init__(self, storage: S3Storage, name: str, size: int, etag: str) -> None:
        self._storage, self._name, self._size, self._etag = storage, name, size, etag
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}: must be 0 or more")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._take(self._size)

    def _take(self, length: int) -> bytes:
        length = min(length, self._size - self._position)
        if length <= 0:
            return b""
        data = self._storage._get_range(self._name, self._position, length, IfMatch=self._etag)
        self._position += len(data)
        return data


def _filesystem() -> Any:
    """s3fs keeps one instance, with its connections, for a process, and makes another after a fork."""
    filesystem = s3fs.S3FileSystem(
        use_listings_cache=False,
        config_kwargs={
            "retries": {"mode": "standard", "total_max_attempts": _REQUEST_ATTEMPTS},
            "read_timeout": _READ_TIMEOUT_S,
        },
    )
    filesystem.retries = 1  # botocore repeats requests already; both together would take minutes to fail
    return filesystem


async def _get_object(filesystem: Any, arguments: dict[str, str]) -> tuple[bytes, str]:
    failures = 0
    while True:
        reply = await filesystem._call_s3("get_object", **arguments)
        try:
            async with reply["Body"] as body:
                return await body.read(), reply["ETag"]
        except S3_RETRYABLE_ERRORS:  # the connection broke inside the body, which botocore does not repeat
            failures += 1
            if failures == _BODY_ATTEMPTS:
                raise


@contextmanager
def _faults(url: str) -> Iterator[None]:
    """Absent objects as FileNotFoundError; everything else, an absent bucket too, as InfraError."""
    try:
        yield
    except _FAULTS as error:
        reply = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
        code = reply.get("Error", {}).get("Code")
        if code in ("NoSuchKey", "NoSuchUpload", "404"):
            raise absent(url) from error
        status = reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        detail = f"{type(error).__name__}: {error}" + (f" ({code})" if code else "")
        raise _Refused(f"{url}: {detail}", status) from error
