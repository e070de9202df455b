"""Text of another encoding as a stream of UTF-8."""

from __future__ import annotations

import codecs
import io
from typing import IO

from pipelines.core.errors import UserError

_BLOCK_BYTES = 1 << 20


class Utf8Stream(io.RawIOBase):
    """Reads the bytes of a stream in `encoding` as UTF-8.

    A byte that the encoding does not have stays a byte that is no UTF-8, so it costs its row.
    Where the encoding cannot be resumed behind such a byte, reading raises UserError naming `path`.
    """

    def __init__(self, stream: IO[bytes], encoding: str, path: str) -> None:
        self._stream, self._encoding, self._path = stream, encoding, path
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="surrogateescape")
        self._position = 0  # of the encoded bytes
        self._buffer = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._buffer and not self._ended:
            self._fill()
        count = min(len(target), len(self._buffer))
        target[:count] = self._buffer[:count]
        self._buffer = self._buffer[count:]
        return count

    def _fill(self) -> None:
        block = self._stream.read(_BLOCK_BYTES)
        self._ended = not block
        try:
            text = self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._path}: not {self._encoding} between the bytes {self._position:,} and "
                f"{self._position + len(block):,} ({error.reason}); fix or replace the file"
            ) from error
        self._position += len(block)
        self._buffer = memoryview(text.encode(errors="surrogateescape"))


def utf8_stream(stream: IO[bytes], encoding: str, path: str) -> IO[bytes]:
    """A stream of text in `encoding` as UTF-8; the stream itself if that is its encoding."""
    if encoding == "utf-8":
        return stream
    return io.BufferedReader(Utf8Stream(stream, encoding, path), _BLOCK_BYTES)
