"""Messages fitted to what a template can show. Whatever it would drop without a word is written into the text instead.

Training and serving fit messages the same way, so a model always sees what it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.chat.template import ChatTemplate, Messages, TemplateError

_TOOLS_INTRO = "You can call these functions, each given as JSON:"
_CALLS_INTRO = 'To call one, answer with <tool_call>{"name": ..., "arguments": ...}</tool_call>.'


@dataclass(frozen=True)
class TemplateCapabilities:
    """What a template shows: system turns, a list of tools, an assistant's tool calls, its text beside these, turns of the
    role tool.
    """

    system: bool
    tools: bool
    tool_calls: bool
    text_beside_calls: bool
    tool_role: bool


def probe_capabilities(template: ChatTemplate) -> TemplateCapabilities:
    """Find out by rendering small conversations with words to look for."""
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
    calls = _shows(template, [ask, calling, result, answer], tools, ("probe-call", "probe-key"))
    calls_only = calls or _shows(
        template, [ask, calling, ask, answer], tools, ("probe-call", "probe-key")
    )
    both = {**calling, "content": "probe-text"}
    beside = any(
        _shows(template, [ask, both, *then, answer], tools, ("probe-text",))
        for then in ([result], [ask])
    )
    return TemplateCapabilities(
        system=_shows(
            template,
            [{"role": "system", "content": "probe-system"}, ask, answer],
            (),
            ("probe-system",),
        ),
        tools=_shows(template, [ask, answer], tools, ("probe-tool",)),
        tool_calls=calls_only,
        text_beside_calls=beside or not calls_only,  # else both become one text, see adapt
        tool_role=_shows(
            template, [ask, calling if calls else answer, result, answer], (), ("probe-result",)
        ),
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
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], can: TemplateCapabilities
) -> tuple[list[Mapping[str, Any]], Sequence[Any], list[int]]:
    """The messages and tools as the template can show them, and for each given message its number in the new list."""
    out: list[dict[str, Any]] = []
    places: list[int] = []
    for message in messages:
        message = {**message, "content": message.get("content") or ""}
        calls = message.get("tool_calls")
        if calls and not can.tool_calls:
            del message["tool_calls"]
            parts = [message["content"], *(_call_text(call) for call in calls)]
            message["content"] = "\n".join(part for part in parts if part)
        if message["role"] == "tool" and not can.tool_role:
            message = {
                "role": "user",
                "content": f"<tool_response>\n{message['content']}\n</tool_response>",
            }
            if (
                out and out[-1]["role"] == "user"
            ):  # templates that alternate take no two user turns in a row
                out[-1]["content"] += "\n" + message["content"]
                places.append(len(out) - 1)
                continue
        places.append(len(out))
        out.append(message)
    if tools and not can.tools:
        out, places = _with_system_text(out, places, _tools_text(tools))
        tools = ()
    if (
        not can.system
        and out
        and out[0]["role"] == "system"
        and len(out) > 1
        and out[1]["role"] == "user"
    ):
        joined = {**out[1], "content": f"{out[0]['content']}\n\n{out[1]['content']}"}
        out, places = [joined, *out[2:]], [max(0, place - 1) for place in places]
    return list(out), tools, places


def _with_system_text(
    out: list[dict[str, Any]], places: list[int], text: str
) -> tuple[list[dict[str, Any]], list[int]]:
    if out and out[0]["role"] == "system":
        return [{**out[0], "content": f"{out[0]['content']}\n\n{text}"}, *out[1:]], places
    return [{"role": "system", "content": text}, *out], [place + 1 for place in places]


def _tools_text(tools: Sequence[Any]) -> str:
    lines = [json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools]
    return "\n".join([_TOOLS_INTRO, *lines, _CALLS_INTRO])


def _call_text(call: Mapping[str, Any]) -> str:
    return (
        f"<tool_call>\n{json.dumps(call.get('function', call), ensure_ascii=False)}\n</tool_call>"
    )
