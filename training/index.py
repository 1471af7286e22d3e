"""Where every file of a tar lies, so that one sample can be read without those before it."""

import io
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairforge.records import DamagedError
from pairforge.shards import FIELD_PATTERN, KEY_PATTERN, Shard
from pairforge.storage import Storage

Offsets = NDArray[np.int64]
ReadAt = Callable[[int, int], bytes]
"""Offset and length to bytes; fewer at the end."""

_BLOCK = tarfile.BLOCKSIZE
_WINDOW_BYTES = 8192
"""Read at once: the JSON of a sample, which comes first, and the header that follows it."""
_SHARDS_AT_ONCE = 16
_FORMAT = 1


@dataclass(frozen=True)
class ShardIndex:
    """Samples of one tar, in its order: `keys` (n,), and by field where its bytes start and how many they are.

    `offsets` and `sizes` are (n, fields); -1 where a sample lacks the field.
    """

    keys: NDArray[np.bytes_]
    fields: tuple[str, ...]
    offsets: Offsets
    sizes: Offsets

    def __len__(self) -> int:
        return len(self.keys)

    def has(self, field: str) -> NDArray[np.bool_]:
        """(n,): which samples have a field."""
        if field not in self.fields:
            return np.zeros(len(self), np.bool_)
        found: NDArray[np.bool_] = self.offsets[:, self.fields.index(field)] >= 0
        return found

    def span(self, row: int, field: str) -> tuple[int, int]:
        """Offset and size of a field that the sample has."""
        column = self.fields.index(field)
        return int(self.offsets[row, column]), int(self.sizes[row, column])


def index_tar(read_at: ReadAt, tar_bytes: int) -> ShardIndex:
    """Walk the headers of a tar. Raises ValueError where it is no tar of `KEY.FIELD` files, or was cut off."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    window, start, position = b"", 0, 0
    while True:
        if not start <= position <= start + len(window) - _BLOCK:
            start, window = position, read_at(position, _WINDOW_BYTES)
        header = window[position - start :][:_BLOCK]
        if header == bytes(_BLOCK):
            break
        try:
            entry = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise ValueError(f"no header of a tar at byte {position}: {error}") from error
        key, _, field = entry.name.partition(".")
        if not entry.isreg() or not KEY_PATTERN.match(key) or not FIELD_PATTERN.match(field):
            raise ValueError(f"entry {entry.name!r} is not a file named KEY.FIELD")
        if field in samples.setdefault(key, {}):
            raise ValueError(f"entry {entry.name!r} stands twice")
        samples[key][field] = (position + _BLOCK, entry.size)
        position += _BLOCK + -(-entry.size // _BLOCK) * _BLOCK
    if position + 2 * _BLOCK > tar_bytes:
        raise ValueError("the tar has no end: it was cut off")
    return _packed(samples)


def _packed(samples: dict[str, dict[str, tuple[int, int]]]) -> ShardIndex:
    fields = tuple(dict.fromkeys(field for files in samples.values() for field in files))
    spans = np.array([[files.get(field, (-1, -1)) for field in fields] for files in samples.values()], np.int64)
    spans = spans.reshape(len(samples), len(fields), 2)
    return ShardIndex(np.array(list(samples), np.bytes_), fields, spans[..., 0], spans[..., 1])


def index_shards(storage: Storage, shards: Sequence[Shard], cache: Storage | None) -> list[ShardIndex]:
    """Indexes of stored shards that have a tar. `cache` keeps them by the hash of the tar, so also for later snapshots.

    Raises DamagedError where a tar is missing or is not what its snapshot says.
    """
    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as threads:
        return list(threads.map(partial(_index_shard, storage, cache), shards))


def _index_shard(storage: Storage, cache: Storage | None, shard: Shard) -> ShardIndex:
    name = f"index-{_FORMAT}/{shard.tar_sha256[:2]}/{shard.tar_sha256}.npz"
    held = _cached(cache, name) if cache else None
    if held is None:
        held = _walk(storage, shard)
        if cache:
            cache.write(name, _dump(held))
    if len(held) != shard.kept:
        raise DamagedError(f"{storage.url(shard.tar_name)} holds {len(held)} samples, its snapshot says {shard.kept}")
    return held


def _walk(storage: Storage, shard: Shard) -> ShardIndex:
    url = storage.url(shard.tar_name)
    try:
        found = storage.size(shard.tar_name)
        if found != shard.tar_bytes:
            raise DamagedError(f"{url} has {found} bytes, its snapshot says {shard.tar_bytes}")
        return index_tar(partial(storage.read_range, shard.tar_name), found)
    except FileNotFoundError as error:
        raise DamagedError(f"{url} is named by its snapshot, but is not there") from error
    except DamagedError:
        raise
    except ValueError as error:
        raise DamagedError(f"{url}: {error}") from error


def _dump(index: ShardIndex) -> bytes:
    buffer = io.BytesIO()
    fields = np.array(index.fields, np.str_)
    np.savez(buffer, keys=index.keys, fields=fields, offsets=index.offsets, sizes=index.sizes)
    return buffer.getvalue()


def _cached(cache: Storage, name: str) -> ShardIndex | None:
    """None where there is none, or one that cannot be read, which is then made again."""
    try:
        held: Any = np.load(io.BytesIO(cache.read(name)), allow_pickle=False)
        index = ShardIndex(held["keys"], tuple(held["fields"].tolist()), held["offsets"], held["sizes"])
    except Exception:  # noqa: BLE001 - whatever is wrong with a cached file, the tar says it again
        return None
    fits = index.offsets.shape == index.sizes.shape == (len(index), len(index.fields))
    return index if fits else None
