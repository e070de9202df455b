"""Small datasets for tests: rows, conversations, and the texts of what was prepared from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import parse_recipe
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.progress import SILENT
from pipelines.packed.reader import RowReader
from pipelines.storage import Store
from tests.stages import prepare

Row = dict[str, Any]


def rows_of(numbers: Iterable[int], answer: str = "It is {}.") -> list[Row]:
    return [{"instruction": f"Say {i}", "input": "", "output": answer.format(i)} for i in numbers]


def talk(*turns: tuple[str, str]) -> Row:
    """A conversation of pairs of role and content."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def long_talk(number: int, num_exchanges: int, words: int = 10) -> Row:
    """A system turn and numbered exchanges with answers of so many words."""
    turns = [("system", f"talk {number}")]
    for i in range(num_exchanges):
        turns += [
            ("user", f"question {i} of {number}"),
            ("assistant", f"answer {i} " + "word " * words),
        ]
    return talk(*turns)


def prepare_rows(
    base: str,
    store: Store,
    folder: Path,
    rows: Sequence[Row],
    heldout: Sequence[Row] = (),
    tokenize: Callable[..., Any] | None = None,
    **data: Any,
) -> tuple[PreparedDataset, list[str]]:
    """Prepare rows of `rows.jsonl`; returns the dataset and the texts of its training samples."""
    write_jsonl(folder / "rows.jsonl", rows)
    sources = [{"path": str(folder / "rows.jsonl"), **data.pop("source", {})}]
    if heldout:
        path = write_jsonl(folder / "heldout.jsonl", heldout)
        sources.append({"path": str(path), "split": "heldout"})
    section = {"sources": sources, "row_tokens": 256, "heldout_share": 0, **data}
    recipe = parse_recipe({"name": "t", "model": {"base": base}, "data": section})
    prepared = prepare(recipe, store, SILENT, tokenize)
    renderer = ChatRenderer.load(base)
    texts = [
        renderer.decode(sample.input_ids.tolist(), skip_special_tokens=False)
        for sample in RowReader(store.local_dir(prepared.ref), "train").samples()
    ]
    return prepared, texts


def write_jsonl(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
