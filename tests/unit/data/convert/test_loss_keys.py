"""The keys of turns and parts that say which parts of them enter the loss."""

from __future__ import annotations

import pytest

from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation

USER = {"role": "user", "content": "q"}


def answer(**keys):
    """The last turn of a row whose answer has these keys."""
    turn = {"role": "assistant", "content": "0123456789", **keys}
    return to_conversation({"messages": [USER, turn, {"role": "assistant", "content": "b"}]}).turns[
        1
    ]


@pytest.mark.parametrize(
    ("keys", "train", "weight"),
    [
        ({}, True, 1),
        ({"train": False}, False, 1),
        ({"loss": False}, False, 1),
        ({"loss": True, "train": True}, True, 1),
        ({"loss": None, "weight": None}, True, 1),
        ({"weight": 0}, True, 0),
        ({"loss_weight": 0.5}, True, 0.5),
        ({"loss_scale": 2}, True, 2),
        ({"weight": 1, "loss_weight": 1.0}, True, 1),
        ({"loss": False, "weight": 0}, False, 0),
    ],
)
def test_flags_and_weights_of_a_turn(keys, train, weight):
    assert (answer(**keys).train, answer(**keys).weight) == (train, weight)


@pytest.mark.parametrize(
    "keys",
    [
        {"train": True, "loss": False},
        {"train": True, "weight": 0},
        {"loss": False, "loss_weight": 1},
        {"weight": 1, "loss_scale": 2},
    ],
)
def test_keys_that_contradict_each_other_cost_the_row(keys):
    with pytest.raises(RowError, match=r"^messages\[1\]: .* contradict each other$"):
        answer(**keys)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"loss": "no"}, "loss is true or false"),
        ({"loss": 0.5}, "loss is true or false, this is 0.5"),
        ({"loss_weight": True}, "loss_weight is a number of 0 to 1000"),
        ({"loss_scale": float("nan")}, "loss_scale is a number of 0 to 1000, this is nan"),
        ({"weight": -1}, "weight is a number"),
    ],
)
def test_values_of_another_type_cost_the_row(keys, reason):
    with pytest.raises(RowError, match=reason):
        answer(**keys)


def detail(*entries: tuple[int, int, bool]) -> list[dict]:
    return [
        {"begin_offset": begin, "end_offset": end, "train": train} for begin, end, train in entries
    ]


@pytest.mark.parametrize(
    ("entries", "masked"),
    [
        # The rest is trained if no entry asks for training, as `train: false` alone means.
        ([(0, 3, False)], ((0, 4),)),
        ([(2, 3, False), (6, 9, False)], ((2, 4), (6, 10))),
        # Axolotl trains nothing outside of the entries with true.
        ([(2, 3, True)], ((0, 2), (4, 10))),
        ([(0, 3, False), (4, 6, True), (7, 9, False)], ((0, 4), (7, 10))),
        ([(0, 9, True)], ()),
        ([(0, 10, True)], ()),  # an end that was meant to be exclusive
        ([(0, 5, False), (4, 9, True)], ((0, 4),)),
        ([], ()),
    ],
)
def test_train_detail_masks_ranges_with_inclusive_ends(entries, masked):
    assert answer(train_detail=detail(*entries)).masked == masked


@pytest.mark.parametrize(
    "value",
    [detail((10, 12, True)), detail((-1, 2, True)), detail((3, 2, True)), [{"begin_offset": 0}],
     [3], 3, "x", detail((0, 1, True))[0]],
)  # fmt: skip
def test_ranges_outside_of_the_content_cost_the_row(value):
    with pytest.raises(RowError, match="train_detail"):
        answer(train_detail=value)


def test_a_turn_without_a_trained_character_is_context():
    turn = answer(train_detail=detail((0, 9, False)))
    assert not turn.train and turn.masked == ()
    parts = [{"type": "text", "text": "ab", "train": False}]
    assert not answer(content=parts).train
    with pytest.raises(RowError, match="no assistant turn to train on"):
        to_conversation({"messages": [USER, {"role": "assistant", "content": parts}]})


def test_parts_are_masked_one_by_one():
    parts = [
        {"type": "text", "text": "ab", "train": False},
        {"type": "text", "text": "cde"},
        {"type": "text", "text": "", "train": False},
        {"type": "text", "text": "f", "loss": False},
        {"type": "text", "text": "gh", "weight": 0},
        {"type": "text", "text": "i", "train": True},
    ]
    turn = answer(content=parts)
    assert (turn.content, turn.masked) == ("abcdefghi", ((0, 2), (5, 8)))
    with pytest.raises(RowError, match="not by shares"):
        answer(content=[{"type": "text", "text": "a", "weight": 0.5}])
    with pytest.raises(RowError, match="train_detail"):
        answer(content=parts, train_detail=detail((0, 1, False)))
