"""Bases, rows and adapters that were trained wrongly without a word.

Packed attention refuses sinks itself now, and the configuration names layers with a state. Here
the proof of the run is alone, as for the next architecture that no list knows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jobs.cli import app
from pipelines.config.schema import LoraConfig
from pipelines.core.errors import UserError
from pipelines.model.lora import attach, trainable_parameters
from pipelines.train.base_proof import BaseProof, prove_base
from pipelines.train.batch import collate
from pipelines.train.checkpoint.moved import check_moved
from pipelines.train.engine.protocol import OptimizerState
from pipelines.train.loss import PackedLoss
from tests.tiny_models import KINDS, tiny_model

pytestmark = pytest.mark.trials

PRECISIONS = ["float32", "bfloat16"]
SIZES = {"vocab_size": 1024, "head_dim": 16}
ROOT = Path(__file__).parents[2]


def proof_of(model: Any, *samples: np.ndarray) -> BaseProof:
    return prove_base(PackedLoss(model), [sample.astype(np.int32) for sample in samples])


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_attention_sinks_are_seen(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean losses, 7.1024 and 7.1336, differ by 0.44 % only."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipelines.layers.attention import PACKED
    from tests.tiny_models import SIZES as BASE_SIZES

    monkeypatch.setattr("pipelines.layers.attention._check_arguments", lambda *_: None)
    values = {**BASE_SIZES, **KINDS["gpt_oss"], **SIZES}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model("gpt_oss", **values)
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED).eval()
    for name, parameter in model.named_parameters():
        if "sinks" in name:
            parameter.data.fill_(3.0)
    sample = np.random.default_rng(0).integers(12, 1000, 60)
    proof = proof_of(model.to(getattr(torch, dtype)), sample)
    near = 1e-4 if dtype == "float32" else 5e-3
    assert proof.packed_loss == pytest.approx(7.1024, abs=near)
    assert proof.reference_loss == pytest.approx(7.1336, abs=near)
    assert not proof.holds and proof.difference.mean > 10 * proof.difference.limit


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", ["qwen3_5_text", "lfm2", "granitemoehybrid", "jamba"])
def test_samples_that_see_each_other_are_seen(kind: str, dtype: str) -> None:
    second = np.random.default_rng(1).integers(12, 1000, 30)
    model = tiny_model(kind, dtype, vocab_size=1024)
    assert proof_of(model, np.full(30, 50), second).leaks
    assert not proof_of(tiny_model("llama", dtype, vocab_size=1024), np.full(30, 50), second).leaks


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 60}, "is beyond the 60 embeddings of model.base"),
        ({"max_position_embeddings": 40}, "knows 40 positions .*set data.row_tokens=40 or less"),
    ],
)
def test_ids_and_positions_beyond_the_base_are_refused_in_the_dry_run(
    values: dict[str, int], message: str, pocket_base: str, tmp_path: Path
) -> None:
    """They were an IndexError or a device assert in a worker, tried three times, or nothing."""
    base = shutil.copytree(pocket_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | values))
    recipe = str(ROOT / "recipes" / "pocket_lora_person_cpu.yaml")
    given = ["train", recipe, "--dry-run", "--store", str(tmp_path), "-s", f"model.base={base}"]
    error = CliRunner().invoke(app, given).exception
    assert isinstance(error, UserError)
    with pytest.raises(UserError, match=message):
        raise error


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "model.embed_tokens", "wte"])
@pytest.mark.parametrize("command", ["validate", "train", "run"])
def test_adapters_of_the_vocabulary_are_refused_at_once(command: str, name: str) -> None:
    """They trained and verified, and evaluation refused them; embeddings failed at a save."""
    recipe = str(ROOT / "recipes" / "pocket_lora_person_cpu.yaml")
    given = [command, recipe, "-s", f"lora.targets=[q_proj, {name}]"]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, UserError) or result.exit_code == 2
    assert f"leave {name} out" in f"{result.output} {result.exception}"


def test_jambas_projection_that_never_moves_is_named() -> None:
    model: Any = attach(tiny_model("jamba"), LoraConfig(r=4, targets=["dt_proj", "x_proj"]), seed=0)
    parameters = trainable_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    ids = np.random.default_rng(0).integers(2, 200, 40).astype(np.int32)
    row = {"input_ids": ids, "loss_weights": np.ones(40, np.float32), "sample_lengths": [40]}
    for _ in range(2):
        PackedLoss(model)(collate([row])).backward()
        optimizer.step()
    moments = {
        name: optimizer.state.get(parameter, {}).get("exp_avg", torch.zeros_like(parameter))
        for name, parameter in parameters.items()
    }
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    with pytest.raises(UserError, match=r"1 of the adapter's 4 .*dt_proj.lora_B.*targets=\[x_proj"):
        check_moved(2, OptimizerState(weights, moments, moments, step=2))
