"""The arms of `bench.train`: which model is trained and how, and the least memory that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.plan.shape import ModelShape


@dataclass(frozen=True)
class Arm:
    """One training setup: `tokens` per pack, `packs` per step.

    `recompute` is train.gradient_checkpointing, `loss_share` the share of tokens in the loss,
    `peer` the name of another trainer to run instead.
    """

    shape: str = "8b"
    quantization: str = "none"
    tokens: int = 16_384
    packs: int = 1
    recompute: str = "off"
    fused: str = "on"
    loss_share: float = 1.0
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
    "lora-masked": Arm(loss_share=2 / 3),
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
"""Arms after which the same process measures the GPU's rate of matrix products."""
ALONE = ("smoke",)
"""Arms that run only when they are named."""


def floor_bytes(arm: Arm, shape: ModelShape, num_trainable: int) -> float:
    """The least memory of a step that saves what a backward needs.

    Counted are the weights; for every trainable parameter its bf16 copy and gradient, fp32 master
    and both moments; for every token and layer its input, q, k, v, the output of attention, the
    input of the MLP, gates and ups. With selective recomputing gates and ups are not saved, with
    full only the layers' inputs are; both need the tensors of a single layer in addition.
    """
    widths = shape.hidden + shape.queries + shape.kv + shape.intermediate
    # NF4: 4 bits, 8-bit scales for 64 weights and their fp32 scales for 256; fp8: two copies.
    bits = {"none": 16, "nf4": 4 + 8 / 64 + 32 / (64 * 256), "fp8": 32 / 2}[arm.quantization]
    embeddings = shape.hidden * shape.vocabulary
    weights = shape.linear * bits / 8 + 2 * (embeddings + shape.head)
    layer = 2.0 * arm.tokens * 2 * widths
    saved = {
        "off": layer,
        "selective": layer - 2.0 * arm.tokens * 2 * shape.intermediate,
        "full": 2.0 * arm.tokens * shape.hidden,
    }[arm.recompute]
    activations = shape.layers * saved + (layer if arm.recompute != "off" else 0)
    return weights + 16.0 * num_trainable + activations
