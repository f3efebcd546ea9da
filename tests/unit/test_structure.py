"""The rules that keep the tree simple: what may import what, read from the source, in-function imports included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "platform"
PACKAGE = SOURCE / "tidegate"

LIGHT = (
    "errors",
    "settings",
    "spec",
    "protocol",
    "signature",
    "tensors",
    "metrics",
    *("keys", "haproxy"),
    *("client", "async_client", "client_answers", "client_calls", "client_retries", "client_server"),
)
NO_RAY = (
    *LIGHT,
    *("data.plan", "data.random", "data.splits", "data.prepared", "data.local_feed"),
    *("data.formats", "data.folders", "data.meaning", "data.sample", "draft"),
    *("models", "transforms", "artifact", "evaluation", "loaded", "example", "trial", "registration"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(node: ast.AST, is_typing: bool = False) -> Iterator[str]:
    """Names imported at any depth, except under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield str(child.module)
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from imported(child)


IMPORTS = {name: set(imported(ast.parse(path.read_text()))) for name, path in MODULES.items()}
OWN = {name: {other for other in found if other in MODULES and other != name} for name, found in IMPORTS.items()}


def under(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == f"tidegate.{package}" or name.startswith(f"tidegate.{package}.") for package in packages)


def tops(name: str) -> set[str]:
    return {found.split(".")[0] for found in IMPORTS[name]}


def test_platform_is_no_package() -> None:
    assert not (SOURCE / "__init__.py").exists(), "platform/__init__.py would shadow the standard library and break Ray"


@pytest.mark.parametrize("name", [name for name in MODULES if under(name, LIGHT)])
def test_light_modules_import_neither_torch_nor_ray(name: str) -> None:
    assert not tops(name) & {"torch", "ray"}


@pytest.mark.parametrize("name", [name for name in MODULES if under(name, NO_RAY)])
def test_modules_that_never_import_ray(name: str) -> None:
    assert "ray" not in tops(name)


def test_training_and_serving_never_import_each_other() -> None:
    for name, found in OWN.items():
        assert not (under(name, ("training",)) and any(under(other, ("serving",)) for other in found)), name
        assert not (under(name, ("serving",)) and any(under(other, ("training",)) for other in found)), name


def test_private_names_of_ray_are_taken_in_one_place() -> None:
    for name, found in IMPORTS.items():
        if name != "tidegate.ray_internals":
            private = {other for other in found if other.startswith("ray.") and ("._" in other or ".v2" in other)}
            assert not private, name


def test_no_cycles() -> None:
    order: list[str] = []
    open_modules: list[str] = []

    def visit(name: str) -> None:
        assert name not in open_modules, f"cycle: {' -> '.join([*open_modules, name])}"
        if name in order:
            return
        open_modules.append(name)
        for other in sorted(OWN[name]):
            visit(other)
        open_modules.pop()
        order.append(name)

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize(
    "statement",
    [
        "import tidegate",
        "from tidegate import Spec, Endpoint, Client, TidegateError",
        "import tidegate.cli.main",
        "from tidegate.spec import run; run.load('jobs/specs/digits.yaml')",
        "import tidegate.draft",
        "import tidegate.keys",
        "import tidegate.haproxy",
    ],
)
def test_light_imports_stay_light(statement: str, tmp_path: Path) -> None:
    heavy = "('ray', 'torch', 'mlflow', 'matplotlib')"
    script = f"{statement}\nimport sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # The tree that is tested, also where another one is installed.
        env={"PATH": "", "PYTHONPATH": str(SOURCE), "TIDEGATE_HOME": str(tmp_path)},
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_public_names_exist_and_shadow_no_subpackage() -> None:
    import tidegate

    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | {path.stem for path in PACKAGE.glob("*.py")}
    for name in tidegate.__all__:
        assert getattr(tidegate, name) is not None
        assert name not in folders
    with pytest.raises(AttributeError):
        _ = tidegate.no_such_name
