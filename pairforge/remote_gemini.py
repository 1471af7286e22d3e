"""Chat and image editing over the Gemini protocol (google-genai).

`retry_options` with one attempt is not the default: without it the asynchronous client sends a request again
by itself when a connection breaks, and the service may charge both.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import ValidationError

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

_UNFINISHED = frozenset(
    {"MAX_TOKENS", "NO_IMAGE", "IMAGE_OTHER", "OTHER", "LANGUAGE", "MALFORMED_RESPONSE", "CONTINUATION"}
)
_DONE = frozenset({"STOP", "FINISH_REASON_UNSPECIFIED", ""})


class _Gemini(Settings):
    """Connection and faults. The SDK's client is made at the first request, in the process that makes it."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"endpoint": self.endpoint, "_client": None}  # a live client holds the key

    def preflight(self) -> None:
        """Raises BackendMisconfigured where the service does not know the model."""
        self._send(lambda client: client.aio.models.get(model=self.endpoint.model))

    def close(self) -> None:
        """Give the connections back; the next request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            run_within(5.0, client.aio.aclose())

    def _generate(self, contents: list[Any], config: dict[str, Any]) -> tuple[list[Any], int | None, int | None]:
        """Parts of the first candidate, and tokens in and out."""
        types = sdk("google.genai.types")

        settings = types.GenerateContentConfig(**{**config, **self.endpoint.options})
        answer = self._send(
            lambda client: client.aio.models.generate_content(
                model=self.endpoint.model, contents=contents, config=settings
            )
        )
        prompt, out = _tokens(answer.usage_metadata)
        spent = self.cost(0, prompt, out)
        feedback = answer.prompt_feedback
        if feedback is not None and feedback.block_reason is not None:
            raise self.trouble(Trouble.REFUSED, f"the prompt was blocked: {_word(feedback.block_reason)}", spent)
        if not answer.candidates:
            raise self.trouble(Trouble.MALFORMED, "the answer holds no candidate", spent)
        candidate = answer.candidates[0]
        reason = _word(candidate.finish_reason)
        parts = [part for part in (candidate.content.parts if candidate.content else None) or [] if not part.thought]
        if reason not in _DONE:
            trouble = Trouble.MALFORMED if reason in _UNFINISHED else Trouble.REFUSED
            raise self.trouble(trouble, f"the answer ended with {reason}{_said(parts)}", spent)
        return parts, prompt, out

    def _send(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """What the SDK parsed. Errors are raised outside of `except`, as in `remote_openai`."""
        errors = sdk("google.genai.errors")

        key = key_of(self.endpoint)
        answer = None
        try:
            answer = run_within(self.endpoint.timeout_s, self._call(key, call))
            fault: Exception | None = None
        except TimeoutError:
            fault = self.trouble(Trouble.TIMEOUT, f"no whole answer within {self.endpoint.timeout_s:g} s")
        except errors.APIError as error:
            fault = _of_status(error, secrets_of(self.endpoint))
        except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
            fault = self.trouble(Trouble.MALFORMED, f"no answer of this protocol: {error}")
        except Exception as error:  # the HTTP library below may be any of three
            fault = self._of_connection(error)
            if fault is None:
                raise
        if fault is not None:
            raise fault
        return answer

    async def _call(self, key: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
        if self._client is None:
            genai = sdk("google.genai")
            types = sdk("google.genai.types")

            options = types.HttpOptions(
                base_url=self.endpoint.base_url,
                api_version=self.endpoint.api_version,
                timeout=round(self.endpoint.timeout_s * 1000),
                retry_options=types.HttpRetryOptions(attempts=1),
            )
            self._client = genai.Client(vertexai=False, api_key=key, http_options=options)
        return await call(self._client)

    def _of_connection(self, error: Exception) -> RemoteError | None:
        """Faults of httpx, httpx2 or aiohttp, whichever the SDK uses; None for anything else, which is a bug."""
        kinds = type(error).__mro__
        names = {kind.__name__ for kind in kinds}
        if not {kind.__module__.partition(".")[0] for kind in kinds} & {"httpx", "httpx2", "aiohttp"}:
            return None
        unsent = bool(names & {"ConnectError", "ConnectTimeout", "PoolTimeout", "ClientConnectorError"})
        usage = Usage(0.0) if unsent else Usage(None)
        if names & {"TimeoutException", "ServerTimeoutError"} and not unsent:
            return self.trouble(Trouble.TIMEOUT, f"the service fell silent ({type(error).__name__})")
        if names & {"DecodingError", "ContentTypeError"}:
            return self.trouble(Trouble.MALFORMED, f"{type(error).__name__}: {error}")
        return self.trouble(Trouble.UNAVAILABLE, f"{type(error).__name__}: {error}", usage)


class GeminiChat(_Gemini):
    """Text and pictures in, text out."""

    def ask(self, request: Request) -> Reply:
        if not isinstance(request, ChatRequest):
            raise TypeError("a chat answers ChatRequest")
        types = sdk("google.genai.types")

        contents = [request.text, *(types.Part.from_bytes(data=p.data, mime_type=p.mime) for p in request.pictures)]
        config: dict[str, Any] = {"max_output_tokens": request.max_output_tokens}
        if request.system is not None:
            config["system_instruction"] = request.system
        if request.json_schema is not None:
            config |= {"response_mime_type": "application/json", "response_json_schema": dict(request.json_schema)}
        if request.temperature is not None:
            config["temperature"] = request.temperature
        if request.seed is not None:
            config["seed"] = request.seed % 2**31
        parts, prompt, out = self._generate(contents, config)
        paid = self.cost(0, prompt, out)
        text = "".join(part.text or "" for part in parts)
        if not text.strip():
            raise self.trouble(Trouble.MALFORMED, "the answer holds no text", paid)
        return self.said(text, paid)


class GeminiImages(_Gemini):
    """One picture and an instruction in, one picture out. Of several pictures the last is taken, drafts come first."""

    def ask(self, request: Request) -> Reply:
        if not isinstance(request, EditRequest):
            raise TypeError("an image model answers EditRequest")
        types = sdk("google.genai.types")

        picture = types.Part.from_bytes(data=request.picture.data, mime_type=request.picture.mime)
        config: dict[str, Any] = {"response_modalities": ["TEXT", "IMAGE"]}
        if request.seed is not None:
            config["seed"] = request.seed % 2**31
        parts, prompt, out = self._generate([request.instruction, picture], config)
        images = [part.inline_data for part in parts if part.inline_data is not None and part.inline_data.data]
        if not images:
            spent = self.cost(0, prompt, out)
            raise self.trouble(Trouble.MALFORMED, f"the answer holds no image{_said(parts)}", spent)
        paid = self.cost(len(images), prompt, out)
        data = images[-1].data
        mime = images[-1].mime_type or image_mime(data) or "application/octet-stream"
        return Reply(data, mime, paid)


def _tokens(metadata: Any) -> tuple[int | None, int | None]:
    """Tokens in and out; thinking is charged as output."""
    if metadata is None or metadata.prompt_token_count is None:
        return None, None
    return metadata.prompt_token_count, (metadata.candidates_token_count or 0) + (metadata.thoughts_token_count or 0)


def _word(value: Any) -> str:
    """Name of an SDK's enum member, also of one that this version of the SDK does not know."""
    return str(getattr(value, "value", value) or "")


def _said(parts: list[Any]) -> str:
    text = " ".join(part.text for part in parts if part.text)
    return f", saying: {text}" if text else ""


def _of_status(error: Any, secrets: tuple[str, ...]) -> Exception:
    headers = getattr(error.response, "headers", None) or {}
    wait_s = retry_after_of(headers)
    details = error.details if isinstance(error.details, Mapping) else {}
    inner = details.get("error") if isinstance(details.get("error"), Mapping) else details
    words = f"{error.status or ''} {json.dumps(inner, default=str)[:4000]}"
    for item in inner.get("details") or [] if isinstance(inner, Mapping) else []:
        if wait_s is None and isinstance(item, Mapping) and "retryDelay" in item:
            wait_s = retry_after_of({"retry-after": str(item["retryDelay"]).removesuffix("s")})
    fault = error_of_status(int(error.code), str(error.message or words), error.status, wait_s, secrets)
    if isinstance(fault, RemoteError) and fault.trouble == Trouble.REFUSED and "API_KEY_INVALID" in words:
        return BackendMisconfigured(fault.detail)
    return fault
