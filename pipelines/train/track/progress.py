"""What a person sees while a run goes on: its metrics.jsonl and failures.jsonl, read as they are written."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipelines.core.progress import Progress
from pipelines.train.faults.failures import read_failures
from pipelines.train.track.metrics_log import last_metrics

_POLL_S = 0.5


class RunProgress:
    """Inside, draws the progress of the run in `folder` and notes its new failures.

    After a restart the bar goes back to where the run stands.
    """

    def __init__(self, folder: Path, num_steps: int, progress: Progress) -> None:
        self._folder, self._num_steps, self._progress = folder, num_steps, progress
        self._known = len(read_failures(folder))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _draw(self) -> None:
        shown = 0
        with self._progress.bar("train steps", self._num_steps) as advance:
            while True:
                finished = self._done.wait(_POLL_S)
                last = last_metrics(self._folder)
                if last and last["step"] != shown:
                    advance(last["step"] - shown, describe(last))
                    shown = last["step"]
                self._note_failures()
                if finished:
                    return

    def _note_failures(self) -> None:
        failures = read_failures(self._folder)
        for failure in failures[self._known :]:
            self._progress.note(f"train: {failure}")
        self._known = len(failures)


def describe(line: Mapping[str, Any]) -> str:
    """One step's metrics in words, what matters most first, because a narrow terminal cuts the end."""
    parts = [f"loss {_number(line['loss'], '.4f')}"]
    if line["eta_s"] >= 1:
        parts.append(f"{timedelta(seconds=round(line['eta_s']))} left")
    parts += [f"{line['tokens_per_s']:,.0f} tokens/s", f"lr {line['lr']:.2e}"]
    parts.append(f"grad {_number(line['grad_norm'], '.3g')}")
    if "mfu" in line:
        parts.append(
            f"MFU {line['mfu']:.0%} of {line['measured_tflops_per_s']:,.0f} TFLOP/s measured"
        )
    parts.append(f"{line['memory_bytes'] >> 20:,} MiB")
    return "  ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
