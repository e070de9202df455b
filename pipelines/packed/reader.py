"""Reading packed rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class RowReader:
    """Random access to the packed rows of one split of a prepared artifact's folder."""

    def __init__(self, folder: Path, split: str) -> None:
        self._paths = sorted(folder.glob(f"{split}-*.parquet"))
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
        """The rows of these numbers, in this order. Raises IndexError for a number that does not exist."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(
                f"row {rows.max() if rows.min() >= 0 else rows.min()} of {self.num_rows}"
            )
        group_of = np.searchsorted(self._ends, rows, side="right")
        needed, position = np.unique(group_of, return_inverse=True)
        tables = list(self._read_groups(needed))
        firsts = np.concatenate(([0], np.cumsum([len(t) for t in tables])))
        within = rows - (self._ends[group_of] - self._groups[group_of, 2])
        return pa.concat_tables(tables).combine_chunks().take(pa.array(firsts[position] + within))

    def _read_groups(self, needed: np.ndarray) -> Iterator[pa.Table]:
        for number in needed:
            path, group, _ = self._groups[number]
            yield pq.ParquetFile(self._paths[path]).read_row_group(int(group))
