"""What a record of each category costs on the machine that measured it, kept beside the dataset."""

from collections.abc import Mapping

from degradations.catalog import BY_NAME
from pairforge.config import canonical_json, fingerprint
from pairforge.records import Frozen, parse_stored
from pairforge.storage import Storage
from pipelines.settings import RunConfig
from pipelines.synthesis import pixel_versions

CALIBRATION_FILE = "runs/calibration.json"


class CategoryCost(Frozen):
    """Means over `records` planned records, refused ones among them; one core computes at a time.

    `gpu_seconds` counts the GPUs that a stage occupies while it runs.

    `settings` is the fingerprint of what the cost depends on; with another one the cost says nothing.
    """

    settings: str
    records: int
    core_seconds: float
    gpu_seconds: float
    shard_bytes: float


class Calibration(Frozen):
    """Costs by category, bytes of one base, and the machine that measured them."""

    machine: Mapping[str, str]
    measured_at: float
    base_bytes: float
    categories: Mapping[str, CategoryCost]


def read_calibration(storage: Storage) -> Calibration | None:
    """The stored calibration, None where there is none. Raises DamagedError."""
    try:
        data = storage.read(CALIBRATION_FILE)
    except FileNotFoundError:
        return None
    return parse_stored(Calibration, data, storage.url(CALIBRATION_FILE))


def write_calibration(storage: Storage, calibration: Calibration) -> None:
    """Replace the stored calibration."""
    storage.write(CALIBRATION_FILE, canonical_json(calibration).encode())


def cost_settings(config: RunConfig, category: str) -> str:
    """Fingerprint of what the cost of a record of a category depends on, besides the photos."""
    recipes = [recipe for recipe in config.recipes if recipe.category == category]
    names = frozenset(name for recipe in recipes for name in recipe.degradations())
    versions = {name: BY_NAME[name].version for name in sorted(names)}
    needs = frozenset(need for recipe in recipes for need in recipe.needs())
    return fingerprint(
        {
            "base": config.base.model_dump(mode="json"),
            "layers": list(config.shards.layers),
            "scene": config.scene.identity(needs),
            "gpus": {name: stage.gpus for name, stage in config.run.stages.items()},
            "recipes": [recipe.model_dump(mode="json") for recipe in recipes],
            "degradations": versions,
            "versions": pixel_versions(),
        }
    )[:16]
