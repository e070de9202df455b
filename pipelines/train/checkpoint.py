"""Checkpoints: the adapter in PEFT's format beside the whole optimizer state, verified before anyone hears of them.

One folder a step in the run's part of the store: `adapter/` (what serving loads), `state.safetensors` (fp32 weights and
Adam moments by parameter name, free of the world size) and the manifest with step and metrics, written last.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.contracts import Checkpoint, UserError, digest_of, short
from pipelines.model.lora import WEIGHTS_FILE, audit_adapter, save_adapter
from pipelines.storage import Store, verify
from pipelines.train.engine import OptimizerState

STATE_FILE = "state.safetensors"
ADAPTER_DIR = "adapter"


def checkpoint_kind(run_id: str) -> str:
    """The store's folder with a run's checkpoints."""
    return f"runs/{short(run_id)}"


def save_checkpoint(
    store: Store,
    run_id: str,
    model: Any,
    base: str,
    state: OptimizerState,
    metrics: Mapping[str, float],
    parents: Mapping[str, str],
) -> Checkpoint:
    """Write one checkpoint whole and verified, and return it.

    Raises ValueError (nothing is left under a final name) when the saved adapter misses a tensor, has a wrong shape or
    a value that is not finite, has only zero B after training, or differs by a bit from the gathered weights.
    """
    key = digest_of({"run": run_id, "step": state.step})
    with store.writing(checkpoint_kind(run_id), key, parents) as draft:
        save_adapter(model, draft.path / ADAPTER_DIR, base, state.weights)
        audit_adapter(draft.path / ADAPTER_DIR, model, trained=state.step > 0)
        _same_bits(draft.path / ADAPTER_DIR, state.weights)
        tensors = {f"weights/{n}": t for n, t in state.weights.items()}
        tensors |= {f"exp_avg/{n}": t for n, t in state.exp_avg.items()}
        tensors |= {f"exp_avg_sq/{n}": t for n, t in state.exp_avg_sq.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(draft.path / STATE_FILE))
        draft.facts = {"run_id": run_id, "step": state.step, "metrics": dict(metrics)}
    assert draft.ref is not None
    return Checkpoint(draft.ref, run_id, state.step, dict(metrics))


def list_checkpoints(store: Store, run_id: str) -> list[Checkpoint]:
    """The run's whole checkpoints, oldest step first."""
    found = store.list(checkpoint_kind(run_id))
    made = [Checkpoint(a.ref, a.facts["run_id"], a.facts["step"], a.facts["metrics"]) for a in found]
    return sorted(made, key=lambda checkpoint: checkpoint.step)


def newest_sound(store: Store, run_id: str) -> tuple[Checkpoint | None, list[str]]:
    """The last checkpoint whose every byte matches its manifest, and a line for each newer one that does not."""
    damaged = []
    for checkpoint in reversed(list_checkpoints(store, run_id)):
        try:
            verify(store.local_dir(checkpoint.ref))
        except UserError as error:
            damaged.append(f"step {checkpoint.step} is left out: {error}")
            continue
        return checkpoint, damaged
    return None, damaged


def load_state(store: Store, checkpoint: Checkpoint) -> OptimizerState:
    """The optimizer state of a checkpoint, on CPU."""
    groups: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for name, tensor in load_file(str(store.local_dir(checkpoint.ref) / STATE_FILE)).items():
        group, _, parameter = name.partition("/")
        groups[group][parameter] = tensor
    return OptimizerState(**groups, step=checkpoint.step)


def sweep(store: Store, run_id: str, keep: int) -> list[Checkpoint]:
    """Delete what is not worth keeping, and leftovers of killed writers; returns the kept, best held-out loss first.

    Kept are the `keep` best by held-out loss and the last one, from which a run goes on. Only local stores are swept.
    """
    made = list_checkpoints(store, run_id)
    best = sorted(made, key=lambda c: c.metrics.get("heldout_loss", float("inf")))[:keep]
    kept = best + [c for c in made[-1:] if c not in best]
    if store.is_local:
        names = {Path(c.ref.uri).name for c in kept}
        for folder in Path(store.uri, checkpoint_kind(run_id)).glob("*/"):
            stale = folder.name.startswith(".tmp-") or (len(folder.name) == 12 and folder.name not in names)
            if stale:
                shutil.rmtree(folder, ignore_errors=True)
    return kept


def _same_bits(adapter: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Each saved tensor must be one of the gathered ones, bit for bit: a save that reads a ZeRO shard is caught here."""
    saved = load_file(str(adapter / WEIGHTS_FILE))
    for name, tensor in saved.items():
        source = weights.get(name.replace(".weight", ".default.weight"))
        if source is None or not torch.equal(source, tensor):
            raise ValueError(f"{adapter}: {name} differs from the weights gathered from the ranks")
