"""Depth and segments from files: units, invalid pixels, crops, refusals; a stereo pair with measured disparity."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from degradations.scene.given import GivenDepth, GivenSegments
from degradations.scene.providers import depth_provider, segments_provider
from degradations.scene.stored import pack_depth, unpack_depth
from degradations.scene.upsampling import upsample_depth


def base(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def npy(plane: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, plane)
    return stream.getvalue()


def encoded(plane: NDArray[Any], suffix: str) -> bytes:
    done, buffer = cv2.imencode(suffix, plane)
    assert done
    return bytes(buffer)


def metres(height: int = 20, width: int = 30) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(1, 40, (height, width)).astype(np.float32)


def z_of(reader: GivenDepth, file_bytes: bytes, file: str, height: int = 20, width: int = 30) -> Any:
    held = unpack_depth(pack_depth(reader.read(file_bytes, file, base(height, width))))
    return upsample_depth(held, base(height, width)).z_m


def test_stereo_pair_round_trip() -> None:
    """Measured disparity of a real photo as depth: z = focal * baseline / (disparity + offset), in metres."""
    left, _, disparity = data.stereo_motorcycle()
    known = np.isfinite(disparity) & (disparity > 0)
    z_m = np.where(known, 994.978 * 0.193001 / (np.where(known, disparity, 1) + 31.086), np.nan)
    reader = GivenDepth("metres", focal_frac=994.978 / left.shape[1])
    held = unpack_depth(pack_depth(reader.read(npy(z_m), "depth.npy", left)))
    depth = upsample_depth(held, left)
    assert depth.metric and depth.confidence > 0.8 and depth.focal_px == pytest.approx(994.978)
    np.testing.assert_allclose(depth.z_m[known], z_m[known], rtol=1e-3)
    assert depth.z_m.min() >= 0.999 * z_m[known].min() and depth.z_m.max() <= 1.001 * z_m[known].max()
    assert held.facts["valid_frac"] == pytest.approx(known.mean(), abs=1e-4)


def test_millimetres_in_16_bit_png_with_holes() -> None:
    codes = (metres() * 1000).astype(np.uint16)
    codes[4:9, 5:11] = 0
    found = z_of(GivenDepth("metres", scale=0.001), encoded(codes, ".png"), "a.png")
    held = codes > 0
    np.testing.assert_allclose(found[held], codes[held] / 1000, rtol=1e-3)
    edge = np.concatenate([codes[3, 4:12], codes[9, 4:12], codes[3:10, 4], codes[3:10, 11]]) / 1000
    off = np.abs(found[4:9, 5:11, None] / edge - 1).min(axis=2)
    assert off.max() < 1e-3, "holes take what is next to them"


@pytest.mark.parametrize("suffix", [".tiff", ".npy"])
def test_float_files(suffix: str) -> None:
    plane = metres()
    file_bytes = npy(plane) if suffix == ".npy" else encoded(plane, suffix)
    np.testing.assert_allclose(z_of(GivenDepth("metres"), file_bytes, f"a{suffix}"), plane, rtol=1e-3)


def test_inverse_depth_and_an_invalid_value() -> None:
    inverse = 1 / metres()
    inverse[0, 0] = 7.0
    found = z_of(GivenDepth("per_metre", invalid_value=7.0), npy(inverse), "a.npy")
    np.testing.assert_allclose(found.ravel()[1:], 1 / inverse.ravel()[1:], rtol=1e-3)
    assert found[0, 0] in (found[0, 1], found[1, 0], found[1, 1])


def test_disparity_of_unknown_scale_fills_the_range() -> None:
    codes = np.random.default_rng(2).integers(0, 256, (20, 30)).astype(np.uint8)
    reader = GivenDepth("disparity", near_m=1.0, far_m=50.0)
    found = z_of(reader, encoded(codes, ".png"), "a.png")
    assert found.min() == pytest.approx(1, rel=1e-3) and found.max() == pytest.approx(50, rel=2e-3)
    inside = (codes > 10) & (codes < 245)
    low, high = np.quantile(codes, (0.02, 0.98))
    expected = 1 / ((codes[inside] - low) / (high - low) * (1 / 1 - 1 / 50) + 1 / 50)
    np.testing.assert_allclose(found[inside], expected, rtol=3e-3)
    assert not reader.read(encoded(codes, ".png"), "a.png", base(20, 30)).metric


def test_the_part_of_a_source_that_a_base_shows() -> None:
    plane = metres(40, 60)
    window = (1 / 6, 0.25, 4 / 6, 0.75)
    held = GivenDepth("metres", focal_frac=0.9).read(npy(plane), "a.npy", base(20, 30), window)
    np.testing.assert_allclose(1 / held.inverse_depth_per_m.astype(np.float64), plane[10:30, 10:40], rtol=1e-3)
    assert held.focal_frac == pytest.approx(1.8)


def test_a_file_larger_than_the_base_is_averaged_as_inverse_depth() -> None:
    plane = metres(40, 60)
    held = GivenDepth("metres").read(npy(plane), "a.npy", base(20, 30))
    mean = (1 / plane).reshape(20, 2, 30, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(held.inverse_depth_per_m.astype(np.float64), mean, rtol=1e-3)


@pytest.mark.parametrize(
    "file_bytes, file, word",
    [
        (b"", "empty.png", "empty.png cannot be decoded"),
        (b"not a picture", "noise.png", "noise.png cannot be decoded"),
        (b"\x93NUMPY", "cut.npy", "cut.npy is not"),
        (npy(np.array([{"a": 1}], dtype=object)), "objects.npy", "objects.npy is not"),
        (npy(np.zeros((20, 30, 3))), "colour.npy", r"colour.npy holds float64 of shape \(20, 30, 3\)"),
        (npy(np.array([["a"]])), "text.npy", "text.npy holds"),
        (npy(np.zeros((20, 30))), "zeros.npy", "zeros.npy has no valid pixel"),
        (npy(np.full((20, 30), np.nan)), "nan.npy", "nan.npy has no valid pixel"),
        (npy(np.ones((30, 20))), "upright.npy", r"upright.npy is 20 x 30 px, 0.667 times .* its source is 1.500 times"),
        (npy(np.ones((0, 30))), "none.npy", "none.npy holds"),
        (b"v/1\x01", "a.exr", "a.exr"),
    ],
)
def test_files_that_do_not_fit_are_named(file_bytes: bytes, file: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        GivenDepth("metres").read(file_bytes, file, base(20, 30))


@pytest.mark.parametrize(
    "arguments",
    [{"unit": "feet"}, {"unit": "metres", "scale": 0.0}, {"unit": "disparity", "near_m": 9.0, "far_m": 3.0}, {}],
)
def test_bad_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unit|scale|near_m"):
        depth_provider("given", arguments)


def test_a_file_cut_as_the_base_is_told_apart_from_one_of_the_whole_source() -> None:
    """A square base of a 4:3 source: a square file looks right and is not."""
    with pytest.raises(ValueError, match=r"a\.npy is 48 x 48 px, 1\.000 times .* its source is 1\.333 times"):
        GivenDepth("metres").read(npy(metres(48, 48)), "a.npy", base(48, 48), (0.125, 0.0, 0.875, 1.0))


@pytest.mark.parametrize(
    "plane", [np.full((20, 30), 7.0), np.where(np.eye(20, 30) > 0, np.nan, -2.5), np.zeros((20, 30))]
)
def test_disparity_without_a_range_is_no_depth(plane: NDArray[np.float64]) -> None:
    reader = GivenDepth("disparity", near_m=1.0, far_m=50.0)
    with pytest.raises(ValueError, match=r"flat\.npy is (7|-2\.5|0) all over: disparity without a range says nothing"):
        reader.read(npy(plane), "flat.npy", base(20, 30))
    wall = GivenDepth("metres").read(npy(np.full((20, 30), 7.0)), "wall.npy", base(20, 30))
    assert wall.metric, "a wall has one depth"


def test_a_bad_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        GivenDepth("metres").read(npy(metres()), "a.npy", base(20, 30), (0.5, 0.0, 0.4, 1.0))


def test_revisions_name_what_values_mean() -> None:
    readers = [
        GivenDepth("metres"),
        GivenDepth("metres", scale=0.001),
        GivenDepth("per_metre"),
        GivenDepth("disparity"),
        GivenDepth("disparity", far_m=50.0),
        GivenDepth("metres", invalid_value=0.0),
        GivenDepth("metres", focal_frac=0.8),
    ]
    assert len({reader.revision for reader in readers}) == len(readers)


def test_given_segments() -> None:
    labels = np.random.default_rng(3).choice([3, 7, 900], (20, 30)).astype(np.uint16)
    reader: Any = segments_provider("given", {})
    held = reader.read(encoded(labels, ".png"), "a.png", base(20, 30))
    assert held.count == 3 and (held.labels == np.searchsorted([3, 7, 900], labels)).all()
    with pytest.raises(ValueError, match=r"a\.npy holds float32"):
        reader.read(npy(metres()), "a.npy", base(20, 30))
    with pytest.raises(ValueError, match="another aspect; the file has to cover the whole of its source"):
        GivenSegments().read(encoded(labels, ".png"), "a.png", base(30, 20))


def test_unknown_providers_and_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="unknown depth provider 'guess'; known: geometric"):
        depth_provider("guess", {})
    with pytest.raises(ValueError, match="unknown segments provider 'guess'; known: slic"):
        segments_provider("guess", {})
    with pytest.raises(ValueError, match=r"provider 'geometric' do not fit: .*near_m"):
        depth_provider("geometric", {"near_m": 2})
