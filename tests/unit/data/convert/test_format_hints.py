"""Rows of no known format get the `columns:` line that would read them."""

from __future__ import annotations

import re

import pytest
import yaml

from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def proposal(row) -> tuple[str, dict[str, str] | None]:
    """The reason why a row has no format, and the columns that it proposes."""
    with pytest.raises(RowError, match="^unknown format: the row has the keys ") as error:
        to_conversation(row)
    line = re.search(r"the source's `columns: (\{.*?\})`", str(error.value))
    return str(error.value), yaml.safe_load(line[1]) if line else None


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"frage": "q", "antwort": "a"}, ["q", "a"]),
        ({"antwort": "a", "frage": "q"}, ["q", "a"]),
        ({"问题": "q", "答案": "a"}, ["q", "a"]),
        ({"Question": "q", "Answer": "a", "id": "1"}, ["q", "a"]),
        ({"Question: Text": "q", "Answer, Final": "a"}, ["q", "a"]),
        ({"user_message": "q", "model_answer": "a", "lang": "en"}, ["q", "a"]),
        ({"kysymys": "q", "vastaus": "a"}, ["q", "a"]),  # no known word: in their order
        ({"body": "q", "summary": "a"}, ["q", "a"]),
        ({"problem": "q", "solution": "a", "answer": "3"}, ["q", "a"]),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ["q", "a"]),
        ({"chosen": TURNS, "rejected": TURNS}, ["q", "a"]),
        ({"chosen_messages": TURNS, "rejected_messages": TURNS}, ["q", "a"]),
        ({"Messages": TURNS, "id": 1}, ["q", "a"]),
        ({"body": "t"}, ["t"]),
        ({"content": "t"}, ["t"]),
    ],
)
def test_the_proposed_columns_read_the_row(row, texts):
    _, columns = proposal(row)
    assert columns
    assert [turn.content for turn in to_conversation(row, columns=columns).turns] == texts


def test_a_preference_pair_is_named_and_its_rejected_answer_is_not_trained_in_silence():
    reason, columns = proposal({"prompt": "q", "chosen": "a", "rejected": "b"})
    assert "chosen and rejected are a preference pair" in reason
    assert "data.unused_keys: {allow: [rejected]}" in reason
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert to_conversation(row, columns=columns).unused_keys == ("rejected",)
    reason, columns = proposal({"chosen": "Human: q", "rejected": "Human: q"})
    assert "preference pair without a question" in reason and columns is None


@pytest.mark.parametrize("row", [{"foo": 1}, {"a": "1", "b": "2", "c": "3"}, {"input_ids": [1]}])
def test_without_a_guess_the_reason_lists_the_keys_to_map(row):
    reason, columns = proposal(row)
    assert columns == {"prompt": "KEY", "completion": "KEY"}
    assert "columns: {messages: KEY}" in reason and "columns: {text: KEY}" in reason


def test_text_with_a_key_that_means_something_is_not_read_as_plain_text_unasked():
    row = {"text": "t", "label": 1}
    reason, columns = proposal(row)
    assert "set the source's `format: text`" in reason and columns is None
    assert to_conversation(row, "text").unused_keys == ("label",)


def test_all_rows_of_a_file_have_one_reason():
    """The reasons of rejects are counted; a reason that depends on the texts would hide the sum."""
    reasons = {proposal({"kysymys": "q" * i, "vastaus": "a" * (9 - i)})[0] for i in range(1, 9)}
    assert len(reasons) == 1
