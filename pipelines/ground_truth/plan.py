"""From slots to parts: a pure function of what is stored, of which old parts do not move."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filters.vlm import presence_prompt_hash
from generators.classical import ClassicalGenerator
from generators.loop import LOOP_PRESETS, LoopPolicy
from generators.prompts import wording_hash
from pairforge.config import canonical_json, fingerprint
from pairforge.records import SCHEMA_VERSION, Frozen
from pairforge.shards import ShardName
from pipelines.catalog import Catalog, CatalogRow
from pipelines.ground_truth.backends import ASKED
from pipelines.ground_truth.select import Slot, read_slots
from pipelines.ground_truth.settings import GroundTruthConfig, Make, Service
from pipelines.plan import source_identity
from pipelines.retries import read_retries, with_retries
from pipelines.settings import Normalisation
from qc.comparison import compare_prompt_hash
from qc.judges import MetricJudge, judge_prompt_hash

LINE = "ground_truth"
REVISION = "1"
"""Of what is done to candidates besides what the config says: to change it makes all parts again, from paid replies."""


class SelectedRecord(NamedTuple):
    """One pair to make. `values` are canonical JSON of what was measured; `again` says how often it is tried again."""

    key: str
    source: CatalogRow
    level: int
    values: str
    again: int


@dataclass(frozen=True)
class TruthPart:
    """A fixed list of selected sources that becomes one shard; see `pipelines.plan.Part`."""

    category: str
    split: str
    number: int
    records: tuple[SelectedRecord, ...]
    content: str
    fingerprint: str

    @property
    def shard(self) -> ShardName:
        return ShardName(LINE, self.category, f"{self.split}-{self.number:06d}", self.fingerprint)

    @property
    def partition(self) -> str:
        """Its journal: by place alone, so that what was paid for is found again after any change of settings."""
        return f"make-{self.category}-{self.split}-{self.number:06d}"

    @property
    def size_bytes(self) -> int:
        return sum(record.source.size_bytes for record in self.records)


class MakeSettings(Frozen):
    """What workers need of a config to make pairs. `folder` is where relative paths of sources start."""

    seed: int
    bases: Mapping[str, Normalisation]
    make: Make
    services: Mapping[str, Service]
    folder: str


def make_settings(config: GroundTruthConfig) -> MakeSettings:
    return MakeSettings(
        seed=config.seed,
        bases={category.name: config.base_of(category.name) for category in config.select.categories},
        make=config.make,
        services=config.used_services(),
        folder=str(Path.cwd()),
    )


def loop_policy(make: Make) -> LoopPolicy:
    return make.loop or LOOP_PRESETS[make.preset]


@dataclass
class _Stream:
    """The open part of one category and split."""

    number: int = 0
    slots: int = 0
    records: list[SelectedRecord] = field(default_factory=list)


def plan_truth(config: GroundTruthConfig, catalog: Catalog) -> Iterator[TruthPart]:
    """All parts in a stable order. Slots that were taken back, or whose source was removed, stay empty."""
    slots = read_slots(catalog.storage)
    wanted = frozenset(slot.source_id for slot in slots) - catalog.removed()
    rows = {row.source_id: row for batch in catalog.read_batches() for row in batch if row.source_id in wanted}
    retries = read_retries(catalog.storage)
    headers = {each.name: canonical_json(_header(config, each.name)) for each in config.select.categories}
    streams: dict[tuple[str, str], _Stream] = {}

    def close(category: str, split: str, stream: _Stream) -> Iterator[TruthPart]:
        if stream.records:
            lines = [headers[category], *map(_line, stream.records)]
            content = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            times = retries.get(content, {})
            records = tuple(record._replace(again=times.get(record.key, 0)) for record in stream.records)
            final = with_retries(content, retries)
            yield TruthPart(category, split, stream.number, records, content, final)
        stream.number, stream.slots, stream.records = stream.number + 1, 0, []

    for slot in slots:
        if slot.category not in headers:
            continue
        stream = streams.setdefault((slot.category, slot.split), _Stream())
        row = rows.get(slot.source_id) if slot.given else None
        if row is not None:
            stream.records.append(SelectedRecord(key_of(slot), row, slot.level, slot.values, 0))
        stream.slots += 1
        if stream.slots == config.shards.records_per_shard:
            yield from close(slot.category, slot.split, stream)
    for (category, split), stream in streams.items():
        yield from close(category, split, stream)


def key_of(slot: Slot) -> str:
    """The key of the record of a slot."""
    return f"{slot.category}-{slot.source_id}-v0"


def _line(record: SelectedRecord) -> str:
    values = hashlib.sha256(record.values.encode()).hexdigest()
    return f"{record.key}\t{source_identity(record.source)}\t{record.level}\t{values}"


def _header(config: GroundTruthConfig, category: str) -> dict[str, Any]:
    """All of a config that determines which bytes a category's parts get."""
    make = config.make
    return {
        "schema": SCHEMA_VERSION,
        "revision": REVISION,
        "seed": config.seed,
        "base": config.base_of(category).model_dump(mode="json"),
        "generator": _identity_of(make.generator, config),
        "fallback": _identity_of(make.fallback, config),
        "repeat": [_identity_of(make.repeat, config), presence_prompt_hash(), compare_prompt_hash()]
        if make.repeat
        else None,
        "prompts": {
            "strategy": make.prompts.strategy,
            "writer": _asked(make.prompts.writer, config),
            "wording": [wording_hash("fixed"), wording_hash("adaptive"), wording_hash("feedback")],
        },
        "judge": [_identity_of(make.judge, config), judge_prompt_hash(), MetricJudge.revision],
        "checks": make.checks.model_dump(mode="json"),
        "verdict": make.verdict.model_dump(mode="json"),
        "preset": make.preset,
        "loop": loop_policy(make).model_dump(mode="json"),
        "classical": ClassicalGenerator.revision,
    }


def _identity_of(stated: Any, config: GroundTruthConfig) -> Any:
    """A backend without its place, and what its service is asked for."""
    if stated is None:
        return None
    held = stated.model_dump(mode="json", exclude={"model", "device", "offload", "service"})
    return {**held, "asked": _asked(getattr(stated, "service", None), config)}


def _asked(service: str | None, config: GroundTruthConfig) -> Any:
    return config.services[service].model_dump(mode="json", include=ASKED) if service else None


def read_values(record: SelectedRecord) -> dict[str, Any]:
    """What was measured of a source when it was selected."""
    values: dict[str, Any] = json.loads(record.values)
    return values


def settings_fingerprint(config: GroundTruthConfig, category: str) -> str:
    """Of what the cost and yield of a record depend on, besides the photos."""
    return fingerprint(_header(config, category))
