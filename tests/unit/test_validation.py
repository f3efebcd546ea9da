"""Outputs of a model on a split: the same bits on any number of workers, and nothing of it stays in the model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tidegate.data.prepared import TARGET, Prepared
from tidegate.models.build import build
from tidegate.spec.run import Spec
from tidegate.training.validation import CHUNK_ROWS, evaluating, outputs

SPEC = {
    "name": "digits",
    "data": {
        "source": {"path": "digits.parquet"},
        "inputs": {"pixels": {"type": "image", "size": [8, 8], "max_value": 16.0}},
        "target": {"column": "digit", "type": "category"},
        "split": {"train": 0.4, "validation": 0.45, "test": 0.15},
    },
    "model": {"type": "cnn", "channels": [4], "hidden": 8, "dropout": 0.5},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, prepare_by_hand: Any) -> Prepared:
    pixels, digit = load_digits(return_X_y=True)
    table = pa.table({"pixels": pixels.tolist(), "digit": digit})
    prepared = prepare_by_hand(tmp_path_factory.mktemp("digits") / "prepared", Spec.model_validate(SPEC), table)
    assert isinstance(prepared, Prepared)
    return prepared


def model_of(prepared: Prepared) -> nn.Module:
    return build(Spec.model_validate(SPEC).model, prepared.features, prepared.target.feature, seed=3)


def alone(model: nn.Module, prepared: Prepared) -> tuple[Tensor, Tensor]:
    reader = prepared.reader("validation")
    return outputs(model, reader, prepared.target, worker=0, workers=1, device=torch.device("cpu"))


def test_outputs_are_those_of_the_model_in_the_order_of_the_split(digits: Prepared) -> None:
    model = model_of(digits)
    found, targets = alone(model, digits)
    arrays = digits.reader("validation").read(np.arange(digits.num_rows("validation")))
    with torch.no_grad():
        expected = model.eval()({"pixels": torch.from_numpy(arrays["pixels"])})
    assert len(found) == digits.num_rows("validation") > 3 * CHUNK_ROWS
    assert len(found) % CHUNK_ROWS
    assert torch.allclose(found, expected, atol=1e-6)
    assert targets.tolist() == arrays[TARGET].tolist()
    assert not found.requires_grad


def test_every_module_is_left_in_the_mode_it_was_in(digits: Prepared) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()), nn.BatchNorm1d(2))
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError, match="as a model may"), evaluating(model):
        raise ValueError("as a model may")
    assert [module.training for module in model.modules()] == before


class Remembering(nn.Module):
    """Makes a table when it is first called, as some attention layers do, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(64, 10), None

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = self.layer(inputs["pixels"].reshape(-1, 64))
        self.table = torch.ones(1, 10) * 2 if self.table is None else self.table
        output: Tensor = hidden * self.table
        return output


def test_what_a_module_keeps_can_be_trained_with(digits: Prepared) -> None:
    model = Remembering()
    alone(model, digits)
    model({"pixels": torch.ones(3, 64)}).sum().backward()
    assert torch.equal(model.layer.bias.grad, torch.full((10,), 6.0))  # type: ignore[arg-type]


WORKER = """
import hashlib, json, sys
from pathlib import Path
import torch, torch.distributed as dist
from tidegate.data.prepared import open_folder
from tidegate.models.build import build
from tidegate.spec.run import Spec
from tidegate.training.validation import outputs
worker, folder, prepared, spec = int(sys.argv[1]), sys.argv[2], open_folder(Path(sys.argv[3])), json.loads(sys.argv[4])
torch.set_num_threads(1)
model, found = build(Spec.model_validate(spec).model, prepared.features, prepared.target.feature, seed=3), []
for workers in (2, 3):
    if worker < workers:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{workers}", rank=worker, world_size=workers)
        for split in ("validation", "train", "test"):
            pair = outputs(
                model,
                prepared.reader(split),
                prepared.target,
                worker=worker,
                workers=workers,
                device=torch.device("cpu"),
            )
            found.append([hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in pair])
        dist.destroy_process_group()
print(json.dumps(found))
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_real_groups_give_every_worker_the_bits_of_one(digits: Prepared, tmp_path: Path) -> None:
    # Four chunks, three, and two: more workers than chunks.
    assert [-(-digits.num_rows(split) // CHUNK_ROWS) for split in ("validation", "train", "test")] == [4, 3, 2]
    expected = []
    for split in ("validation", "train", "test"):
        pair = outputs(
            model_of(digits), digits.reader(split), digits.target, worker=0, workers=1, device=torch.device("cpu")
        )  # type: ignore[arg-type]
        expected.append([hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in pair])
    arguments = [str(tmp_path), str(digits.folder), json.dumps(SPEC)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(worker), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for worker in range(3)
    ]
    try:
        found = [json.loads(process.communicate(timeout=240)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert found == [2 * expected, 2 * expected, expected]
