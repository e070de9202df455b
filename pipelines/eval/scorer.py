"""Base and all candidates on one held-out set through Ray Data: actors load the base once, with every adapter on it.

Ray Data streams batches to the actors; each answers a batch once per candidate. A candidate that fails is reported as
failed and costs the others nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipelines.config.schema import ModelConfig, ResourcesConfig
from pipelines.core.artifacts import ArtifactRef
from pipelines.eval.heldout import EvalBatch, batch_from_row, batch_table
from pipelines.eval.metrics import pad_batch, weighted_nll
from pipelines.storage import Store

BASE = "base"
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
    """What an actor loads: the base, and the checkpoint of each candidate by name (the base itself is `BASE`)."""

    model: ModelConfig
    store_uri: str
    checkpoints: Mapping[str, ArtifactRef]
    max_new_tokens: int


def score_batches(
    spec: ScorerSpec, works: Sequence[EvalBatch], resources: ResourcesConfig, num_actors: int
) -> Iterator[list[dict[str, Any]]]:
    """Run every batch through base and candidates on the running Ray; yields each batch's results, one a candidate."""
    import ray.data

    dataset = ray.data.from_arrow([batch_table([work]) for work in works])
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    # Importing ray.data sets its logger to DEBUG: here it says what "ray" may say, no more.
    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").getEffectiveLevel())
    scored = dataset.map_batches(
        Scorer,
        fn_constructor_args=[spec],
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=resources.data_cpus,
        num_gpus=resources.gpus_per_worker or None,
        compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(works))),
        max_restarts=0,  # an actor that dies fails the stage, which can be run again; Ray Data would restart for ever
    )
    for table in scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield cast(pa.Table, table).to_pylist()


class Scorer:
    """The Ray Data actor: base, adapters and models that trained whole in memory, called with one batch at a time."""

    def __init__(self, spec: ScorerSpec) -> None:
        import torch

        from pipelines.chat import ChatRenderer
        from pipelines.model.base import load_base
        from pipelines.model.lora_load import add_adapter

        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._max_new_tokens = spec.max_new_tokens
        self._renderer = ChatRenderer.load(spec.model.base, spec.model.revision)
        self._errors: dict[str, str] = {}
        self._names = [BASE, *spec.checkpoints]
        store = Store(spec.store_uri)
        self._adapted: Any = load_base(spec.model)
        self._whole: dict[str, Any] = {}
        for name, ref in spec.checkpoints.items():
            try:
                folder = store.local_dir(ref)
                if (folder / "model").is_dir():
                    whole = {"base": str(folder / "model"), "revision": None}
                    self._whole[name] = load_base(spec.model.model_copy(update=whole))
                else:
                    self._adapted = add_adapter(self._adapted, name, folder / "adapter")
            except Exception as error:  # noqa: BLE001 - worker boundary: a broken candidate must not lose the others
                self._errors[name] = _in_words(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        results = [
            self._result(name, batch_from_row(row))
            for row in batch.to_pylist()
            for name in self._names
        ]
        return pa.Table.from_pylist(results, schema=_RESULT_SCHEMA)

    def _result(self, name: str, work: EvalBatch) -> dict[str, Any]:
        from pipelines.model.lora_load import use_adapter

        result: dict[str, Any] = {
            "candidate": name,
            "kind": work.kind,
            "sample_ids": work.sample_ids,
        }
        if name in self._errors:
            return result | {"error": self._errors[name]}
        model = self._whole.get(name, self._adapted)
        try:
            with use_adapter(model, None if name == BASE or name in self._whole else name):
                if work.kind == "loss":
                    nll, weight, num_labels = weighted_nll(model, work.tokens, work.weights)
                    return result | {"nll": nll, "weight": weight, "num_labels": num_labels}
                answers = greedy(model, work.tokens, self._max_new_tokens, self._renderer.stop_ids)
                return result | {"texts": [self._renderer.decode(ids) for ids in answers]}
        except Exception as error:  # noqa: BLE001 - worker boundary, as above
            return result | {"error": _in_words(error)}


def greedy(
    model: Any, prompts: Sequence[np.ndarray], max_new_tokens: int, stop_ids: Sequence[int]
) -> list[np.ndarray]:
    """The most likely continuation of each prompt, up to and without its first stop token.

    Always with an attention mask: a padding id inside a prompt is a token like any other.
    """
    import torch
    from transformers import GenerationConfig

    ids, mask = pad_batch(prompts, left=True)
    stops = list(stop_ids) or None
    plain = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=0
    )
    model.generation_config = (
        plain  # else the sampling knobs in the model's folder fill what is left open here
    )
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=plain,
        )
    answers = out[:, ids.shape[1] :].cpu().numpy()
    ended = np.isin(answers, list(stop_ids))
    return [
        row[: int(end.argmax())] if end.any() else row
        for row, end in zip(answers, ended, strict=True)
    ]


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
