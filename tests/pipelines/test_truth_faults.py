"""The ground-truth line with its true clients against a faulty service: nothing lost, nothing bought twice."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from generators.prompts import Preset, next_instruction
from pairforge.protocols import ASPECTS
from pairforge.rng import rng_for
from pipelines.cli_runs import FLAWED
from pipelines.ground_truth import trial
from pipelines.ground_truth.place import placed
from pipelines.ground_truth.run import TruthReport, run_truth
from tests.api_server import ApiServer, Entry, Say, Show, api_server

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
    shard_hashes,
    start,
    write_photos,
)

RECORDS, FEW = 200, 60
ECHO = f"the key {SECRET} is wrong: https://user:{SECRET}@host/?key={SECRET} Authorization: Bearer {SECRET}"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, SECRET)


@dataclass(frozen=True)
class Ended:
    """A run that went to its end, and what the service saw of it."""

    output: Path
    entries: list[Entry]
    service: Service
    said: str


def run_here(output: Path, photos: Path, server: ApiServer, **changes: object) -> TruthReport:
    """One run in this process."""
    with placed(True, None, None) as place:
        return run_truth(config_of(output, photos, server, **changes), place)


def undisturbed(folder: Path, photos: Path, service: Service, **changes: object) -> Ended:
    """A run in this process, of which nothing is killed."""
    output = folder / "undisturbed"
    with api_server(service, MODELS, SECRET) as server:
        run_here(output, photos, server, **changes)
        return Ended(output, list(server.ledger), service, "")


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
def faulty(tmp_path_factory: pytest.TempPathFactory, photos: dict[int, Path]) -> Iterator[Ended]:
    """A run on an embedded Ray with two actors, of which a quarter of all requests meets a fault."""
    folder = tmp_path_factory.mktemp("faulty")
    # Ray's sockets need a short path.
    ray_folder = tempfile.mkdtemp(prefix="pf-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch, api_server(Service(echo=ECHO), MODELS, SECRET) as server:
        patch.setenv("RAY_TMPDIR", ray_folder)
        config = config_data(folder / "out", photos[RECORDS], server, shards={"records_per_shard": 50})
        done = drive(config, "--log", str(folder / "log.jsonl"))
        assert done.returncode == 0, done.stdout + done.stderr
        entries = list(server.ledger)
        said = [done.stdout, done.stderr]
        for command in (["status", f"{config['output']}.yaml"], ["plan", f"{config['output']}.yaml"]):
            told = drive(config, command=command)
            said += [told.stdout, told.stderr]
    (folder / "ray").mkdir()
    for path in Path(ray_folder).rglob("*.*"):
        if path.is_file() and not path.is_symlink() and "logs" in path.parts:
            shutil.copy(path, folder / "ray" / f"{len(list((folder / 'ray').iterdir()))}-{path.name}")
    shutil.rmtree(ray_folder, ignore_errors=True)
    yield Ended(folder / "out", entries, server.script, "\n".join(said))  # type: ignore[arg-type]


def test_a_quarter_of_requests_meets_a_fault_and_nothing_is_lost(faulty: Ended) -> None:
    counts = check_counts(faulty.output, RECORDS)
    assert counts["failed"] == 0, "whatever passes was waited out"
    assert counts["kept"] > RECORDS * 0.7 and counts["rejected"] > 3
    faults = faulty.service.faults
    share = 1 - faults["right"] / faults.total()
    assert 0.2 < share < 0.35, f"{share:.0%} of requests met a fault"
    kinds = {"429", "500", "html 502", "hang", "drop", "drip", "half", "refusal", "html 200", "wrong size"}
    assert kinds | {"cut json", "cut answer", "prose", "away"} <= set(faults)


def test_the_journal_agrees_with_the_service(faulty: Ended) -> None:
    spent = audit(faulty.output, faulty.entries, cap_usd=1000)
    # What is charged and never answered, and what may have been charged, stands at the price that was reserved.
    assert charged_usd(faulty.entries) <= spent.usd <= 1.35 * charged_usd(faulty.entries)
    assert sum(count for name, count in spent.outcomes.items() if ":fallback:answered" in name) > 0


def test_passing_faults_change_no_byte(faulty: Ended, tmp_path: Path, photos: dict[int, Path]) -> None:
    peace = undisturbed(tmp_path, photos[RECORDS], Service(passing=0, hang_s=0), shards={"records_per_shard": 50})
    assert not set(peace.service.faults) & {"429", "500", "hang", "drop", "drip", "half"}
    assert fates(peace.output) == fates(faulty.output)
    assert shard_hashes(peace.output) == shard_hashes(faulty.output)
    spent = audit(peace.output, peace.entries)
    assert spent.usd == pytest.approx(charged_usd(peace.entries) + unsure_usd(peace), abs=1e-6)


def unsure_usd(run: Ended) -> float:
    """Price set aside for answers of unknown cost, of a run of which every outcome is known."""
    from pairforge.journal_log import Intent, Outcome

    from .truth_world import journal_rows

    usd = 0.0
    for rows in journal_rows(run.output).values():
        intents = {row.request: row for row in rows if isinstance(row, Intent)}
        outcomes = [row for row in rows if isinstance(row, Outcome) and row.cost_usd is None]
        usd += sum(intents[row.request].reserved_usd or 0.0 for row in outcomes)
    return usd


def test_no_secret_is_in_any_file_or_message(faulty: Ended) -> None:
    files = [path for path in faulty.output.parent.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert "log.jsonl" in names and "out.yaml" in names and "latest.json" in names and len(files) > 100
    assert any("worker" in name for name in names), "the logs that Ray keeps of its workers"
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in faulty.said and "kept" in faulty.said
    failed = Counter(entry.call.model for entry in faulty.entries if not isinstance(entry.act, Say | Show))
    assert set(failed) == {"painter", "judge", "writer"} or set(failed) == set(MODELS), "all of them told the key"


def test_a_cap_is_kept_and_raising_it_goes_on(tmp_path: Path, photos: dict[int, Path]) -> None:
    """Stopped for want of money again and again, a run ends with what it would have made at once."""
    few: dict[str, object] = {"shards": {"records_per_shard": 10}}
    peace = undisturbed(tmp_path, photos[FEW], Service(passing=0, hang_s=0, hopeless=0.3), **few)
    enough = audit(peace.output, peace.entries).usd
    output = tmp_path / "capped"
    with api_server(Service(hopeless=0.3), MODELS, SECRET) as server:
        kept = 0
        for share in (0.2, 0.5):
            cap = {"cap_usd": share * enough}
            done = drive(config_data(output, photos[FEW], server, budget=cap, **few), "--local")
            assert done.returncode == FLAWED, done.stdout + done.stderr
            audit(output, server.ledger, cap_usd=share * enough)
            counts = Counter(fate for fate, _, _ in fates(output).values())
            reasons = {reason for fate, reason, _ in fates(output).values() if fate == "failed"}
            assert reasons == {trial.OVER_BUDGET} and counts["kept"] > kept, "what is there is published"
            kept = counts["kept"]
        report = run_here(output, photos[FEW], server, budget={"cap_usd": 10 * enough}, **few)
        assert not report.flawed and report.unmade == 0
        check_counts(output, FEW)
        audit(output, server.ledger, cap_usd=10 * enough)
    assert fates(output) == fates(peace.output)


def killed(
    folder: Path, photos: Path, service: Service, kills: int, gaps: tuple[int, int], ways: Sequence[str]
) -> tuple[Ended, int]:
    """A run whose driver dies by SIGKILL at random moments until all kills are spent, and how many were made.

    A moment is some requests, or some time, after its start, or just after a part was committed. `ways` are options of
    drivers, taken in turn.
    """
    output, draw, made, says = folder / "killed", rng_for(4, "kills"), 0, []
    with api_server(service, MODELS, SECRET) as server:
        config = config_data(output, photos, server, shards={"records_per_shard": 10})
        for turn in range(10 * kills + 10):
            if "snapshots" in {path.name for path in output.glob("*")} and made < kills:
                break  # it ended before all were made
            seen, began, parts = len(server.ledger), time.monotonic(), parts_of(output)
            moment = str(draw.choice(("requests", "requests", "time", "part"))) if made < kills else "end"
            after = int(draw.integers(*gaps))
            wait_s = float(draw.uniform(0.5, 6.0) if moment == "time" else draw.uniform(0.0, 0.2))
            way = ways[turn % len(ways)]
            with start(config, *way.split()) as driver:
                while driver.poll() is None and moment != "end":
                    time.sleep(0.003)
                    if (
                        (moment == "requests" and len(server.ledger) >= seen + after)
                        or (moment == "part" and parts_of(output) > parts and not time.sleep(wait_s))
                        or (moment == "time" and time.monotonic() > began + wait_s)
                    ):
                        kill(driver, whole_group=bool(draw.integers(2)))
                        made += 1
                        break
                told = driver.communicate(timeout=280)
                if "--local" not in way:
                    kill(driver, whole_group=True)  # what a lost driver left of its Ray
            says += [*told]
            assert driver.returncode in (0, -signal.SIGKILL), told
            if driver.returncode == 0:
                break
        return Ended(output, list(server.ledger), service, "\n".join(says)), made


def parts_of(output: Path) -> int:
    return len(list(output.glob("shards/*/*/*.marker.json")))


def kill(driver: "subprocess.Popen[str]", whole_group: bool) -> None:
    """SIGKILL to a driver that was started here, or to its whole process group, which is of its own."""
    with suppress(ProcessLookupError):
        if whole_group:
            os.killpg(driver.pid, signal.SIGKILL)
        else:
            os.kill(driver.pid, signal.SIGKILL)


def check_killed(folder: Path, photos: Path, records: int, kills: int, gaps: tuple[int, int], ways: list[str]) -> None:
    peace = undisturbed(folder, photos, Service(passing=0, hang_s=0), shards={"records_per_shard": 10})
    ended, made = killed(folder, photos, Service(echo=ECHO), kills, gaps, ways)
    assert made == kills
    check_counts(ended.output, records)
    assert fates(ended.output) == fates(peace.output)
    assert shard_hashes(ended.output) == shard_hashes(peace.output)
    spent = audit(ended.output, ended.entries, cap_usd=1000, lost=kills * 24 * 2)
    print(f"{kills} kills, {spent.unanswered} requests lost in flight, {spent.usd:.2f} USD")
    for path in ended.output.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in ended.said


def test_a_few_kills_change_no_byte(tmp_path: Path, photos: dict[int, Path]) -> None:
    check_killed(tmp_path, photos[FEW], FEW, 4, (20, 70), ["--local"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_no_byte(tmp_path: Path, photos: dict[int, Path]) -> None:
    check_killed(tmp_path, photos[RECORDS], RECORDS, 20, (1, 75), ["", "--local"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_records(tmp_path: Path) -> None:
    records = 2000
    folder = write_photos(tmp_path / "photos", records)
    changes: dict[str, object] = {"shards": {"records_per_shard": 100}, "make": {"in_flight": 48}}
    began = time.monotonic()
    with api_server(Service(echo=ECHO), MODELS, SECRET) as server:
        done = drive(config_data(tmp_path / "out", folder, server, **changes), timeout_s=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        entries, faults = list(server.ledger), server.script.faults  # type: ignore[attr-defined]
    seconds = time.monotonic() - began
    counts = check_counts(tmp_path / "out", records)
    spent = audit(tmp_path / "out", entries, cap_usd=1000)
    assert 0.2 < 1 - faults["right"] / faults.total() < 0.35 and counts["failed"] == 0
    print(f"{len(entries)} requests in {seconds:.0f} s, {dict(faults)}, {dict(counts)}, {spent.usd:.2f} USD")
    peace = undisturbed(tmp_path, folder, Service(passing=0, hang_s=0), **changes)
    assert fates(peace.output) == fates(tmp_path / "out")
    assert shard_hashes(peace.output) == shard_hashes(tmp_path / "out")


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
    make = {"prompts": {"strategy": "fixed"}}
    for name, instruct in (("feedback", next_instruction), ("plain", plain), ("shuffled", shuffled)):
        monkeypatch.setattr(trial, "next_instruction", instruct)
        service = Service(passing=0, lasting=0, away=0, hopeless=0, luck=0.15)
        with api_server(service, MODELS, SECRET) as server:
            run_here(tmp_path / name, photos[FEW], server, make=make, shards={"records_per_shard": FEW})
        accepted[name] = check_counts(tmp_path / name, FEW)["kept"] / FEW
    print(accepted)
    assert accepted["feedback"] == 1.0
    assert accepted["plain"] < 0.75 and accepted["shuffled"] < 0.75
