"""Classical restorers without weights: pure functions of 8-bit RGB (H, W, 3), any size from 1 x 1 up.

Each undoes one simple model of a damage and knows nothing of content; none invents detail. Neither rounding of their
sums nor the number of threads depends on chance: same pixels in, same pixels out.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from generators.symptoms import grid_phase, noise_sigma
from pairforge.image import Image, Pixels, Plane, linear_to_srgb, pixels_to_linear, to_pixels

_KEPT_HAZE = 0.1
"""Share of the haze that stays: without any, depth is gone and the estimate's errors show (He et al., 2009)."""
_LEAST_TRANSMISSION = 0.15
_MEDIAN_LUMA = 0.3
_TOP_LIGHT = 0.9
_HIGH_QUALITY = 65


def guided_filter(plane: Plane, guide: Plane, radius_px: int, epsilon: float) -> Plane:
    """`plane` smoothed along the edges of `guide`, both (H, W) (He, Sun and Tang, TPAMI 2013, Eq. 5 to 8)."""
    size = (2 * radius_px + 1, 2 * radius_px + 1)

    def mean(values: Plane) -> Plane:
        smoothed: Plane = cv2.blur(values, size, borderType=cv2.BORDER_REFLECT)
        return smoothed

    mean_guide, mean_plane = mean(guide), mean(plane)
    slope = (mean(guide * plane) - mean_guide * mean_plane) / (mean(guide * guide) - mean_guide**2 + epsilon)
    return mean(slope) * guide + mean(mean_plane - slope * mean_guide)


def dehaze(pixels: Pixels) -> Pixels:
    """Koschmieder's law inverted in linear light with the dark channel prior (He, Sun and Tang, CVPR 2009).

    Deviations: the airlight is the pixel of median light among the haziest 0.1 %, held to nearly grey, so that a white
    car is not taken for it; the transmission stays above 0.15. White and grey things without a shadow, snow, and the
    sky come out too dark.
    """
    image_lin = pixels_to_linear(pixels)
    side = max(3, round(max(pixels.shape[:2]) / 40) | 1)
    airlight = _airlight(image_lin, side)
    darkest = _dark_channel(image_lin / airlight, side)
    transmission = 1 - (1 - _KEPT_HAZE) * np.clip(darkest, 0, 1)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32) * np.float32(1 / 255)
    transmission = guided_filter(transmission, grey, max(2, 2 * side), 1e-3)
    transmission = np.clip(transmission, _LEAST_TRANSMISSION, 1)
    clear_lin = (image_lin - airlight) / cv2.merge([transmission] * 3) + airlight
    return to_pixels(linear_to_srgb(clear_lin.astype(np.float32)))


def _dark_channel(image_lin: Image, side_px: int) -> Plane:
    darkest: Plane = cv2.erode(image_lin.min(axis=2), np.ones((side_px, side_px), np.uint8))
    return darkest


def _airlight(image_lin: Image, side_px: int) -> NDArray[np.float32]:
    darkest = _dark_channel(image_lin, side_px)
    count = max(1, darkest.size // 1000)
    haziest = np.argsort(darkest, axis=None, kind="stable")[-count:]
    light = image_lin.reshape(-1, 3)[haziest]
    sums = light.sum(axis=1)
    airlight = light[np.argsort(sums, kind="stable")[count // 2]]
    grey = float(airlight.mean())
    near_grey: NDArray[np.float32] = np.clip(airlight, 0.8 * grey, 1.2 * grey).clip(0.05, 1.0).astype(np.float32)
    return near_grey


def denoise(pixels: Pixels, sigma_codes: float | None = None) -> Pixels:
    """Non-local means of luma (Buades, Coll and Morel, CVPR 2005), guided filter of each chroma plane by itself.

    `sigma_codes` is the noise of luma, None to measure it; that of chroma is always measured. Texture no stronger
    than the noise goes with it.
    """
    luma, *chroma = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb))
    sigma = noise_sigma(luma) if sigma_codes is None else sigma_codes
    if sigma < 0.5:
        return pixels
    clean = cv2.fastNlMeansDenoising(luma, None, float(0.9 * sigma), 5 if sigma < 12 else 7, 17)
    smooth = []
    for plane in chroma:
        values = plane.astype(np.float32) * np.float32(1 / 255)
        smooth.append(_codes(guided_filter(values, values, 4, 3 * (noise_sigma(plane) / 255) ** 2 + 1e-7)))
    return np.asarray(cv2.cvtColor(cv2.merge([clean, *smooth]), cv2.COLOR_YCrCb2RGB), np.uint8)


def _codes(plane: Plane) -> NDArray[np.uint8]:
    return np.asarray(np.clip(plane * np.float32(255) + np.float32(0.5), 0, 255), np.uint8)


def deblock(pixels: Pixels) -> Pixels:
    """JPEG applied again on shifted grids, and the mean of it (Nosratinia, J. VLSI Signal Processing 2001).

    The quality is that at which coding again on the image's own grid changes least. Blocks of pictures that were
    resized after coding are softened only as far as that quality goes.
    """
    if min(pixels.shape[:2]) < 24:  # hardly a whole block on every grid
        return pixels
    down, right = grid_phase(pixels)
    quality = _coded_quality(pixels[down : down + 512, right : right + 512])
    if quality > _HIGH_QUALITY:  # less to win than coding again takes away
        return pixels
    total = np.zeros(pixels.shape, np.float32)
    height, width = pixels.shape[:2]
    shifts = [(y, x) for y in range(0, 8, 2) for x in range(0, 8, 2)]
    for y, x in shifts:
        # A quincunx of 16 shifts relative to the grid that was found.
        top, left = (8 - down + y + x // 2 % 2) % 8, (8 - right + x) % 8
        moved = cv2.copyMakeBorder(pixels, top, 16, left, 16, cv2.BORDER_REFLECT)
        total += _coded_again(moved, quality)[top : top + height, left : left + width]
    return np.asarray(np.clip(total / len(shifts) + np.float32(0.5), 0, 255), np.uint8)


def _coded_again(pixels: Pixels, quality: int) -> Pixels:
    _, stream = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR_RGB), np.uint8)


def _coded_quality(window: Pixels) -> int:
    """Of libjpeg's scale, 4..91: where the change by coding luma again dips deepest below its neighbours."""
    height, width = (side // 8 * 8 for side in window.shape[:2])
    luma = cv2.cvtColor(np.ascontiguousarray(window[:height, :width]), cv2.COLOR_RGB2GRAY)
    qualities = list(range(3, 93))
    changes = [_change_by_coding(luma, quality) + 0.05 for quality in qualities]
    dips = [np.log(changes[i] / min(changes[i - 1], changes[i + 1])) for i in range(1, len(changes) - 1)]
    return qualities[1 + int(np.argmin(dips))]


def _change_by_coding(luma: NDArray[np.uint8], quality: int) -> float:
    _, stream = cv2.imencode(".jpg", luma, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return float(cv2.norm(luma, cv2.imdecode(stream, cv2.IMREAD_GRAYSCALE), cv2.NORM_L2SQR)) / luma.size


def deblur(pixels: Pixels, sigma_px: float, noise_codes: float) -> Pixels:
    """Richardson-Lucy deconvolution of luma with a Gaussian of `sigma_px` (Richardson 1972, Lucy 1974).

    Stopped early, the earlier the more noise there is; changes are damped where they are not above the noise. Motion
    blur and defocus are not Gaussian and get a little crisper at best; edges may ring slightly.
    """
    luma, red, blue = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb))
    observed = luma.astype(np.float32) + np.float32(1.0)
    found = observed.copy()
    for _ in range(int(np.clip(24 / (1 + noise_codes), 4, 20))):
        ratio = observed / np.maximum(_blurred(found, sigma_px), np.float32(0.5))
        found *= _blurred(ratio, sigma_px)
    change = found - observed
    calm = np.float32((1.5 * noise_codes) ** 2)
    power = _blurred(change * change, 1.5)
    found = observed + change * (power / (power + calm + np.float32(0.1)))
    clear = np.clip(found - np.float32(0.5), 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.merge([clear, red, blue]), cv2.COLOR_YCrCb2RGB), np.uint8)


def _blurred(plane: Plane, sigma_px: float) -> Plane:
    blurred: Plane = cv2.GaussianBlur(plane, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
    return blurred


def brighten(pixels: Pixels) -> Pixels:
    """More light, then a curve of code values that lifts the median to 0.3, then what that did to noise is undone.

    All channels of a pixel get one factor, so hues stay. The true brightness of a scene is not known: 0.3 is a guess
    between day and dusk, and a scene that was meant to be dark comes out too bright.
    """
    image_lin = pixels_to_linear(pixels)
    top = float(np.percentile(image_lin.max(axis=2), 99.0))
    gain = np.float32(np.clip(_TOP_LIGHT / max(top, 0.01), 1.0, 12.0))
    raised = np.clip(linear_to_srgb(image_lin * gain), 0, 1)
    luma = cv2.cvtColor(raised, cv2.COLOR_RGB2GRAY)
    median = float(np.clip(np.median(luma), 0.02, 0.98))
    exponent = float(np.clip(np.log(_MEDIAN_LUMA) / np.log(median), 0.4, 1.0))
    if gain == 1.0 and exponent == 1.0:
        return pixels
    # The factor of a pixel follows its surroundings, or the curve would flatten texture and lift single dark pixels;
    # and the strongest channel, or saturated colours would be clipped.
    strongest = np.ascontiguousarray(raised.max(axis=2))
    radius = max(2, max(pixels.shape[:2]) // 60)
    base = np.clip(guided_filter(strongest, strongest, radius, 1e-2), 1 / 64, 1.0)
    factor = cv2.pow(base, exponent - 1.0)
    bright = to_pixels(np.asarray(raised * cv2.merge([factor] * 3), np.float32))
    return denoise(bright)


def descreen(pixels: Pixels) -> Pixels:
    """Moiré: sharp peaks of the spectrum are taken down to their surroundings; coloured bands are smoothed.

    Peaks below 1/40 cycles per pixel are left, as scenes are made of them. Real fine regular patterns, such as
    cloth and fences, are taken for moiré; bands that bend across the image have no peaks and stay.
    """
    luma, *chroma = (p.astype(np.float32) for p in cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)))
    clean = _without_peaks(luma)
    guide = clean * np.float32(1 / 255)
    radius = max(2, min(pixels.shape[:2]) // 40)
    smooth = [guided_filter(_without_peaks(plane) * np.float32(1 / 255), guide, radius, 1e-3) for plane in chroma]
    planes = [_codes(plane) for plane in (guide, *smooth)]
    return np.asarray(cv2.cvtColor(cv2.merge(planes), cv2.COLOR_YCrCb2RGB), np.uint8)


def _without_peaks(plane: Plane) -> Plane:
    height, width = plane.shape
    if min(height, width) < 32:
        return plane
    rows, columns = cv2.getOptimalDFTSize(height + 32), cv2.getOptimalDFTSize(width + 32)
    padded = cv2.copyMakeBorder(plane, 16, rows - height - 16, 16, columns - width - 16, cv2.BORDER_REFLECT)
    window = cv2.createHanningWindow((columns, rows), cv2.CV_32F)
    level = float(padded.mean())
    found = cv2.dft((padded - level) * window, flags=cv2.DFT_COMPLEX_OUTPUT)
    size = cv2.log(cv2.magnitude(found[..., 0], found[..., 1]) + np.float32(1e-3))
    size = np.fft.fftshift(size)
    excess = cv2.GaussianBlur(size, (0, 0), 1.0) - _surroundings(size)
    v, u = np.abs(np.fft.fftshift(np.fft.fftfreq(rows))), np.abs(np.fft.fftshift(np.fft.fftfreq(columns)))
    fine = np.hypot(v[:, None], u[None]) > 1 / 40
    # Edges of a scene make lines through the origin along both axes; moire does not stay on them.
    off_axes = (v[:, None] > 3 / rows) & (u[None] > 3 / columns)
    peaks = ((excess > 2.2) & fine & off_axes).astype(np.float32)
    notch = cv2.GaussianBlur(cv2.dilate(peaks, np.ones((5, 5), np.uint8)), (0, 0), 1.5)
    kept = np.fft.ifftshift(1 - np.clip(notch, 0, 1) * (1 - np.exp(-np.clip(excess, 0, 8))))
    spectrum = cv2.dft(padded - level, flags=cv2.DFT_COMPLEX_OUTPUT)
    spectrum *= cv2.merge([kept.astype(np.float32)] * 2)
    restored = cv2.dft(spectrum, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT) + np.float32(level)
    clean: Plane = restored[16 : 16 + height, 16 : 16 + width].astype(np.float32)
    return clean


def _surroundings(size: Plane) -> Plane:
    """Median of the log spectrum over a neighbourhood, at a quarter of its resolution."""
    small = cv2.resize(size, (max(8, size.shape[1] // 4), max(8, size.shape[0] // 4)), interpolation=cv2.INTER_AREA)
    codes = np.clip((small + 8) * 8, 0, 255).astype(np.uint8)
    around: Plane = cv2.resize(
        cv2.medianBlur(codes, 9).astype(np.float32) / 8 - 8, size.shape[::-1], interpolation=cv2.INTER_LINEAR
    )
    return around
