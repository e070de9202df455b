"""Writes the held-out samples that have a prompt and stay in the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.tokenized_table import SCHEMA
from pipelines.packed.format import HELDOUT_SCHEMA
from pipelines.packed.writer import hex_ids

SPLIT = "select"  # held-out rows choose the checkpoint
_COLUMNS = (
    "chunk", "sample_id", "cluster_id", "prompt_ids", "reference", "prompt", "messages",
)  # fmt: skip


class HeldoutSamples:
    """Collects held-out rows in a scratch file; a context manager for that file."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch
        self._out = pq.ParquetWriter(scratch, pa.schema([SCHEMA.field(name) for name in _COLUMNS]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self._path.unlink()

    def add(self, table: pa.Table) -> None:
        """Add held-out rows of a table of tokenized_table.SCHEMA."""
        self._out.write_table(table.select(_COLUMNS))

    def write(self, path: Path, stays: np.ndarray, source_of_chunk: np.ndarray) -> None:
        """Write the rows of the mask `stays` (bool, one for each added row) that have a prompt."""
        self._out.close()
        start = 0
        with pq.ParquetWriter(path, HELDOUT_SCHEMA) as out:
            for batch in pq.ParquetFile(self._path).iter_batches():
                has_prompt = batch["prompt_ids"].is_valid().to_numpy(zero_copy_only=False)
                mask = stays[start : start + len(batch)] & has_prompt
                start += len(batch)
                rows = batch.filter(pa.array(mask))
                out.write_table(_labeled(rows, source_of_chunk))


def _labeled(rows: pa.RecordBatch, source_of_chunk: np.ndarray) -> pa.Table:
    columns = {name: rows[name] for name in _COLUMNS[3:]} | {
        "sample_id": hex_ids(rows["sample_id"]),
        "cluster_id": hex_ids(rows["cluster_id"]),
        "source": pa.array(source_of_chunk[rows["chunk"].to_numpy()], pa.int32()),
        "slice": pa.repeat("", len(rows)),
        "split": pa.repeat(SPLIT, len(rows)),
    }
    return pa.table([columns[name] for name in HELDOUT_SCHEMA.names], schema=HELDOUT_SCHEMA)
