"""Where depth and segments come from, as a config says it.

A model is pinned by the hash of its folder, so that a plan needs none of its weights: a worker that finds others
refuses to go on.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from degradations.scene.depth import GEOMETRIC_REVISION
from degradations.scene.segments import SlicSegments
from pairforge.config import fingerprint
from pairforge.config_words import Words
from pairforge.records import Frozen

PROVIDED = ("depth", "segments")
"""What providers make; other needs (a second image, frames, patterns) come with the plan."""

Weights = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$"), Words("16 characters of 0-9 and a-f")]
Beside = Annotated[str, Field(pattern=r"^[^{}]*\{stem\}[^{}]*$"), Words("a path in quotes with {stem} in it, once")]
_WHICH = "which provider"


class GeometricDepthFrom(Frozen):
    """A layout guessed from the photo alone; needs no weights, and is no measurement."""

    provider: Literal["geometric"] = Field(description=_WHICH)


class DepthModelFrom(Frozen):
    """DPT / MiDaS or Depth Anything V2 through transformers, from a folder that every worker has.

    A model of relative depth has its nearest and farthest points taken for `near_m` and `far_m`.
    """

    provider: Literal["transformers"] = Field(description=_WHICH)
    model: str = Field(description="folder of the model, at the same path on every worker")
    weights: Weights = Field(description="hash of that folder; a wrong one is refused with the right one named")
    near_m: float = Field(gt=0, description="distance of the nearest point, for models of relative depth")
    far_m: float = Field(gt=0, description="distance of the farthest point, for models of relative depth")
    focal_frac: float = Field(gt=0, description="focal length over image width")


class GivenDepthFrom(Frozen):
    """A depth file beside every source: one plane (PNG of 8 or 16 bit, TIFF, NPY) that covers its whole frame.

    Disparity has no scale of its own: its range is laid over near_m to far_m, and scale is not used.
    """

    provider: Literal["given"] = Field(description=_WHICH)
    beside: Beside = Field(description="its path from the folder of the source, e.g. ../depth/{stem}.png")
    unit: Literal["metres", "per_metre", "disparity"] = Field(
        description="what a value times scale is: depth, 1 / depth, or 1 / depth of unknown scale and shift"
    )
    scale: float = Field(gt=0, description="what values are multiplied by, e.g. 0.001 for millimetres")
    invalid_value: float | None = Field(None, description="value of pixels without depth")
    near_m: float = Field(2.0, gt=0, description="of the nearest point, for unit: disparity")
    far_m: float = Field(100.0, gt=0, description="of the farthest point, for unit: disparity")
    focal_frac: float = Field(gt=0, description="focal length over image width")


class SlicFrom(Frozen):
    """Superpixels merged by colour, by scikit-image; needs no weights, and knows no objects."""

    provider: Literal["slic"] = Field(description=_WHICH)


class SegmentsModelFrom(Frozen):
    """SAM 2 through transformers, from a folder that every worker has."""

    provider: Literal["sam2"] = Field(description=_WHICH)
    model: str = Field(description="folder of the model, at the same path on every worker")
    weights: Weights = Field(description="hash of that folder; a wrong one is refused with the right one named")
    points_per_side: int = Field(16, ge=1, le=64, description="points of a grid that regions are asked for at")


class GivenSegmentsFrom(Frozen):
    """A file of labels beside every source."""

    provider: Literal["given"] = Field(description=_WHICH)
    beside: Beside = Field(description="its path from the folder of the source, e.g. ../labels/{stem}.png")


DepthFrom = Annotated[GeometricDepthFrom | DepthModelFrom | GivenDepthFrom, Field(discriminator="provider")]
SegmentsFrom = Annotated[SlicFrom | SegmentsModelFrom | GivenSegmentsFrom, Field(discriminator="provider")]


class SceneSettings(Frozen):
    """Where a record's knowledge of its scene comes from; what no recipe needs may be left out."""

    depth: DepthFrom | None = Field(None, description="for haze, rain, snow and others that depend on distance")
    segments: SegmentsFrom | None = Field(None, description="for steps that treat regions apart")

    def identity(self, needs: Iterable[str]) -> dict[str, Any]:
        """What determines the maps of these needs: settings, without the place of a model, and revisions of code."""
        stated = {need: getattr(self, need) for need in sorted(set(needs) & set(PROVIDED))}
        return {
            need: {**held.model_dump(mode="json", exclude={"model"}), "revision": _code_revision(held.provider)}
            for need, held in stated.items()
        }

    def address(self, need: str) -> str:
        """A name for the store of maps of one provider with one set of settings."""
        return f"{getattr(self, need).provider}-{fingerprint(self.identity([need]))[:8]}"

    def loads_weights(self, needs: Iterable[str]) -> bool:
        """Whether a provider of these needs is a model."""
        return any(hasattr(getattr(self, need), "model") for need in set(needs) & set(PROVIDED))


def _code_revision(provider: str) -> str:
    """Of providers that are code of ours; a model is known by its weights, and a map once stored stays."""
    if provider == "geometric":
        return GEOMETRIC_REVISION
    return SlicSegments().revision if provider == "slic" else "1"
