"""The third phase: one part of selected sources becomes one shard.

Records of a part wait for their services side by side, each in a thread of its own. What a service, or a model on
this machine, has answered is in the journal before it is used, so a part that is made again asks for what is missing.
"""

import hashlib
import platform
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from filters.vlm import ChatScorer
from generators.classical import chosen_by_symptoms
from generators.loop import LoopResult
from generators.repeat import RestoreAssessRepeat
from generators.returned import SizeRule, fit_candidate
from generators.symptoms import measure_symptoms
from pairforge.config import canonical_json
from pairforge.image import Pixels, decode_png, encode_png, prepare_worker
from pairforge.journal import Partition
from pairforge.journal_spend import seal
from pairforge.protocols import BackendError, Candidate, Generator, Usage
from pairforge.records import DamagedError, Fate, GeneratedSample, Generation, InfraError, SampleError, parse_stored
from pairforge.shards import Marker, ShardWriter
from pairforge.storage import Storage, open_storage
from pipelines.bases import Base, load_base, source_ref
from pipelines.ground_truth.backends import Backends
from pipelines.ground_truth.plan import LINE, MakeSettings, SelectedRecord, TruthPart, read_values
from pipelines.ground_truth.services import Shared
from pipelines.ground_truth.trial import Desk, NoPromptError, Trial
from pipelines.stages import Stage
from pipelines.synthesis import pixel_versions, read_asset
from pipelines.telemetry import bound, bound_ids, note
from qc.comparison import ChatComparison
from qc.gain import GainRule, measure_gain, measure_quality


@dataclass(frozen=True)
class _Made:
    """What became of one record: its row, and its files where it was kept."""

    row: Mapping[str, Any]
    files: Mapping[str, bytes]


class TruthMaker:
    """The function of the stage; models are loaded here once."""

    def __init__(self, settings: MakeSettings, output: str, shared: Shared) -> None:
        make = settings.make
        self._settings = settings
        self._storage = open_storage(output)
        self._backends = Backends(settings.services, shared)
        self._writer = self._backends.client(make.prompts.writer) if make.prompts.writer else None
        self._journaled = make.asks_models

    def __call__(self, part: TruthPart) -> Marker:
        """Make every record and commit the shard. Any exception leaves the journal, and nothing else."""
        started = time.time()
        partition = Partition(self._storage, part.partition) if self._journaled else None
        fallback = self._settings.make.fallback
        desk = Desk(
            make=self._settings.make,
            seed=self._settings.seed,
            category=part.category,
            partition=partition,
            generator=self._generator(part.category),
            fallback=self._backends.generator(fallback, part.category) if fallback else None,
            judge=self._backends.judge(self._settings.make.judge, self._settings.make.checks.gain),
            writer=self._writer,
        )
        ids = bound_ids()

        def one(record: SelectedRecord) -> _Made:
            prepare_worker()
            with bound(ids):
                return self._make(desk, part, record)

        with ThreadPoolExecutor(self._settings.make.in_flight if self._journaled else 1) as pool:
            made = list(pool.map(one, part.records))
        with ShardWriter(self._storage, part.shard, part.split) as writer:
            for each in made:
                writer.add(each.row, each.files)
            marker = writer.commit(
                {"host": platform.node(), "started": round(started, 3), "seconds": round(time.time() - started, 3)}
            )
        if partition is not None:
            seal(self._storage, part.partition)
        return marker

    def _generator(self, category: str) -> Generator:
        make = self._settings.make
        generator = self._backends.generator(make.generator, category)
        if make.repeat is None:
            return generator
        if make.repeat.service is None:
            better = partial(_is_better, make.checks.gain or GainRule())
            return RestoreAssessRepeat(generator, _assess, better, "symptoms-gain", make.repeat.max_rounds)
        client = self._backends.client(make.repeat.service)
        scorer, compare = ChatScorer(client), ChatComparison(client)
        revision = f"{scorer.revision}-{compare.revision}"
        return RestoreAssessRepeat(generator, partial(_seen, scorer), compare, revision, make.repeat.max_rounds)

    def _make(self, desk: Desk, part: TruthPart, record: SelectedRecord) -> _Made:
        row = _row(part, record)
        try:
            base = load_base(self._storage, record.source, self._settings.bases[part.category], self._settings.folder)
            trial = Trial(desk, record, base)
            result, prompt = trial.run()
        except SampleError as refusal:
            return _ended(row, refusal.fate, refusal.reason, refusal.detail)
        except NoPromptError as error:
            return _ended(row, *trial.fate_without_prompt(error.cause), f"prompt: {error.cause.detail}")
        except (OSError, DamagedError) as fault:
            raise InfraError(f"while making record {record.key}: {fault}") from fault
        except Exception as bug:
            bug.add_note(f"while making record {record.key} of {part.shard.stem}")
            raise
        generation = trial.generation(result, prompt)
        if generation.reply is not None and result.candidate is not None:
            self._storage.put_if_absent(generation.reply.name, result.candidate.data)
        fate, reason = trial.fate(result)
        note("record made", key=record.key, fate=fate.value, reason=reason, attempts=len(result.attempts))
        row["generation"] = canonical_json(generation)
        if fate is not Fate.KEPT:
            return _ended(row, fate, reason, _detail(result))
        assert result.candidate is not None
        return _kept(part, record, row, base, result.candidate, generation)


def make_stage(context: tuple[MakeSettings, str, Shared]) -> TruthMaker:
    return TruthMaker(*context)


MAKE = Stage("make", 1, make_stage)


def _assess(pixels: Pixels) -> tuple[str, ...]:
    return chosen_by_symptoms(measure_symptoms(pixels))


def _seen(scorer: ChatScorer, pixels: Pixels) -> tuple[str, ...]:
    """Degradations that a model sees, the worst first."""
    values = scorer.measure(pixels)
    severities = {name.removesuffix("_0_5"): value for name, value in values.items() if name.endswith("_0_5")}
    del severities["cleanliness"]
    return tuple(sorted((name for name, value in severities.items() if value > 0), key=lambda name: -severities[name]))


def _is_better(rule: GainRule, before: Pixels, after: Pixels) -> bool:
    return rule.passed(measure_gain(measure_quality(before), measure_quality(after), rule))


def _row(part: TruthPart, record: SelectedRecord) -> dict[str, Any]:
    source = record.source
    return {
        "key": record.key,
        "recipe": part.category,
        "variant": 0,
        "source_id": source.source_id,
        "uri": source.uri,
        "group": source.group,
        "licence": source.licence,
        "attribution": source.attribution,
    }


def _ended(row: Mapping[str, Any], fate: Fate, reason: str, detail: str) -> _Made:
    return _Made({**row, "fate": fate.value, "reason": reason, "detail": detail}, {})


def _detail(result: LoopResult) -> str:
    """Why a record was not kept: what was wrong with the best attempt, else how the last one ended."""
    return result.attempts[result.best - 1].detail if result.best else result.detail


def _kept(
    part: TruthPart,
    record: SelectedRecord,
    row: Mapping[str, Any],
    base: Base,
    candidate: Candidate,
    generation: Generation,
) -> _Made:
    files = {"lq.png": base.png, "hq.png": encode_png(candidate.pixels)}
    sample = GeneratedSample(
        key=record.key,
        line=LINE,
        category=part.category,
        split=part.split,
        recipe=part.category,
        recipe_version=1,
        variant=0,
        source=source_ref(record.source),
        base=base.ref,
        assets=(generation.reply,) if generation.reply else (),
        scene={},
        steps=(),
        realised={},
        lq_sha256=hashlib.sha256(files["lq.png"]).hexdigest(),
        hq_sha256=hashlib.sha256(files["hq.png"]).hexdigest(),
        versions=pixel_versions(),
        filters=read_values(record),
        level=record.level,
        generation=generation,
    )
    columns = {
        "fate": Fate.KEPT.value,
        "degradations": [],
        "severities": [],
        "steps": "[]",
        "width": base.ref.width,
        "height": base.ref.height,
        "lq_bytes": len(files["lq.png"]),
        "hq_bytes": len(files["hq.png"]),
        "lq_sha256": sample.lq_sha256,
        "hq_sha256": sample.hq_sha256,
    }
    return _Made({**row, **columns}, {"json": canonical_json(sample).encode(), **files})


def replay_truth(storage: Storage, files: Mapping[str, bytes]) -> tuple[Pixels, Pixels]:
    """LQ and HQ of a stored sample, HQ derived again from the answer that it came from.

    Raises ValueError where that answer is missing or changed.
    """
    sample = parse_stored(GeneratedSample, files["json"], "the sample's JSON")
    lq, generation = decode_png(files["lq.png"]), sample.generation
    if generation.reply is None:
        raise ValueError("the record names no answer that HQ came from")
    data, rule = read_asset(storage, generation.reply), SizeRule.model_validate(generation.size_rule)
    try:
        return lq, fit_candidate(lq, data, generation.reply_mime, Usage(0.0), rule).pixels
    except BackendError as error:
        raise ValueError(f"HQ cannot be derived from its answer: {error}") from error
