"""What the endpoint asks of an engine, so that routing and the API are tested without a model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


class RequestError(ValueError):
    """A request that this model cannot answer as it stands; `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message, self.param = message, param


class EngineFailure(RuntimeError):
    """The engine could not answer, though the request was right."""


@dataclass(frozen=True)
class AdapterRef:
    """An immutable adapter: its digest, and the version id under which the registry has its files."""

    key: str
    version_id: str


@dataclass(frozen=True)
class GenerationRequest:
    """One chat to continue. `temperature` 0 is greedy; `max_tokens` None is all that the context leaves."""

    messages: Sequence[Mapping[str, Any]]
    adapter: AdapterRef | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. The last one has a `finish_reason` and the counts of tokens in prompt and answer."""

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Engine(Protocol):
    """Answers requests. Closing the iterator early cancels the request and frees its place."""

    def generate(self, request: GenerationRequest, stream: bool) -> AsyncIterator[Delta]:
        """Deltas as they come, or the whole answer as one when `stream` is False.

        Raises RequestError (before the first delta) for a prompt that does not fit or that the template refuses,
        UserError for an adapter that cannot be loaded, and EngineFailure when there will be no answer.
        """
        ...

    def stats(self) -> dict[str, int]:
        """Counters: running, waiting, finished, cancelled requests; adapters loaded."""
        ...
