"""All random choices of a record, made before any pixel: steps with their parameters, patterns of banks."""

from collections.abc import Iterable

import numpy as np

from degradations.base import sample_step
from degradations.catalog import BY_NAME
from degradations.chains import CHAIN_BY_NAME
from pairforge.records import SampleError, Step
from pairforge.rng import Rng, rng_for, seed_for
from pipelines.banks import BankEntry, BankRef, read_bank
from pipelines.plan import RenderSettings
from pipelines.settings import AnyOf, Recipe


def draw_steps(settings: RenderSettings, recipe: Recipe, source_id: str, variant: int) -> tuple[Step, ...]:
    """All steps of a record, sampled before any of them is applied."""
    steps: list[Step] = []
    for index, spec in enumerate(recipe.chain):
        key = (recipe.name, source_id, variant, index)
        rng = rng_for(settings.seed, *key, "params")
        options = spec.any_of if isinstance(spec, AnyOf) else (spec,)
        weights = np.array([option.weight for option in options])
        option = options[int(rng.choice(len(options), p=weights / weights.sum()))]
        steps += _draw(option.type, float(rng.uniform(*option.severity)), rng, settings.seed, key)
    return tuple(steps)


def draw_choice(name: str, severity: float, seed: int, key: tuple[str | int, ...]) -> tuple[Step, ...]:
    """The step of a degradation, or the steps of a named chain, of one severity."""
    return tuple(_draw(name, severity, rng_for(seed, *key, "params"), seed, key))


def _draw(name: str, severity: float, rng: Rng, seed: int, key: tuple[str | int, ...]) -> list[Step]:
    if name in BY_NAME:
        return [sample_step(BY_NAME[name], severity, rng, seed_for(seed, *key, "pixels"))]
    return [
        Step(
            name=drawn,
            version=BY_NAME[drawn].version,
            severity=severity,
            params=params.model_dump(mode="json"),
            seed=seed_for(seed, *key, "pixels", place),
        )
        for place, (drawn, params) in enumerate(CHAIN_BY_NAME[name].draw(severity, rng))
    ]


def patterns_taken(steps: Iterable[Step]) -> dict[str, int]:
    """By kind of bank, how many patterns the steps take: as many as the one of them that takes most."""
    counts: dict[str, int] = {}
    for step in steps:
        degradation = BY_NAME[step.name]
        if degradation.bank:
            count = degradation.params_type.model_validate(step.params).pattern_count
            counts[degradation.bank] = max(counts.get(degradation.bank, 0), count)
    return dict(sorted(counts.items()))


def draw_patterns(
    settings: RenderSettings, recipe: Recipe, source_id: str, variant: int, steps: Iterable[Step]
) -> dict[str, tuple[tuple[BankRef, BankEntry], ...]]:
    """By kind of bank, the patterns of a record. Raises SampleError(`bank_too_small`)."""
    drawn = {}
    for kind, count in patterns_taken(steps).items():
        ref = settings.banks[kind]
        entries = read_bank(ref).entries
        if count > len(entries):
            raise SampleError("bank_too_small", f"{count} {kind} patterns are wanted; {ref.url} holds {len(entries)}")
        rng = rng_for(settings.seed, recipe.name, source_id, variant, "patterns", kind)
        chosen = rng.choice(len(entries), size=count, replace=False)
        drawn[kind] = tuple((ref, entries[int(place)]) for place in chosen)
    return drawn
