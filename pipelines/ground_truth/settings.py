"""The config of a ground-truth run: how sources are screened and selected, who makes and judges their clean side.

A model on this machine is pinned by the hash of its files, a service by its name; so a plan needs neither.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from filters.clip import PROMPTS as CLIP_PROMPTS
from filters.clip import PromptSets
from filters.rules import LicenceRule, Rule
from filters.statistics import MEASURES
from filters.vlm import PROMPTS as PRESENCE_PROMPTS
from filters.vlm import PresencePrompts
from generators.loop import LoopPolicy
from generators.prompts import CATEGORIES, Preset, Strategy
from generators.repeat import MAX_ROUNDS
from generators.returned import SizeRule
from pairforge.config import load_config
from pairforge.config_words import Words, near
from pairforge.limits import Limits, Patience
from pairforge.records import Frozen
from pairforge.remote_base import Endpoint
from pipelines.settings import BaseConfig, Name, Normalisation
from qc.alignment import AlignmentLimits
from qc.gain import GainRule
from qc.verdict import VerdictRule

ScorerName = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9_]{0,39}$", description="its own among all steps; names of its values begin with it"),
    Words("1 to 40 characters of a-z, 0-9 and _, the first a letter"),
]
Weights = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$"), Words("16 characters of 0-9 and a-f")]
_WEIGHTS = "hash of its files; a wrong one is refused with the right one named"
_DEVICE = "what it computes on, as torch names it: cpu, cuda, cuda:1"
_SCORER = "what measures"
_SERVICE = "name of the service that is asked"


class Service(Endpoint):
    """One remote model: where it is served, what it costs, how fast and how long it is asked."""

    limits: Limits = Field(Limits(), description="how fast it is asked")
    patience: Patience = Field(Patience(), description="how long one question is asked again")


class Screen(Frozen):
    """One step of screening: what measures, and the rules that a source must pass to go on to the next step.

    Values are known by `name.measure`, and may be used by rules of this step and of all that come later.
    """

    name: ScorerName
    rules: tuple[Rule, ...] = Field((), description="tried in their order; the first that fails refuses the source")

    def identity(self) -> dict[str, Any]:
        """What determines the values, without the place of a model and without the rules."""
        return self.model_dump(mode="json", exclude={"rules", "model"})

    @property
    def service_name(self) -> str | None:
        return None

    def measures(self) -> frozenset[str] | None:
        """Names of what it measures; None where only the model knows."""
        return None


class StatisticsScreen(Screen):
    """Weight-free measurements (`filters.statistics.MEASURES`) and the perceptual hash that duplicates are found by."""

    scorer: Literal["statistics"] = Field(description=_SCORER)
    name: ScorerName = "statistics"

    def measures(self) -> frozenset[str]:
        return frozenset(MEASURES)


class ModelScreen(Screen):
    model: str = Field(description="folder or file of the model, at the same path on every worker")
    weights: Weights = Field(description=_WEIGHTS)
    device: str = Field("cpu", description=_DEVICE)

    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in super().identity().items() if name != "device"}


class ClipScreen(ModelScreen):
    """Zero-shot scores by category and an embedding, through open_clip."""

    scorer: Literal["clip"] = Field(description=_SCORER)
    name: ScorerName = "clip"
    prompts: str | None = Field(None, description="file of texts by category; ours where absent")
    model_name: str | None = Field(None, description="architecture, where `model` is a bare checkpoint")

    def measures(self) -> frozenset[str]:
        return frozenset(load_config(Path(self.prompts or CLIP_PROMPTS), PromptSets).categories)


class WatermarkScreen(ModelScreen):
    """Watermarks, logos and captions, through OWLv2."""

    scorer: Literal["watermark"] = Field(description=_SCORER)
    name: ScorerName = "watermark"
    least_score: float = Field(0.2, gt=0, lt=1, description="of a find that counts as area")

    def measures(self) -> frozenset[str]:
        return frozenset(("watermark", "watermark_area"))


class ClassifierScreen(ModelScreen):
    """Labels of a timm model of your own."""

    scorer: Literal["classifier"] = Field(description=_SCORER)
    name: ScorerName = "classifier"
    labels: tuple[str, ...] = Field((), description="names of the outputs in order; those of the model where empty")
    model_name: str | None = Field(None, description="architecture, where `model` is a bare checkpoint")
    several: bool = Field(False, description="labels may coincide: a logistic each, else a softmax")

    def measures(self) -> frozenset[str] | None:
        return frozenset(self.labels) or None


class VlmScreen(Screen):
    """Presence of every degradation and cleanliness, as a language model sees them."""

    scorer: Literal["vlm"] = Field(description=_SCORER)
    name: ScorerName = "vlm"
    service: str = Field(description=_SERVICE)
    asks: int = Field(2, ge=1, le=10, description="how often one source is asked about while no answer can be read")

    @property
    def service_name(self) -> str | None:
        return self.service

    def measures(self) -> frozenset[str]:
        return frozenset(load_config(PRESENCE_PROMPTS, PresencePrompts).ranges)


AnyScreen = Annotated[
    StatisticsScreen | ClipScreen | WatermarkScreen | ClassifierScreen | VlmScreen, Field(discriminator="scorer")
]


class Duplicates(Frozen):
    """When two sources are one picture: the later one in the catalog is refused."""

    most_bits: int | None = Field(6, ge=0, le=15, description="of 64 of the perceptual hash; null compares none")
    least_cosine: float | None = Field(None, gt=0, le=1, description="of CLIP embeddings; null compares none")


class HeldOut(Frozen):
    """A folder of a benchmark, whose pictures (or near copies) must not be trained on."""

    name: Name = Field(description="what it is called where a source is refused for it")
    url: str = Field(description="folder, glob, or s3:// URL of one")


class Levels(Frozen):
    """Sampling by quality: `edges` cut the values of `measure` into levels, taken in the proportion of `shares`."""

    measure: str = Field(description="name of the number, e.g. statistics.sharpness")
    edges: tuple[float, ...] = Field(min_length=1, description="rising; a number on an edge is of the level above it")
    shares: tuple[int, ...] = Field(min_length=2, description="of the levels from the lowest values to the highest")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.shares) != len(self.edges) + 1:
            raise ValueError(
                f"{len(self.edges)} edges make {len(self.edges) + 1} levels, {len(self.shares)} shares given"
            )
        if list(self.edges) != sorted(set(self.edges)) or min(self.shares) < 0 or not any(self.shares):
            raise ValueError(f"edges {self.edges} must rise, shares {self.shares} be 0 or more, not all 0")
        return self


class Category(Frozen):
    """What belongs to a category: sources that pass all rules of `when`; of several, that with the highest `score`."""

    name: Name = Field(description=f"one of {', '.join(CATEGORIES)}")
    when: tuple[Rule, ...] = Field((), description="rules that its sources pass; all sources where empty")
    score: str | None = Field(None, description="measure; a category without one is as good as a score of 0")
    quota: int | None = Field(None, ge=1, description="most sources of it")
    levels: Levels | None = Field(None, description="sampling by quality; none where absent")
    base: Normalisation | None = Field(None, description="how its sources are cut; as the config's base where absent")

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in CATEGORIES:
            raise ValueError(f"no prompts for this category; allowed: {', '.join(CATEGORIES)}")
        return value


class Select(Frozen):
    """Who of the screened goes on, decided over the whole catalog."""

    licences: LicenceRule | None = Field(None, description="licences that pass; all where absent")
    duplicates: Duplicates = Field(Duplicates(), description="when two sources are one picture")
    held_out: tuple[HeldOut, ...] = Field((), description="benchmarks whose pictures are refused")
    held_out_bits: int = Field(8, ge=0, le=15, description="a source this near to a held-out picture is refused")
    held_out_cosine: float | None = Field(
        None, gt=0, le=1, description="the same of CLIP embeddings; they are not compared where absent"
    )
    categories: tuple[Category, ...] = Field(
        min_length=1, description="where sources go; of equal scores the first listed, and what fits none is refused"
    )

    @field_validator("categories")
    @classmethod
    def _distinct(cls, categories: tuple[Category, ...]) -> tuple[Category, ...]:
        names = [category.name for category in categories]
        if len(set(names)) < len(names):
            raise ValueError(f"categories must differ; given: {', '.join(names)}")
        return categories


class ClassicalFrom(Frozen):
    """Weight-free restorers: they make demo and tests real, not good data."""

    backend: Literal["classical"] = Field(description="who makes images")


class ServiceFrom(Frozen):
    """An image model behind a service."""

    backend: Literal["service"] = Field(description="who makes images")
    service: str = Field(description=_SERVICE)
    size: SizeRule = Field(SizeRule(), description="sizes that the model makes, and those of answers that are taken")


class DiffusersFrom(Frozen):
    """An edit pipeline of the diffusers library, on the device of the make stage."""

    backend: Literal["diffusers"] = Field(description="who makes images")
    model: str = Field(description="folder of the pipeline, at the same path on every worker")
    weights: Weights = Field(description=_WEIGHTS)
    device: str = Field("cuda", description=_DEVICE)
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="type of its numbers")
    offload: bool = Field(False, description="keep only what computes in the memory of the device")
    options: Mapping[str, Any] = Field({}, description="of the kind of pipeline, see generators.diffusion")


AnyGenerator = Annotated[ClassicalFrom | ServiceFrom | DiffusersFrom, Field(discriminator="backend")]


class Repeat(Frozen):
    """Restore, assess, repeat around the generator: a pairwise comparison of before and after ends the rounds."""

    service: str | None = Field(
        None, description="vision-language model that assesses and compares; measured values where absent"
    )
    max_rounds: int = Field(MAX_ROUNDS, ge=1, le=16, description="restorations of one attempt, at most")


class Prompts(Frozen):
    """What the generator is told. `adaptive` needs somebody who writes."""

    strategy: Strategy = Field(
        "fixed_no_change",
        description="the instruction of the category, the same with a ban on changes of content, one for each picture",
    )
    writer: str | None = Field(None, description="name of the service that writes adaptive prompts")

    @model_validator(mode="after")
    def _has_writer(self) -> Self:
        if (self.strategy == "adaptive") != (self.writer is not None):
            raise ValueError("`writer` goes with strategy adaptive, and only with it")
        return self


class MetricJudgeFrom(Frozen):
    """Weight-free measures mapped to scores: no model, sees nothing."""

    backend: Literal["metric"] = Field(description="who judges")


class ServiceJudgeFrom(Frozen):
    """A vision-language model behind a service."""

    backend: Literal["service"] = Field(description="who judges")
    service: str = Field(description=_SERVICE)


class LocalJudgeFrom(Frozen):
    """A vision-language model of the transformers library (Qwen3-VL), on the device of the make stage."""

    backend: Literal["transformers"] = Field(description="who judges")
    model: str = Field(description="folder of the model, at the same path on every worker")
    weights: Weights = Field(description=_WEIGHTS)
    device: str = Field("cuda", description=_DEVICE)


AnyJudge = Annotated[MetricJudgeFrom | ServiceJudgeFrom | LocalJudgeFrom, Field(discriminator="backend")]


class Checks(Frozen):
    """What a candidate must pass before a judge is asked; null leaves a check out."""

    alignment: AlignmentLimits | None = Field(
        AlignmentLimits(), description="the same scene at the same place as in the source"
    )
    gain: GainRule | None = Field(GainRule(), description="measurably better than the source")


class Make(Frozen):
    """How the clean side is made and judged."""

    generator: AnyGenerator = Field(description="who makes the clean side")
    fallback: ServiceFrom | None = Field(
        None, description="asked where the generator's service stays away beyond its patience; the choice is kept"
    )
    repeat: Repeat | None = Field(None, description="several rounds of restoration an attempt; one where absent")
    prompts: Prompts = Field(Prompts(), description="what the generator is told")
    judge: AnyJudge = Field(description="who scores what the generator made")
    checks: Checks = Field(Checks(), description="what a candidate must pass before the judge is asked")
    verdict: VerdictRule = Field(VerdictRule(), description="scores that accept")
    preset: Preset = Field(
        "default",
        description="instructions after a rejection: default asks for all that failed so far; "
        "ggt100k stays with that of attempt 2, and regenerates twice",
    )
    loop: LoopPolicy | None = Field(None, description="regenerations; those of the preset where absent")
    unreadable_runs: int = Field(
        3, ge=0, description="later runs that ask again by themselves about a record whose answers could not be read"
    )
    in_flight: int = Field(16, ge=1, le=1024, description="records of a part that wait for services at once")

    @property
    def asks_models(self) -> bool:
        """Whether anybody but code of ours is asked, whose answers have to be kept."""
        weightless = isinstance(self.generator, ClassicalFrom) and isinstance(self.judge, MetricJudgeFrom)
        rounds = self.repeat is not None and self.repeat.service is not None
        return not weightless or rounds or self.fallback is not None or self.prompts.writer is not None


class Money(Frozen):
    """A hard limit on all that was ever spent on this output."""

    cap_usd: float | None = Field(None, ge=0, description="no request is made that could pass it; none where absent")


class GroundTruthConfig(BaseConfig):
    """A ground-truth run: what every config states, and how its sources are screened, selected and restored."""

    line: Literal["ground_truth"] = Field(description="real photos are restored")
    services: dict[Name, Service] = Field({}, description="remote models by a name of yours")
    screen: tuple[AnyScreen, ...] = Field(min_length=1, description="steps that measure and refuse, cheap ones first")
    select: Select = Field(description="who of the screened goes on")
    make: Make = Field(description="how the clean side is made and judged")
    budget: Money = Field(description="what may be spent")

    @field_validator("screen")
    @classmethod
    def _distinct(cls, steps: tuple[Screen, ...]) -> tuple[Screen, ...]:
        names = [step.name for step in steps]
        if len(set(names)) < len(names):
            raise ValueError(f"screening steps must differ in name; given: {', '.join(names)}")
        return steps

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for where, name, images in self._used_services():
            if name not in self.services:
                raise ValueError(
                    f"{where}: there is no service {name!r}; services: {', '.join(self.services) or 'none'}"
                )
            if self.services[name].backend.endswith("_images") != images:
                wanted = "openai_images or gemini_images" if images else "openai_chat or gemini_chat"
                raise ValueError(f"{where}: service {name!r} is {self.services[name].backend}, needed: {wanted}")
        known = [*(f"screen_{step.name}" for step in self.screen), "make"]
        for name in (*self.run.stages, *self.run.pools):
            if name not in known:
                raise ValueError(f"run: stage {name!r} is unknown{near(name, known)}; allowed: {', '.join(known)}")
        if self.shards.layers:
            raise ValueError("shards.layers: pairs of the ground-truth line have no supervision layers")
        cosines = (self.select.duplicates.least_cosine, self.select.held_out_cosine)
        if any(cosine is not None for cosine in cosines) and not self.step("clip"):
            raise ValueError("select: least_cosine and held_out_cosine need a screening step with scorer clip")
        if (self.select.duplicates.most_bits is not None or self.select.held_out) and not self.step("statistics"):
            raise ValueError("duplicates by hash and held-out folders need a screening step with scorer statistics")
        self._check_measures()
        return self

    def _check_measures(self) -> None:
        """A rule may name only what is known by then."""
        known: dict[str, frozenset[str] | None] = {}
        for step in self.screen:
            known[step.name] = step.measures()
            for rule in step.rules:
                _check_measure(f"screen step {step.name}", rule.measure, known)
        for category in self.select.categories:
            measures = [rule.measure for rule in category.when]
            measures += [category.score] if category.score else []
            measures += [category.levels.measure] if category.levels else []
            for measure in measures:
                _check_measure(f"category {category.name}", measure, known)

    def step(self, scorer: str) -> Screen | None:
        """The first screening step of a kind."""
        return next((step for step in self.screen if step.scorer == scorer), None)

    def _used_services(self) -> Iterator[tuple[str, str, bool]]:
        """Where a service is named, its name, and whether it has to give images."""
        for step in self.screen:
            if step.service_name is not None:
                yield f"screen step {step.name}", step.service_name, False
        for where, generator in (("make.generator", self.make.generator), ("make.fallback", self.make.fallback)):
            if isinstance(generator, ServiceFrom):
                yield where, generator.service, True
        if self.make.prompts.writer is not None:
            yield "make.prompts.writer", self.make.prompts.writer, False
        if self.make.repeat is not None and self.make.repeat.service is not None:
            yield "make.repeat", self.make.repeat.service, False
        if isinstance(self.make.judge, ServiceJudgeFrom):
            yield "make.judge", self.make.judge.service, False

    def used_services(self) -> dict[str, Service]:
        """The services that this config asks, by name."""
        return {name: self.services[name] for _, name, _ in self._used_services()}

    def screening_services(self) -> dict[str, Service]:
        """Those that screening asks."""
        names = (step.service_name for step in self.screen)
        return {name: self.services[name] for name in names if name is not None}

    def category(self, name: str) -> Category:
        return next(category for category in self.select.categories if category.name == name)

    def base_of(self, category: str) -> Normalisation:
        return self.category(category).base or self.base


SOURCE_VALUES = ("licence", "uri", "folder", "group", "role", "split", "format")
"""Texts that every source has without being measured; `folder` is the name of the folder it lies in."""


def _check_measure(where: str, measure: str, known: Mapping[str, frozenset[str] | None]) -> None:
    scorer, _, name = measure.partition(".")
    if measure in SOURCE_VALUES:
        return
    if scorer not in known or not name:
        told = ", ".join([*SOURCE_VALUES, *(f"{scorer}.MEASURE" for scorer in known)])
        raise ValueError(f"{where}: nothing gives {measure!r} by then; known: {told}")
    given = known[scorer]
    if given is not None and name not in given:
        listed = ", ".join(sorted(given))
        raise ValueError(f"{where}: {scorer} gives no {name!r}{near(name, sorted(given))}; it gives {listed}")
