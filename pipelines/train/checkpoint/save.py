"""Saving a checkpoint with all ranks.

Rank 0 writes the files, all ranks read them back into the live weights and compare their losses,
and only then does the checkpoint get its name in the store. A checkpoint that can be seen is
verified.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipelines.config.recipe import Recipe
from pipelines.core.errors import UserError, one_line
from pipelines.model.full_finetune import load_into_weight, read_saved_full
from pipelines.model.lora import trainable_parameters
from pipelines.model.lora_save import load_into_adapter, read_saved_adapter
from pipelines.storage import Store, as_user_error
from pipelines.train.batch import Row, collate
from pipelines.train.checkpoint.files import (
    ADAPTER_DIR,
    MODEL_DIR,
    TrainingState,
    check_space,
    checkpoint_key,
    checkpoint_kind,
    with_checksum,
    write_checkpoint,
)
from pipelines.train.checkpoint.retention import prune
from pipelines.train.engine.collectives import raise_on_all_ranks
from pipelines.train.engine.deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class CheckpointSaver:
    """Saves the checkpoints of one run. Each rank has one, and all call `save` equally often.

    `pissa` is the part that lora.init=pissa moved out of the base. `probe` is the packed row on
    which this rank compares the loss of the saved weights with that of the live ones.
    """

    store: Store
    recipe: Recipe
    run_id: str
    parents: Mapping[str, str]
    engine: DeepSpeedEngine
    model: Any
    pissa: Mapping[str, torch.Tensor] | None
    num_trainable_parameters: int
    probe: Row

    def save(
        self,
        step: int,
        metrics: Mapping[str, float],
        history: tuple[Mapping[str, float], ...],
        finished: bool,
    ) -> str | None:
        """Gather, write, verify and name the checkpoint of a step, then delete superseded ones.

        Returns its URI on rank 0, None elsewhere. Collective. Raises the same UserError on all
        ranks if the disk refuses the files or if they differ from the live weights; the store then
        shows nothing of this checkpoint.
        """
        state = TrainingState(step, self.engine.gather(), metrics, history, self.pissa, finished)
        kind, device, draft = checkpoint_kind(self.run_id), self.engine.device, None
        # The draft is named when the stack closes, and deleted if an exception closes it.
        with ExitStack() as unnamed:
            with (
                raise_on_all_ranks(device),
                _mismatch_as_user_error(step),
                as_user_error(self.store.uri, f"{self.store.uri}/{kind}"),
            ):
                if self.engine.rank == 0:
                    check_space(self.store, self.num_trainable_parameters)
                    key = checkpoint_key(self.run_id, step)
                    draft = unnamed.enter_context(
                        self.store.create_artifact(kind, key, self.parents)
                    )
                    base = self.recipe.model.base
                    metadata = write_checkpoint(draft.path, self.model, base, state)
                    draft.metadata = with_checksum({"run_id": self.run_id, **metadata})
            self._compare_reloaded(draft.path if draft else None, step)
            with raise_on_all_ranks(device):
                if draft:
                    unnamed.close()
                    prune(self.store, self.run_id, self.recipe.train.keep)
        return draft.ref.uri if draft and draft.ref else None

    def _compare_reloaded(self, folder: Path | None, step: int) -> None:
        """Load the saved weights into the live model: no bit and no rank's loss may change.

        `folder` is given on rank 0 only. Collective. If the files are correct the live weights are
        as before; if not, the run ends, so their change does no harm.
        """
        engine = self.engine
        batch = collate([self.probe], engine.device)
        live_loss, saved = engine.loss_sum(batch), None
        with raise_on_all_ranks(engine.device), _mismatch_as_user_error(step):
            if folder:
                saved = self._read(folder)
        changed = self._load(saved)
        reloaded_loss = engine.loss_sum(batch)
        dtype = self.model.get_input_embeddings().weight.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        with raise_on_all_ranks(engine.device), _mismatch_as_user_error(step):
            if not math.isclose(live_loss, reloaded_loss, rel_tol=tolerance, abs_tol=tolerance):
                raise ValueError(
                    f"reloaded they give loss {reloaded_loss}, in training {live_loss}"
                )
            if changed:
                raise ValueError(f"reloaded they change {len(changed)} weights, first {changed[0]}")

    def _read(self, folder: Path) -> Mapping[str, torch.Tensor]:
        if (folder / ADAPTER_DIR).exists():
            return read_saved_adapter(folder / ADAPTER_DIR, self.model, self.pissa is not None)
        return read_saved_full(folder / MODEL_DIR, self.model)

    def _load(self, saved: Mapping[str, torch.Tensor] | None) -> list[str]:
        """Put rank 0's `saved` tensors into the live weights of all ranks.

        Returns the names of the weights that this changes, on rank 0 only. Collective under ZeRO-3.
        """
        parameters, changed = trainable_parameters(self.model), []
        if hasattr(self.model, "peft_config"):
            with self.engine.gathered(list(parameters.values())):
                changed = load_into_adapter(self.model, saved) if saved else []
            return changed
        # One parameter at a time: together they are the model, which may not fit one GPU.
        for name, parameter in parameters.items():
            with self.engine.gathered([parameter]):
                if saved and load_into_weight(parameter, saved[name]):
                    changed.append(name)
        return changed


@contextmanager
def _mismatch_as_user_error(step: int) -> Iterator[None]:
    """Turn the ValueError of a failed verification, or of an unreadable file, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, SafetensorError) as error:
        raise UserError(
            f"step {step}: the checkpoint's files are not what training made ({one_line(error)}), "
            "so they are deleted and the previous checkpoint is kept; look at the disk and the "
            "memory, then give the same command again"
        ) from error
