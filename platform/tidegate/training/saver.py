"""Checkpoints written beside training: a snapshot is taken at once, a thread writes it."""

from __future__ import annotations

import copy
import logging
import threading
import time

import torch
from torch import Tensor

from tidegate.errors import CheckpointError
from tidegate.training.checkpoint import Checkpoint, Checkpoints

logger = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints it is handed in a thread, one at a time, and keeps the newest `keep` on storage.

    Storage that fails when training begins is an error: the constructor raises CheckpointError. Storage that fails
    later does not end a training run: the failed write is logged, the checkpoint before stands, and the next one is
    tried as usual. `wait` alone raises, because whoever waits is about to rely on the newest checkpoint.
    To be used by one thread.
    """

    def __init__(self, checkpoints: Checkpoints, keep: int) -> None:
        checkpoints.check()
        self._checkpoints, self._keep = checkpoints, keep
        self.written = 0
        """Checkpoints that are durable."""
        self.seconds_snapshot = 0.0
        """Time that training stood still in `save`."""
        self.seconds_writing = 0.0
        """Time that the thread was busy."""
        self._change = threading.Condition()
        self._queued: Checkpoint | None = None
        self._is_writing = self._is_closed = False
        self._failure: CheckpointError | None = None
        self._used: list[Checkpoint] = []
        """Snapshots that have been written; their memory serves the next ones."""
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint and have the copy written; one that still waits to be written is dropped for it.

        At most two copies are in memory: one being written, one waiting. Raises CheckpointError after `close`.
        """
        started = time.perf_counter()
        if self._is_closed:
            raise CheckpointError("a checkpoint was handed over after the last one")
        snapshot = _copy(checkpoint, self._spare())
        with self._change:
            self._queued = snapshot
            self._change.notify_all()
        self.seconds_snapshot += time.perf_counter() - started

    def wait(self) -> None:
        """Return when the checkpoint that was handed over last is durable. Raises CheckpointError when it is not.

        An earlier one that failed or was dropped is of no account then. Hand the checkpoint over again to try again.
        """
        with self._change:
            self._change.wait_for(lambda: self._queued is None and not self._is_writing)
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        """Write what has been handed over and end the thread. Raises nothing: call `wait` first to know."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        self._thread.join()

    def _spare(self) -> Checkpoint | None:
        """A snapshot whose memory may be overwritten: nobody writes it, and nobody will."""
        with self._change:
            if self._queued is not None:
                spare, self._queued = self._queued, None
                return spare
            return self._used.pop() if self._used else None

    def _run(self) -> None:
        while (snapshot := self._next()) is not None:
            started = time.perf_counter()
            failure = self._write(snapshot)
            if failure is None:
                self.written += 1
                self._prune()
            self.seconds_writing += time.perf_counter() - started
            with self._change:
                self._failure, self._is_writing = failure, False
                self._used.append(snapshot)
                self._change.notify_all()

    def _next(self) -> Checkpoint | None:
        """The snapshot to write; None when there will be none."""
        with self._change:
            self._change.wait_for(lambda: self._queued is not None or self._is_closed)
            snapshot, self._queued = self._queued, None
            self._is_writing = snapshot is not None
            return snapshot

    def _write(self, snapshot: Checkpoint) -> CheckpointError | None:
        try:
            self._checkpoints.write(snapshot)
        except CheckpointError as error:
            logger.warning("the checkpoint of step %d was not written: %s", snapshot.step, error)
            return error
        except Exception as error:
            # A fault of the program. If it ended the thread, `wait` would never return.
            logger.exception("the checkpoint of step %d was not written", snapshot.step)
            return CheckpointError(f"the checkpoint of step {snapshot.step} was not written: {error!r}")
        return None

    def _prune(self) -> None:
        try:
            self._checkpoints.prune(self._keep)
        except CheckpointError as error:
            logger.warning("old checkpoints were not deleted: %s", error)
        except Exception:
            logger.exception("old checkpoints were not deleted")


def _copy(checkpoint: Checkpoint, spare: Checkpoint | None) -> Checkpoint:
    """A copy in the CPU's memory, in that of `spare` where it fits: pages that are new cost more than the copying."""
    old = spare.tensors if spare is not None else {}
    tensors = {
        part: {name: _copy_tensor(tensor, old.get(part, {}).get(name)) for name, tensor in named.items()}
        for part, named in checkpoint.tensors.items()
    }
    return Checkpoint(checkpoint.step, tensors, copy.deepcopy(checkpoint.state))


def _copy_tensor(tensor: Tensor, spare: Tensor | None) -> Tensor:
    if spare is None or spare.shape != tensor.shape or spare.dtype != tensor.dtype:
        spare = torch.empty(tensor.shape, dtype=tensor.dtype)
    return spare.copy_(tensor.detach())
