"""What a field of a config allows, in plain words: for messages about faults, and for the reference page of configs."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Words:
    """Metadata of a type: what it allows, where a pattern or a validator says it to machines alone."""

    text: str


class MisfitError(ValueError):
    """What a validator of a whole model finds; `at` leads from the model to the key at fault."""

    def __init__(self, at: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.at = at


def hint_of(field: FieldInfo) -> Any:
    """The type of a field with its metadata, as one hint."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def bare(hint: Any) -> Any:
    """A hint without metadata and without None."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    held = [part for part in get_args(hint) if part is not NoneType]
    return bare(held[0]) if _is_union(hint) and len(held) == 1 else hint


def models_of(hint: Any) -> list[type[BaseModel]]:
    """The models that a value of this type may be; what lies inside lists and mappings is not looked at."""
    hint = bare(hint)
    if _is_union(hint):
        return [model for part in get_args(hint) for model in models_of(part)]
    return [hint] if isinstance(hint, type) and issubclass(hint, BaseModel) else []


def inside(hint: Any, part: int | str) -> Any:
    """The type of what stands under a key or index; None where there is no such place."""
    hint = bare(hint)
    for model in models_of(hint)[:1]:
        field = model.model_fields.get(str(part))
        return hint_of(field) if field else None
    arguments = get_args(hint)
    if is_mapping(hint):
        return arguments[1]
    if not is_list(hint) or not isinstance(part, int):
        return None
    if get_origin(hint) is tuple and arguments[-1] is not Ellipsis:
        return arguments[part] if part < len(arguments) else None
    return arguments[0]


def is_list(hint: Any) -> bool:
    origin = get_origin(bare(hint))
    return isinstance(origin, type) and issubclass(origin, Sequence)


def is_mapping(hint: Any) -> bool:
    origin = get_origin(bare(hint))
    return isinstance(origin, type) and issubclass(origin, Mapping)


def allowed(hint: Any) -> str:
    """What a value of this type may be: `a whole number from 1 to 20`. None is not told of."""
    limits = _limits(hint)
    for limit in limits:
        if isinstance(limit, Words):
            return limit.text
    inner = bare(hint)
    if inner is not hint and get_origin(inner) is Annotated:
        return allowed(inner)
    if _is_union(inner):
        return _either(inner)
    if models_of(inner):
        return f"a mapping with the keys {', '.join(inner.model_fields)}"
    if get_origin(inner) is Literal:
        values = literals(inner)
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if is_mapping(inner):
        return f"a mapping of names to {_many(get_args(inner)[1])}"
    return _list(inner, limits) if is_list(inner) else _plain(inner, limits)


def literals(hint: Any) -> list[str]:
    """The values of a Literal, none for other types."""
    return [str(value) for value in get_args(bare(hint))] if get_origin(bare(hint)) is Literal else []


def tag_key(models: Sequence[type[BaseModel]]) -> str | None:
    """The key by whose fixed value these models are told apart, `kind` say."""
    shared = set.intersection(*({n for n, f in m.model_fields.items() if _is_tag(f)} for m in models))
    return min(shared) if len(models) > 1 and shared else None


def tags_of(model: type[BaseModel]) -> tuple[Any, ...]:
    """What pydantic may call a member of a union: its class name, or the value of its tag."""
    tags = [field.annotation for field in model.model_fields.values() if _is_tag(field)]
    return (model.__name__, *(value for annotation in tags for value in get_args(annotation)))


def member(hint: Any, part: int | str) -> type[BaseModel] | None:
    """The member of a union that pydantic calls `part` in the location of a fault; None where there is none."""
    hint = bare(hint)
    for held in get_args(hint) if _is_union(hint) else ():
        named = [limit.tag for limit in _limits(held) if isinstance(limit, Tag)]
        for model in models_of(held):
            if part in (*named, *tags_of(model)):
                return model
    return None


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'haze'?`, or nothing where no known name is like this one."""
    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _is_tag(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _limits(hint: Any) -> list[Any]:
    """Metadata of a hint, that of its fields flattened."""
    held = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return [limit for part in held for limit in (part.metadata if isinstance(part, FieldInfo) else [part])]


def _either(hint: Any) -> str:
    models = models_of(hint)
    key = tag_key(models) if len(models) > 1 else None
    if key is None:
        return " or ".join(allowed(part) for part in get_args(hint) if part is not NoneType)
    return f"a mapping with `{key}:` {', '.join(str(tags_of(model)[1]) for model in models)}, and its keys"


def _list(hint: Any, limits: Sequence[Any]) -> str:
    arguments = get_args(hint)
    if get_origin(hint) is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} entries, each {allowed(arguments[0])}"
    least = _value(limits, "min_length")
    return f"a list{f' of {least} or more' if least else ''}, each entry {allowed(arguments[0])}"


def _many(hint: Any) -> str:
    return "text" if bare(hint) is str else f"values, each {allowed(hint)}"


def _plain(hint: Any, limits: Sequence[Any]) -> str:
    if hint is bool:
        return "true or false"
    if hint is str:
        pattern = _value(limits, "pattern")
        if pattern is not None:
            return f"text that matches {pattern}"
        return "text that is not empty" if _value(limits, "min_length") else "text"
    names = {int: "a whole number", float: "a number"}
    return f"{names.get(hint, 'anything')}{_range(limits)}"


def _range(limits: Sequence[Any]) -> str:
    least, above, most, below = (_value(limits, name) for name in ("ge", "gt", "le", "lt"))
    if least is not None and most is not None:
        return f" from {least} to {most}"
    low = f"of at least {least}" if least is not None else f"above {above}" if above is not None else ""
    high = f"at most {most}" if most is not None else f"below {below}" if below is not None else ""
    high = f"of {high}" if most is not None and not low else high
    told = " and ".join(part for part in (low, high) if part)
    return f" {told}" if told else ""


def _value(limits: Sequence[Any], name: str) -> Any:
    return next((getattr(limit, name) for limit in limits if getattr(limit, name, None) is not None), None)
