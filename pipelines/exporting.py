"""`pairforge export`: pairs of a snapshot as two folders with equal file names, the layout of BasicSR."""

from collections.abc import Sequence
from pathlib import Path

from pairforge.shards import read_shard
from pairforge.snapshot import Snapshot


def export_pairs(
    snapshot: Snapshot, folder: Path, categories: Sequence[str] | None, splits: Sequence[str] | None
) -> int:
    """Write `lq/KEY.png` and `hq/KEY.png` below `folder`, the bytes of the shards; the number of pairs.

    Excluded keys are left out. Raises ValueError when `folder` holds pairs already, since two sets would mix.
    """
    sides = {side: folder / side for side in ("lq", "hq")}
    for path in sides.values():
        if path.is_dir() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty; choose another folder")
        path.mkdir(parents=True, exist_ok=True)
    count = 0
    for shard in snapshot.shards(categories, splits):
        for key, files in read_shard(snapshot.storage, shard.tar_name) if shard.tar_name else ():
            if key not in snapshot.excluded:
                for side, path in sides.items():
                    (path / f"{key}.png").write_bytes(files[f"{side}.png"])
                count += 1
    return count
