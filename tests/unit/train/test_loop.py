"""Which rows a step sees, how they become tensors, and the learning rate over a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError
from pipelines.layers.attention import packed_attention
from pipelines.layers.bounds import SampleBounds
from pipelines.train.batch import collate
from pipelines.train.loop import MAX_SKIPS, _check_finite
from pipelines.train.row_order import RowOrder
from pipelines.train.schedule import learning_rate


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    batch=st.integers(1, 9),
    workers=st.integers(1, 5),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_every_row_once_an_epoch_for_any_number_of_workers(
    rows: int, batch: int, workers: int, epochs: int, seed: int
) -> None:
    schedule = RowOrder(rows, TrainConfig(epochs=epochs, global_batch=batch, seed=seed))
    seen = [schedule.rows_of(step) for step in range(schedule.num_steps)]
    for epoch in range(epochs):
        part = seen[epoch * schedule.steps_per_epoch : (epoch + 1) * schedule.steps_per_epoch]
        assert sorted(np.concatenate(part)) == list(range(rows))
    shares = [schedule.order(0, rank, workers) for rank in range(workers)]
    assert sorted(np.concatenate(shares)) == sorted(np.concatenate(seen))


@settings(deadline=None)
@given(first=st.integers(0, 12), workers=st.integers(1, 3))
def test_a_resumed_rank_needs_the_rest_of_its_rows(first: int, workers: int) -> None:
    schedule = RowOrder(10, TrainConfig(epochs=4, global_batch=3))
    taken = [
        sum(len(schedule.rows_of(s)[rank::workers]) for s in range(first))
        for rank in range(workers)
    ]
    for rank in range(workers):
        whole = schedule.order(0, rank, workers)
        assert np.array_equal(schedule.order(first, rank, workers), whole[taken[rank] :])


def test_epochs_differ_and_max_steps_stops() -> None:
    schedule = RowOrder(32, TrainConfig(epochs=2, global_batch=32))
    assert not np.array_equal(schedule.rows_of(0), schedule.rows_of(1))
    assert RowOrder(32, TrainConfig(epochs=9, global_batch=4, max_steps=5)).num_steps == 5
    assert RowOrder(32, TrainConfig(epochs=0.5, global_batch=4)).num_steps == 4


def test_collate_lays_samples_end_to_end_without_padding() -> None:
    """Two rows of 8 with samples 3+2 and 4: nine tokens; first tokens of samples never train, masked ones neither."""
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
    assert batch.bounds.starts.tolist() == [0, 3, 5, 9]
    assert batch.label_positions.tolist() == [1, 3, 6, 7]
    assert batch.targets.tolist() == [7, 9, 3, 4]
    assert batch.weights.tolist() == [1, 2, 1, 1]
    assert batch.loss_tokens == 5


def test_filler_has_no_loss() -> None:
    batch = collate([])
    assert batch.loss_tokens == 0 and batch.num_tokens == 1


@settings(deadline=None)  # a busy machine is no failure
@given(lengths=st.lists(st.integers(1, 13), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_packed_attention_equals_each_sample_alone(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    query = torch.randn(1, 4, total, 8, generator=generator)
    key, value = (torch.randn(1, 2, total, 8, generator=generator) for _ in range(2))
    bounds = SampleBounds.of(torch.tensor(lengths))
    out, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, scaling=0.3, bounds=bounds
    )
    at = 0
    for length in lengths:
        part = slice(at, at + length)
        alone = functional.scaled_dot_product_attention(
            query[:, :, part],
            key[:, :, part],
            value[:, :, part],
            is_causal=True,
            scale=0.3,
            enable_gqa=True,
        )
        torch.testing.assert_close(out[0, part], alone[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
        at += length


def test_attention_without_bounds_is_refused() -> None:
    tensor = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="bounds"):
        packed_attention(torch.nn.Identity(), tensor, tensor, tensor, None)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(lr=1.0, warmup_share=0.1, schedule="cosine")
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5, abs=1e-9) and rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)
    linear = TrainConfig(lr=1.0, warmup_share=0, schedule="linear")
    assert learning_rate(linear, 25, 100) == pytest.approx(0.75)
    assert learning_rate(linear.model_copy(update={"schedule": "constant"}), 99, 100) == 1.0


def test_skipped_steps_are_counted_in_a_row_and_the_advice_is_another_than_what_is_set() -> None:
    bad, good = {"loss": 1.0, "grad_norm": float("inf")}, {"loss": 1.0, "grad_norm": 1.0}
    stop, skip = TrainConfig(nonfinite="stop"), TrainConfig(nonfinite="skip")
    with pytest.raises(UserError, match=r"step 7: .*set train.nonfinite=skip"):
        _check_finite(stop, 7, bad, False, 0)
    assert _check_finite(stop, 7, bad, True, 0) == 0  # fp16 lowers its loss scale
    assert (
        _check_finite(skip, 7, bad, False, 3) == 4 and _check_finite(skip, 8, good, False, 4) == 0
    )
    with pytest.raises(
        UserError, match=rf"after {MAX_SKIPS - 1} skipped steps in a row.*or train.clip_norm"
    ):
        _check_finite(skip, 7, bad, False, MAX_SKIPS - 1)
