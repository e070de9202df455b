"""A request as one row of the batch, and the answers that it gets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from serve_app.engines.protocol import Delta, GenerationRequest
from serve_app.engines.transformers.text import TextStream

Answer = Delta | Exception


@dataclass(eq=False)
class Row:
    """A request in the batch.

    `stop_ids` end an answer. `answer` is called from the engine's thread. `limit` is the number of
    tokens that the answer may have, 0 once it has ended. `pieces` are texts that wait for the end
    of an answer that is not streamed. `last` is the last token, of the prompt or the answer.
    """

    request: GenerationRequest
    prompt: list[int]
    stop_ids: tuple[int, ...]
    limit: int
    stream: bool
    answer: Callable[[Answer], object]
    text: TextStream
    generator: torch.Generator | None
    cancelled: threading.Event = field(default_factory=threading.Event)
    pieces: list[str] = field(default_factory=list)
    num_tokens: int = 0
    last: int = 0

    @property
    def adapter(self) -> str | None:
        """The key of the row's adapter, None for the base."""
        return self.request.adapter.key if self.request.adapter else None

    @property
    def position(self) -> int:
        """The position of the last token in prompt and answer."""
        return len(self.prompt) + self.num_tokens - 1


def concatenate(delta: Delta, following: Answer) -> Answer:
    """Two answers as one; an error replaces the text before it."""
    if not isinstance(following, Delta):
        return following
    return replace(following, text=delta.text + following.text)
