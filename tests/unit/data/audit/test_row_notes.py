"""The facts of rows in an audit: fallbacks, many keys, the worst rows first."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.views.dataset_audit import show_audit
from pipelines.config.recipe import parse_recipe
from pipelines.core.progress import SILENT
from pipelines.data.audit.audit import Audit
from pipelines.data.audit.row_notes import unused_keys_line
from pipelines.packed.format import shard_paths
from pipelines.storage import Store
from tests.stages import prepare, serial_tokenize
from tests.unit.data.datasets import Row, talk, write_jsonl

# Shows neither system turns nor tools, calls and their results.
BARE = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('role') }}{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def prepared_rows(base: str, folder: Path, rows: list[Row], **data: Any) -> tuple[Store, str]:
    path = write_jsonl(folder / "rows.jsonl", rows)
    section = {"sources": [str(path)], "row_tokens": 512, "heldout_share": 0, **data}
    recipe = parse_recipe({"name": "t", "model": {"base": base}, "data": section})
    store = Store(folder / "store")
    return store, prepare(recipe, store, SILENT, serial_tokenize).ref.key


def shown(store: Store, key: str, **options: Any) -> tuple[str, Audit]:
    screen = io.StringIO()
    audit = show_audit(store, key, Console(file=screen, width=1000), **options)
    return screen.getvalue(), audit


@pytest.fixture
def bare_base(pocket_base: str, tmp_path: Path) -> str:
    base = tmp_path / "base"
    shutil.copytree(pocket_base, base, ignore=shutil.ignore_patterns("*.safetensors"))
    (base / "chat_template.jinja").write_text(BARE)
    return str(base)


def test_parts_that_a_template_shows_only_after_a_fallback_are_noted(bare_base, tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    calling = talk(("system", "Be kind."), ("user", "1+1?"), ("assistant", ""), ("tool", "2"),
                   ("assistant", "It is 2."))  # fmt: skip
    calling["messages"][2]["tool_calls"] = [call]
    calling["tools"] = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    rows = [talk(("user", "q"), ("assistant", "a")), calling]
    _, audit = shown(*prepared_rows(bare_base, tmp_path, rows))
    assert not audit.problems
    ending = ": the base's chat template does not show them (1 row, first: rows.jsonl:2)"
    assert sorted(note.removesuffix(ending) for note in audit.notes) == [
        "system texts are written into the first user turn",
        "tool calls are written into the text of the answer",
        "tool results are written into user turns",
        "tools are written into the system text",
    ]


def test_a_base_that_shows_all_parts_has_no_such_note(pocket_base, tmp_path):
    rows = [talk(("system", "Be kind."), ("user", "q"), ("assistant", "a"))]
    assert not shown(*prepared_rows(pocket_base, tmp_path, rows))[1].notes


def test_many_unused_keys_are_cut(pocket_base, tmp_path):
    line = unused_keys_line({f"k{i}": 100 - i for i in range(30)})
    assert line.startswith("keys not used: k0 (100 rows), k1 (99), ")
    assert line.endswith("k19 (81) and 10 more")
    assert unused_keys_line({"id": 1}) == "keys not used: id (1 row)"
    rows = [{**talk(("user", f"q{i}"), ("assistant", "a")), f"key {i}": i} for i in range(1100)]
    store, key = prepared_rows(pocket_base, tmp_path, rows)
    counts = store.by_id("prepared", key).metadata["unused_keys"]
    assert len(counts) == 1001 and counts["(others)"] == 100  # as many names as are remembered


def test_the_worst_rows_come_first(pocket_base, tmp_path):
    rows = [talk(("user", "word " * 10 * i), ("assistant", "a")) for i in range(1, 5)]
    rows.insert(1, talk(("user", "q"), ("assistant", "It ends here</s>")))
    text, audit = shown(*prepared_rows(pocket_base, tmp_path, rows), num_worst=3)
    assert [example.line for example in audit.examples] == [2, 5, 4]
    assert audit.examples[0].fault == "typed_ends"
    first, second, _ = (line for line in text.splitlines() if line.startswith("rows.jsonl:"))
    assert "rows.jsonl:2, sample " in first and first.endswith("in the loss, fails typed_ends")
    assert "rows.jsonl:5, sample " in second and second.endswith("% in the loss")
    _, every = shown(*prepared_rows(pocket_base, tmp_path, rows), num_worst=100)
    assert [example.line for example in every.examples] == [2, 5, 4, 3, 1]


def test_marks_that_turn_the_direction_of_text_are_shown(pocket_base, tmp_path):
    rows = [talk(("user", "say \u202eabc\u202c"), ("assistant", "a\u200fb\x1b[31m"))]
    store, key = prepared_rows(pocket_base, tmp_path, rows)
    text, _ = shown(store, key, page=tmp_path / "page.html")
    for output in (text, (tmp_path / "page.html").read_text()):
        assert not set("\u202e\u202c\u200f\x1b") & set(output)
        for code in ("202E", "202C", "200F", "001B"):
            assert f"⟨U+{code}⟩" in output


def test_a_dataset_of_an_earlier_version_is_shown_without_origins(pocket_base, tmp_path):
    rows = [talk(("user", f"q{i}"), ("assistant", "a")) for i in range(3)]
    store, key = prepared_rows(pocket_base, tmp_path, rows)
    folder = store.local_dir(store.by_id("prepared", key).ref)
    for path in shard_paths(folder, "train"):
        pq.write_table(pq.read_table(path).drop_columns(["files", "lines", "faults"]), path)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("files", "kind", "too_long", "unused_keys", "typed_ends", "typed_templates",
                 "fallbacks", "first_rows"):  # fmt: skip
        manifest["metadata"].pop(name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    text, audit = shown(store, key)
    assert not audit.problems and "\nsample " in text
