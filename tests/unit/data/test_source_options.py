"""What `weight`, `train_on` and `too_long` do to the rows of a source."""

from __future__ import annotations

import json

import pytest

from pipelines.core.errors import UserError
from tests.unit.data.datasets import long_talk, prepare_rows, rows_of

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_weight_below_one_keeps_some_of_the_answers_to_one_question(
    pocket_base, store, tmp_path, serially
):
    rows = [{"instruction": "Say a number", "output": f"It is {i}."} for i in range(100)]
    prepared, _ = prepare_rows(
        pocket_base, store, tmp_path, rows, source={"weight": 0.5}, tokenize=serially
    )
    assert 30 <= prepared.counts["train"] <= 70
    assert prepared.counts["skipped"] == 100 - prepared.counts["train"]


@pytest.mark.parametrize(
    ("weight", "low", "high"), [(0.5, 30, 70), (1.5, 130, 170), (2, 200, 200), (0, 0, 0)]
)
def test_weights_repeat_or_leave_out_rows_by_content(
    pocket_base, store, tmp_path, weight, low, high
):
    rows = rows_of(range(100))
    if not weight:
        with pytest.raises(UserError, match="no row left to train on"):
            prepare_rows(pocket_base, store, tmp_path, rows, source={"weight": weight})
        return
    prepared, texts = prepare_rows(pocket_base, store, tmp_path, rows, source={"weight": weight})
    assert low <= len(texts) <= high and prepared.train.num_samples == len(texts)
    assert prepared.counts["skipped"] == 100 - prepared.counts["train"]


def test_long_conversations_are_dropped_truncated_or_split_by_whole_turns(
    pocket_base, store, tmp_path
):
    rows = [long_talk(0, 12), long_talk(1, 1), long_talk(2, 1, words=400)]
    prepared, texts = prepare_rows(pocket_base, store, tmp_path, rows)
    assert prepared.counts["too_long"] == 2 and len(texts) == 1
    rejects = [
        json.loads(line)
        for line in (store.local_dir(prepared.ref) / "rejects.jsonl").read_text().splitlines()
    ]
    assert [line["fate"] for line in rejects] == ["too_long"] * 2 and all(
        "talk " in line["row"] for line in rejects
    )
    prepared, texts = prepare_rows(pocket_base, store, tmp_path, rows, too_long="truncate")
    assert (prepared.counts["too_long"], prepared.counts["shortened"], len(texts)) == (1, 1, 2)
    (cut,) = (text for text in texts if "talk 0" in text)
    assert (
        cut.startswith("<|system|>talk 0<|user|>question ")
        and "answer 11 " in cut
        and "question 0 " not in cut
    )
    prepared, texts = prepare_rows(pocket_base, store, tmp_path, rows, too_long="split")
    pieces = [text for text in texts if "talk 0" in text]
    assert prepared.counts["pieces"] == len(pieces) > 1
    assert sorted(
        int(p.split(" ")[0]) for text in pieces for p in text.split("<|assistant|>answer ")[1:]
    ) == list(range(12))


def test_train_on_last_leaves_earlier_answers_out_of_the_loss(pocket_base, store, tmp_path):
    prepared, texts = prepare_rows(
        pocket_base, store, tmp_path, [long_talk(i, 2, words=1) for i in range(5)]
    )
    last, same = prepare_rows(
        pocket_base, store, tmp_path, [long_talk(i, 2, words=1) for i in range(5)], train_on="last"
    )
    assert (
        sorted(texts) == sorted(same)
        and last.train.num_loss_tokens * 2 == prepared.train.num_loss_tokens
    )
