"""The model types: shapes, initial weights, padding, and each forward pass against a plain torch module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from plain_models import plain
from tidegate.models.build import build
from tidegate.models.flatten import Flatten
from tidegate.spec.model import Model
from tidegate.transforms.base import Feature, length_key
from tidegate.transforms.text import PAD

NUMBER, NUMBERS = Feature("age", "number", (1,)), Feature("series", "number", (3,))
CATEGORY = Feature("city", "category", (1,), 5)
IMAGE = Feature("pixels", "image", (2, 6, 9))
TEXT = Feature("text", "text", (12,), 40)
STEPS = Feature("steps", "series", (7, 2))

TYPES: dict[str, tuple[dict[str, Any], list[Feature]]] = {
    "linear": ({"type": "linear", "init": "xavier"}, [NUMBER, CATEGORY, NUMBERS]),
    "linear on an image": ({"type": "linear", "init": "xavier"}, [IMAGE, NUMBER]),
    "mlp": ({"type": "mlp", "hidden": [7, 6], "dropout": 0.5}, [CATEGORY, NUMBERS, IMAGE]),
    "cnn": ({"type": "cnn", "channels": [3, 4], "hidden": 8, "dropout": 0.5}, [IMAGE]),
    "conv_attention": (
        {"type": "conv_attention", "stem": [3], "layers": 2, "width": 8, "heads": 2, "dropout": 0.5},
        [IMAGE],
    ),
    "rnn of a series": ({"type": "rnn", "cell": "rnn", "width": 6}, [STEPS]),
    "rnn of a text": ({"type": "rnn", "cell": "gru", "width": 6, "pool": "mean", "dropout": 0.5}, [TEXT]),
    "rnn both ways": (
        {"type": "rnn", "cell": "lstm", "layers": 2, "width": 6, "bidirectional": True, "dropout": 0.5},
        [STEPS],
    ),
    "gru both ways": ({"type": "rnn", "cell": "gru", "width": 6, "bidirectional": True, "pool": "mean"}, [STEPS]),
    "forecast": ({"type": "forecast", "encoder": "gru", "width": 6, "dropout": 0.5}, [STEPS]),
    "forecast by lstm": ({"type": "forecast", "encoder": "lstm", "layers": 2, "width": 6}, [STEPS]),
    "forecast by transformer": (
        {"type": "forecast", "encoder": "transformer", "layers": 2, "width": 8, "heads": 2, "dropout": 0.5},
        [STEPS],
    ),
    "transformer": ({"type": "transformer", "layers": 2, "width": 8, "heads": 2, "dropout": 0.5}, [TEXT]),
}
PADDED = [name for name, (_, features) in TYPES.items() if features[0] in (STEPS, TEXT)]
each_type = pytest.mark.parametrize(("options", "features"), TYPES.values(), ids=TYPES)


def spec_of(options: dict[str, Any]) -> Any:
    return TypeAdapter(Model).validate_python(options)


def module_of(options: dict[str, Any], features: list[Feature], outputs: int = 3, seed: int = 0) -> nn.Module:
    return build(spec_of(options), features, Feature("y", "category", (), outputs), seed=seed)


def inputs_of(features: list[Feature], rows: int = 5) -> dict[str, Tensor]:
    """Prepared arrays as they come from disk."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for feature in features:
        size = (rows, math.prod(feature.shape))
        if feature.kind == "text":
            lengths = torch.randint(1, feature.shape[0] + 1, (rows, 1), generator=generator, dtype=torch.int32)
            codes = torch.randint(1, feature.cardinality, size, generator=generator, dtype=torch.int32)
            inputs[length_key(feature.name)] = lengths
            inputs[feature.name] = codes.masked_fill(torch.arange(size[1]) >= lengths, PAD)
        elif feature.kind == "series":
            lengths = torch.randint(1, feature.shape[0] + 1, (rows, 1), generator=generator, dtype=torch.int32)
            values = torch.randn((rows, *feature.shape), generator=generator)
            inputs[length_key(feature.name)] = lengths
            ended = torch.arange(feature.shape[0]) >= lengths
            inputs[feature.name] = values.masked_fill(ended.unsqueeze(-1), 0.0).reshape(rows, -1)
        elif feature.kind == "category":
            inputs[feature.name] = torch.randint(0, feature.cardinality, size, generator=generator, dtype=torch.int32)
        else:
            inputs[feature.name] = torch.randn(size, generator=generator)
    return inputs


@each_type
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("rows", [1, 5])
def test_outputs_are_rows_by_outputs_and_reach_every_weight(
    options: dict[str, Any], features: list[Feature], outputs: int, rows: int
) -> None:
    model = module_of(options, features, outputs)
    found = model(inputs_of(features, rows))
    assert found.shape == (rows, outputs)
    assert found.dtype == torch.float32
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@each_type
def test_initial_weights_follow_from_the_seed_alone(options: dict[str, Any], features: list[Feature]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = module_of(options, features, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    two = module_of(options, features, seed=7).state_dict()
    other = module_of(options, features, seed=8).state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_module_of_an_installed_package_needs_no_code() -> None:
    model = module_of(
        {"type": "custom", "build": "torch.nn:Linear", "args": {"in_features": 3, "out_features": 2}}, [NUMBERS], 2
    )
    assert isinstance(model, nn.Linear)
    assert model(inputs_of([NUMBERS])).shape == (5, 2)


def test_a_linear_model_may_begin_at_zero() -> None:
    assert not any(weight.any() for weight in module_of({"type": "linear"}, [NUMBERS]).state_dict().values())


@each_type
@pytest.mark.parametrize("init", ["xavier", "kaiming"])
def test_initial_weights_have_the_spread_of_their_rule(
    options: dict[str, Any], features: list[Feature], init: str
) -> None:
    wide = {
        "mlp": {"hidden": [60, 50]},
        "cnn": {"channels": [20, 20], "hidden": 40},
        "conv_attention": {"stem": [20], "width": 32},
        "rnn": {"width": 32},
        "forecast": {"width": 32},
        "transformer": {"width": 32},
    }
    model = module_of(options | wide.get(options["type"], {}) | {"init": init}, features, outputs=10)
    for name, parameter in model.state_dict().items():
        if parameter.ndim == 1:
            assert torch.equal(
                parameter, torch.full_like(parameter, 0.0 if "bias" in name or name == "shift" else 1.0)
            ), name
        elif name.endswith(("tokens.weight", "positions.weight")):
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.2)
        else:
            fan_out, fan_in = parameter.shape[0] * parameter[0, 0].numel(), parameter[0].numel()
            bound = math.sqrt(6 / (fan_in + fan_out)) if init == "xavier" else math.sqrt(6 / fan_in)
            assert float(parameter.abs().max()) <= bound, name
            assert float(parameter.abs().max()) > 0.8 * bound, name
            assert float(parameter.std()) == pytest.approx(bound / math.sqrt(3), rel=0.25), name


@each_type
def test_dropout_is_off_in_evaluation(options: dict[str, Any], features: list[Feature]) -> None:
    model, inputs = module_of(options, features), inputs_of(features)
    if "dropout" in options:
        assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def text_of(codes: list[list[int]], width: int) -> dict[str, Tensor]:
    padded = torch.full((len(codes), width), PAD, dtype=torch.int32)
    for row, ids in enumerate(codes):
        padded[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
    return {"text": padded, "__length.text": torch.tensor([[len(ids)] for ids in codes], dtype=torch.int32)}


@pytest.mark.parametrize("name", PADDED)
def test_rows_of_any_length_are_answered_alike_alone_and_together(name: str) -> None:
    options, (feature,) = TYPES[name]
    model, inputs = module_of(options, [feature]).eval(), inputs_of([feature], rows=9)
    lengths = inputs[length_key(feature.name)].reshape(-1).tolist()
    assert len(set(lengths)) > 3
    rubbish = {key: tensor.clone() for key, tensor in inputs.items()}
    padded = rubbish[feature.name].reshape(9, feature.shape[0], -1)
    with torch.inference_mode():
        together = model(inputs)
        for row, length in enumerate(lengths):
            alone = model({key: tensor[row : row + 1] for key, tensor in inputs.items()})
            assert torch.allclose(together[row], alone[0], rtol=0, atol=1e-5)
            padded[row, length:] = 3
        assert torch.allclose(model(rubbish), together, rtol=0, atol=1e-5)


@each_type
def test_a_handful_of_rows_is_learned_by_heart(options: dict[str, Any], features: list[Feature]) -> None:
    undisturbed = {"dropout": 0.0} if "dropout" in options else {}
    model, inputs = module_of(options | undisturbed, features), inputs_of(features)
    for name in inputs:
        if name.startswith(length_key("")):
            # Of a single step a forecast can only say that it stays.
            inputs[name] = inputs[name].clamp(min=2)
    targets = torch.tensor([0, 1, 2, 1, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    with torch.inference_mode():
        assert float(functional.cross_entropy(model(inputs), targets)) < 0.1


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_padding_never_changes_an_answer(mode: str) -> None:
    model = module_of(TYPES["transformer"][0] | {"dropout": 0.0}, [TEXT])
    model.train(mode == "training")
    rows = [[5, 3], [9], [7, 8, 39, 2, 6, 11, 12, 13, 14, 15, 16, 17], [1, 2, 3, 4, 5]]
    with torch.inference_mode(mode == "evaluation"):
        alone = [model(text_of([row], len(row))) for row in rows]
        together = model(text_of(rows, 12))
        wider = model(text_of(rows[:2], 12))
        rubbish = text_of(rows, 12)
        rubbish["text"][0, 2:] = 33
        ignored = model(rubbish)
    for row, answer in enumerate(alone):
        assert torch.allclose(together[row], answer[0], rtol=0, atol=1e-5)
        assert torch.allclose(ignored[row], answer[0], rtol=0, atol=1e-5)
    assert torch.allclose(wider, torch.cat(alone[:2]), rtol=0, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_a_longer_maximum_changes_no_answer() -> None:
    short = module_of(TYPES["transformer"][0], [TEXT]).eval()
    long = module_of(TYPES["transformer"][0], [Feature("text", "text", (30,), 40)]).eval()
    weights = short.state_dict()
    weights["positions.weight"] = torch.cat([weights["positions.weight"], long.state_dict()["positions.weight"][12:]])
    long.load_state_dict(weights)
    rows = [[5, 3], [7, 8, 39]]
    assert torch.allclose(short(text_of(rows, 12)), long(text_of(rows, 30)), rtol=0, atol=1e-5)


def test_the_order_of_words_and_the_heads_matter() -> None:
    options = TYPES["transformer"][0]
    model = module_of(options, [TEXT]).eval()
    assert not torch.allclose(model(text_of([[5, 3]], 2)), model(text_of([[3, 5]], 2)), atol=1e-4)
    one, four = (module_of(options | {"heads": heads}, [TEXT]).eval() for heads in (1, 4))
    four.load_state_dict(one.state_dict())
    inputs = text_of([[5, 3, 9, 9, 2]], 5)
    assert not torch.allclose(one(inputs), four(inputs), atol=1e-5)


def test_a_map_of_two_by_two_is_not_pooled_further() -> None:
    options = {"type": "cnn", "channels": [2, 2, 2, 2], "hidden": 4}
    model = module_of(options, [Feature("pixels", "image", (1, 8, 8))])
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in model.blocks) == 2  # type: ignore[union-attr]
    tiny = [Feature("pixels", "image", (1, 1, 1))]
    assert module_of(options, tiny)(inputs_of(tiny)).shape == (5, 3)


def test_flatten_keeps_the_order_of_the_spec_and_makes_categories_one_hot() -> None:
    inputs = {"city": torch.tensor([[4], [0]]), "age": torch.tensor([[1.5], [2.5]])}
    expected = [[0, 0, 0, 0, 1, 1.5], [1, 0, 0, 0, 0, 2.5]]
    assert Flatten([CATEGORY, NUMBER])(inputs).tolist() == expected
    assert Flatten([NUMBER, CATEGORY])(inputs).tolist() == [[row[-1], *row[:-1]] for row in expected]


@each_type
def test_the_forward_pass_is_the_one_written_out(options: dict[str, Any], features: list[Feature]) -> None:
    model, inputs = module_of(options, features), inputs_of(features)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():  # biases too: at zero they would not be tested
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    with torch.inference_mode():
        found = model.eval()(inputs)
    expected = plain(options, features, dict(model.state_dict()), inputs)
    assert float(expected.std()) > 0.05
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_what_training_never_showed_counts_as_the_mean_of_what_it_did() -> None:
    with_bucket = Feature("city", "category", (1,), 5, has_bucket=True)
    codes = torch.arange(5).reshape(-1, 1)
    found = Flatten([with_bucket, NUMBER])({"city": codes, "age": torch.ones(5, 1)})
    assert torch.equal(found[:4], torch.cat([torch.eye(4, 5), torch.ones(4, 1)], dim=1))
    assert found[4].tolist() == [0.25, 0.25, 0.25, 0.25, 0.0, 1.0]
    model = module_of({"type": "linear", "init": "xavier"}, [with_bucket])
    answers = model({"city": codes})
    assert torch.allclose(answers[4], answers[:4].mean(dim=0), atol=1e-6)
