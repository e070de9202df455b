"""Ids of tool calls, for templates that refuse calls without one (Mistral's)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_VALID = re.compile("[A-Za-z0-9]{9}")  # the form that these templates demand


def with_call_ids(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with an id of nine letters and digits for every call and every result.

    An id of that form stays. Others are numbered in order, so that the same conversation gets the
    same ids in training and in serving. A result without a known id answers the first call that no
    result has answered.
    """
    out: list[dict[str, Any]] = []
    new_ids: dict[str, str] = {}
    unanswered: list[str] = []
    num_calls = 0
    for given in messages:
        message = dict(given)
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                own = str(call.get("id") or "")
                new = own if _VALID.fullmatch(own) else f"{num_calls:09d}"
                num_calls += 1
                new_ids[own] = new
                unanswered.append(new)
                calls.append({**call, "id": new})
            message["tool_calls"] = calls
        elif message["role"] == "tool":
            own = str(message.get("tool_call_id") or "")
            answered = new_ids.get(own, own) if own else ""
            if not _VALID.fullmatch(answered):
                answered = unanswered[0] if unanswered else f"{num_calls:09d}"
            if answered in unanswered:
                unanswered.remove(answered)
            message["tool_call_id"] = answered
        out.append(message)
    return out
