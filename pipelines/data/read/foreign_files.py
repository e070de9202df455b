"""Files that hold no rows whatever their names say: pointers, web pages, archives, documents."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pipelines.core.errors import UserError
from pipelines.sources.source_files import SourceFile

_WORKBOOK = "save the sheet as CSV (UTF-8) and name that file"
_UNPACK = "unpack it and name the files in it"
_TABLE = "write its rows as Parquet or JSON Lines"
_BYTES = (
    (re.compile(rb"PK\x03\x04.{0,4000}?xl/", re.DOTALL), "an Excel workbook", _WORKBOOK),
    (re.compile(rb"PK\x03\x04.{0,4000}?word/", re.DOTALL), "a Word document", _TABLE),
    (
        re.compile(rb"PK\x03\x04.{0,60}(?:opendocument|\[Content_Types\]\.xml)", re.DOTALL),
        "an office document",
        _WORKBOOK,
    ),
    (re.compile(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), "an old Excel or Word file", _WORKBOOK),
    (re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)"), "a ZIP archive", _UNPACK),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive", _UNPACK),
    (re.compile(rb"Rar!\x1a\x07"), "a RAR archive", _UNPACK),
    (re.compile(rb".{257}ustar", re.DOTALL), "a tar archive", _UNPACK),
    (re.compile(rb"\x04\x22\x4d\x18"), "an LZ4 file", _UNPACK),
    (re.compile(rb"%PDF-"), "a PDF", _TABLE),
    (re.compile(rb"SQLite format 3\0"), "an SQLite database", _TABLE),
    (re.compile(rb"\x80[\x02-\x05][\x8a\x95\}\]c(]"), "a Python pickle", _TABLE),
    (re.compile(rb"\x93NUMPY"), "a NumPy array", _TABLE),
    (re.compile(rb"\x89HDF\r\n"), "an HDF5 file", _TABLE),
    (re.compile(rb"\x89PNG\r\n|\xff\xd8\xff[\xdb\xe0\xe1\xee]"), "an image", _TABLE),
    (re.compile(rb"Obj\x01"), "an Avro file", _TABLE),
    (re.compile(rb"ORC"), "an ORC file", _TABLE),
    (re.compile(rb"FEA1"), "a file of Feather version 1", _TABLE),
)
_TEXTS = (
    (
        re.compile(r"[^\n]*\|[^\n]*\n[ \t|:+-]*--[ \t|:+-]*\r?\n"),
        "a table of Markdown or of a database's terminal; save it as CSV",
    ),
    (
        re.compile(r"version https://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/"),
        "a Git LFS pointer, not the data; run `git lfs pull` in the repository that it comes from",
    ),
    (
        re.compile(r"(?:\.\./)*(?:\.git)?/annex/objects/\S+\s*$"),
        "a git-annex pointer, not the data; run `git annex get` in the repository that has it",
    ),
    (
        re.compile(r"<(?:!doctype\b|html\b|head\b|body\b|!--)", re.IGNORECASE),
        "a web page (HTML), perhaps of a login or an error; download the file again",
    ),
    (
        re.compile(r"<\?xml\b|<(?:Error|rss|feed|svg)\b"),
        "XML, not rows; if it is an error of a server, download the file again",
    ),
)


def refuse_foreign_bytes(file: SourceFile, data: bytes) -> None:
    """Raise UserError for a file that is no text and no table, by its first bytes."""
    if data and not data.strip(b"\0"):
        raise UserError(
            f"{file.name}: begins with {len(data):,} zero bytes: the file is damaged or was never "
            "written; get it again"
        )
    for magic, noun, advice in _BYTES:
        if magic.match(data):
            raise UserError(f"{file.name}: is {noun}, not a file of rows; {advice}")


def refuse_foreign_text(file: SourceFile, text: str) -> None:
    """Raise UserError for a text that stands for data or replaces it."""
    beginning = text[:4096].lstrip("\ufeff \t\r\n")
    name = PurePosixPath(file.path).name
    for pattern, reason in _TEXTS:
        if pattern.match(beginning):
            raise UserError(f"{file.name}: {name} is {reason}")
