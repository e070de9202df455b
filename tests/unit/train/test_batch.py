"""How packed rows become the tensors of a micro-batch."""

from __future__ import annotations

from pipelines.train.batch import collate


def test_collate_joins_samples_without_padding() -> None:
    """Two rows of 8 with samples of 3 + 2 and 4 tokens give one sequence of nine.

    The first token of a sample has no loss, whatever its weight; nor have masked tokens.
    """
    rows = [
        {
            "input_ids": [5, 6, 7, 8, 9, 0, 0, 0],
            "loss_weights": [1, 0, 1, 1, 2, 0, 0, 0],
            "sample_lengths": [3, 2],
        },
        {
            "input_ids": [1, 2, 3, 4, 0, 0, 0, 0],
            "loss_weights": [0, 0, 1, 1, 0, 0, 0, 0],
            "sample_lengths": [4],
        },
    ]
    batch = collate(rows)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 1, 2, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert batch.bounds.cu_seqlens.tolist() == [0, 3, 5, 9]
    assert batch.label_positions.tolist() == [1, 3, 6, 7]
    assert batch.targets.tolist() == [7, 9, 3, 4]
    assert batch.weights.tolist() == [1, 2, 1, 1]
    assert batch.total_weight == 5


def test_a_filler_has_no_loss() -> None:
    batch = collate([])
    assert batch.total_weight == 0 and batch.num_tokens == 1
