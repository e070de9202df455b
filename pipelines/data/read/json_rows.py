"""The rows of JSON files that do not have one value a line, streamed through a window."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import IO

from pipelines.core.errors import UserError
from pipelines.data.read.json_window import JsonWindow
from pipelines.data.read.raw_row import RawRow


def read_array(stream: IO[bytes], path: str) -> Iterator[RawRow]:
    """The elements of one JSON array, each numbered by its line.

    An element that parses but breaks a rule of rows (a key that occurs twice) is a broken row.
    Raises UserError, naming element and line, for text that is no JSON array and for an element of
    more than MAX_ROW_BYTES characters.
    """
    window = JsonWindow(stream, path, "the JSON array")
    yield from _elements(window)
    if window.next_char():
        window.refuse("text follows the end of the array", window.at)


def read_values(stream: IO[bytes], path: str) -> Iterator[RawRow]:
    """JSON values one after another, with or without commas between them.

    Raises UserError as `read_array` does.
    """
    window = JsonWindow(stream, path, "the file's JSON values")
    while char := window.next_char():
        if char in "]}":
            window.refuse(f"a {char!r} without its beginning", window.at)
        yield window.take_element()
        if window.next_char() == ",":
            window.expect(",")


def read_object(stream: IO[bytes], path: str, field: str) -> Iterator[RawRow]:
    """The rows in one JSON object: the elements of the list, or the values of the object, that is
    at the key `field`; an empty `field` gives the values of the object itself.

    Dots in `field` separate the keys of objects in objects. Raises UserError as `read_array` does,
    and for a file without the key.
    """
    window = JsonWindow(stream, path, f"`{field}`" if field else "the JSON object")
    num_lists = yield from _rows_at(window, field)
    if window.next_char():
        window.refuse("text follows the end of the object", window.at)
    if num_lists != 1:
        number = "no key" if not num_lists else "several keys"
        raise UserError(f"{path}: has {number} {field}, which the source's `field` names")


def _rows_at(window: JsonWindow, field: str) -> Generator[RawRow, None, int]:
    """The rows at `field` of the value that comes next; returns how often there is that key."""
    if not field:
        if window.next_char() not in ("[", "{"):
            window.refuse("expected a list of rows", window.at)
        yield from _elements(window) if window.next_char() == "[" else _values(window)
        return 1
    window.expect("{")
    count = 0
    while window.next_char() != "}":
        key = window.take_key()
        if key == field:
            count += yield from _rows_at(window, "")
        elif field.startswith(f"{key}.") and window.next_char() == "{":
            count += yield from _rows_at(window, field[len(key) + 1 :])
        else:
            window.skip_value()
        if window.next_char() != ",":
            break
        window.expect(",")
    window.expect("}")
    return count


def _elements(window: JsonWindow) -> Iterator[RawRow]:
    window.expect("[")
    if window.next_char() != "]":
        yield window.take_element()
        while window.next_char() == ",":
            window.expect(",")
            yield window.take_element()
    window.expect("]")


def _values(window: JsonWindow) -> Iterator[RawRow]:
    window.expect("{")
    while window.next_char() != "}":
        window.take_key()
        yield window.take_element()
        if window.next_char() != ",":
            break
        window.expect(",")
    window.expect("}")
