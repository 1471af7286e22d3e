"""One run of the ground-truth line: screen, select, make what is missing, publish a snapshot."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pairforge.failpoints import failpoint
from pairforge.journal_spend import Spend, spend, total
from pairforge.protocols import BackendError
from pairforge.records import DamagedError, InfraError, TooManyFailedError
from pairforge.remote import BackendMisconfigured, open_remote, require_prices
from pairforge.shards import Marker
from pairforge.snapshot import open_snapshot, read_latest
from pairforge.storage import Storage, open_storage
from pipelines.carry import (
    NOBODY,
    OVER_BUDGET,
    Tally,
    Watchers,
    carry_parts,
    check_failed,
    in_words,
    raise_given_up,
    stopping_on_sigint,
)
from pipelines.catalog import Catalog
from pipelines.engine import Engine
from pipelines.ground_truth.due import due_again, has_room
from pipelines.ground_truth.lease import Hold, leased
from pipelines.ground_truth.make import MAKE
from pipelines.ground_truth.place import Place
from pipelines.ground_truth.plan import TruthPart, make_settings, plan_truth
from pipelines.ground_truth.report import count_sources, funnel, refusals, unlisted
from pipelines.ground_truth.screen import Chunk, ScreenSettings, chunks, screen_stages
from pipelines.ground_truth.select import NOT_MEASURED, Selection, read_slots, select, standings_table, write_slots
from pipelines.ground_truth.services import Shared
from pipelines.ground_truth.settings import GroundTruthConfig, ModelScreen, Service
from pipelines.publication import outline_of, publish_parts, read_markers, write_run_file
from pipelines.retries import retry
from pipelines.run import RunReport, open_output
from pipelines.stages import Pool, Stage
from pipelines.telemetry import note

STANDINGS = "reports/standings.parquet"


@dataclass(frozen=True)
class TruthReport(RunReport):
    """How a ground-truth run ended. `usd` is all that was ever spent on this output.

    `unmade` parts were left for want of money, `unmeasured` sources because of trouble that may pass. `left_out` pairs
    are of sources that rules refuse by now.
    """

    funnel: Sequence[Mapping[str, Any]] = ()
    unmade: int = 0
    unmeasured: int = 0
    usd: float = 0.0
    left_out: int = 0

    @property
    def flawed(self) -> bool:
        return super().flawed or self.unmade > 0 or self.unmeasured > 0


def run_truth(config: GroundTruthConfig, place: Place, watchers: Watchers = NOBODY) -> TruthReport:
    """Screen, select, make everything that is selected and not committed, publish what is there.

    One run at a time writes to an output. Once the budget is spent nothing more is started, and what is there is
    published. Raises as `pipelines.run.run`; BackendMisconfigured before anything is spent where a price is not known
    or a service does not have its model.
    """
    started = time.monotonic()
    storage = open_output(config)
    with leased(storage) as hold:
        line = _Line(config, storage, place, watchers, hold)
        selection = line.screened()
        if not selection.selected and not selection.unfinished:
            raise ValueError(f"nothing to make: {refusals(selection)}")
        write_slots(storage, selection.fresh, config.shards.records_per_shard)
        failpoint("after-select")
        return line.made(selection, started)


def screen_sources(config: GroundTruthConfig, place: Place, watchers: Watchers = NOBODY) -> list[dict[str, Any]]:
    """Screen and select without making anything: the funnel. No slot is given, so rules can still be tuned."""
    storage = open_output(config)
    with leased(storage) as hold:
        line = _Line(config, storage, place, watchers, hold)
        return funnel(line.catalog, line.screened(), ())


def retune_sources(config: GroundTruthConfig) -> list[dict[str, Any]]:
    """Select again from stored values, without a look at any source: the funnel."""
    storage = open_storage(config.output)
    catalog = Catalog(storage)
    selection = select(config, catalog, storage)
    if not selection.standings:
        raise ValueError(
            f"no source of {config.output} has been screened yet: `pairforge filter` without --retune does"
        )
    storage.write(STANDINGS, standings_table([*unlisted(catalog, selection), *selection.standings]))
    return funnel(catalog, selection, ())


class _Line:
    """What the phases of one run share."""

    def __init__(
        self, config: GroundTruthConfig, storage: Storage, place: Place, watchers: Watchers, hold: Hold
    ) -> None:
        require_prices(config.budget.cap_usd, config.used_services().values())
        self._config, self._storage, self._place, self._watchers, self._hold = config, storage, place, watchers, hold
        self._asked: set[str] = set()
        self.catalog = Catalog(storage)
        self.catalog.scan(config)

    def screened(self) -> Selection:
        """The selection after everything was measured that can be now."""
        selection = select(self._config, self.catalog, self._storage)
        if selection.unfinished:
            self._watchers.on_phase("screening", len(selection.unfinished))
            self._screen(frozenset(selection.unfinished))
            selection = select(self._config, self.catalog, self._storage)
        self._storage.write(STANDINGS, standings_table([*unlisted(self.catalog, selection), *selection.standings]))
        note("selected", sources=len(selection.selected), fresh=len(selection.fresh))
        return selection

    def _screen(self, unfinished: frozenset[int]) -> None:
        config = self._config
        services = config.screening_services()
        settings = ScreenSettings(
            base=config.base,
            steps=config.screen,
            services=services,
            in_flight=config.make.in_flight,
            folder=str(Path.cwd()),
        )
        shared = self._open(services)
        backend = self._place.backend(_resourced(config, screen_stages(config)), (settings, self._storage.root, shared))
        engine = Engine[Chunk](
            backend,
            config.run.engine,
            label_of=lambda chunk: chunk.shard.stem,
            size_of=lambda chunk: chunk.size_bytes,
            on_tick=self._on_tick,
        )
        works = (chunk for chunk in chunks(self.catalog, config.base) if chunk.number in unfinished)
        try:
            with stopping_on_sigint(engine, self._watchers.on_stop) as stopped:
                for outcome in engine.run(works):
                    if outcome.fault is not None:
                        raise InfraError(f"{outcome.fault} ({outcome.attempts} attempts)")
                    self._watchers.on_phase("", 1)
        finally:
            backend.close()
        if stopped:
            raise KeyboardInterrupt

    def made(self, selection: Selection, started: float) -> TruthReport:
        """Make what is selected and not committed, and publish."""
        config, storage, watchers = self._config, self._storage, self._watchers
        spends = spend(storage)
        self._check_journal(spends)
        spent_usd = total(spends).usd
        self._take_back(selection)
        self._send_again(spent_usd)
        parts = list(plan_truth(config, self.catalog))
        planned = outline_of(((part.shard, len(part.records)) for part in parts), storage)
        watchers.on_plan(planned)
        note("planned", records=planned.records, parts=len(planned.parts), parts_done=len(planned.done))
        write_run_file(storage, config, planned)
        failpoint("after-plan")
        before = Tally()
        for marker in read_markers(storage, [part.shard for part in parts if part.shard.marker in planned.done]):
            before.add(marker)
        check_failed(config.run, storage, before, final=False)
        tally = Tally()
        pending = [
            part
            for part in parts
            if part.shard.marker not in planned.done
            and (part.partition in spends or has_room(config, part.category, spent_usd))
        ]
        if pending:
            watched = replace(watchers, on_tick=self._on_tick)
            shared = self._open(config.used_services())
            context = (make_settings(config), storage.root, shared)

            def backend() -> Any:
                return self._place.backend(_resourced(config, (MAKE,)), context)

            carry_parts(storage, config.run, iter(pending), tally, backend, watched, _spent_out)
        raise_given_up(tally)
        self._hold.check()
        return self._published(selection, parts, tally, planned.done, started)

    def _published(
        self,
        selection: Selection,
        parts: Sequence[TruthPart],
        tally: Tally,
        before: frozenset[str],
        started: float,
    ) -> TruthReport:
        config, storage = self._config, self._storage
        present = {entry.name for entry in storage.list("shards/")}
        there = [part for part in parts if part.shard.marker in present]
        markers = read_markers(storage, [part.shard for part in there])
        all_of_it = Tally()
        for marker in markers:
            all_of_it.add(marker)
        check_failed(config.run, storage, all_of_it, final=True)
        if not markers:
            cap = config.budget.cap_usd
            room = "" if cap is None else f"; the budget of {cap:g} USD may leave no room for a request"
            raise TooManyFailedError(f"none of {len(parts)} parts could be made{room}; refused: {refusals(selection)}")
        if not all_of_it.fates["kept"] and self._has_pairs():
            raise TooManyFailedError(f"no pair was kept, the snapshot before stays: {in_words(all_of_it.reasons)}")
        excluded = [
            record.key
            for part in there
            for record in part.records
            if selection.refuses(record.source.source_id, part.category)
        ]
        told = funnel(self.catalog, selection, markers)
        sources = count_sources(self.catalog, selection)
        reports = {"funnel.json": json.dumps(told, indent=1).encode()}
        snapshot, published = publish_parts(storage, config, markers, sources, excluded, reports)
        return TruthReport(
            snapshot=snapshot,
            published=published,
            parts_made=tally.parts_made,
            parts_before=len(before),
            sources=sources,
            fates=dict(all_of_it.fates),
            reasons=dict(all_of_it.reasons),
            seconds=time.monotonic() - started,
            funnel=told,
            unmade=len(parts) - len(there),
            unmeasured=sum(each.reason == NOT_MEASURED for each in selection.standings),
            usd=total(spend(storage)).usd,
            left_out=len(excluded),
            newly_failed=self.catalog.newly_failed,
        )

    def _has_pairs(self) -> bool:
        """Whether `latest` points at a snapshot with pairs."""
        return read_latest(self._storage) is not None and open_snapshot(self._storage.root).manifest.kept > 0

    def _check_journal(self, spends: Mapping[str, Spend]) -> None:
        """Raises DamagedError where the journal of a part is gone: nobody could say what was spent."""
        if not self._config.make.asks_models:
            return
        present = {entry.name for entry in self._storage.list("shards/")}
        for part in plan_truth(self._config, self.catalog):
            if part.shard.marker in present and part.partition not in spends:
                place = self._storage.url(f"journal/{part.partition}/")
                raise DamagedError(f"{place} is gone: what its part has cost is not known; put it back")

    def _take_back(self, selection: Selection) -> None:
        """Nothing is spent on what new rules refuse: its slot is taken back unless its pair is made already."""
        present = {entry.name for entry in self._storage.list("shards/")}
        refused = {
            (record.source.source_id, part.category)
            for part in plan_truth(self._config, self.catalog)
            if part.shard.marker not in present
            for record in part.records
            if selection.refuses(record.source.source_id, part.category)
        }
        if refused:
            slots = [slot for slot in read_slots(self._storage) if (slot.source_id, slot.category) in refused]
            taken = [slot._replace(given=False) for slot in slots if slot.given]
            write_slots(self._storage, taken, self._config.shards.records_per_shard)
            note("taken back", sources=len(taken))

    def _send_again(self, spent_usd: float) -> None:
        """Records that failed for passing reasons before are due: their parts are made again."""
        present = {entry.name for entry in self._storage.list("shards/")}
        made = [part for part in plan_truth(self._config, self.catalog) if part.shard.marker in present]
        markers = read_markers(self._storage, [part.shard for part in made])
        if due := due_again(self._config, self._storage, zip(made, markers, strict=True), spent_usd):
            note("due again", records=retry(self._storage, due))

    def _open(self, services: Mapping[str, Service]) -> Shared:
        """Gates and budget, after every service that is new here has said that it has its model."""
        for name, service in services.items():
            if name not in self._asked:
                try:
                    open_remote(service).preflight()
                except BackendMisconfigured as error:
                    raise BackendMisconfigured(f"service {name}: {error}") from error
                except BackendError as error:
                    raise InfraError(f"service {name} ({service.model}) does not answer: {error}") from error
                self._asked.add(name)
        config = self._config
        limits = {name: service.limits for name, service in config.used_services().items()}
        return self._place.share(limits, config.budget.cap_usd, total(spend(self._storage)).usd)

    def _on_tick(self, loads: Any) -> None:
        self._hold.check()
        self._watchers.on_tick(loads)


def _spent_out(marker: Marker) -> bool:
    return OVER_BUDGET in marker.reasons


def _resourced(config: GroundTruthConfig, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Stages with the resources and pools that the config gives them; what loads or asks a model runs on actors."""
    pools = {
        f"screen_{step.name}": Pool()
        for step in config.screen
        if isinstance(step, ModelScreen) or step.service_name is not None
    }
    if config.make.asks_models:
        pools[MAKE.name] = Pool()
    pools.update(config.run.pools)
    return tuple(
        replace(stage, resources=config.run.stages.get(stage.name, stage.resources), pool=pools.get(stage.name))
        for stage in stages
    )
