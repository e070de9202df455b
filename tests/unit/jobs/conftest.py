"""A recipe and a dataset for tests of promotion."""

from __future__ import annotations

import pytest

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import (
    ArtifactRef,
    PreparedDataset,
    SplitStats,
)

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
SOURCES = {"source:a.json": "a" * 64, "source:b.json": "b" * 64}


@pytest.fixture
def recipe(pocket_base: str) -> Recipe:
    data = {"name": "sailor", "model": {"base": pocket_base}, "data": {"sources": ["unused.json"]}}
    return parse_recipe({**data, "gate": {"margin": 0.1}})


@pytest.fixture
def prepared() -> PreparedDataset:
    ref = ArtifactRef("prepared", "k" * 64, "d" * 64, "nowhere", SOURCES)
    return PreparedDataset(ref, 64, SplitStats(1, 1, 1, 1), SplitStats(1, 1, 1, 1), {}, "", "")
