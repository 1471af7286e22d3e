"""Wording: every category and constraint is there, hashes follow the words, feedback names exactly what failed."""

from itertools import combinations

import numpy as np
import pytest

from generators import prompts
from generators.prompts import (
    CATEGORIES,
    PRESETS,
    STRATEGIES,
    adaptive_prompt,
    adaptive_request,
    fixed_prompt,
    hard_constraints,
    next_instruction,
    strengthening,
    wording_hash,
    write_prompt,
)
from pairforge.image import Pixels, decode_png
from pairforge.protocols import ASPECTS, BackendError, Trouble, Usage
from pairforge.remote_base import ChatRequest, RemoteError, Reply

LQ = np.full((20, 30, 3), 90, np.uint8)
WRITTEN = (
    "Take the noise off the wall and the window frame at the left, sharpen the bicycle in the foreground and the "
    "lettering above the door, and keep the rest of the street as it is."
)


class Writer:
    name, revision = "writer", "model-2"

    def __init__(self, answer: bytes = WRITTEN.encode()) -> None:
        self.asked: list[ChatRequest] = []
        self._answer = answer

    def ask(self, request: ChatRequest) -> Reply:
        self.asked.append(request)
        return Reply(self._answer, "text/plain", Usage(0.001, 300, 80))


def test_every_category_has_its_own_words() -> None:
    for table in (
        prompts._wording("fixed")["instructions"],
        prompts._wording("adaptive")["tasks"],
        prompts._wording("adaptive")["focus"],
    ):
        assert set(table) == set(CATEGORIES)
        assert len(set(table.values())) == len(CATEGORIES)
    assert set(prompts._wording("feedback")["sentences"]) == set(ASPECTS)
    assert set(prompts._wording("adaptive")["colour_rules"]) <= {"default", *CATEGORIES}


@pytest.mark.parametrize("category", CATEGORIES)
def test_fixed_strategies(category: str) -> None:
    plain, strict = fixed_prompt(category, no_change=False), fixed_prompt(category, no_change=True)
    assert strict.text.startswith(plain.text) and "Do not change the content" in strict.text
    assert (plain.strategy, strict.strategy) == STRATEGIES[:2]
    assert plain.prompt_hash != strict.prompt_hash
    assert plain == write_prompt(LQ, category, "fixed", None)
    assert strict == write_prompt(LQ, category, "fixed_no_change", None)


CONSTRAINTS = (
    "Fidelity",
    "number, size and position",
    "inserted, removed, warped",
    "denoised and sharpened",
    "identity",
)


@pytest.mark.parametrize("category", CATEGORIES)
def test_hard_constraints_are_in_every_adaptive_question_and_prompt(category: str) -> None:
    writer = Writer()
    prompt = adaptive_prompt(LQ, category, writer)
    (request,) = writer.asked
    assert "{" not in request.text and np.array_equal(decode_png(request.pictures[0].data), LQ)
    assert len(hard_constraints(category)) == 7
    for text in (request.text, prompt.text):
        assert all(words in text for words in (*CONSTRAINTS, *hard_constraints(category)))
        assert "evidence is gone" in text
    assert prompt.text.startswith(WRITTEN) and prompt.strategy == "adaptive"
    assert prompt.writer == "writer/model-2" and prompt.usage.cost_usd == 0.001


def test_colour_rules_fit_the_category() -> None:
    assert "never colourised" in " ".join(hard_constraints("old_photo"))
    assert "brighter" in " ".join(hard_constraints("low_light"))
    assert "stay as they are" in " ".join(hard_constraints("rain"))
    assert len({adaptive_request(LQ, category).text for category in CATEGORIES}) == len(CATEGORIES)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"Sure.",
        b"\xff" * 200,
        WRITTEN[:-40].encode(),
        ("# Instruction\n" + WRITTEN).encode(),
        ("{" + WRITTEN + "}").encode(),
        (WRITTEN + "\n\n" + WRITTEN).encode(),
        (WRITTEN * 40).encode(),
        ("<html>" + WRITTEN).encode(),
    ],
)
def test_what_is_no_instruction_is_malformed_and_keeps_its_price(answer: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        adaptive_prompt(LQ, "noise", Writer(answer))
    assert caught.value.trouble is Trouble.MALFORMED and caught.value.usage.cost_usd == 0.001


def test_what_a_user_gets_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="no prompt for category 'fog'; there are: general_mixed"):
        fixed_prompt("fog", no_change=False)
    with pytest.raises(ValueError, match="needs a chat backend"):
        write_prompt(LQ, "haze", "adaptive", None)
    with pytest.raises(ValueError, match="beauty"):
        strengthening(["beauty"])
    with pytest.raises(ValueError, match="attempt 3 needs"):
        next_instruction("first", [ASPECTS[:1]], 3, "default")


def test_hashes_follow_words_and_not_money(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    prompt = adaptive_prompt(LQ, "noise", writer)
    cheaper = prompts.Prompt(prompt.text, prompt.strategy, prompt.wording_hash, prompt.writer, Usage(None))
    assert cheaper.prompt_hash == prompt.prompt_hash
    for changed in (
        prompts.Prompt(prompt.text + " ", prompt.strategy, prompt.wording_hash, prompt.writer),
        prompts.Prompt(prompt.text, "fixed", prompt.wording_hash, prompt.writer),
        prompts.Prompt(prompt.text, prompt.strategy, "0", prompt.writer),
        prompts.Prompt(prompt.text, prompt.strategy, prompt.wording_hash, "writer/model-3"),
    ):
        assert changed.prompt_hash != prompt.prompt_hash
    before = wording_hash("fixed")
    monkeypatch.setattr(prompts, "_wording", lambda name: {"version": 2})
    assert wording_hash("fixed") != before
    assert len({wording_hash(name) for name in ("fixed", "adaptive", "feedback")}) == 1  # all patched alike


def test_exactly_the_failed_aspects_are_strengthened() -> None:
    sentences = prompts._wording("feedback")["sentences"]
    for count in range(len(ASPECTS) + 1):
        for failed in combinations(ASPECTS, count):
            text = strengthening(failed[::-1])
            assert text == strengthening(failed)
            assert all((sentences[aspect] in text) == (aspect in failed) for aspect in ASPECTS)


def test_next_instruction_by_preset() -> None:
    failed = [("geometry_alignment",), ("colour_consistency", "object_consistency"), ()]
    texts = {preset: [next_instruction("Restore.", failed, n, preset) for n in (1, 2, 3, 4)] for preset in PRESETS}
    for first, second, *_ in texts.values():
        assert first == "Restore."
        assert second == "Restore. " + strengthening(failed[0])
    assert texts["default"][2:] == ["Restore. " + strengthening([*failed[0], *failed[1]])] * 2
    assert texts["ggt100k"][2:] == [texts["ggt100k"][1]] * 2


def test_troubles_of_the_writer_pass() -> None:
    class Refusing(Writer):
        def ask(self, request: ChatRequest) -> Reply:
            raise BackendError(Trouble.REFUSED, "safety")

    with pytest.raises(BackendError) as caught:
        write_prompt(LQ, "haze", "adaptive", Refusing())
    assert caught.value.trouble is Trouble.REFUSED


def test_pictures_of_photos_are_sent_without_loss(photos: dict[str, Pixels]) -> None:
    request = adaptive_request(photos["chelsea"], "blur", seed=4)
    assert request.seed == 4 and np.array_equal(decode_png(request.pictures[0].data), photos["chelsea"])
