"""Geometric depth: layout, ranges, where it may jump, determinism. Accuracy is not promised and not tested."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data
from sklearn.datasets import load_sample_image

from degradations.scene.depth import GEOMETRIC_PROVIDER, GEOMETRIC_REVISION, GeometricDepth, geometric_depth
from pairforge.image import Pixels

WIDTH, HEIGHT, HORIZON = 320, 240, 110
PHOTOS = ("astronaut", "chelsea", "coffee", "retina", "rocket", "china.jpg", "flower.jpg")
WITH_SKY = ("china.jpg", "rocket")
WITHOUT_SKY = tuple(name for name in PHOTOS if name not in WITH_SKY)


def photo(name: str) -> Any:
    """A colour photo of scikit-image or scikit-learn, its shorter side 384 px at most."""
    pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
    pixels = pixels[0] if name == "stereo_motorcycle" else pixels
    scale = min(1.0, 384 / min(pixels.shape[:2]))
    return np.ascontiguousarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def outdoor(seed: int = 0) -> Pixels:
    """Blue gradient sky, a textured ground, and a dark post that stands before both."""
    rng = np.random.default_rng(seed)
    image = np.empty((HEIGHT, WIDTH, 3), np.float32)
    rise = np.arange(HORIZON, dtype=np.float32).reshape(-1, 1, 1) * (30 / HORIZON)
    image[:HORIZON] = np.array([110, 150, 210], np.float32) + rise
    image[HORIZON:] = np.array([90, 100, 60], np.float32)
    image[HORIZON:] += rng.normal(0, 18, (HEIGHT - HORIZON, WIDTH, 1))
    image[50:180, 150:170] = np.array([60, 40, 30], np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def steps(plane: NDArray[Any]) -> NDArray[Any]:
    """Largest difference of every pixel to its right and lower neighbour, over channels."""
    values = plane.astype(np.float32).reshape(*plane.shape[:2], -1)
    right = np.abs(np.diff(values, axis=1, append=values[:, -1:]))
    down = np.abs(np.diff(values, axis=0, append=values[-1:]))
    largest: NDArray[Any] = np.maximum(right, down).max(axis=2)
    return largest


def rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    ranks = [np.argsort(np.argsort(values.ravel())) for values in (a, b)]
    table: NDArray[np.float64] = np.asarray(np.corrcoef(ranks))
    return float(table[0, 1])


def test_sky_is_found_and_far() -> None:
    depth = geometric_depth(outdoor())
    assert depth.sky[:95, :140].min() > 0.95
    assert depth.sky[HORIZON + 12 :].max() < 0.05
    assert depth.sky[60:100, 156:164].max() < 0.2, "the post is no sky"
    far = depth.z_m[:90, :140]
    assert far.min() > 0.9 * depth.z_m.max()
    assert 50 <= depth.z_m.max() <= 300.5


def test_ground_comes_nearer_downwards() -> None:
    depth = geometric_depth(outdoor())
    rows = np.median(depth.z_m[HORIZON + 10 :, 200:], axis=1)
    smooth = rows[: len(rows) // 10 * 10].reshape(-1, 10).mean(axis=1)
    assert (np.diff(smooth) < 0).all()
    assert 1.5 <= depth.z_m.min() <= 6


def test_layout_without_sky_is_milder() -> None:
    rng = np.random.default_rng(1)
    indoor = rng.integers(20, 120, (200, 260, 3)).astype(np.uint8)
    depth = geometric_depth(indoor)
    assert depth.sky.max() == 0
    assert 5 < depth.z_m.max() <= 12
    assert depth.confidence < geometric_depth(outdoor()).confidence


def test_sky_of_a_real_photo() -> None:
    """Above the lake and the trees; the pagoda on the left, up to its tip, and the trees are none."""
    sky = geometric_depth(photo("china.jpg")).sky
    assert sky[:80, 380:520].min() > 0.95
    assert sky[:20].min() > 0.9
    assert sky[120:300, 130:250].max() < 0.1
    assert sky[340:].max() < 0.05


@pytest.mark.parametrize("name", WITHOUT_SKY)
def test_backdrops_and_bokeh_are_no_sky(name: str) -> None:
    assert geometric_depth(photo(name)).sky.max() == 0


def close_up() -> Pixels:
    """A part of a photo in focus before the same photo, blurred."""
    cat = photo("chelsea")
    image: Pixels = cv2.GaussianBlur(cat, (0, 0), 7)
    image[60:240, 130:330] = cat[60:240, 130:330]
    return image


def corridor(x_frac: float = 0.45, y_frac: float = 0.5, size: tuple[int, int] = (320, 240)) -> Pixels:
    """Planks of floor, ceiling and walls that run to one point, with a dark door there."""
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width - x_frac, (np.arange(height) + 0.5) / height - y_frac)
    plank = np.floor(np.arctan2(y, x) / np.pi * 24).astype(int) % 3
    image = np.array([70.0, 120.0, 165.0])[plank][..., None] * np.array([1.0, 0.9, 0.75])
    image[np.maximum(np.abs(x), np.abs(y)) < 0.09] = 40
    image += np.random.default_rng(6).normal(0, 4, image.shape)
    pixels: Pixels = np.clip(image, 0, 255).astype(np.uint8)
    return pixels


def layout(image: Pixels) -> str:
    return str(GeometricDepth()(image).facts["layout"])


def test_layouts_are_told_apart() -> None:
    expected = {
        "china.jpg": "landscape",
        "rocket": "landscape",
        "flower.jpg": "close_up",
        "chelsea": "close_up",
        "stereo_motorcycle": "indoor",
        "retina": "unknown",
        "coffee": "unknown",
    }
    assert {name: layout(photo(name)) for name in expected} == expected
    assert (layout(outdoor()), layout(close_up()), layout(corridor())) == ("landscape", "close_up", "indoor")


def test_confidence_grows_with_what_is_seen() -> None:
    noise = np.random.default_rng(4).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    confidences = [GeometricDepth()(image).confidence for image in (noise, corridor(), outdoor())]
    assert confidences[0] < confidences[1] < confidences[2] <= 0.35


@pytest.mark.parametrize("x_frac, y_frac", [(0.45, 0.5), (0.35, 0.42), (0.65, 0.6)])
def test_a_corridor_is_farthest_at_its_end(x_frac: float, y_frac: float) -> None:
    held = GeometricDepth()(corridor(x_frac, y_frac))
    found = held.facts["vanishing_point_frac"]
    assert abs(found[0] - x_frac) < 0.05 and abs(found[1] - y_frac) < 0.06
    z_m = geometric_depth(corridor(x_frac, y_frac)).z_m
    y, x = np.unravel_index(int(z_m.argmax()), z_m.shape)
    assert abs(x / 320 - x_frac) < 0.06 and abs(y / 240 - y_frac) < 0.07
    border = np.concatenate([z_m[0], z_m[-1], z_m[:, 0], z_m[:, -1]])
    assert z_m.max() > 3.5 * np.median(border)
    assert steps(np.log(z_m)).max() < 0.1


def test_what_is_in_focus_is_near_and_little_lies_behind() -> None:
    z_m = geometric_depth(close_up()).z_m
    assert np.median(z_m[90:210, 160:300]) < 0.8 * np.median(np.concatenate([z_m[:40].ravel(), z_m[:, :60].ravel()]))
    assert 1.3 < z_m.max() / z_m.min() < 2.3
    sharp = np.random.default_rng(4).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    z_m = geometric_depth(sharp).z_m
    assert 3.0 < z_m.max() / z_m.min() < 4.0


def test_a_sky_of_dusk_is_behind_towers() -> None:
    """Deep blue and hardly brighter than the ground; the rocket and the masts are no sky, nor is the ground. The dark
    bank of clouds below the last light is."""
    held = GeometricDepth()(data.rocket())
    assert held.facts["sky"] == "dusk" and held.confidence < 0.3
    depth = geometric_depth(data.rocket())
    assert depth.sky[40:200, 90:140].min() > 0.9 and depth.sky[40:120, 250:520].min() > 0.9
    assert depth.sky[150:220, 315:330].max() < 0.2, "the rocket"
    assert np.median(depth.sky[345:360], axis=0).mean() > 0.5, "clouds"
    assert depth.sky[415:].max() < 0.1


def test_an_afterglow_is_a_sky() -> None:
    image = outdoor().astype(np.float32)
    share = (np.arange(HORIZON) / HORIZON)[:, None, None]
    image[:HORIZON] = (1 - share) * np.array([110, 60, 70]) + share * np.array([250, 170, 80])
    image[HORIZON:] *= 0.4
    depth = geometric_depth(np.clip(image, 0, 255).astype(np.uint8))
    assert depth.sky[:80, :140].min() > 0.9 and depth.sky[HORIZON + 25 :].max() < 0.1
    upside_down = np.ascontiguousarray(image[:HORIZON][::-1])
    image[:HORIZON] = upside_down
    assert geometric_depth(np.clip(image, 0, 255).astype(np.uint8)).sky.max() == 0, "brighter upwards: a ceiling lamp"


def test_confidence_is_below_the_agreement_with_measured_disparity() -> None:
    """One real scene, so no claim of accuracy: rank correlation of the guess with truth was 0.67."""
    left, _, disparity = data.stereo_motorcycle()
    known = np.isfinite(disparity) & (disparity > 0)
    depth = geometric_depth(left)
    agreement = rank_correlation(1 / depth.z_m[known][::37], disparity[known][::37])
    assert 0.6 < agreement < 0.75
    assert depth.confidence <= 0.15


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("side_px", [96, 384, 900])
def test_depth_jumps_only_where_the_photo_does(name: str, side_px: int) -> None:
    """At least 95 % of steep pixels of log depth lie within 3 px (at 384 px) of an edge of the photo."""
    base = photo(name)
    scale = side_px / min(base.shape[:2])
    base = cv2.resize(base, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    reach = 2 * max(3, round(3 * side_px / 384)) + 1
    near_edge = cv2.dilate(steps(base), np.ones((reach, reach), np.uint8)) > 9 * min(1.0, 384 / side_px)
    steep = steps(np.log(geometric_depth(base).z_m)) > 0.1
    if name in WITH_SKY:
        assert steep.mean() > 0.002, "the outline of the sky is a jump"
    if name == "rocket":
        # Its horizon has no edge in focus, so sky fades there.
        assert (steep & near_edge).sum() >= 0.75 * steep.sum()
        return
    assert (steep & near_edge).sum() >= 0.95 * steep.sum()


@pytest.mark.parametrize("name", PHOTOS)
def test_a_blurred_photo_has_no_jump(name: str) -> None:
    """Without an edge in focus nothing is cut out, whatever colours there are."""
    base = cv2.GaussianBlur(photo(name), (0, 0), 12)
    assert steps(base).max() < 16
    assert steps(np.log(geometric_depth(base).z_m)).max() < 0.01


def cloud(image: Pixels) -> None:
    cv2.circle(image, (60, 50), 14, (250, 250, 250), -1, cv2.LINE_AA)


def wire(image: Pixels) -> None:
    cv2.line(image, (0, 30), (WIDTH, 40), (30, 30, 30), 1, cv2.LINE_AA)


def test_clouds_are_sky() -> None:
    image = outdoor()
    cloud(image)
    assert geometric_depth(image).sky[38:62, 48:72].min() > 0.9


def test_wires_are_not_and_do_not_cut_the_sky() -> None:
    image = outdoor()
    wire(image)
    depth = geometric_depth(image)
    assert depth.sky[35, 160] < 0.2 and depth.z_m[35, 160] < 0.3 * depth.z_m.max()
    assert depth.sky[:25].min() > 0.95 and depth.sky[50:95, :140].min() > 0.95


def test_sky_behind_twigs_is_sky() -> None:
    image = outdoor()
    image[60:HORIZON, 200:300] = (50, 45, 30)
    image[75:90, 230:245] = outdoor()[75:90, 230:245]
    sky = geometric_depth(image).sky
    assert sky[79:86, 234:241].min() > 0.9
    assert sky[75:90, 260:290].max() < 0.1


def test_sky_that_ends_in_mist_fades() -> None:
    """In the right quarter the horizon has no edge: there depth changes slowly, elsewhere it jumps."""
    image = outdoor().astype(np.float32)
    share = np.clip((np.arange(HEIGHT) - 70) / 100, 0, 1)[:, None, None]
    mist = (1 - share) * np.array([135, 175, 232]) + share * np.array([90, 100, 60])
    image[70:170, 250:] = mist[70:170]
    depth = geometric_depth(image.astype(np.uint8))
    jump = steps(np.log(depth.z_m))
    assert depth.sky[:60, :140].min() > 0.95
    assert jump[100:120, 20:130].max(axis=0).min() > 0.2
    assert jump[:, 275:].max() < 0.12


def window(image: Pixels) -> None:
    image[:60, 40:100] = 245


def brown_wall(image: Pixels) -> None:
    image[:110] = (200, 175, 150)


def dull_wall(image: Pixels) -> None:
    image[:110] = (130, 130, 132)


def dark_blue_wall(image: Pixels) -> None:
    image[:110] = (20, 25, 60)


def blue_stripes(image: Pixels) -> None:
    image[:110, 20:30] = image[:110, 100:110] = image[:110, 200:210] = (110, 150, 210)


def blue_window(image: Pixels) -> None:
    image[:100, 40:100] = (110, 150, 210)


def blue_door(image: Pixels) -> None:
    image[:, 60:200] = (110, 150, 210)


def blue_beam(image: Pixels) -> None:
    image[:9] = (110, 150, 210)


def mottled_blue_wall(image: Pixels) -> None:
    mottle = cv2.GaussianBlur(np.random.default_rng(5).normal(0, 320, (110, WIDTH)), (0, 0), 4)
    image[:110] = np.clip(np.array([110, 150, 210]) + mottle[..., None], 0, 255).astype(np.uint8)


IN_DOUBT = (
    window,
    brown_wall,
    dull_wall,
    dark_blue_wall,
    mottled_blue_wall,
    blue_stripes,
    blue_window,
    blue_door,
    blue_beam,
)


@pytest.mark.parametrize("draw", IN_DOUBT)
def test_in_doubt_there_is_no_sky_at_all(draw: Callable[[Pixels], None]) -> None:
    image = np.random.default_rng(3).integers(40, 140, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    draw(image)
    assert geometric_depth(image).sky.max() == 0


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (1, 40), (240, 31), (601, 90)])
def test_any_size(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (*size, 3)).astype(np.uint8)
    for base in (noise, cv2.resize(outdoor(), size[::-1], interpolation=cv2.INTER_AREA)):
        depth = geometric_depth(base)
        for plane in (depth.z_m, depth.sky):
            assert plane.shape == size and plane.dtype == np.float32 and np.isfinite(plane).all()
        assert depth.z_m.min() >= 0.99 and depth.z_m.max() <= 300.5
        assert depth.sky.min() >= 0 and depth.sky.max() <= 1
        assert 0 <= depth.confidence <= 0.4


def test_size_of_the_photo_hardly_matters() -> None:
    depths = [
        geometric_depth(cv2.resize(photo("china.jpg"), size, interpolation=cv2.INTER_AREA))
        for size in ((192, 128), (960, 640))
    ]
    assert np.abs(depths[0].sky - cv2.resize(depths[1].sky, (192, 128), interpolation=cv2.INTER_AREA)).mean() < 0.1
    assert depths[0].z_m.min() == pytest.approx(depths[1].z_m.min(), rel=0.15)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_uniform_frames_give_finite_depth(value: int) -> None:
    depth = geometric_depth(np.full((40, 60, 3), value, np.uint8))
    assert np.isfinite(depth.z_m).all() and depth.z_m.min() > 1


def test_pure_and_honest() -> None:
    base = outdoor()
    before = base.copy()
    first, second = geometric_depth(base), geometric_depth(base)
    assert (base == before).all()
    assert (first.z_m == second.z_m).all() and (first.sky == second.sky).all()
    assert (first.provider, first.revision) == (GEOMETRIC_PROVIDER, GEOMETRIC_REVISION)
    room = np.zeros(base.size + 3, np.uint8)
    shifted = room[3:].reshape(base.shape)
    shifted[...] = base
    assert (geometric_depth(shifted).z_m == first.z_m).all(), "alignment in memory does not matter"
    assert first.metric is False and first.focal_px == WIDTH


def test_smooth_where_the_photo_is_smooth() -> None:
    """No blocks from the small working size: neighbours on even ground differ by little."""
    big = np.ascontiguousarray(np.repeat(np.repeat(outdoor(), 4, axis=0), 4, axis=1))
    log_z = np.log(geometric_depth(big).z_m)
    assert np.quantile(steps(log_z[4 * (HORIZON + 10) :, :580]), 0.99) < 0.02
    assert steps(log_z[: 4 * 90, :560]).max() < 0.02
