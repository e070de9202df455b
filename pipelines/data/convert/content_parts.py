"""Contents that are lists of parts, in the shapes of several makers, become texts and calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.data.convert.loss_keys import FLAGS, LOSS_KEYS, ranges_of, train_and_weight
from pipelines.data.convert.row_context import RowContext
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.tool_calls import call_of, decode_json_text

_TEXT_TYPES = ("text", "input_text", "output_text")
_THOUGHT_TYPES = ("reasoning", "thinking", "thought", "reasoning_text")
_TEXT_KEYS = ("text", "value", "content")
_THOUGHT_KEYS = ("thinking", "reasoning", "thought", *_TEXT_KEYS)
# Keys that take the place of `type`.
_KEYED = frozenset(
    {
        "toolUse", "functionCall", "function_call", "toolResult", "functionResponse",
        "function_response", "reasoningContent",
    }
)  # fmt: skip
_CALL_TYPES = ("tool_use", "tool_call", "tool_calls")


@dataclass
class Content:
    """The content of a message: its text with the ranges of characters that are not trained, the
    thought before it, the tool calls after it, and the results of tools, which precede it."""

    text: str = ""
    masked: tuple[tuple[int, int], ...] = ()
    reasoning: str = ""
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


def read_parts(parts: list[Any], where: str, path: str, context: RowContext) -> Content:
    """The content that a list of parts spells.

    Raises RowError for parts that are no text, thought, call or result, and for an order that a
    message cannot have.
    """
    content, trained, thoughts = Content(), bytearray(), list[str]()
    for part in parts:
        if isinstance(part, str):
            part = {"text": part}
        if not isinstance(part, Mapping):
            raise RowError(f"{where}: only parts of type text can be trained, not {part!r:.40}")
        part = {key: value for key, value in part.items() if value is not None}
        part = _typed(part)
        kind = part.get("type", "text")
        if kind in _THOUGHT_TYPES or part.get("thought") is True:  # Gemini marks a text
            _check_order(where, "a thought", content.text, content.calls, content.results)
            key, text = _text_of(part, _THOUGHT_KEYS, where)
            thoughts.append(text)
            unread = part.keys() - {key, "type", "thought"}
        elif kind in _CALL_TYPES:
            calls, unread = _calls(part, where, path, context), frozenset[str]()
            content.calls += calls
        elif kind == "tool_result":
            _check_order(where, "a result", content.text, content.calls, thoughts)
            result = part.get("content", "")
            if isinstance(result, list):
                result = read_parts(result, where, path, context).text
            if not isinstance(result, str):
                raise RowError(f"{where}: a tool_result whose content is no text")
            content.results.append(result)
            unread = part.keys() - {"type", "content", "tool_use_id"}
        elif kind in _TEXT_TYPES:
            _check_order(where, "a text", content.calls)
            key, text = _text_of(part, _TEXT_KEYS, where)
            content.text += text
            trained += bytes([_is_trained(part, where)]) * len(text)
            unread = part.keys() - {key, "type", *LOSS_KEYS}
        else:
            raise RowError(
                f"{where}: a part of type {kind}: only parts of type text can be trained"
            )
        context.note_unused(f"{path}.content", {key: part[key] for key in sorted(unread)})
    content.masked = ranges_of(trained)
    content.reasoning = "\n".join(thoughts)
    return content


def _typed(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of Bedrock or Gemini, whose only key is its type, with the keys of the others."""
    key, value = next(iter(part.items()), ("", None))
    if len(part) != 1 or key not in _KEYED or not isinstance(value, Mapping):
        return part
    if key in ("toolResult", "functionResponse", "function_response"):
        content = value.get("content", value.get("response", ""))
        if isinstance(content, list):
            content = [_result(item) for item in content]
        return {"type": "tool_result", "content": _as_json(content)}
    if key == "reasoningContent":
        thought = value.get("reasoningText")
        text = thought.get("text") if isinstance(thought, Mapping) else None
        return {"type": "reasoning", "text": text}
    return {"type": "tool_use", **value}


def _result(item: Any) -> Any:
    """A part of Bedrock's result, which may be an object under `json`."""
    is_json = isinstance(item, Mapping) and set(item) == {"json"}
    return {"text": json.dumps(item["json"], ensure_ascii=False)} if is_json else item


def _as_json(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value


def _text_of(part: Mapping[str, Any], keys: tuple[str, ...], where: str) -> tuple[str, str]:
    """The key of a part's text, and the text. Raises RowError unless there is exactly one."""
    texts = [(key, part[key]) for key in keys if isinstance(part.get(key), str)]
    if len(texts) != 1:
        shown = ", ".join(map(str, part)) or "none"
        raise RowError(
            f"{where}: a part with the keys {shown}: only parts of type text can be trained, with "
            "their text under text"
        )
    return texts[0]


def _calls(
    part: Mapping[str, Any], where: str, path: str, context: RowContext
) -> list[Mapping[str, Any]]:
    """The calls of a part: its own fields, or LLaMA-Factory's JSON text under `value`."""
    calls = decode_json_text(part["value"]) if "value" in part else part
    calls = calls if isinstance(calls, list) else [calls]
    return [call_of(call, where, f"{path}.content", context) for call in calls]


def _is_trained(part: Mapping[str, Any], where: str) -> bool:
    """Whether a part is in the loss. Raises RowError for a weight that only a message can have."""
    if LOSS_KEYS.isdisjoint(part):
        return True
    train, weight = train_and_weight(part, f"{where}: a part")
    if "train_detail" in part or weight not in (0, 1):
        raise RowError(f"{where}: a part is trained or not ({', '.join(FLAGS)}), not by shares")
    return train and weight > 0


def _check_order(where: str, name: str, *before: Any) -> None:
    if any(before):
        raise RowError(f"{where}: {name} follows a part that it must precede")
