"""A simulated Ray cluster whose nodes a test adds, drains and kills, and training runs on it.
 Each node is a raylet on this machine with one logical CPU, so it has one training worker. The head
has none.
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
from pipelines.train.json_lines import read_json_lines
from pipelines.train.track.metrics_log import read_metrics, read_samples

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "pocket_lora_person_cpu.yaml")
PATIENCE_S = 240
_NOT_CHECKPOINTS = ("samples", "tensorboard")


class Nodes:
    """The cluster. Only the test's own thread calls it; training runs in other processes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self._added: list[Any] = []
        self.address = str(self._cluster.address)

    def add(self) -> Any:
        """Add a node; it is up when this returns."""
        self._added.append(self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20))
        return self._added[-1]

    def lose(self, node: Any) -> None:
        """Kill a node at once, like a power failure."""
        self._added.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def lose_all(self) -> None:
        """Kill all nodes but the head."""
        for node in list(self._added):
            self.lose(node)

    def drain(self, node: Any, seconds: int) -> None:
        """Announce that the node will be reclaimed in so many seconds, as a cloud does."""
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
    """The training workers on a node."""
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
    """A training run of the pocket recipe with command-line `options`, in its own store.

    It runs one command at a time.
    """

    store: Path
    address: str
    options: Sequence[str]
    _verified: set[Path] = field(default_factory=set)
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
        # A file, because a pipe that nobody reads would block the command.
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=self._output, stderr=subprocess.STDOUT, text=True
        )

    def output(self) -> str:
        """The output of the last command so far."""
        self._output.seek(0)
        return self._output.read()

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """Wait for the command's end, check its exit code, return its output."""
        self.wait_for(lambda: process.poll() is not None, 2 * PATIENCE_S)
        assert process.returncode == code, self.output()
        return self.output()

    def wait_for(self, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
        """Wait, and check meanwhile that each checkpoint that has a name is complete."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (
                f"waited {seconds:.0f} s, at step {self.step} of start {len(self.spans())}"
            )
            self.check_checkpoints()
            time.sleep(0.1)

    def check_checkpoints(self) -> None:
        """Verify each checkpoint once."""
        for path in self.store.glob("runs/*/*"):
            is_checkpoint = (
                path.is_dir() and path.name[0] != "." and path.name not in _NOT_CHECKPOINTS
            )
            if not is_checkpoint or path in self._verified:
                continue
            try:
                verify(path)
            except UserError:
                # It may have been pruned while it was read.
                assert not path.exists(), f"{path} is incomplete"
            self._verified.add(path)

    @property
    def folder(self) -> Path:
        folders = list(self.store.glob("runs/*"))
        return folders[0] if folders else self.store / "none"

    @property
    def step(self) -> int:
        """The last logged step."""
        lines = read_metrics(self.folder)
        return lines[-1]["step"] if lines else 0

    def spans(self) -> list[tuple[int, int]]:
        """First and last step of each group of workers, in the order of their starts.

        Groups that finished no step are missing.
        """
        steps: dict[str, list[int]] = {}
        for path in sorted(self.folder.glob("samples/*.jsonl")):
            steps.setdefault(path.name.rpartition("-")[0], []).extend(
                line["step"] for line in read_json_lines(path)
            )
        return [(min(done), max(done)) for done in steps.values() if done]

    def redone(self) -> list[int]:
        """The number of steps that each start but the first did again."""
        spans = self.spans()
        return [last - first + 1 for (_, last), (first, _) in itertools.pairwise(spans)]

    def seconds_until_started_again(self) -> float:
        """Wait until a new group of workers has finished its first step; returns the seconds."""
        before, began = len(self.spans()), time.monotonic()
        self.wait_for(lambda: len(self.spans()) > before)
        return time.monotonic() - began

    def losses(self) -> list[float]:
        lines = read_metrics(self.folder)
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["loss"] for line in lines]

    def samples(self) -> dict[int, list[str]]:
        """The samples of each step; steps that were done again count once."""
        return {step: sorted(names) for step, names in read_samples(self.folder).items()}
