"""The speed and memory of a training step, beside its peers and the machine's own matrix products.

    python -m bench.train [--json] [--steps 24] [--profile] [ARM ...]        (no arm: every one that fits the machine)

Each arm runs in a process of its own: the product's layers, loop and engine over packed rows of Alpaca's lengths, or
TRL's SFTTrainer, alone or with Unsloth, on the same lengths. Tokens are real ones; steps are timed by events on the GPU, the median after warm-up.
"rate" is (4 x matrix parameters + attention) x tokens/s, its share is of what 8192-cubed bf16 products hold for 8 s in the same process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from bench._measure import Measure, show
from bench._shapes import SHAPES, random_model, random_row
from bench._timing import mark, matmul_rates, peak_gib, print_trace, seconds, start_trace

WARM_UP = 4


@dataclass(frozen=True)
class Arm:
    """What is trained and how. `tokens` a pack, `packs` a step; `recompute` is train.gradient_checkpointing."""

    shape: str = "8b"
    quantization: str = "none"
    tokens: int = 16_384
    packs: int = 1
    recompute: str = "off"
    fused: str = "on"
    trained: float = 1.0
    learnable: bool = False
    rank: int = 16
    targets: str = "all-linear"
    steps: int | None = None
    peer: str = ""


ARMS = {
    "lora": Arm(),
    "lora-8k": Arm(tokens=8192),
    "lora-1b": Arm(shape="1b"),
    "lora-unfused": Arm(tokens=8192, fused="off"),
    "lora-masked": Arm(trained=2 / 3),
    "qlora": Arm(quantization="nf4"),
    "fp8": Arm(quantization="fp8"),
    "lora-checkpointed": Arm(recompute="full"),
    "lora-selective": Arm(recompute="selective"),
    "lora-qv": Arm(targets="qv"),
    "lora-qwen3": Arm(shape="qwen3-8b"),
    "lora-qwen3-unfused": Arm(shape="qwen3-8b", tokens=8192, fused="off"),
    "lora-r64": Arm(rank=64),
    "lora-r128": Arm(rank=128),
    "qlora-small": Arm(quantization="nf4", tokens=2048, packs=2, recompute="full"),
    "qlora-70b": Arm(shape="70b", quantization="nf4", tokens=4096, recompute="full"),
    "learn-lora": Arm(tokens=2048, learnable=True, steps=200),
    "learn-fp8": Arm(tokens=2048, learnable=True, steps=200, quantization="fp8"),
    "trl-defaults": Arm(peer="defaults"),
    "trl-varlen": Arm(peer="varlen"),
    "trl-wrapped": Arm(peer="wrapped"),
    "unsloth": Arm(peer="unsloth"),
    "unsloth-checkpointed": Arm(peer="unsloth-checkpointed"),
    "smoke": Arm(shape="tiny", tokens=256),
}
RATED = ("lora", "qlora", "fp8")
"""Arms after which the same process measures what its GPU's matrix products reach."""
ALONE = ("smoke",)
RATIOS = (
    ("lora", "trl-best", 1.8),
    ("lora", "trl-defaults", 8.0),
    ("qlora", "lora", 0.95),
    ("fp8", "lora", 1.42),
)
"""Tokens a second of one arm over another's, at least."""


def main() -> int:
    """Run the arms, print the table; 1 when an arm failed or a bar is missed."""
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
    """The arm's result, all from the same GPU, or {"failed": its last lines}."""
    environment = {"CUDA_VISIBLE_DEVICES": "0"} | os.environ
    command = [sys.executable, "-m", "bench.train", name, "--here", "--steps", str(given.steps)]
    ended = subprocess.run(
        command + ["--profile"] * given.profile,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    shown = [line for line in ended.stdout.splitlines() if line.startswith("|")]
    if shown:
        print("\n".join([name, *shown]), flush=True)
    if ended.returncode or not lines:
        lines = [json.dumps({"arm": name, "failed": (ended.stdout + ended.stderr)[-700:]})]
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
    found = {"arm": name, **run_ours(arm, profile)}
    return found | matmul_rates() if name in RATED else found


def run_ours(arm: Arm, profile: bool) -> dict[str, Any]:
    """The product's layers, engine and loop on one device."""
    import torch

    from pipelines.config.schema import LoraConfig
    from pipelines.layers.attention import PACKED
    from pipelines.layers.install import checkpoint_gradients, fuse_layers
    from pipelines.model.lora import attach, trainable
    from pipelines.plan.flops import ModelSize
    from pipelines.train.engine.deepspeed import DeepSpeedEngine
    from pipelines.train.loop import train_steps

    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    _process_group(device)
    base = random_model(arm.shape, PACKED, arm.quantization, device, dtype)
    checkpoint_gradients(base, arm.recompute)
    size = ModelSize.of(base)
    model = attach(
        base,
        LoraConfig.model_validate({"r": arm.rank, "alpha": 2 * arm.rank, "targets": arm.targets}),
        seed=0,
    )
    schedule = _schedule(arm)
    fuse_layers(model, schedule.config, device)
    engine = DeepSpeedEngine(model, schedule.config, device)
    marks, losses, waits = [mark(device)], [], []
    traced = start_trace() if profile else None

    def on_step(step: int, values: dict[str, float], _: Any) -> None:
        marks.append(mark(device))
        losses.append(values["loss"])
        waits.append(values["data_wait_s"])
        if step == WARM_UP and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if traced:
            traced.step()

    vocabulary = SHAPES[arm.shape]["vocab_size"]
    # All rows are there before the first step, so that making random tokens is not measured.
    count = schedule.num_steps * arm.packs
    rows = [random_row(i, arm.tokens, vocabulary, arm.trained, arm.learnable) for i in range(count)]
    train_steps(engine, schedule, iter(rows), 0, on_step)
    took = seconds(marks, device)[WARM_UP:]
    per_s = arm.tokens * arm.packs / float(np.median(took))
    if traced:
        print_trace(traced)
    return {
        "tokens_per_s": per_s, "step_s": float(np.median(took)), "steps": len(took),
        "spread": float(np.percentile(took, 90) / np.percentile(took, 10)),
        "wait": float(np.median(waits[WARM_UP:])) / float(np.median(took)),
        "tflops": float(np.mean([size.row_flops(row) for row in rows])) * per_s / arm.tokens / 1e12,
        "peak_gib": peak_gib(device), "floor_gib": floor_bytes(arm, sum(p.numel() for p in trainable(model).values())) / 2**30,
        "first_loss": losses[0], "last_loss": float(np.mean(losses[-20:])), "losses": losses if arm.learnable else [],
    }  # fmt: skip


def _schedule(arm: Arm) -> Any:
    from pipelines.config.schema import TrainConfig
    from pipelines.train.row_order import RowOrder

    assert arm.steps
    settings = {
        "zero": 2, "max_steps": arm.steps, "global_batch": arm.packs, "lr": 1e-3 if arm.learnable else 2e-4,
        "fused": arm.fused, "gradient_checkpointing": arm.recompute, "schedule": "cosine" if arm.learnable else "constant",
    }  # fmt: skip
    config = TrainConfig.model_validate(settings)
    return RowOrder(arm.steps * arm.packs, config)


def floor_bytes(arm: Arm, trained: int) -> float:
    """The least that a step without recomputing must hold: weights; the trained weights' bf16 copy and gradient, fp32
    master and moments; for each token and layer its input, q, k, v, attention's output, the MLP's input, gates and ups.
    With selective recomputing no gates and ups, with full only the layers' inputs, and in both one layer's share besides.
    """
    shape = SHAPES[arm.shape]
    h, i, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    head = shape.get("head_dim", h // shape["num_attention_heads"])
    q, kv = (head * shape[f"num_{name}_heads"] for name in ("attention", "key_value"))
    linear = layers * h * (2 * q + 2 * kv + 3 * i)
    bits = {"none": 16, "nf4": 4 + 8 / 64 + 32 / (64 * 256), "fp8": 32 / 2}[arm.quantization]
    weights = linear * bits / 8 + 2 * 2 * h * shape["vocab_size"]
    layer = 2.0 * arm.tokens * 2 * (h + q + kv + i)
    held = {
        "off": layer,
        "selective": layer - 2.0 * arm.tokens * 2 * i,
        "full": 2.0 * arm.tokens * h,
    }[arm.recompute]
    kept = layers * held + (layer if arm.recompute != "off" else 0)
    return weights + 16.0 * trained + kept


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
    """The table of all arms and the bars, one JSON object each if asked; 1 when an arm failed or a bar is missed."""
    print(
        f"{'arm':<20}{'tokens/s':>10}{'TFLOP/s':>9}{'share':>8}{'of':>8}{'peak GiB':>10}{'over floor':>12}{'waits':>8}{'loss':>18}"
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
            figures = f"{r['tokens_per_s']:>10,.0f}{tflops:>9.0f}{tflops / sustained:>8.1%}{sustained:>8.0f}"
            wait = f"{r['wait']:.2%}" if "wait" in r else "-"
            losses = f"{r['first_loss']:>9.3f}{r['last_loss']:>9.3f}"
            print(f"{name:<20}{figures}{r['peak_gib']:>10.1f}{over:>12}{wait:>8}{losses}")
    held = show(bars({name: r for name, r in results.items() if "failed" not in r}), as_json)
    return int(not held or any("failed" in r for r in results.values()))


def bars(found: dict[str, dict[str, Any]]) -> Iterator[Measure]:
    """What this run should reach, as far as its arms allow to say."""
    speed = {name: r["tokens_per_s"] for name, r in found.items() if "tokens_per_s" in r}
    if {"trl-varlen", "trl-wrapped"} <= speed.keys():
        speed["trl-best"] = max(speed["trl-varlen"], speed["trl-wrapped"])
    for a, b, least in RATIOS:
        if a in speed and b in speed:
            yield Measure(
                f"tokens/s, {a} over {b}", speed[a] / speed[b], bound=("at_least", least), peer=b
            )
    if "lora" in found:
        r = found["lora"]
        share, over = r["tflops"] / r["sustained_tflops"], r["peak_gib"] / r["floor_gib"]
        yield Measure(
            "lora: share of the matrix products' 8-second rate", share, bound=("at_least", 0.8)
        )
        yield Measure("lora: peak memory over the floor", over, bound=("at_most", 1.15))
    if "learn-lora" in found and "learn-fp8" in found:
        ratio = found["learn-fp8"]["last_loss"] / found["learn-lora"]["last_loss"]
        yield Measure(
            "fp8: loss after 200 steps over lora's",
            ratio,
            bound=("at_most", 1.01),
            peer="learn-lora",
        )
    for name, most in (("qlora-small", 8.0), ("qlora-70b", 60.0)):
        if name in found:
            yield Measure(f"{name}: peak memory", found[name]["peak_gib"], "GiB", ("at_most", most))
    if "qlora-70b" in speed:
        yield Measure("qlora-70b: tokens/s", speed["qlora-70b"], bound=("at_least", 900))


if __name__ == "__main__":
    sys.exit(main())
