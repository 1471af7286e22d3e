"""A vision-language model as a scorer of one photo: scripted answers, and the true OpenAI client over loopback."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from filters.clip import PROMPTS as CLIP_PROMPTS
from filters.vlm import FLAGS, PROMPTS, ChatScorer, presence_prompt_hash
from generators.prompts import CATEGORIES
from pairforge.config import ConfigError
from pairforge.image import Pixels, decode_png
from pairforge.protocols import BackendError, Scorer, Trouble, Usage
from pairforge.remote import Endpoint, Prices, RemoteError, open_remote
from pairforge.remote_base import ChatRequest, Reply
from tests.api_server import Act, Call, Fail, Raw, Refuse, Say, api_server

DEGRADATIONS = tuple(name for name in CATEGORIES if name != "general_mixed")
NUMBERS = {
    **dict.fromkeys(("cleanliness_0_5", *(f"{name}_0_5" for name in DEGRADATIONS)), 0),
    **{"cleanliness_0_5": 2, "haze_0_5": 4, "noise_0_5": 1, "watermark": 0, "overlaid_text": 1, "suitable": 1},
}
GOOD = {"reason": "A veil over the hills, and a date stamp in the corner.", **NUMBERS}


def text_of(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


class Scripted:
    """Answers the same every time and keeps what it was asked."""

    name, revision = "scripted", "model-1"

    def __init__(self, answer: bytes | BackendError) -> None:
        self.answer = answer
        self.asked: list[ChatRequest] = []

    def ask(self, request: ChatRequest) -> Reply:
        self.asked.append(request)
        if isinstance(self.answer, BackendError):
            raise self.answer
        return Reply(self.answer, "application/json", Usage(0.02, 100, 50))


@pytest.fixture(scope="module")
def photo(photos: dict[str, Pixels]) -> Pixels:
    return np.ascontiguousarray(photos["rocket"][:60, :80])


def test_the_photo_goes_out_as_it_is_and_numbers_come_back(photo: Pixels) -> None:
    chat = Scripted(json.dumps(GOOD).encode())
    scorer = ChatScorer(chat)
    as_scorer: Scorer = scorer
    values = as_scorer.measure(photo)
    assert values == NUMBERS and all(type(value) is float for value in values.values())
    assert tuple(values) == scorer.measures == tuple(NUMBERS)
    (request,) = chat.asked
    assert request == scorer.request(photo)
    (picture,) = request.pictures
    assert np.array_equal(decode_png(picture.data), photo)
    assert request.json_schema is not None and request.json_schema["required"] == list(GOOD)
    assert request.json_schema["additionalProperties"] is False
    assert scorer.look(photo).reason == GOOD["reason"]
    assert scorer.name == "scripted"
    assert scorer.revision == f"model-1-presence{presence_prompt_hash()[:12]}"


@pytest.mark.parametrize(
    "answer",
    {
        "empty": b"",
        "prose": b"The photo is hazy.",
        "prose around": b"Sure! " + text_of().encode(),
        "fence": b"```json\n" + text_of().encode() + b"\n```",
        "truncated": text_of().encode()[:-3],
        "two objects": text_of().encode() * 2,
        "no utf-8": b"\xff\xfe",
        "list": b"[]",
        "deep": b"[" * 100_000,
        "key twice": text_of().encode().replace(b'"haze_0_5": 4', b'"haze_0_5": 1, "haze_0_5": 4'),
        "key missing": json.dumps({key: value for key, value in GOOD.items() if key != "rain_0_5"}).encode(),
        "key more": text_of(dust_0_5=1).encode(),
        "too high": text_of(haze_0_5=6).encode(),
        "negative": text_of(cleanliness_0_5=-1).encode(),
        "no whole number": text_of(haze_0_5=3.0).encode(),
        "no number": text_of(haze_0_5="4").encode(),
        "true": text_of(watermark=True).encode(),
        "flag of two": text_of(suitable=2).encode(),
        "nan": text_of(haze_0_5=float("nan")).encode(),
        "null": text_of(haze_0_5=None).encode(),
        "no reason": text_of(reason="  ").encode(),
        "endless reason": text_of(reason="x" * 2001).encode(),
        "half a character": text_of(reason="\ud83d").encode(),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_cannot_be_read_is_malformed_with_its_price(photo: Pixels, answer: tuple[str, bytes]) -> None:
    with pytest.raises(RemoteError) as caught:
        ChatScorer(Scripted(answer[1])).measure(photo)
    assert caught.value.trouble is Trouble.MALFORMED
    assert caught.value.usage == Usage(0.02, 100, 50)
    assert len(caught.value.detail) < 400


def test_troubles_pass_through(photo: Pixels) -> None:
    with pytest.raises(BackendError) as caught:
        ChatScorer(Scripted(BackendError(Trouble.QUOTA, "slow down", 3.0))).measure(photo)
    assert caught.value.trouble is Trouble.QUOTA and caught.value.retry_after_s == 3.0


def test_the_wording_asks_for_our_vocabulary() -> None:
    wording = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    assert set(wording["degradations"]) == set(DEGRADATIONS)
    clip = yaml.safe_load(CLIP_PROMPTS.read_text(encoding="utf-8"))
    assert set(wording["degradations"]) == set(clip["categories"]) - {"clean"}
    question = ChatScorer(Scripted(b"")).request(np.zeros((4, 4, 3), np.uint8)).text
    assert "{" not in question
    assert all(name in question for name in ("reason", *NUMBERS, *FLAGS))


def test_a_wording_of_your_own(photo: Pixels, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("version: 3\ninstruction: 'Look. {degradations} Give {keys}.'\ndegradations: {dust: specks}\n")
    values = {"cleanliness_0_5": 5, "dust_0_5": 0, "watermark": 0, "overlaid_text": 0, "suitable": 1}
    chat = Scripted(json.dumps({"reason": "Clean.", **values}).encode())
    scorer = ChatScorer(chat, file)
    assert scorer.measure(photo) == values
    assert scorer.revision != ChatScorer(chat).revision and presence_prompt_hash(file) != presence_prompt_hash()
    assert chat.asked[0].text == (
        "Look. dust_0_5: specks Give reason, cleanliness_0_5, dust_0_5, watermark, overlaid_text, suitable."
    )
    for bad in ("version: 3\ninstruction: 'Look.'\ndegradations: {dust: specks}\n", "version: 1\n"):
        file.write_text(bad)
        with pytest.raises(ConfigError, match=r"own\.yaml"):
            ChatScorer(chat, file)


CASES: dict[str, tuple[Act, Trouble | None]] = {
    "good": (Say(text_of()), None),
    "prose": (Say(f"Here it is: {text_of()}"), Trouble.MALFORMED),
    "out of range": (Say(text_of(haze_0_5=9)), Trouble.MALFORMED),
    "cut by length": (Say(text_of()[:-30], finish="length"), Trouble.MALFORMED),
    "cut on the way": (Say(text_of(), cut=True), Trouble.MALFORMED),
    "page of a proxy": (Raw(b"<html>maintenance</html>"), Trouble.MALFORMED),
    "refused": (Refuse(), Trouble.REFUSED),
    "too many": (Fail(429, headers={"Retry-After": "2"}), Trouble.QUOTA),
}


@pytest.mark.parametrize("case", CASES)
def test_the_true_client(photo: Pixels, case: str) -> None:
    act, trouble = CASES[case]
    pytest.importorskip("openai")

    def script(call: Call) -> Act:
        return act

    with api_server(script) as server:
        prices = Prices(usd_per_1m_input_tokens=1.0, usd_per_1m_output_tokens=10.0)
        chat = open_remote(
            Endpoint(backend="openai_chat", model="tiny", base_url=server.openai_url, timeout_s=20, prices=prices)
        )
        scorer = ChatScorer(chat)
        if trouble is None:
            assert scorer.measure(photo) == NUMBERS
        else:
            with pytest.raises(RemoteError) as caught:
                scorer.measure(photo)
            assert caught.value.trouble is trouble
        if case in ("prose", "out of range"):
            assert caught.value.usage.cost_usd == pytest.approx(0.0003)
        call = server.ledger[0].call
        assert np.array_equal(decode_png(call.images[0]), photo)
        sent = call.body["response_format"]["json_schema"]
        assert sent["strict"] is True and sent["schema"] == scorer.request(photo).json_schema
        assert scorer.name == "openai_chat" and scorer.revision.startswith("tiny-presence")
