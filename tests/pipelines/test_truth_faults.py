"""The ground-truth line with its true clients against a faulty service: nothing lost, nothing bought twice."""

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from generators.prompts import Preset, next_instruction
from pairforge.protocols import ASPECTS
from pairforge.rng import rng_for
from pipelines.carry import OVER_BUDGET
from pipelines.console import FLAWED
from pipelines.ground_truth import trial
from pipelines.ground_truth.place import placed
from pipelines.ground_truth.run import TruthReport, run_truth
from tests.api_server import ApiServer, Entry, Say, api_server

from .truth_world import (
    KEY_ENV,
    MODELS,
    SECRET,
    Service,
    audit,
    charged_usd,
    config_data,
    config_of,
    drive,
    fates,
    said,
    shard_hashes,
    start,
    unsure_usd,
    write_photos,
)

RECORDS, FEW = 160, 40
ECHO = f"the key {SECRET} is wrong: https://user:{SECRET}@host/?key={SECRET} Authorization: Bearer {SECRET}"
SMALL = {"shards": {"records_per_shard": 8}}
IN_FLIGHT = 24


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, SECRET)


@dataclass(frozen=True)
class Ended:
    """A run that went to its end, and what the service saw of it."""

    output: Path
    entries: list[Entry]
    faults: Counter[str]


def run_here(output: Path, photos: Path, server: ApiServer, **changes: Any) -> TruthReport:
    """One run in this process."""
    with placed(True, None, None) as place:
        return run_truth(config_of(output, photos, server, **changes), place)


def in_peace(folder: Path, photos: Path, service: Service, **changes: Any) -> Ended:
    """A run in this process, of which nothing is killed."""
    output = folder / "peace"
    with pytest.MonkeyPatch.context() as patch, api_server(service, MODELS, SECRET) as server:
        patch.setenv(KEY_ENV, SECRET)
        run_here(output, photos, server, **changes)
        return Ended(output, list(server.ledger), service.faults)


def check_counts(output: Path, records: int) -> Counter[str]:
    """Planned = kept + rejected + failed, every photo once; fates."""
    found = fates(output)
    counts = Counter(fate for fate, _, _ in found.values())
    assert len(found) == records == counts["kept"] + counts["rejected"] + counts["failed"]
    assert all((fate == "kept") == (reason is None) == (hq is not None) for fate, reason, hq in found.values())
    return counts


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("photos")
    return {count: write_photos(folder / str(count), count) for count in (FEW, RECORDS)}


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory, photos: dict[int, Path]) -> Ended:
    """Few records without passing faults, many of which take all their attempts."""
    return in_peace(tmp_path_factory.mktemp("few"), photos[FEW], Service(passing=0, hopeless=0.3), **SMALL)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, photos: dict[int, Path]) -> Ended:
    """A run on an embedded Ray with two actors, of which a quarter of all requests meets a fault."""
    folder = tmp_path_factory.mktemp("faulty")
    ray_folder = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))  # Ray's sockets need a short path
    service = Service(echo=ECHO)
    with pytest.MonkeyPatch.context() as patch, api_server(service, MODELS, SECRET) as server:
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        config = config_data(folder / "out", photos[RECORDS], server, shards={"records_per_shard": 50})
        assert drive(config, "--log", str(folder / "log.jsonl")) == 0, said(folder / "out")
        for name in ("status", "plan"):
            assert drive(config, command=[name, f"{config['output']}.yaml"]) == 0, said(folder / "out")
        entries = list(server.ledger)
    logs = (path for path in ray_folder.rglob("logs/*") if path.is_file() and not path.is_symlink())
    (folder / "ray").mkdir()
    for number, path in enumerate(logs):
        shutil.copy(path, folder / "ray" / f"{number}-{path.name}")
    shutil.rmtree(ray_folder, ignore_errors=True)
    return Ended(folder / "out", entries, service.faults)


def test_a_quarter_of_requests_meets_a_fault_and_nothing_is_lost(faulty: Ended) -> None:
    counts = check_counts(faulty.output, RECORDS)
    assert counts["failed"] == 0, "whatever passes was waited out"
    assert counts["kept"] > RECORDS * 0.7 and counts["rejected"] > 3
    assert 0.2 < 1 - faulty.faults["right"] / faulty.faults.total() < 0.35
    kinds = {"429", "500", "html 502", "hang", "drop", "drip", "half", "refusal", "html 200", "wrong size"}
    assert kinds | {"cut json", "cut answer", "prose", "away"} <= set(faulty.faults)


def test_the_journal_agrees_with_the_service(faulty: Ended) -> None:
    spent = audit(faulty.output, faulty.entries, cap_usd=1000)
    # What may have been charged stands at the price that was set aside for it.
    assert charged_usd(faulty.entries) <= spent.usd <= 1.35 * charged_usd(faulty.entries)
    assert sum(count for name, count in spent.outcomes.items() if ":fallback:answered" in name) > 0


def test_passing_faults_change_no_byte(faulty: Ended, tmp_path: Path, photos: dict[int, Path]) -> None:
    calm = in_peace(tmp_path, photos[RECORDS], Service(passing=0), shards={"records_per_shard": 50})
    assert not set(calm.faults) & {"429", "500", "hang", "drop", "drip", "half"}
    assert fates(calm.output) == fates(faulty.output)
    assert shard_hashes(calm.output) == shard_hashes(faulty.output)


def test_spend_is_what_the_service_charged(peace: Ended) -> None:
    spent = audit(peace.output, peace.entries)
    told = [entry for entry in peace.entries if not (isinstance(entry.act, Say) and entry.act.cut)]
    assert spent.usd == pytest.approx(charged_usd(told) + unsure_usd(peace.output), abs=1e-6)


def test_no_secret_is_in_any_file_or_message(faulty: Ended) -> None:
    """The service tells the key in every fault. Output, log, all that was printed, and Ray's own logs are searched."""
    files = [path for path in faulty.output.parent.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"log.jsonl", "out.yaml", "out.said", "latest.json"} <= names and len(files) > 100
    assert any("worker" in name for name in names), "the logs that Ray keeps of its workers"
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert "plan of" in said(faulty.output) and "kept" in said(faulty.output)
    assert all(any(SECRET in str(entry.act) for entry in faulty.entries if entry.call.model == m) for m in MODELS[2:])


def test_a_cap_is_kept_and_raising_it_goes_on(peace: Ended, tmp_path: Path, photos: dict[int, Path]) -> None:
    """Stopped for want of money again and again, a run ends with what it would have made at once."""
    enough, output, kept = audit(peace.output, peace.entries).usd, tmp_path / "capped", 0
    with api_server(Service(hopeless=0.3), MODELS, SECRET) as server:
        for share in (0.3, 0.6):
            cap = {"cap_usd": share * enough}
            if share < 0.5:
                config = config_data(output, photos[FEW], server, budget=cap, **SMALL)
                assert drive(config, "--local") == FLAWED, said(output)
            else:
                assert run_here(output, photos[FEW], server, budget=cap, **SMALL).flawed
            audit(output, server.ledger, cap_usd=share * enough)
            found = fates(output).values()
            assert {reason for fate, reason, _ in found if fate == "failed"} == {OVER_BUDGET}
            before, kept = kept, sum(fate == "kept" for fate, _, _ in found)
            assert kept > before, "what is there is published"
        report = run_here(output, photos[FEW], server, budget={"cap_usd": 10 * enough}, **SMALL)
        audit(output, server.ledger, cap_usd=10 * enough)
    assert not report.flawed and report.unmade == 0
    check_counts(output, FEW)
    assert fates(output) == fates(peace.output)


def test_what_met_passing_trouble_is_due_and_ends_as_ever(
    peace: Ended, tmp_path: Path, photos: dict[int, Path]
) -> None:
    """A night in which the painter stays away for some records, and the judge answers others unreadably."""
    output = tmp_path / "out"
    service = Service(passing=0, hopeless=0.3, away=0.1, unscored=0.1)
    quick: dict[str, Any] = {**SMALL, "make": {"fallback": None}, "run": {"max_failed_fraction": 0.9}}
    with api_server(service, MODELS, SECRET) as server:
        assert run_here(output, photos[FEW], server, **quick).flawed
        reasons = Counter(reason for fate, reason, _ in fates(output).values() if fate == "failed")
        assert set(reasons) == {"transient_unavailable", "transient_unscored"}
        service.away = service.unscored = 0
        bought = audit(output, server.ledger)
        assert not run_here(output, photos[FEW], server, **quick).flawed
        spent = audit(output, server.ledger)
    assert spent.usd > bought.usd
    check_counts(output, FEW)
    expected = in_peace(tmp_path, photos[FEW], Service(passing=0, hopeless=0.3, away=0), **quick)
    assert fates(output) == fates(expected.output)


def killed(config: dict[str, Any], server: ApiServer, moments: int, gaps: tuple[int, int], ways: list[str]) -> int:
    """A run whose driver dies by SIGKILL at so many random moments; how many it met before its end.

    A moment is some requests, or some time, after a start, or just after a part was committed. `ways` are options of
    drivers, taken in turn. What a lost driver leaves of its Ray is left alone until the end, beside its successors.
    """
    draw, groups, output = rng_for(4, "kills"), list[int](), Path(config["output"])
    try:
        for turn in range(moments):
            with start(config, *ways[turn % len(ways)].split()) as driver:
                groups.append(driver.pid)
                kind = str(draw.choice(("requests", "requests", "time", "part")))
                requests, parts = len(server.ledger) + int(draw.integers(*gaps)), parts_of(output)
                while driver.poll() is None and (
                    (kind == "requests" and len(server.ledger) < requests)
                    or (kind == "part" and parts_of(output) == parts)
                ):
                    time.sleep(0.003)
                time.sleep(float(draw.uniform(0.5, 5.0) if kind == "time" else draw.uniform(0.0, 0.2)))
                if driver.poll() is not None:
                    return turn
                kill(driver.pid, whole_group=bool(draw.integers(2)))
                assert driver.wait() == -signal.SIGKILL
    finally:
        for group in groups:
            kill(group, whole_group=True)
    return moments


def parts_of(output: Path) -> int:
    return len(list(output.glob("shards/*/*/*.marker.json")))


def kill(pid: int, whole_group: bool) -> None:
    """SIGKILL to a driver that was started here, or to its whole process group, which is of its own."""
    with suppress(ProcessLookupError):
        if whole_group:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


def check_kills(expected: Ended, output: Path, photos: Path, service: Service, kills: int, ways: list[str]) -> None:
    """Kills change no byte of any shard, buy nothing twice, and tell no secret."""
    gaps = (1, max(2, len(expected.entries) // kills))
    with api_server(service, MODELS, SECRET) as server:
        config = config_data(output, photos, server, **SMALL)
        assert killed(config, server, kills, gaps, ways) == kills
        assert drive(config, "--local") == 0, said(output)
        entries = list(server.ledger)
    check_counts(output, len(fates(expected.output)))
    assert fates(output) == fates(expected.output)
    assert shard_hashes(output) == shard_hashes(expected.output)
    spent = audit(output, entries, cap_usd=1000, lost=kills * 2 * IN_FLIGHT)
    print(f"{kills} kills, {len(entries)} requests, {spent.unanswered} lost in flight, {spent.usd:.2f} USD")
    for path in output.parent.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_few_kills_change_no_byte(peace: Ended, tmp_path: Path, photos: dict[int, Path]) -> None:
    check_kills(peace, tmp_path / "killed", photos[FEW], Service(echo=ECHO, hopeless=0.3), 4, ["--local"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_no_byte(tmp_path: Path, photos: dict[int, Path]) -> None:
    """Drivers with an embedded Ray and without take turns."""
    expected = in_peace(tmp_path, photos[RECORDS], Service(passing=0), **SMALL)
    check_kills(expected, tmp_path / "killed", photos[RECORDS], Service(echo=ECHO), 20, ["", "--local"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cap_holds_over_kills(peace: Ended, tmp_path: Path, photos: dict[int, Path]) -> None:
    """On Ray, where the budget is in an actor that dies with its driver; what was lost in flight counts."""
    enough, output = audit(peace.output, peace.entries).usd, tmp_path / "killed"
    with api_server(Service(hopeless=0.3), MODELS, SECRET) as server:
        cap = {"cap_usd": 0.7 * enough}
        config = config_data(output, photos[FEW], server, budget=cap, **SMALL)
        kills = killed(config, server, 6, (1, 20), [""])
        lost = kills * 2 * IN_FLIGHT
        assert kills >= 2
        audit(output, server.ledger, cap_usd=0.7 * enough, lost=lost)
        assert drive(config) == FLAWED, said(output)
        spent = audit(output, server.ledger, cap_usd=0.7 * enough, lost=lost)
        assert spent.usd > 0.5 * enough, "the cap was what stopped it"
        assert drive(config_data(output, photos[FEW], server, **SMALL)) == 0, said(output)
        audit(output, server.ledger, cap_usd=1000, lost=lost)
    assert fates(output) == fates(peace.output)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_records(tmp_path: Path) -> None:
    records, service = 2000, Service(echo=ECHO)
    folder = write_photos(tmp_path / "photos", records)
    changes: dict[str, Any] = {"shards": {"records_per_shard": 100}, "make": {"in_flight": 2 * IN_FLIGHT}}
    began = time.monotonic()
    with api_server(service, MODELS, SECRET) as server:
        config = config_data(tmp_path / "out", folder, server, **changes)
        assert drive(config, timeout_s=1500) == 0, said(tmp_path / "out")
        entries, faults = list(server.ledger), service.faults
    seconds = time.monotonic() - began
    counts = check_counts(tmp_path / "out", records)
    spent = audit(tmp_path / "out", entries, cap_usd=1000)
    assert 0.2 < 1 - faults["right"] / faults.total() < 0.35 and counts["failed"] == 0
    print(f"{len(entries)} requests in {seconds:.0f} s, {dict(faults)}, {dict(counts)}, {spent.usd:.2f} USD")
    expected = in_peace(tmp_path, folder, Service(passing=0), **changes)
    assert fates(expected.output) == fates(tmp_path / "out")
    assert shard_hashes(expected.output) == shard_hashes(tmp_path / "out")


def plain(first: str, failed: Sequence[Sequence[str]], attempt: int, preset: Preset) -> str:
    return first


def shuffled(first: str, failed: Sequence[Sequence[str]], attempt: int, preset: Preset) -> str:
    """As many sentences as feedback has, each about the aspect next to the one that failed."""
    turned = dict(zip(ASPECTS, (*ASPECTS[1:], ASPECTS[0]), strict=True))
    return next_instruction(first, [[turned[aspect] for aspect in each] for each in failed], attempt, preset)


def test_feedback_is_worth_more_than_another_draw(
    tmp_path: Path, photos: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same line with its instructions as they are, always the first one, and about other aspects."""
    accepted = {}
    for name, instruct in (("feedback", next_instruction), ("plain", plain), ("shuffled", shuffled)):
        monkeypatch.setattr(trial, "next_instruction", instruct)
        service = Service(passing=0, lasting=0, away=0, hopeless=0)
        with api_server(service, MODELS, SECRET) as server:
            make = {"prompts": {"strategy": "fixed"}, "in_flight": FEW}
            run_here(tmp_path / name, photos[FEW], server, make=make, shards={"records_per_shard": FEW})
        accepted[name] = check_counts(tmp_path / name, FEW)["kept"] / FEW
    print(accepted)
    assert accepted["feedback"] == 1.0
    assert max(accepted["plain"], accepted["shuffled"]) < 0.75
