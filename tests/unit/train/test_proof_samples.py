"""Which samples of a dataset a base is proven on, and which errors of a base are the user's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core.errors import UserError
from pipelines.packed.feed import RowFeed
from pipelines.packed.format import row_schema, shard_path
from pipelines.train.proof_errors import base_errors_as_user_errors
from pipelines.train.proof_samples import MAX_SAMPLES, choose_samples
from pipelines.train.track.run_progress import RunProgress
from tests.recorders import ProgressRecorder


def write_rows(folder: Path, rows: list[list[int]], row_tokens: int, shard: int = 0) -> RowFeed:
    """Packed rows with samples of these lengths; a sample's ids are its own number, from 1."""
    number, columns = 1, []
    for lengths in rows:
        ids = np.zeros(row_tokens, np.int32)
        ends = np.cumsum(lengths)
        for start, end in zip(ends - lengths, ends, strict=True):
            ids[start:end] = number
            number += 1
        columns.append({"input_ids": ids, "sample_lengths": lengths})
    table = pa.Table.from_pylist(columns, row_schema(row_tokens))
    pq.write_table(table, shard_path(folder, "train", shard), row_group_size=2)
    return RowFeed(folder)


def test_the_longest_comes_first_and_the_shortest_with_a_loss_is_there(tmp_path: Path) -> None:
    write_rows(tmp_path, [[1, 5, 9], [40, 3]], 64)
    feed = write_rows(tmp_path, [[7, 2, 8, 30], [1]], 64, shard=1)
    samples = choose_samples(feed, 64)
    assert [len(sample) for sample in samples[:2]] == [40, 2]
    # The ids of a shard's samples count from 1: 40 tokens are its 4th sample, 2 tokens its 2nd.
    assert [set(sample.tolist()) for sample in samples[:2]] == [{4}, {2}]
    assert len(samples) <= MAX_SAMPLES and len({len(sample) for sample in samples}) == len(samples)
    assert feed.sample_lengths()[1].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]


def test_samples_of_a_long_row_stay_few_tokens(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [random.integers(900, 1600, 2).tolist() for _ in range(40)]
    samples = choose_samples(write_rows(tmp_path, [*rows, [3900, 12]], 4096), 4096)
    assert len(samples[0]) == 3900 and len(samples[1]) == 12
    assert sum(map(len, samples[2:])) <= 1024
    rows = [random.integers(20, 200, 10).tolist() for _ in range(40)]
    assert len(choose_samples(write_rows(tmp_path, rows, 4096), 4096)) == MAX_SAMPLES


def test_a_dataset_of_single_tokens_has_nothing_to_prove(tmp_path: Path) -> None:
    assert choose_samples(write_rows(tmp_path, [[1, 1], [1]], 8), 8) == []


@pytest.mark.parametrize("kind", [AttributeError, TypeError, NotImplementedError, KeyError])
def test_an_error_of_the_bases_code_is_one_line_of_the_user(kind: type[Exception]) -> None:
    line = f"model.base=B cannot be.* raises {kind.__name__} .*no x"
    with pytest.raises(UserError, match=line), base_errors_as_user_errors("B"):
        raise kind("there is\nno x")


def test_an_error_that_may_pass_is_left_to_the_retries() -> None:
    with pytest.raises(RuntimeError, match="CUDA out of memory"), base_errors_as_user_errors("B"):
        raise RuntimeError("CUDA out of memory")
    with pytest.raises(UserError, match="^own words$"), base_errors_as_user_errors("B"):
        raise UserError("own words")


def test_the_command_notes_the_proof_once(tmp_path: Path) -> None:
    recorder = ProgressRecorder()
    with RunProgress(tmp_path, 10, recorder):
        (tmp_path / "base_proof.json").write_text(json.dumps({"line": "base proof: fine"}))
    assert recorder.notes == ["train: base proof: fine"]
