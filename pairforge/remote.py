"""Remote models, bought with care: the clients, and what stands between them and money.

`Paid` is a client that looks like any other `Remote`. Each of its questions is looked up in the journal first,
waits for its turn at the gate, is set aside in the budget and written down, and only then sent. It finds the
record it works for in the block `with paying(...)` around it, so that generators and judges know nothing of this.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from pairforge.failpoints import failpoint
from pairforge.journal import Partition, Superseded
from pairforge.journal_log import Address
from pairforge.limits import BudgetSpent, Clock, GateLike, Patience, persist
from pairforge.protocols import TRANSIENT, BackendError
from pairforge.remote_base import (
    BackendMisconfigured,
    ChatRequest,
    EditRequest,
    Endpoint,
    Picture,
    Prices,
    Remote,
    RemoteError,
    Reply,
    Request,
    redact,
)
from pairforge.remote_gemini import GeminiChat, GeminiImages
from pairforge.remote_openai import OpenAIChat, OpenAIImages

__all__ = [
    "BackendMisconfigured",
    "BudgetLike",
    "ChatRequest",
    "EditRequest",
    "Endpoint",
    "GeminiChat",
    "GeminiImages",
    "OpenAIChat",
    "OpenAIImages",
    "Paid",
    "Picture",
    "Prices",
    "Remote",
    "RemoteClient",
    "RemoteError",
    "Reply",
    "Request",
    "open_remote",
    "paying",
    "redact",
    "require_prices",
]

RemoteClient = OpenAIChat | OpenAIImages | GeminiChat | GeminiImages


def open_remote(endpoint: Endpoint) -> RemoteClient:
    """The client of an endpoint. Loads no SDK, reads no key and contacts nobody before its first request."""
    clients: dict[str, type[RemoteClient]] = {
        "openai_chat": OpenAIChat,
        "openai_images": OpenAIImages,
        "gemini_chat": GeminiChat,
        "gemini_images": GeminiImages,
    }
    return clients[endpoint.backend](endpoint)


def require_prices(cap_usd: float | None, endpoints: Iterable[Endpoint]) -> None:
    """Raises BackendMisconfigured where there is a cap and some price is not known: it could not be kept."""
    for endpoint in endpoints:
        images = int(endpoint.backend.endswith("_images"))
        if cap_usd is not None and endpoint.prices.cost_usd(images, 0, 0) is None:
            wanted = "usd_per_image, or both" if images else "both"
            raise BackendMisconfigured(
                f"{endpoint.model}: a budget of {cap_usd:g} USD needs {wanted} usd_per_1m_input_tokens and "
                "usd_per_1m_output_tokens (0 for a server of your own)"
            )


class BudgetLike(Protocol):
    """`limits.Budget`, or a handle to one that lives elsewhere."""

    def reserve(self, price_usd: float | None) -> bool: ...

    def settle(self, price_usd: float | None, cost_usd: float | None) -> None: ...


@dataclass(frozen=True)
class _Purchase:
    partition: Partition
    key: str
    stage: str
    attempt: int
    answers: Counter[str] = field(default_factory=Counter)
    """How often each question was answered in this block; one that met passing trouble is asked at its old address."""

    def address(self, question: str) -> Address:
        return Address(self.key, self.stage, self.attempt, self.answers[question])


_purchase: ContextVar[_Purchase] = ContextVar("purchase")


@contextmanager
def paying(partition: Partition, key: str, stage: str, attempt: int) -> Iterator[None]:
    """Questions of this thread, inside the block, are attempt `attempt` of `stage` for record `key`.

    A question that is asked twice inside one block is two draws; asked again in another block of the same attempt,
    as after a restart, it finds its first answer. Questions of another thread need a block of their own there.
    """
    token = _purchase.set(_Purchase(partition, key, stage, attempt))
    try:
        yield
    finally:
        _purchase.reset(token)


class Paid:
    """A client whose every question is journaled, limited and within the budget."""

    def __init__(
        self, client: Remote, gate: GateLike, budget: BudgetLike, patience: Patience, clock: Clock | None = None
    ) -> None:
        self._client = client
        self._gate = gate
        self._budget = budget
        self._patience = patience
        self._clock = clock

    @property
    def name(self) -> str:
        return self._client.name

    @property
    def revision(self) -> str:
        return self._client.revision

    def question(self, request: Request) -> str:
        return self._client.question(request)

    def reserve_usd(self, request: Request) -> float | None:
        return self._client.reserve_usd(request)

    def reserve_tokens(self, request: Request) -> int:
        return self._client.reserve_tokens(request)

    def ask(self, request: Request) -> Reply:
        """The reply, from the journal where there is one. A repeated trouble that is an answer costs nothing either.

        Raises BudgetSpent where the cap leaves no room, Superseded where another worker took the partition over.
        """
        purchase = _purchase.get(None)
        if purchase is None:
            raise RuntimeError("a question that costs money was asked outside of `with paying(...)`")
        question = self._client.question(request)
        address = purchase.address(question)
        with purchase.partition.asking(address):
            known = purchase.partition.find(address, question)
            try:
                if isinstance(known, BackendError):
                    raise known
                reply = known or persist(
                    lambda: self._buy(purchase.partition, address, question, request),
                    self._gate,
                    self._patience,
                    address,
                    self._client.reserve_tokens(request),
                    lambda reply: reply.usage.input_tokens + reply.usage.output_tokens,
                    self._clock,
                )
            except BackendError as error:
                purchase.answers[question] += error.trouble not in TRANSIENT
                raise
        purchase.answers[question] += 1
        return reply

    def _buy(self, partition: Partition, address: Address, question: str, request: Request) -> Reply:
        price = self._client.reserve_usd(request)
        if not self._budget.reserve(price):
            raise BudgetSpent("the budget leaves no room for another request")
        try:
            sent = partition.intend(address, question, f"{self.name}/{self.revision}", price)
        except Superseded:
            self._budget.settle(price, 0.0)  # after any other fault it may stand in the journal, and counts
            raise
        failpoint("before-request")
        try:
            reply = self._client.ask(request)
        except BackendError as error:
            partition.failed(sent, error)
            self._budget.settle(price, error.usage.cost_usd if isinstance(error, RemoteError) else None)
            raise
        except BackendMisconfigured as error:
            partition.misconfigured(sent, str(error))
            self._budget.settle(price, 0.0)
            raise BackendMisconfigured(f"{self.name} {self.revision}: {error}") from error
        failpoint("after-request")
        partition.answered(sent, reply)
        self._budget.settle(price, reply.usage.cost_usd)
        return reply
