"""The endpoint on Ray Serve: one ingress that speaks HTTP, one deployment for the base, one for each merged copy.

No postponed annotations here: Serve and FastAPI read the routes' annotations as they stand.
"""

import asyncio
import logging
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from pipelines.contracts import Endpoint, Progress, UserError
from pipelines.model.base import base_fingerprint
from pipelines.recipe import Recipe
from pipelines.registry import Registry
from pipelines.sections import ModelConfig, ServeConfig
from pipelines.storage import Store
from serve_app.engine import Delta, GenerationRequest, RequestError
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
from serve_app.routing import Route, Router, ServedModels

APP_NAME = "loraforge"
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
    """An error in OpenAI's shape; a 429 says when to come back."""
    headers = {"Retry-After": _RETRY_AFTER_S} if error.status == 429 else None
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


async def read_body(request: Request) -> bytes:
    """The body, read no further than one byte over the limit. Raises ApiError 413."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the body has more than {MAX_BODY_BYTES:,} bytes", "body_too_large")
    return body


def generation_request(asked: ChatRequest, route: Route) -> GenerationRequest:
    """What the engine is asked; OpenAI's defaults are temperature 1 and top_p 1."""
    return GenerationRequest(
        messages=[message.plain() for message in asked.messages],
        adapter=route.adapter,
        max_tokens=asked.token_limit,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=asked.seed,
        stop=asked.stops,
    )


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
            delta = await anext(rest)
    except RayTaskError as error:
        yield event(as_api_error(error).body())
        return
    yield event(chunk(request_id, model, {}, delta.finish_reason))
    if include_usage:
        yield event(usage_chunk(request_id, model, delta))
    yield event("[DONE]")


def as_api_error(error: RayTaskError | BackPressureError) -> ApiError:
    """A failure of a replica in HTTP's words: 400 for a request that cannot be answered, 429 when full, else 500."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, RequestError):
        return ApiError(400, cause.message, "invalid_value", cause.param)
    if isinstance(cause, BackPressureError):
        return ApiError(429, "too many requests are waiting; try again", "overloaded")
    return ApiError(500, f"the model failed to answer: {type(cause).__name__}", "internal_error")


# Last of the parts: Serve copies the API, and every function that its routes name, when it decorates the class.
@serve.ingress(api)
class Ingress:
    """HTTP in, JSON or server-sent events out."""

    def __init__(self, store_uri: str, served: ServedModels, base: DeploymentHandle, **merged: DeploymentHandle):
        self._router = Router(Registry(Store(store_uri)), served)
        self._base, self._merged = base, dict(zip(served.merged, merged.values(), strict=True))

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        return {"status": "ok", "engine": await self._base.stats.remote()}

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
        wanted = generation_request(asked, route)
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        if not asked.stream:
            try:
                answer = await handle.answer.remote(wanted)
            except (RayTaskError, BackPressureError) as error:
                raise as_api_error(error) from error
            return JSONResponse(completion(request_id, route.answers_as, answer))
        deltas: Any = handle.options(stream=True).stream.remote(wanted)
        try:
            first = await anext(deltas)  # so that a refused request is an HTTP error, not a broken stream
        except (RayTaskError, BackPressureError) as error:
            raise as_api_error(error) from error
        events = stream_events(request_id, route.answers_as, first, deltas, asked.include_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def served_models(recipe: Recipe, store: Store) -> ServedModels:
    """What the recipe's endpoint offers. Raises UserError for a name that is not in the registry or on another base."""
    registry = Registry(store)
    fingerprint = base_fingerprint(recipe.model.base, recipe.model.revision)
    merged = {}
    for name in dict.fromkeys([*recipe.serve.models, *recipe.serve.merged]):
        version = registry.get(f"{name}:{recipe.registry.alias}")
        if version.base_fingerprint != fingerprint:
            raise UserError(f"serve: {version.id} was trained on another base than model.base={recipe.model.base}")
        if name in recipe.serve.merged:
            merged[name] = version.id
    names = tuple(recipe.serve.models)
    base_name = recipe.serve.base_name or recipe.model.base.rstrip("/").rsplit("/", 1)[-1]
    return ServedModels(base_name, fingerprint, names, recipe.registry.alias, merged)


def run_endpoint(recipe: Recipe, store: Store, progress: Progress) -> Endpoint:
    """Deploy onto the running Ray, wait until every model answers, and return where.

    Raises UserError for models that are not there, a port in use, or a deployment that cannot start.
    """
    config, want = recipe.serve, recipe.resources
    served = served_models(recipe, store)
    # Importing ray.serve sets its logger to INFO: it shall say what "ray" may say, no more.
    logging.getLogger("ray.serve").setLevel(logging.getLogger("ray").getEffectiveLevel())
    port = config.port or free_port(config.host)
    if config.port and not is_free(config.host, config.port):
        raise UserError(f"serve.port={config.port}: in use on {config.host}; set another, or 0 for any free one")
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
    serve.start(http_options=HTTPOptions(host=config.host, port=port))
    try:
        serve.run(
            ingress.bind(store.uri, served, base, **copies),
            name=APP_NAME,
            route_prefix="/",
            logging_config={"enable_access_log": False, "log_level": "ERROR"},
        )
    except RuntimeError as error:
        raise UserError(f"serve: the endpoint did not start: {error}; -v shows the replica's log") from error
    models = tuple(Router(Registry(store), served).known())
    endpoint = Endpoint(f"http://{config.host}:{port}", models)
    progress.note(f"serve: {endpoint.url}/v1 answers as {', '.join(models)}")
    return endpoint


def stop_endpoint() -> None:
    """Take the endpoint down; running answers get their time to end."""
    serve.shutdown()


def free_port(host: str) -> int:
    """A TCP port that nothing on `host` listens to now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on that port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
