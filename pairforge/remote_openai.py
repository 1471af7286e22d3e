"""Chat and image editing over the OpenAI protocol, which vLLM and most model servers speak too.

The SDK sends; replies are read here, since it passes HTML, empty answers and cut JSON on as successes.
It never retries: a request that was sent twice may be charged twice, and the journal would know of one.
"""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pairforge.protocols import Trouble, Usage
from pairforge.remote_base import (
    BackendMisconfigured,
    ChatRequest,
    EditRequest,
    Endpoint,
    RemoteError,
    Reply,
    Request,
    Settings,
    error_of_status,
    image_mime,
    key_of,
    retry_after_of,
    sdk,
    secrets_of,
)
from pairforge.remote_loop import run_within

_CUT = frozenset({"length", "max_tokens"})


class _OpenAI(Settings):
    """Connection and faults. The SDK's client is made at the first request, in the process that makes it."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"endpoint": self.endpoint, "_client": None}  # a live client holds the key

    def preflight(self) -> None:
        """Raises BackendMisconfigured where the service lists its models and this one is not among them."""
        listed = self._send(lambda client: client.models.with_raw_response.list())
        models = [str(item.get("id")) for item in _list(listed, "data") if isinstance(item, Mapping)]
        if not models:
            raise BackendMisconfigured(f"{self.endpoint.model}: the service lists no models")
        if self.endpoint.model not in models:
            known = ", ".join(sorted(models)[:10])
            raise BackendMisconfigured(f"model {self.endpoint.model!r} is not served; among those that are: {known}")

    def close(self) -> None:
        """Give the connections back; the next request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            run_within(5.0, client.close())

    def _send(self, call: Callable[[Any], Awaitable[Any]]) -> Mapping[str, Any]:
        """The JSON object that the service answered. Errors are raised outside of `except`: those of the SDK
        hold the request, with the key in its headers, and must not hang on ours as their context."""
        openai = sdk("openai")

        key = key_of(self.endpoint)
        try:
            raw = run_within(self.endpoint.timeout_s, self._call(key, call))
            fault: Exception | None = None
        except TimeoutError:
            fault = self.trouble(Trouble.TIMEOUT, f"no whole answer within {self.endpoint.timeout_s:g} s")
        except openai.APIConnectionError as error:
            fault = self._of_connection(error)
        except openai.APIStatusError as error:
            fault = error_of_status(
                error.status_code,
                _message(error),
                error.code,
                retry_after_of(error.response.headers),
                secrets_of(self.endpoint),
            )
        if fault is not None:
            raise fault
        return self._parsed(raw)

    async def _call(self, key: str, call: Callable[[Any], Awaitable[Any]]) -> bytes:

        if self._client is None:
            self._client = sdk("openai").AsyncOpenAI(
                api_key=key, base_url=self.endpoint.base_url, max_retries=0, timeout=self.endpoint.timeout_s
            )
        content: bytes = (await call(self._client)).content
        return content

    def _parsed(self, raw: bytes) -> Mapping[str, Any]:
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if not isinstance(answer, Mapping):
            raise self.trouble(Trouble.MALFORMED, f"no JSON object: {raw[:4000].decode(errors='replace')}")
        error = answer.get("error")
        if isinstance(error, Mapping):  # some gateways answer 200 with an error inside
            status = error.get("code") if isinstance(error.get("code"), int) else 500
            words = str(error.get("message")), str(error.get("type"))
            raise error_of_status(int(status or 500), *words, None, secrets_of(self.endpoint))
        return answer

    def _of_connection(self, error: Exception) -> RemoteError:
        """Timeouts inside the SDK, and broken connections: charged or not, unless no connection was made at all."""
        openai = sdk("openai")

        cause = type(error.__cause__).__name__
        if isinstance(error, openai.APITimeoutError) and cause not in ("ConnectTimeout", "PoolTimeout"):
            return self.trouble(Trouble.TIMEOUT, f"the service fell silent ({cause})")
        unsent = Usage(0.0) if cause in ("ConnectError", "ConnectTimeout", "PoolTimeout") else Usage(None)
        return self.trouble(Trouble.UNAVAILABLE, f"{cause}: {error.__cause__}", unsent)


class OpenAIChat(_OpenAI):
    """Text and pictures in, text out."""

    def ask(self, request: Request) -> Reply:
        if not isinstance(request, ChatRequest):
            raise TypeError("a chat answers ChatRequest")
        answer = self._send(lambda client: client.chat.completions.with_raw_response.create(**self._body(request)))
        usage = _mapping(answer, "usage")
        paid = self.cost(0, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))
        choices = _list(answer, "choices")
        choice = choices[0] if choices and isinstance(choices[0], Mapping) else {}
        return self._text_reply(choice.get("finish_reason"), _mapping(choice, "message"), paid)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
        for picture in request.pictures:
            url = f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": request.system})
        options = dict(self.endpoint.options)
        limit = options.pop("output_limit_field", "max_tokens")  # `max_completion_tokens` at newer OpenAI models
        body: dict[str, Any] = {"model": self.endpoint.model, "messages": messages}
        body[limit] = request.max_output_tokens
        if request.json_schema is not None:
            schema = {"name": "answer", "schema": dict(request.json_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.seed is not None:
            body["seed"] = request.seed % 2**31
        return {**body, "extra_body": options or None}

    def _text_reply(self, finish: Any, message: Mapping[str, Any], paid: Usage) -> Reply:
        content, refusal = message.get("content"), message.get("refusal")
        if finish == "content_filter" or (isinstance(refusal, str) and refusal):
            raise self.trouble(Trouble.REFUSED, str(refusal or "stopped by the content filter"), paid)
        if finish in _CUT:
            raise self.trouble(Trouble.MALFORMED, "the answer was cut at the limit of tokens", paid)
        if message and content is None:
            raise self.trouble(Trouble.REFUSED, f"an answer without content (finish_reason {finish!r})", paid)
        if not isinstance(content, str) or not content.strip():
            raise self.trouble(Trouble.MALFORMED, "the answer holds no text", paid)
        return self.said(content, paid)


class OpenAIImages(_OpenAI):
    """One picture and an instruction in, one picture out (`images.edit`)."""

    def ask(self, request: Request) -> Reply:
        if not isinstance(request, EditRequest):
            raise TypeError("an image model answers EditRequest")
        answer = self._send(lambda client: client.images.with_raw_response.edit(**self._body(request)))
        usage = _mapping(answer, "usage")
        paid = self.cost(1, _count(usage, "input_tokens"), _count(usage, "output_tokens"))
        items = _list(answer, "data")
        encoded = items[0].get("b64_json") if items and isinstance(items[0], Mapping) else None
        if not isinstance(encoded, str):
            raise self.trouble(Trouble.MALFORMED, "the answer holds no image", paid)
        try:
            data = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            data = b""
        mime = image_mime(data)
        if mime is None:
            raise self.trouble(Trouble.MALFORMED, "the answer's image is no PNG, JPEG or WebP", paid)
        return Reply(data, mime, paid)

    def _body(self, request: EditRequest) -> dict[str, Any]:
        suffix = request.picture.mime.partition("/")[2]
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "image": (f"in.{suffix}", request.picture.data, request.picture.mime),
            "prompt": request.instruction,
        }
        if request.size_px is not None:
            body["size"] = f"{request.size_px[0]}x{request.size_px[1]}"
        return {**body, "extra_body": dict(self.endpoint.options) or None}


def _message(error: Any) -> str:
    body = error.body
    if isinstance(body, Mapping) and isinstance(body.get("message"), str):
        return str(body["message"])
    return str(error.response.text)[:2000]


def _list(answer: Mapping[str, Any], name: str) -> list[Any]:
    found = answer.get(name)
    return found if isinstance(found, list) else []


def _mapping(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = answer.get(name)
    return found if isinstance(found, Mapping) else {}


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    found = usage.get(name)
    return found if isinstance(found, int) and found >= 0 else None
