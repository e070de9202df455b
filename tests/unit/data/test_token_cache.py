"""Of several sources only a changed one is tokenized again; the cache changes no result."""

from __future__ import annotations

import json
import shutil

import pytest

from pipelines.config.recipe import parse_recipe
from pipelines.core.progress import SILENT
from pipelines.data import ray_tokenize
from pipelines.data.read import chunks
from pipelines.data.read.chunks import cut_chunks
from pipelines.sources.source_files import SourceFile, find_files
from pipelines.storage import Store
from tests.stages import prepare


def write(path, numbers):
    path.write_text(
        "".join(
            json.dumps({"instruction": f"Say {i}", "output": f"It is {i}."}) + "\n" for i in numbers
        )
    )


@pytest.fixture
def made(monkeypatch):
    """The paths that were tokenized, in order."""
    paths = []
    original = ray_tokenize.tokenized

    def counting(chunks, **options):
        paths.extend(chunk.path.rsplit("/", 1)[-1] for chunk in chunks)
        return original(chunks, **options)

    monkeypatch.setattr(ray_tokenize, "tokenized", counting)
    return paths


def test_a_changed_source_is_the_only_one_tokenized_again(ray_cluster, pocket_base, tmp_path, made):
    folder = tmp_path / "sources"
    folder.mkdir()
    for part in range(3):
        write(folder / f"part{part}.jsonl", range(part * 100, part * 100 + 60))
    shutil.copy(folder / "part0.jsonl", folder / "part9.jsonl")
    store = Store(tmp_path / "store")
    data = {"sources": [str(folder)], "row_tokens": 256, "heldout_share": 0.2}
    recipe = parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data})
    prepare(recipe, store, SILENT)
    assert made == ["part0.jsonl", "part1.jsonl", "part2.jsonl", "part9.jsonl"]
    made.clear()
    write(folder / "part1.jsonl", range(100, 190))
    with (folder / "part2.jsonl").open("a") as out:
        out.write("not a row\n")
    tolerant = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"max_rejects_share": 0.1})}
    )
    changed = prepare(tolerant, store, SILENT)
    assert made == ["part1.jsonl", "part2.jsonl"]
    assert (
        changed.counts["duplicates"] == 60
        and changed.counts["train"] + changed.counts["heldout"] == 210
    )
    fresh = prepare(tolerant, Store(tmp_path / "fresh"), SILENT)
    assert fresh.ref.digest == changed.ref.digest
    (line,) = [
        json.loads(row)
        for row in (store.local_dir(changed.ref) / "rejects.jsonl").open()
        if "rejected" in row
    ]
    assert line["origin"] == "part2.jsonl:61"


def test_the_cache_is_not_used_for_a_file_that_is_cut_differently(
    pocket_base, tmp_path, monkeypatch, serially
):
    monkeypatch.setattr(chunks, "_MIN_CHUNK_BYTES", 1 << 9)
    monkeypatch.setattr(chunks, "_USUAL_CHUNKS", 4)
    paths = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    write(paths[0], range(40))
    write(paths[1], range(100, 160))
    with paths[1].open("a") as out:
        out.write("not a row\n")
    data = {
        "sources": [str(path) for path in paths],
        "row_tokens": 256,
        "heldout_share": 0.2,
        "max_rejects_share": 0.1,
    }
    recipe = parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data})

    def cuts():
        chunks = cut_chunks(find_files(recipe.data.sources))
        return [(c.first, c.last) for c in chunks if c.path == str(paths[1])]

    store, before = Store(tmp_path / "store"), cuts()
    prepare(recipe, store, SILENT, serially)
    write(paths[0], range(40, 200))
    assert len(before) > len(cuts()) > 1
    changed = prepare(recipe, store, SILENT, serially)
    fresh = prepare(recipe, Store(tmp_path / "fresh"), SILENT, serially)
    assert changed.ref.digest == fresh.ref.digest
    (line,) = [
        json.loads(row)
        for row in (store.local_dir(changed.ref) / "rejects.jsonl").open()
        if "rejected" in row
    ]
    assert line["origin"] == "a.jsonl:61"


def test_a_file_that_grows_a_little_does_not_change_the_cuts_of_others(tmp_path):
    write(tmp_path / "a", range(2))
    a, b = str(tmp_path / "a"), str(shutil.copy(tmp_path / "a", tmp_path / "b"))
    files = [SourceFile(0, a, "jsonl", 40 << 20), SourceFile(0, b, "jsonl", 30 << 20)]
    grown = [files[0], SourceFile(0, b, "jsonl", 31 << 20)]
    cuts = [[c for c in cut_chunks(each) if c.path == a] for each in (files, grown)]
    assert cuts[0] == cuts[1] and len(cuts[0]) > 1
