"""Checkpoints: whole or not there, verified when read, the one before when the newest is damaged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tidegate.errors import CheckpointError
from tidegate.training import checkpoint as checkpoints
from tidegate.training.checkpoint import MANIFEST, Checkpoint

STATE = {"finished": False, "history": [{"epoch": 1, "train.loss": 0.1}], "best": {"epoch": 0, "value": None}}


def example(step: int) -> Checkpoint:
    torch.manual_seed(step)
    tensors = {
        "model": {
            "layer.weight": torch.randn(3, 4),
            "layer.bias": torch.randn(3, 6)[:, ::2],
            "empty": torch.empty(0, 2),
        },
        "optimizer": {"0.step": torch.tensor(float(step)), "0.exp_avg": torch.randn(3, 4)},
    }
    return Checkpoint(step, tensors, STATE)


def assert_equal(one: Checkpoint | None, two: Checkpoint) -> None:
    assert one is not None
    assert (one.step, one.state) == (two.step, two.state)
    assert one.tensors.keys() == two.tensors.keys()
    for part, tensors in two.tensors.items():
        assert one.tensors[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert one.tensors[part][name].shape == tensor.shape
            assert torch.equal(one.tensors[part][name], tensor)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path, example(12))
    assert folder == checkpoints.folder_of(tmp_path, 12)
    assert_equal(checkpoints.read(folder), example(12))
    assert_equal(checkpoints.latest(tmp_path), example(12))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000012"]


def test_no_optimizer_state_is_a_checkpoint_too(tmp_path: Path) -> None:
    bare = Checkpoint(1, {"model": {"w": torch.ones(1)}, "optimizer": {}}, STATE)
    assert_equal(checkpoints.read(checkpoints.write(tmp_path, bare)), bare)


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None


def test_the_newest_step_is_the_latest_and_the_same_step_is_replaced(tmp_path: Path) -> None:
    for step in (1_000, 20, 999):
        checkpoints.write(tmp_path, example(step))
    assert_equal(checkpoints.latest(tmp_path), example(1_000))
    finished = Checkpoint(1_000, example(1_000).tensors, STATE | {"finished": True})
    checkpoints.write(tmp_path, finished)
    assert_equal(checkpoints.latest(tmp_path), finished)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def edit(folder: Path, **changes: object) -> None:
    file = folder / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "a bit flipped": flip,
    "a file gone": lambda folder: (folder / "model.safetensors").unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half a manifest": lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:40]),
    "empty": lambda folder: (folder / MANIFEST).write_bytes(b""),
    "no bytes of text": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "files no mapping": lambda folder: edit(folder, files=["model"]),
    "an entry no mapping": lambda folder: edit(folder, files={"model": 3}),
    "another format": lambda folder: edit(folder, format=99),
    "no step": lambda folder: edit(folder, step=None),
    "another step": lambda folder: edit(folder, step=7),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_passed_over_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.write(tmp_path, example(10))
    newest = checkpoints.write(tmp_path, example(20))
    damage(newest)
    with pytest.raises(CheckpointError, match="step-000000020"):
        checkpoints.read(newest)
    with caplog.at_level(logging.WARNING):
        assert_equal(checkpoints.latest(tmp_path), example(10))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step-000000020" in caplog.text
    damage(checkpoints.folder_of(tmp_path, 10))
    assert checkpoints.latest(tmp_path) is None


def test_partial_folders_are_neither_read_nor_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = checkpoints.write(tmp_path, example(10))
    partial = whole.with_name("step-000000099.partial")
    partial.mkdir()
    (partial / MANIFEST).write_text((whole / MANIFEST).read_text())
    assert_equal(checkpoints.latest(tmp_path), example(10))
    assert not caplog.records
    checkpoints.prune(tmp_path, 1)
    assert_equal(checkpoints.latest(tmp_path), example(10))


def test_remains_of_an_interrupted_write_do_not_disturb_the_next(tmp_path: Path) -> None:
    partial = checkpoints.folder_of(tmp_path, 5).with_name("step-000000005.partial")
    partial.mkdir(parents=True)
    (partial / "best.safetensors").write_bytes(b"half")
    folder = checkpoints.write(tmp_path, example(5))
    assert_equal(checkpoints.latest(tmp_path), example(5))
    assert not partial.exists()
    assert not (folder / "best.safetensors").exists()


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 100, 20, 3):
        checkpoints.write(tmp_path, example(step))
    checkpoints.prune(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000000020", "step-000000100"]
    checkpoints.prune(tmp_path, 2)
    assert_equal(checkpoints.latest(tmp_path), example(100))


def test_nothing_of_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path, example(1))
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors", ".safetensors"]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_it_had_not_been_stored(tmp_path: Path, kind: type[torch.optim.Optimizer]) -> None:
    options = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1}
    torch.manual_seed(0)
    one = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
    first = kind(one, **options)
    for _ in range(3):
        step(first, one)
    two = [tensor.detach().clone().requires_grad_() for tensor in one]
    second = kind(two, **options)
    folder = checkpoints.write(tmp_path, Checkpoint(3, {"optimizer": checkpoints.optimizer_tensors(first)}, STATE))
    checkpoints.restore_optimizer(second, checkpoints.read(folder).tensors["optimizer"])
    for _ in range(3):
        step(first, one)
        step(second, two)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def step(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> None:
    optimizer.zero_grad()
    sum(tensor.square().sum() for tensor in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()
