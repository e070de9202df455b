"""The ingress: HTTP routes, and which error of which part becomes which response."""

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
from serve_app.api.errors import as_api_error, error_response
from serve_app.api.protocol import ApiError, ChatRequest, completion, parse_chat
from serve_app.api.streaming import from_replica, read_body, stream_events
from serve_app.routing.names import Router, ServedModels, UnknownModelError

api = FastAPI(title="Loraforge", version="1", docs_url=None, redoc_url=None)


@api.exception_handler(ApiError)
async def _on_api_error(_: Request, error: ApiError) -> JSONResponse:
    return error_response(error)


@api.exception_handler(UnknownModelError)
async def _on_unknown_model(_: Request, error: UnknownModelError) -> JSONResponse:
    return error_response(as_api_error(error))


@api.exception_handler(HTTPException)
async def _on_http_error(_: Request, error: HTTPException) -> JSONResponse:
    code = "not_found" if error.status_code == 404 else None
    return error_response(ApiError(error.status_code, str(error.detail), code))


@api.exception_handler(RequestValidationError)
async def _on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    return error_response(ApiError(400, str(error.errors()[0]["msg"]), "invalid_value"))


@api.exception_handler(Exception)
async def _on_bug(_: Request, error: Exception) -> JSONResponse:
    return error_response(
        ApiError(500, f"internal error: {type(error).__name__}", "internal_error")
    )


def _model(name: str, root: str) -> dict[str, Any]:
    """A model in OpenAI's form; `root` is the immutable id behind the name."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "loraforge", "root": root}


# `serve.ingress` pickles the API by value at this point, so every handler must be defined above.
@serve.ingress(api)
class Ingress:
    """Answers HTTP requests with JSON or server-sent events."""

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
        names = await asyncio.to_thread(self._router.names)
        return {"object": "list", "data": [_model(name, root) for name, root in names.items()]}

    @api.get("/v1/models/{model:path}")
    async def model(self, model: str) -> dict[str, Any]:
        route = await asyncio.to_thread(self._router.resolve, model)
        return _model(model, route.answers_as)

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
        chat = parse_chat(await read_body(request))
        route = await asyncio.to_thread(self._router.resolve, chat.model)
        handle = self._merged[route.merged] if route.merged else self._base
        generation = chat.generation(route.adapter)
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        if not chat.stream:
            answer = await from_replica(handle.answer.remote(generation))
            return JSONResponse(completion(request_id, route.answers_as, answer))
        deltas: Any = handle.options(stream=True).stream.remote(generation)
        # Wait for the first delta, so that a refused request gets an HTTP error and no stream.
        first = await from_replica(anext(deltas))
        events = stream_events(request_id, route.answers_as, first, deltas, chat.include_usage)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
