"""Turns pydantic's findings into sentences: the path in the file, what was found, what to write."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from tidegate.spec.base import BrokenRules

Location = Sequence[int | str]


def mistakes(kind: type[BaseModel], document: object, error: ValidationError) -> list[str]:
    """One line a mistake, in the order of the spec's keys, without repetitions."""
    lines: list[str] = []
    for item in error.errors(include_url=False):
        lines += [line for line in _sentences(kind, document, item) if line not in lines]
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


def _sentences(kind: type[BaseModel], document: object, item: Any) -> list[str]:
    reason, context = item["type"], item.get("ctx", {})
    path = _path(document, item["loc"], keep_last=reason in ("missing", "extra_forbidden"))
    if reason == "missing":
        return [f"{path}: missing; this key is required{_owner(path, item['loc'])}"]
    if reason == "extra_forbidden":
        return [f"{path}: unknown key{_owner(path, item['loc'])}{_suggestion(kind, item['loc'])}"]
    if reason == "union_tag_not_found":
        return [f"{path}.type: missing; this key is required"]
    if reason == "union_tag_invalid":
        return [f"{path}.type: found {context['tag']!r}; write one of {context['expected_tags']}"]
    broken = context.get("error")
    if isinstance(broken, BrokenRules):
        prefix = "" if path == TOP else f"{path}."
        return [f"{prefix}{key}: {sentence}" for key, sentence in broken.rules]
    return [f"{path}: found {describe(item['input'])}; {_wanted(item['msg'])}"]


TOP = "(top level)"


def _wanted(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[0].lower() + message[1:]


def _path(document: object, location: Location, *, keep_last: bool) -> str:
    """`("data", "inputs", "age", "number", "scale")` -> `data.inputs.age.scale`.

    pydantic names the chosen member of a union in the location; such a step is no key of the document and is left out.
    """
    text, value = "", document
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(value, (list, tuple)) and isinstance(step, int):
            text, value = f"{text}[{step}]", value[step] if step < len(value) else None
        elif isinstance(value, Mapping) and (step in value or (last and keep_last)):
            text, value = f"{text}.{step}" if text else str(step), value.get(step)
    return text or TOP


def _owner(path: str, location: Location) -> str:
    """Names the `type` that has no such key, when the location says that a type was chosen."""
    tags = [step for step in location[:-1] if str(step) not in re.split(r"[.\[\]]", path)]
    return f" of {path.rpartition('.')[0]}.type {tags[-1]!r}" if tags else ""


def _suggestion(kind: type[BaseModel], location: Location) -> str:
    known = _known_keys(kind, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; the keys here are {', '.join(known)}" if known else ""


def _known_keys(kind: type[BaseModel], location: Location) -> list[str]:
    annotation: Any = kind
    for step in location:
        annotation = _step(annotation, step)
    model = next(iter(_models(annotation)), None)
    return list(model.model_fields) if model else []


def _step(annotation: Any, step: int | str) -> Any:
    models = _models(annotation)
    for model in models:
        if step in model.model_fields:
            return model.model_fields[str(step)].annotation
        if "type" in model.model_fields and step in typing.get_args(model.model_fields["type"].annotation):
            return model
    arguments = typing.get_args(annotation)
    return arguments[-1] if arguments else annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (dict, list, tuple):
        return []
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]
