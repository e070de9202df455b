"""`loraforge init --source` reads rows with a key that they need, and writes it to the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jobs.starter.first_rows import read_first_rows
from jobs.starter.source_keys import source_of
from jobs.verbs.init import init
from pipelines.config.load import load_recipe
from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError

app = typer.Typer()
app.command()(init)


def test_a_key_is_given_as_the_message_says_and_written(tmp_path: Path) -> None:
    data, recipe = tmp_path / "rows.csv", tmp_path / "recipe.yaml"
    text = "question^answer\n" + "Où est-il ?^À Genève\n" * 20
    data.write_bytes(text.encode("windows-1252"))
    arguments = ["--data", str(data), "--out", str(recipe)]
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "set the source's `encoding: windows-1252`" in str(error.value)
    assert str(error.value).endswith("give `init` such a key as --source 'KEY: VALUE'")
    keys = ["--source", "encoding: windows-1252", "--source", 'delimiter: "^"']
    CliRunner().invoke(app, [*arguments, *keys], catch_exceptions=False)
    assert load_recipe(recipe).data.sources == [
        SourceConfig(path=str(data), encoding="windows-1252", delimiter="^")
    ]


def test_columns_given_by_hand_replace_the_guess(tmp_path: Path) -> None:
    data, recipe = tmp_path / "rows.csv", tmp_path / "recipe.yaml"
    data.write_text("Question,Answer,Better\n" + "a,b,c\n" * 20)
    columns = {"prompt": "Question", "completion": "Better"}
    keys = ["--source", "columns: {prompt: Question, completion: Better}"]
    arguments = ["--data", str(data), "--out", str(recipe), *keys]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert load_recipe(recipe).data.sources[0].columns == columns


def test_a_column_is_not_both_question_and_answer(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question answer\n" + "a b\n" * 20)
    with pytest.raises(UserError, match="unknown format: the row has the keys question answer"):
        read_first_rows(source_of(str(tmp_path / "rows.csv"), []))


def test_a_link_stays_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('{"instruction": "a", "output": "b"}\n' * 20)
    (tmp_path / "rows.jsonl").symlink_to("blob")
    arguments = ["--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "recipe.yaml")]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    (source,) = load_recipe(tmp_path / "recipe.yaml").data.sources
    assert source.path == str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("utf-16", "--source utf-16: expected 'KEY: VALUE'"),
        ("{", "--source {: expected 'KEY: VALUE'"),
        ("encodin: utf-16", "--source encodin: .*encoding"),
        ("delimiter: ;;", "--source delimiter: .*at most 1 character"),
    ],
)
def test_a_wrong_key_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        source_of("rows.csv", [text])
