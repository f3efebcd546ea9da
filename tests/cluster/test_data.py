"""Data as strangers have it, on a real Ray: a first spec trains as it stands, and mistakes are one line that helps."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits, load_iris

from live_runs import fit
from object_store import object_store, put
from tidegate.cli.main import main
from tidegate.data import sources
from tidegate.data.prepare import fingerprint, prepare
from tidegate.data.prepared import ROW, SPLITS, TARGET, Prepared
from tidegate.draft import draft
from tidegate.spec import run
from tidegate.spec.run import Spec

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.usefixtures("home"),
    # Ray warns about its own settings when it copies them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


@pytest.fixture(scope="module")
def home(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One TIDEGATE_HOME for all: making its database takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        patch.setenv("TIDEGATE_HOME", str(path))
        yield path


def silent(_: str) -> None: ...


def drafted(path: Path | str, folder: Path, name: str = "drafted") -> Spec:
    """The spec that `tidegate spec init` writes, as it is read back from its file."""
    file = folder / "drafted.yaml"
    file.write_text(draft(str(path), folder, name=name).text)
    return run.load(file)


def digit_files() -> dict[str, bytes]:
    """Real digits as PNG files, in a folder for each."""
    files = {}
    for number, (image, label) in enumerate(zip(load_digits().images[:300], load_digits().target, strict=False)):
        sink = io.BytesIO()
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(sink, "PNG")
        files[f"{label}/{number:04}.png"] = sink.getvalue()
    return files


def contents(prepared: Prepared) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for split in SPLITS for path in prepared.files(split)}


def test_images_on_disk_and_in_a_store_train_as_the_first_spec_says(tmp_path: Path) -> None:
    images = digit_files()
    for name, content in images.items():
        path = tmp_path / "digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    here = prepare(drafted(tmp_path / "digits", tmp_path), silent)
    with object_store() as (address, store):
        for name, content in images.items():
            put(store, f"digits/{name}", content)
        spec = drafted(f"s3://acme/digits?endpoint_override={address}&scheme=http", tmp_path)
        there = prepare(spec, silent)
        assert contents(there) == contents(here)
        said: list[str] = []
        assert prepare(spec, said.append).folder == there.folder
        assert "made before" in said[0]
        # Another digit in place of one, of as many bytes and in the same second.
        first, second = sorted(images)[:2]
        size = max(len(images[first]), len(images[second]))
        put(store, f"digits/{first}", images[second].ljust(size, b"\0"))
        assert fingerprint(spec, sources.listing(spec.data.source)) != there.fingerprint
    assert here.target.classes == [str(digit) for digit in range(10)]
    labels = [int(name[0]) for name in sorted(images)]
    for split in SPLITS:
        rows = here.reader(split).read(np.arange(here.num_rows(split)))
        assert rows[TARGET].tolist() == [labels[row] for row in rows[ROW]]
    shorter = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": 5})})
    history = fit(shorter, here, "images").state["history"]
    assert max(record["validation.accuracy"] for record in history) > 0.7


def test_a_table_with_gaps_trains_as_the_first_spec_says(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    lines = ["id,when,colour,size,weight,bought"]
    for number in range(300):
        colour, size = random.choice(["red", "green", ""], p=[0.6, 0.3, 0.1]), random.normal()
        weight = "NA" if number % 11 == 0 else f"{random.normal():.3f}"
        bought = "" if number == 77 else "yes" if size + (colour == "red") > 0.5 else "no"
        lines.append(f"{number},2024-05-{1 + number % 28:02},{colour},{size:.3f},{weight},{bought}")
    path = tmp_path / "shop.csv"
    path.write_text("\n".join(lines) + "\n")
    spec = drafted(path, tmp_path)
    assert list(spec.data.inputs) == ["colour", "size", "weight"]
    said: list[str] = []
    prepared = prepare(spec, said.append)
    assert any(
        line.startswith("dropped 1 of 300 rows do not fit (row 77: bought: the value is missing") for line in said
    )
    state = prepared.manifest["columns"]["colour"]
    assert state["vocabulary"] == ["", "green", "red"]
    final = fit(spec, prepared, "table")
    assert max(record["validation.accuracy"] for record in final.state["history"]) > 0.85


def test_texts_in_folders_are_prepared_and_an_unreadable_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(40):
        path = tmp_path / "reviews" / ("good" if number % 2 else "bad") / f"{number:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"The film number {number} was {'fine' if number % 2 else 'dull'} to the last minute.")
    spec = drafted(tmp_path / "reviews", tmp_path)
    assert prepare(spec, silent).num_rows("train") == 32
    (tmp_path / "reviews/good/07.txt").write_bytes("Bücher".encode("latin-1"))
    (tmp_path / "reviews/good/09.txt").write_bytes(b"")
    line = mistake(tmp_path / "drafted.yaml", monkeypatch, capsys)
    assert line.startswith(
        f"error: 1 of 40 rows do not fit ({tmp_path}/reviews/good/07.txt: text: the bytes are no UTF-8 text from byte 1"
    )


# Mistakes, as `tidegate train` tells them


def mistake(spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a `tidegate train` ends with. What was prepared before is kept, nothing is left half done."""
    home = Path(os.environ["TIDEGATE_HOME"])

    def kept() -> list[str]:
        return [path.relative_to(home).as_posix() for path in (home / "prepared").rglob("*")]

    before = set(kept())
    monkeypatch.setattr("sys.argv", ["tidegate", "train", str(spec)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert before <= set(kept())
    assert [name for name in kept() if "partial" in name] == []
    return lines[0]


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    def changed(document: dict[str, Any]) -> None:
        for path, value in values.items():
            *keys, last = path.split("__")
            part = document
            for key in keys:
                part = part[key]
            part[last] = value

    return changed


def cell(row: int, column: int, value: str) -> Callable[[list[list[str]]], None]:
    def changed(rows: list[list[str]]) -> None:
        rows[row + 1][column] = value

    return changed


def nothing(_: Any) -> None: ...


MISTAKES: dict[str, tuple[Callable[[Any], None], Callable[[Any], None], str]] = {
    "a column that is nearly one": (
        change(data__target__column="specis"),
        nothing,
        "has no column 'specis' (data.target.column); expected one of its columns: sepal, width, species; "
        "did you mean 'species' (data.target.column)?",
    ),
    "another type": (
        change(data__target__type="number", data__split={}),
        nothing,
        "150 of 150 rows do not fit (row 0: species: 'kind 0' is no number; row 1: species: 'kind 0' is no number; "
        "row 2: species: 'kind 0' is no number; row 3: species: 'kind 0' is no number; row 4: species: 'kind 0' is no "
        "number; ...); no row is left: correct what the spec says of 'species', or the data",
    ),
    "a target without a value": (
        nothing,
        cell(3, 2, ""),
        "1 of 150 rows do not fit (row 3: species: the value is missing); correct the data, or write "
        "data.invalid_rows: {action: drop}",
    ),
    "an infinite feature": (
        nothing,
        cell(4, 1, "inf"),
        "1 of 150 rows do not fit (row 4: width: a number is infinite)",
    ),
    "a feature that is NaN": (
        nothing,
        cell(5, 0, "nan"),
        "1 of 150 rows do not fit (row 5: sepal: a number is missing or NaN)",
    ),
    "a feature beyond float32": (
        nothing,
        cell(6, 0, "1e300"),
        "1 of 150 rows do not fit (row 6: sepal: a number is too large to use)",
    ),
    "a split that comes out empty": (
        change(data__split={"train": 0.994, "validation": 0.003, "test": 0.003}),
        nothing,
        "the test split is empty (150 usable rows); give more rows, or change data.split",
    ),
    "a class of one split": (
        change(data__split={}),
        cell(7, 2, "odd"),
        "the class 'odd' of column species occurs in the test split only; stratify the split by species, or drop",
    ),
    "a batch larger than the training split": (
        change(train__global_batch=121),
        nothing,
        "train.global_batch is 121, but the training split has 120 rows; lower it, or write all",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_its_place_and_a_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change_spec, change_rows, says = MISTAKES[name]
    iris = load_iris()
    rows = [["sepal", "width", "species"]]
    rows += [[str(x[0]), str(x[1]), f"kind {label}"] for x, label in zip(iris.data, iris.target, strict=True)]
    change_rows(rows)
    (tmp_path / "iris.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    document = {
        "name": "iris",
        "data": {
            "source": {"path": "iris.csv"},
            "inputs": {"sepal": {"type": "number"}, "width": {"type": "number"}},
            "target": {"column": "species", "type": "category"},
            "split": {"stratify": "species"},
        },
        "model": {"type": "linear"},
        "train": {"epochs": 1},
    }
    change_spec(document)
    (tmp_path / "iris.yaml").write_text(yaml.safe_dump(document))
    line = mistake(tmp_path / "iris.yaml", monkeypatch, capsys)
    assert says in line
    assert "Traceback" not in line
