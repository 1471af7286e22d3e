"""A picture that came back from a generator, laid over its input: decoded, checked, brought to the input's size.

Everything is a function of the input's size, the bytes and the rule, so pixels are derived from stored bytes again at
any time, bit for bit (with equal versions of Pillow and numpy).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image as PILImage
from pydantic import Field, PositiveInt

from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels
from pairforge.protocols import Candidate, Trouble, Usage
from pairforge.records import Frozen, SampleError
from pairforge.remote_base import RemoteError, image_mime, short

_LIMITS = DecodeLimits(max_bytes=2**27, max_pixels=2**26, max_side=2**14, min_side=1)
"""Far above what services return, and what a worker can hold."""
_SIZE_REASONS = frozenset({"too_many_pixels", "side_too_long", "too_small"})


class SizeRule(Frozen):
    """Which sizes a generator makes, and which of its answers can be laid over the input.

    Where `canvases` are named, the input is set into the one nearest in aspect, with its own mirror image around it,
    since a service that has to change the aspect itself crops or stretches as it likes.
    """

    most_aspect_error: float = Field(
        0.02, ge=0, le=1, description="0.02 lets an answer be stretched by 2 % along one side"
    )
    least_scale: float = Field(
        0.5, gt=0, le=1, description="of the input's side; a smaller answer cannot carry the detail"
    )
    canvases: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        (), description="[width, height] in px of all that the service makes; empty where it makes any"
    )

    def canvas(self, lq: Pixels) -> tuple[int, int] | None:
        """The nearest in aspect, the larger of equal ones; None where any will do."""
        height, width = lq.shape[:2]

        def distance(canvas: tuple[int, int]) -> tuple[float, int]:
            across, along = canvas[0] * height, canvas[1] * width
            return max(across, along) / min(across, along), -canvas[0]

        return min(self.canvases, key=distance) if self.canvases else None


@dataclass(frozen=True)
class _Frame:
    """Size of what is sent, and where the input lies in it, in pixels of the input."""

    width: int
    height: int
    left: int
    top: int


def framed(lq: Pixels, rule: SizeRule) -> Pixels:
    """`lq` as it is sent: itself, or inside its mirror image where the rule names canvases."""
    frame = _frame(lq, rule)
    height, width = lq.shape[:2]
    if (frame.width, frame.height) == (width, height):
        return lq
    right, bottom = frame.width - width - frame.left, frame.height - height - frame.top
    sent: Pixels = cv2.copyMakeBorder(lq, frame.top, bottom, frame.left, right, cv2.BORDER_REFLECT_101)
    return sent


def fit_candidate(lq: Pixels, data: bytes, mime: str, usage: Usage, rule: SizeRule) -> Candidate:
    """The answer to `framed(lq, rule)` as a candidate of exactly the size of `lq`, of which only the size is used.

    An answer of the right size stays as it is; others are resized by Lanczos on code values. Bars that a service
    added are not looked for: they look like night skies and white walls. `mime` is what the service said; the
    candidate has that of the bytes.
    Raises RemoteError, with `usage`: MALFORMED for what is no opaque PNG, JPEG or WebP that can be read, WRONG_SIZE
    for what the rule refuses.
    """
    kind = image_mime(data)
    if kind is None:
        raise RemoteError(Trouble.MALFORMED, short(f"neither PNG, JPEG nor WebP, sent as {mime}"), usage=usage)
    try:
        pixels, facts = decode_source(data, _LIMITS)
    except SampleError as error:
        trouble = Trouble.WRONG_SIZE if error.reason in _SIZE_REASONS else Trouble.MALFORMED
        raise RemoteError(trouble, short(str(error)), usage=usage) from None
    corrections = [f"turned upright (EXIF {facts.orientation})"] if facts.orientation != 1 else []
    corrections += [f"read by its colour profile ({facts.icc})"] if facts.icc else []
    frame = _frame(lq, rule)
    size, wanted = (pixels.shape[1], pixels.shape[0]), (frame.width, frame.height)
    fault = size_fault(size, wanted, rule)
    if fault:
        raise RemoteError(Trouble.WRONG_SIZE, fault, usage=usage)
    if size != wanted:
        pixels = resized(pixels, wanted)
        corrections.append(f"resized from {size[0]}x{size[1]}")
    height, width = lq.shape[:2]
    if wanted != (width, height):
        inside = pixels[frame.top : frame.top + height, frame.left : frame.left + width]
        pixels = np.ascontiguousarray(inside)
        corrections.append(f"cropped from {frame.width}x{frame.height} at {frame.left},{frame.top}")
    return Candidate(pixels, data, kind, tuple(corrections), usage)


def canvas_fault(lq: Pixels, rule: SizeRule) -> str:
    """Why no answer to `framed(lq, rule)` will do, whatever comes back; "" where one may."""
    frame, canvas = _frame(lq, rule), rule.canvas(lq)
    fault = size_fault(canvas, (frame.width, frame.height), rule) if canvas else ""
    return f"no canvas for this input: {fault}" if fault else ""


def size_fault(size: tuple[int, int], wanted: tuple[int, int], rule: SizeRule) -> str:
    """Why a picture of `size` (width, height) cannot be laid over one of size `wanted`; "" where it can."""
    across, along = size[0] / wanted[0], size[1] / wanted[1]
    what = f"{size[0]}x{size[1]} for {wanted[0]}x{wanted[1]}"
    error = max(across, along) / min(across, along) - 1
    if error > rule.most_aspect_error:
        return f"{what}: the aspect is off by {error:.1%}, at most {rule.most_aspect_error:.1%} is allowed"
    if min(across, along) < rule.least_scale:
        return f"{what}: {min(across, along):.2f} of its side, at least {rule.least_scale:g} is needed"
    return ""


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """`pixels` at (width, height). Pillow's filter is wide enough where it reduces, and computes in integers."""
    return np.array(PILImage.fromarray(pixels).resize(size, PILImage.Resampling.LANCZOS))


def _frame(lq: Pixels, rule: SizeRule) -> _Frame:
    """The least rectangle of the canvas's aspect, to the pixel above, with the input in its middle."""
    height, width = lq.shape[:2]
    canvas = rule.canvas(lq) or (width, height)
    full_width = max(width, -(-height * canvas[0] // canvas[1]))
    full_height = max(height, -(-width * canvas[1] // canvas[0]))
    return _Frame(full_width, full_height, (full_width - width) // 2, (full_height - height) // 2)
