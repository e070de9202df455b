"""Reading packed rows: by number for training, in order for evaluation and audits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.packed.format import (
    HELDOUT_SAMPLES,
    LABELS,
    TRAINING_COLUMNS,
    row_column,
    shard_paths,
)

# R: packed rows, T: tokens


@dataclass(frozen=True)
class PackedSample:
    """One sample cut out of its packed row: token ids int32 [T] and their loss weights float32 [T].

    The other fields are described with LABELS in packed.format.
    """

    sample_id: str
    input_ids: np.ndarray
    loss_weights: np.ndarray
    cluster_id: str = ""
    source: int = -1
    slice: str = ""
    split: str = ""
    file: int = -1
    line: int = 0
    fault: str = ""


class RowReader:
    """Random access to the packed rows of one split of a prepared artifact's folder."""

    def __init__(self, folder: Path, split: str) -> None:
        self._paths = shard_paths(folder, split)
        metadata = [pq.read_metadata(path) for path in self._paths]
        groups = [
            (i, g, m.row_group(g).num_rows)
            for i, m in enumerate(metadata)
            for g in range(m.num_row_groups)
        ]
        self._groups = np.array(groups, np.int64).reshape(-1, 3)
        self._ends = np.cumsum(self._groups[:, 2])

    @property
    def num_rows(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, rows: np.ndarray) -> pa.Table:
        """TRAINING_COLUMNS of the rows with these numbers, in this order.

        Raises IndexError for a number that does not exist.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(
                f"row {rows.max() if rows.min() >= 0 else rows.min()} of {self.num_rows}"
            )
        group_of = np.searchsorted(self._ends, rows, side="right")
        needed, position = np.unique(group_of, return_inverse=True)
        tables = [self._read_group(number, TRAINING_COLUMNS) for number in needed]
        firsts = np.concatenate(([0], np.cumsum([len(t) for t in tables])))
        within = rows - (self._ends[group_of] - self._groups[group_of, 2])
        return pa.concat_tables(tables).combine_chunks().take(pa.array(firsts[position] + within))

    def sample_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each sample and the number of its row, int64 [N], in the rows' order."""
        columns = [pq.read_table(path, columns=["sample_lengths"])[0] for path in self._paths]
        lists = pa.chunked_array(
            [chunk for column in columns for chunk in column.chunks], pa.list_(pa.int32())
        ).combine_chunks()
        counts = np.diff(lists.offsets.to_numpy())
        lengths = lists.flatten().to_numpy().astype(np.int64)
        return lengths, np.repeat(np.arange(len(counts)), counts)

    def read_samples(self, row: int) -> list[np.ndarray]:
        """The token ids int32 of each sample of a row."""
        table = self.read(np.array([row]))
        ends = np.cumsum(table["sample_lengths"][0].as_py())
        return np.split(token_arrays(table)[0][0][: ends[-1]], ends[:-1])

    def max_id(self) -> int:
        """The largest token id in any row; the padding has id 0."""
        largest = 0
        for path in self._paths:
            for batch in pq.ParquetFile(path).iter_batches(columns=["input_ids"]):
                largest = max(largest, int(batch["input_ids"].flatten().to_numpy().max()))
        return largest

    def packs(self) -> Iterator[list[PackedSample]]:
        """The samples of each packed row, in order; one row group at a time is in memory."""
        for number in range(len(self._groups)):
            yield from _cut(self._read_group(number))

    def samples(self) -> Iterator[PackedSample]:
        """All samples, in the order of the packed rows."""
        for pack in self.packs():
            yield from pack

    def _read_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        path, group, _ = self._groups[number]
        file = pq.ParquetFile(self._paths[path])
        return file.read_row_group(int(group), columns=list(columns) if columns else None)


def token_arrays(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The ids int32 and loss weights float32 of a table of packed rows, both [R, T]."""
    width = table.schema.field("input_ids").type.list_size
    ids, weights = (
        table[name].combine_chunks().flatten().to_numpy().reshape(-1, width)
        for name in ("input_ids", "loss_weights")
    )
    return ids, weights


def as_batch(table: pa.Table) -> dict[str, Any]:
    """TRAINING_COLUMNS as arrays [R, T], and lists of each row's sample lengths and ids."""
    ids, weights = token_arrays(table)
    lengths = [np.asarray(lengths, np.int32) for lengths in table["sample_lengths"].to_pylist()]
    return {
        "input_ids": ids,
        "loss_weights": weights,
        "sample_lengths": lengths,
        "sample_ids": table["sample_ids"].to_pylist(),
    }


def read_heldout_samples(folder: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The chosen columns of HELDOUT_SCHEMA, one dictionary for each held-out sample."""
    return pq.read_table(folder / HELDOUT_SAMPLES, columns=list(columns)).to_pylist()


def _cut(table: pa.Table) -> Iterator[list[PackedSample]]:
    ids, weights = token_arrays(table)
    # Datasets of earlier versions have fewer labels.
    columns = {name: row_column(name) for name in LABELS if row_column(name) in table.schema.names}
    labels = {name: table[column].to_pylist() for name, column in columns.items()}
    for row, lengths in enumerate(table["sample_lengths"].to_pylist()):
        ends = np.cumsum(lengths, dtype=np.int64)
        yield [
            PackedSample(
                input_ids=ids[row, end - length : end],
                loss_weights=weights[row, end - length : end],
                **{name: values[row][i] for name, values in labels.items()},
            )
            for i, (length, end) in enumerate(zip(lengths, ends.tolist(), strict=True))
        ]
