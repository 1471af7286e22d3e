"""What a backend of the ground-truth line must offer: measure, generate, judge, write prompts; and what can go wrong.

A backend says who it is (`name`, `revision`); both go into every record. A weight-free one never takes the name of
a model. What can go wrong with one request is a `BackendError` with a typed `Trouble`, never an exception of a library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from pairforge.image import Pixels


class Trouble(StrEnum):
    """Why a request gave nothing usable. The first three are answers and are not asked for again by themselves."""

    REFUSED = "refused"
    """The service declined: safety, policy, blocked prompt."""
    WRONG_SIZE = "wrong_size"
    """An image of a size or aspect that cannot be laid over the input."""
    MALFORMED = "malformed"
    """An answer that is not what was asked for: truncated, prose, HTML, no image."""
    QUOTA = "quota"
    """Too many requests, or no budget left at the service."""
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    """The service failed, or could not be reached."""


TRANSIENT = frozenset({Trouble.QUOTA, Trouble.TIMEOUT, Trouble.UNAVAILABLE})
"""Trouble that may be over later; records that end in it are due again."""


class BackendError(Exception):
    """One request gave nothing usable. `detail` is for people, without secrets; `retry_after_s` as the service said."""

    def __init__(self, trouble: Trouble, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{trouble}: {detail}")
        self.trouble = trouble
        self.detail = detail
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["BackendError"], tuple[Trouble, str, float | None]]:
        return (BackendError, (self.trouble, self.detail, self.retry_after_s))


@dataclass(frozen=True)
class Usage:
    """What one request took. `cost_usd` is None where the price is not known; local backends cost 0."""

    cost_usd: float | None
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Candidate:
    """One generated image at the size of its input, and the answer it came from.

    `data` and `mime` are the bytes as they came; `corrections` say what was done to `pixels` since (resized, cropped).
    """

    pixels: Pixels
    data: bytes
    mime: str
    corrections: tuple[str, ...]
    usage: Usage


class Generator(Protocol):
    """Makes an HQ candidate from an LQ image (H, W, 3) and an instruction. Raises BackendError.

    `seed` makes another draw where the backend has draws; `deterministic` says whether equal arguments give equal
    pixels. `price_usd` is that of one image, None where it is not known.
    """

    name: str
    revision: str
    deterministic: bool
    price_usd: float | None

    def generate(self, lq: Pixels, instruction: str, seed: int) -> Candidate: ...


ASPECTS = (
    "restoration_quality",
    "object_consistency",
    "geometry_alignment",
    "content_reasonableness",
    "colour_consistency",
)
"""What a judge scores, 0 to 100 each (after GGT-100K, arXiv 2605.31039)."""


@dataclass(frozen=True)
class Judgement:
    """Scores 0..100 and reasons by aspect, and the judge's own word, None where it gives none."""

    scores: Mapping[str, int]
    reasons: Mapping[str, str]
    own_word: bool | None
    usage: Usage = field(default_factory=lambda: Usage(0.0))


class Judge(Protocol):
    """Compares LQ and HQ of one pair. Raises BackendError: what cannot be read is trouble, never a guess."""

    name: str
    revision: str

    def judge(self, lq: Pixels, hq: Pixels, category: str) -> Judgement: ...


class Scorer(Protocol):
    """Measures one image: numbers by name, NaN never. Raises BackendError where it asks a service."""

    name: str
    revision: str

    def measure(self, pixels: Pixels) -> Mapping[str, float]: ...
