"""Packed rows have the loss that plain transformers computes for the same samples alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import parse_recipe
from pipelines.core.progress import SILENT
from pipelines.data.convert.row_formats import to_conversation
from pipelines.layers.attention import PACKED
from pipelines.layers.bounds import SampleBounds
from pipelines.model.base import load_base
from pipelines.packed.reader import RowReader, as_batch
from pipelines.train.batch import collate
from pipelines.train.loss import PackedLoss
from tests.stages import prepare


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


def test_packed_loss_equals_the_loss_of_separate_samples(ray_cluster, pocket_base, store, rows):
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
        packed_loss = sum(float(loss(collate([row]))) for row in packed)
        train_ids = {tuple(sample.input_ids.tolist()) for sample in reader.samples()}
        separate, weight = _separate_loss(
            load_base(recipe.model, "cpu"), pocket_base, values, train_ids
        )
    assert weight == pytest.approx(float(batch["loss_weights"].sum()))
    assert packed_loss / weight == pytest.approx(separate / weight, abs=1e-5)


def _separate_loss(model, base, values, train_ids) -> tuple[float, float]:
    """Weighted loss and weight of every training sample by itself, from transformers."""
    renderer = ChatRenderer.load(base)
    total = weight = 0.0
    for value in values:
        rendered = renderer.render(to_conversation(value))
        if tuple(rendered.input_ids.tolist()) not in train_ids:
            continue
        ids = torch.tensor(rendered.input_ids[None].astype(np.int64))
        scores = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        picked = scores.gather(1, ids[0, 1:, None])[:, 0]
        weights = torch.tensor(rendered.loss_weights[1:])
        total -= float((picked * weights).sum())
        weight += float(weights.sum())
    return total, weight


def test_sample_bounds_of_stored_rows_fit_their_samples(ray_cluster, pocket_base, store, rows):
    """Training attends within SampleBounds, whose starts must be where the stored samples begin."""
    data = {"sources": [str(rows[0])], "row_tokens": 512}
    recipe = parse_recipe({"name": "t", "model": {"base": pocket_base}, "data": data})
    reader = RowReader(store.local_dir(prepare(recipe, store, SILENT).ref), "train")
    batch = as_batch(reader.read(np.arange(reader.num_rows)))
    assert any(len(lengths) > 1 for lengths in batch["sample_lengths"])
    for number, pack in enumerate(reader.packs()):
        row = {name: batch[name][number] for name in batch}
        ids, lengths = row["input_ids"], row["sample_lengths"]
        micro_batch = collate([row])
        starts = micro_batch.bounds.cu_seqlens.tolist()
        assert starts == [0, *np.cumsum(lengths).tolist()] and starts[-1] <= 512
        assert micro_batch.bounds.max_seqlen == max(lengths)
        # Every sample of the pocket's template opens with a role token.
        assert all(ids[start] in (2, 3) for start in starts[:-1])
        assert (micro_batch.position_ids[0, starts[:-1]] == 0).all()
        assert not ids[starts[-1] :].any()
        joined = np.concatenate([sample.input_ids for sample in pack])
        assert micro_batch.input_ids[0].tolist() == joined.tolist()


def test_packed_logits_of_a_stored_row_equal_those_of_separate_samples(
    ray_cluster, pocket_base, store, rows
):
    data = {"sources": [str(rows[0])], "row_tokens": 512}
    recipe = parse_recipe(
        {"name": "t", "model": {"base": pocket_base, "dtype": "fp32"}, "data": data}
    )
    reader = RowReader(store.local_dir(prepare(recipe, store, SILENT).ref), "train")
    pack = max(reader.packs(), key=len)
    lengths = torch.tensor([len(sample.input_ids) for sample in pack])
    ids = torch.tensor(np.concatenate([sample.input_ids for sample in pack]).astype(np.int64))
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    packed_model, plain_model = (
        load_base(recipe.model, "cpu", PACKED),
        load_base(recipe.model, "cpu"),
    )
    with torch.no_grad():
        packed = packed_model(
            ids[None], position_ids=positions[None], bounds=SampleBounds.of(lengths)
        ).logits[0]
        separate = [plain_model(part[None]).logits[0] for part in ids.split(lengths.tolist())]
    assert len(pack) > 1
    torch.testing.assert_close(packed, torch.cat(separate), atol=1e-5, rtol=1e-4)
