"""Keys of rows that nothing reads are named; those that mean something elsewhere block training."""

from __future__ import annotations

import pytest

from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.convert.unused_keys import blocking, harmless, meaning

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def unused(row, **kwargs) -> tuple[str, ...]:
    return to_conversation(row, **kwargs).unused_keys


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, ANSWER]}, ()),
        ({"messages": [USER, ANSWER], "label": False, "id": 0}, ("label", "id")),
        ({"prompt": "q", "completion": "a", "rejected": "b"}, ("rejected",)),
        ({"question": "q", "choices": ["a", "b"], "answer": "a"}, ("choices",)),
        ({"messages": [USER, ANSWER], "context": "c", "tools": []}, ("context",)),
        ({"text": "t", "url": "u"}, ("url",)),
        ({"messages": [USER, {**ANSWER, "loss_mask": [0]}]}, ("messages.loss_mask",)),
        ({"conversations": [USER, {**ANSWER, "score": 1}]}, ("conversations.score",)),
        ({"messages": [{**USER, "images": ["a.png"]}, ANSWER]}, ("messages.images",)),
        ({"prompt": [USER], "completion": [{**ANSWER, "prefix": True}]}, ("completion.prefix",)),
        (
            {"messages": [USER, {**ANSWER, "content": [{"type": "text", "text": "a", "x": 1}]}]},
            ("messages.content.x",),
        ),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "mode": "x"}]}]},
            ("messages.tool_calls.mode",),
        ),
        ({"prompt": [USER], "completion": "a", "context": "c", "input": "i"}, ("context", "input")),
        ({"prompt": "q", "completion": [ANSWER], "reasoning": "r"}, ("reasoning",)),
        (
            {"messages": [{"role": "system", "content": "own"}, USER, ANSWER], "system": "other"},
            ("system",),
        ),
    ],
)
def test_every_key_that_nothing_reads_is_named_with_its_path(row, expected):
    assert unused(row) == expected


@pytest.mark.parametrize("value", [None, "", " ", [], {}, float("nan"), [None], {"a": None}])
def test_keys_without_a_value_do_not_count(value):
    row = {"question": "q", "answer": "a", "images": value, "label": value}
    assert unused(row) == ()
    assert unused({"messages": [{**USER, "images": value}, {**ANSWER, "audio": value}]}) == ()


def test_false_and_zero_are_values():
    assert unused({"question": "q", "answer": "a", "label": False, "kto_tag": 0}) == (
        "label", "kto_tag",
    )  # fmt: skip


def test_a_text_that_a_turn_repeats_was_read():
    """UltraChat's rows have the first question under `prompt` too."""
    row = {"messages": [USER, ANSWER], "prompt": "q", "solution": "a", "prompt_id": "x"}
    assert unused(row) == ("prompt_id",)


def test_keys_that_ask_to_train_a_user_turn_are_named():
    """Only answers are trained; Axolotl trains the user's turn of such rows."""
    for key in ("train", "loss", "weight"):
        assert unused({"messages": [{**USER, key: True if key != "weight" else 1}, ANSWER]}) == (
            f"messages.{key}",
        )
    off = {"messages": [{**USER, "train": False, "loss_weight": 0.0}, ANSWER]}
    assert unused(off) == ()
    assert to_conversation(off) == to_conversation({"messages": [USER, ANSWER]})


def test_thoughts_of_other_turns_than_answers_are_named():
    assert unused({"messages": [{**USER, "reasoning": "r"}, ANSWER]}) == ("messages.reasoning",)


def test_meaningful_keys_block_unless_they_are_allowed():
    counts = {"id": 300, "label": 2, "images": 9, "messages.loss_mask": 3, "messages.score": 1}
    assert blocking(counts, []) == ["images", "messages.loss_mask", "label"]
    assert harmless(counts, []) == ["id", "messages.score"]
    assert blocking(counts, ["label", "loss_mask"]) == ["images"]
    assert blocking(counts, ["messages.loss_mask", "images"]) == ["label"]
    assert harmless(counts, ["images"]) == ["id", "images", "messages.score"]


@pytest.mark.parametrize(
    "key",
    [
        "chosen", "rejected", "rejected_response", "label", "kto_tag", "images", "image", "videos",
        "audios", "image_path", "loss", "loss_weight", "train_detail", "reasoning", "thinking",
        "choices", "context", "system_prompt", "messages.reasoning_details", "documents",
        "chat_template_kwargs",
    ],
)  # fmt: skip
def test_a_meaning_is_known_for(key):
    assert meaning(key)


def test_most_keys_have_no_meaning():
    for key in ("id", "idx", "source", "dataset", "lang", "category", "score", "title", "url"):
        assert meaning(key) is None


@pytest.mark.parametrize(
    "text",
    ["<image>Who is it?", "<image>\nWhat?", "What?\n<image>", "<video>\nWhat?", "<image_1>Is it?",
     "<|image_pad|> What?"],
)  # fmt: skip
def test_a_placeholder_of_media_costs_the_row_if_no_key_has_the_media(text):
    messages = [{"role": "user", "content": text}, ANSWER]
    with pytest.raises(RowError, match="media that a text base cannot see"):
        to_conversation({"messages": messages})
    assert unused({"messages": messages, "images": ["1.jpg"]}) == ("images",)


@pytest.mark.parametrize(
    "text",
    [
        "<video> is an HTML tag. Why?",
        "What does <audio> do?",
        "Explain the <image> tag",
        "What is `<image>`?",
        "<rss><image><url>u</url></image></rss>",
        "Is <audio>none</audio> right?",
        "a < b",
        "<img>",
    ],
)
def test_tags_within_a_text_are_text(text):
    assert to_conversation({"question": text, "answer": "a"}).turns[0].content == text
