"""A transformer of a Hugging Face folder: texts in; embeddings, labels or scores out.

The package `transformers` has the architectures. No code of a folder is run, nothing of it is unpickled, and nothing is
fetched: config, tokenizer and weights are handed over as they were read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tidegate.errors import SpecError
from tidegate.signature import TensorSpec
from tidegate.spec.data import PROBABILITIES
from tidegate.spec.registered import HuggingFace
from tidegate.transforms.base import Array
from tidegate.transforms.text import first_codes

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
RELEASE = 5
"""The release of transformers that this is written for."""
MAX_LENGTH = 512
"""Tokens of a text, where the folder does not say how many its model takes."""
_FOLDER = f"a Hugging Face folder with {CONFIG}, {TOKENIZER} and {WEIGHTS}"
# Parts of a config that could name code or weights elsewhere. What is computed does not depend on them.
_ELSEWHERE = ("auto_map", "_name_or_path", "attn_implementation", "_attn_implementation", "experts_implementation")


def read(folder: Path) -> tuple[HuggingFace, dict[str, bytes]]:
    """What a folder's model answers, and its config, tokenizer and weights by their names.

    Raises SpecError for a folder that lacks one of them, or whose model answers something that is not built.
    """
    files = {name: _bytes(folder, name) for name in (CONFIG, TOKENIZER, WEIGHTS)}
    config = _config(files[CONFIG])
    if getattr(config, "quantization_config", None):
        raise SpecError(f"{folder} holds quantized weights", expected="weights in float32, float16 or bfloat16")
    sentences = _sentences(folder)
    architecture = next(iter(config.architectures or [""]))
    encoder, classifier = (_class(config, is_classifier=is_one) for is_one in (False, True))
    length = _max_length(folder, config)
    if sentences is not None or architecture == _name(encoder):
        return HuggingFace(type="huggingface", answers="embedding", max_length=length, **(sentences or {})), files
    if architecture != _name(classifier):
        raise SpecError(
            f"{folder} is for {architecture or 'an unknown architecture'}",
            expected=f"an encoder ({_name(encoder)}, or a folder of sentence-transformers)"
            f" or a classifier ({_name(classifier)})",
        )
    if config.problem_type == "multi_label_classification":
        raise SpecError(f"{folder} gives several labels to one text", expected="a classifier with one label a text")
    labels = [str(config.id2label[place]) for place in range(config.num_labels)]
    is_score = config.problem_type == "regression" or len(labels) == 1
    answers: Any = "score" if is_score else "label"
    return HuggingFace(type="huggingface", answers=answers, max_length=length, labels=labels), files


class Encoder:
    """The loaded model and its tokenizer. It computes in float32."""

    def __init__(self, options: HuggingFace, files: Mapping[str, bytes], weights: Mapping[str, Tensor]) -> None:
        from tokenizers import Tokenizer

        self.options = options
        config = _config(files[CONFIG])
        try:
            self._tokenizer = Tokenizer.from_str(files[TOKENIZER].decode())
        except Exception as error:  # tokenizers raises nothing more special
            raise SpecError(f"{TOKENIZER} cannot be read: {error}") from error
        self._tokenizer.enable_truncation(options.max_length)
        self._tokenizer.no_padding()
        known = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        taken = getattr(config, "vocab_size", 0)
        if known > taken:
            raise SpecError(f"{TOKENIZER} has {known} tokens and the model {taken}")
        self._pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
        self.module = _module(config, weights, is_classifier=options.answers != "embedding").eval()

    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of an endpoint."""
        if self.options.answers == "embedding":
            (found,) = self.answer(["a"]).values()
            return (TensorSpec("embedding", "FP32", (-1, found.shape[1])),)
        count = len(self.options.labels)
        if self.options.answers == "score":
            return (TensorSpec("score", "FP32", (-1,) if count == 1 else (-1, count)),)
        return (TensorSpec("label", "BYTES", (-1,)), TensorSpec(PROBABILITIES, "FP32", (-1, count)))

    def answer(self, texts: Sequence[str]) -> dict[str, Array]:
        """Answers by output name, `[texts, ...]`."""
        device = next(self.module.parameters()).device
        codes, mask = (torch.from_numpy(array).to(device) for array in self._codes(texts))
        with torch.inference_mode():
            found = self.module(input_ids=codes, attention_mask=mask)
            if self.options.answers == "embedding":
                return {"embedding": self._pooled(found.last_hidden_state, mask).cpu().numpy()}
            logits = found.logits
            if self.options.answers == "score":
                scores: Array = logits.cpu().numpy()
                return {"score": scores.reshape(-1) if len(self.options.labels) == 1 else scores}
            names = np.array(self.options.labels, dtype=object)
            return {
                "label": names[logits.argmax(dim=1).cpu().numpy()],
                PROBABILITIES: logits.softmax(dim=1).cpu().numpy(),
            }

    def longest(self) -> str:
        """A text of as many tokens as the model is said to take."""
        return "a " * self.options.max_length

    def _codes(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Token codes and which of them are the text's, int64 `[texts, tokens of the longest]`."""
        # A text without a single token still needs one position for the model to look at.
        ids = [found or [self._pad] for found in first_codes(self._tokenizer, texts, self.options.max_length)]
        longest = max(map(len, ids))
        codes = np.full((len(ids), longest), self._pad, np.int64)
        mask = np.zeros((len(ids), longest), np.int64)
        for row, own in enumerate(ids):
            codes[row, : len(own)] = own
            mask[row, : len(own)] = 1
        return codes, mask

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.options.pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1) if self.options.normalize else pooled


def _module(config: Any, weights: Mapping[str, Tensor], *, is_classifier: bool) -> Any:
    own = _class(config, is_classifier=is_classifier)
    if own is None:
        raise SpecError(f"transformers has no text model of the type {config.model_type!r}")
    with _quiet():
        try:
            # Names no folder and no repository: it has everything already.
            module, told = own.from_pretrained(
                None, config=config, state_dict=dict(weights), output_loading_info=True, dtype=torch.float32
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise SpecError(f"{WEIGHTS} does not fit {CONFIG}: {' '.join(str(error).split())[:300]}") from None
    # The mean over the tokens needs no pooler, which many folders leave out.
    missing = sorted(name for name in told["missing_keys"] if is_classifier or not name.startswith("pooler."))
    if missing:
        raise SpecError(f"{WEIGHTS} does not fit {CONFIG}: weights missing: {', '.join(missing[:4])}")
    return module


def _class(config: Any, *, is_classifier: bool) -> Any:
    """The class of transformers for this type of model, None where it has none."""
    transformers = _transformers()
    mapping = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if is_classifier else transformers.MODEL_MAPPING
    found = mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def _name(kind: type | None) -> str:
    return "none of this type" if kind is None else kind.__name__


def _config(data: bytes) -> Any:
    transformers = _transformers()
    try:
        document = json.loads(data)
        kind = transformers.CONFIG_MAPPING[document["model_type"]]
    except (ValueError, TypeError) as error:
        raise SpecError(f"{CONFIG} cannot be read: {error}") from None
    except KeyError:
        raise SpecError(
            f"{CONFIG} is of the model type {document.get('model_type')!r}",
            expected=f"one that transformers {transformers.__version__} has; code in a folder is never run",
        ) from None
    try:
        return kind.from_dict({key: value for key, value in document.items() if key not in _ELSEWHERE})
    except Exception as error:  # what a config's class checks, and how, is its own affair
        raise SpecError(f"{CONFIG} cannot be used: {' '.join(str(error).split())[:300]}") from error


def _max_length(folder: Path, config: Any) -> int:
    """How many tokens of a text the model is asked with."""
    limits = [
        _json(folder, "sentence_bert_config.json").get("max_seq_length"),
        _json(folder, "tokenizer_config.json").get("model_max_length"),
        getattr(config, "max_position_embeddings", None),
    ]
    # A tokenizer without a limit says 10^30.
    return min((int(limit) for limit in limits if limit and limit < 1_000_000), default=MAX_LENGTH)


def _sentences(folder: Path) -> dict[str, Any] | None:
    """How a folder of sentence-transformers makes one vector of a text. None for any other folder."""
    if not (folder / "modules.json").is_file():
        return None
    modules = {str(part["type"]).rpartition(".")[2]: part for part in _json(folder, "modules.json", list)}
    if other := modules.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise SpecError(f"{folder} computes {', '.join(sorted(other))} after the transformer, which is not built")
    if _json(folder, "sentence_bert_config.json").get("do_lower_case"):
        raise SpecError(f"{folder} has its texts in lower case before the tokenizer, which is not built")
    if _json(folder, "config_sentence_transformers.json").get("default_prompt_name"):
        raise SpecError(f"{folder} puts a prompt before each text, which is not built")
    pooling = _json(folder, f"{modules['Pooling']['path']}/{CONFIG}") if "Pooling" in modules else {}
    modes = {key.removeprefix("pooling_mode_"): True for key, is_on in pooling.items() if is_on is True}
    modes.pop("include_prompt", None)
    mode = pooling.get("pooling_mode") or "+".join(modes) or "mean"
    known = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
    if mode not in known:
        raise SpecError(f"{folder} pools its tokens by {mode}", expected="mean or cls")
    return {"pooling": known[mode], "normalize": "Normalize" in modules}


def _bytes(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError:
        pickles = [pickle for pickle in PICKLES if (folder / pickle).exists()]
        if name == WEIGHTS and pickles:
            what = f"{folder} has its weights as a pickle ({pickles[0]}), which can run any code when it is read"
        else:
            what = f"{folder} has no {name}"
        whose = "tokenizer (AutoTokenizer)" if name == TOKENIZER else "model (AutoModel)"
        raise SpecError(
            what, expected=_FOLDER, remedy=f"load its {whose} in transformers and save it with save_pretrained"
        ) from None


def _json(folder: Path, name: str, kind: type = dict) -> Any:
    """A file that may be left out."""
    path = folder / name
    try:
        document = json.loads(path.read_bytes()) if path.is_file() else kind()
    except ValueError as error:
        raise SpecError(f"{path} cannot be read: {error}") from None
    if not isinstance(document, kind):
        raise SpecError(f"{path} holds no {'list' if kind is list else 'object'}")
    return document


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SpecError(
            f"a Hugging Face folder needs the package transformers ({error})",
            remedy="pip install 'tidegate[huggingface]'",
        ) from None
    if not transformers.__version__.startswith(f"{RELEASE}."):
        raise SpecError(
            f"transformers {transformers.__version__} is installed",
            expected=f"release {RELEASE}",
            remedy="pip install 'tidegate[huggingface]'",
        )
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and reports of transformers, and no way to the network, whatever a config may still name."""
    from huggingface_hub import constants
    from transformers.utils import logging

    level, has_bars, offline = logging.get_verbosity(), logging.is_progress_bar_enabled(), constants.HF_HUB_OFFLINE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        logging.set_verbosity(level)
        constants.HF_HUB_OFFLINE = offline
        if has_bars:
            logging.enable_progress_bar()
