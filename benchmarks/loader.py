"""The loader against what its PNGs cost to decode, and against a folder of files, in one run.

    python benchmarks/loader.py
    python benchmarks/loader.py --pairs 400 --side 1024 --crop 512

Ways, all of two processes and of the same PNG bytes, in turns, so that all meet the same load of the machine: `raw`
reads files and decodes them, and does nothing else; the loader from shards, with crop and flip, as 8-bit codes and as
floats, and with D4 and colour; a folder dataset in the style of BasicSR (two folders, `cv2.imread`, crop, flip,
floats). Each gives pairs a second and CPU milliseconds a pair, of the workers and of the process that they feed. Only
shares of `raw`, medians over rounds, can be compared between machines; on one that others use, shares of CPU time are
the steadier ones.

The wait share is that of a training step that sleeps, as one on a GPU does, for as long as the slower of the two float
loaders takes for a batch at 70 % of its rate. Then the order alone: an epoch of a million draws. Ends with 1 where the
loader of 8-bit codes has less than 0.85 of the rate of `raw`.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent.parent))  # runs from a checkout
from sklearn.datasets import load_sample_image

from pairforge.config import canonical_json
from pairforge.image import Pixels, encode_png, use_one_thread
from pairforge.shards import ShardName, ShardWriter
from pairforge.snapshot import publish, write_snapshot
from pairforge.storage import open_storage
from training.augment import PairSettings, Photometric
from training.data import PairDataset, PairLoader
from training.pool import Pool
from training.sampling import DrawPlan, Stratum
from training.settings import PairSource

WORKERS = 2
BATCH = 8
LEAST_SHARE = 0.85
STEP_LOAD = 0.7
AHEAD = 2
"""Batches that a worker makes ahead, torch's default and the loader's."""
FOLDERS = "folders, floats"


def pairs_of(count: int, side_px: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Keys, LQ and HQ: crops of real photos, LQ through JPEG of quality 40."""
    photos = [load_sample_image("china.jpg"), load_sample_image("flower.jpg"), skimage.data.astronaut()]
    scale = max(1.0, 1.3 * side_px / min(min(photo.shape[:2]) for photo in photos))
    photos = [cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for photo in photos]
    for number in range(count):
        photo = photos[number % len(photos)]
        y, x = (7 * number) % (photo.shape[0] - side_px), (11 * number) % (photo.shape[1] - side_px)
        hq: Pixels = np.ascontiguousarray(photo[y : y + side_px, x : x + side_px])
        jpeg = cv2.imencode(".jpg", hq, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
        yield f"k{number:06d}", encode_png(np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)), encode_png(hq)


def write_pairs(folder: Path, count: int, side_px: int) -> None:
    """The same pairs as a dataset of shards below `shards` and as files in `lq` and `hq`."""
    storage = open_storage(str(folder / "dataset"))
    for side in ("lq", "hq"):
        (folder / side).mkdir()
    texts = ("recipe", "source_id", "uri", "group", "licence", "attribution")
    name = ShardName("synthesis", "mixed", "train-000000", "0" * 64)
    with ShardWriter(storage, name, "train") as writer:
        for key, lq, hq in pairs_of(count, side_px):
            row = {"key": key, "variant": 0, "fate": "kept", **dict.fromkeys(texts, "")}
            writer.add(row, {"json": canonical_json({"key": key}).encode(), "lq.png": lq, "hq.png": hq})
            (folder / "lq" / f"{key}.png").write_bytes(lq)
            (folder / "hq" / f"{key}.png").write_bytes(hq)
        marker = writer.commit({})
    publish(storage, write_snapshot(storage, "bench", [marker], {}, [], [], {}))


class FolderPairs(Dataset):  # type: ignore[misc]
    """Two folders of PNGs, as BasicSR's PairedImageDataset reads them."""

    def __init__(self, folder: Path, crop_px: int) -> None:
        self.lq = sorted(str(path) for path in (folder / "lq").iterdir())
        self.hq = sorted(str(path) for path in (folder / "hq").iterdir())
        self.crop_px = crop_px

    def __len__(self) -> int:
        return len(self.lq)

    def __getitem__(self, index: int) -> dict[str, Any]:
        lq, hq = (np.asarray(cv2.imread(paths[index]), np.float32) / np.float32(255) for paths in (self.lq, self.hq))
        y, x = (int(torch.randint(int(extent) - self.crop_px + 1, (1,))) for extent in lq.shape[:2])
        cut = (slice(y, y + self.crop_px), slice(x, x + self.crop_px))
        sides = [lq[cut], hq[cut]]
        if torch.rand(1) < 0.5:
            sides = [side[:, ::-1] for side in sides]
        made = [torch.from_numpy(cv2.cvtColor(side, cv2.COLOR_BGR2RGB).transpose(2, 0, 1)) for side in sides]
        return {"lq": made[0], "hq": made[1], "key": self.lq[index]}


def one_thread(worker: int = 0) -> None:
    use_one_thread()


def folder_batches(folder: Path, crop_px: int) -> Iterator[Any]:
    batches = DataLoader(
        FolderPairs(folder, crop_px),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        worker_init_fn=one_thread,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    while True:
        yield from batches


def shard_batches(folder: Path, settings: PairSettings) -> PairLoader:
    pool = Pool([PairSource(url=str(folder / "dataset"))], None)
    shares = pool.shares()
    plan = DrawPlan(1, 10_000, pool.strata, lambda epoch: shares)
    return PairLoader(pool, plan, PairDataset(pool.storages, settings), BATCH, workers=WORKERS)


def decode_files(paths: list[tuple[str, str]]) -> int:
    for pair in paths:
        for path in pair:
            assert cv2.imread(path, cv2.IMREAD_UNCHANGED) is not None
    return len(paths)


Take = Callable[[int], object]
"""Consumes so many batches."""


def raw_decoding(folder: Path, pool: Any) -> Take:
    names = sorted(path.name for path in (folder / "lq").iterdir())
    pairs = [(str(folder / "lq" / name), str(folder / "hq" / name)) for name in names]
    groups = [pairs[start : start + BATCH] for start in range(0, len(pairs) - BATCH + 1, BATCH)]
    return lambda count: pool.map(decode_files, list(islice(cycle(groups), count)), chunksize=1)


def taking(batches: Iterator[Any]) -> Take:
    return lambda count: [None for _ in islice(batches, count)]


def cpu_s() -> float:
    """CPU time of this process and of those that it started and that still run."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def wait_share(batches: Iterator[Any], step_s: float, steps: int) -> float:
    """Share of the time of steps that is spent on waiting for batches."""
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(step_s)
    return waited / (time.perf_counter() - started)


def measure(ways: dict[str, Take], rounds: int, count: int) -> dict[str, list[tuple[float, float]]]:
    """Pairs a second and CPU seconds a pair, by way and round. Where one runs, the others are at rest, what they make
    ahead being made; it is used up before a measurement."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for take in ways.values():
        take(1)  # start-up
    for _ in range(rounds):
        for name, take in ways.items():
            time.sleep(1)
            take(2 * AHEAD * WORKERS)
            spent, started = cpu_s(), time.perf_counter()
            take(count)
            seconds = time.perf_counter() - started
            found[name].append((BATCH * count / seconds, (cpu_s() - spent) / (BATCH * count)))
    return found


def told(found: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Print what was measured; medians of the shares of raw by way."""
    shares = {}
    print(f"{'':<22} {'pairs/s':>8} {'of raw':>7} {'lowest':>7} {'highest':>8} {'CPU ms':>8} {'raw over it':>12}")
    for way, rounds in found.items():
        each = [rate / raw for (rate, _), (raw, _) in zip(rounds, found["raw"], strict=True)]
        of_cpu = [raw / spent for (_, spent), (_, raw) in zip(rounds, found["raw"], strict=True)]
        shares[way] = statistics.median(each)
        rate, spent = (statistics.median(column) for column in zip(*rounds, strict=True))
        numbers = f"{rate:8.1f} {shares[way]:7.2f} {min(each):7.2f} {max(each):8.2f} {1000 * spent:8.1f}"
        print(f"{way:<22} {numbers} {statistics.median(of_cpu):12.2f}")
    return shares


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=240, help="stored, and read in a round")
    parser.add_argument("--side", type=int, default=512, help="of the stored pictures, in pixels")
    parser.add_argument("--crop", type=int, default=256, help="in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    use_one_thread()
    torch.set_num_threads(1)
    colour = Photometric(brightness=0.1, contrast=0.1, gamma=0.1, hue_deg=10, saturation=0.1)
    with tempfile.TemporaryDirectory(prefix="pairforge-bench-") as name:
        folder = Path(name)
        write_pairs(folder, arguments.pairs, arguments.side)
        codes = PairSettings(crop_px=arguments.crop, turns="flip", pixels="uint8")
        floats = codes.model_copy(update={"pixels": "float32"})
        rich = codes.model_copy(update={"turns": "d4", "photometric": colour})
        count = arguments.pairs // BATCH
        with multiprocessing.get_context("spawn").Pool(WORKERS, one_thread) as pool:
            batches: dict[str, Iterator[Any]] = {
                "shards, 8-bit": iter(shard_batches(folder, codes)),
                "shards, floats": iter(shard_batches(folder, floats)),
                "shards, D4 and colour": iter(shard_batches(folder, rich)),
                FOLDERS: folder_batches(folder, arguments.crop),
            }
            ways = {"raw": raw_decoding(folder, pool), **{way: taking(each) for way, each in batches.items()}}
            found = measure(ways, arguments.rounds, count)
            print(f"{arguments.pairs} pairs of {arguments.side} px, crops of {arguments.crop} px, {WORKERS} processes")
            shares = told(found)
            slower = min(statistics.median(rate for rate, _ in found[way]) for way in ("shards, floats", FOLDERS))
            step_s = BATCH / (STEP_LOAD * slower)
            print(f"\nwait share of steps of {1000 * step_s:.0f} ms that sleep")
            for way in ("shards, 8-bit", "shards, floats", FOLDERS):
                ways[way](2 * AHEAD * WORKERS)
                print(f"{way:<22} {wait_share(batches[way], step_s, count):.3f}", flush=True)
            ways.clear()
            for each in batches.values():
                each.close()  # type: ignore[attr-defined]
    plan = DrawPlan(1, 10**6, [Stratum(f"0/{place}", 100_000) for place in range(40)], lambda epoch: [1.0] * 40)
    started = time.process_time()
    plan.epoch(1)
    print(f"\norder of 1,000,000 draws from 40 categories: {time.process_time() - started:.2f} s of CPU")
    print(f"8-bit / raw: {shares['shards, 8-bit']:.3f}, wanted: {LEAST_SHARE}")
    return 0 if shares["shards, 8-bit"] >= LEAST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
