"""Rows as their tokens spell them, with the parts in the loss in [[ ]], and what an audit says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.config.schema import AuditConfig, DataConfig, SourceConfig
from pipelines.core.conversation import Conversation, Turn
from pipelines.data.audit.answers import answer_notes, answer_problems
from pipelines.data.mask_checks import MaskChecks
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.tokenize import ChunkTokenizer
from pipelines.data.tokenized_table import CHUNK_END
from pipelines.sources.source_files import find_files
from tests.unit.chat.tokenizer_kinds import LLAMA_WORDS, byte_level_bpe, spell

TEMPLATES = Path(__file__).resolve().parents[1] / "unit" / "chat" / "templates"
THINKING = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}


def renderer_of(
    template: str,
    special: str = "<|im_start|> <|im_end|>",
    ordinary: Sequence[str] = (),
    eos: str = "<|im_end|>",
    arguments: Mapping[str, Any] | None = None,
    compiled: bool = True,
) -> ChatRenderer:
    tokenizer = byte_level_bpe(LLAMA_WORDS, special.split(), ordinary)
    named = {"eos_token": eos}
    spec = TokenizerSpec(tokenizer.to_str(), template, named, arguments=arguments or {})
    return ChatRenderer(spec, compiled=compiled)


def shown(renderer: ChatRenderer, conversation: Conversation) -> str:
    """The text of a conversation's tokens, with the parts in the loss in [[ ]]."""
    rendered = renderer.render(conversation)
    trained, text = False, ""
    for token, weight in zip(rendered.input_ids, rendered.loss_weights, strict=True):
        if (weight > 0) != trained:
            trained = not trained
            text += "[[" if trained else "]]"
        text += spell(renderer, token[None])
    return text + ("]]" if trained else "")


def talk(*texts: str, **answer: Any) -> Conversation:
    """Questions and answers in turns; `answer` are fields of the last answer."""
    turns = [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    turns[-1] = Turn("assistant", texts[-1], **answer)
    return Conversation(tuple(turns))


def tables_of(
    renderer: ChatRenderer, folder: Path, rows: Sequence[Mapping[str, Any]]
) -> list[pa.Table]:
    """What the prepare stage's task makes of these rows."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [SourceConfig(path=str(folder / "rows.jsonl"))]
    config = DataConfig(sources=sources, row_tokens=1024, heldout_share=0)
    (chunk,) = cut_chunks(find_files(sources))
    tables = ChunkTokenizer(renderer, config).tables(0, chunk)
    return [table for table in tables if CHUNK_END not in table["fate"].to_pylist()]


def audited(
    renderer: ChatRenderer, folder: Path, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """The problems and the notes of these rows' answers."""
    checks = MaskChecks()
    for table in tables_of(renderer, folder, rows):
        checks.add(table, lambda _, row: f"row {row}")
    metadata = {"checks": checks.counts, "first_rows": {"checks": checks.first_rows}}
    metadata["thoughts"] = renderer.thought_facts
    return [*answer_problems(metadata, AuditConfig())], [*answer_notes(metadata)]


def row_of(conversation: Conversation) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": conversation.messages()}
    return row | ({"tools": [*conversation.tools]} if conversation.tools else {})
