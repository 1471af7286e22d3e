"""Export and import are inverse: the same pixels come back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pairforge.snapshot import open_snapshot
from pipelines.engine import LocalBackend
from pipelines.exporting import export_pairs
from pipelines.importing import ImportSettings, import_pairs
from pipelines.plan import render_settings
from pipelines.run import run, stages_of
from pipelines.settings import RunConfig, SplitFractions


def test_exported_pairs_can_be_imported_again(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_config()
    run(config, lambda config, output: LocalBackend(stages_of(config), (render_settings(config), output)))
    snapshot = open_snapshot(config.output)
    count = export_pairs(snapshot, tmp_path / "pairs", ["reflection"], ["train"])
    rows = snapshot.rows(["key", "category", "split", "lq_sha256", "hq_sha256"]).to_pylist()
    wanted = [row for row in rows if (row["category"], row["split"]) == ("reflection", "train")]
    assert count == len(wanted) == 9
    assert sorted(p.stem for p in (tmp_path / "pairs/lq").iterdir()) == sorted(row["key"] for row in wanted)
    with pytest.raises(ValueError, match="is not empty"):
        export_pairs(snapshot, tmp_path / "pairs", ["reflection"], ["train"])

    settings = ImportSettings(
        name="again",
        category="reflection",
        lq=str(tmp_path / "pairs/lq"),
        hq=str(tmp_path / "pairs/hq"),
        licence="CC0-1.0",
        attribution="",
        splits=SplitFractions(val=0, test=0),
        records_per_shard=4,
    )
    import_pairs(settings, str(tmp_path / "imported"))
    again = open_snapshot(str(tmp_path / "imported")).rows(["lq_sha256", "hq_sha256"]).to_pylist()
    pairs = {(row["lq_sha256"], row["hq_sha256"]) for row in again}
    assert pairs == {(row["lq_sha256"], row["hq_sha256"]) for row in wanted}
