"""The ground-truth line without weights: phases, funnel, same bytes, growth, new rules, retries."""

import hashlib
import io
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pairforge.config import canonical_json
from pairforge.image import Pixels, decode_png
from pairforge.records import InfraError, parse_sample
from pairforge.shards import read_shard
from pairforge.snapshot import Snapshot, open_snapshot, verify
from pairforge.storage import open_storage
from pipelines.catalog import Catalog
from pipelines.ground_truth.lease import LEASE, Lease, leased
from pipelines.ground_truth.plan import plan_truth
from pipelines.ground_truth.run import STANDINGS, TruthReport, retune_sources, run_truth, screen_sources
from pipelines.ground_truth.select import level_counts, read_slots
from pipelines.lines import load_run_config, retry_failed
from pipelines.preview import contact_sheet, pick_refused, pick_samples
from pipelines.verification import replay_snapshot
from tests.pipelines.truth_photos import SessionPlace, here, truth_config, write_photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, Pixels]) -> Path:
    return write_photos(tmp_path_factory.mktemp("truth"), photos, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> tuple[Path, TruthReport]:
    """One run of the small config in this process."""
    output = tmp_path_factory.mktemp("made") / "out"
    return output, run_truth(truth_config(output, folder), here())


def hashes(output: Path | str) -> dict[str, str]:
    """SHA-256 of every committed shard file."""
    storage = open_storage(str(output))
    names = [entry.name for entry in storage.list("shards/") if not entry.name.endswith(".marker.json")]
    return {name: hashlib.sha256(storage.read(name)).hexdigest() for name in names}


def phase(funnel: Any, name: str) -> Any:
    return next(each for each in funnel if each["phase"] == name)


def standings(output: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(io.BytesIO(open_storage(str(output)).read(STANDINGS)))
    return {Path(row["uri"]).stem + "/" + Path(row["uri"]).parent.name: row for row in table.to_pylist()}


def test_every_source_has_a_standing_and_every_selected_one_a_fate(made: tuple[Path, TruthReport]) -> None:
    output, report = made
    first, last = report.funnel[0], report.funnel[-1]
    assert first["in"] == 32 and phase(report.funnel, "category")["reasons"] == {"no_category": 8}
    for before, after in zip(report.funnel[:-2], report.funnel[1:-1], strict=True):
        assert after["in"] == before["out"]
    selected = phase(report.funnel, "selected")
    assert selected["out"] == sum(selected["reasons"].values()) == last["in"] == sum(report.fates.values())
    assert report.fates["kept"] == last["out"] > 10 and report.fates["failed"] == 0
    assert len(standings(output)) == 32
    assert sum(report.sources[name] for name in report.sources if name != "seen") == report.sources["seen"]


def test_a_pair_tells_how_it_was_made_and_is_made_again_from_that(made: tuple[Path, TruthReport]) -> None:
    snapshot = open_snapshot(str(made[0]))
    assert verify(snapshot).problems == ()
    replayed = replay_snapshot(snapshot, None, 0, 1)
    assert replayed.problems == () and replayed.replayed == snapshot.manifest.kept and replayed.without_steps == 0
    sample = next(iter(_samples(snapshot)))
    generation = sample["json"]["generation"]
    assert generation["generator"] == "classical" and generation["judge"] == "metric"
    assert generation["attempts"][generation["chosen"] - 1]["outcome"] == "accepted"
    assert sample["json"]["filters"]["statistics.sharpness"] > 0 and "statistics.hash" in sample["json"]["filters"]
    assert np.abs(sample["lq"].astype(int) - sample["hq"]).mean() > 1


def _samples(snapshot: Snapshot) -> Any:
    return snapshot.dataset(split_shards=False)


def test_a_changed_answer_is_found_by_replay(made: tuple[Path, TruthReport], tmp_path: Path) -> None:
    snapshot = open_snapshot(str(made[0]))
    sample = next(iter(_samples(snapshot)))["json"]["generation"]
    name = sample["reply"]["name"]
    before = snapshot.storage.read(name)
    try:
        snapshot.storage.write(name, before[:-1] + b"x")
        problems = replay_snapshot(snapshot, None, 0, 1).problems
        assert len(problems) >= 1 and "does not have the SHA-256" in problems[0]
    finally:
        snapshot.storage.write(name, before)


@pytest.mark.usefixtures("ray_session")
def test_ray_gives_the_same_bytes(made: tuple[Path, TruthReport], folder: Path, tmp_path: Path) -> None:
    run_truth(truth_config(tmp_path / "out", folder), SessionPlace())
    assert hashes(tmp_path / "out") == hashes(made[0])


def test_s3_gives_the_same_bytes(made: tuple[Path, TruthReport], folder: Path, s3_url: str) -> None:
    run_truth(truth_config(f"{s3_url}/truth", folder), here())
    assert hashes(f"{s3_url}/truth") == hashes(made[0])


def test_a_second_run_has_nothing_to_do(made: tuple[Path, TruthReport], folder: Path) -> None:
    before = hashes(made[0])
    report = run_truth(truth_config(made[0], folder), here())
    assert report.parts_made == 0 and not report.published and hashes(made[0]) == before


def test_new_sources_move_no_part_that_is_full(tmp_path: Path, photos: dict[str, Pixels]) -> None:
    folder = write_photos(tmp_path / "photos", photos, 1)
    config = truth_config(tmp_path / "out", folder)
    run_truth(config, here())
    before = {part.shard.stem: len(part.records) for part in plan_truth(config, Catalog(open_storage(config.output)))}
    write_photos(folder, photos, 2)
    report = run_truth(config, here())
    after = {part.shard.stem: len(part.records) for part in plan_truth(config, Catalog(open_storage(config.output)))}
    full = {stem for stem, records in before.items() if records == 3}
    assert full and full <= after.keys() and sum(after.values()) > sum(before.values())
    assert report.parts_made == len(after.keys() - before.keys())
    assert verify(open_snapshot(config.output)).problems == ()


def test_stricter_rules_exclude_pairs_and_looser_ones_need_no_look_at_pixels(
    tmp_path: Path, photos: dict[str, Pixels]
) -> None:
    folder = write_photos(tmp_path / "photos", photos, 1)
    select = truth_config(tmp_path, folder).select.model_dump()
    select["duplicates"] = {"most_bits": None}  # else a refused picture makes room for its copy
    config = truth_config(tmp_path / "out", folder, select=select)
    kept = run_truth(config, here()).fates["kept"]
    shards = hashes(config.output)
    rule = {"measure": "statistics.exposure_ev", "most": -3.0, "reason": "bright"}
    rules = [*(each.model_dump() for each in config.screen[0].rules), rule]
    strict = truth_config(config.output, folder, select=select, screen=[{"scorer": "statistics", "rules": rules}])
    folder.rename(tmp_path / "away")
    told = retune_sources(strict)  # looks at no source
    (tmp_path / "away").rename(folder)
    refused = phase(told, "screen_statistics")["reasons"]["bright"]
    assert 0 < refused < 16 and phase(told, "screen_statistics")["in"] == 16
    report = run_truth(strict, here())
    snapshot = open_snapshot(config.output)
    assert report.parts_made == 0 and hashes(config.output) == shards
    shown, held = snapshot.rows().num_rows, snapshot.rows(include_excluded=True).num_rows
    assert 0 < shown < held and len(snapshot.excluded) == held - shown
    back = run_truth(config, here())
    assert back.parts_made == 0 and not open_snapshot(config.output).excluded and back.fates["kept"] == kept


def test_duplicates_leaks_and_quotas_name_their_reasons(tmp_path: Path, photos: dict[str, Pixels]) -> None:
    folder = write_photos(tmp_path / "photos", photos, 2)
    copied = cv2.imread(str(folder / "noise" / "coffee_0.png"))
    assert cv2.imwrite(str(folder / "noise" / "zcopy.jpg"), copied, [cv2.IMWRITE_JPEG_QUALITY, 90])
    benchmark = tmp_path / "benchmark"
    benchmark.mkdir()
    leaked = cv2.resize(cv2.imread(str(folder / "haze" / "rocket_1.png")), (160, 150))
    assert cv2.imwrite(str(benchmark / "bench.png"), leaked)
    config = truth_config(
        tmp_path / "out",
        folder,
        select={
            "duplicates": {"most_bits": 4},
            "held_out": [{"name": "bench", "url": str(benchmark)}],
            "categories": [
                {"name": "haze", "when": [{"measure": "folder", "allowed": ["haze"], "reason": "no"}]},
                {"name": "noise", "when": [{"measure": "folder", "allowed": ["noise"], "reason": "no"}], "quota": 3},
            ],
        },
    )
    screen_sources(config, here())
    told = standings(tmp_path / "out")
    assert told["rocket_1/haze"]["reason"] == "held_out_bench" and "bench.png" in told["rocket_1/haze"]["detail"]
    assert told["zcopy/noise"]["reason"] == "near_duplicate" and "coffee_0.png" in told["zcopy/noise"]["detail"]
    noise = [each for name, each in told.items() if name.endswith("/noise")]
    assert sum(each["phase"] == "selected" for each in noise) == 3
    assert sum(each["reason"] == "quota" for each in noise) == 5


def test_levels_are_taken_in_proportion(tmp_path: Path, photos: dict[str, Pixels]) -> None:
    folder = write_photos(tmp_path / "photos", photos, 2)
    levels = {"measure": "statistics.exposure_ev", "edges": [-4.5], "shares": [2, 1]}
    config = truth_config(
        tmp_path / "out", folder, select={"categories": [{"name": "general_mixed", "levels": levels}]}
    )
    screen_sources(config, here())
    rows = [each for each in standings(tmp_path / "out").values() if each["phase"] == "selected"]
    dark = sum(each["level"] == 0 for each in rows)
    assert dark and dark == 2 * (len(rows) - dark)
    assert {each["reason"] for each in standings(tmp_path / "out").values() if each["phase"] == "quota"} == {
        "level_share"
    }


@given(
    have=st.lists(st.integers(0, 50), min_size=1, max_size=4),
    shares=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    quota=st.none() | st.integers(1, 100),
)
def test_level_counts_keep_proportion_quota_and_supply(have: list[int], shares: list[int], quota: int | None) -> None:
    shares = shares[: len(have)]
    if not any(shares):
        return
    taken = level_counts(have, shares, quota)
    assert all(0 <= got <= count for got, count in zip(taken, have, strict=True))
    assert quota is None or sum(taken) <= quota
    rounds = [got / share for got, share in zip(taken, shares, strict=True) if share]
    assert max(rounds) - min(rounds) <= 1 and all(
        not got for got, share in zip(taken, shares, strict=True) if not share
    )


def test_a_slot_is_for_ever(tmp_path: Path, photos: dict[str, Pixels]) -> None:
    folder = write_photos(tmp_path / "photos", photos, 1)
    config = truth_config(tmp_path / "out", folder)
    run_truth(config, here())
    storage = open_storage(config.output)
    slots = read_slots(storage)
    catalog = Catalog(storage)
    catalog.remove([slots[0].source_id], "asked to")
    run_truth(config, here())
    assert read_slots(storage) == slots
    keys = {record.key for part in plan_truth(config, catalog) for record in part.records}
    assert len(keys) == len(slots) - 1 and not any(slots[0].source_id in key for key in keys)
    with pytest.raises(ValueError, match="records_per_shard is 4; parts of this output were laid out with 3"):
        run_truth(truth_config(config.output, folder, shards={"records_per_shard": 4}), here())


def test_nothing_is_made_of_what_was_selected_once_and_is_refused_now(
    tmp_path: Path, photos: dict[str, Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_photos(tmp_path / "photos", photos, 1)
    config = truth_config(tmp_path / "out", folder)
    monkeypatch.setattr("pipelines.ground_truth.run.carry_parts", _die)
    with pytest.raises(KeyboardInterrupt):
        run_truth(config, here())
    monkeypatch.undo()
    slots = read_slots(open_storage(config.output))
    select = config.select.model_dump(mode="json")
    select["categories"] = [each for each in select["categories"] if each["name"] != "low_light"]
    select["categories"][0]["when"].append({"measure": "statistics.contrast_ev", "most": 0.01, "reason": "no"})
    report = run_truth(truth_config(config.output, folder, select=select), here())
    noise = sum(slot.category == "noise" for slot in slots)
    assert sum(report.fates.values()) == noise and report.sources["usable"] == noise
    again = run_truth(config, here())
    assert sum(again.fates.values()) == len(slots) and not open_snapshot(config.output).excluded
    keys = open_snapshot(config.output).rows(["key"])["key"].to_pylist()
    assert len(keys) == len(set(keys)) == len(slots)


def _die(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_a_vanished_source_fails_its_record_and_is_retried_on_demand(tmp_path: Path, photos: dict[str, Pixels]) -> None:
    folder = write_photos(tmp_path / "photos", photos, 1)
    config = truth_config(tmp_path / "out", folder, run={"max_failed_fraction": 1.0})
    screen_sources(config, here())
    gone = folder / "haze" / "coffee_0.png"
    data = gone.read_bytes()
    gone.unlink()
    first = run_truth(config, here())
    assert first.fates["failed"] == 1 and first.flawed
    assert run_truth(config, here()).parts_made == 0  # bad data is not tried again by itself
    gone.write_bytes(data)
    assert retry_failed(config, ("no_such_reason",)) == (0, 0)
    assert retry_failed(config, ("",)) == (1, 1)
    second = run_truth(config, here())
    assert second.fates["failed"] == 0 and second.parts_made == 1
    assert second.fates["kept"] + second.fates["rejected"] == sum(first.fates.values())


def test_refused_pictures_can_be_looked_at(
    made: tuple[Path, TruthReport], photos: dict[str, Pixels], tmp_path: Path
) -> None:
    folder = write_photos(tmp_path / "photos", photos, 1)
    make = {**truth_config(tmp_path, folder).make.model_dump(), "verdict": {"least_score": 100}}
    config = truth_config(tmp_path / "out", folder, make=make)
    report = run_truth(config, here())
    assert report.fates["rejected"] > 5
    snapshot = open_snapshot(config.output)
    shown = list(pick_refused(snapshot, None, 4))
    assert shown and all(refused.generation.attempts for refused, _, _ in shown)
    assert contact_sheet(iter(shown), 2, 128).shape[2] == 3
    assert contact_sheet(pick_samples(open_snapshot(str(made[0])), None, 2), 2, 128).shape[2] == 3


def test_shards_hold_what_rows_say(made: tuple[Path, TruthReport]) -> None:
    snapshot = open_snapshot(str(made[0]))
    rows = {row["key"]: row for row in snapshot.rows().to_pylist()}
    for shard in snapshot.manifest.shards:
        for key, files in read_shard(snapshot.storage, shard.tar_name) if shard.tar_name else ():
            sample = parse_sample(files["json"], key)
            assert canonical_json(sample.model_dump(mode="json")["generation"]) == rows[key]["generation"]
            assert decode_png(files["hq.png"]).shape == decode_png(files["lq.png"]).shape


class TestLease:
    def test_two_runs_do_not_write_to_one_output(self, tmp_path: Path) -> None:
        storage = open_storage(str(tmp_path))
        with (
            leased(storage),
            pytest.raises(InfraError, match=rf"process {os.getpid()} on .* writes to"),
            leased(storage),
        ):
            pass
        with leased(storage) as hold:
            hold.check()

    def test_the_lease_of_a_dead_process_here_is_taken_over_at_once(self, tmp_path: Path) -> None:
        storage = open_storage(str(tmp_path))
        with leased(storage):
            held = Lease.model_validate_json(storage.read(LEASE))
        dead = held.model_copy(update={"pid": 2**22 + 1, "until": time.time() + 50})
        storage.write(LEASE, canonical_json(dead).encode())
        with leased(storage) as hold:
            hold.check()

    def test_the_lease_of_another_host_has_to_run_out(self, tmp_path: Path) -> None:
        storage = open_storage(str(tmp_path))
        with leased(storage):
            held = Lease.model_validate_json(storage.read(LEASE))
        far = held.model_copy(update={"host": "elsewhere", "until": time.time() + 50})
        storage.write(LEASE, canonical_json(far).encode())
        with pytest.raises(InfraError, match=r"on elsewhere\) writes to"), leased(storage):
            pass
        storage.write(LEASE, canonical_json(far.model_copy(update={"until": time.time() - 1})).encode())
        with leased(storage):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": {"records_per_shard": 3, "layers": ["transmission"]}}, "have no supervision layers"),
        (
            {"make": {"generator": {"backend": "service", "service": "x"}, "judge": {"backend": "metric"}}},
            "no service 'x'",
        ),
        (
            {"screen": [{"scorer": "statistics", "rules": [{"measure": "clip.haze", "least": 0.5, "reason": "r"}]}]},
            "nothing gives 'clip.haze' by then",
        ),
        ({"select": {"categories": [{"name": "fog"}]}}, "no prompts for this category"),
        (
            {
                "select": {
                    "categories": [{"name": "haze", "levels": {"measure": "group", "edges": [1], "shares": [1, 1, 1]}}]
                }
            },
            "1 edges make 2 levels, 3 shares given",
        ),
        ({"select": {"duplicates": {"least_cosine": 0.9}, "categories": [{"name": "haze"}]}}, "need a screening step"),
    ],
)
def test_a_config_that_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        truth_config(tmp_path, tmp_path, **changes)


def test_the_demo_config_is_of_its_line() -> None:
    assert load_run_config(Path("configs/demo_ground_truth.yaml")).line == "ground_truth"
    assert load_run_config(Path("configs/demo.yaml")).line == "synthesis"
