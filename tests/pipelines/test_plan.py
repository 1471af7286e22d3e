"""The plan: a pure function of catalog and config, of which old parts do not move."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from pairforge.image import save_picture
from pairforge.storage import open_storage
from pipelines.catalog import Catalog, CatalogRow, split_of
from pipelines.plan import Part, plan_parts
from pipelines.settings import RunConfig, SplitFractions


def source(
    number: int, split: str = "train", kind: str = "photo", fate: str = "usable", role: str = "any"
) -> CatalogRow:
    digest = f"{number:064x}"
    return CatalogRow(
        source_id=digest[-24:],
        sha256=digest,
        uri=f"p/{number}.png",
        locator="",
        stamp="1",
        kind=kind,
        size_bytes=10,
        format="PNG",
        width=500,
        height=400,
        frames=30 if kind == "video" else 0,
        window_frames=5 if kind == "video" else 0,
        licence="CC0-1.0",
        attribution="",
        group=f"p/{number}",
        split=split,
        role=role,
        fate=fate,
        reason="",
        detail="",
    )


@pytest.fixture
def catalog_of(tmp_path: Path) -> Iterator[Callable[..., Catalog]]:
    count = iter(range(1000))

    def make(*batches: Sequence[CatalogRow]) -> Catalog:
        catalog = Catalog(open_storage(str(tmp_path / f"c{next(count)}")))
        for batch in batches:
            catalog.append(list(batch))
        return catalog

    yield make


def by_name(parts: Sequence[Part]) -> dict[str, Part]:
    return {part.shard.stem: part for part in parts}


def test_every_record_is_planned_once(
    make_config: Callable[..., RunConfig], catalog_of: Callable[..., Catalog]
) -> None:
    rows = [source(i, "val" if i % 5 == 0 else "train") for i in range(23)]
    parts = list(plan_parts(make_config(), catalog_of(rows)))
    keys = Counter(record.key for part in parts for record in part.records)
    assert set(keys.values()) == {1} and len(keys) == 23 * 3
    for part in parts:
        assert {record.source.split for record in part.records} == {part.split}
        assert part.sealed == (len(part.records) == 5)
    assert len(by_name(parts)) == len(parts)


def test_planning_twice_gives_the_same_parts(
    make_config: Callable[..., RunConfig], catalog_of: Callable[..., Catalog]
) -> None:
    rows = [source(i) for i in range(17)]
    first, second = (list(plan_parts(make_config(), catalog_of(rows))) for _ in range(2))
    assert first == second


def test_a_growing_catalog_remakes_only_the_open_tail(
    make_config: Callable[..., RunConfig], catalog_of: Callable[..., Catalog]
) -> None:
    old = [source(i) for i in range(17)]
    before = by_name(list(plan_parts(make_config(), catalog_of(old))))
    after = by_name(list(plan_parts(make_config(), catalog_of(old, [source(i) for i in range(17, 40)]))))
    gone = set(before) - set(after)
    assert all(not before[name].sealed for name in gone)
    assert {name for name, part in before.items() if part.sealed} <= set(after)
    assert all(after[name] == before[name] for name in set(before) & set(after))


def test_batches_do_not_change_old_partners(
    make_config: Callable[..., RunConfig], catalog_of: Callable[..., Catalog]
) -> None:
    old, new = [source(i) for i in range(80)], [source(i) for i in range(80, 90)]

    def partners(catalog: Catalog) -> dict[str, str]:
        records = (r for part in plan_parts(make_config(), catalog) for r in part.records if r.recipe == "reflected")
        return {record.key: record.partner.source_id if record.partner else "" for record in records}

    before, after = partners(catalog_of(old)), partners(catalog_of(old, new))
    assert all(after[key] == partner for key, partner in before.items())
    assert all(after.values()) and len(after) == 90


@settings(max_examples=25, deadline=None)
@given(removed=st.sets(st.integers(0, 29), max_size=6))
def test_a_removal_touches_only_parts_that_used_the_source(
    removed: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests.conftest import config_of

    config = config_of("unused", "unused")
    rows = [source(i) for i in range(30)]
    gone = {row.source_id for row in rows if int(row.sha256, 16) in removed}
    plans = []
    for tombstones in ([], [row._replace(fate="removed") for row in rows if row.source_id in gone]):
        catalog = Catalog(open_storage(str(tmp_path_factory.mktemp("c"))))
        catalog.append(rows)
        if tombstones:
            catalog.append(tombstones)
        plans.append(list(plan_parts(config, catalog)))
    before, after = plans
    for part in after:
        for record in part.records:
            assert record.source.source_id not in gone
            assert record.partner is None or record.partner.source_id not in gone
    for part in before:
        users = {r.source.source_id for r in part.records} | {r.partner.source_id for r in part.records if r.partner}
        assert (part in after) == (not users & gone)


def test_partners_come_from_the_same_split_and_another_group(
    make_config: Callable[..., RunConfig], catalog_of: Callable[..., Catalog]
) -> None:
    rows = [source(i, "val" if i % 3 == 0 else "train") for i in range(30)]
    pairs = [
        (record.source, record.partner)
        for part in plan_parts(make_config(), catalog_of(rows))
        for record in part.records
        if record.recipe == "reflected"
    ]
    assert pairs and all(p is not None and p.split == s.split and p.group != s.group for s, p in pairs)


def test_a_lonely_source_has_no_partner(
    make_config: Callable[..., RunConfig], catalog_of: Callable[..., Catalog]
) -> None:
    parts = plan_parts(make_config(), catalog_of([source(1)]))
    assert [r.partner for part in parts for r in part.records if r.recipe == "reflected"] == [None]


def test_clips_serve_recipes_that_need_frames_and_no_other(
    make_config: Callable[..., RunConfig], catalog_of: Callable[..., Catalog]
) -> None:
    recipe = {
        "name": "clip",
        "version": 1,
        "category": "blur",
        "variants": 4,
        "chain": [{"type": "temporal_blur", "severity": [0.2, 0.9]}],
    }
    config = make_config(recipes=[*make_config().model_dump()["recipes"], recipe])
    parts = list(plan_parts(config, catalog_of([source(1), source(2, kind="video")])))
    used = {(r.recipe, r.source.kind) for part in parts for r in part.records}
    assert used == {("jpeg", "photo"), ("reflected", "photo"), ("clip", "video")}
    starts = [r.window_start for part in parts for r in part.records if r.recipe == "clip"]
    assert all(0 <= start <= 25 for start in starts) and len(set(starts)) > 1


def test_what_determines_pixels_changes_the_fingerprint(
    make_config: Callable[..., RunConfig], catalog_of: Callable[..., Catalog]
) -> None:
    rows = [source(i) for i in range(4)]
    base = make_config()

    def prints(config: RunConfig, these: Sequence[CatalogRow] = rows) -> set[str]:
        return {part.fingerprint for part in plan_parts(config, catalog_of(these))}

    plain = prints(base)
    recipes = base.model_dump()["recipes"]
    louder = [{**recipe, "version": 2} for recipe in recipes]
    for changed in (
        make_config(seed=8),
        make_config(base={"policy": "crop_only", "size_px": 128, "small": "refuse"}),
        make_config(recipes=louder),
        make_config(shards={"records_per_shard": 5, "layers": ["reflection"]}),
    ):
        assert not prints(changed) & plain
    assert not prints(base, [row._replace(licence="CC-BY-4.0") for row in rows]) & plain
    assert prints(make_config(run={"workers": 1, "engine": {"max_attempts": 7}})) == plain


@given(st.text(max_size=30))
def test_a_group_has_one_split(group: str) -> None:
    fractions = SplitFractions(val=0.3, test=0.2)
    assert split_of(group, fractions) == split_of(group, fractions)
    assert split_of(group, SplitFractions(val=0, test=0)) == "train"


def test_splits_have_their_shares() -> None:
    fractions = SplitFractions(val=0.1, test=0.2)
    counts = Counter(split_of(f"group {i}", fractions) for i in range(20_000))
    assert counts["val"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert counts["test"] / 20_000 == pytest.approx(0.2, abs=0.01)


def test_recipes_take_sources_and_second_images_by_role(
    make_config: Callable[..., RunConfig], catalog_of: Callable[..., Catalog]
) -> None:
    """Portraits behind glass in which scenes are reflected, and a smaller share the other way round."""
    step = [{"type": "reflection", "severity": 0.5}]
    common = {"version": 1, "category": "reflection", "chain": step}
    recipes = [
        {"name": "straight", "variants": 4, "role": "portrait", "second_role": "scene", **common},
        {"name": "swapped", "variants": 1, "role": "scene", "second_role": "portrait", **common},
    ]
    rows = [source(n, role="portrait" if n % 2 else "scene") for n in range(20)] + [source(50)]
    config = make_config(recipes=recipes)
    records = [record for part in plan_parts(config, catalog_of(rows)) for record in part.records]
    assert len(records) == 10 * 4 + 10 * 1, "a source of no role serves neither"
    for record in records:
        assert record.partner is not None
        roles = (record.source.role, record.partner.role)
        assert roles == (("portrait", "scene") if record.recipe == "straight" else ("scene", "portrait"))
    alone = [record for part in plan_parts(config, catalog_of(rows[::2])) for record in part.records]
    assert {record.partner for record in alone} == {None}, "without portraits there is none to reflect"


def test_faces_tell_portraits_from_scenes(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("astronaut", "coffee", "rocket", "chelsea"):
        save_picture(getattr(skimage.data, name)(), folder / f"{name}.png")
    said = {"licence": "CC0-1.0", "group": {"by": "file"}, "role": "by_faces"}
    config = make_config(sources=[{"kind": "files", "url": str(folder), **said}])
    catalog = Catalog(open_storage(config.output))
    catalog.scan(config)
    roles = {Path(row.uri).stem: row.role for rows in catalog.read_batches() for row in rows}
    assert roles == {"astronaut": "portrait", "coffee": "scene", "rocket": "scene", "chelsea": "scene"}


def test_a_column_tells_roles(make_config: Callable[..., RunConfig], photo_folder: Path, tmp_path: Path) -> None:
    photos = sorted(str(path) for path in photo_folder.rglob("*.png"))[:4]
    told = ["portrait", "scene", "any", "landscape"]
    pq.write_table(pa.table({"uri": photos, "what": told}), tmp_path / "t.parquet")
    said = {"licence": "CC0-1.0", "group": {"by": "file"}, "role": "by_column", "role_column": "what"}
    config = make_config(sources=[{"kind": "table", "url": str(tmp_path / "t.parquet"), "uri_column": "uri", **said}])
    catalog = Catalog(open_storage(config.output))
    catalog.scan(config)
    rows = {row.uri: row for rows in catalog.read_batches() for row in rows}
    assert [rows[photo].role for photo in photos[:3]] == told[:3]
    assert (rows[photos[3]].fate, rows[photos[3]].reason) == ("rejected", "unknown_role")
    with pytest.raises(ValueError, match="`role_column` goes with `role: by_column`"):
        make_config(sources=[{"kind": "files", "url": "x", **said, "role": "portrait"}])
