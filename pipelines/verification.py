"""Rendering stored samples again, in fresh processes, and comparing them with what the shards hold."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from pairforge.image import Pixels, decode_png, encode_png
from pairforge.shards import read_shard, sample_json
from pairforge.snapshot import Snapshot
from pairforge.storage import open_storage
from pipelines.plan import LINE
from pipelines.synthesis import replay_sample


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

    With a tolerance of 0 the PNG bytes must be equal; else no pixel may differ by more codes.
    """
    work = list(_choose(snapshot, count))
    replayed = 0
    problems: list[str] = []
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=fresh) as pool:
        jobs = [pool.submit(_replay_shard, snapshot.storage.root, *job, tolerance_codes) for job in work]
        for job in as_completed(jobs):
            done, faults = job.result()
            replayed += done
            problems += faults
            seen(done)
    skipped = sum(shard.kept for shard in snapshot.manifest.shards if shard.line != LINE)
    return ReplayReport(replayed, skipped, tuple(sorted(problems)))


def _choose(snapshot: Snapshot, count: int | None) -> Iterator[tuple[str, frozenset[int]]]:
    shards = [shard for shard in snapshot.manifest.shards if shard.tar_name and shard.line == LINE]
    total = sum(shard.kept for shard in shards)
    wanted = range(total) if count is None or count >= total else {int(i * total / count) for i in range(count)}
    first = 0
    for shard in shards:
        places = frozenset(place for place in range(shard.kept) if first + place in wanted)
        first += shard.kept
        if places:
            yield shard.tar_name, places


def _replay_shard(root: str, tar_name: str, places: frozenset[int], tolerance_codes: int) -> tuple[int, list[str]]:
    storage = open_storage(root)
    done, problems = 0, []
    for place, (key, files) in enumerate(read_shard(storage, tar_name)):
        if place not in places:
            continue
        done += 1
        assert sample_json(files)["key"] == key
        try:
            sides = replay_sample(storage, files)
        except ValueError as error:
            problems.append(f"{key}: {error}")
            continue
        for name, pixels in zip(("lq.png", "hq.png"), sides, strict=True):
            fault = _difference(files[name], pixels, tolerance_codes)
            problems += [f"{key}: {name} {fault}"] if fault else []
    return done, problems


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
