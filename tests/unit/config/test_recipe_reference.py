"""The generated pages: docs/recipe.md and the JSON schema say what the schema's code says."""

from __future__ import annotations

import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.config.errors import valid_keys
from pipelines.config.recipe import Recipe
from pipelines.config.recipe_reference import (
    REGENERATE,
    SCHEMA_FILE,
    json_schema,
    json_schema_text,
    reference_markdown,
    sections,
)

ROOT = Path(__file__).resolve().parents[3]
ADVICE = f"out of date: run `{REGENERATE}`"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_page_of_recipe_keys_is_true() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text() == reference_markdown(), ADVICE


def test_the_json_schema_that_ships_with_the_package_is_true() -> None:
    shipped = importlib.resources.files("pipelines.config") / SCHEMA_FILE
    assert shipped.read_text() == json_schema_text(), ADVICE
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_every_key_is_described_in_a_sentence() -> None:
    keys = [key for section in sections() for key in section.keys]
    own_sections = {section.name for section in sections()} - {"data.sources"}
    assert {key.name for key in keys} == set(valid_keys(Recipe)) - own_sections
    for key in keys:
        sentence = key.description
        assert sentence.endswith(".") and len(sentence) > 15, key.name
        assert sentence[0].isupper() or sentence.split()[0] in ("lora", "nf4", "8bit"), key.name
    for section in sections():
        assert section.description.endswith("."), section.name


def test_bounds_and_defaults_are_shown() -> None:
    keys = {key.name: key for section in sections() for key in section.keys}
    assert (keys["lora.r"].bounds, keys["lora.r"].default) == (">= 1, <= 1024", "8")
    assert (keys["train.warmup_share"].bounds, keys["train.warmup_share"].type) == (
        ">= 0, < 1",
        "number",
    )
    assert keys["data.sources"].default == "" and keys["train.patience"].default == "empty"
    assert keys["model.dtype"].type == "`auto`, `fp32`, `bf16`, `fp16`"
    assert keys["resources.workers"].type == "integer or list of integers"
    assert keys["registry.model"].default == "the recipe's name"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_shipped_recipe_fits_the_schema_that_its_first_line_names(path: Path) -> None:
    text = path.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named, f"{path.name}: the first line names no schema for editors"
    schema = json.loads((path.parent / named[1]).read_text())
    jsonschema.validate(yaml.safe_load(text), schema)


MINIMAL: dict[str, Any] = {"name": "a", "model": {"base": "b"}, "data": {"sources": ["c"]}}


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"data": {"sources": "c.jsonl"}}, True),
        ({"data": {"sources": [{"path": "c", "split": "train"}, "d"]}}, True),
        ({"registry": {"alias": "staging"}}, True),
        ({"lora": {"targets": ["q_proj"]}, "train": {"zero": "auto"}}, True),
        ({"data": {"sources": []}}, False),
        ({"data": {"sources": [{"path": "c", "formt": "alpaca"}]}}, False),
        ({"lora": {"rr": 8}}, False),
        ({"lora": {"r": 0}}, False),
        ({"train": {"zero": 4}}, False),
        ({"trian": {}}, False),
        ({"name": "a b"}, False),
    ],
)
def test_the_json_schema_accepts_what_the_recipe_accepts(
    changes: dict[str, Any], fits: bool
) -> None:
    data = MINIMAL | changes
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(data) == fits
    if fits:
        Recipe.model_validate(data)
    else:
        with pytest.raises(ValueError, match="validation error"):
            Recipe.model_validate(data)
