"""Scores the base and all candidates on one held-out set with Ray Data.

Each actor loads the base once and adds every adapter to it. Ray Data streams batches to the actors,
and an actor runs each batch once for every candidate. If a candidate fails, its results have the
error, and the other candidates are scored as usual.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipelines.config.schema import ModelConfig, ResourcesConfig
from pipelines.core.artifacts import ArtifactRef, TemplateChoice
from pipelines.core.errors import one_line
from pipelines.core.quiet_loggers import follow_ray_logger
from pipelines.eval.heldout import EvalBatch, batch_from_row, batch_table
from pipelines.eval.metrics import check_lengths, pad_batch, weighted_nll
from pipelines.storage import Store

BASE = "base"
_MAX_ERROR = 500
_RESULT_SCHEMA = pa.schema(
    [
        ("candidate", pa.string()),
        ("kind", pa.string()),
        ("sample_ids", pa.list_(pa.string())),
        ("nll", pa.float64()),
        ("weight", pa.float64()),
        ("num_labels", pa.int64()),
        ("texts", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class ScorerSpec:
    """The models that an actor loads: the base, named `BASE`, and each candidate's checkpoint.

    `template` is the chat template of the held-out prompts. `device` None is the GPU if torch sees
    one.
    """

    model: ModelConfig
    store_uri: str
    checkpoints: Mapping[str, ArtifactRef]
    max_new_tokens: int
    template: TemplateChoice
    device: str | None = None


def score_batches(
    spec: ScorerSpec, batches: Sequence[EvalBatch], resources: ResourcesConfig, num_actors: int
) -> Iterator[list[dict[str, Any]]]:
    """Run every batch through the base and all candidates; Ray must be initialised.

    Yields, in any order, the results of a batch: one dict for each candidate, by the columns of
    `_RESULT_SCHEMA`.
    """
    import ray.data

    dataset = ray.data.from_arrow([batch_table([batch]) for batch in batches])
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    follow_ray_logger("ray.data")
    scored = dataset.map_batches(
        Scorer,
        fn_constructor_args=[spec],
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=resources.data_cpus,
        num_gpus=resources.gpus_per_worker or None,
        compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(batches))),
        # A dead actor fails the stage, which can be run again; Ray Data would restart it for ever.
        max_restarts=0,
    )
    for table in scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield cast(pa.Table, table).to_pylist()


class Scorer:
    """The Ray Data actor: holds the base with all adapters, and fully fine-tuned models.

    It is called with one batch at a time.
    """

    def __init__(self, spec: ScorerSpec) -> None:
        import torch

        from pipelines.chat import ChatRenderer
        from pipelines.model.base import load_base
        from pipelines.model.lora_load import add_adapter

        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._max_new_tokens = spec.max_new_tokens
        self._renderer = ChatRenderer.load(spec.model.base, spec.model.revision, spec.template)
        self._errors: dict[str, str] = {}
        self._names = [BASE, *spec.checkpoints]
        store = Store(spec.store_uri)
        self._base: Any = load_base(spec.model, spec.device)
        self._full_models: dict[str, Any] = {}
        for name, ref in spec.checkpoints.items():
            try:
                folder = store.local_dir(ref)
                if (folder / "model").is_dir():
                    full = {"base": str(folder / "model"), "revision": None}
                    self._full_models[name] = load_base(
                        spec.model.model_copy(update=full), spec.device
                    )
                else:
                    self._base = add_adapter(self._base, name, folder / "adapter")
            except Exception as error:  # noqa: BLE001 - whatever is broken, score the others
                self._errors[name] = _describe(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        results = [
            self._result(name, batch_from_row(row))
            for row in batch.to_pylist()
            for name in self._names
        ]
        return pa.Table.from_pylist(results, schema=_RESULT_SCHEMA)

    def _result(self, name: str, batch: EvalBatch) -> dict[str, Any]:
        from pipelines.model.lora_load import use_adapter

        result: dict[str, Any] = {
            "candidate": name,
            "kind": batch.kind,
            "sample_ids": batch.sample_ids,
        }
        if name in self._errors:
            return result | {"error": self._errors[name]}
        model = self._full_models.get(name, self._base)
        try:
            with use_adapter(model, None if name == BASE or name in self._full_models else name):
                if batch.kind == "loss":
                    nll, weight, num_labels = weighted_nll(model, batch.tokens, batch.weights)
                    return result | {"nll": nll, "weight": weight, "num_labels": num_labels}
                answers = greedy(model, batch.tokens, self._max_new_tokens, self._renderer.stop_ids)
                return result | {"texts": [self._renderer.decode(ids) for ids in answers]}
        except Exception as error:  # noqa: BLE001 - as in __init__
            return result | {"error": _describe(error)}


def greedy(
    model: Any, prompts: Sequence[np.ndarray], max_new_tokens: int, stop_ids: Sequence[int]
) -> list[np.ndarray]:
    """The most likely continuation of each prompt, cut before its first stop token.

    `prompts` are token ids [T] each. The attention mask alone marks padding: a prompt may contain
    the padding id as an ordinary token. Raises UserError for prompts whose answers would depend on
    the others of the batch.
    """
    import torch
    from transformers import GenerationConfig

    check_lengths(model, max(map(len, prompts)) + max_new_tokens)

    ids, mask = pad_batch(prompts, left=True)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=0,
    )
    # generate() fills what a config leaves open from the model's own, which may ask for sampling.
    model.generation_config = config
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
        )
    answers = output[:, ids.shape[1] :].cpu().numpy()
    is_stop = np.isin(answers, list(stop_ids))
    return [
        answer[: int(stops.argmax())] if stops.any() else answer
        for answer, stops in zip(answers, is_stop, strict=True)
    ]


def _describe(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", _MAX_ERROR)
