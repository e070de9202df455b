"""Trial of training: a tiny copy trains in packs as transformers and PEFT train it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from jobs.bases.tiny_samples import ROW_TOKENS, samples
from pipelines.config.schema import LoraConfig, ModelConfig
from pipelines.layers.attention import PACKED
from pipelines.model.base import load_base
from pipelines.model.lora import attach, trainable_parameters
from pipelines.model.lora_save import (
    load_into_adapter,
    read_saved_adapter,
    save_adapter,
    verify_saved_adapter,
)
from pipelines.model.support_table import YES, Cell
from pipelines.model.supported import check_base
from pipelines.train.base_proof import prove_base
from pipelines.train.batch import collate
from pipelines.train.checkpoint.moved import check_moved
from pipelines.train.engine.protocol import OptimizerState
from pipelines.train.loss import PackedLoss
from pipelines.train.proof_errors import base_errors_as_user_errors, check_proof

_STEPS, _LR = 3, 5e-3
_MANY_UPDATES = 100  # so that A, which stands still while B is 0, is checked, too
_LOSS_TOLERANCE = 1e-4  # relative; the packed path sums in another order


def prove_copy(model: ModelConfig, lora: LoraConfig | None) -> Any:
    """Prove a tiny copy as a run proves its base before the first step; returns its packed loss.

    `model.base` is the copy's folder; `lora` None trains every weight. Raises UserError where the
    run would, and what the base's own code raises.
    """
    loaded = load_base(model, "cpu", PACKED)
    check_base(loaded, ROW_TOKENS)
    loss = PackedLoss(attach(loaded, lora, seed=0) if lora else loaded)
    check_proof(prove_base(loss, samples()), model.base, loss.model)
    return loss


def try_training(base: Path, lora: LoraConfig, adapter: Path) -> Cell:
    """Train a tiny copy for a few steps as a run does, and as transformers and PEFT alone would.

    Writes the adapter to `adapter`. Raises UserError where a run would.
    """
    with base_errors_as_user_errors(str(base)):
        loss = prove_copy(ModelConfig(base=str(base), dtype="fp32"), lora)
    reference: Any = attach(
        load_base(ModelConfig(base=str(base), dtype="fp32"), "cpu", "eager"), lora, seed=0
    )
    before = {
        name: each.detach().clone() for name, each in trainable_parameters(loss.model).items()
    }
    batch = collate([_row(samples())])
    optimizer, reference_optimizer = _adam(loss.model), _adam(reference)
    losses = list(_train(optimizer, lambda: loss(batch) / batch.total_weight))
    expected = list(_train(reference_optimizer, lambda: _loss_alone(reference, samples())))
    for step, (actual, wanted) in enumerate(zip(losses, expected, strict=True), 1):
        if not abs(actual - wanted) <= _LOSS_TOLERANCE * abs(wanted):
            return Cell("silent", f"loss {actual:.5f} at step {step}, {wanted:.5f} by transformers")
    save_adapter(loss.model, adapter, str(base))
    verify_saved_adapter(adapter, loss.model)
    check_moved(_STEPS, _state(loss.model, optimizer))
    if changed := load_into_adapter(loss.model, read_saved_adapter(adapter, loss.model)):
        return Cell("silent", f"reading the saved adapter changes {len(changed)} tensors")
    after = trainable_parameters(loss.model)
    if still := [name for name, each in before.items() if torch.equal(each, after[name])]:
        return Cell("silent", f"{len(still)} adapter tensors never move, first {still[0]}")
    return YES


def try_quantization(base: Path, lora: LoraConfig, quantization: str, trains: bool) -> Cell:
    """Quantize a tiny copy while it is loaded, and prove it as a run does if it `trains`."""
    model = ModelConfig.model_validate(
        {"base": str(base), "dtype": "fp32", "quantization": quantization}
    )
    loaded: Any = load_base(model, "cpu")
    head = loaded.get_output_embeddings()
    plain = [
        name
        for name, module in loaded.named_modules()
        if type(module) is torch.nn.Linear and module is not head
    ]
    if plain:
        return Cell("silent", f"{len(plain)} linears stay as they are, first {plain[0]}")
    ids = torch.from_numpy(samples()[0].astype(np.int64))[None]
    with torch.no_grad():
        if not loaded(input_ids=ids, use_cache=False).logits.isfinite().all():
            return Cell("silent", "its logits are not finite")
    if trains:
        with base_errors_as_user_errors(str(base)):
            prove_copy(model, lora)
    return YES


def _adam(model: Any) -> torch.optim.Optimizer:
    model.eval()  # without the base's own dropout, whose draws differ
    # A large eps: a gradient near zero must not become a step in the sign of its rounding.
    weights = trainable_parameters(model).values()
    return torch.optim.AdamW(weights, lr=_LR, eps=1e-3, weight_decay=0.0)


def _train(
    optimizer: torch.optim.Optimizer, loss_of: Callable[[], torch.Tensor]
) -> Iterator[float]:
    """Losses of a few steps of AdamW on the adapter."""
    for _ in range(_STEPS):
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def _state(model: Any, optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimizer's state as a checkpoint has it, after as many updates as move every A."""
    weights = {name: each.detach() for name, each in trainable_parameters(model).items()}
    by_name = dict(zip(weights, trainable_parameters(model).values(), strict=True))
    empty = {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
    moments = {name: optimizer.state.get(each, empty) for name, each in by_name.items()}
    first, second = (
        {name: state[key] for name, state in moments.items()} for key in ("exp_avg", "exp_avg_sq")
    )
    return OptimizerState(weights, first, second, step=_MANY_UPDATES)


def _loss_alone(model: Any, tokens: Sequence[np.ndarray]) -> torch.Tensor:
    """The mean next-token loss of samples that run one at a time."""
    losses = []
    for sample in tokens:
        ids = torch.from_numpy(sample.astype(np.int64))[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses.append(functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return torch.cat(losses).mean()


def _row(tokens: Sequence[np.ndarray]) -> dict[str, Any]:
    ids = np.concatenate(tokens)
    return {
        "input_ids": ids,
        "loss_weights": np.ones(len(ids), np.float32),
        "sample_lengths": np.array([len(sample) for sample in tokens]),
        "sample_ids": [str(number) for number in range(len(tokens))],
    }
