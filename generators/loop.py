"""The feedback loop over one record: generate, judge, accept or say what was wrong and generate again.

No I/O happens here. `feedback_steps` asks for one step after the other and is told what came of it, so whoever drives
it puts journal, limiter and budget around a step, and may do so in a thread, an actor or a coroutine; the same answers
give the same result, which is how a killed run goes on. `run_feedback` drives it with two plain callables.

Protocol: GGT-100K (arXiv 2605.31039); the number of regenerations is a setting.
"""

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from pydantic import Field

from pairforge.protocols import TRANSIENT, BackendError, Candidate, Judgement, Trouble, Usage
from pairforge.records import Frozen
from pairforge.remote_base import RemoteError


class Outcome(StrEnum):
    """How an attempt, or a whole record, ended. Those of `pairforge.protocols.Trouble`, and three of the judge."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNSCORED = "unscored"
    """The judge gave nothing that could be read, as often as it was asked."""
    REFUSED = "refused"
    WRONG_SIZE = "wrong_size"
    MALFORMED = "malformed"
    QUOTA = "quota"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"


PENDING = frozenset({Outcome.UNSCORED, *(Outcome(trouble.value) for trouble in TRANSIENT)})
"""Outcomes of a record that is due again."""


class LoopPolicy(Frozen):
    """How often a record is tried, and an image judged."""

    max_regenerations: int = Field(3, ge=0, le=20, description="attempts after the first")
    judge_asks: int = Field(2, ge=1, le=10, description="how often one image is judged while the answer cannot be read")
    stop_when_repeated: bool = Field(
        True,
        description="a generator that gives the very bytes of an earlier attempt does not listen: ask no further",
    )


LOOP_PRESETS: Mapping[str, LoopPolicy] = {"default": LoopPolicy(), "ggt100k": LoopPolicy(max_regenerations=2)}
"""By the presets of `generators.prompts.next_instruction`, which both have to be chosen together."""


@dataclass(frozen=True)
class Assessment:
    """What a rule made of a judgement, None where something cheaper than a judge decided; `reason` says what."""

    accepted: bool
    failed_aspects: tuple[str, ...]
    judgement: Judgement | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.accepted == bool(self.failed_aspects):
            raise ValueError(f"accepted is {self.accepted} with failed aspects {self.failed_aspects}")


@dataclass(frozen=True)
class Generate:
    """Asks for an image; attempts count from 1."""

    attempt: int
    instruction: str
    seed: int


@dataclass(frozen=True)
class Assess:
    """Asks for the assessment of an image; `ask` counts from 1 and rises where the answer could not be read."""

    attempt: int
    ask: int
    candidate: Candidate


Step = Generate | Assess
Answer = Candidate | Assessment | BackendError


@dataclass(frozen=True)
class Attempt:
    """The facts of one attempt, without its pixels. `is_repeat`: the very bytes of an earlier one, not judged again.

    Costs are of this attempt alone; `cost_usd` None where a part of them is not known.
    """

    number: int
    instruction: str
    seed: int
    outcome: Outcome
    detail: str = ""
    assessment: Assessment | None = None
    corrections: tuple[str, ...] = ()
    is_repeat: bool = False
    generation_usage: Usage = field(default_factory=lambda: Usage(0.0))
    judge_usage: Usage = field(default_factory=lambda: Usage(0.0))

    @property
    def failed_aspects(self) -> tuple[str, ...]:
        return self.assessment.failed_aspects if self.assessment else ()


@dataclass(frozen=True)
class LoopResult:
    """`candidate` is the accepted image, else that of the best attempt, None where there was none; `best` its number.

    `failed_aspects` are those of the best attempt, for a record that was rejected.
    """

    outcome: Outcome
    attempts: tuple[Attempt, ...]
    best: int | None
    candidate: Candidate | None

    @property
    def failed_aspects(self) -> tuple[str, ...]:
        return self.attempts[self.best - 1].failed_aspects if self.best else ()

    @property
    def detail(self) -> str:
        return self.attempts[-1].detail

    @property
    def usage(self) -> Usage:
        return sum_usage([usage for each in self.attempts for usage in (each.generation_usage, each.judge_usage)])


InstructionRule = Callable[[Sequence[Sequence[str]], int], str]
"""Instruction of attempt n, from the failed aspects of the attempts before it, () for one that was not scored."""
Steps = Generator[Step, Answer, LoopResult]


def feedback_steps(instruction: InstructionRule, seed_of: Callable[[int], int], policy: LoopPolicy) -> Steps:
    """The loop as a generator: yields a Step, is sent what came of it, returns the result.

    Goes on after a rejection, and after an answer without a usable image, which counts as an attempt. Ends with
    acceptance; with a refusal, as asking again is no cure; with a transient trouble or an unscored image, as the
    record is due again; and where the generator repeats itself, if the policy says so. Bytes that were judged are not
    judged again. Of all images only the best is held.
    """
    attempts: list[Attempt] = []
    seen: dict[bytes, Attempt] = {}
    best: tuple[Attempt, Candidate] | None = None
    for number in range(1, policy.max_regenerations + 2):
        told = instruction([attempt.failed_aspects for attempt in attempts], number)
        step = Generate(number, told, seed_of(number))
        answer = yield step
        if isinstance(answer, BackendError):
            attempts.append(_failed_attempt(step, answer))
            if answer.trouble in TRANSIENT or answer.trouble is Trouble.REFUSED:
                break
            continue
        assert isinstance(answer, Candidate), "a Generate step was not answered by an image"
        digest = hashlib.sha256(answer.data).digest()
        if digest in seen:
            attempts.append(_repeated_attempt(step, answer, seen[digest]))
            if policy.stop_when_repeated:
                break
            continue
        attempt = yield from _assessed(step, answer, policy)
        attempts.append(attempt)
        seen[digest] = attempt
        if best is None or _rank(attempt) < _rank(best[0]):
            best = attempt, answer
        if attempt.outcome is not Outcome.REJECTED:
            break
    return _result(attempts, best)


def _assessed(step: Generate, candidate: Candidate, policy: LoopPolicy) -> Generator[Step, Answer, Attempt]:
    """One image before the judge, who is asked again while the answer cannot be read."""
    spent: list[Usage] = []
    for ask in count(1):
        answer = yield Assess(step.attempt, ask, candidate)
        assert not isinstance(answer, Candidate), "an Assess step was answered by an image"
        if isinstance(answer, Assessment):
            spent.append(answer.judgement.usage if answer.judgement else Usage(0.0))
            outcome, detail = (Outcome.ACCEPTED if answer.accepted else Outcome.REJECTED), answer.reason
            break
        spent.append(usage_of(answer))
        outcome = Outcome(answer.trouble.value) if answer.trouble in TRANSIENT else Outcome.UNSCORED
        detail = f"judge: {answer.detail}"
        if outcome is not Outcome.UNSCORED or ask == policy.judge_asks:
            break
    return Attempt(
        step.attempt,
        step.instruction,
        step.seed,
        outcome,
        detail,
        answer if isinstance(answer, Assessment) else None,
        candidate.corrections,
        generation_usage=candidate.usage,
        judge_usage=sum_usage(spent),
    )


def _failed_attempt(step: Generate, error: BackendError) -> Attempt:
    outcome = Outcome(error.trouble.value)
    return Attempt(step.attempt, step.instruction, step.seed, outcome, error.detail, generation_usage=usage_of(error))


def _repeated_attempt(step: Generate, candidate: Candidate, earlier: Attempt) -> Attempt:
    return Attempt(
        step.attempt,
        step.instruction,
        step.seed,
        earlier.outcome,
        f"the same bytes as attempt {earlier.number}",
        earlier.assessment,
        candidate.corrections,
        is_repeat=True,
        generation_usage=candidate.usage,
    )


def _result(attempts: list[Attempt], best: tuple[Attempt, Candidate] | None) -> LoopResult:
    last = attempts[-1].outcome
    # An answer without an image after a scored attempt does not make the record worse than rejected.
    scored = any(attempt.outcome is Outcome.REJECTED for attempt in attempts)
    outcome = Outcome.REJECTED if scored and last in (Outcome.MALFORMED, Outcome.WRONG_SIZE) else last
    if best is None:
        return LoopResult(outcome, tuple(attempts), None, None)
    return LoopResult(outcome, tuple(attempts), best[0].number, best[1])


def _rank(attempt: Attempt) -> tuple[int, int, int]:
    """Least for the best: accepted, rejected, unscored; then fewest failed aspects, then highest sum of scores."""
    assessment = attempt.assessment
    if assessment is None:
        return (2, 0, 0)
    scores = assessment.judgement.scores.values() if assessment.judgement else (0,)
    return (0 if assessment.accepted else 1, len(assessment.failed_aspects), -sum(scores))


def run_feedback(
    steps: Steps, generate: Callable[[Generate], Candidate], assess: Callable[[Assess], Assessment]
) -> LoopResult:
    """Drive the loop with callables. What they raise as BackendError is an answer; anything else ends the loop."""
    answer: Answer | None = None
    while True:
        try:
            step = next(steps) if answer is None else steps.send(answer)
        except StopIteration as done:
            result: LoopResult = done.value
            return result
        try:
            answer = generate(step) if isinstance(step, Generate) else assess(step)
        except BackendError as error:
            answer = error


def usage_of(error: BackendError) -> Usage:
    """What a fault cost; nothing where it came from a backend that says nothing of money."""
    return error.usage if isinstance(error, RemoteError) else Usage(0.0)


def sum_usage(parts: Sequence[Usage]) -> Usage:
    """The cost is None as soon as one part is not known."""
    costs = [part.cost_usd for part in parts]
    known = [cost for cost in costs if cost is not None]
    total = float(sum(known)) if len(known) == len(costs) else None
    return Usage(total, sum(part.input_tokens for part in parts), sum(part.output_tokens for part in parts))
