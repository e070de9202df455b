"""The ingress."""

import asyncio
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from pipelines.registry.registry import Registry
from pipelines.storage import Store
from serve_app.api.errors import error_response
from serve_app.api.protocol import (
    ApiError,
    ChatRequest,
    completion,
    parse_chat,
)
from serve_app.api.streaming import from_replica, read_body, stream_events
from serve_app.routing.names import Router, ServedModels

api = FastAPI(title="Loraforge", version="1", docs_url=None, redoc_url=None)


@api.exception_handler(ApiError)
async def _on_api_error(_: Request, error: ApiError) -> JSONResponse:
    return error_response(error)


@api.exception_handler(HTTPException)
async def _on_http_error(_: Request, error: HTTPException) -> JSONResponse:
    return error_response(
        ApiError(
            error.status_code, str(error.detail), "not_found" if error.status_code == 404 else None
        )
    )


@api.exception_handler(RequestValidationError)
async def _on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    return error_response(ApiError(400, str(error.errors()[0]["msg"]), "invalid_value"))


@api.exception_handler(Exception)
async def _on_bug(_: Request, error: Exception) -> JSONResponse:
    return error_response(
        ApiError(500, f"internal error: {type(error).__name__}", "internal_error")
    )


# Last of the parts: Serve copies the API, and every function that its routes name, when it decorates the class.
@serve.ingress(api)
class Ingress:
    """HTTP in, JSON or server-sent events out."""

    def __init__(
        self,
        store_uri: str,
        served: ServedModels,
        base: DeploymentHandle,
        **merged: DeploymentHandle,
    ):
        self._router = Router(Registry(Store(store_uri)), served)
        self._base, self._merged = base, dict(zip(served.merged, merged.values(), strict=True))

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        return {"status": "ok", "engine": await from_replica(self._base.stats.remote())}

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        known = await asyncio.to_thread(self._router.known)
        rows = [
            {"id": n, "object": "model", "created": 0, "owned_by": "loraforge", "root": r}
            for n, r in known.items()
        ]
        return {"object": "list", "data": rows}

    @api.get("/v1/models/{model:path}")
    async def model(self, model: str) -> dict[str, Any]:
        route = await asyncio.to_thread(self._router.resolve, model)
        return {
            "id": model,
            "object": "model",
            "created": 0,
            "owned_by": "loraforge",
            "root": route.answers_as,
        }

    @api.post(
        "/v1/chat/completions",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ChatRequest.model_json_schema()}},
            }
        },
        response_model=None,
    )
    async def chat(self, request: Request) -> JSONResponse | StreamingResponse:
        asked = parse_chat(await read_body(request))
        route = await asyncio.to_thread(self._router.resolve, asked.model)
        handle = self._merged[route.merged] if route.merged else self._base
        wanted = asked.generation(route.adapter)
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        if not asked.stream:
            answer = await from_replica(handle.answer.remote(wanted))
            return JSONResponse(completion(request_id, route.answers_as, answer))
        deltas: Any = handle.options(stream=True).stream.remote(wanted)
        first = await from_replica(
            anext(deltas)
        )  # so that a refused request is an HTTP error, not a broken stream
        events = stream_events(request_id, route.answers_as, first, deltas, asked.include_usage)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
