"""Restore, assess, repeat: the pairwise stop rule, and the image before wins."""

import numpy as np
import pytest

from generators.repeat import RestoreAssessRepeat, repeat_rounds
from pairforge.image import Pixels, decode_png
from pairforge.protocols import BackendError, Candidate, Generator, Trouble, Usage


def picture(level: int) -> Pixels:
    return np.full((3, 5, 3), level, np.uint8)


def level_of(pixels: Pixels) -> int:
    return int(pixels[0, 0, 0])


class Stairs:
    """Each restoration goes to the next level; keeps what it was told."""

    name, revision, deterministic = "stairs", "3", True
    price_usd: float | None = 0.02

    def __init__(self, *troubles: Trouble | None) -> None:
        self.told: list[tuple[int, str, int]] = []
        self._troubles = troubles

    def generate(self, lq: Pixels, instruction: str, seed: int) -> Candidate:
        call = len(self.told)
        self.told.append((level_of(lq), instruction, seed))
        kind = self._troubles[call] if call < len(self._troubles) else None
        if kind is not None:
            raise BackendError(kind, "scripted")
        level = level_of(lq) + 10
        return Candidate(picture(level), f"{level}".encode(), "image/png", ("resized",), Usage(0.02, 1, 1))


def better_up_to(best: int) -> object:
    return lambda before, after: abs(level_of(after) - best) < abs(level_of(before) - best)


def repeating(generator: Generator, best: int, clean: int = 200, max_rounds: int = 4) -> RestoreAssessRepeat:
    def assess(pixels: Pixels) -> tuple[str, ...]:
        return () if level_of(pixels) >= clean else ("haze", "noise")

    return RestoreAssessRepeat(generator, assess, better_up_to(best), "tester-1", max_rounds)  # type: ignore[arg-type]


def test_stops_where_it_gets_worse_and_the_image_before_wins() -> None:
    stairs = Stairs()
    done = repeating(stairs, best=20).rounds(picture(0), "Restore.", seed=5)
    assert level_of(done.candidate.pixels) == 20
    assert [each.kept for each in done.rounds] == [True, True, False]
    assert [told[0] for told in stairs.told] == [0, 10, 20]
    assert all(told[1] == "Restore. Remove in particular: haze, noise." for told in stairs.told)
    assert len({told[2] for told in stairs.told}) == 3 and all(0 <= told[2] < 2**31 for told in stairs.told)
    assert done.candidate.data == b"20" and done.candidate.usage == Usage(0.06, 3, 3)
    assert done.candidate.corrections == ("round 1: resized", "round 2: resized")


def test_the_first_round_may_lose_to_the_input() -> None:
    lq = picture(0)
    candidate = repeating(Stairs(), best=0).generate(lq, "", 1)
    assert np.array_equal(candidate.pixels, lq) and np.array_equal(decode_png(candidate.data), lq)
    assert candidate.usage.cost_usd == 0.02  # it was paid for


def test_stops_where_nothing_is_found_and_after_the_most_rounds() -> None:
    stairs = Stairs()
    assert level_of(repeating(stairs, best=255, clean=20).generate(picture(0), "", 1).pixels) == 20
    assert len(stairs.told) == 2
    assert level_of(repeating(Stairs(), best=255).generate(picture(0), "", 1).pixels) == 40
    assert repeating(Stairs(), best=255, clean=0).generate(picture(0), "", 1).usage.cost_usd == 0.0


def test_without_the_stop_rule_more_rounds_do_harm() -> None:
    ruled = repeating(Stairs(), best=20, max_rounds=10).generate(picture(0), "", 1)
    unruled = repeat_rounds(
        picture(0), Stairs().generate, lambda pixels: ("haze",), lambda before, after: True, lambda names: "", 10
    )
    assert abs(level_of(ruled.pixels) - 20) < abs(level_of(unruled.candidate.pixels) - 20)


def test_troubles() -> None:
    with pytest.raises(BackendError):
        repeating(Stairs(Trouble.REFUSED), best=50).generate(picture(0), "", 1)
    with pytest.raises(BackendError):
        repeating(Stairs(None, Trouble.TIMEOUT), best=50).generate(picture(0), "", 1)
    done = repeating(Stairs(None, Trouble.REFUSED), best=50).rounds(picture(0), "", 1)
    assert level_of(done.candidate.pixels) == 10 and done.rounds[1].detail == "refused: scripted"


def test_it_is_a_generator_and_says_what_it_wraps() -> None:
    generator: Generator = repeating(Stairs(), best=20)
    assert generator.name == "restore_assess_repeat-stairs" and generator.revision == "1-3-tester-1-4"
    assert generator.price_usd == pytest.approx(0.08) and generator.deterministic
    first, second = (repeating(Stairs(), best=20).generate(picture(0), "x", 9) for _ in range(2))
    assert first.data == second.data
    with pytest.raises(ValueError, match="max_rounds 0"):
        repeating(Stairs(), best=1, max_rounds=0)
