"""Embedded ICC profiles to sRGB, through LittleCMS. Relative colorimetric, black point compensation.

A profile is never ignored: one that cannot be read, is incomplete, or describes other colours than the
image has, is refused as `bad_icc`, since the meaning of the codes is not known then.
"""

import io
from functools import cache

import numpy as np
from PIL import Image as PILImage
from PIL import ImageCms

from pairforge.records import Fate, SampleError

GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I")
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def profile_name(profile: bytes | None, mode: str) -> str | None:
    """Description of a profile that fits an image of this Pillow mode; None for none.

    RGB profiles also fit grey, which many cameras and editors write. Raises SampleError `bad_icc`, or
    `cmyk_without_profile` for CMYK that no CMYK profile explains.
    """
    space = name = None
    if profile is not None:
        opened = _open(profile).profile
        try:
            space = opened.xcolor_space.strip()
            name = (opened.profile_description or "unnamed").strip()
        except UnicodeDecodeError as error:
            raise SampleError("bad_icc", f"colour space or description: {error}") from error
    if mode == "CMYK" and space != "CMYK":
        detail = f"CMYK with {f'profile {name!r}' if name else 'no profile'}; a CMYK profile is needed"
        raise SampleError("cmyk_without_profile", detail, Fate.REJECTED)
    fits = {None: True, "RGB": True, "CMYK": mode == "CMYK", "GRAY": mode in GREY_MODES}
    if not fits.get(space, False):
        raise SampleError("bad_icc", f"profile {name!r} for {space} colours in an image of mode {mode}")
    return name


def to_srgb(image: PILImage.Image, profile: bytes | None) -> PILImage.Image:
    """`image` is 8-bit L, RGB or CMYK; `profile` fits it. The result is RGB. Raises SampleError `bad_icc`.

    A profile under which no test colour moves by more than one code leaves the pixels as they are: the
    conversion would only add rounding. That covers the many spellings of sRGB.
    """
    if profile is None:
        return image.convert("RGB")
    source = _open(profile)
    mode = _MODE_OF_SPACE[source.profile.xcolor_space.strip()]
    try:
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError as error:
        raise SampleError("bad_icc", f"no conversion to sRGB: {error}") from error
    if mode != "CMYK" and _keeps_colours(transform, mode):
        return image.convert("RGB")
    return transform.apply(image.convert(mode))


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except OSError as error:
        raise SampleError("bad_icc", f"{len(profile)} bytes: {error}") from error


@cache
def _test_colours(mode: str) -> PILImage.Image:
    """All greys and, in RGB, a 17 x 17 x 17 grid."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, -1)
    if mode == "L":
        return PILImage.fromarray(ramp)
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    return PILImage.fromarray(np.concatenate([grid, ramp[..., None].repeat(3, axis=2)], axis=1))


def _keeps_colours(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    before = _test_colours(mode)
    after = np.asarray(transform.apply(before), np.int16)
    return int(np.abs(after - np.asarray(before.convert("RGB"), np.int16)).max()) <= 1
