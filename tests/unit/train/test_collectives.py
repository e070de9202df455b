"""What all ranks agree on through collectives."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn


def reduce_min(rank: int, folder: str) -> None:
    import torch.distributed as dist

    from pipelines.train.engine.collectives import all_reduce_min

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    cpu = torch.device("cpu")
    numbers = ((80 << 30) - rank, None, None if rank else 7)
    torch.save([all_reduce_min(number, cpu) for number in numbers], f"{folder}/{rank}")
    dist.barrier()
    os._exit(0)


def test_ranks_plan_for_the_smallest_gpu_among_them(tmp_path: Path) -> None:
    """An 80 and a 24 GB card, each planning for itself, would run different ZeRO stages."""
    spawn(reduce_min, (str(tmp_path),), nprocs=2)
    assert torch.load(tmp_path / "0") == torch.load(tmp_path / "1") == [(80 << 30) - 1, None, 7]
