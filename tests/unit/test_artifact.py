"""Artifacts: the digest covers what decides the answers and nothing else, and torch alone gives the same answers."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits, load_iris, load_wine

from tidegate import artifact
from tidegate.data.prepared import Prepared
from tidegate.errors import ArtifactError, RequestError
from tidegate.models.build import build
from tidegate.spec.run import Spec
from tidegate.training.job import plan_of
from tidegate.training.learner import Learner
from tidegate.training.ledger import Ledger

SPECS: dict[str, dict[str, Any]] = {
    "regression": {
        "data": {
            "inputs": {"age": {"type": "number"}, "bmi": {"type": "number"}},
            "target": {"column": "progression", "type": "number"},
        },
        "model": {"type": "linear"},
    },
    "categories": {
        "data": {
            "inputs": {"sex": {"type": "category", "unknown": "bucket"}, "body": {"type": "number", "length": 3}},
            "target": {"column": "ill", "type": "category"},
        },
        "model": {"type": "mlp", "hidden": [8, 6], "dropout": 0.2},
    },
    "digits": {
        "data": {
            "inputs": {"pixels": {"type": "image", "size": [8, 8], "max_value": 16}},
            "target": {"column": "digit", "type": "category"},
        },
        "model": {"type": "cnn", "channels": [4, 6], "hidden": 12},
    },
    "sentences": {
        "data": {
            "inputs": {"line": {"type": "text", "vocab_size": 400, "max_length": 12}},
            "target": {"column": "about", "type": "category"},
        },
        "model": {"type": "transformer", "layers": 2, "width": 16, "heads": 4},
    },
}


def spec_of(kind: str, **changes: Any) -> Spec:
    document = SPECS[kind] | {"name": kind, "seed": 4, "train": {"epochs": 1, "optimizer": {"lr": 0.01}}} | changes
    data = {"source": {"path": f"{kind}.parquet"}} | document["data"]
    return Spec.model_validate(document | {"data": data})


def table_of(kind: str) -> pa.Table:
    if kind == "digits":
        pixels, digit = load_digits(return_X_y=True)
        return pa.table({"pixels": pixels.tolist(), "digit": digit})
    if kind == "sentences":
        texts = {"iris": load_iris().DESCR, "wine": load_wine().DESCR}
        rows = [(line, about) for about, text in texts.items() for line in text.splitlines() if line.strip()]
        return pa.table({"line": [line for line, _ in rows], "about": [about for _, about in rows]})
    inputs, progression = load_diabetes(return_X_y=True, scaled=False)
    sexes = [("f", "m")[int(sex) - 1] for sex in inputs[:, 1]]
    measures = {"age": inputs[:, 0], "bmi": inputs[:, 2], "body": inputs[:, 2:5].tolist(), "sex": sexes}
    return pa.table(measures | {"progression": progression, "ill": (progression > 150).tolist()})


def rows_of(kind: str, count: int) -> dict[str, Any]:
    """Rows as an endpoint gets them."""
    table = table_of(kind).slice(3, count)
    if kind == "digits":
        return {"pixels": np.asarray(table["pixels"].to_pylist(), np.float32).reshape(-1, 8, 8, 1)}
    if kind == "sentences":
        lines = np.empty(len(table), dtype=object)
        lines[:] = table["line"].to_pylist()
        return {"line": lines}
    inputs = {name: np.asarray(table[name].to_pylist(), np.float64) for name in ("age", "bmi", "body")}
    return inputs | {"sex": np.asarray([*table["sex"].to_pylist()[:-1], "another"], dtype=object)}


class Trained:
    """A spec, its prepared data, and weights after an epoch."""

    def __init__(self, kind: str, folder: Path, prepare_by_hand: Any) -> None:
        self.spec = spec_of(kind)
        self.prepared: Prepared = prepare_by_hand(folder, self.spec, table_of(kind))
        plan = plan_of(self.spec, self.prepared)
        learner = Learner(self.spec, self.prepared, plan, worker=0, workers=1, ledger=Ledger("", "run", 0))
        reader = self.prepared.reader("train")
        for step in range(learner.total_steps):
            batch = {shard: reader.read(plan.shard_rows(step, shard)) for shard in range(plan.shards)}
            learner.learn(batch, flag=False)
        self.weights = learner.model.state_dict()

    def write(self, folder: Path, **changes: Any) -> str:
        parts = {"spec": self.spec, "prepared": self.prepared, "weights": self.weights} | changes
        return artifact.write(folder, parts["spec"], parts["prepared"], parts["weights"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Callable[[str], Trained]:
    made: dict[str, Trained] = {}

    def get(kind: str) -> Trained:
        if kind not in made:
            made[kind] = Trained(kind, tmp_path_factory.mktemp("data") / kind, prepare_by_hand)
        return made[kind]

    return get


@pytest.mark.parametrize("kind", SPECS)
def test_a_version_answers_what_its_signature_says(
    kind: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    digest = trained(kind).write(tmp_path)
    model = artifact.load(tmp_path, digest)
    assert (model.name, model.digest) == (kind, digest)
    for rows in (1, 9):
        inputs = {name: values for name, values in rows_of(kind, rows).items() if name in SPECS[kind]["data"]["inputs"]}
        assert {tensor.name for tensor in model.signature.inputs} == inputs.keys()
        for tensor in model.signature.inputs:
            assert inputs[tensor.name].shape[1:] == tensor.shape[1:]
        answers = model.predict(inputs)
        assert list(answers) == [tensor.name for tensor in model.signature.outputs]
        for tensor in model.signature.outputs:
            found = answers[tensor.name]
            assert found.shape == (rows, *tensor.shape[1:])
            assert {"FP32": "float32", "INT64": "int64", "BYTES": "object"}[tensor.datatype] == str(found.dtype)
        if "probabilities" in answers:
            assert np.allclose(answers["probabilities"].sum(axis=1), 1, atol=1e-6)
            assert (answers["probabilities"] >= 0).all()
    assert model.predict(model.example(3)).keys() == answers.keys()


def test_values_a_model_cannot_take_are_refused(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    trained("regression").write(tmp_path / "regression")
    model = artifact.load(tmp_path / "regression")
    with pytest.raises(RequestError, match="age holds NaN"):
        model.predict({"age": np.array([np.nan]), "bmi": np.array([20.0])})
    trained("digits").write(tmp_path / "digits")
    with pytest.raises(RequestError, match=r"outside 0\.\.16"):
        artifact.load(tmp_path / "digits").predict({"pixels": np.full((1, 8, 8, 1), 17.0, np.float32)})


def test_many_threads_get_the_answers_of_one(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    trained("sentences").write(tmp_path)
    model = artifact.load(tmp_path)
    inputs = rows_of("sentences", 8)
    expected, wrong = model.predict(inputs)["probabilities"], []

    def ask() -> None:
        for _ in range(20):
            if not np.array_equal(model.predict(inputs)["probabilities"], expected):
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_equal_content_has_an_equal_digest(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    version = trained("categories")
    digest = version.write(tmp_path / "one")
    assert version.write(tmp_path / "two") == digest
    again = {name: version.weights[name].clone() for name in reversed(version.weights)}
    assert version.write(tmp_path / "three", weights=again) == digest
    assert len(digest) == 64


WORKERS = {"min": 2, "max": 3}
SAME: dict[str, dict[str, Any]] = {
    "workers": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "workers": WORKERS}},
    "name": {"name": "another"},
    "path": {"data": SPECS["categories"]["data"] | {"source": {"path": "/elsewhere/x.csv"}}},
    "evaluate": {"evaluate": {"require": {"test.accuracy": {"at_least": 0.9}}}},
    "publish": {"publish": {"alias": "production"}},
    "card": {"card": {"description": "a model"}},
}
OTHER: dict[str, dict[str, Any]] = {
    "seed": {"seed": 5},
    "threads": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "workers": {"cpu": 2}}},
    "epochs": {"train": {"epochs": 2, "optimizer": {"lr": 0.01}}},
    "shards": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "shards": 2}},
    "lr": {"train": {"epochs": 1, "optimizer": {"lr": 0.02}}},
    "schedule": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "schedule": {"type": "cosine"}}},
    "early stop": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "early_stop": {}}},
    "dropout": {"model": SPECS["categories"]["model"] | {"dropout": 0.3}},
    "split": {"data": SPECS["categories"]["data"] | {"split": {"train": 0.7, "validation": 0.2, "test": 0.1}}},
    "invalid rows": {"data": SPECS["categories"]["data"] | {"invalid_rows": {"action": "drop"}}},
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_what_does_not_decide_the_model_leaves_the_digest(
    changes: dict[str, Any], trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    version = trained("categories")
    changed = spec_of("categories", **changes)
    assert changed != version.spec
    assert version.write(tmp_path / "one", spec=changed) == version.write(tmp_path / "two")


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_what_decides_the_model_changes_the_digest(
    changes: dict[str, Any], trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    version = trained("categories")
    changed = spec_of("categories", **changes)
    assert version.write(tmp_path / "one", spec=changed) != version.write(tmp_path / "two")


def test_one_bit_of_a_weight_or_of_a_transform_changes_the_digest(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    version = trained("categories")
    digests = {version.write(tmp_path / "0")}
    weights = {name: tensor.clone() for name, tensor in version.weights.items()}
    bias = weights["layers.0.bias"]
    bias[0] = torch.nextafter(bias[0], torch.tensor(math.inf))
    digests.add(version.write(tmp_path / "1", weights=weights))
    renamed = {f"{name}2": tensor for name, tensor in version.weights.items()}
    digests.add(version.write(tmp_path / "2", weights=renamed))
    for number, (part, key) in enumerate([("columns", "body"), ("columns", "sex"), ("target", "")], 3):
        manifest = json.loads(json.dumps(version.prepared.manifest))
        if key == "body":
            manifest[part][key]["shift"][0] = np.nextafter(manifest[part][key]["shift"][0], np.inf)
        elif key == "sex":
            manifest[part][key]["vocabulary"].reverse()
        else:
            manifest[part]["state"]["classes"].reverse()
        digests.add(version.write(tmp_path / str(number), prepared=Prepared(version.prepared.folder, manifest)))
    assert len(digests) == 6


def test_what_lies_beside_an_artifact_is_no_part_of_it(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    digest = trained("regression").write(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert artifact.load(tmp_path, digest).digest == digest


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def forge(folder: Path) -> None:
    """Another model.json, with a manifest that fits it but for the digest."""
    import hashlib

    edit(folder / artifact.MODEL, '"unknown": "bucket"', '"unknown": "refuse"')
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    manifest["sha256"][artifact.MODEL] = hashlib.sha256((folder / artifact.MODEL).read_bytes()).hexdigest()
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "folder gone": shutil.rmtree,
    "weights gone": lambda folder: (folder / artifact.WEIGHTS).unlink(),
    "model gone": lambda folder: (folder / artifact.MODEL).unlink(),
    "manifest gone": lambda folder: (folder / artifact.MANIFEST).unlink(),
    "a bit of the weights": lambda folder: flip(folder / artifact.WEIGHTS),
    "weights cut": lambda folder: (folder / artifact.WEIGHTS).write_bytes(b""),
    "another vocabulary": lambda folder: edit(folder / artifact.MODEL, '"f"', '"g"'),
    "forged model": forge,
    "half a manifest": lambda folder: (folder / artifact.MANIFEST).write_text("{"),
    "a manifest of another shape": lambda folder: (folder / artifact.MANIFEST).write_text(
        '{"format": 1, "sha256": []}'
    ),
    "a list": lambda folder: (folder / artifact.MANIFEST).write_text("[]"),
    "no text": lambda folder: (folder / artifact.MANIFEST).write_bytes(b"\xff\x00"),
    "another format": lambda folder: edit(folder / artifact.MANIFEST, '"format": 1', '"format": 2'),
    "another digest": lambda folder: edit(folder / artifact.MANIFEST, '"digest": "', '"digest": "0'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_version_is_refused(
    damage: Callable[[Path], object], trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    folder = tmp_path / "version"
    digest = trained("categories").write(folder)
    damage(folder)
    for expected in (None, digest):
        with pytest.raises(ArtifactError, match="cannot be used") as caught:
            artifact.load(folder, expected)
        assert caught.value.remedy


def test_another_version_than_the_registered_one_is_refused(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    """A whole, consistent version in the place of another."""
    version = trained("categories")
    digest = version.write(tmp_path)
    version.write(tmp_path, spec=spec_of("categories", seed=99))
    artifact.load(tmp_path)
    with pytest.raises(ArtifactError, match="its digest is"):
        artifact.load(tmp_path, digest)


def test_weights_that_do_not_fit_the_model_are_refused(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    version = trained("categories")
    other = build(spec_of("categories").model.model_copy(update={"hidden": [9]}), version.prepared.features, 2, seed=0)
    version.write(tmp_path, weights=other.state_dict())
    with pytest.raises(ArtifactError, match="cannot be used"):
        artifact.load(tmp_path)


def test_no_artifact_holds_a_pickle(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    trained("digits").write(tmp_path)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".json", ".safetensors"]


PLAIN = """
import json, sys
import numpy as np, torch
from safetensors.torch import load_file
from torch import nn

folder, given = sys.argv[1], np.load(sys.argv[2], allow_pickle=False)
document = json.load(open(folder + "/model.json"))
columns, model, target = document["columns"], document["model"], document["target"]["state"]
weights = load_file(folder + "/weights.safetensors")


def numbers(state, values):
    scaled = (values.reshape(len(values), -1) - np.array(state["shift"])) / np.array(state["scale"])
    return torch.tensor(scaled, dtype=torch.float32)


def one_hot(state, values):
    width = len(state["vocabulary"]) + (state["unknown"] == "bucket")
    codes = [state["vocabulary"].index(v) if v in state["vocabulary"] else width - 1 for v in values.tolist()]
    return torch.eye(width)[codes]


class Encoder(nn.Module):
    def __init__(self, state):
        super().__init__()
        width = model["width"]
        self.tokens = nn.Embedding(state["vocab_size"], width)
        self.positions = nn.Embedding(state["max_length"], width)
        options = dict(activation="gelu", batch_first=True, norm_first=True)
        layer = nn.TransformerEncoderLayer(width, model["heads"], 4 * width, 0.0, **options)
        self.encoder = nn.TransformerEncoder(layer, model["layers"], enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(target["classes"]))

    def forward(self, ids):
        states = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.encoder(states)).mean(1))


(name, first), *_ = columns.items()
if model["type"] == "cnn":
    height, width, channels = first["shape"]
    pixels = torch.tensor(given[name] / first["max_value"], dtype=torch.float32).permute(0, 3, 1, 2)
    mean, deviation = (torch.tensor(first[key]).reshape(1, -1, 1, 1) for key in ("mean", "deviation"))
    a, b = model["channels"]
    blocks = [nn.Conv2d(channels, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    blocks += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    hidden = model["hidden"]
    head = [nn.Flatten(), nn.Dropout(), nn.Linear(b * 4, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 10)]
    module = nn.ModuleDict({"blocks": nn.Sequential(*blocks), "head": nn.Sequential(*head)})
    module.load_state_dict(weights)
    module.eval()
    outputs = module["head"](module["blocks"]((pixels - mean) / deviation))
elif model["type"] == "transformer":
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(first["tokenizer"]))
    module = Encoder(first)
    module.load_state_dict(weights)
    module.eval()
    ids = [tokenizer.encode(text).ids[: first["max_length"]] or [1] for text in given[name].tolist()]
    outputs = torch.cat([module(torch.tensor([row])) for row in ids])
else:
    parts = [{"number": numbers, "category": one_hot}[s["type"]](s, given[n]) for n, s in columns.items()]
    values = torch.cat(parts, 1)
    sizes = [values.shape[1], *model.get("hidden", []), len(target.get("classes", "1"))]
    layers = []
    for inner, outer in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inner, outer), nn.ReLU(), nn.Dropout()]
    module = nn.Sequential(*layers[:-2])
    module.load_state_dict({k.replace("linear.", "0.").replace("layers.", ""): v for k, v in weights.items()})
    module.eval()
    outputs = module(values)
if target["type"] == "number":
    outputs = outputs[:, 0].double() * target["deviation"] + target["mean"]
else:
    outputs = outputs.softmax(1)
assert not [module for module in sys.modules if module.startswith("tidegate")]
print(json.dumps(outputs.tolist()))
"""


@pytest.mark.parametrize("kind", SPECS)
def test_plain_torch_gives_the_same_answers_from_the_files(
    kind: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    folder = tmp_path / "version"
    trained(kind).write(folder)
    inputs = {name: values for name, values in rows_of(kind, 20).items() if name in SPECS[kind]["data"]["inputs"]}
    np.savez(tmp_path / "rows.npz", **{n: v.astype(str) if v.dtype == object else v for n, v in inputs.items()})
    command = [sys.executable, "-I", "-c", PLAIN, str(folder), str(tmp_path / "rows.npz")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    expected = np.asarray(json.loads(found.stdout))
    answers = artifact.load(folder).predict(inputs)
    target = SPECS[kind]["data"]["target"]["column"]
    if kind == "regression":
        assert np.allclose(answers[target], expected, rtol=1e-6, atol=1e-5)
    else:
        assert np.abs(answers["probabilities"] - expected).max() < 1e-5
        classes = artifact.load(folder).target.classes
        assert [str(value) for value in answers[target].tolist()] == [classes[i] for i in expected.argmax(1)]
        assert expected.std() > 0.01
