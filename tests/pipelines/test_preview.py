"""Contact sheets: what is chosen, what is drawn, how much memory it takes."""

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageDraw

from degradations.catalog import DEGRADATIONS
from pairforge.config import canonical_json
from pairforge.image import Pixels, decode_png, encode_png
from pairforge.records import Fate, Sample, SourceRef, Step
from pairforge.shards import Marker, ShardName, ShardWriter, read_shard
from pairforge.snapshot import Snapshot, open_snapshot, publish, write_snapshot
from pairforge.storage import Storage, open_storage
from pipelines import preview
from pipelines.preview import caption, contact_sheet, pick_samples


def sample_of(
    category: str = "noise", steps: tuple[Step, ...] = (), source: str = "0" * 24, variant: int = 0
) -> Sample:
    return Sample(
        key=f"{category}-{source}-v{variant}",
        line="synthesis",
        category=category,
        split="train",
        recipe=category,
        recipe_version=1,
        variant=variant,
        source=SourceRef(
            source_id=source,
            sha256="0" * 64,
            uri="/photos/summer/beach.jpg",
            kind="photo",
            group="g",
            licence="CC0-1.0",
            attribution="",
            width=9,
            height=9,
        ),
        base=None,
        assets=(),
        scene={},
        steps=steps,
        realised={},
        lq_sha256="0" * 64,
        hq_sha256="0" * 64,
        versions={},
    )


def step_of(name: str, severity: float = 0.5, **params: Any) -> Step:
    return Step(name=name, version=1, severity=severity, params=params, seed="0" * 32)


def flat(value: int, height: int = 64, width: int = 64) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


# --- what is chosen ----------------------------------------------------------------------------------


def write_part(storage: Storage, category: str, number: int, records: list[tuple[str, int, str]]) -> Marker:
    """A shard whose records are (source id, variant, degradation); LQ is darker the later it comes."""
    fingerprint = hashlib.sha256(f"{category}{number}".encode()).hexdigest()
    with ShardWriter(storage, ShardName("synthesis", category, f"train-{number:06d}", fingerprint), "train") as writer:
        for source, variant, name in records:
            sample = sample_of(category, (step_of(name, quality=5),), source, variant)
            row = {
                "key": sample.key,
                "recipe": category,
                "variant": variant,
                "source_id": source,
                "uri": "x",
                "group": "g",
                "licence": "l",
                "attribution": "",
                "fate": Fate.KEPT.value,
                "degradations": [name],
            }
            png = encode_png(flat(40))
            writer.add(row, {"json": canonical_json(sample).encode(), "lq.png": png, "hq.png": png})
        return writer.commit({})


def source_id(index: int) -> str:
    return f"{index:024x}"


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """Two categories, 12 sources with 3 variants, in shards of 12; of every 6 noise records one is impulse noise."""
    storage = open_storage(str(tmp_path / "set"))
    markers = []
    for category in ("noise", "rain"):
        records = [(source_id(index // 3), index % 3, _kind(category, index)) for index in range(36)]
        markers += [write_part(storage, category, start // 12, records[start : start + 12]) for start in (0, 12, 24)]
    publish(storage, write_snapshot(storage, "sheet", markers, {}, ["l"], ["noise-" + source_id(0) + "-v0"], {}))
    return open_snapshot(storage.root)


def _kind(category: str, index: int) -> str:
    return "rain" if category == "rain" else "impulse_noise" if index % 6 == 5 else "sensor_noise"


def picked(snapshot: Snapshot, per_category: int, categories: list[str] | None = None) -> list[Sample]:
    return [sample for sample, _, _ in pick_samples(snapshot, categories, per_category)]


def test_every_degradation_and_then_every_source_is_shown(snapshot: Snapshot) -> None:
    samples = picked(snapshot, 4, ["noise"])
    assert Counter(sample.steps[0].name for sample in samples) == {"sensor_noise": 2, "impulse_noise": 2}
    assert len({sample.source.source_id for sample in samples}) == 4


def test_categories_show_different_sources(snapshot: Snapshot) -> None:
    samples = picked(snapshot, 5)
    assert Counter(sample.category for sample in samples) == {"noise": 5, "rain": 5}
    assert len({sample.source.source_id for sample in samples}) == 10


def test_more_than_there_is_shows_each_once_and_no_excluded_one(snapshot: Snapshot) -> None:
    samples = picked(snapshot, 200, ["noise"])
    assert len(samples) == len({sample.key for sample in samples}) == 35
    assert f"noise-{source_id(0)}-v0" not in {sample.key for sample in samples}


def test_the_same_snapshot_gives_the_same_sheet(snapshot: Snapshot) -> None:
    sheets = [contact_sheet(pick_samples(snapshot, None, 3), 2, 64) for _ in range(2)]
    assert np.array_equal(sheets[0], sheets[1])


def test_a_shard_is_read_no_further_than_needed(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counting(storage: Storage, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        for key, files in read_shard(storage, name):
            read.append(key)
            yield key, files

    monkeypatch.setattr(preview, "read_shard", counting)
    samples = picked(snapshot, 1, ["rain"])
    assert read[-1] == samples[0].key and len(read) == 1


def test_an_unknown_category_is_named(snapshot: Snapshot) -> None:
    with pytest.raises(ValueError, match="no category fog"):
        picked(snapshot, 1, ["fog"])


def test_one_sample_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """A sheet of 24 samples of 1536 px takes no more memory than one of 6 but for the sheet itself."""
    storage = open_storage(str(tmp_path / "set"))
    noise = np.random.Generator(np.random.Philox(key=1)).integers(0, 256, (1536, 1536, 3), np.uint8)
    png = encode_png(noise)
    with ShardWriter(storage, ShardName("synthesis", "noise", "train-000000", "0" * 64), "train") as writer:
        for index in range(24):
            sample = sample_of("noise", (step_of("sensor_noise", shot_var=0.1),), source_id(index))
            row = {"key": sample.key, "recipe": "n", "variant": 0, "source_id": source_id(index), "uri": "x"}
            row |= {"group": "g", "licence": "l", "attribution": "", "fate": "kept", "degradations": ["sensor_noise"]}
            writer.add(row, {"json": canonical_json(sample).encode(), "lq.png": png, "hq.png": png})
        marker = writer.commit({})
    publish(storage, write_snapshot(storage, "big", [marker], {}, ["l"], [], {}))
    script = """
import resource, sys
from pairforge.snapshot import open_snapshot
from pipelines.preview import contact_sheet, pick_samples
contact_sheet(pick_samples(open_snapshot(sys.argv[1]), None, int(sys.argv[2])), 3, 128)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = [
        int(subprocess.run([sys.executable, "-c", script, storage.root, count], check=True, capture_output=True).stdout)
        for count in ("6", "24")
    ]
    assert peaks[1] - peaks[0] < 30_000, f"{peaks} kB"


# --- what is drawn -----------------------------------------------------------------------------------


def test_a_sheet_shows_lq_hq_and_the_detail_of_both() -> None:
    lq, hq = flat(60, 256, 256), flat(200, 256, 256)
    hq[100:104, 40:44] = 255
    sheet = contact_sheet([(sample_of(), lq, hq)], 3, 128)
    top = preview._GAP_PX + preview._LINE_PX
    left = sheet[top : top + 128, preview._GAP_PX : preview._GAP_PX + 128]
    right = sheet[top : top + 128, preview._GAP_PX + 130 : preview._GAP_PX + 258]
    assert np.median(left) == 60 and np.median(right) == 200
    details = sheet[top : top + 128, preview._GAP_PX + 2 * 128 + 6 :]
    assert np.median(details[:60, :60]) == 60 and np.median(details[66:126, :60]) == 200
    # Where the fine structure of the two differs is in the detail, at its own size.
    assert (details[64:126, :63] == 255).all(axis=-1).sum() == 16


def test_the_frame_marks_the_detail() -> None:
    rng = np.random.Generator(np.random.Philox(key=3))
    hq = flat(120, 512, 512)
    lq = hq.copy()
    lq[300:420, 40:160] = rng.integers(0, 255, (120, 120, 3), np.uint8)
    left, top, right, bottom = preview._detail(lq, hq, 127)
    assert (right - left, bottom - top) == (127, 127)
    assert abs(left - 36) <= 12 and abs(top - 296) <= 12
    sheet = contact_sheet([(sample_of(), lq, hq)], 1, 256)
    frame = (sheet == preview._FRAME).all(axis=-1)
    y, x = preview._GAP_PX + preview._LINE_PX + top // 2, preview._GAP_PX + left // 2
    assert frame[y - 1 : y + 2, x + 10].any() and frame[y + 10, x - 1 : x + 2].any()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 300), (300, 17), (128, 128), (1024, 768), (64, 4096)])
@pytest.mark.parametrize("thumb_px", [64, 256])
def test_any_size_is_drawn_whole(height: int, width: int, thumb_px: int) -> None:
    hq = flat(90, height, width)
    sheet = contact_sheet([(sample_of(), flat(30, height, width), hq)], 2, thumb_px)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    thumb, scale = preview._thumb(hq, thumb_px)
    assert max(thumb.size) <= thumb_px and (scale <= 1 or scale == int(scale))
    assert abs(thumb.width / thumb.height - width / height) < 0.6 * width / height


def test_small_images_are_enlarged_by_repeating_pixels() -> None:
    pixels = np.random.Generator(np.random.Philox(key=2)).integers(0, 256, (50, 40, 3), np.uint8)
    thumb, scale = preview._thumb(pixels, 160)
    assert scale == 3
    np.testing.assert_array_equal(np.asarray(thumb), pixels.repeat(3, axis=0).repeat(3, axis=1))


def test_rows_and_columns() -> None:
    one = contact_sheet([(sample_of(), flat(1), flat(2))], 1, 64)
    cell_height, cell_width = one.shape[0] - preview._GAP_PX - preview._LINE_PX, one.shape[1] - preview._GAP_PX
    for count, columns, expected in ((1, 3, (1, 1)), (3, 3, (1, 3)), (4, 3, (2, 3)), (5, 1, (5, 1))):
        sheet = contact_sheet([(sample_of(), flat(1), flat(2))] * count, columns, 64)
        rows = (sheet.shape[0] - preview._GAP_PX - preview._LINE_PX) / cell_height
        assert (rows, (sheet.shape[1] - preview._GAP_PX) / cell_width) == expected


def test_nothing_to_show_and_too_much_to_show_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        contact_sheet([], 3, 64)
    monkeypatch.setattr(preview, "_MOST_PIXELS", 100_000)
    with pytest.raises(ValueError, match="do not fit a sheet; show fewer"):
        contact_sheet([(sample_of(), flat(1), flat(2))] * 50, 3, 64)


# --- captions ----------------------------------------------------------------------------------------


def test_a_caption_tells_kind_severity_source_and_the_telling_parameters() -> None:
    step = step_of("rain", 0.724, tilt_sigma_deg=1.0, rain_rate_mm_h=41.2345, exposure_s=0.01, wind_m_s=3.0)
    first, second = caption(sample_of("rain", (step,)))
    assert first == ["rain: rain 0.72", "beach.jpg"]
    assert second == ["rain_rate_mm_h 41.2", "exposure_s 0.01", "wind_m_s 3"]


def test_chains_share_the_line() -> None:
    steps = (
        step_of("jpeg", 0.2, quality=50, subsampling="4:2:0"),
        step_of("gaussian_blur", 0.9, sigma_x_px=1.0, beta=2.0),
    )
    first, second = caption(sample_of("mixed", steps))
    assert first[0] == "mixed: jpeg 0.20 > gaussian_blur 0.90"
    assert second == ["quality 50", "subsampling 4:2:0", "sigma_x_px 1", "beta 2"]
    many = caption(sample_of("mixed", steps * 3))[1]
    assert len(many) == 6


def test_lists_are_shown_and_imports_say_so() -> None:
    step = step_of("recompress", coding=["jpeg", "webp"], quality=[50, 60])
    assert caption(sample_of("compression", (step,)))[1] == ["coding jpeg,webp", "quality 50,60"]
    assert caption(sample_of("derain"))[0][0] == "derain: imported"


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda degradation: degradation.name)
def test_telling_parameters_exist(degradation: Any) -> None:
    known = preview._TELLING.get(degradation.name, "").split()
    assert set(known) <= set(degradation.params_type.model_fields), "a parameter was renamed"
    assert len(known) <= preview._PARAMETERS_SHOWN


def test_a_line_ends_at_a_whole_word() -> None:
    _, draw = preview._canvas(20, 20)
    assert isinstance(draw, ImageDraw.ImageDraw)
    pieces = ["wind_m_s 3", "exposure_s 0.01", "rain_rate_mm_h 41.2"]
    for width in range(40, 500, 20):
        line = preview._fit(draw, pieces, width)
        assert draw.textlength(line, preview._font()) <= width
        assert line.endswith("…") or line in ("   ".join(pieces[:count]) for count in (1, 2, 3))
    assert preview._fit(draw, pieces, 500) == "   ".join(pieces)
    assert preview._fit(draw, ["x" * 300], 100).endswith("…") and preview._fit(draw, [], 9) == ""


def test_the_sheet_is_what_was_stored(snapshot: Snapshot) -> None:
    for sample, lq, hq in pick_samples(snapshot, ["rain"], 2):
        _, files = snapshot.find(sample.key)
        np.testing.assert_array_equal(lq, decode_png(files["lq.png"]))
        np.testing.assert_array_equal(hq, decode_png(files["hq.png"]))
