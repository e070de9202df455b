"""Packed rows fed to trainers."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.packed.reader import RowReader

FEED_ROWS = 32  # rows that one feeding task reads


@contextlib.contextmanager
def _quiet_context() -> Iterator[None]:
    """A Ray Data context of our own: order kept, so that the result depends on no timing, and no bars of its own."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # Importing ray.data sets its logger back to DEBUG: it shall say what "ray" may say, no more.
    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").getEffectiveLevel())
    with ray.data.DataContext.current(context):
        yield


class RowFeed:
    """Streams the packed rows of one split of a prepared artifact's local folder, in an order that the caller sets."""

    def __init__(self, folder: Path | str, split: str = "train") -> None:
        self.folder = Path(folder)
        self.split = split

    @property
    def num_rows(self) -> int:
        return RowReader(self.folder, self.split).num_rows

    def batches(
        self, order: np.ndarray, batch_size: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Rows `order[start:]` in batches: input_ids int32 and loss_weights float32 [B, T], and per row lists of its
        sample_lengths (int32 arrays) and sample_ids. The last batch may be shorter. Inside a train worker its tasks
        take no CPU from the trainers.
        """
        import ray.data

        wanted = np.asarray(order, np.int64)[start:]
        if not len(wanted):
            return
        tasks = np.array_split(wanted, -(-len(wanted) // FEED_ROWS))
        with _quiet_context():
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


def as_batch(table: pa.Table) -> dict[str, Any]:
    """A table of packed rows as arrays [B, T] and lists."""
    width = table.schema.field("input_ids").type.list_size
    arrays = {
        name: table[name].combine_chunks().flatten().to_numpy().reshape(-1, width)
        for name in ("input_ids", "loss_weights")
    }
    lengths = [np.asarray(lengths, np.int32) for lengths in table["sample_lengths"].to_pylist()]
    return {**arrays, "sample_lengths": lengths, "sample_ids": table["sample_ids"].to_pylist()}
