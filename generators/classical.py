"""The weight-free generator: classical restorers, chosen by category or by what is measured of the picture itself."""

from collections.abc import Callable

from generators.restorers import brighten, deblock, deblur, dehaze, denoise, descreen
from generators.symptoms import Symptoms, measure_symptoms
from pairforge.image import Pixels, encode_png
from pairforge.protocols import BackendError, Candidate, Trouble, Usage

_CHOSEN_BY_CATEGORY: dict[str, tuple[str, ...]] = {
    "haze": ("dehaze",),
    "low_light": ("brighten",),
    "noise": ("denoise",),
    "compression": ("deblock",),
    "blur": ("deblur",),
    "moire": ("descreen",),
}
_CANNOT = frozenset({"rain", "snow", "reflection", "flare"})
_LEAST_NOISE_CODES = 2.5
_LEAST_BLOCKINESS = 0.3
_LEAST_VEIL = 0.25
_MOST_DARK_LUMA = 0.17
_LEAST_EDGE_SIGMA_PX = 0.9
_MOST_NOISE_TO_DEBLUR = 3.0


class ClassicalGenerator:
    """Makes the main job and its tests real where there are no weights. It does not make good data.

    With a category that one restorer was written for, that one is applied whatever is measured. Rain, snow,
    reflection and flare are refused: nothing here removes them. For any other category, or none, those run whose
    symptom is seen, one after the other: blocks, noise, veil, darkness, wide edges. A picture without symptoms comes
    back unchanged, for the judge to reject.

    What else it cannot do: mend scratches or motion blur; bring back detail that is gone; tell a white wall from fog,
    dusk from a bad exposure, or cloth from moire. It reads no instruction, so feedback is lost on it, and draws
    nothing, so `seed` changes nothing either.
    """

    name = "classical"
    revision = "1"
    deterministic = True
    price_usd: float | None = 0.0

    def __init__(self, category: str | None = None) -> None:
        self._category = category
        self._chosen = _CHOSEN_BY_CATEGORY.get(category or "")

    def steps(self, lq: Pixels) -> tuple[str, ...]:
        """Names of the restorers that `generate` applies, in their order."""
        return self._chosen or chosen_by_symptoms(measure_symptoms(lq))

    def generate(self, lq: Pixels, instruction: str, seed: int) -> Candidate:
        """Raises BackendError (refused) for a category that nothing here was written for."""
        if self._category in _CANNOT:
            raise BackendError(Trouble.REFUSED, f"no classical restorer removes {self._category}")
        pixels = lq
        for name in self.steps(lq):
            pixels = _apply(name, pixels)
        return Candidate(pixels, encode_png(pixels), "image/png", (), Usage(0.0))


def chosen_by_symptoms(symptoms: Symptoms) -> tuple[str, ...]:
    """Restorers in the order in which they have to run: what came last in the camera is undone first."""
    seen = {
        "deblock": symptoms.blockiness >= _LEAST_BLOCKINESS,
        "denoise": symptoms.noise_codes >= _LEAST_NOISE_CODES,
        "dehaze": symptoms.veil >= _LEAST_VEIL,
        "brighten": symptoms.median_luma <= _MOST_DARK_LUMA,
        "deblur": symptoms.edge_sigma_px >= _LEAST_EDGE_SIGMA_PX and symptoms.noise_codes <= _MOST_NOISE_TO_DEBLUR,
    }
    return tuple(name for name, is_seen in seen.items() if is_seen)


def _apply(name: str, pixels: Pixels) -> Pixels:
    if name == "deblur":
        symptoms = measure_symptoms(pixels)
        # Denoising widens edges too; only what a mild blur would explain is undone.
        sigma_px = min(4.0, symptoms.edge_sigma_px)
        return deblur(pixels, sigma_px, symptoms.noise_codes) if sigma_px >= 0.5 else pixels
    restorers: dict[str, Callable[[Pixels], Pixels]] = {
        "dehaze": dehaze,
        "brighten": brighten,
        "denoise": denoise,
        "deblock": deblock,
        "descreen": descreen,
    }
    return restorers[name](pixels)
