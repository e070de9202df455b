from __future__ import annotations

import io
import json
from html.parser import HTMLParser

import pytest
from rich.console import Console
from typer.testing import CliRunner

from jobs.cli import app
from jobs.views.dataset_audit import show_audit
from pipelines.chat import ChatRenderer
from pipelines.config.recipe import parse_recipe
from pipelines.config.schema import AuditConfig
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.data.audit.audit import Audit
from pipelines.data.audit.token_text import glyphs
from pipelines.storage import Store
from tests.stages import prepare

JOINED = "{% for m in messages %}{{ m.content }}{% endfor %}"  # no role, no stop token


@pytest.fixture(scope="module")
def dataset(ray_cluster, pocket_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    rows = [{"instruction": f"Say <b>{i}</b>", "output": f"It is {i}."} for i in range(60)]
    rows += [{"instruction": "a", "output": ""}, {"instruction": "long", "output": "word " * 300}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "sources": [str(folder / "rows.jsonl")],
        "row_tokens": 256,
        "heldout_share": 0.1,
        "max_rejects_share": 0.1,
    }
    recipe = parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data})
    store = Store(folder / "store")
    return folder, store, prepare(recipe, store, SILENT)


class _Parsed(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def shown(store, digest, **options) -> tuple[str, Audit]:
    screen = io.StringIO()
    console = Console(file=screen, width=160, force_terminal=True, color_system="standard")
    audit_shown = show_audit(store, digest, console, **options)
    return screen.getvalue(), audit_shown


def test_the_terminal_colours_the_tokens_in_the_loss(dataset):
    _, store, prepared = dataset
    text, audit_shown = shown(store, prepared.ref.key, num_examples=1)
    assert not audit_shown.problems and "nothing wrong was found" in text
    green, off = "\x1b[30;42m", "\x1b[0m"
    (answer_text,) = [part.split(off)[0] for part in text.split(green)[1:]]
    assert answer_text.startswith("It is ") and answer_text.endswith("<|end|>")
    assert (
        "files" in text
        and "median" in text
        and "rejected" in text
        and "output: empty" in text
        and "rows.jsonl:61" in text
    )
    ids, _ = shown(store, prepared.ref.name, num_examples=1, show_ids=True)
    assert "<|end|>" in ids and "[1]" in ids


def test_tokens_of_one_character_are_shown_together(pocket_base):
    renderer = ChatRenderer.load(pocket_base)
    text = "2 × 3 = 6 😀, é"
    ids = renderer.render(
        Conversation((Turn("user", text), Turn("assistant", "b")))
    ).input_ids.tolist()
    assert "\ufffd" in "".join(renderer.decode_each(ids))
    audit_shown = glyphs(ids, renderer)
    assert (
        text in "".join(part for _, part in audit_shown)
        and [token for group, _ in audit_shown for token in group] == ids
    )
    half = glyphs(
        ids[: next(i for i, each in enumerate(renderer.decode_each(ids)) if "\ufffd" in each) + 1],
        renderer,
    )
    assert half[-1][1] == "\ufffd"


def test_examples_are_spread_over_the_samples(dataset):
    _, store, prepared = dataset
    _, audit_shown = shown(store, prepared.ref.key, num_examples=5)
    assert len({example.sample_id for example in audit_shown.examples}) == 5
    _, every = shown(store, prepared.ref.key, num_examples=1000)
    assert len(every.examples) == prepared.train.num_samples
    names = [example.sample_id for example in every.examples]
    assert [names.index(example.sample_id) for example in audit_shown.examples] == [
        i * len(names) // 5 for i in range(5)
    ]


def test_without_colours_brackets_mark_the_tokens_in_the_loss(dataset):
    _, store, prepared = dataset
    screen = io.StringIO()
    show_audit(store, prepared.ref.key, Console(file=screen, width=160), num_examples=1)
    assert "<|assistant|>⟦It is " in screen.getvalue() and "<|end|>⟧" in screen.getvalue()


def test_the_page_is_complete_and_self_contained(dataset):
    folder, store, prepared = dataset
    _, audit_shown = shown(store, prepared.ref.key, page=folder / "audit.html")
    parsed = _Parsed()
    parsed.feed((folder / "audit.html").read_text())
    assert parsed.open == [] and parsed.links == []
    assert (
        "Say <b>" in parsed.text and "It is " in parsed.text and "longer than a pack" in parsed.text
    )
    assert sum(audit_shown.histograms[0].counts) == prepared.train.num_samples
    assert sum(audit_shown.histograms[2].counts) == prepared.train.num_rows


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"min_trained_share": 0.9}, "data.audit.min_trained_share=0.9"),
        ({"max_lost_share": 0.01}, "data.audit.max_lost_share=0.01"),
    ],
)
def test_a_crossed_threshold_is_a_problem_that_names_its_key(dataset, limits, problem):
    _, store, prepared = dataset
    text, audit_shown = shown(store, prepared.ref.key, limits=AuditConfig(**limits))
    assert (
        len(audit_shown.problems) == 1 and problem in audit_shown.problems[0] and "wrong: " in text
    )


def test_a_template_without_a_stop_token_is_a_problem(ray_cluster, pocket_base, tmp_path):
    import shutil

    base = tmp_path / "base"
    shutil.copytree(pocket_base, base, ignore=shutil.ignore_patterns("*.safetensors"))
    (base / "chat_template.jinja").write_text(JOINED)
    rows = [{"prompt": f"{i} and 4", "completion": "2 it is"} for i in range(50)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sources": [str(tmp_path / "rows.jsonl")], "row_tokens": 64, "heldout_share": 0.3}
    store = Store(tmp_path / "store")
    prepared = prepare(
        parse_recipe({"name": "t", "model": {"base": str(base)}, "data": data}), store, SILENT
    )
    _, audit_shown = shown(store, prepared.ref.key)
    assert any("do not end in a stop token" in problem for problem in audit_shown.problems)


def test_the_command_exits_with_one_when_a_threshold_is_crossed(dataset, pocket_base):
    folder, store, prepared = dataset
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"name: t\nmodel: {{base: {pocket_base}}}\n"
        "data: {sources: [rows.jsonl], row_tokens: 256,\n"
        "       heldout_share: 0.1, max_rejects_share: 0.1}\n"
    )
    runner = CliRunner()
    good = runner.invoke(
        app, ["inspect", prepared.ref.name, "--store", store.uri, "--examples", "0"]
    )
    assert good.exit_code == 0, good.output
    limits = ["-s", "data.audit.max_lost_share=0.001"]
    bad = runner.invoke(
        app, ["inspect", str(recipe), "--store", store.uri, *limits, "--examples", "0"]
    )
    assert bad.exit_code == 1, bad.output
    assert prepared.ref.name in good.output


def test_an_unknown_dataset_is_refused_in_one_line(store):
    with pytest.raises(UserError, match="no finished artifact of kind 'prepared'"):
        shown(store, "0" * 12)


@pytest.mark.parametrize("verb", ["run", "train"])
def test_a_problem_stops_training_before_it_starts(dataset, pocket_base, monkeypatch, capsys, verb):
    """Exit code 2 and one line, although `inspect` alone would find it too late."""
    import sys

    from jobs import cli

    folder, store, prepared = dataset
    recipe = folder / "limits.yaml"
    recipe.write_text(
        f"name: t\nmodel: {{base: {pocket_base}}}\n"
        "data: {sources: [rows.jsonl], row_tokens: 256,\n"
        "       heldout_share: 0.1, max_rejects_share: 0.1,\n"
        "       audit: {max_lost_share: 0.001, min_trained_share: 0.9}}\n"
    )
    monkeypatch.setattr(sys, "argv", ["loraforge", verb, str(recipe), "--store", store.uri])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in message
    assert message.startswith(f"loraforge: dataset {prepared.ref.name}: ")
    assert (
        "data.audit.min_trained_share=0.9; and " in message
        and "data.audit.max_lost_share=0.001" in message
    )
    assert not store.list("run") and not store.list("checkpoint")


def test_the_manifest_counts_the_checks_of_all_samples(dataset):
    _, store, prepared = dataset
    checks = store.by_id("prepared", prepared.ref.key).metadata["checks"]
    num_samples = prepared.train.num_samples + prepared.heldout.num_samples
    assert checks["stop_trained_checked"] == checks["other_turns_masked_checked"] == num_samples
    assert checks["prefix_matches_checked"] >= prepared.heldout.num_samples
    assert not any(count for name, count in checks.items() if name.endswith("_failed"))
