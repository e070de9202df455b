"""Kills under the real thing: the command line, Ray Train and Ray Data, two workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "pocket_lora_person_cpu.yaml")
STEPS = ["-s", "train.max_steps=18", "-s", "train.save_every=6"]

pytestmark = pytest.mark.slow


def loraforge(verb: str, store: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.cli", verb, RECIPE, "--store", str(store), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


def lines(store: Path) -> list[dict[str, float]]:
    found = list(store.glob("runs/*/metrics.jsonl"))
    return (
        [json.loads(line) for line in found[0].read_text().splitlines(keepends=True) if line[-1] == "\n"]
        if found
        else []
    )


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def losses(store: Path) -> list[float]:
    held = lines(store)
    assert [line["step"] for line in held] == list(range(1, 19))
    return [line["loss"] for line in held]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    store = tmp_path_factory.mktemp("unbroken")
    finish(loraforge("prepare", store))
    finish(loraforge("train", store, *STEPS))
    return losses(store)


def test_worker_and_driver_killed_and_snapshot_damaged(tmp_path: Path, unbroken: list[float]) -> None:
    """SIGKILL of a worker after step 8, then of the driver after step 14, then Ray's own bookkeeping cut in half."""
    finish(loraforge("prepare", tmp_path))
    driver = loraforge("train", tmp_path, *STEPS)
    wait_for(lambda: len(lines(tmp_path)) >= 8)
    workers = [
        p for p in psutil.Process(driver.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
    ]
    assert len(workers) == 2
    workers[1].kill()
    wait_for(lambda: len(lines(tmp_path)) < 8)
    wait_for(lambda: len(lines(tmp_path)) >= 14)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    wait_for(lambda: not any(p.is_running() for p in workers[:1]))
    for snapshot in tmp_path.glob("runs/*/checkpoint_manager_snapshot.json"):
        snapshot.write_bytes(snapshot.read_bytes()[: snapshot.stat().st_size // 2])
    said = finish(loraforge("train", tmp_path, *STEPS))
    assert "goes on from step 12 of 18" in said
    assert losses(tmp_path) == pytest.approx(unbroken, rel=1e-6)
    assert len(list(tmp_path.glob("trained/*/manifest.json"))) == 1
    assert "found" in finish(loraforge("train", tmp_path, *STEPS))
