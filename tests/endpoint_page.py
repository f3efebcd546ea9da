"""What the page about endpoints shows of clients, files and batches, as it stands, against an endpoint `net`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

PAGE = Path(__file__).parents[1] / "docs" / "endpoint.md"
ROWS = 300


def run(url: str, folder: Path) -> str:
    """What the page's Python blocks print; its shell lines for files have been run before, in `folder`."""
    text = PAGE.read_text().replace("http://127.0.0.1:8000", url)
    rows = np.random.default_rng(4).normal(size=(ROWS, 3)).astype(np.float32)
    table = pa.table({"id": range(ROWS), "measures": rows.tolist()})
    pq.write_table(table, folder / "rows.parquet")
    (folder / "rows.jsonl").write_text("".join(f'{{"measures": {row}}}\n' for row in rows[:3].tolist()))
    shown = shell(text, url, folder)
    assert shown.count("predicted_output") == 10 + 3
    assert "wrote 300 rows to answers.csv" in shown
    assert "wrote 300 rows to " in shown.partition("net@1 on 300 rows")[2]
    by_endpoint = pa.csv.read_csv(folder / "answers.csv")
    by_batch = pa.concat_tables(pq.read_table(path) for path in sorted((folder / "answers").glob("*.parquet")))
    assert by_endpoint.column("id").to_pylist() == by_batch.column("id").to_pylist() == list(range(ROWS))
    texts = by_endpoint.column("predicted_output").to_pylist()
    found = np.array([[float(item) for item in value.strip("[]").split(",")] for value in texts])
    assert np.allclose(found, by_batch.column("predicted_output").to_pylist(), rtol=1e-5, atol=1e-6)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks(text, "python"))],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shell(text: str, url: str, folder: Path) -> str:
    asked = ("tidegate predict", "tidegate batch")
    lines = [line for block in blocks(text, "bash") for line in block.splitlines() if line.startswith(asked)]
    assert len(lines) == 4
    script = "set -e\n" + "\n".join(line.replace("predict net", f"predict --url {url} net") for line in lines)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
