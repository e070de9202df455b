"""Each row format is detected, converted, and refused with a reason."""

from __future__ import annotations

import pytest

from pipelines.chat import ChatRenderer
from pipelines.core.conversation import Turn
from pipelines.data.convert.content_keys import content_id, prompt_keys, question_keys, text_of
from pipelines.data.convert.format_keys import detect_format
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def contents(row, **kwargs) -> list[str]:
    return [turn.content for turn in to_conversation(row, **kwargs).turns]


@pytest.mark.parametrize(
    ("row", "format", "turns"),
    [
        (
            {
                "instruction": "i",
                "input": "x",
                "output": "o",
                "system": "s",
                "history": [["a", "b"]],
            },
            "alpaca",
            [
                ("system", "s"),
                ("user", "a"),
                ("assistant", "b"),
                ("user", "i\n\nx"),
                ("assistant", "o"),
            ],
        ),
        ({"instruction": "i", "output": "o"}, "alpaca", [("user", "i"), ("assistant", "o")]),
        (
            {
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                "system": "s",
            },
            "sharegpt",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    {"role": "assistant", "content": "b"},
                ]
            },
            "messages",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {"prompt": "p", "completion": "c"},
            "prompt_completion",
            [("user", "p"), ("assistant", "c")],
        ),
        ({"question": "q", "answer": "a"}, "question_answer", [("user", "q"), ("assistant", "a")]),
    ],
)
def test_each_format_is_detected_and_converted(row, format, turns):
    assert detect_format(row) == format
    assert [(t.role, t.content) for t in to_conversation(row).turns] == turns
    assert to_conversation(row, format) == to_conversation(row)


def test_a_prompt_may_be_a_list_of_turns_and_never_enters_the_loss():
    prompt = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    for completion in ([{"role": "assistant", "content": "d"}], "d"):
        talk = to_conversation({"prompt": prompt, "completion": completion})
        assert [t.content for t in talk.turns if t.role == "assistant" and t.train] == ["d"]
        assert [t.content for t in talk.turns] == ["a", "b", "c", "d"]


def test_keys_with_null_values_do_not_decide_the_format():
    row = {
        "messages": None,
        "conversations": None,
        "instruction": "i",
        "output": "o",
        "question": "q",
        "answer": None,
    }
    assert contents(row) == ["i", "o"]
    assert contents({"messages": TALK, "prompt": None, "completion": None}) == ["a", "b"]
    with pytest.raises(RowError, match="messages: missing"):
        to_conversation({"messages": None, "conversations": None})


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"query": "q", "response": "a"}, ["q", "a"]),
        ({"prompt": "q", "response": "a"}, ["q", "a"]),
        ({"instruction": "q", "response": "a"}, ["q", "a"]),
        ({"question": "q", "response": "a"}, ["q", "a"]),
        ({"input": "q", "output": "a"}, ["q", "a"]),
        ({"problem": "q", "solution": "a"}, ["q", "a"]),
        ({"user": "q", "assistant": "a"}, ["q", "a"]),
        ({"query": "q", "answer": "a"}, ["q", "a"]),
        ({"inputs": "q", "targets": "a"}, ["q", "a"]),
        ({"instruction": "q", "input": "x", "response": "a"}, ["q\n\nx", "a"]),
        ({"question": "q", "input": "x", "answer": "a"}, ["q\n\nx", "a"]),
        ({"query": "q", "response": "a", "history": [["b", "c"]]}, ["b", "c", "q", "a"]),
        ({"query": "q", "response": "a", "history": [], "system": "s"}, ["s", "q", "a"]),
        ({"system_prompt": "s", "question": "q", "response": "a"}, ["s", "q", "a"]),
        ({"messages": TALK, "system_message": "s"}, ["s", "a", "b"]),
        ({"conversation": TALK}, ["a", "b"]),
        ({"question": "q", "context": "c", "answer": "a"}, ["c\n\nq", "a"]),
        ({"instruction": "q", "context": "", "response": "a"}, ["q", "a"]),
        (
            {"context": "c", "question": "q", "answers": {"text": ["a", "a"], "answer_start": [0]}},
            ["c\n\nq", "a"],
        ),
        ({"prompt": None, "completion": None, "query": "q", "response": "a"}, ["q", "a"]),
    ],
)
def test_other_names_of_questions_answers_and_systems_are_read(row, turns):
    assert contents(row) == turns
    assert to_conversation(row).unused_keys == ()


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_a_thought_next_to_an_answer_is_its_reasoning(key):
    for row in (
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "output": "a"},
        {"query": "q", "response": "a"},
    ):
        talk = to_conversation({**row, key: "t"})
        assert talk.turns[-1].reasoning == "t" and talk.unused_keys == ()
    with pytest.raises(RowError, match="two thoughts"):
        to_conversation({"prompt": "q", "completion": "<think>u</think>a", key: "t"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"instruction": "i", "output": "o", "question": "q", "answer": "a"},
            r"several formats: alpaca \(.*\); question_answer \(.*\); set the source's `format`",
        ),
        ({"messages": TALK, "conversations": TALK[:1]}, "fits several formats"),
        ({"question": "q", "response": "a", "system": "s", "system_prompt": "t"}, "differ"),
        ({"question": "q", "answers": ["a", "b"]}, "expected one text, these are 2 values"),
        ({"question": "q", "answers": {"text": [], "answer_start": []}}, "expected one text"),
        ({"question": "q", "answer": None, "query": "p", "response": "a"}, "answer: missing"),
        ({"problem": "q", "solution": "a", "answer": "3"}, "unknown format"),
        ({"question": "q", "answer": 0}, r"answer: expected text, this is int \(0\)"),
        ({"question": "q", "answer": False}, "answer: expected text, this is bool"),
        ({"question": "q", "answer": float("nan")}, r"expected text, this is float \(nan\)"),
        ({"question": "q", "answer": "a", "context": ["c"]}, "context: expected text"),
        ({"instruction": "", "output": "a"}, "instruction: empty"),
        ({"text": " "}, "text: empty"),
        ({"text": 5}, "text: expected text"),
    ],
)
def test_rows_that_would_need_a_guess_are_refused(row, reason):
    with pytest.raises(RowError, match=reason):
        to_conversation(row)


def test_equal_values_under_two_names_are_no_contradiction():
    row = {"question": "q", "response": "a", "system": "s", "system_prompt": "s"}
    assert contents(row) == ["s", "q", "a"]
    assert contents({"messages": TALK, "conversations": TALK}) == ["a", "b"]


def test_plain_text_is_one_turn_of_its_own_role():
    for row, format in (
        ({"text": "t"}, "auto"),
        ({"text": "t", "id": 1, "url": "u", "meta": {"a": 1}}, "auto"),
        ({"text": "t", "messages": None, "label": None}, "auto"),
        ({"text": "t", "label": 1}, "text"),
        ({"content": "t"}, "text"),
    ):
        talk = to_conversation(row, format)
        assert talk.is_text and talk.turns == (Turn("text", "t"),)
    assert to_conversation({"body": "t"}, columns={"text": "body"}).is_text
    assert not to_conversation({"text": "t", "instruction": "i", "output": "o"}).is_text


def test_plain_texts_have_keys_of_their_own(pocket_base):
    """The split and the search for leaks compare questions, which plain text lacks."""
    first, second = to_conversation({"text": "a b"}), to_conversation({"text": "c d"})
    assert prompt_keys(first) != prompt_keys(second)
    assert question_keys(first) == question_keys(
        to_conversation({"question": "A  b", "answer": "x"})
    )
    assert content_id(first) != content_id(second)


def test_thoughts_and_masks_are_part_of_the_content():
    plain = to_conversation({"messages": TALK})
    thought = to_conversation({"messages": [TALK[0], {**TALK[1], "reasoning": "r"}]})
    assert content_id(plain) != content_id(thought)
    assert text_of(thought) == "a\nr\nb"
    parts = [{"text": "b", "train": False}, {"text": "c"}]
    masked = to_conversation({"messages": [TALK[0], {**TALK[1], "content": parts}]})
    plain_part = to_conversation({"messages": [TALK[0], {**TALK[1], "content": "bc"}]})
    assert content_id(masked) != content_id(plain_part)


@pytest.mark.parametrize(
    ("format", "key"), [("messages", "messages"), ("sharegpt", "conversations")]
)
def test_a_row_without_the_turns_of_its_format_is_refused(format, key):
    for row in ({"instruction": "i", "output": "o"}, {key: None}):
        with pytest.raises(RowError, match=f"^{key}: missing$"):
            to_conversation(row, format)


def test_an_empty_answer_is_context_in_every_format(pocket_base):
    talk = [
        ("user", "a"),
        ("assistant", " "),
        ("user", "b"),
        ("assistant", "c"),
        ("user", "d"),
        ("assistant", ""),
    ]
    messages = [{"role": role, "content": text} for role, text in talk]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    called = 'c<|end|><tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|end|>'
    renderer = ChatRenderer.load(pocket_base)
    for row, expected in (
        ({"messages": messages}, "c<|end|>"),
        ({"prompt": messages[:1], "completion": messages[1:]}, "c<|end|>"),
        (
            {"instruction": "d", "output": "e", "history": [["a", ""], ["b", "c"]]},
            "c<|end|>e<|end|>",
        ),
        ({"messages": [*messages, messages[0], call]}, called),
    ):
        rendered = renderer.render(to_conversation(row))
        assert (
            renderer.decode(
                rendered.input_ids[rendered.loss_weights > 0], skip_special_tokens=False
            )
            == expected
        )
