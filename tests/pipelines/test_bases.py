"""Bases: cut and shrunk as the rule says, never enlarged, made once, and made from the bytes that the catalog saw."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pairforge.decode import decode_source
from pairforge.image import Pixels, decode_png, encode_png, pixels_to_linear
from pairforge.records import InfraError, SampleError
from pairforge.snapshot import open_snapshot, verify
from pairforge.storage import Storage, open_storage
from pipelines import bases
from pipelines.bases import load_base, load_frames, normalise
from pipelines.catalog import Catalog, CatalogRow
from pipelines.engine import Backend, LocalBackend
from pipelines.plan import plan_parts, render_settings
from pipelines.run import run, stages_of
from pipelines.settings import Normalisation, RunConfig
from pipelines.verification import replay_snapshot

from .clips import write_clip

MakeConfig = Callable[..., RunConfig]


def rule(policy: str, size_px: int = 128, small: str = "keep") -> Normalisation:
    return Normalisation.model_validate({"policy": policy, "size_px": size_px, "small": small})


def row_of(path: Path, width: int, height: int, **changes: Any) -> CatalogRow:
    """What a scan would say of a photo."""
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    row = CatalogRow(
        **dict.fromkeys(("locator", "stamp", "format", "attribution", "reason", "detail"), ""),
        source_id=sha256[:24],
        sha256=sha256,
        uri=str(path),
        kind="photo",
        size_bytes=len(data),
        width=width,
        height=height,
        frames=0,
        window_frames=0,
        licence="CC0-1.0",
        group="g",
        split="train",
        role="any",
        fate="usable",
    )
    return row._replace(**changes)


def clip_row(path: Path, **changes: Any) -> CatalogRow:
    """What a scan would say of a clip of nine frames."""
    return row_of(path, 160, 128, kind="video", frames=9, window_frames=3)._replace(**changes)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"))


@pytest.fixture
def photo_row(tmp_path: Path, photos: dict[str, Pixels]) -> CatalogRow:
    (tmp_path / "p.png").write_bytes(encode_png(photos["coffee"][:300, :420]))
    return row_of(tmp_path / "p.png", 420, 300)


# Geometry


@pytest.mark.parametrize(
    ("policy", "source", "base", "scale"),
    [
        ("resize_crop", (127, 400), (127, 128), 1),
        ("resize_crop", (128, 128), (128, 128), 1),
        ("resize_crop", (129, 400), (128, 128), 128 / 129),
        ("resize_crop", (512, 256), (128, 128), 0.5),
        ("resize_crop", (60, 50), (60, 50), 1),
        ("crop_only", (127, 400), (127, 128), 1),
        ("crop_only", (128, 128), (128, 128), 1),
        ("crop_only", (500, 700), (128, 128), 1),
        ("crop_only", (60, 50), (60, 50), 1),
        ("keep", (500, 701), (500, 701), 1),
        ("keep", (60, 50), (60, 50), 1),
    ],
)
def test_sizes_below_at_and_above(policy: str, source: tuple[int, int], base: tuple[int, int], scale: float) -> None:
    """Sizes are height, width."""
    pixels, found, crop = normalise(np.zeros((*source, 3), np.uint8), rule(policy))
    assert pixels.shape == (*base, 3) and found == scale
    assert crop[2:] == base[::-1]


@given(
    width=st.integers(16, 600),
    height=st.integers(16, 600),
    size=st.integers(16, 300),
    policy=st.sampled_from(["resize_crop", "crop_only", "keep"]),
)
@settings(max_examples=150, deadline=None)
def test_nothing_is_enlarged_or_squeezed(width: int, height: int, size: int, policy: str) -> None:
    ramp = np.stack(
        np.broadcast_arrays(np.arange(width) / width * 255, np.arange(height)[:, None] / height * 255, 99), -1
    )
    source = ramp.astype(np.uint8)
    pixels, scale, (x, y, crop_width, crop_height) = normalise(source, rule(policy, size))
    assert pixels.shape == (crop_height, crop_width, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert 0 < scale <= 1 and crop_width <= width and crop_height <= height
    scaled = round(width * scale), round(height * scale)
    assert abs(scaled[0] / width - scaled[1] / height) <= 1 / min(width, height), "aspect is kept but for rounding"
    assert x >= 0 and y >= 0 and x + crop_width <= scaled[0] and y + crop_height <= scaled[1], "the crop lies inside"
    assert abs(2 * x + crop_width - scaled[0]) <= 1 and abs(2 * y + crop_height - scaled[1]) <= 1, "in the middle"
    if policy == "keep":
        assert np.array_equal(pixels, source) and not np.shares_memory(pixels, source)
    else:
        assert crop_width == min(scaled[0], size) and crop_height == min(scaled[1], size)
    if policy == "crop_only":
        assert np.array_equal(pixels, source[y : y + crop_height, x : x + crop_width])
    if policy == "resize_crop" and min(width, height) >= size:
        assert (crop_width, crop_height) == (size, size)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket"])
@pytest.mark.parametrize("size", [64, 150, 333])
def test_shrinking_keeps_light(photos: dict[str, Pixels], name: str, size: int) -> None:
    """Mean linear light of what the base shows, against the same area of the source."""
    side = min(photos[name].shape[:2])
    square = photos[name][:side, :side]
    pixels, _, _ = normalise(square, rule("resize_crop", size))
    before, after = (pixels_to_linear(image).mean(axis=(0, 1)) for image in (square, pixels))
    assert after == pytest.approx(before, rel=0.005)


def test_light_and_not_code_values_are_averaged() -> None:
    """A fine checkerboard of black and white is half the light: code 188, where averaged codes would give 128."""
    board = np.zeros((256, 256, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    pixels, _, _ = normalise(board, rule("resize_crop", 128))
    assert np.abs(pixels.astype(int) - 188).max() <= 1


def test_shrinking_moves_nothing(photos: dict[str, Pixels]) -> None:
    pixels, _, _ = normalise(photos["astronaut"], rule("resize_crop", 256))
    small = cv2.resize(photos["astronaut"], (256, 256), interpolation=cv2.INTER_AREA)
    (x, y), _ = cv2.phaseCorrelate(*(image[..., 1].astype(np.float64) for image in (small, pixels)))
    assert abs(x) < 0.02 and abs(y) < 0.02


# Storing


def test_a_base_is_made_once(storage: Storage, photo_row: CatalogRow, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_base(storage, photo_row, rule("resize_crop"))
    assert storage.read(first.name) == first.png and first.ref.sha256 == hashlib.sha256(first.png).hexdigest()
    assert np.array_equal(decode_png(first.png), first.pixels)
    assert (first.ref.width, first.ref.height) == first.pixels.shape[1::-1] == (128, 128)
    assert first.ref.scale == 128 / 300 and first.ref.crop_px == ((179 - 128) // 2, 0, 128, 128)
    Path(photo_row.uri).unlink()
    monkeypatch.setattr(bases, "decode_source", None)
    second = load_base(storage, photo_row, rule("resize_crop"))
    assert (second.png, second.ref, second.name) == (first.png, first.ref, first.name)
    assert np.array_equal(second.pixels, first.pixels)


def test_each_rule_has_its_own_base_and_small_is_none_of_it(storage: Storage, photo_row: CatalogRow) -> None:
    rules = [rule("resize_crop"), rule("resize_crop", 64), rule("crop_only"), rule("keep")]
    names = {load_base(storage, photo_row, each).name for each in rules}
    assert len(names) == 4 and {entry.name for entry in storage.list("bases/")} == names
    assert load_base(storage, photo_row, rule("keep", small="refuse")).name in names
    assert all(photo_row.source_id in name for name in names)


def test_a_base_is_upright(storage: Storage, tmp_path: Path, photos: dict[str, Pixels]) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photos["coffee"][:100, :160]).save(tmp_path / "t.jpg", quality=95, exif=turned.tobytes())
    row = row_of(tmp_path / "t.jpg", 100, 160)
    base = load_base(storage, row, rule("keep"))
    wanted = np.rot90(photos["coffee"][:100, :160], -1)
    assert base.pixels.shape == wanted.shape and np.abs(base.pixels.astype(int) - wanted).mean() < 6


def test_changed_bytes_are_refused_unless_the_base_is_stored(
    storage: Storage, photo_row: CatalogRow, tmp_path: Path
) -> None:
    original = Path(photo_row.uri).read_bytes()
    for changed in (original + b"\0", original[:-1], original[:2000] + b"\xff" + original[2001:], b"", b"x" * 10**6):
        Path(photo_row.uri).write_bytes(changed)
        with pytest.raises(SampleError) as caught:
            load_base(storage, photo_row, rule("keep"))
        assert (caught.value.reason, caught.value.fate) == ("source_changed", "failed")
    assert not list(storage.list("bases/"))
    Path(photo_row.uri).write_bytes(original)
    stored = load_base(storage, photo_row, rule("keep"))
    Path(photo_row.uri).write_bytes(b"other")
    assert load_base(storage, photo_row, rule("keep")).png == stored.png
    Path(photo_row.uri).unlink()
    with pytest.raises(SampleError, match="not_found"):
        load_base(storage, photo_row, rule("crop_only"))


def test_a_damaged_store_is_not_blamed_on_the_source(storage: Storage, photo_row: CatalogRow) -> None:
    base = load_base(storage, photo_row, rule("keep"))
    storage.write(base.name, base.png[:-30])
    with pytest.raises(InfraError, match="damaged"):
        load_base(storage, photo_row, rule("keep"))


def test_a_source_that_changes_between_scan_and_run_is_a_failed_record(
    make_config: MakeConfig, tmp_path: Path, photos: dict[str, Pixels]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(encode_png(photos["coffee"][number : number + 150, :150]))
    sources = [{"kind": "files", "url": str(folder), "licence": "CC0-1.0", "group": {"by": "file"}}]
    config = make_config(
        sources=sources, recipes=[make_config().recipes[0].model_dump()], run={"max_failed_fraction": 0.5}
    )
    Catalog(open_storage(config.output)).scan(config)
    (folder / "3.png").write_bytes(encode_png(photos["rocket"][:150, :150]))
    (folder / "4.png").unlink()
    report = run(config, _local)
    assert report.fates == {"kept": 14, "rejected": 0, "failed": 4} and report.flawed
    assert report.reasons == {"source_changed": 2, "not_found": 2}
    rows = [row for row in open_snapshot(config.output).rows().to_pylist() if row["reason"]]
    assert {row["reason"]: row["uri"] for row in rows} == {
        "source_changed": f"{folder}/3.png",
        "not_found": f"{folder}/4.png",
    }
    assert all(row["detail"] for row in rows)


def _local(config: RunConfig, output: str) -> Backend:
    return LocalBackend(stages_of(config), (render_settings(config), output))


# Small sources


def test_small_sources_take_no_slots_or_stay_as_they_are(
    make_config: MakeConfig, tmp_path: Path, photos: dict[str, Pixels]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name, height in (("a", 127), ("b", 128), ("c", 300)):
        (folder / f"{name}.png").write_bytes(encode_png(photos["coffee"][:height, :200]))
    sources = [{"kind": "files", "url": str(folder), "licence": "CC0-1.0", "group": {"by": "file"}}]
    recipes = [make_config().recipes[0].model_dump()]
    sizes = {}
    for small in ("refuse", "keep"):
        base = {"policy": "resize_crop", "size_px": 128, "small": small}
        config = make_config(tmp_path / small, sources=sources, recipes=recipes, base=base, split={"val": 0, "test": 0})
        report = run(config, _local)
        rows = open_snapshot(config.output).rows().to_pylist()
        sizes[small] = sorted({(row["uri"][-5:], row["width"], row["height"]) for row in rows})
        assert report.sources.get("rejected:too_small_for_base", 0) == (small == "refuse")
    assert sizes["refuse"] == [("b.png", 128, 128), ("c.png", 128, 128)]
    assert sizes["keep"] == [("a.png", 128, 127), *sizes["refuse"]]


# Clips


def test_frames_of_a_window_are_bases(
    storage: Storage, tmp_path: Path, photos: dict[str, Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = clip_row(write_clip(tmp_path / "c.mp4", photos["coffee"], 9))
    first = load_frames(storage, row, 4, rule("crop_only", 96))
    assert [base.pixels.shape for base in first] == [(96, 96, 3)] * 3
    assert [base.name[-12:] for base in first] == ["-f000004.png", "-f000005.png", "-f000006.png"]
    overlapping = load_frames(storage, row, 5, rule("crop_only", 96))
    assert [base.png for base in overlapping[:2]] == [base.png for base in first[1:]]
    assert len({base.png for base in (*first, *overlapping)}) == 4
    monkeypatch.setattr(bases, "read_frames", None)
    assert [base.png for base in load_frames(storage, row, 4, rule("crop_only", 96))] == [base.png for base in first]


def test_clips_that_changed_or_change_size_are_refused(
    storage: Storage, tmp_path: Path, photos: dict[str, Pixels]
) -> None:
    path = write_clip(tmp_path / "c.avi", photos["coffee"], 9)
    for changes, reason in (({"sha256": "0" * 64}, "source_changed"), ({"width": 170}, "frame_size_changes")):
        with pytest.raises(SampleError) as caught:
            load_frames(storage, clip_row(path, **changes), 0, rule("keep"))
        assert caught.value.reason == reason
    assert not list(storage.list("bases/"))


def test_blurred_clips_replay_bit_for_bit(make_config: MakeConfig, tmp_path: Path, photos: dict[str, Pixels]) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, (name, suffix) in enumerate((("coffee", ".mp4"), ("astronaut", ".avi"), ("rocket", ".mp4"))):
        write_clip(folder / f"{name}{suffix}", photos[name], 8 + 2 * number, step_px=2 + number)
    blur = {"type": "temporal_blur", "severity": [0.4, 0.9]}
    config = make_config(
        sources=[
            {"kind": "video", "url": str(folder), "licence": "CC0-1.0", "group": {"by": "file"}, "window_frames": 5}
        ],
        recipes=[
            {"name": "clip", "version": 1, "category": "blur", "variants": 3, "chain": [blur]},
            {
                "name": "clip_jpeg",
                "version": 1,
                "category": "blur",
                "variants": 1,
                "chain": [blur, {"type": "jpeg", "severity": 0.5}],
            },
        ],
    )
    report = run(config, _local)
    assert report.fates == {"kept": 12, "rejected": 0, "failed": 0}
    snapshot = open_snapshot(config.output)
    assert verify(snapshot).problems == ()
    for path in folder.iterdir():
        path.unlink()
    Catalog(open_storage(config.output)).storage.delete("catalog/batch-000000.parquet")
    again = replay_snapshot(snapshot, None, 0, 2)
    assert (again.replayed, again.problems) == (12, ())


def test_windows_lie_inside_the_clip_and_differ(
    make_config: MakeConfig, tmp_path: Path, photos: dict[str, Pixels]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "a.mp4", photos["coffee"], 9)
    write_clip(folder / "b.mp4", photos["rocket"], 5)
    config = make_config(
        sources=[
            {"kind": "video", "url": str(folder), "licence": "CC0-1.0", "group": {"by": "file"}, "window_frames": 5}
        ],
        recipes=[
            {
                "name": "clip",
                "version": 1,
                "category": "blur",
                "variants": 60,
                "chain": [{"type": "temporal_blur", "severity": 0.5}],
            }
        ],
    )
    catalog = Catalog(open_storage(config.output))
    catalog.scan(config)
    starts: dict[str, set[int]] = {}
    for part in plan_parts(config, catalog):
        for record in part.records:
            starts.setdefault(record.source.uri[-5:], set()).add(record.window_start)
    assert starts == {"a.mp4": {0, 1, 2, 3, 4}, "b.mp4": {0}}


def test_a_16_bit_source_is_rounded_once(storage: Storage, tmp_path: Path, photos: dict[str, Pixels]) -> None:
    """The base of a deep photo is what decoding gives, cut to size."""
    deep = photos["coffee"][:100, :120].astype(np.uint16) * 257
    (tmp_path / "deep.png").write_bytes(encode_png(deep))
    base = load_base(storage, row_of(tmp_path / "deep.png", 120, 100), rule("keep"))
    assert np.array_equal(base.pixels, photos["coffee"][:100, :120])
    assert np.array_equal(base.pixels, decode_source((tmp_path / "deep.png").read_bytes(), bases._UNLIMITED)[0])
