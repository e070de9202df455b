"""Errors of routing and replicas as HTTP errors in OpenAI's form."""

from fastapi.responses import JSONResponse
from ray.serve.exceptions import BackPressureError

from pipelines.core.errors import UserError
from serve_app.api.protocol import ApiError
from serve_app.engines.protocol import EngineFailure, RequestError
from serve_app.routing.names import UnknownModelError

_RETRY_AFTER_S = "1"


def error_response(error: ApiError) -> JSONResponse:
    """The response for an error; a temporary error gets a Retry-After header."""
    headers = {"Retry-After": _RETRY_AFTER_S} if error.status in (429, 503) else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def as_api_error(error: Exception) -> ApiError:
    """The HTTP error for an exception of the router or of a replica.

    404 for an unknown model, 400 for a request that the model cannot answer, 429 when too many
    requests wait, 500 when the model failed at this request, 503 when its replica is gone or has
    not started yet.
    """
    cause = getattr(error, "cause", error)
    if isinstance(cause, UnknownModelError):
        return ApiError(404, str(cause), "model_not_found", "model")
    if isinstance(cause, RequestError):
        return ApiError(400, cause.message, "invalid_value", cause.param)
    if isinstance(cause, BackPressureError):
        return ApiError(429, "too many requests are waiting; try again", "overloaded")
    if isinstance(cause, EngineFailure | UserError):
        return ApiError(500, f"the model failed to answer: {cause}", "internal_error")
    return ApiError(
        503, f"the model cannot be reached: {type(cause).__name__}; try again", "unavailable"
    )
