"""Which of two pictures of one scene is better, as a vision-language model sees it: the stop rule of rounds.

The rule is pairwise, never a threshold on a score (RAR, "Restore, Assess, Repeat"). Wording: `prompts/compare.yaml`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pairforge.config import fingerprint
from pairforge.image import Pixels, encode_png
from pairforge.protocols import Trouble
from pairforge.remote_base import Chat, ChatRequest, Picture, RemoteError, Reply

_PROMPTS = Path(__file__).parent / "prompts" / "compare.yaml"
ANSWERS = ("first", "second", "same")
LONGEST_REASON = 2000


class ChatComparison:
    """Asks `chat` whether the second picture is better than the first. `revision` names model, wording and schema."""

    def __init__(self, chat: Chat, max_output_tokens: int = 512) -> None:
        self._chat = chat
        self._max_output_tokens = max_output_tokens
        self.name = chat.name
        self.revision = f"{chat.revision}-compare{compare_prompt_hash()[:12]}"

    def __call__(self, before: Pixels, after: Pixels) -> bool:
        """Raises RemoteError, MALFORMED for an answer that is not what was asked for, with what it cost."""
        return _read(self._chat.ask(self.request(before, after))) == "second"

    def request(self, before: Pixels, after: Pixels) -> ChatRequest:
        """What is asked; for estimates too."""
        return ChatRequest(
            str(_wording()["instruction"]).strip(),
            (Picture(encode_png(before)), Picture(encode_png(after))),
            json_schema=_schema(),
            max_output_tokens=self._max_output_tokens,
        )


@cache
def _wording() -> Any:
    return yaml.safe_load(_PROMPTS.read_text(encoding="utf-8"))


@cache
def compare_prompt_hash() -> str:
    """SHA-256 over the wording, its version and the schema of the answer."""
    return fingerprint({"wording": _wording(), "schema": _schema()})


def _schema() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string", "maxLength": LONGEST_REASON},
            "better": {"type": "string", "enum": list(ANSWERS)},
        },
        "required": ["reason", "better"],
        "additionalProperties": False,
    }


def _read(reply: Reply) -> str:
    try:
        answer = json.loads(reply.data)
    except (ValueError, RecursionError):
        answer = None
    known = isinstance(answer, dict) and answer.keys() == {"reason", "better"}
    if not known or answer["better"] not in ANSWERS or not isinstance(answer["reason"], str) or not answer["reason"]:
        raise RemoteError(
            Trouble.MALFORMED, "no JSON object of a reason and a word: first, second, same", usage=reply.usage
        )
    return str(answer["better"])
