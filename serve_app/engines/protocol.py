"""The interface between the endpoint and an engine; lets the API be tested without a model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


class RequestError(ValueError):
    """A request that this model cannot answer; `param` names the field to change."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message, self.param = message, param


class EngineFailure(RuntimeError):
    """The engine failed to answer a valid request."""


@dataclass(frozen=True)
class AdapterRef:
    """An immutable adapter: `key` is its digest, `version_id` its name in the registry."""

    key: str
    version_id: str


@dataclass(frozen=True)
class GenerationRequest:
    """A chat to continue.

    `temperature` 0 means greedy decoding; `max_tokens` None means up to the end of the context.
    """

    messages: Sequence[Mapping[str, Any]]
    adapter: AdapterRef | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer; the last piece has a `finish_reason` and the token counts."""

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Engine(Protocol):
    """Answers requests. Closing the iterator early cancels the request and frees its slot."""

    def generate(self, request: GenerationRequest, stream: bool) -> AsyncIterator[Delta]:
        """Yield deltas as they are generated, or the complete answer as one delta.

        Raises RequestError, before the first delta, for a prompt that is too long or that the chat
        template refuses; UserError for an adapter that cannot be loaded; EngineFailure when the
        engine fails.
        """
        ...

    def stats(self) -> dict[str, int]:
        """Counts of running, waiting, finished, cancelled and failed requests, and of adapters."""
        ...
