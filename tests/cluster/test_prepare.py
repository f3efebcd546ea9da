"""prepare on a real Ray: the same bytes from any format and number of files, a cache that is never wrong, refusals."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits, load_iris

from live_runs import wait_until
from tidegate.data import prepare as prepare_module
from tidegate.data.prepare import prepare
from tidegate.data.prepared import MANIFEST, ROW, SPLITS, TARGET, Prepared
from tidegate.errors import DataError
from tidegate.spec import document
from tidegate.spec.run import Spec
from tidegate.transforms.base import length_key

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("home")]

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def iris(rows: int = 150) -> list[dict[str, Any]]:
    """Rows of iris; the last column is text made of the numbers."""
    data = load_iris()
    return [
        dict(zip(FEATURES, values.tolist(), strict=True))
        | {"species": str(data.target_names[label]), "note": f"petal {values[2]} by {values[3]} cm, Ünïcode"}
        for values, label in zip(data.data[:rows], data.target[:rows], strict=True)
    ]


def iris_spec(path: Path | str, kind: str | None = None, **data: Any) -> Spec:
    return spec_of(
        {
            "source": {"path": str(path), "format": kind},
            "inputs": {name: {"type": "number"} for name in FEATURES},
            "target": {"column": "species", "type": "category"},
        }
        | data
    )


def spec_of(data: dict[str, Any], *, seed: int = 0) -> Spec:
    value = {"name": "rows", "seed": seed, "data": data, "model": {"type": "mlp"}}
    if any(column["type"] == "text" for column in data["inputs"].values()):
        value["model"] = {"type": "transformer"}
    return document.parse(Spec, value, source="test")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
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


def hashes(prepared: Prepared) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for split in SPLITS for path in prepared.files(split)
    }


def rows_of(prepared: Prepared, split: Any) -> dict[str, np.ndarray]:
    return prepared.reader(split).read(np.arange(prepared.num_rows(split)))


def silent(_: str) -> None:
    pass


def refused(spec: Spec) -> str:
    """The refusal of a source; nothing is left behind by it."""
    with pytest.raises(DataError) as caught:
        prepare(spec, silent)
    folder = Path(os.environ["TIDEGATE_HOME"]) / "prepared"
    assert not folder.exists() or [path for path in folder.iterdir() if path.suffix != ".lock"] == []
    text = str(caught.value)
    assert "Traceback" not in text
    assert "\x1b" not in text
    assert len(text) < 1500
    return text


def test_three_formats_give_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for ending in ("parquet", "csv", "jsonl", "ndjson"):
        spec = iris_spec(write(tmp_path / f"iris.{ending}", iris()))
        prepared = prepare(spec, silent)
        found.append((hashes(prepared), prepared.manifest["columns"], prepared.manifest["target"]))
    assert found[1:] == found[:-1]
    assert prepared.target.classes == ["setosa", "versicolor", "virginica"]
    assert [prepared.num_rows(split) for split in SPLITS] == [120, 15, 15]
    values = [rows_of(prepared, split) for split in SPLITS]
    numbers = np.concatenate([part[ROW] for part in values])
    assert sorted(numbers.tolist()) == list(range(150))
    assert (np.concatenate([part[TARGET] for part in values]) == load_iris().target[numbers]).all()
    truth = load_iris().data
    train = truth[values[0][ROW]]
    for column, name in enumerate(FEATURES):
        np.testing.assert_allclose(
            np.concatenate([part[name] for part in values])[:, 0],
            (truth[numbers, column] - train[:, column].mean()) / train[:, column].std(),
            rtol=1e-5,
            atol=1e-6,
        )


def test_files_and_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iris()
    one = write(tmp_path / "one" / "iris.jsonl", rows)
    cuts = [0, 3, 4, 50, 70, 71, 120, 150]
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        write(tmp_path / "seven" / f"part-{number}.jsonl", rows[start:stop])
    # Files of a few rows, so that the rows of a file come from many blocks.
    monkeypatch.setattr(prepare_module, "FILE_BYTES", 20 * (16 + 4 * len(FEATURES)))
    alone, apart = (prepare(iris_spec(path, "jsonl"), silent) for path in (one, tmp_path / "seven"))
    assert len(alone.files("train")) == 6
    assert hashes(alone) == hashes(apart)
    assert alone.manifest["columns"] == apart.manifest["columns"]
    monkeypatch.setattr("tidegate.data.stage.MAX_PARTITIONS", 1)
    monkeypatch.setattr("tidegate.data.sources.BLOCK_BYTES", 1000)
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 2000)
    again = prepare(iris_spec(one, "jsonl").model_copy(update={"name": "again"}), silent)
    assert hashes(again) == hashes(alone)


def test_row_groups_do_not_matter(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(iris())
    found = []
    for size in (150, 7):
        folder = tmp_path / str(size)
        folder.mkdir()
        pq.write_table(table, folder / "iris.parquet", row_group_size=size)
        found.append(hashes(prepare(iris_spec(folder, "parquet"), silent)))
    assert found[0] == found[1]


OTHER_CLUSTER = """
import json, sys
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=40, _temp_dir=sys.argv[1])
from tidegate import connection
import ray.data
connection.quiet()
from tidegate.data.prepare import prepare
from tidegate.spec import document
from tidegate.spec.run import Spec
spec = document.parse(Spec, json.loads(sys.argv[2]), source="test")
print(prepare(spec, lambda line: None).folder)
ray.shutdown()
"""


def test_another_cluster_of_one_cpu_gives_the_same_bytes(
    tmp_path: Path,
) -> None:
    spec = digits_spec(write_digits(tmp_path / "digits.parquet"))
    here = prepare(spec, silent)
    environment = {**os.environ, "TIDEGATE_HOME": str(tmp_path / "other"), "PYTHONWARNINGS": "ignore"}
    environment.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [sys.executable, "-c", OTHER_CLUSTER, folder, spec.model_dump_json()],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    there = Path(done.stdout.split()[-1])
    assert there.name == here.folder.name
    assert {name: hashlib.sha256((there / name).read_bytes()).hexdigest() for name in hashes(here)} == hashes(here)
    assert (there / MANIFEST).read_bytes() == (here.folder / MANIFEST).read_bytes()


def write_digits(path: Path) -> Path:
    digits = load_digits()
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(digits.data.astype(np.float32).ravel()), 64)
    pq.write_table(pa.table({"pixels": pixels, "label": digits.target}), path)
    return path


def digits_spec(path: Path, **data: Any) -> Spec:
    return spec_of(
        {
            "source": {"path": str(path)},
            "inputs": {"pixels": {"type": "image", "size": [8, 8], "channels": 1, "max_value": 16}},
            "target": {"column": "label", "type": "category"},
            "split": {"train": 0.7, "validation": 0.15, "test": 0.15, "stratify": "label"},
        }
        | data
    )


def test_images_as_lists_and_encoded_with_stratified_splits(tmp_path: Path) -> None:
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    pq.write_table(pa.table({"pixels": encoded, "label": digits.target}), tmp_path / "png.parquet")
    nested = [
        {"pixels": image.tolist(), "label": int(label)} for image, label in zip(images, digits.target, strict=True)
    ]
    write(tmp_path / "lists.jsonl", nested)
    inputs = {"pixels": {"type": "image", "size": [8, 8]}}
    png, lists = (
        prepare(digits_spec(tmp_path / name, inputs=inputs), silent) for name in ("png.parquet", "lists.jsonl")
    )
    assert hashes(png) == hashes(lists)
    for split, fraction in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
        found = rows_of(png, split)
        counts = np.bincount(found[TARGET], minlength=10)
        assert (np.abs(counts - np.bincount(digits.target) * fraction) <= 1).all()
        assert (found[TARGET] == digits.target[found[ROW]]).all()
        flat = images[found[ROW]].reshape(-1, 64)
        state = png.manifest["columns"]["pixels"]
        np.testing.assert_allclose(found["pixels"], (flat / 255 - state["mean"][0]) / state["deviation"][0], atol=1e-5)


def test_text_and_a_number_to_predict(tmp_path: Path) -> None:
    rows = iris()
    inputs = {"note": {"type": "text", "tokenizer": "word", "max_length": 9, "vocab_size": 300}}
    target = {"column": "sepal_length", "type": "number"}
    found = [
        prepare(iris_spec(write(tmp_path / f"iris.{ending}", rows), inputs=inputs, target=target), silent)
        for ending in ("csv", "jsonl")
    ]
    assert hashes(found[0]) == hashes(found[1])
    train = rows_of(found[0], "train")
    assert train["note"].shape == (120, 9)
    assert train[length_key("note")].min() >= 1
    truth = load_iris().data[train[ROW], 0]
    np.testing.assert_allclose(found[0].target.unscaled(train[TARGET]), truth, rtol=1e-5)
    assert [train["note"].dtype, train[TARGET].dtype] == [np.int32, np.float32]


def test_a_regression_on_lists_of_numbers(tmp_path: Path) -> None:
    data = load_diabetes()
    rows = [{"x": x.tolist(), "y": float(y)} for x, y in zip(data.data, data.target, strict=True)]
    spec = spec_of(
        {
            "source": {"path": str(write(tmp_path / "d.parquet", rows))},
            "inputs": {"x": {"type": "number", "length": 10}},
            "target": {"column": "y", "type": "number"},
        }
    )
    train = rows_of(prepare(spec, silent), "train")
    np.testing.assert_allclose(train["x"].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train["x"].std(axis=0), 1, atol=1e-5)


def test_a_split_column(tmp_path: Path) -> None:
    rows = [row | {"part": ("train", "train", "validation", "test")[number % 4]} for number, row in enumerate(iris())]
    spec = iris_spec(write(tmp_path / "iris.csv", rows), split={"column": "part"})
    prepared = prepare(spec, silent)
    for split in SPLITS:
        numbers = rows_of(prepared, split)[ROW]
        assert sorted(numbers.tolist()) == [number for number, row in enumerate(rows) if row["part"] == split]
    rows[7]["part"] = "training"
    again = refusal(iris_spec(write(tmp_path / "iris.csv", rows), split={"column": "part"}))
    assert "1 of 150 rows do not fit (row 7: part: 'training' names no split; write train, validation or test)" in again


def refusal(spec: Spec) -> str:
    with pytest.raises(DataError) as caught:
        prepare(spec, silent)
    return str(caught.value)


def test_globs_and_directories(tmp_path: Path) -> None:
    rows = iris()
    for number in range(3):
        write(tmp_path / f"year={number}" / "part.csv", rows[number * 50 : number * 50 + 50])
    write(tmp_path / "_hidden.csv", rows[:10])
    write(tmp_path / ".hidden.csv", rows[:10])
    write(tmp_path / "other.jsonl", rows[:10])
    (tmp_path / "notes.txt").write_text("no data")
    said: list[str] = []
    found = [
        prepare(iris_spec(path, "csv"), said.append)
        for path in (tmp_path, f"{tmp_path}/year=*/*.csv", f"{tmp_path}/year=[012]/part.csv")
    ]
    assert hashes(found[0]) == hashes(found[1]) == hashes(found[2])
    assert f"reading 3 files of {tmp_path}" in said
    assert sum(found[0].num_rows(split) for split in SPLITS) == 150


# The cache


def test_what_did_not_change_is_not_made_again(tmp_path: Path) -> None:
    path = write(tmp_path / "iris.csv", iris())
    spec = iris_spec(path)
    said: list[str] = []
    first = prepare(spec, said.append)
    marks = {file: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    assert said == [f"reading 1 file of {path}", "prepared data: 120 train, 15 validation, 15 test rows"]
    # What says how to train does not matter to the data.
    trained = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": 3})})
    said.clear()
    assert prepare(trained, said.append).folder == first.folder
    assert said == ["prepared data: 120 train, 15 validation, 15 test rows (made before, source and spec unchanged)"]
    assert {file: file.stat().st_mtime_ns for file in first.folder.iterdir()} == marks


def test_a_change_of_source_seed_or_data_makes_it_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "iris.csv", iris())
    spec = iris_spec(path)
    folders = [prepare(spec, silent).folder]
    folders.append(prepare(spec.model_copy(update={"seed": 1}), silent).folder)
    folders.append(prepare(iris_spec(path, split={"train": 0.6, "validation": 0.2, "test": 0.2}), silent).folder)
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))
    folders.append(prepare(spec, silent).folder)
    write(path, iris()[::-1])
    folders.append(prepare(spec, silent).folder)
    assert len(set(folders)) == 5


def damage_by_cutting(folder: Path) -> None:
    file = folder / "train-00000.arrow"
    file.write_bytes(file.read_bytes()[:-100])


def damage_by_removing(folder: Path) -> None:
    (folder / "test-00000.arrow").unlink()


def damage_by_emptying(folder: Path) -> None:
    (folder / MANIFEST).write_text("")


def damage_by_half_writing(folder: Path) -> None:
    """What a killed process leaves: files, and no manifest yet."""
    (folder / MANIFEST).unlink()
    folder.rename(folder.with_name(f"{folder.name}.partial"))


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_removing, damage_by_emptying, damage_by_half_writing])
def test_what_is_damaged_is_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    spec = iris_spec(write(tmp_path / "iris.csv", iris()))
    prepared = prepare(spec, silent)
    expected = hashes(prepared)
    damage(prepared.folder)
    again = prepare(spec, silent)
    assert again.folder == prepared.folder
    assert hashes(again) == expected
    assert sorted(path.name for path in again.folder.iterdir()) == [MANIFEST, *sorted(expected)]
    assert [path.name for path in again.folder.parent.iterdir() if path.name.endswith(".partial")] == []


# Refusals


def with_faults(rows: list[dict[str, Any]], faults: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | faults.get(number, {}) for number, row in enumerate(rows)]


def test_invalid_rows_are_refused_counted_and_shown(tmp_path: Path) -> None:
    faults: dict[int, dict[str, Any]] = {
        3: {"sepal_length": None},
        40: {"species": None},
        41: {"sepal_width": None, "species": None},
        77: {"petal_width": None},
        100: {"petal_length": None},
        149: {"petal_length": None},
    }
    for ending in ("parquet", "jsonl"):
        text = refused(iris_spec(write(tmp_path / f"iris.{ending}", with_faults(iris(), faults))))
        assert text.startswith(
            "6 of 150 rows do not fit (row 3: sepal_length: a number is missing or NaN; "
            "row 40: species: the value is missing; row 41: sepal_width: a number is missing or NaN; "
            "row 77: petal_width: a number is missing or NaN; row 100: petal_length: a number is missing or NaN; ...)"
        ), text
        assert "invalid_rows" in text


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_words_in_a_column_of_numbers(tmp_path: Path, ending: str) -> None:
    rows = with_faults(iris(), {5: {"sepal_length": "five"}})
    if ending == "jsonl":
        rows = [row | {"sepal_length": str(row["sepal_length"])} for row in rows]
    text = refused(iris_spec(write(tmp_path / f"iris.{ending}", rows)))
    assert "1 of 150 rows do not fit (row 5: sepal_length: 'five' is no number)" in text


def test_invalid_rows_are_dropped_up_to_the_fraction(tmp_path: Path) -> None:
    faults: dict[int, dict[str, Any]] = {0: {"sepal_length": None}, 60: {"species": None}, 149: {"petal_width": None}}
    path = write(tmp_path / "iris.parquet", with_faults(iris(), faults))
    text = refused(iris_spec(path, invalid_rows={"action": "drop", "max_fraction": 0.019}))
    assert "3 of 150 rows do not fit" in text
    assert "at most 1.90% of the rows" in text
    said: list[str] = []
    prepared = prepare(iris_spec(path, invalid_rows={"action": "drop", "max_fraction": 0.02}), said.append)
    assert any(line.startswith("dropped 3 of 150 rows do not fit (row 0: sepal_length: ") for line in said), said
    numbers = np.concatenate([rows_of(prepared, split)[ROW] for split in SPLITS])
    assert sorted(numbers.tolist()) == [number for number in range(150) if number not in faults]
    assert prepared.manifest["source"]["dropped"] == 3


def test_missing_numbers_get_the_mean_of_the_training_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "iris.parquet", with_faults(iris(), {n: {"petal_width": None} for n in range(0, 150, 3)}))
    inputs = {"petal_width": {"type": "number", "missing": "mean"}}
    train = rows_of(prepare(iris_spec(path, inputs=inputs), silent), "train")
    filled = train["petal_width"][train[ROW] % 3 == 0]
    np.testing.assert_allclose(filled, 0, atol=1e-6)


def test_a_missing_column_is_named_beside_those_there_are(tmp_path: Path) -> None:
    for ending in ("parquet", "csv", "jsonl"):
        path = write(tmp_path / f"iris.{ending}", iris())
        inputs = {"petal_size": {"type": "number"}, "sepal_width": {"type": "number"}}
        text = refused(iris_spec(path, inputs=inputs, target={"column": "label", "type": "category"}))
        assert (
            f"the source {path} has no column 'petal_size' (data.inputs.petal_size), 'label' (data.target.column)"
            in text
        )
        assert f"one of its columns: {', '.join(FEATURES)}, species, note" in text
        text = refused(iris_spec(path, split={"stratify": "kind"}))
        assert "no column 'kind' (data.split.stratify)" in text


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_sources_that_are_not_there_or_empty(tmp_path: Path, ending: str) -> None:
    text = refused(iris_spec(tmp_path / f"none.{ending}"))
    assert "none" in text
    assert "does not exist or holds no file" in text
    assert "holds no file" in refused(iris_spec(f"{tmp_path}/*.{ending}"))
    (tmp_path / "empty").mkdir()
    assert "holds no file" in refused(iris_spec(tmp_path / "empty", ending))
    empty = tmp_path / f"empty.{ending}"
    empty.write_bytes(b"")
    text = refused(iris_spec(empty))
    assert "empty" in text
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(iris()).slice(0, 0), empty)
    elif ending == "csv":
        empty.write_text(",".join([*FEATURES, "species"]) + "\n")
    else:
        empty.write_text("\n\n")
    assert str(empty) in refused(iris_spec(empty))


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_damaged_file_is_refused(tmp_path: Path, ending: str, place: int) -> None:
    rows = iris()
    for number in range(2):
        path = write(tmp_path / f"part-{number}.{ending}", rows[number * 75 : number * 75 + 75])
        if number == place:
            whole = path.read_bytes()
            cut = len(whole) // 2
            path.write_bytes(whole[:cut] + (b"" if ending == "parquet" else b'"\x00\xff{' + whole[cut + 40 :]))
    text = refused(iris_spec(tmp_path, ending))
    assert text.startswith(f"{tmp_path}/part-{place}.{ending} is no readable {ending}: ")
    assert text.isprintable()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "iris.jsonl", iris())
    assert "parquet" in refused(iris_spec(path, "parquet"))
    assert "jsonl" in refused(iris_spec(write(tmp_path / "iris.csv", iris()), "jsonl"))


def test_ragged_json_lines(tmp_path: Path) -> None:
    rows = iris()
    for number in (0, 1, 10, 149):
        del rows[number]["sepal_width"]
    text = refused(iris_spec(write(tmp_path / "iris.jsonl", rows)))
    assert text.startswith("4 of 150 rows do not fit (row 0: sepal_width: a number is missing or NaN; row 1:")
    # The same when a whole file lacks the key, wherever it stands.
    for missing in (0, 1):
        folder = tmp_path / f"missing-{missing}"
        for number in range(2):
            part = iris()[number * 75 : number * 75 + 75]
            if number == missing:
                part = [{key: value for key, value in row.items() if key != "sepal_width"} for row in part]
            write(folder / f"part-{number}.jsonl", part)
        text = refused(iris_spec(folder, "jsonl"))
        assert "75 of 150 rows do not fit" in text or "no column 'sepal_width'" in text


def test_files_whose_types_differ(tmp_path: Path) -> None:
    """Whole numbers in one file and text in another are the same categories."""
    for number, kind in enumerate((int, str)):
        part = [row | {"species": kind(n % 3)} for n, row in enumerate(iris()[number * 75 : number * 75 + 75])]
        write(tmp_path / "jsonl" / f"part-{number}.jsonl", part)
        write(tmp_path / "parquet" / f"part-{number}.parquet", part)
    found = [prepare(iris_spec(tmp_path / ending, ending), silent) for ending in ("jsonl", "parquet")]
    assert found[0].target.classes == ["0", "1", "2"]
    assert hashes(found[0]) == hashes(found[1])


def test_classes(tmp_path: Path) -> None:
    rows = [row | {"part": ("train", "validation", "test")[number % 3]} for number, row in enumerate(iris())]
    test = [number for number, row in enumerate(rows) if row["part"] == "test"]
    split = {"column": "part"}
    path = write(tmp_path / "new.csv", with_faults(rows, {test[0]: {"species": "unheard"}}))
    text = refused(iris_spec(path, split=split))
    assert "the class 'unheard' of column species occurs in the test split only" in text
    path = write(tmp_path / "empty.parquet", with_faults(rows, {test[0]: {"species": ""}}))
    assert "the class '' of column species occurs in the test split only" in refused(iris_spec(path, split=split))
    path = write(tmp_path / "one.csv", [row | {"species": "same"} for row in rows])
    assert "only the class 'same' in column species; expected at least two classes" in refused(iris_spec(path))
    # A category input that only the test rows hold is refused as well, or gets the bucket.
    path = write(tmp_path / "input.csv", with_faults([row | {"city": "a"} for row in rows], {test[3]: {"city": "b"}}))
    for unknown in ("refuse", "bucket"):
        inputs = {"city": {"type": "category", "unknown": unknown}}
        spec = iris_spec(path, inputs=inputs, split=split)
        if unknown == "refuse":
            text = refused(spec)
            assert "city" in text
            assert "'b'" in text
            assert "unknown: bucket" in text
        else:
            codes = rows_of(prepare(spec, silent), "test")["city"].reshape(-1).tolist()
            assert codes.count(1) == 1


def test_stratifying_by_a_column_of_many_values(tmp_path: Path) -> None:
    rows = [row | {"id": number} for number, row in enumerate(iris())]
    text = refused(iris_spec(write(tmp_path / "iris.csv", rows), split={"stratify": "id"}))
    assert "150 different values in 150 rows" in text


def test_a_cluster_without_a_free_cpu_is_waited_for_in_words(tmp_path: Path) -> None:
    holder = ray.remote(num_cpus=8)(type("Holder", (), {"there": lambda self: True})).remote()
    ray.get(holder.there.remote())
    wait_until(lambda: ray.available_resources().get("CPU", 0) < 1)
    lines: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(prepare, iris_spec(write(tmp_path / "rows.csv", iris())), lines.append)
        try:
            wait_until(lambda: any("waiting for a CPU" in line for line in lines))
        finally:
            ray.kill(holder)
        assert making.result().num_rows("train") == 120
