"""The endpoint on Ray Serve: one ingress that speaks HTTP, one deployment for the base, one for each merged copy.

No postponed annotations here: Serve and FastAPI read the routes' annotations as they stand.
"""

import asyncio
import logging
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from pipelines.contracts import Endpoint, Progress, UserError
from pipelines.recipe import Recipe
from pipelines.registry import Registry
from pipelines.sections import ModelConfig, ServeConfig
from pipelines.storage import Store
from serve_app.config import app_name, choose_port, served_models
from serve_app.engine import Delta, EngineFailure, GenerationRequest, RequestError
from serve_app.protocol import (
    MAX_BODY_BYTES,
    ApiError,
    ChatRequest,
    chunk,
    completion,
    event,
    parse_chat,
    usage_chunk,
)
from serve_app.routing import Router, ServedModels

T = TypeVar("T")
_RETRY_AFTER_S = "1"
api = FastAPI(title="Loraforge", version="1", docs_url=None, redoc_url=None)


class EngineReplica:
    """One process with one model: the base, or a merged copy when `version_id` is given."""

    def __init__(self, model: ModelConfig, config: ServeConfig, store_uri: str, cpus: float, version_id: str | None):
        import torch

        from pipelines.chat import ChatRenderer
        from pipelines.model.base import load_base
        from pipelines.model.merge import merge_adapter
        from serve_app.engines.transformers import TransformersEngine

        if not torch.cuda.is_available():
            torch.set_num_threads(max(1, int(cpus)))
        registry = Registry(Store(store_uri))

        def fetch(name: str) -> Path:
            return registry.adapter_dir(registry.get(name))

        loaded = merge_adapter(model, fetch(version_id)) if version_id else load_base(model)
        renderer = ChatRenderer.load(model.base, model.revision)
        self._engine = TransformersEngine(loaded, renderer, config, lambda adapter: fetch(adapter.version_id))

    async def answer(self, request: GenerationRequest) -> Delta:
        """The whole answer at once."""
        async for delta in self._engine.generate(request, stream=False):
            return delta
        raise AssertionError("the engine ended without an answer")

    async def stream(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        async for delta in self._engine.generate(request, stream=True):
            yield delta

    async def stats(self) -> dict[str, int]:
        return self._engine.stats()

    def check_health(self) -> None:
        if not self._engine.alive:
            raise RuntimeError("the engine's thread has died")


def error_response(error: ApiError) -> JSONResponse:
    """An error in OpenAI's shape; one that may pass says when to come back."""
    headers = {"Retry-After": _RETRY_AFTER_S} if error.status in (429, 503) else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


@api.exception_handler(ApiError)
async def _on_api_error(_: Request, error: ApiError) -> JSONResponse:
    return error_response(error)


@api.exception_handler(HTTPException)
async def _on_http_error(_: Request, error: HTTPException) -> JSONResponse:
    return error_response(
        ApiError(error.status_code, str(error.detail), "not_found" if error.status_code == 404 else None)
    )


@api.exception_handler(RequestValidationError)
async def _on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    return error_response(ApiError(400, str(error.errors()[0]["msg"]), "invalid_value"))


@api.exception_handler(Exception)
async def _on_bug(_: Request, error: Exception) -> JSONResponse:
    return error_response(ApiError(500, f"internal error: {type(error).__name__}", "internal_error"))


async def read_body(request: Request) -> bytes:
    """The body, read no further than one byte over the limit. Raises ApiError 413."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body has more than {MAX_BODY_BYTES:,} bytes", "body_too_large")
    return body


async def from_replica(answer: Awaitable[T]) -> T:
    """A replica's answer. Raises ApiError; Serve overrides any exception handler of the API for its own errors."""
    try:
        return await answer
    except (RayError, RayServeException) as error:
        raise as_api_error(error) from error


async def stream_events(
    request_id: str, model: str, first: Delta, rest: Any, include_usage: bool
) -> AsyncIterator[str]:
    """Chunks of one answer: role, text pieces, finish reason, usage when asked for, and the closing mark."""
    yield event(chunk(request_id, model, {"role": "assistant", "content": ""}))
    delta = first
    try:
        while True:
            if delta.text:
                yield event(chunk(request_id, model, {"content": delta.text}))
            if delta.finish_reason:
                break
            delta = await from_replica(anext(rest))
    except ApiError as error:
        yield event(error.body())
        return
    yield event(chunk(request_id, model, {}, delta.finish_reason))
    if include_usage:
        yield event(usage_chunk(request_id, model, delta))
    yield event("[DONE]")


def as_api_error(error: Exception) -> ApiError:
    """A failure of a replica in HTTP's words.

    400 for a request that this model cannot answer, 429 when too many wait, 500 when the model failed at this one, 503
    when its replica is gone or not there yet.
    """
    cause = getattr(error, "cause", error)
    if isinstance(cause, RequestError):
        return ApiError(400, cause.message, "invalid_value", cause.param)
    if isinstance(cause, BackPressureError):
        return ApiError(429, "too many requests are waiting; try again", "overloaded")
    if isinstance(cause, EngineFailure | UserError):
        return ApiError(500, f"the model failed to answer: {cause}", "internal_error")
    return ApiError(503, f"the model cannot be reached: {type(cause).__name__}; try again", "unavailable")


# Last of the parts: Serve copies the API, and every function that its routes name, when it decorates the class.
@serve.ingress(api)
class Ingress:
    """HTTP in, JSON or server-sent events out."""

    def __init__(self, store_uri: str, served: ServedModels, base: DeploymentHandle, **merged: DeploymentHandle):
        self._router = Router(Registry(Store(store_uri)), served)
        self._base, self._merged = base, dict(zip(served.merged, merged.values(), strict=True))

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        return {"status": "ok", "engine": await from_replica(self._base.stats.remote())}

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        known = await asyncio.to_thread(self._router.known)
        rows = [
            {"id": n, "object": "model", "created": 0, "owned_by": "loraforge", "root": r} for n, r in known.items()
        ]
        return {"object": "list", "data": rows}

    @api.get("/v1/models/{model:path}")
    async def model(self, model: str) -> dict[str, Any]:
        route = await asyncio.to_thread(self._router.resolve, model)
        return {"id": model, "object": "model", "created": 0, "owned_by": "loraforge", "root": route.answers_as}

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
        first = await from_replica(anext(deltas))  # so that a refused request is an HTTP error, not a broken stream
        events = stream_events(request_id, route.answers_as, first, deltas, asked.include_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def run_endpoint(recipe: Recipe, store: Store, progress: Progress) -> Endpoint:
    """Deploy onto the running Ray, wait until every model answers, and return where.

    The endpoint of a recipe of this name is replaced, those of others stay; a Serve that runs already keeps its host and
    port. Raises UserError for models that are not there, a port or path in use, or a deployment that cannot start.
    """
    config, want = recipe.serve, recipe.resources
    served = served_models(recipe, store)
    # Importing ray.serve sets its logger to INFO: it shall say what "ray" may say, no more.
    logging.getLogger("ray.serve").setLevel(logging.getLogger("ray").getEffectiveLevel())
    url = _listen(config)
    model = recipe.model
    engine = serve.deployment(EngineReplica).options(
        num_replicas=config.replicas,
        max_ongoing_requests=2 * config.max_batch,
        max_queued_requests=config.max_queued,
        graceful_shutdown_timeout_s=60,
        ray_actor_options={"num_cpus": want.serve_cpus, "num_gpus": want.serve_gpus},
    )
    copies = {
        f"merged{i}": engine.options(name=f"{name}-merged").bind(model, config, store.uri, want.serve_cpus, version_id)
        for i, (name, version_id) in enumerate(served.merged.items())
    }
    ingress = serve.deployment(Ingress).options(max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0})
    base = engine.options(name="base").bind(model, config, store.uri, want.serve_cpus, None)
    try:
        serve.run(
            ingress.bind(store.uri, served, base, **copies),
            name=app_name(recipe),
            route_prefix=config.path,
            logging_config={"enable_access_log": False, "log_level": "ERROR"},
        )
    except RayServeException as error:
        raise UserError(
            f"serve.path={config.path}: another application on this cluster answers there; set serve.path to another "
            f"one, such as /{recipe.name}, or stop that application"
        ) from error
    except RuntimeError as error:
        raise UserError(f"serve: the endpoint did not start: {error}; -v shows the replica's log") from error
    endpoint = Endpoint(f"{url}{config.path.rstrip('/')}", tuple(Router(Registry(store), served).known()))
    check_answers(endpoint)
    progress.note(f"serve: {endpoint.url}/v1 answers as {', '.join(endpoint.models)}")
    return endpoint


def _listen(config: ServeConfig) -> str:
    """Where Serve listens; it is started when it does not run yet."""
    if not serve.status().proxies:
        serve.start(http_options=HTTPOptions(host=config.host, port=choose_port(config)))
    client = _get_global_client()
    assert client is not None
    return f"http://{client.http_config.host}:{client.http_config.port}"


def check_answers(endpoint: Endpoint) -> None:
    """Raise UserError when nothing answers at the address."""
    try:
        with urllib.request.urlopen(f"{endpoint.url}/healthz", timeout=30) as reply:
            reply.read()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"{endpoint.url} does not answer ({error}); if Ray Serve was already running on this cluster for other "
            "hosts, stop it with `serve shutdown` and give the same command again"
        ) from error


def stop_endpoint(recipe: Recipe) -> None:
    """Take a recipe's endpoint down; running answers get their time to end. Other applications on the cluster stay."""
    serve.delete(app_name(recipe))
    if not serve.status().applications:
        serve.shutdown()
