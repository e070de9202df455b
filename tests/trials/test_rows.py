"""Rows of other makers are trained as they say, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import parse_recipe
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.data.convert.unused_keys import blocking
from pipelines.packed.reader import RowReader
from pipelines.storage import Store
from tests.stages import prepare, serial_tokenize
from tests.unit.chat.template_families import FAMILIES

pytestmark = pytest.mark.trials
TEMPLATES = Path(__file__).resolve().parents[1] / "unit" / "chat" / "templates"
TWO = {"role": "user", "content": "What is 2+2?"}
FOUR = {"role": "assistant", "content": "4"}


@pytest.fixture(scope="session")
def qwen_base(tmp_path_factory) -> str:
    """A base without weights, with a tokenizer of Qwen's kind and Qwen3's template."""
    folder, family = tmp_path_factory.mktemp("qwen"), FAMILIES["qwen3"]
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(family.tokenizer().to_str())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **family.named_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text((TEMPLATES / "qwen3.jinja").read_text())
    return str(folder)


class Trial:
    """Rows that were prepared in this process.

    `texts` has the rendered samples, with the parts in the loss in [[ ]].
    """

    def __init__(self, base: str, folder: Path, rows: Sequence[Any] | Path, **source: Any) -> None:
        path = rows if isinstance(rows, Path) else folder / "rows.jsonl"
        if not isinstance(rows, Path):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        section = {
            "sources": [{"path": str(path), **source}],
            "row_tokens": 512,
            "heldout_share": 0,
            "duplicates": "keep",
        }
        recipe = parse_recipe({"name": "t", "model": {"base": base}, "data": section})
        store = Store(folder / "store")
        prepared = prepare(recipe, store, SILENT, serial_tokenize)
        self.unused = store.by_id("prepared", prepared.ref.key).metadata["unused_keys"]
        renderer = ChatRenderer.load(base)
        samples = RowReader(store.local_dir(prepared.ref), "train").samples()
        self.texts = sorted(_marked(renderer, sample) for sample in samples)


def _marked(renderer: ChatRenderer, sample: Any) -> str:
    text, in_loss = "", False
    for token, weight in zip(sample.input_ids.tolist(), sample.loss_weights, strict=True):
        if (weight > 0) != in_loss:
            text, in_loss = text + ("]]" if in_loss else "[["), not in_loss
        text += renderer.decode([token], skip_special_tokens=False)
    return text + ("]]" if in_loss else "")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_thoughts_are_trained_where_the_template_shows_them(qwen_base, tmp_path, key):
    rows = [{"messages": [TWO, {**FOUR, key: "two and two make four"}]}]
    (text,) = Trial(qwen_base, tmp_path, rows).texts
    assert "<think>\ntwo and two make four\n</think>\n\n4<|im_end|>]]" in text


@pytest.mark.parametrize(
    "keys", [{"loss": False}, {"loss_weight": 0}, {"loss_scale": 0.0}, {"train": False}]
)
def test_answers_out_of_the_loss_are_context(pocket_base, tmp_path, keys):
    wrong = {"role": "assistant", "content": "wrong", **keys}
    again = {"role": "user", "content": "again"}
    rows = [{"messages": [TWO, wrong, again, {**FOUR, "loss": True}]}]
    assert Trial(pocket_base, tmp_path, rows).texts == [
        "<|user|>What is 2+2?<|assistant|>wrong<|end|><|user|>again<|assistant|>[[4<|end|>]]"
    ]


def test_parts_out_of_the_loss_are_masked(pocket_base, tmp_path):
    parts = [
        {"type": "text", "text": "Let me think.", "train": False},
        {"type": "text", "text": " 4", "train": True},
    ]
    rows = [{"messages": [TWO, {"role": "assistant", "content": parts}]}]
    assert Trial(pocket_base, tmp_path, rows).texts == [
        "<|user|>What is 2+2?<|assistant|>Let me think.[[ 4<|end|>]]"
    ]


def test_train_detail_masks_its_characters(pocket_base, tmp_path):
    detail = [{"begin_offset": 0, "end_offset": 5, "train": False}]
    answer = {"role": "assistant", "content": "wrong right", "train_detail": detail}
    (text,) = Trial(pocket_base, tmp_path, [{"messages": [TWO, answer]}]).texts
    assert text.startswith("<|user|>What is 2+2?<|assistant|>wrong") and "[[right<|end|>]]" in text


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"messages": [TWO, FOUR], "label": False}, "label"),
        ({"instruction": "2+2", "output": "5", "kto_tag": False}, "kto_tag"),
        (
            {
                "messages": [{"role": "user", "content": "<image>Who is this?"}, FOUR],
                "images": ["1.jpg"],
            },
            "images",
        ),
        (
            {
                "id": "1",
                "image": "a/b.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": "A cat."},
                ],
            },
            "image",
        ),
        ({"messages": [TWO, FOUR], "rejected_response": "5"}, "rejected_response"),
        ({"messages": [TWO, {**FOUR, "loss_mask": [0]}]}, "messages.loss_mask"),
    ],
)
def test_keys_that_mean_something_elsewhere_are_named(pocket_base, tmp_path, row, key):
    trial = Trial(pocket_base, tmp_path, [row])
    assert blocking(trial.unused, []) == [key] and trial.unused[key] == 1


def test_the_context_of_a_question_is_in_the_prompt(pocket_base, tmp_path):
    row = {
        "question": "How many heads are older than 56?",
        "context": "CREATE TABLE head (age INTEGER)",
        "answer": "SELECT COUNT(*) FROM head WHERE age > 56",
    }
    (text,) = Trial(pocket_base, tmp_path, [row]).texts
    assert text == (
        f"<|user|>{row['context']}\n\n{row['question']}<|assistant|>[[{row['answer']}<|end|>]]"
    )


def test_a_mapped_column_is_honoured_or_refused(pocket_base, tmp_path):
    row = {"question": "q", "context": "the text", "answer": "a"}
    columns = {"input": "context"}
    (text,) = Trial(pocket_base, tmp_path, [row], columns=columns).texts
    assert text == "<|user|>q\n\nthe text<|assistant|>[[a<|end|>]]"
    chat = {"messages": [TWO, FOUR], "context": "the text"}
    with pytest.raises(UserError, match="columns: input: context does nothing, because rows of"):
        Trial(pocket_base, tmp_path, [chat], columns=columns)


def test_keys_that_arrow_filled_with_null_are_not_trained(pocket_base, tmp_path):
    def row(name: str, **arguments: Any) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "r"},
            {"role": "assistant", "content": "z"},
        ]

    table = pa.table({"messages": [row("find", q="x"), row("go", city="Oslo", n=3)]})
    assert table["messages"][0].as_py()[1]["tool_calls"][0]["function"]["arguments"] == {
        "q": "x", "city": None, "n": None,
    }  # fmt: skip
    pq.write_table(table, tmp_path / "rows.parquet")
    first, second = Trial(pocket_base, tmp_path, tmp_path / "rows.parquet").texts
    assert (
        '[[<tool_call>\n{"name": "find", "arguments": {"q": "x"}}\n</tool_call><|end|>]]' in first
    )
    assert '{"name": "go", "arguments": {"city": "Oslo", "n": 3}}\n' in second


def test_a_nan_matters_only_in_a_text_that_is_used(pocket_base, tmp_path):
    rows = [
        {"instruction": "a", "output": "b", "score": float("nan")},
        {"instruction": "c", "output": "d", "score": 0.5},
    ]
    assert len(Trial(pocket_base, tmp_path, rows).texts) == 2
    with pytest.raises(UserError, match=r"output: expected text, this is float \(nan\)"):
        Trial(pocket_base, tmp_path, [{"instruction": "a", "output": float("nan")}])


def test_parts_with_their_text_under_value_are_read(pocket_base, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": "hi"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "ho"}]},
            ]
        }
    ]
    assert Trial(pocket_base, tmp_path, rows).texts == ["<|user|>hi<|assistant|>[[ho<|end|>]]"]


@pytest.mark.parametrize("arguments", ['{"a": "x"', "a: x", '["x"]', "3"])
def test_arguments_that_are_not_json_cost_their_row(qwen_base, tmp_path, arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "r"},
                {"role": "assistant", "content": "z"},
            ]
        }
    ]
    with pytest.raises(UserError, match=r"messages\[1\]: the arguments of the call f are not "):
        Trial(qwen_base, tmp_path, rows)


def test_role_names_of_other_makers_are_known_or_mapped(pocket_base, tmp_path):
    rows = [
        {"messages": [{"role": "User", "content": "q"}, {"role": "Assistant", "content": "a"}]},
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'},
                {"role": "tool_response", "content": "r"},
                {"role": "assistant", "content": "z"},
            ]
        },
        {"conversations": [{"from": "prompter", "value": "q"}, {"from": "ai", "value": "a"}]},
    ]
    texts = Trial(pocket_base, tmp_path, rows).texts
    assert texts[1] == texts[2] == "<|user|>q<|assistant|>[[a<|end|>]]"
    assert '[[<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|end|>]]' in texts[0]
    mapped = [{"messages": [{"role": "Patient", "content": "q"}, {**FOUR, "role": "Doctor"}]}]
    with pytest.raises(UserError, match="unknown role 'Patient'; .* the source's `roles`"):
        Trial(pocket_base, tmp_path, mapped)
    roles = {"Patient": "user", "Doctor": "assistant"}
    assert Trial(pocket_base, tmp_path, mapped, roles=roles).texts == [
        "<|user|>q<|assistant|>[[4<|end|>]]"
    ]


def test_rows_of_unknown_keys_get_the_line_that_reads_them(pocket_base, tmp_path):
    rows = [{"frage": "q", "antwort": "a"}]
    with pytest.raises(UserError, match=r"`columns: {prompt: frage, completion: antwort}`"):
        Trial(pocket_base, tmp_path, rows)
    columns = {"prompt": "frage", "completion": "antwort"}
    assert Trial(pocket_base, tmp_path, rows, columns=columns).texts == [
        "<|user|>q<|assistant|>[[a<|end|>]]"
    ]


def test_plain_text_is_trained_completely(pocket_base, tmp_path):
    (text,) = Trial(pocket_base, tmp_path, [{"text": "Once upon a time"}]).texts
    assert "Once upon a time" in text.split("[[", 1)[1]
