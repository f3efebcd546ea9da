"""An artifact: the files of a model version, and all that is needed to answer with it.

    weights.safetensors   the module's tensors
    model.json            model type, transforms with their fitted state, target, signature, what decided the training
    code/                 the sources of a person's own model
    folder/               config and tokenizer of a registered Hugging Face folder
    example.safetensors   a row for a registered module, and what it answered
    artifact.json         sha256 of all these and the content digest; written last
    about/                the model card, lineage, report and pictures: they describe the version, and are no part of it

A version that was registered, not trained here, has neither transforms nor target nor spec.

The content digest covers weights, transforms, signature, sources, the folder's files and the normalised spec (not the
number of workers, names, paths or the example): two runs that made the same model have the same digest. It is checked
at every load. Nothing here is pickled. But loading a version with sources executes them: who registers an own model is
trusted like who writes the platform's code, and the digest holds the sources to what was registered.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tidegate.data.prepared import Prepared
from tidegate.errors import ArtifactError, SpecError
from tidegate.loaded import Folder, Given, Model, Trained
from tidegate.models.code import Code
from tidegate.signature import Signature
from tidegate.spec.model import Custom
from tidegate.spec.registered import HuggingFace, Module
from tidegate.spec.run import Spec
from tidegate.transforms.base import Array

FORMAT = 1
WEIGHTS, MODEL, MANIFEST, ABOUT = "weights.safetensors", "model.json", "artifact.json", "about"
EXAMPLE, INPUTS, OUTPUTS = "example.safetensors", "inputs.", "outputs."
CODE, FOLDER = "code/", "folder/"
_LISTED = rf"{CODE}(\w+/)*\w+\.py|{FOLDER}\w+\.json"


@dataclass(frozen=True)
class Contents:
    """The verified files of a version."""

    document: dict[str, Any]
    files: dict[str, bytes]
    digest: str

    def below(self, folder: str) -> dict[str, bytes]:
        """The files of a folder, by their paths in it."""
        return {name.removeprefix(folder): data for name, data in self.files.items() if name.startswith(folder)}


def write(folder: Path, spec: Spec, prepared: Prepared, weights: Mapping[str, Tensor], code: Code | None = None) -> str:
    """Write an artifact into `folder` (made if missing); the content digest.

    `weights` is the module's `state_dict`, buffers included. `code` belongs to a person's own model.
    """
    if isinstance(spec.model, Custom) and code is None:
        raise ValueError("a custom model is kept with its code")
    document = {
        "name": spec.name,
        "task": spec.task,
        "model": _options(spec),
        "columns": prepared.manifest["columns"],
        "target": prepared.manifest["target"],
        "signature": _signature(prepared).to_json(),
        "spec": normalised(spec),
    }
    return _write(folder, document, {WEIGHTS: _tensor_bytes(weights)} | _sources(code))


def write_module(
    folder: Path,
    name: str,
    options: Module,
    signature: Signature,
    weights: Mapping[str, Tensor],
    code: Code,
    example: Mapping[str, Array],
    answers: Mapping[str, Array],
) -> str:
    """Write the artifact of a module that was not trained here; the content digest.

    `example` is a row for each input, `answers` what the module says to it.
    """
    kept = {f"{INPUTS}{key}": array for key, array in example.items()}
    kept |= {f"{OUTPUTS}{key}": array for key, array in answers.items()}
    files = {
        WEIGHTS: _tensor_bytes(weights),
        EXAMPLE: _tensor_bytes({key: torch.from_numpy(array) for key, array in kept.items()}),
    }
    return _write(folder, _registered(name, options, signature), files | _sources(code))


def write_folder(
    folder: Path, name: str, options: HuggingFace, signature: Signature, weights: bytes, files: Mapping[str, bytes]
) -> str:
    """Write the artifact of a Hugging Face folder, its files as they are; the content digest."""
    kept = {f"{FOLDER}{path}": data for path, data in files.items()}
    return _write(folder, _registered(name, options, signature), {WEIGHTS: weights} | kept)


def load(folder: Path, digest: str | None = None, device: str = "cpu") -> Model:
    """Load a model version and verify its content. Sources of a person's own model are executed, once verified.

    It computes on `device`, as torch names it.

    Raises ArtifactError when files are missing or damaged, when the content is not what `digest` says, or when an own
    model does not build here.
    """
    try:
        return _model(_read(folder, digest), device)
    except SpecError as error:
        raise ArtifactError(
            f"the model version in {folder} cannot be used: {error}", remedy="install the packages it was made with"
        ) from None
    except _DAMAGES as error:
        raise ArtifactError(
            f"the model version in {folder} cannot be used: {error}",
            remedy="restore its files, or train or register it again",
        ) from None


def is_whole(folder: Path, digest: str) -> bool:
    """Whether all files of a version are there, with the content that `digest` says. Executes nothing."""
    try:
        return _read(folder, digest).digest == digest
    except _DAMAGES:
        return False


_DAMAGES = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def _read(folder: Path, digest: str | None) -> Contents:
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']}, not {FORMAT}")
    sums = manifest["sha256"]
    files = {name: _verified(folder, name, sums[name]) for name in {WEIGHTS, MODEL, *sums}}
    document = json.loads(files[MODEL])
    found = _digest(document, sums)
    if found != manifest["digest"] or (digest is not None and found != digest):
        raise ValueError(f"its digest is {found[:12]}, not {(digest or manifest['digest'])[:12]}")
    return Contents(document, files, found)


def _model(contents: Contents, device: str) -> Model:
    document, digest, weights = contents.document, contents.digest, load_tensors(contents.files[WEIGHTS])
    kind = document["model"]["type"]
    if kind == "huggingface":
        return Folder(document, weights, contents.below(FOLDER), digest, device)
    code = Code({path: data.decode() for path, data in contents.below(CODE).items()})
    if kind == "module":
        kept = {key: tensor.numpy() for key, tensor in load_tensors(contents.files[EXAMPLE]).items()}
        inputs, outputs = (
            {key.removeprefix(side): array for key, array in kept.items() if key.startswith(side)}
            for side in (INPUTS, OUTPUTS)
        )
        return Given(document, weights, code, (inputs, outputs), digest, device)
    return Trained(document, weights, code, digest, device)


def normalised(spec: Spec) -> dict[str, Any]:
    """What decides the model besides the data: no names, paths, workers, priority, or when checkpoints are written."""
    train = spec.train.model_dump(exclude={"workers", "priority"})
    train |= {"threads": spec.train.workers.cpu, "checkpoint": {"best": spec.train.checkpoint.best}}
    data = spec.data.model_dump(include={"inputs", "target", "split", "invalid_rows"})
    return {"seed": spec.seed, "data": data, "model": _options(spec), "train": train}


def _options(spec: Spec) -> dict[str, Any]:
    """The model's options; of embeddings it began with, which are in its weights by now, only how they were called."""
    options = spec.model.model_dump()
    if options.get("embeddings"):
        options["embeddings"]["path"] = Path(options["embeddings"]["path"]).name
    return options


def _registered(name: str, options: Module | HuggingFace, signature: Signature) -> dict[str, Any]:
    own = {"name": name, "task": None, "model": options.model_dump(), "signature": signature.to_json()}
    return own | {"columns": {}, "target": None, "spec": None}


def _sources(code: Code | None) -> dict[str, bytes]:
    return {f"{CODE}{path}": text.encode() for path, text in code.files.items()} if code else {}


def _write(folder: Path, document: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    # In the document's own order: a module takes its inputs in that of the columns.
    files = {**files, MODEL: json.dumps(document, indent=1).encode()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    digest = _digest(document, sums)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "digest": digest, "sha256": sums}, indent=1))
    return digest


def _tensor_bytes(weights: Mapping[str, Tensor]) -> bytes:
    # safetensors refuses tensors that share memory, as tied weights do: each is written by itself.
    data: bytes = save_tensors({name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()})
    return data


def _signature(prepared: Prepared) -> Signature:
    inputs = tuple(column.tensor for column in prepared.columns.transforms.values())
    return Signature(inputs, prepared.target.tensors())


def _digest(document: Mapping[str, Any], sums: Mapping[str, str]) -> str:
    content = {key: document[key] for key in ("task", "model", "columns", "target", "signature", "spec")}
    sources = {name: sums[name] for name in sums if name.startswith((CODE, FOLDER))}
    parts = [content, sums[WEIGHTS], *([sources] if sources else [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _verified(folder: Path, name: str, expected: str) -> bytes:
    if name not in (WEIGHTS, MODEL, EXAMPLE) and not re.fullmatch(_LISTED, name):
        raise ValueError(f"{MANIFEST} names {name!r}, which is no file of a model version")
    data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{name} is not what was written")
    return data
