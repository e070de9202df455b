"""Adapters on a tiny random base: what attaching, saving, choosing and merging must leave exactly as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.adapter_format.folder import CONFIG_FILE, WEIGHTS_FILE
from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.core.errors import UserError
from pipelines.model.base import base_fingerprint, load_base
from pipelines.model.lora import (
    add_adapter,
    attach,
    audit_adapter,
    one_adapter,
    save_adapter,
    trainable,
)
from pipelines.model.merge import merge_adapter

IDS = torch.arange(3, 27).reshape(2, 12)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def trained_adapter(base: str, folder: Path, seed: int, **options: Any) -> Path:
    """An adapter whose B is not zero, as training leaves it."""
    model = attach(
        load_base(ModelConfig(base=base), "cpu"), LoraConfig(r=4, alpha=8, **options), seed
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable(model).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    save_adapter(model, folder, base)
    audit_adapter(folder, model, trained=True)
    return folder


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_step_zero_is_the_base_bit_for_bit(pocket_base: str, quantization: Any) -> None:
    config = ModelConfig(base=pocket_base, quantization=quantization)
    before = logits(load_base(config, "cpu"))
    adapted = attach(load_base(config, "cpu"), LoraConfig(r=8), seed=0).eval()
    assert torch.equal(logits(adapted), before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ["q_proj", "vv_proj"]}, "no module 'vv_proj'; did you mean v_proj"),
        ({"targets": ["norm"]}, "cannot be adapted.*linear modules are down_proj"),
        ({"modules_to_save": ["lm_heat"]}, "no module 'lm_heat'; did you mean lm_head"),
        (
            {"rank_pattern": {"q_prj": 4}},
            "rank_pattern: 'q_prj' means none of the adapted modules.*q_proj",
        ),
        (
            {"targets": "qv", "alpha_pattern": {"k_proj": 4}},
            "alpha_pattern: 'k_proj' means none of .* q_proj, v_proj",
        ),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern: q_proj: 0 given, must be greater than 0"),
        ({"rank_pattern": {"(": 4}}, r"rank_pattern: '\(' is no regular expression"),
        (
            {"r": 512, "init": "pissa"},
            "finds at most 192 directions in .*its rank is 512: set lora.r=192 or lower",
        ),
        ({"r": 512, "init": "eva"}, "lora.init=eva finds at most 192 directions"),
    ],
)
def test_a_name_that_means_nothing_and_a_rank_too_high_are_refused(
    options: dict[str, Any], said: str, pocket_base: str
) -> None:
    with pytest.raises(UserError, match=said):
        attach(
            load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig.model_validate(options), 0
        )


def test_layers_may_have_patterns_of_their_own(pocket_base: str) -> None:
    """By name, by place and by regular expression, as PEFT matches them."""
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


def test_the_seed_decides_the_start(pocket_base: str) -> None:
    first, again, other = (
        trainable(attach(load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=4), seed))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("targets", "modules"), [("qv", 2), ("attention", 4), ("all-linear", 7), (["down_proj"], 1)]
)
def test_presets_name_what_trains(pocket_base: str, targets: Any, modules: int) -> None:
    model = attach(
        load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(r=2, targets=targets), 0
    )
    assert len(trainable(model)) == modules * 2 * 4  # A and B in each of four layers


def test_unknown_target_names_the_modules_there_are(pocket_base: str) -> None:
    with pytest.raises(UserError, match=r"lora.targets=\['wq'\].*q_proj"):
        attach(load_base(ModelConfig(base=pocket_base), "cpu"), LoraConfig(targets=["wq"]), 0)


def test_rslora_scales_by_the_square_root(pocket_base: str) -> None:
    """Same weights, alpha 8, r 4: LoRA scales by 2, rank-stabilised by 4; the deltas of one linear differ by that."""
    deltas = []
    for rslora in (False, True):
        base = load_base(ModelConfig(base=pocket_base), "cpu")
        model = attach(base, LoraConfig(r=4, alpha=8, rslora=rslora, targets=["q_proj"]), 0)
        for name, parameter in trainable(model).items():
            if "lora_B" in name:
                parameter.data.fill_(0.1)
        linear: Any = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        x = torch.ones(1, linear.in_features)
        deltas.append(linear(x) - linear.base_layer(x))
    torch.testing.assert_close(deltas[1], 2 * deltas[0])


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_merged_equals_adapter(pocket_base: str, tmp_path: Path, quantization: Any) -> None:
    """fp32: within 1e-5 of the largest logit of the model that the adapter was trained on, the 4-bit one dequantized.

    fp32 itself moves the adapted model's logits by about 1e-6 of their size against fp64.
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
    "whole": {"modules_to_save": ["lm_head"]},
    "ranks": {"rank_pattern": {"q_proj": 2}},
}


def test_one_adapter_at_a_time_whatever_its_kind(pocket_base: str, tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match="no adapters"), one_adapter(model, "plain"):
        pass
    for kind, folder in folders.items():
        model = add_adapter(model, kind, folder)
    for kind in ("dora", "base", "whole", "plain", "base", "ranks", "dora"):
        with one_adapter(model, None if kind == "base" else kind):
            torch.testing.assert_close(logits(model), alone[kind], rtol=1e-5, atol=1e-5)
    differ = [(alone[a] - alone[b]).abs().max() for a in alone for b in alone if a < b]
    assert min(differ) > 0.01
    assert not trainable(model)


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "zero"])
def test_audit_refuses_what_training_cannot_have_made(
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
    elif damage == "nan":
        tensors[name][0, 0] = float("nan")
    else:
        tensors = {key: torch.zeros_like(t) if "lora_B" in key else t for key, t in tensors.items()}
    save_file(tensors, str(folder / WEIGHTS_FILE))
    with pytest.raises(ValueError, match=r"lora_B|lora_A"):
        audit_adapter(folder, model, trained=True)


def test_adapter_that_does_not_fit_is_refused(pocket_base: str, tmp_path: Path) -> None:
    folder = trained_adapter(pocket_base, tmp_path / "a", 1)
    tensors = load_file(str(folder / WEIGHTS_FILE))
    save_file(
        {k.replace("layers.3", "layers.9"): t for k, t in tensors.items()},
        str(folder / WEIGHTS_FILE),
    )
    with pytest.raises(UserError, match="does not fit the base"):
        add_adapter(load_base(ModelConfig(base=pocket_base), "cpu"), "a", folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(UserError, match="not an adapter"):
        add_adapter(load_base(ModelConfig(base=pocket_base), "cpu"), "a", folder)


def test_fingerprint_is_the_weights_not_the_place(pocket_base: str, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(pocket_base, tmp_path / "copy")
    assert base_fingerprint(str(tmp_path / "copy")) == base_fingerprint(pocket_base)
    weights = tmp_path / "copy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert base_fingerprint(str(tmp_path / "copy")) != base_fingerprint(pocket_base)


@pytest.mark.parametrize("given", ["/nowhere/model", "./nothing"])
def test_missing_base_is_named(given: str) -> None:
    with pytest.raises(UserError, match=f"model.base={given}: no such folder"):
        load_base(ModelConfig(base=given), "cpu")
