"""What all remote backends share: requests, replies, prices, typed faults, and the removal of secrets.

Nothing here talks to a network. A key comes from the environment variable that a setting names, is read
where the request is made, and is kept in no object of ours.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import parse_qsl, quote, urlsplit

from pydantic import Field

from pairforge.config import fingerprint
from pairforge.config_words import Words
from pairforge.protocols import BackendError, Trouble, Usage
from pairforge.records import Frozen

_DETAIL_CHARACTERS = 300
_SECRET = "[secret]"
_SECRET_QUERY = re.compile(
    r"(?i)\b((?:[a-z]+[_-])*(?:key|token|secret|password|signature|sig|credential)=)[^&\s\"'<>]+"
)
_SECRET_HEADER = re.compile(
    r"(?i)((?:x-[a-z-]*key|api[_-]?key|authorization|cookie)[\"']?\s*[:=]\s*[\"']?)(?:bearer\s+|basic\s+)?[^\s\"',;]+"
)
_SECRET_SHAPES = (
    re.compile(r"(?i)\b(?:bearer|basic)\s+[a-z0-9._~+/=-]{6,}"),
    re.compile(r"\bsk-[A-Za-z0-9_*-]{6,}"),
    re.compile(r"\bAIza[A-Za-z0-9_*-]{10,}"),
)
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")

_REFUSAL_CODES = frozenset({"content_policy_violation", "moderation_blocked", "content_filter"})
_KEY_FAULTS = ("api_key_invalid", "api key not valid", "invalid api key", "incorrect api key", "api key expired")


class BackendMisconfigured(ValueError):
    """The service refuses these settings, not this request: every other request would fare the same. Stops a run."""


class RemoteError(BackendError):
    """A request that gave nothing usable, and what it cost: `usage.cost_usd` is None where it may have been charged."""

    def __init__(
        self, trouble: Trouble, detail: str, retry_after_s: float | None = None, usage: Usage | None = None
    ) -> None:
        super().__init__(trouble, detail, retry_after_s)
        self.usage = usage or Usage(None)

    def __reduce__(self) -> tuple[type["RemoteError"], tuple[Trouble, str, float | None, Usage]]:  # type: ignore[override]
        return (RemoteError, (self.trouble, self.detail, self.retry_after_s, self.usage))


class Prices(Frozen):
    """What a service charges. A price that is not known stays None, never 0; local servers are given as 0."""

    usd_per_image: float | None = Field(None, ge=0, description="price of one image that comes back")
    usd_per_1m_input_tokens: float | None = Field(None, ge=0, description="price of a million tokens that are sent")
    usd_per_1m_output_tokens: float | None = Field(None, ge=0, description="price of a million tokens that come back")

    def cost_usd(self, images: int, input_tokens: int | None, output_tokens: int | None) -> float | None:
        """Price of one answered request; None where a price, or a count that it is multiplied with, is not known."""
        by_token = self.usd_per_1m_input_tokens is not None and self.usd_per_1m_output_tokens is not None
        if not by_token and not (images and self.usd_per_image is not None):
            return None
        total = images * (self.usd_per_image or 0.0)
        for price, tokens in (
            (self.usd_per_1m_input_tokens, input_tokens),
            (self.usd_per_1m_output_tokens, output_tokens),
        ):
            if price and tokens is None:
                return None
            total += (price or 0.0) * (tokens or 0) / 1e6
        return total


class Endpoint(Frozen):
    """One remote model: where it is served, how long to wait, what it costs. Holds no secret."""

    backend: Literal["openai_chat", "openai_images", "gemini_chat", "gemini_images"] = Field(
        description="protocol that the service speaks, for answers in text (chat) or in images"
    )
    model: str = Field(min_length=1, description="name of the model, as the service knows it")
    base_url: str | None = Field(
        None, repr=False, description="address; the vendor's own service where absent; may carry no credentials"
    )
    api_key_env: Annotated[str | None, Words("letters, digits and _, the first no digit")] = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the key; none for servers that want none",
    )
    timeout_s: float = Field(
        120.0, gt=0, le=3600, description="for one whole request: connection, sending, and every byte of the reply"
    )
    prices: Prices = Field(Prices(), description="what it charges; under a budget all that are needed must be known")
    options: Mapping[str, Any] = Field(
        default_factory=dict,
        description="further fields of the request, as the service names them (`quality`, `image_config`, ...)",
    )
    api_version: str = Field("v1beta", description="of Gemini services")
    max_picture_tokens: int = Field(
        4000, ge=0, description="most tokens that one input picture counts as, in what is reserved of budget and rate"
    )
    max_image_output_tokens: int = Field(8000, ge=0, description="the same for one image that comes back")


@dataclass(frozen=True)
class Picture:
    """An encoded image as it is sent."""

    data: bytes
    mime: str = "image/png"


@dataclass(frozen=True)
class ChatRequest:
    """A question in text, with pictures in the order the text speaks of them, and the form the answer must have."""

    text: str
    pictures: tuple[Picture, ...] = ()
    system: str | None = None
    json_schema: Mapping[str, Any] | None = None
    """The answer must be JSON of this schema, where the server can hold a model to it. The caller validates again."""
    max_output_tokens: int = 2048
    temperature: float | None = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class EditRequest:
    """One picture and what is to be done to it. `size_px` is (width, height), a wish that services may ignore."""

    instruction: str
    picture: Picture
    size_px: tuple[int, int] | None = None
    seed: int | None = None


Request = ChatRequest | EditRequest


@dataclass(frozen=True)
class Reply:
    """What a service answered: UTF-8 text as it came but for our key, or the bytes of an image exactly as they came."""

    data: bytes
    mime: str
    usage: Usage

    @property
    def text(self) -> str:
        return self.data.decode()


class Chat(Protocol):
    """A model that answers questions in words, at a service or here. Raises BackendError."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...

    def ask(self, request: ChatRequest) -> Reply: ...


class Remote(Protocol):
    """A model that answers requests. Raises BackendError for a request, BackendMisconfigured for all of them."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str: ...

    def ask(self, request: Request) -> Reply: ...

    def question(self, request: Request) -> str:
        """SHA-256 of all that determines the answer, except luck."""

    def reserve_usd(self, request: Request) -> float | None:
        """The most that the request may cost; None where that is not known."""

    def reserve_tokens(self, request: Request) -> int:
        """The most tokens that the request may take, both ways."""


def question_of(who: Mapping[str, Any], request: Request) -> str:
    """SHA-256 of who is asked and of all that is asked."""
    pictures = (request.picture,) if isinstance(request, EditRequest) else request.pictures
    asked = {name: value for name, value in vars(request).items() if name not in ("picture", "pictures")}
    hashes = [[picture.mime, hashlib.sha256(picture.data).hexdigest()] for picture in pictures]
    return fingerprint({**who, "pictures": hashes, "asked": asked})


class Settings:
    """What a client knows without its SDK: the part of `Remote` that is pure."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        _check_url(endpoint.base_url)

    @property
    def name(self) -> str:
        return self.endpoint.backend

    @property
    def revision(self) -> str:
        return self.endpoint.model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.model!r})"

    def question(self, request: Request) -> str:
        asked = {name: getattr(self.endpoint, name) for name in ("backend", "model", "options")}
        return question_of(asked, request)

    def reserve_usd(self, request: Request) -> float | None:
        prompt, answer = self._most_tokens(request)
        return self.endpoint.prices.cost_usd(int(isinstance(request, EditRequest)), prompt, answer)

    def reserve_tokens(self, request: Request) -> int:
        return sum(self._most_tokens(request))

    def cost(self, images: int, prompt: int | None, answer: int | None) -> Usage:
        return Usage(self.endpoint.prices.cost_usd(images, prompt, answer), prompt or 0, answer or 0)

    def trouble(
        self, trouble: Trouble, detail: str, usage: Usage | None = None, retry_after_s: float | None = None
    ) -> RemoteError:
        """Trouble in words that came from outside: cut short, and without the key, wherever the service put it."""
        return RemoteError(trouble, short(detail, secrets_of(self.endpoint)), retry_after_s, usage)

    def said(self, text: str, usage: Usage) -> Reply:
        """A reply in words: without the key, which some gateways tell back where an answer should be."""
        return Reply(_without(text, secrets_of(self.endpoint)).encode(errors="replace"), "text/plain", usage)

    def _most_tokens(self, request: Request) -> tuple[int, int]:
        """A token is at least one byte of text, so bytes are an upper bound; 64 for the frame of the messages."""
        if isinstance(request, EditRequest):
            sent = 64 + len(request.instruction.encode()) + self.endpoint.max_picture_tokens
            return sent, self.endpoint.max_image_output_tokens
        text = request.text + (request.system or "") + (str(dict(request.json_schema)) if request.json_schema else "")
        sent = 64 + len(text.encode()) + self.endpoint.max_picture_tokens * len(request.pictures)
        return sent, request.max_output_tokens


def sdk(name: str) -> Any:
    """A module of a service's library. Raises BackendMisconfigured where it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise BackendMisconfigured(f"{error.name} is not installed: pip install 'pairforge[api]'") from error


def key_of(endpoint: Endpoint) -> str:
    """The key, from the environment of this process; any word for servers that want none."""
    if endpoint.api_key_env is None:
        return "none"
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key:
        raise BackendMisconfigured(f"{endpoint.model}: the environment variable {endpoint.api_key_env} holds no key")
    return key


def secrets_of(endpoint: Endpoint) -> tuple[str, ...]:
    """What must not be shown."""
    return (os.environ.get(endpoint.api_key_env or "", "").strip(),)


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """`text` without the given secrets, without what looks like a key, and without credentials in URLs."""
    text = _USER_INFO.sub(f"{_SECRET}@", _without(text, secrets))
    for shape in _SECRET_SHAPES:
        text = shape.sub(_SECRET, text)
    text = _SECRET_QUERY.sub(rf"\g<1>{_SECRET}", text)
    return _SECRET_HEADER.sub(rf"\g<1>{_SECRET}", text)


def _without(text: str, secrets: Sequence[str]) -> str:
    for secret in sorted((secret for secret in secrets if len(secret) >= 4), key=len, reverse=True):
        for form in (secret, quote(secret, safe="")):
            text = text.replace(form, _SECRET)
    return text


def short(text: str, secrets: Sequence[str] = ()) -> str:
    """One line for people, without secrets. Redacted before it is cut: half a secret would not be recognised."""
    line = " ".join(redact(text, secrets).split())
    return line if len(line) <= _DETAIL_CHARACTERS else f"{line[:_DETAIL_CHARACTERS]}..."


def error_of_status(
    status: int, message: str, code: str | None, retry_after_s: float | None, secrets: Sequence[str] = ()
) -> RemoteError | BackendMisconfigured:
    """What an HTTP status other than 200 means. `code` is the service's own word for it."""
    detail = f"HTTP {status}: {short(message, secrets)}"
    free, unknown = Usage(0.0), Usage(None)
    words = f"{code or ''} {message}".lower()
    if status in (402, 429):
        return RemoteError(Trouble.QUOTA, detail, retry_after_s, free)
    if status == 408:
        return RemoteError(Trouble.TIMEOUT, detail, retry_after_s, unknown)
    if status >= 500 or status in (409, 425):
        usage = unknown if status == 504 else free  # a gateway that gave up says nothing about the work behind it
        return RemoteError(Trouble.UNAVAILABLE, detail, retry_after_s, usage)
    if (code or "").lower() in _REFUSAL_CODES:
        return RemoteError(Trouble.REFUSED, detail, None, free)
    if status in (400, 413, 415, 422) and not any(fault in words for fault in _KEY_FAULTS):
        return RemoteError(Trouble.REFUSED, detail, None, free)
    return BackendMisconfigured(detail)


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply's headers ask to wait, at most one day; None where they do not, or name a past date."""
    lower = {name.lower(): value for name, value in headers.items()}
    value = lower.get("retry-after", "").strip()
    try:
        if (milliseconds := lower.get("retry-after-ms")) is not None:
            wait_s = float(milliseconds) / 1000
        elif value and not value[0].isalpha():
            wait_s = float(value)
        elif value:
            wait_s = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        else:
            return None
    except (ValueError, TypeError):
        return None
    return min(wait_s, 86400.0) if wait_s >= 0 else None


def image_mime(data: bytes) -> str | None:
    """MIME type by the first bytes, of the formats that services return; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _check_url(url: str | None) -> None:
    """Messages of a config show its values, so credentials are refused here, without showing them."""
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BackendMisconfigured("base_url must be of the form https://host[:port]/path")
    if parts.username or parts.password or parse_qsl(parts.query) or parts.fragment:
        raise BackendMisconfigured(
            f"base_url of {parts.hostname} carries credentials or a query: name api_key_env instead"
        )
