"""Checkpoints of a run: safetensors and JSON in a folder named after the position. The manifest is written last.

    <root>/step-000000123/
        model-00000-5f0c9a1e.safetensors       tensors: a part, a number within the part, a token of this writing
        optimizer-00000-5f0c9a1e.safetensors
        checkpoint.json                         the manifest

The manifest is an index: for each part a list of tensor files (`file`, `bytes`, `sha256`), of which there is one today,
so that a sharded model may have one a rank; then `state`, all that is no tensor; and a sha256 of itself.

A folder without a manifest is an unfinished write: nobody reads it. Object stores cannot rename, so nothing is written
elsewhere first; a step that is written again gets files of other names, and is whole all the time: its manifest is
replaced at once. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tidegate.errors import CheckpointError
from tidegate.training.storage import Chunk, Storage

logger = logging.getLogger(__name__)
MANIFEST = "checkpoint.json"
FORMAT = 2
Tensors = Mapping[str, Tensor]
Environment = Mapping[str, str | int]

ENVIRONMENT = {
    "threads": "number of compute threads",
    "cpu": "CPU capability",
    "torch": "torch version",
    "device": "device",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. `state` is everything that is no tensor, as JSON has it; `step` the steps done.

    `state["identity"]` says which spec and data it belongs to, `state["environment"]` is `environment()`'s answer.
    """

    step: int
    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]


class _Damaged(CheckpointError):
    """A checkpoint that is not what was written. Storage that cannot be read is no damage: that stops a run."""


class Checkpoints:
    """The checkpoints of one run, written by one process. `root` is a local path or a URI that pyarrow opens.

    Every method raises CheckpointError when the storage cannot be used.
    """

    def __init__(self, root: str) -> None:
        self._storage = Storage(root)
        self._written: int | None = None

    def check(self) -> None:
        """Raises CheckpointError unless files can be written and deleted here."""
        self._storage.write("writable", [])
        self._storage.delete("writable")

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; it is durable when this returns, and whole or not there at all when it is cut short."""
        folder, token = _name(checkpoint.step), secrets.token_hex(4)
        try:
            parts = {
                part: [self._write_tensors(folder, f"{part}-00000-{token}.safetensors", tensors)]
                for part, tensors in checkpoint.tensors.items()
            }
            document = {"format": FORMAT, "step": checkpoint.step, "parts": parts, "state": checkpoint.state}
            self._storage.write(f"{folder}/{MANIFEST}", [_sealed(document)])
        except CheckpointError:
            # The first error is the one to tell; what stays is deleted by a later prune.
            with suppress(CheckpointError):
                self._sweep(folder)
            raise
        self._written = checkpoint.step

    def _write_tensors(self, folder: str, file: str, tensors: Tensors) -> dict[str, Any]:
        """Write a tensor file; its entry in the manifest."""
        chunks = _safetensors(tensors)
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        self._storage.write(f"{folder}/{file}", chunks)
        return {"file": file, "bytes": sum(map(len, chunks)), "sha256": digest.hexdigest()}

    def latest(self, identity: str | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are passed over with a warning, unfinished ones silently.

        Raises CheckpointError when it is not of this identity: of another spec, or other data.
        """
        for step in reversed(self.steps()):
            try:
                found = self.read(step)
            except _Damaged as error:
                logger.warning("%s; going back to the one before", error.happened)
                continue
            if identity is not None and found.state.get("identity") != identity:
                raise CheckpointError(
                    f"the checkpoints in {self._storage.place()} belong to another spec or to other data",
                    remedy="give this run another name, or go back to the spec and data that it began with",
                )
            return found
        return None

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of a step, verified. Raises CheckpointError when it is not there or damaged."""
        folder = _name(step)
        with self._intact(folder):
            document = self._document(folder)
            if document["step"] != step:
                raise ValueError(f"it is of step {document['step']}")
            tensors = {part: self._tensors(folder, files) for part, files in document["parts"].items()}
            return Checkpoint(step, tensors, document["state"])

    @contextmanager
    def _intact(self, folder: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            happened = f"the checkpoint {self._storage.place(folder)} is damaged: {error}"
            raise _Damaged(happened, remedy="use another checkpoint of the run") from None

    def _document(self, folder: str) -> dict[str, Any]:
        data = self._storage.read(f"{folder}/{MANIFEST}")
        if data is None:
            raise ValueError(f"it has no {MANIFEST}")
        document: dict[str, Any] = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, not {FORMAT}")
        if document.pop("sha256") != _digest(document):
            raise ValueError(f"{MANIFEST} is not what was written")
        return document

    def _tensors(self, folder: str, files: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for entry in files:
            data = self._storage.read(f"{folder}/{entry['file']}")
            if data is None:
                raise ValueError(f"{entry['file']} is missing")
            if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise ValueError(f"{entry['file']} is not what was written")
            tensors |= load(data)
        return tensors

    def steps(self) -> list[int]:
        """The steps of all finished checkpoints, ascending; a damaged one is among them until it is read."""
        return [step for step in self._folders() if self._is_finished(step)]

    def _folders(self) -> list[int]:
        matches = (re.fullmatch(r"step-(\d{9,})", name) for name in self._storage.names())
        return sorted(int(match[1]) for match in matches if match)

    def _is_finished(self, step: int) -> bool:
        return MANIFEST in self._storage.names(_name(step))

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` (at least 1) finished checkpoints, and what interrupted writes left.

        Counted from the one that was written last: a run goes on from its newest whole checkpoint, so a finished one
        beyond is damaged, or of steps that are being done again. Without any whole one nothing is deleted.
        """
        newest = self._written
        if newest is None:
            found = self.latest()
            if found is None:
                return
            newest = found.step
        finished = self.steps()
        kept = [step for step in finished if step <= newest][-keep:]
        for step in self._folders():
            # An unfinished one beyond may be in the making.
            if step not in kept and (step < newest or step in finished):
                self._storage.delete(f"{_name(step)}/{MANIFEST}")
                self._storage.delete(_name(step))
        self._sweep(_name(newest))

    def _sweep(self, folder: str) -> None:
        """Delete the files of a folder that its manifest does not name; all of it when there is none."""
        names = self._storage.names(folder)
        if MANIFEST not in names:
            self._storage.delete(folder)
            return
        with self._intact(folder):
            parts = self._document(folder)["parts"].values()
            named = {MANIFEST, *(entry["file"] for files in parts for entry in files)}
        for name in names:
            if name not in named:
                self._storage.delete(f"{folder}/{name}")


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _sealed(document: Mapping[str, Any]) -> bytes:
    return json.dumps({**document, "sha256": _digest(document)}).encode()


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _safetensors(tensors: Tensors) -> list[Chunk]:
    """The content of a safetensors file in pieces. The library's own `save` copies it all, twice, under Python's lock.

    Tensors that share memory are written one by one.
    """
    # Wide types first: each tensor then begins at a multiple of its width, for readers that map the file.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, contents, end = {}, [], 0
    for name, tensor in ordered:
        content = _content(tensor)
        start, end = end, end + len(content)
        header[name] = {"dtype": _dtype_code(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [start, end]}
        contents.append(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *contents]


def _content(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


@lru_cache
def _dtype_code(dtype: torch.dtype) -> str:
    """The format's name of a type, taken from the library that will read it."""
    try:
        data = save({"tensor": torch.empty(0, dtype=dtype)})
    except KeyError:
        raise CheckpointError(f"a tensor is of type {dtype}", expected="a type that safetensors can hold") from None
    return str(json.loads(data[8:])["tensor"]["dtype"])


def environment(device: torch.device) -> dict[str, str | int]:
    """What decides the bits of a result besides spec and data. Call it when the number of threads has been set."""
    return {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def differences(old: Environment, new: Environment) -> list[str]:
    """Sentences on what differs between two environments; none when bits will be the same."""
    return [
        f"the {name} was {old.get(key, 'not noted')} and is {new.get(key, 'not noted')}"
        for key, name in ENVIRONMENT.items()
        if old.get(key) != new.get(key)
    ]


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
