"""Golden loss curves: every bit that the trainer computed when they were written, step by step.

    python -m tests.golden.compare            compare each curve with its file; exit code 1 unless
                                              they are identical
    python -m tests.golden.compare --write    write them again, after an intended numerical change

One worker, one thread, fp32. The same processor with the same torch computes the same bits; another
processor may round differently. `made_on.json` names the processor that wrote the curves, and only
there the test compares every bit.
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
from tests.small_run import NullChannel, prepared_dataset, worker_args

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
    """Train each curve's recipe for twelve steps on the fixed small dataset.

    Returns the loss and gradient norm of each step.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.preload"])
    process = context.Process(target=_train, args=(str(folder),))
    process.start()
    process.join()
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in CURVES}


def golden() -> dict[str, list[dict[str, float]]]:
    """The curves in the repository."""
    return {name: json.loads((HERE / f"{name}.json").read_text()) for name in CURVES}


def this_machine() -> dict[str, str]:
    """What decides the last bits: the processor with its instruction sets, and torch."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags = " ".join(sorted(fields.get("flags", fields.get("Features", "")).split()))
    flags_digest = hashlib.sha256(flags.encode()).hexdigest()[:12]
    processor = f"{platform.machine()} {fields.get('model name', '')} {flags_digest}"
    return {"processor": processor, "torch": version("torch")}


def same_machine() -> bool:
    """Whether the curves in the repository were written on this kind of machine."""
    return json.loads((HERE / MADE_ON).read_text()) == this_machine()


def largest_difference(
    name: str, now: list[dict[str, float]], then: list[dict[str, float]]
) -> tuple[float, int, str]:
    """A curve's largest relative difference, its step and key; infinite if lengths differ."""
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
    for name, (file, overrides) in CURVES.items():
        recipe: Any = load_recipe(
            ROOT / "recipes" / file, [*overrides, "train.max_steps=12", "train.trackers=[]"]
        )
        store = Store(f"{folder}/{name}")
        args = worker_args(recipe, store, prepared_dataset(store, recipe.model.base))
        train_rank(args, torch.device("cpu"), NullChannel())
        steps = [
            {key: line[key] for key in ("loss", "grad_norm")} for line in read_metrics(args.folder)
        ]
        Path(folder, f"{name}.json").write_text(json.dumps(steps, indent=1) + "\n")
    os._exit(0)


def main() -> int:
    """Compare, or write with --write; exit code 0 if every curve is identical."""
    with tempfile.TemporaryDirectory() as folder:
        now = curves(Path(folder))
    if "--write" in sys.argv[1:]:
        for name, steps in now.items():
            (HERE / f"{name}.json").write_text(json.dumps(steps, indent=1) + "\n")
        (HERE / MADE_ON).write_text(json.dumps(this_machine(), indent=1) + "\n")
        return 0
    if not same_machine():
        print("the curves are from another processor or torch: the last digits may differ")
    worst = 0.0
    for name, then in golden().items():
        difference, step, key = largest_difference(name, now[name], then)
        text = f"{difference:.3g} relative at step {step} ({key})" if difference else "identical"
        print(f"{name}: {text}")
        worst = max(worst, difference)
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
