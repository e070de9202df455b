"""Recipe section `train`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.schema.section import Section


class TrainConfig(Section):
    """The optimization. A step sees `global_batch` packed rows over all workers, `micro_batch` in
    one forward.
    """

    method: Literal["lora", "full"] = Field(
        default="lora",
        description="lora trains an adapter; full trains every weight of the base and makes no "
        "adapter.",
    )
    epochs: float = Field(default=1.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="Most optimizer steps; the run ends there if the epochs give more.",
    )
    global_batch: int = Field(
        default=8, ge=1, description="Packed rows of one optimizer step, over all workers."
    )
    micro_batch: int = Field(
        default=1, ge=1, description="Packed rows of one forward on one worker."
    )
    lr: float = Field(default=2e-4, gt=0, description="Highest learning rate of the schedule.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Course of the learning rate after the warm-up."
    )
    warmup_share: float = Field(
        default=0.03,
        ge=0,
        lt=1,
        description="Share of the steps in which the learning rate rises from 0.",
    )
    clip_norm: float = Field(
        default=1.0, gt=0, description="Largest norm of the gradient; a longer one is scaled down."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Decoupled weight decay of the optimizer."
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = Field(
        default="adamw",
        description="8bit stores the moments in 8 bits; paged moves them to CPU memory when the "
        "GPU's is "
        "short (GPU only).",
    )
    zero: Literal["auto", 0, 1, 2, 3] = Field(
        default=2,
        description="ZeRO stage of DeepSpeed; auto takes the lowest that fits the memory plan.",
    )
    offload: Literal["auto", "none", "optimizer", "parameters"] = Field(
        default="none", description="State that is kept in CPU memory."
    )
    gradient_checkpointing: Literal["auto", "off", "selective", "full"] = Field(
        default="off",
        description="Layers whose activations are recomputed in the backward: none (off), every "
        "second one "
        "(selective), all (full), or as few as fit (auto).",
    )
    fused: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Hand-written decoder layers: auto uses them on a GPU if the model fits them; "
        "on "
        "fails if it does not.",
    )
    save_every: int = Field(
        default=50,
        ge=1,
        description="Steps between checkpoints; the last step is always saved.",
    )
    keep: int = Field(
        default=2,
        ge=1,
        description="Checkpoints to keep, those of the lowest held-out loss first; the last one is "
        "always "
        "kept.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many checkpoints without a lower held-out loss.",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="A loss or gradient that is not finite: stop the run, or skip the step.",
    )
    max_failures: int = Field(
        default=3, ge=0, description="Worker deaths that the run survives before it ends."
    )
    max_preemptions: int = Field(
        default=-1,
        ge=-1,
        description="Announced losses of a node that the run survives; -1 allows any number.",
    )
    hang_timeout_s: float = Field(
        default=900.0,
        gt=0,
        description="A step that takes longer than these seconds counts as hung, and its worker is "
        "restarted.",
    )
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        default=["tensorboard"], description="Trackers that receive the metrics of each step."
    )
    record_samples: bool = Field(
        default=False, description="Write the ids of each step's samples to the run's folder."
    )
    seed: int = Field(
        default=0, description="Seed of the adapter's start, of the row order and of dropout."
    )
