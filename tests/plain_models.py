"""The forward pass of each model type written out, from the names of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tidegate.transforms.base import Feature

Weights = dict[str, Tensor]


def plain(options: dict[str, Any], features: Sequence[Feature], weights: Weights, inputs: dict[str, Tensor]) -> Tensor:
    """The forward pass written out with torch's functions, from the names of the weights."""
    if options["type"] in ("linear", "mlp"):
        return plain_mlp(features, weights, inputs)
    (feature,) = features
    values = inputs[feature.name]
    if options["type"] == "cnn":
        return plain_cnn(weights, values.reshape(-1, *feature.shape))
    if options["type"] == "conv_attention":
        return plain_conv_attention(options, weights, values.reshape(-1, *feature.shape))
    rows = zip(values.reshape(len(values), feature.shape[0], -1), inputs[f"__length.{feature.name}"], strict=True)
    row = {"rnn": plain_rnn, "forecast": plain_forecast, "transformer": plain_transformer}[options["type"]]
    # Row by row, without any padding.
    return torch.stack([row(options, weights, values[: int(length)]) for values, length in rows])


def plain_mlp(features: Sequence[Feature], weights: Weights, inputs: dict[str, Tensor]) -> Tensor:
    columns = [
        functional.one_hot(inputs[f.name][:, 0].long(), f.cardinality).float() if f.cardinality else inputs[f.name]
        for f in features
    ]
    values = torch.cat(columns, dim=1)
    if "linear.weight" in weights:
        return linear(values, weights, "linear")
    for layer in ("layers.0", "layers.3"):
        values = torch.relu(linear(values, weights, layer))
    return linear(values, weights, "layers.6")


def plain_cnn(weights: Weights, images: Tensor) -> Tensor:
    for block in ("0", "3"):
        images = functional.conv2d(
            images, weights[f"blocks.{block}.weight"], weights[f"blocks.{block}.bias"], padding=1
        )
        images = functional.max_pool2d(torch.relu(images), 2)
    hidden = torch.relu(images.flatten(1) @ weights["head.2.weight"].T + weights["head.2.bias"])
    return hidden @ weights["head.5.weight"].T + weights["head.5.bias"]


def plain_transformer(options: dict[str, Any], weights: Weights, codes: Tensor) -> Tensor:
    states = weights["tokens.weight"][codes[:, 0].long()] + weights["positions.weight"][: len(codes)]
    for layer in range(options["layers"]):
        part = {k.removeprefix(f"encoder.layers.{layer}."): v for k, v in weights.items()}
        states = states + attention(normal(states, part, "norm1"), part, options["heads"])
        inner = functional.gelu(linear(normal(states, part, "norm2"), part, "linear1"))
        states = states + linear(inner, part, "linear2")
    return linear(normal(states, weights, "norm").mean(dim=0), weights, "head")


def plain_forecast(options: dict[str, Any], weights: Weights, values: Tensor) -> Tensor:
    mean = values.mean(dim=0)
    deviation = torch.sqrt(values.var(dim=0, correction=0) + 1e-5)
    window, inner = (values - mean) / deviation, {k.removeprefix("encoder."): v for k, v in weights.items()}
    if options["encoder"] == "transformer":
        last = looked_back(options, inner, window)
    else:
        for layer in range(options.get("layers", 1)):
            window = states(options["encoder"], inner, f"l{layer}", window)
        last = window[-1]
    ahead = linear(last, weights, "head") * deviation[0] + mean[0]
    return weights["scale"] * ahead + weights["shift"]


def looked_back(options: dict[str, Any], weights: Weights, window: Tensor) -> Tensor:
    found = linear(window, weights, "first") + weights["positions.weight"][: len(window)].flip(0)
    for layer in range(options["layers"]):
        part = {k.removeprefix(f"layers.layers.{layer}."): v for k, v in weights.items()}
        found = found + attention(normal(found, part, "norm1"), part, options["heads"])
        found = found + linear(functional.gelu(linear(normal(found, part, "norm2"), part, "linear1")), part, "linear2")
    return normal(found, weights, "norm")[-1]


def plain_conv_attention(options: dict[str, Any], weights: Weights, maps: Tensor) -> Tensor:
    for layer in range(2):
        maps = functional.max_pool2d(torch.relu(convolution(maps, weights, f"stem.{3 * layer}")), 2)
    for layer in range(options["layers"]):
        part = {k.removeprefix(f"blocks.{layer}."): v for k, v in weights.items()}
        before = functional.group_norm(maps, 1, part["before.weight"], part["before.bias"])
        maps = maps + positions(before, part, options["heads"])
        inner = functional.group_norm(maps, 1, part["feed_forward.0.weight"], part["feed_forward.0.bias"])
        inner = functional.gelu(convolution(inner, part, "feed_forward.1"))
        maps = maps + convolution(inner, part, "feed_forward.3")
    maps = functional.group_norm(maps, 1, weights["norm.weight"], weights["norm.bias"])
    return linear(maps.mean(dim=(2, 3)), weights, "head")


def convolution(maps: Tensor, weights: Weights, name: str) -> Tensor:
    kernel = weights[f"{name}.weight"]
    return functional.conv2d(maps, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)


def positions(maps: Tensor, weights: Weights, heads: int) -> Tensor:
    """Each row and each head by itself: every position looks at all of them."""
    query, key, value = (convolution(maps, weights, f"attention.{name}") for name in ("query", "key", "value"))
    found = torch.zeros_like(maps)
    size = maps.shape[1] // heads
    for row in range(len(maps)):
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            q, k, v = (each[row, own].flatten(1) for each in (query, key, value))
            found[row, own] = (v @ (q.T @ k / math.sqrt(size)).softmax(dim=1).T).reshape(found[row, own].shape)
    return convolution(found, weights, "attention.out")


def plain_rnn(options: dict[str, Any], weights: Weights, values: Tensor) -> Tensor:
    """Step by step, from the equations in torch's documentation of RNN, GRU and LSTM."""
    steps = weights["tokens.weight"][values[:, 0].long()] if "tokens.weight" in weights else values
    for layer in range(options.get("layers", 1)):
        ways = [states(options["cell"], weights, f"l{layer}", steps)]
        if options.get("bidirectional"):
            ways.append(states(options["cell"], weights, f"l{layer}_reverse", steps.flip(0)).flip(0))
        steps = torch.cat(ways, dim=1)
    if options.get("pool") == "mean":
        return linear(steps.mean(dim=0), weights, "head")
    last = [ways[0][-1], *(way[0] for way in ways[1:])]
    return linear(torch.cat(last), weights, "head")


def states(cell: str, weights: Weights, name: str, steps: Tensor) -> Tensor:
    """The hidden state after each step, of one direction of one layer."""
    width = weights[f"cells.weight_hh_{name}"].shape[1]
    hidden, memory, found = torch.zeros(width), torch.zeros(width), []
    for step in steps:
        from_step = weights[f"cells.weight_ih_{name}"] @ step + weights[f"cells.bias_ih_{name}"]
        from_hidden = weights[f"cells.weight_hh_{name}"] @ hidden + weights[f"cells.bias_hh_{name}"]
        if cell == "rnn":
            hidden = torch.tanh(from_step + from_hidden)
        elif cell == "gru":
            (reset, update), new = (from_step + from_hidden)[: 2 * width].sigmoid().chunk(2), from_step[2 * width :]
            hidden = (1 - update) * torch.tanh(new + reset * from_hidden[2 * width :]) + update * hidden
        else:
            let_in, forget, cell_input, out = (from_step + from_hidden).chunk(4)
            memory = forget.sigmoid() * memory + let_in.sigmoid() * cell_input.tanh()
            hidden = out.sigmoid() * memory.tanh()
        found.append(hidden)
    return torch.stack(found)


def linear(values: Tensor, weights: Weights, name: str) -> Tensor:
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def normal(values: Tensor, weights: Weights, name: str) -> Tensor:
    centred = values - values.mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(values: Tensor, weights: Weights, heads: int) -> Tensor:
    projected = values @ weights["self_attn.in_proj_weight"].T + weights["self_attn.in_proj_bias"]
    query, key, value = (part.reshape(len(values), heads, -1).transpose(0, 1) for part in projected.chunk(3, dim=-1))
    scores = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    return linear((scores @ value).transpose(0, 1).reshape(len(values), -1), weights, "self_attn.out_proj")
