"""The held-out set as batches: every sample once, the same prompts every time."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.core.artifacts import PreparedDataset
from pipelines.eval.heldout import (
    HeldoutSet,
    answer_batches,
    batch_from_row,
    batch_table,
    load_heldout,
    loss_batches,
)
from pipelines.packed.reader import PackedSample
from pipelines.storage import Store


def sample(name: str, length: int) -> PackedSample:
    return PackedSample(name, np.arange(length, dtype=np.int32), np.ones(length, np.float32))


def test_every_sample_is_cut_out_of_its_pack(heldout: HeldoutSet, renderer: Any) -> None:
    assert [s.sample_id for s in heldout.samples] == [f"s{n}" for n in range(15)]
    first = heldout.samples[1]
    text = renderer.decode(first.input_ids, skip_special_tokens=False)
    assert text == "<|user|>Stow the deck please<|assistant|>Aye, captain.<|end|>"
    labels = renderer.decode(first.input_ids[first.loss_weights > 0], skip_special_tokens=False)
    assert labels == "Aye, captain.<|end|>"


def test_the_chosen_prompts_are_the_same_every_time_and_not_the_first_ones(
    heldout: HeldoutSet, eval_store: Store, prepared: PreparedDataset
) -> None:
    again = load_heldout(eval_store, prepared, max_prompts=8)
    ids = [p.sample_id for p in heldout.prompts]
    assert [p.sample_id for p in again.prompts] == ids and len(set(ids)) == 8
    assert set(ids) != {f"s{n}" for n in range(8)}
    fewer = load_heldout(eval_store, prepared, max_prompts=3)
    assert [p.sample_id for p in fewer.prompts] == ids[:3]


def test_loss_batches_have_every_sample_once_and_stay_within_the_token_limit() -> None:
    samples = [sample(f"s{n}", 1 + (n * 37) % 50) for n in range(100)] + [sample("huge", 500)]
    batches = loss_batches(samples, max_tokens=128)
    assert sorted(i for batch in batches for i in batch.sample_ids) == sorted(
        s.sample_id for s in samples
    )
    assert all(
        len(batch.tokens) * max(map(len, batch.tokens)) <= 128
        for batch in batches
        if batch.sample_ids != ["huge"]
    )
    assert len(batches) < 40


def test_a_batch_is_the_same_after_arrow(heldout: HeldoutSet) -> None:
    for batch in [*loss_batches(heldout.samples), *answer_batches(heldout.prompts, 3)]:
        copy = batch_from_row(batch_table([batch]).to_pylist()[0])
        assert (copy.kind, copy.sample_ids) == (batch.kind, batch.sample_ids)
        for actual, expected in zip(
            [*copy.tokens, *copy.weights], [*batch.tokens, *batch.weights], strict=True
        ):
            assert actual.dtype == expected.dtype and np.array_equal(actual, expected)
