"""Before Ray starts, a source of which no first row can be used is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.first_look import check_first_rows
from pipelines.data.read.chunks import cut_chunks
from pipelines.sources.source_files import benchmark_files, find_files

GOOD = {"instruction": "Say 1", "output": "1"}
BAD = {"Frage": "a", "Antwort": "b"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def look(*paths: Path, share: float = 0.01, **keys: Any) -> None:
    check_first_rows(find_files([SourceConfig(path=str(path), **keys) for path in paths]), share)


def test_unknown_columns_of_all_first_rows_are_one_line_with_the_first_place(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "rows.jsonl", *[BAD] * 30)
    with pytest.raises(UserError) as error:
        look(path)
    assert str(error.value) == (
        f"data.sources.0.path={path}: none of the first 20 rows can be used: unknown format: the "
        "row has the keys Frage, Antwort; if these are the columns to train, set the source's "
        "`columns: {prompt: Frage, completion: Antwort}` (first at rows.jsonl:1)"
    )
    look(path, columns={"prompt": "Frage", "completion": "Antwort"})
    look(path, share=1)


def test_one_good_row_among_the_first_is_enough(tmp_path: Path) -> None:
    look(write(tmp_path / "rows.jsonl", *[BAD] * 19, GOOD, *[BAD] * 99))
    with pytest.raises(UserError, match="none of the first 20 rows can be used"):
        look(write(tmp_path / "rows.jsonl", *[BAD] * 20, GOOD))


def test_reasons_that_differ_are_counted(tmp_path: Path) -> None:
    rows = [BAD, {"instruction": "a", "output": 5}, {"instruction": "a", "output": 6}, 7]
    with pytest.raises(
        UserError, match=r"none of the first 4 rows can be used: output: expected.*"
    ):
        look(write(tmp_path / "rows.jsonl", *rows))
    with pytest.raises(UserError, match=r"\(first at rows.jsonl:2\); 2 other reasons$"):
        look(tmp_path / "rows.jsonl")


def test_a_short_bad_file_counts_with_the_others_of_its_source(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", BAD)
    write(tmp_path / "b.jsonl", GOOD)
    look(tmp_path)
    with pytest.raises(UserError, match=r"data.sources.0.path=.*a.jsonl: its only row cannot be"):
        look(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    write(tmp_path / "a.jsonl", *[BAD] * 20)
    with pytest.raises(
        UserError, match=r"data.sources.0.path=.*/a.jsonl: none of the first 20 rows"
    ):
        look(tmp_path)


def test_a_bad_file_behind_many_good_ones_is_seen(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path / f"{i:02}.jsonl", GOOD)
    (tmp_path / "zz.jsonl").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"
    )
    with pytest.raises(UserError, match="zz.jsonl is a Git LFS pointer"):
        look(tmp_path)


def test_a_benchmark_that_would_need_a_key_is_refused_without_one(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"train": [GOOD], "test": [GOOD]}))
    with pytest.raises(UserError) as error:
        cut_chunks(benchmark_files([str(path)]))
    assert str(error.value) == (
        f"data.benchmarks.0={path}: is one JSON object with rows in train, test; save the file "
        "otherwise, as benchmarks have no keys"
    )
    path.write_bytes('[{"question": "é", "answer": "é"}]'.encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8, .* \(line 1\); save the file as UTF-8$"):
        cut_chunks(benchmark_files([str(path)]))


@pytest.mark.parametrize("share", [0.01, 1])
def test_a_source_without_rows_is_refused(tmp_path: Path, share: float) -> None:
    (tmp_path / "rows.csv").write_text("instruction,output\n")
    with pytest.raises(UserError, match=r"data.sources.0.path=.*rows.csv: no row in it"):
        look(tmp_path / "rows.csv", share=share)
