"""The keys data.chat_template and data.template_arguments: paths, names and refused values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.config.load import load_recipe
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.errors import UserError

BODY = "name: x\nmodel: {base: org/base}\ndata:\n  sources: [a.json]\n"


def write(folder: Path, lines: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(BODY + lines)
    return path


def with_arguments(**arguments: Any) -> Recipe:
    data = {"sources": ["a.json"], "template_arguments": arguments}
    return parse_recipe({"name": "x", "model": {"base": "org/base"}, "data": data})


def test_a_template_file_is_relative_to_the_recipe_and_an_override_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    path = write(tmp_path, "  chat_template: templates/own.jinja\n")
    assert load_recipe(path).data.chat_template == str(tmp_path / "templates" / "own.jinja")
    given = load_recipe(path, ["data.chat_template=own.jinja"])
    assert given.data.chat_template == str(tmp_path / "cwd" / "own.jinja")


@pytest.mark.parametrize("name", ["alpaca", "chatml", "inst"])
def test_a_built_in_name_is_no_path(tmp_path: Path, name: str) -> None:
    assert load_recipe(write(tmp_path, f"  chat_template: {name}\n")).data.chat_template == name


def test_arguments_keep_their_types_and_a_date_becomes_text(tmp_path: Path) -> None:
    lines = (
        "  template_arguments:\n    enable_thinking: false\n    budget: 3\n    share: 0.5\n"
        "    reasoning_effort: low\n    date_string: 2025-06-30\n"
    )
    arguments = load_recipe(write(tmp_path, lines)).data.template_arguments
    assert arguments == {
        "enable_thinking": False,
        "budget": 3,
        "share": 0.5,
        "reasoning_effort": "low",
        "date_string": "2025-06-30",
    }
    assert arguments["enable_thinking"] is False and type(arguments["budget"]) is int


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "eos_token"])
def test_a_variable_of_the_renderer_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"template_arguments.{name} is set by the renderer"):
        with_arguments(**{name: True})


@pytest.mark.parametrize("text", ["false", "True"])
def test_a_quoted_truth_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"set {text.lower()} without quotes"):
        with_arguments(enable_thinking=text)
