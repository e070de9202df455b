"""What the tasks found, gathered in source order: tokens to disk, counts and keys in memory, lost rows to a list.

Judging duplicates and leakage needs all rows at once, so it happens here, on a few dozen bytes a row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import UserError, to_json
from pipelines.data.filter import NUM_PERMUTATIONS, known, nearly_repeated, repeated
from pipelines.data.shards import SampleStore, Selection, write_shards
from pipelines.data.sources import Chunk, lines_before
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
from pipelines.recipe import DataConfig

LOST = {
    REJECTED: "rejected",
    FILTERED: "filtered",
    SKIPPED: "skipped",
    TOO_LONG: "too_long",
    SHORTENED: "shortened",
    LEAKED: "leaked",
}
_HELDOUT_COLUMNS = ("sample_id", "prompt_ids", "reference", "prompt", "messages")
_KEY_COLUMNS = {"sample_id": "S16", "prompt_key": np.int64, "copies": np.int32, "chunk": np.int32, "row": np.int64}


class _Split:
    """One split's samples: tokens on disk, keys in memory."""

    def __init__(self, folder: Path) -> None:
        self.store = SampleStore(folder)
        self._keys: dict[str, list[np.ndarray]] = {name: [] for name in _KEY_COLUMNS}
        self._signatures: list[np.ndarray] = []

    def add(self, table: pa.Table) -> None:
        self.store.add(table)
        for name, dtype in _KEY_COLUMNS.items():
            column = table[name].combine_chunks()
            raw = np.frombuffer(column.buffers()[1], np.uint8) if name == "sample_id" else None
            part = column.to_numpy() if raw is None else raw.view(dtype)[column.offset : column.offset + len(column)]
            self._keys[name].append(np.array(part, dtype))
        if len(table) and table["signature"][0].is_valid:
            joined = b"".join(table["signature"].to_pylist())
            self._signatures.append(np.frombuffer(joined, np.uint32).reshape(-1, NUM_PERMUTATIONS))

    def key(self, name: str) -> np.ndarray:
        return np.concatenate(self._keys[name] or [np.empty(0, _KEY_COLUMNS[name])])

    def signatures(self) -> np.ndarray:
        return np.concatenate(self._signatures or [np.empty((0, NUM_PERMUTATIONS), np.uint32)])


class Collector:
    """Takes the tasks' tables in source order; `finish` judges, packs and writes. A context manager for its scratch files."""

    def __init__(self, config: DataConfig, chunks: Sequence[Chunk], scratch: Path) -> None:
        self._config, self._chunks = config, chunks
        self._splits = {TRAIN: _Split(scratch / "train"), HELDOUT: _Split(scratch / "heldout")}
        self._heldout_path = scratch / "heldout.parquet"
        self._heldout = pq.ParquetWriter(self._heldout_path, pa.schema([SCHEMA.field(n) for n in _HELDOUT_COLUMNS]))
        self._lost: list[dict[str, Any]] = []
        self._checks: Counter[str] = Counter()
        self._line_bases: dict[int, int] = {}
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._heldout.close()
        self._heldout_path.unlink()
        for split in self._splits.values():
            split.store.__exit__()

    def add(self, table: pa.Table) -> int:
        """Take one table and return the number of rows that it is about."""
        fates = table["fate"].to_numpy()
        for fate, split in self._splits.items():
            split.add(table.filter(pa.array(fates == fate)))
        self._heldout.write_table(table.filter(pa.array(fates == HELDOUT)).select(_HELDOUT_COLUMNS))
        lost = table.filter(pa.array((fates != TRAIN) & (fates != HELDOUT)))
        self._lost += lost.select(["chunk", "row", "fate", "reason", "text"]).to_pylist()
        for fate, name in LOST.items():
            self.counts[name] += int((fates == fate).sum())
        pieces = int(np.count_nonzero(table["piece"].to_numpy()))
        self.counts["pieces"] += pieces
        self.counts["read"] += len(fates) - pieces
        for name in ("stop_trained", "prefix_matches"):
            found = table[name].drop_null().to_numpy(zero_copy_only=False)
            self._checks[f"{name}_checked"] += len(found)
            self._checks[f"{name}_failed"] += int(len(found) - found.sum())
        return len(fates) - pieces

    def finish(self, folder: Path) -> dict[str, Any]:
        """Write the shards, `heldout_samples.parquet` and `rejects.jsonl`; the facts of the artifact come back.

        Raises UserError when too much was rejected, held-out text is in the training rows, or a split stays empty.
        """
        self._check_rejects()
        kept = {fate: self._without_repeats(split, fate) for fate, split in self._splits.items()}
        kept[TRAIN] &= ~self._leaks(kept)
        chosen = {fate: self._select(self._splits[fate], kept[fate]) for fate in kept}
        self.counts["train"], self.counts["heldout"] = int(kept[TRAIN].sum()), int(kept[HELDOUT].sum())
        self._check_empty()
        config = self._config
        stats = {
            name: write_shards(self._splits[fate].store, chosen[fate], folder, name, config.row_tokens, config.seed)
            for fate, name in ((TRAIN, "train"), (HELDOUT, "heldout"))
        }
        self._write_heldout(folder / "heldout_samples.parquet", kept[HELDOUT])
        self._write_lost(folder / "rejects.jsonl")
        facts = {"row_tokens": config.row_tokens, "counts": dict(sorted(self.counts.items()))}
        return facts | {name: to_json(split) for name, split in stats.items()} | {"checks": dict(self._checks)}

    # -- judging ---------------------------------------------------------------------------------------------------

    def _without_repeats(self, split: _Split, fate: int) -> np.ndarray:
        ids = split.key("sample_id")
        kept = np.ones(len(ids), bool)
        if self._config.duplicates == "drop":
            kept = ~repeated(ids)
            self._lose(split, ~kept, "duplicates", "the same content as an earlier row")
        if self._config.near_duplicates is not None and len(ids):
            near = np.zeros(len(ids), bool)
            near[kept] = nearly_repeated(split.signatures()[kept], self._config.near_duplicates)
            self._lose(split, near, "near_duplicates", "nearly the same text as an earlier row")
            kept &= ~near
        return kept

    def _leaks(self, kept: Mapping[int, np.ndarray]) -> np.ndarray:
        train, heldout = self._splits[TRAIN], self._splits[HELDOUT]
        leaks = known(train.key("prompt_key"), heldout.key("prompt_key")[kept[HELDOUT]]) & kept[TRAIN]
        policy = self._config.leakage
        if policy == "allow":
            return np.zeros(len(leaks), bool)
        if policy == "error" and (leaks.any() or self.counts["leaked"]):
            number = int(np.argmax(leaks)) if leaks.any() else None
            first = self._origin(*self._place(train, number)) if number is not None else self._first_leaked()
            raise UserError(
                f"data.sources: {int(leaks.sum()) + self.counts['leaked']} training rows ask what is held out or in "
                f"data.benchmarks (first: {first}); mend the sources, or set data.leakage=drop"
            )
        self._lose(train, leaks, "leaked", "its question is held out")
        return leaks

    def _first_leaked(self) -> str:
        row = next(row for row in self._lost if row["fate"] == LEAKED)
        return self._origin(row["chunk"], row["row"])

    def _select(self, split: _Split, kept: np.ndarray) -> Selection:
        numbers = np.repeat(np.flatnonzero(kept), split.key("copies")[kept])
        return Selection(numbers, split.key("sample_id")[numbers].view("V16"))

    def _lose(self, split: _Split, mask: np.ndarray, name: str, reason: str) -> None:
        self.counts[name] += int(mask.sum())
        for number in np.flatnonzero(mask).tolist():
            chunk, row = self._place(split, number)
            self._lost.append({"chunk": chunk, "row": row, "fate": name, "reason": reason, "text": ""})

    def _place(self, split: _Split, number: int) -> tuple[int, int]:
        return int(split.key("chunk")[number]), int(split.key("row")[number])

    # -- what is refused ---------------------------------------------------------------------------------------------

    def _paths(self) -> str:
        return ", ".join(source.path for source in self._config.sources)

    def _check_rejects(self) -> None:
        counts, config = self.counts, self._config
        if not counts["read"]:
            raise UserError(f"data.sources: {self._paths()}: no row in it")
        if counts["rejected"] > config.max_rejects_share * counts["read"]:
            rows = [row for row in self._lost if row["fate"] == REJECTED]
            reasons = Counter(row["reason"] for row in rows)
            worst = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
            raise UserError(
                f"data.sources: {counts['rejected']} of {counts['read']} rows cannot be used ({worst}; first at "
                f"{self._origin(rows[0]['chunk'], rows[0]['row'])}), more than "
                f"data.max_rejects_share={config.max_rejects_share}; mend the rows or raise it"
            )

    def _check_empty(self) -> None:
        lost = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()) if count)
        if not self.counts["train"]:
            raise UserError(f"data.sources: {self._paths()}: no row left to train on ({lost}); see data.row_tokens")
        wanted = self._config.heldout_share or any(s.split == "heldout" for s in self._config.sources)
        if wanted and not self.counts["heldout"]:
            raise UserError(
                f"data.heldout_share={self._config.heldout_share}: no row fell into the held-out split ({lost}); raise "
                "it, or name a source with split: heldout"
            )

    # -- small files ---------------------------------------------------------------------------------------------------

    def _write_heldout(self, path: Path, kept: np.ndarray) -> None:
        self._heldout.close()
        fields = [pa.field("sample_id", pa.string()), *(SCHEMA.field(name) for name in _HELDOUT_COLUMNS[1:])]
        at = 0
        with pq.ParquetWriter(path, pa.schema(fields)) as out:
            for batch in pq.ParquetFile(self._heldout_path).iter_batches():
                mask = kept[at : at + len(batch)] & batch["prompt_ids"].is_valid().to_numpy(zero_copy_only=False)
                at += len(batch)
                rows = batch.filter(pa.array(mask))
                names = pa.array([value.hex() for value in rows["sample_id"].to_pylist()], pa.string())
                columns = [names, *(rows[name] for name in _HELDOUT_COLUMNS[1:])]
                out.write_table(pa.table(columns, schema=pa.schema(fields)))

    def _write_lost(self, path: Path) -> None:
        with open(path, "w") as out:
            for row in self._lost:
                origin = self._origin(row["chunk"], row["row"])
                fate = row["fate"] if isinstance(row["fate"], str) else LOST[row["fate"]]
                line = {"origin": origin, "fate": fate, "reason": row["reason"], "row": row["text"]}
                out.write(json.dumps(line) + "\n")

    def _origin(self, chunk: int, row: int) -> str:
        """`file:line` of a row; the file's name without its folder where that is enough to tell it."""
        part = self._chunks[chunk]
        names = {c.path for c in self._chunks if PurePosixPath(c.path).name == PurePosixPath(part.path).name}
        name = PurePosixPath(part.path).name if len(names) == 1 else part.path
        return f"{name}:{self._lines_before(chunk) + row + 1}"

    def _lines_before(self, chunk: int) -> int:
        if chunk not in self._line_bases:
            self._line_bases[chunk] = lines_before(self._chunks[chunk])
        return self._line_bases[chunk]
