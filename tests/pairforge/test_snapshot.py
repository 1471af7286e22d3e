"""Snapshots: what a reader gets, how they are published, how damage is found, what other tools are told."""

import datetime
import fnmatch
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pairforge.cards import dataset_card
from pairforge.config import canonical_json
from pairforge.image import decode_png, encode_png
from pairforge.manifest import Manifest
from pairforge.records import DamagedError, Fate, InfraError, Sample, SourceRef
from pairforge.shards import ROW_SCHEMA, Marker, ShardName, ShardWriter, read_marker, read_shard
from pairforge.snapshot import LATEST, Snapshot, open_snapshot, publish, read_latest, verify, write_snapshot
from pairforge.storage import Storage, open_storage

PLAN = [
    ("haze", "train", 0, 4),
    ("haze", "train", 1, 3),
    ("haze", "val", 0, 2),
    ("rain", "train", 0, 3),
    ("rain", "val", 0, 1),
]
"""Category, split, part and kept records of each shard of the set that these tests read."""
KEPT = sum(count for *_, count in PLAN)


def pixels_of(key: str, side: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Different for every key and side, also in size."""
    digest = hashlib.sha256(key.encode()).digest()
    shape = (8 + digest[0] % 9, 8 + digest[1] % 9, 3)
    noise = np.frombuffer((digest + side.encode()) * 99, np.uint8)
    return np.ascontiguousarray(noise[: shape[0] * shape[1] * 3].reshape(shape))


def source_id_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def sample_files(key: str, category: str, split: str, changes: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    files = {f"{side}.png": encode_png(pixels_of(key, side)) for side in ("lq", "hq")}
    source = SourceRef(
        source_id=source_id_of(key),
        sha256="0" * 64,
        uri=f"photos/{key}.png",
        kind="photo",
        group=key,
        licence="CC0-1.0",
        attribution="",
        width=16,
        height=16,
    )
    sample = Sample(
        key=key,
        line="made",
        category=category,
        split=split,
        recipe=category,
        recipe_version=1,
        variant=0,
        source=source,
        base=None,
        assets=(),
        scene={},
        steps=(),
        realised={},
        lq_sha256=hashlib.sha256(files["lq.png"]).hexdigest(),
        hq_sha256=hashlib.sha256(files["hq.png"]).hexdigest(),
        versions={},
    ).model_copy(update=changes)
    return {"json": canonical_json(sample).encode(), **files}


def row_of(key: str, files: Mapping[str, bytes], **changes: Any) -> dict[str, Any]:
    sample = json.loads(files["json"]) if files else {}
    return {
        "key": key,
        "recipe": key.split("-")[0],
        "variant": 0,
        "source_id": source_id_of(key),
        "uri": f"photos/{key}.png",
        "group": key,
        "licence": "CC0-1.0",
        "attribution": "",
        "fate": Fate.KEPT.value if files else Fate.FAILED.value,
        "reason": None if files else "truncated",
        "lq_sha256": sample.get("lq_sha256"),
        "hq_sha256": sample.get("hq_sha256"),
        **changes,
    }


def write_part(storage: Storage, category: str, split: str, number: int, count: int) -> Marker:
    """A shard of `count` kept records and one that failed."""
    fingerprint = hashlib.sha256(f"{category}{split}{number}".encode()).hexdigest()
    name = ShardName("made", category, f"{split}-{number:06d}", fingerprint)
    with ShardWriter(storage, name, split) as writer:
        for index in range(count):
            key = f"{category}-{split}{number}{index}-v0"
            files = sample_files(key, category, split)
            writer.add(row_of(key, files), files)
        writer.add(row_of(f"{category}-bad{split}{number}-v0", {}), {})
        return writer.commit({"host": "here"})


def write_set(storage: Storage, excluded: Sequence[str] = (), plan: Any = PLAN, **changes: Any) -> Manifest:
    said: dict[str, Any] = {
        "name": "tiny",
        "shards": [write_part(storage, *part) for part in plan],
        "sources": {"seen": 9, "usable": 8},
        "licences": ["CC0-1.0"],
        "excluded": excluded,
        "extra": {"config.json": b"{}"},
        **changes,
    }
    return write_snapshot(storage, **said)


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "set"))
    return open_storage(request.getfixturevalue("s3_url") + "/set")


@pytest.fixture
def snapshot(storage: Storage) -> Snapshot:
    publish(storage, write_set(storage))
    return open_snapshot(storage.root)


def keys_of(snapshot: Snapshot, **selected: Any) -> list[str]:
    return [sample["__key__"] for sample in snapshot.dataset(**selected)]


# --- reading -----------------------------------------------------------------------------------------


def test_rows_are_a_table_of_every_planned_record(snapshot: Snapshot) -> None:
    table = snapshot.rows()
    assert isinstance(table, pa.Table) and table.schema == ROW_SCHEMA
    assert Counter(table["fate"].to_pylist()) == {"kept": KEPT, "failed": len(PLAN)}
    chosen = snapshot.rows(["uri", "key"])
    assert chosen.column_names == ["uri", "key"]
    assert chosen["key"].to_pylist() == table["key"].to_pylist()
    assert snapshot.rows(["category"]).column_names == ["category"]


def test_an_unknown_column_is_named_with_the_known_ones(snapshot: Snapshot) -> None:
    with pytest.raises(ValueError, match=r"no column sevrity; allowed: key, line, .*severities"):
        snapshot.rows(["key", "sevrity"])


def test_exclusions_are_left_out_of_rows_and_samples(storage: Storage) -> None:
    keys = open_snapshot_of(storage, []).rows(["key"])["key"].to_pylist()
    gone = [keys[0], keys[6]]
    snapshot = open_snapshot_of(storage, gone)
    assert not set(gone) & set(snapshot.rows(["fate", "key"])["key"].to_pylist())
    assert snapshot.rows(["fate"]).num_rows == len(keys) - 2
    assert snapshot.rows(include_excluded=True)["key"].to_pylist() == keys
    assert sorted(keys_of(snapshot)) == sorted(key for key in keys if key not in gone and "-bad" not in key)
    assert not set(gone) & set(snapshot.first_keys(5))
    assert verify(snapshot).problems == ()


def open_snapshot_of(storage: Storage, excluded: list[str]) -> Snapshot:
    publish(storage, write_set(storage, excluded))
    return open_snapshot(storage.root)


def test_samples_are_the_arrays_of_their_png_files(snapshot: Snapshot) -> None:
    stored = {
        key: files for shard in snapshot.manifest.shards for key, files in read_shard(snapshot.storage, shard.tar_name)
    }
    seen = list(snapshot.dataset())
    assert [sample["__key__"] for sample in seen] == list(stored)
    assert len(stored) == KEPT
    for sample in seen:
        for side in ("lq", "hq"):
            pixels = sample[side]
            assert pixels.dtype == np.uint8 and pixels.flags.writeable
            np.testing.assert_array_equal(pixels, pixels_of(sample["__key__"], side))
            np.testing.assert_array_equal(pixels, decode_png(stored[sample["__key__"]][f"{side}.png"]))
        assert sample["json"] == json.loads(stored[sample["__key__"]]["json"])
        assert set(sample) == {"__key__", "__url__", "lq", "hq", "json"}


def test_categories_and_splits_are_selected(snapshot: Snapshot) -> None:
    assert {key.split("-")[0] for key in keys_of(snapshot, categories=["rain"])} == {"rain"}
    assert len(keys_of(snapshot, categories=["rain"])) == 4
    assert len(keys_of(snapshot, splits=["val"])) == 3
    assert len(keys_of(snapshot, categories=["haze"], splits=["train"])) == 7
    assert len(keys_of(snapshot, categories=["haze", "rain"], splits=["train", "val"])) == KEPT
    assert keys_of(snapshot, categories=[]) == []


@pytest.mark.parametrize("selected", [{"categories": ["haze", "fog"]}, {"splits": ["dev"]}])
def test_an_unknown_selection_says_what_there_is(snapshot: Snapshot, selected: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"no (category fog|split dev) in .*it has \['(haze', 'rain|train', 'val)'\]"):
        snapshot.dataset(**selected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("nodes", "workers"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 4)])
def test_nodes_and_workers_share_the_samples_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, workers: int
) -> None:
    """webdataset takes the place among nodes and loader workers from these variables where torch is absent."""
    storage = open_storage(str(tmp_path))
    publish(storage, write_set(storage))
    snapshot = open_snapshot(storage.root)
    seen: list[list[str]] = []
    for node in range(nodes):
        for worker in range(workers):
            for name, value in {
                "RANK": node, "WORLD_SIZE": nodes, "WORKER": worker, "NUM_WORKERS": workers
            }.items():  # fmt: skip
                monkeypatch.setenv(name, str(value))
            seen.append(keys_of(snapshot))
            assert len(keys_of(snapshot, split_shards=False)) == KEPT
    assert Counter(key for keys in seen for key in keys) == Counter(
        {row["key"]: 1 for row in snapshot.rows().to_pylist() if row["fate"] == "kept"}
    )
    assert sum(bool(keys) for keys in seen) == min(nodes * workers, len(PLAN))


def _digest_samples(pickled: bytes) -> dict[str, str]:
    samples = pickle.loads(pickled)
    return {s["__key__"]: hashlib.sha256(s["lq"].tobytes() + s["hq"].tobytes()).hexdigest() for s in samples}


def test_a_pipeline_goes_to_a_fresh_process(snapshot: Snapshot) -> None:
    pipeline = snapshot.dataset(splits=["train"]).shuffle(10)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_digest_samples, (pickle.dumps(pipeline),))
    assert len(there) == 10
    assert there == _digest_samples(pickle.dumps(snapshot.dataset(splits=["train"])))


def test_a_pipeline_takes_further_stages(snapshot: Snapshot) -> None:
    pipeline = snapshot.dataset().select(lambda sample: sample["lq"].shape[0] > 11).shuffle(100)
    orders = {tuple(sample["__key__"] for sample in pipeline) for _ in range(5)}
    expected = {key for key in keys_of(snapshot) if pixels_of(key, "lq").shape[0] > 11}
    assert 1 < len(expected) < KEPT and len(orders) > 1
    assert all(len(order) == len(expected) and set(order) == expected for order in orders)


def test_one_record_is_found_by_its_key(snapshot: Snapshot) -> None:
    key = keys_of(snapshot, categories=["rain"])[1]
    shard, files = snapshot.find(key)
    assert shard.category == "rain"
    np.testing.assert_array_equal(decode_png(files["hq.png"]), pixels_of(key, "hq"))
    for absent in ("rain-none-v0", "rain-badtrain0-v0"):
        with pytest.raises(KeyError, match=absent):
            snapshot.find(absent)


def test_counts_by_category_and_reason(snapshot: Snapshot) -> None:
    summary = {row["category"]: row for row in snapshot.summary()}
    assert list(summary) == ["haze", "rain", "total"]
    assert [summary["haze"][name] for name in ("planned", "kept", "rejected", "failed")] == [12, 9, 0, 3]
    assert summary["total"]["kept"] == KEPT
    assert summary["total"]["bytes"] == sum(s.tar_bytes + s.rows_bytes for s in snapshot.manifest.shards)
    assert snapshot.reasons() == {"truncated": len(PLAN)}
    assert [key.split("-")[0] for key in snapshot.first_keys(9)] == ["haze", "rain"]


def test_reading_rows_starts_no_thread(tmp_path: Path) -> None:
    """Threads of Arrow's pool abort, now and then, a process that ends right after it read."""
    storage = open_storage(str(tmp_path))
    publish(storage, write_set(storage))
    script = """
import os, sys
from pairforge.snapshot import open_snapshot
snapshot = open_snapshot(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
snapshot.rows(); snapshot.find(snapshot.first_keys(1)[0])
assert len(os.listdir("/proc/self/task")) == before
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


# --- publishing --------------------------------------------------------------------------------------


def test_a_pinned_snapshot_stays_readable_after_a_new_one(storage: Storage) -> None:
    old = write_set(storage, plan=PLAN[:2])
    publish(storage, old)
    opened = open_snapshot(storage.root)
    publish(storage, write_set(storage))
    assert len(keys_of(opened)) == 7
    pinned = open_snapshot(f"{storage.root}/snapshots/{old.id}")
    assert pinned.manifest == old and verify(pinned).problems == ()
    assert len(keys_of(pinned)) == 7
    assert len(keys_of(open_snapshot(storage.root))) == KEPT


def test_the_same_content_is_the_same_snapshot_and_no_new_publication(storage: Storage) -> None:
    first = write_set(storage)
    assert publish(storage, first)
    before = {entry.name: storage.read(entry.name) for entry in storage.list("snapshots/")}
    again = write_set(storage)
    assert again == first and not publish(storage, again)
    assert {entry.name: storage.read(entry.name) for entry in storage.list("snapshots/")} == before


def test_the_same_content_on_another_day_is_still_the_published_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    first = write_set(storage)
    publish(storage, first)
    monkeypatch.setattr("pairforge.snapshot.datetime", _Tomorrow)
    assert write_set(storage) == first
    other = write_set(storage, name="other")
    assert other.date == "2100-01-01" and other.id.startswith("21000101-")


class _Tomorrow:
    """Stands for the module `datetime` on one far day."""

    UTC = datetime.UTC

    class datetime:
        @staticmethod
        def now(zone: datetime.tzinfo) -> datetime.datetime:
            return datetime.datetime(2100, 1, 1, tzinfo=zone)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"sources": {"seen": 10}},
        {"licences": ["CC0-1.0", "MIT"]},
        {"excluded": ["haze-bad-v0"]},
        {"extra": {"config.json": b"{} "}},
        {"plan": PLAN[1:]},
    ],
)
def test_any_other_content_is_another_snapshot(tmp_path: Path, changes: dict[str, Any]) -> None:
    storage = open_storage(str(tmp_path))
    assert write_set(storage, **changes).id != write_set(storage).id


def test_going_back_to_an_older_content_moves_latest_and_writes_nothing(storage: Storage) -> None:
    first = write_set(storage)
    publish(storage, first)
    publish(storage, write_set(storage, name="other"))
    before = {entry.name: entry.size for entry in storage.list("snapshots/") if entry.name != LATEST}
    assert publish(storage, write_set(storage))
    pointer = read_latest(storage)
    assert pointer is not None and (pointer.snapshot, pointer.fence) == (first.id, 3)
    assert {entry.name: entry.size for entry in storage.list("snapshots/") if entry.name != LATEST} == before


def test_a_snapshot_is_invisible_until_its_manifest_is_written(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(storage, write_set(storage, plan=PLAN[:1]))
    before = storage.read(LATEST)
    markers = [write_part(storage, *part) for part in PLAN]
    write = type(storage).write

    def failing(self: Storage, name: str, data: bytes) -> None:
        if name.endswith("manifest.json"):
            raise InfraError("the power went out")
        write(self, name, data)

    monkeypatch.setattr(type(storage), "write", failing)
    with pytest.raises(InfraError):
        write_snapshot(storage, "tiny", markers, {}, ["CC0-1.0"], [], {})
    assert storage.read(LATEST) == before
    assert len(keys_of(open_snapshot(storage.root))) == 4


def test_nothing_published_and_unknown_pins_say_what_there_is(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError, match="no snapshot has been published below"):
        open_snapshot(storage.root)
    manifest = write_set(storage)
    with pytest.raises(FileNotFoundError, match=f"written, but {LATEST} does not point.*{manifest.id}"):
        open_snapshot(storage.root)
    with pytest.raises(FileNotFoundError, match=f"no snapshot .*20200101-00000000; written are: {manifest.id}"):
        open_snapshot(f"{storage.root}/snapshots/20200101-00000000")


def _publish_many(root: str, manifests: list[Manifest], gate: Any) -> int:
    storage = open_storage(root)
    gate.wait()
    return sum(publish(storage, manifest, attempts=10_000) for manifest in manifests for _ in range(3))


def _count_moves(root: str, mine: int, gate: Any, moved: Any) -> None:
    storage = open_storage(root)
    names = [write_set(storage, name=f"set{mine}{index}", plan=PLAN[:1]) for index in range(4)]
    moved.put(_publish_many(root, names, gate))


def test_two_publishers_move_latest_with_a_fence_that_only_rises(storage: Storage) -> None:
    processes = multiprocessing.get_context("spawn")
    gate, moved = processes.Barrier(3), processes.Queue()
    publishers = [processes.Process(target=_count_moves, args=(storage.root, mine, gate, moved)) for mine in range(2)]
    for publisher in publishers:
        publisher.start()
    gate.wait(60)
    fences = [0]
    while any(publisher.is_alive() for publisher in publishers):
        pointer = read_latest(storage)
        fences.append(pointer.fence if pointer else 0)
        time.sleep(0.002)
    moves = moved.get(timeout=10) + moved.get(timeout=10)
    assert [publisher.exitcode for publisher in publishers] == [0, 0]
    pointer = read_latest(storage)
    assert pointer is not None and pointer.fence == moves >= 8
    assert fences == sorted(fences) and max(fences) <= moves
    assert open_snapshot(storage.root).manifest.id == pointer.snapshot


# --- damage ------------------------------------------------------------------------------------------

Damage = Callable[[Snapshot], str]
"""Harms a stored snapshot and returns what a message about it must hold."""


def _change(snapshot: Snapshot, name: str, change: Callable[[bytes], bytes]) -> str:
    data = snapshot.storage.read(name)
    changed = change(data)
    assert changed != data
    snapshot.storage.write(name, changed)
    return name


def _sub(snapshot: Snapshot, name: str, pattern: bytes, new: bytes) -> str:
    return _change(snapshot, name, lambda data: re.sub(pattern, new, data, count=1))


def _flipped(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _remove(snapshot: Snapshot, name: str) -> str:
    snapshot.storage.delete(name)
    return name


def _swap_tars(snapshot: Snapshot) -> str:
    one, other = (shard.tar_name for shard in snapshot.manifest.shards[:2])
    data = snapshot.storage.read(one)
    snapshot.storage.write(one, snapshot.storage.read(other))
    snapshot.storage.write(other, data)
    return one


def _manifest(snapshot: Snapshot) -> str:
    return f"snapshots/{snapshot.manifest.id}/manifest.json"


DAMAGES: dict[str, Damage] = {
    "one bit of a tar": lambda s: _change(s, s.manifest.shards[2].tar_name, _flipped),
    "last byte of a tar": lambda s: _change(s, s.manifest.shards[2].tar_name, lambda data: data[:-1] + b"x"),
    "a tar cut off": lambda s: _change(s, s.manifest.shards[1].tar_name, lambda data: data[:-512]),
    "a tar longer": lambda s: _change(s, s.manifest.shards[1].tar_name, lambda data: data + bytes(512)),
    "a tar emptied": lambda s: _change(s, s.manifest.shards[1].tar_name, lambda data: b""),
    "a tar deleted": lambda s: _remove(s, s.manifest.shards[0].tar_name),
    "two tars swapped": _swap_tars,
    "one bit of rows": lambda s: _change(s, s.manifest.shards[3].rows_name, _flipped),
    "rows deleted": lambda s: _remove(s, s.manifest.shards[3].rows_name),
    "the card edited": lambda s: _change(s, f"snapshots/{s.manifest.id}/README.md", lambda data: data + b"!"),
    "the index edited": lambda s: _change(s, f"snapshots/{s.manifest.id}/wids.json", _flipped),
    "the config deleted": lambda s: _remove(s, f"snapshots/{s.manifest.id}/config.json"),
    "a count in the manifest": lambda s: _sub(s, _manifest(s), b'"kept":4', b'"kept":5'),
    "the name in the manifest": lambda s: _sub(s, _manifest(s), b"tiny", b"tony"),
    "the date in the manifest": lambda s: _sub(s, _manifest(s), rb'"date":"....', b'"date":"1999'),
    "the manifest cut off": lambda s: _change(s, _manifest(s), lambda data: data[:-9]),
    "the manifest deleted": lambda s: _remove(s, _manifest(s)) and s.manifest.id,
    "latest cut off": lambda s: _change(s, LATEST, lambda data: data[:-5]),
    "latest emptied": lambda s: _change(s, LATEST, lambda data: b""),
    "latest points nowhere": lambda s: _sub(s, LATEST, s.manifest.id.encode(), b"20200101-00000000"),
    "latest with another hash": lambda s: _sub(s, LATEST, rb'sha256":"....', b'sha256":"0000'),
}


def problems_of(url: str) -> list[str]:
    """What somebody who checks a dataset is told."""
    try:
        return list(verify(open_snapshot(url)).problems)
    except DamagedError as error:
        return [str(error)]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_found_and_named(storage: Storage, snapshot: Snapshot, damage: Damage) -> None:
    assert problems_of(storage.root) == []
    named = damage(snapshot)
    problems = problems_of(storage.root)
    assert problems and named in " ".join(problems)
    assert all("Traceback" not in problem and "\n" not in problem for problem in problems)


@pytest.mark.parametrize("what", [name for name in DAMAGES if "manifest" in name and "deleted" not in name])
def test_a_pinned_snapshot_notices_an_edited_manifest(storage: Storage, snapshot: Snapshot, what: str) -> None:
    named = DAMAGES[what](snapshot)
    with pytest.raises(DamagedError, match=re.escape(named)):
        open_snapshot(f"{storage.root}/snapshots/{snapshot.manifest.id}")


def test_a_cut_off_file_is_told_from_a_changed_one(snapshot: Snapshot) -> None:
    shard = snapshot.manifest.shards[0]
    _change(snapshot, shard.tar_name, lambda data: data[:1000])
    says = f"{shard.tar_name} has 1000 bytes, {shard.tar_bytes} were committed"
    assert verify(snapshot).problems == (f"{shard.rows_name.removesuffix('.parquet')}: {says}",)


def test_every_damaged_shard_is_named_not_only_the_first(snapshot: Snapshot) -> None:
    for shard in snapshot.manifest.shards:
        _change(snapshot, shard.tar_name, _flipped)
    report = verify(snapshot)
    assert len(report.problems) == report.shards == len(PLAN)
    assert report.samples == 0


HOSTILE_JSON = {
    "empty": b"",
    "cut off": b'{"part": "x',
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e999",
    "nothing known": b"{}",
    "not a number": b'{"fence": NaN}',
    "deep": b"[" * 100_000,
    "deep mappings": b'{"a":' * 50_000,
    "not UTF-8": b"\xff\xfe{}",
    "binary": bytes(range(256)),
    "an endless integer": b'{"fence": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("data", HOSTILE_JSON.values(), ids=HOSTILE_JSON.keys())
def test_hostile_json_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    storage = open_storage(str(tmp_path))
    manifest = write_set(storage, plan=PLAN[:1])
    publish(storage, manifest)
    marker = next(entry.name for entry in storage.list("shards/") if entry.name.endswith(".marker.json"))
    storage.write(marker, data)
    with pytest.raises(DamagedError, match=re.escape(marker)) as caught:
        read_marker(storage, marker)
    assert len(str(caught.value)) < 500
    storage.write(f"snapshots/{manifest.id}/manifest.json", data)
    with pytest.raises(DamagedError, match=rf"{manifest.id}/manifest\.json"):
        open_snapshot(f"{storage.root}/snapshots/{manifest.id}")
    storage.write(LATEST, data)
    with pytest.raises(DamagedError, match=re.escape(LATEST)):
        open_snapshot(storage.root)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("planned", "four"),
        ("planned", 4.5),
        ("kept", None),
        ("reasons", ["truncated"]),
        ("tar_name", 7),
        ("surprise", 1),
    ],
)
def test_a_marker_with_a_wrong_field_names_it(tmp_path: Path, field: str, value: Any) -> None:
    storage = open_storage(str(tmp_path))
    marker = write_part(storage, *PLAN[0])
    name = f"{marker.rows_name.removesuffix('.parquet')}.marker.json"
    storage.write(name, json.dumps({**json.loads(storage.read(name)), field: value}).encode())
    with pytest.raises(DamagedError, match=f"{re.escape(name)} is damaged: {field}: "):
        read_marker(storage, name)


def test_a_manifest_cannot_name_files_outside_its_dataset(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "set"))
    (tmp_path / "secret.tar").write_bytes(b"x")
    shards = [
        shard.model_copy(update={"tar_name": "../secret.tar", "rows_name": "../secret.tar"})
        for shard in (write_part(storage, *part) for part in PLAN[:1])
    ]
    publish(storage, write_snapshot(storage, "tiny", shards, {}, [], [], {}))
    snapshot = open_snapshot(storage.root)
    problems = verify(snapshot).problems
    assert problems and all("'../secret.tar' is no name" in problem for problem in problems)
    for read in (snapshot.rows, lambda: list(snapshot.dataset())):
        with pytest.raises(ValueError, match="is no name"):
            read()


def test_a_newer_schema_is_refused_not_guessed(storage: Storage, snapshot: Snapshot) -> None:
    _change(snapshot, _manifest(snapshot), lambda d: d.replace(b'"schema_version":1', b'"schema_version":2'))
    with pytest.raises(ValueError, match="has schema 2; this version reads up to 1"):
        open_snapshot(f"{storage.root}/snapshots/{snapshot.manifest.id}")


WRONG_RECORDS: dict[str, tuple[Callable[[str], tuple[dict[str, Any], dict[str, bytes]]], str]] = {
    "another LQ": (
        lambda key: _record(key, files={"lq.png": encode_png(pixels_of("other", "lq"))}),
        r"lq\.png does not have the SHA-256",
    ),
    "another HQ in the row": (lambda key: _record(key, row={"hq_sha256": "0" * 64}), r"hq\.png does not have the SHA"),
    "JSON of another key": (lambda key: _record(key, sample={"key": "haze-other-v0"}), "names another key"),
    "JSON of another split": (lambda key: _record(key, sample={"split": "val"}), "another key, category or split"),
    "no JSON at all": (lambda key: _record(key, files={"json": b"{"}), r"json is damaged"),
    "no HQ": (lambda key: _record(key, drop="hq.png"), r"hq\.png is missing"),
}  # fmt: skip


def _record(
    key: str, row: Any = None, sample: Any = None, files: Any = None, drop: str = ""
) -> tuple[dict[str, Any], dict[str, bytes]]:
    stored = sample_files(key, "haze", "train", sample)
    described = row_of(key, stored, **(row or {}))
    stored.update(files or {})
    stored.pop(drop, None)
    return described, stored


@pytest.mark.parametrize("what", WRONG_RECORDS)
def test_a_shard_that_was_written_wrong_is_found(tmp_path: Path, what: str) -> None:
    make, says = WRONG_RECORDS[what]
    storage = open_storage(str(tmp_path))
    with ShardWriter(storage, ShardName("made", "haze", "train-000000", "0" * 64), "train") as writer:
        writer.add(*_record("haze-good-v0"))
        writer.add(*make("haze-wrong-v0"))
        marker = writer.commit({})
    publish(storage, write_snapshot(storage, "tiny", [marker], {}, [], [], {}))
    problems = verify(open_snapshot(storage.root)).problems
    assert problems and re.search(says, problems[0]), problems
    assert "haze-wrong-v0" in problems[0] and marker.rows_name.removesuffix(".parquet") in problems[0]


@pytest.mark.parametrize("counts", [{"planned": 6}, {"kept": 3, "failed": 2}, {"kept": 5, "planned": 6}])
def test_wrong_counts_are_found(tmp_path: Path, counts: dict[str, int]) -> None:
    storage = open_storage(str(tmp_path))
    shard = write_part(storage, *PLAN[0]).model_copy(update=counts)
    publish(storage, write_snapshot(storage, "tiny", [shard], {}, [], [], {}))
    assert re.search(r"count|planned 6 is not", verify(open_snapshot(storage.root)).problems[0])


def test_a_key_in_two_shards_and_an_exclusion_of_nothing_are_found(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    parts = []
    for number in range(2):
        with ShardWriter(
            storage, ShardName("made", "haze", f"train-00000{number}", f"{number}" * 64), "train"
        ) as writer:
            writer.add(*_record("haze-twice-v0"))
            parts.append(writer.commit({}))
    publish(storage, write_snapshot(storage, "tiny", parts, {}, [], [], {}))
    assert verify(open_snapshot(storage.root)).problems == (
        f"{parts[1].rows_name}: key haze-twice-v0 stands in another shard too",
    )
    publish(storage, write_snapshot(storage, "tiny", parts[:1], {}, [], ["haze-gone-v0"], {}))
    assert verify(open_snapshot(storage.root)).problems == ("excluded key haze-gone-v0 is in no shard",)


# --- what other tools are told -----------------------------------------------------------------------


def test_the_wids_index_leads_to_every_tar(tmp_path: Path) -> None:
    """The keys that wids needs (`wids_version`, `shardlist` with `url` and `nsamples`), its way to resolve URLs."""
    storage = open_storage(str(tmp_path))
    manifest = write_set(storage)
    index = json.loads(storage.read(f"snapshots/{manifest.id}/wids.json"))
    assert (index["wids_version"], index["__kind__"], index["name"]) == (1, "wids-shard-index-v1", "tiny")
    assert sum(entry["nsamples"] for entry in index["shardlist"]) == KEPT
    for entry in index["shardlist"]:
        data = Path(os.path.normpath(tmp_path / "snapshots" / manifest.id / entry["url"])).read_bytes()
        assert entry["filesize"] == len(data)
        assert entry["md5sum"] == hashlib.md5(data).hexdigest()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert len({name.split(".")[0] for name in tar.getnames()}) == entry["nsamples"]


def test_sizes_count_the_samples_by_file_name(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    manifest = write_set(storage)
    sizes = json.loads(storage.read(f"snapshots/{manifest.id}/sizes.json"))
    tars = {path.name: path for path in tmp_path.rglob("*.tar")}
    assert set(sizes) == set(tars) and sum(sizes.values()) == KEPT
    for name, count in sizes.items():
        with tarfile.open(tars[name]) as tar:
            assert sum(member.endswith(".json") for member in tar.getnames()) == count


def _card(storage: Storage, manifest: Manifest) -> tuple[dict[str, Any], str]:
    text = storage.read(f"snapshots/{manifest.id}/README.md").decode()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_says_what_a_hub_asks_for(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    manifest = write_set(storage)
    header, body = _card(storage, manifest)
    assert header["license"] == "cc0-1.0"
    assert header["task_categories"] == ["image-to-image"]
    assert header["size_categories"] == ["n<1K"]
    assert header["pretty_name"] == "tiny"
    paths: list[str] = []
    for config in header["configs"]:
        for files in config["data_files"]:
            for path in files["path"]:
                assert path.startswith(f"shards/made/{config['config_name']}/{files['split']}-")
                assert (tmp_path / path).is_file()
                paths.append(path)
    assert sorted(paths) == sorted(shard.tar_name for shard in manifest.shards)
    assert f"| haze | train | 7 | 2 | {sum(s.tar_bytes for s in manifest.shards[:2])} |" in body
    assert manifest.id in body and "CC0-1.0" in body


@pytest.mark.parametrize("hostile", ["a: b", "---\nlicense: mit", "'\"{[#&*!|>%@`", "日本語のライセンス", "- x"])
def test_no_licence_text_can_break_the_card(tmp_path: Path, hostile: str) -> None:
    storage = open_storage(str(tmp_path))
    manifest = write_set(storage, licences=[hostile, "CC0-1.0"])
    text = dataset_card(manifest)
    header = yaml.safe_load(text.removeprefix("---\n").split("\n---\n")[0])
    assert header["license"] == "other"
    assert hostile in header["license_details"]


def test_the_card_tells_other_readers_of_exclusions(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert "excluded" not in _card(storage, write_set(storage))[1]
    assert "excluded 1 samples" in _card(storage, write_set(storage, ["haze-x-v0"]))[1]


@pytest.mark.parametrize(
    ("count", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (5 * 10**7, "10M<n<100M")],
)
def test_size_categories(tmp_path: Path, count: int, category: str) -> None:
    manifest = write_set(open_storage(str(tmp_path)), plan=PLAN[:1])
    shard = manifest.shards[0].model_copy(update={"kept": count})
    assert f"- {category}\n" in dataset_card(manifest.model_copy(update={"shards": (shard,)}))


def _croissant(storage: Storage, manifest: Manifest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(storage.read(f"snapshots/{manifest.id}/croissant.json"))
    return loaded


def test_croissant_names_every_tar_with_its_hash(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    manifest = write_set(storage)
    told = _croissant(storage, manifest)
    assert told["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert told["@context"]["cr"] == "http://mlcommons.org/croissant/" and told["@context"]["@vocab"]
    assert told["license"] == ["CC0-1.0"] and re.fullmatch(r"\d+\.\d+\.\d+", told["version"])
    objects = [entry for entry in told["distribution"] if entry["@type"] == "cr:FileObject"]
    assert len(objects) == len(PLAN)
    for entry in objects:
        data = Path(os.path.normpath(tmp_path / "snapshots" / manifest.id / entry["contentUrl"])).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["contentSize"] == f"{len(data)} B"
        assert entry["encodingFormat"] == "application/x-tar"


def test_croissant_leads_to_every_file_and_its_key(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    manifest = write_set(storage)
    told = _croissant(storage, manifest)
    sets = {entry["@id"]: entry for entry in told["distribution"] if entry["@type"] == "cr:FileSet"}
    assert len({entry["@id"] for entry in [*told["distribution"], *told["recordSet"]]}) == len(PLAN) + 2 * len(sets)
    seen: Counter[tuple[str, str]] = Counter()
    for records in told["recordSet"]:
        category, split, side = records["name"].split("-")
        key, content = records["field"]
        assert records["key"]["@id"] == key["@id"] and key["source"]["fileSet"] == content["source"]["fileSet"]
        files = sets[key["source"]["fileSet"]["@id"]]
        for reference in files["containedIn"]:
            assert f"/{category}/{split}-" in reference["@id"]
            with tarfile.open(tmp_path / reference["@id"]) as tar:
                for name in fnmatch.filter(tar.getnames(), files["includes"]):
                    found = re.match(key["source"]["transform"]["regex"], name)
                    assert found and not found[1].endswith((".lq", ".hq"))
                    seen[found[1], side] += 1
    kept = [row["key"] for row in open_rows(storage, manifest) if row["fate"] == "kept"]
    assert seen == Counter((key, side) for key in kept for side in ("lq", "hq", "json"))


def open_rows(storage: Storage, manifest: Manifest) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Snapshot(storage, manifest).rows().to_pylist()
    return rows


def test_croissant_is_read_by_its_own_library(tmp_path: Path) -> None:
    croissant = pytest.importorskip("mlcroissant")
    storage = open_storage(str(tmp_path))
    manifest = write_set(storage)
    dataset = croissant.Dataset(jsonld=str(tmp_path / "snapshots" / manifest.id / "croissant.json"))
    keys = [record["haze-val-lq/key"].decode() for record in dataset.records("haze-val-lq")]
    assert keys == keys_of(Snapshot(storage, manifest), categories=["haze"], splits=["val"])


def test_every_file_of_a_snapshot_but_the_manifest_has_its_hash_there(storage: Storage, snapshot: Snapshot) -> None:
    names = {entry.name.split("/")[-1] for entry in storage.list(f"snapshots/{snapshot.manifest.id}/")}
    assert names == {*snapshot.manifest.files, "manifest.json"}
    assert names == {"manifest.json", "README.md", "croissant.json", "wids.json", "sizes.json", "config.json"}


@pytest.fixture(autouse=True)
def _no_loader_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "WORLD_SIZE", "WORKER", "NUM_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    yield
