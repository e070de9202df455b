"""A checkpoint is what trains, or it is never seen: written files are read back into the live weights, at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import Store
from pipelines.train.checkpoint.files import list_checkpoints
from pipelines.train.track.metrics_log import read_metrics
from tests.chaos.harness import Faults, WorkerArgs, attempt, plan_of, prepared_dataset, recipe_for

FULL = {"method": "full", "lr": 3e-4}


def fresh_plan(base: str, folder: Path, train: dict[str, Any], **sections: Any) -> WorkerArgs:
    store = Store(folder)
    recipe = recipe_for(
        base, train={"save_every": 2, "max_steps": 6, "keep": 5, **train}, **sections
    )
    return plan_of(recipe, store, prepared_dataset(store, base))


@pytest.mark.parametrize(
    ("train", "spoil", "said"),
    [
        ({"zero": 3}, "weights", "reloaded they "),
        ({"zero": 3}, "configuration", "reloads with scale 16.0, trained with 2.0"),
        ({"zero": 2}, "weights", "reloaded they "),
        ({**FULL, "zero": 3}, "weights", "reloaded they "),
        ({**FULL, "zero": 1}, "cut", "incomplete"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_a_file_that_is_not_what_trains_is_refused_by_all_ranks(
    train: dict[str, Any], spoil: str, said: str, pocket_base: str, tmp_path: Path
) -> None:
    """The second checkpoint changes on the disk after it was written: both ranks end with one line, the first one stays."""
    plan = fresh_plan(pocket_base, tmp_path, train)
    outcome = attempt(plan, 2, Faults(spoil=spoil), timeout_s=120)
    assert (
        outcome.codes == [0, 0] and len(outcome.mistakes) == 2 and len(set(outcome.mistakes)) == 1
    )
    assert outcome.mistakes[0].startswith(
        "step 4: the checkpoint's files are not what training made ("
    )
    assert said in outcome.mistakes[0]
    assert [c.step for c in list_checkpoints(plan.store, plan.run_id)] == [2]
    assert not [path for path in plan.folder.iterdir() if path.name.startswith(".")]
    assert attempt(plan, 2).fine
    assert [c.step for c in list_checkpoints(plan.store, plan.run_id)] == [2, 4, 6]


CURVES = {
    "lora": ({}, {}),
    "full": (FULL, {}),
    "pissa": ({}, {"lora": {"init": "pissa"}}),
    "dora_and_head": ({}, {"lora": {"dora": True, "modules_to_save": ["lm_head"]}}),
    "bf16": ({}, {"model": {"dtype": "bf16"}}),
}


@pytest.mark.parametrize("name", CURVES)
def test_training_goes_on_as_if_nobody_had_looked(
    name: str, pocket_base: str, tmp_path: Path
) -> None:
    """ZeRO-3 on two ranks: each bit of each loss is the one of a run that compares nothing."""
    train, sections = CURVES[name]
    curves = []
    for unverified in (True, False):
        plan = fresh_plan(pocket_base, tmp_path / str(unverified), {"zero": 3, **train}, **sections)
        assert attempt(plan, 2, Faults(rank=-1, unverified=unverified)).fine
        lines = read_metrics(plan.folder)
        curves.append([(line["loss"], line.get("heldout_loss")) for line in lines])
        assert len(list_checkpoints(plan.store, plan.run_id)) == 3
    assert curves[0] == curves[1] and len(curves[0]) == 6
