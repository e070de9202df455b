"""A training conversation: turns, tools and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    `train` False keeps an assistant turn out of the loss; `weight` scales its loss. `tool_calls`
    are OpenAI-style calls of an assistant turn, whose `content` may then be empty. `reasoning` is
    an assistant's thought before its answer. `masked` lists ranges of characters of `content`,
    as (start, end), that are not in the loss.
    """

    role: str
    content: str
    train: bool = True
    weight: float = 1.0
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None
    reasoning: str = ""
    masked: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Conversation:
    """The turns of one sample, oldest first, and the tools offered; `origin` is `path:line`.

    Plain text for continued pretraining is a single turn of the role "text". `unused_keys` are the
    keys of the row that no part of the conversation was made from.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    origin: str = ""
    unused_keys: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether this is plain text, which is trained without a chat template."""
        return len(self.turns) == 1 and self.turns[0].role == "text"

    def messages(self) -> list[dict[str, Any]]:
        """The turns as OpenAI-style dicts, the input of chat templates."""
        messages = []
        for turn in self.turns:
            message: dict[str, Any] = {"role": turn.role, "content": turn.content}
            if turn.tool_calls:
                message["tool_calls"] = [dict(call) for call in turn.tool_calls]
            if turn.name:
                message["name"] = turn.name
            if turn.reasoning:
                message["reasoning_content"] = turn.reasoning
            messages.append(message)
        return messages
