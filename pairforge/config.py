"""YAML to frozen pydantic models, with errors that name the line; canonical JSON and fingerprints."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pairforge.config_words import (
    MisfitError,
    allowed,
    bare,
    inside,
    is_list,
    literals,
    member,
    models_of,
    near,
    tag_key,
    tags_of,
)
from pairforge.records import Frozen

M = TypeVar("M", bound=Frozen)
_MOST_SHOWN = 80


class ConfigError(Exception):
    """A config cannot be used. `problems` holds one line per fault: `file:line: where: what is allowed`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Raises ValueError for NaN."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of a model or of plain JSON data."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def load_config(path: Path, model: type[M], changes: Sequence[str] = ()) -> M:
    """Read one YAML file into `model`, with `changes` such as `sources.0.url=/photos`.

    Raises ConfigError with a line per problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    return parse_config(text, model, str(path), changes)


def parse_config(text: str, model: type[M], origin: str, changes: Sequence[str] = ()) -> M:
    """As `load_config`, from text; `origin` is the name that errors show."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise ConfigError([f"{where}: not valid YAML: {getattr(error, 'problem', error)}"]) from error
    if root is None or not isinstance(data, dict):
        raise ConfigError([f"{origin}:1: a config is a mapping; allowed keys: {', '.join(model.model_fields)}"])
    repeated = _repeated_keys(root, origin, set())
    if repeated:
        raise ConfigError(repeated)
    try:
        return model.model_validate(_changed(data, changes))
    except ValidationError as error:
        faults = _faults(error, model, root)
        told = [f"{origin}:{fault.line}: {fault.key or 'config'}: {fault.message}" for fault in faults]
        raise ConfigError(tuple(dict.fromkeys(told))) from error


def _changed(data: Any, changes: Sequence[str]) -> Any:
    """`data` with a value, read as YAML, put at each dotted place. Raises ConfigError for a place that is not there."""
    for change in changes:
        place, equals, text = change.partition("=")
        *parents, last = place.split(".")
        owner: Any = data
        try:
            value = yaml.safe_load(text)
            for name in parents:
                owner = owner[int(name)] if isinstance(owner, list) else owner.setdefault(name, {})
            if not equals or not last or not isinstance(owner, list | dict):
                raise ValueError("allowed: KEY=VALUE, with KEY such as sources.0.url")
            key: Any = int(last) if isinstance(owner, list) else last
            owner[key] = value
        except (ValueError, IndexError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError([f"--set {change}: {error}"]) from error
    return data


@dataclass(frozen=True)
class Fault:
    """One fault of a value: where it stands (dotted, empty for the whole), and what is allowed there."""

    line: int
    key: str
    message: str


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Every fault in plain words, of values that stand in no file; lines are 0."""
    return _faults(error, model, None)


def _faults(error: ValidationError, model: type[BaseModel], root: yaml.Node | None) -> list[Fault]:
    problems = error.errors()
    # A list counts as empty where its only entry is at fault: the entry's own fault says it all.
    inner = [
        problem
        for problem in problems
        if problem["type"] != "too_short"
        or not any(other["loc"][: len(problem["loc"])] == problem["loc"] for other in problems if other is not problem)
    ]
    return [_fault(problem, root, model) for problem in inner]


def _fault(problem: ErrorDetails, root: yaml.Node | None, model: type[BaseModel]) -> Fault:
    kind, loc, given = problem["type"], problem["loc"], problem["input"]
    if kind == "missing" and isinstance(loc[-1], int):  # of a list of fixed length
        kind, loc = "too_short", loc[:-1]
    found = problem.get("ctx", {}).get("error")
    if isinstance(found, MisfitError):
        loc = (*loc, *found.at)
    place = _locate(loc, root, model)
    match kind:
        case "missing":
            message = _wanted(place)
        case "extra_forbidden" | "invalid_key":
            known = list(place.owner.model_fields)
            message = f"unknown key{near(str(loc[-1]), known)} (allowed: {', '.join(known)})"
        case "union_tag_invalid" | "union_tag_not_found" if isinstance(given, Mapping):
            models = models_of(place.hint)
            key = tag_key(models) or ""
            place = _locate((*loc, key), root, model)
            values = [str(value) for each in models for value in tags_of(each)[1:]]
            held = given.get(key)
            message = "is required" if key not in given else f"{_shown(held)} is not allowed{near(str(held), values)}"
            message = f"{message} (allowed: {', '.join(values)})"
        case "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            if not isinstance(given, Mapping | list | tuple) and str(given) not in message:
                message = f"{message} (got {_shown(given)})"
        case _ if loc and loc[-1] == "[key]":
            message = f"{_shown(given)} is not text; in quotes it is"
        case _:
            message = _refusal(given, place.hint)
            if kind == "string_type" and not isinstance(given, NoneType | Mapping | list):
                message += "; in quotes it is text"
    return Fault(place.line, place.path, message)


def _refusal(given: Any, hint: Any) -> str:
    what = "is empty" if given is None else f"{_shown(given)} is not allowed"
    if hint is None:
        return what
    if isinstance(given, str) and is_list(hint) and bare(inside(hint, 0)) is str:
        return f"{what}; allowed: {allowed(hint)}; a list of one is written [{given}]"
    values = literals(hint)
    if values:
        return f"{what}{near(str(given), values)} (allowed: {', '.join(values)})"
    return f"{what}; allowed: {allowed(hint)}"


def _wanted(place: "_Place") -> str:
    field = place.owner.model_fields.get(place.path.rpartition(".")[2])
    meaning = f": {field.description}" if field and field.description else ""
    return f"is required{meaning}; allowed: {allowed(place.hint)}"


def _shown(given: Any) -> str:
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, Mapping):
        return "a mapping"
    text = repr(given) if isinstance(given, str | int | float | Sequence) else str(given)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


@dataclass(frozen=True)
class _Place:
    """Where a location of pydantic lies: its line, dotted path, type, and the innermost model around it."""

    line: int
    path: str
    hint: Any
    owner: type[BaseModel]


def _locate(loc: tuple[int | str, ...], root: yaml.Node | None, model: type[BaseModel]) -> _Place:
    """The place of a location; tags of unions in it are stepped over."""
    node, line, path = root, root.start_mark.line + 1 if root else 0, ""
    hint: Any = model
    owner = model
    for place, part in enumerate(loc):
        if part == "[key]":
            continue
        chosen = member(hint, part)
        if chosen is not None:
            if place < len(loc) - 1:
                hint = owner = chosen
            continue
        if isinstance(node, yaml.ScalarNode):  # short for a list or a mapping
            hint = inside(hint, part)
            continue
        owner = next(iter(models_of(hint)), owner)
        hint = inside(hint, part)
        child = _child(node, part)
        listed = isinstance(part, int) and not isinstance(node, yaml.MappingNode)
        node = child[1] if child else None
        line = child[0].start_mark.line + 1 if child else line
        path = f"{path}[{part}]" if listed else f"{path}.{part}" if path else str(part)
    return _Place(line, path, hint, owner)


def _child(node: yaml.Node | None, part: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key, value
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                return next((found for held in merged if (found := _child(held, part))), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _repeated_keys(node: yaml.Node, origin: str, seen: set[int]) -> list[str]:
    """Faults of keys that stand twice; `seen` holds nodes that were looked at, since aliases lead back to them."""
    if id(node) in seen:
        return []
    seen.add(id(node))
    problems: list[str] = []
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                problems.append(f"{origin}:{line}: key {key.value!r} stands already on line {lines[key.value]}")
            lines[key.value] = line
            problems += _repeated_keys(value, origin, seen)
    elif isinstance(node, yaml.SequenceNode):
        problems = [problem for child in node.value for problem in _repeated_keys(child, origin, seen)]
    return problems
