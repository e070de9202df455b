"""The samples of one split while a dataset is assembled: tokens on disk, keys in memory.

N: samples in the order of their sources
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from pipelines.data.convert.dedup import NUM_PERMUTATIONS, nearly_repeated
from pipelines.data.faults import fault_codes, fault_labels
from pipelines.data.origins import Origins
from pipelines.packed.writer import SampleStore, Selection, write_all

_KEY_COLUMNS = {
    "sample_id": "S16",
    "cluster_id": "S16",
    "prompt_key": np.int64,
    "copies": np.int32,
    "chunk": np.int32,
    "row": np.int64,
    "fault": np.int32,
}
# Prompt keys of the answers before the last, and for each the number of its sample.
_EARLIER = ("earlier_key", "earlier_sample")


class SplitSamples:
    """Collects one split's samples; a context manager for its scratch files."""

    def __init__(self, folder: Path) -> None:
        self.store = SampleStore(folder)
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in (*_KEY_COLUMNS, *_EARLIER)}
        self._joined: dict[str, np.ndarray] = {}
        self._signatures = io.FileIO(folder / "signatures.bin", "w+")
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.__exit__()
        self._signatures.close()

    def add(self, table: pa.Table) -> None:
        """Add the samples of a table of tokenized_table.SCHEMA."""
        self.store.add(table)
        for name, dtype in _KEY_COLUMNS.items():
            if name == "fault":
                self._parts[name].append(fault_codes(table))
                continue
            column = table[name].combine_chunks()
            if dtype == "S16":
                ids = np.frombuffer(column.buffers()[1], np.uint8).view(dtype)
                part = ids[column.offset : column.offset + len(column)]
            else:
                part = column.to_numpy()
            self._parts[name].append(np.array(part, dtype))
        earlier = table["earlier_keys"].combine_chunks()
        num_earlier = earlier.value_lengths().fill_null(0).to_numpy()
        self._parts["earlier_key"].append(earlier.flatten().to_numpy())
        self._parts["earlier_sample"].append(
            np.repeat(np.arange(len(table)), num_earlier) + self._count
        )
        self._count += len(table)
        if len(table) and table["signature"][0].is_valid:
            signatures = b"".join(table["signature"].to_pylist())
            write_all(self._signatures, np.frombuffer(signatures, np.uint8))

    def key(self, name: str) -> np.ndarray:
        """A column of all samples. No samples may be added afterwards."""
        if name not in self._joined:
            empty = np.empty(0, _KEY_COLUMNS.get(name, np.int64))
            self._joined[name] = np.concatenate([empty, *self._parts.pop(name)])
        return self._joined[name]

    def nearly_repeated(self, threshold: float, among: np.ndarray) -> np.ndarray:
        """See dedup.nearly_repeated."""
        if not len(among):
            return np.zeros(self._count, bool)
        signatures = np.memmap(str(self._signatures.name), np.uint32, "r")
        return nearly_repeated(signatures.reshape(-1, NUM_PERMUTATIONS), threshold, among)

    def asks_any_of(self, prompt_keys: np.ndarray) -> np.ndarray:
        """Mask of the samples that have one of these keys as the prompt of an answer, bool [N]."""
        mask = np.isin(self.key("prompt_key"), prompt_keys)
        earlier = np.isin(self.key("earlier_key"), prompt_keys)
        mask[self.key("earlier_sample")[earlier]] = True
        return mask

    def select(self, mask: np.ndarray, origins: Origins, split: str) -> Selection:
        """The samples of a mask with their copies, labeled for the packed rows."""
        numbers = np.repeat(np.flatnonzero(mask), self.key("copies")[mask])
        chunks = self.key("chunk")[numbers]
        return Selection(
            numbers,
            sample_ids=self.key("sample_id")[numbers].view("V16"),
            cluster_ids=self.key("cluster_id")[numbers].view("V16"),
            sources=origins.sources(chunks),
            files=origins.files(chunks),
            lines=origins.lines(chunks, self.key("row")[numbers]),
            faults=fault_labels(self.key("fault")[numbers]),
            split=split,
        )

    def place(self, number: int) -> tuple[int, int]:
        """Chunk and row of a sample."""
        return int(self.key("chunk")[number]), int(self.key("row")[number])
