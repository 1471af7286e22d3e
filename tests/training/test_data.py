"""The loader over real shards: one order for all workers and ranks, exact resume, damage told, S3."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pairforge.image import Pixels, decode_png, encode_png, to_float
from pairforge.records import DamagedError
from pairforge.shards import ShardName, ShardWriter, read_shard
from pairforge.snapshot import open_snapshot, publish, write_snapshot
from pairforge.storage import Storage, open_storage
from pipelines.synthesis import replay_sample
from training.augment import PairSettings
from training.data import Damaged, Pair, PairDataset, PairLoader, RenderLq, collate
from training.pool import Pool, Ticket
from training.sampling import DrawPlan
from training.settings import PairSource

CROPS = PairSettings(crop_px=48, turns="d4")
WHOLE = PairSettings(crop_px=None, turns="none", pixels="uint8")


def pool_of(*urls: str, splits: tuple[str, ...] = ("train",), **options: Any) -> Pool:
    return Pool([PairSource(url=url, splits=splits) for url in urls], None, **options)


def loader_of(pool: Pool, dataset: PairDataset | None = None, batch: int = 4, **options: Any) -> PairLoader:
    shares = pool.shares()
    plan = DrawPlan(9, 20, pool.strata, lambda epoch: shares)
    return PairLoader(pool, plan, dataset or PairDataset(pool.storages, CROPS), batch, **options)


def digests(batch: Mapping[str, Any]) -> list[str]:
    """One hash a pair, of all that a batch says of it."""
    return [
        hashlib.sha256(batch["lq"][n].numpy().tobytes() + batch["hq"][n].numpy().tobytes() + key.encode()).hexdigest()
        for n, key in enumerate(batch["key"])
    ]


def rewritten(url: str, target: Path, change: Callable[[str, dict[str, bytes]], dict[str, bytes]]) -> str:
    """A dataset with the same records, whose files were changed, published."""
    snapshot = open_snapshot(url)
    storage = open_storage(str(target))
    rows = {row["key"]: row for row in snapshot.rows().to_pylist()}
    markers = []
    for shard in snapshot.shards():
        name = ShardName(shard.line, shard.category, shard.part, hashlib.sha256(shard.tar_name.encode()).hexdigest())
        if shard.tar_name:
            with ShardWriter(storage, name, shard.split) as writer:
                for key, files in read_shard(snapshot.storage, shard.tar_name):
                    writer.add(rows[key], change(key, files))
                markers.append(writer.commit({}))
    publish(storage, write_snapshot(storage, "changed", markers, {}, [], [], {}))
    return str(target)


def damage(url: str, key: str, field: str) -> str:
    """Zeros over the middle of a stored file; the URL of its shard."""
    snapshot = open_snapshot(url)
    ticket = next(ticket for ticket in pool_of(url).tickets() if ticket.key == key)
    span = next(span for span in ticket.spans if span.field == field)
    path = snapshot.storage.local_path(ticket.tar)
    assert path is not None
    with path.open("r+b") as file:
        file.seek(span.offset + 8)
        file.write(bytes(span.size - 8))
    return snapshot.storage.url(ticket.tar)


class SeedsOnly(PairDataset):
    """The seed of a draw, which no other draw has, in place of its key; no pixels."""

    def __getitems__(self, tickets: Any) -> list[Pair | Damaged]:
        nothing = np.zeros((1, 1, 3), np.uint8)
        return [Pair(nothing, nothing, ticket.seed, ticket.category, None) for ticket in tickets]


def seeds_only(pool: Pool) -> PairDataset:
    return SeedsOnly(pool.storages, WHOLE)


# Order


@pytest.mark.parametrize(("workers", "start_method"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_change_nothing(dataset: str, workers: int, start_method: Literal["fork", "spawn"]) -> None:
    pool = pool_of(dataset)
    loader = loader_of(pool, workers=workers, start_method=start_method)
    alone = loader_of(pool)
    for number, (batch, wanted) in enumerate(islice(zip(loader, alone, strict=False), 8), 1):
        assert batch["key"] == wanted["key"] and batch["category"] == wanted["category"]
        assert torch.equal(batch["lq"], wanted["lq"]) and torch.equal(batch["hq"], wanted["hq"])
        assert batch["lq"].shape == (4, 3, 48, 48) and batch["lq"].dtype == torch.float32
        assert loader.position == alone.position == 4 * number, "what was made ahead does not count"
        assert loader.state_dict() == alone.state_dict()


def test_two_ranks_see_the_batches_of_one(dataset: str) -> None:
    pool = pool_of(dataset)
    alone = loader_of(pool)
    ranks = [loader_of(pool, rank=rank, ranks=2) for rank in (0, 1)]
    for whole, *parts in islice(zip(alone, *ranks, strict=False), 12):
        assert [len(part["key"]) for part in parts] == [2, 2]
        for rank, part in enumerate(parts):
            assert digests(part) == digests(whole)[rank::2]
    assert alone.state_dict() == ranks[0].state_dict() == ranks[1].state_dict()


@pytest.fixture(scope="module")
def shared_pool(dataset: str) -> Pool:
    return pool_of(dataset)


@settings(max_examples=40, deadline=None)
@given(legs=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.integers(1, 3), st.integers(0, 9)), max_size=6))
def test_resume_neither_repeats_nor_misses_a_draw(shared_pool: Pool, legs: list[tuple[int, int, int]]) -> None:
    """Each leg has its own number of ranks and batch, takes some batches, and ends."""
    state: dict[str, Any] | None = None
    found: list[str] = []
    for ranks, per_rank, batches in [*legs, (1, 5, 2)]:
        loaders = [
            loader_of(shared_pool, seeds_only(shared_pool), ranks * per_rank, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(json.loads(json.dumps(state)))
        for parts in islice(zip(*loaders, strict=False), batches):
            found += [part["key"][place] for place in range(per_rank) for part in parts]
        assert len({json.dumps(loader.state_dict()) for loader in loaders}) == 1
        state = loaders[0].state_dict()
    plan = DrawPlan(9, 20, shared_pool.strata, lambda epoch: shared_pool.shares())
    assert found == [draw.seed for draw in plan.draws(0, len(found))]
    assert state is not None and state["position"] == len(found)


def test_resume_gives_the_same_pixels(dataset: str) -> None:
    pool = pool_of(dataset)
    wanted = [digests(batch) for batch in islice(loader_of(pool), 12)]
    before = loader_of(pool, workers=1, start_method="fork")
    assert [digests(batch) for batch in islice(before, 5)] == wanted[:5]
    after = loader_of(pool)
    after.load_state_dict(before.state_dict())
    assert after.epoch == 1
    assert [digests(batch) for batch in islice(after, 7)] == wanted[5:]


def test_a_state_of_other_data_or_another_order_is_refused(dataset: str, tmp_path: Path) -> None:
    pool = pool_of(dataset)
    state = loader_of(pool).state_dict()
    other = rewritten(dataset, tmp_path / "other", lambda key, files: files)
    with pytest.raises(ValueError, match=rf"state is of snapshots .*{dataset}.*name those"):
        loader_of(pool_of(other)).load_state_dict(state)
    plan = DrawPlan(10, 20, pool.strata, lambda epoch: pool.shares())
    with pytest.raises(ValueError, match="another order"):
        PairLoader(pool, plan, seeds_only(pool), 4).load_state_dict(state)
    for batch, ranks in ((3, 2), (1, 2)):
        with pytest.raises(ValueError, match="must divide by its ranks"):
            loader_of(pool, batch=batch, ranks=ranks)


def test_torch_draws_are_left_alone(dataset: str) -> None:
    """Else losses after a resume would differ where a network draws."""
    before = torch.get_rng_state()
    next(iter(loader_of(pool_of(dataset))))
    assert torch.equal(torch.get_rng_state(), before)


# Mixing


def counted(pool: Pool, shares: list[float], draws: int) -> Counter[tuple[int, str]]:
    plan = DrawPlan(1, draws, pool.strata, lambda epoch: shares)
    tickets = [pool.ticket(draw.stratum, draw.sample) for draw in plan.draws(0, draws)]
    return Counter((ticket.source, ticket.category) for ticket in tickets)


def test_sources_and_categories_share_the_draws(dataset: str, tmp_path: Path) -> None:
    other = rewritten(dataset, tmp_path / "other", lambda key, files: files)
    first = PairSource(url=dataset)
    pool = Pool([first, PairSource(url=other, categories=("compression",), weight=3.0)], None)
    sizes = {stratum.name: stratum.size for stratum in pool.strata}
    kept = Counter(row["category"] for row in open_snapshot(dataset).rows().to_pylist() if row["split"] == "train")
    assert sizes == {"0/compression": 18, "0/reflection": 9, "1/compression": 18} and kept["compression"] == 18
    even = {(0, "compression"): 100, (0, "reflection"): 100, (1, "compression"): 600}
    assert counted(pool, pool.shares(), 800) == even
    by_sample = {(0, "compression"): 400, (0, "reflection"): 200, (1, "compression"): 600}
    assert counted(pool, pool.shares("sample", [1, 1]), 1200) == by_sample
    weighted = {(0, "reflection"): 200, (0, "compression"): 600, (1, "compression"): 800}
    assert counted(pool, pool.shares({"compression": 3, "reflection": 1}, [1, 1]), 1600) == weighted
    assert counted(pool, pool.shares({"compression": 0, "reflection": 1}, [1, 0]), 100) == {(0, "reflection"): 100}
    for balance, weights in (
        ({"compression": 1}, None),
        ({"compression": 0, "reflection": 1}, [1, 1]),
        ("category", [1]),
    ):
        with pytest.raises(ValueError, match="weights"):
            pool.shares(balance, weights)  # type: ignore[arg-type]


def test_every_sample_once_for_validation(dataset: str) -> None:
    pool = pool_of(dataset, splits=("val",))
    rows = {row["key"]: row for row in open_snapshot(dataset).rows().to_pylist() if row["split"] == "val"}
    data = PairDataset(pool.storages, WHOLE)
    pairs = [data[ticket] for ticket in pool.tickets()]
    assert sorted(pair.key for pair in pairs if isinstance(pair, Pair)) == sorted(rows)
    for pair in pairs:
        assert isinstance(pair, Pair) and pair.lq.shape == (128, 128, 3)
        assert hashlib.sha256(encode_png(pair.lq)).hexdigest() == rows[pair.key]["lq_sha256"]
        assert hashlib.sha256(encode_png(pair.hq)).hexdigest() == rows[pair.key]["hq_sha256"]
        assert pair.category == rows[pair.key]["category"]
    assert Counter(ticket.category for ticket in pool.tickets(2)) == {"compression": 2, "reflection": 2}


# Snapshots


def test_excluded_keys_never_appear_and_a_pinned_snapshot_stays(dataset: str, tmp_path: Path) -> None:
    url = str(tmp_path / "copy")
    shutil.copytree(dataset, url)
    before = open_snapshot(url)
    keys = sorted(ticket.key for ticket in pool_of(url).tickets())
    pinned = pool_of(url).snapshots[0]
    out = keys[::5]
    made = write_snapshot(before.storage, "reviewed", before.manifest.shards, {}, [], out, {})
    assert publish(before.storage, made)
    assert pinned.id == before.manifest.id != made.id and pinned.content == before.manifest.content
    assert sorted(ticket.key for ticket in pool_of(url).tickets()) == sorted(set(keys) - set(out))
    assert sorted(ticket.key for ticket in pool_of(pinned.url).tickets()) == keys
    loader = loader_of(pool_of(url), SeedsOnly(pool_of(url).storages, WHOLE))
    drawn = [loader._pool.ticket(draw.stratum, draw.sample).key for draw in loader._plan.draws(0, 500)]
    assert set(drawn) == set(keys) - set(out)
    state = loader_of(pool_of(pinned.url)).state_dict()
    with pytest.raises(ValueError, match="name those"):
        loader_of(pool_of(url)).load_state_dict(state)
    loader_of(pool_of(pinned.url)).load_state_dict(state)


def test_sources_without_samples_are_refused(dataset: str) -> None:
    with pytest.raises(ValueError, match="no split test"):
        pool_of(dataset, splits=("test",))
    with pytest.raises(ValueError, match="no category haze"):
        Pool([PairSource(url=dataset, categories=("haze",))], None)
    with pytest.raises(ValueError, match=r"shards/.*\.tar: [a-z0-9_-]+ has no txt"):
        pool_of(dataset, text=True)


# Pixels


def test_types_sides_and_text(dataset: str, tmp_path: Path) -> None:
    url = rewritten(dataset, tmp_path / "text", lambda key, files: {**files, "txt": f"Über {key}".encode()})
    pool = pool_of(url, text=True)
    made = {
        (pixels, reverse): next(
            iter(
                loader_of(
                    pool,
                    PairDataset(pool.storages, PairSettings(crop_px=48, turns="d4", pixels=pixels, reverse=reverse)),
                )
            )
        )
        for pixels in ("uint8", "float32")
        for reverse in (False, True)
    }
    codes, floats = made["uint8", False], made["float32", False]
    assert codes["text"] == [f"Über {key}" for key in codes["key"]] and codes["damaged"] == []
    for side, other in (("lq", "hq"), ("hq", "lq")):
        assert codes[side].dtype == torch.uint8 and codes[side].is_contiguous()
        wanted = np.stack([to_float(np.ascontiguousarray(each)) for each in codes[side].numpy().transpose(0, 2, 3, 1)])
        assert np.array_equal(floats[side].numpy(), wanted.transpose(0, 3, 1, 2))
        assert torch.equal(made["uint8", True][other], codes[side])
    assert not torch.equal(codes["lq"], codes["hq"])
    assert "text" not in next(iter(loader_of(pool_of(url))))


def test_whole_pictures_of_several_sizes_make_no_batch(dataset: str, tmp_path: Path) -> None:
    def cut(key: str, files: dict[str, bytes]) -> dict[str, bytes]:
        height = 80 + sum(key.encode()) % 40
        return {**files, **{f: encode_png(decode_png(files[f])[:height]) for f in ("lq.png", "hq.png")}}

    pool = pool_of(rewritten(dataset, tmp_path / "sizes", cut))
    with pytest.raises(ValueError, match=r"differ in size.*set crop_px, or batch 1"):
        next(iter(loader_of(pool, PairDataset(pool.storages, WHOLE))))
    assert next(iter(loader_of(pool, PairDataset(pool.storages, WHOLE), batch=1)))["lq"].shape[0] == 1
    too_large = PairDataset(pool.storages, PairSettings(crop_px=128, turns="none"))
    with pytest.raises(ValueError, match=r"\.tar: [a-z0-9_-]+: HQ .* is smaller than crop_px 128"):
        next(iter(loader_of(pool, too_large)))


def render_again(storage: Storage, files: Mapping[str, bytes]) -> Pixels:
    return replay_sample(storage, files)[0]


def test_lq_rendered_from_hq_only_shards_is_the_stored_one(dataset: str, tmp_path: Path) -> None:
    url = str(tmp_path / "hq")
    shutil.copytree(dataset, url, ignore=lambda folder, names: [n for n in names if n in ("shards", "snapshots")])
    rewritten(dataset, tmp_path / "hq", lambda key, files: {f: d for f, d in files.items() if f != "lq.png"})
    with pytest.raises(ValueError, match=r"\.tar: [a-z0-9_-]+ has no lq\.png"):
        pool_of(url)
    stored, bare = pool_of(dataset), pool_of(url, render=True)

    def data_of(pool: Pool, render: RenderLq | None) -> PairDataset:
        return PairDataset(pool.storages, CROPS, render)

    wanted = loader_of(stored, data_of(stored, None))
    rendered = loader_of(bare, data_of(bare, render_again), workers=1, start_method="fork")
    for one, other in islice(zip(wanted, rendered, strict=False), 6):
        assert digests(one) == digests(other)
    with pytest.raises(DamagedError, match=r"\.tar: .*nothing that renders it"):
        next(iter(loader_of(bare)))


# Damage


def test_damaged_samples_are_named_or_skipped(dataset: str, tmp_path: Path) -> None:
    url = str(tmp_path / "copy")
    shutil.copytree(dataset, url)
    tickets = pool_of(url).tickets()
    bad = [tickets[0].key, tickets[7].key]
    shards = [damage(url, bad[0], "lq.png"), damage(url, bad[1], "hq.png")]
    pool = pool_of(url)
    strict = PairDataset(pool.storages, CROPS)
    for ticket in pool.tickets():
        if ticket.key in bad:
            place = bad.index(ticket.key)
            with pytest.raises(DamagedError) as caught:
                strict[ticket]
            assert str(caught.value).startswith(f"{shards[place]}: {ticket.key}: {('lq', 'hq')[place]}.png: not")
        else:
            assert isinstance(strict[ticket], Pair)
    with pytest.raises(DamagedError, match=f"^({shards[0]}: {bad[0]}|{shards[1]}: {bad[1]}): .q.png: not an 8-bit"):
        list(islice(loader_of(pool, workers=1, start_method="fork"), 20))

    skipping = PairDataset(pool.storages, CROPS.model_copy(update={"skip_damaged": True}))
    loaders = loader_of(pool, skipping), loader_of(pool, skipping, workers=2, start_method="fork")
    skipped = Counter[str]()
    for one, other in islice(zip(*loaders, strict=False), 20):
        assert digests(one) == digests(other) and one["damaged"] == other["damaged"]
        assert len(one["key"]) == 4 and not set(one["key"]) & set(bad)
        skipped.update(message.split(": ")[1] for message in one["damaged"])
    assert set(skipped) == set(bad)
    only = [ticket for ticket in pool.tickets() if ticket.key in bad]
    assert set(collate(skipping.__getitems__(only), skipping.settings)) == {"damaged"}


def test_hashes_are_checked_where_wanted(dataset: str, tmp_path: Path) -> None:
    """Another picture in place of the stored one decodes well."""

    def swap(key: str, files: dict[str, bytes]) -> dict[str, bytes]:
        return {**files, "hq.png": encode_png(decode_png(files["hq.png"])[::-1])}

    url = rewritten(dataset, tmp_path / "swapped", swap)
    unchecked, checked = pool_of(url), pool_of(url, verify=True)
    ticket = checked.tickets()[0]
    data = PairDataset(checked.storages, CROPS)
    assert isinstance(data[unchecked.tickets()[0]], Pair)
    with pytest.raises(DamagedError, match=rf"{ticket.tar}: {ticket.key}: hq\.png does not have the SHA-256"):
        data[ticket]
    good = pool_of(dataset, verify=True)
    assert isinstance(PairDataset(good.storages, CROPS)[good.tickets()[0]], Pair)


def test_a_missing_or_short_tar_is_told(dataset: str, tmp_path: Path) -> None:
    url = str(tmp_path / "copy")
    shutil.copytree(dataset, url)
    pool = pool_of(url)
    ticket: Ticket = pool.tickets()[0]
    path = pool.storages[0].local_path(ticket.tar)
    assert path is not None
    path.write_bytes(path.read_bytes()[: ticket.spans[0].offset + 100])
    with pytest.raises(DamagedError, match=rf"{ticket.tar}: {ticket.key}: .*the tar ends within lq\.png"):
        PairDataset(pool.storages, CROPS)[ticket]
    path.unlink()
    with pytest.raises(DamagedError, match=rf"{ticket.tar}: {ticket.key}: .*No such file"):
        PairDataset(pool.storages, CROPS)[ticket]


# S3


def test_a_bucket_gives_the_same_batches(dataset: str, s3_url: str, tmp_path: Path) -> None:
    local, bucket = open_storage(dataset), open_storage(s3_url)
    for entry in local.list():
        bucket.write(entry.name, local.read(entry.name))
    cache = str(tmp_path / "cache")
    pool = Pool([PairSource(url=s3_url)], cache)
    assert pool.tickets() == pool_of(dataset).tickets() == Pool([PairSource(url=s3_url)], cache).tickets()
    wanted = [digests(batch) for batch in islice(loader_of(pool_of(dataset)), 6)]
    for workers in (0, 1):
        assert [digests(batch) for batch in islice(loader_of(pool, workers=workers), 6)] == wanted
    bad = pool.tickets()[3]
    bucket.write(bad.tar, bytes(bucket.size(bad.tar)))
    with pytest.raises(DamagedError, match=rf"{s3_url}/{bad.tar}: {bad.key}: lq\.png: not"):
        PairDataset(pool.storages, CROPS)[bad]
