"""Parameter counts on the meta device, the choice of `auto`, and recipes that fit no memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.errors import UserError
from pipelines.plan.memory import choose_plan, legal_plans
from pipelines.plan.shape import shape_of

GIB = 2**30
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    return str(folder)


def recipe(base: str, **sections: Any) -> Recipe:
    model = {"base": base, "dtype": "bf16", **sections.pop("model", {})}
    return parse_recipe(
        {"name": "plan", "model": model, "data": {"sources": ["none.json"]}, **sections}
    )


@pytest.mark.parametrize(
    ("targets", "count"), [("qv", 6_815_744), ("attention", 13_631_488), ("all-linear", 41_943_040)]
)
def test_trainable_parameters_of_llama_8b(targets: str, count: int, llama_8b: str) -> None:
    shape = shape_of(recipe(llama_8b, lora={"r": 16, "targets": targets}))
    assert shape.num_trainable_parameters == count
    assert shape.total == 8_030_261_248


def test_trainable_parameters_are_counted_by_module(llama_8b: str) -> None:
    shape = shape_of(recipe(llama_8b, lora={"r": 16}))
    counts = shape.trainable_by_module
    assert counts["q_proj"] == 32 * 131_072  # one 4096 x 4096 linear: 16 x (4096 + 4096)
    assert counts["k_proj"] == 32 * 16 * (4096 + 1024)
    assert counts["down_proj"] == 32 * 16 * (4096 + 14_336)


def test_auto_chooses_the_fastest_plan_that_fits(llama_8b: str) -> None:
    """8,192 tokens on two workers: less memory needs more recomputing, then a higher ZeRO stage."""
    train = {"zero": "auto", "gradient_checkpointing": "auto", "offload": "auto"}
    given = recipe(llama_8b, lora={"r": 16}, train=train)
    shape = shape_of(given)
    picked = [choose_plan(given, shape, 8192, 2, int(size * GIB)) for size in (141, 48, 32, 24)]
    assert [(p.zero, p.gradient_checkpointing) for p in picked[:2]] == [(0, "off"), (0, "full")]
    assert picked[2].bytes <= 32 * GIB and picked[3].bytes <= 24 * GIB
    assert [p.bytes for p in picked] == sorted((p.bytes for p in picked), reverse=True)


def test_nf4_is_never_combined_with_zero_3(llama_8b: str) -> None:
    given = recipe(
        llama_8b, model={"quantization": "nf4"}, train={"zero": "auto", "offload": "auto"}
    )
    plans = list(legal_plans(given, shape_of(given), 2048, 8))
    assert plans and all(plan.zero < 3 and plan.offload != "parameters" for plan in plans)


def test_a_run_that_fits_no_worker_is_refused_with_the_smallest_plan(llama_8b: str) -> None:
    given = recipe(llama_8b, train={"zero": 1})
    with pytest.raises(
        UserError, match=r"no plan fits 4.0 GiB per worker.*set train.zero and.* to auto"
    ):
        choose_plan(given, shape_of(given), 2048, 2, 4 * GIB)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"quantization": "nf4"}, "train": {"zero": 3}}, "4-bit weights do not support"),
        ({"model": {"quantization": "int8"}, "train": {"zero": 3}}, "8-bit weights do not support"),
        ({"train": {"offload": "parameters"}}, "set train.zero=3"),
        ({"train": {"zero": 0, "offload": "optimizer"}}, "train.zero=1, 2 or 3"),
        ({"train": {"zero": 3, "optimizer": "adamw_8bit"}}, "train.optimizer=adamw"),
        ({"lora": {"init": "loftq"}}, "model.quantization=nf4"),
        ({"lora": {"init": "pissa"}, "model": {"quantization": "nf4"}}, "model.quantization=none"),
        (
            {"train": {"method": "full"}, "model": {"quantization": "nf4"}},
            "trains the base's weights",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_refused_with_the_reason(
    sections: dict[str, Any], message: str, llama_8b: str
) -> None:
    with pytest.raises(UserError, match=message):
        recipe(llama_8b, **sections)
