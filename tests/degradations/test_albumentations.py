"""The Albumentations bridge: one class a degradation, draws, targets, records, workers."""

import inspect
import io
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

pytest.importorskip("albumentations")

import albumentations as A

from degradations import albumentations as bridge
from degradations.albumentations import DegradationChain, Haze, Jpeg, MotionBlur, Transform, recorded_steps
from degradations.base import Depth, Pattern, Scene
from degradations.catalog import BY_NAME, DEGRADATIONS, replay
from degradations.chains import CHAIN_BY_NAME
from degradations.scene.depth import geometric_depth
from degradations.scene.segments import SlicSegments
from degradations.scene.upsampling import upsample_segments
from pairforge.image import Pixels, to_float, to_pixels
from pairforge.rng import rng_for

HEIGHT, WIDTH = 96, 128
CLASSES: dict[str, type[Transform]] = {
    name: value
    for name, value in vars(bridge).items()
    if inspect.isclass(value) and issubclass(value, Transform) and value not in (Transform, DegradationChain)
}
TARGET = {"target": "image"}
each = pytest.mark.parametrize("name", sorted(CLASSES))


@cache
def photo() -> Pixels:
    """With sky and a lamp."""
    small = cv2.resize(load_sample_image("china.jpg"), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    cv2.circle(small, (40, 70), 3, (255, 255, 255), -1)
    small.setflags(write=False)
    return np.asarray(small)


@cache
def second() -> Pixels:
    return np.asarray(cv2.resize(load_sample_image("flower.jpg"), (160, 100), interpolation=cv2.INTER_AREA))


@cache
def pattern_sets() -> dict[str, tuple[Pattern, ...]]:
    """Three images a kind: a lamp for flares, soft spots for others."""
    sets: dict[str, tuple[Pattern, ...]] = {}
    for kind in sorted({degradation.bank for degradation in DEGRADATIONS} - {""}):
        images = []
        for index in range(3):
            noise = rng_for(index, kind).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            spots = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
            if kind == "flare":
                spots = cv2.circle(np.zeros_like(noise), (60, 40 + index), 20, (90, 80, 60), -1)
                spots = cv2.circle(spots, (60, 40 + index), 4, (255, 255, 255), -1)
            images.append(spots)
        sets[kind] = tuple(images)
    return sets


def scene_keys(name: str) -> dict[str, Any]:
    """What a call must give."""
    keys: dict[str, Any] = {
        "second": second(),
        "frames": [np.roll(photo(), 2 * shift, axis=1) for shift in (-1, 0, 1)],
        "patterns": pattern_sets().get(BY_NAME[name].bank, ()),
    }
    return {key: keys[key] for key in keys if key in BY_NAME[name].needs}


def scene_for(name: str, image: Pixels) -> Scene:
    """The same for `replay`."""
    keys, needs = scene_keys(name), BY_NAME[name].needs
    return Scene(
        depth=geometric_depth(image) if "depth" in needs else None,
        segments=upsample_segments(SlicSegments()(image), image) if "segments" in needs else None,
        second=keys.get("second"),
        frames=tuple(keys.get("frames", ())),
        patterns=pattern_sets(),
    )


def composed(*transforms: Any, seed: int = 0) -> Any:
    return A.Compose(list(transforms), additional_targets=TARGET, seed=seed)


def recorded(*transforms: Any, seed: int = 0) -> Any:
    recording = A.ReplayCompose(list(transforms), additional_targets=TARGET)
    recording.set_random_seed(seed)
    return recording


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(np.array_equal(one[key], other[key]) for key in ("image", "target"))


# The classes


def test_every_degradation_has_exactly_one_class() -> None:
    held = Counter(kind.degradation.name for kind in CLASSES.values())
    for name in BY_NAME:
        title = "".join(part.capitalize() for part in name.split("_"))
        lines = f'class {title}(Transform):\n    degradation = BY_NAME["{name}"]'
        assert held[name] == 1, (
            f"degradations/albumentations.py has {held[name]} classes for {name!r}; wanted:\n{lines}"
        )
        assert CLASSES[title].degradation is BY_NAME[name], f"wanted:\n{lines}"


@each
def test_pixels_target_record_and_storage(name: str) -> None:
    """One draw of each, as a pair: its record, replayed in three ways, and its stored pipeline give the same."""
    degradation, kind, keys = CLASSES[name].degradation, CLASSES[name], scene_keys(CLASSES[name].degradation.name)
    recording = recorded(kind(severity=(0.4, 0.9), p=1.0))
    pair = recording(image=photo(), target=photo(), **keys)
    image, target = pair["image"], pair["target"]
    assert image.dtype == np.uint8 and image.flags.c_contiguous and not np.array_equal(image, photo())
    assert image.shape == photo().shape or degradation.resizes
    assert target.dtype == np.uint8 and target.shape == photo().shape

    stored = json.loads(json.dumps(pair["replay"]))
    ((step,),) = recorded_steps(stored)
    assert step.name == degradation.name and 0.4 <= step.severity <= 0.9
    again = A.ReplayCompose.replay(stored, image=photo(), target=photo(), **keys)
    assert same(again, pair)
    rendered = replay(photo(), [step], scene_for(degradation.name, photo()))
    assert np.array_equal(to_pixels(rendered.image), image) and np.array_equal(to_pixels(rendered.target), target)

    pipeline = composed(kind(severity=(0.4, 0.9), p=1))
    for copy in (A.from_dict(json.loads(json.dumps(A.to_dict(pipeline)))), pickle.loads(pickle.dumps(pipeline))):
        copy.set_random_seed(0)
        assert same(copy(image=photo(), target=photo(), **keys), pair)


@pytest.mark.parametrize("name", sorted(CHAIN_BY_NAME))
def test_chains(name: str) -> None:
    recording = recorded(DegradationChain(name=name, severity=(0.3, 0.9), p=1.0), seed=3)
    pair = recording(image=photo(), target=photo())
    stored = json.loads(json.dumps(pair["replay"]))
    (steps,) = recorded_steps(stored)
    assert {step.name for step in steps} <= CHAIN_BY_NAME[name].uses and pair["target"].shape == photo().shape
    assert same(A.ReplayCompose.replay(stored, image=photo(), target=photo()), pair)
    rendered = replay(photo(), steps, Scene(depth=geometric_depth(photo())))
    assert np.array_equal(to_pixels(rendered.image), pair["image"])


def test_a_pipeline_is_stored_in_files(tmp_path: Path) -> None:
    pipeline = A.Compose([Haze(severity=0.5, p=1), A.OneOf([Jpeg(p=1), DegradationChain("web", (0.1, 0.9))])], seed=4)
    for data_format in ("json", "yaml"):
        A.save(pipeline, tmp_path / "pipeline", data_format=data_format)
        loaded = A.load(tmp_path / "pipeline", data_format=data_format)
        assert A.to_dict(loaded) == A.to_dict(pipeline)
        pipeline.set_random_seed(4)
        loaded.set_random_seed(4)
        assert np.array_equal(loaded(image=photo())["image"], pipeline(image=photo())["image"])
    buffer = io.StringIO()
    A.save(pipeline, buffer)
    assert "degradations.albumentations.Haze" in buffer.getvalue()
    assert repr(Haze(severity=0.5, p=1)) == "Haze(p=1.0, severity=(0.5, 0.5))"


# Draws


def pipeline_of_three(seed: int) -> Any:
    return composed(MotionBlur(p=0.5), Haze(severity=(0.1, 0.9), p=0.5), Jpeg(severity=(0.2, 0.8), p=0.5), seed=seed)


def test_the_seed_of_compose_reproduces_and_calls_differ() -> None:
    one, other, third = pipeline_of_three(1), pipeline_of_three(1), pipeline_of_three(2)
    first = [one(image=photo(), target=photo()) for _ in range(4)]
    assert all(same(pair, other(image=photo(), target=photo())) for pair in first)
    assert not all(same(pair, third(image=photo(), target=photo())) for pair in first)
    assert len({pair["image"].tobytes() for pair in first}) > 1


def test_without_a_seed_draws_differ() -> None:
    assert len({json.dumps(Haze(p=1.0).get_params()) for _ in range(5)}) == 5


def test_transforms_of_one_seed_are_independent() -> None:
    """Albumentations gives them the same generators: keyed by state alone, all would be applied or none."""
    transforms = [MotionBlur(p=0.5), Haze(p=0.5), Jpeg(p=0.5), Jpeg(severity=(0, 0.9), p=0.5)]
    composed(*transforms, seed=5)
    applied = np.array([[t.should_apply() for t in transforms] for _ in range(400)], float)
    severity = np.array([[t.get_params()["steps"][0]["severity"] for t in transforms] for _ in range(400)])
    for drawn in (applied, severity):
        correlation = np.corrcoef(drawn.T) - np.eye(len(transforms))
        assert np.abs(correlation).max() < 0.2
    assert np.all(np.abs(applied.mean(axis=0) - 0.5) < 0.1)


def test_probability_and_forcing() -> None:
    never, always = composed(Jpeg(severity=1.0, p=0.0)), composed(Jpeg(severity=1.0, p=1.0))
    assert all(np.array_equal(never(image=photo())["image"], photo()) for _ in range(5))
    assert not any(np.array_equal(always(image=photo())["image"], photo()) for _ in range(5))
    assert not np.array_equal(Jpeg(severity=1.0, p=0.0)(image=photo(), force_apply=True)["image"], photo())


def test_severity_is_drawn_from_its_range() -> None:
    drawn = [Jpeg(severity=(0.3, 0.7)).get_params()["steps"][0]["severity"] for _ in range(200)]
    assert 0.3 <= min(drawn) < 0.34 and 0.66 < max(drawn) <= 0.7
    assert Jpeg(severity=0.25).get_params()["steps"][0]["severity"] == 0.25


def test_records_keep_what_was_applied_in_a_larger_pipeline() -> None:
    pipeline = recorded(
        A.HorizontalFlip(p=0.5),
        Haze(severity=(0.2, 0.8), p=0.5),
        A.OneOf([MotionBlur(severity=0.6), Jpeg(severity=0.9)], p=1.0),
        A.RandomCrop(64, 80, p=1.0),
    )
    names = set()
    for _ in range(6):
        pair = pipeline(image=photo(), target=photo())
        stored = json.loads(json.dumps(pair["replay"]))
        assert same(A.ReplayCompose.replay(stored, image=photo(), target=photo()), pair)
        names.add(tuple(steps[0].name for steps in recorded_steps(stored)))
    assert len(names) > 1 and all(name[-1] in ("motion_blur", "jpeg") for name in names)


# Targets


def moved_alone(name: str, image: Pixels, record: dict[str, Any]) -> Pixels:
    ((step,),) = recorded_steps(record)
    return to_pixels(replay(image, [step], scene_for(name, image)).target)


@pytest.mark.parametrize("name", ["moire", "reflection", "double_pane_reflection"])
def test_a_target_that_moves_follows_the_image(name: str) -> None:
    kind = CLASSES["".join(part.capitalize() for part in name.split("_"))]
    pipeline = recorded(kind(severity=0.8, p=1.0), seed=1)
    pair = pipeline(image=photo(), target=photo(), **scene_keys(name))
    assert not np.array_equal(pair["target"], photo()) and not np.array_equal(pair["target"], pair["image"])
    assert np.array_equal(pair["target"], moved_alone(name, photo(), pair["replay"]))

    # An earlier transform already degraded the image: the clean side moves in the same way, and stays clean.
    degraded = Jpeg(severity=0.9, p=1.0)(image=photo())["image"]
    parted = pipeline(image=degraded, target=photo(), **scene_keys(name))
    assert np.array_equal(parted["target"], moved_alone(name, photo(), parted["replay"]))
    ((step,),) = recorded_steps(parted["replay"])
    from_degraded = replay(degraded, [step], scene_for(name, degraded))
    assert np.array_equal(parted["image"], to_pixels(from_degraded.image))
    assert not np.array_equal(parted["target"], to_pixels(from_degraded.target))


@pytest.mark.parametrize(("name", "lights"), [("flare", True), ("flare_overlay", True), ("flare_lights", False)])
def test_a_flare_keeps_the_target_or_lights_its_lamp(name: str, lights: bool) -> None:
    kind = CLASSES["".join(part.capitalize() for part in name.split("_"))]
    lit = set()
    for seed in range(8):
        pair = recorded(kind(severity=0.8, p=1.0), seed=seed)(image=photo(), target=photo(), **scene_keys(name))
        assert np.array_equal(pair["target"], moved_alone(name, photo(), pair["replay"]))
        lit.add(not np.array_equal(pair["target"], photo()))
    assert lit == ({False, True} if lights else {False})


@pytest.mark.parametrize("like", ["uint8", "float32"])
def test_a_target_that_stays_is_the_same_object(like: str) -> None:
    image = photo() if like == "uint8" else to_float(photo())
    clean = image.copy()
    for kind in (Jpeg, Haze):
        result = kind(severity=0.7, p=1.0)(image=image, target=clean)
        assert result["target"] is clean and not np.array_equal(result["image"], image)


def test_geometry_moves_both_and_degradations_one() -> None:
    transforms = [A.RandomCrop(64, 80, p=1.0), A.HorizontalFlip(p=1.0), Jpeg(severity=0.3, p=1.0), A.Transpose(p=1.0)]
    pair = composed(*transforms)(image=photo(), target=photo())
    assert pair["image"].shape == pair["target"].shape == (80, 64, 3)
    views = np.lib.stride_tricks.sliding_window_view(photo(), (64, 80, 3))[:, :, 0]
    assert (views.transpose(0, 1, 3, 2, 4)[:, :, ::-1] == pair["target"]).all(axis=(2, 3, 4)).any()
    error = np.abs(pair["image"].astype(float) - pair["target"]).mean()
    assert 0 < error < 12


def test_floats_stay_floats() -> None:
    image = to_float(photo())
    pair = composed(Jpeg(severity=0.5, p=1.0))(image=image, target=image)
    codes = composed(Jpeg(severity=0.5, p=1.0))(image=photo(), target=photo())
    assert pair["image"].dtype == np.float32 and pair["target"].dtype == np.float32
    assert np.array_equal(to_pixels(pair["image"]), codes["image"]) and np.array_equal(pair["target"], image)
    moved = composed(CLASSES["Moire"](severity=0.5, p=1.0))(image=image, target=image)
    assert moved["target"].dtype == np.float32 and not np.array_equal(moved["target"], image)


def test_steps_that_resize_leave_the_target_at_its_size() -> None:
    transforms = (CLASSES["Resize"](severity=0.9, p=1.0), CLASSES["Moire"](severity=0.3, p=1.0))
    pair = recorded(*transforms)(image=photo(), target=photo())
    assert pair["image"].shape[0] < HEIGHT // 2 and pair["target"].shape == photo().shape
    assert not np.array_equal(pair["target"], photo())
    again = A.ReplayCompose.replay(json.loads(json.dumps(pair["replay"])), image=photo(), target=photo())
    assert same(again, pair)


# The scene of a call


def detail(image: Pixels) -> float:
    """Mean step between neighbours, in codes."""
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


@pytest.mark.parametrize("far_m", [60.0, np.inf])
def test_depth_as_object_or_metres_is_used(far_m: float) -> None:
    """The half that is said to be far loses its detail."""
    z_m = np.full((HEIGHT, WIDTH), 3.0, np.float32)
    z_m[:, WIDTH // 2 :] = far_m
    mirrored = np.ascontiguousarray(z_m[:, ::-1])
    maps: list[Any] = [z_m, mirrored.astype(np.float64)]
    if np.isfinite(far_m):
        maps.append(Depth(mirrored, np.zeros_like(mirrored), float(WIDTH), "test", "1", 1.0, True))
    right, *lefts = (
        composed(Haze(severity=0.7, p=1.0))(image=photo(), target=photo(), depth=depth)["image"] for depth in maps
    )
    foot = np.s_[HEIGHT // 2 :]
    sides = [(right, np.s_[70:], np.s_[:58]), *((left, np.s_[:58], np.s_[70:]) for left in lefts)]
    for image, far, near in sides:
        assert detail(image[foot, far]) < 0.1 * detail(photo()[foot, far])
        assert detail(image[foot, near]) > 0.3 * detail(photo()[foot, near])


def test_segments_as_labels_are_used() -> None:
    labels = np.repeat(np.arange(4) * 10, WIDTH // 4)[None].repeat(HEIGHT, axis=0)
    noise = [composed(CLASSES["SegmentNoise"](severity=1.0, p=1.0)) for _ in range(3)]
    guessed, given = noise[0](image=photo())["image"], noise[1](image=photo(), segments=labels)["image"]
    compact = noise[2](image=photo(), segments=(labels // 10).astype(np.uint8))["image"]
    assert not np.array_equal(guessed, given) and np.array_equal(given, compact)


def test_maps_and_frames_follow_crops_and_flips() -> None:
    targets = {"target": "image", "depth": "mask", "segments": "mask", "frames": "images"}
    frames = np.stack(scene_keys("temporal_blur")["frames"])
    z_m = geometric_depth(photo()).z_m
    transforms = [
        A.RandomCrop(64, 80, p=1.0),
        A.HorizontalFlip(p=1.0),
        CLASSES["TemporalBlur"](severity=0.8, p=1.0),
        CLASSES["SegmentNoise"](severity=0.5, p=1.0),
        Haze(severity=0.5, p=1.0),
    ]
    pipeline = A.Compose(transforms, additional_targets=targets, seed=1, strict=True)
    labels = (z_m > np.median(z_m)).astype(np.int32)
    result = pipeline(image=photo(), target=photo(), depth=z_m, segments=labels, frames=frames)
    assert result["depth"].shape == result["segments"].shape == (64, 80) and result["frames"].shape == (3, 64, 80, 3)
    assert np.array_equal(result["frames"][1], result["target"])


def test_guesses_see_the_clean_side() -> None:
    """Depth guessed from an image that is white by now would have no layout."""
    white = np.full_like(photo(), 255)
    haze = Haze(severity=0.8, p=1.0)
    haze.set_random_seed(2)
    seen = haze(image=white, target=photo())
    haze.set_random_seed(2)
    assert np.array_equal(haze(image=white, depth=geometric_depth(photo()))["image"], seen["image"])


def test_patterns_come_as_a_sequence_or_by_kind() -> None:
    one, other = (
        composed(CLASSES["MoirePattern"](severity=0.7, p=1.0))(image=photo(), patterns=held)["image"]
        for held in (pattern_sets()["moire"], pattern_sets())
    )
    assert np.array_equal(one, other)


def test_other_keys_pass_through() -> None:
    mask, label = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.float32), {"text": "a rock"}
    result = composed(Jpeg(p=1.0))(image=photo(), mask=mask, label=label, target=None)
    assert np.array_equal(result["mask"], mask) and result["label"] is label and result["target"] is None


# Errors


@pytest.mark.parametrize("severity", [-0.1, 1.1, (0.5, 0.2), (0.1,), (0.1, 0.2, 0.3), (0, 2), "ab", None, float("nan")])
def test_bad_severities_are_refused(severity: Any) -> None:
    with pytest.raises(ValueError, match=r"severity .* of Haze"):
        Haze(severity=severity)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"p 1\.5 of Haze"):
        Haze(p=1.5)
    with pytest.raises(ValueError, match=r"unknown chain 'rael_esrgan'; known: .*real_esrgan"):
        DegradationChain(name="rael_esrgan")
    with pytest.raises(TypeError, match="sevrity"):
        Haze(sevrity=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"image": [[1]]}, "image must be an array .* not list"),
        ({"image": np.zeros((8, 8, 3))}, "not float64"),
        ({"image": np.zeros((8, 8), np.uint8)}, r"image must be RGB \(H, W, 3\), not \(8, 8\)"),
        ({"image": np.zeros((8, 8, 4), np.uint8)}, "image must be RGB"),
        ({"image": np.zeros((0, 8, 3), np.uint8)}, "image must be RGB"),
        ({"image": np.full((8, 8, 3), 1.2, np.float32)}, r"from 1\.2 to 1\.2; it must lie within 0\.\.1"),
        ({"image": np.full((8, 8, 3), np.nan, np.float32)}, "float32 from nan"),
        ({"target": np.zeros((8, 8, 3))}, "target must be an array"),
        ({"depth": np.ones((8, 8), np.float32)}, r"depth is \(8, 8\), the image \(96, 128\)"),
        ({"depth": np.zeros((HEIGHT, WIDTH), np.float32)}, "metres above 0"),
        ({"depth": np.full((HEIGHT, WIDTH), np.nan, np.float32)}, "metres above 0"),
        ({"depth": np.ones((HEIGHT, WIDTH), np.uint8)}, "metres above 0 .* not uint8"),
        ({"images": [photo()]}, "one `image` a call is degraded, not images"),
    ],
)
def test_bad_calls_are_refused(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Haze: .*{message}"):
        Haze(p=1.0)(**{"image": photo(), **call})


def test_a_call_without_image_is_refused() -> None:
    with pytest.raises(ValueError, match="not none"):
        Haze(p=1.0)(target=photo())


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("Reflection", {}, r"Reflection: second missing.*second=\.\.\."),
        ("TemporalBlur", {}, "TemporalBlur: frames missing"),
        ("TemporalBlur", {"frames": [np.zeros((8, 8, 3), np.uint8)] * 3}, r"a frame is \(8, 8\)"),
        ("TemporalBlur", {"frames": [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 3}, "not the middle frame"),
        ("MoirePattern", {}, "MoirePattern: patterns missing"),
        ("MoirePattern", {"patterns": []}, "this scene has 0"),
        ("MoirePattern", {"patterns": {"rain": []}}, "bank of kind 'moire'"),
        ("Reflection", {"second": np.zeros((8, 8), np.uint8)}, "second must be RGB"),
        ("SegmentNoise", {"segments": np.zeros((8, 8), int)}, r"segments is \(8, 8\)"),
        ("SegmentNoise", {"segments": np.zeros((HEIGHT, WIDTH))}, "whole numbers"),
    ],
)
def test_a_scene_that_lacks_something_is_refused(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLASSES[name](p=1.0)(image=photo(), **keys)


@pytest.mark.parametrize(
    ("name", "key", "need"),
    [
        ("Haze", "detph", "depth"),
        ("Haze", "depth_map", "depth"),
        ("Haze", "Depth", "depth"),
        ("SegmentNoise", "segment", "segments"),
        ("Reflection", "second_image", "second"),
        ("MoirePattern", "pattern", "patterns"),
        ("TemporalBlur", "frame", "frames"),
    ],
)
def test_a_misspelt_key_of_the_scene_is_refused(name: str, key: str, need: str) -> None:
    held = np.ones((HEIGHT, WIDTH), np.float32)
    with pytest.raises(ValueError, match=f"{name}: {need} is not given, but '{key}' is: .* given: image, {key}"):
        A.Compose([CLASSES[name](p=1.0)], seed=1)(image=photo(), **{key: held})


def test_keys_that_only_look_alike_pass_through() -> None:
    held = np.ones((HEIGHT, WIDTH), np.float32)
    result = A.Compose([Haze(p=1.0)], seed=1)(image=photo(), path="photos/depth.jpg", depths_m=3.0, segment=held)
    assert result["segment"] is held and result["path"] == "photos/depth.jpg"
    Haze(p=1.0)(image=photo(), depth=held, depth_of_truth=held)


def test_a_record_of_another_version_is_refused() -> None:
    record = recorded(Jpeg(p=1.0))(image=photo())["replay"]
    text = json.dumps(record).replace(f'"version": {BY_NAME["jpeg"].version}', '"version": 99')
    with pytest.raises(ValueError, match="Jpeg: step 'jpeg' was rendered by version 99"):
        A.ReplayCompose.replay(json.loads(text), image=photo())


# Processes


def in_a_fresh_process(script: str, **environment: str) -> None:
    root = Path(__file__).parents[2]
    kept = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=root,
        env=kept | environment,
    )
    assert done.returncode == 0, done.stderr


def test_importing_asks_no_network_and_changes_one_variable() -> None:
    in_a_fresh_process(
        """
        import os, random, sys, threading
        import cv2, numpy
        import degradations.catalog, degradations.chains, degradations.albumentations_call
        assert not {"albumentations", "torch"} & set(sys.modules)
        before = (random.getstate(), numpy.random.get_state()[1].tolist(), threading.active_count(), os.getcwd(),
                  cv2.getNumThreads(), dict(os.environ))
        events = []
        sys.addaudithook(lambda event, given: events.append(event))
        import degradations.albumentations
        after = (random.getstate(), numpy.random.get_state()[1].tolist(), threading.active_count(), os.getcwd(),
                 cv2.getNumThreads(), dict(os.environ))
        assert not [event for event in events if event.startswith(("socket.", "urllib."))]
        assert before[:-1] == after[:-1]
        assert dict(after[-1].items() - before[-1].items()) == {"NO_ALBUMENTATIONS_UPDATE": "1"}
        """
    )


def example() -> str:
    """The code of the docstring that defines `Pairs` and `loader`."""
    blocks = re.split(r"\n(?=\S)", bridge.__doc__ or "")
    (block,) = [block for block in blocks if "class Pairs" in block]
    return textwrap.dedent(block[block.index("\n") :])


def test_workers_make_the_same_batches_whatever_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Dataset of the docstring, as it stands there, with none and two spawned workers."""
    pytest.importorskip("torch")
    (tmp_path / "pairs_of_the_docstring.py").write_text(example())
    monkeypatch.syspath_prepend(tmp_path)
    import pairs_of_the_docstring as module  # type: ignore[import-not-found]

    crops = [np.ascontiguousarray(photo()[:, shift : shift + 96]) for shift in range(0, 32, 4)]
    transform = A.Compose(
        [A.RandomCrop(64, 64, p=1.0), Haze(p=0.7), CLASSES["Moire"](severity=(0.1, 0.6), p=0.5), Jpeg(p=0.7)],
        additional_targets=TARGET,
    )

    def batches(workers: int, seed: int, epoch: int) -> list[NDArray[Any]]:
        pairs = module.Pairs(crops, transform, seed)
        pairs.epoch = epoch
        return [np.stack([part.numpy() for part in batch]) for batch in module.loader(pairs, workers)]

    alone, spread = batches(0, 7, 0), batches(2, 7, 0)
    assert len(alone) == 2 and alone[0].shape == (2, 4, 3, 64, 64)
    assert all(np.array_equal(one, other) for one, other in zip(alone, spread, strict=True))
    for seed, epoch in itertools.product((7, 8), (0, 1)):
        assert np.array_equal(alone, batches(0, seed, epoch)) == ((seed, epoch) == (7, 0))
