import orjson
import torch
from mlp import answer, make
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

model = make()


async def infer(request):
    body = orjson.loads(await request.body())
    with torch.inference_mode():
        y = model(torch.tensor(body["inputs"][0]["data"])).tolist()
    return Response(orjson.dumps(answer(y)), media_type="application/json")


app = Starlette(routes=[Route("/infer", infer, methods=["POST"])])
