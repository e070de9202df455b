"""A simulated Ray cluster whose nodes a test can add, drain and take away, and training runs on it by the command line.

Each node is a raylet of this machine with one logical CPU, so that each holds one training worker. The head has none.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipelines.core.errors import UserError
from pipelines.storage import verify
from pipelines.train.track.metrics_log import read_lines, read_metrics, read_samples

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "pocket_lora_person_cpu.yaml")
PATIENCE_S = 240
_NOT_CHECKPOINTS = ("samples", "tensorboard")


class Nodes:
    """The cluster. All calls come from the test's own thread; training runs in other processes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self._added: list[Any] = []
        self.address = str(self._cluster.address)

    def add(self) -> Any:
        """One more node, up when this returns."""
        self._added.append(self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20))
        return self._added[-1]

    def lose(self, node: Any) -> None:
        """The node is gone at once, as when its power fails."""
        self._added.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def lose_all(self) -> None:
        """Only the head is left."""
        for node in list(self._added):
            self.lose(node)

    def drain(self, node: Any, seconds: int) -> None:
        """Announce that the node will be taken away after so many seconds, as a cloud does before it reclaims one."""
        command = [
            str(Path(sys.executable).with_name("ray")),
            "drain-node",
            "--address",
            self.address,
        ]
        command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "reclaimed", "--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, check=True, capture_output=True)

    def shutdown(self) -> None:
        self._cluster.shutdown()


def workers_on(node: Any) -> list[psutil.Process]:
    """The training workers that live on a node."""
    try:
        below = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in below if _is_worker(process)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it ended in the meantime
        return False


@dataclass
class Run:
    """A training run of the pocket recipe with `options`, in its own store; one command at a time."""

    store: Path
    address: str
    options: Sequence[str]
    _whole: set[Path] = field(default_factory=set)
    _output: Any = None

    def start(self, verb: str = "train") -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "jobs.cli",
            verb,
            RECIPE,
            "--store",
            str(self.store),
            *self.options,
        ]
        env = os.environ | {"RAY_ADDRESS": self.address, "PYTHONUNBUFFERED": "1"}
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (not a pipe, which nobody would read)
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=self._output, stderr=subprocess.STDOUT, text=True
        )

    def said(self) -> str:
        """What the last command has printed."""
        self._output.seek(0)
        return self._output.read()

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """Wait for the command's end with this exit code; returns what it printed."""
        self.wait_for(lambda: process.poll() is not None, 2 * PATIENCE_S)
        assert process.returncode == code, self.said()
        return self.said()

    def wait_for(self, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
        """Wait, and watch that every checkpoint is whole from the moment on when it has its name."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (
                f"waited {seconds:.0f} s, at step {self.step} of start {len(self.spans())}"
            )
            self.check_checkpoints()
            time.sleep(0.1)

    def check_checkpoints(self) -> None:
        for path in self.store.glob("runs/*/*"):
            if (
                path.is_dir()
                and path not in self._whole
                and path.name[0] != "."
                and path.name not in _NOT_CHECKPOINTS
            ):
                try:
                    verify(path)
                except UserError:
                    assert not path.exists(), (
                        f"{path} is not whole"
                    )  # else it was swept away in the meantime
                self._whole.add(path)

    @property
    def folder(self) -> Path:
        found = list(self.store.glob("runs/*"))
        return found[0] if found else self.store / "none"

    @property
    def step(self) -> int:
        """The last step that is written down."""
        lines = read_metrics(self.folder)
        return lines[-1]["step"] if lines else 0

    def spans(self) -> list[tuple[int, int]]:
        """First and last step of each group of workers that has finished a step, in the order of their starts."""
        steps: dict[str, list[int]] = {}
        for path in sorted(self.folder.glob("samples/*.jsonl")):
            steps.setdefault(path.name.rpartition("-")[0], []).extend(
                line["step"] for line in read_lines(path)
            )
        return [(min(held), max(held)) for held in steps.values() if held]

    def redone(self) -> list[int]:
        """How many steps each start but the first did again."""
        spans = self.spans()
        return [last - first + 1 for (_, last), (first, _) in itertools.pairwise(spans)]

    def seconds_until_started_again(self) -> float:
        """Wait until a new group of workers has finished its first step."""
        before, began = len(self.spans()), time.monotonic()
        self.wait_for(lambda: len(self.spans()) > before)
        return time.monotonic() - began

    def losses(self) -> list[float]:
        lines = read_metrics(self.folder)
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["loss"] for line in lines]

    def samples(self) -> dict[int, list[str]]:
        """The samples that each step counts, those of abandoned steps left out."""
        return {step: sorted(names) for step, names in read_samples(self.folder).items()}
