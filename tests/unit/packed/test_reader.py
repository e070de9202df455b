"""Packed rows keep their samples' labels and are read by number or sample by sample."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.packed.format import LABELS, TRAINING_COLUMNS, row_schema
from pipelines.packed.reader import PackedSample, RowReader, as_batch
from pipelines.packed.writer import SampleStore, Selection, write_shards

ROW_TOKENS = 16
LENGTHS = [3, 16, 5, 9, 1, 7, 12, 4]


@pytest.fixture
def samples() -> list[PackedSample]:
    rng = np.random.default_rng(0)
    return [
        PackedSample(
            sample_id=f"{i:032x}",
            input_ids=rng.integers(1, 99, length, np.int32),
            loss_weights=(rng.random(length) < 0.5).astype(np.float32),
            cluster_id=f"{100 + i // 2:032x}",
            source=i % 3,
            split="train",
            file=i % 2,
            line=i + 1,
            fault="stop_trained" if i % 3 == 1 else "",
        )
        for i, length in enumerate(LENGTHS)
    ]


@pytest.fixture
def folder(tmp_path, samples, monkeypatch):
    """The samples in several shards of two rows, in row groups of one."""
    monkeypatch.setattr("pipelines.packed.writer.SHARD_TOKENS", 2 * ROW_TOKENS)
    monkeypatch.setattr("pipelines.packed.writer.GROUP_TOKENS", ROW_TOKENS)
    table = pa.table(
        {
            "input_ids": pa.array([s.input_ids for s in samples], pa.large_list(pa.int32())),
            "loss_weights": pa.array(
                [s.loss_weights for s in samples], pa.large_list(pa.float32())
            ),
        }
    )
    ids = [[bytes.fromhex(getattr(s, n)) for s in samples] for n in ("sample_id", "cluster_id")]
    chosen = Selection(
        np.arange(len(samples)),
        sample_ids=np.array(ids[0], "S16").view("V16"),
        cluster_ids=np.array(ids[1], "S16").view("V16"),
        sources=np.array([s.source for s in samples], np.int32),
        files=np.array([s.file for s in samples], np.int32),
        lines=np.array([s.line for s in samples], np.int64),
        faults=pa.array([s.fault for s in samples]).dictionary_encode(),
        split="train",
    )
    with SampleStore(tmp_path / "scratch") as store:
        store.add(table)
        stats = write_shards(store, chosen, tmp_path, "train", ROW_TOKENS, seed=0)
    assert stats.num_loss_tokens == sum(np.count_nonzero(s.loss_weights) for s in samples)
    assert (stats.num_samples, stats.num_tokens) == (len(LENGTHS), sum(LENGTHS))
    assert len(list(tmp_path.glob("train-*.parquet"))) == -(-stats.num_rows // 2) > 1
    return tmp_path


def test_samples_are_read_back_with_their_tokens_weights_and_labels(folder, samples):
    by_id = {sample.sample_id: sample for sample in RowReader(folder, "train").samples()}
    assert len(by_id) == len(samples)
    for sample in samples:
        copy = by_id[sample.sample_id]
        assert all(getattr(copy, name) == getattr(sample, name) for name in LABELS)
        assert (copy.input_ids == sample.input_ids).all() and copy.input_ids.dtype == np.int32
        assert (copy.loss_weights == sample.loss_weights).all()


def test_packs_are_the_rows_in_order_without_padding(folder):
    reader = RowReader(folder, "train")
    batch, packs = as_batch(reader.read(np.arange(reader.num_rows))), list(reader.packs())
    assert len(packs) == reader.num_rows
    for ids, lengths, names, pack in zip(
        batch["input_ids"], batch["sample_lengths"], batch["sample_ids"], packs, strict=True
    ):
        assert [len(sample.input_ids) for sample in pack] == lengths.tolist()
        assert [sample.sample_id for sample in pack] == names
        joined = np.concatenate([sample.input_ids for sample in pack])
        assert (ids[: len(joined)] == joined).all() and not ids[len(joined) :].any()


def test_rows_are_read_by_number_without_the_columns_that_training_does_not_need(folder):
    reader = RowReader(folder, "train")
    order = np.arange(reader.num_rows)[::-1]
    table = reader.read(order)
    assert tuple(table.column_names) == TRAINING_COLUMNS
    assert set(row_schema(ROW_TOKENS).names) - set(table.column_names) == {
        "cluster_ids",
        "sources",
        "slices",
        "splits",
        "files",
        "lines",
        "faults",
    }
    for number, ids in zip(order, as_batch(table)["input_ids"], strict=True):
        assert (ids == as_batch(reader.read(np.array([number])))["input_ids"][0]).all()
    with pytest.raises(IndexError, match=f"row {reader.num_rows} of {reader.num_rows}"):
        reader.read(np.array([0, reader.num_rows]))
