"""What a judge must answer, how the answer is read, and the rule that turns five scores into a verdict.

The rule is ours and not the judge's: a judge may say "Accept" and still be overruled. Aspects and thresholds after
GGT-100K (arXiv 2605.31039), where a consistency below 90 rejects; here that is `object_consistency`, as a setting.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from pairforge.protocols import ASPECTS, BackendError, Judgement, Trouble, Usage
from pairforge.records import Frozen

ACCEPT, REJECT = "Accept", "Reject"
LONGEST_REASON = 2000
"""Characters of a reason that is still taken for one."""


class VerdictRule(Frozen):
    """Accept where every score is at least `least_score`, and those named in `least_by_aspect` at least that."""

    least_score: int = Field(60, ge=0, le=100, description="lowest score that passes, of every aspect")
    least_by_aspect: Mapping[str, int] = Field(
        {"object_consistency": 90},
        description=f"higher lowest scores, at most 100, of some of {', '.join(ASPECTS)}",
    )

    @model_validator(mode="after")
    def _known(self) -> "VerdictRule":
        for aspect, least in self.least_by_aspect.items():
            if aspect not in ASPECTS:
                raise ValueError(f"aspect {aspect!r} is none of {' '.join(ASPECTS)}")
            if not 0 <= least <= 100:
                raise ValueError(f"least score {least} of {aspect} is not within 0..100")
        return self

    def least(self, aspect: str) -> int:
        """Both limits hold: the one of the aspect cannot lower the common one."""
        return max(self.least_score, self.least_by_aspect.get(aspect, 0))


Agreement = Literal["agreed", "judge_accepts_rule_rejects", "judge_rejects_rule_accepts", "no_word"]


@dataclass(frozen=True)
class Verdict:
    """`failed_aspects` as in ASPECTS, empty where accepted; `agreement` compares with the judge's own word."""

    accepted: bool
    failed_aspects: tuple[str, ...]
    agreement: Agreement


def decide(judgement: Judgement, rule: VerdictRule) -> Verdict:
    """The rule over one judgement. Raises BackendError (malformed) for scores that are missing or out of range."""
    _check_scores(judgement.scores)
    failed = tuple(aspect for aspect in ASPECTS if judgement.scores[aspect] < rule.least(aspect))
    accepted = not failed
    return Verdict(accepted, failed, _agreement(judgement.own_word, accepted))


def _agreement(own_word: bool | None, accepted: bool) -> Agreement:
    if own_word is None:
        return "no_word"
    if own_word == accepted:
        return "agreed"
    return "judge_accepts_rule_rejects" if own_word else "judge_rejects_rule_accepts"


def count_agreement(verdicts: Iterable[Verdict]) -> dict[Agreement, int]:
    """How often the rule and the judges' own words met, every kind named also where it is 0."""
    counts = Counter(verdict.agreement for verdict in verdicts)
    kinds: tuple[Agreement, ...] = (
        "agreed",
        "judge_accepts_rule_rejects",
        "judge_rejects_rule_accepts",
        "no_word",
    )
    return {kind: counts[kind] for kind in kinds}


def answer_schema() -> dict[str, Any]:
    """JSON schema of an answer, for structured outputs: a reason before each score, then the word."""
    aspect = {
        "type": "object",
        "properties": {
            "reason": {"type": "string", "maxLength": LONGEST_REASON},
            "score": {"type": "integer", "minimum": 0, "maximum": 100},
        },
        "required": ["reason", "score"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            **dict.fromkeys(ASPECTS, aspect),
            "verdict": {"type": "string", "enum": [ACCEPT, REJECT]},
        },
        "required": [*ASPECTS, "verdict"],
        "additionalProperties": False,
    }


def parse_judgement(text: str, usage: Usage) -> Judgement:
    """The answer of a judge, whatever the server promised about its form.

    The whole text must be one JSON object of `answer_schema`: no prose or code fence around it, no key twice, integer
    scores within 0..100, a reason that is not empty. Raises BackendError (malformed) for anything else; no score is
    ever completed, rounded or guessed.
    """
    answer = _object(_loaded(text), {*ASPECTS, "verdict"}, "answer")
    scores, reasons = {}, {}
    for name in ASPECTS:
        aspect = _object(answer[name], {"reason", "score"}, name)
        reason = aspect["reason"]
        if not isinstance(reason, str) or not reason.strip() or len(reason) > LONGEST_REASON or _is_cut(reason):
            raise _malformed(f"{name} has no reason of 1 to {LONGEST_REASON} characters")
        scores[name], reasons[name] = aspect["score"], reason
    _check_scores(scores)
    word = answer["verdict"]
    if word not in (ACCEPT, REJECT):
        raise _malformed(f"the verdict is neither {ACCEPT} nor {REJECT}")
    return Judgement(scores, reasons, word == ACCEPT, usage)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"not one JSON object: {_start(text)}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _object(value: Any, keys: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != keys:
        raise _malformed(f"{what} is no object of {' '.join(sorted(keys))}")
    return value


def _check_scores(scores: Mapping[str, Any]) -> None:
    for aspect in ASPECTS:
        score = scores.get(aspect)
        # bool is an int in Python, and true is no score.
        if isinstance(score, bool) or not isinstance(score, int) or not 0 <= score <= 100:
            raise _malformed(f"the score of {aspect} is no integer within 0..100")


def _is_cut(text: str) -> bool:
    """Half of a surrogate pair, which JSON may escape and no file can hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _malformed(detail: str) -> BackendError:
    return BackendError(Trouble.MALFORMED, detail)


def _start(text: str) -> str:
    return f"{len(text)} characters, beginning {text[:40]!r}"
