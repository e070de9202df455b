"""Training equals TRL's SFTTrainer on a real model and real rows: losses, and the held-out loss.

LORAFORGE_REAL_MODEL names the folder of SmolLM2-135M-Instruct, LORAFORGE_REAL_ROWS a file of
instruction rows. TRL gets Loraforge's tokens, masks, rates and initial adapter, so the comparison
is of the training alone. A quarter of an hour on two cores, a minute on a GPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.progress import SILENT
from pipelines.packed.reader import RowReader
from pipelines.storage import Store
from tests.stages import prepare, serial_tokenize

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(3600)]
NUM_STEPS = 30
NUM_HELDOUT_ROWS = 4


def recipe_of(base: str, rows: str) -> Recipe:
    train = {"max_steps": NUM_STEPS, "global_batch": 1, "lr": 2e-4, "schedule": "constant"}
    return parse_recipe(
        {
            "name": "parity",
            "model": {"base": base, "dtype": "fp32"},
            "data": {"sources": [rows], "row_tokens": 1024},
            "lora": {"r": 16, "alpha": 32},
            "train": {**train, "epochs": 9, "warmup_share": 0.0, "zero": 0, "fused": "auto"},
        }
    )


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def packs(
    real_base: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, dict[str, list[Any]]]:
    """The recipe, and its packed rows by split."""
    rows = os.environ.get("LORAFORGE_REAL_ROWS", "")
    if not Path(rows).is_file():
        pytest.skip("LORAFORGE_REAL_ROWS names no file with rows")
    recipe, store = recipe_of(real_base, rows), Store(tmp_path_factory.mktemp("store"))
    prepared = prepare(recipe, store, SILENT, serial_tokenize)
    folder = store.local_dir(prepared.ref)
    splits = {
        name: [_as_row(pack) for pack in RowReader(folder, name).packs()]
        for name in ("train", "heldout")
    }
    return recipe, {**splits, "heldout": splits["heldout"][:NUM_HELDOUT_ROWS]}


def _as_row(pack: Any) -> dict[str, Any]:
    samples = list(pack)
    return {
        "input_ids": np.concatenate([np.asarray(s.input_ids, np.int32) for s in samples]),
        "loss_weights": np.concatenate([np.asarray(s.loss_weights, np.float32) for s in samples]),
        "sample_lengths": np.array([len(s.input_ids) for s in samples]),
        "sample_ids": [s.sample_id for s in samples],
    }


def ours(
    recipe: Recipe, splits: dict[str, list[Any]], device: torch.device
) -> tuple[list[float], float, dict[str, torch.Tensor], list[int]]:
    """Loraforge's losses by step, its held-out loss, its initial adapter, and the order of rows."""
    import torch.distributed as dist

    from pipelines.model.lora import trainable_parameters
    from pipelines.train.build_model import build_model
    from pipelines.train.engine.deepspeed import DeepSpeedEngine
    from pipelines.train.loop import heldout_loss, train_steps
    from pipelines.train.row_order import RowOrder

    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        "tcp://127.0.0.1:29631",
        rank=0,
        world_size=1,
    )
    try:
        train, heldout = splits["train"], splits["heldout"]
        row_order = RowOrder(len(train), recipe.train)
        order = row_order.rows_of_rank(0, 0, 1)[:NUM_STEPS].tolist()
        built = build_model(
            recipe, row_order, 1024, lambda rows: (train[i] for i in rows), device, None
        )
        initial = {
            name: parameter.detach().cpu().clone()
            for name, parameter in trainable_parameters(built.model).items()
        }
        engine = DeepSpeedEngine(built.model, recipe.train, device)
        losses: list[float] = []
        train_steps(
            engine,
            row_order,
            (train[i] for i in order),
            0,
            lambda step, metrics, rows: losses.append(metrics["loss"]),
        )
        return losses, heldout_loss(engine, heldout, len(heldout), 1), initial, order
    finally:
        dist.destroy_process_group()
        for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):  # else Accelerate waits for other ranks
            del os.environ[name]


def trl_losses(
    recipe: Recipe,
    splits: dict[str, list[Any]],
    order: list[int],
    initial: dict[str, torch.Tensor],
    device: torch.device,
    folder: Path,
) -> tuple[list[float], float]:
    """TRL's losses by step, and the exact mean over the held-out tokens of its trained model.

    A step's batch has the samples of one of our packs, one a line, padded.
    """
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer

    from pipelines.model.base import load_base
    from pipelines.model.lora import attach, trainable_parameters

    model = attach(load_base(recipe.model, str(device), "sdpa"), recipe.lora, recipe.train.seed)
    for name, parameter in trainable_parameters(model).items():
        parameter.data.copy_(initial[name])

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return padded(splits["train"][items[0]["row"]])

    class InOrder(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **given: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **given)
            losses.append(float(loss[0] if isinstance(loss, tuple) else loss))
            return loss

    losses: list[float] = []
    train = recipe.train
    settings = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=NUM_STEPS,
        per_device_train_batch_size=1,
        learning_rate=train.lr,
        lr_scheduler_type="constant",
        max_grad_norm=train.clip_norm,
        optim="adamw_torch",
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to="none",
        save_strategy="no",
        use_cpu=device.type == "cpu",
    )
    trainer = InOrder(
        model=model,
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"row": order}),
        data_collator=collate,
        processing_class=AutoTokenizer.from_pretrained(recipe.model.base),
    )
    trainer.train()
    model.eval()
    total, count = 0.0, 0.0
    with torch.no_grad():
        for row in splits["heldout"]:
            batch = {name: tensor.to(device) for name, tensor in padded(row).items()}
            labels = batch.pop("labels")[:, 1:]
            logp = model(**batch).logits[:, :-1].float().log_softmax(-1)
            own = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            total -= float(own[labels >= 0].double().sum())
            count += int((labels >= 0).sum())
    return losses, total / count


def padded(row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A pack's samples as one batch: ids, attention mask and labels, int64 [samples, longest]."""
    lengths = row["sample_lengths"]
    ends = np.cumsum(lengths)
    shape = (len(lengths), int(lengths.max()))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, -100, np.int64)
    for i, (start, end) in enumerate(zip(ends - lengths, ends, strict=True)):
        ids[i, : end - start] = row["input_ids"][start:end]
        mask[i, : end - start] = 1
        trained = row["loss_weights"][start:end] > 0
        trained[0] = False  # nothing predicts a sample's first token
        labels[i, : end - start] = np.where(trained, row["input_ids"][start:end], -100)
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }


def test_losses_equal_those_of_trl(
    packs: tuple[Recipe, dict[str, list[Any]]], device: torch.device, tmp_path: Path
) -> None:
    recipe, splits = packs
    losses, heldout, initial, order = ours(recipe, splits, device)
    theirs, their_heldout = trl_losses(recipe, splits, order, initial, device, tmp_path)
    difference = max(abs(a - b) for a, b in zip(losses, theirs, strict=True))
    print(
        f"\n{NUM_STEPS} steps: {losses[0]:.4f} to {losses[-1]:.4f}, largest difference "
        f"{difference:.1e}; held out {heldout:.6f} and {their_heldout:.6f}"
    )
    assert losses[-1] < losses[0]
    assert theirs == pytest.approx(losses, abs=1e-4)
    assert their_heldout == pytest.approx(heldout, abs=1e-5)
