"""Opening source files."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any

from pipelines.core.errors import UserError
from pipelines.sources.hub_datasets import (
    COMPRESSIONS,
)


@contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """A file of any source, its bytes as they are. Raises UserError when a remote one cannot be reached."""
    if "://" not in path:
        with open(path, "rb") as stream:
            yield stream
        return
    fs, inner = _filesystem(path)
    with fs.open(inner, "rb") as stream:
        yield stream


@contextmanager
def open_rows(path: str) -> Iterator[IO[bytes]]:
    """As `open_binary`, of a compressed file what it holds. Reading raises UserError when that is damaged."""
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
                f"{path}: damaged ({_one_line(error)}); mend or replace the file"
            ) from error


def _client_errors() -> list[type[Exception]]:
    """Base errors of the network clients that fsspec's file systems have loaded; they share no base of their own."""
    known = {
        "httpx": "HTTPError",
        "httpx2": "HTTPError",
        "aiohttp": "ClientError",
        "botocore.exceptions": "BotoCoreError",
    }
    return [
        getattr(sys.modules[name], error) for name, error in known.items() if name in sys.modules
    ]


def _filesystem(uri: str, key: str = "data.sources") -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        scheme = uri.split("://", 1)[0]
        raise UserError(
            f"{key}={uri}: {scheme}:// cannot be read here ({_one_line(error)})"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def content_digest(path: str) -> str:
    """Hex sha256 of a file's bytes, local or remote."""
    digest = hashlib.sha256()
    with open_binary(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
