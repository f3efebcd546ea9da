"""The page on adding a model type: what it says is done to a copy of the package, which then has that type."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "model-types.md").read_text()
USE = """
import torch
from tidegate.models.build import build
from tidegate.spec.run import Spec
from tidegate.transforms.base import Feature

data = {"source": {"path": "a.csv"}, "inputs": {"x": {"type": "number"}}, "target": {"column": "y", "type": "number"}}
spec = Spec.model_validate({"name": "a", "data": data, "model": {"type": "residual", "width": 5, "layers": 3}})
module = build(spec.model, [Feature("x", "number", (1,))], Feature("y", "number", ()), seed=0)
print(type(module).__module__, tuple(module({"x": torch.ones(4, 1)}).shape), len(module.layers))
try:
    Spec.model_validate(spec.model_dump() | {"data": data | {"inputs": {"x": {"type": "text"}}}})
except ValueError as error:
    print("takes no text" in str(error))
"""


def test_the_type_of_the_page_can_be_built(tmp_path: Path) -> None:
    options, module, line = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    package = tmp_path / "tidegate"
    shutil.copytree(ROOT / "platform" / "tidegate", package, ignore=shutil.ignore_patterns("__pycache__"))
    edit(package / "spec" / "model.py", "ImportPath = ", f"{options}\n\nImportPath = ")
    edit(package / "spec" / "model.py", "| Custom,\n", "| Residual | Custom,\n")
    (package / "models" / "residual.py").write_text(module)
    build = package / "models" / "build.py"
    edit(
        build,
        "from tidegate.models.rnn import Rnn\n",
        "from tidegate.models.residual import Residual\nfrom tidegate.models.rnn import Rnn\n",
    )
    edit(build, "    spec.Rnn: Rnn,\n", f"{line}    spec.Rnn: Rnn,\n")
    done = subprocess.run(
        [sys.executable, "-c", USE], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, check=False
    )
    assert done.stdout == "tidegate.models.residual (4, 1) 3\nTrue\n", done.stderr


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has not {old!r} once"
    path.write_text(text.replace(old, new))
