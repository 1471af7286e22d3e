"""The words of one sample: steps, fates, and the errors that decide them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION = 1


class Fate(StrEnum):
    """What became of a planned record. planned = kept + rejected + failed, always."""

    KEPT = "kept"
    REJECTED = "rejected"
    FAILED = "failed"


class SampleError(Exception):
    """One record or source cannot be used. The run goes on; the record keeps `reason` and `detail`.

    `reason` is a short `snake_case` code that reports count by; `detail` names the value and what is
    allowed. `fate` is REJECTED where policy refuses good data, FAILED where the data is bad.
    """

    def __init__(self, reason: str, detail: str, fate: Fate = Fate.FAILED) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.fate = fate

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str, Fate]]:
        return (SampleError, (self.reason, self.detail, self.fate))


class InfraError(Exception):
    """Storage or machinery failed, not the data: the part is tried again, a bounded number of times."""


class StopRunError(Exception):
    """Machinery that a whole run hangs on is gone; the message says how to go on."""


class DamagedError(ValueError):
    """A stored object is gone, or is not what was committed; the message names it."""


class TooManyFailedError(Exception):
    """More records failed, or more parts were given up, than the config allows; the run stopped."""


class Frozen(BaseModel):
    """Base of every stored model: immutable, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


M = TypeVar("M", bound=Frozen)


def parse_stored(model: type[M], data: bytes, name: str) -> M:
    """The model that the JSON stored under `name` holds. Raises DamagedError with the first fault of it."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "its JSON"
        raise DamagedError(f"{name} is damaged: {place}: {first['msg'][:200]}") from error


class Step(Frozen):
    """One applied degradation. Together with the base and the named assets it determines the pixels."""

    name: str
    version: int = Field(ge=1)
    severity: float = Field(ge=0, le=1)
    params: Mapping[str, Any]
    seed: str = Field(pattern=r"^[0-9a-f]{32}$")


class SourceRef(Frozen):
    """Where a record's pixels come from, as the record and its shard row tell it."""

    source_id: str = Field(pattern=r"^[0-9a-f]{24}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    uri: str
    kind: str
    group: str
    licence: str
    attribution: str
    width: int
    height: int
    role: str = "any"


class BaseRef(Frozen):
    """The 8-bit image a record starts from: how it was cut from the source, and its hash.

    `scale` is base pixels per source pixel; `crop_px` is x, y, width, height in the scaled source.
    `sha256` is that of the base's PNG bytes.
    """

    policy: str
    size_px: int
    scale: float
    crop_px: tuple[int, int, int, int]
    width: int
    height: int
    sha256: str


class Asset(Frozen):
    """A stored image besides the base that replay needs: `name` below the dataset's root, and its hash."""

    role: str
    name: str
    sha256: str
    source: SourceRef | None


class Sample(Frozen):
    """The JSON of one kept record: what determines its pixels, and what explains them."""

    schema_version: int = SCHEMA_VERSION
    key: str
    line: str
    category: str
    split: str
    recipe: str
    recipe_version: int
    variant: int
    source: SourceRef
    base: BaseRef | None
    assets: tuple[Asset, ...]
    scene: Mapping[str, Any]
    steps: tuple[Step, ...]
    realised: Mapping[str, Any]
    lq_sha256: str
    hq_sha256: str
    versions: Mapping[str, str]


class Generation(Frozen):
    """How the HQ side of a pair was made, and what was thought of it.

    `attempts` are all that were made, in order: number, seed, instruction, outcome, scores and reasons; `chosen` is the
    number of the one that is kept or was best, 0 where there is none; `generator` and `revision` are who made it.
    `lq` is the stored picture that was restored. `reply` is the stored answer that HQ was derived from by `size_rule`,
    None where there is none. `qc` are measured values and the limits they were held against.
    """

    generator: str
    revision: str
    strategy: str
    prompt: str
    prompt_hash: str
    wording_hash: str
    writer: str
    judge: str
    judge_revision: str
    rule: Mapping[str, Any]
    attempts: tuple[Mapping[str, Any], ...]
    chosen: int
    corrections: tuple[str, ...]
    lq: Asset
    reply: Asset | None
    reply_mime: str
    size_rule: Mapping[str, Any]
    qc: Mapping[str, Any]


class GeneratedSample(Sample):
    """The JSON of one kept record of the ground-truth line: LQ is its base, HQ was generated.

    `filters` are the values by which its source was selected, `level` its level of quality.
    """

    filters: Mapping[str, Any]
    level: int
    generation: Generation


def parse_sample(data: bytes, name: str) -> Sample:
    """The sample that stored JSON holds, of whichever line. Raises DamagedError."""
    generated = b'"generation":' in data and b'"line":"ground_truth"' in data
    return parse_stored(GeneratedSample if generated else Sample, data, name)
