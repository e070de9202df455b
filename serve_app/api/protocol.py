"""The OpenAI fields that are honoured, checked, and the shapes of answers, chunks and errors.

A field that would change the answer and is not honoured is refused by name; one that is only advice (user, metadata,
store and the like) is ignored. No request may bring its own chat template.
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
_ADVICE = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
}
_MESSAGE_ADVICE = {"name", "tool_call_id", "annotations"}
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
    """An answer that is an error: HTTP status and OpenAI's error body."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
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
    """One message; `content` is text or text parts, joined."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    @model_validator(mode="after")
    def _only_text(self) -> Message:
        for name, value in (self.model_extra or {}).items():
            if name not in _MESSAGE_ADVICE and value:
                raise ValueError(f"{name} is not supported in a message; leave it out")
        return self

    def plain(self) -> dict[str, str]:
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk with the counts of tokens."""

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
    def _only_honoured_fields(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name not in _ADVICE and value is not None and value not in _NEUTRAL.get(name, ()):
                raise ValueError(
                    f"{name}={json.dumps(value)[:80]} is not supported here; leave {name} out"
                )
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def generation(self, adapter: AdapterRef | None) -> GenerationRequest:
        """What the engine is asked; OpenAI's defaults are temperature 1 and top_p 1."""
        return GenerationRequest(
            messages=[message.plain() for message in self.messages],
            adapter=adapter,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=()
            if self.stop is None
            else (self.stop,)
            if isinstance(self.stop, str)
            else tuple(self.stop),
        )


def parse_chat(body: bytes) -> ChatRequest:
    """The request of a body. Raises ApiError 400 naming the field, or 413 for a body over `MAX_BODY_BYTES`."""
    if len(body) > MAX_BODY_BYTES:
        raise ApiError(
            413,
            f"the body has {len(body):,} bytes, at most {MAX_BODY_BYTES:,} are read",
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
    """A whole answer: `chat.completion`."""
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
    """One piece of a streamed answer: `chat.completion.chunk`."""
    choice = {"index": 0, "delta": dict(delta), "finish_reason": finish_reason, "logprobs": None}
    return _envelope("chat.completion.chunk", request_id, model, [choice])


def usage_chunk(request_id: str, model: str, answer: Delta) -> dict[str, Any]:
    """The last piece when usage was asked for: no choices, only counts."""
    return _envelope("chat.completion.chunk", request_id, model, []) | {"usage": usage(answer)}


def usage(answer: Delta) -> dict[str, int]:
    """The counts of tokens in OpenAI's names."""
    prompt, answered = answer.prompt_tokens, answer.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
    }


def event(data: Mapping[str, Any] | str) -> str:
    """A server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


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
