"""kserve's REST client on a running server, in a process of its own: its gRPC messages and tritonclient's clash.

`check_kserve.py HTTP_ADDRESS`.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from rows import DTYPES, values


async def kserve_rest() -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    base = f"http://{sys.argv[1]}"
    assert await client.is_server_live(base)
    assert await client.is_server_ready(base)
    assert await client.is_model_ready(base, "echo_fp32")
    for datatype in DTYPES:
        if datatype == "FP16":
            continue
        rows = values(datatype)
        for as_bytes in (False, True):
            tensor = InferInput("value", list(rows.shape), datatype)
            tensor.set_data_from_numpy(rows, binary_data=as_bytes)
            request = InferRequest(f"echo_{datatype.lower()}", [tensor], request_id="nine")
            answer = await client.infer(base, request, model_name=f"echo_{datatype.lower()}")
            assert answer.id == "nine"
            (output,) = answer.outputs
            np.testing.assert_array_equal(np.asarray(output.as_numpy()).reshape(rows.shape), rows)
    await client.close()
    print("all of it held: kserve InferenceRESTClient")


if __name__ == "__main__":
    asyncio.run(kserve_rest())
