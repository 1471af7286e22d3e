"""The contract that every degradation of the catalog keeps: parameters, pixels, severity, chains."""

import ast
import hashlib
import importlib
import inspect
import itertools
import json
import math
import multiprocessing
import pkgutil
import random
import re
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.datasets import load_sample_image

import degradations
from degradations.banks import GENERATORS
from degradations.base import (
    Degradation,
    Params,
    Pattern,
    PatternParams,
    Rendered,
    Scene,
    Segments,
    replay_with,
    sample_step,
)
from degradations.catalog import BY_NAME, DEGRADATIONS, LAYERS, replay
from degradations.scene.depth import geometric_depth
from pairforge.image import (
    Image,
    Pixels,
    linear_to_srgb,
    pixels_to_linear,
    srgb_to_linear,
    to_float,
    to_pixels,
    use_one_thread,
)
from pairforge.records import Step
from pairforge.rng import Rng, rng_for, rng_from_seed, seed_for

SIZE = (128, 160)
NAMES = tuple(degradation.name for degradation in DEGRADATIONS)
LINEAR = tuple(name for name in NAMES if BY_NAME[name].space == "linear")
SRGB = tuple(name for name in NAMES if BY_NAME[name].space == "srgb")
DRAWS_NO_PIXELS = {
    "haze_pattern",
    "rain_pattern",
    "flare_overlay",
    "reflection",
    "double_pane_reflection",
    "nonlinear_reflection",
    "defocus_blur",
    "gaussian_blur",
    "web_gaussian_blur",
    "web_plateau_blur",
    "web_sinc_blur",
    "web_motion_blur",
    "resize",
    "low_resolution",
    "temporal_blur",
    "low_light_curve",
    "jpeg",
    "webp",
    "avif",
    "recompress",
    "moire",
    "moire_pattern",
    "fade",
    "sepia",
}
"""Their pixels follow from their parameters; all others draw from the pixel seed too."""
MOVES_TARGET = {
    "reflection",
    "double_pane_reflection",
    "nonlinear_reflection",
    "flare",
    "flare_overlay",
    "moire",
    "sepia",
    "old_photo",
}
MOVES_TARGET_AT_TIMES = {"flare", "flare_overlay"}
"""Only draws with a lamp in the frame."""
FIRST_STEP_ONLY = {"temporal_blur"}
RESIZES = {name for name in NAMES if BY_NAME[name].resizes}
SMALLEST = (1, 1)
"""Every degradation renders an image of one pixel."""
UNITS = r"_(px|mm|m|s|m_s|mm_h|deg|deg_s|rad|mrad|k|cyc|codes|frac|ratio|share|count)$"

each = pytest.mark.parametrize("name", NAMES)


@cache
def small_patterns() -> dict[str, tuple[Pattern, ...]]:
    """Three patterns of every kind that can be built, small where that loses nothing."""
    made = {kind: [generator.make(index, 1) for index in range(3)] for kind, generator in GENERATORS.items()}
    for kind in set(made) - {"flare"}:  # the lamps of flares would be lost
        made[kind] = [cv2.resize(pattern, (192, 160), interpolation=cv2.INTER_AREA) for pattern in made[kind]]
    return {kind: tuple(patterns) for kind, patterns in made.items()}


@cache
def scene_of(height: int, width: int) -> tuple[Pixels, Scene]:
    """A photo with sky and a lamp, the middle one of five moving crops; second photo with a lamp; all read-only."""
    large = cv2.resize(load_sample_image("china.jpg"), (width + 24, height + 24), interpolation=cv2.INTER_AREA)
    cv2.circle(large, (12 + 3 * width // 10, 12 + 4 * height // 5), max(2, height // 40), (255, 255, 255), -1)
    frames = [large[12 + 2 * k : 12 + 2 * k + height, 12 + 3 * k : 12 + 3 * k + width].copy() for k in range(-2, 3)]
    second = cv2.resize(load_sample_image("flower.jpg"), (width, height), interpolation=cv2.INTER_AREA)
    cv2.circle(second, (width // 2, height // 2), max(2, height // 40), (255, 255, 255), -1)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 5 // width
    _, labels = np.unique(rows[:, None] * 5 + columns, return_inverse=True)
    labels = labels.reshape(height, width).astype(np.int32)
    scene = Scene(
        depth=geometric_depth(frames[2]),
        segments=Segments(labels, int(labels.max()) + 1, "grid", "1", 1.0),
        second=second,
        frames=tuple(frames),
        patterns=small_patterns(),
    )
    for array in arrays_of(scene):
        array.setflags(write=False)
    return frames[2], scene


def arrays_of(scene: Scene) -> list[NDArray[Any]]:
    planes = [scene.depth.z_m, scene.depth.sky] if scene.depth else []
    labels = [scene.segments.labels] if scene.segments else []
    patterns = [pattern for kind in scene.patterns.values() for pattern in kind]
    return [*planes, *labels, *patterns, *scene.frames, *([] if scene.second is None else [scene.second])]


def step_of(name: str, severity: float = 0.6, seed: int = 0) -> Step:
    return sample_step(BY_NAME[name], severity, rng_for(seed, name, "params"), seed_for(seed, name, "pixels"))


@cache
def rendered(name: str, severity: float = 0.6, seed: int = 0, size: tuple[int, int] = SIZE) -> Rendered:
    base, scene = scene_of(*size)
    return replay(base, [step_of(name, severity, seed)], scene)


def input_of(name: str, size: tuple[int, int] = SIZE) -> Image:
    """The base as the step gets it, read-only."""
    base = scene_of(*size)[0]
    image = pixels_to_linear(base) if name in LINEAR else to_float(base)
    image.setflags(write=False)
    return image


def apply(image: Image, step: Step, scene: Scene) -> Rendered:
    degradation = BY_NAME[step.name]
    result: Rendered = degradation.apply(
        image, degradation.params_type.model_validate(step.params), scene, rng_from_seed(step.seed)
    )
    return result


def digest(rendered: Rendered) -> str:
    layers = [value for _, value in sorted(rendered.layers.items())]
    return hashlib.sha256(b"".join(array.tobytes() for array in (rendered.image, rendered.target, *layers))).hexdigest()


# The catalog


def test_names_are_unique_and_every_degradation_there_is_has_its_line() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(BY_NAME)
    modules = [
        importlib.import_module(found.name) for found in pkgutil.walk_packages(degradations.__path__, "degradations.")
    ]
    defined = {
        f"{module.__name__}.{key}": value
        for module in modules
        for key, value in vars(module).items()
        if isinstance(value, Degradation)
    }
    assert len(defined) >= len(NAMES)
    assert [key for key, value in defined.items() if not any(value is known for known in DEGRADATIONS)] == []


@each
def test_description(name: str) -> None:
    degradation = BY_NAME[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert isinstance(degradation.version, int) and degradation.version >= 1
    assert len(degradation.source.strip()) > 10
    assert degradation.space in ("srgb", "linear")
    assert degradation.needs <= {"depth", "segments", "second", "frames", "patterns"}
    assert (
        ("patterns" in degradation.needs)
        == bool(degradation.bank)
        == issubclass(degradation.params_type, PatternParams)
    )


def documentation(params_type: type[Params]) -> tuple[str, set[str]]:
    """Docstrings of a parameter class and its parents, and the fields that a string of their own follows."""
    text, fields = "", set()
    for parent in params_type.__mro__[: params_type.__mro__.index(Params)]:
        text += parent.__doc__ or ""
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(node, ast.ClassDef)
        for field, comment in itertools.pairwise(node.body):
            if isinstance(field, ast.AnnAssign) and isinstance(comment, ast.Expr):
                fields.add(ast.unparse(field.target))
    return text, fields


@each
def test_names_or_docstrings_tell_units(name: str) -> None:
    params_type = BY_NAME[name].params_type
    text, commented = documentation(params_type)
    for field, info in params_type.model_fields.items():
        if get_origin(info.annotation) is Literal:
            continue
        assert re.search(UNITS, field) or field in commented or re.search(rf"\b{field}\b", text), field


# Parameters


@each
def test_parameters_are_frozen_required_and_exact_in_json(name: str) -> None:
    degradation = BY_NAME[name]
    params_type = degradation.params_type
    assert issubclass(params_type, Params) and params_type.model_fields
    for severity, seed in itertools.product((0.0, 0.37, 1.0), range(5)):
        params = degradation.sample(severity, rng_for(seed, name))
        assert type(params) is params_type
        assert params_type.model_validate_json(params.model_dump_json()) == params
        step = step_of(name, severity, seed)
        assert Step.model_validate_json(step.model_dump_json()) == step
        stored = params_type.model_validate(json.loads(json.dumps(step.params)))
        assert stored.model_dump(mode="json") == step.params
    values = params.model_dump()
    for field, info in params_type.model_fields.items():
        assert info.is_required(), field
        with pytest.raises(ValidationError):
            setattr(params, field, values[field])
        with pytest.raises(ValidationError):
            params_type.model_validate({key: value for key, value in values.items() if key != field})
        if isinstance(values[field], float):
            with pytest.raises(ValidationError):
                params_type.model_validate({**values, field: math.inf})
    with pytest.raises(ValidationError):
        params_type.model_validate({**values, "surprise": 1})


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, tuple | list):
        for element in value:
            yield from numbers_in(element)
    elif isinstance(value, int | float):
        yield value


@each
def test_sampling_never_fails_and_is_finite(name: str) -> None:
    for severity, seed in itertools.product(np.linspace(0, 1, 11).tolist(), range(6)):
        params = BY_NAME[name].sample(severity, rng_for(seed, name, severity))
        for field, value in params.model_dump().items():
            assert all(math.isfinite(number) for number in numbers_in(value)), field


@each
def test_sampling_follows_its_rng_alone(name: str) -> None:
    degradation = BY_NAME[name]
    first = degradation.sample(0.4, rng_for(1, name))
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - the state that a sampler must not use
    cv2.setRNGSeed(3)
    assert degradation.sample(0.4, rng_for(1, name)) == first
    assert degradation.sample(0.4, rng_for(2, name)) != first
    assert degradation.sample(0.5, rng_for(1, name)) != first


@pytest.mark.parametrize("severity", [-0.01, 1.01, math.nan])
def test_severity_outside_0_to_1_is_refused(severity: float) -> None:
    with pytest.raises(ValueError, match=r"severity .* of jpeg"):
        sample_step(BY_NAME["jpeg"], severity, rng_for(0), "0" * 32)


def other_values(annotation: Any, value: Any) -> list[Any]:
    """Values near `value` that its type allows, the first being the one to try first."""
    if get_origin(annotation) is Literal:
        return [option for option in get_args(annotation) if option != value]
    if isinstance(value, bool):
        return [not value]
    return [value + 1, value - 1] if isinstance(value, int) else [value * 1.1, value * 0.9]


def neighbours(params: Params, field: str) -> Iterator[tuple[str, list[Params]]]:
    """For a field, or for each element of it: the parameters that differ there alone."""
    annotation, value = type(params).model_fields[field].annotation, getattr(params, field)
    if not isinstance(value, tuple):
        yield field, _valid(params, [{field: other} for other in other_values(annotation, value)])
        return
    for index, element in enumerate(value):
        others = other_values(get_args(annotation)[0], element)
        changes = [{field: (*value[:index], other, *value[index + 1 :])} for other in others]
        yield f"{field}[{index}]", _valid(params, changes)


def _valid(params: Params, changes: list[dict[str, Any]]) -> list[Params]:
    valid = []
    for change in changes:
        try:
            valid.append(type(params).model_validate({**params.model_dump(), **change}))
        except ValidationError:
            continue
    return valid


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name in NAMES for field in BY_NAME[name].params_type.model_fields]
)
def test_every_recorded_parameter_counts(name: str, field: str) -> None:
    """A change of a tenth, of 1, or to another choice shows in the 8-bit LQ at one of three draws."""
    base, scene = scene_of(*SIZE)
    waiting: set[str] = set()
    for severity, seed in ((0.6, 0), (1.0, 1), (0.8, 2)):
        step = step_of(name, severity, seed)
        before = to_pixels(rendered(name, severity, seed).image)
        seen: set[str] = set()
        params = BY_NAME[name].params_type.model_validate(step.params)
        for label, changed in neighbours(params, field):
            assert changed, f"{label}: no other value is valid"
            other = step.model_copy(update={"params": changed[0].model_dump(mode="json")})
            if not np.array_equal(to_pixels(replay(base, [other], scene).image), before):
                seen.add(label)
            else:
                waiting.add(label)
        waiting -= seen
        if not waiting:
            return
    pytest.fail(f"no pixel depends on {', '.join(sorted(waiting))}")


# Pixels


@each
@pytest.mark.parametrize("size", [SIZE, (16, 16), (33, 50), (200, 31), SMALLEST])
def test_output_is_finite_float32_of_the_same_size_and_inputs_stay(name: str, size: tuple[int, int]) -> None:
    scene = scene_of(*size)[1]
    for severity in (0.0, 1.0) if "flare" not in name else (0.7,):
        image = input_of(name, size)
        before = [array.tobytes() for array in (image, *arrays_of(scene))]
        result = apply(image, step_of(name, severity, 3), scene)
        for array in (result.image, result.target):
            assert array.dtype == np.float32
            assert array.shape == image.shape or (array is result.image and name in RESIZES)
            assert np.isfinite(array).all()
        assert not np.shares_memory(result.image, image)
        assert result.target is image or not np.shares_memory(result.target, image)
        assert (result.target is image) == (name not in MOVES_TARGET) or name in MOVES_TARGET_AT_TIMES
        assert set(result.layers) <= set(LAYERS)
        for layer in result.layers.values():
            assert layer.dtype in (np.uint8, np.uint16) and layer.shape[:2] == size
        json.dumps(dict(result.realised), allow_nan=False)
        assert [array.tobytes() for array in (image, *arrays_of(scene))] == before


@each
def test_a_step_uses_what_it_needs_of_the_scene_and_nothing_else(name: str) -> None:
    base, scene = scene_of(*SIZE)
    needs = BY_NAME[name].needs
    step = step_of(name)
    bare = Scene(
        depth=scene.depth if "depth" in needs else None,
        segments=scene.segments if "segments" in needs else None,
        second=scene.second if "second" in needs else None,
        frames=scene.frames if "frames" in needs else (),
        patterns=scene.patterns if "patterns" in needs else {},
    )
    assert digest(replay(base, [step], bare)) == digest(rendered(name))
    assert scene.depth is not None and scene.segments is not None and scene.second is not None
    frames = list(scene.frames)
    frames[1] = frames[0]
    others: dict[str, Any] = {
        "depth": replace(scene.depth, z_m=scene.depth.z_m * np.float32(1.2) + np.float32(1)),
        "segments": replace(scene.segments, labels=np.ascontiguousarray(scene.segments.labels[:, ::-1])),
        "second": np.ascontiguousarray(scene.second[::-1]),
        "frames": tuple(frames),
        "patterns": {kind: held[::-1] for kind, held in scene.patterns.items()},
    }
    absent: dict[str, dict[str, Any]] = {
        "depth": {"depth": None},
        "segments": {"segments": None},
        "second": {"second": None},
        "frames": {"frames": ()},
        "patterns": {"patterns": {}},
    }
    for need in needs:
        assert digest(replay(base, [step], replace(bare, **{need: others[need]}))) != digest(rendered(name)), need
        with pytest.raises(ValueError, match=rf"'{name}' needs {need}"):
            replay(base, [step], replace(bare, **absent[need]))


@each
def test_pixel_seed_counts_where_pixels_are_drawn(name: str) -> None:
    base, scene = scene_of(*SIZE)
    other = step_of(name).model_copy(update={"seed": seed_for(99, name)})
    same = np.array_equal(to_pixels(replay(base, [other], scene).image), to_pixels(rendered(name).image))
    assert same == (name in DRAWS_NO_PIXELS)


def digests(names: tuple[str, ...]) -> dict[str, str]:
    """Run in a process of its own: other hash seed, other global state, other order."""
    use_one_thread()
    random.seed(11)
    np.random.seed(11)  # noqa: NPY002 - the state that a step must not use
    cv2.setRNGSeed(11)
    base, scene = scene_of(*SIZE)
    return {name: digest(replay(base, [step_of(name)], scene)) for name in names}


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(digests, NAMES[::-1]).result()


@each
def test_another_process_makes_the_same_bytes(name: str, elsewhere: dict[str, str]) -> None:
    assert digest(rendered(name)) == elsewhere[name]


def placed(array: NDArray[Any], offset: int) -> NDArray[Any]:
    """A read-only copy whose first byte lies `offset` bytes after a multiple of 64."""
    buffer = np.empty(array.nbytes + 128, np.uint8)
    copy = np.frombuffer(buffer, array.dtype, array.size, -buffer.ctypes.data % 64 + offset).reshape(array.shape)
    copy[...] = array
    copy.setflags(write=False)
    return copy


@each
def test_bytes_do_not_depend_on_where_arrays_lie(name: str) -> None:
    scene = scene_of(*SIZE)[1]
    assert scene.depth is not None and scene.segments is not None and scene.second is not None
    step, image = step_of(name), input_of(name)
    expected = digest(apply(image, step, scene))
    held = []
    for offset in (4, 8, 16, 36):
        moved = Scene(
            depth=replace(scene.depth, z_m=placed(scene.depth.z_m, offset), sky=placed(scene.depth.sky, offset)),
            segments=replace(scene.segments, labels=placed(scene.segments.labels, offset)),
            second=placed(scene.second, offset + 1),
            frames=tuple(placed(frame, offset + 3) for frame in scene.frames),
            patterns={kind: tuple(placed(p, offset) for p in held) for kind, held in scene.patterns.items()},
        )
        assert digest(apply(placed(image, offset), step, moved)) == expected, offset
        # What stays allocated moves what the next round allocates.
        held.append([np.empty(size + 16 * offset, np.uint8) for size in (999, 5003, 70001, 250007)])


# Severity


def strength(name: str, severity: float) -> float:
    """Mean |LQ - HQ| in codes over eight draws, the same at every severity."""
    differences = []
    for seed in range(8):
        draw = rendered(name, severity, seed)
        image = draw.image
        if name in RESIZES:
            image = cv2.resize(image, draw.target.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        differences.append(np.abs(image - draw.target).mean())
    return float(np.mean(differences)) * 255


@each
def test_severity_0_is_nearly_invisible_and_more_shows_more(name: str) -> None:
    none, little, medium, much = (strength(name, severity) for severity in (0.0, 0.1, 0.5, 0.9))
    assert none < 10
    assert none < 1.02 * little and 1.1 * little < medium and 1.1 * medium < much, (none, little, medium, much)


# Replay and chains


@each
def test_replay_names_the_step_it_cannot_replay(name: str) -> None:
    base, scene = scene_of(*SIZE)
    step = step_of(name)
    field = next(iter(step.params))
    missing = {key: value for key, value in step.params.items() if key != field}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"name": f"{name}_2"}, rf"unknown degradation '{name}_2'"),
        ({"version": step.version + 1}, rf"'{name}' was rendered by version {step.version + 1}"),
        ({"params": missing}, rf"'{name}' do not fit.*{field}"),
        ({"params": {**step.params, field: "never"}}, rf"'{name}' do not fit.*{field}"),
        ({"params": {**step.params, "surprise": 1}}, rf"'{name}' do not fit.*surprise"),
    ]
    for change, message in bad:
        with pytest.raises(ValueError, match=f"(?s){message}"):
            replay(base, [step.model_copy(update=change)], scene)


def test_no_step_gives_the_base() -> None:
    base, scene = scene_of(*SIZE)
    result = replay(base, [], scene)
    assert result.target is result.image and np.array_equal(to_pixels(result.image), base)


@each
def test_target_is_the_base_unless_the_step_moves_it(name: str) -> None:
    base = scene_of(*SIZE)[0]
    kept = {np.array_equal(to_pixels(rendered(name, 0.9, seed).target), base) for seed in range(8)}
    assert kept == ({False, True} if name in MOVES_TARGET_AT_TIMES else {name not in MOVES_TARGET})


NEXT_OF_SPACE = [pair for names in (LINEAR, SRGB) for pair in zip(names, (*names[1:], names[0]), strict=True)]
MIXED = [
    pair
    for firsts, seconds in ((LINEAR, SRGB), (SRGB, LINEAR))
    for place, first in enumerate(firsts)
    for pair in ((first, seconds[(3 * place + turn) % len(seconds)]) for turn in range(3))
]
"""Every step before and after some of the other space: all pairs would be a thousand."""


@pytest.mark.parametrize(("first", "second"), [*MIXED, *NEXT_OF_SPACE])
def test_chain_replays_from_json_and_needs_both_steps(first: str, second: str) -> None:
    base, scene = scene_of(*SIZE)
    steps = [step_of(first), step_of(second)]
    if second in FIRST_STEP_ONLY:
        with pytest.raises(ValueError, match=second):
            replay(base, steps, scene)
        return
    if first in RESIZES and BY_NAME[second].needs - {"patterns"}:
        with pytest.raises(ValueError, match=f"{second}.* needs the image at the size of its base"):
            replay(base, steps, scene)
        return
    result = replay(base, steps, scene)
    again = [Step.model_validate_json(step.model_dump_json()) for step in steps]
    assert digest(replay(base, again, scene)) == digest(result)
    assert list(result.realised) == [f"0_{first}", f"1_{second}"]
    lq, hq = to_pixels(result.image), to_pixels(result.target)
    for alone in (first, second):
        assert not np.array_equal(lq, to_pixels(rendered(alone).image)), f"only {alone} counts"
    movers = [name for name in (first, second) if name in MOVES_TARGET]
    if len(movers) < 2:
        expected = to_pixels(rendered(movers[0]).target) if movers else base
        np.testing.assert_allclose(hq.astype(int), expected, atol=1 if movers else 0)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(sorted(MOVES_TARGET), 2)))
def test_two_steps_that_move_the_target_move_it_in_turn(first: str, second: str) -> None:
    base, scene = scene_of(*SIZE)
    steps = [step_of(first, seed=2), step_of(second, seed=2)]
    target = input_of(first)
    for step in steps:
        target = apply(target, step, scene).target
    assert np.array_equal(replay(base, steps, scene).target, linear_to_srgb(target))


def test_noise_before_moire_leaves_no_noise_in_the_target() -> None:
    base, scene = scene_of(*SIZE)
    steps = [step_of("sensor_noise", 1.0), step_of("moire")]
    result = replay(base, steps, scene)
    assert np.array_equal(result.target, rendered("moire").target)
    assert not np.array_equal(result.image, rendered("moire").image)


def probe(change: Callable[[Image], Image], space: Literal["srgb", "linear"]) -> tuple[Degradation[Any], list[Image]]:
    """A step that changes the image as told and keeps what it got."""
    got: list[Image] = []

    def apply_probe(image: Image, params: Params, scene: Scene, rng: Rng) -> Rendered:
        got.append(image)
        return Rendered(change(image), image)

    return Degradation(
        "probe", 1, Params, lambda severity, rng: Params(), apply_probe, space, frozenset(), "a test"
    ), got


@pytest.mark.parametrize("name", sorted(set(LINEAR) - FIRST_STEP_ONLY))
def test_values_above_1_survive_between_linear_steps(name: str) -> None:
    """A chain that makes the photo four times as bright first is the step applied to that, unclipped."""
    base, scene = scene_of(*SIZE)
    bright, _ = probe(lambda image: image * np.float32(4), "linear")
    light = input_of(name) * np.float32(4)
    assert float(light.max()) > 3
    step = step_of(name)
    direct = apply(light, step, scene).image
    chain = replay_with(base, [sample_step(bright, 0, rng_for(0), "0" * 32), step], scene, {**BY_NAME, "probe": bright})
    assert np.array_equal(chain.image, linear_to_srgb(direct))
    clipped = apply(np.minimum(light, np.float32(1)), step, scene).image
    assert float(np.abs(direct - clipped).max()) > 0.05


@pytest.mark.parametrize("space", ["linear", "srgb"])
def test_only_encoding_clips(space: Literal["srgb", "linear"]) -> None:
    """Two lamps in the frame, so that image and target part, then a step that looks at what it got."""
    base, scene = scene_of(*SIZE)
    lamp = step_of("flare", 0.6, 2)
    steps = [
        lamp.model_copy(update={"params": {**lamp.params, "source_x_frac": x, "source_y_frac": x}}) for x in (0.4, 0.6)
    ]
    light = input_of("flare")
    for step in steps:
        light = apply(light, step, scene).image
    assert float(light.max()) > 100
    last, got = probe(lambda image: image, space)
    replay_with(base, [*steps, sample_step(last, 0, rng_for(0), "0" * 32)], scene, {**BY_NAME, "probe": last})
    assert np.array_equal(got[0], light if space == "linear" else linear_to_srgb(light))


def test_encoding_between_steps_keeps_8_bit_codes() -> None:
    codes = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    assert np.array_equal(to_pixels(linear_to_srgb(srgb_to_linear(to_float(codes)))), codes)
