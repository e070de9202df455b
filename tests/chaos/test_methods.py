"""Every training method trains, and plain libraries load its saved weights to the same loss."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.plan.shape import shape_of
from pipelines.storage import Store
from pipelines.train.checkpoint.files import count_trainable_parameters, list_checkpoints
from pipelines.train.track.metrics_log import read_metrics
from tests.plain import plain_loss
from tests.small_run import (
    NullChannel,
    PickledFeed,
    prepared_dataset,
    recipe_for,
    worker_args,
)

NF4 = {"quantization": "nf4"}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"lora": {"rslora": True}},
    "dora": {"lora": {"dora": True}},
    "pissa": {"lora": {"init": "pissa"}},
    "eva": {"lora": {"init": "eva"}},
    "lora_plus": {"lora": {"lr_ratio": 4.0}, "train": {"lr": 2e-3}},
    "patterns": {"lora": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 6.0}}},
    "modules_to_save": {"lora": {"modules_to_save": ["lm_head"]}},
    "full": {"train": {"method": "full", "lr": 3e-4, "zero": 1}},
    "nf4": {"model": NF4},
    "nf4_plain": {
        "model": {
            **NF4,
            "double_quantization": False,
            "compute_dtype": "bf16",
            "storage_dtype": "uint8",
        }
    },
    "nf4_loftq": {"model": NF4, "lora": {"init": "loftq"}},
    "nf4_dora": {"model": NF4, "lora": {"dora": True}},
    "int8": {"model": {"quantization": "int8"}},
    "adamw_8bit": {"train": {"optimizer": "adamw_8bit", "zero": 1}},
    "paged_adamw_8bit_zero0": {"train": {"optimizer": "paged_adamw_8bit", "zero": 0}},
    "paged_adamw_zero2": {"train": {"optimizer": "paged_adamw", "zero": 2}},
    "bf16": {"model": {"dtype": "bf16"}},
    "bf16_zero3": {"model": {"dtype": "bf16"}, "train": {"zero": 3}},
    "checkpointing_full": {"train": {"gradient_checkpointing": "full"}},
    "checkpointing_selective": {"train": {"gradient_checkpointing": "selective"}},
    "offload_optimizer": {"train": {"offload": "optimizer"}},
    "offload_parameters": {"train": {"zero": 3, "offload": "parameters"}},
    "auto": {"train": {"zero": "auto", "offload": "auto", "gradient_checkpointing": "auto"}},
}


def _train_all(base: str, root: str) -> None:
    """Train every method in turn on one rank, in a process of its own, and load it with PEFT."""
    import torch
    import torch.distributed as dist

    from pipelines.train.worker import train_rank

    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{root}/meeting", rank=0, world_size=1)
    for name, sections in METHODS.items():
        store = Store(f"{root}/{name}")
        prepared = prepared_dataset(store, base, num_train=6, num_heldout=1)
        train = {
            "epochs": 5,
            "save_every": 30,
            "global_batch": 1,
            "lr": 3e-3,
            **sections.get("train", {}),
        }
        args = worker_args(recipe_for(base, **{**sections, "train": train}), store, prepared)
        train_rank(args, torch.device("cpu"), NullChannel())
        folder = Path(list_checkpoints(store, args.run_id)[0].ref.uri)
        losses = [line["loss"] for line in read_metrics(args.folder)]
        heldout = list_checkpoints(store, args.run_id)[0].metrics["heldout_loss"]
        reloaded = _plain_loss(base, args.recipe.model, folder, store.local_dir(prepared.ref))
        Path(root, f"{name}.json").write_text(json.dumps([losses, heldout, reloaded]))
        shape = shape_of(args.recipe)
        tables = [
            [shape.trainable_by_module, shape.saved_bytes],
            count_trainable_parameters(folder),
        ]
        Path(root, f"{name}-tables.json").write_text(json.dumps(tables))
    os._exit(0)


def _plain_loss(base: str, config: Any, checkpoint: Path, data: Path) -> float:
    """Mean loss over the held-out samples, one at a time, with transformers and PEFT only."""
    import peft
    import transformers

    from pipelines.model.base import load_base

    if (checkpoint / "model").exists():
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint / "model")
    else:
        model = peft.PeftModel.from_pretrained(
            load_base(config, "cpu"), str(checkpoint / "adapter")
        )
    rows = (
        {key: column[0] for key, column in b.items()}
        for b in PickledFeed(data, "heldout").batches(np.arange(1), 1)
    )
    return plain_loss(model, rows)


@pytest.fixture(scope="module")
def outcomes(pocket_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.preload"])
    root = tmp_path_factory.mktemp("methods")
    process = context.Process(target=_train_all, args=(pocket_base, str(root)))
    process.start()
    process.join()
    return root


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_plain_libraries_load_it(name: str, outcomes: Path) -> None:
    losses, heldout, reloaded = json.loads((outcomes / f"{name}.json").read_text())
    assert len(losses) == 30
    assert sum(losses[-6:]) < 0.2 * sum(losses[:6])  # the same six rows, four epochs later
    coarse = name == "int8" or name == "nf4_plain" or name.startswith("bf16")
    assert math.isclose(
        reloaded, heldout, rel_tol=1e-4, abs_tol=1e-3 * losses[0] if coarse else 0
    ), (reloaded, heldout)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_has_the_planned_parameters_and_bytes(name: str, outcomes: Path) -> None:
    """The plan, made without weights, and the checkpoint's files agree on each module."""
    planned, counted = json.loads((outcomes / f"{name}-tables.json").read_text())
    assert counted == planned and sum(counted[0].values()) > 0
