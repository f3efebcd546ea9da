"""An artifact: the files of a model version, and all that is needed to answer with it.

    weights.safetensors   the module's tensors
    model.json            model type, transforms with their fitted state, target, signature, what decided the training
    code/                 the sources of a person's own model
    artifact.json         sha256 of all these and the content digest; written last
    about/                the model card, lineage, report and pictures: they describe the version, and are no part of it

The content digest covers weights, transforms, signature, sources and the normalised spec (not the number of workers,
names or paths): two runs that made the same model have the same digest. It is checked at every load. Nothing here is
pickled. But loading a version with sources executes them: who registers an own model is trusted like who writes the
platform's code, and the digest holds the sources to what was registered.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tidegate.data.prepared import Prepared
from tidegate.errors import ArtifactError, SpecError
from tidegate.models.build import build, misfit
from tidegate.models.code import Code
from tidegate.signature import Signature
from tidegate.spec.model import Custom
from tidegate.spec.model import Model as ModelSpec
from tidegate.spec.run import Spec
from tidegate.transforms.base import Array
from tidegate.transforms.columns import Columns
from tidegate.transforms.target import TargetTransform

FORMAT = 1
WEIGHTS, MODEL, MANIFEST, ABOUT = "weights.safetensors", "model.json", "artifact.json", "about"
CODE = "code/"


class Model:
    """A loaded model version. `predict` may be called from several threads."""

    def __init__(
        self, document: Mapping[str, Any], weights: Mapping[str, Tensor], code: Code, digest: str, device: str = "cpu"
    ) -> None:
        self.name, self.digest = str(document["name"]), digest
        self.signature = Signature.from_json(document["signature"])
        self.columns = Columns(document["columns"])
        self.target = TargetTransform(document["target"]["column"], document["target"]["state"])
        options: Any = TypeAdapter(ModelSpec).validate_python(document["model"])
        features = [column.feature for column in self.columns.transforms.values()]
        self.module = build(options, features, self.target.num_outputs, seed=0, code=code)
        if reason := misfit(self.module, weights):
            raise ValueError(f"its weights do not fit the module that its spec makes ({reason})")
        self.module.load_state_dict(dict(weights))
        self.module.eval().to(device)
        self._device = device

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answers by output name, `[rows, ...]`, for columns as the signature names them.

        Raises RequestError for values the model cannot take.
        """
        arrays = self.columns.apply(inputs)
        with torch.inference_mode():
            outputs = self.module({name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()})
        raw = outputs.float().cpu().numpy()
        return self.target.answers(raw if self.target.is_category else raw.reshape(-1))

    def example(self, rows: int = 1) -> dict[str, Array]:
        """Inputs that the model can take, for a warm-up."""
        return self.columns.example(rows)


def write(folder: Path, spec: Spec, prepared: Prepared, weights: Mapping[str, Tensor], code: Code | None = None) -> str:
    """Write an artifact into `folder` (made if missing); the content digest.

    `weights` is the module's `state_dict`, buffers included. `code` belongs to a person's own model.
    """
    if isinstance(spec.model, Custom) and code is None:
        raise ValueError("a custom model is kept with its code")
    document = {
        "name": spec.name,
        "task": spec.task,
        "model": spec.model.model_dump(),
        "columns": prepared.manifest["columns"],
        "target": prepared.manifest["target"],
        "signature": _signature(prepared).to_json(),
        "spec": normalised(spec),
    }
    files = {WEIGHTS: _tensor_bytes(weights), MODEL: json.dumps(document, sort_keys=True, indent=1).encode()}
    files |= {f"{CODE}{path}": text.encode() for path, text in code.files.items()} if code else {}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    digest = _digest(document, sums)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "digest": digest, "sha256": sums}, indent=1))
    return digest


def load(folder: Path, digest: str | None = None, device: str = "cpu") -> Model:
    """Load a model version and verify its content. Sources of a person's own model are executed, once verified.

    It computes on `device`, as torch names it.

    Raises ArtifactError when files are missing or damaged, when the content is not what `digest` says, or when an own
    model does not build here.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, not {FORMAT}")
        sums = manifest["sha256"]
        files = {name: _verified(folder, name, sums[name]) for name in {WEIGHTS, MODEL, *sums}}
        document = json.loads(files[MODEL])
        found = _digest(document, sums)
        if found != manifest["digest"] or (digest is not None and found != digest):
            raise ValueError(f"its digest is {found[:12]}, not {(digest or manifest['digest'])[:12]}")
        code = Code({name.removeprefix(CODE): files[name].decode() for name in files if name.startswith(CODE)})
        return Model(document, load_tensors(files[WEIGHTS]), code, found, device)
    except SpecError as error:
        raise ArtifactError(
            f"the model version in {folder} cannot be used: {error}", remedy="install the packages it was trained with"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(
            f"the model version in {folder} cannot be used: {error}", remedy="restore its files, or train it again"
        ) from None


def normalised(spec: Spec) -> dict[str, Any]:
    """What decides the model besides the data: no names, paths, workers, priority, or when checkpoints are written."""
    train = spec.train.model_dump(exclude={"workers", "priority"})
    train |= {"threads": spec.train.workers.cpu, "checkpoint": {"best": spec.train.checkpoint.best}}
    data = spec.data.model_dump(include={"inputs", "target", "split", "invalid_rows"})
    return {"seed": spec.seed, "data": data, "model": spec.model.model_dump(), "train": train}


def _tensor_bytes(weights: Mapping[str, Tensor]) -> bytes:
    # safetensors refuses tensors that share memory, as tied weights do: each is written by itself.
    data: bytes = save_tensors({name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()})
    return data


def _signature(prepared: Prepared) -> Signature:
    inputs = tuple(column.tensor for column in prepared.columns.transforms.values())
    return Signature(inputs, prepared.target.tensors())


def _digest(document: Mapping[str, Any], sums: Mapping[str, str]) -> str:
    content = {key: document[key] for key in ("task", "model", "columns", "target", "signature", "spec")}
    sources = {name: sums[name] for name in sums if name.startswith(CODE)}
    parts = [content, sums[WEIGHTS], *([sources] if sources else [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _verified(folder: Path, name: str, expected: str) -> bytes:
    if name not in (WEIGHTS, MODEL) and not re.fullmatch(rf"{CODE}(\w+/)*\w+\.py", name):
        raise ValueError(f"{MANIFEST} names {name!r}, which is no file of a model version")
    data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{name} is not what was written")
    return data
