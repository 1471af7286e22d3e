"""Renders docs/config.md: every key of every kind of config, from the models that read them.

    make config-docs

A further kind of config is one more entry of CONFIGS.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pairforge.config_words import allowed, bare, hint_of, inside, is_list, is_mapping, models_of, tag_key, tags_of
from pipelines.ground_truth.settings import GroundTruthConfig
from pipelines.settings import RunConfig
from training.settings import TrainConfig

PAGE = Path(__file__).parent / "config.md"
CONFIGS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Synthesis", RunConfig),
    ("Ground truth", GroundTruthConfig),
    ("Training", TrainConfig),
)
INTRODUCTION = """# Configs

A config is a YAML file. Keys that are not listed here are refused, and so is a key without a default that is missing.
`pairforge validate FILE` names every fault with its line; with `--json` it prints the config with all defaults.
`[]` after a key stands for every entry of its list, `NAME` for a name of your choice. Text that looks like a number,
a date, yes or no has to be in quotes.

This page is made from the code by `make config-docs`.
"""
HEAD = "| key | allowed | default | meaning |\n|---|---|---|---|"


def render(configs: Sequence[tuple[str, type[BaseModel]]] = CONFIGS) -> str:
    """The page: a chapter a config, a section a mapping, a row a key."""
    parts = [INTRODUCTION.strip()]
    for title, model in configs:
        sections = list(_sections("", model, set()))
        told = {member: path for path, members in sections for member in members}
        parts += [f"## {title}", *(part for path, members in sections for part in _section(path, members, told))]
    return "\n\n".join(parts) + "\n"


def _sections(path: str, hint: Any, seen: set[type[BaseModel]]) -> Iterator[tuple[str, Sequence[type[BaseModel]]]]:
    """Every path that models stand at, with those that were not told at an earlier one."""
    models = [model for model in models_of(hint) if model not in seen]
    seen.update(models)
    if models:
        yield path, models
    for model in models:
        for name, field in model.model_fields.items():
            yield from _sections(*_contained(_join(path, name), hint_of(field)), seen)


def _section(path: str, models: Sequence[type[BaseModel]], told: Mapping[type[BaseModel], str]) -> Iterator[str]:
    if path:
        yield f"### `{path}`"
    key, shared = tag_key(models), _shared(models)
    if shared:
        yield f"Of every `{key}`:"
        yield _table(models[0], list(shared), path, told)
    for model in models:
        title = f"`{key}: {tags_of(model)[1]}`. " if key else ""
        yield f"{title}{_prose(model)}"
        yield _table(model, [name for name in model.model_fields if name not in shared], path, told)


def _shared(models: Sequence[type[BaseModel]]) -> Mapping[str, FieldInfo]:
    """Fields that mean the same in all members of a union."""
    if tag_key(models) is None:
        return {}
    first, *others = (model.model_fields for model in models)
    return {name: field for name, field in first.items() if all(repr(held.get(name)) == repr(field) for held in others)}


def _contained(path: str, hint: Any) -> tuple[str, Any]:
    """The path and type of what a field holds: its entries, where it is a list or a mapping of names."""
    if is_list(hint) and len(set(get_args(bare(hint))) - {Ellipsis}) == 1:
        return _contained(f"{path}[]", inside(hint, 0))
    return _contained(f"{path}.NAME", inside(hint, "NAME")) if is_mapping(hint) else (path, hint)


def _table(model: type[BaseModel], names: Sequence[str], path: str, told: Mapping[type[BaseModel], str]) -> str:
    rows = []
    for name in names:
        field = model.model_fields[name]
        cells = (f"`{name}`", _allowed(_join(path, name), field, told), _default(field), field.description or "")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([HEAD, *rows])


def _allowed(path: str, field: FieldInfo, told: Mapping[type[BaseModel], str]) -> str:
    hint = hint_of(field)
    inner, held = _contained(path, hint)
    models = models_of(held)
    if not models:
        return allowed(hint)
    kind = "a mapping" if inner == path else "mappings by name" if inner.endswith(".NAME") else "a list of mappings"
    return f"{kind}, see `{told[models[0]]}`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "that of its keys"
    return "none" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _prose(model: type[BaseModel]) -> str:
    """The docstring of a model as one paragraph a paragraph."""
    paragraphs = (model.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
