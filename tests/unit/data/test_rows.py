"""Rows that say more, or say it in an older way, than the plain form of their format."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.schema import DataConfig, SourceConfig
from pipelines.core.conversation import Turn
from pipelines.core.errors import UserError
from pipelines.data.assemble import Assembler
from pipelines.data.convert.row_formats import RowError, check_columns, to_conversation
from pipelines.data.read.chunks import cut_chunks
from pipelines.data.tokenize import ChunkTokenizer
from pipelines.sources.files import find_files

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CALLS = [{"name": name, "arguments": {"at": name}} for name in ("look", "hear")]
WANTED = tuple({"type": "function", "function": call} for call in CALLS)


def contents(row, **kwargs) -> list[str]:
    return [turn.content for turn in to_conversation(row, **kwargs).turns]


def test_mapped_columns_decide_the_format():
    """Preference rows hold a prompt, and what is mapped shall be trained, not what happens to be called completion."""
    row = {"prompt": "p", "completion": "worse", "chosen": "better", "text": "x"}
    assert contents(row, columns={"instruction": "prompt", "output": "chosen"}) == ["p", "better"]
    assert contents(row, columns={"completion": "chosen"}) == ["p", "better"]
    assert contents(row) == ["p", "worse"]


def test_keys_that_a_table_fills_with_null_are_not_those_of_the_format():
    row = {
        "messages": None,
        "conversations": None,
        "instruction": "i",
        "output": "o",
        "question": "q",
        "answer": None,
    }
    assert contents(row) == ["i", "o"]
    assert contents({"messages": TALK, "prompt": None, "completion": None}) == ["a", "b"]
    with pytest.raises(RowError, match="messages: missing"):
        to_conversation({"messages": None, "conversations": None})


def test_a_system_text_beside_messages_is_their_system_turn():
    assert contents({"messages": TALK, "system": "s"}) == ["s", "a", "b"]
    own = [{"role": "system", "content": "own"}, *TALK]
    assert contents({"messages": own, "system": "s"}) == ["own", "a", "b"]
    assert contents({"prompt": own[:2], "completion": "b", "system": "s"}) == ["own", "a", "b"]


def test_several_calls_at_once_are_one_turn():
    turns = [{"from": "human", "value": "a"}, {"from": "function_call", "value": json.dumps(CALLS)}]
    assert to_conversation({"conversations": turns}).turns[1] == Turn(
        "assistant", "", tool_calls=WANTED
    )
    for wrong in ("[]", "[1]", "look"):
        with pytest.raises(
            RowError, match=r"conversations\[1\]: a tool call is an object with name and arguments"
        ):
            to_conversation(
                {"conversations": [turns[0], {"from": "function_call", "value": wrong}]}
            )


def test_the_older_function_call_of_openai_is_a_tool_call():
    call = {"name": "look", "arguments": '{"at": "look"}'}
    messages = [
        TALK[0],
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "look", "content": "bird"},
        {"role": "assistant", "content": "a bird", "function_call": None},
    ]
    talk = to_conversation({"messages": messages, "functions": [{"name": "look"}]})
    assert talk.turns[1] == Turn("assistant", "", tool_calls=WANTED[:1])
    assert [turn.role for turn in talk.turns] == ["user", "assistant", "tool", "assistant"]
    assert talk.tools == ({"type": "function", "function": {"name": "look"}},)


def test_a_mapped_column_that_is_not_there_costs_the_row_unless_it_may_be_missing():
    """Its own keys fit a format too: they would be trained without a word."""
    row = {"instruction": "i", "output": "o", "answer": "a"}
    assert contents(row, columns={"completion": "answer", "prompt": "instruction"}) == ["i", "a"]
    with pytest.raises(
        RowError,
        match=r"columns: the row has no anwser for completion, but instruction, output, answer",
    ):
        to_conversation(row, columns={"completion": "anwser", "prompt": "instruction"})
    assert contents(row, columns={"input": "context", "output": "answer"}) == ["i", "a"]
    with pytest.raises(
        UserError, match=r"^data.sources.1.columns: no format has the key prmpt; valid: .*, prompt,"
    ):
        check_columns([{"system": "s"}, {"completion": "output", "prmpt": "instruction"}])


@pytest.mark.parametrize(
    ("format", "key"), [("messages", "messages"), ("sharegpt", "conversations")]
)
def test_a_row_that_lacks_the_turns_of_its_format_says_so(format, key):
    for row in ({"instruction": "i", "output": "o"}, {key: None}):
        with pytest.raises(RowError, match=f"^{key}: missing$"):
            to_conversation(row, format)


def test_an_empty_answer_is_context_in_every_format(pocket_base):
    talk = [
        ("user", "a"),
        ("assistant", " "),
        ("user", "b"),
        ("assistant", "c"),
        ("user", "d"),
        ("assistant", ""),
    ]
    messages = [{"role": role, "content": text} for role, text in talk]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    renderer = ChatRenderer.load(pocket_base)
    for row, expected in (
        ({"messages": messages}, "c<|end|>"),
        ({"prompt": messages[:1], "completion": messages[1:]}, "c<|end|>"),
        ({"instruction": "d", "output": "e", "history": [["a", ""], ["b", "c"]]}, "c<|end|>e<|end|>"),
        ({"messages": [*messages, messages[0], call]}, 'c<|end|><tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|end|>'),
    ):  # fmt: skip
        rendered = renderer.render(to_conversation(row))
        assert (
            renderer.decode(rendered.input_ids[rendered.loss_weights > 0], skip_control=False)
            == expected
        )


def test_texts_that_a_template_leaves_out_beside_calls_are_counted(pocket_base, tmp_path):
    call = {"function": {"name": "f", "arguments": {}}}
    turns = [("a", None), ("<think>b</think>", [call]), ("c", [call]), ("", [call])]
    rows = []
    for text, calls in turns:
        answer = {"role": "assistant", "content": text, "tool_calls": calls}
        rows.append({"messages": [{"role": "user", "content": f"q{text}"}, answer]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = ChatRenderer.load(pocket_base).spec
    either = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}"
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
        with Assembler(config, chunks, tmp_path / f"{unshown}") as collector:
            for table in ChunkTokenizer(renderer, config).tables(0, chunks[0]):
                collector.add(table)
            (tmp_path / "out").mkdir(exist_ok=True)
            checks = collector.finish(tmp_path / "out")["checks"]
        assert (checks["texts_beside_calls_checked"], checks["texts_beside_calls_failed"]) == (
            1,
            unshown,
        )


def test_a_call_without_arguments_has_none():
    for call in ({"name": "f"}, {"name": "f", "arguments": None}, {"name": "f", "arguments": "{}"}):
        talk = to_conversation({"messages": [TALK[0], {"role": "assistant", "tool_calls": [call]}]})
        assert talk.turns[1].tool_calls[0]["function"] == {"name": "f", "arguments": {}}
