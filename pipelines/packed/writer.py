"""Writing packed rows."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core.artifacts import SplitStats
from pipelines.packed.format import row_schema
from pipelines.packed.pack import best_fit, group_rows

SHARD_TOKENS = 1 << 23


GROUP_TOKENS = 1 << 15


# Token ids compress best with their bytes apart (most have two zero bytes), weights are two or three values in runs.
_ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["loss_weights.list.element"],
    "column_encoding": {"input_ids.list.element": "BYTE_STREAM_SPLIT"},
    "write_statistics": False,
}


class SampleStore:
    """The tokens of one split's samples in two flat files; a sample is known by its number, in the order it came.

    Reading one sample back costs one `pread` a file, so memory stays flat however many samples there are.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ids, self._weights = (
            io.FileIO(folder / "ids.bin", "w+"),
            io.FileIO(folder / "weights.bin", "w+"),
        )
        self._lengths: list[np.ndarray] = []
        self._trained: list[np.ndarray] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._ids, self._weights):
            stream.close()
            os.unlink(stream.name)

    def add(self, table: pa.Table) -> None:
        """Append samples: columns `input_ids` and `loss_weights`."""
        ids, weights = (table[name].combine_chunks() for name in ("input_ids", "loss_weights"))
        offsets = ids.offsets.to_numpy()
        flat = weights.flatten().to_numpy()
        write_all(self._ids, ids.flatten().to_numpy())
        write_all(self._weights, flat)
        self._lengths.append(np.diff(offsets))
        self._trained.append(np.diff(np.searchsorted(np.flatnonzero(flat), offsets - offsets[0])))

    def lengths(self) -> np.ndarray:
        """Tokens of each sample, int64 [N]."""
        return np.concatenate(self._lengths or [np.empty(0, np.int64)])

    def trained(self) -> np.ndarray:
        """Trained tokens of each sample, int64 [N]."""
        return np.concatenate(self._trained or [np.empty(0, np.int64)])

    def read_into(self, ids: np.ndarray, weights: np.ndarray, first: int) -> None:
        """Fill two one-dimensional arrays with the tokens from token number `first` on."""
        os.preadv(self._ids.fileno(), [ids.view(np.uint8).data], first * 4)
        os.preadv(self._weights.fileno(), [weights.view(np.uint8).data], first * 4)


def write_all(stream: io.FileIO, values: np.ndarray) -> None:
    """Write an array's bytes to an unbuffered file."""
    data = np.ascontiguousarray(values).view(np.uint8).data
    while len(data):  # an unbuffered write may stop short; the next one then says why
        data = data[stream.write(data) :]


@dataclass(frozen=True)
class Selection:
    """Samples to pack, by number in their store (a number may come twice), with a name for each."""

    numbers: np.ndarray
    names: np.ndarray


def write_shards(
    samples: SampleStore, chosen: Selection, folder: Path, split: str, row_tokens: int, seed: int
) -> SplitStats:
    """Pack a split and write `split-00000.parquet` and so on. Packs are shuffled by `seed`, once and for all."""
    all_lengths = samples.lengths()
    starts = np.concatenate(([0], np.cumsum(all_lengths)))[chosen.numbers]
    lengths = all_lengths[chosen.numbers]
    order, bounds = group_rows(best_fit(lengths, row_tokens))
    rows = np.random.Generator(np.random.PCG64(seed)).permutation(len(bounds) - 1)
    rows_per_shard = max(1, SHARD_TOKENS // row_tokens)
    rows_per_group = max(1, GROUP_TOKENS // row_tokens)
    schema = row_schema(row_tokens)
    for shard, first in enumerate(range(0, len(rows), rows_per_shard)):
        path = folder / f"{split}-{shard:05d}.parquet"
        mine = rows[first : first + rows_per_shard]
        with pq.ParquetWriter(path, schema, **_ENCODING) as out:
            for at in range(0, len(mine), rows_per_group):
                members = [order[bounds[r] : bounds[r + 1]] for r in mine[at : at + rows_per_group]]
                out.write_table(
                    _packed(samples, members, lengths, starts, chosen.names, row_tokens)
                )
    trained = int(samples.trained()[chosen.numbers].sum())
    return SplitStats(len(lengths), len(rows), int(lengths.sum()), trained)


def _packed(
    samples: SampleStore,
    members: list[np.ndarray],
    lengths: np.ndarray,
    starts: np.ndarray,
    names: np.ndarray,
    row_tokens: int,
) -> pa.Table:
    ids = np.zeros((len(members), row_tokens), np.int32)
    weights = np.zeros((len(members), row_tokens), np.float32)
    for row, group in enumerate(members):
        at = 0
        for sample in group:
            end = at + int(lengths[sample])
            samples.read_into(ids[row, at:end], weights[row, at:end], int(starts[sample]))
            at = end
    flat = np.concatenate(members)
    bounds = np.concatenate(([0], np.cumsum([len(group) for group in members]))).astype(np.int32)
    sample_ids = pa.array([name.hex() for name in names[flat].tolist()])
    return pa.table(
        [
            pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), row_tokens),
            pa.FixedSizeListArray.from_arrays(pa.array(weights.reshape(-1)), row_tokens),
            pa.ListArray.from_arrays(pa.array(bounds), pa.array(lengths[flat].astype(np.int32))),
            pa.ListArray.from_arrays(pa.array(bounds), sample_ids),
        ],
        schema=row_schema(row_tokens),
    )
