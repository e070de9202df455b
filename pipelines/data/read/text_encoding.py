"""The encoding of a text file: by its byte order mark, by its zero bytes, or as its source says.

Text that is no UTF-8 is refused with a guess at its encoding. A guess is never used to read: text
in a wrong encoding of one byte a character would be trained without a sign of it.
"""

from __future__ import annotations

import codecs
import itertools
import re

from pipelines.core.errors import UserError
from pipelines.sources.source_files import SourceFile

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Two ASCII characters, as the first two of JSON and of nearly all tables.
_ZERO_BYTES = (
    (re.compile(rb"[^\0]\0\0\0[^\0]\0\0\0", re.DOTALL), "utf-32-le"),
    (re.compile(rb"\0\0\0[^\0]\0\0\0[^\0]", re.DOTALL), "utf-32-be"),
    (re.compile(rb"[^\0]\0[^\0]\0", re.DOTALL), "utf-16-le"),
    (re.compile(rb"\0[^\0]\0[^\0]", re.DOTALL), "utf-16-be"),
)
_WIDE = ("utf-16", "utf-32")
_STRAY = re.compile(r"[\udc80-\udcff]")  # a byte that is no UTF-8, as surrogateescape decodes it
_NOT_ASCII = re.compile(r"[^\0-\x7f]")
_HIGH, _HIGH_PAIR = re.compile(rb"[\x80-\xff]"), re.compile(rb"[\x80-\xff]{2,}")
_JAPANESE_ESCAPE = re.compile(rb"\x1b\$[@B]")  # of ISO-2022-JP, which is all ASCII
_MAX_STRAY_SHARE = 0.01  # of lines, where there is no other character to compare with
_MIN_CHARACTERS = 3  # fewer may be UTF-8 by chance
# Encodings that a text may be guessed to have, with characters that make up most of such a text.
_GUESSES = (
    ("shift_jis", re.compile(r"[぀-ヿ]")),
    ("euc_jp", re.compile(r"[぀-ヿ]")),
    ("euc_kr", re.compile(r"[가-힣]")),
    ("gb18030", re.compile(r"[一-龥，。、；：？！“”（）《》]")),
    ("big5", re.compile(r"[一-龥，。、；：？！「」（）]")),
    ("windows-1251", re.compile(r"[оеаинтсрвлкмдпу]")),
    ("koi8-r", re.compile(r"[оеаинтсрвлкмдпу]")),
)
_WEIGHTS = {"shift_jis": 2, "euc_jp": 2}  # half of the characters of a Japanese text are others
# First bytes of the most frequent characters, which other encodings rarely give.
_FREQUENT = {"gb18030": re.compile(rb"[\xa1-\xa3\xb0-\xd7]"), "big5": re.compile(rb"[\xa1-\xc6]")}


def encoding_of(file: SourceFile, data: bytes, ends: bool) -> str:
    """The encoding of a file by its first bytes `data`, as a codec's name.

    Raises UserError for an unknown encoding, for bytes that do not fit the encoding of the source,
    and, where no encoding is set, for text that is no UTF-8.
    """
    seen = _recognised(data)
    if file.config.encoding != "auto":
        return _set_encoding(file, data, ends, seen)
    if seen and seen.startswith(_WIDE):
        return _checked(file, seen, data, ends)
    offset, num_stray, num_good = _stray_bytes(data, ends)
    if escape := _JAPANESE_ESCAPE.search(data):
        offset = escape.start()
    elif num_stray <= num_good or _stray_share(data) <= _MAX_STRAY_SHARE:
        return "utf-8"  # with a few damaged rows
    place = f"the byte {data[offset]:#04x} at offset {offset:,} (line {_line(data, offset)})"
    if b"\0" in data[:4096]:
        advice = file.advice("`encoding: utf-16-le` or `utf-16-be`")
        raise UserError(
            f"{file.name}: no UTF-8: it has zero bytes, and {place}; if it is text, {advice}"
        )
    guess = "iso2022_jp" if escape else _guess(data)
    key = f"set the source's `encoding: {guess}` (or utf-8, to reject such rows) or "
    raise UserError(
        f"{file.name}: not UTF-8, but perhaps {guess}: {place}; "
        f"{key if file.source >= 0 else ''}save the file as UTF-8"
    )


def _recognised(data: bytes) -> str | None:
    """The encoding that a byte order mark or the place of zero bytes shows."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    return next((name for pattern, name in _ZERO_BYTES if pattern.match(data)), None)


def _set_encoding(file: SourceFile, data: bytes, ends: bool, seen: str | None) -> str:
    """The encoding of the source's key, if the file's bytes do not contradict it."""
    text = file.config.encoding
    where = f"{file.key.removesuffix('.path')}.encoding={text}"
    try:
        name = codecs.lookup(text).name
        decoder = codecs.getincrementaldecoder(name)(errors="surrogateescape")
        works = decoder.decode('a,"b"\n'.encode(name), final=True) == 'a,"b"\n'
    except (LookupError, UnicodeError, TypeError):
        works = False
    if not works:
        raise UserError(
            f"{where}: Python knows no such text encoding; valid: utf-16, windows-1252, shift_jis "
            "and others"
        )
    name = "utf-8" if name in ("utf-8-sig", "ascii") else name
    if seen and not (name in (seen, seen[:-3]) or name == seen == "utf-8"):
        raise UserError(f"{where}: {file.path} begins as {seen} does; delete `encoding`")
    if name == "utf-8" or not data:
        return name
    if name.startswith(_WIDE):
        if b"\0" not in data:
            raise UserError(f"{where}: {file.path} has no zero byte, so it is not {name}")
        if not seen and name in _WIDE:
            raise UserError(
                f"{where}: {file.path} has no byte order mark; set {name}-le or {name}-be if that "
                "is its encoding"
            )
        return _checked(file, seen or name, data, ends)
    _, num_stray, num_good = _stray_bytes(data, ends)
    if num_good >= _MIN_CHARACTERS and not num_stray:
        raise UserError(f"{where}: {file.path} is UTF-8; delete `encoding`")
    return _checked(file, name, data, ends)


def _checked(file: SourceFile, name: str, data: bytes, ends: bool) -> str:
    """The encoding, if it decodes the data; else a UserError names the first wrong byte."""
    try:
        codecs.getincrementaldecoder(name)().decode(data, final=ends)
    except UnicodeDecodeError as error:
        place = f"at offset {error.start:,} (line {_line(data, error.start)})"
        raise UserError(
            f"{file.name}: not {name}: the byte {data[error.start]:#04x} {place}; save the file "
            "as UTF-8, or name its encoding"
        ) from error
    return name


def _stray_bytes(data: bytes, ends: bool) -> tuple[int, int, int]:
    """Of UTF-8: offset of the first byte that is none, their number, and that of characters that
    are no ASCII (without such bytes, at most 3 are counted).
    """
    if data.isascii():
        return 0, 0, 0
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data, final=ends)
    first = _STRAY.search(text)
    if first is None:
        characters = itertools.islice(_NOT_ASCII.finditer(text), _MIN_CHARACTERS)
        return 0, 0, sum(1 for _ in characters)
    num_stray = len(_STRAY.findall(text))
    offset = len(text[: first.start()].encode())
    return offset, num_stray, len(_NOT_ASCII.findall(text)) - num_stray


def _stray_share(data: bytes) -> float:
    """The share of lines that are no UTF-8."""
    lines = data.decode(errors="surrogateescape").split("\n")
    return sum(map(bool, map(_STRAY.search, lines))) / len(lines)


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def _guess(data: bytes) -> str:
    """The likely encoding of a text that is no UTF-8."""
    text = b"\n".join(line for line in data.split(b"\n")[:-1] or [data] if not line.isascii())
    best, most = "windows-1252", 0.6
    num_high = len(_HIGH.findall(text))
    # In languages of the Latin script these bytes are single letters among ASCII.
    in_runs = sum(map(len, _HIGH_PAIR.findall(text))) > num_high / 2
    for name, usual in _GUESSES if in_runs else ():
        try:
            letters = [char for char in text.decode(name) if not char.isascii()]
        except UnicodeDecodeError:
            continue
        share = sum(map(bool, map(usual.match, letters))) / max(1, len(letters))
        share *= _WEIGHTS.get(name, 1)
        if frequent := _FREQUENT.get(name):
            pairs = re.findall(rb"[\x80-\xff][\x40-\xff]", text)
            share *= sum(map(bool, map(frequent.match, pairs))) / max(1, len(pairs))
        if share > most:
            best, most = name, share
    try:
        text.decode(best)
    except UnicodeDecodeError:
        return "latin-1"
    return best
