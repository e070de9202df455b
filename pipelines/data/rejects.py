"""Rows that are not in a dataset as they were: written down as they come, so that none is kept in memory."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from pipelines.config.schema import DataConfig
from pipelines.core.errors import UserError
from pipelines.data.read.chunks import Chunk, lines_between
from pipelines.data.read.raw_row import printable
from pipelines.storage import Store

KIND = "rejects"  # of the rows of a stage that failed; a finished one has them in its own artifact
FILE = "rejects.jsonl"
_MAX_KINDS = 10_000


@dataclass(frozen=True)
class RejectKind:
    """Rows lost for one reason: how many, and the first one's reason and `file:line`."""

    fate: str
    reason: str
    count: int
    first: str


class RejectLog:
    """Writes `origin`, `fate`, `reason` and `row` of every lost row as a line of JSON."""

    def __init__(self, path: Path, chunks: Sequence[Chunk]) -> None:
        self.path, self._chunks = path, chunks
        self._out = io.TextIOWrapper(io.BufferedWriter(io.FileIO(path, "w")), encoding="utf-8")
        paths: dict[str, set[str]] = {}
        for chunk in chunks:
            paths.setdefault(PurePosixPath(chunk.path).name, set()).add(chunk.path)
        # The file's name without its folder, where that is enough to tell it.
        self._names = {
            path: path if len(same) > 1 else name for name, same in paths.items() for path in same
        }
        self._lines_before: dict[int, int] = {}

    def add(self, chunk: int, row: int, fate: str, reason: str, text: str = "") -> None:
        line = {
            "origin": self.origin(chunk, row),
            "fate": fate,
            "reason": printable(reason),
            "row": text,
        }
        self._out.write(json.dumps(line) + "\n")

    def add_table(self, table: pa.Table, names: Mapping[int, str]) -> None:
        """Rows of tokenize.SCHEMA; `names` gives each fate's."""
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
        self._out.flush()
        check_rejects(counts, lambda: self.path, config)

    @contextmanager
    def kept_on_failure(self, store: Store, key: str) -> Iterator[None]:
        """Put what was written so far into the store when a UserError ends the stage, and say in it where that is."""
        try:
            yield
        except UserError as error:
            self._out.flush()
            if not self.path.stat().st_size:
                raise
            with store.create_artifact(KIND, key) as draft:
                shutil.copyfile(self.path, draft.path / FILE)
            raise UserError(f"{error}; all lost rows: {store.folder(KIND, key)}/{FILE}") from error

    def origin(self, chunk: int, row: int) -> str:
        """`file:line` of a row."""
        return f"{self._names[self._chunks[chunk].path]}:{self._first_line(chunk) + row + 1}"

    def _first_line(self, chunk: int) -> int:
        """Lines of the file before a chunk, counted once from the nearest chunk before it whose number is known."""
        mine, known = self._chunks[chunk], chunk
        if mine.kind != "jsonl":
            return 0
        while known not in self._lines_before and self._chunks[known].first:
            known -= 1
        lines = self._lines_before.setdefault(known, 0)
        for i in range(known + 1, chunk + 1):
            lines += lines_between(mine.path, self._chunks[i - 1].first, self._chunks[i].first)
            self._lines_before[i] = lines
        return lines


def reject_kinds(path: Path) -> list[RejectKind]:
    """The reasons in a `rejects.jsonl`, most frequent first; reasons that differ in numbers alone are one."""
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
    """Raise UserError, naming the reasons in the `rejects.jsonl` at `path`, when more was rejected than the recipe allows.

    The path is asked for only then: an object store's files must be fetched first.
    """
    if counts["rejected"] <= config.max_rejects_share * counts["read"]:
        return
    kinds = [kind for kind in reject_kinds(path()) if kind.fate == "rejected"]
    worst = "; ".join(f"{kind.count} x {kind.reason} (first at {kind.first})" for kind in kinds[:3])
    raise UserError(
        f"data.sources: {counts['rejected']} of {counts['read']} rows cannot be used: {worst}; that is more than "
        f"data.max_rejects_share={config.max_rejects_share}: mend the rows or raise it"
    )
