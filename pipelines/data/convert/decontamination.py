"""Benchmark questions and runs of words, which training rows must not contain."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.core.conversation import Conversation
from pipelines.core.errors import UserError
from pipelines.data.convert.content_keys import grams, question_keys, text_of
from pipelines.data.convert.format_hints import ANSWER_KEYS
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.read.chunks import cut_chunks, line_of
from pipelines.data.read.rows import read_chunk
from pipelines.sources.source_files import SourceFile

_NO_ANSWER = "(none)"


@dataclass(frozen=True)
class Benchmarks:
    """Keys of benchmark questions, and hashes of their runs of 13 words."""

    questions: frozenset[int] = frozenset()
    grams: frozenset[int] = frozenset()

    def overlaps(self, conversation: Conversation) -> bool:
        """True if a benchmark has one of the conversation's questions or runs of words."""
        if not self.questions:
            return False
        if not self.questions.isdisjoint(question_keys(conversation)):
            return True
        return bool(self.grams) and not self.grams.isdisjoint(grams(text_of(conversation)))


def read_benchmarks(files: Sequence[SourceFile]) -> Benchmarks:
    """The questions and runs of words of all rows.

    Raises UserError for a row that cannot be read: its question could not be found in the sources.
    """
    questions: set[int] = set()
    runs: set[int] = set()
    for chunk in cut_chunks(files):
        for raw in read_chunk(chunk):
            try:
                if raw.error:
                    raise RowError(raw.error)
                conversation = _conversation(raw.value)
            except RowError as error:
                raise UserError(
                    f"data.benchmarks: {chunk.path}:{line_of(chunk, raw.number)}: {error}; fix the "
                    "row or remove it"
                ) from error
            # A later user turn alone may be as short as "Why?", which is no benchmark question.
            questions |= question_keys(conversation, first_only=True)
            runs |= grams(text_of(conversation))
    return Benchmarks(frozenset(questions), frozenset(runs))


def _conversation(row: Any) -> Conversation:
    """Convert a row whose answer may be missing or no text, such as the number of a choice."""
    try:
        return to_conversation(row)
    except RowError:
        if isinstance(row, Mapping):
            questions = {key: value for key, value in row.items() if key not in ANSWER_KEYS}
            with contextlib.suppress(RowError):
                return to_conversation({**questions, "answer": _NO_ANSWER})
        raise
