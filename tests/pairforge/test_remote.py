"""The true SDKs against a loopback service: what is sent, what comes back, and what every fault becomes."""

import copy
import json
import pickle
import time
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pairforge.image import encode_png
from pairforge.protocols import Trouble, Usage
from pairforge.remote import (
    BackendMisconfigured,
    ChatRequest,
    EditRequest,
    Endpoint,
    Picture,
    Prices,
    RemoteClient,
    RemoteError,
    Reply,
    Request,
    open_remote,
    redact,
    require_prices,
)
from tests.api_server import (
    Act,
    ApiServer,
    Call,
    Drip,
    Drop,
    Fail,
    Half,
    Hang,
    Raw,
    Refuse,
    Say,
    Script,
    Show,
    api_server,
)

SECRET = "sk-planted-5f2c9d1e8a7b"
PNG = encode_png(np.full((6, 8, 3), 90, np.uint8))
OTHER_PNG = encode_png(np.full((6, 8, 3), 200, np.uint8))
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
CHAT = ChatRequest("record:a what is it?", (Picture(PNG), Picture(OTHER_PNG)), "be brief", SCHEMA, 64, 0.0, 7)
EDIT = EditRequest("record:a remove the rain", Picture(PNG), None, 7)
PRICES = Prices(usd_per_image=0.04, usd_per_1m_input_tokens=1.0, usd_per_1m_output_tokens=10.0)
BACKENDS = ("openai_chat", "openai_images", "gemini_chat", "gemini_images")
Open = Callable[..., RemoteClient]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", SECRET)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


class Scripted:
    """One service for the whole file; each test sets what it does."""

    def __init__(self) -> None:
        self.act: Act | Script = Say("unset")
        self.calls: list[Call] = []

    def __call__(self, call: Call) -> Act:
        self.calls.append(call)
        return self.act(call) if callable(self.act) else self.act


@pytest.fixture(scope="module")
def _running() -> Iterator[tuple[ApiServer, Scripted]]:
    script = Scripted()
    with api_server(script, key=SECRET) as server:
        yield server, script


@pytest.fixture
def server(_running: tuple[ApiServer, Scripted]) -> ApiServer:
    return _running[0]


@pytest.fixture
def script(_running: tuple[ApiServer, Scripted]) -> Scripted:
    _running[1].calls.clear()
    return _running[1]


@pytest.fixture
def client(server: ApiServer) -> Iterator[Open]:
    opened: list[RemoteClient] = []

    def make(backend: str, **changes: object) -> RemoteClient:
        settings = {
            "backend": backend,
            "model": "tiny",
            "base_url": server.openai_url if backend.startswith("openai") else server.url,
            "api_key_env": "PLANTED_KEY",
            "timeout_s": 5.0,
            "prices": PRICES,
        }
        opened.append(open_remote(Endpoint.model_validate({**settings, **changes})))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def request_of(backend: str) -> Request:
    return EDIT if backend.endswith("images") else CHAT


def answer_of(backend: str) -> Say | Show:
    return Show((OTHER_PNG,)) if backend.endswith("images") else Say('{"score": 3}')


def trouble_of(client: RemoteClient, request: Request) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        client.ask(request)
    return caught.value


# ---------------------------------------------------------------- what is sent and what comes back


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_comes_back_as_it_was_given(backend: str, client: Open, script: Scripted) -> None:
    script.act = answer_of(backend)
    reply = client(backend).ask(request_of(backend))
    if backend.endswith("images"):
        assert reply.data == OTHER_PNG and reply.mime == "image/png"
        assert reply.usage.cost_usd == pytest.approx(0.04 + 300e-6 + 1290e-5)
        assert (reply.usage.input_tokens, reply.usage.output_tokens) == (300, 1290)
    else:
        assert reply.text == '{"score": 3}' and json.loads(reply.text) == {"score": 3}
        assert reply.usage.cost_usd == pytest.approx(100e-6 + 20e-5)
        assert (reply.usage.input_tokens, reply.usage.output_tokens) == (100, 20)
    [call] = script.calls
    assert call.model == "tiny"
    assert call.images == ((PNG,) if backend.endswith("images") else (PNG, OTHER_PNG)), "pictures arrive bit for bit"


def test_a_chat_sends_the_schema_the_seed_and_the_limit(client: Open, script: Scripted) -> None:
    script.act = Say("{}")
    client("openai_chat", options={"top_k": 1}).ask(CHAT)
    body = script.calls[0].body
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": SCHEMA, "strict": True}
    assert (body["max_tokens"], body["temperature"], body["seed"], body["top_k"]) == (64, 0.0, 7, 1)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    client("openai_chat", options={"output_limit_field": "max_completion_tokens"}).ask(CHAT)
    assert script.calls[1].body["max_completion_tokens"] == 64 and "max_tokens" not in script.calls[1].body
    client("gemini_chat").ask(CHAT)
    config = script.calls[2].body["generationConfig"]
    assert config["responseJsonSchema"] == SCHEMA and config["responseMimeType"] == "application/json"
    assert (config["maxOutputTokens"], config["seed"]) == (64, 7)


def test_an_edit_sends_size_and_options(client: Open, script: Scripted) -> None:
    script.act = Show((PNG,))
    request = EditRequest("go", Picture(PNG), (1024, 768))
    client("openai_images", options={"quality": "high"}).ask(request)
    body = script.calls[0].body
    assert (body["size"], body["quality"], body["prompt"]) == ("1024x768", "high", "go")
    client("gemini_images", options={"image_config": {"aspect_ratio": "4:3"}}).ask(request)
    config = script.calls[1].body["generationConfig"]
    assert config["imageConfig"] == {"aspectRatio": "4:3"} and config["responseModalities"] == ["TEXT", "IMAGE"]


def test_the_last_of_several_gemini_images_is_the_answer_and_all_are_paid(client: Open, script: Scripted) -> None:
    script.act = Show((PNG, OTHER_PNG), text="here", tokens=None)
    reply = client("gemini_images", prices=Prices(usd_per_image=0.04)).ask(EDIT)
    assert reply.data == OTHER_PNG and reply.usage.cost_usd == pytest.approx(0.08)


def test_the_wrong_request_is_a_bug(client: Open) -> None:
    for backend in BACKENDS:
        with pytest.raises(TypeError):
            client(backend).ask(CHAT if backend.endswith("images") else EDIT)


# ---------------------------------------------------------------- faults

COMMON: dict[str, tuple[Act, Trouble, float | None]] = {
    "too many": (Fail(429, headers={"Retry-After": "7"}), Trouble.QUOTA, 0.0),
    "payment": (Fail(402), Trouble.QUOTA, 0.0),
    "internal": (Fail(500), Trouble.UNAVAILABLE, 0.0),
    "overloaded": (Fail(503, headers={"Retry-After": "7"}), Trouble.UNAVAILABLE, 0.0),
    "gateway": (Fail(504), Trouble.UNAVAILABLE, None),
    "html error": (Raw(b"<html>bad gateway</html>", 502), Trouble.UNAVAILABLE, 0.0),
    "html": (Raw(b"<html>hello</html>"), Trouble.MALFORMED, None),
    "empty": (Raw(b"", mime="application/json"), Trouble.MALFORMED, None),
    "dropped": (Drop(), Trouble.UNAVAILABLE, None),
    "broken off": (Half(Say("x" * 99)), Trouble.UNAVAILABLE, None),
    "bad request": (Fail(400, "image too small"), Trouble.REFUSED, 0.0),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", COMMON)
def test_a_fault_becomes_typed_trouble_and_is_never_sent_again(
    fault: str, backend: str, client: Open, script: Scripted
) -> None:
    act, trouble, cost = COMMON[fault]
    script.act = Half(answer_of(backend)) if isinstance(act, Half) else act
    error = trouble_of(client(backend), request_of(backend))
    assert (error.trouble, error.usage.cost_usd) == (trouble, cost)
    assert error.retry_after_s == (7.0 if isinstance(act, Fail) and act.headers else None)
    assert len(script.calls) == 1, "an SDK that repeats a request by itself may buy twice"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["silence", "slow drip"])
def test_the_timeout_holds_for_the_whole_request(kind: str, backend: str, client: Open, script: Scripted) -> None:
    script.act = Hang(4.0) if kind == "silence" else Drip(answer_of(backend))
    start = time.monotonic()
    error = trouble_of(client(backend, timeout_s=0.5), request_of(backend))
    assert (error.trouble, error.usage.cost_usd) == (Trouble.TIMEOUT, None)
    assert time.monotonic() - start < 2.0 and len(script.calls) == 1


def test_nobody_listening_is_unavailable_and_free(client: Open) -> None:
    for backend in BACKENDS:
        error = trouble_of(client(backend, base_url="http://127.0.0.1:9/v1"), request_of(backend))
        assert (error.trouble, error.usage.cost_usd) == (Trouble.UNAVAILABLE, 0.0), backend


CHAT_FAULTS: dict[str, tuple[Act, Trouble]] = {
    "refused": (Refuse(), Trouble.REFUSED),
    "filtered": (Say("", "content_filter"), Trouble.REFUSED),
    "cut by the limit": (Say('{"score": 3', "length"), Trouble.MALFORMED),
    "cut on the way": (Say('{"score": 3}', cut=True), Trouble.MALFORMED),
    "blank": (Say("  \n"), Trouble.MALFORMED),
    "no choices": (Raw(b'{"choices": []}', mime="application/json"), Trouble.MALFORMED),
    "a list": (Raw(b"[1, 2]", mime="application/json"), Trouble.MALFORMED),
}


@pytest.mark.parametrize("backend", ["openai_chat", "gemini_chat"])
@pytest.mark.parametrize("fault", CHAT_FAULTS)
def test_chat_faults(fault: str, backend: str, client: Open, script: Scripted) -> None:
    script.act, trouble = CHAT_FAULTS[fault]
    assert trouble_of(client(backend), CHAT).trouble == trouble


@pytest.mark.parametrize(
    ("act", "trouble"),
    [
        (Refuse("IMAGE_SAFETY"), Trouble.REFUSED),
        (Refuse("PROHIBITED_CONTENT"), Trouble.REFUSED),
        (Refuse("A_REASON_OF_NEXT_YEAR"), Trouble.REFUSED),
        (Refuse(prompt=True), Trouble.REFUSED),
        (Refuse("NO_IMAGE"), Trouble.MALFORMED),
        (Say("I would rather describe it."), Trouble.MALFORMED),
    ],
)
def test_gemini_answers_without_an_image(act: Act, trouble: Trouble, client: Open, script: Scripted) -> None:
    script.act = act
    error = trouble_of(client("gemini_images"), EDIT)
    assert error.trouble == trouble and error.usage.input_tokens == 100


def test_openai_images_without_an_image(client: Open, script: Scripted) -> None:
    script.act = Refuse()
    error = trouble_of(client("openai_images"), EDIT)
    assert (error.trouble, error.usage.cost_usd) == (Trouble.REFUSED, 0.0)
    for answer in (b'{"data": []}', b'{"data": [{"b64_json": "%%%"}]}', b'{"data": [{"b64_json": "aGVsbG8="}]}'):
        script.act = Raw(answer, mime="application/json")
        assert trouble_of(client("openai_images"), EDIT).trouble == Trouble.MALFORMED


def test_an_error_inside_a_200_is_read_by_its_own_code(client: Open, script: Scripted) -> None:
    script.act = Raw(b'{"error": {"code": 429, "message": "slow down"}}', mime="application/json")
    assert trouble_of(client("openai_chat"), CHAT).trouble == Trouble.QUOTA


def test_gemini_says_in_its_body_how_long_to_wait(client: Open, script: Scripted) -> None:
    detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17.5s"}
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "quota", "details": [detail]}}
    script.act = Raw(json.dumps(body).encode(), 429, "application/json")
    assert trouble_of(client("gemini_chat"), CHAT).retry_after_s == 17.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_settings_stop_the_run(status: int, backend: str, client: Open, script: Scripted) -> None:
    script.act = Fail(status)
    with pytest.raises(BackendMisconfigured, match=str(status)):
        client(backend).ask(request_of(backend))


def test_a_key_that_gemini_finds_invalid_stops_the_run(client: Open, script: Scripted) -> None:
    script.act = Fail(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT")
    with pytest.raises(BackendMisconfigured):
        client("gemini_images").ask(EDIT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_preflight_finds_the_model_or_says_so(backend: str, client: Open, script: Scripted) -> None:
    client(backend).preflight()
    with pytest.raises(BackendMisconfigured, match="retired"):
        client(backend, model="retired").preflight()
    assert not script.calls


# ---------------------------------------------------------------- secrets


def leaks(thing: object) -> bool:
    return SECRET in f"{thing!r} {thing!s} {pickle.dumps(thing)!r}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_key_shows_nowhere(backend: str, client: Open, script: Scripted) -> None:
    """The service echoes the key in every way it can; nothing that is logged, pickled or recorded repeats it."""
    one = client(backend)
    echoes: list[Act] = [
        Fail(500, f"while serving {SECRET} at https://user:{SECRET}@host/v1?api_key={SECRET}"),
        Fail(404, f"x-goog-api-key: {SECRET} Authorization: Bearer {SECRET}", SECRET),
        Raw(f"<html>{SECRET}".encode()),
        Raw(json.dumps({"error": {"message": SECRET, "type": SECRET}}).encode(), mime="application/json"),
        Refuse(SECRET),
    ]
    for act in echoes:
        script.act = act
        with pytest.raises((RemoteError, BackendMisconfigured)) as caught:
            one.ask(request_of(backend))
        assert not leaks(caught.value)
        assert caught.value.__context__ is None and caught.value.__cause__ is None
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert not leaks(one) and not leaks(one.endpoint)
    assert SECRET not in repr(copy.copy(one).__dict__)


def test_a_refused_key_is_not_repeated(client: Open, script: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", "another-planted-secret")
    for backend in BACKENDS:
        with pytest.raises(BackendMisconfigured) as caught:
            client(backend).ask(request_of(backend))
        assert "another-planted-secret" not in str(caught.value) and "401" in str(caught.value)


def test_a_missing_key_is_named_by_its_variable(client: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLANTED_KEY")
    for backend in BACKENDS:
        with pytest.raises(BackendMisconfigured, match="PLANTED_KEY"):
            client(backend).ask(request_of(backend))


@pytest.mark.parametrize("url", [f"http://user:{SECRET}@host/v1", f"http://host/v1?key={SECRET}", "host/v1", SECRET])
def test_an_url_with_credentials_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(BackendMisconfigured) as caught:
        open_remote(Endpoint(backend="openai_chat", model="tiny", base_url=url))
    assert not leaks(caught.value)
    assert SECRET not in repr(Endpoint(backend="openai_chat", model="tiny", base_url=url))


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer {}",
        '{{"authorization": "Bearer {}"}}',
        "https://name:{}@host/path",
        "GET /v1/models?key={}&alt=json",
        "x-goog-api-key={}",
        "'api_key': '{}'",
        "access_token={}",
    ],
)
def test_what_looks_like_a_secret_goes_even_if_nobody_named_it(text: str) -> None:
    assert "hunter2-hunter2" not in redact(text.format("hunter2-hunter2"))
    assert "sk-abcdefghij" not in redact("key sk-abcdefghij is wrong")
    assert redact("the token count of a monkey is 7") == "the token count of a monkey is 7"


# ---------------------------------------------------------------- prices and identity


def test_prices_that_are_not_known_stay_unknown() -> None:
    assert Prices().cost_usd(1, 10, 10) is None
    assert Prices(usd_per_image=0.04).cost_usd(1, None, None) == 0.04
    assert Prices(usd_per_image=0.04).cost_usd(0, 10, 10) is None
    assert Prices(usd_per_1m_input_tokens=1, usd_per_1m_output_tokens=2).cost_usd(0, 10**6, 10**6) == 3.0
    assert Prices(usd_per_1m_input_tokens=1, usd_per_1m_output_tokens=2).cost_usd(0, None, None) is None
    assert Prices(usd_per_1m_input_tokens=0, usd_per_1m_output_tokens=0).cost_usd(0, None, None) == 0.0


def test_what_is_reserved_is_never_less_than_what_is_charged(client: Open, script: Scripted) -> None:
    script.act = Say("x" * 50, tokens=(len(CHAT.text) + 2 * 4000, 64))
    one = client("openai_chat")
    cost = one.ask(CHAT).usage.cost_usd
    reserved = one.reserve_usd(CHAT)
    assert cost is not None and reserved is not None and cost <= reserved
    assert client("openai_images", prices=Prices(usd_per_image=0.04)).reserve_usd(EDIT) == 0.04
    assert client("openai_chat", prices=Prices()).reserve_usd(CHAT) is None


def test_a_cap_refuses_unknown_prices() -> None:
    known = Endpoint(backend="openai_images", model="a", prices=Prices(usd_per_image=0.1))
    chat = Endpoint(backend="openai_chat", model="b", prices=Prices(usd_per_1m_input_tokens=1))
    require_prices(10.0, [known])
    require_prices(None, [known, chat])
    with pytest.raises(BackendMisconfigured, match="usd_per_1m_output_tokens"):
        require_prices(10.0, [known, chat])


def test_a_question_is_known_by_all_that_determines_its_answer(client: Open) -> None:
    one = client("openai_chat")
    base = one.question(CHAT)
    assert base == client("openai_chat", base_url="http://127.0.0.1:9/v1", timeout_s=9).question(CHAT)
    changed = [
        client("openai_chat", model="other").question(CHAT),
        client("openai_chat", options={"top_k": 1}).question(CHAT),
        one.question(ChatRequest(CHAT.text, (Picture(OTHER_PNG), Picture(PNG)), CHAT.system, SCHEMA, 64, 0.0, 7)),
        one.question(ChatRequest(CHAT.text, CHAT.pictures, CHAT.system, SCHEMA, 64, 0.0, 8)),
        one.question(ChatRequest(CHAT.text, CHAT.pictures, CHAT.system, None, 64, 0.0, 7)),
    ]
    assert len({base, *changed}) == 6


def test_a_client_travels(client: Open, script: Scripted) -> None:
    for backend in BACKENDS:
        script.act = answer_of(backend)
        one = client(backend)
        one.ask(request_of(backend))
        there: RemoteClient = pickle.loads(pickle.dumps(one))
        reply: Reply = there.ask(request_of(backend))
        there.close()
        assert reply.data and there.revision == "tiny"


def test_trouble_travels_with_its_cost() -> None:
    error = pickle.loads(pickle.dumps(RemoteError(Trouble.MALFORMED, "cut", 2.0, Usage(0.1, 3, 4))))
    assert (error.trouble, error.detail, error.retry_after_s, error.usage) == (
        Trouble.MALFORMED,
        "cut",
        2.0,
        Usage(0.1, 3, 4),
    )
