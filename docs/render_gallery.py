"""Renders docs/gallery: for every degradation and chain one sheet, photos by severity, with what was drawn.

    make gallery

Photos are those of scikit-image and scikit-learn. Photos are shown whole, or a part of them at full size where the
degradation is a matter of pixels.
"""

import io
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

from degradations.banks import GENERATORS
from degradations.base import Pattern, Scene
from degradations.catalog import BY_NAME, DEGRADATIONS, replay
from degradations.chains import CHAINS
from degradations.scene.depth import GeometricDepth
from degradations.scene.segments import SlicSegments
from pairforge.image import Pixels, prepare_worker, to_pixels
from pairforge.records import Step
from pipelines.drawing import draw_choice
from pipelines.preview import telling
from pipelines.scenes import enlarge, needs_of

FOLDER = Path(__file__).parent / "gallery"
SEVERITIES = (0.2, 0.5, 0.8)
BASE_PX, THUMB_PX = (576, 432), (192, 144)
LINE_PX, GAP_PX = 14, 4
MOST_BYTES, BYTES_A_ROW = 4_000_000, 17_200
PIXEL_MATTERS = (
    "blur noise jpeg webp avif recompress resize resolution grain moire fringe real_esrgan apisr web composite"
).split()
"""Names with one of these in them are shown at full size."""
PEOPLE, PLACES = ("astronaut", "chelsea"), ("china", "coffee", "rocket", "flower")


def photos() -> dict[str, Pixels]:
    """Real photos, all of one size."""
    found = {name: getattr(skimage.data, name)() for name in ("astronaut", "coffee", "rocket", "chelsea")}
    found |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: _fill(np.ascontiguousarray(pixels), BASE_PX) for name, pixels in found.items()}


def _fill(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The middle of a photo at a size (width, height)."""
    scale = max(size[0] / pixels.shape[1], size[1] / pixels.shape[0])
    resized = cv2.resize(
        pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    y, x = (resized.shape[0] - size[1]) // 2, (resized.shape[1] - size[0]) // 2
    return np.ascontiguousarray(resized[y : y + size[1], x : x + size[0]])


def patterns_of(kind: str, seed: int) -> tuple[Pattern, ...]:
    """Three patterns of a kind."""
    return tuple(GENERATORS[kind].make(3 * seed + index, 0) for index in range(3))


def pan(photo: Pixels) -> tuple[Pixels, ...]:
    """Seven frames of a camera that turns, cut from one photo; the middle one is at rest in it."""
    height, width = photo.shape[:2]
    wide = cv2.resize(photo, (width + 48, height + 24), interpolation=cv2.INTER_CUBIC)
    return tuple(
        np.ascontiguousarray(wide[12 + k : 12 + k + height, 24 + 3 * k : 24 + 3 * k + width]) for k in range(-3, 4)
    )


def degraded(name: str, severity: float, photo: Pixels, second: Pixels, seed: int) -> tuple[Pixels, tuple[Step, ...]]:
    """One photo after one degradation or chain, and its steps."""
    steps = draw_choice(name, severity, seed, ("gallery", name))
    needs = needs_of(steps)
    frames = pan(photo) if "frames" in needs else ()
    base = frames[3] if frames else photo
    providers: dict[str, Any] = {"depth": GeometricDepth, "segments": SlicSegments}
    views: dict[str, Any] = {need: enlarge(make()(base), base) for need, make in providers.items() if need in needs}
    scene = Scene(
        second=second,
        frames=frames,
        patterns={kind: patterns_of(kind, seed) for kind in {BY_NAME[s.name].bank for s in steps} - {""}},
        **views,
    )
    image = to_pixels(replay(base, steps, scene).image)
    if image.shape != base.shape:
        image = cv2.resize(image, base.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return image, steps


def sheet(name: str, held: dict[str, Pixels]) -> Pixels:
    """Rows of photos; columns: as it was, then by severity."""
    rows = ["china", "astronaut", "coffee", "rocket"] if len(name) % 2 else ["china", "flower", "chelsea", "rocket"]
    if name.startswith("composite"):
        rows = rows[::3]
    whole = not any(word in name for word in PIXEL_MATTERS)
    cell = (THUMB_PX[0] + GAP_PX, THUMB_PX[1] + 2 * LINE_PX + GAP_PX)
    canvas = PILImage.new("RGB", ((1 + len(SEVERITIES)) * cell[0] + GAP_PX, len(rows) * cell[1] + GAP_PX), (24, 24, 26))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for row, photo in enumerate(rows):
        second = held["astronaut" if photo not in PEOPLE and row % 2 else "coffee" if photo != "coffee" else "china"]
        for column, severity in enumerate((None, *SEVERITIES)):
            x, y = GAP_PX + column * cell[0], GAP_PX + row * cell[1]
            pixels, lines = held[photo], [photo, "" if whole else "part of it, at full size"]
            if severity is not None:
                pixels, steps = degraded(name, severity, held[photo], second, 10 * row + 1)
                pieces = telling(steps[0]) if len(steps) == 1 else [step.name for step in steps]
                lines = [f"severity {severity}", *_lines(pieces, draw, font)]
            canvas.paste(PILImage.fromarray(_thumb(pixels, whole)), (x, y))
            for place, line in enumerate(lines[:2]):
                draw.text((x, y + THUMB_PX[1] + place * LINE_PX), line, (225, 225, 225), font)
    return np.asarray(canvas)


def _lines(
    pieces: list[str], draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    line = ""
    for piece in pieces:
        longer = f"{line}  {piece}" if line else piece
        if draw.textlength(longer, font) > THUMB_PX[0]:
            break
        line = longer
    return [line]


def _thumb(pixels: Pixels, whole: bool) -> Pixels:
    if whole:
        small: Pixels = cv2.resize(pixels, THUMB_PX, interpolation=cv2.INTER_AREA)
        return small
    y, x = (pixels.shape[0] - THUMB_PX[1]) // 2, (pixels.shape[1] - THUMB_PX[0]) // 2
    return np.ascontiguousarray(pixels[y : y + THUMB_PX[1], x : x + THUMB_PX[0]])


def _small_jpeg(pixels: Pixels) -> bytes:
    """The best quality that fits."""
    rows = round(pixels.shape[0] / (THUMB_PX[1] + 2 * LINE_PX + GAP_PX))
    for quality in range(88, 20, -4):
        stream = io.BytesIO()
        PILImage.fromarray(pixels).save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= rows * BYTES_A_ROW:
            break
    return stream.getvalue()


def main() -> int:
    prepare_worker()
    held = photos()
    names = sys.argv[1:] or [d.name for d in DEGRADATIONS] + [c.name for c in CHAINS]
    for name in names:
        path = FOLDER / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_small_jpeg(sheet(name, held)))
        print(path.name, path.stat().st_size, flush=True)
    total = sum(path.stat().st_size for path in FOLDER.glob("*.jpg"))
    print(f"{total} bytes in all; at most {MOST_BYTES} are wanted")
    return 0 if total <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
