"""An artifact: the files of a model version, and all that is needed to answer with it.

    weights.safetensors   the module's tensors
    model.json            model type, transforms with their fitted state, target, signature, what decided the training
    artifact.json         sha256 of both and the content digest; written last
    about/                the model card, lineage, report and pictures: they describe the version, and are no part of it

The content digest covers weights, transforms, signature and the normalised spec (not the number of workers, names or
paths): two runs that made the same model have the same digest. It is checked at every load. Nothing here is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tidegate.data.prepared import Prepared
from tidegate.errors import ArtifactError
from tidegate.models.build import build
from tidegate.signature import Signature
from tidegate.spec.model import Model as ModelSpec
from tidegate.spec.run import Spec
from tidegate.transforms.base import Array
from tidegate.transforms.columns import Columns
from tidegate.transforms.target import TargetTransform

FORMAT = 1
WEIGHTS, MODEL, MANIFEST, ABOUT = "weights.safetensors", "model.json", "artifact.json", "about"


class Model:
    """A loaded model version. `predict` may be called from several threads."""

    def __init__(self, document: Mapping[str, Any], weights: Mapping[str, Tensor], digest: str) -> None:
        self.name, self.digest = str(document["name"]), digest
        self.signature = Signature.from_json(document["signature"])
        self.columns = Columns(document["columns"])
        self.target = TargetTransform(document["target"]["column"], document["target"]["state"])
        options: Any = TypeAdapter(ModelSpec).validate_python(document["model"])
        features = [column.feature for column in self.columns.transforms.values()]
        self.module = build(options, features, self.target.num_outputs, seed=0)
        self.module.load_state_dict(dict(weights))
        self.module.eval()

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answers by output name, `[rows, ...]`, for columns as the signature names them.

        Raises RequestError for values the model cannot take.
        """
        arrays = self.columns.apply(inputs)
        with torch.inference_mode():
            outputs = self.module({name: torch.from_numpy(array) for name, array in arrays.items()})
        raw = outputs.numpy()
        return self.target.answers(raw if self.target.is_category else raw.reshape(-1))

    def example(self, rows: int = 1) -> dict[str, Array]:
        """Inputs that the model can take, for a warm-up."""
        return self.columns.example(rows)


def write(folder: Path, spec: Spec, prepared: Prepared, weights: Mapping[str, Tensor]) -> str:
    """Write an artifact into `folder` (made if missing); the content digest."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "name": spec.name,
        "task": spec.task,
        "model": spec.model.model_dump(),
        "columns": prepared.manifest["columns"],
        "target": prepared.manifest["target"],
        "signature": _signature(prepared).to_json(),
        "spec": normalised(spec),
    }
    files = {
        WEIGHTS: save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}),
        MODEL: json.dumps(document, sort_keys=True, indent=1).encode(),
    }
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    digest = _digest(document, sums[WEIGHTS])
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "digest": digest, "sha256": sums}, indent=1))
    return digest


def load(folder: Path, digest: str | None = None) -> Model:
    """Load a model version and verify its content.

    Raises ArtifactError when files are missing or damaged, or when the content is not what `digest` says.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, not {FORMAT}")
        files = {name: _verified(folder / name, manifest["sha256"][name]) for name in (WEIGHTS, MODEL)}
        document = json.loads(files[MODEL])
        found = _digest(document, manifest["sha256"][WEIGHTS])
        if found != manifest["digest"] or (digest is not None and found != digest):
            raise ValueError(f"its digest is {found[:12]}, not {(digest or manifest['digest'])[:12]}")
        return Model(document, load_tensors(files[WEIGHTS]), found)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ValidationError) as error:
        raise ArtifactError(
            f"the model version in {folder} cannot be used: {error}", remedy="restore its files, or train it again"
        ) from None


def normalised(spec: Spec) -> dict[str, Any]:
    """What decides the model besides the data: no names, paths, or numbers of workers."""
    train = spec.train.model_dump(exclude={"workers"}) | {"threads": spec.train.workers.cpu}
    data = spec.data.model_dump(include={"inputs", "target", "split", "invalid_rows"})
    return {"seed": spec.seed, "data": data, "model": spec.model.model_dump(), "train": train}


def _signature(prepared: Prepared) -> Signature:
    inputs = tuple(column.tensor for column in prepared.columns.transforms.values())
    return Signature(inputs, prepared.target.tensors())


def _digest(document: Mapping[str, Any], weights: str) -> str:
    content = {key: document[key] for key in ("task", "model", "columns", "target", "signature", "spec")}
    return hashlib.sha256(json.dumps([content, weights], sort_keys=True).encode()).hexdigest()


def _verified(path: Path, expected: str) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{path.name} is not what was written")
    return data
