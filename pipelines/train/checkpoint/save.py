"""Saving a checkpoint with all ranks: rank 0 writes it, it is read back into the live weights, and only then it gets its name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from pipelines.config.recipe import Recipe
from pipelines.core.errors import UserError
from pipelines.model.full_finetune import load_weight, saved_full
from pipelines.model.lora import load_adapter, saved_adapter, trainable
from pipelines.storage import Store, as_user_error
from pipelines.train.batch import Row, collate
from pipelines.train.build_model import BuiltModel
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
    """Saves the checkpoints of one run. Every rank has one and calls it equally often.

    `probe` is the packed row on which this rank compares losses.
    """

    store: Store
    recipe: Recipe
    run_id: str
    parents: Mapping[str, str]
    engine: DeepSpeedEngine
    built: BuiltModel
    probe: Row

    def save(
        self,
        step: int,
        metrics: Mapping[str, float],
        history: tuple[Mapping[str, float], ...],
        finished: bool,
    ) -> str | None:
        """Gather, write, verify and name the checkpoint of a step; returns its URI on rank 0. Collective.

        Raises UserError, alike on all ranks, when the disk refuses it or what the disk holds is not what trains; nothing
        is then to be seen of it.
        """
        snapshot = TrainingState(
            step, self.engine.gather(), metrics, history, self.built.pissa, finished
        )
        kind, device, draft = checkpoint_kind(self.run_id), self.engine.device, None
        with ExitStack() as unnamed:
            with (
                raise_on_all_ranks(device),
                _refusing(step),
                as_user_error(self.store.uri, f"{self.store.uri}/{kind}"),
            ):
                if self.engine.rank == 0:
                    check_space(self.store, self.built.num_trained)
                    writing = self.store.create_artifact(
                        kind, checkpoint_key(self.run_id, step), self.parents
                    )
                    draft = unnamed.enter_context(writing)
                    facts = write_checkpoint(
                        draft.path, self.built.model, self.recipe.model.base, snapshot
                    )
                    draft.metadata = with_checksum({"run_id": self.run_id, **facts})
            self._compare_reloaded(draft.path if draft else None, step)
            with raise_on_all_ranks(device):
                if draft:
                    unnamed.close()
                    prune(self.store, self.run_id, self.recipe.train.keep)
        return draft.ref.uri if draft and draft.ref else None

    def _compare_reloaded(self, folder: Path | None, step: int) -> None:
        """What rank 0 reads from `folder`, put into the live weights, must give each rank's loss and change no bit.

        Collective. A file that is what trains leaves the live weights as they were; any other ends the run.
        """
        engine = self.engine
        batch = collate([self.probe], engine.device)
        live, saved = engine.loss_sum(batch), None
        with raise_on_all_ranks(engine.device), _refusing(step):
            if folder:
                saved = self._read(folder)
        changed = self._load(saved)
        reloaded = engine.loss_sum(batch)
        tolerance = (
            1e-5 if self.built.model.get_input_embeddings().weight.dtype == torch.float32 else 1e-2
        )
        with raise_on_all_ranks(engine.device), _refusing(step):
            if not math.isclose(live, reloaded, rel_tol=tolerance, abs_tol=tolerance):
                raise ValueError(f"reloaded they give loss {reloaded}, in training {live}")
            if changed:
                raise ValueError(f"reloaded they change {len(changed)} weights, first {changed[0]}")

    def _read(self, folder: Path) -> Mapping[str, torch.Tensor]:
        if (folder / ADAPTER_DIR).exists():
            return saved_adapter(
                folder / ADAPTER_DIR, self.built.model, self.built.pissa is not None
            )
        return saved_full(folder / MODEL_DIR, self.built.model)

    def _load(self, saved: Mapping[str, torch.Tensor] | None) -> list[str]:
        """Put rank 0's tensors into the live weights; the names of those that this changes. Collective under ZeRO-3."""
        named, changed = trainable(self.built.model), []
        if hasattr(self.built.model, "peft_config"):
            with self.engine.whole(list(named.values())):
                changed = load_adapter(self.built.model, saved) if saved else []
            return changed
        for (
            name,
            parameter,
        ) in named.items():  # one at a time, because all of them are the whole model
            with self.engine.whole([parameter]):
                if saved and load_weight(parameter, saved[name]):
                    changed.append(name)
        return changed


@contextmanager
def _refusing(step: int) -> Iterator[None]:
    """Turn what an audit of the written files finds into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, SafetensorError) as error:
        raise UserError(
            f"step {step}: the checkpoint's files are not what training made ({' '.join(str(error).split())}), so they are "
            "deleted and the one before is kept; look at the disk and the memory, then give the same command again"
        ) from error
