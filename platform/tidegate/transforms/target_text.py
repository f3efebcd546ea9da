"""A text to predict: tokens learned from the training split, and the texts that codes stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tidegate.errors import RequestError
from tidegate.metrics import Task
from tidegate.signature import TensorSpec
from tidegate.spec.data import TextInput, TextTarget
from tidegate.transforms.base import Array, Feature, State, fits, merged_counts, shortened
from tidegate.transforms.text import TextColumn
from tidegate.transforms.tokens import PAD, Tokens, counts, cutter, learned


class TextTargetColumn:
    """Canonical: strings."""

    def __init__(self, spec: TextTarget) -> None:
        self.spec = spec
        self.row_bytes = 4 * spec.max_length

    def read(self, column: pa.Array) -> tuple[pa.Array, Array]:
        values, found = TextColumn(TextInput(type="text")).read(column)
        pieces = cutter(self.spec)
        for row in np.flatnonzero(fits(found)):
            text = values[row].as_py()
            if not text.strip():
                found[row] = "the text is empty"
            # How many tokens a word has is known when its pieces have been learned.
            elif self.spec.tokenizer != "bpe" and (own := len(pieces.pre_tokenize_str(text))) > self.spec.max_length:
                found[row] = f"the text has {own} tokens, more than max_length {self.spec.max_length}"
        return values, found

    def partial(self, values: Array) -> State:
        return {"counts": counts(self.spec, values.tolist())}

    def fit(self, parts: Sequence[State]) -> State:
        tokenizer = learned(self.spec, merged_counts(parts))
        return {"type": "text", "max_length": self.spec.max_length, "tokenizer": tokenizer}


class TextTargetTransform:
    """Token codes int32 `[rows, max_length]`, PAD after the end; a model answers with such codes."""

    task: Task = "sequence"
    loss_scale = 1.0

    def __init__(self, column: str, state: State) -> None:
        self.column = column
        self.classes: list[str] = []
        self.tokens = Tokens(state["tokenizer"])
        self.max_length = int(state["max_length"])
        self.feature = Feature(column, "text", (self.max_length,), self.tokens.size)

    def apply(self, values: Array) -> Array:
        codes = np.full((len(values), self.max_length), PAD, np.int32)
        texts = [str(value) for value in values.tolist()]
        for row, own in enumerate(self.tokens.codes(texts)):
            if len(own) > self.max_length:
                raise RequestError(
                    f"{self.column} holds a text of {len(own)} tokens, {shortened(repr(texts[row]))}",
                    expected=f"at most {self.max_length}",
                    remedy="raise data.target.max_length",
                )
            codes[row, : len(own)] = own
        return codes

    def unscaled(self, outputs: Any) -> Any:
        return outputs

    def tensors(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self.column, "BYTES", (-1,)),)

    def answers(self, outputs: Array) -> dict[str, Array]:
        texts = np.empty(len(outputs), dtype=object)
        texts[:] = self.tokens.texts(outputs)
        return {self.column: texts}
