"""The first phase: measure every source, step by step, store the values, let only those go on that pass the rules.

A chunk is a fixed run of sources of the catalog, the unit of work. What one step measured of it is a parquet file,
never changed; where rules are loosened later, sources that had not been measured get a file of their own. Values are
known by the address of their scorer, so another model measures anew and an old one is never asked twice.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filters.rules import LicenceRule, RangeRule, UnmeasuredError, Value, decide
from pairforge.config import fingerprint
from pairforge.image import Pixels
from pairforge.journal import Partition
from pairforge.journal_spend import seal
from pairforge.protocols import TRANSIENT, BackendError
from pairforge.records import Frozen, InfraError, SampleError
from pairforge.remote import BackendMisconfigured, paying
from pairforge.shards import ShardName
from pairforge.storage import Storage, open_storage
from pipelines.bases import cut_source
from pipelines.catalog import USABLE, Catalog, CatalogRow
from pipelines.ground_truth.backends import Backends, Measurer, Values, screen_address
from pipelines.ground_truth.services import Shared
from pipelines.ground_truth.settings import AnyScreen, GroundTruthConfig, Service, VlmScreen
from pipelines.plan import too_small
from pipelines.settings import Normalisation
from pipelines.stages import Resources, Stage

CHUNK_SOURCES = 64
"""Part of the layout of what is stored: to change it makes everything be measured again."""
SCREEN = "screen/"
_COLUMNS = frozenset({"source_id", "trouble", "detail"})
_TEXTS = frozenset({"hash"})
_LISTS = frozenset({"embedding"})


class ScreenSettings(Frozen):
    """What workers need of a config to screen."""

    base: Normalisation
    steps: tuple[AnyScreen, ...]
    services: Mapping[str, Service]
    in_flight: int
    folder: str


@dataclass(frozen=True)
class Measured:
    """What one step knows of a source: its values, or why it has none (`trouble`, `detail`)."""

    values: Values
    trouble: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Chunk:
    """A run of usable sources, on its way through the steps; `values` are those of the steps so far.

    `number` counts chunks over the whole catalog, `measured` the sources that this run measured, by step.
    """

    number: int
    rows: tuple[CatalogRow, ...]
    values: Mapping[str, Values]
    measured: tuple[int, ...] = ()

    @property
    def shard(self) -> ShardName:
        """A name for messages and for counting attempts; nothing is stored under it."""
        ids = fingerprint([row.source_id for row in self.rows])
        return ShardName("screen", "chunks", f"{self.number:08d}", ids)

    @property
    def size_bytes(self) -> int:
        return sum(row.size_bytes for row in self.rows)


def chunks(catalog: Catalog, base: Normalisation) -> Iterator[Chunk]:
    """All usable photos in fixed chunks; a chunk that has none is left out."""
    removed = catalog.removed()
    number = 0
    for rows in catalog.read_batches():
        for start in range(0, len(rows), CHUNK_SOURCES):
            usable = tuple(
                row
                for row in rows[start : start + CHUNK_SOURCES]
                if row.fate == USABLE
                and row.kind == "photo"
                and row.source_id not in removed
                and not too_small(row, base)
            )
            if usable:
                yield Chunk(number, usable, {row.source_id: dict(source_values(row)) for row in usable})
            number += 1


def source_values(row: CatalogRow) -> dict[str, Value]:
    """What rules can ask of every source without measuring it."""
    place = row.uri.replace("\\", "/").rsplit("/", 2)
    return {
        "licence": row.licence,
        "uri": row.uri,
        "folder": place[-2] if len(place) > 1 else "",
        "group": row.group,
        "role": row.role,
        "split": row.split,
        "format": row.format,
    }


def screen_stages(config: GroundTruthConfig) -> tuple[Stage, ...]:
    """One stage for every step, in order, named `screen_NAME`.

    All together take one core where the config says nothing: actors hold theirs while they wait, and with a core each,
    few cores would never have room for many steps.
    """
    share = Resources(cpus=10_000 // len(config.screen) / 10_000)
    return tuple(
        Stage(f"screen_{step.name}", 1, partial(_make_step, index), share) for index, step in enumerate(config.screen)
    )


def _make_step(index: int, context: tuple[ScreenSettings, str, Shared]) -> "ScreenStep":
    return ScreenStep(index, *context)


class ScreenStep:
    """The function of one stage: measures what is not stored, and lets pass what keeps the rules."""

    def __init__(self, index: int, settings: ScreenSettings, output: str, shared: Shared) -> None:
        self._settings = settings
        self._step = settings.steps[index]
        self._last = index == len(settings.steps) - 1
        self._storage = open_storage(output)
        self._address = screen_address(self._step, settings.services, settings.base)
        self._backends = Backends(settings.services, shared)
        self._opened: Measurer | None = None

    def __call__(self, chunk: Chunk) -> Chunk:
        known = read_measured(self._storage, self._address, chunk.number)
        missing = [row for row in chunk.rows if row.source_id not in known]
        if missing:
            found = self._measure(chunk.number, missing)
            if found:
                write_measured(self._storage, self._address, chunk.number, found)
            known |= found
        values = merged(chunk.values, self._step.name, known)
        rows = tuple(
            row
            for row in chunk.rows
            if has_values(known.get(row.source_id)) and passes(values[row.source_id], self._step.rules)
        )
        counts = (*chunk.measured, len(missing))
        if self._last:
            return Chunk(chunk.number, (), {}, counts)
        return Chunk(chunk.number, rows, {row.source_id: values[row.source_id] for row in rows}, counts)

    def _measure(self, number: int, rows: Sequence[CatalogRow]) -> dict[str, Measured]:
        """What was found, without the sources that met passing trouble: those are due again."""
        if self._opened is None:
            self._opened = self._backends.measurer(self._step)
        if isinstance(self._step, VlmScreen):
            partition = Partition(self._storage, f"screen-{self._step.name}-{number:08d}")
            with ThreadPoolExecutor(self._settings.in_flight) as pool:
                answers = list(pool.map(lambda row: self._asked(partition, self._step.name, row), rows))
            seal(self._storage, partition.name)
            return {row.source_id: found for row, found in zip(rows, answers, strict=True) if found is not None}
        found: dict[str, Measured] = {}
        for start in range(0, len(rows), self._opened.at_a_time):
            found |= self._measure_some(rows[start : start + self._opened.at_a_time])
        return found

    def _measure_some(self, rows: Sequence[CatalogRow]) -> dict[str, Measured]:
        found: dict[str, Measured] = {}
        pictures = []
        for row in rows:
            try:
                pictures.append((row, self._cut(row)))
            except SampleError as refusal:
                found[row.source_id] = Measured({}, refusal.reason, refusal.detail)
        assert self._opened is not None
        if pictures:
            values = self._opened.measure([pixels for _, pixels in pictures])
            found |= {row.source_id: _checked(each) for (row, _), each in zip(pictures, values, strict=True)}
        return found

    def _cut(self, row: CatalogRow) -> Pixels:
        try:
            return cut_source(row, self._settings.base, self._settings.folder)
        except OSError as fault:
            raise InfraError(f"while reading {row.uri}: {fault}") from fault

    def _asked(self, partition: Partition, name: str, row: CatalogRow) -> Measured | None:
        """What a service says of one source; None where trouble may pass."""
        assert isinstance(self._step, VlmScreen) and self._opened is not None
        try:
            pixels = self._cut(row)
        except SampleError as refusal:
            return Measured({}, refusal.reason, refusal.detail)
        for ask in range(1, self._step.asks + 1):
            try:
                with paying(partition, row.source_id, f"screen.{name}", ask):
                    return Measured(self._opened.measure([pixels])[0])
            except BackendError as error:
                last = error
                if error.trouble in TRANSIENT:
                    return None
        return Measured({}, last.trouble.value, last.detail)


def _checked(values: Values) -> Measured:
    """What a model gave; numbers that are none decide nothing."""
    for name, value in values.items():
        if not isinstance(value, str) and value is not None and not np.isfinite(value).all():
            return Measured({}, "not_finite", f"{name} is not finite")
    return Measured(values)


def has_values(measured: Measured | None) -> bool:
    return measured is not None and not measured.trouble


def merged(before: Mapping[str, Values], name: str, known: Mapping[str, Measured]) -> dict[str, Values]:
    """Values of sources with those of one more step, known as `name.measure`."""
    return {
        source_id: {
            **values,
            **{f"{name}.{measure}": value for measure, value in _values_of(known.get(source_id)).items()},
        }
        for source_id, values in before.items()
    }


def _values_of(measured: Measured | None) -> Values:
    return measured.values if measured is not None else {}


def passes(values: Values, rules: Sequence[RangeRule | LicenceRule]) -> bool:
    """Whether all rules hold. What was not measured does not pass: it is undecided."""
    try:
        return decide(plain(values), rules) is None
    except UnmeasuredError:
        return False


def plain(values: Values) -> dict[str, Value]:
    """Values that rules can ask for: not embeddings."""
    return {name: value for name, value in values.items() if not isinstance(value, list)}


def write_measured(storage: Storage, address: str, number: int, found: Mapping[str, Measured]) -> None:
    """Store what a step measured of some sources of a chunk; the same sources give the same name."""
    ids = sorted(found)
    names = sorted({name for each in found.values() for name in each.values})
    if taken := _COLUMNS.intersection(names):
        raise BackendMisconfigured(f"a measure may not be called {min(taken)}: change the labels of {address}")
    columns: dict[str, Any] = {
        "source_id": pa.array(ids, pa.string()),
        "trouble": pa.array([found[i].trouble for i in ids], pa.string()),
        "detail": pa.array([found[i].detail for i in ids], pa.string()),
    }
    for name in names:
        kind = pa.string() if name in _TEXTS else pa.list_(pa.float32()) if name in _LISTS else pa.float64()
        columns[name] = pa.array([found[i].values.get(name) for i in ids], kind)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    storage.put_if_absent(f"{_place(address, number)}-{fingerprint(ids)[:8]}.parquet", buffer.getvalue())


def read_measured(storage: Storage, address: str, number: int) -> dict[str, Measured]:
    """What a step knows of the sources of a chunk, by source."""
    found: dict[str, Measured] = {}
    for entry in storage.list(f"{_place(address, number)}-"):
        # Without threads: Arrow's pool may abort a process that ends right after a read.
        table = pq.ParquetFile(io.BytesIO(storage.read(entry.name))).read(use_threads=False)
        for row in table.to_pylist():
            source_id, trouble, detail = row.pop("source_id"), row.pop("trouble"), row.pop("detail")
            values = {name: value for name, value in row.items() if value is not None}
            found.setdefault(source_id, Measured(values, trouble, detail))
    return found


def _place(address: str, number: int) -> str:
    return f"{SCREEN}{address}/{number:08d}"
