"""The only source of randomness.

A seed is a 128-bit value written as 32 hex digits. `seed_for` derives one from a run seed and a key;
`rng_from_seed` turns it into a generator. A record keeps the seed itself, so pixels can be replayed
without knowing the run seed or the key it came from.
"""

import hashlib

import numpy as np

Rng = np.random.Generator


def seed_for(seed: int, *key: str | int) -> str:
    """32 hex digits that depend on every element of the key, its type and its place."""
    digest = hashlib.sha256()
    for element in (seed, *key):
        text = f"{type(element).__name__}:{element}".encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()[:32]


def rng_from_seed(seed_hex: str) -> Rng:
    """Philox generator (Salmon et al., SC 2011) keyed by a seed of 32 hex digits."""
    if len(seed_hex) != 32:
        raise ValueError(f"seed {seed_hex!r} has {len(seed_hex)} digits; 32 hex digits are needed")
    return np.random.Generator(np.random.Philox(key=int(seed_hex, 16)))


def rng_for(seed: int, *key: str | int) -> Rng:
    """Generator for one purpose, e.g. `rng_for(run_seed, recipe, source_id, variant, index, "pixels")`."""
    return rng_from_seed(seed_for(seed, *key))


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """One draw whose logarithm is uniform between the logarithms of `low` and `high`, both > 0."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
