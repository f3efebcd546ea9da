"""Tokens of a text that is to be answered: what a target is cut into, and the text that codes stand for.

Unlike an input's, they keep every letter as it is, so that the text can be put together again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate.transforms.base import Array
from tidegate.transforms.text import letters, repeated

if TYPE_CHECKING:
    from tidegate.spec.data import TextTarget

PAD, UNKNOWN, START, END = 0, 1, 2, 3
SPECIAL = ["[no token]", "\N{REPLACEMENT CHARACTER}", "[the start]", "[the end]"]
"""Names with a blank: no piece of a text has one beside other letters."""
NEVER_ANSWERED = [UNKNOWN, START]
"""Codes that no answer holds. PAD is what comes after it, and the blank of CTC."""


class Tokens:
    """Between texts and codes; `document` is the tokenizer's own form."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(json.dumps(document))
        self.size: int = self._tokenizer.get_vocab_size()

    def codes(self, texts: list[str]) -> list[list[int]]:
        return [encoded.ids for encoded in self._tokenizer.encode_batch(texts)]

    def texts(self, codes: Array) -> list[str]:
        """The texts of rows of codes, which end at the first PAD or END. A token that is not known becomes U+FFFD."""
        rows = [[code for code in row[: ended(row)] if code != START] for row in np.asarray(codes, np.int64).tolist()]
        texts: list[str] = self._tokenizer.decode_batch(rows, skip_special_tokens=False)
        return texts


def ended(row: list[int]) -> int:
    """How many codes come before the first PAD or END."""
    return next((place for place, code in enumerate(row) if code in (PAD, END)), len(row))


def cutter(spec: TextTarget) -> Any:
    """What cuts a text into its tokens, those that are words or letters; of `bpe` into words."""
    return _untrained(spec).pre_tokenizer


def counts(spec: TextTarget, texts: list[str]) -> dict[str, int]:
    """How often each piece occurs: what `learned` needs to know of some rows."""
    found: dict[str, int] = {}
    cut = cutter(spec)
    for text in texts:
        for piece, _ in cut.pre_tokenize_str(text):
            found[piece] = found.get(piece, 0) + 1
    return found


def learned(spec: TextTarget, pieces: Mapping[str, int]) -> dict[str, Any]:
    """The tokenizer's document, from the pieces of the whole training split."""
    from tokenizers import pre_tokenizers, trainers

    tokenizer = _untrained(spec)
    if spec.tokenizer == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=spec.vocab_size,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        # The pieces are cut and written as bytes already.
        cutter, tokenizer.pre_tokenizer = tokenizer.pre_tokenizer, pre_tokenizers.WhitespaceSplit()
        tokenizer.train_from_iterator(repeated(pieces), trainer=trainer)
        tokenizer.pre_tokenizer = cutter
        # Else their names would be found in texts.
        return dict(json.loads(tokenizer.to_str()), added_tokens=[])
    known = sorted(pieces.keys() - set(SPECIAL), key=lambda piece: (-pieces[piece], piece))
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    document["model"]["vocab"] = {
        piece: code for code, piece in enumerate([*SPECIAL, *known[: spec.vocab_size - len(SPECIAL)]])
    }
    return document


def _untrained(spec: TextTarget) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if spec.tokenizer == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer
    tokenizer = Tokenizer(
        models.WordLevel({name: code for code, name in enumerate(SPECIAL)}, unk_token=SPECIAL[UNKNOWN])
    )
    if spec.tokenizer == "word":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = letters()
        tokenizer.decoder = decoders.Fuse()
    return tokenizer
