"""YAML to frozen pydantic models, with errors that name the line; canonical JSON and fingerprints."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pairforge.records import Frozen

M = TypeVar("M", bound=Frozen)


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


def load_config(path: Path, model: type[M]) -> M:
    """Read one YAML file into `model`. Raises ConfigError with a line per problem."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    return parse_config(text, model, str(path))


def parse_config(text: str, model: type[M], origin: str) -> M:
    """As `load_config`, from text; `origin` is the name that errors show."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise ConfigError([f"{where}: not valid YAML: {getattr(error, 'problem', error)}"]) from error
    if root is None or not isinstance(data, dict):
        raise ConfigError([f"{origin}:1: a config is a mapping; allowed keys: {_known(model)}"])
    repeated = _repeated_keys(root, origin)
    if repeated:
        raise ConfigError(repeated)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        # A list counts as empty where its only entry is at fault: the entry's own fault says it all.
        inner = [
            problem
            for problem in problems
            if problem["type"] != "too_short"
            or not any(
                other["loc"][: len(problem["loc"])] == problem["loc"] for other in problems if other is not problem
            )
        ]
        raise ConfigError([_explain(problem, root, model, origin) for problem in inner]) from error


def _explain(problem: ErrorDetails, root: yaml.Node, model: type[BaseModel], origin: str) -> str:
    line, where, owner = _locate(problem["loc"], root, model)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        near = difflib.get_close_matches(name, owner.model_fields, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        message = f"unknown key{hint} (allowed: {_known(owner)})"
    elif problem["type"] == "missing":
        message = f"is required: {_describe(owner, str(problem['loc'][-1]))}"
    elif not isinstance(problem["input"], Mapping | list):
        message = f"{message} (got {problem['input']!r})"
    return f"{origin}:{line}: {where or 'config'}: {message}"


def _known(model: type[BaseModel]) -> str:
    return ", ".join(field.alias or name for name, field in model.model_fields.items())


def _describe(model: type[BaseModel], name: str) -> str:
    field = model.model_fields.get(name)
    return (field.description if field else None) or "no default changes pixels silently"


def _locate(loc: tuple[int | str, ...], root: yaml.Node, model: type[BaseModel]) -> tuple[int, str, type[BaseModel]]:
    """Line, dotted path and innermost model of a pydantic location; union tags in it are stepped over."""
    node, line, path = root, root.start_mark.line + 1, ""
    owner: type[BaseModel] = model
    candidates: list[type[BaseModel]] = []
    for place, part in enumerate(loc):
        tagged = [candidate for candidate in candidates if part in _tags(candidate)]
        if tagged and len(candidates) > 1:
            owner, candidates = tagged[0], []
            continue
        if isinstance(part, str) and candidates:
            owner = candidates[0]
        child = _child(node, part)
        if child is None:
            path = f"{path}.{part}" if path and place == len(loc) - 1 else path or str(part)
            break
        key, node = child
        line = key.start_mark.line + 1
        path = f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}" if path else str(part)
        if isinstance(part, str):
            field = owner.model_fields.get(part)
            candidates = _models_in(field.annotation) if field else []
    if len(candidates) == 1:
        owner = candidates[0]
    return line, path, owner


def _child(node: yaml.Node, part: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """What pydantic may call a member of a union: its class name, or the value of a literal field."""
    literals = (field.annotation for field in model.model_fields.values() if "Literal" in str(field.annotation))
    return (model.__name__, *(value for annotation in literals for value in getattr(annotation, "__args__", ())))


def _repeated_keys(node: yaml.Node, origin: str) -> list[str]:
    problems: list[str] = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                problems.append(f"{origin}:{line}: key {key.value!r} stands already on line {seen[key.value]}")
            seen[key.value] = line
            problems += _repeated_keys(value, origin)
    elif isinstance(node, yaml.SequenceNode):
        problems = [problem for child in node.value for problem in _repeated_keys(child, origin)]
    return problems
