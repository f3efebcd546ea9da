"""Run and endpoint specs: one mutation is refused by its very path or valid, whatever it is; never another error."""

from __future__ import annotations

import copy
import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.errors import SpecError
from tidegate.spec import document, run
from tidegate.spec.base import Part
from tidegate.spec.endpoint import Endpoint, Tenant, wanted
from tidegate.spec.run import Spec

ROOT = Path(__file__).parents[2]

TRAIN = {
    "epochs": 30,
    "global_batch": 64,
    "shards": 4,
    "micro_batch": 16,
    "group_by_length": False,
    "reduction": "ordered",
    "precision": "fp32",
    "compile": False,
    "class_weights": None,
    "optimizer": {"type": "momentum", "lr": 3e-3, "weight_decay": 0.01, "momentum": 0.9, "clip_norm": 1.0},
    "schedule": {"type": "cosine", "warmup_fraction": 0.1},
    "early_stop": {"metric": "validation.loss", "patience": 3},
    "checkpoint": {
        "every_s": 30.0,
        "every_steps": 500,
        "keep": 3,
        "best": "validation.loss",
        "path": "s3://bucket/runs",
    },
    "workers": {"min": 1, "max": 2, "cpu": 1, "gpu": 1, "accelerator": "H100"},
    "priority": 2,
}
ENDPOINT = {
    "name": "digits",
    "model": "digits@production",
    "replicas": {"min": 1, "max": 2, "cpu": 0.5, "gpu": 0.25},
    "autoscale": {"target_ongoing_requests": 8.0, "up_after_s": 2.0, "down_after_s": 60.0},
    "batch": {"max_rows": 64, "latency_target_ms": 25.0},
    "capacity": {"priority": 1, "headroom_replicas": 1},
    "limits": {"body_mb": 8.0, "rows": 1024, "queue": 256, "timeout_s": 30.0},
    "access": {"public": False, "tenants": {"acme": {"requests_per_s": 5.0, "burst": 10.0, "concurrent": 4}}},
    "log": {"access_fraction": 0.5},
}
CARD = {"description": "digits", "licence": "Apache-2.0", "intended_use": "a test"}


def whole(model: dict[str, Any], inputs: dict[str, Any], target: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A spec in which every key is written."""
    classes = target["type"] == "category"
    return {
        "name": "digits",
        "seed": 7,
        "data": {
            "source": {"path": "rows.parquet", "format": "parquet"},
            "inputs": inputs,
            "target": target,
            "split": {"train": 0.7, "validation": 0.15, "test": 0.15, "stratify": target["column"]},
            "invalid_rows": {"action": "drop", "max_fraction": 0.02},
            "feed": "local",
        },
        "model": model,
        "train": copy.deepcopy(TRAIN),
        "evaluate": {
            "metrics": ["accuracy", "f1"] if classes else ["mse"],
            "require": {"test.accuracy" if classes else "test.r2": {"at_least": 0.4, "at_most": 1.0}},
        },
        "publish": {"alias": "production", "endpoint": copy.deepcopy(ENDPOINT)},
        "card": dict(CARD),
    } | changes


VALID: dict[str, dict[str, Any]] = {
    "cnn": whole(
        {"type": "cnn", "channels": [32, 64], "hidden": 128, "dropout": 0.3, "init": "kaiming"},
        {
            "pixels": {
                "type": "image",
                "size": [8, 8],
                "channels": 1,
                "max_value": 16.0,
                "augment": {"shift": 1, "flip": True},
            }
        },
        {"column": "label", "type": "category"},
        train=copy.deepcopy(TRAIN) | {"class_weights": "balanced"},
    ),
    "mlp": whole(
        {"type": "mlp", "hidden": [64, 32], "dropout": 0.1, "init": "xavier"},
        {
            "age": {"type": "number", "length": 3, "scale": "standard", "missing": "mean"},
            "city": {"type": "category", "unknown": "bucket"},
        },
        {"column": "bought", "type": "category"},
    ),
    "transformer": whole(
        {
            "type": "transformer",
            "embeddings": None,
            "layers": 2,
            "width": 128,
            "heads": 4,
            "dropout": 0.1,
            "init": "xavier",
        },
        {"text": {"type": "text", "tokenizer": "bpe", "vocab_size": 8000, "max_length": 64}},
        {"column": "label", "type": "category"},
        publish={"alias": "production", "endpoint": "endpoint.yaml"},
    ),
    "linear": whole(
        {"type": "linear", "init": "zero"},
        {"x": {"type": "number", "length": 10, "scale": "none", "missing": "refuse"}},
        {"column": "y", "type": "number"},
        train=copy.deepcopy(TRAIN) | {"global_batch": "all", "reduction": "fast", "precision": "bf16", "compile": True},
    ),
    "custom": whole(
        {"type": "custom", "build": "shop.models:Net", "loss": "shop.losses:focal", "args": {"n": 3, "of": ["a", 0.5]}},
        {
            "text": {"type": "text", "tokenizer": "word", "vocab_size": 300, "max_length": 8},
            "age": {"type": "number", "length": 1, "scale": "none", "missing": "refuse"},
        },
        {"column": "bought", "type": "category"},
    ),
}
VALID["short text"] = {
    "name": "short",
    "data": {
        "source": {"path": "rows", "format": "csv"},
        "inputs": {"text": {"type": "text"}},
        "target": {"column": "label", "type": "category"},
        "split": {"column": "part"},
    },
    "model": {"type": "transformer"},
}

WORDS = ["number", "category", "text", "image", "mlp", "cnn", "linear", "transformer", "adam", "drop", "bpe", "all"]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**400, -(10**400), 0.5, -0.5, 1.5, 1e308, 1e-320),
    *(math.nan, math.inf, -math.inf, "", " ", "1", "0.5", "true", "null", "x" * 300, "ä", "\ud800", "label", "pixels"),
    *([], [[]], [1], [8, 8], [8, 8, 8], [0], ["a"], [None], {}, {"type": "mlp"}, {"type": "text"}, {"type": "number"}),
    *({"type": []}, {"type": {}}, {"x": 1}, {1: 2}, b"bytes", datetime.date(2026, 1, 1), {1}, (1, 2), "accuracy", "r2"),
    *({"at_least": 0.1}, *WORDS),
]
KEYS: list[Any] = ["added", "Name", "lrate", "typ", "", "a.b", "é", "[0]", "label", "__row", "test.f1", 5, None, True]
REMOVED = object()


def slots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document, as steps from its top."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield (*path, step)
        yield from slots(inner, (*path, step))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def changed(value: dict[str, Any], path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    result = copy.deepcopy(value)
    owner = at(result, path[:-1])
    if new is REMOVED:
        del owner[path[-1]]
    else:
        owner[path[-1]] = new
    return result


def written(path: tuple[Any, ...]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if type(step) is int else f".{step}" if text else str(step)
    return text


def refusal(value: Any) -> list[str]:
    """The lines of the refusal, none when the document is a valid spec."""
    try:
        spec = document.parse(Spec, value, source="spec.yaml")
    except SpecError as error:
        head, _, rest = str(error).partition(":\n")
        lines = rest.splitlines()
        assert head == f"spec.yaml has {len(lines)} mistake{'s' * (len(lines) > 1)}"
        assert all(line.startswith("  ") and ": " in line for line in lines)
        return [line.removeprefix("  ") for line in lines]
    assert isinstance(spec, Spec)
    return []


MEASURED = ("evaluate", "train.early_stop.metric", "train.checkpoint.best", "train.class_weights")
"""Keys whose values fit one kind of target only."""


def tied(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Keys that a rule ties to the key at `path`: a line may name them too."""
    text = written(path)
    if path[-1] == "type" and path[0] in ("data", "model"):
        return (written(path[:-1]), "data.inputs", "model", "train.compile", *MEASURED)
    groups: list[tuple[str, ...]] = [
        tuple(f"data.split.{key}" for key in ("train", "validation", "test", "stratify", "column")),
        ("train.shards", "train.workers.max", "train.workers.min"),
        ("train.workers.gpu", "train.workers.max"),
        ("train.optimizer.type", "train.optimizer.momentum"),
        ("model.width", "model.heads"),
        ("model.type", "train.compile"),
        ("publish.endpoint.replicas.min", "publish.endpoint.replicas.max"),
        ("publish.endpoint.access.public", "publish.endpoint.access.tenants"),
        tuple(f"publish.endpoint.access.tenants.acme.{key}" for key in ("requests_per_s", "burst")),
        ("data.target.column", "data.inputs"),
        ("data.target.type", *MEASURED),
        ("train.checkpoint.best", "train.early_stop.metric"),
        ("train.workers.gpu", "train.workers.accelerator"),
        ("train.class_weights", "model.loss"),
        ("data.inputs.pixels.size", "data.inputs.pixels.augment"),
        ("data.inputs", "model.type"),
        ("data.source.path", "data.source.format"),
        tuple(f"{written(path[:-1])}.{key}" for key in ("at_least", "at_most")),
    ]
    near = [group for group in groups if any(_within(text, name) or _within(name, text) for name in group)]
    return tuple(name for group in near for name in group)


def _within(text: str, name: str) -> bool:
    return text == name or text.startswith((f"{name}.", f"{name}["))


def check_named(lines: list[str], path: tuple[Any, ...], new: Any) -> None:
    """The lines name `path`, and besides it only what a rule ties to it, or what is wrong inside a new mapping."""
    text = written(path)
    names = [line.split(": ")[0] for line in lines]
    if new is REMOVED and (type(path[-1]) is int or text.startswith(("data.inputs.", "evaluate.require."))):
        names = [text if name == written(path[:-1]) else name for name in names]  # An entry has no key of its own.
    inside = isinstance(new, (dict, list, tuple))
    assert any(name == text or (inside and _within(name, text)) for name in names) or any(
        f" for {text} " in line for line in lines
    ), (text, lines)
    for name in names:
        assert name == text or (inside and _within(name, text)) or any(_within(name, tie) for tie in tied(path)), (
            text,
            lines,
        )


mutations = st.sampled_from(sorted(VALID)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.sampled_from(list(slots(VALID[name]))),
        st.sampled_from(VALUES) | st.just(REMOVED) | st.integers() | st.floats() | st.text(max_size=8),
    )
)


@given(mutation=mutations)
@settings(max_examples=800, deadline=None)
def test_one_mutation_is_refused_by_its_path_or_valid(mutation: tuple[str, tuple[Any, ...], Any]) -> None:
    name, path, new = mutation
    lines = refusal(changed(VALID[name], path, new))
    if lines:
        check_named(lines, path, new)


@pytest.mark.parametrize("name", sorted(VALID))
def test_every_listed_mutation_of_every_place_is_refused_by_its_path_or_valid(name: str) -> None:
    refused = 0
    for path in slots(VALID[name]):
        for new in (REMOVED, *VALUES):
            lines = refusal(changed(VALID[name], path, new))
            refused += bool(lines)
            if lines:
                check_named(lines, path, new)
    assert refused > 1000 or name == "short text"


def test_more_than_one_gpu_of_a_replica_is_a_whole_number() -> None:
    value = changed(VALID["mlp"], ("publish", "endpoint", "replicas", "gpu"), 1.5)
    (line,) = refusal(value)
    assert line == "publish.endpoint.replicas.gpu: 1.5 GPUs cannot be held; write a whole number, or less than 1"


FREE = [
    *(("data", "inputs"), ("evaluate", "require"), ("train", "class_weights"), ("model", "args")),
    ("publish", "endpoint", "access", "tenants"),
]
"""Mappings whose keys are names that a person chooses."""


@pytest.mark.parametrize("name", sorted(VALID))
def test_an_added_key_is_refused_by_its_path(name: str) -> None:
    value = VALID[name]
    mappings = [(), *(path for path in slots(value) if isinstance(at(value, path), dict))]
    for path in mappings:
        for key in KEYS:
            for new in (1, None, "text", {}, {"type": "number"}):
                if key in at(value, path):
                    continue
                lines = refusal(changed(value, (*path, key), new))
                assert lines or path in FREE, (path, key)
                if lines:
                    shown = "''" if key == "" else key
                    place = f"{written(path)}.{shown}" if path else str(shown)
                    assert any(_within(line.split(": ")[0], place) for line in lines), (place, lines)


@pytest.mark.parametrize("value", [None, [], "text", 3, math.nan, b"x"])
def test_a_document_that_is_no_mapping(value: Any) -> None:
    with pytest.raises(SpecError, match=r"holds .*; expected a mapping"):
        document.parse(Spec, value, source="spec.yaml")


@pytest.mark.parametrize("name", sorted(VALID))
def test_valid_specs_round_trip(name: str) -> None:
    spec = document.parse(Spec, VALID[name], source="here")
    plain = spec.model_dump(mode="json")
    assert document.parse(Spec, plain, source="dump") == spec
    assert document.parse(Spec, yaml.safe_load(yaml.safe_dump(plain)), source="yaml") == spec
    if name != "short text":
        # Nothing that was written is lost or turned into something else.
        assert {key: plain[key] for key in VALID[name] if key != "data"} == {
            key: VALID[name][key] for key in VALID[name] if key != "data"
        }


def test_round_trip_keeps_which_keys_a_split_by_column_sets() -> None:
    spec = document.parse(Spec, VALID["short text"], source="here")
    assert spec.data.split.column == "part"
    again = document.parse(Spec, spec.model_dump(mode="json", exclude_unset=True), source="dump")
    assert again == spec


def test_all_mistakes_at_once() -> None:
    value = changed(VALID["cnn"], ("name",), "Digits!")
    value["seed"] = "7"
    value["data"]["source"]["pth"] = "x"
    del value["data"]["target"]["column"]
    value["model"]["type"] = "cnnn"
    value["train"]["optimizer"]["lr"] = -1
    value["train"]["workers"]["max"] = True
    names = [line.split(": ")[0] for line in refusal(value)]
    assert names == [
        "name",
        "seed",
        "data.source.pth",
        "data.target.column",
        "model.type",
        "train.optimizer.lr",
        "train.workers.max",
    ]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (("train", "epoch"), "epochs"),
        (("train", "optimizer", "learning_rate"), None),
        (("train", "optimizer", "weightdecay"), "weight_decay"),
        (("model", "chanels"), "channels"),
        (("data", "inputs", "pixels", "sizes"), "size"),
        (("publish", "endpoint", "replica"), "replicas"),
        (("evaluate", "require", "test.accuracy", "at_leest"), "at_least"),
        (("sed",), "seed"),
    ],
)
def test_an_unknown_key_is_told_what_was_meant_or_what_there_is(path: tuple[str, ...], meant: str | None) -> None:
    lines = refusal(changed(VALID["cnn"], path, 1))
    assert len(lines) == 1
    assert lines[0].startswith(f"{written(path)}: unknown key")
    if meant:
        assert f"did you mean '{meant}'?" in lines[0]
    else:
        assert "the keys here are type, lr, weight_decay, momentum, clip_norm" in lines[0]


def test_lines_say_what_was_found_and_what_to_write() -> None:
    assert refusal(changed(VALID["cnn"], ("model", "type"), "resnet")) == [
        "model.type: found 'resnet'; write one of 'linear', 'mlp', 'cnn', 'conv_attention', 'rnn', 'forecast',"
        " 'transformer', 'seq2seq', 'ctc', 'custom'"
    ]
    (line,) = refusal(changed(VALID["cnn"], ("train", "epochs"), 0))
    assert line == "train.epochs: found 0; should be greater than or equal to 1"
    (line,) = refusal(changed(VALID["cnn"], ("evaluate", "metrics"), ["accurate"]))
    assert line.startswith("evaluate.metrics[0]: 'accurate' is no metric of classification; write one of accuracy, ")


def test_rules_across_keys() -> None:
    def names(name: str, *changes: tuple[tuple[str, ...], Any]) -> list[str]:
        value = VALID[name]
        for path, new in changes:
            value = changed(value, path, new)
        return sorted(line.split(": ")[0] for line in refusal(value))

    assert names("cnn", (("data", "split", "test"), 0.2)) == [
        "data.split.test",
        "data.split.train",
        "data.split.validation",
    ]
    assert names("cnn", (("train", "workers", "max"), 5)) == ["train.shards", "train.workers.max"]
    assert names("cnn", (("train", "workers", "min"), 3)) == ["train.workers.max", "train.workers.min"]
    assert names("cnn", (("train", "optimizer", "type"), "adam")) == [
        "train.optimizer.momentum",
        "train.optimizer.type",
    ]
    assert names("transformer", (("model", "heads"), 3)) == ["model.heads", "model.width"]
    assert "data.target.column" in names("mlp", (("data", "target", "column"), "age"))
    assert "data.target.type" in names("mlp", (("data", "target", "type"), "number"))
    assert names("short text", (("data", "split", "stratify"), "label")) == ["data.split.column", "data.split.stratify"]
    two = {"type": "text"}
    assert "model.type" in names("transformer", (("data", "inputs", "title"), two))
    assert "data.inputs.text.type" in names("mlp", (("data", "inputs", "text"), two))


def test_a_public_endpoint_names_no_tenants() -> None:
    assert refusal(changed(VALID["mlp"], ("publish", "endpoint", "access", "public"), True)) == [
        f"publish.endpoint.access.{key}: a public endpoint asks nobody for a key, so it knows no tenants; "
        "make public false, or name none"
        for key in ("public", "tenants")
    ]
    assert refusal(changed(VALID["mlp"], ("publish", "endpoint", "access"), {"public": True})) == []


ACME = ("publish", "endpoint", "access", "tenants", "acme")


@pytest.mark.parametrize(
    ("tenant", "allowance"),
    [
        ({}, None),
        ({"concurrent": 2}, None),
        ({"requests_per_s": 0.25}, 1.0),
        ({"requests_per_s": 50}, 50.0),
        ({"requests_per_s": 50, "burst": 1}, 1.0),
        ({"requests_per_s": 0.25, "burst": 9.5}, 9.5),
    ],
)
def test_what_a_tenant_may_ask_at_once(tenant: dict[str, Any], allowance: float | None) -> None:
    assert document.parse(Tenant, tenant, source="here").allowance == allowance


def test_a_burst_is_one_of_a_pace() -> None:
    lines = refusal(changed(VALID["mlp"], ACME, {"burst": 9}))
    assert [line.split(": ")[0] for line in lines] == [written((*ACME, "burst")), written((*ACME, "requests_per_s"))]
    assert "set requests_per_s too, or leave burst out" in lines[0]


@pytest.mark.parametrize(
    ("key", "least", "most", "beyond"),
    [
        ("body_mb", 1e-6, 1024, (0, -1, 1024.5)),
        ("rows", 1, 1_000_000, (0, 1_000_001, 1.5)),
        ("queue", 1, 100_000, (0, 100_001)),
        ("timeout_s", 0.001, 3600, (0, 3600.5)),
    ],
)
def test_limits_have_bounds(key: str, least: float, most: float, beyond: tuple[float, ...]) -> None:
    path = ("publish", "endpoint", "limits", key)
    for value in (least, most):
        assert refusal(changed(VALID["mlp"], path, value)) == []
    for value in beyond:
        assert [line.split(": ")[0] for line in refusal(changed(VALID["mlp"], path, value))] == [written(path)]


def read(tmp_path: Path, content: str | bytes, kind: type[Part] = Spec) -> Part:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return document.read(kind, path)


MINIMAL = """
name: short
data:
  source: {path: rows.csv}
  inputs: {x: {type: number}}
  target: {column: y, type: number}
model: {type: linear}
"""


def test_yaml_floats_without_a_point_are_numbers(tmp_path: Path) -> None:
    for text, value in (("3e-4", 3e-4), ("1E2", 100.0), ("2.e+1", 20.0), ("3.0e-4", 3e-4), ("1", 1.0)):
        spec = read(tmp_path, MINIMAL + f"train: {{optimizer: {{lr: {text}}}}}\n")
        assert isinstance(spec, Spec)
        assert spec.train.optimizer.lr == value
    with pytest.raises(SpecError, match=r"name: found 1000\.0; "):
        read(tmp_path, MINIMAL.replace("name: short", "name: 1e3"))
    with pytest.raises(SpecError, match=r"train.optimizer.lr: found '3e-4'; should be a valid number"):
        read(tmp_path, MINIMAL + 'train: {optimizer: {lr: "3e-4"}}\n')


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (MINIMAL + "name: again\n", "the key 'name' stands twice, again in line 8"),
        (
            MINIMAL.replace("{type: linear}", "{type: linear, type: mlp}"),
            "the key 'type' stands twice, again in line 7",
        ),
        ("name: [", "not valid YAML"),
        ("name: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("{[1, 2]: 3}", "not valid YAML"),
        ("{{a: 1}: 3}", "not valid YAML"),
        ("a: &x {<<: *x}", "not valid YAML|unknown key"),
        ("a: *nothing", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: 2026-13-45", "not valid YAML"),
        ("a: 0b12", "not valid YAML|unknown key"),
        ("a: !!int x", "not valid YAML"),
        ("a: !!float x", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!binary é", "not valid YAML"),
        ("a: !!set x", "not valid YAML"),
        ("a: 0xZ", "a: unknown key"),
        ("a: 190:20:99", "a: unknown key"),
        ("[" * 20_000, "not valid YAML"),
        ("{a: " * 20_000 + "1" + "}" * 20_000, "not valid YAML"),
        ("", "holds nothing"),
        ("- 1", "holds a list of 1"),
        ("plain words", "holds 'plain words'"),
        (b"name: \xff\xfe", "is not text"),
        (b"name: a\x00b", "not valid YAML"),
        ("? name\n", "name: found nothing"),
        ("1: 2", "1: "),
        ("a: &x [*x]", "a: unknown key"),
        ("name: &x [*x]", "name: found a list of 1"),
        ("name: &x {y: *x}", "name: found a mapping"),
    ],
)
def test_files_that_are_no_spec(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        read(tmp_path, content)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml cannot be read: No such file"):
        run.load(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        run.load(tmp_path)


@given(content=st.binary(max_size=40) | st.text(alphabet="ab:-[]{}&*!?|>'\"%@`#, \n\t1e.~", max_size=40))
@settings(max_examples=400, deadline=None)
def test_no_file_whatever_its_bytes_raises_another_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    with pytest.raises(SpecError):
        read(tmp_path_factory.getbasetemp(), content)


def test_relative_paths_start_at_the_file_and_variables_are_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA_ROOT", "/somewhere/else")
    folder = tmp_path / "specs"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)

    def path_of(path: str) -> str:
        (folder / "spec.yaml").write_text(MINIMAL.replace("rows.csv", path))
        return run.load("specs/spec.yaml").data.source.path

    assert path_of("rows.csv") == str(folder / "rows.csv")
    assert path_of("../rows.csv") == str(tmp_path / "rows.csv")
    assert path_of("/abs/*.csv") == "/abs/*.csv"
    assert path_of("$DATA_ROOT/rows.csv") == "/somewhere/else/rows.csv"
    assert path_of('"${DATA_ROOT}/rows.csv"') == "/somewhere/else/rows.csv"
    assert path_of("$TIDEGATE_HOME/rows.csv") == str(tmp_path / "home" / "rows.csv")
    assert path_of("s3://bucket/rows.csv") == "s3://bucket/rows.csv"


def test_home_is_filled_in_when_it_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TIDEGATE_HOME", raising=False)
    (tmp_path / "spec.yaml").write_text(MINIMAL.replace("rows.csv", "$TIDEGATE_HOME/rows.csv"))
    assert run.load(tmp_path / "spec.yaml").data.source.path == str(tmp_path / ".tidegate" / "rows.csv")


def test_an_unset_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    (tmp_path / "spec.yaml").write_text(MINIMAL.replace("rows.csv", "$NOT_SET_ANYWHERE/rows.csv"))
    with pytest.raises(SpecError, match=r"data\.source\.path.*NOT_SET_ANYWHERE"):
        run.load(tmp_path / "spec.yaml")


def test_an_endpoint_as_a_file_and_written_out_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    (tmp_path / "endpoint.yaml").write_text(yaml.safe_dump(ENDPOINT))
    for place, endpoint in (("a.yaml", "endpoint.yaml"), ("b.yaml", ENDPOINT)):
        value = changed(VALID["cnn"], ("publish", "endpoint"), endpoint)
        (tmp_path / place).write_text(yaml.safe_dump(value))
    specs = [run.load(tmp_path / place) for place in ("a.yaml", "b.yaml")]
    assert specs[0] == specs[1]
    assert specs[0].publish.endpoint == document.parse(Endpoint, ENDPOINT, source="here")

    (tmp_path / "endpoint.yaml").write_text("name: digits\nmodle: digits\n")
    with pytest.raises(
        SpecError, match=r"endpoint\.yaml has 2 mistakes:\n  model: missing.*\n  modle: unknown key; did"
    ):
        run.load(tmp_path / "a.yaml")
    (tmp_path / "endpoint.yaml").unlink()
    with pytest.raises(SpecError, match=r"endpoint\.yaml cannot be read"):
        run.load(tmp_path / "a.yaml")


def test_defaults_need_only_name_data_and_model() -> None:
    spec = document.parse(Spec, yaml.safe_load(MINIMAL), source="here")
    assert spec.task == "regression"
    assert (spec.seed, spec.train.epochs, spec.publish.endpoint) == (0, 10, None)
    assert refusal({}) == [f"{key}: missing; this key is required" for key in ("name", "data", "model")]


SHIPPED = sorted((ROOT / "jobs" / "specs").glob("*.yaml"))
SHIPPED_ENDPOINTS = sorted((ROOT / "deployments").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_parse(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    spec = run.load(path)
    assert Path(spec.data.source.path).is_absolute()
    assert document.parse(Spec, spec.model_dump(mode="json"), source="dump") == spec


@pytest.mark.parametrize("path", SHIPPED_ENDPOINTS, ids=lambda path: path.stem)
def test_shipped_endpoints_parse(path: Path) -> None:
    endpoint = document.read(Endpoint, path)
    assert document.parse(Endpoint, endpoint.model_dump(mode="json"), source="dump") == endpoint


def test_something_is_shipped() -> None:
    assert SHIPPED
    assert SHIPPED_ENDPOINTS


def test_a_version_is_an_endpoint_of_its_models_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert wanted("digits@production") == Endpoint(name="digits", model="digits@production")
    Path("digits@2").write_text("name: other\nmodel: digits@2\n")
    assert wanted("digits@2").name == "other"
    for what in ("Digits@production", "digits@", "no-file.yaml"):
        with pytest.raises(SpecError):
            wanted(what)


def test_grouping_by_length_needs_an_input_of_any_length() -> None:
    (line,) = refusal(changed(VALID["cnn"], ("train", "group_by_length"), True))
    assert line == "train.group_by_length: no input is of any length; those of type text, series, audio are"
    document.parse(Spec, changed(VALID["transformer"], ("train", "group_by_length"), True), source="here")


def test_heads_of_a_forecast_are_those_of_its_transformer() -> None:
    forecast = changed(VALID["linear"], ("model",), {"type": "forecast", "encoder": "gru", "width": 6, "heads": 3})
    forecast["data"]["inputs"] = {"past": {"type": "series", "max_length": 5}}
    forecast["train"]["compile"] = False
    assert any(
        line.startswith("model.heads: heads are given, but encoder 'gru' has none") for line in refusal(forecast)
    )
    good = changed(forecast, ("model", "heads"), REMOVED)
    spec = document.parse(Spec, good, source="here")
    assert document.parse(Spec, spec.model_dump(mode="json"), source="dump") == spec
    wrong = changed(good, ("model",), {"type": "forecast", "encoder": "transformer", "width": 6})
    assert any("not a multiple of heads 4" in line for line in refusal(wrong))
    classes = changed(good, ("data", "target", "type"), "category")
    assert any(
        line.startswith("model.type: model type forecast learns a target of type number, not category")
        for line in refusal(classes)
    )
    several = changed(classes, ("data", "target", "length"), 3)
    assert any(
        line.startswith("data.target.length: unknown key for data.target.type 'category'") for line in refusal(several)
    )


@pytest.mark.parametrize(("model", "kind"), [("transformer", "text"), ("forecast", "series"), ("rnn", "series")])
def test_what_is_cut_to_its_longest_row_is_not_compiled(model: str, kind: str) -> None:
    spec = changed(VALID["linear"], ("model",), {"type": model})
    spec["data"]["inputs"] = {"x": {"type": kind, "max_length": 5}}
    lines = refusal(spec)
    sentence = f"model type {model} has another shape in every batch, and would be compiled for each"
    cut = [f"train.compile: {sentence}; leave it out", f"model.type: {sentence}"]
    assert lines == (cut if model != "rnn" else [])
    assert refusal(changed(spec, ("train", "compile"), False)) == []


def test_models_that_write_texts() -> None:
    spelled = changed(VALID["transformer"], ("model",), {"type": "seq2seq"})
    spelled["data"]["target"] = {"column": "said", "type": "text", "tokenizer": "word"}
    spelled["data"]["split"] = {}
    spelled["evaluate"], spelled["train"] = {"require": {"test.ser": {"at_most": 0.3}}}, {"epochs": 3}
    spec = document.parse(Spec, spelled, source="here")
    assert spec.task == "sequence"
    assert document.parse(Spec, spec.model_dump(mode="json"), source="dump") == spec
    lines = refusal(changed(spelled, ("train", "compile"), True))
    assert [line.partition(": ")[0] for line in lines] == ["train.compile", "model.type"]
    assert "model type seq2seq has another shape in every batch" in lines[0]
    lines = refusal(changed(spelled, ("model",), {"type": "transformer"}))
    assert lines[0] == "data.target.type: model type transformer learns a target of type category or number, not text"
    assert lines[1].endswith("; seq2seq, ctc do")
    assert any(
        "'accuracy' is no metric of sequence" in line
        for line in refusal(changed(spelled, ("evaluate",), {"metrics": ["accuracy"]}))
    )
    odd = changed(spelled, ("model",), {"type": "seq2seq", "network": "gru", "width": 9, "heads": 3})
    assert any(line.startswith("model.width: 9 is odd") for line in refusal(odd))
    heads = changed(spelled, ("model",), {"type": "ctc", "heads": 2})
    assert any(line.startswith("model.heads: heads are given, but encoder 'gru' has none") for line in refusal(heads))


def test_a_forecast_has_a_scale_of_its_own() -> None:
    spec = changed(VALID["linear"], ("model",), {"type": "forecast", "encoder": "gru", "width": 6})
    spec["data"]["inputs"] = {"past": {"type": "series", "max_length": 5, "scale": "none"}}
    spec["train"]["compile"] = False
    (line,) = refusal(spec)
    assert line.startswith("data.inputs.past.scale: model type forecast brings each window to one scale")


def test_a_class_is_not_called_as_the_chances_are() -> None:
    spec = changed(VALID["mlp"], ("data", "target", "column"), "probabilities")
    spec["data"]["split"].pop("stratify")
    (line,) = refusal(spec)
    assert line.startswith("data.target.column: a classifier answers with probabilities beside the class")


def test_only_a_linear_model_may_begin_at_zero() -> None:
    assert document.parse(Spec, VALID["linear"], source="here").model.init == "zero"
    (line,) = refusal(changed(VALID["mlp"], ("model", "init"), "zero"))
    assert line == "model.init: found 'zero'; should be 'xavier' or 'kaiming' for model.type 'mlp'"
