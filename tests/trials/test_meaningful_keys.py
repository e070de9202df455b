"""Keys that mean something elsewhere, in the spellings of all makers, and media in a text."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.convert.unused_keys import MEDIA, advice, blocking, meaning

pytestmark = pytest.mark.trials
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
CHAT = {"messages": [USER, ANSWER]}
PAIR = {"instruction": "q", "output": "good"}


def blocked(row: dict[str, Any], **source: Any) -> list[str]:
    return blocking(dict.fromkeys(to_conversation(row, **source).unused_keys, 1), [])


@pytest.mark.parametrize(
    "key",
    [
        "Label", "Rejected", "accepted", "is_bad", "feedback", "completion_label", "response_k",
        "completion_b", "lossMask", "no_loss", "is_masked", "mask_loss", "turn_mask", "masks",
        "assistant_masks", "completion_mask", "token_weights", "train_on_input", "train_on_inputs",
        "do_train", "is_trained", "ignore", "skip", "include_in_loss", "Complex_CoT", "Context", 
        "thinking_trajectories",
        "option_a", "opa", "choice1", "Options", "A", "definition", "chat_history", "toolConfig",
        "enable_thinking", "image_0", "picture", "image_file",
    ],
)  # fmt: skip
def test_the_same_meaning_in_another_spelling_blocks(key: str) -> None:
    for row in ({**PAIR, key: "v"}, {**CHAT, key: "v"}):
        assert blocked(row) == [key]


@pytest.mark.parametrize(
    "key",
    ["id", "score", "rating", "lang", "source", "model", "metadata", "timestamp", "input_ids",
     "attention_mask", "n_epochs", "answerable", "training_date_note", "unlabelled_source",
     "reward_model",
     "reasoning_type", "image_prompt_style", "instruction_de", "a", "opinion", "trained_by"],
)  # fmt: skip
def test_other_keys_stay_notes(key: str) -> None:
    assert meaning(key) is None


@pytest.mark.parametrize("key", ["mask", "loss_mask", "train_on", "label", "training_detail"])
def test_keys_of_turns_and_parts_block_with_their_path(key: str) -> None:
    assert blocked({"messages": [USER, {**ANSWER, key: 0}]}) == [f"messages.{key}"]
    part = {"type": "text", "text": "a", key: True}
    assert blocked({"messages": [USER, {**ANSWER, "content": [part]}]}) == [
        f"messages.content.{key}"
    ]


def test_each_meaning_has_its_own_advice() -> None:
    """Media and labels cannot be mapped."""
    for key, words in {
        "images": "their texts alone",
        "label": "remove the rows with bad answers",
        "rejected": "the other answer alone",
        "loss_mask": "`train: false`",
        "cot": "`columns: {reasoning: cot}`",
        "passage": "map it in the source's `columns`",
        "enable_thinking": "data.template_arguments",
    }.items():
        assert words in advice(key, key) and f"data.unused_keys.allow=[{key}]" in advice(key, key)
        assert ("`columns`" in advice(key, key)) == (key == "passage")


def test_a_text_beside_the_text_of_a_turn_blocks() -> None:
    row = {"messages": [USER, {**ANSWER, "text": "another"}]}
    assert blocked(row) == ["messages.text"]


@pytest.mark.parametrize(
    "text",
    ["What is it? <image>", "Compare <image> and <image>.", "Look: <audio>", "[IMG]What is it?",
     "Picture 1: <img>a/b.jpeg</img>\nWhat?", "Audio 1:<audio>x.wav</audio>", "<|image_1|> Who?",
     "<start_of_image> What?", "<im_start><image><im_end>\nWhat?", "<ImageHere>What?"],
)  # fmt: skip
def test_placeholders_of_media_cost_the_row(text: str) -> None:
    with pytest.raises(RowError, match="media that a text base cannot see"):
        to_conversation({"question": text, "answer": "a"})
    row = {"question": text, "answer": "a", "images": ["1.jpg"]}
    assert [meaning(key) for key in blocked(row)] == [MEDIA]
