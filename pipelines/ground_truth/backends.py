"""Scorers, generators, judges and writers of prompts, opened as a config names them.

Weight-free ones are used as they are. Whatever asks a model, here or at a service, goes through the journal, so that
a resumed run neither pays nor computes twice: a model on this machine is a client that costs nothing.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filters.rules import Value
from filters.similarity import HASH_REVISION, perceptual_hash
from filters.statistics import Statistics
from generators.classical import ClassicalGenerator
from generators.remote import RemoteGenerator
from pairforge.config import fingerprint
from pairforge.image import Pixels, decode_png
from pairforge.limits import ClockedGate, GateLike, Limits, Patience
from pairforge.protocols import Generator, Judge, Usage
from pairforge.remote import (
    BackendMisconfigured,
    BudgetLike,
    ChatRequest,
    EditRequest,
    Paid,
    Reply,
    Request,
    open_remote,
)
from pairforge.remote_base import question_of
from pipelines.ground_truth.services import Shared
from pipelines.ground_truth.settings import (
    AnyGenerator,
    AnyJudge,
    AnyScreen,
    ClassicalFrom,
    ClassifierScreen,
    ClipScreen,
    DiffusersFrom,
    LocalJudgeFrom,
    MetricJudgeFrom,
    Service,
    ServiceFrom,
    ServiceJudgeFrom,
    StatisticsScreen,
    VlmScreen,
    WatermarkScreen,
)
from pipelines.settings import Normalisation
from qc.judges import ChatJudge, MetricJudge

Values = dict[str, Value | list[float]]
_AT_A_TIME = 16
_HASH = re.compile(r"[0-9a-f]{16}")
"""The part of a revision that names the weights."""
ASKED = {"backend", "model", "options"}
"""What of a service determines its answers."""


class Measurer(Protocol):
    """Values of pictures, a number of them at once. Raises BackendError where it asks a service."""

    at_a_time: int

    def measure(self, pictures: list[Pixels]) -> list[Values]: ...


class LocalClient:
    """A model on this machine as a client: asked one question at a time, for nothing."""

    def __init__(self, name: str, revision: str, answer: Callable[[Request], Reply]) -> None:
        self.name, self.revision = name, revision
        self._answer = answer
        self._turn = threading.Lock()

    def ask(self, request: Request) -> Reply:
        with self._turn:
            return self._answer(request)

    def question(self, request: Request) -> str:
        return question_of({"backend": self.name, "model": self.revision}, request)

    def reserve_usd(self, request: Request) -> float | None:
        return 0.0

    def reserve_tokens(self, request: Request) -> int:
        return 0


class _Free:
    """The budget of what costs nothing."""

    def reserve(self, price_usd: float | None) -> bool:
        return True

    def settle(self, price_usd: float | None, cost_usd: float | None) -> None:
        pass


@dataclass
class Backends:
    """Opens what a config names; every client is opened once and shared by the threads of a worker."""

    services: Mapping[str, Service]
    shared: Shared

    def __post_init__(self) -> None:
        self._clients: dict[str, Paid] = {}
        self._chats: dict[str, Paid] = {}
        self._pipelines: dict[str, Generator] = {}

    def client(self, service: str) -> Paid:
        if service not in self._clients:
            stated = self.services[service]
            gate, budget = self.shared.gates[service], self.shared.budget
            self._clients[service] = _paid(open_remote(stated), gate, budget, stated.patience)
        return self._clients[service]

    def measurer(self, screen: AnyScreen) -> Measurer:
        """Raises BackendMisconfigured for a model that cannot be loaded, or has other weights than the config names."""
        match screen:
            case StatisticsScreen():
                return _Weightless()
            case VlmScreen():
                from filters.vlm import ChatScorer

                return _OneByOne(ChatScorer(self.client(screen.service)))
            case _:
                return local_measurer(screen)

    def generator(self, stated: AnyGenerator, category: str) -> Generator:
        """Raises BackendMisconfigured as `measurer`."""
        match stated:
            case ClassicalFrom():
                return ClassicalGenerator(None if category in ("general_mixed", "old_photo") else category)
            case ServiceFrom():
                price = self.services[stated.service].prices.usd_per_image
                return RemoteGenerator(self.client(stated.service), stated.size, price)
            case DiffusersFrom():
                return self._diffusers(stated)

    def judge(self, stated: AnyJudge, gain_rule: Any) -> Judge:
        """Raises BackendMisconfigured as `measurer`."""
        match stated:
            case MetricJudgeFrom():
                return MetricJudge(gain_rule)
            case ServiceJudgeFrom():
                return ChatJudge(self.client(stated.service))
            case LocalJudgeFrom():
                return ChatJudge(self._local_chat(stated.model, stated.weights, stated.device))

    def _diffusers(self, stated: DiffusersFrom) -> Generator:
        if stated.model not in self._pipelines:
            from generators.diffusion import DiffusersGenerator

            with _loading(stated.device):
                made = DiffusersGenerator(stated.model, stated.options, stated.device, stated.dtype, stated.offload)
                _check_weights(stated.model, stated.weights, made.revision)

            def answer(request: Request) -> Reply:
                assert isinstance(request, EditRequest)
                found = made.generate(decode_png(request.picture.data), request.instruction, request.seed or 0)
                return Reply(found.data, found.mime, Usage(0.0))

            client = _free(LocalClient(made.name, made.revision, answer))
            self._pipelines[stated.model] = RemoteGenerator(client, made.rule, 0.0)
        return self._pipelines[stated.model]

    def _local_chat(self, model: str, weights: str, device: str) -> Paid:
        if model not in self._chats:
            from pairforge.local_chat import TransformersChat

            with _loading(device):
                chat = TransformersChat(model, device, "float32" if device == "cpu" else "bfloat16")
                _check_weights(model, weights, chat.revision)

            def answer(request: Request) -> Reply:
                assert isinstance(request, ChatRequest)
                return chat.ask(request)

            self._chats[model] = _free(LocalClient(chat.name, chat.revision, answer))
        return self._chats[model]


def _paid(client: Any, gate: GateLike, budget: BudgetLike, patience: Patience) -> Paid:
    return Paid(client, gate, budget, patience)


def _free(client: LocalClient) -> Paid:
    return Paid(client, ClockedGate(Limits()), _Free(), Patience())


@contextmanager
def _loading(device: str) -> Iterator[None]:
    """Raises BackendMisconfigured where a model cannot be loaded: no other part of the run would fare better."""
    try:
        import torch

        torch.empty(0, device=device)
    except ImportError as error:
        raise BackendMisconfigured(f"models need torch: pip install 'pairforge[models]' ({error})") from error
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BackendMisconfigured(f"device {device!r} cannot be used here: {reason}") from error
    try:
        yield
    except (ValueError, ImportError) as error:
        raise BackendMisconfigured(str(error)) from error


def _check_weights(model: str, pinned: str, revision: str) -> None:
    found = next(part for part in revision.split("-") if _HASH.fullmatch(part))
    if found != pinned:
        raise ValueError(f"{model} is not the model that the config pins: weights are {found}, not {pinned}")


def local_measurer(screen: ClipScreen | WatermarkScreen | ClassifierScreen) -> Measurer:
    """A model of this machine. Raises BackendMisconfigured as `Backends.measurer`."""
    with _loading(screen.device):
        return _loaded_measurer(screen)


def _loaded_measurer(screen: ClipScreen | WatermarkScreen | ClassifierScreen) -> Measurer:
    model, device = screen.model, screen.device
    found: Any
    match screen:
        case ClipScreen():
            from filters.clip import PROMPTS, ClipZeroShot

            prompts = Path(screen.prompts) if screen.prompts else PROMPTS
            found = ClipZeroShot(model, device, prompts=prompts, model_name=screen.model_name)
        case WatermarkScreen():
            from filters.watermark import Owlv2Watermarks

            found = Owlv2Watermarks(model, device, least_score=screen.least_score)
        case ClassifierScreen():
            from filters.classifier import TimmClassifier

            found = TimmClassifier(
                model, device, labels=screen.labels, model_name=screen.model_name, several=screen.several
            )
    _check_weights(model, screen.weights, found.revision)
    return _Clip(found) if isinstance(screen, ClipScreen) else _OneByOne(found)


class _Weightless:
    at_a_time = 1

    def __init__(self) -> None:
        self._statistics = Statistics()

    def measure(self, pictures: list[Pixels]) -> list[Values]:
        return [{**self._statistics.measure(each), "hash": f"{perceptual_hash(each):016x}"} for each in pictures]


class _Clip:
    """CLIP scores and embeddings."""

    at_a_time = _AT_A_TIME

    def __init__(self, clip: Any) -> None:
        self._clip = clip

    def measure(self, pictures: list[Pixels]) -> list[Values]:
        embeddings = self._clip.embed(pictures)
        return [{**self._clip.score(each), "embedding": each.tolist()} for each in embeddings]


class _OneByOne:
    at_a_time = 1

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer

    def measure(self, pictures: list[Pixels]) -> list[Values]:
        return [dict(self._scorer.measure(each)) for each in pictures]


def screen_address(screen: AnyScreen, services: Mapping[str, Service], base: Normalisation) -> str:
    """A name for the stored values of one scorer over sources that are cut so, without loading it."""
    stated = {**screen.identity(), "base": base.model_dump(mode="json", exclude={"small"})}
    if screen.service_name is not None:
        stated["service"] = services[screen.service_name].model_dump(mode="json", include=ASKED)
    match screen:
        case StatisticsScreen():
            revision = f"{Statistics.revision} {HASH_REVISION}"
        case ClipScreen():
            from filters.clip import PROMPTS

            revision = fingerprint(Path(screen.prompts or PROMPTS).read_text(encoding="utf-8"))
        case VlmScreen():
            from filters.vlm import presence_prompt_hash

            revision = presence_prompt_hash()
        case _:
            revision = "1"
    return f"{screen.name}-{fingerprint([stated, revision])[:8]}"
