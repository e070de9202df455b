"""`submit` against a cluster started by hand, token authentication on: what a person with a cluster
does.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.submit import submit_job
from pipelines.config.load import load_recipe
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.errors import UserError
from pipelines.registry.registry import Registry
from pipelines.storage import Store

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a" * 64
BIN = Path(sys.executable).parent
START_S = 90


@dataclass
class Notes:
    """Keeps the lines that a person would see."""

    lines: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.lines.append(text)

    def bar(self, name: str, total: int | None = None) -> Any:
        raise AssertionError("submit draws no bar")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The dashboard's URL of a head started as `.venv/bin/ray start`, its venv not on PATH."""
    gcs, dashboard, agent, client = free_ports(4)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    env["PATH"] = os.pathsep.join(p for p in env["PATH"].split(os.pathsep) if Path(p) != BIN)
    with tempfile.TemporaryDirectory(prefix="lf-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        command = [
            sys.executable,
            BIN / "ray",
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
        ]
        command += [
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
        ]
        command += [f"--ray-client-server-port={client}", f"--temp-dir={temp}", "--num-cpus=4"]
        command += ["--object-store-memory=200000000", "--include-dashboard=true"]
        with open(Path(temp) / "ray-start.log", "w") as log:
            head = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            )
        url = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for(url, head, Path(log.name))
            yield url
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait()


def wait_for(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        f"{url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(request, timeout=5).read()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no cluster after {START_S} s: {log.read_text()}")


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    rows = tmp_path / "rows.json"
    rows.write_text('[{"instruction": "say hi", "output": "hi"}]')
    return parse_recipe(
        {"name": "hello", "model": {"base": "org/base"}, "data": {"sources": str(rows)}}
    )


def test_a_job_runs_on_the_clusters_python_with_code_recipe_and_data_and_only_once(
    cluster, token, recipe
):
    script = (
        "import os, sys, ray, pipelines.config.load as r; loaded = r.load_recipe(sys.argv[1]);"
        "path = loaded.data.sources[0].path; print('SAW', sys.argv[2:], os.listdir(path), "
        "flush=True);"
        "ray.init(); print('TASK', ray.get(ray.remote(lambda: os.path.exists(path)).remote()))"
    )
    command = f'sh jobs/cluster/on_cluster.sh $PPID python -c "{script}"'
    notes = Notes()
    first = submit_job(recipe, "s3://bucket/store", cluster, notes, command=command)
    assert (first.started, first.status, first.exit_code) == (True, "SUCCEEDED", 0), notes.lines
    assert any(
        "SAW ['--store', 's3://bucket/store'] ['00000-rows.json']" in line for line in notes.lines
    ), notes.lines
    assert any("TASK True" in line for line in notes.lines), notes.lines

    again = Notes()
    second = submit_job(recipe, "s3://bucket/store", cluster, again, command=command)
    assert second.submission_id == first.submission_id and not second.started
    assert second.status == "SUCCEEDED" and "nothing started" in again.lines[0]


@pytest.mark.slow
def test_the_pocket_recipe_becomes_a_promoted_version_and_starts_nothing_new(
    cluster, token, tmp_path
):
    store = Store(tmp_path / "store")
    quick = [
        "train.max_steps=4",
        "train.global_batch=2",
        "eval.max_samples=8",
        "gate.metric=heldout_loss",
    ]
    recipe = load_recipe(ROOT / "recipes" / "pocket_lora_person_cpu.yaml", quick)
    notes = Notes()
    first = submit_job(recipe, store.uri, cluster, notes)
    assert (first.status, first.exit_code) == ("SUCCEEDED", 0), "\n".join(notes.lines)
    registry = Registry(store)
    (version,) = registry.versions("person")
    alias = registry.alias("person", "production")
    assert alias and (alias.version_id, alias.revision) == (version.id, 1)
    assert any(version.id in line for line in notes.lines)

    second = submit_job(recipe, store.uri, cluster, Notes())
    assert (second.submission_id, second.started, second.status) == (
        first.submission_id,
        False,
        "SUCCEEDED",
    )
    assert registry.alias("person", "production") == alias


def test_a_failed_job_gives_its_exit_code_and_gets_another_attempt(cluster, token, recipe):
    first = submit_job(recipe, "/store", cluster, Notes(), command="exit 2;")
    assert (first.status, first.exit_code) == ("FAILED", 2)
    second = submit_job(recipe, "/store", cluster, Notes(), command="exit 2;")
    assert second.started and second.submission_id == f"{first.submission_id}-2"


@pytest.mark.parametrize(
    ("given", "says"), [("", "(wants a|refuses this) token"), ("b" * 64, "refuses this token")]
)
def test_a_missing_or_wrong_token_is_one_line(cluster, recipe, monkeypatch, tmp_path, given, says):
    """Ray keeps the token of a cluster that this process started before; then the missing one is a
    wrong one.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", given)
    with pytest.raises(UserError, match=f"{re.escape(cluster)}.*{says}.*RAY_AUTH_TOKEN") as caught:
        submit_job(recipe, "/store", cluster, Notes())
    assert "\n" not in str(caught.value)


def test_no_cluster_is_one_line(recipe):
    (port,) = free_ports(1)
    with pytest.raises(UserError, match="no Ray dashboard answers there") as caught:
        submit_job(recipe, "/store", f"http://127.0.0.1:{port}", Notes())
    assert "\n" not in str(caught.value)
