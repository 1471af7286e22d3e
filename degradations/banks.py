"""Pattern banks that can be built without any picture: one generator a kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from degradations.base import Pattern
from degradations.flare_bank import flare_pattern_image
from degradations.haze_patterns import haze_pattern_image
from degradations.moire_bank import moire_pattern_image
from degradations.rain_pattern import rain_pattern_image


@dataclass(frozen=True)
class Generator:
    """`make(index, seed)` gives pattern `index` of a bank, whatever the others are; `version` as of a degradation."""

    version: int
    make: Callable[[int, int], Pattern]


GENERATORS: Mapping[str, Generator] = {
    "flare": Generator(1, flare_pattern_image),
    "haze": Generator(1, haze_pattern_image),
    "moire": Generator(1, moire_pattern_image),
    "rain": Generator(1, rain_pattern_image),
}
