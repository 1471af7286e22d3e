"""Indexes of tars: the bytes that reading the tar gives, from folders and buckets; damage is told."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pairforge.records import DamagedError
from pairforge.shards import read_shard, read_tar
from pairforge.snapshot import open_snapshot
from pairforge.storage import Storage, open_storage
from training.index import ReadAt, index_shards, index_tar


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def reading(data: bytes) -> ReadAt:
    return lambda start, length: data[start : start + length]


@pytest.mark.parametrize("sizes", [(0, 1, 511), (512, 513, 7680), (7681, 8192, 20_000)])
def test_spans_hold_what_the_tar_holds(sizes: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    files = {
        f"k{number}.{field}": rng.bytes(size)
        for number in range(5)
        for field, size in zip(("json", "lq.png", "hq.png"), sizes, strict=True)
    }
    del files["k3.lq.png"]
    files["k4.txt"] = b"words"
    data = tar_of(files)
    index = index_tar(reading(data), len(data))
    found = {}
    for row, key in enumerate(index.keys):
        for field in index.fields:
            if index.has(field)[row]:
                offset, size = index.span(row, field)
                found[f"{key.decode()}.{field}"] = data[offset : offset + size]
    assert found == files
    assert index.has("lq.png").tolist() == [True, True, True, False, True]
    assert index.has("txt").tolist() == [False] * 4 + [True]
    assert not index.has("depth.png").any()
    assert [key.decode() for key in index.keys] == [key for key, _ in read_tar(io.BytesIO(data))]


def test_damaged_tars_are_refused() -> None:
    data = tar_of({"k1.json": b"{}", "k1.lq.png": bytes(5000)})
    end = 512 + 512 + 512 + 5120
    for cut in (100, 700, 2000, end, end + 512):
        with pytest.raises(ValueError, match=r"no header of a tar|was cut off"):
            index_tar(reading(data[:cut]), cut)
    with pytest.raises(ValueError, match="no header"):
        index_tar(reading(b"x" + data[1:]), len(data))
    for name in ("../k.json", "K.json", "k", "k.a.b.c"):
        with pytest.raises(ValueError, match=r"KEY\.FIELD"):
            index_tar(reading(bad := tar_of({name: b""})), len(bad))


def test_an_index_is_kept_by_the_hash_of_its_tar(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = open_snapshot(dataset)
    cache = open_storage(str(tmp_path / "cache"))
    shards = [shard for shard in snapshot.shards() if shard.tar_name]
    made = index_shards(snapshot.storage, shards, cache)
    for shard, index in zip(shards, made, strict=True):
        samples = list(read_shard(snapshot.storage, shard.tar_name))
        assert [key.encode() for key, _ in samples] == index.keys.tolist()
        for row, (_, files) in enumerate(samples):
            assert {f for f in index.fields if index.has(f)[row]} == set(files)
            for field, data in files.items():
                assert snapshot.storage.read_range(shard.tar_name, *index.span(row, field)) == data
    names = [entry.name for entry in cache.list()]
    assert len(names) == len(shards)
    cache.write(names[0], cache.read(names[0])[:-40])
    cache.write(names[1], b"")
    again = index_shards(snapshot.storage, shards, cache)

    def refuse(storage: Storage, name: str, start: int, length: int) -> bytes:
        raise AssertionError("a kept index needs no tar")

    monkeypatch.setattr(type(snapshot.storage), "read_range", refuse)
    for indexes in (again, index_shards(snapshot.storage, shards, cache)):
        for one, other in zip(made, indexes, strict=True):
            assert one.fields == other.fields
            assert all(
                np.array_equal(getattr(one, name), getattr(other, name)) for name in ("keys", "offsets", "sizes")
            )


def test_a_tar_that_is_not_what_the_snapshot_says(dataset: str, tmp_path: Path) -> None:
    snapshot = open_snapshot(dataset)
    storage = open_storage(str(tmp_path))
    shard = next(shard for shard in snapshot.shards() if shard.kept > 1)
    data = snapshot.storage.read(shard.tar_name)
    with pytest.raises(DamagedError, match=r"is not there"):
        index_shards(storage, [shard], None)
    storage.write(shard.tar_name, data[:-512])
    with pytest.raises(DamagedError, match=rf"{shard.tar_name} has \d+ bytes"):
        index_shards(storage, [shard], None)
    storage.write(shard.tar_name, b"x" * len(data))
    with pytest.raises(DamagedError, match=rf"{shard.tar_name}: no header of a tar at byte 0"):
        index_shards(storage, [shard], None)
    storage.write(shard.tar_name, data)
    with pytest.raises(DamagedError, match=f"holds {shard.kept} samples, its snapshot says 99"):
        index_shards(storage, [shard.model_copy(update={"kept": 99})], None)
