"""Token embeddings to begin with: the mean over the pieces that another model's tokenizer makes of each token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tidegate.errors import SpecError
from tidegate.models.build import build
from tidegate.models.embeddings import CONFIG, SPREAD, TOKENIZER, WEIGHTS, begin
from tidegate.spec.model import Embeddings, Model
from tidegate.transforms.base import Feature

PIECES = {"[UNK]": 0, "play": 1, "##ing": 2, "cat": 3, "##s": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordPiece(PIECES, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / TOKENIZER))
    (tmp_path / CONFIG).write_text(json.dumps({"vocab_size": len(PIECES)}))
    table = torch.randn(len(PIECES), 3, generator=torch.Generator().manual_seed(0))
    save_file({"embeddings.word_embeddings.weight": table, "other": torch.zeros(2)}, tmp_path / WEIGHTS)
    return tmp_path


def test_a_token_begins_with_the_mean_of_its_pieces(folder: Path) -> None:
    from safetensors.torch import load_file

    pieces = load_file(folder / WEIGHTS)["embeddings.word_embeddings.weight"]
    pieces = (pieces - pieces.mean(dim=0)) / pieces.std() * SPREAD
    table = torch.full((5, 3), 7.0)
    begin(table, Embeddings(path=str(folder), width=3), {"[PAD]": 0, "playing": 1, "Cats": 2, "dog": 3, "cat": 4})
    assert torch.allclose(table[1], (pieces[1] + pieces[2]) / 2)
    assert torch.allclose(table[2], (pieces[3] + pieces[4]) / 2)
    assert torch.allclose(table[4], pieces[3])
    assert table[3].tolist() == table[0].tolist() == [7.0, 7.0, 7.0], "nothing is known of them"


def test_a_folder_without_embeddings_is_refused(folder: Path) -> None:
    def refusal(width: int = 3) -> str:
        with pytest.raises(SpecError) as caught:
            begin(torch.zeros(1, width), Embeddings(path=str(folder), width=width), {"cat": 0})
        return str(caught.value)

    assert "model.embeddings.width is 4; expected 3" in refusal(4)
    (folder / CONFIG).write_text(json.dumps({"vocab_size": 9}))
    assert "has 5 rows, not the 9 of config.json" in refusal()
    save_file({"other": torch.zeros(2)}, folder / WEIGHTS)
    assert "has 0 weights that end with word_embeddings.weight" in refusal()
    (folder / WEIGHTS).write_bytes(b"rubbish")
    assert "cannot be used" in refusal()
    (folder / TOKENIZER).write_text("{}")
    assert "cannot be used" in refusal()


def test_what_a_tokenizer_calls_unknown_and_what_has_no_row_is_left_as_it_was(folder: Path) -> None:
    pieces = {"<s>": 0, "<unk>": 1, "cat": 2, "play": 3, "dog": 4, "added": 5}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / TOKENIZER))
    table = torch.full((3, 3), 7.0)
    begin(table, Embeddings(path=str(folder), width=3), {"zebra": 0, "added": 1, "cat": 2})
    assert (table == 7.0).all(dim=1).tolist() == [True, True, False]


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_embeddings_that_are_all_alike_are_refused(folder: Path, value: float) -> None:
    save_file({"embeddings.word_embeddings.weight": torch.full((len(PIECES), 3), value)}, folder / WEIGHTS)
    with pytest.raises(SpecError, match="the deviation of its embeddings is"):
        begin(torch.zeros(1, 3), Embeddings(path=str(folder), width=3), {"cat": 0})


def test_embeddings_of_another_width_are_narrowed() -> None:
    options = {"type": "transformer", "width": 8, "heads": 2, "embeddings": {"path": "unread", "width": 12}}
    text, target = Feature("text", "text", (5,), 20), Feature("y", "category", (), 2)
    module = build(TypeAdapter(Model).validate_python(options), [text], target, seed=0).eval()
    assert module.state_dict()["tokens.weight"].shape == (20, 12)
    inputs = {"text": torch.tensor([[3, 4, 0, 0, 0]]), "__length.text": torch.tensor([[2]])}
    found = module(inputs)
    plain = build(TypeAdapter(Model).validate_python(options | {"embeddings": None}), [text], target, seed=0).eval()
    weights = module.state_dict()
    narrow = weights.pop("narrowed.weight")
    plain.load_state_dict(weights | {"tokens.weight": weights["tokens.weight"] @ narrow.T})
    assert torch.allclose(found, plain(inputs), atol=1e-6)
