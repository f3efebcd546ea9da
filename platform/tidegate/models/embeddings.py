"""Token embeddings to begin with, from a model that was trained elsewhere: a Hugging Face folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tidegate.errors import SpecError
from tidegate.spec.model import Embeddings

SPREAD = 0.5
"""The deviation that the embeddings are brought to."""
WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"
NEEDED = f"a folder with {WEIGHTS}, {TOKENIZER} and {CONFIG}, as Hugging Face models have"


def begin(table: Tensor, options: Embeddings, vocabulary: Mapping[str, int]) -> None:
    """Write into `table` `[tokens, width]` the mean embedding of the pieces that the folder's tokenizer makes of each.

    They are centred and brought to one deviation first. A token without any piece that it knows keeps what it has.
    Raises SpecError for a folder that has no such embeddings.
    """
    from tokenizers import Tokenizer

    folder = Path(options.path)
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        pieces = _word_embeddings(folder / WEIGHTS, json.loads((folder / CONFIG).read_text())["vocab_size"])
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more particular
        raise _unusable(options, str(error)) from None
    if pieces.shape[1] != table.shape[1]:
        raise SpecError(f"model.embeddings.width is {table.shape[1]}", expected=f"{pieces.shape[1]}, as {folder} has")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    spread = float(pieces.std())
    if not 0 < spread < math.inf:
        raise _unusable(options, f"the deviation of its embeddings is {spread:g}")
    pieces = (pieces - pieces.mean(dim=0)) * (SPREAD / spread)
    unknown = _unknown(tokenizer)
    with torch.no_grad():
        for token, code in vocabulary.items():
            ids = tokenizer.encode(token, add_special_tokens=False).ids
            # Tokens that were added to a tokenizer later may have no row.
            known = [piece for piece in ids if piece != unknown and piece < len(pieces)]
            if known:
                table[code] = pieces[known].mean(dim=0)


def _unknown(tokenizer: Any) -> int | None:
    """The id of what stands for anything unknown: of Unigram by number, of the other models by name."""
    model = json.loads(tokenizer.to_str())["model"]
    name = model.get("unk_token")
    found: int | None = model.get("unk_id") if name is None else tokenizer.token_to_id(name)
    return found


def _word_embeddings(path: Path, size: int) -> Tensor:
    """The embeddings among the weights, by their name: a row for each piece."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.endswith("word_embeddings.weight")]  # noqa: SIM118
        if len(names) != 1:
            raise ValueError(f"{path.name} has {len(names)} weights that end with word_embeddings.weight")
        weights: Tensor = file.get_tensor(names[0]).float()
    if weights.shape[0] != size:
        raise ValueError(f"{names[0]} has {weights.shape[0]} rows, not the {size} of {CONFIG}")
    return weights


def _unusable(options: Embeddings, reason: str) -> SpecError:
    return SpecError(f"model.embeddings: {options.path} cannot be used: {' '.join(reason.split())}", expected=NEEDED)
