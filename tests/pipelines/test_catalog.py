"""The catalog: every listed thing is one row, rows never change, a source counts once, groups keep their split."""

import io
import os
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pairforge.image import Pixels, encode_png
from pairforge.records import InfraError
from pairforge.snapshot import open_snapshot
from pairforge.storage import open_storage
from pipelines import catalog as catalog_module
from pipelines.catalog import CATALOG_SCHEMA, REMOVED, USABLE, Catalog, CatalogRow, split_of
from pipelines.engine import Backend, LocalBackend
from pipelines.estimate import estimate
from pipelines.plan import count_sources, plan_parts, render_settings
from pipelines.ray_backend import RayBackend
from pipelines.reading import read_source
from pipelines.run import run, stages_of
from pipelines.settings import RunConfig, SplitFractions
from pipelines.sources import list_sources

from .clips import write_clip

MakeConfig = Callable[..., RunConfig]
FILE = {"by": "file"}


def of_kind(kind: str, url: str | Path, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "url": str(url), "licence": "CC0-1.0", "group": FILE, **more}


def rows_of(config: RunConfig) -> list[CatalogRow]:
    """All rows after a scan."""
    catalog = Catalog(open_storage(config.output))
    catalog.scan(config)
    return stored(config)


def stored(config: RunConfig) -> list[CatalogRow]:
    return [row for rows in Catalog(open_storage(config.output)).read_batches() for row in rows]


def batch_bytes(config: RunConfig) -> dict[str, bytes]:
    storage = open_storage(config.output)
    return {e.name: storage.read(e.name) for e in storage.list("catalog/") if e.name.endswith(".parquet")}


def fates(rows: list[CatalogRow]) -> Counter[str]:
    return Counter(f"{row.fate}:{row.reason}" if row.reason else row.fate for row in rows)


@pytest.fixture
def tiny(photos: dict[str, Pixels]) -> Callable[[int], bytes]:
    """PNG number n: a crop that no other number has."""

    def make(number: int, size: int = 24) -> bytes:
        y, x = 7 * (number // 15), 11 * (number % 15)
        return encode_png(photos["astronaut"][y : y + size, x : x + size])

    return make


@pytest.fixture
def folder(tmp_path: Path, tiny: Callable[..., bytes]) -> Path:
    """Ten images in three folders, a text, an empty file."""
    root = tmp_path / "set"
    for number in range(10):
        path = root / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny(number))
    (root / "a" / "text.png").write_text("text")
    (root / "b" / "empty.png").touch()
    return root


def test_a_row_says_what_its_header_says(make_config: MakeConfig, tmp_path: Path, photos: dict[str, Pixels]) -> None:
    (tmp_path / "set").mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.fromarray(photos["coffee"][:100, :160])
    image.save(tmp_path / "set" / "t.jpg", exif=turned.tobytes())
    config = make_config(sources=[of_kind("files", tmp_path / "set", attribution="A. Photographer")])
    (row,) = rows_of(config)
    data = (tmp_path / "set" / "t.jpg").read_bytes()
    assert (row.width, row.height, row.format, row.kind) == (100, 160, "JPEG", "photo"), "size after orientation"
    assert (row.uri, row.locator, row.size_bytes) == (f"{tmp_path}/set/t.jpg", "", len(data))
    assert row.source_id == row.sha256[:24] and len(row.sha256) == 64
    assert (row.licence, row.attribution, row.group, row.fate) == ("CC0-1.0", "A. Photographer", "t", USABLE)
    assert row.split == split_of("t", config.split)


def test_everything_listed_is_one_row(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(sources=[of_kind("files", folder)])
    rows = rows_of(config)
    assert fates(rows) == {"usable": 10, "failed:not_an_image": 1, "failed:empty_file": 1}
    assert len({row.uri for row in rows}) == 12
    counts = Catalog(open_storage(config.output)).counts()
    assert counts == {"seen": 12, "usable": 10, "failed:empty_file": 1, "failed:not_an_image": 1}


@pytest.mark.parametrize("batch_rows", [1, 3, 12, 1000])
def test_batches_change_no_row(make_config: MakeConfig, folder: Path, tmp_path: Path, batch_rows: int) -> None:
    shutil.copyfile(folder / "a" / "0.png", folder / "c" / "same.png")
    whole, parted = (
        make_config(tmp_path / name, sources=[of_kind("files", folder)], run={"catalog_batch_rows": n})
        for name, n in (("whole", 100), ("parted", batch_rows))
    )
    assert rows_of(parted) == rows_of(whole)
    assert len(batch_bytes(parted)) == -(-13 // batch_rows)


def test_a_second_scan_adds_nothing(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(sources=[of_kind("files", folder)], run={"catalog_batch_rows": 4})
    rows, before = rows_of(config), batch_bytes(config)
    assert Catalog(open_storage(config.output)).scan(config) == 0
    assert batch_bytes(config) == before and stored(config) == rows


def test_committed_batches_never_change(make_config: MakeConfig, folder: Path, tiny: Callable[..., bytes]) -> None:
    config = make_config(sources=[of_kind("files", folder)], run={"catalog_batch_rows": 5})
    first, before = rows_of(config), batch_bytes(config)
    (folder / "a" / "00.png").write_bytes(tiny(50))
    (folder / "a" / "0.png").write_bytes(tiny(51))
    (folder / "b" / "1.png").unlink()
    second = rows_of(config)
    assert second[: len(first)] == first
    assert {name: data for name, data in batch_bytes(config).items() if name in before} == before
    assert [(row.uri.removeprefix(f"{folder}/"), row.fate) for row in second[len(first) :]] == [
        ("a/0.png", USABLE),
        ("a/00.png", USABLE),
    ]


def test_equal_bytes_count_once(
    make_config: MakeConfig, folder: Path, tmp_path: Path, tiny: Callable[..., bytes]
) -> None:
    """In one batch, in another batch, in a tar, and in another run."""
    (folder / "a" / "again.png").write_bytes(tiny(0))
    (folder / "c" / "zz.png").write_bytes(tiny(0))
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number in (0, 77):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(tiny(number))
            tar.addfile(info, io.BytesIO(tiny(number)))
    sources = [of_kind("files", folder), of_kind("tar", tmp_path / "s.tar")]
    config = make_config(sources=sources, run={"catalog_batch_rows": 4})
    rows = rows_of(config)
    (folder / "b" / "third.png").write_bytes(tiny(3))
    rows = rows_of(config)
    ids = Counter(row.source_id for row in rows if row.fate == USABLE)
    assert set(ids.values()) == {1} and len(ids) == 11
    duplicates = [row.uri.rpartition("/")[2] for row in rows if row.reason == "duplicate"]
    assert duplicates == ["again.png", "zz.png", "s.tar#0.png", "third.png"]
    assert all(row.source_id and row.source_id in row.detail for row in rows if row.reason == "duplicate")


def test_a_tombstone_hides_a_source_for_good(make_config: MakeConfig, folder: Path, tiny: Callable[..., bytes]) -> None:
    config = make_config(sources=[of_kind("files", folder)])
    victim, other = [row for row in rows_of(config) if row.fate == USABLE][:2]
    catalog = Catalog(open_storage(config.output))
    before = batch_bytes(config)
    catalog.remove([victim.source_id], "taken down")
    catalog.remove([victim.source_id], "again")
    tombstone = stored(config)[-1]
    assert tombstone == victim._replace(fate=REMOVED, reason="removed", detail="taken down")
    assert len(stored(config)) == 13 and catalog.removed() == {victim.source_id}
    assert before.items() <= batch_bytes(config).items()
    counts = catalog.counts()
    assert (counts["seen"], counts["usable"], counts["removed:removed"]) == (12, 9, 1)
    (folder / "c" / "back.png").write_bytes(Path(victim.uri).read_bytes())
    assert fates(rows_of(config))["rejected:duplicate"] == 1
    assert catalog.counts()["usable"] == 9
    for unknown in ([victim.source_id[::-1]], [other.source_id, "x"]):
        with pytest.raises(ValueError, match="no usable source"):
            catalog.remove(unknown, "?")
    assert catalog.removed() == {victim.source_id}


def test_a_gap_between_batches_is_noticed(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(sources=[of_kind("files", folder)], run={"catalog_batch_rows": 4})
    rows_of(config)
    open_storage(config.output).delete("catalog/batch-000001.parquet")
    with pytest.raises(InfraError, match="gaps"):
        stored(config)


# Several scanners


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_the_slower_of_two_scanners_stops(
    make_config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, request: pytest.FixtureRequest
) -> None:
    output = f"{request.getfixturevalue('s3_url')}/out" if where == "s3" else None
    config = make_config(output, sources=[of_kind("files", folder)], run={"catalog_batch_rows": 5})
    faster = iter([True])

    def overtaken(spec: Any) -> Iterator[Any]:
        found = list(list_sources(spec))
        if next(faster, False):
            Catalog(open_storage(config.output)).scan(config)
        yield from found

    monkeypatch.setattr("pipelines.catalog.list_sources", overtaken)
    with pytest.raises(InfraError, match="another run is adding"):
        Catalog(open_storage(config.output)).scan(config)
    rows = stored(config)
    assert len(rows) == len({row.uri for row in rows}) == 12
    assert Catalog(open_storage(config.output)).scan(config) == 0


def test_scanners_at_once_lose_nothing_and_double_nothing(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(sources=[of_kind("files", folder)], run={"catalog_batch_rows": 2})
    start = threading.Barrier(4)
    outcomes: list[str] = []

    def scan() -> None:
        start.wait()
        try:
            Catalog(open_storage(config.output)).scan(config)
            outcomes.append("done")
        except InfraError:
            outcomes.append("lost")

    threads = [threading.Thread(target=scan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4
    rows = rows_of(config)
    assert sorted(row.uri for row in rows) == sorted({row.uri for row in rows}) and len(rows) == 12
    assert fates(rows)["usable"] == 10


def test_a_scan_that_breaks_off_keeps_what_it_committed(
    make_config: MakeConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(sources=[of_kind("files", folder)], run={"catalog_batch_rows": 4})

    def breaking(uri: str, locator: str, **more: Any) -> bytes:
        if uri.endswith("8.png"):
            raise InfraError("storage is away")
        return read_source(uri, locator, **more)

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.catalog.read_source", breaking)
        with pytest.raises(InfraError, match="away"):
            Catalog(open_storage(config.output)).scan(config)
    assert len(stored(config)) == 8
    whole = make_config(Path(config.output).parent / "whole", sources=[of_kind("files", folder)])
    assert rows_of(config) == rows_of(whole)


# Pinned settings


def test_what_placed_old_rows_is_pinned(make_config: MakeConfig, folder: Path) -> None:
    base: dict[str, Any] = {"sources": [of_kind("files", folder)]}
    rows = rows_of(make_config(**base))
    limits = make_config().limits.model_dump()
    for change, name in (
        ({"split": {"val": 0.3, "test": 0.1}}, "split"),
        ({"limits": {**limits, "min_side": 20}}, "limits"),
        ({"sources": [of_kind("files", folder, licence="MIT")]}, "sources files"),
        ({"sources": [of_kind("files", folder, group={"by": "folder"})]}, "sources files"),
    ):
        with pytest.raises(ValueError, match=f"^{name}.*choose another output"):
            rows_of(make_config(**base | change))
    assert stored(make_config(**base)) == rows


def test_sets_of_sources_come_and_go(make_config: MakeConfig, folder: Path, photo_folder: Path) -> None:
    package = {
        "kind": "package",
        "package": "skimage",
        "paths": ["data/coffee.png"],
        "licence": "CC0-1.0",
        "group": FILE,
    }
    more = {**package, "paths": ["data/coffee.png", "data/rocket.jpg"]}
    other = {**package, "paths": ["data/chelsea.png"], "licence": "CC-BY-4.0"}
    sizes = []
    for sources in ([of_kind("files", folder)], [package], [more, other], [of_kind("files", folder), more]):
        sizes.append(len(rows_of(make_config(sources=sources))))
    assert sizes == [12, 13, 15, 15]
    with pytest.raises(ValueError, match="skimage/data/coffee"):
        rows_of(make_config(sources=[{**more, "licence": "MIT"}]))


# Limits


def test_limits_hold_for_what_only_reading_tells(
    make_config: MakeConfig, tmp_path: Path, tiny: Callable[..., bytes]
) -> None:
    (tmp_path / "big.png").touch()
    os.truncate(tmp_path / "big.png", 5 * 2**30)
    (tmp_path / "fine.png").write_bytes(tiny(1))
    (tmp_path / "small.png").write_bytes(tiny(2, 12))
    (tmp_path / "edge.png").write_bytes(tiny(1) + bytes(5000 - len(tiny(1))))
    (tmp_path / "over.png").write_bytes(tiny(1) + bytes(5001 - len(tiny(1))))
    uris = [f"{tmp_path}/{name}.png" for name in ("big", "fine", "small", "edge", "over")]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "t.parquet")
    limits = {"max_bytes": 5000, "max_pixels": 10**6, "max_side": 1000, "min_side": 16}
    config = make_config(sources=[of_kind("table", tmp_path / "t.parquet", uri_column="uri")], limits=limits)
    assert [row.reason for row in rows_of(config)] == ["too_many_bytes", "", "too_small", "", "too_many_bytes"]


def test_objects_that_a_table_names_are_read_up_to_the_limit(
    make_config: MakeConfig, s3_url: str, tmp_path: Path, tiny: Callable[..., bytes]
) -> None:
    storage = open_storage(s3_url)
    storage.write("big.png", tiny(1) + bytes(6000))
    storage.write("fine.png", tiny(2))
    storage.write("empty.png", b"")
    uris = [f"{s3_url}/{name}.png" for name in ("big", "fine", "empty", "gone", "a//b")]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "t.parquet")
    limits = {"max_bytes": 5000, "max_pixels": 10**6, "max_side": 1000, "min_side": 16}
    config = make_config(sources=[of_kind("table", tmp_path / "t.parquet", uri_column="uri")], limits=limits)
    rows = rows_of(config)
    assert [row.reason for row in rows] == ["too_many_bytes", "", "empty_file", "not_found", "unusable_uri"]
    assert rows[0].sha256 == "", "the hash of a part is no name of the whole"


def test_clips(make_config: MakeConfig, tmp_path: Path, photos: dict[str, Pixels]) -> None:
    root = tmp_path / "clips"
    root.mkdir()
    write_clip(root / "a.mp4", photos["coffee"], 9)
    write_clip(root / "b.avi", photos["rocket"], 4)
    write_clip(root / "c.mp4", photos["rocket"], 6, size=(48, 32))
    (root / "d.mp4").write_text("This is no clip")
    shutil.copyfile(root / "a.mp4", root / "e.mp4")
    limits = {"max_bytes": 10**7, "max_pixels": 10**6, "max_side": 1000, "min_side": 40}
    config = make_config(sources=[of_kind("video", root, window_frames=5)], limits=limits)
    a, b, c, d, e = rows_of(config)
    assert (a.kind, a.format, a.frames, a.window_frames, a.width, a.height, a.fate) == (
        "video",
        "video",
        9,
        5,
        160,
        128,
        USABLE,
    )
    assert [row.reason for row in (b, c, d, e)] == ["too_few_frames", "too_small", "not_a_video", "duplicate"]
    assert a.sha256 == e.sha256 and a.size_bytes == (root / "a.mp4").stat().st_size


# Groups and splits


def test_a_group_never_straddles_splits(make_config: MakeConfig, tmp_path: Path, tiny: Callable[..., bytes]) -> None:
    split = {"val": 0.3, "test": 0.3}
    for number in range(60):
        path = tmp_path / "set" / f"g{number % 20}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny(number))
    by_folder = make_config(sources=[of_kind("files", tmp_path / "set", group={"by": "folder"})], split=split)
    rows = rows_of(by_folder)
    for number in range(60, 80):
        (tmp_path / "set" / f"g{number % 20}" / f"{number}.png").write_bytes(tiny(number))
    rows = rows_of(by_folder)
    splits = {group: {row.split for row in rows if row.group == group} for group in {row.group for row in rows}}
    assert len(rows) == 80 and len(splits) == 20 and all(len(names) == 1 for names in splits.values())
    assert {name for names in splits.values() for name in names} == {"train", "val", "test"}
    for part in plan_parts(by_folder, Catalog(open_storage(by_folder.output))):
        for record in part.records:
            assert splits[record.source.group] == {part.split}
            assert record.partner is None or splits[record.partner.group] == {part.split}


@given(st.text(), st.floats(0, 0.49), st.floats(0, 0.49))
def test_growing_a_held_out_share_moves_groups_only_into_it(group: str, val: float, more: float) -> None:
    before = split_of(group, SplitFractions(val=val, test=0))
    after = split_of(group, SplitFractions(val=val + more, test=0))
    assert (before, after) != ("val", "train")


# Counts


def _mixed(make_config: MakeConfig, tmp_path: Path, photos: dict[str, Pixels], **changes: Any) -> RunConfig:
    root = tmp_path / "mixed"
    (root / "clips").mkdir(parents=True)
    for name, size in (("a", 200), ("b", 128), ("c", 127), ("d", 64)):
        (root / f"{name}.png").write_bytes(encode_png(photos["astronaut"][:size, :200]))
    write_clip(root / "clips" / "e.mp4", photos["coffee"], 6)
    write_clip(root / "clips" / "f.mp4", photos["coffee"], 6, size=(160, 96))
    sources = [of_kind("files", f"{root}/*.png"), of_kind("video", root / "clips", window_frames=3)]
    return make_config(sources=sources, **changes)


def test_sources_without_a_record_are_counted(
    make_config: MakeConfig, tmp_path: Path, photos: dict[str, Pixels]
) -> None:
    config = _mixed(make_config, tmp_path, photos, recipes=[make_config().recipes[0].model_dump()])
    catalog = Catalog(open_storage(config.output))
    catalog.scan(config)
    counts = count_sources(config, catalog)
    refused = {"rejected:no_recipe": 1, "rejected:too_small_for_base": 3}
    assert counts == {"seen": 6, "usable": 2, **refused}
    planned = {record.source.source_id for part in plan_parts(config, catalog) for record in part.records}
    assert len(planned) == counts["usable"]
    assert catalog.counts() == {"seen": 6, "usable": 6}, "the catalog itself knows nothing of bases and recipes"
    catalog.remove([next(row.source_id for row in stored(config) if row.height == 64)], "gone")
    assert count_sources(config, catalog)["rejected:too_small_for_base"] == 2
    kept = config.model_copy(update={"base": config.base.model_copy(update={"small": "keep"})})
    assert count_sources(kept, catalog) == {"seen": 6, "usable": 3, "rejected:no_recipe": 2, "removed:removed": 1}


def test_plan_and_run_report_them(make_config: MakeConfig, tmp_path: Path, photos: dict[str, Pixels]) -> None:
    config = _mixed(make_config, tmp_path, photos, recipes=[make_config().recipes[0].model_dump()])
    wanted = {"seen": 6, "usable": 2, "rejected:no_recipe": 1, "rejected:too_small_for_base": 3}
    assert estimate(config, 0)["sources"] == wanted
    assert not Path(config.output).exists()
    report = run(config, _local)
    assert report.sources == wanted and not report.flawed
    assert open_snapshot(config.output).manifest.sources == wanted
    bigger = make_config(
        tmp_path / "none",
        sources=config.model_dump()["sources"],
        base={"policy": "keep", "size_px": 999, "small": "refuse"},
    )
    with pytest.raises(ValueError, match=r"nothing to make.*6 rejected:too_small_for_base"):
        run(bigger, _local)


def _local(config: RunConfig, output: str) -> Backend:
    return LocalBackend(stages_of(config), (render_settings(config), output))


def test_a_count_of_every_fate_adds_up(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(sources=[of_kind("files", folder)])
    catalog = Catalog(open_storage(config.output))
    rows_of(config)
    catalog.remove([next(row.source_id for row in stored(config) if row.fate == USABLE)], "gone")
    counts = count_sources(config, catalog)
    assert counts.pop("seen") == sum(counts.values()) == 12


# Reading


def test_rows_come_back_as_they_were_written_in_bounded_lists(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ["", "a", "ünï\n", "x" * 300]
    numbers = [field.type == pa.int64() for field in CATALOG_SCHEMA]
    rows = [
        CatalogRow._make(n + i if number else text[(n + i) % 4] for i, number in enumerate(numbers)) for n in range(23)
    ]
    monkeypatch.setattr(catalog_module, "_ROWS_AT_A_TIME", 4)
    catalog = Catalog(open_storage(make_config().output))
    catalog.append(rows[:10])
    catalog.append(rows[10:])
    lists = list(catalog.read_batches())
    assert [row for part in lists for row in part] == rows
    assert [len(part) for part in lists] == [4, 4, 2, 4, 4, 4, 1]
    assert all(type(value) in (int, str) for row in lists[0] for value in row)


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 5))
def test_a_seen_set_is_a_set(values: list[int], merge_at: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog_module, "_MERGE_AT", merge_at)
        seen, plain = catalog_module._Seen.of(["3", "7", "3"]), {3, 7}
        for value in values:
            assert seen.add(str(value)) == (value not in plain)
            plain.add(value)


# Relative paths


@pytest.mark.usefixtures("ray_session")
def test_relative_paths_mean_the_same_to_workers(
    make_config: MakeConfig,
    tmp_path: Path,
    photo_folder: Path,
    photos: dict[str, Pixels],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The session's Ray was started in another folder than the one this run is started in."""
    (tmp_path / "here" / "clips").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(photo_folder, "photos")
    images = [path.read_bytes() for path in sorted(Path("photos", "b").iterdir())]
    shutil.rmtree(Path("photos", "b"))
    pq.write_table(pa.table({"image": images[:3]}), "t.parquet")
    with tarfile.open("s.tar", "w") as tar:
        for number, image in enumerate(images[3:]):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    write_clip(Path("clips", "c.mp4"), photos["coffee"], 5)
    clip = {
        "name": "clip",
        "version": 1,
        "category": "blur",
        "variants": 1,
        "chain": [{"type": "temporal_blur", "severity": 0.5}],
    }
    config = make_config(
        "out",
        sources=[
            of_kind("files", "photos/**/*.png"),
            of_kind("tar", "./s.tar"),
            of_kind("table", "t.parquet", bytes_column="image"),
            of_kind("video", "clips", window_frames=3),
        ],
        recipes=[*make_config().model_dump()["recipes"], clip],
    )
    report = run(config, lambda config, output: RayBackend(stages_of(config), (render_settings(config), output)))
    assert report.fates == {"kept": 37, "rejected": 0, "failed": 0}
    uris = {uri.partition("#")[0] for uri in open_snapshot("out").rows(["uri"])["uri"].to_pylist()}
    assert {uri for uri in uris if "photos" not in uri} == {"./s.tar", "t.parquet", "clips/c.mp4"}
    assert {uri.partition("/")[0] for uri in uris if "photos" in uri} == {"photos"}
