"""Text: a tokenizer trained on the training split (Hugging Face `tokenizers`); codes of any length up to a bound."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate.errors import DataError
from tidegate.signature import TensorSpec
from tidegate.spec.data import TextInput
from tidegate.transforms.base import Array, Feature, State, length_key, merged_counts, problems, shortened

PAD, UNKNOWN = 0, 1
SPECIAL = ["[PAD]", "[UNK]"]
LETTERS_A_TOKEN, FEWEST_LETTERS, LONGER = 16, 4096, 8
"""Of a long text only so much is looked at as holds the tokens wanted: eight megabytes would take half a minute."""


class TextColumn:
    """Reads a column of strings, or of bytes in UTF-8. Canonical: strings."""

    def __init__(self, spec: TextInput) -> None:
        self.spec = spec
        self.row_bytes = 4 * spec.max_length + 4

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        found, values = problems(len(column)), [""] * len(column)
        for row, item in enumerate(column.to_pylist()):
            if isinstance(item, bytes):
                try:
                    values[row] = item.decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    found[row] = f"the bytes are no UTF-8 text from byte {error.start} on"
            elif isinstance(item, str):
                values[row] = item
            else:
                found[row] = "the text is missing" if item is None else f"{shortened(repr(item))} is no text"
        return pa.array(values, pa.string()), found

    def partial(self, values: Array) -> State:
        counts: dict[str, int] = {}
        splitter = _empty_tokenizer(self.spec.tokenizer)
        for value in values.tolist():
            for word, _ in splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(value)):
                counts[word] = counts.get(word, 0) + 1
        return {"counts": counts}

    def fit(self, parts: Sequence[State]) -> State:
        tokenizer = _trained(self.spec, merged_counts(parts))
        if tokenizer.get_vocab_size() == len(SPECIAL):
            raise DataError(
                f"a column of texts holds no token twice in the training split ({self.spec.tokenizer} tokens)",
                expected="texts that have tokens in common: what occurs once is unknown to a model",
                remedy="write `tokenizer: character` or `bpe`, or give more rows",
            )
        return {
            "type": "text",
            "max_length": self.spec.max_length,
            "vocab_size": tokenizer.get_vocab_size(),
            # Names that are lower-cased in texts are never met there; as added tokens they would be.
            "tokenizer": dict(json.loads(tokenizer.to_str()), added_tokens=[]),
        }


class TextTransform:
    """Token codes int32 `[rows, max_length]`, padded with 0, and their number int32 `[rows, 1]` (at least 1)."""

    def __init__(self, name: str, state: State) -> None:
        from tokenizers import Tokenizer

        self.max_length = int(state["max_length"])
        self.tokenizer = Tokenizer.from_str(json.dumps(state["tokenizer"]))
        self.feature = Feature(name, "text", (self.max_length,), int(state["vocab_size"]))
        self.tensor = TensorSpec(name, "BYTES", (-1,))

    def apply(self, values: Array) -> dict[str, Array]:
        texts = [str(value) for value in np.asarray(values, dtype=object).reshape(-1).tolist()]
        codes = np.full((len(texts), self.max_length), PAD, np.int32)
        lengths = np.ones((len(texts), 1), np.int32)
        for row, found in enumerate(first_codes(self.tokenizer, texts, self.max_length)):
            # A text without a single token still needs one position for the model to look at.
            ids = found or [UNKNOWN]
            codes[row, : len(ids)] = ids
            lengths[row] = len(ids)
        return {self.feature.name: codes, length_key(self.feature.name): lengths}

    def example(self, rows: int) -> Array:
        return np.full(rows, "", dtype=object)


def first_codes(tokenizer: Any, texts: Sequence[str], most: int) -> list[list[int]]:
    """The codes of the first tokens of each text, at most so many, without a look at the rest of a long one."""
    found: list[list[int]] = [[] for _ in texts]
    rows, letters = list(range(len(texts))), max(FEWEST_LETTERS, LETTERS_A_TOKEN * most)
    while rows:
        encoded = tokenizer.encode_batch([_head(texts[row], letters) for row in rows])
        for row, own in zip(rows, encoded, strict=True):
            found[row] = own.ids[:most]
        rows = [row for row in rows if len(texts[row]) > letters and len(found[row]) < most]
        letters *= LONGER
    return found


def _head(text: str, letters: int) -> str:
    """At most so many letters of a text, whole words where there are blanks between them."""
    if len(text) <= letters:
        return text
    words = text[:letters].rsplit(maxsplit=1)
    return words[0] if len(words) > 1 else text[:letters]


def _empty_tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    model = models.BPE(unk_token=SPECIAL[UNKNOWN]) if kind == "bpe" else models.WordLevel(unk_token=SPECIAL[UNKNOWN])
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = letters() if kind == "character" else pre_tokenizers.Whitespace()
    return tokenizer


def letters() -> Any:
    """Cuts a text into its letters, white space among them."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")


def _trained(spec: TextInput, counts: dict[str, int]) -> Any:
    from tokenizers import trainers

    tokenizer = _empty_tokenizer(spec.tokenizer)
    kind = trainers.BpeTrainer if spec.tokenizer == "bpe" else trainers.WordLevelTrainer
    trainer = kind(vocab_size=spec.vocab_size, special_tokens=SPECIAL, show_progress=False, min_frequency=2)
    tokenizer.train_from_iterator(repeated(counts), trainer=trainer)
    return tokenizer


def repeated(counts: Mapping[str, int]) -> Iterable[list[str]]:
    """The words as often as they occur, in a fixed order: the trainer only counts them."""
    for word in sorted(counts):
        for start in range(0, counts[word], 1000):
            yield [word] * min(1000, counts[word] - start)
