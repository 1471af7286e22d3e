"""The words of one sample: steps, fates, and the errors that decide them."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

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


class Frozen(BaseModel):
    """Base of every stored model: immutable, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Step(Frozen):
    """One applied degradation. Together with the base and the named assets it determines the pixels."""

    name: str
    version: int = Field(ge=1)
    severity: float = Field(ge=0, le=1)
    params: Mapping[str, Any]
    seed: str = Field(pattern=r"^[0-9a-f]{32}$")
