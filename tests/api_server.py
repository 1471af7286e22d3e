"""A loopback service that speaks the OpenAI-compatible and the Gemini wire formats, by script.

A script is a function of a `Call` that gives an `Act`: an answer, or one of the faults that services show.
The ledger holds every call that was read in full, and whether the service did the work (and would charge for it).
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_KEY_IN_TEXT = re.compile(r"record:([a-z0-9_-]+)")
_ROUTES = (
    ("chat", re.compile(r"/v1/chat/completions")),
    ("edits", re.compile(r"/v1/images/edits")),
    ("gemini", re.compile(r"/v1(?:beta)?/models/[^/:]+:generateContent")),
)


@dataclass(frozen=True)
class Call:
    """One request as the service read it. `attempt` counts the requests of this key on this route, from 0.

    `key` comes from the header x-record, else from `record:...` in the text, else from the last image's hash.
    """

    route: str
    key: str
    attempt: int
    model: str
    text: str
    images: tuple[bytes, ...]
    body: Mapping[str, Any]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Say:
    """An answer in text. `finish` is the reason in OpenAI's words; `cut` leaves the JSON of the reply unfinished."""

    text: str
    finish: str | None = "stop"
    cut: bool = False
    tokens: tuple[int, int] | None = (100, 20)


@dataclass(frozen=True)
class Show:
    """An answer in images, with words beside them where the protocol has a place for words."""

    images: tuple[bytes, ...]
    mime: str = "image/png"
    text: str = ""
    tokens: tuple[int, int] | None = (300, 1290)


@dataclass(frozen=True)
class Refuse:
    """A 200 (400 for images/edits) that declines: Gemini's `reason` as finish reason, or `prompt` as block reason."""

    reason: str = "IMAGE_SAFETY"
    prompt: bool = False


@dataclass(frozen=True)
class Fail:
    """An error status in the protocol's own form."""

    status: int
    message: str = "scripted"
    code: str = "scripted"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """Any body at all, such as the HTML of a proxy."""

    body: bytes
    status: int = 200
    mime: str = "text/html"


@dataclass(frozen=True)
class Hang:
    """Silence for so long, then the connection is closed. The work was done."""

    wait_s: float


@dataclass(frozen=True)
class Drip:
    """An answer byte by byte."""

    then: Say | Show
    s_per_byte: float = 0.05


@dataclass(frozen=True)
class Drop:
    """The connection breaks before any reply. The work was done."""


@dataclass(frozen=True)
class Half:
    """An answer whose connection breaks in the middle of the body."""

    then: Say | Show


Act = Say | Show | Refuse | Fail | Raw | Hang | Drip | Drop | Half
Script = Callable[[Call], Act]


@dataclass(frozen=True)
class Entry:
    """One line of the ledger. `charged` where the service did the work, whether or not anybody got the reply."""

    call: Call
    act: Act
    charged: bool
    at_s: float


class ApiServer:
    """The running service. `ledger` grows; `models` is what it lists; `key` is the only key it takes, None for any."""

    def __init__(self, script: Script, models: tuple[str, ...] = ("tiny",), key: str | None = None) -> None:
        self.script, self.models, self.key = script, models, key
        self.ledger: list[Entry] = []
        self.lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._stop = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.api = self

    @property
    def url(self) -> str:
        """Root; OpenAI clients add /v1, Gemini clients nothing."""
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def charged(self) -> Counter[str]:
        """Requests that cost money, by `route:key`."""
        with self.lock:
            return Counter(f"{entry.call.route}:{entry.call.key}" for entry in self.ledger if entry.charged)

    def act(self, route: str, key: str, **fields: Any) -> Act:
        """What to answer, after the line in the ledger."""
        with self.lock:
            attempt = self._counts[(route, key)]
            self._counts[(route, key)] += 1
        call = Call(route, key, attempt, **fields)
        act = self.script(call)
        charged = isinstance(act, Say | Show | Drip | Hang | Drop | Half)
        with self.lock:
            self.ledger.append(Entry(call, act, charged, time.monotonic()))
        return act

    def sleep(self, wait_s: float) -> bool:
        """False where the server is being closed."""
        return not self._stop.wait(wait_s)

    def start(self) -> None:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def api_server(script: Script, models: tuple[str, ...] = ("tiny",), key: str | None = None) -> Iterator[ApiServer]:
    """A service on a free port of 127.0.0.1, for as long as the block runs."""
    server = ApiServer(script, models, key)
    server.start()
    try:
        yield server
    finally:
        server.close()


class _Http(ThreadingHTTPServer):
    api: ApiServer
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are part of the script."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    @property
    def api(self) -> ApiServer:
        assert isinstance(self.server, _Http)
        return self.server.api

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/models")[2].strip("/")
        if not self._key_is_right():
            act: Act = Fail(401, "Incorrect API key provided", "invalid_api_key")
            self._send(*_error(act, self.path.startswith("/v1beta")))
        elif name and name not in self.api.models:
            self._send(*_error(Fail(404, f"model {name} not found", "NOT_FOUND"), True))
        elif name:
            self._send(200, {"name": f"models/{name}"})
        else:
            self._send(200, {"object": "list", "data": [{"id": model, "object": "model"} for model in self.api.models]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        route = next((name for name, pattern in _ROUTES if pattern.fullmatch(path)), None)
        if route is None:
            self._send(*_error(Fail(404, f"no route {path}"), False))
        elif not self._key_is_right():
            shown = self.headers.get("Authorization") or self.headers.get("x-goog-api-key") or ""
            self._send(*_error(Fail(401, f"Incorrect API key provided: {shown}"), route == "gemini"))
        else:
            self._play(route, self.api.act(route, **_read(route, path, self.headers, body)))

    def _play(self, route: str, act: Act) -> None:
        if isinstance(act, Hang):
            self.api.sleep(act.wait_s)
            self._break()
        elif isinstance(act, Drop):
            self._break()
        elif isinstance(act, Raw):
            self._send(act.status, act.body, {"Content-Type": act.mime})
        elif isinstance(act, Fail):
            self._send(*_error(act, route == "gemini"), act.headers)
        elif isinstance(act, Refuse):
            self._send(*_refusal(route, act))
        elif isinstance(act, Half):
            data = json.dumps(_answer(route, act.then)).encode()
            self._send(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
            self._break()
        elif isinstance(act, Drip):
            self._drip(json.dumps(_answer(route, act.then)).encode(), act.s_per_byte)
        else:
            data = json.dumps(_answer(route, act)).encode()
            self._send(200, data[: len(data) // 2] if isinstance(act, Say) and act.cut else data)

    def _send(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with suppress(OSError):  # the client went away
            self.send_response(status)
            usual = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            for name, value in {**usual, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    def _drip(self, data: bytes, s_per_byte: float) -> None:
        with suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for byte in data:
                self.wfile.write(bytes((byte,)))
                if not self.api.sleep(s_per_byte):
                    break

    def _break(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _key_is_right(self) -> bool:
        shown = (self.headers.get("Authorization", "").removeprefix("Bearer "), self.headers.get("x-goog-api-key"))
        return self.api.key is None or self.api.key in shown

    def log_message(self, *_: Any) -> None:
        """Silence."""


def _read(route: str, path: str, headers: Message, body: bytes) -> dict[str, Any]:
    """Fields of a `Call` but the attempt."""
    if route == "edits":
        fields, images = _multipart(headers, body)
        text, model = fields.get("prompt", ""), fields.get("model", "")
    else:
        fields = json.loads(body)
        text, images = _of_chat(fields) if route == "chat" else _of_gemini(fields)
        model = fields["model"] if route == "chat" else path.rpartition("/")[2].partition(":")[0]
    named = _KEY_IN_TEXT.search(text)
    key = headers.get("x-record") or (named.group(1) if named else "")
    if not key:
        key = hashlib.sha256(images[-1]).hexdigest()[:16] if images else "nobody"
    return {
        "key": key,
        "model": model,
        "text": text,
        "images": tuple(images),
        "body": fields,
        "headers": {name.lower(): value for name, value in headers.items()},
    }


def _of_chat(fields: Mapping[str, Any]) -> tuple[str, list[bytes]]:
    texts: list[str] = []
    images: list[bytes] = []
    for message in fields["messages"]:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for part in content:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                images.append(base64.b64decode(part["image_url"]["url"].partition("base64,")[2], validate=True))
    return "\n".join(texts), images


def _of_gemini(fields: Mapping[str, Any]) -> tuple[str, list[bytes]]:
    texts: list[str] = []
    images: list[bytes] = []
    system = [fields["systemInstruction"]] if "systemInstruction" in fields else []
    for content in [*system, *fields["contents"]]:
        for part in content["parts"]:
            if "text" in part:
                texts.append(part["text"])
            else:
                inline = part.get("inlineData") or part["inline_data"]
                images.append(base64.urlsafe_b64decode(inline["data"]))
    return "\n".join(texts), images


def _multipart(headers: Message, body: bytes) -> tuple[dict[str, Any], list[bytes]]:
    head = f"Content-Type: {headers['Content-Type']}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    fields: dict[str, Any] = {}
    images: list[bytes] = []
    for part in BytesParser().parsebytes(head + body).walk():
        if part.is_multipart():
            continue
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        if part.get_filename() is None:
            fields[str(part.get_param("name", header="content-disposition"))] = data.decode()
        else:
            images.append(data)
    return fields, images


def _answer(route: str, act: Say | Show) -> Mapping[str, Any]:
    if route == "gemini":
        return _gemini_answer(act)
    prompt, out = act.tokens or (0, 0)
    if route == "chat":
        assert isinstance(act, Say), "chat completions answer in text"
        usage = {"prompt_tokens": prompt, "completion_tokens": out, "total_tokens": prompt + out}
        message = {"role": "assistant", "content": act.text, "refusal": None}
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "tiny",
            "choices": [{"index": 0, "finish_reason": act.finish, "message": message}],
        }
    else:
        assert isinstance(act, Show), "images/edits answers in images"
        usage = {"input_tokens": prompt, "output_tokens": out, "total_tokens": prompt + out}
        answer = {"created": 0, "data": [{"b64_json": base64.b64encode(image).decode()} for image in act.images]}
    return answer if act.tokens is None else {**answer, "usage": usage}


def _gemini_answer(act: Say | Show) -> Mapping[str, Any]:
    parts: list[dict[str, Any]] = [{"text": act.text}] if act.text else []
    if isinstance(act, Show):
        for image in act.images:
            parts.append({"inlineData": {"mimeType": act.mime, "data": base64.b64encode(image).decode()}})
    finish = getattr(act, "finish", "stop")
    reason = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}.get(str(finish), str(finish))
    answer: dict[str, Any] = {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": reason, "index": 0}]
    }
    if act.tokens is not None:
        answer["usageMetadata"] = {"promptTokenCount": act.tokens[0], "candidatesTokenCount": act.tokens[1]}
    return answer


def _refusal(route: str, act: Refuse) -> tuple[int, Mapping[str, Any]]:
    if route == "edits":
        return _error(Fail(400, "rejected by the safety system", "moderation_blocked"), False)
    if route == "chat":
        message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 5}}
    usage = {"promptTokenCount": 100}
    if act.prompt:
        return 200, {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage}
    return 200, {"candidates": [{"finishReason": act.reason, "index": 0}], "usageMetadata": usage}


def _error(act: Act, gemini: bool) -> tuple[int, Mapping[str, Any]]:
    assert isinstance(act, Fail)
    if gemini:
        return act.status, {"error": {"code": act.status, "message": act.message, "status": act.code.upper()}}
    return act.status, {"error": {"message": act.message, "type": "scripted", "code": act.code}}
