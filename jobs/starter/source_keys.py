"""The source of a starter recipe, with the keys that `loraforge init --source` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines.config.errors import problems_of
from pipelines.config.schema import SourceConfig
from pipelines.core.errors import UserError


def source_of(path: str, keys: Sequence[str]) -> SourceConfig:
    """The source at a path, with keys that are each `KEY: VALUE` in YAML.

    Raises UserError naming `--source` for text that is no such pair, and for a wrong key or value.
    """
    values: dict[str, Any] = {}
    for text in keys:
        try:
            pair = yaml.safe_load(text)
        except yaml.YAMLError:
            pair = None
        if not isinstance(pair, dict):
            raise UserError(f"--source {text}: expected 'KEY: VALUE', as 'encoding: windows-1252'")
        values |= pair
    try:
        return SourceConfig.model_validate({**values, "path": path})
    except ValidationError as error:
        problems = problems_of(error, SourceConfig)
        raise UserError(f"--source {'; '.join(map(str, problems))}") from error
