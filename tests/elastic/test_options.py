"""What a spec can say of the computation, on real data: the number of workers still changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from histories import resized
from live_runs import DIGITS, IMAGES, digest, fit, ignore, on_disk, spec_of
from tidegate.data.prepare import prepare
from tidegate.spec.run import Spec
from tidegate.training.checkpoint import Checkpoint

# Ray warns about its own settings when it copies them.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
PLAIN = DIGITS | {"model": {"type": "mlp", "hidden": [32]}}
NORMED = DIGITS | {"name": "normed", "model": {"type": "custom", "build": "own_models:Normed", "args": {"width": 16}}}
AUGMENTED = IMAGES | {
    "name": "augmented",
    "data": IMAGES["data"]
    | {"inputs": {"pixels": {"type": "image", "size": [8, 8], "max_value": 16, "augment": {"shift": 1, "flip": True}}}},
}
Trained = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def trained(ray_local: None) -> Trained:
    """Trains a document on so many workers; `train` replaces keys of its `train`."""
    count = iter(range(1000))

    def train(document: dict[str, Any], workers: int, **options: Any) -> Checkpoint:
        spec = short(document, workers, **options)
        return fit(spec, prepare(spec, ignore), f"run-{next(count)}")

    return train


def short(document: dict[str, Any], workers: int | tuple[int, int], **options: Any) -> Spec:
    return on_disk(spec_of(document, workers, **({"epochs": 3} | options)))


def with_feed(document: dict[str, Any], feed: str) -> dict[str, Any]:
    return document | {"data": document["data"] | {"feed": feed}}


def apart(first: Checkpoint, second: Checkpoint) -> float:
    """The norm of the difference of all weights over the norm of the weights."""
    ours, theirs = (
        torch.cat([tensor.flatten() for _, tensor in sorted(found.tensors["model"].items())])
        for found in (first, second)
    )
    return float((ours - theirs).norm() / ours.norm())


@pytest.mark.parametrize("document", [DIGITS, AUGMENTED], ids=["rows as they are", "rows worked on"])
def test_both_feeds_bring_the_same_rows_to_any_workers(trained: Trained, document: dict[str, Any]) -> None:
    expected = digest(trained(with_feed(document, "local"), 1))
    assert digest(trained(with_feed(document, "local"), 3)) == expected
    assert digest(trained(with_feed(document, "ray_data"), 1)) == expected
    assert digest(trained(with_feed(document, "ray_data"), 3)) == expected


def test_statistics_of_batches_are_the_same_on_any_workers(trained: Trained) -> None:
    alone = trained(NORMED, 1)
    assert float(alone.tensors["model"]["norm.running_mean"].abs().sum()) > 0
    assert int(alone.tensors["model"]["norm.num_batches_tracked"]) > 0
    assert [digest(trained(NORMED, workers)) for workers in (2, 3)] == [digest(alone)] * 2


def test_micro_batches_are_the_same_on_any_workers_and_change_only_rounding(trained: Trained) -> None:
    alone = trained(PLAIN, 1, micro_batch=4)
    assert [digest(trained(PLAIN, workers, micro_batch=4)) for workers in (2, 3)] == [digest(alone)] * 2
    whole = trained(PLAIN, 1)
    assert digest(whole) != digest(alone)
    assert apart(whole, alone) <= 1e-5


def test_bf16_runs_and_is_the_same_on_two_workers(trained: Trained) -> None:
    alone = trained(DIGITS, 1, precision="bf16")
    assert digest(trained(DIGITS, 2, precision="bf16")) == digest(alone) != digest(trained(DIGITS, 1))
    assert alone.state["history"][-1]["validation.accuracy"] > 0.8
    assert {tensor.dtype for tensor in alone.tensors["model"].values()} == {torch.float32}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_models_are_the_same_on_two_workers_and_after_resizes(trained: Trained) -> None:
    options = {"compile": True, "epochs": 20}
    alone = trained(DIGITS, 1, **options)
    assert digest(trained(DIGITS, 2, **options)) == digest(alone)
    spec = short(DIGITS, (1, 3), **options)
    assert digest(resized(spec, prepare(spec, ignore), "compiled", (1, 3, 2))) == digest(alone)


def test_the_fast_reduction_is_equal_up_to_rounding(trained: Trained) -> None:
    options = {"epochs": 1, "global_batch": 29}
    ordered = trained(PLAIN, 1, **options)
    assert ordered.step == 50
    for workers in (1, 2, 3):
        fast = trained(PLAIN, workers, reduction="fast", **options)
        assert apart(ordered, fast) <= 1e-5, f"{workers} workers"
