"""The whole story on real digits, as a stranger lives it: an endpoint outlives its cluster."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from ports import free_port
from stranger import Stranger

pytestmark = pytest.mark.cluster


def test_an_endpoint_answers_like_plain_torch_and_outlives_its_cluster(stranger: Stranger) -> None:
    def quick(document: dict[str, Any]) -> None:
        document["train"] |= {"epochs": 12}
        document["evaluate"]["require"] = {"test.accuracy": {"at_least": 0.93}}

    stranger.run("python", "jobs/datasets/digits.py")
    spec = stranger.write_spec(quick)
    port = str(free_port())
    stranger.run("tidegate", "up", "--port", port)
    stranger.run("tidegate", "train", spec)
    pixels = source_of_test_rows(stranger)
    expected = plain_torch(stranger, pixels)
    url = f"http://127.0.0.1:{port}/v2/models/digits"
    np.testing.assert_allclose(ask(url, pixels), expected, atol=1e-5)

    stranger.run("tidegate", "down")
    stranger.run("tidegate", "up", "--port", port)
    wait_until_ready(url)
    np.testing.assert_allclose(ask(url, pixels), expected, atol=1e-5)

    rows = stranger.checkout / "rows.parquet"
    pq.write_table(pa.table({"pixels": list(pixels), "row": np.arange(len(pixels))}), rows)
    stranger.run("tidegate", "predict", "digits", "rows.parquet", "-o", "answers.parquet")
    answers = pq.read_table(stranger.checkout / "answers.parquet")
    assert answers.column("row").to_pylist() == list(range(len(pixels)))
    assert answers.column("predicted_label").to_pylist() == expected.argmax(axis=1).tolist()


def test_a_missed_requirement_is_registered_and_not_published(stranger: Stranger) -> None:
    def hopeless(document: dict[str, Any]) -> None:
        document["model"] = {"type": "linear"}
        document["train"] |= {"epochs": 1, "workers": {"min": 1, "max": 1}}

    stranger.run("python", "jobs/datasets/digits.py")
    spec = stranger.write_spec(hopeless)
    stranger.run("tidegate", "up", "--port", str(free_port()), "--auth", "disabled")
    done = stranger.run("tidegate", "train", spec, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert re.search(
        r"^error: digits@1 is registered but not published: test\.accuracy is 0\.\d+, required", done.stderr, re.M
    )
    assert re.search(r"^digits@1 +- ", stranger.run("tidegate", "models").stdout, re.MULTILINE)
    assert "no endpoints yet" in stranger.run("tidegate", "endpoints").stdout


def source_of_test_rows(stranger: Stranger) -> np.ndarray:
    """Pixels of the held-out rows, read with pyarrow alone."""
    (folder,) = (path for path in (stranger.kept / "prepared").iterdir() if path.is_dir())
    numbers = []
    for path in sorted(folder.glob("test-*.arrow")):
        with pa.memory_map(str(path)) as file:
            numbers += pa.ipc.open_file(file).read_all().column("__row").to_pylist()
    table = pq.read_table(stranger.kept / "data/digits.parquet").take(numbers)
    return np.asarray(table.column("pixels").to_pylist(), np.float32)


def plain_torch(stranger: Stranger, pixels: np.ndarray) -> np.ndarray:
    """Probabilities from the artifact's files, without tidegate."""
    (folder,) = (stranger.kept / "artifacts/digits").iterdir()
    document = json.loads((folder / "model.json").read_text())
    state = document["columns"]["pixels"]
    blocks: list[torch.nn.Module] = []
    channels, size = 1, 8
    for wanted in document["model"]["channels"]:
        blocks += [torch.nn.Conv2d(channels, wanted, 3, padding=1), torch.nn.ReLU()]
        channels = wanted
        if size > 2:
            blocks.append(torch.nn.MaxPool2d(2))
            size //= 2
    hidden = document["model"]["hidden"]
    net = torch.nn.ModuleDict(
        {
            "blocks": torch.nn.Sequential(*blocks),
            "head": torch.nn.Sequential(
                torch.nn.Flatten(),
                torch.nn.Identity(),
                torch.nn.Linear(channels * size * size, hidden),
                torch.nn.ReLU(),
                torch.nn.Identity(),
                torch.nn.Linear(hidden, 10),
            ),
        }
    )
    net.load_state_dict(load_file(folder / "weights.safetensors"))
    images = (torch.tensor(pixels).reshape(-1, 1, 8, 8) / state["max_value"] - state["mean"][0]) / state["deviation"][0]
    with torch.inference_mode():
        return net["head"](net["blocks"](images)).softmax(dim=1).numpy()


def ask(url: str, pixels: np.ndarray) -> np.ndarray:
    """Probabilities `[rows, 10]`, through plain JSON over HTTP."""
    tensor = {"name": "pixels", "shape": list(pixels.shape), "datatype": "FP32", "data": pixels.reshape(-1).tolist()}
    request = Request(f"{url}/infer", json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        outputs = {output["name"]: output for output in json.loads(response.read())["outputs"]}
    probabilities = np.asarray(outputs["probabilities"]["data"]).reshape(outputs["probabilities"]["shape"])
    assert outputs["label"]["data"] == probabilities.argmax(axis=1).tolist()
    return probabilities


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urlopen(f"{url}/ready", timeout=5) as response:
                assert json.loads(response.read())["ready"] is True
                return
        except (URLError, OSError):
            assert time.monotonic() < deadline, f"{url} did not come back"
            time.sleep(0.5)
