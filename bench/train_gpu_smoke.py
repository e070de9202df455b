"""LoRA at ZeRO-1, 2 and 3 and QLoRA at ZeRO-2 on two GPUs, through Ray Train and NCCL, with one worker killed on the way.

    python -m bench.train_gpu_smoke [--json] [--steps 20] [--row-tokens 8192] [--layers 32]

The base has Llama-3-8B's shape and random weights, written once to memory (/dev/shm); the rows are random tokens cut
like alpaca's samples. Checked: the losses of ZeRO-2, whose worker is killed after the first checkpoint, agree with those
of ZeRO-1 and ZeRO-3 at every step; every arm ends with a verified adapter. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import SILENT, PreparedDataset, SplitStats
from pipelines.recipe import Recipe, parse_recipe
from pipelines.storage import Store

ROOT = Path("/dev/shm/loraforge-smoke")
ARMS = {
    "lora zero1": (1, "none"),
    "lora zero3": (3, "none"),
    "qlora zero2": (2, "nf4"),
    "lora zero2 killed": (2, "none"),
}
VOCABULARY, AGREE = 128_256, 1e-3


@dataclass(frozen=True)
class Feed:
    """Random packed rows, the same for the same index; leaves the worker's process id where the killer finds it."""

    folder: Path
    split: str

    def batches(self, order: np.ndarray, batch_size: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Rows `order[start:]`, `batch_size` at a time."""
        import torch.distributed as dist

        (ROOT / f"pid-{dist.get_rank()}").write_text(str(os.getpid()))
        size = pickle.loads((self.folder / "size.pickle").read_bytes())
        for at in range(start, len(order), batch_size):
            rows = [random_row(int(index), size) for index in order[at : at + batch_size]]
            yield {key: [row[key] for row in rows] for key in rows[0]}


def random_row(index: int, size: int) -> dict[str, Any]:
    """One pack of samples of about 200 tokens, the last two thirds of each trained."""
    random = np.random.default_rng(index)
    cuts = np.cumsum(np.clip(random.lognormal(5.15, 0.55, size // 16), 16, 1000).astype(np.int64))
    ends = np.append(cuts[cuts < size], size)
    lengths = np.diff(ends, prepend=0)
    within = np.arange(size) - np.repeat(ends - lengths, lengths)
    weights = (within >= np.repeat(lengths, lengths) // 3).astype(np.float32)
    ids = random.integers(0, VOCABULARY, size, dtype=np.int32)
    return {"input_ids": ids, "loss_weights": weights, "sample_lengths": lengths, "sample_ids": [str(index)]}


def write_base(folder: Path, layers: int) -> None:
    """Random bf16 weights of Llama-3-8B's shape, drawn on the GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def prepared_rows(store: Store, row_tokens: int) -> PreparedDataset:
    """A prepared artifact that says only how long a row is."""
    with store.writing("prepared", "0" * 64) as draft:
        (draft.path / "size.pickle").write_bytes(pickle.dumps(row_tokens))
    assert draft.ref is not None
    train, heldout = SplitStats(64, 64, 0, 0), SplitStats(2, 2, 0, 0)
    return PreparedDataset(draft.ref, row_tokens, train, heldout, {}, "", "")


def recipe_of(zero: int, quantization: str, steps: int, row_tokens: int) -> Recipe:
    """r = 16 on all seven linears, one row a GPU and step."""
    return parse_recipe(
        {
            "name": "smoke",
            "model": {"base": str(ROOT / "base"), "dtype": "bf16", "quantization": quantization},
            "lora": {"r": 16, "alpha": 32},
            "data": {"sources": ["none.json"], "row_tokens": row_tokens},
            "train": {
                "zero": zero, "max_steps": steps, "global_batch": 2, "lr": 2e-4, "save_every": steps // 2, "trackers": [],
                "hang_timeout_s": 300,
            },
            "resources": {"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 4},
        }
    )  # fmt: skip


class Killer(threading.Thread):
    """SIGKILLs rank 1 once, when the run's metrics show `after` steps."""

    def __init__(self, runs: Path, after: int) -> None:
        super().__init__(daemon=True)
        self._runs, self._after, self.killed_at = runs, after, 0.0

    def run(self) -> None:
        """Wait for the step and kill."""
        while not self.killed_at:
            time.sleep(0.2)
            for metrics in self._runs.glob("*/metrics.jsonl"):
                if metrics.read_text().count("\n") >= self._after:
                    os.kill(int((ROOT / "pid-1").read_text()), signal.SIGKILL)
                    self.killed_at = time.monotonic()


def run_arm(name: str, steps: int, row_tokens: int) -> dict[str, Any]:
    """Train one arm from nothing to its finished run; its losses by step and figures."""
    from pipelines.train import ray_train

    # Hashing 16 GB of random weights for each arm proves nothing here.
    ray_train.base_fingerprint = lambda base, revision=None: "0" * 64  # type: ignore[assignment]
    zero, quantization = ARMS[name]
    store = Store(ROOT / name.replace(" ", "-"))
    started = time.monotonic()
    killer = Killer(Path(store.uri) / "runs", steps // 2 + 2) if "killed" in name else None
    if killer:
        killer.start()
    recipe, prepared = recipe_of(zero, quantization, steps, row_tokens), prepared_rows(store, row_tokens)
    run = ray_train.train(recipe, store, prepared, Feed, SILENT)
    lines = ray_train.read_metrics(Path(store.uri) / "runs" / run.run_id[:12])
    late = lines[len(lines) // 2 + 1 :]
    return {
        "arm": name,
        "losses": [line["loss"] for line in lines],
        "tokens_per_s_gpu": float(np.median([line["tokens_per_s"] for line in late])) / 2,
        "step_s": float(np.median([line["step_s"] for line in late])),
        "peak_gb": max(line["memory_bytes"] for line in lines) / 1e9,
        "wall_s": time.monotonic() - started,
        "adapter": (run.best.ref.name, run.num_steps),
        "killed": bool(killer and killer.killed_at),
    }


def main() -> int:
    """Run the arms, print the table, check; 0 when all is well or the machine has not two GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--row-tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    given = parser.parse_args()
    import torch

    if torch.cuda.device_count() < 2:
        print("bench.train_gpu_smoke: skipped, it needs two GPUs")
        return 0
    from jobs.cluster import ray_cluster

    shutil.rmtree(ROOT, ignore_errors=True)
    started = time.monotonic()
    write_base(ROOT / "base", given.layers)
    print(f"base written in {time.monotonic() - started:.0f} s; torch {torch.__version__}", flush=True)
    results = []
    with ray_cluster():
        for name in given.arms:
            result = run_arm(name, given.steps, given.row_tokens)
            results.append(result)
            print(json.dumps(result), flush=True)
    shutil.rmtree(ROOT, ignore_errors=True)
    return report(results, given.json)


def report(results: list[dict[str, Any]], as_json: bool) -> int:
    """The table, or one JSON object a bar; 1 when losses disagree or the kill did not happen."""
    by_name = {result["arm"]: result for result in results}
    print(f"{'arm':<20}{'first':>9}{'last':>9}{'tokens/s/GPU':>14}{'step s':>8}{'peak GB':>9}{'wall s':>8}")
    for r in results:
        figures = f"{r['tokens_per_s_gpu']:>14,.0f}{r['step_s']:>8.2f}{r['peak_gb']:>9.1f}{r['wall_s']:>8.0f}"
        print(f"{r['arm']:<20}{r['losses'][0]:>9.4f}{r['losses'][-1]:>9.4f}{figures}")
    failed = False
    two = by_name.get("lora zero2 killed")
    for name in ("lora zero1", "lora zero3"):
        if two and name in by_name:
            pairs = zip(two["losses"], by_name[name]["losses"], strict=True)
            worst = max(abs(a - b) / abs(b) for a, b in pairs)
            failed |= worst > AGREE or not two["killed"]
            bar = {"bar": f"largest difference of a step's loss, zero2 killed once and {name}", "value": worst}
            print(json.dumps(bar | {"at_most": AGREE, "unit": "relative"}) if as_json else f"{bar['bar']}: {worst:.2e}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
