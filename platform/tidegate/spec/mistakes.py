"""Turns pydantic's findings into sentences: the path in the file, what was found, what to write."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, JsonValue, Tag, ValidationError

from tidegate.spec.base import BrokenRules

Location = Sequence[int | str]
JSON: Any = JsonValue
"""An alias of a union, which is named by a string inside itself."""


def mistakes(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """One line a mistake, in the order of the spec's keys, without repetitions."""
    lines: list[str] = []
    for item in error.errors(include_url=False):
        lines += [line for line in _sentences(kind, item) if line not in lines]
    return lines


def describe(value: object) -> str:
    """A short text for a value of a document."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return "nothing" if value is None else str(value)


def _sentences(kind: type[BaseModel], item: Any) -> list[str]:
    reason, context = item["type"], item.get("ctx", {})
    location = _location(item)
    place = _place(kind, location)
    path, owner = place.path, place.owner
    if reason == "missing":
        return [f"{path}: missing; this key is required{owner}"]
    if reason == "extra_forbidden":
        return [f"{path}: unknown key{owner}{_suggestion(place.part, location[-1])}"]
    if reason == "union_tag_not_found":
        return [f"{path}.type: missing; this key is required"]
    if reason == "union_tag_invalid":
        return [f"{path}.type: found {context['tag']!r}; write one of {context['expected_tags']}"]
    broken = context.get("error")
    if isinstance(broken, BrokenRules):
        prefix = "" if path == TOP else f"{path}."
        return [f"{prefix}{key}: {sentence}" for key, sentence in broken.rules]
    return [f"{path}: found {describe(item['input'])}; {_wanted(item['msg'])}{owner}"]


def _location(item: Any) -> Location:
    """Where a finding is. pydantic names a key that is no string, such as `true`, by another value: `1`."""
    location: Location = item["loc"]
    if location and location[-1] == "[key]":
        location = location[:-1]
        return location if isinstance(item["input"], str) else (*location[:-1], str(item["input"]))
    return (*location[:-1], str(item["input"])) if item["type"] == "invalid_key" else location


TOP = "(top level)"


def _wanted(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[0].lower() + message[1:]


class _Place(NamedTuple):
    """Where in a document a mistake is: its path, the part it lies in, and the `type` that made it that part."""

    path: str
    part: type[BaseModel]
    owner: str


def _place(kind: type[BaseModel], location: Location) -> _Place:
    """`("data", "inputs", "age", "number", "scale")` -> `data.inputs.age.scale`, for `data.inputs.age.type 'number'`.

    pydantic names the chosen member of a union in the location; such a step is no key of the document and is left out.
    """
    path, part, owner, annotation = "", kind, "", kind  # type: str, type[BaseModel], str, Any
    for step in location:
        members = _members(annotation)
        if len(members) > 1:
            annotation = next((member for member in members if step in _tags(member)), None)
            owner = f" for {path}.type {step!r}" if "type" in getattr(annotation, "model_fields", {}) else owner
        else:
            path = _joined(path, step, in_list=members != [] and typing.get_origin(_bare(members[0])) is list)
            part, annotation = _inner(part, members, step)
    return _Place(path or TOP, part, owner)


def _joined(path: str, step: int | str, *, in_list: bool) -> str:
    if in_list:
        return f"{path}[{step}]"
    key = "''" if step == "" else str(step)
    return f"{path}.{key}" if path else key


def _inner(part: type[BaseModel], members: list[Any], step: int | str) -> tuple[type[BaseModel], Any]:
    """The part that has the key `step`, and the annotation of its value."""
    bare = _bare(members[0]) if members else None
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return bare, bare.model_fields[str(step)].annotation if step in bare.model_fields else None
    arguments = typing.get_args(bare)
    return part, arguments[-1] if arguments else None


def _members(annotation: Any) -> list[Any]:
    """The members of a union without None; of anything else, itself."""
    bare = _bare(annotation)
    if typing.get_origin(bare) in (typing.Union, UnionType):
        return [member for argument in typing.get_args(bare) for member in _members(argument)]
    return [] if annotation in (None, NoneType) else [annotation]


def _bare(annotation: Any) -> Any:
    if annotation in (JSON, "JsonValue"):
        annotation = JSON.__value__
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def _tags(member: Any) -> list[str]:
    """The names that pydantic gives a member of a union: its `type`, or its Tag."""
    fields = getattr(member, "model_fields", {})
    if "type" in fields:
        return list(typing.get_args(fields["type"].annotation))
    return [extra.tag for extra in typing.get_args(member)[1:] if isinstance(extra, Tag)]


def _suggestion(part: type[BaseModel], key: int | str) -> str:
    known = list(part.model_fields)
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; the keys here are {', '.join(known)}"
