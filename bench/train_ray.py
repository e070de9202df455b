"""The training step through Ray Train, Ray Data and NCCL: GPUs, ZeRO stages, a killed worker.

    python -m bench.train_ray [--json] [--steps 24] [--tokens 16384] [--shape 8b] [ARM ...]
 Trains Llama-3-8B's shape with random weights, written once to memory (/dev/shm), on packed Parquet
rows of Alpaca's lengths that the product's own feed streams. The arm `plain` is bench.train's loop
without Ray.
 A step of a rank is timed from the request for its row to the next request, so logging and
everything else between steps counts. The rate comes from the median step; the share of time spent
waiting for rows comes from all steps together. The feed reads 32 rows in a task, so that share
needs some hundred steps.
 Checks the tokens/s of two GPUs over one, of Ray over plain and of ZeRO-3 over ZeRO-2, the share of
time spent waiting, and that all two-GPU arms have the same losses. Exit code 1 if a check fails.
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
from pipelines.packed.format import row_schema, shard_path
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.steps.step import BuildContext, Step
from pipelines.storage import Artifact, Store

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
"""Workers, ZeRO stage and quantization of each arm."""
RATIOS = (
    ("two", "one", 1.95),
    ("two-zero3", "two", 0.75),
    ("one", "plain", 0.99),
    ("two-qlora", "two", 0.95),
)
"""The least ratio of one arm's tokens/s to another's."""
SAME_LOSS = ("two", "two-zero1", "two-zero3", "two-killed")
NUM_HELDOUT = 2
WARM_UP = 5  # steps that are not timed
LOSS_TOLERANCE = 1e-3


class TimedFeed(RowFeed):
    """Writes the worker's process id, for `Killer`, and the time of every request for a row."""

    def batches(
        self, order: np.ndarray, batch_size: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """As RowFeed's."""
        import torch.distributed as dist

        folder = self.folder.parents[1]
        (folder / f"pid-{dist.get_rank()}").write_text(str(os.getpid()))
        with (folder / f"requests-{self.split}-{dist.get_rank()}").open("w") as requests:
            for batch in super().batches(order, batch_size, start):
                requests.write(f"{time.perf_counter()}\n")
                requests.flush()
                yield batch


def random_dataset(tokens: int, rows: int, vocabulary: int) -> Step[PreparedDataset]:
    """A step that prepares random rows of `tokens` tokens."""

    def build(context: BuildContext) -> None:
        with context.store.create_artifact("prepared", context.key) as draft:
            for split, count in (("train", rows), ("heldout", NUM_HELDOUT)):
                table = pa.Table.from_pylist(
                    [random_row(i, tokens, vocabulary) for i in range(count)], row_schema(tokens)
                )
                pq.write_table(table, shard_path(draft.path, split, 0), row_group_size=2)

    def load(store: Store, artifact: Artifact) -> PreparedDataset:
        train, heldout = (
            SplitStats(count, count, count * tokens, count * tokens)
            for count in (rows, NUM_HELDOUT)
        )
        return PreparedDataset(artifact.ref, tokens, train, heldout, {}, "", "")

    return Step(
        name="prepare",
        noun="dataset",
        kind="prepared",
        inputs=(),
        key=lambda: "0" * 64,
        build=build,
        load=load,
        summary=lambda dataset: f"{dataset.train.num_rows} rows",
        needs_ray=False,
    )


def recipe_of(arm: str, options: argparse.Namespace) -> Recipe:
    """r = 16 on all seven linears; each GPU trains one row in a step."""
    workers, zero, quantization = ARMS[arm]
    save_every = options.steps // 2 if arm == "two-killed" else options.steps
    train = {
        "zero": zero, "max_steps": options.steps, "global_batch": workers, "lr": 2e-4,
        "save_every": save_every, "trackers": [], "hang_timeout_s": 300,
    }  # fmt: skip
    return parse_recipe(
        {
            "name": "bench",
            "model": {"base": str(options.base), "dtype": "bf16", "quantization": quantization},
            "lora": {"r": 16, "alpha": 32},
            "data": {"sources": ["none.json"], "row_tokens": options.tokens},
            "train": train,
            "resources": {"workers": workers, "gpus_per_worker": 1, "cpus_per_worker": 4},
        }
    )


def write_base(folder: Path, shape: str) -> None:
    """Write random weights of a shape as a base that the product loads."""
    import torch

    random_model(shape, "sdpa", "none", torch.device("cuda:0"), torch.bfloat16).save_pretrained(
        folder
    )
    torch.cuda.empty_cache()


class Killer(threading.Thread):
    """Kills rank 1 once with SIGKILL, after the run has logged `after` steps."""

    def __init__(self, store: Path, after: int) -> None:
        super().__init__(daemon=True)
        self._store, self._after, self.killed_at = store, after, 0.0

    def run(self) -> None:
        """Wait for the step, then kill."""
        while not self.killed_at:
            time.sleep(0.2)
            for metrics in self._store.glob("runs/*/metrics.jsonl"):
                if metrics.read_text().count("\n") >= self._after:
                    os.kill(int((self._store / "pid-1").read_text()), signal.SIGKILL)
                    self.killed_at = time.monotonic()


def run_arm(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm from an empty store to its finished run; returns its losses and figures."""
    from pipelines.train.stage import run_folder, train_step
    from pipelines.train.track.metrics_log import read_metrics

    store, workers = Store(ROOT / arm), ARMS[arm][0]
    started = time.monotonic()
    killer = Killer(Path(store.uri), options.steps // 2 + 2) if "killed" in arm else None
    if killer:
        killer.start()
    inputs = Inputs(recipe_of(arm, options))
    inputs.base_fingerprint = "0" * 64  # the weights are random: do not hash 16 GB for each arm
    vocabulary = SHAPES[options.shape]["vocab_size"]
    dataset = random_dataset(options.tokens, workers * options.steps, vocabulary)
    run = Runner(store, SILENT).run(train_step(inputs, dataset, TimedFeed))
    lines = read_metrics(run_folder(store, run.run_id))
    requests = (Path(store.uri) / "requests-train-0").read_text().split()
    step_times = np.diff([float(time_s) for time_s in requests])[WARM_UP:]
    assert len(step_times), "too few steps"
    step_s, timed_lines = float(np.median(step_times)), lines[-len(step_times) :]
    return {
        "arm": arm,
        "losses": [line["loss"] for line in lines],
        "tokens_per_s": workers * options.tokens / step_s,
        "step_s": step_s,
        "wait": sum(line["data_wait_s"] for line in timed_lines) / float(step_times.sum()),
        "peak_gib": max(line["memory_bytes"] for line in lines) / 2**30,
        "wall_s": time.monotonic() - started,
        "killed": bool(killer and killer.killed_at),
    }


def run_plain(options: argparse.Namespace) -> dict[str, Any]:
    """Run bench.train's arm on the same rows, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "bench.train",
        "lora-masked",
        "--here",
        "--steps",
        str(options.steps),
    ]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(completed.stdout.splitlines()[-1])
    return {**figures, "arm": "plain", "losses": [], "wait": float("nan"), "wall_s": 0.0}


def main() -> int:
    """Run the arms, print the table and check; 0 if all checks hold or GPUs are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--shape", default="8b", choices=list(SHAPES))
    parser.add_argument(
        "--base", type=Path, help="a base to use; it is written if the folder has none"
    )
    options = parser.parse_args()
    import torch

    names = options.arms or list(ARMS)
    if "plain" in names and (options.shape, options.tokens) != ("8b", 16_384):
        parser.error("the arm plain needs --shape 8b and --tokens 16384: leave it out for others")
    if torch.cuda.device_count() < max(ARMS[name][0] for name in names):
        print("bench.train_ray: skipped, it needs two GPUs (the arms plain and one: one)")
        return 0
    from jobs.cluster.ray import ray_cluster

    shutil.rmtree(ROOT, ignore_errors=True)
    results = [run_plain(options)] if "plain" in names else []
    options.base = options.base or ROOT / "base"
    if (
        not (options.base / "model.safetensors.index.json").exists()
        and not (options.base / "model.safetensors").exists()
    ):
        write_base(options.base, options.shape)
    with ray_cluster():
        for name in (name for name in names if name != "plain"):
            results.append(run_arm(name, options))
            print(json.dumps(results[-1]), flush=True)
    shutil.rmtree(ROOT, ignore_errors=True)
    return report(results, options.json)


def report(results: list[dict[str, Any]], as_json: bool) -> int:
    """Print the table and the checks, as JSON lines if `as_json`; 1 if a check fails."""
    by_name = {result["arm"]: result for result in results}
    columns = {"tokens/s": 10, "step s": 8, "wait": 8, "peak GiB": 10, "first": 9, "last": 9}
    columns["wall s"] = 8
    print(f"{'arm':<14}" + "".join(f"{name:>{width}}" for name, width in columns.items()))
    for result in results:
        losses = result["losses"]
        first, last = (f"{losses[at]:.4f}" if losses else "-" for at in (0, -1))
        cells = [f"{result['tokens_per_s']:,.0f}", f"{result['step_s']:.3f}"]
        cells += [f"{result['wait']:.2%}", f"{result['peak_gib']:.1f}", first, last]
        cells.append(f"{result['wall_s']:.0f}")
        widths = zip(cells, columns.values(), strict=True)
        print(f"{result['arm']:<14}" + "".join(f"{cell:>{width}}" for cell, width in widths))
    return int(not show(bars(by_name), as_json))


def bars(by_name: dict[str, dict[str, Any]]) -> Iterator[Measure]:
    """The checks for which the arms that ran suffice."""
    for a, b, least in RATIOS:
        if a in by_name and b in by_name:
            ratio = by_name[a]["tokens_per_s"] / by_name[b]["tokens_per_s"]
            yield Measure(f"tokens/s, {a} over {b}", ratio, bound=("at_least", least), peer=b)
    for name, result in by_name.items():
        if name != "plain":
            title = f"{name}: share of the time waiting for rows"
            yield Measure(title, result["wait"], bound=("at_most", 0.01))
    for name in SAME_LOSS[1:]:
        if "two" in by_name and name in by_name:
            pairs = zip(by_name["two"]["losses"], by_name[name]["losses"], strict=True)
            worst = max(abs(a - b) / abs(b) for a, b in pairs)
            title = f"largest relative difference of a step's loss, two and {name}"
            yield Measure(title, worst, bound=("at_most", LOSS_TOLERANCE), peer="two")
    if "two-killed" in by_name:
        killed = float(by_name["two-killed"]["killed"])
        yield Measure("a worker was killed", killed, bound=("at_least", 1))


if __name__ == "__main__":
    sys.exit(main())
