"""The progress bar of a run and the files that it is drawn from."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pipelines.train.track.metrics_log import last_metrics
from pipelines.train.track.run_progress import RunProgress, describe_metrics
from tests.recorders import ProgressRecorder

METRICS = {
    "step": 7,
    "loss": 0.51234,
    "lr": 2e-4,
    "grad_norm": 1.25,
    "tokens_per_s": 12_100.0,
    "memory_bytes": 53 << 30,
}


def test_a_steps_metrics_are_one_line_also_if_they_are_not_finite() -> None:
    speed = {"eta_s": 3725.4, "mfu": 0.614, "measured_tflops_per_s": 790.4}
    assert describe_metrics({**METRICS, **speed}) == (
        "loss 0.5123  1:02:05 left  12,100 tokens/s  lr 2.00e-04  grad 1.25  "
        "MFU 61% of 790 TFLOP/s measured  54,272 MiB"
    )
    assert describe_metrics({**METRICS, "eta_s": 0.0, "loss": None, "grad_norm": None}) == (
        "loss not finite  12,100 tokens/s  lr 2.00e-04  grad not finite  54,272 MiB"
    )


def test_the_bar_follows_the_file_and_goes_back_when_the_run_does(tmp_path: Path) -> None:
    recorder, file = ProgressRecorder(), tmp_path / "metrics.jsonl"

    def write(steps: range, unfinished: str = "") -> None:
        lines = (json.dumps({**METRICS, "step": step, "eta_s": 1.0}) + "\n" for step in steps)
        file.write_text("".join(lines) + unfinished)
        end = time.monotonic() + 20
        while recorder.positions[-1] != steps[-1] and time.monotonic() < end:
            time.sleep(0.02)

    with RunProgress(tmp_path, 60, recorder):
        write(range(1, 41), '{"step": 41, "lo')
        write(range(1, 31))
        write(range(1, 61))
    assert recorder.positions == [0, 40, 30, 60] and "0:00:01 left" in recorder.text


def test_the_last_line_is_read_from_the_end_of_a_long_file(tmp_path: Path) -> None:
    assert last_metrics(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text("")
    assert last_metrics(tmp_path) is None
    lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(5000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:9])
    assert last_metrics(tmp_path) == {"step": 4999, "loss": 1 / 5000}
