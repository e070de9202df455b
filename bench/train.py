"""Speed and memory of a training step, compared with peers and with the GPU's matrix products.

    python -m bench.train [--json] [--steps 24] [--profile] [ARM ...]        (no arm: all but smoke)

Each arm runs in its own process: this project's layers, loop and engine over packed rows of
Alpaca's lengths, or TRL's SFTTrainer, alone or with Unsloth, on the same lengths. Padding does not
count as tokens. Steps are timed by GPU events; the figure is the median after warm-up. TFLOP/s are
`plan.flops.row_flops` per second; share is their fraction of the rate that 8192^3 bf16 products
sustain for 8 s in the same process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np

from bench._arms import ALONE, ARMS, RATED, Arm, floor_bytes
from bench._measure import Measure, show
from bench._shapes import SHAPES, random_model, random_row
from bench._timing import mark, matmul_rates, peak_gib, print_trace, seconds, start_trace

WARM_UP = 4


RATIOS = (
    ("lora", "trl-best", 1.8),
    ("lora", "trl-defaults", 8.0),
    ("qlora", "lora", 0.95),
    ("fp8", "lora", 1.42),
)
"""Two arms and the least ratio of their tokens per second."""


def main() -> int:
    """Run the arms and print the table. Returns 1 when an arm failed or a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument(
        "--arm", action="append", default=[], choices=list(ARMS), help="the same, one at a time"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument(
        "--profile", action="store_true", help="print where the GPU's time of a step goes"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    import torch

    names = [*given.arms, *given.arm] or [name for name in ARMS if name not in ALONE]
    if not torch.cuda.is_available() and names != ["smoke"]:
        print("bench.train: skipped, it needs a GPU (the arm smoke does not)")
        return 0
    if given.here:
        print(json.dumps(run_arm(names[0], given.steps, given.profile)), flush=True)
        return 0
    return report({name: in_own_process(name, given) for name in names}, given.json)


def in_own_process(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The arm's result on the first visible GPU, or {"failed": the end of its output}."""
    environment = {"CUDA_VISIBLE_DEVICES": "0"} | os.environ
    command = [sys.executable, "-m", "bench.train", name, "--here", "--steps", str(given.steps)]
    completed = subprocess.run(
        command + ["--profile"] * given.profile,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    lines = [line for line in completed.stdout.splitlines() if line.startswith("{")]
    profile = [line for line in completed.stdout.splitlines() if line.startswith("|")]
    if profile:
        print("\n".join([name, *profile]), flush=True)
    if completed.returncode or not lines:
        lines = [json.dumps({"arm": name, "failed": (completed.stdout + completed.stderr)[-700:]})]
    if given.json:
        print(lines[-1], flush=True)
    return json.loads(lines[-1])


def run_arm(name: str, steps: int, profile: bool) -> dict[str, Any]:
    """One arm in this process."""
    arm = ARMS[name]
    arm = arm if arm.steps else replace(arm, steps=steps)
    if arm.peer:
        from bench._trl import UNSLOTH, run_trl

        if arm.peer in UNSLOTH and not importlib.util.find_spec("unsloth"):
            return {"arm": name, "skipped": "Unsloth is not installed"}
        return {"arm": name, **run_trl(arm.peer, steps)}
    result = {"arm": name, **run_ours(arm, profile)}
    return result | matmul_rates() if name in RATED else result


def run_ours(arm: Arm, profile: bool) -> dict[str, Any]:
    """This project's layers, engine and loop on one device."""
    import torch

    from pipelines.config.schema import LoraConfig
    from pipelines.layers.attention import PACKED
    from pipelines.layers.install import checkpoint_gradients, fuse_layers
    from pipelines.model.lora import attach, trainable_parameters
    from pipelines.plan.flops import row_flops
    from pipelines.plan.shape import shape_of_base
    from pipelines.train.base_proof import prove_base
    from pipelines.train.engine.deepspeed import DeepSpeedEngine
    from pipelines.train.loop import train_steps

    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    _process_group(device)
    base = random_model(arm.shape, PACKED, arm.quantization, device, dtype)
    checkpoint_gradients(base, arm.recompute)
    shape = shape_of_base(base)
    model = attach(
        base,
        LoraConfig.model_validate({"r": arm.rank, "alpha": 2 * arm.rank, "targets": arm.targets}),
        seed=0,
    )
    schedule = _schedule(arm)
    fuse_layers(model, schedule.config, device)
    engine = DeepSpeedEngine(model, schedule.config, device)
    marks, losses, waits = [mark(device)], [], []
    profiler = start_trace() if profile else None

    def on_step(step: int, values: dict[str, float], _: Any) -> None:
        marks.append(mark(device))
        losses.append(values["loss"])
        waits.append(values["data_wait_s"])
        if step == WARM_UP and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if profiler:
            profiler.step()

    vocabulary = SHAPES[arm.shape]["vocab_size"]
    # All rows exist before the first step, so that drawing random tokens is not timed.
    count = schedule.num_steps * arm.packs
    rows = [
        random_row(i, arm.tokens, vocabulary, arm.loss_share, arm.learnable) for i in range(count)
    ]
    samples = samples_of(rows, arm.tokens)
    prove_base(engine.packed_loss, samples, device)  # compiles kernels, as the first step would
    proof = prove_base(engine.packed_loss, samples, device)
    marks[0] = mark(device)
    train_steps(engine, schedule, iter(rows), 0, on_step)
    step_seconds = seconds(marks, device)[WARM_UP:]
    median_s = float(np.median(step_seconds))
    tokens_per_s = arm.tokens * arm.packs / median_s
    num_trainable = sum(p.numel() for p in trainable_parameters(model).values())
    flops = float(np.mean([row_flops(shape, row) for row in rows]))
    if profiler:
        print_trace(profiler)
    return {
        "tokens_per_s": tokens_per_s, "step_s": median_s, "steps": len(step_seconds),
        "spread": float(np.percentile(step_seconds, 90) / np.percentile(step_seconds, 10)),
        "wait": float(np.median(waits[WARM_UP:])) / median_s,
        "tflops": flops * tokens_per_s / arm.tokens / 1e12,
        "peak_gib": peak_gib(device),
        "floor_gib": floor_bytes(arm, shape, num_trainable) / 2**30,
        "first_loss": losses[0], "last_loss": float(np.mean(losses[-20:])),
        "losses": losses if arm.learnable else [],
        "proof_s": proof.seconds, "proof_of_200_steps": proof.seconds / (200 * median_s),
    }  # fmt: skip


def samples_of(rows: list[dict[str, Any]], row_tokens: int) -> list[np.ndarray]:
    """The samples on which a run over these rows would prove its base."""
    from pipelines.train.proof_samples import choose_samples

    counts = [len(row["sample_lengths"]) for row in rows]

    class Rows:
        def sample_lengths(self) -> tuple[np.ndarray, np.ndarray]:
            lengths = np.concatenate([row["sample_lengths"] for row in rows])
            return lengths, np.repeat(np.arange(len(rows)), counts)

        def read_samples(self, row: int) -> list[np.ndarray]:
            return np.split(rows[row]["input_ids"], np.cumsum(rows[row]["sample_lengths"])[:-1])

    return choose_samples(Rows(), row_tokens)


def _schedule(arm: Arm) -> Any:
    from pipelines.config.schema import TrainConfig
    from pipelines.train.row_order import RowOrder

    assert arm.steps
    settings = {
        "zero": 2, "max_steps": arm.steps, "global_batch": arm.packs,
        "lr": 1e-3 if arm.learnable else 2e-4, "fused": arm.fused,
        "gradient_checkpointing": arm.recompute,
        "schedule": "cosine" if arm.learnable else "constant",
    }  # fmt: skip
    config = TrainConfig.model_validate(settings)
    return RowOrder(arm.steps * arm.packs, config)


def _process_group(device: Any) -> None:
    import torch.distributed as dist

    for key, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("MASTER_PORT", "29511")
    if device.type == "cpu":
        dist.init_process_group("gloo", store=cast(Any, dist).HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group("nccl", device_id=device)


def report(results: dict[str, dict[str, Any]], as_json: bool) -> int:
    """Print the table of all arms and the targets, as JSON lines if `as_json`.

    Returns 1 when an arm failed or a target is missed.
    """
    print(
        f"{'arm':<20}{'tokens/s':>10}{'TFLOP/s':>9}{'share':>8}{'of':>8}{'peak GiB':>10}"
        f"{'over floor':>12}{'waits':>8}{'loss':>18}"
    )
    for name, r in results.items():
        if "failed" in r:
            print(f"{name:<20} FAILED: {r['failed']}")
        elif "skipped" in r:
            print(f"{name:<20} skipped: {r['skipped']}")
        elif "tokens_per_s" in r:
            tflops = r.get("tflops", float("nan"))
            sustained = r.get("sustained_tflops", float("nan"))
            over = f"{r['peak_gib'] / r['floor_gib']:.2f}" if "floor_gib" in r else "-"
            rates = f"{tflops:>9.0f}{tflops / sustained:>8.1%}{sustained:>8.0f}"
            figures = f"{r['tokens_per_s']:>10,.0f}{rates}"
            wait = f"{r['wait']:.2%}" if "wait" in r else "-"
            losses = f"{r['first_loss']:>9.3f}{r['last_loss']:>9.3f}"
            print(f"{name:<20}{figures}{r['peak_gib']:>10.1f}{over:>12}{wait:>8}{losses}")
    all_met = show(bars({name: r for name, r in results.items() if "failed" not in r}), as_json)
    return int(not all_met or any("failed" in r for r in results.values()))


def bars(results: dict[str, dict[str, Any]]) -> Iterator[Measure]:
    """The targets that can be computed from the arms of this run."""
    speed = {name: r["tokens_per_s"] for name, r in results.items() if "tokens_per_s" in r}
    if {"trl-varlen", "trl-wrapped"} <= speed.keys():
        speed["trl-best"] = max(speed["trl-varlen"], speed["trl-wrapped"])
    for a, b, least in RATIOS:
        if a in speed and b in speed:
            yield Measure(
                f"tokens/s, {a} over {b}", speed[a] / speed[b], bound=("at_least", least), peer=b
            )
    if "lora" in results:
        r = results["lora"]
        share, over = r["tflops"] / r["sustained_tflops"], r["peak_gib"] / r["floor_gib"]
        yield Measure(
            "lora: share of the matrix products' 8-second rate", share, bound=("at_least", 0.8)
        )
        yield Measure("lora: peak memory over the floor", over, bound=("at_most", 1.15))
    for name in ("lora", "qlora", "fp8"):
        if name in results:
            share = results[name]["proof_of_200_steps"]
            yield Measure(
                f"{name}: proof of the base over 200 steps", share, bound=("at_most", 0.01)
            )
    if "learn-lora" in results and "learn-fp8" in results:
        ratio = results["learn-fp8"]["last_loss"] / results["learn-lora"]["last_loss"]
        yield Measure(
            "fp8: loss after 200 steps over lora's",
            ratio,
            bound=("at_most", 1.01),
            peer="learn-lora",
        )
    for name, most in (("qlora-small", 8.0), ("qlora-70b", 60.0)):
        if name in results:
            yield Measure(
                f"{name}: peak memory", results[name]["peak_gib"], "GiB", ("at_most", most)
            )
    if "qlora-70b" in speed:
        yield Measure("qlora-70b: tokens/s", speed["qlora-70b"], bound=("at_least", 900))


if __name__ == "__main__":
    sys.exit(main())
