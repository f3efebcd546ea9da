"""Every model type from a spec to an endpoint: what is answered to raw inputs is what the version itself answers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

import tidegate as tg
import tones
from live_runs import DIABETES, DIGITS, IMAGES, NUMERALS, SENTENCES, SPOTS, STROKES, TONES, on_disk, spec_of
from local_ray import quiet
from ports import free_port
from tidegate import artifact, cluster, connection, registry
from tidegate.cluster import LocalCluster
from tidegate.content import objects
from tidegate.errors import RequestError
from tidegate.protocol import HEADER_LENGTH, encode_request
from tidegate.transforms.base import Array

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
ROWS = 24
PICTURES = IMAGES["data"]
DOCUMENTS: dict[str, dict[str, Any]] = {
    "linear": DIABETES,
    "mlp": DIGITS,
    "cnn": IMAGES,
    "conv_attention": IMAGES | {"model": {"type": "conv_attention", "stem": [8], "width": 16, "heads": 2}},
    "rnn": STROKES,
    "forecast": SPOTS,
    "transformer": SENTENCES,
    "seq2seq": NUMERALS,
    "ctc": TONES,
}


@pytest.fixture(scope="module", name="local")
def _local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home / "tidegate"))
        patch.setenv("TIDEGATE_SERVE_PORT", str(port := free_port()))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        try:
            local = cluster.up(cpus=8, gpus=0, serve_port=port, auth="disabled")
            connection.connect()
            quiet()
            yield local
        finally:
            ray.shutdown()
            cluster.down()


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_an_endpoint_answers_raw_rows_as_its_version_does(local: LocalCluster, kind: str) -> None:
    document = DOCUMENTS[kind]
    spec = on_disk(spec_of(document, epochs=2))
    version = tg.train(spec.model_copy(update={"name": kind.replace("_", "-")}), follow=False).wait()
    # All of them stay up, and leave room for the runs.
    tg.deploy(tg.Endpoint(name=version.name, model=version.ref, replicas=tg.Replicas(cpu=0.25)))
    model = artifact.load(Path(registry.version(version.ref).path), version.digest)
    table = pq.read_table(spec.data.source.path).slice(0, ROWS)
    rows = [{name: table[name][row].as_py() for name in spec.data.inputs} for row in range(ROWS)]
    alone = [{name: one(value) for name, value in row.items()} for row in rows]
    with tg.Client(local.serve_url) as client:
        # At once, so that the replica puts requests into one pass.
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda row: client.predict(version.name, row), alone))
        for row, answer in zip(alone, answers, strict=True):
            expected = model.predict(shaped(model, row))
            assert answer.keys() == expected.keys()
            for name, array in expected.items():
                if array.dtype.kind == "f":
                    assert answer[name] == pytest.approx(array, rel=1e-5, abs=1e-5)
                else:
                    assert answer[name].tolist() == array.tolist()


def one(value: Any) -> Any:
    return objects([value]) if isinstance(value, bytes) else np.asarray([value])


def shaped(model: Any, row: dict[str, Any]) -> dict[str, Any]:
    """As the server hands a request on: in the signature's shapes, lists flat in the spec's data brought to them."""
    specs = {tensor.name: tensor for tensor in model.signature.inputs}
    return {
        name: values
        if values.dtype == object or -1 in specs[name].shape[1:]
        else values.reshape(len(values), *specs[name].shape[1:])
        for name, values in row.items()
    }


def test_an_image_is_answered_as_a_file_and_as_pixels(local: LocalCluster) -> None:
    name = "cnn"
    rows = pq.read_table(on_disk(spec_of(IMAGES)).data.source.path)["pixels"][:ROWS].to_pylist()
    shades = [np.rint(np.asarray(row).reshape(8, 8) * 255 / 16).astype(np.uint8) for row in rows]
    with tg.Client(local.serve_url) as client:
        (spec,) = client.metadata(name).signature.inputs
        assert spec.content == "image"
        pixels = np.stack(shades).reshape(ROWS, 8, 8, 1) * (16 / 255)
        expected = client.predict(name, {spec.name: pixels})
        files = [png(each) for each in shades]
        assert client.predict(name, {spec.name: files})["probabilities"] == pytest.approx(
            expected["probabilities"], abs=1e-5
        )
        for as_json in (True, False):
            body = encode_request({spec.name: files}, as_json=as_json)
            headers = {} if body.header_length is None else {HEADER_LENGTH: str(body.header_length)}
            url = f"{local.serve_url}/v2/models/{name}/infer"
            found = httpx.post(url, content=body.content, headers=headers, trust_env=False)
            assert found.status_code == 200, found.text
        with pytest.raises(RequestError, match="row 1: the bytes are no readable image"):
            client.predict(name, {spec.name: [files[0], b"rubbish"]})


def test_a_sound_is_answered_as_a_file_and_as_samples(local: LocalCluster) -> None:
    samples = tones.dialled("159")
    url = f"{local.serve_url}/v2/models/ctc/infer"
    sound = {"name": "sound", "shape": [1, len(samples)], "datatype": "FP32", "data": samples.tolist()}
    with tg.Client(local.serve_url) as client:
        expected = client.predict("ctc", {"sound": [tones.encoded(samples)]})["keys"].tolist()
        assert client.predict("ctc", {"sound": samples[None]})["keys"].tolist() == expected
        asked = {"inputs": [sound | {"parameters": {"sampling_rate": tones.RATE}}]}
        found = httpx.post(url, json=asked, trust_env=False).json()
        assert found["outputs"][0]["data"] == expected
        long = tones.encoded(tones.dialled("1" * 12))
        with pytest.raises(RequestError, match=r"the sound takes 1\.61 s, more than max_seconds 1"):
            client.predict("ctc", {"sound": [long]})


def png(shades: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(shades).save(file, "PNG")
    return file.getvalue()
