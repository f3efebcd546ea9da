"""Checkpoints written beside training: whole snapshots, one writing and one waiting, failures told and not fatal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tidegate.errors import CheckpointError
from tidegate.training.checkpoint import Checkpoint, Checkpoints
from tidegate.training.saver import Saver


class Gated(Checkpoints):
    """Checkpoints whose writes wait until they are let through."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.begun, self.let = threading.Semaphore(0), threading.Semaphore(0)

    def write(self, checkpoint: Checkpoint) -> None:
        self.begun.release()
        self.let.acquire()
        super().write(checkpoint)


@contextmanager
def saving(checkpoints: Checkpoints, keep: int = 100) -> Iterator[Saver]:
    saver = Saver(checkpoints, keep)
    try:
        yield saver
    finally:
        if isinstance(checkpoints, Gated):
            for _ in range(100):
                checkpoints.let.release()
        saver.close()


class Training:
    """State that changes in place, all of it to the number of the step."""

    def __init__(self) -> None:
        self.tensors = {
            "model": {"weight": torch.zeros(200, 300), "half": torch.zeros(7)[::2], "count": torch.tensor(0)}
        }
        self.state: dict[str, list[int]] = {"history": []}

    def at(self, step: int) -> Checkpoint:
        for tensor in self.tensors["model"].values():
            tensor.fill_(step)
        self.state["history"].append(step)
        return Checkpoint(step, self.tensors, self.state)


def assert_whole(root: Path, step: int, history: list[int] | None = None) -> None:
    found = Checkpoints(str(root)).read(step)
    for name, tensor in Training().tensors["model"].items():
        assert torch.equal(found.tensors["model"][name], torch.full_like(tensor, step))
    assert found.state["history"][-1] == step
    assert history is None or found.state["history"] == history


def test_what_is_handed_over_is_durable_after_wait(tmp_path: Path) -> None:
    training = Training()
    with saving(Checkpoints(str(tmp_path)), keep=2) as saver:
        saver.wait()
        for step in (1, 2, 3):
            saver.save(training.at(step))
            saver.wait()
            assert_whole(tmp_path, step, list(range(1, step + 1)))
        assert saver.written == 3
        assert saver.seconds_snapshot > 0
        assert saver.seconds_writing > 0
    assert Checkpoints(str(tmp_path)).steps() == [2, 3]


def test_save_waits_for_no_write_and_only_the_newest_waits(tmp_path: Path) -> None:
    checkpoints, training = Gated(tmp_path), Training()
    with saving(checkpoints) as saver:
        saver.save(training.at(1))
        checkpoints.begun.acquire()
        for step in (2, 3, 4):
            saver.save(training.at(step))
        training.at(5)
        assert saver.written == 0
        checkpoints.let.release()
        checkpoints.let.release()
        saver.wait()
        assert saver.written == 2
    assert Checkpoints(str(tmp_path)).steps() == [1, 4]
    assert_whole(tmp_path, 1, [1])
    assert_whole(tmp_path, 4, [1, 2, 3, 4])


def test_snapshots_are_never_torn(tmp_path: Path) -> None:
    """Training goes on at full speed while its snapshots are written, and their memory is used again."""
    training = Training()
    with saving(Checkpoints(str(tmp_path))) as saver:
        for step in range(1, 1_000):
            saver.save(training.at(step))
        saver.wait()
        written = saver.written
    steps = Checkpoints(str(tmp_path)).steps()
    assert steps[-1] == 999
    assert len(steps) == min(written, 100)
    for step in steps:
        assert_whole(tmp_path, step, list(range(1, step + 1)))


def test_memory_is_used_again_only_when_it_is_written(tmp_path: Path) -> None:
    checkpoints, training = Gated(tmp_path), Training()
    with saving(checkpoints) as saver:
        for step in range(1, 20, 2):
            saver.save(training.at(step))
            checkpoints.begun.acquire()
            saver.save(training.at(step + 1))
            checkpoints.let.release()
            checkpoints.begun.acquire()
            training.at(99)
            checkpoints.let.release()
            saver.wait()
    for step in range(1, 21):
        assert_whole(tmp_path, step)


class Noting(Checkpoints):
    """Notes where the tensors lie that it writes."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.places: list[list[int]] = []

    def write(self, checkpoint: Checkpoint) -> None:
        self.places.append([tensor.data_ptr() for tensor in checkpoint.tensors["model"].values()])
        super().write(checkpoint)


def test_the_memory_of_a_written_snapshot_serves_the_next(tmp_path: Path) -> None:
    checkpoints, training = Noting(tmp_path), Training()
    with saving(checkpoints) as saver:
        for step in range(3):
            saver.save(training.at(step))
            saver.wait()
    assert checkpoints.places[0] == checkpoints.places[1] == checkpoints.places[2]
    assert not set(checkpoints.places[0]) & {tensor.data_ptr() for tensor in training.tensors["model"].values()}


def test_tensors_may_come_and_go_and_change_their_shape(tmp_path: Path) -> None:
    shapes: list[dict[str, torch.Tensor]] = [
        {"a": torch.ones(3), "b": torch.ones(2)},
        {"a": torch.ones(4), "c": torch.ones(2, dtype=torch.float64)},
        {"a": torch.ones(2, 2), "c": torch.ones(2, dtype=torch.bfloat16)},
    ]
    with saving(Checkpoints(str(tmp_path))) as saver:
        for step, tensors in enumerate(shapes):
            saver.save(Checkpoint(step, {"model": tensors}, {}))
            saver.wait()
    for step, tensors in enumerate(shapes):
        found = Checkpoints(str(tmp_path)).read(step).tensors["model"]
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
        assert all(found[name].dtype == tensors[name].dtype for name in tensors)


def test_storage_that_cannot_be_used_when_training_begins_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        Saver(Checkpoints(str(tmp_path / "file")), keep=1)


def test_a_failed_write_is_told_and_the_next_is_tried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, training = tmp_path / "root", Training()
    with saving(Checkpoints(str(root))) as saver:
        saver.save(training.at(1))
        saver.wait()
        (root / "step-000000002").touch()
        saver.save(training.at(2))
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"step-000000002/.* cannot be written"):
                saver.wait()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "the checkpoint of step 2 was not written: " in caplog.text
        assert_whole(root, 1)
        saver.save(training.at(3))
        saver.wait()
        assert saver.written == 2
    assert_whole(root, 3, [1, 2, 3])


def test_a_state_that_is_no_json_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with saving(Checkpoints(str(tmp_path))) as saver:
        saver.save(Checkpoint(1, {}, {"odd": {1, 2}}))
        with pytest.raises(CheckpointError, match=r"step 1 was not written: TypeError.*set is not JSON"):
            saver.wait()
        assert caplog.records[0].exc_info
        saver.save(Checkpoint(2, {}, {}))
        saver.wait()
    assert Checkpoints(str(tmp_path)).steps() == [2]


class Stuck(Checkpoints):
    def __init__(self, root: Path, error: Exception) -> None:
        super().__init__(str(root))
        self.error = error

    def prune(self, keep: int) -> None:
        raise self.error


@pytest.mark.parametrize("error", [CheckpointError("no right"), ValueError("no right")], ids=["storage", "program"])
def test_old_ones_that_cannot_be_deleted_are_told(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with saving(Stuck(tmp_path, error), keep=1) as saver:
        for step in (1, 2):
            saver.save(Training().at(step))
            saver.wait()
    assert_whole(tmp_path, 2)
    assert len(caplog.records) == 2
    assert caplog.text.count("old checkpoints were not deleted") == 2
    assert "no right" in caplog.text


def test_close_writes_what_waits_and_ends_the_thread(tmp_path: Path) -> None:
    checkpoints, training = Gated(tmp_path), Training()
    before = threading.active_count()
    saver = Saver(checkpoints, keep=100)
    assert threading.active_count() == before + 1
    saver.save(training.at(1))
    checkpoints.begun.acquire()
    saver.save(training.at(2))
    checkpoints.let.release()
    checkpoints.let.release()
    saver.close()
    saver.close()
    assert threading.active_count() == before
    assert Checkpoints(str(tmp_path)).steps() == [1, 2]
    saver.wait()
    with pytest.raises(CheckpointError, match="after the last one"):
        saver.save(training.at(3))
