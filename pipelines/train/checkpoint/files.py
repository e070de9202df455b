"""A checkpoint's files: written and verified, listed and verified again, read back.

A checkpoint is an artifact of the store with these files:

- `adapter/`, PEFT's two files, or `model/` after full fine-tuning: what serving loads;
- `state.safetensors`: fp32 weights and both Adam moments as "<group>/<parameter name>", and PiSSA's
  part
  of the base. Nothing in it depends on the world size.

Its manifest holds the step, the metrics and a checksum of both.
"""

from __future__ import annotations

import math
import re
import shutil
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipelines.adapter_format.keys import file_key
from pipelines.adapter_format.peft_files import read_tensors
from pipelines.core.artifacts import Checkpoint
from pipelines.core.digests import digest_of, short
from pipelines.core.errors import UserError
from pipelines.model.full_finetune import save_full, verify_saved_full
from pipelines.model.lora_init import as_plain_lora
from pipelines.model.lora_save import save_adapter, verify_saved_adapter
from pipelines.plan.shape import owner_of
from pipelines.storage import MANIFEST, Artifact, Store, verify
from pipelines.train.checkpoint.moved import check_moved
from pipelines.train.engine.protocol import OptimizerState

STATE_FILE = "state.safetensors"
ADAPTER_DIR = "adapter"
MODEL_DIR = "model"
CHECKPOINT_NAME = re.compile(r"[0-9a-f]{12}")
_GROUPS = ("weights", "exp_avg", "exp_avg_sq")
_CHECKSUM = "seal"


@dataclass(frozen=True)
class TrainingState:
    """The state that a checkpoint saves and a run resumes from.

    `metrics` are those of this step, `history` those of the earlier checkpoints, oldest first; both
    hold finite numbers only. `pissa` is the part that lora.init=pissa moved out of the base.
    `finished` says that training ended at this step, early or not.
    """

    step: int
    optimizer: OptimizerState
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()
    pissa: Mapping[str, torch.Tensor] | None = None
    finished: bool = False


def checkpoint_kind(run_id: str) -> str:
    """The store's folder with a run's checkpoints."""
    return f"runs/{short(run_id)}"


def checkpoint_key(run_id: str, step: int) -> str:
    """The key of a run's checkpoint at a step."""
    return digest_of({"run": run_id, "step": step})


def write_checkpoint(folder: Path, model: Any, base: str, state: TrainingState) -> dict[str, Any]:
    """Write a checkpoint's files into `folder`, verify the saved weights, return its metadata.

    Raises ValueError if the saved weights miss a tensor, have a wrong shape or a value that is not
    finite, or differ by a bit from the gathered weights, and UserError if training has not moved a
    tensor of the adapter.
    """
    optimizer = state.optimizer
    if hasattr(model, "peft_config"):
        check_moved(state.step, optimizer)
        adapter = folder / ADAPTER_DIR
        save_adapter(model, adapter, base, optimizer.weights, state.pissa)
        verify_saved_adapter(adapter, model, state.pissa)
        _verify_same_bits(adapter, optimizer.weights, state.pissa)
    else:
        save_full(model, folder / MODEL_DIR, base, optimizer.weights)
        verify_saved_full(folder / MODEL_DIR, model, optimizer.weights)
    tensors = {
        f"{group}/{name}": tensor.contiguous()
        for group in _GROUPS
        for name, tensor in getattr(optimizer, group).items()
    }
    tensors |= {f"pissa/{name}": t.contiguous() for name, t in (state.pissa or {}).items()}
    save_file(tensors, str(folder / STATE_FILE))
    return {
        "step": state.step,
        "metrics": only_finite(state.metrics),
        "history": [only_finite(metrics) for metrics in state.history],
        "updates": optimizer.step,
        "scaler": optimizer.scaler,
        "finished": state.finished,
    }


def _verify_same_bits(
    adapter: Path, weights: Mapping[str, torch.Tensor], pissa: Mapping[str, torch.Tensor] | None
) -> None:
    """Raise ValueError unless each saved tensor equals the gathered one bit for bit.

    This catches a save that reads a ZeRO shard instead of the full tensor.
    """
    expected = as_plain_lora(weights, pissa) if pissa else weights
    by_key = {file_key(name): tensor for name, tensor in expected.items()}
    for key, tensor in read_tensors(adapter).items():
        if key not in by_key or not torch.equal(by_key[key], tensor):
            raise ValueError(f"{adapter}: {key} differs from the weights gathered from the ranks")


def only_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without infinities and NaN, which JSON cannot express.

    The held-out loss is NaN if there are no held-out rows.
    """
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def with_checksum(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata and a digest of it. A manifest has the sha256 of each file but its own."""
    return {**metadata, _CHECKSUM: digest_of(metadata)}


def checkpoint_bytes(num_trainable_parameters: int) -> int:
    """About the size of a checkpoint: fp32 weights, two moments and the adapter, 4 bytes each."""
    return 16 * num_trainable_parameters


def largest_bytes(store: Store, run_id: str) -> int:
    """The size of a run's largest checkpoint; 0 if it has none."""
    artifacts = store.list(checkpoint_kind(run_id))
    sizes = (sum(file["bytes"] for file in artifact.files.values()) for artifact in artifacts)
    return max(sizes, default=0)


def check_space(store: Store, num_trainable_parameters: int) -> None:
    """Raise UserError if a local store's disk has less free space than two checkpoints need."""
    if not store.is_local:
        return
    needed = 2 * checkpoint_bytes(num_trainable_parameters)
    free = shutil.disk_usage(store.uri).free
    if free < needed:
        raise UserError(
            f"{store.uri}: {free >> 20} MiB free, and the next checkpoint wants {needed >> 20} MiB "
            "(twice its size); free space and give the same command again, or choose another place "
            "with --store"
        )


def list_checkpoints(store: Store, run_id: str) -> list[Checkpoint]:
    """The run's checkpoints with an intact manifest, oldest step first. Reads no other files."""
    return _list_intact(store, run_id)[0]


def latest_verified(store: Store, run_id: str) -> tuple[Checkpoint | None, list[str]]:
    """The last checkpoint whose every byte matches its manifest.

    Also returns one line for each damaged checkpoint that it skips.
    """
    checkpoints, damaged = _list_intact(store, run_id)
    for checkpoint in reversed(checkpoints):
        try:
            verify(store.local_dir(checkpoint.ref))
        except UserError as error:
            damaged.append(f"step {checkpoint.step} is skipped: {error}")
            continue
        return checkpoint, damaged
    return None, damaged


def _list_intact(store: Store, run_id: str) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints with an intact manifest, oldest first, and a line for each other one."""
    kind, checkpoints, damaged = checkpoint_kind(run_id), [], []
    for name in filter(CHECKPOINT_NAME.fullmatch, store.names(kind)):
        uri = f"{store.uri}/{kind}/{name}"
        artifact = store.read(uri)
        if artifact and _manifest_is_intact(artifact, run_id):
            metadata = artifact.metadata
            checkpoints.append(
                Checkpoint(artifact.ref, metadata["run_id"], metadata["step"], metadata["metrics"])
            )
        else:
            damaged.append(f"{name} is skipped: {_describe_damage(Path(uri))}")
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step), damaged


def _manifest_is_intact(artifact: Artifact, run_id: str) -> bool:
    """True if the checksum, the artifact's digest and its key all match what the manifest says."""
    ref, metadata = artifact.ref, dict(artifact.metadata)
    checksum = metadata.pop(_CHECKSUM, None)
    files = {name: file.get("sha256") for name, file in artifact.files.items()}
    identity = {"kind": ref.kind, "parents": ref.parents, "files": files}
    if checksum != digest_of(metadata) or ref.digest != digest_of(identity):
        return False
    return metadata["run_id"] == run_id and ref.key == checkpoint_key(run_id, metadata["step"])


def _describe_damage(folder: Path) -> str:
    try:
        verify(folder)
    except UserError as error:
        return str(error)
    return f"{folder / MANIFEST}: differs from the manifest that was written; the file is damaged"


def verified_at(store: Store, run_id: str, step: int) -> Checkpoint:
    """The checkpoint of a step that rank 0 has verified, verified on this rank, too.

    Raises UserError if it is damaged here, or missing because the store is not shared.
    """
    for checkpoint in list_checkpoints(store, run_id):
        if checkpoint.step == step:
            verify(store.local_dir(checkpoint.ref))
            return checkpoint
    raise UserError(
        f"{store.uri}/{checkpoint_kind(run_id)}: rank 0 resumes from step {step}, and "
        f"{socket.gethostname()} does not see that checkpoint; --store must be a folder that all "
        "nodes share"
    )


def load_training_state(store: Store, checkpoint: Checkpoint) -> TrainingState:
    """Everything that a run needs to resume from a checkpoint; tensors on CPU."""
    groups: dict[str, dict[str, torch.Tensor]] = {group: {} for group in (*_GROUPS, "pissa")}
    for name, tensor in load_file(str(store.local_dir(checkpoint.ref) / STATE_FILE)).items():
        group, _, parameter = name.partition("/")
        groups[group][parameter] = tensor
    artifact = store.read(checkpoint.ref.uri)
    assert artifact is not None
    metadata, pissa = artifact.metadata, groups.pop("pissa")
    return TrainingState(
        step=checkpoint.step,
        optimizer=OptimizerState(**groups, step=metadata["updates"], scaler=metadata["scaler"]),
        metrics=checkpoint.metrics,
        history=tuple(metadata["history"]),
        pissa=pissa or None,
        finished=metadata["finished"],
    )


def count_trainable_parameters(folder: Path) -> tuple[dict[str, int], int]:
    """Trainable parameters by module name, and the bytes of the tensors that serving loads.

    Read from the files of the checkpoint in `folder`, to compare with what was planned.
    """
    counts: Counter[str] = Counter()
    with safe_open(str(folder / STATE_FILE), framework="numpy") as state:
        for name in state.keys():  # noqa: SIM118  (not a mapping)
            group, _, parameter = name.partition("/")
            if group == "weights":
                counts[owner_of(parameter)] += math.prod(state.get_slice(name).get_shape())
    served = [
        file for part in (ADAPTER_DIR, MODEL_DIR) for file in (folder / part).glob("*.safetensors")
    ]
    return dict(counts), sum(_tensor_bytes(file) for file in served)


def _tensor_bytes(file: Path) -> int:
    """The size of a safetensors file without its header; bytes 0 to 7 are the header's length."""
    with open(file, "rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
