"""The type of a source file by its first bytes, and refusal of files that hold no rows.

Every file is looked at before any row is read, so that a file in another encoding, with another
delimiter or of another kind than its name says is read correctly, or refused in one line that names
the cause and the key to set.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.core.errors import UserError
from pipelines.data.read.csv_header import check_header, delimiter_of
from pipelines.data.read.foreign_files import refuse_foreign_bytes, refuse_foreign_text
from pipelines.data.read.json_layout import NeedsMore, json_layout
from pipelines.data.read.raw_row import MAX_ROW_BYTES
from pipelines.data.read.text_encoding import encoding_of
from pipelines.sources.hub_datasets import KNOWN_TYPES, suffix_of
from pipelines.sources.open import compression_of, open_rows
from pipelines.sources.source_files import SourceFile

_HEAD_BYTES = 1 << 18
_MAX_COMPRESSIONS = 3
_JSON = re.compile(r'\s*[\[{]\s*["{\[\]}]')
_TABLE_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow"}


@dataclass(frozen=True)
class FileType:
    """How the rows of a file are written.

    kind: jsonl (a JSON value a line), array (one JSON array), values (JSON values one after
    another), object (one JSON object with the rows at the key `field`), csv, parquet or arrow.
    compressions: the outermost first. encoding: a codec's name.
    """

    kind: str
    compressions: tuple[str, ...] = ()
    encoding: str = "utf-8"
    delimiter: str = ","
    field: str = ""

    @property
    def can_be_cut(self) -> bool:
        """Whether parts of the file can be read without the parts before them."""
        plain = not self.compressions and self.encoding == "utf-8"
        return plain and self.kind in ("jsonl", "parquet", "arrow")


@dataclass(frozen=True)
class Head:
    """The first bytes of a file without its compressions; `ends` if they are all of its bytes."""

    data: bytes
    ends: bool
    compressions: tuple[str, ...] = ()


def file_type(file: SourceFile) -> FileType:
    """The type of a file, from its first bytes, its name and the keys of its source.

    Raises UserError in one line for a file without rows (a Git LFS pointer, a web page, an archive)
    and for one whose rows cannot be read without a key of the source.
    """
    head = _head(file, _HEAD_BYTES)
    refuse_foreign_bytes(file, head.data)
    for magic, kind in _TABLE_MAGIC.items():
        if head.data.startswith(magic):
            if head.compressions:
                raise UserError(f"{file.name}: a compressed {kind} file; unpack it")
            return FileType(kind)
    if file.kind in ("parquet", "arrow"):
        refuse_foreign_text(file, head.data.decode(errors="replace"))
        return FileType(file.kind)
    encoding = encoding_of(file, head.data, head.ends)
    text = _text(head, encoding)
    if not text.strip():
        return FileType("csv" if file.kind in ("csv", "tsv") else "jsonl", head.compressions)
    refuse_foreign_text(file, text)
    if file.kind in ("json", "jsonl") or _JSON.match(text):
        try:
            kind, field = json_layout(file, text, head.ends, can_grow=True)
        except NeedsMore:
            head = _head(file, MAX_ROW_BYTES)
            kind, field = json_layout(file, _text(head, encoding), head.ends, can_grow=False)
        return FileType(kind, head.compressions, encoding, field=field)
    delimiter = delimiter_of(file, text, head.ends)
    if delimiter is None:
        raise UserError(
            f"{file.name}: unknown file type {suffix_of(file.path) or '(none)'}; its first line is "
            "neither JSON nor the header of a table (plain text needs rows such as "
            f'{{"text": "..."}}); valid: {KNOWN_TYPES}'
        )
    check_header(file, text, head.ends, delimiter)
    return FileType("csv", head.compressions, encoding, delimiter)


def check_keys(files: Sequence[SourceFile], types: Sequence[FileType]) -> None:
    """Raise UserError for a key of a source that none of its files needs."""
    kinds: dict[int, set[str]] = {}
    for file, of in zip(files, types, strict=True):
        kinds.setdefault(file.source, set()).add(of.kind)
    for file in {file.source: file for file in files}.values():
        config, own = file.config, kinds[file.source]
        tables = own <= {"parquet", "arrow"}
        for key, value, is_idle, reason in (
            ("delimiter", config.delimiter, "csv" not in own, "no file of the source is a CSV"),
            ("field", config.field, "object" not in own, "no file of it is one JSON object"),
            ("encoding", config.encoding != "auto", tables, "Parquet and Arrow have none"),
        ):
            if value and is_idle:
                where = f"{file.key.removesuffix('.path')}.{key}={getattr(config, key)}"
                raise UserError(f"{where}: does nothing: {reason}; delete it")


def _head(file: SourceFile, num_bytes: int) -> Head:
    compressions: tuple[str, ...] = ()
    while True:
        with open_rows(file.path, compressions) as stream:
            data = stream.read(num_bytes + 1)
        inner = compression_of(data) if len(compressions) < _MAX_COMPRESSIONS else None
        if inner is None:
            return Head(data[:num_bytes], len(data) <= num_bytes, compressions)
        compressions += (inner,)


def _text(head: Head, encoding: str) -> str:
    decoder = codecs.getincrementaldecoder(encoding)(errors="surrogateescape")
    return decoder.decode(head.data, final=head.ends).lstrip("\ufeff")
