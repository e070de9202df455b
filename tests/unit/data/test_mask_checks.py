"""Counts over all samples of a dataset, and the refusal of labels in turns that are no answers."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.schema import DataConfig, SourceConfig
from pipelines.core.errors import UserError
from pipelines.data.assemble import Assembler
from pipelines.data.mask_checks import MaskChecks
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.tokenize import ChunkTokenizer
from pipelines.data.tokenized_table import SCHEMA
from pipelines.sources.source_files import find_files


def test_texts_that_a_template_leaves_out_next_to_tool_calls_are_counted(pocket_base, tmp_path):
    call = {"function": {"name": "f", "arguments": {}}}
    turns = [("a", None), ("<think>b</think>", [call]), ("c", [call]), ("", [call])]
    rows = []
    for text, calls in turns:
        answer = {"role": "assistant", "content": text, "tool_calls": calls}
        rows.append({"messages": [{"role": "user", "content": f"q{text}"}, answer]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = ChatRenderer.load(pocket_base).spec
    either = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}"
        "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    both = either.replace("{% if m.tool_calls %}", "{{ m.content }}{% if m.tool_calls %}").replace(
        "{% else %}{{ m.content }}", ""
    )
    config = DataConfig(
        sources=[SourceConfig(path=str(tmp_path / "rows.jsonl"))], row_tokens=256, heldout_share=0
    )
    chunks = cut_chunks(find_files(config.sources))
    for template, unshown in ((spec.template, 0), (both, 0), (either, 1)):
        renderer = ChatRenderer(replace(spec, template=template))
        with Assembler(config, chunks, tmp_path / f"{unshown}") as assembler:
            for table in ChunkTokenizer(renderer, config).tables(0, chunks[0]):
                assembler.add(table)
            (tmp_path / "out").mkdir(exist_ok=True)
            checks = assembler.finish(tmp_path / "out")["checks"]
        assert (checks["texts_beside_calls_checked"], checks["texts_beside_calls_failed"]) == (
            1,
            unshown,
        )


def test_a_label_in_a_turn_that_is_no_answer_stops_the_stage_and_names_the_row():
    rows = [{"chunk": 3, "row": number, "num_context_spans": 1} for number in range(3)]
    rows[1]["num_leaked_tokens"] = 5
    checks, table = MaskChecks(), pa.Table.from_pylist(rows, SCHEMA)
    with pytest.raises(UserError, match="file 3:1: the loss would include 5 tokens of its system"):
        checks.add(table, lambda chunk, row: f"file {chunk}:{row}")
