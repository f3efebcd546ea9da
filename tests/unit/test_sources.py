"""Sources: which files, from where, in which order; folders of files; what is told of those that cannot be read."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from object_store import object_store, put
from prepare_alone import first_outputs
from tidegate.data import folders, sources
from tidegate.data.prepare import fingerprint
from tidegate.draft import draft
from tidegate.errors import DataError
from tidegate.spec import document, run
from tidegate.spec.data import Source
from tidegate.spec.run import Spec

Store = tuple[str, pafs.FileSystem]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as found:
        yield found


def rows(source: Source) -> list[dict[str, Any]]:
    files = sources.listing(source)
    # As a worker gets it.
    reader = pickle.loads(pickle.dumps(sources.Reader(source, sources.column_names(source, files))))  # noqa: S301
    return [row for table in reader.tables([(file.path, None) for file in files]) for row in table.to_pylist()]


def refused(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        rows(source)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    text = str(caught.value)
    assert text.isprintable()
    return text


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def spec_of(path: str) -> Spec:
    inputs = {"x": {"type": "number"}}
    data = {"source": {"path": path, "format": "csv"}, "inputs": inputs, "target": {"column": "y", "type": "number"}}
    return document.parse(Spec, {"name": "rows", "data": data, "model": {"type": "linear"}}, source="test")


# Folders of files


def test_the_rows_of_a_folder_of_texts(tmp_path: Path) -> None:
    fill(tmp_path, ["good/b.txt", "good/a.TXT", "bad/c.txt", "bad/notes.md", ".hidden/x.txt", "_old/y.txt"])
    found = rows(Source(path=str(tmp_path), format="text"))
    assert found == [
        {"text": b"bad/c.txt", "label": "bad", "path": "bad/c.txt"},
        {"text": b"good/a.TXT", "label": "good", "path": "good/a.TXT"},
        {"text": b"good/b.txt", "label": "good", "path": "good/b.txt"},
    ]
    assert [row["path"] for row in rows(Source(path=f"{tmp_path}/*/*.txt"))] == ["bad/c.txt", "good/b.txt"]
    assert [row["path"] for row in rows(Source(path=f"{tmp_path}/_*/*.txt"))] == ["_old/y.txt"]
    assert [row["label"] for row in rows(Source(path=f"file://{tmp_path}/g[no]od/*", format="text"))] == ["good"] * 2


def test_the_rows_of_a_folder_of_images_at_any_depth(tmp_path: Path) -> None:
    names = ["train/cat/1.png", "train/dog/2.jpg", "test/cat/3.jpeg", "test/dog/4.WEBP", "test/dog/4.txt"]
    fill(tmp_path, names)
    found = rows(Source(path=str(tmp_path), format="images"))
    assert [(row["label"], row["path"]) for row in found] == [
        ("cat", "test/cat/3.jpeg"),
        ("dog", "test/dog/4.WEBP"),
        ("cat", "train/cat/1.png"),
        ("dog", "train/dog/2.jpg"),
    ]
    assert found[0]["image"] == b"test/cat/3.jpeg"


def test_many_small_files_are_read_in_several_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, [f"{label}/{number:02}.txt" for label in "ab" for number in range(20)])
    monkeypatch.setattr(sources, "FILES_A_UNIT", 15)
    monkeypatch.setattr(folders, "FILES_A_TABLE", 4)
    source = Source(path=str(tmp_path), format="text")
    files = sources.listing(source)
    units = sources._units(pafs.LocalFileSystem(), files, "text")
    assert [len(unit) for unit in units] == [15, 15, 10]
    reader = sources.Reader(source, ["path", "label"])
    tables = [table for unit in units for table in reader.tables(unit)]
    assert max(len(table) for table in tables) == 4
    assert [path for table in tables for path in table.column("path").to_pylist()] == sorted(
        f"{label}/{number:02}.txt" for label in "ab" for number in range(20)
    )
    assert tables[0].column_names == ["label", "path"]


def test_rows_that_become_large_are_brought_to_their_form_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": range(10)}), path)
    source = Source(path=str(path))
    units = [json.dumps(unit) for unit in sources._units(pafs.LocalFileSystem(), sources.listing(source), "parquet")]
    seen: list[int] = []

    def convert(table: pa.Table) -> pa.Table:
        seen.append(len(table))
        return table

    read = sources.UnitReader(sources.Reader(source, ["x"]), convert, 4)
    parts = list(read(pa.table({"unit": units})))
    assert seen == [4, 4, 2]
    assert pa.concat_tables(parts).column("x").to_pylist() == list(range(10))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.txt", "good/b.txt"], "{root}/a.txt lies in no class's folder; expected a folder for each class"),
        (["good/2020/a.txt", "good/b.txt"], "{root}/good/2020/a.txt lies deeper than {root}/good/b.txt; expected one"),
        (["good/b.md"], "the source {root} does not exist or holds no file of format text"),
    ],
)
def test_folders_that_name_no_classes(tmp_path: Path, names: list[str], says: str) -> None:
    fill(tmp_path, names)
    assert says.format(root=tmp_path) in refused(Source(path=str(tmp_path), format="text"))


def test_a_row_is_named_by_its_file_where_it_has_one(tmp_path: Path) -> None:
    fill(tmp_path, ["good/a.txt", "bad/b.txt"])
    for kind, named in (("text", f"{tmp_path}/good/a.txt"), ("csv", "row 1")):
        source = Source(path=str(tmp_path), format=kind)  # type: ignore[arg-type]
        files = [sources.SourceFile(f"{tmp_path}/{name}", 1, 1) for name in ("bad/b.txt", "good/a.txt")]
        assert sources.place(source, files, 1) == named


# Paths


def test_a_name_with_the_signs_of_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].csv").write_text("x\n1\n")
    (tmp_path / "a1.csv").write_text("x\n2\n")
    assert rows(Source(path=f"{tmp_path}/a[1].csv")) == [{"x": "1"}]
    assert rows(Source(path=f"{tmp_path}/a?.csv")) == [{"x": "2"}]
    fill(tmp_path, ["of [them]/good/a.txt"])
    assert rows(Source(path=f"{tmp_path}/of [them]", format="text"))[0]["path"] == "good/a.txt"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("s3://b/x.csv?endpoint_override=localhost:1&scheme=http", "csv"),
        ("X.PARQUET", "parquet"),
        ("x.jsonl.gz", "jsonl"),
        ("photos/*/*.jpg", "images"),
        ("reviews/*/*.txt", "text"),
        ("part-?.csv", "csv"),
    ],
)
def test_the_format_is_told_by_the_ending(path: str, kind: str) -> None:
    assert Source(path=path).resolved_format() == kind


def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.csv").write_text("x\n1\n")
    for path in (tmp_path / "a.csv", tmp_path / "closed"):
        path.chmod(0)
    nobody = 65534
    is_root = os.geteuid() == 0
    for folder in [*tmp_path.parents][:3]:
        if is_root and folder.stat().st_uid == 0 and folder != Path("/tmp"):
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    try:
        if is_root:
            os.seteuid(nobody)
        assert f"{tmp_path}/a.csv may not be read by this user; give the user the right" in refused(
            Source(path=f"{tmp_path}/a.csv")
        )
        for path in (f"{tmp_path}/closed/a.csv", f"{tmp_path}/closed"):
            assert "may not be read by this user" in refused(Source(path=path, format="csv"))
    finally:
        if is_root:
            os.seteuid(0)
        (tmp_path / "closed").chmod(0o700)


# Object stores


def test_the_same_rows_from_a_store_as_from_a_disk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, files = store
    names = ["texts/good/a.txt", "texts/good/b b.txt", "texts/bad/[c].txt", "texts/.hidden/d.txt"]
    fill(tmp_path, names)
    for name in names:
        put(files, name, name.encode())
    here = rows(Source(path=f"{tmp_path}/texts", format="text"))
    options = f"?endpoint_override={address}&scheme=http"
    assert rows(Source(path=f"s3://acme/texts{options}", format="text")) == here
    assert len(here) == 3
    assert [row["path"] for row in rows(Source(path=f"s3://acme/texts/*/[ab]*.txt{options}"))] == [
        "good/a.txt",
        "good/b b.txt",
    ]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
    assert rows(Source(path="s3://acme/texts", format="text")) == here


@pytest.mark.parametrize("place", ["disk", "store"])
def test_changed_content_changes_the_fingerprint(store: Store, tmp_path: Path, place: str) -> None:
    """Of the same length, and within the second that a store rounds to."""
    address, files = store

    def write(content: bytes) -> None:
        if place == "store":
            put(files, "marks/a.csv", content)
        else:
            (tmp_path / "a.csv").write_bytes(content)

    root = f"s3://acme/marks?endpoint_override={address}&scheme=http" if place == "store" else str(tmp_path)
    spec, marks = spec_of(root), []
    for content in (b"x,y\n1,2\n", b"x,y\n3,4\n", b"x,y\n5,6\n"):
        write(content)
        marks.append(fingerprint(spec, sources.listing(spec.data.source)))
        assert fingerprint(spec, sources.listing(spec.data.source)) == marks[-1]
    assert len(set(marks)) == 3


def test_a_store_that_lacks_the_source_or_refuses(store: Store) -> None:
    address, files = store
    put(files, "there/a.csv", b"x\n1\n")
    options = f"?endpoint_override={address}&scheme=http"
    for path in ("s3://acme/none.csv", "s3://acme/there/*.jsonl", "s3://nowhere/a.csv"):
        text = refused(Source(path=path + options))
        assert f"the source {path} " in text
        assert "endpoint_override" not in text
    text = refused(Source(path=f"s3://somebody:secret@acme/none.csv{options}"))
    assert "secret" not in text
    assert "the source nowhere://acme/a.csv cannot be read: " in refused(Source(path="nowhere://acme/a.csv"))


def test_a_first_spec_of_images_in_a_store(store: Store, tmp_path: Path) -> None:
    address, files = store
    for number in range(20):
        sink = io.BytesIO()
        Image.new("L", (9, 7), 12 * number).save(sink, "PNG")
        put(files, f"photos/{'cat' if number % 2 else 'dog'}/{number}.png", sink.getvalue())
    uri = f"s3://acme/photos?endpoint_override={address}&scheme=http"
    found = draft(uri, tmp_path, name="photos")
    assert found.spec.data.source.path == uri
    assert found.spec.data.source.format == "images"
    assert "spec for s3://acme/photos, written" in found.text
    assert first_outputs(run.located(found.spec, tmp_path))["train"].shape == (16, 2)
