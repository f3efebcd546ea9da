"""The model types that write texts: likelihoods against independent forms, beam search, padding, learning by heart."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from tidegate.errors import TrainingError
from tidegate.models.beam_search import State, beam_search
from tidegate.models.build import build
from tidegate.spec.model import Model
from tidegate.transforms.base import Feature, length_key
from tidegate.transforms.tokens import END, NEVER_ANSWERED, PAD, START

LETTERS, FRAMES = Feature("word", "text", (9,), 20), Feature("sound", "series", (24, 5))
TARGET = Feature("said", "text", (6,), 12)
TYPES: dict[str, tuple[dict[str, Any], Feature]] = {
    "gru": ({"type": "seq2seq", "network": "gru", "layers": 1, "width": 8, "heads": 2}, LETTERS),
    "two layers of gru": ({"type": "seq2seq", "network": "gru", "layers": 2, "width": 8, "heads": 1}, LETTERS),
    "transformer": ({"type": "seq2seq", "network": "transformer", "layers": 2, "width": 8, "heads": 2}, LETTERS),
    "ctc": ({"type": "ctc", "encoder": "gru", "layers": 2, "width": 8}, FRAMES),
    "ctc of lstm": ({"type": "ctc", "encoder": "lstm", "layers": 1, "width": 8, "halvings": 0}, FRAMES),
    "ctc of transformer": ({"type": "ctc", "encoder": "transformer", "layers": 1, "width": 8, "heads": 2}, FRAMES),
}
WRITERS = {name: pair for name, pair in TYPES.items() if pair[1] is LETTERS}
HEARERS = {name: pair for name, pair in TYPES.items() if pair[1] is FRAMES}
Inputs = dict[str, Tensor]


def each(types: dict[str, tuple[dict[str, Any], Feature]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("options", "feature"), types.values(), ids=types)


def module_of(options: dict[str, Any], feature: Feature, seed: int = 0, **other: Any) -> nn.Module:
    return build(TypeAdapter(Model).validate_python(options | other), [feature], TARGET, seed=seed)


def rows_of(feature: Feature, rows: int = 5, seed: int = 1) -> tuple[Inputs, Tensor]:
    """Prepared inputs of unequal length, and targets that fit them."""
    generator = torch.Generator().manual_seed(seed)
    longest = feature.shape[0]
    lengths = torch.randint(longest // 2 + 1, longest + 1, (rows, 1), generator=generator, dtype=torch.int32)
    beyond = torch.arange(longest) >= lengths
    if feature.kind == "text":
        values = torch.randint(2, feature.cardinality, (rows, longest), generator=generator, dtype=torch.int32)
        values = values.masked_fill(beyond, PAD)
    else:
        values = torch.randn(rows, *feature.shape, generator=generator).masked_fill(beyond.unsqueeze(2), 0.0)
    sizes = torch.randint(1, TARGET.shape[0] // 2 + 1, (rows, 1), generator=generator)
    codes = torch.randint(END + 1, TARGET.cardinality, (rows, TARGET.shape[0]), generator=generator, dtype=torch.int32)
    target = codes.masked_fill(torch.arange(TARGET.shape[0]) >= sizes, PAD)
    return {feature.name: values.reshape(rows, -1), length_key(feature.name): lengths}, target


def taken(inputs: Inputs, row: int) -> Inputs:
    return {name: tensor[row : row + 1] for name, tensor in inputs.items()}


@each(TYPES)
def test_it_answers_codes_and_has_a_gradient_for_every_weight(options: dict[str, Any], feature: Feature) -> None:
    model = module_of(options, feature)
    inputs, target = rows_of(feature)
    surprise = model({**inputs, "said": target})
    assert (surprise.shape, surprise.dtype) == ((5, 2), torch.float32)
    written = (target != PAD).sum(dim=1) + (options["type"] == "seq2seq")
    assert surprise[:, 1].tolist() == written.tolist()
    surprise[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    codes = model.eval()(inputs)
    assert (codes.shape, codes.dtype) == ((5, 6), torch.int64)
    assert not set(codes.unique().tolist()) & {*NEVER_ANSWERED, END}
    ended = (codes == PAD).int()
    assert bool((ended.cummax(dim=1).values == ended).all()), "something comes after the end"


@each(TYPES)
def test_a_batch_is_answered_as_its_rows_are_alone(options: dict[str, Any], feature: Feature) -> None:
    model = module_of(options, feature, **({"beam": 3} if options["type"] == "seq2seq" else {})).eval()
    inputs, target = rows_of(feature, rows=9)
    with torch.no_grad():
        together, surprise = model(inputs), model({**inputs, "said": target})
        for row in range(9):
            alone = taken(inputs, row)
            assert model(alone)[0].tolist() == together[row].tolist()
            assert model({**alone, "said": target[row : row + 1]})[0].tolist() == pytest.approx(
                surprise[row].tolist(), abs=1e-5
            )


@each(TYPES)
def test_a_handful_of_rows_is_learned_by_heart(options: dict[str, Any], feature: Feature) -> None:
    model = module_of(options, feature, width=32, dropout=0.0)
    inputs, target = rows_of(feature)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model({**inputs, "said": target})[:, 0].sum().backward()
        optimizer.step()
    assert model.eval()(inputs).tolist() == target.tolist()


def test_label_smoothing_is_a_matter_of_training_alone() -> None:
    options, feature = TYPES["transformer"]
    plain, smooth = (module_of(options, feature, dropout=0.0, label_smoothing=value) for value in (0.0, 0.2))
    inputs, target = rows_of(feature)
    given = {**inputs, "said": target}
    assert torch.equal(plain.eval()(given), smooth.eval()(given))
    assert not torch.equal(plain.train()(given), smooth.train()(given))


# Against independent forms


@torch.no_grad()
def test_a_transformer_has_the_likelihood_of_torchs_own() -> None:
    model = module_of(*TYPES["transformer"]).eval()
    weights, (inputs, target) = model.state_dict(), rows_of(LETTERS)
    layer = nn.TransformerDecoderLayer(8, 2, 32, activation="gelu", batch_first=True, norm_first=True)
    decoder = nn.TransformerDecoder(layer, 2, nn.LayerNorm(8)).eval()
    names = {
        "self_attn": "itself",
        "multihead_attn": "other",
        "linear1": "wide",
        "linear2": "narrow",
        **{f"norm{number + 1}": f"norms.{number}" for number in range(3)},
    }
    own = {}
    for name in decoder.state_dict():
        parts = name.split(".")
        if parts[0] == "layers":
            parts[2] = names[parts[2]]
        own[name] = weights["decoder." + ".".join(parts)]
    decoder.load_state_dict(own)
    surprise = model({**inputs, "said": target})[:, 0]
    for row in range(5):
        letters = int(inputs[length_key("word")][row])
        embedded = weights["source.weight"][inputs["word"][row, :letters].long()]
        memory = model.encoder.layers((embedded + weights["encoder.positions.weight"][:letters]).unsqueeze(0))  # type: ignore[union-attr, operator]
        wanted = [int(code) for code in target[row] if code != PAD] + [END]
        before = torch.tensor([[START, *wanted[:-1]]])
        written = weights["written.weight"][before] + weights["decoder.positions.weight"][: len(wanted)]
        mask = nn.Transformer.generate_square_subsequent_mask(len(wanted))
        states = decoder(written, memory, tgt_mask=mask)
        logits = states @ weights["head.weight"].T + weights["head.bias"]
        assert float(surprise[row]) == pytest.approx(
            float(functional.cross_entropy(logits[0], torch.tensor(wanted), reduction="sum")), abs=1e-4
        )


@torch.no_grad()
def test_a_gru_with_attention_has_the_likelihood_of_a_plain_loop() -> None:
    model = module_of(*TYPES["two layers of gru"]).eval()
    weights, (inputs, target) = model.state_dict(), rows_of(LETTERS)
    surprise = model({**inputs, "said": target})[:, 0]

    def cell(name: str, values: Tensor, state: Tensor) -> Tensor:
        w = [weights[f"{name.replace('*', part)}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        given, kept = (w[0] @ values + w[2]).chunk(3), (w[1] @ state + w[3]).chunk(3)
        reset, update = torch.sigmoid(given[0] + kept[0]), torch.sigmoid(given[1] + kept[1])
        return (1 - update) * torch.tanh(given[2] + reset * kept[2]) + update * state

    def linear(name: str, values: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ values + weights[f"{name}.bias"]

    for row in range(5):
        letters = inputs["word"][row, : int(inputs[length_key("word")][row])].long()
        states, begun = [weights["source.weight"][letter] for letter in letters], []
        for layer in range(2):
            ways = []
            for suffix, order in (("", 1), ("_reverse", -1)):
                state, found = torch.zeros(4), []
                for values in states[::order]:
                    state = cell(f"encoder.cells.*_l{layer}{suffix}", values, state)
                    found.append(state)
                ways.append(found[::order])
                begun.append(state)
            states = [torch.cat(pair) for pair in zip(*ways, strict=True)]
        memory = torch.stack(states)
        kept = [torch.tanh(linear("encoder.bridge", torch.cat(begun[2 * layer : 2 * layer + 2]))) for layer in range(2)]
        total, last = 0.0, START
        for wanted in [int(code) for code in target[row] if code != PAD] + [END]:
            values = weights["written.weight"][last]
            for layer in range(2):
                values = kept[layer] = cell(f"decoder.cells.*_l{layer}", values, kept[layer])
            projections = zip(
                weights["decoder.attention.in_proj_weight"].chunk(3),
                weights["decoder.attention.in_proj_bias"].chunk(3),
                (values.unsqueeze(0), memory, memory),
                strict=True,
            )
            query, key, value = (given @ weight.T + bias for weight, bias, given in projections)
            seen = (query @ key.T / math.sqrt(8)).softmax(dim=1) @ value
            seen = linear("decoder.attention.out_proj", seen[0])
            logits = linear("head", torch.tanh(linear("decoder.mixed", torch.cat([seen, values]))))
            total -= float(logits.log_softmax(dim=0)[wanted])
            last = wanted
        assert float(surprise[row]) == pytest.approx(total, abs=1e-4)


def frames_said(model: nn.Module, inputs: Inputs, row: int) -> Tensor:
    """Log chances `[frames, tokens]` of a row by itself, layer by layer."""
    weights = model.state_dict()
    frames = inputs["sound"][row].reshape(FRAMES.shape)[: int(inputs[length_key("sound")][row])].T.unsqueeze(0)
    for place, stride in enumerate(model.strides):  # type: ignore[union-attr, arg-type]
        name = f"shorter.{place}"
        frames = functional.gelu(
            functional.conv1d(frames, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding=1)
        )
    states = functional.layer_norm(frames.transpose(1, 2), (8,), weights["norm.weight"], weights["norm.bias"])
    if "encoder.positions.weight" in weights:
        states = model.encoder.layers(states + weights["encoder.positions.weight"][: states.shape[1]])  # type: ignore[union-attr, operator]
    else:
        states = model.encoder.cells(states)[0]  # type: ignore[union-attr, operator]
    chances: Tensor = (states[0] @ weights["head.weight"].T + weights["head.bias"]).log_softmax(dim=1)
    return chances


@each(HEARERS)
@torch.no_grad()
def test_ctc_has_the_likelihood_of_all_paths(options: dict[str, Any], feature: Feature) -> None:
    model = module_of(options, feature).eval()
    inputs, target = rows_of(feature)
    target[0, :3] = torch.tensor([7, 7, 5])  # Repeated: a blank must come between.
    surprise = model({**inputs, "said": target})[:, 0]
    with torch.no_grad():
        for row in range(5):
            chances = frames_said(model, inputs, row).exp().double()
            wanted = [int(code) for code in target[row] if code != PAD]
            assert float(surprise[row]) == pytest.approx(-math.log(forward(chances, wanted)), abs=1e-4)
            said = [token for token, _ in itertools.groupby(chances[:, allowed()].argmax(dim=1).tolist())]
            best = [allowed()[token] for token in said if allowed()[token] != PAD][:6]
            assert [code for code in model(inputs)[row].tolist() if code] == best


def allowed() -> list[int]:
    return [code for code in range(TARGET.cardinality) if code not in (*NEVER_ANSWERED, END)]


def forward(chances: Tensor, wanted: list[int]) -> float:
    """The chance of a labelling (Graves et al. 2006, equations 5 to 8)."""
    labels = [PAD, *itertools.chain.from_iterable((code, PAD) for code in wanted)]
    alpha = [float(chances[0, labels[0]]), float(chances[0, labels[1]])] + [0.0] * (len(labels) - 2)
    for frame in chances[1:]:
        before = alpha
        alpha = []
        for place, label in enumerate(labels):
            total = before[place] + (before[place - 1] if place else 0.0)
            if place > 1 and label != PAD and label != labels[place - 2]:
                total += before[place - 2]
            alpha.append(total * float(frame[label]))
    return alpha[-1] + alpha[-2]


def test_too_few_frames_for_a_text_are_an_error() -> None:
    options, feature = TYPES["ctc"]
    model = module_of(options, feature, halvings=3)
    inputs, target = rows_of(feature)
    target[2] = 7
    with pytest.raises(TrainingError, match=r"frames is to have \d tokens"):
        model({**inputs, "said": target})


# Beam search


@each(WRITERS)
def test_a_beam_of_one_is_the_greedy_choice(options: dict[str, Any], feature: Feature) -> None:
    model = module_of(options, feature).eval()
    for parameter in model.parameters():
        parameter.data *= 3  # Fewer ties, and answers that end.
    inputs, _ = rows_of(feature, rows=12)
    with torch.no_grad():
        answers = model(inputs)
        for row in range(12):
            alone, written = taken(inputs, row), list[int]()
            while len(written) < 6:
                logits = last_logits(model, alone, written)
                best = max([END, *allowed()[1:]], key=lambda code: float(logits[code]))
                if best == END:
                    break
                written.append(best)
            assert [code for code in answers[row].tolist() if code] == written


def last_logits(model: nn.Module, inputs: Inputs, text: list[int]) -> Tensor:
    """Of what comes after a text: from a pass over all of it, as in training."""
    kept: list[Tensor] = []
    hook = model.head.register_forward_hook(lambda _, __, output: kept.append(output))  # type: ignore[union-attr]
    target = torch.full((1, 7), PAD)
    target[0, : len(text)] = torch.tensor(text)
    model({**inputs, "said": target})
    hook.remove()
    return kept[0][0, len(text)]


def test_a_wide_beam_finds_the_likeliest_of_all_sequences() -> None:
    """A made-up language of four tokens in which the greedy first step is wrong."""
    tokens, longest = 7, 3
    table = torch.randn(tokens, tokens, generator=torch.Generator().manual_seed(4)) * 2

    def step(last: Tensor, state: State) -> tuple[Tensor, State]:
        return table[last[:, 0]], [state[0] + 1]

    def chance(sequence: tuple[int, ...]) -> float:
        rows = table.clone()
        total, last = 0.0, START
        for code in sequence:
            total += float(rows[last].log_softmax(dim=0)[code])
            last = code
        return total

    words = [4, 5, 6]
    ended = [(*text, END) for size in range(longest) for text in itertools.product(words, repeat=size)]
    every = ended + list(itertools.product(words, repeat=longest))
    best = max(every, key=chance)
    found = beam_search(step, [torch.zeros(2 * 64, 1)], rows=2, beam=64, longest=longest)
    assert [[code for code in row if code] for row in found.tolist()] == [[c for c in best if c != END]] * 2
    greedy = beam_search(step, [torch.zeros(1, 1)], rows=1, beam=1, longest=longest)
    text = [code for code in greedy[0].tolist() if code]
    assert chance((*text, END) if len(text) < longest else tuple(text)) <= chance(best)
