"""Batches of pairs for training: the same, in the same order, whatever the number of workers and ranks.

pool = Pool(config.sources, cache)
shares = pool.shares("category")
plan = DrawPlan(config.seed, epoch_size, pool.strata, lambda epoch: shares)
loader = PairLoader(pool, plan, PairDataset(pool.storages, settings), batch=16, rank=0, ranks=1, workers=4)
for batch in loader:  # never ends
    batch["lq"], batch["hq"]  # (n, 3, H, W)
"""

import atexit
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pairforge.image import Pixels, decode_png, prepare_worker
from pairforge.records import DamagedError, Sample, parse_sample
from pairforge.storage import Storage
from training.augment import Augment, PairSettings
from training.pool import HQ, JSON, LQ, TEXT, Pool, Ticket
from training.reading import Reader
from training.sampling import DrawPlan

RenderLq = Callable[[Storage, Mapping[str, bytes]], Pixels]
"""LQ of a sample from its files and the dataset it lies in; a function of a module, so that workers can have it."""


_READS_AT_ONCE = 16


class Pair(NamedTuple):
    """What goes in and what must come out, (H, W, 3) uint8; `text` is None where none was asked for."""

    lq: Pixels
    hq: Pixels
    key: str
    category: str
    text: str | None


class Damaged(NamedTuple):
    """A sample that could not be read, and why."""

    message: str


class PairDataset(Dataset):  # type: ignore[misc]
    """Tickets to pairs; a batch of them at once."""

    def __init__(self, storages: Sequence[Storage], settings: PairSettings, render_lq: RenderLq | None = None) -> None:
        self.settings = settings
        self._reader = Reader(storages)
        self._render_lq = render_lq
        self._augment: Augment | None = None

    def __getitem__(self, ticket: Ticket) -> Pair | Damaged:
        """Raises DamagedError with shard and key, unless such samples are skipped; ValueError where sizes do not
        fit; InfraError."""
        pair = self._pair(ticket, partial(self._reader.read, ticket))
        if isinstance(pair, Damaged) and not self.settings.skip_damaged:
            raise DamagedError(pair.message)
        return pair

    def __getitems__(self, tickets: Sequence[Ticket]) -> list[Pair | Damaged]:
        """What torch asks for instead, where it takes a batch; damage is never raised here, since an error of a
        worker comes wrapped in its traceback. Ranges of a bucket are asked for all at once."""
        with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
            reads = [
                threads.submit(self._reader.read, ticket).result
                if self._reader.is_remote(ticket)
                else partial(self._reader.read, ticket)
                for ticket in tickets
            ]
            return [self._pair(*each) for each in zip(tickets, reads, strict=True)]

    def _pair(self, ticket: Ticket, read: Callable[[], Mapping[str, bytes]]) -> Pair | Damaged:
        try:
            lq, hq, text = self._decoded(ticket, read())
        except (ValueError, FileNotFoundError) as error:
            return Damaged(f"{self._reader.url(ticket)}: {error}")
        if self._augment is None:
            self._augment = Augment(self.settings)
        try:
            lq, hq = self._augment(lq, hq, ticket.seed)
        except ValueError as error:
            raise ValueError(f"{self._reader.url(ticket)}: {error}") from error
        return Pair(*((hq, lq) if self.settings.reverse else (lq, hq)), ticket.key, ticket.category, text)

    def _decoded(self, ticket: Ticket, files: Mapping[str, bytes]) -> tuple[Pixels, Pixels, str | None]:
        if LQ in files:
            _check_hashes(files)
            lq = _picture(files, LQ)
        elif self._render_lq is None:
            raise ValueError(f"no {LQ}, and nothing that renders it")
        else:
            lq = self._render_lq(self._reader.storage(ticket), files)
        return lq, _picture(files, HQ), files[TEXT].decode() if TEXT in files else None


def _picture(files: Mapping[str, bytes], field: str) -> Pixels:
    try:
        return decode_png(files[field])
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _check_hashes(files: Mapping[str, bytes]) -> None:
    """Raises ValueError where pictures are not those that the JSON names, if it was read."""
    if JSON not in files:
        return
    sample: Sample = parse_sample(files[JSON], JSON)
    for field, stated in ((LQ, sample.lq_sha256), (HQ, sample.hq_sha256)):
        if hashlib.sha256(files[field]).hexdigest() != stated:
            raise ValueError(f"{field} does not have the SHA-256 that its JSON states")


def collate(pairs: Sequence[Pair | Damaged], settings: PairSettings) -> dict[str, Any]:
    """A batch: `lq`, `hq` (n, 3, H, W) uint8, `key`, `category`, `text` where asked for, messages of `damaged` samples.

    In place of a damaged sample that is skipped stands the next sound one of the batch; one that may not be skipped, or
    a batch without a sound one, leaves the messages alone. Raises ValueError where pictures differ in size.
    """
    sound = [place for place, pair in enumerate(pairs) if isinstance(pair, Pair)]
    damaged = [pair.message for pair in pairs if isinstance(pair, Damaged)]
    if damaged and not (settings.skip_damaged and sound):
        return {"damaged": damaged}
    chosen = [pairs[next((p for p in sound if p >= place), sound[0])] for place in range(len(pairs))]
    held = [pair for pair in chosen if isinstance(pair, Pair)]
    batch: dict[str, Any] = {
        "lq": _stacked([pair.lq for pair in held]),
        "hq": _stacked([pair.hq for pair in held]),
        "key": [pair.key for pair in held],
        "category": [pair.category for pair in held],
        "damaged": damaged,
    }
    if held[0].text is not None:
        batch["text"] = [pair.text for pair in held]
    return batch


def _stacked(images: Sequence[Pixels]) -> torch.Tensor:
    if len({image.shape for image in images}) > 1:
        sizes = sorted({image.shape[:2] for image in images})
        raise ValueError(f"pictures of one batch differ in size, {sizes} (height, width): set crop_px, or batch 1")
    planes = np.empty((len(images), 3, *images[0].shape[:2]), np.uint8)
    for place, image in enumerate(images):
        planes[place] = image.transpose(2, 0, 1)
    return torch.from_numpy(planes)


def to_unit(codes: torch.Tensor) -> torch.Tensor:
    """8-bit codes to floats in [0, 1], the same as those of `pairforge.image.to_float`."""
    return codes.to(torch.float32).mul_(1 / 255)


def _prepare(worker: int) -> None:
    """In a worker. One that is stopped while its threads hand over a batch would abort when Python tears down, so it
    ends without; forked ones always do."""
    prepare_worker()
    atexit.register(os._exit, 0)


class PairLoader:
    """Endless batches of one rank. A batch over all ranks is the next `batch` draws of the plan, and rank r of n has
    every n-th of them, from the r-th on. So ranks may change between runs, and batches stay the same together.

    `position` counts draws, of all ranks, that were handed out in batches; batches made ahead do not count.
    `pin_memory` helps with 8-bit pixels alone: floats are made after it.
    """

    def __init__(
        self,
        pool: Pool,
        plan: DrawPlan,
        dataset: PairDataset,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        ahead: int = 2,
        pin_memory: bool = False,
        start_method: Literal["spawn", "fork", "forkserver"] = "spawn",
    ) -> None:
        if not 0 <= rank < ranks or batch < ranks or batch % ranks:
            raise ValueError(f"batch {batch}, rank {rank} of {ranks}: a batch must divide by its ranks")
        self._pool, self._plan, self._dataset = pool, plan, dataset
        self._collate = partial(collate, settings=dataset.settings)
        self._batch, self._rank, self._ranks = batch, rank, ranks
        self._options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory}
        if workers:
            self._options |= {"prefetch_factor": ahead, "multiprocessing_context": start_method}
        self.position = 0

    @property
    def epoch(self) -> int:
        """Epoch of the next draw."""
        return self.position // self._plan.epoch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches from `position` on. Only one iterator may be in use. Raises DamagedError with shard and key,
        unless such samples are skipped and the batch has others; ValueError, InfraError."""
        batches = DataLoader(
            self._dataset,
            batch_sampler=self._tickets(self.position),
            collate_fn=self._collate,
            worker_init_fn=_prepare,
            generator=torch.Generator(),  # torch would take a draw from its global one
            **self._options,
        )
        for batch in batches:
            if "lq" not in batch:
                raise DamagedError("; ".join(batch["damaged"]))
            if self._dataset.settings.pixels == "float32":  # here, since floats take long to come from a worker
                batch |= {side: to_unit(batch[side]) for side in ("lq", "hq")}
            self.position += self._batch
            yield batch

    def _tickets(self, start: int) -> Iterator[list[Ticket]]:
        while True:
            draws = self._plan.draws(start + self._rank, start + self._batch, self._ranks)
            yield [self._pool.ticket(draw.stratum, draw.sample, draw.seed) for draw in draws]
            start += self._batch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands; the same for all ranks. Plain values, also for JSON."""
        return {
            "position": self.position,
            "plan": self._plan.identity(self.position),
            "snapshots": [list(snapshot) for snapshot in self._pool.snapshots],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, also with another batch or number of ranks. Raises ValueError where it is of other data
        or of another plan: there, draws would repeat or be left out."""
        held = [snapshot.content for snapshot in self._pool.snapshots]
        if [content for _, _, content in state["snapshots"]] != held:
            raise ValueError(
                f"the state is of snapshots {[url for url, _, _ in state['snapshots']]}, not of "
                f"{[snapshot.url for snapshot in self._pool.snapshots]}: name those, to go on"
            )
        if self._plan.identity(state["position"]) != state["plan"]:
            raise ValueError("the state is of another order: seed, epoch size, categories or their weights changed")
        self.position = state["position"]
