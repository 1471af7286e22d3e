"""What may be drawn: the samples of pinned snapshots by source and category, and where their bytes lie."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pairforge.snapshot import open_snapshot
from pairforge.storage import Storage, open_storage
from training.index import ShardIndex, index_shards
from training.sampling import Stratum
from training.settings import PairSource

HQ, LQ, BASE, JSON, TEXT = "hq.png", "lq.png", "base.png", "json", "txt"


class Span(NamedTuple):
    """Bytes of one field of a sample in its tar."""

    field: str
    offset: int
    size: int


class Ticket(NamedTuple):
    """All that a worker needs to make one pair; `seed` is empty where nothing is drawn."""

    source: int
    tar: str
    key: str
    category: str
    spans: tuple[Span, ...]
    seed: str


class SnapshotRef(NamedTuple):
    """A snapshot that was read: `url` is pinned, so it opens the same one for ever; `content` is its fingerprint."""

    url: str
    id: str
    content: str


@dataclass(frozen=True)
class _Members:
    """Samples of one category of one source: number of the shard, and row in it."""

    source: int
    category: str
    shards: NDArray[np.int32]
    rows: NDArray[np.int32]


class Pool:
    """Samples of several sources. Opened once by a training process; workers only get tickets."""

    def __init__(
        self,
        sources: Sequence[PairSource],
        cache: str | None,
        text: bool = False,
        verify: bool = False,
        render: bool = False,
    ) -> None:
        """Open snapshots and index their tars; `cache` is a folder or URL that keeps indexes.

        Tickets name the text of a sample too, and the JSON by which its pictures are verified, where wanted. With
        `render`, samples without LQ are allowed and tickets name what it is rendered from. Raises ValueError where
        a source has nothing to draw, or a sample lacks a field.
        """
        self.snapshots: tuple[SnapshotRef, ...] = ()
        self.storages: tuple[Storage, ...] = ()
        self._weights = tuple(source.weight for source in sources)
        self._fields = (LQ, HQ, *([TEXT] if text else []), *([JSON] if verify else []))
        self._rendered = (JSON, HQ, BASE, *([TEXT] if text else []))
        self._indexes: list[list[ShardIndex]] = []
        self._tars: list[list[str]] = []
        self._members: list[_Members] = []
        required = [field for field in self._fields if field != LQ or not render]
        for number, source in enumerate(sources):
            self._open(number, source, open_storage(cache) if cache else None, required)

    def _open(self, number: int, source: PairSource, cache: Storage | None, required: Sequence[str]) -> None:
        snapshot = open_snapshot(source.url)
        shards = [shard for shard in snapshot.shards(source.categories, source.splits) if shard.tar_name]
        indexes = index_shards(snapshot.storage, shards, cache)
        manifest = snapshot.manifest
        url = snapshot.storage.url(f"snapshots/{manifest.id}")
        self.snapshots += (SnapshotRef(url, manifest.id, manifest.content),)
        self.storages += (snapshot.storage,)
        self._indexes.append(indexes)
        self._tars.append([shard.tar_name for shard in shards])
        excluded = np.array(sorted(snapshot.excluded), np.bytes_)
        kept = [np.flatnonzero(~np.isin(index.keys, excluded)).astype(np.int32) for index in indexes]
        for category in sorted({shard.category for shard in shards}):
            places = [place for place, shard in enumerate(shards) if shard.category == category and len(kept[place])]
            if places:
                held = np.repeat(np.array(places, np.int32), [len(kept[place]) for place in places])
                self._members.append(_Members(number, category, held, np.concatenate([kept[p] for p in places])))
        if not any(members.source == number for members in self._members):
            raise ValueError(f"{url} has no samples of categories {source.categories}, splits {source.splits}")
        for place, index in enumerate(indexes):
            for field in required:
                lacking = kept[place][~index.has(field)[kept[place]]]
                if len(lacking):
                    key = index.keys[lacking[0]].decode()
                    raise ValueError(f"{snapshot.storage.url(shards[place].tar_name)}: {key} has no {field}")

    @property
    def strata(self) -> tuple[Stratum, ...]:
        """What is drawn from: a stratum for every category of every source."""
        return tuple(Stratum(f"{each.source}/{each.category}", len(each.rows)) for each in self._members)

    def shares(
        self,
        balance: Literal["category", "sample"] | Mapping[str, float] = "category",
        weights: Sequence[float] | None = None,
    ) -> list[float]:
        """Share of the draws of each stratum. Sources share by `weights`, by those of their settings where absent;
        within one, categories share evenly, by their samples, or by weights by category, which may be 0.

        Raises ValueError where weights do not name all categories and no other, or leave a source nothing to draw.
        """
        weights = self._weights if weights is None else weights
        wanted = [self._wanted(members, balance) for members in self._members]
        if isinstance(balance, Mapping) and set(balance) != (held := {each.category for each in self._members}):
            raise ValueError(f"weights of categories {sorted(balance)}; the sources have {sorted(held)}")
        total = Counter[int]()
        for members, weight in zip(self._members, wanted, strict=True):
            total[members.source] += weight  # type: ignore[assignment]
        empty = [number for number, weight in enumerate(weights) if weight > 0 and not total[number] > 0]
        if empty or len(weights) != len(self.storages) or min(weights) < 0:
            raise ValueError(f"weights {list(weights)} of {len(self.storages)} sources; nothing to draw in {empty}")
        return [
            weights[members.source] * weight / (total[members.source] or 1)
            for members, weight in zip(self._members, wanted, strict=True)
        ]

    @staticmethod
    def _wanted(members: _Members, balance: Literal["category", "sample"] | Mapping[str, float]) -> float:
        if isinstance(balance, Mapping):
            return balance.get(members.category, 0.0)
        return 1.0 if balance == "category" else float(len(members.rows))

    def ticket(self, stratum: int, index: int, seed: str = "") -> Ticket:
        """Where one sample of a stratum lies."""
        members = self._members[stratum]
        shard, row = int(members.shards[index]), int(members.rows[index])
        held = self._indexes[members.source][shard]
        present = [field for field in held.fields if held.offsets[row, held.fields.index(field)] >= 0]
        wanted = self._fields if LQ in present else self._rendered
        spans = tuple(Span(field, *held.span(row, field)) for field in present if field in wanted)
        tar = self._tars[members.source][shard]
        return Ticket(members.source, tar, held.keys[row].decode(), members.category, spans, seed)

    def tickets(self, most_per_category: int | None = None) -> list[Ticket]:
        """Every sample once, or the first of each category of each source, without seeds: for validation."""
        return [
            self.ticket(stratum, index)
            for stratum, members in enumerate(self._members)
            for index in range(len(members.rows))[:most_per_category]
        ]
