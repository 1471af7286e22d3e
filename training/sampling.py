"""The order of training: an endless sequence of draws, a pure function of a seed. No pixels, no torch.

Draws come in epochs of a given size. Of each epoch every stratum, a category of a source, gets its share, exact to
one draw. Within a stratum samples come in a random order until all were used, over the borders of epochs, then in
another one. So where a sequence stands is one number, and whoever knows it goes on from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pairforge.config import fingerprint
from pairforge.rng import rng_for, seed_for

Shares = Callable[[int], Sequence[float]]
"""From an epoch to weights of the strata, at least one of them above 0; only their proportions count."""


class Stratum(NamedTuple):
    """What is drawn from as one: its name in seeds, and how many samples it has."""

    name: str
    size: int


class Draw(NamedTuple):
    """One place of the sequence: its number, the stratum and the sample in it, the seed of its augmentation."""

    number: int
    stratum: int
    sample: int
    seed: str


@dataclass(frozen=True)
class Epoch:
    """Strata and samples of the draws of one epoch, and how many draws each stratum had before it."""

    strata: NDArray[np.int32]
    indices: NDArray[np.int64]
    drawn_before: NDArray[np.int64]


class DrawPlan:
    """Which sample every draw is. `shares` may change by epoch, and must be a pure function."""

    def __init__(self, seed: int, epoch_size: int, strata: Sequence[Stratum], shares: Shares) -> None:
        if epoch_size < 1 or not strata or min(stratum.size for stratum in strata) < 1:
            raise ValueError(f"epoch of {epoch_size} draws from {list(strata)}: all must have 1 or more")
        self.seed, self.epoch_size, self.strata, self.shares = seed, epoch_size, tuple(strata), shares
        self._epoch = lru_cache(maxsize=2)(self._made_epoch)  # a batch may reach over one border
        self._drawn = [np.zeros(len(strata), np.int64)]

    def epoch(self, number: int) -> Epoch:
        """The draws of an epoch. The first call for one costs some 0.1 s a million draws."""
        return self._epoch(number)

    def draws(self, start: int, stop: int, stride: int = 1) -> list[Draw]:
        """Draws of the whole sequence from `start` to before `stop`, each `stride`-th of them."""
        found = []
        for number in range(start, stop, stride):
            epoch, place = divmod(number, self.epoch_size)
            held = self.epoch(epoch)
            seed = seed_for(self.seed, "augment", number)
            found.append(Draw(number, int(held.strata[place]), int(held.indices[place]), seed))
        return found

    def identity(self, number: int) -> str:
        """A hash of what the sequence depends on up to the epoch of a draw: equal ones go on alike."""
        epoch = number // self.epoch_size
        counts = [self._drawn_before(epoch).tolist(), self._counts(epoch).tolist()]
        stated = [self.seed, self.epoch_size, [list(stratum) for stratum in self.strata], counts]
        return fingerprint(stated)

    def _counts(self, epoch: int) -> NDArray[np.int64]:
        """Draws of each stratum in an epoch: systematic sampling with a random start, so none is off by one draw.

        A stratum whose share is less than one draw gets one in some epochs, as often as its share says.
        """
        weights = np.asarray(self.shares(epoch), np.float64)
        if weights.shape != (len(self.strata),) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            raise ValueError(f"shares {weights.tolist()} of epoch {epoch}; allowed: {len(self.strata)} of 0 or more")
        edges = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
        edges[edges == edges[-1]] = 1.0  # also before strata without a share at the end
        start = rng_for(self.seed, "mix", epoch).random()
        reached = np.ceil(edges * self.epoch_size - start).astype(np.int64)
        return np.diff(reached)

    def _drawn_before(self, epoch: int) -> NDArray[np.int64]:
        while len(self._drawn) <= epoch:
            self._drawn.append(self._drawn[-1] + self._counts(len(self._drawn) - 1))
        return self._drawn[epoch]

    def _made_epoch(self, number: int) -> Epoch:
        counts, before = self._counts(number), self._drawn_before(number)
        in_order = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        strata = rng_for(self.seed, "order", number).permutation(in_order)
        indices = np.empty(self.epoch_size, np.int64)
        indices[np.argsort(strata, kind="stable")] = np.concatenate(
            [
                self._samples(stratum, first, count)
                for stratum, first, count in zip(self.strata, before.tolist(), counts.tolist(), strict=True)
            ]
        )
        return Epoch(strata, indices, before)

    def _samples(self, stratum: Stratum, first: int, count: int) -> NDArray[np.int64]:
        """Samples of the draws `first` to `first + count` of a stratum."""
        passes = range(first // stratum.size, -(-(first + count) // stratum.size))
        orders = [rng_for(self.seed, "pass", stratum.name, each).permutation(stratum.size) for each in passes]
        skipped = first % stratum.size
        return np.concatenate([np.empty(0, np.int64), *orders])[skipped : skipped + count].astype(np.int64)
