"""Rows that would be trained wrong: `inspect` names the reason, and training does not start."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from jobs.cli import app
from jobs.views.dataset_audit import show_audit
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.errors import UserError
from pipelines.data.audit.audit import Audit
from pipelines.data.audit.problems import refuse
from pipelines.data.stage import load_prepared
from pipelines.storage import Store
from tests.recorders import ProgressRecorder
from tests.stages import prepare, serial_tokenize
from tests.unit.chat.template_families import FAMILIES

pytestmark = pytest.mark.trials
CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def pair(question: str, answer: str, **keys: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **keys}


@pytest.fixture(scope="session")
def chatml_base(tmp_path_factory) -> str:
    """A base without weights, with a tokenizer of Qwen's kind and ChatML."""
    folder = tmp_path_factory.mktemp("chatml")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(FAMILIES["qwen3"].tokenizer().to_str())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHATML)
    return str(folder)


class Dataset:
    """Rows that were prepared in this process: the notes of prepare, and the audit."""

    def __init__(self, base: str, folder: Path, rows: Sequence[Any], **data: Any) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text(text)
        source = {"path": str(folder / "rows.jsonl"), **data.pop("source", {})}
        section = {"sources": [source], "row_tokens": 256, "heldout_share": 0, **data}
        self.recipe: Recipe = parse_recipe({"name": "t", "model": {"base": base}, "data": section})
        self.store, progress = Store(folder / "store"), ProgressRecorder()
        self.prepared = prepare(self.recipe, self.store, progress, serial_tokenize)
        self.notes = progress.notes

    def inspect(self, **options: Any) -> tuple[str, Audit]:
        """The text in the terminal, in which long lines are not broken, and the audit."""
        screen, config = io.StringIO(), self.recipe.data
        shown = show_audit(
            self.store,
            self.prepared.ref.key,
            Console(file=screen, width=1000),
            config.audit,
            allow_keys=config.unused_keys.allow,
            **options,
        )
        return screen.getvalue(), shown

    def may_train(self) -> bool:
        artifact = self.store.by_id("prepared", self.prepared.ref.key)
        try:
            refuse(artifact, load_prepared(artifact), self.recipe.data)
        except UserError:
            return False
        return True


QUESTION = "What is it?"
KTO = [pair("What is 2+2?", "5", label=False), pair("3+3", "6", label=True)]
IMAGES = [pair("<image>Who is this?", "Bob.", images=["1.jpg"])]
LLAVA = [
    {
        "image": "a/b.jpg",
        "id": "1",
        "conversations": [
            {"from": "human", "value": f"<image>\n{QUESTION}"},
            {"from": "gpt", "value": "A cat."},
        ],
    }
]
NEIGHBOURS = [
    ([pair(QUESTION, "A cat.", rejected="A dog.")], "rejected"),
    ([pair(QUESTION, "A cat.", video="cat.mp4"), pair("q", "b")], "video"),
    ([pair(QUESTION, "A cat.", loss_mask=[0, 1])], "loss_mask"),
    ([{"instruction": QUESTION, "output": "A cat.", "choices": ["A dog", "A cat"]}], "choices"),
]


@pytest.mark.parametrize(
    ("rows", "key"), [(KTO, "label"), (IMAGES, "images"), (LLAVA, "image"), *NEIGHBOURS]
)
def test_a_key_that_means_something_elsewhere_stops_training_until_it_is_allowed(
    pocket_base: str, tmp_path: Path, rows: Sequence[Any], key: str
) -> None:
    dataset = Dataset(pocket_base, tmp_path, rows)
    num_rows = sum(key in row for row in rows)
    counted = f"{key} ({num_rows}"
    (note,) = (note for note in dataset.notes if "keys not used" in note)
    assert note.startswith("prepare: keys not used: ") and counted in note
    artifact = dataset.store.by_id("prepared", dataset.prepared.ref.key)
    assert artifact.metadata["unused_keys"][key] == num_rows
    page = tmp_path / "page.html"
    text, audit = dataset.inspect(page=page)
    (problem,) = audit.problems
    assert problem.startswith(f"the key {counted} row")
    assert "first: rows.jsonl:1) is not used" in problem
    assert f"data.unused_keys.allow=[{key}]" in problem
    for shown in (text, html.unescape(page.read_text())):
        assert problem in shown and counted in shown
    assert not dataset.may_train()
    allowed = Dataset(pocket_base, tmp_path, rows, unused_keys={"allow": [key]})
    assert allowed.prepared.ref.key == dataset.prepared.ref.key  # found, not prepared again
    text, audit = allowed.inspect()
    assert not audit.problems and counted in text and allowed.may_train()


def test_other_keys_are_noted_and_stop_nothing(pocket_base: str, tmp_path: Path) -> None:
    rows = [
        pair(f"q{i}", f"a{i}", id=i, **({"sou\u202erce": "web"} if i else {})) for i in range(3)
    ]
    dataset = Dataset(pocket_base, tmp_path, rows)
    line = "keys not used: id (3 rows), sou⟨U+202E⟩rce (2)"
    text, audit = dataset.inspect()
    assert f"prepare: {line}" in dataset.notes and f"note: {line}" in text
    assert not audit.problems and dataset.may_train()


TEMPLATES = [
    ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>"),
    ("<s>[INST] {} [/INST]", "[INST]"),
]


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>", "[EOS]"])
def test_answers_that_end_in_a_control_tokens_text_stop_training(
    chatml_base: str, tmp_path: Path, end: str
) -> None:
    rows = [{"prompt": f"q{i} ->", "completion": f" word {i}{end}"} for i in range(3)]
    dataset = Dataset(chatml_base, tmp_path, [*rows, {"prompt": "q", "completion": "a"}])
    text, audit = dataset.inspect()
    (problem,) = audit.problems
    assert problem.startswith(
        f"3 of 4 rows have an answer that ends in the text {end} (first: rows.jsonl:1)"
    )
    assert problem in text and not dataset.may_train()
    willing = Dataset(chatml_base, tmp_path, rows, audit={"max_typed_share": 1.0})
    text, audit = willing.inspect()
    assert not audit.problems and any(end in note for note in audit.notes) and willing.may_train()


@pytest.mark.parametrize(("template", "name"), TEMPLATES)
def test_prompts_that_hold_a_template_stop_training(
    chatml_base: str, tmp_path: Path, template: str, name: str
) -> None:
    rows = [{"prompt": template.format(f"q{i}"), "completion": f"a{i}"} for i in range(2)]
    dataset = Dataset(chatml_base, tmp_path, [*rows, pair("q", "a"), pair("p", "b")])
    text, audit = dataset.inspect()
    (problem,) = audit.problems
    assert problem.startswith(
        "2 of 4 rows have the text of a chat template in a message, most often "
        f"{name} (first: rows.jsonl:1)"
    )
    assert problem in text and not dataset.may_train()


def test_few_such_rows_are_a_note(chatml_base: str, tmp_path: Path) -> None:
    rows = [pair(f"q{i}", f"a{i}") for i in range(3)]
    rows += [pair("What does <|im_end|> do?", "It ends a turn, as </s> does: </s>")]
    dataset = Dataset(chatml_base, tmp_path, rows)
    _, audit = dataset.inspect()
    assert not audit.problems and dataset.may_train()
    ends, templates = audit.notes
    assert ends.startswith("1 of 4 rows have an answer that ends in the text </s>")
    assert "most often <|im_end|> (first: rows.jsonl:4)" in templates


def test_one_dataset_has_rows_of_one_kind(pocket_base: str, tmp_path: Path) -> None:
    rows = [{"text": "Once upon a time."}, {"text": "There was a king."}, pair("q", "a")]
    with pytest.raises(
        UserError, match=r"^data.sources: rows.jsonl:1 is plain text and rows.jsonl:3 is a conv"
    ):
        Dataset(pocket_base, tmp_path, rows)


def test_the_command_exits_with_one_and_names_the_key(pocket_base: str, tmp_path: Path) -> None:
    dataset = Dataset(pocket_base, tmp_path, KTO)
    arguments = ["inspect", dataset.prepared.ref.name, "--store", dataset.store.uri]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
    assert result.exit_code == 1, result.output
    assert "keys not used: label (2 rows)" in result.output
    assert "wrong: the key label (2 rows, first: rows.jsonl:1) is not used" in result.output
