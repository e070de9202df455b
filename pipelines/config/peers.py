"""Key names of other trainers mapped to recipe keys, and detection of their config files.

The trainers are Axolotl, LLaMA-Factory, and TRL with Hugging Face's TrainingArguments and PEFT's
LoraConfig.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

_KEYS = {
    "base_model": "model.base",
    "model_name_or_path": "model.base",
    "model_name": "model.base",
    "model_revision": "model.revision",
    "bnb_4bit_use_double_quant": "model.double_quantization",
    "double_quantization": "model.double_quantization",
    "bnb_4bit_compute_dtype": "model.compute_dtype",
    "bnb_4bit_quant_storage": "model.storage_dtype",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.targets",
    "lora_target": "lora.targets",
    "target_modules": "lora.targets",
    "lora_modules_to_save": "lora.modules_to_save",
    "additional_target": "lora.modules_to_save",
    "use_rslora": "lora.rslora",
    "peft_use_rslora": "lora.rslora",
    "use_dora": "lora.dora",
    "peft_use_dora": "lora.dora",
    "loraplus_lr_ratio": "lora.lr_ratio",
    "dataset": "data.sources",
    "datasets": "data.sources",
    "dataset_name": "data.sources",
    "dataset_dir": "data.sources",
    "data_path": "data.sources",
    "train_file": "data.sources",
    "val_set_size": "data.heldout_share",
    "val_size": "data.heldout_share",
    "test_size": "data.heldout_share",
    "sequence_len": "data.row_tokens",
    "cutoff_len": "data.row_tokens",
    "max_seq_length": "data.row_tokens",
    "max_seq_len": "data.row_tokens",
    "max_length": "data.row_tokens",
    "preprocessing_num_workers": "data.workers",
    "dataset_num_proc": "data.workers",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "learning_rate": "train.lr",
    "micro_batch_size": "train.micro_batch",
    "per_device_train_batch_size": "train.micro_batch",
    "warmup_ratio": "train.warmup_share",
    "max_grad_norm": "train.clip_norm",
    "gradient_clipping": "train.clip_norm",
    "save_steps": "train.save_every",
    "eval_steps": "train.save_every",
    "save_total_limit": "train.keep",
    "early_stopping_patience": "train.patience",
    "report_to": "train.trackers",
    "seed": "train.seed",
    "per_device_eval_batch_size": "eval.batch_size",
    "max_new_tokens": "eval.max_new_tokens",
    "num_gpus": "resources.gpus_per_worker",
    "num_processes": "resources.workers",
}
_REMARKS = {
    "gradient_accumulation_steps": "set train.global_batch: micro batch x accumulation steps x "
    "workers",
    "warmup_steps": "set train.warmup_share: the warm-up steps as a share of all steps",
    "output_dir": "leave it out: the option --store names the folder for results",
    "logging_steps": "leave it out: every step is logged",
    "logging_dir": "leave it out: the option --store names the folder for results",
    "packing": "leave it out: rows are always packed, and samples of one row do not see each other",
    "sample_packing": "leave it out: rows are always packed, and samples of one row do not see "
    "each other",
    "pad_to_sequence_len": "leave it out: rows are always packed to data.row_tokens",
    "flash_attention": "leave it out: attention is chosen for the GPU by itself",
    "flash_attn": "leave it out: attention is chosen for the GPU by itself",
    "attn_implementation": "leave it out: attention is chosen for the GPU by itself",
    "sdp_attention": "leave it out: attention is chosen for the GPU by itself",
    "tf32": "leave it out: train.fused and model.dtype decide how matrices are multiplied",
    "template": "set data.chat_template; without it the base's own template is used",
    "chat_template": "set data.chat_template; without it the base's own template is used",
    "chat_template_jinja": "set data.chat_template to the template's file",
    "chat_template_path": "set data.chat_template to the template's file",
    "chat_template_kwargs": "set data.template_arguments",
    "enable_thinking": "set data.template_arguments: {enable_thinking: false}",
    "train_on_inputs": "leave it out: the loss counts answers only; see data.train_on",
    "train_on_prompt": "leave it out: the loss counts answers only; see data.train_on",
    "assistant_only_loss": "leave it out: the loss counts answers only; see data.train_on",
    "trust_remote_code": "leave it out: code of a model is never run",
    "resume_from_checkpoint": "leave it out: the same command resumes the run",
    "overwrite_output_dir": "leave it out: results are found by the digest of what they were made "
    "from",
    "do_train": "leave it out: `loraforge run` trains, evaluates and promotes",
    "do_eval": "leave it out: `loraforge run` trains, evaluates and promotes",
    "wandb_project": "set train.trackers: [wandb], and WANDB_PROJECT in the environment",
}
_DTYPES = {
    "float32": "fp32", "bfloat16": "bf16", "float16": "fp16",
    "fp32": "fp32", "bf16": "bf16", "fp16": "fp16",
}  # fmt: skip
_OPTIMIZERS = {
    "adamw": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
    "adamw_bnb_8bit": "adamw_8bit", "adamw_8bit": "adamw_8bit", "paged_adamw": "paged_adamw",
    "paged_adamw_32bit": "paged_adamw", "paged_adamw_8bit": "paged_adamw_8bit",
}  # fmt: skip
# Word: the recipe key that replaces it, and the key's value for each of the other tool's values.
_VALUES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "load_in_4bit": ("model.quantization", {"true": "nf4", "false": "none"}),
    "load_in_8bit": ("model.quantization", {"true": "int8", "false": "none"}),
    "quantization_bit": ("model.quantization", {"4": "nf4", "8": "int8"}),
    "bnb_4bit_quant_type": ("model.quantization", {"nf4": "nf4"}),
    "bf16": ("model.dtype", {"true": "bf16", "auto": "auto"}),
    "fp16": ("model.dtype", {"true": "fp16"}),
    "torch_dtype": ("model.dtype", _DTYPES),
    "dtype": ("model.dtype", _DTYPES),
    "init_lora_weights": (
        "lora.init",
        {"true": "zero", "gaussian": "zero", "pissa": "pissa", "loftq": "loftq", "eva": "eva"},
    ),
    "lora_target_linear": ("lora.targets", {"true": "all-linear"}),
    "lr_scheduler": (
        "train.schedule",
        {"cosine": "cosine", "linear": "linear", "constant": "constant"},
    ),
    "lr_scheduler_type": (
        "train.schedule",
        {
            "cosine": "cosine",
            "linear": "linear",
            "constant": "constant",
            "constant_with_warmup": "constant",
        },
    ),
    "optim": ("train.optimizer", _OPTIMIZERS),
    "optimizer": ("train.optimizer", _OPTIMIZERS),
    "gradient_checkpointing": (
        "train.gradient_checkpointing",
        {"true": "full", "false": "off", "unsloth": "full"},
    ),
    "adapter": ("train.method", {"lora": "lora", "qlora": "lora, with model.quantization: nf4"}),
    "finetuning_type": ("train.method", {"lora": "lora", "full": "full"}),
    "use_peft": ("train.method", {"true": "lora", "false": "full"}),
    "deepspeed": ("train.zero", {}),
    "fsdp": ("train.zero", {"true": "3"}),
}
_SIGNATURES = {
    "an Axolotl config": {
        "base_model",
        "adapter",
        "datasets",
        "sequence_len",
        "micro_batch_size",
        "val_set_size",
        "num_epochs",
        "lora_target_linear",
        "lora_r",
        "sample_packing",
        "dataset_prepared_path",
        "lr_scheduler",
    },
    "a LLaMA-Factory config": {
        "stage",
        "do_train",
        "finetuning_type",
        "template",
        "dataset",
        "dataset_dir",
        "cutoff_len",
        "lora_rank",
        "lora_target",
        "val_size",
        "quantization_bit",
        "overwrite_cache",
    },
    "a TRL or TrainingArguments config": {
        "model_name_or_path",
        "dataset_name",
        "output_dir",
        "per_device_train_batch_size",
        "num_train_epochs",
        "learning_rate",
        "max_seq_length",
        "max_length",
        "use_peft",
        "lora_target_modules",
        "report_to",
        "gradient_accumulation_steps",
        "save_total_limit",
        "load_in_4bit",
    },
}
_MIN_WORDS = 2  # of a tool's own words, before a file counts as its config


def translation(word: str, value: Any) -> str | None:
    """The recipe key for another tool's key, such as "here it is train.lr"; None if no tool has
    such a key.

    Where the key's values differ too, the value is translated with it: load_in_4bit: true is
    model.quantization: nf4.
    """
    word = word.lower().replace("-", "_")
    if word in _VALUES:
        key, values = _VALUES[word]
        here = _value_here(word, value, values)
        return f"here it is {key}: {here}" if here else f"here it is {key}"
    if word in _REMARKS:
        return _REMARKS[word]
    return f"here it is {_KEYS[word]}" if word in _KEYS else None


def _value_here(word: str, value: Any, values: Mapping[str, str]) -> str | None:
    text = str(value).lower() if isinstance(value, str | bool | int) else ""
    if word == "deepspeed":
        stage = re.search(r"(?:zero|z|stage)_?([0-3])", text)
        return stage[1] if stage else None
    if word == "init_lora_weights":
        text = text.partition("_")[0]  # pissa_niter_16
    return values.get(text)


def peer_of(data: Mapping[Any, Any], sections: set[str]) -> str | None:
    """Whose config file this data is, in words, or None. A recipe has `sections`; the other tools'
    files are flat.
    """
    if any(isinstance(data.get(section), Mapping) for section in sections):
        return None
    words = {str(key).lower() for key in data}
    name = max(_SIGNATURES, key=lambda peer: len(_SIGNATURES[peer] & words))
    matches = [str(key) for key in data if str(key).lower() in _SIGNATURES[name]]
    if len(matches) < _MIN_WORDS:
        return None
    base = data.get("base_model") or data.get("model_name_or_path")
    base = shlex.quote(base) if isinstance(base, str) else "BASE"
    return (
        f"this is {name} ({', '.join(matches[:3])}), not a recipe: make a recipe with "
        f"`loraforge init --base {base} --data DATA`"
    )
