"""A recipe file with only the required keys, and the text of its refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config.load import load_recipe
from pipelines.core.errors import UserError

MINIMAL = """
name: tiny
model: {base: org/base}
data: {sources: [rows.jsonl]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recipe file with the three required keys."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(MINIMAL)
    return tmp_path / "recipes" / "tiny.yaml"


@pytest.fixture
def refusal() -> Callable[..., str]:
    """The error of a recipe with overrides, without its origin; always one line."""

    def refused(path: Path, *overrides: str) -> str:
        with pytest.raises(UserError) as error:
            load_recipe(path, overrides)
        message = str(error.value)
        assert "\n" not in message and message.startswith(str(path))
        origin = " ".join([str(path), *(f"-s {override}" for override in overrides)])
        return message.removeprefix(origin).removeprefix(": ")

    return refused
