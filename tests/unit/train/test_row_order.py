"""Which rows each step trains on, for any number of workers and after a resume."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config.schema import TrainConfig
from pipelines.train.row_order import RowOrder


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    batch=st.integers(1, 9),
    workers=st.integers(1, 5),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_every_row_is_used_once_an_epoch_for_any_number_of_workers(
    rows: int, batch: int, workers: int, epochs: int, seed: int
) -> None:
    row_order = RowOrder(rows, TrainConfig(epochs=epochs, global_batch=batch, seed=seed))
    by_step = [row_order.rows_of(step) for step in range(row_order.num_steps)]
    for epoch in range(epochs):
        steps = slice(epoch * row_order.steps_per_epoch, (epoch + 1) * row_order.steps_per_epoch)
        assert sorted(np.concatenate(by_step[steps])) == list(range(rows))
    by_rank = [row_order.rows_of_rank(0, rank, workers) for rank in range(workers)]
    assert sorted(np.concatenate(by_rank)) == sorted(np.concatenate(by_step))


@settings(deadline=None)
@given(first=st.integers(0, 12), workers=st.integers(1, 3))
def test_a_resumed_rank_gets_the_rest_of_its_rows(first: int, workers: int) -> None:
    row_order = RowOrder(10, TrainConfig(epochs=4, global_batch=3))
    for rank in range(workers):
        num_done = sum(len(row_order.rows_of(step)[rank::workers]) for step in range(first))
        all_rows = row_order.rows_of_rank(0, rank, workers)
        assert np.array_equal(row_order.rows_of_rank(first, rank, workers), all_rows[num_done:])


def test_epochs_differ_and_max_steps_ends_the_run() -> None:
    row_order = RowOrder(32, TrainConfig(epochs=2, global_batch=32))
    assert not np.array_equal(row_order.rows_of(0), row_order.rows_of(1))
    assert RowOrder(32, TrainConfig(epochs=9, global_batch=4, max_steps=5)).num_steps == 5
    assert RowOrder(32, TrainConfig(epochs=0.5, global_batch=4)).num_steps == 4
