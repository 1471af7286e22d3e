"""A trained network as files to hand on: safetensors, what it is and was trained on, and a card."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn

from pairforge.config import fingerprint
from pairforge.records import DamagedError, Frozen, parse_stored
from training.settings import ModelChoice

WEIGHTS, FACTS, CARD = "model.safetensors", "model.json", "README.md"


class TrainedOn(Frozen):
    """One pinned snapshot: where it was read, its id, and the fingerprint of all it holds."""

    url: str
    snapshot: str
    content: str
    licences: tuple[str, ...]


class ModelFacts(Frozen):
    """What a network is. `reverse`: it degrades. `scores` are of the validation at `step`, by name."""

    name: str
    model: ModelChoice
    reverse: bool
    step: int = Field(ge=0)
    snapshots: tuple[TrainedOn, ...]
    config: str = Field(description="fingerprint of the config")
    scores: Mapping[str, float]
    versions: Mapping[str, str]


def export_model(folder: Path, model: nn.Module, facts: ModelFacts) -> None:
    """Write the three files; equal weights and facts give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    stated = {**facts.model_dump(mode="json"), "weights": fingerprint(sorted(weights))[:16]}
    save_file(weights, str(folder / WEIGHTS), metadata={"pairforge": facts.model.name})
    (folder / FACTS).write_text(json.dumps(stated, indent=1, sort_keys=True), encoding="utf-8")
    (folder / CARD).write_text(_card(facts), encoding="utf-8")


def read_facts(folder: Path) -> ModelFacts:
    """What an exported network is. Raises FileNotFoundError, DamagedError."""
    stated = json.loads((folder / FACTS).read_bytes())
    stated.pop("weights", None)
    return parse_stored(ModelFacts, json.dumps(stated).encode(), str(folder / FACTS))


def load_weights(folder: Path, model: nn.Module) -> nn.Module:
    """Put exported weights into a network of its kind. Raises DamagedError where they do not fit."""
    try:
        model.load_state_dict(load_file(str(folder / WEIGHTS)))
    except FileNotFoundError:
        raise
    except Exception as error:  # torch and safetensors raise errors of many kinds for files that do not fit
        raise DamagedError(f"{folder / WEIGHTS} does not hold weights of this network: {error}") from error
    return model.eval()


def _card(facts: ModelFacts) -> str:
    does = "degrades clean photos" if facts.reverse else "restores degraded photos"
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in sorted(facts.scores.items()))
    read = "\n".join(
        f"- snapshot `{each.snapshot}` of `{each.url}`, content `{each.content[:16]}`; licences of its sources: "
        f"{', '.join(each.licences)}"
        for each in facts.snapshots
    )
    told = ", ".join(f"{name} {json.dumps(value)}" for name, value in facts.model.options.items())
    options = told or "its usual settings"
    return f"""---
library_name: pairforge
---

# {facts.name}

A network of kind `{facts.model.name}` ({options}) that {does}, after {facts.step} steps.

## Trained on

{read}

## Validation

Means over pictures, on the held-out split; PSNR in dB.

| score | value |
|---|---|
{rows}

Use it with `pairforge restore FOLDER PHOTOS -o OUT`.
"""
