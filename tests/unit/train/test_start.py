"""User errors that are found before any worker starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.data.stage import prepare_step
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.storage import Store
from pipelines.train.stage import check_startable
from tests.stages import run_step, serial_tokenize


def recipe(base: str, **sections: Any) -> Recipe:
    model = {"base": base, **sections.pop("model", {})}
    return parse_recipe(
        {"name": "start", "model": model, "data": {"sources": ["none.json"]}, **sections}
    )


def test_fp16_is_refused_unless_the_recipe_asks_for_gpus(pocket_base: str, store: Store) -> None:
    with pytest.raises(
        UserError, match=r"fp16 trains on a GPU only.*gpus_per_worker is 0: set model.dtype=bf16"
    ):
        check_startable(recipe(pocket_base, model={"dtype": "fp16"}), store)
    check_startable(
        recipe(pocket_base, model={"dtype": "fp16"}, resources={"gpus_per_worker": 1}), store
    )


def test_a_dry_run_refuses_a_recipe_that_the_run_would_refuse(
    pocket_base: str, tmp_path: Path
) -> None:
    from jobs.views.dry_run import dry_run

    with pytest.raises(UserError, match="fp16 trains on a GPU only"):
        next(dry_run(Inputs(recipe(pocket_base, model={"dtype": "fp16"})), Store(tmp_path)))
    with pytest.raises(UserError, match="not to an object store yet"):
        next(dry_run(Inputs(recipe(pocket_base)), Store("memory://somewhere")))


def test_a_run_without_held_out_samples_ends_before_it_trains(
    pocket_base: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.graphs.run import run_recipe

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Say a", "output": "a"}\n')
    data = {"sources": [str(rows)], "heldout_share": 0, "row_tokens": 128}
    inputs = Inputs(recipe(pocket_base, data=data))
    run_step(prepare_step(inputs, serial_tokenize), store, SILENT)
    with pytest.raises(UserError, match=r"no held-out sample.*set data.heldout_share above 0"):
        run_recipe(inputs, Runner(store, SILENT, lambda: pytest.fail("Ray was started")))


@pytest.mark.parametrize("key", ["dora", "rank_pattern", "alpha_pattern", "modules_to_save"])
def test_a_run_refuses_at_once_an_adapter_that_the_registry_would_refuse_at_the_end(
    key: str, pocket_base: str, store: Store
) -> None:
    from jobs.graphs.run import run_recipe

    value = {"dora": True, "modules_to_save": ["lm_head"]}.get(key, {"q_proj": 4})
    with pytest.raises(
        UserError, match=rf"lora.{key} trains .*unset it, or use `loraforge prepare`, `train` and"
    ):
        run_recipe(Inputs(recipe(pocket_base, lora={key: value})), Runner(store, SILENT))
