"""Batch inference on a local Ray: every row once and in order, whoever is killed on the way."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from filelock import FileLock
from PIL import Image

import tidegate as tg
from local_ray import local_ray
from tidegate import artifact, registry
from tidegate.data.prepared import Prepared
from tidegate.errors import ArtifactError, ClusterError, ConflictError, DataError, NotFoundError
from tidegate.loaded import Model
from tidegate.models.build import build
from tidegate.spec.run import Spec

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
ROWS, PART_ROWS, BATCH_ROWS = 4000, 160, 16
SLOW = """
import time
from torch import nn


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        time.sleep(0.02)
        return self.layer(x)
"""
COLUMNS: dict[str, Any] = {
    "x": {"type": "number", "length": 1, "missing": "refuse", "fill": [0], "shift": [0.5], "scale": [2.0]},
    "city": {"type": "category", "unknown": "refuse", "vocabulary": ["oslo", "rome"]},
}
PIXELS = {"type": "image", "shape": [2, 2, 1], "max_value": 16.0, "mean": [0.5], "deviation": [0.25]}


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with local_ray(cpus=4):
        folder = tmp_path_factory.mktemp("models")
        (folder / "slow_net.py").write_text(SLOW)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            import slow_net  # type: ignore[import-not-found]

            torch.manual_seed(3)
            tg.register(slow_net.Slow(), name="slow", example={"x": np.zeros((1, 2), np.float32)})
            sys.modules.pop("slow_net")
        register(folder / "towns", "towns", COLUMNS, {"x": {"type": "number"}, "city": {"type": "category"}})
        register(folder / "grey", "grey", {"image": PIXELS}, {"image": {"type": "image", "size": [2, 2]}})
        yield


def register(folder: Path, name: str, columns: dict[str, Any], inputs: dict[str, Any]) -> None:
    document = {
        "name": name,
        "data": {
            "source": {"path": "rows.csv"},
            "inputs": inputs,
            "target": {"column": "kind", "type": "category"},
        },
        "model": {"type": "linear"},
    }
    spec = Spec.model_validate(document)
    target = {"column": "kind", "state": {"type": "category", "classes": ["no", "yes"]}}
    prepared = Prepared(folder, {"columns": columns, "target": target})
    module = build(spec.model, prepared.features, prepared.target.feature, seed=5)
    digest = artifact.write(folder, spec, prepared, module.state_dict())
    registry.register(name, path=folder, digest=digest, run_id="", metrics={}, lineage={})


def model(ref: str) -> Model:
    version = registry.version(ref)
    return artifact.load(Path(version.path), version.digest)


def answers(folder: Path) -> list[dict[str, Any]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = [row for part in manifest["parts"] for row in pq.read_table(folder / part["name"]).to_pylist()]
    assert len(rows) == manifest["rows"]
    assert pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet"))).to_pylist() == rows
    assert not list(folder.glob(".*.partial"))
    return rows


def parts(folder: Path) -> dict[str, int]:
    """The finished parts, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("*.parquet"))}


def workers() -> list[int]:
    """The processes of this Ray in which a model is asked."""
    ours = f"TIDEGATE_HOME={os.environ['TIDEGATE_HOME']}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            is_worker = b"MapWorker" in (folder / "cmdline").read_bytes()
            if folder.name.isdigit() and is_worker and ours in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def flip(path: Path) -> None:
    """One bit of a value, whose file can still be opened."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    assert pq.read_metadata(path).num_rows


def wait_for(done: Any, what: str) -> None:
    deadline = time.monotonic() + 90
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_killed_workers_and_drivers_cost_what_they_had_begun(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(ROWS, 2)).astype(np.float32)
    pq.write_table(pa.table({"row": range(ROWS), "x": x.tolist()}), tmp_path / "rows.parquet", row_group_size=1000)
    out, planned = tmp_path / "out", -(-1000 // PART_ROWS) * 4
    line = [sys.executable, "jobs/predict.py", "slow@1", str(tmp_path / "rows.parquet"), "-o", str(out)]
    line += ["--workers", "2", "--part-rows", str(PART_ROWS), "--batch-rows", str(BATCH_ROWS)]
    address = ray.get_runtime_context().gcs_address
    job = subprocess.Popen(line, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": address}, stdout=subprocess.PIPE)
    try:
        wait_for(lambda: len(parts(out)) >= 3, "the first parts")
        first = workers()
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        seen = len(parts(out))
        wait_for(lambda: set(workers()) - set(first), "another worker in place of the killed one")
        wait_for(lambda: len(parts(out)) >= seen + 5, "parts after the worker was killed")
        assert job.poll() is None
    finally:
        job.kill()
        job.wait()
        assert job.stdout is not None
        job.stdout.close()
    wait_for(lambda: not workers(), "the end of the workers")
    before = parts(out)
    assert 8 <= len(before) < planned, "the job was killed in the middle"
    assert not (out / "manifest.json").exists()

    cut, changed, *kept = before
    os.truncate(out / cut, (out / cut).stat().st_size // 2)
    flip(out / changed)
    told: list[str] = []
    progress: list[tuple[int, int]] = []
    done = tg.predict_batch(
        "slow@1",
        tmp_path / "rows.parquet",
        out,
        part_rows=PART_ROWS,
        batch_rows=BATCH_ROWS,
        say=told.append,
        on_progress=lambda rows, total: progress.append((rows, total)),
    )
    assert told == [
        f"slow@1 on {ROWS} rows of {tmp_path}/rows.parquet in {planned} parts, {len(kept)} of them written before"
    ]
    assert len(progress) == planned - len(kept)
    assert progress[-1] == (ROWS, ROWS)
    after = parts(out)
    assert len(after) == planned
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}, "written once"
    assert after[cut] != before[cut]
    assert after[changed] != before[changed]
    rows = answers(out)
    assert [row["row"] for row in rows] == list(range(ROWS))
    assert [row["x"] for row in rows] == x.tolist()
    with torch.inference_mode():
        expected = model("slow").module.layer(torch.from_numpy(x)).numpy()  # type: ignore[operator,union-attr]
    np.testing.assert_allclose([row["predicted_output"] for row in rows], expected, rtol=1e-5, atol=1e-6)
    assert (done.rows, done.refused, len(done.parts)) == (ROWS, 0, planned)

    again = tg.predict_batch(
        "slow@1", tmp_path / "rows.parquet", out, part_rows=PART_ROWS, batch_rows=BATCH_ROWS, say=told.append
    )
    assert again == done
    assert parts(out) == after, "nothing is left to do"
    with pytest.raises(ConflictError, match="answers of slow@1 to another source, or with other options"):
        tg.predict_batch("slow@1", tmp_path / "rows.parquet", out, batch_rows=BATCH_ROWS, say=told.append)


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("x", "city"), *rows])


def test_rows_that_the_model_refuses(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    good = [(str(i / 7), "oslo" if i % 3 else "rome") for i in range(300)]
    write_csv(source / "a.csv", good)
    write_csv(source / "b.csv", [*good[:100], ("1", "atlantis"), ("much", "oslo"), *good[100:], ("1e300", "rome")])
    with pytest.raises(DataError, match=r"b\.csv, row 101: x: 'much' is no number; .*--invalid skip"):
        tg.predict_batch("towns", source, out, say=lambda line: None)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "plan.json"]
    with pytest.raises(ConflictError):
        tg.predict_batch("towns", source, out, invalid="skip", say=lambda line: None)

    skipped = tmp_path / "skipped"
    done = tg.predict_batch("towns", source, skipped, invalid="skip", batch_rows=32, say=lambda line: None)
    rows = answers(skipped)
    assert (done.rows, done.refused) == (603, 3)
    refused = {index: row["refused"] for index, row in enumerate(rows) if row["refused"] is not None}
    assert list(refused) == [400, 401, 602]
    assert "city holds 'atlantis'; expected one of oslo, rome" in refused[400]
    assert "x: 'much' is no number" in refused[401]
    assert "too large" in refused[602]
    for index in refused:
        assert (rows[index]["predicted_kind"], rows[index]["predicted_probabilities"]) == (None, None)
    kept = [row for index, row in enumerate(rows) if index not in refused]
    assert [(row["x"], row["city"]) for row in kept] == good * 2
    given = {"x": np.array([float(x) for x, _ in good]), "city": np.array([city for _, city in good], dtype=object)}
    expected = model("towns").predict(given)
    assert [row["predicted_kind"] for row in kept] == expected["kind"].tolist() * 2
    found = np.array([row["predicted_probabilities"] for row in kept], np.float32).reshape(2, 300, -1)
    np.testing.assert_allclose(found, np.stack([expected["probabilities"]] * 2), rtol=1e-5)


def test_images_are_seen_as_in_training(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for index in range(30):
        path = source / ("dark" if index < 15 else "light") / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), index * 8, np.uint8)).save(path)
    tg.predict_batch("grey", source, tmp_path / "out", part_rows=7, say=lambda line: None)
    rows = answers(tmp_path / "out")
    assert [row["path"] for row in rows] == [f"{'dark' if i < 15 else 'light'}/{i:02}.png" for i in range(30)]
    assert rows[0].keys() == {"label", "path", "predicted_kind", "predicted_probabilities"}
    pixels = (np.arange(30) * 8 * 16 / 255).astype(np.float32)
    expected = model("grey").predict({"image": np.broadcast_to(pixels[:, None, None, None], (30, 2, 2, 1))})
    np.testing.assert_allclose([row["predicted_probabilities"] for row in rows], expected["probabilities"], rtol=1e-5)
    assert len(parts(tmp_path / "out")) == 5
    (source / "light" / "29.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"light/29\.png: image: the bytes are no readable image"):
        tg.predict_batch("grey", source, tmp_path / "other", say=lambda line: None)


def test_json_lines_whose_types_differ_fit_one_schema(tmp_path: Path) -> None:
    lines = [{"x": i, "city": "oslo", "note": None if i < 50 else i if i < 70 else "late"} for i in range(90)]
    for name, some in (("a.jsonl", lines[:50]), ("b.jsonl", lines[50:])):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in some))
    tg.predict_batch("towns", f"{tmp_path}/*.jsonl", tmp_path / "out", part_rows=20, say=lambda line: None)
    rows = answers(tmp_path / "out")
    assert [row["x"] for row in rows] == list(range(90))
    assert [row["note"] for row in rows] == [None] * 50 + [str(i) for i in range(50, 70)] + ["late"] * 20
    assert len({str(pq.read_schema(path)) for path in (tmp_path / "out").glob("*.parquet")}) == 1


def test_what_cannot_be_started_says_so(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    write_csv(rows, [("1", "oslo")])

    def refused(kind: type[Exception], match: str, ref: str = "towns", source: Path = rows, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            tg.predict_batch(ref, source, tmp_path / "out", say=lambda line: None, **options)

    refused(NotFoundError, "towns has no version or alias '9'", ref="towns@9")
    refused(DataError, "does not exist", source=tmp_path / "none.csv")
    refused(DataError, "has no column image", ref="grey")
    refused(ClusterError, "no GPU", gpu=0.5)
    (tmp_path / "empty.csv").write_text("x,city\n")
    refused(DataError, "has no rows", source=tmp_path / "empty.csv")
    with FileLock(tmp_path / "out" / ".lock"):
        refused(ConflictError, "another run writes into")
    version = registry.version("towns")
    weights = Path(version.path) / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"no longer what was written")
    try:
        refused(ArtifactError, r"weights\.safetensors is not what was written")
    finally:
        weights.write_bytes(whole)
