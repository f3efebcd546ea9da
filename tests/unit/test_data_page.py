"""What the page on data shows: its commands are run and its specs read, on data of the shapes that it speaks of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from object_store import object_store, put
from prepare_alone import first_outputs
from tidegate.cli.main import tidegate
from tidegate.spec import run
from tidegate.spec.document import parse
from tidegate.spec.run import Spec

DATA = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(DATA) if found == language]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's person has: a table with gaps, photos and reviews in folders."""
    lines = ["colour,size,part,bought"]
    for number in range(100):
        colour, size = ("red", "green", "")[number % 3], "NA" if number % 10 == 0 else number / 7
        part = ("train", "train", "train", "validation", "test")[number % 5]
        lines.append(f"{colour},{size},{part},{'' if number == 77 else number % 2}")
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    for number in range(30):
        image, text = (
            tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png",
            tmp_path / "reviews" / ("good", "bad")[number % 2] / f"{number}.txt",
        )
        for path in (image, text):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 0, 0)).save(image)
        text.write_text(f"film number {number}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_on_data_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_store() as (address, store):
        for path in (folder / "photos").rglob("*.png"):
            put(store, path.relative_to(folder).as_posix(), path.read_bytes())
        commands = [line for block in blocks("bash") for line in block.splitlines()]
        for line in commands:
            name, *arguments = shlex.split(line.replace("$STORE", address))
            assert name == "tidegate"
            done = CliRunner().invoke(tidegate, arguments, catch_exceptions=False)
            assert done.exit_code == 0
        assert len(commands) == 5
        for path in sorted(folder.glob("*.yaml")):
            first_outputs(run.load(path))
    assert {path.stem for path in folder.glob("*.yaml")} == {"shop", "photos", "reviews", "stored"}


@pytest.mark.parametrize("number", range(4))
def test_the_specs_on_data_are_what_prepare_takes(number: int, folder: Path) -> None:
    found = yaml.safe_load(blocks("yaml")[number])
    assert len(blocks("yaml")) == 4
    kind = next(iter(found["inputs"].values()))["type"]
    model = {"image": "cnn", "text": "transformer"}.get(kind, "mlp")
    spec = parse(
        Spec, {"name": "page", "data": found, "model": {"type": model}, "train": {"global_batch": 16}}, source=""
    )
    assert first_outputs(run.located(spec, folder))["train"].shape[1] == 2
