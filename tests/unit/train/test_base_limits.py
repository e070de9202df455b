"""Rows beyond a base's embeddings or positions are refused before Ray starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.recipe import parse_recipe
from pipelines.config.schema import ModelConfig
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.data.stage import prepare_step
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.storage import Store
from pipelines.train.base_limits import read_base_limits
from pipelines.train.stage import train_step
from tests.small_run import PickledFeed
from tests.stages import serial_tokenize


def base_with(folder: Path, **values: Any) -> str:
    """A base that is a config.json with these values alone."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **values}))
    return str(folder)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"vocab_size": 100, "max_position_embeddings": 512}, (100, 512)),
        ({"vocab_size": 100, "n_positions": 1024}, (100, 1024)),
        ({"text_config": {"vocab_size": 7, "max_position_embeddings": 64}}, (7, 64)),
        ({"vocab_size": 100}, (100, None)),
        (
            {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}},
            (None, 16384),
        ),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {
                    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
                },
            },
            (None, 131072),
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192,
                },
            },
            (None, 131072),
        ),
        (
            {
                "max_position_embeddings": 512,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            (None, 4096),
        ),
    ],
)  # fmt: skip
def test_limits_are_read_from_the_configuration(
    values: dict[str, Any], expected: tuple[int | None, int | None], tmp_path: Path
) -> None:
    limits = read_base_limits(ModelConfig(base=base_with(tmp_path / "base", **values)))
    assert (limits.num_embeddings, limits.num_positions) == expected


def test_the_limits_themselves_are_allowed(tmp_path: Path) -> None:
    base = base_with(tmp_path / "b", vocab_size=100, max_position_embeddings=32)
    limits = read_base_limits(ModelConfig(base=base))
    limits.check(99, 32, "rows")
    with pytest.raises(UserError, match=r"rows: token id 100 is beyond the 100 embeddings"):
        limits.check(100, 32, "rows")
    with pytest.raises(UserError, match=r"33 tokens, .* knows 32 positions .*row_tokens=32 or"):
        limits.check(99, 33, "rows")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 100}, r"token id \d+ is beyond the 100 embeddings"),
        ({"max_position_embeddings": 20}, r"a sample has \d+ tokens, and .* knows 20 positions"),
    ],
)
def test_training_refuses_a_prepared_dataset_before_ray_starts(
    values: dict[str, int], message: str, pocket_base: str, tmp_path: Path
) -> None:
    base = shutil.copytree(pocket_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | values))
    rows = [{"instruction": f"Write {word}", "output": word * 9} for word in ("ab", "qZ", "~{")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    recipe = parse_recipe(
        {
            "name": "limits",
            "model": {"base": str(base)},
            "data": {
                "sources": [str(tmp_path / "rows.json")],
                "row_tokens": 128,
                "heldout_share": 0,
            },
        }
    )
    inputs = Inputs(recipe)
    dataset = prepare_step(inputs, serial_tokenize)
    runner = Runner(Store(tmp_path / "store"), SILENT, lambda: pytest.fail("Ray was started"))
    runner.run(dataset)
    with pytest.raises(UserError, match=message):
        runner.run(train_step(inputs, dataset, PickledFeed))
