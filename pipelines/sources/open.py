"""Opening source files, local or remote, compressed or not."""

from __future__ import annotations

import io
import lzma
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any, cast

from pipelines.core.errors import UserError, one_line

REASON_CHARS = 200  # of a library's error text inside a message of ours
# By the first bytes: names of files do not always have the ending of their compression.
_COMPRESSED = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bz2": re.compile(rb"BZh[1-9]1AY"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
}


@contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """A file's stored bytes. Raises UserError when no file system of its scheme is installed."""
    if "://" not in path:
        with open(path, "rb") as stream:
            yield stream
        return
    fs, inner = file_system_of(path)
    with fs.open(inner, "rb") as stream:
        yield stream


@contextmanager
def open_rows(path: str, compressions: Sequence[str] = ()) -> Iterator[IO[bytes]]:
    """A file's bytes without its compressions, the outermost first.

    Reading a damaged compressed file raises UserError.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(open_binary(path))
        if not compressions:
            yield stream
            return
        try:
            for name in compressions:
                stream = stack.enter_context(_decompressed(stream, name))
            yield stream
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise UserError(
                f"{path}: damaged ({one_line(error, REASON_CHARS)}); fix or replace the file"
            ) from error


def compression_of(first_bytes: bytes) -> str | None:
    """The compression of a file by its first bytes: gzip, bz2, zstd, xz or None."""
    return next((name for name, magic in _COMPRESSED.items() if magic.match(first_bytes)), None)


def _decompressed(stream: IO[bytes], compression: str) -> IO[bytes]:
    if compression == "xz":
        return cast("IO[bytes]", lzma.LZMAFile(stream))
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(stream, compression))


def file_system_of(uri: str, key: str = "data.sources") -> tuple[Any, str]:
    """The fsspec file system of a URI and the path on it. Raises UserError naming `key`."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        scheme = uri.split("://", 1)[0]
        reason = one_line(error, REASON_CHARS)
        raise UserError(f"{key}={uri}: {scheme}:// cannot be read here ({reason})") from error
