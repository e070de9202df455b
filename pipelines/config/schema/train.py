"""Recipe section `train`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section


class TrainConfig(Section):
    """One optimizer step sees `global_batch` packs over all workers, `micro_batch` of them in one forward."""

    method: Literal["lora", "full"] = Field(
        default="lora", description="full: every weight of the base trains, no adapter"
    )
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(
        default=None, ge=1, description="stop earlier than the epochs say"
    )
    global_batch: int = Field(default=8, ge=1, description="packs a step over all workers")
    micro_batch: int = Field(default=1, ge=1, description="packs a forward")
    lr: float = Field(default=2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = Field(
        default="adamw",
        description="8-bit moments; paged: moments that move to the CPU under pressure (GPU only)",
    )
    zero: Literal["auto", 0, 1, 2, 3] = Field(
        default=2, description="auto: the lowest stage that fits the memory plan"
    )
    offload: Literal["auto", "none", "optimizer", "parameters"] = Field(
        default="none", description="to CPU memory"
    )
    gradient_checkpointing: Literal["auto", "off", "selective", "full"] = Field(
        default="off",
        description="recompute: no layer, every second one, every one; auto: as little as fits",
    )
    fused: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="hand-written layers: auto: on a GPU where the model fits them; on: or fail",
    )
    save_every: int = Field(
        default=50, ge=1, description="steps between checkpoints; the last step is always saved"
    )
    keep: int = Field(default=2, ge=1, description="checkpoints kept, best held-out loss first")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many checkpoints without a better held-out loss",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="what a loss or gradient that is not finite does"
    )
    max_failures: int = Field(
        default=3, ge=0, description="worker deaths survived before the run is given up"
    )
    max_preemptions: int = Field(
        default=-1, ge=-1, description="announced losses of a node survived; -1: any number"
    )
    hang_timeout_s: float = Field(
        default=900.0, gt=0, description="a step that takes longer is hung: its worker is restarted"
    )
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(default=["tensorboard"])
    record_samples: bool = Field(
        default=False, description="write down which samples each step saw"
    )
    seed: int = 0
