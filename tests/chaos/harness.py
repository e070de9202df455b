"""Training workers as plain processes over gloo, which a test can kill where it likes; and a small real dataset.

The worker is the product's own (`pipelines.train.worker`); only Ray and Ray Data are left out, to make a restart cheap.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import PreparedDataset, SplitStats
from pipelines.core.errors import UserError
from pipelines.storage import Store
from pipelines.train.worker import WorkerArgs

ROW_TOKENS = 160
_ATTEMPTS = itertools.count()
_STOPPED = 3


@dataclass(frozen=True)
class PickledFeed:
    """Rows of a pickled list, in the order asked for."""

    folder: Path
    split: str

    def batches(
        self, order: np.ndarray, batch_size: int, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        rows = pickle.loads((self.folder / f"{self.split}.pickle").read_bytes())
        for at in range(start, len(order), batch_size):
            part = [rows[i] for i in order[at : at + batch_size]]
            yield {key: [row[key] for row in part] for key in part[0]}


def prepared_dataset(
    store: Store, base: str, num_train: int = 10, num_heldout: int = 3
) -> PreparedDataset:
    """The first rows of the pocket person task, rendered by the product and packed one after the other."""
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
        for name, part in splits.items():
            (draft.path / f"{name}.pickle").write_bytes(pickle.dumps(part))
    assert draft.ref is not None
    stats = {
        name: SplitStats(sum(len(r["sample_ids"]) for r in part), len(part), 0, 0)
        for name, part in splits.items()
    }
    return PreparedDataset(draft.ref, ROW_TOKENS, stats["train"], stats["heldout"], {}, "", "")


def _packed(samples: list[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    held: list[tuple[str, Any]] = []
    for sample in samples:
        if sum(len(s.input_ids) for _, s in held) + len(sample[1].input_ids) > ROW_TOKENS:
            yield _row(held)
            held = []
        held.append(sample)


def _row(held: list[tuple[str, Any]]) -> dict[str, Any]:
    ids, weights = np.zeros(ROW_TOKENS, np.int32), np.zeros(ROW_TOKENS, np.float32)
    joined = np.concatenate([s.input_ids for _, s in held])
    ids[: len(joined)] = joined
    weights[: len(joined)] = np.concatenate([s.loss_weights for _, s in held])
    lengths = np.array([len(s.input_ids) for _, s in held], np.int32)
    return {
        "input_ids": ids,
        "loss_weights": weights,
        "sample_lengths": lengths,
        "sample_ids": [n for n, _ in held],
    }


def recipe_for(base: str, **sections: Mapping[str, Any]) -> Recipe:
    """A small recipe on `base`; `train`, `lora` and `model` change its sections."""
    train = {
        "epochs": 2,
        "global_batch": 2,
        "lr": 5e-3,
        "save_every": 3,
        "trackers": [],
        "record_samples": True,
    }
    data: dict[str, Any] = {
        "name": "chaos",
        "data": {"sources": ["none.json"], "row_tokens": ROW_TOKENS},
    }
    data |= {
        "train": {**train, **sections.get("train", {})},
        "lora": {"r": 4, "alpha": 8, **sections.get("lora", {})},
    }
    return parse_recipe(data | {"model": {"base": base, **sections.get("model", {})}})


def plan_of(recipe: Recipe, store: Store, prepared: PreparedDataset) -> WorkerArgs:
    folder = Path(store.uri) / "runs" / ("a" * 12)
    return WorkerArgs(recipe, store, prepared, "a" * 64, {}, folder, PickledFeed)


@dataclass(frozen=True)
class Faults:
    """What befalls one rank of an attempt. Steps count from the start of the run."""

    rank: int = 0
    kill_at_step: int | None = None
    die_at_byte: int | None = None
    refuse_writes_at_step: int | None = None
    hang_at_step: int | None = None
    preempt_at_step: int | None = None
    preempt_in_s: float = math.inf
    poison_at_step: int | None = None
    other_store: Path | None = None
    free_bytes: int | None = None
    spoil: str = ""  # what happens to a checkpoint's files once they are written: "weights", "configuration", "cut"
    unverified: bool = False  # leave out the comparison of what was written with what trains


@dataclass
class Outcome:
    """How the ranks of an attempt ended: exit codes (negative: signal) and the UserErrors that they raised."""

    codes: list[int]
    mistakes: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return all(code == 0 for code in self.codes) and not self.mistakes

    @property
    def stopped(self) -> bool:
        """Every rank stopped by itself before the end, because a node will be taken away."""
        return all(code == _STOPPED for code in self.codes)


def attempt(
    plan: WorkerArgs, world_size: int, faults: Faults = Faults(), timeout_s: float = 240
) -> Outcome:
    """Start the workers and wait for their end. When one dies the others are killed, as Ray Train does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.preload"])
    plan.folder.mkdir(parents=True, exist_ok=True)
    meeting = plan.folder.parent / f"meeting-{os.getpid()}-{next(_ATTEMPTS)}"
    results: Any = context.SimpleQueue()
    ranks = [
        context.Process(
            target=_rank, args=(plan, rank, world_size, str(meeting), faults, results), daemon=True
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    end = time.monotonic() + timeout_s
    while any(p.is_alive() for p in ranks) and time.monotonic() < end:
        if any(p.exitcode not in (None, 0, _STOPPED) for p in ranks):
            time.sleep(0.5)
            break
        time.sleep(0.05)
    for process in ranks:
        if process.is_alive():
            process.kill()
        process.join()
    mistakes = []
    while not results.empty():
        mistakes.append(results.get())
    return Outcome([p.exitcode or 0 for p in ranks], mistakes)


def _rank(
    plan: WorkerArgs, rank: int, world_size: int, meeting: str, faults: Faults, results: Any
) -> None:
    import torch
    import torch.distributed as dist

    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", f"file://{meeting}", rank=rank, world_size=world_size, timeout=timeout
    )
    from pipelines.train import worker

    channel, ended = _LocalChannel(faults), True
    if faults.rank == rank or faults.unverified:
        _plant(worker, faults)
        plan = replace(plan, store=Store(faults.other_store)) if faults.other_store else plan
    try:
        ended = worker.train_rank(plan, torch.device("cpu"), channel)
    except UserError as error:
        results.put(str(error))
    except Exception:  # noqa: BLE001  (the process boundary)
        traceback.print_exc()
        os._exit(1)
    os._exit(
        0 if ended else _STOPPED
    )  # gloo's threads sometimes abort a process that leaves by the front door


class Alone:
    """The channel of a worker to whom nothing happens."""

    def report(self, metrics: Any, checkpoint_uri: str | None) -> None: ...

    def seconds_left(self) -> float | None:
        return None


class _LocalChannel:
    """Tells of the node's end from the step `preempt_at_step` of this attempt on."""

    def __init__(self, faults: Faults) -> None:
        self._faults, self._asked, self._deadline = faults, 0, 0.0

    def report(self, metrics: Mapping[str, float], checkpoint_uri: str | None) -> None: ...

    def seconds_left(self) -> float | None:
        self._asked += 1
        if self._asked == self._faults.preempt_at_step:
            self._deadline = time.monotonic() + self._faults.preempt_in_s
        return self._deadline - time.monotonic() if self._deadline else None


def _plant(worker: Any, faults: Faults) -> None:
    """Have the worker's own code meet the fault: a step's end for kills, the kernel's file size limit for writes."""

    if faults.die_at_byte is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults.die_at_byte, resource.RLIM_INFINITY))
    if faults.free_bytes is not None:
        usage = shutil.disk_usage("/")._replace(free=faults.free_bytes)
        shutil.disk_usage = lambda path: usage
    if faults.spoil:
        _spoil_writes(faults.spoil)
    if faults.unverified:
        from pipelines.train.checkpoint import save

        save.CheckpointSaver._compare_reloaded = lambda self, folder, step: None
    steps: Callable[..., None] = worker.train_steps

    def watched(engine: Any, schedule: Any, rows: Any, first_step: int, on_step: Any) -> None:
        def meet(step: int, values: dict[str, float], rows: Any) -> Any:
            if step == faults.kill_at_step:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == faults.hang_at_step:
                time.sleep(10_000)
            if step == faults.refuse_writes_at_step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return on_step(step, values, rows)

        if faults.poison_at_step is not None:
            engine = _poisoned(engine, faults.poison_at_step - first_step)
        steps(engine, schedule, rows, first_step, meet)

    worker.train_steps = watched


def _spoil_writes(how: str) -> None:
    """Have the disk hold something else than what was written and audited, from the second checkpoint on."""
    from safetensors.torch import load_file, save_file

    from pipelines.train.checkpoint import save

    write, count = save.write_checkpoint, itertools.count(1)

    def spoiled(folder: Path, *args: Any) -> dict[str, Any]:
        facts = write(folder, *args)
        if next(count) == 1:
            return facts
        file = next(path for path in folder.glob("*/*.safetensors"))
        if how == "weights":
            tensors = load_file(str(file))
            last = max(tensors)  # in an adapter a B, in a whole model a norm
            save_file(tensors | {last: tensors[last] * 1.01}, str(file), metadata={"format": "pt"})
        elif how == "cut":
            file.write_bytes(file.read_bytes()[:-4])
        else:
            path = file.with_name("adapter_config.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 64}))
        return facts

    save.write_checkpoint = spoiled


def _poisoned(engine: Any, at: int) -> Any:
    """The engine whose `at`-th step from here has a gradient of NaN in one parameter of this rank."""
    accumulate, count = engine.accumulate, itertools.count(1)

    def broken(batch: Any, tokens: Any) -> Any:
        return accumulate(batch, tokens * float("nan") if next(count) == at else tokens)

    engine.accumulate = broken
    return engine
