"""A person's own code: source files that travel with a job, lie in the artifact, and are loaded from memory.

Modules are loaded under a package named after the hash of all sources, `tidegate_code_<hash>.my_models`. So two
versions of `my_models` live in one process side by side, `sys.modules` is never swapped under other threads, and what
looks a module up by its name (dataclasses, inspect, torch.compile) finds the right one. Loaded modules stay for the
life of the process.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tidegate.errors import SpecError

MAX_FILES, MAX_BYTES = 500, 5_000_000
PROVIDED = frozenset(sys.stdlib_module_names) | {"tidegate"}
"""Top-level names that are never a person's: wherever a model runs, these are there."""

_INSTALL = threading.Lock()
_IMPORTING = threading.local()


@dataclass(frozen=True)
class Code:
    """Source texts by path below the folder they are imported from, such as `my_package/nets.py`. May be pickled."""

    files: Mapping[str, str]

    @property
    def package(self) -> str:
        """The package that the modules are loaded under. Other sources have another."""
        content = json.dumps(dict(self.files), sort_keys=True).encode()
        return f"tidegate_code_{hashlib.sha256(content).hexdigest()[:16]}"

    def resolve(self, path: str, key: str) -> Any:
        """What `package.module:name` names: in these files, or in an installed package. Executes the module.

        Safe from several threads. Raises SpecError, which names `key`, when it does not import or has no such name.
        """
        name, _, attribute = path.partition(":")
        module = self._module(name, key)
        if not hasattr(module, attribute):
            close = difflib.get_close_matches(attribute, vars(module), n=1)
            raise SpecError(
                f"{key}: {name} has no {attribute!r}", remedy=f"did you mean {close[0]!r}?" if close else ""
            )
        return getattr(module, attribute)

    def _module(self, name: str, key: str) -> ModuleType:
        package = _install(self)
        is_own = name.partition(".")[0] in _top_names(self.files)
        before, _IMPORTING.name = getattr(_IMPORTING, "name", ""), name
        try:
            return importlib.import_module(f"{package}.{name}" if is_own else name)
        except (Exception, SystemExit) as error:
            raise SpecError(f"{key}: importing {name} failed: {self.describe(error)}") from error
        finally:
            _IMPORTING.name = before

    def describe(self, error: BaseException) -> str:
        """An error in one line: type, message, and the last line of this code that it passed."""
        package = self.package
        text, place = str(error), ""
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename.startswith(_folder(package)):
                place = f"{frame.f_code.co_filename}:{line}"
        if isinstance(error, SyntaxError) and error.filename:
            text, place = error.msg, f"{error.filename}:{error.lineno}"
        sentence = f"{type(error).__name__}: {' '.join(text.split())[:500]}" + (f" ({place})" if place else "")
        return sentence.replace(_folder(package), "").replace(f"{package}.", "")


def collect(paths: Mapping[str, str]) -> Code:
    """The sources that import paths need. `paths`: key of the spec -> `package.module:name`.

    For a top-level module its file, for a package all of its Python files, and the same for every module these import,
    unless it is installed (site-packages) or the standard library's. Looks where Python looks, and in the working
    directory. Each path is resolved from the collected sources, so a module that cannot do without its folder shows.

    Raises SpecError for what is not found, does not import, or is too large to keep.
    """
    if started := getattr(_IMPORTING, "name", ""):
        raise SpecError(
            f"importing {started} starts a run by itself",
            remedy="put the model into a file of its own, or what starts the run under `if __name__ == '__main__':`",
        )
    files: dict[str, str] = {}
    for key, path in paths.items():
        top = path.partition(":")[0].partition(".")[0]
        if top == "__main__":
            raise SpecError(
                f"{key}: {path} is in the script or notebook that runs, which nothing else can import",
                remedy="put it into a file, and name that",
            )
        if _locate(top) is None:
            places = ", ".join(dict.fromkeys(os.path.abspath(place) for place in _places() if not _is_installed(place)))
            raise SpecError(
                f"{key}: there is no module {top!r}",
                expected=f"a file {top}.py or a package {top} in one of {places}, or an installed package",
            )
        _add(files, top, key)
    code = Code(files)
    for key, path in paths.items():
        code.resolve(path, key)
    return code


def _add(files: dict[str, str], top: str, key: str) -> None:
    """Add the sources of a top-level name and of everything that they import."""
    waiting, seen = [top], set(PROVIDED)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for path, file in _own_files(name):
            files[path] = _text(file, key)
            waiting += sorted(_imported(files[path]))
            if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BYTES:
                raise SpecError(
                    f"{key}: the sources kept with a model are more than {MAX_FILES} files or {MAX_BYTES / 1e6:g} MB; "
                    f"the last ones are of {name}",
                    remedy="put the model into a smaller package, or install what it needs instead of importing it "
                    "from a folder",
                )


def _own_files(top: str) -> Iterator[tuple[str, Path]]:
    """The Python files of a top-level name and their paths below its import root. None of an installed package."""
    spec = _locate(top)
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        if spec.origin and spec.origin.endswith(".py") and not _is_installed(spec.origin):
            yield f"{top}.py", Path(spec.origin)
        return
    for place in spec.submodule_search_locations:
        for folder, inner, names in os.walk(place) if not _is_installed(place) else ():
            inner[:] = sorted(name for name in inner if name.isidentifier())
            for name in sorted(names):
                if name.endswith(".py") and name[:-3].isidentifier():
                    file = Path(folder, name)
                    yield f"{top}/{file.relative_to(place).as_posix()}", file


def _locate(top: str) -> ModuleSpec | None:
    importlib.invalidate_caches()
    try:
        # An editable installation brings a finder of its own.
        return PathFinder.find_spec(top, _places()) or importlib.util.find_spec(top)
    except ValueError:
        return None  # A module that was made, not found: it has no spec.


def _places() -> list[str]:
    """Where modules are looked for: as Python does, and a console script's working directory before installed ones."""
    return sorted([*sys.path, os.getcwd()], key=_is_installed)


def _is_installed(place: str) -> bool:
    path = Path(place)
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or path.is_relative_to(
        sysconfig.get_path("stdlib")
    )


def _text(file: Path, key: str) -> str:
    try:
        return importlib.util.decode_source(file.read_bytes())
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise SpecError(f"{key}: {file} cannot be read: {error}") from None


def _imported(source: str) -> set[str]:
    """Top-level names that a source imports at any depth."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()  # If this file is imported at all, importing it says so.
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _top_names(files: Mapping[str, str]) -> set[str]:
    return {path.partition("/")[0].removesuffix(".py") for path in files}


def _folder(package: str) -> str:
    """What stands for the folder in the file names of loaded modules."""
    return f"<{package}>/"


def _install(code: Code) -> str:
    """Make the code's package importable; its name."""
    package = code.package
    with _INSTALL:
        if not any(isinstance(finder, _Sources) and finder.package == package for finder in sys.meta_path):
            sys.meta_path.append(_Sources(package, code.files))
    return package


class _Sources(MetaPathFinder, ExecutionLoader):
    """Finds and loads the modules of one package from source texts."""

    def __init__(self, package: str, files: Mapping[str, str]) -> None:
        self.package, self.files, self.tops = package, dict(files), _top_names(files)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package or self._file(fullname) is None:
            return None
        spec = ModuleSpec(fullname, self, origin=self.get_filename(fullname), is_package=self.is_package(fullname))
        spec.has_location = True
        return spec

    def get_filename(self, fullname: str) -> str:
        return _folder(self.package) + (self._file(fullname) or "")

    def get_source(self, fullname: str) -> str:
        return self.files.get(self._file(fullname) or "", "")

    def is_package(self, fullname: str) -> bool:
        file = self._file(fullname)
        return file == "" or str(file).endswith("__init__.py")

    def get_code(self, fullname: str) -> CodeType:
        file = self.get_filename(fullname)
        tree = _Within(self.package, self.tops).visit(ast.parse(self.get_source(fullname), file))
        code: CodeType = compile(tree, file, "exec", dont_inherit=True)
        return code

    def _file(self, fullname: str) -> str | None:
        """The file of a module. Empty for a package without one, None when there is no such module."""
        path = fullname.removeprefix(self.package).removeprefix(".").replace(".", "/")
        for file in (f"{path}/__init__.py", f"{path}.py"):
            if file in self.files:
                return file
        is_folder = not path or any(file.startswith(f"{path}/") for file in self.files)
        return "" if is_folder else None


class _Within(ast.NodeTransformer):
    """Has absolute imports of a package's own top-level names go through the package, in functions too."""

    def __init__(self, package: str, tops: set[str]) -> None:
        self.package, self.tops = package, tops

    def visit_Import(self, node: ast.Import) -> list[ast.Import]:
        aliases = [inner for alias in node.names for inner in self._aliases(alias)]
        return [ast.copy_location(ast.Import([alias]), node) for alias in aliases]

    def _aliases(self, alias: ast.alias) -> list[ast.alias]:
        top = alias.name.partition(".")[0]
        if top not in self.tops:
            return [alias]
        # `import a.b` imports a.b and binds `a`.
        names = [alias.name] if alias.asname else [alias.name, top]
        return [
            ast.copy_location(ast.alias(f"{self.package}.{name}", alias.asname or top), alias)
            for name in dict.fromkeys(names)
        ]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if not node.level and str(node.module).partition(".")[0] in self.tops:
            node.module = f"{self.package}.{node.module}"
        return node
