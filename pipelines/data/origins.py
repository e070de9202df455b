"""File and line of rows, from the number of their chunk and their number in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from pipelines.data.read.chunks import Chunk

# N: rows


class Origins:
    """Knows where each chunk begins in its file, once the chunks before it have ended.

    `names` has the name of each file, in the order of the chunks: without its folder unless several
    files have the same name.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = chunks
        self._source_of_chunk = np.array([chunk.source for chunk in chunks], np.int32)
        files = list(dict.fromkeys((chunk.source, chunk.path) for chunk in chunks))
        numbers = {file: number for number, file in enumerate(files)}
        self._file_of_chunk = np.array([numbers[c.source, c.path] for c in chunks], np.int32)
        paths: dict[str, set[str]] = {}
        for _, path in files:
            paths.setdefault(PurePosixPath(path).name, set()).add(path)
        self.names = [
            path if len(paths[PurePosixPath(path).name]) > 1 else PurePosixPath(path).name
            for _, path in files
        ]
        self._lines_before = np.zeros(len(chunks) + 1, np.int64)

    def end(self, chunk: int, num_lines: int) -> None:
        """Note the number of lines of a chunk of lines; chunks end in their order.

        Rows of other files have their number in the file.
        """
        if chunk + 1 < len(self._chunks) and self._chunks[chunk + 1].first:  # in the same file
            self._lines_before[chunk + 1] = self._lines_before[chunk] + num_lines

    def name(self, chunk: int, row: int) -> str:
        """`file:line` of a row."""
        line = int(self._lines_before[chunk]) + row + 1
        return f"{self.names[self._file_of_chunk[chunk]]}:{line}"

    def sources(self, chunks: np.ndarray) -> np.ndarray:
        """The number in the recipe of each row's source, int32 [N], from the rows' chunks."""
        return self._source_of_chunk[chunks]

    def files(self, chunks: np.ndarray) -> np.ndarray:
        """The number in `names` of each row's file, int32 [N], from the rows' chunks."""
        return self._file_of_chunk[chunks]

    def lines(self, chunks: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The line of each row in its file, from 1, int64 [N]."""
        return self._lines_before[chunks] + rows + 1
