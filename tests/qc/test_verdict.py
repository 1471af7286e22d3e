"""The verdict rule, and the reader of answers: what is not exactly the schema is malformed, never guessed."""

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairforge.protocols import ASPECTS, BackendError, Judgement, Trouble, Usage
from qc.verdict import VerdictRule, answer_schema, count_agreement, decide, parse_judgement

USAGE = Usage(0.01, 5, 7)


def answer(score: Any = 95, word: str = "Accept", **scores: Any) -> dict[str, Any]:
    return {**{name: {"reason": "fine", "score": scores.get(name, score)} for name in ASPECTS}, "verdict": word}


def judgement(score: int = 95, word: bool | None = True, **scores: Any) -> Judgement:
    return Judgement({name: scores.get(name, score) for name in ASPECTS}, dict.fromkeys(ASPECTS, "x"), word)


def assert_malformed(text: str) -> None:
    with pytest.raises(BackendError) as caught:
        parse_judgement(text, USAGE)
    assert caught.value.trouble is Trouble.MALFORMED
    assert pickle.loads(pickle.dumps(caught.value)).trouble is Trouble.MALFORMED


@pytest.mark.parametrize("aspect", ASPECTS)
def test_every_score_decides_at_its_threshold(aspect: str) -> None:
    least = 90 if aspect == "object_consistency" else 60
    assert decide(judgement(95, True, **{aspect: least}), VerdictRule()).accepted
    verdict = decide(judgement(95, True, **{aspect: least - 1}), VerdictRule())
    assert not verdict.accepted and verdict.failed_aspects == (aspect,)


def test_thresholds_are_settings_and_checked() -> None:
    rule = VerdictRule(least_score=70, least_by_aspect={"geometry_alignment": 99})
    verdict = decide(judgement(69, geometry_alignment=98), rule)
    assert verdict.failed_aspects == ASPECTS
    assert decide(judgement(70, geometry_alignment=99), rule).accepted
    assert VerdictRule(least_by_aspect={"colour_consistency": 10}).least("colour_consistency") == 60
    for bad in ({"least_score": 101}, {"least_by_aspect": {"beauty": 50}}, {"least_by_aspect": {ASPECTS[0]: -1}}):
        with pytest.raises(ValueError):
            VerdictRule.model_validate(bad)


def test_disagreement_with_the_judges_own_word_is_counted() -> None:
    verdicts = [
        decide(judgement(95, word=True), VerdictRule()),
        decide(judgement(50, word=True), VerdictRule()),
        decide(judgement(50, word=True), VerdictRule()),
        decide(judgement(95, word=False), VerdictRule()),
        decide(judgement(95, word=None), VerdictRule()),
    ]
    assert count_agreement(verdicts) == {
        "agreed": 1,
        "judge_accepts_rule_rejects": 2,
        "judge_rejects_rule_accepts": 1,
        "no_word": 1,
    }
    assert set(count_agreement([]).values()) == {0}


def test_a_right_answer_is_read() -> None:
    read = parse_judgement("\n" + json.dumps(answer(71, "Reject", object_consistency=0)) + "\n", USAGE)
    assert read.scores == {**dict.fromkeys(ASPECTS, 71), "object_consistency": 0}
    assert read.reasons["object_consistency"] == "fine"
    assert read.own_word is False and read.usage is USAGE


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in answer().items() if key != name}


WRONG = {
    "empty": "",
    "prose before": "Here is my verdict: " + json.dumps(answer()),
    "prose after": json.dumps(answer()) + " I hope this helps.",
    "code fence": "```json\n" + json.dumps(answer()) + "\n```",
    "truncated": json.dumps(answer())[:-9],
    "two objects": json.dumps(answer()) * 2,
    "html": "<html><body>502</body></html>",
    "list": json.dumps([answer()]),
    "null": "null",
    "nan": json.dumps(answer(float("nan"))),
    "too high": json.dumps(answer(101)),
    "below zero": json.dumps(answer(colour_consistency=-1)),
    "fraction": json.dumps(answer(95.0)),
    "text score": json.dumps(answer("95")),
    "true": json.dumps(answer(True)),
    "no aspect": json.dumps(_without(ASPECTS[2])),
    "no verdict": json.dumps(_without("verdict")),
    "another key": json.dumps({**answer(), "comment": "x"}),
    "another word": json.dumps(answer(word="accept")),
    "word of a wrong type": json.dumps({**answer(), "verdict": ["Accept"]}),
    "empty reason": json.dumps({**answer(), ASPECTS[0]: {"reason": " ", "score": 90}}),
    "endless reason": json.dumps({**answer(), ASPECTS[0]: {"reason": "a" * 5000, "score": 90}}),
    "half a character": json.dumps({**answer(), ASPECTS[0]: {"reason": "\ud800", "score": 90}}),
    "bare score": json.dumps({**answer(), ASPECTS[0]: 90}),
    "key twice": json.dumps(answer(10))[:-1] + ', "verdict": "Accept"}',
    "score twice": json.dumps(answer()).replace('"score": 95', '"score": 5, "score": 95', 1),
    "deep": "[" * 100_000,
    "huge number": json.dumps(answer()).replace("95", "9" * 6000, 1),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_malformed(what: str) -> None:
    assert_malformed(WRONG[what])


def test_scores_that_do_not_come_from_text_are_checked_too() -> None:
    for scores in ({}, {**dict.fromkeys(ASPECTS, 90), ASPECTS[1]: 140}):
        with pytest.raises(BackendError, match=r"malformed.*no integer within 0\.\.100"):
            decide(Judgement(scores, {}, None), VerdictRule())


def obeys_schema(value: Any, schema: dict[str, Any]) -> bool:
    """A second, generic reading of the JSON schema, to hold the parser against."""
    match schema["type"]:
        case "object":
            properties = schema["properties"]
            return (
                isinstance(value, dict)
                and value.keys() == properties.keys() == set(schema["required"])
                and all(obeys_schema(value[name], part) for name, part in properties.items())
            )
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return (
                isinstance(value, str)
                and len(value) <= schema.get("maxLength", 10**9)
                and value in schema.get("enum", [value])
            )
    raise AssertionError(schema)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "insert", "replace", "truncate", "swap"]),
        st.integers(0, 2000),
        st.text(alphabet='{}[]":,0123456789.-eE tfnAcR\\u d8', max_size=6),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(EDITS, st.integers(-5, 130), st.sampled_from(["Accept", "Reject"]))
def test_mangled_answers_are_read_by_the_letter_or_not_at_all(edits: list[Any], score: int, word: str) -> None:
    text = json.dumps(answer(score, word))
    for kind, place, piece in edits:
        at = place % (len(text) + 1)
        if kind == "cut":
            text = text[:at] + text[at + len(piece) :]
        elif kind == "insert":
            text = text[:at] + piece + text[at:]
        elif kind == "replace":
            text = text[:at] + piece + text[at + len(piece) :]
        elif kind == "truncate":
            text = text[:at]
        else:
            text = text[at:] + text[:at]
    try:
        read = parse_judgement(text, USAGE)
    except BackendError as error:
        assert error.trouble is Trouble.MALFORMED
        return
    plain = json.loads(text)
    assert obeys_schema(plain, answer_schema())
    assert read.scores == {name: plain[name]["score"] for name in ASPECTS}
    assert read.reasons == {name: plain[name]["reason"] for name in ASPECTS}
    assert read.own_word is (plain["verdict"] == "Accept")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda part: st.lists(part, max_size=3)))
def test_any_json_but_the_schema_is_malformed(value: Any) -> None:
    assert_malformed(json.dumps(value))


def test_the_schema_fits_strict_structured_outputs() -> None:
    """Every object lists all its keys as required and takes no others; no `$ref`, no unions."""

    def visit(part: dict[str, Any]) -> None:
        if part["type"] == "object":
            assert part["additionalProperties"] is False
            assert set(part["required"]) == set(part["properties"])
            for inner in part["properties"].values():
                visit(inner)

    visit(answer_schema())
    assert obeys_schema(answer(), answer_schema())
