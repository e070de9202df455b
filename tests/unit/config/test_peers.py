"""Other tools: their words lead to the keys here, and their files are recognised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.errors import valid_keys
from pipelines.config.peers import _KEYS, _REMARKS, _VALUES, translation
from pipelines.config.recipe import Recipe

Refusal = Callable[..., str]
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 2e-4", "here it is train.lr"),
        ("lora_r: 8", "here it is lora.r"),
        ("lora_alpha: 8", "here it is lora.alpha"),
        ("lora_dropout: 0.1", "here it is lora.dropout"),
        ("lora_target_modules: [q_proj]", "here it is lora.targets"),
        ("lora: {target_modules: [q_proj]}", "here it is lora.targets"),
        ("lora_target_linear: true", "here it is lora.targets: all-linear"),
        ("load_in_4bit: true", "here it is model.quantization: nf4"),
        ("load_in_8bit: true", "here it is model.quantization: int8"),
        ("train: {load_in_4bit: true}", "here it is model.quantization: nf4"),
        ("val_set_size: 0.1", "here it is data.heldout_share"),
        ("num_epochs: 3", "here it is train.epochs"),
        ("num_train_epochs: 3", "here it is train.epochs"),
        ("micro_batch_size: 3", "here it is train.micro_batch"),
        ("per_device_train_batch_size: 3", "here it is train.micro_batch"),
        ("gradient_accumulation_steps: 3", "set train.global_batch: micro batch x"),
        ("base_model: org/base", "here it is model.base"),
        ("model_name_or_path: org/base", "here it is model.base"),
        ("datasets: [a]", "here it is data.sources"),
        ("sequence_len: 9", "here it is data.row_tokens"),
        ("cutoff_len: 9", "here it is data.row_tokens"),
        ("max_seq_length: 9", "here it is data.row_tokens"),
        ("warmup_ratio: 0.1", "here it is train.warmup_share"),
        ("lr_scheduler_type: cosine", "here it is train.schedule: cosine"),
        ("lr_scheduler_type: constant_with_warmup", "here it is train.schedule: constant"),
        ("max_grad_norm: 1", "here it is train.clip_norm"),
        ("optim: adamw_bnb_8bit", "here it is train.optimizer: adamw_8bit"),
        ("seed: 1", "here it is train.seed"),
        ("output_dir: out", "leave it out: the option --store names the folder"),
        ("use_rslora: true", "here it is lora.rslora"),
        ("use_dora: true", "here it is lora.dora"),
        ("init_lora_weights: pissa_niter_16", "here it is lora.init: pissa"),
        ("loraplus_lr_ratio: 16", "here it is lora.lr_ratio"),
        ("gradient_checkpointing: true", "here it is train.gradient_checkpointing: full"),
        ("deepspeed: deepspeed_configs/zero3_bf16.json", "here it is train.zero: 3"),
        ("deepspeed: ds.json", "here it is train.zero"),
        ("save_steps: 5", "here it is train.save_every"),
        ("save_total_limit: 5", "here it is train.keep"),
        ("early_stopping_patience: 5", "here it is train.patience"),
        ("sample_packing: true", "leave it out: rows are always packed"),
        ("bf16: true", "here it is model.dtype: bf16"),
        ("fp16: true", "here it is model.dtype: fp16"),
        ("flash_attention: true", "leave it out: attention is chosen"),
        ("model: {base: a, torch_dtype: bfloat16}", "here it is model.dtype: bf16"),
        ("Learning-Rate: 1", "here it is train.lr"),
        ("lora.r: 8", "write r below lora, on a line of its own"),
    ],
)
def test_the_word_of_another_tool_comes_with_the_key_here(
    path: Path, refusal: Refusal, text: str, message: str
) -> None:
    lines = [
        line for line in path.read_text().splitlines() if line.split(":")[0] != text.split(":")[0]
    ]
    path.write_text("\n".join([*lines, text, ""]))
    assert f"(line {len(lines) + 1}): unknown key; {message}" in refusal(path)


def test_every_word_leads_to_a_key_that_exists_and_a_value_that_it_takes() -> None:
    keys = set(valid_keys(Recipe))
    assert len({*_KEYS, *_VALUES, *_REMARKS}) > 80
    assert set(_KEYS.values()) <= keys and {key for key, _ in _VALUES.values()} <= keys
    for key, values in _VALUES.values():
        section, _, name = key.partition(".")
        model: Any = Recipe.model_fields[section].annotation
        required = {"base": "org/base"} if section == "model" else {}
        for text in values.values():
            value = text.partition(",")[0]  # lora, with model.quantization: nf4
            given = int(value) if value.isdigit() else value
            assert getattr(model.model_validate(required | {name: given}), name) == given
    assert translation("nonsense", 1) is None


PEERS = {
    "an Axolotl config (base_model, load_in_4bit": (
        "base_model: NousResearch/Llama-3.2-1B\nload_in_4bit: true\nadapter: qlora\n"
        "datasets:\n  - path: teknium/GPT4-LLM-Cleaned\n    type: alpaca\nval_set_size: 0.1\n"
        "sequence_len: 2048\nmicro_batch_size: 2\nnum_epochs: 1\nlearning_rate: 0.0002\n"
    ),
    "a LLaMA-Factory config (": (
        "model_name_or_path: Qwen/Qwen3-4B-Instruct-2507\nstage: sft\ndo_train: true\n"
        "finetuning_type: lora\nlora_rank: 8\nlora_target: all\ndataset: identity\n"
        "template: qwen3\ncutoff_len: 2048\noutput_dir: saves\nlearning_rate: 1.0e-4\n"
    ),
    "a TRL or TrainingArguments config (": (
        "model_name_or_path: Qwen/Qwen2-0.5B\ndataset_name: trl-lib/Capybara\noutput_dir: out\n"
        "learning_rate: 2.0e-4\nnum_train_epochs: 1\nuse_peft: true\nlora_r: 32\n"
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_config_of_another_tool_is_recognised_and_init_is_named(
    path: Path, refusal: Refusal, name: str
) -> None:
    path.write_text(PEERS[name])
    message = refusal(path)
    assert message.startswith("this is " + name.partition("(")[0])
    base = PEERS[name].partition(": ")[2].partition("\n")[0]
    assert f"`loraforge init --base {base} --data DATA`" in message


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_a_recipe_with_words_of_another_tool_is_still_a_recipe(
    path: Path, refusal: Refusal, recipe: Path
) -> None:
    path.write_text(recipe.read_text() + PEERS["a TRL or TrainingArguments config ("])
    assert "learning_rate (line " in refusal(path) and "this is" not in refusal(path)
