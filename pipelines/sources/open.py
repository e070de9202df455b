"""Opening source files, local or remote, compressed or not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any

from pipelines.core.errors import UserError, one_line
from pipelines.sources.hub_datasets import COMPRESSIONS

REASON_CHARS = 200  # of a library's error text inside a message of ours


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
def open_rows(path: str) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed if its name ends in a known compression.

    Reading a damaged compressed file raises UserError.
    """
    compression = COMPRESSIONS.get(PurePosixPath(path).suffix.lower())
    with open_binary(path) as stream:
        if compression is None:
            yield stream
            return
        import pyarrow

        try:
            with pyarrow.CompressedInputStream(stream, compression) as plain:
                yield io.BufferedReader(plain)
        except OSError as error:
            raise UserError(
                f"{path}: damaged ({one_line(error, REASON_CHARS)}); fix or replace the file"
            ) from error


def file_system_of(uri: str, key: str = "data.sources") -> tuple[Any, str]:
    """The fsspec file system of a URI and the path on it. Raises UserError naming `key`."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        scheme = uri.split("://", 1)[0]
        reason = one_line(error, REASON_CHARS)
        raise UserError(f"{key}={uri}: {scheme}:// cannot be read here ({reason})") from error
