"""How the rows of a JSON file are laid out: a value a line, an array, values, or in an object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NoReturn

from pipelines.core.errors import UserError
from pipelines.data.read.raw_row import printable, reason_of
from pipelines.sources.saved_datasets import DESCRIPTIONS
from pipelines.sources.source_files import SourceFile

_SPACE = " \t\r\n\ufeff"
# A file named after lines counts as an array only if its first element is an object, and if no line
# ends a value where the next begins one: no JSON array has that.
_ARRAY_IN_LINES = re.compile(r"\[\s*\{(?!.*[}\]][ \t\r]*\n\s*[\[{])", re.DOTALL)
_BEGINNING_CHARS = 4096
_NUM_LINES = 50  # that show whether a file has a value a line
_NUM_ELEMENTS = 20  # of a list that show whether it has rows
_MAX_DEPTH = 3
_SHOWN_CHARS = 30
# An object with a text or a list of turns under such a key is a row, whatever lists it has besides.
_ROW_KEYS = {
    *("messages", "conversations", "prompt", "completion", "instruction", "output"),
    *("question", "answer", "text"),
}


class NeedsMore(Exception):
    """The first bytes end inside the first value of the file."""


def json_layout(file: SourceFile, text: str, ends: bool, can_grow: bool) -> tuple[str, str]:
    """The kind of a JSON file (see FileType) and the key of its rows, by its first characters.

    Raises NeedsMore if the first value is not complete while the text `can_grow`, and UserError for
    a text that is not JSON, and for an object in which the rows are not at one certain place.
    """
    beginning = text.lstrip(_SPACE)
    if beginning.startswith("["):
        is_array = file.kind != "jsonl" or _ARRAY_IN_LINES.match(beginning[:_BEGINNING_CHARS])
        return ("array" if is_array else "jsonl"), ""
    start = len(text) - len(beginning)
    if not beginning.startswith("{"):
        if not any(map(_is_json, _lines(text, ends))):
            _refuse(file, text, start, "holds no JSON")
        return "jsonl", ""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except RecursionError:
        return "jsonl", ""
    except ValueError as error:
        if not ends and can_grow:
            raise NeedsMore from error
        return _of_broken(file, text, ends, error)
    rest = text[end:].lstrip(_SPACE)
    if not rest and ends:
        return _of_object(file, value)
    gap = text[end : len(text) - len(rest)]
    is_line = "\n" not in text[start:end] and not rest.startswith(",")
    if rest.startswith("{"):
        is_line &= "\n" in gap
    return ("jsonl" if is_line or _are_mostly_objects(_lines(text, ends)) else "values"), ""


def _of_broken(file: SourceFile, text: str, ends: bool, error: ValueError) -> tuple[str, str]:
    """The kind of a file whose first value does not parse, and the key of its rows."""
    lines = _lines(text, ends)
    if _are_mostly_objects(lines) or (file.kind == "jsonl" and any(map(_is_object, lines))):
        return "jsonl", ""
    if not ends and file.config.field is not None:
        return "object", file.config.field
    if not ends and (path := _open_list(text)):
        raise UserError(
            f"{file.name}: is one JSON object; its rows seem to be in `{path}`: "
            + file.advice(f"`field: {path}`")
        )
    place, reason = getattr(error, "pos", 0), reason_of(error).removesuffix(" at")
    if reason.startswith("Unterminated") or place >= len(text.rstrip()):
        if not ends and file.kind == "jsonl":
            return "jsonl", ""  # a first line above the limit costs itself
        if not ends:
            raise UserError(
                f"{file.name}: its first value has no end within {len(text):,} characters; if it "
                f"is an object with a list of rows, {file.advice('`field` to the key of the list')}"
            )
        reason += ": the file is cut off here"
    _refuse(file, text, place, f"not JSON: {reason}")


def _of_object(file: SourceFile, value: dict[str, Any]) -> tuple[str, str]:
    """The kind of a file that is one object, and the key of its rows."""
    if file.config.field is not None:
        _check_field(file, value, file.config.field)
        return "object", file.config.field
    if _is_row(value, file.config.columns):
        return "values", ""
    if _are_rows(value, file.config.columns):
        return "object", ""
    if PurePosixPath(file.path).name in DESCRIPTIONS - {"config.json"}:
        raise UserError(f"{file.name}: describes a dataset and has no rows; name its folder")
    lists = list(_lists(value, file.config.columns))
    if len(lists) == 1 and lists[0] in value:
        return "object", lists[0]
    if lists:
        keys = " or ".join(f"`field: {path}`" for path in lists[:3])
        raise UserError(
            f"{file.name}: is one JSON object with rows in {', '.join(lists[:10])}; "
            f"{file.advice(keys)}"
        )
    if _is_columns(value):
        raise UserError(
            f"{file.name}: is one JSON object of columns ({', '.join(map(str, value))[:100]}), not "
            "of rows; write rows, in pandas with to_json(orient='records', lines=True)"
        )
    objects = [set(item) for item in value.values() if isinstance(item, Mapping)]
    if len(objects) == len(value) > 1 and set.intersection(*objects):
        return "object", ""  # rows under other names of keys, by their ids
    return "values", ""


def _check_field(file: SourceFile, value: Mapping[str, Any], path: str) -> None:
    """Raise UserError unless the object has rows at the path."""
    where = f"{file.key.removesuffix('.path')}.field={path}"
    place, rest = value, path
    while rest not in place:
        key = next(
            (k for k in place if rest.startswith(f"{k}.") and isinstance(place[k], Mapping)), None
        )
        if key is None:
            lists = ", ".join(_lists(value, file.config.columns))
            keys = f"it has the keys {', '.join(map(str, place))[:200]}"
            raise UserError(
                f"{where}: {file.path} has no such key; "
                + (f"rows seem to be in {lists}" if lists else keys)
            )
        place, rest = place[key], rest[len(key) + 1 :]
    if not isinstance(place[rest], list | Mapping):
        raise UserError(
            f"{where}: in {file.path} this is {type(place[rest]).__name__}, not a list of rows"
        )


def _lists(
    value: Mapping[str, Any], columns: Mapping[str, str], above: str = "", depth: int = 1
) -> Iterator[str]:
    """The paths of lists of objects that are no turns, and of objects of rows."""
    for key, item in value.items():
        path = f"{above}{key}"
        if isinstance(item, list) and item and not _are_turns(item):
            if all(isinstance(element, Mapping) for element in item[:_NUM_ELEMENTS]):
                yield path
        elif isinstance(item, Mapping) and _are_rows(item, columns):
            yield path
        elif isinstance(item, Mapping) and depth < _MAX_DEPTH:
            yield from _lists(item, columns, f"{path}.", depth + 1)


def _are_turns(items: list[Any]) -> bool:
    return any(
        isinstance(item, Mapping)
        and ("role" in item or "from" in item)
        and not {"content", "value", "tool_calls"}.isdisjoint(item)
        for item in items
    )


def _is_row(value: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether an object is a row by the names of its keys."""
    return any(
        key in value and (isinstance(value[key], str) or _is_list_of_turns(value[key]))
        for key in _ROW_KEYS.union(columns.values())
    )


def _are_rows(value: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether the values of an object are rows, with their ids as its keys."""
    items = list(value.values())
    return bool(items) and all(
        isinstance(item, Mapping) and (i >= _NUM_ELEMENTS or _is_row(item, columns))
        for i, item in enumerate(items)
    )


def _is_list_of_turns(value: Any) -> bool:
    return isinstance(value, list) and _are_turns(value)


def _is_columns(value: Mapping[str, Any]) -> bool:
    """Whether an object has a list or a numbered object of plain values under each key."""
    columns = [list(v.values()) if isinstance(v, Mapping) else v for v in value.values()]
    numbered = all(str(k).isdigit() for v in value.values() if isinstance(v, Mapping) for k in v)
    return (
        len(columns) > 1
        and numbered
        and all(isinstance(column, list) for column in columns)
        and len({len(column) for column in columns}) == 1
        and not any(isinstance(item, Mapping) for column in columns for item in column[:1])
    )


def _open_list(text: str) -> str | None:
    """The path of the first list of objects in a text that ends inside an object."""
    decode, path, at = json.JSONDecoder().raw_decode, list[str](), text.index("{")
    step = re.compile(r'[\s,]*(?:(\{)|(\})|("[^"\\]*(?:\\.[^"\\]*)*")\s*:\s*(\[\s*\{)?)')
    while match := step.match(text, at):
        opened, closed, key, rows = match.groups()
        at = match.end()
        if opened:
            path.append("")
        elif closed:
            path.pop()
        elif rows:
            return ".".join([*path[:-1], json.loads(key)])
        else:
            try:
                _, at = decode(text, at)
            except ValueError:
                path[-1] = json.loads(key)
    return None


def _lines(text: str, ends: bool) -> list[str]:
    """The first lines that are complete and not empty."""
    lines = text.split("\n", _NUM_LINES)
    complete = lines if ends and len(lines) <= _NUM_LINES else lines[:-1]
    return [line for line in complete or lines if line.strip(_SPACE)]


def _are_mostly_objects(lines: list[str]) -> bool:
    """Lines of an object that is printed over several lines may be objects too, but fewer."""
    return 2 * sum(map(_is_object, lines)) >= len(lines)


def _is_json(line: str) -> bool:
    try:
        json.loads(line.strip(_SPACE))
    except (ValueError, RecursionError):
        return False
    return True


def _is_object(line: str) -> bool:
    return line.lstrip(_SPACE).startswith("{") and _is_json(line)


def _refuse(file: SourceFile, text: str, place: int, reason: str) -> NoReturn:
    line = text.count("\n", 0, place) + 1
    near = printable(text[max(0, place - _SHOWN_CHARS) : place + _SHOWN_CHARS])
    hint = ""
    if re.match(r"\[?\s*\{\s*'", text):
        hint = "; these are Python's own quotes: write rows with json.dumps"
    elif re.match(r"[^{\[\n]+[,;\t|][^\n]*\n", text) and reason == "holds no JSON":
        hint = "; if it is a table, name it .csv"
    raise UserError(f"{file.name}:{line}: {reason}, near {near!r}{hint}")
