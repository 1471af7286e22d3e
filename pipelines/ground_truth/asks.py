"""What a config asks of services, how often at least and at most, and what is reserved for it. Nobody is contacted."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from filters.vlm import ChatScorer
from generators.prompts import MOST_CHARACTERS, adaptive_request, fixed_prompt, hard_constraints, next_instruction
from generators.remote import RemoteGenerator
from pairforge.journal_spend import Spend
from pairforge.protocols import ASPECTS
from pairforge.remote import Request, open_remote
from pipelines.ground_truth.plan import loop_policy
from pipelines.ground_truth.settings import GroundTruthConfig, ServiceFrom, ServiceJudgeFrom, VlmScreen
from qc.comparison import ChatComparison
from qc.judges import ChatJudge

_PICTURE = np.zeros((8, 8, 3), np.uint8)
"""Stands for every photo: what is reserved depends on the number of pictures, not on what they show."""
Usd = float | None
"""None where it is not known."""


@dataclass(frozen=True)
class Ask:
    """One kind of request: how often a record or a source needs it, and what one costs.

    `least_usd` is what an answer costs whatever its number of tokens, `most_usd` what is reserved for it.
    """

    stage: str
    service: str
    least: int
    most: int
    least_usd: Usd
    most_usd: Usd


@dataclass(frozen=True)
class Line:
    """So many requests of one kind."""

    ask: Ask
    least: int
    most: int


def make_asks(config: GroundTruthConfig, category: str) -> list[Ask]:
    """What a record of a category asks; the longest instruction there can be stands for all."""
    make, policy, found = config.make, loop_policy(config.make), list[Ask]()
    attempts = policy.max_regenerations + 1
    first = fixed_prompt(category, make.prompts.strategy != "fixed").text
    if make.prompts.writer is not None:
        request = adaptive_request(_PICTURE, category)
        found.append(_ask(config, "prompt", make.prompts.writer, request, 1, policy.judge_asks))
        first = " ".join(["x" * MOST_CHARACTERS, *hard_constraints(category)])
    told = next_instruction(first, [ASPECTS] * (attempts - 1), attempts, make.preset)
    if isinstance(make.generator, ServiceFrom):
        # With rounds, a photo that shows no damage is not sent at all. A fallback is asked in the generator's place.
        least, rounds = (0, make.repeat.max_rounds) if make.repeat else (1, 1)
        asks = [
            _ask(config, "generate", stated.service, _edit(config, stated, told), least, attempts * rounds)
            for stated in (make.generator, make.fallback)
            if stated is not None
        ]
        found.append(replace(asks[0], most_usd=dearest([ask.most_usd for ask in asks])))
    if make.repeat is not None and make.repeat.service is not None:
        name, most = make.repeat.service, attempts * make.repeat.max_rounds
        chat = open_remote(config.services[name])
        found.append(_ask(config, "generate", name, ChatScorer(chat).request(_PICTURE), 1, most))
        found.append(_ask(config, "generate", name, ChatComparison(chat).request(_PICTURE, _PICTURE), 0, most))
    if isinstance(make.judge, ServiceJudgeFrom):
        chat = open_remote(config.services[make.judge.service])
        request = ChatJudge(chat).request(_PICTURE, _PICTURE, category)
        found.append(_ask(config, "judge", make.judge.service, request, 1, attempts * policy.judge_asks))
    return found


def screen_ask(config: GroundTruthConfig, step: VlmScreen) -> Ask:
    """What a source asks in a step of screening."""
    request = ChatScorer(open_remote(config.services[step.service])).request(_PICTURE)
    return _ask(config, f"screen.{step.name}", step.service, request, 1, step.asks)


def _ask(config: GroundTruthConfig, stage: str, name: str, request: Request, least: int, most: int) -> Ask:
    service = config.services[name]
    least_usd = service.prices.cost_usd(int(service.backend.endswith("_images")), 0, 0)
    return Ask(stage, name, least, most, least_usd, open_remote(service).reserve_usd(request))


def _edit(config: GroundTruthConfig, stated: ServiceFrom, told: str) -> Request:
    return RemoteGenerator(open_remote(config.services[stated.service]), stated.size, None).request(_PICTURE, told, 0)


def add(values: Iterable[Usd]) -> Usd:
    """The sum; None as soon as one part is not known."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return round(sum(known), 6) if len(known) == len(listed) else None


def times(each: Usd, count: float | None) -> Usd:
    """Nothing costs nothing, whatever the price."""
    if count == 0:
        return 0.0
    return None if each is None or count is None else each * count


def dearest(prices: Sequence[Usd]) -> Usd:
    """The highest price; None as soon as one is not known."""
    known = [price for price in prices if price is not None]
    return max(known) if len(known) == len(prices) else None


def each_usd(asks: Sequence[Ask]) -> tuple[Usd, Usd]:
    """What one record costs, accepted at its first attempt and with all of them."""
    return add(times(ask.least_usd, ask.least) for ask in asks), add(times(ask.most_usd, ask.most) for ask in asks)


def stage_of(stage: str) -> str:
    """A stage of the journal as estimates name it: a judge's attempts together, a fallback as its generator."""
    if stage.startswith("judge."):
        return "judge"
    return "generate" if stage == "fallback" else stage


def ended_by_stage(spent: Spend) -> Counter[str]:
    """Requests that ended, whatever came of them."""
    counts: Counter[str] = Counter()
    for name, count in spent.outcomes.items():
        counts[stage_of(name.rsplit(":", 2)[1])] += count
    return counts
