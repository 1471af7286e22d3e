"""The pairwise comparison: what counts as an answer, and what is never guessed."""

import json

import numpy as np
import pytest

from pairforge.protocols import Trouble, Usage
from pairforge.remote_base import ChatRequest, RemoteError, Reply
from qc.comparison import ChatComparison

BEFORE, AFTER = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 9, np.uint8)


class Scripted:
    name, revision = "scripted", "1"

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[ChatRequest] = []

    def ask(self, request: ChatRequest) -> Reply:
        self.asked.append(request)
        return Reply(self.text.encode(), "text/plain", Usage(0.01, 5, 5))


@pytest.mark.parametrize(("word", "better"), [("first", False), ("second", True), ("same", False)])
def test_only_a_better_second_picture_goes_on(word: str, better: bool) -> None:
    chat = Scripted(json.dumps({"reason": "less haze", "better": word}))
    assert ChatComparison(chat)(BEFORE, AFTER) is better
    assert [picture.mime for picture in chat.asked[0].pictures] == ["image/png"] * 2
    assert chat.asked[0].pictures[0].data != chat.asked[0].pictures[1].data and chat.asked[0].json_schema


@pytest.mark.parametrize(
    "text",
    [
        "second",
        "",
        '{"better": "second"}',
        '{"reason": "", "better": "second"}',
        '{"reason": "x", "better": "both"}',
        '{"reason": "x", "better": "second", "more": 1}',
        'Sure! {"reason": "x", "better": "second"}',
        '{"reason": "x", "better": "sec',
    ],
)
def test_anything_else_is_malformed_and_says_what_it_cost(text: str) -> None:
    with pytest.raises(RemoteError) as caught:
        ChatComparison(Scripted(text))(BEFORE, AFTER)
    assert caught.value.trouble is Trouble.MALFORMED and caught.value.usage.cost_usd == 0.01
