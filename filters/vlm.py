"""How clean a photo is, what degrades it and how much, as a vision-language model sees it.

The question is `prompts/presence.yaml`; what it asks for follows GGT-100K (arXiv 2605.31039), which lets a model
verify after the cheaper filters that a degradation is present, and how severe it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from pairforge.config import fingerprint, load_config
from pairforge.image import Pixels, encode_png
from pairforge.protocols import Trouble, Usage
from pairforge.records import Frozen
from pairforge.remote_base import Chat, ChatRequest, Picture, RemoteError

PROMPTS = Path(__file__).parent / "prompts" / "presence.yaml"
"""The wording that comes with PairForge."""
LONGEST_REASON = 2000
"""Characters of a reason that is still taken for one."""
FLAGS = ("watermark", "overlaid_text", "suitable")
"""Measures that are 0 or 1."""

_Text = Annotated[str, Field(min_length=1)]
_Category = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class PresencePrompts(Frozen):
    """The question about one photo, as `filters/prompts/presence.yaml` has it."""

    version: int = Field(ge=1)
    instruction: str
    degradations: Annotated[dict[_Category, _Text], Field(min_length=1)]

    @field_validator("instruction")
    @classmethod
    def _has_places(cls, value: str) -> str:
        if any(value.count(place) != 1 for place in ("{degradations}", "{keys}")):
            raise ValueError("must hold {degradations} and {keys} once each")
        return value

    @property
    def ranges(self) -> dict[str, int]:
        """Measures in the order of the answer, with the highest value of each; the lowest is 0."""
        severities = {f"{name}_0_5": 5 for name in ("cleanliness", *self.degradations)}
        return {**severities, **dict.fromkeys(FLAGS, 1)}

    @property
    def question(self) -> str:
        listed = "\n".join(f"{name}_0_5: {meaning}" for name, meaning in self.degradations.items())
        keys = ", ".join(["reason", *self.ranges])
        return self.instruction.replace("{degradations}", listed).replace("{keys}", keys).strip()

    @property
    def answer_schema(self) -> dict[str, Any]:
        """JSON schema of an answer, for structured outputs: the reason first, so that numbers follow from it."""
        numbers = {name: {"type": "integer", "minimum": 0, "maximum": highest} for name, highest in self.ranges.items()}
        return {
            "type": "object",
            "properties": {"reason": {"type": "string", "maxLength": LONGEST_REASON}, **numbers},
            "required": ["reason", *numbers],
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class Presence:
    """What a model said of one photo: whole numbers by measure, and why."""

    values: Mapping[str, float]
    reason: str


class ChatScorer:
    """A `pairforge.protocols.Scorer` that asks a model about one photo.

    Measures: `cleanliness_0_5` (5 is clean), the severity of each degradation as NAME_0_5 (0 is absent), and
    `watermark`, `overlaid_text`, `suitable` as 0 or 1. Photos go out as PNG, so that no codec adds to what is judged.
    `revision` names the model's and a hash of wording and schema. Raises ConfigError for wording that cannot be used.
    """

    def __init__(self, chat: Chat, prompts: Path = PROMPTS, max_output_tokens: int = 1024) -> None:
        self._chat = chat
        self._prompts = load_config(prompts, PresencePrompts)
        self._max_output_tokens = max_output_tokens
        self.name = chat.name
        self.revision = f"{chat.revision}-presence{_hash_of(self._prompts)[:12]}"

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(self._prompts.ranges)

    def measure(self, pixels: Pixels) -> Mapping[str, float]:
        """Numbers by measure; the reason stays behind."""
        return self.look(pixels).values

    def look(self, pixels: Pixels) -> Presence:
        """Numbers and reason. What cannot be read is a RemoteError (malformed) with what the answer cost."""
        reply = self._chat.ask(self.request(pixels))
        return _read(reply.data, self._prompts.ranges, reply.usage)

    def request(self, pixels: Pixels) -> ChatRequest:
        """What `measure` asks; for estimates too."""
        return ChatRequest(
            self._prompts.question,
            (Picture(encode_png(pixels)),),
            json_schema=self._prompts.answer_schema,
            max_output_tokens=self._max_output_tokens,
        )


@cache
def presence_prompt_hash(prompts: Path = PROMPTS) -> str:
    """SHA-256 over the wording, its version and the schema of the answer."""
    return _hash_of(load_config(prompts, PresencePrompts))


def _hash_of(prompts: PresencePrompts) -> str:
    return fingerprint({"wording": prompts.model_dump(mode="json"), "schema": prompts.answer_schema})


def _read(data: bytes, ranges: Mapping[str, int], usage: Usage) -> Presence:
    """An answer, whatever the server promised about its form: one JSON object, all keys once, nothing guessed."""
    try:
        answer = json.loads(data.decode(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise RemoteError(
            Trouble.MALFORMED, f"not one JSON object: {len(data)} bytes, beginning {data[:40]!r}", usage=usage
        ) from error
    if problem := _problem(answer, ranges):
        raise RemoteError(Trouble.MALFORMED, problem, usage=usage)
    return Presence({name: float(answer[name]) for name in ranges}, answer["reason"])


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _problem(answer: Any, ranges: Mapping[str, int]) -> str | None:
    keys = ("reason", *ranges)
    if not isinstance(answer, dict) or answer.keys() != set(keys):
        return f"the answer is no object of {' '.join(keys)}"
    reason = answer["reason"]
    if not isinstance(reason, str) or not reason.strip() or len(reason) > LONGEST_REASON or not _is_whole(reason):
        return f"there is no reason of 1 to {LONGEST_REASON} characters"
    for name, highest in ranges.items():
        value = answer[name]
        # bool is an int in Python, and true is no number.
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
            return f"{name} is no whole number within 0..{highest}"
    return None


def _is_whole(text: str) -> bool:
    """False for half of a surrogate pair, which JSON may escape and no file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
