"""The same inputs give the same bytes for any number of workers and any cut of the files."""

from __future__ import annotations

import functools
import json

import pytest

from pipelines.config.recipe import parse_recipe
from pipelines.core.progress import SILENT
from pipelines.data.read import chunks
from pipelines.data.read.chunks import cut_chunks
from pipelines.storage import Store
from tests.stages import prepare


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for part in range(4):
        rows = [
            {"instruction": f"Say {i}", "output": f"It is {i}. " * (1 + i % 40)}
            for i in range(part, 800, 3)
        ]
        rows.append({"instruction": "bad", "output": ""})
        (folder / f"part{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("workers", "chunk_bytes"), [(2, 1 << 22), (4, 1 << 22), (4, 5000), (1, 20_000)]
)
def test_any_number_of_workers_and_any_cut_give_the_same_bytes(
    ray_cluster, pocket_base, tmp_path, monkeypatch, sources, workers, chunk_bytes
):
    def digest(workers: int, chunk_bytes: int) -> str:
        monkeypatch.setattr(
            chunks, "cut_chunks", functools.partial(cut_chunks, chunk_bytes=chunk_bytes)
        )
        data = {
            "sources": [str(sources)],
            "row_tokens": 512,
            "workers": workers,
            "fast_tokenizer": workers != 2,
        }
        recipe = parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data})
        store = Store(tmp_path / f"{workers}-{chunk_bytes}")
        prepared = prepare(recipe, store, SILENT)
        assert prepared.counts["duplicates"] > 0 and prepared.counts["rejected"] == 4
        return prepared.ref.digest

    assert digest(workers, chunk_bytes) == digest(1, 1 << 22)
