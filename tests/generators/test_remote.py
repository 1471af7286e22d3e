"""The true SDK clients of both protocols against a loopback service: what is sent, kept, refused, and bought once."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from generators.remote import RemoteGenerator
from generators.returned import SizeRule, fit_candidate, resized
from pairforge.image import Pixels, decode_png, encode_png
from pairforge.journal import Partition
from pairforge.limits import Budget, ClockedGate, Limits, Patience
from pairforge.protocols import BackendError, Candidate, Generator, Trouble
from pairforge.remote import Endpoint, Paid, Prices, RemoteClient, RemoteError, open_remote, paying
from pairforge.storage import open_storage
from tests.api_server import Act, ApiServer, Call, Fail, Half, Raw, Refuse, Say, Show, api_server

BACKENDS = ("openai_images", "gemini_images")
PRICES = Prices(usd_per_image=0.04)
Script = Callable[[Call], Act]


class Scripted:
    """One service for the whole file; each test sets what it does."""

    def __init__(self) -> None:
        self.act: Act | Script = Say("unset")
        self.calls: list[Call] = []

    def __call__(self, call: Call) -> Act:
        self.calls.append(call)
        return self.act(call) if callable(self.act) else self.act


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ApiServer, Scripted]]:
    script = Scripted()
    with api_server(script, key="sk-planted-5f2c9d1e") as server:
        yield server, script


@pytest.fixture
def script(running: tuple[ApiServer, Scripted]) -> Scripted:
    running[1].calls.clear()
    return running[1]


@pytest.fixture
def client(
    running: tuple[ApiServer, Scripted], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], RemoteClient]]:
    monkeypatch.setenv("PLANTED_KEY", "sk-planted-5f2c9d1e")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    opened: list[RemoteClient] = []

    def make(backend: str) -> RemoteClient:
        url = running[0].openai_url if backend == "openai_images" else running[0].url
        settings: dict[str, Any] = {"backend": backend, "model": "tiny", "base_url": url, "api_key_env": "PLANTED_KEY"}
        opened.append(open_remote(Endpoint(**settings, timeout_s=5.0, prices=PRICES)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def generator(backend: str, client: Callable[[str], RemoteClient]) -> RemoteGenerator:
    return RemoteGenerator(client(backend), SizeRule(), 0.04)


@pytest.fixture(scope="module")
def lq(photos: dict[str, Pixels]) -> Pixels:
    return np.ascontiguousarray(photos["coffee"][40:160, 60:240])  # 180x120


def jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def trouble_of(generator: RemoteGenerator, lq: Pixels) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        generator.generate(lq, "remove the rain", 5)
    return caught.value


def negative(call: Call) -> Act:
    return Show((encode_png(255 - decode_png(call.images[0])),))


# ---------------------------------------------------------------- what is sent and kept


def test_an_answer_of_the_right_size(generator: RemoteGenerator, backend: str, script: Scripted, lq: Pixels) -> None:
    script.act = negative
    typed: Generator = generator
    candidate = typed.generate(lq, "remove the rain", 5)
    assert np.array_equal(candidate.pixels, 255 - lq) and candidate.corrections == ()
    assert (candidate.data, candidate.mime) == (encode_png(255 - lq), "image/png")
    assert candidate.usage.cost_usd == pytest.approx(0.04) and candidate.usage.output_tokens == 1290
    [call] = script.calls
    assert np.array_equal(decode_png(call.images[0]), lq) and call.text == "remove the rain"
    if backend == "gemini_images":
        assert call.body["generationConfig"]["seed"] == 5
    else:
        assert "size" not in call.body, "without canvases the service chooses"


def test_it_says_who_it_is(generator: RemoteGenerator, backend: str, client: Callable[[str], RemoteClient]) -> None:
    assert generator.name == backend and generator.revision.startswith("tiny-")
    assert (generator.deterministic, generator.price_usd) == (False, 0.04)
    other = RemoteGenerator(client(backend), SizeRule(most_aspect_error=0.05), 0.04)
    assert other.revision != generator.revision, "the rule decides about pixels"
    request = generator.request(np.zeros((6, 8, 3), np.uint8), "go", 1)
    assert client(backend).reserve_usd(request) == pytest.approx(0.04)


def test_a_larger_answer_and_a_jpeg(generator: RemoteGenerator, script: Scripted, lq: Pixels) -> None:
    script.act = Show((jpeg(resized(255 - lq, (360, 240))),))  # which the service calls image/png
    candidate = generator.generate(lq, "go", 0)
    assert candidate.pixels.shape == lq.shape and candidate.corrections == ("resized from 360x240",)
    assert candidate.mime == "image/jpeg" and candidate.data == script.act.images[0]
    assert np.abs(candidate.pixels.astype(int) - (255 - lq)).mean() < 3
    again = fit_candidate(lq, candidate.data, candidate.mime, candidate.usage, generator.rule)
    assert np.array_equal(again.pixels, candidate.pixels)


def test_a_service_of_few_sizes_gets_the_nearest(
    backend: str, client: Callable[[str], RemoteClient], script: Scripted, lq: Pixels
) -> None:
    """The service gives its own size whatever it was sent, and what it shows there is the frame that it was sent."""
    script.act = lambda call: Show((encode_png(resized(decode_png(call.images[0]), (256, 192))),))
    generator = RemoteGenerator(client(backend), SizeRule(canvases=((192, 192), (256, 192), (192, 256))), 0.04)
    candidate = generator.generate(lq, "go", 0)
    assert decode_png(script.calls[0].images[0]).shape == (135, 180, 3)
    if backend == "openai_images":
        assert script.calls[0].body["size"] == "256x192"
    assert candidate.corrections == ("resized from 256x192", "cropped from 180x135 at 0,7")
    assert np.abs(candidate.pixels.astype(int) - lq).mean() < 2
    script.calls.clear()
    error = trouble_of(generator, np.zeros((960, 1280, 3), np.uint8))
    assert (error.trouble, error.usage.cost_usd) == (Trouble.WRONG_SIZE, 0.0) and not script.calls


# ---------------------------------------------------------------- faults


def faults(lq: Pixels) -> dict[str, tuple[Act, Trouble, float | None]]:
    right, wide = encode_png(lq), encode_png(lq[:80])
    return {
        "wrong aspect": (Show((wide,)), Trouble.WRONG_SIZE, 0.04),
        "too small": (Show((encode_png(resized(lq, (45, 30))),)), Trouble.WRONG_SIZE, 0.04),
        "half a PNG": (Show((right[: len(right) // 2],)), Trouble.MALFORMED, 0.04),
        "half a JPEG": (Show((jpeg(lq)[:2000],)), Trouble.MALFORMED, 0.04),
        "HTML as an image": (Show((b"<html>hello</html>",)), Trouble.MALFORMED, 0.04),
        "HTML": (Raw(b"<html>hello</html>"), Trouble.MALFORMED, None),
        "refusal": (Refuse(), Trouble.REFUSED, None),
        "broken off": (Half(Show((right,))), Trouble.UNAVAILABLE, None),
        "too many": (Fail(429), Trouble.QUOTA, 0.0),
    }


@pytest.mark.parametrize("fault", faults(np.zeros((120, 180, 3), np.uint8)))
def test_a_fault_is_typed_and_says_what_it_cost(
    fault: str, generator: RemoteGenerator, backend: str, script: Scripted, lq: Pixels
) -> None:
    script.act, trouble, cost_usd = faults(lq)[fault]
    error = trouble_of(generator, lq)
    assert error.trouble == trouble
    if fault == "refusal":
        assert error.usage.cost_usd == (0.0 if backend == "openai_images" else None)
    else:
        assert error.usage.cost_usd == cost_usd
    assert len(script.calls) == 1


# ---------------------------------------------------------------- paid once


def resumed(folder: Path, client: RemoteClient, lq: Pixels, keys: tuple[str, ...]) -> dict[str, Candidate | Trouble]:
    """What a process that starts now gets for each record."""
    patience = Patience(backoff_s=0.01, max_backoff_s=0.02, max_requests=3, deadline_s=20)
    paid = Paid(client, ClockedGate(Limits(requests_per_min=60000)), Budget(1.0), patience)
    generator = RemoteGenerator(paid, SizeRule(), 0.04)
    partition = Partition(open_storage(str(folder)), "rain/0001")
    found: dict[str, Candidate | Trouble] = {}
    for key in keys:
        with paying(partition, key, "generate", 1):
            try:
                found[key] = generator.generate(lq, f"record:{key} remove the rain", 1)
            except BackendError as error:
                found[key] = error.trouble
    return found


def test_a_resumed_process_buys_nothing_again(
    backend: str, client: Callable[[str], RemoteClient], script: Scripted, lq: Pixels, tmp_path: Path
) -> None:
    answers: dict[str, Act] = {
        "kept": Show((jpeg(255 - lq),)),
        "wide": Show((encode_png(lq[:80]),)),
        "no-image": Show((b"<html>",)),
        "refused": Refuse(),
    }
    script.act = lambda call: answers[call.key]
    keys = tuple(answers)
    first = resumed(tmp_path, client(backend), lq, keys)
    assert isinstance(first["kept"], Candidate) and len(script.calls) == 4
    assert [first[key] for key in keys[1:]] == [Trouble.WRONG_SIZE, Trouble.MALFORMED, Trouble.REFUSED]
    script.act = Fail(500)
    later = resumed(tmp_path, client(backend), lq, keys)
    assert len(script.calls) == 4, "every answer, usable or not, was found in the journal"
    assert isinstance(later["kept"], Candidate)
    assert np.array_equal(later["kept"].pixels, first["kept"].pixels)
    assert (later["kept"].data, later["kept"].mime) == (first["kept"].data, "image/jpeg")
    assert [later[key] for key in keys[1:]] == [first[key] for key in keys[1:]]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-planted" not in path.read_bytes()
