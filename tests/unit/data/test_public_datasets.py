"""Five public datasets in the folder LORAFORGE_DATA, prepared without naming their formats."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import parse_recipe
from pipelines.core.progress import SILENT
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.rejects import reject_kinds
from pipelines.packed.reader import RowReader
from tests.stages import prepare

FOLDER = os.environ.get("LORAFORGE_DATA")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="LORAFORGE_DATA names no folder with the datasets"
)
DUPLICATE, EMPTY, LONG = (
    "the same content as an earlier row",
    "output: empty, there is nothing to learn",
    "longer than a pack",
)
# read, train, held out, and the rejects by reason, as docs/data.md lists them
EXPECTED = {
    "alpaca_en_demo.json": (999, 935, 50, {DUPLICATE: 14}),
    "code_alpaca_2k.json": (2017, 1913, 102, {EMPTY: 2}),
    "glaive_toolcall_sharegpt.json": (300, 254, 9, {DUPLICATE: 35, LONG: 2}),
    "gsm8k_train.jsonl": (7473, 7072, 401, {}),
    "gsm8k_test.jsonl": (1319, 1249, 70, {}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_row_of_a_public_dataset_is_accounted_for(ray_cluster, pocket_base, store, name):
    data = {"sources": [str(Path(FOLDER or "") / name)], "row_tokens": 4096}
    prepared = prepare(
        parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data}), store, SILENT
    )
    counts, (read, train, heldout, rejects) = prepared.counts, EXPECTED[name]
    assert (counts["read"], counts["train"], counts["heldout"]) == (read, train, heldout)
    folder = store.local_dir(prepared.ref)
    assert {kind.reason: kind.count for kind in reject_kinds(folder / "rejects.jsonl")} == rejects
    checks = store.by_id("prepared", prepared.ref.key).metadata["checks"]
    assert checks["stop_trained_checked"] and checks["prefix_matches_checked"]
    assert not any(count for check, count in checks.items() if check.endswith("_failed"))


def test_only_answers_and_calls_of_the_tool_dialogues_enter_the_loss(
    ray_cluster, pocket_base, store
):
    """The loss tokens of a sample spell its row's answers and calls, each with its stop token."""
    path = Path(FOLDER or "") / "glaive_toolcall_sharegpt.json"
    data = {"sources": [str(path)], "row_tokens": 16384, "heldout_share": 0, "duplicates": "keep"}
    prepared = prepare(
        parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data}), store, SILENT
    )
    renderer = ChatRenderer.load(pocket_base)
    learned = [
        renderer.decode(
            sample.input_ids[sample.loss_weights > 0].tolist(), skip_special_tokens=False
        )
        for sample in RowReader(store.local_dir(prepared.ref), "train").samples()
    ]
    expected = []
    for row in json.loads(path.read_text()):
        answers = []
        for turn in to_conversation(row).turns:
            calls = [
                f"<tool_call>\n{json.dumps(c['function'], ensure_ascii=False)}\n</tool_call>"
                for c in turn.tool_calls
            ]
            if turn.role == "assistant":
                answers.append(
                    "\n".join([*([turn.content] if turn.content else []), *calls]) + "<|end|>"
                )
        expected.append("".join(answers))
    assert sorted(learned) == sorted(expected) and len(learned) == 300
