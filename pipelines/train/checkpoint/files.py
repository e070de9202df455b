"""Checkpoint files."""

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

from pipelines.adapter_format.folder import WEIGHTS_FILE
from pipelines.core.artifacts import Checkpoint
from pipelines.core.digests import digest_of, short
from pipelines.core.errors import UserError
from pipelines.model.full_finetune import audit_full, save_full
from pipelines.model.lora import audit_adapter, save_adapter, saved_name
from pipelines.model.lora_init import as_plain_lora
from pipelines.plan.shape import owner_of
from pipelines.storage import MANIFEST, Artifact, Store, verify
from pipelines.train.engine.protocol import OptimizerState

STATE_FILE = "state.safetensors"


ADAPTER_DIR = "adapter"


MODEL_DIR = "model"


_GROUPS = ("weights", "exp_avg", "exp_avg_sq")


_NAME, _LEFTOVER = re.compile(r"[0-9a-f]{12}"), re.compile(r"\.tmp-([0-9a-f]{12})-.*")


_CHECKSUM = "seal"


@dataclass(frozen=True)
class TrainingState:
    """What one checkpoint is made of. `history` are the metrics of the earlier checkpoints, oldest first.

    A loss that nobody has (no held-out rows), or that is not finite, is in neither.

    `pissa` is the part that PiSSA took from the base; `finished` says that training ended here, early or not.
    """

    step: int
    state: OptimizerState
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()
    pissa: Mapping[str, torch.Tensor] | None = None
    finished: bool = False


def checkpoint_kind(run_id: str) -> str:
    """The store's folder with a run's checkpoints."""
    return f"runs/{short(run_id)}"


def write_checkpoint(
    folder: Path, model: Any, base: str, snapshot: TrainingState
) -> dict[str, Any]:
    """Write a checkpoint's files into `folder`, read the weights back, and return its facts.

    Raises ValueError when what was saved misses a tensor, has a wrong shape or a value that is not finite, has only
    zero B after training, or differs by a bit from the gathered weights.
    """
    state = snapshot.state
    if hasattr(model, "peft_config"):
        adapter = folder / ADAPTER_DIR
        save_adapter(model, adapter, base, state.weights, snapshot.pissa)
        audit_adapter(adapter, model, trained=state.step > 0, pissa=snapshot.pissa)
        _same_bits(adapter, state.weights, snapshot.pissa)
    else:
        save_full(model, folder / MODEL_DIR, base, state.weights)
        audit_full(folder / MODEL_DIR, model, state.weights)
    tensors = {f"{g}/{n}": t.contiguous() for g in _GROUPS for n, t in getattr(state, g).items()}
    tensors |= {f"pissa/{n}": t.contiguous() for n, t in (snapshot.pissa or {}).items()}
    save_file(tensors, str(folder / STATE_FILE))
    facts = {
        "step": snapshot.step,
        "metrics": finite(snapshot.metrics),
        "history": list(map(finite, snapshot.history)),
    }
    return facts | {"updates": state.step, "scaler": state.scaler, "finished": snapshot.finished}


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that JSON has a number for; a loss of no rows, or one that is not finite, is left out."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def with_checksum(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with a digest of them, since a manifest holds the sha256 of every file but of itself."""
    return {**facts, _CHECKSUM: digest_of(facts)}


def checkpoint_key(run_id: str, step: int) -> str:
    """The key of a run's checkpoint at a step."""
    return digest_of({"run": run_id, "step": step})


def checkpoint_bytes(num_trained: int) -> int:
    """About what a checkpoint of so many trained parameters takes: fp32 weights, both moments, and the adapter."""
    return 16 * num_trained


def largest_bytes(store: Store, run_id: str) -> int:
    """What the largest checkpoint of a run takes on the disk, 0 where it has none."""
    found = store.list(checkpoint_kind(run_id))
    return max(
        (sum(file["bytes"] for file in artifact.files.values()) for artifact in found), default=0
    )


def check_space(store: Store, num_trained: int) -> None:
    """Raise UserError unless a local store has twice the room that a checkpoint of so many trained parameters takes."""
    if not store.is_local:
        return
    need, free = 2 * checkpoint_bytes(num_trained), shutil.disk_usage(store.uri).free
    if free < need:
        raise UserError(
            f"{store.uri}: {free >> 20} MiB free, and the next checkpoint wants {need >> 20} MiB (twice its size); "
            "free space and give the same command again, or choose another place with --store"
        )


def list_checkpoints(store: Store, run_id: str) -> list[Checkpoint]:
    """The run's checkpoints whose manifest is sound, oldest step first; their other files are not read."""
    return _readable(store, run_id)[0]


def latest_verified(store: Store, run_id: str) -> tuple[Checkpoint | None, list[str]]:
    """The last checkpoint whose every byte matches its manifest, and a line for each that is left out for damage."""
    readable, damaged = _readable(store, run_id)
    for checkpoint in reversed(readable):
        try:
            verify(store.local_dir(checkpoint.ref))
        except UserError as error:
            damaged.append(f"step {checkpoint.step} is left out: {error}")
            continue
        return checkpoint, damaged
    return None, damaged


def _readable(store: Store, run_id: str) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints whose manifest is sound, oldest step first, and a line for each other one."""
    kind, found, damaged = checkpoint_kind(run_id), [], []
    for name in filter(_NAME.fullmatch, store.names(kind)):
        uri = f"{store.uri}/{kind}/{name}"
        artifact = store.read(uri)
        if artifact and _manifest_is_sound(artifact, run_id):
            facts = artifact.metadata
            found.append(Checkpoint(artifact.ref, facts["run_id"], facts["step"], facts["metrics"]))
        else:
            damaged.append(f"{name} is left out: {_what_is_wrong(Path(uri))}")
    return sorted(found, key=lambda checkpoint: checkpoint.step), damaged


def _manifest_is_sound(artifact: Artifact, run_id: str) -> bool:
    ref, facts = artifact.ref, dict(artifact.metadata)
    seal, files = (
        facts.pop(_CHECKSUM, None),
        {name: file.get("sha256") for name, file in artifact.files.items()},
    )
    identity = {"kind": ref.kind, "parents": ref.parents, "files": files}
    if seal != digest_of(facts) or ref.digest != digest_of(identity):
        return False
    return facts["run_id"] == run_id and ref.key == checkpoint_key(run_id, facts["step"])


def _what_is_wrong(folder: Path) -> str:
    try:
        verify(folder)
    except UserError as error:
        return str(error)
    return f"{folder / MANIFEST}: does not say what was written; the file is damaged"


def verified_at(store: Store, run_id: str, step: int) -> Checkpoint:
    """The checkpoint of a step that another rank has found sound. Raises UserError unless this rank finds it sound too."""
    for checkpoint in list_checkpoints(store, run_id):
        if checkpoint.step == step:
            verify(store.local_dir(checkpoint.ref))
            return checkpoint
    raise UserError(
        f"{store.uri}/{checkpoint_kind(run_id)}: rank 0 goes on from step {step}, and {socket.gethostname()} does not see "
        "that checkpoint; --store must be a folder that all nodes share"
    )


def load_training_state(store: Store, checkpoint: Checkpoint) -> TrainingState:
    """Everything that a run needs to go on from a checkpoint; tensors on CPU."""
    groups: dict[str, dict[str, torch.Tensor]] = {group: {} for group in (*_GROUPS, "pissa")}
    for name, tensor in load_file(str(store.local_dir(checkpoint.ref) / STATE_FILE)).items():
        group, _, parameter = name.partition("/")
        groups[group][parameter] = tensor
    artifact = store.read(checkpoint.ref.uri)
    assert artifact is not None
    facts, pissa = artifact.metadata, groups.pop("pissa")
    state = OptimizerState(**groups, step=facts["updates"], scaler=facts["scaler"])
    return TrainingState(
        checkpoint.step,
        state,
        checkpoint.metrics,
        tuple(facts["history"]),
        pissa or None,
        facts["finished"],
    )


def count_trained_parameters(folder: Path) -> tuple[dict[str, int], int]:
    """What a checkpoint's folder holds: trained parameters by module name, and the bytes of the tensors to be served."""
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
    """A safetensors file's size without its header, whose length its first eight bytes say."""
    with open(file, "rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")


def _same_bits(
    adapter: Path, weights: Mapping[str, torch.Tensor], pissa: Mapping[str, torch.Tensor] | None
) -> None:
    """Each saved tensor must be one of the gathered ones, bit for bit: a save that reads a ZeRO shard is caught here."""
    expected = as_plain_lora(weights, pissa) if pissa else weights
    by_name = {saved_name(name): tensor for name, tensor in expected.items()}
    for name, tensor in load_file(str(adapter / WEIGHTS_FILE)).items():
        if name not in by_name or not torch.equal(by_name[name], tensor):
            raise ValueError(f"{adapter}: {name} differs from the weights gathered from the ranks")
