"""A client that openapi-python-client made of docs/openapi.yaml, on the endpoint of the page's examples.

`check_generated.py URL`. Prints what held, or a traceback.
"""

from __future__ import annotations

import sys

from tidegate_endpoints_client import Client
from tidegate_endpoints_client.api.endpoint import get_model, get_model_config, get_model_ready, get_model_statistics
from tidegate_endpoints_client.api.endpoint import infer as infer_any
from tidegate_endpoints_client.api.repository import load_model
from tidegate_endpoints_client.api.server import get_index, get_live, get_ready, get_server, list_models
from tidegate_endpoints_client.api.version import infer_version
from tidegate_endpoints_client.models import Datatype, Error, IndexItemState, InferenceRequest, InputTensor

client = Client(base_url=sys.argv[1])
assert get_live.sync(client=client).live
assert get_ready.sync(client=client).ready
assert get_server.sync(client=client).name == "tidegate"
assert {"net": True}.items() <= {each.name: each.ready for each in list_models.sync(client=client).models}.items()
assert {each.state for each in get_index.sync(client=client)} == {IndexItemState.READY}
assert get_model_ready.sync("net", client=client).ready
assert [(each.datatype, each.shape) for each in get_model.sync("net", client=client).inputs] == [
    (Datatype.FP32, [-1, 3])
]
assert get_model_config.sync("net", client=client).input_[0].dims == [3]

tensor = InputTensor(name="measures", datatype=Datatype.FP32, shape=[2, 3], data=[1.5, 2, 3, 4, 5, 6])
request = InferenceRequest(inputs=[tensor], id="seven")
before = get_model_statistics.sync("net", client=client).model_stats[0].inference_count
answer = infer_any.sync("net", client=client, body=request)
assert (answer.id, answer.outputs[0].shape, answer.outputs[0].data) == ("seven", [2, 2], [1.5, 2, 4, 5])
detailed = infer_version.sync_detailed("net", "1", client=client, body=request, x_request_id="eight")
assert detailed.parsed == answer
assert detailed.headers["x-request-id"] == "eight"
assert get_model_statistics.sync("net", client=client).model_stats[0].inference_count == before + 4

refused = infer_version.sync_detailed("net", "77", client=client, body=request)
assert (refused.status_code, type(refused.parsed)) == (404, Error)
assert "version 1 is" in refused.parsed.error
assert load_model.sync_detailed("net", client=client).status_code == 401
print("all of it held: openapi-python-client")
