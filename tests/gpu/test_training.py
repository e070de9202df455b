"""Training on GPUs in all precisions and ZeRO stages: saved, reloaded in plain PEFT, resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.cases import NUM_STEPS, ONE, TWO, run_cases

HALF = NUM_STEPS // 2


def start(cases: dict[str, dict[str, Any]], base: str, folder: Path, world_size: int) -> Path:
    from torch.multiprocessing.spawn import spawn

    spawn(run_cases, (base, str(folder), cases, world_size, "cuda"), nprocs=world_size)
    return folder


@pytest.fixture(scope="module")
def single_gpu(pocket_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(ONE, pocket_base, tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two_gpus(pocket_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(TWO, pocket_base, tmp_path_factory.mktemp("two"), 2)


def outcome(folder: Path, name: str) -> dict[str, Any]:
    """A case's result after the checks that every case must pass."""
    result = json.loads((folder / f"{name}.json").read_text())
    assert "error" not in result, result["error"]
    losses = [step["loss"] for step in result["steps"]]
    assert len(losses) == NUM_STEPS and all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3]), "ten epochs over six packs"
    near = 1e-3 if name.startswith("fp32") else 5e-2
    assert math.isclose(result["reloaded"], result["checkpoint"]["heldout_loss"], rel_tol=near)
    assert result["again"] == pytest.approx(losses[HALF:], rel=near), "the second half, run again"
    return result


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in ONE if name != "fp16_overflow"])
def test_trains_saves_reloads_and_resumes(name: str, single_gpu: Path) -> None:
    result = outcome(single_gpu, name)
    assert all(step["grad_norm"] is not None for step in result["steps"][HALF:])
    if name.startswith("fp16"):
        assert 1 <= result["checkpoint"]["scaler"]["cur_scale"] <= 2**16


@pytest.mark.gpu
def test_fp16_lowers_its_scale_until_gradients_fit_and_a_resume_keeps_it(single_gpu: Path) -> None:
    result = outcome(single_gpu, "fp16_overflow")
    left_out = [step["grad_norm"] is None for step in result["steps"]]
    assert left_out[0] and sum(left_out) < HALF and not any(left_out[HALF:])
    checkpoint = result["checkpoint"]
    assert checkpoint["updates"] == NUM_STEPS - sum(left_out)
    assert checkpoint["scaler"]["cur_scale"] <= 2 ** (16 - sum(left_out) + 2)
    assert not any(step["skipped"] for step in result["steps"]), (
        "lowering the scale is no mishap of the run"
    )


@pytest.mark.gpu2
@pytest.mark.parametrize("name", TWO)
def test_two_gpus_train_save_reload_and_resume(name: str, two_gpus: Path) -> None:
    outcome(two_gpus, name)


@pytest.mark.gpu2
def test_zero_stages_agree(two_gpus: Path) -> None:
    curves = {
        zero: [s["loss"] for s in outcome(two_gpus, f"bf16_zero{zero}")["steps"]]
        for zero in (1, 2, 3)
    }
    assert curves[2][:HALF] == pytest.approx(curves[1][:HALF], rel=5e-2)
    assert curves[3][:HALF] == pytest.approx(curves[2][:HALF], rel=5e-2)
