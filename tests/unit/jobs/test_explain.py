"""`loraforge explain`: every section and key of a recipe can be read in the terminal."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from jobs.verbs.explain import explain
from pipelines.config.errors import valid_keys
from pipelines.config.recipe import Recipe
from pipelines.config.recipe_reference import sections
from pipelines.core.errors import UserError

app = typer.Typer()
app.command()(explain)


def explained(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_without_a_topic_every_section_is_listed() -> None:
    output = explained()
    for section in sections():
        assert f"{section.name or '(no section)'}: {section.description}" in output


@pytest.mark.parametrize("name", [section.name for section in sections() if section.name])
def test_a_section_shows_its_keys_with_their_meaning(name: str) -> None:
    output = explained(name)
    section = next(section for section in sections() if section.name == name)
    for key in section.keys:
        assert key.name in output and key.description in output


@pytest.mark.parametrize("key", valid_keys(Recipe))
def test_every_key_can_be_explained(key: str) -> None:
    assert key in explained(key)


def test_a_key_shows_type_bounds_default_and_meaning() -> None:
    assert explained("lora.r") == (
        "\nlora.r  integer; >= 1, <= 1024; default 8\n"
        "    Rank of the adapter: the number of rows of A.\n"
    )
    assert "required" in explained("model.base")
    assert "[q_proj, v_proj]" in explained("lora.targets")


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("lora.rr", "did you mean lora.r"),
        ("dora", "did you mean lora.dora?"),
        ("learning_rate", "here it is train.lr"),
        ("trian", "did you mean train?"),
        ("qqqqqqq", "sections: model, lora, data, "),
    ],
)
def test_an_unknown_topic_comes_with_the_nearest_one(topic: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"no section or key is named {topic}; ") as error:
        explained(topic)
    assert hint in str(error.value)
