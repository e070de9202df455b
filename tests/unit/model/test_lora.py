"""Adapters on a tiny random base: attach, save, verify, load, choose and merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.adapter_format.peft_files import CONFIG_FILE, WEIGHTS_FILE
from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.core.errors import UserError
from pipelines.model.base import load_base
from pipelines.model.lora import attach, trainable_parameters
from pipelines.model.lora_load import add_adapter, use_adapter
from pipelines.model.lora_save import save_adapter, verify_saved_adapter
from pipelines.model.merge import merge_adapter
from pipelines.plan.shape import count_by_module

IDS = torch.arange(3, 27).reshape(2, 12)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def trained_adapter(base: str, folder: Path, seed: int, **options: Any) -> Path:
    """A saved adapter whose B is not zero, as after training."""
    model = attach(
        load_base(ModelConfig(base=base), "cpu"), LoraConfig(r=4, alpha=8, **options), seed
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable_parameters(model).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    save_adapter(model, folder, base)
    verify_saved_adapter(folder, model)
    return folder


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_step_zero_is_the_base_bit_for_bit(pocket_base: str, quantization: Any) -> None:
    config = ModelConfig(base=pocket_base, quantization=quantization)
    before = logits(load_base(config, "cpu"))
    adapted = attach(load_base(config, "cpu"), LoraConfig(r=8), seed=0).eval()
    assert torch.equal(logits(adapted), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["q_proj", "vv_proj"]}, "no module 'vv_proj'; did you mean v_proj"),
        ({"targets": ["norm"]}, "cannot be adapted.*linear modules are down_proj"),
        ({"modules_to_save": ["lm_heat"]}, "no module 'lm_heat'; did you mean lm_head"),
        (
            {"rank_pattern": {"q_prj": 4}},
            "rank_pattern: 'q_prj' matches none of the adapted modules.*q_proj",
        ),
        (
            {"targets": "qv", "alpha_pattern": {"k_proj": 4}},
            "alpha_pattern: 'k_proj' matches none of .* q_proj, v_proj",
        ),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern: q_proj: 0 given, must be greater than 0"),
        ({"rank_pattern": {"(": 4}}, r"rank_pattern: '\(' is not a regular expression"),
        (
            {"r": 512, "init": "pissa"},
            "finds at most 192 directions in .*its rank is 512: set lora.r=192 or lower",
        ),
        ({"r": 512, "init": "eva"}, "lora.init=eva finds at most 192 directions"),
    ],
)
def test_an_unknown_module_name_and_a_rank_that_is_too_high_are_refused(
    options: dict[str, Any], message: str, pocket_base: str
) -> None:
    with pytest.raises(UserError, match=message):
        attach(
            load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig.model_validate(options), 0
        )


def test_patterns_set_the_rank_of_single_layers(pocket_base: str) -> None:
    """By module name, by position and by regular expression, as PEFT matches them."""
    pattern = {"q_proj": 2, "layers.0.self_attn.v_proj": 3, r"layers\.[12]\.mlp\..*": 5}
    model: Any = attach(
        load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=4, rank_pattern=pattern), 0
    )
    layers = {
        n: m.r["default"] for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")
    }
    assert (
        layers["model.layers.3.self_attn.q_proj"] == 2
        and layers["model.layers.0.self_attn.v_proj"] == 3
    )
    assert (
        layers["model.layers.1.self_attn.v_proj"] == 4 and layers["model.layers.2.mlp.up_proj"] == 5
    )


def test_the_saved_configuration_lists_modules_in_one_order(
    pocket_base: str, tmp_path: Path
) -> None:
    """PEFT keeps them in a set, whose order differs from process to process."""
    model = attach(load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=2), seed=0)
    save_adapter(model, tmp_path, pocket_base)
    modules = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(modules) == 7 and modules == sorted(modules)


def test_the_seed_determines_the_initial_adapter(pocket_base: str) -> None:
    first, again, other = (
        trainable_parameters(
            attach(load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=4), seed)
        )
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("targets", "modules"), [("qv", 2), ("attention", 4), ("all-linear", 7), (["down_proj"], 1)]
)
def test_a_preset_adapts_its_modules(pocket_base: str, targets: Any, modules: int) -> None:
    model = attach(
        load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=2, targets=targets), 0
    )
    assert len(trainable_parameters(model)) == modules * 2 * 4  # A and B in each of four layers


def test_an_unknown_target_is_refused_with_the_names_of_the_base(pocket_base: str) -> None:
    with pytest.raises(UserError, match=r"lora.targets=\['wq'\].*q_proj"):
        attach(load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(targets=["wq"]), 0)


def test_rslora_scales_by_the_square_root_of_the_rank(pocket_base: str) -> None:
    """Alpha 8, r 4: LoRA scales by 2, rsLoRA by 4, so the update of a linear doubles."""
    deltas = []
    for rslora in (False, True):
        base = load_base(ModelConfig(base=pocket_base), "cpu")
        model = attach(base, LoraConfig(r=4, alpha=8, rslora=rslora, targets=["q_proj"]), 0)
        for name, parameter in trainable_parameters(model).items():
            if "lora_B" in name:
                parameter.data.fill_(0.1)
        linear: Any = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        x = torch.ones(1, linear.in_features)
        deltas.append(linear(x) - linear.base_layer(x))
    torch.testing.assert_close(deltas[1], 2 * deltas[0])


def test_lora_output_and_gradients_equal_the_formula(pocket_base: str) -> None:
    """h = W0 x + (alpha / r) B A x, written out for one linear of the model."""
    model = attach(
        load_base(ModelConfig(base=pocket_base), "cpu"),
        LoraConfig(r=4, alpha=6, targets=["down_proj"]),
        1,
    )
    layer: Any = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    layer.double()
    a, b, w = layer.lora_A.default.weight, layer.lora_B.default.weight, layer.base_layer.weight
    torch.manual_seed(0)
    b.data = torch.randn_like(b)
    x, upstream = torch.randn(5, w.shape[1]).double(), torch.randn(5, w.shape[0]).double()
    out = layer(x)
    out.backward(upstream)
    scale = 6 / 4
    torch.testing.assert_close(out, x @ w.T + scale * (x @ a.T) @ b.T)
    torch.testing.assert_close(b.grad, scale * upstream.T @ (x @ a.T))
    torch.testing.assert_close(a.grad, scale * (upstream @ b).T @ x)
    assert w.grad is None


def test_training_changes_neither_the_base_nor_another_adapter(
    pocket_base: str, tmp_path: Path
) -> None:
    """Five steps of adapter "default" keep every bit of the base and of adapter "other"."""
    import peft

    model: Any = attach(load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=4), 1)
    model.add_adapter(
        "other", peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    model.set_adapter("default")
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert any(".other." in name for name in frozen)
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    ids = torch.arange(3, 35)[None]
    for _ in range(5):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    assert count_by_module(model)["q_proj"] > 0


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_merged_model_gives_the_logits_of_the_adapter(
    pocket_base: str, tmp_path: Path, quantization: Any
) -> None:
    """In fp32 within 1e-5 of the largest logit; a 4-bit base is dequantized first on both sides.

    Rounding in fp32 alone moves the adapted model's logits by about 1e-6 of their size.
    """
    folder = trained_adapter(pocket_base, tmp_path / "a", 1)
    config = ModelConfig(base=pocket_base, quantization=quantization)
    base: Any = load_base(config, "cpu")
    if quantization == "nf4":
        base = base.dequantize()
    expected = logits(add_adapter(base, "a", folder))
    merged = merge_adapter(config, folder, "cpu")
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert (logits(merged) - expected).abs().max() <= 1e-5 * expected.abs().max()


KINDS = {
    "plain": {},
    "dora": {"dora": True},
    "module": {"modules_to_save": ["lm_head"]},
    "ranks": {"rank_pattern": {"q_proj": 2}},
}


def test_adapters_of_all_kinds_can_be_switched(pocket_base: str, tmp_path: Path) -> None:
    config = ModelConfig(base=pocket_base)
    folders = {
        kind: trained_adapter(pocket_base, tmp_path / kind, 1, **options)
        for kind, options in KINDS.items()
    }
    alone = {
        kind: logits(add_adapter(load_base(config, "cpu"), kind, folder))
        for kind, folder in folders.items()
    }
    alone["base"] = logits(load_base(config, "cpu"))
    model: Any = load_base(config, "cpu")
    with pytest.raises(ValueError, match="no adapters"), use_adapter(model, "plain"):
        pass
    for kind, folder in folders.items():
        model = add_adapter(model, kind, folder)
    for kind in ("dora", "base", "module", "plain", "base", "ranks", "dora"):
        with use_adapter(model, None if kind == "base" else kind):
            torch.testing.assert_close(logits(model), alone[kind], rtol=1e-5, atol=1e-5)
    differ = [(alone[a] - alone[b]).abs().max() for a in alone for b in alone if a < b]
    assert min(differ) > 0.01
    assert not trainable_parameters(model)


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_verify_refuses_an_adapter_that_training_cannot_have_made(
    pocket_base: str, tmp_path: Path, damage: str
) -> None:
    folder = trained_adapter(pocket_base, tmp_path / "a", 1)
    model = attach(load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=4, alpha=8), 1)
    tensors = load_file(str(folder / WEIGHTS_FILE))
    name = next(key for key in tensors if "lora_B" in key)
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][:0].contiguous()
    else:
        tensors[name][0, 0] = float("nan")
    save_file(tensors, str(folder / WEIGHTS_FILE))
    with pytest.raises(ValueError, match=r"lora_B|lora_A"):
        verify_saved_adapter(folder, model)


def test_an_adapter_for_another_base_is_refused(pocket_base: str, tmp_path: Path) -> None:
    folder = trained_adapter(pocket_base, tmp_path / "a", 1)
    tensors = load_file(str(folder / WEIGHTS_FILE))
    save_file(
        {k.replace("layers.3", "layers.9"): t for k, t in tensors.items()},
        str(folder / WEIGHTS_FILE),
    )
    with pytest.raises(UserError, match="does not fit the base"):
        add_adapter(load_base(ModelConfig(base=pocket_base), "cpu"), "a", folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(UserError, match="not a LoRA configuration"):
        add_adapter(load_base(ModelConfig(base=pocket_base), "cpu"), "a", folder)


@pytest.mark.parametrize("given", ["/nowhere/model", "./nothing"])
def test_a_missing_base_is_named(given: str) -> None:
    with pytest.raises(UserError, match=f"model.base={given}: no such folder"):
        load_base(ModelConfig(base=given), "cpu")
