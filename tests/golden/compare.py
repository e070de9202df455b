"""Golden loss curves in full precision: what the trainer computed when they were written, step by step.

    python -m tests.golden.compare            every curve against its file; exit code 1 unless identical
    python -m tests.golden.compare --write    write them anew, after a change that is meant to be numerical

One worker, one thread, fp32. The same processor with the same torch gives the same bits; another may differ in the last ones,
so `made_on.json` says where the curves were written, and there the tests ask for every bit.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.config.load import load_recipe
from pipelines.storage import Store
from tests.chaos.harness import Alone, plan_of, prepared_dataset

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MADE_ON = "made_on.json"
CURVES: dict[str, tuple[str, list[str]]] = {
    "lora": ("pocket_lora_person_cpu.yaml", []),
    "qlora_rslora_dropout": (
        "pocket_lora_pirate_cpu.yaml",
        ["model.quantization=nf4", "lora.rslora=true", "lora.dropout=0.1", "train.schedule=linear"],
    ),
}


def curves(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Train every curve's recipe for twelve steps on the fixed small dataset; loss and gradient norm by step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.preload"])
    process = context.Process(target=_train, args=(str(folder),))
    process.start()
    process.join()
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in CURVES}


def golden() -> dict[str, list[dict[str, float]]]:
    """The curves as they were written."""
    return {name: json.loads((HERE / f"{name}.json").read_text()) for name in CURVES}


def this_machine() -> dict[str, str]:
    """What decides the last bits: the processor with what it can do, and the library that computes."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    known = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags = " ".join(sorted(known.get("flags", known.get("Features", "")).split()))
    processor = f"{platform.machine()} {known.get('model name', '')} {hashlib.sha256(flags.encode()).hexdigest()[:12]}"
    return {"processor": processor, "torch": version("torch")}


def same_machine() -> bool:
    """Whether the curves in the repository were written on a machine like this one."""
    return json.loads((HERE / MADE_ON).read_text()) == this_machine()


def largest_difference(
    name: str, now: list[dict[str, float]], then: list[dict[str, float]]
) -> tuple[float, int, str]:
    """The largest relative difference of a curve with its step and number; infinite when the lengths differ."""
    if len(now) != len(then):
        return float("inf"), min(len(now), len(then)) + 1, "length"
    pairs = (
        (abs(a[k] - b[k]) / abs(b[k]), i + 1, k)
        for i, (a, b) in enumerate(zip(now, then, strict=True))
        for k in b
    )
    return max(pairs)


def _train(folder: str) -> None:
    import torch
    import torch.distributed as dist

    from pipelines.train.track.metrics_log import read_metrics
    from pipelines.train.worker import train_rank

    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=0, world_size=1)
    for name, (file, changes) in CURVES.items():
        recipe: Any = load_recipe(
            ROOT / "recipes" / file, [*changes, "train.max_steps=12", "train.trackers=[]"]
        )
        store = Store(f"{folder}/{name}")
        plan = plan_of(recipe, store, prepared_dataset(store, recipe.model.base))
        train_rank(plan, torch.device("cpu"), Alone())
        steps = [
            {key: line[key] for key in ("loss", "grad_norm")} for line in read_metrics(plan.folder)
        ]
        Path(folder, f"{name}.json").write_text(json.dumps(steps, indent=1) + "\n")
    os._exit(0)


def main() -> int:
    """Compare, or write with --write; the exit code says whether every curve is identical."""
    with tempfile.TemporaryDirectory() as folder:
        now = curves(Path(folder))
    if "--write" in sys.argv[1:]:
        for name, steps in now.items():
            (HERE / f"{name}.json").write_text(json.dumps(steps, indent=1) + "\n")
        (HERE / MADE_ON).write_text(json.dumps(this_machine(), indent=1) + "\n")
        return 0
    if not same_machine():
        print("written on another processor or with another torch: the last digits may differ")
    worst = 0.0
    for name, then in golden().items():
        difference, step, key = largest_difference(name, now[name], then)
        print(
            f"{name}: "
            + (
                "identical"
                if not difference
                else f"{difference:.3g} relative at step {step} ({key})"
            )
        )
        worst = max(worst, difference)
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
