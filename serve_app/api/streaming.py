"""Reading request bodies, awaiting replicas, and streaming answers as server-sent events."""

from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve_app.api.errors import as_api_error
from serve_app.api.protocol import MAX_BODY_BYTES, ApiError, chunk, event, usage_chunk
from serve_app.engines.protocol import Delta

T = TypeVar("T")


async def read_body(request: Request) -> bytes:
    """The request's body. Raises ApiError 413 as soon as it is longer than MAX_BODY_BYTES."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(
                413, f"the body has more than {MAX_BODY_BYTES:,} bytes", "body_too_large"
            )
    return body


async def from_replica(answer: Awaitable[T]) -> T:
    """Await a replica's answer; raises ApiError for its errors.

    They are converted here and not in an exception handler of the API, because Serve replaces
    handlers for its own exceptions.
    """
    try:
        return await answer
    except (RayError, RayServeException) as error:
        raise as_api_error(error) from error


async def stream_events(
    request_id: str, model: str, first: Delta, rest: Any, include_usage: bool
) -> AsyncIterator[str]:
    """The events of one answer: role, pieces of text, finish reason, usage if requested, [DONE].

    An error after the start of the stream becomes an event with OpenAI's error body and ends it.
    """
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
