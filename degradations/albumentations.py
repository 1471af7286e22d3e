"""Every degradation as an Albumentations transform, for pairs that are made while a model trains.

    import albumentations as A
    from degradations.albumentations import Haze, Jpeg

    transform = A.Compose(
        [A.RandomCrop(256, 256), A.HorizontalFlip(), Haze(severity=(0.2, 0.8), p=1.0), Jpeg(severity=0.5, p=0.3)],
        additional_targets={"target": "image"},
        seed=7,
    )
    pair = transform(image=photo, target=photo)

`image` is RGB (H, W, 3): uint8, or float32 in [0, 1], which is rounded to 8-bit codes first, as a run's bases are;
the result has its type. `target`, where given, is what a restorer should return: it comes back untouched unless
the step moves or dims it, or adds to it, and then follows the image. Declare it as an additional target, so that
crops and flips move both; the transforms of this module never degrade it.

Other keys of a call are what a step may need of its scene, at the size of the image where nothing else is said:
`depth`: a `Depth`, or metres (H, W), infinity being as far as it gets; guessed where absent.
`segments`: a `Segments`, or whole numbers (H, W), one a region; SLIC where absent.
`second`: an image of any size, for reflections. `frames`: a clip whose middle frame is `image`, for temporal blur.
`patterns`: images of a bank of the kind that the step takes, or such sequences by kind; taken in order.
With {"depth": "mask", "segments": "mask", "frames": "images"} as additional targets, crops and flips move arrays
among them too. All other keys pass through: masks, boxes and keypoints stay where they are when moiré bends the
image, or `Resize` and some chains make it smaller, so these come last. Where a step needs a key that the call lacks,
a map or list under a name that looks like it (`dept=...`) is refused as misspelt.

Guesses see `target` where it has the size of the image, since earlier transforms may have degraded `image`. Each
transform works on 8-bit codes of its own; the steps of a `DegradationChain` share floats, and light above white.

Seeds: draws come from the generator that `A.Compose(seed=...)` gives to each transform. It gives all of them the
same state, so draws here are keyed by the name and the settings of the transform as well: severities and
decisions of different transforms are independent, those of two that are equal are not. Where data loads in
workers, seed every sample, and the same pairs come whatever the number of workers:

    import torch
    from pairforge.image import use_one_thread
    from pairforge.rng import seed_for

    class Pairs(torch.utils.data.Dataset):
        def __init__(self, photos, transform, seed):
            self.photos, self.transform, self.seed = photos, transform, seed
            self.epoch = 0  # set it before each pass; with persistent workers they keep the first

        def __len__(self):
            return len(self.photos)

        def __getitem__(self, index):
            self.transform.set_random_seed(int(seed_for(self.seed, self.epoch, index), 16))
            pair = self.transform(image=self.photos[index], target=self.photos[index])
            return tuple(torch.from_numpy(pair[key]).permute(2, 0, 1) for key in ("image", "target"))

    def one_thread(worker):
        use_one_thread()

    def loader(pairs, workers):
        return torch.utils.data.DataLoader(
            pairs,
            batch_size=4,
            num_workers=workers,
            worker_init_fn=one_thread,
            multiprocessing_context="spawn" if workers else None,
        )

`A.ReplayCompose` records the steps and replays them bit for bit, also from JSON; `recorded_steps` reads them.
`A.to_dict` and `A.save` store a pipeline; importing this module is what `A.from_dict` and `A.load` need.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from degradations.albumentations_call import SCENE_KEYS, codes, scene_of, typed_as
from degradations.base import Degradation, Depth, Segments
from degradations.catalog import BY_NAME, replay
from degradations.chains import CHAIN_BY_NAME
from degradations.chains_web import Drawn
from pairforge.image import to_pixels
from pairforge.records import Step
from pairforge.rng import Rng, rng_for, seed_for

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for its newest version

import albumentations as A
from albumentations.core.type_definitions import Targets

_OTHER_IMAGES = ("images", "volume", "volumes")
_KNOWN = {*SCENE_KEYS, *_OTHER_IMAGES, "image", "target", "mask", "masks", "mask3d", "masks3d", "bboxes", "keypoints"}


class Transform(A.BasicTransform):  # type: ignore[misc]
    """One degradation; its subclasses name it. `severity` in [0, 1], or a range to draw from; `p` as everywhere.

    Raises ValueError for a severity outside, in a call for pixels or a scene that do not fit, and in a replay for
    steps of another version.
    """

    degradation: ClassVar[Degradation[Any]]
    _targets = Targets.IMAGE

    def __init__(self, severity: float | tuple[float, float] = (0.0, 1.0), p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p {p} of {type(self).__name__} is outside 0..1")
        super().__init__(p=float(p))  # 1 and 1.0 draw alike
        try:
            low, high = (float(severity),) * 2 if isinstance(severity, int | float) else map(float, severity)
        except (TypeError, ValueError) as error:
            raise ValueError(f"severity {severity!r} of {type(self).__name__} is no number or range") from error
        if not 0 <= low <= high <= 1:
            raise ValueError(f"severity {severity} of {type(self).__name__} is no number or range within 0..1")
        self.severity: tuple[float, float] = (low, high)

    def draw(self, severity: float, rng: Rng) -> Sequence[Drawn]:
        """Names and parameters of the steps of one call."""
        return ((self.degradation.name, self.degradation.sample(severity, rng)),)

    def _next_seed(self) -> int:
        """From the generator of this transform, apart from that of others with the same state."""
        drawn = int.from_bytes(self.random_generator.bytes(16), "little")
        return int(seed_for(drawn, *(str(part) for part in self.to_dict_private().values())), 16)

    def should_apply(self, force_apply: bool = False) -> bool:
        return bool(force_apply or rng_for(self._next_seed(), "apply").random() < self.p)

    def get_params(self) -> dict[str, Any]:
        """The steps, as JSON: all that a replay needs besides what a call gets."""
        seed = self._next_seed()
        rng = rng_for(seed, "params")
        severity = float(rng.uniform(*self.severity))
        steps = [
            Step(
                name=name,
                version=BY_NAME[name].version,
                severity=severity,
                params=params.model_dump(mode="json"),
                seed=seed_for(seed, "pixels", place),
            )
            for place, (name, params) in enumerate(self.draw(severity, rng))
        ]
        return {"steps": [step.model_dump(mode="json") for step in steps]}

    def update_transform_params(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return params  # without the shape of the image, which no step depends on

    @property
    def targets(self) -> dict[str, Any]:
        return dict.fromkeys(("image", "target", *SCENE_KEYS), self.apply)

    def apply_with_params(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All keys of the call, with `image` degraded and `target` as a restorer should return it."""
        try:
            return self._degraded([Step.model_validate(step) for step in params["steps"]], kwargs)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from error

    def _degraded(self, steps: Sequence[Step], call: dict[str, Any]) -> dict[str, Any]:
        others = [key for key in _OTHER_IMAGES if call.get(key) is not None]
        if others or "image" not in call:
            raise ValueError(f"one `image` a call is degraded, not {', '.join(others) or 'none'}")
        _refuse_misspelt(steps, call)
        image, target = call["image"], call.get("target")
        base = codes(image, "image")
        clean = base if target is None else codes(target, "target")
        scene = scene_of(steps, base, clean if clean.shape == base.shape else base, call)
        rendered = replay(base, steps, scene)
        result = {**call, "image": typed_as(image, rendered.image)}
        if target is not None and not np.array_equal(to_pixels(rendered.target), base):
            if not np.array_equal(clean, base):  # an earlier transform parted them: the clean side moves alike
                own = scene if clean.shape == base.shape else scene_of(steps, clean, clean, call)
                rendered = replay(clean, steps, own)
            result["target"] = typed_as(target, rendered.target)
        return result


def _refuse_misspelt(steps: Sequence[Step], call: Mapping[str, Any]) -> None:
    """Raises ValueError where a step needs a key that the call lacks, and the call has one that looks like it."""
    needs = {need for step in steps if step.name in BY_NAME for need in BY_NAME[step.name].needs}
    may_be_one = (np.ndarray, list, tuple, dict, Depth, Segments)
    others = [key for key, value in call.items() if key not in _KNOWN and isinstance(value, may_be_one)]
    for need in (key for key in SCENE_KEYS if key in needs and call.get(key) is None):
        like = [key for key in others if key.startswith(need)] or difflib.get_close_matches(need, others, 1, 0.7)
        if like:
            raise ValueError(
                f"{need} is not given, but {like[0]!r} is: what a step needs of its scene is called "
                f"{', '.join(SCENE_KEYS)}; given: {', '.join(call)}"
            )


class DegradationChain(Transform):
    """A named chain of `degradations.chains`: several steps in one transform. Raises ValueError for an unknown one."""

    def __init__(self, name: str, severity: float | tuple[float, float] = (0.0, 1.0), p: float = 0.5) -> None:
        super().__init__(severity=severity, p=p)
        if name not in CHAIN_BY_NAME:
            raise ValueError(f"unknown chain {name!r}; known: {', '.join(sorted(CHAIN_BY_NAME))}")
        self.name = name

    def draw(self, severity: float, rng: Rng) -> Sequence[Drawn]:
        return CHAIN_BY_NAME[self.name].draw(severity, rng)


def recorded_steps(record: Mapping[str, Any]) -> tuple[tuple[Step, ...], ...]:
    """Steps of each transform of this module that an `A.ReplayCompose` applied, in the order of the pipeline.

    `record` is what its result holds under "replay", or the same after JSON. `degradations.catalog.replay` of one
    tuple gives the pixels of one transform; the next starts from these, rounded to 8 bits.
    """
    found = [steps for inner in record.get("transforms", ()) for steps in recorded_steps(inner)]
    params = record.get("params") or {}
    if "steps" in params:
        found.append(tuple(Step.model_validate(step) for step in params["steps"]))
    return tuple(found)


# One class for each degradation of the catalog, in its order.


class Haze(Transform):
    degradation = BY_NAME["haze"]


class GroundFog(Transform):
    degradation = BY_NAME["ground_fog"]


class NightHaze(Transform):
    degradation = BY_NAME["night_haze"]


class HazePattern(Transform):
    degradation = BY_NAME["haze_pattern"]


class Rain(Transform):
    degradation = BY_NAME["rain"]


class RainPattern(Transform):
    degradation = BY_NAME["rain_pattern"]


class Snow(Transform):
    degradation = BY_NAME["snow"]


class RaindropsOnGlass(Transform):
    degradation = BY_NAME["raindrops_on_glass"]


class Reflection(Transform):
    degradation = BY_NAME["reflection"]


class DoublePaneReflection(Transform):
    degradation = BY_NAME["double_pane_reflection"]


class Flare(Transform):
    degradation = BY_NAME["flare"]


class FlareLights(Transform):
    degradation = BY_NAME["flare_lights"]


class FlareOverlay(Transform):
    degradation = BY_NAME["flare_overlay"]


class MotionBlur(Transform):
    degradation = BY_NAME["motion_blur"]


class DefocusBlur(Transform):
    degradation = BY_NAME["defocus_blur"]


class GaussianBlur(Transform):
    degradation = BY_NAME["gaussian_blur"]


class WebGaussianBlur(Transform):
    degradation = BY_NAME["web_gaussian_blur"]


class WebPlateauBlur(Transform):
    degradation = BY_NAME["web_plateau_blur"]


class WebSincBlur(Transform):
    degradation = BY_NAME["web_sinc_blur"]


class WebMotionBlur(Transform):
    degradation = BY_NAME["web_motion_blur"]


class TemporalBlur(Transform):
    degradation = BY_NAME["temporal_blur"]


class LowLight(Transform):
    degradation = BY_NAME["low_light"]


class LowLightCurve(Transform):
    degradation = BY_NAME["low_light_curve"]


class SensorNoise(Transform):
    degradation = BY_NAME["sensor_noise"]


class SegmentNoise(Transform):
    degradation = BY_NAME["segment_noise"]


class BandingNoise(Transform):
    degradation = BY_NAME["banding_noise"]


class GranularNoise(Transform):
    degradation = BY_NAME["granular_noise"]


class ImpulseNoise(Transform):
    degradation = BY_NAME["impulse_noise"]


class GaussianNoise(Transform):
    degradation = BY_NAME["gaussian_noise"]


class PoissonNoise(Transform):
    degradation = BY_NAME["poisson_noise"]


class Resize(Transform):
    degradation = BY_NAME["resize"]


class LowResolution(Transform):
    degradation = BY_NAME["low_resolution"]


class Jpeg(Transform):
    degradation = BY_NAME["jpeg"]


class Webp(Transform):
    degradation = BY_NAME["webp"]


class Avif(Transform):
    degradation = BY_NAME["avif"]


class Recompress(Transform):
    degradation = BY_NAME["recompress"]


class FilmGrain(Transform):
    degradation = BY_NAME["film_grain"]


class Fade(Transform):
    degradation = BY_NAME["fade"]


class Sepia(Transform):
    degradation = BY_NAME["sepia"]


class PhotoDamage(Transform):
    degradation = BY_NAME["photo_damage"]


class OldPhoto(Transform):
    degradation = BY_NAME["old_photo"]


class OldColorPhoto(Transform):
    degradation = BY_NAME["old_color_photo"]


class Moire(Transform):
    degradation = BY_NAME["moire"]


class MoirePattern(Transform):
    degradation = BY_NAME["moire_pattern"]


class NonlinearReflection(Transform):
    degradation = BY_NAME["nonlinear_reflection"]
