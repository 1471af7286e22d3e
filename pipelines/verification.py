"""Making stored samples again, in fresh processes, and comparing them with what the shards hold.

Those of synthesis are rendered; those of the ground-truth line are derived from the answer that HQ came from.
"""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from pairforge.image import Pixels, decode_png, encode_png
from pairforge.records import InfraError
from pairforge.shards import read_shard, sample_json
from pairforge.snapshot import Snapshot
from pairforge.storage import open_storage
from pipelines.ground_truth.make import replay_truth
from pipelines.ground_truth.plan import LINE as GROUND_TRUTH
from pipelines.plan import LINE
from pipelines.synthesis import pixel_versions, replay_sample

_REPLAYS = {LINE: replay_sample, GROUND_TRUTH: replay_truth}
"""By line; pairs of others came without a way to make them again."""


@dataclass(frozen=True)
class ReplayReport:
    """How many samples were rendered again, how many came without steps, and which differ."""

    replayed: int
    without_steps: int
    problems: tuple[str, ...]


def replay_snapshot(
    snapshot: Snapshot,
    count: int | None,
    tolerance_codes: int,
    workers: int,
    seen: Callable[[int], None] = lambda samples: None,
) -> ReplayReport:
    """Replay `count` samples spread evenly over the snapshot, all of them where None.

    With a tolerance of 0 the PNG bytes must be equal; else no pixel may differ by more codes. Raises
    InfraError where a process died.
    """
    work = list(_choose(snapshot, count))
    replayed = 0
    problems: list[str] = []
    with closing(_in_processes(snapshot.storage.root, work, tolerance_codes, workers)) as results:
        for done, faults in results:
            replayed += done
            problems += faults
            seen(done)
    skipped = sum(shard.kept for shard in snapshot.manifest.shards if shard.line not in _REPLAYS)
    return ReplayReport(replayed, skipped, tuple(sorted(problems)))


def _in_processes(
    root: str, work: Sequence[tuple[str, str, frozenset[int]]], tolerance_codes: int, workers: int
) -> Generator[tuple[int, list[str]], None, None]:
    if not work:
        return
    fresh = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(workers, len(work)), fresh, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            jobs = [pool.submit(_replay_shard, root, *job, tolerance_codes) for job in work]
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool as error:
            raise InfraError("a process that replayed samples died; it may have run out of memory") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise


def _choose(snapshot: Snapshot, count: int | None) -> Iterator[tuple[str, str, frozenset[int]]]:
    shards = [shard for shard in snapshot.manifest.shards if shard.tar_name and shard.line in _REPLAYS]
    total = sum(shard.kept for shard in shards)
    wanted = range(total) if count is None or count >= total else {int(i * total / count) for i in range(count)}
    first = 0
    for shard in shards:
        places = frozenset(place for place in range(shard.kept) if first + place in wanted)
        first += shard.kept
        if places:
            yield shard.line, shard.tar_name, places


def _replay_shard(
    root: str, line: str, tar_name: str, places: frozenset[int], tolerance_codes: int
) -> tuple[int, list[str]]:
    storage = open_storage(root)
    done, problems = 0, []
    for place, (key, files) in enumerate(read_shard(storage, tar_name)):
        if place not in places:
            continue
        done += 1
        try:
            sides = _REPLAYS[line](storage, files)
        except ValueError as error:
            problems.append(f"{key}: {error}")
            continue
        for name, pixels in zip(("lq.png", "hq.png"), sides, strict=True):
            if fault := _difference(files[name], pixels, tolerance_codes):
                problems.append(f"{key}: {name} {fault}{_other_versions(files)}")
    return done, problems


def _other_versions(files: Mapping[str, bytes]) -> str:
    """Which libraries differ from those that rendered a sample, as the end of a message."""
    made, here = sample_json(files)["versions"], pixel_versions()
    other = [f"{name} {made[name]} (here {here.get(name, 'none')})" for name in made if made[name] != here.get(name)]
    return f"; it was made with {', '.join(other)}" if other else ""


def _difference(stored: bytes, pixels: Pixels, tolerance_codes: int) -> str:
    if tolerance_codes == 0 and encode_png(pixels) == stored:
        return ""
    before = decode_png(stored)
    if before.shape != pixels.shape:
        return f"has shape {before.shape}, replay gives {pixels.shape}"
    gap = np.abs(before.astype(np.int16) - pixels)
    worst = int(gap.max())
    if worst > tolerance_codes:
        return f"differs from its replay by up to {worst} codes, in {np.mean(gap > tolerance_codes):.2%} of values"
    return "has other bytes than its replay, for equal pixels: another PNG encoder" if not tolerance_codes else ""
