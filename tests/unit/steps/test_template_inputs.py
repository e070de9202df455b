"""The chat template and its arguments as inputs of a recipe: what a dataset's key depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.config.recipe import parse_recipe
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.errors import UserError
from pipelines.data.stage import prepare_step
from pipelines.sources.hashes import FileHashes
from pipelines.steps.inputs import Inputs

READS_TONE = "{% if tone is defined %}{{ tone }}{% endif %}"


@pytest.fixture
def inputs_of(tmp_path: Path, pocket_base: str):
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "output": "b"}]')

    def make(**data: Any) -> Inputs:
        sections = {"sources": [str(tmp_path / "rows.json")], **data}
        recipe = parse_recipe({"name": "x", "model": {"base": pocket_base}, "data": sections})
        return Inputs(recipe, FileHashes(tmp_path / "hashes"))

    return make


def test_the_key_covers_the_templates_content_and_not_its_path(
    inputs_of, tmp_path: Path, pocket_base: str
) -> None:
    own = Path(pocket_base, "chat_template.jinja").read_text()
    contents = {"same": own, "copy": own, "longer": own + "{# #} "}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    keys = {
        name: prepare_step(inputs_of(chat_template=str(tmp_path / name))).key() for name in contents
    }
    assert keys["same"] == keys["copy"] == prepare_step(inputs_of()).key()
    assert keys["longer"] != keys["same"]
    before = keys["copy"]
    (tmp_path / "copy").write_text(own + " ")
    assert prepare_step(inputs_of(chat_template=str(tmp_path / "copy"))).key() != before


def test_the_key_covers_the_arguments_and_their_types(
    inputs_of, tmp_path: Path, pocket_base: str
) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(READS_TONE + Path(pocket_base, "chat_template.jinja").read_text())
    keys = {
        prepare_step(inputs_of(chat_template=str(path), template_arguments=arguments)).key()
        for arguments in ({}, {"tone": True}, {"tone": 1}, {"tone": "1"}, {"tone": False})
    }
    assert len(keys) == 5


def test_a_bad_choice_shows_before_anything_is_built(inputs_of) -> None:
    with pytest.raises(UserError, match="tone does nothing"):
        prepare_step(inputs_of(template_arguments={"tone": 1})).key()
    with pytest.raises(UserError, match=r"data.chat_template=/nowhere.*no such file"):
        prepare_step(inputs_of(chat_template="/nowhere")).key()
    inputs = inputs_of(chat_template="alpaca")
    assert inputs.template.digest == inputs.template_digest
    assert inputs_of().template == TemplateChoice()
