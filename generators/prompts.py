"""What generators are told: fixed or written for one picture, and strengthened after a rejection.

All wording is in `prompts/*.yaml`, each file with a version. A prompt carries a hash of the wording it came from,
the name of its strategy and its text, so that a record tells which words made its pixels.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from pairforge.config import fingerprint
from pairforge.image import Pixels, encode_png
from pairforge.protocols import ASPECTS, Trouble, Usage
from pairforge.remote_base import Chat, ChatRequest, Picture, RemoteError, Reply

Strategy = Literal["fixed", "fixed_no_change", "adaptive"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
Preset = Literal["default", "ggt100k"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
CATEGORIES = (
    *("general_mixed", "low_light", "haze", "rain", "snow", "old_photo"),
    *("blur", "reflection", "flare", "moire", "noise", "compression"),
)
LEAST_CHARACTERS, MOST_CHARACTERS = 80, 4000
"""Of what a model may write as an instruction; anything else is malformed."""

_FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """`writer` is name and revision of the model that wrote `text`, empty for fixed wording."""

    text: str
    strategy: Strategy
    wording_hash: str
    writer: str = ""
    usage: Usage = field(default_factory=lambda: Usage(0.0))

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of what was said and of where it came from; what it cost is no part of it."""
        return fingerprint(
            {"text": self.text, "strategy": self.strategy, "wording": self.wording_hash, "writer": self.writer}
        )


@cache
def _wording(name: str) -> Any:
    return yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def wording_hash(name: Literal["fixed", "adaptive", "feedback"]) -> str:
    """SHA-256 of one file of wording, its version included, comments and line breaks not."""
    return fingerprint(_wording(name))


def _known(category: str, allowed: Sequence[str]) -> str:
    if category not in allowed:
        raise ValueError(f"no prompt for category {category!r}; there are: {' '.join(allowed)}")
    return category


def fixed_prompt(category: str, no_change: bool) -> Prompt:
    """The instruction of a category, with or without the sentence that forbids to change content. Raises ValueError."""
    text = _wording("fixed")["instructions"][_known(category, CATEGORIES)]
    if no_change:
        text = f"{text} {_wording('fixed')['no_change']}"
    return Prompt(text, "fixed_no_change" if no_change else "fixed", wording_hash("fixed"))


def adaptive_request(lq: Pixels, category: str, seed: int | None = None) -> ChatRequest:
    """The question that makes a model write the instruction for `lq`; every hard constraint is in it."""
    words = _wording("adaptive")
    _known(category, CATEGORIES)
    rules = words["colour_rules"]
    constraints = words["constraints"].replace("{colour_rule}", rules.get(category, rules["default"]))
    text = words["meta"]
    for name, value in (
        ("{task}", words["tasks"][category]),
        ("{focus}", words["focus"][category]),
        ("{constraints}", constraints.strip()),
    ):
        text = text.replace(name, value)
    return ChatRequest(text.strip(), (Picture(encode_png(lq)),), max_output_tokens=1024, seed=seed)


def hard_constraints(category: str) -> tuple[str, ...]:
    """Of one category, a sentence each."""
    words = _wording("adaptive")
    rules = words["colour_rules"]
    text = words["constraints"].replace("{colour_rule}", rules.get(_known(category, CATEGORIES), rules["default"]))
    return tuple(line.removeprefix("- ").strip() for line in text.strip().splitlines())


def adaptive_prompt(lq: Pixels, category: str, chat: Chat) -> Prompt:
    """An instruction that `chat` wrote for `lq`, and after it the hard constraints, so that none can get lost.

    Raises BackendError; one that is empty, cut short or no single paragraph of text is malformed.
    """
    reply = chat.ask(adaptive_request(lq, category))
    written = _read_instruction(reply)
    text = f"{written} {' '.join(hard_constraints(category))}"
    return Prompt(text, "adaptive", wording_hash("adaptive"), f"{chat.name}/{chat.revision}", reply.usage)


def _read_instruction(reply: Reply) -> str:
    try:
        text = reply.text.strip()
    except UnicodeDecodeError as error:
        raise RemoteError(Trouble.MALFORMED, "the instruction is no UTF-8 text", usage=reply.usage) from error
    problem = _problem(text)
    if problem:
        raise RemoteError(Trouble.MALFORMED, f"the instruction {problem}: {text[:40]!r}", usage=reply.usage)
    return text


def _problem(text: str) -> str | None:
    if not LEAST_CHARACTERS <= len(text) <= MOST_CHARACTERS:
        return f"has {len(text)} characters, not {LEAST_CHARACTERS} to {MOST_CHARACTERS}"
    if any(unicodedata.category(character).startswith("C") for character in text):
        return "is not one paragraph, or holds control characters"
    if text[0] in "{[<`#*":
        return "begins like markup or data"
    if text[-1] not in ".!?\"'”)":
        return "does not end with a sentence: it was cut"
    return None


def write_prompt(lq: Pixels, category: str, strategy: Strategy, chat: Chat | None) -> Prompt:
    """The first prompt of a record. Raises ValueError where `adaptive` has nobody to ask, BackendError as the chat."""
    if strategy != "adaptive":
        return fixed_prompt(category, no_change=strategy == "fixed_no_change")
    if chat is None:
        raise ValueError("strategy adaptive needs a chat backend")
    return adaptive_prompt(lq, category, chat)


def strengthening(failed_aspects: Sequence[str]) -> str:
    """The sentences of exactly these aspects, in the order of ASPECTS, whatever the order they came in."""
    for aspect in failed_aspects:
        _known(aspect, ASPECTS)
    sentences = _wording("feedback")["sentences"]
    return " ".join(sentences[aspect] for aspect in ASPECTS if aspect in failed_aspects)


def next_instruction(first: str, failed_aspects: Sequence[Sequence[str]], attempt: int, preset: Preset) -> str:
    """What attempt 1, 2, ... is told. `failed_aspects[i]` are those of attempt i + 1; attempts before this one count.

    default: the first instruction and, once each, the sentences of exactly the aspects that failed so far: a generator
    remembers nothing, so what was mended once has to be asked for again. ggt100k: from attempt 3 on the instruction of
    attempt 2 stays as it is, as another draw alone may do (arXiv 2605.31039). Raises ValueError where aspects of an
    attempt before are missing.
    """
    if attempt < 1 or len(failed_aspects) < attempt - 1:
        raise ValueError(f"attempt {attempt} needs the failed aspects of those before, {len(failed_aspects)} are given")
    counted = failed_aspects[: min(attempt - 1, 1) if preset == "ggt100k" else attempt - 1]
    return f"{first} {strengthening([aspect for failed in counted for aspect in failed])}".strip()
