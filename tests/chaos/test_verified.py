"""A checkpoint whose files differ from the live weights is never seen, at every ZeRO stage.

The saved files are read back into the live weights before the checkpoint gets its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.train.checkpoint.files import list_checkpoints
from pipelines.train.track.metrics_log import read_metrics
from tests.chaos.faults import Faults
from tests.chaos.harness import attempt
from tests.small_run import fresh_args

FULL = {"method": "full", "lr": 3e-4}
THREE_SAVES = {"save_every": 2, "max_steps": 6, "keep": 5}


@pytest.mark.parametrize(
    ("train", "corrupt", "reason"),
    [
        ({"zero": 3}, "weights", "reloaded they "),
        ({"zero": 3}, "configuration", "reloads with scale 16.0, trained with 2.0"),
        ({"zero": 2}, "weights", "reloaded they "),
        ({**FULL, "zero": 3}, "weights", "reloaded they "),
        ({**FULL, "zero": 1}, "cut", "incomplete"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_files_that_differ_from_the_live_weights_are_refused_by_all_ranks(
    train: dict[str, Any], corrupt: str, reason: str, pocket_base: str, tmp_path: Path
) -> None:
    """The files of the second checkpoint change after they were written.

    Both ranks end with the same error and the first checkpoint stays.
    """
    args = fresh_args(pocket_base, tmp_path, train={**THREE_SAVES, **train})
    outcome = attempt(args, 2, Faults(corrupt=corrupt), timeout_s=120)
    assert outcome.codes == [0, 0]
    assert len(outcome.errors) == 2 and len(set(outcome.errors)) == 1
    message = outcome.errors[0]
    assert message.startswith("step 4: the checkpoint's files are not what training made (")
    assert reason in message
    assert [c.step for c in list_checkpoints(args.store, args.run_id)] == [2]
    assert not [path for path in args.folder.iterdir() if path.name.startswith(".")]
    assert attempt(args, 2).finished
    assert [c.step for c in list_checkpoints(args.store, args.run_id)] == [2, 4, 6]


CURVES = {
    "lora": ({}, {}),
    "full": (FULL, {}),
    "pissa": ({}, {"lora": {"init": "pissa"}}),
    "dora_and_head": ({}, {"lora": {"dora": True, "modules_to_save": ["lm_head"]}}),
    "bf16": ({}, {"model": {"dtype": "bf16"}}),
}


@pytest.mark.parametrize("name", CURVES)
def test_comparing_saved_with_live_weights_changes_no_bit_of_training(
    name: str, pocket_base: str, tmp_path: Path
) -> None:
    """ZeRO-3 on two ranks: each loss equals, bit for bit, that of a run that compares nothing."""
    train, sections = CURVES[name]
    curves = []
    for unverified in (True, False):
        folder = tmp_path / str(unverified)
        args = fresh_args(
            pocket_base, folder, train={**THREE_SAVES, "zero": 3, **train}, **sections
        )
        assert attempt(args, 2, Faults(rank=-1, unverified=unverified)).finished
        lines = read_metrics(args.folder)
        curves.append([(line["loss"], line.get("heldout_loss")) for line in lines])
        assert len(list_checkpoints(args.store, args.run_id)) == 3
    assert curves[0] == curves[1] and len(curves[0]) == 6
