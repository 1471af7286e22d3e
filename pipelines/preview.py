"""Contact sheets: LQ beside HQ, a detail of both at full size, and the parameters that were drawn."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels, Plane, decode_png, save_picture
from pairforge.records import Fate, GeneratedSample, Generation, Sample, Step, parse_sample
from pairforge.shards import Shard, read_rows, read_shard
from pairforge.snapshot import Snapshot

_TELLING = {
    "haze": "effective_optical_depth airlight_luminance density_cv",
    "ground_fog": "effective_optical_depth scale_height_m camera_height_m",
    "night_haze": "effective_optical_depth source_gain scatter_asymmetry",
    "haze_pattern": "alpha scale",
    "rain_pattern": "gain zoom",
    "snow": "snow_rate_mm_h concentration_gain exposure_s wind_m_s",
    "raindrops_on_glass": "covered_frac radius_mm contact_angle_deg",
    "rain": "rain_rate_mm_h exposure_s wind_m_s",
    "reflection": "kappa focus_m distance_m aperture_mm",
    "double_pane_reflection": "kappa gap_mm focus_m distance_m",
    "nonlinear_reflection": "base_share bright_share blur_sigma_frac ghost_share",
    "flare_overlay": "mean_lin size_ratio gamma",
    "flare": "source_radiance ghost_count scatter_frac veil_frac",
    "flare_lights": "source_radiance ghost_count scatter_frac veil_frac",
    "motion_blur": "speed_deg_s exposure_s tremor",
    "defocus_blur": "aperture_mm focus_m blades",
    "gaussian_blur": "sigma_x_px sigma_y_px beta",
    "temporal_blur": "duty_cycle highlight_gain",
    "low_light": "exposure_ratio shot_var read_var",
    "low_light_curve": "alpha beta gamma",
    "sensor_noise": "shot_var read_var row_sd chroma_nr_px",
    "segment_noise": "shot_var read_var strength_cv",
    "granular_noise": "sigma_codes grain_px chroma_ratio",
    "impulse_noise": "impulse_frac salt_share",
    "banding_noise": "row_sd flicker_depth flicker_cycles",
    "sepia": "toning_share black_density yellow_density",
    "photo_damage": "stain_area_frac dust_count scratch_count crease_count",
    "old_photo": "toning_share black_density grain_sigma_frac stain_area_frac",
    "old_color_photo": "keep_red_ratio keep_green_ratio keep_blue_ratio stain_area_frac",
    "moire": "layout pitch_ratio roll_deg artistic_gain",
    "moire_pattern": "amplitude zoom",
}
"""Parameters a caption starts with; of a degradation that is not here, the first ones it has."""
_PARAMETERS_SHOWN = 4
_GAP_PX, _FONT_PX, _LINE_PX = 8, 13, 17
_SHARDS_SEEN = 8
"""Samples of a category are chosen from so many of its shards, spread evenly."""
_MOST_PIXELS = 150_000_000
_GENERATED = DecodeLimits(max_bytes=2**27, max_pixels=2**26, max_side=2**14, min_side=1)
_INK, _FAINT, _PAPER, _FRAME = (235, 235, 235), (165, 165, 170), (24, 24, 26), (255, 214, 10)


def save_sheet(
    snapshot: Snapshot,
    output: Path,
    categories: Sequence[str] | None,
    per_category: int,
    columns: int,
    thumb_px: int,
    refused: bool = False,
) -> None:
    """Write the contact sheet of a snapshot as PNG or JPEG: of what it kept, or of what was generated and refused."""
    title = f"{snapshot.manifest.name}, snapshot {snapshot.manifest.id}"
    pick = pick_refused if refused else pick_samples
    save_picture(contact_sheet(pick(snapshot, categories, per_category), columns, thumb_px, title), output)


def pick_samples(
    snapshot: Snapshot, categories: Sequence[str] | None, per_category: int
) -> Iterator[tuple[Sample, Pixels, Pixels]]:
    """Kept samples for a sheet, one in memory at a time: first of every degradation, then of every source."""
    sources_used: Counter[str] = Counter()
    for category in sorted({shard.category for shard in snapshot.shards(categories)}):
        shards = [shard for shard in snapshot.shards([category]) if shard.tar_name]
        step = max(1, len(shards) // _SHARDS_SEEN)
        chosen = _choose(snapshot, shards[::step][:_SHARDS_SEEN], per_category, sources_used)
        for tar_name, keys in chosen.items():
            yield from _read(snapshot, tar_name, keys)


def _choose(snapshot: Snapshot, shards: Sequence[Shard], count: int, sources_used: Counter[str]) -> dict[str, set[str]]:
    """Keys by tar, such that kinds of chain, then sources, then sources of earlier categories repeat least."""
    rows = []
    for shard in shards:
        table = read_rows(snapshot.storage, [shard.rows_name], ["key", "fate", "source_id", "degradations"])
        kept = (row for row in table.to_pylist() if row["fate"] == Fate.KEPT and row["key"] not in snapshot.excluded)
        rows += [(row["key"], row["source_id"], tuple(row["degradations"]), shard.tar_name) for row in kept]
    kinds: Counter[tuple[str, ...]] = Counter()
    here: Counter[str] = Counter()
    chosen: dict[str, set[str]] = {}
    for _ in range(min(count, len(rows))):
        best = min(rows, key=lambda row: (kinds[row[2]], here[row[1]], sources_used[row[1]]))
        rows.remove(best)
        key, source_id, kind, tar_name = best
        kinds[kind] += 1
        here[source_id] += 1
        sources_used[source_id] += 1
        chosen.setdefault(tar_name, set()).add(key)
    return chosen


def _read(snapshot: Snapshot, tar_name: str, keys: set[str]) -> Iterator[tuple[Sample, Pixels, Pixels]]:
    left = set(keys)
    for key, files in read_shard(snapshot.storage, tar_name):
        if key in left:
            left.remove(key)
            sample = parse_sample(files["json"], f"{tar_name}: {key}.json")
            yield sample, decode_png(files["lq.png"]), decode_png(files["hq.png"])
        if not left:
            return


@dataclass(frozen=True)
class Refused:
    """A record of which a picture was generated and not kept: why, and how it was made."""

    category: str
    uri: str
    reason: str
    detail: str
    generation: Generation


def pick_refused(
    snapshot: Snapshot, categories: Sequence[str] | None, per_category: int
) -> Iterator[tuple[Refused, Pixels, Pixels]]:
    """Records that were not kept, with the best picture that was generated for them; of every reason in turn."""
    columns = ["category", "uri", "fate", "reason", "detail", "generation"]
    for category in sorted({shard.category for shard in snapshot.shards(categories)}):
        names = [shard.rows_name for shard in snapshot.shards([category])]
        by_reason: dict[str, list[Refused]] = {}
        for row in read_rows(snapshot.storage, names, columns).to_pylist():
            if row.pop("fate") != Fate.KEPT and row["generation"]:
                held = Refused(**{**row, "generation": Generation.model_validate_json(row["generation"])})
                if held.generation.reply is not None:
                    by_reason.setdefault(held.reason, []).append(held)
        in_turn = (each for turn in zip_longest(*by_reason.values()) for each in turn if each is not None)
        for held in islice(in_turn, per_category):
            assert held.generation.reply is not None
            lq, data = (snapshot.storage.read(asset.name) for asset in (held.generation.lq, held.generation.reply))
            yield held, decode_png(lq), decode_source(data, _GENERATED)[0]


def contact_sheet(
    samples: Iterable[tuple[Sample | Refused, Pixels, Pixels]], columns: int, thumb_px: int, title: str = ""
) -> Pixels:
    """One picture of all samples, `columns` a row: LQ, HQ, and the framed detail of both at full size.

    Raises ValueError when there is nothing to show, or more than fits a picture.
    """
    cells: list[Pixels] = []
    for sample, lq, hq in samples:
        cells.append(_cell(sample, lq, hq, thumb_px))
        if len(cells) * cells[0].shape[0] * cells[0].shape[1] > _MOST_PIXELS:
            raise ValueError(f"more than {len(cells) - 1} samples of {thumb_px} px do not fit a sheet; show fewer")
    if not cells:
        raise ValueError("nothing to show: no kept record matches")
    height, width = (extent + _GAP_PX for extent in cells[0].shape[:2])
    columns = min(columns, len(cells))
    top = _GAP_PX + _LINE_PX
    sheet = np.full((top + -(-len(cells) // columns) * height, columns * width + _GAP_PX, 3), _PAPER, np.uint8)
    heading, draw = _canvas(top, sheet.shape[1])
    draw.text((_GAP_PX, 3), _fit(draw, [title, "LQ | HQ | framed detail of both"], sheet.shape[1]), _FAINT, _font())
    sheet[:top] = np.asarray(heading)
    for place, cell in enumerate(cells):
        y, x = top + place // columns * height, _GAP_PX + place % columns * width
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return sheet


def _cell(sample: Sample | Refused, lq: Pixels, hq: Pixels, thumb_px: int) -> Pixels:
    if lq.shape != hq.shape:
        lq = cv2.resize(lq, hq.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    half = (thumb_px - 2) // 2
    enlarge = 1 if max(lq.shape[:2]) > thumb_px else 2
    box = _detail(lq, hq, half // enlarge)
    canvas, draw = _canvas(thumb_px + 2 * _LINE_PX + 4, 2 * thumb_px + half + 6)
    for side, pixels in enumerate((lq, hq)):
        thumb, scale = _thumb(pixels, thumb_px)
        x = side * (thumb_px + 2) + (thumb_px - thumb.width) // 2
        y = (thumb_px - thumb.height) // 2
        canvas.paste(thumb, (x, y))
        left, upper, right, lower = (round(edge * scale) for edge in box)
        draw.rectangle((x + left, y + upper, x + max(left, right - 1), y + max(upper, lower - 1)), outline=_FRAME)
        piece = PILImage.fromarray(np.ascontiguousarray(pixels[box[1] : box[3], box[0] : box[2]]))
        piece = piece.resize((piece.width * enlarge, piece.height * enlarge), PILImage.Resampling.NEAREST)
        canvas.paste(piece, (2 * thumb_px + 6, side * (half + 2)))
    first, second = caption(sample)
    draw.text((0, thumb_px + 2), _fit(draw, first, canvas.width), _INK, _font())
    draw.text((0, thumb_px + 2 + _LINE_PX), _fit(draw, second, canvas.width), _FAINT, _font())
    return np.asarray(canvas)


def _canvas(height: int, width: int) -> tuple[PILImage.Image, ImageDraw.ImageDraw]:
    canvas = PILImage.new("RGB", (width, height), _PAPER)
    return canvas, ImageDraw.Draw(canvas)


def caption(sample: Sample | Refused) -> tuple[list[str], list[str]]:
    """Pieces of the two lines under a pair: category, steps with severity, source; telling parameters.

    Of generated pairs: category, generator and attempt, source; what checks and the judge said of it.
    """
    if isinstance(sample, Refused):
        heading = f"{sample.category}: {sample.reason}"
        return [heading, *_generated(sample.generation, sample.uri)], [sample.detail, *_scores(sample.generation)]
    if isinstance(sample, GeneratedSample):
        made = _generated(sample.generation, sample.source.uri)
        return [f"{sample.category}: {made[0]}", *made[1:]], _scores(sample.generation)
    steps = " > ".join(f"{step.name} {step.severity:.2f}" for step in sample.steps) or "imported"
    each = max(1, _PARAMETERS_SHOWN // max(1, len(sample.steps)))
    drawn = [piece for step in sample.steps for piece in telling(step)[:each]]
    source = sample.source.uri.rpartition("/")[2].rpartition("#")[2]
    return [f"{sample.category}: {steps}", source], drawn


def _generated(generation: Generation, uri: str) -> list[str]:
    told = f"{generation.generator}, attempt {generation.chosen} of {len(generation.attempts)}"
    return [told, uri.rpartition("/")[2].rpartition("#")[2]]


def _scores(generation: Generation) -> list[str]:
    chosen = next((each for each in generation.attempts if each["number"] == generation.chosen), {})
    scores = [f"{aspect.partition('_')[0]} {score}" for aspect, score in chosen.get("scores", {}).items()]
    gain = generation.qc.get("values", {}).get("quality_gain")
    return [f"{generation.judge}: {' '.join(scores)}"] * bool(scores) + (
        [f"gain {gain:.2f}"] if gain is not None else []
    )


def telling(step: Step) -> list[str]:
    """The drawn parameters that say most of a step, as `name value`."""
    known = [name for name in _TELLING.get(step.name, "").split() if name in step.params]
    return [f"{name} {_short(step.params[name])}" for name in known or step.params]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name} {_short(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ",".join(_short(part) for part in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _font() -> Any:
    return ImageFont.load_default(_FONT_PX)


def _fit(draw: ImageDraw.ImageDraw, pieces: Sequence[str], width_px: int) -> str:
    """As many whole pieces as fit one line; the first one is shortened if it does not fit alone."""
    line = pieces[0] if pieces else ""
    while len(line) > 1 and draw.textlength(line, _font()) > width_px:
        line = line.removesuffix("…")[:-1] + "…"
    for piece in pieces[1:]:
        longer = f"{line}   {piece}" if line else piece
        if draw.textlength(longer, _font()) > width_px:
            break
        line = longer
    return line


def _thumb(pixels: Pixels, side_px: int) -> tuple[PILImage.Image, float]:
    """The whole image inside a square, and its scale; enlarged only by whole factors, repeating pixels."""
    height, width = pixels.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        scale = float(int(scale))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    return PILImage.fromarray(small), scale


def _detail(lq: Pixels, hq: Pixels, side_px: int) -> tuple[int, int, int, int]:
    """Where fine structure of LQ and HQ differs most: left, top, right, bottom of a square, cut by the image."""
    height, width = (min(extent) for extent in zip(lq.shape[:2], hq.shape[:2], strict=True))
    box_width, box_height = min(side_px, width), min(side_px, height)
    gap = np.abs(_fine(lq[:height, :width]) - _fine(hq[:height, :width]))
    sums = cv2.integral(np.minimum(gap, 24))
    total = (
        sums[box_height:, box_width:]
        - sums[:-box_height, box_width:]
        - sums[box_height:, :-box_width]
        + sums[:-box_height, :-box_width]
    )
    y, x = (int(place) for place in np.unravel_index(int(np.argmax(total)), total.shape))
    return x, y, x + box_width, y + box_height


def _fine(pixels: Pixels) -> Plane:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine: Plane = grey - cv2.blur(grey, (9, 9))
    return fine
