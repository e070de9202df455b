"""The first rows of a dataset: their format, their lengths and how many rows there are."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.core.errors import UserError
from pipelines.data.convert.content_keys import content_id, prompt_keys, share_of
from pipelines.data.convert.format_keys import detect_format
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.read.raw_row import RawRow
from pipelines.data.read.rows import read_chunk
from pipelines.sources.source_files import SourceFile, files_at

if TYPE_CHECKING:
    from pipelines.core.conversation import Conversation

NUM_CONVERTED = 2000
"""Rows that are converted and measured; further ones are only counted."""
_COUNT_SECONDS = 5.0
# Pairs of columns that mean a question and its answer in datasets of no known format.
_PAIRS = tuple(
    (question, answer)
    for question in ("question", "prompt", "query", "instruction", "input", "user", "problem")
    for answer in ("answer", "response", "output", "completion", "target", "assistant", "solution")
)


@dataclass(frozen=True)
class FirstRows:
    """What the first rows of a dataset show.

    `formats` counts rows by format; `columns` is what a source needs for rows of no known format.
    `num_rows` is the number of rows, exact or estimated. `errors` counts the reasons why rows
    cannot be used.
    """

    conversations: list[Conversation]
    formats: Mapping[str, int]
    columns: Mapping[str, str]
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


def read_first_rows(path: str) -> FirstRows:
    """Read the dataset at `path`: a file, a folder, a glob or a URI.

    Raises UserError when there are no rows, or when none of them has a known format.
    """
    files = files_at(path, "--data", 0, "auto")
    rows = _rows(files)
    first = [row for row, _ in zip(rows, range(NUM_CONVERTED), strict=False)]
    if not first:
        raise UserError(f"--data {path}: holds no row")
    columns = _columns(first)
    conversations, formats, errors = _convert(first, columns)
    if not conversations:
        reason, _ = errors.most_common(1)[0]
        raise UserError(f"--data {path}: none of the first {len(first)} rows can be used: {reason}")
    num_rows, exact = _count(rows, first, files)
    return FirstRows(conversations, formats, columns, num_rows, exact, len(files), errors)


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


def _rows(files: list[SourceFile]) -> Iterator[RawRow]:
    for chunk in cut_chunks(files):
        yield from read_chunk(chunk)


def _convert(
    rows: list[RawRow], columns: Mapping[str, str]
) -> tuple[list[Conversation], Counter[str], Counter[str]]:
    conversations, formats, errors = [], Counter[str](), Counter[str]()
    for row in rows:
        try:
            if row.error:
                raise RowError(row.error)
            conversations.append(to_conversation(row.value, "auto", columns))
            mapped = {key: None for key in columns} | row.value
            formats[detect_format(mapped, columns)] += 1
        except RowError as error:
            errors[str(error)] += 1
    return conversations, formats, errors


def _columns(rows: list[RawRow]) -> dict[str, str]:
    """The `columns` of a source whose rows have a question and an answer under other names."""
    row = next((row.value for row in rows if isinstance(row.value, Mapping)), None)
    if row is None or _has_format(row):
        return {}
    names = {str(key).lower(): str(key) for key in row}
    for question, answer in _PAIRS:
        if question in names and answer in names:
            return {"prompt": names[question], "completion": names[answer]}
    return {}


def _has_format(row: Mapping[str, Any]) -> bool:
    try:
        detect_format(row)
    except RowError:
        return False
    return True


def _count(
    rows: Iterator[RawRow], first: list[RawRow], files: list[SourceFile]
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
