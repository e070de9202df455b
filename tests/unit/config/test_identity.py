"""Identity: recipes share a training run exactly if they train the same weights."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.config.identity import evaluation_identity, training_identity
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.digests import digest_of

GPU = {"resources": {"gpus_per_worker": 1}}


def recipe_with(*changes: dict[str, Any]) -> Recipe:
    """The smallest recipe with sections changed; later changes win key by key."""
    data: dict[str, Any] = {
        "name": "tiny",
        "model": {"base": "org/base"},
        "data": {"sources": ["a"]},
    }
    for change in changes:
        for section, keys in change.items():
            data[section] = {**data.get(section, {}), **keys}
    return parse_recipe(data)


def train(**keys: Any) -> dict[str, Any]:
    return {"train": keys}


def lora(**keys: Any) -> dict[str, Any]:
    return {"lora": keys}


def model(**keys: Any) -> dict[str, Any]:
    return {"model": keys}


FULL = train(method="full")
NF4 = model(quantization="nf4")
SHARED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "nonfinite": ([train(nonfinite="stop")], [train(nonfinite="skip")]),
    "max_failures": ([], [train(max_failures=9)]),
    "max_preemptions": ([], [train(max_preemptions=1)]),
    "hang_timeout_s": ([], [train(hang_timeout_s=5)]),
    "trackers": ([], [train(trackers=[])]),
    "record_samples": ([], [train(record_samples=True)]),
    "keep": ([train(keep=2)], [train(keep=5)]),
    "resources": ([], [{"resources": {"workers": 4, "cpus_per_worker": 3}}]),
    "other sections": (
        [],
        [{"serve": {"port": 1}, "gate": {"margin": 0.3}, "eval": {"actors": 2}}],
    ),
    "the base's place": ([model(base="org/base")], [model(base="/elsewhere/base", revision="v2")]),
    "double quantization without nf4": ([], [model(double_quantization=False)]),
    "compute dtype without nf4": ([], [model(compute_dtype="bf16")]),
    "storage dtype without nf4": ([], [model(storage_dtype="uint8", quantization="none")]),
    "storage dtype with int8": (
        [model(quantization="int8")],
        [model(quantization="int8", storage_dtype="uint8")],
    ),
    "compute dtype auto is the dtype": ([NF4], [NF4, model(compute_dtype="fp32")]),
    "storage dtype auto is the dtype": ([NF4, GPU], [NF4, GPU, model(storage_dtype="bf16")]),
    "a preset and its modules": ([lora(targets="qv")], [lora(targets=["q_proj", "v_proj"])]),
    "the order of targets": (
        [lora(targets=["q_proj", "v_proj"])],
        [lora(targets=["v_proj", "q_proj", "v_proj"])],
    ),
    "the attention preset": (
        [lora(targets="attention")],
        [lora(targets=["o_proj", "v_proj", "k_proj", "q_proj"])],
    ),
    "the order of modules_to_save": (
        [lora(modules_to_save=["norm", "lm_head"])],
        [lora(modules_to_save=["lm_head", "norm"])],
    ),
    "max_steps at the end": ([train(max_steps=10)], []),
    "max_steps above the end": ([train(max_steps=11)], []),
    "dtype auto on the CPU": ([], [model(dtype="fp32")]),
    "dtype auto on a GPU": ([GPU], [GPU, model(dtype="bf16")]),
    "fused auto on the CPU": ([], [train(fused="off")]),
    "fused auto in full training": ([GPU, FULL], [GPU, FULL, train(fused="off")]),
    "the adapter in full training": ([FULL], [FULL, lora(r=64, targets="qv")]),
    "save_every with one kept checkpoint": (
        [train(keep=1)],
        [train(keep=1, save_every=7)],
    ),
}
DIFFERENT: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "the learning rate": ([], [train(lr=1e-3)]),
    "the seed": ([], [train(seed=1)]),
    "the rank": ([], [lora(r=16)]),
    "the quantization": ([], [NF4]),
    "double quantization with nf4": ([NF4], [NF4, model(double_quantization=False)]),
    "compute dtype with nf4": ([NF4], [NF4, model(compute_dtype="bf16")]),
    "storage dtype with nf4": ([NF4], [NF4, model(storage_dtype="uint8")]),
    "a preset and fewer modules": ([lora(targets="attention")], [lora(targets="qv")]),
    "all-linear and a preset": ([], [lora(targets="attention")]),
    "max_steps below the end": ([train(max_steps=9)], []),
    "another max_steps below the end": ([train(max_steps=9)], [train(max_steps=8)]),
    "dtype on the CPU": ([], [model(dtype="bf16")]),
    "dtype on a GPU": ([GPU], [GPU, model(dtype="fp16")]),
    "dtype auto on a GPU and on the CPU": ([], [GPU]),
    "fused on the CPU": ([], [train(fused="on")]),
    "fused auto on a GPU": ([GPU], [GPU, train(fused="off")]),
    "the method": ([], [FULL]),
    "the micro batch": ([], [train(micro_batch=2)]),
    "patience": ([], [train(patience=3)]),
    "save_every with several kept checkpoints": ([train(keep=2)], [train(keep=2, save_every=7)]),
    "save_every with patience": (
        [train(keep=1, patience=2)],
        [train(keep=1, patience=2, save_every=7)],
    ),
}


def run_key(changes: list[dict[str, Any]], num_steps: int | None = 10) -> str:
    return digest_of(training_identity(recipe_with(*changes), num_steps))


@pytest.mark.parametrize("case", SHARED)
def test_values_that_train_the_same_weights_share_a_run(case: str) -> None:
    left, right = SHARED[case]
    assert recipe_with(*left).digest != recipe_with(*right).digest
    assert run_key(left) == run_key(right)


@pytest.mark.parametrize("case", DIFFERENT)
def test_values_that_train_other_weights_get_a_run_of_their_own(case: str) -> None:
    left, right = DIFFERENT[case]
    assert run_key(left) != run_key(right)


def test_max_steps_counts_as_long_as_the_number_of_steps_is_not_known() -> None:
    assert run_key([train(max_steps=10)], None) != run_key([], None)
    assert run_key([train(max_steps=10)], 11) != run_key([], 11)


def test_every_key_that_is_not_left_out_by_a_rule_is_in_the_identity() -> None:
    identity = training_identity(recipe_with(NF4, train(patience=1)), None)
    recipe = recipe_with()
    assert set(identity["lora"]) == set(recipe.lora.model_dump())
    assert set(identity["model"]) == set(recipe.model.model_dump()) - {"base", "revision"}
    assert set(recipe.train.model_dump()) - set(identity["train"]) == {
        "nonfinite",
        "max_failures",
        "max_preemptions",
        "hang_timeout_s",
        "trackers",
        "record_samples",
        "keep",
    }


def score_key(*changes: dict[str, Any]) -> str:
    return digest_of(evaluation_identity(recipe_with(*changes)))


def test_evaluations_share_a_report_where_only_the_place_of_the_work_differs() -> None:
    assert score_key() == score_key({"eval": {"actors": 4}})
    assert score_key() == score_key(model(dtype="fp32", base="/elsewhere", revision="v2"))
    assert score_key(GPU) == score_key({"resources": {"gpus_per_worker": 2}}, model(dtype="bf16"))
    assert score_key() == score_key(train(lr=1), lora(r=64), {"gate": {"margin": 1}})
    assert score_key() == score_key(model(storage_dtype="uint8"))


def test_evaluations_have_a_report_of_their_own_for_other_settings() -> None:
    changed = [
        {"eval": {"max_samples": 1}},
        {"eval": {"batch_size": 1}},
        NF4,
        GPU,
        model(dtype="bf16"),
    ]
    assert len({score_key(), *(score_key(change) for change in changed)}) == len(changed) + 1
    assert score_key(GPU, model(dtype="fp32")) != score_key(model(dtype="fp32"))
