"""What a run leaves to be read: metrics.jsonl (one line a step) and TensorBoard events beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends a line a step to `folder/metrics.jsonl`. Lines at or after `first_step` of an interrupted run go away."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        earlier = [line for line in read_metrics(folder) if line["step"] <= first_step]
        replacement = self._path.with_suffix(".tmp")
        replacement.write_text("".join(json.dumps(line) + "\n" for line in earlier))
        os.replace(replacement, self._path)
        self._stream = open(self._path, "a", buffering=1)  # noqa: SIM115  (lives as long as the run)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._stream.close()
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl so far; a last line still being written is left out."""
    try:
        text = (folder / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def memory_bytes() -> int:
    """Peak memory of this process: allocated on the GPU where there is one, else resident."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
