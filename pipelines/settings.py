"""The config of a synthesis run. Whatever changes pixels has no default: a config states it."""

import re
from itertools import chain, product
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from degradations.catalog import BY_NAME, DEGRADATIONS, LAYERS
from degradations.chains import CHAIN_BY_NAME, check_physical_order
from pairforge.config_words import MisfitError, Words, near
from pairforge.decode import DecodeLimits
from pairforge.records import Frozen
from pipelines.engine import EngineSettings
from pipelines.scene_settings import SceneSettings
from pipelines.stages import Pool, Resources

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$"), Words("1 to 40 characters of a-z, 0-9 and _")]
Severity = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "val", "test"]
BANK_KINDS = tuple(sorted({degradation.bank for degradation in DEGRADATIONS} - {""}))
"""What degradations take patterns of."""


def _check_pair(model: Frozen, key: str, stated: bool, setting: str) -> None:
    """`key` is given where `setting` is stated, and only there. Raises MisfitError."""
    if stated != (getattr(model, key) is not None):
        raise MisfitError((key,), f"`{key}` goes with `{setting}`{', and is missing' if stated else ' alone'}")


class GroupRule(Frozen):
    """How sources are grouped; a group never straddles splits."""

    by: Literal["file", "folder", "pattern", "column"] = Field(
        description="every file by itself, files of one folder, what a pattern finds in the path, a column's value"
    )
    pattern: str | None = Field(
        None, description="regular expression whose first group in parentheses names the group, for by: pattern"
    )
    column: str | None = Field(None, description="column of the table, for by: column")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _check_pair(self, "pattern", self.by == "pattern", "by: pattern")
        _check_pair(self, "column", self.by == "column", "by: column")
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
RoleOrHow = Literal["any", "portrait", "scene", "by_faces", "by_column"]


class SourceSet(Frozen):
    """What every set of sources states."""

    licence: str = Field(description="SPDX id or name of the licence of these sources")
    attribution: str = Field("", description="whom to name, in every record")
    group: GroupRule = Field(description="what belongs together: a group is in one split")
    role: RoleOrHow = Field(
        "any",
        description="portraits, scenes, or of each: what a cascade that finds frontal faces says, or a column",
    )
    role_column: str | None = Field(
        None, description="column of the table that holds portrait or scene, for role: by_column"
    )

    @model_validator(mode="after")
    def _role_is_complete(self) -> Self:
        _check_pair(self, "role_column", self.role == "by_column", "role: by_column")
        if self.role_column is not None and "uri_column" not in type(self).model_fields:
            raise MisfitError(("role",), "`role: by_column` needs sources of kind table")
        return self

    @field_validator("group")
    @classmethod
    def _has_columns(cls, value: GroupRule) -> GroupRule:
        if value.by == "column" and "uri_column" not in cls.model_fields:
            raise ValueError("`by: column` needs sources of kind table (allowed here: file, folder, pattern)")
        return value


class FileSources(SourceSet):
    """Photos in a folder (searched recursively), or those that a glob matches; local or s3://."""

    kind: Literal["files"] = Field(description="which sources these are")
    url: str = Field(description="folder, glob, or s3:// URL of one")


class PackageSources(SourceSet):
    """Photos that ship inside an installed Python package."""

    kind: Literal["package"] = Field(description="which sources these are")
    package: str = Field(description="name of the package, as Python imports it")
    paths: tuple[str, ...] = Field(description="files inside the package")


class TarSources(SourceSet):
    """Images inside tar files, such as WebDataset shards; `url` is one tar or a glob of tars."""

    kind: Literal["tar"] = Field(description="which sources these are")
    url: str = Field(description="tar file or glob, or s3:// URL of one")


class TableSources(SourceSet):
    """A parquet table with a column of image URIs, or of encoded image bytes."""

    kind: Literal["table"] = Field(description="which sources these are")
    url: str = Field(description="parquet file or glob, or s3:// URL of one")
    uri_column: str | None = Field(None, description="column of paths or URLs of images; this or bytes_column")
    bytes_column: str | None = Field(None, description="column of encoded images; this or uri_column")

    @model_validator(mode="after")
    def _one_column(self) -> Self:
        if (self.uri_column is None) == (self.bytes_column is None):
            raise ValueError("exactly one of `uri_column` and `bytes_column` is needed")
        return self


class VideoSources(SourceSet):
    """Clips; each record takes a window of consecutive frames, whose middle frame is the base."""

    kind: Literal["video"] = Field(description="which sources these are")
    url: str = Field(description="folder, glob, or s3:// URL of one")
    window_frames: Annotated[int, Words("an odd whole number from 3 to 99")] = Field(
        ge=3, le=99, description="frames of a clip that one record uses"
    )

    @field_validator("window_frames")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{value} is even; it must be odd, so that the window has a middle frame")
        return value


AnySources = Annotated[
    FileSources | PackageSources | TarSources | TableSources | VideoSources, Field(discriminator="kind")
]


class Limits(Frozen):
    """Sources beyond these are refused before their pixels are decoded."""

    max_bytes: int = Field(gt=0, description="size of the file")
    max_pixels: int = Field(gt=0, description="width times height")
    max_side: int = Field(gt=0, description="longer side in px")
    min_side: int = Field(ge=1, description="shorter side in px")

    def for_decoding(self) -> DecodeLimits:
        return DecodeLimits(**self.model_dump())


class SplitFractions(Frozen):
    """Shares of groups held out; the rest is train."""

    val: float = Field(ge=0, lt=1, description="share for validation")
    test: float = Field(ge=0, lt=1, description="share for tests")

    @model_validator(mode="after")
    def _some_train(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} + test {self.test} leaves nothing to train on (allowed: less than 1)")
        return self


class Normalisation(Frozen):
    """How a source becomes a base. Nothing is ever upscaled.

    `resize_crop` shrinks the short side to `size_px` and crops the centre square; `crop_only` crops it
    without resizing, which keeps noise and grain; `keep` leaves the frame as it is. A source with a
    side below `size_px` is refused, or kept at its own size.
    """

    policy: Literal["resize_crop", "crop_only", "keep"] = Field(description="how a source is brought to size")
    size_px: int = Field(1024, ge=16, le=8192, description="side of a base; a source with a shorter side is small")
    small: Literal["refuse", "keep"] = Field(description="what becomes of a source with a side below size_px")


class StepChoice(Frozen):
    """One degradation, or one named chain of them, and the severity interval it is drawn from."""

    type: Annotated[str, Words("name of a degradation or a chain, see degradations.md")] = Field(
        description="the degradation, or a chain of them"
    )
    severity: Annotated[tuple[Severity, Severity], Words("a number from 0 to 1, or two of them, [lowest, highest]")] = (
        Field(description="how strong; a record draws from the interval (0: barely visible, 1: strongest)")
    )
    weight: float = Field(1.0, gt=0, description="how often it is drawn, against the others of its any_of")

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BY_NAME and value not in CHAIN_BY_NAME:
            names, chains = sorted(BY_NAME), sorted(CHAIN_BY_NAME)
            raise ValueError(
                f"unknown degradation {value!r}{near(value, [*names, *chains])} "
                f"(allowed: {', '.join(names)}; chains: {', '.join(chains)})"
            )
        return value

    @field_validator("severity", mode="before")
    @classmethod
    def _interval(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.severity[0] > self.severity[1]:
            low, high = self.severity
            raise MisfitError(("severity",), f"[{low}, {high}] runs backwards (allowed: [{high}, {low}])")
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

    any_of: tuple[StepChoice, ...] = Field(min_length=1, description="the degradations, of which one is drawn")


def _step_tag(value: Any) -> str:
    return "AnyOf" if isinstance(value, AnyOf) or (isinstance(value, dict) and "any_of" in value) else "StepChoice"


StepSpec = Annotated[
    Annotated[StepChoice, Tag("StepChoice")] | Annotated[AnyOf, Tag("AnyOf")],
    Discriminator(_step_tag),
    Words("a mapping, {type: NAME, severity: [0.2, 0.8]}, or {any_of: [...]} with a list of such"),
]


def _choices(spec: StepChoice | AnyOf) -> tuple[StepChoice, ...]:
    return spec.any_of if isinstance(spec, AnyOf) else (spec,)


class Recipe(Frozen):
    """What to do with every source: a chain of steps, in order, and how many variants of it.

    Steps come in the order in which light and file meet them (scene, glass, optics, sensor, distribution,
    ageing, re-photography) unless `order` says that the chain is meant as it is listed.
    """

    name: Name = Field(description="its own among all recipes; keys of records begin with it")
    version: int = Field(ge=1, description="told in every record; raise it when the recipe changes")
    category: Name = Field(description="whose shards its records go to; recipes may share one")
    variants: int = Field(ge=1, le=10_000, description="records it makes of every source")
    order: Literal["physical", "as_listed"] = Field(
        "physical", description="physical refuses a chain that light and file could not meet in this order"
    )
    role: Role = Field("any", description="sources that it serves")
    second_role: Role = Field("any", description="sources that it draws second images from, for reflections")
    chain: tuple[StepSpec, ...] = Field(min_length=1, description="the steps, one after the other")

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
                    raise MisfitError(
                        ("chain", place), f"{error}; reorder the chain, or write `order: as_listed` to keep it so"
                    ) from error
        return self

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        small = ""
        for place, spec in enumerate(self.chain):
            for name in sorted({name for choice in _choices(spec) for name in choice.degradations}):
                if place and "frames" in BY_NAME[name].needs:
                    raise MisfitError(
                        ("chain", place), f"{name} takes a window of frames as it comes: it must be the first step"
                    )
                if small and BY_NAME[name].needs - {"patterns"}:
                    needs = ", ".join(sorted(BY_NAME[name].needs - {"patterns"}))
                    raise MisfitError(
                        ("chain", place), f"{name} needs {needs} at the size of the base, and comes after {small}"
                    )
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

    records_per_shard: int = Field(ge=1, le=100_000, description="records of a full shard")
    layers: tuple[str, ...] = Field((), description="supervision layers to store, e.g. [transmission]")

    @field_validator("layers")
    @classmethod
    def _known(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        # Where two steps give a layer of one name, the later one's has the number of its step behind.
        unknown = [name for name in values if re.sub(r"_\d+$", "", name) not in LAYERS]
        if unknown:
            raise ValueError(f"unknown layer {unknown[0]!r}{near(unknown[0], LAYERS)} (allowed: {', '.join(LAYERS)})")
        return values


class RunSettings(Frozen):
    """How the work is carried out; nothing here changes a byte."""

    workers: int | None = Field(None, ge=1, description="parallel parts; all cores where absent")
    engine: EngineSettings = Field(EngineSettings(), description="retries and limits of what is in flight")
    stages: dict[str, Resources] = Field({}, description="resources of a stage by its name, e.g. {render: {cpus: 1}}")
    pools: dict[str, Pool] = Field({}, description="actors of a stage by its name, e.g. {scene: {max_actors: 4}}")
    max_failed_fraction: float = Field(0.05, ge=0, le=1, description="a larger share of failed records stops the run")
    catalog_batch_rows: int = Field(20_000, ge=1, le=1_000_000, description="sources that are cataloged at a time")


class BaseConfig(Frozen):
    """What the config of a run states whatever the line: sources, where the shards go, how the work is carried out."""

    name: Name = Field(description="name of the dataset; snapshots carry it")
    output: str = Field(description="folder or s3:// URL of the dataset")
    seed: int = Field(ge=0, le=2**63 - 1, description="start of all random draws; another one makes another dataset")
    sources: tuple[AnySources, ...] = Field(min_length=1, description="where clean photos and clips come from")
    split: SplitFractions = Field(description="shares of groups held out of training")
    limits: Limits = Field(description="sources beyond these are refused")
    base: Normalisation = Field(description="how a source becomes the image that records start from")
    shards: ShardSettings = Field(description="how records are packed")
    exclusions: tuple[str, ...] = Field((), description="text files of keys that the snapshot leaves out")
    run: RunSettings = Field(RunSettings(), description="how the work is carried out; changes no byte")


class RunConfig(BaseConfig):
    """A synthesis run: what every config states, and the recipes."""

    line: Literal["synthesis"] = Field("synthesis", description="clean photos are degraded")
    scene: SceneSettings = Field(SceneSettings(), description="where depth and segments come from")
    banks: dict[str, str] = Field({}, description="folder or s3:// URL of the bank of each kind that recipes use")
    recipes: tuple[Recipe, ...] = Field(min_length=1, description="what is done with sources")

    @field_validator("recipes")
    @classmethod
    def _distinct(cls, recipes: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
        names = [recipe.name for recipe in recipes]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"recipe names must differ; used twice: {', '.join(repeated)}")
        return recipes

    @field_validator("banks")
    @classmethod
    def _are_banks(cls, banks: dict[str, str]) -> dict[str, str]:
        """A kind that exists and that no recipe uses may stay: its bank is not opened, and configs get shortened."""
        for kind in banks:
            if kind not in BANK_KINDS:
                raise ValueError(f"unknown kind {kind!r}{near(kind, BANK_KINDS)} (allowed: {', '.join(BANK_KINDS)})")
        return banks

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for place, recipe in enumerate(self.recipes):
            for need, stated in (("depth", self.scene.depth), ("segments", self.scene.segments)):
                if need in recipe.needs() and stated is None:
                    weight_free = {"depth": "geometric", "segments": "slic"}[need]
                    raise MisfitError(
                        ("recipes", place),
                        f"recipe {recipe.name} needs {need}; say where it comes from, "
                        f"e.g. scene: {{{need}: {{provider: {weight_free}}}}}",
                    )
            missing = sorted(recipe.banks() - self.banks.keys())
            if missing:
                raise MisfitError(
                    ("recipes", place),
                    f"recipe {recipe.name} needs a bank of {missing[0]} patterns: banks: {{{missing[0]}: URL}} "
                    f"(`pairforge bank build {missing[0]}` makes one)",
                )
        return self


def records_per_source(config: RunConfig) -> dict[str, int]:
    """Records that recipes make of one source, by what it may be: `per photo`, `per portrait photo`, `per clip`.

    Roles are told apart where a recipe asks for one, and only those that a set of sources may have.
    """
    by_role = any(recipe.role != "any" for recipe in config.recipes)
    drawn = {"by_faces": ("portrait", "scene"), "by_column": ("portrait", "scene", "any")}
    counts: dict[str, int] = {}
    for sources in config.sources:
        clips = sources.kind == "video"
        for role in drawn.get(sources.role, (sources.role,)) if by_role else ("any",):
            name = " ".join(["per", *([] if role == "any" else [role]), "clip" if clips else "photo"])
            counts[name] = sum(
                recipe.variants
                for recipe in config.recipes
                if recipe.role in ("any", role) and ("frames" in recipe.needs()) == clips
            )
    return counts
