"""Checkpoints: safetensors and JSON in a folder named after its position. The manifest is written last.

`checkpoints/step-000000123/` holds `model.safetensors`, `optimizer.safetensors`, perhaps `best.safetensors`, and
`checkpoint.json` with the size and sha256 of each and everything that is no tensor.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tidegate.errors import CheckpointError

logger = logging.getLogger(__name__)
MANIFEST = "checkpoint.json"
FORMAT = 1
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. `state` is everything that is no tensor; `step` the number of steps done."""

    step: int
    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}"


def write(run: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; it is complete or not there at all."""
    folder = folder_of(run, checkpoint.step)
    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    files = {}
    for part, tensors in checkpoint.tensors.items():
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        _write_through(work / f"{part}.safetensors", data)
        files[part] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    document = {"format": FORMAT, "step": checkpoint.step, "files": files, "state": checkpoint.state}
    _write_through(work / MANIFEST, json.dumps(document).encode())
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)
    return folder


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint. Raises CheckpointError when it is incomplete or damaged."""
    try:
        document = json.loads((folder / MANIFEST).read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, not {FORMAT}")
        if folder.name != folder_of(folder, document["step"]).name:
            raise ValueError(f"it is of step {document['step']}")
        tensors = {
            part: load(_verified(folder / f"{part}.safetensors", entry)) for part, entry in document["files"].items()
        }
        return Checkpoint(int(document["step"]), tensors, document["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {folder} is damaged: {error}") from None


def _verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    data = path.read_bytes()
    if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path.name} is not what was written")
    return data


def latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning."""
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        if folder.suffix == ".partial":
            continue
        try:
            return read(folder)
        except CheckpointError as error:
            logger.warning("%s; going back to the one before", error)
    return None


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    folders = sorted(folder for folder in (run / "checkpoints").glob("step-*") if folder.suffix != ".partial")
    for folder in folders[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat named tensors: `<parameter number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """The inverse of `optimizer_tensors`; learning rates and the like come from the spec, not from the checkpoint."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
