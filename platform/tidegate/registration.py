"""From a model that is trained already to a version: it is tried, written as an artifact and registered.

A module is made anew from what is kept, and must then answer its example as the one that was given.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from tidegate import artifact, disk, registry, settings, trial
from tidegate.card import registered_card
from tidegate.errors import SpecError
from tidegate.models import huggingface
from tidegate.models.build import fill, given
from tidegate.models.code import Code, collect
from tidegate.models.custom import weights_of
from tidegate.models.module import convention, differ
from tidegate.registry import Version
from tidegate.signature import Signature, TensorSpec
from tidegate.spec.registered import Module
from tidegate.trial import EQUAL, attempt

WEIGHTS = ".safetensors"
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
TAKES = f"a torch.nn.Module, a {WEIGHTS} file, or a Hugging Face folder"
TEXT = "text"
"""What the input of a folder is called."""

Inputs = str | Sequence[str] | None


@dataclass(frozen=True)
class About:
    """What else is told of a model: rows it takes, what makes it, the names of its inputs."""

    example: object = None
    build: str | None = None
    args: Mapping[str, Any] | None = None
    inputs: Inputs = None


@dataclass(frozen=True)
class Written:
    """An artifact that lies in the draft's folder."""

    digest: str
    what: str
    signature: Signature
    lineage: dict[str, Any]


def register(
    what: nn.Module | str | Path, about: About, *, name: str, alias: str | None, reason: str, who: str
) -> Version:
    """Register a model as the next version of `name`, or return the version it has if it is registered already.

    `alias`, if any, is then moved to it by `who`. Raises SpecError for what cannot be registered.
    """
    registry.check_name(name)
    if alias is not None:
        registry.check_alias(alias)
    with disk.explained(), _draft(name) as draft:
        version = _keep(draft, name, _write(draft, name, what, about))
    if alias is None:
        return version
    return registry.set_alias(name, alias, version.number, who=who, why=reason)


@contextmanager
def _draft(name: str) -> Iterator[Path]:
    """A folder beside the versions', which does not stay."""
    folder = settings.home() / "artifacts" / name / f".draft-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(draft: Path, name: str, what: object, about: About) -> Written:
    if isinstance(what, nn.Module):
        return _write_module(draft, name, what, about)
    path = _path(what)
    return _write_folder(draft, name, path, about) if path.is_dir() else _write_file(draft, name, path, about)


def _path(what: object) -> Path:
    if not isinstance(what, str | Path):
        named = getattr(what, "__qualname__", None)
        remedy = f"pass the trained module that {named} makes" if named else ""
        raise SpecError(f"{named or repr(what)[:60]} is no module with weights", expected=TAKES, remedy=remedy)
    path = Path(what).expanduser()
    if not path.exists():
        raise SpecError(f"there is no {path}", expected=TAKES)
    if path.is_file() and path.suffix in PICKLES:
        convert = f"save_file(torch.load({path.name!r}, weights_only=True), {path.stem + WEIGHTS!r})"
        raise SpecError(
            f"{path} may hold a pickle, which can run any code when it is read",
            expected=TAKES,
            remedy=f"where you trust it, make one: safetensors.torch.{convert}",
        )
    if path.is_file() and path.suffix != WEIGHTS:
        raise SpecError(f"{path} is of no known kind", expected=TAKES)
    return path


def _write_module(draft: Path, name: str, module: nn.Module, about: About) -> Written:
    build = about.build or _import_path(type(module))
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        return _write_built(draft, name, build, weights_of(module, build), about, module)
    finally:
        for part, is_training in modes.items():
            part.training = is_training


def _write_file(draft: Path, name: str, path: Path, about: About) -> Written:
    if about.build is None:
        remedy = "name the class or function that makes it: build='package.module:name'"
        raise SpecError(f"{path} holds weights without a module", remedy=remedy)
    return _write_built(draft, name, about.build, _tensors(path, path.read_bytes()), about, None)


def _write_built(
    draft: Path, name: str, build: str, weights: Mapping[str, Tensor], about: About, module: nn.Module | None
) -> Written:
    """Write what `build` makes and the weights. Compared with `module`, if there is one."""
    options = _options(build, about.args or {})
    code = collect({"build": build})
    made = _filled(options, code, weights)
    if module is not None and (other := trial.precisions(module) - trial.precisions(made)):
        raise SpecError(
            f"the module computes in {other.pop()} and what {build} makes does not", remedy="register module.float()"
        )
    rows = trial.rows(made, about.example, about.inputs)
    options = options.model_copy(update={"call": convention(made, list(rows))})
    found = attempt(made, options.call, rows, code, build)
    if module is not None and differ(found.answers, attempt(module, options.call, rows, code, build).answers, EQUAL):
        raise SpecError(
            f"{build} made anew, with these weights, answers otherwise than the module that was given",
            remedy="pass the args that it was made with, and keep what it has learned in parameters and buffers",
        )
    signature = found.signature()
    digest = artifact.write_module(draft, name, options, signature, weights, code, *found.first())
    lineage = {"build": build, "args": options.args, "packages": _packages("torch", "numpy", "safetensors")}
    return Written(digest, f"A module made by `{build}`", signature, lineage)


def _import_path(kind: type) -> str:
    path = f"{kind.__module__}:{kind.__qualname__}"
    if not kind.__qualname__.isidentifier():
        raise SpecError(
            f"{path} is defined inside a function or a class, where nothing else can import it",
            remedy="put the class at the top level of a file",
        )
    return path


def _options(build: str, args: Mapping[str, Any]) -> Module:
    try:
        plain = json.loads(json.dumps(dict(args), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SpecError(f"args: {error}", expected="values that JSON has") from None
    try:
        return Module(type="module", build=build, args=plain)
    except ValueError:
        raise SpecError(f"build: {build!r}", expected="a class or function as package.module:name") from None


def _filled(options: Module, code: Code, weights: Mapping[str, Tensor]) -> nn.Module:
    made = given(options, code)
    try:
        fill(made, weights)
    except ValueError as error:
        raise SpecError(
            f"the weights do not fit the module that {options.build} makes ({error})",
            remedy="pass the args that it was made with, or as build a function that makes it",
        ) from None
    return made.eval()


def _write_folder(draft: Path, name: str, path: Path, about: About) -> Written:
    if any(told is not None for told in (about.example, about.build, about.args)):
        raise SpecError(f"{path} says itself what it is", expected="no example, build or args with a folder")
    column = about.inputs or TEXT
    if not isinstance(column, str):
        raise SpecError(f"inputs: {about.inputs!r}", expected="one name: the model of a folder takes one text a row")
    options, files = huggingface.read(path)
    data = files.pop(huggingface.WEIGHTS)
    encoder = huggingface.Encoder(options, files, _tensors(path / huggingface.WEIGHTS, data))
    _try_texts(encoder, path)
    signature = Signature((TensorSpec(column, "BYTES", (-1,)),), encoder.outputs())
    digest = artifact.write_folder(draft, name, options, signature, data, files)
    packages = _packages("torch", "transformers", "tokenizers", "safetensors")
    lineage = {"folder": path.resolve().name, "model": options.model_dump(), "packages": packages}
    return Written(digest, f"The Hugging Face folder `{path.resolve().name}`", signature, lineage)


def _try_texts(encoder: huggingface.Encoder, path: Path) -> None:
    """A text by itself, and beside one of the greatest length."""
    try:
        alone, among = encoder.answer(["a"]), encoder.answer(["a", encoder.longest()])
    except Exception as error:
        tokens, reason = encoder.options.max_length, f"{type(error).__name__}: {str(error)[:200]}"
        raise SpecError(
            f"{path} fails on a text of {tokens} tokens: {reason}",
            remedy="state what its model takes as model_max_length in tokenizer_config.json",
        ) from error
    if differ(alone, {key: array[:1] for key, array in among.items()}, EQUAL):
        raise SpecError(f"{path} answers a text by itself otherwise than beside a longer one")


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_tensors(data)
    except SafetensorError as error:
        raise SpecError(f"{path} cannot be read: {error}", expected=f"a whole {WEIGHTS} file") from None
    return tensors


def _packages(*names: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in names}


def _keep(draft: Path, name: str, written: Written) -> Version:
    """Describe the draft, move it to its place, named by its content, unless the same is there, and register it."""
    digest, lineage = written.digest, written.lineage
    about = draft / artifact.ABOUT
    about.mkdir()
    (about / "README.md").write_text(registered_card(name, digest, written.what, written.signature, lineage))
    (about / "lineage.json").write_text(json.dumps(lineage, indent=1))
    folder = draft.parent / f"registered-{digest[:16]}"
    if not artifact.is_whole(folder, digest):
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    return registry.register(name, path=folder, digest=digest, run_id="", metrics={}, lineage=lineage)
