"""Rejects: rows that were left out or changed, with the reason.

They are written to `rejects.jsonl` as they come, so that memory does not grow with their number.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config.schema import DataConfig
from pipelines.core.errors import UserError
from pipelines.data.read.raw_row import printable
from pipelines.storage import Store

if TYPE_CHECKING:  # a command that finds its dataset loads this module, but not pyarrow
    import pyarrow as pa

    from pipelines.data.origins import Origins

KIND = "rejects"  # the artifact of a failed stage; a finished one has the file in its own artifact
FILE = "rejects.jsonl"
_MAX_KINDS = 10_000


@dataclass(frozen=True)
class RejectKind:
    """Rejects of one fate and reason: their number, and reason and `file:line` of the first."""

    fate: str
    reason: str
    count: int
    first: str


class RejectLog:
    """Writes `origin`, `fate`, `reason` and `row` of every reject as one line of JSON."""

    def __init__(self, path: Path, origins: Origins) -> None:
        self.path, self._origins = path, origins
        self._out = io.TextIOWrapper(io.BufferedWriter(io.FileIO(path, "w")), encoding="utf-8")

    def add(self, chunk: int, row: int, fate: str, reason: str, text: str = "") -> None:
        """Add one row, by its number in its chunk."""
        line = {
            "origin": self._origins.name(chunk, row),
            "fate": fate,
            "reason": printable(reason),
            "row": text,
        }
        self._out.write(json.dumps(line) + "\n")

    def add_table(self, table: pa.Table, names: Mapping[int, str]) -> None:
        """Add the rows of a table of tokenized_table.SCHEMA; `names` has the name of each fate."""
        columns = (table[name].to_pylist() for name in ("chunk", "row", "fate", "reason", "text"))
        for chunk, row, fate, reason, text in zip(*columns, strict=True):
            self.add(chunk, row, names[fate], reason, text)

    def close(self) -> None:
        self._out.close()

    def first(self, fate: str) -> str:
        """`file:line` of the first row of that fate."""
        self._out.flush()
        return next(kind.first for kind in reject_kinds(self.path) if kind.fate == fate)

    def check_rejects(self, counts: Mapping[str, int], config: DataConfig) -> None:
        """As the function `check_rejects`, of the rejects so far."""
        self._out.flush()
        check_rejects(counts, lambda: self.path, config)

    @contextmanager
    def kept_on_failure(self, store: Store, key: str) -> Iterator[None]:
        """Save the rejects in the store when a UserError ends the stage, and name the file."""
        try:
            yield
        except UserError as error:
            self._out.flush()
            if not self.path.stat().st_size:
                raise
            with store.create_artifact(KIND, key) as draft:
                shutil.copyfile(self.path, draft.path / FILE)
            raise UserError(f"{error}; all rejects: {store.folder(KIND, key)}/{FILE}") from error


def reject_kinds(path: Path) -> list[RejectKind]:
    """The reasons in a `rejects.jsonl`, most frequent first.

    Reasons that differ only in numbers are counted together.
    """
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], tuple[str, str]] = {}
    with open(path) as lines:
        for line in lines:
            row = json.loads(line)
            reason = (
                "longer than a pack" if row["fate"] in ("too_long", "shortened") else row["reason"]
            )
            kind = row["fate"], re.sub(r"\d+", "0", reason)
            if kind not in first and len(first) >= _MAX_KINDS:
                kind, reason = (row["fate"], ""), "of other reasons"
            counts[kind] += 1
            first.setdefault(kind, (reason, row["origin"]))
    return [
        RejectKind(kind[0], first[kind][0], count, first[kind][1])
        for kind, count in counts.most_common()
    ]


def check_rejects(counts: Mapping[str, int], path: Callable[[], Path], config: DataConfig) -> None:
    """Raise UserError with the most frequent reasons if the recipe allows fewer rejected rows.

    `path` is called only then, since files in an object store must be downloaded first.
    """
    if counts["rejected"] <= config.max_rejects_share * counts["read"]:
        return
    kinds = [kind for kind in reject_kinds(path()) if kind.fate == "rejected"]
    worst = "; ".join(f"{kind.count} x {kind.reason} (first at {kind.first})" for kind in kinds[:3])
    raise UserError(
        f"data.sources: {counts['rejected']} of {counts['read']} rows cannot be used: {worst}; "
        f"that is more than data.max_rejects_share={config.max_rejects_share}: fix the rows or "
        "raise it"
    )
