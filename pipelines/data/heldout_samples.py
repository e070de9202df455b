"""Writes the held-out samples that have a prompt and stay in the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.tokenized_table import SCHEMA
from pipelines.packed.format import HELDOUT_SCHEMA, LABELS
from pipelines.packed.writer import Selection

SPLIT = "select"  # held-out rows choose the checkpoint
_COLUMNS = [name for name in HELDOUT_SCHEMA.names if name not in LABELS]


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

    def write(self, path: Path, stays: np.ndarray, chosen: Selection) -> None:
        """Write the rows of the mask `stays` (bool, one for each added row) that have a prompt.

        `chosen` has the labels of the rows that stay, in their order.
        """
        self._out.close()
        start, num_before = 0, 0
        with pq.ParquetWriter(path, HELDOUT_SCHEMA) as out:
            for batch in pq.ParquetFile(self._path).iter_batches():
                mask = stays[start : start + len(batch)]
                start += len(batch)
                rows = batch.filter(pa.array(mask))
                has_prompt = rows["prompt_ids"].is_valid()
                samples = num_before + np.flatnonzero(has_prompt.to_numpy(zero_copy_only=False))
                num_before += len(rows)
                rows = rows.filter(has_prompt)
                columns = {name: rows[name] for name in _COLUMNS} | chosen.labels(samples)
                out.write_table(pa.table(columns).select(HELDOUT_SCHEMA.names).cast(HELDOUT_SCHEMA))
