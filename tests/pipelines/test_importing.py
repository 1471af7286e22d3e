"""Importing LQ/HQ folders: every pair has a fate, pixels are kept, nothing is made twice."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from pairforge.image import Pixels, encode_png
from pairforge.records import InfraError
from pairforge.snapshot import Snapshot, open_snapshot, read_latest, verify
from pairforge.storage import open_storage
from pipelines import importing
from pipelines.importing import ImportSettings, import_pairs, import_settings, list_pairs
from pipelines.verification import replay_snapshot
from tests.conftest import config_of


def settings_of(folder: Path | str, **changes: Any) -> ImportSettings:
    return ImportSettings.model_validate(
        {
            "name": "old_set",
            "category": "derain",
            "lq": f"{folder}/lq",
            "hq": f"{folder}/hq",
            "licence": "CC-BY-4.0",
            "attribution": "somebody",
            "splits": {"val": 0.0, "test": 0.0},
            "records_per_shard": 3,
            **changes,
        }
    )


def photo(index: int, height: int = 24, width: int = 32) -> Pixels:
    """Different for every index."""
    return np.random.Generator(np.random.Philox(key=index)).integers(0, 256, (height, width, 3), np.uint8)


def put(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
    path.write_bytes(bytes(data))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven good pairs, one of them in a folder below, one with other extensions than its partner."""
    for index in range(5):
        put(tmp_path / f"in/lq/{index:03d}.png", photo(index))
        put(tmp_path / f"in/hq/{index:03d}.png", photo(100 + index))
    put(tmp_path / "in/lq/night/a.b.png", photo(5))
    put(tmp_path / "in/hq/night/a.b.png", photo(105))
    put(tmp_path / "in/lq/other.bmp", photo(6, 17, 9))
    put(tmp_path / "in/hq/other.PNG", photo(106, 17, 9))
    return tmp_path / "in"


def rows_by_name(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    return {row["group"]: row for row in snapshot.rows().to_pylist()}


def refusal(folder: Path, output: Path, name: str) -> tuple[str, str, str]:
    import_pairs(settings_of(folder), str(output))
    row = rows_by_name(open_snapshot(str(output)))[name]
    return row["fate"], row["reason"], row["detail"]


def test_good_pairs_are_kept_pixel_by_pixel(folder: Path, tmp_path: Path) -> None:
    manifest, made = import_pairs(settings_of(folder), str(tmp_path / "out"))
    assert made == 3 and manifest.sources == {"seen": 7} and manifest.licences == ("CC-BY-4.0",)
    snapshot = open_snapshot(str(tmp_path / "out"))
    assert verify(snapshot).problems == ()
    seen = {sample["json"]["source"]["group"]: sample for sample in snapshot.dataset()}
    assert set(seen) == {*(f"{index:03d}" for index in range(5)), "night/a.b", "other"}
    for index, name in enumerate(sorted(seen)):
        shape = (17, 9) if name == "other" else (24, 32)
        np.testing.assert_array_equal(seen[name]["lq"], photo(index, *shape))
        np.testing.assert_array_equal(seen[name]["hq"], photo(100 + index, *shape))
        assert seen[name]["json"]["source"]["attribution"] == "somebody"
        assert seen[name]["json"]["steps"] == []


def test_every_sample_says_where_it_came_from(folder: Path, tmp_path: Path) -> None:
    import_pairs(settings_of(folder), str(tmp_path / "out"))
    row = rows_by_name(open_snapshot(str(tmp_path / "out")))["night/a.b"]
    assert row["uri"] == f"{folder}/lq/night/a.b.png"
    assert (row["licence"], row["category"], row["line"], row["recipe"]) == (
        "CC-BY-4.0",
        "derain",
        "imported",
        "old_set",
    )
    assert (row["width"], row["height"], row["fate"]) == (32, 24, "kept")


@pytest.mark.parametrize(("side", "other"), [("hq", "HQ"), ("lq", "LQ")])
def test_a_missing_partner_is_a_row(folder: Path, tmp_path: Path, side: str, other: str) -> None:
    (folder / side / "002.png").unlink()
    assert refusal(folder, tmp_path / "out", "002") == ("rejected", "no_partner", f"there is no {other} file for 002")
    assert len(rows_by_name(open_snapshot(str(tmp_path / "out")))) == 7


def test_sides_of_different_size_are_rejected(folder: Path, tmp_path: Path) -> None:
    put(folder / "lq/003.png", photo(3, 12, 16))
    fate, reason, detail = refusal(folder, tmp_path / "out", "003")
    assert (fate, reason) == ("rejected", "wrong_size")
    assert "LQ is 16x12, HQ is 32x24" in detail


def _become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _become_a_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:700]), "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "empty_file"),
    "text": (lambda path: path.write_text("404 not found"), "not_an_image"),
    "a folder": (_become_a_folder, "not_a_file"),
    "a broken link": (_become_a_broken_link, "not_found"),
}


@pytest.mark.parametrize("side", ["lq", "hq"])
@pytest.mark.parametrize("what", BAD_FILES)
def test_an_unreadable_side_is_a_row_and_the_rest_goes_on(folder: Path, tmp_path: Path, what: str, side: str) -> None:
    harm, expected = BAD_FILES[what]
    harm(folder / side / "001.png")
    _, reason, detail = refusal(folder, tmp_path / "out", "001")
    assert reason == expected and detail
    snapshot = open_snapshot(str(tmp_path / "out"))
    assert [row["group"] for row in snapshot.rows().to_pylist() if row["fate"] != "kept"] == ["001"]
    assert len(list(snapshot.dataset())) == 6
    assert verify(snapshot).problems == ()


def test_the_message_says_which_side_is_bad(folder: Path, tmp_path: Path) -> None:
    (folder / "hq/001.png").write_bytes((folder / "hq/001.png").read_bytes()[:700])
    assert refusal(folder, tmp_path / "out", "001")[2].startswith("HQ: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_row(folder: Path, tmp_path: Path) -> None:
    (folder / "lq/001.png").chmod(0)
    assert refusal(folder, tmp_path / "out", "001")[1] == "not_readable"


def test_the_second_of_two_equal_lq_files_is_a_duplicate(folder: Path, tmp_path: Path) -> None:
    (folder / "lq/004.png").write_bytes((folder / "lq/000.png").read_bytes())
    fate, reason, detail = refusal(folder, tmp_path / "out", "004")
    assert (fate, reason) == ("rejected", "duplicate") and "004.png" in detail
    rows = rows_by_name(open_snapshot(str(tmp_path / "out")))
    assert rows["000"]["fate"] == "kept"
    assert rows["000"]["key"].removesuffix("v0") == rows["004"]["key"].removesuffix("v1")


@pytest.mark.parametrize("side", ["lq", "hq"])
def test_two_extensions_of_one_name_are_a_question_to_the_user(folder: Path, tmp_path: Path, side: str) -> None:
    put(folder / side / "001.jpg", photo(1))
    with pytest.raises(ValueError, match=r"001\.jpg and .*001\.png have one name: which"):
        import_pairs(settings_of(folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_no_image_is_left_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("lq/readme.txt", "hq/meta.json", "lq/.hidden.png", "lq/night/Thumbs.db"):
        (folder / name).write_bytes(b"x")
    manifest, _ = import_pairs(settings_of(folder), str(tmp_path / "out"))
    assert manifest.sources == {"seen": 7} and manifest.kept == 7


@pytest.mark.parametrize(("lq", "hq", "says"), [("nope", "hq", "does not exist"), ("lq", "empty", "holds no image")])
def test_a_missing_or_empty_folder_is_named(folder: Path, tmp_path: Path, lq: str, hq: str, says: str) -> None:
    (folder / "empty").mkdir()
    (folder / "empty/readme.txt").write_text("x")
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        import_pairs(settings_of(folder, lq=f"{folder}/{lq}", hq=f"{folder}/{hq}"), str(tmp_path / "out"))


def test_importing_again_makes_nothing_and_publishes_nothing(folder: Path, tmp_path: Path) -> None:
    first, made = import_pairs(settings_of(folder), str(tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again, more = import_pairs(settings_of(folder), str(tmp_path / "out"))
    assert (made, more) == (3, 0) and again == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_only_the_shard_of_a_changed_pair_is_made_again(folder: Path, tmp_path: Path) -> None:
    first, _ = import_pairs(settings_of(folder), str(tmp_path / "out"))
    put(folder / "hq/001.png", photo(999))
    second, made = import_pairs(settings_of(folder), str(tmp_path / "out"))
    assert made == 1 and second.id != first.id
    assert len({shard.fingerprint for shard in first.shards} & {shard.fingerprint for shard in second.shards}) == 2
    old = open_snapshot(f"{tmp_path}/out/snapshots/{first.id}")
    assert verify(old).problems == ()


def test_pairs_are_split_by_their_name(folder: Path, tmp_path: Path) -> None:
    for index in range(20, 60):
        put(folder / f"lq/{index:03d}.png", photo(index))
        put(folder / f"hq/{index:03d}.png", photo(100 + index))
    splits = {"val": 0.4, "test": 0.0}
    import_pairs(settings_of(folder, splits=splits), str(tmp_path / "one"))
    before = {name: row["split"] for name, row in rows_by_name(open_snapshot(str(tmp_path / "one"))).items()}
    assert 5 < sum(split == "val" for split in before.values()) < 35
    for name in ("000", "night/a.b"):
        (folder / f"lq/{name}.png").unlink()
        (folder / f"hq/{name}.png").unlink()
    import_pairs(settings_of(folder, splits=splits), str(tmp_path / "two"))
    after = {name: row["split"] for name, row in rows_by_name(open_snapshot(str(tmp_path / "two"))).items()}
    assert after == {name: before[name] for name in after}
    assert verify(open_snapshot(str(tmp_path / "two"))).problems == ()


def test_s3_holds_the_same_bytes(folder: Path, tmp_path: Path, s3_url: str) -> None:
    import_pairs(settings_of(folder), str(tmp_path / "out"))
    manifest, _ = import_pairs(settings_of(folder), f"{s3_url}/set")
    here, there = open_storage(str(tmp_path / "out")), open_storage(f"{s3_url}/set")
    for shard in manifest.shards:
        assert here.read(shard.tar_name) == there.read(shard.tar_name)
    snapshot = open_snapshot(f"{s3_url}/set")
    assert verify(snapshot).problems == () and len(list(snapshot.dataset())) == 7
    assert import_pairs(settings_of(folder), f"{s3_url}/set") == (manifest, 0)


def test_pairs_are_read_from_s3(folder: Path, tmp_path: Path, s3_url: str) -> None:
    storage = open_storage(s3_url)
    for path in folder.rglob("*.*"):
        if path.is_file():
            storage.write(str(path.relative_to(folder)), path.read_bytes())
    manifest, _ = import_pairs(settings_of(s3_url), str(tmp_path / "out"))
    assert manifest.kept == 7
    assert rows_by_name(open_snapshot(str(tmp_path / "out")))["night/a.b"]["uri"] == f"{s3_url}/lq/night/a.b.png"


def test_the_output_of_a_run_is_refused(folder: Path, tmp_path: Path, photo_folder: Path) -> None:
    from pipelines.catalog import Catalog

    output = str(tmp_path / "out")
    Catalog(open_storage(output)).scan(config_of(output, photo_folder))
    with pytest.raises(ValueError, match=f"{output} is the output of a run; choose another folder"):
        import_pairs(settings_of(folder), output)


def test_the_output_of_another_set_is_refused(folder: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    import_pairs(settings_of(folder), output)
    with pytest.raises(ValueError, match="holds the set 'old_set'; choose another folder for 'new_set'"):
        import_pairs(settings_of(folder, name="new_set"), output)
    pointer = read_latest(open_storage(output))
    assert pointer is not None and pointer.fence == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "Old Set"), ("name", ""), ("category", "a/b"), ("licence", ""), ("records_per_shard", 0)],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        settings_of(tmp_path, **{field: value})


def test_imported_samples_are_counted_not_replayed(folder: Path, tmp_path: Path) -> None:
    import_pairs(settings_of(folder), str(tmp_path / "out"))
    report = replay_snapshot(open_snapshot(str(tmp_path / "out")), None, 0, 1)
    assert (report.replayed, report.without_steps, report.problems) == (0, 7, ())


def test_progress_is_told_pair_by_pair(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        totals: list[int] = []
        steps: list[None] = []
        import_pairs(settings_of(folder), str(tmp_path / "out"), totals.append, partial(steps.append, None))
        assert (totals, len(steps)) == ([7], 7)


def test_a_file_that_changes_meanwhile_stops_the_import(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shard would be kept under the fingerprint of the old bytes."""
    identify = importing._identify

    def change_then(*arguments: Any) -> Any:
        records = identify(*arguments)
        put(folder / "hq/001.png", photo(777))
        return records

    monkeypatch.setattr(importing, "_identify", change_then)
    with pytest.raises(InfraError, match="the HQ file of 001 changed while it was imported"):
        import_pairs(settings_of(folder), str(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_names_that_are_not_utf8_are_paired(folder: Path, tmp_path: Path) -> None:
    for side in ("lq", "hq"):
        (folder / side / "000.png").rename(os.fsdecode(os.fsencode(folder / side) + b"/caf\xe9.png"))
    import_pairs(settings_of(folder), str(tmp_path / "out"))
    snapshot = open_snapshot(str(tmp_path / "out"))
    uris = {row["uri"] for row in snapshot.rows().to_pylist() if row["fate"] == "kept"}
    assert f"file://{folder}/lq/caf%E9.png" in uris and len(uris) == 7


def test_relative_folders_and_trailing_slashes_give_the_same_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    expected = [pair.name for pair in list_pairs(f"{folder}/lq", f"{folder}/hq")]
    for spelling in ("{}", "{}/", "./{}", "../in/{}"):
        assert [pair.name for pair in list_pairs(spelling.format("lq"), spelling.format("hq"))] == expected


def test_the_snapshot_records_how_it_was_imported(folder: Path, tmp_path: Path) -> None:
    manifest, _ = import_pairs(settings_of(folder), str(tmp_path / "out"))
    stored = json.loads((tmp_path / "out/snapshots" / manifest.id / "import.json").read_bytes())
    assert stored["licence"] == "CC-BY-4.0" and stored["records_per_shard"] == 3
    assert str(tmp_path) not in json.dumps(stored)


def test_grey_and_alpha_files_become_rgb(folder: Path, tmp_path: Path) -> None:
    grey = photo(1)[:, :, 0]
    (folder / "lq/001.png").write_bytes(encode_png(grey))
    (folder / "hq/001.png").write_bytes(encode_png(np.dstack([grey] * 3)))
    import_pairs(settings_of(folder), str(tmp_path / "out"))
    sample = next(
        sample
        for sample in open_snapshot(str(tmp_path / "out")).dataset()
        if sample["json"]["source"]["group"] == "001"
    )
    np.testing.assert_array_equal(sample["lq"], np.dstack([grey] * 3))
    np.testing.assert_array_equal(sample["lq"], sample["hq"])


def test_wrong_options_are_named_in_plain_words(folder: Path) -> None:
    good = settings_of(folder).model_dump()
    assert import_settings(good) == settings_of(folder)
    wrong = {"name": "Old Set", "licence": "", "records_per_shard": 0, "splits": {"val": 1.5, "test": 0.0}}
    with pytest.raises(ValueError) as caught:
        import_settings({**good, **wrong})
    assert str(caught.value).split("; --") == [
        "--name: 'Old Set' is not allowed; allowed: 1 to 40 characters of a-z, 0-9 and _",
        "licence: '' is not allowed; allowed: text that is not empty",
        "val: 1.5 is not allowed; allowed: a number of at least 0 and below 1",
        "records-per-shard: 0 is not allowed; allowed: a whole number from 1 to 100000",
    ]
