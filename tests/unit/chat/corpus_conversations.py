"""Conversations on which every template of the corpus runs. No text occurs twice in one of them."""

from __future__ import annotations

from typing import Any

from pipelines.core.conversation import Conversation, Turn

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "finds weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "a town"}},
            "required": ["place"],
        },
    },
}


def _call(place: str | None) -> dict[str, Any]:
    arguments = {"place": place} if place else {}
    return {"type": "function", "function": {"name": "look_up", "arguments": arguments}}


def _user(text: str) -> Turn:
    return Turn("user", text)


def _answer(text: str, *places: str, **rest: Any) -> Turn:
    return Turn("assistant", text, tool_calls=tuple(map(_call, places)), **rest)


def _result(text: str) -> Turn:
    return Turn("tool", text, name="look_up")


_FIRST = (_user("Name it"), _answer("the answer 42"))
_SECOND = (_user("Once more"), _answer("a second one"))
_ASKED = (_user("Is it wet"), _answer("", "Oslo"), _result("rain 7"), _answer("It is wet."))
_SYSTEM = Turn("system", "be brief")
_TOOLS = (TOOL,)

CONVERSATIONS: dict[str, Conversation] = {
    "single": Conversation(_FIRST),
    "two_turns": Conversation((*_FIRST, *_SECOND)),
    "three_turns": Conversation((*_FIRST, *_SECOND, _user("Third"), _answer("last of three"))),
    "system": Conversation((_SYSTEM, *_FIRST)),
    "system_two_turns": Conversation((_SYSTEM, *_FIRST, *_SECOND)),
    "system_empty": Conversation((Turn("system", ""), *_FIRST)),
    "unicode": Conversation(
        (_user("naïve ☃"), _answer("café 東京 👍"), _user("e\u0301"), _answer("👩‍👩‍👧 ☃é"))
    ),
    "line_break_first": Conversation((_user("Name it"), _answer("\n\nthe answer 42"))),
    "space_first": Conversation((*_FIRST, _user("Once more"), _answer("  a second one"))),
    "space_last": Conversation(
        (_user("Name it"), _answer("the answer 42 \n\n"), _user("Once more"), _answer("one  "))
    ),
    "first_masked": Conversation((_FIRST[0], _answer("the answer 42", train=False), *_SECOND)),
    "weights": Conversation((_FIRST[0], _answer("the answer 42", weight=0.5), *_SECOND)),
    "tools_unused": Conversation(_FIRST, _TOOLS),
    "tools_two_turns": Conversation((_SYSTEM, *_FIRST, *_SECOND), _TOOLS),
    "call": Conversation((_SYSTEM, *_ASKED), _TOOLS),
    "call_masked": Conversation((_ASKED[0], _answer("", "Oslo", train=False), *_ASKED[2:]), _TOOLS),
    "call_last": Conversation((*_FIRST, *_ASKED[:2]), _TOOLS),
    "call_with_text": Conversation((_ASKED[0], _answer("I check.", "Oslo"), *_ASKED[2:]), _TOOLS),
    "calls_parallel": Conversation(
        (_ASKED[0], _answer("", "Oslo", "Rome"), _result("rain 7"), _result("sun 31"), _ASKED[3]),
        _TOOLS,
    ),
    "calls_twice": Conversation(
        (*_ASKED[:3], _answer("", "Rome"), _result("sun 31"), _answer("Only Oslo."), *_SECOND),
        _TOOLS,
    ),
    "call_without_arguments": Conversation(
        (
            _ASKED[0],
            Turn("assistant", "", tool_calls=(_call(None),)),
            *_ASKED[2:],
        ),
        _TOOLS,
    ),
    "result_then_question": Conversation((*_ASKED[:3], *_SECOND), _TOOLS),
    "result_of_lines": Conversation(
        (*_ASKED[:2], _result('{"rain": 7,\n "wind": "é"}'), _ASKED[3]), _TOOLS
    ),
    "last_masked": Conversation((*_FIRST, _SECOND[0], _answer("a second one", train=False))),
    "same_text": Conversation((_user("again"), _answer("again"), _user("again"), _answer("again"))),
    "one_character": Conversation((_user("Name it"), _answer("4"))),
    "lines": Conversation((_user("Name\n\nit\n"), _answer("def f():\n\n    return 42\n\n# end"))),
    "two_questions": Conversation((_user("Wait"), *_FIRST)),
    "two_answers": Conversation((*_FIRST, _answer("a second one"))),
    "no_think_asked": Conversation((Turn("system", "be brief /no_think"), *_FIRST, *_SECOND)),
    "tags_in_text": Conversation(
        (_user("What is <b>"), _answer("a <b>tag</b> [X] {x} </i"), *_SECOND)
    ),
    "thought_in_text": Conversation(
        (_user("Name it"), _answer("<think>\nsix by 7\n</think>\n\nthe answer 42"), *_SECOND)
    ),
    "thought_of_lines": Conversation(
        (_user("Name it"), _answer("the answer 42", reasoning="\n six\n\nby 7 \n"))
    ),
    "thought_text_call": Conversation(
        (_user("Is it wet"), _answer("I check.", "Oslo", reasoning="ask first"), *_ASKED[2:]),
        _TOOLS,
    ),
    "thought": Conversation((_user("Name it"), _answer("the answer 42", reasoning="six by 7"))),
    "thought_then_none": Conversation(
        (_user("Name it"), _answer("the answer 42", reasoning="six by 7"), *_SECOND)
    ),
    "none_then_thought": Conversation(
        (*_FIRST, _user("Once more"), _answer("a second one", reasoning="again so"))
    ),
    "thought_and_call": Conversation(
        (
            _user("Is it wet"),
            _answer("", "Oslo", reasoning="ask first"),
            _result("rain 7"),
            _answer("It is wet.", reasoning="so it rains"),
        ),
        _TOOLS,
    ),
}
