"""Texts as targets: tokens learned from some, codes, and back; and how wrong answers are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidegate import evaluation
from tidegate.errors import RequestError, TrainingError
from tidegate.evaluation_text import render
from tidegate.spec.data import TextTarget
from tidegate.transforms.target import target_column, target_transform
from tidegate.transforms.target_text import TextTargetTransform
from tidegate.transforms.tokens import END, PAD, SPECIAL, START

# Without what Python and the tokenizer disagree about whether it is white space.
LETTERS = st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs")) | st.just(" ")
TEXTS = ["HH AH L OW", "L OW", "AH HH", "it's  two spaces", "Grüße"]


def fitted(tokenizer: Any, texts: list[str], pieces: int = 1, **other: Any) -> TextTargetTransform:
    column = target_column(TextTarget(column="said", type="text", tokenizer=tokenizer, **other))
    parts = [json.loads(json.dumps(column.partial(part))) for part in np.array_split(np.array(texts, object), pieces)]
    made = target_transform("said", json.loads(json.dumps(column.fit(parts))))
    assert isinstance(made, TextTargetTransform)
    return made


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
@given(st.lists(st.text(LETTERS, min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=8), st.integers(1, 4))
def test_texts_come_back(tokenizer: str, texts: list[str], pieces: int) -> None:
    made = fitted(tokenizer, texts, pieces, max_length=100)
    codes = made.apply(np.array(texts, dtype=object))
    assert (codes.dtype, codes.shape) == (np.int32, (len(texts), 100))
    back = made.answers(codes)["said"].tolist()
    # Words are parted by single spaces in what is answered.
    assert back == ([" ".join(text.split()) for text in texts] if tokenizer == "word" else texts)
    assert fitted(tokenizer, texts).tokens.size == made.tokens.size


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_codes_do_not_depend_on_how_rows_are_cut(tokenizer: str) -> None:
    one, cut = (fitted(tokenizer, TEXTS, pieces).apply(np.array(TEXTS, object)).tolist() for pieces in (1, 3))
    assert one == cut


def test_the_most_frequent_tokens_are_kept_and_others_are_unknown() -> None:
    made = fitted("word", [f"w{number}" for number in range(400)] + ["often often"], vocab_size=300)
    assert made.tokens.size == 300
    codes = made.apply(np.array(["often w399 w0"], object))
    assert made.answers(codes)["said"].tolist() == ["often \N{REPLACEMENT CHARACTER} w0"]


def test_what_comes_after_the_end_is_no_text() -> None:
    made = fitted("word", ["a b c"])
    a, b, c = made.apply(np.array(["a b c"], object))[0, :3].tolist()
    rows = np.array([[START, a, b, END, c], [a, PAD, b, c, c], [END, a, a, a, a], [c, c, c, c, c]])
    assert made.answers(rows)["said"].tolist() == ["a b", "a", "", "c c c c c"]


def test_problems_of_texts() -> None:
    column = target_column(TextTarget(column="said", type="text", max_length=3, tokenizer="word"))
    _, found = column.read(pa.array(["a", " ", None]))
    assert found.tolist() == [None, "the text is empty", "the text is missing"]


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_a_text_that_is_too_long(tokenizer: Any) -> None:
    column = target_column(TextTarget(column="said", type="text", max_length=3, tokenizer=tokenizer))
    _, found = column.read(pa.array(["abc", "a b c d"]))
    long = {"word": 4, "character": 7}.get(tokenizer)
    # How many pieces words have is known when they have been learned.
    assert found.tolist() == [None, f"the text has {long} tokens, more than max_length 3" if long else None]
    made = fitted(tokenizer, ["a b"], max_length=3)
    told = r"tokens, 'a b c d'; expected at most 3; raise data\.target\.max_length"
    with pytest.raises(RequestError, match=told):
        made.apply(np.array(["a b c d"], object))


SPOKEN = ["[PAD] a", "say [END] now", "[UNK]", *(f"{name} a" for name in SPECIAL), "a", "[START]"]


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_texts_that_have_the_names_of_special_tokens(tokenizer: Any) -> None:
    made = fitted(tokenizer, SPOKEN, max_length=100)
    codes = made.apply(np.array(SPOKEN, object))
    assert codes.max() < made.tokens.size
    assert made.answers(codes)["said"].tolist() == SPOKEN
    ends = (codes != PAD).sum(axis=1)
    assert [int((row[:end] == PAD).sum()) for row, end in zip(codes, ends, strict=True)] == [0] * len(SPOKEN)


def test_a_letter_that_is_not_known_is_one_error() -> None:
    made = fitted("character", ["cafe", "tea"])
    targets = torch.from_numpy(made.apply(np.array(["café"], object)))
    assert evaluation.measured(made, outputs_of(made, ["cafe"], [1.0]), targets)["cer"] == 1 / 4


def outputs_of(made: TextTargetTransform, answers: list[str], surprise: list[float]) -> torch.Tensor:
    codes = torch.from_numpy(made.apply(np.array(answers, object))).double()
    tokens = (codes != PAD).sum(dim=1) + 1.0
    return torch.cat([torch.stack([torch.tensor(surprise), tokens], dim=1).double(), codes], dim=1)


def test_error_rates_are_counted_by_hand() -> None:
    expected = ["the cat sat", "on a mat", "dogs"]
    answered = ["the cat sat", "on mat", "cogs run"]
    made = fitted("word", expected + answered)
    targets = torch.from_numpy(made.apply(np.array(expected, object)))
    outputs = outputs_of(made, answered, [1.0, 2.0, 4.0])
    found = evaluation.measured(made, outputs, targets)
    # One word left out; one replaced and one added. Two letters left out; one replaced and four added. The loss is over
    # as many tokens as the model tells.
    assert found == pytest.approx({"wer": 3 / 7, "cer": 7 / 23, "ser": 2 / 3, "loss": 7 / 10}, rel=1e-6)
    report = evaluation.reported(made, outputs, targets)
    assert (report.task, report.rows, report.metrics) == ("sequence", 3, found)
    assert [(m.expected, m.answered) for m in report.mistakes] == [("on a mat", "on mat"), ("dogs", "cogs run")]
    assert evaluation.Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    text = render(report, "test")
    assert "wer 0.4286" in text
    assert "dogs answered as cogs run" in text


def test_answers_that_are_not_finite_are_an_error() -> None:
    made = fitted("word", ["a"])
    targets = torch.from_numpy(made.apply(np.array(["a"], object)))
    with pytest.raises(TrainingError, match="not finite"):
        evaluation.measured(made, outputs_of(made, ["a"], [float("nan")]), targets)
