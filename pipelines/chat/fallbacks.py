"""Fallbacks for tools, tool calls and roles that a chat template cannot render.

Many templates drop these without an error. The fallbacks write them into the text of a turn, in
training and in serving, so that serving sends the form that the model was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.chat.template import ChatTemplate, Messages, TemplateError
from pipelines.core.conversation import Turn

_TOOLS_INTRO = "You can call these functions, each given as JSON:"
# The same form as `_call_text` writes, line breaks included.
_CALLS_INTRO = (
    'To call one, answer with:\n<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>'
)


@dataclass(frozen=True)
class TemplateCapabilities:
    """The parts of a conversation that a template renders; it drops or refuses the others."""

    system: bool  # turns of the role system
    tools: bool  # the list of tools
    tool_calls: bool  # an assistant's tool calls
    text_with_calls: bool  # an assistant's text in a turn that also has tool calls
    tool_role: bool  # turns of the role tool, which carry a call's result


def probe_capabilities(template: ChatTemplate) -> TemplateCapabilities:
    """Probe a template: render small conversations and look for their words in the text."""
    ask, answer = (
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "answer"},
    )
    call = {"type": "function", "function": {"name": "probe-call", "arguments": {"probe-key": "v"}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "name": "probe-call", "content": "probe-result"}
    schema = {
        "name": "probe-tool",
        "description": "d",
        "parameters": {"type": "object", "properties": {}},
    }
    tools = [{"type": "function", "function": schema}]
    call_words = ("probe-call", "probe-key")
    calls_and_results = _shows(template, [ask, calling, result, answer], tools, call_words)
    # Some templates show calls and refuse the role tool.
    calls = calls_and_results or _shows(template, [ask, calling, ask, answer], tools, call_words)
    both = {**calling, "content": "probe-text"}
    text_with_calls = any(
        _shows(template, [ask, both, *then, answer], tools, ("probe-text",))
        for then in ([result], [ask])
    )
    system = [{"role": "system", "content": "probe-system"}, ask, answer]
    with_result = [ask, calling if calls_and_results else answer, result, answer]
    return TemplateCapabilities(
        system=_shows(template, system, (), ("probe-system",)),
        tools=_shows(template, [ask, answer], tools, ("probe-tool",)),
        tool_calls=calls,
        # If the template renders no calls, `apply_fallbacks` joins text and calls into one text,
        # which the template renders.
        text_with_calls=text_with_calls or not calls,
        tool_role=_shows(template, with_result, (), ("probe-result",)),
    )


def _shows(
    template: ChatTemplate, messages: Messages, tools: Sequence[Any], words: Sequence[str]
) -> bool:
    try:
        text = template.render(messages, tools).text
    except TemplateError:
        return False
    return all(word in text for word in words)


def apply_fallbacks(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], capabilities: TemplateCapabilities
) -> tuple[list[Mapping[str, Any]], Sequence[Any], list[int]]:
    """Rewrite messages and tools so that the template renders all of them.

    Returns the new messages, the tools that the template still gets (none once they are written
    into the system turn), and the message index: for each given message, the index of the new
    message that has its text.
    """
    out: list[dict[str, Any]] = []
    message_index: list[int] = []
    for message in messages:
        message = {**message, "content": message.get("content") or ""}
        calls = message.get("tool_calls")
        if calls and not capabilities.tool_calls:
            del message["tool_calls"]
            parts = [message["content"], *(_call_text(call) for call in calls)]
            message["content"] = "\n".join(part for part in parts if part)
        if message["role"] == "tool" and not capabilities.tool_role:
            message = {
                "role": "user",
                "content": f"<tool_response>\n{message['content']}\n</tool_response>",
            }
            # Many templates refuse two user turns in a row, so results join the turn before.
            if out and out[-1]["role"] == "user":
                out[-1]["content"] += "\n" + message["content"]
                message_index.append(len(out) - 1)
                continue
        message_index.append(len(out))
        out.append(message)
    if tools and not capabilities.tools:
        out, message_index = _with_system_text(out, message_index, _tools_text(tools))
        tools = ()
    if (
        not capabilities.system
        and out
        and out[0]["role"] == "system"
        and len(out) > 1
        and out[1]["role"] == "user"
    ):
        joined = {**out[1], "content": f"{out[0]['content']}\n\n{out[1]['content']}"}
        out, message_index = [joined, *out[2:]], [max(0, i - 1) for i in message_index]
    return list(out), tools, message_index


def _with_system_text(
    out: list[dict[str, Any]], message_index: list[int], text: str
) -> tuple[list[dict[str, Any]], list[int]]:
    """The messages with the text added to their system turn, or in a new one."""
    if out and out[0]["role"] == "system":
        return [{**out[0], "content": f"{out[0]['content']}\n\n{text}"}, *out[1:]], message_index
    return [{"role": "system", "content": text}, *out], [i + 1 for i in message_index]


def _tools_text(tools: Sequence[Any]) -> str:
    lines = [json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools]
    return "\n".join([_TOOLS_INTRO, *lines, _CALLS_INTRO])


def _call_text(call: Mapping[str, Any]) -> str:
    function = json.dumps(call.get("function", call), ensure_ascii=False)
    return f"<tool_call>\n{function}\n</tool_call>"


def message_weights(turns: Sequence[Turn], message_index: Sequence[int], count: int) -> list[float]:
    """The loss weight of each of `count` messages, as fallbacks may merge turns or add messages."""
    weights = [0.0] * count
    for turn, i in zip(turns, message_index, strict=True):
        if turn.role == "assistant" and turn.train:
            weights[i] = turn.weight
    return weights
