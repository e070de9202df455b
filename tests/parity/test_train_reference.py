"""The training loop equals a plain PyTorch loop: fp32, all ZeRO stages, one and two ranks."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from pipelines.config.schema import LoraConfig, ModelConfig, TrainConfig

NUM_STEPS, NUM_ROWS = 20, 12
MICRO_BATCHES = {1: (8, 2), 2: (4, 1)}
CASES = [
    (workers, zero, micro)
    for workers in (1, 2)
    for zero in (0, 1, 2, 3)
    for micro in MICRO_BATCHES[workers]
]
"""Worker processes, ZeRO stage, micro-batch.
 A rank computes its part of the global batch of 8 rows in one forward, or in several accumulated
ones.
"""


def packed_rows(count: int = NUM_ROWS, row_tokens: int = 96) -> list[dict[str, Any]]:
    """Rows of three to five samples of unequal length, with masks, turn weights and padding."""
    random = np.random.default_rng(7)
    rows = []
    for number in range(count):
        lengths = random.integers(9, 24, size=random.integers(3, 6))
        lengths = lengths[np.cumsum(lengths) <= row_tokens]
        ids, weights = np.zeros(row_tokens, np.int32), np.zeros(row_tokens, np.float32)
        at = 0
        for length in lengths:
            ids[at : at + length] = random.integers(3, 90, size=length)
            weights[at + length // 3 : at + length] = random.choice([1.0, 0.5])
            at += length
        names = [f"{number}-{i}" for i in range(len(lengths))]
        rows.append(
            {
                "input_ids": ids,
                "loss_weights": weights,
                "sample_lengths": lengths,
                "sample_ids": names,
            }
        )
    return rows


def train_config(zero: int, micro_batch: int) -> TrainConfig:
    settings = {
        "epochs": 50,
        "max_steps": NUM_STEPS,
        "global_batch": 8,
        "micro_batch": micro_batch,
        "lr": 5e-3,
    }
    return TrainConfig.model_validate(settings | {"zero": zero, "seed": 3})


def adapted(base: str, attention: str) -> Any:
    """The base with the adapter that trains and another one, which must not change.

    The other one has random A and B.
    """
    import peft

    from pipelines.model.base import load_base
    from pipelines.model.lora import attach

    model = attach(
        load_base(ModelConfig(base=base, dtype="fp32"), "cpu", attention),
        LoraConfig(r=4, alpha=8),
        seed=11,
    )
    model.add_adapter(
        "other", peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    model.set_adapter("default")
    return model


def frozen_of(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters that must not change, gathered under ZeRO-3. Collective there."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    frozen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    with GatheredParameters([p for p in frozen.values() if hasattr(p, "ds_id")]):
        return {name: parameter.detach().clone() for name, parameter in frozen.items()}


def reference(base: str) -> tuple[list[float], dict[str, torch.Tensor], list[float]]:
    """The same training in plain PyTorch: losses, final weights, gradient norms.

    Each sample goes through the plain model on its own. A step's loss is the weighted sum over its
    samples divided by the sum of the weights; AdamW and clipping are torch's. The rows of an epoch
    are numpy's permutation of (seed, epoch), in a step of eight and one of four. The rate has one
    step of warm-up (0.03 of twenty, rounded up), then a cosine to zero.
    """
    from pipelines.model.lora import trainable_parameters

    model = adapted(base, "eager").train()
    weights = list(trainable_parameters(model).values())
    optimizer = torch.optim.AdamW(weights, lr=0, betas=(0.9, 0.999), weight_decay=0)
    rows, losses, norms = packed_rows(), [], []
    for step in range(NUM_STEPS):
        order = np.random.default_rng([3, step // 2]).permutation(NUM_ROWS)
        total, count = torch.zeros(()), 0.0
        for row in (rows[i] for i in (order[8:] if step % 2 else order[:8])):
            ends = np.cumsum(row["sample_lengths"])
            for start, end in zip(ends - row["sample_lengths"], ends, strict=True):
                ids = torch.tensor(row["input_ids"][start:end], dtype=torch.int64)
                scale = torch.tensor(row["loss_weights"][start:end])[1:]
                logp = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
                total = total - (logp.gather(1, ids[1:, None])[:, 0] * scale).sum()
                count += float(scale.sum())
        optimizer.zero_grad()
        (total / count).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights, 1.0)))
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 1) / (NUM_STEPS - 1)))
        optimizer.param_groups[0]["lr"] = 5e-3 * (cosine if step else 1.0)
        optimizer.step()
        losses.append(float(total.detach()) / count)
    return (
        losses,
        {name: p.detach().clone() for name, p in trainable_parameters(model).items()},
        norms,
    )


def run_case(
    rank: int, base: str, folder: str, cases: list[tuple[int, int, int]], port: int
) -> None:
    """One rank of every case of this world size: once to the end, once restored half-way."""
    import torch.distributed as dist

    world_size = cases[0][0]
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "DS_ACCELERATOR": "cpu",
    }
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    for _, zero, micro_batch in cases:
        config = train_config(zero, micro_batch)
        losses, norms, (half, end), changed = train_from(base, config, 0, None)
        resumed, _, (_, resumed_end), resumed_changed = train_from(
            base, config, NUM_STEPS // 2, half
        )
        if rank == 0:
            result = {
                "losses": losses,
                "norms": norms,
                "weights": end.weights,
                "resumed": resumed,
                "resumed_weights": resumed_end.weights,
                "changed": changed + resumed_changed,
            }
            torch.save(result, f"{folder}/{world_size}-{zero}-{micro_batch}.pt")
    dist.destroy_process_group()


def train_from(
    base: str, config: TrainConfig, first: int, state: Any
) -> tuple[list[float], list[float], tuple[Any, Any], list[str]]:
    """Train from step `first`, restored from `state` if given.

    Returns the losses, the gradient norms, the gathered states half-way and at the end, and the
    names of frozen parameters whose bits changed.
    """
    from pipelines.layers.attention import PACKED
    from pipelines.train.engine.deepspeed import DeepSpeedEngine
    from pipelines.train.loop import train_steps
    from pipelines.train.row_order import RowOrder

    model = adapted(base, PACKED)
    before = frozen_of(model)
    engine = DeepSpeedEngine(model, config, torch.device("cpu"))
    # `from_pretrained` returns a base in eval mode.
    assert all(module.training for module in model.modules())
    if state is not None:
        engine.restore(state)
    row_order, rows, losses, norms, states = RowOrder(NUM_ROWS, config), packed_rows(), [], [], []

    def on_step(step: int, values: dict[str, float], _: Any) -> None:
        losses.append(values["loss"])
        norms.append(values["grad_norm"])
        if step in (NUM_STEPS // 2, NUM_STEPS):
            states.append(engine.gather())

    order = row_order.rows_of_rank(first, engine.rank, engine.world_size)
    train_steps(engine, row_order, (rows[i] for i in order), first, on_step)
    after = frozen_of(model)
    assert any(".other." in name for name in before) and any(
        "base_layer" in name for name in before
    )
    changed = [name for name, tensor in before.items() if not torch.equal(after[name], tensor)]
    return losses, norms, (states[0], states[-1]), changed


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def results(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for world_size, port in ((1, 29611), (2, 29612)):
        cases = [case for case in CASES if case[0] == world_size]
        spawn(run_case, (tiny_base, str(folder), cases, port), nprocs=world_size)
    return folder


@pytest.fixture(scope="module")
def expected(tiny_base: str) -> tuple[list[float], dict[str, torch.Tensor], list[float]]:
    return reference(tiny_base)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "workers{}-zero{}-micro{}".format(*case))
def test_training_equals_plain_pytorch_and_resumes_exactly(
    case: tuple[int, int, int], results: Path, expected: Any
) -> None:
    """Losses equal the reference within 1e-4; a run restored half-way equals one without a stop.

    Neither the base nor another adapter on it changes by a bit.
    """
    result = torch.load(results / "{}-{}-{}.pt".format(*case))
    losses, weights, norms = expected
    assert result["norms"] == pytest.approx(norms, rel=1e-4)
    assert losses[0] > losses[-1]
    assert result["changed"] == []
    assert result["losses"] == pytest.approx(losses, rel=1e-4)
    assert result["resumed"] == pytest.approx(result["losses"][NUM_STEPS // 2 :], rel=1e-6)
    for name, tensor in weights.items():
        torch.testing.assert_close(result["weights"][name], tensor, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(
            result["resumed_weights"][name], result["weights"][name], rtol=1e-5, atol=1e-7
        )
