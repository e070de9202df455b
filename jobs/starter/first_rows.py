"""The first rows of a dataset: their format, their lengths and how many rows there are."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.convert.content_keys import content_id, prompt_keys, share_of
from pipelines.data.convert.format_hints import worded_pair
from pipelines.data.convert.format_keys import detect_format
from pipelines.data.convert.row_error import RowError
from pipelines.data.first_look import RejectReasons, place_of
from pipelines.data.read.chunks import Chunk, cut_chunks
from pipelines.data.read.raw_row import RawRow
from pipelines.data.read.rows import read_chunk
from pipelines.data.source_rows import conversation_of
from pipelines.sources.source_files import SourceFile, files_at

if TYPE_CHECKING:
    from pipelines.core.conversation import Conversation

NUM_CONVERTED = 2000
"""Rows that are converted and measured; further ones are only counted."""
_COUNT_SECONDS = 5.0


@dataclass(frozen=True)
class FirstRows:
    """What the first rows of a dataset show.

    `source` has the keys that a recipe needs to read them. `formats` counts rows by format.
    `num_rows` is the number of rows, exact or estimated. `errors` counts the reasons why rows
    cannot be used, each with `file:line` of the first; most frequent first.
    """

    conversations: list[Conversation]
    source: SourceConfig
    formats: Mapping[str, int]
    num_rows: int
    exact: bool
    num_files: int
    errors: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())

    @property
    def complete(self) -> bool:
        """Whether every row was converted, so that lengths and splits are exact."""
        return self.exact and self.num_rows <= NUM_CONVERTED


def read_first_rows(source: SourceConfig) -> FirstRows:
    """Read the dataset of a source. Where its rows need `columns` and it has none, they are set.

    Raises UserError when there are no rows, when none of them has a known format, and when the
    source needs another key.
    """
    try:
        return _read(source)
    except UserError as error:
        if "the source's `" not in str(error):
            raise
        raise UserError(f"{error}; give `init` such a key as --source 'KEY: VALUE'") from error


def _read(source: SourceConfig) -> FirstRows:
    files = files_at(source.path, "--data", 0, "auto", source)
    rows = _rows(files)
    first = list(itertools.islice(rows, NUM_CONVERTED))
    if not first:
        raise UserError(f"--data {source.path}: holds no row")
    if not source.columns and source.format == "auto":
        columns = _columns([row for _, row in first])
        source = source.model_copy(update={"columns": columns})
    conversations, formats, errors = _convert(first, source)
    if not conversations:
        raise UserError(
            f"--data {source.path}: none of the first {len(first)} rows can be used: "
            f"{next(iter(errors))}"
        )
    num_rows, exact = _count(rows, [row for _, row in first], files)
    return FirstRows(conversations, source, formats, num_rows, exact, len(files), errors)


def split_keys(conversations: list[Conversation]) -> list[float]:
    """For each different conversation the number in 0..1 that decides whether it is held out.

    It is held out if the number is below data.heldout_share, at data.seed 0.
    """
    different = {content_id(conversation): conversation for conversation in conversations}
    return [share_of(_opening_key(each), 0, "split") for each in different.values()]


def _opening_key(conversation: Conversation) -> int:
    """The key of the turns before the first answer to a user, by which the stage splits."""
    roles = [turn.role for turn in conversation.turns]
    users = roles.index("user") if "user" in roles else len(roles)
    keys = prompt_keys(conversation)
    return keys[min(roles[:users].count("assistant"), len(keys) - 1)]


def _rows(files: list[SourceFile]) -> Iterator[tuple[Chunk, RawRow]]:
    for chunk in cut_chunks(files):
        for row in read_chunk(chunk):
            yield chunk, row


def _convert(
    rows: list[tuple[Chunk, RawRow]], source: SourceConfig
) -> tuple[list[Conversation], Counter[str], dict[str, int]]:
    conversations, formats, reasons = [], Counter[str](), RejectReasons()
    for chunk, row in rows:
        try:
            conversations.append(conversation_of(row, source, chunk.is_table))
            formats[_format_of(row.value, source)] += 1
        except RowError as error:
            reasons.add(str(error), place_of(chunk, row))
    return conversations, formats, reasons.counts()


def _format_of(row: Any, source: SourceConfig) -> str:
    return detect_format(row, source.columns) if source.format == "auto" else source.format


def _columns(rows: list[RawRow]) -> dict[str, str]:
    """The `columns` of a source whose rows have a question and an answer under other names."""
    row = next((row.value for row in rows if isinstance(row.value, Mapping)), None)
    return {} if row is None or _has_format(row) else worded_pair(row)


def _has_format(row: Mapping[str, Any]) -> bool:
    try:
        detect_format(row)
    except RowError:
        return False
    return True


def _count(
    rows: Iterator[object], first: list[RawRow], files: list[SourceFile]
) -> tuple[int, bool]:
    """The number of rows, and whether it is exact: counting stops after a few seconds."""
    deadline, count = time.monotonic() + _COUNT_SECONDS, len(first)
    for _ in rows:
        count += 1
        if count % 1000 == 0 and time.monotonic() > deadline:
            break
    else:
        return count, True
    sample = first[:200]
    row_bytes = sum(len(json.dumps(row.value, default=str)) for row in sample) / len(sample)
    total_bytes = sum(file.num_bytes for file in files)
    return max(count, int(total_bytes / max(row_bytes, 1))), False
