"""`tidegate spec init`: a spec for data as it is found, which prepare takes as it stands, and clear refusals."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits, load_iris, load_wine

import tones
from prepare_alone import first_outputs
from tidegate.cli.main import main
from tidegate.data import sample
from tidegate.data.meaning import cut
from tidegate.draft import Draft, draft, name_of
from tidegate.errors import DataError
from tidegate.spec import run
from tidegate.spec.run import Spec

Row = dict[str, Any]


def made(path: Path, target: str | None = None) -> tuple[Draft, Spec]:
    """The draft for a path, and the spec as it is read back from its file."""
    found = draft(str(path), path.parent, name="drafted", target=target)
    file = path.parent / "drafted.yaml"
    file.write_text(found.text)
    spec = run.load(file)
    assert spec == run.located(found.spec, path.parent)
    return found, spec


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def types(spec: Spec) -> dict[str, str]:
    return {name: column.type for name, column in spec.data.inputs.items()}


def reason(found: Draft, column: str) -> str:
    """Why a column is left out, as the file says it."""
    assert column in found.left_out
    (line,) = [line for line in found.text.splitlines() if line.startswith(f"    # {column} is left out: ")]
    return line.partition("left out: ")[2]


# Real tables


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize(
    ("load", "inputs", "target", "classes"),
    [(load_iris, 4, "category", 3), (load_wine, 13, "category", 3), (load_diabetes, 10, "number", 1)],
)
def test_tables_of_numbers(
    tmp_path: Path, ending: str, load: Callable[..., Any], inputs: int, target: str, classes: int
) -> None:
    frame = load(as_frame=True).frame
    path = write(tmp_path / f"table.{ending}", frame.to_dict("records"))
    found, spec = made(path)
    assert set(types(spec).values()) == {"number"}
    assert len(spec.data.inputs) == inputs
    assert (spec.data.target.column, spec.data.target.type) == ("target", target)
    assert "guessed by its name" in found.text
    assert spec.model.type == "mlp"
    assert spec.data.split.stratify == ("target" if classes > 1 else None)
    assert (spec.train.workers.min, spec.train.workers.max) == (1, 2)
    assert spec.data.invalid_rows.action == "refuse"
    outputs = first_outputs(spec)
    assert all(values.shape[1:] in ((classes,), (1,)) for values in outputs.values())


def test_digits_as_columns_as_lists_and_as_nested_lists(tmp_path: Path) -> None:
    digits = load_digits(as_frame=True)
    path = tmp_path / "digits.csv"
    digits.frame.to_csv(path, index=False)
    found, spec = made(path)
    assert len(spec.data.inputs) == 61
    assert reason(found, "pixel_0_0") == "the same value in every row"
    assert first_outputs(spec)["test"].shape[1] == 10
    rows = [
        {"id": f"d{n}", "pixels": row.tolist(), "label": int(label)}
        for n, (row, label) in enumerate(zip(digits.data.to_numpy(), digits.target, strict=True))
    ]
    nested = [row | {"pixels": np.reshape(row["pixels"], (8, 8)).tolist()} for row in rows]
    for name, table in (("flat.parquet", rows), ("nested.jsonl", nested)):
        found, spec = made(write(tmp_path / name, table))
        (image,) = spec.data.inputs.values()
        assert (image.type, image.size, image.max_value, spec.model.type) == ("image", [8, 8], 16, "cnn")
        assert "as a key has" in reason(found, "id")
        assert first_outputs(spec)["train"].shape == (64, 10)


def test_lists_of_different_lengths_are_series(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows: list[Row] = [
        {
            "steps": random.normal(number % 2, 1, (3 + number % 5, 2)).tolist(),
            "words": ["a", "b", "c"][: 1 + number % 3],
            "age": number / 7,
            "label": number % 2,
        }
        for number in range(60)
    ]
    found, spec = made(write(tmp_path / "walks.jsonl", rows))
    (series,) = spec.data.inputs.values()
    assert (series.type, series.max_length, series.channels, spec.model.type) == ("series", 16, 2, "rnn")
    assert reason(found, "words") == "lists of different lengths that are no series of numbers"
    assert "takes one series and nothing else" in reason(found, "age")
    assert "bidirectional: true" in found.text
    assert first_outputs(spec)["test"].shape[1] == 2
    found, spec = made(
        write(tmp_path / "plain.jsonl", [row | {"steps": [1.0] * (1 + n % 3)} for n, row in enumerate(rows)])
    )
    assert (spec.data.inputs["steps"].max_length, spec.data.inputs["steps"].channels) == (16, 1)


def titanic(rows: int = 400) -> list[Row]:
    """What strangers bring: ids, names, gaps, dates, constants, codes."""
    random = np.random.default_rng(0)
    return [
        {
            "": number,
            "PassengerId": 1000 + number,
            "Survived": int(random.integers(2)),
            "Name": f"Braund, Mr. Owen {number}",
            "Sex": "male" if random.random() < 0.5 else "female",
            "Age": "" if random.random() < 0.2 else round(float(random.uniform(1, 80)), 1),
            "Fare": "NA" if number == 7 else round(float(random.uniform(5, 500)), 2),
            "Ticket": f"A/{number % 300}",
            "Cabin": "" if number % 4 else f"C{number}",
            "Embarked": "" if number == 9 else "SCQ"[number % 3],
            "Zip": f"{number % 7:05}",
            "Boarded": f"1912-04-{1 + number % 28:02}",
            "Ship": "Titanic",
            "Gone": "",
            "__row": number % 5,
        }
        for number in range(rows)
    ]


def test_a_csv_with_ids_dates_names_and_gaps(tmp_path: Path) -> None:
    rows = titanic()
    found, spec = made(write(tmp_path / "titanic.csv", rows), target="Survived")
    assert types(spec) == {
        "Sex": "category",
        "Age": "number",
        "Fare": "number",
        "Embarked": "category",
        "Zip": "category",
    }
    age, embarked, sex = (spec.data.inputs[name] for name in ("Age", "Embarked", "Sex"))
    assert age.missing == "mean"
    assert (embarked.missing, embarked.unknown) == ("empty", "bucket")
    assert sex.missing == "refuse"
    missing = sum(row["Age"] == "" for row in rows)
    assert f"; {missing} missing" in found.text
    for column, why in {
        "PassengerId": "another whole number in every row, as a key has: 1000 to 1399",
        "Name": "model type mlp takes no text",
        "Ticket": "300 different values in 400 rows are too many for a category",
        "Cabin": "another value in every row, as a key has",
        "Boarded": "dates and times are no inputs",
        "Ship": "the same value in every row",
        "Gone": "no value in any row",
        "__row": "does not begin with two underscores",
    }.items():
        assert why in reason(found, column)
    assert "# a column without a name is left out" in found.text
    assert spec.data.invalid_rows.action == "refuse"
    first_outputs(spec)


def test_rows_that_do_not_fit_are_dropped_as_far_as_there_are_any(tmp_path: Path) -> None:
    rows = titanic()
    for number in range(0, 400, 20):
        rows[number]["Survived"] = ""
    rows[33]["Fare"], rows[34]["Fare"] = "inf", "five"
    found, spec = made(write(tmp_path / "titanic.csv", rows), target="Survived")
    assert spec.data.invalid_rows.action == "drop"
    assert spec.data.invalid_rows.max_fraction == 0.07
    assert "some rows do not fit" in found.text
    first_outputs(spec)


def test_text_in_a_table(tmp_path: Path) -> None:
    lines = [line for load in (load_iris, load_wine) for line in load().DESCR.splitlines() if len(line.split()) > 5]
    rows = [{"n": 3 * number % 50, "review": line, "stars": number % 2} for number, line in enumerate(lines)]
    found, spec = made(write(tmp_path / "reviews.csv", rows))
    assert types(spec) == {"review": "text"}
    assert spec.data.target.column == "stars"
    assert "guessed because it is the last column" in found.text
    assert spec.model.type == "transformer"
    assert "takes one text and nothing else; this is 0 to 49" in reason(found, "n")
    first_outputs(spec)


def test_a_column_that_says_the_split_and_one_that_says_the_target(tmp_path: Path) -> None:
    iris = load_iris(as_frame=True).frame.to_dict("records")
    rows = [
        row | {"species": "abc"[int(row["target"])], "split": ("train", "train", "validation", "test")[number % 4]}
        for number, row in enumerate(iris)
    ]
    found, spec = made(write(tmp_path / "iris.csv", rows))
    assert spec.data.split.column == "split"
    assert reason(found, "species") == "says the same as target: a model would just copy it"
    first_outputs(spec)
    # Where a class is never trained on, the column is no split, and too many values of few are none either.
    rows = [row | {"split": "test" if row["target"] == 2 else row["split"]} for row in rows]
    _, spec = made(write(tmp_path / "iris.csv", rows))
    assert spec.data.split.stratify == "target"


def test_a_key_is_better_than_nothing(tmp_path: Path) -> None:
    rows = [{"x": number, "y": 2 * number + 0.5} for number in range(200)]
    found, spec = made(write(tmp_path / "line.csv", rows))
    assert types(spec) == {"x": "number"}
    assert (spec.data.target.column, spec.data.target.type) == ("y", "number")
    assert found.left_out == ()
    first_outputs(spec)


def test_rare_classes_and_few_rows(tmp_path: Path) -> None:
    rows = [{"x": number * 0.7, "label": "common" if number else "rare"} for number in range(50)]
    _, spec = made(write(tmp_path / "rare.csv", rows))
    assert spec.data.split.stratify == "label"
    first_outputs(spec)
    rows = [{"x": number * 0.7, "label": number % 2} for number in range(6)]
    _, spec = made(write(tmp_path / "few.csv", rows))
    assert spec.train.global_batch == "all"
    first_outputs(spec)


def test_a_large_source_is_looked_at_all_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by its class: the first rows hold one class only."""
    random = np.random.default_rng(1)
    frame = pd.DataFrame({"x": random.normal(size=20_000), "label": np.arange(20_000) // 10_000})
    frame.to_csv(tmp_path / "sorted.csv", index=False)
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "sorted.parquet", row_group_size=1000)
    monkeypatch.setattr(sample, "ROWS", 500)
    for name in ("sorted.csv", "sorted.parquet"):
        found, spec = made(tmp_path / name)
        assert "20000 rows; 500 were looked at" in found.text
        assert "2 classes: 0 (250), 1 (250)" in found.text
        assert (spec.data.invalid_rows.action, spec.data.invalid_rows.max_fraction) == ("drop", 0.01)
        assert spec.train.global_batch == 256
        first_outputs(spec)


def test_several_files_of_different_types(tmp_path: Path) -> None:
    for number, kind in enumerate((int, str)):
        rows = [{"x": n / 7, "code": kind(n % 3), "y": n % 2} for n in range(40)]
        write(tmp_path / "parts" / f"{number}.jsonl", rows)
    found, spec = made(tmp_path / "parts")
    assert types(spec) == {"x": "number", "code": "number"}
    assert spec.data.source.format == "jsonl"
    assert "80 rows" in found.text
    first_outputs(spec)
    (tmp_path / "zipped.csv.gz").write_bytes(gzip.compress(b"x,y\n" + b"0.5,a\n1.5,b\n" * 20))
    _, spec = made(tmp_path / "zipped.csv.gz")
    assert len(first_outputs(spec)["test"]) == 4


# Folders


def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 7).save(path)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for number in range(12):
        for label in ("cat", "dog"):
            picture(tmp_path / "photos" / label / f"{number}.PNG", (200, 100 + number))
    found, spec = made(tmp_path / "photos")
    assert spec.data.source.format == "images"
    image = spec.data.inputs["image"]
    assert (image.type, image.size, image.channels) == ("image", [34, 64], 3)
    assert spec.model.type == "cnn"
    assert "the folder that a file lies in; 2 classes: cat (12), dog (12)" in found.text
    assert spec.data.split.stratify == "label"
    assert first_outputs(spec)["train"].shape == (20, 2)
    for number in range(12):
        picture(tmp_path / "grey" / "ab"[number % 2] / f"{number}.jpg", (8, 8), "L")
    _, spec = made(tmp_path / "grey")
    assert (spec.data.inputs["image"].channels, spec.data.inputs["image"].size) == (1, [8, 8])
    first_outputs(spec)
    # The same as a pattern.
    pattern = draft(f"{tmp_path}/grey/*/*.jpg", tmp_path, name="drafted")
    assert run.located(pattern.spec, tmp_path).data.inputs == spec.data.inputs


def test_a_folder_of_sounds(tmp_path: Path) -> None:
    for number, keys in enumerate(tones.numbers(24)):
        path = tmp_path / "calls" / ("odd" if len(keys) % 2 else "even") / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tones.encoded(tones.dialled(keys)))
    _, spec = made(tmp_path / "calls")
    assert (spec.data.source.format, types(spec), spec.model.type) == ("audio", {"audio": "audio"}, "rnn")
    assert first_outputs(spec)["train"].shape[1] == 2


def test_images_and_sounds_as_hugging_face_has_them(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (9, 99, 199)).save(buffer, "PNG")
    labels = [["cat", "dog"][number % 2] for number in range(40)]
    images = [{"bytes": buffer.getvalue(), "path": f"{number}.png"} for number in range(40)]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "images.parquet")
    _, spec = made(tmp_path / "images.parquet")
    assert (types(spec), spec.model.type, spec.data.inputs["image"].size) == ({"image": "image"}, "cnn", [4, 6])
    assert first_outputs(spec)["train"].shape[1] == 2
    sounds = [{"array": tones.dialled(keys).tolist(), "sampling_rate": tones.RATE} for keys in tones.numbers(40)]
    pq.write_table(pa.table({"audio": sounds, "label": labels}), tmp_path / "sounds.parquet")
    _, spec = made(tmp_path / "sounds.parquet")
    assert (types(spec), spec.model.type) == ({"audio": "audio"}, "rnn")
    assert first_outputs(spec)["train"].shape[1] == 2


def test_lists_whose_first_row_is_missing(tmp_path: Path) -> None:
    rows = [{"x": [0.5 * number, 1.0, 2.0] if number else None, "label": "ab"[number % 2]} for number in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "lists.parquet")
    _, spec = made(tmp_path / "lists.parquet")
    assert types(spec) == {"x": "number"}


def test_categories_that_are_stored_by_number(tmp_path: Path) -> None:
    kinds = pa.array([["red", "blue", "grey"][number % 3] for number in range(60)]).dictionary_encode()
    labels = [["cat", "dog"][number % 2] for number in range(60)]
    pq.write_table(pa.table({"colour": kinds, "label": labels}), tmp_path / "stored.parquet")
    _, spec = made(tmp_path / "stored.parquet")
    assert types(spec) == {"colour": "category"}
    assert first_outputs(spec)["train"].shape[1] == 2


def test_a_folder_of_texts(tmp_path: Path) -> None:
    for number in range(30):
        path = tmp_path / "reviews" / ("good" if number % 3 else "bad") / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            f"Bücher: a film of {number} words, and no more than that.".encode() if number else b"\xff\xfe"
        )
    _, spec = made(tmp_path / "reviews")
    assert types(spec) == {"text": "text"}
    assert spec.model.type == "transformer"
    assert spec.data.invalid_rows.max_fraction == 0.05
    first_outputs(spec)


def test_names_that_yaml_would_take_for_something_else(tmp_path: Path) -> None:
    names = ["yes", "on", "null", "~", "1", "0.5", "2024-01-01", "a: b", "#c", "- d", "'e", "{f}", "é\x7f\u2028", "😀"]
    random = np.random.default_rng(0)
    rows = [{name: float(random.normal()) for name in names} | {"off": number % 2} for number in range(60)]
    _, spec = made(write(tmp_path / "odd.jsonl", rows), target="off")
    assert list(spec.data.inputs) == names
    first_outputs(spec)


# Any mix of columns


def cells(rows: int) -> dict[str, st.SearchStrategy[list[Any]]]:
    number = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
    return {
        "numbers": st.lists(number, min_size=rows, max_size=rows),
        "gaps": st.lists(st.none() | number, min_size=rows, max_size=rows),
        "odd": st.lists(st.sampled_from([0.5, 1e300, -1e300, None, 3]), min_size=rows, max_size=rows),
        "whole": st.lists(st.integers(-5, 5), min_size=rows, max_size=rows),
        "ids": st.just(list(range(rows))),
        "classes": st.lists(st.sampled_from(["a", "b", "c: d", "#", "ü\n", ""]), min_size=rows, max_size=rows),
        "some": st.lists(st.sampled_from(["x", "y", None]), min_size=rows, max_size=rows),
        "words": st.lists(st.text(max_size=60), min_size=rows, max_size=rows),
        "names": st.just([f"user {number} of the house" for number in range(rows)]),
        "dates": st.just([f"2024-01-{1 + number % 28:02}" for number in range(rows)]),
        "flags": st.lists(st.booleans(), min_size=rows, max_size=rows),
        "same": st.just(["same"] * rows),
        "none": st.just([None] * rows),
        "lists": st.lists(st.lists(number, min_size=2, max_size=3), min_size=rows, max_size=rows),
        "mixed": st.lists(st.sampled_from([1, "a", 2.5, None]), min_size=rows, max_size=rows),
    }


NAMES = st.sampled_from(
    ["x", "y", "label", "on", "yes", "1", "a b", "c: d", "#e", "'f", "-g", "{h}", "ü", "😀", "__i", "target", "\x7f"]
)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    rows = draw(st.sampled_from([1, 3, 8, 25, 60]))
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    kinds = cells(rows)
    columns = {name: draw(kinds[draw(st.sampled_from(sorted(kinds)))]) for name in names}
    return [{name: column[number] for name, column in columns.items()} for number in range(rows)]


@given(rows=tables(), ending=st.sampled_from(["csv", "jsonl"]))
@settings(max_examples=120, deadline=None)
def test_any_table_is_refused_in_words_or_can_be_trained_on(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], ending: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "mix" / f"any.{ending}"
    write(path, rows)
    refusal = ""
    try:
        _, spec = made(path)
    except DataError as error:
        refusal = str(error)
    else:
        first_outputs(spec)
    assert "\n" not in refusal


# Refusals


@contextmanager
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Iterator[list[str]]:
    """The line on stderr of a `tidegate spec init` that a person's mistake ends."""
    lines: list[str] = []
    monkeypatch.setattr("sys.argv", ["tidegate", "spec", "init", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines += said.err.splitlines()
    assert len(lines) == 1
    yield lines


def csv_of(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


ONE_CLASS = "x,y\n" + "".join(f"{n}.5,same\n" for n in range(30))
NAMES_ONLY = "name,y\n" + "".join(f"n{n},{n % 2}\n" for n in range(30))


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        (
            ONE_CLASS,
            [],
            "the column 'y', guessed by its name, holds only the value 'same'; a classifier needs at least two",
        ),
        (
            ONE_CLASS,
            ["--target", "Y"],
            "has no column 'Y' (--target); expected one of its columns: x, y; did you mean 'y'",
        ),
        (NAMES_ONLY, [], "no column of {folder}/rows.csv can be an input ('name': another value in every row"),
        (
            NAMES_ONLY,
            ["--target", "name"],
            "the column 'name', which --target names, holds 30 different values in 30 rows",
        ),
        ("y\n1\n2\n", [], "no column of {folder}/rows.csv can be an input; expected numbers"),
        ("x,y\n1,a\n2,b\n", [], "has 2 rows that fit: too few to be divided in three; give more rows"),
        ("x,y\n", [], "the source {folder}/rows.csv has no rows; give it some"),
        ("", [], "{folder}/rows.csv is no readable csv: Empty CSV file; correct the file"),
        ("a;b;y\n1;2;3\n", [], "has no comma, but ';'; expected fields divided by commas"),
        ("5.1,3.5,0\n4.9,3.0,1\n", [], "holds numbers: 5.1, 3.5, 0; expected a first line with the columns' names"),
        (b"\x00\x01\xfe\xff\n\x89PNG,\x80\n", [], "1 columns, got 2: (bytes that are no UTF-8 text); correct the file"),
        ("x,y\n1,2,3\n", [], "Expected 2 columns, got 3"),
    ],
)
def test_a_table_that_nothing_can_be_learned_from(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: str | bytes,
    arguments: list[str],
    says: str,
) -> None:
    csv_of(tmp_path / "rows.csv", content)
    monkeypatch.chdir(tmp_path)
    with told(capsys, monkeypatch, str(tmp_path / "rows.csv"), *arguments) as lines:
        assert says.format(folder=tmp_path) in lines[0]
    assert not (tmp_path / "rows.yaml").exists()


def test_sources_and_names_that_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    load_iris(as_frame=True).frame.to_csv("iris.csv", index=False)
    Path("iris.data").write_text("5.1,3.5\n")
    Path("cut.parquet").write_bytes(b"PAR1 and then nothing")
    Path("empty").mkdir()
    picture(tmp_path / "flat" / "a.png", (4, 4))
    Path("there.yaml").write_text("kept")
    for arguments, says in (
        (["none.csv"], f"the source {tmp_path}/none.csv does not exist or holds no file of format csv"),
        (["none"], f"the source {tmp_path}/none does not exist or holds no file"),
        (["empty"], f"the source {tmp_path}/empty does not exist or holds no file"),
        (["iris.data"], "the format of iris.data cannot be told from its name; expected an ending: .parquet, .csv"),
        (["cut.parquet"], f"{tmp_path}/cut.parquet is no readable parquet: "),
        (["flat"], f"{tmp_path}/flat/a.png lies in no class's folder; expected a folder for each class"),
        (["iris.csv", "-o", "there.yaml"], "there.yaml exists; name another file with -o, or delete it"),
        (["iris.csv", "-o", "nowhere/iris.yaml"], f"there is no folder {tmp_path}/nowhere"),
        (["iris.csv", "--name", "My Iris"], "--name is 'My Iris'; expected up to 63 lower-case letters"),
        (["$NOWHERE/iris.csv"], "the variable $NOWHERE in '$NOWHERE/iris.csv' is not set"),
    ):
        with told(capsys, monkeypatch, *arguments) as lines:
            assert says in lines[0]
    assert Path("there.yaml").read_text() == "kept"
    assert [path.name for path in tmp_path.glob("*.yaml")] == ["there.yaml"]


def test_what_the_command_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "titanic.csv", titanic())
    Path("specs").mkdir()
    arguments = ["data/titanic.csv", "--target", "Survived", "-o", "specs/ship.yaml", "--name", "ship"]
    monkeypatch.setattr("sys.argv", ["tidegate", "spec", "init", *arguments])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "specs/ship.yaml: from 5 inputs of data/titanic.csv to 'Survived', model type mlp"
    assert second.startswith("left out, for reasons in the file: a column without a name, PassengerId, Name, ")
    assert third == "read it, change what is wrong, and then: tidegate train specs/ship.yaml"
    spec = run.load("specs/ship.yaml")
    assert (spec.name, spec.data.source.path) == ("ship", str(tmp_path / "data/titanic.csv"))
    assert "source: {path: ../data/titanic.csv}" in Path("specs/ship.yaml").read_text()
    monkeypatch.setattr("sys.argv", ["tidegate", "spec", "check", "specs/ship.yaml"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    assert capsys.readouterr().out == "specs/ship.yaml: fine\n"


def test_names_from_paths() -> None:
    for path, name in {
        "/a/My Data (2).csv": "my-data-2",
        "photos/": "photos",
        "photos/*/*.jpg": "photos",
        "data/part-*.parquet": "part",
        "s3://bucket/reviews.csv?endpoint_override=localhost": "reviews",
        "数据.csv": "model",
    }.items():
        assert name_of(path) == name


# Texts to be written


def test_the_phonemes_of_words_are_written_by_sequence_to_sequence(tmp_path: Path) -> None:
    letters = {"a": "AA", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F"}
    words = ["".join(part) for part in itertools.product(letters, repeat=4)]
    rows = [{"word": w, "said": " ".join(letters[c] for c in w), "kind": w[0] == "a"} for w in words[:500]]
    path = write(tmp_path / "words.csv", rows)
    found, spec = made(path, target="said")
    assert types(spec) == {"word": "text"}
    assert (spec.data.target.type, spec.model.type, spec.train.group_by_length) == ("text", "seq2seq", True)
    assert spec.data.target.model_dump() == {
        "column": "said",
        "type": "text",
        "tokenizer": "word",
        "vocab_size": 8000,
        "max_length": 16,
    }
    assert spec.data.inputs["word"].model_dump()["tokenizer"] == "character"
    assert "takes one input and nothing else" in reason(found, "kind")


def test_what_is_said_is_written_by_ctc(tmp_path: Path) -> None:
    path = tmp_path / "sounds.parquet"
    pq.write_table(tones.table(60), path)
    _, spec = made(path, target="keys")
    assert types(spec) == {"sound": "audio"}
    assert spec.data.inputs["sound"].model_dump()["max_seconds"] == pytest.approx(1.0)
    assert (spec.data.target.model_dump()["tokenizer"], spec.model.type) == ("character", "ctc")


def test_sounds_of_classes_are_told_apart_by_a_recurrent_network(tmp_path: Path) -> None:
    path = tmp_path / "sounds.parquet"
    table = tones.table(60)
    pq.write_table(table.append_column("odd", [[len(key) % 2 == 1 for key in table["keys"].to_pylist()]]), path)
    found, spec = made(path)
    assert (types(spec), spec.model.type, spec.data.target.column) == ({"sound": "audio"}, "rnn", "odd")
    assert "keys" in found.left_out


def test_texts_to_read_are_measured_as_they_are_cut(tmp_path: Path) -> None:
    drawn = random.Random(0)
    notes = [" ".join(f"{drawn.choice('CDEFGAB')}#{drawn.randint(1, 7)}" for _ in range(12)) for _ in range(60)]
    rows = [{"melody": line, "chords": line.replace("#", "m")} for line in notes]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "melodies.parquet")
    _, spec = made(tmp_path / "melodies.parquet", target="chords")
    read = spec.data.inputs["melody"]
    assert (read.tokenizer, read.max_length >= 36) == ("word", True)


def test_photographs_taken_upright_are_measured_upright(tmp_path: Path) -> None:
    buffer, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", (40, 30)).save(buffer, "JPEG", exif=tags)
    rows = [{"photo": buffer.getvalue(), "label": "ab"[row % 2]} for row in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "photos.parquet")
    _, spec = made(tmp_path / "photos.parquet")
    assert spec.data.inputs["photo"].size == [40, 30]


def test_room_for_letters_of_several_bytes() -> None:
    keys, _ = cut(["\u6587" * 200])
    assert (keys["tokenizer"], keys["max_length"] >= 300) == ("bpe", True)
