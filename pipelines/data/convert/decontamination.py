"""What training must not hold: the questions of benchmark files, and their runs of words."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.core.conversation import Conversation
from pipelines.core.errors import UserError
from pipelines.data.convert.dedup import grams, question_keys, text_of
from pipelines.data.convert.row_formats import RowError, to_conversation
from pipelines.data.read.chunks import cut_chunks, lines_between
from pipelines.data.read.rows import read_chunk
from pipelines.sources.files import SourceFile, files_at

_NO_ANSWER = "(none)"


@dataclass(frozen=True)
class Benchmarks:
    """Questions by their keys, and runs of words by their hashes."""

    questions: frozenset[int] = frozenset()
    grams: frozenset[int] = frozenset()

    def hold(self, conversation: Conversation) -> bool:
        """Whether one of a conversation's questions, or a run of its words, is known from a benchmark."""
        if not self.questions:
            return False
        if not self.questions.isdisjoint(question_keys(conversation)):
            return True
        return bool(self.grams) and not self.grams.isdisjoint(grams(text_of(conversation)))


def benchmark_files(paths: Sequence[str]) -> list[SourceFile]:
    """The files of `data.benchmarks`. Raises UserError naming the key and path."""
    return [
        file
        for i, path in enumerate(paths)
        for file in files_at(path, f"data.benchmarks.{i}", split="benchmark")
    ]


def read_benchmarks(files: Sequence[SourceFile]) -> Benchmarks:
    """Questions and runs of all rows. Raises UserError for a row that has none: it would guard nothing."""
    questions: set[int] = set()
    runs: set[int] = set()
    for chunk in cut_chunks(files):
        for raw in read_chunk(chunk):
            try:
                if raw.error:
                    raise RowError(raw.error)
                conversation = _conversation(raw.value)
            except RowError as error:
                line = (
                    (lines_between(chunk.path, 0, chunk.first) if chunk.kind == "jsonl" else 0)
                    + raw.number
                    + 1
                )
                raise UserError(
                    f"data.benchmarks: {chunk.path}:{line}: {error}; mend the row or leave it out"
                ) from error
            # A later user turn alone may say no more than "Why?".
            questions |= question_keys(conversation, first_only=True)
            runs |= grams(text_of(conversation))
    return Benchmarks(frozenset(questions), frozenset(runs))


def _conversation(row: Any) -> Conversation:
    """A row of a known format; its answer may be missing or no text (the number of a choice, say)."""
    try:
        return to_conversation(row)
    except RowError:
        if isinstance(row, Mapping):
            with contextlib.suppress(RowError):
                return to_conversation(
                    {**row, **dict.fromkeys(("output", "answer", "completion"), _NO_ANSWER)}
                )
        raise
