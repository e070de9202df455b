"""Assembles a dataset from the tasks' tables, with tokens on disk and only keys in memory.

Duplicates and leakage can be decided only when all rows are known, so that happens here, on a few
dozen bytes for each row.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config.schema import DataConfig
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError
from pipelines.core.noun_json import to_json
from pipelines.data.convert.dedup import repeated
from pipelines.data.convert.source_options import options_of
from pipelines.data.heldout_samples import SPLIT as HELDOUT_LABEL
from pipelines.data.heldout_samples import HeldoutSamples
from pipelines.data.mask_checks import MaskChecks
from pipelines.data.origins import Origins
from pipelines.data.read.chunks import Chunk
from pipelines.data.rejects import FILE, RejectLog
from pipelines.data.row_facts import FactCounts
from pipelines.data.split_samples import SplitSamples
from pipelines.data.tokenized_table import (
    CHUNK_END,
    FILTERED,
    HELDOUT,
    LEAKED,
    REJECTED,
    SHORTENED,
    SKIPPED,
    TOO_LONG,
    TRAIN,
)
from pipelines.packed.format import HELDOUT_SAMPLES
from pipelines.packed.writer import write_shards
from pipelines.storage import Store

REJECT_FATES = {
    REJECTED: "rejected",
    FILTERED: "filtered",
    SKIPPED: "skipped",
    TOO_LONG: "too_long",
    SHORTENED: "shortened",
    LEAKED: "leaked",
}
_SPLITS = {TRAIN: ("train", "train"), HELDOUT: ("heldout", HELDOUT_LABEL)}
"""The name of each split's files, and the split label of its samples."""


class Assembler:
    """Takes the tasks' tables in source order; `finish` decides, packs and writes.

    A context manager for its scratch files.
    """

    def __init__(self, config: DataConfig, chunks: Sequence[Chunk], scratch: Path) -> None:
        self._config = config
        self._origins = Origins(chunks)
        with contextlib.ExitStack() as stack:
            self._splits = {
                fate: stack.enter_context(SplitSamples(scratch / name))
                for fate, (name, _) in _SPLITS.items()
            }
            self._heldout = stack.enter_context(HeldoutSamples(scratch / "heldout.parquet"))
            self._rejects = RejectLog(scratch / FILE, self._origins)
            stack.callback(self._rejects.close)
            self._scratch = stack.pop_all()
        self._checks, self._facts = MaskChecks(), FactCounts()
        self._first_of_kind: dict[bool, str] = {}  # plain text or not, and its first row
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.close()

    def add(self, table: pa.Table) -> int:
        """Take one table of tokenized_table.SCHEMA; returns the number of source rows in it."""
        fates = table["fate"].to_numpy()
        if (is_end := fates == CHUNK_END).any():
            for end in table.select(["chunk", "row"]).filter(pa.array(is_end)).to_pylist():
                self._origins.end(end["chunk"], end["row"])
            table, fates = table.filter(pa.array(~is_end)), fates[~is_end]
        self._check_kind(table)
        for fate, split in self._splits.items():
            split.add(table.filter(pa.array(fates == fate)))
        self._heldout.add(table.filter(pa.array(fates == HELDOUT)))
        is_reject = pa.array((fates != TRAIN) & (fates != HELDOUT))
        self._rejects.add_table(table.filter(is_reject), REJECT_FATES)
        for fate, name in REJECT_FATES.items():
            self.counts[name] += int((fates == fate).sum())
        pieces = int(np.count_nonzero(table["piece"].to_numpy()))
        self.counts["pieces"] += pieces
        self.counts["read"] += len(fates) - pieces
        self._checks.add(table, self._origins.name)
        self._facts.add(table, self._origins.name)
        return len(fates) - pieces

    def keeping_rejects(self, store: Store, key: str) -> AbstractContextManager[None]:
        """See RejectLog.kept_on_failure.

        The artifact's key adds the threshold of rejects, which the inputs' `key` leaves out.
        """
        return self._rejects.kept_on_failure(
            store, digest_of([key, self._config.max_rejects_share])
        )

    def finish(self, folder: Path) -> dict[str, Any]:
        """Write shards, held-out samples and rejects into `folder`; returns the metadata.

        Raises UserError for too many rejected rows, held-out text in the training rows, or an empty
        split.
        """
        self._check_read()
        self._rejects.check_rejects(self.counts, self._config)
        self._check_options()
        stays = {fate: self._without_repeats(split) for fate, split in self._splits.items()}
        stays[TRAIN] &= ~self._leaks(stays)
        self.counts["train"] = int(stays[TRAIN].sum())
        self.counts["heldout"] = int(stays[HELDOUT].sum())
        self._check_empty()
        config, stats = self._config, {}
        for fate, (name, label) in _SPLITS.items():
            split = self._splits[fate]
            chosen = split.select(stays[fate], self._origins, label)
            stats[name] = to_json(
                write_shards(split.store, chosen, folder, name, config.row_tokens, config.seed)
            )
            if fate == HELDOUT:
                self._heldout.write(folder / HELDOUT_SAMPLES, stays[fate], chosen)
        self._rejects.close()
        shutil.move(self._rejects.path, folder / FILE)
        facts = self._facts.manifest()
        facts["first_rows"] |= {"checks": self._checks.first_rows}
        metadata = {
            "row_tokens": config.row_tokens,
            "counts": dict(sorted(self.counts.items())),
            "checks": dict(self._checks.counts),
            "files": self._origins.names,
            "kind": "text" if True in self._first_of_kind else "conversations",
            "too_long": config.too_long,
        }
        return metadata | stats | facts

    def _check_kind(self, table: pa.Table) -> None:
        """Raise UserError once both plain text and conversations were read."""
        for is_text in (True, False):
            number = pc.index(table["is_text"], is_text).as_py()
            if is_text not in self._first_of_kind and number >= 0:
                row = table.select(["chunk", "row"]).slice(number, 1).to_pylist()[0]
                self._first_of_kind[is_text] = self._origins.name(row["chunk"], row["row"])
        if len(self._first_of_kind) > 1:
            raise UserError(
                f"data.sources: {self._first_of_kind[True]} is plain text and "
                f"{self._first_of_kind[False]} is a conversation, and a dataset has rows of one "
                "kind: prepare them with two recipes"
            )

    def _without_repeats(self, split: SplitSamples) -> np.ndarray:
        """Mask of a split's samples that stay when duplicates are dropped, bool [N]."""
        ids = split.key("sample_id")
        stays = np.ones(len(ids), bool)
        if self._config.duplicates == "drop":
            stays = ~repeated(ids)
            self._reject(split, ~stays, "duplicates", "the same content as an earlier row")
        if self._config.near_duplicates is not None:
            near = split.nearly_repeated(self._config.near_duplicates, np.flatnonzero(stays))
            self._reject(split, near, "near_duplicates", "nearly the same text as an earlier row")
            stays &= ~near
        return stays

    def _leaks(self, stays: Mapping[int, np.ndarray]) -> np.ndarray:
        """Mask of training samples that ask a held-out question, bool [N]; uses `data.leakage`."""
        train, heldout = self._splits[TRAIN], self._splits[HELDOUT]
        policy = self._config.leakage
        if policy == "allow":
            return np.zeros(len(stays[TRAIN]), bool)
        leaks = train.asks_any_of(heldout.key("prompt_key")[stays[HELDOUT]]) & stays[TRAIN]
        first = self._origins.name(*train.place(int(np.argmax(leaks)))) if leaks.any() else None
        self._reject(train, leaks, "leaked", "its question is held out")
        if policy == "error" and self.counts["leaked"]:
            raise UserError(
                f"data.sources: {self.counts['leaked']} training rows ask questions that are held "
                f"out or in data.benchmarks (first: {first or self._rejects.first('leaked')}); fix "
                "the sources, or set data.leakage=drop"
            )
        return leaks

    def _reject(self, split: SplitSamples, mask: np.ndarray, fate: str, reason: str) -> None:
        self.counts[fate] += int(mask.sum())
        for number in np.flatnonzero(mask).tolist():
            self._rejects.add(*split.place(number), fate, reason)

    def _paths(self) -> str:
        return ", ".join(source.path for source in self._config.sources)

    def _check_read(self) -> None:
        if not self.counts["read"]:
            raise UserError(f"data.sources: {self._paths()}: no row in it")

    def _check_options(self) -> None:
        for i, source in enumerate(self._config.sources):
            if unused := self._facts.without_use(options_of(source)):
                raise UserError(
                    f"data.sources.{i}.{'; '.join(unused)} does nothing: none of the "
                    f"{self.counts['read']:,} rows has such a column or role; remove or correct it"
                )

    def _check_empty(self) -> None:
        counts = ", ".join(
            f"{name} {count}" for name, count in sorted(self.counts.items()) if count
        )
        if not self.counts["train"]:
            raise UserError(
                f"data.sources: {self._paths()}: no row left to train on ({counts}); see "
                "data.row_tokens"
            )
        share, sources = self._config.heldout_share, self._config.sources
        if (share or any(s.split == "heldout" for s in sources)) and not self.counts["heldout"]:
            raise UserError(
                f"data.heldout_share={share}: no row was chosen for the held-out split ({counts}); "
                "raise it, or name a source with split: heldout"
            )
