"""Every run proves its base before its first step, on all ranks, also when it resumes."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.errors import UserError
from pipelines.storage import Store
from pipelines.train.checkpoint.files import list_checkpoints
from pipelines.train.track.proof_log import read_proof
from tests.small_run import NullChannel, prepared_dataset, recipe_for, worker_args
from tests.tiny_models import tiny_model

CASES: dict[str, dict[str, Any]] = {
    "llama": {"train": {"zero": 3, "fused": "on"}, "lora": {"init": "pissa"}},
    "lfm2": {"train": {"zero": 0}},
    "gpt_neox": {"train": {"zero": 0}},
}
"""One base that is computed, one that leaks, one whose forward raises AttributeError."""


def run_all(rank: int, folder: str, bases: dict[str, str]) -> None:
    """Train each base as one of two ranks, and write how each attempt ended."""
    import torch
    import torch.distributed as dist

    from pipelines.train import build_model, worker

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    build_model.check_base = lambda *_: None  # so that the proof alone decides
    for kind, base in bases.items():
        store = Store(f"{folder}/{kind}")
        if rank == 0:
            prepared_dataset(store, bases["pocket"], num_train=4, num_heldout=1)
        dist.barrier()
        if kind == "pocket":
            continue
        prepared = prepared_dataset(store, bases["pocket"], num_train=4, num_heldout=1)
        sections = {key: dict(value) for key, value in CASES[kind].items()}
        sections["train"] |= {"epochs": 2, "save_every": 2}
        args = worker_args(recipe_for(base, **sections), store, prepared)
        endings = []
        for _ in ("fresh", "resumed"):
            try:
                worker.train_rank(args, torch.device("cpu"), NullChannel())
                endings.append("ended")
            except UserError as error:
                endings.append(str(error))
            proof = read_proof(args.folder)
            dist.barrier()
            if rank == 0 and proof:  # the next attempt starts from the checkpoint before
                os.remove(args.folder / "base_proof.json")
                shutil.rmtree(list_checkpoints(store, args.run_id)[-1].ref.uri)
            dist.barrier()
            endings.append((proof or {}).get("line", ""))
        Path(folder, f"{kind}-{rank}.json").write_text(json.dumps(endings))
    os._exit(0)


@pytest.fixture(scope="module")
def endings(pocket_base: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runs")
    bases = {"pocket": pocket_base}
    for kind in CASES:
        bases[kind] = str(folder / f"base-{kind}")
        tiny_model(kind, vocab_size=1024).save_pretrained(bases[kind])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.preload"])
    ranks = [context.Process(target=run_all, args=(r, str(folder), bases)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return lambda kind: [json.loads((folder / f"{kind}-{r}.json").read_text()) for r in range(2)]


def test_a_run_and_its_resume_prove_the_base_under_zero_3(endings: Any) -> None:
    for rank in endings("llama"):
        assert rank[0] == rank[2] == "ended"
        for line in (rank[1], rank[3]):
            assert line.startswith("base proof: 3 samples, mean difference") and "no leak" in line


def test_a_base_that_leaks_is_refused_on_all_ranks_before_a_step(endings: Any) -> None:
    first, second = endings("lfm2")
    assert first == second and first[1] == ""
    assert "would see each other" in first[0] and "(lfm2)" in first[0]


def test_an_error_of_the_bases_code_is_the_users_on_all_ranks(endings: Any) -> None:
    """Ray returns a UserError of a worker, and tries every other error three times."""
    first, second = endings("gpt_neox")
    assert first == second and "raises AttributeError" in first[0]
