"""Rules that keep or refuse a source by its stored values. Data, so that re-deciding needs no pixels.

A value is a number by the name of its measure, or a text such as a licence. Rules are tried in their order, and the
first that fails names the reason.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pairforge.config_words import Words
from pairforge.records import Frozen

Value = float | str | None
"""What is stored by a name; None where nothing could be measured yet."""

Reason = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9_]*$", max_length=64, description="word by which sources that fail are told and counted"
    ),
    Words("1 to 64 characters of a-z, 0-9 and _, the first a letter"),
]


class UnmeasuredError(ValueError):
    """A rule needs a value that is not there: not measured, or the service gave none. Such a source is undecided."""


class RangeRule(Frozen):
    """Passes what is least <= value <= most; a bound left out does not bound."""

    measure: str = Field(min_length=1, description="name of the number, e.g. statistics.sharpness")
    least: float | None = Field(None, description="lowest number that passes")
    most: float | None = Field(None, description="highest number that passes")
    reason: Reason

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.least is None and self.most is None:
            raise ValueError(f"rule {self.reason!r} bounds nothing: give least, most, or both")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"rule {self.reason!r}: least {self.least} is above most {self.most}, nothing would pass")
        return self

    def passes(self, value: float | str) -> bool:
        """Raises ValueError for a text or a number that is not finite."""
        if isinstance(value, str) or not math.isfinite(value):
            raise ValueError(f"{self.measure} is {value!r}; rule {self.reason!r} needs a finite number")
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


class LicenceRule(Frozen):
    """Passes what has one of the `allowed` licences, without regard to case; an empty one never passes.

    Compared as a whole, so `MIT OR Apache-2.0` passes only where it is listed as such.
    """

    allowed: tuple[str, ...] = Field(min_length=1, description="licences that pass, as the sources state them")
    measure: str = Field("licence", min_length=1, description="name of the text that is compared")
    reason: Reason = "licence"

    @field_validator("allowed")
    @classmethod
    def _no_empty(cls, allowed: tuple[str, ...]) -> tuple[str, ...]:
        if not all(licence.strip() for licence in allowed):
            raise ValueError(f"allowed licences {allowed} hold an empty one")
        return allowed

    def passes(self, value: float | str) -> bool:
        """Raises ValueError for a number."""
        if not isinstance(value, str):
            raise ValueError(f"{self.measure} is {value!r}; rule {self.reason!r} needs a text")
        return _plain(value) in {_plain(licence) for licence in self.allowed}


def _plain(licence: str) -> str:
    return licence.strip().casefold()


def _kind(rule: Any) -> str:
    named = rule if isinstance(rule, Mapping) else vars(rule) if isinstance(rule, Frozen) else {}
    return "licence" if "allowed" in named else "range"


Rule = Annotated[
    Annotated[RangeRule, Tag("range")] | Annotated[LicenceRule, Tag("licence")],
    Discriminator(_kind),
]
"""In a config: `{measure, least, most, reason}`, or `{allowed: [...]}` for licences."""


def decide(values: Mapping[str, Value], rules: Sequence[RangeRule | LicenceRule]) -> RangeRule | LicenceRule | None:
    """The first rule that fails, None where all pass.

    Raises UnmeasuredError where the value of a rule is missing or None and no earlier rule fails.
    """
    for rule in rules:
        value = values.get(rule.measure)
        if value is None:
            raise UnmeasuredError(f"rule {rule.reason!r} needs {rule.measure!r}, which was not measured")
        if not rule.passes(value):
            return rule
    return None
