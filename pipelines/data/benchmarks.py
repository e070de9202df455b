"""What training must not hold: the questions of benchmark files, and their runs of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.contracts import Conversation
from pipelines.data.filter import grams, prompt_key, text_of
from pipelines.data.formats import RowError, to_conversation
from pipelines.data.readers import read_chunk
from pipelines.data.sources import SourceFile, cut_chunks, files_at


@dataclass(frozen=True)
class Benchmarks:
    """Prompts by their keys, and runs of words by their hashes."""

    prompt_keys: frozenset[int] = frozenset()
    grams: frozenset[int] = frozenset()

    def hold(self, conversation: Conversation, key: int) -> bool:
        """Whether a conversation with this prompt key is known from a benchmark."""
        if key in self.prompt_keys:
            return True
        return bool(self.grams) and not self.grams.isdisjoint(grams(text_of(conversation)))


def benchmark_files(paths: Sequence[str]) -> list[SourceFile]:
    """The files of `data.benchmarks`. Raises UserError naming the key and path."""
    return [file for i, path in enumerate(paths) for file in files_at(path, f"data.benchmarks.{i}")]


def read_benchmarks(files: Sequence[SourceFile]) -> Benchmarks:
    """Keys and runs of all rows; a row of no known format has none."""
    keys: set[int] = set()
    runs: set[int] = set()
    for chunk in cut_chunks(files):
        for raw in read_chunk(chunk):
            try:
                conversation = to_conversation(raw.value)
            except RowError:
                continue
            keys.add(prompt_key(conversation))
            runs |= grams(text_of(conversation))
    return Benchmarks(frozenset(keys), frozenset(runs))
