"""Every packed and held-out sample names the file and the line of its row."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import parse_recipe
from pipelines.config.schema import SourceConfig
from pipelines.core.progress import SILENT
from pipelines.data.origins import Origins
from pipelines.data.read import chunks
from pipelines.data.read.chunks import cut_chunks
from pipelines.packed.reader import RowReader, read_heldout_samples
from pipelines.sources.source_files import find_files
from pipelines.storage import Store
from tests.stages import prepare, serial_tokenize
from tests.unit.data.datasets import long_talk
from tests.unit.data.row_files import write_rows


def numbered(first: int, count: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"Say {first + i}", "output": f"It is {first + i}."} for i in range(count)
    ]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files of all kinds, two of one name; the lines of JSON are cut into many chunks."""
    monkeypatch.setattr(chunks, "_MIN_CHUNK_BYTES", 256)
    monkeypatch.setattr(chunks, "_MAX_CHUNK_BYTES", 256)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    lines = [json.dumps(row) for row in numbered(0, 40)]
    lines[7:7] = ["", "  ", "not a row"]  # three lines without a row that can be used
    (tmp_path / "a" / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "b" / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in numbered(100, 20))
    )
    files = [tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"]
    for first, suffix in ((200, "csv"), (300, "parquet"), (400, "json"), (500, "arrow")):
        files.append(write_rows(tmp_path / f"rows.{suffix}", numbered(first, 9)))
    return files


def test_each_sample_has_the_file_and_line_of_its_row(sources, pocket_base, tmp_path):
    weights = [1, 2, *[1] * (len(sources) - 2)]
    section = {
        "sources": [
            {"path": str(path), "weight": weight}
            for path, weight in zip(sources, weights, strict=True)
        ],
        "row_tokens": 128,
        "heldout_share": 0.2,
        "max_rejects_share": 0.1,
    }
    recipe = parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": section})
    assert len(cut_chunks(find_files(recipe.data.sources))) > 16
    store, renderer = Store(tmp_path / "store"), ChatRenderer.load(pocket_base)
    prepared = prepare(recipe, store, SILENT, serial_tokenize)
    files = store.by_id("prepared", prepared.ref.key).metadata["files"]
    assert files[:2] == [str(sources[0]), str(sources[1])]  # one name, so with their folders
    assert files[2:] == ["rows.csv", "rows.parquet", "rows.json", "rows.arrow"]
    folder = store.local_dir(prepared.ref)
    seen = set()

    def check(number: int, file: int, line: int) -> None:
        expected = number % 100 + 1
        if file == 0 and number >= 7:
            expected += 3
        if file == 2:
            expected += 1  # the header
        if file == 4:
            expected = 1  # one line has all rows
        seen.add(number)
        assert (file, line) == (number // 100, expected)

    for split in ("train", "heldout"):
        for sample in RowReader(folder, split).samples():
            number = int(re.findall(r"Say (\d+)", renderer.decode(sample.input_ids))[0])
            check(number, sample.file, sample.line)
    assert len(seen) == 40 + 20 + 4 * 9
    heldout = read_heldout_samples(folder, ("prompt", "file", "line"))
    assert len(heldout) == prepared.counts["heldout"]
    for row in heldout:
        check(int(row["prompt"].removeprefix("Say ")), row["file"], row["line"])


def test_pieces_of_a_row_share_its_line(pocket_base, tmp_path):
    rows = [numbered(0, 1)[0], long_talk(1, num_exchanges=6)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    section = {"sources": [str(path)], "row_tokens": 128, "heldout_share": 0, "too_long": "split"}
    recipe = parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": section})
    store = Store(tmp_path / "store")
    prepared = prepare(recipe, store, SILENT, serial_tokenize)
    assert prepared.counts["pieces"] > 1
    samples = list(RowReader(store.local_dir(prepared.ref), "train").samples())
    assert sorted(s.line for s in samples) == [1, *[2] * prepared.counts["pieces"]]


def test_lines_are_counted_through_the_chunks_of_a_file(sources):
    cut = cut_chunks(find_files([SourceConfig(path=str(sources[0]))]))
    origins = Origins(cut)
    for number in range(3):
        origins.end(number, 10)
    assert [origins.name(number, 4) for number in range(4)] == [
        f"rows.jsonl:{line}" for line in (5, 15, 25, 35)
    ]
