"""Writing packed rows and held-out samples."""

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
from pipelines.packed.format import LABELS, row_column, row_schema, shard_path
from pipelines.packed.pack import best_fit, group_rows

SHARD_TOKENS = 1 << 23  # of a file
GROUP_TOKENS = 1 << 15  # of a row group

# Token ids compress best as separate byte streams, since most have two zero bytes; loss weights are
# runs of two or three values.
_ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": [
        f"{name}.list.element"
        for name in ("loss_weights", "sources", "slices", "splits", "files", "faults")
    ],
    "column_encoding": {"input_ids.list.element": "BYTE_STREAM_SPLIT"},
    "write_statistics": False,
}


class SampleStore:
    """The tokens of one split's samples in two flat files; a sample's number is its arrival order.

    Reading a sample back costs one `pread` a file, so memory does not grow with the tokens.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ids, self._weights = (
            io.FileIO(folder / "ids.bin", "w+"),
            io.FileIO(folder / "weights.bin", "w+"),
        )
        self._lengths: list[np.ndarray] = []
        self._loss_tokens: list[np.ndarray] = []

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
        self._loss_tokens.append(
            np.diff(np.searchsorted(np.flatnonzero(flat), offsets - offsets[0]))
        )

    def lengths(self) -> np.ndarray:
        """Tokens of each sample, int64 [N]."""
        return np.concatenate(self._lengths or [np.empty(0, np.int64)])

    def num_loss_tokens(self) -> np.ndarray:
        """Label positions of each sample, int64 [N]."""
        return np.concatenate(self._loss_tokens or [np.empty(0, np.int64)])

    def read_into(self, ids: np.ndarray, weights: np.ndarray, first: int) -> None:
        """Fill two one-dimensional arrays with ids and weights, from token number `first` on."""
        os.preadv(self._ids.fileno(), [ids.view(np.uint8).data], first * 4)
        os.preadv(self._weights.fileno(), [weights.view(np.uint8).data], first * 4)


def write_all(stream: io.FileIO, values: np.ndarray) -> None:
    """Write an array's bytes to an unbuffered file."""
    data = np.ascontiguousarray(values).view(np.uint8).data
    while len(data):  # an unbuffered write may be partial; the next write raises the reason
        data = data[stream.write(data) :]


@dataclass(frozen=True)
class Selection:
    """Samples to pack, by number in their store; a number may occur several times.

    The ids are V16 [N], sources and files int32 [N], lines int64 [N] and faults a dictionary
    of texts [N], in the order of `numbers`. `split` is the label "train", "select" or "gate" of
    all of them.
    """

    numbers: np.ndarray
    sample_ids: np.ndarray
    cluster_ids: np.ndarray
    sources: np.ndarray
    files: np.ndarray
    lines: np.ndarray
    faults: pa.DictionaryArray
    split: str

    def labels(self, samples: np.ndarray) -> dict[str, pa.Array]:
        """LABELS of the samples with these indices into the selection."""
        return {
            "sample_id": hex_ids(self.sample_ids[samples]),
            "cluster_id": hex_ids(self.cluster_ids[samples]),
            "source": pa.array(self.sources[samples], pa.int32()),
            "slice": pa.repeat("", len(samples)),
            "split": pa.repeat(self.split, len(samples)),
            "file": pa.array(self.files[samples], pa.int32()),
            "line": pa.array(self.lines[samples], pa.int64()),
            "fault": self.faults.take(pa.array(samples)).cast(pa.string()),
        }


def hex_ids(ids: np.ndarray) -> pa.Array:
    """Ids V16 [N] as hexadecimal strings."""
    return pa.array([value.hex() for value in ids.tolist()], pa.string())


def write_shards(
    samples: SampleStore, chosen: Selection, folder: Path, split: str, row_tokens: int, seed: int
) -> SplitStats:
    """Pack a split and write its shards. `seed` shuffles the packed rows once, before writing."""
    all_lengths = samples.lengths()
    starts = np.concatenate(([0], np.cumsum(all_lengths)))[chosen.numbers]
    lengths = all_lengths[chosen.numbers]
    order, bounds = group_rows(best_fit(lengths, row_tokens))
    rows = np.random.Generator(np.random.PCG64(seed)).permutation(len(bounds) - 1)
    rows_per_shard = max(1, SHARD_TOKENS // row_tokens)
    rows_per_group = max(1, GROUP_TOKENS // row_tokens)
    schema = row_schema(row_tokens)
    for shard, first in enumerate(range(0, len(rows), rows_per_shard)):
        path = shard_path(folder, split, shard)
        shard_rows = rows[first : first + rows_per_shard]
        with pq.ParquetWriter(path, schema, **_ENCODING) as out:
            for at in range(0, len(shard_rows), rows_per_group):
                members = [
                    order[bounds[r] : bounds[r + 1]] for r in shard_rows[at : at + rows_per_group]
                ]
                out.write_table(_packed(samples, members, lengths, starts, chosen, row_tokens))
    num_loss_tokens = int(samples.num_loss_tokens()[chosen.numbers].sum())
    return SplitStats(len(lengths), len(rows), int(lengths.sum()), num_loss_tokens)


def _packed(
    samples: SampleStore,
    members: list[np.ndarray],
    lengths: np.ndarray,
    starts: np.ndarray,
    chosen: Selection,
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
    offsets, labels = pa.array(bounds), chosen.labels(flat)
    lists = {"sample_lengths": pa.array(lengths[flat].astype(np.int32))}
    lists |= {row_column(name): labels[name] for name in LABELS}
    columns = {
        "input_ids": pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), row_tokens),
        "loss_weights": pa.FixedSizeListArray.from_arrays(
            pa.array(weights.reshape(-1)), row_tokens
        ),
        **{name: pa.ListArray.from_arrays(offsets, values) for name, values in lists.items()},
    }
    return pa.table(columns, schema=row_schema(row_tokens))
