"""Small conversations by which a chat template's behaviour is probed."""

from __future__ import annotations

from typing import Any

ASK: dict[str, Any] = {"role": "user", "content": "probe-question"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "probe-answer"}
CALL_WORDS = ("probe-call", "probe-key", "probe-value")
CALL = {
    "type": "function",
    "function": {"name": CALL_WORDS[0], "arguments": {CALL_WORDS[1]: CALL_WORDS[2]}},
}
CALLING: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "name": CALL_WORDS[0], "content": "probe-result"}
TOOL_WORD = "probe-tool"
TOOL = {
    "type": "function",
    "function": {
        "name": TOOL_WORD,
        "description": "d",
        "parameters": {"type": "object", "properties": {}},
    },
}
THOUGHT = "probe-thought"
