"""A run's progress bar, drawn from its files while workers write them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipelines.core.progress import Progress
from pipelines.train.faults.failures import read_failures
from pipelines.train.track.metrics_log import last_metrics
from pipelines.train.track.proof_log import read_proof

_POLL_S = 0.5


class RunProgress:
    """Inside, shows the progress of the run in `folder`, and notes the proof of its base and each
    new failure once.

    After a restart of the workers the bar goes back to the step that they resumed from.
    """

    def __init__(self, folder: Path, num_steps: int, progress: Progress) -> None:
        self._folder, self._num_steps, self._progress = folder, num_steps, progress
        self._num_noted, self._noted_proof = len(read_failures(folder)), ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _draw(self) -> None:
        shown_step = 0
        with self._progress.bar("train steps", self._num_steps) as advance:
            while True:
                done = self._done.wait(_POLL_S)
                metrics = last_metrics(self._folder)
                if metrics and metrics["step"] != shown_step:
                    advance(metrics["step"] - shown_step, describe_metrics(metrics))
                    shown_step = metrics["step"]
                self._note_proof()
                self._note_failures()
                if done:
                    return

    def _note_proof(self) -> None:
        line = (read_proof(self._folder) or {}).get("line", "")
        if line != self._noted_proof:
            self._progress.note(f"train: {line}")
        self._noted_proof = line

    def _note_failures(self) -> None:
        failures = read_failures(self._folder)
        for failure in failures[self._num_noted :]:
            self._progress.note(f"train: {failure}")
        self._num_noted = len(failures)


def describe_metrics(metrics: Mapping[str, Any]) -> str:
    """One step's metrics as text, the most important first: a narrow terminal cuts off the end."""
    parts = [f"loss {_number(metrics['loss'], '.4f')}"]
    if metrics["eta_s"] >= 1:
        parts.append(f"{timedelta(seconds=round(metrics['eta_s']))} left")
    parts += [f"{metrics['tokens_per_s']:,.0f} tokens/s", f"lr {metrics['lr']:.2e}"]
    parts.append(f"grad {_number(metrics['grad_norm'], '.3g')}")
    if "mfu" in metrics:
        rate = f"{metrics['measured_tflops_per_s']:,.0f} TFLOP/s measured"
        parts.append(f"MFU {metrics['mfu']:.0%} of {rate}")
    parts.append(f"{metrics['memory_bytes'] >> 20:,} MiB")
    return "  ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
