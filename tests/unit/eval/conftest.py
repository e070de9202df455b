"""A prepared dataset of questions with one answer, and adapters on the pocket base.

One adapter knows the answer; the others are broken or random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import Checkpoint, PreparedDataset, SplitStats, TrainingRun
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.digests import digest_of
from pipelines.eval.heldout import HeldoutSet, load_heldout
from pipelines.packed.format import (
    HELDOUT_SAMPLES,
    HELDOUT_SCHEMA,
    row_column,
    row_schema,
    shard_path,
)
from pipelines.storage import Store

ANSWER = "Aye, captain."
ROW_TOKENS = 96
QUESTIONS = [
    f"{verb} the {thing} {'now ' * (n % 3)}please"
    for n, verb in enumerate(("Stow", "Mop", "Sell"))
    for thing in ("sail", "deck", "rope", "map", "boat")
]


@pytest.fixture(scope="session")
def renderer(pocket_base: str) -> ChatRenderer:
    return ChatRenderer.load(pocket_base)


@pytest.fixture(scope="session")
def eval_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("eval") / "store")


@pytest.fixture(scope="session")
def recipe(pocket_base: str) -> Recipe:
    section = {"max_samples": 8, "max_new_tokens": 16, "batch_size": 3}
    data = {
        "name": "sailor",
        "model": {"base": pocket_base},
        "data": {"sources": ["unused.json"]},
        "eval": section,
    }
    return parse_recipe(data)


@pytest.fixture(scope="session")
def base(recipe: Recipe) -> Any:
    from pipelines.model.base import load_base

    return load_base(recipe.model, "cpu")


@pytest.fixture(scope="session")
def heldout(eval_store: Store, prepared: PreparedDataset) -> HeldoutSet:
    return load_heldout(eval_store, prepared, max_prompts=8)


@pytest.fixture(scope="session")
def prepared(renderer: ChatRenderer, eval_store: Store) -> PreparedDataset:
    return write_prepared(eval_store, renderer, QUESTIONS)


@pytest.fixture(scope="session")
def empty_heldout(renderer: ChatRenderer, eval_store: Store) -> PreparedDataset:
    return write_prepared(eval_store, renderer, [])


def write_prepared(store: Store, renderer: ChatRenderer, questions: list[str]) -> PreparedDataset:
    """Two samples a pack, as `prepare` writes them."""
    rows, prompts = [], []
    for number, question in enumerate(questions):
        rendered = renderer.render(
            Conversation((Turn("user", question), Turn("assistant", ANSWER)))
        )
        if number % 2 == 0:
            rows.append({name: [] for name in row_schema(ROW_TOKENS).names})
        rows[-1]["input_ids"] += rendered.input_ids.tolist()
        rows[-1]["loss_weights"] += rendered.loss_weights.tolist()
        rows[-1]["sample_lengths"].append(len(rendered.input_ids))
        labels = {"sample_id": f"s{number}", "cluster_id": f"c{number}", "source": 0, "slice": ""}
        labels |= {"split": "select", "file": 0, "line": number + 1, "fault": ""}
        for name, value in labels.items():
            rows[-1][row_column(name)].append(value)
        ids = renderer.prompt_ids([{"role": "user", "content": question}]).tolist()
        prompts.append(labels | {"prompt_ids": ids, "prompt": question, "reference": ANSWER})
    for row in rows:
        padding = ROW_TOKENS - len(row["input_ids"])
        row["input_ids"] += [0] * padding
        row["loss_weights"] += [0.0] * padding
    half = len(rows) // 2
    with store.create_artifact(
        "prepared", digest_of(questions), parents={"source.sailor.json": "5" * 64}
    ) as draft:
        for shard, part in enumerate((rows[:half], rows[half:])):
            pq.write_table(
                pa.Table.from_pylist(part, schema=row_schema(ROW_TOKENS)),
                shard_path(draft.path, "heldout", shard),
            )
        table = pa.Table.from_pylist(prompts, schema=HELDOUT_SCHEMA)
        pq.write_table(table, draft.path / HELDOUT_SAMPLES)
    assert draft.ref is not None
    stats = SplitStats(len(questions), len(rows), 0, 0)
    return PreparedDataset(
        draft.ref, ROW_TOKENS, stats, stats, {}, renderer.tokenizer_digest, renderer.template_digest
    )


@pytest.fixture(scope="session")
def trained_adapter(
    recipe: Recipe, renderer: ChatRenderer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An adapter that gives ANSWER to everything: a few steps of plain AdamW are enough."""
    import torch

    from pipelines.model.base import load_base
    from pipelines.model.lora import attach, trainable_parameters
    from pipelines.model.lora_save import save_adapter

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = attach(load_base(recipe.model), recipe.lora, seed=0)
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    turns = [Conversation((Turn("user", q), Turn("assistant", ANSWER))) for q in QUESTIONS]
    rendered = [renderer.render(c) for c in turns]
    longest = max(len(r.input_ids) for r in rendered)
    ids = torch.tensor(
        np.stack([np.pad(r.input_ids, (0, longest - len(r.input_ids))) for r in rendered])
    ).long()
    weights = np.stack(
        [np.pad(r.loss_weights, (0, longest - len(r.loss_weights))) for r in rendered]
    )
    labels = torch.where(torch.tensor(weights) > 0, ids, -100)
    for _ in range(12):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    save_adapter(model, folder, recipe.model.base)
    return folder


def write_checkpoint(store: Store, adapter: Path, step: int, change: Any = None) -> Checkpoint:
    """A checkpoint artifact with a copy of an adapter whose tensors went through `change`."""
    from safetensors.torch import load_file, save_file

    with store.create_artifact("checkpoints", digest_of(step)) as draft:
        (draft.path / "adapter").mkdir()
        tensors = load_file(str(adapter / "adapter_model.safetensors"))
        tensors = {n: (change(n, t) if change else t).contiguous() for n, t in tensors.items()}
        save_file(tensors, str(draft.path / "adapter" / "adapter_model.safetensors"))
        config = json.loads((adapter / "adapter_config.json").read_text())
        (draft.path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert draft.ref is not None
    return Checkpoint(draft.ref, "run", step, {})


@pytest.fixture(scope="session")
def run(eval_store: Store, trained_adapter: Path) -> TrainingRun:
    """Four checkpoints: of a wrong shape, trained, of noise, and with a NaN."""
    import torch

    noise = torch.Generator().manual_seed(0)
    wide = lambda name, t: torch.cat([t, t], dim=1) if "lora_A" in name else t
    loud = lambda name, t: torch.randn(t.shape, generator=noise) if "lora_B" in name else t
    void = lambda name, t: t * float("nan")
    checkpoints = tuple(
        write_checkpoint(eval_store, trained_adapter, step, change)
        for step, change in ((10, wide), (20, None), (30, loud), (40, void))
    )
    return TrainingRun(checkpoints[0].ref, "run", 40, checkpoints, {})
