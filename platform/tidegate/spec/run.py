"""A run spec: what decides what a model will be, and where it goes. Only name, data and model are required."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from tidegate import metrics, settings
from tidegate.errors import SpecError
from tidegate.metrics import Task
from tidegate.spec import document
from tidegate.spec.base import BrokenRules, Name, Part
from tidegate.spec.data import Data, SeriesInput
from tidegate.spec.endpoint import Endpoint
from tidegate.spec.evaluate import Evaluate
from tidegate.spec.model import Custom, Forecast, Model, Transformer, learning, taking
from tidegate.spec.train import Train

TASKS: dict[str, Task] = {"category": "classification", "number": "regression", "text": "sequence"}
"""The task by the type of the target."""
OF_ANY_LENGTH = ("text", "series", "audio")
"""The types of inputs whose rows differ in length."""


def _file_or_not(value: object) -> str:
    return "written out" if isinstance(value, (Mapping, Endpoint)) else "file"


def _no_number(alias: str) -> str:
    if re.fullmatch(r"[0-9]+|v[0-9]+|latest", alias):
        raise ValueError("write an alias that is no number, no v and a number, and not latest: those mean versions")
    return alias


Alias = Annotated[Name, AfterValidator(_no_number)]


class Publish(Part):
    """Where a version goes that meets `evaluate.require`: an alias, and an endpoint (a file, or written out here)."""

    alias: Alias | None = None
    endpoint: (
        Annotated[Annotated[Endpoint, Tag("written out")] | Annotated[str, Tag("file")], Discriminator(_file_or_not)]
        | None
    ) = None


class Card(Part):
    """What the model card says beyond what Tidegate knows by itself."""

    description: str = ""
    licence: str = ""
    intended_use: str = ""


class Spec(Part):
    """A run spec."""

    name: Name
    seed: int = Field(0, ge=0, lt=2**63)
    data: Data
    model: Model
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    publish: Publish = Publish()
    card: Card = Card()

    @property
    def task(self) -> Task:
        return TASKS[self.data.target.type]

    @model_validator(mode="after")
    def _parts_fit(self) -> Spec:
        rules = _input_rules(self) + _metric_rules(self) + _weight_rules(self) + _length_rules(self)
        rules += _target_rules(self) + _compile_rules(self) + _scale_rules(self)
        if rules:
            raise BrokenRules(rules)
        return self


def load(path: str | Path) -> Spec:
    """Read a run spec; relative paths in it are made absolute, starting at the spec file. Raises SpecError."""
    path = Path(path)
    return located(document.read(Spec, path), path.resolve().parent)


def located(spec: Spec, folder: Path) -> Spec:
    """The same spec with `$VARIABLES` and relative paths filled in, and the endpoint's file read."""
    return _with_paths(spec, folder, lambda key, path: absolute(key, path, folder))


def shipped(spec: Spec, folder: Path) -> tuple[Spec, list[str]]:
    """The spec for another machine, and a sentence for each path that both must have.

    The endpoint's file is read here. Relative paths are made absolute, starting at `folder`; `$VARIABLES` and `~` are
    left for that machine to fill in.
    """
    notes: list[str] = []

    def there(key: str, path: str) -> str:
        if path.startswith(("$", "~", "/")) or "://" in path:
            return path
        found = os.path.normpath(folder / path)
        notes.append(f"{key}: {path} is a path of this machine; every node of the cluster must have {found}")
        return found

    return _with_paths(spec, folder, there), notes


def _with_paths(spec: Spec, folder: Path, found: Callable[[str, str], str]) -> Spec:
    """The spec with each path that it names, by its key, as `found` has it; and the endpoint's file read."""
    source = spec.data.source.model_copy(update={"path": found("data.source.path", spec.data.source.path)})
    model, publish, train = spec.model, spec.publish, spec.train
    if isinstance(model, Transformer) and model.embeddings:
        path = found("model.embeddings.path", model.embeddings.path)
        model = model.model_copy(update={"embeddings": model.embeddings.model_copy(update={"path": path})})
    if train.checkpoint.path:
        path = found("train.checkpoint.path", train.checkpoint.path)
        train = train.model_copy(update={"checkpoint": train.checkpoint.model_copy(update={"path": path})})
    if isinstance(publish.endpoint, str):
        endpoint = document.read(Endpoint, absolute("publish.endpoint", publish.endpoint, folder))
        publish = publish.model_copy(update={"endpoint": endpoint})
    data = spec.data.model_copy(update={"source": source})
    return spec.model_copy(update={"data": data, "model": model, "publish": publish, "train": train})


def absolute(key: str, path: str, folder: Path) -> str:
    """A path of a spec in `folder`, with `$VARIABLES` filled in. Raises SpecError, with the key, for one not set."""

    def value(variable: re.Match[str]) -> str:
        name = variable[1] or variable[2]
        if name == settings.HOME.name:
            return str(settings.home())
        if name not in os.environ:
            raise SpecError(f"{key}: the variable ${name} in {path!r} is not set", remedy=f"set {name}, or correct it")
        return os.environ[name]

    filled = os.path.expanduser(re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, path))
    return filled if "://" in filled else os.path.normpath(folder / filled)


def _input_rules(spec: Spec) -> list[tuple[str, str]]:
    model, columns = spec.model, spec.data.inputs
    if model.takes.one and (len(columns) > 1 or _unfit(spec)):
        wanted, kinds = " or ".join(model.takes.types), ", ".join(column.type for column in columns.values())
        sentence = f"model type {model.type} takes exactly one input, of type {wanted}; here are {kinds}"
        others = [f"data.inputs.{name}.type" for name in _unfit(spec)]
        surplus = [f"data.inputs.{name}" for name in columns]
        return [(path, sentence) for path in (*(others or surplus), "model.type")]
    rules = [(f"data.inputs.{name}.type", _takes_no(model.type, columns[name].type)) for name in _unfit(spec)]
    return [*rules, ("model.type", rules[0][1])] if rules else []


def _takes_no(model: str, kind: str) -> str:
    *others, last = taking(kind)
    return f"model type {model} takes no {kind}; write model type {', '.join(others)} or {last}"


def _unfit(spec: Spec) -> list[str]:
    """The inputs of a type that the model does not take."""
    return [name for name, column in spec.data.inputs.items() if column.type not in spec.model.takes.types]


def _weight_rules(spec: Spec) -> list[tuple[str, str]]:
    if spec.train.class_weights is not None and spec.task != "classification":
        sentence = f"class weights are for a classifier; the target's type is {spec.data.target.type}"
        return [("train.class_weights", sentence), ("data.target.type", sentence)]
    if spec.train.class_weights is not None and isinstance(spec.model, Custom) and spec.model.loss:
        sentence = "a loss of your own weighs the classes itself; leave out one of the two"
        return [("train.class_weights", sentence), ("model.loss", sentence)]
    return []


def _target_rules(spec: Spec) -> list[tuple[str, str]]:
    kind, model = spec.data.target.type, spec.model
    if kind in model.takes.targets:
        return []
    wanted = " or ".join(model.takes.targets)
    sentence = f"model type {model.type} learns a target of type {wanted}, not {kind}"
    return [("data.target.type", sentence), ("model.type", f"{sentence}; {', '.join(learning(kind))} do")]


def _compile_rules(spec: Spec) -> list[tuple[str, str]]:
    if spec.train.compile and spec.model.takes.cut:
        sentence = f"model type {spec.model.type} has another shape in every batch, and would be compiled for each"
        return [("train.compile", f"{sentence}; leave it out"), ("model.type", sentence)]
    return []


def _scale_rules(spec: Spec) -> list[tuple[str, str]]:
    if not isinstance(spec.model, Forecast):
        return []
    sentence = "model type forecast brings each window to one scale, and its target is standardised; leave out scale"
    unscaled = [
        name for name, column in spec.data.inputs.items() if isinstance(column, SeriesInput) and column.scale == "none"
    ]
    return [(f"data.inputs.{name}.scale", sentence) for name in unscaled]


def _length_rules(spec: Spec) -> list[tuple[str, str]]:
    if spec.train.group_by_length and not any(column.type in OF_ANY_LENGTH for column in spec.data.inputs.values()):
        return [("train.group_by_length", f"no input is of any length; those of type {', '.join(OF_ANY_LENGTH)} are")]
    return []


def _metric_rules(spec: Spec) -> list[tuple[str, str]]:
    known = metrics.of_task(spec.task)
    asked = {f"evaluate.metrics[{i}]": name for i, name in enumerate(spec.evaluate.metrics or [])}
    asked |= {f"evaluate.require.{path}": path.split(".")[1] for path in spec.evaluate.require}
    if spec.train.early_stop:
        asked["train.early_stop.metric"] = spec.train.early_stop.metric.split(".")[1]
    if spec.train.checkpoint.best:
        asked["train.checkpoint.best"] = spec.train.checkpoint.best.split(".")[1]
    rules = [
        (path, f"{name!r} is no metric of {spec.task}; write one of {', '.join(known)}")
        for path, name in asked.items()
        if name not in known
    ]
    if any(name in metrics.HIGHER_IS_BETTER and name not in known for name in asked.values()):
        rules.append(
            ("data.target.type", f"{spec.data.target.type} makes this a {spec.task}, whose metrics are others")
        )
    return rules
