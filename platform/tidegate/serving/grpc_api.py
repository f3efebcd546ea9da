"""The protocol's gRPC service on one endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from tidegate.protocol import InferRequest
from tidegate.serving import grpc_codec
from tidegate.serving.batching import Rows
from tidegate.serving.exchange import HttpError, explained, no_endpoint
from tidegate.serving.grpc_messages import message
from tidegate.serving.inference import Inference, Loaded, check_version


class GrpcApi:
    """An endpoint's grpc_server.Call is `call`."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def call(self, method: str, request: Any, headers: Mapping[bytes, bytes]) -> Any:
        if method in ("ServerLive", "ServerReady"):
            return message(f"{method}Response")(**{method.removeprefix("Server").lower(): True})
        name = request.model_name if method == "ModelInfer" else getattr(request, "name", "")
        if name != self._inference.name:
            raise no_endpoint(name)
        if method == "ModelInfer":
            return await self._infer(request, headers)
        if method == "ModelReady":
            loaded = self._inference.loaded
            return message("ModelReadyResponse")(ready=loaded is not None and _fits(request.version, loaded))
        self._inference.check(headers)
        loaded = self._inference.ready()
        check_version(request.version, loaded)
        signature, version = loaded.model.signature, str(loaded.version)
        if method == "ModelMetadata":
            return grpc_codec.metadata(name, version, signature)
        if method == "ModelConfig":
            return grpc_codec.config(name, signature, loaded.batcher.max_rows)
        if method == "ModelStatistics":
            return message("ModelStatisticsResponse")(model_stats=[await self._inference.statistics(loaded)])
        raise HttpError(HTTPStatus.NOT_IMPLEMENTED, f"an endpoint has no {method}")

    async def _infer(self, request: Any, headers: Mapping[bytes, bytes]) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def read(loaded: Loaded) -> InferRequest:
            check_version(request.model_version, loaded)
            return grpc_codec.parse_request(request, loaded.model.signature, max_rows=loaded.limits.rows)

        def write(loaded: Loaded, outputs: Rows, asked: InferRequest) -> Callable[[], None]:
            name, version = self._inference.name, str(loaded.version)
            response = grpc_codec.encode_response(name, version, loaded.model.signature, outputs, asked)
            return lambda: None if answer.done() else answer.set_result(response)

        def refuse(error: Exception) -> int:
            told = explained(error, "ModelInfer")
            if not answer.done():
                answer.set_exception(told)
            return int(told.status)

        cancel = self._inference.infer(headers, read, write, refuse, "grpc")
        try:
            return await answer
        except asyncio.CancelledError:
            if cancel is not None:
                cancel()
            raise


def _fits(version: str, loaded: Loaded) -> bool:
    return version in ("", str(loaded.version))
