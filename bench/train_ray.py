"""The training step through Ray Train, Ray Data and NCCL: one GPU against two, ZeRO stages, and a worker killed on the way.

    python -m bench.train_ray [--json] [--steps 24] [--tokens 16384] [--shape 8b] [ARM ...]

Llama-3-8B's shape with random weights, written once to memory (/dev/shm), and packed Parquet rows of Alpaca's lengths that
the product's own feed streams. A rank's step is timed from asking for its row to asking for the next, so that logging and
whatever else happens between steps counts; its rate is the median's, the share of time spent waiting for rows that of all
steps together. The feed reads 32 rows a task, so the share means something from some hundred steps on. The arm plain is bench.train's loop without Ray, in the same run. Checked:
tokens/s of two GPUs over one, of Ray over plain, of ZeRO-3 over ZeRO-2; the share of time spent waiting; and
that the losses of all two-GPU arms agree. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench._measure import Measure, show
from bench._shapes import SHAPES, random_model, random_row
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import PreparedDataset, SplitStats
from pipelines.core.progress import SILENT
from pipelines.packed.feed import RowFeed
from pipelines.packed.format import row_schema
from pipelines.storage import Store

ROOT = Path("/dev/shm/loraforge-bench")
ARMS: dict[str, tuple[int, int, str]] = {
    "plain": (1, 2, "none"),
    "one": (1, 2, "none"),
    "two": (2, 2, "none"),
    "two-zero1": (2, 1, "none"),
    "two-zero3": (2, 3, "none"),
    "two-qlora": (2, 2, "nf4"),
    "two-killed": (2, 2, "none"),
}
"""Workers, ZeRO stage and quantization."""
RATIOS = (
    ("two", "one", 1.95),
    ("two-zero3", "two", 0.75),
    ("one", "plain", 0.99),
    ("two-qlora", "two", 0.95),
)
"""Tokens a second of one arm over another's, at least."""
SAME_LOSS = ("two", "two-zero1", "two-zero3", "two-killed")
WARM_UP, AGREE = 5, 1e-3


class TimedFeed(RowFeed):
    """Leaves the worker's process id where the killer finds it, and the time of every request for a row."""

    def batches(
        self, order: np.ndarray, batch_size: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """As RowFeed's."""
        import torch.distributed as dist

        here = self.folder.parents[1]
        (here / f"pid-{dist.get_rank()}").write_text(str(os.getpid()))
        with (here / f"asked-{self.split}-{dist.get_rank()}").open("w") as asked:
            for batch in super().batches(order, batch_size, start):
                asked.write(f"{time.perf_counter()}\n")
                asked.flush()
                yield batch


def prepared_rows(store: Store, tokens: int, rows: int, vocabulary: int) -> PreparedDataset:
    """A prepared artifact of random rows."""
    with store.create_artifact("prepared", "0" * 64) as draft:
        for split, count in (("train", rows), ("heldout", 2)):
            table = pa.Table.from_pylist(
                [random_row(i, tokens, vocabulary) for i in range(count)], row_schema(tokens)
            )
            pq.write_table(table, draft.path / f"{split}-00000.parquet", row_group_size=2)
    assert draft.ref is not None
    stats = [SplitStats(count, count, count * tokens, count * tokens) for count in (rows, 2)]
    return PreparedDataset(draft.ref, tokens, stats[0], stats[1], {}, "", "")


def recipe_of(arm: str, given: argparse.Namespace) -> Recipe:
    """r = 16 on all seven linears, one row a GPU and step."""
    workers, zero, quantization = ARMS[arm]
    save_every = given.steps // 2 if arm == "two-killed" else given.steps
    train = {
        "zero": zero, "max_steps": given.steps, "global_batch": workers, "lr": 2e-4, "save_every": save_every,
        "trackers": [], "hang_timeout_s": 300,
    }  # fmt: skip
    return parse_recipe(
        {
            "name": "bench",
            "model": {"base": str(given.base), "dtype": "bf16", "quantization": quantization},
            "lora": {"r": 16, "alpha": 32},
            "data": {"sources": ["none.json"], "row_tokens": given.tokens},
            "train": train,
            "resources": {"workers": workers, "gpus_per_worker": 1, "cpus_per_worker": 4},
        }
    )


def write_base(folder: Path, shape: str) -> None:
    """A shape's random weights, as a base that the product loads."""
    import torch

    random_model(shape, "sdpa", "none", torch.device("cuda:0"), torch.bfloat16).save_pretrained(
        folder
    )
    torch.cuda.empty_cache()


class Killer(threading.Thread):
    """SIGKILLs rank 1 once, when the run's metrics show `after` steps."""

    def __init__(self, store: Path, after: int) -> None:
        super().__init__(daemon=True)
        self._store, self._after, self.killed_at = store, after, 0.0

    def run(self) -> None:
        """Wait for the step and kill."""
        while not self.killed_at:
            time.sleep(0.2)
            for metrics in self._store.glob("runs/*/metrics.jsonl"):
                if metrics.read_text().count("\n") >= self._after:
                    os.kill(int((self._store / "pid-1").read_text()), signal.SIGKILL)
                    self.killed_at = time.monotonic()


def run_arm(arm: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train one arm from nothing to its finished run; its losses by step and figures."""
    # Hashing 16 GB of random weights for each arm proves nothing here.
    from pipelines.train import stage
    from pipelines.train.track.metrics_log import read_metrics

    stage.base_fingerprint = lambda base, revision=None: "0" * 64  # type: ignore[assignment]
    store, workers = Store(ROOT / arm), ARMS[arm][0]
    started = time.monotonic()
    killer = Killer(Path(store.uri), given.steps // 2 + 2) if "killed" in arm else None
    if killer:
        killer.start()
    prepared = prepared_rows(
        store, given.tokens, workers * given.steps, SHAPES[given.shape]["vocab_size"]
    )
    run = stage.train(recipe_of(arm, given), store, prepared, TimedFeed, SILENT)
    lines = read_metrics(Path(store.uri) / "runs" / run.run_id[:12])
    asked = [float(line) for line in (Path(store.uri) / "asked-train-0").read_text().split()]
    took = np.diff(asked)[WARM_UP:]
    assert len(took), "too few steps"
    step_s, late = float(np.median(took)), lines[-len(took) :]
    return {
        "arm": arm,
        "losses": [line["loss"] for line in lines],
        "tokens_per_s": workers * given.tokens / step_s,
        "step_s": step_s,
        "wait": sum(line["data_wait_s"] for line in late) / float(took.sum()),
        "peak_gib": max(line["memory_bytes"] for line in lines) / 2**30,
        "wall_s": time.monotonic() - started,
        "killed": bool(killer and killer.killed_at),
    }


def run_plain(given: argparse.Namespace) -> dict[str, Any]:
    """bench.train's arm of the same rows, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "bench.train",
        "lora-masked",
        "--here",
        "--steps",
        str(given.steps),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    return {**found, "arm": "plain", "losses": [], "wait": float("nan"), "wall_s": 0.0}


def main() -> int:
    """Run the arms, print the table, check; 0 when all is well or the machine has no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--shape", default="8b", choices=list(SHAPES))
    parser.add_argument(
        "--base", type=Path, help="write the base there, or use the one that is there"
    )
    given = parser.parse_args()
    import torch

    names = given.arms or list(ARMS)
    if "plain" in names and (given.shape, given.tokens) != ("8b", 16_384):
        parser.error("the arm plain is of the shape 8b and 16,384 tokens: leave it out for others")
    if torch.cuda.device_count() < max(ARMS[name][0] for name in names):
        print("bench.train_ray: skipped, it needs two GPUs (the arms plain and one: one)")
        return 0
    from jobs.cluster.ray import ray_cluster

    shutil.rmtree(ROOT, ignore_errors=True)
    results = [run_plain(given)] if "plain" in names else []
    given.base = given.base or ROOT / "base"
    if (
        not (given.base / "model.safetensors.index.json").exists()
        and not (given.base / "model.safetensors").exists()
    ):
        write_base(given.base, given.shape)
    with ray_cluster():
        for name in (name for name in names if name != "plain"):
            results.append(run_arm(name, given))
            print(json.dumps(results[-1]), flush=True)
    shutil.rmtree(ROOT, ignore_errors=True)
    return report(results, given.json)


def report(results: list[dict[str, Any]], as_json: bool) -> int:
    """The table and the bars, one JSON object each if asked; 1 when one is missed."""
    by_name = {result["arm"]: result for result in results}
    print(
        f"{'arm':<14}{'tokens/s':>10}{'step s':>8}{'wait':>8}{'peak GiB':>10}{'first':>9}{'last':>9}{'wall s':>8}"
    )
    for r in results:
        first, last = (f"{r['losses'][at]:.4f}" if r["losses"] else "-" for at in (0, -1))
        figures = (
            f"{r['tokens_per_s']:>10,.0f}{r['step_s']:>8.3f}{r['wait']:>8.2%}{r['peak_gib']:>10.1f}"
        )
        print(f"{r['arm']:<14}{figures}{first:>9}{last:>9}{r['wall_s']:>8.0f}")
    return int(not show(bars(by_name), as_json))


def bars(found: dict[str, dict[str, Any]]) -> Iterator[Measure]:
    """What this run should reach, as far as its arms allow to say."""
    for a, b, least in RATIOS:
        if a in found and b in found:
            ratio = found[a]["tokens_per_s"] / found[b]["tokens_per_s"]
            yield Measure(f"tokens/s, {a} over {b}", ratio, bound=("at_least", least), peer=b)
    for name, r in found.items():
        if name != "plain":
            yield Measure(
                f"{name}: share of the time waiting for rows", r["wait"], bound=("at_most", 0.01)
            )
    for name in SAME_LOSS[1:]:
        if "two" in found and name in found:
            pairs = zip(found["two"]["losses"], found[name]["losses"], strict=True)
            worst = max(abs(a - b) / abs(b) for a, b in pairs)
            said = f"largest relative difference of a step's loss, two and {name}"
            yield Measure(said, worst, bound=("at_most", AGREE), peer="two")
    if "two-killed" in found:
        yield Measure(
            "a worker was killed", float(found["two-killed"]["killed"]), bound=("at_least", 1)
        )


if __name__ == "__main__":
    sys.exit(main())
