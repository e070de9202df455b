"""The encoding of a file is read from its bytes or its source's key; a guess is only proposed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.core.errors import UserError
from tests.unit.data.row_files import ROWS, read_rows, refusal_of, values_in

LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TEXTS = {
    "rows.jsonl": LINES,
    "rows.json": json.dumps(ROWS, indent=1, ensure_ascii=False),
    "rows.csv": "instruction,input,output\n"
    + "".join(
        f'"{r["instruction"]}",,"{r["output"].replace(chr(34), chr(34) * 2)}"\n' for r in ROWS
    ),
}
FOREIGN = {
    "windows-1252": "“café” — très bien",
    "latin-1": "Größe für alle, ÷",
    "shift_jis": "こんにちは世界、元気ですか",
    "euc_jp": "こんにちは世界、元気ですか",
    "iso2022_jp": "こんにちは世界、元気ですか",
    "euc_kr": "안녕하세요 세계",
    "gb18030": "你好世界，今天天气怎么样",
    "big5": "你好世界，今天天氣怎麼樣",
    "windows-1251": "Привет, мир! Как дела?",
    "koi8-r": "Привет, мир! Как дела?",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "encoding",
    ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
def test_marks_and_zero_bytes_show_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    assert values_in(tmp_path / name, TEXTS[name].encode(encoding)) == ROWS
    lines = [line for line, _ in read_rows(tmp_path / name)]
    assert lines == [
        line for line, _ in (values_in(tmp_path / name, TEXTS[name]), read_rows(tmp_path / name))[1]
    ]


def test_a_big_endian_file_with_a_mark_is_read(tmp_path: Path) -> None:
    for encoding in ("utf-16-be", "utf-32-be"):
        assert values_in(tmp_path / "rows.jsonl", f"\ufeff{LINES}".encode(encoding)) == ROWS


@pytest.mark.parametrize("encoding", FOREIGN)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_other_encodings_are_guessed_in_a_refusal_and_read_when_set(
    tmp_path: Path, encoding: str, name: str
) -> None:
    rows = [{"question": f"Say {i}", "answer": f"{FOREIGN[encoding]} {i}"} for i in range(5)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if name == "rows.csv":
        text = "question;answer\n" + "".join(f"{r['question']};{r['answer']}\n" for r in rows)
    content = text.encode(encoding)
    guess = "windows-1252" if encoding == "latin-1" else encoding
    line = 2 if name == "rows.csv" else 1
    offset = next(i for i, byte in enumerate(content) if byte > 127 or byte == 0x1B)
    message = refusal_of(tmp_path / name, content)
    assert f"not UTF-8, but perhaps {guess}: the byte {content[offset]:#04x} " in message
    assert f" at offset {offset} (line {line}); set the source's `encoding: {guess}`" in message
    assert values_in(tmp_path / name, content, encoding=encoding) == rows


def test_a_damaged_row_among_others_is_no_sign_of_another_encoding(tmp_path: Path) -> None:
    content = LINES.encode() + b'{"instruction": "caf\xe9", "output": "b"}\n'
    *rows, reason = values_in(tmp_path / "rows.jsonl", content)
    assert rows == ROWS
    assert reason == "not UTF-8: byte 0xe9 at column 21; is the source's `encoding` another?"
    ascii_rows = b'{"instruction": "a", "output": "b"}\n' * 200
    assert len(values_in(tmp_path / "rows.jsonl", ascii_rows + content[-40:])) == 201


def test_with_the_key_utf_8_a_stray_byte_costs_its_row(tmp_path: Path) -> None:
    content = b'{"instruction": "caf\xe9", "output": "b"}\n{"instruction": "c", "output": "d"}\n'
    first, second = values_in(tmp_path / "rows.jsonl", content, encoding="utf-8")
    assert first.startswith("not UTF-8") and second["output"] == "d"


def test_a_byte_that_an_encoding_lacks_costs_its_row_far_down_the_file(tmp_path: Path) -> None:
    content = b"question,answer\n" + b"a,\x93b\x94\n" * 50_000 + b"c,\x81d\ne,f\n"
    values = values_in(tmp_path / "rows.csv", content, encoding="windows-1252")
    assert values[0]["answer"] == "“b”" and values[-1] == {"question": "e", "answer": "f"}
    assert values[-2]["answer"] == "\udc81d"  # which the conversion refuses


def test_text_in_utf_16_that_breaks_is_refused(tmp_path: Path) -> None:
    content = ("question,answer\n" + "a,b\n" * 100_000).encode("utf-16") + b"\x00\xd8x"
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"rows.csv: not utf-16-le between the bytes .*; fix or"):
        read_rows(tmp_path / "rows.csv")


def test_zero_bytes_that_show_no_encoding_are_named(tmp_path: Path) -> None:
    content = "指令,输出\na,b\n".encode("utf-16-le")
    message = refusal_of(tmp_path / "rows.csv", content)
    assert "no UTF-8: it has zero bytes" in message and "`encoding: utf-16-le`" in message
    assert values_in(tmp_path / "rows.csv", content, encoding="utf-16-le") == [
        {"指令": "a", "输出": "b"}
    ]


@pytest.mark.parametrize(
    ("encoding", "content", "reason"),
    [
        ("utf-16", b"a\0\0\0,\0", "has no byte order mark; set utf-16-le or utf-16-be"),
        ("klingon", b"a,b\n", "Python knows no such text encoding; valid: utf-16, windows-1252"),
        ("base64", b"a,b\n", "Python knows no such text encoding"),
        ("idna", b"a,b\n", "Python knows no such text encoding"),
        ("windows-1252", "a,b\né,è\nü,ö\n".encode(), "rows.csv is UTF-8; delete `encoding`"),
        ("latin-1", "\ufeffa,b\n".encode(), "rows.csv begins as utf-8 does; delete `encoding`"),
        ("utf-8", "a,b\n".encode("utf-16"), "rows.csv begins as utf-16-le does"),
        ("utf-16-le", "a,b\n".encode("utf-16-be"), "rows.csv begins as utf-16-be does"),
        ("utf-16", b"a,b\n", "rows.csv has no zero byte, so it is not utf-16"),
    ],
)
def test_a_key_that_the_file_contradicts_is_refused(
    tmp_path: Path, encoding: str, content: bytes, reason: str
) -> None:
    message = refusal_of(tmp_path / "rows.csv", content, encoding=encoding)
    assert message.startswith(f"data.sources.0.encoding={encoding}: ") and reason in message


def test_bytes_that_a_set_encoding_does_not_have_are_named(tmp_path: Path) -> None:
    message = refusal_of(tmp_path / "rows.csv", b"a,b\nc,\x81\n", encoding="windows-1252")
    assert "rows.csv: not cp1252: the byte 0x81 at offset 6 (line 2)" in message


def test_marks_inside_a_file_are_no_text(tmp_path: Path) -> None:
    mark = "\ufeff"
    assert values_in(tmp_path / "rows.jsonl", mark + LINES + mark + LINES) == ROWS * 2
    assert values_in(tmp_path / "rows.json", f"{mark}{json.dumps(ROWS)}{mark}\n") == ROWS
    content = f"{mark}{mark}a,b\n1,2\n{mark}a,b\n3,4\n{mark}5,6\n"
    assert values_in(tmp_path / "rows.csv", content) == [
        {"a": "1", "b": "2"},
        "the header again",
        {"a": "3", "b": "4"},
        {"a": "5", "b": "6"},
    ]
