"""Raw outputs of a model on a whole split, the same bits whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tidegate.data.plan import owned_shards
from tidegate.data.prepared import ROW, TARGET, Reader
from tidegate.training.peers import exchange
from tidegate.transforms.base import Array
from tidegate.transforms.target import TargetTransform

CHUNK_ROWS = 256
"""Rows in one pass. Fixed: another number could change the last bits."""


def tensors(arrays: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    """The inputs among prepared arrays, as tensors."""
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items() if name not in (ROW, TARGET)}


def outputs(
    model: nn.Module, reader: Reader, target: TargetTransform, *, worker: int, workers: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Raw outputs `[rows, ...]` and targets `[rows, ...]` of all rows of a split, on every worker, in its order.

    Both are on the CPU. Of a sequence task the outputs are float64 `[rows, 2 + length]`: minus the log likelihood of
    the target and of how many tokens it is, and the codes that were answered.
    """
    total = int(reader.offsets[-1])
    chunks = -(-total // CHUNK_ROWS)
    # A worker without a chunk computes the first, to know the shape of what the others send.
    mine = list(owned_shards(chunks, worker, workers)) or [0]
    with evaluating(model):
        parts = [_chunk(model, reader, target, chunk, total, device) for chunk in mine]
    found, targets = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    if workers > 1:
        rows = [_rows(owned_shards(chunks, other, workers), total) for other in range(workers)]
        found, targets = _gathered(found, rows), _gathered(targets.to(device), rows)
    return found.cpu(), targets.cpu()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; afterwards each of its modules in the mode it was in.

    Not torch.inference_mode: what a module keeps for later calls must serve in training too.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _rows(chunks: range, total: int) -> int:
    return min(total, chunks.stop * CHUNK_ROWS) - min(total, chunks.start * CHUNK_ROWS)


def _gathered(mine: Tensor, rows: list[int]) -> Tensor:
    """Every worker's rows, one worker after the other. All send as many as the longest part has."""
    padded = mine.new_zeros(max(rows), *mine.shape[1:])
    padded[: len(mine)] = mine
    received = [torch.empty_like(padded) for _ in rows]
    with exchange():
        dist.all_gather(received, padded)
    return torch.cat([part[:count] for part, count in zip(received, rows, strict=True)])


def _chunk(
    model: nn.Module, reader: Reader, target: TargetTransform, chunk: int, total: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    arrays = reader.read(np.arange(chunk * CHUNK_ROWS, min(total, (chunk + 1) * CHUNK_ROWS)))
    inputs, targets = tensors(arrays, device), torch.from_numpy(arrays[TARGET])
    found = model(inputs)
    if target.task == "sequence":
        surprise = model({**inputs, target.column: targets.to(device)})
        found = torch.cat([surprise.double(), found.double()], dim=1)
    return found, targets
