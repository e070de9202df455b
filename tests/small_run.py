"""A small training run for tests: a dataset, a recipe and a worker's arguments, without Ray.

The dataset's rows come from the pocket person task, rendered by the product.
"""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import PreparedDataset, SplitStats
from pipelines.storage import Store
from pipelines.train.worker import WorkerArgs

ROW_TOKENS = 160


@dataclass(frozen=True)
class PickledFeed:
    """Streams the rows of a pickled list in the requested order."""

    folder: Path
    split: str

    def rows(self) -> list[dict[str, Any]]:
        return pickle.loads((self.folder / f"{self.split}.pickle").read_bytes())

    def sample_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        lengths = [np.asarray(row["sample_lengths"], np.int64) for row in self.rows()]
        return np.concatenate(lengths), np.repeat(np.arange(len(lengths)), list(map(len, lengths)))

    def read_samples(self, row: int) -> list[np.ndarray]:
        ends = np.cumsum(self.rows()[row]["sample_lengths"])
        return np.split(self.rows()[row]["input_ids"][: ends[-1]], ends[:-1])

    def batches(
        self, order: np.ndarray, batch_size: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        rows = self.rows()
        for at in range(start, len(order), batch_size):
            batch = [rows[i] for i in order[at : at + batch_size]]
            yield {key: [row[key] for row in batch] for key in batch[0]}


class NullChannel:
    """The channel of a worker that nobody listens to and whose node stays."""

    def report(self, metrics: Any, checkpoint_uri: str | None) -> None: ...

    def seconds_left(self) -> float | None:
        return None


def prepared_dataset(
    store: Store, base: str, num_train: int = 10, num_heldout: int = 3
) -> PreparedDataset:
    """The first rows of the pocket person task, packed one sample after the other."""
    from pipelines.chat import ChatRenderer
    from pipelines.core.conversation import Conversation, Turn

    tasks = Path(base).parent / "tasks" / "person_train.json"
    renderer = ChatRenderer.load(base)
    samples = []
    for number, task in enumerate(json.loads(tasks.read_text())[:120]):
        question = "\n".join(filter(None, (task["instruction"], task.get("input", ""))))
        turns = (Turn("user", question), Turn("assistant", task["output"]))
        samples.append((f"person-{number}", renderer.render(Conversation(turns))))
    rows = list(itertools.islice(_packed(samples), num_train + num_heldout))
    splits = {"train": rows[:num_train], "heldout": rows[num_train:]}
    with store.create_artifact("prepared", "0" * 64) as draft:
        for name, split_rows in splits.items():
            (draft.path / f"{name}.pickle").write_bytes(pickle.dumps(split_rows))
    assert draft.ref is not None
    stats = {
        name: SplitStats(sum(len(row["sample_ids"]) for row in split_rows), len(split_rows), 0, 0)
        for name, split_rows in splits.items()
    }
    return PreparedDataset(draft.ref, ROW_TOKENS, stats["train"], stats["heldout"], {}, "", "")


def _packed(samples: list[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    pending: list[tuple[str, Any]] = []
    for sample in samples:
        num_tokens = sum(len(rendered.input_ids) for _, rendered in [*pending, sample])
        if num_tokens > ROW_TOKENS:
            yield _row(pending)
            pending = []
        pending.append(sample)


def _row(samples: list[tuple[str, Any]]) -> dict[str, Any]:
    ids, weights = np.zeros(ROW_TOKENS, np.int32), np.zeros(ROW_TOKENS, np.float32)
    joined = np.concatenate([rendered.input_ids for _, rendered in samples])
    ids[: len(joined)] = joined
    weights[: len(joined)] = np.concatenate([rendered.loss_weights for _, rendered in samples])
    return {
        "input_ids": ids,
        "loss_weights": weights,
        "sample_lengths": np.array([len(s.input_ids) for _, s in samples], np.int32),
        "sample_ids": [name for name, _ in samples],
    }


def recipe_for(base: str, **sections: Mapping[str, Any]) -> Recipe:
    """A small recipe on `base`; `train`, `lora` and `model` override keys of its sections."""
    train = {
        "epochs": 2,
        "global_batch": 2,
        "lr": 5e-3,
        "save_every": 3,
        "trackers": [],
        "record_samples": True,
    }
    return parse_recipe(
        {
            "name": "chaos",
            "model": {"base": base, **sections.get("model", {})},
            "data": {"sources": ["none.json"], "row_tokens": ROW_TOKENS},
            "lora": {"r": 4, "alpha": 8, **sections.get("lora", {})},
            "train": {**train, **sections.get("train", {})},
        }
    )


def worker_args(recipe: Recipe, store: Store, prepared: PreparedDataset) -> WorkerArgs:
    folder = Path(store.uri) / "runs" / ("a" * 12)
    parents = {"prepared": prepared.ref.digest}
    return WorkerArgs(recipe, store, prepared, "a" * 64, parents, folder, PickledFeed)


def fresh_args(base: str, folder: Path, **sections: Any) -> WorkerArgs:
    """The arguments of a new run in a store of its own."""
    store = Store(folder)
    return worker_args(recipe_for(base, **sections), store, prepared_dataset(store, base))
