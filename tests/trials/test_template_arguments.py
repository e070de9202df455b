"""Plain answers on bases that think by default: the template's arguments come from the recipe, and
training, evaluation and serving render with them.
"""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from jobs.views.dataset_audit import show_audit
from pipelines.chat import ChatRenderer
from pipelines.chat.default_templates import ALPACA_TEMPLATE
from pipelines.chat.tokenizer_spec import load_spec
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import PreparedDataset, TemplateChoice
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.packed.reader import RowReader, read_heldout_samples
from pipelines.storage import Store
from serve_app.engines.protocol import AdapterRef
from serve_app.engines.transformers.renderers import Renderers
from tests.recorders import ProgressRecorder
from tests.stages import prepare, serial_tokenize
from tests.unit.chat.template_families import FAMILIES

pytestmark = pytest.mark.trials
TEMPLATES = Path(__file__).resolve().parents[1] / "unit" / "chat" / "templates"
# As Qwen3.5's: every answer has a thought, and the prompt opens one unless thinking is off.
OPENS_A_THOUGHT = """\
{%- for m in messages -%}{%- set c = m.content -%}
{%- if m.role == 'assistant' -%}{%- set r = '' -%}
{%- if '</think>' in c -%}
{%- set r = c.split('</think>')[0].split('<think>')[-1].strip() -%}
{%- set c = c.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n<think>\\n' + r + '\\n</think>\\n\\n' + c + '<|im_end|>\\n' -}}
{%- else -%}{{- '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' -}}
{%- else -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}
{%- endif -%}
"""
ADAPTER = AdapterRef("a" * 64, "bot@aaaaaaaaaaaa")


def write_base(folder: Path, template: str | None) -> Path:
    """A base without weights: a tokenizer of Qwen's kind and a chat template."""
    folder.mkdir()
    family = FAMILIES["qwen3"]
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(family.tokenizer().to_str())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **family.named_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def recipe_of(folder: Path, base: Path, **data: Any) -> Recipe:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": f"It is {i}."},
            ]
        }
        for i in range(6)
    ]
    for name, part in (("train", rows[:4]), ("heldout", rows[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    sources = [
        {"path": str(folder / f"{name}.jsonl"), "split": name} for name in ("train", "heldout")
    ]
    return parse_recipe(
        {
            "name": "bot",
            "model": {"base": str(base)},
            "data": {"sources": sources, "row_tokens": 64, **data},
        }
    )


def prepared_of(tmp_path: Path, recipe: Recipe) -> tuple[Path, PreparedDataset]:
    store = Store(tmp_path / "store")
    dataset = prepare(recipe, store, SILENT, serial_tokenize)
    return store.local_dir(dataset.ref), dataset


def served(base: Path, template: TemplateChoice) -> ChatRenderer:
    """The renderer of requests to an adapter that was trained with this template."""
    renderers = Renderers(load_spec(str(base)), TemplateChoice(), lambda adapter: template, 4)
    return asyncio.run(renderers.get(ADAPTER))


@pytest.mark.parametrize("name", ["opens-a-thought", "qwen3"])
def test_plain_answers_are_trained_evaluated_and_served_without_a_thought(
    tmp_path: Path, name: str
) -> None:
    template = (TEMPLATES / "qwen3.jinja").read_text() if name == "qwen3" else OPENS_A_THOUGHT
    base = write_base(tmp_path / "base", template)
    recipe = recipe_of(tmp_path, base, template_arguments={"enable_thinking": False})
    folder, dataset = prepared_of(tmp_path, recipe)
    assert dataset.template == TemplateChoice(template, None, {"enable_thinking": False})
    assert dataset.counts["train"] == 4 and dataset.counts["heldout"] == 2
    renderer = served(base, dataset.template)
    prompt = "<|im_start|>user\nq{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    for sample in RowReader(folder, "train").samples():
        labels = sample.loss_weights > 0
        answer = renderer.decode(sample.input_ids[labels], skip_special_tokens=False)
        number = answer[len("It is ")]
        assert answer == f"It is {number}.<|im_end|>"
        ids = renderer.prompt_ids([{"role": "user", "content": f"q{number}"}])
        assert renderer.decode(ids, skip_special_tokens=False) == prompt.format(number)
        assert np.array_equal(sample.input_ids[: len(ids)], ids)
        assert labels.argmax() == len(ids)
    for row in read_heldout_samples(folder, ("prompt_ids", "messages")):
        messages = json.loads(row["messages"])
        assert [message["role"] for message in messages] == ["user"]
        assert row["prompt_ids"] == renderer.prompt_ids(messages).tolist()


def test_the_base_and_versions_with_other_arguments_keep_their_own_prompt(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", OPENS_A_THOUGHT)
    choices = {
        "plain": TemplateChoice(OPENS_A_THOUGHT, None, {"enable_thinking": False}),
        "thinks": TemplateChoice(OPENS_A_THOUGHT, None, {"enable_thinking": True}),
        "old": TemplateChoice(),
    }
    spec = load_spec(str(base))
    own = TemplateChoice(None, None, {"enable_thinking": False})
    renderers = Renderers(spec, own, lambda adapter: choices[adapter.key], 4)

    def prompt(name: str | None) -> str:
        adapter = AdapterRef(name, f"{name}@{'0' * 12}") if name else None
        renderer = asyncio.run(renderers.get(adapter))
        ids = renderer.prompt_ids([{"role": "user", "content": "q"}])
        return renderer.decode(ids, skip_special_tokens=False)

    closed, opened = "<think>\n\n</think>\n\n", "assistant\n<think>\n"
    assert prompt(None).endswith(closed) and prompt("plain").endswith(closed)
    assert prompt("thinks").endswith(opened) and prompt("old").endswith(opened)


def test_an_argument_that_the_template_does_not_read_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", OPENS_A_THOUGHT)
    recipe = recipe_of(tmp_path, base, template_arguments={"enable_thought": False})
    with pytest.raises(UserError, match=r"enable_thought does nothing.*reads enable_thinking"):
        prepared_of(tmp_path, recipe)


def test_a_base_without_a_template_is_a_note_in_prepare_and_inspect(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", None)
    store, progress = Store(tmp_path / "store"), ProgressRecorder()
    note = "the base has no chat template: the alpaca layout is used"
    dataset = prepare(recipe_of(tmp_path, base), store, progress, serial_tokenize)
    assert any(text.startswith(f"prepare: {note}") for text in progress.notes)
    assert (dataset.template.text, dataset.default_layout) == (ALPACA_TEMPLATE, "alpaca")
    console = Console(record=True, width=200, file=io.StringIO())
    show_audit(store, dataset.ref.key, console)
    assert f"note: {note}" in console.export_text()
    chosen = recipe_of(tmp_path, base, chat_template="alpaca")
    progress = ProgressRecorder()
    # The same text by name gives the same rows, without the note.
    assert prepare(chosen, store, progress, serial_tokenize).ref.key == dataset.ref.key
    assert not [text for text in progress.notes if "no chat template" in text]
