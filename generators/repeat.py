"""Restore, assess, repeat: a generator around any generator that goes on while a comparison says it got better.

After RAR ("Restore, Assess, Repeat"): an assessor names the degradations that are there, the restorer is told of them,
and a comparison of before and after decides. The stop rule is pairwise, never a threshold on a score, and where it
says stop the image before wins.
"""

from collections.abc import Callable
from dataclasses import dataclass

from generators.loop import sum_usage
from generators.returned import SizeRule, fit_candidate, framed
from pairforge.image import Pixels, encode_png
from pairforge.protocols import TRANSIENT, BackendError, Candidate, Generator, Usage
from pairforge.rng import seed_for

Assessor = Callable[[Pixels], tuple[str, ...]]
"""Names of the degradations in an image, () where none is left. Raises BackendError."""
Comparison = Callable[[Pixels, Pixels], bool]
"""Whether the second image is better than the first, of which it was made. Raises BackendError."""
MAX_ROUNDS = 4


@dataclass(frozen=True)
class Round:
    """What was found before a round, what the restorer was told, and whether its image was kept."""

    degradations: tuple[str, ...]
    instruction: str
    kept: bool
    detail: str = ""


@dataclass(frozen=True)
class Repeated:
    """`candidate` is the winner; of no kept round it is the input itself."""

    candidate: Candidate
    rounds: tuple[Round, ...]


def repeat_rounds(
    lq: Pixels,
    restore: Callable[[Pixels, str, int], Candidate],
    assess: Assessor,
    is_better: Comparison,
    instruct: Callable[[tuple[str, ...]], str],
    max_rounds: int = MAX_ROUNDS,
    rule: SizeRule | None = None,
) -> Repeated:
    """`restore` gets the image so far, the instruction and the number of the round, from 1.

    Raises BackendError for transient trouble, so that chance does not decide how often a picture is restored, and for
    any trouble of the first restoration; later ones end the rounds with what there is.
    """
    winner: Candidate | None = None
    spent: list[Usage] = []
    corrections: tuple[str, ...] = ()
    rounds: list[Round] = []
    for number in range(1, max_rounds + 1):
        current = lq if winner is None else winner.pixels
        degradations = assess(current)
        if not degradations:
            break
        instruction = instruct(degradations)
        try:
            found = restore(current, instruction, number)
        except BackendError as error:
            if winner is None or error.trouble in TRANSIENT:
                raise
            rounds.append(Round(degradations, instruction, False, str(error)))
            break
        spent.append(found.usage)
        kept = is_better(current, found.pixels)
        rounds.append(Round(degradations, instruction, kept))
        if not kept:
            break
        winner = found
        corrections += tuple(f"round {number}: {correction}" for correction in found.corrections)
    if winner is None:
        rule = rule or SizeRule()  # the input as it would come back, so that pixels are derived by the same rule
        unchanged = fit_candidate(lq, encode_png(framed(lq, rule)), "image/png", sum_usage(spent), rule)
        return Repeated(unchanged, tuple(rounds))
    candidate = Candidate(winner.pixels, winner.data, winner.mime, corrections, sum_usage(spent))
    return Repeated(candidate, tuple(rounds))


class RestoreAssessRepeat:
    """`repeat_rounds` as a Generator; what assessor and comparison cost is theirs to tell.

    `revision` names those of the restorer, of assessor and comparison as given, and the most rounds. The price is
    that of the most rounds.
    """

    def __init__(
        self,
        generator: Generator,
        assess: Assessor,
        is_better: Comparison,
        judges_revision: str,
        max_rounds: int = MAX_ROUNDS,
    ) -> None:
        if max_rounds < 1:
            raise ValueError(f"max_rounds {max_rounds} is not above 0")
        self._generator = generator
        self._assess, self._is_better, self._max_rounds = assess, is_better, max_rounds
        self.name = f"restore_assess_repeat-{generator.name}"
        self.revision = f"1-{generator.revision}-{judges_revision}-{max_rounds}"
        self.deterministic = generator.deterministic
        self.rule: SizeRule = getattr(generator, "rule", SizeRule())
        price = generator.price_usd
        self.price_usd: float | None = None if price is None else price * max_rounds

    def generate(self, lq: Pixels, instruction: str, seed: int) -> Candidate:
        return self.rounds(lq, instruction, seed).candidate

    def rounds(self, lq: Pixels, instruction: str, seed: int) -> Repeated:
        """The same with the facts of every round."""

        def restore(pixels: Pixels, told: str, number: int) -> Candidate:
            return self._generator.generate(pixels, told, int(seed_for(seed, "round", number)[:8], 16) >> 1)

        def instruct(degradations: tuple[str, ...]) -> str:
            return f"{instruction} Remove in particular: {', '.join(degradations)}.".strip()

        return repeat_rounds(lq, restore, self._assess, self._is_better, instruct, self._max_rounds, self.rule)
