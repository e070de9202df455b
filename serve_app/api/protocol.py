"""The supported part of OpenAI's chat API: checked requests, answers, chunks and errors.

A field that would change the answer and is not supported is refused by name; a field that does not
change it (user, metadata, store and the like) is ignored. No request may bring its own chat
template.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serve_app.engines.protocol import AdapterRef, Delta, GenerationRequest

MAX_BODY_BYTES = 4 << 20
MAX_MESSAGES = 4096
_IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
}
_IGNORED_IN_MESSAGES = {"name", "tool_call_id", "annotations"}
# Values of unsupported fields that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class ApiError(Exception):
    """An error response: HTTP status and the fields of OpenAI's error body."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        kinds = {429: "rate_limit_error"} | dict.fromkeys(range(500, 600), "server_error")
        kind = kinds.get(self.status, "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }


class TextPart(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message; the text parts of `content` are joined."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    @model_validator(mode="after")
    def _only_text(self) -> Message:
        for name, value in (self.model_extra or {}).items():
            if name not in _IGNORED_IN_MESSAGES and value:
                raise ValueError(f"{name} is not supported in a message; leave it out")
        return self

    def plain(self) -> dict[str, str]:
        """The message as a chat template takes it: content as text, developer as system."""
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """`include_usage` adds a last chunk with the token counts."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(extra="allow", strict=True)
    model: Annotated[str, Field(min_length=1, max_length=128)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and "" in ([value] if isinstance(value, str) else value):
            raise ValueError("a stop string must not be empty")
        return value

    @model_validator(mode="after")
    def _only_supported_fields(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name not in _IGNORED and value is not None and value not in _NEUTRAL.get(name, ()):
                raise ValueError(
                    f"{name}={json.dumps(value)[:80]} is not supported here; leave {name} out"
                )
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def generation(self, adapter: AdapterRef | None) -> GenerationRequest:
        """The request for the engine, with OpenAI's defaults: temperature 1 and top_p 1."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return GenerationRequest(
            messages=[message.plain() for message in self.messages],
            adapter=adapter,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=stop,
        )


def parse_chat(body: bytes) -> ChatRequest:
    """Parse a request body.

    Raises ApiError 400 that names the field, or 413 for a body of more than MAX_BODY_BYTES.
    """
    if len(body) > MAX_BODY_BYTES:
        raise ApiError(
            413,
            f"the body has {len(body):,} bytes, and at most {MAX_BODY_BYTES:,} are accepted",
            "body_too_large",
        )
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"].removeprefix("Value error, ")
        raise ApiError(
            400, f"{param}: {message}" if param else message, "invalid_value", param
        ) from error


def completion(request_id: str, model: str, answer: Delta) -> dict[str, Any]:
    """A complete answer: `chat.completion`."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text},
        "finish_reason": answer.finish_reason,
        "logprobs": None,
    }
    return _envelope("chat.completion", request_id, model, [choice]) | {"usage": usage(answer)}


def chunk(
    request_id: str, model: str, delta: Mapping[str, str], finish_reason: str | None = None
) -> dict[str, Any]:
    """A piece of a streamed answer: `chat.completion.chunk`."""
    choice = {"index": 0, "delta": dict(delta), "finish_reason": finish_reason, "logprobs": None}
    return _envelope("chat.completion.chunk", request_id, model, [choice])


def usage_chunk(request_id: str, model: str, answer: Delta) -> dict[str, Any]:
    """The last chunk when usage was requested: token counts and no choices."""
    return _envelope("chat.completion.chunk", request_id, model, []) | {"usage": usage(answer)}


def usage(answer: Delta) -> dict[str, int]:
    """The token counts under OpenAI's names."""
    prompt, completion_ = answer.prompt_tokens, answer.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_,
        "total_tokens": prompt + completion_,
    }


def event(data: Mapping[str, Any] | str) -> str:
    """A server-sent event with JSON, or with a text as it is."""
    if not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {data}\n\n"


def _envelope(
    kind: str, request_id: str, model: str, choices: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "id": request_id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
    }
