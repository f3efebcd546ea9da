"""Raw outputs of a model on a whole split, the same bits whatever the number of workers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tidegate.data.plan import owned_shards
from tidegate.data.prepared import ROW, TARGET, Reader
from tidegate.transforms.base import Array

CHUNK_ROWS = 256
"""Rows in one pass. Fixed: another number could change the last bits."""


def tensors(arrays: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    """The inputs among prepared arrays, as tensors."""
    # Arrays that come from shared memory are read-only, which torch cannot express: hence the copy.
    return {
        name: torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
        for name, array in arrays.items()
        if name not in (ROW, TARGET)
    }


def outputs(
    model: nn.Module, reader: Reader, *, worker: int, workers: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Raw outputs `[rows, ...]` and targets `[rows]` of all rows of a split, on every worker, in the split's order."""
    total = int(reader.offsets[-1])
    chunks = -(-total // CHUNK_ROWS)
    mine = owned_shards(chunks, worker, workers)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        parts = [_chunk(model, reader, chunk, total, device) for chunk in mine]
    model.train(was_training)
    if workers == 1:
        gathered = [parts]
    else:
        gathered = [None] * workers  # type: ignore[list-item]
        dist.all_gather_object(gathered, parts)
    flat = [part for worker_parts in gathered for part in worker_parts]
    return torch.cat([part[0] for part in flat]), torch.cat([part[1] for part in flat])


def _chunk(model: nn.Module, reader: Reader, chunk: int, total: int, device: torch.device) -> tuple[Tensor, Tensor]:
    arrays = reader.read(np.arange(chunk * CHUNK_ROWS, min(total, (chunk + 1) * CHUNK_ROWS)))
    return model(tensors(arrays, device)).cpu(), torch.from_numpy(arrays[TARGET])
