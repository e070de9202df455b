"""Training cases of the GPU tests: all cases of one world size run in turn in the same processes.

Each case writes `NAME.json` next to its store: the metrics of every step, the checkpoint's
metadata, the loss of the saved adapter in plain PEFT, and the losses of the second half when it is
run again from the middle checkpoint; or "error".
"""

from __future__ import annotations

import json
import os
import shutil
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.storage import Store
from pipelines.train.worker import WorkerArgs
from tests.plain import plain_loss
from tests.small_run import (
    NullChannel,
    PickledFeed,
    prepared_dataset,
    recipe_for,
    worker_args,
)

NUM_STEPS = 30
BF16, FP16, NF4 = {"dtype": "bf16"}, {"dtype": "fp16"}, {"dtype": "bf16", "quantization": "nf4"}
TOO_LOUD = {"alpha": 4096.0}
"""Gradients that overflow fp16 at its initial loss scale; Adam is insensitive to their size."""
ONE: dict[str, dict[str, Any]] = {
    "fp32_zero0": {"model": {"dtype": "fp32"}, "train": {"zero": 0}},
    "bf16_zero0": {"model": BF16, "train": {"zero": 0}},
    "bf16_zero3": {"model": BF16, "train": {"zero": 3}},
    "fp16_zero0": {"model": FP16, "train": {"zero": 0}},
    "fp16_zero2": {"model": FP16, "train": {"zero": 2}},
    "fp16_overflow": {"model": FP16, "lora": TOO_LOUD, "train": {"zero": 2, "lr": 1e-6}},
    "nf4_zero2": {"model": NF4, "train": {"zero": 2}},
    "nf4_paged_8bit": {"model": NF4, "train": {"zero": 1, "optimizer": "paged_adamw_8bit"}},
    "fp8_zero2": {"model": {"dtype": "bf16", "quantization": "fp8"}, "train": {"zero": 2}},
    "bf16_checkpointing": {"model": BF16, "train": {"zero": 2, "gradient_checkpointing": "full"}},
}
TWO: dict[str, dict[str, Any]] = {
    "bf16_zero1": {"model": BF16, "train": {"zero": 1}},
    "bf16_zero2": {"model": BF16, "train": {"zero": 2}},
    "bf16_zero3": {"model": BF16, "train": {"zero": 3}},
    "fp16_zero3": {"model": FP16, "train": {"zero": 3}},
    "nf4_zero2": {"model": NF4, "train": {"zero": 2}},
}


def run_cases(
    rank: int,
    base: str,
    folder: str,
    cases: dict[str, dict[str, Any]],
    world_size: int,
    device: str,
) -> None:
    """Run all cases as one rank. `device` is "cuda" or, to debug the cases, "cpu"."""
    import torch
    import torch.distributed as dist

    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world_size)}
    here = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(here)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, f"file://{folder}/meeting-{world_size}", rank=rank, world_size=world_size
    )
    torch.set_num_threads(1)
    for name, sections in cases.items():
        try:
            result = _run(base, Path(folder, name), sections, here)
        except Exception:  # noqa: BLE001  (the process boundary: the test of this case shows it)
            result = {"error": traceback.format_exc()}
        if rank == 0 or "error" in result:
            Path(folder, f"{name}.json").write_text(json.dumps(result))
        if "error" in result and world_size > 1:
            break  # the other rank waits in a collective that this rank will not join
    os._exit(
        0
    )  # the process group's threads sometimes abort a process that leaves by the front door


def _run(
    base: str, folder: Path, sections: dict[str, dict[str, Any]], device: Any
) -> dict[str, Any]:
    import torch.distributed as dist

    from pipelines.train.checkpoint.files import list_checkpoints
    from pipelines.train.track.metrics_log import read_metrics
    from pipelines.train.worker import train_rank

    store = Store(folder)
    if dist.get_rank() == 0:
        prepared_dataset(store, base, num_train=6, num_heldout=2)
    dist.barrier()
    prepared = prepared_dataset(store, base, num_train=6, num_heldout=2)
    train = {
        "epochs": 10,
        "save_every": NUM_STEPS // 2,
        "global_batch": 2,
        "lr": 4e-4,
        "record_samples": False,
    }
    args = worker_args(
        recipe_for(base, **{**sections, "train": {**train, **sections["train"]}}), store, prepared
    )
    train_rank(args, device, NullChannel())
    steps = read_metrics(args.folder)
    last = list_checkpoints(store, args.run_id)[-1]
    facts = dict(store.read(last.ref.uri).metadata)  # type: ignore[union-attr]
    reloaded = _reloaded(args, Path(last.ref.uri), device)
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(last.ref.uri)
    dist.barrier()
    train_rank(args, device, NullChannel())
    again = [line["loss"] for line in read_metrics(args.folder)[NUM_STEPS // 2 :]]
    shown = {
        "step": last.step,
        "updates": facts["updates"],
        "scaler": facts["scaler"],
        **last.metrics,
    }
    return {"steps": steps, "checkpoint": shown, "reloaded": reloaded, "again": again}


def _reloaded(args: WorkerArgs, checkpoint: Path, device: Any) -> float:
    """The held-out loss of the saved adapter, loaded by PEFT onto a base of its own."""
    import peft

    from pipelines.model.base import load_base

    model = peft.PeftModel.from_pretrained(
        load_base(args.recipe.model, str(device)), str(checkpoint / "adapter")
    )
    feed = PickledFeed(args.store.local_dir(args.prepared.ref), "heldout")
    rows = (
        {key: column[0] for key, column in batch.items()}
        for batch in feed.batches(np.arange(args.prepared.heldout.num_rows), 1)
    )
    return plain_loss(model, rows)
