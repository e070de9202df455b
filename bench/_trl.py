"""Peers of `bench.train`: TRL's SFTTrainer at its defaults and at its best, alone and with Unsloth.

Which setting is best depends on the attention of packed rows. "varlen" packs by best fit and uses
torch's variable-length flash attention in place of TRL's `flash_attention_2`, which needs the
package flash_attn. "wrapped" cuts samples at the end of a row and lets them attend to each other,
so that plain causal attention is enough. "best" in a table is the faster of the two. Unsloth gets
the same attention as "varlen" if flash_attn is missing.
"""

from __future__ import annotations

import importlib
import itertools
import os
import tempfile
from typing import Any

import numpy as np

from bench._shapes import SHAPES, random_model, sample_lengths

_PACKED = {
    "per_device_train_batch_size": 2, "max_length": 4096, "packing": True, "use_liger_kernel": True,
    "gradient_checkpointing": False,
}  # fmt: skip
_UNSLOTH = {
    **_PACKED, "use_liger_kernel": False, "packing_strategy": "bfd",
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {"per_device_train_batch_size": 8, "max_length": 1024},
    "varlen": {**_PACKED, "packing_strategy": "bfd"},
    "wrapped": {**_PACKED, "packing_strategy": "wrapped"},
    "unsloth": _UNSLOTH,
    "unsloth-checkpointed": {**_UNSLOTH, "gradient_checkpointing": True},
}
UNSLOTH: dict[str, Any] = {"unsloth": False, "unsloth-checkpointed": "unsloth"}
"""Unsloth's use_gradient_checkpointing; "unsloth", its default, offloads layer inputs to the host.
"""
_VARLEN = "bench_varlen"
_WARM_UP = 3


def run_trl(which: str, steps: int) -> dict[str, Any]:
    """Tokens per second without padding, and peak memory, of 8B bf16 LoRA (r = 16, all linears)."""
    folder = tempfile.mkdtemp()
    if which in UNSLOTH:
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", folder)
        importlib.import_module("unsloth")  # patches the libraries imported below
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback

    datasets: Any = importlib.import_module("datasets")
    trl: Any = importlib.import_module("trl")

    vocabulary = SHAPES["8b"]["vocab_size"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<e>": 0, "<u>": 1}, unk_token="<u>")),
        eos_token="<e>",
        pad_token="<e>",
    )
    model, adapters = _model(which, tokenizer, folder)
    random = np.random.default_rng(0)
    lengths = np.concatenate(
        [sample_lengths(16_384, np.random.default_rng(i)) for i in range(steps)]
    )
    rows = [random.integers(2, vocabulary, n).tolist() for n in lengths]
    marks: list[Any] = []

    class Marks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
            if len(marks) == _WARM_UP:
                torch.cuda.reset_peak_memory_stats()

    settings = {
        "output_dir": folder, "max_steps": steps, "bf16": True, "report_to": "none",
        "save_strategy": "no", "dataset_num_proc": 1, **SETTINGS[which],
    }  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=trl.SFTConfig(**settings),
        train_dataset=datasets.Dataset.from_dict({"input_ids": rows}),
        processing_class=tokenizer, peft_config=adapters, callbacks=[Marks()],
    )  # fmt: skip
    counts: list[Any] = []
    compute = trainer.compute_loss

    def counting(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        # Kept as a tensor and read after the run, since reading waits for the GPU.
        counts.append(inputs["input_ids"].numel() if mask is None else mask.sum())
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting  # type: ignore[method-assign]
    trainer.train()
    torch.cuda.synchronize()
    seconds = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)][_WARM_UP:]
    tokens = [int(count) for count in counts[1 + _WARM_UP : len(marks)]]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "tokens_per_s": float(np.median(np.array(tokens) / np.array(seconds))),
        "step_s": float(np.median(seconds)), "steps": len(seconds),
        "spread": float(np.percentile(seconds, 90) / np.percentile(seconds, 10)),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "first_loss": losses[0], "last_loss": losses[-1],
    }  # fmt: skip


def _model(which: str, tokenizer: Any, folder: str) -> tuple[Any, Any]:
    """The 8B model and the trainer's adapter configuration; None if the model has adapters."""
    import torch
    from peft import LoraConfig

    if which in UNSLOTH:
        from bench._unsloth import unsloth_model

        return unsloth_model(tokenizer, folder, UNSLOTH[which]), None
    attention = _register_varlen() if which == "varlen" else "sdpa"
    model = random_model("8b", attention, "none", torch.device("cuda"), torch.bfloat16)
    return model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")


def _register_varlen() -> str:
    """Register packed attention for TRL's flattened samples, whose collator computes the bounds."""
    from transformers import AttentionInterface

    from pipelines.layers.attention import packed_attention
    from pipelines.layers.bounds import SampleBounds

    def varlen(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        starts = given.pop("cu_seq_lens_q")
        bounds = SampleBounds(starts, int(given.pop("max_length_q")), starts)
        return packed_attention(
            module, query, key, value, mask, scaling=given.get("scaling"), bounds=bounds
        )

    AttentionInterface.register(_VARLEN, varlen)
    return _VARLEN
