"""A Hugging Face folder as people have them, but of a tiny BERT with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "happy", "sad", "person", "dog", "was", "very", "not", "sunny"]
LONGEST = 12


def write(folder: Path, *, labels: list[str] | None = None, sentences: dict[str, Any] | None = None) -> Path:
    """An encoder, or a classifier with these labels; with `sentences`, which are options of the pooling, as
    sentence-transformers keeps it."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel
    from transformers.utils import logging

    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LONGEST,
    )
    torch.manual_seed(11)
    if labels is None:
        module: Any = BertModel(config)
    else:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: place for place, label in enumerate(labels)}
        module = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                # Farther apart than new weights are, so that texts have answers of their own.
                parameter.add_(torch.randn_like(parameter))
    logging.disable_progress_bar()
    module.save_pretrained(folder)
    logging.enable_progress_bar()
    _tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    if sentences is not None:
        modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
        modules += [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
        modules += [{"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(sentences))
    return folder


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: code for code, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    # As many folders come: cut and padded to a fixed length, which is not how the model is asked here.
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=6)
    return tokenizer
