"""The config of a synthesis run. Whatever changes pixels has no default: a config states it."""

import re
from itertools import chain, product
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from degradations.catalog import BY_NAME, LAYERS
from degradations.chains import CHAIN_BY_NAME, check_physical_order
from pairforge.decode import DecodeLimits
from pairforge.records import Frozen
from pipelines.engine import EngineSettings
from pipelines.scene_settings import SceneSettings
from pipelines.stages import Pool, Resources

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
Severity = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "val", "test"]


class GroupRule(Frozen):
    """How sources are grouped; a group never straddles splits."""

    by: Literal["file", "folder", "pattern", "column"]
    pattern: str | None = Field(
        None, description="regular expression whose first group in parentheses names the group, for by: pattern"
    )
    column: str | None = Field(None, description="column of the table, for by: column")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.by == "pattern") != (self.pattern is not None):
            raise ValueError("`pattern` goes with `by: pattern`, and only with it")
        if (self.by == "column") != (self.column is not None):
            raise ValueError("`column` goes with `by: column`, and only with it")
        return self

    @field_validator("pattern")
    @classmethod
    def _names_a_group(cls, value: str | None) -> str | None:
        try:
            if value is not None and re.compile(value).groups == 0:
                raise ValueError("no part in parentheses, whose match would name the group")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


Role = Literal["any", "portrait", "scene"]


class SourceSet(Frozen):
    """What every set of sources states."""

    licence: str = Field(description="SPDX id or name of the licence of these sources")
    attribution: str = ""
    group: GroupRule
    role: Role | Literal["by_faces", "by_column"] = Field(
        "any", description="portraits, scenes, or what a cascade that finds frontal faces says of each"
    )
    role_column: str | None = Field(
        None, description="column of the table that holds portrait or scene, for role: by_column"
    )

    @model_validator(mode="after")
    def _role_is_complete(self) -> Self:
        if (self.role == "by_column") != (self.role_column is not None):
            raise ValueError("`role_column` goes with `role: by_column`, and only with it")
        if self.role_column is not None and "uri_column" not in type(self).model_fields:
            raise ValueError("`role: by_column` needs sources of kind table")
        return self

    @field_validator("group")
    @classmethod
    def _has_columns(cls, value: GroupRule) -> GroupRule:
        if value.by == "column" and "uri_column" not in cls.model_fields:
            raise ValueError("`by: column` needs sources of kind table (allowed here: file, folder, pattern)")
        return value


class FileSources(SourceSet):
    """Photos in a folder (searched recursively), or those that a glob matches; local or s3://."""

    kind: Literal["files"]
    url: str


class PackageSources(SourceSet):
    """Photos that ship inside an installed Python package."""

    kind: Literal["package"]
    package: str
    paths: tuple[str, ...]


class TarSources(SourceSet):
    """Images inside tar files, such as WebDataset shards; `url` is one tar or a glob of tars."""

    kind: Literal["tar"]
    url: str


class TableSources(SourceSet):
    """A parquet table with a column of image URIs, or of encoded image bytes."""

    kind: Literal["table"]
    url: str
    uri_column: str | None = None
    bytes_column: str | None = None

    @model_validator(mode="after")
    def _one_column(self) -> Self:
        if (self.uri_column is None) == (self.bytes_column is None):
            raise ValueError("exactly one of `uri_column` and `bytes_column` is needed")
        return self


class VideoSources(SourceSet):
    """Clips; each record takes a window of consecutive frames, whose middle frame is the base."""

    kind: Literal["video"]
    url: str
    window_frames: int = Field(ge=3, le=99)

    @field_validator("window_frames")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that the window has a middle frame")
        return value


AnySources = Annotated[
    FileSources | PackageSources | TarSources | TableSources | VideoSources, Field(discriminator="kind")
]


class Limits(Frozen):
    """Sources beyond these are refused before their pixels are decoded."""

    max_bytes: int = Field(gt=0)
    max_pixels: int = Field(gt=0)
    max_side: int = Field(gt=0)
    min_side: int = Field(ge=1)

    def for_decoding(self) -> DecodeLimits:
        return DecodeLimits(**self.model_dump())


class SplitFractions(Frozen):
    """Shares of groups held out; the rest is train."""

    val: float = Field(ge=0, lt=1)
    test: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _some_train(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} + test {self.test} leaves nothing to train on (allowed: below 1)")
        return self


class Normalisation(Frozen):
    """How a source becomes a base. Nothing is ever upscaled.

    `resize_crop` shrinks the short side to `size_px` and crops the centre square; `crop_only` crops it
    without resizing, which keeps noise and grain; `keep` leaves the frame as it is. A source with a
    side below `size_px` is refused, or kept at its own size.
    """

    policy: Literal["resize_crop", "crop_only", "keep"]
    size_px: int = Field(1024, ge=16, le=8192)
    small: Literal["refuse", "keep"]


class StepChoice(Frozen):
    """One degradation, or one named chain of them, and the severity interval it is drawn from."""

    type: str
    severity: tuple[Severity, Severity]
    weight: float = Field(1.0, gt=0)

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BY_NAME and value not in CHAIN_BY_NAME:
            chains = ", ".join(sorted(CHAIN_BY_NAME))
            raise ValueError(f"unknown degradation; allowed: {', '.join(sorted(BY_NAME))}; chains: {chains}")
        return value

    @field_validator("severity", mode="before")
    @classmethod
    def _interval(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.severity[0] > self.severity[1]:
            raise ValueError(f"severity [{self.severity[0]}, {self.severity[1]}] runs backwards")
        return self

    @property
    def leaves_it_small(self) -> bool:
        """Whether the image comes out smaller than the base."""
        chain = CHAIN_BY_NAME.get(self.type)
        return chain.stays_small if chain else BY_NAME[self.type].resizes

    @property
    def degradations(self) -> frozenset[str]:
        """Every degradation that this choice can draw."""
        chain = CHAIN_BY_NAME.get(self.type)
        return chain.uses if chain else frozenset({self.type})


class AnyOf(Frozen):
    """One of several degradations, drawn by weight for every record."""

    any_of: tuple[StepChoice, ...] = Field(min_length=1)


def _step_tag(value: Any) -> str:
    return "AnyOf" if isinstance(value, AnyOf) or (isinstance(value, dict) and "any_of" in value) else "StepChoice"


StepSpec = Annotated[
    Annotated[StepChoice, Tag("StepChoice")] | Annotated[AnyOf, Tag("AnyOf")], Discriminator(_step_tag)
]


def _choices(spec: StepChoice | AnyOf) -> tuple[StepChoice, ...]:
    return spec.any_of if isinstance(spec, AnyOf) else (spec,)


class Recipe(Frozen):
    """What to do with every source: a chain of steps, in order, and how many variants of it.

    Steps come in the order in which light and file meet them (scene, glass, optics, sensor, distribution,
    ageing, re-photography) unless `order` says that the chain is meant as it is listed.
    """

    name: Name
    version: int = Field(ge=1)
    category: Name
    variants: int = Field(ge=1, le=10_000)
    order: Literal["physical", "as_listed"] = "physical"
    role: Role = Field("any", description="sources that it serves")
    second_role: Role = Field("any", description="sources that it draws second images from, for reflections")
    chain: tuple[StepSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.order == "as_listed":
            return self
        names = [[c.type for c in _choices(spec) if c.type in BY_NAME] for spec in self.chain]
        for place, later in enumerate(names):
            for pair in product(chain.from_iterable(names[:place]), later):
                try:
                    check_physical_order(pair)
                except ValueError as error:
                    raise ValueError(
                        f"{error}; reorder the chain, or write `order: as_listed` to keep it so"
                    ) from error
        return self

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        small = ""
        for place, spec in enumerate(self.chain):
            for name in sorted({name for choice in _choices(spec) for name in choice.degradations}):
                if place and "frames" in BY_NAME[name].needs:
                    raise ValueError(f"{name} takes a window of frames as it comes: it must be the first step")
                if small and BY_NAME[name].needs - {"patterns"}:
                    needs = ", ".join(sorted(BY_NAME[name].needs - {"patterns"}))
                    raise ValueError(f"{name} needs {needs} at the size of the base, and comes after {small}")
            small = next((choice.type for choice in _choices(spec) if choice.leaves_it_small), small)
        return self

    def choices(self) -> tuple[StepChoice, ...]:
        """Every choice that the chain can draw."""
        return tuple(choice for spec in self.chain for choice in _choices(spec))

    def degradations(self) -> frozenset[str]:
        """Every degradation that the chain can draw."""
        return frozenset(name for choice in self.choices() for name in choice.degradations)

    def needs(self) -> frozenset[str]:
        """All that any of its degradations needs to know of the scene."""
        return frozenset(need for name in self.degradations() for need in BY_NAME[name].needs)

    def banks(self) -> frozenset[str]:
        """The kinds of banks that its degradations take patterns of."""
        return frozenset(BY_NAME[name].bank for name in self.degradations()) - {""}


class ShardSettings(Frozen):
    """How records are packed."""

    records_per_shard: int = Field(ge=1, le=100_000)
    layers: tuple[str, ...] = Field((), description="supervision layers to store, e.g. [transmission]")

    @field_validator("layers")
    @classmethod
    def _known(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        # Where two steps give a layer of one name, the later one's has the number of its step behind.
        unknown = [name for name in values if re.sub(r"_\d+$", "", name) not in LAYERS]
        if unknown:
            raise ValueError(f"unknown layer {unknown[0]!r}; allowed: {', '.join(LAYERS)}")
        return values


class RunSettings(Frozen):
    """How the work is carried out; nothing here changes a byte."""

    workers: int | None = Field(None, ge=1, description="parallel parts; all cores where absent")
    engine: EngineSettings = EngineSettings()
    stages: dict[str, Resources] = Field({}, description="resources of a stage by its name, e.g. {render: {cpus: 1}}")
    pools: dict[str, Pool] = Field({}, description="actors of a stage by its name, e.g. {scene: {max_actors: 4}}")
    max_failed_fraction: float = Field(0.05, ge=0, le=1)
    catalog_batch_rows: int = Field(20_000, ge=1, le=1_000_000)


class BaseConfig(Frozen):
    """What the config of a run states whatever the line: sources, where the shards go, how the work is carried out."""

    name: Name
    output: str = Field(description="folder or s3:// URL of the dataset")
    seed: int = Field(ge=0, le=2**63 - 1)
    sources: tuple[AnySources, ...] = Field(min_length=1)
    split: SplitFractions
    limits: Limits
    base: Normalisation
    shards: ShardSettings
    exclusions: tuple[str, ...] = Field((), description="text files of keys that the snapshot leaves out")
    run: RunSettings = RunSettings()


class RunConfig(BaseConfig):
    """A synthesis run: what every config states, and the recipes."""

    line: Literal["synthesis"] = Field("synthesis", description="clean photos are degraded")
    scene: SceneSettings = SceneSettings()
    banks: dict[str, str] = Field({}, description="folder or s3:// URL of the bank of each kind that recipes use")
    recipes: tuple[Recipe, ...] = Field(min_length=1)

    @field_validator("recipes")
    @classmethod
    def _distinct(cls, recipes: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
        names = [recipe.name for recipe in recipes]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"recipe names must differ; used twice: {', '.join(repeated)}")
        return recipes

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for recipe in self.recipes:
            for need, stated in (("depth", self.scene.depth), ("segments", self.scene.segments)):
                if need in recipe.needs() and stated is None:
                    weight_free = {"depth": "geometric", "segments": "slic"}[need]
                    raise ValueError(
                        f"recipe {recipe.name} needs {need}; say where it comes from, "
                        f"e.g. scene: {{{need}: {{provider: {weight_free}}}}}"
                    )
            missing = sorted(recipe.banks() - self.banks.keys())
            if missing:
                raise ValueError(
                    f"recipe {recipe.name} needs a bank of {missing[0]} patterns: banks: {{{missing[0]}: URL}} "
                    f"(`pairforge bank build {missing[0]}` makes one)"
                )
        return self
