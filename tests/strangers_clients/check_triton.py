"""Every call of tritonclient, over http and grpc, on a running server, as its users write them.

Runs in a virtual environment of the client's own: `check_triton.py HTTP_ADDRESS GRPC_ADDRESS`. Prints what it
checked, or a traceback. Endpoints: `echo_<datatype>` (echo_net.py) and `words` (text in, category out).
"""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from rows import DTYPES, values
from tritonclient.utils import InferenceServerException

HTTP, GRPC = sys.argv[1:3]
done: list[str] = []


def expect(error: type[Exception], words: str, call, *args, **kwargs) -> None:
    told = ""
    try:
        call(*args, **kwargs)
    except error as found:
        told = str(found)
    assert words in told, f"{words!r} is not in {told!r}"


def both(client, module, is_http: bool) -> None:
    kind = "http" if is_http else "grpc"
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo_fp32")
    assert client.is_model_ready("echo_fp32", "1")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("echo_fp32", "77")
    told = client.get_server_metadata() if is_http else client.get_server_metadata(as_json=True)
    assert told["name"] == "tidegate"
    assert "binary_tensor_data" in told["extensions"]
    model = client.get_model_metadata("echo_fp32") if is_http else client.get_model_metadata("echo_fp32", as_json=True)
    assert model["versions"] == ["1"]
    assert model["inputs"][0]["datatype"] == "FP32"
    assert [int(size) for size in model["inputs"][0]["shape"]] == [-1, 3]
    config = client.get_model_config("echo_fp32") if is_http else client.get_model_config("echo_fp32", as_json=True)
    config = config if is_http else config["config"]
    assert config["max_batch_size"] == 64
    assert config["input"][0]["data_type"] in ("TYPE_FP32", 11)
    index = client.get_model_repository_index()
    names = [entry["name"] for entry in index] if is_http else [entry.name for entry in index.models]
    assert names == sorted([*(f"echo_{datatype.lower()}" for datatype in DTYPES), "words"])
    for datatype in DTYPES:
        echo(client, module, datatype, is_http)
    words(client, module, is_http)
    before = executed(client, is_http)
    echo(client, module, "FP32", is_http, options={"request_id": "seven"})
    assert executed(client, is_http) > before
    refusals(client, module, is_http)
    done.append(f"tritonclient.{kind}")


def executed(client, is_http: bool) -> int:
    stats = client.get_inference_statistics("echo_fp32")
    return stats["model_stats"][0]["inference_count"] if is_http else stats.model_stats[0].inference_count


def echo(client, module, datatype: str, is_http: bool, options: dict | None = None) -> None:
    rows = values(datatype)
    name = f"echo_{datatype.lower()}"
    # FP16 has no JSON form.
    forms = [(True, True), (True, False), (False, True), (False, False)]
    if not is_http or datatype == "FP16":
        forms = [(True, True)]
    for binary_in, binary_out in forms:
        tensor = module.InferInput("value", list(rows.shape), datatype)
        if is_http:
            tensor.set_data_from_numpy(rows, binary_data=binary_in)
            asked = module.InferRequestedOutput("echoed", binary_data=binary_out)
        else:
            tensor.set_data_from_numpy(rows)
            asked = module.InferRequestedOutput("echoed")
        answer = client.infer(name, [tensor], outputs=[asked], model_version="1", **(options or {}))
        found = answer.as_numpy("echoed")
        # No version computes in half floats: they are taken, and answered in single ones.
        assert found.dtype == (np.float32 if datatype == "FP16" else rows.dtype), (datatype, found.dtype)
        np.testing.assert_array_equal(found, rows)
        if options:
            told = answer.get_response()
            assert (told["id"] if is_http else told.id) == options["request_id"]
    plain = module.InferInput("value", list(rows.shape), datatype)
    plain.set_data_from_numpy(rows)
    np.testing.assert_array_equal(client.infer(name, [plain]).as_numpy("echoed"), rows)


def words(client, module, is_http: bool) -> None:
    texts = np.array(["good film", "bad film", "Grüße, 世界", ""], dtype=object)
    forms = [(True, True), (False, False), (True, False)] if is_http else [(True, True)]
    seen = []
    for binary_in, binary_out in forms:
        tensor = module.InferInput("text", [4], "BYTES")
        if is_http:
            tensor.set_data_from_numpy(texts, binary_data=binary_in)
            asked = [module.InferRequestedOutput("label", binary_data=binary_out)]
        else:
            tensor.set_data_from_numpy(texts)
            asked = [module.InferRequestedOutput("label")]
        found = client.infer("words", [tensor], outputs=asked).as_numpy("label")
        seen.append([text.decode() if isinstance(text, bytes) else text for text in found.tolist()])
    assert all(labels == seen[0] for labels in seen)
    assert set(seen[0]) <= {"good", "bad"}


def refusals(client, module, is_http: bool) -> None:
    tensor = module.InferInput("value", [2, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((2, 4), np.float32))
    expect(InferenceServerException, "shape", client.infer, "echo_fp32", [tensor])
    tensor = module.InferInput("other", [2, 3], "FP32")
    tensor.set_data_from_numpy(np.zeros((2, 3), np.float32))
    expect(InferenceServerException, "no input", client.infer, "echo_fp32", [tensor])
    tensor = module.InferInput("value", [2, 3], "FP32")
    tensor.set_data_from_numpy(np.full((2, 3), np.nan, np.float32))
    expect(InferenceServerException, "finite", client.infer, "echo_fp32", [tensor])
    tensor.set_data_from_numpy(np.zeros((2, 3), np.float32))
    expect(InferenceServerException, "no endpoint", client.infer, "nobody", [tensor])
    expect(InferenceServerException, "version", client.infer, "echo_fp32", [tensor], model_version="9")
    expect(InferenceServerException, "no endpoint", client.get_model_metadata, "nobody")


def triton_over_http() -> None:
    client = triton_http.InferenceServerClient(HTTP, concurrency=4)
    both(client, triton_http, True)
    rows = values("FP32")
    tensor = triton_http.InferInput("value", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    for packing in ("gzip", "deflate"):
        answer = client.infer(
            "echo_fp32", [tensor], request_compression_algorithm=packing, response_compression_algorithm=packing
        )
        np.testing.assert_array_equal(answer.as_numpy("echoed"), rows)
    big = np.arange(3072, dtype=np.float32).reshape(1024, 3)
    tensor = triton_http.InferInput("value", [1024, 3], "FP32")
    tensor.set_data_from_numpy(big)
    answer = client.infer("echo_fp32", [tensor], response_compression_algorithm="gzip")
    np.testing.assert_array_equal(answer.as_numpy("echoed"), big)
    pending = [client.async_infer("echo_fp32", [tensor]) for _ in range(8)]
    for one in pending:
        np.testing.assert_array_equal(one.get_result().as_numpy("echoed"), big)
    client.close()
    done.append("compression and async_infer")


def triton_over_grpc() -> None:
    with triton_grpc.InferenceServerClient(GRPC) as client:
        both(client, triton_grpc, False)


if __name__ == "__main__":
    triton_over_http()
    triton_over_grpc()
    print(f"all of it held: {', '.join(done)}")
