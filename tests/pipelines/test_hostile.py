"""A folder of hostile files, run end to end: every file is one row with its reason, the good ones are made."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pairforge.image import Pixels, encode_png
from pairforge.records import Fate
from pairforge.snapshot import open_snapshot, verify
from pairforge.storage import open_storage
from pipelines.catalog import USABLE, Catalog, CatalogRow
from pipelines.reading import local_path
from tests import hostile_files
from tests.conftest import config_of
from tests.hostile_files import LIMITS, Expected

MEMORY_BYTES = 2 * 2**30
"""Address space that the run may take: less than half of what the one sparse file says it holds."""
LIMITED = """
import resource, sys
from pipelines.cli import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""
GOOD = ("astronaut", "chelsea", "coffee", "rocket")


class Finished:
    """What one run over the hostile folder left behind."""

    def __init__(self, root: Path, photos: dict[str, Pixels]) -> None:
        self.folder = root / "hostile"
        self.folder.mkdir()
        self.expected: dict[str, Expected] = hostile_files.build(self.folder)
        # A name that starts with a dot is a matter of listing, which the table of contents does not know.
        self.expected["..many.dots..in.name..png"] = hostile_files.rejected("hidden", "listing")
        for name in GOOD:
            (self.folder / f"zz_{name}.png").write_bytes(encode_png(photos[name][:120, :150]))
            self.expected[f"zz_{name}.png"] = hostile_files.USABLE
        self.config = config_of(
            root / "out",
            f"{self.folder}/**/*",
            limits={name: getattr(LIMITS, name) for name in ("max_bytes", "max_pixels", "max_side", "min_side")},
            base={"policy": "resize_crop", "size_px": 48, "small": "refuse"},
            recipes=[config_of("x", "x").recipes[0].model_dump() | {"variants": 1}],
            shards={"records_per_shard": 16},
            run={"workers": 1, "max_failed_fraction": 1.0},
        )
        (root / "c.yaml").write_text(json.dumps(self.config.model_dump(mode="json")))
        self.done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(MEMORY_BYTES), "run", str(root / "c.yaml"), "--local", "--json"],
            capture_output=True,
            text=True,
            timeout=240,
        )

    def report(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.done.stdout)
        return loaded

    def rows(self) -> dict[str, CatalogRow]:
        """Catalog rows by the name that `build` gives."""
        rows = [row for rows in Catalog(open_storage(self.config.output)).read_batches() for row in rows]
        named = {os.path.relpath(local_path(row.uri), self.folder): row for row in rows}
        assert len(named) == len(rows), "two rows of one file"
        return named

    def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = open_snapshot(self.config.output).rows().to_pylist()
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, Pixels]) -> Finished:
    return Finished(tmp_path_factory.mktemp("hostile"), photos)


def test_the_run_ends_flawed_within_its_memory(finished: Finished) -> None:
    assert finished.done.returncode == 3, finished.done.stderr[-3000:]
    assert "Traceback" not in finished.done.stderr
    assert len(finished.expected) - len(GOOD) >= 40
    assert verify(open_snapshot(finished.config.output)).problems == ()


def test_every_file_is_one_row(finished: Finished) -> None:
    assert set(finished.rows()) == set(finished.expected)


def test_every_file_has_the_fate_and_reason_that_it_should(finished: Finished) -> None:
    """A refusal stands in the catalog if the file system or the header tells it, else in the record."""
    rows = finished.rows()
    records = {record["source_id"]: record for record in finished.records()}
    first: set[str] = set()
    for name, row in rows.items():
        expected = finished.expected[name]
        if expected.level != "pixels":
            assert (row.fate, row.reason) == (expected.fate, expected.reason), name
            assert row.detail and row.source_id not in records, name
            continue
        sha256 = hashlib.sha256(local_path(row.uri).read_bytes()).hexdigest()
        assert (row.sha256, row.source_id) == (sha256, sha256[:24])
        if sha256 in first:
            assert (row.fate, row.reason) == ("rejected", "duplicate"), name
            continue
        first.add(sha256)
        assert (row.fate, row.reason) == (USABLE, ""), name
        record = records.pop(row.source_id)
        assert record["uri"] == row.uri
        assert (record["fate"], record["reason"]) == (expected.fate or Fate.KEPT, expected.reason), name
        assert bool(record["detail"]) == (expected.fate is not None), name
    assert not records, "records of no file"


def test_the_good_ones_are_kept(finished: Finished) -> None:
    kept = {Path(record["uri"]).name for record in finished.records() if record["fate"] == "kept"}
    assert {f"zz_{name}.png" for name in GOOD} <= kept
    assert {"turned.jpg", "deep_colour.png", "press_cmyk.jpg", "plain.avif", "plain.jp2", "two_views.mpo"} <= kept


def test_the_report_names_every_reason(finished: Finished) -> None:
    report = finished.report()
    levels: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    duplicates = sum(row.reason == "duplicate" for row in finished.rows().values())
    for expected in finished.expected.values():
        if expected.reason is not None:
            in_catalog = expected.level != "pixels"
            levels[in_catalog][f"{expected.fate}:{expected.reason}" if in_catalog else expected.reason] += 1
    sources = report["sources"]
    assert {name: count for name, count in sources.items() if ":" in name} == {
        **levels[True],
        "rejected:duplicate": duplicates,
    }
    assert sources["seen"] == len(finished.expected) == sources["usable"] + levels[True].total() + duplicates
    assert report["reasons"] == dict(levels[False])
    assert report["fates"]["kept"] + levels[False].total() == sources["usable"]


def test_a_second_run_has_nothing_to_do(finished: Finished) -> None:
    """Also what was refused is not looked at again."""
    from pipelines.run import run

    def no_executor(*_: object) -> Any:
        raise AssertionError("there is nothing to make")

    before = finished.rows()
    report = run(finished.config, no_executor)
    assert (report.parts_made, report.published) == (0, False)
    assert finished.rows() == before
