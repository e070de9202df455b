"""Five public datasets, prepared with nothing said about their formats. Their folder is named by LORAFORGE_DATA."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import parse_recipe
from pipelines.core.progress import SILENT
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.rejects import reject_kinds
from pipelines.data.stage import prepare

FOLDER = os.environ.get("LORAFORGE_DATA")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="LORAFORGE_DATA names no folder with the datasets"
)
DUPLICATE, EMPTY, LONG = (
    "the same content as an earlier row",
    "output: empty, there is nothing to learn",
    "longer than a pack",
)
# read, train, held out, and what was lost for which reason, as docs/data.md says
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
    counts, (read, train, heldout, lost) = prepared.counts, EXPECTED[name]
    assert (counts["read"], counts["train"], counts["heldout"]) == (read, train, heldout)
    folder = store.local_dir(prepared.ref)
    assert {kind.reason: kind.count for kind in reject_kinds(folder / "rejects.jsonl")} == lost
    checks = store.by_id("prepared", prepared.ref.key).metadata["checks"]
    assert checks["stop_trained_checked"] and checks["prefix_matches_checked"]
    assert not any(count for check, count in checks.items() if check.endswith("_failed"))


def test_every_answer_and_call_of_the_tool_dialogues_is_trained_and_nothing_else(
    ray_cluster, pocket_base, store
):
    """Read back from the packs: what is trained spells the answers and calls of a row, each with its stop."""
    path = Path(FOLDER or "") / "glaive_toolcall_sharegpt.json"
    data = {"sources": [str(path)], "row_tokens": 16384, "heldout_share": 0, "duplicates": "keep"}
    prepared = prepare(
        parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data}), store, SILENT
    )
    renderer, found = ChatRenderer.load(pocket_base), []
    for shard in sorted(store.local_dir(prepared.ref).glob("train-*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            at = 0
            for length in row["sample_lengths"]:
                ids, weights = (row[key][at : at + length] for key in ("input_ids", "loss_weights"))
                found.append(
                    renderer.decode(
                        [i for i, w in zip(ids, weights, strict=True) if w], skip_control=False
                    )
                )
                at += length
    expected = []
    for row in json.loads(path.read_text()):
        said = []
        for turn in to_conversation(row).turns:
            calls = [
                f"<tool_call>\n{json.dumps(c['function'], ensure_ascii=False)}\n</tool_call>"
                for c in turn.tool_calls
            ]
            if turn.role == "assistant":
                said.append(
                    "\n".join([*([turn.content] if turn.content else []), *calls]) + "<|end|>"
                )
        expected.append("".join(said))
    assert sorted(found) == sorted(expected) and len(found) == 300
