"""Shards: byte-stable, whole or invisible, readable by anything that reads tars."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds

from pairforge.records import Fate
from pairforge.shards import Marker, ShardName, ShardWriter, read_marker, read_rows, read_shard, read_tar
from pairforge.storage import Storage, open_storage

NAME = ShardName("synthesis", "haze", "train-000003", "0123456789abcdef" * 4)


def row(key: str, fate: Fate = Fate.KEPT, **more: Any) -> dict[str, Any]:
    common = {"recipe": "r", "variant": 0, "source_id": "0" * 24, "uri": "a.png", "group": "a"}
    return {"key": key, "fate": fate.value, **common, "licence": "CC0-1.0", "attribution": "", **more}


def write(storage: Storage, count: int = 3) -> Marker:
    with ShardWriter(storage, NAME, "train") as writer:
        for index in range(count):
            writer.add(row(f"r-{index}"), {"json": b"{}", "lq.png": b"lq" * index, "hq.png": b"hq"})
        writer.add(row("r-bad", Fate.FAILED, reason="truncated", detail="byte 7"), {})
        writer.add(row("r-no", Fate.REJECTED, reason="too_small", detail="3 px"), {})
        return writer.commit({"host": "h"})


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    markers = [write(open_storage(str(tmp_path / name))) for name in "ab"]
    assert markers[0] == markers[1]
    tars = [(tmp_path / name / NAME.tar).read_bytes() for name in "ab"]
    assert tars[0] == tars[1]
    assert hashlib.sha256(tars[0]).hexdigest() == markers[0].tar_sha256
    assert hashlib.md5(tars[0]).hexdigest() == markers[0].tar_md5
    assert len(tars[0]) == markers[0].tar_bytes


def test_every_planned_record_has_a_row_and_counts_agree(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    marker = write(storage)
    assert (marker.planned, marker.kept, marker.rejected, marker.failed) == (5, 3, 1, 1)
    assert marker.reasons == {"too_small": 1, "truncated": 1}
    rows = read_rows(storage, [NAME.rows], None).to_pylist()
    assert [r["key"] for r in rows] == ["r-0", "r-1", "r-2", "r-bad", "r-no"]
    assert rows[3]["detail"] == "byte 7" and rows[0]["reason"] is None
    assert read_marker(storage, NAME.marker) == marker


def test_the_tar_is_ustar_with_fixed_metadata(tmp_path: Path) -> None:
    write(open_storage(str(tmp_path)))
    data = (tmp_path / NAME.tar).read_bytes()
    assert data[257:265] == b"ustar\x0000"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        entries = tar.getmembers()
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode, e.type) for e in entries} == {
        (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
    }
    assert [e.name for e in entries][:3] == ["r-0.json", "r-0.lq.png", "r-0.hq.png"]


def test_webdataset_groups_the_samples_as_we_do(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    write(storage)
    ours = [(key, sorted(files)) for key, files in read_shard(storage, NAME.tar)]
    pipeline = wds.WebDataset(str(tmp_path / NAME.tar), shardshuffle=False)
    theirs = [(s["__key__"], sorted(k for k in s if not k.startswith("__"))) for s in pipeline]
    assert ours == theirs == [(f"r-{i}", ["hq.png", "json", "lq.png"]) for i in range(3)]


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with pytest.raises(RuntimeError, match="boom"), ShardWriter(storage, NAME, "train") as writer:
        writer.add(row("r-0"), {"json": b"{}"})
        raise RuntimeError("boom")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_part_without_kept_records_has_rows_and_no_tar(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with ShardWriter(storage, NAME, "train") as writer:
        writer.add(row("r-0", Fate.FAILED, reason="truncated", detail="x"), {})
        marker = writer.commit({})
    assert marker.tar_name == "" and marker.tar_bytes == 0
    assert {e.name for e in storage.list("shards/")} == {NAME.rows, NAME.marker}


@pytest.mark.parametrize("key", ["", "Upper", "dot.dot", "sp ace", "slash/es", "ä", "x" * 91])
def test_keys_that_readers_would_split_wrongly_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(open_storage(str(tmp_path)), NAME, "train") as writer, pytest.raises(ValueError, match="allowed"):
        writer.add(row(key), {"json": b"{}"})


@pytest.mark.parametrize("field", ["", "LQ.png", "a.b.c", "x/y"])
def test_fields_that_readers_would_split_wrongly_are_refused(tmp_path: Path, field: str) -> None:
    with ShardWriter(open_storage(str(tmp_path)), NAME, "train") as writer, pytest.raises(ValueError, match="allowed"):
        writer.add(row("r-0"), {field: b"{}"})


def test_a_key_cannot_stand_twice(tmp_path: Path) -> None:
    with ShardWriter(open_storage(str(tmp_path)), NAME, "train") as writer:
        writer.add(row("r-0"), {"json": b"{}"})
        with pytest.raises(ValueError, match="twice"):
            writer.add(row("r-0"), {"json": b"{}"})


def _tar_of(*names: str) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"x"))
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a.json", "b.json", "a.lq.png"), "not adjacent"),
        (("a.json", "a.json"), "stands twice"),
        (("A.json",), "KEY.FIELD"),
        (("folder/a.json",), "KEY.FIELD"),
        (("a",), "KEY.FIELD"),
    ],
)
def test_malformed_tars_are_refused(names: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(read_tar(_tar_of(*names)))


def test_a_truncated_tar_is_refused(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    write(storage)
    whole = (tmp_path / NAME.tar).read_bytes()
    for length in (100, 700, 1024, 1400, len(whole) // 1024 * 512):
        with pytest.raises(ValueError, match=r"not a readable tar|cut off|unexpected end"):
            list(read_tar(io.BytesIO(whole[:length])))
