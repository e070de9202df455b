"""Rows of other makers that are nearly of a known kind: read as they say, named, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.conversation import Turn
from pipelines.core.errors import UserError
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.convert.source_options import options_of, used_options
from pipelines.data.convert.unused_keys import blocking
from tests.trials.test_inspect import CHATML, Dataset, chatml_base, pair

pytestmark = pytest.mark.trials
__all__ = ["chatml_base"]
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
TWO_TURNS = (Turn("user", "q"), Turn("assistant", "good"))


def blocked(row: dict[str, Any], **source: Any) -> list[str]:
    return blocking(dict.fromkeys(to_conversation(row, **source).unused_keys, 1), [])


def reason(row: Any, **source: Any) -> str:
    with pytest.raises(RowError) as error:
        to_conversation(row, **source)
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [BAD]},
            {"completion": "chosen"},
        ),
        (
            {"messages": [USER], "chosen": ANSWER, "rejected": BAD},
            {"prompt": "messages", "completion": "chosen"},
        ),
        (
            {"dialogue": [USER], "response": "good"},
            {"prompt": "dialogue", "completion": "response"},
        ),
        (
            {
                "input": {"messages": [USER], "tools": []},
                "preferred_output": [ANSWER],
                "non_preferred_output": [BAD],
            },
            {"prompt": "input.messages", "completion": "preferred_output"},
        ),
        (
            {"question": "q", "response_j": "good", "response_k": "bad"},
            {"prompt": "question", "completion": "response_j"},
        ),
        (
            {"custom_id": "1", "body": {"model": "m", "messages": [USER, ANSWER]}},
            {"messages": "body.messages"},
        ),
        ({"data": {"question": "q", "answer": "good"}}, None),
    ],
)
def test_the_reason_proposes_columns_that_read_the_row(row, columns) -> None:
    columns = columns or {"prompt": "data.question", "completion": "data.answer"}
    line = ", ".join(f"{key}: {column}" for key, column in columns.items())
    assert f"`columns: {{{line}}}`" in reason(row)
    assert to_conversation(row, columns=columns).turns == TWO_TURNS
    rejected = [key for key in row if key.startswith(("rejected", "non_")) or key == "response_k"]
    assert blocked(row, columns=columns) == rejected


def test_the_rest_of_an_object_with_a_mapped_column_is_named() -> None:
    row = {"body": {"messages": [USER, ANSWER], "tools": [{"name": "f"}], "model": "m"}}
    conversation = to_conversation(row, columns={"messages": "body.messages"})
    assert conversation.unused_keys == ("body.tools", "body.model")
    assert blocked(row, columns={"messages": "body.messages"}) == ["body.tools"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "completion_a": "x", "completion_b": "y"}, "the better one of each row"),
        ({"prompt": "q", "completion": "a", "response": "b"}, "several answers: completion, resp"),
        ({"question": "q", "answer": "a", "solution": "b"}, "`columns: {answer: answer}`"),
        ({"messages": [USER, ANSWER, USER], "response": "last"}, "end in a question"),
        ({"chat_history": [USER], "message": "q", "text": "a"}, "unknown format"),
        ({"role": "user", "text": "q", "parent_id": None}, "the row is one turn"),
        ({"question": "q", "answer": 2, "choices": ["a"]}, "write the answer as a text"),
        ({"question": "q", "answer": True}, "write the answer as a text"),
        ({"messages": [USER, {"role": "assistant", "refusal": "no"}]}, "only the keys role, ref"),
    ],
)
def test_a_row_without_one_certain_answer_is_refused(row, words) -> None:
    assert words in reason(row)


def test_a_mapped_answer_settles_which_of_several_is_trained() -> None:
    row = {"question": "q", "answer": "good", "solution": "b"}
    assert to_conversation(row, columns={"answer": "answer"}).turns == TWO_TURNS
    assert to_conversation({**row, "solution": "good"}).turns == TWO_TURNS  # the same text twice


def test_an_answer_in_a_list_of_texts_is_read_if_it_is_the_only_one() -> None:
    row = {"question": "q", "found": {"text": ["good", "good"]}}
    for columns in (
        {"prompt": "question", "completion": "found.text"},
        {"answer": "found.text"},
    ):
        assert to_conversation(row, columns=columns).turns == TWO_TURNS
    row = {"question": "q", "found": {"text": ["good", "another"]}}
    assert "expected one text" in reason(row, columns={"answer": "found.text"})


@pytest.mark.parametrize(
    "exchange",
    [
        {"input": "q", "output": "good"},
        {"output": "good", "input": "q"},
        {"system": "", "input": "q", "output": "good"},
        {"assistant": "good", "human": "q"},
    ],
)
def test_a_turn_may_be_a_question_with_its_answer(exchange: dict[str, str]) -> None:
    assert to_conversation({"conversation": [exchange, exchange]}).turns == (*TWO_TURNS, *TWO_TURNS)
    turns = to_conversation({"conversation": [{**exchange, "system": "s"}]}).turns
    assert turns == (Turn("system", "s"), *TWO_TURNS)


def test_the_hint_never_takes_a_system_text_or_a_role_for_a_question() -> None:
    for row in ({"system": "s", "chat": "USER: q ASSISTANT: a"}, {"role": "user", "message": "q"}):
        assert "prompt: system" not in reason(row) and "prompt: role" not in reason(row)
    numbered = {"sentence1": "a", "sentence2": "b", "score": 1}
    assert "prompt: sentence1" not in reason(numbered)
    tree = {"id": "1", "prompt": {"role": "prompter", "text": "q", "replies": [ANSWER]}}
    assert "prompt.replies" not in reason(tree)


def test_an_answer_in_a_prompt_that_asks_to_be_trained_is_named() -> None:
    row = {"prompt": [USER, {**ANSWER, "train": True}, USER], "completion": "a"}
    assert blocked(row) == ["prompt.train"]
    assert blocked({**row, "prompt": [USER, {**ANSWER, "train": False}, USER]}) == []


def test_parts_named_by_their_key_are_read() -> None:
    """Bedrock and Gemini have no key `type`."""
    call = {"toolUse": {"toolUseId": "1", "name": "f", "input": {"x": 1}}}
    result = {"toolResult": {"toolUseId": "1", "content": [{"json": {"y": 2}}]}}
    thought = {"reasoningContent": {"reasoningText": {"text": "t"}}}
    bedrock = [
        {"role": "user", "content": [{"text": "q"}]},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
        {"role": "assistant", "content": [thought, {"text": "a"}]},
    ]
    gemini = [
        {"role": "user", "parts": [{"text": "q"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"x": 1}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"y": 2}}}]},
        {"role": "model", "parts": [{"text": "t", "thought": True}, {"text": "a"}]},
    ]
    for row in ({"messages": bedrock}, {"contents": gemini}):
        conversation = to_conversation(row)
        user, called, answered, answer = conversation.turns
        assert called.tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}
        assert (answered.role, json.loads(answered.content)) == ("tool", {"y": 2})
        assert (answer.reasoning, answer.content, user.content) == ("t", "a", "q")
        assert conversation.unused_keys == ()


def test_entries_of_columns_and_roles_without_a_use_are_an_error(
    pocket_base: str, tmp_path: Path
) -> None:
    rows = [{"q": "x", "a": "y"}, {"q": "z", "a": "w"}]
    columns = {"prompt": "q", "completion": "a"}
    Dataset(pocket_base, tmp_path, rows, source={"columns": columns})
    for source, entry in (
        ({"columns": {**columns, "system": "sys"}}, "columns: {system: sys}"),
        ({"columns": columns, "roles": {"Bot": "assistant"}}, "roles: {Bot: assistant}"),
    ):
        with pytest.raises(UserError) as error:
            Dataset(pocket_base, tmp_path, rows, source=source)
        assert f"data.sources.0.{entry} does nothing: none of the 2 rows" in str(error.value)


def test_the_entries_that_a_row_uses() -> None:
    source = SourceConfig(
        path="x",
        columns={"messages": "body.talk", "system": "sys"},
        roles={"Agent": "assistant", "Caller": "user", "Nobody": "user"},
    )
    talk = [{"role": "Caller", "content": "q"}, {"role": "Agent", "content": "a"}]
    roles = ["roles: {Agent: assistant}", "roles: {Caller: user}"]
    for value in (
        talk,
        json.dumps(talk),
        [{"Caller": "q", "Agent": "a"}],
        {"role": ["Caller", "Agent"], "content": ["q", "a"]},
    ):
        row = {"body": {"talk": value}}
        assert used_options(row, source) == ["columns: {messages: body.talk}", *roles]
    assert used_options([], source) == []
    assert len(options_of(source)) == 5


def test_every_crossed_fact_has_its_line(chatml_base: str, tmp_path: Path) -> None:
    """Rows that were rendered before have a template around the prompt and an end in the answer."""
    prompt = "<|im_start|>user\nq{}<|im_end|>\n<|im_start|>assistant\n"
    assert "<|im_start|>" in CHATML
    rows = [{"prompt": prompt.format(i), "completion": f"a{i}<|im_end|>"} for i in range(2)]
    text, audit = Dataset(chatml_base, tmp_path, rows).inspect()
    ends, templates = audit.problems
    assert "have an answer that ends in the text <|im_end|>" in ends and ends in text
    assert "the text of a chat template in a message" in templates and templates in text


def test_results_that_have_the_tag_of_the_template_are_named(
    chatml_base: str, tmp_path: Path
) -> None:
    turns = [
        *pair("q", "calling")["messages"],
        {"role": "tool", "content": "<tool_response>\n{}\n</tool_response>"},
        {"role": "assistant", "content": "a"},
    ]
    _, audit = Dataset(chatml_base, tmp_path, [{"messages": turns}]).inspect()
    assert any("most often <tool_response>" in problem for problem in audit.problems)
