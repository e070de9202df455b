"""Texts that a template leaves out next to tool calls are counted."""

from __future__ import annotations

import json
from dataclasses import replace

from pipelines.chat import ChatRenderer
from pipelines.config.schema import DataConfig, SourceConfig
from pipelines.data.assemble import Assembler
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.tokenize import ChunkTokenizer
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
