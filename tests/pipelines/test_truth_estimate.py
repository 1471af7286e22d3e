"""What `plan` says before a ground-truth run, held against what the run then spends; what `status` says after it."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from filters.vlm import PROMPTS, PresencePrompts
from generators.loop import LoopPolicy
from pairforge.config import load_config
from pairforge.storage import open_storage
from pipelines.ground_truth.estimate import estimate_truth
from pipelines.ground_truth.place import Place
from pipelines.ground_truth.run import TruthReport, run_truth, screen_sources
from pipelines.ground_truth.settings import GroundTruthConfig
from pipelines.ground_truth.status import is_truth, truth_status
from tests.api_server import Act, Call, Say, api_server

from .truth_world import KEY_ENV, MODELS, SECRET, Service, charged_usd, config_data, config_of, write_photos

FEW = 24
ATTEMPTS = LoopPolicy().max_regenerations + 1
WEIGHTLESS = {
    "generator": {"backend": "classical"},
    "fallback": None,
    "judge": {"backend": "metric"},
    "prompts": {"strategy": "fixed"},
}


def pairforge(config: dict[str, Any], command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """A command of its own process; the config is written beside its output first."""
    Path(f"{config['output']}.yaml").write_text(json.dumps(config))
    environment = {**os.environ, KEY_ENV: SECRET, "no_proxy": "127.0.0.1"}
    called = [sys.executable, "-W", "ignore", "-m", "pipelines.cli", *command]
    return subprocess.run(called, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, SECRET)


def faultless() -> Service:
    return Service(passing=0, lasting=0, away=0)


def here() -> Place:
    return Place(local=True, address=None, workers=None)


def run_here(config: GroundTruthConfig) -> TruthReport:
    return run_truth(config, here())


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def presence(call: Call) -> Say:
    """What a model says of a photo that is not clean."""
    ranges = load_config(PROMPTS, PresencePrompts).ranges
    values = {**dict.fromkeys(ranges, 1), "cleanliness_0_5": 2, "watermark": 0}
    return Say(json.dumps({"reason": "grain", **values}), tokens=(900, 120))


def test_a_run_spends_what_the_plan_bounds_and_status_tells_all_of_it(tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", FEW), tmp_path / "out"
    with api_server(faultless(), MODELS, SECRET) as server:
        config = config_of(output, photos, server, budget={"cap_usd": 5.0}, shards={"records_per_shard": 10})
        first = estimate_truth(config)
        assert not output.exists(), "a plan writes nothing"
        assert not first["selection_known"] and first["joining"]["records_most"] == FEW
        assert first["screening"][0] | {"step": "statistics", "measured": 0, "due": FEW} == first["screening"][0]
        assert first["total"]["least_usd"] == 0 and first["total"]["expected_usd"] is None
        screen_sources(config, here())
        before = content(output)
        planned = estimate_truth(config)
        assert content(output) == before and not server.ledger, "nothing is written, nobody is asked"
        assert planned["selection_known"] and planned["history"] is planned["seconds_left"] is None
        counts = {"slots": FEW, "parts": 3, "parts_done": 0, "records_done": 0, "records_left": FEW}
        assert planned["categories"][0] | counts == planned["categories"][0]
        assert planned["total"]["least_usd"] == pytest.approx(FEW * 0.04)
        assert planned["total"]["most_usd"] == first["total"]["most_usd"]
        asked = {row["stage"]: (row["least"], row["most"]) for row in planned["requests"]}
        assert asked == {
            "prompt": (FEW, 2 * FEW),
            "generate": (FEW, ATTEMPTS * FEW),
            "judge": (FEW, 2 * ATTEMPTS * FEW),
        }
        report = run_here(config)
        ledger = list(server.ledger)
    spent = charged_usd(ledger)
    assert planned["total"]["least_usd"] <= spent <= planned["total"]["most_usd"]
    requests = Counter({"writer": "prompt", "painter": "generate"}.get(e.call.model, e.call.model) for e in ledger)
    assert all(least <= requests[stage] <= most for stage, (least, most) in asked.items())

    after = estimate_truth(config)
    assert (after["total"]["least_usd"], after["total"]["expected_usd"], after["total"]["most_usd"]) == (0, 0, 0)
    assert after["requests"] == [] and after["total"]["records_done"] == FEW
    kept = report.fates["kept"]
    assert after["history"]["usd_a_pair"] == pytest.approx(spent / kept) and after["budget"]["enough"]

    told = truth_status(open_storage(str(output)), 5.0)
    assert told["spend"]["usd"] == pytest.approx(spent) and told["spend"]["requests"] == len(ledger)
    assert told["spend"]["room_usd"] == pytest.approx(5.0 - spent)
    assert told["spend"]["unanswered"] == told["spend"]["unpriced"] == 0
    assert {row["stage"]: row["requests"] for row in told["spend"]["by_service"]} == dict(requests)
    assert all(row["outcomes"] == {"answered": row["requests"]} for row in told["spend"]["by_service"])
    assert [(row["phase"], row["requests"]) for row in told["spend"]["by_phase"]] == [("make", len(ledger))]
    assert told["usd_a_pair"] == pytest.approx(spent / kept)
    noise = told["categories"][0]
    assert (noise["planned"], noise["kept"], noise["usd_a_pair"]) == (FEW, kept, pytest.approx(spent / kept))
    assert noise["attempts_a_record"] == pytest.approx(requests["generate"] / FEW)
    assert sum(told["attempts"]["pairs"].values()) == kept and told["attempts"]["complete"]
    assert told["attempts"]["agreement"] == {"agreed": requests["judge"]}


def test_new_sources_are_expected_to_cost_what_the_old_ones_did(tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", FEW), tmp_path / "out"
    with api_server(faultless(), MODELS, SECRET) as server:
        config = config_of(output, photos, server, shards={"records_per_shard": 10})
        run_here(config)
        before = charged_usd(server.ledger)
        for path in write_photos(tmp_path / "more", 2 * FEW).iterdir():
            if not (photos / path.name).exists():
                path.rename(photos / path.name)
        guessed = estimate_truth(config)
        screen_sources(config, here())
        planned = estimate_truth(config)
        run_here(config)
        spent = charged_usd(server.ledger) - before
        storage = open_storage(str(output))
        storage.delete(next(entry.name for entry in storage.list("shards/") if entry.name.endswith(".marker.json")))
        lost, asked = estimate_truth(config), len(server.ledger)
        run_here(config)
        assert len(server.ledger) == asked, "all is in the journal"
    assert lost["total"]["least_usd"] == 0 and lost["total"]["expected_usd"] < 5 * lost["history"]["usd_a_record"]
    assert lost["total"]["records_left"] == 10 and {row["least"] for row in lost["requests"]} == {0}
    assert guessed["joining"]["records_expected"] == FEW and guessed["total"]["records_left"] == 0
    assert planned["total"]["records_left"] == 2 * FEW - 20, "the open tail is made again, four of it from answers"
    for found in (guessed, planned):
        assert found["total"]["least_usd"] <= spent <= found["total"]["most_usd"]
        assert found["total"]["expected_usd"] == pytest.approx(spent, rel=0.4)
        assert found["seconds_left"] > 0 and found["bytes_left"] > 0


def test_a_cap_that_is_too_low_buys_what_was_said(tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", FEW), tmp_path / "out"
    with api_server(faultless(), MODELS, SECRET) as server:
        changes: dict[str, Any] = {"make": {"in_flight": 1}, "shards": {"records_per_shard": 4}}
        config = config_of(output, photos, server, budget={"cap_usd": 0.8}, **changes)
        screen_sources(config, here())
        planned = estimate_truth(config)["budget"]
        assert planned["enough"] is False, "even at the first attempt it is not"
        assert 0 < planned["records_in_room"] < FEW and planned["pairs_in_room"] is None
        run_here(config)
        told = truth_status(open_storage(str(output)), 0.8)
        made = told["records_done"] - told["reasons"]["transient_over_budget"]
        assert planned["records_in_room"] <= made < FEW and told["spend"]["usd"] <= 0.8
        after = estimate_truth(config)
        assert after["budget"]["room_usd"] == pytest.approx(0.8 - charged_usd(server.ledger))
        assert after["budget"]["enough"] is False and after["budget"]["pairs_in_room"] < FEW - made
        spent = charged_usd(server.ledger)
        raised = config_of(output, photos, server, budget={"cap_usd": 50}, **changes)
        due = estimate_truth(raised)
        assert FEW - made <= due["total"]["records_left"] <= FEW - made + 3, "also those that had no room"
        run_here(raised)
        more = charged_usd(server.ledger) - spent
        assert due["total"]["least_usd"] <= more <= due["total"]["most_usd"]
        assert due["total"]["expected_usd"] == pytest.approx(more, rel=0.5)


def test_prices_that_are_not_stated_are_not_known(tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 4), tmp_path / "out"
    with api_server(faultless(), MODELS, SECRET) as server:
        data = config_data(output, photos, server, budget={"cap_usd": None})
        del data["services"]["painter"]["prices"]
        config = GroundTruthConfig.model_validate(data)
        found = estimate_truth(config)
        assert found["unpriced"] == ["painter"] and found["total"]["most_usd"] is None
        assert next(row for row in found["requests"] if row["stage"] == "generate")["reserved_usd"] is None
        run_here(config)
        told = truth_status(open_storage(str(output)))
        assert told["spend"]["unpriced"] > 0 and told["spend"]["cap_usd"] is None
        after = estimate_truth(config)
        assert after["history"]["usd_a_record"] is None and after["total"]["most_usd"] == 0
        said = pairforge(data, ("plan", f"{output}.yaml")).stdout
        assert f"{told['spend']['unpriced']} requests so far had no price" in said


def test_screening_by_a_service_is_part_of_the_plan(tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", FEW), tmp_path / "out"
    service = faultless()

    def script(call: Call) -> Act:
        return presence(call) if call.model == "judge" and len(call.images) == 1 else service(call)

    with api_server(script, MODELS, SECRET) as server:
        rules = [{"measure": "statistics.texture", "least": 0.2, "reason": "content_poor"}]
        screen = [{"scorer": "statistics", "rules": rules}, {"scorer": "vlm", "service": "judge"}]
        config = config_of(output, photos, server, screen=screen)
        planned = estimate_truth(config)
        screen_sources(config, here())
        spent = charged_usd(server.ledger)
        step = planned["screening"][1]
        assert (step["step"], step["due"], step["perhaps"]) == ("vlm", 0, FEW)
        assert 0 < spent <= step["most_usd"] and step["expected_usd"] is None
        told = truth_status(open_storage(str(output)))
        assert told["name"] is None and told["spend"]["usd"] == pytest.approx(spent)
        assert told["spend"]["by_phase"][0]["phase"] == "screen.vlm" and told["categories"] == []
        asked = len(server.ledger)
        assert 0 < asked < FEW, "some photos went no further than statistics"
        after = estimate_truth(config)
        assert [step["measured"] for step in after["screening"]] == [FEW, asked]
        assert after["screening"][1]["most_usd"] == 0 and after["total"]["records_left"] == asked


def test_a_line_without_services_costs_time_alone(tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 8), tmp_path / "out"
    with api_server(Service(), MODELS, SECRET) as server:
        config = config_of(output, photos, server, make=WEIGHTLESS, budget={"cap_usd": 0})
        screen_sources(config, here())
        found = estimate_truth(config)
        assert found["requests"] == [] and found["budget"]["enough"] and found["seconds_left"] is None
        assert (found["total"]["least_usd"], found["total"]["expected_usd"], found["total"]["most_usd"]) == (0, 0, 0)
        run_here(config)
        told = truth_status(open_storage(str(output)))
        assert told["spend"]["requests"] == 0 and told["usd_a_pair"] in (0, None)
        assert told["attempts"]["agreement"].keys() <= {"no_word"}


def test_the_commands(tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 8), tmp_path / "out"
    assert not is_truth(open_storage(str(output)))
    with api_server(faultless(), MODELS, SECRET) as server:
        data, path = config_data(output, photos, server), f"{output}.yaml"
        before = pairforge(data, ("plan", path))
        assert before.returncode == 0, before.stderr
        assert "selection is not known yet" in before.stdout and "at most 8 records join" in before.stdout
        assert "upper bound" in before.stdout and not server.ledger
        run_here(GroundTruthConfig.model_validate(data))
        spent = charged_usd(server.ledger)
        after = pairforge(data, ("plan", path)).stdout
        assert "nothing left to do" in after and "8 committed records" in after
        assert json.loads(pairforge(data, ("plan", path, "--json")).stdout)["total"]["records_done"] == 8
        told = pairforge(data, ("status", path)).stdout
        assert f"spent ${spent:.2f} of $1,000.00" in told and "an accepted pair costs" in told
        without = pairforge(data, ("status", str(output))).stdout
        assert f"spent ${spent:.2f}: make" in without, "the cap is in the config"
        refused = pairforge(data, ("calibrate", path))
        assert refused.returncode == 2 and "costs money" in refused.stderr
        assert SECRET not in before.stdout + after + told + without


def test_an_output_nobody_wrote_to_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        truth_status(open_storage(str(tmp_path / "out")))
