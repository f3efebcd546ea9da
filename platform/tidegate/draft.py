"""A first spec for data that is there: written from a look at it, with comments that say what was guessed and why."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from tidegate.data import folders, sources
from tidegate.data.canonical import PROBLEM, STRATUM, Canonicalise, listed, nearest
from tidegate.data.meaning import Aim, Meaning, aim, aim_to_write, cut, meaning, says_the_same, text, words_read
from tidegate.data.prepared import SPLITS, column_array
from tidegate.data.sample import Sample, take
from tidegate.data.splits import assign
from tidegate.errors import ConflictError, DataError, SpecError
from tidegate.spec import document
from tidegate.spec.data import FORMATS, Data, Source, Split, format_of
from tidegate.spec.run import Spec, absolute
from tidegate.transforms.base import Array, fits
from tidegate.transforms.columns import canonical
from tidegate.yaml_text import comment, commented, flow, scalar, value

TARGET_NAMES = ("label", "target", "class", "y")
MOST_UNFIT = 0.2
"""A column that does not fit in more of the rows is left out."""
WIDTH = 100
FRACTIONS = ((0.8, 0.1, 0.1), (0.6, 0.2, 0.2))
Keys = dict[str, Any]


MOST_LABELS = 20
"""Strings of which there are no more different ones are no texts to read."""


@dataclass(frozen=True)
class Draft:
    """A spec that trains as it stands."""

    spec: Spec
    text: str
    is_target_guessed: bool
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Choice:
    """What the columns of a sample are taken for."""

    target: str
    why: str
    aim: Aim
    inputs: dict[str, Meaning]
    split: str | None
    """The column that says the split."""


def draft(path: str, folder: Path, *, name: str, target: str | None = None) -> Draft:
    """A spec for the data at `path`, to be kept in `folder`.

    Raises DataError for data that cannot be read, or of which nothing can be learned; SpecError for a wrong name.
    """
    written, source = _source(path, folder)
    sample = take(source)
    _check_header(source, sample)
    choice = _chosen(source, sample, target)
    used = {column: found for column, found in choice.inputs.items() if found.keys}
    data = {
        "source": written,
        "inputs": {column: found.keys for column, found in used.items()},
        "target": {"column": choice.target, "type": choice.aim.type} | choice.aim.keys,
    }
    data["split"], rows = _split(source, sample, data, choice)
    data |= _invalid_rows(source, sample, data)
    kind = next(iter(used.values())).type
    whole: Keys = {
        "name": name,
        "data": data,
        "model": _writing_model(kind) if choice.aim.type == "text" else _model(kind, used),
        "train": _train(kind, max(1, round(sample.rows * rows / sample.size)), choice.aim.type),
        "publish": {"alias": "production"},
    }
    lines = _text(path, whole, sample, choice)
    spec = document.parse(Spec, yaml.safe_load(lines), source="the spec of these names")
    left_out = tuple(column for column, found in choice.inputs.items() if not found.keys)
    return Draft(spec, lines, target is None, left_out)


def _source(path: str, folder: Path) -> tuple[Keys, Source]:
    """The source as a spec in `folder` names it, and as it is read from here."""
    here = absolute("data.source.path", path, Path.cwd())
    stays = "://" in path or path.startswith(("/", "~", "$"))
    keys: Keys = {"path": path if stays else os.path.relpath(here, folder.resolve())}
    try:
        kind = sources.kind_of(here)
    except (OSError, ValueError, pa.ArrowException):
        kind = ""  # What is wrong with it is told when it is listed.
    if kind:
        keys["format"] = kind
    if not kind and not format_of(here):
        # Raises with the reason where there is nothing at all.
        sources.listing(Source(path=here, format="parquet"))
        raise DataError(
            f"the format of {sources.shown(path)} cannot be told from its name",
            expected=f"an ending: {', '.join(FORMATS)}",
            remedy="rename it, or write the spec by hand with data.source.format",
        )
    return keys, Source(path=here, format=kind or None)  # type: ignore[arg-type]


def _check_header(source: Source, sample: Sample) -> None:
    """Raise DataError for a CSV whose first line is no header, or whose fields are divided by another sign."""
    names = list(sample.columns)
    if source.resolved_format() != "csv" or names == [str(place) for place in range(len(names))]:
        return
    if len(names) == 1 and (sign := next((sign for sign in ";\t|" if sign in names[0]), "")):
        raise DataError(
            f"the first line of {sources.shown(source.path)} has no comma, but {sign!r}",
            expected="fields divided by commas",
            remedy="save it again with commas, or as Parquet",
        )
    if all(_is_number(name) for name in names):
        raise DataError(
            f"the first line of {sources.shown(source.path)} holds numbers: {listed(names)[:80]}",
            expected="a first line with the columns' names",
            remedy="write one above it",
        )


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _chosen(source: Source, sample: Sample, wanted: str | None) -> _Choice:
    names = list(sample.columns)
    target, why = _target(source, sample, wanted)
    found = aim(target, sample.everywhere(target))
    if found.problem and wanted is not None:
        # Nobody is taken to want texts written who has not said so.
        found = _aim_to_write(source, sample, target) or found
    if found.problem:
        others = [name for name in names if name != target]
        looked = "" if sample.is_whole else f" (looked at {sample.size} rows)"
        raise DataError(
            f"the column {target!r}, {why or 'which --target names'}, {found.problem}{looked}",
            remedy=f"name another with --target: {listed(others)}" if others else "give it columns to learn from",
        )
    split = next((name for name in names if name != target and _says_split(sample, name, target, found)), None)
    passed = {target, split} | ({folders.PATH} if source.resolved_format() in folders.CONTENT else set())
    inputs = {name: _meaning(source, sample, name) for name in names if name not in passed}
    inputs = _without_copies(sample, inputs, target) if found.type == "category" else inputs
    if found.type == "text":
        inputs = {name: _to_read(sample, name, meaning) for name, meaning in inputs.items()}
    return _Choice(target, why, found, _usable(source, inputs, found.type), split)


def _aim_to_write(source: Source, sample: Sample, target: str) -> Aim | None:
    """The target as texts to be written; None where there is nothing to read that they could be written from."""
    others = [name for name in sample.columns if name != target]
    meanings = (_to_read(sample, name, _meaning(source, sample, name)) for name in others)
    if not any(found.type in ("audio", "series", "text") for found in meanings):
        return None
    return aim_to_write(sample.columns[target])


def _to_read(sample: Sample, name: str, found: Meaning) -> Meaning:
    """What a column means to a model that writes texts: strings of any kind are texts to it."""
    column = sample.columns[name].drop_null()
    if not pa.types.is_string(column.type) or len(column.unique()) <= MOST_LABELS:
        return found
    keys, note = cut(column.to_pylist(), words_read)
    return Meaning(f"texts of {note}", {"type": "text"} | keys)


def _target(source: Source, sample: Sample, wanted: str | None) -> tuple[str, str]:
    """The target, and why it is it, in words; empty when a person named it."""
    names = list(sample.columns)
    if wanted is not None:
        if wanted not in names:
            raise DataError(
                f"the source {sources.shown(source.path)} has no column {wanted!r} (--target)",
                expected=f"one of its columns: {listed(names)}",
                remedy=nearest({"--target": wanted}, names),
            )
        return wanted, ""
    if source.resolved_format() in folders.CONTENT:
        return folders.LABEL, "the folder that a file lies in"
    by_case = {name.lower(): name for name in reversed(names)}
    for name in TARGET_NAMES:
        if name in by_case:
            return by_case[name], "guessed by its name"
    return names[-1], "guessed because it is the last column"


def _says_split(sample: Sample, name: str, target: str, found: Aim) -> bool:
    """Whether a column divides the rows in three, with every class among those to train on."""
    if not pa.types.is_string(sample.columns[name].type):
        return False
    column, values = sample.columns[name].to_pylist(), sample.columns[target].to_pylist()
    trained = {value for value, split in zip(values, column, strict=True) if split == "train"}
    return set(column) == set(SPLITS) and (found.type != "category" or set(values) <= trained)


def _meaning(source: Source, sample: Sample, name: str) -> Meaning:
    kind = source.resolved_format()
    column = sample.columns[name]
    if kind == "text" and name == folders.CONTENT[kind]:
        return text([item.decode("utf-8", "replace") for item in column.to_pylist()])
    found = meaning(name, column)
    if not found.keys:
        return found
    unfit = 1 - fits(canonical(_input(name, found.keys)).read(column)[1]).mean()
    return found if unfit <= MOST_UNFIT else Meaning(f"{unfit:.0%} of the rows hold no valid {found.type}")


def _input(name: str, keys: Keys) -> Any:
    """The input of a spec with these keys."""
    data = {
        "source": {"path": "x.csv"},
        "inputs": {name: keys},
        "target": {"column": f"{name[:200]}!", "type": "number"},
    }
    return document.parse(Data, data, source=name).inputs[name]


def _without_copies(sample: Sample, inputs: dict[str, Meaning], target: str) -> dict[str, Meaning]:
    same = f"says the same as {target}: a model would just copy it"
    return {
        name: Meaning(same, found.keys, is_last_resort=True)
        if found.keys and says_the_same(sample.columns[name], sample.columns[target])
        else found
        for name, found in inputs.items()
    }


def _usable(source: Source, inputs: dict[str, Meaning], target: str) -> dict[str, Meaning]:
    """The inputs that one model of that target can take together. Raises DataError when there is none."""
    plain = {name: found for name, found in inputs.items() if found.keys and not found.is_last_resort}
    images = [name for name, found in plain.items() if found.type == "image"]
    texts = [name for name, found in plain.items() if found.type == "text"]
    series = [name for name, found in plain.items() if found.type == "series"]
    sounds = [name for name, found in plain.items() if found.type == "audio"]
    others = [name for name in plain if name not in texts]
    prose = [name for name in texts if plain[name].is_prose]
    if target == "text":
        kept, why = (sounds or series or texts)[:1], "a model that writes texts takes one input and nothing else"
    elif images:
        kept, why = images[:1], "model type cnn takes one image and nothing else"
    elif sounds:
        kept, why = sounds[:1], "model type rnn takes one sound and nothing else"
    elif series:
        kept, why = series[:1], "model type rnn takes one series and nothing else"
    elif texts and (prose or not others):
        kept, why = (prose or texts)[:1], "model type transformer takes one text and nothing else"
    elif others:
        kept, why = others, "model type mlp takes no text"
    else:
        kept, why = [name for name, found in inputs.items() if found.is_last_resort][:1], "there is another like it"
    if not kept:
        reasons = "; ".join(f"{name!r}: {found.note}" for name, found in list(inputs.items())[:5])
        raise DataError(
            f"no column of {sources.shown(source.path)} can be an input" + (f" ({reasons})" if reasons else ""),
            expected="sounds, series or texts beside a target to be written"
            if target == "text"
            else "numbers, categories, texts, series, sounds or images beside the target",
            remedy="give the data such a column, or name another target with --target",
        )
    return {
        name: found
        if name in kept or not found.keys
        else Meaning(found.note if found.is_last_resort else f"{why}; this is {found.note}")
        for name, found in inputs.items()
    }


def _split(source: Source, sample: Sample, data: Keys, choice: _Choice) -> tuple[Keys, int]:
    """The split, and how many rows of the sample are trained on."""
    if choice.split:
        return {"column": choice.split}, sample.columns[choice.split].to_pylist().count("train")
    block = _canonical(source, sample, data | {"split": {"stratify": choice.target}})
    usable = fits(column_array(block.column(PROBLEM)))
    if not usable.any():
        first = block.column(PROBLEM)[0].as_py()
        raise DataError(f"no row of {sources.shown(source.path)} fits (row 0: {first})", remedy="correct the data")
    strata = column_array(block.column(STRATUM))[usable] if choice.aim.type == "category" else None
    if choice.target in sample.known and strata is not None:
        strata = column_array(sample.known[choice.target])
    count = int(usable.sum()) if strata is None else len(strata)
    share = usable.sum() / count
    for stratified in (True, False) if strata is not None else (False,):
        for train, validation, test in FRACTIONS:
            keys: Keys = {"train": train, "validation": validation, "test": test}
            keys |= {"stratify": choice.target} if stratified else {}
            if rows := _trained_rows(document.parse(Split, keys, source="split"), strata, stratified, count):
                return keys, round(rows * share)
    raise DataError(
        f"{sources.shown(source.path)} has {count} rows that fit: too few to be divided in three",
        remedy="give more rows",
    )


def _trained_rows(split: Split, strata: Array | None, stratified: bool, count: int) -> int:
    """The rows of the training split; 0 when a split comes out empty or holds a class that training does not."""
    try:
        parts = assign(split, 0, strata=strata if stratified else None, named=None, count=count)
    except DataError:
        return 0
    if strata is not None:
        classes = set(strata[parts[0]].tolist())
        if len(classes) < 2 or not set(strata.tolist()) <= classes:
            return 0
    return len(parts[0])


def _canonical(source: Source, sample: Sample, data: Keys) -> pa.Table:
    """The sample as prepare would read it, with each row's problem."""
    located = data | {"source": {"path": source.path, "format": source.format}}
    return Canonicalise(document.parse(Data, located, source="data"))(pa.table(sample.columns))


def _invalid_rows(source: Source, sample: Sample, data: Keys) -> Keys:
    found = fits(column_array(_canonical(source, sample, data).column(PROBLEM)))
    unfit = float(1 - found.mean())
    if not unfit and sample.is_whole:
        return {}
    return {"invalid_rows": {"action": "drop", "max_fraction": min(1.0, math.ceil(100 * unfit + 1) / 100)}}


def _model(kind: str, used: Mapping[str, Meaning]) -> Keys:
    if kind == "image":
        small = min(next(iter(used.values())).keys["size"])
        return {"type": "cnn", "channels": [32, 64, 64] if small >= 8 else [32, 64], "hidden": 128, "dropout": 0.3}
    if kind == "text":
        return {"type": "transformer", "layers": 1, "width": 64, "heads": 4, "dropout": 0.3}
    if kind in ("series", "audio"):
        return {"type": "rnn", "cell": "lstm", "width": 64, "bidirectional": True, "dropout": 0.3}
    return {"type": "mlp", "hidden": [64, 64], "dropout": 0.1}


def _writing_model(kind: str) -> Keys:
    if kind == "text":
        return {"type": "seq2seq", "network": "gru", "layers": 1, "width": 256, "heads": 1, "beam": 4, "dropout": 0.2}
    return {"type": "ctc", "encoder": "gru", "layers": 2, "width": 160, "dropout": 0.15}


def _train(kind: str, rows: int, target: str) -> Keys:
    """Settings for so many training rows: some thousand steps for little data, some epochs for much."""
    kinds = {"image": (1500, 3, 64), "text": (800, 3, 64), "series": (1500, 3, 64), "audio": (1500, 3, 64)}
    steps, least, most_rows = (4000, 8, 128) if target == "text" else kinds.get(kind, (1500, 5, 256))
    batch: int | str = min(most_rows, 2 ** int(math.log2(max(8, rows / 20))))
    if rows < 2 * int(batch):
        batch = "all"
    a_batch = rows if batch == "all" else int(batch)
    epochs = max(least, min(100, round(steps * a_batch / rows)))
    return {
        "epochs": epochs,
        "global_batch": batch,
        "shards": 2,
        **({"group_by_length": True} if target == "text" else {}),
        "optimizer": {"type": "adamw", "lr": 0.002, "weight_decay": 0.01, "clip_norm": 1.0},
        "schedule": {"type": "cosine", "warmup_fraction": 0.05},
        "early_stop": {"metric": "validation.loss", "patience": max(3, epochs // 5)},
        "workers": {"min": 1, "max": 2},
    }


def name_of(path: str) -> str:
    """A name of a spec from the path of its data."""
    plain = re.sub(r"[*?\[].*", "", path.partition("?")[0] if "://" in path else os.path.abspath(path))
    stem = next((part for part in reversed(plain.split("/")) if part), "").partition(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", stem.lower())[:40].strip("-") or "model"


def check_name(name: str) -> None:
    """Raise SpecError for a name that no spec can have."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?", name):
        raise SpecError(f"--name is {name!r}", expected="up to 63 lower-case letters, digits, - and _")


def check_output(path: Path) -> None:
    """Raise an error when a spec cannot be written there: better before the look at the data than after it."""
    if path.exists():
        raise ConflictError(f"{path} exists", remedy="name another file with -o, or delete it")
    if not path.absolute().parent.is_dir():
        raise SpecError(f"there is no folder {path.absolute().parent}", remedy="create it first")


def _text(path: str, whole: Keys, sample: Sample, choice: _Choice) -> str:
    data = whole["data"]
    rows = f"{sample.rows} rows" if sample.is_whole else f"about {sample.rows} rows; {sample.size} were looked at"
    guessed = choice.why.startswith("guessed")
    about = f"{choice.why + '; ' if choice.why else ''}{choice.aim.note}" + (
        "; --target names another" if guessed else ""
    )
    lines = [
        f"# A first spec for {comment(sources.shown(path))}, written by `tidegate spec init`. Every key: docs/spec.md",
        f"name: {scalar(whole['name'])}",
        "seed: 0",
        "data:",
        commented(f"  source: {flow(data['source'])}", rows),
        "  inputs:",
        *(_input_line(name, found) for name, found in choice.inputs.items()),
        commented(f"  target: {flow(data['target'])}", about),
        commented(f"  split: {flow(data['split'])}", "the data says it" if choice.split else ""),
    ]
    if "invalid_rows" in data:
        why = "some rows do not fit" if data["invalid_rows"]["max_fraction"] > 0.01 else "not all rows were looked at"
        lines.append(commented(f"  invalid_rows: {flow(data['invalid_rows'])}", why + "; they are counted and shown"))
    lines += [f"model: {flow(whole['model'])}", "train:"]
    lines += [f"  {key}: {value(given)}" for key, given in whole["train"].items()]
    lines.append(commented(f"publish: {flow(whole['publish'])}", f"the new version becomes {whole['name']}@production"))
    return "\n".join(lines) + "\n"


def _input_line(name: str, found: Meaning) -> str:
    if found.keys:
        return commented(f"    {scalar(name)}: {flow(found.keys)}", found.note)
    return f"    # {comment(name) or 'a column without a name'} is left out: {comment(found.note)}"
