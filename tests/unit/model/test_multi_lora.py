"""Many adapters in one batch: each row equals what PEFT gives with that row's adapter alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from pipelines.adapter_format.peft_files import CONFIG_FILE, WEIGHTS_FILE
from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.core.errors import UserError
from pipelines.model.base import load_base
from pipelines.model.lora import attach, trainable_parameters
from pipelines.model.lora_save import save_adapter
from pipelines.model.multi_lora import MultiLora

IDS = torch.arange(7 * 11).reshape(7, 11) % 900


def fresh(base: str) -> Any:
    return load_base(ModelConfig(base=base, dtype="fp32"), "cpu")


@pytest.fixture(scope="module")
def folders(pocket_base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved adapters of different ranks, targets and scales."""
    kinds = {
        "narrow": LoraConfig(r=2, alpha=8, targets="qv"),
        "wide": LoraConfig(r=16, alpha=16),
        "stable": LoraConfig(r=8, alpha=4, rslora=True, targets=["down_proj", "o_proj"]),
    }
    saved = {}
    for seed, (name, kind) in enumerate(kinds.items()):
        model = attach(fresh(pocket_base), kind, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in trainable_parameters(model).values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        saved[name] = tmp_path_factory.mktemp(name)
        save_adapter(model, saved[name], pocket_base)
    return saved


@pytest.fixture
def rows(pocket_base: str, folders: dict[str, Path]) -> tuple[Any, MultiLora]:
    model = fresh(pocket_base)
    by_row = MultiLora(model)
    for name, folder in folders.items():
        by_row.add(name, folder)
    return model, by_row


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids).logits


@pytest.fixture(scope="module")
def alone(pocket_base: str, folders: dict[str, Path]) -> dict[str | None, torch.Tensor]:
    """By adapter: the logits of the batch under that adapter alone, by plain PEFT."""
    by_peft = {
        n: logits(PeftModel.from_pretrained(fresh(pocket_base), str(f)).eval())
        for n, f in folders.items()
    }
    return {None: logits(fresh(pocket_base)), **by_peft}


MIXES: list[list[str | None]] = [
    ["narrow", "wide", None, "stable", "wide", None, "narrow"],
    ["wide"] * 7,
    [None, "stable", None, None, "stable", None, None],
]


@pytest.mark.parametrize("names", MIXES, ids=["all", "one", "some"])
def test_each_row_equals_a_batch_under_its_adapter_alone(
    rows: Any, alone: Any, names: list[str | None]
) -> None:
    model, by_row = rows
    by_row.use(names)
    mixed = logits(model)
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], alone[name][i], rtol=1e-4, atol=1e-4)
    assert (alone["wide"] - alone[None]).abs().max() > 0.1  # or nothing was compared


def test_rows_without_an_adapter_equal_the_base_bit_for_bit(rows: Any, alone: Any) -> None:
    model, by_row = rows
    by_row.use(MIXES[0])
    assert torch.equal(logits(model)[[2, 5]], alone[None][[2, 5]])
    by_row.use([None] * 7)
    assert torch.equal(logits(model), alone[None])


def test_the_adapters_of_rows_may_change_between_forwards(rows: Any, alone: Any) -> None:
    model, by_row = rows
    for names in (MIXES[2], MIXES[0], ["narrow"] * 7, MIXES[1]):
        by_row.use(names)
        mixed = logits(model)
        for i, name in enumerate(names):
            torch.testing.assert_close(mixed[i], alone[name][i], rtol=1e-4, atol=1e-4)


def test_a_removed_adapter_has_no_effect_and_can_be_added_again(
    rows: Any, alone: Any, folders: dict[str, Path]
) -> None:
    model, by_row = rows
    by_row.use(["wide"] * 7)
    by_row.remove("wide")
    assert torch.equal(logits(model), alone[None])
    with pytest.raises(KeyError):
        by_row.use(["wide"] * 7)
    by_row.add("wide", folders["wide"])
    by_row.use(["wide"] * 7)
    torch.testing.assert_close(logits(model), alone["wide"], rtol=1e-4, atol=1e-4)


def test_an_infinity_in_one_row_does_not_reach_another(
    rows: Any, alone: Any, folders: dict[str, Path], tmp_path: Path
):
    model, by_row = rows
    by_row.add(
        "huge",
        altered(
            folders["wide"], tmp_path, lambda tensors: {k: t * 1e30 for k, t in tensors.items()}
        ),
    )
    by_row.use(["huge", "narrow", None, None, None, None, None])
    mixed = logits(model)
    assert not mixed[0].isfinite().all()
    torch.testing.assert_close(mixed[1], alone["narrow"][1], rtol=1e-4, atol=1e-4)
    assert torch.equal(mixed[2], alone[None][2])


def altered(
    source: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]], **config: Any
) -> Path:
    save_file(
        change(load_file(source / WEIGHTS_FILE)), target / WEIGHTS_FILE, metadata={"format": "pt"}
    )
    fields = json.loads((source / CONFIG_FILE).read_text()) | config
    (target / CONFIG_FILE).write_text(json.dumps(fields))
    return target


def without_first(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if name != min(tensors)}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda t: {k: v[:, :-1].contiguous() for k, v in t.items()}, {}, "does not fit the base"),
        (
            lambda t: {k.replace("q_proj", "x_proj"): v for k, v in t.items()},
            {},
            "not a linear layer of it",
        ),
        (without_first, {}, "no partner"),
        (
            lambda t: t | {"base_model.model.lm_head.weight": torch.ones(1)},
            {},
            "neither a lora_A nor a lora_B",
        ),
        (lambda t: t, {"use_dora": True}, "use_dora is set, and only plain LoRA"),
        (lambda t: t, {"peft_type": "IA3"}, "'IA3', only LORA"),
        (lambda t: t, {"r": None}, "r=None is not an integer"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    rows: Any,
    alone: Any,
    folders: dict[str, Path],
    tmp_path: Path,
    change: Any,
    config: dict[str, Any],
    message: str,
) -> None:
    model, by_row = rows
    with pytest.raises(UserError, match=message):
        by_row.add("misfit", altered(folders["narrow"], tmp_path, change, **config))
    by_row.use(["narrow"] * 7)
    torch.testing.assert_close(logits(model), alone["narrow"], rtol=1e-4, atol=1e-4)


def test_a_missing_file_is_named(rows: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copyfile(folders["wide"] / CONFIG_FILE, tmp_path / CONFIG_FILE)
    with pytest.raises(
        UserError, match="adapter_model.safetensors: not a complete safetensors file"
    ):
        rows[1].add("incomplete", tmp_path)
