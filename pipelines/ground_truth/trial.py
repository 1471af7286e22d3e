"""One record through prompt, generator, checks, judge and feedback; every question at its place in the journal."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from generators.loop import (
    PENDING,
    Assess,
    Assessment,
    Attempt,
    Generate,
    LoopResult,
    Outcome,
    feedback_steps,
    run_feedback,
)
from generators.prompts import Prompt, next_instruction, write_prompt
from generators.returned import SizeRule
from pairforge.image import Pixels
from pairforge.journal import REPLIES, Partition
from pairforge.limits import BudgetSpent
from pairforge.protocols import TRANSIENT, BackendError, Candidate, Generator, Judge, Trouble
from pairforge.records import Asset, Fate, Generation
from pairforge.remote import paying
from pairforge.remote_base import Chat
from pairforge.rng import seed_for
from pipelines.bases import Base
from pipelines.carry import OVER_BUDGET
from pipelines.carry import TRANSIENT as DUE_AGAIN
from pipelines.ground_truth.plan import SelectedRecord, loop_policy
from pipelines.ground_truth.settings import Make
from pipelines.telemetry import note
from qc.alignment import measure_alignment
from qc.gain import GainRule, measure_gain, measure_quality
from qc.verdict import decide

_ASPECT_OF = {"content_changed": "object_consistency"}
"""Of limits of alignment; the others are about geometry."""


@dataclass(frozen=True)
class Desk:
    """All that the records of one part share. `partition` is None where nobody but code of ours is asked."""

    make: Make
    seed: int
    category: str
    partition: Partition | None
    generator: Generator
    fallback: Generator | None
    judge: Judge
    writer: Chat | None


class NoPromptError(Exception):
    """No prompt could be had: `cause` says why."""

    def __init__(self, cause: BackendError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass
class Trial:
    """One record at a desk, as its part's thread goes on with it."""

    desk: Desk
    record: SelectedRecord
    base: Base
    over_budget: bool = False
    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    makers: dict[int, Generator] = field(default_factory=dict)

    def run(self) -> tuple[LoopResult, Prompt]:
        """The loop over this record. Raises NoPromptError, InfraError.

        A record that is tried again gets more of what it ran out of; what met passing trouble only goes on, so that
        nights without money or service change no outcome.
        """
        prompt = self._prompt()
        own = policy = loop_policy(self.desk.make)
        for _ in range(1 + self.record.again):
            steps = feedback_steps(
                lambda failed, attempt: self._instruction(prompt, failed, attempt), self._seed, policy
            )
            result = run_feedback(steps, self._generate, self._assess)
            if result.outcome is Outcome.UNSCORED:
                more = {"judge_asks": policy.judge_asks + own.judge_asks}
            elif result.outcome in (Outcome.MALFORMED, Outcome.WRONG_SIZE):
                more = {"max_regenerations": policy.max_regenerations + own.max_regenerations + 1}
            else:
                break
            policy = policy.model_copy(update=more)
        return result, prompt

    def fate(self, result: LoopResult) -> tuple[Fate, str]:
        """Fate and reason of a record that ended so."""
        if result.outcome is Outcome.ACCEPTED:
            return Fate.KEPT, ""
        if result.outcome in PENDING:
            return Fate.FAILED, OVER_BUDGET if self.over_budget else f"{DUE_AGAIN}{result.outcome.value}"
        if result.outcome is Outcome.REJECTED:
            return Fate.REJECTED, f"rejected_{result.failed_aspects[0]}"
        return (Fate.REJECTED, "refused") if result.outcome is Outcome.REFUSED else (Fate.FAILED, result.outcome.value)

    def fate_without_prompt(self, error: BackendError) -> tuple[Fate, str]:
        if isinstance(error, BudgetSpent):
            return Fate.FAILED, OVER_BUDGET
        if error.trouble in TRANSIENT or error.trouble is Trouble.MALFORMED:
            return Fate.FAILED, f"{DUE_AGAIN}{error.trouble.value}"
        return Fate.REJECTED, "refused"

    def generation(self, result: LoopResult, prompt: Prompt) -> Generation:
        """What the record states, and its row where it was rejected."""
        make, candidate, chosen = self.desk.make, result.candidate, result.best or 0
        maker = self.makers.get(chosen, self.desk.generator)
        rule = getattr(maker, "rule", SizeRule())
        return Generation(
            generator=maker.name,
            revision=maker.revision,
            strategy=prompt.strategy,
            prompt=prompt.text,
            prompt_hash=prompt.prompt_hash,
            wording_hash=prompt.wording_hash,
            writer=prompt.writer,
            judge=self.desk.judge.name,
            judge_revision=self.desk.judge.revision,
            rule=make.verdict.model_dump(mode="json"),
            attempts=tuple(self._told(attempt) for attempt in result.attempts),
            chosen=chosen,
            corrections=candidate.corrections if candidate else (),
            lq=Asset(role="base", name=self.base.name, sha256=self.base.ref.sha256, source=None),
            reply=_asset(candidate) if candidate else None,
            reply_mime=candidate.mime if candidate else "",
            size_rule=rule.model_dump(mode="json"),
            qc={"values": self.numbers.get(chosen, {}), "limits": make.checks.model_dump(mode="json")},
        )

    def _prompt(self) -> Prompt:
        strategy, writer = self.desk.make.prompts.strategy, self.desk.writer
        if writer is None:
            return write_prompt(self.base.pixels, self.desk.category, strategy, None)
        assert self.desk.partition is not None
        asks = loop_policy(self.desk.make).judge_asks * (1 + self.record.again)
        for ask in range(1, asks + 1):
            try:
                with paying(self.desk.partition, self.record.key, "prompt", ask):
                    return write_prompt(self.base.pixels, self.desk.category, strategy, writer)
            except BackendError as error:
                last = error
                if error.trouble is not Trouble.MALFORMED:
                    break
        raise NoPromptError(last)

    def _instruction(self, prompt: Prompt, failed: Sequence[Sequence[str]], attempt: int) -> str:
        return next_instruction(prompt.text, failed, attempt, self.desk.make.preset)

    def _seed(self, attempt: int) -> int:
        return int(seed_for(self.desk.seed, self.record.key, "generate", attempt)[:8], 16) >> 1

    def _generate(self, step: Generate) -> Candidate:
        try:
            return self._generated(step)
        except BudgetSpent:
            self.over_budget = True
            raise

    def _generated(self, step: Generate) -> Candidate:
        desk, key = self.desk, self.record.key
        self.makers[step.attempt] = desk.generator
        if desk.partition is None:
            return desk.generator.generate(self.base.pixels, step.instruction, step.seed)
        about = f"generator of attempt {step.attempt}"
        if desk.partition.chosen(key, about) is None:
            try:
                with paying(desk.partition, key, "generate", step.attempt):
                    return desk.generator.generate(self.base.pixels, step.instruction, step.seed)
            except BackendError as error:
                if desk.fallback is None or isinstance(error, BudgetSpent) or error.trouble not in TRANSIENT:
                    raise
                desk.partition.choose(key, about, f"fallback, after {error.trouble}")
                note("fallback", key=key, generation=step.attempt, trouble=error.trouble.value)
        assert desk.fallback is not None, f"{key} once went on with a fallback, and the config has none"
        self.makers[step.attempt] = desk.fallback
        with paying(desk.partition, key, "fallback", step.attempt):
            return desk.fallback.generate(self.base.pixels, step.instruction, step.seed)

    def _assess(self, step: Assess) -> Assessment:
        hq, checks = step.candidate.pixels, self.desk.make.checks
        if step.attempt not in self.numbers:
            gain = measure_gain(measure_quality(self.base.pixels), measure_quality(hq), checks.gain or GainRule())
            self.numbers[step.attempt] = {**measure_alignment(self.base.pixels, hq), **gain}
        numbers = self.numbers[step.attempt]
        broken = checks.alignment.broken(numbers, max(self.base.pixels.shape[:2])) if checks.alignment else ()
        if broken:
            aspects = sorted({_ASPECT_OF.get(name, "geometry_alignment") for name in broken})
            return Assessment(False, tuple(aspects), None, f"check: {', '.join(broken)} ({_measured(numbers)})")
        if checks.gain is not None and not checks.gain.passed(numbers):
            told = f"check: quality_gain {numbers['quality_gain']:.3f}, at least {checks.gain.least_gain:g} is needed"
            return Assessment(False, ("restoration_quality",), None, told)
        try:
            judgement = self._judged(step, hq)
        except BudgetSpent:
            self.over_budget = True
            raise
        verdict = decide(judgement, self.desk.make.verdict)
        told = "" if verdict.accepted else f"judge: {', '.join(verdict.failed_aspects)} too low"
        return Assessment(verdict.accepted, verdict.failed_aspects, judgement, told)

    def _judged(self, step: Assess, hq: Pixels) -> Any:
        judge, partition, category = self.desk.judge, self.desk.partition, self.desk.category
        if partition is None:
            return judge.judge(self.base.pixels, hq, category)
        with paying(partition, self.record.key, f"judge.{step.attempt}", step.ask):
            return judge.judge(self.base.pixels, hq, category)

    def _told(self, attempt: Attempt) -> dict[str, Any]:
        judgement = attempt.assessment.judgement if attempt.assessment else None
        told: dict[str, Any] = {
            "number": attempt.number,
            "seed": attempt.seed,
            "instruction": attempt.instruction,
            "outcome": attempt.outcome.value,
            "detail": attempt.detail,
            "failed_aspects": list(attempt.failed_aspects),
            "corrections": list(attempt.corrections),
            "repeats": attempt.is_repeat,
        }
        if judgement is not None:
            told["scores"], told["reasons"] = dict(judgement.scores), dict(judgement.reasons)
            told["agreement"] = decide(judgement, self.desk.make.verdict).agreement
        return told


def _measured(numbers: Mapping[str, float]) -> str:
    """What alignment was decided on."""
    return (
        f"shift {numbers['ecc_shift_px']:.2f} px, rotation {numbers['ecc_rotation_deg']:.2f} deg, flow "
        f"{numbers['flow_median_px']:.2f} px and at most {numbers['flow_p95_px']:.2f}, structure lost "
        f"{numbers['structure_lost_frac']:.2f}"
    )


def _asset(candidate: Candidate) -> Asset:
    digest = hashlib.sha256(candidate.data).hexdigest()
    return Asset(role="hq_src", name=f"{REPLIES}{digest[:2]}/{digest}", sha256=digest, source=None)
