"""Judges: the weight-free one over damaged and moved photos, the chat one over a fake client."""

import json
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from pairforge.image import Pixels, decode_png
from pairforge.protocols import ASPECTS, BackendError, Judge, Trouble, Usage
from pairforge.remote_base import ChatRequest, RemoteError, Reply
from qc import judges
from qc.alignment import measure_alignment
from qc.gain import GainRule, measure_gain, measure_quality
from qc.judges import ChatJudge, MetricJudge, judge_instruction, judge_prompt_hash, judgement_of
from qc.verdict import VerdictRule, answer_schema, decide

from .damage import DAMAGES, rotated, shifted, warped, with_patch_of

CATEGORIES = {"noise": "noise", "compression": "compression", "blur": "blur", "haze": "haze", "low_light": "low_light"}
METRIC: Judge = MetricJudge()


def failed(lq: Pixels, hq: Pixels, category: str) -> tuple[str, ...]:
    return decide(METRIC.judge(lq, hq, category), VerdictRule()).failed_aspects


def test_metric_judge_accepts_the_true_photo(photos: dict[str, Pixels]) -> None:
    accepted = [failed(DAMAGES[name](p), p, name) == () for name in CATEGORIES for p in photos.values()]
    assert sum(accepted) >= 0.9 * len(accepted)


def test_metric_judge_names_what_is_wrong(photos: dict[str, Pixels]) -> None:
    for name in CATEGORIES:
        for photo, pixels in photos.items():
            lq, other = DAMAGES[name](pixels), photos["coffee" if photo != "coffee" else "chelsea"]
            assert "restoration_quality" in failed(lq, lq, name)
            for moved in (shifted(pixels, 3, 1), rotated(pixels, 0.5), warped(pixels, 4)):
                assert "geometry_alignment" in failed(lq, moved, name)
            assert "object_consistency" in failed(lq, with_patch_of(pixels, other, 128), name)
    for name in ("noise", "compression", "blur"):
        for pixels in photos.values():
            redder = np.ascontiguousarray(pixels[..., ::-1])
            assert "colour_consistency" in failed(DAMAGES[name](pixels), redder, name)


def test_metric_scores_are_monotone_in_what_they_measure(photos: dict[str, Pixels]) -> None:
    lq, hq = DAMAGES["noise"](photos["coffee"]), photos["coffee"]
    numbers = measure_alignment(lq, hq) | measure_gain(measure_quality(lq), measure_quality(hq), GainRule())
    rising = {"quality_gain", "edge_precision", "edge_recall", "phase_response"}
    falling = {"structure_lost_frac", "ecc_shift_px", "ecc_rotation_deg", "flow_median_px", "flow_p95_px"}
    for name in sorted(rising | falling | {"colour_delta_e"}):
        values = np.linspace(0, 60 if name.endswith(("px", "_e")) else 1.5, 40)
        found = [judgement_of({**numbers, name: float(value)}, 600, "noise").scores for value in values]
        for before, after in pairwise(found):
            for aspect in ASPECTS:
                assert before[aspect] <= after[aspect] if name in rising else before[aspect] >= after[aspect]
        assert found[0] != found[-1]


def test_metric_judge_is_honest_about_itself() -> None:
    assert METRIC.name == "metric"
    assert MetricJudge(GainRule(least_gain=0.3)).revision != METRIC.revision
    assert "cannot tell" in str(MetricJudge.__doc__)


class Scripted:
    """Answers in order and keeps what it was asked."""

    name, revision = "scripted", "model-1"

    def __init__(self, *answers: bytes | BackendError) -> None:
        self._answers: Iterator[bytes | BackendError] = iter(answers)
        self.asked: list[ChatRequest] = []

    def ask(self, request: ChatRequest) -> Reply:
        self.asked.append(request)
        answer = next(self._answers)
        if isinstance(answer, BackendError):
            raise answer
        return Reply(answer, "application/json", Usage(0.02, 100, 50))


GOOD = json.dumps({**{name: {"reason": "same", "score": 91} for name in ASPECTS}, "verdict": "Accept"}).encode()


def test_chat_judge_shows_lq_then_hq_and_reads_the_answer(photos: dict[str, Pixels]) -> None:
    chat = Scripted(GOOD)
    judge: Judge = ChatJudge(chat)
    lq, hq = DAMAGES["noise"](photos["coffee"]), photos["coffee"]
    judgement = judge.judge(lq, hq, "haze")
    assert judgement.scores == dict.fromkeys(ASPECTS, 91)
    assert judgement.own_word is True and judgement.usage == Usage(0.02, 100, 50)
    (request,) = chat.asked
    shown = [decode_png(picture.data) for picture in request.pictures]
    assert np.array_equal(shown[0], lq) and np.array_equal(shown[1], hq)
    assert request.json_schema == answer_schema()
    assert judge.name == "scripted" and judge.revision.startswith("model-1-judge")


@pytest.mark.parametrize("answer", [b"", b"I accept.", GOOD[:-3], b"\xff\xfe", b"```json\n" + GOOD + b"\n```"])
def test_chat_judge_never_guesses_and_keeps_the_price(photos: dict[str, Pixels], answer: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        ChatJudge(Scripted(answer)).judge(photos["coffee"], photos["coffee"], "noise")
    assert caught.value.trouble is Trouble.MALFORMED
    assert caught.value.usage == Usage(0.02, 100, 50)


def test_chat_judge_passes_troubles_on(photos: dict[str, Pixels]) -> None:
    chat = Scripted(BackendError(Trouble.REFUSED, "safety"))
    with pytest.raises(BackendError) as caught:
        ChatJudge(chat).judge(photos["coffee"], photos["coffee"], "noise")
    assert caught.value.trouble is Trouble.REFUSED


def test_wording(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {category: judge_instruction(category) for category in (*judges._wording()["category_notes"], "else")}
    assert len(set(texts.values())) == len(texts)
    for text in texts.values():
        assert "{" not in text
        assert all(name in text for name in ASPECTS)
    before = judge_prompt_hash()
    judge_prompt_hash.cache_clear()
    monkeypatch.setattr(judges, "_wording", lambda: {"version": 2})
    assert judge_prompt_hash() != before
    judge_prompt_hash.cache_clear()
