"""Hugging Face folders: the answers are those of transformers, nothing is fetched or run, and mistakes are one line."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

import tidegate as tg
import tiny_bert
from tidegate import artifact, registry
from tidegate.errors import ArtifactError, TidegateError
from tidegate.loaded import Model
from tidegate.registry import Version

TEXTS = ["a happy person", "The happy person is a very, very happy person", "sad", "", "a dog was not sunny " * 9]


@pytest.fixture(scope="module", autouse=True, name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One registry: to create one takes seconds."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        yield home


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def loaded(version: Version) -> Model:
    return artifact.load(Path(version.path), version.digest)


def ask(model: Model, texts: list[str]) -> dict[str, Any]:
    return model.predict({"text": np.array(texts, dtype=object)})


def tokens(folder: Path, text: str) -> dict[str, Tensor]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(tiny_bert.LONGEST)
    return {"input_ids": torch.tensor([tokenizer.encode(text).ids])}


def states(folder: Path, text: str) -> Any:
    """What transformers itself makes of one text, `[tokens, width]`."""
    from transformers import BertModel

    with torch.no_grad():
        return BertModel.from_pretrained(folder).eval()(**tokens(folder, text)).last_hidden_state[0].numpy()


def test_embeddings_are_the_mean_over_the_tokens(tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path / "tiny")
    version = tg.register(str(folder), name="tiny", alias="production")
    model = loaded(version)
    assert model.signature.to_json() == {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 16]}],
    }
    found = ask(model, TEXTS)["embedding"]
    assert found.dtype == np.float32
    for text, embedding in zip(TEXTS, found, strict=True):
        assert np.allclose(embedding, states(folder, text).mean(axis=0), atol=1e-5), text
    assert model.predict(model.example(2))["embedding"].shape == (2, 16)


@pytest.mark.parametrize("pooling", [{"pooling_mode_cls_token": True}, {"pooling_mode": "mean"}], ids=["cls", "mean"])
def test_a_folder_of_sentence_transformers_says_how_it_pools(pooling: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path / "tiny", sentences={"word_embedding_dimension": 16} | pooling)
    found = ask(loaded(tg.register(folder, name="sentences")), TEXTS)["embedding"]
    for text, embedding in zip(TEXTS, found, strict=True):
        whole = states(folder, text)
        expected = whole[0] if "pooling_mode_cls_token" in pooling else whole.mean(axis=0)
        assert np.allclose(embedding, expected / np.linalg.norm(expected), atol=1e-5), text


LABELS = ["sad", "glad", "neither"]


def test_a_classifier_answers_with_its_labels(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    folder = tiny_bert.write(tmp_path / "moods", labels=LABELS)
    model = loaded(tg.register(folder, name="moods", inputs="review"))
    assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in model.signature.outputs] == [
        ("label", "BYTES", (-1,)),
        ("probabilities", "FP32", (-1, 3)),
    ]
    answers = model.predict({"review": np.array(TEXTS, dtype=object)})
    module = BertForSequenceClassification.from_pretrained(folder).eval()
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            expected = module(**tokens(folder, text)).logits[0].softmax(dim=0).numpy()
        assert np.allclose(answers["probabilities"][row], expected, atol=1e-5)
        assert answers["label"][row] == LABELS[int(expected.argmax())]
    assert len(set(answers["label"])) > 1


def test_a_single_output_is_a_score(tmp_path: Path) -> None:
    model = loaded(tg.register(tiny_bert.write(tmp_path / "score", labels=["any"]), name="score"))
    answers = ask(model, TEXTS)
    assert {name: (array.shape, str(array.dtype)) for name, array in answers.items()} == {"score": ((5,), "float32")}
    assert len(set(answers["score"].tolist())) == 5


def test_the_folders_files_are_kept_as_they_are_under_the_digest(tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path / "tiny")
    version = tg.register(folder, name="kept")
    kept = Path(version.path)
    names = {"model.safetensors": "weights.safetensors", "config.json": "folder/config.json"}
    names["tokenizer.json"] = "folder/tokenizer.json"
    for name, place in names.items():
        assert (kept / place).read_bytes() == (folder / name).read_bytes()
    others = {"model.json", "artifact.json", "about/README.md", "about/lineage.json"}
    assert {str(file.relative_to(kept)) for file in kept.rglob("*") if file.is_file()} == {*names.values(), *others}
    assert "not trained by Tidegate" in (kept / "about/README.md").read_text()
    assert registry.lineage(version)["packages"].keys() == {"torch", "transformers", "tokenizers", "safetensors"}
    assert tg.register(folder, name="kept") == version
    for name in ("config.json", "tokenizer.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text + " ")
        assert tg.register(folder, name="kept").digest != version.digest
        (folder / name).write_text(text)
    (kept / "folder/tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"folder/tokenizer.json is not what was written"):
        loaded(version)


def test_weights_in_half_precision_are_computed_in_single(tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path / "tiny")
    weights = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file({name: value.float() for name, value in weights.items()}, folder / "model.safetensors")
    expected = ask(loaded(tg.register(folder, name="half")), TEXTS)["embedding"]
    save_file(weights, folder / "model.safetensors")
    edit(folder, "config.json", dtype="float16")
    version = tg.register(folder, name="half")
    found = ask(loaded(version), TEXTS)["embedding"]
    assert version.number == 2
    assert np.array_equal(found, expected)


def test_what_a_config_names_elsewhere_is_left_alone(tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path / "tiny")
    expected = ask(loaded(tg.register(folder, name="elsewhere")), TEXTS)["embedding"]
    (folder / "code.py").write_text("raise SystemExit('code of the folder was run')")
    edit(folder, "config.json", auto_map={"AutoModel": "code.Model"}, _attn_implementation="someone/kernel")
    assert np.array_equal(ask(loaded(tg.register(folder, name="elsewhere")), TEXTS)["embedding"], expected)


def edit(folder: Path, name: str, **changes: Any) -> None:
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(document | changes))


def drop(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def weights_without(folder: Path, **changed: Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    left = {name: value for name, value in weights.items() if not name.startswith("encoder.layer.1.output.dense")}
    save_file({**left, **changed}, folder / "model.safetensors")


def other_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"pooler.dense.bias": torch.zeros(7)}, folder / "model.safetensors")


def more_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save(str(folder / "tokenizer.json"))


def as_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def as_roberta(folder: Path) -> None:
    """Its positions begin after the code that fills up, which takes some of those that it says it has."""
    edit(folder, "config.json", model_type="roberta", architectures=["RobertaModel"])


SENTENCES = {"pooling_mode_mean_tokens": True}
MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (
        lambda folder: drop(folder, "config.json"),
        r"has no config.json; expected a Hugging Face folder with",
    ),
    "no tokenizer": (lambda folder: drop(folder, "tokenizer.json"), r"has no tokenizer.json; .* \(AutoTokenizer\) in"),
    "no weights": (lambda folder: drop(folder, "model.safetensors"), r"has no model.safetensors; .* save_pretrained"),
    "a pickle": (as_a_pickle, r"weights as a pickle \(pytorch_model.bin\), which can run any code .* save_pretrained"),
    "a config that is no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        r"config.json cannot be read: ",
    ),
    "a type with code of its own": (
        lambda folder: edit(folder, "config.json", model_type="own", auto_map={"AutoModel": "code.Model"}),
        r"config.json is of the model type 'own'; expected one that transformers .* code in a folder is never run",
    ),
    "a config that breaks a rule": (
        lambda folder: edit(folder, "config.json", num_hidden_layers="two"),
        r"config.json cannot be used: .*num_hidden_layers",
    ),
    "a model that writes": (
        lambda folder: edit(folder, "config.json", architectures=["BertLMHeadModel"]),
        r"is for BertLMHeadModel; expected an encoder",
    ),
    "no architecture": (
        lambda folder: edit(folder, "config.json", architectures=None),
        r"is for an unknown architecture; expected an encoder",
    ),
    "another task": (
        lambda folder: edit(folder, "config.json", architectures=["BertForMaskedLM"]),
        r"is for BertForMaskedLM; expected an encoder .* or a classifier \(BertForSequenceClassification\)",
    ),
    "several labels": (
        lambda folder: edit(
            folder,
            "config.json",
            architectures=["BertForSequenceClassification"],
            problem_type="multi_label_classification",
        ),
        r"gives several labels to one text; expected",
    ),
    "quantized": (
        lambda folder: edit(folder, "config.json", quantization_config={"quant_method": "fp8"}),
        r"holds quantized weights; expected weights in float32",
    ),
    "weights missing": (
        weights_without,
        r"model.safetensors does not fit config.json: weights missing: encoder.layer.1.output.dense.bias, enc",
    ),
    "weights of another shape": (other_shape, r"model.safetensors does not fit config.json: "),
    "damaged weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
        r"model.safetensors cannot be read: .*; expected a whole .safetensors file",
    ),
    "a damaged tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        r"tokenizer.json cannot be read: ",
    ),
    "another tokenizer": (more_tokens, r"tokenizer.json has 16 tokens and the model 14"),
    "longer than it takes": (
        as_roberta,
        r"fails on a text of 12 tokens: .*; state what its model takes as model_max_length in tokenizer_config.json",
    ),
}


def test_a_folder_may_say_that_its_texts_are_shorter(tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path / "tiny")
    as_roberta(folder)
    edit(folder, "tokenizer_config.json", model_max_length=9)
    ask(loaded(tg.register(folder, name="shorter")), TEXTS)


@pytest.mark.parametrize(("damage", "line"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(damage: Callable[[Path], object], line: str, tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path / "tiny")
    damage(folder)
    refused(folder, line)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"pooling_mode_max_tokens": True}, r"pools its tokens by mean_tokens\+max_tokens; expected mean or cls"),
        ({"dense": True}, r"computes Dense after the transformer, which is not built"),
        ({"prompt": "query"}, r"puts a prompt before each text, which is not built"),
        ({"lower": True}, r"has its texts in lower case before the tokenizer, which is not built"),
    ],
)
def test_sentence_transformers_that_compute_something_else(change: dict[str, Any], line: str, tmp_path: Path) -> None:
    folder = tiny_bert.write(tmp_path / "tiny", sentences=SENTENCES | change)
    if "dense" in change:
        modules = json.loads((folder / "modules.json").read_text())
        more = {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}
        (folder / "modules.json").write_text(json.dumps([*modules, more]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": "lower" in change}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": change.get("prompt")}))
    refused(folder, line)


@pytest.mark.parametrize("more", [{"example": ["a"]}, {"build": "nets:Net"}, {"args": {}}])
def test_a_folder_needs_nothing_beside_it(more: dict[str, Any], tmp_path: Path) -> None:
    refused(tiny_bert.write(tmp_path / "tiny"), r"says itself what it is; expected no example, build or args", **more)


def test_without_transformers_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_bert.write(tmp_path / "tiny")
    version = tg.register(folder, name="installed")
    monkeypatch.setitem(sys.modules, "transformers", None)
    line = r"a Hugging Face folder needs the package transformers \(.*\); pip install 'tidegate\[huggingface\]'"
    refused(folder, line)
    with pytest.raises(ArtifactError, match=line):
        loaded(version)


def refused(folder: Path, line: str, **more: Any) -> None:
    with pytest.raises(TidegateError) as caught:
        tg.register(folder, name="wrong", **more)
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert re.search(line, text), text
    assert "\n" not in text
    assert tg.versions("wrong") == []
