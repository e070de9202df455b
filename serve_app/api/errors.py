"""Errors."""

from fastapi.responses import JSONResponse
from ray.serve.exceptions import BackPressureError

from pipelines.core.errors import UserError
from serve_app.api.protocol import ApiError
from serve_app.engines.protocol import EngineFailure, RequestError

_RETRY_AFTER_S = "1"


def error_response(error: ApiError) -> JSONResponse:
    """An error in OpenAI's shape; one that may pass says when to come back."""
    headers = {"Retry-After": _RETRY_AFTER_S} if error.status in (429, 503) else None
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


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
    return ApiError(
        503, f"the model cannot be reached: {type(cause).__name__}; try again", "unavailable"
    )
