"""What the tasks found, gathered in source order: tokens and lost rows to disk, counts and keys in memory.

Judging duplicates and leakage needs all rows at once, so it happens here, on a few dozen bytes a row.
"""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.schema import DataConfig
from pipelines.core.artifacts import to_json
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError
from pipelines.data.convert.dedup import NUM_PERMUTATIONS, known, nearly_repeated, repeated
from pipelines.data.read.chunks import Chunk
from pipelines.data.rejects import RejectLog
from pipelines.data.tokenize import (
    FILTERED,
    HELDOUT,
    LEAKED,
    REJECTED,
    SCHEMA,
    SHORTENED,
    SKIPPED,
    TOO_LONG,
    TRAIN,
)
from pipelines.packed.writer import SampleStore, Selection, write_all, write_shards
from pipelines.storage import Store

LOST = {
    REJECTED: "rejected",
    FILTERED: "filtered",
    SKIPPED: "skipped",
    TOO_LONG: "too_long",
    SHORTENED: "shortened",
    LEAKED: "leaked",
}
_HELDOUT_COLUMNS = ("sample_id", "prompt_ids", "reference", "prompt", "messages")
_EARLIER = (
    "earlier_key",
    "earlier_of",
)  # prompt keys of earlier answers, and the number of the sample of each
_KEY_COLUMNS = {
    "sample_id": "S16",
    "prompt_key": np.int64,
    "copies": np.int32,
    "chunk": np.int32,
    "row": np.int64,
}


class _Split:
    """One split's samples: tokens and signatures on disk, keys in memory."""

    def __init__(self, folder: Path) -> None:
        self.store = SampleStore(folder)
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in (*_KEY_COLUMNS, *_EARLIER)}
        self._joined: dict[str, np.ndarray] = {}
        self._signatures = io.FileIO(folder / "signatures.bin", "w+")
        self._count = 0

    def __exit__(self, *_: object) -> None:
        self.store.__exit__()
        self._signatures.close()

    def add(self, table: pa.Table) -> None:
        self.store.add(table)
        for name, dtype in _KEY_COLUMNS.items():
            column = table[name].combine_chunks()
            raw = np.frombuffer(column.buffers()[1], np.uint8) if name == "sample_id" else None
            part = (
                column.to_numpy()
                if raw is None
                else raw.view(dtype)[column.offset : column.offset + len(column)]
            )
            self._parts[name].append(np.array(part, dtype))
        earlier = table["earlier_keys"].combine_chunks()
        self._parts["earlier_key"].append(earlier.flatten().to_numpy())
        self._parts["earlier_of"].append(
            np.repeat(np.arange(len(table)), earlier.value_lengths().fill_null(0).to_numpy())
            + self._count
        )
        self._count += len(table)
        if len(table) and table["signature"][0].is_valid:
            write_all(
                self._signatures, np.frombuffer(b"".join(table["signature"].to_pylist()), np.uint8)
            )

    def key(self, name: str) -> np.ndarray:
        """A column of all samples; no more are added then."""
        if name not in self._joined:
            empty = np.empty(0, _KEY_COLUMNS.get(name, np.int64))
            self._joined[name] = np.concatenate([empty, *self._parts.pop(name)])
        return self._joined[name]

    def nearly_repeated(self, threshold: float, among: np.ndarray) -> np.ndarray:
        if not len(among):
            return np.zeros(self._count, bool)
        signatures = np.memmap(str(self._signatures.name), np.uint32, "r").reshape(
            -1, NUM_PERMUTATIONS
        )
        return nearly_repeated(signatures, threshold, among)


def _sum(column: pa.ChunkedArray) -> int:
    return int(column.drop_null().to_numpy().sum())


class Assembler:
    """Takes the tasks' tables in source order; `finish` judges, packs and writes. A context manager for its scratch files."""

    def __init__(self, config: DataConfig, chunks: Sequence[Chunk], scratch: Path) -> None:
        self._config, self._chunks = config, chunks
        self._splits = {TRAIN: _Split(scratch / "train"), HELDOUT: _Split(scratch / "heldout")}
        self._heldout_path = scratch / "heldout.parquet"
        self._heldout = pq.ParquetWriter(
            self._heldout_path, pa.schema([SCHEMA.field(n) for n in _HELDOUT_COLUMNS])
        )
        self._lost = RejectLog(scratch / "rejects.jsonl", chunks)
        self._checks: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._heldout.close()
        self._heldout_path.unlink()
        self._lost.close()
        for split in self._splits.values():
            split.__exit__()

    def add(self, table: pa.Table) -> int:
        """Take one table and return the number of rows that it is about."""
        fates = table["fate"].to_numpy()
        for fate, split in self._splits.items():
            split.add(table.filter(pa.array(fates == fate)))
        self._heldout.write_table(table.filter(pa.array(fates == HELDOUT)).select(_HELDOUT_COLUMNS))
        self._lost.add_table(table.filter(pa.array((fates != TRAIN) & (fates != HELDOUT))), LOST)
        for fate, name in LOST.items():
            self.counts[name] += int((fates == fate).sum())
        pieces = int(np.count_nonzero(table["piece"].to_numpy()))
        self.counts["pieces"] += pieces
        self.counts["read"] += len(fates) - pieces
        self._check(table)
        return len(fates) - pieces

    def _check(self, table: pa.Table) -> None:
        """Count what the masks of the kept rows were checked for. Raises UserError for a trained token of another turn."""
        for name, checked, failed in (
            ("stop_trained", "turns", "without_stop"),
            ("other_turns_masked", "others", "wrongly"),
            ("texts_beside_calls", "beside_calls", "unshown"),
        ):
            self._checks[f"{name}_checked"] += _sum(table[checked])
            self._checks[f"{name}_failed"] += _sum(table[failed])
        matches = table["prefix_matches"].drop_null()
        self._checks["prefix_matches_checked"] += len(matches)
        self._checks["prefix_matches_failed"] += len(matches) - _sum(matches)
        if self._checks["other_turns_masked_failed"]:
            row = next(
                row
                for row in table.select(["chunk", "row", "wrongly"]).to_pylist()
                if row["wrongly"]
            )
            raise UserError(
                f"data.sources: {self._lost.origin(row['chunk'], row['row'])}: {row['wrongly']} tokens of its system, user "
                "or tool turns would be trained; the chat template of model.base marks answers that are none: mend it"
            )

    def keeping_rejects(self, store: Store, key: str) -> AbstractContextManager[None]:
        """See LostRows.kept_on_failure. The rejects threshold, which the inputs' `key` leaves out, is added to it."""
        return self._lost.kept_on_failure(store, digest_of([key, self._config.max_rejects_share]))

    def finish(self, folder: Path) -> dict[str, Any]:
        """Write the shards, `heldout_samples.parquet` and `rejects.jsonl`; the facts of the artifact come back.

        Raises UserError when too much was rejected, held-out text is in the training rows, or a split stays empty.
        """
        self._check_read()
        self._lost.check_rejects(self.counts, self._config)
        kept = {fate: self._without_repeats(split, fate) for fate, split in self._splits.items()}
        kept[TRAIN] &= ~self._leaks(kept)
        chosen = {fate: self._select(self._splits[fate], kept[fate]) for fate in kept}
        self.counts["train"], self.counts["heldout"] = (
            int(kept[TRAIN].sum()),
            int(kept[HELDOUT].sum()),
        )
        self._check_empty()
        config = self._config
        stats = {
            name: write_shards(
                self._splits[fate].store, chosen[fate], folder, name, config.row_tokens, config.seed
            )
            for fate, name in ((TRAIN, "train"), (HELDOUT, "heldout"))
        }
        self._write_heldout(folder / "heldout_samples.parquet", kept[HELDOUT])
        self._lost.close()
        shutil.move(self._lost.path, folder / "rejects.jsonl")
        facts = {"row_tokens": config.row_tokens, "counts": dict(sorted(self.counts.items()))}
        return (
            facts
            | {name: to_json(split) for name, split in stats.items()}
            | {"checks": dict(self._checks)}
        )

    # -- judging ---------------------------------------------------------------------------------------------------

    def _without_repeats(self, split: _Split, fate: int) -> np.ndarray:
        ids = split.key("sample_id")
        kept = np.ones(len(ids), bool)
        if self._config.duplicates == "drop":
            kept = ~repeated(ids)
            self._lose(split, ~kept, "duplicates", "the same content as an earlier row")
        if self._config.near_duplicates is not None:
            near = split.nearly_repeated(self._config.near_duplicates, np.flatnonzero(kept))
            self._lose(split, near, "near_duplicates", "nearly the same text as an earlier row")
            kept &= ~near
        return kept

    def _leaks(self, kept: Mapping[int, np.ndarray]) -> np.ndarray:
        train, heldout = self._splits[TRAIN], self._splits[HELDOUT]
        held = heldout.key("prompt_key")[kept[HELDOUT]]
        leaks = known(train.key("prompt_key"), held)
        leaks[train.key("earlier_of")[known(train.key("earlier_key"), held)]] = True
        leaks &= kept[TRAIN]
        policy = self._config.leakage
        if policy == "allow":
            return np.zeros(len(leaks), bool)
        if policy == "error" and (leaks.any() or self.counts["leaked"]):
            number = int(np.argmax(leaks)) if leaks.any() else None
            first = (
                self._lost.first("leaked")
                if number is None
                else self._lost.origin(*self._place(train, number))
            )
            self._lose(train, leaks, "leaked", "its question is held out")
            raise UserError(
                f"data.sources: {self.counts['leaked']} training rows ask what is held out or in "
                f"data.benchmarks (first: {first}); mend the sources, or set data.leakage=drop"
            )
        self._lose(train, leaks, "leaked", "its question is held out")
        return leaks

    def _select(self, split: _Split, kept: np.ndarray) -> Selection:
        numbers = np.repeat(np.flatnonzero(kept), split.key("copies")[kept])
        return Selection(numbers, split.key("sample_id")[numbers].view("V16"))

    def _lose(self, split: _Split, mask: np.ndarray, name: str, reason: str) -> None:
        self.counts[name] += int(mask.sum())
        for number in np.flatnonzero(mask).tolist():
            self._lost.add(*self._place(split, number), name, reason)

    def _place(self, split: _Split, number: int) -> tuple[int, int]:
        return int(split.key("chunk")[number]), int(split.key("row")[number])

    # -- what is refused ---------------------------------------------------------------------------------------------

    def _paths(self) -> str:
        return ", ".join(source.path for source in self._config.sources)

    def _check_read(self) -> None:
        if not self.counts["read"]:
            raise UserError(f"data.sources: {self._paths()}: no row in it")

    def _check_empty(self) -> None:
        lost = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()) if count)
        if not self.counts["train"]:
            raise UserError(
                f"data.sources: {self._paths()}: no row left to train on ({lost}); see data.row_tokens"
            )
        wanted = self._config.heldout_share or any(
            s.split == "heldout" for s in self._config.sources
        )
        if wanted and not self.counts["heldout"]:
            raise UserError(
                f"data.heldout_share={self._config.heldout_share}: no row fell into the held-out split ({lost}); raise "
                "it, or name a source with split: heldout"
            )

    # -- small files ---------------------------------------------------------------------------------------------------

    def _write_heldout(self, path: Path, kept: np.ndarray) -> None:
        self._heldout.close()
        fields = [
            pa.field("sample_id", pa.string()),
            *(SCHEMA.field(name) for name in _HELDOUT_COLUMNS[1:]),
        ]
        at = 0
        with pq.ParquetWriter(path, pa.schema(fields)) as out:
            for batch in pq.ParquetFile(self._heldout_path).iter_batches():
                mask = kept[at : at + len(batch)] & batch["prompt_ids"].is_valid().to_numpy(
                    zero_copy_only=False
                )
                at += len(batch)
                rows = batch.filter(pa.array(mask))
                names = pa.array(
                    [value.hex() for value in rows["sample_id"].to_pylist()], pa.string()
                )
                columns = [names, *(rows[name] for name in _HELDOUT_COLUMNS[1:])]
                out.write_table(pa.table(columns, schema=pa.schema(fields)))
