"""A training conversation: turns, tools and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    `train` False keeps an assistant turn out of the loss; `weight` scales its loss. `tool_calls`
    are OpenAI-style calls of an assistant turn, whose `content` may then be empty.
    """

    role: str
    content: str
    train: bool = True
    weight: float = 1.0
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None


@dataclass(frozen=True)
class Conversation:
    """The turns of one sample, oldest first, and the tools offered; `origin` is `path:line`."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    origin: str = ""

    def messages(self) -> list[dict[str, Any]]:
        """The turns as OpenAI-style dicts, the input of chat templates."""
        messages = []
        for turn in self.turns:
            message: dict[str, Any] = {"role": turn.role, "content": turn.content}
            if turn.tool_calls:
                message["tool_calls"] = [dict(call) for call in turn.tool_calls]
            if turn.name:
                message["name"] = turn.name
            messages.append(message)
        return messages
