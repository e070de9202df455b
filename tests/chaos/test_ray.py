"""Kills under Ray: the command line, Ray Train and Ray Data, two workers on simulated nodes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import Store
from pipelines.train.faults.failures import FAILURES_FILE
from pipelines.train.json_lines import read_json_lines
from tests.chaos.nodes import Nodes, Run, workers_on

EPOCH = 14  # steps: 54 rows, four in a step; an epoch's last step has two
SAVE_EVERY, SHORT, LONG, HANG_S = 5, 30, 84, 60
OPTIONS = {
    "data.row_tokens": 1024,
    "train.global_batch": 4,
    "train.schedule": "constant",
    "train.lr": 3e-4,
    "train.warmup_share": 0,
    "train.save_every": SAVE_EVERY,
    "train.record_samples": "true",
    "resources.cpus_per_worker": 1,
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.shutdown()


@pytest.fixture
def nodes(cluster: Nodes, unbroken: Run) -> Iterator[Nodes]:
    """The cluster, without nodes for workers before and after each test."""
    yield cluster
    cluster.lose_all()


def run_in(store: Path, cluster: Nodes, **options: object) -> Run:
    settings = OPTIONS | {key.replace("__", "."): value for key, value in options.items()}
    arguments = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    return Run(store, cluster.address, arguments)


@pytest.fixture(scope="module")
def prepared(cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the prepared dataset."""
    store = tmp_path_factory.mktemp("prepared")
    cluster.add()
    run = run_in(store, cluster)
    run.finish(run.start("prepare"))
    cluster.lose_all()
    return store


@pytest.fixture
def make_run(prepared: Path, cluster: Nodes, tmp_path: Path) -> Callable[..., Run]:
    """Makes a run of so many steps in its own store; recipe keys are written `section__key`."""

    def make(steps: int, store: Path | None = None, **options: object) -> Run:
        into = store or tmp_path / "store"
        shutil.copytree(prepared, into, dirs_exist_ok=True)
        return run_in(into, cluster, train__max_steps=steps, **options)

    return make


@pytest.fixture(scope="module")
def unbroken(prepared: Path, cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = tmp_path_factory.mktemp("unbroken") / "store"
    shutil.copytree(prepared, store)
    run = run_in(store, cluster, train__max_steps=LONG, resources__workers=2)
    for _ in range(2):
        cluster.add()
    run.finish(run.start())
    cluster.lose_all()
    losses = run.losses()
    assert losses[-1] < 0.5 * losses[0]
    check_epochs(run, LONG)
    return run


def check_epochs(run: Run, steps: int) -> None:
    """Check that each epoch uses every sample exactly once."""
    samples = run.samples()
    assert list(samples) == list(range(1, steps + 1))
    all_samples = sorted(name for step in range(1, EPOCH + 1) for name in samples[step])
    for first in range(1, steps - EPOCH + 2, EPOCH):
        counts = Counter(name for step in range(first, first + EPOCH) for name in samples[step])
        assert set(counts.values()) == {1} and sorted(counts) == all_samples


def check_equals(run: Run, unbroken: Run, steps: int, tolerance: float = 1e-6) -> None:
    """Check that the run has the losses and samples of the unbroken one, and one artifact."""
    assert run.losses() == pytest.approx(unbroken.losses()[:steps], rel=tolerance)
    check_epochs(run, steps)
    assert run.samples() == {
        step: names for step, names in unbroken.samples().items() if step <= steps
    }
    assert len(list(run.store.glob("trained/*/manifest.json"))) == 1
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".tmp")]
    run.check_checkpoints()


def failures(run: Run) -> list[dict[str, Any]]:
    return read_json_lines(run.folder / FAILURES_FILE)


def test_a_run_survives_killed_workers_a_killed_driver_and_rays_damaged_snapshot(
    make_run: Callable[..., Run],
    nodes: Nodes,
    unbroken: Run,
    record_property: Callable[[str, object], None],
) -> None:
    run = make_run(SHORT, resources__workers=2, train__max_failures=2, train__hang_timeout_s=HANG_S)
    both = nodes.add(), nodes.add()
    driver = run.start()
    run.wait_for(lambda: run.step >= 7)
    workers_on(both[0])[0].kill()
    record_property(
        "worker killed: seconds to the first new step", run.seconds_until_started_again()
    )
    run.wait_for(lambda: run.step >= 11)
    os.kill(workers_on(both[1])[0].pid, signal.SIGSTOP)
    seconds = run.seconds_until_started_again()
    record_property(
        f"worker stopped, hang_timeout_s={HANG_S}: seconds to the first new step", seconds
    )
    assert ["failed" in event for event in failures(run)] == [True, True]
    run.wait_for(lambda: run.step >= 13)
    driver.kill()
    driver.wait()
    assert run.output().count("train: failed: worker") == 2, run.output()
    run.wait_for(lambda: not workers_on(both[0]) and not workers_on(both[1]))
    snapshot = run.folder / "checkpoint_manager_snapshot.json"
    content = b'{"ray_version": "2.60.0", "checkpoint_results": []}'
    if snapshot.exists():  # after fast kills Ray has not written it yet
        content = snapshot.read_bytes()
    snapshot.write_bytes(content[: len(content) // 2])
    output = run.finish(run.start())
    assert re.search(rf"resumes from step 1[05] of {SHORT}", output), output
    check_equals(run, unbroken, SHORT)
    assert len(run.redone()) == 3 and max(run.redone()) <= SAVE_EVERY
    assert "found" in run.finish(run.start())


def test_a_reclaimed_node_costs_no_step_and_a_lost_node_a_few(
    make_run: Callable[..., Run],
    nodes: Nodes,
    unbroken: Run,
    record_property: Callable[[str, object], None],
) -> None:
    """The announced end of a node does not count as a failure, of which the recipe allows one."""
    run = make_run(LONG, resources__workers=2, train__max_failures=1)
    first, second = nodes.add(), nodes.add()
    driver = run.start()
    run.wait_for(lambda: run.step >= 3)
    nodes.add()
    nodes.drain(first, 20)
    seconds = run.seconds_until_started_again()
    record_property("node drained with 20 s notice: seconds to the first step elsewhere", seconds)
    assert run.redone() == [0] and not workers_on(first)
    assert [len(event["announced"]) for event in failures(run)] == [1]
    nodes.lose(first)
    run.wait_for(lambda: run.step >= run.spans()[1][0] + 2)
    nodes.lose(second)
    nodes.add()
    record_property(
        "node lost, replaced: seconds to the first new step", run.seconds_until_started_again()
    )
    output = run.finish(driver)
    assert output.count("does not count as a failure") == 1, output
    assert output.count("train: failed: worker") == 1, output
    check_equals(run, unbroken, LONG)
    assert len(run.redone()) == 2 and run.redone()[1] <= SAVE_EVERY


def test_an_elastic_run_continues_on_one_worker_and_then_on_two(
    make_run: Callable[..., Run],
    nodes: Nodes,
    unbroken: Run,
    record_property: Callable[[str, object], None],
) -> None:
    """A node is lost and not replaced; later another one is added."""
    run = make_run(
        LONG, resources__workers="[1,2]", resources__resize_every_s=15, train__max_failures=1
    )
    first, second = nodes.add(), nodes.add()
    driver = run.start()
    run.wait_for(lambda: run.step >= 7)
    nodes.lose(first)
    record_property(
        "node lost, not replaced: seconds to the first new step", run.seconds_until_started_again()
    )
    third = nodes.add()
    record_property(
        "node added: seconds to the first step with it", run.seconds_until_started_again()
    )
    assert len(workers_on(second)) == len(workers_on(third)) == 1
    run.finish(driver)
    check_equals(run, unbroken, LONG, 1e-5)
    assert len(run.redone()) == 2 and max(run.redone()) <= SAVE_EVERY


def test_a_disk_that_fills_up_ends_the_run_and_freed_it_resumes(
    make_run: Callable[..., Run], nodes: Nodes, unbroken: Run, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    for _ in range(2):
        nodes.add()
    try:
        run = make_run(SHORT, disk / "store", resources__workers=2)
        driver = run.start()
        run.wait_for(lambda: run.step >= 6)
        ballast = disk / "ballast"
        with pytest.raises(OSError), open(ballast, "wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)
        output = run.finish(driver, code=2)
        line = output.strip().splitlines()[-1]
        assert line.startswith("loraforge: ") and str(run.store) in line
        assert re.search(r"\d+ MiB free.* (wants \d+ MiB|\d+ MiB wanted)", line), line
        is_ray_log = re.compile(r"\S*\(\w+ pid=\d+")
        own = [line for line in output.splitlines() if not is_ray_log.match(line)]
        assert not [line for line in own if line.startswith("Traceback")], own
        assert not failures(run)
        checkpoints = Store(run.store).list("runs/" + run.folder.name)
        last = max(artifact.metadata["step"] for artifact in checkpoints)
        ballast.unlink()
        assert f"resumes from step {last} of" in run.finish(run.start())
        check_equals(run, unbroken, SHORT)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
