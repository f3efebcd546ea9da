"""Artifacts: the digest covers what decides the answers and nothing else, and torch alone gives the same answers."""

from __future__ import annotations

import hashlib
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
from torch.nn.functional import cross_entropy, mse_loss

from tidegate import artifact
from tidegate.data.prepared import TARGET, Prepared
from tidegate.errors import ArtifactError, RequestError
from tidegate.models import custom
from tidegate.models.build import build
from tidegate.models.code import Code
from tidegate.spec.run import Spec
from tidegate.transforms.base import Feature

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

    def __init__(self, spec: Spec, table: pa.Table, folder: Path, prepare_by_hand: Any) -> None:
        self.spec, self.code = spec, custom.code_of(spec.model)
        self.prepared: Prepared = prepare_by_hand(folder, spec, table)
        target = self.prepared.target
        model = build(spec.model, self.prepared.features, target.feature, seed=spec.seed, code=self.code)
        optimizer, reader = torch.optim.AdamW(model.parameters(), 0.01), self.prepared.reader("train")
        for rows in np.array_split(np.arange(self.prepared.num_rows("train")), 12):
            arrays = {name: torch.from_numpy(array) for name, array in reader.read(rows).items()}
            outputs, targets = model(arrays), arrays[TARGET]
            loss = (
                cross_entropy(outputs, targets)
                if target.task == "classification"
                else mse_loss(outputs.reshape(-1), targets)
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.weights = model.state_dict()

    def write(self, folder: Path, **changes: Any) -> str:
        parts = {"spec": self.spec, "prepared": self.prepared, "weights": self.weights, "code": self.code} | changes
        return artifact.write(folder, parts["spec"], parts["prepared"], parts["weights"], parts["code"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Callable[[str], Trained]:
    made: dict[str, Trained] = {}

    def get(kind: str) -> Trained:
        if kind not in made:
            folder = tmp_path_factory.mktemp("data") / kind
            made[kind] = Trained(spec_of(kind), table_of(kind), folder, prepare_by_hand)
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


@pytest.mark.parametrize("kind", SPECS)
def test_a_version_computes_what_the_trained_module_computes(
    kind: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    """On prepared rows; columns are in the order they were trained in, which is not that of their names."""
    one = trained(kind)
    one.write(tmp_path)
    target = one.prepared.target
    module = build(one.spec.model, one.prepared.features, target.feature, seed=0, code=one.code).eval()
    module.load_state_dict(one.weights)
    rows = {name: torch.from_numpy(array) for name, array in one.prepared.reader("test").read(np.arange(9)).items()}
    with torch.inference_mode():
        expected = module(rows)
        assert torch.equal(artifact.load(tmp_path).module(rows), expected)
        # As files written before the order was kept there: the signature has it.
        document = json.loads((tmp_path / artifact.MODEL).read_text())
        (tmp_path / artifact.MODEL).write_text(json.dumps(document, sort_keys=True))
        relist(tmp_path, artifact.MODEL)
        assert torch.equal(artifact.load(tmp_path).module(rows), expected)


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
    "checkpoints": {
        "train": {
            "epochs": 1,
            "optimizer": {"lr": 0.01},
            "checkpoint": {"every_s": 5.0, "every_steps": 7, "keep": 3, "path": "s3://bucket/runs"},
        }
    },
    "feed": {"data": SPECS["categories"]["data"] | {"feed": "ray_data"}},
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
    "best": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "checkpoint": {"best": "validation.accuracy"}}},
    "reduction": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "reduction": "fast"}},
    "precision": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "precision": "bf16"}},
    "compile": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "compile": True}},
    "micro batch": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "micro_batch": 8}},
    "class weights": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "class_weights": "balanced"}},
    "schedule": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "schedule": {"type": "cosine"}}},
    "early stop": {"train": {"epochs": 1, "optimizer": {"lr": 0.01}, "early_stop": {}}},
    "dropout": {"model": SPECS["categories"]["model"] | {"dropout": 0.3}},
    "split": {"data": SPECS["categories"]["data"] | {"split": {"train": 0.7, "validation": 0.2, "test": 0.1}}},
    "invalid rows": {"data": SPECS["categories"]["data"] | {"invalid_rows": {"action": "drop"}}},
}


def test_augmented_images_make_another_model(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    version, data = trained("digits"), SPECS["digits"]["data"]
    augmented = {"inputs": {"pixels": data["inputs"]["pixels"] | {"augment": {"shift": 1}}}}
    changed = spec_of("digits", data=data | augmented)
    assert version.write(tmp_path / "one", spec=changed) != version.write(tmp_path / "two")


def test_the_digest_of_a_model_without_code_is_that_of_its_document_and_weights(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    """As it always was: the digests of registered versions must not change."""
    version = trained("categories")
    assert version.write(tmp_path / "one") == version.write(tmp_path / "two", code=None)
    document = json.loads((tmp_path / "one" / artifact.MODEL).read_text())
    content = {key: document[key] for key in ("task", "model", "columns", "target", "signature", "spec")}
    weights = hashlib.sha256((tmp_path / "one" / artifact.WEIGHTS).read_bytes()).hexdigest()
    expected = hashlib.sha256(json.dumps([content, weights], sort_keys=True).encode()).hexdigest()
    assert json.loads((tmp_path / "one" / artifact.MANIFEST).read_text())["digest"] == expected
    assert {file.name for file in (tmp_path / "one").iterdir()} == {artifact.WEIGHTS, artifact.MODEL, artifact.MANIFEST}


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
    edit(folder / artifact.MODEL, '"unknown": "bucket"', '"unknown": "refuse"')
    relist(folder, artifact.MODEL)


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
    other = build(
        spec_of("categories").model.model_copy(update={"hidden": [9]}),
        version.prepared.features,
        Feature("y", "category", (), 2),
        seed=0,
    )
    version.write(tmp_path, weights=other.state_dict())
    with pytest.raises(
        ArtifactError, match=r"do not fit the module .* another shape: layers.0.weight \[9, 6\], not \["
    ):
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
    size = len(state["vocabulary"])
    # The last row is of what is not known, as the mean of what is.
    table = torch.cat([torch.eye(size), torch.full((1, size), 1 / size)])
    table = nn.functional.pad(table, (0, state["unknown"] == "bucket"))
    codes = [state["vocabulary"].index(v) if v in state["vocabulary"] else size for v in values.tolist()]
    return table[codes]


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


OWN = {
    "nets/__init__.py": "",
    "nets/digits.py": """
import torch
from torch import nn

from nets.parts import block
import marker


class Net(nn.Module):
    def __init__(self, width, features, outputs):
        super().__init__()
        self.first = block(features[0].shape[0], width)
        self.encode = nn.Linear(width * 16, 24)
        self.decode = nn.Linear(24, 24, bias=False)
        self.again = nn.Linear(24, 24, bias=False)
        self.again.weight = self.decode.weight
        self.head = nn.Linear(24, outputs)

    def forward(self, pixels):
        marker.note()
        states = torch.relu(self.encode(self.first(pixels).flatten(1)))
        return self.head(self.again(torch.relu(self.decode(states))))
""",
    "nets/parts.py": """
from torch import nn


def block(channels, width):
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))
""",
    "marker.py": """
def note():
    pass
""",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare_by_hand: Any) -> Trained:
    """A trained model of a package that lies in a folder which is gone again."""
    root = tmp_path / "work"
    for path, text in OWN.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    monkeypatch.chdir(root)
    spec = spec_of("digits", model={"type": "custom", "build": "nets.digits:Net", "args": {"width": 3}})
    made = Trained(spec, table_of("digits"), tmp_path / "prepared", prepare_by_hand)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(root)
    return made


ELSEWHERE = """
import sys
import numpy as np
from pathlib import Path
from tidegate import artifact

model = artifact.load(Path(sys.argv[1]), sys.argv[2])
answers = model.predict({"pixels": np.load(sys.argv[3])})
np.savez(sys.argv[4], **answers)
assert not {"nets", "marker"} & set(sys.modules)
"""


def test_an_own_model_answers_where_its_sources_are_not(own: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "version"
    digest = own.write(folder)
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert files == {artifact.WEIGHTS, artifact.MODEL, artifact.MANIFEST, *(f"code/{path}" for path in OWN)}
    inputs = rows_of("digits", 20)["pixels"]
    np.save(tmp_path / "rows.npy", inputs)
    (tmp_path / "elsewhere").mkdir()
    paths = [str(folder), digest, str(tmp_path / "rows.npy"), str(tmp_path / "answers.npz")]
    command = [sys.executable, "-I", "-c", ELSEWHERE, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path / "elsewhere", check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "answers.npz")
    expected = artifact.load(folder, digest).predict({"pixels": inputs})
    for name, values in expected.items():
        assert np.array_equal(found[name], values)
    module = build(own.spec.model, own.prepared.features, Feature("y", "category", (), 10), seed=1, code=own.code)
    module.load_state_dict(own.weights)
    arrays = own.prepared.columns.apply({"pixels": inputs})
    with torch.inference_mode():
        logits = module.eval()({"pixels": torch.from_numpy(arrays["pixels"])})
    assert np.allclose(found["probabilities"], logits.softmax(1).numpy(), atol=1e-6)


def test_tied_weights_and_buffers_come_back(own: Trained, tmp_path: Path) -> None:
    assert own.weights["again.weight"].data_ptr() == own.weights["decode.weight"].data_ptr()
    own.write(tmp_path / "version")
    module = artifact.load(tmp_path / "version").module
    found = module.state_dict()
    assert list(found) == list(own.weights)
    assert all(torch.equal(tensor, own.weights[name]) for name, tensor in found.items())
    assert int(found["first.1.num_batches_tracked"]) == 12
    assert found["first.1.num_batches_tracked"].dtype == torch.int64
    assert module.again.weight is module.decode.weight  # type: ignore[union-attr]


def test_every_source_is_part_of_the_digest(own: Trained, tmp_path: Path) -> None:
    digest = own.write(tmp_path / "0")
    assert own.write(tmp_path / "again", code=Code(dict(reversed(own.code.files.items())))) == digest
    digests = {digest}
    for number, path in enumerate(own.code.files, 1):
        changed = own.code.files | {path: f"{own.code.files[path]}# another"}
        digests.add(own.write(tmp_path / str(number), code=Code(changed)))
    digests.add(own.write(tmp_path / "more", code=Code(own.code.files | {"nets/more.py": ""})))
    assert len(digests) == len(own.code.files) + 2


def test_two_versions_of_a_source_answer_in_one_process(own: Trained, tmp_path: Path) -> None:
    doubled = own.code.files["nets/digits.py"].replace("return self.head(", "return 2 * self.head(")
    one, two = (
        own.write(tmp_path / "1"),
        own.write(tmp_path / "2", code=Code(own.code.files | {"nets/digits.py": doubled})),
    )
    models = [artifact.load(tmp_path / "1", one), artifact.load(tmp_path / "2", two)]
    inputs = rows_of("digits", 5)
    first, second = (model.predict(inputs)["probabilities"].astype(np.float64) for model in models)
    assert np.allclose(first**2 / (first**2).sum(axis=1, keepdims=True), second, atol=1e-5)
    assert not np.allclose(first, second, atol=1e-3)


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def relist(folder: Path, name: str, to: str | None = None) -> None:
    """Have the manifest say of `name` what its file is now; or name it otherwise."""
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    manifest["sha256"].pop(name, None)
    manifest["sha256"][to or name] = hashlib.sha256((folder / (to or name)).read_bytes()).hexdigest()
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))


def unlist(folder: Path, name: str) -> None:
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    del manifest["sha256"][name]
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))


EVIL = "import pathlib\npathlib.Path({!r}).touch()\ndef note():\n    pass\n"


TAMPERED: dict[str, Callable[[Path], object]] = {
    "changed": lambda folder: None,
    "changed and listed": lambda folder: relist(folder, "code/marker.py"),
    "gone": lambda folder: (folder / "code/marker.py").unlink(),
    "gone and not listed": lambda folder: unlist(folder, "code/marker.py"),
    "one more listed": lambda folder: (put(folder / "code/more.py", ""), relist(folder, "code/more.py")),
    "a file elsewhere": lambda folder: (
        put(folder / "marker.py", (folder / "code/marker.py").read_text()),
        relist(folder, "code/marker.py", "code/../marker.py"),
    ),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_tampered_sources_are_refused_and_not_executed(
    tamper: Callable[[Path], object], own: Trained, tmp_path: Path
) -> None:
    folder, executed = tmp_path / "version", tmp_path / "executed"
    digest = own.write(folder)
    (folder / "code/marker.py").write_text(EVIL.format(str(executed)))
    tamper(folder)
    for expected in (None, digest):
        with pytest.raises(ArtifactError, match="cannot be used"):
            artifact.load(folder, expected)
    assert not executed.exists()


def test_another_own_model_than_the_registered_one_is_not_executed(own: Trained, tmp_path: Path) -> None:
    """A whole, consistent version with other sources."""
    folder, executed = tmp_path / "version", tmp_path / "executed"
    digest = own.write(folder)
    other = own.write(folder, code=Code(own.code.files | {"marker.py": EVIL.format(str(executed))}))
    with pytest.raises(ArtifactError, match=f"its digest is {other[:12]}, not {digest[:12]}"):
        artifact.load(folder, digest)
    assert not executed.exists()
    artifact.load(folder, other)
    assert executed.exists()


@pytest.mark.parametrize("path", ["../outside.py", "a/../b.py", "data.txt", "not-a-module.py"])
def test_a_consistent_version_that_lists_other_files_is_refused(path: str, own: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "version"
    (folder / "code/a").mkdir(parents=True)
    digest = own.write(folder, code=Code(own.code.files | {path: ""}))
    with pytest.raises(ArtifactError, match=f"names 'code/{path}', which is no file of a model version"):
        artifact.load(folder, digest)


def test_files_beside_the_listed_sources_are_not_part_of_a_version(own: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "version"
    digest = own.write(folder)
    put(folder / "code/torch.py", "raise SystemExit")
    assert artifact.load(folder, digest).digest == digest


def test_an_own_model_that_does_not_build_here_says_why(own: Trained, tmp_path: Path) -> None:
    absent = Code(own.code.files | {"marker.py": "import not_installed_here\n"})
    own.write(tmp_path / "absent", code=absent)
    with pytest.raises(ArtifactError, match=r"No module named 'not_installed_here' \(marker.py:1\); install the pack"):
        artifact.load(tmp_path / "absent")
    wider = own.code.files["nets/digits.py"].replace("24, outputs", "24, outputs, bias=False")
    own.write(tmp_path / "other", code=Code(own.code.files | {"nets/digits.py": wider}))
    with pytest.raises(ArtifactError, match=r"its weights do not fit .*weights that the module lacks: head.bias"):
        artifact.load(tmp_path / "other")


def test_an_own_model_is_not_written_without_its_code(own: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kept with its code"):
        own.write(tmp_path / "version", code=None)
    assert not (tmp_path / "version").exists()
