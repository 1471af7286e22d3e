"""The second phase: from stored values to selected sources, over the whole catalog, without touching a pixel.

Every source gets one standing: the phase it reached, and why it went no further. What was selected once keeps its
slot for ever, in numbered immutable batches below `selected/`, so that parts do not move and nothing is bought twice;
a source that new rules refuse stays in its part, and its pair is excluded from snapshots.
"""

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filters.rules import LicenceRule, RangeRule, UnmeasuredError, decide
from filters.similarity import leaks, near_embeddings, survivors, survivors_by_hash
from pairforge.config import canonical_json
from pairforge.records import InfraError
from pairforge.storage import Storage
from pipelines.catalog import Catalog
from pipelines.ground_truth.backends import Values, screen_address
from pipelines.ground_truth.held_out import HeldOutPicture, held_out_pictures
from pipelines.ground_truth.screen import Chunk, Measured, chunks, merged, plain, read_measured
from pipelines.ground_truth.settings import Category, GroundTruthConfig

SELECTED = "selected/"
_SETTINGS = f"{SELECTED}settings.json"
PASSED = "selected"
NOT_MEASURED = "not_measured"
_LATER_PHASES = ("licence", "category", "held_out", "duplicate", "quota")


class Standing(NamedTuple):
    """Where a source stands: `phase` and `reason` of its refusal, or phase `selected` with category and level."""

    source_id: str
    uri: str
    split: str
    phase: str
    reason: str
    detail: str
    category: str
    level: int


class Slot(NamedTuple):
    """A selected source. `values` are canonical JSON of all that was measured when it was selected.

    `given` is False for one that was taken back before its pair was made: its place stays empty.
    """

    source_id: str
    category: str
    split: str
    level: int
    values: str
    given: bool = True


@dataclass(frozen=True)
class _Candidate:
    """A source that passed every rule of its own; `order` is its place in the catalog."""

    order: int
    standing: Standing
    values: Values

    @property
    def slot(self) -> tuple[str, str]:
        return self.standing.source_id, self.standing.category

    @cached_property
    def hash(self) -> int | None:
        text = next((value for name, value in self.values.items() if name.endswith(".hash")), None)
        return int(str(text), 16) if text is not None else None

    @property
    def embedding(self) -> list[float] | None:
        found = (value for value in self.values.values() if isinstance(value, list))
        return next(found, None)


@dataclass(frozen=True)
class Selection:
    """Standings of all screened sources, in catalog order, and the slots that are not yet written down.

    `unfinished` are chunks of which some source still has to be measured.
    """

    phases: tuple[str, ...]
    standings: tuple[Standing, ...]
    fresh: tuple[Slot, ...]
    unfinished: tuple[int, ...]

    @property
    def selected(self) -> frozenset[str]:
        return frozenset(each.source_id for each in self.standings if each.phase == PASSED)

    def refuses(self, source_id: str, category: str) -> bool:
        """Whether a slot of this source should not be there. One that has yet to be measured is not refused."""
        return (source_id, category) not in self._held and source_id not in self._unmeasured

    @cached_property
    def _held(self) -> frozenset[tuple[str, str]]:
        return frozenset((each.source_id, each.category) for each in self.standings if each.phase == PASSED)

    @cached_property
    def _unmeasured(self) -> frozenset[str]:
        return frozenset(each.source_id for each in self.standings if each.reason == NOT_MEASURED)

    def refused(self) -> dict[str, dict[str, int]]:
        """How many every phase refused, by reason; phases in their order."""
        counts: dict[str, Counter[str]] = {phase: Counter() for phase in self.phases}
        for each in self.standings:
            if each.phase != PASSED:
                counts[each.phase][each.reason] += 1
        return {phase: dict(sorted(reasons.items())) for phase, reasons in counts.items()}

    def by_category(self) -> dict[str, int]:
        """How many were selected of each category."""
        return dict(sorted(Counter(each.category for each in self.standings if each.phase == PASSED).items()))


def select(config: GroundTruthConfig, catalog: Catalog, storage: Storage) -> Selection:
    """Decide for every source from what is stored. Raises InfraError where the ledger of slots is damaged."""
    refused: dict[int, Standing] = {}
    candidates: list[_Candidate] = []
    unfinished: list[int] = []
    order = 0
    for chunk in chunks(catalog, config.base):
        finished = True
        for standing, values, measured in _screened(config, storage, chunk):
            finished = finished and measured
            if standing.phase == PASSED:
                candidates.append(_Candidate(order, standing, values))
            else:
                refused[order] = standing
            order += 1
        if not finished:
            unfinished.append(chunk.number)
    candidates = _refuse(candidates, _leaked(config, storage, candidates), refused)
    candidates = _refuse(candidates, _duplicates(config, candidates), refused)
    held = frozenset((slot.source_id, slot.category) for slot in read_slots(storage) if slot.given)
    candidates = _refuse(candidates, _beyond_quota(config, candidates, held), refused)
    ordered = sorted([*refused.items(), *((each.order, each.standing) for each in candidates)])
    fresh = [each for each in candidates if each.slot not in held]
    fresh.sort(key=lambda each: _lot(config.seed, each.standing.source_id))
    phases = (*(f"screen_{step.name}" for step in config.screen), *_LATER_PHASES)
    return Selection(phases, tuple(standing for _, standing in ordered), tuple(map(_slot, fresh)), tuple(unfinished))


def _slot(candidate: _Candidate) -> Slot:
    standing = candidate.standing
    return Slot(
        standing.source_id, standing.category, standing.split, standing.level, canonical_json(plain(candidate.values))
    )


def _screened(config: GroundTruthConfig, storage: Storage, chunk: Chunk) -> Iterator[tuple[Standing, Values, bool]]:
    """Standing by rules alone, values, and whether all was measured that had to be, of every source of a chunk."""
    values = dict(chunk.values)
    alive = {row.source_id: row for row in chunk.rows}
    ended: dict[str, tuple[Standing, bool]] = {}
    for step in config.screen:
        known = read_measured(storage, screen_address(step, config.services, config.base), chunk.number)
        values = merged(values, step.name, known)
        for source_id, row in list(alive.items()):
            told = _failed(f"screen_{step.name}", known.get(source_id), values[source_id], step.rules)
            if told is not None:
                phase, reason, detail = told
                ended[source_id] = (
                    Standing(source_id, row.uri, row.split, phase, reason, detail, "", 0),
                    source_id in known,
                )
                del alive[source_id]
    for row in chunk.rows:
        own = values[row.source_id]
        if row.source_id in ended:
            standing, measured = ended[row.source_id]
            yield standing, own, measured
        else:
            phase, reason, detail, category, level = _categorised(config, own)
            yield Standing(row.source_id, row.uri, row.split, phase, reason, detail, category, level), own, True


def _failed(
    phase: str, measured: Measured | None, values: Values, rules: Sequence[RangeRule | LicenceRule]
) -> tuple[str, str, str] | None:
    """Phase, reason and detail where a source goes no further than this step."""
    if measured is None:
        return phase, NOT_MEASURED, "due again"
    if measured.trouble:
        return phase, f"unmeasured_{measured.trouble}", measured.detail
    try:
        broken = decide(plain(values), rules)
    except UnmeasuredError as error:
        return phase, "undecided", str(error)
    return (phase, broken.reason, _told(broken, values)) if broken is not None else None


def _told(rule: RangeRule | LicenceRule, values: Values) -> str:
    value = values[rule.measure]
    return f"{rule.measure} is {value:.4g}" if isinstance(value, float) else f"{rule.measure} is {value}"


def _categorised(config: GroundTruthConfig, values: Values) -> tuple[str, str, str, str, int]:
    """Phase, reason and detail of a refusal, or phase `selected`; category and level."""
    stated = config.select.licences
    if stated is not None and not stated.passes(str(values[stated.measure])):
        return "licence", stated.reason, _told(stated, values), "", 0
    known = plain(values)
    fitting: list[tuple[float, int, Category]] = []
    for place, category in enumerate(config.select.categories):
        try:
            fits = decide(known, category.when) is None
            score = float(known[category.score] or 0.0) if category.score else 0.0
        except (UnmeasuredError, KeyError) as error:
            return "category", "undecided", str(error), "", 0
        if fits:
            fitting.append((-score, place, category))
    if not fitting:
        return "category", "no_category", "no category takes it", "", 0
    best = min(fitting)[2]
    level = 0
    if best.levels is not None:
        value = known.get(best.levels.measure)
        if not isinstance(value, int | float):
            return "category", "undecided", f"level of {best.name} needs {best.levels.measure!r}", "", 0
        level = int(np.searchsorted(best.levels.edges, value, side="right"))
    return PASSED, "", "", best.name, level


def _refuse(
    candidates: list[_Candidate], why: Mapping[int, tuple[str, str, str]], refused: dict[int, Standing]
) -> list[_Candidate]:
    """The candidates without those that `why` names by place in the catalog; they join `refused`."""
    left = []
    for each in candidates:
        if each.order in why:
            phase, reason, detail = why[each.order]
            refused[each.order] = each.standing._replace(phase=phase, reason=reason, detail=detail)
        else:
            left.append(each)
    return left


def _leaked(
    config: GroundTruthConfig, storage: Storage, candidates: Sequence[_Candidate]
) -> dict[int, tuple[str, str, str]]:
    held: list[HeldOutPicture] = held_out_pictures(config, storage)
    own = [each for each in candidates if each.hash is not None]
    found: dict[int, tuple[str, str, str]] = {}
    if held and own:
        hashes = np.array([each.hash for each in held], np.uint64)
        for leak in leaks(_hashes(own), hashes, config.select.held_out_bits):
            near = held[leak.held_out]
            told = f"{leak.distance} bits from {near.uri}"
            found[own[leak.position].order] = ("held_out", f"held_out_{near.set}", told)
    least, seen = config.select.held_out_cosine, [each for each in candidates if each.embedding is not None]
    if least is not None and held and seen:
        rows, others = ([each.embedding for each in several] for several in (seen, held))
        for place, other in near_embeddings(np.array(rows, np.float32), np.array(others, np.float32), least).tolist():
            told = f"shows what {held[other].uri} shows"
            found.setdefault(seen[place].order, ("held_out", f"held_out_{held[other].set}", told))
    return found


def _duplicates(config: GroundTruthConfig, candidates: Sequence[_Candidate]) -> dict[int, tuple[str, str, str]]:
    rule = config.select.duplicates
    found: dict[int, tuple[str, str, str]] = {}
    hashed = [each for each in candidates if each.hash is not None]
    if rule.most_bits is not None and hashed:
        for place, first in enumerate(survivors_by_hash(_hashes(hashed), rule.most_bits).tolist()):
            if first != place:
                found[hashed[place].order] = ("duplicate", "near_duplicate", f"of {hashed[first].standing.uri}")
    embedded = [each for each in candidates if each.embedding is not None and each.order not in found]
    if rule.least_cosine is not None and embedded:
        rows = np.array([each.embedding for each in embedded], np.float32)
        pairs = near_embeddings(rows, rows, rule.least_cosine)
        for place, first in enumerate(survivors(len(embedded), pairs[pairs[:, 0] < pairs[:, 1]]).tolist()):
            if first != place:
                found[embedded[place].order] = ("duplicate", "same_content", f"of {embedded[first].standing.uri}")
    return found


def _hashes(candidates: Sequence[_Candidate]) -> Any:
    return np.array([each.hash for each in candidates], np.uint64)


def _beyond_quota(
    config: GroundTruthConfig, candidates: Sequence[_Candidate], held: frozenset[tuple[str, str]]
) -> dict[int, tuple[str, str, str]]:
    """Candidates that quotas and the proportion of levels leave out. Slots are kept; others are drawn by lot."""
    by_category: defaultdict[str, list[_Candidate]] = defaultdict(list)
    for each in candidates:
        by_category[each.standing.category].append(each)
    left_out: dict[int, tuple[str, str, str]] = {}
    for name, members in by_category.items():
        category = config.category(name)
        members.sort(key=lambda each: (each.slot not in held, _lot(config.seed, each.standing.source_id)))
        levels = len(category.levels.shares) if category.levels else 1
        by_level = [[each for each in members if each.standing.level == level] for level in range(levels)]
        shares = category.levels.shares if category.levels else (1,)
        wanted = level_counts([len(each) for each in by_level], shares, category.quota)
        scarce = min((place for place in range(levels) if shares[place]), key=lambda p: len(by_level[p]) / shares[p])
        for level, ranked in enumerate(by_level):
            for each in ranked[wanted[level] :]:
                by_share = category.levels is not None and sum(wanted) < (category.quota or len(members) + 1)
                reason = "level_share" if by_share else "quota"
                told = f"level {level} of {name}: {wanted[level]} of {len(ranked)} taken"
                told += f", as level {scarce} has {len(by_level[scarce])}" if by_share else ""
                left_out[each.order] = ("quota", reason, told)
    return left_out


def level_counts(have: Sequence[int], shares: Sequence[int], quota: int | None) -> list[int]:
    """How many of each level to take, at most `have`, in the proportion of `shares`, at most `quota` together.

    The proportion holds up to rounding down; of a quota that it does not divide, levels with the largest remainder
    get one more where they have it.
    """
    rounds = min(count / share for count, share in zip(have, shares, strict=True) if share)
    if quota is not None:
        rounds = min(rounds, quota / sum(shares))
    exact = [rounds * share for share in shares]
    taken = [int(count + 1e-9) for count in exact]
    spare = (quota if quota is not None else 0) - sum(taken)
    for place in sorted(range(len(have)), key=lambda p: (taken[p] - exact[p], p)):
        if spare > 0 and exact[place] - taken[place] > 1e-9 and taken[place] < have[place]:
            taken[place] += 1
            spare -= 1
    return taken


def _lot(seed: int, source_id: str) -> str:
    """A place in the draw that does not depend on the order of folders."""
    return hashlib.sha256(f"select:{seed}:{source_id}".encode()).hexdigest()


def read_slots(storage: Storage) -> list[Slot]:
    """All slots ever given, in their order; those taken back say so. Raises InfraError where a batch is missing."""
    names = [entry.name for entry in storage.list(SELECTED) if entry.name.endswith(".parquet")]
    if names != [_batch_name(number) for number in range(len(names))]:
        raise InfraError(f"batches of selected sources are not numbered without gaps: {names}")
    slots: list[Slot] = []
    places: dict[tuple[str, str], int] = {}
    for name in names:
        table = pq.ParquetFile(io.BytesIO(storage.read(name))).read(use_threads=False)
        for row in map(Slot._make, zip(*(table[field].to_pylist() for field in Slot._fields), strict=True)):
            which = (row.source_id, row.category)
            if row.given:
                places[which] = len(slots)
                slots.append(row)
            else:
                slots[places[which]] = row
    return slots


def write_slots(storage: Storage, fresh: Sequence[Slot], records_per_shard: int) -> None:
    """Give slots to sources, or take them back.

    Raises ValueError where parts had another length before, InfraError where another run selects too.
    """
    _pin(storage, records_per_shard)
    if not fresh:
        return
    number = sum(entry.name.endswith(".parquet") for entry in storage.list(SELECTED))
    kinds = {int: pa.int64(), str: pa.string(), bool: pa.bool_()}
    columns = {
        field: pa.array([getattr(slot, field) for slot in fresh], kinds[Slot.__annotations__[field]])
        for field in Slot._fields
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    if not storage.put_if_absent(_batch_name(number), buffer.getvalue()):
        raise InfraError(f"another run is selecting: it wrote {_batch_name(number)} first; run again to go on")


def _pin(storage: Storage, records_per_shard: int) -> None:
    stated = canonical_json({"records_per_shard": records_per_shard}).encode()
    if not storage.put_if_absent(_SETTINGS, stated):
        before = json.loads(storage.read(_SETTINGS))["records_per_shard"]
        if before != records_per_shard:
            raise ValueError(
                f"shards.records_per_shard is {records_per_shard}; parts of this output were laid out with {before}, "
                "and paid work belongs to them: keep it, or choose another output"
            )


def _batch_name(number: int) -> str:
    return f"{SELECTED}batch-{number:06d}.parquet"


def standings_table(standings: Iterable[Standing]) -> bytes:
    """All standings as a parquet file, for people who ask why a source is not there."""
    rows = list(standings)
    table = pa.table({field: [getattr(row, field) for row in rows] for field in Standing._fields})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
