"""What is refused before any worker starts, and what all ranks agree on before their first step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

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


def test_half_precision_that_only_a_gpu_trains_is_refused_where_none_is_asked_for(
    pocket_base: str, store: Store
) -> None:
    with pytest.raises(
        UserError, match=r"fp16 trains on a GPU only.*gpus_per_worker is 0: set model.dtype=bf16"
    ):
        check_startable(recipe(pocket_base, model={"dtype": "fp16"}), store)
    check_startable(
        recipe(pocket_base, model={"dtype": "fp16"}, resources={"gpus_per_worker": 1}), store
    )


def test_a_dry_run_refuses_what_the_run_would(pocket_base: str, tmp_path: Path) -> None:
    from jobs.views.dry_run import dry_run

    with pytest.raises(UserError, match="fp16 trains on a GPU only"):
        next(dry_run(Inputs(recipe(pocket_base, model={"dtype": "fp16"})), Store(tmp_path)))
    with pytest.raises(UserError, match="not to an object store yet"):
        next(dry_run(Inputs(recipe(pocket_base)), Store("memory://somewhere")))


def test_run_without_a_held_out_sample_ends_before_it_trains(
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
def test_run_refuses_at_once_what_the_registry_would_refuse_at_the_end(
    key: str, pocket_base: str, store: Store
) -> None:
    from jobs.graphs.run import run_recipe

    value = {"dora": True, "modules_to_save": ["lm_head"]}.get(key, {"q_proj": 4})
    with pytest.raises(
        UserError, match=rf"lora.{key} trains .*unset it, or use `loraforge prepare`, `train` and"
    ):
        run_recipe(Inputs(recipe(pocket_base, lora={key: value})), Runner(store, SILENT))


def agree(rank: int, folder: str) -> None:
    import torch.distributed as dist

    from pipelines.train.engine.collectives import all_reduce_min

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    cpu = torch.device("cpu")
    told = [
        all_reduce_min(number, cpu) for number in ((80 << 30) - rank, None, None if rank else 7)
    ]
    torch.save(told, f"{folder}/{rank}")
    dist.barrier()
    os._exit(0)


def test_ranks_plan_for_the_smallest_gpu_among_them(tmp_path: Path) -> None:
    """Planned for its own GPU each, an 80 and a 24 GB card would run different ZeRO stages and wait for each other."""
    spawn(agree, (str(tmp_path),), nprocs=2)
    assert torch.load(tmp_path / "0") == torch.load(tmp_path / "1") == [(80 << 30) - 1, None, 7]
