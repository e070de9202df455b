"""The header of a CSV file: its delimiter, its column names, and Excel's line `sep=;`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from pipelines.core.errors import UserError
from pipelines.data.read.raw_row import printable
from pipelines.sources.source_files import SourceFile

_DELIMITERS = (",", ";", "\t", "|")
_SEP_LINE = re.compile(r'"?sep=(.)"?[,;\t|]*\r?\n?', re.IGNORECASE)
_LINE = re.compile(r"([^\r\n]*)(?:\r\n|\r|\n)?")
_UNUSUAL = re.compile(r"[^\w\s\"'.-]|[\x1c-\x1f]")  # the last: separators of ASCII
_SHOWN_CHARS = 60
_NUM_ROWS = 20
_MIN_SHARE = 0.9  # of rows with the header's number of fields that make any text a table


def sep_of(line: str) -> str | None:
    """The delimiter that a first line `sep=;` names, as Excel writes and reads it."""
    match = _SEP_LINE.fullmatch(line.lstrip("\ufeff"))
    return match[1] if match else None


def delimiter_of(file: SourceFile, text: str, ends: bool) -> str | None:
    """The delimiter of a table by its first lines; None if a file without a table's name has none.

    The source's key decides, then a line `sep=`, then the header: the delimiter that occurs in it
    and splits the most of the first rows into as many fields. Raises UserError when several do.
    """
    first = _LINE.match(text.lstrip("\r\n"))
    assert first is not None
    if sep := sep_of(first[1]):
        text = text.lstrip("\r\n")[first.end() :]
    if file.config.delimiter:
        return _checked(file, text, file.config.delimiter)
    if sep:
        return sep
    usual = {"csv": ",", "tsv": "\t"}.get(file.kind)
    fits = {d: fit for d in _DELIMITERS if (fit := _fit(text, ends, d)) is not None}
    if not fits:
        _refuse_unusual(file, text, ends)
        return usual
    best = max(fits.values())
    chosen = [delimiter for delimiter, fit in fits.items() if fit == best]
    if usual is None and (not best[1] or best[0] < _MIN_SHARE):
        return None  # a text whose first line has a comma
    if len(chosen) > 1 and best[1]:
        keys = " or ".join(f"`delimiter: {_shown(d)}`" for d in chosen)
        raise UserError(
            f"{file.name}: its header may be split by {', '.join(map(_shown, chosen))}: "
            f"{file.advice(keys)}"
        )
    return usual if usual in chosen else chosen[0]


def check_header(file: SourceFile, text: str, ends: bool, delimiter: str) -> None:
    """Raise UserError if most of the first rows have more filled fields than the header has names.

    That is so where a title stands above the header, as in many sheets of Excel.
    """
    header, *rows = _first_records(text, ends, delimiter) or [[]]
    if sep_of(delimiter.join(header)) and rows:
        header, *rows = rows
    num_names = _num_filled(header)
    has_index = bool(header) and not header[0].strip()
    num_wider = sum(_num_filled(row) > num_names + has_index for row in rows)
    if num_wider > len(rows) / 2:
        named = f"{num_names} column{'s' if num_names > 1 else ''}"
        shown = printable(delimiter.join(header).strip(delimiter))[:_SHOWN_CHARS]
        raise UserError(
            f"{file.name}: its first line {shown!r} names {named}, but most rows have more fields; "
            f"delete the lines above the header, name every column and put texts with "
            f"{_shown(delimiter)} in quotes"
        )


def records(lines: Iterable[str], delimiter: str, is_spaced: bool = False) -> Iterator[list[str]]:
    """The fields of each record, without a space behind a delimiter where `is_spaced`."""
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=is_spaced)


def has_spaces(header: Sequence[str]) -> bool:
    """Whether a space follows every delimiter: then those of the rows have one too."""
    return len(header) > 1 and all(name.startswith(" ") for name in header[1:])


def column_names(header: Sequence[str], path: str) -> list[str]:
    """The names of a header without spaces around them; empty ones are left out at its end.

    Raises UserError for a name that occurs twice.
    """
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    repeated = [name for name in names if name and names.count(name) > 1]
    if repeated:
        raise UserError(
            f"{path}: the header names {printable(repeated[0])!r} twice; rename one of the columns"
        )
    return names


def _checked(file: SourceFile, text: str, delimiter: str) -> str:
    """The delimiter of the source's key; UserError if only another one is in the header."""
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    others = [other for other in _DELIMITERS if other in header]
    if delimiter not in header and others:
        raise UserError(
            f"{file.key.removesuffix('.path')}.delimiter={_shown(delimiter)}: the header of "
            f"{file.path} has no such character, but {', '.join(map(_shown, others))}"
        )
    return delimiter


def _refuse_unusual(file: SourceFile, text: str, ends: bool) -> None:
    """Raise UserError where another character of the header splits the rows below it as well."""
    header = _LINE.match(text.lstrip("\r\n"))
    for mark in dict.fromkeys(_UNUSUAL.findall(header[1] if header else "")):
        fit = _fit(text, ends, mark)
        if fit and fit[1] and fit[0] >= _MIN_SHARE:
            raise UserError(
                f"{file.name}: its header is one column, but {_shown(mark)} seems to split it: "
                + file.advice(f"`delimiter: {_shown(mark)}`")
            )


def _fit(text: str, ends: bool, delimiter: str) -> tuple[float, int] | None:
    """How well a delimiter fits: the share of rows that have the header's number of fields, and
    the number of rows looked at; None if the header has one field.
    """
    header, *rows = _first_records(text, ends, delimiter) or [[]]
    if len(header) < 2:
        return None
    return sum(len(row) == len(header) for row in rows) / max(1, len(rows)), len(rows)


def _first_records(text: str, ends: bool, delimiter: str) -> list[list[str]]:
    """The header and the first rows that are complete, up to one that is broken."""
    lines = io.StringIO(text, newline="")
    first: list[list[str]] = []
    try:
        is_spaced = has_spaces(next(filter(None, records(lines, delimiter)), []))
        lines.seek(0)
        for row in records(lines, delimiter, is_spaced):
            first += [row] if row else []
            if len(first) > _NUM_ROWS:
                break
        else:
            if not ends:
                first.pop()  # it may be cut off
    except csv.Error:
        pass  # the records before it count
    return first


def _num_filled(row: Sequence[str]) -> int:
    return sum(bool(field.strip()) for field in row)


def _shown(delimiter: str) -> str:
    return json.dumps(delimiter)
