"""Learned models behind the ground-truth line, tiny ones with random weights: what is stored is what they say.

The unit tests of each backend compare it with direct calls of its library; here the line is compared with the backend.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from filters.classifier import TimmClassifier
from filters.clip import ClipZeroShot
from filters.statistics import Statistics
from filters.vlm import ChatScorer
from filters.watermark import Owlv2Watermarks
from filters.weights import weights_hash
from generators.diffusion import DiffusersGenerator
from pairforge.image import Pixels, decode_png, encode_png
from pairforge.journal_log import JOURNAL, Intent, Outcome, Row, read_rows
from pairforge.limits import Patience
from pairforge.records import InfraError, TooManyFailedError
from pairforge.remote import BackendMisconfigured, open_remote
from pairforge.snapshot import open_snapshot
from pairforge.storage import open_storage
from pipelines import cli, console
from pipelines.bases import normalise
from pipelines.catalog import Catalog
from pipelines.ground_truth import screen
from pipelines.ground_truth.backends import screen_address
from pipelines.ground_truth.run import run_truth, screen_sources
from pipelines.ground_truth.screen import SCREEN, Measured, chunks, read_measured
from pipelines.ground_truth.settings import GroundTruthConfig, VlmScreen
from pipelines.models import pin_of
from pipelines.verification import replay_snapshot
from tests.api_server import Act, ApiServer, Call, Fail, Say, api_server
from tests.filters.tiny_models import tiny_clip, tiny_owlv2, tiny_timm
from tests.generators.tiny_pipelines import tiny_kontext
from tests.pairforge.test_local_chat import folder as qwen3vl  # noqa: F401 - a fixture
from tests.pipelines.test_ground_truth import hashes, phase, standings
from tests.pipelines.truth_photos import SessionPlace, here, truth_config, write_photos

torch = pytest.importorskip("torch")
for name in ("open_clip", "timm", "transformers", "diffusers"):
    pytest.importorskip(name)

ROOT = Path(__file__).parent.parent.parent
SIDE = 96
LABELS = ("fine", "poor", "odd")
WRONG = "0123456789abcdef"
LENIENT = {"least_score": 0, "least_by_aspect": {}}
NO_DUPLICATES: dict[str, Any] = {"duplicates": {"most_bits": None}, "categories": [{"name": "noise"}]}
QUICK = {"engine": {"max_attempts": 2, "backoff_s": [0.01, 0.01]}}
SMALL = {"most_pixels": 96 * 96, "least_pixels": 64 * 64, "num_inference_steps": 1}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Models:
    """Folders of models by what they are for, and the hashes that configs pin them by."""

    folders: dict[str, str]
    weights: dict[str, str]

    def of(self, name: str) -> dict[str, str]:
        return {"model": self.folders[name], "weights": self.weights[name]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, qwen3vl: Path) -> Models:  # noqa: F811
    root = tmp_path_factory.mktemp("models")
    tiny_clip(root / "clip")
    tiny_owlv2(root / "watermark")
    tiny_timm(root / "classifier", LABELS)
    tiny_kontext(root / "generator")
    shutil.copytree(qwen3vl, root / "vlm")
    said = root / "vlm" / "generation_config.json"  # every token ends an answer, else noise goes on to the limit
    said.write_text(json.dumps({**json.loads(said.read_text()), "eos_token_id": list(range(300))}))
    folders = {folder.name: str(folder) for folder in sorted(root.iterdir())}
    pinned = {name: pin_of(name, root / name) for name in ("clip", "watermark", "generator", "vlm")}
    return Models(folders, {**pinned, "classifier": weights_hash(root / "classifier")})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, Pixels]) -> Path:
    return write_photos(tmp_path_factory.mktemp("truth"), photos, 1)


def screens(models: Models) -> list[dict[str, Any]]:
    rule = {"measure": "statistics.texture", "least": 0, "reason": "content_poor"}
    return [
        {"scorer": "statistics", "rules": [rule]},
        {"scorer": "clip", **models.of("clip"), "rules": [{"measure": "clip.haze", "least": 0, "reason": "no"}]},
        {"scorer": "watermark", **models.of("watermark")},
        {"scorer": "classifier", **models.of("classifier")},
    ]


def making(models: Models, **changes: Any) -> dict[str, Any]:
    generator = {"backend": "diffusers", **models.of("generator"), "device": "cpu", "dtype": "float32"}
    return {
        "generator": {**generator, "options": SMALL},
        "judge": {"backend": "metric"},
        "checks": {"alignment": None, "gain": None},
        "verdict": LENIENT,
        "in_flight": 2,
        **changes,
    }


def config_of(output: Path, folder: Path, models: Models, **changes: Any) -> GroundTruthConfig:
    """All scorers and a generator that are models; `changes` replace top-level keys."""
    data: dict[str, Any] = {
        "base": {"policy": "resize_crop", "size_px": SIDE, "small": "refuse"},
        "screen": screens(models),
        "make": making(models),
    }
    return truth_config(output, folder, **{**data, **changes})


def weightless(output: Path, folder: Path, **changes: Any) -> GroundTruthConfig:
    base = {"policy": "resize_crop", "size_px": SIDE, "small": "refuse"}
    return truth_config(output, folder, **{"base": base, **changes})


def measured(config: GroundTruthConfig, name: str) -> dict[str, Measured]:
    """What is stored of a step, by source."""
    storage = open_storage(config.output)
    step = next(step for step in config.screen if step.name == name)
    address = screen_address(step, config.services, config.base)
    found = [read_measured(storage, address, chunk.number) for chunk in chunks(Catalog(storage), config.base)]
    return {source_id: each for part in found for source_id, each in part.items()}


def cut(config: GroundTruthConfig) -> dict[str, Pixels]:
    """The pixels of every source, as the small photos of these tests are cut: by a reader and resizer of their own."""
    from pipelines.bases import normalise

    found = {}
    for chunk in chunks(Catalog(open_storage(config.output)), config.base):
        for row in chunk.rows:
            pixels = cv2.cvtColor(cv2.imread(row.uri), cv2.COLOR_BGR2RGB)
            found[row.source_id] = normalise(pixels, config.base)[0]
    return found


def samples(config: GroundTruthConfig) -> list[dict[str, Any]]:
    return list(open_snapshot(config.output).dataset(split_shards=False))


def journal_rows(output: str) -> list[Row]:
    """All rows of all partitions."""
    storage = open_storage(output)
    names = {entry.name.removeprefix(JOURNAL).rpartition("/")[0] for entry in storage.list(JOURNAL)}
    return [row for name in sorted(names) for row in read_rows(storage, name)]


def intents(output: str) -> Counter[tuple[str, str]]:
    """Questions that were asked, by key and stage of their address."""
    rows = (row for row in journal_rows(output) if isinstance(row, Intent))
    return Counter((row.address.key, row.address.stage) for row in rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, folder: Path, models: Models) -> GroundTruthConfig:
    """One undisturbed run in this process."""
    config = config_of(tmp_path_factory.mktemp("made") / "out", folder, models)
    report = run_truth(config, here())
    assert report.fates == {"kept": 12, "rejected": 0, "failed": 0}
    return config


def test_stored_values_are_those_of_direct_calls(made: GroundTruthConfig, models: Models) -> None:
    pixels = cut(made)
    direct: dict[str, Any] = {
        "statistics": Statistics(),
        "clip": ClipZeroShot(models.folders["clip"]),
        "watermark": Owlv2Watermarks(models.folders["watermark"]),
        "classifier": TimmClassifier(models.folders["classifier"]),
    }
    for name, scorer in direct.items():
        stored = measured(made, name)
        assert stored.keys() == pixels.keys() and len(stored) == 16
        for source_id, own in pixels.items():
            values = dict(stored[source_id].values)
            values.pop("hash", None)
            if name == "clip":  # asked for sixteen at once, which may round otherwise
                assert np.allclose(np.array(values.pop("embedding")), scorer.embed([own])[0], atol=1e-6)
                assert values == pytest.approx(scorer.measure(own), abs=1e-6)
            else:
                assert values == pytest.approx(scorer.measure(own), rel=1e-12)
    assert len({each.values["fine"] for each in measured(made, "classifier").values()}) == 16


def test_pairs_are_those_of_direct_calls_and_are_made_again_from_the_journal(
    made: GroundTruthConfig, models: Models
) -> None:
    generator = DiffusersGenerator(models.folders["generator"], SMALL, "cpu", "float32")
    pairs = samples(made)
    assert len(pairs) == 12
    for sample in pairs:
        told = sample["json"]["generation"]
        attempt = told["attempts"][0]
        own = generator.generate(sample["lq"], attempt["instruction"], attempt["seed"])
        assert np.array_equal(own.pixels, sample["hq"])
        assert told["generator"] == "diffusers" and told["revision"].startswith(generator.revision)
        assert sample["json"]["filters"]["clip.haze"] > 0
    assert len({sample["json"]["generation"]["attempts"][0]["seed"] for sample in pairs}) == 12
    replayed = replay_snapshot(open_snapshot(made.output), None, 0, 1)
    assert replayed.replayed == 12 and replayed.problems == ()
    assert intents(made.output).total() == 12 and {stage for _, stage in intents(made.output)} == {"generate"}


def test_a_second_run_loads_no_model(made: GroundTruthConfig, folder: Path, models: Models) -> None:
    gone = Models(dict.fromkeys(models.folders, "/gone"), models.weights)
    config = config_of(Path(made.output), folder, gone)
    report = run_truth(config, here())
    assert report.parts_made == 0 and report.fates["kept"] == 12


def test_duplicates_by_content_are_the_later_of_each_pair_that_is_near(
    made: GroundTruthConfig, folder: Path, models: Models, tmp_path: Path
) -> None:
    embeddings = {i: np.array(each.values["embedding"]) for i, each in measured(made, "clip").items()}
    rows = [row for chunk in chunks(Catalog(open_storage(made.output)), made.base) for row in chunk.rows]
    order = [row.source_id for row in rows if "/clean/" not in row.uri]  # of no category, so compared with nothing
    near = sorted(float(embeddings[a] @ embeddings[b]) for a in order for b in order if a < b)
    least = (near[-4] + near[-5]) / 2  # four pairs are nearer
    refused: set[str] = set()
    for place, later in enumerate(order):
        if any(float(embeddings[later] @ embeddings[first]) >= least for first in order[:place]):
            refused.add(later)
    shutil.copytree(made.output, tmp_path / "out")
    categories = [category.model_dump() for category in made.select.categories]
    select = {"duplicates": {"most_bits": None, "least_cosine": least}, "categories": categories}
    config = config_of(tmp_path / "out", folder, models, select=select)
    screen_sources(config, here())
    told = {each["source_id"]: each for each in standings(tmp_path / "out").values()}
    assert {i for i, each in told.items() if each["reason"] == "same_content"} == refused
    assert refused and all(told[i]["phase"] == "duplicate" for i in refused)


def test_what_shows_a_held_out_picture_is_refused_by_its_embedding(
    made: GroundTruthConfig, folder: Path, models: Models, tmp_path: Path
) -> None:
    embeddings = {i: np.array(each.values["embedding"]) for i, each in measured(made, "clip").items()}
    benchmark = tmp_path / "benchmark"
    benchmark.mkdir()
    picture = cv2.imread(str(folder / "haze" / "coffee_0.png"))
    assert picture is not None and cv2.imwrite(str(benchmark / "bench.png"), picture[:, ::-1])
    shutil.copytree(made.output, tmp_path / "out")
    base = made.base.model_copy(update={"small": "keep"})
    pixels, _, _ = normalise(np.ascontiguousarray(picture[:, ::-1, ::-1]), base)
    held = ClipZeroShot(models.folders["clip"]).embed([pixels])[0]
    near = sorted(float(own @ held) for own in embeddings.values())
    least = (near[-3] + near[-4]) / 2
    select = made.select.model_dump() | {
        "duplicates": {"most_bits": None},
        "held_out": [{"name": "bench", "url": str(benchmark)}],
        "held_out_bits": 0,
        "held_out_cosine": least,
    }
    screen_sources(config_of(tmp_path / "out", folder, models, select=select), here())
    told = {each["source_id"]: each for each in standings(tmp_path / "out").values() if "/clean/" not in each["uri"]}
    wanted = {i for i in told if float(embeddings[i] @ held) >= least}
    refused = {i: each["detail"] for i, each in told.items() if each["reason"] == "held_out_bench"}
    by_hash = {i for i, detail in refused.items() if detail.startswith("0 bits")}  # its mirror image is a source
    assert set(refused) == wanted | by_hash and wanted - by_hash


@pytest.mark.parametrize("name", ["clip", "watermark", "classifier", "generator", "vlm"])
def test_other_weights_are_refused_and_the_right_ones_named(
    folder: Path, models: Models, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Models(models.folders, {**models.weights, name: WRONG})
    judge = {"backend": "transformers", **wrong.of("vlm"), "device": "cpu"}
    config = config_of(tmp_path / "out", folder, wrong, make=making(wrong, judge=judge))
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    code = console.guarded(lambda: cli.app(["run", str(path), "--local"], "pairforge"))
    said = " ".join(capsys.readouterr().err.split())
    assert code == console.USAGE, said
    assert f"weights are {models.weights[name]}, not {WRONG}" in said and models.folders[name] in said
    assert not intents(config.output) and not hashes(config.output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/no/such/folder"}, "no folder of a model at /no/such/folder"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used here"),
        ({"labels": ["one", "two"]}, "2 labels"),
        ({"labels": ["one", "two", "detail"]}, "a measure may not be called detail"),
    ],
)
def test_a_model_that_cannot_be_loaded_stops_the_run(
    folder: Path, models: Models, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    steps = [{"scorer": "statistics"}, {"scorer": "classifier", **models.of("classifier"), **changes}]
    with pytest.raises(BackendMisconfigured, match=message):
        run_truth(weightless(tmp_path / "out", folder, screen=steps), here())


def test_a_model_that_judges_noise_leaves_records_due(folder: Path, models: Models, tmp_path: Path) -> None:
    judge = {"backend": "transformers", **models.of("vlm"), "device": "cpu"}
    make = making(models, judge=judge)
    select = truth_config(tmp_path, folder).select.model_dump()
    select["categories"] = select["categories"][:1]
    config = config_of(tmp_path / "out", folder, models, screen=screens(models)[:1], make=make, select=select)
    with pytest.raises(TooManyFailedError, match=r"4 of 4 records failed, .*reasons: 4 transient_unscored"):
        run_truth(config, here())
    asked = intents(config.output)
    assert {stage: count for (_, stage), count in asked.items()} == {"generate": 1, "judge.1": 2}
    answers = {row.text for row in journal_rows(config.output) if isinstance(row, Outcome) and row.mime == "text/plain"}
    assert answers, "what the model said is kept, though it could not be read"
    for _ in range(5):
        with pytest.raises(TooManyFailedError, match="4 transient_unscored"):
            run_truth(config, here())
    told = "so often, and not for ever"
    assert {stage: count for (_, stage), count in intents(config.output).items()} == {"generate": 1, "judge.1": 8}, told
    kept = run_truth(config_of(tmp_path / "out", folder, models, screen=screens(models)[:1], select=select), here())
    assert kept.fates == {"kept": 4, "rejected": 0, "failed": 0}
    assert {stage: count for (_, stage), count in intents(config.output).items()} == {"generate": 1, "judge.1": 8}


class Interrupted(Exception):
    """Not of the kinds that a run knows."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often the generator `made` a picture; beyond `most` of them it `broke` off."""
    found: Counter[str] = Counter(most=1000)
    whole = DiffusersGenerator.generate

    def generate(self: DiffusersGenerator, lq: Pixels, instruction: str, seed: int) -> Any:
        if found["made"] == found["most"]:
            found["broke"] += 1
            raise Interrupted
        found["made"] += 1
        return whole(self, lq, instruction, seed)

    monkeypatch.setattr(DiffusersGenerator, "generate", generate)
    return found


def test_a_run_that_was_broken_off_computes_only_what_is_missing(
    made: GroundTruthConfig, folder: Path, models: Models, tmp_path: Path, calls: Counter[str]
) -> None:
    config = config_of(tmp_path / "out", folder, models)
    for most in (2, 6):
        calls["most"] = most
        with pytest.raises(Exception, match="Interrupted"):
            run_truth(config, here())
        assert calls["made"] == most
    calls["most"] = 1000
    assert run_truth(config, here()).fates["kept"] == 12
    assert calls["made"] == 12 and intents(config.output).total() == 12 + calls["broke"]
    assert hashes(config.output) == hashes(made.output)


@pytest.mark.slow
def test_a_run_that_was_killed_computes_only_what_is_missing(
    made: GroundTruthConfig,
    folder: Path,
    models: Models,
    tmp_path: Path,
    calls: Counter[str],
) -> None:
    config = config_of(tmp_path / "out", folder, models)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    # Computed, and not yet written down.
    environment = {**os.environ, "PAIRFORGE_FAILPOINT": "after-request:8", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path), "--local"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    answered = sum(isinstance(row, Outcome) for row in journal_rows(config.output))
    assert 6 <= answered <= 7
    run_truth(config, here())
    assert calls["made"] == 12 - answered and hashes(config.output) == hashes(made.output)


def test_a_broken_off_screening_measures_only_what_is_missing(
    made: GroundTruthConfig, folder: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "out", folder, models)
    seen: Counter[str] = Counter()
    whole = ClipZeroShot.embed

    def embed(self: ClipZeroShot, pictures: Any) -> Any:
        seen["clip"] += len(pictures)
        return whole(self, pictures)

    monkeypatch.setattr(ClipZeroShot, "embed", embed)
    with monkeypatch.context() as patch:
        patch.setattr(Owlv2Watermarks, "measure", lambda self, pixels: 1 / 0)
        with pytest.raises(Exception, match="ZeroDivisionError"):
            screen_sources(config, here())
    assert seen["clip"] == 16
    screen_sources(config, here())
    assert seen["clip"] == 16
    for name in ("clip", "watermark", "classifier"):
        assert measured(config, name) == measured(made, name)


def test_numbers_that_are_none_refuse_a_source_and_not_the_run(
    folder: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TimmClassifier.measure

    def measure(self: TimmClassifier, pixels: Pixels) -> Any:
        return {**whole(self, pixels), **({"poor": float("nan")} if pixels.mean() < 40 else {})}

    monkeypatch.setattr(TimmClassifier, "measure", measure)
    rule = {"measure": "classifier.poor", "least": 0, "reason": "no"}
    steps = [{"scorer": "statistics"}, {"scorer": "classifier", **models.of("classifier"), "rules": [rule]}]
    told = screen_sources(weightless(tmp_path / "out", folder, screen=steps), here())
    reasons = phase(told, "screen_classifier")["reasons"]
    assert reasons.keys() == {"unmeasured_not_finite"} and reasons["unmeasured_not_finite"] >= 4


@pytest.mark.parametrize("scorer", ["statistics", "classifier"])
def test_sources_that_cannot_be_reached_are_no_bug(
    folder: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorer: str
) -> None:
    def unreachable(*_: Any) -> Pixels:
        raise OSError("the share is away")

    monkeypatch.setattr(screen, "cut_source", unreachable)
    own = models.of(scorer) if scorer in models.folders else {}
    config = weightless(tmp_path / "out", folder, screen=[{"scorer": scorer, **own}], select=NO_DUPLICATES, run=QUICK)
    with pytest.raises(InfraError, match=r"while reading .*png: the share is away \(2 attempts\)"):
        run_truth(config, here())


def test_steps_of_screening_fit_on_one_core(folder: Path, models: Models, tmp_path: Path) -> None:
    stages = screen.screen_stages(config_of(tmp_path, folder, models))
    assert 0.9 < sum(stage.resources.cpus for stage in stages) <= 1


@pytest.mark.usefixtures("ray_session")
class TestRay:
    @pytest.mark.slow
    def test_pools_of_actors_give_the_same_bytes(self, folder: Path, models: Models, tmp_path: Path) -> None:
        shares = {name: {"cpus": 0.5} for name in ("screen_statistics", "screen_clip", "make")}
        run = {"pools": {"screen_clip": {"prefetch": 0}, "make": {"prefetch": 0}}, "stages": shares}
        changes: dict[str, Any] = {"screen": screens(models)[:2], "run": run}
        local = config_of(tmp_path / "here", folder, models, **changes)
        run_truth(local, here())
        ray = config_of(tmp_path / "ray", folder, models, **changes)
        assert run_truth(ray, SessionPlace()).fates["kept"] == 12
        assert hashes(ray.output) == hashes(local.output)
        assert measured(ray, "clip") == measured(local, "clip")

    @pytest.mark.slow
    def test_four_steps_share_two_cores(
        self, made: GroundTruthConfig, folder: Path, models: Models, tmp_path: Path
    ) -> None:
        pools = {"make": {"min_actors": 2, "max_actors": 2}}
        config = config_of(tmp_path / "out", folder, models, run={"pools": pools})
        assert run_truth(config, SessionPlace()).fates["kept"] == 12
        assert hashes(config.output) == hashes(made.output)

    def test_other_weights_are_refused_by_actors_too(self, folder: Path, models: Models, tmp_path: Path) -> None:
        wrong = Models(models.folders, {**models.weights, "clip": WRONG})
        steps = screens(wrong)[:2]
        with pytest.raises(BackendMisconfigured, match=f"weights are {models.weights['clip']}, not {WRONG}"):
            run_truth(config_of(tmp_path / "out", folder, wrong, screen=steps), SessionPlace())

    def test_a_judge_of_other_weights_is_refused_too(self, folder: Path, models: Models, tmp_path: Path) -> None:
        wrong = {"backend": "transformers", "model": models.folders["vlm"], "weights": WRONG, "device": "cpu"}
        make = making(models, judge=wrong)
        config = config_of(tmp_path / "out", folder, models, screen=screens(models)[:1], make=make)
        with pytest.raises(BackendMisconfigured, match=f"weights are {models.weights['vlm']}, not {WRONG}"):
            run_truth(config, SessionPlace())


def test_sources_that_are_cut_otherwise_are_measured_anew(folder: Path, tmp_path: Path) -> None:
    config = weightless(tmp_path / "out", folder)
    screen_sources(config, here())
    before = measured(config, "statistics")
    other = weightless(tmp_path / "out", folder, base={"policy": "resize_crop", "size_px": 64, "small": "refuse"})
    screen_sources(other, here())
    assert measured(other, "statistics") != before


@pytest.mark.parametrize("where", ["stages", "pools"])
def test_a_stage_that_is_none_of_the_line_is_refused(folder: Path, models: Models, tmp_path: Path, where: str) -> None:
    with pytest.raises(ValueError, match="stage 'screen_klip' is unknown; did you mean 'screen_clip'"):
        config_of(tmp_path / "out", folder, models, run={where: {"screen_klip": {}}})


@dataclass
class Eyes:
    """A service that looks at photos. `fates` by the name of a photo; all others are answered with its own numbers."""

    fates: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    def __call__(self, call: Call) -> Act:
        name = self.names[encode_png(decode_png(call.images[0])).hex()]
        self.asked[name] += 1
        match self.fates.get(name, ""):
            case "malformed":
                return Say("Sure! Here it is: {}")
            case "late" if self.asked[name] == 1:
                return Say('{"reason": "cut')
            case "quota":
                return Fail(429)
            case "unavailable":
                return Fail(503)
        return Say(json.dumps(self.answer(name)))

    def answer(self, name: str) -> dict[str, Any]:
        ranges = VlmScreen(scorer="vlm", service="x").measures() or ()
        place = list(self.names.values()).index(name)
        return {"reason": "seen", **{m: (place % 6 if m.endswith("_0_5") else 0) for m in ranges}}


def seeing(output: Path, folder: Path, server: ApiServer, cap_usd: float = 10, **changes: Any) -> GroundTruthConfig:
    service = {
        "backend": "openai_chat",
        "model": "tiny",
        "base_url": server.openai_url,
        "prices": {"usd_per_1m_input_tokens": 100, "usd_per_1m_output_tokens": 100},
        "limits": {"quota_pause_s": 0.01, "max_pause_s": 0.01, "breaker_open_s": 0.01},
        "patience": Patience(backoff_s=0.01, max_backoff_s=0.01, max_requests=2).model_dump(),
    }
    return weightless(
        output,
        folder,
        services={"eyes": service},
        screen=[{"scorer": "statistics"}, {"scorer": "vlm", "service": "eyes"}],
        budget={"cap_usd": cap_usd},
        make={
            "generator": {"backend": "classical"},
            "judge": {"backend": "metric"},
            "checks": {"alignment": None, "gain": None},
            "verdict": LENIENT,
            "in_flight": 1,
        },
        **changes,
    )


@pytest.fixture
def eyes(folder: Path, tmp_path: Path) -> Eyes:
    """Knows the photos by the pictures that it will be sent."""
    config = weightless(tmp_path / "names", folder)
    Catalog(open_storage(config.output)).scan(config)
    rows = [row for chunk in chunks(Catalog(open_storage(config.output)), config.base) for row in chunk.rows]
    pixels = cut(config)
    names = {row.source_id: f"{Path(row.uri).stem}/{Path(row.uri).parent.name}" for row in rows}
    return Eyes(names={encode_png(pixels[i]).hex(): name for i, name in names.items()})


@pytest.fixture
def service(eyes: Eyes) -> Iterator[ApiServer]:
    with api_server(eyes) as server:
        yield server


def test_what_a_service_sees_is_stored_and_trouble_that_passes_is_due(
    eyes: Eyes, service: ApiServer, folder: Path, tmp_path: Path
) -> None:
    eyes.fates = {
        "coffee_0/haze": "malformed",
        "rocket_0/haze": "late",
        "coffee_0/noise": "quota",
        "chelsea_0/noise": "unavailable",
    }
    config = seeing(tmp_path / "out", folder, service)
    first = run_truth(config, here())
    reasons = phase(first.funnel, "screen_vlm")["reasons"]
    assert reasons == {"unmeasured_malformed": 1, "not_measured": 2}
    assert first.unmeasured == 2 and first.flawed and first.fates == {"kept": 9, "rejected": 0, "failed": 0}
    told = standings(tmp_path / "out")
    assert told["coffee_0/haze"]["reason"] == "unmeasured_malformed"
    assert told["coffee_0/noise"]["reason"] == told["chelsea_0/noise"]["reason"] == "not_measured"
    stored = measured(config, "vlm")
    for name, each in told.items():
        own = stored.get(each["source_id"])
        if eyes.fates.get(name) in ("quota", "unavailable"):
            assert own is None
        elif eyes.fates.get(name) == "malformed":
            assert own is not None and (own.trouble, own.values) == ("malformed", {})
        else:
            wanted = {m: v for m, v in eyes.answer(name).items() if m != "reason"}
            assert own is not None and own.values == wanted
    assert eyes.asked["coffee_0/haze"] == eyes.asked["rocket_0/haze"] == 2
    assert eyes.asked["coffee_0/noise"] == eyes.asked["chelsea_0/noise"] == 2, "patience is two requests"
    direct = ChatScorer(open_remote(config.services["eyes"])).measure(
        next(decode_png(bytes.fromhex(png)) for png, name in eyes.names.items() if name == "rocket_0/low_light")
    )
    assert stored[told["rocket_0/low_light"]["source_id"]].values == direct

    eyes.fates, before = {}, Counter(eyes.asked)
    second = run_truth(config, here())
    assert eyes.asked - before == {"coffee_0/noise": 1, "chelsea_0/noise": 1}
    assert second.unmeasured == 0 and second.fates["kept"] == 11 and not second.flawed
    assert standings(tmp_path / "out")["coffee_0/haze"]["reason"] == "unmeasured_malformed"


def test_answers_in_the_journal_are_not_bought_again(
    eyes: Eyes, service: ApiServer, folder: Path, tmp_path: Path
) -> None:
    eyes.fates = {"coffee_0/haze": "malformed"}
    config = seeing(tmp_path / "out", folder, service)
    screen_sources(config, here())
    stored, asked = measured(config, "vlm"), eyes.asked.total()
    assert asked == 17
    address = screen_address(config.screen[1], config.services, config.base)
    shutil.rmtree(Path(config.output) / SCREEN / address)  # as if the run had died before it could store them
    screen_sources(config, here())
    assert eyes.asked.total() == asked and measured(config, "vlm") == stored


def test_a_budget_that_ends_while_screening_leaves_sources_due(
    eyes: Eyes, service: ApiServer, folder: Path, tmp_path: Path
) -> None:
    config = seeing(tmp_path / "out", folder, service)
    remote = open_remote(config.services["eyes"])
    reserved = remote.reserve_usd(ChatScorer(remote).request(np.zeros((SIDE, SIDE, 3), np.uint8)))
    assert reserved is not None
    costs = (100 + 20) * 100 / 1e6
    tight = seeing(tmp_path / "out", folder, service, cap_usd=reserved + 6.5 * costs)
    report = run_truth(tight, here())
    assert eyes.asked.total() == 7 and report.usd == pytest.approx(7 * costs)
    assert report.unmeasured == 9 and report.flawed and len(measured(tight, "vlm")) == 7
    assert run_truth(tight, here()).usd == report.usd and eyes.asked.total() == 7
    whole = run_truth(config, here())
    assert eyes.asked.total() == 16 and whole.unmeasured == 0 and whole.fates["kept"] == 12

    penniless = seeing(tmp_path / "none", folder, service, cap_usd=reserved / 2)
    with pytest.raises(TooManyFailedError, match="budget"):
        run_truth(penniless, here())
    assert eyes.asked.total() == 16


def test_a_screening_service_that_joins_later_finds_no_journal_missing(
    eyes: Eyes, service: ApiServer, folder: Path, tmp_path: Path
) -> None:
    """Pairs of code alone have no journal; that sources are now looked at by a model changes nothing about them."""
    seen = seeing(tmp_path / "out", folder, service)
    alone = seen.model_copy(update={"services": {}, "screen": seen.screen[:1]})
    before = run_truth(alone, here())
    assert before.fates["kept"] > 0 and not list((tmp_path / "out").glob("journal/make-*"))
    report = run_truth(seen, here())
    assert eyes.asked.total() > 0 and report.parts_made == 0 and report.fates == before.fates


def test_a_step_without_rules_keeps_what_it_could_not_measure_from_the_next(
    eyes: Eyes, service: ApiServer, folder: Path, tmp_path: Path
) -> None:
    eyes.fates = {"coffee_0/haze": "malformed", "coffee_0/noise": "quota"}
    config = seeing(tmp_path / "out", folder, service)
    steps = [*config.screen, config.screen[1].model_copy(update={"name": "second"})]
    config = config.model_copy(update={"screen": tuple(steps)})
    screen_sources(config, here())
    assert len(measured(config, "vlm")) == 15 and len(measured(config, "second")) == 14


def test_restore_assess_repeat_in_the_line(folder: Path, tmp_path: Path) -> None:
    make = {
        "generator": {"backend": "classical"},
        "repeat": {"max_rounds": 2},
        "judge": {"backend": "metric"},
        "checks": {"alignment": None, "gain": {"least_gain": -10}},
        "verdict": LENIENT,
    }
    config = weightless(tmp_path / "out", folder, make=make, screen=[{"scorer": "statistics"}])
    report = run_truth(config, here())
    assert report.fates["kept"] == 12
    told = [sample["json"]["generation"] for sample in samples(config)]
    assert {each["generator"] for each in told} == {"restore_assess_repeat-classical"}
    assert all(each["revision"].startswith("1-") and each["revision"].endswith("symptoms-gain-2") for each in told)
    replayed = replay_snapshot(open_snapshot(config.output), None, 0, 1)
    assert replayed.replayed == 12 and replayed.problems == ()
    assert any(np.abs(sample["lq"].astype(int) - sample["hq"]).mean() > 1 for sample in samples(config))


def test_restore_assess_repeat_around_a_model_is_made_again_too(folder: Path, models: Models, tmp_path: Path) -> None:
    """At a size that is none of the model's, so that an answer has to be laid over its input."""
    own = making(models)["generator"]
    generator = {**own, "options": {**SMALL, "most_pixels": 256**2}}
    checks = {"alignment": None, "gain": {"least_gain": -10}}
    make = making(models, generator=generator, repeat={"max_rounds": 2}, checks=checks)
    base = {"policy": "keep", "small": "keep", "size_px": 200}
    config = config_of(tmp_path / "out", folder, models, screen=screens(models)[:1], make=make, base=base)
    report = run_truth(config, here())
    assert report.fates["kept"] == 12
    replayed = replay_snapshot(open_snapshot(config.output), None, 0, 1)
    assert replayed.replayed == 12 and replayed.problems == ()


@pytest.mark.parametrize("preset", ["default", "ggt100k"])
def test_the_third_attempt_repeats_the_second_instruction_where_the_preset_says_so(
    folder: Path, models: Models, tmp_path: Path, preset: str
) -> None:
    make = making(models, preset=preset, verdict={"least_score": 100})
    select = truth_config(tmp_path, folder).select.model_dump()
    select["categories"] = select["categories"][2:]
    config = config_of(tmp_path / "out", folder, models, screen=screens(models)[:1], make=make, select=select)
    report = run_truth(config, here())
    assert report.fates["rejected"] == 4
    rows = open_snapshot(config.output).rows(["generation"]).to_pylist()
    for row in rows:
        attempts = json.loads(row["generation"])["attempts"]
        told = [attempt["instruction"] for attempt in attempts]
        assert len(attempts) == (3 if preset == "ggt100k" else 4)
        assert len({attempt["seed"] for attempt in attempts}) == len(attempts)
        assert told[1] != told[0] and (preset == "default" or told[2] == told[1])
    assert intents(config.output).total() == 4 * (3 if preset == "ggt100k" else 4)
