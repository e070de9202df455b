"""The feed that streams packed rows to trainers through Ray Data."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.core.quiet_loggers import follow_ray_logger
from pipelines.packed.reader import RowReader, as_batch

FEED_ROWS = 32  # rows that one feeding task reads


@contextlib.contextmanager
def ordered_ray_data() -> Iterator[None]:
    """A Ray Data context without bars that preserves order: no result depends on timing."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    follow_ray_logger("ray.data")
    with ray.data.DataContext.current(context):
        yield


class RowFeed:
    """Streams the packed rows of one split of a prepared folder in a given order."""

    def __init__(self, folder: Path | str, split: str = "train") -> None:
        self.folder = Path(folder)
        self.split = split

    @property
    def num_rows(self) -> int:
        return RowReader(self.folder, self.split).num_rows

    def sample_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """As RowReader's."""
        return RowReader(self.folder, self.split).sample_lengths()

    def read_samples(self, row: int) -> list[np.ndarray]:
        """As RowReader's."""
        return RowReader(self.folder, self.split).read_samples(row)

    def batches(
        self, order: np.ndarray, batch_size: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Rows `order[start:]` in batches of `batch_size`; the last batch may be shorter.

        A batch has input_ids int32 and loss_weights float32 [B, T], and lists with each row's
        sample_lengths (int32 arrays) and sample_ids. In a train worker, the feed's tasks take no
        CPU from the trainers.
        """
        import ray.data

        numbers = np.asarray(order, np.int64)[start:]
        if not len(numbers):
            return
        tasks = np.array_split(numbers, -(-len(numbers) // FEED_ROWS))
        with ordered_ray_data():
            items = ray.data.from_items(
                [{"rows": rows.tolist()} for rows in tasks], override_num_blocks=len(tasks)
            )
            rows = items.map_batches(
                functools.partial(_read_rows, folder=self.folder, split=self.split),
                batch_size=1, batch_format="pyarrow", num_cpus=0, concurrency=1,
            )  # fmt: skip
            for table in rows.iter_batches(
                batch_size=batch_size, batch_format="pyarrow", prefetch_batches=2
            ):
                yield as_batch(table)


def _read_rows(batch: pa.Table, folder: Path, split: str) -> pa.Table:
    return RowReader(folder, split).read(batch["rows"].combine_chunks().flatten().to_numpy())
