"""Packed rows from the real prepare stage have the loss of the same samples alone, as plain transformers computes it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import parse_recipe
from pipelines.core.progress import SILENT
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.stage import prepare
from pipelines.layers.attention import PACKED
from pipelines.model.base import load_base
from pipelines.packed.feed import as_batch
from pipelines.packed.pack import cu_seqlens, positions
from pipelines.packed.reader import RowReader
from pipelines.train.batch import collate
from pipelines.train.loss import PackedLoss


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        turns = []
        for exchange in range(rng.integers(1, 4)):
            turns.append(
                {"role": "user", "content": f"question {i} {exchange}, é " * rng.integers(1, 4)}
            )
            turns.append({"role": "assistant", "content": f"answer {i} " * rng.integers(1, 9)})
            if rng.random() < 0.3:
                turns[-1]["weight"] = 0.5
        rows.append({"messages": turns})
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, rows


def test_packed_loss_equals_the_loss_of_the_samples_alone(ray_cluster, pocket_base, store, rows):
    path, values = rows
    data = {"sources": [str(path)], "row_tokens": 512, "heldout_share": 0.1}
    recipe = parse_recipe(
        {"name": "t", "model": {"base": pocket_base, "dtype": "fp32"}, "data": data}
    )
    prepared = prepare(recipe, store, SILENT)
    reader = RowReader(store.local_dir(prepared.ref), "train")
    batch = as_batch(reader.read(np.arange(reader.num_rows)))
    assert reader.num_rows > 1 and any(len(lengths) > 1 for lengths in batch["sample_lengths"])
    packed = [{name: batch[name][i] for name in batch} for i in range(reader.num_rows)]
    with torch.no_grad():
        loss = PackedLoss(load_base(recipe.model, "cpu", PACKED))
        raise_on_all_ranks = sum(float(loss(collate([row]))) for row in packed)
        alone, weight = _alone(load_base(recipe.model, "cpu"), pocket_base, values, batch)
    assert weight == pytest.approx(float(batch["loss_weights"].sum()))
    assert raise_on_all_ranks / weight == pytest.approx(alone / weight, abs=1e-5)


def _alone(model, base, values, batch) -> tuple[float, float]:
    """Weighted loss and weight of every training sample by itself, from transformers' own ids and loss."""
    renderer = ChatRenderer.load(base)
    in_train = {tuple(ids[a:b]) for ids, lengths in zip(batch["input_ids"].tolist(), batch["sample_lengths"], strict=True)
                for a, b in zip(np.cumsum(lengths) - lengths, np.cumsum(lengths), strict=True)}  # fmt: skip
    total = weight = 0.0
    for value in values:
        rendered = renderer.render(to_conversation(value))
        if tuple(rendered.input_ids.tolist()) not in in_train:
            continue
        ids = torch.tensor(rendered.input_ids[None].astype(np.int64))
        scores = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        picked = scores.gather(1, ids[0, 1:, None])[:, 0]
        weights = torch.tensor(rendered.loss_weights[1:])
        total -= float((picked * weights).sum())
        weight += float(weights.sum())
    return total, weight


def test_boundaries_and_positions_of_stored_rows_fit_their_samples(
    ray_cluster, pocket_base, store, rows
):
    recipe = parse_recipe(
        {
            "name": "t",
            "model": {"base": pocket_base},
            "data": {"sources": [str(rows[0])], "row_tokens": 512},
        }
    )
    reader = RowReader(store.local_dir(prepare(recipe, store, SILENT).ref), "train")
    batch = as_batch(reader.read(np.arange(reader.num_rows)))
    for ids, lengths in zip(batch["input_ids"], batch["sample_lengths"], strict=True):
        bounds = cu_seqlens(lengths, 512)
        assert bounds[-1] == 512 and (positions(lengths, 512)[bounds[:-1]] == 0).all()
        # Every sample of the pocket's template opens with a role token.
        assert all(ids[at] in (2, 3) for at in np.cumsum(lengths) - lengths)
        assert not ids[lengths.sum() :].any()
