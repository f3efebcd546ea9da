"""`tidegate predict` against a real server: what is read, what is written, and what is left after a failure."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from http_endpoint import FIRST, Endpoint, send, serving, status
from tidegate.cli.progress import Progress
from tidegate.protocol import Body, Signature, TensorSpec

TIDEGATE = str(Path(sys.executable).parent / "tidegate")
PIXELS = Signature((TensorSpec("x", "FP32", (-1, 2, 2, 1)), TensorSpec("word", "BYTES", (-1,))), FIRST.outputs)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as endpoint:
        yield endpoint


def predict(
    endpoint: Endpoint, folder: Path, *arguments: str, given: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TIDEGATE_"))}
    environment = {**inherited, "HOME": str(folder), "TIDEGATE_HOME": str(folder / "kept"), **variables}
    line = [TIDEGATE, "predict", "m", *arguments, "--url", endpoint.url]
    done = subprocess.run(line, cwd=folder, env=environment, input=given, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(line, done.returncode, done.stdout.decode(), done.stderr.decode())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_clean(folder: Path) -> bool:
    """Whether no half-written file is left."""
    return not [path for path in folder.iterdir() if "partial" in path.name]


def table(rows: int) -> pa.Table:
    x = [[i, i + 0.5] for i in range(rows)]
    return pa.table({"id": range(rows), "x": x, "word": [f"w{i}" for i in range(rows)]})


def expected(rows: int) -> list[dict[str, Any]]:
    return [
        {**row, "predicted_total": 2 * row["id"] + 0.5, "predicted_echo": row["word"]}
        for row in table(rows).to_pylist()
    ]


def write(rows: int, path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table(rows), path, row_group_size=700)
    elif path.suffix == ".json":
        path.write_text(json.dumps(table(rows).to_pylist()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table(rows).to_pylist()))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.json"])
def test_each_row_comes_back_in_order_with_its_answers(endpoint: Endpoint, tmp_path: Path, name: str) -> None:
    write(12_000, tmp_path / name)
    done = predict(endpoint, tmp_path, name, "-o", "out.jsonl")
    assert (done.stdout, done.stderr) == ("wrote 12000 rows to out.jsonl\n", "")
    assert lines(tmp_path / "out.jsonl") == expected(12_000)
    assert max(endpoint.rows) <= 256
    assert is_clean(tmp_path)


@pytest.mark.parametrize("out", ["out.parquet", "out.csv", "out.jsonl"])
def test_what_was_read_is_written_as_it_stood(endpoint: Endpoint, tmp_path: Path, out: str) -> None:
    scalar = Signature((TensorSpec("x", "FP64", (-1,)), FIRST.inputs[1]), FIRST.outputs)
    endpoint.signature = scalar
    (tmp_path / "rows.csv").write_text('code,x,word\n007,1.50,"a,b"\n8,-2,\u00e9\n')
    assert predict(endpoint, tmp_path, "rows.csv", "-o", out).returncode == 0
    readers = {".csv": pa.csv.read_csv, ".parquet": pq.read_table}
    path = tmp_path / out
    found = readers[path.suffix](path).to_pylist() if path.suffix in readers else lines(path)
    assert [row["predicted_total"] for row in found] == [1.5, -2.0]
    assert [row["predicted_echo"] for row in found] == ["a,b", "é"]
    if path.suffix == ".csv":
        assert '"007","1.50"' in path.read_text()
    else:
        assert [(row["code"], row["x"]) for row in found] == [("007", "1.50"), ("8", "-2")]


def test_lines_on_standard_input_are_answered_as_they_come(endpoint: Endpoint, tmp_path: Path) -> None:
    given = "".join(json.dumps(row) + "\n" for row in table(3).to_pylist()).encode()
    done = predict(endpoint, tmp_path, "-", "-o", "-", given=given)
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected(3)
    assert predict(endpoint, tmp_path, "-", given=b"").stderr.startswith("error: standard input holds no row")
    shown = predict(endpoint, tmp_path, "-", given=given * 5)
    assert shown.stdout.count("\n") == 11
    assert shown.stdout.startswith('{"predicted_total": 0.5, "predicted_echo": "w0"}\n')
    assert shown.stdout.endswith("... and more rows; use -o to ask about all\n")


def test_a_preview_asks_about_no_more_than_it_shows(endpoint: Endpoint, tmp_path: Path) -> None:
    write(5000, tmp_path / "rows.parquet")
    assert predict(endpoint, tmp_path, "rows.parquet").returncode == 0
    assert sum(endpoint.rows) == 11


@pytest.mark.parametrize("pattern", ["pictures", "pictures/*/*.png", "flat", "flat/b.png"])
def test_folders_and_patterns_of_images(endpoint: Endpoint, tmp_path: Path, pattern: str) -> None:
    endpoint.signature = Signature((PIXELS.inputs[0],), FIRST.outputs[:1])
    endpoint.infer = summed(endpoint)  # type: ignore[method-assign]
    for name, white in {
        "pictures/cat/a.png": 255,
        "pictures/dog/b.png": 51,
        "flat/a.png": 255,
        "flat/b.png": 51,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), white, np.uint8)).save(path)
    done = predict(endpoint, tmp_path, pattern, "-o", "out.jsonl", "--white", "1")
    # On a slow machine it tells how far it is.
    assert all(line.endswith("rows/s") for line in done.stderr.splitlines())
    found = lines(tmp_path / "out.jsonl")
    labelled = [{"label": "cat", "path": "cat/a.png"}, {"label": "dog", "path": "dog/b.png"}]
    plain = [{"path": "a.png"}, {"path": "b.png"}]
    rows = labelled if "pictures" in pattern else plain[-1:] if "b.png" in pattern else plain
    sums = [4.0, pytest.approx(0.8)][-len(rows) :]
    assert found == [{**row, "predicted_total": total} for row, total in zip(rows, sums, strict=True)]


def summed(endpoint: Endpoint) -> Any:
    from tidegate import protocol

    def infer(body: bytes, headers: Any) -> Any:
        length = int(headers[protocol.HEADER_LENGTH])
        request = protocol.parse_request(body, endpoint.signature, max_rows=256, header_length=length)
        total = request.inputs["x"].sum(axis=(1, 2, 3))
        return 200, protocol.encode_response("m", "1", endpoint.signature, {"total": total}, request)

    return infer


def test_columns_that_collide_get_another_name_and_are_said(endpoint: Endpoint, tmp_path: Path) -> None:
    kept = table(2).append_column("predicted_echo", pa.array(["old", "old"]))
    pq.write_table(kept.append_column("predicted_echo_2", pa.array(["older"] * 2)), tmp_path / "rows.parquet")
    done = predict(endpoint, tmp_path, "rows.parquet", "-o", "out.jsonl")
    assert done.stderr == (
        "the answers of echo are in the column predicted_echo_3: there is a column predicted_echo already\n"
    )
    found = lines(tmp_path / "out.jsonl")[0]
    assert (found["predicted_echo"], found["predicted_echo_2"], found["predicted_echo_3"]) == ("old", "older", "w0")


@pytest.mark.parametrize("out", ["out.parquet", "out.csv", "out.jsonl"])
def test_a_failure_in_the_middle_leaves_what_was_there(endpoint: Endpoint, tmp_path: Path, out: str) -> None:
    write(3000, tmp_path / "rows.parquet")
    (tmp_path / out).write_text("of yesterday")
    asked = endpoint.infer

    def infer(body: bytes, headers: Any) -> Any:
        if sum(endpoint.rows) > 2000:
            endpoint.key = "closed"
        return asked(body, headers)

    endpoint.infer = infer  # type: ignore[method-assign]
    done = predict(endpoint, tmp_path, "rows.parquet", "-o", out)
    assert done.returncode == 2
    assert done.stderr == "error: no key of ours; pass api_key, or set TIDEGATE_API_KEY\n"
    assert (tmp_path / out).read_text() == "of yesterday"
    assert is_clean(tmp_path)


def test_a_row_that_does_not_fit_is_named(endpoint: Endpoint, tmp_path: Path) -> None:
    rows = table(10_000).to_pylist()
    rows[9500]["x"] = [1.0]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = predict(endpoint, tmp_path, "rows.jsonl", "-o", "out.jsonl")
    assert done.returncode == 2
    assert "rows.jsonl, row 9500: x: the list holds 1 numbers, not 2" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_that_the_endpoint_refuses_is_named(endpoint: Endpoint, tmp_path: Path) -> None:
    write(600, tmp_path / "rows.parquet")
    asked, refusal = endpoint.infer, Body(b'{"error": "word holds w431"}')
    endpoint.infer = lambda body, headers: (400, refusal) if b"w431" in body else asked(body, headers)  # type: ignore[method-assign]
    done = predict(endpoint, tmp_path, "rows.parquet", "-o", "out.csv")
    assert done.stderr == "error: rows.parquet, row 431: word holds w431\n"
    assert done.returncode == 2


def test_the_key_comes_from_the_option_or_the_variable(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.key = "tg_key"
    write(2, tmp_path / "rows.json")
    assert predict(endpoint, tmp_path, "rows.json", "--key", "tg_key").returncode == 0
    assert predict(endpoint, tmp_path, "rows.json", TIDEGATE_API_KEY="tg_key").returncode == 0
    refused = predict(endpoint, tmp_path, "rows.json", "--key", "tg_other", TIDEGATE_API_KEY="tg_key")
    assert (refused.returncode, refused.stderr) == (2, "error: no key of ours\n")


def test_a_missing_column_is_named_with_what_there_is(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("X,words\n1,a\n")
    done = predict(endpoint, tmp_path, "rows.csv")
    assert done.returncode == 2
    for part in ("rows.csv has no column x, word", "it has X, words", "did you mean 'X' (x), 'words' (word)?"):
        assert part in done.stderr
    assert endpoint.calls == ["GET /v2/models/m"]


@pytest.mark.parametrize("name", ["rows.xls", "rows", "rows.json", "rows.csv", "empty.csv"])
def test_what_holds_no_rows_is_one_line(endpoint: Endpoint, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.csv").write_text("x,word\n")
    done = predict(endpoint, tmp_path, name, "-o", "out.csv")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "data.source" not in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_rows_are_answered_before_all_have_been_read(endpoint: Endpoint, tmp_path: Path) -> None:
    line = [TIDEGATE, "predict", "m", "-", "-o", "-", "--url", endpoint.url]
    rows = "".join(json.dumps(row) + "\n" for row in table(1024).to_pylist()).encode()
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(5):
            process.stdin.write(rows)
        process.stdin.flush()
        try:
            answered, _, _ = select.select([process.stdout], [], [], 60)
            assert answered, "nothing came before the input's end"
            assert json.loads(process.stdout.readline()) == expected(1)[0]
        finally:
            process.stdin.close()
        assert process.stdout.read().count(b"\n") == 5 * 1024 - 1
    assert process.returncode == 0


def test_progress_is_told_of_long_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for out, told in ((io.StringIO(), "300 rows, 100 rows/s\n"), (Terminal(), "\r\x1b[K300 rows, 100 rows/s\r\x1b[K")):
        now[0] = 0.0
        with Progress(out=out) as progress:
            now[0] = 1.0
            progress.add(100)
            assert out.getvalue() == ""
            now[0] = 3.0
            progress.add(200)
            progress.add(1)
        assert out.getvalue() == told
    out = io.StringIO()
    now[0] = 0.0
    with Progress(out=out) as progress:
        now[0] = 4.0
        progress.reach(100, 300)
    assert out.getvalue() == "100 of 300 rows, 25 rows/s, 8 s left\n"


def test_a_busy_endpoint_is_waited_for(endpoint: Endpoint, tmp_path: Path) -> None:
    write(2, tmp_path / "rows.json")
    endpoint.faults = [status(503, Retry_After="0"), lambda handler: send(handler, 429, b"{}", Retry_After="0")]
    assert predict(endpoint, tmp_path, "rows.json", "-o", "out.csv").stdout == "wrote 2 rows to out.csv\n"
