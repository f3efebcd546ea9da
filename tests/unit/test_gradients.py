"""One vector for gradients, running statistics and numbers of a shard: what is in it, and what becomes of its sum."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from tidegate.data.plan import owned_shards
from tidegate.errors import TrainingError
from tidegate.training.gradients import EXTRAS, Gradients, running_statistics
from tidegate.training.reduce import Combined, OrderedSum

CPU = torch.device("cpu")


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    pixels, digit = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float() / 16, torch.from_numpy(digit)


def net(*, momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Linear(8, 10))


def backward(model: nn.Module, rows: slice) -> float:
    """The loss of some digits, summed over the rows; its gradients go where the model's are."""
    inputs, targets = digits()
    loss = functional.cross_entropy(model(inputs[rows]), targets[rows], reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def test_every_gradient_is_a_view_of_the_vector() -> None:
    layer = nn.Linear(3, 2)
    gradients = Gradients(layer, CPU)
    assert gradients.flat.shape == (8 + EXTRAS,)
    layer(torch.ones(4, 3)).sum().backward()
    assert torch.equal(gradients.flat[:8], torch.cat([torch.full((6,), 4.0), torch.full((2,), 4.0)]))
    total = gradients.note(6.0, 4.0, 4).clone()
    assert total[8:].tolist() == [6.0, 4.0, 4.0, 0.0]
    total[-1] = 3
    assert gradients.take(total) == (1.5, 4.0, 3)
    assert torch.equal(layer.bias.grad, torch.ones(2))  # type: ignore[arg-type]
    gradients.clear()
    assert not layer.weight.grad.any()  # type: ignore[union-attr]


def test_the_sum_may_be_the_vector_itself() -> None:
    layer = nn.Linear(3, 2)
    gradients = Gradients(layer, CPU)
    layer(torch.ones(4, 3)).sum().backward()
    assert gradients.take(gradients.note(6.0, 4.0, 4)) == (1.5, 4.0, 0)
    assert torch.equal(layer.bias.grad, torch.ones(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["before each pass", "before the second", "after each"])
def test_a_person_may_call_zero_grad(when: str) -> None:
    plain = nn.Linear(64, 10)
    model = nn.Linear(64, 10)
    model.load_state_dict(plain.state_dict())
    gradients, optimizer = Gradients(model, CPU), torch.optim.SGD(model.parameters(), 0.1)
    for rows in (slice(0, 64), slice(64, 100)):
        if when == "before each pass" or (when == "before the second" and rows.start):
            optimizer.zero_grad()
        backward(model, rows)
        gradients.attach()
        if when == "after each":
            optimizer.zero_grad()
        backward(plain, rows)
    gradients.attach()
    assert torch.equal(gradients.flat[:-EXTRAS], torch.cat([plain.weight.grad.reshape(-1), plain.bias.grad]))  # type: ignore[union-attr,list-item]
    assert all(p.grad is view for p, view in zip(model.parameters(), gradients.views, strict=True))


def test_gradients_that_were_there_before_are_of_no_shard() -> None:
    model = nn.Linear(64, 10)
    backward(model, slice(0, 8))
    gradients = Gradients(model, CPU)
    gradients.clear()
    assert not gradients.flat.any()
    assert model.weight.grad is gradients.views[0]


def test_frozen_parameters_have_no_place_in_the_vector() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 10))
    model[0].requires_grad_(False)
    gradients = Gradients(model, CPU)
    assert gradients.parameters == list(model[1].parameters())
    assert gradients.count == 90
    backward(model, slice(0, 8))
    gradients.attach()
    assert model[0].weight.grad is None
    assert gradients.flat[:90].any()


def test_a_weight_of_two_layers_has_one_place_and_the_sum_of_both_gradients() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    gradients = Gradients(model, CPU)
    model(torch.ones(1, 4)).sum().backward()
    assert gradients.count == 16
    twin = model[0].weight.detach().clone().requires_grad_()
    (torch.ones(1, 4) @ twin.T @ twin.T).sum().backward()
    assert torch.allclose(gradients.views[0], twin.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.complex64])
def test_other_types_of_weights_are_refused(kind: torch.dtype) -> None:
    with pytest.raises(TrainingError, match=str(kind)) as caught:
        Gradients(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=kind)), CPU)
    assert "bf16" in caught.value.remedy


def test_a_model_without_weights_to_train_is_refused() -> None:
    with pytest.raises(TrainingError, match="none at all"):
        Gradients(nn.Linear(2, 2).requires_grad_(False), CPU)


@pytest.mark.parametrize("fused", [True, False])
def test_weights_in_another_memory_format_get_their_own_gradients(fused: bool) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    plain = nn.Conv2d(3, 4, 3)
    model = nn.Conv2d(3, 4, 3)
    model.load_state_dict(plain.state_dict())
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Gradients(model, CPU)
    assert model.weight.grad is not None
    assert model.weight.grad.stride() == model.weight.stride() != plain.weight.stride()
    optimizers = [torch.optim.SGD(one.parameters(), 0.1, momentum=0.9, fused=fused) for one in (model, plain)]
    for _ in range(3):
        for one, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=False)
            one(images).square().mean().backward()
            optimizer.step()
    assert torch.allclose(model.weight, plain.weight, atol=1e-6)


def run(gradients: Gradients, model: nn.Module, shards: Sequence[slice], workers: int) -> Tensor:
    """A step over digits on simulated workers, one after the other in the same state; the sum over all shards."""
    known: list[list[Tensor]] = []

    def exchange(mine: list[Tensor], combined: Combined) -> Tensor:
        known.append([tensor.clone() for tensor in mine])
        return combined(known) if len(known) == workers else mine[0]

    for worker in range(workers):
        sum_ = OrderedSum(len(shards), len(gradients.flat), worker=worker, workers=workers, device=CPU)
        if workers > 1:
            sum_._exchange = exchange  # type: ignore[assignment]
        for shard in owned_shards(len(shards), worker, workers):
            rows = shards[shard]
            count = rows.stop - rows.start
            gradients.clear()
            loss = backward(model, rows) if count else 0.0
            gradients.attach()
            sum_.add(gradients.note(loss, float(count), count))
        total = sum_.total(0.0)
    return total


SHARDS = [slice(0, 40), slice(40, 60), slice(60, 60), slice(60, 100)]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_of_the_shards_are_averaged_by_rows(momentum: float | None) -> None:
    model = net(momentum=momentum)
    gradients = Gradients(model, CPU)
    means, variances = torch.zeros(8), torch.ones(8)
    for step in range(3):
        gradients.take(run(gradients, model, SHARDS, 1))
        with torch.no_grad():
            hidden = [model[0](digits()[0][rows]) for rows in SHARDS if rows.stop > rows.start]
        share = momentum if momentum is not None else 1 / (step + 1)
        # The layer before changed in no step: nothing was stepped.
        means = sum(len(h) / 100 * ((1 - share) * means + share * h.mean(0)) for h in hidden)  # type: ignore[assignment]
        variances = sum(len(h) / 100 * ((1 - share) * variances + share * h.var(0)) for h in hidden)  # type: ignore[assignment]
        assert torch.allclose(model[1].running_mean, means, atol=1e-6)
        assert torch.allclose(model[1].running_var, variances, atol=1e-6)
        assert int(model[1].num_batches_tracked) == step + 1


def test_statistics_have_the_same_bits_for_any_number_of_workers() -> None:
    results = []
    for workers in (1, 2, 3, 4):
        model = net()
        gradients = Gradients(model, CPU)
        for _ in range(3):
            taken = gradients.take(run(gradients, model, SHARDS, workers))
        results.append((taken, [tensor.clone() for tensor in (*running_statistics(model), gradients.flat)]))
    for taken, tensors in results[1:]:
        assert taken == results[0][0]
        assert all(torch.equal(one, two) for one, two in zip(tensors, results[0][1], strict=True))


def test_every_shard_starts_from_the_same_statistics() -> None:
    model = net()
    gradients = Gradients(model, CPU)
    backward(model, slice(0, 40))
    alone = [buffer.clone() for buffer in running_statistics(model)]
    assert int(alone[2]) == 1
    for _ in range(2):
        gradients.clear()
        backward(model, slice(0, 40))
    assert all(torch.equal(one, two) for one, two in zip(alone, running_statistics(model), strict=True))


def test_steps_are_counted_exactly_where_a_float_would_not() -> None:
    model, many = net(), 2**24 + 1
    model[1].num_batches_tracked.fill_(many)
    gradients = Gradients(model, CPU)
    for step in range(1, 4):
        gradients.take(run(gradients, model, SHARDS, 1))
        assert int(model[1].num_batches_tracked) == many + step


def test_statistics_that_a_pass_leaves_alone_do_not_drift() -> None:
    model = net()
    with torch.no_grad():
        model[1].running_mean.copy_(torch.randn(8))
        model[1].running_var.copy_(torch.rand(8))
    model[1].eval()
    gradients = Gradients(model, CPU)
    before = [buffer.clone() for buffer in running_statistics(model)]
    for _ in range(3):
        gradients.take(run(gradients, model, SHARDS, 1))
    assert all(torch.equal(one, two) for one, two in zip(before, running_statistics(model), strict=True))


def test_restored_statistics_are_what_shards_start_from() -> None:
    model = net()
    gradients = Gradients(model, CPU)
    model[1].running_mean.fill_(5)
    gradients.remember_statistics()
    gradients.clear()
    assert torch.equal(model[1].running_mean, torch.full((8,), 5.0))


class Counting(nn.Module):
    """Keeps state of its own that a forward pass changes."""

    def __init__(self, *, persistent: bool, anew: bool) -> None:
        super().__init__()
        self.layer, self.anew = nn.Linear(64, 10), anew
        self.register_buffer("calls", torch.zeros(1), persistent=persistent)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.anew:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        output: Tensor = self.layer(inputs)
        return output


@pytest.mark.parametrize("anew", [True, False])
def test_other_state_that_a_pass_changes_is_refused(anew: bool) -> None:
    model = nn.Sequential(Counting(persistent=True, anew=anew))
    gradients = Gradients(model, CPU)
    with pytest.raises(TrainingError, match=r"changes the model's 0\.calls") as caught:
        run(gradients, model, SHARDS[:1], 1)
    assert "persistent=False" in caught.value.remedy


def test_state_that_is_restored_or_not_kept_may_change() -> None:
    model = nn.Sequential(Counting(persistent=False, anew=True))
    run(Gradients(model, CPU), model, SHARDS[:1], 1)
    constant = nn.Sequential(nn.Linear(64, 10))
    constant.register_buffer("scale", torch.ones(1))
    gradients = Gradients(constant, CPU)
    constant.load_state_dict({name: tensor + 1 for name, tensor in constant.state_dict().items()})
    gradients.remember_statistics()
    run(gradients, constant, SHARDS[:1], 1)


def test_weights_that_add_up_to_nothing_are_an_error() -> None:
    gradients = Gradients(nn.Linear(2, 2), CPU)
    with pytest.raises(TrainingError, match="add up to 0"):
        gradients.take(gradients.note(0.0, 0.0, 4).clone())


@pytest.mark.parametrize("bound", [0.01, 1.0, 1e6])
def test_clipping_is_torchs(bound: float) -> None:
    model, plain = net(), net()
    gradients = Gradients(model, CPU)
    for one in (model, plain):
        backward(one, slice(0, 100))
    norm = float(nn.utils.clip_grad_norm_(plain.parameters(), bound))
    gradients.clip(bound)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        # torch adds 1e-6 to the norm.
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7 * norm)  # type: ignore[arg-type]
    found = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))  # type: ignore[union-attr]
    assert found == pytest.approx(min(norm, bound), rel=1e-5)
