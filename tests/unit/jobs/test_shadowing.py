"""A user's own `jobs/` or `pipelines/` folder does not hide ours from Ray's workers.

Ray puts the driver's working directory in front of every worker's sys.path. `make wheel-demo` runs
the demo on real workers in such a folder; here the two counter-measures are checked by themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.cluster.ray import ray_cluster
from jobs.cluster.staging import PACKAGES

ROOT = Path(__file__).resolve().parents[3]
PRELOADED = "RAY_preload_python_modules"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Path, str]]:
    """For each call of ray.init: the working directory and the modules that workers preload."""
    import ray

    seen: list[tuple[Path, str]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        ray, "init", lambda **_: seen.append((Path.cwd(), os.environ.get(PRELOADED, "")))
    )
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv(PRELOADED, "")
    monkeypatch.delenv(PRELOADED)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    return seen


def test_workers_of_a_local_cluster_import_our_packages_before_they_see_the_users_folder(
    starts: list[tuple[Path, str]], tmp_path: Path
) -> None:
    with ray_cluster(verbose=True):
        pass
    ((directory, preloaded),) = starts
    assert set(preloaded.split(",")) == set(PACKAGES)
    assert directory == tmp_path, "workers inherit it, and trackers write into it"


def test_workers_of_a_cluster_that_runs_already_get_our_folder_in_place_of_the_users(
    starts: list[tuple[Path, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with ray_cluster(verbose=True):
        assert Path.cwd() == tmp_path
    assert [directory for directory, _ in starts] == [ROOT]
