"""Fallbacks for tools, tool calls and roles that a chat template cannot render.

Many templates drop these without an error. The fallbacks write them into the text of a turn, in
training and in serving, so that serving sends the form that the model was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.chat.call_ids import with_call_ids
from pipelines.chat.probes import (
    ANSWER,
    ASK,
    CALL,
    CALL_WORDS,
    CALLING,
    RESULT,
    THOUGHT,
    TOOL,
    TOOL_WORD,
)
from pipelines.chat.template import ChatTemplate, Messages, TemplateError

THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Keys of messages that hold an assistant's thought."""
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
    # An assistant's text in a turn that also has tool calls, as part of the turn. Gemma 4's
    # template writes it behind the calls' results.
    text_with_calls: bool
    parallel_calls: bool  # several calls in one turn
    tool_role: bool  # turns of the role tool, which carry a call's result
    call_ids: bool  # calls and results if they have ids, see call_ids
    # The key of an assistant's thought; "content" if it goes there, between <think> and </think>;
    # "" if the template shows no thoughts.
    thought_key: str


def probe_capabilities(template: ChatTemplate) -> TemplateCapabilities:
    """Probe a template: render small conversations and look for their words in the text."""
    calls = results = call_ids = False
    calling, result = CALLING, RESULT
    for call_ids in (False, True):
        calling, result = with_call_ids([CALLING, RESULT]) if call_ids else (CALLING, RESULT)
        results = _shows(template, [ASK, calling, result, ANSWER], [TOOL], CALL_WORDS)
        # Some templates show calls and refuse the role tool.
        calls = results or _shows(template, [ASK, calling, ASK, ANSWER], [TOOL], CALL_WORDS)
        if calls:
            break
    both = {**calling, "content": "probe-text"}
    then = result if results else {**ASK, "content": RESULT["content"]}
    shown = _render(template, [ASK, both, then, ANSWER], [TOOL])
    text_with_calls = "probe-text" in shown.partition(RESULT["content"])[0]
    system = [{"role": "system", "content": "probe-system"}, ASK, ANSWER]
    with_result = [ASK, calling if results else ANSWER, result, ANSWER]
    tool_role = _shows(template, with_result, (), (RESULT["content"],))
    tools = _shows(template, [ASK, ANSWER], [TOOL], (TOOL_WORD,))
    return TemplateCapabilities(
        system=_shows(template, system, (), ("probe-system",)),
        # A result that becomes part of a user turn must not pull the tools behind its call.
        tools=tools and (tool_role or not _tools_follow_last_user(template)),
        tool_calls=calls,
        # If the template renders no calls, `apply_fallbacks` joins text and calls into one text,
        # which the template renders.
        text_with_calls=text_with_calls or not calls,
        parallel_calls=not calls or _shows_parallel_calls(template, call_ids),
        tool_role=tool_role,
        call_ids=calls and call_ids,
        thought_key=_thought_key(template, calling),
    )


def _thought_key(template: ChatTemplate, calling: Mapping[str, Any]) -> str:
    content = str(ANSWER["content"])
    for key in THOUGHT_KEYS:
        if _shows(template, [ASK, {**ANSWER, key: THOUGHT}], (), (THOUGHT, content)):
            return key
    if "</think>" in template.source:
        answer = {**ANSWER, "content": _with_thought(THOUGHT, content)}
        if _shows(template, [ASK, answer], (), (THOUGHT, content)):
            return "content"
    for key in THOUGHT_KEYS:  # Gemma 4's shows thoughts before calls only
        if _shows(template, [ASK, {**calling, key: THOUGHT}], [TOOL], (THOUGHT, *CALL_WORDS)):
            return key
    return ""


def _shows_parallel_calls(template: ChatTemplate, call_ids: bool) -> bool:
    """Whether a turn may have two calls, by their arguments."""
    functions = [{**CALL["function"], "arguments": {"probe-key": f"value-{i}"}} for i in range(2)]
    calls = [{**CALL, "function": function} for function in functions]
    messages = [{**CALLING, "tool_calls": calls}, RESULT, {**RESULT, "content": "probe-other"}]
    messages = [ASK, *(with_call_ids(messages) if call_ids else messages), ANSWER]
    words = ("value-0", "value-1")
    return _shows(template, messages, [TOOL], words) or _shows(
        template, messages[:2], [TOOL], words
    )


def _tools_follow_last_user(template: ChatTemplate) -> bool:
    again = {**ASK, "content": "probe-again"}
    text = _render(template, [ASK, ANSWER, again, ANSWER], [TOOL])
    return text.find(TOOL_WORD) > text.find(str(ANSWER["content"]))


def _shows(
    template: ChatTemplate, messages: Messages, tools: Sequence[Any], words: Sequence[str]
) -> bool:
    text = _render(template, messages, tools)
    return all(word in text for word in words)


def _render(template: ChatTemplate, messages: Messages, tools: Sequence[Any] = ()) -> str:
    try:
        return template.render(messages, tools).text
    except TemplateError:
        return ""


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
        message = _fit_thought({**message, "content": message.get("content") or ""}, capabilities)
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
        text = _tools_text(tools, asks_for_calls=not capabilities.tool_calls)
        out, message_index = _with_system_text(out, message_index, text)
        tools = ()
    if capabilities.call_ids and any(message.get("tool_calls") for message in out):
        out = with_call_ids(out)
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


def _fit_thought(message: dict[str, Any], capabilities: TemplateCapabilities) -> dict[str, Any]:
    """The message with its thought, given by any of THOUGHT_KEYS, where the template reads it."""
    given = [key for key in THOUGHT_KEYS if isinstance(message.get(key), str)]
    if not given:
        return message
    thought = message[given[0]]
    fitted = {key: value for key, value in message.items() if key not in given}
    if thought and capabilities.thought_key == "content":
        fitted["content"] = _with_thought(thought, message["content"])
    elif thought and capabilities.thought_key:
        fitted[capabilities.thought_key] = thought
    return fitted


def _with_thought(thought: str, content: str) -> str:
    return f"<think>\n{thought}\n</think>\n\n{content}"


def _with_system_text(
    out: list[dict[str, Any]], message_index: list[int], text: str
) -> tuple[list[dict[str, Any]], list[int]]:
    """The messages with the text added to their system turn, or in a new one."""
    if out and out[0]["role"] == "system":
        return [{**out[0], "content": f"{out[0]['content']}\n\n{text}"}, *out[1:]], message_index
    return [{"role": "system", "content": text}, *out], [i + 1 for i in message_index]


def _tools_text(tools: Sequence[Any], asks_for_calls: bool) -> str:
    """The tools as text. A template that writes calls itself has its own form for them."""
    lines = [json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools]
    return "\n".join([_TOOLS_INTRO, *lines, *([_CALLS_INTRO] if asks_for_calls else [])])


def _call_text(call: Mapping[str, Any]) -> str:
    function = json.dumps(call.get("function", call), ensure_ascii=False)
    return f"<tool_call>\n{function}\n</tool_call>"
