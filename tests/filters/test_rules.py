"""Rules are data: what they refuse, what is undecided, and that stored values are enough to decide again."""

import json
import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from filters.rules import LicenceRule, RangeRule, Rule, UnmeasuredError, decide

RULES: TypeAdapter[tuple[Any, ...]] = TypeAdapter(tuple[Rule, ...])
GIVEN: list[dict[str, Any]] = [
    {"allowed": ["CC0-1.0", "public domain"]},
    {"measure": "megapixels", "least": 0.25, "reason": "too_small"},
    {"measure": "blockiness", "most": 1.3, "reason": "blocks"},
    {"measure": "aspect", "least": 0.5, "most": 2.0, "reason": "too_long"},
]
GOOD = {"licence": "CC0-1.0", "megapixels": 1.0, "blockiness": 1.05, "aspect": 1.5, "unused": 3.0}


def reason(values: dict[str, Any], given: list[dict[str, Any]] | None = None) -> str | None:
    failed = decide(values, RULES.validate_python(given or GIVEN))
    return failed.reason if failed else None


def test_all_pass() -> None:
    assert reason(GOOD) is None
    assert decide({}, ()) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"licence": "CC-BY-NC-4.0"}, "licence"),
        ({"licence": ""}, "licence"),
        ({"licence": "CC0-1.0 OR MIT"}, "licence"),
        ({"licence": " cc0-1.0 "}, None),
        ({"licence": "Public Domain"}, None),
        ({"megapixels": 0.2499}, "too_small"),
        ({"megapixels": 0.25}, None),
        ({"blockiness": 1.3}, None),
        ({"blockiness": 1.3000001}, "blocks"),
        ({"aspect": 0.4}, "too_long"),
        ({"aspect": 2.1}, "too_long"),
        ({"aspect": 2.1, "megapixels": 0.1}, "too_small"),
    ],
)
def test_the_first_rule_that_fails_is_the_reason(change: dict[str, Any], expected: str | None) -> None:
    assert reason({**GOOD, **change}) == expected


def test_order_is_the_order_of_reasons() -> None:
    bad = {**GOOD, "aspect": 9.0, "blockiness": 9.0}
    assert reason(bad) == "blocks"
    assert reason(bad, GIVEN[::-1]) == "too_long"


def test_what_was_not_measured_is_undecided_unless_refused_before() -> None:
    for missing in ({**GOOD, "blockiness": None}, {k: v for k, v in GOOD.items() if k != "blockiness"}):
        with pytest.raises(UnmeasuredError, match="blockiness"):
            reason(missing)
        assert reason({**missing, "megapixels": 0.0}) == "too_small"


@pytest.mark.parametrize("value", [math.nan, math.inf, "1.0"])
def test_a_value_of_the_wrong_kind_is_no_verdict(value: Any) -> None:
    with pytest.raises(ValueError, match="finite number"):
        reason({**GOOD, "blockiness": value})
    with pytest.raises(ValueError, match="needs a text"):
        reason({**GOOD, "licence": 1.0})


def test_retuning_needs_the_stored_values_alone() -> None:
    stored = [json.dumps({**GOOD, "blockiness": 1 + step / 10}) for step in range(10)]
    counts = {}
    for most in (1.0, 1.3, 2.0):
        rules = RULES.validate_python([*GIVEN[:2], {"measure": "blockiness", "most": most, "reason": "blocks"}])
        counts[most] = sum(decide(json.loads(values), rules) is None for values in stored)
    assert counts == {1.0: 1, 1.3: 4, 2.0: 10}


def test_rules_survive_json_and_cannot_change() -> None:
    rules = RULES.validate_python(GIVEN)
    assert RULES.validate_json(RULES.dump_json(rules)) == rules
    assert [type(rule) for rule in rules] == [LicenceRule, RangeRule, RangeRule, RangeRule]
    with pytest.raises(ValidationError, match="frozen"):
        rules[1].least = 0.0


@pytest.mark.parametrize(
    "given",
    [
        {"measure": "aspect", "reason": "no_bounds"},
        {"measure": "aspect", "least": 2, "most": 1, "reason": "empty"},
        {"measure": "aspect", "least": math.nan, "reason": "nan"},
        {"measure": "aspect", "least": 2, "reason": "Not A Name"},
        {"measure": "aspect", "least": 2},
        {"measure": "", "least": 2, "reason": "unnamed"},
        {"measure": "aspect", "least": 2, "reason": "more", "maximum": 3},
        {"allowed": []},
        {"allowed": ["CC0-1.0", " "]},
        {"allowed": ["CC0-1.0"], "least": 2},
        "aspect < 2",
    ],
)
def test_rules_that_say_nothing_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        RULES.validate_python([given])
